//! Typed access to the attributes of a node.

use super::proto::{AttributeProto, NodeProto, TensorProto};
use crate::error::{Code, Fault};

impl NodeProto {
    /// Returns the name and operator for messages: `conv1 (Conv)`.
    pub(crate) fn label(&self) -> String {
        let name =
            if self.name.is_empty() { self.outputs.first().map_or("", String::as_str) } else { &self.name };
        format!("{name} ({})", self.op)
    }

    /// Returns a fault of this node.
    pub(crate) fn fault(&self, code: Code, detail: impl Into<String>) -> Fault {
        Fault::new(code, detail).within(&self.label())
    }

    /// Returns a fault for an unsupported graph at this node.
    pub(crate) fn graph_fault(&self, detail: impl Into<String>) -> Fault {
        self.fault(Code::Graph, detail)
    }

    pub(crate) fn input(&self, i: usize) -> &str {
        self.inputs.get(i).map_or("", String::as_str)
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|a| a.name == name)
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name)?.i
    }

    pub(crate) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.int_or(name, 0) != 0
    }

    pub(crate) fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name)?.f
    }

    pub(crate) fn float_or(&self, name: &str, default: f32) -> f32 {
        self.float(name).unwrap_or(default)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.attribute(name)?.s.as_deref()
    }

    pub(crate) fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    pub(crate) fn floats(&self, name: &str) -> Option<&[f32]> {
        self.attribute(name).map(|a| a.floats.as_slice())
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name)?.t.as_ref()
    }

    /// Returns an attribute of two positive sizes, height and width, or `default` if it is absent.
    pub(crate) fn pair(&self, name: &str, default: [usize; 2]) -> Result<[usize; 2], Fault> {
        let Some(list) = self.ints(name) else { return Ok(default) };
        let size = |&v: &i64| usize::try_from(v).ok().filter(|v| (1..=1 << 16).contains(v));
        match list.iter().map(size).collect::<Option<Vec<_>>>().as_deref() {
            Some(&[height, width]) => Ok([height, width]),
            _ => Err(self.graph_fault(format!("invalid {name} {list:?}, expected two positive sizes"))),
        }
    }
}
