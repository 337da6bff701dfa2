//! A loaded shard: products on the caller's memory and stream, and what has to travel between host and
//! device.
//!
//! ```text
//! rows     in device memory: used in place                in host memory: one copy per row to the device
//! logits   in device memory: written in place             in host memory: one copy per row from the device
//! partials made by kernels: the product leaves those of its tiles, which a second kernel joins; draws, too
//!          (of more candidates than a warp collects: from its logits, which are selected from)
//! workspace  [quantised rows][status words][held f32 logits and what is made of them, or bars and the tiles'
//!            partials]: the caller's, or the shard's own
//! ```
//!
//! What is queued on an engine's stream is not waited for. The shard's own memory is then in use until the
//! event `used`, and whoever wants it next waits for that.

use super::adjustments::{NO_ADJUSTMENTS, packed_at};
use super::capacity::Counted;
use super::held::Held;
use super::partials::{self, BEST, NO_ANSWER, NO_PARTIALS, by_tiles, tile_bytes};
use super::room::GrowBuffer;
use super::weights::Weights;
use super::{Call, CopyRows, KernelDevice, Matmul, Side, checks, dtype_code, inputs, of_product};
use crate::adjust::ShardAdjustments;
use crate::backend::params::{
    HeldMatrix, LogitAdjustments, LogitMatrix, RowMatrix, SamplingRow, TilePartials,
};
use crate::backend::{
    Arrivals, Ask, CapacitySteps, HeldLogits, Inputs, Job, LoadedShard, LogitsOut, On, Out, Payload, Status,
    Which,
};
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, RowSampling};
use crate::memory::{self, Memory, Span, SpanMut};
use crate::merge::{Candidate, PartialSpec};
use crate::plan::{Shape, Tile};
use crate::process::Maker;
use crate::rows::HiddenRows;
use crate::sampling::cut::BINS;
use crate::weights::ShardInfo;
use std::ops::Range;
use std::sync::Arc;

/// Room for adjustments that `prepare` makes beside a mask: words for each row.
const ADJUSTED_WORDS: usize = 2048;

/// Targets of a row that `prepare` makes room for.
const TARGETS: usize = 8;

/// What all shards of a backend have in common.
pub(super) struct Common<D: KernelDevice> {
    pub device: D,
    /// Bytes of locked host memory for what is sent, and as many for what is received.
    pub staged: usize,
    /// Bytes of logits that are held at once for partials.
    pub held: usize,
    pub maker: Maker,
}

impl<D: KernelDevice> Common<D> {
    pub fn memory(&self) -> Memory {
        Memory::Device(self.device.ordinal())
    }
}

/// Memory between rows and answers.
pub(super) struct Rooms<D: KernelDevice> {
    /// On the device: rows, adjustments, logits with their status words, and a workspace.
    inputs: GrowBuffer<D::Buffer>,
    adjustments: GrowBuffer<D::Buffer>,
    pub outputs: GrowBuffer<D::Buffer>,
    workspace: GrowBuffer<D::Buffer>,
    /// What kernels are asked besides rows, and what parts of held rows know.
    asked: GrowBuffer<D::Buffer>,
    pub parts: GrowBuffer<D::Buffer>,
    /// Locked memory of the host: rows on their way, adjustments, what is asked, what came, and what a draw
    /// needs.
    sent: GrowBuffer<D::Staging>,
    sent_adjustments: GrowBuffer<D::Staging>,
    sent_asked: GrowBuffer<D::Staging>,
    pub received: GrowBuffer<D::Staging>,
    /// Adjustments before they are copied to locked memory.
    packed: Vec<u32>,
}

impl<D: KernelDevice> Default for Rooms<D> {
    fn default() -> Self {
        Rooms {
            inputs: GrowBuffer::default(),
            adjustments: GrowBuffer::default(),
            outputs: GrowBuffer::default(),
            workspace: GrowBuffer::default(),
            asked: GrowBuffer::default(),
            parts: GrowBuffer::default(),
            sent: GrowBuffer::default(),
            sent_adjustments: GrowBuffer::default(),
            sent_asked: GrowBuffer::default(),
            received: GrowBuffer::default(),
            packed: Vec::new(),
        }
    }
}

pub(super) struct DeviceShard<D: KernelDevice> {
    pub weights: Arc<Weights<D>>,
    pub common: Arc<Common<D>>,
    pub rooms: Rooms<D>,
    pub held: Held,
    /// The end of what uses the shard's own memory, and the stream that it is on; none where that was waited
    /// for.
    used: D::Event,
    pending: Option<memory::Stream>,
    /// Something was queued since the last wait.
    pub queued: bool,
    /// What is queued becomes part of a graph: nothing may wait, and memory of the shard's own stays.
    capturing: bool,
    /// Capacity steps, once there was one: a graph that replays them counts on here, so this is no memory
    /// that is given back.
    pub counted: Option<Arc<Counted<D>>>,
    /// The last field: memory goes before the stream that used it.
    stream: D::OwnedStream,
}

/// What a product leaves.
#[derive(Clone, Copy)]
struct Outputs {
    logits: LogitMatrix,
    raw: u64,
    partials: TilePartials,
}

impl Outputs {
    /// Logits alone.
    fn of(logits: LogitMatrix) -> Self {
        Outputs { logits, raw: 0, partials: NO_PARTIALS }
    }
}

/// Where a call's pieces lie in its workspace: bytes from its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// Of the product itself: 0 to here.
    product: usize,
    pub status: usize,
    /// What no candidate of a row is below; where tiles' partials are made.
    pub bars: usize,
    /// Held logits, or tiles' partials.
    pub held: usize,
    /// From row to row of held logits.
    pitch: usize,
    pub total: usize,
}

impl Places {
    /// Where what is made of held logits lies, of places for these alone.
    fn parts(&self) -> usize {
        self.total.next_multiple_of(256)
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// # Errors
    /// `Device` where a stream or an event is short.
    pub fn new(common: &Arc<Common<D>>, weights: Arc<Weights<D>>, stream: D::OwnedStream) -> Result<Self> {
        let used = common.device.event()?;
        let common = Arc::clone(common);
        let (rooms, held) = (Rooms::default(), Held::default());
        Ok(DeviceShard {
            weights,
            common,
            rooms,
            held,
            used,
            pending: None,
            queued: false,
            capturing: false,
            counted: None,
            stream,
        })
    }

    pub(super) fn ids(&self) -> usize {
        self.weights.info.vocab.len()
    }

    fn own(&self) -> Memory {
        self.common.memory()
    }

    pub(super) fn product(&self) -> &Matmul<D> {
        self.weights.product.as_ref().expect("a shard with ids")
    }

    /// Rows whose logits are held at once for partials, or what tiles leave instead of them.
    fn at_once(&self, rows: usize, spec: &PartialSpec) -> usize {
        let row = if by_tiles(spec) {
            self.ids().div_ceil(Tile::FEWEST_IDS) * spec.stride(Tile::FEWEST_IDS)
        } else {
            (4 * self.ids()).next_multiple_of(16)
        };
        rows.min((self.common.held / row).max(1))
    }

    /// `held`: how many kinds of logits are.
    fn places(&self, rows: usize, held: usize) -> Result<Places> {
        let product = self.product().workspace_bytes(rows)?.next_multiple_of(256);
        let pitch = (4 * self.ids()).next_multiple_of(16);
        let status = product;
        let logits = (4 * rows).next_multiple_of(256) + status;
        let held_bytes = product_of(&[held, rows, pitch])?;
        let total = sum_of(&[logits, held_bytes])?;
        Ok(Places { product, status, bars: logits, held: logits, pitch, total })
    }

    /// Of partials.
    fn partial_places(&self, rows: usize, spec: &PartialSpec) -> Result<Places> {
        if !by_tiles(spec) {
            let places = self.places(rows, 1)?;
            let parts = self.held_part_bytes(rows, spec)?;
            return Ok(Places { total: sum_of(&[places.parts(), parts])?, ..places });
        }
        let Places { product, status, bars, pitch, .. } = self.places(rows, 0)?;
        let held = sum_of(&[bars, (4 * rows).next_multiple_of(256)])?;
        // As of the smallest tiles, whatever the plan: what is enough for some rows is enough for fewer.
        let total = sum_of(&[held, tile_bytes(spec, rows, self.ids(), Tile::FEWEST_IDS)?])?;
        Ok(Places { product, status, bars, held, pitch, total })
    }

    /// Of draws.
    pub(super) fn drawn_places(&self, rows: usize) -> Result<Places> {
        let Places { product, status, bars, pitch, .. } = self.places(rows, 0)?;
        let held = sum_of(&[bars, (4 * rows).next_multiple_of(256)])?;
        // As of the smallest tiles, as those of partials.
        let total = sum_of(&[held, product_of(&[rows, self.drawn_row()])?])?;
        Ok(Places { product, status, bars, held, pitch, total })
    }

    /// Bytes that tiles leave of a row that is drawn.
    fn drawn_row(&self) -> usize {
        self.ids().div_ceil(Tile::FEWEST_IDS) * size_of::<Candidate>()
    }

    /// Rows that are drawn at once.
    pub(super) fn drawn_at_once(&self, rows: usize) -> usize {
        rows.min((self.common.held / self.drawn_row()).max(1))
    }

    /// Bytes of a workspace for so many rows' partials.
    fn partial_workspace(&self, rows: usize, spec: &PartialSpec) -> Result<usize> {
        Ok(self.partial_places(self.at_once(rows, spec), spec)?.total)
    }

    /// The stream of a call.
    fn stream_of(&self, on: &On<'_>) -> Result<D::Stream> {
        self.common.maker.check("the device backend")?;
        Ok(match on.stream {
            stream if stream.is_none() => self.common.device.on(&self.stream),
            // SAFETY: the promise of whoever made the handle.
            stream => unsafe { self.common.device.stream_from(stream) },
        })
    }

    /// The stream of a call that uses the shard's own memory. `own_memory`: that of the host is about to be
    /// written.
    pub(super) fn begin(&mut self, on: &On<'_>, own_memory: bool) -> Result<D::Stream> {
        let stream = self.stream_of(on)?;
        let device = &self.common.device;
        if let Some(pending) = self.pending
            && (own_memory || pending != device.handle(stream))
        {
            if self.capturing {
                return Err(waits_in_a_graph());
            }
            device.wait_for(&self.used)?;
            self.pending = None;
        }
        self.queued = true;
        Ok(stream)
    }

    /// Waits for the stream.
    pub(super) fn settle(&mut self, stream: D::Stream) -> Result<()> {
        if self.capturing {
            return Err(waits_in_a_graph());
        }
        self.common.device.record(&self.used, stream)?;
        self.common.device.wait_for(&self.used)?;
        (self.pending, self.queued) = (None, false);
        Ok(())
    }

    /// The end of a call: waited for where `wait` or where there is no stream of the caller's; otherwise its
    /// end is remembered.
    pub(super) fn end(&mut self, on: &On<'_>, stream: D::Stream, wait: bool) -> Result<()> {
        if !self.queued {
            return Ok(());
        }
        if wait || on.stream.is_none() {
            return self.settle(stream);
        }
        if self.capturing {
            // Whoever replays the graph says when its work has ended.
            return Ok(());
        }
        self.common.device.record(&self.used, stream)?;
        self.pending = Some(self.common.device.handle(stream));
        Ok(())
    }

    /// What `done` says. Where it failed, nothing that was queued still uses anybody's memory.
    pub(super) fn settled<T>(&mut self, stream: D::Stream, done: Result<T>) -> Result<T> {
        if done.is_err() {
            drop(self.settle(stream));
        }
        done
    }

    /// Device memory for a workspace of that many bytes.
    pub(super) fn workspace_at(&mut self, on: &On<'_>, needed: usize, rows: usize) -> Result<u64> {
        if let Some(given) = &on.workspace {
            return checks::workspace(given, needed, rows, self.own());
        }
        let device = &self.common.device;
        Ok(device.address(self.rooms.workspace.at_least(needed, |bytes| device.alloc(bytes))?))
    }

    /// Rows of device memory as the kernels read them.
    pub(super) fn matrix_of(&self, rows: &HiddenRows<'_>) -> Result<RowMatrix> {
        let (source, source_rows) = rows.source();
        let (indices, index_bytes) = rows
            .selection()
            .map_or((0, 4), |selection| (selection.data().address(), selection.index_bytes()));
        Ok(RowMatrix {
            data: source.address() as usize as *const _,
            pitch: rows.stride() as u64,
            indices: indices as usize as *const _,
            index_bytes: index_bytes as u32,
            source_rows: count_of(source_rows)?,
        })
    }

    /// A call that uses the caller's memory alone: on the caller's stream nothing is waited for or
    /// remembered.
    pub(super) fn only_on(
        &mut self,
        on: &On<'_>,
        queue: impl FnOnce(&mut Self, D::Stream) -> Result<()>,
    ) -> Result<()> {
        let stream = self.stream_of(on)?;
        let done = queue(self, stream);
        self.settled(stream, done)?;
        if on.stream.is_none() { self.settle(stream) } else { Ok(()) }
    }

    /// Rows where the kernels read them: in place, or on their way to the device. `waits`: the call does, so
    /// that what it queues may read the caller's own host memory.
    fn rows(&mut self, stream: D::Stream, rows: &HiddenRows<'_>, waits: bool) -> Result<RowMatrix> {
        if rows.memory() != Memory::Host {
            return self.matrix_of(rows);
        }
        let source = rows.source().0;
        let device = &self.common.device;
        let (n, row_bytes) = (rows.len(), rows.row_bytes());
        // Rows at multiples of 16 bytes are what the kernels copy 16 bytes at a time.
        let pitch = row_bytes.next_multiple_of(16);
        let total = product_of(&[n, pitch])?;
        let address = device.address(self.rooms.inputs.at_least(total, |bytes| device.alloc(bytes))?);
        let to = |row: usize| Side {
            memory: Memory::Device(device.ordinal()),
            address: address + (row * pitch) as u64,
            pitch,
        };
        if waits && rows.selection().is_none() && device.is_locked(&source) {
            let copy = CopyRows { to: to(0), from: Side::of(&source, rows.stride()), row_bytes, rows: n };
            // SAFETY: the caller's rows, which are borrowed until the call has waited, and as much room.
            unsafe { device.copy_rows(stream, &copy)? };
        } else {
            let at_once = (self.common.staged / pitch).clamp(1, n);
            let sent = self.rooms.sent.at_least(at_once * pitch, |bytes| device.staging(bytes))?.as_mut();
            for first in (0..n).step_by(at_once) {
                if first > 0 {
                    // It is filled anew.
                    device.record(&self.used, stream)?;
                    device.wait_for(&self.used)?;
                }
                let part = first..n.min(first + at_once);
                for (row, slot) in part.clone().zip(sent.chunks_exact_mut(pitch)) {
                    slot[..row_bytes].copy_from_slice(rows.row(row));
                    slot[row_bytes..].fill(0);
                }
                let bytes = Span::host(&sent[..part.len() * pitch]);
                let copy = CopyRows {
                    to: to(first),
                    from: Side::of(&bytes, pitch),
                    row_bytes: pitch,
                    rows: part.len(),
                };
                // SAFETY: the shard's own memory, which the next call waits for.
                unsafe { device.copy_rows(stream, &copy.joined())? };
            }
        }
        let data = address as usize as *const _;
        Ok(RowMatrix {
            data,
            pitch: pitch as u64,
            indices: std::ptr::null(),
            index_bytes: 4,
            source_rows: count_of(n)?,
        })
    }

    /// Adjustments where the kernels read them: in place, or on their way to the device.
    fn adjust(&mut self, stream: D::Stream, job: &Job<'_>, rows: Range<usize>) -> Result<LogitAdjustments> {
        let first = rows.start;
        let sent = self.send_adjustments(stream, job.adjustments, rows)?;
        Ok(inputs::with_placed(sent, job.placed.as_ref(), first))
    }

    fn send_adjustments(
        &mut self,
        stream: D::Stream,
        adjustments: Option<&ShardAdjustments>,
        rows: Range<usize>,
    ) -> Result<LogitAdjustments> {
        let Some(adjustments) = adjustments else { return Ok(NO_ADJUSTMENTS) };
        let row_words = self.ids().div_ceil(32);
        let at = adjustments.pack(rows, &mut self.rooms.packed);
        let words: &[u8] = bytemuck::cast_slice(&self.rooms.packed);
        if words.is_empty() {
            return Ok(NO_ADJUSTMENTS);
        }
        let device = &self.common.device;
        let address =
            device.address(self.rooms.adjustments.at_least(words.len(), |bytes| device.alloc(bytes))?);
        let sent = self.rooms.sent_adjustments.at_least(words.len(), |bytes| device.staging(bytes))?.as_mut();
        sent[..words.len()].copy_from_slice(words);
        let from = sent.as_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((self.common.memory(), address), (Memory::Host, from), words.len());
        // SAFETY: the shard's own memory, which the next call waits for.
        unsafe { device.copy_rows(stream, &copy)? };
        Ok(packed_at(address, &at, row_words))
    }

    /// Queues a product.
    fn launch(
        &self,
        stream: D::Stream,
        rows: (usize, RowMatrix),
        out: Outputs,
        adjustments: LogitAdjustments,
        epilogue: Epilogue,
        workspace: (u64, usize),
    ) -> Result<()> {
        let call = Call {
            rows: rows.0,
            weights: self.weights.matrix(),
            hidden: rows.1,
            logits: out.logits,
            adjustments,
            raw: out.raw,
            partials: out.partials,
            epilogue,
            workspace: workspace.0,
            workspace_bytes: workspace.1,
        };
        // SAFETY: the addresses are of checked spans and of the shard's own memory, which is kept until its
        // end.
        unsafe { self.product().run(&self.common.device, stream, &call) }
    }

    /// Names the product of so many rows in what a wait for it says.
    pub(super) fn named(&self, rows: usize) -> impl Fn(Error) -> Error + use<D> {
        let shape = Shape { rows, vocab: self.ids(), hidden: self.weights.info.hidden_size };
        move |error| of_product(&shape, error)
    }

    /// [`LoadedShard::run`] for logits that were checked.
    fn logits(&mut self, stream: D::Stream, job: &Job<'_>, out: LogitsOut<'_>, on: &On<'_>) -> Result<()> {
        let (n, row_bytes) = (job.rows.len(), self.ids() * out.dtype.size());
        let places = self.places(n, 0)?;
        let workspace = self.workspace_at(on, places.total, n)?;
        let to_host = out.data.memory() == Memory::Host;
        let rows = self.rows(stream, &job.rows, to_host || on.stream.is_none())?;
        let adjustments = self.adjust(stream, job, 0..n)?;
        let dtype = dtype_code(out.dtype).expect("checked: a float type");
        let (device, own) = (self.common.device.clone(), self.own());
        let product = (workspace, places.product);
        if !to_host {
            let in_place = match &out.status {
                Status::Apart { words, stride } if *stride == 4 || n == 1 => Some(words.address()),
                _ => None,
            };
            let status = in_place.unwrap_or(workspace + places.status as u64);
            let logits = LogitMatrix {
                data: out.data.address() as usize as *mut _,
                pitch: out.stride as u64,
                status: status as usize as *mut u32,
                dtype,
            };
            self.launch(stream, (n, rows), Outputs::of(logits), adjustments, job.epilogue, product)?;
            if in_place.is_none() {
                let (address, pitch) = match &out.status {
                    Status::Apart { words, stride } => (words.address(), *stride),
                    Status::Inside { at } => (out.data.address() + *at as u64, out.stride),
                };
                let to = Side { memory: own, address, pitch };
                let copy = CopyRows {
                    to,
                    from: Side { memory: own, address: status, pitch: 4 },
                    row_bytes: 4,
                    rows: n,
                };
                // SAFETY: the caller's words, and the workspace's.
                unsafe { device.copy_rows(stream, &copy)? };
            }
            return Ok(());
        }
        // [status words][logits]
        let pitch = row_bytes.next_multiple_of(16);
        let first = (4 * n).next_multiple_of(256);
        let total = sum_of(&[first, product_of(&[n, pitch])?])?;
        let start = device.address(self.rooms.outputs.at_least(total, |bytes| device.alloc(bytes))?);
        let logits = LogitMatrix {
            data: (start as usize + first) as *mut _,
            pitch: pitch as u64,
            status: start as usize as *mut u32,
            dtype,
        };
        self.launch(stream, (n, rows), Outputs::of(logits), adjustments, job.epilogue, product)?;
        let from = |address: u64, pitch: usize| Side { memory: own, address, pitch };
        let from_logits = from(start + first as u64, pitch);
        let (words, words_pitch) = match &out.status {
            Status::Apart { words, stride } => (words.as_span(), *stride),
            Status::Inside { at } => (out.data.as_span().part(*at..out.data.len()), out.stride),
        };
        if device.is_locked(&out.data.as_span()) && device.is_locked(&words) {
            let to = Side::of(&out.data.as_span(), out.stride);
            let all = CopyRows { to, from: from_logits, row_bytes, rows: n };
            let to = Side::of(&words, words_pitch);
            let status = CopyRows { to, from: from(start, 4), row_bytes: 4, rows: n };
            // SAFETY: checked places of the caller's, which `run` waits for.
            unsafe {
                device.copy_rows(stream, &all)?;
                device.copy_rows(stream, &status)?;
            }
            return Ok(());
        }
        self.bring(stream, start, (first, total, pitch), row_bytes, out)
    }

    /// Logits through the shard's own locked memory to the caller's: in one copy where they fit it.
    fn bring(
        &mut self,
        stream: D::Stream,
        start: u64,
        (first, total, pitch): (usize, usize, usize),
        row_bytes: usize,
        out: LogitsOut<'_>,
    ) -> Result<()> {
        let (device, own) = (&self.common.device, self.common.memory());
        let rows = (total - first) / pitch;
        let at_once = total.min(self.common.staged.max(first));
        let staging = self.rooms.received.at_least(at_once, |bytes| device.staging(bytes))?.as_mut();
        let host = staging.as_mut_ptr().expose_provenance() as u64;
        let LogitsOut { data, stride, status, .. } = out;
        let data = data.into_host().expect("checked: host memory");
        let (mut apart, inside) = match status {
            Status::Apart { words, stride } => {
                (Some((words.into_host().expect("checked: host memory"), stride)), 0)
            }
            Status::Inside { at } => (None, at),
        };
        for at in (0..total).step_by(at_once) {
            let bytes = at_once.min(total - at);
            let copy = CopyRows::whole((Memory::Host, host), (own, start + at as u64), bytes);
            // SAFETY: the shard's own memory, and a wait.
            unsafe { device.copy_rows(stream, &copy)? };
            device.record(&self.used, stream)?;
            device.wait_for(&self.used)?;
            let mut came = &staging[..bytes];
            let mut from = at.saturating_sub(first);
            if at == 0 {
                for (row, word) in came[..4 * rows].as_chunks::<4>().0.iter().enumerate() {
                    let slot = match &mut apart {
                        Some((words, stride)) => &mut words[row * *stride..],
                        None => &mut data[row * stride + inside..],
                    };
                    slot[..4].copy_from_slice(word);
                }
                came = &came[first..];
                from = 0;
            }
            // What lies between rows is nobody's.
            while !came.is_empty() {
                let (row, column) = (from / pitch, from % pitch);
                let (now, later) = came.split_at(came.len().min(pitch - column));
                let wanted = &now[..now.len().min(row_bytes.saturating_sub(column))];
                if !wanted.is_empty() {
                    data[row * stride + column..][..wanted.len()].copy_from_slice(wanted);
                }
                (from, came) = (from + now.len(), later);
            }
        }
        // Each part was waited for.
        self.queued = false;
        Ok(())
    }

    /// [`LoadedShard::hold`] of some rows that were checked, in a workspace that has room. `waits`: as of
    /// [`DeviceShard::rows`].
    fn hold_rows(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        (raw, waits): (bool, bool),
        workspace: u64,
    ) -> Result<()> {
        let (n, ids) = (rows.len(), self.ids());
        let part = job.rows.range(rows.clone());
        let places = self.places(n, if raw { 2 } else { 1 })?;
        let matrix = self.rows(stream, &part, waits)?;
        let both = raw && job.is_adjusted();
        let adjustments = self.adjust(stream, job, rows)?;
        let address = workspace + places.held as u64;
        // Behind those with adjustments.
        let raw_address = if both { address + (n * places.pitch) as u64 } else { 0 };
        let logits = LogitMatrix {
            data: address as usize as *mut _,
            pitch: places.pitch as u64,
            status: (workspace + places.status as u64) as usize as *mut u32,
            dtype: dtype_code(DType::F32).expect("a float type"),
        };
        let product = (workspace, places.product);
        let out = Outputs { logits, raw: raw_address, partials: NO_PARTIALS };
        self.launch(stream, (n, matrix), out, adjustments, job.epilogue, product)?;
        let held = &mut self.held;
        (held.rows, held.both, held.adjusted_only) = (n, both, job.is_adjusted() && !raw);
        held.matrix = Some(HeldMatrix {
            data: logits.data.cast_const().cast(),
            status: logits.status.cast_const(),
            pitch: logits.pitch,
            nonfinite: NO_ANSWER,
            rows: n as u32,
            ids: ids as u32,
            first_id: self.weights.info.vocab.start as u32,
        });
        Ok(())
    }

    /// [`LoadedShard::run`] for partials that were checked.
    fn partials(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        spec: PartialSpec,
        out: SpanMut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let n = job.rows.len();
        // As many rows at once as a workspace has room for that is larger than it must be.
        let all = self.partial_places(n, &spec)?.total;
        let (at_once, needed) = match &on.workspace {
            Some(given) if all <= given.len() => (n, all),
            _ => (self.at_once(n, &spec), self.partial_workspace(n, &spec)?),
        };
        let workspace = self.workspace_at(on, needed, n)?;
        let mut left = out;
        for first in (0..n).step_by(at_once) {
            let rows = first..n.min(first + at_once);
            let (part, rest) = left.split_at(rows.len() * spec.stride(self.ids()));
            self.begin_part(stream, job, first)?;
            let waits = part.memory() == Memory::Host || on.stream.is_none();
            let to = if part.memory() == Memory::Host {
                let device = &self.common.device;
                device.address(self.rooms.outputs.at_least(part.len(), |bytes| device.alloc(bytes))?)
            } else {
                part.address()
            };
            let named = self.named(rows.len());
            if by_tiles(&spec) {
                self.tile_partials(stream, job, rows, &spec, (workspace, waits), to)?;
            } else {
                self.held_partials(stream, job, rows, &spec, (workspace, waits), to)?;
            }
            if let Some(bytes) = part.into_host() {
                self.answer(stream, to, bytes).map_err(named)?;
            }
            left = rest;
        }
        Ok(())
    }

    /// The part of a job's rows from `first` on is about to be queued.
    pub(super) fn begin_part(&mut self, stream: D::Stream, job: &Job<'_>, first: usize) -> Result<()> {
        if first > 0 && (job.rows.memory() == Memory::Host || job.adjustments.is_some()) {
            // The part before is on its way still from the same memory of the host.
            self.settle(stream)?;
            self.queued = true;
        }
        Ok(())
    }

    /// Some rows' partials at `out` by way of their logits, in a workspace that has room. `waits`: as of
    /// [`DeviceShard::rows`].
    fn held_partials(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        spec: &PartialSpec,
        (workspace, waits): (u64, bool),
        out: u64,
    ) -> Result<()> {
        let parts = workspace + self.places(rows.len(), 1)?.parts() as u64;
        self.hold_rows(stream, job, rows, (false, waits), workspace)?;
        let held = self.held.matrix(Which::Adjusted).expect("a shard with ids");
        self.summarise_held(stream, held, spec, 0, parts, out)
    }

    /// Queues a product of some rows that leaves `partials` in a workspace that has room. `waits`: as of
    /// [`DeviceShard::rows`].
    pub(super) fn tiles(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        (workspace, places): (u64, &Places),
        waits: bool,
        partials: TilePartials,
    ) -> Result<()> {
        let n = rows.len();
        let matrix = self.rows(stream, &job.rows.range(rows.clone()), waits)?;
        let adjustments = self.adjust(stream, job, rows)?;
        let logits = LogitMatrix {
            data: std::ptr::null_mut(),
            pitch: 0,
            status: (workspace + places.status as u64) as usize as *mut u32,
            dtype: dtype_code(DType::F32).expect("a float type"),
        };
        let product = (workspace, places.product);
        let outputs = Outputs { logits, raw: 0, partials };
        self.launch(stream, (n, matrix), outputs, adjustments, job.epilogue, product)
    }

    /// Some rows' partials by kernels, in a workspace that has room. `waits`: as of [`DeviceShard::rows`].
    fn tile_partials(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        spec: &PartialSpec,
        (workspace, waits): (u64, bool),
        out: u64,
    ) -> Result<()> {
        let n = rows.len();
        let plan = self.product().plan(n)?;
        let places = self.partial_places(n, spec)?;
        let partials = TilePartials {
            data: (workspace + places.held as u64) as usize as *mut u8,
            bars: (workspace + places.bars as u64) as usize as *mut u32,
            k: spec.k as u32,
            sum: u32::from(spec.sum),
            ..NO_PARTIALS
        };
        self.tiles(stream, job, rows, (workspace, &places), waits, partials)?;
        self.merge_tiles(stream, (workspace, &places), &plan, spec, out)
    }

    /// Host bytes on their way to the device: where they will be.
    pub(super) fn ask(&mut self, stream: D::Stream, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let device = &self.common.device;
        let to = device.address(self.rooms.asked.at_least(bytes.len(), |bytes| device.alloc(bytes))?);
        let sent = self.rooms.sent_asked.at_least(bytes.len(), |bytes| device.staging(bytes))?.as_mut();
        sent[..bytes.len()].copy_from_slice(bytes);
        let from = sent.as_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((self.common.memory(), to), (Memory::Host, from), bytes.len());
        // SAFETY: the shard's own memory, which the next call waits for.
        unsafe { device.copy_rows(stream, &copy)? };
        Ok(to)
    }

    /// Bytes of the device's, waited for and copied to the host's.
    pub(super) fn answer(&mut self, stream: D::Stream, from: u64, out: &mut [u8]) -> Result<()> {
        let (device, bytes) = (self.common.device.clone(), out.len());
        let staging = self.rooms.received.at_least(bytes, |bytes| device.staging(bytes))?.as_mut();
        let host = staging.as_mut_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((Memory::Host, host), (self.own(), from), bytes);
        // SAFETY: the shard's own memory, and a wait.
        unsafe { device.copy_rows(stream, &copy)? };
        self.settle(stream)?;
        out.copy_from_slice(&self.rooms.received.get().as_mut()[..bytes]);
        Ok(())
    }

    /// Status words and partials of a shard without ids: nothing was seen.
    fn nothing(&mut self, stream: D::Stream, rows: usize, out: Out<'_>) -> Result<()> {
        let device = self.common.device.clone();
        match out {
            Out::Logits(LogitsOut { data, stride, status, .. }) => {
                let (words, stride) = match status {
                    Status::Apart { words, stride } => (words, stride),
                    Status::Inside { at } => {
                        let len = data.len();
                        (data.part(at..len), stride)
                    }
                };
                if words.memory() == Memory::Host {
                    let bytes = words.into_host().expect("host memory");
                    (0..rows).for_each(|row| bytes[row * stride..][..4].fill(0));
                    return Ok(());
                }
                // SAFETY: checked words of the caller's.
                let fill = |row: usize| unsafe {
                    device.fill(stream, words.address() + (row * stride) as u64, 1, 0)
                };
                (0..rows).try_for_each(fill)
            }
            Out::Partials(spec, out) => self.nothing_at(stream, rows, &spec, out),
            Out::Drawn(..) => unreachable!("drawn like those of other shards"),
        }
    }
}

impl<D: KernelDevice> LoadedShard for DeviceShard<D> {
    fn info(&self) -> &ShardInfo {
        &self.weights.info
    }

    fn another(&self) -> Result<Box<dyn LoadedShard>> {
        self.common.maker.check("the device backend")?;
        let stream = self.common.device.open_stream()?;
        Ok(Box::new(DeviceShard::new(&self.common, Arc::clone(&self.weights), stream)?))
    }

    fn workspace(&self, rows: usize, ask: Ask) -> Result<usize> {
        if rows == 0 || self.ids() == 0 {
            return Ok(0);
        }
        let places = match ask {
            Ask::Logits { .. } => self.places(rows, 0)?,
            // Whoever may hold the rows may draw them.
            Ask::Hold { raw } => {
                let held = self.places(rows, if raw { 2 } else { 1 })?.total;
                return Ok(held.max(self.drawn_places(rows)?.total));
            }
            Ask::Drawn => {
                self.product().plan(rows)?;
                self.drawn_places(self.drawn_at_once(rows))?
            }
            Ask::Partials(spec) => {
                // More rows than can be are refused, however few are held at once.
                self.product().plan(rows)?;
                return self.partial_workspace(rows, &spec);
            }
        };
        Ok(places.total)
    }

    fn prepare(&mut self, rows: usize, ask: Ask) -> Result<()> {
        let workspace = self.workspace(rows, ask)?;
        if workspace == 0 {
            return Ok(());
        }
        self.forget();
        let stream = self.begin(&On::default(), true)?;
        self.settle(stream)?;
        let (ids, hidden) = (self.ids(), self.weights.info.hidden_size * self.weights.hidden.size());
        let at_once = match ask {
            Ask::Partials(spec) => self.at_once(rows, &spec),
            Ask::Drawn => self.drawn_at_once(rows),
            _ => rows,
        };
        let (staged, device) = (self.common.staged, self.common.device.clone());
        let on_device = |bytes| device.alloc(bytes);
        let locked = |bytes| device.staging(bytes);
        let rooms = &mut self.rooms;
        rooms.workspace.at_least(workspace, on_device)?;
        let pitch = hidden.next_multiple_of(16);
        rooms.inputs.at_least(product_of(&[at_once, pitch])?, on_device)?;
        rooms.sent.at_least((staged / pitch).clamp(1, at_once) * pitch, locked)?;
        let adjusted = 4 * product_of(&[at_once, ids.div_ceil(32) + ADJUSTED_WORDS])?;
        rooms.adjustments.at_least(adjusted, on_device)?;
        rooms.packed.clear();
        rooms.packed.reserve(adjusted / 4);
        rooms.sent_adjustments.at_least(adjusted, locked)?;
        match ask {
            Ask::Logits { dtype } => {
                let first = (4 * rows).next_multiple_of(256);
                let pitch = (ids * dtype.size()).next_multiple_of(16);
                let total = sum_of(&[first, product_of(&[rows, pitch])?])?;
                rooms.outputs.at_least(total, on_device)?;
                rooms.received.at_least(total.min(staged.max(first)), locked)?;
            }
            Ask::Drawn => {
                let answer = product_of(&[at_once, size_of::<Candidate>()])?;
                rooms.outputs.at_least(answer, on_device)?;
                rooms.received.at_least(answer, locked)?;
                let asked = product_of(&[rows, size_of::<SamplingRow>()])?;
                self.held.asked.clear();
                self.held.asked.reserve(asked);
                rooms.asked.at_least(asked, on_device)?;
                rooms.sent_asked.at_least(asked, locked)?;
            }
            Ask::Partials(spec) => {
                let bytes = product_of(&[at_once, spec.stride(ids)])?;
                rooms.outputs.at_least(bytes, on_device)?;
                rooms.received.at_least(bytes, locked)?;
            }
            Ask::Hold { .. } => {
                // Of as many candidates as a warp collects, and some targets.
                let spec = PartialSpec { k: BEST, sum: true, targets: TARGETS };
                let parts = partials::tile_bytes(&spec, rows, ids, partials::part_ids(ids))?;
                rooms.parts.at_least(parts, on_device)?;
                let answer = product_of(&[at_once, spec.stride(ids).max(8 * BINS)])?;
                rooms.outputs.at_least(answer, on_device)?;
                rooms.received.at_least(answer, locked)?;
                // What a draw asks of a row is less.
                let asked = product_of(&[at_once, TARGETS, size_of::<Candidate>()])?;
                self.held.asked.clear();
                self.held.asked.reserve(asked);
                rooms.asked.at_least(asked, on_device)?;
                rooms.sent_asked.at_least(asked, locked)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, job: &Job<'_>, out: Out<'_>, on: &mut On<'_>) -> Result<()> {
        let (own, ids, n) = (self.own(), self.ids(), job.rows.len());
        checks::job(job, &self.weights.info, self.weights.hidden, own)?;
        let to_host = match &out {
            Out::Logits(out) => {
                checks::logits(out, job, ids, own)?;
                out.data.memory() == Memory::Host
            }
            Out::Partials(spec, out) => {
                check_spec(spec)?;
                checks::partials(out, product_of(&[n, spec.stride(ids)])?, job, own)?;
                out.memory() == Memory::Host
            }
            Out::Drawn(sampling, out) => {
                self.check_drawn(sampling, n)?;
                checks::partials(out, product_of(&[n, size_of::<Candidate>()])?, job, own)?;
                out.memory() == Memory::Host
            }
        };
        self.forget();
        if n == 0 {
            return Ok(());
        }
        // Whatever goes through host memory.
        let by_host = to_host
            || job.rows.memory() == Memory::Host
            || job.adjustments.is_some()
            || matches!(&out, Out::Drawn(RowSampling::Host(_), _));
        let uses_own = by_host || on.workspace.is_none();
        let stream = self.begin(on, by_host)?;
        let done = match out {
            Out::Drawn(sampling, out) => self.drawn(stream, job, &sampling, out, on),
            out if ids == 0 => self.nothing(stream, n, out),
            Out::Logits(out) => self.logits(stream, job, out, on),
            Out::Partials(spec, out) => self.partials(stream, job, spec, out, on),
        };
        self.settled(stream, done)?;
        let named = self.named(n);
        if !uses_own && !on.stream.is_none() {
            return Ok(());
        }
        self.end(on, stream, to_host).map_err(named)
    }

    fn hold<'h>(&'h mut self, job: &Job<'_>, raw: bool, on: &mut On<'h>) -> Result<&'h mut dyn HeldLogits> {
        let n = job.rows.len();
        self.forget();
        checks::job(job, &self.weights.info, self.weights.hidden, self.own())?;
        self.held.stream = on.stream;
        let stream = self.begin(on, job.rows.memory() == Memory::Host || job.adjustments.is_some())?;
        if n == 0 || self.ids() == 0 {
            self.held.nothing(n);
            self.held.is_there = true;
            return Ok(self);
        }
        let needed = self.places(n, if raw { 2 } else { 1 })?.total;
        let workspace = self.workspace_at(on, needed, n)?;
        // It is the held logits' from now on.
        on.workspace = None;
        let done = self.hold_rows(stream, job, 0..n, (raw, on.stream.is_none()), workspace);
        self.settled(stream, done)?;
        let named = self.named(n);
        self.end(on, stream, false).map_err(named)?;
        self.held.is_there = true;
        Ok(self)
    }

    unsafe fn held(&mut self) -> Option<&mut dyn HeldLogits> {
        if self.held.is_there { Some(self) } else { None }
    }

    fn pack(
        &mut self,
        rows: &HiddenRows<'_>,
        out: SpanMut<'_>,
        status: SpanMut<'_>,
        on: &mut On<'_>,
    ) -> Result<()> {
        self.pack_anywhere(rows, out, status, on)
    }

    fn finish(&mut self, what: Finish<'_>, scratch: &mut finish::Scratch, on: &mut On<'_>) -> Result<()> {
        self.finish_anywhere(what, scratch, on)
    }

    fn open_capacity(&mut self, payload: Payload<'_>, on: &mut On<'_>) -> Result<()> {
        self.open_payload(payload, on)
    }

    fn check_capacity(&mut self, arrivals: Arrivals<'_>, on: &mut On<'_>) -> Result<()> {
        self.check_arrivals(arrivals, on)
    }

    fn restart_capacity(&mut self) -> Result<()> {
        self.restart_counted()
    }

    fn capture(&mut self, capturing: bool) {
        self.capturing = capturing;
        // What held logits are made into lies in memory of the shard's own.
        self.rooms.parts.capture(capturing);
    }

    fn remember_queued(&mut self, on: &On<'_>) -> Result<()> {
        let stream = self.stream_of(on)?;
        self.common.device.record(&self.used, stream)?;
        self.pending = Some(self.common.device.handle(stream));
        Ok(())
    }

    fn wait_queued(&mut self) -> Result<()> {
        self.common.maker.check("the device backend")?;
        self.wait_for_pending()
    }

    fn capacity_steps(&self) -> Option<Arc<dyn CapacitySteps>> {
        self.counted.clone().map(|counted| counted as _)
    }

    fn inputs(&mut self, what: Inputs<'_>, on: &mut On<'_>) -> Result<()> {
        self.place_inputs(what, on)
    }

    fn release_memory(&mut self) {
        self.forget();
        if self.common.maker.is_here() && self.wait_for_pending().is_ok() {
            (self.rooms, self.held) = (Rooms::default(), Held::default());
        }
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    fn wait_for_pending(&mut self) -> Result<()> {
        if self.pending.is_some() {
            self.common.device.wait_for(&self.used)?;
            self.pending = None;
        }
        Ok(())
    }
}

impl<D: KernelDevice> Drop for DeviceShard<D> {
    /// Its memory goes when nothing uses it any more.
    fn drop(&mut self) {
        if self.common.maker.is_here() {
            drop(self.wait_for_pending());
        }
    }
}

fn waits_in_a_graph() -> Error {
    Error::Device {
        what: "a step that is captured in a graph".into(),
        problem: "it would wait on the host, for its inputs in host memory or for a step on another stream"
            .into(),
        fix: "put all inputs in device memory, and capture on the stream of the steps before".into(),
    }
}

pub(super) fn check_candidates(spec: &PartialSpec) -> Result<()> {
    if spec.k == 0 {
        return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
    }
    Ok(())
}

fn check_spec(spec: &PartialSpec) -> Result<()> {
    check_candidates(spec)?;
    if spec.targets > 0 {
        let fix = "hold the logits, and ask for partials in a pass";
        return Err(Error::request("targets of a product's partials", "none", spec.targets, fix));
    }
    Ok(())
}

pub(super) fn count_of(rows: usize) -> Result<u32> {
    let fix = "send fewer rows in one step";
    u32::try_from(rows).map_err(|_| Error::shape("rows of hidden_states", "fewer than 2^32", rows, fix))
}

pub(super) fn product_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or_else(|| too_large(sizes))
}

pub(super) fn sum_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(0usize, |n, &size| n.checked_add(size)).ok_or_else(|| too_large(sizes))
}

fn too_large(sizes: &[usize]) -> Error {
    let fix = "send fewer rows in one step";
    Error::shape("device memory", "fewer bytes than 2^64", format!("{sizes:?}"), fix)
}
