//! Reconciliation of a file's tensors with an architecture, as far as it is exact: reshapes, convolution biases absorbed by
//! batch norms, batch norms that were folded, and tensors omitted with `partial`.

use std::collections::HashSet;

use resnet_model::graph::{Graph, Node, Op};
use resnet_model::param_specs::{ParamSpec, Role};
use resnet_model::{Arch, RawTensor, Result};

use crate::dialect::Translation;
use crate::report::{Dropped, Reshaped, Synthesized};

/// Returns `arch` and the tensors, reconciled; the changes are recorded in the translation. With `partial`, unexpected
/// tensors are omitted, and so is a head that does not fit: the returned architecture may have none.
pub(crate) fn reconcile(arch: Arch, names: Translation, partial: bool) -> Result<(Arch, Translation)> {
    let (mut arch, mut names) = (arch, names);
    let mut graph = arch.graph()?;
    if partial && !head_fits(&graph, &names) {
        arch = arch.with_classes(0);
        graph = arch.graph()?;
    }
    reshape(&graph.param_specs(), &mut names);
    complete_norms(&graph, &mut names)?;
    let params = graph.param_specs();
    if partial {
        let known: HashSet<&str> = params.iter().map(|p| p.name.as_str()).collect();
        let unexpected: Vec<String> =
            names.tensors.keys().filter(|n| !known.contains(n.as_str())).cloned().collect();
        for name in unexpected {
            names.tensors.remove(&name);
            names.dropped.push(Dropped { name, reason: "not in the architecture".into() });
        }
    }
    let absent = params.into_iter().filter(|p| p.role.is_optional() && !names.tensors.contains_key(&p.name));
    names.unset = absent.map(|p| p.name).collect();
    Ok((arch, names))
}

/// Returns `true` if all tensors of the head are present, or the architecture has none.
fn head_fits(graph: &Graph, names: &Translation) -> bool {
    let Ok(tap) = graph.tap("logits") else { return true };
    let head = &graph.node(tap.node).name;
    let own = |p: &ParamSpec| p.name.strip_prefix(head.as_str()).is_some_and(|rest| rest.starts_with('.'));
    let mut params = graph.param_specs().into_iter().filter(own);
    params.all(|p| names.tensors.get(&p.name).is_some_and(|t| same_rows(t.shape(), &p.shape)))
}

/// Returns `true` if a weight of one shape can be reshaped to the other: a linear layer stored as a 1×1 convolution, or
/// the reverse.
fn same_rows(found: &[usize], expected: &[usize]) -> bool {
    let elements = |s: &[usize]| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    found.first() == expected.first() && elements(found) == elements(expected)
}

fn reshape(params: &[ParamSpec], names: &mut Translation) {
    for param in params.iter().filter(|p| p.role == Role::LinearWeight) {
        let Some(tensor) = names.tensors.get_mut(&param.name) else { continue };
        if tensor.shape() == param.shape || !same_rows(tensor.shape(), &param.shape) {
            continue;
        }
        let from = tensor.shape().to_vec();
        if let Some(reshaped) = tensor.reshape(param.shape.clone()) {
            *tensor = reshaped;
            names.reshaped.push(Reshaped { name: param.name.clone(), from, to: param.shape.clone() });
        }
    }
}

/// Completes the four vectors of every batch norm where they follow from others.
fn complete_norms(graph: &Graph, names: &mut Translation) -> Result<()> {
    for node in graph.nodes() {
        let Op::BatchNorm(norm) = &node.op else { continue };
        let of = |suffix: &str| format!("{}.{suffix}", node.name);
        let has = |names: &Translation, suffix: &str| names.tensors.contains_key(&of(suffix));
        let bias = unwanted_bias(graph, node, names);
        let vector = |value: f32| RawTensor::from_f32(vec![node.channels], &vec![value; node.channels]);
        // In f32, this variance plus the epsilon is exactly 1.
        let unit = (1.0 - norm.eps) as f32;
        let make = |names: &mut Translation, suffix: &str, tensor: Option<RawTensor>, reason: &str| {
            let Some(tensor) = tensor else { return };
            names.tensors.insert(of(suffix), tensor);
            names.synthesized.push(Synthesized { name: of(suffix), reason: reason.into() });
        };
        if let Some((bias, tensor)) = bias {
            if !["weight", "bias", "running_mean", "running_var"].iter().any(|s| has(names, s)) {
                let reason = "the norm was folded into the convolution";
                names.tensors.remove(&bias);
                make(names, "weight", vector(1.0), reason);
                make(names, "bias", Some(tensor), "the bias of the convolution with the folded norm");
                make(names, "running_mean", vector(0.0), reason);
                make(names, "running_var", vector(unit), reason);
                continue;
            }
            if let Some(mean) = names.tensors.get(&of("running_mean")) {
                let (mean, bias_values) = (mean.to_f32(&of("running_mean"))?, tensor.to_f32(&bias)?);
                if mean.len() == bias_values.len() {
                    let shifted: Vec<f32> = mean.iter().zip(&bias_values).map(|(m, b)| m - b).collect();
                    names.tensors.remove(&bias);
                    let reason = format!("`{bias}` was subtracted: the architecture has no such bias");
                    make(names, "running_mean", RawTensor::from_f32(vec![shifted.len()], &shifted), &reason);
                }
            }
        }
        if names.traits.affine && has(names, "weight") && has(names, "bias") && !has(names, "running_mean") {
            let reason = "the file's norm has scale and bias only";
            make(names, "running_mean", vector(0.0), reason);
            make(names, "running_var", vector(unit), reason);
        }
    }
    Ok(())
}

/// Returns the bias of the convolution before a norm, if the architecture has none there.
fn unwanted_bias(graph: &Graph, norm: &Node, names: &Translation) -> Option<(String, RawTensor)> {
    let before = graph.node(*norm.inputs.first()?);
    match &before.op {
        Op::Conv(conv) if !conv.bias => {
            let name = format!("{}.bias", before.name);
            let tensor = names.tensors.get(&name)?.clone();
            (tensor.shape() == [norm.channels]).then_some((name, tensor))
        }
        _ => None,
    }
}
