//! Broken, slow and wrong transfers.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use resnet_cli::hub::{HubError, Missing};

use super::*;
use crate::fakehub::Fault;

#[test]
fn cold_then_cached() {
    let stage = Stage::new();
    assert_eq!(stage.get_good(), ["start 0", "progress", "verifying", "done"]);
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{}");
    let (requests, connections) = (stage.hub.requests().len(), stage.hub.connections());
    assert_eq!(stage.get_good(), [] as [String; 0]);
    stage.get(CONFIG).unwrap();
    assert_eq!((stage.hub.requests().len(), stage.hub.connections()), (requests, connections));
    assert!(stage.hub.requests().iter().all(|r| r.headers["accept-encoding"] == "identity"));
}

#[test]
fn h01_cut_at_half_every_time() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Truncate);
    let (error, text) = stage.get_bad();
    assert!(
        matches!(error, HubError::Broken { found, expected: SIZE, .. } if found == SIZE / 2),
        "{error:?}"
    );
    assert!(text.contains(MODEL) && text.contains(REPO) && text.contains("127.0.0.1"), "{text}");
    // The first attempt brought half, the five after it nothing more.
    assert_eq!(stage.hub.gets().len(), 1 + 5);
    let ranges = stage.hub.gets().iter().filter(|r| r.headers.contains_key("range")).count();
    assert!(ranges >= 5, "{ranges}");
}

#[test]
fn h02_cut_then_resumed() {
    let stage = Stage::new();
    stage.hub.fault_times(Fault::Cut, 3);
    assert_eq!(
        stage.get_good(),
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
fn h03_chunks_end_early_and_cleanly() {
    let stage = Stage::new();
    stage.hub.fault(Fault::ChunkCut);
    let (error, _) = stage.get_bad();
    // Six attempts of 1000 bytes each are no progress.
    assert!(matches!(error, HubError::Size { found: 6000, expected: SIZE, .. }), "{error:?}");
}

#[test]
fn h04_wrong_byte() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Wrong);
    let (error, text) = stage.get_bad();
    assert!(matches!(error, HubError::Hash { .. }) && text.contains(&etag(MODEL, &model())), "{text}");
    assert_eq!(stage.hub.gets().len(), 2);
    assert_eq!(stage.partial(), [] as [String; 0]);
    // Once wrong, once good.
    stage.hub.heal();
    stage.hub.fault_times(Fault::Wrong, 1);
    assert!(stage.get_good().contains(&"retry 1".to_string()));
}

#[test]
fn h04_wrong_small_file() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Wrong);
    let error = stage.get(CONFIG).unwrap_err();
    assert!(matches!(error, HubError::Hash { .. }), "{error:?}");
    assert_eq!(stage.blobs(), [] as [String; 0]);
}

#[test]
fn h05_range_not_honoured() {
    for fault in [Fault::NoRange, Fault::Unsatisfiable, Fault::BadRange] {
        let stage = Stage::new();
        stage.hub.fault_times(Fault::Cut, 1);
        stage.hub.fault_times(fault, 1);
        stage.get_good();
    }
}

#[test]
fn h06_status_of_the_bytes() {
    let check = |fault: Fault, gets: usize, is: fn(&HubError) -> bool| {
        let stage = Stage::new();
        stage.hub.fault(fault.clone());
        let (error, _) = stage.get_bad();
        assert!(is(&error), "{fault:?}: {error:?}");
        assert_eq!(stage.hub.gets().len(), gets, "{fault:?}");
    };
    check(Fault::Get(403), 1, |e| matches!(e, HubError::Denied { status: 403, .. }));
    check(Fault::Get(404), 1, |e| matches!(e, HubError::NotFound { .. }));
    check(Fault::Get(418), 1, |e| matches!(e, HubError::Status { status: 418, .. }));
    check(Fault::Get(500), 6, |e| matches!(e, HubError::Status { status: 500, .. }));
    check(Fault::TooMany(100_000), 1, |e| {
        matches!(e, HubError::RateLimited { retry_after: Some(t), .. } if t.as_secs() == 100_000)
            && e.to_string().contains("100000 s")
    });
    let stage = Stage::new();
    stage.hub.fault_times(Fault::TooMany(0), 2);
    stage.hub.fault_times(Fault::Get(503), 2);
    stage.get_good();
}

#[test]
fn h06_status_of_the_headers() {
    let check = |status, code, is: fn(&HubError) -> bool, hint: &str| {
        let stage = Stage::new();
        stage.hub.fault(Fault::Head(status, code));
        let (error, text) = stage.get_bad();
        assert!(is(&error) && text.contains(hint), "{text}");
    };
    check(401, "GatedRepo", |e| matches!(e, HubError::Denied { gated: true, .. }), "accept its terms");
    check(403, "", |e| matches!(e, HubError::Denied { status: 403, .. }), "HF_TOKEN");
    check(
        401,
        "RepoNotFound",
        |e| matches!(e, HubError::NotFound { missing: Missing::Repo, .. }),
        "spelling",
    );
    check(
        404,
        "RevisionNotFound",
        |e| matches!(e, HubError::NotFound { missing: Missing::Revision, .. }),
        "revision",
    );
    check(
        404,
        "EntryNotFound",
        |e| matches!(e, HubError::NotFound { missing: Missing::File, .. }),
        "no such file",
    );
    check(500, "", |e| matches!(e, HubError::Status { status: 500, .. }), "500");
    // It gets better.
    let stage = Stage::new();
    stage.hub.fault_times(Fault::Head(502, ""), 3);
    stage.get_good();
}

#[test]
fn h07_captive_portal() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Portal);
    let (error, _) = stage.get_bad();
    assert!(matches!(error, HubError::Size { found: 18, expected: SIZE, .. }), "{error:?}");
    assert_eq!(stage.hub.gets().len(), 1);
}

#[test]
fn h11_announced_size() {
    let check = |size: Option<&str>, is: fn(&HubError) -> bool| {
        let stage = Stage::new();
        stage.hub.fault(Fault::Size(size.map(String::from)));
        let (error, text) = stage.get_bad();
        assert!(is(&error), "{size:?}: {text}");
    };
    let half = (SIZE / 2).to_string();
    check(Some(&half), |e| matches!(e, HubError::Size { found: SIZE, .. }));
    check(Some("2097152"), |e| matches!(e, HubError::Size { found: SIZE, expected: 2_097_152, .. }));
    for bad in ["-1", "", "+5", "99999999999999999999999999", "1e3"] {
        check(Some(bad), |e| matches!(e, HubError::Header { header: "X-Linked-Size", .. }));
    }
    check(None, |e| matches!(e, HubError::Header { header: "X-Linked-Size", found: None, .. }));
    // Where the bytes come from the endpoint itself, their length is known.
    let stage = Stage::new();
    stage.hub.fault(Fault::Size(None));
    stage.hub.fault(Fault::Direct);
    stage.get_good();
}

#[test]
fn h13_stall() {
    let stall = Duration::from_millis(150);
    let mut stage = Stage::new();
    stage.config.limits.stall = stall;
    stage.hub.fault(Fault::Stall);
    let (error, text) = stage.get_bad();
    assert!(matches!(error, HubError::Stalled { found: 1000, expected: Some(SIZE), .. }), "{error:?}");
    assert!(text.contains("0.15 s") && text.contains("127.0.0.1"), "{text}");

    // Not more attempts than fit into the time that is left.
    let mut stage = Stage::new();
    stage.config.limits.stall = stall;
    stage.config.limits.give_up = Duration::from_millis(400);
    stage.hub.fault(Fault::Silent);
    let (error, _) = stage.get_bad();
    assert!(matches!(error, HubError::Stalled { found: 0, expected: None, .. }), "{error:?}");
    assert!(stage.hub.requests().len() <= 2, "{}", stage.hub.requests().len());
}

#[test]
fn h14_drip() {
    let mut stage = Stage::new();
    stage.config.limits.retries = 1;
    stage.config.limits.min_rate = 1000;
    stage.config.limits.rate_window = Duration::from_millis(100);
    stage.hub.fault(Fault::Drip);
    let (error, text) = stage.get_bad();
    assert!(matches!(error, HubError::TooSlow { minimum: 1000, .. }), "{error:?}");
    assert!(text.contains("1000 bytes/s") && text.contains("127.0.0.1"), "{text}");
    assert_eq!(stage.hub.gets().len(), 2);
}

#[test]
fn h15_no_connection() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let check = |endpoint: String| {
        let mut stage = Stage::new();
        stage.config.endpoint = endpoint;
        stage.config.limits.connect = Duration::from_millis(100);
        let begin = Instant::now();
        let (error, text) = stage.get_bad();
        assert!(matches!(error, HubError::Connect { .. }), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{text} after {:?}", begin.elapsed());
    };
    check(format!("http://{closed}"));
    // Connects, but the handshake never ends.
    check(format!("https://{}", silent.local_addr().unwrap()));
    // A label that is too long has no address in any network.
    check(format!("http://{}.test", "x".repeat(70)));
}

#[test]
fn h16_compressed_body() {
    let stage = Stage::new();
    stage.hub.fault(Fault::Gzip);
    let (error, _) = stage.get_bad();
    assert!(matches!(&error, HubError::Encoding { found, .. } if found == "gzip"), "{error:?}");
    assert_eq!(stage.hub.gets().len(), 1);
    assert_eq!(stage.partial(), [] as [String; 0]);
}

#[test]
fn h18_partial_file_of_a_killed_process() {
    let stage = Stage::new();
    let (etag, model) = (etag(MODEL, &model()), model());
    let blobs = stage.path("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial =
        |name: &str, bytes: &[u8]| fs::write(blobs.join(format!("{name}.incomplete")), bytes).unwrap();

    // The longest is continued, the others are removed; a stranger's is left alone.
    partial(&format!("{etag}.1"), &model[..300_000]);
    partial(&format!("{etag}.2"), &model[..100_000]);
    let stranger = "0".repeat(64);
    partial(&stranger, b"x");
    assert_eq!(stage.get_good()[0], "start 300000");
    assert_eq!(stage.hub.gets()[0].headers["range"], "bytes=300000-");
    assert_eq!(stage.partial(), [format!("{stranger}.incomplete")]);

    // Killed between the last byte and the rename: no byte is asked for.
    let reset = || {
        fs::remove_file(blobs.join(&etag)).unwrap();
        stage.hub.gets().len()
    };
    let gets = reset();
    partial(&format!("{etag}.3"), &model);
    stage.get_good();
    assert_eq!(stage.hub.gets().len(), gets);

    // Rubbish, and more of it than the file is long: found by the hash, and begun afresh.
    for rubbish in [vec![7; 1000], vec![7; model.len() + 1]] {
        reset();
        partial(&format!("{etag}.4"), &rubbish);
        assert!(stage.get_good().contains(&"retry 1".to_string()));
    }

    // A stranger's file that nobody has written to for a day.
    let mut stage = stage;
    stage.config.limits.stale = Duration::ZERO;
    fs::remove_file(stage.blob(MODEL, &model)).unwrap();
    stage.get_good();
    assert_eq!(stage.partial(), [] as [String; 0]);
}

#[test]
fn h18_failed_run_is_continued() {
    let mut stage = Stage::new();
    stage.config.limits.retries = 0;
    stage.hub.fault_times(Fault::Cut, 1);
    stage.get_bad();
    assert_eq!(stage.partial().len(), 1);
    assert_eq!(stage.get_good()[0], "start 262144");
    assert_eq!(stage.partial(), [] as [String; 0]);
}
