//! Positions of shapes: rows by the longest path from the input, and the fewest lanes that parallel branches need.
//!
//! These networks are a trunk with short branches, which reads best if the trunk is straight. Layered layouts that minimize
//! crossings (layout-rs, ports of dagre) do not keep it straight, and are slow for a thousand layers.

/// Positions of shapes and edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Row and lane of each shape.
    pub(super) places: Vec<[usize; 2]>,
    pub(super) edges: Vec<Edge>,
}

/// A line from a shape to one that uses its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The lane of the rows in between.
    pub(super) lane: usize,
}

/// Rows in which a branch, or a line around other shapes, occupies a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    rows: [usize; 2],
    what: Branch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Chain(usize),
    Line { from: usize, to: usize },
}

/// Computes the layout of shapes; `inputs[i]` are the shapes that shape `i` is computed from, all before it.
pub(super) fn layout(inputs: &[Vec<usize>]) -> Layout {
    let n = inputs.len();
    let mut users: Vec<Vec<usize>> = vec![vec![]; n];
    let mut row = vec![0usize; n];
    for (to, from) in inputs.iter().enumerate() {
        row[to] = from.iter().map(|&f| row[f] + 1).max().unwrap_or(0);
        from.iter().for_each(|&f| users[f].push(to));
    }
    // Length of the longest path after each shape.
    let mut tail = vec![0usize; n];
    for i in (0..n).rev() {
        tail[i] = users[i].iter().map(|&u| tail[u] + 1).max().unwrap_or(0);
    }
    // A chain continues with the user that has the longest path after it, if that user's longest path from the input comes from here.
    let longest = |of: &[usize], by: &dyn Fn(usize) -> usize| {
        of.iter().copied().reduce(|best, i| if by(i) > by(best) { i } else { best })
    };
    let next = |i: usize| {
        let user = longest(&users[i], &|u| tail[u])?;
        (longest(&inputs[user], &|f| row[f]) == Some(i)).then_some(user)
    };
    let mut chain = vec![usize::MAX; n];
    let mut ends: Vec<usize> = Vec::new();
    for start in 0..n {
        if chain[start] != usize::MAX {
            continue;
        }
        let mut last = start;
        chain[start] = ends.len();
        while let Some(user) = next(last).filter(|&user| chain[user] == usize::MAX) {
            chain[user] = ends.len();
            last = user;
        }
        // Its last output is drawn down to its last user.
        let leaves = users[last].iter().map(|&u| row[u].saturating_sub(1)).max();
        ends.push(leaves.unwrap_or(row[last]).max(row[last]));
    }
    let mut spans: Vec<Span> = Vec::new();
    let mut started = vec![false; ends.len()];
    for i in 0..n {
        let c = chain[i];
        if !std::mem::replace(&mut started[c], true) {
            spans.push(Span { rows: [row[i], ends[c]], what: Branch::Chain(c) });
        }
        for &to in &users[i] {
            let is_own = next(i).is_none() || next(i) == Some(to);
            if row[to] > row[i] + 1 && !is_own {
                spans.push(Span { rows: [row[i] + 1, row[to] - 1], what: Branch::Line { from: i, to } });
            }
        }
    }
    // The trunk first, then short branches inside of long ones.
    let trunk = chain.first().copied().unwrap_or(0);
    spans.sort_by_key(|s| (s.what != Branch::Chain(trunk), s.rows[1] - s.rows[0], s.rows[0]));
    let mut lanes: Vec<Vec<[usize; 2]>> = Vec::new();
    let mut lane_of_chain = vec![0; ends.len()];
    let mut lines = std::collections::BTreeMap::new();
    for Span { rows, what } in spans {
        let free = |lane: &Vec<[usize; 2]>| lane.iter().all(|taken| taken[1] < rows[0] || rows[1] < taken[0]);
        let lane = lanes.iter().position(free).unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(vec![]);
        }
        lanes[lane].push(rows);
        match what {
            Branch::Chain(c) => lane_of_chain[c] = lane,
            Branch::Line { from, to } => {
                lines.insert((from, to), lane);
            }
        }
    }
    let lane = |i: usize| lane_of_chain[chain[i]];
    let mut edges = Vec::new();
    for (to, from) in inputs.iter().enumerate() {
        for &from in from {
            let own = lane(from);
            edges.push(Edge { from, to, lane: lines.get(&(from, to)).copied().unwrap_or(own) });
        }
    }
    Layout { places: (0..n).map(|i| [row[i], lane(i)]).collect(), edges }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trunks_are_straight_with_branches_on_the_right() {
        let check = |inputs: &[&[usize]], places: &[[usize; 2]], lanes: &[usize]| {
            let inputs: Vec<Vec<usize>> = inputs.iter().map(|i| i.to_vec()).collect();
            let layout = layout(&inputs);
            assert_eq!(layout.places, places, "{inputs:?}");
            assert_eq!(layout.edges.iter().map(|e| e.lane).collect::<Vec<_>>(), lanes, "{inputs:?}");
        };
        // A chain.
        check(&[&[], &[0], &[1]], &[[0, 0], [1, 0], [2, 0]], &[0, 0]);
        // A shortcut past two shapes.
        check(&[&[], &[0], &[1], &[2, 0]], &[[0, 0], [1, 0], [2, 0], [3, 0]], &[0, 0, 0, 1]);
        // The same with a projection, computed first.
        check(&[&[], &[0], &[0], &[2], &[3, 1]], &[[0, 0], [1, 1], [1, 0], [2, 0], [3, 0]], &[0, 0, 0, 0, 1]);
        // Three branches of one shape each.
        check(
            &[&[], &[0], &[0], &[0], &[1, 2, 3]],
            &[[0, 0], [1, 0], [1, 1], [1, 2], [2, 0]],
            &[0, 0, 0, 0, 1, 2],
        );
        check(&[], &[], &[]);
    }
}
