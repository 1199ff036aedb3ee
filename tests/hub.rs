//! The Hub client against a Hub that fails and lies. Names carry the rows of the list of attacks that they cover.

#![cfg(test)]

mod cache;
mod transfer;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use resnet_cli::hub::{Client, Config, Event, HubError, Limits, RepoId, Revision};
use tempfile::TempDir;

use crate::fakehub::{FakeHub, etag};

const REPO: &str = "timm/resnet0.test";
const FOLDER: &str = "models--timm--resnet0.test";
const MODEL: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// A Hub with one repository, and a cold cache.
struct Stage {
    hub: FakeHub,
    dir: TempDir,
    config: Config,
}

impl Stage {
    fn new() -> Self {
        let hub = FakeHub::start();
        hub.add_file(REPO, MODEL, model());
        hub.add_file(REPO, CONFIG, *b"{}");
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            backoff: Duration::from_millis(1),
            longest_wait: Duration::from_secs(1),
            ..Limits::default()
        };
        let config =
            Config { endpoint: hub.url(), cache_dir: Some(dir.path().into()), limits, ..Config::default() };
        Self { hub, dir, config }
    }

    fn get(&self, file: &str) -> Result<PathBuf, HubError> {
        self.get_at("main", file).0
    }

    /// Gets a file and tells the events by name.
    fn get_at(&self, revision: &str, file: &str) -> (Result<PathBuf, HubError>, Vec<String>) {
        let client = Client::new(self.config.clone()).unwrap();
        let (repo, _) = RepoId::parse(REPO).unwrap();
        let mut events: Vec<String> = vec![];
        let result = client.file(&repo, &Revision::parse(revision).unwrap(), file, &mut |event| {
            let name = match event {
                Event::Start { resumed, .. } => format!("start {resumed}"),
                Event::Progress { .. } if events.last().is_some_and(|e| e == "progress") => return,
                Event::Progress { .. } => "progress".into(),
                Event::Retry { attempt, .. } => format!("retry {attempt}"),
                other => format!("{other:?}").to_lowercase(),
            };
            events.push(name);
        });
        (result, events)
    }

    /// Gets the model, which must be good.
    fn get_good(&self) -> Vec<String> {
        let (result, events) = self.get_at("main", MODEL);
        assert!(fs::read(result.unwrap()).unwrap() == model(), "the content is another");
        events
    }

    /// Gets the model, which must fail, leaving nothing that is trusted; returns the error and its text.
    fn get_bad(&self) -> (HubError, String) {
        let error = self.get(MODEL).unwrap_err();
        assert_eq!(self.blobs(), [] as [String; 0], "{error}");
        assert!(!self.path("snapshots").exists() && !self.path("refs").exists(), "{error}");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 600, "{text}");
        (error, text)
    }

    fn path(&self, rest: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(FOLDER).join(rest)
    }

    fn blob(&self, file: &str, bytes: &[u8]) -> PathBuf {
        self.path("blobs").join(etag(file, bytes))
    }

    fn files(&self, suffix: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = fs::read_dir(self.path("blobs")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).filter(|n| suffix(n)).collect()
    }

    fn blobs(&self) -> Vec<String> {
        self.files(|name| !name.ends_with(".incomplete"))
    }

    fn partial(&self) -> Vec<String> {
        self.files(|name| name.ends_with(".incomplete"))
    }
}

/// Size of the model in bytes.
const SIZE: u64 = 1 << 19;

/// Bytes of which no part repeats.
fn model() -> Vec<u8> {
    static MODEL: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0u32..1 << 17).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect());
    MODEL.clone()
}
