//! `--check`: the answer against the float64 reference. Everything when the run is small, a seeded sample of rows and columns
//! when it is large.

use crate::input::Rows;
use crate::output::Assembled;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::reference::{self, Accuracy, Reference, ReferenceRow, Truth};
use lmhead::result::{Output, RowStatus};
use lmhead::weights::HeadShard;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Multiply-adds up to which everything is checked: a second or two of the naive reference.
const EVERYTHING: u128 = 1_000_000_000;
/// Rows and columns of a sample of logits, and rows of a sample of answers that need every column.
const SAMPLE_ROWS: usize = 16;
const SAMPLE_COLUMNS: usize = 4096;
const SAMPLE_WHOLE_ROWS: usize = 4;

/// What is known of the numbers that are checked.
#[derive(Clone, Copy)]
pub struct Data {
    /// Bell-shaped, so that the tight limit holds.
    pub gaussian: bool,
    /// The backend takes subnormal numbers for zeros.
    pub flushes: bool,
    /// How far the backend's sums may be off.
    pub accuracy: Accuracy,
}

/// What was compared and how far it was off.
#[derive(Serialize)]
pub struct CheckReport {
    pub passed: bool,
    /// Whether every row and column was compared.
    pub everything: bool,
    pub rows: usize,
    pub values: u64,
    /// Those of them that are not finite, or are those of a row without an answer, where the truth is the
    /// same.
    pub not_finite: u64,
    /// Largest error, and the error allowed to that value.
    pub largest_error: f64,
    pub allowed_there: f64,
    /// Largest error / allowed of all values.
    pub worst_ratio: f64,
    /// Largest error of raw f32 logits in units of their rms, where the data is Gaussian.
    pub error_over_rms: Option<f64>,
    /// The limit of `error_over_rms`.
    pub rms_limit: f64,
    /// The first mistakes, in words.
    pub mistakes: Vec<String>,
}

/// Compares `answer` with the reference over `shards`, which together are the whole vocabulary.
pub fn check(
    answer: &Assembled,
    rows: &Rows,
    shards: &[Arc<HeadShard>],
    config: &HeadConfig,
    seed: u64,
    data: Data,
) -> Result<CheckReport> {
    // Whether a row has anything allowed is seen on all columns only.
    let all_columns = !matches!(answer.output, Output::Logits { .. }) || rows.data.is_adjusted();
    let work = answer.rows as u128 * config.vocab_size as u128 * config.hidden_size as u128;
    let everything = work <= EVERYTHING;
    let mut sample = Sample(seed);
    let row_limit = if all_columns { SAMPLE_WHOLE_ROWS } else { SAMPLE_ROWS };
    let chosen_rows =
        if everything { (0..answer.rows).collect() } else { sample.of(answer.rows, row_limit, []) };
    let columns: Vec<usize> = if everything || all_columns {
        (0..config.vocab_size).collect()
    } else {
        let edges = shards
            .iter()
            .filter(|s| !s.vocab().is_empty())
            .flat_map(|s| [s.vocab().start, s.vocab().end - 1]);
        sample.of(config.vocab_size, SAMPLE_COLUMNS, edges)
    };

    let mut report = CheckReport {
        passed: true,
        everything,
        rows: chosen_rows.len(),
        values: 0,
        not_finite: 0,
        largest_error: 0.0,
        allowed_there: 0.0,
        worst_ratio: 0.0,
        error_over_rms: None,
        rms_limit: data.accuracy.of_rms(config.hidden_size),
        mistakes: Vec::new(),
    };
    let size = config.hidden_size * rows.dtype.size();
    let plain = config.final_logit_softcapping.is_none() && config.logit_scale == 1.0;
    let (mut squares, mut largest, mut counted) = (0.0f64, 0.0f64, 0u64);
    for &row in &chosen_rows {
        let bytes = &rows.bytes[rows.hidden_of(row) * size..][..size];
        let judged = |columns: &[usize]| -> Result<(Vec<Truth>, bool)> {
            let (mut truths, finite) = truths(shards, config, bytes, rows.dtype, columns, data)?;
            let mut broken = !finite || truths.iter().any(Truth::may_overflow);
            rows.data.with(|inputs| {
                if let Some(adjustments) = &inputs.adjustments {
                    reference::adjust_row(&mut truths, columns, adjustments, row, config.vocab_size);
                }
            });
            broken |= truths.iter().any(|t| t.logit + t.allowed >= f64::from(f32::MAX));
            Ok((truths, broken))
        };
        let forbidden = |truths: &[Truth]| truths.iter().all(|t| t.logit == f64::NEG_INFINITY);
        let (truths, mut broken) = judged(&columns)?;
        let (status, mut nothing) = (answer.row_status[row], forbidden(&truths));
        let unsure = nothing || (!broken && status != RowStatus::Good);
        if unsure && columns.len() < config.vocab_size {
            // What is not in the sample may overflow, or be allowed: look at every column.
            let every: Vec<usize> = (0..config.vocab_size).collect();
            let (all, any_broken) = judged(&every)?;
            (broken, nothing) = (any_broken, forbidden(&all));
        }
        let should_be = match (broken, nothing) {
            (true, _) => RowStatus::NonFinite,
            (false, true) => RowStatus::NothingAllowed,
            (false, false) => RowStatus::Good,
        };
        if status != should_be {
            report.mistake(format!("row {row}: status {status:?}, wanted {should_be:?}"));
            continue;
        }
        match &answer.output {
            // Logits are delivered whatever the row's status: also what is not finite must be what the truth
            // is.
            Output::Logits { dtype, vocab_size, bytes } => {
                let own = &bytes[row * vocab_size * dtype.size()..][..vocab_size * dtype.size()];
                for (&id, truth) in columns.iter().zip(&truths) {
                    let got = f64::from(dtype.read(own, id));
                    let error = report.logit(row, id, got, truth, *dtype);
                    if *dtype == DType::F32 && should_be == RowStatus::Good && truth.logit.is_finite() {
                        squares += truth.logit * truth.logit;
                        largest = largest.max(error);
                        counted += 1;
                    }
                }
            }
            output if should_be != RowStatus::Good => report.unanswered(row, output),
            Output::Argmax { ids } => report.best(row, &truths, &ids[row..=row], None),
            Output::TopK { k, values, ids, logsumexp } => {
                let own = row * k..(row + 1) * k;
                report.best(row, &truths, &ids[own.clone()], Some(&values[own]));
                let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
                let truth = reference::logsumexp(&logits);
                // What the logits are off moves the sum by at most its softmax-weighted mean.
                let moved: f64 = truths.iter().map(|t| (t.logit - truth).exp() * t.allowed).sum();
                let allowed = reference::logsumexp_allowed(truth, logits.len()) + moved;
                let got = f64::from(logsumexp[row]);
                report.value((got - truth).abs(), allowed, || {
                    format!("row {row}: logsumexp {got}, truth {truth}")
                });
            }
            Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs } => {
                let own = row * top_n..(row + 1) * top_n;
                let tops = (&top_ids[own.clone()], &top_logprobs[own]);
                let target = rows.data.with(|inputs| inputs.targets.map_or(0, |t| t[row] as usize));
                report.logprobs(row, &truths, target, logprobs[row], ranks[row], tops);
            }
            Output::Sample { ids } => {
                let params =
                    rows.data.with(|inputs| inputs.sampling.expect("a request to sample has them")[row]);
                report.values += 1;
                if let Err(text) = reference::judge_sample(&truths, &params, ids[row]) {
                    report.mistake(format!("row {row}: {text}"));
                }
            }
            _ => unreachable!("args knows these requests only"),
        }
    }
    if report.values == 0 {
        report.mistake(format!("nothing was compared: there are {} output rows", answer.rows));
    }
    let plain = plain && !rows.data.is_adjusted();
    if data.gaussian && plain && counted > 0 && squares > 0.0 {
        let over_rms = largest / (squares / counted as f64).sqrt();
        report.error_over_rms = Some(over_rms);
        let limit = report.rms_limit;
        if over_rms > limit {
            report.mistake(format!(
                "the largest error is {over_rms:.2e} of the logits' rms, allowed {limit:.0e}"
            ));
        }
    }
    Ok(report)
}

impl CheckReport {
    fn mistake(&mut self, text: String) {
        self.passed = false;
        if self.mistakes.len() < 5 {
            self.mistakes.push(text);
        }
    }

    fn value(&mut self, error: f64, allowed: f64, what: impl Fn() -> String) {
        self.values += 1;
        let ratio = reference::ratio(error, allowed);
        if error > self.largest_error || error.is_nan() {
            (self.largest_error, self.allowed_there) = (error, allowed);
        }
        self.worst_ratio = if ratio.is_nan() { f64::INFINITY } else { self.worst_ratio.max(ratio) };
        // Not "error > allowed": NaN must fail.
        let within = error <= allowed;
        if !within {
            self.mistake(format!("{}, error {error:.3e}, allowed {allowed:.3e}", what()));
        }
    }

    /// A logit of any row; returns its error, infinite where it is not what the truth is.
    fn logit(&mut self, row: usize, id: usize, got: f64, truth: &Truth, dtype: DType) -> f64 {
        let (error, allowed) = if !truth.logit.is_finite() {
            self.not_finite += 1;
            let same = got == truth.logit || (got.is_nan() && truth.logit.is_nan());
            (if same { 0.0 } else { f64::INFINITY }, 0.0)
        } else if !truth.raw.is_finite() {
            // The softcap of an infinity is the cap, but for the roundings of tanh, product and scale.
            let near = Truth { allowed: 8.0 * f64::from(f32::EPSILON) * truth.logit.abs(), ..*truth };
            (near.error_of(got, dtype), near.allowed_as(dtype))
        } else if truth.may_overflow() && !got.is_finite() {
            self.not_finite += 1;
            (0.0, 0.0)
        } else {
            (truth.error_of(got, dtype), truth.allowed_as(dtype))
        };
        self.value(error, allowed, || format!("row {row}, id {id}: {got}, truth {}", truth.logit));
        error
    }

    /// A row whose status is not good answers id -1 and NaN, whatever is asked for beside all logits.
    fn unanswered(&mut self, row: usize, output: &Output) {
        let (good, values) = match output {
            Output::Argmax { ids } | Output::Sample { ids } => (ids[row] == -1, 1),
            Output::TopK { k, values, ids, logsumexp } => {
                let own = row * k..(row + 1) * k;
                let good = ids[own.clone()].iter().all(|id| *id == -1)
                    && values[own].iter().all(|v| v.is_nan())
                    && logsumexp[row].is_nan();
                (good, k + 1)
            }
            Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs } => {
                let own = row * top_n..(row + 1) * top_n;
                let good = logprobs[row].is_nan()
                    && ranks[row] == -1
                    && top_ids[own.clone()].iter().all(|id| *id == -1)
                    && top_logprobs[own].iter().all(|l| l.is_nan());
                (good, top_n + 1)
            }
            _ => unreachable!("args knows these requests only, and logits have their own comparison"),
        };
        self.values += values as u64;
        self.not_finite += values as u64;
        if !good {
            self.mistake(format!("row {row}: answered although its status is not good"));
        }
    }

    /// Logprob and rank of a target, and the best ids.
    fn logprobs(
        &mut self,
        row: usize,
        truths: &[Truth],
        target: usize,
        logprob: f32,
        rank: i64,
        (top_ids, top_logprobs): (&[i64], &[f32]),
    ) {
        self.best(row, truths, top_ids, None);
        let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
        let lse = reference::logsumexp(&logits);
        let moved: f64 = truths.iter().map(|t| (t.logit - lse).exp() * t.allowed).sum();
        let own = truths[target];
        let pairs =
            top_ids.iter().zip(top_logprobs).filter(|(id, _)| **id >= 0 && (**id as usize) < truths.len());
        let all = pairs.map(|(&id, &got)| (id as usize, got)).chain([(target, logprob)]);
        for (id, got) in all {
            let (truth, got) = (truths[id].logit - lse, f64::from(got));
            if truth == f64::NEG_INFINITY {
                let error = if got == truth { 0.0 } else { f64::INFINITY };
                self.value(error, 0.0, || format!("row {row}, id {id}: logprob {got}, not allowed"));
                continue;
            }
            let of_lse = reference::logsumexp_allowed(lse, logits.len());
            let allowed = truths[id].allowed + moved + of_lse + DType::F32.half_ulp(truth.abs());
            self.value((got - truth).abs(), allowed, || {
                format!("row {row}, id {id}: logprob {got}, truth {truth}")
            });
        }
        // Ids that surely beat the target, and those that may: ties are decided by what was computed.
        let others = || truths.iter().enumerate().filter(|(id, _)| *id != target);
        let sure = others().filter(|(_, t)| t.logit - t.allowed > own.logit + own.allowed).count() as i64;
        let perhaps = others()
            .filter(|(id, t)| match own.logit == f64::NEG_INFINITY && t.logit == f64::NEG_INFINITY {
                true => *id < target,
                false => t.logit + t.allowed >= own.logit - own.allowed,
            })
            .count() as i64;
        self.values += 1;
        if !(1 + sure..=1 + perhaps).contains(&rank) {
            self.mistake(format!(
                "row {row}: rank {rank} of target {target}, wanted {} to {}",
                1 + sure,
                1 + perhaps
            ));
        }
    }

    fn best(&mut self, row: usize, truths: &[Truth], ids: &[i64], values: Option<&[f32]>) {
        // Places beyond the allowed ids hold -1 and minus infinity.
        let allowed = truths.iter().filter(|t| t.logit > f64::NEG_INFINITY).count().min(ids.len());
        let rest_is_empty = ids[allowed..].iter().all(|id| *id == -1)
            && values.is_none_or(|v| v[allowed..].iter().all(|v| *v == f32::NEG_INFINITY));
        if !rest_is_empty {
            self.mistake(format!("row {row}: {allowed} ids are allowed, more were answered"));
            return;
        }
        let (ids, values) = (&ids[..allowed], values.map(|v| &v[..allowed]));
        if let Err(text) = reference::judge_top_k(truths, ids, values) {
            self.values += ids.len() as u64;
            self.mistake(format!("row {row}: {text}"));
            return;
        }
        match values {
            None => self.values += ids.len() as u64,
            Some(values) => {
                for (&id, &value) in ids.iter().zip(values) {
                    let truth = &truths[id as usize];
                    self.value((f64::from(value) - truth.logit).abs(), truth.allowed, || {
                        format!("row {row}, id {id}: {value}, truth {}", truth.logit)
                    });
                }
            }
        }
    }
}

/// The true logits of one row at `columns` (ascending), and whether the row itself is finite.
fn truths(
    shards: &[Arc<HeadShard>],
    config: &HeadConfig,
    bytes: &[u8],
    dtype: DType,
    columns: &[usize],
    data: Data,
) -> Result<(Vec<Truth>, bool)> {
    let prepared: Vec<(Reference, ReferenceRow)> = shards
        .iter()
        .map(|shard| {
            let reference =
                Reference::new(shard, config.epilogue()).flushing(data.flushes).accurate_as(data.accuracy);
            reference.row(bytes, dtype).map(|row| (reference, row))
        })
        .collect::<Result<_>>()?;
    let finite = prepared.iter().all(|(reference, row)| reference.is_finite(row));
    let truths = columns
        .par_iter()
        .map(|&id| {
            let at = shards.partition_point(|shard| shard.vocab().end <= id);
            let (reference, row) = &prepared[at];
            reference.logit(row, id - shards[at].vocab().start)
        })
        .collect();
    Ok((truths, finite))
}

/// A seeded choice of numbers (SplitMix64).
struct Sample(u64);

impl Sample {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `always`, the first and the last of `0..n`, and others up to `limit`; ascending, distinct.
    fn of(&mut self, n: usize, limit: usize, always: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut chosen: BTreeSet<usize> = always.into_iter().collect();
        if n > 0 {
            chosen.extend([0, n - 1]);
        }
        while chosen.len() < limit.min(n) {
            chosen.insert((self.next() % n as u64) as usize);
        }
        chosen.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lmhead::config::Quantization;
    use lmhead::result::Request;
    use lmhead::sampling::SamplingParams;
    use lmhead::weights::synthetic;

    const ROWS: usize = 3;
    const SEED: u64 = 11;
    const DATA: Data = Data { gaussian: true, flushes: false, accuracy: Accuracy::Rounded };

    /// A small head in two shards, rows, and the answer that the reference itself gives, rounded to f32.
    fn right_answer(request: Request) -> (Assembled, Rows, Vec<Arc<HeadShard>>, HeadConfig) {
        let preset = synthetic::preset("tiny").unwrap();
        let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
        let cuts = [0..512, 512..preset.vocab_size];
        let shard = |ids| synthetic::shard(&preset.spec(), SEED, ids, Quantization::None, None).unwrap();
        let shards: Vec<Arc<HeadShard>> = cuts.into_iter().map(|ids| Arc::new(shard(ids))).collect();
        let bytes = (0..ROWS as u64)
            .flat_map(|row| synthetic::hidden_row(SEED, row, preset.hidden_size, preset.dtype))
            .collect();
        let data = crate::row_data::RowData::synthetic(SEED, ROWS, config.vocab_size, &request)
            .sampled((request == Request::Sample).then(SamplingParams::default), ROWS);
        let origin = "test".into();
        let rows = Rows { bytes, dtype: preset.dtype, origin, counts: vec![ROWS], indices: None, data };
        let mut answer = Assembled::new(&request, ROWS, config.vocab_size).unwrap();
        let everything: Vec<usize> = (0..config.vocab_size).collect();
        let size = config.hidden_size * rows.dtype.size();
        for row in 0..ROWS {
            let own = &rows.bytes[row * size..(row + 1) * size];
            let (truths, _) = truths(&shards, &config, own, rows.dtype, &everything, DATA).unwrap();
            let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
            match &mut answer.output {
                Output::Logits { dtype, vocab_size, bytes } => {
                    let wide: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
                    let stride = *vocab_size * dtype.size();
                    dtype.round_into(&wide, &mut bytes[row * stride..(row + 1) * stride]);
                }
                Output::Argmax { ids } => ids[row] = reference::top_k(&logits, 1)[0] as i64,
                Output::Sample { ids } => {
                    let wide: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
                    let params = rows.data.with(|inputs| inputs.sampling.unwrap()[row]);
                    ids[row] = reference::sample(&wide, &params).unwrap() as i64;
                }
                Output::TopK { k, values, ids, logsumexp } => {
                    for (place, id) in reference::top_k(&logits, *k).into_iter().enumerate() {
                        ids[row * *k + place] = id as i64;
                        values[row * *k + place] = logits[id] as f32;
                    }
                    logsumexp[row] = reference::logsumexp(&logits) as f32;
                }
                Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs } => {
                    let lse = reference::logsumexp(&logits);
                    let order = reference::top_k(&logits, logits.len());
                    let target = rows.data.with(|inputs| inputs.targets.unwrap()[row] as usize);
                    logprobs[row] = (logits[target] - lse) as f32;
                    ranks[row] = 1 + order.iter().position(|id| *id == target).unwrap() as i64;
                    for (place, id) in order.into_iter().take(*top_n).enumerate() {
                        top_ids[row * *top_n + place] = id as i64;
                        top_logprobs[row * *top_n + place] = (logits[id] - lse) as f32;
                    }
                }
                _ => unreachable!(),
            }
        }
        (answer, rows, shards, config)
    }

    /// Whether the check passes after `spoil`.
    fn passes(request: Request, spoil: impl FnOnce(&mut Assembled)) -> bool {
        let (mut answer, rows, shards, config) = right_answer(request);
        spoil(&mut answer);
        let report = check(&answer, &rows, &shards, &config, SEED, DATA).unwrap();
        assert_eq!(report.passed, report.mistakes.is_empty());
        assert!(report.everything && report.rows == ROWS);
        report.passed
    }

    fn set_logit(answer: &mut Assembled, at: usize, change: impl FnOnce(f32) -> f32) {
        let Output::Logits { dtype, bytes, .. } = &mut answer.output else { unreachable!() };
        let (size, value) = (dtype.size(), dtype.read(bytes, at));
        dtype.round_into(&[change(value)], &mut bytes[at * size..(at + 1) * size]);
    }

    #[test]
    fn an_infinity_is_right_exactly_where_rounding_makes_one() {
        let truth = |logit: f64| Truth { logit, allowed: 1.0, raw: logit, raw_allowed: 1.0 };
        assert_eq!(truth(70_000.0).error_of(f64::INFINITY, DType::F16), 0.0);
        assert_eq!(truth(65_519.5).error_of(f64::INFINITY, DType::F16), 0.0, "within the allowed error");
        assert_eq!(truth(65_000.0).error_of(f64::INFINITY, DType::F16), f64::INFINITY);
        assert_eq!(truth(70_000.0).error_of(f64::NEG_INFINITY, DType::F16), f64::INFINITY);
        assert!(truth(70_000.0).error_of(65_504.0, DType::F16) > truth(70_000.0).allowed_as(DType::F16));
        assert!(truth(1e39).may_overflow() && !truth(1e37).may_overflow());
        assert!(Truth { logit: 1.0, ..truth(1e39) }.may_overflow(), "a softcap hides nothing");
    }

    #[test]
    fn the_right_answer_passes_and_every_kind_of_wrong_one_fails() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let request = Request::logits(dtype);
            assert!(passes(request, |_| ()));
            // The last column of the last row, off by 2 % of a typical logit: more than any rounding.
            assert!(!passes(request, |a| set_logit(a, ROWS * 1000 - 1, |v| v + 0.06)), "{dtype}");
            assert!(!passes(request, |a| set_logit(a, 1700, |_| f32::NAN)), "{dtype}");
            assert!(!passes(request, |a| a.row_status[1] = RowStatus::NonFinite), "{dtype}");
        }
        assert!(
            !passes(Request::logits(DType::F32), |a| set_logit(a, 5, |v| v + 5e-4)),
            "beyond 5e-5 of the rms"
        );
        assert!(passes(Request::argmax(), |_| ()));
        let spoil_id = |answer: &mut Assembled| {
            let Output::Argmax { ids } = &mut answer.output else { unreachable!() };
            ids[2] = (ids[2] + 1) % 1000;
        };
        assert!(!passes(Request::argmax(), spoil_id));
        let top = Request::top_k(4);
        assert!(passes(top, |_| ()));
        fn parts(answer: &mut Assembled) -> (&mut Vec<f32>, &mut Vec<i64>, &mut Vec<f32>) {
            let Output::TopK { values, ids, logsumexp, .. } = &mut answer.output else { unreachable!() };
            (values, ids, logsumexp)
        }
        assert!(!passes(top, |a| parts(a).1.swap(4, 5)));
        assert!(!passes(top, |a| parts(a).0[3] += 0.06));
        assert!(!passes(top, |a| parts(a).2[0] += 0.06));
        assert!(!passes(top, |a| parts(a).2[0] = f32::NAN));
    }

    /// The last column of row 1 of the hidden states is spoiled, and the answer has what the reference makes
    /// of it.
    #[test]
    fn rows_that_are_not_finite_are_compared_value_by_value() {
        let with = |value: f32, request: Request, spoil: &dyn Fn(&mut Assembled)| {
            let (mut answer, mut rows, shards, config) = right_answer(Request::logits(DType::F32));
            let size = config.hidden_size * rows.dtype.size();
            rows.dtype.round_into(&[value], &mut rows.bytes[2 * size - rows.dtype.size()..2 * size]);
            let everything: Vec<usize> = (0..config.vocab_size).collect();
            let own = &rows.bytes[size..2 * size];
            let (truths, finite) = truths(&shards, &config, own, rows.dtype, &everything, DATA).unwrap();
            assert!(!finite);
            match request {
                Request::Logits { .. } => {
                    for (id, truth) in truths.iter().enumerate() {
                        set_logit(&mut answer, config.vocab_size + id, |_| truth.logit as f32);
                    }
                }
                _ => answer.output = Output::Argmax { ids: vec![0, -1, 0] },
            }
            answer.row_status[1] = RowStatus::NonFinite;
            spoil(&mut answer);
            check(&answer, &rows, &shards, &config, SEED, DATA).unwrap()
        };
        let logits = Request::logits(DType::F32);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let report = with(value, logits, &|_| ());
            assert!(report.passed, "{:?}", report.mistakes);
            assert_eq!((report.values, report.not_finite), (3000, 1000));
            let wrong = |change: fn(f32) -> f32| !with(value, logits, &|a| set_logit(a, 1007, change)).passed;
            assert!(wrong(|_| 0.5), "{value}: a number");
            assert!(wrong(|v| if v.is_nan() { f32::INFINITY } else { f32::NAN }), "{value}");
            assert!(wrong(|v| if v.is_nan() { f32::NEG_INFINITY } else { -v }), "{value}: the other sign");
        }
        let report = with(f32::NAN, Request::argmax(), &|_| ());
        assert_eq!((report.values, report.not_finite), (3, 1));
        let one = with(f32::NAN, Request::argmax(), &|a| a.output = Output::Argmax { ids: vec![0, 4, 0] });
        assert!(one.mistakes.iter().any(|m| m.contains("row 1: answered although")), "{:?}", one.mistakes);
    }

    #[test]
    fn comparing_nothing_is_no_pass() {
        let (_, mut rows, shards, config) = right_answer(Request::argmax());
        (rows.counts, rows.bytes) = (vec![0], Vec::new());
        let answer = Assembled::new(&Request::argmax(), 0, config.vocab_size).unwrap();
        let report = check(&answer, &rows, &shards, &config, SEED, DATA).unwrap();
        assert!(!report.passed && report.values == 0);
        assert_eq!(report.mistakes, ["nothing was compared: there are 0 output rows"]);
    }

    #[test]
    fn a_token_that_cannot_be_sampled_fails() {
        let request = Request::sample();
        let spoil = |id: i64| {
            passes(request, |answer| {
                let Output::Sample { ids } = &mut answer.output else { unreachable!() };
                ids[1] = if id < 0 { ids[1] } else { id };
            })
        };
        assert!(spoil(-1), "the right one");
        // One id is drawn from this row; every other is wrong.
        let wrong = (0..1000).filter(|id| !spoil(*id)).count();
        assert_eq!(wrong, 999);
    }

    #[test]
    fn wrong_logprobs_and_ranks_fail() {
        let request = Request::logprobs(3);
        type Change = fn(&mut [f32], &mut [i64], &mut [i64], &mut [f32]);
        let spoil = |change: Change| {
            passes(request, |answer| {
                let Output::Logprobs { logprobs, ranks, top_ids, top_logprobs, .. } = &mut answer.output
                else {
                    unreachable!()
                };
                change(logprobs, ranks, top_ids, top_logprobs);
            })
        };
        assert!(spoil(|_, _, _, _| ()));
        assert!(!spoil(|logprobs, _, _, _| logprobs[1] += 0.06));
        assert!(!spoil(|logprobs, _, _, _| logprobs[2] = f32::NAN));
        assert!(!spoil(|_, ranks, _, _| ranks[0] += 1));
        assert!(!spoil(|_, ranks, _, _| ranks[2] = 0));
        assert!(!spoil(|_, _, ids, _| ids.swap(0, 1)));
        assert!(!spoil(|_, _, ids, _| ids[8] = -1));
        assert!(!spoil(|_, _, _, tops| tops[4] -= 0.06));
    }
}
