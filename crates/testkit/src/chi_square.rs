//! Tests of samplers: how often each id should be drawn, and the chi-square test of whether it was.

use lmhead::sampling::SamplingParams;

/// The ids' probabilities by the definition, in f64, with plain probabilities instead of fixed-point masses.
pub fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let t = f64::from(params.temperature);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |l: f32| ((f64::from(l) - f64::from(max)) / t).exp();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap());
    ids.retain(|id| weight(logits[*id]) >= f64::from(params.min_p));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    let all: f64 = ids.iter().map(|id| weight(logits[*id])).sum();
    let mut sum = 0.0;
    ids.retain(|id| {
        let before = sum;
        sum += weight(logits[*id]);
        before < f64::from(params.top_p) * all
    });
    let kept: f64 = ids.iter().map(|id| weight(logits[*id])).sum();
    let mut p = vec![0.0; logits.len()];
    ids.iter().for_each(|id| p[*id] = weight(logits[*id]) / kept);
    p
}

/// The quantile of the chi-square distribution (E. Wilson, M. Hilferty, "The distribution of chi-square",
/// PNAS 1931) with probability 1e-4 above it, z = 3.719: a correct sampler exceeds it with one seed in ten
/// thousand. The tests' seeds are fixed.
pub fn limit(degrees: usize) -> f64 {
    let d = degrees as f64;
    d * (1.0 - 2.0 / (9.0 * d) + 3.719 * (2.0 / (9.0 * d)).sqrt()).powi(3)
}

/// The chi-square statistic and its degrees of freedom. Ids that are expected less than 8 times are counted
/// as one.
pub fn chi_square(counts: &[u64], expected: &[f64]) -> (f64, usize) {
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rest, mut rest_expected) = (0.0, 0.0);
    for (&n, &e) in counts.iter().zip(expected) {
        if e < 8.0 {
            rest += n as f64;
            rest_expected += e;
        } else {
            statistic += (n as f64 - e).powi(2) / e;
            cells += 1;
        }
    }
    if rest_expected >= 8.0 {
        statistic += (rest - rest_expected).powi(2) / rest_expected;
        cells += 1;
    }
    (statistic, cells - 1)
}
