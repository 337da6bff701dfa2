//! One buffer of rows whose columns several threads write at once, a block each.

use super::product::{block_ids, blocks};
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

// SAFETY: threads reach the bytes through blocks alone, of which no two have a byte in common (`Block::row`).
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

    /// Calls `write` with each block's ids and its columns, on the threads of the current pool.
    pub fn for_each_block(&mut self, write: impl Fn(Range<usize>, Block<'_>) + Sync) {
        let all = &*self;
        blocks(&all.vocab).into_par_iter().with_max_len(1).for_each(|block| {
            let ids = block_ids(block, &all.vocab);
            let columns = ids.start - all.vocab.start..ids.end - all.vocab.start;
            write(ids, Block { all, columns });
        });
    }
}

/// The columns of one block, which one task writes.
pub(super) struct Block<'a> {
    all: &'a Columns<'a>,
    columns: Range<usize>,
}

impl Block<'_> {
    /// The bytes of a row.
    ///
    /// # Panics
    /// When there are not so many rows.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [u8] {
        let Columns { start, stride, size, rows, .. } = *self.all;
        assert!(row < rows, "row {row} of {rows}");
        let (at, len) = (row * stride + self.columns.start * size, self.columns.len() * size);
        // SAFETY: `Columns::new` has checked that the columns of every row are in the buffer, and rows lie
        // apart. `for_each_block`, which borrows the buffer alone, makes one block of each range of columns;
        // these do not overlap, and `&mut self` lends one row of a block at a time.
        unsafe { std::slice::from_raw_parts_mut(start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_writes_its_own_columns_of_every_row() {
        for (rows, vocab, gap) in
            [(3, 64..300, 5), (1, 0..64, 0), (2, 128..129, 1), (4, 64..64, 3), (0, 0..70, 0)]
        {
            let stride = 2 * vocab.len() + gap;
            let mut bytes = vec![0u8; rows * stride];
            Columns::new(&mut bytes, rows, stride, 2, vocab.clone()).for_each_block(|ids, mut block| {
                for row in 0..rows {
                    let own = block.row(row);
                    assert_eq!(own.len(), 2 * ids.len());
                    for (id, bytes) in ids.clone().zip(own.chunks_exact_mut(2)) {
                        bytes[0] += (id % 251) as u8;
                        bytes[1] += 1 + row as u8;
                    }
                }
            });
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
