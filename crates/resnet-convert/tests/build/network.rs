//! Builders of complete checkpoints in every container.

use std::collections::BTreeMap;

use resnet_model::arch::{Arch, Block, ResNet, Stage, Stem};
use resnet_model::param_specs::{self, Role};

use super::legacy::{self, Legacy};
use super::pickle::{Storage, Tensor, dict, g, i, ordered_dict, program, s, t};
use super::tar::{Member, archive};
use super::zip::{Entry, Pth};

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) name: String,
    /// The storage class: `FloatStorage`, `HalfStorage`, `LongStorage`.
    pub(crate) class: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Named {
    pub(crate) fn f32(name: &str, shape: &[usize], seed: usize) -> Named {
        let n: usize = shape.iter().product();
        let bytes = (0..n).flat_map(|i| ((i * 31 + seed * 7) as f32 * 0.25 - 3.0).to_le_bytes()).collect();
        Named { name: name.into(), class: "FloatStorage", shape: shape.to_vec(), bytes }
    }

    fn elements(&self) -> i64 {
        self.shape.iter().product::<usize>() as i64
    }

    fn size(&self) -> Vec<i64> {
        self.shape.iter().map(|&d| d as i64).collect()
    }

    fn code(&self, key: usize, legacy: bool) -> Vec<u8> {
        let view = legacy.then(|| b"N".to_vec());
        let storage = Storage { view, ..Storage::of(self.class, &key.to_string(), self.elements()) };
        Tensor::whole(storage, &self.size()).code()
    }

    fn descr(&self) -> &'static str {
        match self.class {
            "FloatStorage" => "f4",
            "HalfStorage" => "f2",
            _ => "i8",
        }
    }
}

/// A small network: a 7×7 stem, two stages.
pub(crate) fn small(block: Block, classes: usize) -> Arch {
    let stage = |depth, width| Stage { block, depth, width };
    Arch::ResNet(ResNet {
        stem: Stem::Conv7 { width: 8 },
        stages: vec![stage(2, 8), stage(1, 16)],
        num_classes: classes,
        ..ResNet::imagenet(Block::Basic, &[])
    })
}

/// Returns all tensors of a network, in order, with distinct values.
pub(crate) fn tensors(arch: &Arch) -> Vec<Named> {
    let params = arch.graph().unwrap().param_specs();
    let named = |(seed, p): (usize, param_specs::ParamSpec)| match p.role {
        Role::BatchesTracked => {
            let bytes = (seed as i64 + 1).to_le_bytes().to_vec();
            Named { name: p.name, class: "LongStorage", shape: vec![], bytes }
        }
        _ => Named::f32(&p.name, &p.shape, seed),
    };
    params.into_iter().enumerate().map(named).collect()
}

/// Returns the tensors with other names.
pub(crate) fn renamed(tensors: &[Named], rename: impl Fn(&str) -> String) -> Vec<Named> {
    tensors.iter().map(|t| Named { name: rename(&t.name), ..t.clone() }).collect()
}

/// Wraps `inner` in nested dictionaries with the keys `wrapper`.
fn wrapped(wrapper: &[&str], inner: Vec<u8>) -> Vec<u8> {
    wrapper.iter().rev().fold(inner, |inner, key| dict(&[(s("epoch"), i(3)), (s(key), inner)]))
}

fn items(tensors: &[Named], legacy: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    tensors.iter().enumerate().map(|(key, t)| (s(&t.name), t.code(key, legacy))).collect()
}

/// `torch.save({wrapper: state_dict})`.
pub(crate) fn zip(tensors: &[Named], wrapper: &[&str]) -> Vec<u8> {
    zip_of(tensors, wrapped(wrapper, dict(&items(tensors, false))))
}

/// `torch.save({"epoch": …, "arch": name, "state_dict": …})`, as training scripts do.
pub(crate) fn zip_named(tensors: &[Named], name: &str) -> Vec<u8> {
    let items = [(s("epoch"), i(3)), (s("arch"), s(name)), (s("state_dict"), dict(&items(tensors, false)))];
    zip_of(tensors, dict(&items))
}

fn zip_of(tensors: &[Named], object: Vec<u8>) -> Vec<u8> {
    let extra = tensors.iter().enumerate().map(|(k, t)| Entry::new(&format!("archive/data/{k}"), &t.bytes));
    let extra: Vec<Entry> = extra.map(|e| Entry { descriptor: true, ..e }).collect();
    Pth { pickle: program(&[object]), storages: vec![], extra, ..Pth::default() }.bytes()
}

/// `torch.save(module)`: tensors as parameters in a tree of modules.
pub(crate) fn module(tensors: &[Named]) -> Vec<u8> {
    zip_of(tensors, object(tensors, "", false))
}

/// `torch.jit.save(module)`.
pub(crate) fn script(tensors: &[Named]) -> Vec<u8> {
    let mut entries: Vec<Entry> = Vec::new();
    entries.extend(tensors.iter().enumerate().map(|(k, t)| Entry::new(&format!("net/data/{k}"), &t.bytes)));
    entries.push(Entry::new("net/data.pkl", program(&[object(tensors, "", true)])));
    entries.push(Entry::new("net/code/__torch__.py", "op_version_set = 1\n"));
    entries.push(Entry::new("net/constants.pkl", b"\x80\x02)."));
    entries.iter_mut().for_each(|e| e.descriptor = true);
    super::zip::archive(&entries)
}

/// The module of the names under `prefix`.
fn object(tensors: &[Named], prefix: &str, script: bool) -> Vec<u8> {
    let (mut own, mut children) = (Vec::new(), Vec::<(String, Vec<u8>)>::new());
    for (key, tensor) in tensors.iter().enumerate() {
        let Some(rest) = tensor.name.strip_prefix(prefix) else { continue };
        match rest.split_once('.') {
            None => {
                let rebuild = [
                    g("torch._utils", "_rebuild_parameter"),
                    t(&[tensor.code(key, false), b"\x88".to_vec(), ordered_dict()]),
                    b"R".to_vec(),
                ];
                own.push((s(rest), if script { tensor.code(key, false) } else { rebuild.concat() }));
            }
            Some((child, _)) if children.iter().all(|(c, _)| c != child) => {
                children.push((child.into(), object(tensors, &format!("{prefix}{child}."), script)));
            }
            Some(_) => {}
        }
    }
    let children: Vec<_> = children.into_iter().map(|(name, code)| (s(name), code)).collect();
    let (class, state) = if script {
        (
            g("__torch__.net", "Module"),
            dict(&[own, children, vec![(s("training"), b"\x89".to_vec())]].concat()),
        )
    } else {
        let parts = [
            (s("training"), b"\x89".to_vec()),
            (s("_parameters"), dict(&own)),
            (s("_buffers"), ordered_dict()),
            (s("_modules"), dict(&children)),
            (s("stride"), t(&[i(1), i(1)])),
        ];
        (g("torch.nn.modules.module", "Module"), dict(&parts))
    };
    [class, b")\x81".to_vec(), state, b"b".to_vec()].concat()
}

/// The legacy stream of `{wrapper: state_dict}`.
pub(crate) fn legacy(tensors: &[Named], wrapper: &[&str]) -> Vec<u8> {
    let keys: Vec<String> = (0..tensors.len()).map(|k| k.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    Legacy {
        object: program(&[wrapped(wrapper, dict(&items(tensors, true)))]),
        keys: legacy::keys(&keys),
        storages: tensors.iter().map(|t| (t.elements(), t.bytes.clone())).collect(),
        ..Legacy::default()
    }
    .bytes()
}

/// The tar of a state dict: old parameters that hold their tensor as an argument.
pub(crate) fn tar(tensors: &[Named]) -> Vec<u8> {
    let (mut storages, mut described) =
        (program(&[i(tensors.len() as i64)]), program(&[i(tensors.len() as i64)]));
    let mut entries = Vec::new();
    for (k, tensor) in tensors.iter().enumerate() {
        let (storage, id) = (k as i64 * 2, k as i64 * 2 + 1);
        storages.extend(program(&[t(&[i(storage), s("cpu"), g("torch", tensor.class)])]));
        storages.extend(tensor.elements().to_le_bytes());
        storages.extend(&tensor.bytes);
        described.extend(program(&[t(&[i(id), i(storage), g("torch", "FloatTensor")])]));
        described.extend((tensor.shape.len() as u64).to_le_bytes());
        let mut stride = tensor.elements();
        let mut strides = Vec::new();
        for &d in &tensor.shape {
            stride /= d as i64;
            strides.push(stride);
        }
        described.extend(tensor.size().iter().chain(&strides).chain([&0]).flat_map(|n| n.to_le_bytes()));
        let id = [s(id.to_string()), b"Q".to_vec()].concat();
        let state = t(&[b"\x88".to_vec(), b"\x89".to_vec(), ordered_dict()]);
        let parameter = [g("torch.nn.parameter", "Parameter"), id, b"\x85R".to_vec(), state, b"b".to_vec()];
        entries.push((s(&tensor.name), parameter.concat()));
    }
    storages.extend(program(&[b"]".to_vec()]));
    let info = program(&[dict(&[(s("protocol_version"), i(1000)), (s("little_endian"), b"\x88".to_vec())])]);
    archive(&[
        Member::new("sys_info", info),
        Member::new("pickle", program(&[dict(&entries)])),
        Member::new("tensors", described),
        Member::new("storages", storages),
    ])
}

/// `pickle.dump({wrapper: arrays})` of Python 2, whose strings are bytes.
pub(crate) fn arrays(tensors: &[Named], wrapper: &[&str]) -> Vec<u8> {
    let text = |text: &str| [&[b'U', text.len() as u8][..], text.as_bytes()].concat();
    let array = |tensor: &Named| {
        let start = [
            g("numpy.core.multiarray", "_reconstruct"),
            t(&[g("numpy", "ndarray"), t(&[i(0)]), text("b")]),
            b"R".to_vec(),
        ];
        let order = t(&[i(3), text("<"), b"N".to_vec(), b"N".to_vec(), b"N".to_vec(), i(-1), i(-1), i(0)]);
        let dtype = [
            g("numpy", "dtype"),
            t(&[text(tensor.descr()), i(0), i(1)]),
            b"R".to_vec(),
            order,
            b"b".to_vec(),
        ];
        let data = [&b"T"[..], &(tensor.bytes.len() as u32).to_le_bytes(), &tensor.bytes].concat();
        let size: Vec<_> = tensor.size().into_iter().map(i).collect();
        let state = t(&[i(1), t(&size), dtype.concat(), b"\x89".to_vec(), data]);
        [start.concat(), state, b"b".to_vec()].concat()
    };
    let items: Vec<_> = tensors.iter().map(|tensor| (text(&tensor.name), array(tensor))).collect();
    program(&[wrapped(wrapper, dict(&items))])
}

/// A safetensors file without metadata.
pub(crate) fn safetensors(tensors: &[Named]) -> Vec<u8> {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let dtype = match tensor.class {
            "FloatStorage" => "F32",
            "HalfStorage" => "F16",
            _ => "I64",
        };
        let (start, end) = (data.len().to_string(), (data.len() + tensor.bytes.len()).to_string());
        let shape = format!("{:?}", tensor.shape);
        header.push(format!(
            r#""{}":{}"#,
            tensor.name,
            super::safetensors::tensor(dtype, &shape, &start, &end)
        ));
        data.extend(&tensor.bytes);
    }
    super::safetensors::st(&format!("{{{}}}", header.join(",")), &data)
}

/// `numpy.savez`, or with method 8 `numpy.savez_compressed`.
pub(crate) fn npz(tensors: &[Named], method: u16) -> Vec<u8> {
    let array = |t: &Named| (t.name.clone(), super::npy::npy(&format!("<{}", t.descr()), &t.shape, &t.bytes));
    super::npy::npz(&tensors.iter().map(array).collect::<Vec<_>>(), method)
}

/// Names to shape and bytes, for comparison.
pub(crate) fn by_name(tensors: &[Named]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    tensors.iter().map(|t| (t.name.clone(), (t.shape.clone(), t.bytes.clone()))).collect()
}
