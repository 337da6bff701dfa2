//! Sampled tokens by the definition in [`crate::sampling`]: sorts whole rows.

use super::Truth;
use crate::dtype::DType;
use crate::sampling::SamplingParams;
use crate::sampling::mass::{self, Scale};
use crate::sampling::philox::{Words, gumbel};
use crate::sampling::score::{Score, scaled};
use std::cmp::Ordering;

/// The ids that the filters keep, best first, from a whole row of logits (finite or minus infinity).
pub fn survivors(logits: &[f32], params: &SamplingParams) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).filter(|id| logits[*id] > f32::NEG_INFINITY).collect();
    // Stable: equal logits stay in the order of their ids.
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).expect("no NaN"));
    let Some(&first) = ids.first() else { return ids };
    if params.temperature == 0.0 {
        return vec![first];
    }
    let scale = Scale::new(params, logits[first], logits.len());
    ids.retain(|id| scale.reaches(logits[*id]));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        let masses: Vec<u64> = ids.iter().map(|id| scale.mass(logits[*id])).collect();
        let goal = mass::share(params.top_p, masses.iter().sum());
        let (mut sum, mut kept) = (0, 0);
        while sum < goal {
            sum += masses[kept];
            kept += 1;
        }
        ids.truncate(kept);
    }
    ids
}

/// The sampled id of a whole row of logits (finite or minus infinity); `None` where nothing is allowed.
pub fn sample(logits: &[f32], params: &SamplingParams) -> Option<usize> {
    let words = Words::new(params.seed, params.position);
    let score = |id: usize| Score::new(scaled(logits[id], params.temperature), gumbel(words.of(id as u32)));
    let better = |a: &usize, b: &usize| {
        let by_score = score(*b).partial_cmp(&score(*a)).unwrap_or(Ordering::Equal);
        by_score.then(a.cmp(b))
    };
    survivors(logits, params).into_iter().min_by(better)
}

/// Whether `id` can be the sampled token of logits within the allowed errors of `truths` (minus infinity for
/// ids that are not allowed): it may survive the filters, and no id that surely survives surely beats it.
///
/// # Errors
/// The other id, or the filter, that rules it out.
pub fn judge_sample(truths: &[Truth], params: &SamplingParams, id: i64) -> Result<(), String> {
    let at = usize::try_from(id).ok().filter(|id| *id < truths.len());
    let Some(chosen) = at.filter(|id| truths[*id].logit > f64::NEG_INFINITY) else {
        return Err(format!("id {id} was sampled, which is not allowed"));
    };
    let (low, high) = (|t: &Truth| t.logit - t.allowed, |t: &Truth| t.logit + t.allowed);
    if params.temperature == 0.0 {
        let beaten = truths.iter().position(|t| low(t) > high(&truths[chosen]));
        return beaten
            .map_or(Ok(()), |by| Err(format!("id {id} was sampled, id {by} has the largest logit")));
    }
    let t = f64::from(params.temperature);
    // Rounding errors of f64, here and in the code that is judged.
    let slack = |z: f64| 1e-12 * (1.0 + z.abs());
    let max_low = truths.iter().map(low).fold(f64::NEG_INFINITY, f64::max);
    let max_high = truths.iter().map(high).fold(f64::NEG_INFINITY, f64::max);
    let least = f64::from(params.min_p).ln();
    let reaches = |logit: f64, max: f64, off: f64| (logit - max) / t + off >= least;
    // The difference, the quotient and ln(min_p) are each rounded to f32.
    let off = least.abs() * 2f64.powi(-22) + 1e-12;
    // In f32 the difference may overflow to minus infinity, which no min_p keeps.
    let may_overflow = |x: &Truth| max_high - low(x) >= DType::F32.rounds_to_infinity();
    let perhaps: Vec<bool> = truths.iter().map(|x| reaches(high(x), max_low, off)).collect();
    let survives =
        |x: &Truth| least == f64::NEG_INFINITY || (!may_overflow(x) && reaches(low(x), max_high, -off));
    let surely: Vec<bool> = truths.iter().map(survives).collect();
    let exists = |x: &Truth| x.logit > f64::NEG_INFINITY;

    // The number and mass of ids that may come before an id (`by_high`), and that surely do (`by_low`).
    // A mass has errors from the rounding of its f32 argument, from the polynomial, and of half a unit.
    let unit = 1.0 / mass::largest_mass(truths.len()) as f64;
    let mass = |x: f64, sign: f64| x.exp() * (1.0 + sign * (1e-7 + x.abs() * 2f64.powi(-22))) + sign * unit;
    let most = |x: &Truth| mass(((high(x) - max_low) / t).min(0.0), 1.0).min(1.0);
    let by_high = Ahead::new(truths, &perhaps, high, most);
    let by_low = Ahead::new(truths, &surely, low, |x| match may_overflow(x) {
        true => 0.0,
        false => mass((low(x) - max_high) / t, -1.0).max(0.0),
    });
    let k = if params.top_k == 0 { usize::MAX } else { params.top_k };
    let top_p = f64::from(params.top_p);
    // The nucleus is a share of the mass that top_k keeps.
    let (total_low, total_high) = (by_low.of_first(k), by_high.of_first(k));
    let filter = |v: usize, sure: bool| -> Option<&'static str> {
        let x = &truths[v];
        // If logits are equal, the lower id comes first.
        let (mut before, total) = match sure {
            true => (by_high.before(low(x), v), total_low),
            false => (by_low.before(high(x), v), total_high),
        };
        if sure && perhaps[v] && high(x) > low(x) {
            // `by_high` has the id itself ahead of its own lower bound: it does not count.
            before = (before.0 - 1, before.1 - most(x));
        }
        let kept = if sure { surely[v] } else { perhaps[v] };
        if !kept {
            return Some("min_p");
        }
        if before.0 >= k {
            return Some("top_k");
        }
        // The first id is always kept, whatever its mass.
        let off = if sure { 1e-9 } else { -1e-9 };
        if params.top_p < 1.0 && before.0 > 0 && before.1 + off >= top_p * total {
            return Some("top_p");
        }
        None
    };
    if let Some(name) = filter(chosen, false) {
        return Err(format!("id {id} was sampled, which {name} filters out"));
    }
    let words = Words::new(params.seed, params.position);
    let score =
        |logit: f64, v: usize, off: f64| logit / t + gumbel(words.of(v as u32)) + off * slack(logit / t);
    let reached = score(high(&truths[chosen]), chosen, 1.0);
    let beats = |(v, x): &(usize, &Truth)| {
        exists(x) && score(low(x), *v, -1.0) > reached && filter(*v, true).is_none()
    };
    match truths.iter().enumerate().find(beats) {
        Some((by, _)) => Err(format!("id {id} was sampled, id {by} has a larger logit with its noise")),
        None => Ok(()),
    }
}

/// Ids in descending order of a bound of their logits, with the total mass ahead of each.
struct Ahead {
    /// `(bound, id, mass of all ids ahead)`
    order: Vec<(f64, usize, f64)>,
    total: f64,
}

impl Ahead {
    fn new(
        truths: &[Truth],
        keep: &[bool],
        bound: impl Fn(&Truth) -> f64,
        mass: impl Fn(&Truth) -> f64,
    ) -> Self {
        let kept = truths.iter().enumerate().filter(|(id, x)| keep[*id] && x.logit > f64::NEG_INFINITY);
        let mut order: Vec<(f64, usize, f64)> = kept.map(|(id, x)| (bound(x), id, mass(x))).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut total = 0.0;
        for entry in &mut order {
            total += std::mem::replace(&mut entry.2, total);
        }
        Ahead { order, total }
    }

    /// The mass of the first `k` ids.
    fn of_first(&self, k: usize) -> f64 {
        self.order.get(k).map_or(self.total, |entry| entry.2)
    }

    /// Number and mass of the ids ahead of `id` with `logit`: a larger bound, or the same and a lower id.
    fn before(&self, logit: f64, id: usize) -> (usize, f64) {
        let n = self
            .order
            .partition_point(|(bound, other, _)| *bound > logit || (*bound == logit && *other < id));
        (n, self.of_first(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params() -> impl Strategy<Value = SamplingParams> {
        let temperature = prop::sample::select(vec![0.0f32, 0.3, 1.0, 4.0]);
        let filters = (0usize..30, 0.05f32..=1.0, 0f32..=1.0, 0usize..8);
        (any::<u64>(), any::<u64>(), temperature, filters).prop_map(
            |(seed, position, temperature, filters)| {
                let (top_k, top_p, min_p, which) = filters;
                let on = |bit: usize| which >> bit & 1 == 1;
                SamplingParams {
                    seed,
                    position,
                    temperature,
                    top_k: if on(0) { top_k } else { 0 },
                    top_p: if on(1) { top_p } else { 1.0 },
                    min_p: if on(2) { min_p } else { 0.0 },
                }
            },
        )
    }

    fn truths(logits: &[f32], allowed: f64) -> Vec<Truth> {
        let truth = |l: &f32| {
            let (logit, allowed) = (f64::from(*l), if l.is_finite() { allowed } else { 0.0 });
            Truth { logit, allowed, raw: logit, raw_allowed: allowed }
        };
        logits.iter().map(truth).collect()
    }

    proptest! {
        #[test]
        fn exact_logits_leave_one_token(
            logits in prop::collection::vec(
                prop_oneof![4 => -6f32..6.0, 1 => Just(1.0), 1 => Just(f32::NEG_INFINITY)],
                1..60,
            ),
            params in params(),
        ) {
            let Some(id) = sample(&logits, &params) else { return Ok(()) };
            let truths = truths(&logits, 0.0);
            prop_assert_eq!(judge_sample(&truths, &params, id as i64), Ok(()));
            // No other id passes, except ids that tie with the sampled one.
            let passes = |other: &usize| judge_sample(&truths, &params, *other as i64).is_ok();
            let others = (0..logits.len()).filter(passes).count();
            let ties = logits.iter().filter(|l| **l == logits[id]).count();
            prop_assert!(others == 1 || (params.temperature == 0.0 && others == ties), "{} pass", others);
            prop_assert!(judge_sample(&truths, &params, -1).is_err());
        }

        /// Logits whose differences overflow f32.
        #[test]
        fn what_is_sampled_of_huge_logits_may_be_sampled(
            seed: u64, top_p in 0.9f32..=1.0, min_p in prop_oneof![Just(0f32), 0f32..0.01],
        ) {
            let params =
                SamplingParams { seed, temperature: 1e38, top_p, min_p, ..SamplingParams::default() };
            let logits = [3e38, -3e38, 2e38, -2e38, 0.0];
            let id = sample(&logits, &params).unwrap();
            prop_assert_eq!(judge_sample(&truths(&logits, 0.0), &params, id as i64), Ok(()));
        }

        #[test]
        fn what_is_sampled_from_nearby_logits_may_be_sampled(
            logits in prop::collection::vec((-6f32..6.0, -0.9f32..0.9), 1..60), params in params(),
            allowed in prop::sample::select(vec![1e-6f64, 1e-3, 0.1]),
        ) {
            let near: Vec<f32> = logits.iter().map(|(l, off)| l + off * allowed as f32).collect();
            let id = sample(&near, &params).unwrap();
            let exact: Vec<f32> = logits.iter().map(|(l, _)| *l).collect();
            prop_assert_eq!(judge_sample(&truths(&exact, allowed), &params, id as i64), Ok(()));
        }
    }
}
