//! Byte buffers that are resized and cut into messages.

use crate::error::{Error, Result};
use std::ops::Range;

/// Sets the length of a buffer to the product of `shape`, without aborting where there is no such memory. Old
/// contents stay.
pub(in crate::head) fn resize(buffer: &mut Vec<u8>, shape: [usize; 3], what: &str) -> Result<usize> {
    let bytes = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize);
    let too_large = || {
        Error::shape(
            what,
            "a buffer that fits this machine's memory",
            format!("{shape:?} bytes"),
            "send fewer rows in one step",
        )
    };
    let bytes = bytes.ok_or_else(too_large)?;
    if bytes > buffer.len() {
        buffer.try_reserve_exact(bytes - buffer.len()).map_err(|_| too_large())?;
    }
    buffer.resize(bytes, 0);
    Ok(bytes)
}

/// Puts `header` before each of the messages, which are ranges of `buffer` in ascending order, and makes each
/// range that of its message with the header. Neighbours that are the same range keep one header. What
/// follows moves within the buffer: messages may be large, and a copy of each would double what they take.
pub(in crate::head) fn put_before_each(
    buffer: &mut Vec<u8>,
    messages: &mut [Range<usize>],
    header: &[u8],
) -> Result<()> {
    let mut distinct: Vec<Range<usize>> = messages.to_vec();
    distinct.dedup();
    resize(buffer, [buffer.len() + distinct.len() * header.len(), 1, 1], "messages with their headers")?;
    for (i, message) in distinct.iter().enumerate().rev() {
        let start = message.start + i * header.len();
        buffer.copy_within(message.clone(), start + header.len());
        buffer[start..start + header.len()].copy_from_slice(header);
    }
    let mut i = 0;
    let mut before = messages.first().cloned();
    for message in messages {
        if before.as_ref() != Some(message) {
            i += 1;
            before = Some(message.clone());
        }
        *message = message.start + i * header.len()..message.end + (i + 1) * header.len();
    }
    Ok(())
}

/// Makes `buffer` `length` times `value`, without aborting where there is no such memory.
pub(in crate::head) fn fill<T: Clone>(
    buffer: &mut Vec<T>,
    value: T,
    length: usize,
    what: &str,
) -> Result<()> {
    buffer.clear();
    buffer.try_reserve_exact(length).map_err(|_| {
        let (wanted, fix) = ("a buffer that fits this machine's memory", "send fewer rows in one step");
        Error::shape(what, wanted, format!("{length} of {} bytes", size_of::<T>()), fix)
    })?;
    buffer.resize(length, value);
    Ok(())
}

/// Makes `logits` `[rows, columns]`, without aborting where there is no such memory and without room for
/// more: a vector that grows by itself would take up to twice as much.
pub(in crate::head) fn hold(
    logits: &mut Vec<f32>,
    rows: usize,
    columns: usize,
    what: &str,
    fix: &str,
) -> Result<()> {
    let too_large = || {
        let got = format!("{rows} rows of {columns} f32");
        Error::shape(what, "a buffer that fits this machine's memory", got, fix)
    };
    let wanted = rows.checked_mul(columns).ok_or_else(too_large)?;
    if wanted > logits.capacity() {
        *logits = Vec::new();
        logits.try_reserve_exact(wanted).map_err(|_| too_large())?;
    }
    logits.resize(wanted, 0.0);
    Ok(())
}

/// The sum, checked.
pub(in crate::head) fn sum(counts: &[usize], what: &str) -> Result<usize> {
    counts.iter().try_fold(0usize, |total, &n| total.checked_add(n)).ok_or_else(|| {
        Error::shape(what, "a sum that fits 64 bits", format!("{counts:?}"), "send fewer rows in one step")
    })
}

/// Cuts a buffer into consecutive pieces.
pub(in crate::head) fn cut(mut buffer: &mut [u8], sizes: impl Iterator<Item = usize>) -> Vec<&mut [u8]> {
    sizes
        .map(|size| {
            let (piece, rest) = std::mem::take(&mut buffer).split_at_mut(size);
            buffer = rest;
            piece
        })
        .collect()
}

/// [`cut`] for a shared buffer.
pub(in crate::head) fn cut_shared<'b>(mut buffer: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    sizes
        .iter()
        .map(|&size| {
            let (piece, rest) = buffer.split_at(size);
            buffer = rest;
            piece
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_gets_its_header() {
        let whole: Vec<u8> = (0..20).collect();
        for cuts in [&[0, 20][..], &[0, 7, 20], &[0, 0, 3, 3, 20, 20], &[0, 20, 20, 20]] {
            let ranges: Vec<Range<usize>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
            // Each for two members.
            let mut messages: Vec<_> =
                ranges.iter().flat_map(|range| [range.clone(), range.clone()]).collect();
            let (wanted, mut buffer) = (messages.clone(), whole.clone());
            put_before_each(&mut buffer, &mut messages, b"head").unwrap();
            for (message, range) in messages.into_iter().zip(wanted) {
                assert_eq!(buffer[message], [b"head", &whole[range]].concat());
            }
        }
        put_before_each(&mut Vec::new(), &mut [], b"head").unwrap();
    }
}
