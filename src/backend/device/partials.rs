//! Partials on the device: what a matmul leaves of each tile is joined to a shard's partials, and what comes
//! from all shards is joined to answers. Nothing goes through the host.

use super::capacity::CapacityKernels;
use super::shard::{DeviceShard, Places, check_candidates, count_of, product_of, sum_of};
use super::{Grid, KernelDevice, cuts, inputs, lists, select};
use crate::backend::params::{
    FinishDrawParams, FinishLogitsParams, FinishLogprobsParams, FinishParams, HeldCandidatesParams,
    HeldHistogramsParams, HeldMatrix, HeldMaximaParams, HeldTargetsParams, HeldTiesParams, LMHEAD_BEST,
    LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, MergeDrawsParams, MergePartialsParams, PackRowsParams,
    PartialParts, SetWordsParams, SummariseHeldParams, TilePartials,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{Finish, Messages, columns};
use crate::layout::shard_range;
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::PartialSpec;
use crate::plan::Plan;

/// The most candidates of a row that a warp collects: for more, the logits are held and selected from.
pub(super) const BEST: usize = LMHEAD_BEST as usize;

/// For a matmul that stores logits: no partials.
pub const NO_PARTIALS: TilePartials = TilePartials {
    data: std::ptr::null_mut(),
    bars: std::ptr::null_mut(),
    draws: std::ptr::null(),
    targets: std::ptr::null(),
    k: 0,
    sum: 0,
    first_id: 0,
    target_count: 0,
};

/// Status flags of a row without an answer.
pub(super) const NO_ANSWER: u32 = LMHEAD_STATUS_NONFINITE | LMHEAD_STATUS_BAD_INDEX;

/// A block of kernels/partials_sm80.cu: each warp has a list of candidates, and what else it found.
pub(super) const THREADS: u32 = 256;
pub(super) const SHARED_BYTES: usize = THREADS as usize / 32 * (2 * BEST * 8 + 40);

/// Bytes of a row's logits that a block of `finish_logits` moves: 16 a thread.
const PART_BYTES: usize = 16 * THREADS as usize;

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
    logits: D::Kernel<FinishLogitsParams>,
    pub merge_draws: D::Kernel<MergeDrawsParams>,
    pub draw: D::Kernel<FinishDrawParams>,
    pub pack: D::Kernel<PackRowsParams>,
    pub words: D::Kernel<SetWordsParams>,
    pub capacity: CapacityKernels<D>,
    pub select: select::Kernels<D>,
    pub lists: lists::Kernels<D>,
    pub inputs: inputs::Kernels<D>,
    pub cuts: cuts::Kernels<D>,
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
            logits: device.kernel("finish_logits")?,
            merge_draws: device.kernel("merge_draws")?,
            draw: device.kernel("finish_draw")?,
            pack: device.kernel("pack_rows")?,
            words: device.kernel("set_words")?,
            capacity: CapacityKernels::load(device)?,
            select: select::Kernels::load(device)?,
            lists: lists::Kernels::load(device)?,
            inputs: inputs::Kernels::load(device)?,
            cuts: cuts::Kernels::load(device)?,
        })
    }
}

/// One block a row.
fn grid(rows: usize) -> Grid {
    Grid { blocks: rows as u32, threads: THREADS, shared_bytes: SHARED_BYTES }
}

/// Bytes of the partials of `rows` rows, in parts of `tile` ids.
pub(super) fn tile_bytes(spec: &PartialSpec, rows: usize, ids: usize, tile: usize) -> Result<usize> {
    let whole = product_of(&[ids / tile, rows, spec.stride(tile)])?;
    let last = if ids.is_multiple_of(tile) { 0 } else { product_of(&[rows, spec.stride(ids % tile)])? };
    sum_of(&[whole, last])
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Queues: joins what the matmul of `plan` left at these places to `[rows]` partials at `out`.
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
            targets: spec.targets as u32,
            vocab: vocab.len() as u32,
            parts: plan.parts() as u32,
            part_ids: plan.tile.epilogue_n() as u32,
            whole_parts: plan.tail.map_or(plan.parts() as u32, |tail| tail.whole_tiles),
            tail_ids: plan.tail.map_or(0, |tail| tail.ids),
            shards: 0,
        };
        self.merge(stream, from, vocab.start, spec.places(vocab.len()), out)
    }

    /// Queues partials of `rows` rows of a shard without ids, to `out`.
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
            whole_parts: 0,
            tail_ids: 0,
            shards: 0,
        };
        self.merge(stream, nothing, 0, 0, out)
    }

    /// Partials of a shard without ids, in host or device memory; in host memory they are there when this
    /// returns.
    pub(super) fn nothing_at(
        &mut self,
        stream: D::Stream,
        rows: usize,
        spec: &PartialSpec,
        out: SpanMut<'_>,
    ) -> Result<()> {
        if out.memory() != Memory::Host {
            return self.merge_nothing(stream, rows, spec, out.address());
        }
        let device = self.common.device.clone();
        let to = device.address(self.rooms.outputs.at_least(out.len(), |bytes| device.alloc(bytes))?);
        self.merge_nothing(stream, rows, spec, to)?;
        self.answer(stream, to, out.into_host().expect("host memory"))
    }

    fn merge(
        &self,
        stream: D::Stream,
        from: PartialParts,
        first_id: usize,
        places: usize,
        out: u64,
    ) -> Result<()> {
        let grid = grid(from.rows as usize);
        let (first_id, places) = (first_id as u32, places as u32);
        let params = MergePartialsParams { from, out: out as usize as *mut u8, first_id, places };
        // SAFETY: parts of the workspace, and memory of the caller's that was checked.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.merge, &grid, &params) }
    }

    /// Bytes that `rows` held rows take between logits and partials, aligned to 256: partials of their parts,
    /// and a selection.
    pub(super) fn held_part_bytes(&self, rows: usize, spec: &PartialSpec) -> Result<usize> {
        let ids = self.weights.info.vocab.len();
        let parts = tile_bytes(&of_parts(spec), rows, ids, part_ids(ids))?;
        if by_tiles(spec) {
            return Ok(parts);
        }
        sum_of(&[parts.next_multiple_of(256), select::select_bytes(rows, spec.places(ids), ids)?])
    }

    /// Queues: makes `[rows]` partials at `out` of held logits, by way of `parts`, which has room for
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
        let (rows, ids) = (held.rows as usize, held.ids as usize);
        let (of_parts, part_ids) = (of_parts(spec), part_ids(ids));
        let (k, count) = (of_parts.k as u32, ids.div_ceil(part_ids) as u32);
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
            whole_parts: count,
            tail_ids: 0,
            shards: 0,
        };
        let places = spec.places(ids);
        self.merge(stream, from, held.first_id as usize, places, out)?;
        if by_tiles(spec) {
            return Ok(());
        }
        let behind = tile_bytes(&of_parts, rows, ids, part_ids)?.next_multiple_of(256);
        let wanted = select::Wanted::Rows { k: places, stride: spec.stride(ids) };
        self.select(stream, held, wanted, parts + behind as u64, out)
    }

    /// Queues the row status of as many rows as `words` has.
    pub(super) fn finish_status(
        &self,
        stream: D::Stream,
        words: Span<'_>,
        row_status: &SpanMut<'_>,
    ) -> Result<()> {
        let rows = words.len() / 4;
        let params = FinishLogitsParams {
            data: std::ptr::null(),
            words: words_of(words),
            logits: std::ptr::null_mut(),
            logits_pitch: 0,
            row_status: checked("row_status", row_status, 1, rows)? as *mut u8,
            gap: 0,
            rows: 0,
            answered: count_of(rows)?,
            vocab: 0,
            shards: 0,
            element_bytes: 2,
            part_ids: 64,
        };
        self.queue_logits(stream, &params)
    }

    /// Queues: the shards' columns go to their places in `logits`, whose rows are `pitch` bytes apart, and
    /// the status words in their messages become the rows' status.
    pub(super) fn finish_logits(
        &self,
        stream: D::Stream,
        (from, dtype): (&Messages<'_>, DType),
        (logits, pitch): (&SpanMut<'_>, usize),
        row_status: &SpanMut<'_>,
    ) -> Result<()> {
        let (rows, size) = (from.answered, dtype.size());
        let vocab = from.shards.last().map_or(0, |shard| shard.end);
        let needed = rows.checked_sub(1).map_or(Some(0), |n| n.checked_mul(pitch)?.checked_add(vocab * size));
        if pitch < vocab * size || needed.is_none_or(|needed| needed > logits.len()) {
            let wanted = format!("{rows} rows of {vocab} {dtype}");
            let got = format!("{} bytes, {pitch} a row", logits.len());
            return Err(Error::shape("logits", wanted, got, "allocate rows x stride bytes"));
        }
        let (gap, _) = message_places(from, |ids| columns::row_stride(ids, dtype))?;
        logits.check_aligned("logits", size)?;
        if !pitch.is_multiple_of(size) {
            let wanted = format!("a multiple of {size} bytes");
            return Err(Error::shape("stride of the logits", wanted, pitch, "pad rows by whole logits"));
        }
        let params = FinishLogitsParams {
            data: from.bytes.address() as usize as *const u8,
            words: words_of(from.own),
            logits: logits.address() as usize as *mut u8,
            logits_pitch: pitch as u64,
            row_status: checked("row_status", row_status, 1, rows)? as *mut u8,
            gap: gap as u64,
            rows: from.rows as u32,
            answered: count_of(rows)?,
            vocab: vocab as u32,
            shards: from.shards.len() as u32,
            element_bytes: size as u32,
            part_ids: (PART_BYTES / size) as u32,
        };
        self.queue_logits(stream, &params)
    }

    fn queue_logits(&self, stream: D::Stream, params: &FinishLogitsParams) -> Result<()> {
        let of_row = params.vocab.div_ceil(params.part_ids).max(1);
        let blocks = count_of(product_of(&[params.answered as usize, of_row as usize])?)?;
        if blocks == 0 {
            return Ok(());
        }
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: spans of the device's memory, of sizes that were checked; messages are as long as their
        // starts say.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.logits, &grid, params) }
    }

    /// Queues the logprobs of the first `rows` rows whose partials came from all shards, to the buffers of
    /// `answers`. `targets`: the address of `[rows, spec.targets]` candidates.
    pub(super) fn finish_logprobs(
        &self,
        stream: D::Stream,
        (parts, rows): (PartialParts, usize),
        targets: u64,
        (top_n, drawn): (usize, bool),
        answers: &Finish<'_>,
    ) -> Result<()> {
        let Finish::Logprobs { logprobs, ranks, top_ids, top_logprobs, row_status, .. } = answers else {
            unreachable!("buffers of logprobs");
        };
        let n = parts.targets as usize;
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
        if parts.k as usize > BEST {
            return self.finish_lists_logprobs(stream, &params, count_of(rows)?);
        }
        // SAFETY: as of `finish_best`.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.logprobs, &grid(rows), &params) }
    }

    /// Queues the answer to the first `rows` rows whose partials came from all shards; values and logsumexp
    /// may be left out.
    pub(super) fn finish_best(
        &self,
        stream: D::Stream,
        (parts, rows): (PartialParts, usize),
        (ids, row_status): (&SpanMut<'_>, &SpanMut<'_>),
        values: Option<(&SpanMut<'_>, &SpanMut<'_>)>,
    ) -> Result<()> {
        let k = parts.k as usize;
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
        if k > BEST {
            return self.finish_lists(stream, &params, count_of(rows)?);
        }
        // SAFETY: spans of the device's memory, of the sizes that the kernel writes; messages are as long as
        // their starts say.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.best, &grid(rows), &params) }
    }
}

/// Where status words are; null where there are none.
pub(super) fn words_of(words: Span<'_>) -> *const u32 {
    if words.is_empty() { std::ptr::null() } else { words.address() as usize as *const u32 }
}

/// Checks a buffer of `n` elements of `size` bytes; returns its address.
pub(super) fn checked(what: &str, span: &SpanMut<'_>, size: usize, n: usize) -> Result<usize> {
    span.check_len(what, n * size)?;
    span.check_aligned(what, size)?;
    Ok(span.address() as usize)
}

/// Whether a matmul leaves such partials of its tiles; with more candidates the logits are held.
pub(super) fn by_tiles(spec: &PartialSpec) -> bool {
    spec.k <= BEST
}

/// What is found of each part of a held row. Where the best are selected, one candidate will do: it shows
/// that there is one.
fn of_parts(spec: &PartialSpec) -> PartialSpec {
    if by_tiles(spec) { *spec } else { PartialSpec { k: 1, ..*spec } }
}

/// Ids of a part of held logits: so many that the parts' results are small, but so few that even few rows
/// have many blocks.
pub(super) fn part_ids(ids: usize) -> usize {
    ids.div_ceil(16).max(2048).next_multiple_of(64)
}

/// Checks the status words that the rows have besides.
pub(super) fn check_own(from: &Messages<'_>) -> Result<()> {
    if !from.own.is_empty() {
        from.own.check_memory("status of the rows", from.bytes.memory())?;
        from.own.check_len("status of the rows", 4 * from.answered)?;
        from.own.check_aligned("status of the rows", 4)?;
    }
    Ok(())
}

/// Whether the shards are those of the whole vocabulary, cut as kernels cut it.
pub(super) fn are_even(from: &Messages<'_>) -> bool {
    let (shards, vocab) = (from.shards.len(), from.shards.last().map_or(0, |shard| shard.end));
    from.shards.iter().enumerate().all(|(i, shard)| *shard == shard_range(vocab, shards, i))
}

/// Checks the shards' messages, in which a row has `stride(ids)` bytes. Returns the bytes before each
/// message, and how many shards have ids.
///
/// # Errors
/// `Shape` where shards or messages are not as [`PartialParts`] says.
pub(super) fn message_places(from: &Messages<'_>, stride: impl Fn(usize) -> usize) -> Result<(usize, usize)> {
    check_own(from)?;
    let (shards, evenly) = (from.shards.len(), are_even(from));
    let gap = from.starts.first().copied().unwrap_or(0);
    let mut end = 0;
    let in_row = from.starts.iter().zip(from.shards).all(|(start, shard)| {
        let begins = *start == end + gap;
        end = start + from.rows * stride(shard.len());
        begins
    });
    if from.answered > from.rows {
        let wanted = format!("at most the {} rows of a message", from.rows);
        return Err(Error::shape("answered rows", wanted, from.answered, "answer rows that came"));
    }
    count_of(from.rows)?;
    let aligned = gap.is_multiple_of(8) && from.bytes.address().is_multiple_of(8);
    if shards == 0 || from.starts.len() != shards || !evenly || !in_row || !aligned || end > from.bytes.len()
    {
        let wanted = format!("one of each shard of shard_range, {shards} in a row, aligned to 8 bytes");
        let got = format!("messages at {:?} of {} bytes", from.starts, from.bytes.len());
        return Err(Error::shape("messages of the shards", wanted, got, "receive them in one buffer"));
    }
    Ok((gap, from.shards.iter().take_while(|shard| !shard.is_empty()).count()))
}

/// Messages of partials, described for the kernels.
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
        whole_parts: 0,
        tail_ids: 0,
        shards: from.shards.len() as u32,
    })
}
