//! Partials on the device: what a product leaves of each tile is joined to a shard's partials, and what came
//! from all shards to answers. Nothing goes through the host.

use super::shard::{DeviceShard, Places, check_candidates, product_of, sum_of};
use super::{Grid, KernelDevice};
use crate::backend::params::{
    FinishLogprobsParams, FinishParams, FinishStatusParams, HeldCandidatesParams, HeldHistogramsParams,
    HeldMatrix, HeldMaximaParams, HeldTargetsParams, HeldTiesParams, LMHEAD_BEST, LMHEAD_STATUS_BAD_INDEX,
    LMHEAD_STATUS_NONFINITE, MergePartialsParams, PackRowsParams, PartialParts, SummariseHeldParams,
    TilePartials,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{Finish, Messages, columns};
use crate::layout::shard_range;
use crate::memory::{Span, SpanMut};
use crate::merge::PartialSpec;
use crate::plan::Plan;

/// The most candidates of a row that kernels find.
pub(super) const BEST: usize = LMHEAD_BEST as usize;

/// Logits instead of partials.
pub const NO_PARTIALS: TilePartials =
    TilePartials { data: std::ptr::null_mut(), bars: std::ptr::null_mut(), k: 0, sum: 0 };

/// Status flags of a row without an answer.
pub(super) const NO_ANSWER: u32 = LMHEAD_STATUS_NONFINITE | LMHEAD_STATUS_BAD_INDEX;

/// A block of kernels/partials_sm80.cu: of each warp a list of candidates, and what else it found.
pub(super) const THREADS: u32 = 256;
pub(super) const SHARED_BYTES: usize = THREADS as usize / 32 * (2 * BEST * 8 + 40);

/// The kernels of answers.
pub(super) struct Kernels<D: KernelDevice> {
    merge: D::Kernel<MergePartialsParams>,
    best: D::Kernel<FinishParams>,
    logprobs: D::Kernel<FinishLogprobsParams>,
    summarise: D::Kernel<SummariseHeldParams>,
    pub targets: D::Kernel<HeldTargetsParams>,
    pub maxima: D::Kernel<HeldMaximaParams>,
    pub histograms: D::Kernel<HeldHistogramsParams>,
    pub ties: D::Kernel<HeldTiesParams>,
    pub candidates: D::Kernel<HeldCandidatesParams>,
    status: D::Kernel<FinishStatusParams>,
    pub pack: D::Kernel<PackRowsParams>,
}

impl<D: KernelDevice> Kernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(Kernels {
            merge: device.kernel("merge_partials")?,
            best: device.kernel("finish_best")?,
            logprobs: device.kernel("finish_logprobs")?,
            summarise: device.kernel("summarise_held")?,
            targets: device.kernel("held_targets")?,
            maxima: device.kernel("held_maxima")?,
            histograms: device.kernel("held_histograms")?,
            ties: device.kernel("held_ties")?,
            candidates: device.kernel("held_candidates")?,
            status: device.kernel("finish_status")?,
            pack: device.kernel("pack_rows")?,
        })
    }
}

/// One block a row.
fn grid(rows: usize) -> Grid {
    Grid { blocks: rows as u32, threads: THREADS, shared_bytes: SHARED_BYTES }
}

/// Bytes that a product leaves of `rows` rows in tiles of so many ids.
pub(super) fn tile_bytes(spec: &PartialSpec, rows: usize, ids: usize, tile: usize) -> Result<usize> {
    let whole = product_of(&[ids / tile, rows, spec.stride(tile)])?;
    let last = if ids.is_multiple_of(tile) { 0 } else { product_of(&[rows, spec.stride(ids % tile)])? };
    sum_of(&[whole, last])
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Queues: what the product that `plan` says left at these places becomes `[rows]` partials at `out`.
    pub(super) fn merge_tiles(
        &self,
        stream: D::Stream,
        (workspace, places): (u64, &Places),
        plan: &Plan,
        spec: &PartialSpec,
        out: u64,
    ) -> Result<()> {
        let vocab = &self.weights.info.vocab;
        let from = PartialParts {
            data: (workspace + places.held as u64) as usize as *const u8,
            status: (workspace + places.status as u64) as usize as *const u32,
            gap: 0,
            nonfinite: NO_ANSWER,
            rows: plan.shape.rows as u32,
            k: spec.k as u32,
            targets: 0,
            vocab: vocab.len() as u32,
            parts: vocab.len().div_ceil(plan.tile.ids) as u32,
            part_ids: plan.tile.ids as u32,
            shards: 0,
        };
        self.merge(stream, from, vocab.start, out)
    }

    /// Queues: partials of `rows` rows of a shard without ids, at `out`.
    pub(super) fn merge_nothing(
        &self,
        stream: D::Stream,
        rows: usize,
        spec: &PartialSpec,
        out: u64,
    ) -> Result<()> {
        let (data, status) = (std::ptr::null(), std::ptr::null());
        let (rows, k, targets) = (rows as u32, spec.k.min(BEST) as u32, spec.targets as u32);
        let nothing = PartialParts {
            data,
            status,
            gap: 0,
            nonfinite: NO_ANSWER,
            rows,
            k,
            targets,
            vocab: 0,
            parts: 0,
            part_ids: 1,
            shards: 0,
        };
        self.merge(stream, nothing, 0, out)
    }

    fn merge(&self, stream: D::Stream, from: PartialParts, first_id: usize, out: u64) -> Result<()> {
        let grid = grid(from.rows as usize);
        let params = MergePartialsParams { from, out: out as usize as *mut u8, first_id: first_id as u32 };
        // SAFETY: parts of the workspace, and memory of the caller's that was checked.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.merge, &grid, &params) }
    }

    /// Bytes of what the parts of so many held rows know of them.
    pub(super) fn held_part_bytes(&self, rows: usize, spec: &PartialSpec) -> Result<usize> {
        let ids = self.weights.info.vocab.len();
        tile_bytes(spec, rows, ids, part_ids(ids))
    }

    /// Queues: held logits become `[rows]` partials at `out`, by way of `parts`, which has room for
    /// [`DeviceShard::held_part_bytes`]. `targets`: the address of `[rows, spec.targets]` candidates.
    pub(super) fn summarise_held(
        &self,
        stream: D::Stream,
        held: HeldMatrix,
        spec: &PartialSpec,
        targets: u64,
        parts: u64,
        out: u64,
    ) -> Result<()> {
        let ids = held.ids as usize;
        let (k, part_ids) = (spec.k as u32, part_ids(ids));
        let count = ids.div_ceil(part_ids) as u32;
        let params = SummariseHeldParams {
            held,
            data: parts as usize as *mut u8,
            targets: targets as usize as *const _,
            k,
            sum: u32::from(spec.sum),
            target_count: spec.targets as u32,
            part_ids: part_ids as u32,
        };
        let grid = Grid { blocks: held.rows * count, ..grid(0) };
        // SAFETY: held logits, and memory of the shard's own.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.summarise, &grid, &params)? };
        let from = PartialParts {
            data: params.data.cast_const(),
            status: held.status,
            gap: 0,
            nonfinite: held.nonfinite,
            rows: held.rows,
            k,
            targets: params.target_count,
            vocab: held.ids,
            parts: count,
            part_ids: params.part_ids,
            shards: 0,
        };
        self.merge(stream, from, held.first_id as usize, out)
    }

    /// Queues the row status of whole logits, from the shards' messages and other words.
    pub(super) fn finish_status(
        &self,
        stream: D::Stream,
        from: Option<(&Messages<'_>, DType)>,
        words: Span<'_>,
        row_status: &SpanMut<'_>,
    ) -> Result<()> {
        let rows = from.map_or(words.len() / 4, |(from, _)| from.rows);
        let mut params = FinishStatusParams {
            data: std::ptr::null(),
            words: words_of(words),
            row_status: checked("row_status", row_status, 1, rows)? as *mut u8,
            gap: 0,
            rows: rows as u32,
            vocab: 0,
            shards: 0,
            element_bytes: 0,
        };
        if let Some((from, dtype)) = from {
            let (gap, _) = message_places(from, |ids| columns::row_stride(ids, dtype))?;
            params.data = from.bytes.address() as usize as *const u8;
            params.gap = gap as u64;
            params.vocab = from.shards.last().map_or(0, |shard| shard.end) as u32;
            (params.shards, params.element_bytes) = (from.shards.len() as u32, dtype.size() as u32);
        }
        let grid = Grid { blocks: params.rows.div_ceil(THREADS), threads: THREADS, shared_bytes: 0 };
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: spans of the device's memory; messages are as long as their starts say.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.status, &grid, &params) }
    }

    /// Queues the logprobs of rows whose partials came from all shards, to the buffers of `answers`.
    /// `targets`: the address of `[rows, spec.targets]` candidates.
    pub(super) fn finish_logprobs(
        &self,
        stream: D::Stream,
        parts: PartialParts,
        targets: u64,
        (top_n, drawn): (usize, bool),
        answers: &Finish<'_>,
    ) -> Result<()> {
        let Finish::Logprobs { logprobs, ranks, top_ids, top_logprobs, row_status, .. } = answers else {
            unreachable!("buffers of logprobs");
        };
        let (rows, n) = (parts.rows as usize, parts.targets as usize);
        let params = FinishLogprobsParams {
            from: parts,
            targets: targets as usize as *const _,
            logprobs: checked("logprobs", logprobs, 4, rows * n)? as *mut f32,
            ranks: checked("ranks", ranks, 8, rows * n)? as *mut i64,
            top_ids: checked("top_ids", top_ids, 8, rows * top_n)? as *mut i64,
            top_logprobs: checked("top_logprobs", top_logprobs, 4, rows * top_n)? as *mut f32,
            row_status: checked("row_status", row_status, 1, rows)? as *mut u8,
            top_n: top_n as u32,
            drawn: u32::from(drawn),
        };
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: as of `finish_best`.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.logprobs, &grid(rows), &params) }
    }

    /// Queues the answer to rows whose partials came from all shards; values and logsumexp may be left out.
    pub(super) fn finish_best(
        &self,
        stream: D::Stream,
        parts: PartialParts,
        (ids, row_status): (&SpanMut<'_>, &SpanMut<'_>),
        values: Option<(&SpanMut<'_>, &SpanMut<'_>)>,
    ) -> Result<()> {
        let (rows, k) = (parts.rows as usize, parts.k as usize);
        let ids = checked("ids", ids, 8, rows * k)?;
        let row_status = checked("row_status", row_status, 1, rows)?;
        let (values, logsumexp) = match values {
            Some((values, logsumexp)) => {
                (checked("values", values, 4, rows * k)?, checked("logsumexp", logsumexp, 4, rows)?)
            }
            None => (0, 0),
        };
        let params = FinishParams {
            from: parts,
            ids: ids as *mut i64,
            values: values as *mut f32,
            logsumexp: logsumexp as *mut f32,
            row_status: row_status as *mut u8,
        };
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: spans of the device's memory, of the sizes that the kernel writes; messages are as long as
        // their starts say.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.best, &grid(rows), &params) }
    }
}

/// Where status words are; null where there are none.
fn words_of(words: Span<'_>) -> *const u32 {
    if words.is_empty() { std::ptr::null() } else { words.address() as usize as *const u32 }
}

/// The address of a buffer of `n` elements of `size` bytes.
fn checked(what: &str, span: &SpanMut<'_>, size: usize, n: usize) -> Result<usize> {
    span.check_len(what, n * size)?;
    span.check_aligned(what, size)?;
    Ok(span.address() as usize)
}

/// Ids of a part of held logits: few parts, so that what they know is small, but some, so that few rows have
/// many blocks.
pub(super) fn part_ids(ids: usize) -> usize {
    ids.div_ceil(16).max(2048).next_multiple_of(64)
}

/// Where each shard's message lies, which are as `stride` says of its ids: the bytes before each, and how many
/// shards have ids.
///
/// # Errors
/// `Shape` where shards or messages are not as [`PartialParts`] says.
pub(super) fn message_places(from: &Messages<'_>, stride: impl Fn(usize) -> usize) -> Result<(usize, usize)> {
    if !from.own.is_empty() {
        from.own.check_memory("status of the rows", from.bytes.memory())?;
        from.own.check_len("status of the rows", 4 * from.rows)?;
        from.own.check_aligned("status of the rows", 4)?;
    }
    let (shards, vocab) = (from.shards.len(), from.shards.last().map_or(0, |shard| shard.end));
    let evenly = from.shards.iter().enumerate().all(|(i, shard)| *shard == shard_range(vocab, shards, i));
    let gap = from.starts.first().copied().unwrap_or(0);
    let mut end = 0;
    let in_row = from.starts.iter().zip(from.shards).all(|(start, shard)| {
        let begins = *start == end + gap;
        end = start + from.rows * stride(shard.len());
        begins
    });
    let aligned = gap.is_multiple_of(8) && from.bytes.address().is_multiple_of(8);
    if shards == 0 || from.starts.len() != shards || !evenly || !in_row || !aligned || end > from.bytes.len()
    {
        let wanted = format!("one of each shard of shard_range, {shards} in a row, aligned to 8 bytes");
        let got = format!("messages at {:?} of {} bytes", from.starts, from.bytes.len());
        return Err(Error::shape("messages of the shards", wanted, got, "receive them in one buffer"));
    }
    Ok((gap, from.shards.iter().take_while(|shard| !shard.is_empty()).count()))
}

/// Messages of partials as the kernels find them.
///
/// # Errors
/// `Shape` where they are not as [`PartialParts`] says.
pub(super) fn parts(from: &Messages<'_>, spec: &PartialSpec) -> Result<PartialParts> {
    check_candidates(spec)?;
    let (gap, parts) = message_places(from, |ids| spec.stride(ids))?;
    Ok(PartialParts {
        data: from.bytes.address() as usize as *const u8,
        status: words_of(from.own),
        gap: gap as u64,
        nonfinite: NO_ANSWER,
        rows: from.rows as u32,
        k: spec.k as u32,
        targets: spec.targets as u32,
        vocab: from.shards.last().map_or(0, |shard| shard.end) as u32,
        parts: parts as u32,
        part_ids: 0,
        shards: from.shards.len() as u32,
    })
}
