//! Valid checkpoints generated from the fuzzer's bytes, with known contents.

use super::{Tensors, read};
use crate::build::legacy::{self, Legacy};
use crate::build::npy;
use crate::build::pickle::{Storage, Tensor, dict, i, program, s};
use crate::build::safetensors::{st, tensor as described};
use crate::build::zip::{Entry, Pth, archive};

/// Random choices from the fuzzer's bytes; zeros at the end.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn coin(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

/// Storage class, numpy's and safetensors' names, bytes of an element.
type Kind = (&'static str, &'static str, &'static str, usize);

const KINDS: [Kind; 10] = [
    ("FloatStorage", "<f4", "F32", 4),
    ("HalfStorage", "<f2", "F16", 2),
    ("DoubleStorage", "<f8", "F64", 8),
    ("LongStorage", "<i8", "I64", 8),
    ("IntStorage", "<i4", "I32", 4),
    ("ShortStorage", "<i2", "I16", 2),
    ("CharStorage", "|i1", "I8", 1),
    ("ByteStorage", "|u1", "U8", 1),
    ("BoolStorage", "|b1", "BOOL", 1),
    ("BFloat16Storage", "", "BF16", 2),
];

struct Made {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Made {
    fn elements(&self) -> usize {
        self.bytes.len() / self.kind.3
    }
}

struct View {
    name: String,
    storage: usize,
    offset: usize,
    size: Vec<usize>,
    stride: Vec<usize>,
}

impl View {
    /// The elements in row-major order, one index after the other.
    fn gather(&self, storage: &Made) -> Vec<u8> {
        let item = storage.kind.3;
        let count: usize = self.size.iter().product();
        let mut out = Vec::new();
        for n in 0..count {
            let (mut rest, mut at) = (n, self.offset);
            for (&size, &stride) in self.size.iter().zip(&self.stride).rev() {
                at += rest % size * stride;
                rest /= size;
            }
            out.extend(&storage.bytes[at * item..(at + 1) * item]);
        }
        out
    }
}

fn row_major(size: &[usize]) -> Vec<usize> {
    (0..size.len()).map(|d| size[d + 1..].iter().product()).collect()
}

/// Storages, and views into them that stay inside.
fn make(dice: &mut Dice, views: bool) -> (Vec<Made>, Vec<View>) {
    let kinds = if views { KINDS.len() } else { KINDS.len() - 1 };
    let storages: Vec<Made> = (0..1 + dice.below(3))
        .map(|_| {
            let kind = KINDS[dice.below(kinds)];
            let elements = dice.below(40);
            Made { kind, bytes: (0..elements * kind.3).map(|n| dice.byte() ^ n as u8).collect() }
        })
        .collect();
    let view = |n: usize, dice: &mut Dice| {
        let storage = dice.below(storages.len());
        let available = storages[storage].elements();
        let mut size: Vec<usize> = (0..dice.below(5)).map(|_| dice.below(5)).collect();
        while !size.is_empty() && size.iter().product::<usize>() > available {
            size.pop();
        }
        // A scalar has one element.
        if size.is_empty() && available == 0 {
            size.push(0);
        }
        let mut stride = row_major(&size);
        let mut offset = 0;
        if views {
            if dice.coin() {
                size.reverse();
                stride.reverse();
            }
            if let Some(d) = dice.coin().then(|| dice.below(size.len().max(1))).filter(|&d| d < size.len()) {
                stride[d] = dice.below(3);
            }
            let span: usize = size.iter().zip(&stride).map(|(n, s)| n.saturating_sub(1) * s).sum();
            if span >= available && !size.contains(&0) {
                (size, stride) = (vec![0], vec![1]);
            } else if !size.contains(&0) {
                offset = dice.below(available - span);
            }
        }
        let part = ["w", "layer1.0.conv1.weight", "ö", "a b", "fc.bias", "\u{1b}[2J", "../x"][dice.below(7)];
        View { name: format!("{part}{n}"), storage, offset, size, stride }
    };
    let count = 1 + dice.below(5);
    let views = (0..count).map(|n| view(n, dice)).collect();
    (storages, views)
}

fn code(view: &View, storages: &[Made], legacy: bool) -> Vec<u8> {
    let made = &storages[view.storage];
    let storage = Storage {
        view: legacy.then(|| b"N".to_vec()),
        ..Storage::of(made.kind.0, &view.storage.to_string(), made.elements() as i64)
    };
    let signed = |dims: &[usize]| dims.iter().map(|&d| d as i64).collect::<Vec<_>>();
    let (size, stride) = (signed(&view.size), signed(&view.stride));
    Tensor { storage: storage.id(), offset: view.offset as i64, size, stride }.code()
}

/// Checksum coverage of a file: changes of covered parts must be detected.
#[derive(PartialEq)]
enum Checked {
    Nothing,
    /// All but the names of arrays: a zip archive has them twice, and both may change alike.
    Arrays,
    All,
}

/// Returns a file, its expected tensors, and its checksum coverage.
fn build(dice: &mut Dice) -> (Vec<u8>, Tensors, Checked) {
    let form = dice.below(6);
    let (storages, views) = make(dice, form < 3);
    let used = |n: usize| views.iter().any(|v| v.storage == n);
    let expected = |prefix: &str, v: &View| {
        (format!("{prefix}{}", v.name), v.size.clone(), v.gather(&storages[v.storage]))
    };
    let all = |prefix: &str| views.iter().map(|v| expected(prefix, v)).collect::<Tensors>();
    let object = |legacy: bool, wrapped: bool| {
        let items: Vec<_> = views.iter().map(|v| (s(&v.name), code(v, &storages, legacy))).collect();
        let inner = dict(&items);
        program(&[if wrapped { dict(&[(s("epoch"), i(3)), (s("state_dict"), inner)]) } else { inner }])
    };
    let wrapped = dice.coin();
    let prefix = if wrapped && form < 3 { "state_dict." } else { "" };
    match form {
        0 | 1 => {
            let big = dice.coin();
            let swapped = |made: &Made| {
                let mut bytes = made.bytes.clone();
                if big {
                    bytes.chunks_exact_mut(made.kind.3).for_each(<[u8]>::reverse);
                }
                bytes
            };
            let keys = ["0", "1", "2"];
            let kept = (0..storages.len()).map(|n| (keys[n], swapped(&storages[n])));
            let order = if big { b"big".to_vec() } else { b"little".to_vec() };
            let top = ["archive", "net", "ä"][dice.below(3)];
            let pth = Pth {
                top,
                pickle: object(false, wrapped),
                storages: kept.collect(),
                order: Some(order),
                ..Pth::default()
            };
            let mut entries = pth.entries();
            let descriptor = dice.coin();
            entries.iter_mut().for_each(|e| e.descriptor = descriptor);
            (archive(&entries), all(prefix), Checked::All)
        }
        2 => {
            let keys: Vec<String> = (0..storages.len()).filter(|&n| used(n)).map(|n| n.to_string()).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let kept = (0..storages.len()).filter(|&n| used(n)).map(|n| &storages[n]);
            let file = Legacy {
                object: object(true, wrapped),
                keys: legacy::keys(&keys),
                storages: kept.map(|m| (m.elements() as i64, m.bytes.clone())).collect(),
                ..Legacy::default()
            };
            (file.bytes(), all(prefix), Checked::Nothing)
        }
        3 => {
            let (mut header, mut data) = (Vec::new(), Vec::new());
            for view in &views {
                let (_, size, bytes) = expected("", view);
                let start = data.len();
                data.extend(bytes);
                let (start, end) = (start.to_string(), data.len().to_string());
                let dtype = storages[view.storage].kind.2;
                let name = serde_json::Value::from(view.name.as_str());
                header.push(format!("{name}:{}", described(dtype, &format!("{size:?}"), &start, &end)));
            }
            (st(&format!("{{{}}}", header.join(",")), &data), all(""), Checked::Nothing)
        }
        4 | 5 => {
            let array = |v: &View| {
                let kind = storages[v.storage].kind;
                let (name, size, bytes) = expected("", v);
                let (order, data) = match dice.coin() && kind.3 > 1 {
                    true => (kind.1.replace('<', ">"), {
                        let mut bytes = bytes;
                        bytes.chunks_exact_mut(kind.3).for_each(<[u8]>::reverse);
                        bytes
                    }),
                    false => (kind.1.to_owned(), bytes),
                };
                match dice.coin() {
                    // The transposed array in Fortran order is the same bytes.
                    true => {
                        let reversed: Vec<usize> = size.iter().rev().copied().collect();
                        let columns = column_major(&size, &data, kind.3);
                        let header = npy::header(&format!("'{order}'"), true, &npy::shape(&size));
                        let version = [1 + dice.below(3) as u8, 0];
                        assert_eq!(reversed.len(), size.len());
                        (name, npy::raw(version, &header, &columns))
                    }
                    false => (name, npy::npy(&order, &size, &data)),
                }
            };
            let arrays: Vec<_> = views.iter().map(array).collect();
            let method = if form == 5 { 8 } else { 0 };
            (npy::npz(&arrays, method), all(""), Checked::Arrays)
        }
        _ => unreachable!(),
    }
}

/// The elements with the first index running fastest.
fn column_major(size: &[usize], rows: &[u8], item: usize) -> Vec<u8> {
    let mut out = vec![0; rows.len()];
    let strides = row_major(size);
    for (n, element) in rows.chunks_exact(item).enumerate() {
        let (mut at, mut step) = (0, 1);
        for (&d, &stride) in size.iter().zip(&strides) {
            at += n / stride.max(1) % d * step;
            step *= d;
        }
        out[at * item..(at + 1) * item].copy_from_slice(element);
    }
    out
}

/// Checks that a valid checkpoint is read exactly.
pub(super) fn valid(data: &[u8]) {
    let (file, expected, _) = build(&mut Dice(data));
    let (_, found) = read(&file).expect("error for a valid file");
    assert_eq!(found, expected);
}

/// Checks that a valid checkpoint with one to eight edits is an error or, with checksums, is read exactly.
pub(super) fn mutated(data: &[u8]) {
    let (edits, rest) = data.split_at(data.len().min(24));
    let (mut file, expected, checked) = build(&mut Dice(rest));
    let mut dice = Dice(edits);
    for _ in 0..=dice.below(8) {
        if file.is_empty() {
            break;
        }
        let at = (dice.below(256) << 8 | dice.below(256)) % file.len();
        match dice.below(8) {
            0..=2 => file[at] = dice.byte(),
            3 => file[at] ^= 1 << dice.below(8),
            4 => file.truncate(at),
            5 => drop(file.drain(at..(at + dice.below(8)).min(file.len()))),
            6 => {
                let end = (at + dice.below(64)).min(file.len());
                let copied = file[at..end].to_vec();
                let to = dice.below(256) % file.len();
                file.splice(to..to, copied);
            }
            _ => {
                let other = archive(&[Entry::new("archive/data/0", [at as u8; 16])]);
                file.splice(at..at, other);
            }
        }
    }
    let Ok((state, found)) = read(&file) else { return };
    // A checksum of zero means no checksum.
    if state.notes.iter().any(|n| n.contains("without a checksum")) {
        return;
    }
    match checked {
        Checked::Nothing => {}
        Checked::Arrays => {
            let array = |(_, shape, bytes): &(String, Vec<usize>, Vec<u8>)| (shape.clone(), bytes.clone());
            let expected: Vec<_> = expected.iter().map(array).collect();
            assert!(
                found.iter().all(|tensor| expected.contains(&array(tensor))),
                "{found:?} of {expected:?}"
            );
        }
        Checked::All => assert_eq!(found, expected),
    }
}
