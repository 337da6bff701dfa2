//! Tensor maps of the emulated device, whose encoding is its own.

use super::fault::{Fault, FaultKind};
use crate::backend::params::TensorMap;
use crate::backend::tensor_map::{Swizzle, Tiled2d};

/// `kMagic` of `tma.cpp`.
const MAGIC: u64 = 0x7061_6d2d_6465_6168;

/// The map for a kernel's parameters. Elements outside of the matrix are read as zeros.
///
/// # Errors
/// Of kind `TensorMap`, with the words of [`Tiled2d::check`].
pub fn tensor_map(tiled: &Tiled2d) -> Result<TensorMap, Fault> {
    if let Err(broken) = tiled.check() {
        return Err(Fault { kind: FaultKind::TensorMap, ..Fault::refused("", 0, broken.to_string()) });
    }
    // The numbers of `ptx::Swizzle`.
    let swizzle = match tiled.swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    };
    let mut map = TensorMap { opaque: [0; 128] };
    let words = [MAGIC, tiled.address, tiled.columns, tiled.rows, tiled.pitch];
    let halves = [tiled.box_columns, tiled.box_rows, tiled.element_bytes, swizzle];
    map.opaque[..40].copy_from_slice(bytemuck::bytes_of(&words));
    map.opaque[40..56].copy_from_slice(bytemuck::bytes_of(&halves));
    Ok(map)
}
