//! Partials -> one answer per row. A partial is what one shard knows of a row: its best candidates and its sum
//! of exponentials. Merging is exact, commutative and associative, so no tile, shard, rank or thread shows in
//! the result.

use crate::error::{Error, Result};

/// Vocabulary ids per block of the sums: blocks are *global* (ids `64 i .. 64 i + 63`), so shards cut between them.
pub const BLOCK: usize = 64;

/// A vocabulary id and its f32 logit before any output rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub value: f32,
    pub id: u32,
}

impl Candidate {
    /// The order of every answer: larger value first, then lower id. −0 and +0 are equal. Never called on NaN.
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
    /// A heap with the worst kept candidate on top while blocks are pushed; order is made in `sorted`.
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

    /// Adds the logits of one whole block (or of the vocabulary's last, shorter one): ids from `first_id`,
    /// which is a multiple of [`BLOCK`]. `finite` says that every logit is finite, in the backend's own
    /// judgement (a softcap may have hidden an infinity). Minus infinity from an adjustment is legal: it is never a candidate and
    /// adds exactly 0 to the sum.
    pub fn push_block(&mut self, first_id: usize, logits: &[f32], finite: bool) {
        debug_assert!(first_id.is_multiple_of(BLOCK) && logits.len() <= BLOCK);
        if !finite {
            self.nonfinite = true;
        }
        if self.nonfinite || logits.is_empty() {
            return; // the row's answer is its status: nothing else of it is kept
        }
        let max = block_max(logits);
        if max == f32::NEG_INFINITY {
            return; // nothing of the block is allowed
        }
        if self.spec.sum {
            self.sum.add_block(logits, max);
        }
        // Ids ascend within a partial's own pushes but not across merged ones, so a tie must be looked at.
        if self.heap.len() == self.spec.k && max < self.heap[0].value {
            return;
        }
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

    /// The candidates, in no order.
    pub(crate) fn kept(&self) -> &[Candidate] {
        &self.heap
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

    /// Bytes of an encoded partial that keeps at most `k` candidates: 8 for the header, 20 for the sum
    /// (padded to 24), 8 for each candidate.
    pub fn encoded_len(spec: PartialSpec) -> usize {
        8 + if spec.sum { 24 } else { 0 } + 8 * spec.k
    }

    /// Writes the partial for another rank. `out` has the [`RowPartial::encoded_len`] of this spec, or of one with a smaller k where
    /// no more candidates can have been seen.
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
            out[at..at + 4].copy_from_slice(&self.sum.top.to_le_bytes());
            out[at + 8..at + 16].copy_from_slice(&self.sum.digits[0].to_le_bytes());
            out[at + 16..at + 24].copy_from_slice(&self.sum.digits[1].to_le_bytes());
            at += 24;
        }
        for c in &self.heap {
            out[at..at + 4].copy_from_slice(&c.value.to_le_bytes());
            out[at + 4..at + 8].copy_from_slice(&c.id.to_le_bytes());
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
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let n = u32_at(0) as usize;
        if n > room || bytes[4] > 1 {
            return Err(broken(format!("wanted at most {room} candidates, got {n} (flag {})", bytes[4])));
        }
        self.nonfinite |= bytes[4] == 1;
        let mut at = 8;
        if spec.sum {
            let sum = ExpSum { top: u32_at(at) as i32, digits: [u64_at(at + 8), u64_at(at + 16)] };
            self.sum.merge(&sum);
            at += 24;
        }
        for i in 0..n {
            let value = f32::from_bits(u32_at(at + 8 * i));
            if value.is_nan() || value == f32::NEG_INFINITY {
                return Err(broken(format!("candidate {i} is {value}")));
            }
            self.offer(Candidate { value, id: u32_at(at + 8 * i + 4) });
        }
        Ok(())
    }
}

/// `max` over a block of finite logits, in a form that vectorises.
#[inline(always)]
pub(crate) fn block_max(logits: &[f32]) -> f32 {
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

/// A sum of exponentials whose bits do not depend on the order or grouping of what is added
/// (binned summation after Demmel and Nguyen, "Parallel Reproducible Summation", IEEE TC 2015, on the whole blocks' sums).
///
/// A block of 64 logits with maximum m contributes `e^m · Σ e^(l − m)`, formed in f64 in one fixed order. It is
/// cut into digits on an absolute binary grid: digit b counts units of `2^(40 b)`. Kept are the two highest
/// digits that any contribution reached (`top` and `top − 1`); lower ones are dropped: a contribution loses less
/// than `2^-40` of the whole sum, 4096 blocks (262144 ids) together less than `2^-28`.
/// Digits are plain integer sums, so adding commutes and associates exactly; `2^24` contributions fit a u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpSum {
    /// Grid index of the higher digit; [`EMPTY`] when nothing was added.
    top: i32,
    /// `digits[0]` at `top − 1`, `digits[1]` at `top`.
    digits: [u64; 2],
}

/// Bits of one digit of the grid.
const DIGIT_BITS: i64 = 40;
const EMPTY: i32 = i32::MIN;
/// Logits beyond this (2^33) are so coarse in f32 (one ulp is 1024) that the logsumexp *is* the maximum.
const HUGE: f32 = 8_589_934_592.0;

impl Default for ExpSum {
    fn default() -> Self {
        ExpSum { top: EMPTY, digits: [0; 2] }
    }
}

impl ExpSum {
    /// Adds a block of logits, finite or minus infinity, whose maximum is `max`, which is finite.
    fn add_block(&mut self, logits: &[f32], max: f32) {
        if max.abs() > HUGE {
            return; // see `ln`
        }
        let max = f64::from(max);
        // 16 lanes, lane = id mod 16, ascending; then a fixed tree. A short last block adds exact zeros.
        let mut lanes = [0.0f64; 16];
        let (chunks, rest) = logits.as_chunks::<16>();
        for chunk in chunks {
            for (sum, &l) in lanes.iter_mut().zip(chunk) {
                *sum += exp_nonpositive(f64::from(l) - max);
            }
        }
        for (sum, &l) in lanes.iter_mut().zip(rest) {
            *sum += exp_nonpositive(f64::from(l) - max);
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        // e^max = 2^exponent · e^(rest of it), |rest| <= ln(2) / 2.
        let exponent = (max * std::f64::consts::LOG2_E).round_ties_even();
        let factor = libm::exp((max - exponent * LN2_HI) - exponent * LN2_LO);
        self.add(lanes[0] * factor, exponent as i64);
    }

    /// Adds `value · 2^exponent`, `value` positive and normal.
    fn add(&mut self, value: f64, exponent: i64) {
        let bits = value.to_bits();
        let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
        // value · 2^exponent = mantissa · 2^unit
        let unit = (bits >> 52) as i64 - 1075 + exponent;
        let top = (unit + 52).div_euclid(DIGIT_BITS);
        // In units of 2^(40 (top − 1)) the mantissa has between 41 and 80 bits before its point.
        let shift = unit - DIGIT_BITS * (top - 1);
        let scaled = if shift >= 0 { u128::from(mantissa) << shift } else { u128::from(mantissa >> -shift) };
        let low = (scaled & ((1 << DIGIT_BITS) - 1)) as u64;
        let high = (scaled >> DIGIT_BITS) as u64;
        self.merge(&ExpSum { top: top as i32, digits: [low, high] });
    }

    fn merge(&mut self, other: &ExpSum) {
        if other.top == EMPTY {
            return;
        }
        if self.top == EMPTY {
            *self = *other;
            return;
        }
        let (mut upper, lower) = if self.top >= other.top { (*self, *other) } else { (*other, *self) };
        match upper.top.wrapping_sub(lower.top) {
            0 => {
                upper.digits[0] = upper.digits[0].wrapping_add(lower.digits[0]);
                upper.digits[1] = upper.digits[1].wrapping_add(lower.digits[1]);
            }
            1 => upper.digits[0] = upper.digits[0].wrapping_add(lower.digits[1]),
            _ => {} // below the grid that is kept
        }
        *self = upper;
    }

    /// The logarithm of the sum. `max` is the largest logit: the answer where logits are too large for the grid.
    fn ln(&self, max: f32) -> f64 {
        if self.top == EMPTY || max.abs() > HUGE {
            // Beyond HUGE, ln(number of ids) <= 22 is far under 1e-6 of the value.
            return f64::from(max);
        }
        let sum = (u128::from(self.digits[1]) << DIGIT_BITS) + u128::from(self.digits[0]);
        let base = (i64::from(self.top) - 1) * DIGIT_BITS;
        let base = base as f64;
        (base * LN2_HI + libm::log(sum as f64)) + base * LN2_LO
    }
}

/// ln(2) in two parts: the first has 21 trailing zero bits, so that its product with an integer below 2^20 is exact.
const LN2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;

/// `e^x` for `x <= 0`, relative error below 1e-14, 0 below e^-87. Plain multiplications and additions in a fixed order
/// (nothing fused), so the bits are the same for every instruction set and the loop vectorises.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f64) -> f64 {
    // Below e^-87 a term is under 2^-125 of its block's sum: nothing of it reaches the grid.
    let kept = x >= -87.0;
    let x = if kept { x } else { 0.0 };
    // Rounds to an integer in the low bits of the f64 (the shifter trick), which is the exponent as well.
    const SHIFTER: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52
    let shifted = x * std::f64::consts::LOG2_E + SHIFTER;
    let n = shifted - SHIFTER;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    // Taylor to r^11, |r| <= 0.3466: the next term is under 7e-15.
    const C: [f64; 12] = [
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5040.0,
        1.0 / 40320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
    ];
    let mut p = C[11];
    let mut i = 11;
    while i > 0 {
        i -= 1;
        p = p * r + C[i];
    }
    // 2^n, n in -126..=0, made from the integer in shifted's low bits.
    let scale = f64::from_bits((shifted.to_bits().wrapping_add(1023)) << 52);
    if kept { p * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn truth_lse(logits: &[f32]) -> f64 {
        let max = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
        max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
    }

    fn whole(logits: &[f32], spec: PartialSpec) -> RowPartial {
        let mut partial = RowPartial::new(spec);
        for (i, block) in logits.chunks(BLOCK).enumerate() {
            partial.push_block(i * BLOCK, block, true);
        }
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
        #[test]
        fn any_order_and_grouping_of_blocks_gives_the_same_bits(
            logits in logits(), k in 1usize..70, parts in 1usize..9, seed in any::<u64>(),
        ) {
            let spec = PartialSpec { k, sum: true };
            let want = whole(&logits, spec);
            let mut parts = vec![RowPartial::new(spec); parts];
            let n = parts.len() as u64;
            let mut blocks: Vec<_> = logits.chunks(BLOCK).enumerate().collect();
            blocks.sort_by_key(|(i, _)| (*i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for (i, block) in blocks {
                let part = (seed ^ (i as u64).wrapping_mul(0x2545_f491_4f6c_dd1d)) % n;
                parts[part as usize].push_block(i * BLOCK, block, true);
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
        fn logsumexp_is_within_the_promise(logits in logits()) {
            let got = f64::from(whole(&logits, PartialSpec { k: 1, sum: true }).logsumexp());
            let truth = truth_lse(&logits);
            prop_assert!((got - truth).abs() <= 1e-6 * truth.abs().max(1.0), "{} {}", got, truth);
        }

        #[test]
        fn candidates_are_a_stable_sort(logits in logits(), k in 1usize..950) {
            let got: Vec<u32> = whole(&logits, PartialSpec { k, sum: false }).sorted().iter().map(|c| c.id).collect();
            let mut want: Vec<u32> = (0..logits.len() as u32).collect();
            want.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap());
            want.truncate(k);
            prop_assert_eq!(got, want);
        }

        #[test]
        fn exp_is_close(x in -87.0f64..=0.0) {
            prop_assert!((exp_nonpositive(x) / x.exp() - 1.0).abs() < 2e-14);
        }
    }

    #[test]
    fn a_non_finite_row_stays_so() {
        let spec = PartialSpec { k: 2, sum: true };
        let mut a = RowPartial::new(spec);
        a.push_block(0, &[1.0, f32::NAN], false);
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
    }

    #[test]
    fn many_equal_logits_add_up() {
        let logits = vec![3.25f32; 262_144];
        let got = f64::from(whole(&logits, PartialSpec { k: 1, sum: true }).logsumexp());
        assert!((got - (3.25 + 262_144f64.ln())).abs() < 1e-6);
    }
}
