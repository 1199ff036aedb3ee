//! Architectures by name.

use std::sync::LazyLock;

use crate::arch::Arch;
use crate::{Error, Result};

mod other_families;
mod pruned;
mod resnets;

/// A named architecture.
struct ZooEntry {
    name: &'static str,
    arch: Arch,
    /// The architecture without the options that do not change its name.
    variant: Arch,
}

static TABLE: LazyLock<Vec<ZooEntry>> = LazyLock::new(|| {
    let resnets = resnets::imagenet().into_iter().chain(resnets::cifar());
    let all = resnets.map(|(name, net)| (name, Arch::ResNet(net)));
    let all = all
        .chain(other_families::pre_activation())
        .chain(other_families::vgg())
        .chain(other_families::inception());
    let all = all.chain(other_families::clip());
    all.map(|(name, arch)| ZooEntry { name, variant: arch.without_options(), arch }).collect()
});

/// Returns all named architectures.
pub fn all() -> Vec<(&'static str, Arch)> {
    TABLE.iter().map(|entry| (entry.name, entry.arch.clone())).collect()
}

/// Returns the architecture with this name, e.g. `resnet50`.
///
/// # Errors
///
/// Returns [`Error::UnknownModel`] with similar names if there is none.
pub fn arch(name: &str) -> Result<Arch> {
    if let Some(entry) = TABLE.iter().find(|entry| entry.name == name) {
        return Ok(entry.arch.clone());
    }
    Err(Error::UnknownModel {
        name: crate::escape(name),
        nearest: nearest(name, TABLE.iter().map(|entry| entry.name)),
    })
}

/// Returns up to three of the `known` names that are similar to `name`, best first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let known = known.into_iter().map(|known| (distance(name, known), known));
    let mut near: Vec<(usize, &str)> = known.filter(|&(d, known)| d <= known.len() / 3).collect();
    near.sort();
    near.into_iter().take(3).map(|(_, known)| known).collect()
}

/// Returns the name of an architecture in the zoo, regardless of its input channels, classes, global pooling and output
/// stride.
pub fn name_of(arch: &Arch) -> Option<&'static str> {
    let variant = arch.without_options();
    TABLE.iter().find(|entry| entry.variant == variant).map(|entry| entry.name)
}

/// Returns the edit distance between two names, or `usize::MAX` if `a` is longer than any model name.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 100 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
