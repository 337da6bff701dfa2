//! Answers in device memory, for now by the host's code: what came is brought to the host, and the answers
//! back. Logits alone stay on the device: their columns are copied to their places there.

use super::shard::{DeviceShard, product_of};
use super::{CopyRows, KernelDevice, Side};
use crate::backend::On;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, Messages, columns};
use crate::memory::{Memory, Span, SpanMut};

/// The most buffers of an answer.
const BUFFERS: usize = 5;

/// A part of the host's memory that stands for a span of the device's.
#[derive(Clone, Copy, Default)]
struct Mirror {
    device: u64,
    host: u64,
    bytes: usize,
}

/// Host memory that is given away piece by piece.
struct Carver<'a> {
    left: &'a mut [u8],
    outputs: [Mirror; BUFFERS],
    n: usize,
}

impl<'a> Carver<'a> {
    fn take(&mut self, bytes: usize) -> &'a mut [u8] {
        let (taken, left) = std::mem::take(&mut self.left).split_at_mut(bytes.next_multiple_of(8));
        self.left = left;
        &mut taken[..bytes]
    }

    /// The host's side of an output.
    fn output(&mut self, span: &SpanMut<'_>) -> SpanMut<'a> {
        let bytes = self.take(span.len());
        let host = bytes.as_mut_ptr().expose_provenance() as u64;
        self.outputs[self.n] = Mirror { device: span.address(), host, bytes: span.len() };
        self.n += 1;
        SpanMut::host(bytes)
    }
}

/// Memory of what is to be finished, and bytes of the host that stand for it.
fn sizes(what: &Finish<'_>) -> (Memory, usize) {
    let (from, out): (Span<'_>, [usize; BUFFERS]) = match what {
        Finish::Status { words, row_status } => (*words, [row_status.len(), 0, 0, 0, 0]),
        // Status words of each shard, then of the row, and its status.
        Finish::Logits { from, row_status, .. } => {
            (from.bytes, [4 * from.rows * from.shards.len(), 4 * from.rows, row_status.len(), 0, 0])
        }
        Finish::Argmax { from, ids, row_status } => (from.bytes, [ids.len(), row_status.len(), 0, 0, 0]),
        Finish::TopK { from, ids, values, logsumexp, row_status, .. } => {
            (from.bytes, [ids.len(), values.len(), logsumexp.len(), row_status.len(), 0])
        }
        Finish::Logprobs { from, logprobs, ranks, top_ids, top_logprobs, row_status, .. } => {
            (from.bytes, [logprobs.len(), ranks.len(), top_ids.len(), top_logprobs.len(), row_status.len()])
        }
        Finish::Draw { from, ids, row_status, .. } => (from.bytes, [ids.len(), row_status.len(), 0, 0, 0]),
    };
    let own = match what {
        Finish::Status { .. } => 0,
        Finish::Logits { from, .. }
        | Finish::Argmax { from, .. }
        | Finish::TopK { from, .. }
        | Finish::Logprobs { from, .. }
        | Finish::Draw { from, .. } => from.own.len().next_multiple_of(8),
    };
    let messages = if let Finish::Logits { .. } = what { 0 } else { from.len().next_multiple_of(8) } + own;
    let outputs: usize = out.iter().map(|bytes| bytes.next_multiple_of(8)).sum();
    (if from.is_empty() { Memory::Host } else { from.memory() }, messages + outputs)
}

/// Refuses outputs in another memory than what came.
fn check_outputs(what: &Finish<'_>, own: Memory) -> Result<()> {
    let check = |outputs: &[(&str, &SpanMut<'_>)]| {
        outputs.iter().try_for_each(|(what, span)| span.check_memory(what, own))
    };
    match what {
        Finish::Status { row_status, .. } => check(&[("row_status", row_status)]),
        Finish::Logits { logits, row_status, .. } => check(&[("logits", logits), ("row_status", row_status)]),
        Finish::Argmax { ids, row_status, .. } | Finish::Draw { ids, row_status, .. } => {
            check(&[("ids", ids), ("row_status", row_status)])
        }
        Finish::TopK { ids, values, logsumexp, row_status, .. } => {
            check(&[("ids", ids), ("values", values), ("logsumexp", logsumexp), ("row_status", row_status)])
        }
        Finish::Logprobs { logprobs, ranks, top_ids, top_logprobs, row_status, .. } => check(&[
            ("logprobs", logprobs),
            ("ranks", ranks),
            ("top_ids", top_ids),
            ("top_logprobs", top_logprobs),
            ("row_status", row_status),
        ]),
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Makes the answer where its buffers are.
    pub(super) fn finish_anywhere(
        &mut self,
        what: Finish<'_>,
        scratch: &mut finish::Scratch,
        on: &mut On<'_>,
    ) -> Result<()> {
        let (memory, bytes) = sizes(&what);
        if memory == Memory::Host {
            return finish::on_host(what, scratch);
        }
        let own = self.common.memory();
        if memory != own {
            let fix = "finish where the messages are";
            return Err(Error::shape("messages of the shards", format!("host memory or {own}"), memory, fix));
        }
        check_outputs(&what, own)?;
        let stream = self.begin(on, true)?;
        let device = self.common.device.clone();
        self.rooms.finish.at_least(bytes, |bytes| device.staging(bytes))?;
        // Taken out, so that the shard can wait meanwhile.
        let mut room = std::mem::take(&mut self.rooms.finish);
        let done = self.finish_in(stream, what, scratch, room.get().as_mut());
        self.rooms.finish = room;
        self.settled(stream, done)?;
        self.end(on, stream, false)
    }

    fn finish_in(
        &mut self,
        stream: D::Stream,
        what: Finish<'_>,
        scratch: &mut finish::Scratch,
        room: &mut [u8],
    ) -> Result<()> {
        let mut carver = Carver { left: room, outputs: [Mirror::default(); BUFFERS], n: 0 };
        match what {
            Finish::Status { words, row_status } => {
                let words = self.bring_here(stream, words, &mut carver)?;
                let row_status = carver.output(&row_status);
                finish::on_host(Finish::Status { words, row_status }, scratch)?;
            }
            Finish::Logits { from, dtype, logits, stride, row_status } => {
                let words = self.place_logits(stream, from, dtype, logits, stride, &mut carver)?;
                let row_status = carver.output(&row_status);
                finish::on_host(Finish::Status { words, row_status }, scratch)?;
            }
            Finish::Argmax { from, ids, row_status } => {
                let from = self.messages_here(stream, from, &mut carver)?;
                let (ids, row_status) = (carver.output(&ids), carver.output(&row_status));
                finish::on_host(Finish::Argmax { from, ids, row_status }, scratch)?;
            }
            Finish::TopK { from, k, ids, values, logsumexp, row_status } => {
                let from = self.messages_here(stream, from, &mut carver)?;
                let [ids, values, logsumexp, row_status] =
                    [&ids, &values, &logsumexp, &row_status].map(|span| carver.output(span));
                finish::on_host(Finish::TopK { from, k, ids, values, logsumexp, row_status }, scratch)?;
            }
            Finish::Logprobs {
                from,
                spec,
                targets,
                top_n,
                drawn,
                logprobs,
                ranks,
                top_ids,
                top_logprobs,
                row_status,
            } => {
                let from = self.messages_here(stream, from, &mut carver)?;
                let known = row_status.as_span();
                let [logprobs, ranks, top_ids, top_logprobs, row_status] =
                    [&logprobs, &ranks, &top_ids, &top_logprobs, &row_status].map(|span| carver.output(span));
                if drawn {
                    let to = (Memory::Host, row_status.address());
                    let copy = CopyRows::whole(to, (known.memory(), known.address()), known.len());
                    // SAFETY: the shard's own memory, and a wait.
                    unsafe { self.common.device.copy_rows(stream, &copy)? };
                    self.settle(stream)?;
                }
                finish::on_host(
                    Finish::Logprobs {
                        from,
                        spec,
                        targets,
                        top_n,
                        drawn,
                        logprobs,
                        ranks,
                        top_ids,
                        top_logprobs,
                        row_status,
                    },
                    scratch,
                )?;
            }
            Finish::Draw { from, params, vocab_size, ids, tokens, row_status } => {
                let from = self.messages_here(stream, from, &mut carver)?;
                let (ids, row_status) = (carver.output(&ids), carver.output(&row_status));
                finish::on_host(Finish::Draw { from, params, vocab_size, ids, tokens, row_status }, scratch)?;
            }
        }
        self.queued = true;
        let own = self.common.memory();
        for mirror in &carver.outputs[..carver.n] {
            let copy = CopyRows::whole((own, mirror.device), (Memory::Host, mirror.host), mirror.bytes);
            // SAFETY: the shard's own memory, which the next call waits for, and the caller's.
            unsafe { self.common.device.copy_rows(stream, &copy)? };
        }
        Ok(())
    }

    /// Device bytes, copied to the host: done when this returns.
    fn bring_here<'a>(
        &mut self,
        stream: D::Stream,
        span: Span<'_>,
        carver: &mut Carver<'a>,
    ) -> Result<Span<'a>> {
        let bytes = carver.take(span.len());
        let to = bytes.as_mut_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((Memory::Host, to), (span.memory(), span.address()), span.len());
        // SAFETY: the shard's own memory, and a wait.
        unsafe { self.common.device.copy_rows(stream, &copy)? };
        self.settle(stream)?;
        Ok(Span::host(bytes))
    }

    fn messages_here<'a>(
        &mut self,
        stream: D::Stream,
        from: Messages<'a>,
        carver: &mut Carver<'a>,
    ) -> Result<Messages<'a>> {
        let own = if from.own.is_empty() { from.own } else { self.bring_here(stream, from.own, carver)? };
        Ok(Messages { bytes: self.bring_here(stream, from.bytes, carver)?, own, ..from })
    }

    /// Copies each shard's columns to their places; returns the rows' status words, on the host.
    fn place_logits<'a>(
        &mut self,
        stream: D::Stream,
        from: Messages<'_>,
        dtype: DType,
        logits: SpanMut<'_>,
        stride: usize,
        carver: &mut Carver<'a>,
    ) -> Result<Span<'a>> {
        let (own, rows, size) = (self.common.memory(), from.rows, dtype.size());
        let vocab = from.shards.last().map_or(0, |shard| shard.end);
        let needed =
            rows.checked_sub(1).map_or(Some(0), |n| n.checked_mul(stride)?.checked_add(vocab * size));
        if stride < vocab * size || needed.is_none_or(|needed| needed > logits.len()) {
            let wanted = format!("{rows} rows of {vocab} {dtype}");
            let got = format!("{} bytes, {stride} a row", logits.len());
            return Err(Error::shape("logits", wanted, got, "allocate rows x stride bytes"));
        }
        let came = carver.take(product_of(&[rows, from.shards.len(), 4])?);
        let side = |memory, address, pitch| Side { memory, address, pitch };
        for (i, (start, shard)) in from.starts.iter().zip(from.shards).enumerate() {
            let own_stride = columns::row_stride(shard.len(), dtype);
            let message = from.bytes.part(*start..*start + rows * own_stride).address();
            let to = side(own, logits.address() + (shard.start * size) as u64, stride);
            let row_bytes = shard.len() * size;
            let columns = CopyRows { to, from: side(own, message, own_stride), row_bytes, rows };
            let words = side(own, message + columns::status_at(shard.len(), dtype) as u64, own_stride);
            let to = came[4 * rows * i..].as_mut_ptr().expose_provenance() as u64;
            let status = CopyRows { to: side(Memory::Host, to, 4), from: words, row_bytes: 4, rows };
            // SAFETY: parts of what came, places of the caller's, and the shard's own memory, with a wait.
            unsafe {
                self.common.device.copy_rows(stream, &columns)?;
                self.common.device.copy_rows(stream, &status)?;
            }
        }
        self.settle(stream)?;
        let words = carver.take(4 * rows);
        words.fill(0);
        if !from.own.is_empty() {
            let own = self.bring_here(stream, from.own, carver)?;
            words.copy_from_slice(own.as_host().unwrap_or_default());
        }
        for shard in came.chunks_exact(4 * rows) {
            words.iter_mut().zip(shard).for_each(|(word, said)| *word |= said);
        }
        Ok(Span::host(words))
    }
}
