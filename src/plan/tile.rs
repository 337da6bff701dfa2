//! Tiles of the matmul kernels: what a block computes, how much room it takes, and which one suits a shape
//! and a device.

use super::Shape;
use super::hopper::{self, Family};
use std::ops::RangeInclusive;

/// What a device offers to a kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors (SMs).
    pub processors: usize,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: usize,
    /// Bytes of shared memory that an SM has for all of its blocks.
    pub shared_per_processor: usize,
}

impl DeviceLimits {
    /// H100 SXM. Here and below, shared memory is from the CUDA programming guide, "Compute Capabilities",
    /// and the number of SMs from the vendor's data sheets.
    pub const H100: DeviceLimits = DeviceLimits {
        capability: (9, 0),
        processors: 132,
        shared_bytes: 232_448,
        shared_per_processor: 233_472,
    };
    /// A100.
    pub const A100: DeviceLimits = DeviceLimits {
        capability: (8, 0),
        processors: 108,
        shared_bytes: 166_912,
        shared_per_processor: 167_936,
    };
    /// L40S. Like all devices of 8.6, 8.9 and 12.x it has the least shared memory that the kernels run with.
    pub const L40S: DeviceLimits = DeviceLimits {
        capability: (8, 9),
        processors: 142,
        shared_bytes: 101_376,
        shared_per_processor: 102_400,
    };
}

/// Bytes of an SM's shared memory that the system reserves for each block.
pub(super) const RESERVED: usize = 1024;

/// Fewest and most pipeline stages of a block: steps of k in shared memory at a time. Must equal those in
/// `kernels/matmul/ring.cuh`.
pub const STAGES: RangeInclusive<usize> = 3..=16;

/// One kernel's tile. `src/plan/tiles.rs` lists all of them; it is generated from the kernels' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    /// Ids of a block.
    pub ids: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Bytes that one stage holds of a hidden row. Of a weight row it holds 128 with `mma.sync`, and
    /// `row_bytes` too with `wgmma`.
    pub row_bytes: usize,
    /// Blocks that an SM's registers are enough for.
    pub blocks_per_sm: usize,
    pub family: Family,
}

impl Tile {
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

    /// Ids and rows of one of the four warps of an `mma.sync` block: a quarter of the ids, and all rows. Of
    /// more than 64 rows, half of the ids and half of the rows.
    pub const fn warp(&self) -> (usize, usize) {
        if self.rows > 64 { (self.ids / 2, self.rows / 2) } else { (self.ids / 4, self.rows) }
    }

    /// Bytes of one stage: weights and rows.
    pub const fn stage_bytes(&self) -> usize {
        match self.family {
            Family::MmaSync => self.ids * 128 + self.rows * self.row_bytes,
            Family::Wgmma => (self.ids + self.rows) * self.row_bytes,
        }
    }

    /// Bytes of shared memory of a block.
    pub const fn shared_bytes(&self, stages: usize) -> usize {
        match self.family {
            Family::MmaSync => stages * self.stage_bytes(),
            Family::Wgmma => hopper::shared_bytes(self, stages),
        }
    }

    /// Tiles of a product, which for `mma.sync` are the blocks of the launch. `None` above 2^31 - 1.
    pub(super) fn blocks(&self, shape: &Shape) -> Option<u32> {
        let blocks = shape.rows.div_ceil(self.rows).checked_mul(shape.vocab.div_ceil(self.ids))?;
        u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32)
    }

    /// Blocks that an SM holds at once, 0 where not even one fits. With several, one computes while another
    /// fills its pipeline or stores its logits.
    pub fn resident(&self, stages: usize, limits: &DeviceLimits) -> usize {
        let shared = self.shared_bytes(stages);
        if shared > limits.shared_bytes {
            return 0;
        }
        // At least one: an SM has what a single block may have, even where the driver reports less.
        (limits.shared_per_processor / (shared + RESERVED)).clamp(1, self.blocks_per_sm)
    }

    /// The numbers of stages worth comparing for a product of `steps` steps of k: for each number of blocks
    /// that an SM may hold, the most stages that leave room for them, since each stage is one more copy in
    /// flight. `steps + 1` are enough: then all copies are in flight before the first is read. Empty where
    /// not even the fewest stages fit.
    pub(super) fn depths(self, steps: usize, limits: &DeviceLimits) -> impl Iterator<Item = usize> {
        let limits = *limits;
        let most = steps.saturating_add(1).clamp(*STAGES.start(), *STAGES.end());
        let fitting = move |blocks| {
            (*STAGES.start()..=most).rev().find(|&stages| self.resident(stages, &limits) >= blocks)
        };
        (1..=self.blocks_per_sm).filter_map(fitting)
    }
}

/// The most rows for which no tile's blocks exceed 2^31 - 1, for a shard of `vocab` ids.
pub fn most_rows(vocab: usize) -> usize {
    (i32::MAX as usize / vocab.div_ceil(64).max(1)).saturating_mul(8).max(1)
}
