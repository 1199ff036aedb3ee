//! Calls in a pickle: tensors and containers are built, everything else becomes an opaque object.

use crate::error::{Code, Fault};

use super::globals::{Global, Globals};
use super::numpy;
use super::specs::{Specs, TensorSpec, dims, natural};
use super::value::{Arena, Node, Object, Span, Text, Value};

/// State that calls operate on.
pub(crate) struct CallContext<'a> {
    pub(crate) arena: &'a mut Arena,
    pub(crate) globals: &'a Globals,
    pub(crate) specs: &'a mut Specs,
}

const MAX_NESTED: usize = 16;

impl CallContext<'_> {
    /// `function(*args)`.
    pub(crate) fn call(&mut self, function: Value, args: Value) -> Result<Value, Fault> {
        let (mut function, mut args) = (function, args);
        for _ in 0..MAX_NESTED {
            let parts: Vec<Value> = match self.arena.tuple(args) {
                Some(parts) => parts.to_vec(),
                None => {
                    let found = self.arena.type_name(args);
                    return Err(Fault::new(
                        Code::Args,
                        format!("a call with a {found} instead of a tuple of arguments"),
                    ));
                }
            };
            let Value::Global(id) = function else { return self.object(function, args) };
            if self.globals.meaning(id) != Global::RebuildFromType {
                return self.call_global(self.globals.meaning(id), function, args, &parts);
            }
            // (function, type, arguments, state): the tensor that `function(*arguments)` builds.
            match parts.as_slice() {
                [inner, _, arguments, _] => (function, args) = (*inner, *arguments),
                _ => return Err(self.bad_args("_rebuild_from_type_v2", &parts)),
            }
            if !matches!(function, Value::Global(_)) {
                return Err(self.bad_args("_rebuild_from_type_v2", &parts));
            }
        }
        Err(Fault::new(Code::Depth, format!("tensor types nested more than {MAX_NESTED} deep")))
    }

    /// An instance of a class: `class.__new__(class, *args)`.
    pub(crate) fn new_object(&mut self, class: Value, args: Value) -> Result<Value, Fault> {
        match class {
            Value::Global(id) if self.globals.meaning(id) == Global::Dict => {
                self.arena.push(Node::Dict(vec![]), &[])
            }
            Value::Global(_) | Value::Node(_) => self.object(class, args),
            _ => Err(self.type_error("a new object", class)),
        }
    }

    fn call_global(
        &mut self,
        meaning: Global,
        function: Value,
        args: Value,
        parts: &[Value],
    ) -> Result<Value, Fault> {
        match meaning {
            Global::RebuildTensor | Global::RebuildTensorV2 | Global::RebuildTensorV3 => {
                self.tensor(meaning, parts)
            }
            Global::RebuildParameter => match parts {
                [data @ (Value::Tensor(_) | Value::Unsupported(_)), _, _] => Ok(*data),
                [data @ (Value::Tensor(_) | Value::Unsupported(_)), _, _, _] => Ok(*data),
                _ => Err(self.bad_args("_rebuild_parameter", parts)),
            },
            Global::Unsupported(kind) => Ok(Value::Unsupported(kind)),
            Global::Dict => {
                let items = match parts {
                    [] | [Value::Global(_) | Value::None] => vec![],
                    [items] => self.pairs(*items).ok_or_else(|| self.bad_args("a dictionary", parts))?,
                    _ => return Err(self.bad_args("a dictionary", parts)),
                };
                let flat: Vec<Value> = items.iter().flat_map(|&(k, v)| [k, v]).collect();
                self.arena.push(Node::Dict(items), &flat)
            }
            Global::List | Global::Set => {
                let items = match parts {
                    [] => vec![],
                    [items] => self
                        .arena
                        .list(*items)
                        .or(self.arena.tuple(*items))
                        .map(<[Value]>::to_vec)
                        .ok_or_else(|| self.bad_args("a list or set", parts))?,
                    _ => return Err(self.bad_args("a list or set", parts)),
                };
                let node = if meaning == Global::List {
                    Node::List(items.clone())
                } else {
                    Node::Set(items.clone())
                };
                self.arena.push(node, &items)
            }
            Global::Size => match parts {
                [size] => {
                    let dims = self.arena.tuple(*size).or(self.arena.list(*size)).map(<[Value]>::to_vec);
                    let dims = dims.ok_or_else(|| self.bad_args("torch.Size", parts))?;
                    self.arena.push_tuple(&dims)
                }
                _ => Err(self.bad_args("torch.Size", parts)),
            },
            Global::Encode | Global::Bytes => self.encode(parts),
            Global::NewObject => match parts {
                [class, rest @ ..] => {
                    let args = self.arena.push_tuple(rest)?;
                    self.new_object(*class, args)
                }
                [] => Err(self.bad_args("a new object", parts)),
            },
            Global::NumpyReconstruct => self.array(numpy::Array::empty()),
            Global::NumpyFromBuffer => match numpy::from_buffer(self.arena, parts)? {
                Some(array) => self.array(array),
                None => self.object(function, args),
            },
            _ => self.object(function, args),
        }
    }

    fn array(&mut self, array: numpy::Array) -> Result<Value, Fault> {
        self.arena.push(Node::Array(Box::new(array)), &[])
    }

    fn object(&mut self, class: Value, args: Value) -> Result<Value, Fault> {
        if !matches!(class, Value::Global(_) | Value::Node(_)) {
            return Err(self.type_error("a call", class));
        }
        let object = Object { class, args, state: Value::None, items: vec![], list: vec![] };
        self.arena.push(Node::Object(Box::new(object)), &[class, args])
    }

    /// The pairs of a dictionary, or of a list of pairs.
    fn pairs(&self, value: Value) -> Option<Vec<(Value, Value)>> {
        if let Some(items) = self.arena.dict(value) {
            return Some(items.to_vec());
        }
        let pair = |&v: &Value| match self.arena.tuple(v).or(self.arena.list(v))? {
            [key, value] => Some((*key, *value)),
            _ => None,
        };
        self.arena.list(value)?.iter().map(pair).collect()
    }

    /// Bytes: `bytes(…)`, `bytearray(…)`, or text that stands for the bytes of its code points.
    fn encode(&mut self, parts: &[Value]) -> Result<Value, Fault> {
        let Some(&first) = parts.first() else { return self.arena.push_str(Text::Bytes, &[]) };
        let bad = self.bad_args("bytes", parts);
        let Value::Node(id) = first else { return Err(bad) };
        let Some(Node::Str { span, text }) = self.arena.node(id) else {
            // `bytes([1, 2])` and the like are not needed for weights.
            return self.arena.push(Node::Set(vec![]), &[]);
        };
        match (*text, *span) {
            (Text::Bytes, _) | (_, Span::Latin1 { .. }) => Ok(first),
            (_, Span::Input { offset, len }) => {
                self.arena.push(Node::Str { span: Span::Latin1 { offset, len }, text: Text::Bytes }, &[])
            }
            (_, span @ Span::Inline { .. }) => {
                let decoded = self.arena.inline(span).and_then(latin1).ok_or(bad)?;
                self.arena.push_str(Text::Bytes, &decoded)
            }
        }
    }

    /// `_rebuild_tensor(storage, offset, size, stride)`, `_v2(…, requires_grad, hooks[, metadata])`,
    /// `_v3(…, requires_grad, hooks, dtype[, metadata])`.
    fn tensor(&mut self, meaning: Global, parts: &[Value]) -> Result<Value, Fault> {
        let bad = || Fault::new(Code::Args, format!("a tensor made from ({})", self.type_names(parts)));
        let known = match meaning {
            Global::RebuildTensor => 4..=4,
            Global::RebuildTensorV2 => 6..=7,
            _ => 7..=8,
        };
        if let Some(&Value::Unsupported(kind)) = parts.first() {
            return Ok(Value::Unsupported(kind));
        }
        let [Value::Storage(storage), offset, size, stride, rest @ ..] = parts else { return Err(bad()) };
        if !known.contains(&parts.len()) {
            return Err(bad());
        }
        let storage = self.specs.refs.get(*storage as usize).copied().ok_or_else(bad)?;
        let dtype = match (meaning, rest) {
            (Global::RebuildTensorV3, [_, _, Value::Global(id), ..]) => match self.globals.meaning(*id) {
                Global::Dtype(dtype) => dtype,
                _ => {
                    return Err(Fault::new(
                        Code::Dtype,
                        format!("element type `{}`", self.globals.name(*id)),
                    ));
                }
            },
            (Global::RebuildTensorV3, _) => return Err(bad()),
            _ => storage.dtype,
        };
        let list = |value: Value| self.arena.tuple(value).or(self.arena.list(value)).ok_or_else(bad);
        let size = dims(list(*size)?, "a dimension")?;
        let stride = dims(list(*stride)?, "a stride")?;
        let offset = natural(*offset, "an offset")?;
        self.specs.push_tensor(TensorSpec { storage, dtype, offset, size, stride })
    }

    /// `object.__setstate__(state)`.
    pub(crate) fn build(&mut self, target: Value, state: Value) -> Result<(), Fault> {
        let Value::Node(id) = target else { return Err(self.type_error("a state", target)) };
        match self.arena.node(id) {
            Some(Node::Object(_)) => {
                if let Some(Node::Object(object)) = self.arena.grow(id, &[state])? {
                    object.state = state;
                }
                Ok(())
            }
            // Attributes of a dictionary, such as the `_metadata` of a state dict: not needed.
            Some(Node::Dict(_))
                if state == Value::None
                    || self.arena.dict(state).is_some()
                    || self.arena.tuple(state).is_some() =>
            {
                Ok(())
            }
            Some(Node::Array(_)) => {
                if let Some(array) = numpy::from_state(self.arena, state)?
                    && let Some(Node::Array(target)) = self.arena.grow(id, &[])?
                {
                    **target = array;
                }
                Ok(())
            }
            _ => Err(self.type_error("a state", target)),
        }
    }

    /// `target[key] = value` for each pair.
    pub(crate) fn set_items(&mut self, target: Value, flat: &[Value]) -> Result<(), Fault> {
        if !flat.len().is_multiple_of(2) {
            return Err(Fault::new(Code::Arity, "a key without a value"));
        }
        if let Some(key) = flat.iter().step_by(2).find(|&&k| !self.is_hashable(k)) {
            return Err(self.type_error("a key", *key));
        }
        let Value::Node(id) = target else { return Err(self.type_error("items", target)) };
        let pairs = flat.as_chunks::<2>().0.iter().map(|&[k, v]| (k, v));
        match self.arena.grow(id, flat)? {
            Some(Node::Dict(items)) => items.extend(pairs),
            Some(Node::Object(object)) => object.items.extend(pairs),
            _ => return Err(self.type_error("items", target)),
        }
        Ok(())
    }

    /// `target.extend(values)`.
    pub(crate) fn append(&mut self, target: Value, values: &[Value]) -> Result<(), Fault> {
        let Value::Node(id) = target else { return Err(self.type_error("elements", target)) };
        match self.arena.grow(id, values)? {
            Some(Node::List(list)) => list.extend_from_slice(values),
            Some(Node::Object(object)) => object.list.extend_from_slice(values),
            _ => return Err(self.type_error("elements", target)),
        }
        Ok(())
    }

    fn is_hashable(&self, value: Value) -> bool {
        match value {
            Value::Node(id) => !matches!(
                self.arena.node(id),
                Some(Node::Dict(_) | Node::List(_) | Node::Set(_) | Node::Array(_))
            ),
            _ => true,
        }
    }

    fn type_names(&self, parts: &[Value]) -> String {
        let names: Vec<_> = parts.iter().take(10).map(|&p| self.arena.type_name(p)).collect();
        names.join(", ")
    }

    fn bad_args(&self, what: &str, parts: &[Value]) -> Fault {
        Fault::new(Code::Args, format!("{what} made from ({})", self.type_names(parts)))
    }

    pub(crate) fn type_error(&self, what: &str, found: Value) -> Fault {
        Fault::new(Code::Type, format!("{what} on a value of type {}", self.arena.type_name(found)))
    }
}

/// Decodes UTF-8 of Latin-1 text to bytes.
pub(crate) fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}
