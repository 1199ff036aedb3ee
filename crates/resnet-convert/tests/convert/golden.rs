//! Compares files written by PyTorch with the tensors that PyTorch reads (`tests/golden/README.md`).

use std::path::Path;

use resnet_convert::ConvertOptions;
use resnet_model::safetensors;

#[test]
fn pytorch_files_are_read_bit_for_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints");
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let mut count = 0;
    for line in index.lines().skip(1) {
        let [file, container, dialect, expected, absent, _] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let (checkpoint, report) =
            resnet_convert::open(&folder.join(file), &ConvertOptions::default()).unwrap();
        assert!(
            report.container.to_string().to_lowercase().contains(container.trim_start_matches("torch ")),
            "{file}"
        );
        assert!(report.dialect.to_lowercase().replace(' ', "").starts_with(dialect), "{file}");
        let expected = safetensors::open(&folder.join(expected)).unwrap().tensors;
        let expected: Vec<_> =
            expected.into_iter().filter(|(n, _)| absent == "-" || !n.contains(absent)).collect();
        assert_eq!(checkpoint.tensors().len(), expected.len(), "{file}");
        for (name, expected) in expected {
            let found = checkpoint.tensor(&name).unwrap();
            assert_eq!(
                (found.dtype(), found.shape()),
                (expected.dtype(), expected.shape()),
                "{file}: {name}"
            );
            assert!(found.read().unwrap() == expected.read().unwrap(), "{file}: {name}");
        }
        count += 1;
    }
    assert!(count >= 24, "{count} files");
}
