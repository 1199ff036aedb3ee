//! Identifies every network of the zoo by the tensor names and shapes of timm and torchvision, from files with only a
//! header. `zoo_params.tsv` maps these names to those of the graphs.

use std::path::Path;
use std::sync::Arc;

use resnet_convert::{ConvertOptions, Report, source};
use resnet_model::param_specs::Role;
use resnet_model::zoo;

use crate::build::safetensors::{st, tensor};
use crate::build::sparse::Sparse;

type Shapes = Vec<(String, Vec<usize>, &'static str)>;

/// Returns a safetensors file of zero tensors.
fn zeros_file(shapes: &Shapes) -> Sparse {
    let mut end = 0;
    let entries = shapes.iter().map(|(name, shape, dtype)| {
        let start = end;
        end += shape.iter().product::<usize>() * if *dtype == "I64" { 8 } else { 4 };
        format!(r#""{name}":{}"#, tensor(dtype, &format!("{shape:?}"), &start.to_string(), &end.to_string()))
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let mut out = Sparse::default();
    out.put(st(&header, &[]));
    out.skip(end as u64);
    out
}

fn shapes(name: &str) -> Shapes {
    let params = zoo::arch(name).unwrap().graph().unwrap().param_specs();
    let dtype = |role| if role == Role::BatchesTracked { "I64" } else { "F32" };
    params.into_iter().map(|p| (p.name, p.shape, dtype(p.role))).collect()
}

/// Identifies a file of these tensors and checks that `name` is the result or one of the alternatives.
#[track_caller]
fn check(name: &str, shapes: &Shapes) -> Report {
    let state = source::read_bytes(Arc::new(zeros_file(shapes))).unwrap();
    let found =
        resnet_convert::build_checkpoint(state, Path::new("x.safetensors"), &ConvertOptions::default());
    let (_, report) = found.unwrap_or_else(|e| panic!("{name}: {e}"));
    let others = &report.identified.alternatives;
    assert!(report.model == name || others.iter().any(|o| o == name), "{name}: {report}");
    report
}

fn without(mut shapes: Shapes, end: &str) -> Shapes {
    shapes.retain(|(name, ..)| !name.ends_with(end));
    shapes
}

#[test]
fn published_names_of_every_network() {
    let mut uncertain = 0;
    for (name, _) in zoo::all() {
        let report = check(name, &shapes(name));
        assert!(report.dropped.is_empty() && report.renamed.is_empty(), "{report}");
        uncertain += usize::from(report.model != name);
    }
    assert!(uncertain <= 15, "{uncertain} networks are identified as another one");
}

/// Old torchvision weights have no `num_batches_tracked`; DataParallel and torch.compile add prefixes.
#[test]
fn older_files_and_wrapped_names() {
    for name in ["resnet18", "resnet50", "resnet152", "vgg16_bn", "resnext101_32x8d"] {
        let old = without(shapes(name), "num_batches_tracked");
        assert!(!check(name, &old).unset.is_empty(), "{name}");
        for prefix in ["module.", "_orig_mod.", "model.", "backbone."] {
            let wrapped = old.iter().map(|(n, s, d)| (format!("{prefix}{n}"), s.clone(), *d)).collect();
            assert_eq!(check(name, &wrapped).root, prefix);
        }
    }
}

/// torchvision's Inception v3 has an auxiliary classifier for training.
#[test]
fn auxiliary_heads_are_dropped() {
    let mut all = shapes("inception_v3");
    all.push(("AuxLogits.conv0.conv.weight".into(), vec![128, 768, 1, 1], "F32"));
    all.push(("AuxLogits.fc.weight".into(), vec![1000, 768], "F32"));
    assert_eq!(check("inception_v3", &all).dropped.len(), 2);
}

/// timm stores the first linear layers of VGG as convolutions.
#[test]
fn timm_vgg() {
    let renamed = shapes("vgg19").into_iter().map(|(name, shape, dtype)| {
        let shape = match (name.as_str(), shape.as_slice()) {
            ("classifier.0.weight", _) => vec![4096, 512, 7, 7],
            ("classifier.3.weight", _) => vec![4096, 4096, 1, 1],
            _ => shape,
        };
        let names = [
            ("classifier.0", "pre_logits.fc1"),
            ("classifier.3", "pre_logits.fc2"),
            ("classifier.6", "head.fc"),
        ];
        let name = names.iter().fold(name, |name, (from, to)| name.replace(from, to));
        (name, shape, dtype)
    });
    let report = check("vgg19", &renamed.collect());
    assert_eq!((report.dialect.as_str(), report.reshaped.len()), ("timm", 2));
}
