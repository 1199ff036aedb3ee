//! The client against a Hub that fails, stalls and sends hostile responses.

#![cfg(test)]

mod cache;
mod fake_hub;
mod transfer;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use resnet_hub::{Client, Config, Error, Event, Limits, RepoId};
use tempfile::TempDir;

use crate::fake_hub::{FakeHub, etag};

const REPO: &str = "timm/resnet0.test";
const FOLDER: &str = "models--timm--resnet0.test";
const MODEL: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// A Hub with one repository, and an empty cache.
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
            max_wait: Duration::from_secs(1),
            ..Limits::default()
        };
        let config =
            Config { endpoint: hub.url(), cache_dir: Some(dir.path().into()), limits, ..Config::default() };
        Self { hub, dir, config }
    }

    fn get(&self, file: &str) -> Result<PathBuf, Error> {
        self.get_at("main", file).0
    }

    /// Gets a file and returns the names of the events.
    fn get_at(&self, revision: &str, file: &str) -> (Result<PathBuf, Error>, Vec<String>) {
        let client = Client::new(self.config.clone()).unwrap();
        let repo = RepoId::parse(&format!("{REPO}@{revision}")).unwrap();
        let mut events: Vec<String> = vec![];
        let result = client.file(&repo, file, &mut |event| {
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

    /// Gets the model and checks its content.
    fn get_valid(&self) -> Vec<String> {
        let (result, events) = self.get_at("main", MODEL);
        assert!(fs::read(result.unwrap()).unwrap() == model(), "unexpected content");
        events
    }

    /// Requires that getting the model fails and keeps nothing that is trusted. Returns the error and its text.
    fn get_error(&self) -> (Error, String) {
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

/// Bytes without a repeated part.
fn model() -> Vec<u8> {
    static MODEL: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0u32..1 << 17).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect());
    MODEL.clone()
}
