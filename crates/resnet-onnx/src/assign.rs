//! The tensors of a foreign graph under the names of ours.

use std::collections::BTreeMap;

use resnet_model::RawTensor;
use resnet_model::graph::{Conv, Graph, Node, Op, StdConv};

use super::canonical::CanonicalNode;
use super::cells::{Cell, CellGraph, CellKind, Tensors};
use super::constant::Constant;
use super::simplify::row;

/// Our tensors.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    pub(crate) renamed: Vec<(String, String)>,
    /// Batch norms that had to be made up, since the graph has them folded.
    pub(crate) unfolded: usize,
}

/// Gives every node its tensors; why that cannot be otherwise.
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
        let given = out.pair(&nodes, &cells);
        given.map_err(|why| format!("`{}`: {why}", resnet_model::escape(label)))?;
    }
    Ok(out)
}

/// A norm in the form `x · scale + shift`, with the statistics where there are any.
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
    fn put(&mut self, name: String, constant: &Constant) {
        if constant.name != name {
            self.renamed.push((constant.name.clone(), name.clone()));
        }
        self.tensors.insert(name, constant.tensor.clone());
    }

    fn make(&mut self, name: String, values: &[f32]) -> Result<(), String> {
        self.tensors.insert(name, row(values).ok_or("numbers that make no tensor")?);
        Ok(())
    }

    fn pair(&mut self, nodes: &[&Node], cells: &[&Cell]) -> Result<(), String> {
        let (Some(node), Some(cell)) = (nodes.first(), cells.first()) else { return Ok(()) };
        let own = tensors(cell).ok_or("no tensors")?;
        match &node.op {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => self.conv(conv, nodes, own, cells),
            Op::BatchNorm(norm) => {
                let norms: Vec<NormLike> = cells.iter().filter_map(|c| norm_like(c)).collect();
                self.norm(&node.name, node.channels, norm.eps, &norms, None)
            }
            Op::GroupNorm(_) => {
                self.filled(format!("{}.weight", node.name), own.weight.as_ref(), node.channels, 1.0)?;
                self.filled(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)
            }
            Op::Linear(linear) => {
                let weight = own.weight.as_ref().and_then(|w| w.reshape(&linear.weight_shape()));
                self.put(format!("{}.weight", node.name), &weight.ok_or("a weight of another size")?);
                self.filled(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)
            }
            Op::ChannelConv(conv) => {
                let weight = own.weight.as_ref().and_then(|w| w.reshape(&[1, 1, conv.kernel]));
                self.put(format!("{}.weight", node.name), &weight.ok_or("a weight of another size")?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A tensor `[C]`, or what it is where there is none.
    fn filled(
        &mut self,
        name: String,
        constant: Option<&Constant>,
        channels: usize,
        neutral: f32,
    ) -> Result<(), String> {
        match constant {
            Some(constant) => {
                self.put(name, constant);
                Ok(())
            }
            None => self.make(name, &vec![neutral; channels]),
        }
    }

    fn conv(&mut self, conv: &Conv, nodes: &[&Node], own: &Tensors, cells: &[&Cell]) -> Result<(), String> {
        let node = nodes.first().ok_or("no node")?;
        let weight = own.weight.as_ref().and_then(|w| w.reshape(&conv.weight_shape()));
        self.put(format!("{}.weight", node.name), &weight.ok_or("a weight of another size")?);
        let norms: Vec<NormLike> = cells.iter().skip(1).filter_map(|c| norm_like(c)).collect();
        // A bias that our convolution has no place for becomes part of the norm.
        let rest = match conv.bias {
            true => {
                self.filled(format!("{}.bias", node.name), own.bias.as_ref(), node.channels, 0.0)?;
                None
            }
            false => own.bias.as_ref(),
        };
        match nodes.get(1) {
            Some(norm) => {
                let Op::BatchNorm(spec) = &norm.op else { return Err("no batch norm".into()) };
                self.norm(&norm.name, norm.channels, spec.eps, &norms, rest)
            }
            None if !norms.is_empty() => Err(format!("a norm after it, which `{}` has not", node.name)),
            None => match rest.map(values).transpose()? {
                Some(bias) if bias.iter().any(|&b| b != 0.0) => {
                    Err(format!("a bias, which `{}` has not", node.name))
                }
                _ => Ok(()),
            },
        }
    }

    /// A batch norm from what the graph has in its place: one of its own, a scale and a shift, or nothing but the bias of
    /// the convolution that it was folded into.
    fn norm(
        &mut self,
        name: &str,
        channels: usize,
        eps: f64,
        norms: &[NormLike],
        bias: Option<&Constant>,
    ) -> Result<(), String> {
        let part = |suffix: &str| format!("{name}.{suffix}");
        match norms {
            [NormLike { tensors: norm, eps: Some(theirs) }] => {
                self.filled(part("weight"), norm.weight.as_ref(), channels, 1.0)?;
                self.filled(part("bias"), norm.bias.as_ref(), channels, 0.0)?;
                let mean = norm.mean.as_ref().ok_or("no mean")?;
                match bias.map(values).transpose()? {
                    // (x + b − mean): the mean takes the bias in.
                    Some(bias) if bias.iter().any(|&b| b != 0.0) => {
                        let moved: Vec<f32> = values(mean)?.iter().zip(&bias).map(|(m, b)| m - b).collect();
                        self.make(part("running_mean"), &moved)?;
                    }
                    _ => self.put(part("running_mean"), mean),
                }
                let var = norm.var.as_ref().ok_or("no variance")?;
                match *theirs == eps {
                    true => self.put(part("running_var"), var),
                    false => {
                        let more = theirs - eps;
                        let moved: Vec<f32> =
                            values(var)?.iter().map(|&v| (f64::from(v) + more) as f32).collect();
                        self.make(part("running_var"), &moved)?;
                    }
                }
                Ok(())
            }
            [] | [NormLike { eps: None, .. }] => {
                self.unfolded = self.unfolded.saturating_add(1);
                let (scale, shift) = match norms.first() {
                    Some(norm) => (norm.tensors.weight.as_ref(), norm.tensors.bias.as_ref()),
                    None => (None, None),
                };
                self.filled(part("weight"), scale, channels, 1.0)?;
                match (shift, scale.is_some(), bias) {
                    (None, false, Some(bias)) => {
                        self.put(part("bias"), bias);
                        self.make(part("running_mean"), &vec![0.0; channels])?;
                    }
                    (shift, _, bias) => {
                        self.filled(part("bias"), shift, channels, 0.0)?;
                        let mean = match bias.map(values).transpose()? {
                            Some(bias) => bias.into_iter().map(|b| -b).collect(),
                            None => vec![0.0; channels],
                        };
                        self.make(part("running_mean"), &mean)?;
                    }
                }
                // So that variance and epsilon add up to one.
                self.make(part("running_var"), &vec![(1.0 - eps) as f32; channels])
            }
            _ => Err("several norms in a row".into()),
        }
    }
}

fn values(constant: &Constant) -> Result<Vec<f32>, String> {
    constant.values().ok_or_else(|| format!("`{}` cannot be read", resnet_model::escape(&constant.name)))
}
