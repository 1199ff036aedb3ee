//! Pickle instructions.

/// BINUNICODE.
pub(crate) fn s(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [b"X", &(text.len() as u32).to_le_bytes()[..], text].concat()
}

/// GLOBAL.
pub(crate) fn g(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// The shortest integer instruction.
pub(crate) fn i(n: i64) -> Vec<u8> {
    match (u8::try_from(n), i32::try_from(n)) {
        (Ok(n), _) => vec![b'K', n],
        (_, Ok(n)) => [b"J", &n.to_le_bytes()[..]].concat(),
        _ => [b"\x8a\x08", &n.to_le_bytes()[..]].concat(),
    }
}

/// MARK, parts, TUPLE.
pub(crate) fn t(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), parts.concat(), b"t".to_vec()].concat()
}

/// Protocol 2, the instructions, STOP.
pub(crate) fn program(body: &[Vec<u8>]) -> Vec<u8> {
    [b"\x80\x02".to_vec(), body.concat(), b".".to_vec()].concat()
}

/// `posix.system('touch CANARY')`: only ever parsed.
pub(crate) fn evil() -> Vec<u8> {
    [g("posix", "system"), s("touch CANARY"), b"\x85R".to_vec()].concat()
}

pub(crate) fn ordered_dict() -> Vec<u8> {
    [g("collections", "OrderedDict"), b")R".to_vec()].concat()
}

/// A reference to a storage.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) tag: &'static str,
    pub(crate) module: &'static str,
    pub(crate) class: &'static str,
    pub(crate) key: String,
    pub(crate) location: &'static str,
    /// The instructions that push the number of elements.
    pub(crate) numel: Vec<u8>,
    /// The legacy form's sixth part.
    pub(crate) view: Option<Vec<u8>>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            tag: "storage",
            module: "torch",
            class: "FloatStorage",
            key: "0".into(),
            location: "cpu",
            numel: i(4),
            view: None,
        }
    }
}

impl Storage {
    pub(crate) fn legacy() -> Storage {
        Storage { view: Some(b"N".to_vec()), ..Storage::default() }
    }

    pub(crate) fn of(class: &'static str, key: &str, numel: i64) -> Storage {
        Storage { class, key: key.into(), numel: i(numel), ..Storage::default() }
    }

    pub(crate) fn id(&self) -> Vec<u8> {
        let mut parts = vec![s(self.tag), g(self.module, self.class), s(&self.key), s(self.location)];
        parts.push(self.numel.clone());
        parts.extend(self.view.clone());
        [t(&parts), b"Q".to_vec()].concat()
    }
}

/// A call of `_rebuild_tensor_v2`.
#[derive(Clone)]
pub(crate) struct Tensor {
    /// The instructions that push the storage.
    pub(crate) storage: Vec<u8>,
    pub(crate) offset: i64,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
}

impl Default for Tensor {
    fn default() -> Self {
        Tensor { storage: Storage::default().id(), offset: 0, size: vec![4], stride: vec![1] }
    }
}

impl Tensor {
    pub(crate) fn view(offset: i64, size: &[i64], stride: &[i64]) -> Tensor {
        Tensor { offset, size: size.to_vec(), stride: stride.to_vec(), ..Tensor::default() }
    }

    /// A contiguous tensor that is a whole storage.
    pub(crate) fn whole(storage: Storage, size: &[i64]) -> Tensor {
        let mut stride = vec![1; size.len()];
        for d in (1..size.len()).rev() {
            stride[d - 1] = stride[d] * size[d];
        }
        Tensor { storage: storage.id(), offset: 0, size: size.to_vec(), stride }
    }

    pub(crate) fn code(&self) -> Vec<u8> {
        let dims = |d: &[i64]| t(&d.iter().map(|&n| i(n)).collect::<Vec<_>>());
        let args = [self.storage.clone(), i(self.offset), dims(&self.size), dims(&self.stride)];
        let args = [t(&[args.concat(), b"\x89".to_vec(), ordered_dict()]), b"R".to_vec()].concat();
        [g("torch._utils", "_rebuild_tensor_v2"), args].concat()
    }
}

/// The usual tensor: four f32 of storage 0.
pub(crate) fn tensor() -> Vec<u8> {
    Tensor::default().code()
}

pub(crate) fn tensor_of(storage: Storage) -> Vec<u8> {
    Tensor { storage: storage.id(), ..Tensor::default() }.code()
}

/// The instructions of a dictionary.
pub(crate) fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let flat: Vec<u8> = items.iter().flat_map(|(k, v)| [k.clone(), v.clone()].concat()).collect();
    [b"}(".to_vec(), flat, b"u".to_vec()].concat()
}

/// A pickle of a dictionary.
pub(crate) fn sd(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = items.iter().map(|(k, v)| (s(k), v.clone())).collect();
    program(&[dict(&items)])
}

/// A pickle of `{'w': tensor}`.
pub(crate) fn ok() -> Vec<u8> {
    sd(&[("w", tensor())])
}
