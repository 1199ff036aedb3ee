//! The hash that an ETag promises, computed while bytes pass.

use std::fs::File;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::names::Etag;

/// A running hash of one file.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    /// The hash that `etag` is one of, for a file of `size` bytes.
    pub(super) fn new(etag: &Etag, size: u64) -> Self {
        match etag {
            Etag::Sha256(_) => Self::Sha256(Sha256::new()),
            Etag::GitSha1(_) => {
                // A git blob id covers a header in front of the content.
                let mut hash = Sha1::new();
                hash.update(format!("blob {size}\0"));
                Self::GitSha1(hash)
            }
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    pub(super) fn hex(self) -> String {
        fn text(bytes: &[u8]) -> String {
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        }
        match self {
            Self::Sha256(hash) => text(&hash.finalize()),
            Self::GitSha1(hash) => text(&hash.finalize()),
        }
    }
}

/// The hash of a whole file, of the kind of `etag`.
pub(super) fn of_file(mut file: File, etag: &Etag) -> io::Result<String> {
    let mut hasher = Hasher::new(etag, file.metadata()?.len());
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.hex()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let check = |etag: Etag, content: &[u8]| {
            let mut hasher = Hasher::new(&etag, content.len() as u64);
            content.chunks(2).for_each(|c| hasher.update(c));
            assert_eq!(hasher.hex(), etag.as_str());
        };
        // `git hash-object` and `sha256sum` of these texts.
        check(Etag::GitSha1("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391".into()), b"");
        check(Etag::GitSha1("ce013625030ba8dba906f756967f9e9ca394464a".into()), b"hello\n");
        check(
            Etag::Sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into()),
            b"hello\n",
        );
    }
}
