//! Where each result lies in the arena: no two that are needed at the same time overlap.

use std::ops::Range;

/// A result's size and the steps during which it must be kept, first and last included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) len: usize,
    pub(super) steps: Range<usize>,
}

/// Cache lines of f32.
const ALIGN: usize = 16;

/// The first element of each result, and the arena's length. The largest are placed first, each at the lowest place
/// where it meets no other that lives at the same time.
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
            .filter(|&&j| meet(&this.steps, &lifetimes[j].steps))
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

fn meet(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<Lifetime> = (0..10).map(|i| Lifetime { len: 160, steps: i..i + 2 }).collect();
        assert_eq!(place(&chain).1, 320);
    }

    proptest! {
        #[test]
        fn what_lives_together_does_not_overlap(
            sizes in proptest::collection::vec((1usize..500, 0usize..20, 1usize..6), 1..40)
        ) {
            let lifetimes: Vec<Lifetime> =
                sizes.iter().map(|&(len, start, n)| Lifetime { len, steps: start..start + n }).collect();
            let (starts, total) = place(&lifetimes);
            for (i, a) in lifetimes.iter().enumerate() {
                prop_assert!(starts[i] + a.len <= total && starts[i].is_multiple_of(ALIGN));
                for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                    let apart = starts[i] + a.len <= starts[j] || starts[j] + b.len <= starts[i];
                    prop_assert!(apart || !meet(&a.steps, &b.steps), "{i} and {j}");
                }
            }
        }
    }
}
