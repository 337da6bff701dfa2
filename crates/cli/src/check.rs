//! `--check`: compares the answer with the float64 reference: everything when the run is small, else a seeded
//! sample of rows and columns.

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
use lmhead::result::{Output, Request, RowStatus, TokenLogprobs};
use lmhead::weights::HeadShard;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most multiply-adds for which everything is checked: a second or two of the naive reference.
const EVERYTHING: u128 = 1_000_000_000;
/// Rows and columns sampled from logits, and rows sampled from answers that need every column.
const SAMPLE_ROWS: usize = 16;
const SAMPLE_COLUMNS: usize = 4096;
const SAMPLE_WHOLE_ROWS: usize = 4;

/// Properties of the data and the backend that the limits depend on.
#[derive(Clone, Copy)]
pub struct Data {
    /// The data is Gaussian, so that the tighter limit relative to the rms holds too.
    pub gaussian: bool,
    /// The backend flushes subnormal inputs to zero.
    pub flushes: bool,
    /// The backend's error bounds.
    pub accuracy: Accuracy,
}

/// The true logits of a row.
struct RowTruths {
    /// Logits with adjustments.
    truths: Vec<Truth>,
    /// Raw logits, where they differ and their logprobs are wanted.
    raw: Option<Vec<Truth>>,
    overflow: Overflow,
}

/// Whether a row has a logit that is not finite.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Overflow {
    No,
    /// A logit is so near the limit that it may or may not round to infinity.
    Perhaps,
    Surely,
}

impl Overflow {
    /// For f32 logits before adjustments.
    fn of_raw(truths: &[Truth]) -> Self {
        if truths.iter().any(Truth::may_overflow) { Overflow::Surely } else { Overflow::No }
    }

    /// For logits as delivered in `dtype`. Minus infinity from an adjustment is legal.
    fn of_delivered(truths: &[Truth], dtype: DType) -> Self {
        let limit = dtype.rounds_to_infinity();
        let of = |t: &Truth| match t.logit {
            f64::NEG_INFINITY => Overflow::No,
            _ if t.logit.abs() - t.allowed >= limit => Overflow::Surely,
            _ if t.logit + t.allowed >= f64::from(f32::MAX) => Overflow::Surely,
            _ if t.logit.abs() + t.allowed >= limit => Overflow::Perhaps,
            _ => Overflow::No,
        };
        truths.iter().map(of).max().unwrap_or(Overflow::No)
    }
}

/// Compares `answer`, the answer to `request`, with the reference over `shards`, which together cover the
/// vocabulary.
pub fn check(
    answer: &Assembled,
    request: &Request,
    rows: &Rows,
    shards: &[Arc<HeadShard>],
    config: &HeadConfig,
    seed: u64,
    data: Data,
) -> Result<CheckReport> {
    // Without raw logprobs they are those of the adjusted logits, as the tokens are.
    let raw_logprobs =
        matches!(request, Request::Sample { logprobs: Some(TokenLogprobs { processed: false, .. }) });
    // Whether a row allows any id needs all columns.
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
    let delivered = if let Output::Logits { dtype, .. } = answer.output { dtype } else { DType::F32 };
    let plain = config.final_logit_softcapping.is_none() && config.logit_scale == 1.0;
    let (mut squares, mut largest, mut counted) = (0.0f64, 0.0f64, 0u64);
    for &row in &chosen_rows {
        let bytes = &rows.bytes[rows.hidden_of(row) * size..][..size];
        let judged = |columns: &[usize]| -> Result<RowTruths> {
            let (mut adjusted, finite) = truths(shards, config, bytes, rows.dtype, columns, data)?;
            let mut overflow = if finite { Overflow::of_raw(&adjusted) } else { Overflow::Surely };
            let mut raw = None;
            rows.data.with(|inputs| {
                if let Some(adjustments) = &inputs.adjustments {
                    raw = raw_logprobs.then(|| adjusted.clone());
                    reference::adjust_row(&mut adjusted, columns, adjustments, row, config.vocab_size);
                }
            });
            overflow = overflow.max(Overflow::of_delivered(&adjusted, delivered));
            Ok(RowTruths { truths: adjusted, raw, overflow })
        };
        let forbidden = |truths: &[Truth]| truths.iter().all(|t| t.logit == f64::NEG_INFINITY);
        let RowTruths { truths, raw, mut overflow } = judged(&columns)?;
        let (status, mut nothing) = (answer.status(row), forbidden(&truths));
        let unsure = nothing || (overflow != Overflow::Surely && status != RowStatus::Good);
        if unsure && columns.len() < config.vocab_size {
            // An id outside the sample may overflow or be allowed: look at every column.
            let every: Vec<usize> = (0..config.vocab_size).collect();
            let all = judged(&every)?;
            (overflow, nothing) = (all.overflow, forbidden(&all.truths));
        }
        let without_overflow = if nothing { RowStatus::NothingAllowed } else { RowStatus::Good };
        let should_be = match overflow {
            Overflow::Surely => RowStatus::NonFinite,
            Overflow::Perhaps if status == RowStatus::NonFinite => RowStatus::NonFinite,
            _ => without_overflow,
        };
        if status != should_be {
            report.mistake(format!("row {row}: status {status:?}, wanted {should_be:?}"));
            continue;
        }
        match &answer.output {
            // Logits are delivered whatever the row's status, so non-finite ones must match the truth too.
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
                // An error of the logits moves the sum by at most its softmax-weighted mean.
                let moved: f64 = truths.iter().map(|t| (t.logit - truth).exp() * t.allowed).sum();
                let allowed = reference::logsumexp_allowed(truth, logits.len()) + moved;
                let got = f64::from(logsumexp[row]);
                report.value((got - truth).abs(), allowed, || {
                    format!("row {row}: logsumexp {got}, truth {truth}")
                });
            }
            Output::Logprobs(told) => rows.data.with(|inputs| {
                let targets = inputs.targets.expect("logprobs are asked for of targets");
                let own = &targets[row * told.targets..(row + 1) * told.targets];
                report.logprobs(row, &truths, own, told);
            }),
            Output::Sample { ids, logprobs } => {
                let params =
                    rows.data.with(|inputs| inputs.sampling.expect("a request to sample has them")[row]);
                report.values += 1;
                match (reference::judge_sample(&truths, &params, ids[row]), logprobs) {
                    (Err(text), _) => report.mistake(format!("row {row}: {text}")),
                    (Ok(()), Some(told)) => {
                        let of = raw.as_deref().unwrap_or(&truths);
                        report.logprobs(row, of, &ids[row..=row], told);
                    }
                    (Ok(()), None) => {}
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

/// The true logits of one row at `columns` (ascending).
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

/// A seeded random sample (SplitMix64).
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
