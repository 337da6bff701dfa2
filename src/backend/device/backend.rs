//! A whole [`Backend`] on a device: logits by its kernels, everything after them on the host.
//!
//! Rows go to the device, logits come back, in one copy each way and with one wait where they fit the staged host memory; candidates, sums
//! and samples of them are found by the CPU backend's code, from chunks of rows that are held on the host, so that they have its bits.

use super::head::precision;
use super::heads::Heads;
use super::matmul::{dtype_code, of_product};
use super::scratch::{Idle, NO_ADJUSTMENTS, Packed, Scratch};
use super::transfer::Upload;
use super::{Call, KernelDevice};
use crate::backend::cpu::CpuBackend;
use crate::backend::params::{
    LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, LogitAdjustments, LogitMatrix,
    RowMatrix,
};
use crate::backend::{
    Backend, HeadTypes, HeldLogits, Job, LogitsOut, Resident, SamplingPass, Tally, check_boundaries,
    check_job, check_logits,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::merge::{PartialSpec, RowPartial};
use crate::plan::Shape;
use crate::process::Maker;
use crate::reference::Accuracy;
use crate::weights::HeadShard;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of host memory that a call locks for what it sends, and as many for what it receives.
const STAGED: usize = 64 << 20;

/// Part of the fingerprint: raised whenever a kernel's bits change, or those of sums and masses.
const VERSION: u32 = 2;

/// The kernels on one device as a [`Backend`]. Calls may come from any number of threads at once: ranks of one process share it.
///
/// What a call needs is kept for the next one, and so are the weights of the latest few heads that came without
/// [`Backend::prepare`], until memory is short.
pub struct DeviceBackend<D: KernelDevice> {
    device: D,
    host: CpuBackend,
    staged: usize,
    heads: Mutex<Heads<D>>,
    idle: Mutex<Idle<D>>,
    maker: Maker,
}

impl<D: KernelDevice> std::fmt::Debug for DeviceBackend<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBackend").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

/// A scratch that a call has, and that is waited for where the call does not come to its end, be it by an error or a panic: something may
/// still be running on that memory. What became of it is of no interest any more.
struct Lent<'a, D: KernelDevice> {
    device: &'a D,
    scratch: Option<Scratch<D>>,
}

impl<D: KernelDevice> Drop for Lent<'_, D> {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            drop(self.device.wait(scratch.stream(self.device)));
        }
    }
}

/// Where a job's outputs lie in device memory.
#[derive(Debug, Clone, Copy)]
struct Outputs {
    rows: usize,
    /// Bytes of a row of logits, and from one to the next.
    row_bytes: usize,
    pitch: usize,
    /// The first byte of logits: statuses lie before.
    logits: usize,
    total: usize,
}

impl Outputs {
    fn new(rows: usize, vocab: usize, dtype: DType) -> Result<Self> {
        let row_bytes = vocab * dtype.size();
        // The kernels store 16 bytes at a time.
        let pitch = row_bytes.next_multiple_of(16);
        let logits = (4 * rows).next_multiple_of(256);
        Ok(Outputs { rows, row_bytes, pitch, logits, total: sum_of(&[logits, product_of(&[rows, pitch])?])? })
    }

    /// Bytes that come to the host at once where `staged` may: all statuses at least.
    fn first(&self, staged: usize) -> usize {
        self.total.min(staged.max(self.logits))
    }

    /// Puts bytes of logits, from byte `at` of them on, where rows are `stride` bytes apart.
    fn place(&self, mut bytes: &[u8], mut at: usize, out: &mut [u8], stride: usize) {
        while !bytes.is_empty() {
            let (row, from) = (at / self.pitch, at % self.pitch);
            let (now, later) = bytes.split_at(bytes.len().min(self.pitch - from));
            // What lies between rows is nobody's.
            let wanted = &now[..now.len().min(self.row_bytes.saturating_sub(from))];
            if !wanted.is_empty() {
                out[row * stride + from..][..wanted.len()].copy_from_slice(wanted);
            }
            at += now.len();
            bytes = later;
        }
    }

    /// Logits with nothing between their rows.
    fn close_up<'a>(&self, logits: &'a mut [u8]) -> &'a [u8] {
        if self.pitch != self.row_bytes {
            for row in 1..self.rows {
                let from = row * self.pitch;
                logits.copy_within(from..from + self.row_bytes, row * self.row_bytes);
            }
        }
        &logits[..self.rows * self.row_bytes]
    }
}

impl<D: KernelDevice> DeviceBackend<D> {
    /// The backend of `device`; `host` does what comes after the logits.
    pub fn new(device: D, host: CpuBackend) -> Self {
        let (heads, idle) = (Mutex::default(), Mutex::default());
        DeviceBackend { device, host, staged: STAGED, heads, idle, maker: Maker::here() }
    }

    /// Locks at most about so many bytes of host memory for what a call sends, and as many for what it receives (64 MiB). More than that
    /// goes through it in parts, with a wait for each.
    #[must_use]
    pub fn staged(self, bytes: usize) -> Self {
        DeviceBackend { staged: bytes.max(4096), ..self }
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    /// A driver's context does not outlive a fork.
    fn check_process(&self) -> Result<()> {
        self.maker.check("the device backend")
    }

    /// Runs `work` with memory of its own, for that many bytes of outputs.
    fn with_scratch<T>(&self, bytes: usize, work: impl FnOnce(&mut Scratch<D>) -> Result<T>) -> Result<T> {
        let idle = lock(&self.idle).take(bytes);
        let scratch = idle.map_or_else(|| Scratch::new(&self.device), Ok)?;
        let mut lent = Lent { device: &self.device, scratch: Some(scratch) };
        let done = work(lent.scratch.as_mut().expect("just put there"))?;
        if let Some(mut scratch) = lent.scratch.take() {
            scratch.head = None;
            lock(&self.idle).put(scratch);
        }
        Ok(done)
    }

    /// Device memory for a call. Where it is short, what other calls left, and heads that nobody prepared, make room.
    fn alloc(&self, bytes: usize) -> Result<D::Buffer> {
        self.with_room(|| self.device.alloc(bytes))
    }

    /// What `make` makes, at the second attempt where the device refuses the first and there is something to give up.
    fn with_room<T>(&self, make: impl Fn() -> Result<T>) -> Result<T> {
        match make() {
            Err(refused @ Error::Device { .. }) => {
                let idle = lock(&self.idle).clear();
                let heads = lock(&self.heads).give_up();
                if idle || heads { make() } else { Err(refused) }
            }
            made => made,
        }
    }

    /// Computes a job's outputs, and brings the [first](Outputs::first) of them to `scratch.received`; calls `row(i, status)` for each
    /// row. `adjusted`: which rows of the adjustments are the job's.
    fn run(
        &self,
        job: &Job<'_>,
        adjusted: Range<usize>,
        dtype: DType,
        (outputs, staged): (&Outputs, usize),
        scratch: &mut Scratch<D>,
        mut row: impl FnMut(usize, u32),
    ) -> Result<()> {
        let (device, rows) = (&self.device, job.rows.len());
        let stream = scratch.stream(device);
        let head = self.with_room(|| lock(&self.heads).find(device, job.shard))?;
        // Kept by the scratch until somebody has waited, whatever fails in between.
        scratch.head = Some(Arc::clone(&head));
        let product = head.product(device, precision(job.shard, job.rows.dtype())?)?;
        let (hidden, adjustments) = self.upload(job, adjusted, scratch)?;
        // Of rows that nothing is done to the kernels do not say that something is allowed: also where there are adjustments, of
        // no kind.
        let plain = adjustments.allowed.is_null()
            && adjustments.addition_offsets.is_null()
            && adjustments.count_offsets.is_null();
        let always = if plain { LMHEAD_STATUS_ALLOWED } else { 0 };
        let buffer = scratch.outputs.at_least(outputs.total, |bytes| {
            let buffer = self.alloc(bytes)?;
            // What lies between rows comes to the host, too: no tool shall find that nobody wrote it.
            // SAFETY: the whole of it, and it lives until somebody has waited.
            unsafe { device.clear(stream, device.address(&buffer), bytes / 4)? };
            Ok(buffer)
        })?;
        let bytes = product.workspace_bytes(rows)?;
        let workspace = scratch.workspace.at_least(bytes, |bytes| self.alloc(bytes))?;
        let start = device.address(buffer) as usize;
        let call = Call {
            rows,
            weights: head.weights(device),
            hidden,
            logits: LogitMatrix {
                data: (start + outputs.logits) as *mut _,
                pitch: outputs.pitch as u64,
                status: start as *mut u32,
                dtype: dtype_code(dtype).expect("checked: a float type"),
            },
            adjustments,
            epilogue: job.epilogue,
            workspace: device.address(workspace),
            workspace_bytes: bytes,
        };
        // SAFETY: every buffer is this device's, as large as the call says, and lives until the wait below.
        unsafe { product.run(device, stream, &call)? };
        let shape = Shape { rows, vocab: job.shard.vocab().len(), hidden: job.shard.hidden_size() };
        let named = |error| of_product(&shape, error);
        let first = outputs.first(staged);
        let received = scratch.received.at_least(first, |bytes| device.staging(bytes))?.as_mut();
        // SAFETY: it is looked at after the wait; where something fails, whoever lent the scratch waits before it is dropped.
        unsafe { device.queue_read(stream, buffer, 0, &mut received[..first]).map_err(named)? };
        device.wait(stream).map_err(named)?;
        let said: &[u32] = bytemuck::cast_slice(&received[..4 * rows]);
        if let Some(bad) = said.iter().position(|status| status & LMHEAD_STATUS_BAD_INDEX != 0) {
            return Err(Error::Device {
                what: format!("row {bad} of the product"),
                problem: "its index, checked on the host, was out of range on the device".into(),
                fix: "something overwrote device memory: run under compute-sanitizer".into(),
            });
        }
        said.iter().enumerate().for_each(|(i, &status)| row(i, status | always));
        Ok(())
    }

    /// [`Backend::logits`] of a job that was checked.
    fn compute(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        let LogitsOut { bytes, stride, dtype, nonfinite, mut any_allowed } = out;
        let (device, rows) = (&self.device, job.rows.len());
        let outputs = Outputs::new(rows, job.shard.vocab().len(), dtype)?;
        if rows == 0 || outputs.row_bytes == 0 {
            return Ok(());
        }
        self.with_scratch(outputs.total, |scratch| {
            self.run(job, 0..rows, dtype, (&outputs, self.staged), scratch, |row, status| {
                nonfinite[row] |= status & LMHEAD_STATUS_NONFINITE != 0;
                if let Some(any) = &mut any_allowed {
                    any[row] |= status & LMHEAD_STATUS_ALLOWED != 0;
                }
            })?;
            let (stream, first) = (scratch.stream(device), outputs.first(self.staged));
            let (buffer, received) = (scratch.outputs.get(), scratch.received.get().as_mut());
            outputs.place(&received[outputs.logits..first], 0, bytes, stride);
            for at in (first..outputs.total).step_by(first) {
                let part = &mut received[..first.min(outputs.total - at)];
                // SAFETY: as in `run`.
                unsafe { device.queue_read(stream, buffer, at, part)? };
                device.wait(stream)?;
                outputs.place(part, at - outputs.logits, bytes, stride);
            }
            Ok(())
        })
    }

    /// Rows and adjustments in device memory: all rows that were given, with the selection, or the selected ones where those are far fewer.
    fn upload(
        &self,
        job: &Job<'_>,
        adjusted: Range<usize>,
        scratch: &mut Scratch<D>,
    ) -> Result<(RowMatrix, LogitAdjustments)> {
        let (device, stream, rows) = (&self.device, scratch.stream(&self.device), &job.rows);
        let (bytes, source_rows) = rows.source();
        let picked = rows.selection().is_some() && source_rows > 2 * rows.len();
        let sent_rows = if picked { rows.len() } else { source_rows };
        let selection = rows.selection().filter(|_| !picked).unwrap_or(&[]);
        let indices: Vec<i64> = selection.iter().map(|&row| row as i64).collect();
        let words = job.shard.vocab().len().div_ceil(32);
        let adjustments = job.adjustments.map(|a| Packed::new(&a.arrays(adjusted), words));
        let adjusted_words = adjustments.as_ref().map_or(&[][..], |packed| &packed.words);
        // Rows at multiples of 16 bytes are what the kernels copy 16 bytes at a time.
        let (row_bytes, pitch) = (rows.row_bytes(), rows.row_bytes().next_multiple_of(16));
        let total = sum_of(&[
            product_of(&[sent_rows, pitch])?,
            (8 * indices.len()).next_multiple_of(16),
            4 * adjusted_words.len(),
        ])?;
        let buffer = scratch.inputs.at_least(total, |bytes| self.alloc(bytes))?;
        let staging = scratch.sent.at_least(total.min(self.staged), |bytes| device.staging(bytes))?;
        let mut upload = Upload::new(device, stream, buffer, staging.as_mut());
        let data = upload.address() as usize as *const _;
        if !picked && pitch == row_bytes {
            upload.push(bytes)?;
        } else {
            for row in 0..sent_rows {
                upload.push(if picked { rows.row(row) } else { &bytes[row * row_bytes..][..row_bytes] })?;
                upload.pad()?;
            }
        }
        let index_address = if selection.is_empty() { 0 } else { upload.address() };
        upload.push(bytemuck::cast_slice(&indices))?;
        upload.pad()?;
        let placed = adjustments.as_ref().map_or(NO_ADJUSTMENTS, |packed| packed.at(upload.address()));
        upload.push(bytemuck::cast_slice(adjusted_words))?;
        upload.send()?;
        let too_many = |_| {
            let fix = "send fewer rows in one step";
            Error::shape("rows of hidden_states", "fewer than 2^32", sent_rows, fix)
        };
        let source_rows = u32::try_from(sent_rows).map_err(too_many)?;
        let indices = index_address as usize as *const _;
        Ok((RowMatrix { data, pitch: pitch as u64, indices, index_bytes: 8, source_rows }, placed))
    }
}

impl<D: KernelDevice> Backend for DeviceBackend<D> {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    /// `DEVICE/VERSION DTYPE`. The host's CPU has no part in it: what it makes of logits has the same bits everywhere.
    fn fingerprint(&self, types: HeadTypes) -> String {
        format!("{}/{VERSION} {}", self.device.fingerprint(), types.weights)
    }

    fn accuracy(&self) -> Accuracy {
        Accuracy::TensorCores
    }

    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        self.check_process()?;
        precision(shard, hidden)?;
        check_boundaries(shard)
    }

    fn prepare(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Resident> {
        self.check_process()?;
        if shard.vocab().is_empty() {
            return Ok(Resident::default());
        }
        let head = self.with_room(|| lock(&self.heads).prepare(&self.device, shard))?;
        head.product(&self.device, precision(shard, hidden)?)?;
        Ok(Resident::new(head))
    }

    fn logits(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        self.check_process()?;
        let rows = job.rows.len();
        check_job(job, rows, out.nonfinite.len())?;
        check_job(job, rows, out.any_allowed.as_ref().map_or(rows, |flags| flags.len()))?;
        check_logits(&out, rows, job.shard.vocab().len())?;
        self.compute(job, out)
    }

    fn partials(&self, job: &Job<'_>, spec: PartialSpec, out: &mut [RowPartial]) -> Result<()> {
        self.check_process()?;
        check_job(job, job.rows.len(), out.len())?;
        if spec.k == 0 {
            return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
        }
        let vocab = job.shard.vocab();
        if out.is_empty() || vocab.is_empty() {
            out.iter_mut().for_each(|partial| partial.reset(spec));
            return Ok(());
        }
        let pitch = Outputs::new(1, vocab.len(), DType::F32)?.pitch;
        let at_once = (self.staged / (pitch + 4)).max(1);
        let largest = Outputs::new(at_once.min(out.len()), vocab.len(), DType::F32)?;
        self.with_scratch(largest.total, |scratch| {
            for (i, out) in out.chunks_mut(at_once).enumerate() {
                let range = i * at_once..i * at_once + out.len();
                let job = Job { rows: job.rows.range(range.clone()), ..*job };
                let outputs = Outputs::new(out.len(), vocab.len(), DType::F32)?;
                let mut nonfinite = vec![false; out.len()];
                // However large one row is, it is held.
                self.run(&job, range, DType::F32, (&outputs, outputs.total), scratch, |row, status| {
                    nonfinite[row] |= status & LMHEAD_STATUS_NONFINITE != 0;
                })?;
                let received = scratch.received.get().as_mut();
                let logits = outputs.close_up(&mut received[outputs.logits..outputs.total]);
                let logits = bytemuck::cast_slice(logits);
                let held = HeldLogits { logits, vocab: vocab.clone(), nonfinite: &nonfinite };
                self.host.partials_of(&held, spec, out)?;
            }
            Ok(())
        })
    }

    fn tally(&self, tally: Tally<'_>) -> Result<()> {
        self.host.tally(tally)
    }

    fn sample(&self, held: &HeldLogits<'_>, pass: SamplingPass<'_>) -> Result<()> {
        self.host.sample(held, pass)
    }

    /// Device and host memory of calls; heads stay.
    fn release_memory(&self) {
        if self.check_process().is_ok() {
            lock(&self.idle).clear();
            self.host.release_memory();
        }
    }
}

fn product_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or_else(|| too_large(sizes))
}

fn sum_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(0usize, |n, &size| n.checked_add(size)).ok_or_else(|| too_large(sizes))
}

fn too_large(sizes: &[usize]) -> Error {
    let fix = "send fewer rows in one step";
    Error::shape("device memory", "fewer bytes than 2^64", format!("{sizes:?}"), fix)
}

/// What these locks guard is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
