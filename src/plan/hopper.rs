//! Products of compute capability 9.0: `wgmma` over weights that were packed when the head was loaded.
//!
//! ```
//! use lmhead::DType;
//! use lmhead::plan::{DeviceLimits, Plan, Precision, Shape};
//!
//! # fn main() -> lmhead::Result<()> {
//! let shape = Shape { rows: 28, vocab: 129_280, hidden: 7168 };
//! let plan = Plan::packed(Precision::Bf16, shape, &DeviceLimits::H100)?;
//! assert_eq!(
//!     plan.to_string(),
//!     "stage_rows on 32 blocks, then wgmma_matmul_bf16_128x32 on 132 blocks that share 1010 tiles of \
//!      128 ids x 32 rows: 288 threads, 4 stages, 189440 bytes of shared memory; 458752 bytes of workspace"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! Which kernels multiply a head is decided when it is loaded, by what its weights are then made into
//! ([`WeightLayout`]); a call only chooses among the tiles of that layout. Bits are the same either way: on
//! this device `wgmma` and `mma.sync` of one k round alike, and both kernels have one chain of them per
//! logit, k ascending, over the same zeros behind the end of k.

use super::{DeviceLimits, Plan, Precision, RESERVED, Shape, Tile, Workspace, check, tiles};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// How weights lie in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Row behind row: an engine's own tensor, or for the portable kernels.
    Rows,
    /// As `WeightMatrix` in `kernels/params.h` says, for the kernels of this module.
    Packed,
}

/// What a tile's kernel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `cp.async` and `mma.sync`, from compute capability 8.0 on: a block a tile, weights row behind row.
    MmaSync,
    /// Bulk copies and `wgmma`, compute capability 9.0: a block a processor, packed weights.
    Wgmma,
}

/// Ids of a packed block, and bytes of k of a column.
pub const PACKED_IDS: usize = 64;
pub const COLUMN_BYTES: usize = 128;

/// Fewest and most stages of a ring; `kernels/hopper/tile.cuh` has the same.
pub const RING_STAGES: std::ops::RangeInclusive<usize> = 2..=16;

/// Rows of a tile that pass through shared memory at once on their way out.
const PART_ROWS: usize = 32;

/// Bytes of a warp's list of candidates, `answers::Best`.
const LIST_BYTES: usize = 1024;

/// Blocks that stage rows, and live beside a product's block until its rows are there: each has 1 KB of the
/// system's and some of its own.
const BESIDE: usize = 2 * (RESERVED + 128);

impl Precision {
    /// The kernels of this precision for packed weights, smallest tile first; none where it has none.
    pub const fn packed_tiles(self) -> &'static [Tile] {
        match self {
            Precision::Bf16 => tiles::WGMMA_MATMUL_BF16,
            Precision::F16 => tiles::WGMMA_MATMUL_F16,
            Precision::W8a8(_) => tiles::WGMMA_MATMUL_W8A8,
            Precision::W8a16(_) | Precision::Fp8(_) => &[],
        }
    }

    /// The kernel that brings rows into the order of stages, for packed weights.
    pub const fn stager(self) -> &'static str {
        match self {
            Precision::W8a8(DType::F32) => "stage_rows_int8_f32",
            Precision::W8a8(DType::F16) => "stage_rows_int8_f16",
            Precision::W8a8(_) => "stage_rows_int8_bf16",
            _ => "stage_rows",
        }
    }

    /// The layout that heads of this precision are given on a device: packed where there are kernels for it.
    pub fn layout(self, limits: &DeviceLimits) -> WeightLayout {
        if limits.capability == (9, 0) && !self.packed_tiles().is_empty() {
            WeightLayout::Packed
        } else {
            WeightLayout::Rows
        }
    }

    /// Columns of 128 bytes of a weight row.
    pub const fn columns(self, hidden: usize) -> usize {
        (hidden * self.weight_bytes()).div_ceil(COLUMN_BYTES)
    }
}

/// The launch of `stage_rows`: one block a row, those that fill the last tile included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagePlan {
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: usize,
}

/// Bytes of shared memory of a block.
pub(super) const fn shared_bytes(tile: &Tile, stages: usize) -> usize {
    let part_rows = if tile.rows < PART_ROWS { tile.rows } else { PART_ROWS };
    let warps = tile.ids / 16;
    let barriers = 16 * *RING_STAGES.end();
    let before = part_rows * 4 * (tile.ids + 4) + warps * LIST_BYTES + barriers;
    before.next_multiple_of(1024) + stages * tile.stage_bytes()
}

/// Threads of a block: a warpgroup for 64 ids each, and a warp that copies, or a warpgroup that gives its
/// registers to the others.
pub(super) const fn threads(tile: &Tile) -> u32 {
    2 * tile.ids as u32 + if tile.rows > 64 { 128 } else { 32 }
}

/// As many stages as leave room for the blocks that stage rows; at least two, the fewest that overlap a copy
/// with products.
fn stages(tile: &Tile, limits: &DeviceLimits) -> usize {
    let room = limits.shared_bytes.min(limits.shared_per_processor.saturating_sub(RESERVED + BESIDE));
    let ring = room.saturating_sub(shared_bytes(tile, 0));
    (ring / tile.stage_bytes()).clamp(*RING_STAGES.start(), *RING_STAGES.end())
}

/// Rows that are staged for this many, whatever the tile that is chosen: a workspace that is enough for some
/// rows is enough for fewer.
fn staged_rows(rows: usize) -> usize {
    if rows > 128 { rows.next_multiple_of(128) } else { rows.next_power_of_two().max(8) }
}

/// How a choice is judged, the least being best: clocks of the processor that has the most tiles, in eighths,
/// for each column of k.
///
/// A tile takes as long as the slowest of three: its weights from memory, of which a processor's share is 14
/// bytes a clock (3.2 TB/s over 132 processors at 1.75 GHz), shared by tiles of other rows that read the
/// same; weights and rows from the second-level cache, 32 bytes a clock; the instructions, N / 2 clocks each
/// but 16 at least, in which 64 x 32 bytes are read. What moves from the second-level cache counts besides,
/// little: of equals the tile with less traffic. Rates are guesses, for a GPU to correct.
fn cost(tile: &Tile, shape: &Shape, limits: &DeviceLimits) -> u128 {
    let (ids, rows) = (tile.ids as u128, tile.rows as u128);
    let row_tiles = shape.rows.div_ceil(tile.rows) as u128;
    let tiles = row_tiles * shape.vocab.div_ceil(tile.ids) as u128;
    let memory = ids * 128 / 14 / row_tiles.min(16);
    let cache = (ids + rows) * 128 / 32;
    let math = ids / 64 * 4 * (rows / 2).max(16);
    tiles.div_ceil(limits.processors.max(1) as u128) * (8 * memory.max(cache).max(math) + cache)
}

impl Plan {
    /// The best of the candidates for a head whose weights are packed.
    ///
    /// # Errors
    /// As [`check`]; `Unsupported` for a precision without such kernels.
    pub fn packed(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Self> {
        let tiles = Self::packed_tiles(precision)?;
        // Rows are not padded further than to the next tile size: `staged_rows` counts on that.
        let narrow = |tile: &&Tile| tile.rows <= staged_rows(shape.rows);
        let fits = |tile: &&Tile| check(precision, &shape, tile, stages(tile, limits), limits).is_ok();
        let best = tiles.iter().rev().filter(narrow).filter(fits);
        let tile = best.min_by_key(|tile| cost(tile, &shape, limits)).unwrap_or(&tiles[0]);
        Self::with_packed_tile(precision, shape, tile, stages(tile, limits), limits)
    }

    /// Every tile for packed weights that fits, with the fewest stages and with the most; all give the same
    /// bits as each other and as
    /// [`Plan::candidates`].
    ///
    /// # Errors
    /// As [`Plan::packed`].
    pub fn packed_candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::packed(precision, shape, limits)?;
        let mut all = Vec::new();
        for tile in Self::packed_tiles(precision)? {
            let mut depths = vec![*RING_STAGES.start(), stages(tile, limits)];
            depths.dedup();
            let with = |stages| Self::with_packed_tile(precision, shape, tile, stages, limits).ok();
            all.extend(depths.into_iter().filter_map(with));
        }
        Ok(all)
    }

    fn packed_tiles(precision: Precision) -> Result<&'static [Tile]> {
        match precision.packed_tiles() {
            [] => Err(Error::unsupported(
                "kernels for packed weights",
                "bf16, f16 or w8a8",
                precision,
                "keep the weights row behind row",
            )),
            tiles => Ok(tiles),
        }
    }

    /// The plan with this tile and number of stages: a block for each processor, or for each tile where there
    /// are fewer.
    ///
    /// # Errors
    /// As [`check`].
    pub fn with_packed_tile(
        precision: Precision,
        shape: Shape,
        tile: &Tile,
        stages: usize,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        check(precision, &shape, tile, stages, limits)?;
        let tiles = tile.blocks(&shape).expect("checked");
        let blocks = tiles.min(u32::try_from(limits.processors.max(1)).unwrap_or(u32::MAX));
        let rows = shape.rows.next_multiple_of(tile.rows);
        let stage = StagePlan {
            kernel: precision.stager(),
            blocks: rows as u32,
            threads: 256,
            shared_bytes: if matches!(precision, Precision::W8a8(_)) { 32 } else { 0 },
        };
        let row_pitch = COLUMN_BYTES * precision.columns(shape.hidden);
        let scales = row_pitch * rows.max(staged_rows(shape.rows));
        let bytes = scales + if matches!(precision, Precision::W8a8(_)) { 4 * shape.rows } else { 0 };
        let workspace = Workspace { row_pitch, scales, bytes };
        Ok(Plan {
            precision,
            shape,
            tile: *tile,
            stages,
            blocks,
            quantize: None,
            stage: Some(stage),
            workspace,
        })
    }
}

/// What [`check`] says of these kernels besides.
///
/// # Errors
/// `Unsupported` for another device, `Shape` for a ring that no kernel has.
pub(super) fn check_wgmma(tile: &Tile, stages: usize, limits: &DeviceLimits) -> Result<()> {
    if limits.capability != (9, 0) {
        let (major, minor) = limits.capability;
        return Err(Error::unsupported(
            format!("kernel {}", tile.kernel),
            "compute capability 9.0",
            format!("{major}.{minor}"),
            "use Plan::new, and weights row behind row",
        ));
    }
    if !RING_STAGES.contains(&stages) {
        let wanted = format!("{} to {} stages", RING_STAGES.start(), RING_STAGES.end());
        let fix = "use a plan of Plan::packed_candidates";
        return Err(Error::shape(format!("kernel {}", tile.kernel), wanted, stages, fix));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    const PRECISIONS: [Precision; 5] = [
        Precision::Bf16,
        Precision::F16,
        Precision::W8a8(DType::F32),
        Precision::W8a8(DType::F16),
        Precision::W8a8(DType::Bf16),
    ];

    fn chosen(precision: Precision, rows: usize, vocab: usize) -> (&'static str, u32, usize) {
        let plan = Plan::packed(precision, Shape { rows, vocab, hidden: 7168 }, &DeviceLimits::H100);
        let plan = plan.expect("a plan");
        (plan.tile.kernel, plan.blocks, plan.stages)
    }

    #[test]
    fn tiles_follow_rows_and_shards() {
        let bf16 = Precision::Bf16;
        for (rows, vocab, wanted) in [
            (1, 129_280, ("wgmma_matmul_bf16_64x8", 132, 6)),
            (9, 129_280, ("wgmma_matmul_bf16_64x16", 132, 5)),
            (28, 129_280, ("wgmma_matmul_bf16_128x32", 132, 4)),
            (64, 129_280, ("wgmma_matmul_bf16_128x64", 132, 4)),
            (100, 129_280, ("wgmma_matmul_bf16_128x128", 132, 6)),
            (256, 129_280, ("wgmma_matmul_bf16_128x128", 132, 6)),
            // A sixteenth: 128 ids at once would leave half of the processors without work.
            (28, 8128, ("wgmma_matmul_bf16_64x32", 127, 4)),
            (64, 8128, ("wgmma_matmul_bf16_64x64", 127, 6)),
        ] {
            assert_eq!(chosen(bf16, rows, vocab), wanted, "{rows} rows, {vocab} ids");
        }
        assert_eq!(chosen(Precision::W8a8(DType::Bf16), 28, 129_280).0, "wgmma_matmul_w8a8_128x32");
    }

    #[test]
    fn only_the_device_that_has_wgmma_takes_them() {
        let shape = Shape { rows: 3, vocab: 100, hidden: 64 };
        for limits in [DeviceLimits::A100, DeviceLimits { capability: (10, 0), ..DeviceLimits::H100 }] {
            assert_eq!(Precision::Bf16.layout(&limits), WeightLayout::Rows);
            let error = Plan::packed(Precision::Bf16, shape, &limits).expect_err("no kernel").to_string();
            assert!(error.contains("wanted compute capability 9.0, got "), "{error}");
        }
        let limits = DeviceLimits::H100;
        assert_eq!(Precision::Bf16.layout(&limits), WeightLayout::Packed);
        assert_eq!(Precision::Fp8(DType::Bf16).layout(&limits), WeightLayout::Rows);
        let error = Plan::packed(Precision::Fp8(DType::Bf16), shape, &limits).expect_err("no kernel");
        assert!(error.to_string().contains("wanted bf16, f16 or w8a8"), "{error}");
        let tile = &Precision::Bf16.packed_tiles()[0];
        for stages in [1, 17] {
            let plan = Plan::with_packed_tile(Precision::Bf16, shape, tile, stages, &limits);
            assert!(plan.expect_err("no ring").to_string().contains("wanted 2 to 16 stages"));
        }
    }

    proptest! {
        #[test]
        fn every_packed_plan_is_valid(
            precision in select(&PRECISIONS[..]),
            rows in prop_oneof![1usize..300, 1usize..1 << 20],
            vocab in 1usize..300_000,
            hidden in 1usize..20_000,
            processors in 1usize..300,
        ) {
            let limits = DeviceLimits { processors, ..DeviceLimits::H100 };
            let shape = Shape { rows, vocab, hidden };
            let all = Plan::packed_candidates(precision, shape, &limits).expect("plans");
            let best = Plan::packed(precision, shape, &limits).expect("a plan");
            prop_assert!(all.contains(&best));
            prop_assert_eq!(all.len(), 2 * precision.packed_tiles().len());
            for plan in &all {
                prop_assert_eq!(check(precision, &shape, &plan.tile, plan.stages, &limits), Ok(()));
                prop_assert!(plan.blocks as usize <= processors && plan.blocks > 0);
                let stage = plan.stage.expect("rows are staged");
                prop_assert_eq!(stage.blocks as usize, rows.next_multiple_of(plan.tile.rows));
                prop_assert!(plan.workspace.scales >= stage.blocks as usize * plan.workspace.row_pitch);
            }
            // What is enough for some rows is enough for fewer.
            if rows > 1 {
                let fewer = Plan::packed(precision, Shape { rows: rows - 1, ..shape }, &limits);
                let fewer = fewer.expect("a plan");
                prop_assert!(fewer.workspace.bytes <= best.workspace.bytes);
            }
        }
    }
}
