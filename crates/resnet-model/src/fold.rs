//! Batch norm folded into the convolution before it: the same function with fewer operations, for inference.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Graph, Node, NodeId, Op};
use crate::{Checkpoint, Result};

/// A graph whose batch norms have moved into convolutions where that is possible, and how their weights follow.
#[derive(Debug, Clone)]
pub struct Folded {
    graph: Graph,
    changes: BTreeMap<String, Change>,
}

/// What becomes of a convolution's weights.
#[derive(Debug, Clone, Default)]
struct Change {
    /// Weight standardisation, by its epsilon.
    standardize: Option<f64>,
    /// Whatever followed the convolution, in order.
    after: Vec<After>,
}

/// An operation that a convolution has taken in.
#[derive(Debug, Clone)]
enum After {
    Norm { name: String, eps: f64 },
    Factor(f64),
}

/// A convolution's weight `[out, in / groups, height, width]` and bias `[out]`, in row-major order.
#[derive(Debug, Clone)]
pub struct ConvValues {
    /// The weight.
    pub weight: Vec<f32>,
    /// The bias.
    pub bias: Vec<f32>,
}

/// Folds every batch norm and every multiplication by a constant that is the only user of a convolution into it, and
/// standardises the weights that are to be. Others stay, e.g. the norms before the convolutions of pre-activation
/// networks.
pub fn fold(graph: &Graph) -> Folded {
    let uses = graph.uses();
    let mut changes: BTreeMap<NodeId, Change> = BTreeMap::new();
    // Which convolution computes a node, alone or together with what follows it.
    let mut owner: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    let mut taken: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let after = match &node.op {
            Op::Conv(_) => {
                owner.insert(id, id);
                continue;
            }
            Op::StdConv(std) => {
                owner.insert(id, id);
                changes.entry(id).or_default().standardize = Some(std.eps);
                continue;
            }
            Op::BatchNorm(norm) => After::Norm { name: node.name.clone(), eps: norm.eps },
            Op::Multiply(m) => After::Factor(m.factor),
            _ => continue,
        };
        let before = node.inputs[0];
        let alone = uses[before.index()] == 1 && graph.taps().iter().all(|t| t.node != before);
        if let (true, Some(&conv)) = (alone, owner.get(&before)) {
            owner.insert(id, conv);
            changes.entry(conv).or_default().after.push(after);
            taken.insert(id);
        }
    }
    let mut by_name = BTreeMap::new();
    let folded = graph.without(
        |id| taken.contains(&id),
        |id, node| {
            let Some(change) = changes.get(&id) else { return };
            if let Op::StdConv(std) = &node.op {
                node.op = Op::Conv(std.conv);
            }
            if let (Op::Conv(conv), true) = (&mut node.op, change.after.iter().any(After::adds)) {
                conv.bias = true;
            }
            by_name.insert(node.name.clone(), change.clone());
        },
    );
    Folded { graph: folded, changes: by_name }
}

impl After {
    /// Whether it gives the convolution a bias.
    fn adds(&self) -> bool {
        matches!(self, After::Norm { .. })
    }
}

impl Folded {
    /// The graph without the folded norms; convolutions that took one in have a bias.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The weight and bias of a convolution of [`Folded::graph`], computed in f64 from the tensors of the original: for
    /// a batch norm `w · s` and `(b − mean) · s + shift` with `s = scale / √(var + eps)`. A convolution without bias gets
    /// zeros. The weight lies in `memory`, whose contents are lost.
    pub fn conv(&self, node: &Node, checkpoint: &Checkpoint, memory: Vec<f32>) -> Result<ConvValues> {
        let mut weight = memory;
        let name = format!("{}.weight", node.name);
        checkpoint.tensor(&name)?.read_f32(&name, &mut weight)?;
        let (factor, bias) = self.channels(node, checkpoint)?;
        let bias = bias.into_iter().map(|b| b as f32).collect();
        let Some(change) = self.changes.get(&node.name) else { return Ok(ConvValues { weight, bias }) };
        // Per output channel: the weight's mean, and what is left is multiplied by.
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

    /// Whether the weight of a convolution of [`Folded::graph`] is standardised.
    pub(crate) fn standardizes(&self, node: &Node) -> bool {
        self.changes.get(&node.name).is_some_and(|change| change.standardize.is_some())
    }

    /// The bias alone, without reading the weight.
    pub(crate) fn bias(&self, node: &Node, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        Ok(self.channels(node, checkpoint)?.1.into_iter().map(|b| b as f32).collect())
    }

    /// What followed a convolution, per output channel: the factor of its results and the bias.
    fn channels(&self, node: &Node, checkpoint: &Checkpoint) -> Result<(Vec<f64>, Vec<f64>)> {
        let own_bias = format!("{}.bias", node.name);
        let mut factor = vec![1.0f64; node.channels];
        let mut bias: Vec<f64> = match checkpoint.tensors().contains_key(&own_bias) {
            true => checkpoint.values(&own_bias)?.into_iter().map(f64::from).collect(),
            false => vec![0.0; node.channels],
        };
        for after in self.changes.get(&node.name).iter().flat_map(|change| &change.after) {
            match after {
                After::Factor(by) => {
                    factor.iter_mut().for_each(|f| *f *= by);
                    bias.iter_mut().for_each(|b| *b *= by);
                }
                After::Norm { name, eps } => {
                    let part = |suffix| checkpoint.values(&format!("{name}.{suffix}"));
                    let (scale, shift) = (part("weight")?, part("bias")?);
                    let (mean, var) = (part("running_mean")?, part("running_var")?);
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
