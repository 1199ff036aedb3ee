//! Pickle virtual machine that executes nothing: calls are matched against a closed list ([`globals`]), everything else is
//! an opaque object.
//!
//! Every length is checked against the input before use, values are shared by index, and the numbers of opcodes, values
//! and levels are limited. `candle_core::pickle` is not used: its file readers take zip archives only, it
//! lacks the opcodes of protocols 0 and 4 (text, FRAME, MEMOIZE, STACK_GLOBAL), and it has no limits.

pub(crate) mod call;
pub(crate) mod globals;
mod memo;
pub(crate) mod numpy;
mod persistent_id;
pub(crate) mod specs;
mod text;
pub(crate) mod value;

use self::call::CallContext;
use self::globals::{Globals, MAX_NAME};
use self::memo::Memo;
pub(crate) use self::persistent_id::PersistentIds;
use self::specs::Specs;
use self::value::{Arena, Node, Span, Text, Value};
use super::input::Input;
use crate::error::{Code, Fault};

/// Maximum size of a pickle, in bytes, without strings longer than [`MAX_INLINE`].
pub(crate) const MAX_PICKLE: u64 = 64 << 20;
const MAX_OPCODES: u64 = 5_000_000;
const MAX_STACK: usize = 1_000_000;
/// Maximum length of a string kept in memory; longer ones are read lazily.
const MAX_INLINE: u64 = 4096;
/// Maximum line length of text opcodes.
const MAX_LINE: usize = 4096;
const MAX_PROTOCOL: u8 = 5;

/// Contents of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) root: Value,
    pub(crate) arena: Arena,
    pub(crate) globals: Globals,
    pub(crate) specs: Specs,
}

/// Reads one pickle from the cursor up to and including its STOP. `ids` resolves persistent ids; `specs` holds the storages
/// and tensors declared so far.
pub(crate) fn read(input: &mut Input, ids: &PersistentIds, specs: Specs) -> Result<Pickle, Fault> {
    let mut machine = Machine {
        ids,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Memo::default(),
        arena: Arena::default(),
        globals: Globals::default(),
        specs,
        frame: None,
        skipped: 0,
        input,
    };
    let root = machine.run()?;
    Ok(Pickle { root, arena: machine.arena, globals: machine.globals, specs: machine.specs })
}

/// Returns the dtype of the storage class `value`.
pub(crate) fn storage_class_dtype(pickle: &Pickle, value: Value) -> Result<resnet_model::raw::Dtype, Fault> {
    match value {
        Value::Global(class) => persistent_id::storage_dtype(&pickle.globals, class),
        _ => Err(Fault::new(Code::Args, "storage without a class")),
    }
}

struct Machine<'a> {
    input: &'a mut Input,
    ids: &'a PersistentIds,
    stack: Vec<Value>,
    /// Stack heights of the open marks.
    marks: Vec<usize>,
    memo: Memo,
    arena: Arena,
    globals: Globals,
    specs: Specs,
    /// The end of the current frame.
    frame: Option<u64>,
    /// Number of bytes in skipped strings.
    skipped: u64,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Value, Fault> {
        let start = self.input.pos();
        for _ in 0..MAX_OPCODES {
            let at = self.input.pos();
            if let Some(end) = self.frame {
                match at.cmp(&end) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => self.frame = None,
                    std::cmp::Ordering::Greater => {
                        return Err(Fault::new(Code::Frame, "opcode crosses the end of its frame").at(end));
                    }
                }
            }
            if at.saturating_sub(start).saturating_sub(self.skipped) > MAX_PICKLE {
                return Err(Fault::new(Code::Limit, format!("pickle of more than {MAX_PICKLE} bytes")).at(at));
            }
            if let Some(root) = self.step().map_err(|fault| fault.at(at))? {
                return Ok(root);
            }
        }
        Err(Fault::new(Code::OpcodeCount, format!("more than {MAX_OPCODES} opcodes")).at(self.input.pos()))
    }

    /// Executes one opcode. Returns the result at STOP.
    fn step(&mut self) -> Result<Option<Value>, Fault> {
        let opcode = self.input.u8()?;
        match opcode {
            b'.' => return self.stop().map(Some),
            b'(' => {
                self.marks.push(self.stack.len());
                check_stack(self.marks.len())?;
            }
            b'0' => match self.marks.last() {
                Some(&height) if height == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop()?),
            },
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            // Constants and numbers.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let n = self.input.u8()?;
                self.push(Value::Int(i64::from(n)))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(i64::from(n)))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(i64::from(n)))?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.input.array()?);
                self.push(Value::Float(x))?;
            }
            0x8a => {
                let n = u64::from(self.input.u8()?);
                self.long(n)?;
            }
            0x8b => {
                let n = u64::try_from(i32::from_le_bytes(self.input.array()?))
                    .map_err(|_| Fault::new(Code::Length, "negative length of an integer"))?;
                self.long(n)?;
            }
            b'I' | b'L' | b'F' => {
                let line = self.input.line(MAX_LINE)?;
                let number = if opcode == b'F' { text::float(line)? } else { text::integer(line, opcode)? };
                self.push(number)?;
            }
            // Strings.
            0x8c | b'C' | b'U' => {
                let n = u64::from(self.input.u8()?);
                self.string(kind(opcode), n)?;
            }
            b'X' | b'B' => {
                let n = u64::from(self.input.u32()?);
                self.string(kind(opcode), n)?;
            }
            b'T' => {
                let n = u64::try_from(i32::from_le_bytes(self.input.array()?))
                    .map_err(|_| Fault::new(Code::Length, "negative length of a string"))?;
                self.string(Text::Either, n)?;
            }
            0x8d | 0x8e | 0x96 => {
                let n = self.input.u64()?;
                self.string(kind(opcode), n)?;
            }
            b'S' => {
                let bytes = text::quoted(self.input.line(MAX_LINE)?)?;
                let value = self.arena.push_str(Text::Either, &bytes)?;
                self.push(value)?;
            }
            b'V' => {
                let text = text::raw_unicode(self.input.line(MAX_LINE)?)?;
                let value = self.arena.push_str(Text::Unicode, text.as_bytes())?;
                self.push(value)?;
            }
            // Containers.
            b')' => self.push_node(Node::Tuple(Box::default()), &[])?,
            b']' => self.push_node(Node::List(vec![]), &[])?,
            b'}' => self.push_node(Node::Dict(vec![]), &[])?,
            0x8f => self.push_node(Node::Set(vec![]), &[])?,
            b't' => {
                let parts = self.pop_mark()?;
                self.push_tuple(&parts)?;
            }
            0x85..=0x87 => {
                let n = usize::from(opcode.saturating_sub(0x84));
                let parts = self.pop_many(n)?;
                self.push_tuple(&parts)?;
            }
            b'l' => {
                let parts = self.pop_mark()?;
                self.push_node(Node::List(parts.clone()), &parts)?;
            }
            0x91 => {
                let parts = self.pop_mark()?;
                self.push_node(Node::Set(parts.clone()), &parts)?;
            }
            b'd' => {
                let parts = self.pop_mark()?;
                let dict = self.arena.push(Node::Dict(vec![]), &[])?;
                self.calls().set_items(dict, &parts)?;
                self.push(dict)?;
            }
            b'a' => {
                let value = self.pop()?;
                let target = self.top()?;
                self.calls().append(target, &[value])?;
            }
            b'e' => {
                let values = self.pop_mark()?;
                let target = self.top()?;
                self.calls().append(target, &values)?;
            }
            0x90 => {
                let values = self.pop_mark()?;
                let target = self.top()?;
                self.add_items(target, &values)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                let target = self.top()?;
                self.calls().set_items(target, &[key, value])?;
            }
            b'u' => {
                let flat = self.pop_mark()?;
                let target = self.top()?;
                self.calls().set_items(target, &flat)?;
            }
            // The memo.
            b'p' | b'g' => {
                let line = self.input.line(MAX_LINE)?;
                let index = text::memo_index(line)?;
                if opcode == b'p' { self.put(index)? } else { self.get(index)? }
            }
            b'q' => {
                let index = u32::from(self.input.u8()?);
                self.put(index)?;
            }
            b'r' => {
                let index = self.input.u32()?;
                self.put(index)?;
            }
            0x94 => {
                let index = self.memo.len();
                self.put(index)?;
            }
            b'h' => {
                let index = u32::from(self.input.u8()?);
                self.get(index)?;
            }
            b'j' => {
                let index = self.input.u32()?;
                self.get(index)?;
            }
            // Names, calls and objects.
            b'c' => {
                let global = self.global_lines()?;
                self.push(global)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.arena.str(module), self.arena.str(name)) else {
                    let found = (self.arena.type_name(module), self.arena.type_name(name));
                    return Err(Fault::new(
                        Code::Type,
                        format!("STACK_GLOBAL: expected two strings, found ({}, {})", found.0, found.1),
                    ));
                };
                let global = self.globals.find(module, name)?;
                self.push(Value::Global(global))?;
            }
            b'R' => {
                let (args, function) = (self.pop()?, self.pop()?);
                let value = self.calls().call(function, args)?;
                self.push(value)?;
            }
            0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                let value = self.calls().new_object(class, args)?;
                self.push(value)?;
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                let value = self.calls().new_object(class, args)?;
                self.push(value)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                self.calls().build(target, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.ids.resolve(&self.arena, &self.globals, &mut self.specs, id)?;
                self.push(value)?;
            }
            b'P' => {
                let id = self.input.line(MAX_LINE)?.to_vec();
                let id = self.arena.push_str(Text::Unicode, &id)?;
                let value = self.ids.resolve(&self.arena, &self.globals, &mut self.specs, id)?;
                self.push(value)?;
            }
            b'i' => {
                self.global_lines()?;
                return Err(Fault::new(Code::Opcode, "unsupported instance of a Python 2 class"));
            }
            // The protocol.
            0x80 => match self.input.u8()? {
                0..=MAX_PROTOCOL => {}
                n => {
                    return Err(Fault::new(
                        Code::Protocol,
                        format!("unsupported pickle protocol {n}, expected at most {MAX_PROTOCOL}"),
                    ));
                }
            },
            0x95 => self.open_frame()?,
            _ => {
                return Err(Fault::new(Code::Opcode, format!("unsupported opcode 0x{opcode:02x}")));
            }
        }
        Ok(None)
    }

    fn stop(&mut self) -> Result<Value, Fault> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(Fault::new(Code::Stack, "values left on the stack at STOP"));
        }
        match self.frame {
            Some(end) if end != self.input.pos() => Err(Fault::new(Code::Frame, "frame exceeds the pickle")),
            _ => Ok(root),
        }
    }

    fn open_frame(&mut self) -> Result<(), Fault> {
        let len = self.input.u64()?;
        if self.frame.is_some() {
            return Err(Fault::new(Code::Frame, "nested frames"));
        }
        if len > self.input.left() {
            let detail = format!("frame of {len} bytes, {} left", self.input.left());
            return Err(Fault::new(Code::Frame, detail));
        }
        self.frame = Some(self.input.pos().saturating_add(len));
        Ok(())
    }

    fn calls(&mut self) -> CallContext<'_> {
        CallContext { arena: &mut self.arena, globals: &self.globals, specs: &mut self.specs }
    }

    /// Returns the stack height of the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value, Fault> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => Err(empty_stack()),
        }
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Value>, Fault> {
        let start = self.stack.len().checked_sub(n).filter(|&s| s >= self.floor()).ok_or_else(empty_stack)?;
        Ok(self.stack.split_off(start))
    }

    /// Pops the last mark and the values above it.
    fn pop_mark(&mut self) -> Result<Vec<Value>, Fault> {
        let height = self.marks.pop().ok_or_else(|| Fault::new(Code::Stack, "no mark on the stack"))?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        check_stack(self.stack.len())?;
        self.stack.push(value);
        Ok(())
    }

    fn push_node(&mut self, node: Node, parts: &[Value]) -> Result<(), Fault> {
        let value = self.arena.push(node, parts)?;
        self.push(value)
    }

    fn push_tuple(&mut self, parts: &[Value]) -> Result<(), Fault> {
        let value = self.arena.push_tuple(parts)?;
        self.push(value)
    }

    fn add_items(&mut self, target: Value, values: &[Value]) -> Result<(), Fault> {
        let error = self.calls().type_error("elements", target);
        let Value::Node(id) = target else { return Err(error) };
        match self.arena.grow(id, values)? {
            Some(Node::Set(set)) => set.extend_from_slice(values),
            Some(Node::Object(object)) => object.list.extend_from_slice(values),
            _ => return Err(error),
        }
        Ok(())
    }

    /// Reads a little-endian two's complement integer of `n` bytes.
    fn long(&mut self, n: u64) -> Result<(), Fault> {
        self.input.check(n)?;
        if n > MAX_INLINE {
            return Err(Fault::new(
                Code::Integer,
                format!("integer of {n} bytes, the limit is {MAX_INLINE}"),
            ));
        }
        let value = text::long(self.input.take(n as usize)?);
        self.push(value)
    }

    fn string(&mut self, text: Text, n: u64) -> Result<(), Fault> {
        self.input.check(n)?;
        let value = if n <= MAX_INLINE {
            let bytes = self.input.take(n as usize)?;
            if text == Text::Unicode && std::str::from_utf8(bytes).is_err() {
                return Err(Fault::new(Code::Text, "invalid UTF-8"));
            }
            self.arena.push_str(text, bytes)?
        } else {
            let offset = self.input.pos();
            self.input.skip(n)?;
            self.skipped = self.skipped.saturating_add(n);
            self.arena.push(Node::Str { span: Span::Input { offset, len: n }, text }, &[])?
        };
        self.push(value)
    }

    fn global_lines(&mut self) -> Result<Value, Fault> {
        let not_text = |_| Fault::new(Code::Text, "invalid UTF-8 in a name");
        let module = std::str::from_utf8(self.input.line(MAX_NAME)?).map_err(not_text)?.to_owned();
        let name = std::str::from_utf8(self.input.line(MAX_NAME)?).map_err(not_text)?;
        self.globals.find(&module, name).map(Value::Global)
    }

    fn put(&mut self, index: u32) -> Result<(), Fault> {
        let value = self.top()?;
        self.memo.put(index, value)
    }

    fn get(&mut self, index: u32) -> Result<(), Fault> {
        let value = self.memo.get(index);
        self.push(value.ok_or_else(|| Fault::new(Code::Memo, format!("missing memo entry {index}")))?)
    }
}

/// Returns the kind of string that an opcode creates.
fn kind(opcode: u8) -> Text {
    match opcode {
        b'X' | 0x8c | 0x8d => Text::Unicode,
        b'U' => Text::Either,
        _ => Text::Bytes,
    }
}

fn empty_stack() -> Fault {
    Fault::new(Code::Stack, "stack underflow")
}

fn check_stack(len: usize) -> Result<(), Fault> {
    match len < MAX_STACK {
        true => Ok(()),
        false => Err(Fault::new(Code::Limit, format!("more than {MAX_STACK} values on the stack"))),
    }
}
