//! `info`: facts about a model.

use std::io::Write;

use resnet_model::text::thousands;
use resnet_model::{Arch, Preprocess};
use serde::Serialize;

use crate::exit::Outcome;
use crate::models::{self, Model};
use crate::terminal;
use resnet_weights::{Published, Torchvision};

/// Show everything known about a model
///
/// Cost, feature maps, and the published weights with their license, preprocessing and source.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An architecture (resnet50) or published weights (resnet50.a1_in1k)
    #[arg(value_name = "MODEL")]
    model: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Facts<'a> {
    name: &'a str,
    arch: &'a str,
    description: &'a Arch,
    parameters: u64,
    gmacs: f64,
    size: usize,
    /// Bytes of all activations of one image in f32.
    activation_bytes: u64,
    features: Vec<Feature>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Weights<'a>>,
    /// Names of all published weights of the architecture.
    published: Vec<&'a str>,
}

#[derive(Serialize)]
struct Feature {
    name: String,
    channels: usize,
    /// Input pixels per output pixel; 0 without spatial dimensions.
    stride: usize,
}

#[derive(Serialize)]
struct Weights<'a> {
    hub: &'a str,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    classes: usize,
    labels: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top5: Option<f64>,
    preprocess: Preprocess,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    torchvision: Option<&'a Torchvision>,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let model = models::find(&args.model)?;
    let facts = facts(&model)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &facts)?;
        writeln!(out)?;
    } else {
        text(out, &model, &facts)?;
    }
    Ok(Outcome::Success)
}

fn facts(model: &Model) -> anyhow::Result<Facts<'_>> {
    let graph = model.arch.graph()?;
    let features = graph.taps().iter().map(|tap| Feature {
        name: tap.name.clone(),
        channels: graph.node(tap.node).channels,
        stride: tap.stride,
    });
    let published = models::weights_of(model.arch_name)?;
    Ok(Facts {
        name: model.name(),
        arch: model.arch_name,
        description: &model.arch,
        parameters: model.params,
        gmacs: (model.gmacs() * 1e3).round() / 1e3,
        size: model.size,
        activation_bytes: graph.costs(model.size, model.size)?.iter().map(|c| c.bytes).sum(),
        features: features.collect(),
        weights: model.published.map(weights).transpose()?,
        published: published.iter().map(|p| p.name.as_str()).collect(),
    })
}

fn weights(published: &Published) -> anyhow::Result<Weights<'_>> {
    let labels = match (published.labels.as_deref(), published.classes) {
        (Some(labels), _) => labels,
        (None, 0) => "none: the output is the pooled features",
        (None, 1000) => "imagenet-1k",
        (None, _) => "none: the output is an embedding",
    };
    Ok(Weights {
        hub: &published.hub,
        source: format!("https://huggingface.co/{}", published.hub),
        license: published.license.as_deref(),
        classes: published.classes,
        labels,
        top1: published.top1,
        top5: published.top5,
        preprocess: published.preprocess(),
        train_size: published.train_size,
        torchvision: published.torchvision.as_ref(),
    })
}

fn text(out: &mut dyn Write, model: &Model, facts: &Facts) -> anyhow::Result<()> {
    let mut line = |what: &str, value: String| writeln!(out, "{what:<14} {value}");
    line("model", facts.name.to_owned())?;
    line("architecture", facts.arch.to_owned())?;
    line("parameters", thousands(facts.parameters))?;
    let side = facts.size;
    line("GMACs", format!("{} at {side}×{side} pixels", facts.gmacs))?;
    line("activations", format!("{:.1} MiB in f32", terminal::mib(facts.activation_bytes)))?;
    for (i, feature) in facts.features.iter().enumerate() {
        let stride = match feature.stride {
            0 => "no spatial dimensions".to_owned(),
            stride => format!("stride {stride}"),
        };
        let what = if i == 0 { "features" } else { "" };
        line(what, format!("{:<10} {:>5} channels, {stride}", feature.name, feature.channels))?;
    }
    if let Some(weights) = &facts.weights {
        line("weights", weights.hub.to_owned())?;
        line("source", weights.source.clone())?;
        line("license", weights.license.unwrap_or("unknown").to_owned())?;
        line("classes", format!("{} ({})", weights.classes, weights.labels))?;
        if let (Some(top1), Some(top5)) = (weights.top1, weights.top5) {
            line("accuracy", format!("{top1:.2} % top-1, {top5:.2} % top-5 (ImageNet-1k, {side} pixels)"))?;
        }
        let p = &weights.preprocess;
        let filter = format!("{:?}", p.filter).to_lowercase();
        let resize = model.published.map_or(0, Published::resize);
        line("preprocessing", format!("shorter side to {resize} ({filter}), center crop {side}×{side}"))?;
        line("", format!("mean {:?}, std {:?}", p.mean, p.std))?;
        if let Some(size) = weights.train_size {
            line("trained at", format!("{size}×{size} pixels"))?;
        }
        if let Some(t) = weights.torchvision {
            let figures = format!("{:.3} % top-1, {:.3} % top-5 measured by torchvision", t.top1, t.top5);
            line("torchvision", format!("{} ({})", t.weights, t.file))?;
            line("", figures)?;
        }
    }
    let others: Vec<&str> = facts.published.iter().copied().filter(|name| *name != facts.name).collect();
    for (i, name) in others.iter().enumerate() {
        line(if i == 0 { "other weights" } else { "" }, (*name).to_owned())?;
    }
    Ok(())
}
