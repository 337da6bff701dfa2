//! Which kernel runs a product, and how: pure, printable, the same for the real and the emulated device.
//!
//! ```
//! use lmhead::plan::{DeviceLimits, Plan, Precision, Shape};
//! use lmhead::{DType, Quantization};
//!
//! # fn main() -> lmhead::Result<()> {
//! let precision = Precision::of(DType::I8, Quantization::W8a8, DType::Bf16)?;
//! let shape = Shape { rows: 28, vocab: 129_280, hidden: 7168 };
//! let plan = Plan::new(precision, shape, &DeviceLimits::H100)?;
//! assert_eq!(
//!     plan.to_string(),
//!     "quantize_rows_bf16 on 28 blocks, then quant_matmul_128x32 on 1010 blocks of 128 ids x 32 rows: \
//!      128 threads, 5 stages, 102400 bytes of shared memory; 200816 bytes of workspace"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! Every plan of a precision gives the same bits (promise 1): each logit is one chain of one instruction with
//! one k, k ascending. Plans differ only in the tile of a block (block_n x block_m) and in the number of
//! pipeline stages, and so in what they [cost](Cost): how often weights are read, how much is padded, how
//! many of the device's SMs (streaming multiprocessors) have work.
//!
//! `Precision`, `Shape`, `DeviceLimits` -> [`Plan::candidates`] -> [`Plan`], the one whose [`Cost`] is least.
//! What is valid is stated in [`check`] alone.

use crate::dtype::DType;
use crate::dtype::Quantization;
use crate::error::{Error, Result};
use crate::quantize::MAX_INT8_HIDDEN;
use std::fmt;

mod cost;
pub mod hopper;
mod tail;
mod tile;
mod tiles;
pub mod tuning;

pub use cost::{Clocks, Cost, Rates};
pub use hopper::{Family, StagePlan, WeightLayout};
pub use tail::Tail;
pub(crate) use tail::most_parts;
use tile::RESERVED;
pub use tile::{DeviceLimits, STAGES, Tile, most_rows};
pub use tuning::Tuning;

/// Types of weights and rows: what the kernels are named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// bf16 weights and rows.
    Bf16,
    /// f16 weights and rows.
    F16,
    /// int8 weights; rows of this type are quantised to int8 first. Sums are int32, which is exact.
    W8a8(DType),
    /// int8 weights; rows of this 16-bit type stay as they are.
    W8a16(DType),
    /// FP8 E4M3 weights; rows of this 16-bit type stay as they are.
    Fp8(DType),
}

impl Precision {
    /// The precision of a head with `weights` and `hidden` states.
    ///
    /// # Errors
    /// `Dtype` where there is no kernel: f32 heads, f32 rows with w8a16 or FP8, rows whose 16-bit type is not
    /// that of the weights.
    pub fn of(weights: DType, quantization: Quantization, hidden: DType) -> Result<Self> {
        let refuse =
            |wanted: &str, got: DType, fix: &str| Err(Error::dtype("device kernels", wanted, got, fix));
        match (weights, quantization, hidden) {
            (DType::Bf16, _, DType::Bf16) => Ok(Precision::Bf16),
            (DType::F16, _, DType::F16) => Ok(Precision::F16),
            (DType::I8, Quantization::W8a8, DType::F32 | DType::F16 | DType::Bf16) => {
                Ok(Precision::W8a8(hidden))
            }
            (DType::I8, _, DType::F16 | DType::Bf16) => Ok(Precision::W8a16(hidden)),
            (DType::E4m3, _, DType::F16 | DType::Bf16) => Ok(Precision::Fp8(hidden)),
            (DType::F32, ..) => {
                refuse("bf16, f16, int8 or FP8 weights", weights, "use the cpu backend for f32 heads")
            }
            (DType::I8 | DType::E4m3, ..) => refuse(
                "f16 or bf16 hidden states for w8a16",
                hidden,
                "convert the hidden states, or use the cpu backend (int8 heads also take them as w8a8)",
            ),
            _ => refuse(
                &format!("{weights} hidden states for {weights} weights"),
                hidden,
                "convert the hidden states, or load the head in their type",
            ),
        }
    }

    /// Whether both operands are int8: tensor cores multiply these at twice the rate of 16-bit operands.
    pub const fn multiplies_int8(self) -> bool {
        matches!(self, Precision::W8a8(_))
    }

    /// Bytes of a weight.
    pub const fn weight_bytes(self) -> usize {
        match self {
            Precision::Bf16 | Precision::F16 => 2,
            Precision::W8a8(_) | Precision::W8a16(_) | Precision::Fp8(_) => 1,
        }
    }

    /// Type of the hidden states.
    pub const fn rows(self) -> DType {
        match self {
            Precision::Bf16 => DType::Bf16,
            Precision::F16 => DType::F16,
            Precision::W8a8(rows) | Precision::W8a16(rows) | Precision::Fp8(rows) => rows,
        }
    }

    /// The kernels of this precision, smallest tile first.
    pub const fn tiles(self) -> &'static [Tile] {
        match self {
            Precision::Bf16 => tiles::GATHER_MATMUL_BF16,
            Precision::F16 => tiles::GATHER_MATMUL_F16,
            Precision::W8a8(_) => tiles::QUANT_MATMUL,
            Precision::W8a16(DType::F16) => tiles::W8A16_MATMUL_F16,
            Precision::W8a16(_) => tiles::W8A16_MATMUL_BF16,
            Precision::Fp8(DType::F16) => tiles::FP8_MATMUL_F16,
            Precision::Fp8(_) => tiles::FP8_MATMUL_BF16,
        }
    }

    /// The launch that quantises `rows` rows ahead of the matmul; `None` where rows stay as they are.
    pub fn quantize(self, rows: usize) -> Option<QuantizePlan> {
        let kernel = self.quantizer()?;
        Some(QuantizePlan { kernel, blocks: rows as u32, threads: 256, shared_bytes: 32 })
    }

    /// The kernel that copies rows into the workspace ahead of the matmul, for rows whose addresses are not
    /// multiples of 16 bytes. `None` for W8A8: there the quantising kernel already copies them.
    pub const fn packer(self) -> Option<&'static str> {
        if self.multiplies_int8() { None } else { Some("pack_rows") }
    }

    /// Every kernel that a product of this precision may launch over row-major weights.
    pub fn kernels(self) -> impl Iterator<Item = &'static str> {
        self.tiles().iter().map(|tile| tile.kernel).chain(self.quantizer()).chain(self.packer())
    }

    /// The kernel that quantises rows ahead of the matmul; `None` where rows stay as they are.
    pub const fn quantizer(self) -> Option<&'static str> {
        match self {
            Precision::W8a8(DType::F32) => Some("quantize_rows_f32"),
            Precision::W8a8(DType::F16) => Some("quantize_rows_f16"),
            Precision::W8a8(_) => Some("quantize_rows_bf16"),
            _ => None,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precision::Bf16 => write!(f, "bf16"),
            Precision::F16 => write!(f, "f16"),
            Precision::W8a8(rows) => write!(f, "w8a8 of {rows} rows"),
            Precision::W8a16(rows) => write!(f, "w8a16 of {rows} rows"),
            Precision::Fp8(rows) => write!(f, "fp8 of {rows} rows"),
        }
    }
}

/// Sizes of one product: `[rows, hidden] x [vocab, hidden]ᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    /// Ids of the shard.
    pub vocab: usize,
    pub hidden: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}] x [{}, {}]ᵀ", self.rows, self.hidden, self.vocab, self.hidden)
    }
}

/// The launch of `quantize_rows`: one block a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizePlan {
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: usize,
}

/// Where the parts of the caller's workspace begin, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workspace {
    /// Bytes of a row in the workspace. The rows `[rows, row_pitch]` begin at byte 0: quantised to int8, or
    /// copied where the caller's are not aligned to 16 bytes. For packed weights they lie tile after tile,
    /// within a tile stage after stage, and `row_pitch` is a row's bytes over all stages.
    pub row_pitch: usize,
    /// Where the scales `[rows]`, f32, of quantised rows begin.
    pub scales: usize,
    /// Size of the whole workspace.
    pub bytes: usize,
}

/// How one product runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub precision: Precision,
    pub shape: Shape,
    pub tile: Tile,
    /// Pipeline stages: steps of k in shared memory at a time.
    pub stages: usize,
    pub blocks: u32,
    /// How the last wave's ids are cut, where it is not of whole tiles.
    pub tail: Option<Tail>,
    /// The launch that quantises rows ahead of the matmul, where row-major weights are int8 with W8A8.
    pub quantize: Option<QuantizePlan>,
    /// The launch that stages rows ahead of the matmul, where weights are packed.
    pub stage: Option<StagePlan>,
    pub workspace: Workspace,
}

impl Plan {
    /// The best of the candidates for weights of this layout.
    ///
    /// # Errors
    /// As [`check`].
    pub fn for_layout(
        layout: WeightLayout,
        precision: Precision,
        shape: Shape,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        match layout {
            WeightLayout::Rows => Self::new(precision, shape, limits),
            WeightLayout::Packed => Self::packed(precision, shape, limits),
        }
    }

    /// The candidate that costs least on this device, for row-major weights.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Self> {
        check_shape(precision, &shape, limits)?;
        let by_cost = |(_, one): &(Plan, Cost), (_, other): &(Plan, Cost)| one.compare(other);
        match Self::choices(precision, shape, limits).min_by(by_cost) {
            Some((plan, _)) => Ok(plan),
            // No tile fits: the error for the smallest names what is missing.
            None => Self::with_tile(precision, shape, &precision.tiles()[0], *STAGES.start(), limits),
        }
    }

    /// The plans that are worth comparing, with their costs: for each tile and each number of blocks that may
    /// run on an SM at once, the plan with the most stages that leave room for them. Larger tiles come first,
    /// since of equal costs the first is chosen.
    fn choices(
        precision: Precision,
        shape: Shape,
        limits: &DeviceLimits,
    ) -> impl Iterator<Item = (Self, Cost)> {
        let steps = (shape.hidden * precision.weight_bytes()).div_ceil(128);
        let countable =
            precision.tiles().iter().rev().filter_map(move |tile| Some((tile, tile.tiles(&shape)?)));
        countable.flat_map(move |(tile, blocks)| {
            tile.depths(steps, limits).map(move |stages| {
                let plan = Self::of(precision, shape, tile, stages, blocks);
                (plan, plan.cost(limits))
            })
        })
    }

    /// The cheapest plan of each tile with its cost, cheapest first; the first is the one that
    /// [`Plan::for_layout`] chooses.
    ///
    /// # Errors
    /// As [`check`], where there is none.
    pub fn ranked(
        layout: WeightLayout,
        precision: Precision,
        shape: Shape,
        limits: &DeviceLimits,
    ) -> Result<Vec<(Self, Cost)>> {
        Self::for_layout(layout, precision, shape, limits)?;
        let mut all: Vec<_> = match layout {
            WeightLayout::Rows => Self::choices(precision, shape, limits).collect(),
            WeightLayout::Packed => Self::packed_choices(precision, shape, limits).collect(),
        };
        all.sort_by(|(_, one), (_, other)| one.compare(other));
        let mut seen: Vec<&str> = Vec::new();
        all.retain(|(plan, _)| {
            let first = !seen.contains(&plan.tile.kernel);
            seen.push(plan.tile.kernel);
            first
        });
        Ok(all)
    }

    /// What this plan costs on a device.
    pub fn cost(&self, limits: &DeviceLimits) -> Cost {
        Cost::of(self, limits)
    }

    /// Every valid plan for the product: each tile with each number of stages that fits.
    ///
    /// # Errors
    /// As [`check`], where there is none.
    pub fn candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::new(precision, shape, limits)?;
        let with = |(tile, stages)| Self::with_tile(precision, shape, tile, stages, limits).ok();
        let all = precision.tiles().iter().flat_map(|tile| STAGES.map(move |stages| (tile, stages)));
        Ok(all.filter_map(with).collect())
    }

    /// The plan with this tile and number of stages.
    ///
    /// # Errors
    /// As [`check`].
    pub fn with_tile(
        precision: Precision,
        shape: Shape,
        tile: &Tile,
        stages: usize,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        check(precision, &shape, tile, stages, limits)?;
        let blocks = tile.tiles(&shape).expect("checked");
        Ok(Self::of(precision, shape, tile, stages, blocks))
    }

    fn of(precision: Precision, shape: Shape, tile: &Tile, stages: usize, blocks: u32) -> Self {
        let quantize = precision.quantize(shape.rows);
        // A plan does not know whether the caller's rows are aligned, so the workspace always has room for a
        // copy of them.
        let element = if quantize.is_some() { 1 } else { precision.rows().size() };
        let row_pitch = (shape.hidden * element).next_multiple_of(16);
        let scales = shape.rows * row_pitch;
        let bytes = scales + if quantize.is_some() { 4 * shape.rows } else { 0 };
        let workspace = Workspace { row_pitch, scales, bytes };
        Plan { precision, shape, tile: *tile, stages, blocks, tail: None, quantize, stage: None, workspace }
    }

    /// Bytes of shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        self.tile.shared_bytes(self.stages)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(q) = &self.quantize {
            write!(f, "{} on {} blocks, then ", q.kernel, q.blocks)?;
        }
        if let Some(stage) = &self.stage {
            write!(f, "{} on {} blocks, then ", stage.kernel, stage.blocks)?;
        }
        let Tile { kernel, block_n, block_m, family, .. } = self.tile;
        write!(f, "{kernel} on {} blocks ", self.blocks)?;
        if family == Family::Wgmma {
            write!(f, "that share {} tiles ", self.tail.map_or(self.tiles(), |tail| tail.whole_tiles))?;
        }
        write!(f, "of {block_n} ids x {block_m} rows")?;
        if let Some(tail) = &self.tail {
            write!(f, " and {} tail tiles of {} ids", tail.tiles(&self.tile, &self.shape), tail.ids)?;
        }
        write!(
            f,
            ": {} threads, {} stages, {} bytes of shared memory",
            self.tile.threads(),
            self.stages,
            self.shared_bytes(),
        )?;
        write!(f, "; {} bytes of workspace", self.workspace.bytes)?;
        // Other plans use the workspace in every call; this one only for unaligned rows.
        if self.quantize.is_none() && self.stage.is_none() {
            write!(f, ", for rows that are not aligned to 16 bytes")?;
        }
        Ok(())
    }
}

/// The single statement of what the kernels take.
///
/// # Errors
/// `Shape` for sizes or stages that no kernel takes, `Unsupported` for a device that lacks the instructions
/// or the shared memory.
pub fn check(
    precision: Precision,
    shape: &Shape,
    tile: &Tile,
    stages: usize,
    limits: &DeviceLimits,
) -> Result<()> {
    check_shape(precision, shape, limits)?;
    if tile.tiles(shape).is_none() {
        return sizes(
            shape,
            "at most 2^31 - 1 tiles",
            format!("{} x {}", shape.rows.div_ceil(tile.block_m), shape.vocab.div_ceil(tile.block_n)),
            "split the rows",
        );
    }
    if tile.family == Family::Wgmma {
        hopper::check_wgmma(tile, stages, limits)?;
    } else if !STAGES.contains(&stages) {
        return sizes(
            shape,
            &format!("{} to {} stages", STAGES.start(), STAGES.end()),
            stages.to_string(),
            "use a plan of Plan::candidates",
        );
    }
    if tile.shared_bytes(stages) > limits.shared_bytes {
        return Err(Error::unsupported(
            format!("kernel {}", tile.kernel),
            format!("{} bytes of shared memory for a block", tile.shared_bytes(stages)),
            format!("a device with {}", limits.shared_bytes),
            "use a device with more, or the cpu backend",
        ));
    }
    Ok(())
}

fn sizes(shape: &Shape, wanted: &str, got: String, fix: &str) -> Result<()> {
    Err(Error::shape(format!("product {shape}"), wanted, got, fix))
}

/// Refuses what no tile could take.
fn check_shape(precision: Precision, shape: &Shape, limits: &DeviceLimits) -> Result<()> {
    let sizes = |wanted: &str, got: String, fix: &str| sizes(shape, wanted, got, fix);
    let Shape { rows, vocab, hidden } = *shape;
    if rows == 0 || vocab == 0 || hidden == 0 {
        return sizes(
            "at least one row, id and element",
            format!("{rows}, {vocab}, {hidden}"),
            "launch nothing",
        );
    }
    if hidden > 1 << 24 {
        return sizes("a hidden size of at most 2^24", hidden.to_string(), "use the cpu backend");
    }
    if precision.multiplies_int8() && hidden > MAX_INT8_HIDDEN {
        let wanted = format!("a hidden size of at most {MAX_INT8_HIDDEN} for w8a8");
        return sizes(&wanted, hidden.to_string(), "quantise with w8a16: int32 sums could overflow");
    }
    if rows > 1 << 30 || vocab > 1 << 30 {
        return sizes(
            "at most 2^30 rows and ids",
            format!("{rows}, {vocab}"),
            "split the rows, or shard the head",
        );
    }
    if limits.capability < (8, 0) {
        let (major, minor) = limits.capability;
        return Err(Error::unsupported(
            "device kernels",
            "compute capability 8.0 or newer",
            format!("{major}.{minor}"),
            "use an Ampere GPU or a newer one, or the cpu backend",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
