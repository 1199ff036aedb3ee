use resnet_model::arch::{
    Arch, Attention, Block, Clip, Norm, ResNet, ResNetV2, Shortcut, StageV2, Stem, StemV2, StrideIn,
};

use super::Case;
use crate::build::network::{Named, renamed, small, tensors};
use crate::convert::dialects::hugging_face;

fn resnet(block: Block, classes: usize) -> ResNet {
    match small(block, classes) {
        Arch::ResNet(net) => net,
        _ => unreachable!(),
    }
}

/// Returns a case that only renames tensors.
fn case(dialect: &'static str, arch: Arch, rename: impl Fn(&str) -> String) -> Case {
    let expected = tensors(&arch);
    Case { dialect, file: renamed(&expected, rename), arch, expected }
}

fn same(dialect: &'static str, arch: Arch) -> Case {
    case(dialect, arch, str::to_owned)
}

/// Adds tensors to the file that the conversion drops.
fn with_extra(mut case: Case, names: &[&str]) -> Case {
    case.file.extend(names.iter().map(|name| Named::f32(name, &[4, 64], 3)));
    case
}

fn without_counters(tensors: Vec<Named>) -> Vec<Named> {
    tensors.into_iter().filter(|t| t.class != "LongStorage").collect()
}

pub(super) fn torchvision() -> Case {
    same("torchvision", small(Block::Bottleneck, 5))
}

pub(super) fn timm() -> Case {
    let net = resnet(Block::Bottleneck, 5);
    let attention = Attention::Se { reduction: 4 };
    let stem = Stem::Deep { widths: [4, 6, 8] };
    same("timm", Arch::ResNet(ResNet { stem, shortcut: Shortcut::AvgProjection, attention, ..net }))
}

fn v2() -> ResNetV2 {
    let stages = [(1, 32), (2, 64)].map(|(depth, channels)| StageV2 { depth, channels }).to_vec();
    ResNetV2 {
        stem: StemV2::Conv7 { width: 8 },
        stages,
        num_classes: 5,
        ..ResNetV2::imagenet(Block::Bottleneck, &[])
    }
}

pub(super) fn timm_v2() -> Case {
    same("timm", Arch::ResNetV2(v2()))
}

fn clip() -> Arch {
    Arch::Clip(Clip { depths: vec![2, 1], ..Clip::new(8, [0; 4], 64, 6) })
}

pub(super) fn timm_clip() -> Case {
    same("timm", clip())
}

/// The image encoder, with tensors of the text encoder.
pub(super) fn openai_clip() -> Case {
    let rename = |n: &str| {
        let n = n.replace("shortcut.conv.conv", "downsample.0").replace("shortcut.conv.bn", "downsample.1");
        let parts: Vec<&str> = n.split('.').collect();
        let unit = |unit: &str, kind: &str| match kind {
            "conv" => unit.replace("_1x1", "").replace("_kxk", ""),
            _ => unit.replace("conv", "bn").replace("_1x1", "").replace("_kxk", ""),
        };
        let inner = match parts[..] {
            ["stem", conv, kind, leaf] => format!("{}.{leaf}", unit(conv, kind)),
            ["stages", s, b, "downsample", i, leaf] => {
                format!("layer{}.{b}.downsample.{i}.{leaf}", s.parse::<usize>().unwrap() + 1)
            }
            ["stages", s, b, conv, kind, leaf] => {
                format!("layer{}.{b}.{}.{leaf}", s.parse::<usize>().unwrap() + 1, unit(conv, kind))
            }
            ["head", "pos_embed"] => "attnpool.positional_embedding".into(),
            ["head", "proj", leaf] => format!("attnpool.c_proj.{leaf}"),
            ["head", letter, leaf] => format!("attnpool.{letter}_proj.{leaf}"),
            _ => unreachable!("{n}"),
        };
        format!("visual.{inner}")
    };
    let text = ["transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight", "text_projection"];
    with_extra(case("OpenAI CLIP", clip(), rename), &text)
}

pub(super) fn transformers() -> Case {
    case("Hugging Face transformers", small(Block::Bottleneck, 5), |n| hugging_face(n, "resnet."))
}

pub(super) fn transformers_body() -> Case {
    case("Hugging Face transformers", small(Block::Basic, 0), |n| hugging_face(n, ""))
}

/// Splits a name into stage, block and rest.
fn parts(name: &str) -> Option<(usize, &str, &str)> {
    let (stage, rest) = name.strip_prefix("layer")?.split_once('.')?;
    let (block, rest) = rest.split_once('.')?;
    Some((stage.parse().unwrap(), block, rest))
}

fn stride_first(classes: usize) -> Arch {
    Arch::ResNet(ResNet { stride_in: StrideIn::Conv1x1, ..resnet(Block::Bottleneck, classes) })
}

pub(super) fn detectron2() -> Case {
    let rename = |n: &str| match parts(n) {
        Some((stage, block, rest)) => {
            let rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm");
            let rest = match rest.strip_prefix("bn") {
                Some(norm) => format!("conv{}.norm{}", &norm[..1], &norm[1..]),
                None => rest,
            };
            format!("backbone.bottom_up.res{}.{block}.{rest}", stage + 1)
        }
        None if n.starts_with("bn1") => n.replace("bn1", "backbone.bottom_up.stem.conv1.norm"),
        None => n.replace("conv1", "backbone.bottom_up.stem.conv1"),
    };
    let mut case = case("Detectron2", stride_first(0), rename);
    (case.file, case.expected) = (without_counters(case.file), without_counters(case.expected));
    with_extra(case, &["backbone.fpn_lateral2.weight", "roi_heads.box_head.fc1.weight", "pixel_mean"])
}

/// Norms with only scale and shift become norms with mean 0 and variance plus epsilon 1.
pub(super) fn caffe2() -> Case {
    let arch = stride_first(5);
    let mut expected = without_counters(tensors(&arch));
    for t in &mut expected {
        let value = match &t.name {
            n if n.ends_with("running_mean") => 0.0f32,
            n if n.ends_with("running_var") => (1.0 - 1e-5) as f32,
            _ => continue,
        };
        t.bytes = value.to_le_bytes().repeat(t.shape[0]);
    }
    let blob = |n: &str| {
        let (module, leaf) = n.rsplit_once('.').unwrap();
        let leaf = if leaf == "weight" && !module.contains("bn") && !module.ends_with("downsample.1") {
            "w"
        } else if leaf == "weight" {
            "s"
        } else {
            "b"
        };
        let module = match parts(module) {
            Some((stage, block, rest)) => {
                let rest = rest.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn");
                let mut rest = rest.replace("conv", "branch2");
                if let Some(norm) = rest.strip_prefix("bn") {
                    rest = format!("branch2{norm}_bn");
                }
                let rest = rest
                    .replace("branch21", "branch2a")
                    .replace("branch22", "branch2b")
                    .replace("branch23", "branch2c");
                format!("res{}_{block}_{rest}", stage + 1)
            }
            None => module.replace("bn1", "res_conv1_bn").replace("fc", "pred"),
        };
        format!("{module}_{leaf}")
    };
    let file: Vec<Named> = expected.iter().filter(|t| !t.name.contains("running")).cloned().collect();
    let case = Case { dialect: "Caffe2", file: renamed(&file, blob), arch, expected };
    with_extra(case, &["res2_0_branch2a_w_momentum"])
}

/// `[out, in, height, width]` as `[height, width, in, out]`, and transposed matrices.
fn tensorflow(t: &Named) -> Named {
    let values = t.bytes.as_chunks::<4>().0;
    let (shape, order): (Vec<usize>, Vec<usize>) = match t.shape[..] {
        [o, i] => (vec![i, o], (0..o * i).map(|at| at % o * i + at / o).collect()),
        [o, i, h, w] => {
            let source = |at: usize| {
                let (out, at) = (at % o, at / o);
                let (input, at) = (at % i, at / i);
                (out * i + input) * h * w + at
            };
            (vec![h, w, i, o], (0..o * i * h * w).map(source).collect())
        }
        _ => return t.clone(),
    };
    Named { shape, bytes: order.into_iter().flat_map(|at| values[at]).collect(), ..t.clone() }
}

/// Returns TensorFlow's name of a tensor of a module.
fn leaf(name: &str) -> String {
    let (module, leaf) = name.rsplit_once('.').unwrap();
    let norm = module.contains("bn") || module.contains("norm") || module.ends_with("downsample.1");
    let leaf = match (leaf, norm) {
        ("weight", true) => "gamma",
        ("bias", true) => "beta",
        ("weight", false) => "kernel",
        ("running_mean", _) => "moving_mean",
        ("running_var", _) => "moving_variance",
        (other, _) => other,
    };
    format!("{module}/{leaf}")
}

/// Biases of convolutions are subtracted from the means of the norms.
pub(super) fn keras() -> Case {
    let Arch::ResNet(net) = stride_first(5) else { unreachable!() };
    let arch = Arch::ResNet(ResNet { norm_eps: 1.001e-5, ..net });
    let expected = without_counters(tensors(&arch));
    let rename = |n: &str| {
        let n = leaf(n);
        let (module, leaf) = n.split_once('/').unwrap();
        let module = match parts(module) {
            Some((stage, block, rest)) => {
                let rest = rest.replace("downsample.0", "0_conv").replace("downsample.1", "0_bn");
                let rest = match (rest.strip_prefix("conv"), rest.strip_prefix("bn")) {
                    (Some(i), _) => format!("{i}_conv"),
                    (_, Some(i)) => format!("{i}_bn"),
                    _ => rest,
                };
                format!("conv{}_block{}_{rest}", stage + 1, block.parse::<usize>().unwrap() + 1)
            }
            None => {
                module.replace("conv1", "conv1_conv").replace("bn1", "conv1_bn").replace("fc", "predictions")
            }
        };
        format!("{module}/{leaf}:0")
    };
    let mut file: Vec<Named> = renamed(&expected, rename).iter().map(tensorflow).collect();
    // The mean of the stem is the bias plus 1.
    let mean = file.iter_mut().find(|t| t.name == "conv1_bn/moving_mean:0").unwrap();
    let bias =
        Named { name: "conv1_conv/bias:0".into(), bytes: 0.5f32.to_le_bytes().repeat(8), ..mean.clone() };
    let shifted = mean.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b) + 0.5);
    mean.bytes = shifted.flat_map(f32::to_le_bytes).collect();
    file.push(bias);
    Case { dialect: "Keras", file, arch, expected }
}

pub(super) fn bit() -> Case {
    let stages = [(1, 128), (2, 256)].map(|(depth, channels)| StageV2 { depth, channels }).to_vec();
    let net = ResNetV2 { stages, norm: Norm::Group, standardize: Some(1e-8), ..v2() };
    let arch = Arch::ResNetV2(ResNetV2 { stem: StemV2::Conv7ZeroPadded { width: 32 }, ..net });
    let expected = tensors(&arch);
    let rename = |n: &str| {
        let n = leaf(n);
        let (module, leaf) = n.split_once('/').unwrap();
        let module = match module.split('.').collect::<Vec<_>>()[..] {
            ["stem", "conv"] => "root_block/standardized_conv2d".to_owned(),
            ["norm"] => "group_norm".to_owned(),
            ["head", "fc"] => "head/conv2d".to_owned(),
            ["stages", s, "blocks", b, ref rest @ ..] => {
                let (s, b) = (s.parse::<usize>().unwrap() + 1, b.parse::<usize>().unwrap() + 1);
                let letter = |i: &str| ["a", "b", "c"][i.parse::<usize>().unwrap() - 1];
                let unit = match rest {
                    ["downsample", "conv"] => "a/proj/standardized_conv2d".to_owned(),
                    [one] if one.starts_with("norm") => format!("{}/group_norm", letter(&one[4..])),
                    [one] => format!("{}/standardized_conv2d", letter(&one[4..])),
                    _ => unreachable!("{module}"),
                };
                format!("block{s}/unit{b:02}/{unit}")
            }
            _ => unreachable!("{module}"),
        };
        format!("resnet/{module}/{leaf}")
    };
    let file = renamed(&expected, rename).iter().map(tensorflow).collect();
    Case { dialect: "BiT", file, arch, expected }
}

pub(super) fn openmmlab() -> Case {
    let rename = |n: &str| if n.starts_with("fc") { format!("head.{n}") } else { format!("backbone.{n}") };
    case("OpenMMLab", small(Block::Bottleneck, 5), rename)
}

fn body(dialect: &'static str, prefix: &str, others: &[&str]) -> Case {
    with_extra(case(dialect, small(Block::Bottleneck, 0), |n| format!("{prefix}{n}")), others)
}

/// Adds a second copy of the network with zeros.
fn shadowed(mut case: Case, prefix: &str) -> Case {
    let zeros = |t: &Named| Named { bytes: vec![0; t.bytes.len()], ..t.clone() };
    let copy: Vec<Named> = case.expected.iter().map(zeros).collect();
    case.file.splice(0..0, renamed(&copy, |n| format!("{prefix}{n}")));
    case
}

pub(super) fn moco() -> Case {
    let heads = ["module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.weight", "module.queue"];
    shadowed(body("MoCo", "module.encoder_q.", &heads), "module.encoder_k.")
}

pub(super) fn moco_v3() -> Case {
    let heads = ["module.base_encoder.fc.0.weight", "module.predictor.0.weight"];
    shadowed(body("MoCo v3", "module.base_encoder.", &heads), "module.momentum_encoder.")
}

pub(super) fn swav() -> Case {
    body("SwAV", "module.", &["module.projection_head.0.weight", "module.prototypes.weight"])
}

pub(super) fn dino() -> Case {
    let heads =
        ["teacher.head.mlp.0.weight", "teacher.head.last_layer.weight_g", "student.module.head.mlp.0.weight"];
    shadowed(body("torchvision", "teacher.backbone.", &heads), "student.module.backbone.")
}

pub(super) fn byol() -> Case {
    let heads = [
        "online_encoder.projector.0.weight",
        "online_predictor.0.weight",
        "target_encoder.projector.0.weight",
    ];
    shadowed(body("torchvision", "online_encoder.net.", &heads), "target_encoder.net.")
}

pub(super) fn barlow_twins() -> Case {
    body("torchvision", "module.backbone.", &["module.projector.0.weight", "module.bn.running_mean"])
}

pub(super) fn lightning() -> Case {
    let others = ["optimizer_states.0.state.0.exp_avg", "callbacks.best"];
    let case = case("torchvision", small(Block::Basic, 5), |n| format!("state_dict.model.{n}"));
    with_extra(case, &others)
}

pub(super) fn cifar() -> Case {
    let net = ResNet { stem: Stem::Conv3 { width: 8 }, ..resnet(Block::Basic, 10) };
    let rename = |n: &str| n.replace("fc.", "linear.").replace(".downsample.", ".shortcut.");
    case("CIFAR", Arch::ResNet(net), rename)
}

pub(super) fn children() -> Case {
    let stage = |block, width| resnet_model::arch::Stage { block, depth: 1, width };
    let stages = [8, 12, 16, 20].map(|width| stage(Block::Basic, width)).to_vec();
    let rename = |n: &str| {
        let n = n.replacen("conv1.", "0.", usize::from(n.starts_with("conv1")));
        let n = n.replacen("bn1.", "1.", usize::from(n.starts_with("bn1")));
        let n = if n.starts_with("fc.") { n.replacen("fc.", "9.", 1) } else { n };
        (1..=4).fold(n, |n, i| n.replace(&format!("layer{i}."), &format!("{}.", i + 3)))
    };
    case(
        "torchvision, nn.Sequential of children",
        Arch::ResNet(ResNet { stages, ..resnet(Block::Basic, 5) }),
        rename,
    )
}

/// Uninformative names, in the order of `state_dict()`.
pub(super) fn unknown() -> Case {
    let mut arch = resnet_model::zoo::arch("test_resnet").unwrap().with_classes(5);
    if let Arch::ResNet(net) = &mut arch {
        net.in_channels = 1;
    }
    let expected = without_counters(tensors(&arch));
    let mut modules: Vec<&str> = Vec::new();
    let mut file = Vec::new();
    for t in &expected {
        let (module, leaf) = t.name.rsplit_once('.').unwrap();
        if modules.last() != Some(&module) {
            modules.push(module);
        }
        let leaf = leaf.replace("weight", "w").replace("bias", "b").replace("running_", "");
        file.push(Named { name: format!("net.op_{:03}.{leaf}", modules.len() * 7 % 1000), ..t.clone() });
    }
    Case { dialect: "unknown", file, arch, expected }
}
