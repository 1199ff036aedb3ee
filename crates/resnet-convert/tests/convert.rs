//! Valid files of every format and dialect, and the reports on them.

mod command;
pub(crate) mod dialects;
mod golden;
pub(crate) mod shards;
mod torch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resnet_convert::{Conversion, ConvertOptions, Error, Float, Format, IdentifiedBy, Report};
use resnet_model::arch::{Arch, Block, ResNet, Shortcut};
use resnet_model::file::Existing;
use resnet_model::raw::Dtype;
use resnet_model::{Checkpoint, Labels, zoo};

use crate::build::network::{self, Named, by_name, small, tensors};
use crate::build::zip::set_central;

/// A file in a temporary folder.
pub(crate) struct File {
    dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn file(name: &str, bytes: &[u8]) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    File { dir, path }
}

impl File {
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The names of the files in the folder.
    pub(crate) fn folder(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Converts a file and opens the result.
pub(crate) fn convert(bytes: &[u8], options: &ConvertOptions) -> Result<(Checkpoint, Report), Error> {
    let file = file("in.pth", bytes);
    let output = file.dir().join("out.safetensors");
    let job = Conversion { input: &file.path, output: &output, existing: Existing::Keep, options };
    let mut done = 0;
    let report = resnet_convert::convert(job, &mut |p| {
        assert!(p.done > done && p.done <= p.total);
        done = p.done;
    })
    .inspect_err(|_| assert_eq!(file.folder(), ["in.pth"], "a failure leaves nothing"))?;
    let checkpoint = Checkpoint::open(&output).unwrap();
    // Read all tensors before the folder is deleted.
    let tensors = checkpoint.tensors().iter().map(|(name, t)| {
        let bytes = std::sync::Arc::new(t.read().unwrap());
        (name.clone(), resnet_model::RawTensor::new(t.dtype(), t.shape().to_vec(), bytes).unwrap())
    });
    Ok((Checkpoint::new(checkpoint.meta().clone(), tensors.collect()).unwrap(), report))
}

/// Converts a file and checks that it becomes `expected` of `arch`, bit for bit.
#[track_caller]
pub(crate) fn check(what: &str, bytes: &[u8], arch: &Arch, expected: &[Named]) -> Report {
    let (checkpoint, report) =
        convert(bytes, &ConvertOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(&checkpoint.meta().arch, arch, "{what}");
    let found: BTreeMap<_, _> = checkpoint
        .tensors()
        .iter()
        .map(|(name, t)| (name.clone(), (t.shape().to_vec(), t.read().unwrap())))
        .collect();
    assert!(found == by_name(expected), "{what}: other tensors than expected");
    report
}

#[test]
fn every_container_is_lossless() {
    let arch = small(Block::Bottleneck, 5);
    let tensors = tensors(&arch);
    let forms = [
        (Format::TorchZip, network::zip(&tensors, &[])),
        (Format::TorchZip, network::module(&tensors)),
        (Format::TorchLegacy, network::legacy(&tensors, &[])),
        (Format::TorchTar, network::tar(&tensors)),
        (Format::TorchScript, network::script(&tensors)),
        (Format::Pickle, network::arrays(&tensors, &["model"])),
        (Format::Safetensors, network::safetensors(&tensors)),
        (Format::Npz, network::npz(&tensors, 0)),
        (Format::Npz, network::npz(&tensors, 8)),
    ];
    for (container, bytes) in forms {
        let report = check(&container.to_string(), &bytes, &arch, &tensors);
        assert_eq!(report.container, container);
        assert_eq!((report.tensors, report.classes), (tensors.len(), Some(5)));
    }
}

#[test]
fn dtypes_are_kept_without_a_cast() {
    let arch = small(Block::Basic, 3);
    let mut mixed = tensors(&arch);
    for t in mixed.iter_mut().filter(|t| t.shape.len() > 1) {
        let halves = t.bytes.as_chunks::<4>().0.iter();
        let halves = halves.flat_map(|&b| half::f16::from_f32(f32::from_le_bytes(b)).to_le_bytes());
        (t.class, t.bytes) = ("HalfStorage", halves.collect());
    }
    let report = check("mixed", &network::zip(&mixed, &[]), &arch, &mixed);
    let halves = mixed.iter().filter(|t| t.class == "HalfStorage").count();
    assert_eq!(report.dtypes["F16"], halves);
    assert!(report.cast.is_none());

    let options = ConvertOptions { dtype: Some(Float::F32), ..ConvertOptions::default() };
    let (checkpoint, report) = convert(&network::zip(&mixed, &[]), &options).unwrap();
    assert_eq!(report.cast.unwrap().tensors, halves);
    let integers = checkpoint.tensors().values().filter(|t| t.dtype() == Dtype::I64).count();
    assert_eq!(integers, mixed.iter().filter(|t| t.class == "LongStorage").count(), "integers are not cast");
    let (name, expected) = ("fc.weight", mixed.iter().find(|t| t.name == "fc.weight").unwrap());
    let expected: Vec<f32> =
        expected.bytes.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect();
    assert_eq!(checkpoint.values(name).unwrap(), expected);
    assert_eq!(checkpoint.tensor(name).unwrap().dtype(), Dtype::F32);
}

#[test]
fn integer_weights_are_errors() {
    let mut odd = tensors(&small(Block::Basic, 3));
    let weight = odd.iter_mut().find(|t| t.name == "fc.weight").unwrap();
    (weight.class, weight.bytes) = ("LongStorage", vec![0; 3 * 16 * 8]);
    let error = convert(&network::zip(&odd, &[]), &ConvertOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`fc.weight` has dtype I64, expected F16, BF16, F32"), "{error}");
}

#[test]
fn architectures_are_identified_from_shapes() {
    let resnet = |change: fn(&mut ResNet)| {
        let mut net = match small(Block::Bottleneck, 4) {
            Arch::ResNet(net) => net,
            _ => unreachable!(),
        };
        change(&mut net);
        Arch::ResNet(net)
    };
    let nets = [
        resnet(|_| {}),
        resnet(|n| n.num_classes = 0),
        resnet(|n| n.in_channels = 1),
        resnet(|n| n.shortcut = Shortcut::ProjectionAll),
        resnet(|n| (n.groups, n.group_width) = (2, 32)),
        resnet(|n| n.group_width = 128),
        resnet(|n| n.stages[1].width = 24),
        resnet(|n| n.stages.push(n.stages[0])),
        resnet(|n| n.stages[0].block = Block::Basic),
        zoo::arch("resnet20_cifar").unwrap(),
        zoo::arch("resnet18").unwrap().with_classes(7),
    ];
    for arch in nets {
        check(&arch.to_string(), &network::zip(&tensors(&arch), &[]), &arch, &tensors(&arch));
    }
    let old: Vec<Named> =
        tensors(&small(Block::Basic, 2)).into_iter().filter(|t| t.class != "LongStorage").collect();
    check("no num_batches_tracked", &network::legacy(&old, &[]), &small(Block::Basic, 2), &old);
}

#[test]
fn assumptions_are_reported_and_names_override_them() {
    let plain = zoo::arch("plain18").unwrap().with_classes(2);
    let bytes = network::zip(&tensors(&plain), &[]);
    let report = check("plain18", &bytes, &plain, &tensors(&plain));
    assert_eq!(report.identified.by, IdentifiedBy::Assumed);
    assert_eq!(
        report.identified.assumed,
        [
            "no shortcuts",
            "no anti-aliasing",
            "max pooling in the stem",
            "global average pooling",
            "ReLU",
            "symmetric padding",
            "no dilation",
            "norm epsilon 1e-5"
        ]
    );
    assert!(report.to_string().contains("identified   the shapes; assumed: no shortcuts"), "{report}");

    // A name decides between networks of equal tensors, wherever it comes from.
    let blur = zoo::arch("resnetblur18").unwrap().with_classes(2);
    let bytes = network::zip(&tensors(&blur), &["state_dict"]);
    let report = check("unnamed", &bytes, &zoo::arch("resnet18").unwrap().with_classes(2), &tensors(&blur));
    assert_eq!(report.identified.alternatives, ["resnetblur18"]);
    let named = ConvertOptions { name: Some("resnetblur18.ra_in1k".into()), ..ConvertOptions::default() };
    let (checkpoint, report) = convert(&bytes, &named).unwrap();
    assert_eq!((&checkpoint.meta().arch, report.identified.by), (&blur, IdentifiedBy::Named));
    let named = network::zip_named(&tensors(&blur), "resnetblur18");
    let report = check("named by the file", &named, &blur, &tensors(&blur));
    assert_eq!(report.identified.evidence, "the shapes and the name `resnetblur18` under `arch` in the file");

    let bytes = network::zip(&tensors(&plain), &[]);
    let options = ConvertOptions { arch: Some(zoo::arch("plain18").unwrap()), ..ConvertOptions::default() };
    assert_eq!(convert(&bytes, &options).unwrap().0.meta().arch, plain);

    let wrong = ConvertOptions { arch: Some(zoo::arch("resnet34").unwrap()), ..ConvertOptions::default() };
    let error = convert(&network::zip(&tensors(&zoo::arch("resnet18").unwrap()), &[]), &wrong).unwrap_err();
    assert!(error.to_string().contains("do not match resnet34: 80 tensors missing"), "{error}");
}

#[test]
fn labels_must_fit() {
    let arch = small(Block::Basic, 3);
    let bytes = network::zip(&tensors(&arch), &[]);
    let names = |names: &[&str]| Some(Labels::Names(names.iter().map(|n| (*n).into()).collect()));
    let options = ConvertOptions { labels: names(&["a", "b", "c"]), ..ConvertOptions::default() };
    assert_eq!(convert(&bytes, &options).unwrap().0.meta().labels.len(), Some(3));
    let options = ConvertOptions { labels: names(&["a"]), ..ConvertOptions::default() };
    assert_eq!(
        convert(&bytes, &options).unwrap_err().to_string(),
        "labels: 1 label for a network with 3 classes"
    );
    let imagenet = small(Block::Basic, 1000);
    let meta = convert(&network::zip(&tensors(&imagenet), &[]), &ConvertOptions::default())
        .unwrap()
        .0
        .meta()
        .clone();
    assert_eq!(meta.labels, Labels::ImageNet1k);
    assert_eq!(meta.origin.file.as_deref(), Some("in.pth"));
}

#[test]
fn a_converted_file_converts_to_itself() {
    let arch = small(Block::Basic, 3);
    let (first, _) = convert(&network::zip(&tensors(&arch), &[]), &ConvertOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    first.save(&path, Existing::Keep, &mut |_| {}).unwrap();
    let (second, report) = resnet_convert::open(&path, &ConvertOptions::default()).unwrap();
    assert_eq!(second.meta(), first.meta());
    assert_eq!(report.dialect, "resnet");
    let again = dir.path().join("b.safetensors");
    second.save(&again, Existing::Keep, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn a_wrong_checksum_found_while_writing_leaves_nothing() {
    let tensors = tensors(&small(Block::Basic, 3));
    let bytes = network::zip(&tensors, &[]);
    let last = &tensors[tensors.len() - 2].bytes;
    let broken = crate::build::patch(&bytes, last, &[&[!last[0]], &last[1..]].concat());
    let error = convert(&broken, &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.code().unwrap().as_str(), "crc");
    assert!(error.to_string().contains("in.pth`: archive/data/"), "{error}");
    let moved = set_central(&bytes, "archive/version", 42, &[0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(
        convert(&moved, &ConvertOptions::default()).unwrap_err().code().unwrap().as_str(),
        "zip-bounds"
    );
}

#[test]
fn errors_list_the_tensors_of_unknown_networks() {
    let odd = [Named::f32("encoder.weight", &[3, 3], 0), Named::f32("decoder.weight\u{1b}", &[2], 1)];
    let error = convert(&network::zip(&odd, &[]), &ConvertOptions::default()).unwrap_err().to_string();
    assert!(error.contains("2 tensors that match no known network: `encoder.weight` [3, 3]"), "{error}");
    assert!(error.contains("decoder.weight\\u{1b}"), "{error}");
}

/// Another path to the input file counts as the input file.
#[test]
fn the_input_is_never_overwritten() {
    let bytes = network::safetensors(&tensors(&small(Block::Basic, 3)));
    let file = file("net.safetensors", &bytes);
    for output in [
        file.path.clone(),
        file.dir().join("../").join(file.dir().file_name().unwrap()).join("net.safetensors"),
    ] {
        let options = ConvertOptions::default();
        let job =
            Conversion { input: &file.path, output: &output, existing: Existing::Replace, options: &options };
        let error = resnet_convert::convert(job, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::SameFile(_)), "{error}");
    }
    assert_eq!(std::fs::read(&file.path).unwrap(), bytes);
}

#[test]
fn a_canceled_conversion_leaves_nothing() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let file = file("in.pth", &network::zip(&tensors(&small(Block::Basic, 3)), &[]));
    for name in ["out.safetensors", "out.pth", "out.onnx"] {
        let cancel = Arc::new(AtomicBool::new(false));
        let options = ConvertOptions { cancel: Some(cancel.clone()), ..ConvertOptions::default() };
        let output = file.dir().join(name);
        let conversion =
            Conversion { input: &file.path, output: &output, existing: Existing::Keep, options: &options };
        let result = resnet_convert::convert(conversion, &mut |_| cancel.store(true, Ordering::Relaxed));
        assert!(matches!(result, Err(Error::Canceled(_))), "{name}: {result:?}");
        assert_eq!(file.folder(), ["in.pth"], "{name}");
    }
}
