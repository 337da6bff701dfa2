//! Steps of a static (padded) shape, which a CUDA graph replays: packs rows and header for the other
//! replicas, and compares the headers that come. All of it is queued; the host sees a mismatch afterwards.

use super::shard::{DeviceShard, count_of, product_of};
use super::{Grid, KernelDevice};
use crate::backend::{Arrivals, CapacitySteps, LoadedShard, On, Payload};
use crate::error::{Error, Result};
use crate::memory::{Memory, Span};
use crate::params::{
    CapacityState, CheckCapacityParams, LMHEAD_HEADER_HALVES, OpenCapacityParams, PackCapacityParams,
};
use crate::step::HEADER_BYTES;
use std::mem::offset_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const _: () = assert!(HEADER_BYTES == 2 * LMHEAD_HEADER_HALVES as usize, "one size on host and device");

/// Threads of a block, in kernels whose blocks have one row each, or many headers.
const THREADS: u32 = 256;
/// A u64 for each warp of a block.
const SHARED_BYTES: usize = THREADS as usize / 32 * 8;

/// The kernels of such steps.
pub(super) struct CapacityKernels<D: KernelDevice> {
    pack: D::Kernel<PackCapacityParams>,
    open: D::Kernel<OpenCapacityParams>,
    check: D::Kernel<CheckCapacityParams>,
}

impl<D: KernelDevice> CapacityKernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(CapacityKernels {
            pack: device.kernel("pack_capacity")?,
            open: device.kernel("open_capacity")?,
            check: device.kernel("check_capacity")?,
        })
    }
}

/// A head's count of capacity steps on the device, and a copy of it that the host reads.
pub(super) struct Counted<D: KernelDevice> {
    state: D::Buffer,
    copy: Mutex<D::Staging>,
    /// Address of the copy.
    at: usize,
}

impl<D: KernelDevice> Counted<D> {
    fn new(device: &D) -> Result<Self> {
        let state = device.alloc(size_of::<CapacityState>())?;
        let mut copy = device.staging(size_of::<CapacityState>())?;
        copy.as_mut().fill(0);
        let at = copy.as_mut().as_mut_ptr().expose_provenance();
        device.write(&state, 0, &[0; size_of::<CapacityState>()])?;
        Ok(Counted { state, copy: Mutex::new(copy), at })
    }

    /// Queues the copy to the host.
    fn tell(&self, device: &D, stream: D::Stream) -> Result<()> {
        // Where the lock is poisoned the copy is still good.
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: pinned memory that lives as long as the state; the host reads it by volatile words only.
        unsafe { device.queue_read(stream, &self.state, 0, copy.as_mut()) }
    }

    /// Reads a number of 16 to 64 bits from the copy.
    fn read<T: Copy>(&self, at: usize) -> T {
        // SAFETY: aligned, as in the struct, within memory that lives as long as this; the device writes a
        // number at once.
        unsafe { std::ptr::with_exposed_provenance::<T>(self.at + at).read_volatile() }
    }

    fn header(&self, at: usize) -> [u8; HEADER_BYTES] {
        let half = |i: usize| self.read::<u16>(at + 2 * i).to_le_bytes();
        std::array::from_fn(|byte| half(byte / 2)[byte % 2])
    }
}

impl<D: KernelDevice> CapacitySteps for Counted<D> {
    fn mismatch(&self) -> Option<(u64, usize, [[u8; HEADER_BYTES]; 2])> {
        let read = || {
            let step = self.read::<u64>(offset_of!(CapacityState, mismatched));
            let member = self.read::<u32>(offset_of!(CapacityState, member)) as usize;
            let headers = [offset_of!(CapacityState, own), offset_of!(CapacityState, other)];
            (step, member, headers.map(|at| self.header(at)))
        };
        let mut seen = read();
        if seen.0 == 0 {
            return None;
        }
        // The copy may be arriving right now; once it is there, the first mismatch does not change any more.
        for _ in 0..1000 {
            std::thread::sleep(Duration::from_micros(10));
            let again = read();
            if again == seen {
                break;
            }
            seen = again;
        }
        Some(seen)
    }
}

/// Checks that a span is the device's, of `bytes` bytes and aligned to `to`. Returns its address.
fn check(what: &str, span: Span<'_>, own: Memory, bytes: usize, to: usize) -> Result<u64> {
    span.check_len(what, bytes)?;
    span.check_aligned(what, to)?;
    if span.is_empty() {
        // Address 0 tells the kernels that there is none.
        return Ok(0);
    }
    span.check_memory(what, own)?;
    Ok(span.address())
}

impl<D: KernelDevice> DeviceShard<D> {
    fn counted(&mut self) -> Result<Arc<Counted<D>>> {
        if let Some(counted) = &self.counted {
            return Ok(Arc::clone(counted));
        }
        let counted = Arc::new(Counted::new(&self.common.device)?);
        Ok(Arc::clone(self.counted.insert(counted)))
    }

    /// [`LoadedShard::open_capacity`].
    pub(super) fn open_payload(&mut self, payload: Payload<'_>, on: &mut On<'_>) -> Result<()> {
        let Payload { rows, header, out, header_out, status, digests, adjusted, inputs, capacity } = payload;
        let (n, row_bytes, own) = (rows.len(), rows.row_bytes(), self.common.memory());
        if n > capacity {
            let fix = "use a larger capacity on every rank";
            return Err(Error::shape(
                "rows of the step",
                format!("at most the capacity, {capacity}"),
                n,
                fix,
            ));
        }
        rows.source().0.check_memory("hidden_states", own)?;
        let digests_at = check("digests of the rows", digests.as_span(), own, digests.len(), 8)?;
        if !digests.is_empty() {
            digests.check_len("digests of the rows", 8 * capacity)?;
        }
        let status =
            check("status of the rows", status.as_span(), own, 4 * capacity, 4)? as usize as *mut u32;
        let pack = PackCapacityParams {
            rows: self.matrix_of(&rows)?,
            out: check("gathered rows", out.as_span(), own, product_of(&[capacity, row_bytes])?, 2)? as usize
                as *mut u8,
            status,
            digests: digests_at as usize as *mut u64,
            row_count: count_of(n)?,
            row_bytes: count_of(row_bytes)?,
        };
        let counted = self.counted()?;
        let open = OpenCapacityParams {
            header: std::array::from_fn(|i| u16::from_le_bytes([header[2 * i], header[2 * i + 1]])),
            state: self.common.device.address(&counted.state) as usize as *mut CapacityState,
            out: check("header of the step", header_out.as_span(), own, HEADER_BYTES, 2)? as usize
                as *mut u16,
            digests: pack.digests.cast_const(),
            adjusted: check(
                "digests of adjustments",
                adjusted,
                own,
                if adjusted.is_empty() { 0 } else { 8 * n },
                8,
            )? as usize as *const u64,
            status: status.cast_const(),
            inputs: check("inputs of the rows", inputs, own, inputs.len(), 4)? as usize as *const u32,
            input_words: count_of(inputs.len() / 4)?,
            row_count: pack.row_count,
        };
        let rows = Grid { blocks: count_of(capacity)?, threads: THREADS, shared_bytes: SHARED_BYTES };
        self.only_on(on, |shard, stream| {
            let (device, kernels) = (&shard.common.device, &shard.weights.kernels.capacity);
            // SAFETY: checked spans of the caller's, and the state, which the head's watchers keep.
            unsafe {
                if capacity > 0 {
                    device.launch(stream, &kernels.pack, &rows, &pack)?;
                }
                device.launch(stream, &kernels.open, &Grid { blocks: 1, threads: 32, shared_bytes: 0 }, &open)
            }
        })
    }

    /// [`LoadedShard::check_capacity`].
    pub(super) fn check_arrivals(&mut self, arrivals: Arrivals<'_>, on: &mut On<'_>) -> Result<()> {
        let Arrivals { own: own_header, headers, pitch, me, members, ranks, capacity, positions, .. } =
            arrivals;
        let own = self.common.memory();
        let replicas = members / ranks;
        let all = product_of(&[replicas, arrivals.parts, arrivals.part_rows, 4])?;
        let header_bytes = product_of(&[members.saturating_sub(1), pitch])? + HEADER_BYTES;
        let counted = self.counted()?;
        let params = CheckCapacityParams {
            own: check("header of the step", own_header, own, HEADER_BYTES, 2)? as usize as *const u16,
            headers: check("headers of the group", headers.part(0..header_bytes), own, header_bytes, 2)?
                as usize as *const u8,
            header_pitch: pitch as u64,
            state: self.common.device.address(&counted.state) as usize as *mut CapacityState,
            positions: check("places of the rows", positions.as_span(), own, all, 4)? as usize as *mut i32,
            members: count_of(members)?,
            ranks: count_of(ranks)?,
            me: count_of(me)?,
            capacity: count_of(capacity)?,
            parts: count_of(arrivals.parts)?,
            part_rows: count_of(arrivals.part_rows)?,
            first_row: count_of(arrivals.first_row)?,
            replica_rows: count_of(arrivals.replica_rows)?,
        };
        let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: SHARED_BYTES };
        self.only_on(on, |shard, stream| {
            let device = &shard.common.device;
            // SAFETY: as above.
            unsafe { device.launch(stream, &shard.weights.kernels.capacity.check, &grid, &params)? };
            counted.tell(device, stream)
        })
    }

    /// Steps are counted from 0 again.
    pub(super) fn restart_counted(&mut self) -> Result<()> {
        self.wait_queued()?;
        let Some(counted) = &self.counted else { return Ok(()) };
        let device = &self.common.device;
        device.write(&counted.state, 0, &[0; size_of::<CapacityState>()])?;
        counted.tell(device, device.stream())?;
        device.wait(device.stream())
    }
}
