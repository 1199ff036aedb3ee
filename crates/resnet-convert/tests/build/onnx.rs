//! Builders of ONNX models, field by field.

/// Encodes a varint.
pub(crate) fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (n & 0x7f) as u8;
        n >>= 7;
        out.push(if n > 0 { byte | 0x80 } else { byte });
        if n == 0 {
            return out;
        }
    }
}

/// Encodes a length-delimited field.
pub(crate) fn bytes(tag: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(tag << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// Encodes a varint field.
pub(crate) fn number(tag: u64, value: i64) -> Vec<u8> {
    [varint(tag << 3), varint(value as u64)].concat()
}

/// A tensor; by default `w`, four f32 zeros.
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dims: Vec<i64>,
    pub(crate) data_type: i64,
    pub(crate) raw: Option<Vec<u8>>,
    /// Entries of `external_data`.
    pub(crate) external: Vec<(&'a str, &'a str)>,
    /// Additional encoded fields.
    pub(crate) more: Vec<u8>,
}

impl Default for Tensor<'_> {
    fn default() -> Self {
        Tensor {
            name: "w",
            dims: vec![4],
            data_type: 1,
            raw: Some(vec![0; 16]),
            external: vec![],
            more: vec![],
        }
    }
}

impl Tensor<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out: Vec<u8> = self.dims.iter().flat_map(|&d| number(1, d)).collect();
        out.extend(number(2, self.data_type));
        out.extend(bytes(8, self.name));
        out.extend(self.raw.iter().flat_map(|raw| bytes(9, raw)));
        for (key, value) in &self.external {
            out.extend(bytes(13, [bytes(1, key), bytes(2, value)].concat()));
        }
        if !self.external.is_empty() {
            out.extend(number(14, 1));
        }
        out.extend(&self.more);
        out
    }
}

/// Encodes a node without attributes.
pub(crate) fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    node_with(op, inputs, output, &[])
}

/// Encodes a node with attributes.
pub(crate) fn node_with(op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i)).collect();
    bytes(1, [inputs, bytes(2, output), bytes(4, op), attributes.concat()].concat())
}

/// Encodes an integer list attribute.
pub(crate) fn ints(name: &str, values: &[i64]) -> Vec<u8> {
    let values = values.iter().flat_map(|&v| number(8, v)).collect();
    bytes(5, [bytes(1, name), values, number(20, 7)].concat())
}

/// Encodes an integer attribute.
pub(crate) fn int(name: &str, value: i64) -> Vec<u8> {
    bytes(5, [bytes(1, name), number(3, value), number(20, 2)].concat())
}

/// Encodes an input (tag 11) or output (tag 12) of a graph.
pub(crate) fn end(tag: u64, name: &str) -> Vec<u8> {
    bytes(tag, bytes(1, name))
}

/// Encodes a model of operator set 17 with these graph fields.
pub(crate) fn model(graph: &[u8]) -> Vec<u8> {
    let opset = bytes(8, [bytes(1, ""), number(2, 17)].concat());
    [number(1, 9), opset, bytes(7, graph)].concat()
}

/// Encodes a model with only initializers.
pub(crate) fn tensors(tensors: &[Tensor]) -> Vec<u8> {
    let graph: Vec<u8> = tensors.iter().flat_map(|t| bytes(5, t.bytes())).collect();
    model(&graph)
}
