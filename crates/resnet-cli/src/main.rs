//! The `resnet-cli` program.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use resnet_cli::cli::{Cli, Command};
use resnet_cli::commands::{bench, diff, eval, info, inspect, list, predict, summary, train, verify};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    // As `diff` and `cmp` have it: 1 says that the files differ.
    let trouble = if matches!(cli.command, Command::Diff(_)) { 2 } else { 1 };
    let result = match cli.command {
        Command::Predict(args) => predict::run(args, &mut out),
        Command::List(args) => list::run(args, &mut out),
        Command::Info(args) => info::run(args, &mut out),
        Command::Summary(args) => summary::run(args, &mut out),
        Command::Inspect(args) => inspect::run(args, &mut out),
        Command::Diff(args) => diff::run(args, &mut out),
        Command::Train(args) => train::run(args, &mut out),
        Command::Eval(args) => eval::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Bench(args) => bench::run(args, &mut out),
    };
    let result = result.and_then(|ok| {
        out.flush()?;
        Ok(ok)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of a pipe may stop early (`| head`); that is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", resnet_cli::output::describe(&error));
            ExitCode::from(trouble)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}
