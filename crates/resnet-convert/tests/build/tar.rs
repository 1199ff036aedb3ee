//! The tar that `torch.save` wrote before PyTorch 0.1.10.

use super::pickle::{dict, g, i, program, s, t};

/// A member of an archive.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    pub(crate) kind: u8,
}

impl Member {
    pub(crate) fn new(name: &str, data: Vec<u8>) -> Member {
        Member { name: name.into(), data, kind: b'0' }
    }
}

pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut block = vec![0u8; 512];
        let name = &member.name.as_bytes()[..member.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        block[124..135].copy_from_slice(format!("{:011o}", member.data.len()).as_bytes());
        block[148..156].copy_from_slice(b"        ");
        block[156] = member.kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(block);
        out.extend(&member.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A PAX header with one record.
pub(crate) fn pax(key: &str, value: &str) -> Member {
    let body = format!(" {key}={value}\n");
    let mut len = body.len() + 1;
    while format!("{len}{body}").len() != len {
        len += 1;
    }
    Member { kind: b'x', ..Member::new("PaxHeaders/x", format!("{len}{body}").into_bytes()) }
}

/// A checkpoint in a tar.
#[derive(Clone)]
pub(crate) struct Tar {
    pub(crate) storages: i64,
    pub(crate) numel: i64,
    /// (number, root, offset, elements).
    pub(crate) views: Vec<[i64; 4]>,
    pub(crate) tensors: i64,
    pub(crate) ndim: i32,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
    pub(crate) offset: i64,
    pub(crate) object: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// The storage that the tensor is in.
    pub(crate) storage: i64,
}

impl Default for Tar {
    fn default() -> Self {
        Tar {
            storages: 1,
            numel: 4,
            views: vec![],
            tensors: 1,
            ndim: 1,
            size: vec![4],
            stride: vec![1],
            offset: 0,
            object: program(&[b"}".to_vec(), s("w"), i(1), b"Qs".to_vec()]),
            data: vec![0; 16],
            storage: 0,
        }
    }
}

impl Tar {
    pub(crate) fn members(&self) -> Vec<Member> {
        let info = dict(&[(s("protocol_version"), i(1000)), (s("little_endian"), b"\x88".to_vec())]);
        let views = self.views.iter().flat_map(|v| t(&v.map(i))).collect();
        let storages = [
            program(&[i(self.storages)]),
            program(&[t(&[i(0), s("cpu"), g("torch", "FloatStorage")])]),
            self.numel.to_le_bytes().to_vec(),
            self.data.clone(),
            program(&[b"](".to_vec(), views, b"e".to_vec()]),
        ];
        let numbers = self.size.iter().chain(&self.stride).chain([&self.offset]);
        let tensors = [
            program(&[i(self.tensors)]),
            program(&[t(&[i(1), i(self.storage), g("torch", "FloatTensor")])]),
            self.ndim.to_le_bytes().to_vec(),
            vec![0; 4],
            numbers.flat_map(|n| n.to_le_bytes()).collect(),
        ];
        vec![
            Member::new("sys_info", program(&[info])),
            Member::new("pickle", self.object.clone()),
            Member::new("tensors", tensors.concat()),
            Member::new("storages", storages.concat()),
        ]
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        archive(&self.members())
    }

    /// Without the member `name`.
    pub(crate) fn without(name: &str) -> Vec<Member> {
        Tar::default().members().into_iter().filter(|m| m.name != name).collect()
    }
}
