//! The `resnet-convert` command.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    let code = resnet_convert::cli::run(std::env::args_os(), &mut out, &mut io::stderr());
    // A closed pipe is not an error.
    drop(out.flush());
    code
}
