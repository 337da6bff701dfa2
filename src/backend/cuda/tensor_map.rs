//! How TMA reads a matrix: the description, its rules, and the driver's encoding of it.

use super::driver::{driver, failed};
use crate::backend::params::TensorMap;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;

/// How a tile's rows are spread over the banks of shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    /// The one that wgmma reads: 16-byte chunk `c` of row `r` at `c ^ (r % 8)`.
    Bytes128,
}

/// A row-major matrix `[rows, columns]` that is read in tiles of `box_rows x box_columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiled {
    pub dtype: DType,
    pub rows: u64,
    pub columns: u64,
    /// Bytes from one row to the next.
    pub pitch: u64,
    pub box_rows: u32,
    pub box_columns: u32,
    pub swizzle: Swizzle,
}

impl Tiled {
    /// The rules of `cuTensorMapEncodeTiled` (CUDA driver API reference), which itself only says that one was broken.
    ///
    /// # Errors
    /// `Shape`, with the rule.
    pub fn check(&self, address: u64) -> Result<()> {
        let rule = |wanted: &str, got: String, fix: &str| Err(Error::shape("tensor map", wanted, got, fix));
        let size = self.dtype.size() as u64;
        let (row, tile) = (self.columns.saturating_mul(size), u64::from(self.box_columns) * size);
        if !address.is_multiple_of(16) || address == 0 {
            let got = format!("{address:#x}");
            return rule("an address that is a multiple of 16", got, "align the matrix");
        }
        if !(1..=1 << 32).contains(&self.rows) || !(1..=1 << 32).contains(&self.columns) {
            let got = format!("[{}, {}]", self.rows, self.columns);
            return rule("1 to 2^32 rows and columns", got, "launch nothing where there is no work");
        }
        if !self.pitch.is_multiple_of(16) || self.pitch < row || self.pitch >= 1 << 40 {
            let got = format!("{} bytes for rows of {row}", self.pitch);
            return rule(
                "a pitch that is a multiple of 16, holds a row and is below 2^40",
                got,
                "pad the rows",
            );
        }
        let boxes = 1..=256;
        if !boxes.contains(&self.box_rows) || !boxes.contains(&self.box_columns) || !tile.is_multiple_of(16) {
            let got = format!("{} x {} of {}", self.box_rows, self.box_columns, self.dtype.name());
            return rule(
                "tiles of 1 to 256 rows and columns, the columns a multiple of 16 bytes",
                got,
                "change the tile",
            );
        }
        if self.swizzle == Swizzle::Bytes128 && tile > 128 {
            return rule(
                "at most 128 bytes of columns with a 128-byte swizzle",
                tile.to_string(),
                "change the tile",
            );
        }
        Ok(())
    }

    /// The map for a kernel's parameters. Elements outside of the matrix are read as zeros.
    ///
    /// # Errors
    /// As [`Tiled::check`] and [`super::driver()`]; `Device` where the driver refuses it.
    pub fn encode(&self, address: u64) -> Result<TensorMap> {
        self.check(address)?;
        driver()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let (sizes, pitches) = ([self.columns, self.rows], [self.pitch]);
        let (tile, steps) = ([self.box_columns, self.box_rows], [1, 1]);
        use sys::CUtensorMapDataType as Type;
        let dtype = match self.dtype {
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::I8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = match self.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: all pointers are to arrays of this frame with as many elements as two dimensions have (strides: one less); the
        // address is only stored.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                2,
                address as usize as *mut c_void,
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
        encoded.result().map_err(|e| failed(format!("tensor map: {self:?}"), e))?;
        Ok(TensorMap { opaque: bytemuck::cast(map.opaque) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tiled = Tiled {
        dtype: DType::Bf16,
        rows: 129_280,
        columns: 7168,
        pitch: 7168 * 2,
        box_rows: 64,
        box_columns: 64,
        swizzle: Swizzle::Bytes128,
    };

    #[test]
    fn a_broken_rule_is_named() {
        assert_eq!(GOOD.check(0x7f00_0000_0010), Ok(()));
        let narrow =
            Tiled { dtype: DType::I8, columns: 16, pitch: 16, box_columns: 16, box_rows: 256, ..GOOD };
        assert_eq!(narrow.check(16), Ok(()));
        for (map, wanted) in [
            (Tiled { rows: 0, ..GOOD }, "wanted 1 to 2^32 rows and columns, got [0, 7168]"),
            (Tiled { columns: u64::MAX, ..GOOD }, "wanted 1 to 2^32 rows and columns"),
            (
                Tiled { columns: 2881, pitch: 2881 * 2, ..GOOD },
                "a pitch that is a multiple of 16, holds a row",
            ),
            (Tiled { pitch: 7152 * 2, ..GOOD }, "got 14304 bytes for rows of 14336"),
            (Tiled { box_rows: 257, ..GOOD }, "wanted tiles of 1 to 256 rows and columns"),
            (Tiled { box_columns: 4, ..GOOD }, "got 64 x 4 of bf16"),
            (
                Tiled { box_columns: 72, ..GOOD },
                "wanted at most 128 bytes of columns with a 128-byte swizzle, got 144",
            ),
        ] {
            let error = map.check(256).expect_err("a rule is broken").to_string();
            assert!(error.starts_with("tensor map: ") && error.contains(wanted), "{error}");
        }
        for address in [0, 8] {
            let error = GOOD.check(address).expect_err("a rule is broken").to_string();
            assert!(error.contains("wanted an address that is a multiple of 16"), "{error}");
        }
        assert_eq!(GOOD.encode(8).err(), GOOD.check(8).err(), "checked before the driver is asked");
    }
}
