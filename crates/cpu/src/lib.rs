//! The inner loops of lmhead's CPU backend, compiled once per instruction set. They are a crate of their own
//! because optimising them takes longer than all the rest.
//!
//! ```text
//! hidden rows -> pack.rs    gathered, widened or quantised, in tiles                (once per call)
//!             -> block.rs   packed rows x 64 vocabulary ids -> raw f32 logits        (one task per block)
//!                block/: weights straight from memory for few rows, through panels for more
//!                float.rs, bf16_dot.rs, int8.rs, int8_dot.rs: the inner loops; lanes.rs: the order of sums;
//!                isa.rs, isa/: the instruction sets; product.rs: which loop for which rows and weights
//!             -> amx.rs, amx/: the same by tiles, where there are any
//! ```
//!
//! Made for the library `lmhead`, whose documentation has the promises. The public items here may change with
//! any version of it.

mod amx;
mod bf16_dot;
mod block;
mod convert;
pub mod e4m3;
mod float;
mod int8;
mod int8_dot;
#[allow(unsafe_code, reason = "instructions of sets that were detected")]
mod isa;
mod lanes;
mod pack;
mod product;
#[allow(unsafe_code, reason = "compiled for AVX2, called where it was detected")]
pub mod quantize;
#[allow(unsafe_code, reason = "instructions of sets that were detected")]
pub mod roof;

pub use amx::Amx;
pub use block::BlockScratch;
pub use convert::RowType;
pub use isa::{Arith, Isa, Sets, Work};
pub use pack::pass_rows;
pub use product::{Format, HiddenRowsRef, PackedRows, Weights, weight_sums};

/// Vocabulary ids of a block; one call of [`PackedRows::multiply`] takes one block or several.
pub const BLOCK: usize = 64;
