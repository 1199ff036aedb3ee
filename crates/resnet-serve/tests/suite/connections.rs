//! The connection loop over loopback: slow and idle clients, draining.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use resnet_serve::server::{Limits, serve};
use resnet_serve::{Config, router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{app, seven};

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

async fn start(limits: Limits, config: Config) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app(config);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let routes = router(app.clone());
        serve(listener, app, routes, limits, async {
            let _ = stopped.await;
        })
        .await
    });
    Running { address, stop, server }
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /?top_k=1 HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Sends one request on `stream` and returns the response's status line and body.
async fn exchange(stream: &mut TcpStream) -> (String, String) {
    stream.write_all(&request(&seven())).await.unwrap();
    read_response(stream).await
}

async fn read_response(stream: &mut TcpStream) -> (String, String) {
    let mut text = vec![];
    let mut buffer = [0; 4096];
    loop {
        let n =
            tokio::time::timeout(Duration::from_secs(30), stream.read(&mut buffer)).await.unwrap().unwrap();
        text.extend(&buffer[..n]);
        let all = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = all.split_once("\r\n\r\n") {
            let len =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if len.is_none_or(|len: usize| body.len() >= len) {
                return (head.lines().next().unwrap_or_default().to_owned(), body.to_owned());
            }
        }
        assert!(n > 0, "connection closed after {all:?}");
    }
}

async fn is_closed_within(mut stream: TcpStream, time: Duration) -> bool {
    let mut buffer = [0; 1024];
    let closed = async {
        while let Ok(n) = stream.read(&mut buffer).await {
            if n == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(time, closed).await.is_ok()
}

#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let server = start(Limits { max_connections: 8, ..Limits::default() }, Config::default()).await;
    let mut idle = vec![];
    for _ in 0..200 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (status, body) = exchange(&mut stream).await;
    assert!(status.contains("200") && body.contains("\"7\""), "{status} {body}");
}

#[tokio::test]
async fn slow_headers_and_stalled_bodies_are_cut() {
    let limits = Limits {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(600),
        ..Limits::default()
    };
    let server = start(limits, Config::default()).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: t\r\nX: ").await.unwrap();
    let mut stalled = TcpStream::connect(server.address).await.unwrap();
    stalled.write_all(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nabc").await.unwrap();
    let silent = TcpStream::connect(server.address).await.unwrap();
    for stream in [slow, stalled, silent] {
        assert!(is_closed_within(stream, Duration::from_secs(10)).await);
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert!(exchange(&mut stream).await.0.contains("200"));
}

#[tokio::test]
async fn shutdown_answers_every_accepted_request() {
    let config = Config { threads: 1, max_in_flight: 256, ..Config::default() };
    let server = start(Limits::default(), config).await;
    let mut clients = vec![];
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&request(&seven())).await.unwrap();
        clients.push(stream);
    }
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    exchange(&mut idle).await;
    let start = Instant::now();
    server.stop.send(()).unwrap();
    for mut client in clients {
        let (status, body) = read_response(&mut client).await;
        assert!(status.contains("200") && body.contains("\"7\""), "{status} {body}");
    }
    server.server.await.unwrap().unwrap();
    // An idle keep-alive connection does not delay the end.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(TcpStream::connect(server.address).await.is_err());
}
