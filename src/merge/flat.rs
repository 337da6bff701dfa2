//! The bytes of a partial, row after row: a [`PartialRow`] (`kernels/params.h`), then candidates, then
//! counts. Backends and kernels write them, exchanges carry them, [`Merge`] reads them.

use super::{Candidate, ExpSum, largest};
use crate::error::{Error, Result};
use crate::params::{LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, PartialRow};
use std::cmp::Ordering;
use std::ops::Range;

/// Stands for "no target" where ranks exchange target ids.
pub const NO_TARGET: u32 = u32::MAX;

/// What the partials of a step hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialSpec {
    /// Places for the best candidates, at least 1; a shard of fewer ids has fewer places.
    pub k: usize,
    /// Whether the sum of exponentials is formed.
    pub sum: bool,
    /// Target ids per row; for each, the ids that beat it are counted.
    pub targets: usize,
}

impl PartialSpec {
    /// Places for candidates in the partials of a shard of `ids` ids.
    pub fn places(&self, ids: usize) -> usize {
        self.k.min(ids)
    }

    /// Bytes of a row in the partials of a shard of `ids` ids: a multiple of 8.
    pub fn stride(&self, ids: usize) -> usize {
        let candidates = self.places(ids) * size_of::<Candidate>();
        size_of::<PartialRow>() + candidates + (4 * self.targets).next_multiple_of(8)
    }
}

/// Writes one row's partial.
pub struct PartialMut<'a> {
    row: &'a mut PartialRow,
    places: &'a mut [Candidate],
    num_greater: &'a mut [u32],
}

impl<'a> PartialMut<'a> {
    /// A view of the row in `bytes`, of a shard of `ids` ids. Sets the sum and the counts to "nothing seen".
    ///
    /// # Panics
    /// When there are not [`PartialSpec::stride`] bytes, or they are not aligned to 8: a bug in the caller,
    /// whose layout comes from the same spec.
    pub fn new(bytes: &'a mut [u8], spec: &PartialSpec, ids: usize) -> Self {
        assert_eq!(bytes.len(), spec.stride(ids), "bytes of a partial");
        let (row, rest) = bytes.split_at_mut(size_of::<PartialRow>());
        let (places, num_greater) = rest.split_at_mut(spec.places(ids) * size_of::<Candidate>());
        num_greater.fill(0);
        let row: &mut PartialRow = bytemuck::from_bytes_mut(row);
        *row = PartialRow { digits: [0; 3], top: i32::MIN, status: 0, candidates: 0, reserved: 0 };
        let num_greater = &mut bytemuck::cast_slice_mut(num_greater)[..spec.targets];
        PartialMut { row, places: bytemuck::cast_slice_mut(places), num_greater }
    }

    /// Adds `LMHEAD_STATUS_*` flags to the row's.
    pub fn set_status(&mut self, status: u32) {
        self.row.status |= status;
    }

    pub fn set_sum(&mut self, sum: &ExpSum) {
        (self.row.top, self.row.digits) = (sum.top(), sum.words());
    }

    /// Writes the candidates, in any order, and clears the other places, so that no stale byte is sent.
    ///
    /// # Panics
    /// When there are more candidates than places.
    pub fn set_candidates(&mut self, found: &[Candidate]) {
        let (taken, left) = self.places.split_at_mut(found.len());
        taken.copy_from_slice(found);
        left.fill(Candidate::NOTHING);
        self.row.candidates = found.len() as u32;
    }

    /// How many ids beat each target, `[targets]`.
    pub fn num_greater(&mut self) -> &mut [u32] {
        self.num_greater
    }
}

/// Finds the best k of candidates that come in any order. Collects up to 2k, then drops the worse half: a
/// few comparisons per candidate, where a heap would take as many as it is high.
#[derive(Debug, Clone)]
pub struct Best {
    k: usize,
    found: Vec<Candidate>,
    /// Candidates that do not beat this one cannot be among the best k.
    bar: Candidate,
}

/// The bar while fewer than k candidates are known: every logit above minus infinity beats it.
const NO_BAR: Candidate = Candidate { value: f32::NEG_INFINITY, id: 0 };

impl Default for Best {
    fn default() -> Self {
        Best { k: 1, found: Vec::new(), bar: NO_BAR }
    }
}

impl Best {
    /// Forgets all candidates and keeps the memory. After it nothing is allocated until a reset to a larger
    /// k.
    pub fn reset(&mut self, k: usize) {
        self.k = k;
        self.found.clear();
        self.found.reserve_exact(2 * k);
        self.bar = NO_BAR;
    }

    /// Offers the logits of consecutive ids from `first_id` on and returns the largest. Minus infinity is
    /// never a candidate; the logits must not be NaN.
    #[inline(always)]
    pub fn offer_block(&mut self, first_id: usize, logits: &[f32]) -> f32 {
        let max = largest(logits);
        if max > f32::NEG_INFINITY && max >= self.bar.value {
            self.offer_all(first_id, logits);
        }
        max
    }

    /// Not inlined, to keep it out of the loops that are compiled once per instruction set: few blocks need
    /// it.
    #[inline(never)]
    fn offer_all(&mut self, first_id: usize, logits: &[f32]) {
        for (i, &value) in logits.iter().enumerate() {
            self.offer(Candidate { value, id: (first_id + i) as u32 });
        }
    }

    /// Offers one candidate, whose value must not be NaN.
    #[inline(always)]
    pub fn offer(&mut self, candidate: Candidate) {
        if candidate.beats(&self.bar) {
            self.found.push(candidate);
            if self.found.len() == 2 * self.k {
                self.keep_best();
            }
        }
    }

    /// Offers all candidates of `other`.
    pub fn merge(&mut self, other: &Best) {
        for &candidate in &other.found {
            self.offer(candidate);
        }
    }

    fn keep_best(&mut self) {
        if self.found.len() >= self.k {
            let (_, worst, _) = self.found.select_nth_unstable_by(self.k - 1, order);
            self.bar = *worst;
            self.found.truncate(self.k);
        }
    }

    /// The best k, in no particular order.
    pub fn candidates(&mut self) -> &[Candidate] {
        self.keep_best();
        &self.found
    }

    /// The best k, best first.
    pub fn sorted(&mut self) -> &[Candidate] {
        self.keep_best();
        self.found.sort_unstable_by(order);
        &self.found
    }
}

/// An ordering that sorts the best first.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    if a.beats(b) {
        Ordering::Less
    } else if b.beats(a) {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// Merges the partials of one row, from any number of shards. Reused row after row, so that it allocates
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct Merge {
    spec: Option<PartialSpec>,
    sum: ExpSum,
    status: u32,
    best: Best,
    num_greater: Vec<u32>,
    /// Ids of one shard's candidates, to find duplicates.
    ids: Vec<u32>,
}

impl Merge {
    /// Starts a new row.
    pub fn reset(&mut self, spec: PartialSpec) {
        self.spec = Some(spec);
        self.sum = ExpSum::default();
        self.status = 0;
        self.best.reset(spec.k);
        self.num_greater.clear();
        self.num_greater.resize(spec.targets, 0);
        self.ids.clear();
        self.ids.reserve_exact(spec.k);
    }

    /// Merges the row in `bytes`, written by the shard that has the ids `shard`.
    ///
    /// # Errors
    /// `Exchange` when the bytes cannot be such a row: the sender runs another version, or its memory is
    /// damaged.
    ///
    /// # Panics
    /// Without [`Merge::reset`] before.
    pub fn add(&mut self, bytes: &[u8], shard: &Range<usize>) -> Result<()> {
        let spec = self.spec.expect("reset first");
        let (places, stride) = (spec.places(shard.len()), spec.stride(shard.len()));
        if bytes.len() != stride {
            return Err(broken(format!("wanted {stride} bytes a row, got {}", bytes.len())));
        }
        let (row, rest) = bytes.split_at(size_of::<PartialRow>());
        let row: PartialRow = bytemuck::pod_read_unaligned(row);
        let (candidates, num_greater) = rest.split_at(places * size_of::<Candidate>());
        let Some(sum) = ExpSum::from_parts(row.top, row.digits) else {
            return Err(broken("the sum is none that logits have".into()));
        };
        if row.candidates as usize > places || row.reserved != 0 {
            return Err(broken(format!("wanted at most {places} candidates, got {}", row.candidates)));
        }
        self.status |= row.status;
        self.sum.merge(&sum);
        self.ids.clear();
        let candidates = candidates.as_chunks::<8>().0[..row.candidates as usize].iter();
        for candidate in candidates.map(|bytes| bytemuck::pod_read_unaligned::<Candidate>(bytes)) {
            let Candidate { value, id } = candidate;
            if !value.is_finite() || !shard.contains(&(id as usize)) {
                return Err(broken(format!("candidate {id} with logit {value} came from ids {shard:?}")));
            }
            self.ids.push(id);
            self.best.offer(candidate);
        }
        self.ids.sort_unstable();
        if let Some(twice) = self.ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(broken(format!("candidate {} came twice from ids {shard:?}", twice[0])));
        }
        for (sum, count) in self.num_greater.iter_mut().zip(num_greater.as_chunks::<4>().0) {
            // A damaged message must not panic.
            *sum = sum.wrapping_add(u32::from_le_bytes(*count));
        }
        Ok(())
    }

    /// Adds `LMHEAD_STATUS_*` flags that no partial carries.
    pub fn add_status(&mut self, status: u32) {
        self.status |= status;
    }

    /// `LMHEAD_STATUS_*` of all shards, or'ed.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// True when a logit was NaN or infinite.
    pub fn nonfinite(&self) -> bool {
        self.status & LMHEAD_STATUS_NONFINITE != 0
    }

    /// True when the index by which the row was selected is not a row, or another of its inputs is invalid.
    pub fn bad_index(&self) -> bool {
        self.status & LMHEAD_STATUS_BAD_INDEX != 0
    }

    /// The best k, best first; fewer where fewer ids are allowed.
    pub fn sorted(&mut self) -> &[Candidate] {
        self.best.sorted()
    }

    /// How many ids beat each target.
    pub fn num_greater(&self) -> &[u32] {
        &self.num_greater
    }

    /// `ln(Σ e^l)`; NaN where the row is not finite, minus infinity where nothing is allowed.
    pub fn logsumexp(&mut self) -> f64 {
        if self.nonfinite() {
            return f64::NAN;
        }
        let max = self.best.candidates().iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.value));
        self.sum.ln(max)
    }
}

fn broken(problem: String) -> Error {
    Error::Exchange {
        operation: "merge of partials".into(),
        problem,
        fix: "run the same version of lmhead on every rank".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::BLOCK;
    use crate::params::LMHEAD_STATUS_ALLOWED;
    use proptest::prelude::*;

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let near = prop::collection::vec(-30.0f32..30.0, 1..900);
        let ties = prop::collection::vec(prop::sample::select(vec![-1.0f32, -0.0, 0.0, 1.0]), 1..400);
        let wide =
            prop::collection::vec(any::<f32>().prop_map(|v| if v.is_finite() { v } else { 1.0 }), 1..400);
        let masked = prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -5f32..5.0], 1..300);
        prop_oneof![near, ties, wide, masked]
    }

    /// The partial of a shard with these logits, whose first id is `first`.
    fn partial(first: usize, logits: &[f32], spec: PartialSpec) -> Vec<u8> {
        let mut bytes = vec![0xa5u8; spec.stride(logits.len())];
        let mut best = Best::default();
        best.reset(spec.k);
        for (i, block) in logits.chunks(BLOCK).enumerate() {
            best.offer_block(first + i * BLOCK, block);
        }
        let mut aligned = vec![0u64; bytes.len() / 8];
        let mut row = PartialMut::new(bytemuck::cast_slice_mut(&mut aligned), &spec, logits.len());
        row.set_candidates(best.candidates());
        if spec.sum {
            row.set_sum(&ExpSum::of(logits));
        }
        row.num_greater().iter_mut().zip(1..).for_each(|(num_greater, n)| *num_greater = n);
        row.set_status(LMHEAD_STATUS_ALLOWED);
        bytes.copy_from_slice(bytemuck::cast_slice(&aligned));
        bytes
    }

    /// The results of a merge: candidates, bits of the logsumexp, counts.
    type Said = (Vec<(u32, u32)>, u64, Vec<u32>);

    fn merged(spec: PartialSpec, parts: &[(usize, &[f32])]) -> Said {
        let mut merge = Merge::default();
        merge.reset(spec);
        for &(first, logits) in parts {
            let bytes = partial(first, logits, spec);
            merge.add(&bytes, &(first..first + logits.len())).unwrap();
        }
        let best = merge.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect();
        (best, merge.logsumexp().to_bits(), merge.num_greater().to_vec())
    }

    proptest! {
        /// The row is cut anywhere, and its parts come in any order.
        #[test]
        fn no_cut_and_no_order_shows(
            logits in logits(), k in 1usize..200, length in 1usize..300, seed: u64, targets in 0usize..4,
        ) {
            let spec = PartialSpec { k, sum: true, targets };
            let mut parts: Vec<(usize, &[f32])> =
                logits.chunks(length).enumerate().map(|(i, part)| (i * length, part)).collect();
            let n = parts.len() as u32;
            parts.sort_by_key(|(first, _)| (*first as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (best, sum, num_greater) = merged(spec, &parts);
            let mut order: Vec<u32> =
                (0..logits.len() as u32).filter(|i| logits[*i as usize] > f32::NEG_INFINITY).collect();
            order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap());
            order.truncate(k);
            prop_assert_eq!(best.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order);
            prop_assert_eq!(sum, merged(spec, &[(0, &logits)]).1);
            prop_assert_eq!(num_greater, (1..=targets as u32).map(|i| i * n).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 64), top in any::<bool>()) {
            let spec = PartialSpec { k: 2, sum: true, targets: 2 };
            let mut bytes = bytes;
            if top {
                bytes[..40].copy_from_slice(&partial(0, &[1.0, -3.0], spec)[..40]);
            }
            let mut merge = Merge::default();
            merge.reset(spec);
            let _ = merge.add(&bytes, &(0..7));
            let _ = (merge.logsumexp(), merge.sorted().len());
        }
    }

    #[test]
    fn damaged_rows_are_refused() {
        let spec = PartialSpec { k: 2, sum: true, targets: 1 };
        let good = partial(64, &[1.0, 2.0], spec);
        assert_eq!(good.len(), 64);
        let said = |bytes: &[u8]| {
            let mut merge = Merge::default();
            merge.reset(spec);
            merge.add(bytes, &(64..66)).map_err(|e| e.to_string())
        };
        assert_eq!(said(&good), Ok(()));
        assert!(said(&good[..56]).unwrap_err().contains("wanted 64 bytes a row, got 56"));
        for (at, with, what) in [
            (24, &[0xff, 0xff, 0xff, 0x7f][..], "the sum is none"),
            (0, &[0; 24], "the sum is none"),
            (32, &[3], "wanted at most 2 candidates, got 3"),
            (36, &[1], "wanted at most 2"),
            (40, &[0, 0, 0x80, 0x7f], "with logit inf"),
            (40, &[0, 0, 0xc0, 0x7f], "with logit NaN"),
            (44, &[66, 0, 0, 0], "candidate 66 with logit"),
        ] {
            let mut bad = good.clone();
            bad[at..at + with.len()].copy_from_slice(with);
            let said = said(&bad).unwrap_err();
            assert!(said.contains(what), "byte {at}: {said}");
        }
        let mut twice = good;
        twice.copy_within(40..48, 48);
        assert!(said(&twice).unwrap_err().contains("came twice from ids 64..66"));
    }
}
