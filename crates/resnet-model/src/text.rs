//! Names, numbers and suggestions in messages.

/// A name from a file, made safe to print: control characters and direction marks are escaped, long names cut.
pub fn escape(name: &str) -> String {
    const MAX: usize = 120;
    let mut out = String::new();
    for c in name.chars() {
        if out.len() > MAX {
            out.push('…');
            break;
        }
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if hidden { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// The first three names, made safe to print; a dot-dot-dot stands for the rest.
pub fn some_of(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(3).map(|n| escape(n)).collect();
    if names.len() > shown.len() {
        shown.push("…".into());
    }
    shown.join(", ")
}

/// The end of a message about an unknown name, which asks for the `nearest` known ones; empty if there are none.
pub fn suggestions<S: AsRef<str>>(nearest: &[S]) -> String {
    match nearest.iter().map(AsRef::as_ref).collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

/// A whole number in groups of three digits: `25,557,032`.
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
}
