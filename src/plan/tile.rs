//! Tiles of the matmul kernels: what a block computes, how much room it takes, and which one suits a shape and a device.

use super::Shape;

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
const RESERVED: usize = 1024;

/// Steps of k that a block may keep in shared memory, fewest first; `kernels/matmul/tile.cuh` has the same.
pub const STAGES: [usize; 2] = [3, 4];

/// One kernel's tile; `kernels/matmul/tile.cuh` has the same figures, and a test holds them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    /// Ids of a block.
    pub ids: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Bytes of a row in one stage, beside 128 bytes of each weight row.
    pub row_bytes: usize,
}

impl Tile {
    /// The fewest ids of any tile.
    pub(crate) const FEWEST_IDS: usize = 64;

    /// Threads of a block: four warps share the ids, four more have the second half of 128 rows.
    pub const fn threads(&self) -> u32 {
        if self.rows > 64 { 256 } else { 128 }
    }

    /// Bytes of shared memory of a block: stages of weights and rows.
    pub const fn shared_bytes(&self, stages: usize) -> usize {
        stages * (self.ids * 128 + self.rows * self.row_bytes)
    }

    /// Blocks of a launch, where they can be counted.
    pub(super) fn blocks(&self, shape: &Shape) -> Option<u32> {
        let blocks = shape.rows.div_ceil(self.rows).checked_mul(shape.vocab.div_ceil(self.ids))?;
        u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32)
    }

    /// Blocks that live on a processor together: one of them computes while another begins or stores its logits. Registers are promised
    /// for two blocks of 128 threads, or one of 256.
    pub fn resident(&self, stages: usize, limits: &DeviceLimits) -> usize {
        let shared = self.shared_bytes(stages);
        if shared > limits.shared_bytes {
            return 0;
        }
        // What one block may have, a processor has.
        (limits.shared_per_processor / (shared + RESERVED)).clamp(1, 256 / self.threads() as usize)
    }

    /// How many stages suit: four, or three where that lets a second block live on the processor and there are more blocks than
    /// processors. As many as fit otherwise; none where three do not.
    pub(super) fn stages(&self, shape: &Shape, limits: &DeviceLimits) -> Option<usize> {
        let [few, many] = STAGES;
        let crowded = self.blocks(shape).is_some_and(|blocks| blocks as usize > limits.processors);
        let (of_few, of_many) = (self.resident(few, limits), self.resident(many, limits));
        match (of_few, of_many) {
            (0, _) => None,
            (_, 0) => Some(few),
            _ if crowded && of_few > of_many => Some(few),
            _ => Some(many),
        }
    }

    /// How a choice is judged, the least being best: the work of the processor that has the most blocks. A block's work is its products,
    /// padding included, and what it reads of the second-level cache for them.
    ///
    /// That 128 bytes of a weight or a row count as 32 products is a guess, for a GPU to correct: taken one after the other the bytes would
    /// weigh several times as much, but a processor's other block multiplies meanwhile.
    pub(super) fn cost(&self, shape: &Shape, limits: &DeviceLimits) -> u128 {
        let blocks = shape.rows.div_ceil(self.rows) as u128 * shape.vocab.div_ceil(self.ids) as u128;
        let read = self.ids + self.rows * self.row_bytes / 128;
        blocks.div_ceil(limits.processors.max(1) as u128) * (self.ids * self.rows + 32 * read) as u128
    }
}

/// Rows up to which every tile's blocks can be counted, for a shard of `vocab` ids.
pub fn most_rows(vocab: usize) -> usize {
    (i32::MAX as usize / vocab.div_ceil(64).max(1)).saturating_mul(8).max(1)
}
