//! A sum of exponentials whose bits do not depend on the order or grouping of what is added, in the manner of
//! binned summation (J. Demmel, H. D. Nguyen, "Parallel Reproducible Summation", IEEE TC 2015).
//!
//! Each logit l has one term, `e^l = significand · 2^exponent`, a function of its 32 bits alone. Terms are
//! added as integers on an absolute grid of digits: digit j counts units of `2^(32 j)`. With `d = exponent
//! div 32`, a term's `significand · 2^(exponent mod 32)` has its low 32 bits in digit d and the others in
//! digit `d + 1`. The three highest digits that any term reached are kept, as u64 words; carries between them
//! are only resolved at the end. So addition is exactly commutative and associative, and the sum does not
//! depend on tiles, shards, ranks or threads.
//!
//! A word has room for 2^32 terms. Dropping the lower digits loses less than 2^-55 of the largest term for
//! each term added: for a vocabulary of 2^20 less than 2^-35 of the sum.

use crate::exponential::{LIMIT, Term};
use crate::params as c;

const LN2_HI: f64 = f64::from_bits(c::LMHEAD_LN2_HI64);
const LN2_LO: f64 = f64::from_bits(c::LMHEAD_LN2_LO64);
/// 2^20. Where the largest logit is beyond it, logsumexp is taken to be that logit: the other logits add less
/// than 22.2 to it.
const LARGEST: f32 = f32::from_bits(c::LMHEAD_LSE_LIMIT);

/// `Σ e^l`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpSum {
    /// The highest digit.
    top: i32,
    /// Digits `top - 2`, `top - 1` and `top`.
    words: [u64; 3],
}

impl Default for ExpSum {
    /// The sum of no terms.
    fn default() -> Self {
        ExpSum::EMPTY
    }
}

impl ExpSum {
    const EMPTY: ExpSum = ExpSum { top: i32::MIN, words: [0; 3] };

    /// The sum over a row of logits.
    #[inline(always)]
    pub fn of(logits: &[f32]) -> Self {
        let mut sum = ExpSum::EMPTY;
        sum.add(logits);
        sum
    }

    /// The highest digit that a term reached; `i32::MIN` where there was none.
    pub fn top(&self) -> i32 {
        self.top
    }

    /// Digits `top - 2`, `top - 1` and `top`, in units of `2^(32 j)` for digit j, without carries between
    /// them.
    pub fn words(&self) -> [u64; 3] {
        self.words
    }

    /// Adds the terms of these logits: finite, or minus infinity, which adds nothing. Magnitudes above 2^21
    /// add nothing either; see [`ExpSum::ln`].
    #[inline(always)]
    pub fn add(&mut self, logits: &[f32]) {
        let (chunks, rest) = logits.as_chunks::<CHUNK>();
        // No closure: one that is not inlined is compiled for the baseline CPU, where an FMA is a call.
        for chunk in chunks {
            self.add_chunk(chunk);
        }
        if !rest.is_empty() {
            let mut chunk = [f32::NEG_INFINITY; CHUNK];
            chunk[..rest.len()].copy_from_slice(rest);
            self.add_chunk(&chunk);
        }
    }

    /// Works on u32 lanes without branches, so that the loops vectorise.
    #[inline(always)]
    fn add_chunk(&mut self, logits: &[f32; CHUNK]) {
        const NO_TERM: i32 = i32::MIN;
        let (mut significands, mut exponents) = ([0; CHUNK], [NO_TERM; CHUNK]);
        for ((significand, exponent), &l) in significands.iter_mut().zip(&mut exponents).zip(logits) {
            let term = Term::exp(l);
            let has_term = l.abs() <= LIMIT;
            *significand = if has_term { term.significand } else { 0 };
            *exponent = if has_term { term.exponent } else { NO_TERM };
        }
        let mut largest = [NO_TERM; LANES];
        for lanes in exponents.as_chunks::<LANES>().0 {
            for (largest, &exponent) in largest.iter_mut().zip(lanes) {
                *largest = exponent.max(*largest);
            }
        }
        let largest = largest.iter().fold(NO_TERM, |largest, &e| largest.max(e));
        if largest == NO_TERM {
            return;
        }
        self.lift(largest.div_euclid(32) + 1);
        // Each lane sums the 16-bit halves of each word separately, so that u32 does not overflow.
        let mut sums = [[[0u32; LANES]; 2]; 3];
        let lanes = significands.as_chunks::<LANES>().0.iter().zip(exponents.as_chunks::<LANES>().0);
        for (significands, exponents) in lanes {
            for lane in 0..LANES {
                let (significand, exponent) = (significands[lane], exponents[lane]);
                let shift = exponent & 31;
                let low = significand << shift;
                let high = (significand >> 1) >> (31 - shift);
                // How many digits the one that `high` goes to is below the highest.
                let below = self.top.wrapping_sub(1).wrapping_sub(exponent >> 5);
                let digits = [
                    if below == 1 { low } else { 0 } | if below == 2 { high } else { 0 },
                    if below == 0 { low } else { 0 } | if below == 1 { high } else { 0 },
                    if below == 0 { high } else { 0 },
                ];
                for ([lower, upper], digit) in sums.iter_mut().zip(digits) {
                    lower[lane] += digit & 0xffff;
                    upper[lane] += digit >> 16;
                }
            }
        }
        for (word, halves) in self.words.iter_mut().zip(&sums) {
            let [lower, upper] = halves.map(|lanes| u64::from(lanes.iter().sum::<u32>()));
            *word += lower + (upper << 16);
        }
    }

    /// Adds the sum of another part of the row.
    pub(crate) fn merge(&mut self, other: &ExpSum) {
        let mut other = *other;
        self.lift(other.top);
        other.lift(self.top);
        for (word, more) in self.words.iter_mut().zip(other.words) {
            // Wrapping: a damaged message must not make it panic.
            *word = word.wrapping_add(more);
        }
    }

    /// Raises the highest digit to `top` if it is lower; digits that then lie below the kept ones are
    /// dropped.
    #[inline(always)]
    fn lift(&mut self, top: i32) {
        if top <= self.top {
            return;
        }
        let [_, middle, high] = self.words;
        self.words = match top.wrapping_sub(self.top) {
            1 => [middle, high, 0],
            2 => [high, 0, 0],
            _ => [0; 3],
        };
        self.top = top;
    }

    /// `ln(Σ e^l)`, where `max` is the largest logit that was added, or minus infinity.
    ///
    /// Where `|max| <= 2^20` it is within `5e-7·max(1, |ln|)` of the exact value over the same logits;
    /// beyond, it is `max`. The arithmetic is f64 in a fixed order, its logarithm is that of the crate
    /// `libm`: the same bits everywhere.
    pub fn ln(&self, max: f32) -> f64 {
        if self.top == Self::EMPTY.top || max.is_nan() || max.abs() > LARGEST {
            return f64::from(max);
        }
        let [low, middle, high] = self.words.map(u128::from);
        // Below 2^127, and not 0: each significand has its highest bit set, and the words keep that bit of
        // the largest term.
        let sum = (high << 64).wrapping_add(middle << 32).wrapping_add(low);
        let zeros = sum.leading_zeros();
        // The 64 highest bits, rounded to 53, as a number from 1 to 2.
        let fraction = (sum.unbounded_shl(zeros) >> 64) as u64 as f64 * (1.0 / (1u64 << 63) as f64);
        let exponent = (i64::from(self.top) - 2) * 32 + 127 - i64::from(zeros);
        let exponent = exponent as f64;
        (exponent * LN2_HI + libm::log(fraction)) + exponent * LN2_LO
    }

    /// The sum with these digits; `None` where no logits can sum to it.
    pub(super) fn from_parts(top: i32, words: [u64; 3]) -> Option<Self> {
        // Digits of e^l for |l| <= 2^21.
        let reached = (-94_549..=94_549).contains(&top);
        let possible = match words == [0; 3] {
            true => top == Self::EMPTY.top,
            false => reached && words.iter().all(|word| word >> 63 == 0),
        };
        possible.then_some(ExpSum { top, words })
    }
}

/// Logits added at once, and the vector lanes of the loops over them.
const CHUNK: usize = 64;
const LANES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{exp_sum, logsumexp};
    use lmhead_cpu::{Arith, Isa, Work};
    use proptest::prelude::*;

    struct Add<'a>(&'a [f32]);

    impl Work for Add<'_> {
        type Output = ExpSum;

        #[inline(always)]
        fn run<A: Arith>(self) -> ExpSum {
            ExpSum::of(self.0)
        }
    }

    /// Logits close together, over the whole range, tied, beyond the limits, or with minus infinity among
    /// them.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let near = prop::collection::vec(-30f32..30.0, 0..900);
        let any_finite = any::<f32>().prop_map(|v| if v.is_finite() { v } else { f32::NEG_INFINITY });
        let wide = prop::collection::vec(any_finite, 0..400);
        let large = prop::collection::vec(-2e6f32..2.2e6, 0..300);
        let ties = (-1e6f32..1e6, 1usize..3000).prop_map(|(l, n)| vec![l; n]);
        // Steps of half a digit, so that terms fall to every digit from the highest to those that are
        // dropped.
        let digits = (-500i32..500, prop::collection::vec(0i32..12, 1..300))
            .prop_map(|(first, steps)| steps.iter().map(|s| (first + s) as f32 * 11.09).collect());
        let masked = prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -5f32..5.0], 0..300);
        prop_oneof![near, wide, large, ties, digits, masked]
    }

    fn of_reference(logits: &[f32]) -> ExpSum {
        exp_sum(logits).map_or(ExpSum::EMPTY, |(top, words)| ExpSum { top, words })
    }

    fn largest(logits: &[f32]) -> f32 {
        logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    proptest! {
        #[test]
        fn every_instruction_set_sums_as_the_definition_says(logits in row()) {
            let want = of_reference(&logits);
            for isa in Isa::available() {
                prop_assert_eq!(isa.run(Add(&logits)), want, "{}", isa);
            }
        }

        /// The row is cut anywhere, not only at blocks; its parts are added and merged in any order.
        #[test]
        fn any_cut_order_and_grouping_gives_the_same_words(
            logits in row(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
            seed in any::<u64>(), parts in 1usize..5,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(logits.len() + 1)).collect();
            cuts.extend([0, logits.len()]);
            cuts.sort_unstable();
            let mut chunks: Vec<&[f32]> = cuts.windows(2).map(|cut| &logits[cut[0]..cut[1]]).collect();
            chunks.sort_by_key(|chunk| (chunk.as_ptr() as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut sums = vec![ExpSum::EMPTY; parts];
            chunks.iter().enumerate().for_each(|(i, chunk)| sums[i * i % parts].add(chunk));
            let mut all = ExpSum::EMPTY;
            for sum in sums.iter().rev() {
                all.merge(&ExpSum::from_parts(sum.top(), sum.words()).expect("a sum"));
            }
            prop_assert_eq!(all, of_reference(&logits));
        }

        #[test]
        fn the_logarithm_is_within_the_promise(logits in row()) {
            let max = largest(&logits);
            let got = ExpSum::of(&logits).ln(max);
            if max.abs() > 1_048_576.0 {
                prop_assert_eq!(got, f64::from(max));
                return Ok(());
            }
            let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
            let truth = logsumexp(&wide);
            prop_assert!((got - truth).abs() <= 5e-7 * truth.abs().max(1.0), "{} {}", got, truth);
        }
    }

    /// With `--nocapture` it prints what `docs/performance.md` shows.
    #[test]
    fn the_error_over_the_range() {
        // For each size: 2^18 equal logits, a single one, and 4096 in a bell curve about it.
        let mut bell = crate::weights::synthetic::hidden_row(7, 0, 4096, crate::DType::F32);
        let bell: Vec<f32> = bell.as_chunks_mut::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        println!("about | 2^18 equal | one | 4096, a bell");
        for size in [0.0, 1e-30, 1e-3, 1.0, 20.0, 88.0, 1e3, 1e4, 1e5, 1_048_576.0] {
            let mut worst = [0.0f64; 3];
            for l in [size, -size] {
                let rows = [
                    vec![l; 1 << 18],
                    vec![l],
                    bell.iter().map(|b| (l + b).clamp(-1_048_576.0, 1_048_576.0)).collect(),
                ];
                for (row, worst) in rows.iter().zip(&mut worst) {
                    let wide: Vec<f64> = row.iter().map(|l| f64::from(*l)).collect();
                    let (got, truth) = (ExpSum::of(row).ln(largest(row)), logsumexp(&wide));
                    let error = (got - truth).abs() / truth.abs().max(1.0);
                    assert!(error <= 5e-7, "{} logits about {l:e}: {got} {truth}", row.len());
                    *worst = worst.max(error);
                }
            }
            println!("±{size:e} | {:.1e} | {:.1e} | {:.1e}", worst[0], worst[1], worst[2]);
        }
    }

    #[test]
    fn edges() {
        assert_eq!(ExpSum::default().ln(f32::NEG_INFINITY), f64::NEG_INFINITY);
        assert_eq!(ExpSum::of(&[f32::NEG_INFINITY; 100]), ExpSum::EMPTY);
        assert_eq!(ExpSum::of(&[0.0]).ln(0.0).to_bits(), 0, "ln(1) is +0");
        assert_eq!(ExpSum::of(&[2.0e6, 3e38]).ln(3e38), f64::from(3e38f32));
        // A huge logit beside small ones; a small logit beside one that adds nothing.
        assert_eq!(ExpSum::of(&[1e6, 1.0, -1e30]).ln(1e6) as f32, 1e6);
        assert_eq!(ExpSum::of(&[1.0, -1e30]), ExpSum::of(&[1.0]));
        // A sum that fills a word: the carry reaches the next one.
        let mut sum = ExpSum::of(&[0.0; 4096]);
        (0..16).for_each(|_| sum.merge(&sum.clone()));
        assert!((sum.ln(0.0) - (4096.0 * 65536f64).ln()).abs() < 1e-6);
    }
}
