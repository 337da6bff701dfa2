//! `--check`: the answer against the float64 reference. Everything when the run is small, a seeded sample of rows and columns
//! when it is large.

mod report;
#[cfg(test)]
mod tests;

pub use report::CheckReport;

use crate::assembled::Assembled;
use crate::input::Rows;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::reference::{self, Accuracy, Reference, ReferenceRow, Truth};
use lmhead::result::{Output, RowStatus};
use lmhead::weights::HeadShard;
use rayon::prelude::*;
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
