//! Inputs in device memory, by kernels: checked where they are read, packed for the exchange, and brought to
//! where matmuls and passes read them. The host waits for none of it, except for the sampling parameters of
//! steps whose filters it must know.

use super::adjustments::NO_ADJUSTMENTS;
use super::partials::THREADS;
use super::shard::{DeviceShard, count_of, product_of};
use super::words::words;
use super::{CopyRows, Grid, KernelDevice};
use crate::adjust::DeviceAdjustments;
use crate::backend::params::{
    EncodeTargetsParams, LogitAdjustments, OrStatusParams, PackAdjustmentsParams, PickTargetsParams,
    SamplingRow, SamplingRowsParams, UnpackAdjustmentsParams,
};
use crate::backend::{Inputs, On, PlacedAdjustments, PlacedEntries};
use crate::error::{Error, Result};
use crate::layout::shard_range;
use crate::memory::{Memory, Span, SpanMut};
use crate::params::Params;
use crate::result::{DeviceInputs, SamplingSpans};
use std::ops::Range;

/// The kernels of inputs.
pub(super) struct Kernels<D: KernelDevice> {
    encode: D::Kernel<EncodeTargetsParams>,
    pick: D::Kernel<PickTargetsParams>,
    status: D::Kernel<OrStatusParams>,
    sampling: D::Kernel<SamplingRowsParams>,
    pack: D::Kernel<PackAdjustmentsParams>,
    digest: D::Kernel<PackAdjustmentsParams>,
    unpack: D::Kernel<UnpackAdjustmentsParams>,
}

impl<D: KernelDevice> Kernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(Kernels {
            encode: device.kernel("encode_targets")?,
            pick: device.kernel("pick_targets")?,
            status: device.kernel("or_status")?,
            sampling: device.kernel("sampling_rows")?,
            pack: device.kernel("pack_adjustments")?,
            digest: device.kernel("digest_adjustments")?,
            unpack: device.kernel("unpack_adjustments")?,
        })
    }
}

/// Shared memory of a block: where its warps vote, a word for each; where they add, 64 bits for each.
const VOTES: usize = 4 * THREADS as usize / 32;
const SUMS: usize = 2 * VOTES;

impl<D: KernelDevice> DeviceShard<D> {
    /// [`LoadedShard::inputs`](crate::backend::LoadedShard::inputs).
    pub(super) fn place_inputs(&mut self, what: Inputs<'_>, on: &On<'_>) -> Result<()> {
        match what {
            Inputs::Fill { words: some, value } => {
                let n = some.len() / 4;
                let address = self.place("words of the rows", some.as_span(), n, 4)?;
                if n == 0 {
                    return Ok(());
                }
                self.only_on(on, |shard, stream| {
                    // SAFETY: checked words of the caller's.
                    unsafe { shard.set_words(stream, words(address, n, value)) }
                })
            }
            Inputs::Status { from, into } => {
                let rows = into.len() / 4;
                let params = OrStatusParams {
                    from: self.place("status of the rows", from, rows, 4)? as usize as *const u32,
                    into: self.place("status of the rows", into.as_span(), rows, 4)? as usize as *mut u32,
                    rows: count_of(rows)?,
                    reserved: 0,
                };
                self.launch_threads(on, |shard| &shard.weights.kernels.inputs.status, rows, params)
            }
            Inputs::Targets { ids, per_row, vocab_size, out, status } => {
                self.encode_targets(on, (ids, per_row), vocab_size, &out, &status)
            }
            Inputs::Parts { from, parts, out } => self.copy_parts(on, from, parts, &out),
            Inputs::Candidates { targets, logits, shards, out } => {
                let n = targets.len() / 4;
                let vocab = evenly(shards)?;
                let params = PickTargetsParams {
                    targets: self.place("targets", targets, n, 4)? as usize as *const _,
                    logits: self.place("logits of the targets", logits, n * shards.len(), 4)? as usize
                        as *const _,
                    out: self.place("candidates", out.as_span(), n, 8)? as usize as *mut _,
                    count: n as u64,
                    vocab,
                    shards: shards.len() as u32,
                };
                self.launch_threads(on, |shard| &shard.weights.kernels.inputs.pick, n, params)
            }
            Inputs::Sampling { from, vocab_size, out, status } => {
                self.sampling_rows(on, from, vocab_size, out, &status)
            }
            Inputs::SamplingRows { from, vocab_size, unfiltered, out, status } => {
                let rows = status.len() / 4;
                let bytes = size_of::<SamplingRow>();
                out.check_len("sampling parameters", product_of(&[rows, bytes])?)?;
                let to = self.place("sampling parameters", out.as_span(), out.len() / 16, 16)?;
                let mut params = self.sampling_params(from, vocab_size, &status)?;
                (params.out, params.unfiltered) = (to as usize as *mut _, unfiltered.into());
                self.launch_threads(on, |shard| &shard.weights.kernels.inputs.sampling, rows, params)
            }
            Inputs::DigestAdjustments { from, rows, of, vocab_size, out } => {
                let mut params = self.adjustment_params(from, rows, &of, vocab_size)?;
                params.out = self.place("digests of adjustments", out.as_span(), rows, 8)? as usize as *mut _;
                self.launch_blocks(on, |shard| &shard.weights.kernels.inputs.digest, (rows, SUMS), params)
            }
            Inputs::PackAdjustments { from, rows, parts, of, shards, to, out, status } => {
                self.pack_adjustments(on, from, (rows, parts, &of), (shards, to), &out, &status)
            }
            Inputs::UnpackAdjustments { from, rows, of, out } => {
                self.unpack_adjustments(on, from, (rows, &of), &out)
            }
        }
    }

    /// Checks a span of `n` elements of `size` bytes in the device's memory; returns its address.
    fn place(&self, what: &str, span: Span<'_>, n: usize, size: usize) -> Result<u64> {
        span.check_len(what, product_of(&[n, size])?)?;
        span.check_memory(what, self.common.memory())?;
        span.check_aligned(what, size)?;
        Ok(span.address())
    }

    /// Queues a kernel with one of `n` elements per thread, which uses the caller's memory alone.
    fn launch_threads<P: Params>(
        &mut self,
        on: &On<'_>,
        kernel: impl Fn(&Self) -> &D::Kernel<P>,
        n: usize,
        params: P,
    ) -> Result<()> {
        self.launch_blocks(on, kernel, (n.div_ceil(THREADS as usize), 0), params)
    }

    /// Queues a kernel of that many blocks, which uses held logits and the caller's memory alone.
    pub(super) fn launch_blocks<P: Params>(
        &mut self,
        on: &On<'_>,
        kernel: impl Fn(&Self) -> &D::Kernel<P>,
        (blocks, shared_bytes): (usize, usize),
        params: P,
    ) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let grid = Grid { blocks: count_of(blocks)?, threads: THREADS, shared_bytes };
        self.only_on(on, |shard, stream| {
            // SAFETY: held logits, and spans of the caller's that were checked.
            unsafe { shard.common.device.launch(stream, kernel(shard), &grid, &params) }
        })
    }

    fn encode_targets(
        &mut self,
        on: &On<'_>,
        (ids, per_row): (Span<'_>, usize),
        vocab_size: usize,
        out: &SpanMut<'_>,
        status: &SpanMut<'_>,
    ) -> Result<()> {
        let rows = status.len() / 4;
        let n = product_of(&[rows, per_row])?;
        ids.check_len("targets", product_of(&[n, 8])?)?;
        let mut params = EncodeTargetsParams {
            ids: std::ptr::null(),
            out: self.place("encoded targets", out.as_span(), n, 4)? as usize as *mut _,
            status: self.place("status of the rows", status.as_span(), rows, 4)? as usize as *mut _,
            count: n as u64,
            per_row: count_of(per_row)?,
            vocab: vocab_size as u32,
        };
        if n == 0 {
            return Ok(());
        }
        if ids.memory() != Memory::Host {
            params.ids = self.place("targets", ids, n, 8)? as usize as *const _;
            return self.launch_threads(on, |shard| &shard.weights.kernels.inputs.encode, n, params);
        }
        let bytes = ids.host_elements::<u8>("targets")?;
        let stream = self.begin(on, true)?;
        let done = self.ask(stream, bytes).and_then(|asked| {
            params.ids = asked as usize as *const _;
            let blocks = count_of(n.div_ceil(THREADS as usize))?;
            let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
            // SAFETY: the shard's own memory, and checked spans of the caller's.
            unsafe { self.common.device.launch(stream, &self.weights.kernels.inputs.encode, &grid, &params) }
        });
        self.synchronize_on_error(stream, done)?;
        self.end(on, stream, false)
    }

    fn copy_parts(
        &mut self,
        on: &On<'_>,
        from: Span<'_>,
        parts: &[Range<usize>],
        out: &SpanMut<'_>,
    ) -> Result<()> {
        let total = parts.iter().map(ExactSizeIterator::len).sum();
        let to = self.place("parts", out.as_span(), total, 1)?;
        let own = self.common.memory();
        let copy = |shard: &Self, stream: D::Stream, from: u64| {
            let mut at = to;
            parts.iter().filter(|part| !part.is_empty()).try_for_each(|part| {
                let copy = CopyRows::whole((own, at), (own, from + part.start as u64), part.len());
                at += part.len() as u64;
                // SAFETY: checked spans of the caller's, or the shard's own memory.
                unsafe { shard.common.device.copy_rows(stream, &copy) }
            })
        };
        let end = parts.iter().map(|part| part.end).max().unwrap_or(0);
        if end > from.len() {
            let (wanted, got) = (format!("{end} bytes at least"), format!("{} bytes", from.len()));
            return Err(Error::shape("parts", wanted, got, "pass all of them"));
        }
        if total == 0 {
            return Ok(());
        }
        if from.memory() != Memory::Host {
            from.check_memory("parts", own)?;
            return self.only_on(on, |shard, stream| copy(shard, stream, from.address()));
        }
        let bytes = from.host_elements::<u8>("parts")?;
        let stream = self.begin(on, true)?;
        let done = self.ask(stream, bytes).and_then(|asked| copy(self, stream, asked));
        self.synchronize_on_error(stream, done)?;
        self.end(on, stream, false)
    }

    /// The kernel's parameters, except where the rows go.
    fn sampling_params(
        &self,
        from: &SamplingSpans<'_>,
        vocab_size: usize,
        status: &SpanMut<'_>,
    ) -> Result<SamplingRowsParams> {
        let rows = status.len() / 4;
        let array = |name: &str, span: Option<Span<'_>>, size: usize| -> Result<usize> {
            span.map_or(Ok(0), |span| Ok(self.place(name, span, rows, size)? as usize))
        };
        Ok(SamplingRowsParams {
            seeds: array("seed", from.seed, 8)? as *const _,
            positions: array("position", from.position, 8)? as *const _,
            temperatures: array("temperature", from.temperature, 4)? as *const _,
            top_k: array("top_k", from.top_k, 4)? as *const _,
            top_p: array("top_p", from.top_p, 4)? as *const _,
            min_p: array("min_p", from.min_p, 4)? as *const _,
            out: std::ptr::null_mut(),
            status: self.place("status of the rows", status.as_span(), rows, 4)? as usize as *mut _,
            rows: count_of(rows)?,
            vocab: vocab_size as u32,
            unfiltered: 0,
            reserved: 0,
        })
    }

    /// Waits for the parameters: how a step goes on depends on them.
    fn sampling_rows(
        &mut self,
        on: &On<'_>,
        from: &SamplingSpans<'_>,
        vocab_size: usize,
        out: &mut [SamplingRow],
        status: &SpanMut<'_>,
    ) -> Result<()> {
        let rows = out.len();
        if rows == 0 {
            return Ok(());
        }
        let mut params = self.sampling_params(from, vocab_size, status)?;
        let stream = self.begin(on, true)?;
        let bytes = bytemuck::cast_slice_mut(out);
        let device = self.common.device.clone();
        let done = self.rooms.outputs.at_least(bytes.len(), |bytes| device.alloc(bytes)).and_then(|room| {
            let to = device.address(room);
            params.out = to as usize as *mut _;
            let grid = Grid { blocks: params.rows.div_ceil(THREADS), threads: THREADS, shared_bytes: 0 };
            // SAFETY: the shard's own memory, and checked spans of the caller's.
            unsafe { device.launch(stream, &self.weights.kernels.inputs.sampling, &grid, &params)? };
            Ok(to)
        });
        let done = done.and_then(|to| self.answer(stream, to, bytes));
        self.synchronize_on_error(stream, done)
    }

    fn pack_adjustments(
        &mut self,
        on: &On<'_>,
        from: &DeviceInputs<'_>,
        (rows, (parts, part_rows), of): (usize, (usize, usize), &DeviceAdjustments),
        (shards, (first, step, count)): (&[Range<usize>], (usize, usize, usize)),
        out: &SpanMut<'_>,
        status: &SpanMut<'_>,
    ) -> Result<()> {
        let vocab = evenly(shards)?;
        let ids = |j: usize| shards[first + j * step].len();
        let bytes = (0..count).map(|j| of.message_bytes(ids(j))).sum::<usize>();
        let places = product_of(&[parts, part_rows])?;
        out.check_len("messages of adjustments", product_of(&[places, bytes])?)?;
        if rows.div_ceil(parts.max(1)) > part_rows {
            let (wanted, fix) = (format!("at most {parts} parts of {part_rows}"), "make the parts larger");
            return Err(Error::shape("rows with adjustments", wanted, rows, fix));
        }
        let params = PackAdjustmentsParams {
            out: self.place("messages of adjustments", out.as_span(), out.len() / 8, 8)? as usize as *mut _,
            status: self.place("status of the rows", status.as_span(), rows, 4)? as usize as *mut _,
            parts: count_of(parts)?,
            part_rows: count_of(part_rows)?,
            shards: shards.len() as u32,
            first_shard: first as u32,
            shard_step: step as u32,
            ..self.adjustment_params(from, rows, of, vocab as usize)?
        };
        // Also where nothing is sent: the kernel checks the rows.
        let blocks = product_of(&[places, count])?;
        self.launch_blocks(on, |shard| &shard.weights.kernels.inputs.pack, (blocks, VOTES), params)
    }

    /// The kernels' parameters for adjustments of `rows` rows, except where their results go.
    fn adjustment_params(
        &self,
        from: &DeviceInputs<'_>,
        rows: usize,
        of: &DeviceAdjustments,
        vocab_size: usize,
    ) -> Result<PackAdjustmentsParams> {
        from.check(rows, 0, vocab_size, self.common.memory())?;
        let address = |span: Span<'_>| span.address() as usize;
        let some = |span: Option<Span<'_>>| span.filter(|span| !span.is_empty()).map_or(0, address);
        let mut params = PackAdjustmentsParams {
            allowed: some(from.allowed) as *const _,
            logit_bias_offsets: std::ptr::null(),
            logit_bias_ids: std::ptr::null(),
            logit_bias_values: std::ptr::null(),
            count_offsets: std::ptr::null(),
            count_ids: std::ptr::null(),
            counts: std::ptr::null(),
            in_prompt: std::ptr::null(),
            repetition: std::ptr::null(),
            frequency: std::ptr::null(),
            presence: std::ptr::null(),
            logit_bias_entries: 0,
            count_entries: 0,
            out: std::ptr::null_mut(),
            status: std::ptr::null_mut(),
            places: of.places(),
            rows: count_of(rows)?,
            parts: 0,
            part_rows: 0,
            vocab: count_of(vocab_size)?,
            shards: 0,
            first_shard: 0,
            shard_step: 0,
            reserved: 0,
        };
        if let Some(logit_bias) = &from.logit_bias {
            params.logit_bias_offsets = address(logit_bias.offsets) as *const _;
            params.logit_bias_ids = address(logit_bias.ids) as *const _;
            params.logit_bias_values = address(logit_bias.values) as *const _;
            params.logit_bias_entries = logit_bias.ids.len() as u64 / 8;
        }
        if let Some(penalties) = &from.penalties {
            params.count_offsets = address(penalties.offsets) as *const _;
            params.count_ids = address(penalties.ids) as *const _;
            params.counts = address(penalties.counts) as *const _;
            params.in_prompt = address(penalties.in_prompt) as *const _;
            params.repetition = some(penalties.repetition) as *const _;
            params.frequency = some(penalties.frequency) as *const _;
            params.presence = some(penalties.presence) as *const _;
            params.count_entries = penalties.ids.len() as u64 / 8;
        }
        Ok(params)
    }

    fn unpack_adjustments(
        &mut self,
        on: &On<'_>,
        from: Span<'_>,
        (rows, of): (usize, &DeviceAdjustments),
        out: &SpanMut<'_>,
    ) -> Result<()> {
        let ids = self.weights.info.vocab.len();
        let bytes = product_of(&[rows, of.message_bytes(ids)])?;
        from.check_len("messages of adjustments", bytes)?;
        let data = self.place("messages of adjustments", from, bytes / 8, 8)?;
        self.place("entries of adjustments", out.as_span(), of.placed_bytes(rows)? / 4, 4)?;
        let blocks = if from.is_empty() { 0 } else { rows };
        let told = placed(&PlacedAdjustments::carve(out.as_span(), rows, of));
        let params = UnpackAdjustmentsParams {
            data: data as usize as *const _,
            logit_bias_offsets: told.logit_bias_offsets.cast_mut(),
            logit_bias_ids: told.logit_bias_ids.cast_mut(),
            logit_bias_values: told.logit_bias_values.cast_mut(),
            count_offsets: told.count_offsets.cast_mut(),
            count_ids: told.count_ids.cast_mut(),
            counts: told.counts.cast_mut(),
            repetition: told.repetition.cast_mut(),
            frequency: told.frequency.cast_mut(),
            presence: told.presence.cast_mut(),
            places: of.places(),
            rows: count_of(rows)?,
            ids: count_of(ids)?,
        };
        self.launch_blocks(on, |shard| &shard.weights.kernels.inputs.unpack, (blocks, 0), params)
    }
}

/// The size of the vocabulary; refuses shards that are not cut as kernels cut it.
fn evenly(shards: &[Range<usize>]) -> Result<u32> {
    let vocab = shards.last().map_or(0, |shard| shard.end);
    let even = |(i, shard): (usize, &Range<usize>)| *shard == shard_range(vocab, shards.len(), i);
    if !shards.is_empty() && shards.iter().enumerate().all(even) {
        return count_of(vocab);
    }
    let (wanted, fix) = ("shards of shard_range", "cut shards with layout::shard_range");
    Err(Error::shape("shards", wanted, format!("{shards:?}"), fix))
}

/// The kernels' parameters for placed adjustments.
fn placed(at: &PlacedAdjustments<'_>) -> LogitAdjustments {
    let address = |span: &Span<'_>| span.address() as usize as *const u32;
    let mut told = NO_ADJUSTMENTS;
    if let Some((mask, pitch)) = &at.allowed {
        (told.allowed, told.allowed_pitch) = (address(mask), *pitch as u64);
    }
    if let Some(PlacedEntries { offsets, ids, values }) = &at.logit_bias {
        (told.logit_bias_offsets, told.logit_bias_ids) = (address(offsets), address(ids));
        told.logit_bias_values = address(values).cast();
    }
    if let Some((PlacedEntries { offsets, ids, values }, [repetition, frequency, presence])) = &at.counts {
        (told.count_offsets, told.count_ids, told.counts) = (address(offsets), address(ids), address(values));
        (told.repetition, told.frequency) = (address(repetition).cast(), address(frequency).cast());
        told.presence = address(presence).cast();
    }
    told
}

/// Adds the placed adjustments of the rows from `first` on to the kernels' parameters for the others.
pub(super) fn with_placed(
    mut told: LogitAdjustments,
    at: Option<&PlacedAdjustments<'_>>,
    first: usize,
) -> LogitAdjustments {
    let Some(at) = at else { return told };
    let own = placed(at);
    if at.allowed.is_some() {
        told.allowed = own.allowed.wrapping_add(first * own.allowed_pitch as usize);
        told.allowed_pitch = own.allowed_pitch;
    }
    if at.logit_bias.is_some() {
        told.logit_bias_offsets = own.logit_bias_offsets.wrapping_add(first);
        (told.logit_bias_ids, told.logit_bias_values) = (own.logit_bias_ids, own.logit_bias_values);
    }
    if at.counts.is_some() {
        told.count_offsets = own.count_offsets.wrapping_add(first);
        (told.count_ids, told.counts) = (own.count_ids, own.counts);
        told.repetition = own.repetition.wrapping_add(first);
        told.frequency = own.frequency.wrapping_add(first);
        told.presence = own.presence.wrapping_add(first);
    }
    told
}
