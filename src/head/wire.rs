//! Between the ranks: runs one collective operation of a step, notes it where the peers can see it, makes an
//! error of its fault and counts its cost. In a group of one rank, what is sent is what is received.

use super::buffers::{cut, fill, recycle, recycle_mut, sum};
use super::deferred::{Deferred, OPERATIONS};
use super::recorder::Recorder;
use crate::error::{Error, Result};
use crate::exchange::{Call, DeviceExchange, Exchange, Fault, Operation, Pending, Piece};
use crate::layout::HeadGroup;
use crate::memory::{Memory, Span, SpanMut, Stream};
use crate::result::{Request, StepStats};
use crate::step::{self, HEADER_BYTES, Header, Mode};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A step's number and its rank's side of the contract, fixed before anything is sent; and what is learnt of
/// the step later.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub header: Header,
    pub request: Request,
    /// The step begins with an exchange of headers.
    pub verified: bool,
    /// A call of the step; its operation means nothing.
    pub call: Call,
    /// The host waits for nothing of the step: it only queues, and a CUDA graph may capture the step.
    pub queued: bool,
    /// The caller wants the step queued, and not waited for.
    pub asynchronous: bool,
    /// The host decides nothing of the step once its contract is checked.
    pub defers: bool,
    /// Collectives are waited for together, at the end of the step.
    pub deferred: bool,
    /// The stream of collectives that the host waits for, one by one or together, until all have ended.
    pub stream: Option<Stream>,
    /// A capacity step that a graph captures, or a warm-up for one: the device counts and compares it.
    pub padded: bool,
    /// The capacity, in capacity mode.
    pub capacity: usize,
    /// Rows by replica; empty where they are not known yet.
    pub counts: Vec<usize>,
    /// Whether any rank has adjustments.
    pub adjusted: bool,
    /// The tensor-parallel ranks of each replica have compared their inputs.
    pub compared: bool,
    pub stats: StepStats,
}

impl Open {
    /// A call of this step.
    pub fn call(&self, operation: Operation) -> Call {
        Call { operation, ..self.call }
    }
}

/// What is exchanged, and so in which memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// Headers and what decides how the step goes on: in host memory.
    Control,
    /// Rows and results, in the step's memory; device memory on the step's stream.
    Rows(Stream),
}

/// Who takes part in a gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Everyone,
    /// The rank of the caller's tensor-parallel index in each replica.
    Replicas,
}

/// The side of a head that its peers see.
pub(super) struct Wire {
    pub exchange: Arc<dyn Exchange>,
    pub group: Arc<HeadGroup>,
    pub recorder: Recorder,
    /// The step under way, or the last one.
    pub open: Open,
    /// The head's name, for messages.
    name: String,
    everyone: Vec<usize>,
    replicas: Vec<usize>,
    /// The vocabulary ids of every member's shard.
    shards: Vec<Range<usize>>,
    /// Headers of the last operation that carried any.
    headers: Vec<[u8; HEADER_BYTES]>,
    room: CallLists,
    /// Collectives that were queued and not waited for, in their order.
    pub deferred: VecDeque<Deferred>,
}

/// Lists that each operation fills anew, in the same memory.
#[derive(Default)]
struct CallLists {
    send: Vec<&'static [u8]>,
    recv: Vec<&'static mut [u8]>,
    send_pieces: Vec<Piece>,
    recv_pieces: Vec<Piece>,
    /// Marks before and behind the collective, where it is waited for later.
    marks: Option<(Pending, Pending)>,
}

/// Who waits for a collective on a device.
#[derive(Clone, Copy)]
enum Waits {
    /// The host, before it queues anything else.
    Now,
    /// The host, at the end of the step.
    Later,
    /// Nobody.
    Never,
}

/// One operation, before it is called.
struct Operate<'a> {
    operation: Operation,
    /// Bytes to and from other ranks.
    sent: usize,
    received: usize,
    headers: bool,
    via: Via,
    recv: SpanMut<'a>,
    /// Bytes of each piece of `recv`; the pieces lie one after the other.
    sizes: &'a [usize],
}

impl Wire {
    pub fn new(
        exchange: Arc<dyn Exchange>,
        group: HeadGroup,
        name: &str,
        vocab_size: usize,
        open: Open,
    ) -> Self {
        Wire {
            everyone: (0..group.size()).collect(),
            replicas: group.row_members(),
            shards: (0..group.size()).map(|member| group.shard(vocab_size, member)).collect(),
            headers: Vec::with_capacity(group.size()),
            exchange,
            group: Arc::new(group),
            recorder: Recorder::new(),
            open,
            name: name.into(),
            room: CallLists::default(),
            deferred: VecDeque::with_capacity(OPERATIONS),
        }
    }

    /// When the host waits for this step's collectives on a device.
    fn waits(&self) -> Waits {
        match (self.open.queued, self.open.deferred) {
            (true, _) => Waits::Never,
            (false, true) => Waits::Later,
            (false, false) => Waits::Now,
        }
    }

    /// Whether the group has no other ranks.
    pub fn is_alone(&self) -> bool {
        self.group.size() == 1
    }

    /// The vocabulary ids of every member's shard.
    pub fn shards(&self) -> &[Range<usize>] {
        &self.shards
    }

    pub fn members(&self, who: Who) -> &[usize] {
        match who {
            Who::Everyone => &self.everyone,
            Who::Replicas => &self.replicas,
        }
    }

    /// Whether ranks of a tensor-parallel group compare their inputs in this step: they do where headers are
    /// exchanged at all. Rows in device memory are not read for it.
    pub fn shares_inputs(&self) -> bool {
        let Open { header, verified, .. } = &self.open;
        self.group.size() > 1
            && self.group.tp() > 1
            && !header.on_device
            && (*verified || header.mode == Mode::Capacity)
    }

    /// Whether the next operation of all members carries headers: the first in which the inputs are known
    /// does. In capacity mode only ranks of one tensor-parallel index have seen each other's headers before.
    pub fn compares_now(&mut self) -> bool {
        let now = self.shares_inputs() && !self.open.compared;
        self.open.compared |= now;
        now
    }

    /// Sends `send` to everyone of `who`. Member i's message, of `sizes[i]` bytes, comes into `recv`, one
    /// after the other. With `headers` each message begins with its rank's header; the headers are compared
    /// and kept.
    ///
    /// # Errors
    /// The error that the fault, or the headers, stand for.
    pub fn all_gather(
        &mut self,
        (operation, who): (Operation, Who),
        send: Span<'_>,
        (recv, sizes): (SpanMut<'_>, &[usize]),
        headers: bool,
        via: Via,
    ) -> Result<()> {
        if self.members(who).len() == 1 {
            return self.alone(send, recv, headers);
        }
        let me = self.members(who).iter().position(|&member| member == self.group.me()).unwrap_or(0);
        let sent = send.len() * (sizes.len() - 1);
        let received = sizes.iter().sum::<usize>() - sizes[me];
        let operate = Operate { operation, sent, received, headers, via, recv, sizes };
        let waits = self.waits();
        self.operate(operate, who, |exchange, call, members, room, recv| {
            match (send.as_host(), recv) {
                (Some(send), Received::Host(mut recv)) => {
                    let fault = exchange.all_gather_v(call, members, send, &mut recv);
                    room.recv = recycle_mut(recv);
                    fault
                }
                (_, Received::Host(_)) => Err(mixed()),
                (_, Received::Device(stream)) => {
                    let device = device_of(exchange)?;
                    let send = Piece { address: send.address(), len: send.len() };
                    let CallLists { recv_pieces, marks, .. } = room;
                    await_queued(device, call, exchange, (stream, waits), marks, || {
                        // SAFETY: spans of memory that the head keeps, or that its caller lends it, until the
                        // stream has passed the step.
                        unsafe { device.all_gather_v(call, members, send, recv_pieces, stream) }
                    })
                }
            }
        })
    }

    /// Sends member m `send[outgoing[m]]`. Its message, of `sizes[m]` bytes, comes into `recv`, one after the
    /// other. `headers` as in [`Wire::all_gather`].
    ///
    /// # Errors
    /// As [`Wire::all_gather`].
    pub fn all_to_all(
        &mut self,
        operation: Operation,
        (send, outgoing): (Span<'_>, &[Range<usize>]),
        (recv, sizes): (SpanMut<'_>, &[usize]),
        headers: bool,
        via: Via,
    ) -> Result<()> {
        if self.is_alone() {
            return self.alone(send.part(outgoing[0].clone()), recv, headers);
        }
        let me = self.group.me();
        let sent = outgoing.iter().map(ExactSizeIterator::len).sum::<usize>() - outgoing[me].len();
        let received = sizes.iter().sum::<usize>() - sizes[me];
        let operate = Operate { operation, sent, received, headers, via, recv, sizes };
        let waits = self.waits();
        self.operate(operate, Who::Everyone, |exchange, call, _, room, recv| {
            match (send.as_host(), recv) {
                (Some(send), Received::Host(mut recv)) => {
                    let mut pieces = recycle(std::mem::take(&mut room.send));
                    pieces.extend(outgoing.iter().map(|range| &send[range.clone()]));
                    let fault = exchange.all_to_all_v(call, &pieces, &mut recv);
                    (room.send, room.recv) = (recycle(pieces), recycle_mut(recv));
                    fault
                }
                (_, Received::Host(_)) => Err(mixed()),
                (_, Received::Device(stream)) => {
                    let device = device_of(exchange)?;
                    let piece = |range: &Range<usize>| Piece {
                        address: send.address() + range.start as u64,
                        len: range.len(),
                    };
                    let CallLists { send_pieces, recv_pieces, marks, .. } = room;
                    send_pieces.clear();
                    send_pieces.extend(outgoing.iter().map(piece));
                    await_queued(device, call, exchange, (stream, waits), marks, || {
                        // SAFETY: as of the gather.
                        unsafe { device.all_to_all_v(call, send_pieces, recv_pieces, stream) }
                    })
                }
            }
        })
    }

    /// [`Wire::all_gather`] of what decides how the step goes on. `recv` is made as long as `sizes` say.
    ///
    /// # Errors
    /// As [`Wire::all_gather`]; `Shape` where there is no memory.
    pub fn gather_small(
        &mut self,
        (operation, who): (Operation, Who),
        send: Span<'_>,
        (recv, sizes): (&mut Vec<u8>, &[usize]),
        headers: bool,
    ) -> Result<()> {
        let what = operation.name();
        fill(recv, 0, sum(sizes, what)?, what)?;
        let places = (SpanMut::host(&mut recv[..]), sizes);
        self.all_gather((operation, who), send, places, headers, Via::Control)
    }

    /// [`Wire::all_to_all`] of the same kind.
    ///
    /// # Errors
    /// As [`Wire::gather_small`].
    pub fn exchange_small(
        &mut self,
        operation: Operation,
        send: (Span<'_>, &[Range<usize>]),
        (recv, sizes): (&mut Vec<u8>, &[usize]),
    ) -> Result<()> {
        let what = operation.name();
        fill(recv, 0, sum(sizes, what)?, what)?;
        let places = (SpanMut::host(&mut recv[..]), sizes);
        self.all_to_all(operation, send, places, false, Via::Control)
    }

    /// In a group of one rank: copies what is sent to where it is received.
    fn alone(&mut self, send: Span<'_>, recv: SpanMut<'_>, headers: bool) -> Result<()> {
        debug_assert!(!headers, "nobody to compare with");
        let (Some(send), Some(recv)) = (send.as_host(), recv.into_host()) else {
            return Err(mixed().without_call("exchange of one rank"));
        };
        recv.copy_from_slice(send);
        Ok(())
    }

    fn operate(
        &mut self,
        operate: Operate<'_>,
        who: Who,
        run: impl FnOnce(
            &dyn Exchange,
            &Call,
            &[usize],
            &mut CallLists,
            Received<'_>,
        ) -> std::result::Result<(), Fault>,
    ) -> Result<()> {
        let Operate { operation, sent, received, headers, via, mut recv, sizes } = operate;
        let device = match via {
            Via::Rows(stream) if self.open.header.on_device => Some(stream),
            _ => None,
        };
        if device.is_none() || !self.open.deferred {
            self.wait_deferred()?;
        }
        let call = self.open.call(operation);
        let began = Instant::now();
        // The peers are told the first collective that has not ended as this member's place.
        if self.deferred.is_empty() {
            self.exchange.note(&call);
        }
        let mut room = std::mem::take(&mut self.room);
        let members = match who {
            Who::Everyone => &self.everyone,
            Who::Replicas => &self.replicas,
        };
        if headers && let Some(bytes) = recv.reborrow().into_host() {
            // A message that is shorter than a header must not leave an old one in its place.
            each_header(bytes, sizes, |header| header.fill(0));
        }
        let received_at = recv.address();
        let place = match (device, recv.reborrow().into_host()) {
            (None, Some(bytes)) => {
                let mut slices = recycle_mut(std::mem::take(&mut room.recv));
                cut(bytes, sizes, &mut slices);
                Received::Host(slices)
            }
            (stream, _) => {
                room.recv_pieces.clear();
                let mut address = received_at;
                room.recv_pieces.extend(sizes.iter().map(|&len| {
                    let piece = Piece { address, len };
                    address += len as u64;
                    piece
                }));
                Received::Device(stream.unwrap_or_default())
            }
        };
        let delivered = run(&*self.exchange, &call, members, &mut room, place);
        let marks = room.marks.take();
        self.room = room;
        let (sent, received, took) = (sent as u64, received as u64, began.elapsed());
        match marks {
            Some((before, behind)) => {
                self.deferred.push_back(Deferred { call, before, behind, sent, received, took });
            }
            None => self.recorder.operation(operation, sent, received, took),
        }
        let stats = &mut self.open.stats;
        stats.rounds += 1;
        stats.bytes_sent += sent;
        stats.bytes_received += received;
        let ranks = self.group.ranks();
        if !headers {
            return delivered.map_err(|fault| fault.into_error(&call, ranks));
        }
        self.headers.clear();
        if let Some(bytes) = recv.into_host() {
            each_header(bytes, sizes, |header| self.headers.push(*header));
        }
        // Where ranks disagree, the headers say more than the transport's fault does.
        match delivered {
            Ok(()) => self.judge(who),
            Err(fault @ (Fault::Length { .. } | Fault::OtherCall { .. })) => {
                self.judge(who).and_then(|()| Err(fault.into_error(&call, self.group.ranks())))
            }
            Err(fault) => Err(fault.into_error(&call, ranks)),
        }
    }

    /// Compares the headers that came. Where they agree, they say who has adjustments.
    fn judge(&mut self, who: Who) -> Result<()> {
        let (members, open) = (self.members(who), &self.open);
        let list: &[usize] = if open.header.mode == Mode::Exact { &open.counts } else { &[] };
        let adjusted = step::agree(&self.group, members, &self.headers, &open.header, &self.name, list)?;
        self.open.adjusted |= adjusted;
        Ok(())
    }

    /// The rows of every replica, from the headers of `who`.
    pub fn learn_counts(&mut self, who: Who) {
        let each = if who == Who::Everyone { self.group.tp() } else { 1 };
        let rows = self.headers.iter().step_by(each).map(Header::rows_of);
        self.open.counts.clear();
        self.open.counts.extend(rows);
    }

    /// The rows, among all that are computed, that `member` is answered. `split`: only its part of its
    /// replica's rows; a rank alone computes no other rows.
    pub fn answered(&self, member: usize, split: bool) -> Range<usize> {
        let (counts, replica) = (&self.open.counts, self.group.replica_of(member));
        let split = split && !self.is_alone();
        let first: usize = counts[..replica].iter().sum();
        let part = self.group.answered_rows(counts[replica], member, split);
        first + part.start..first + part.end
    }
}

/// Where an operation puts what it receives.
enum Received<'a> {
    Host(Vec<&'a mut [u8]>),
    /// In the room's `recv_pieces`, on the stream.
    Device(Stream),
}

/// Calls `each` with the header at the beginning of each message.
fn each_header(bytes: &mut [u8], sizes: &[usize], mut each: impl FnMut(&mut [u8; HEADER_BYTES])) {
    let mut rest = bytes;
    for &size in sizes {
        let (message, after) = std::mem::take(&mut rest).split_at_mut(size);
        if let Some(header) = message.first_chunk_mut() {
            each(header);
        }
        rest = after;
    }
}

fn mixed() -> Fault {
    Fault::Broken {
        problem: "device memory where host memory is exchanged".into(),
        fix: "report it: rows and results of one step are in one memory".into(),
    }
}

/// Queues a collective and waits for it, at most until the step's deadline: so a fault is reported to the
/// step's caller by its name. Where the wait comes later, sets `marks` for it; where nobody waits, only
/// queues.
fn await_queued(
    device: &dyn DeviceExchange,
    call: &Call,
    exchange: &dyn Exchange,
    (stream, waits): (Stream, Waits),
    marks: &mut Option<(Pending, Pending)>,
    queue: impl FnOnce() -> std::result::Result<(), Fault>,
) -> std::result::Result<(), Fault> {
    if let Waits::Never = waits {
        return queue();
    }
    let before = Marked { device, mark: device.mark(call, stream)? };
    queue()?;
    // Without a mark nobody can wait for it.
    let behind = device.mark(call, stream).inspect_err(|fault| device.abort(fault))?;
    let before = before.keep();
    if let Waits::Later = waits {
        *marks = Some((before, behind));
        return Ok(());
    }
    device.wait(Some(before), behind, call, exchange)
}

/// A mark that is given back where it is dropped, also by a panic.
struct Marked<'d> {
    device: &'d dyn DeviceExchange,
    mark: Pending,
}

impl Marked<'_> {
    /// The mark, for one who gives it back later.
    fn keep(self) -> Pending {
        std::mem::ManuallyDrop::new(self).mark
    }
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        self.device.forget(self.mark);
    }
}

fn device_of(exchange: &dyn Exchange) -> std::result::Result<&dyn crate::exchange::DeviceExchange, Fault> {
    exchange.device().ok_or_else(|| Fault::Broken {
        problem: format!("the transport `{}` exchanges host memory only", exchange.name()),
        fix: "pass rows and buffers in host memory, or a transport of device memory".into(),
    })
}

/// Refuses a step in memory that the exchange does not take.
pub(super) fn check_memory(exchange: &dyn Exchange, memory: Memory, size: usize) -> Result<()> {
    if memory == Memory::Host || size == 1 {
        return Ok(());
    }
    let device = exchange.device().map(|device| device.memory());
    if device == Some(memory) {
        return Ok(());
    }
    let wanted = match device {
        Some(other) => format!("rows in host memory or in {other}"),
        None => "rows in host memory".into(),
    };
    let fix = "copy them, or make the head with a transport of that memory";
    Err(Error::unsupported(format!("the exchange `{}`", exchange.name()), wanted, memory, fix))
}
