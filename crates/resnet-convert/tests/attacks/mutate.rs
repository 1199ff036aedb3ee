//! Truncated files, flipped bits and random edits: an error or the original tensors where a checksum covers them, and
//! at worst other values elsewhere.

use super::{Tensors, read};
use crate::build::legacy::Legacy;
use crate::build::pickle::{Storage, Tensor, sd, tensor_of};
use crate::build::safetensors::{st, w};
use crate::build::tar::Tar;
use crate::build::zip::{Pth, archive, pth};
use crate::build::{Random, f32s};

/// A small checkpoint with views, two types and shared storages.
fn rich() -> Pth {
    let half = Tensor {
        size: vec![2, 2],
        stride: vec![1, 2],
        storage: Storage::of("HalfStorage", "1", 4).id(),
        offset: 0,
    };
    let pickle = sd(&[
        ("a", Tensor::view(0, &[2, 2], &[2, 1]).code()),
        ("b", half.code()),
        ("c", Tensor::view(1, &[2], &[2]).code()),
    ]);
    let half = vec![1, 2, 3, 4, 5, 6, 7, 8];
    Pth { pickle, storages: vec![("0", f32s(&[1., 2., 3., 4.])), ("1", half)], ..Pth::default() }
}

/// As PyTorch writes it, with descriptors.
fn rich_zip() -> Vec<u8> {
    let mut entries = rich().entries();
    entries.iter_mut().for_each(|e| e.descriptor = true);
    archive(&entries)
}

fn legacy() -> Vec<u8> {
    let storages = vec![(4, f32s(&[1., 2., 3., 4.]))];
    Legacy { object: sd(&[("w", tensor_of(Storage::legacy()))]), storages, ..Legacy::default() }.bytes()
}

/// The tensors with unchanged bytes, or an error.
#[track_caller]
fn equal_or_error(file: &[u8], original: &Tensors, what: &str) {
    if let Ok((_, tensors)) = read(file) {
        assert_eq!(&tensors, original, "{what}");
    }
}

/// One to eight edits: bytes, lengths, copies, deletions.
fn edit(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = original.to_vec();
    for _ in 0..=random.below(8) {
        if file.is_empty() {
            break;
        }
        let at = random.below(file.len());
        match random.below(8) {
            0..=2 => file[at] = random.next() as u8,
            3 => file[at] ^= 1 << random.below(8),
            4 => file[at] = [0, 1, 0x7f, 0x80, 0xff, b'.', b'(', b'R'][random.below(8)],
            5 => file.truncate(at),
            6 => {
                let end = (at + random.below(16)).min(file.len());
                let copied = file[at..end].to_vec();
                let to = random.below(file.len());
                file.splice(to..to, copied);
            }
            _ => drop(file.drain(at..(at + random.below(8)).min(file.len()))),
        }
    }
    file
}

#[test]
fn z21_z22_a_zip_cut_or_with_a_bit_flipped() {
    let original = rich_zip();
    let tensors = read(&original).unwrap().1;
    for n in 0..original.len() {
        assert!(read(&original[..n]).is_err(), "cut at {n}");
        for bit in 0..8 {
            let mut file = original.clone();
            file[n] ^= 1 << bit;
            equal_or_error(&file, &tensors, &format!("bit {bit} of byte {n}"));
        }
    }
}

#[test]
fn streams_without_checksums_cut_or_with_a_bit_flipped() {
    for original in [legacy(), Tar::default().bytes(), st(&format!(r#"{{"w":{}}}"#, w()), &[1; 16])] {
        let (state, tensors) = read(&original).unwrap();
        for n in 0..original.len() {
            // The end blocks of a tar are optional.
            equal_or_error(&original[..n], &tensors, &format!("{}, cut at {n}", state.container));
            for bit in 0..8 {
                let mut file = original.clone();
                file[n] ^= 1 << bit;
                drop(read(&file));
            }
        }
    }
}

#[test]
fn twenty_thousand_edits_of_each_container() {
    let mut random = Random(1);
    let zip = rich_zip();
    let tensors = read(&zip).unwrap().1;
    for n in 0..20_000 {
        equal_or_error(&edit(&zip, &mut random), &tensors, &format!("edit {n}"));
    }
    for original in [legacy(), Tar::default().bytes(), st(&format!(r#"{{"w":{}}}"#, w()), &[1; 16])] {
        for _ in 0..20_000 {
            drop(read(&edit(&original, &mut random)));
        }
    }
}

/// Edits of the pickle itself, under a valid checksum.
#[test]
fn twenty_thousand_edits_of_the_pickle() {
    let mut random = Random(2);
    let original = rich().pickle;
    let mut good = 0;
    for _ in 0..20_000 {
        let file = Pth { pickle: edit(&original, &mut random), ..rich() };
        good += usize::from(read(&file.bytes()).is_ok());
    }
    // Enough files remain readable for the edits to reach the last steps.
    assert!((100..15_000).contains(&good), "{good}");
    for _ in 0..20_000 {
        let random_bytes: Vec<u8> = (0..random.below(60)).map(|_| random.next() as u8).collect();
        drop(read(&pth([b"\x80\x02".to_vec(), random_bytes, b".".to_vec()].concat())));
    }
}
