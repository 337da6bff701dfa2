//! A radix search over the shards for the cut of top_k or top_p: the last logit that the filter keeps. Each
//! round finds one digit of that logit's order key (its bits, mapped so that larger logits have larger keys).
//! Every shard sends a histogram over the values of the digit: how many of its ids have each value, or how
//! much mass. The row's owner adds the histograms up, finds the bin in which the goal is reached, and sends
//! it to the shards.
//!
//! [`Digits`] says how the 32 bits of a key are cut into digits. The search finds the same cut whatever the
//! digits are.

use super::mass::{self, Scale};

/// Bins of the largest histogram that any [`Digits`] has.
pub const BINS: usize = 1 << 32u32.div_ceil(Digits::FEWEST);

/// Bytes that a link carries in the latency of one collective: 20 µs at 45 GB/s, the cost model's figures for
/// InfiniBand (the machine `h100-infiniband` of `lmhead plan`). A constant, not a setting, so that all ranks
/// choose the same digits.
const LATENCY_BYTES: u128 = 900_000;

/// Bytes of a histogram's word. Fewer would not pay: masses of n ids add up to at most `n · 2^40` (in
/// vocabularies of up to 2^23 ids), so 6 bytes are enough for 256 ids only, and 7 bytes save an eighth.
pub(crate) const WORD_BYTES: usize = 8;
/// Bytes of the owner's answer to a shard's histogram: the key as far as it is known, and how many of the
/// shard's ids that tie with the cut are kept.
pub(crate) const CUT_BYTES: usize = 8;

/// The bits of an order key that one round of a search finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digit {
    /// How many bits of the key lie above the digit; earlier rounds have found them.
    known: u32,
    width: u32,
}

impl Digit {
    /// Bins of a histogram over this digit: one for each value.
    pub fn bins(self) -> usize {
        1 << self.width
    }

    /// How far a key is shifted right to bring the digit to its low end.
    #[inline(always)]
    pub(crate) fn shift(self) -> u32 {
        32 - self.known - self.width
    }

    /// Mask of the key's bits above this digit.
    #[inline(always)]
    pub(crate) fn known_bits(self) -> u32 {
        // Checked: a shift by all 32 bits would overflow.
        u32::MAX.checked_shl(32 - self.known).unwrap_or(0)
    }
}

/// How a search cuts the 32 bits of a key into digits, one for each round: widths as equal as they can be,
/// the wider ones first. No other widths have fewer bins in total for that many rounds.
///
/// More rounds mean smaller histograms, but each round costs the latency of two collectives. For each row and
/// shard, 4 rounds of 8 bits send 8 KiB, 5 rounds 3.5 KiB, 6 rounds 2 KiB, 8 rounds 1 KiB, 16 rounds half of
/// that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digits {
    rounds: u32,
}

impl Digits {
    /// The fewest rounds. Three would save two latencies where rows and shards are few, but a histogram of 11
    /// bits has 2048 words for each row, and a backend fills several copies at a time: they would not fit the
    /// L1 cache.
    pub(crate) const FEWEST: u32 = 4;
    /// The most rounds: beyond 16 the histograms do not get smaller.
    pub(crate) const MOST: u32 = 16;

    /// The digits of a search in `rounds` rounds.
    ///
    /// # Panics
    /// Unless `rounds` is 4 to 16.
    pub fn of_rounds(rounds: u32) -> Self {
        assert!((Self::FEWEST..=Self::MOST).contains(&rounds), "{rounds} rounds");
        Digits { rounds }
    }

    /// The fastest digits for a group of `size` ranks, the busiest of which owns `rows` rows. A search takes
    /// the latency of two collectives per round, plus the time in which the busiest rank receives its bytes.
    /// If times are equal, the fewest rounds win. All ranks know `rows` and `size`, so all choose the same
    /// digits.
    pub fn planned(rows: usize, size: usize) -> Self {
        let received = rows as u128 * size.saturating_sub(1) as u128;
        let cost = |digits: &Digits| {
            let latency = 2 * u128::from(digits.rounds) * LATENCY_BYTES;
            // Costs that saturate are equal, and the fewest rounds win: it does not matter, since so many
            // rows fit no memory.
            latency.saturating_add(received.saturating_mul(digits.bytes() as u128))
        };
        let all = (Self::FEWEST..=Self::MOST).map(|rounds| Digits { rounds });
        all.min_by_key(cost).expect("a choice of rounds")
    }

    /// Rounds of a search.
    pub fn rounds(self) -> usize {
        self.rounds as usize
    }

    /// The digit of each round, in order.
    pub fn each(self) -> impl Iterator<Item = Digit> {
        let (narrow, wider) = (32 / self.rounds, 32 % self.rounds);
        (0..self.rounds)
            .map(move |i| Digit { known: i * narrow + i.min(wider), width: narrow + u32::from(i < wider) })
    }

    /// Words of the histograms of all rounds, for one row and shard.
    pub(crate) fn words(self) -> usize {
        self.each().map(Digit::bins).sum()
    }

    /// Bytes of the histograms and answers of all rounds, for one row and shard.
    fn bytes(self) -> usize {
        self.words() * WORD_BYTES + self.rounds() * CUT_BYTES
    }
}

/// A logit's bits, mapped so that keys compare as logits do: larger logits have larger keys, -0 has the key
/// of +0.
#[inline(always)]
pub(crate) fn order_key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// The logit of an order key.
pub(crate) fn logit_of(key: u32) -> f32 {
    f32::from_bits(key ^ if key >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

/// Which ids of a row the filters keep so far, over the whole vocabulary: those whose logit is above `cut`,
/// or equal to it with an id below `ties_end`, and that min_p keeps, too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    pub scale: Scale,
    pub cut: f32,
    pub ties_end: u32,
}

impl Kept {
    /// Keeps all that min_p keeps.
    pub fn new(scale: Scale) -> Self {
        Kept { scale, cut: f32::NEG_INFINITY, ties_end: 0 }
    }

    /// Whether the filters keep `id`, whose logit is `logit`. Never true for minus infinity.
    #[inline(always)]
    pub fn keeps(&self, logit: f32, id: u32) -> bool {
        // Bit operations, not branches, so that loops over whole blocks vectorise.
        ((logit > self.cut) | ((logit == self.cut) & (id < self.ties_end))) & self.scale.reaches(logit)
    }
}

/// What a search adds up until it reaches its goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// The number of ids, up to the k of top_k.
    Ids,
    /// The masses of ids, up to the fraction top_p of their total.
    Masses,
}

/// One row's search, as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    goal: Goal,
    /// Sum over the logits that are known to be above the cut.
    above: u64,
    /// The cut's key: the digits known so far, zeros below.
    key: u32,
    /// The sum at which the search ends.
    wanted: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    Ids(u32),
    Masses { top_p: f32, scale: Scale },
}

impl Search {
    pub fn new(goal: Goal) -> Self {
        Search { goal, above: 0, key: 0, wanted: 0 }
    }

    /// Finds the next digit from the histograms over it, and returns the key as far as it is known. `totals`
    /// is the sum of all histograms, `word(shard, bin)` a word of one, shards in vocabulary order. With the
    /// last digit, `allowances[shard]` is set to how many of the shard's ids that tie with the cut are kept,
    /// lowest id first.
    pub fn learn(
        &mut self,
        digit: Digit,
        totals: &[u64],
        word: impl Fn(usize, usize) -> u64,
        allowances: &mut [u32],
    ) -> u32 {
        if digit.known == 0 {
            let total: u64 = totals.iter().sum();
            self.wanted = match self.goal {
                Goal::Ids(k) => u64::from(k).min(total),
                Goal::Masses { top_p, .. } if total > 0 => mass::share(top_p, total),
                Goal::Masses { .. } => 0, // the row has no logit that could be kept
            };
        }
        let mut bin = totals.len() - 1;
        loop {
            let next = self.above + totals[bin];
            if next >= self.wanted || bin == 0 {
                break;
            }
            self.above = next;
            bin -= 1;
        }
        self.key |= (bin as u32) << digit.shift();
        if digit.shift() == 0 {
            let each = match self.goal {
                Goal::Ids(_) => 1,
                Goal::Masses { scale, .. } => scale.mass(logit_of(self.key)).max(1),
            };
            let mut left = (self.wanted - self.above.min(self.wanted)).div_ceil(each);
            for (shard, allowance) in allowances.iter_mut().enumerate() {
                *allowance = left.min(word(shard, bin) / each) as u32;
                left -= u64::from(*allowance);
            }
        }
        self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;
    use proptest::prelude::*;

    fn logit() -> impl Strategy<Value = f32> {
        let ties = prop::sample::select(vec![-2.0f32, -0.0, 0.0, 1.0, 1.5, f32::NEG_INFINITY]);
        let any = any::<f32>().prop_map(|v| if v.is_nan() || v == f32::INFINITY { 0.5 } else { v });
        prop_oneof![ties, -20f32..20.0, any]
    }

    /// The ids that a search over shards of `shard` ids each keeps.
    fn search(digits: Digits, logits: &[f32], shard: usize, kept: &Kept, goal: Goal) -> Vec<usize> {
        let shards = || logits.chunks(shard).enumerate();
        let (mut search, mut key) = (Search::new(goal), 0);
        let mut allowances = vec![0; shards().count()];
        for digit in digits.each() {
            let (above, shift) = (32 - digit.known, 32 - digit.known - digit.width);
            let histograms: Vec<Vec<u64>> = shards()
                .map(|(s, own)| {
                    let mut histogram = vec![0; digit.bins()];
                    for (i, &l) in own.iter().enumerate() {
                        let known = u64::from(order_key(l)) >> above == u64::from(key) >> above;
                        if known && kept.keeps(l, (s * shard + i) as u32) {
                            histogram[order_key(l) as usize >> shift & (digit.bins() - 1)] += match goal {
                                Goal::Ids(_) => 1,
                                Goal::Masses { .. } => kept.scale.mass(l),
                            };
                        }
                    }
                    histogram
                })
                .collect();
            let totals: Vec<u64> = (0..digit.bins())
                .map(|bin| histograms.iter().map(|histogram| histogram[bin]).sum())
                .collect();
            key = search.learn(digit, &totals, |shard, bin| histograms[shard][bin], &mut allowances);
        }
        let cut = logit_of(key);
        let mut ids = Vec::new();
        for (s, own) in shards() {
            let mut ties = allowances[s];
            for (i, &l) in own.iter().enumerate() {
                let id = s * shard + i;
                if kept.keeps(l, id as u32) && (l > cut || (l == cut && ties > 0)) {
                    ties -= u32::from(l == cut);
                    ids.push(id);
                }
            }
        }
        ids
    }

    fn every_plan() -> impl Iterator<Item = Digits> {
        (Digits::FEWEST..=Digits::MOST).map(Digits::of_rounds)
    }

    #[test]
    fn digits_are_all_the_bits_of_a_key_once() {
        for digits in every_plan() {
            let mut known = 0;
            for digit in digits.each() {
                assert_eq!(digit.known, known, "{digits:?}");
                assert!((2..=BINS).contains(&digit.bins()), "{digits:?}");
                let mask = digit.known_bits() | ((digit.bins() - 1) as u32) << digit.shift();
                known += digit.width;
                assert_eq!((mask.leading_ones(), mask.count_ones()), (known, known), "{digits:?}");
            }
            assert_eq!((known, digits.each().count()), (32, digits.rounds()));
        }
        let widths = |rounds| Digits::of_rounds(rounds).each().map(|digit| digit.width).collect::<Vec<_>>();
        assert_eq!(widths(4), [8; 4]);
        assert_eq!(widths(5), [7, 7, 6, 6, 6]);
        assert_eq!(widths(7), [5, 5, 5, 5, 4, 4, 4]);
        assert_eq!([4, 5, 6, 8, 16].map(|n| Digits::of_rounds(n).words()), [1024, 448, 256, 128, 64]);
    }

    /// One more round pays where the histograms shrink by more bytes than a link carries in two latencies.
    #[test]
    fn more_rows_and_shards_take_more_rounds() {
        let rounds = |rows, size| Digits::planned(rows, size).rounds();
        // Two latencies are worth 1.8 MB; five rounds send 4600 bytes less than four for each row and shard.
        assert_eq!([391, 392].map(|rows| rounds(rows, 2)), [4, 5]);
        assert_eq!([rounds(28, 4), rounds(28, 8), rounds(4, 128), rounds(28, 128)], [4, 4, 5, 7]);
        assert_eq!([rounds(0, 8), rounds(usize::MAX, 1), rounds(usize::MAX, usize::MAX)], [4, 4, 4]);
        let mut before = 0;
        for peers in (0..40).map(|bits| 1usize << bits) {
            let now = rounds(peers, 2);
            assert!(now >= before, "{peers}");
            before = now;
        }
        assert_eq!(before, Digits::MOST as usize);
    }

    proptest! {
        #[test]
        fn keys_have_the_order_of_logits(a in logit(), b in logit()) {
            prop_assert_eq!(order_key(a).cmp(&order_key(b)), a.partial_cmp(&b).unwrap());
            prop_assert!(logit_of(order_key(a)) == a);
        }

        #[test]
        fn a_search_finds_what_sorting_finds(
            logits in prop::collection::vec(logit(), 1..300), shard in 1usize..310, k in 1u32..320,
            top_p in prop_oneof![0.001f32..1.0, (1u32..0x3f80_0000).prop_map(f32::from_bits)],
            min_p in prop_oneof![Just(0f32), 0f32..=1.0],
            temperature in prop_oneof![0.1f32..3.0, Just(1e-30), Just(1e30)],
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assume!(max > f32::NEG_INFINITY);
            let params = SamplingParams { temperature, min_p, ..SamplingParams::default() };
            let scale = Scale::new(&params, max, logits.len());
            let kept = Kept::new(scale);
            let mut order: Vec<usize> = (0..logits.len())
                .filter(|&id| logits[id] > f32::NEG_INFINITY && scale.reaches(logits[id]))
                .collect();
            order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap());
            let sorted = |mut ids: Vec<usize>| { ids.sort_unstable(); ids };
            let best = sorted(order[..order.len().min(k as usize)].to_vec());
            for digits in every_plan() {
                prop_assert_eq!(&search(digits, &logits, shard, &kept, Goal::Ids(k)), &best, "{:?}", digits);
            }

            let masses: Vec<u64> = order.iter().map(|id| scale.mass(logits[*id])).collect();
            let goal = mass::share(top_p, masses.iter().sum());
            let (mut sum, mut n) = (0, 0);
            while sum < goal {
                sum += masses[n];
                n += 1;
            }
            let nucleus = sorted(order[..n].to_vec());
            for digits in every_plan() {
                let found = search(digits, &logits, shard, &kept, Goal::Masses { top_p, scale });
                prop_assert_eq!(&found, &nucleus, "{:?}", digits);
            }
        }
    }
}
