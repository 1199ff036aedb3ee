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

/// The network's tensors with other names and shapes.
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

/// The image encoder of OpenAI's files; the text encoder is dropped.
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

/// Uninformative names for networks of the zoo.
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

        // In another order, modules of equal shapes cannot be distinguished.
        let letters = |name: &str| -> String {
            let letter = |c: char| c.to_digit(10).map_or(c, |n| char::from(b'a' + n as u8));
            name.chars().map(letter).collect()
        };
        let inner = 1..tensors.len() - 2;
        tensors[inner].reverse();
        tensors.iter_mut().for_each(|(name, _)| *name = letters(name));
        let error = build_checkpoint(file(&tensors), "a".as_ref(), &ConvertOptions::default()).unwrap_err();
        assert!(error.to_string().contains("is ambiguous"), "{name}: {error}");
        assert_eq!(error.hint(), Some("--arch NAME sets the architecture"));
    }
}

/// A specified architecture is used if the shapes allow it.
#[test]
fn structure_with_a_specified_architecture() {
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
    let require = |name| ConvertOptions { arch: Some(zoo::arch(name).unwrap()), ..ConvertOptions::default() };
    let (checkpoint, report) = known(file(), &require("resnet50d"));
    assert_eq!((&checkpoint.meta().arch, report.identified.by), (&arch, IdentifiedBy::Specified));
    let named = ConvertOptions { name: Some("resnet50d.ra2_in1k".into()), ..ConvertOptions::default() };
    assert_eq!(known(file(), &named).0.meta().arch, arch);
    let error = build_checkpoint(file(), "a".as_ref(), &require("resnet34")).unwrap_err();
    assert!(error.to_string().contains("match no known network"), "{error}");
}

/// A backbone with another head: with `partial`, unexpected tensors are omitted and listed.
#[test]
fn partial_omits_unexpected_tensors() {
    let arch = zoo::arch("resnet18").unwrap();
    let file = || {
        let mut file = state(&arch, |n| n.replace("fc.", "fc.1."), own_shape);
        file.tensors.push(("layer1.0.gate".into(), zeros(&[3])));
        file
    };
    let error = build_checkpoint(file(), "a".as_ref(), &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.hint(), Some("--partial omits them"), "{error}");
    let partial = ConvertOptions { partial: true, ..ConvertOptions::default() };
    let (checkpoint, report) = known(file(), &partial);
    assert_eq!(checkpoint.meta().arch, arch.clone().with_classes(0));
    let dropped: Vec<&str> = report.dropped.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(dropped, ["fc.1.bias", "fc.1.weight", "layer1.0.gate"]);

    // A head without its bias is omitted.
    let mut file = state(&arch, str::to_owned, own_shape);
    file.tensors.retain(|(name, _)| name != "fc.bias");
    assert_eq!(known(file, &partial).0.meta().arch.classes(), None);

    // Tensors of the backbone are required.
    let mut file = state(&arch, str::to_owned, own_shape);
    file.tensors.retain(|(name, _)| name != "layer4.1.bn2.running_var");
    let error = build_checkpoint(file, "a".as_ref(), &partial).unwrap_err().to_string();
    assert!(error.contains("1 tensor missing (layer4.1.bn2.running_var)"), "{error}");
}

/// Folded norms become norms with scale 1 and the bias of the convolution.
#[test]
fn folded_norms_are_synthesized() {
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

/// A detection checkpoint's `pixel_mean` and `pixel_std` override Detectron2's defaults.
#[test]
fn pixel_stats_decide_preprocessing_and_strides() {
    let arch = zoo::arch("resnet50").unwrap();
    let rename = |n: &str| {
        let n = n.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm");
        let n = (1..=3).fold(n, |n, i| n.replace(&format!("bn{i}"), &format!("conv{i}.norm")));
        let n = (1..=4).fold(n, |n, i| n.replace(&format!("layer{i}"), &format!("res{}", i + 1)));
        if n.starts_with("conv1") { format!("stem.{n}") } else { n.replace("fc.", "linear.") }
    };
    let file = |mean: [f32; 3], std: [f32; 3]| {
        let rename = |n: &str| format!("backbone.bottom_up.{}", rename(n));
        let mut file = state(&arch, rename, own_shape);
        for (name, values) in [("pixel_mean", mean), ("pixel_std", std)] {
            file.tensors.push((name.into(), RawTensor::from_f32(vec![3, 1, 1], &values).unwrap()));
        }
        known(file, &ConvertOptions::default()).0
    };
    let rgb = file([123.675, 116.280, 103.530], [58.395, 57.120, 57.375]);
    assert_eq!(rgb.meta().arch, arch);
    let preprocess = &rgb.meta().preprocess;
    assert_eq!((preprocess.channels, preprocess.std[0]), (Channels::Rgb, 58.395));
    let bgr = file([100.0, 110.0, 120.0], [2.0; 3]);
    assert_eq!(bgr.meta().arch.to_string(), "resnet50 with strides in the first 1×1");
    let preprocess = &bgr.meta().preprocess;
    assert_eq!((preprocess.channels, preprocess.mean[0], preprocess.std[0]), (Channels::Bgr, 100.0, 2.0));
}

/// Numbered names in file order, sorted as text or shuffled: the result is exact or an error.
#[test]
fn numbered_names_are_matched_in_numeric_order() {
    for name in ["resnet18", "resnet34", "resnet101", "seresnet50"] {
        let arch = zoo::arch(name).unwrap();
        let expected = state(&arch, str::to_owned, own_shape).tensors;
        // Every tensor has a first element that identifies it.
        let marked = |i: usize, tensor: &RawTensor| {
            let marker = Marked { index: i as u32, len: tensor.byte_len() };
            RawTensor::new(Dtype::F32, tensor.shape().to_vec(), Arc::new(marker)).unwrap()
        };
        let (mut modules, mut last) = (0, String::new());
        let mut tensors = Vec::new();
        for (i, (from, tensor)) in expected.iter().enumerate() {
            let (module, leaf) = from.rsplit_once('.').unwrap();
            if module != last {
                (modules, last) = (modules + 1, module.to_owned());
            }
            tensors.push((format!("net.{modules}.{leaf}"), marked(i, tensor)));
        }
        let mut sorted = tensors.clone();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let mut reversed = tensors.clone();
        reversed.reverse();
        let mut rotated = tensors.clone();
        rotated.rotate_left(40);
        let mut exact = 0;
        for tensors in [tensors, sorted, reversed, rotated] {
            let file = StateDict { tensors, ..StateDict::new(Format::Safetensors) };
            let Ok((checkpoint, _)) = build_checkpoint(file, "a".as_ref(), &ConvertOptions::default()) else {
                continue;
            };
            exact += 1;
            for (i, (name, _)) in expected.iter().enumerate().filter(|(_, (_, t))| !t.shape().is_empty()) {
                let mut first = [0; 4];
                checkpoint.tensors()[name].bytes().read_at(0, &mut first).unwrap();
                assert_eq!(u32::from_le_bytes(first), i as u32, "{name}");
            }
        }
        assert!(exact >= 2, "{name}: file order and sorted names are matched");
    }
}

/// Zeros after an index.
#[derive(Debug)]
struct Marked {
    index: u32,
    len: u64,
}

impl Bytes for Marked {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        if offset == 0 {
            out.iter_mut().zip(self.index.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        Ok(())
    }
}
