//! The published weights that are known by name.

use std::sync::LazyLock;

use resnet_image::preprocess::{CLIP_MEAN, CLIP_STD, Filter};
use resnet_model::Preprocess;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Published weights: one table of `manifest.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// `architecture.tag`, timm's name.
    pub name: String,
    /// The architecture in the zoo.
    pub arch: String,
    /// The Hub repository.
    pub hub: String,
    /// `true` if the name of the architecture selects these weights.
    #[serde(default)]
    pub default: bool,
    /// The license of the weights, as an SPDX identifier.
    pub license: Option<String>,
    /// Trainable parameters.
    pub params: u64,
    /// 10⁹ multiply-adds of convolutions and fully connected layers at `size`.
    pub gmacs: f64,
    /// Height and width in pixels of the training crop, if they differ from `size`.
    pub train_size: Option<usize>,
    /// `crop` in training, if it differs.
    pub train_crop: Option<f64>,
    /// Height and width in pixels of the evaluation crop.
    pub size: usize,
    /// timm's `crop_pct`: the side of the crop divided by that of the resized image.
    pub crop: f64,
    /// The resampling filter.
    pub filter: Interpolation,
    /// Mean and std of the input.
    #[serde(default)]
    pub normalize: Normalize,
    /// Top-1 accuracy in percent on ImageNet-1k.
    pub top1: Option<f64>,
    /// Top-5 accuracy in percent on ImageNet-1k.
    pub top5: Option<f64>,
    /// Number of classes; features of the embedding for CLIP; 0 without a head.
    #[serde(default = "imagenet_classes")]
    pub classes: usize,
    /// The data set of the classes, if it is not ImageNet-1k.
    pub labels: Option<String>,
    /// torchvision's publication of the same tensors.
    pub torchvision: Option<Torchvision>,
}

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Bilinear.
    Bilinear,
    /// Bicubic.
    Bicubic,
}

/// Mean and std of the input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Those of ImageNet.
    #[default]
    Imagenet,
    /// 0.5 and 0.5.
    Half,
    /// Those of CLIP.
    Clip,
}

/// torchvision's name of weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Torchvision {
    /// The member of torchvision's enumeration, e.g. `IMAGENET1K_V2`.
    pub weights: String,
    /// The name of the file on its server.
    pub file: String,
    /// Top-1 accuracy in percent, measured by torchvision.
    pub top1: f64,
    /// Top-5 accuracy in percent, measured by torchvision.
    pub top5: f64,
}

fn imagenet_classes() -> usize {
    1000
}

impl Published {
    /// Returns the shorter side of the resized image in pixels.
    pub fn resize(&self) -> usize {
        (self.size as f64 / self.crop).floor() as usize
    }

    /// Returns the evaluation transform.
    pub fn preprocess(&self) -> Preprocess {
        let filter = match self.filter {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
        };
        let imagenet = Preprocess { filter, ..Preprocess::torchvision(self.resize(), self.size) };
        match self.normalize {
            Normalize::Imagenet => imagenet,
            Normalize::Half => Preprocess { mean: vec![0.5; 3], std: vec![0.5; 3], ..imagenet },
            Normalize::Clip => Preprocess { mean: CLIP_MEAN.to_vec(), std: CLIP_STD.to_vec(), ..imagenet },
        }
    }
}

/// Returns all published weights of the manifest.
pub fn published() -> Result<&'static [Published]> {
    #[derive(Deserialize)]
    struct Manifest {
        weights: Vec<Published>,
    }
    static PARSED: LazyLock<Result<Manifest, toml::de::Error>> =
        LazyLock::new(|| toml::from_str(include_str!("../manifest.toml")));
    match &*PARSED {
        Ok(manifest) => Ok(&manifest.weights),
        Err(error) => Err(Error::Manifest(error.clone())),
    }
}

/// Returns the published weights of a name: `resnet50.a1_in1k`, `timm/resnet50.a1_in1k`, `resnet50` (its default
/// weights) or the name of a file of torchvision without its extension.
pub fn find(name: &str) -> Result<Option<&'static Published>> {
    let all = published()?;
    let exact = all.iter().find(|p| p.name == name || p.hub == name);
    let torchvision = |p: &&Published| {
        p.torchvision.as_ref().is_some_and(|t| t.file.rsplit_once('.').is_some_and(|(stem, _)| stem == name))
    };
    let found = exact.or_else(|| all.iter().find(torchvision));
    Ok(found.or_else(|| all.iter().find(|p| p.default && p.arch == name)))
}

#[cfg(test)]
mod tests {
    use resnet_model::zoo;

    use super::*;

    #[test]
    fn every_published_architecture_is_in_the_zoo_and_has_one_default() {
        let published = published().unwrap();
        assert!(published.len() > 150, "{} weights", published.len());
        for p in published {
            zoo::arch(&p.arch).unwrap();
            assert_eq!(p.name.split('.').next(), Some(p.arch.as_str()));
            resnet_hub::RepoId::parse(&p.hub).unwrap();
            assert!(p.preprocess().validate().is_ok());
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
    fn published_costs_are_those_of_the_graphs() {
        for p in published().unwrap() {
            let graph = zoo::arch(&p.arch).unwrap().with_classes(p.classes).graph().unwrap();
            assert_eq!(graph.param_count(), p.params, "{}", p.name);
            let gmacs = graph.macs(p.size, p.size).unwrap() as f64 / 1e9;
            assert!((gmacs - p.gmacs).abs() < 6e-4, "{}: {gmacs}", p.name);
        }
    }

    #[test]
    fn names_of_published_weights() {
        let name = |text: &str| find(text).unwrap().map(|p| p.name.as_str());
        assert_eq!(name("timm/resnet50.a1_in1k"), Some("resnet50.a1_in1k"));
        assert_eq!(name("resnet18"), Some("resnet18.tv_in1k"));
        assert_eq!(name("resnet18-f37072fd"), Some("resnet18.tv_in1k"));
        assert_eq!(name("model"), None);
    }
}
