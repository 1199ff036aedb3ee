//! Every naming scheme in every container, as in the table of `README.md`.

mod cases;

use resnet_convert::{ConvertOptions, Report};
use resnet_model::Checkpoint;
use resnet_model::arch::Arch;

use crate::build::network::{self, Named, by_name};
use crate::convert::{convert, shards};

/// A file in a naming scheme and the expected result.
pub(crate) struct Case {
    /// The dialect in the report.
    dialect: &'static str,
    /// The tensors of the file.
    file: Vec<Named>,
    arch: Arch,
    /// The tensors of the result.
    expected: Vec<Named>,
}

fn check_case(case: &Case, bytes: &[u8]) {
    let (checkpoint, report) = convert(bytes, &ConvertOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    check_result(case, &checkpoint, &report);
    assert_eq!(checkpoint.meta().origin.dialect.as_deref(), Some(case.dialect));
}

fn check_result(case: &Case, checkpoint: &Checkpoint, report: &Report) {
    assert_eq!((report.dialect.as_str(), &checkpoint.meta().arch), (case.dialect, &case.arch));
    let found = checkpoint.tensors().iter();
    let found = found.map(|(name, t)| (name.clone(), (t.shape().to_vec(), t.read().unwrap()))).collect();
    let expected = by_name(&case.expected);
    assert!(expected == found, "other tensors than expected:\n{report}");
}

/// Checks a case in two shards with an index.
fn check_shards(case: &Case, save: impl Fn(&[Named]) -> Vec<u8>) {
    let (first, second) = case.file.split_at(case.file.len() / 2);
    let at = shards::write(&[first, second], save);
    let (checkpoint, report) =
        resnet_convert::open(&at.path, &ConvertOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    check_result(case, &checkpoint, &report);
}

/// The columns of the table: a file of each kind with the tensors of a case.
mod columns {
    use super::{Case, check_case, check_shards, network};

    pub(super) fn zip(case: &Case) {
        check_case(case, &network::zip(&case.file, &[]));
    }

    pub(super) fn legacy(case: &Case) {
        check_case(case, &network::legacy(&case.file, &[]));
    }

    pub(super) fn tar(case: &Case) {
        check_case(case, &network::tar(&case.file));
    }

    pub(super) fn script(case: &Case) {
        check_case(case, &network::script(&case.file));
    }

    pub(super) fn module(case: &Case) {
        check_case(case, &network::module(&case.file));
    }

    pub(super) fn pickle(case: &Case) {
        check_case(case, &network::arrays(&case.file, &[]));
    }

    pub(super) fn npz(case: &Case) {
        check_case(case, &network::npz(&case.file, 0));
        check_case(case, &network::npz(&case.file, 8));
    }

    pub(super) fn safetensors(case: &Case) {
        check_case(case, &network::safetensors(&case.file));
    }

    pub(super) fn shards(case: &Case) {
        check_shards(case, network::safetensors);
    }

    pub(super) fn torch_shards(case: &Case) {
        check_shards(case, |tensors| network::zip(tensors, &[]));
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
