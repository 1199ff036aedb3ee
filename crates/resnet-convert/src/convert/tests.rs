use std::io;

use resnet_image::preprocess::Channels;
use resnet_model::raw::{Bytes, Dtype, byte_len};
use resnet_model::{RawTensor, zoo};

use super::*;
use crate::report::IdentifiedBy;
use crate::source::Format;

/// Zeros that take no memory, so that the largest networks cost nothing.
#[derive(Debug)]
struct Zeros(u64);

impl Bytes for Zeros {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        Ok(())
    }
}

fn zeros(shape: &[usize]) -> RawTensor {
    let len = byte_len(Dtype::F32, shape).unwrap();
    RawTensor::new(Dtype::F32, shape.to_vec(), Arc::new(Zeros(len))).unwrap()
}

/// The network's tensors, under names and in shapes of somebody else's.
fn state(
    arch: &Arch,
    rename: impl Fn(&str) -> String,
    reshape: impl Fn(&str, &[usize]) -> Vec<usize>,
) -> StateDict {
    let params = arch.graph().unwrap().param_specs();
    let named = params.into_iter().map(|p| (rename(&p.name), zeros(&reshape(&p.name, &p.shape))));
    StateDict { tensors: named.collect(), ..StateDict::new(Format::Safetensors) }
}

fn own_shape(_: &str, shape: &[usize]) -> Vec<usize> {
    shape.to_vec()
}

#[track_caller]
fn known(state: StateDict, options: &ConvertOptions) -> (Checkpoint, Report) {
    build_checkpoint(state, "a.pth".as_ref(), options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn large_networks_of_torchvision_and_timm() {
    for name in
        ["vgg11", "vgg16_bn", "inception_v3", "inception_v4", "inception_resnet_v2", "resnetv2_152x4_bit"]
    {
        let arch = zoo::arch(name).unwrap().with_classes(7);
        let mut file = state(&arch, str::to_owned, own_shape);
        if name == "inception_v3" {
            file.tensors.push(("AuxLogits.fc.weight".into(), zeros(&[7, 768])));
        }
        let (checkpoint, report) = known(file, &ConvertOptions::default());
        assert_eq!(checkpoint.meta().arch, arch, "{name}");
        assert_eq!(report.dropped.len(), usize::from(name == "inception_v3"));
        let half = checkpoint.meta().preprocess.mean == [0.5; 3];
        assert_eq!(half, !name.starts_with("vgg"), "{name}");
    }
}

/// The image tower of OpenAI's files; the text's is left out.
#[test]
fn towers_of_clip() {
    let arch = zoo::arch("resnet50x4_clip").unwrap();
    let openai = |n: &str| {
        let n =
            n.replace("stem.conv1.bn", "bn1").replace("stem.conv2.bn", "bn2").replace("stem.conv3.bn", "bn3");
        let n = (1..=3).fold(n, |n, i| n.replace(&format!("stem.conv{i}.conv"), &format!("conv{i}")));
        let n = (0..4).fold(n, |n, i| n.replace(&format!("stages.{i}."), &format!("layer{}.", i + 1)));
        let n = n.replace("shortcut.conv.conv", "downsample.0").replace("shortcut.conv.bn", "downsample.1");
        let n = [(1, "1x1"), (2, "kxk"), (3, "1x1")].into_iter().fold(n, |n, (i, k)| {
            let n = n.replace(&format!("conv{i}_{k}.conv"), &format!("conv{i}"));
            n.replace(&format!("conv{i}_{k}.bn"), &format!("bn{i}"))
        });
        let n = n
            .replace("head.pos_embed", "attnpool.positional_embedding")
            .replace("head.proj", "attnpool.c_proj");
        let n = ["q", "k", "v"]
            .iter()
            .fold(n, |n, l| n.replace(&format!("head.{l}."), &format!("attnpool.{l}_proj.")));
        format!("visual.{n}")
    };
    let mut file = state(&arch, openai, own_shape);
    file.tensors
        .extend(["logit_scale", "transformer.resblocks.0.ln_1.weight"].map(|n| (n.to_owned(), zeros(&[1]))));
    let (checkpoint, report) = known(file, &ConvertOptions::default());
    assert_eq!((&checkpoint.meta().arch, report.dialect.as_str()), (&arch, "OpenAI CLIP"));
    assert_eq!((report.dropped.len(), checkpoint.meta().preprocess.crop), (2, [288; 2]));
    let (checkpoint, report) = known(state(&arch, str::to_owned, own_shape), &ConvertOptions::default());
    assert_eq!((&checkpoint.meta().arch, report.dialect.as_str()), (&arch, "timm"));
    assert!(checkpoint.meta().preprocess.mean[0] > 0.48 && checkpoint.meta().preprocess.mean[0] < 0.482);
}

/// timm keeps VGG's fully connected layers as convolutions.
#[test]
fn vgg_of_timm() {
    let arch = zoo::arch("vgg13").unwrap().with_classes(7);
    let rename = |n: &str| {
        let n = n.replace("classifier.0", "pre_logits.fc1").replace("classifier.3", "pre_logits.fc2");
        n.replace("classifier.6", "head.fc")
    };
    let reshape = |n: &str, s: &[usize]| match (n, s) {
        ("classifier.0.weight", &[out, _]) => vec![out, 512, 7, 7],
        ("classifier.3.weight", &[out, inner]) => vec![out, inner, 1, 1],
        _ => s.to_vec(),
    };
    let (checkpoint, report) = known(state(&arch, rename, reshape), &ConvertOptions::default());
    assert_eq!((&checkpoint.meta().arch, report.dialect.as_str()), (&arch, "timm"));
    assert_eq!(report.reshaped.len(), 2);
    assert_eq!((report.reshaped[0].from.len(), report.reshaped[0].to.len()), (4, 2));
}

/// The head's name before timm took the network over.
#[test]
fn inception_resnet_v2_of_old() {
    let arch = zoo::arch("inception_resnet_v2").unwrap();
    let (checkpoint, _) =
        known(state(&arch, |n| n.replace("classif.", "last_linear."), own_shape), &ConvertOptions::default());
    assert_eq!(checkpoint.meta().arch, arch);
}

/// `Sequential(*resnet.children())` and other names that say nothing, for networks with a name.
#[test]
fn structure_finds_networks_of_the_zoo() {
    for name in ["resnet18", "resnext50_32x4d", "seresnet50", "resnetv2_50", "vgg11_bn"] {
        let arch = zoo::arch(name).unwrap();
        let (mut modules, mut last) = (0, String::new());
        let mut tensors = Vec::new();
        for (from, tensor) in state(&arch, str::to_owned, own_shape).tensors {
            let (module, leaf) = from.rsplit_once('.').unwrap();
            if module != last {
                (modules, last) = (modules + 1, module.to_owned());
            }
            tensors.push((format!("model/layer_{modules}/{leaf}"), tensor));
        }
        let file =
            |tensors: &Vec<_>| StateDict { tensors: tensors.clone(), ..StateDict::new(Format::Pickle) };
        let (checkpoint, report) = known(file(&tensors), &ConvertOptions::default());
        assert_eq!(zoo::name_of(&checkpoint.meta().arch), Some(name));
        assert_eq!((report.identified.by, report.dialect.as_str()), (IdentifiedBy::Guessed, "unknown"));
        assert!(report.identified.evidence.contains("a guess"), "{report}");
        let twins = ["resnet18", "resnetv2_50"].contains(&name);
        assert_eq!(report.identified.alternatives.is_empty(), !twins, "{report}");

        // In another order nothing tells modules of equal shapes apart.
        let inner = 1..tensors.len() - 2;
        tensors[inner].reverse();
        let error = build_checkpoint(file(&tensors), "a".as_ref(), &ConvertOptions::default()).unwrap_err();
        assert!(error.to_string().contains("nothing tells them apart"), "{name}: {error}");
        assert_eq!(error.hint(), Some("--arch NAME insists on an architecture"));
    }
}

/// Who insists is believed as far as the shapes allow.
#[test]
fn structure_with_an_architecture_insisted_on() {
    let arch = zoo::arch("resnet50d").unwrap();
    let tensors: Vec<_> = state(&arch, str::to_owned, own_shape).tensors;
    let number = |(i, (name, t)): (usize, (String, RawTensor))| {
        let (module, leaf) = name.rsplit_once('.').unwrap();
        (format!("{}.{leaf}", module.replace(['.', 'c'], "_")), (i, t).1)
    };
    let tensors: Vec<_> = tensors.into_iter().enumerate().map(number).collect();
    let file = || StateDict { tensors: tensors.clone(), ..StateDict::new(Format::Pickle) };
    // No tensor's shape shows whether a mean comes before the projections.
    let (checkpoint, report) = known(file(), &ConvertOptions::default());
    assert_eq!(checkpoint.meta().arch.to_string(), "resnet50c");
    assert!(report.identified.alternatives.contains(&"resnet50d".to_owned()), "{report}");
    let insist = |name| ConvertOptions { arch: Some(zoo::arch(name).unwrap()), ..ConvertOptions::default() };
    let (checkpoint, report) = known(file(), &insist("resnet50d"));
    assert_eq!((&checkpoint.meta().arch, report.identified.by), (&arch, IdentifiedBy::Specified));
    let named = ConvertOptions { name: Some("resnet50d.ra2_in1k".into()), ..ConvertOptions::default() };
    assert_eq!(known(file(), &named).0.meta().arch, arch);
    let error = build_checkpoint(file(), "a".as_ref(), &insist("resnet34")).unwrap_err();
    assert!(error.to_string().contains("no ResNet among them"), "{error}");
}

/// A backbone with another head: what does not fit is left out and listed, but only if that is allowed.
#[test]
fn partial_leaves_out_what_does_not_fit() {
    let arch = zoo::arch("resnet18").unwrap();
    let file = || {
        let mut file = state(&arch, |n| n.replace("fc.", "fc.1."), own_shape);
        file.tensors.push(("layer1.0.gate".into(), zeros(&[3])));
        file
    };
    let error = build_checkpoint(file(), "a".as_ref(), &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.hint(), Some("--partial leaves them out"), "{error}");
    let partial = ConvertOptions { partial: true, ..ConvertOptions::default() };
    let (checkpoint, report) = known(file(), &partial);
    assert_eq!(checkpoint.meta().arch, arch.clone().with_classes(0));
    let dropped: Vec<&str> = report.dropped.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(dropped, ["fc.1.bias", "fc.1.weight", "layer1.0.gate"]);

    // A head without its bias is no head.
    let mut file = state(&arch, str::to_owned, own_shape);
    file.tensors.retain(|(name, _)| name != "fc.bias");
    assert_eq!(known(file, &partial).0.meta().arch.classes(), None);

    // Nothing stands in for a part of the body.
    let mut file = state(&arch, str::to_owned, own_shape);
    file.tensors.retain(|(name, _)| name != "layer4.1.bn2.running_var");
    let error = build_checkpoint(file, "a".as_ref(), &partial).unwrap_err().to_string();
    assert!(error.contains("1 tensor missing (layer4.1.bn2.running_var)"), "{error}");
}

/// Norms that were folded into the convolutions come back as norms that change nothing but add.
#[test]
fn folded_norms_are_made_anew() {
    let arch = zoo::arch("resnet18").unwrap();
    let mut file = state(&arch, str::to_owned, own_shape);
    let norms = |name: &str| name.contains("bn") || name.contains("downsample.1");
    let widths: Vec<(String, usize)> = file
        .tensors
        .iter()
        .filter(|(n, _)| n.ends_with("running_var"))
        .map(|(n, t)| (n.clone(), t.shape()[0]))
        .collect();
    file.tensors.retain(|(name, _)| !norms(name));
    for (norm, width) in &widths {
        let conv =
            norm.replace("bn", "conv").replace("downsample.1", "downsample.0").replace("running_var", "bias");
        file.tensors.push((conv, RawTensor::from_f32(vec![*width], &vec![0.25; *width]).unwrap()));
    }
    let (checkpoint, report) = known(file, &ConvertOptions::default());
    assert_eq!(checkpoint.meta().arch, arch);
    assert_eq!(report.synthesized.len(), 4 * widths.len());
    assert_eq!(checkpoint.values("layer2.0.downsample.1.bias").unwrap(), vec![0.25; 128]);
    let var = checkpoint.values("bn1.running_var").unwrap()[0];
    assert_eq!((var + 1e-5, checkpoint.values("bn1.weight").unwrap()[0]), (1.0, 1.0));
    assert_eq!(report.unset.len(), widths.len());
}

/// Detectron2's names on torchvision's weights.
#[test]
fn an_author_changes_preprocessing_and_strides() {
    let arch = zoo::arch("resnet50").unwrap();
    let rename = |n: &str| {
        let n = n.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm");
        let n = (1..=3).fold(n, |n, i| n.replace(&format!("bn{i}"), &format!("conv{i}.norm")));
        let n = (1..=4).fold(n, |n, i| n.replace(&format!("layer{i}"), &format!("res{}", i + 1)));
        let stem = n.starts_with("conv1");
        if stem { format!("stem.{n}") } else { n.replace("fc.", "linear.") }
    };
    let file = || state(&arch, rename, own_shape);
    let (checkpoint, report) = known(file(), &ConvertOptions::default());
    assert_eq!(checkpoint.meta().arch.to_string(), "resnet50 with strides in the first 1×1");
    let preprocess = &checkpoint.meta().preprocess;
    assert_eq!((preprocess.channels, preprocess.std.as_slice()), (Channels::Bgr, &[1.0; 3][..]));
    assert_eq!(preprocess.mean, [103.530, 116.280, 123.675]);
    assert!(report.identified.evidence.contains("Detectron2"), "{report}");
    let mut by_torchvision = file();
    by_torchvision.metadata.insert("__author__".into(), "torchvision".into());
    let (checkpoint, _) = known(by_torchvision, &ConvertOptions::default());
    assert_eq!(checkpoint.meta().arch, arch);
    assert_eq!(checkpoint.meta().preprocess, Preprocess::torchvision(256, 224));
}
