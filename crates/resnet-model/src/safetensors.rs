//! Reading and writing safetensors files, strictly.
//!
//! The checks are those of the `safetensors` crate (offsets contiguous, sizes right, no hole; a fuzz target compares the
//! two), which keeps several copies of a header in memory and wants the file in one buffer. Added are what it leaves
//! open: duplicate names, names that cannot be printed, and byte-reproducible output.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::file::{Existing, SharedFile, write_atomically};
use crate::raw::{Bytes, Part, RawTensor};
use crate::{Error, Result};

/// The longest header that is read, in bytes; the reference implementation's limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// The longest tensor name, in bytes.
const MAX_NAME: usize = 4096;
/// The most tensors in a file.
const MAX_TENSORS: usize = 100_000;
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
    if file.len() < LEN_BYTES {
        return Err(invalid(format!("{} bytes are too few for a header length", file.len())));
    }
    let mut len = [0; LEN_BYTES as usize];
    file.read_at(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > file.len() - LEN_BYTES {
        return Err(invalid(format!("header of {len} bytes in a file of {}", file.len())));
    }
    let start = LEN_BYTES + len;
    let header = Header::parse(&*file, start)?;
    header.check_names()?;
    let Header { metadata, mut tensors } = header;
    // Tensors without elements may begin where others do; they keep their order.
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut place = |name: String, info: TensorInfo| {
        let (begin, stop) = info.data_offsets;
        if begin != end || stop < begin {
            return Err(invalid(format!(
                "`{name}` lies at {begin}..{stop}, expected it to begin at {end}, where the one before ends"
            )));
        }
        end = stop;
        let tensor = Part::new(file.clone(), start + begin as u64, (stop - begin) as u64)
            .and_then(|part| RawTensor::new(info.dtype, info.shape, Arc::new(part)));
        match tensor {
            Some(tensor) => Ok((name, tensor)),
            None if stop as u64 > file.len() - start => {
                Err(invalid(format!("the header tells of {stop} bytes, the file has {}", file.len() - start)))
            }
            None => Err(invalid(format!("`{name}` differs in size from its type and shape"))),
        }
    };
    let tensors = tensors.into_iter().map(|(name, info)| place(name, info)).collect::<Result<_>>()?;
    match file.len() - start {
        present if present == end as u64 => Ok(Contents { metadata, tensors }),
        present => Err(invalid(format!("the header tells of {end} bytes, the file has {present}"))),
    }
}

/// An error whose message may quote the file.
fn invalid(what: String) -> Error {
    Error::Safetensors(crate::escape(&what))
}

/// What a header says, in its order.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl Header {
    /// Parses the header, which ends at `end`, piece by piece: as a whole it could be larger than all else in memory.
    fn parse(file: &dyn Bytes, end: u64) -> Result<Header> {
        let mut input = BufReader::new(Piece { file, at: LEN_BYTES, end, failed: None });
        let mut json = serde_json::Deserializer::from_reader(&mut input);
        let header = json.deserialize_map(Entries).and_then(|header| json.end().map(|()| header));
        match (header, input.into_inner().failed) {
            (_, Some(failed)) => Err(failed.into()),
            (Ok(header), None) => Ok(header),
            (Err(e), None) => Err(invalid(format!("header: {e}"))),
        }
    }

    /// Refuses names that occur twice (JSON readers keep one of them in silence) or cannot be shown.
    fn check_names(&self) -> Result<()> {
        let mut names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let unfit = |name: &&&str| name.is_empty() || name.len() > MAX_NAME || name.contains('\0');
        if let Some(name) = names.iter().find(unfit) {
            return Err(invalid(format!("the tensor name is empty, too long or holds NUL: `{name}`")));
        }
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(invalid(format!("the name `{}` occurs twice", pair[0]))),
            None => Ok(()),
        }
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut metadata: Option<HashMap<String, String>> = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let found: Option<HashMap<String, String>> = map.next_value()?;
                if metadata.replace(found.unwrap_or_default()).is_some() {
                    return Err(A::Error::duplicate_field("__metadata__"));
                }
                continue;
            }
            if tensors.len() >= MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            tensors.push((name, map.next_value()?));
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// A part of a file as a stream. Remembers why reading failed: a parser makes a message of it.
struct Piece<'a> {
    file: &'a dyn Bytes,
    at: u64,
    end: u64,
    failed: Option<io::Error>,
}

impl Read for Piece<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (self.end - self.at).min(out.len() as u64);
        if let Err(e) = self.file.read_at(self.at, &mut out[..n as usize]) {
            let kind = e.kind();
            self.failed = Some(e);
            return Err(kind.into());
        }
        self.at += n;
        Ok(n as usize)
    }
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
        check(format!(r#"{{"a\u0000":{w}}}"#), 16, "holds NUL: `a\\u{0}`");
        check(format!(r#"{{"":{w}}}"#), 16, "is empty");
        check(r#"{"__metadata__":{"a":"b"},"__metadata__":{}}"#.into(), 0, "duplicate field");
        check(format!(r#"{{"a":{w},"b":{w}}}"#), 16, "`b` lies at 0..16, expected it to begin at 16");
        check("[]".into(), 0, "expected an object of tensors");
        check(format!(r#"{{"w":{}}}"#, "[".repeat(100_000)), 0, "header: ");
        for shape in ["[2,3]", "[4294967296,4294967296]"] {
            let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,16]}}}}"#);
            check(header, 16, "`w` differs in size from its type and shape");
        }
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
