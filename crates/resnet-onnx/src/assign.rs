//! Assigns the tensors of a foreign graph to the names of the architecture.

use std::collections::BTreeMap;

use resnet_model::RawTensor;
use resnet_model::graph::{Conv, Graph, Node, Op, StdConv};

use super::canonical::CanonicalNode;
use super::cells::{Cell, CellGraph, CellKind, Tensors};
use super::constant::Constant;
use super::simplify::row;

/// Tensors with the names of the architecture.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    pub(crate) renamed: Vec<(String, String)>,
    /// Number of batch norms synthesized because the graph has them folded.
    pub(crate) synthesized_norms: usize,
}

/// Assigns tensors to every node, or returns a message for the first node without a match.
pub(crate) fn assign(
    graph: &Graph,
    net: &CellGraph,
    pairs: impl Iterator<Item = (CanonicalNode, CanonicalNode)>,
) -> Result<Assigned, String> {
    let mut out = Assigned::default();
    for (ours, theirs) in pairs {
        let nodes: Vec<&Node> = ours.members.iter().filter_map(|&i| graph.nodes().get(i)).collect();
        let cells: Vec<&Cell> = theirs.members.iter().filter_map(|&i| net.cells.get(i)).collect();
        let label = cells.first().map_or("", |c| c.label.as_str());
        let assigned = out.pair(&nodes, &cells);
        assigned.map_err(|reason| format!("`{}`: {reason}", resnet_model::escape(label)))?;
    }
    Ok(out)
}

/// A norm `x · scale + shift`, with running statistics if it is a batch norm.
struct NormLike<'a> {
    tensors: &'a Tensors,
    eps: Option<f64>,
}

fn norm_like(cell: &Cell) -> Option<NormLike<'_>> {
    match &cell.kind {
        CellKind::Op(Op::BatchNorm(norm), tensors) => Some(NormLike { tensors, eps: Some(norm.eps) }),
        CellKind::Affine(tensors) => Some(NormLike { tensors, eps: None }),
        _ => None,
    }
}

fn tensors(cell: &Cell) -> Option<&Tensors> {
    match &cell.kind {
        CellKind::Op(_, tensors) | CellKind::Affine(tensors) => Some(tensors),
        _ => None,
    }
}

impl Assigned {
    fn insert(&mut self, name: String, constant: &Constant) {
        if constant.name != name {
            self.renamed.push((constant.name.clone(), name.clone()));
        }
        self.tensors.insert(name, constant.tensor.clone());
    }

    fn insert_values(&mut self, name: String, values: &[f32]) -> Result<(), String> {
        self.tensors.insert(name, row(values).ok_or("values do not form a tensor")?);
        Ok(())
    }

    fn pair(&mut self, nodes: &[&Node], cells: &[&Cell]) -> Result<(), String> {
        let (Some(node), Some(cell)) = (nodes.first(), cells.first()) else { return Ok(()) };
        let own = tensors(cell).ok_or("missing tensors")?;
        match &node.op {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => self.conv(conv, nodes, own, cells),
            Op::BatchNorm(norm) => {
                let norms: Vec<NormLike> = cells.iter().filter_map(|c| norm_like(c)).collect();
                self.norm(&node.name, node.channels, norm.eps, &norms, None)
            }
            Op::GroupNorm(_) => {
                self.insert_or(format!("{}.weight", node.name), own.weight.as_ref(), node.channels, 1.0)?;
                self.insert_or(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)
            }
            Op::Linear(linear) => {
                let weight = own.weight.as_ref().and_then(|w| w.reshape(&linear.weight_shape()));
                self.insert(
                    format!("{}.weight", node.name),
                    &weight.ok_or("weight size does not match the architecture")?,
                );
                self.insert_or(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)
            }
            Op::ChannelConv(conv) => {
                let weight = own.weight.as_ref().and_then(|w| w.reshape(&[1, 1, conv.kernel]));
                self.insert(
                    format!("{}.weight", node.name),
                    &weight.ok_or("weight size does not match the architecture")?,
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Inserts `constant` `[C]`, or `neutral` for every channel if it is `None`.
    fn insert_or(
        &mut self,
        name: String,
        constant: Option<&Constant>,
        channels: usize,
        neutral: f32,
    ) -> Result<(), String> {
        match constant {
            Some(constant) => {
                self.insert(name, constant);
                Ok(())
            }
            None => self.insert_values(name, &vec![neutral; channels]),
        }
    }

    fn conv(&mut self, conv: &Conv, nodes: &[&Node], own: &Tensors, cells: &[&Cell]) -> Result<(), String> {
        let node = nodes.first().ok_or("missing node")?;
        let weight = own.weight.as_ref().and_then(|w| w.reshape(&conv.weight_shape()));
        self.insert(
            format!("{}.weight", node.name),
            &weight.ok_or("weight size does not match the architecture")?,
        );
        let norms: Vec<NormLike> = cells.iter().skip(1).filter_map(|c| norm_like(c)).collect();
        // The bias of a convolution without one becomes part of the norm.
        let extra_bias = match conv.bias {
            true => {
                self.insert_or(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)?;
                None
            }
            false => own.bias.as_ref(),
        };
        match nodes.get(1) {
            Some(norm) => {
                let Op::BatchNorm(spec) = &norm.op else { return Err("expected a batch norm".into()) };
                self.norm(&norm.name, norm.channels, spec.eps, &norms, extra_bias)
            }
            None if !norms.is_empty() => Err(format!("unexpected norm after it; `{}` has none", node.name)),
            None => match extra_bias.map(values).transpose()? {
                Some(bias) if bias.iter().any(|&b| b != 0.0) => {
                    Err(format!("unexpected bias; `{}` has none", node.name))
                }
                _ => Ok(()),
            },
        }
    }

    /// Inserts a batch norm from its counterpart in the graph: a batch norm, a scale and a shift, or only the bias of the
    /// convolution that it was folded into.
    fn norm(
        &mut self,
        name: &str,
        channels: usize,
        eps: f64,
        norms: &[NormLike],
        bias: Option<&Constant>,
    ) -> Result<(), String> {
        let key = |suffix: &str| format!("{name}.{suffix}");
        match norms {
            [NormLike { tensors: norm, eps: Some(theirs) }] => {
                self.insert_or(key("weight"), norm.weight.as_ref(), channels, 1.0)?;
                self.insert_or(key("bias"), norm.bias.as_ref(), channels, 0.0)?;
                let mean = norm.mean.as_ref().ok_or("missing mean")?;
                match bias.map(values).transpose()? {
                    // x + b − mean = x − (mean − b).
                    Some(bias) if bias.iter().any(|&b| b != 0.0) => {
                        let moved: Vec<f32> = values(mean)?.iter().zip(&bias).map(|(m, b)| m - b).collect();
                        self.insert_values(key("running_mean"), &moved)?;
                    }
                    _ => self.insert(key("running_mean"), mean),
                }
                let var = norm.var.as_ref().ok_or("missing variance")?;
                match *theirs == eps {
                    true => self.insert(key("running_var"), var),
                    false => {
                        let extra = theirs - eps;
                        let moved: Vec<f32> =
                            values(var)?.iter().map(|&v| (f64::from(v) + extra) as f32).collect();
                        self.insert_values(key("running_var"), &moved)?;
                    }
                }
                Ok(())
            }
            [] | [NormLike { eps: None, .. }] => {
                self.synthesized_norms = self.synthesized_norms.saturating_add(1);
                let (scale, shift) = match norms.first() {
                    Some(norm) => (norm.tensors.weight.as_ref(), norm.tensors.bias.as_ref()),
                    None => (None, None),
                };
                self.insert_or(key("weight"), scale, channels, 1.0)?;
                match (shift, scale.is_some(), bias) {
                    (None, false, Some(bias)) => {
                        self.insert(key("bias"), bias);
                        self.insert_values(key("running_mean"), &vec![0.0; channels])?;
                    }
                    (shift, _, bias) => {
                        self.insert_or(key("bias"), shift, channels, 0.0)?;
                        let mean = match bias.map(values).transpose()? {
                            Some(bias) => bias.into_iter().map(|b| -b).collect(),
                            None => vec![0.0; channels],
                        };
                        self.insert_values(key("running_mean"), &mean)?;
                    }
                }
                // Variance plus epsilon is one.
                self.insert_values(key("running_var"), &vec![(1.0 - eps) as f32; channels])
            }
            _ => Err("unsupported consecutive norms".into()),
        }
    }
}

fn values(constant: &Constant) -> Result<Vec<f32>, String> {
    constant
        .values()
        .ok_or_else(|| format!("constant `{}` is not numeric", resnet_model::escape(&constant.name)))
}
