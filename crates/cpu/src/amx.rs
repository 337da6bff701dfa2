//! AMX: the matmul by tiles, for bf16 rows and for rows that are quantised to int8.
//!
//! ```text
//! W [vocab, hidden], as stored  -> tiles 4, 5: 16 ids x 64 bytes of k   (the first operand)
//! packed hidden rows (pack.rs)  -> tiles 6, 7: 64 bytes of k x 16 rows   (the second)
//!                                  tiles 0-3:  16 ids x 16 rows of sums, f32 or int32
//! ```
//!
//! The first operand of `tdpbf16ps` and `tdpbssd` has k along its rows, as W does, and `tileloadd` takes any
//! distance between rows: weights go from memory straight to the tiles, without a second copy of W. The
//! second operand needs pairs of bf16 (or four int8) of k side by side, and hidden rows next to each other,
//! so hidden rows are packed, once per call.
//!
//! A logit is one chain: its sum starts from zero, and each instruction adds 64 bytes of k to it, k ascending
//! (promise 1). The last 64 bytes are padded with zeros on both sides. This is the same for any number of
//! rows and any shape of a block, so a logit's bits do not depend on them. Within its 64 bytes `tdpbf16ps`
//! rounds in its own way ([`emulated`] has the rule), which makes bf16 rows a family of their own; int8 is
//! exact.
//!
//! The trait [`Tiles`] has two implementations: the instructions as `asm!` ([`hardware`]), and plain Rust
//! ([`emulated`]), with which layout, tails, order and blocking are tested on every machine.

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

pub(crate) use matmul::{AmxOperands, AmxScratch, TileMatmul, blocks_at_once};
pub(crate) use pack::PackedTiles;
pub use support::Amx;

/// The most rows of a tile, and the most columns of 4 bytes.
pub(crate) const TILE: usize = 16;
/// Bytes of k of one vocabulary id (or one hidden row) in a tile.
pub(crate) const STEP: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = TILE * STEP;

/// The shapes of the tiles: 0-3 hold sums `[ids, rows]`, 4 and 5 weights `[ids, 64 bytes of k]`, 6 and 7
/// hidden rows `[16 times four bytes of k, rows]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Vocabulary ids of a tile, 1 to 16.
    pub ids: usize,
    /// Hidden rows of a tile, 1 to 16.
    pub rows: usize,
}

impl Shape {
    /// Number of rows of tile `tile`, and bytes of a row.
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

    /// Checks that a tile whose first row begins at byte `at` lies in memory of `len` bytes.
    ///
    /// # Panics
    /// Where it does not.
    #[inline(always)]
    fn check(self, tile: usize, at: usize, stride: usize, len: usize) {
        let (rows, row_bytes) = self.of(tile);
        let end =
            (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(at)?.checked_add(row_bytes));
        assert!(end.is_some_and(|end| end <= len), "a tile beyond its memory");
    }
}

/// The 64 bytes that `ldtilecfg` reads.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Config(pub [u8; 64]);

/// The tiles of this thread, from `ldtilecfg` until the value is dropped, which does `tilerelease`: otherwise
/// the processor could not enter its deeper idle states, and the system would have 8 KiB more to save
/// whenever it switches the thread. A thread has at most one such value at a time.
pub(crate) trait Tiles: Sized {
    /// Configures tiles of this shape, all zeros.
    fn configure(shape: Shape) -> Self;

    /// Sets tile `T` to zeros.
    fn zero<const T: usize>(&mut self);

    /// Loads tile `T` from memory: its first row begins at byte `at`, each further one `stride` bytes later.
    ///
    /// # Panics
    /// Where a row is not within `from`.
    fn load<const T: usize>(&mut self, from: &[u8], at: usize, stride: usize);

    /// Stores tile `T` to memory, laid out as for `Tiles::load`.
    ///
    /// # Panics
    /// Where a row is not within `to`.
    fn store<const T: usize>(&self, to: &mut [u8], at: usize, stride: usize);

    /// `tdpbf16ps`: adds to sums `C` the products of weights `A` with rows `B`, all bf16.
    fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self);

    /// `tdpbssd`: the same for int8, exact, wrapping.
    fn dot_i8<const C: usize, const A: usize, const B: usize>(&mut self);

    /// Widens int8 to bf16, exactly, 64 at a time: of the `i`-th 64, the first 32 go to `to[i * distance]`,
    /// the others to `to[i * distance + distance / 2]`. Fewer than 64 at the end are padded with zeros.
    ///
    /// # Panics
    /// Where `to` has no such line.
    fn widen_i8(from: &[u8], to: &mut [Line], distance: usize);

    /// As `Tiles::widen_i8`, for E4M3 codes ([`e4m3`](crate::e4m3)).
    fn widen_e4m3(from: &[u8], to: &mut [Line], distance: usize);
}

/// A row of a tile: 64 bytes of k.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; STEP]);

/// Uses a tile once, so that the system makes room for this thread's tiles.
pub(crate) fn touch<T: Tiles>() {
    T::configure(Shape { ids: 1, rows: 1 }).zero::<0>();
}

/// A hash of results of `tdpbf16ps` for operands where its way of rounding shows: products and sums of mixed
/// sizes, some that nearly cancel, some subnormal. Processors with the same hash give the same bits.
pub(crate) fn rounding<T: Tiles>() -> u64 {
    let mut random = 1u64;
    // The linear congruential generator of Knuth's MMIX, of which the high bits are random enough.
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 32) as u32
    };
    let mut tiles = T::configure(Shape { ids: TILE, rows: TILE });
    let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
    let mut sums = [0u8; TILE_BYTES];
    for round in 0..64 {
        // Least exponent and number of exponents, for weights, rows and sums. They are so close that adding a
        // product changes a sum; in some rounds products and sums are subnormal or the smallest normal
        // numbers.
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
        // Every other round starts from new sums, the others from those of the round before.
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
