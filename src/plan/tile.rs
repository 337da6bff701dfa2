//! Tiles of the matmul kernels: what a block computes, how much room it takes, and which one suits a shape
//! and a device.

use super::Shape;
use super::hopper::{self, Family};
use crate::params::{LMHEAD_MAX_STAGES, LMHEAD_MIN_STAGES};
use std::ops::RangeInclusive;

/// What a device offers to a kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors (SMs).
    pub num_sms: usize,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: usize,
    /// Bytes of shared memory that an SM has for all of its blocks.
    pub shared_per_sm: usize,
}

impl DeviceLimits {
    /// H100 SXM. Here and below, shared memory is from the CUDA programming guide, "Compute Capabilities",
    /// and the number of SMs from the vendor's data sheets.
    pub const H100: DeviceLimits =
        DeviceLimits { capability: (9, 0), num_sms: 132, shared_bytes: 232_448, shared_per_sm: 233_472 };
    /// A100.
    pub const A100: DeviceLimits =
        DeviceLimits { capability: (8, 0), num_sms: 108, shared_bytes: 166_912, shared_per_sm: 167_936 };
    /// L40S. Like all devices of 8.6, 8.9 and 12.x it has the least shared memory that the kernels run with.
    pub const L40S: DeviceLimits =
        DeviceLimits { capability: (8, 9), num_sms: 142, shared_bytes: 101_376, shared_per_sm: 102_400 };
}

/// Bytes of an SM's shared memory that the system reserves for each block.
pub(super) const RESERVED: usize = 1024;

/// Fewest and most pipeline stages of a block: steps of k in shared memory at a time.
pub const STAGES: RangeInclusive<usize> = LMHEAD_MIN_STAGES as usize..=LMHEAD_MAX_STAGES as usize;

/// One kernel's tile. `src/plan/tiles.rs` lists all of them; it is generated from the kernels' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    /// Ids of a block: N of its product.
    pub block_n: usize,
    /// Rows of a block: M of its product.
    pub block_m: usize,
    /// Bytes that one stage holds of a weight row.
    pub weight_bytes: usize,
    /// Bytes that one stage holds of a hidden row: as many elements, twice as many bytes where 8-bit weights
    /// are multiplied with 16-bit rows.
    pub row_bytes: usize,
    /// Blocks that an SM's registers are enough for.
    pub max_blocks_per_sm: usize,
    pub family: Family,
}

impl Tile {
    /// A tile of a `MATMUL_KERNEL` line.
    pub(super) const fn mma_sync(
        kernel: &'static str,
        block_n: usize,
        block_m: usize,
        row_bytes: usize,
        max_blocks_per_sm: usize,
    ) -> Self {
        Tile {
            kernel,
            block_n,
            block_m,
            weight_bytes: 128,
            row_bytes,
            max_blocks_per_sm,
            family: Family::MmaSync,
        }
    }

    /// A tile of a `WGMMA_MATMUL_KERNEL` line.
    pub(super) const fn wgmma(
        kernel: &'static str,
        block_n: usize,
        block_m: usize,
        weight_bytes: usize,
        row_bytes: usize,
    ) -> Self {
        Tile {
            kernel,
            block_n,
            block_m,
            weight_bytes,
            row_bytes,
            max_blocks_per_sm: 1,
            family: Family::Wgmma,
        }
    }

    /// The fewest ids of any tile.
    pub(crate) const FEWEST_IDS: usize = 64;
    /// How often the epilogue moves a tile of f32 logits through shared memory: written once, read once.
    pub(super) const EPILOGUE_PASSES: usize = 2;

    /// Threads of a block: four warps; with `wgmma` one warpgroup per 64 ids, and the producer's threads.
    pub const fn threads(&self) -> u32 {
        match self.family {
            Family::MmaSync => 128,
            Family::Wgmma => hopper::threads(self),
        }
    }

    /// Blocks of a cluster along the ids and along the rows. Along the ids they share what they copy of the
    /// rows, along the rows what they copy of the weights.
    pub(crate) const fn cluster_shape(&self) -> (usize, usize) {
        match self.family {
            Family::Wgmma if self.block_n > 128 => (1, 2),
            Family::Wgmma if self.block_m > 64 => (2, 1),
            _ => (1, 1),
        }
    }

    /// Blocks of a cluster.
    pub const fn cluster(&self) -> usize {
        let (ids, rows) = self.cluster_shape();
        ids * rows
    }

    /// Rows of a cluster's tile.
    pub(super) const fn cluster_m(&self) -> usize {
        self.block_m * self.cluster_shape().1
    }

    /// Tiles of rows that run next to each other and share one read of the weights, as
    /// `matmul::tile_coord` in `kernels/matmul/tile.cuh` numbers them.
    pub(super) const fn row_tiles_together(&self) -> usize {
        if self.cluster_m() < 128 { 16 } else { 2048 / self.cluster_m() }
    }

    /// Ids whose logits pass through shared memory at once: of so many ids a tile's partials are.
    pub const fn epilogue_n(&self) -> usize {
        if self.block_n < 128 { self.block_n } else { 128 }
    }

    /// Ids and rows of one of the four warps of an `mma.sync` block: a quarter of the ids, and all rows. Of
    /// more than 64 rows, half of the ids and half of the rows.
    pub const fn warp(&self) -> (usize, usize) {
        if self.block_m > 64 {
            (self.block_n / 2, self.block_m / 2)
        } else {
            (self.block_n / 4, self.block_m)
        }
    }

    /// Bytes of one stage: weights and rows.
    pub const fn stage_bytes(&self) -> usize {
        self.block_n * self.weight_bytes + self.block_m * self.row_bytes
    }

    /// Bytes of shared memory of a block.
    pub const fn shared_bytes(&self, stages: usize) -> usize {
        match self.family {
            Family::MmaSync => stages * self.stage_bytes(),
            Family::Wgmma => hopper::shared_bytes(self, stages),
        }
    }

    /// Tiles of a product, counted by cluster; for `mma.sync` they are the blocks of the launch. `None` above
    /// 2^31 - 1.
    pub(super) fn tiles(&self, shape: &Shape) -> Option<u32> {
        let block_n = self.block_n * self.cluster_shape().0;
        let blocks = shape.rows.div_ceil(self.cluster_m()).checked_mul(shape.vocab.div_ceil(block_n))?;
        u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32)
    }

    /// Blocks that an SM holds at once, 0 where not even one fits. With several, one computes while another
    /// fills its pipeline or stores its logits.
    pub fn blocks_per_sm(&self, stages: usize, limits: &DeviceLimits) -> usize {
        let shared = self.shared_bytes(stages);
        if shared > limits.shared_bytes {
            return 0;
        }
        // At least one: an SM has what a single block may have, even where the driver reports less.
        (limits.shared_per_sm / (shared + RESERVED)).clamp(1, self.max_blocks_per_sm)
    }

    /// The numbers of stages worth comparing for a product of `steps` steps of k: for each number of blocks
    /// that an SM may hold, the most stages that leave room for them, since each stage is one more copy in
    /// flight. `steps + 1` are enough: then all copies are in flight before the first is read. Empty where
    /// not even the fewest stages fit.
    pub(super) fn depths(self, steps: usize, limits: &DeviceLimits) -> impl Iterator<Item = usize> {
        let limits = *limits;
        let most = steps.saturating_add(1).clamp(*STAGES.start(), *STAGES.end());
        let fitting = move |blocks| {
            (*STAGES.start()..=most).rev().find(|&stages| self.blocks_per_sm(stages, &limits) >= blocks)
        };
        (1..=self.max_blocks_per_sm).filter_map(fitting)
    }
}

/// The most rows for which no tile's blocks exceed 2^31 - 1, for a shard of `vocab` ids.
pub fn most_rows(vocab: usize) -> usize {
    (i32::MAX as usize / vocab.div_ceil(64).max(1)).saturating_mul(8).max(1)
}
