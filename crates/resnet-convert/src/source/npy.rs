//! Reader of `.npy` and `.npz` files: an array with a Python dictionary as its header, and zip archives of these.
//!
//! numpy evaluates the header as a Python literal; this parser accepts exactly the three keys that numpy writes.

use std::sync::Arc;

use resnet_model::escape;
use resnet_model::raw::{ByteRange, Bytes, Dtype};

use super::lazy::checksum;
use super::pickle::numpy;
use super::pickle::specs::{MAX_DIMS, MAX_TENSORS};
use super::tensors::{ArrayOrder, TensorBuilder};
use super::zip::ZipReader;
use super::{Format, MAX_NAME, StateDict};
use crate::error::{Code, Fault};

const MAGIC: &[u8] = b"\x93NUMPY";
/// numpy's limit.
const MAX_HEADER: u64 = 10_000;
/// Magic bytes, version and header length.
const MAX_PREAMBLE: u64 = 12;
/// Name of an unnamed array in `numpy.savez`.
const UNNAMED: &str = "arr_0";

pub(super) fn is_array(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Reads one array.
pub(super) fn read(bytes: Arc<dyn Bytes>) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(bytes.len());
    let mut into = StateDict::new(Format::Npy);
    let header = Header::read(&*bytes)?;
    let dtype = header.dtype.map_err(|found| {
        Fault::new(Code::Dtype, format!("unsupported dtype `{found}`, expected numbers or booleans"))
    })?;
    let data = part(bytes, header.len)?;
    into.tensors.push((UNNAMED.into(), maker.elements(dtype, header.layout, &header.shape, data)?));
    Ok(into)
}

/// Returns `true` if an entry has the name of an array.
pub(super) fn is_archive(archive: &ZipReader) -> bool {
    archive.entries.iter().any(|e| e.name.ends_with(b".npy"))
}

/// Reads an archive of arrays, named by their entries without `.npy`.
pub(super) fn read_archive(archive: &ZipReader, file_len: u64) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(file_len);
    let mut into = StateDict::new(Format::Npz);
    let mut others = 0usize;
    for entry in &archive.entries {
        let shown = entry.shown();
        let within = |fault: Fault| fault.within(&shown);
        let Some(name) = entry.name.strip_suffix(b".npy") else {
            others = others.saturating_add(1);
            continue;
        };
        if into.tensors.len() >= MAX_TENSORS {
            return Err(Fault::new(Code::Limit, format!("more than {MAX_TENSORS} arrays")));
        }
        let name = array_name(name).map_err(within)?;
        let bytes = archive.array(entry).map_err(within)?;
        let header = match entry.is_deflated() {
            // Only the header is inflated; the array is read lazily.
            true => Header::read(&archive.start_of(entry, MAX_PREAMBLE.saturating_add(MAX_HEADER))?),
            false => Header::read(&*bytes),
        };
        let header = header.map_err(within)?;
        match header.dtype {
            Ok(dtype) => {
                let data = part(bytes.clone(), header.len).map_err(within)?;
                // An empty array is never read, so its checksum is verified here.
                if data.is_empty() {
                    checksum(&*bytes).map_err(|e| within(e.into()))?;
                }
                let tensor = maker.elements(dtype, header.layout, &header.shape, data).map_err(within)?;
                into.tensors.push((name, tensor));
            }
            Err(found) => {
                // An unsupported array is never read, so the checksum of its header is verified here.
                checksum(&*bytes).map_err(|e| within(e.into()))?;
                into.unsupported.push((name, format!("array of dtype `{found}`")));
            }
        }
    }
    if into.tensors.is_empty() && into.unsupported.is_empty() {
        return Err(Fault::new(Code::Empty, "the archive has no arrays"));
    }
    if others > 0 {
        into.notes.push(format!("{others} entries that are not arrays were ignored"));
    }
    Ok(into)
}

fn part(bytes: Arc<dyn Bytes>, start: u64) -> Result<Arc<dyn Bytes>, Fault> {
    let len = bytes.len().saturating_sub(start);
    let part = ByteRange::new(bytes, start, len)
        .ok_or_else(|| Fault::new(Code::Eof, "unexpected end of data in the header"))?;
    Ok(Arc::new(part))
}

fn array_name(name: &[u8]) -> Result<String, Fault> {
    let bad = |what: &str| Fault::new(Code::Name, format!("invalid array name: {what}"));
    match std::str::from_utf8(name) {
        Err(_) => Err(bad("not UTF-8")),
        Ok("") => Err(bad("empty")),
        Ok(name) if name.len() > MAX_NAME => Err(bad(&format!("longer than {MAX_NAME} bytes"))),
        Ok(name) if name.contains('\0') => Err(bad("contains NUL")),
        Ok(name) => Ok(name.to_owned()),
    }
}

/// Header of an array.
struct Header {
    /// The dtype, or the unsupported type.
    dtype: Result<Dtype, String>,
    layout: ArrayOrder,
    shape: Vec<u64>,
    /// The offset of the elements.
    len: u64,
}

impl Header {
    /// Reads the header at the start of `bytes` sequentially, so that a checksum can be computed on the way.
    fn read(bytes: &dyn Bytes) -> Result<Header, Fault> {
        let mut at = 0u64;
        let mut take = |n: u64| {
            if at.checked_add(n).is_none_or(|end| end > bytes.len()) {
                return Err(Fault::new(Code::Eof, "unexpected end of data in the header").at(at));
            }
            let mut out = vec![0; n as usize];
            bytes.read_at(at, &mut out)?;
            at = at.saturating_add(n);
            Ok::<_, Fault>(out)
        };
        let magic = take(8)?;
        let &[major, minor] = magic.strip_prefix(MAGIC).unwrap_or_default() else {
            return Err(Fault::new(Code::Format, "invalid magic bytes of a numpy array").at(0));
        };
        let len = match (major, minor) {
            (1, 0) => take(2)?,
            (2 | 3, 0) => take(4)?,
            _ => {
                let detail = format!("unsupported npy version {major}.{minor}, expected 1.0, 2.0 or 3.0");
                return Err(Fault::new(Code::Version, detail).at(6));
            }
        };
        let len = len.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        if len > MAX_HEADER {
            return Err(Fault::new(
                Code::NpyHeader,
                format!("header of {len} bytes, the limit is {MAX_HEADER}"),
            )
            .at(8));
        }
        let text = take(len)?;
        let start = at.saturating_sub(len);
        let bad = |n: usize, what: &str| Fault::new(Code::NpyHeader, what).at(start.saturating_add(n as u64));
        let text = std::str::from_utf8(&text).map_err(|e| bad(e.valid_up_to(), "header is not UTF-8"))?;
        let mut parser = Parser { text: text.as_bytes(), at: 0 };
        let fields = parser.header();
        let (descr, fortran, shape) = fields.map_err(|what| bad(parser.at, &what))?;
        let (dtype, big_endian) = match descr {
            Descr::Text(text) => match numpy::dtype(&text) {
                Some((dtype, big_endian)) => (Ok(dtype), big_endian),
                None => (Err(escape(&text)), false),
            },
            Descr::Structured => (Err("[…]".to_owned()), false),
        };
        Ok(Header { dtype, layout: ArrayOrder { big_endian, fortran }, shape, len: at })
    }
}

enum Descr {
    Text(String),
    /// A list of fields.
    Structured,
}

/// Parser of the Python literals that numpy writes.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn step(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn blanks(&mut self) {
        while self.peek() == Some(b' ') {
            self.step();
        }
    }

    /// Consumes `byte` and the blanks around it. Returns `false` if it is not there.
    fn has(&mut self, byte: u8) -> bool {
        self.blanks();
        let found = self.peek() == Some(byte);
        if found {
            self.step();
            self.blanks();
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Parsed<()> {
        match self.has(byte) {
            true => Ok(()),
            false => Err(format!("expected `{}` in the header", char::from(byte))),
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes()));
        if found {
            self.at = self.at.saturating_add(word.len());
        }
        found
    }

    /// Parses `{'descr': …, 'fortran_order': …, 'shape': …, }`, blanks and the end of the line.
    fn header(&mut self) -> Parsed<(Descr, bool, Vec<u64>)> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.has(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let again = match key.as_str() {
                "descr" => descr.replace(self.descr()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                _ => return Err(format!("unexpected key `{}` in the header", escape(&key))),
            };
            if again {
                return Err(format!("duplicate key `{key}` in the header"));
            }
            if !self.has(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        self.blanks();
        let ends = self.peek() == Some(b'\n') && self.at.saturating_add(1) == self.text.len();
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) if ends => Ok((descr, fortran, shape)),
            (Some(_), Some(_), Some(_)) => Err("expected a line feed after the header".into()),
            _ => Err("the header lacks `descr`, `fortran_order` or `shape`".into()),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        let quote =
            self.peek().filter(|b| matches!(b, b'\'' | b'"')).ok_or("expected a string in the header")?;
        self.step();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&b| b == quote || b == b'\\' || b == b'\n');
        let text = len.and_then(|len| rest.split_at_checked(len));
        match text {
            Some((text, [end, ..])) if *end == quote => {
                self.at = self.at.saturating_add(text.len()).saturating_add(1);
                Ok(String::from_utf8_lossy(text).into_owned())
            }
            _ => Err("unterminated string or escape in the header".into()),
        }
    }

    fn descr(&mut self) -> Parsed<Descr> {
        if self.peek() != Some(b'[') {
            return self.string().map(Descr::Text);
        }
        // Structured types are unsupported: only the end is needed.
        let mut depth = 0usize;
        loop {
            match self.peek() {
                Some(b'\'' | b'"') => {
                    self.string()?;
                    continue;
                }
                Some(b'[' | b'(') => depth = depth.saturating_add(1),
                Some(b']' | b')') => depth = depth.saturating_sub(1),
                None => return Err("unterminated dtype in the header".into()),
                Some(_) => {}
            }
            self.step();
            if depth == 0 {
                return Ok(Descr::Structured);
            }
        }
    }

    fn boolean(&mut self) -> Parsed<bool> {
        match (self.word("True"), self.word("False")) {
            (true, _) => Ok(true),
            (_, true) => Ok(false),
            _ => Err("expected True or False in the header".into()),
        }
    }

    /// Parses `()`, `(3,)`, `(3, 4)`; Python 2 writes long integers with a suffix `L`.
    fn shape(&mut self) -> Parsed<Vec<u64>> {
        self.expect(b'(')?;
        let mut dims = Vec::new();
        let mut comma = true;
        while !self.has(b')') {
            if !comma {
                return Err("expected `,` in the shape".into());
            }
            if dims.len() >= MAX_DIMS {
                return Err(format!("more than {MAX_DIMS} dimensions"));
            }
            dims.push(self.number()?);
            comma = self.has(b',');
        }
        match dims.len() == 1 && !comma {
            true => Err("shape is not a tuple".into()),
            false => Ok(dims),
        }
    }

    fn number(&mut self) -> Parsed<u64> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let digits = rest.get(..len).unwrap_or_default();
        let number = std::str::from_utf8(digits).ok().filter(|d| len == 1 || !d.starts_with('0'));
        let number = number.and_then(|d| d.parse().ok()).ok_or("invalid dimension in the shape")?;
        self.at = self.at.saturating_add(len);
        if self.peek() == Some(b'L') {
            self.step();
        }
        Ok(number)
    }
}
