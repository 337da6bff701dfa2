//! Compares scores `z + g` exactly; the id with the largest score is drawn. Sums rounded to f64 would lose
//! the noise of large logits, and equal logits would no longer be drawn equally often.

use super::SamplingParams;
use super::philox::{Words, gumbel};
use crate::merge::Candidate;

/// An exact sum of two f64: `high + low`, `high` being the nearest f64 (D. Knuth, TAOCP volume 2, 4.2.2,
/// theorem B).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Score {
    high: f64,
    low: f64,
}

impl Score {
    pub fn new(a: f64, b: f64) -> Self {
        let high = a + b;
        let part = high - a;
        Score { high, low: (a - (high - part)) + (b - part) }
    }

    /// The nearest f64.
    pub fn nearest(&self) -> f64 {
        self.high
    }
}

/// The best of the candidates offered so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    best: Option<(Score, Candidate)>,
}

impl Drawn {
    pub fn nothing() -> Self {
        Drawn { best: None }
    }

    /// Offers a candidate; minus infinity is ignored. At temperature 0 its score is the logit.
    pub fn offer(&mut self, params: &SamplingParams, candidate: Candidate) {
        let noise = match params.temperature {
            0.0 => 0.0,
            _ => gumbel(Words::new(params.seed, params.position).of(candidate.id)),
        };
        self.offer_with(params, candidate, noise);
    }

    /// As `Drawn::offer`, with noise that the caller already has.
    pub fn offer_with(&mut self, params: &SamplingParams, candidate: Candidate, noise: f64) {
        if candidate.value == f32::NEG_INFINITY {
            return;
        }
        let score = Score::new(scaled(candidate.value, params.temperature), noise);
        let wins =
            self.best.is_none_or(|(best, kept)| score > best || (score == best && candidate.id < kept.id));
        if wins {
            self.best = Some((score, candidate));
        }
    }

    pub fn score(&self) -> Option<f64> {
        self.best.map(|(score, _)| score.nearest())
    }

    pub fn candidate(&self) -> Option<Candidate> {
        self.best.map(|(_, candidate)| candidate)
    }

    pub fn id(&self) -> Option<u32> {
        self.candidate().map(|candidate| candidate.id)
    }
}

/// `z = l / T`, or the logit itself at temperature 0. The quotient of two f32 never overflows f64, and
/// distinct logits stay distinct.
#[inline]
pub(crate) fn scaled(logit: f32, temperature: f32) -> f64 {
    // Adding 0 makes +0 of -0.
    let l = f64::from(logit) + 0.0;
    if temperature == 0.0 { l } else { l / f64::from(temperature) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_ordered_without_rounding(
            z in prop::num::f64::NORMAL, a in -3.0f64..23.0, b in -3.0f64..23.0,
        ) {
            prop_assume!(z.abs() < 1e290);
            // The same z: the noise decides, however large z is.
            prop_assert_eq!(Score::new(z, a).partial_cmp(&Score::new(z, b)), a.partial_cmp(&b));
        }
    }

    #[test]
    fn equal_huge_logits_are_drawn_by_their_noise() {
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..200 {
            let params = SamplingParams { position, temperature: 0.5, ..SamplingParams::default() };
            let mut best = Drawn::nothing();
            (0..4).for_each(|id| best.offer(&params, Candidate { value: 3e38, id }));
            seen.insert(best.id());
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }
}
