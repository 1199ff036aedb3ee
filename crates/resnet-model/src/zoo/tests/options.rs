//! The options of every family: each one is compared with timm in the golden file or rejected. Also the feature pyramids.

use std::collections::BTreeSet;

use super::{golden_arch, rows};
use crate::arch::{ArchOptions, GlobalPool};
use crate::graph::{Graph, Op};
use crate::zoo;

const PYRAMIDS: &str = include_str!("../../../../../tests/golden/zoo_pyramids.tsv");

const POOLS: [(&str, GlobalPool); 3] =
    [("max", GlobalPool::Max), ("avgmax", GlobalPool::AvgMax), ("catavgmax", GlobalPool::CatAvgMax)];

/// A network of every family, the name of the family, and the options that it does not have.
const FAMILIES: [(&str, &str, &[&str]); 10] = [
    ("test_resnet", "ResNet", &[]),
    ("resnet20_cifar", "ResNet", &[]),
    ("resnetv2_18", "ResNet-v2", &[]),
    ("resnetv2_50x1_bit", "ResNet-v2", &[]),
    ("preresnet164_cifar", "ResNet-v2", &[]),
    ("vgg11", "VGG", &["pool", "stride"]),
    ("inception_v3", "Inception-v3", &["stride"]),
    ("inception_v4", "Inception-v4", &["stride"]),
    ("inception_resnet_v2", "Inception-ResNet-v2", &["stride"]),
    ("resnet50_clip", "CLIP with attention", &["pool"]),
];

#[test]
fn options_are_compared_or_rejected() {
    let compared: BTreeSet<&str> = rows().iter().map(|row| row.name).collect();
    let is_compared = |name: &str, option: &str| compared.contains(format!("{name}+{option}").as_str());
    for (name, family, unsupported) in FAMILIES {
        for option in ["classes0", "adapt1"] {
            assert!(is_compared(name, option), "{name} {option}");
        }
        let check_rejected = |options: ArchOptions, option: &str| {
            let message = zoo::arch(name).unwrap().with(options).unwrap_err().to_string();
            assert!(message.contains(&format!("{family} has no")), "{message}");
            assert!(!is_compared(name, option), "{name} {option}");
        };
        for (option, pool) in POOLS {
            let options = ArchOptions { pool: Some(pool), ..ArchOptions::default() };
            if unsupported.contains(&"pool") {
                check_rejected(options, option);
                continue;
            }
            // All families share the implementation: one pooling of each family is compared, and all of one family.
            zoo::arch(name).unwrap().with(options).unwrap().graph().unwrap();
            let shared = option != "catavgmax" || name == "resnet20_cifar";
            assert!(is_compared(name, option) || shared, "{name} {option}");
        }
        for (option, stride) in [("os8", 8), ("os16", 16)] {
            let options = ArchOptions { output_stride: Some(stride), ..ArchOptions::default() };
            if unsupported.contains(&"stride") {
                check_rejected(options, option);
                continue;
            }
            let (net, dilated) = (zoo::arch(name).unwrap(), zoo::arch(name).unwrap().with(options).unwrap());
            // The CIFAR networks have a smaller stride anyway.
            let unchanged = net.graph().unwrap() == dilated.graph().unwrap();
            assert_eq!(unchanged, name.ends_with("_cifar"), "{name}");
            // timm resamples the position embedding differently when dilated.
            let differs = name == "resnet50_clip";
            assert!(is_compared(name, option) || unchanged || differs || stride != 8, "{name} {option}");
        }
    }
}

#[test]
fn without_classes_the_output_is_pooled_features() {
    for (name, _, _) in FAMILIES {
        let net = golden_arch(&format!("{name}+classes0"));
        let graph = net.graph().unwrap();
        assert_eq!(net.classes(), None, "{name}");
        assert_eq!(graph.tap("pooled").unwrap().node, graph.output(), "{name}");
        assert!(graph.tap("logits").is_err(), "{name}");
        assert!(!matches!(graph.node(graph.output()).op, Op::Linear(_)), "{name}");
    }
}

/// Returns channels and stride of every tap with pixels.
fn levels(graph: &Graph) -> Vec<(usize, usize)> {
    let with_pixels = graph.taps().iter().filter(|tap| tap.stride > 0);
    with_pixels.map(|tap| (graph.node(tap.node).channels, tap.stride)).collect()
}

/// The levels of timm are among our taps, except for the first ones, which timm takes before a pooling.
#[test]
fn feature_pyramids_match_timm() {
    for line in PYRAMIDS.lines() {
        let (name, expected) = line.split_once('\t').unwrap();
        let found = levels(&golden_arch(name).graph().unwrap());
        let first = if name.starts_with("inception") { 8 } else { 4 };
        let mut compared = 0;
        for level in expected.split(' ') {
            let (channels, stride) = level.split_once('/').unwrap();
            let level = (channels.parse().unwrap(), stride.parse().unwrap());
            if level.1 >= first {
                assert!(found.contains(&level), "{name}: {level:?} is not in {found:?}");
                compared += 1;
            }
        }
        assert!(compared >= 3, "{name}");
    }
    let vgg = [(64, 2), (128, 4), (256, 8), (512, 16), (512, 32)];
    assert_eq!(levels(&zoo::arch("vgg16_bn").unwrap().graph().unwrap()), vgg);
}
