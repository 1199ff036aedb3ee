//! Architectures by name.

use std::sync::LazyLock;

use crate::arch::Arch;
use crate::{Error, Result};

mod neighbours;
mod pruned;
mod resnets;

/// A named architecture, and what is left of it without the settings that do not change its name.
struct Entry {
    name: &'static str,
    arch: Arch,
    bare: Arch,
}

static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let resnets = resnets::imagenet().into_iter().chain(resnets::cifar());
    let all = resnets.map(|(name, net)| (name, Arch::ResNet(net)));
    let all = all.chain(neighbours::pre_activation()).chain(neighbours::vgg()).chain(neighbours::inception());
    let all = all.chain(neighbours::clip());
    all.map(|(name, arch)| Entry { name, bare: arch.bare(), arch }).collect()
});

/// All named architectures.
pub fn all() -> Vec<(&'static str, Arch)> {
    TABLE.iter().map(|entry| (entry.name, entry.arch.clone())).collect()
}

/// The architecture of this name, e.g. `resnet50`. An unknown name is an error that tells the nearest known ones.
pub fn arch(name: &str) -> Result<Arch> {
    if let Some(entry) = TABLE.iter().find(|entry| entry.name == name) {
        return Ok(entry.arch.clone());
    }
    Err(Error::UnknownModel {
        name: crate::escape(name),
        nearest: nearest(name, TABLE.iter().map(|entry| entry.name)),
    })
}

/// Up to three of the `known` names that look like `name`, best first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let known = known.into_iter().map(|known| (distance(name, known), known));
    let mut near: Vec<(usize, &str)> = known.filter(|&(d, known)| d <= known.len() / 3).collect();
    near.sort();
    near.into_iter().take(3).map(|(_, known)| known).collect()
}

/// The zoo's name of an architecture, whatever its numbers of input channels and classes, its global pool and its output
/// stride.
pub fn name_of(arch: &Arch) -> Option<&'static str> {
    let bare = arch.bare();
    TABLE.iter().find(|entry| entry.bare == bare).map(|entry| entry.name)
}

/// Edits (insert, delete, replace) between two names; names longer than any model's count as far.
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
