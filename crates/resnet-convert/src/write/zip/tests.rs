use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use resnet_model::file::SharedFile;

use super::*;
use crate::source::zip;

/// A file in which zeros take no place, so that gigabytes of them cost little.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.iter().all(|&b| b == 0) {
            true => self.0.seek(SeekFrom::Current(bytes.len() as i64)).map(|_| bytes.len()),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

fn read(archive: &zip::ZipReader, name: &str) -> Vec<u8> {
    let bytes = archive.array(archive.get(name).unwrap()).unwrap();
    let mut out = vec![0; bytes.len() as usize];
    bytes.read_at(0, &mut out).unwrap();
    out
}

/// Two entries with `gap` zeros between them.
fn check(gap: u64) -> u64 {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut out = Sparse(file.reopen().unwrap());
    let mut archive = ZipWriter::new(&mut out);
    archive.entry("a", 3, |put| put(b"abc")).unwrap();
    let zeros = vec![0; 1 << 20];
    let fill = |put: &mut dyn FnMut(&[u8]) -> Result<()>| {
        let mut left = gap;
        while left > 0 {
            let n = left.min(zeros.len() as u64);
            put(&zeros[..n as usize])?;
            left -= n;
        }
        Ok(())
    };
    archive.entry("archive/data/0", gap, fill).unwrap();
    archive.entry("b", 4, |put| put(b"last")).unwrap();
    archive.finish().unwrap();

    let len = out.0.metadata().unwrap().len();
    let archive = zip::ZipReader::open(Arc::new(SharedFile::open(file.path()).unwrap())).unwrap();
    assert_eq!((read(&archive, "a"), read(&archive, "b")), (b"abc".to_vec(), b"last".to_vec()));
    assert_eq!(archive.get("archive/data/0").unwrap().size, gap);
    let mut magic = [0; 4];
    file.reopen().unwrap().read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"PK\x03\x04");
    len - gap
}

#[test]
fn entries_of_more_than_four_gigabytes_have_wide_fields() {
    let narrow = check(1000);
    // The file of 64-bit fields is larger by two extra fields, and the two records at its end.
    let wide = check((1 << 32) + 1000);
    assert!(wide > narrow + 70, "{wide}, {narrow}");
}

#[test]
fn an_entry_of_another_size_is_an_error() {
    let mut out = io::Cursor::new(Vec::new());
    let mut archive = ZipWriter::new(&mut out);
    assert!(archive.entry("a", 3, |put| put(b"ab")).is_err());
    assert!(archive.entry("a", 3, |put| put(b"abcd")).is_err());
}
