//! The driver's encoding of a tensor map.

use super::driver::{driver, failed};
use crate::backend::params::TensorMap;
use crate::backend::tensor_map::{Swizzle, Tiled2d};
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

/// The map for a kernel's parameters. Elements outside of the matrix are read as zeros.
///
/// # Errors
/// As [`Tiled2d::check`] and [`super::driver()`]; `Device` where the driver refuses it.
pub fn encode(tiled: &Tiled2d) -> Result<TensorMap> {
    tiled.check()?;
    driver()?;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (sizes, pitches) = ([tiled.columns, tiled.rows], [tiled.pitch]);
    let (tile, steps) = ([tiled.box_columns, tiled.box_rows], [1, 1]);
    use sys::CUtensorMapDataType as Type;
    // Bits are moved as they are; floats would only differ in how elements outside could be filled.
    let element = match tiled.element_bytes {
        1 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        _ => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
    };
    let swizzle = match tiled.swizzle {
        Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: all pointers are to arrays of this frame with as many elements as two dimensions have (strides:
    // one less); the address is only stored.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            element,
            2,
            tiled.address as usize as *mut c_void,
            sizes.as_ptr(),
            pitches.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded.result().map_err(|e| failed(format!("tensor map: {tiled:?}"), e))?;
    Ok(TensorMap { opaque: bytemuck::cast(map.opaque) })
}
