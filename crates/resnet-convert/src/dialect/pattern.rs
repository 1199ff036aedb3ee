//! Name patterns: literal text, `{x}` for a number, and a final `*` for any rest; or a leading `*` and a suffix.

/// A pattern, e.g. `layers.{s}.blocks.{b}.*`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern<'a>(pub(super) &'a str);

/// Values of a pattern's variables.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PatternMatch<'n> {
    numbers: Vec<(char, u32)>,
    rest: &'n str,
}

impl Pattern<'_> {
    pub(super) fn matches<'n>(self, name: &'n str) -> Option<PatternMatch<'n>> {
        let (mut pattern, mut name) = (self.0, name);
        if let Some(end) = pattern.strip_prefix('*').filter(|end| !end.is_empty()) {
            return Some(PatternMatch { numbers: vec![], rest: name.strip_suffix(end)? });
        }
        let mut numbers = Vec::new();
        loop {
            let literal = pattern.find(['{', '*']).unwrap_or(pattern.len());
            let (text, rest) = pattern.split_at_checked(literal)?;
            name = name.strip_prefix(text)?;
            if rest == "*" {
                return Some(PatternMatch { numbers, rest: name });
            }
            let Some(variable) = rest.strip_prefix('{') else {
                return name.is_empty().then_some(PatternMatch { numbers, rest: "" });
            };
            let digits = name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len());
            let (number, after) = name.split_at_checked(digits)?;
            numbers.push((variable.chars().next()?, number.parse().ok()?));
            name = after;
            pattern = variable.split_once('}')?.1;
        }
    }

    /// Rewrites a matching name by `template`: `{x}` inserts the number, `{x+1}` and `{x-1}` its neighbors, `*` the rest.
    pub(super) fn rewrite(self, name: &str, template: &str) -> Option<String> {
        let found = self.matches(name)?;
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '*']) {
            let (text, tail) = rest.split_at_checked(at)?;
            out.push_str(text);
            let Some(inner) = tail.strip_prefix('{') else {
                out.push_str(found.rest);
                return Some(out);
            };
            let (variable, after) = inner.split_once('}')?;
            let letter = variable.chars().next()?;
            let number = found.numbers.iter().find(|(c, _)| *c == letter)?.1;
            let number = match variable.get(letter.len_utf8()..)? {
                "+1" => number.checked_add(1)?,
                "-1" => number.checked_sub(1)?,
                _ => number,
            };
            out.push_str(&number.to_string());
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_rewritten() {
        let check = |pattern, template, name, expected: Option<&str>| {
            assert_eq!(Pattern(pattern).rewrite(name, template).as_deref(), expected, "{pattern} on {name}");
        };
        check(
            "s.{s}.l.{b}.c.{i}.*",
            "layer{s+1}.{b}.conv{i+1}.*",
            "s.3.l.12.c.0.weight",
            Some("layer4.12.conv1.weight"),
        );
        check("s.{s}.*", "x{s-1}", "s.0.w", None);
        check("s.{s}.*", "x{s}.*", "s.x.w", None);
        check("s.{s}.*", "x{s}.*", "s.99999999999.w", None);
        check("linear.*", "fc.*", "linear.bias", Some("fc.bias"));
        check("queue", "q", "queue_ptr", None);
        check("res{s}_{b}_w", "layer{s-1}.{b}", "res2_0_w", Some("layer1.0"));
        check("*", "*", "", Some(""));
        check("*_momentum", "*", "conv1_w_momentum", Some("conv1_w"));
        check("*_momentum", "*", "conv1_w", None);
        check("b{s}/u{b}/*", "{s-1}.{b-1}.*", "b1/u01/k", Some("0.0.k"));
    }
}
