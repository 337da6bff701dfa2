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
//!     "stage_rows on 32 blocks, then wgmma_matmul_bf16_128x32 on 132 blocks that share 924 tiles of \
//!      128 ids x 32 rows and 126 tail tiles of 88 ids: 288 threads, 4 stages, 189440 bytes of shared \
//!      memory; 458752 bytes of workspace"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! The layout that weights are given when they are loaded ([`WeightLayout`]) decides which kernels multiply
//! them; a call only chooses among the tiles of that layout. The bits are the same with either
//! layout: on this device `wgmma` and `mma.sync` of equal k round alike, and both kernels compute a logit as
//! one chain, k ascending, with the same zeros as padding behind the end of k.

use super::{Cost, DeviceLimits, Plan, Precision, RESERVED, Shape, Tail, Tile, Workspace, check, tiles};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::params::{LMHEAD_WGMMA_MAX_STAGES, LMHEAD_WGMMA_MIN_STAGES};

/// How weights lie in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Row-major, for the portable kernels; also an engine's own tensor, which is used where it lies.
    Rows,
    /// In packed blocks, for the kernels of this module; `WeightMatrix` in `kernels/params.h` defines them.
    Packed,
}

impl WeightLayout {
    /// Its name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            WeightLayout::Rows => "rows",
            WeightLayout::Packed => "packed",
        }
    }
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

/// Fewest and most stages of a ring.
pub const RING_STAGES: std::ops::RangeInclusive<usize> =
    LMHEAD_WGMMA_MIN_STAGES as usize..=LMHEAD_WGMMA_MAX_STAGES as usize;

/// Rows of a tile whose logits the epilogue passes through shared memory at once.
const PART_ROWS: usize = 32;

/// Bytes of a warp's list of candidates, `answers::Best`.
const LIST_BYTES: usize = 1024;

/// Bytes of shared memory left free on an SM for two blocks that stage rows. They run beside a matmul block
/// of up to 64 rows that waits for its rows; each takes 1 KB that the system reserves, and at most 128 bytes
/// of its own.
const BESIDE: usize = 2 * (RESERVED + 128);

impl Precision {
    /// The kernels of this precision for packed weights, smallest tile first.
    pub const fn packed_tiles(self) -> &'static [Tile] {
        match self {
            Precision::Bf16 => tiles::WGMMA_MATMUL_BF16,
            Precision::F16 => tiles::WGMMA_MATMUL_F16,
            Precision::W8a8(_) => tiles::WGMMA_MATMUL_W8A8,
            Precision::W8a16(DType::F16) => tiles::WGMMA_MATMUL_W8A16_F16,
            Precision::W8a16(_) => tiles::WGMMA_MATMUL_W8A16_BF16,
            Precision::Fp8(DType::F16) => tiles::WGMMA_MATMUL_FP8_F16,
            Precision::Fp8(_) => tiles::WGMMA_MATMUL_FP8_BF16,
        }
    }

    /// The kernel that copies rows into the order in which stages read them, for packed weights.
    pub const fn stager(self) -> &'static str {
        match self {
            Precision::W8a8(DType::F32) => "stage_rows_int8_f32",
            Precision::W8a8(DType::F16) => "stage_rows_int8_f16",
            Precision::W8a8(_) => "stage_rows_int8_bf16",
            Precision::W8a16(_) | Precision::Fp8(_) => "stage_rows_interleaved",
            Precision::Bf16 | Precision::F16 => "stage_rows",
        }
    }

    /// Columns of a product: 128 bytes of k of a weight row, and as many k of a hidden row.
    pub const fn columns(self, hidden: usize) -> usize {
        (hidden * self.weight_bytes()).div_ceil(COLUMN_BYTES)
    }

    /// Bytes of a packed weight row: all of its columns.
    pub const fn packed_row_bytes(self, hidden: usize) -> usize {
        self.columns(hidden) * COLUMN_BYTES
    }

    /// Bytes of a hidden row over all columns.
    const fn staged_row_bytes(self, hidden: usize) -> usize {
        let element = if self.multiplies_int8() { 1 } else { self.rows().size() };
        self.packed_row_bytes(hidden) / self.weight_bytes() * element
    }
}

impl DeviceLimits {
    /// The layout that weights get when they are copied to such a device.
    pub fn layout(&self) -> WeightLayout {
        if self.capability == (9, 0) { WeightLayout::Packed } else { WeightLayout::Rows }
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

/// Bytes of shared memory of a block. Stated in kernels/hopper/tile.cuh and src/plan/hopper.rs;
/// broken_wgmma_matmul.rs compares the two for every tile.
pub(super) const fn shared_bytes(tile: &Tile, stages: usize) -> usize {
    let part_rows = if tile.block_m < PART_ROWS { tile.block_m } else { PART_ROWS };
    let (part_ids, barriers) = (tile.epilogue_n(), 16 * *RING_STAGES.end());
    let before = part_rows * 4 * (part_ids + 4) + part_ids / 16 * LIST_BYTES + barriers;
    before.next_multiple_of(1024) + stages * tile.stage_bytes()
}

impl Tile {
    /// Columns of a stage.
    const fn columns(&self) -> usize {
        self.weight_bytes / COLUMN_BYTES
    }
}

/// Threads of a block: one warpgroup per 64 ids, but at most two, and the producer. The producer is one warp
/// for tiles of up to 64 rows; for larger ones a whole warpgroup, so that it can give its registers to the
/// others.
pub(super) const fn threads(tile: &Tile) -> u32 {
    2 * tile.epilogue_n() as u32 + if tile.block_m > 64 { 128 } else { 32 }
}

/// Clusters of a launch, one for each of so many tiles at most: one block per SM.
fn clusters(tile: &Tile, tiles: u32, limits: &DeviceLimits) -> u32 {
    let most = (limits.num_sms / tile.cluster()).max(1);
    tiles.min(u32::try_from(most).unwrap_or(u32::MAX))
}

/// Blocks of a launch.
pub(super) fn blocks(plan: &Plan, limits: &DeviceLimits) -> u32 {
    clusters(&plan.tile, plan.tiles(), limits) * plan.tile.cluster() as u32
}

/// The last wave of a plan's tiles, in which not all clusters need have one.
pub(super) struct LastWave {
    /// Ids of a tile.
    pub ids: usize,
    /// Its part of the whole product, 0 to 1.
    pub share: f64,
}

/// `None` where all clusters have equally many tiles.
pub(super) fn last_wave(plan: &Plan) -> Option<LastWave> {
    let block_n = plan.tile.block_n;
    let (tiles, clusters) = (plan.tiles(), plan.blocks / plan.tile.cluster() as u32);
    let (before, ids) = match &plan.tail {
        Some(tail) => (tail.whole_tiles, tail.ids as usize),
        None => (tiles - tiles % clusters, block_n),
    };
    let all = |tiles: u32, ids: usize| f64::from(tiles) * ids as f64;
    let last = all(tiles - before, ids);
    (last > 0.0).then(|| LastWave { ids, share: last / (all(before, block_n) + last) })
}

/// Tiles of the cluster with the most.
pub(super) fn tiles_of_one(tile: &Tile, shape: &Shape, limits: &DeviceLimits) -> u64 {
    let tiles = tile.tiles(shape).unwrap_or(u32::MAX);
    u64::from(tiles.div_ceil(clusters(tile, tiles, limits)))
}

/// The most stages that leave room for the blocks that stage rows, but no more than a block fills. At least
/// two: fewer would not overlap copies with products.
fn stages(precision: Precision, shape: &Shape, tile: &Tile, limits: &DeviceLimits) -> usize {
    let of_a_tile = precision.columns(shape.hidden).div_ceil(tile.columns());
    let filled = (tiles_of_one(tile, shape, limits) as usize).saturating_mul(of_a_tile);
    // Blocks of 384 threads leave no registers for others.
    let beside = if tile.block_m > 64 { 0 } else { BESIDE };
    let room = limits.shared_bytes.min(limits.shared_per_sm.saturating_sub(RESERVED + beside));
    let ring = room.saturating_sub(shared_bytes(tile, 0));
    (ring / tile.stage_bytes()).min(filled).clamp(*RING_STAGES.start(), *RING_STAGES.end())
}

/// Rows that the workspace has room for: 32, those of the smallest tile that has all, or whole tiles of the
/// largest. It does not depend on the chosen tile, so that a workspace for some number of rows is enough for
/// fewer. Of few rows each tile of up to 32 may be the best, since other tiles have more or fewer ids.
pub(super) fn staged_rows(precision: Precision, rows: usize) -> usize {
    let rows = rows.max(32);
    let sizes = || precision.packed_tiles().iter().map(Tile::cluster_m);
    let largest = sizes().max().unwrap_or(1);
    sizes().filter(|&size| size >= rows).min().unwrap_or_else(|| rows.next_multiple_of(largest))
}

impl Plan {
    /// The best of the candidates for a head whose weights are packed.
    ///
    /// # Errors
    /// As [`check`].
    pub fn packed(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Self> {
        let by_cost = |(_, one): &(Plan, Cost), (_, other): &(Plan, Cost)| one.compare(other);
        match Self::packed_choices(precision, shape, limits).min_by(by_cost) {
            Some((plan, _)) => Ok(plan),
            // No tile fits: the error for the smallest names what is missing.
            None => {
                let tile = &precision.packed_tiles()[0];
                Self::with_packed_tile(precision, shape, tile, *RING_STAGES.start(), limits)
            }
        }
    }

    /// Each tile with as many stages as are useful, largest first, with its cost.
    pub(super) fn packed_choices(
        precision: Precision,
        shape: Shape,
        limits: &DeviceLimits,
    ) -> impl Iterator<Item = (Self, Cost)> {
        // No tile has more rows than `staged_rows` makes room for.
        let narrow = move |tile: &&Tile| tile.cluster_m() <= staged_rows(precision, shape.rows);
        let limits = *limits;
        precision.packed_tiles().iter().rev().filter(narrow).filter_map(move |tile| {
            let stages = stages(precision, &shape, tile, &limits);
            let plan = Self::with_packed_tile(precision, shape, tile, stages, &limits).ok()?;
            Some((plan, plan.cost(&limits)))
        })
    }

    /// Every tile for packed weights that fits: with whole tiles alone and the fewest stages and the most
    /// useful ones, then, where the last wave is cut, as [`Plan::packed`] has it. All give the same bits as
    /// each other and as [`Plan::candidates`].
    ///
    /// # Errors
    /// As [`Plan::packed`].
    pub fn packed_candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::packed(precision, shape, limits)?;
        let mut all = Vec::new();
        for tile in precision.packed_tiles() {
            let mut depths = vec![*RING_STAGES.start(), stages(precision, &shape, tile, limits)];
            depths.dedup();
            let with = |stages| Self::with_packed_tile(precision, shape, tile, stages, limits).ok();
            let plans: Vec<Self> = depths.into_iter().filter_map(with).collect();
            all.extend(plans.iter().map(|plan| plan.without_tail(limits)));
            all.extend(plans.last().filter(|plan| plan.tail.is_some()));
        }
        Ok(all)
    }

    /// The plan with this tile and number of stages: a block per SM, or a cluster per tile where tiles are
    /// fewer. The last wave is cut where that makes its tiles smaller.
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
        let rows = shape.rows.next_multiple_of(tile.cluster_m());
        let stage = StagePlan {
            kernel: precision.stager(),
            blocks: rows as u32,
            threads: 256,
            shared_bytes: if matches!(precision, Precision::W8a8(_)) { 32 } else { 0 },
        };
        let row_pitch = precision.staged_row_bytes(shape.hidden);
        let scales = row_pitch * rows.max(staged_rows(precision, shape.rows));
        let bytes = scales + if matches!(precision, Precision::W8a8(_)) { 4 * shape.rows } else { 0 };
        let workspace = Workspace { row_pitch, scales, bytes };
        let plan = Plan {
            precision,
            shape,
            tile: *tile,
            stages,
            blocks: 0,
            tail: Tail::of(tile, &shape, limits),
            quantize: None,
            stage: Some(stage),
            workspace,
        };
        Ok(Plan { blocks: blocks(&plan, limits), ..plan })
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

    const PRECISIONS: [Precision; 9] = [
        Precision::Bf16,
        Precision::F16,
        Precision::W8a8(DType::F32),
        Precision::W8a8(DType::F16),
        Precision::W8a8(DType::Bf16),
        Precision::W8a16(DType::F16),
        Precision::W8a16(DType::Bf16),
        Precision::Fp8(DType::F16),
        Precision::Fp8(DType::Bf16),
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
            (9, 129_280, ("wgmma_matmul_bf16_128x32", 132, 4)),
            (28, 129_280, ("wgmma_matmul_bf16_128x32", 132, 4)),
            (64, 129_280, ("wgmma_matmul_bf16_128x64", 132, 4)),
            (100, 129_280, ("wgmma_matmul_bf16_128x128", 132, 6)),
            (256, 129_280, ("wgmma_matmul_bf16_256x128", 132, 4)),
            // A sixteenth of the vocabulary: tiles of 128 ids would leave half of the SMs without work.
            (28, 8128, ("wgmma_matmul_bf16_64x32", 127, 4)),
            (64, 8128, ("wgmma_matmul_bf16_64x64", 127, 6)),
        ] {
            assert_eq!(chosen(bf16, rows, vocab), wanted, "{rows} rows, {vocab} ids");
        }
        for (precision, wanted) in [
            (Precision::W8a8(DType::Bf16), "wgmma_matmul_w8a8_128x32"),
            (Precision::W8a16(DType::Bf16), "wgmma_matmul_w8a16_bf16_128x32"),
            (Precision::Fp8(DType::F16), "wgmma_matmul_fp8_f16_128x32"),
        ] {
            assert_eq!(chosen(precision, 28, 129_280).0, wanted);
        }
    }

    #[test]
    fn only_the_device_that_has_wgmma_takes_them() {
        let shape = Shape { rows: 3, vocab: 100, hidden: 64 };
        for limits in [DeviceLimits::A100, DeviceLimits { capability: (10, 0), ..DeviceLimits::H100 }] {
            assert_eq!(limits.layout(), WeightLayout::Rows);
            let error = Plan::packed(Precision::Bf16, shape, &limits).expect_err("no kernel").to_string();
            assert!(error.contains("wanted compute capability 9.0, got "), "{error}");
        }
        let limits = DeviceLimits::H100;
        assert_eq!(limits.layout(), WeightLayout::Packed);
        let tile = &Precision::Bf16.packed_tiles()[0];
        for stages in [1, 17] {
            let plan = Plan::with_packed_tile(Precision::Bf16, shape, tile, stages, &limits);
            assert!(plan.expect_err("no ring").to_string().contains("wanted 2 to 16 stages"));
        }
    }

    /// Else fewer rows could be computed as more.
    #[test]
    fn more_rows_cost_no_less() {
        let limits = DeviceLimits::H100;
        for (precision, vocab) in PRECISIONS.into_iter().flat_map(|p| [129_280, 16_192, 8128].map(|n| (p, n)))
        {
            let mut before = 0.0;
            for rows in 1..700 {
                let shape = Shape { rows, vocab, hidden: 7168 };
                let plan = Plan::packed(precision, shape, &limits).expect("a plan");
                let clocks = plan.cost(&limits).clocks.total();
                assert!(before <= clocks, "{rows} rows by {vocab} ids, {before} clocks for fewer: {plan}");
                before = clocks;
            }
        }
    }

    proptest! {
        #[test]
        fn every_packed_plan_is_valid(
            precision in select(&PRECISIONS[..]),
            rows in prop_oneof![1usize..300, 1usize..1 << 20],
            vocab in 1usize..300_000,
            hidden in 1usize..20_000,
            num_sms in 1usize..300,
        ) {
            let limits = DeviceLimits { num_sms, ..DeviceLimits::H100 };
            let shape = Shape { rows, vocab, hidden };
            let all = Plan::packed_candidates(precision, shape, &limits).expect("plans");
            let best = Plan::packed(precision, shape, &limits).expect("a plan");
            prop_assert!(all.contains(&best));
            let tiles = precision.packed_tiles().len();
            prop_assert!((tiles..=3 * tiles).contains(&all.len()));
            for plan in &all {
                prop_assert_eq!(check(precision, &shape, &plan.tile, plan.stages, &limits), Ok(()));
                let cluster = plan.tile.cluster();
                prop_assert!(plan.blocks as usize <= num_sms.max(cluster) && plan.blocks > 0);
                prop_assert!((plan.blocks as usize).is_multiple_of(cluster));
                // No ring has more stages than its block fills.
                let cluster_rows = plan.tile.cluster_m();
                let tiles = plan.tile.tiles(&shape).expect("few") as usize;
                let of_a_tile = precision.columns(hidden).div_ceil(plan.tile.columns());
                let filled = tiles.div_ceil(plan.blocks as usize / cluster) * of_a_tile;
                prop_assert!(plan.stages <= filled.max(*RING_STAGES.start()));
                if let Some(tail) = &plan.tail {
                    prop_assert!(tail.fits(&plan.tile, &shape));
                    prop_assert_eq!(tail.whole_tiles as usize % num_sms, 0);
                    prop_assert!(tail.tiles(&plan.tile, &shape) as usize <= num_sms);
                    let plain = plan.without_tail(&limits);
                    prop_assert!(plain.tail.is_none() && all.contains(&plain));
                    let clocks = |of: &Plan| of.cost(&limits).clocks.total();
                    prop_assert!(clocks(plan) <= clocks(&plain), "{plan}: {plain}");
                }
                let stage = plan.stage.expect("rows are staged");
                prop_assert_eq!(stage.blocks as usize, rows.next_multiple_of(cluster_rows));
                prop_assert!(plan.workspace.scales >= stage.blocks as usize * plan.workspace.row_pitch);
                let element = if precision.multiplies_int8() { 1 } else { precision.rows().size() };
                prop_assert!(plan.workspace.row_pitch >= hidden * element);
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
