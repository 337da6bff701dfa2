//! Where the arithmetic runs. A backend knows rows and a shard; it does not know that there are other ranks.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod params;

use crate::adjust::ShardAdjustments;
use crate::config::Quantization;
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::Result;
use crate::merge::{Candidate, PartialSpec, RowPartial};
use crate::rows::HiddenRows;
use crate::sampling::SamplingParams;
use crate::sampling::cut::{Kept, Sum};
use crate::weights::HeadShard;

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
    /// For each query a histogram of [`BINS`](crate::sampling::cut::BINS) words.
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

/// A histogram over one byte of the order keys of a row's kept logits.
#[derive(Debug, Clone, Copy)]
pub struct HistogramQuery {
    pub row: usize,
    pub kept: Kept,
    pub sum: Sum,
    /// Byte `step` from the top is counted, of logits whose keys begin with the bytes of `key` above it.
    pub step: u32,
    pub key: u32,
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

    /// Checks once, at creation of a head, that this backend can run `shard` with `hidden` states.
    ///
    /// # Errors
    /// `Unsupported` or `Dtype`, saying which backend takes them.
    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()>;

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
