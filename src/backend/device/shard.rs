//! A loaded shard: matmuls on the caller's memory and stream, and what has to travel between host and device.
//!
//! ```text
//! rows     in device memory: used in place                in host memory: one copy per row to the device
//! logits   in device memory: written in place             in host memory: one copy per row from the device
//! partials made by kernels: the matmul leaves partials of its tiles, which a second kernel joins; draws too
//!          (more candidates than a warp collects are selected from held logits)
//! workspace  [quantised rows][status words][held f32 logits and what is made of them, or bars and the tiles'
//!            partials]: the caller's, or the shard's own
//! ```
//!
//! * `places`: where the parts of a call's workspace lie, and memory that is made ahead.
//! * `streams`: who waits for what.
//! * `transfers`: rows and adjustments on their way to the device, answers on theirs to the host.
//! * `logits`: whole logits.
//!
//! What is queued on an engine's stream is not waited for. The shard's own memory is then in use until the
//! event `used`: whoever wants it next waits for that.

mod logits;
mod places;
mod streams;
mod transfers;

use super::capacity::Counted;
pub(super) use super::checks::{check_candidates, count_of, product_of, sum_of};
use super::held::Held;
use super::partials::{NO_ANSWER, NO_PARTIALS, by_tiles};
use super::room::GrowBuffer;
use super::weights::Weights;
use super::{KernelDevice, Matmul, MatmulCall, checks, dtype_code, of_product};
use crate::backend::params::{HeldMatrix, LogitAdjustments, LogitMatrix, RowMatrix, TilePartials};
use crate::backend::{
    Arrivals, Ask, CapacitySteps, HeldLogits, Inputs, Job, LoadedShard, On, Out, Payload, Which,
};
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, RowSampling};
use crate::memory::{self, Memory, Span, SpanMut};
use crate::merge::{Candidate, PartialSpec};
use crate::plan::{Shape, Tuning};
use crate::process::Maker;
use crate::rows::HiddenRows;
use crate::weights::ShardInfo;
pub(super) use places::Places;
use std::ops::Range;
use std::sync::Arc;

/// What all shards of a backend have in common.
pub(super) struct Common<D: KernelDevice> {
    pub device: D,
    /// Bytes of pinned host memory for what is sent, and as many for what is received.
    pub staged: usize,
    /// The most bytes of logits that are held at once for partials.
    pub held: usize,
    /// Choices of kernels, in place of the cost model's.
    pub tuning: Option<Arc<Tuning>>,
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
    /// What kernels are asked besides rows; partials of parts of held rows.
    asked: GrowBuffer<D::Buffer>,
    pub parts: GrowBuffer<D::Buffer>,
    /// Pinned memory of the host: rows on their way, adjustments, what is asked, what came, and what a draw
    /// needs.
    sent: GrowBuffer<D::Staging>,
    sent_adjustments: GrowBuffer<D::Staging>,
    sent_asked: GrowBuffer<D::Staging>,
    pub received: GrowBuffer<D::Staging>,
    /// Adjustments before they are copied to pinned memory.
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

/// Rows that were copied to the device, one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Brought {
    pub address: u64,
    pub pitch: u64,
    pub rows: usize,
}

pub(super) struct DeviceShard<D: KernelDevice> {
    pub weights: Arc<Weights<D>>,
    pub common: Arc<Common<D>>,
    pub rooms: Rooms<D>,
    pub held: Held,
    /// The end of the work that uses the shard's own memory; then the stream of that work, `None` once it was
    /// waited for.
    used: D::Event,
    pending: Option<memory::Stream>,
    /// Something was queued since the last wait.
    pub queued: bool,
    /// Rows of host memory that the last call has copied to the device: the next call may use them again.
    pub brought: Option<Brought>,
    /// What is queued becomes part of a CUDA graph: nothing may wait, and the shard's own memory stays.
    capturing: bool,
    /// Work on the stream may wait for other ranks: the head waits for it, with its deadline.
    deferring: bool,
    /// The state of capacity steps, once there was one. A graph that replays them counts on in it, so it is
    /// never given back.
    pub counted: Option<Arc<Counted<D>>>,
    /// The last field, so that memory is freed before the stream that used it.
    stream: D::OwnedStream,
}

/// What a matmul writes.
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
            brought: None,
            capturing: false,
            deferring: false,
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

    /// Address of a workspace of `needed` bytes: the caller's, or the shard's own.
    pub(super) fn workspace_at(&mut self, on: &On<'_>, needed: usize, rows: usize) -> Result<u64> {
        if let Some(given) = &on.workspace {
            return checks::workspace(given, needed, rows, self.own());
        }
        let device = &self.common.device;
        Ok(device.address(self.rooms.workspace.at_least(needed, |bytes| device.alloc(bytes))?))
    }

    /// Queues a matmul.
    fn launch(
        &self,
        stream: D::Stream,
        rows: (usize, RowMatrix),
        out: Outputs,
        adjustments: LogitAdjustments,
        epilogue: Epilogue,
        workspace: (u64, usize),
    ) -> Result<()> {
        let call = MatmulCall {
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

    /// Adds the matmul of `rows` rows to the error of a wait for it.
    pub(super) fn named(&self, rows: usize) -> impl Fn(Error) -> Error + use<D> {
        let shape = Shape { rows, vocab: self.ids(), hidden: self.weights.info.hidden_size };
        move |error| of_product(&shape, error)
    }

    /// [`LoadedShard::hold`] for some rows of a checked job, in a workspace that has room. `waits`: as in
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
        let places = self.places(n, if raw { 2 } else { 1 })?;
        let matrix = self.some_rows(stream, job, rows.clone(), waits)?;
        let both = raw && job.is_adjusted();
        let adjustments = self.adjust(stream, job, rows)?;
        let address = workspace + places.held as u64;
        // The logits without adjustments lie behind those with them.
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
        (held.rows, held.has_raw, held.adjusted_only) = (n, both, job.is_adjusted() && !raw);
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
        (spec, targets): (PartialSpec, Span<'_>),
        out: SpanMut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let n = job.rows.len();
        let targets = match targets.as_host() {
            Some(targets) => self.ask(stream, targets)?,
            None => targets.address(),
        };
        // A workspace may be larger than it must be: all rows at once, where it has room for them.
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
            let to = self.output(&part)?;
            let named = self.named(rows.len());
            let targets = targets + (first * spec.targets * size_of::<Candidate>()) as u64;
            if by_tiles(&spec) {
                self.tile_partials(stream, job, rows, (&spec, targets), (workspace, waits), to)?;
            } else {
                self.held_partials(stream, job, rows, (&spec, targets), (workspace, waits), to)?;
            }
            if let Some(bytes) = part.into_host() {
                self.answer(stream, to, bytes).map_err(named)?;
            }
            left = rest;
        }
        Ok(())
    }

    /// To be called before the part of a job's rows from `first` on is queued.
    pub(super) fn begin_part(&mut self, stream: D::Stream, job: &Job<'_>, first: usize) -> Result<()> {
        if first > 0 && (job.rows.memory() == Memory::Host || job.adjustments.is_some()) {
            // The part before may still be on its way from the same host memory.
            self.synchronize(stream)?;
            self.queued = true;
        }
        Ok(())
    }

    /// Makes some rows' partials at `out` from their logits, in a workspace that has room. `waits`: as in
    /// [`DeviceShard::rows`].
    fn held_partials(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        (spec, targets): (&PartialSpec, u64),
        (workspace, waits): (u64, bool),
        out: u64,
    ) -> Result<()> {
        let parts = workspace + self.places(rows.len(), 1)?.parts() as u64;
        self.hold_rows(stream, job, rows, (false, waits), workspace)?;
        let held = self.held.matrix(Which::Adjusted).expect("a shard with ids");
        self.summarise_held(stream, held, spec, targets, parts, out)
    }

    /// Queues a matmul of some rows that leaves `partials` in a workspace that has room. `waits`: as in
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
        let matrix = self.some_rows(stream, job, rows.clone(), waits)?;
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

    /// Makes some rows' partials from those of tiles, in a workspace that has room. `waits`: as in
    /// [`DeviceShard::rows`].
    fn tile_partials(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        (spec, targets): (&PartialSpec, u64),
        (workspace, waits): (u64, bool),
        out: u64,
    ) -> Result<()> {
        let n = rows.len();
        let plan = self.product().plan(n)?;
        let places = self.partial_places(n, spec)?;
        let partials = TilePartials {
            data: (workspace + places.held as u64) as usize as *mut u8,
            bars: (workspace + places.bars as u64) as usize as *mut u32,
            targets: targets as usize as *const Candidate,
            k: spec.k as u32,
            sum: u32::from(spec.sum),
            first_id: self.weights.info.vocab.start as u32,
            target_count: count_of(spec.targets)?,
            ..NO_PARTIALS
        };
        self.tiles(stream, job, rows, (workspace, &places), waits, partials)?;
        self.merge_tiles(stream, (workspace, &places), &plan, spec, out)
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
        self.workspace_bytes(rows, ask)
    }

    fn prepare(&mut self, rows: usize, ask: Ask) -> Result<()> {
        self.make_room(rows, ask)
    }

    fn counts_targets(&self) -> bool {
        true
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
                checks::check_spec(spec)?;
                checks::partials(out, product_of(&[n, spec.stride(ids)])?, job, own)?;
                out.memory() == Memory::Host
            }
            Out::Counted { spec, targets, out, .. } => {
                self.check_counted(spec, *targets, n)?;
                checks::partials(out, product_of(&[n, spec.stride(ids)])?, job, own)?;
                out.memory() == Memory::Host
            }
            Out::TargetLogits { targets, per_row, out } => {
                self.check_targets(*targets, *per_row, out, n)?;
                out.memory() == Memory::Host
            }
            Out::Drawn(sampling, out) => {
                self.check_drawn(sampling, n)?;
                checks::partials(out, product_of(&[n, size_of::<Candidate>()])?, job, own)?;
                out.memory() == Memory::Host
            }
        };
        let brought = match &out {
            Out::Counted { again: true, .. } => self.brought.filter(|all| all.rows == n),
            _ => None,
        };
        self.forget();
        if n == 0 {
            return Ok(());
        }
        self.brought = brought;
        // Whether anything goes through host memory.
        let by_host = to_host
            || job.rows.memory() == Memory::Host
            || job.adjustments.is_some()
            || match &out {
                Out::Drawn(sampling, _) => matches!(sampling, RowSampling::Host(_)),
                Out::Counted { targets, .. } => targets.memory() == Memory::Host,
                _ => false,
            };
        let uses_own = by_host || on.workspace.is_none();
        let stream = self.begin(on, by_host)?;
        let done = match out {
            Out::Drawn(sampling, out) => self.drawn(stream, job, &sampling, out, on),
            out if ids == 0 => self.nothing(stream, n, out),
            Out::Logits(out) => self.logits(stream, job, out, on),
            Out::Partials(spec, out) => self.partials(stream, job, (spec, Span::EMPTY), out, on),
            Out::Counted { spec, targets, out, .. } => self.partials(stream, job, (spec, targets), out, on),
            Out::TargetLogits { targets, per_row, out } => {
                self.product_targets(stream, job, (targets, per_row), out, on)
            }
        };
        self.synchronize_on_error(stream, done)?;
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
            self.held.set_empty(n);
            self.held.valid = true;
            return Ok(self);
        }
        let needed = self.places(n, if raw { 2 } else { 1 })?.total;
        let workspace = self.workspace_at(on, needed, n)?;
        // From now on it belongs to the held logits.
        on.workspace = None;
        let done = self.hold_rows(stream, job, 0..n, (raw, on.stream.is_none()), workspace);
        self.synchronize_on_error(stream, done)?;
        let named = self.named(n);
        self.end(on, stream, false).map_err(named)?;
        self.held.valid = true;
        Ok(self)
    }

    unsafe fn held(&mut self) -> Option<&mut dyn HeldLogits> {
        if self.held.valid { Some(self) } else { None }
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

    fn finish(
        &mut self,
        what: Finish<'_>,
        scratch: &mut finish::FinishScratch,
        on: &mut On<'_>,
    ) -> Result<()> {
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
        // Partials of held logits are made in the shard's own memory.
        self.rooms.parts.capture(capturing);
    }

    fn defer(&mut self, deferring: bool) {
        self.deferring = deferring;
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
