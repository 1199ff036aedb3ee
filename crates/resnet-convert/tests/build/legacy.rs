//! The stream that `torch.save` wrote up to PyTorch 1.5.

use super::pickle::{Storage, dict, g, i, program, s, sd, tensor_of};

pub(crate) const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The parts of a stream.
#[derive(Clone)]
pub(crate) struct Legacy {
    pub(crate) magic: Vec<u8>,
    pub(crate) protocol: Vec<u8>,
    pub(crate) info: Vec<u8>,
    pub(crate) object: Vec<u8>,
    pub(crate) keys: Vec<u8>,
    /// Element counts and bytes.
    pub(crate) storages: Vec<(i64, Vec<u8>)>,
    pub(crate) tail: Vec<u8>,
}

pub(crate) fn info(little_endian: bool) -> Vec<u8> {
    let endian = if little_endian { b"\x88" } else { b"\x89" };
    let sizes = dict(&[(s("short"), i(2)), (s("int"), i(4)), (s("long"), i(4))]);
    let items =
        [(s("protocol_version"), i(1001)), (s("little_endian"), endian.to_vec()), (s("type_sizes"), sizes)];
    program(&[dict(&items)])
}

pub(crate) fn keys(keys: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = keys.iter().flat_map(s).collect();
    program(&[b"](".to_vec(), list, b"e".to_vec()])
}

impl Default for Legacy {
    fn default() -> Self {
        Legacy {
            magic: MAGIC.to_vec(),
            protocol: program(&[b"M\xe9\x03".to_vec()]),
            info: info(true),
            object: sd(&[("w", tensor_of(Storage::legacy()))]),
            keys: keys(&["0"]),
            storages: vec![(4, vec![0; 16])],
            tail: vec![],
        }
    }
}

impl Legacy {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let storages: Vec<u8> =
            self.storages.iter().flat_map(|(n, data)| [&n.to_le_bytes()[..], data].concat()).collect();
        [&self.magic[..], &self.protocol, &self.info, &self.object, &self.keys, &storages, &self.tail]
            .concat()
    }

    /// A view of the storage as (offset, elements).
    pub(crate) fn with_view(offset: i64, len: i64) -> Vec<u8> {
        let view = super::pickle::t(&[s("v"), i(offset), i(len)]);
        let storage = Storage { view: Some(view), ..Storage::default() };
        Legacy { object: sd(&[("w", tensor_of(storage))]), ..Legacy::default() }.bytes()
    }

    /// A whole module's class with its source.
    pub(crate) fn with_module() -> Vec<u8> {
        let id = super::pickle::t(&[s("module"), g("m", "Net"), s("net.py"), s("class Net: ...")]);
        Legacy { object: program(&[id, b"Q".to_vec()]), ..Legacy::default() }.bytes()
    }
}
