//! From what an all_to_all delivers to rows of logits: `[P, rows, stride of shard p] -> [rows, vocab]`.
//!
//! A bare all_to_all leaves each shard's columns of all rows together. Here, and nowhere else, they become rows. Each row of
//! a shard's message ends in a status word: what the shard saw of the row.

use crate::dtype::DType;
use std::ops::Range;

/// Bytes that the status of a row takes in a message.
const STATUS: usize = 4;
const NONFINITE: u8 = 1;
const ANY_ALLOWED: u8 = 2;

/// What shards saw of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// A logit that is NaN or infinite.
    pub nonfinite: bool,
    /// A logit above minus infinity.
    pub any_allowed: bool,
}

/// Bytes of one row in a message of logits: the shard's columns, padded to 4 bytes, and the status word.
pub fn row_stride(columns: usize, dtype: DType) -> usize {
    (columns * dtype.size()).next_multiple_of(STATUS) + STATUS
}

/// Writes the status of a row at the end of its stride. The padding before it is cleared, so that no stale byte travels.
pub fn set_status(row: &mut [u8], columns: usize, dtype: DType, seen: Seen) {
    row[columns * dtype.size()..].fill(0);
    let end = row.len();
    row[end - STATUS] =
        if seen.nonfinite { NONFINITE } else { 0 } | if seen.any_allowed { ANY_ALLOWED } else { 0 };
}

/// Places a shard's message `[rows, stride]` in its columns of `logits` `[rows, vocab_size]`, and raises
/// what `seen[row]` holds where the shard's status word says so.
///
/// # Panics
/// When the sizes do not fit: they come from one layout and are checked before.
pub fn place(
    message: &[u8],
    columns: Range<usize>,
    dtype: DType,
    vocab_size: usize,
    logits: &mut [u8],
    seen: &mut [Seen],
) {
    let stride = row_stride(columns.len(), dtype);
    let size = dtype.size();
    assert_eq!(message.len(), seen.len() * stride, "place: message");
    assert_eq!(logits.len(), seen.len() * vocab_size * size, "place: logits");
    let rows = logits.chunks_exact_mut(vocab_size * size).zip(message.chunks_exact(stride));
    for ((row, sent), seen) in rows.zip(seen) {
        row[columns.start * size..columns.end * size].copy_from_slice(&sent[..columns.len() * size]);
        seen.nonfinite |= sent[stride - STATUS] & NONFINITE != 0;
        seen.any_allowed |= sent[stride - STATUS] & ANY_ALLOWED != 0;
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
            let mut seen = vec![Seen::default(); rows];
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
                    let seen = Seen { nonfinite: row == 1 && shard == shards - 1, any_allowed: row == 2 && shard == 0 };
                    set_status(bytes, columns.len(), dtype, seen);
                }
                place(&message, columns, dtype, vocab, &mut logits, &mut seen);
            }
            for (i, &got) in logits.iter().enumerate() {
                let (row, rest) = (i / (vocab * size), i % (vocab * size));
                prop_assert_eq!(got, element(row, rest / size, rest % size));
            }
            for (row, seen) in seen.iter().enumerate() {
                prop_assert_eq!(*seen, Seen { nonfinite: row == 1, any_allowed: row == 2 });
            }
        }
    }
}
