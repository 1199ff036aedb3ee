use resnet_convert::{ConvertOptions, Error};
use resnet_model::Preprocess;
use resnet_model::arch::{Arch, Block, ResNet, Stem};

use super::{check, convert};
use crate::build::network::{Named, legacy, renamed, small, tensors, zip};

/// Returns the transformers name of a torchvision name.
pub(crate) fn hugging_face(name: &str, trunk: &str) -> String {
    let part = |name: &str| {
        name.replacen("conv", "", 1).replacen("bn", "", 1).parse::<usize>().map(|n| n - 1).unwrap()
    };
    let kind = |name: &str| if name.starts_with("conv") { "convolution" } else { "normalization" };
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["fc", rest] => format!("classifier.1.{rest}"),
        [stem, rest] => format!("{trunk}embedder.embedder.{}.{rest}", kind(stem)),
        [stage, block, "downsample", index, rest] => {
            let stage: usize = stage["layer".len()..].parse().unwrap();
            let kind = if index == "0" { "convolution" } else { "normalization" };
            format!("{trunk}encoder.stages.{}.layers.{block}.shortcut.{kind}.{rest}", stage - 1)
        }
        [stage, block, layer, rest] => {
            let stage: usize = stage["layer".len()..].parse().unwrap();
            let (kind, layer) = (kind(layer), part(layer));
            format!("{trunk}encoder.stages.{}.layers.{block}.layer.{layer}.{kind}.{rest}", stage - 1)
        }
        _ => unreachable!("{name}"),
    }
}

#[test]
fn wrappers_and_prefixes_are_found_by_content() {
    let arch = small(Block::Basic, 3);
    let plain = tensors(&arch);
    for (wrapper, prefix) in [
        (&[][..], "module."),
        (&[], "_orig_mod."),
        (&[], "module._orig_mod."),
        (&["state_dict"], ""),
        (&["state_dict"], "module.model.backbone."),
        (&["model"], "net."),
        (&["checkpoint", "net"], "encoder."),
        (&["model_ema"], "module."),
    ] {
        let named = renamed(&plain, |n| format!("{prefix}{n}"));
        for bytes in [zip(&named, wrapper), legacy(&named, wrapper)] {
            let report = check(prefix, &bytes, &arch, &plain);
            let root = wrapper.iter().map(|w| format!("{w}.")).collect::<String>() + prefix;
            assert_eq!(report.root, root);
            assert_eq!(report.renamed.len(), plain.len());
        }
    }
}

#[test]
fn averaged_weights_are_preferred_and_training_state_dropped() {
    let arch = small(Block::Basic, 3);
    let plain = tensors(&arch);
    let other: Vec<Named> =
        plain.iter().map(|t| Named { bytes: vec![0; t.bytes.len()], ..t.clone() }).collect();
    for (preferred, ignored) in
        [("state_dict_ema.", "state_dict."), ("model_ema.module.", "model."), ("teacher.", "student.module.")]
    {
        let mut all = renamed(&other, |n| format!("{ignored}{n}"));
        all.extend(renamed(&plain, |n| format!("{preferred}{n}")));
        all.push(Named::f32("optimizer.state.0.exp_avg", &[4], 1));
        let report = check(preferred, &zip(&all, &[]), &arch, &plain);
        assert_eq!(report.dropped.len(), plain.len() + 1);
        let reasons: Vec<&str> = report.dropped.iter().map(|d| d.reason.as_str()).collect();
        assert!(reasons.contains(&"another copy of the network") && reasons.contains(&"training state"));
        assert!(
            report.notes.iter().any(|n| n.contains(&format!("used the network under `{preferred}`, not"))),
            "{:?}",
            report.notes
        );
    }
}

#[test]
fn unknown_tensors_are_reported() {
    let mut all = renamed(&tensors(&small(Block::Basic, 0)), |n| format!("backbone.{n}"));
    all.push(Named::f32("neck.fc.weight", &[4, 16], 1));
    let error = convert(&zip(&all, &[]), &ConvertOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Leftover { names, .. } if names == &["neck.fc.weight"]), "{error}");
    assert_eq!(error.hint(), Some("--partial omits them"));
    let options = ConvertOptions { partial: true, ..ConvertOptions::default() };
    let (_, report) = convert(&zip(&all, &[]), &options).unwrap();
    assert_eq!(report.dropped[0].name, "neck.fc.weight");

    let mut inside = tensors(&small(Block::Basic, 3));
    inside.push(Named::f32("layer1.0.extra", &[1], 1));
    let error = convert(&zip(&inside, &[]), &ConvertOptions::default()).unwrap_err().to_string();
    assert!(error.contains("1 tensor unexpected (layer1.0.extra)"), "{error}");
}

#[test]
fn transformers() {
    for block in [Block::Basic, Block::Bottleneck] {
        let arch = small(block, 3);
        let named = renamed(&tensors(&arch), |n| hugging_face(n, "resnet."));
        let report = check("classifier", &zip(&named, &[]), &arch, &tensors(&arch));
        assert_eq!(report.dialect, "Hugging Face transformers");
        let bare = arch.with_classes(0);
        let named = renamed(&tensors(&bare), |n| hugging_face(n, ""));
        check("bare", &zip(&named, &[]), &bare, &tensors(&bare));
    }
}

#[test]
fn published_cifar_networks() {
    let Arch::ResNet(net) = small(Block::Basic, 10) else { unreachable!() };
    let arch = Arch::ResNet(ResNet { stem: Stem::Conv3 { width: 8 }, ..net });
    let named =
        renamed(&tensors(&arch), |n| n.replace("fc.", "linear.").replace(".downsample.", ".shortcut."));
    let report = check("CIFAR", &zip(&named, &["net"]), &arch, &tensors(&arch));
    assert_eq!(report.dialect, "CIFAR");
    assert!(report.notes.iter().any(|n| n.contains("32×32")), "{:?}", report.notes);
}

#[test]
fn self_supervised_backbones() {
    let arch = small(Block::Bottleneck, 0);
    let body = tensors(&arch);
    let prefixed = |prefix: &str| renamed(&body, |n| format!("{prefix}{n}"));
    let head = |name: &str| vec![Named::f32(name, &[4, 64], 3)];

    let moco = [
        prefixed("module.encoder_q."),
        head("module.encoder_q.fc.0.weight"),
        head("module.encoder_q.fc.2.weight"),
        prefixed("module.encoder_k."),
        head("module.queue"),
    ];
    let report = check("MoCo", &zip(&moco.concat(), &["state_dict"]), &arch, &body);
    assert_eq!(report.dialect, "MoCo");
    assert_eq!(report.classes, None);

    let moco3 = [
        prefixed("module.base_encoder."),
        head("module.base_encoder.fc.weight"),
        prefixed("module.momentum_encoder."),
        head("module.predictor.0.weight"),
    ];
    assert_eq!(check("MoCo v3", &zip(&moco3.concat(), &["state_dict"]), &arch, &body).dialect, "MoCo v3");

    let swav =
        [prefixed("module."), head("module.projection_head.0.weight"), head("module.prototypes.weight")];
    let (checkpoint, report) = convert(&zip(&swav.concat(), &[]), &ConvertOptions::default()).unwrap();
    assert_eq!((report.dialect.as_str(), report.dropped.len()), ("SwAV", 2));
    let usual = Preprocess::torchvision(256, 224);
    assert_eq!(checkpoint.meta().preprocess.mean, usual.mean);
    assert_eq!(checkpoint.meta().preprocess.std, [0.228, 0.224, 0.225]);

    let dino = [
        prefixed("teacher.backbone."),
        head("teacher.head.mlp.0.weight"),
        prefixed("student.module.backbone."),
    ];
    check("DINO", &zip(&dino.concat(), &[]), &arch, &body);
    let barlow = [prefixed("backbone."), head("projector.0.weight"), head("bn.running_mean")];
    check("Barlow Twins", &zip(&barlow.concat(), &["model"]), &arch, &body);
}

#[test]
fn colliding_names_are_an_error() {
    let mut all = tensors(&small(Block::Basic, 3));
    all.push(Named::f32("linear.weight", &[3, 16], 1));
    let error = convert(&zip(&all, &[]), &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.code().unwrap().as_str(), "duplicate-name");
}
