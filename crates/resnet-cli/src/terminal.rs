//! Messages, progress bars, and text that fits the terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Amount of messages on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// Errors, warnings, notes and progress bars.
    Normal,
    /// Also the settings in use.
    Verbose,
}

static VERBOSITY: AtomicU8 = AtomicU8::new(Verbosity::Normal as u8);

/// Sets the verbosity of the process.
pub fn set_verbosity(verbosity: Verbosity) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
}

/// Writes a line to standard error if the verbosity is at least `least`.
pub fn message(least: Verbosity, text: impl fmt::Display) {
    if VERBOSITY.load(Ordering::Relaxed) >= least as u8 {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Writes a warning to standard error, unless `--quiet` was given.
pub fn warn(text: impl fmt::Display) {
    message(Verbosity::Normal, format_args!("warning: {text}"));
}

/// Columns of the terminal; `None` if standard output is not a terminal, so that nothing is cut.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// Template of a progress bar of images or steps.
pub const COUNT: &str = "{pos}/{len} {wide_bar} {eta} left  {msg}";

/// Returns a progress bar on standard error; hidden with `--quiet` or if standard error is not a terminal.
pub fn progress(length: u64, style: &str) -> ProgressBar {
    if !io::stderr().is_terminal() || VERBOSITY.load(Ordering::Relaxed) == Verbosity::Quiet as u8 {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Truncates `text` to `width` columns; an ellipsis marks a truncated text.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Formats a number in at most six characters: `118.0M`, `1.1B`.
pub fn short(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 1e3 => format!("{n:.0}"),
        _ if n < 999.95e3 => format!("{:.1}k", n / 1e3),
        _ if n < 999.95e6 => format!("{:.1}M", n / 1e6),
        _ if n < 999.95e9 => format!("{:.1}B", n / 1e9),
        _ => format!("{:.1}T", n / 1e12),
    }
}

/// Converts bytes to MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts() {
        assert_eq!(
            [0, 999, 1000, 999_950, 118_013_952, 999_960_000_000].map(short),
            ["0", "999", "1.0k", "1.0M", "118.0M", "1.0T"]
        );
        assert_eq!((fit("résnet", 6), fit("résnet", 4)), ("résnet".to_owned(), "rés…".to_owned()));
    }
}
