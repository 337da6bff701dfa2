//! What travels between the host and a shard's device besides logits: rows, adjustments, what kernels are
//! asked and what they answer.

use super::super::adjustments::{NO_ADJUSTMENTS, packed_at};
use super::super::{CopyRows, Side, inputs};
use super::{DeviceShard, KernelDevice, count_of, product_of};
use crate::adjust::ShardAdjustments;
use crate::backend::Job;
use crate::error::Result;
use crate::memory::{Memory, Span, SpanMut};
use crate::params::{LogitAdjustments, RowMatrix};
use crate::rows::HiddenRows;
use std::ops::Range;

impl<D: KernelDevice> DeviceShard<D> {
    /// Rows of device memory as the kernels read them.
    pub(in super::super) fn matrix_of(&self, rows: &HiddenRows<'_>) -> Result<RowMatrix> {
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

    /// Some of a job's rows where the kernels read them; rows of host memory may have been copied before.
    /// `waits`: as in [`DeviceShard::rows`].
    pub(super) fn some_rows(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        waits: bool,
    ) -> Result<RowMatrix> {
        let Some(all) = self.brought.filter(|_| job.rows.memory() == Memory::Host) else {
            return self.rows(stream, &job.rows.range(rows), waits);
        };
        Ok(RowMatrix {
            data: (all.address + rows.start as u64 * all.pitch) as usize as *const _,
            pitch: all.pitch,
            indices: std::ptr::null(),
            index_bytes: 4,
            source_rows: count_of(rows.len())?,
        })
    }

    /// Rows where the kernels read them: in place, or on their way to the device. `waits`: the call waits for
    /// its end, so that the copy may read the caller's own host memory.
    pub(in super::super) fn rows(
        &mut self,
        stream: D::Stream,
        rows: &HiddenRows<'_>,
        waits: bool,
    ) -> Result<RowMatrix> {
        if rows.memory() != Memory::Host {
            return self.matrix_of(rows);
        }
        let source = rows.source().0;
        let device = &self.common.device;
        let (n, row_bytes) = (rows.len(), rows.row_bytes());
        // Rows begin at multiples of 16 bytes: the kernels copy 16 bytes at a time.
        let pitch = row_bytes.next_multiple_of(16);
        let total = product_of(&[n, pitch])?;
        let address = device.address(self.rooms.inputs.at_least(total, |bytes| device.alloc(bytes))?);
        let to = |row: usize| Side {
            memory: Memory::Device(device.ordinal()),
            address: address + (row * pitch) as u64,
            pitch,
        };
        if waits && rows.selection().is_none() && device.is_pinned(&source) {
            let copy = CopyRows { to: to(0), from: Side::of(&source, rows.stride()), row_bytes, rows: n };
            // SAFETY: the caller's rows, which are borrowed until the call has waited, and as much room.
            unsafe { device.copy_rows(stream, &copy)? };
        } else {
            let at_once = (self.common.staged / pitch).clamp(1, n);
            let sent = self.rooms.sent.at_least(at_once * pitch, |bytes| device.staging(bytes))?.as_mut();
            for first in (0..n).step_by(at_once) {
                if first > 0 {
                    // The pinned memory is about to be filled anew.
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
    pub(in super::super) fn adjust(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
    ) -> Result<LogitAdjustments> {
        let first = rows.start;
        let sent = self.send_adjustments(stream, job.adjustments, rows)?;
        Ok(inputs::with_placed(sent, job.placed.as_ref(), first))
    }

    pub(super) fn send_adjustments(
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

    /// Queues host bytes for the device; returns where they will be.
    pub(in super::super) fn ask(&mut self, stream: D::Stream, bytes: &[u8]) -> Result<u64> {
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

    /// Where the device writes `out`: in place, or where [`DeviceShard::answer`] gets it for the host.
    pub(in super::super) fn output(&mut self, out: &SpanMut<'_>) -> Result<u64> {
        let device = &self.common.device;
        Ok(match out.memory() {
            Memory::Host => {
                device.address(self.rooms.outputs.at_least(out.len(), |bytes| device.alloc(bytes))?)
            }
            _ => out.address(),
        })
    }

    /// Copies bytes of the device to the host, and waits for that.
    pub(in super::super) fn answer(&mut self, stream: D::Stream, from: u64, out: &mut [u8]) -> Result<()> {
        let (device, bytes) = (self.common.device.clone(), out.len());
        let staging = self.rooms.received.at_least(bytes, |bytes| device.staging(bytes))?.as_mut();
        let host = staging.as_mut_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((Memory::Host, host), (self.own(), from), bytes);
        // SAFETY: the shard's own memory, and a wait.
        unsafe { device.copy_rows(stream, &copy)? };
        self.synchronize(stream)?;
        out.copy_from_slice(&self.rooms.received.get().as_mut()[..bytes]);
        Ok(())
    }
}
