//! Partials -> one answer per row. A partial is what one shard knows about a row: its best candidates, its
//! sum of exponentials, and how many of its ids beat each target. Merging is exact, commutative and
//! associative, so the result does not depend on tiles, shards, ranks or threads.

mod flat;
mod sum;

pub use crate::params::Candidate;
pub use flat::{Best, Merge, NO_TARGET, PartialMut, PartialSpec};
pub use sum::ExpSum;

impl Candidate {
    /// Fills places for which there is no candidate.
    pub(crate) const NOTHING: Candidate = Candidate { value: f32::NEG_INFINITY, id: 0 };

    /// The order of every answer: larger value first, then lower id. −0 and +0 are equal. Never called on
    /// NaN.
    #[inline]
    pub fn beats(&self, other: &Candidate) -> bool {
        self.value > other.value || (self.value == other.value && self.id < other.id)
    }
}

/// The largest logit, minus infinity where there are none; written to vectorise. The logits must not be NaN.
#[inline(always)]
pub(crate) fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (m, &l) in lanes.iter_mut().zip(chunk) {
            *m = if l > *m { l } else { *m };
        }
    }
    let max = |m: f32, &l: &f32| if l > m { l } else { m };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, max), max)
}
