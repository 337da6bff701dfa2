//! Ranks of targets among logits that are held.

use crate::merge::Candidate;

/// How many of the logits of consecutive ids beat the target: greater ones, and equal ones of lower ids.
pub(super) fn beating(logits: &[f32], first_id: usize, target: Candidate) -> u32 {
    let (before, after) = logits.split_at((target.id as usize).saturating_sub(first_id).min(logits.len()));
    let not_less: u32 = before.iter().map(|l| u32::from(*l >= target.value)).sum();
    let greater: u32 = after.iter().map(|l| u32::from(*l > target.value)).sum();
    not_less + greater
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_those_of_the_order_of_candidates(
            logits in prop::collection::vec(
                prop::sample::select(vec![-1f32, -0.0, 0.0, 2.0, f32::NEG_INFINITY]),
                0..200,
            ),
            first in 0usize..300, id in 0u32..500,
            value in prop::sample::select(vec![-1f32, 0.0, -0.0, 2.0, f32::NEG_INFINITY]),
        ) {
            let target = Candidate { value, id };
            let beats =
                |(i, &value): (usize, &f32)| Candidate { value, id: (first + i) as u32 }.beats(&target);
            let want = logits.iter().enumerate().filter(|at| beats(*at)).count();
            prop_assert_eq!(beating(&logits, first, target), want as u32);
        }
    }
}
