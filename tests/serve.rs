//! `resnet-cli serve` over loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{command, file, resnet_cli};

const DIGITS: &str = "weights/digits_resnet20.safetensors";

/// A running server, killed when dropped.
struct Server {
    child: Child,
    address: String,
    ready: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(args: &[&str]) -> Server {
    let mut command = command(&["serve", "--port", "0", "--log", "error"]);
    let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let address = ready.strip_prefix("http://").and_then(|r| r.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("not ready: {ready:?}")).to_owned();
    Server { child, address, ready }
}

impl Server {
    /// Sends the image of a seven to `path`; returns the status and the body.
    fn post(&self, path: &str) -> (u16, String) {
        let image = fs::read(file("examples/images/digit-7-a.png")).unwrap();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            image.len()
        );
        stream.write_all(&[head.as_bytes(), &image].concat()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        (status, reply.split("\r\n\r\n").nth(1).unwrap().to_owned())
    }

    /// Repeats [`Server::post`] until `is_done` accepts the reply.
    #[track_caller]
    fn wait_for(&self, path: &str, is_done: impl Fn(u16, &str) -> bool) {
        let start = Instant::now();
        loop {
            let (status, body) = self.post(path);
            if is_done(status, &body) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{status} {body}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn a_checkpoint_is_served_until_sigterm() {
    let weights = file(DIGITS);
    let mut server = start(&["--weights", &format!("digits={}", weights.display())]);
    assert!(server.ready.contains("serves digits with"), "{}", server.ready);
    for path in ["/", "/models/digits", "/invocations"] {
        let (status, body) = server.post(path);
        assert_eq!(status, 200);
        assert!(body.starts_with("[{\"label\":\"7\",\"score\":0.99"), "{body}");
    }
    assert_eq!(server.post("/models/nosuch").0, 404);
    #[cfg(unix)]
    {
        let pid = server.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn models_of_a_folder_are_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let weights = fs::read(file(DIGITS)).unwrap();
    fs::write(folder.path().join("a.safetensors"), &weights).unwrap();
    fs::write(folder.path().join("broken.pth"), "not a checkpoint").unwrap();
    fs::write(folder.path().join("notes.txt"), "ignored").unwrap();
    let server = start(&["--model-dir", folder.path().to_str().unwrap()]);
    assert_eq!(server.post("/models/a").0, 200);
    assert_eq!(server.post("/models/broken").0, 503);
    assert_eq!(server.post("/models/notes").0, 404);
    // A new file, and a fixed one, are loaded; a damaged replacement keeps the previous model.
    fs::write(folder.path().join("b.safetensors"), &weights).unwrap();
    fs::remove_file(folder.path().join("broken.pth")).unwrap();
    fs::write(folder.path().join("a.safetensors"), &weights[..weights.len() / 2]).unwrap();
    server.wait_for("/models/b", |status, _| status == 200);
    server.wait_for("/models/broken", |status, _| status == 404);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.post("/models/a").0, 200);
}

#[test]
fn invalid_flags_and_models_are_reported() {
    let usage = resnet_cli(&["serve"]);
    assert_eq!(usage.code, 2);
    resnet_cli(&["serve", "--port", "0", "--weights", "nothing.pth"]).fails_with(&["nothing", "nothing.pth"]);
    resnet_cli(&["serve", "--port", "0", "--weights", "a=x.pth", "--weights", "a=y.pth"])
        .fails_with(&["two models have the name `a`"]);
    let policy = resnet_cli(&["serve", "--weights", "x", "--threads-per-image", "some"]);
    assert_eq!(policy.code, 2);
}
