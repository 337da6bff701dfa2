//! Where a filter cuts a row's logits, found without the logits: in four steps, each of which learns one byte of the last logit
//! that is kept. In a step every shard sends a histogram of 256 sums (of ids, or of their masses) over the next byte of its
//! logits' order keys; the row's owner adds them up, sees in which bin the goal is reached, and tells the shards.

use super::mass;

/// Steps of a search: bytes of an [`order_key`].
pub(crate) const STEPS: u32 = 4;
/// Bins of a histogram: values of a byte.
pub const BINS: usize = 256;

/// A logit's bits in an order that its value has: larger logits have larger keys, and -0 has that of +0.
#[inline(always)]
pub(crate) fn order_key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// The logit of an order key.
pub(crate) fn logit_of(key: u32) -> f32 {
    f32::from_bits(key ^ if key >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

/// What of a row is kept so far, over the whole vocabulary: logits above `cut`, and of those equal to it the ids below `ties_end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// The row's largest logit.
    pub max: f32,
    pub temperature: f32,
    /// `ln(min_p)`; minus infinity keeps all.
    pub least: f64,
    pub cut: f32,
    pub ties_end: u32,
}

impl Kept {
    /// All that min_p keeps.
    pub fn new(params: &super::SamplingParams, max: f32) -> Self {
        let least = libm::log(f64::from(params.min_p));
        Kept { max, temperature: params.temperature, least, cut: f32::NEG_INFINITY, ties_end: 0 }
    }

    /// Whether the id with this logit is kept. Minus infinity never is.
    #[inline(always)]
    pub fn keeps(&self, logit: f32, id: u32) -> bool {
        // Bits, not branches: loops over whole blocks vectorise.
        ((logit > self.cut) | ((logit == self.cut) & (id < self.ties_end)))
            & (mass::below_max(logit, self.max, self.temperature) >= self.least)
    }
}

/// What a search adds up until it reaches its goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// Ids, up to the k of top_k.
    Ids,
    /// Masses, up to top_p of all.
    Masses,
}

/// One row's search, as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    goal: Goal,
    /// Sum of all that is certainly above the cut.
    above: u64,
    /// The bytes of the cut's key that are known, in their places.
    key: u32,
    wanted: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    Ids(u32),
    /// With the row's largest logit and temperature, which give the mass of a logit.
    Masses {
        top_p: f32,
        max: f32,
        temperature: f32,
    },
}

impl Search {
    pub fn new(goal: Goal) -> Self {
        Search { goal, above: 0, key: 0, wanted: 0 }
    }

    /// Learns the byte of step `step` from the shards' histograms, in vocabulary order: the key as far as it is known comes back. After the
    /// last step `allowances[shard]` is how many of the shard's ids that tie with the cut are kept, lowest first.
    pub fn learn<'h>(
        &mut self,
        step: u32,
        histograms: impl Iterator<Item = &'h [u64; BINS]> + Clone,
        allowances: &mut [u32],
    ) -> u32 {
        let bin_total = |bin: usize| histograms.clone().map(|h| h[bin]).sum::<u64>();
        if step == 0 {
            let total: u64 = (0..BINS).map(bin_total).sum();
            self.wanted = match self.goal {
                Goal::Ids(k) => u64::from(k).min(total),
                Goal::Masses { top_p, .. } if total > 0 => mass::share(top_p, total),
                Goal::Masses { .. } => 0, // the row has no logit that could be kept
            };
        }
        let mut bin = BINS - 1;
        loop {
            let next = self.above + bin_total(bin);
            if next >= self.wanted || bin == 0 {
                break;
            }
            self.above = next;
            bin -= 1;
        }
        self.key |= (bin as u32) << (24 - 8 * step);
        if step + 1 == STEPS {
            let each = match self.goal {
                Goal::Ids(_) => 1,
                Goal::Masses { max, temperature, .. } => {
                    mass::mass(logit_of(self.key), max, temperature).max(1)
                }
            };
            let mut left = (self.wanted - self.above.min(self.wanted)).div_ceil(each);
            for (allowance, histogram) in allowances.iter_mut().zip(histograms) {
                let ties = histogram[bin] / each;
                *allowance = left.min(ties) as u32;
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

    /// A search over `logits` that lie on shards of `shard` ids: the ids that it keeps.
    fn search(logits: &[f32], shard: usize, kept: &mut Kept, goal: Goal) -> Vec<usize> {
        let shards = || logits.chunks(shard).enumerate();
        let (mut search, mut key) = (Search::new(goal), 0);
        let mut allowances = vec![0; shards().count()];
        for step in 0..STEPS {
            let histograms: Vec<[u64; BINS]> = shards()
                .map(|(s, own)| {
                    let mut histogram = [0; BINS];
                    for (i, &l) in own.iter().enumerate() {
                        let known =
                            u64::from(order_key(l)) >> (32 - 8 * step) == u64::from(key) >> (32 - 8 * step);
                        if known && kept.keeps(l, (s * shard + i) as u32) {
                            histogram[order_key(l) as usize >> (24 - 8 * step) & 255] += match goal {
                                Goal::Ids(_) => 1,
                                Goal::Masses { .. } => mass::mass(l, kept.max, kept.temperature),
                            };
                        }
                    }
                    histogram
                })
                .collect();
            key = search.learn(step, histograms.iter(), &mut allowances);
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
            min_p in prop_oneof![Just(0f32), 0f32..=1.0], temperature in prop_oneof![0.1f32..3.0, Just(1e-30), Just(1e30)],
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assume!(max > f32::NEG_INFINITY);
            let mut kept = Kept::new(&SamplingParams { temperature, min_p, ..SamplingParams::default() }, max);
            let mut order: Vec<usize> = (0..logits.len())
                .filter(|&id| logits[id] > f32::NEG_INFINITY && mass::reaches(logits[id], max, temperature, min_p))
                .collect();
            order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap());
            let sorted = |mut ids: Vec<usize>| { ids.sort_unstable(); ids };
            let best = sorted(order[..order.len().min(k as usize)].to_vec());
            prop_assert_eq!(search(&logits, shard, &mut kept, Goal::Ids(k)), best);

            let masses: Vec<u64> = order.iter().map(|id| mass::mass(logits[*id], max, temperature)).collect();
            let goal = mass::share(top_p, masses.iter().sum());
            let (mut sum, mut n) = (0, 0);
            while sum < goal {
                sum += masses[n];
                n += 1;
            }
            let nucleus = sorted(order[..n].to_vec());
            prop_assert_eq!(search(&logits, shard, &mut kept, Goal::Masses { top_p, max, temperature }), nucleus);
        }
    }
}
