//! Placement of results in the arena: results with overlapping lifetimes do not overlap in memory.

use std::ops::Range;

/// The size of a result and the range of steps during which it is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) len: usize,
    pub(super) steps: Range<usize>,
}

/// Alignment in elements: one cache line.
const ALIGN: usize = 16;

/// Returns the offset of each result and the length of the arena. Places the largest results first, each at the lowest
/// offset without a conflict.
pub(super) fn place(lifetimes: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].len), lifetimes[i].steps.start));
    let mut starts = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let this = &lifetimes[i];
        let mut occupied: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&j| overlap(&this.steps, &lifetimes[j].steps))
            .map(|&j| starts[j]..starts[j] + lifetimes[j].len)
            .collect();
        occupied.sort_by_key(|r| r.start);
        let mut start = 0usize;
        for range in occupied {
            if start + this.len <= range.start {
                break;
            }
            start = start.max(range.end.next_multiple_of(ALIGN));
        }
        starts[i] = start;
        total = total.max(start + this.len);
        placed.push(i);
    }
    (starts, total)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_of_steps_needs_two_buffers() {
        let chain: Vec<Lifetime> = (0..10).map(|i| Lifetime { len: 160, steps: i..i + 2 }).collect();
        assert_eq!(place(&chain).1, 320);
    }

    proptest! {
        #[test]
        fn live_results_do_not_overlap(
            sizes in proptest::collection::vec((1usize..500, 0usize..20, 1usize..6), 1..40)
        ) {
            let lifetimes: Vec<Lifetime> =
                sizes.iter().map(|&(len, start, n)| Lifetime { len, steps: start..start + n }).collect();
            let (starts, total) = place(&lifetimes);
            for (i, a) in lifetimes.iter().enumerate() {
                prop_assert!(starts[i] + a.len <= total && starts[i].is_multiple_of(ALIGN));
                for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                    let disjoint = starts[i] + a.len <= starts[j] || starts[j] + b.len <= starts[i];
                    prop_assert!(disjoint || !overlap(&a.steps, &b.steps), "{i} and {j}");
                }
            }
        }
    }
}
