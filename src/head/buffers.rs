//! Memory that a head keeps from step to step, and vectors of slices that are used again.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::memory::{Allocation, Memory, SpanMut};
use std::ops::Range;

/// A buffer that grows to what the largest step needed; made anew where a step asks for another kind of
/// memory.
#[derive(Default)]
pub(super) struct Arena {
    memory: Option<Box<dyn Allocation>>,
    /// The step is being captured in a CUDA graph: nothing may be allocated now.
    pub capturing: bool,
    /// A CUDA graph has the address of `memory`. Where the buffer must grow, such memory moves to
    /// `of_graphs`, which keeps it allocated.
    captured: bool,
    of_graphs: Vec<Box<dyn Allocation>>,
}

impl Arena {
    /// `bytes` bytes of `memory`, of undefined content; where the buffer grows, what was there is lost.
    ///
    /// # Errors
    /// As [`Backend::allocate`].
    pub fn at_least(
        &mut self,
        backend: &dyn Backend,
        memory: Memory,
        bytes: usize,
        what: &str,
    ) -> Result<SpanMut<'_>> {
        if bytes == 0 {
            return Ok(SpanMut::EMPTY);
        }
        let fits = |kept: &dyn Allocation| kept.span().memory() == memory && kept.span().len() >= bytes;
        if !self.memory.as_deref().is_some_and(fits) {
            if self.capturing {
                let wanted = format!("{bytes} bytes that a step before it has made");
                let got = format!("{} bytes", self.memory.as_ref().map_or(0, |kept| kept.span().len()));
                let fix = "prepare steps of as many rows (LmHead::warm_up_on_device) before one is captured";
                return Err(Error::shape(format!("{what} of a captured step"), wanted, got, fix));
            }
            match std::mem::take(&mut self.captured) {
                true => self.of_graphs.extend(self.memory.take()),
                // The old memory goes first: both need not fit at once.
                false => self.memory = None,
            }
            self.memory = Some(backend.allocate(memory, bytes, what)?);
        }
        self.captured |= self.capturing;
        let kept = self.memory.as_mut().map_or(SpanMut::EMPTY, |kept| kept.span_mut());
        Ok(kept.part(0..bytes))
    }
}

/// The product of both factors, checked for overflow; `what` names the buffer in the error.
pub(super) fn bytes_of(what: &str, shape: [usize; 2]) -> Result<usize> {
    shape[0].checked_mul(shape[1]).filter(|&n| n <= isize::MAX as usize).ok_or_else(|| {
        let (wanted, got) = ("a buffer that fits this machine's memory", format!("{shape:?} bytes"));
        Error::shape(what, wanted, got, "send fewer rows in one step")
    })
}

/// The sum, checked for overflow.
pub(super) fn sum(counts: &[usize], what: &str) -> Result<usize> {
    counts.iter().try_fold(0usize, |total, &n| total.checked_add(n)).ok_or_else(|| {
        Error::shape(what, "a sum that fits 64 bits", format!("{counts:?}"), "send fewer rows in one step")
    })
}

/// Makes `buffer` `length` times `value`; an error, no abort, where there is no such memory.
pub(super) fn fill<T: Clone>(buffer: &mut Vec<T>, value: T, length: usize, what: &str) -> Result<()> {
    buffer.clear();
    reserve(buffer, length, what)?;
    buffer.resize(length, value);
    Ok(())
}

/// Makes room for `more` elements; an error, no abort, where there is no such memory.
pub(super) fn reserve<T>(buffer: &mut Vec<T>, more: usize, what: &str) -> Result<()> {
    buffer.try_reserve(more).map_err(|_| {
        let (wanted, fix) = ("a buffer that fits this machine's memory", "send fewer rows in one step");
        Error::shape(what, wanted, format!("{more} of {} bytes", size_of::<T>()), fix)
    })
}

/// An empty vector in the memory of another whose borrows have ended. Collecting in place allocates nothing.
pub(super) fn recycle<'b>(mut slices: Vec<&[u8]>) -> Vec<&'b [u8]> {
    slices.clear();
    slices.into_iter().map(|_| unreachable!("it is empty")).collect()
}

/// [`recycle`] for mutable slices.
pub(super) fn recycle_mut<'b>(mut slices: Vec<&mut [u8]>) -> Vec<&'b mut [u8]> {
    slices.clear();
    slices.into_iter().map(|_| unreachable!("it is empty")).collect()
}

/// Cuts a buffer into consecutive pieces.
pub(super) fn cut<'b>(mut buffer: &'b mut [u8], sizes: &[usize], pieces: &mut Vec<&'b mut [u8]>) {
    for &size in sizes {
        let (piece, rest) = std::mem::take(&mut buffer).split_at_mut(size);
        pieces.push(piece);
        buffer = rest;
    }
}

/// Where each of consecutive pieces of these sizes begins.
pub(super) fn starts_of(sizes: impl Iterator<Item = usize>, starts: &mut Vec<usize>) {
    starts.clear();
    let mut next = 0;
    starts.extend(sizes.map(|size| {
        let start = next;
        next += size;
        start
    }));
}

/// Puts `header` before each message. The messages are ranges of `buffer` in ascending order, and behind the
/// last the buffer has room for all the headers. Each range becomes that of its header and message.
/// Neighbours with the same range share one header. Messages are moved within the buffer, since a copy of
/// large ones would double the memory.
pub(super) fn put_before_each(buffer: &mut [u8], messages: &mut [Range<usize>], header: &[u8]) {
    let is_first = |messages: &[Range<usize>], i: usize| i == 0 || messages[i] != messages[i - 1];
    let mut before = (0..messages.len()).filter(|&i| is_first(messages, i)).count();
    let mut i = messages.len();
    while i > 0 {
        // All neighbours with this range.
        let last = i - 1;
        let message = messages[last].clone();
        while i > 0 && messages[i - 1] == message {
            i -= 1;
        }
        before -= 1;
        let start = message.start + before * header.len();
        buffer.copy_within(message.clone(), start + header.len());
        buffer[start..start + header.len()].copy_from_slice(header);
        messages[i..=last].fill(start..message.end + (before + 1) * header.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_gets_its_header() {
        let whole: Vec<u8> = (0..20).collect();
        for cuts in [&[0, 20][..], &[0, 7, 20], &[0, 0, 3, 3, 20, 20], &[0, 20, 20, 20]] {
            let ranges: Vec<Range<usize>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
            // Each range is for two members.
            let mut messages: Vec<_> =
                ranges.iter().flat_map(|range| [range.clone(), range.clone()]).collect();
            let wanted = messages.clone();
            let mut buffer = [&whole[..], &vec![0; 4 * ranges.len()]].concat();
            put_before_each(&mut buffer, &mut messages, b"head");
            for (message, range) in messages.into_iter().zip(wanted) {
                assert_eq!(buffer[message], [b"head", &whole[range]].concat());
            }
        }
        put_before_each(&mut [], &mut [], b"head");
    }

    #[test]
    fn vectors_keep_their_memory() {
        let bytes = [1u8, 2];
        let mut slices: Vec<&[u8]> = Vec::with_capacity(10);
        slices.push(&bytes);
        let at = slices.as_ptr().cast::<u8>();
        let again: Vec<&'static [u8]> = recycle(slices);
        assert_eq!((again.as_ptr().cast(), again.len(), again.capacity()), (at, 0, 10));
    }
}
