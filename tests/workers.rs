//! `resnet-cli train` in several processes: with the environment variables of launchers, and under `mpirun` in a build with the feature `mpi`
//! (`make test-mpi`).

use crate::cli::{command, file};

fn s(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

#[test]
fn launcher_variables_are_validated() {
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
        &["environment variable `PMI_RANK` is `2`, expected less than PMI_SIZE, 2", "unset it"],
    );
    check(&[("RANK", "0"), ("WORLD_SIZE", "two")], &["environment variable `WORLD_SIZE` is `two`"]);
    check(
        &[("RANK", "0"), ("WORLD_SIZE", "2")],
        &["torchrun started 2 processes", "start them with mpirun or srun"],
    );
    // The MPI library checks rank and world size.
    let two = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")];
    match cfg!(feature = "mpi") {
        true => check(
            &two,
            &["rank 0 of 2: lost connection to the process group: the transport reports rank 0 of 1"],
        ),
        false => check(&two, &["mpirun started 2 processes", "lacks the feature mpi", "--features mpi"]),
    }
}

#[cfg(feature = "mpi")]
mod mpi {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use resnet_model::safetensors;
    use serde_json::Value;

    use super::s;
    use crate::cli::{Output, command, digits, run};
    use crate::train::{data, settings};

    /// Returns the arguments of a short run whose only randomness is the augmentation, into `folder/out`.
    fn arguments(folder: &Path, out: &str, more: &[&str]) -> Vec<String> {
        let root = folder.join("data");
        if !root.exists() {
            data(folder, 90, |digit| (digit % 3).to_string());
        }
        let text = "epochs = 3\nval_fraction = 0.2\nsave_every = 4\n[augment]\nmixup = 0.2\npad = 2\ncrop = \"pad\"\n\
                    degrees = 10.0\n[schedule]\nlr = 0.02\n";
        let config = settings(folder, text);
        let fixed = ["train", "--config", &config];
        let run = ["--out", &s(folder.join(out)), &s(&root)].map(str::to_owned);
        fixed.iter().chain(more).map(|&arg| arg.to_owned()).chain(run).collect()
    }

    /// `mpirun` of two processes, started by a shell; `$0` is the folder of the test.
    const START: &str = "echo $$ > $0/process.$OMPI_COMM_WORLD_RANK; exec \"$@\"";

    /// Like [`START`], but writes the program's exit code to a file: `mpirun` does not return it.
    const START_AND_WAIT: &str = "\"$@\" & echo $! > $0/process.$OMPI_COMM_WORLD_RANK; wait $!; \
                                  echo $? > $0/status.$OMPI_COMM_WORLD_RANK";

    fn mpirun(folder: &Path, start: &str, options: &[&str], arguments: &[String]) -> Command {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]).args(options);
        let program = command(arguments);
        mpirun.args(["sh", "-c", start]).arg(folder).arg(program.get_program()).args(program.get_args());
        mpirun
    }

    fn losses(out: &Path) -> Vec<f64> {
        let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|e| e["event"] == "step").map(|e| e["loss"].as_f64().unwrap()).collect()
    }

    fn states(out: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(out).map(|entries| entries.flatten().map(|e| e.path()).collect());
        let mut paths: Vec<PathBuf> = entries.unwrap_or_default();
        paths.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("state-"));
        paths.sort();
        paths
    }

    #[test]
    fn two_processes_match_one_with_twice_the_batch_size() {
        let dir = tempfile::tempdir().unwrap();
        // Trainable weights and a small learning rate: otherwise rounding differences grow from step to step.
        let weights = s(digits());
        for (name, flags) in [("synchronized", &["--sync-bn"][..]), ("head", &["--train", "head"])] {
            let out = |workers: usize| dir.path().join(format!("{name}-{workers}"));
            let with = |workers: usize| {
                let batch = (16 / workers).to_string();
                let flags =
                    [flags, &["--weights", &weights, "--batch-size", &batch, "--lr", "0.002"]].concat();
                arguments(dir.path(), &s(out(workers)), &flags)
            };
            run(&mut command(&with(1)), &[]).ok();
            let two = run(&mut mpirun(dir.path(), START, &[], &with(2)), &[]);
            // Only rank 0 prints.
            assert_eq!(two.ok().lines().count(), 1, "{two:?}");
            assert_eq!(two.stderr.matches("epoch 3: loss").count(), 1, "{two:?}");
            let [one, two] = [1, 2].map(|workers| losses(&out(workers)));
            assert_eq!((one.len(), two.len()), (12, 12), "{name}");
            for (a, b) in two.iter().zip(&one) {
                assert!((a - b).abs() < 1e-5, "{name}: {two:?}, expected {one:?}");
            }
            let model = |workers: usize| out(workers).join("model.safetensors");
            for ((tensor, a), (_, b)) in safetensors::open(&model(1))
                .unwrap()
                .tensors
                .iter()
                .zip(&safetensors::open(&model(2)).unwrap().tensors)
            {
                if a.scalar().is_none() {
                    let pairs = a.to_f32(tensor).unwrap().into_iter().zip(b.to_f32(tensor).unwrap());
                    let apart = pairs.map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
                    assert!(apart < 1e-4, "{name}: `{tensor}` differs by {apart}");
                }
            }
        }
    }

    /// Kills the program of rank 1 once two states are saved, and waits for the end of `mpirun`.
    fn kill_the_second(dir: &Path, out: &Path, mut mpirun: Command) -> (Output, Duration) {
        let child =
            mpirun.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        while states(out).len() < 2 {
            assert!(began.elapsed() < Duration::from_secs(120), "no state was saved");
            std::thread::sleep(Duration::from_millis(2));
        }
        let process = fs::read_to_string(dir.join("process.1")).unwrap();
        let killed = Instant::now();
        assert!(Command::new("kill").args(["-9", process.trim()]).status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = ended.status.code().unwrap_or(-1);
        (Output { code, stdout: text(&ended.stdout), stderr: text(&ended.stderr) }, killed.elapsed())
    }

    #[test]
    fn a_killed_process_ends_all_and_the_run_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = ["--scratch", "resnet20_cifar", "--gray", "--size", "16"];
        let flags = [&fresh[..], &["--sync-bn", "--batch-size", "2", "--timeout", "3"]].concat();
        let whole = arguments(dir.path(), "whole", &flags);
        run(&mut mpirun(dir.path(), START, &[], &whole), &[]).ok();
        // mpirun signals the other processes by default; with recovery enabled, it does not.
        for (name, start, options, message) in [
            ("stopped", START, &[][..], "stopped while waiting for the other ranks"),
            ("silent", START_AND_WAIT, &["--enable-recovery"], "no answer within 3 s"),
        ] {
            let out = dir.path().join(name);
            let mpirun_with = |more: &[&str], start, options| {
                let arguments = arguments(dir.path(), name, &[&flags[..], more].concat());
                mpirun(dir.path(), start, options, &arguments)
            };
            let (ended, took) = kill_the_second(dir.path(), &out, mpirun_with(&[], start, options));
            let code = match options {
                [] => ended.code,
                _ => fs::read_to_string(dir.path().join("status.0")).unwrap().trim().parse().unwrap(),
            };
            assert!(code != 0 && took < Duration::from_secs(60), "{name}: {code} {ended:?} after {took:?}");
            let expected = format!("error: rank 0 of 2: lost connection to the process group: {message}");
            assert!(ended.stderr.contains(&expected), "{name}: {ended:?}");
            assert!(losses(&out).len() < 54, "{name}: the run was complete");
            let resumed = run(&mut mpirun_with(&["--resume"], START, &[]), &[]);
            resumed.ok();
            assert!(resumed.stderr.contains("resumed at step"), "{name}: {resumed:?}");
            let model = |name: &str| fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
            assert!(model(name) == model("whole"), "{name}: the models differ");
        }
    }
}
