//! From what an all_to_all delivers to rows of logits: `[P, rows, stride of shard p] -> [rows, vocab]`.
//!
//! A bare all_to_all leaves each shard's columns of all rows together. Here, and nowhere else, they become rows. Each row of
//! a shard's message ends in a status word that says whether the shard saw a non-finite logit.

use crate::dtype::DType;
use std::ops::Range;

/// Bytes that the status of a row takes in a message.
const STATUS: usize = 4;

/// Bytes of one row in a message of logits: the shard's columns, padded to 4 bytes, and the status word.
pub fn row_stride(columns: usize, dtype: DType) -> usize {
    (columns * dtype.size()).next_multiple_of(STATUS) + STATUS
}

/// Writes the status of a row at the end of its stride. The padding before it is cleared, so that no stale byte travels.
pub fn set_status(row: &mut [u8], columns: usize, dtype: DType, nonfinite: bool) {
    row[columns * dtype.size()..].fill(0);
    let end = row.len();
    row[end - STATUS] = u8::from(nonfinite);
}

/// Places a shard's message `[rows, stride]` in its columns of `logits` `[rows, vocab_size]`, and raises
/// `nonfinite[row]` where the shard's status word says so.
///
/// # Panics
/// When the sizes do not fit: they come from one layout and are checked before.
pub fn place(
    message: &[u8],
    columns: Range<usize>,
    dtype: DType,
    vocab_size: usize,
    logits: &mut [u8],
    nonfinite: &mut [bool],
) {
    let stride = row_stride(columns.len(), dtype);
    let size = dtype.size();
    assert_eq!(message.len(), nonfinite.len() * stride, "place: message");
    assert_eq!(logits.len(), nonfinite.len() * vocab_size * size, "place: logits");
    let rows = logits.chunks_exact_mut(vocab_size * size).zip(message.chunks_exact(stride));
    for ((row, sent), flag) in rows.zip(nonfinite) {
        row[columns.start * size..columns.end * size].copy_from_slice(&sent[..columns.len() * size]);
        *flag |= sent[stride - STATUS] != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::shard_range;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_become_rows(vocab in 1usize..700, shards in 1usize..14, rows in 0usize..5, wide in any::<bool>()) {
            let dtype = if wide { DType::F32 } else { DType::Bf16 };
            let size = dtype.size();
            let element = |row: usize, id: usize, byte: usize| (row * 31 + id * 7 + byte * 3) as u8;
            let mut logits = vec![0u8; rows * vocab * size];
            let mut flags = vec![false; rows];
            for shard in 0..shards {
                let columns = shard_range(vocab, shards, shard);
                let stride = row_stride(columns.len(), dtype);
                let mut message = vec![0xee; rows * stride];
                for (row, bytes) in message.chunks_exact_mut(stride).enumerate() {
                    for (i, id) in columns.clone().enumerate() {
                        for byte in 0..size {
                            bytes[i * size + byte] = element(row, id, byte);
                        }
                    }
                    set_status(bytes, columns.len(), dtype, row == 1 && shard == shards - 1);
                }
                place(&message, columns, dtype, vocab, &mut logits, &mut flags);
            }
            for (i, &got) in logits.iter().enumerate() {
                let (row, rest) = (i / (vocab * size), i % (vocab * size));
                prop_assert_eq!(got, element(row, rest / size, rest % size));
            }
            for (row, &flag) in flags.iter().enumerate() {
                prop_assert_eq!(flag, row == 1);
            }
        }
    }
}
