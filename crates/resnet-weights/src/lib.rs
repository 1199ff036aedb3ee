//! Opens ResNet weights by name, Hub id, file or folder, and reports every assumption about them.
//!
//! ```no_run
//! use resnet_weights::{Options, hub::Config};
//!
//! let options = Options { weights: Some("timm/resnet18.tv_in1k".into()), ..Options::default() };
//! let config = Config::from_env(|name| std::env::var(name).ok())?;
//! let (checkpoint, report) = resnet_weights::open(&options, &config, &mut |_event| {})?;
//! assert_eq!(report.assumptions(), []);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Preprocessing and labels come from, in this order: an override, the metadata of the file, `preprocessor_config.json` and
//! `config.json` next to it, the manifest entry of the published weights with this name, a default.

mod error;
mod location;
pub mod manifest;
mod overrides;
mod report;

use std::path::PathBuf;

pub use error::{Error, Result};
use location::{Files, Location};
pub use manifest::{Published, Torchvision, published};
pub use report::{Assumption, Provenance, Report};
pub use resnet_hub as hub;

use resnet_convert::IdentifiedBy;
use resnet_image::preprocess::{Filter, Resize};
use resnet_model::{Arch, Checkpoint, Labels, Preprocess, zoo};

/// The weights to open, and overrides. All paths and names come from the user.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An architecture (`resnet50`) or published weights of one (`resnet50.a1_in1k`). With `weights`, the architecture that
    /// they must have.
    pub model: Option<String>,
    /// A file, a folder, a Hub id (`owner/name@revision`), a URL of the Hub, or the name of published weights.
    pub weights: Option<String>,
    /// The preprocessing: a file, or the name of published weights.
    pub preprocess: Option<String>,
    /// The names of the classes: a file.
    pub labels: Option<PathBuf>,
    /// The architecture: a name, `name,option=value,…` or JSON.
    pub arch: Option<String>,
}

/// Opens weights, downloading them if necessary. `progress` receives the events of a download.
///
/// # Errors
///
/// [`Error`], also if weights and model have different architectures.
pub fn open(
    options: &Options,
    hub: &hub::Config,
    progress: &mut dyn FnMut(hub::Event<'_>),
) -> Result<(Checkpoint, Report)> {
    let model = options.model.as_deref().map(Model::find).transpose()?;
    let location = match (&options.weights, &model) {
        (Some(weights), _) => Location::find(weights)?,
        (None, Some(Model { published: Some(published), .. })) => {
            Location::Hub(hub::RepoId::parse(&published.hub)?)
        }
        (None, Some(model)) => return Err(Error::Unpublished { model: model.name.clone() }),
        (None, None) => return Err(Error::Unspecified),
    };
    let mut convert = resnet_convert::ConvertOptions {
        arch: options.arch.as_deref().map(overrides::arch).transpose()?,
        preprocess: options.preprocess.as_deref().map(overrides::preprocess).transpose()?,
        labels: options.labels.as_deref().map(overrides::labels).transpose()?,
        ..resnet_convert::ConvertOptions::default()
    };
    let files = Files::find(&location, hub, progress)?;
    let config = files.config.as_ref();
    let known = match location.published()? {
        // The name of an architecture alone does not say which weights a file contains.
        None => {
            model.as_ref().and_then(|m| m.published.filter(|p| options.weights.is_none() || m.name != p.arch))
        }
        found => found,
    };
    convert.name = config
        .and_then(|(_, c)| c.get("architecture")?.as_str().map(str::to_owned))
        .or_else(|| model.as_ref().map(|m| m.arch_name.clone()))
        .or_else(|| known.map(|k| k.arch.clone()));

    let mut opened = resnet_convert::open(&files.weights, &convert)?;
    let described = opened.1.identified.by == IdentifiedBy::Metadata;
    let origin = |overridden: bool| match (overridden, described) {
        (true, _) => Provenance::Override,
        (false, true) => Provenance::Metadata,
        (false, false) => Provenance::Default,
    };
    let mut preprocess_from = origin(convert.preprocess.is_some());
    let mut labels_from = origin(convert.labels.is_some());
    let mut changed = false;
    if !described {
        if preprocess_from == Provenance::Default
            && let Some((preprocess, from)) = configured_preprocess(&files, known)?
        {
            (convert.preprocess, preprocess_from, changed) = (Some(preprocess), from, true);
        }
        if labels_from == Provenance::Default {
            let named = config.and_then(|(_, c)| Labels::from_hub_config(c));
            let classes = opened.0.meta().arch.classes();
            if let Some(labels) = named {
                labels_from = Provenance::Config("config.json".into());
                (convert.labels, changed) = (Some(labels), true);
            } else if let Some(published) = known.filter(|p| classes == Some(p.classes) && p.labels.is_none())
            {
                labels_from = Provenance::Manifest(published.name.clone());
            }
        }
        if convert.arch.is_none()
            && let Some((path, config)) = config
            && let Some(arch) = overrides::adapt(&opened.0.meta().arch, config, path)?
        {
            (convert.arch, changed) = (Some(arch), true);
        }
    }
    if changed {
        opened = resnet_convert::open(&files.weights, &convert)?;
    }
    let (checkpoint, file) = opened;
    if let Some(model) = model.filter(|_| options.arch.is_none()) {
        model.check(&checkpoint.meta().arch, options.weights.as_deref())?;
    }
    let meta = checkpoint.meta();
    let (preprocess, labels) = (describe_preprocess(&meta.preprocess), describe_labels(&meta.labels));
    let report = Report { file, preprocess, preprocess_from, labels, labels_from };
    Ok((checkpoint, report))
}

/// Returns the path of the checkpoint that `weights` selects, or of the index of its shards, downloading it if necessary.
///
/// # Errors
///
/// [`Error`], except those about the contents of the checkpoint.
pub fn locate(weights: &str, hub: &hub::Config, progress: &mut dyn FnMut(hub::Event<'_>)) -> Result<PathBuf> {
    Ok(Files::find(&Location::find(weights)?, hub, progress)?.weights)
}

/// Returns the preprocessing of configuration files, else of published weights.
fn configured_preprocess(
    files: &Files,
    known: Option<&Published>,
) -> Result<Option<(Preprocess, Provenance)>> {
    let (read, path, name) = match (&files.preprocessor, &files.config) {
        (Some((path, json)), _) => (Preprocess::from_hf_preprocessor(json), path, "preprocessor_config.json"),
        (None, Some((path, json))) if json.get("model_type").is_none() => {
            (Preprocess::from_hub_config(json), path, "config.json")
        }
        _ => return Ok(known.map(|p| (p.preprocess(), Provenance::Manifest(p.name.clone())))),
    };
    let preprocess = read.map_err(|e| Error::Preprocess { path: path.clone(), source: Box::new(e) })?;
    Ok(Some((preprocess, Provenance::Config(name.into()))))
}

fn describe_preprocess(preprocess: &Preprocess) -> String {
    let [height, width] = preprocess.crop;
    let resize = match preprocess.resize {
        Resize::ShorterSide(side) => format!("shorter side to {side}"),
        Resize::Exact([h, w]) => format!("to {h}×{w}"),
        Resize::Cover([h, w]) => format!("to cover {h}×{w}"),
        Resize::Contain([h, w]) => format!("to fit {h}×{w}"),
    };
    let filter = match preprocess.filter {
        Filter::Nearest => "nearest",
        Filter::Bilinear => "bilinear",
        Filter::Bicubic => "bicubic",
        Filter::Lanczos => "lanczos",
    };
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
    let (mean, std) = (list(&preprocess.mean), list(&preprocess.std));
    format!("{filter} resize {resize}, center crop {height}×{width}, mean {mean}, std {std}")
}

fn describe_labels(labels: &Labels) -> String {
    match labels {
        Labels::None => report::NO_LABELS.into(),
        Labels::ImageNet1k => "ImageNet-1k".into(),
        Labels::Names(names) => format!("{} names", names.len()),
    }
}

/// A model that the user named.
struct Model {
    name: String,
    arch_name: String,
    arch: Arch,
    published: Option<&'static Published>,
}

impl Model {
    fn find(name: &str) -> Result<Model> {
        let published = manifest::find(name)?;
        let arch_name =
            published.map_or_else(|| name.split('.').next().unwrap_or(name), |p| &p.arch).to_owned();
        Ok(Model { name: name.to_owned(), arch: zoo::arch(&arch_name)?, arch_name, published })
    }

    /// Checks that weights have the architecture of the model, apart from classes and input channels.
    fn check(&self, found: &Arch, weights: Option<&str>) -> Result<()> {
        let comparable = |arch: &Arch| arch.clone().with_classes(1).with_in_channels(3);
        let (found, expected) = (comparable(found), comparable(&self.arch));
        if found == expected {
            return Ok(());
        }
        Err(Error::Mismatch {
            weights: weights.unwrap_or(&self.name).to_owned(),
            difference: first_difference(&found, &expected)?,
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }
}

/// Returns the name of the architecture of a model: `resnet50` for `resnet50.a1_in1k`.
///
/// # Errors
///
/// [`Error::Model`] for an unknown architecture.
pub fn arch_name(model: &str) -> Result<String> {
    Ok(Model::find(model)?.arch_name)
}

/// Describes the first tensor that differs between two architectures.
fn first_difference(found: &Arch, expected: &Arch) -> Result<String> {
    let (found, expected) = (found.graph()?.param_specs(), expected.graph()?.param_specs());
    let first = found.iter().zip(&expected).find(|(a, b)| a != b);
    Ok(match first {
        Some((a, b)) if a.name == b.name => {
            let shape = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            format!("; `{}` has shape [{}], expected [{}]", a.name, shape(&a.shape), shape(&b.shape))
        }
        Some((a, b)) => format!("; found tensor `{}`, expected `{}`", a.name, b.name),
        None => match (found.get(expected.len()), expected.get(found.len())) {
            (Some(extra), _) => format!("; unexpected tensor `{}`", extra.name),
            (None, Some(missing)) => format!("; missing tensor `{}`", missing.name),
            (None, None) => String::new(),
        },
    })
}

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
