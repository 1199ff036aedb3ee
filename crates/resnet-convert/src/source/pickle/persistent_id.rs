//! Persistent ids: references from a pickle to storages outside it.

use std::collections::HashMap;

use resnet_model::raw::Dtype;

use crate::error::{Code, Fault};

use super::globals::{Global, Globals};
use super::specs::{Specs, natural};
use super::value::{Arena, Node, UnsupportedKind, Value};

/// Scheme of persistent ids in a format.
#[derive(Debug)]
pub(crate) enum PersistentIds {
    /// The pickle has no storages.
    None,
    /// `('storage', class, key, location, elements)`.
    Zip,
    /// [`Zip`](Self::Zip)'s tuple plus `None` or `(view key, offset, elements)`; and `('module', class, file, source)`.
    Legacy,
    /// Ids of storages and tensors.
    Tar(HashMap<i64, Value>),
}

impl PersistentIds {
    /// Returns the value for `id`.
    pub(crate) fn resolve(
        &self,
        arena: &Arena,
        globals: &Globals,
        specs: &mut Specs,
        id: Value,
    ) -> Result<Value, Fault> {
        let bad =
            || Fault::new(Code::Persid, format!("invalid persistent id of type {}", arena.type_name(id)));
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
        let args = |what: &str| Fault::new(Code::Args, format!("storage {what}"));
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
                arena.str(*key).ok_or_else(|| Fault::new(Code::StorageMissing, "storage key is too long"))?
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

/// Returns the dtype of a storage class.
pub(crate) fn storage_dtype(globals: &Globals, class: super::globals::GlobalId) -> Result<Dtype, Fault> {
    match globals.meaning(class) {
        Global::Storage(dtype) => Ok(dtype),
        _ => Err(Fault::new(Code::Dtype, format!("unsupported storage class `{}`", globals.name(class)))),
    }
}
