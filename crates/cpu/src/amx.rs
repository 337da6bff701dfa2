//! AMX: products of tiles, for bf16 rows and for rows that are quantised to int8.
//!
//! ```text
//! W [vocab, hidden], as stored  -> tiles 4, 5: 16 ids x 64 bytes of k   (the first operand)
//! packed hidden rows (pack.rs)  -> tiles 6, 7: 64 bytes of k x 16 rows   (the second)
//!                                  tiles 0-3:  16 ids x 16 rows of sums, f32 or int32
//! ```
//!
//! The first operand of `tdpbf16ps` and `tdpbssd` has k along its rows: a row of W is such a row already, and
//! `tileloadd` takes any distance between rows, so that weights reach the tiles straight from memory and
//! there is no second copy of W. The second operand wants pairs of bf16 (four int8) of k side by side and the
//! hidden rows next to each other: so hidden rows are packed, once per call.
//!
//! A logit is one chain: its sum starts from zero, and each instruction adds 64 bytes of k to it, k ascending
//! (promise 1). The last 64 bytes are padded with zeros on both sides. That holds for one row as for 256, and
//! for every shape of a block, so nothing shows which of them computed a logit. Within its 64 bytes
//! `tdpbf16ps` rounds its own way ([`emulated`] has the rule), which makes bf16 rows a family of their own;
//! int8 is exact.
//!
//! The instructions stand behind [`Tiles`], twice: as `asm!` ([`hardware`]), and in plain Rust
//! ([`emulated`]), so that layout, tails, order and blocking are tested on every machine.

pub(crate) mod emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code, reason = "instructions of a set that was detected")]
pub(crate) mod hardware;
mod matmul;
mod pack;
#[allow(unsafe_code, reason = "a system call, and a register that says what the system saves")]
mod support;
#[cfg(test)]
mod tests;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code, reason = "a signal handler that stands in for the processor")]
mod trapped;

pub(crate) use matmul::{Kind, Scratch, TileMatmul, blocks_at_once};
pub(crate) use pack::PackedTiles;
pub use support::Amx;

/// Rows of a tile, and columns of 4 bytes, at most.
pub(crate) const TILE: usize = 16;
/// Bytes of k of one vocabulary id (or one hidden row) in a tile.
pub(crate) const STEP: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = TILE * STEP;

/// What the tiles hold: in 0-3 sums `[ids, rows]`, in 4 and 5 weights `[ids, 64 bytes of k]`, in 6 and 7
/// hidden rows `[16 times four bytes of k, rows]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Vocabulary ids of a tile, 1 to 16.
    pub ids: usize,
    /// Hidden rows of a tile, 1 to 16.
    pub rows: usize,
}

impl Shape {
    /// Rows of a tile and the bytes of each.
    pub const fn of(self, tile: usize) -> (usize, usize) {
        match tile {
            0..=3 => (self.ids, 4 * self.rows),
            4 | 5 => (self.ids, STEP),
            _ => (TILE, 4 * self.rows),
        }
    }

    /// The operand of `ldtilecfg` (Intel's manual, volume 2, LDTILECFG): palette 1, whose tiles are 16 rows
    /// of 64 bytes.
    pub fn config(self) -> Config {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for tile in 0..8 {
            let (rows, row_bytes) = self.of(tile);
            bytes[16 + 2 * tile..][..2].copy_from_slice(&(row_bytes as u16).to_le_bytes());
            bytes[48 + tile] = rows as u8;
        }
        Config(bytes)
    }

    /// Where the last row of a tile ends, whose first begins at `at`.
    ///
    /// # Panics
    /// Where that is no place in memory of `len` bytes.
    #[inline(always)]
    fn check(self, tile: usize, at: usize, stride: usize, len: usize) {
        let (rows, row_bytes) = self.of(tile);
        let end =
            (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(at)?.checked_add(row_bytes));
        assert!(end.is_some_and(|end| end <= len), "a tile beyond its memory");
    }
}

/// What `ldtilecfg` reads.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Config(pub [u8; 64]);

/// The tiles of this thread, from `ldtilecfg` until the value is dropped: `tilerelease`, so that the
/// processor is not kept from its deeper idle states and the system has no 8 KiB more to save for other code
/// of the thread. There is one such value on a thread at a time.
pub(crate) trait Tiles: Sized {
    /// Tiles of zeros of this shape.
    fn configure(shape: Shape) -> Self;

    /// Tile `T` becomes zeros.
    fn zero<const T: usize>(&mut self);

    /// Tile `T` from memory: its first row from byte `at` on, each other `stride` bytes behind the one
    /// before.
    ///
    /// # Panics
    /// Where a row is not in `from`.
    fn load<const T: usize>(&mut self, from: &[u8], at: usize, stride: usize);

    /// Tile `T` to memory, in the same way.
    ///
    /// # Panics
    /// Where a row is not in `to`.
    fn store<const T: usize>(&self, to: &mut [u8], at: usize, stride: usize);

    /// `tdpbf16ps`: adds to sums `C` the products of weights `A` with rows `B`, all bf16.
    fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self);

    /// `tdpbssd`: the same of int8, exact, wrapping.
    fn dot_i8<const C: usize, const A: usize, const B: usize>(&mut self);

    /// int8 -> bf16, 64 at a time: the first 32 of the `i`-th 64 to `to[i * distance]`, the other 32 to
    /// `to[i * distance + distance / 2]`. Exact. What is left behind the last 64 is widened with zeros behind
    /// it.
    ///
    /// # Panics
    /// Where `to` has no such place.
    fn widen_i8(from: &[u8], to: &mut [Line], distance: usize);

    /// The same of E4M3 codes ([`e4m3`](crate::e4m3)).
    fn widen_e4m3(from: &[u8], to: &mut [Line], distance: usize);
}

/// A row of a tile: 64 bytes of k.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; STEP]);

/// Uses a tile, once.
pub(crate) fn touch<T: Tiles>() {
    T::configure(Shape { ids: 1, rows: 1 }).zero::<0>();
}

/// A number made of what `tdpbf16ps` gives where its rounding shows: products and sums of any size beside
/// each other, some that nearly cancel, some of subnormal numbers. Processors with one number have equal
/// bits.
pub(crate) fn rounding<T: Tiles>() -> u64 {
    let mut random = 1u64;
    // Multiplier and increment of Knuth's MMIX; the high bits are the good ones.
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 32) as u32
    };
    let mut tiles = T::configure(Shape { ids: TILE, rows: TILE });
    let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
    let mut sums = [0u8; TILE_BYTES];
    for round in 0..64 {
        // Least exponents and how many, of weights, rows and sums: what a product adds is within what a sum
        // holds; in some rounds products and sums are subnormal or the smallest normal numbers.
        let (w, x, sum) = match round % 8 {
            0 => ((0, 2), (120, 16), (0, 8)),
            1 => ((60, 8), (58, 8), (0, 8)),
            _ => ((120, 16), (120, 16), (112, 32)),
        };
        let mut bf16 = |(least, count): (u32, u32)| {
            let bits = next() & 0x807f | (least + next() % count) << 7;
            (bits as u16).to_le_bytes()
        };
        let weights: [[u8; 2]; TILE_BYTES / 2] = std::array::from_fn(|_| bf16(w));
        let rows: [[u8; 2]; TILE_BYTES / 2] = std::array::from_fn(|_| bf16(x));
        // Sums of one round go into the next; in every other they are new ones.
        if round % 2 == 0 {
            for word in sums.as_chunks_mut::<4>().0 {
                *word = (next() & 0x807f_ffff | (sum.0 + next() % sum.1) << 23).to_le_bytes();
            }
        }
        tiles.load::<0>(&sums, 0, STEP);
        tiles.load::<4>(weights.as_flattened(), 0, STEP);
        tiles.load::<6>(rows.as_flattened(), 0, STEP);
        tiles.dot_bf16::<0, 4, 6>();
        tiles.store::<0>(&mut sums, 0, STEP);
        for byte in sums {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
