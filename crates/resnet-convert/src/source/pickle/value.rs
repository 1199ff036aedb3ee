//! Values of a pickle: small ones by value, containers by index into one arena, so that sharing costs nothing, nothing
//! is dropped recursively, and a value that contains itself is no trouble.

use crate::error::{Code, Fault};

use super::globals::GlobalId;

/// The deepest nesting of tuples, lists and dictionaries.
pub(crate) const MAX_DEPTH: u16 = 256;
/// The largest number of containers and strings. A checkpoint of 100,000 tensors has fewer.
const MAX_NODES: usize = 1_000_000;
/// The largest number of values in all containers together.
const MAX_PARTS: usize = 2_000_000;
/// The most text that is kept, in bytes; longer strings stay in the pickle.
const MAX_TEXT: usize = 16 << 20;

/// A value on the stack or in a container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond i64.
    Big,
    Float(f64),
    Node(NodeId),
    Global(GlobalId),
    /// A reference to a storage, by index into the specs.
    Storage(u32),
    /// A tensor, by index into the specs.
    Tensor(u32),
    /// A tensor of an unsupported kind.
    Unsupported(UnsupportedKind),
}

/// Unsupported kinds of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnsupportedKind {
    Quantized,
    Sparse,
    Nested,
    WithoutData,
    Subclass,
    Device,
    Elements,
}

impl UnsupportedKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            UnsupportedKind::Quantized => "quantized tensor",
            UnsupportedKind::Sparse => "sparse tensor",
            UnsupportedKind::Nested => "nested tensor",
            UnsupportedKind::WithoutData => "tensor without data",
            UnsupportedKind::Subclass => "tensor subclass",
            UnsupportedKind::Device => "tensor of an unsupported device",
            UnsupportedKind::Elements => "tensor with an unsupported dtype",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// Location of a string.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Span {
    /// In the arena.
    Inline { start: u32, len: u32 },
    /// In the pickle; strings too long for a name are left there.
    Input { offset: u64, len: u64 },
    /// In the pickle, as UTF-8 of Latin-1 text whose code points are the bytes.
    Latin1 { offset: u64, len: u64 },
}

/// Kinds of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Unicode,
    Bytes,
    /// Python 2's `str`: text or bytes.
    Either,
}

/// A value with parts.
#[derive(Debug)]
pub(crate) enum Node {
    Str { span: Span, text: Text },
    Tuple(Box<[Value]>),
    List(Vec<Value>),
    Set(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Object(Box<Object>),
    Array(Box<super::numpy::Array>),
}

/// An instance of a class, never built: what it would have been built from.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) class: Value,
    pub(crate) args: Value,
    pub(crate) state: Value,
    /// Items set on it, if it is a kind of dictionary.
    pub(crate) items: Vec<(Value, Value)>,
    /// Items appended to it, if it is a kind of list.
    pub(crate) list: Vec<Value>,
}

#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    depths: Vec<u16>,
    text: Vec<u8>,
    parts: usize,
}

impl Arena {
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    pub(crate) fn node_of(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(id) => self.node(id),
            _ => None,
        }
    }

    /// Makes a node whose nesting is one deeper than that of `parts`.
    pub(crate) fn push(&mut self, node: Node, parts: &[Value]) -> Result<Value, Fault> {
        let depth = parts.iter().map(|&p| self.depth(p)).max().unwrap_or(0).saturating_add(1);
        check_depth(depth)?;
        if self.nodes.len() >= MAX_NODES {
            return Err(Fault::new(Code::Limit, format!("more than {MAX_NODES} values")));
        }
        self.count(parts.len())?;
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| Fault::new(Code::Limit, "values"))?);
        self.nodes.push(node);
        self.depths.push(depth);
        Ok(Value::Node(id))
    }

    pub(crate) fn push_tuple(&mut self, parts: &[Value]) -> Result<Value, Fault> {
        self.push(Node::Tuple(parts.into()), parts)
    }

    /// A string; short ones are kept, `span` locates long ones in the file.
    pub(crate) fn push_str(&mut self, text: Text, bytes: &[u8]) -> Result<Value, Fault> {
        let start = u32::try_from(self.text.len()).map_err(|_| Fault::new(Code::Limit, "text"))?;
        let len = u32::try_from(bytes.len()).map_err(|_| Fault::new(Code::Limit, "text"))?;
        if self.text.len().saturating_add(bytes.len()) > MAX_TEXT {
            return Err(Fault::new(Code::Limit, format!("more than {MAX_TEXT} bytes of text")));
        }
        self.text.extend_from_slice(bytes);
        self.push(Node::Str { span: Span::Inline { start, len }, text }, &[])
    }

    fn count(&mut self, parts: usize) -> Result<(), Fault> {
        self.parts = self.parts.saturating_add(parts);
        match self.parts <= MAX_PARTS {
            true => Ok(()),
            false => Err(Fault::new(Code::Limit, format!("more than {MAX_PARTS} values in containers"))),
        }
    }

    fn depth(&self, value: Value) -> u16 {
        match value {
            Value::Node(id) => self.depths.get(id.0 as usize).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// The node to add `parts` to; its nesting is noted first.
    pub(crate) fn grow(&mut self, id: NodeId, parts: &[Value]) -> Result<Option<&mut Node>, Fault> {
        let inner =
            parts.iter().filter(|&&p| p != Value::Node(id)).map(|&p| self.depth(p)).max().unwrap_or(0);
        let depth = inner.saturating_add(1);
        check_depth(depth)?;
        self.count(parts.len())?;
        if let Some(known) = self.depths.get_mut(id.0 as usize) {
            *known = depth.max(*known);
        }
        Ok(self.nodes.get_mut(id.0 as usize))
    }

    pub(crate) fn inline(&self, span: Span) -> Option<&[u8]> {
        match span {
            Span::Inline { start, len } => {
                self.text.get(start as usize..(start as usize).checked_add(len as usize)?)
            }
            _ => None,
        }
    }

    /// The string, if it is a short one.
    pub(crate) fn str(&self, value: Value) -> Option<&str> {
        match value {
            Value::Node(id) => match self.node(id)? {
                Node::Str { span, text: Text::Unicode | Text::Either } => {
                    std::str::from_utf8(self.inline(*span)?).ok()
                }
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn tuple(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Node(id) => match self.node(id)? {
                Node::Tuple(parts) => Some(parts),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn list(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Node(id) => match self.node(id)? {
                Node::List(parts) => Some(parts),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Node(id) => match self.node(id)? {
                Node::Dict(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// The value of a text key in a dictionary.
    pub(crate) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        self.dict(dict)?.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, v)| *v)
    }

    /// A short name of a value's type, for messages.
    pub(crate) fn type_name(&self, value: Value) -> &'static str {
        match value {
            Value::None => "None",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Big => "int",
            Value::Float(_) => "float",
            Value::Global(_) => "class",
            Value::Storage(_) => "storage",
            Value::Tensor(_) | Value::Unsupported(_) => "tensor",
            Value::Node(id) => match self.node(id) {
                Some(Node::Str { text: Text::Bytes, .. }) => "bytes",
                Some(Node::Str { .. }) => "str",
                Some(Node::Tuple(_)) => "tuple",
                Some(Node::List(_)) => "list",
                Some(Node::Set(_)) => "set",
                Some(Node::Dict(_)) => "dict",
                Some(Node::Array(_)) => "array",
                Some(Node::Object(_)) | None => "object",
            },
        }
    }
}

fn check_depth(depth: u16) -> Result<(), Fault> {
    match depth {
        0..=MAX_DEPTH => Ok(()),
        _ => Err(Fault::new(Code::Depth, format!("values nested more than {MAX_DEPTH} deep"))),
    }
}
