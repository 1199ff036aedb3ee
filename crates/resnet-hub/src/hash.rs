//! The hash that an ETag names, computed while bytes arrive.

use std::fs::File;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::names::Etag;

/// A running hash of one file.
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    /// Starts the hash that `etag` names, for a file of `size` bytes.
    pub(crate) fn new(etag: &Etag, size: u64) -> Self {
        match etag.as_str().len() {
            64 => Self::Sha256(Sha256::new()),
            // A git blob id covers a header that precedes the content.
            _ => Self::GitSha1(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn hex(self) -> String {
        let bytes = match self {
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::GitSha1(hash) => hash.finalize().to_vec(),
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Returns the hash of a whole file, of the kind that `etag` names.
pub(crate) fn hash_file(mut file: File, etag: &Etag) -> io::Result<String> {
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
        // `git hash-object` and `sha256sum` of these texts.
        for (hash, content) in [
            ("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", ""),
            ("ce013625030ba8dba906f756967f9e9ca394464a", "hello\n"),
            ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "hello\n"),
        ] {
            let mut hasher = Hasher::new(&Etag::parse(hash).unwrap(), content.len() as u64);
            content.as_bytes().chunks(2).for_each(|c| hasher.update(c));
            assert_eq!(hasher.hex(), hash);
        }
    }
}
