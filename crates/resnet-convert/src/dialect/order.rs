//! Numeric order of names: siblings that differ in a number are sorted by it, everything else keeps its order.

use std::collections::BTreeMap;

/// Returns the indices of `names` in numeric order.
///
/// Names form a tree of text and number tokens. Children of a node are kept in the order of their first appearance, but
/// children that are numbers are sorted among the places that they take.
pub(super) fn numeric(names: &[&str]) -> Vec<usize> {
    let tokens: Vec<Vec<Token>> = names.iter().map(|name| tokens(name)).collect();
    let mut out = Vec::with_capacity(names.len());
    visit(&tokens, (0..names.len()).collect(), &mut out);
    out
}

/// Longest common depth of tokens that is sorted; deeper names keep their order.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Token<'a> {
    Number(u64),
    Text(&'a str),
}

/// Splits a name at the borders of digits.
fn tokens(name: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (token, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        tokens.push(match token.parse() {
            Ok(number) if digits => Token::Number(number),
            _ => Token::Text(token),
        });
        rest = after;
    }
    tokens
}

fn visit(tokens: &[Vec<Token>], all: Vec<usize>, out: &mut Vec<usize>) {
    let mut stack = vec![(all, 0usize)];
    while let Some((group, depth)) = stack.pop() {
        if group.len() < 2 || depth > MAX_DEPTH {
            out.extend(group);
            continue;
        }
        let mut places: BTreeMap<Option<Token>, usize> = BTreeMap::new();
        let mut children: Vec<(Option<Token>, Vec<usize>)> = Vec::new();
        for i in group {
            let token = tokens.get(i).and_then(|t| t.get(depth)).copied();
            let place = *places.entry(token).or_insert(children.len());
            match children.get_mut(place) {
                Some((_, group)) => group.push(i),
                None => children.push((token, vec![i])),
            }
        }
        let is_number = |child: &(Option<Token>, Vec<usize>)| matches!(child.0, Some(Token::Number(_)));
        let (mut numbers, texts): (Vec<_>, Vec<_>) =
            children.into_iter().enumerate().partition(|(_, child)| is_number(child));
        let slots: Vec<usize> = numbers.iter().map(|(slot, _)| *slot).collect();
        numbers.sort_by_key(|(_, child)| child.0);
        let numbers = slots.into_iter().zip(numbers.into_iter().map(|(_, child)| child));
        let mut sorted: Vec<_> = texts.into_iter().chain(numbers).collect();
        sorted.sort_by_key(|(slot, _)| *slot);
        // The end of a name has no children.
        let next = depth.saturating_add(1);
        stack.extend(sorted.into_iter().rev().map(|(_, (token, group))| match token {
            None => (group, MAX_DEPTH.saturating_add(1)),
            Some(_) => (group, next),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_sorted() {
        let check = |names: &[&str], expected: &[&str]| {
            let sorted: Vec<&str> = numeric(names).into_iter().map(|i| names[i]).collect();
            assert_eq!(sorted, expected);
        };
        check(&["b.10", "b.2", "a.1", "b.1"], &["b.1", "b.2", "b.10", "a.1"]);
        check(&["s.1.b.10.c", "s.1.b.2.c", "s.0.b.0.c"], &["s.0.b.0.c", "s.1.b.2.c", "s.1.b.10.c"]);
        check(&["conv1", "bn1", "fc"], &["conv1", "bn1", "fc"]);
        check(&["x2", "stem", "x1"], &["x1", "x2", "stem"]);
        check(&["x", "x1", ""], &["x", "x1", ""]);
        check(&["x99999999999999999999", "x3"], &["x99999999999999999999", "x3"]);
        assert!(numeric(&[]).is_empty());
    }
}
