//! Tensor maps of the emulated device: its own struct, mirrored in `tma.cpp`.

use super::fault::{Fault, FaultKind};
use lmhead::backend::params::TensorMap;
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};

/// `kMagic` of `tma.cpp`.
const MAGIC: u64 = 0x7061_6d2d_6465_6168;

/// The number that `ptx::Swizzle` gives it.
fn code(swizzle: Swizzle) -> u32 {
    match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    }
}

/// The map for a kernel's parameters. Elements outside of the matrix are read as zeros.
///
/// # Errors
/// A fault of kind `TensorMap`, with the rule of [`Tiled2d::check`] that is broken.
pub fn encode(tiled: &Tiled2d) -> Result<TensorMap, Fault> {
    if let Err(broken) = tiled.check() {
        return Err(Fault { kind: FaultKind::TensorMap, ..Fault::refused("", 0, broken.to_string()) });
    }
    let mut map = TensorMap { opaque: [0; 128] };
    let words = [MAGIC, tiled.address, tiled.columns, tiled.rows, tiled.pitch];
    let halves = [tiled.box_columns, tiled.box_rows, tiled.element_bytes, code(tiled.swizzle)];
    map.opaque[..40].copy_from_slice(bytemuck::bytes_of(&words));
    map.opaque[40..56].copy_from_slice(bytemuck::bytes_of(&halves));
    Ok(map)
}
