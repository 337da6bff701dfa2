//! Hidden rows -> the second operand of the tile instructions.

use super::{STEP, TILE};
use crate::lanes::Quad;
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use rayon::prelude::*;

/// Steps of k that one task packs.
const K_BLOCK: usize = 32;

/// Packed rows: tile after tile of 16 rows, in each tile step after step of 64 bytes of k, in each step 16
/// times four bytes (two bf16, four int8) of every row. Fewer than 16 rows are one tile with the next power
/// of two of rows: the fewer bytes it has, the more of it stays in the L1 cache.
#[derive(Debug)]
pub(crate) struct PackedTiles {
    /// `[tiles, steps, tile_rows]` of 64 bytes. May be longer, from larger rows before.
    quads: Vec<Quad>,
    rows: usize,
    steps: usize,
    tile_rows: usize,
}

impl PackedTiles {
    /// No rows, and no memory.
    pub fn empty() -> PackedTiles {
        PackedTiles { quads: Vec::new(), rows: 0, steps: 0, tile_rows: 1 }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of a tile.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }

    /// Steps of k.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The bytes of all tiles.
    pub fn bytes(&self) -> &[u8] {
        &cast_slice(&self.quads)[..self.tiles() * self.steps * self.step_bytes()]
    }

    /// Bytes of one step of a tile.
    pub fn step_bytes(&self) -> usize {
        TILE * 4 * self.tile_rows
    }

    /// Makes room for `rows` rows of `row_bytes` bytes.
    pub fn reserve(&mut self, rows: usize, row_bytes: usize) {
        let tile_rows = tile_rows(rows);
        let wanted = rows.next_multiple_of(tile_rows) * row_bytes.div_ceil(STEP);
        if wanted > self.quads.len() {
            self.quads.resize(wanted, Quad::zeroed());
        }
    }

    /// Packs `rows` rows in place of those before; `row(i)` gives the bytes of row `i`. Runs on the threads
    /// of the current pool.
    pub fn pack<'a>(&mut self, rows: usize, row_bytes: usize, row: impl Fn(usize) -> &'a [u8] + Sync) {
        self.reserve(rows, row_bytes);
        let (steps, tile_rows) = (row_bytes.div_ceil(STEP), tile_rows(rows));
        (self.rows, self.steps, self.tile_rows) = (rows, steps, tile_rows);
        let quads = self.tiles() * steps * tile_rows;
        let tiles = self.quads[..quads].par_chunks_mut((steps * tile_rows).max(1));
        tiles.enumerate().for_each(|(tile, quads)| {
            quads.par_chunks_mut(K_BLOCK * tile_rows).enumerate().for_each(|(k_block, quads)| {
                let words: &mut [[u8; 4]] = cast_slice_mut(quads);
                for r in 0..tile_rows {
                    let of = tile * tile_rows + r;
                    let bytes: &[u8] =
                        if of < rows { &row(of)[k_block * K_BLOCK * STEP..row_bytes] } else { &[] };
                    let (whole, rest) = bytes.as_chunks::<4>();
                    let mut places = words[r..].iter_mut().step_by(tile_rows);
                    for (word, place) in whole.iter().zip(places.by_ref()) {
                        *place = *word;
                    }
                    let mut last = [0; 4];
                    last[..rest.len()].copy_from_slice(rest);
                    // Only a row's last k-block, and padding beyond the rows, has places left: they get the
                    // rest of the row, then zeros.
                    for (i, place) in places.enumerate() {
                        *place = if i == 0 { last } else { [0; 4] };
                    }
                }
            });
        });
    }
}

/// Rows of a tile, where `rows` rows are packed.
fn tile_rows(rows: usize) -> usize {
    rows.next_power_of_two().min(TILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_goes_to_its_place_and_all_others_are_zero() {
        let mut packed = PackedTiles::empty();
        // The largest comes first: its remains in memory must not show.
        for (rows, row_bytes) in
            [(40, 5000), (1, 4100), (2, 64), (3, 63), (5, 1), (16, 130), (17, 2050), (33, 7), (0, 9), (3, 0)]
        {
            let byte = |row: usize, at: usize| (row * 31 + at * 7 + 1) as u8 | 1;
            let all: Vec<Vec<u8>> =
                (0..rows).map(|row| (0..row_bytes).map(|at| byte(row, at)).collect()).collect();
            packed.pack(rows, row_bytes, |row| &all[row]);
            let (tile_rows, steps) = (packed.tile_rows(), row_bytes.div_ceil(STEP));
            assert_eq!((packed.rows(), packed.steps()), (rows, steps));
            assert_eq!(packed.bytes().len(), packed.tiles() * steps * STEP * tile_rows);
            let mut seen = 0;
            for (i, &got) in packed.bytes().iter().enumerate() {
                let (in_word, row, word) = (i % 4, i / 4 % tile_rows, i / 4 / tile_rows % 16);
                let (step, tile) = (i / packed.step_bytes() % steps, i / packed.step_bytes() / steps);
                let (row, at) = (tile * tile_rows + row, step * STEP + word * 4 + in_word);
                let want = if row < rows && at < row_bytes { byte(row, at) } else { 0 };
                assert_eq!(got, want, "{rows} x {row_bytes}: row {row}, byte {at}");
                seen += usize::from(want != 0);
            }
            assert_eq!(seen, rows * row_bytes);
        }
    }
}
