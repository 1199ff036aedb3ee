//! Every naming scheme in every container: the table of `README.md`, cell by cell.

mod cases;

use resnet_convert::{ConvertOptions, Report};
use resnet_model::Checkpoint;
use resnet_model::arch::Arch;

use crate::build::network::{self, Named, by_name};
use crate::convert::{convert, shards};

/// A file in some naming scheme and what becomes of it.
pub(crate) struct Case {
    /// The dialect told in the report.
    dialect: &'static str,
    /// The tensors of the file.
    file: Vec<Named>,
    arch: Arch,
    /// The tensors of the result.
    expected: Vec<Named>,
}

fn prove(case: &Case, bytes: &[u8]) {
    let (checkpoint, report) = convert(bytes, &ConvertOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    agree(case, &checkpoint, &report);
    assert_eq!(checkpoint.meta().origin.dialect.as_deref(), Some(case.dialect));
}

fn agree(case: &Case, checkpoint: &Checkpoint, report: &Report) {
    assert_eq!((report.dialect.as_str(), &checkpoint.meta().arch), (case.dialect, &case.arch));
    let found = checkpoint.tensors().iter();
    let found = found.map(|(name, t)| (name.clone(), (t.shape().to_vec(), t.read().unwrap()))).collect();
    let expected = by_name(&case.expected);
    assert!(expected == found, "other tensors than expected:\n{report}");
}

/// The tensors in two files, and an index of them.
fn prove_shards(case: &Case, save: impl Fn(&[Named]) -> Vec<u8>) {
    let (first, second) = case.file.split_at(case.file.len() / 2);
    let at = shards::write(&[first, second], save);
    let (checkpoint, report) =
        resnet_convert::open(&at.path, &ConvertOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    agree(case, &checkpoint, &report);
}

/// The columns of the table: a file of each kind with the tensors of a case.
mod columns {
    use super::{Case, network, prove, prove_shards};

    pub(super) fn zip(case: &Case) {
        prove(case, &network::zip(&case.file, &[]));
    }

    pub(super) fn legacy(case: &Case) {
        prove(case, &network::legacy(&case.file, &[]));
    }

    pub(super) fn tar(case: &Case) {
        prove(case, &network::tar(&case.file));
    }

    pub(super) fn script(case: &Case) {
        prove(case, &network::script(&case.file));
    }

    pub(super) fn module(case: &Case) {
        prove(case, &network::module(&case.file));
    }

    pub(super) fn pickle(case: &Case) {
        prove(case, &network::arrays(&case.file, &[]));
    }

    pub(super) fn npz(case: &Case) {
        prove(case, &network::npz(&case.file, 0));
        prove(case, &network::npz(&case.file, 8));
    }

    pub(super) fn safetensors(case: &Case) {
        prove(case, &network::safetensors(&case.file));
    }

    pub(super) fn shards(case: &Case) {
        prove_shards(case, network::safetensors);
    }

    pub(super) fn torch_shards(case: &Case) {
        prove_shards(case, |tensors| network::zip(tensors, &[]));
    }
}

macro_rules! matrix {
    ($columns:tt $($dialect:ident)*) => {
        /// The rows of the table.
        pub(crate) const ROWS: &[&str] = &[$(stringify!($dialect)),*];
        matrix!(@columns $columns);
        $(matrix!(@row $dialect $columns);)*
    };
    (@columns [$($column:ident)*]) => {
        pub(crate) const COLUMNS: &[&str] = &[$(stringify!($column)),*];
    };
    (@row $dialect:ident [$($column:ident)*]) => {
        mod $dialect {
            use super::{cases, columns};

            $(#[test]
            fn $column() {
                columns::$column(&cases::$dialect());
            })*
        }
    };
}

matrix! {
    [zip legacy tar script module pickle npz safetensors shards torch_shards]
    torchvision timm timm_v2 timm_clip openai_clip transformers transformers_body detectron2 caffe2 keras bit openmmlab
    moco moco_v3 swav dino byol barlow_twins lightning cifar children unknown
}
