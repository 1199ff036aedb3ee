//! Names, headers and redirects of a hostile endpoint, and the credentials that it receives.

use resnet_hub::Token;

use super::*;
use crate::fake_hub::Fault;

const SECRET: &str = "hf_secretsecretsecret";

#[test]
fn invalid_etags() {
    let sha = etag(MODEL, &model());
    for bad in [
        "\"../../../../EVIL\"",
        "\"/EVIL\"",
        "\"\"",
        "",
        "\"a/b\"",
        "nul",
        &sha.to_uppercase(),
        &format!("\"{sha}-1\""),
        &format!("\"{}\"", "a".repeat(4096)),
        "\"d41d8cd98f00b204e9800998ecf8427e\"",
    ] {
        let stage = Stage::new();
        stage.hub.fault(Fault::Etag(bad.into()));
        let (error, text) = stage.get_error();
        assert!(matches!(error, Error::Header { header: "ETag", .. }), "{bad:?}: {text}");
        assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0, "{bad:?}");
    }
    let stage = Stage::new();
    stage.hub.fault(Fault::Etag(format!("W/\"{sha}\"")));
    stage.get_valid();
}

#[test]
fn invalid_commits() {
    for bad in [
        None,
        Some("../../../../EVIL"),
        Some(""),
        Some("abc"),
        Some(&*"A".repeat(40)),
        Some(&*"a".repeat(41)),
    ] {
        let stage = Stage::new();
        stage.hub.fault(Fault::Commit(bad.map(String::from)));
        let (error, text) = stage.get_error();
        assert!(matches!(error, Error::Header { header: "X-Repo-Commit", .. }), "{bad:?}: {text}");
        assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0, "{bad:?}");
    }
    // A commit other than the requested one.
    let stage = Stage::new();
    stage.hub.fault(Fault::Commit(Some("a".repeat(40))));
    let (result, _) = stage.get_at(&stage.hub.commit(REPO), MODEL);
    assert!(matches!(result.unwrap_err(), Error::Header { header: "X-Repo-Commit", .. }));
}

#[test]
fn invalid_file_names() {
    let stage = Stage::new();
    for bad in [
        "../x",
        "a/../../x",
        "/x",
        "C:\\x",
        "D:x",
        "\\\\host\\s",
        "a\\..\\..\\x",
        "a/C:\\x",
        "..",
        ".",
        "",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "./x",
        "a/./b",
        "nul",
        "x.",
        "file:stream",
        "\u{1b}[31m",
    ] {
        let error = stage.get(bad).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{bad:?}: {error:?}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    assert_eq!(stage.hub.connections(), 0);
    stage.hub.add_file(REPO, "a b/ü+?#.json", *b"[]");
    let path = stage.get("a b/ü+?#.json").unwrap_err();
    // The server compares encoded names, so the request is checked.
    assert!(matches!(path, Error::NotFound { .. }));
    assert!(stage.hub.requests()[0].path.ends_with("/resolve/main/a%20b/%C3%BC%2B%3F%23.json"));
}

#[test]
fn redirects() {
    let check = |location: String, word: &str| {
        let stage = Stage::new();
        let location = location.replace("HUB", &stage.hub.url());
        stage.hub.fault(Fault::Redirect(location.clone()));
        let (error, text) = stage.get_error();
        assert!(matches!(error, Error::Redirect { .. }), "{location}: {error:?}");
        assert!(text.contains(word) && !text.contains("sig"), "{location}: {text}");
        assert!(stage.hub.requests().len() <= 11, "{}", stage.hub.requests().len());
    };
    let file = format!("HUB/{REPO}/resolve/main/{MODEL}");
    check(file.clone(), "more than 10");
    check(file.trim_start_matches("HUB").into(), "more than 10");
    check("http://169.254.169.254/latest?sig=x".into(), "private");
    check("http://[fe80::1]/x?sig=x".into(), "private");
    check("ftp://127.0.0.1/x?sig=x".into(), "http");
    check("http://user:sig@127.0.0.1/x".into(), "password");
    check("http://a b/".into(), "invalid URL");
}

#[test]
fn mirror_that_only_redirects() {
    let mut stage = Stage::new();
    let mirror = FakeHub::start();
    mirror.add_file(REPO, MODEL, *b"unused");
    mirror.fault(Fault::Bare);
    mirror.fault(Fault::Redirect(format!("{}/{REPO}/resolve/main/{MODEL}", stage.hub.url())));
    stage.config.endpoint = mirror.url();
    stage.config.token = Some(Token::new(SECRET).unwrap());
    stage.get_valid();
    assert!(stage.hub.requests().iter().all(|r| !r.headers.contains_key("authorization")));
}

#[test]
fn token_is_sent_to_the_endpoint_only() {
    let mut stage = Stage::new();
    stage.config.token = Some(Token::new(SECRET).unwrap());
    stage.get_valid();
    stage.get(CONFIG).unwrap();
    let requests = stage.hub.requests();
    assert!(requests.iter().any(|r| r.path.starts_with("/cdn/")));
    for request in requests {
        let sent = request.headers.get("authorization").map(String::as_str);
        let expected = (!request.path.starts_with("/cdn/")).then_some("Bearer hf_secretsecretsecret");
        assert_eq!(sent, expected, "{} {}", request.method, request.path);
    }
}

#[test]
fn secrets_are_never_shown() {
    let check = |fault: Fault| {
        let mut stage = Stage::new();
        stage.config.token = Some(Token::new(SECRET).unwrap());
        stage.config.limits.retries = 1;
        stage.config.limits.stall = Duration::from_millis(150);
        stage.hub.fault(fault.clone());
        let error = stage.get(MODEL).unwrap_err();
        let shown = format!("{error} {error:?} {:?} {:?}", stage.config, Client::new(stage.config.clone()));
        assert!(!shown.contains("secret"), "{fault:?}: {shown}");
    };
    for fault in [
        Fault::Truncate,
        Fault::Wrong,
        Fault::Stall,
        Fault::Get(403),
        Fault::Head(401, ""),
        Fault::Head(404, "RepoNotFound"),
        Fault::Head(500, ""),
        Fault::TooMany(1000),
        Fault::Redirect("http://169.254.1.1/secret?X-Amz-Signature=secret".into()),
        Fault::Redirect("http://u:secret@127.0.0.1/".into()),
        Fault::Etag("\"x\"".into()),
    ] {
        check(fault);
    }
}

#[test]
fn settings_that_would_leak() {
    let check = |endpoint: &str, token: bool, proxy: Option<&str>, word: Option<&str>| {
        let mut config =
            Config { endpoint: endpoint.into(), cache_dir: Some("x".into()), ..Config::default() };
        config.token = token.then(|| Token::new(SECRET).unwrap());
        config.proxies.https = proxy.map(String::from);
        match (Client::new(config), word) {
            (Ok(client), None) => assert!(!format!("{client:?}").contains("secret"), "{client:?}"),
            (Err(e @ Error::Setting { .. }), Some(word)) => {
                let text = format!("{e} {e:?}");
                assert!(text.contains(word) && !text.contains("secret"), "{endpoint}: {text}");
            }
            (other, _) => panic!("{endpoint}: {other:?}"),
        }
    };
    check("http://hub.example", true, None, None);
    check("http://hub.example", false, None, None);
    check("http://127.0.0.1:1", true, None, None);
    check("http://localhost:1", true, None, None);
    check("https://hub.example/prefix/", true, None, None);
    check("https://user:secret@hub.example", false, None, Some("password"));
    check("ftp://hub.example", false, None, Some("neither http nor https"));
    check("hub.example", false, None, Some("HF_ENDPOINT"));
    check("", false, None, Some("HF_ENDPOINT"));
    check("https://hub.example", false, Some("http://user:secret@proxy:8080"), None);
    check("https://hub.example", false, Some("secret://\u{0}"), Some("HTTPS_PROXY"));
    let error = Client::new(Config::default()).unwrap_err();
    assert!(error.to_string().starts_with("HF_HOME: "), "{error}");
}

/// A cached file is available; a request is not sent.
#[test]
fn token_is_never_sent_over_plain_http() {
    for endpoint in ["http://hub.example", "http://10.0.0.1"] {
        let mut stage = Stage::new();
        stage.get_valid();
        stage.config.token = Some(Token::new(SECRET).unwrap());
        stage.config.endpoint = endpoint.into();
        stage.config.proxies.http = Some(stage.hub.url());
        stage.get_valid();
        let connections = stage.hub.connections();
        let error = stage.get(CONFIG).unwrap_err();
        assert!(
            matches!(error, Error::Setting { .. }) && error.to_string().contains("plain http"),
            "{error}"
        );
        assert_eq!(stage.hub.connections(), connections);
    }
}

#[test]
fn https_is_never_downgraded() {
    let mut stage = Stage::new();
    stage.config.endpoint = stage.hub.url().replace("http:", "https:");
    let (error, _) = stage.get_error();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[test]
fn loopback_bypasses_the_proxy() {
    let mut stage = Stage::new();
    stage.config.proxies.http = Some("http://127.0.0.1:9".into());
    stage.get_valid();
}

#[test]
fn other_hosts_use_the_proxy() {
    let mut stage = Stage::new();
    // The fake Hub does not support CONNECT and closes the connection after it.
    stage.config.proxies.http = Some(stage.hub.url());
    stage.config.endpoint = "http://hub.example".into();
    stage.config.limits.retries = 0;
    let (error, _) = stage.get_error();
    assert!(matches!(&error, Error::Connect { target, .. } if target.host == "hub.example"), "{error:?}");
    assert_eq!(stage.hub.requests()[0].method, "CONNECT");
    // NO_PROXY includes subdomains.
    let connections = stage.hub.connections();
    stage.config.proxies.bypass = vec!["example".into()];
    stage.get_error();
    assert_eq!(stage.hub.connections(), connections);
}

/// Accepts one SOCKS5 connection, records the host that it asks for, and relays it to `to`.
fn socks5(to: std::net::SocketAddr) -> (std::net::SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut greeting = [0; 2];
        client.read_exact(&mut greeting).unwrap();
        client.read_exact(&mut vec![0; usize::from(greeting[1])]).unwrap();
        client.write_all(&[5, 0]).unwrap();
        let mut head = [0; 5];
        client.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], [5, 1, 0, 3], "CONNECT with a host name");
        let mut host = vec![0; usize::from(head[4])];
        client.read_exact(&mut host).unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 80]).unwrap();
        let mut server = std::net::TcpStream::connect(to).unwrap();
        let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut up, &mut server);
            let _ = server.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut down, &mut client);
        host
    });
    (address, thread)
}

#[test]
fn socks_proxy() {
    let mut stage = Stage::new();
    let (address, thread) = socks5(stage.hub.url().trim_start_matches("http://").parse().unwrap());
    stage.config.proxies.http = Some(format!("socks5h://{address}"));
    stage.config.endpoint = "http://hub.example".into();
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{}");
    drop(stage);
    assert_eq!(thread.join().unwrap(), b"hub.example");
}

#[test]
fn invalid_certificate_files() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "not a certificate").unwrap();
    for path in [empty, dir.path().join("missing.pem")] {
        let config =
            Config { ca_bundle: Some(path.clone()), cache_dir: Some("x".into()), ..Config::default() };
        let error = Client::new(config).unwrap_err().to_string();
        assert!(error.contains("SSL_CERT_FILE") && error.contains(path.to_str().unwrap()), "{error}");
    }
}
