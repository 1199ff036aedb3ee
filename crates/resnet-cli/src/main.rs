//! The `resnet-cli` program.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use resnet_cli::cli::{Cli, Command};
use resnet_cli::commands::{
    bench, cache, convert, diff, doctor, download, eval, generate, info, inspect, list, predict, serve,
    summary, train, verify,
};
use resnet_cli::exit::{is_broken_pipe, is_usage};
use resnet_cli::terminal::{self, Verbosity};

fn main() -> ExitCode {
    let cli = Cli::parse();
    terminal::set_verbosity(match (cli.quiet, cli.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    });
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    // As in `diff` and `cmp`, 1 means that the files differ.
    let is_diff = matches!(cli.command, Command::Diff(_));
    let result = match cli.command {
        Command::Predict(args) => predict::run(args, &mut out),
        Command::List(args) => list::run(args, &mut out),
        Command::Info(args) => info::run(args, &mut out),
        Command::Summary(args) => summary::run(args, &mut out),
        Command::Inspect(args) => inspect::run(args, &mut out),
        Command::Diff(args) => diff::run(args, &mut out),
        Command::Convert(args) => {
            let code = convert::run(&args, &mut out);
            // A closed pipe is not an error.
            let _ = out.flush();
            return code;
        }
        Command::Cache(args) => cache::run(args, &mut out),
        Command::Download(args) => download::run(args, &mut out),
        Command::Train(args) => train::run(args, &mut out),
        Command::Eval(args) => eval::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Bench(args) => bench::run(args, &mut out),
        Command::Serve(args) => serve::run(args, &mut out),
        Command::Doctor(args) => doctor::run(args, &mut out),
        Command::Completions(args) => generate::completions(args, &mut out),
        Command::Man(args) => generate::man(args),
    };
    let result = result.and_then(|outcome| {
        out.flush()?;
        Ok(outcome)
    });
    match result {
        Ok(outcome) => outcome.into(),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", resnet_cli::output::describe(&error));
            ExitCode::from(if is_diff || is_usage(&error) { 2 } else { 1 })
        }
    }
}
