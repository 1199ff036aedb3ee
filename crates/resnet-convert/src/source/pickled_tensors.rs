//! Collection of the tensors in a pickle: nested dictionaries, modules and TorchScript objects. Names of nested values are
//! joined with dots.

use std::collections::HashSet;
use std::sync::Arc;

use resnet_model::raw::Bytes;
use resnet_model::{RawTensor, escape};

use super::pickle::Pickle;
use super::pickle::globals::Global;
use super::pickle::value::{Node, NodeId, Object, Value};
use super::tensors::{Blob, TensorBuilder};
use super::{MAX_NAME, StateDict};
use crate::error::{Code, Fault};

const MAX_VISITS: usize = 1_000_000;
const MAX_DEPTH: usize = 256;

/// Storages of a pickle.
pub(crate) struct Storages {
    /// One blob per declared storage.
    pub(crate) blobs: Vec<Blob>,
    pub(crate) big_endian: bool,
}

/// Collects the tensors of `pickle`, which was read from `bytes`, into `into`.
pub(crate) fn collect(
    pickle: &Pickle,
    bytes: &Arc<dyn Bytes>,
    storages: &Storages,
    maker: &mut TensorBuilder,
    into: &mut StateDict,
) -> Result<(), Fault> {
    let mut walker =
        Walker { pickle, bytes, storages, maker, into, names: HashSet::new(), todo: vec![], open: vec![] };
    walker.run()?;
    into.opaque = pickle.globals.opaque();
    // Metadata of training scripts.
    for (key, value) in pickle.arena.dict(pickle.root).unwrap_or_default() {
        if let (Some(key @ ("arch" | "architecture" | "model_name" | "__author__")), Some(value)) =
            (pickle.arena.str(*key), pickle.arena.str(*value))
        {
            into.metadata.insert(key.to_owned(), value.to_owned());
        }
    }
    if into.tensors.is_empty() && into.unsupported.is_empty() {
        let found = pickle.arena.type_name(pickle.root);
        return Err(Fault::new(Code::Empty, format!("expected tensors, found a value of type {found}")));
    }
    Ok(())
}

/// Step of the traversal: enter a value or leave a container.
enum Visit {
    Enter { value: Value, name: Option<String> },
    Leave,
}

struct Walker<'a> {
    pickle: &'a Pickle,
    bytes: &'a Arc<dyn Bytes>,
    storages: &'a Storages,
    maker: &'a mut TensorBuilder,
    into: &'a mut StateDict,
    names: HashSet<String>,
    todo: Vec<Visit>,
    /// The containers around the current value.
    open: Vec<NodeId>,
}

impl Walker<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        self.todo.push(Visit::Enter { value: self.pickle.root, name: Some(String::new()) });
        let mut visits = 0usize;
        while let Some(step) = self.todo.pop() {
            match step {
                Visit::Leave => drop(self.open.pop()),
                Visit::Enter { value, name } => {
                    visits = visits.saturating_add(1);
                    if visits > MAX_VISITS {
                        return Err(Fault::new(
                            Code::Expansion,
                            format!("more than {MAX_VISITS} values after expanding shared ones"),
                        ));
                    }
                    self.enter(value, name)?;
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, value: Value, name: Option<String>) -> Result<(), Fault> {
        match value {
            Value::Tensor(id) => {
                let name = self.claim(name)?;
                let missing = || Fault::new(Code::StorageMissing, "tensor without a storage");
                let spec = self.pickle.specs.tensors.get(id as usize).ok_or_else(missing)?;
                let blob = self.storages.blobs.get(spec.storage.root as usize).ok_or_else(missing)?;
                let tensor = self.maker.tensor(spec, blob, self.storages.big_endian);
                self.push(name, tensor)
            }
            Value::Unsupported(kind) => {
                let name = self.claim(name)?;
                self.into.unsupported.push((name, kind.as_str().into()));
                Ok(())
            }
            Value::Node(id) => self.container(id, name),
            _ => Ok(()),
        }
    }

    fn container(&mut self, id: NodeId, name: Option<String>) -> Result<(), Fault> {
        let Some(node) = self.pickle.arena.node(id) else { return Ok(()) };
        if let Node::Array(array) = node {
            let tensor = self.maker.array(array, &self.pickle.arena, self.bytes);
            let name = self.claim(name)?;
            return match tensor.transpose() {
                Some(tensor) => self.push(name, tensor),
                None => {
                    self.into.unsupported.push((name, "an array of objects".into()));
                    Ok(())
                }
            };
        }
        let children = self.children(node);
        if children.is_empty() {
            return Ok(());
        }
        if self.open.contains(&id) {
            return Err(Fault::new(Code::Cycle, "value that contains itself"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Fault::new(Code::Depth, format!("values nested more than {MAX_DEPTH} deep")));
        }
        self.open.push(id);
        self.todo.push(Visit::Leave);
        for (key, value) in children.into_iter().rev() {
            let name = match (&name, key) {
                (Some(parent), NamePart::ByteRange(part)) => Some(join(parent, &part)),
                (Some(parent), NamePart::Same) => Some(parent.clone()),
                (Some(_), NamePart::Long) => Some("…".repeat(MAX_NAME)),
                _ => None,
            };
            self.todo.push(Visit::Enter { value, name });
        }
        Ok(())
    }

    /// Returns the values in a container that may hold tensors, with their parts of the name.
    fn children(&self, node: &Node) -> Vec<(NamePart, Value)> {
        match node {
            Node::Dict(items) => self.items(items),
            Node::List(parts) => enumerate(parts),
            Node::Tuple(parts) => enumerate(parts),
            Node::Object(object) => self.object(object),
            Node::Str { .. } | Node::Set(_) | Node::Array(_) => vec![],
        }
    }

    fn items(&self, items: &[(Value, Value)]) -> Vec<(NamePart, Value)> {
        let may = |v: &Value| matches!(v, Value::Node(_) | Value::Tensor(_) | Value::Unsupported(_));
        items.iter().filter(|(_, v)| may(v)).map(|&(k, v)| (self.key(k), v)).collect()
    }

    fn key(&self, key: Value) -> NamePart {
        match key {
            Value::Int(n) => NamePart::ByteRange(n.to_string()),
            Value::Bool(b) => NamePart::ByteRange(b.to_string()),
            _ => match self.pickle.arena.str(key) {
                Some(s) => NamePart::ByteRange(s.to_owned()),
                // A string too long to be kept in memory is too long to be a name.
                None if matches!(self.pickle.arena.node_of(key), Some(Node::Str { .. })) => NamePart::Long,
                None => NamePart::None,
            },
        }
    }

    fn object(&self, object: &Object) -> Vec<(NamePart, Value)> {
        let arena = &self.pickle.arena;
        let meaning = match object.class {
            Value::Global(id) => self.pickle.globals.meaning(id),
            _ => Global::Opaque,
        };
        let first = |value| arena.tuple(value).and_then(|parts| parts.first()).copied();
        match meaning {
            // Old versions pickle a Parameter's tensor as an argument or in its state.
            Global::Parameter => {
                let tensor = [object.args, object.state].into_iter().filter_map(first);
                tensor
                    .filter(|v| matches!(v, Value::Tensor(_)))
                    .take(1)
                    .map(|v| (NamePart::Same, v))
                    .collect()
            }
            Global::Script => vec![(NamePart::Same, object.state)],
            _ => {
                let part = |key| {
                    arena
                        .get(object.state, key)
                        .filter(|&v| arena.dict(v).is_some() || is_object(arena.node_of(v)))
                };
                let module: Vec<_> =
                    ["_parameters", "_buffers", "_modules"].into_iter().filter_map(part).collect();
                let mut children: Vec<_> = module.into_iter().map(|v| (NamePart::Same, v)).collect();
                children.extend(self.items(&object.items));
                children.extend(enumerate(&object.list));
                children
            }
        }
    }

    /// Returns `name` if it is valid and unused.
    fn claim(&mut self, name: Option<String>) -> Result<String, Fault> {
        let bad = |what: &str| Fault::new(Code::Name, format!("invalid tensor name: {what}"));
        let name =
            name.ok_or_else(|| Fault::new(Code::Type, "tensor under a key that is not a short string"))?;
        match () {
            () if name.is_empty() => return Err(bad("empty")),
            () if name.len() > MAX_NAME => return Err(bad(&format!("longer than {MAX_NAME} bytes"))),
            () if name.contains('\0') => return Err(bad(&format!("`{}` contains NUL", escape(&name)))),
            () => {}
        }
        match self.names.insert(name.clone()) {
            true => Ok(name),
            false => Err(Fault::new(Code::DuplicateName, format!("two tensors named `{}`", escape(&name)))),
        }
    }

    fn push(&mut self, name: String, tensor: Result<RawTensor, Fault>) -> Result<(), Fault> {
        let tensor = tensor.map_err(|mut fault| {
            fault.detail = format!("tensor `{}`: {}", escape(&name), fault.detail);
            fault
        })?;
        self.into.tensors.push((name, tensor));
        Ok(())
    }
}

/// ByteRange that a child adds to the name of its parent.
enum NamePart {
    ByteRange(String),
    Same,
    /// A string too long for a name.
    Long,
    /// Not a name; a tensor here is an error.
    None,
}

fn enumerate(parts: &[Value]) -> Vec<(NamePart, Value)> {
    let parts = parts
        .iter()
        .enumerate()
        .filter(|(_, v)| matches!(v, Value::Node(_) | Value::Tensor(_) | Value::Unsupported(_)));
    parts.map(|(i, &v)| (NamePart::ByteRange(i.to_string()), v)).collect()
}

fn is_object(node: Option<&Node>) -> bool {
    matches!(node, Some(Node::Object(_)))
}

fn join(parent: &str, part: &str) -> String {
    match parent.is_empty() {
        true => part.to_owned(),
        // A prefix of an overlong name is enough to reject it.
        false if parent.len() > MAX_NAME => parent.to_owned(),
        false => format!("{parent}.{part}"),
    }
}
