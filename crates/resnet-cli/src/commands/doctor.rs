//! `doctor`: the environment of the program, for bug reports.

use std::io::Write;

use candle_core::utils::{cuda_is_available, metal_is_available};
use resnet_model::engine::{EngineOptions, Isa};
use serde::Serialize;

use crate::device::Choice;
use crate::exit::Outcome;
use crate::page::Page;
use resnet_hub::Config;

/// Show versions, CPU features, GPUs and the Hub cache
///
/// The output is meant for bug reports; it does not contain tokens. Nothing is downloaded.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Environment {
    version: &'static str,
    target: String,
    features: Vec<&'static str>,
    /// Supported instruction sets of the CPU, fastest first.
    isa: Vec<&'static str>,
    threads: usize,
    /// The device that `--device auto` selects.
    device: String,
    /// An error message for each GPU backend of this build that cannot be used.
    gpu_errors: Vec<String>,
    hub: Hub,
}

#[derive(Serialize)]
struct Hub {
    endpoint: Option<String>,
    cache: Option<String>,
    offline: bool,
    token: bool,
    error: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let environment = environment()?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &environment)?;
        writeln!(out)?;
    } else {
        print(&environment, &mut Page::new(out))?;
    }
    Ok(Outcome::Success)
}

fn environment() -> anyhow::Result<Environment> {
    let (cuda, metal) = (cuda_is_available(), metal_is_available());
    let backends = [(cuda, "cuda", Choice::Cuda(0)), (metal, "metal", Choice::Metal)];
    let present = backends.iter().filter(|(present, _, _)| *present);
    let error = |choice: Choice| choice.open().err().map(|e| crate::output::describe(&e));
    let threads = EngineOptions::default().threads;
    let hub = match Config::from_env(|name| std::env::var(name).ok()) {
        Ok(config) => Hub {
            endpoint: Some(config.endpoint),
            cache: config.cache_dir.map(|path| path.display().to_string()),
            offline: config.offline,
            token: config.token.is_some(),
            error: None,
        },
        Err(e) => {
            Hub { endpoint: None, cache: None, offline: false, token: false, error: Some(e.to_string()) }
        }
    };
    Ok(Environment {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        features: present.clone().map(|(_, name, _)| *name).collect(),
        isa: Isa::available().iter().map(Isa::name).collect(),
        threads,
        device: crate::device::describe(&Choice::Auto.open()?, threads),
        gpu_errors: present.filter_map(|(_, _, choice)| error(*choice)).collect(),
        hub,
    })
}

fn print(found: &Environment, page: &mut Page) -> std::io::Result<()> {
    let or_none = |list: &[&str]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    page.line(&format!("resnet-cli {} on {}", found.version, found.target))?;
    page.field("GPU support", &or_none(&found.features))?;
    page.field("CPU", &format!("{} (default: {})", found.isa.join(", "), found.isa[0]))?;
    page.field("threads", &found.threads.to_string())?;
    page.field("device", &found.device)?;
    for error in &found.gpu_errors {
        page.field("", error)?;
    }
    match &found.hub {
        Hub { error: Some(error), .. } => page.field("Hub", error),
        hub => {
            let offline = if hub.offline { ", offline" } else { "" };
            let token = if hub.token { "with" } else { "without" };
            let endpoint = hub.endpoint.as_deref().unwrap_or_default();
            page.field("Hub", &format!("{endpoint}, {token} a token{offline}"))?;
            page.field("cache", hub.cache.as_deref().unwrap_or("none: set HF_HOME"))
        }
    }
}
