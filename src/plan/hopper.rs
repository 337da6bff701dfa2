//! Plans for compute capability 9.0: `wgmma` over weights that were packed when the head was loaded.
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
//! The layout that weights are given when they are loaded ([`WeightLayout`]) decides which kernels multiply
//! them; a call only chooses among the tiles of that layout. The bits are the same with either
//! layout: on this device `wgmma` and `mma.sync` of equal k round alike, and both kernels compute a logit as
//! one chain, k ascending, with the same zeros as padding behind the end of k.

use super::{DeviceLimits, Plan, Precision, RESERVED, Shape, Tile, Workspace, check, tiles};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// How weights lie in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Row-major, for the portable kernels; also an engine's own tensor, which is used where it lies.
    Rows,
    /// In packed blocks, for the kernels of this module; `WeightMatrix` in `kernels/params.h` defines them.
    Packed,
}

/// The instructions that a tile's kernel is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `cp.async` and `mma.sync`, from compute capability 8.0 on: one block per tile, row-major weights.
    MmaSync,
    /// Bulk copies and `wgmma`, compute capability 9.0: one persistent block per SM, packed weights.
    Wgmma,
}

/// A packed block of weights is 64 ids by one column: 128 bytes of k.
pub const PACKED_IDS: usize = 64;
pub const COLUMN_BYTES: usize = 128;

/// Fewest and most stages of a ring; must equal those in `kernels/hopper/tile.cuh`.
pub const RING_STAGES: std::ops::RangeInclusive<usize> = 2..=16;

/// Rows of a tile whose logits the epilogue passes through shared memory at once.
const PART_ROWS: usize = 32;

/// Bytes of a warp's list of candidates, `answers::Best`.
const LIST_BYTES: usize = 1024;

/// Bytes of shared memory left free on an SM for two blocks that stage rows. They run beside a matmul block
/// that waits for its rows; each takes 1 KB that the system reserves, and at most 128 bytes of its own.
const BESIDE: usize = 2 * (RESERVED + 128);

impl Precision {
    /// The kernels of this precision for packed weights, smallest tile first; may be empty.
    pub const fn packed_tiles(self) -> &'static [Tile] {
        match self {
            Precision::Bf16 => tiles::WGMMA_MATMUL_BF16,
            Precision::F16 => tiles::WGMMA_MATMUL_F16,
            Precision::W8a8(_) => tiles::WGMMA_MATMUL_W8A8,
            Precision::W8a16(_) | Precision::Fp8(_) => &[],
        }
    }

    /// The kernel that copies rows into the order in which stages read them, for packed weights.
    pub const fn stager(self) -> &'static str {
        match self {
            Precision::W8a8(DType::F32) => "stage_rows_int8_f32",
            Precision::W8a8(DType::F16) => "stage_rows_int8_f16",
            Precision::W8a8(_) => "stage_rows_int8_bf16",
            _ => "stage_rows",
        }
    }

    /// The layout that weights of this precision get on a device: packed where there are kernels for it.
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

/// The launch of `stage_rows`: one block a row, padding rows of the last tile included.
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

/// Threads of a block: one warpgroup per 64 ids, and the producer. The producer is one warp for tiles of up
/// to 64 rows; for larger ones a whole warpgroup, so that it can give its registers to the others.
pub(super) const fn threads(tile: &Tile) -> u32 {
    2 * tile.ids as u32 + if tile.rows > 64 { 128 } else { 32 }
}

/// The most stages that leave room for the blocks that stage rows, but no more than a block fills. At least
/// two: fewer would not overlap copies with products.
fn stages(precision: Precision, shape: &Shape, tile: &Tile, limits: &DeviceLimits) -> usize {
    let tiles = shape.rows.div_ceil(tile.rows).saturating_mul(shape.vocab.div_ceil(tile.ids));
    let of_a_tile = precision.columns(shape.hidden).div_ceil(tile.row_bytes / COLUMN_BYTES);
    let filled = tiles.div_ceil(limits.processors.max(1)).saturating_mul(of_a_tile);
    let room = limits.shared_bytes.min(limits.shared_per_processor.saturating_sub(RESERVED + BESIDE));
    let ring = room.saturating_sub(shared_bytes(tile, 0));
    (ring / tile.stage_bytes()).min(filled).clamp(*RING_STAGES.start(), *RING_STAGES.end())
}

/// Rows that the workspace has room for. It grows with `rows` alone, not with the chosen tile, so that a
/// workspace for some number of rows is enough for fewer.
fn staged_rows(rows: usize) -> usize {
    if rows > 128 { rows.next_multiple_of(128) } else { rows.next_power_of_two().max(8) }
}

/// The cost of a tile, least is best: for each column of k, the clocks of the SM with the most tiles, in
/// eighths.
///
/// A tile takes as long as the slowest of three:
/// - its weights from memory, at an SM's share of 14 bytes a clock (3.2 TB/s over 132 SMs at 1.75 GHz),
///   divided by the row tiles that share the read;
/// - its weights and rows from the L2 cache, at 32 bytes a clock;
/// - its `wgmma` instructions: N / 2 clocks each, but at least the 16 in which 64 x 32 bytes are read.
///
/// An eighth of the time of the L2 traffic is added, so that of equal tiles the one with less traffic wins.
/// The rates are guesses until they are measured on a GPU.
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
        // No tile has more rows than `staged_rows` makes room for.
        let narrow = |tile: &&Tile| tile.rows <= staged_rows(shape.rows);
        let stages = |tile: &Tile| stages(precision, &shape, tile, limits);
        let fits = |tile: &&Tile| check(precision, &shape, tile, stages(tile), limits).is_ok();
        let best = tiles.iter().rev().filter(narrow).filter(fits);
        let tile = best.min_by_key(|tile| cost(tile, &shape, limits)).unwrap_or(&tiles[0]);
        Self::with_packed_tile(precision, shape, tile, stages(tile), limits)
    }

    /// Every tile for packed weights that fits, with the fewest stages and with the most useful ones. All
    /// give the same bits as each other and as [`Plan::candidates`].
    ///
    /// # Errors
    /// As [`Plan::packed`].
    pub fn packed_candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::packed(precision, shape, limits)?;
        let mut all = Vec::new();
        for tile in Self::packed_tiles(precision)? {
            let mut depths = vec![*RING_STAGES.start(), stages(precision, &shape, tile, limits)];
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

    /// The plan with this tile and number of stages: one block per SM, or per tile where tiles are fewer.
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

/// The part of [`check`] that only concerns these kernels.
///
/// # Errors
/// `Unsupported` for another device, `Shape` for a number of stages that no kernel has.
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
            // A sixteenth of the vocabulary: tiles of 128 ids would leave half of the SMs without work.
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
            let tiles = precision.packed_tiles().len();
            prop_assert!((tiles..=2 * tiles).contains(&all.len()));
            for plan in &all {
                prop_assert_eq!(check(precision, &shape, &plan.tile, plan.stages, &limits), Ok(()));
                prop_assert!(plan.blocks as usize <= processors && plan.blocks > 0);
                // No ring has more stages than its block fills.
                let tiles = rows.div_ceil(plan.tile.rows) * vocab.div_ceil(plan.tile.ids);
                let of_a_tile = precision.columns(hidden).div_ceil(plan.tile.row_bytes / COLUMN_BYTES);
                let filled = tiles.div_ceil(plan.blocks as usize) * of_a_tile;
                prop_assert!(plan.stages <= filled.max(*RING_STAGES.start()));
                let stage = plan.stage.expect("rows are staged");
                prop_assert_eq!(stage.blocks as usize, rows.next_multiple_of(plan.tile.rows));
                prop_assert!(plan.workspace.scales >= stage.blocks as usize * plan.workspace.row_pitch);
            }
            // A workspace for some number of rows is enough for fewer.
            if rows > 1 {
                let fewer = Plan::packed(precision, Shape { rows: rows - 1, ..shape }, &limits);
                let fewer = fewer.expect("a plan");
                prop_assert!(fewer.workspace.bytes <= best.workspace.bytes);
            }
        }
    }
}
