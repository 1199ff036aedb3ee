//! Every naming scheme in every container: the table of `README.md`, cell by cell.

mod cases;

use resnet_convert::Options;
use resnet_model::arch::Arch;

use crate::build::network::{self, Named, by_name};
use crate::convert::convert;

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
    let (checkpoint, report) = convert(bytes, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((report.dialect.as_str(), &checkpoint.meta().arch), (case.dialect, &case.arch));
    let found = checkpoint.tensors().iter();
    let found = found.map(|(name, t)| (name.clone(), (t.shape().to_vec(), t.read().unwrap()))).collect();
    let expected = by_name(&case.expected);
    assert!(expected == found, "other tensors than expected:\n{report}");
    assert_eq!(checkpoint.meta().origin.dialect.as_deref(), Some(case.dialect));
}

macro_rules! matrix {
    ($($dialect:ident)*) => {
        $(mod $dialect {
            use super::{cases, network, prove};

            #[test]
            fn zip() {
                let case = cases::$dialect();
                prove(&case, &network::zip(&case.file, &[]));
            }

            #[test]
            fn legacy() {
                let case = cases::$dialect();
                prove(&case, &network::legacy(&case.file, &[]));
            }

            #[test]
            fn tar() {
                let case = cases::$dialect();
                prove(&case, &network::tar(&case.file));
            }

            #[test]
            fn script() {
                let case = cases::$dialect();
                prove(&case, &network::script(&case.file));
            }

            #[test]
            fn module() {
                let case = cases::$dialect();
                prove(&case, &network::module(&case.file));
            }

            #[test]
            fn pickle() {
                let case = cases::$dialect();
                prove(&case, &network::arrays(&case.file, &[]));
            }

            #[test]
            fn safetensors() {
                let case = cases::$dialect();
                prove(&case, &network::safetensors(&case.file));
            }
        })*
    };
}

matrix! {
    torchvision timm timm_v2 transformers transformers_body detectron2 caffe2 keras bit openmmlab moco moco_v3 swav dino
    byol barlow_twins lightning cifar children unknown
}
