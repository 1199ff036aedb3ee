//! Text for a terminal of 80 columns: titled fields that wrap, and rows of a table.

use std::io::{self, Write};

use resnet_model::escape;
use resnet_model::text::wrap;

/// As wide as anything is printed.
const WIDTH: usize = 80;
/// Where a field's text begins.
const INDENT: usize = 16;

/// A page in the making.
pub(crate) struct Page<'a> {
    out: &'a mut dyn Write,
}

impl<'a> Page<'a> {
    /// Writes to `out`.
    pub(crate) fn new(out: &'a mut dyn Write) -> Page<'a> {
        Page { out }
    }

    /// A line as it is.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// A titled text, wrapped.
    pub(crate) fn field(&mut self, title: &str, text: &str) -> io::Result<()> {
        let mut title = format!("  {title}");
        for line in wrap(text, WIDTH - INDENT) {
            writeln!(self.out, "{title:<INDENT$}{line}")?;
            title.clear();
        }
        Ok(())
    }

    /// A row: a name, padded to `longest`, what belongs beside it, and what below. What does not fit beside goes below
    /// too.
    pub(crate) fn row(
        &mut self,
        name: &str,
        longest: usize,
        beside: &str,
        below: &[String],
    ) -> io::Result<()> {
        // Few very long names shall not push all others apart.
        let column = longest.min(50);
        if name.chars().count() <= column && 4 + column + beside.chars().count() <= WIDTH {
            writeln!(self.out, "  {name:<column$}  {beside}")?;
        } else {
            for line in wrap(name, WIDTH - 2) {
                writeln!(self.out, "  {line}")?;
            }
            writeln!(self.out, "    {beside}")?;
        }
        for text in below {
            for line in wrap(text, WIDTH - 4) {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// Columns that the longest of these names takes when it is printed.
pub(crate) fn longest<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(|name| escape(name).chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_a_terminal() {
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
