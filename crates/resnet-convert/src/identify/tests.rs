use resnet_model::arch::{ArchOptions, Attention, Block, ResNet, Shortcut, Stage, Stem, StemPool};
use resnet_model::param_specs::ParamSpec;

use super::*;

/// Networks of the zoo whose tensors are those of another one, which is taken unless the file or the user names them.
const HIDDEN: &[(&str, &str)] = &[
    ("resnetblur18", "resnet18"),
    ("resnetblur50", "resnet50"),
    ("resnetaa50", "resnet50"),
    ("resnetaa34d", "resnet34d"),
    ("resnetblur50d", "resnet50d"),
    ("resnetaa50d", "resnet50d"),
    ("resnetblur101d", "resnet101d"),
    ("resnetaa101d", "resnet101d"),
    ("seresnextaa101d_32x8d", "seresnext101d_32x8d"),
    ("plain20_cifar", "resnet20_cifar"),
    ("plain32_cifar", "resnet32_cifar"),
    ("plain44_cifar", "resnet44_cifar"),
    ("plain56_cifar", "resnet56_cifar"),
    ("plain110_cifar", "resnet110_cifar"),
    ("plain1202_cifar", "resnet1202_cifar"),
];

fn list(arch: &Arch) -> Vec<ParamSpec> {
    arch.graph().unwrap().param_specs()
}

fn shapes_of(params: &[ParamSpec]) -> Shapes<'_> {
    Shapes(params.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect())
}

#[track_caller]
fn found(arch: &Arch, hints: &[NameHint]) -> (Arch, Identified) {
    let params = list(arch);
    let (found, identified) = identify(&shapes_of(&params), hints).unwrap_or_else(|e| panic!("{arch}: {e}"));
    assert_eq!(list(&found), params, "{arch} and {found}");
    (found, identified)
}

#[test]
fn every_network_of_the_zoo_is_identified_by_its_tensors() {
    for (name, arch) in zoo::all() {
        let (by_shape, identified) = found(&arch, &[]);
        let hidden = HIDDEN.iter().find(|(hidden, _)| *hidden == name);
        let expected = hidden.map_or(name, |(_, taken)| taken);
        assert_eq!(zoo::name_of(&by_shape), Some(expected), "{name}");
        assert_eq!(
            identified.alternatives.contains(&name.to_owned()),
            hidden.is_some(),
            "{name}: {identified:?}"
        );
        assert_eq!(identified.by == IdentifiedBy::Shapes, identified.assumed.is_empty(), "{name}");

        let hint = NameHint { name: format!("{name}.a1_in1k"), place: "in config.json".into() };
        let (by_name, identified) = found(&arch, &[hint]);
        assert_eq!((by_name, identified.by), (arch, IdentifiedBy::Named), "{name}");
    }
}

/// No two other networks of the zoo have the same tensors.
#[test]
fn all_ambiguous_shapes_are_listed() {
    let mut seen = HashMap::new();
    for (name, arch) in zoo::all() {
        let params: Vec<_> = list(&arch.with_classes(0)).into_iter().map(|p| (p.name, p.shape)).collect();
        if let Some(first) = seen.insert(params, name) {
            let listed = |a, b| HIDDEN.contains(&(a, b));
            let siblings = HIDDEN.iter().filter(|(h, _)| *h == name || *h == first).map(|(_, t)| t);
            let siblings: Vec<_> = siblings.collect();
            let same = siblings.len() == 2 && siblings[0] == siblings[1];
            assert!(listed(name, first) || listed(first, name) || same, "{name} and {first}");
        }
    }
}

#[test]
fn a_contradicting_name_is_reported_and_ignored() {
    let hint = NameHint { name: "resnet34".into(), place: "under `arch`".into() };
    let (arch, identified) = found(&zoo::arch("resnet18").unwrap(), &[hint]);
    assert_eq!(zoo::name_of(&arch), Some("resnet18"));
    assert!(identified.evidence.contains("contradict the name `resnet34` under `arch`"), "{identified:?}");
}

#[test]
fn unnamed_networks_are_identified() {
    let stage = |block, depth, width| Stage { block, depth, width };
    let small = |stages: Vec<Stage>| ResNet { stages, num_classes: 7, ..ResNet::imagenet(Block::Basic, &[]) };
    let bottlenecks = || {
        small(vec![
            stage(Block::Bottleneck, 2, 24),
            stage(Block::Bottleneck, 1, 40),
            stage(Block::Bottleneck, 3, 64),
        ])
    };
    let se = |reduction| Attention::Se { reduction };
    let nets = [
        small(vec![stage(Block::Basic, 1, 64)]),
        small(vec![stage(Block::Basic, 5, 12), stage(Block::Bottleneck, 1, 20)]),
        bottlenecks(),
        ResNet { num_classes: 0, in_channels: 1, ..bottlenecks() },
        ResNet { stem: Stem::Conv7 { width: 24 }, shortcut: Shortcut::ProjectionAll, ..bottlenecks() },
        ResNet {
            stem: Stem::Deep { widths: [8, 12, 40] },
            shortcut: Shortcut::AvgProjection,
            ..bottlenecks()
        },
        ResNet { stem: Stem::Conv3 { width: 96 }, ..bottlenecks() },
        ResNet { groups: 4, group_width: 32, attention: se(2), ..bottlenecks() },
        ResNet { groups: 2, group_width: 48, first_reduction: 2, ..bottlenecks() },
        ResNet { stem_pool: StemPool::Conv, attention: se(8), ..bottlenecks() },
        ResNet { shortcut: Shortcut::Projection3x3, attention: Attention::Eca, ..bottlenecks() },
    ];
    for net in nets {
        let arch = Arch::ResNet(net);
        assert_eq!(found(&arch, &[]).0, arch);
    }
    let options = ArchOptions {
        num_classes: Some(11),
        in_channels: Some(4),
        pool: Some(GlobalPool::CatAvgMax),
        ..ArchOptions::default()
    };
    for name in ["resnet26", "resnetv2_18d", "resnetv2_50x1_bit", "inception_v4", "preresnet164_cifar"] {
        let arch = zoo::arch(name).unwrap().with(options).unwrap();
        assert_eq!(found(&arch, &[]).0, arch);
    }
    let vgg = zoo::arch("vgg13_bn").unwrap().with_classes(0).with_in_channels(1);
    assert_eq!(found(&vgg, &[]).0, vgg);
}

/// `--arch NAME`: the numbers of classes and channels are the file's in every family.
#[test]
fn a_specified_architecture_takes_the_classes_of_the_file() {
    for name in [
        "resnet18",
        "resnet50d",
        "resnetv2_50",
        "vgg11_bn",
        "inception_v3",
        "inception_resnet_v2",
        "senet154",
    ] {
        let named = zoo::arch(name).unwrap();
        for classes in [0, 5] {
            let arch = named.clone().with_classes(classes).with_in_channels(1);
            let params = list(&arch);
            assert_eq!(adapt(&named, &shapes_of(&params)), arch, "{name}");
        }
    }
}

#[test]
fn unsupported_shapes_are_errors_with_the_tensor_name() {
    let check = |name: &str, shape: &[usize], expected: &str| {
        let mut params = list(&zoo::arch("resnet26").unwrap());
        params.iter_mut().find(|p| p.name == name).unwrap().shape = shape.to_vec();
        let error = identify(&shapes_of(&params), &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check("conv1.weight", &[64, 3, 5, 5], "unsupported stem: 5×5 convolution");
    check("conv1.weight", &[64, 3], "`conv1.weight` has shape [64, 3]");
    check("layer1.0.conv2.weight", &[64, 0, 3, 3], "has 0 input channels per group");
    check("layer1.0.conv2.weight", &[64, 48, 3, 3], "has 48 input channels per group");
    check("fc.weight", &[10], "expected [classes, features]");
    check("layer2.1.conv1.weight", &[usize::MAX, usize::MAX, 1, 1], "do not divide");
    let error = identify(&shapes_of(&[]), &[]).unwrap_err();
    assert!(error.contains("no known network family"), "{error}");
}
