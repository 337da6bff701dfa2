//! Adjustments: what a request changes in a row's logits before they are compared or summed. Masks, logit
//! bias, penalties.
//!
//! Adjustments come after the epilogue (dequantise -> bias -> softcap -> scale) and before everything else:
//! candidates, sums, output rounding. Their order is that of vLLM's sampler (`v1/sample/sampler.py`:
//! whitelist, logit bias, penalties) and of Hugging Face's `_get_logits_processor` (sequence bias, then
//! repetition penalty):
//!
//! 1. **logit bias**: `l += value`; values for the same id are added in the order given;
//! 2. **penalties**: repetition on ids of the prompt or the output, `l > 0 ? l / r : l * r` (Keskar et al.,
//!    "CTRL", 2019; Hugging Face `RepetitionPenaltyLogitsProcessor`; vLLM `apply_repetition_penalties`), then
//!    `l -= frequency * count`, then `l -= presence` where `count > 0`; `count` is that of the output alone
//!    (OpenAI's definition; vLLM `apply_penalties`);
//! 3. **mask**: ids that are not allowed become minus infinity. (The mask could come first as well: the other
//!    two keep minus infinity as it is.)
//!
//! Every operation is one f32 operation, rounded on its own. Minus infinity is a legal result and means "not
//! allowed"; plus infinity or NaN makes the row's status 1. So do raw logits that are not finite, even those
//! of ids that the mask forbids.
//!
//! ```
//! # use lmhead::backend::cpu::CpuBackend;
//! # use lmhead::{weights::synthetic, Adjustments, HeadConfig, HeadGroup, HiddenRows, LmHead, Output};
//! # use lmhead::{Quantization, Request, RowCounts, RowInputs};
//! # use std::sync::Arc;
//! # fn main() -> lmhead::Result<()> {
//! # let preset = synthetic::preset("tiny")?;
//! # let shard = synthetic::shard(&preset.spec(), 0, 0..preset.vocab_size, Quantization::None, None)?;
//! # let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
//! # let exchange = Arc::new(lmhead::exchange::local::group(1).remove(0));
//! # let group = HeadGroup::data_parallel(1, 0)?;
//! # let backend = Arc::new(CpuBackend::new(None)?);
//! # let mut head = LmHead::new(&config, group, Arc::new(shard), exchange, backend)?;
//! # let row = synthetic::hidden_row(0, 0, preset.hidden_size, preset.dtype);
//! # let hidden = HiddenRows::new(&row, preset.dtype, 1, preset.hidden_size)?;
//! let mut mask = vec![0i32; preset.vocab_size.div_ceil(32)]; // one row
//! mask[700 / 32] |= 1 << (700 % 32); // of which only id 700 is allowed
//! // Every rank of the group says so.
//! let step = head.step_adjusted(RowCounts::exact(&[1]), &Request::argmax())?;
//! let inputs = RowInputs { adjustments: Some(Adjustments::allowed(&mask)), ..RowInputs::default() };
//! let answer = step.run_with(hidden, &inputs)?;
//! assert_eq!(answer.output, Output::Argmax { ids: vec![700] });
//! # Ok(())
//! # }
//! ```
//!
//! An engine passes [`Adjustments`] for its own rows over the whole vocabulary; each shard is sent only its
//! slice ([`ShardAdjustments`]).

mod device;
mod shard;

pub use device::DeviceAdjustments;
pub(crate) use shard::PackedAt;
pub use shard::ShardAdjustments;

use crate::error::{Error, Result};
use std::ops::Range;

/// Adjustments of the rows that one rank brings: `rows` is the number of its hidden rows, after any
/// selection. A kind that is absent changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Adjustments<'a> {
    /// Bitmask `[rows, ceil(vocab_size / 32)]`, row-major: bit `id % 32` of word `id / 32` is 1 where the id
    /// is allowed. The layout of xgrammar's and llguidance's token bitmasks. Bits beyond the vocabulary are
    /// ignored.
    pub allowed: Option<&'a [i32]>,
    pub logit_bias: Option<LogitBias<'a>>,
    pub penalties: Option<Penalties<'a>>,
}

/// Values added to single logits (logit bias), by row (CSR).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitBias<'a> {
    /// `[rows + 1]`: row i has entries `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [usize],
    /// `[entries]`, in any order.
    pub ids: &'a [i64],
    /// `[entries]`: finite, or minus infinity, which forbids the id.
    pub values: &'a [f32],
}

/// Penalties on ids that already occurred in the prompt or the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties<'a> {
    /// `[rows]`, finite and above 0; 1 changes nothing.
    pub repetition: &'a [f32],
    /// `[rows]`, finite; 0 changes nothing.
    pub frequency: &'a [f32],
    /// `[rows]`, finite; 0 changes nothing.
    pub presence: &'a [f32],
    pub counts: Counts<'a>,
}

/// The ids that already occurred, by row (CSR). Each id at most once in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts<'a> {
    /// `[rows + 1]`: row i has entries `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [usize],
    /// `[entries]`, in any order.
    pub ids: &'a [i64],
    /// `[entries]`: how often the id occurs in the output so far, at most 2^31 − 1.
    pub counts: &'a [u32],
    /// `[entries]`: whether the id occurs in the prompt.
    pub in_prompt: &'a [bool],
}

impl<'a> Adjustments<'a> {
    /// A mask alone.
    pub fn allowed(mask: &'a [i32]) -> Self {
        Adjustments { allowed: Some(mask), ..Adjustments::default() }
    }

    /// Checks everything against the rows and the vocabulary.
    ///
    /// # Errors
    /// `Shape` where a length does not fit; `Request` naming the row and the id of a value that is not legal.
    pub fn check(&self, rows: usize, vocab_size: usize) -> Result<()> {
        self.check_with(rows, vocab_size, &mut Vec::new())
    }

    /// [`Adjustments::check`] with reused memory: `sorted` holds the ids of one row.
    pub(crate) fn check_with(&self, rows: usize, vocab_size: usize, sorted: &mut Vec<i64>) -> Result<()> {
        let words = vocab_size.div_ceil(32);
        if let Some(mask) = self.allowed
            && rows.checked_mul(words) != Some(mask.len())
        {
            return Err(Error::shape(
                "allowed",
                format!("[{rows}, {words}] i32, a bit for each id of {vocab_size}"),
                format!("{} words", mask.len()),
                "pass one row of the mask for each output row",
            ));
        }
        if let Some(a) = &self.logit_bias {
            check_csr("logit_bias", a.offsets, a.ids, rows, vocab_size)?;
            check_length("logit_bias: values", a.values.len(), a.ids.len(), "one for each id")?;
            if let Some(at) = a.values.iter().position(|v| v.is_nan() || *v == f32::INFINITY) {
                return Err(Error::request(
                    format!("logit_bias: value of row {}, id {}", row_of(a.offsets, at), a.ids[at]),
                    "a finite number or minus infinity",
                    a.values[at],
                    "leave out the entry, or forbid the id with minus infinity",
                ));
            }
        }
        if let Some(p) = &self.penalties {
            p.check(rows, vocab_size, sorted)?;
        }
        Ok(())
    }

    /// True where there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.allowed.is_none() && self.logit_bias.is_none() && self.penalties.is_none()
    }

    /// The adjustments of `rows` for the ids `vocab`, as bytes for [`ShardAdjustments::push_encoded`].
    /// `vocab` starts at a multiple of 32 or is empty. The adjustments must have passed `check`.
    pub fn encode(&self, rows: Range<usize>, vocab: Range<usize>, vocab_size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(rows, vocab, vocab_size, &mut out, &mut Vec::new());
        out
    }

    /// [`Adjustments::encode`], appended to `out`; `entries` is reused memory for the entries of one row.
    pub(crate) fn encode_into(
        &self,
        rows: Range<usize>,
        vocab: Range<usize>,
        vocab_size: usize,
        out: &mut Vec<u8>,
        entries: &mut Vec<usize>,
    ) {
        shard::encode(self, rows, vocab, vocab_size, out, entries);
    }
}

impl Penalties<'_> {
    fn check(&self, rows: usize, vocab_size: usize, sorted: &mut Vec<i64>) -> Result<()> {
        for (name, values, least) in [
            ("penalties: repetition", self.repetition, f32::MIN_POSITIVE),
            ("penalties: frequency", self.frequency, f32::MIN),
            ("penalties: presence", self.presence, f32::MIN),
        ] {
            check_length(name, values.len(), rows, "one for each row")?;
            if let Some(row) = values.iter().position(|v| !(v.is_finite() && *v >= least)) {
                let (wanted, neutral) = match name {
                    "penalties: repetition" => ("a finite number above 0", 1),
                    _ => ("a finite number", 0),
                };
                return Err(Error::request(
                    format!("{name} of row {row}"),
                    wanted,
                    values[row],
                    format!("{neutral} changes nothing"),
                ));
            }
        }
        let c = &self.counts;
        check_csr("penalties: counts", c.offsets, c.ids, rows, vocab_size)?;
        check_length("penalties: counts", c.counts.len(), c.ids.len(), "one for each id")?;
        check_length("penalties: in_prompt", c.in_prompt.len(), c.ids.len(), "one for each id")?;
        if let Some(at) = c.counts.iter().position(|&n| n > i32::MAX as u32) {
            return Err(Error::request(
                format!("penalties: count of row {}, id {}", row_of(c.offsets, at), c.ids[at]),
                format!("at most {}", i32::MAX),
                c.counts[at],
                "count the tokens of one output",
            ));
        }
        for row in 0..rows {
            let ids = &c.ids[c.offsets[row]..c.offsets[row + 1]];
            if ids.is_sorted_by(|a, b| a < b) {
                continue;
            }
            sorted.clear();
            sorted.extend_from_slice(ids);
            sorted.sort_unstable();
            if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::request(
                    format!("penalties: counts of row {row}"),
                    "each id once",
                    format!("id {} more than once", twice[0]),
                    "add the counts of an id up",
                ));
            }
        }
        Ok(())
    }
}

fn check_length(what: &str, got: usize, wanted: usize, each: &str) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::shape(what, format!("{wanted} values, {each}"), got, "make the arrays fit each other"))
}

fn check_csr(what: &str, offsets: &[usize], ids: &[i64], rows: usize, vocab_size: usize) -> Result<()> {
    let good = offsets.len() == rows + 1
        && offsets.first() == Some(&0)
        && offsets.last() == Some(&ids.len())
        && offsets.is_sorted();
    if !good {
        return Err(Error::shape(
            format!("{what}: offsets"),
            format!("{} ascending numbers from 0 to the {} entries", rows as u128 + 1, ids.len()),
            format!(
                "{} numbers from {:?} to {:?}{}",
                offsets.len(),
                offsets.first(),
                offsets.last(),
                if offsets.is_sorted() { "" } else { ", not ascending" }
            ),
            "pass rows + 1 offsets; rows without entries repeat theirs",
        ));
    }
    if let Some(at) = ids.iter().position(|&id| !in_vocabulary(id, vocab_size)) {
        return Err(Error::request(
            format!("{what}: id of row {}", row_of(offsets, at)),
            format!("an id from 0 to {}", vocab_size - 1),
            ids[at],
            "leave out ids beyond the vocabulary",
        ));
    }
    Ok(())
}

/// True for an id of the vocabulary.
pub(crate) fn in_vocabulary(id: i64, vocab_size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < vocab_size)
}

/// The row that has entry `at`.
fn row_of(offsets: &[usize], at: usize) -> usize {
    offsets.partition_point(|&first| first <= at) - 1
}

#[cfg(test)]
mod tests;
