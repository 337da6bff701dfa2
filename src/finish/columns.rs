//! From messages of logits to rows: `[P, rows, stride of shard p] -> [rows, vocab]`.
//!
//! After the all_to_all, each shard's columns of all rows lie together. Here, and nowhere else, they become
//! rows. Each row of a shard's message ends in a status word (`LMHEAD_STATUS_*`): what the shard saw in its
//! logits.

use crate::dtype::DType;
use std::ops::Range;

/// Bytes of a row's status word.
const STATUS: usize = 4;

/// Bytes of one row in a message of logits: the shard's columns, padding, and the status word. A multiple of
/// 16, which is what kernels store at a time.
pub fn row_stride(columns: usize, dtype: DType) -> usize {
    (columns * dtype.size() + STATUS).next_multiple_of(16)
}

/// Offset of the status word within a row, in bytes.
pub fn status_at(columns: usize, dtype: DType) -> usize {
    row_stride(columns, dtype) - STATUS
}

/// Copies a shard's message `[rows, row_stride]` to its columns of `logits`, whose rows are `pitch` bytes
/// apart, and or's its status words into `seen` `[rows]`.
///
/// # Panics
/// When the sizes do not fit each other; the caller has checked them.
pub fn place(
    message: &[u8],
    columns: &Range<usize>,
    dtype: DType,
    logits: &mut [u8],
    pitch: usize,
    seen: &mut [u8],
) {
    let (stride, size) = (row_stride(columns.len(), dtype), dtype.size());
    assert_eq!(message.len(), seen.len() * stride, "place: message");
    for (row, (sent, seen)) in message.chunks_exact(stride).zip(seen).enumerate() {
        let own = row * pitch + columns.start * size..row * pitch + columns.end * size;
        logits[own].copy_from_slice(&sent[..columns.len() * size]);
        // The lowest byte of the status word has all flags.
        *seen |= sent[stride - STATUS];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::shard_range;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_become_rows(
            vocab in 1usize..700, shards in 1usize..14, rows in 0usize..5, wide in any::<bool>(),
            gap in 0usize..40,
        ) {
            let dtype = if wide { DType::F32 } else { DType::Bf16 };
            let size = dtype.size();
            let element = |row: usize, id: usize, byte: usize| (row * 31 + id * 7 + byte * 3) as u8;
            let pitch = vocab * size + gap;
            let mut logits = vec![0xccu8; rows * pitch];
            let mut seen = vec![0; rows];
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
                    let word = match row {
                        1 if shard == shards - 1 => 1u32,
                        2 if shard == 0 => 2,
                        _ => 0,
                    };
                    bytes[status_at(columns.len(), dtype)..].copy_from_slice(&word.to_le_bytes());
                }
                place(&message, &columns, dtype, &mut logits, pitch, &mut seen);
            }
            for (i, &got) in logits.iter().enumerate() {
                let (row, rest) = (i / pitch, i % pitch);
                let want = if rest < vocab * size { element(row, rest / size, rest % size) } else { 0xcc };
                prop_assert_eq!(got, want);
            }
            for (row, seen) in seen.iter().enumerate() {
                prop_assert_eq!(*seen, match row { 1 => 1, 2 => 2, _ => 0 });
            }
        }
    }
}
