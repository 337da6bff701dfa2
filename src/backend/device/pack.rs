//! Packs rows in device memory: rows that a selection picks, or that are not contiguous.

use super::shard::{DeviceShard, count_of, product_of};
use super::{Grid, KernelDevice};
use crate::backend::On;
use crate::error::Result;
use crate::memory::{Memory, SpanMut};
use crate::params::PackRowsParams;
use crate::rows::HiddenRows;

impl<D: KernelDevice> DeviceShard<D> {
    /// [`LoadedShard::pack`](crate::backend::LoadedShard::pack) in any memory.
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
        out.check_aligned("gathered rows", 2)?;
        status.check_memory("status of the rows", rows.memory())?;
        status.check_len("status of the rows", 4 * n)?;
        status.check_aligned("status of the rows", 4)?;
        if n == 0 {
            return Ok(());
        }
        let params = PackRowsParams {
            rows: self.matrix_of(rows)?,
            out: out.address() as usize as *mut u8,
            out_pitch: row_bytes as u64,
            status: status.address() as usize as *mut u32,
            row_count: count_of(n)?,
            row_bytes: count_of(row_bytes)?,
            status_before: 0,
        };
        self.only_on(on, |shard, stream| {
            let grid = Grid { blocks: params.row_count, threads: 256, shared_bytes: 0 };
            // SAFETY: checked spans of the caller's.
            unsafe { shard.common.device.launch(stream, &shard.weights.kernels.pack, &grid, &params) }
        })
    }
}
