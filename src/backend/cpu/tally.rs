//! Partials and counts of logits that are held in memory: one task per row.

use super::pool::Pool;
use crate::backend::HeldLogits;
use crate::backend::Tally;
use crate::error::{Error, Result};
use crate::merge::{Candidate, PartialSpec, RowPartial};
use lmhead_cpu::{Arith, Isa, Work};
use rayon::prelude::*;

pub(super) fn tally(pool: &Pool, isa: Isa, tally: Tally<'_>) -> Result<()> {
    let Tally { logits, vocab, nonfinite, targets, spec, partials, better } = tally;
    let (rows, columns) = (partials.len(), vocab.len());
    for (what, got, wanted) in [
        ("logits of the chunk", logits.len(), rows * columns),
        ("flags of the chunk", nonfinite.len(), rows),
        ("targets of the chunk", targets.len(), rows),
        ("counts of the chunk", better.len(), rows),
    ] {
        if got != wanted {
            return Err(Error::shape(what, wanted, got, "pass one for each row of the chunk"));
        }
    }
    let one = |row: usize, partial: &mut RowPartial, better: &mut u32| {
        partial.reset(spec);
        *better = 0;
        let logits = &logits[row * columns..(row + 1) * columns];
        isa.run(Push { logits, first_id: vocab.start, finite: !nonfinite[row], partial });
        if !partial.nonfinite() {
            *better = beating(logits, vocab.start, targets[row]);
        }
    };
    pool.install(|| {
        partials.par_iter_mut().zip(better).enumerate().for_each(|(row, (p, b))| one(row, p, b));
    })
}

/// Partials alone.
pub(super) fn partials(
    pool: &Pool,
    isa: Isa,
    held: &HeldLogits<'_>,
    spec: PartialSpec,
    out: &mut [RowPartial],
) -> Result<()> {
    let columns = held.vocab.len();
    let one = |row: usize, partial: &mut RowPartial| {
        partial.reset(spec);
        let logits = &held.logits[row * columns..(row + 1) * columns];
        isa.run(Push { logits, first_id: held.vocab.start, finite: !held.nonfinite[row], partial });
    };
    pool.install(|| out.par_iter_mut().enumerate().for_each(|(row, partial)| one(row, partial)))
}

/// Adds a row's logits to its partial, piece by piece: most pieces have no logit that is among the best.
struct Push<'a> {
    logits: &'a [f32],
    first_id: usize,
    finite: bool,
    partial: &'a mut RowPartial,
}

impl Work for Push<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        const PIECE: usize = 64;
        for (i, piece) in self.logits.chunks(PIECE).enumerate() {
            self.partial.push(self.first_id + i * PIECE, piece, self.finite);
        }
    }
}

/// How many of the logits of consecutive ids beat the target: before it those that equal it too.
fn beating(logits: &[f32], first_id: usize, target: Candidate) -> u32 {
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
            logits in prop::collection::vec(prop::sample::select(vec![-1f32, -0.0, 0.0, 2.0, f32::NEG_INFINITY]), 0..200),
            first in 0usize..300, id in 0u32..500, value in prop::sample::select(vec![-1f32, 0.0, -0.0, 2.0, f32::NEG_INFINITY]),
        ) {
            let target = Candidate { value, id };
            let beats = |(i, &value): (usize, &f32)| Candidate { value, id: (first + i) as u32 }.beats(&target);
            let want = logits.iter().enumerate().filter(|at| beats(*at)).count();
            prop_assert_eq!(beating(&logits, first, target), want as u32);
        }
    }
}
