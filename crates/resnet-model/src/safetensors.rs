//! Reading and writing safetensors files, strictly.
//!
//! The `safetensors` crate judges the header (offsets contiguous, sizes right, no hole); added here are what it leaves
//! open: duplicate names, names that cannot be printed, tensors read one at a time from the file instead of from one
//! buffer, and byte-reproducible output.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::file::{Existing, SharedFile, write_atomically};
use crate::raw::{Bytes, Part, RawTensor};
use crate::{Error, Result};

/// The longest header that is read, in bytes; the reference implementation's limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// The longest tensor name, in bytes.
const MAX_NAME: usize = 4096;
const LEN_BYTES: u64 = 8;

/// What a safetensors file holds.
#[derive(Debug)]
pub struct Contents {
    /// The strings under `__metadata__`.
    pub metadata: HashMap<String, String>,
    /// The tensors in the order of their bytes.
    pub tensors: Vec<(String, RawTensor)>,
}

/// Reads the header of the safetensors file at `path`; the tensors are read when they are asked for.
pub fn open(path: &Path) -> Result<Contents> {
    SharedFile::open(path).map_err(Error::from).and_then(|file| read(Arc::new(file))).map_err(|e| e.at(path))
}

/// As [`open`], for bytes that are at hand already.
pub fn read(file: Arc<dyn Bytes>) -> Result<Contents> {
    // Messages may quote the file.
    let invalid = |what: String| Error::Safetensors(crate::error::escape(&what));
    if file.len() < LEN_BYTES {
        return Err(invalid(format!("{} bytes are too few for a header length", file.len())));
    }
    let mut len = [0; LEN_BYTES as usize];
    file.read_at(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > file.len() - LEN_BYTES {
        return Err(invalid(format!("header of {len} bytes in a file of {}", file.len())));
    }
    let mut header = vec![0; len as usize];
    file.read_at(LEN_BYTES, &mut header)?;
    let header = std::str::from_utf8(&header).map_err(|e| invalid(format!("header: {e}")))?;
    check_names(header)?;
    let header: Metadata = serde_json::from_str(header).map_err(|e| invalid(format!("header: {e}")))?;

    let start = LEN_BYTES + len;
    if start.checked_add(header.data_len() as u64) != Some(file.len()) {
        let present = file.len() - start;
        return Err(invalid(format!(
            "the header tells of {} bytes, the file has {present}",
            header.data_len()
        )));
    }
    let infos = header.tensors();
    let tensors = header.offset_keys().into_iter().map(|name| {
        let info = infos.get(&name).ok_or_else(|| invalid(format!("no entry for `{name}`")))?;
        let (begin, end) = info.data_offsets;
        let tensor = Part::new(file.clone(), start + begin as u64, (end - begin) as u64)
            .and_then(|part| RawTensor::new(info.dtype, info.shape.clone(), Arc::new(part)))
            .ok_or_else(|| invalid(format!("`{name}` differs in size from its type and shape")))?;
        Ok((name, tensor))
    });
    let tensors = tensors.collect::<Result<_>>()?;
    Ok(Contents { metadata: header.metadata().clone().unwrap_or_default(), tensors })
}

/// Refuses names that occur twice (JSON readers keep one of them in silence) or cannot be shown.
fn check_names(header: &str) -> Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object of tensors")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some((name, IgnoredAny)) = map.next_entry()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    let mut json = serde_json::Deserializer::from_str(header);
    let names = json.deserialize_map(Names);
    let names = names.map_err(|e| Error::Safetensors(crate::error::escape(&format!("header: {e}"))))?;
    let mut seen = HashSet::new();
    for name in &names {
        let shown = crate::error::escape(name);
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(Error::Safetensors(format!(
                "the tensor name `{shown}` is empty, too long or holds NUL"
            )));
        }
        if !seen.insert(name) {
            return Err(Error::Safetensors(format!("the name `{shown}` occurs twice")));
        }
    }
    Ok(())
}

/// Writes a safetensors file: to a temporary sibling, then renamed. Equal input gives equal bytes: tensors are ordered
/// by type and name as the reference implementation orders them, metadata by key.
///
/// `progress` is told the number of bytes written since the last call.
pub fn write(
    path: &Path,
    existing: Existing,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, RawTensor>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut ordered: Vec<(&String, &RawTensor)> = tensors.iter().collect();
    ordered.sort_by(|(a, s), (b, t)| t.dtype().cmp(&s.dtype()).then(a.cmp(b)));
    let header = header(metadata, &ordered)?;
    write_atomically(path, existing, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in ordered {
            tensor.for_each_chunk(|bytes| {
                out.write_all(bytes)?;
                progress(bytes.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    })
}

fn header(metadata: &BTreeMap<String, String>, tensors: &[(&String, &RawTensor)]) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::Safetensors(e.to_string());
    let mut map = serde_json::Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), serde_json::to_value(metadata).map_err(json)?);
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        let begin = offset;
        offset += tensor.byte_len() as usize;
        let info = TensorInfo {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data_offsets: (begin, offset),
        };
        map.insert((*name).clone(), serde_json::to_value(info).map_err(json)?);
    }
    let mut header = serde_json::to_vec(&map).map_err(json)?;
    // Tensor data starts at a multiple of 8 bytes, as readers that map the file expect.
    header.resize(header.len().next_multiple_of(LEN_BYTES as usize), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str, data: &[u8]) -> Result<Contents> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        std::fs::write(&path, bytes).unwrap();
        open(&path)
    }

    #[test]
    fn what_is_written_is_read_and_the_crate_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = BTreeMap::from([
            ("b".to_owned(), RawTensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap()),
            ("a".to_owned(), RawTensor::from_f32(vec![1], &[5.0]).unwrap()),
            ("n".to_owned(), RawTensor::scalar_i64(7)),
        ]);
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let mut written = 0;
        write(&path, Existing::Keep, &metadata, &tensors, &mut |n| written += n).unwrap();
        assert_eq!(written, 28);

        let contents = open(&path).unwrap();
        assert_eq!(contents.metadata["k"], "v");
        let names: Vec<_> = contents.tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["n", "a", "b"]);
        assert_eq!(contents.tensors[2].1.to_f32("b").unwrap(), [1.0, 2.0, 3.0, 4.0]);

        let bytes = std::fs::read(&path).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.tensor("n").unwrap().data(), 7i64.to_le_bytes());
        assert_eq!(theirs.tensor("b").unwrap().shape(), [2, 2]);
    }

    #[test]
    fn bad_headers_are_refused() {
        let w = r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
        let check = |header: String, data: usize, expected: &str| {
            let error = parse(&header, &vec![0; data]).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", &header[..header.len().min(80)]);
        };
        check(format!(r#"{{"w":{w},"w":{w}}}"#), 16, "`w` occurs twice");
        check(format!(r#"{{"w":{w}}}"#), 17, "tells of 16 bytes, the file has 17");
        check(format!(r#"{{"w":{w}}}"#), 15, "tells of 16 bytes, the file has 15");
        check(format!(r#"{{"a\u0000":{w}}}"#), 16, "holds NUL");
        check(format!(r#"{{"":{w}}}"#), 16, "is empty");
        check("[]".into(), 0, "expected an object of tensors");
        check(format!(r#"{{"w":{}}}"#, "[".repeat(100_000)), 0, "header: ");
        check(r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,16]}}"#.into(), 16, "header");
        check(
            r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#.into(),
            16,
            "header",
        );
    }

    #[test]
    fn header_lengths_are_checked_before_anything_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        for len in [3, u64::MAX, 1 << 40, MAX_HEADER + 1] {
            std::fs::write(&path, [&len.to_le_bytes()[..], b"{}"].concat()).unwrap();
            assert!(open(&path).unwrap_err().to_string().contains("header of"), "{len}");
        }
        std::fs::write(&path, b"1234567").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("too few"));
    }
}
