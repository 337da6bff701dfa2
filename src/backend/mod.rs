//! Where the arithmetic runs. A backend knows rows and a shard; it does not know that there are other ranks.

pub mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "the driver's interface")]
pub mod cuda;
#[allow(unsafe_code, reason = "launches and copies that the device does later")]
pub mod device;
#[allow(unsafe_code, reason = "that structs of both languages are one")]
pub mod params;
pub mod tensor_map;

use crate::adjust::ShardAdjustments;
use crate::config::Quantization;
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::merge::{Candidate, PartialSpec, RowPartial};
use crate::reference::Accuracy;
use crate::rows::HiddenRows;
use crate::sampling::SamplingParams;
use crate::sampling::cut::{Digit, Kept, Sum};
use crate::weights::HeadShard;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// One matmul with its epilogue: `[rows.len(), hidden] x [shard rows, hidden]ᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    pub rows: HiddenRows<'a>,
    pub shard: &'a HeadShard,
    pub epilogue: Epilogue,
    /// Applied after the epilogue, row by row; as many rows as `rows`, for the shard's vocabulary.
    pub adjustments: Option<&'a ShardAdjustments>,
}

/// Logits of one job as they leave the backend: row `i` occupies
/// `bytes[i * stride..][..shard.vocab().len() * dtype.size()]`; the rest of a stride is left as it was.
#[derive(Debug)]
pub struct LogitsOut<'a> {
    pub bytes: &'a mut [u8],
    pub stride: usize,
    pub dtype: DType,
    /// `[rows]`: set to true where an f32 logit (before rounding to `dtype`) is NaN or infinite; minus infinity from an
    /// adjustment is legal.
    pub nonfinite: &'a mut [bool],
    /// `[rows]`, where asked for: set to true where an f32 logit is above minus infinity.
    pub any_allowed: Option<&'a mut [bool]>,
}

/// Logits of some rows over a shard, and what is to be known of them.
#[derive(Debug)]
pub struct Tally<'a> {
    /// `[rows, vocab.len()]`, as [`Backend::logits`] computed them in f32.
    pub logits: &'a [f32],
    pub vocab: std::ops::Range<usize>,
    /// `[rows]`: the flags that came with them.
    pub nonfinite: &'a [bool],
    /// `[rows]`: the id and the logit that the others are compared with; the id may be another shard's.
    pub targets: &'a [Candidate],
    pub spec: PartialSpec,
    /// `[rows]`, overwritten: as of [`Backend::partials`].
    pub partials: &'a mut [RowPartial],
    /// `[rows]`, overwritten: how many ids of the shard beat the target.
    pub better: &'a mut [u32],
}

/// Logits of some rows over a shard, in f32, as [`Backend::logits`] computed them.
#[derive(Debug, Clone)]
pub struct HeldLogits<'a> {
    /// `[rows, vocab.len()]`
    pub logits: &'a [f32],
    pub vocab: std::ops::Range<usize>,
    /// `[rows]`: the flags that came with them.
    pub nonfinite: &'a [bool],
}

/// One pass of [sampling](crate::sampling) over held logits. Rows are numbers of held rows.
#[derive(Debug)]
pub enum SamplingPass<'a> {
    /// The largest logit of each row: minus infinity where nothing is allowed, NaN where a logit is not finite.
    Maxima { rows: &'a [usize], out: &'a mut [f32] },
    /// For each query a histogram, of as many words as its digit has [bins](Digit::bins). All queries of a
    /// pass ask for the same digit.
    Histograms { queries: &'a [HistogramQuery], out: &'a mut [u64] },
    /// For each query the end of the ids that belong to the first `allowance` kept ids with that logit; 0 for none.
    Ties { queries: &'a [TiesQuery], out: &'a mut [u32] },
    /// For each row, one after the other in `out`, the candidates that are wanted of it, in any order; places that are left hold minus
    /// infinity. A row that is not finite has NaN in its first place.
    Candidates { rows: &'a [(usize, Wanted)], out: &'a mut [Candidate] },
}

/// What candidates of a row are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// The k with the largest logits: k places, of a shard that has as many ids.
    Best { k: usize },
    /// The one with the largest score, among what is kept: one place. `None` keeps all.
    Drawn { params: SamplingParams, kept: Option<Kept> },
}

impl Wanted {
    /// Candidates in the answer.
    pub fn places(&self) -> usize {
        match self {
            Wanted::Best { k } => *k,
            Wanted::Drawn { .. } => 1,
        }
    }
}

/// A question for ids that tie with the last logit that is kept.
#[derive(Debug, Clone, Copy)]
pub struct TiesQuery {
    pub row: usize,
    pub kept: Kept,
    pub logit: f32,
    pub allowance: u32,
}

/// A histogram over one digit of the order keys of a row's kept logits.
#[derive(Debug, Clone, Copy)]
pub struct HistogramQuery {
    pub row: usize,
    pub kept: Kept,
    pub sum: Sum,
    /// The digit that is counted, of logits whose keys begin with the bits of `key` above it.
    pub digit: Digit,
    pub key: u32,
}

/// What a backend keeps for a head: gone when this is dropped.
#[derive(Clone, Default)]
pub struct Resident(#[allow(dead_code, reason = "only dropped")] Option<Arc<dyn Any + Send + Sync>>);

impl Resident {
    pub fn new(kept: Arc<dyn Any + Send + Sync>) -> Self {
        Resident(Some(kept))
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Resident(kept)" } else { "Resident(nothing)" })
    }
}

/// What decides how a head is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadTypes {
    pub weights: DType,
    pub quantization: Quantization,
    /// Of the hidden states.
    pub hidden: DType,
}

impl HeadTypes {
    /// The types of a shard and of hidden states.
    pub fn of(shard: &HeadShard, hidden: DType) -> Self {
        HeadTypes { weights: shard.matrix().dtype(), quantization: shard.quantization(), hidden }
    }
}

/// One kind of device. The bits of a row's answer depend on [`Backend::fingerprint`] alone, never on the rows
/// around it, their number, the shard's boundaries or the number of threads (promise 1).
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, ...
    fn name(&self) -> &'static str;

    /// Architecture, instruction set and kernel version for heads of these types: ranks whose texts differ may not share a group,
    /// since their bits may differ.
    fn fingerprint(&self, types: HeadTypes) -> String;

    /// Whether subnormal numbers (below 2^-126) count as zeros among the inputs and sums of heads of these types, as some hardware
    /// has it.
    fn flushes_subnormals(&self, types: HeadTypes) -> bool {
        let _ = types;
        false
    }

    /// How far a raw f32 logit of 16-bit or f32 inputs may be from float64.
    fn accuracy(&self) -> Accuracy {
        Accuracy::Rounded
    }

    /// Checks once, at creation of a head, that this backend can run `shard` with `hidden` states.
    ///
    /// # Errors
    /// `Unsupported` or `Dtype`, saying which backend takes them.
    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()>;

    /// Brings the weights to where products read them, once, at creation of a head that keeps what is returned as long as it lives.
    /// Jobs over a shard that nobody prepared are as right; where weights have to travel, the first is slower, and others may be.
    ///
    /// # Errors
    /// `Device` or `Unsupported` where that is not possible, as where memory is short.
    fn prepare(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Resident> {
        let _ = (shard, hidden);
        Ok(Resident::default())
    }

    /// Gives back memory that is kept from job to job and can be had again: scratch, never weights.
    fn release_memory(&self) {}

    /// All logits of the job.
    ///
    /// # Errors
    /// When the device fails. Sizes are the caller's to get right.
    fn logits(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()>;

    /// Per row what `spec` asks for, over the shard's vocabulary only; full logits are never held.
    /// `out[i]` is overwritten.
    ///
    /// # Errors
    /// When the device fails.
    fn partials(&self, job: &Job<'_>, spec: PartialSpec, out: &mut [RowPartial]) -> Result<()>;

    /// The partials of logits that are held, and how many of them beat the row's target.
    ///
    /// # Errors
    /// When the device fails. Sizes are the caller's to get right.
    fn tally(&self, tally: Tally<'_>) -> Result<()>;

    /// One pass of sampling over logits that are held.
    ///
    /// # Errors
    /// When the device fails. Sizes are the caller's to get right.
    fn sample(&self, held: &HeldLogits<'_>, pass: SamplingPass<'_>) -> Result<()>;
}

/// What both calls ask of a job.
pub(crate) fn check_job(job: &Job<'_>, rows: usize, out_rows: usize) -> Result<()> {
    if job.rows.hidden() != job.shard.hidden_size() {
        return Err(Error::shape(
            "hidden_states",
            format!("{} columns", job.shard.hidden_size()),
            job.rows.hidden(),
            "use the hidden states of this head's model",
        ));
    }
    if !job.shard.takes(job.rows.dtype()) {
        let fix = "check() the backend when the head is made";
        return Err(Error::dtype("hidden_states", "f32, f16 or bf16", job.rows.dtype(), fix));
    }
    if rows != out_rows {
        return Err(Error::shape("output rows", rows, out_rows, "pass one for each selected row"));
    }
    if let Some(adjustments) = job.adjustments
        && adjustments.len() != rows
    {
        let fix = "slice them for the rows of the job";
        return Err(Error::shape("rows of the adjustments", rows, adjustments.len(), fix));
    }
    Ok(())
}

/// What a place for logits must be; the bytes of one row.
pub(crate) fn check_logits(out: &LogitsOut<'_>, rows: usize, columns: usize) -> Result<usize> {
    let size = out.dtype.size();
    let row_bytes = columns * size;
    let needed = rows.checked_sub(1).map_or(Some(0), |before| {
        before.checked_mul(out.stride).and_then(|bytes| bytes.checked_add(row_bytes))
    });
    if out.dtype == DType::I8 {
        let fix = "logits are rounded to a float type";
        return Err(Error::dtype("logits", "f32, f16 or bf16", out.dtype, fix));
    }
    if out.stride < row_bytes || needed.is_none_or(|needed| needed > out.bytes.len()) {
        return Err(Error::shape(
            "logits",
            format!("{rows} rows of {row_bytes} bytes"),
            format!("{} bytes, {} a row", out.bytes.len(), out.stride),
            "allocate rows x stride bytes",
        ));
    }
    Ok(row_bytes)
}

/// Shards begin at multiples of 64 ids: a word of a mask has 32 ids, a kernel's tile 64 or 128. No sum depends on it.
pub(crate) fn check_boundaries(shard: &HeadShard) -> Result<()> {
    let vocab = shard.vocab();
    let whole = vocab.start.is_multiple_of(BLOCK)
        && (vocab.end.is_multiple_of(BLOCK) || vocab.end == shard.vocab_size());
    if !whole && !vocab.is_empty() {
        return Err(Error::shape(
            "shard",
            format!("boundaries that are multiples of {BLOCK}, or the end of the vocabulary"),
            format!("{}..{} of {}", vocab.start, vocab.end, shard.vocab_size()),
            "cut shards with layout::shard_range",
        ));
    }
    Ok(())
}
