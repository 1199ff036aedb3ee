//! Builders of `.npy` and `.npz` files.

use super::zip::{Entry, archive};

/// A file of this version, header and data.
pub(crate) fn raw(version: [u8; 2], header: &str, data: &[u8]) -> Vec<u8> {
    let len = header.len() as u32;
    let len = if version[0] == 1 { (len as u16).to_le_bytes().to_vec() } else { len.to_le_bytes().to_vec() };
    [b"\x93NUMPY", &version[..], &len, header.as_bytes(), data].concat()
}

/// The header that numpy writes, padded as it does.
pub(crate) fn header(descr: &str, fortran: bool, shape: &str) -> String {
    let fortran = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}");
    let len = (text.len() + 11).next_multiple_of(64) - 10;
    format!("{text:<0$}\n", len - 1)
}

pub(crate) fn shape(dims: &[usize]) -> String {
    match dims {
        [one] => format!("({one},)"),
        dims => format!("({})", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// An array in C order.
pub(crate) fn npy(descr: &str, dims: &[usize], data: &[u8]) -> Vec<u8> {
    raw([1, 0], &header(&format!("'{descr}'"), false, &shape(dims)), data)
}

/// An archive of arrays; method 8 is `numpy.savez_compressed`.
pub(crate) fn npz(arrays: &[(String, Vec<u8>)], method: u16) -> Vec<u8> {
    let entry =
        |(name, data): &(String, Vec<u8>)| Entry { method, ..Entry::new(&format!("{name}.npy"), data) };
    archive(&arrays.iter().map(entry).collect::<Vec<_>>())
}
