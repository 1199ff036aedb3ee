//! Helpers that run the program as a user does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use resnet_model::file::Existing;
use resnet_model::{Arch, Checkpoint, synthetic, zoo};

/// The output and exit status of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Returns standard output; panics unless the program succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// Panics unless the exit status is 1, standard output is empty, and standard error is one line that contains all `parts`.
    #[track_caller]
    pub(crate) fn fails_with(&self, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{self:?}");
        assert!(
            self.stderr.starts_with("error: ") && self.stderr.trim_end().lines().count() == 1,
            "{self:?}"
        );
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in {}", self.stderr);
        }
    }
}

/// Runs `resnet-cli` without Hub settings in the environment and with empty standard input.
pub(crate) fn resnet_cli<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Output {
    run(&mut command(args), &[])
}

/// Returns the command that [`resnet_cli`] runs.
pub(crate) fn command<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resnet-cli"));
    for variable in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(variable);
    }
    command.args(args);
    command
}

pub(crate) fn run(command: &mut Command, stdin: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that rejects its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output {
        code: output.status.code().expect("no signal"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Returns the path of a file in the repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Returns the path of the bundled digits model.
pub(crate) fn digits() -> PathBuf {
    file("weights/digits_resnet20.safetensors")
}

/// Writes a self-describing checkpoint of a named network with synthetic weights to `folder/name.safetensors`.
pub(crate) fn checkpoint(folder: &Path, name: &str) -> PathBuf {
    save(folder, name, &zoo::arch(name).unwrap())
}

pub(crate) fn save(folder: &Path, name: &str, arch: &Arch) -> PathBuf {
    let path = folder.join(format!("{name}.safetensors"));
    let checkpoint: Checkpoint = synthetic::checkpoint(arch).unwrap();
    checkpoint.save(&path, Existing::Replace, &mut |_| {}).unwrap();
    path
}
