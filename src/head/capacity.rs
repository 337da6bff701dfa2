//! Steps that a CUDA graph can capture: no host waits for their work. In capacity mode they have a static
//! (padded) shape, and the device itself counts them and compares the ranks' headers in every replay.
//!
//! ```text
//! own rows      -> [header][capacity rows], zeros behind the last row; the header has the device's count
//! all_gather    over the replicas; with tensor parallelism another one, of the headers of all ranks
//! headers       compared; where all agree, the positions of the rows that came, else -1 for each
//! matmul        of the rows at these positions; -1 is a bad index, so that its row has no answer
//! ```

use super::LmHead;
use super::buffers::{Arena, bytes_of, sum};
use super::recorder::QueuedSteps;
use super::run::{Compute, Lists, Run};
use super::step::StepOptions;
use super::wire::{Via, Who};
use crate::backend::{Arrivals, Inputs, On, Payload};
use crate::config::Verify;
use crate::error::{Disagreement, Error, Result};
use crate::exchange::{Call, Exchange, Operation};
use crate::layout::{HeadGroup, even_part};
use crate::memory::{Span, SpanMut, Stream};
use crate::result::{DeviceInputs, Request};
use crate::rows::{HiddenRows, RowCounts};
use crate::sampling::Filters;
use crate::step::{self, HEADER_BYTES, Header};
use std::ops::Range;

/// Alignment in bytes of the buffers that collectives read and write.
pub(super) const ALIGNED: usize = 256;

/// The shape of a padded step, the same on every rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Padded {
    /// Parts of a replica's rows that are answered to different ranks, and the rows of the largest part.
    parts: usize,
    part_rows: usize,
    /// Rows at the start of the payload that hold the header instead.
    header_rows: usize,
}

impl Padded {
    pub fn new(group: &HeadGroup, split: bool, capacity: usize, row_bytes: usize) -> Self {
        let parts = if split { group.tp() } else { 1 };
        let header_rows = if group.tp() > 1 { 0 } else { HEADER_BYTES.div_ceil(row_bytes.max(1)) };
        Padded { parts, part_rows: capacity.div_ceil(parts), header_rows }
    }

    /// Rows that are computed of each replica, padding included.
    pub fn rows(&self) -> usize {
        self.parts * self.part_rows
    }

    /// The number of parts, and the rows of each.
    pub fn shape(&self) -> (usize, usize) {
        (self.parts, self.part_rows)
    }

    /// The parts of `mine` own rows, and where each begins among the computed rows.
    pub fn parts(self, mine: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        (0..self.parts).map(move |part| (even_part(mine, self.parts, part), part * self.part_rows))
    }
}

/// Takes the first `bytes` bytes of `left`, which then begins at the next multiple of `ALIGNED`.
pub(super) fn take<'b>(left: &mut SpanMut<'b>, bytes: usize) -> SpanMut<'b> {
    left.take(bytes.next_multiple_of(ALIGNED)).part(0..bytes)
}

impl QueuedSteps {
    /// Why queued steps have no answer; `None` where no fault is known.
    pub fn fault(&self, exchange: &dyn Exchange, group: &HeadGroup) -> Option<Error> {
        let ended = exchange.device().filter(|_| group.size() > 1).and_then(|device| device.fault());
        if let Some(fault) = ended {
            return Some(fault.into_error(&self.aborts.call(), group.ranks()));
        }
        let (step, member, headers) = self.steps.get()?.mismatch()?;
        let me = group.me();
        let members = if member < me { [member, me] } else { [me, member] };
        let in_order = if member < me { [headers[1], headers[0]] } else { headers };
        let named = match Header::decode(&headers[0]) {
            Some(own) if member != me && member < group.size() => {
                step::agree(group, &members, &in_order, &own, &self.name, &[]).err()
            }
            _ => None,
        };
        Some(named.unwrap_or_else(|| {
            let said = vec![(vec![group.ranks()[member.min(group.size() - 1)]], "another header".into())];
            Error::mismatch(step - 1, vec![Disagreement { field: "header".into(), said }])
        }))
    }
}

impl LmHead {
    /// Whether the host need not wait for such a step: it decides nothing within it, and the transport
    /// watches what is queued. The same on every rank. A rank that turns out to have inputs in host memory
    /// waits all the same.
    pub(super) fn queues(&self, counts: &RowCounts, request: &Request, options: StepOptions) -> bool {
        let (wire, device) = (&self.wire, self.wire.exchange.device());
        let padded = matches!(counts, RowCounts::Capacity { .. }) && !wire.is_alone();
        let decided = match *request {
            Request::Logits { .. } | Request::Argmax | Request::TopK { .. } => true,
            Request::Logprobs { targets, top_n, .. } => !padded || self.is_one_chunk(counts, targets, top_n),
            Request::Sample { .. } => options.filters != Filters::ByHost,
        };
        let here = options.on_device && !options.adjusted;
        let watches = wire.is_alone() || device.is_some_and(|device| device.caps().capture);
        decided && here && watches
    }

    /// Whether all rows of a padded step fit one chunk of logprobs.
    fn is_one_chunk(&self, counts: &RowCounts, targets: usize, top_n: usize) -> bool {
        let RowCounts::Capacity { max, .. } = *counts else { return true };
        let group = &self.wire.group;
        let room = self.config.logprobs_chunk_rows(group.size(), self.hidden_dtype, targets, top_n);
        let parts = if self.config.split_rows_over_tp { group.tp() } else { 1 };
        let rows = max.div_ceil(parts).saturating_mul(parts * group.replicas());
        room.is_ok_and(|room| rows <= room)
    }

    /// Whether a step may be captured in a CUDA graph, if all its inputs are in device memory. Depends on the
    /// arguments and the head alone: not collective.
    pub fn is_capturable(&self, counts: &RowCounts, request: &Request, options: StepOptions) -> bool {
        let unverified = match counts {
            _ if self.wire.is_alone() => true,
            RowCounts::Exact(_) => self.config.verify == Verify::WarmUp,
            RowCounts::Capacity { .. } => true,
            RowCounts::Discover { .. } => false,
        };
        unverified && self.queues(counts, request, options)
    }

    /// Makes what watches replays, before a graph is captured.
    pub(super) fn prepare_watch(&self, stream: Stream) -> Result<()> {
        let wire = &self.wire;
        let Some(device) = wire.exchange.device().filter(|device| !wire.is_alone() && device.caps().capture)
        else {
            return Ok(());
        };
        let call = wire.open.call(Operation::Idle);
        let watched = device.watch_begin(&call, stream).and_then(|()| device.watch_end(&call, stream));
        watched.map_err(|fault| fault.into_error(&call, wire.group.ranks()))
    }

    /// Whether the step is being captured in a CUDA graph.
    pub(super) fn is_capturing(&self, on: &On<'_>) -> Result<bool> {
        Ok(self.wire.open.header.on_device && self.backend.is_capturing(on.stream)?)
    }

    /// Refuses to capture a step that waits for the host, or whose workspace may be gone when the graph is
    /// replayed.
    pub(super) fn check_capture(&self, on: &On<'_>) -> Result<()> {
        let open = &self.wire.open;
        if open.asynchronous {
            let fix = "leave out StepOptions::asynchronous: the graph waits for nobody anyway";
            return Err(Error::request(
                "a step that is captured",
                "one like any other",
                "an asynchronous one",
                fix,
            ));
        }
        if !open.queued {
            let wanted = "a step for which no host waits (LmHead::is_capturable)";
            let got = format!("{}, {}", open.request, open.header.mode);
            let fix = "capture steps in capacity mode or with counts that are not verified, and their inputs in \
                       device memory: logits, argmax, topk, logprobs, sample where the host knows no filters";
            return Err(Error::request("a step that is captured", wanted, got, fix));
        }
        if on.workspace.is_none() && !self.info.vocab.is_empty() {
            let (wanted, fix) =
                ("memory of the caller's", "pass it in On::workspace, and keep it with the graph");
            return Err(Error::request("workspace of a captured step", wanted, "none", fix));
        }
        Ok(())
    }

    /// Marks the end of the latest asynchronous step on `stream`; earlier ones on the stream end before it.
    pub(super) fn remember_unwaited(&mut self, stream: Stream) -> Result<()> {
        let call = self.wire.open.call;
        let Some(device) = self.wire.exchange.device() else { return Ok(()) };
        let end =
            device.mark(&call, stream).map_err(|fault| fault.into_error(&call, self.wire.group.ranks()))?;
        if let Some((_, before)) = self.unwaited.replace((stream, end)) {
            device.forget(before);
        }
        Ok(())
    }

    /// Waits for asynchronous steps that still run, until the call's deadline.
    pub(super) fn await_unwaited(&mut self, call: &Call) -> Result<()> {
        let (Some((_, end)), Some(device)) = (self.unwaited.take(), self.wire.exchange.device()) else {
            return Ok(());
        };
        let waited = device.wait(None, end, call, &*self.wire.exchange);
        waited.map_err(|fault| fault.into_error(call, self.wire.group.ranks()))
    }

    /// [`LmHead::await_unwaited`] before memory that they use is given back, or their channel made anew. What
    /// has not ended by its timeout is ended by the transport.
    pub(super) fn leave_unwaited(&mut self) {
        if self.unwaited.is_some() && self.maker.check("the head").is_ok() {
            let call = self.call_from_now(Operation::Idle, self.config.timeout);
            // Faults are told by the next step, or by the rebuilding.
            let _ = self.await_unwaited(&call);
        }
    }

    /// An error where earlier queued work has failed in the meantime; the head is then poisoned.
    pub(super) fn check_queued(&mut self) -> Result<()> {
        let call = self.wire.open.call;
        let fault = self.queued.fault(&*self.wire.exchange, &self.wire.group);
        fault.map_or(Ok(()), |error| Err(self.failed(&call, error)))
    }
}

impl Run<'_> {
    /// The padded shape of this step, for rows of `row_bytes` bytes.
    pub(super) fn padded(&self, row_bytes: usize) -> Padded {
        let split = self.config.split_rows_over_tp;
        Padded::new(&self.wire.group, split, self.wire.open.capacity, row_bytes)
    }

    /// Queues work that no host waits for. The transport watches it, and ends it where it does not come to
    /// its end.
    pub(super) fn watched(&mut self, queue: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let watch = |run: &Self, end: bool| {
            let wire = &run.wire;
            let Some(device) = wire.exchange.device().filter(|_| !wire.is_alone()) else { return Ok(()) };
            let call = wire.open.call(Operation::GatherRows);
            let watched = match end {
                true => device.watch_end(&call, run.stream),
                false => device.watch_begin(&call, run.stream),
            };
            watched.map_err(|fault| fault.into_error(&call, wire.group.ranks()))
        };
        watch(self, false)?;
        queue(self)?;
        watch(self, true)
    }

    /// [`Run::gather`] for a padded step: the same number of rows of every replica, and the status words of
    /// this rank's rows. `inputs`: words that the ranks of a replica must share besides the rows and `mine`.
    pub(super) fn gather_padded<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        (hidden, mine, inputs): (HiddenRows<'b>, &DeviceInputs<'_>, Span<'_>),
        (own_rows, own_status, gathered, contract): (
            &'b mut Arena,
            &'b mut Arena,
            &'b mut Arena,
            &'b mut Arena,
        ),
        lists: &mut Lists,
    ) -> Result<(HiddenRows<'b>, Span<'b>)> {
        let (group, capacity) = (self.wire.group.clone(), self.wire.open.capacity);
        let (replicas, tp, me) = (group.replicas(), group.tp(), group.me());
        let (bytes, what) = (hidden.row_bytes(), "gathered rows");
        let shape = self.padded(bytes);
        let payload_rows = shape.header_rows + capacity;
        let payload = bytes_of(what, [payload_rows, bytes])?;

        // [digests][digests of adjustments][own header][headers of all][positions of the rows]
        let apart = tp > 1;
        let of = self.wire.open.header.placed;
        let sizes = [
            if apart { 8 * capacity } else { 0 },
            if apart && !of.is_empty() { 8 * capacity } else { 0 },
            HEADER_BYTES,
            if apart { HEADER_BYTES * group.size() } else { 0 },
            bytes_of(what, [replicas * shape.rows(), 4])?,
        ];
        let all = sum(&sizes.map(|bytes| bytes.next_multiple_of(ALIGNED)), what)?;
        let mut left = contract.at_least(self.backend, self.memory, all, "headers of a step")?;
        let [digests, mut adjusted, own_header, mut headers, mut positions] =
            sizes.map(|bytes| take(&mut left, bytes));
        if !adjusted.is_empty() {
            let (rows, vocab_size) = (hidden.len(), self.config.vocab_size);
            adjusted = adjusted.part(0..8 * rows);
            let out = adjusted.reborrow();
            let from = &mine.adjustments_of(0..rows, vocab_size);
            compute.inputs(Inputs::DigestAdjustments { from, rows, of, vocab_size, out })?;
        }

        let mut send = own_rows.at_least(self.backend, self.memory, payload, what)?;
        let mut status =
            own_status.at_least(self.backend, self.memory, 4 * capacity, "status of the rows")?;
        let (in_front, rows) = send.reborrow().split_at(shape.header_rows * bytes);
        let header_out = if apart { own_header } else { in_front.part(0..HEADER_BYTES) };
        let own_header = header_out.as_span();
        // SAFETY: within memory that the head keeps, and that only kernels of this step's stream use.
        let own_header = unsafe { Span::from_raw(own_header.memory(), own_header.address(), HEADER_BYTES) };
        let (loaded, mut on) = compute.on();
        loaded.open_capacity(
            Payload {
                rows: hidden,
                capacity,
                header: self.wire.open.header.encode(),
                out: rows,
                header_out,
                status: status.reborrow(),
                digests,
                adjusted: adjusted.into_span(),
                inputs,
            },
            &mut on,
        )?;

        let via = Via::Rows(self.stream);
        let mut came = SpanMut::EMPTY;
        if replicas > 1 {
            came =
                gathered.at_least(self.backend, self.memory, bytes_of(what, [payload, replicas])?, what)?;
            lists.sizes.clear();
            lists.sizes.resize(replicas, payload);
            let gather = (Operation::GatherRows, Who::Replicas);
            let places = (came.reborrow(), &lists.sizes[..]);
            self.wire.all_gather(gather, send.as_span(), places, false, via)?;
        }
        let came = if replicas > 1 { came.into_span() } else { send.into_span() };
        if apart {
            lists.sizes.clear();
            lists.sizes.resize(group.size(), HEADER_BYTES);
            let gather = (Operation::Contract, Who::Everyone);
            self.wire.all_gather(gather, own_header, (headers.reborrow(), &lists.sizes), false, via)?;
        }
        let (headers, pitch, members, ranks, mine) = match apart {
            true => (headers.as_span(), HEADER_BYTES, group.size(), tp, me),
            false => (came, payload, replicas, 1, group.replica_of(me)),
        };
        let (loaded, mut on) = compute.on();
        loaded.check_capacity(
            Arrivals {
                own: own_header,
                headers,
                pitch,
                members,
                ranks,
                me: mine,
                capacity,
                positions: positions.reborrow(),
                parts: shape.parts,
                part_rows: shape.part_rows,
                first_row: shape.header_rows,
                replica_rows: payload_rows,
            },
            &mut on,
        )?;

        let counts = &mut self.wire.open.counts;
        counts.clear();
        counts.resize(replicas, shape.rows());
        let all = HiddenRows::strided(came, hidden.dtype(), replicas * payload_rows, hidden.hidden(), bytes)?;
        let picked = all.select_span(positions.into_span(), 4)?;
        Ok((picked, status.into_span().part(0..4 * hidden.len())))
    }
}
