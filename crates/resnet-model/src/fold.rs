//! Batch norm folded into the preceding convolution, for inference.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Graph, Node, NodeId, Op};
use crate::{Checkpoint, Result};

/// A graph whose batch norms are folded into convolutions where possible, and the resulting weights.
#[derive(Debug, Clone)]
pub struct Folded {
    graph: Graph,
    changes: BTreeMap<String, ConvChange>,
}

/// The change to the weight and bias of a convolution.
#[derive(Debug, Clone, Default)]
struct ConvChange {
    /// Epsilon of the weight standardization.
    standardize: Option<f64>,
    /// The folded operations, in order.
    folded: Vec<FoldedOp>,
}

/// An operation folded into a convolution.
#[derive(Debug, Clone)]
enum FoldedOp {
    Norm { name: String, eps: f64 },
    Factor(f64),
}

/// Weight `[out, in / groups, height, width]` and bias `[out]` of a convolution, in row-major order.
#[derive(Debug, Clone)]
pub struct ConvValues {
    /// The weight.
    pub weight: Vec<f32>,
    /// The bias.
    pub bias: Vec<f32>,
}

/// Folds every batch norm and every multiplication by a constant into the preceding convolution if nothing else reads its
/// result, and replaces convolutions with standardized weights. Other norms stay, e.g. those before the convolutions of
/// pre-activation networks.
pub fn fold(graph: &Graph) -> Folded {
    let only_readers = graph.only_readers();
    let mut changes: BTreeMap<NodeId, ConvChange> = BTreeMap::new();
    // By node: the convolution that computes it, including folded operations.
    let mut owner: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    let mut removed: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let op = match &node.op {
            Op::Conv(_) => {
                owner.insert(id, id);
                continue;
            }
            Op::StdConv(std) => {
                owner.insert(id, id);
                changes.entry(id).or_default().standardize = Some(std.eps);
                continue;
            }
            Op::BatchNorm(norm) => FoldedOp::Norm { name: node.name.clone(), eps: norm.eps },
            Op::Multiply(m) => FoldedOp::Factor(m.factor),
            _ => continue,
        };
        let before = node.inputs[0];
        if let (Some(_), Some(&conv)) = (only_readers[before.index()], owner.get(&before)) {
            owner.insert(id, conv);
            changes.entry(conv).or_default().folded.push(op);
            removed.insert(id);
        }
    }
    let mut by_name = BTreeMap::new();
    let folded = graph.without(
        |id| removed.contains(&id),
        |id, node| {
            let Some(change) = changes.get(&id) else { return };
            if let Op::StdConv(std) = &node.op {
                node.op = Op::Conv(std.conv);
            }
            if let (Op::Conv(conv), true) = (&mut node.op, change.folded.iter().any(FoldedOp::adds_bias)) {
                conv.bias = true;
            }
            by_name.insert(node.name.clone(), change.clone());
        },
    );
    Folded { graph: folded, changes: by_name }
}

impl FoldedOp {
    fn adds_bias(&self) -> bool {
        matches!(self, FoldedOp::Norm { .. })
    }
}

impl Folded {
    /// Returns the graph without the folded operations; convolutions with a folded norm have a bias.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the weight and bias of a convolution of [`Folded::graph`], computed in f64: for a batch norm `w · s` and
    /// `(b − mean) · s + shift` with `s = scale / √(var + eps)`. The bias is zeros if there is none. The weight reuses the
    /// allocation of `buffer`.
    pub fn conv(&self, node: &Node, checkpoint: &Checkpoint, buffer: Vec<f32>) -> Result<ConvValues> {
        let mut weight = buffer;
        let name = format!("{}.weight", node.name);
        checkpoint.tensor(&name)?.read_f32(&name, &mut weight)?;
        let (factor, bias) = self.channels(node, checkpoint)?;
        let bias = bias.into_iter().map(|b| b as f32).collect();
        let Some(change) = self.changes.get(&node.name) else { return Ok(ConvValues { weight, bias }) };
        // Per output channel: the mean to subtract from the weight, and the scale.
        let per_channel = (weight.len() / node.channels).max(1);
        let mut scale = vec![1.0f64; node.channels];
        let mut mean = vec![0.0f64; node.channels];
        if let Some(eps) = change.standardize {
            for (c, weights) in weight.chunks_exact(per_channel).enumerate() {
                let n = per_channel as f64;
                mean[c] = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
                let var = weights.iter().map(|&w| (f64::from(w) - mean[c]).powi(2)).sum::<f64>() / n;
                scale[c] = 1.0 / (var + eps).sqrt();
            }
        }
        scale.iter_mut().zip(factor).for_each(|(s, f)| *s *= f);
        for ((weights, mean), scale) in weight.chunks_exact_mut(per_channel).zip(mean).zip(scale) {
            weights.iter_mut().for_each(|w| *w = ((f64::from(*w) - mean) * scale) as f32);
        }
        Ok(ConvValues { weight, bias })
    }

    /// Returns `true` if the weight of a convolution of [`Folded::graph`] is standardized.
    pub(crate) fn standardizes(&self, node: &Node) -> bool {
        self.changes.get(&node.name).is_some_and(|change| change.standardize.is_some())
    }

    /// Returns the bias without reading the weight.
    pub(crate) fn bias(&self, node: &Node, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        Ok(self.channels(node, checkpoint)?.1.into_iter().map(|b| b as f32).collect())
    }

    /// Returns the scale and the bias of each output channel after the folded operations.
    fn channels(&self, node: &Node, checkpoint: &Checkpoint) -> Result<(Vec<f64>, Vec<f64>)> {
        let own_bias = format!("{}.bias", node.name);
        let mut factor = vec![1.0f64; node.channels];
        let mut bias: Vec<f64> = match checkpoint.tensors().contains_key(&own_bias) {
            true => checkpoint.values(&own_bias)?.into_iter().map(f64::from).collect(),
            false => vec![0.0; node.channels],
        };
        for op in self.changes.get(&node.name).iter().flat_map(|change| &change.folded) {
            match op {
                FoldedOp::Factor(by) => {
                    factor.iter_mut().for_each(|f| *f *= by);
                    bias.iter_mut().for_each(|b| *b *= by);
                }
                FoldedOp::Norm { name, eps } => {
                    let tensor = |suffix| checkpoint.values(&format!("{name}.{suffix}"));
                    let (scale, shift) = (tensor("weight")?, tensor("bias")?);
                    let (mean, var) = (tensor("running_mean")?, tensor("running_var")?);
                    for c in 0..node.channels {
                        let s = f64::from(scale[c]) / (f64::from(var[c]) + eps).sqrt();
                        factor[c] *= s;
                        bias[c] = (bias[c] - f64::from(mean[c])) * s + f64::from(shift[c]);
                    }
                }
            }
        }
        Ok((factor, bias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    #[test]
    fn every_norm_of_a_resnet_folds() {
        for name in ["resnet18", "resnet50", "resnet20_cifar", "plain34"] {
            let graph = zoo::arch(name).unwrap().graph().unwrap();
            let folded = fold(&graph);
            let count =
                |g: &Graph, wanted: fn(&Op) -> bool| g.nodes().iter().filter(|n| wanted(&n.op)).count();
            assert_eq!(count(folded.graph(), |op| matches!(op, Op::BatchNorm(_))), 0, "{name}");
            assert_eq!(count(folded.graph(), |op| matches!(op, Op::Conv(c) if !c.bias)), 0, "{name}");
            let taps = |g: &Graph| {
                g.taps().iter().map(|t| (t.name.clone(), g.node(t.node).name.clone())).collect::<Vec<_>>()
            };
            assert_eq!(taps(&graph), taps(folded.graph()), "{name}");
        }
    }
}
