//! Tensor maps of the emulated device, by the rules of `cuTensorMapEncodeTiled`.

use super::fault::Fault;
use crate::backend::params::TensorMap;

/// How the 16-byte pieces of a tile's rows are exchanged, so that no two rows of eight share banks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Swizzle {
    /// Bytes of a tile's row, at most; none without a swizzle.
    fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }

    /// The number that `ptx::Swizzle` gives it.
    fn code(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        }
    }
}

/// A row-major matrix in global memory and the tiles that TMA moves of it.
#[derive(Debug, Clone, Copy)]
pub struct Tiled2d {
    /// Device address of element (0, 0).
    pub address: u64,
    /// 1, 2 or 4.
    pub element_bytes: u32,
    /// Elements of a row.
    pub columns: u64,
    pub rows: u64,
    /// Bytes from one row to the next.
    pub pitch: u64,
    pub box_columns: u32,
    pub box_rows: u32,
    pub swizzle: Swizzle,
}

/// `kMagic` of `tma.cpp`.
const MAGIC: u64 = 0x7061_6d2d_6465_6168;

impl Tiled2d {
    /// The tensor map.
    ///
    /// # Errors
    /// Of kind `TensorMap`, with the rule that a size breaks.
    pub fn encode(&self) -> Result<TensorMap, Fault> {
        let refuse = |text: String| {
            let mut fault = Fault::refused("tensor map", 0, text);
            fault.kind = super::fault::FaultKind::TensorMap;
            Err(fault)
        };
        if !matches!(self.element_bytes, 1 | 2 | 4) {
            return refuse(format!("elements: wanted 1, 2 or 4 bytes, got {}", self.element_bytes));
        }
        if !self.address.is_multiple_of(16) {
            return refuse(format!("address: wanted a multiple of 16, got {:#x}", self.address));
        }
        if !self.pitch.is_multiple_of(16) || self.pitch >= 1 << 40 {
            return refuse(format!("pitch: wanted a multiple of 16 bytes below 2^40, got {}", self.pitch));
        }
        for (name, size) in [("columns", self.columns), ("rows", self.rows)] {
            if size == 0 || size > 1 << 32 {
                return refuse(format!("{name}: wanted 1 to 2^32, got {size}"));
            }
        }
        if self.pitch < self.columns * u64::from(self.element_bytes) {
            return refuse(format!(
                "pitch: wanted at least the {} columns, got {} bytes",
                self.columns, self.pitch
            ));
        }
        for (name, size) in [("box columns", self.box_columns), ("box rows", self.box_rows)] {
            if size == 0 || size > 256 {
                return refuse(format!("{name}: wanted 1 to 256, got {size}"));
            }
        }
        let row_bytes = self.box_columns * self.element_bytes;
        if !row_bytes.is_multiple_of(16) {
            return refuse(format!("box columns: wanted a multiple of 16 bytes, got {row_bytes} bytes"));
        }
        if let Some(span) = self.swizzle.span()
            && row_bytes > span
        {
            return refuse(format!(
                "box columns: wanted at most the swizzle's {span} bytes, got {row_bytes}"
            ));
        }
        let mut map = TensorMap { opaque: [0; 128] };
        let words = [MAGIC, self.address, self.columns, self.rows, self.pitch];
        let halves = [self.box_columns, self.box_rows, self.element_bytes, self.swizzle.code()];
        map.opaque[..40].copy_from_slice(bytemuck::bytes_of(&words));
        map.opaque[40..56].copy_from_slice(bytemuck::bytes_of(&halves));
        Ok(map)
    }
}
