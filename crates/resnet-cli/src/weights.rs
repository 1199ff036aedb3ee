//! From what a user names to a checkpoint: the only place where a name becomes a path.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use resnet_model::preprocess::{CLIP_MEAN, CLIP_STD, Filter};
use resnet_model::{Arch, Checkpoint, Labels, Preprocess, param_specs, zoo};
use serde::{Deserialize, Serialize};

use crate::terminal;
use resnet_hub::{Client, Config, Error as HubError, Event, Missing, RepoId};

static MANIFEST: &str = include_str!("../../../weights/manifest.toml");

/// Which weights: flags of every command that takes a model.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "selection", required = true, multiple = true)]
pub struct Selection {
    /// Depth of a ResNet (18, 34, 50, 101, 152) with torchvision's default weights
    #[arg(long, value_name = "N", conflicts_with = "model")]
    pub depth: Option<usize>,
    /// A model (resnet50) or published weights of one (resnet50.a1_in1k)
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// A checkpoint file that resnet-convert reads, or a Hub id (owner/name, owner/name@revision)
    #[arg(long, value_name = "FILE|HUB-ID")]
    pub weights: Option<String>,
}

/// One entry of the manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// `architecture.tag`.
    pub name: String,
    /// The zoo's name of the architecture.
    pub arch: String,
    /// The Hub repository.
    pub hub: String,
    /// Whether the architecture's name alone means these weights.
    #[serde(default)]
    pub default: bool,
    /// The licence of the weights, as an SPDX identifier.
    pub license: Option<String>,
    /// Trainable parameters.
    pub params: u64,
    /// 10⁹ multiply-adds of convolutions and fully connected layers at `size`.
    pub gmacs: f64,
    /// Height and width in pixels of the training crop, where they differ from `size`.
    pub train_size: Option<usize>,
    /// The training crop's share of the image, where it differs from `crop`.
    pub train_crop: Option<f64>,
    /// Height and width in pixels of the evaluation crop.
    pub size: usize,
    /// The crop's share of the resized image.
    pub crop: f64,
    /// The resampling filter.
    pub filter: String,
    /// What mean and deviation normalise the input.
    #[serde(default)]
    pub normalize: Normalize,
    /// Top-1 accuracy in per cent, for the classes of ImageNet-1k.
    pub top1: Option<f64>,
    /// Top-5 accuracy in per cent, for the classes of ImageNet-1k.
    pub top5: Option<f64>,
    /// Number of classes; features of the embedding for CLIP; 0 without a last layer.
    #[serde(default = "imagenet_classes")]
    pub classes: usize,
    /// What the classes are, where they are not those of ImageNet-1k.
    pub labels: Option<String>,
    /// What torchvision publishes for the same tensors.
    pub torchvision: Option<Torchvision>,
}

/// A mean and a deviation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// ImageNet's.
    #[default]
    Imagenet,
    /// 0.5 and 0.5.
    Half,
    /// CLIP's.
    Clip,
}

/// torchvision's name of weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Torchvision {
    /// The member of torchvision's enumeration, e.g. `IMAGENET1K_V2`.
    pub weights: String,
    /// The file on its server.
    pub file: String,
    /// Top-1 accuracy in per cent by its own measurement.
    pub top1: f64,
    /// Top-5 accuracy in per cent by its own measurement.
    pub top5: f64,
}

fn imagenet_classes() -> usize {
    1000
}

impl Published {
    /// The shorter side of the resized image in pixels.
    pub fn resize(&self) -> usize {
        (self.size as f64 / self.crop).floor() as usize
    }

    /// The evaluation transform.
    pub fn preprocess(&self) -> anyhow::Result<Preprocess> {
        let filter = match self.filter.as_str() {
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            other => bail!("weights/manifest.toml: {}: filter `{other}`", self.name),
        };
        let imagenet = Preprocess { filter, ..Preprocess::torchvision(self.resize(), self.size) };
        Ok(match self.normalize {
            Normalize::Imagenet => imagenet,
            Normalize::Half => Preprocess { mean: vec![0.5; 3], std: vec![0.5; 3], ..imagenet },
            Normalize::Clip => Preprocess { mean: CLIP_MEAN.to_vec(), std: CLIP_STD.to_vec(), ..imagenet },
        })
    }
}

/// All published weights that the manifest knows.
pub fn published() -> anyhow::Result<&'static [Published]> {
    #[derive(Deserialize)]
    struct Manifest {
        weights: Vec<Published>,
    }
    static PARSED: LazyLock<Result<Manifest, toml::de::Error>> = LazyLock::new(|| toml::from_str(MANIFEST));
    match &*PARSED {
        Ok(manifest) => Ok(&manifest.weights),
        Err(error) => Err(error.clone()).context("weights/manifest.toml"),
    }
}

/// Where weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    File(PathBuf),
    Hub(RepoId),
}

impl Location {
    fn hub(id: &str) -> anyhow::Result<Location> {
        Ok(Location::Hub(RepoId::parse(id)?))
    }
}

impl Selection {
    /// Opens the checkpoint that the flags name, downloading it if need be.
    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        let named = self.named()?;
        let location = match (&self.weights, &named) {
            (Some(weights), _) => locate(weights)?,
            (None, Some(named)) => named.location()?,
            (None, None) => bail!("name the weights: --depth, --model or --weights"),
        };
        let checkpoint = match &location {
            Location::File(path) => {
                // Decides between networks of equal tensors; whether it is that network is checked below.
                let name = named.as_ref().map(|named| named.arch_name.clone());
                let options = resnet_convert::Options { name, ..resnet_convert::Options::default() };
                resnet_convert::open(path, &options)?.0
            }
            Location::Hub(repo) => download(repo)?,
        };
        // `--depth` or `--model` beside `--weights` says what the weights are expected to be.
        if let Some(named) = named {
            let (found, expected) = (&checkpoint.meta().arch, &named.arch);
            let comparable = |arch: &Arch| arch.clone().with_classes(1).with_in_channels(3);
            if comparable(found) != comparable(expected) {
                let weights = self.weights.as_deref().unwrap_or(&named.name);
                let difference = first_difference(&comparable(found), &comparable(expected))?;
                bail!("`{weights}` holds {found}, but {} asks for {expected}{difference}", named.flag);
            }
        }
        Ok(checkpoint)
    }

    /// The zoo's name of the architecture that `--depth` or `--model` names.
    pub fn arch_name(&self) -> anyhow::Result<Option<String>> {
        Ok(self.named()?.map(|named| named.arch_name))
    }

    /// The model that `--depth` or `--model` names.
    fn named(&self) -> anyhow::Result<Option<Named>> {
        let (name, flag) = match (self.depth, &self.model) {
            (Some(depth), _) => {
                if ![18, 34, 50, 101, 152].contains(&depth) {
                    bail!(
                        "--depth {depth}: expected 18, 34, 50, 101 or 152; other networks are named with --model"
                    );
                }
                (format!("resnet{depth}"), format!("--depth {depth}"))
            }
            (None, Some(model)) => (model.clone(), format!("--model {model}")),
            (None, None) => return Ok(None),
        };
        let found = published()?.iter().find(|p| p.name == name || (p.default && p.arch == name));
        let arch_name =
            found.map_or_else(|| name.split('.').next().unwrap_or(&name).to_owned(), |p| p.arch.clone());
        Ok(Some(Named { arch: zoo::arch(&arch_name)?, arch_name, flag, name, published: found }))
    }
}

/// In words, the first of the tensors that two architectures do not share.
fn first_difference(found: &Arch, expected: &Arch) -> anyhow::Result<String> {
    let (found, expected) = (param_specs::list(&found.graph()?), param_specs::list(&expected.graph()?));
    let one = found.iter().zip(&expected).find(|(a, b)| a != b);
    Ok(match one {
        Some((a, b)) if a.name == b.name => {
            format!("; `{}` has shape {:?}, expected {:?}", a.name, a.shape, b.shape)
        }
        Some((a, b)) => format!("; its first other tensor is `{}`, expected `{}`", a.name, b.name),
        None => match (found.get(expected.len()), expected.get(found.len())) {
            (Some(extra), _) => format!("; `{}` is too much", extra.name),
            (None, Some(lacking)) => format!("; `{}` is missing", lacking.name),
            (None, None) => String::new(),
        },
    })
}

struct Named {
    arch: Arch,
    arch_name: String,
    flag: String,
    name: String,
    published: Option<&'static Published>,
}

impl Named {
    fn location(&self) -> anyhow::Result<Location> {
        match self.published {
            Some(published) => Location::hub(&published.hub),
            None => bail!(
                "{}: no published weights of `{}` are known; name some with --weights",
                self.flag,
                self.name
            ),
        }
    }
}

/// A path that exists is a file; else `owner/name` is a Hub repository and a manifest name stands for its own.
fn locate(weights: &str) -> anyhow::Result<Location> {
    let path = Path::new(weights);
    if path.exists() {
        return Ok(Location::File(path.to_owned()));
    }
    if let Some(published) = published()?.iter().find(|p| p.name == weights) {
        return Location::hub(&published.hub);
    }
    let looks_like_a_file = [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl", ".onnx", ".npz"]
        .iter()
        .any(|extension| weights.to_ascii_lowercase().ends_with(extension));
    if weights.split('/').count() == 2 && !weights.starts_with(['.', '/', '~']) && !looks_like_a_file {
        return Location::hub(weights);
    }
    bail!("`{weights}`: no such file")
}

/// Fetches a repository's weights and description.
fn download(repo: &RepoId) -> anyhow::Result<Checkpoint> {
    let client = Client::new(Config::from_env(|name| std::env::var(name).ok())?)?;
    let mut bar = Bar::default();
    let mut fetch = |file: &str| client.file(repo, file, &mut |event| bar.on(event));
    let mut optional = |file: &str| match fetch(file) {
        Ok(path) => Ok(Some(path)),
        Err(HubError::NotFound { missing: Missing::File | Missing::Unknown, .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let config = optional("config.json")?.map(|path| read_json(&path)).transpose()?;
    let transformers = config.as_ref().is_some_and(|c| c.get("model_type").is_some());
    let preprocessor = match transformers {
        true => optional("preprocessor_config.json")?.map(|path| read_json(&path)).transpose()?,
        false => None,
    };
    let path = match optional("model.safetensors")? {
        Some(path) => path,
        None => fetch("pytorch_model.bin")?,
    };
    let known = published()?.iter().find(|p| p.hub == repo.name());
    let preprocess = match (&preprocessor, &config) {
        (Some(preprocessor), _) => {
            let preprocess = Preprocess::from_hf_preprocessor(preprocessor);
            Some(preprocess.with_context(|| format!("{}: preprocessor_config.json", repo.name()))?)
        }
        (None, Some(config)) if !transformers => {
            let preprocess = Preprocess::from_hub_config(config);
            Some(preprocess.with_context(|| format!("{}: config.json", repo.name()))?)
        }
        _ => known.map(Published::preprocess).transpose()?,
    };
    let labels = config.as_ref().and_then(Labels::from_hub_config);
    let name = config.as_ref().and_then(|c| c.get("architecture")?.as_str()).map(str::to_owned);
    let name = name.or_else(|| known.map(|k| k.arch.clone()));
    let options = resnet_convert::Options { labels, name, preprocess, ..resnet_convert::Options::default() };
    Ok(resnet_convert::open(&path, &options).with_context(|| repo.name().to_owned())?.0)
}

fn read_json(path: &Path) -> anyhow::Result<serde_json::Value> {
    const MAX_LEN: u64 = 32 << 20;
    let len = std::fs::metadata(path)?.len();
    if len > MAX_LEN {
        bail!("`{}`: {len} bytes, more than {MAX_LEN}", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Bytes and speed of a download, on a terminal only.
#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Start { file, total, resumed } => {
                let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = terminal::progress(total, style);
                self.0 = Some(bar.with_position(resumed).with_message(file.to_owned()));
            }
            Event::Progress { bytes } => self.0.iter().for_each(|bar| bar.set_position(bytes)),
            Event::Retry { reason, .. } => {
                self.0.iter().for_each(|bar| bar.println(format!("retrying: {reason}")))
            }
            Event::Done => self.0.take().iter().for_each(ProgressBar::finish_and_clear),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_architecture_is_in_the_zoo_and_has_one_default() {
        let published = published().unwrap();
        for p in published {
            zoo::arch(&p.arch).unwrap();
            assert_eq!(p.name.split('.').next(), Some(p.arch.as_str()));
            RepoId::parse(&p.hub).unwrap();
            assert!(p.preprocess().unwrap().validate().is_ok());
            assert_eq!(p.top1.is_some(), p.classes == 1000 && p.labels.is_none(), "{}", p.name);
            if let (Some(top1), Some(top5)) = (p.top1, p.top5) {
                assert!(top1 < top5 && top5 < 100.0, "{}", p.name);
            }
            assert!(p.crop <= 1.0 && p.size >= 160, "{}", p.name);
            let defaults = published.iter().filter(|q| q.arch == p.arch && q.default).count();
            assert_eq!(defaults, 1, "{}", p.arch);
        }
    }

    #[test]
    fn names_become_locations() {
        let hub = |id| Location::hub(id).unwrap();
        assert_eq!(locate("timm/resnet50.a1_in1k").unwrap(), hub("timm/resnet50.a1_in1k"));
        assert_eq!(locate("timm/resnet50.a1_in1k@main").unwrap(), hub("timm/resnet50.a1_in1k@main"));
        assert_eq!(locate("resnet18.tv_in1k").unwrap(), hub("timm/resnet18.tv_in1k"));
        for missing in ["nothing.pth", "models/nothing.pth", "./a/b", "/a/b", "x"] {
            assert!(locate(missing).unwrap_err().to_string().contains("no such file"), "{missing}");
        }
    }
}
