//! Answers in device memory, by kernels and copies there. The host's code makes draws and the best of more
//! candidates than kernels find: for these what came is brought to the host, and the answers back.

use super::partials::{self, BEST};
use super::shard::DeviceShard;
use super::{CopyRows, KernelDevice, Side};
use crate::backend::On;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, Messages, columns};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::PartialSpec;

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

/// What came.
fn source<'a>(what: &Finish<'a>) -> Span<'a> {
    match what {
        Finish::Status { words, .. } => *words,
        Finish::Logits { from, .. }
        | Finish::Argmax { from, .. }
        | Finish::TopK { from, .. }
        | Finish::Logprobs { from, .. }
        | Finish::Draw { from, .. } => from.bytes,
    }
}

/// Bytes of the host that stand for what is finished there.
fn host_bytes(what: &Finish<'_>) -> usize {
    let (from, out): (_, [usize; BUFFERS]) = match what {
        Finish::TopK { from, ids, values, logsumexp, row_status, .. } => {
            (from, [ids.len(), values.len(), logsumexp.len(), row_status.len(), 0])
        }
        Finish::Logprobs { from, logprobs, ranks, top_ids, top_logprobs, row_status, .. } => {
            (from, [logprobs.len(), ranks.len(), top_ids.len(), top_logprobs.len(), row_status.len()])
        }
        Finish::Draw { from, ids, row_status, .. } => (from, [ids.len(), row_status.len(), 0, 0, 0]),
        Finish::Status { .. } | Finish::Logits { .. } | Finish::Argmax { .. } => return 0,
    };
    let all = [from.bytes.len(), from.own.len()].into_iter().chain(out);
    all.map(|bytes| bytes.next_multiple_of(8)).sum()
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
        let source = source(&what);
        let memory = source.memory();
        if source.is_empty() || memory == Memory::Host {
            return finish::on_host(what, scratch);
        }
        let own = self.common.memory();
        if memory != own {
            let fix = "finish where the messages are";
            return Err(Error::shape("messages of the shards", format!("host memory or {own}"), memory, fix));
        }
        check_outputs(&what, own)?;
        let Some(what) = self.finish_by_kernel(what, on)? else { return Ok(()) };
        let bytes = host_bytes(&what);
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

    /// Queues the kernels that make the answer: nothing goes through the host. What they do not make comes
    /// back: draws, and of more candidates than they find the best.
    fn finish_by_kernel<'a>(&mut self, what: Finish<'a>, on: &On<'_>) -> Result<Option<Finish<'a>>> {
        match what {
            Finish::TopK { k, .. } if k > BEST => return Ok(Some(what)),
            Finish::Logprobs { spec, .. } if spec.k > BEST => return Ok(Some(what)),
            Finish::Draw { .. } => return Ok(Some(what)),
            Finish::Logprobs { from, spec, targets, top_n, drawn, .. } if spec.targets > 0 => {
                // Targets come from the host, by way of the shard's own memory.
                let parts = partials::parts(&from, &spec)?;
                if targets.len() != from.rows * spec.targets {
                    let wanted = from.rows * spec.targets;
                    return Err(Error::shape("targets", wanted, targets.len(), "pass one for each place"));
                }
                let stream = self.begin(on, true)?;
                let done = self
                    .ask(stream, bytemuck::cast_slice(targets))
                    .and_then(|targets| self.finish_logprobs(stream, parts, targets, (top_n, drawn), &what));
                self.settled(stream, done)?;
                self.end(on, stream, false)?;
            }
            what => self.only_on(on, |shard, stream| match &what {
                Finish::Status { words, row_status } => shard.finish_status(stream, None, *words, row_status),
                Finish::Logits { from, dtype, logits, stride, row_status } => {
                    shard.place_logits(stream, from, *dtype, logits, *stride)?;
                    shard.finish_status(stream, Some((from, *dtype)), from.own, row_status)
                }
                Finish::Argmax { from, ids, row_status } => {
                    let parts = partials::parts(from, &PartialSpec { k: 1, sum: false, targets: 0 })?;
                    shard.finish_best(stream, parts, (ids, row_status), None)
                }
                Finish::TopK { from, k, ids, values, logsumexp, row_status } => {
                    let parts = partials::parts(from, &PartialSpec { k: *k, sum: true, targets: 0 })?;
                    shard.finish_best(stream, parts, (ids, row_status), Some((values, logsumexp)))
                }
                Finish::Logprobs { from, spec, top_n, drawn, .. } => {
                    let parts = partials::parts(from, spec)?;
                    shard.finish_logprobs(stream, parts, 0, (*top_n, *drawn), &what)
                }
                Finish::Draw { .. } => unreachable!("the host draws"),
            })?,
        }
        Ok(None)
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
            _ => unreachable!("kernels make the others"),
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

    /// Queues: each shard's columns go to their places.
    fn place_logits(
        &self,
        stream: D::Stream,
        from: &Messages<'_>,
        dtype: DType,
        logits: &SpanMut<'_>,
        stride: usize,
    ) -> Result<()> {
        let (own, rows, size) = (self.common.memory(), from.rows, dtype.size());
        let vocab = from.shards.last().map_or(0, |shard| shard.end);
        let needed =
            rows.checked_sub(1).map_or(Some(0), |n| n.checked_mul(stride)?.checked_add(vocab * size));
        if stride < vocab * size || needed.is_none_or(|needed| needed > logits.len()) {
            let wanted = format!("{rows} rows of {vocab} {dtype}");
            let got = format!("{} bytes, {stride} a row", logits.len());
            return Err(Error::shape("logits", wanted, got, "allocate rows x stride bytes"));
        }
        partials::message_places(from, |ids| columns::row_stride(ids, dtype))?;
        let side = |address, pitch| Side { memory: own, address, pitch };
        for (start, shard) in from.starts.iter().zip(from.shards) {
            let own_stride = columns::row_stride(shard.len(), dtype);
            let message = from.bytes.part(*start..*start + rows * own_stride).address();
            let to = side(logits.address() + (shard.start * size) as u64, stride);
            let row_bytes = shard.len() * size;
            let columns = CopyRows { to, from: side(message, own_stride), row_bytes, rows };
            // SAFETY: parts of what came, and places of the caller's.
            unsafe { self.common.device.copy_rows(stream, &columns)? };
        }
        Ok(())
    }
}
