//! Persistent ids: how a pickle refers to the storages that lie beside it.

use std::collections::HashMap;

use resnet_model::raw::Dtype;

use crate::error::{Code, Fault};

use super::globals::{Global, Globals};
use super::specs::{Specs, natural};
use super::value::{Arena, Node, UnsupportedKind, Value};

/// What persistent ids mean in a container.
#[derive(Debug)]
pub(crate) enum PersistentIds {
    /// Nothing lies beside the pickle.
    None,
    /// `('storage', class, key, location, elements)`.
    Zip,
    /// As in zip archives, then `None` or `(view key, offset, elements)`; and `('module', class, file, source)`.
    Legacy,
    /// Numbers of storages and tensors that are known.
    Tar(HashMap<i64, Value>),
}

impl PersistentIds {
    /// The value that `id` refers to.
    pub(crate) fn resolve(
        &self,
        arena: &Arena,
        globals: &Globals,
        specs: &mut Specs,
        id: Value,
    ) -> Result<Value, Fault> {
        let bad = || Fault::new(Code::Persid, format!("a persistent id of type {}", arena.type_name(id)));
        if let PersistentIds::Tar(known) = self {
            let number = match id {
                Value::Int(n) => Some(n),
                _ => arena.str(id).and_then(|s| s.parse().ok()),
            };
            if let Some([_, class, ..]) = arena.tuple(id) {
                return Ok(*class);
            }
            return number.and_then(|n| known.get(&n)).copied().ok_or_else(bad);
        }
        let parts = arena.tuple(id).ok_or_else(bad)?;
        match (self, parts.first().and_then(|&tag| arena.str(tag))) {
            (PersistentIds::Zip | PersistentIds::Legacy, Some("storage")) => {
                self.storage(arena, globals, specs, parts)
            }
            (PersistentIds::Legacy, Some("module")) => match parts {
                [_, class @ Value::Global(_), _, _] => Ok(*class),
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }

    fn storage(
        &self,
        arena: &Arena,
        globals: &Globals,
        specs: &mut Specs,
        parts: &[Value],
    ) -> Result<Value, Fault> {
        let args = |what: &str| Fault::new(Code::Args, format!("a storage {what}"));
        let (class, key, location, numel, view) = match (self, parts) {
            (PersistentIds::Zip, [_, class, key, location, numel]) => {
                (class, key, location, numel, &Value::None)
            }
            (PersistentIds::Legacy, [_, class, key, location, numel, view]) => {
                (class, key, location, numel, view)
            }
            _ => return Err(args(&format!("described by {} values", parts.len()))),
        };
        let Value::Global(class) = *class else { return Err(args("without a class")) };
        if arena.str(*location).is_none() {
            return Err(args("without a location"));
        }
        let key = match key {
            Value::Node(id) if matches!(arena.node(*id), Some(Node::Str { .. })) => {
                arena.str(*key).ok_or_else(|| {
                    Fault::new(Code::StorageMissing, "a storage whose key is too long to be a name")
                })?
            }
            _ => return Err(args("without a key")),
        };
        if let Global::UnsupportedStorage(item) = globals.meaning(class) {
            specs.declare_items(key, item, *numel)?;
            return Ok(Value::Unsupported(UnsupportedKind::Elements));
        }
        let root = specs.declare(key, storage_dtype(globals, class)?, *numel)?;
        let part = match view {
            Value::None => root,
            view => match arena.tuple(*view) {
                Some([_, offset, numel]) => {
                    root.part(natural(*offset, "a view's offset")?, natural(*numel, "a view's size")?)?
                }
                _ => return Err(args("with a malformed view")),
            },
        };
        specs.push_ref(part)
    }
}

/// The element type of a storage class.
pub(crate) fn storage_dtype(globals: &Globals, class: super::globals::GlobalId) -> Result<Dtype, Fault> {
    match globals.meaning(class) {
        Global::Storage(dtype) => Ok(dtype),
        _ => Err(Fault::new(Code::Dtype, format!("a storage of class `{}`", globals.name(class)))),
    }
}
