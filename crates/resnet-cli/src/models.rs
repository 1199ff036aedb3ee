//! Models by name: named architectures and their published weights.

use anyhow::{Context, bail};
use resnet_model::text::suggestions;
use resnet_model::{Arch, zoo};

use crate::exit::UsageError;
use resnet_weights::{Published, published};

/// An architecture, with published weights if there are any.
#[derive(Debug, Clone)]
pub struct Model {
    /// Name of the architecture.
    pub arch_name: &'static str,
    /// The architecture, with the number of classes of the weights.
    pub arch: Arch,
    /// Published weights.
    pub published: Option<&'static Published>,
    /// Number of trainable parameters.
    pub params: u64,
    /// Multiply-adds (MACs) of one image of `size`.
    pub macs: u64,
    /// Default input height and width in pixels.
    pub size: usize,
}

impl Model {
    fn new(
        arch_name: &'static str,
        arch: Arch,
        published: Option<&'static Published>,
    ) -> anyhow::Result<Model> {
        let arch = match published {
            Some(weights) => arch.with_classes(weights.classes),
            None => arch,
        };
        let graph = arch.graph()?;
        // Networks for small images (CIFAR) have a smaller total stride.
        let stride = graph.taps().iter().map(|tap| tap.stride).max().unwrap_or(0);
        let size = published.map_or(if stride <= 8 { 32 } else { 224 }, |weights| weights.size);
        let macs = graph.macs(size, size)?;
        Ok(Model { arch_name, arch, published, params: graph.param_count(), macs, size })
    }

    /// Returns the name of the weights, else that of the architecture.
    pub fn name(&self) -> &'static str {
        self.published.map_or(self.arch_name, |weights| &weights.name)
    }

    /// Returns the GMACs of one image.
    pub fn gmacs(&self) -> f64 {
        self.macs as f64 / 1e9
    }

    /// Returns the top-1 accuracy on ImageNet-1k in percent.
    pub fn top1(&self) -> Option<f64> {
        self.published?.top1
    }
}

/// Returns all models in the order of the zoo: one per published weights, and one per architecture without any.
pub fn all() -> anyhow::Result<Vec<Model>> {
    let mut models = Vec::new();
    for (name, arch) in zoo::all() {
        let of_arch = weights_of(name)?;
        if of_arch.is_empty() {
            models.push(Model::new(name, arch.clone(), None)?);
        }
        for weights in of_arch {
            models.push(Model::new(name, arch.clone(), Some(weights))?);
        }
    }
    Ok(models)
}

/// Returns the models whose name or architecture matches `pattern`, in which `*` matches any characters.
pub fn matching(pattern: &str) -> anyhow::Result<Vec<Model>> {
    let mut models = all()?;
    let names: Vec<&'static str> = models.iter().map(Model::name).collect();
    let mut known: Vec<&'static str> = models.iter().map(|m| m.arch_name).chain(names).collect();
    known.sort_unstable();
    known.dedup();
    models.retain(|m| glob(pattern, m.name()) || glob(pattern, m.arch_name));
    if models.is_empty() {
        // Patterns are compared by the letters before the first digit: `resnt50*` suggests `resnet*`.
        let stem = |name: &'static str| name.split(|c: char| c.is_ascii_digit()).next().unwrap_or(name);
        let is_pattern = pattern.contains('*');
        let (bare, star) = match pattern.split(|c: char| c == '*' || c.is_ascii_digit()).next() {
            Some(bare) if is_pattern => (bare, "*"),
            _ => (pattern, ""),
        };
        if is_pattern {
            known = known.into_iter().map(stem).collect();
            known.dedup();
        }
        let near = zoo::nearest(bare, known).into_iter().map(|name| format!("{name}{star}"));
        let near = suggestions(&near.collect::<Vec<_>>());
        bail!(UsageError(format!("no model matches `{}`{near}", resnet_model::escape(pattern))));
    }
    Ok(models)
}

/// Returns the model with this name: `resnet50` (with its default weights), `resnet50.a1_in1k` or `timm/resnet50.a1_in1k`.
pub fn find(name: &str) -> anyhow::Result<Model> {
    let published = published()?;
    let weights = published.iter().find(|p| p.name == name || p.hub == name);
    let weights = weights.or_else(|| published.iter().find(|p| p.default && p.arch == name));
    let arch_name = match (weights, name.split_once('.')) {
        (Some(weights), _) => &weights.arch,
        (None, Some((arch, _))) if zoo::arch(arch).is_ok() => {
            let known = weights_of(arch)?.into_iter().map(|p| p.name.as_str());
            let name = resnet_model::escape(name);
            // Tags differ too much to be near: all of the architecture's weights are suggested.
            let near = match zoo::nearest(&name, known.clone()) {
                near if near.is_empty() => known.collect(),
                near => near,
            };
            bail!(UsageError(format!("unknown weights `{name}`{}", suggestions(&near))));
        }
        (None, _) => name,
    };
    if weights.is_none() && name.contains('/') {
        bail!(UsageError(format!(
            "unknown model `{}`: it looks like a Hub id; use --weights where a command has it",
            resnet_model::escape(name)
        )));
    }
    // The error of an unknown architecture suggests similar names.
    let arch = zoo::arch(arch_name)?;
    let name = zoo::name_of(&arch).with_context(|| arch_name.to_owned())?;
    Model::new(name, arch, weights)
}

/// Returns all published weights of an architecture.
pub fn weights_of(arch_name: &str) -> anyhow::Result<Vec<&'static Published>> {
    Ok(published()?.iter().filter(|p| p.arch == arch_name).collect())
}

/// Returns `true` if `text` matches `pattern`, in which `*` matches any characters, or none.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern, text, expected| assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        check("resnet50", "resnet50", true);
        check("resnet50", "resnet50d", false);
        check("resnet50*", "resnet50d", true);
        check("*50*", "resnet50", true);
        check("*50*d", "resnet50d", true);
        check("*50*d*t", "resnet50d", false);
        check("r*t*0", "resnet50", true);
        check("*", "", true);
        check("", "x", false);
        check("a*a", "a", false);
    }

    #[test]
    fn models_are_found_by_name() {
        let name = |name: &str| find(name).unwrap().name();
        assert_eq!(name("resnet50.a1_in1k"), "resnet50.a1_in1k");
        assert_eq!(name("timm/resnet50.a1_in1k"), "resnet50.a1_in1k");
        assert_eq!(find("resnet50").unwrap().arch_name, "resnet50");
        assert!(find("resnet50").unwrap().published.is_some_and(|weights| weights.default));
        assert_eq!(find("plain34").unwrap().name(), "plain34");
        let error = |name: &str| find(name).unwrap_err().to_string();
        assert!(
            error("resnet50.a1_in2k").contains("did you mean resnet50.a1_in1k"),
            "{}",
            error("resnet50.a1_in2k")
        );
        assert!(error("resnet51").contains("did you mean resnet50"), "{}", error("resnet51"));
        assert!(error("resnet50.nosuch").contains("did you mean resnet50."), "{}", error("resnet50.nosuch"));
        assert!(error("someone/model").contains("--weights"), "{}", error("someone/model"));
        let none = matching("resnt*").unwrap_err().to_string();
        assert!(none.contains("no model matches `resnt*`; did you mean resnet*"), "{none}");
        let none = matching("resnet5l").unwrap_err().to_string();
        assert!(none.contains("did you mean resnet50"), "{none}");
    }

    #[test]
    fn every_model_is_listed_once() {
        let all = all().unwrap();
        for model in &all {
            assert_eq!(all.iter().filter(|m| m.name() == model.name()).count(), 1, "{}", model.name());
        }
        assert!(published().unwrap().iter().all(|p| all.iter().any(|m| m.name() == p.name)));
        assert!(zoo::all().iter().all(|(name, _)| all.iter().any(|m| m.arch_name == *name)));
    }
}
