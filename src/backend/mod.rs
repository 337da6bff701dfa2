//! Where the arithmetic runs. A backend knows rows and a shard; it does not know that there are other ranks.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod params;

use crate::adjust::ShardAdjustments;
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::Result;
use crate::merge::{Candidate, PartialSpec, RowPartial};
use crate::rows::HiddenRows;
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

/// One kind of device. The bits of a row's answer depend on [`Backend::fingerprint`] alone, never on the rows
/// around it, their number, the shard's boundaries or the number of threads (promise 1).
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, ...
    fn name(&self) -> &'static str;

    /// Architecture, instruction set and kernel version for heads of `dtype` weights: ranks whose texts
    /// differ may not share a group, since their bits may differ.
    fn fingerprint(&self, weights: DType) -> String;

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
}
