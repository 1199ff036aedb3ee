//! Text that fits the terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// Columns of the terminal that standard output is; `None` where it is none, so that nothing is cut.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// How a bar of images or steps looks where the command has no other wish.
pub const COUNT: &str = "{pos}/{len} {wide_bar} {eta} left  {msg}";

/// A progress bar on standard error; hidden where that is no terminal.
pub fn progress(length: u64, style: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// `text` in at most `width` columns: what is too much goes, and a dot-dot-dot says so.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A number with a unit's prefix, in at most six characters: `118.0M`.
pub fn short(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 1e3 => format!("{n:.0}"),
        _ if n < 999.95e3 => format!("{:.1}k", n / 1e3),
        _ if n < 999.95e6 => format!("{:.1}M", n / 1e6),
        _ if n < 999.95e9 => format!("{:.1}G", n / 1e9),
        _ => format!("{:.1}T", n / 1e12),
    }
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
