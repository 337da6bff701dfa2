//! One buffer of rows whose columns several threads write at once, some blocks each.

use super::product::{block_ids, blocks};
use crate::layout::BLOCK;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows of elements in one buffer: element `i` of row `r` is that of vocabulary id `vocab.start + i`, at byte
/// `r * stride + i * size`.
pub(super) struct Columns<'a> {
    start: *mut u8,
    stride: usize,
    size: usize,
    rows: usize,
    vocab: Range<usize>,
    borrowed: PhantomData<&'a mut [u8]>,
}

// SAFETY: it is a borrow of the buffer, which may go to another thread.
unsafe impl Send for Columns<'_> {}

// SAFETY: threads reach the bytes through blocks alone, of which no two have a byte in common
// (`Blocks::row`).
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// # Panics
    /// When the rows do not fit `bytes`, or a row its stride: both are checked before.
    pub fn new(bytes: &'a mut [u8], rows: usize, stride: usize, size: usize, vocab: Range<usize>) -> Self {
        let own = vocab.len() * size;
        assert!(own <= stride || rows <= 1, "rows of {own} bytes, {stride} apart");
        assert!(rows == 0 || (rows - 1) * stride + own <= bytes.len(), "{rows} rows, {stride} bytes apart");
        Columns { start: bytes.as_mut_ptr(), stride, size, rows, vocab, borrowed: PhantomData }
    }

    /// Calls `write` for every `at_once` blocks, with their ids and columns, on the threads of the current
    /// pool.
    pub fn for_each_blocks(&mut self, at_once: usize, write: impl Fn(Range<usize>, Blocks<'_>) + Sync) {
        let (all, blocks) = (&*self, blocks(&self.vocab));
        let tasks = blocks.len().div_ceil(at_once);
        (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
            let first = blocks.start + task * at_once;
            let ids = block_ids(first..blocks.end.min(first + at_once), &all.vocab);
            let columns = ids.start - all.vocab.start..ids.end - all.vocab.start;
            write(ids, Blocks { all, columns });
        });
    }
}

/// The columns of some blocks, which one task writes.
pub(super) struct Blocks<'a> {
    all: &'a Columns<'a>,
    columns: Range<usize>,
}

impl Blocks<'_> {
    /// The bytes of a row in the `block`-th of them.
    ///
    /// # Panics
    /// When the row or the block is out of range.
    #[inline(always)]
    pub fn row(&mut self, block: usize, row: usize) -> &mut [u8] {
        let Columns { start, stride, size, rows, .. } = *self.all;
        let blocks = self.columns.len().div_ceil(BLOCK);
        assert!(row < rows && block < blocks, "row {row} of {rows}, block {block} of {blocks}");
        let first = self.columns.start + block * BLOCK;
        let (at, len) = (row * stride + first * size, BLOCK.min(self.columns.end - first) * size);
        // SAFETY: `Columns::new` has checked that the columns of every row are in the buffer, and rows lie
        // apart. `for_each_blocks`, which borrows the buffer alone, makes one of these of each range of
        // columns; these do not overlap, and `&mut self` lends one row of a block at a time.
        unsafe { std::slice::from_raw_parts_mut(start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_writes_its_own_columns_of_every_row() {
        let shapes = [(3, 64..300, 5), (1, 0..64, 0), (2, 128..129, 1), (4, 64..64, 3), (0, 0..70, 0)];
        for ((rows, vocab, gap), at_once) in
            shapes.iter().cloned().flat_map(|s| [1, 2, 3].map(|n| (s.clone(), n)))
        {
            let stride = 2 * vocab.len() + gap;
            let mut bytes = vec![0u8; rows * stride];
            Columns::new(&mut bytes, rows, stride, 2, vocab.clone()).for_each_blocks(
                at_once,
                |ids, mut blocks| {
                    assert!(ids.len() <= at_once * BLOCK);
                    for (block, row) in
                        (0..ids.len().div_ceil(BLOCK)).flat_map(|b| (0..rows).map(move |r| (b, r)))
                    {
                        let ids = ids.start + block * BLOCK..ids.end.min(ids.start + (block + 1) * BLOCK);
                        let own = blocks.row(block, row);
                        assert_eq!(own.len(), 2 * ids.len());
                        for (id, bytes) in ids.zip(own.chunks_exact_mut(2)) {
                            bytes[0] += (id % 251) as u8;
                            bytes[1] += 1 + row as u8;
                        }
                    }
                },
            );
            for (i, &got) in bytes.iter().enumerate() {
                let (row, at) = (i / stride, i % stride);
                let own = vocab.len() * 2;
                let id = ((vocab.start + at / 2) % 251) as u8;
                let want = if at >= own {
                    0
                } else if at % 2 == 0 {
                    id
                } else {
                    1 + row as u8
                };
                assert_eq!(got, want, "row {row}, byte {at} of {vocab:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "3 rows")]
    fn rows_that_do_not_fit_are_not_written() {
        Columns::new(&mut [0; 11], 3, 4, 1, 0..4);
    }
}
