//! Text for a terminal of 80 columns: wrapped fields and table rows.

use std::io::{self, Write};

use resnet_model::escape;
use resnet_model::text::wrap;

/// Maximum line width.
const WIDTH: usize = 80;
/// Column at which the text of a field starts.
const INDENT: usize = 16;

/// A writer of lines, fields and rows.
pub(crate) struct Page<'a> {
    out: &'a mut dyn Write,
}

impl<'a> Page<'a> {
    /// Creates a page on `out`.
    pub(crate) fn new(out: &'a mut dyn Write) -> Page<'a> {
        Page { out }
    }

    /// Writes a line unchanged.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Writes a field: a title and its text, wrapped.
    pub(crate) fn field(&mut self, title: &str, text: &str) -> io::Result<()> {
        let mut title = format!("  {title}");
        for line in wrap(text, WIDTH - INDENT) {
            writeln!(self.out, "{title:<INDENT$}{line}")?;
            title.clear();
        }
        Ok(())
    }

    /// Writes a row: a name padded to `longest`, the text next to it, and the lines below. Text that does not fit next
    /// to the name goes below it.
    pub(crate) fn row(&mut self, name: &str, longest: usize, text: &str, below: &[String]) -> io::Result<()> {
        // A few very long names must not widen the column for all others.
        let column = longest.min(50);
        if name.chars().count() <= column && 4 + column + text.chars().count() <= WIDTH {
            writeln!(self.out, "  {name:<column$}  {text}")?;
        } else {
            for line in wrap(name, WIDTH - 2) {
                writeln!(self.out, "  {line}")?;
            }
            writeln!(self.out, "    {text}")?;
        }
        for text in below {
            for line in wrap(text, WIDTH - 4) {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// Returns the printed width of the longest name.
pub(crate) fn longest<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(|name| escape(name).chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_80_columns() {
        let mut out = Vec::new();
        let mut page = Page::new(&mut out);
        page.field("note", &"word ".repeat(40)).unwrap();
        page.row("short", 60, "F32  [1, 2]", &["→ other".into()]).unwrap();
        page.row(&"long.".repeat(30), 60, "F32  [1, 2]", &["x".repeat(100)]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.contains("  short                                               F32  [1, 2]\n    → other\n"),
            "{text}"
        );
    }
}
