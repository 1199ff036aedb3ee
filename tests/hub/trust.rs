//! Names, headers and redirects of an endpoint that lies, and what it learns about the user.

use resnet_cli::hub::Token;

use super::*;
use crate::fakehub::Fault;

const SECRET: &str = "hf_secretsecretsecret";

#[test]
fn h08_etag() {
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
        let (error, text) = stage.get_bad();
        assert!(matches!(error, HubError::Header { header: "ETag", .. }), "{bad:?}: {text}");
        assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0, "{bad:?}");
    }
    let stage = Stage::new();
    stage.hub.fault(Fault::Etag(format!("W/\"{sha}\"")));
    stage.get_good();
}

#[test]
fn h09_commit() {
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
        let (error, text) = stage.get_bad();
        assert!(matches!(error, HubError::Header { header: "X-Repo-Commit", .. }), "{bad:?}: {text}");
        assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0, "{bad:?}");
    }
    // Another commit than the one that was asked for.
    let stage = Stage::new();
    stage.hub.fault(Fault::Commit(Some("a".repeat(40))));
    let (result, _) = stage.get_at(&stage.hub.commit(REPO), MODEL);
    assert!(matches!(result.unwrap_err(), HubError::Header { header: "X-Repo-Commit", .. }));
}

#[test]
fn h10_file_names() {
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
        assert!(matches!(error, HubError::FileName { .. }), "{bad:?}: {error:?}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    assert_eq!(stage.hub.connections(), 0);
    stage.hub.add_file(REPO, "a b/ü+?#.json", *b"[]");
    let path = stage.get("a b/ü+?#.json").unwrap_err();
    // The server compares encoded names, so it is the spelling of the request that is checked.
    assert!(matches!(path, HubError::NotFound { .. }));
    assert!(stage.hub.requests()[0].path.ends_with("/resolve/main/a%20b/%C3%BC%2B%3F%23.json"));
}

#[test]
fn h12_redirects() {
    let check = |location: String, word: &str| {
        let stage = Stage::new();
        let location = location.replace("HUB", &stage.hub.url());
        stage.hub.fault(Fault::Redirect(location.clone()));
        let (error, text) = stage.get_bad();
        assert!(matches!(error, HubError::Redirect { .. }), "{location}: {error:?}");
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
    check("http://a b/".into(), "no URL");
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
    stage.get_good();
    assert!(stage.hub.requests().iter().all(|r| !r.headers.contains_key("authorization")));
}

#[test]
fn h12_h26_token_stays_with_the_endpoint() {
    let mut stage = Stage::new();
    stage.config.token = Some(Token::new(SECRET).unwrap());
    stage.get_good();
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
fn h26_secrets_are_never_shown() {
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
fn h26_settings_that_would_leak() {
    let check = |endpoint: &str, token: bool, proxy: Option<&str>, word: Option<&str>| {
        let mut config =
            Config { endpoint: endpoint.into(), cache_dir: Some("x".into()), ..Config::default() };
        config.token = token.then(|| Token::new(SECRET).unwrap());
        config.proxies.https = proxy.map(String::from);
        match (Client::new(config), word) {
            (Ok(client), None) => assert!(!format!("{client:?}").contains("secret"), "{client:?}"),
            (Err(e @ HubError::Setting { .. }), Some(word)) => {
                let text = format!("{e} {e:?}");
                assert!(text.contains(word) && !text.contains("secret"), "{endpoint}: {text}");
            }
            (other, _) => panic!("{endpoint}: {other:?}"),
        }
    };
    check("http://hub.example", true, None, Some("plain http"));
    check("http://hub.example", false, None, None);
    check("http://10.0.0.1", true, None, Some("plain http"));
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

#[test]
fn h28_https_is_never_given_up() {
    let mut stage = Stage::new();
    stage.config.endpoint = stage.hub.url().replace("http:", "https:");
    let (error, _) = stage.get_bad();
    assert!(matches!(error, HubError::Connect { .. }), "{error:?}");
}

#[test]
fn loopback_is_asked_without_the_proxy() {
    let mut stage = Stage::new();
    stage.config.proxies.http = Some("http://127.0.0.1:9".into());
    stage.get_good();
}

#[test]
fn other_hosts_are_asked_through_the_proxy() {
    let mut stage = Stage::new();
    // The fake Hub is no proxy: it does not know CONNECT and closes. That it was asked is the point.
    stage.config.proxies.http = Some(stage.hub.url());
    stage.config.endpoint = "http://hub.example".into();
    stage.config.limits.retries = 0;
    let (error, _) = stage.get_bad();
    assert!(matches!(&error, HubError::Connect { target, .. } if target.host == "hub.example"), "{error:?}");
    assert_eq!(stage.hub.requests()[0].method, "CONNECT");
    // Unless it is an exception, with the names below it.
    let connections = stage.hub.connections();
    stage.config.proxies.bypass = vec!["example".into()];
    stage.get_bad();
    assert_eq!(stage.hub.connections(), connections);
}
