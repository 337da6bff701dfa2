//! Answers from the sorted lists of all shards, where a list is longer than a warp collects:
//! kernels/lists_sm80.cu.

use super::partials::{BEST, SHARED_BYTES, THREADS};
use super::shard::{DeviceShard, count_of, product_of};
use super::{Grid, KernelDevice};
use crate::backend::params::{FinishLogprobsParams, FinishParams, PlaceListsParams};
use crate::error::Result;
use crate::layout::shard_range;

/// The kernels of lists.
pub(super) struct Kernels<D: KernelDevice> {
    best: D::Kernel<FinishParams>,
    logprobs: D::Kernel<FinishLogprobsParams>,
    place: D::Kernel<PlaceListsParams>,
}

impl<D: KernelDevice> Kernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(Kernels {
            best: device.kernel("finish_lists")?,
            logprobs: device.kernel("finish_lists_logprobs")?,
            place: device.kernel("place_lists")?,
        })
    }
}

/// One block a row.
fn grid(rows: u32) -> Grid {
    Grid { blocks: rows, threads: THREADS, shared_bytes: SHARED_BYTES }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Queues status and logsumexp of the first `rows` rows, and then their best ids and values, to the
    /// addresses in `params`.
    pub(super) fn finish_lists(&self, stream: D::Stream, params: &FinishParams, rows: u32) -> Result<()> {
        let (device, kernels) = (&self.common.device, &self.weights.kernels.lists);
        // SAFETY: as of `finish_best`, which has checked everything.
        unsafe { device.launch(stream, &kernels.best, &grid(rows), params)? };
        let place = PlaceListsParams {
            from: params.from,
            row_status: params.row_status,
            ids: params.ids,
            values: params.values,
            n: params.from.k,
            blocks: 0,
            logprobs: 0,
        };
        self.place_lists(stream, place, rows)
    }

    /// Queues status and the answers for targets of the first `rows` rows, and then their best ids.
    pub(super) fn finish_lists_logprobs(
        &self,
        stream: D::Stream,
        params: &FinishLogprobsParams,
        rows: u32,
    ) -> Result<()> {
        let (device, kernels) = (&self.common.device, &self.weights.kernels.lists);
        // SAFETY: as of `finish_logprobs`, which has checked everything.
        unsafe { device.launch(stream, &kernels.logprobs, &grid(rows), params)? };
        let place = PlaceListsParams {
            from: params.from,
            row_status: params.row_status,
            ids: params.top_ids,
            values: params.top_logprobs,
            n: params.top_n,
            blocks: 0,
            logprobs: 1,
        };
        if params.top_n == 0 { Ok(()) } else { self.place_lists(stream, place, rows) }
    }

    fn place_lists(&self, stream: D::Stream, mut params: PlaceListsParams, rows: u32) -> Result<()> {
        let from = &params.from;
        // The first shard is the largest. A vocabulary without ids has no lists; one block reports that.
        let ids = shard_range(from.vocab as usize, from.shards as usize, 0).len();
        let lists = product_of(&[ids.min(from.k as usize).div_ceil(THREADS as usize), from.parts as usize])?;
        params.blocks = count_of(lists.max(1))?;
        let blocks = count_of(product_of(&[params.blocks as usize, rows as usize])?)?;
        // Shared memory for a warp's list, and the logarithm of the sum.
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 2 * BEST * 8 + 8 };
        // SAFETY: as above.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.lists.place, &grid, &params) }
    }
}
