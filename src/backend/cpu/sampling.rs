//! The passes of [sampling](crate::sampling) over logits that are held in memory: one task per row.

use super::pool::Pool;
use crate::backend::{HistogramQuery, TiesQuery, Wanted};
use crate::error::Result;
use crate::layout::BLOCK;
use crate::merge::Best;
use crate::merge::{Candidate, largest};
use crate::sampling::SamplingParams;
use crate::sampling::cut::{BINS, Kept, Sum, order_key};
use crate::sampling::philox::{LARGEST_NOISE, Words, gumbel};
use crate::sampling::score::{Drawn, scaled};
use lmhead_cpu::{Arith, Isa, Work};
use rayon::prelude::*;

pub(super) const NOT_FINITE: Candidate = Candidate { value: f32::NAN, id: 0 };

/// Held logits of a shard.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// `[rows, ids]`
    pub logits: &'a [f32],
    pub ids: usize,
    pub first_id: usize,
    /// `[rows]`
    pub nonfinite: &'a [bool],
}

impl<'a> View<'a> {
    fn row(&self, row: usize) -> &'a [f32] {
        &self.logits[row * self.ids..(row + 1) * self.ids]
    }
}

pub(super) fn maxima(pool: &Pool, view: View<'_>, rows: &[usize], out: &mut [f32]) -> Result<()> {
    pool.install(|| {
        rows.par_iter().zip(out).for_each(|(&row, out)| {
            *out = if view.nonfinite[row] { f32::NAN } else { largest(view.row(row)) };
        });
    })
}

pub(super) fn histograms(
    pool: &Pool,
    isa: Isa,
    view: View<'_>,
    queries: &[HistogramQuery],
    out: &mut [u64],
) -> Result<()> {
    let bins = queries.first().map_or(1, |query| query.digit.bins());
    pool.install(|| {
        queries.par_iter().zip(out.par_chunks_exact_mut(bins)).for_each(|(query, bins)| {
            // Such a row has no answer anyway. Its maximum may come from another shard, so that logits here
            // are above it and weigh more than any may.
            if view.nonfinite[query.row] {
                return bins.fill(0);
            }
            isa.run(Histogram { query, logits: view.row(query.row), first_id: view.first_id, bins });
        });
    })
}

pub(super) fn ties(pool: &Pool, view: View<'_>, queries: &[TiesQuery], out: &mut [u32]) -> Result<()> {
    pool.install(|| {
        queries.par_iter().zip(out).for_each(|(query, out)| {
            let ids = (view.first_id as u32..).zip(view.row(query.row));
            let mut ties = ids.filter(|(id, l)| **l == query.logit && query.kept.keeps(**l, *id));
            let last = query.allowance.checked_sub(1).and_then(|before| ties.nth(before as usize));
            *out = last.map_or(0, |(id, _)| id + 1);
        });
    })
}

struct Histogram<'a> {
    query: &'a HistogramQuery,
    logits: &'a [f32],
    first_id: usize,
    /// One for each value of the digit.
    bins: &'a mut [u64],
}

impl Work for Histogram<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        let Histogram { query: &HistogramQuery { kept, sum, digit, key, .. }, logits, first_id, bins } = self;
        let (known, shift, last) = (digit.known_bits(), digit.shift(), digit.bins() - 1);
        // Neighbours mostly fall into one bin, where each addition would wait for the last: four tables take
        // turns.
        let mut tables = [[0u64; BINS]; 4];
        let mut weights = [0; BLOCK];
        for (i, block) in logits.chunks(BLOCK).enumerate() {
            let first = (first_id + i * BLOCK) as u32;
            // After the first rounds most blocks have no logit with the known digits.
            if !block.iter().fold(false, |any, &l| any | ((order_key(l) ^ key) & known == 0)) {
                continue;
            }
            // Without branches, so that the loop vectorises.
            for (j, (weight, &l)) in weights.iter_mut().zip(block).enumerate() {
                let counts = kept.keeps(l, first + j as u32) & ((order_key(l) ^ key) & known == 0);
                let whole = match sum {
                    Sum::Ids => 1,
                    Sum::Masses => kept.scale.mass(l),
                };
                *weight = if counts { whole } else { 0 };
            }
            for (j, (weight, &l)) in weights.iter().zip(block).enumerate() {
                // The second mask lets the compiler leave out the bounds check.
                tables[j % 4][(order_key(l) >> shift) as usize & last & (BINS - 1)] += weight;
            }
        }
        let [a, b, c, d] = &tables;
        for ((((sum, a), b), c), d) in bins.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *sum = a + b + c + d;
        }
    }
}

/// Memory of one thread that finds candidates.
#[derive(Debug, Default)]
pub(super) struct CandidateScratch {
    pub best: Best,
    /// The largest logit of each block.
    maxima: Vec<f32>,
}

impl CandidateScratch {
    /// Makes room for the `k` best of rows of `ids` ids.
    pub fn reserve(&mut self, k: usize, ids: usize) {
        self.best.reset(k);
        self.maxima.reserve(ids.div_ceil(BLOCK).saturating_sub(self.maxima.len()));
    }
}

/// What is wanted of a row whose logits are finite: as many candidates as `out` has places.
pub(super) fn candidates(
    isa: Isa,
    logits: &[f32],
    first_id: usize,
    wanted: &Wanted,
    room: &mut CandidateScratch,
    out: &mut [Candidate],
) {
    match wanted {
        Wanted::Best { .. } => isa.run(BestOf { logits, first_id, best: &mut room.best, out }),
        Wanted::Drawn { params, kept } => {
            let (kept, maxima) = (kept.as_ref(), &mut room.maxima);
            out.fill(isa.run(Draw { params, kept, logits, first_id, maxima }));
        }
    }
}

/// The best candidates of a row, as many as `out` has places.
struct BestOf<'a> {
    logits: &'a [f32],
    first_id: usize,
    best: &'a mut Best,
    out: &'a mut [Candidate],
}

impl Work for BestOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        let BestOf { logits, first_id, best, out } = self;
        best.reset(out.len());
        for (i, block) in logits.chunks(BLOCK).enumerate() {
            best.offer_block(first_id + i * BLOCK, block);
        }
        let found = best.candidates();
        let (kept, rest) = out.split_at_mut(found.len());
        kept.copy_from_slice(found);
        rest.fill(Candidate::NOTHING);
    }
}

/// Random words of a block, aligned to cache lines: at a chance place on the stack they would cost up to half
/// of a draw's time.
#[repr(align(64))]
struct Aligned([u32; BLOCK]);

struct Draw<'a> {
    params: &'a SamplingParams,
    /// `None` keeps all ids.
    kept: Option<&'a Kept>,
    logits: &'a [f32],
    first_id: usize,
    /// Scratch memory: overwritten.
    maxima: &'a mut Vec<f32>,
}

impl Work for Draw<'_> {
    type Output = Candidate;

    /// The noise of an id costs two logarithms, and one id in thousands needs it: the others are ruled out by
    /// their block's largest logit, or by their random word, as too small to beat the best so far.
    #[inline(always)]
    fn run<A: Arith>(self) -> Candidate {
        let Draw { params, kept, logits, first_id, maxima } = self;
        let keeps = |l: f32, id: u32| kept.is_none_or(|kept| kept.keeps(l, id));
        let mut best = Drawn::nothing();
        let words = Words::new(params.seed, params.position);
        // The block of the largest logit first: what it draws rules out most others.
        maxima.clear();
        for block in logits.chunks(BLOCK) {
            maxima.push(largest(block));
        }
        let largest = (0..maxima.len()).reduce(|a, b| if maxima[b] > maxima[a] { b } else { a });
        let order = largest.into_iter().chain((0..maxima.len()).filter(|i| Some(*i) != largest));
        for i in order.filter(|i| maxima[*i] > f32::NEG_INFINITY) {
            let (block, first) =
                (&logits[i * BLOCK..logits.len().min((i + 1) * BLOCK)], (first_id + i * BLOCK) as u32);
            if params.temperature == 0.0 {
                let candidates = (first..).zip(block).map(|(id, &value)| Candidate { value, id });
                candidates.filter(|c| keeps(c.value, c.id)).for_each(|c| best.offer_with(params, c, 0.0));
                continue;
            }
            let reach = word_limit(scaled(maxima[i], params.temperature), best.score());
            let Some(limit) = reach else { continue };
            let random = Aligned(words.block(first));
            for (j, &word) in random.0.iter().enumerate().take(block.len()) {
                let candidate = Candidate { value: block[j], id: first + j as u32 };
                if word <= limit && keeps(candidate.value, candidate.id) {
                    best.offer_with(params, candidate, gumbel(word));
                }
            }
        }
        best.candidate().unwrap_or(Candidate::NOTHING)
    }
}

/// The largest random word with which an id of scaled logit at most `z` may beat the score `best`; `None`
/// where no word is small enough.
///
/// The noise must exceed `best - z`: `-ln(-ln(1 - v)) > best - z`, so `v <= -ln(1 - v) < exp(z - best)`.
fn word_limit(z: f64, best: Option<f64>) -> Option<u32> {
    let Some(best) = best else { return Some(u32::MAX) };
    // Scores are rounded to f64 here, to a part in 2^53 of the larger.
    let slack = 1e-9 + 1e-15 * (z.abs() + best.abs());
    let behind = z - best + slack;
    if behind < -LARGEST_NOISE {
        return None;
    }
    // A conversion saturates.
    Some((libm::exp(behind.min(1.0)) * 4_294_967_296.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TiesQuery;
    use crate::backend::cpu::CpuBackend;
    use crate::sampling::cut::{Digit, Digits};
    use crate::sampling::mass::Scale;
    use crate::sampling::score::Score;
    use proptest::prelude::*;

    fn logit() -> impl Strategy<Value = f32> {
        let some = prop::sample::select(vec![-2.0f32, -0.0, 0.0, 1.0, 30.0, f32::NEG_INFINITY]);
        prop_oneof![some, -10f32..10.0, -1e30f32..1e30]
    }

    /// Rows of all kinds, among them such as tie at every block's maximum.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let equal = (logit(), 1usize..700).prop_map(|(l, n)| vec![l; n]);
        let two = (prop::collection::vec(any::<bool>(), 1..700), logit(), logit())
            .prop_map(|(bits, a, b)| bits.into_iter().map(|bit| if bit { a } else { b }).collect());
        prop_oneof![prop::collection::vec(logit(), 1..700), equal, two]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn ruling_out_changes_nothing(
            logits in row(), blocks in 0usize..2000, seed: u64, position: u64,
            temperature in prop_oneof![
                0.05f32..5.0, prop::sample::select(vec![0.0, 1e-30, 1e-17, 1e-16, 1e-15, 1e-14, 1e25])
            ], min_p in prop_oneof![Just(0f32), 0f32..0.3],
            cut in logit(), ties_end in 0u32..200_000,
        ) {
            let first_id = blocks * BLOCK;
            let max = largest(&logits);
            prop_assume!(max > f32::NEG_INFINITY);
            let params = SamplingParams { seed, position, temperature, min_p, ..SamplingParams::default() };
            let kept = (temperature > 0.0)
                .then(|| Kept { cut, ties_end, ..Kept::new(Scale::new(&params, max, 1 << 18)) });
            let mut naive = Drawn::nothing();
            for (id, &value) in (first_id as u32..).zip(&logits) {
                if value > f32::NEG_INFINITY && kept.is_none_or(|kept| kept.keeps(value, id)) {
                    naive.offer(&params, Candidate { value, id });
                }
            }
            let wanted = naive.candidate().unwrap_or(Candidate::NOTHING);
            for isa in Isa::available() {
                let (kept, maxima) = (kept.as_ref(), &mut vec![]);
                let got = isa.run(Draw { params: &params, kept, logits: &logits, first_id, maxima });
                prop_assert_eq!(got, wanted, "{}", isa);
            }
        }

        /// The first word beyond the limit, or the smallest of all where none is let through, does not beat
        /// the best.
        #[test]
        fn no_word_that_is_ruled_out_would_win(
            z in prop_oneof![-30f64..30.0, -1e3f64..1e3, (-40i32..83).prop_map(|e| 10f64.powi(e))],
            above in -4f64..40.0, word: u32,
        ) {
            let best = Score::new(z, above).nearest();
            let next = match word_limit(z, Some(best)) {
                None => 0,
                Some(u32::MAX) => return Ok(()),
                Some(limit) => limit + 1,
            };
            for word in [next, next.saturating_add(1), next.max(word)] {
                prop_assert!(
                    Score::new(z, gumbel(word)) < Score::new(best, 0.0),
                    "word {} of {:?}", word, word_limit(z, Some(best))
                );
            }
        }

        #[test]
        fn the_best_are_those_of_a_sort(
            logits in row(), ascending: bool, blocks in 0usize..2000, k in 1usize..400,
        ) {
            let (mut logits, first_id) = (logits, blocks * BLOCK);
            if ascending {
                logits.sort_by(f32::total_cmp);
            }
            let id = |i: usize| (first_id + i) as u32;
            let all = logits.iter().enumerate().map(|(i, &value)| Candidate { value, id: id(i) });
            let mut want: Vec<Candidate> = all.filter(|c| c.value > f32::NEG_INFINITY).collect();
            want.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap());
            want.resize(k.min(logits.len()), Candidate::NOTHING);
            for isa in Isa::available() {
                let mut got = vec![NOT_FINITE; want.len()];
                isa.run(BestOf { logits: &logits, first_id, best: &mut Best::default(), out: &mut got });
                got.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.id.cmp(&b.id)));
                prop_assert_eq!(&got, &want);
            }
        }

        #[test]
        fn histograms_are_the_same_for_every_instruction_set(
            logits in prop::collection::vec(logit(), 1..300), temperature in 0.05f32..5.0,
            rounds in 4u32..=16,
            round in any::<prop::sample::Index>(), at in 0usize..300,
        ) {
            let max = largest(&logits);
            prop_assume!(max > f32::NEG_INFINITY);
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            let kept = Kept::new(Scale::new(&params, max, 1 << 18));
            let key = order_key(logits[at % logits.len()]);
            let digits: Vec<Digit> = Digits::of_rounds(rounds).each().collect();
            let round = round.index(digits.len());
            let digit = digits[round];
            let known: usize = digits[..round].iter().map(|digit| digit.bins().ilog2() as usize).sum();
            let width = digit.bins().ilog2() as usize;
            let bits = |key: u32| format!("{key:032b}");
            for sum in [Sum::Ids, Sum::Masses] {
                let query = HistogramQuery { row: 0, kept, sum, digit, key };
                let mut wanted = vec![0; digit.bins()];
                for &l in &logits {
                    let own = bits(order_key(l));
                    if own[..known] == bits(key)[..known] && l > f32::NEG_INFINITY {
                        let weight = if sum == Sum::Ids { 1 } else { kept.scale.mass(l) };
                        wanted[usize::from_str_radix(&own[known..known + width], 2).unwrap()] += weight;
                    }
                }
                for isa in Isa::available() {
                    let mut bins = vec![7; digit.bins()];
                    isa.run(Histogram { query: &query, logits: &logits, first_id: 0, bins: &mut bins });
                    prop_assert_eq!(&bins, &wanted, "{} {:?}", isa, digit);
                }
            }
        }
    }

    #[test]
    fn ties_are_taken_from_the_lowest_id() {
        let backend = CpuBackend::new(Some(1)).unwrap();
        let logits = [1.0, 0.0, -0.0, 2.0, 0.0];
        let view = View { logits: &logits, ids: 5, first_id: 64, nonfinite: &[false] };
        let kept = Kept::new(Scale::new(&SamplingParams::default(), 2.0, 69));
        let mut out = [9; 4];
        let queries = [0, 1, 2, 4].map(|allowance| TiesQuery { row: 0, kept, logit: 0.0, allowance });
        super::ties(&backend.cpu.pool, view, &queries, &mut out).unwrap();
        assert_eq!(out, [0, 66, 67, 0], "an allowance beyond the ties cannot come");
    }
}
