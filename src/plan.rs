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
//!     "quantize_rows_bf16 on 28 blocks, then quant_matmul_128x32 on 1010 blocks of 128 ids x 32 rows: 128 threads, 4 stages, \
//!      81920 bytes of shared memory; 200816 bytes of workspace"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! Every plan of a precision gives the same bits (promise 1): one instruction with one k, one chain of them per logit, k ascending.
//! A plan differs in how many ids and rows a block takes and how many steps of k it keeps, and so in how often weights are read, how
//! much is padded and how many of the device's processors have work; nothing else.

use crate::dtype::DType;
use crate::dtype::Quantization;
use crate::error::{Error, Result};
use crate::quantize::MAX_INT8_HIDDEN;
use std::fmt;

mod tile;

pub use tile::{DeviceLimits, STAGES, Tile, most_rows};

/// Types of weights and rows, as the kernels are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// bf16 weights and rows.
    Bf16,
    /// f16 weights and rows.
    F16,
    /// int8 weights; rows of this type are quantised to int8 first. f32 sums are not formed: int32, exact.
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
    /// `Dtype` where the kernels have none: f32 heads, f32 rows with w8a16 and FP8, rows of another 16-bit
    /// type than the weights.
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
        macro_rules! tiles {
            ($stem:literal, $row_bytes:literal, $($ids:literal x $rows:literal),*) => {
                &[$(Tile {
                    kernel: concat!($stem, "_", $ids, "x", $rows),
                    ids: $ids,
                    rows: $rows,
                    row_bytes: $row_bytes,
                }),*]
            };
            ($stem:literal, $row_bytes:literal, to 64) => {
                tiles!($stem, $row_bytes, 64 x 8, 64 x 16, 64 x 32, 64 x 64, 128 x 8, 128 x 16, 128 x 32, 128 x 64)
            };
            ($stem:literal, $row_bytes:literal, to 128) => {
                tiles!(
                    $stem, $row_bytes, 64 x 8, 64 x 16, 64 x 32, 64 x 64, 128 x 8, 128 x 16, 128 x 32, 128 x 64, 128 x 128
                )
            };
        }
        match self {
            Precision::Bf16 => tiles!("gather_matmul_bf16", 128, to 128),
            Precision::F16 => tiles!("gather_matmul_f16", 128, to 128),
            Precision::W8a8(_) => tiles!("quant_matmul", 128, to 128),
            Precision::W8a16(DType::F16) => tiles!("w8a16_matmul_f16", 256, to 64),
            Precision::W8a16(_) => tiles!("w8a16_matmul_bf16", 256, to 64),
            Precision::Fp8(DType::F16) => tiles!("fp8_matmul_f16", 256, to 64),
            Precision::Fp8(_) => tiles!("fp8_matmul_bf16", 256, to 64),
        }
    }

    /// The kernel that quantises the rows before, where there is one.
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
    /// Quantised rows `[rows, pitch]` int8 begin at 0.
    pub row_pitch: usize,
    /// Scales `[rows]` f32.
    pub scales: usize,
    /// All of it.
    pub bytes: usize,
}

/// How one product runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub precision: Precision,
    pub shape: Shape,
    pub tile: Tile,
    /// Steps of k in shared memory.
    pub stages: usize,
    pub blocks: u32,
    /// Runs before.
    pub quantize: Option<QuantizePlan>,
    pub workspace: Workspace,
}

impl Plan {
    /// The best of the candidates for this device.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Self> {
        let fits = |tile: &&Tile| check(precision, &shape, tile, STAGES[0], limits).is_ok();
        // Of equals the last: of more ids, and so fewer blocks that read the same rows.
        let best = precision.tiles().iter().rev().filter(fits).min_by_key(|tile| tile.cost(&shape, limits));
        let tile = best.unwrap_or(&precision.tiles()[0]);
        Self::with_tile(precision, shape, tile, tile.stages(&shape, limits).unwrap_or(STAGES[0]), limits)
    }

    /// Every plan for the product, each tile with all numbers of stages that fit; all give the same bits.
    ///
    /// # Errors
    /// As [`check`], where there is none.
    pub fn candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::new(precision, shape, limits)?;
        let with = |(tile, stages)| Self::with_tile(precision, shape, tile, stages, limits).ok();
        let all = precision.tiles().iter().flat_map(|tile| STAGES.map(|stages| (tile, stages)));
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
        let blocks = tile.blocks(&shape).expect("checked");
        let quantize = precision.quantizer().map(|kernel| QuantizePlan {
            kernel,
            blocks: shape.rows as u32,
            threads: 256,
            shared_bytes: 32,
        });
        let workspace = if quantize.is_some() {
            let row_pitch = shape.hidden.next_multiple_of(16);
            let scales = shape.rows * row_pitch;
            Workspace { row_pitch, scales, bytes: scales + 4 * shape.rows }
        } else {
            Workspace::default()
        };
        Ok(Plan { precision, shape, tile: *tile, stages, blocks, quantize, workspace })
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
        let Tile { kernel, ids, rows, .. } = self.tile;
        write!(
            f,
            "{kernel} on {} blocks of {ids} ids x {rows} rows: {} threads, {} stages, {} bytes of shared memory",
            self.blocks,
            self.tile.threads(),
            self.stages,
            self.shared_bytes(),
        )?;
        match self.workspace.bytes {
            0 => Ok(()),
            bytes => write!(f, "; {bytes} bytes of workspace"),
        }
    }
}

/// The single statement of what the kernels take.
///
/// # Errors
/// `Shape` for sizes beyond them, `Unsupported` for a device that lacks the instructions or the shared memory.
pub fn check(
    precision: Precision,
    shape: &Shape,
    tile: &Tile,
    stages: usize,
    limits: &DeviceLimits,
) -> Result<()> {
    let sizes = |wanted: &str, got: String, fix: &str| {
        Err(Error::shape(format!("product {shape}"), wanted, got, fix))
    };
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
    if precision.weight_bytes() == 1 && matches!(precision, Precision::W8a8(_)) && hidden > MAX_INT8_HIDDEN {
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
    if tile.blocks(shape).is_none() {
        return sizes(
            "at most 2^31 - 1 tiles",
            format!("{} x {}", rows.div_ceil(tile.rows), vocab.div_ceil(tile.ids)),
            "split the rows",
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
    if !STAGES.contains(&stages) {
        return sizes(
            &format!("one of {STAGES:?} stages"),
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

#[cfg(test)]
mod tests;
