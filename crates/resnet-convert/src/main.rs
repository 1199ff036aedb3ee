//! The command `resnet-convert`.

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    let code = cli::run(std::env::args_os(), &mut out, &mut io::stderr());
    // A reader that went away is no failure of ours.
    drop(out.flush());
    code
}
