//! `serve`: classification over HTTP.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use resnet_model::Checkpoint;
use resnet_serve::registry::ModelState;
use resnet_serve::server::{Limits, serve};
use resnet_serve::{App, Config, Registry, ServedModel, ThreadsPerImage, router};
use tokio::net::TcpListener;

use crate::exit::Outcome;
use crate::weights::{Access, Selection, Subjects};
use resnet_weights::Options;

/// Extensions of the files that `--model-dir` loads.
const EXTENSIONS: &[&str] = &["safetensors", "pth", "pt", "bin", "ckpt", "onnx", "npz"];

/// Serve models over HTTP
///
/// Serves the APIs of Hugging Face (POST an image to / or /models/NAME), Open Inference Protocol v2 (/v2), SageMaker
/// (/invocations), TorchServe (/predictions/NAME) and Vertex AI (/v1/models/NAME:predict), with health checks, Prometheus
/// metrics (/metrics) and an OpenAPI document (/openapi.json, /docs). docs/serving.md has examples for every client.
///
/// When all models are ready, one line with the address is printed. SIGTERM and Ctrl-C stop accepting connections, answer the
/// accepted requests and exit with status 0. Every flag can also be set by the environment variable in its description.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("models").required(true).multiple(true))]
pub struct Args {
    /// Model from the Hub, served under its name; repeatable
    #[arg(long, value_name = "NAME", env = "RESNET_MODEL", value_delimiter = ',', group = "models")]
    model: Vec<String>,
    /// Checkpoint to serve under the name of its file, folder or repository, or as NAME=CHECKPOINT; repeatable
    #[arg(
        long,
        value_name = "[NAME=]FILE|HUB-ID",
        env = "RESNET_WEIGHTS",
        value_delimiter = ',',
        group = "models"
    )]
    weights: Vec<String>,
    /// Folder of checkpoints, each served under the name of its file; new and replaced files are reloaded
    #[arg(long, value_name = "DIR", env = "RESNET_MODEL_DIR", group = "models")]
    model_dir: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 for all interfaces
    #[arg(long, value_name = "IP", env = "RESNET_HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 for any free port
    #[arg(long, value_name = "PORT", env = "RESNET_PORT", default_value_t = 8080)]
    port: u16,
    /// Worker threads; default: all cores
    #[arg(long, value_name = "N", env = "RESNET_THREADS", value_parser = super::predict::positive)]
    threads: Option<usize>,
    /// Threads per image: auto (one under load, all when idle), 1, or all
    #[arg(long, value_name = "N", env = "RESNET_THREADS_PER_IMAGE", default_value = "auto", value_parser = policy)]
    threads_per_image: ThreadsPerImage,
    /// Maximum request body in MB
    #[arg(long, value_name = "MB", env = "RESNET_MAX_BODY", default_value_t = 32, value_parser = super::predict::positive)]
    max_body: usize,
    /// Maximum number of images that are queued or computed; more are answered with status 429
    #[arg(long, value_name = "N", env = "RESNET_MAX_QUEUE", default_value_t = 64, value_parser = super::predict::positive)]
    max_queue: usize,
    /// Maximum time of an image in the queue, in seconds
    #[arg(long, value_name = "SECONDS", env = "RESNET_QUEUE_TIMEOUT", default_value_t = 30)]
    queue_timeout: u64,
    /// Maximum number of open connections; beyond it, the longest idle one is closed
    #[arg(long, value_name = "N", env = "RESNET_MAX_CONNECTIONS", default_value_t = 1024, value_parser = super::predict::positive)]
    max_connections: usize,
    /// Maximum time to answer accepted requests on shutdown, in seconds
    #[arg(long, value_name = "SECONDS", env = "RESNET_GRACE", default_value_t = 30)]
    grace: u64,
    /// File with one API key per line; requests must then send `Authorization: Bearer KEY`
    #[arg(long, value_name = "FILE", env = "RESNET_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Origin whose pages may call the API (CORS), or * for any; repeatable
    #[arg(long, value_name = "ORIGIN", env = "RESNET_CORS_ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Log level of standard error: error, warn, info (one line per request) or debug
    #[arg(long, value_name = "LEVEL", env = "RESNET_LOG", default_value = "info")]
    log: tracing::level_filters::LevelFilter,
    /// Write the log as JSON lines
    #[arg(long, env = "RESNET_LOG_JSON")]
    log_json: bool,
}

fn policy(text: &str) -> Result<ThreadsPerImage, String> {
    match text {
        "auto" => Ok(ThreadsPerImage::Auto),
        "all" => Ok(ThreadsPerImage::All),
        "1" => Ok(ThreadsPerImage::One),
        _ => Err("expected auto, 1 or all".into()),
    }
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let subscriber = tracing_subscriber::fmt().with_max_level(args.log).with_writer(std::io::stderr);
    let installed = match args.log_json {
        true => tracing::subscriber::set_global_default(subscriber.json().flatten_event(true).finish()),
        false => tracing::subscriber::set_global_default(subscriber.with_target(false).finish()),
    };
    installed.context("cannot install the log")?;
    let config = args.config()?;
    let threads = config.threads;
    let sources = args.sources()?;
    let registry = Registry::default();
    for name in sources.keys() {
        registry.set(name, ModelState::Loading);
    }
    let app = App::new(registry.clone(), config).context("cannot start the worker threads")?;
    let limits = Limits {
        max_connections: args.max_connections,
        grace: Duration::from_secs(args.grace),
        ..Limits::default()
    };
    // Connections only; images are computed by the worker threads.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let address = SocketAddr::new(args.host, args.port);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let stop = shutdown()?;
        let loading = tokio::task::spawn_blocking(move || {
            load(&sources, &registry, threads)?;
            if let Some(folder) = args.model_dir {
                let mut watched = Watched::default();
                watched.poll(&folder, &registry, threads)?;
                let registry = registry.clone();
                thread::Builder::new().name("model-dir".into()).spawn(move || {
                    loop {
                        thread::sleep(Duration::from_secs(1));
                        if let Err(error) = watched.poll(&folder, &registry, threads) {
                            tracing::warn!(%error, "cannot read the model folder");
                        }
                    }
                })?;
            }
            let names: Vec<String> = registry.list().into_iter().map(|(name, _)| name).collect();
            anyhow::Ok(names)
        });
        let server = tokio::spawn(serve(listener, app.clone(), router(app), limits, stop));
        let names = loading.await.context("loading the models")??;
        writeln!(out, "http://{address} serves {} with {threads} threads", names.join(", "))?;
        out.flush()?;
        server.await.context("the server")??;
        Ok(Outcome::Success)
    })
}

/// Registers SIGTERM and Ctrl-C and returns a future that completes on the first of them.
fn shutdown() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
        tracing::info!("shutting down");
    })
}

fn load(sources: &BTreeMap<String, Selection>, registry: &Registry, threads: usize) -> anyhow::Result<()> {
    for (name, selection) in sources {
        let opened = Access::default().open(selection.options()?, Subjects::All);
        let checkpoint = opened.with_context(|| format!("model `{name}`"))?;
        let model = compile(name, &checkpoint, threads)?;
        registry.set(name, ModelState::Ready(model));
    }
    Ok(())
}

fn compile(name: &str, checkpoint: &Checkpoint, threads: usize) -> anyhow::Result<Arc<ServedModel>> {
    let model = ServedModel::new(name, checkpoint, threads)?;
    model.warm_up()?;
    Ok(Arc::new(model))
}

/// Checkpoint files of `--model-dir`.
#[derive(Default)]
struct Watched {
    files: BTreeMap<PathBuf, Seen>,
}

/// State of a file at the last poll.
struct Seen {
    stamp: (SystemTime, u64),
    is_loaded: bool,
}

impl Watched {
    /// Loads new and replaced files, and removes the models of deleted ones. A file that cannot be loaded keeps its
    /// previous model. A file that changed since the last poll is loaded at the next one, since it may still be written.
    fn poll(&mut self, folder: &Path, registry: &Registry, threads: usize) -> anyhow::Result<()> {
        let is_first = self.files.is_empty();
        let mut present = Vec::new();
        let entries = std::fs::read_dir(folder).with_context(|| format!("`{}`", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let is_checkpoint =
                path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e));
            let Some(name) = path.file_stem().and_then(|s| s.to_str()).filter(|_| is_checkpoint) else {
                continue;
            };
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let stamp = (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len());
            present.push(path.clone());
            let seen = self.files.get(&path);
            let is_stable = is_first || seen.is_some_and(|seen| seen.stamp == stamp);
            if seen.is_some_and(|seen| seen.stamp == stamp && seen.is_loaded) {
                continue;
            }
            if is_stable {
                self.load(name, &path, registry, threads);
            }
            self.files.insert(path, Seen { stamp, is_loaded: is_stable });
        }
        self.files.retain(|path, _| {
            let is_present = present.contains(path);
            if let (false, Some(name)) = (is_present, path.file_stem().and_then(|s| s.to_str())) {
                registry.remove(name);
                tracing::info!(name, "model removed");
            }
            is_present
        });
        Ok(())
    }

    fn load(&self, name: &str, path: &Path, registry: &Registry, threads: usize) {
        let weights = path.to_str().map(str::to_owned);
        let options = Options { weights, ..Options::default() };
        // The notes about a folder are printed at the start only.
        let opened = Access::default().open_with_report(options).map_err(anyhow::Error::from);
        match opened.and_then(|(checkpoint, _)| compile(name, &checkpoint, threads)) {
            Ok(model) => {
                registry.set(name, ModelState::Ready(model));
                tracing::info!(name, "model loaded");
            }
            Err(error) => {
                tracing::warn!(name, error = format!("{error:#}"), "model cannot be loaded");
                if registry.get(Some(name)).is_err() {
                    registry.set(name, ModelState::Failed("the file cannot be loaded".into()));
                }
            }
        }
    }
}

impl Args {
    fn config(&self) -> anyhow::Result<Config> {
        let api_keys = match &self.api_key_file {
            None => vec![],
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("`{}`", path.display()))?;
                let keys: Vec<String> =
                    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(Into::into).collect();
                if keys.is_empty() {
                    bail!("`{}`: no API keys; expected one per line", path.display());
                }
                keys
            }
        };
        let default = Config::default();
        Ok(Config {
            threads: self.threads.unwrap_or(default.threads),
            threads_per_image: self.threads_per_image,
            max_body: self.max_body.saturating_mul(1_000_000),
            max_in_flight: self.max_queue,
            queue_timeout: Duration::from_secs(self.queue_timeout),
            api_keys,
            cors_origins: self.cors_origin.clone(),
            ..default
        })
    }

    /// Returns the models of `--model` and `--weights` by the name that they are served under.
    fn sources(&self) -> anyhow::Result<BTreeMap<String, Selection>> {
        let mut sources = BTreeMap::new();
        let mut add = |name: String, selection: Selection| match sources.insert(name.clone(), selection) {
            None => Ok(()),
            Some(_) => bail!("two models have the name `{name}`; use --weights NAME=CHECKPOINT"),
        };
        for model in &self.model {
            add(model.clone(), Selection { model: Some(model.clone()), ..Selection::default() })?;
        }
        for weights in &self.weights {
            let (name, weights) = match weights.split_once('=') {
                Some((name, weights)) => (name.to_owned(), weights),
                None => (served_name(weights), weights.as_str()),
            };
            add(name, Selection { weights: Some(weights.to_owned()), ..Selection::default() })?;
        }
        Ok(sources)
    }
}

/// Returns the name of a checkpoint without folders, owner, revision and extension.
fn served_name(weights: &str) -> String {
    let last = weights.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(weights);
    let last = last.split('@').next().unwrap_or(last);
    let extension = Path::new(last).extension().and_then(|e| e.to_str()).filter(|e| EXTENSIONS.contains(e));
    extension.map_or(last, |extension| &last[..last.len() - extension.len() - 1]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_checkpoints() {
        for (weights, name) in [
            ("weights/digits.safetensors", "digits"),
            ("timm/resnet50.a1_in1k@main", "resnet50.a1_in1k"),
            ("folder/", "folder"),
            ("a.b.pth", "a.b"),
        ] {
            assert_eq!(served_name(weights), name);
        }
    }
}
