//! Judges a whole answer by the reference: everything where that is little work, else a seeded sample of rows
//! and columns.

#[cfg(test)]
mod tests;
mod verdict;

pub use verdict::Verdict;

use super::{
    Accuracy, Reference, ReferenceRow, Truth, adjust_row, judge_sample, logsumexp, logsumexp_allowed,
};
use crate::config::HeadConfig;
use crate::digest::{MULTIPLIER, mix64};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::result::{DeviceInputs, OwnedAnswer, Request, RowInputs, RowStatus, TokenLogprobs};
use crate::rows::HiddenRows;
use crate::weights::HeadShard;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most multiply-adds for which everything is checked: a second or two of the naive reference.
const EVERYTHING: u128 = 1_000_000_000;
/// Rows and columns sampled from logits, and rows sampled from answers that need every column.
const SAMPLE_ROWS: usize = 16;
const SAMPLE_COLUMNS: usize = 4096;
const SAMPLE_WHOLE_ROWS: usize = 4;

/// The head and the backend whose answers are judged.
///
/// ```
/// use lmhead::backend::{Backend, HeadTypes, On, cpu::CpuBackend};
/// use lmhead::reference::Judge;
/// use lmhead::result::OwnedAnswer;
/// use lmhead::{HeadConfig, HeadGroup, HiddenRows, LmHead, Quantization, Request, RowCounts, RowInputs};
/// use lmhead::{exchange::local, head::StepOptions, weights::synthetic};
/// use std::sync::Arc;
///
/// # fn main() -> lmhead::Result<()> {
/// let preset = synthetic::preset("tiny")?;
/// let (config, dtype) = (HeadConfig::new(preset.vocab_size, preset.hidden_size), preset.dtype);
/// let ids = 0..preset.vocab_size;
/// let shard = Arc::new(synthetic::shard(&preset.spec(), 0, ids, Quantization::None, None)?);
/// let (group, backend) = (HeadGroup::data_parallel(1, 0)?, Arc::new(CpuBackend::new(None)?));
/// let exchange = Arc::new(local::group(1).remove(0));
/// let mut head = LmHead::new(&config, group, shard.clone(), exchange, backend.clone())?;
/// let row = synthetic::hidden_row(0, 0, preset.hidden_size, dtype);
/// let (hidden, inputs) = (HiddenRows::new(&row, dtype, 1, preset.hidden_size)?, RowInputs::default());
///
/// let request = Request::top_k(3);
/// let mut answer = OwnedAnswer::new(&request, 1, preset.vocab_size)?;
/// let ticket = head.begin(&RowCounts::exact(&[1]), &request, StepOptions::default())?;
/// head.run_into(ticket, hidden, &inputs, answer.buffers(), On::default())?;
///
/// let flushes = backend.flushes_subnormals(HeadTypes::of(&shard, dtype));
/// let (shards, accuracy) = (&[shard][..], backend.accuracy());
/// let judge = Judge { shards, config: &config, gaussian: true, flushes, accuracy };
/// let verdict = judge.judge(&answer, hidden, &inputs, 0)?;
/// assert!(verdict.passed, "{:?}", verdict.mistakes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// The shards in the order of their ids; together they cover the vocabulary.
    pub shards: &'a [Arc<HeadShard>],
    pub config: &'a HeadConfig,
    /// Weights and hidden rows are Gaussian: the tighter limit relative to the logits' rms holds, too.
    pub gaussian: bool,
    /// The backend flushes subnormal inputs to zero
    /// ([`Backend::flushes_subnormals`](crate::backend::Backend::flushes_subnormals)).
    pub flushes: bool,
    /// The backend's error bounds ([`Backend::accuracy`](crate::backend::Backend::accuracy)).
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

impl Judge<'_> {
    /// Judges the answer to the output rows of `hidden` with `inputs`, all in host memory. Everything is
    /// compared where the naive products take a second or two, else rows and columns that `seed` chooses.
    /// Runs on the threads of rayon's current pool.
    ///
    /// # Errors
    /// `Shape` where shards, rows and answer do not belong together, or something is in device memory; as
    /// [`RowInputs::check`] and [`Adjustments::check`](crate::adjust::Adjustments::check). A wrong answer is
    /// no error: the [`Verdict`] names its mistakes.
    pub fn judge(
        &self,
        answer: &OwnedAnswer,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        seed: u64,
    ) -> Result<Verdict> {
        self.check(answer, &hidden, inputs)?;
        let (rows, vocab_size) = (answer.rows(), self.config.vocab_size);
        // Whether a row allows any id needs all columns.
        let all_columns = !matches!(answer.request, Request::Logits { .. }) || inputs.adjustments.is_some();
        let work = rows as u128 * vocab_size as u128 * self.config.hidden_size as u128;
        let everything = work <= EVERYTHING;
        let mut sample = Sample(seed);
        let row_limit = if all_columns { SAMPLE_WHOLE_ROWS } else { SAMPLE_ROWS };
        let chosen_rows = if everything { (0..rows).collect() } else { sample.of(rows, row_limit, []) };
        let columns: Vec<usize> = if everything || all_columns {
            (0..vocab_size).collect()
        } else {
            let full = self.shards.iter().map(|shard| shard.vocab()).filter(|ids| !ids.is_empty());
            sample.of(vocab_size, SAMPLE_COLUMNS, full.flat_map(|ids| [ids.start, ids.end - 1]))
        };
        let rms_limit = self.accuracy.of_rms(self.config.hidden_size);
        let mut verdict = Verdict::new(everything, chosen_rows.len(), rms_limit);
        for row in chosen_rows {
            self.judge_row(row, answer, &hidden, inputs, &columns, &mut verdict)?;
        }
        if verdict.values == 0 {
            verdict.mistake(format!("nothing was compared: there are {rows} output rows"));
        }
        let plain = self.config.final_logit_softcapping.is_none() && self.config.logit_scale == 1.0;
        if self.gaussian && plain && inputs.adjustments.is_none() {
            verdict.judge_rms();
        }
        Ok(verdict)
    }

    /// Checks that all that is judged belongs together.
    fn check(&self, answer: &OwnedAnswer, hidden: &HiddenRows<'_>, inputs: &RowInputs<'_>) -> Result<()> {
        let (rows, vocab_size) = (answer.rows(), self.config.vocab_size);
        let after =
            |next: usize, shard: &Arc<HeadShard>| (shard.vocab().start == next).then_some(shard.vocab().end);
        if self.shards.iter().try_fold(0, after) != Some(vocab_size) || answer.vocab_size != vocab_size {
            let shards: Vec<_> = self.shards.iter().map(|shard| shard.vocab()).collect();
            let wanted = format!("those of ids 0..{vocab_size}, in this order, and an answer over these ids");
            let got = format!("{shards:?}, and an answer over {} ids", answer.vocab_size);
            return Err(Error::shape("shards", wanted, got, "pass all shards of one group"));
        }
        if rows != hidden.len() {
            let fix = "pass the rows that are answered";
            return Err(Error::shape("hidden_states", format!("{rows} rows"), hidden.len(), fix));
        }
        hidden.source().0.check_memory("hidden_states", Memory::Host)?;
        if inputs.on_device != DeviceInputs::default() {
            let fix = "pass them in host memory";
            return Err(Error::shape("inputs", Memory::Host, "device memory", fix));
        }
        inputs.check(&answer.request, rows, vocab_size)?;
        inputs.adjustments.map_or(Ok(()), |adjustments| adjustments.check(rows, vocab_size))
    }

    fn judge_row(
        &self,
        row: usize,
        answer: &OwnedAnswer,
        hidden: &HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        columns: &[usize],
        verdict: &mut Verdict,
    ) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        let delivered = if let Request::Logits { dtype } = answer.request { dtype } else { DType::F32 };
        // Without raw logprobs they are those of the adjusted logits, as the tokens are.
        let raw_logprobs = matches!(
            answer.request,
            Request::Sample { logprobs: Some(TokenLogprobs { processed: false, .. }) }
        );
        let judged = |columns: &[usize]| -> Result<RowTruths> {
            let (mut truths, finite) = self.truths(hidden.row(row), hidden.dtype(), columns)?;
            let overflow = if finite { Overflow::of_raw(&truths) } else { Overflow::Surely };
            let mut raw = None;
            if let Some(adjustments) = &inputs.adjustments {
                raw = raw_logprobs.then(|| truths.clone());
                adjust_row(&mut truths, columns, adjustments, row, vocab_size);
            }
            let overflow = overflow.max(Overflow::of_delivered(&truths, delivered));
            Ok(RowTruths { truths, raw, overflow })
        };
        let forbidden = |truths: &[Truth]| truths.iter().all(|t| t.logit == f64::NEG_INFINITY);
        let RowTruths { truths, raw, mut overflow } = judged(columns)?;
        let (status, mut nothing) = (answer.row_status(row), forbidden(&truths));
        let unsure = nothing || (overflow != Overflow::Surely && status != RowStatus::Good);
        if unsure && columns.len() < vocab_size {
            // An id outside the sample may overflow or be allowed: look at every column.
            let every: Vec<usize> = (0..vocab_size).collect();
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
            verdict.mistake(format!("row {row}: status {status:?}, wanted {should_be:?}"));
            return Ok(());
        }
        let ids = answer.row(&answer.ids, row);
        match answer.request {
            // Logits are delivered whatever the row's status, so non-finite ones must match the truth too.
            Request::Logits { dtype } => {
                let own = answer.row(&answer.logits, row);
                for (&id, truth) in columns.iter().zip(&truths) {
                    let good = should_be == RowStatus::Good;
                    verdict.logit((row, id), f64::from(dtype.read(own, id)), truth, dtype, good);
                }
            }
            _ if should_be != RowStatus::Good => verdict.unanswered(row, answer),
            Request::Argmax => verdict.best(row, &truths, ids, None),
            Request::TopK { .. } => {
                verdict.best(row, &truths, ids, Some(answer.row(&answer.values, row)));
                let (truth, moved) = logsumexp_and_error(&truths);
                let allowed = logsumexp_allowed(truth, truths.len()) + moved;
                let got = f64::from(answer.logsumexp[row]);
                verdict.value((got - truth).abs(), allowed, || {
                    format!("row {row}: logsumexp {got}, truth {truth}")
                });
            }
            Request::Logprobs { targets, .. } => {
                let own = &inputs.targets.unwrap_or_default()[row * targets..(row + 1) * targets];
                verdict.logprobs(row, &truths, own, answer);
            }
            Request::Sample { logprobs } => {
                let params = inputs.sampling.unwrap_or_default()[row];
                verdict.values += 1;
                match judge_sample(&truths, &params, ids[0]) {
                    Err(text) => verdict.mistake(format!("row {row}: {text}")),
                    Ok(()) if logprobs.is_some() => {
                        verdict.logprobs(row, raw.as_deref().unwrap_or(&truths), ids, answer);
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    /// The true logits of one row at `columns` (ascending), and whether the row's own values are finite.
    fn truths(&self, row: &[u8], dtype: DType, columns: &[usize]) -> Result<(Vec<Truth>, bool)> {
        let prepared: Vec<(Reference, ReferenceRow)> = self
            .shards
            .iter()
            .map(|shard| {
                let reference = Reference::new(shard, self.config.epilogue());
                let reference = reference.flushing(self.flushes).accurate_as(self.accuracy);
                reference.row(row, dtype).map(|row| (reference, row))
            })
            .collect::<Result<_>>()?;
        let finite = prepared.iter().all(|(reference, row)| reference.is_finite(row));
        let truth = |&id: &usize| {
            let at = self.shards.partition_point(|shard| shard.vocab().end <= id);
            let (reference, row) = &prepared[at];
            reference.logit(row, id - self.shards[at].vocab().start)
        };
        Ok((columns.par_iter().map(truth).collect(), finite))
    }
}

/// The logsumexp of a row's true logits, and the most that their errors move it: an error of the logits moves
/// it by at most its softmax-weighted mean.
fn logsumexp_and_error(truths: &[Truth]) -> (f64, f64) {
    let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
    let truth = logsumexp(&logits);
    (truth, truths.iter().map(|t| (t.logit - truth).exp() * t.allowed).sum())
}

/// A seeded random sample (SplitMix64).
struct Sample(u64);

impl Sample {
    fn next(&mut self) -> u64 {
        let number = mix64(self.0);
        self.0 = self.0.wrapping_add(MULTIPLIER);
        number
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
