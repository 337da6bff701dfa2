//! A loaded shard: what [`Backend::load`] returns, and what it can do.
//!
//! ```text
//! run   rows x shard -> logits, partials of the best candidates, or draws   one matmul
//!       rows x ids of their own -> logits of these, for partials that count what beats them
//! hold  rows x shard -> logits that stay where the backend has them         one matmul
//!         pass: target logits, largest logits, histograms, ties             small answers, in host memory
//!         pass: partials, candidates                                        what is exchanged
//! finish  what came from all shards -> the caller's answer
//! inputs  inputs of rows in device memory: checked, packed, brought to where passes read them
//! ```
//!
//! Rows, partials and answers are spans of one memory: the host's, or that of the device that the backend
//! runs on. With device memory all work goes on the caller's stream; only small answers that decide how the
//! step goes on are waited for.

use crate::adjust::ShardAdjustments;
use crate::backend::capacity::{self, Arrivals, CapacitySteps, Payload};
use crate::backend::cuts::{self, Cuts};
use crate::backend::{HeadTypes, HistogramQuery, Inputs, PlacedAdjustments, TiesQuery, Wanted};
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, RowSampling};
use crate::memory::{Allocation, Memory, Span, SpanMut, Stream};
use crate::merge::PartialSpec;
use crate::reference::Accuracy;
use crate::rows::HiddenRows;
use crate::weights::{HeadShard, ShardInfo};
use std::sync::Arc;

/// One kind of device.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, ...
    fn name(&self) -> &'static str;

    /// The memory that matmuls run in: rows and answers in it are used in place. Every backend also takes
    /// rows and answers in host memory.
    fn memory(&self) -> Memory;

    /// Architecture, instruction set and kernel version for heads of these types: ranks whose texts differ
    /// may not share a group, since their bits may differ.
    fn fingerprint(&self, types: HeadTypes) -> String;

    /// Whether subnormal numbers (below 2^-126) count as zeros among the inputs and sums of heads of these
    /// types, as some hardware has it.
    fn flushes_subnormals(&self, types: HeadTypes) -> bool {
        let _ = types;
        false
    }

    /// How far a raw f32 logit of 16-bit or f32 inputs may be from float64.
    fn accuracy(&self) -> Accuracy {
        Accuracy::Rounded
    }

    /// Checks that this backend can run `shard` with `hidden` states, without loading it.
    ///
    /// # Errors
    /// `Unsupported` or `Dtype`, saying which backend takes them.
    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()>;

    /// Loads the shard for rows of type `hidden`: brings it to where matmuls read it, and chooses the
    /// instruction family, which no call changes. What the backend does not use in place it copies, and then
    /// it does not keep `shard`.
    ///
    /// # Errors
    /// As [`Backend::check`]; `Device` or `Unsupported` where memory is short.
    fn load(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Box<dyn LoadedShard>>;

    /// Memory that is kept from step to step, zeros at first. Host memory may be pinned, so that copies to
    /// the device do not wait.
    ///
    /// # Errors
    /// `Shape` or `Device` naming `what` where there is not that much, or `memory` is not this backend's.
    fn allocate(&self, memory: Memory, bytes: usize, what: &str) -> Result<Box<dyn Allocation>>;

    /// Whether what is queued on the stream becomes part of a CUDA graph instead of running.
    ///
    /// # Errors
    /// `Device` when the device fails.
    fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let _ = stream;
        Ok(false)
    }
}

/// One matmul with its epilogue: `[rows.len(), hidden] x [shard, hidden]ᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// In host memory or the backend's.
    pub rows: HiddenRows<'a>,
    pub epilogue: Epilogue,
    /// Applied after the epilogue, row by row; as many rows as `rows`, for the shard's vocabulary.
    pub adjustments: Option<&'a ShardAdjustments>,
    /// Adjustments in the backend's memory, of as many rows. Each kind is either here or in `adjustments`,
    /// not in both.
    pub placed: Option<PlacedAdjustments<'a>>,
}

impl Job<'_> {
    /// Whether there are adjustments.
    pub fn is_adjusted(&self) -> bool {
        self.adjustments.is_some() || self.placed.is_some()
    }
}

/// What a matmul is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// All logits, rounded.
    Logits { dtype: DType },
    /// A partial of each row over the shard's vocabulary, with the contents that the spec names. If the spec
    /// has targets, their logits are computed first.
    Partials(PartialSpec),
    /// One id of each row, drawn without any filter.
    Drawn,
    /// The f32 logits, for passes. `raw`: those without adjustments, too.
    Hold { raw: bool },
}

/// Where a matmul's answer goes: host memory or the backend's.
#[derive(Debug)]
pub enum Out<'a> {
    /// See [`LogitsOut`].
    Logits(LogitsOut<'a>),
    /// `[rows, spec.stride(shard)]` bytes, aligned to 8: [`PartialRow`](crate::params::PartialRow)s.
    /// `spec.targets` is 0.
    Partials(PartialSpec, SpanMut<'a>),
    /// The same with `spec.targets`, for a shard that [counts](LoadedShard::counts_targets). `targets`
    /// `[rows, spec.targets]` are the ids and logits ([`Candidate`](crate::merge::Candidate), aligned to 8)
    /// that all others are compared with; those of id [`NO_TARGET`](crate::merge::NO_TARGET) count 0. Each
    /// span is in host memory or the backend's. `again`: the rows are those of the [`Out::TargetLogits`] just
    /// before, unchanged; so rows in host memory need not be copied again.
    Counted { spec: PartialSpec, targets: Span<'a>, again: bool, out: SpanMut<'a> },
    /// The logit of each of a row's targets, with the bits that it has in the whole matmul; NaN where the id
    /// is not the shard's ([`NO_TARGET`](crate::merge::NO_TARGET) is nobody's), or where the logit is NaN.
    /// `targets` u32 and `out` f32, `[rows, per_row]`, are both in host memory, or both in the backend's. For
    /// a shard that [counts](LoadedShard::counts_targets).
    TargetLogits { targets: Span<'a>, per_row: usize, out: SpanMut<'a> },
    /// `[rows]` [`Candidate`](crate::merge::Candidate)s, 8 bytes each: the id that each row draws from the
    /// shard's, and its logit; minus infinity where nothing is allowed, NaN where a logit is not finite. Rows
    /// must have no filter: one in device memory that has a filter gets infinity, which no draw takes.
    Drawn(RowSampling<'a>, SpanMut<'a>),
}

/// Logits of one job as they leave the backend: row `i` occupies `shard x dtype.size()` bytes from
/// `i * stride` on; what else is in a stride is left as it was.
#[derive(Debug)]
pub struct LogitsOut<'a> {
    pub data: SpanMut<'a>,
    pub stride: usize,
    pub dtype: DType,
    /// The status word of row `i`, u32, is at byte `i * status_stride`; overwritten with `LMHEAD_STATUS_*`:
    /// `NONFINITE` where a logit (or what it is rounded to) is NaN or infinite, unless an adjustment made it
    /// minus infinity; `ALLOWED` where one is above minus infinity; `BAD_INDEX` where the row's index is bad.
    pub status: Status<'a>,
}

/// Status words, u32, `stride` bytes apart.
#[derive(Debug)]
pub enum Status<'a> {
    /// In memory of their own.
    Apart { words: SpanMut<'a>, stride: usize },
    /// In each row's stride of the logits, from this byte on; a multiple of 4.
    Inside { at: usize },
}

/// Where device work runs.
#[derive(Debug, Default)]
pub struct On<'a> {
    pub stream: Stream,
    /// In the backend's memory, aligned to 256 bytes; `None`: the loaded shard's own memory, which grows.
    pub workspace: Option<SpanMut<'a>>,
}

/// A shard that a head runs on. Each head has its own, with memory of its own for what happens between rows
/// and answers; heads of the same weights share the weights ([`LoadedShard::another`]).
///
/// The bits of a row's answer depend on [`Backend::fingerprint`] alone, never on the rows around it, their
/// number, the shard's boundaries or the number of threads (promise 1).
pub trait LoadedShard: Send {
    /// What is known of the shard without its weights.
    fn info(&self) -> &ShardInfo;

    /// The same weights for another head.
    ///
    /// # Errors
    /// `Device` where memory or a stream is short.
    fn another(&self) -> Result<Box<dyn LoadedShard>>;

    /// Bytes of workspace in the backend's memory that a call of `rows` rows takes; 0 where it takes none.
    /// Depends on the arguments and the shard alone.
    ///
    /// # Errors
    /// `Shape` for too many rows.
    fn workspace(&self, rows: usize, ask: Ask) -> Result<usize>;

    /// Makes room for calls of up to `rows` rows: after it they neither allocate nor load.
    ///
    /// # Errors
    /// `Shape` or `Device` where memory is short.
    fn prepare(&mut self, rows: usize, ask: Ask) -> Result<()>;

    /// Whether a matmul counts what beats targets whose logits were made before it ([`Out::TargetLogits`],
    /// [`Out::Counted`]). Other shards hold the logits, and count in a pass.
    fn counts_targets(&self) -> bool {
        false
    }

    /// One matmul. With host memory it is done when this returns; with the backend's it is queued on the
    /// stream.
    ///
    /// # Errors
    /// `Shape` or `Dtype` naming what does not fit, and how large a workspace must be, before anything is
    /// launched; `Device` when the device fails.
    fn run(&mut self, job: &Job<'_>, out: Out<'_>, on: &mut On<'_>) -> Result<()>;

    /// One matmul whose f32 logits stay with the backend, until the next call of this or of `run`. `raw`:
    /// where there are adjustments, the logits without them are kept too.
    ///
    /// # Errors
    /// As [`LoadedShard::run`].
    fn hold<'h>(&'h mut self, job: &Job<'_>, raw: bool, on: &mut On<'h>) -> Result<&'h mut dyn HeldLogits>;

    /// The logits that the last [`LoadedShard::hold`] left; `None` where there are none.
    ///
    /// # Safety
    /// The workspace that was given to that call, if any, is there, and nobody else uses it.
    unsafe fn held(&mut self) -> Option<&mut dyn HeldLogits>;

    /// Packs the selected rows, one after the other, into `out` `[rows, hidden]` of the same memory. In
    /// device memory a row with a bad index becomes zeros; `status` `[rows]` u32 is set to
    /// `LMHEAD_STATUS_BAD_INDEX` for it, else to 0. In host memory there are no such rows, and `status` is
    /// empty.
    ///
    /// # Errors
    /// `Shape` where a buffer does not fit; `Device` when the device fails.
    fn pack(
        &mut self,
        rows: &HiddenRows<'_>,
        out: SpanMut<'_>,
        status: SpanMut<'_>,
        on: &mut On<'_>,
    ) -> Result<()> {
        let _ = (status, on);
        out.check_len("gathered rows", rows.len() * rows.row_bytes())?;
        rows.copy_into(out.into_host_elements("gathered rows")?);
        Ok(())
    }

    /// Makes the answer of what came from all shards: see [`Finish`].
    ///
    /// # Errors
    /// `Exchange` where what came cannot be; `Shape` where a buffer does not fit. In device memory the device
    /// checks what came, and a row that cannot be has the status of bad input. Where more than 64 candidates
    /// are wanted, unsorted candidates are among what cannot be.
    fn finish(
        &mut self,
        what: Finish<'_>,
        scratch: &mut finish::FinishScratch,
        on: &mut On<'_>,
    ) -> Result<()> {
        let _ = on;
        finish::on_host(what, scratch)
    }

    /// Begins a capacity step, which the device counts: queues rows and header for the peers.
    ///
    /// # Errors
    /// `Shape` where a buffer does not fit; `Device` when the device fails; `Unsupported` where the host
    /// begins steps.
    fn open_capacity(&mut self, payload: Payload<'_>, on: &mut On<'_>) -> Result<()> {
        let (_, _) = (payload, on);
        Err(capacity::of_the_host())
    }

    /// Compares the headers of such a step, and writes which rows are to be multiplied. Queued.
    ///
    /// # Errors
    /// As [`LoadedShard::open_capacity`].
    fn check_capacity(&mut self, arrivals: Arrivals<'_>, on: &mut On<'_>) -> Result<()> {
        let (_, _) = (arrivals, on);
        Err(capacity::of_the_host())
    }

    /// Counts such steps from the first again, and forgets a mismatch: for a group that was rebuilt.
    ///
    /// # Errors
    /// `Device` when the device fails.
    fn restart_capacity(&mut self) -> Result<()> {
        Ok(())
    }

    /// Sets whether what is queued from now on becomes part of a CUDA graph.
    fn capture(&mut self, capturing: bool) {
        let _ = capturing;
    }

    /// Sets whether work on the stream may wait for other ranks from now on: then nobody waits for it here,
    /// also where something has failed.
    fn defer(&mut self, deferring: bool) {
        let _ = deferring;
    }

    /// Remembers the end of a step that nobody waits for: [`LoadedShard::wait_queued`] waits until the stream
    /// has come here.
    ///
    /// # Errors
    /// `Device` when the device fails.
    fn remember_queued(&mut self, on: &On<'_>) -> Result<()> {
        let _ = on;
        Ok(())
    }

    /// Waits, with a deadline, for what `remember_queued` has remembered last.
    ///
    /// # Errors
    /// `Device` when the device fails.
    fn wait_queued(&mut self) -> Result<()> {
        Ok(())
    }

    /// What the device reports of capacity steps, once there was one.
    fn capacity_steps(&self) -> Option<Arc<dyn CapacitySteps>> {
        None
    }

    /// Makes what matmuls and passes read, of inputs in the backend's memory: queued on the stream. Backends
    /// in host memory have no such inputs.
    ///
    /// # Errors
    /// `Shape` where a buffer does not fit; `Device` when the device fails.
    fn inputs(&mut self, what: Inputs<'_>, on: &mut On<'_>) -> Result<()> {
        let _ = (what, on);
        let fix = "pass inputs in host memory";
        Err(Error::unsupported("the host's memory", "inputs of the host", "inputs in device memory", fix))
    }

    /// Gives back memory that is kept from call to call and can be allocated again: never weights.
    fn release_memory(&mut self);
}

/// Which of the held logits a pass reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// With adjustments, where there are any.
    Adjusted,
    /// As the epilogue left them.
    Raw,
}

/// Logits of some rows over a shard, f32, `[rows, shard]`, wherever the backend has them.
pub trait HeldLogits {
    /// Rows that are held.
    fn rows(&self) -> usize;

    /// One pass over them.
    ///
    /// # Errors
    /// `Shape` or `Request` where the pass does not fit; `Device` when the device fails.
    fn pass(&mut self, pass: Pass<'_>) -> Result<()>;

    /// One round of the search for cuts, in rows whose sampling parameters only the device knows. Queued.
    ///
    /// # Errors
    /// `Shape` where a buffer does not fit; `Device` when the device fails; `Unsupported` where logits are
    /// the host's.
    fn cut(&mut self, pass: Cuts<'_>) -> Result<()> {
        let _ = pass;
        Err(cuts::of_the_host())
    }
}

/// One pass over held logits. Rows are numbers of held rows. A row that is not finite answers as each pass
/// says.
#[derive(Debug)]
pub enum Pass<'a> {
    /// The logit of each of a row's targets: NaN where the id is not the shard's
    /// ([`NO_TARGET`](crate::merge::NO_TARGET) is nobody's), or where the logit is NaN. `targets` u32 and
    /// `out` f32, `[rows, per_row]`, are both in host memory, or both in the backend's.
    TargetLogits { of: Which, targets: Span<'a>, per_row: usize, out: SpanMut<'a> },
    /// Partials of all held rows, `[rows, spec.stride(shard)]`. `targets` `[rows, spec.targets]` are the ids
    /// and logits ([`Candidate`](crate::merge::Candidate)) that all others are compared with; those of id
    /// [`NO_TARGET`](crate::merge::NO_TARGET) count 0. Each span is in host memory or the backend's.
    Partials { of: Which, spec: PartialSpec, targets: Span<'a>, out: SpanMut<'a> },
    /// The largest logit of each row: minus infinity where nothing is allowed, NaN where a logit is not
    /// finite.
    Maxima { rows: &'a [usize], out: &'a mut [f32] },
    /// For each query a histogram, one after the other.
    Histograms { queries: &'a [HistogramQuery], out: &'a mut [u64] },
    /// For each query: where the first `allowance` kept ids with that logit end; 0 for none.
    Ties { queries: &'a [TiesQuery], out: &'a mut [u32] },
    /// The candidates that are wanted of each row, in any order, 8 bytes each, row after row; unused places
    /// hold minus infinity. A row that is not finite has NaN in its first place. Goes to host memory or the
    /// backend's.
    Candidates { rows: &'a [(usize, Wanted)], out: SpanMut<'a> },
}
