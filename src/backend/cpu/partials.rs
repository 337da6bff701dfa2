//! Rows' partials without their logits: each task keeps the best candidates and the sum of its part of the
//! vocabulary, and at the end these are joined row by row.

use super::product::{Product, Take, block_ids, blocks};
use crate::layout::BLOCK;
use crate::merge::ExpSum;
use crate::merge::{Best, PartialMut, PartialSpec};
use crate::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE};
use rayon::prelude::*;
use std::ops::Range;

/// Parts of the vocabulary for each thread: threads that are slower take fewer of them.
const PARTS: usize = 4;

/// Best candidates and sum of exponentials of a row over a range of ids.
#[derive(Debug, Default)]
pub(super) struct RowPartial {
    nonfinite: bool,
    sum: ExpSum,
    best: Best,
}

impl RowPartial {
    /// Nothing seen yet. Allocates where `k` is larger than ever before.
    pub fn reset(&mut self, k: usize) {
        self.nonfinite = false;
        self.sum = ExpSum::default();
        self.best.reset(k);
    }

    /// Adds the logits of consecutive ids from `first_id`. `finite` says that every logit is finite, in the
    /// backend's own judgement (a softcap may have hidden an infinity). Minus infinity from an adjustment is
    /// legal: it is never a candidate and adds nothing to the sum.
    #[inline(always)]
    pub fn push(&mut self, first_id: usize, logits: &[f32], finite: bool, sum: bool) {
        self.nonfinite |= !finite;
        if self.nonfinite {
            return; // the row's answer is its status
        }
        let max = self.best.offer_block(first_id, logits);
        if sum && max > f32::NEG_INFINITY {
            self.sum.add(logits);
        }
    }

    /// Joins what is known of another part.
    pub fn merge(&mut self, other: &RowPartial) {
        self.nonfinite |= other.nonfinite;
        self.sum.merge(&other.sum);
        self.best.merge(&other.best);
    }

    /// Writes the partial. Of a row that is not finite only the status is written: what else is known of it
    /// depends on the order in which its logits came.
    pub fn write(&mut self, partial: &mut PartialMut<'_>) {
        if self.nonfinite {
            partial.set_status(LMHEAD_STATUS_NONFINITE);
            return partial.set_candidates(&[]);
        }
        let best = self.best.candidates();
        partial.set_status(if best.is_empty() { 0 } else { LMHEAD_STATUS_ALLOWED });
        partial.set_candidates(best);
        partial.set_sum(&self.sum);
    }
}

/// How many parts the vocabulary has; threads take them in turn.
pub(super) fn parts(threads: usize, vocab: &Range<usize>) -> usize {
    let parts = if threads == 1 { 1 } else { PARTS * threads };
    parts.min(blocks(vocab).len())
}

/// The partials of a product's rows, `[rows, spec.stride(shard)]`, on a thread of the pool. `seen`
/// `[parts, rows]` is overwritten; the shard is not empty.
pub(super) fn run(product: &Product<'_>, spec: PartialSpec, seen: &mut [RowPartial], out: &mut [u8]) {
    let (rows, vocab) = (product.rows.len(), product.shard.vocab());
    let (blocks, parts) = (blocks(&vocab), seen.len() / rows);
    let (k, at_once) = (spec.places(vocab.len()), product.at_once(blocks.len()));
    let start_of = |part: usize| blocks.start + blocks.len() * part / parts;
    seen.par_chunks_exact_mut(rows).with_max_len(1).enumerate().for_each(|(part, seen)| {
        seen.iter_mut().for_each(|row| row.reset(k));
        for first in (start_of(part)..start_of(part + 1)).step_by(at_once) {
            let ids = block_ids(first..start_of(part + 1).min(first + at_once), &vocab);
            let first_id = ids.start;
            product.blocks(ids, Push { seen: &mut *seen, first_id, sum: spec.sum });
        }
    });
    let (first, others) = seen.split_at_mut(rows);
    let out = out.par_chunks_exact_mut(spec.stride(vocab.len()));
    first.par_iter_mut().zip(out).enumerate().for_each(|(row, (all, out))| {
        for part in others.chunks_exact(rows) {
            all.merge(&part[row]);
        }
        all.write(&mut PartialMut::new(out, &spec, vocab.len()));
    });
}

/// A struct and no closure: closures are compiled for the baseline instruction set, where an FMA is a call.
struct Push<'a> {
    /// `[rows]`
    seen: &'a mut [RowPartial],
    first_id: usize,
    sum: bool,
}

impl Take for Push<'_> {
    #[inline(always)]
    fn take(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        self.seen[row].push(self.first_id + block * BLOCK, logits, finite, self.sum);
    }
}
