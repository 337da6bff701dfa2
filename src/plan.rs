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
//!     "quantize_rows_bf16 on 28 blocks, then quant_matmul_32 on 1010 blocks of 128 ids x 32 rows: 128 threads, 4 stages, \
//!      82048 bytes of shared memory; 200816 bytes of workspace"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! Every plan of a precision gives the same bits (promise 1): one instruction with one k, one chain of them per logit, k ascending.
//! A plan differs in how many rows a block takes, and so in how often weights are read and how much is padded; nothing else.

use crate::config::Quantization;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quantize::MAX_INT8_HIDDEN;
use std::fmt;

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
}

impl Precision {
    /// The precision of a head with `weights` and `hidden` states.
    ///
    /// # Errors
    /// `Dtype` where the kernels have none: f32 heads, f32 rows with w8a16, rows of another 16-bit type than the weights.
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
            (DType::F32, ..) => {
                refuse("bf16, f16 or int8 weights", weights, "use the cpu backend for f32 heads")
            }
            (DType::I8, ..) => refuse(
                "f16 or bf16 hidden states for w8a16",
                hidden,
                "convert the hidden states, quantise with w8a8, or use the cpu backend",
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
            Precision::W8a8(_) | Precision::W8a16(_) => 1,
        }
    }

    /// Type of the hidden states.
    pub const fn rows(self) -> DType {
        match self {
            Precision::Bf16 => DType::Bf16,
            Precision::F16 => DType::F16,
            Precision::W8a8(rows) | Precision::W8a16(rows) => rows,
        }
    }

    /// The kernels of this precision, smallest tile first.
    pub const fn tiles(self) -> &'static [Tile] {
        macro_rules! tiles {
            ($stem:literal, $row_bytes:literal, $($rows:literal),*) => {
                &[$(Tile { kernel: concat!($stem, "_", $rows), rows: $rows, row_bytes: $row_bytes }),*]
            };
        }
        match self {
            Precision::Bf16 => tiles!("gather_matmul_bf16", 128, 8, 16, 32, 64, 128),
            Precision::F16 => tiles!("gather_matmul_f16", 128, 8, 16, 32, 64, 128),
            Precision::W8a8(_) => tiles!("quant_matmul", 128, 8, 16, 32, 64, 128),
            Precision::W8a16(DType::F16) => tiles!("w8a16_matmul_f16", 256, 8, 16, 32, 64),
            Precision::W8a16(_) => tiles!("w8a16_matmul_bf16", 256, 8, 16, 32, 64),
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

/// What a device can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: usize,
}

impl DeviceLimits {
    /// CUDA programming guide, "Compute Capabilities", 9.0.
    pub const H100: DeviceLimits = DeviceLimits { capability: (9, 0), shared_bytes: 232_448 };
}

/// Ids of a block's tile.
pub const TILE_IDS: usize = 128;

/// One kernel's tile; `kernels/matmul/tile.cuh` has the same figures, and a test holds them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    /// Rows of a block.
    pub rows: usize,
    /// Bytes of a row in one stage, beside 128 bytes of each weight row.
    row_bytes: usize,
}

impl Tile {
    /// Threads of a block: four warps cover the ids, four more the second half of 128 rows.
    pub const fn threads(&self) -> u32 {
        if self.rows > 64 { 256 } else { 128 }
    }

    const fn stage_bytes(&self) -> usize {
        TILE_IDS * 128 + self.rows * self.row_bytes
    }

    /// Steps of k in shared memory: four where they fit the 99 KB of compute capability 8.6 and 8.9.
    pub const fn stages(&self) -> usize {
        if 4 * self.stage_bytes() <= 98_304 { 4 } else { 3 }
    }

    /// Bytes of shared memory of a block: the stages, and each row's number.
    pub const fn shared_bytes(&self) -> usize {
        self.stages() * self.stage_bytes() + 4 * self.rows
    }

    /// Blocks of a launch, where they can be counted.
    fn blocks(&self, shape: &Shape) -> Option<u32> {
        let blocks = shape.rows.div_ceil(self.rows).checked_mul(shape.vocab.div_ceil(TILE_IDS))?;
        u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32)
    }

    /// How a choice is judged, the least being best: rows that are computed, padding included, and for each tile of rows as much
    /// again as reading its weights once more is worth.
    ///
    /// The 32 is arithmetic, not a measurement: a stage's 16 KB of weights take about as long from the second-level cache (5.5 TB/s
    /// over 132 SMs) as 32 rows' products on the tensor cores.
    fn cost(&self, shape: &Shape) -> usize {
        shape.rows.div_ceil(self.rows) * (self.rows + 32)
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
    pub blocks: u32,
    /// Runs before.
    pub quantize: Option<QuantizePlan>,
    pub workspace: Workspace,
}

impl Plan {
    /// The best of the candidates.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Self> {
        let fits = |tile: &&Tile| check(precision, &shape, tile, limits).is_ok();
        let best = precision.tiles().iter().filter(fits).min_by_key(|tile| tile.cost(&shape));
        match best {
            Some(tile) => Self::with_tile(precision, shape, tile, limits),
            None => Err(check(precision, &shape, &precision.tiles()[0], limits).expect_err("nothing fits")),
        }
    }

    /// Every plan for the product; all give the same bits.
    ///
    /// # Errors
    /// As [`check`], where there is none.
    pub fn candidates(precision: Precision, shape: Shape, limits: &DeviceLimits) -> Result<Vec<Self>> {
        Self::new(precision, shape, limits)?;
        let with = |tile| Self::with_tile(precision, shape, tile, limits).ok();
        Ok(precision.tiles().iter().filter_map(with).collect())
    }

    /// The plan with this tile.
    ///
    /// # Errors
    /// As [`check`].
    pub fn with_tile(precision: Precision, shape: Shape, tile: &Tile, limits: &DeviceLimits) -> Result<Self> {
        check(precision, &shape, tile, limits)?;
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
        Ok(Plan { precision, shape, tile: *tile, blocks, quantize, workspace })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(q) = &self.quantize {
            write!(f, "{} on {} blocks, then ", q.kernel, q.blocks)?;
        }
        let Tile { kernel, rows, .. } = self.tile;
        write!(
            f,
            "{kernel} on {} blocks of {TILE_IDS} ids x {rows} rows: {} threads, {} stages, {} bytes of shared memory",
            self.blocks,
            self.tile.threads(),
            self.tile.stages(),
            self.tile.shared_bytes(),
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
pub fn check(precision: Precision, shape: &Shape, tile: &Tile, limits: &DeviceLimits) -> Result<()> {
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
            format!("{} x {}", rows.div_ceil(tile.rows), vocab.div_ceil(TILE_IDS)),
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
    if tile.shared_bytes() > limits.shared_bytes {
        return Err(Error::unsupported(
            format!("kernel {}", tile.kernel),
            format!("{} bytes of shared memory for a block", tile.shared_bytes()),
            format!("a device with {}", limits.shared_bytes),
            "use a device with more, or the cpu backend",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRECISIONS: [Precision; 6] = [
        Precision::Bf16,
        Precision::F16,
        Precision::W8a8(DType::F32),
        Precision::W8a8(DType::Bf16),
        Precision::W8a16(DType::Bf16),
        Precision::W8a16(DType::F16),
    ];

    fn rows_of(rows: usize) -> usize {
        let shape = Shape { rows, vocab: 129_280, hidden: 7168 };
        Plan::new(Precision::Bf16, shape, &DeviceLimits::H100).expect("a plan").tile.rows
    }

    #[test]
    fn tiles_follow_the_rows() {
        let chosen = [1, 8, 9, 16, 28, 33, 64, 65, 128, 130, 192, 256, 896, 4096].map(rows_of);
        assert_eq!(chosen, [8, 8, 16, 16, 32, 64, 64, 128, 128, 64, 64, 128, 128, 128]);
    }

    #[test]
    fn every_plan_fits_every_gpu_from_ampere_on() {
        // Compute capability 8.6 and 8.9 have the least: 99 KB for a block.
        let least = DeviceLimits { capability: (8, 6), shared_bytes: 101_376 };
        for precision in PRECISIONS {
            for rows in [1, 20, 200, 40_000] {
                let shape = Shape { rows, vocab: 262_208, hidden: 12_288 };
                let plans = Plan::candidates(precision, shape, &least).expect("plans");
                assert_eq!(plans.len(), precision.tiles().len(), "{precision}");
                assert!(plans.iter().all(|plan| plan.tile.stages() >= 3));
            }
        }
    }

    #[test]
    fn what_the_kernels_do_not_take_is_refused_with_the_rule() {
        let h100 = DeviceLimits::H100;
        let old = DeviceLimits { capability: (7, 5), shared_bytes: 65_536 };
        let small = DeviceLimits { capability: (8, 0), shared_bytes: 49_152 };
        let shape = |rows, vocab, hidden| Shape { rows, vocab, hidden };
        for (precision, shape, limits, wanted) in [
            (Precision::Bf16, shape(0, 1, 1), h100, "wanted at least one row, id and element, got 0, 1, 1"),
            (Precision::Bf16, shape(1, 1, 1 << 25), h100, "wanted a hidden size of at most 2^24"),
            (
                Precision::W8a8(DType::Bf16),
                shape(1, 1, 132_105),
                h100,
                "wanted a hidden size of at most 132104 for w8a8",
            ),
            (Precision::Bf16, shape(1 << 30, 1 << 30, 64), h100, "wanted at most 2^31 - 1 tiles, got "),
            (Precision::Bf16, shape(usize::MAX, 1, 64), h100, "wanted at most 2^30 rows and ids"),
            (Precision::F16, shape(1, 1, 64), old, "wanted compute capability 8.0 or newer, got 7.5"),
            (
                Precision::F16,
                shape(1, 1, 64),
                small,
                "kernel gather_matmul_f16_8: wanted 69664 bytes of shared memory",
            ),
        ] {
            let error = Plan::new(precision, shape, &limits).expect_err("refused").to_string();
            assert!(error.contains(wanted), "{error}");
            assert!(Plan::candidates(precision, shape, &limits).is_err());
        }
        assert!(Plan::new(Precision::W8a16(DType::F16), shape(1, 1, 132_105), &h100).is_ok());
    }

    #[test]
    fn types_without_a_kernel_are_refused_by_name() {
        use DType::{Bf16, F16, F32, I8};
        for (weights, quantization, hidden, wanted) in [
            (
                F32,
                Quantization::None,
                F32,
                "wanted bf16, f16 or int8 weights, got f32; use the cpu backend for f32 heads",
            ),
            (I8, Quantization::W8a16, F32, "wanted f16 or bf16 hidden states for w8a16, got f32; "),
            (Bf16, Quantization::None, F16, "wanted bf16 hidden states for bf16 weights, got f16; "),
        ] {
            let error = Precision::of(weights, quantization, hidden).expect_err("no kernel").to_string();
            assert!(error.starts_with(&format!("device kernels: {wanted}")), "{error}");
        }
        assert_eq!(Precision::of(I8, Quantization::W8a8, F32), Ok(Precision::W8a8(F32)));
        assert_eq!(Precision::of(I8, Quantization::W8a16, F16), Ok(Precision::W8a16(F16)));
    }
}
