//! How far a quantised head's answers are from the original's: compares the logits of a row, slice by slice
//! of the vocabulary, so that no whole row of logits has to be kept.

use crate::merge::Candidate;

/// Compares one row's logits of two heads: the original's distribution `p = softmax(l)` with the other's `q =
/// softmax(m)`.
#[derive(Debug, Clone)]
pub struct Divergence {
    original: Side,
    other: Side,
    /// `Σ e^(l − max l) (l − m)` over the slices so far.
    cross: f64,
}

/// One head's running values: its best id, and `Σ e^(l − max)`.
#[derive(Debug, Clone)]
struct Side {
    best: Option<Candidate>,
    sum: f64,
}

impl Side {
    fn new() -> Self {
        Side { best: None, sum: 0.0 }
    }

    /// Updates the best id with a slice. Returns the factor that rescales sums from the old maximum to the
    /// new one.
    fn raise(&mut self, first_id: usize, logits: &[f32]) -> f64 {
        let mut factor = 1.0;
        for (i, &value) in logits.iter().enumerate() {
            let candidate = Candidate { value, id: (first_id + i) as u32 };
            match &self.best {
                None => self.best = Some(candidate),
                Some(best) if candidate.beats(best) => {
                    factor *= (f64::from(best.value) - f64::from(value)).exp();
                    self.best = Some(candidate);
                }
                Some(_) => {}
            }
        }
        self.sum *= factor;
        factor
    }

    fn max(&self) -> f64 {
        self.best.map_or(f64::NAN, |best| f64::from(best.value))
    }

    fn logsumexp(&self) -> f64 {
        self.max() + self.sum.ln()
    }
}

impl Default for Divergence {
    fn default() -> Self {
        Divergence { original: Side::new(), other: Side::new(), cross: 0.0 }
    }
}

impl Divergence {
    /// Adds the logits of the ids from `first_id` on; slices must come in ascending order. A logit that is
    /// not finite makes the divergence NaN.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn push(&mut self, first_id: usize, original: &[f32], other: &[f32]) {
        assert_eq!(original.len(), other.len(), "divergence: slices of different ids");
        self.cross *= self.original.raise(first_id, original);
        self.other.raise(first_id, other);
        let (max, other_max) = (self.original.max(), self.other.max());
        for (&l, &m) in original.iter().zip(other) {
            let (l, m) = (f64::from(l), f64::from(m));
            let weight = (l - max).exp();
            self.original.sum += weight;
            self.cross += weight * (l - m);
            self.other.sum += (m - other_max).exp();
        }
    }

    /// `KL(p ‖ q) = Σ p (ln p − ln q) = Σ p (l − m) − lse(l) + lse(m)`, nats, at least 0.
    pub fn kl(&self) -> f64 {
        let kl = self.cross / self.original.sum - self.original.logsumexp() + self.other.logsumexp();
        // Rounding may leave the divergence of equal distributions just below 0.
        if kl < 0.0 { 0.0 } else { kl }
    }

    /// Whether both heads answer the same id; ties go to the lowest.
    pub fn same_argmax(&self) -> bool {
        self.original.best.map(|best| best.id) == self.other.best.map(|best| best.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::logsumexp;
    use proptest::prelude::*;

    fn whole(l: &[f32], m: &[f32], cuts: &[usize]) -> Divergence {
        let mut divergence = Divergence::default();
        let mut start = 0;
        for end in cuts.iter().map(|cut| cut % (l.len() + 1)).chain([l.len()]) {
            if end > start {
                divergence.push(start, &l[start..end], &m[start..end]);
                start = end;
            }
        }
        divergence
    }

    proptest! {
        #[test]
        fn equals_the_definition_however_it_is_cut(
            pairs in prop::collection::vec((-30.0f32..30.0, -2.0f32..2.0), 1..300),
            mut cuts in prop::collection::vec(0usize..300, 0..5),
        ) {
            cuts.sort_unstable();
            let l: Vec<f32> = pairs.iter().map(|(l, _)| *l).collect();
            let m: Vec<f32> = pairs.iter().map(|(l, d)| l + d).collect();
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let (l64, m64) = (wide(&l), wide(&m));
            let (a, b) = (logsumexp(&l64), logsumexp(&m64));
            let truth: f64 = l64.iter().zip(&m64).map(|(l, m)| (l - a).exp() * ((l - a) - (m - b))).sum();
            let got = whole(&l, &m, &cuts);
            prop_assert!((got.kl() - truth).abs() <= 1e-12 * 60.0, "{} {}", got.kl(), truth);
            let best = |v: &[f32]| (0..v.len()).rev().max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap();
            // Adding 0 makes -0 and +0 tie.
            let plus = |v: &[f32]| v.iter().map(|v| v + 0.0).collect::<Vec<_>>();
            prop_assert_eq!(got.same_argmax(), best(&plus(&l)) == best(&plus(&m)));
        }
    }

    #[test]
    fn equal_rows_ties_and_broken_ones() {
        let row = [1.0f32, 5.0, 5.0, -3.0];
        let same = whole(&row, &row, &[2]);
        assert_eq!((same.kl(), same.same_argmax()), (0.0, true));
        assert!(!whole(&row, &[1.0, 4.0, 5.0, -3.0], &[]).same_argmax());
        assert!(whole(&row, &[1.0, f32::NAN, 5.0, -3.0], &[]).kl().is_nan());
        let (up, down) = ([200.0f32, -200.0], [-200.0f32, 200.0]);
        assert!((whole(&up, &down, &[1]).kl() - 400.0).abs() < 1e-9, "no overflow");
    }
}
