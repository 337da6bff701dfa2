//! The tile instructions in plain Rust, by Intel's manual (volume 2, TDPBF16PS and TDPBSSD). Operands that
//! the processor would refuse (#UD) panic, so that a mistake in the shapes shows on every machine.
//!
//! For each of its results, `tdpbf16ps` has two chains of fused multiply-adds, over the even and over the odd
//! elements of k, from zero and k ascending. Then the two are added, and their sum is added to the result.
//! Every operation rounds to nearest even on its own, takes subnormal operands as zeros, and makes subnormal
//! results zeros.

use super::{Line, STEP, Shape, TILE, Tiles};
use crate::e4m3;

/// The tile registers of a thread.
pub(crate) struct Emulated {
    shape: Shape,
    tiles: [[[u8; STEP]; TILE]; 8],
}

impl Emulated {
    #[cfg(test)]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn zero(&mut self, tile: usize) {
        self.tiles[tile] = [[0; STEP]; TILE];
    }

    pub fn load(&mut self, tile: usize, from: &[u8], at: usize, stride: usize) {
        self.shape.check(tile, at, stride, from.len());
        let (rows, row_bytes) = self.shape.of(tile);
        // Bytes of the register beyond the shape become zeros.
        self.zero(tile);
        for (i, row) in self.tiles[tile].iter_mut().take(rows).enumerate() {
            row[..row_bytes].copy_from_slice(&from[at + i * stride..][..row_bytes]);
        }
    }

    pub fn store(&self, tile: usize, to: &mut [u8], at: usize, stride: usize) {
        self.shape.check(tile, at, stride, to.len());
        let (rows, row_bytes) = self.shape.of(tile);
        for row in 0..rows {
            self.store_row(tile, row, &mut to[at + row * stride..][..row_bytes]);
        }
    }

    /// Stores one row of a tile.
    pub fn store_row(&self, tile: usize, row: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.tiles[tile][row][..to.len()]);
    }

    pub fn dot_bf16(&mut self, c: usize, a: usize, b: usize) {
        self.check(c, a, b);
        let Shape { ids, rows } = self.shape;
        let widen = |pair: [u8; 4]| {
            let bits = u32::from_le_bytes(pair);
            [bits << 16, bits & 0xffff_0000].map(|half| f64::from(flushed(f32::from_bits(half))))
        };
        let weights: [[[f64; 2]; TILE]; TILE] = self.tiles[a].map(|row| words(&row).map(widen));
        let x: [[[f64; 2]; TILE]; TILE] = self.tiles[b].map(|row| words(&row).map(widen));
        for (sums, weights) in self.tiles[c].iter_mut().zip(&weights).take(ids) {
            let mut chains = [[0.0f32; TILE]; 2];
            for (w, x) in weights.iter().zip(&x) {
                for (half, chain) in chains.iter_mut().enumerate() {
                    for (sum, x) in chain.iter_mut().zip(x).take(rows) {
                        // The product is exact in f64.
                        *sum = rounded(w[half] * x[half] + f64::from(*sum));
                    }
                }
            }
            let [even, odd] = chains;
            for ((word, even), odd) in sums.as_chunks_mut::<4>().0.iter_mut().zip(even).zip(odd).take(rows) {
                let both = rounded(f64::from(even) + f64::from(odd));
                let sum = flushed(f32::from_le_bytes(*word));
                *word = rounded(f64::from(sum) + f64::from(both)).to_le_bytes();
            }
        }
    }

    pub fn dot_i8(&mut self, c: usize, a: usize, b: usize) {
        self.check(c, a, b);
        let Shape { ids, rows } = self.shape;
        let bytes = |four: [u8; 4]| four.map(|byte| i32::from(byte as i8));
        let weights: [[[i32; 4]; TILE]; TILE] = self.tiles[a].map(|row| words(&row).map(bytes));
        let x: [[[i32; 4]; TILE]; TILE] = self.tiles[b].map(|row| words(&row).map(bytes));
        for (sums, weights) in self.tiles[c].iter_mut().zip(&weights).take(ids) {
            for (w, x) in weights.iter().zip(&x) {
                for (word, x) in sums.as_chunks_mut::<4>().0.iter_mut().zip(x).take(rows) {
                    let four: i32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                    *word = i32::from_le_bytes(*word).wrapping_add(four).to_le_bytes();
                }
            }
        }
    }

    /// Refuses operands that the processor would refuse: the same tile twice, or shapes that do not fit.
    fn check(&self, c: usize, a: usize, b: usize) {
        assert!(c != a && c != b && a != b, "#UD: tiles {c}, {a} and {b} are not three");
        let [(c_rows, c_bytes), (a_rows, a_bytes), (b_rows, b_bytes)] = [c, a, b].map(|t| self.shape.of(t));
        assert!(c_rows == a_rows && c_bytes == b_bytes && a_bytes == 4 * b_rows, "#UD: shapes of the tiles");
    }
}

impl Tiles for Emulated {
    fn configure(shape: Shape) -> Self {
        let Shape { ids, rows } = shape;
        assert!((1..=TILE).contains(&ids) && (1..=TILE).contains(&rows), "#GP: {shape:?}");
        Emulated { shape, tiles: [[[0; STEP]; TILE]; 8] }
    }

    fn zero<const T: usize>(&mut self) {
        self.zero(T);
    }

    fn load<const T: usize>(&mut self, from: &[u8], at: usize, stride: usize) {
        self.load(T, from, at, stride);
    }

    fn store<const T: usize>(&self, to: &mut [u8], at: usize, stride: usize) {
        self.store(T, to, at, stride);
    }

    fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.dot_bf16(C, A, B);
    }

    fn dot_i8<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.dot_i8(C, A, B);
    }

    fn widen_i8(from: &[u8], to: &mut [Line], distance: usize) {
        widen(from, to, distance, |byte| f32::from(byte as i8));
    }

    fn widen_e4m3(from: &[u8], to: &mut [Line], distance: usize) {
        widen(from, to, distance, e4m3::widen);
    }
}

/// The 4-byte words of a row.
fn words(row: &[u8; STEP]) -> [[u8; 4]; TILE] {
    std::array::from_fn(|i| row.as_chunks::<4>().0[i])
}

/// Makes a subnormal number a zero with the same sign.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// Rounds to f32 a sum of two f32, or of an f32 and an exact product of two bf16. Its earlier rounding to f64
/// cannot change the result, since 53 bits are at least twice 24 plus 2. As for the processor's other
/// instructions, a result counts as subnormal if it is below `2^-126` after rounding to 24 bits: values that
/// are at most half a unit in the last place below `2^-126` round up to it.
fn rounded(value: f64) -> f32 {
    const LEAST: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
    let rounded = value as f32;
    if value.abs() < LEAST { 0.0f32.copysign(rounded) } else { rounded }
}

/// Widens bytes to bf16: the upper half of the f32 that `value` gives, which bf16 holds exactly.
fn widen(from: &[u8], to: &mut [Line], distance: usize, value: impl Fn(u8) -> f32) {
    for (i, bytes) in from.chunks(STEP).enumerate() {
        for half in 0..2 {
            let line = &mut to[i * distance + half * distance / 2].0;
            line.fill(0);
            let bytes = bytes.iter().skip(half * STEP / 2);
            for (out, byte) in line.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *out = ((value(*byte).to_bits() >> 16) as u16).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::TILE_BYTES;

    #[test]
    fn results_are_rounded_to_24_bits_before_they_count_as_subnormal() {
        let least = f64::from(f32::MIN_POSITIVE);
        let below = |share: f64| least - least * share;
        for (value, want) in [
            (least, f32::MIN_POSITIVE),
            // The next number of 24 bits below `least`; the middle between the two, a tie that goes to even;
            // a number below that middle.
            (below(2f64.powi(-24)), 0.0),
            (below(2f64.powi(-25)), f32::MIN_POSITIVE),
            (below(2f64.powi(-25) + 2f64.powi(-40)), 0.0),
            (least / 2.0, 0.0),
            (1.0 + 2f64.powi(-24), 1.0),
            (1.0 + 3.0 * 2f64.powi(-24), 1.0 + 2.0 * f32::EPSILON),
            (2f64.powi(128), f32::INFINITY),
        ] {
            assert_eq!(rounded(value).to_bits(), want.to_bits(), "{value:e}");
            assert_eq!(rounded(-value).to_bits(), (-want).to_bits(), "{value:e}");
        }
        assert!(rounded(f64::NAN).is_nan());
    }

    /// One `tdpbf16ps` for one id and one row: `start` plus the products of the given elements of k.
    fn sum(start: f32, products: &[(usize, f32, f32)]) -> f32 {
        let mut tiles = Emulated::configure(Shape { ids: 1, rows: 1 });
        let (mut w, mut x) = ([0u8; STEP], [0u8; STEP]);
        for &(k, of_w, of_x) in products {
            w[2 * k..][..2].copy_from_slice(&((of_w.to_bits() >> 16) as u16).to_le_bytes());
            x[2 * k..][..2].copy_from_slice(&((of_x.to_bits() >> 16) as u16).to_le_bytes());
        }
        tiles.load(0, &start.to_le_bytes(), 0, 4);
        tiles.load(4, &w, 0, STEP);
        tiles.load(6, &x, 0, 4);
        tiles.dot_bf16(0, 4, 6);
        let mut sum = [0; 4];
        tiles.store(0, &mut sum, 0, 4);
        f32::from_le_bytes(sum)
    }

    #[test]
    fn even_and_odd_products_are_added_apart_and_then_to_the_sum() {
        let large = 2f32.powi(24);
        // Added to the large sum one after the other, each 1 would be lost.
        assert_eq!(sum(large, &[(0, 1.0, 1.0), (1, 1.0, 1.0)]), large + 2.0);
        assert_eq!(sum(large, &[(0, 1.0, 1.0), (30, 1.0, 1.0)]), large + 2.0);
        // In the chain of the large product each 1 is lost; in the other chain they are not.
        assert_eq!(sum(0.0, &[(0, large, 1.0), (2, 1.0, 1.0), (4, 1.0, 1.0)]), large);
        assert_eq!(sum(0.0, &[(0, large, 1.0), (3, 1.0, 1.0), (5, 1.0, 1.0)]), large + 2.0);
        // k ascending: products before the large one are added up first.
        assert_eq!(sum(0.0, &[(2, 1.0, 1.0), (4, 1.0, 1.0), (6, large, 1.0)]), large + 2.0);
    }

    #[test]
    fn subnormal_numbers_are_zeros_wherever_they_come() {
        let (tiny, small) = (2f32.powi(-130), 2f32.powi(-100));
        assert_eq!(sum(0.0, &[(0, tiny, 2f32.powi(60))]), 0.0);
        assert_eq!(sum(0.0, &[(0, 2f32.powi(60), tiny)]), 0.0);
        assert_eq!(sum(tiny, &[]), 0.0);
        // Two subnormal products whose sum would be normal.
        assert_eq!(sum(0.0, &[(0, small, 2f32.powi(-27)), (2, small, 2f32.powi(-27))]), 0.0);
        assert_eq!(sum(0.0, &[(0, small, 2f32.powi(-26))]), f32::MIN_POSITIVE);
        assert!(sum(0.0, &[(7, f32::INFINITY, 0.0)]).is_nan());
        assert_eq!(sum(1.0, &[(7, f32::INFINITY, -1.0)]), f32::NEG_INFINITY);
    }

    #[test]
    fn int8_sums_wrap() {
        let mut tiles = Emulated::configure(Shape { ids: 2, rows: 3 });
        let (w, x) = ([0x80u8; TILE_BYTES], [0x80u8; TILE_BYTES]);
        let mut sums = [0u8; 2 * 12];
        sums[16..20].copy_from_slice(&i32::MAX.to_le_bytes());
        tiles.load(3, &sums, 0, 12);
        tiles.load(5, &w, 0, STEP);
        tiles.load(7, &x, 0, 12);
        tiles.dot_i8(3, 5, 7);
        tiles.store(3, &mut sums, 0, 12);
        let got: Vec<i32> = sums.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
        let all = 64 * 128 * 128;
        assert_eq!(got, [all, all, all, all, i32::MAX.wrapping_add(all), all]);
    }

    #[test]
    #[should_panic(expected = "#UD: tiles 0, 4 and 4")]
    fn one_tile_twice_is_refused() {
        Emulated::configure(Shape { ids: 16, rows: 16 }).dot_i8(0, 4, 4);
    }

    #[test]
    #[should_panic(expected = "#UD: shapes")]
    fn shapes_that_do_not_fit_are_refused() {
        Emulated::configure(Shape { ids: 16, rows: 8 }).dot_bf16(0, 6, 4);
    }

    #[test]
    fn a_tile_beyond_its_memory_is_refused() {
        let bytes = [0u8; 200];
        let load = |at, stride| {
            std::panic::catch_unwind(|| {
                Emulated::configure(Shape { ids: 3, rows: 1 }).load(4, &bytes, at, stride);
            })
        };
        assert!(load(0, 64).is_ok() && load(8, 64).is_ok() && load(0, 68).is_ok());
        for (at, stride) in [(9, 64), (0, 69), (137, 0), (0, usize::MAX), (usize::MAX, 64)] {
            assert!(load(at, stride).is_err(), "{at}, {stride}");
        }
    }
}
