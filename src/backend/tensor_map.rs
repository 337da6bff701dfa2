//! How TMA reads a matrix: the description and its rules, the same for every device. Each device has its own
//! encoding.

use crate::error::{Error, Result};

/// How the 16-byte vectors of a tile's rows are exchanged, so that no two rows of eight share banks of shared
/// memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Swizzle {
    /// The bytes that a tile's row must have; `None` without a swizzle, which takes any number.
    fn span(self) -> Option<u64> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }
}

/// A row-major matrix in device memory and the tiles that TMA moves of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Tiled2d {
    /// The rules of `cuTensorMapEncodeTiled` (CUDA driver API reference), which itself only says that one was
    /// broken; and one of our own: a swizzled tile is as wide as its swizzle. The driver takes narrower ones
    /// too, but how those lie in shared memory is documented nowhere, and the emulated device does not guess.
    ///
    /// # Errors
    /// `Shape`, with the rule.
    pub fn check(&self) -> Result<()> {
        let rule = |wanted: &str, got: String, fix: &str| Err(Error::shape("tensor map", wanted, got, fix));
        let Tiled2d { address, element_bytes, columns, rows, pitch, box_columns, box_rows, swizzle } = *self;
        let row = columns.saturating_mul(element_bytes.into());
        let tile = u64::from(box_columns) * u64::from(element_bytes);
        if !matches!(element_bytes, 1 | 2 | 4) {
            return rule("elements of 1, 2 or 4 bytes", element_bytes.to_string(), "name the dtype's size");
        }
        if !address.is_multiple_of(16) || address == 0 {
            let got = format!("{address:#x}");
            return rule("an address that is a multiple of 16", got, "align the matrix");
        }
        if !(1..=1 << 32).contains(&rows) || !(1..=1 << 32).contains(&columns) {
            let got = format!("[{rows}, {columns}]");
            return rule("1 to 2^32 rows and columns", got, "launch nothing where there is no work");
        }
        if !pitch.is_multiple_of(16) || pitch < row || pitch >= 1 << 40 {
            let got = format!("{pitch} bytes for rows of {row}");
            return rule(
                "a pitch that is a multiple of 16, holds a row and is below 2^40",
                got,
                "pad the rows",
            );
        }
        let boxes = 1..=256;
        if !boxes.contains(&box_rows) || !boxes.contains(&box_columns) || !tile.is_multiple_of(16) {
            let got = format!("{box_rows} x {box_columns} of {element_bytes} bytes");
            let wanted = "tiles of 1 to 256 rows and columns, the columns a multiple of 16 bytes";
            return rule(wanted, got, "change the tile");
        }
        if let Some(span) = swizzle.span().filter(|span| tile != *span) {
            let wanted = format!("{span} bytes of columns with a {span}-byte swizzle");
            return rule(&wanted, tile.to_string(), "change the tile or the swizzle");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tiled2d = Tiled2d {
        address: 0x7f00_0000_0010,
        element_bytes: 2,
        columns: 7168,
        rows: 129_280,
        pitch: 7168 * 2,
        box_columns: 64,
        box_rows: 64,
        swizzle: Swizzle::Bytes128,
    };

    #[test]
    fn a_broken_rule_is_named() {
        assert_eq!(GOOD.check(), Ok(()));
        let narrow = Tiled2d { element_bytes: 1, columns: 16, pitch: 16, box_columns: 16, ..GOOD };
        assert_eq!(Tiled2d { swizzle: Swizzle::None, box_rows: 256, ..narrow }.check(), Ok(()));
        for (map, wanted) in [
            (Tiled2d { element_bytes: 3, ..GOOD }, "wanted elements of 1, 2 or 4 bytes, got 3"),
            (Tiled2d { address: 0, ..GOOD }, "wanted an address that is a multiple of 16, got 0x0"),
            (Tiled2d { address: 264, ..GOOD }, "wanted an address that is a multiple of 16, got 0x108"),
            (Tiled2d { rows: 0, ..GOOD }, "wanted 1 to 2^32 rows and columns, got [0, 7168]"),
            (Tiled2d { columns: u64::MAX, ..GOOD }, "wanted 1 to 2^32 rows and columns"),
            (
                Tiled2d { columns: 2881, pitch: 2881 * 2, ..GOOD },
                "a pitch that is a multiple of 16, holds a row",
            ),
            (Tiled2d { pitch: 7152 * 2, ..GOOD }, "got 14304 bytes for rows of 14336"),
            (Tiled2d { box_rows: 257, ..GOOD }, "wanted tiles of 1 to 256 rows and columns"),
            (Tiled2d { box_columns: 4, ..GOOD }, "got 64 x 4 of 2 bytes"),
            (
                Tiled2d { box_columns: 72, ..GOOD },
                "wanted 128 bytes of columns with a 128-byte swizzle, got 144",
            ),
            (narrow, "wanted 128 bytes of columns with a 128-byte swizzle, got 16"),
            (Tiled2d { swizzle: Swizzle::Bytes32, ..GOOD }, "with a 32-byte swizzle, got 128"),
        ] {
            let error = map.check().expect_err("a rule is broken").to_string();
            assert!(error.starts_with("tensor map: ") && error.contains(wanted), "{error}");
        }
    }
}
