//! Rows of device memory brought together: those that a selection picks, or that lie apart.

use super::shard::{DeviceShard, product_of, sum_of};
use super::{CopyRows, KernelDevice, Side};
use crate::backend::On;
use crate::error::Result;
use crate::memory::{Memory, SpanMut};
use crate::params::LMHEAD_STATUS_BAD_INDEX;
use crate::rows::{HiddenRows, Selection};

impl<D: KernelDevice> DeviceShard<D> {
    /// [`LoadedShard::pack`](crate::backend::LoadedShard::pack) in any memory. Indices on the device
    /// come to the host for it, until a kernel picks rows there.
    pub(super) fn pack_anywhere(
        &mut self,
        rows: &HiddenRows<'_>,
        out: SpanMut<'_>,
        status: SpanMut<'_>,
        on: &mut On<'_>,
    ) -> Result<()> {
        let (n, row_bytes) = (rows.len(), rows.row_bytes());
        out.check_len("gathered rows", product_of(&[n, row_bytes])?)?;
        if rows.memory() == Memory::Host {
            rows.copy_into(out.into_host_elements("gathered rows")?);
            return Ok(());
        }
        out.check_memory("gathered rows", rows.memory())?;
        status.check_memory("status of the rows", rows.memory())?;
        status.check_len("status of the rows", 4 * n)?;
        if n == 0 {
            return Ok(());
        }
        let stream = self.begin(on, true)?;
        let device = self.common.device.clone();
        let indices = rows.selection().map_or(0, |selection| selection.data().len()).next_multiple_of(8);
        let bytes = sum_of(&[indices, 4 * n, row_bytes])?;
        self.rooms.finish.at_least(bytes, |bytes| device.staging(bytes))?;
        // Taken out, so that the shard can wait meanwhile.
        let mut room = std::mem::take(&mut self.rooms.finish);
        let done = self.pack_in(stream, rows, out.address(), status.address(), room.get().as_mut());
        self.rooms.finish = room;
        self.settled(stream, done)?;
        self.queued = true;
        self.end(on, stream, false)
    }

    /// `room`: indices, status words and a row of zeros.
    fn pack_in(
        &mut self,
        stream: D::Stream,
        rows: &HiddenRows<'_>,
        out: u64,
        status: u64,
        room: &mut [u8],
    ) -> Result<()> {
        let (source, source_rows) = rows.source();
        let (n, row_bytes, stride, own) = (rows.len(), rows.row_bytes(), rows.stride(), rows.memory());
        let device = self.common.device.clone();
        let at = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
        let selected = rows.selection().map_or(0, |selection| selection.data().len());
        let (indices, rest) = room.split_at_mut(selected.next_multiple_of(8));
        let (words, rest) = rest.split_at_mut(4 * n);
        let zeros = &mut rest[..row_bytes];
        words.fill(0);
        zeros.fill(0);
        let copy = |first: usize, from: Side, rows: usize| {
            let to = Side { memory: own, address: out + (first * row_bytes) as u64, pitch: row_bytes };
            // SAFETY: rows of the caller's, its buffer, which has room for them, and the shard's own memory,
            // which the next call waits for.
            unsafe { device.copy_rows(stream, &CopyRows { to, from, row_bytes, rows }) }
        };
        if let Some(selection) = rows.selection() {
            let (came, from) = (at(indices), selection.data().address());
            let bring = CopyRows::whole((Memory::Host, came), (own, from), selected);
            // SAFETY: the caller's indices, and the shard's own memory.
            unsafe { device.copy_rows(stream, &bring)? };
            self.settle(stream)?;
            let numbers = |i: usize| number(&selection, indices, i).filter(|row| *row < source_rows);
            let mut first = 0;
            while first < n {
                let Some(row) = numbers(first) else {
                    words[4 * first..][..4].copy_from_slice(&LMHEAD_STATUS_BAD_INDEX.to_le_bytes());
                    copy(first, Side { memory: Memory::Host, address: at(zeros), pitch: row_bytes }, 1)?;
                    first += 1;
                    continue;
                };
                // Neighbours go together.
                let run = (1..n - first).take_while(|&i| numbers(first + i) == Some(row + i)).count() + 1;
                let from =
                    Side { memory: own, address: source.address() + (row * stride) as u64, pitch: stride };
                copy(first, from, run)?;
                first += run;
            }
        } else {
            copy(0, Side::of(&source, stride), n)?;
        }
        let words = CopyRows::whole((own, status), (Memory::Host, at(words)), 4 * n);
        // SAFETY: as above.
        unsafe { device.copy_rows(stream, &words) }
    }
}

/// Number `i` of a selection whose bytes have come; none where it is negative.
fn number(selection: &Selection<'_>, bytes: &[u8], i: usize) -> Option<usize> {
    let size = selection.index_bytes();
    let bytes = &bytes[i * size..][..size];
    let wide = match bytes.try_into() {
        Ok(wide) => i64::from_le_bytes(wide),
        Err(_) => i64::from(i32::from_le_bytes(bytes.try_into().ok()?)),
    };
    usize::try_from(wide).ok()
}
