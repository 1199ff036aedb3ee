//! Broken, slow and wrong transfers.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use resnet_hub::{Error, Missing};

use super::*;
use crate::fake_hub::Fault;

#[test]
fn empty_then_cached() {
    let stage = Stage::new();
    assert_eq!(stage.get_valid(), ["start 0", "progress", "verifying", "done"]);
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{}");
    let (requests, connections) = (stage.hub.requests().len(), stage.hub.connections());
    assert_eq!(stage.get_valid(), [] as [String; 0]);
    stage.get(CONFIG).unwrap();
    assert_eq!((stage.hub.requests().len(), stage.hub.connections()), (requests, connections));
    assert!(stage.hub.requests().iter().all(|r| r.headers["accept-encoding"] == "identity"));
}

#[test]
fn cut_at_half_every_time() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Truncate);
    let (error, text) = stage.get_error();
    assert!(
        matches!(error, Error::Interrupted { found, expected: Some(SIZE), .. } if found == SIZE / 2),
        "{error:?}"
    );
    assert!(text.contains(MODEL) && text.contains(REPO) && text.contains("127.0.0.1"), "{text}");
    // The first attempt received half, the next five nothing more.
    assert_eq!(stage.hub.gets().len(), 1 + 5);
    let ranges = stage.hub.gets().iter().filter(|r| r.headers.contains_key("range")).count();
    assert!(ranges >= 5, "{ranges}");
}

#[test]
fn cut_then_resumed() {
    let stage = Stage::new();
    stage.hub.fault_times(Fault::Cut, 3);
    assert_eq!(
        stage.get_valid(),
        [
            "start 0",
            "progress",
            "retry 1",
            "progress",
            "retry 1",
            "progress",
            "retry 1",
            "progress",
            "verifying",
            "done"
        ]
    );
    let ranges: Vec<_> = stage.hub.gets().iter().filter_map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=262144-", "bytes=393216-", "bytes=458752-"]);
}

#[test]
fn chunks_end_early_and_cleanly() {
    let stage = Stage::new();
    stage.hub.fault(Fault::ChunkCut);
    let (error, _) = stage.get_error();
    // Six attempts of 1000 bytes each do not count as progress.
    assert!(matches!(error, Error::Interrupted { found: 6000, expected: Some(SIZE), .. }), "{error:?}");
}

#[test]
fn wrong_byte() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Wrong);
    let (error, text) = stage.get_error();
    assert!(matches!(error, Error::Hash { .. }) && text.contains(&etag(MODEL, &model())), "{text}");
    assert_eq!(stage.hub.gets().len(), 2);
    assert_eq!(stage.partial(), [] as [String; 0]);
    // Wrong once, then valid.
    stage.hub.heal();
    stage.hub.fault_times(Fault::Wrong, 1);
    assert!(stage.get_valid().contains(&"retry 1".to_string()));
}

#[test]
fn wrong_small_file() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Wrong);
    let error = stage.get(CONFIG).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }), "{error:?}");
    assert_eq!(stage.blobs(), [] as [String; 0]);
}

#[test]
fn range_not_supported() {
    for fault in [Fault::NoRange, Fault::Unsatisfiable, Fault::BadRange] {
        let stage = Stage::new();
        stage.hub.fault_times(Fault::Cut, 1);
        stage.hub.fault_times(fault, 1);
        stage.get_valid();
    }
}

#[test]
fn status_of_the_bytes() {
    let check = |fault: Fault, gets: usize, is: fn(&Error) -> bool| {
        let stage = Stage::new();
        stage.hub.fault(fault.clone());
        let (error, _) = stage.get_error();
        assert!(is(&error), "{fault:?}: {error:?}");
        assert_eq!(stage.hub.gets().len(), gets, "{fault:?}");
    };
    check(Fault::Get(403), 1, |e| matches!(e, Error::Denied { status: 403, .. }));
    check(Fault::Get(404), 1, |e| matches!(e, Error::NotFound { .. }));
    check(Fault::Get(418), 1, |e| matches!(e, Error::Status { status: 418, .. }));
    check(Fault::Get(500), 6, |e| matches!(e, Error::Status { status: 500, .. }));
    check(Fault::TooMany(100_000), 1, |e| {
        matches!(e, Error::RateLimited { retry_after: Some(t), .. } if t.as_secs() == 100_000)
            && e.to_string().contains("100000 s")
    });
    let stage = Stage::new();
    stage.hub.fault_times(Fault::TooMany(0), 2);
    stage.hub.fault_times(Fault::Get(503), 2);
    stage.get_valid();
}

#[test]
fn status_of_the_headers() {
    let check = |status, code, is: fn(&Error) -> bool, hint: &str| {
        let stage = Stage::new();
        stage.hub.fault(Fault::Head(status, code));
        let (error, text) = stage.get_error();
        assert!(is(&error) && text.contains(hint), "{text}");
    };
    check(401, "GatedRepo", |e| matches!(e, Error::Denied { gated: true, .. }), "accept its terms");
    check(403, "", |e| matches!(e, Error::Denied { status: 403, .. }), "HF_TOKEN");
    check(401, "RepoNotFound", |e| matches!(e, Error::NotFound { missing: Missing::Repo, .. }), "spelling");
    check(
        404,
        "RevisionNotFound",
        |e| matches!(e, Error::NotFound { missing: Missing::Revision, .. }),
        "revision",
    );
    check(
        404,
        "EntryNotFound",
        |e| matches!(e, Error::NotFound { missing: Missing::File, .. }),
        "no such file",
    );
    check(500, "", |e| matches!(e, Error::Status { status: 500, .. }), "500");
    // Temporary.
    let stage = Stage::new();
    stage.hub.fault_times(Fault::Head(502, ""), 3);
    stage.get_valid();
}

#[test]
fn captive_portal() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Portal);
    let (error, _) = stage.get_error();
    assert!(matches!(error, Error::Size { found: 18, expected: SIZE, .. }), "{error:?}");
    assert_eq!(stage.hub.gets().len(), 1);
}

#[test]
fn announced_size() {
    let check = |size: Option<&str>, is: fn(&Error) -> bool| {
        let stage = Stage::new();
        stage.hub.fault(Fault::Size(size.map(String::from)));
        let (error, text) = stage.get_error();
        assert!(is(&error), "{size:?}: {text}");
    };
    let half = (SIZE / 2).to_string();
    check(Some(&half), |e| matches!(e, Error::Size { found: SIZE, .. }));
    check(Some("2097152"), |e| matches!(e, Error::Size { found: SIZE, expected: 2_097_152, .. }));
    for bad in ["-1", "", "+5", "99999999999999999999999999", "1e3"] {
        check(Some(bad), |e| matches!(e, Error::Header { header: "X-Linked-Size", .. }));
    }
    check(None, |e| matches!(e, Error::Header { header: "X-Linked-Size", found: None, .. }));
    // Where the bytes come from the endpoint itself, their length is known.
    let stage = Stage::new();
    stage.hub.fault(Fault::Size(None));
    stage.hub.fault(Fault::Direct);
    stage.get_valid();
}

#[test]
fn stall() {
    let stall = Duration::from_millis(150);
    let mut stage = Stage::new();
    stage.config.limits.stall = stall;
    stage.hub.fault(Fault::Stall);
    let (error, text) = stage.get_error();
    assert!(matches!(error, Error::Interrupted { found: 1000, expected: Some(SIZE), .. }), "{error:?}");
    assert!(text.contains("0.15 s") && text.contains("127.0.0.1"), "{text}");

    // Only attempts that end before `give_up`.
    let mut stage = Stage::new();
    stage.config.limits.stall = stall;
    stage.config.limits.give_up = Duration::from_millis(400);
    stage.hub.fault(Fault::Silent);
    let (error, _) = stage.get_error();
    assert!(matches!(error, Error::Interrupted { found: 0, expected: None, .. }), "{error:?}");
    assert!(stage.hub.requests().len() <= 2, "{}", stage.hub.requests().len());
}

#[test]
fn slow() {
    let mut stage = Stage::new();
    stage.config.limits.retries = 1;
    stage.config.limits.min_rate = 1000;
    stage.config.limits.rate_window = Duration::from_millis(100);
    stage.hub.fault(Fault::Drip);
    let (error, text) = stage.get_error();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    assert!(text.contains("1000 bytes/s") && text.contains("127.0.0.1"), "{text}");
    assert_eq!(stage.hub.gets().len(), 2);
}

#[test]
fn no_connection() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let check = |endpoint: String| {
        let mut stage = Stage::new();
        stage.config.endpoint = endpoint;
        stage.config.limits.connect = Duration::from_millis(100);
        let begin = Instant::now();
        let (error, text) = stage.get_error();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{text} after {:?}", begin.elapsed());
    };
    check(format!("http://{closed}"));
    // Connects, but the handshake never ends.
    check(format!("https://{}", silent.local_addr().unwrap()));
    // A label that is too long has no address in any network.
    check(format!("http://{}.test", "x".repeat(70)));
}

#[test]
fn compressed_body() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Gzip);
    let (error, _) = stage.get_error();
    assert!(
        matches!(&error, Error::Header { header: "Content-Encoding", found: Some(f), .. } if f == "gzip"),
        "{error:?}"
    );
    assert_eq!(stage.hub.gets().len(), 1);
    assert_eq!(stage.partial(), [] as [String; 0]);
}

#[test]
fn partial_file_of_a_killed_process() {
    let stage = Stage::new();
    let (etag, model) = (etag(MODEL, &model()), model());
    let blobs = stage.path("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial =
        |name: &str, bytes: &[u8]| fs::write(blobs.join(format!("{name}.incomplete")), bytes).unwrap();

    // The longest is resumed, the others are removed; that of another blob is kept.
    partial(&format!("{etag}.1"), &model[..300_000]);
    partial(&format!("{etag}.2"), &model[..100_000]);
    let other = "0".repeat(64);
    partial(&other, b"x");
    assert_eq!(stage.get_valid()[0], "start 300000");
    assert_eq!(stage.hub.gets()[0].headers["range"], "bytes=300000-");
    assert_eq!(stage.partial(), [format!("{other}.incomplete")]);

    // Killed between the last byte and the rename: no byte is requested.
    let reset = || {
        fs::remove_file(blobs.join(&etag)).unwrap();
        stage.hub.gets().len()
    };
    let gets = reset();
    partial(&format!("{etag}.3"), &model);
    stage.get_valid();
    assert_eq!(stage.hub.gets().len(), gets);

    // Invalid bytes, also more than the file has: detected by the hash, and downloaded again.
    for invalid in [vec![7; 1000], vec![7; model.len() + 1]] {
        reset();
        partial(&format!("{etag}.4"), &invalid);
        assert!(stage.get_valid().contains(&"retry 1".to_string()));
    }

    // The file of another blob that was not modified for a day.
    let mut stage = stage;
    stage.config.limits.stale = Duration::ZERO;
    fs::remove_file(stage.blob(MODEL, &model)).unwrap();
    stage.get_valid();
    assert_eq!(stage.partial(), [] as [String; 0]);
}

#[test]
fn failed_run_is_resumed() {
    let mut stage = Stage::new();
    stage.config.limits.retries = 0;
    stage.hub.fault_times(Fault::Cut, 1);
    stage.get_error();
    assert_eq!(stage.partial().len(), 1);
    assert_eq!(stage.get_valid()[0], "start 262144");
    assert_eq!(stage.partial(), [] as [String; 0]);
}
