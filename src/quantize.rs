//! Symmetric int8 quantisation of one row: the rule of promise 2, for hidden rows and for weights alike.
//!
//! `scale = absmax / 127`, `q = clamp(round_half_even(x / scale), -127, 127)`, every operation one IEEE f32
//! operation. A row whose scale would be below [`f32::MIN_POSITIVE`] gets scale 1 and zeros. A row with NaN
//! or infinity gets scale NaN (and zeros), so that every logit computed from it is NaN.

pub use lmhead_cpu::quantize::quantize_row;

/// Largest hidden size of an int8 head: beyond it `127 * 128 * hidden` could pass `2^31`.
pub const MAX_INT8_HIDDEN: usize = 132_104;
