//! Tiles of the matmul kernels: what a block computes, how much room it takes, and which one suits a shape and a device.

use super::Shape;
use super::hopper::{self, Family};
use std::ops::RangeInclusive;

/// What a device can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors: what blocks are spread over.
    pub processors: usize,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: usize,
    /// Bytes of shared memory that a processor has for all of its blocks.
    pub shared_per_processor: usize,
}

impl DeviceLimits {
    /// H100 SXM. CUDA programming guide, "Compute Capabilities", 9.0, here and below; processors by the vendor's data sheets.
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
    /// L40S: 8.6 and 8.9 have the least shared memory of all that the kernels run on.
    pub const L40S: DeviceLimits = DeviceLimits {
        capability: (8, 9),
        processors: 142,
        shared_bytes: 101_376,
        shared_per_processor: 102_400,
    };
}

/// Bytes of a processor's shared memory that the system keeps for each block.
pub(super) const RESERVED: usize = 1024;

/// How many steps of k a block may keep in shared memory; `kernels/matmul/ring.cuh` has the same.
pub const STAGES: RangeInclusive<usize> = 3..=16;

/// One kernel's tile; `src/plan/tiles.rs` lists them, as the kernels' files do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    /// Ids of a block.
    pub ids: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Bytes of a row in one stage, beside 128 bytes of each weight row; of `wgmma` beside as many.
    pub row_bytes: usize,
    /// Blocks that a processor's registers are enough for.
    pub blocks_per_sm: usize,
    pub family: Family,
}

impl Tile {
    /// The fewest ids of any tile.
    pub(crate) const FEWEST_IDS: usize = 64;
    /// How often a tile of f32 logits passes through shared memory on its way out: written, and read.
    pub(super) const EPILOGUE_PASSES: usize = 2;

    /// Threads of a block: four warps; of `wgmma` a warpgroup for 64 ids each, and those that copy.
    pub const fn threads(&self) -> u32 {
        match self.family {
            Family::MmaSync => 128,
            Family::Wgmma => hopper::threads(self),
        }
    }

    /// Ids and rows of a warp of `mma.sync`. Four warps share the ids; of more than 64 rows, two share the ids
    /// and two the rows.
    pub const fn warp(&self) -> (usize, usize) {
        if self.rows > 64 { (self.ids / 2, self.rows / 2) } else { (self.ids / 4, self.rows) }
    }

    /// Bytes of a stage of weights and rows.
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

    /// Tiles of a product, where they can be counted: of `mma.sync` the blocks of a launch.
    pub(super) fn blocks(&self, shape: &Shape) -> Option<u32> {
        let blocks = shape.rows.div_ceil(self.rows).checked_mul(shape.vocab.div_ceil(self.ids))?;
        u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32)
    }

    /// Blocks that live on a processor together: one of them computes while another begins or stores its
    /// logits.
    pub fn resident(&self, stages: usize, limits: &DeviceLimits) -> usize {
        let shared = self.shared_bytes(stages);
        if shared > limits.shared_bytes {
            return 0;
        }
        // What one block may have, a processor has.
        (limits.shared_per_processor / (shared + RESERVED)).clamp(1, self.blocks_per_sm)
    }

    /// How many stages are worth a look for a product of `steps` steps of k: for each number of blocks that
    /// may live on a processor the most that leave room for them, each stage being a copy more on its way.
    /// One more than there are steps, all of which are then on their way before the first is read, is enough.
    /// None where the fewest stages do not fit.
    pub(super) fn depths(self, steps: usize, limits: &DeviceLimits) -> impl Iterator<Item = usize> {
        let limits = *limits;
        let most = steps.saturating_add(1).clamp(*STAGES.start(), *STAGES.end());
        let fitting = move |blocks| {
            (*STAGES.start()..=most).rev().find(|&stages| self.resident(stages, &limits) >= blocks)
        };
        (1..=self.blocks_per_sm).filter_map(fitting)
    }
}

/// Rows up to which every tile's blocks can be counted, for a shard of `vocab` ids.
pub fn most_rows(vocab: usize) -> usize {
    (i32::MAX as usize / vocab.div_ceil(64).max(1)).saturating_mul(8).max(1)
}
