//! State dicts for PyTorch: reading them returns the same checkpoint.

use resnet_convert::{Conversion, ConvertOptions, Float, Format};
use resnet_model::arch::Block;
use resnet_model::file::Existing;
use resnet_model::{Checkpoint, Labels};

use super::{File, file};
use crate::build::network::{Named, small, tensors, zip};

/// `tensors` converted to `name`.
fn written(tensors: &[Named], name: &str, options: &ConvertOptions) -> File {
    let at = file("in.pth", &zip(tensors, &[]));
    let output = at.dir().join(name);
    let job = Conversion { input: &at.path, output: &output, existing: Existing::Keep, options };
    let mut done = 0;
    resnet_convert::convert(job, &mut |p| {
        assert!(p.done > done && p.done <= p.total);
        done = p.done;
    })
    .unwrap();
    at
}

fn same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.meta(), b.meta());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (name, expected) in a.tensors() {
        let found = b.tensor(name).unwrap();
        assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
        assert!(found.read().unwrap() == expected.read().unwrap(), "{name}");
    }
}

#[test]
fn a_state_dict_is_read_back_bit_for_bit() {
    let all = tensors(&small(Block::Bottleneck, 3));
    let old: Vec<Named> = all.iter().filter(|t| t.class != "LongStorage").cloned().collect();
    let labels = Labels::Names(["cat", "dog", "newt"].map(Into::into).to_vec());
    for (tensors, dtype) in [(&all, None), (&all, Some(Float::F16)), (&all, Some(Float::BF16)), (&old, None)]
    {
        let options = ConvertOptions { dtype, labels: Some(labels.clone()), ..ConvertOptions::default() };
        let at = written(tensors, "out.pth", &options);
        let (expected, _) = resnet_convert::open(&at.path, &options).unwrap();
        let (found, report) =
            resnet_convert::open(&at.dir().join("out.pth"), &ConvertOptions::default()).unwrap();
        assert_eq!(report.container, Format::TorchZip);
        assert!(report.notes.iter().all(|n| !n.contains("checksum")), "{:?}", report.notes);
        same(&expected, &found);
        let one = std::fs::read(at.dir().join("out.pth")).unwrap();
        let again = written(tensors, "out.pt", &options);
        assert!(one == std::fs::read(again.dir().join("out.pt")).unwrap(), "equal input, equal bytes");
    }
}

/// As written by `torch.save`: in network order, aligned to 64 bytes.
#[test]
fn storages_are_aligned_and_in_order() {
    let all = tensors(&small(Block::Basic, 3));
    let at = written(&all, "out.bin", &ConvertOptions::default());
    let bytes = std::fs::read(at.dir().join("out.bin")).unwrap();
    let mut start = 0;
    for (key, tensor) in all.iter().enumerate() {
        let name = format!("archive/data/{key}");
        let found = bytes[start..].windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        let header = start + found - 30;
        let extra = usize::from(u16::from_le_bytes([bytes[header + 28], bytes[header + 29]]));
        start = header + 30 + name.len() + extra;
        assert_eq!(start % 64, 0, "{name}");
        assert!(bytes[start..].starts_with(&tensor.bytes), "{name} is {}", tensor.name);
        start += tensor.bytes.len();
    }
}

/// Another program may have written the file: its metadata must match its tensors.
#[test]
fn inconsistent_metadata_is_rejected() {
    let at = written(&tensors(&small(Block::Basic, 3)), "out.pth", &ConvertOptions::default());
    let bytes = std::fs::read(at.dir().join("out.pth")).unwrap();
    let broken = crate::build::patch(&bytes, b"\"num_classes\":3", b"\"num_classes\":4");
    let bad = file("bad.pth", &broken);
    let error = resnet_convert::open(&bad.path, &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.code().unwrap().as_str(), "crc");
}
