//! Closed list of the globals in pickles. Nothing is imported or called: listed names have a meaning, others are opaque and
//! reported, and names that no checkpoint needs are errors.

use std::collections::HashMap;

use resnet_model::escape;
use resnet_model::raw::Dtype;

use crate::error::{Code, Fault};

use super::value::UnsupportedKind;

/// Maximum length of a module or name, in bytes.
pub(crate) const MAX_NAME: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GlobalId(u32);

/// Meaning of a global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    /// `OrderedDict`, `defaultdict`, `Counter`, `dict`.
    Dict,
    List,
    Set,
    Bytes,
    Size,
    Encode,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildFromType,
    Parameter,
    /// A function that builds unsupported tensors.
    Unsupported(UnsupportedKind),
    Storage(Dtype),
    /// A storage with unsupported elements of this size in bytes.
    UnsupportedStorage(u64),
    UnknownStorage,
    /// An element type, `torch.float32`.
    Dtype(Dtype),
    NumpyReconstruct,
    NumpyFromBuffer,
    NumpyScalar,
    NumpyArray,
    NumpyDtype,
    /// `copyreg._reconstructor` and `__newobj__`: the first argument is the class.
    NewObject,
    /// A class of a TorchScript archive: its attributes are a module's.
    Script,
    /// Any other; its contents are skipped.
    Opaque,
}

#[derive(Debug)]
struct GlobalEntry {
    module: String,
    name: String,
    meaning: Global,
}

/// The names that a pickle has referred to.
#[derive(Debug, Default)]
pub(crate) struct Globals {
    entries: Vec<GlobalEntry>,
    index: HashMap<(String, String), GlobalId>,
}

impl Globals {
    /// Registers a name. Returns an error for an unsafe one.
    pub(crate) fn find(&mut self, module: &str, name: &str) -> Result<GlobalId, Fault> {
        let key = (module.to_owned(), name.to_owned());
        if let Some(&id) = self.index.get(&key) {
            return Ok(id);
        }
        if module.len() > MAX_NAME || name.len() > MAX_NAME {
            return Err(Fault::new(Code::Line, format!("a name of more than {MAX_NAME} bytes")));
        }
        if is_unsafe(module, name) {
            let full = escape(&format!("{module}.{name}"));
            return Err(Fault::new(Code::UnsafeGlobal, format!("unsafe global `{full}`")));
        }
        if module.split('.').next() == Some("joblib") {
            return Err(Fault::new(Code::NotTorch, "joblib file, not a PyTorch checkpoint"));
        }
        let id = GlobalId(u32::try_from(self.entries.len()).map_err(|_| Fault::new(Code::Limit, "names"))?);
        let meaning = meaning(module, name);
        self.entries.push(GlobalEntry { module: module.to_owned(), name: name.to_owned(), meaning });
        self.index.insert(key, id);
        Ok(id)
    }

    pub(crate) fn meaning(&self, id: GlobalId) -> Global {
        self.entries.get(id.0 as usize).map_or(Global::Opaque, |e| e.meaning)
    }

    /// The full name, safe to print.
    pub(crate) fn name(&self, id: GlobalId) -> String {
        self.entries
            .get(id.0 as usize)
            .map(|e| escape(&format!("{}.{}", e.module, e.name)))
            .unwrap_or_default()
    }

    /// Returns the opaque names.
    pub(crate) fn opaque(&self) -> Vec<String> {
        let unknown = self.entries.iter().filter(|e| e.meaning == Global::Opaque);
        unknown.map(|e| escape(&format!("{}.{}", e.module, e.name))).collect()
    }
}

/// PyTorch's element types by the names of their storages and of their dtypes.
const DTYPES: &[(&str, &str, Dtype)] = &[
    ("FloatStorage", "float32", Dtype::F32),
    ("DoubleStorage", "float64", Dtype::F64),
    ("HalfStorage", "float16", Dtype::F16),
    ("BFloat16Storage", "bfloat16", Dtype::BF16),
    ("LongStorage", "int64", Dtype::I64),
    ("IntStorage", "int32", Dtype::I32),
    ("ShortStorage", "int16", Dtype::I16),
    ("CharStorage", "int8", Dtype::I8),
    ("ByteStorage", "uint8", Dtype::U8),
    ("BoolStorage", "bool", Dtype::BOOL),
    ("ComplexFloatStorage", "complex64", Dtype::C64),
    ("", "uint16", Dtype::U16),
    ("", "uint32", Dtype::U32),
    ("", "uint64", Dtype::U64),
    ("", "float8_e4m3fn", Dtype::F8_E4M3),
    ("", "float8_e5m2", Dtype::F8_E5M2),
];

/// Storages of quantized numbers and of complex doubles.
fn odd_storage(name: &str) -> Global {
    match name {
        "QUInt8Storage" | "QInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
            Global::UnsupportedStorage(1)
        }
        "QInt32Storage" => Global::UnsupportedStorage(4),
        "ComplexDoubleStorage" => Global::UnsupportedStorage(16),
        _ => Global::UnknownStorage,
    }
}

fn meaning(module: &str, name: &str) -> Global {
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter") => Global::Dict,
        ("builtins" | "__builtin__", "dict") => Global::Dict,
        ("builtins" | "__builtin__", "list") => Global::List,
        ("builtins" | "__builtin__", "set" | "frozenset") => Global::Set,
        ("builtins" | "__builtin__", "bytearray" | "bytes") => Global::Bytes,
        ("_codecs", "encode") => Global::Encode,
        ("copyreg" | "copy_reg", "_reconstructor" | "__newobj__") => Global::NewObject,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2" | "_rebuild_from_type")
        | ("torch.tensor", "_rebuild_from_type") => Global::RebuildFromType,
        ("torch._utils", "_rebuild_qtensor") => Global::Unsupported(UnsupportedKind::Quantized),
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Global::Unsupported(UnsupportedKind::Sparse)
        }
        ("torch._utils", "_rebuild_nested_tensor") => Global::Unsupported(UnsupportedKind::Nested),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
            Global::Unsupported(UnsupportedKind::WithoutData)
        }
        ("torch._utils", "_rebuild_wrapper_subclass") => Global::Unsupported(UnsupportedKind::Subclass),
        ("torch._utils", n) if n.starts_with("_rebuild_") => Global::Unsupported(UnsupportedKind::Device),
        ("torch.nn.parameter" | "torch.nn", "Parameter" | "Buffer") => Global::Parameter,
        ("torch.autograd.variable" | "torch.autograd", "Variable") => Global::Parameter,
        ("torch.storage" | "torch", "UntypedStorage") => Global::Storage(Dtype::U8),
        ("torch" | "torch.cuda", n) if n.ends_with("Storage") => {
            let known = DTYPES.iter().find(|(storage, _, _)| *storage == n);
            known.map_or_else(|| odd_storage(n), |(_, _, dtype)| Global::Storage(*dtype))
        }
        ("torch", n) => {
            let known = DTYPES.iter().find(|(_, dtype, _)| *dtype == n);
            known.map_or(Global::Opaque, |(_, _, dtype)| Global::Dtype(*dtype))
        }
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Global::NumpyReconstruct,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Global::NumpyFromBuffer,
        ("numpy", "ndarray") => Global::NumpyArray,
        ("numpy", "dtype") => Global::NumpyDtype,
        _ if module == "__torch__" || module.starts_with("__torch__.") => Global::Script,
        _ => Global::Opaque,
    }
}

/// Returns `true` for names that no checkpoint needs: functions that run code, access files, processes or the network, or
/// look up other functions. This only improves the error; safety comes from never calling anything.
fn is_unsafe(module: &str, name: &str) -> bool {
    const MODULES: &[&str] = &[
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "pty",
        "commands",
        "shutil",
        "socket",
        "ctypes",
        "importlib",
        "runpy",
        "pickle",
        "_pickle",
        "cPickle",
        "marshal",
        "code",
        "urllib",
        "requests",
        "smtplib",
        "webbrowser",
        "_operator",
        "pkgutil",
        "fickling",
        "pip",
    ];
    const BUILTINS: &[&str] = &[
        "eval",
        "exec",
        "execfile",
        "compile",
        "getattr",
        "setattr",
        "__import__",
        "open",
        "input",
        "apply",
    ];
    const NAMES: &[(&str, &[&str])] = &[
        ("operator", &["attrgetter", "methodcaller", "call"]),
        ("io", &["open", "open_code", "FileIO"]),
        ("types", &["CodeType", "FunctionType"]),
        ("numpy", &["load", "fromfile", "memmap"]),
        ("torch", &["load", "compile"]),
        ("torch.serialization", &["load"]),
        ("torch.storage", &["_load_from_bytes"]),
    ];
    let first = name.split('.').next().unwrap_or("");
    MODULES.contains(&module.split('.').next().unwrap_or(""))
        || (matches!(module, "builtins" | "__builtin__") && BUILTINS.contains(&first))
        || NAMES.iter().any(|(m, names)| *m == module && names.contains(&first))
        // `pathlib os.system` reaches a module through another one's attribute.
        || (name.contains('.') && name.split('.').any(|part| MODULES.contains(&part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(module: &str, name: &str) -> String {
        let mut globals = Globals::default();
        match globals.find(module, name) {
            Ok(id) => format!("{:?}", globals.meaning(id)),
            Err(fault) => fault.code.to_string(),
        }
    }

    #[test]
    fn names_mean_what_the_list_says() {
        for (module, name, expected) in [
            ("collections", "OrderedDict", "Dict"),
            ("torch", "FloatStorage", "Storage(F32)"),
            ("torch.storage", "UntypedStorage", "Storage(U8)"),
            ("torch", "FooStorage", "UnknownStorage"),
            ("torch", "QInt32Storage", "UnsupportedStorage(4)"),
            ("evil", "FloatStorage", "Opaque"),
            ("torch", "bfloat16", "Dtype(BF16)"),
            ("torch._utils", "_rebuild_qtensor", "Unsupported(Quantized)"),
            ("argparse", "Namespace", "Opaque"),
            ("torch", "Size.x", "Opaque"),
            ("__torch__.torchvision", "ResNet", "Script"),
            ("posix", "system", "unsafe-global"),
            ("os.path", "join", "unsafe-global"),
            ("builtins", "eval.__call__", "unsafe-global"),
            ("__builtin__", "getattr", "unsafe-global"),
            ("builtins", "object", "Opaque"),
            ("pathlib", "os.system", "unsafe-global"),
            ("torch.serialization", "os.system", "unsafe-global"),
            ("torch.serialization", "load", "unsafe-global"),
            ("operator", "itemgetter", "Opaque"),
            ("operator", "attrgetter", "unsafe-global"),
            ("joblib.numpy_pickle", "NumpyArrayWrapper", "not-a-torch-file"),
        ] {
            assert_eq!(check(module, name), expected, "{module} {name}");
        }
    }
}
