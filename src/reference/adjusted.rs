//! Adjustments on true logits, from their definitions in [`crate::adjust`].

use super::{Truth, U};
use crate::adjust::Adjustments;

/// Adjusts the truths of one row, where `truths[i]` belongs to id `ids[i]` (ascending), and adds the rounding
/// of each f32 operation to the allowed error. Ids that are not allowed get exactly minus infinity.
///
/// # Panics
/// When the adjustments do not have this row; [`Adjustments::check`] finds that out.
pub fn adjust_row(
    truths: &mut [Truth],
    ids: &[usize],
    adjustments: &Adjustments<'_>,
    row: usize,
    vocab_size: usize,
) {
    let place = |id: i64| ids.binary_search(&(id as usize)).ok();
    if let Some(a) = &adjustments.logit_bias {
        for at in a.offsets[row]..a.offsets[row + 1] {
            if let Some(i) = place(a.ids[at]) {
                add(&mut truths[i], f64::from(a.values[at]), 0.0);
            }
        }
    }
    if let Some(p) = &adjustments.penalties {
        let c = &p.counts;
        for at in c.offsets[row]..c.offsets[row + 1] {
            let Some(i) = place(c.ids[at]) else { continue };
            let count = f64::from(c.counts[at]);
            if c.counts[at] > 0 || c.in_prompt[at] {
                repeat(&mut truths[i], f64::from(p.repetition[row]));
            }
            if c.counts[at] > 0 {
                let frequency = f64::from(p.frequency[row]) * count;
                // The head rounds twice: a count above 2^24 to f32, and the product.
                add(&mut truths[i], -frequency, 2.0 * U * frequency.abs());
                add(&mut truths[i], -f64::from(p.presence[row]), 0.0);
            }
        }
    }
    if let Some(mask) = adjustments.allowed {
        let words = &mask[row * vocab_size.div_ceil(32)..];
        for (truth, &id) in truths.iter_mut().zip(ids) {
            if words[id / 32] as u32 >> (id % 32) & 1 == 0 {
                (truth.logit, truth.allowed) = (f64::NEG_INFINITY, 0.0);
            }
        }
    }
}

fn add(truth: &mut Truth, value: f64, off: f64) {
    truth.logit += value;
    if truth.logit == f64::NEG_INFINITY {
        truth.allowed = 0.0;
    } else {
        truth.allowed += off;
        truth.allowed += U * (truth.logit.abs() + truth.allowed);
    }
}

/// The repetition penalty: a continuous function with slope 1/r above 0 and r below. Where the sign of the
/// logit is in doubt, the larger slope bounds the error.
fn repeat(truth: &mut Truth, r: f64) {
    if truth.logit == f64::NEG_INFINITY {
        return;
    }
    let (above, below) = (truth.logit - truth.allowed > 0.0, truth.logit + truth.allowed <= 0.0);
    let slope = if above {
        1.0 / r
    } else if below {
        r
    } else {
        r.max(1.0 / r)
    };
    truth.logit = if truth.logit > 0.0 { truth.logit / r } else { truth.logit * r };
    truth.allowed *= slope;
    truth.allowed += U * (truth.logit.abs() + truth.allowed) + f64::from(f32::from_bits(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adjust::{Counts, LogitBias, Penalties, ShardAdjustments};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn f32_arithmetic_is_within_what_is_allowed(
            logits in prop::collection::vec(prop_oneof![-30f32..30.0, -1e-38f32..1e-38, -1e30f32..1e30], 40),
            values in prop::collection::vec((0i64..40, -20f32..20.0), 0..30),
            counted in prop::collection::btree_map(0i64..40, (0u32..9, any::<bool>()), 0..30),
            penalty in (0.1f32..4.0, -2f32..2.0, -2f32..2.0),
            mask in prop::collection::vec(any::<i32>(), 2),
        ) {
            let (ids, values): (Vec<i64>, Vec<f32>) = values.into_iter().unzip();
            let counted_ids: Vec<i64> = counted.keys().copied().collect();
            let counts: Vec<u32> = counted.values().map(|c| c.0).collect();
            let in_prompt: Vec<bool> = counted.values().map(|c| c.1).collect();
            let adjustments = Adjustments {
                allowed: Some(&mask),
                logit_bias: Some(LogitBias { offsets: &[0, ids.len()], ids: &ids, values: &values }),
                penalties: Some(Penalties {
                    repetition: &[penalty.0], frequency: &[penalty.1], presence: &[penalty.2],
                    counts: Counts {
                        offsets: &[0, counts.len()],
                        ids: &counted_ids,
                        counts: &counts,
                        in_prompt: &in_prompt,
                    },
                }),
            };
            let mut slice = ShardAdjustments::new(0..40);
            slice.push_encoded(&adjustments.encode(0..1, 0..40, 40), 1).unwrap();
            let mut got = logits.clone();
            prop_assert!(slice.apply(0, 0, &mut got));
            let truth = |&l: &f32| Truth { logit: f64::from(l), allowed: 0.0, raw: 0.0, raw_allowed: 0.0 };
            let mut truths: Vec<Truth> = logits.iter().map(truth).collect();
            let all: Vec<usize> = (0..40).collect();
            adjust_row(&mut truths, &all, &adjustments, 0, 40);
            for (id, (got, truth)) in got.iter().zip(&truths).enumerate() {
                let got = f64::from(*got);
                let good = got == truth.logit || (got - truth.logit).abs() <= truth.allowed;
                prop_assert!(good, "id {}: {} from {}, truth {:?}", id, got, logits[id], truth);
            }
        }
    }
}
