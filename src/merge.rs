//! Partials -> one answer per row. A partial is what one shard knows of a row: its best candidates and its
//! sum of exponentials. Merging is exact, commutative and associative, so no tile, shard, rank or thread
//! shows in the result.

mod sum;

pub use sum::ExpSum;

use crate::error::{Error, Result};

/// A vocabulary id and its f32 logit before any output rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub value: f32,
    pub id: u32,
}

impl Candidate {
    /// The place of a candidate that there is not.
    pub(crate) const NOTHING: Candidate = Candidate { value: f32::NEG_INFINITY, id: 0 };

    /// Eight bytes, little-endian: the value, the id.
    pub(crate) fn encode(&self) -> [u8; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.value.to_le_bytes(), self.id.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }

    pub(crate) fn decode(&[a, b, c, d, e, f, g, h]: &[u8; 8]) -> Self {
        Candidate { value: f32::from_le_bytes([a, b, c, d]), id: u32::from_le_bytes([e, f, g, h]) }
    }

    /// The order of every answer: larger value first, then lower id. −0 and +0 are equal. Never called on
    /// NaN.
    #[inline]
    pub fn beats(&self, other: &Candidate) -> bool {
        self.value > other.value || (self.value == other.value && self.id < other.id)
    }
}

/// What a partial holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialSpec {
    /// Candidates kept, at least 1.
    pub k: usize,
    /// Whether the sum of exponentials is formed.
    pub sum: bool,
}

/// What is known of one row over some part of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct RowPartial {
    spec: PartialSpec,
    nonfinite: bool,
    /// A heap with the worst kept candidate on top; `sorted` puts them in order.
    heap: Vec<Candidate>,
    sum: ExpSum,
}

impl RowPartial {
    /// Nothing seen yet.
    ///
    /// # Panics
    /// When `spec.k` is 0.
    pub fn new(spec: PartialSpec) -> Self {
        assert!(spec.k > 0, "a partial keeps at least one candidate");
        RowPartial { spec, nonfinite: false, heap: Vec::new(), sum: ExpSum::default() }
    }

    /// Forgets everything, keeps the memory.
    pub fn reset(&mut self, spec: PartialSpec) {
        assert!(spec.k > 0, "a partial keeps at least one candidate");
        self.spec = spec;
        self.nonfinite = false;
        self.heap.clear();
        self.sum = ExpSum::default();
    }

    /// Adds the logits of consecutive ids from `first_id`. `finite` says that every logit is finite, in the
    /// backend's own judgement (a softcap may have hidden an infinity). Minus infinity from an adjustment is
    /// legal: it is never a candidate and adds nothing to the sum.
    #[inline(always)]
    pub fn push(&mut self, first_id: usize, logits: &[f32], finite: bool) {
        self.nonfinite |= !finite;
        if self.nonfinite {
            return; // the row's answer is its status
        }
        let max = largest(logits);
        if max == f32::NEG_INFINITY {
            return; // no logit, or none that is allowed
        }
        if self.spec.sum {
            self.sum.add(logits);
        }
        // Ids ascend within a partial's own pushes but not across merged ones, so a tie must be looked at.
        if self.heap.len() < self.spec.k || max >= self.heap[0].value {
            self.offer_all(first_id, logits);
        }
    }

    /// Not in the loops that are compiled for each instruction set: few logits come here.
    #[inline(never)]
    fn offer_all(&mut self, first_id: usize, logits: &[f32]) {
        for (i, &value) in logits.iter().enumerate() {
            self.offer(Candidate { value, id: (first_id + i) as u32 });
        }
    }

    /// Joins what another part of the vocabulary knows of the same row.
    pub fn merge(&mut self, other: &RowPartial) {
        self.nonfinite |= other.nonfinite;
        self.sum.merge(&other.sum);
        for &candidate in &other.heap {
            self.offer(candidate);
        }
    }

    /// True when a logit was NaN or infinite.
    pub fn nonfinite(&self) -> bool {
        self.nonfinite
    }

    /// True when every logit that was merged is minus infinity.
    pub fn nothing_allowed(&self) -> bool {
        !self.nonfinite && self.heap.is_empty()
    }

    /// The candidates, best first; fewer than k where fewer ids are allowed.
    pub fn sorted(&self) -> Vec<Candidate> {
        let mut best = self.heap.clone();
        let by_value = |a: &Candidate, b: &Candidate| b.value.partial_cmp(&a.value).expect("never NaN");
        best.sort_unstable_by(|a, b| by_value(a, b).then(a.id.cmp(&b.id)));
        best
    }

    /// `ln(sum(exp(logit)))` over everything merged; NaN where the row is non-finite, minus infinity where
    /// nothing was pushed.
    pub fn logsumexp(&self) -> f32 {
        self.logsumexp_f64() as f32
    }

    /// The same before it is rounded, for differences with it.
    pub fn logsumexp_f64(&self) -> f64 {
        if self.nonfinite {
            return f64::NAN;
        }
        let max = self.heap.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.value));
        self.sum.ln(max)
    }

    /// Keeps the candidate if it is among the best k and allowed.
    #[inline]
    fn offer(&mut self, candidate: Candidate) {
        if candidate.value == f32::NEG_INFINITY {
            return;
        }
        if self.heap.len() < self.spec.k {
            self.heap.push(candidate);
            let mut i = self.heap.len() - 1;
            while i > 0 {
                let parent = (i - 1) / 2;
                if !self.heap[parent].beats(&self.heap[i]) {
                    break;
                }
                self.heap.swap(i, parent);
                i = parent;
            }
        } else if candidate.beats(&self.heap[0]) {
            self.heap[0] = candidate;
            let (mut i, n) = (0, self.heap.len());
            loop {
                let mut worst = i;
                for child in [2 * i + 1, 2 * i + 2] {
                    if child < n && self.heap[worst].beats(&self.heap[child]) {
                        worst = child;
                    }
                }
                if worst == i {
                    break;
                }
                self.heap.swap(i, worst);
                i = worst;
            }
        }
    }

    /// Bytes of an encoded partial that keeps at most `k` candidates: 8 for the header, 32 for the sum, 8 for
    /// each candidate.
    pub fn encoded_len(spec: PartialSpec) -> usize {
        8 + if spec.sum { ExpSum::BYTES } else { 0 } + 8 * spec.k
    }

    /// Writes the partial for another rank. `out` has the [`RowPartial::encoded_len`] of this spec, or of one
    /// with a smaller k where no more candidates can have been seen.
    ///
    /// # Panics
    /// When `out` is too short for the candidates.
    pub fn encode(&self, out: &mut [u8]) {
        assert!(
            out.len() >= Self::encoded_len(PartialSpec { k: self.heap.len(), ..self.spec }),
            "encode: {} bytes",
            out.len()
        );
        out.fill(0);
        out[..4].copy_from_slice(&(self.heap.len() as u32).to_le_bytes());
        out[4] = u8::from(self.nonfinite);
        let mut at = 8;
        if self.spec.sum {
            out[at..at + ExpSum::BYTES].copy_from_slice(&self.sum.encode());
            at += ExpSum::BYTES;
        }
        for c in &self.heap {
            out[at..at + 8].copy_from_slice(&c.encode());
            at += 8;
        }
    }

    /// Merges an encoded partial of the same spec, or of one with a smaller k.
    ///
    /// # Errors
    /// `Exchange` when the bytes cannot be a partial of this spec: the sender runs another version or its
    /// memory is damaged.
    pub fn merge_encoded(&mut self, bytes: &[u8]) -> Result<()> {
        let spec = self.spec;
        let broken = |problem: String| Error::Exchange {
            operation: "merge of partials".into(),
            problem,
            fix: "run the same version of lmhead on every rank".into(),
        };
        let (least, most) = (Self::encoded_len(PartialSpec { k: 0, ..spec }), Self::encoded_len(spec));
        if bytes.len() < least || bytes.len() > most || !(bytes.len() - least).is_multiple_of(8) {
            return Err(broken(format!("wanted {least} to {most} bytes a row, got {}", bytes.len())));
        }
        let room = (bytes.len() - least) / 8;
        let n = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
        if n > room || bytes[4] > 1 {
            return Err(broken(format!("wanted at most {room} candidates, got {n} (flag {})", bytes[4])));
        }
        self.nonfinite |= bytes[4] == 1;
        let mut at = 8;
        if spec.sum {
            let sum = ExpSum::decode(bytes[at..].first_chunk().expect("as long as was asked"));
            self.sum.merge(&sum.ok_or_else(|| broken("the sum is none that logits have".into()))?);
            at += ExpSum::BYTES;
        }
        for (i, bytes) in bytes[at..].as_chunks::<8>().0[..n].iter().enumerate() {
            let candidate = Candidate::decode(bytes);
            if candidate.value.is_nan() || candidate.value == f32::NEG_INFINITY {
                return Err(broken(format!("candidate {i} is {}", candidate.value)));
            }
            self.offer(candidate);
        }
        Ok(())
    }
}

/// The largest of logits that are no NaN, minus infinity where there is none; in a form that vectorises.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(logits: &[f32], spec: PartialSpec) -> RowPartial {
        let mut partial = RowPartial::new(spec);
        partial.push(0, logits, true);
        partial
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let near = prop::collection::vec(-30.0f32..30.0, 1..900);
        let ties = prop::collection::vec(prop::sample::select(vec![-1.0f32, -0.0, 0.0, 1.0]), 1..400);
        let wide =
            prop::collection::vec(any::<f32>().prop_map(|v| if v.is_finite() { v } else { 1.0 }), 1..400);
        let large = prop::collection::vec(-2e9f32..2e9, 1..300);
        prop_oneof![near, ties, wide, large]
    }

    proptest! {
        /// Cut anywhere.
        #[test]
        fn any_order_and_grouping_gives_the_same_bits(
            logits in logits(), k in 1usize..70, parts in 1usize..9, length in 1usize..100, seed in any::<u64>(),
        ) {
            let spec = PartialSpec { k, sum: true };
            let want = whole(&logits, spec);
            let mut parts = vec![RowPartial::new(spec); parts];
            let n = parts.len() as u64;
            let mut pieces: Vec<_> = logits.chunks(length).enumerate().collect();
            pieces.sort_by_key(|(i, _)| (*i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for (i, piece) in pieces {
                let part = (seed ^ (i as u64).wrapping_mul(0x2545_f491_4f6c_dd1d)) % n;
                parts[part as usize].push(i * length, piece, true);
            }
            let mut got = RowPartial::new(spec);
            let mut bytes = vec![0xa5; RowPartial::encoded_len(spec)];
            for part in parts.iter().rev() {
                part.encode(&mut bytes);
                got.merge_encoded(&bytes).unwrap();
            }
            prop_assert_eq!(got.logsumexp().to_bits(), want.logsumexp().to_bits());
            let ids = |p: &RowPartial| p.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect::<Vec<_>>();
            prop_assert_eq!(ids(&got), ids(&want));
        }

        #[test]
        fn candidates_are_a_stable_sort(logits in logits(), k in 1usize..950) {
            let got: Vec<u32> = whole(&logits, PartialSpec { k, sum: false }).sorted().iter().map(|c| c.id).collect();
            let mut want: Vec<u32> = (0..logits.len() as u32).collect();
            want.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap());
            want.truncate(k);
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn a_non_finite_row_stays_so() {
        let spec = PartialSpec { k: 2, sum: true };
        let mut a = RowPartial::new(spec);
        a.push(0, &[1.0, f32::NAN], false);
        let mut bytes = vec![0; RowPartial::encoded_len(spec)];
        a.encode(&mut bytes);
        let mut b = whole(&[1.0, 2.0], spec);
        b.merge_encoded(&bytes).unwrap();
        assert!(b.nonfinite() && b.logsumexp().is_nan());
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let spec = PartialSpec { k: 1, sum: false };
        let mut partial = RowPartial::new(spec);
        assert!(partial.merge_encoded(&[0; 15]).is_err());
        let mut bytes = [0; 16];
        bytes[0] = 2;
        assert!(partial.merge_encoded(&bytes).is_err());
        // Sums that no logits have: another top, words without a top, none with one, padding.
        let spec = PartialSpec { k: 1, sum: true };
        let mut good = [0; 48];
        whole(&[1.0], spec).encode(&mut good);
        assert!(RowPartial::new(spec).merge_encoded(&good).is_ok());
        for (at, with) in
            [(8, &[0xff, 0xff, 0xff, 0x7f][..]), (8, &[0, 0, 0, 0x80]), (12, &[1]), (16, &[0; 24])]
        {
            let mut bad = good;
            bad[at..at + with.len()].copy_from_slice(with);
            assert!(RowPartial::new(spec).merge_encoded(&bad).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 40..64), first in any::<bool>()) {
            let spec = PartialSpec { k: 2, sum: true };
            let mut partial = if first { RowPartial::new(spec) } else { whole(&[1.0, -3.0], spec) };
            let _ = partial.merge_encoded(&bytes);
            let _ = (partial.logsumexp_f64(), partial.sorted());
        }
    }
}
