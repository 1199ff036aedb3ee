//! Reading and writing of safetensors files.
//!
//! The `safetensors` crate keeps several copies of the header in memory and needs the file in one buffer. This reader makes
//! the same checks (contiguous offsets, matching sizes; a fuzz target compares the two), and rejects duplicate and
//! unprintable names as well. The output is reproducible byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::file::{Existing, SharedFile, write_atomically};
use crate::raw::{ByteRange, Bytes, RawTensor};
use crate::{Error, Result};

/// Maximum length of a header in bytes, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;
/// Maximum length of a tensor name in bytes.
const MAX_NAME: usize = 4096;
/// Maximum number of tensors, and of strings under `__metadata__`.
const MAX_TENSORS: usize = 100_000;
/// Maximum number of bytes of names and metadata, the part of a header that is kept in memory.
const MAX_TEXT: usize = 8 << 20;
/// Maximum number of dimensions of a tensor.
const MAX_DIMS: usize = 16;
const LEN_BYTES: u64 = 8;

/// The contents of a safetensors file.
#[derive(Debug)]
pub struct Contents {
    /// The strings under `__metadata__`.
    pub metadata: HashMap<String, String>,
    /// The tensors in the order of their offsets.
    pub tensors: Vec<(String, RawTensor)>,
}

/// Reads the header of the safetensors file at `path`; tensors are read on demand.
///
/// # Errors
///
/// [`Error::At`] with [`Error::Io`] or [`Error::Safetensors`].
pub fn open(path: &Path) -> Result<Contents> {
    SharedFile::open(path).map_err(Error::from).and_then(|file| read(Arc::new(file))).map_err(|e| e.at(path))
}

/// Like [`open`], for an open file or bytes in memory.
///
/// # Errors
///
/// [`Error::Io`] or [`Error::Safetensors`].
pub fn read(file: Arc<dyn Bytes>) -> Result<Contents> {
    if file.len() < LEN_BYTES {
        return Err(invalid(format!("file of {} bytes is too short for the header length", file.len())));
    }
    let mut len = [0; LEN_BYTES as usize];
    file.read_at(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > file.len() - LEN_BYTES {
        return Err(invalid(format!("header of {len} bytes in a file of {} bytes", file.len())));
    }
    let start = LEN_BYTES + len;
    let header = Header::parse(&*file, start)?;
    header.check_names()?;
    let Header { metadata, mut tensors } = header;
    // Stable: tensors without elements share their offset with the next.
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut place = |name: String, info: Info| {
        let (begin, stop) = info.data_offsets;
        if begin != end || stop < begin {
            return Err(invalid(format!(
                "`{name}` has the offsets {begin}..{stop}, expected them to start at {end}, the end of the previous tensor"
            )));
        }
        end = stop;
        let tensor = ByteRange::new(file.clone(), start + begin as u64, (stop - begin) as u64)
            .and_then(|range| RawTensor::new(info.dtype, info.shape.0, Arc::new(range)));
        match tensor {
            Some(tensor) => Ok((name, tensor)),
            None if stop as u64 > file.len() - start => Err(invalid(format!(
                "header declares {stop} bytes of tensors, the file has {}",
                file.len() - start
            ))),
            None => Err(invalid(format!("the size of `{name}` does not match its dtype and shape"))),
        }
    };
    let tensors = tensors.into_iter().map(|(name, info)| place(name, info)).collect::<Result<_>>()?;
    match file.len() - start {
        present if present == end as u64 => Ok(Contents { metadata, tensors }),
        present => Err(invalid(format!("header declares {end} bytes of tensors, the file has {present}"))),
    }
}

/// Creates an error whose reason may quote the file.
fn invalid(reason: String) -> Error {
    Error::Safetensors(crate::escape(&reason))
}

/// A parsed header, in the order of the file.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, Info)>,
}

/// The header entry of a tensor.
#[derive(Deserialize)]
#[serde(expecting = "a tensor's dtype, shape and data_offsets")]
struct Info {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() >= MAX_DIMS {
                        return Err(A::Error::custom(format!("more than {MAX_DIMS} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl Header {
    /// Parses the header, which ends at `end`, as a stream, because it may be much larger than what is kept of it.
    fn parse(file: &dyn Bytes, end: u64) -> Result<Header> {
        let mut input = BufReader::new(HeaderReader {
            file,
            at: LEN_BYTES,
            end,
            failed: None,
            strings: StringScanner::default(),
        });
        let mut json = serde_json::Deserializer::from_reader(&mut input);
        let header = json.deserialize_map(Entries).and_then(|header| json.end().map(|()| header));
        match (header, input.into_inner().failed) {
            (_, Some(failed)) => Err(failed),
            (Ok(header), None) => Ok(header),
            (Err(e), None) => Err(invalid(format!("header: {e}"))),
        }
    }

    /// Rejects duplicate names, of which JSON parsers silently keep one, and names that are empty, too long or contain NUL.
    fn check_names(&self) -> Result<()> {
        let mut names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let is_invalid = |name: &&&str| name.is_empty() || name.len() > MAX_NAME || name.contains('\0');
        if let Some(name) = names.iter().find(is_invalid) {
            return Err(invalid(format!("tensor name is empty, too long or contains NUL: `{name}`")));
        }
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(invalid(format!("duplicate tensor name `{}`", pair[0]))),
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
        let mut text = TextBudget { left: MAX_TEXT };
        while let Some(name) = map.next_key::<String>()? {
            text.spend(&name)?;
            if name == "__metadata__" {
                if metadata.replace(map.next_value_seed(&mut text)?).is_some() {
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

/// The remaining number of bytes of names and metadata; deserializes `__metadata__`.
struct TextBudget {
    left: usize,
}

impl TextBudget {
    fn spend<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        let left = self.left.checked_sub(text.len());
        self.left =
            left.ok_or_else(|| E::custom(format!("more than {MAX_TEXT} bytes of names and metadata")))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut TextBudget {
    type Value = HashMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for &mut TextBudget {
    type Value = HashMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(HashMap::new())
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(HashMap::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut strings = HashMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            self.spend(&key)?;
            self.spend(&value)?;
            if strings.len() >= MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} strings of metadata")));
            }
            strings.insert(key, value);
        }
        Ok(strings)
    }
}

/// A stream over the header. Keeps the error of a failed read, of which the parser keeps only the message. Fails at a string
/// of more than [`MAX_TEXT`] bytes, which the parser would collect before it could be checked.
struct HeaderReader<'a> {
    file: &'a dyn Bytes,
    at: u64,
    end: u64,
    failed: Option<Error>,
    strings: StringScanner,
}

impl Read for HeaderReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (self.end - self.at).min(out.len() as u64) as usize;
        let read = self.file.read_at(self.at, &mut out[..n]).map_err(Error::from);
        let fits = read.and_then(|()| match self.strings.advance(&out[..n]) {
            true => Ok(()),
            false => Err(invalid(format!("header: a string of more than {MAX_TEXT} bytes"))),
        });
        if let Err(e) = fits {
            self.failed = Some(e);
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Tracks the strings in a JSON stream.
#[derive(Default)]
struct StringScanner {
    inside: bool,
    escaped: bool,
    /// Bytes of the current string so far, with escapes.
    len: usize,
}

impl StringScanner {
    /// Advances over `bytes`; returns `false` if a string becomes too long.
    fn advance(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            self.len = if self.inside { self.len + 1 } else { 0 };
            if self.len > MAX_TEXT {
                return false;
            }
            match (self.inside, self.escaped, byte) {
                (true, true, _) => self.escaped = false,
                (true, false, b'\\') => self.escaped = true,
                (_, _, b'"') => self.inside = !self.inside,
                _ => {}
            }
        }
        true
    }
}

/// Writes a safetensors file atomically. Equal input results in equal bytes: tensors are ordered by dtype and name, as in the
/// reference implementation, and metadata by key.
///
/// Calls `progress` with the number of bytes written since the last call.
///
/// # Errors
///
/// [`Error::Exists`], or [`Error::At`] with an error of writing the file or reading the tensors.
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
    // Readers that map the file expect tensor data at a multiple of 8 bytes.
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
    fn files_round_trip_and_the_safetensors_crate_reads_them() {
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
    fn invalid_headers_are_errors() {
        let w = r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
        let check = |header: String, data: usize, expected: &str| {
            let error = parse(&header, &vec![0; data]).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", &header[..header.len().min(80)]);
        };
        check(format!(r#"{{"w":{w},"w":{w}}}"#), 16, "duplicate tensor name `w`");
        check(format!(r#"{{"w":{w}}}"#), 17, "declares 16 bytes of tensors, the file has 17");
        check(format!(r#"{{"w":{w}}}"#), 15, "declares 16 bytes of tensors, the file has 15");
        check(format!(r#"{{"a\u0000":{w}}}"#), 16, "contains NUL: `a\\u{0}`");
        check(format!(r#"{{"":{w}}}"#), 16, "is empty");
        check(r#"{"__metadata__":{"a":"b"},"__metadata__":{}}"#.into(), 0, "duplicate field");
        check(
            format!(r#"{{"a":{w},"b":{w}}}"#),
            16,
            "`b` has the offsets 0..16, expected them to start at 16",
        );
        check("[]".into(), 0, "expected an object of tensors");
        check(format!(r#"{{"w":{}}}"#, "[".repeat(100_000)), 0, "header: ");
        for shape in ["[2,3]", "[4294967296,4294967296]"] {
            let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,16]}}}}"#);
            check(header, 16, "the size of `w` does not match its dtype and shape");
        }
    }

    #[test]
    fn the_memory_for_a_header_is_bounded() {
        let w = |shape: &str| format!(r#""w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}"#);
        let check = |header: String, expected: &str| {
            let error = parse(&header, &[0; 4]).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", &header[..80]);
        };
        let ones = |n: usize| w(&format!("[{}]", vec!["1"; n].join(",")));
        check(format!("{{{}}}", ones(17)), "more than 16 dimensions");
        assert_eq!(parse(&format!("{{{}}}", ones(16)), &[0; 4]).unwrap().tensors[0].1.shape(), [1; 16]);
        let long = r#"\""#.repeat(MAX_TEXT / 2 + 1);
        check(format!(r#"{{"{long}":1,{}}}"#, w("[1]")), "more than 8388608 bytes");
        check(
            format!(r#"{{"__metadata__":{{"a":"{long}"}},{}}}"#, w("[1]")),
            "a string of more than 8388608 bytes",
        );
        let half = "x".repeat(MAX_TEXT / 2);
        check(
            format!(r#"{{"__metadata__":{{"a":"{half}","b":"{half}"}},{}}}"#, w("[1]")),
            "names and metadata",
        );
        let many: Vec<String> = (0..=MAX_TENSORS).map(|i| format!(r#""{i}":"""#)).collect();
        check(
            format!(r#"{{"__metadata__":{{{}}},{}}}"#, many.join(","), w("[1]")),
            "100000 strings of metadata",
        );
        let none = parse(&format!(r#"{{"__metadata__":null,{}}}"#, w("[1]")), &[0; 4]).unwrap();
        assert!(none.metadata.is_empty());
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
        assert!(open(&path).unwrap_err().to_string().contains("too short"));
    }
}
