//! Weights in the layout that the kernels of compute capability 9.0 copy: packed when a head is loaded.

use crate::plan::hopper::{COLUMN_BYTES, PACKED_IDS};

/// Bytes that the swizzle moves as one.
const VECTOR: usize = 16;

/// Bytes of `ids` packed rows of `row_bytes` each: rows padded to whole columns of 128 bytes, ids to an even
/// number of blocks of 64.
///
/// `None` on overflow.
pub fn packed_bytes(ids: usize, row_bytes: usize) -> Option<usize> {
    let ids = ids.checked_next_multiple_of(2 * PACKED_IDS)?;
    row_bytes.checked_next_multiple_of(COLUMN_BYTES)?.checked_mul(ids)
}

/// Packs rows `[ids, row_bytes]`, which begin with a block of 64 ids, as `WeightMatrix` in `kernels/params.h`
/// says: `out` holds as many whole blocks as there is room for. Ids behind the last are copies of it, so that
/// what a kernel reports of them is true of the last id, too.
///
/// # Panics
/// Where there is no row, or `out` is not whole blocks.
pub fn pack_weights(rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    let columns = row_bytes.div_ceil(COLUMN_BYTES);
    let (block_bytes, ids) = (columns * COLUMN_BYTES * PACKED_IDS, rows.len() / row_bytes);
    assert!(ids > 0 && out.len().is_multiple_of(block_bytes), "whole blocks of at least one row");
    for (block, out) in out.chunks_exact_mut(block_bytes).enumerate() {
        for (column, out) in out.chunks_exact_mut(COLUMN_BYTES * PACKED_IDS).enumerate() {
            for (id, out) in out.chunks_exact_mut(COLUMN_BYTES).enumerate() {
                let row = &rows[(block * PACKED_IDS + id).min(ids - 1) * row_bytes..][..row_bytes];
                let from = &row[column * COLUMN_BYTES..row_bytes.min((column + 1) * COLUMN_BYTES)];
                let (whole, rest) = from.as_chunks::<VECTOR>();
                // kernels/swizzle.cuh: vector p of a row lies where vector p ^ (row % 8) would.
                let (places, _) = out.as_chunks_mut::<VECTOR>();
                for vector in 0..COLUMN_BYTES / VECTOR {
                    places[vector ^ (id % 8)] = whole.get(vector).copied().unwrap_or_else(|| {
                        let mut last = [0; VECTOR];
                        if vector == whole.len() {
                            last[..rest.len()].copy_from_slice(rest);
                        }
                        last
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each byte is where the description says, and nothing else is anywhere.
        #[test]
        fn packed_weights_are_found_again(
            ids in 1usize..200, row_bytes in 1usize..400, blocks in 1usize..6, seed in any::<u64>(),
        ) {
            let byte = |i: usize| (i as u64).wrapping_mul(seed | 1).to_le_bytes()[3];
            let rows: Vec<u8> = (0..ids * row_bytes).map(byte).collect();
            let columns = row_bytes.div_ceil(128);
            let mut out = vec![0xee; blocks * columns * 8192];
            pack_weights(&rows, row_bytes, &mut out);
            for id in 0..64 * blocks {
                for at in 0..128 * columns {
                    let tile = (id / 64 * columns + at / 128) * 8192;
                    let place = tile + id % 64 * 128 + ((at % 128 / 16) ^ (id % 8)) * 16 + at % 16;
                    let wanted = if at < row_bytes { rows[id.min(ids - 1) * row_bytes + at] } else { 0 };
                    prop_assert_eq!(out[place], wanted, "id {}, byte {}", id, at);
                }
            }
        }

        #[test]
        fn memory_is_counted_in_whole_tiles(ids in 1usize..2000, row_bytes in 1usize..3000) {
            let bytes = packed_bytes(ids, row_bytes).expect("a number");
            prop_assert!(bytes.is_multiple_of(2 * 64 * 128) && bytes >= ids * row_bytes);
            prop_assert!(bytes <= (ids + 127) * (row_bytes + 127));
        }
    }

    #[test]
    fn sizes_that_are_no_number_are_none() {
        assert_eq!(packed_bytes(usize::MAX, 1), None);
        assert_eq!(packed_bytes(1 << 40, 1 << 40), None);
    }
}
