//! `resnet-cli train` by several processes: as launchers start it, and under `mpirun` in a build with the feature `mpi`
//! (`make test-mpi`).

use crate::cli::{command, file};

fn s(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

#[test]
fn variables_of_launchers_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let out = s(dir.path().join("run"));
    let data = s(file("examples/images"));
    let check = |variables: &[(&str, &str)], parts: &[&str]| {
        let mut train = command(&["train", "--scratch", "resnet20_cifar", "--out", &out, &data]);
        train.envs(variables.iter().copied());
        crate::cli::run(&mut train, &[]).fails_with(parts);
        assert!(!dir.path().join("run").exists(), "{variables:?}");
    };
    check(
        &[("PMI_RANK", "2"), ("PMI_SIZE", "2")],
        &["variable `PMI_RANK` is `2`, expected less than PMI_SIZE, 2", "unset it"],
    );
    check(&[("RANK", "0"), ("WORLD_SIZE", "two")], &["variable `WORLD_SIZE` is `two`"]);
    // What the launcher's own library would have to confirm.
    let two = [("RANK", "0"), ("WORLD_SIZE", "2")];
    match cfg!(feature = "mpi") {
        true => check(&two, &["torchrun started 2 processes, but MPI connects those of mpirun"]),
        false => check(&two, &["torchrun started 2 processes", "lacks the feature mpi"]),
    }
}
