//! Formatting of names and numbers in messages.

// Names from files are printed by both crates; this one builds on the other.
pub use resnet_image::decode::escape;

/// Returns a count with its noun in singular or plural.
pub fn plural(n: usize, noun: &str) -> String {
    let ending = match (n, noun.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {noun}{ending}", thousands(n as u64))
}

/// Returns the first three names, safe to print, and an ellipsis if there are more.
pub fn some_of(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(3).map(|n| escape(n)).collect();
    if names.len() > shown.len() {
        shown.push("…".into());
    }
    shown.join(", ")
}

/// Returns the end of a message about an unknown name, which suggests the `nearest` known ones; empty if there are none.
pub fn suggestions<S: AsRef<str>>(nearest: &[S]) -> String {
    match nearest.iter().map(AsRef::as_ref).collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

/// Formats an integer with thousands separators: `25,557,032`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a number of bytes: `7 bytes`, `1.2 kB`, `46.8 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        1 => "1 byte".into(),
        0..1000 => format!("{n} bytes"),
        1000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// Splits `text` into lines of at most `width` characters, at spaces or within words that are longer.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![];
    let (mut line, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let mut length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        } else if !line.is_empty() {
            line.push(' ');
            used += 1;
        }
        let mut rest = word;
        while used + length > width {
            let at = rest.char_indices().nth(width - used).map_or(rest.len(), |(at, _)| at);
            line.push_str(&rest[..at]);
            lines.push(std::mem::take(&mut line));
            rest = &rest[at..];
            (used, length) = (0, rest.chars().count());
        }
        line.push_str(rest);
        used += length;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        assert_eq!([0, 999, 1000, 25_557_032].map(thousands), ["0", "999", "1,000", "25,557,032"]);
        assert_eq!(suggestions(&["a", "b"]), "; did you mean a, b?");
        assert_eq!(suggestions::<&str>(&[]), "");
        assert_eq!(some_of(&["a", "b\u{7}", "c", "d"].map(String::from)), "a, b\\u{7}, c, …");
    }

    #[test]
    fn text_is_wrapped_at_spaces_and_in_long_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("a bcdefghij k", 4), ["a", "bcde", "fghi", "j k"]);
        assert_eq!(wrap("äöüß", 2), ["äö", "üß"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn sizes() {
        let found = [0, 1, 7, 1234, 999_999, 46_830_571].map(bytes);
        assert_eq!(found, ["0 bytes", "1 byte", "7 bytes", "1.2 kB", "1000.0 kB", "46.8 MB"]);
    }
}
