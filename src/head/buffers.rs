//! Byte buffers that are resized and cut into messages.

use crate::error::{Error, Result};

/// Sets the length of a buffer to the product of `shape`, without aborting where there is no such memory. Old contents stay.
pub(super) fn resize(buffer: &mut Vec<u8>, shape: [usize; 3], what: &str) -> Result<usize> {
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

/// Makes `logits` `[rows, columns]`, without aborting where there is no such memory and without room for more: a vector that grows by
/// itself would take up to twice as much.
pub(super) fn hold(logits: &mut Vec<f32>, rows: usize, columns: usize, what: &str, fix: &str) -> Result<()> {
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
pub(super) fn sum(counts: &[usize], what: &str) -> Result<usize> {
    counts.iter().try_fold(0usize, |total, &n| total.checked_add(n)).ok_or_else(|| {
        Error::shape(what, "a sum that fits 64 bits", format!("{counts:?}"), "send fewer rows in one step")
    })
}

/// Cuts a buffer into consecutive pieces.
pub(super) fn cut(mut buffer: &mut [u8], sizes: impl Iterator<Item = usize>) -> Vec<&mut [u8]> {
    sizes
        .map(|size| {
            let (piece, rest) = std::mem::take(&mut buffer).split_at_mut(size);
            buffer = rest;
            piece
        })
        .collect()
}

/// [`cut`] for a shared buffer.
pub(super) fn cut_shared<'b>(mut buffer: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    sizes
        .iter()
        .map(|&size| {
            let (piece, rest) = buffer.split_at(size);
            buffer = rest;
            piece
        })
        .collect()
}
