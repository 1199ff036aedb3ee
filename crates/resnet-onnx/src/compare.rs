//! Matches the nodes of an architecture with the nodes of a foreign graph.

use std::collections::{HashMap, HashSet};

use resnet_model::graph::{Graph, Op};

use super::canonical::{CanonicalNode, describe};
use super::cells::CellGraph;

/// First difference between two graphs.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    /// Number of equal nodes before it.
    pub(crate) agree: usize,
    /// Description of both nodes.
    pub(crate) detail: String,
}

/// Returns pairs of nodes, ours and theirs, or `None` if the graphs differ.
pub(crate) fn pairs(ours: &[CanonicalNode], theirs: &[CanonicalNode]) -> Option<Vec<(usize, usize)>> {
    let last = |items: &[CanonicalNode]| items.len().checked_sub(1);
    let mut stack = vec![(last(ours)?, last(theirs)?)];
    let mut found: HashMap<usize, usize> = HashMap::new();
    while let Some((a, b)) = stack.pop() {
        match found.get(&a) {
            Some(&other) if other == b => continue,
            // A node of ours cannot have two sets of weights.
            Some(_) => return None,
            None => {}
        }
        let (ours_item, theirs_item) = (ours.get(a)?, theirs.get(b)?);
        if ours_item.hash != theirs_item.hash {
            return None;
        }
        found.insert(a, b);
        let hash = |items: &[CanonicalNode], i: &usize| Some(items.get(*i)?.hash);
        match (&ours_item.op, ours_item.inputs.as_slice(), theirs_item.inputs.as_slice()) {
            (Op::Add, [a, b], [c, d]) if hash(ours, a)? != hash(theirs, c)? => {
                stack.extend([(*a, *d), (*b, *c)])
            }
            (_, mine, other) if mine.len() == other.len() => {
                stack.extend(mine.iter().copied().zip(other.iter().copied()));
            }
            _ => return None,
        }
    }
    let mut pairs: Vec<_> = found.into_iter().collect();
    pairs.sort_unstable();
    Some(pairs)
}

/// Returns the first nodes of both graphs without an equal in the other.
pub(crate) fn difference(
    graph: &Graph,
    ours: &[CanonicalNode],
    net: &CellGraph,
    theirs: &[CanonicalNode],
) -> Difference {
    let hashes = |items: &[CanonicalNode]| items.iter().map(|i| i.hash).collect::<HashSet<u64>>();
    let (known_ours, known_theirs) = (hashes(ours), hashes(theirs));
    let first = |items: &[CanonicalNode], known: &HashSet<u64>| {
        items.iter().find(|i| !known.contains(&i.hash)).cloned()
    };
    let agree = ours.iter().filter(|i| known_theirs.contains(&i.hash)).count();
    let mine = match first(ours, &known_theirs) {
        Some(item) => {
            let node = item.members.first().and_then(|&i| graph.nodes().get(i));
            format!("`{}` ({})", node.map_or("", |n| n.name.as_str()), describe(&item))
        }
        None => "nothing".into(),
    };
    let other = match first(theirs, &known_ours) {
        Some(item) => {
            let cell = item.members.first().and_then(|&i| net.cells.get(i));
            let label = cell.map_or("", |c| c.label.as_str());
            format!("`{}` ({})", resnet_model::escape(label), describe(&item))
        }
        None => "nothing".into(),
    };
    Difference { agree, detail: format!("expected {mine}, found {other}") }
}
