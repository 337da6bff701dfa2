//! Device memory between ranks that share one device, as threads of one process: tests of device-resident
//! steps, and engines with several ranks on a GPU.
//!
//! ```text
//! record `ready` on the own stream
//! meet: addresses of the pieces            on the host, over the local exchange: its deadline and its faults
//! wait on the stream for the peers' `ready`, copy their pieces, record `done`
//! meet again: all have recorded `done`
//! wait on the stream for the peers' `done`: what was sent may be overwritten
//! ```
//!
//! Nobody waits for a device. An event is put anew only after the next first meeting, when all peers have
//! queued their waits for it.

use super::{CopyRows, KernelDevice};
use crate::error::Error;
use crate::exchange::local;
use crate::exchange::{
    Call, Caps, DeviceExchange, Exchange, Fault, Pending, Piece, Place, Reset, check_members, check_pieces,
};
use crate::memory::{Memory, Stream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A wait asks again at once for so long, then sleeps between two questions.
const SPIN: Duration = Duration::from_millis(1);
const SLEEP: Duration = Duration::from_micros(50);

/// Makes the endpoints of a group of `size` members that share `device`; endpoint m is member m's.
///
/// # Errors
/// `Device` where there are no events.
pub fn group<D: KernelDevice>(device: &D, size: usize) -> crate::error::Result<Vec<SharedDeviceExchange<D>>> {
    let transport = Arc::new(Transport { device: device.clone(), size, channels: Mutex::default() });
    let marks = Arc::new(Marks::new(device, size)?);
    let endpoint = |local| SharedDeviceExchange::new(Arc::new(local), &transport, Arc::clone(&marks));
    Ok(local::group(size).into_iter().map(endpoint).collect())
}

/// One member's endpoint: [`local`]'s, with a side for device memory.
pub struct SharedDeviceExchange<D: KernelDevice> {
    local: Arc<dyn Exchange>,
    transport: Arc<Transport<D>>,
    marks: Arc<Marks<D>>,
    state: Mutex<State<D>>,
}

/// The events of channels that are open, by head and instance.
type Channels<D> = HashMap<(u32, u32), Weak<Marks<D>>>;

/// What the members share beside the local exchange.
struct Transport<D: KernelDevice> {
    device: D,
    size: usize,
    channels: Mutex<Channels<D>>,
}

/// The events of a channel, by member.
struct Marks<D: KernelDevice> {
    ready: Vec<D::Event>,
    done: Vec<D::Event>,
}

impl<D: KernelDevice> Marks<D> {
    fn new(device: &D, size: usize) -> crate::error::Result<Self> {
        let events = || (0..size).map(|_| device.event()).collect::<crate::error::Result<Vec<_>>>();
        Ok(Marks { ready: events()?, done: events()? })
    }
}

/// One member's own.
struct State<D: KernelDevice> {
    /// Marks of [`DeviceExchange::mark`], and whether somebody will wait for them: a [`Pending`] is a number
    /// of one.
    pending: Vec<(Arc<D::Event>, bool)>,
    /// Why nothing goes on here.
    aborted: Option<Fault>,
    words: Words,
}

/// What members tell each other; memory that is kept from call to call.
#[derive(Default)]
struct Words {
    sent: Vec<Told>,
    came: Vec<Told>,
    everyone: Vec<usize>,
    send: Vec<&'static [u8]>,
    recv: Vec<&'static mut [u8]>,
}

/// A piece as it is told to a peer.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Told {
    address: u64,
    len: u64,
}

impl From<Piece> for Told {
    fn from(piece: Piece) -> Self {
        Told { address: piece.address, len: piece.len as u64 }
    }
}

/// The memory of a vector, for elements of another lifetime.
fn emptied<T, U>(mut elements: Vec<T>) -> Vec<U> {
    elements.clear();
    elements.into_iter().map(|_| unreachable!("it is empty")).collect()
}

/// What this lock guards is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: &Error) -> Fault {
    let fix = "make a new exchange and new heads on every rank".into();
    Fault::Broken { problem: error.to_string(), fix }
}

/// What a member sends: the same to all, or to each its piece.
enum Sent<'a> {
    Same(Piece),
    Pieces(&'a [Piece]),
}

impl Words {
    /// Tells the members what is sent to them, and learns what they send.
    fn meet(
        &mut self,
        local: &dyn Exchange,
        call: &Call,
        members: &[usize],
        sent: &Sent<'_>,
    ) -> Result<(), Fault> {
        self.came.clear();
        self.came.resize(members.len(), Told::default());
        let mut recv: Vec<&mut [u8]> = emptied(std::mem::take(&mut self.recv));
        recv.extend(self.came.iter_mut().map(bytemuck::bytes_of_mut));
        let met = match sent {
            Sent::Same(piece) => {
                local.all_gather_v(call, members, bytemuck::bytes_of(&Told::from(*piece)), &mut recv)
            }
            Sent::Pieces(pieces) => {
                self.sent.clear();
                self.sent.extend(pieces.iter().map(|piece| Told::from(*piece)));
                let mut send: Vec<&[u8]> = emptied(std::mem::take(&mut self.send));
                send.extend(self.sent.iter().map(bytemuck::bytes_of));
                let met = local.all_to_all_v(call, &send, &mut recv);
                self.send = emptied(send);
                met
            }
        };
        self.recv = emptied(recv);
        met
    }
}

impl<D: KernelDevice> SharedDeviceExchange<D> {
    fn new(local: Arc<dyn Exchange>, transport: &Arc<Transport<D>>, marks: Arc<Marks<D>>) -> Self {
        let state = State { pending: Vec::new(), aborted: None, words: Words::default() };
        SharedDeviceExchange { local, transport: Arc::clone(transport), marks, state: Mutex::new(state) }
    }

    fn own(&self) -> Memory {
        Memory::Device(self.transport.device.ordinal())
    }

    /// The events of a channel of a head: those that a peer has made, or new ones.
    fn marks_of(&self, head: u32, instance: u32) -> crate::error::Result<Arc<Marks<D>>> {
        let mut channels = lock(&self.transport.channels);
        channels.retain(|_, marks| marks.strong_count() > 0);
        if let Some(marks) = channels.get(&(head, instance)).and_then(Weak::upgrade) {
            return Ok(marks);
        }
        let marks = Arc::new(Marks::new(&self.transport.device, self.transport.size)?);
        channels.insert((head, instance), Arc::downgrade(&marks));
        Ok(marks)
    }

    fn exchange(
        &self,
        call: &Call,
        members: &[usize],
        sent: &Sent<'_>,
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        let (device, me) = (&self.transport.device, self.me());
        // SAFETY: the caller's promise.
        let stream = unsafe { device.stream_from(stream) };
        let mut words = {
            let mut state = lock(&self.state);
            state.aborted.clone().map_or(Ok(()), Err)?;
            std::mem::take(&mut state.words)
        };
        // A failure of the device here is told to the peers, who would wait for this member.
        let own = |done: crate::error::Result<()>| {
            done.map_err(|error| {
                self.local.notify_abort(call, &error.to_string());
                broken(&error)
            })
        };
        let run = |words: &mut Words| {
            own(device.record(&self.marks.ready[me], stream))?;
            words.meet(&*self.local, call, members, sent)?;
            own(self.copies(members, &words.came, recv, stream))?;
            let mut wrong = Vec::new();
            for ((&member, told), wanted) in members.iter().zip(&words.came).zip(recv) {
                if told.len != wanted.len as u64 {
                    wrong.push((member, wanted.len, usize::try_from(told.len).unwrap_or(usize::MAX)));
                }
            }
            // Also of those whose pieces are of other lengths: they are told at the end, as by the local
            // exchange.
            words.meet(&*self.local, call, members, &Sent::Same(Piece::default()))?;
            let peers = members.iter().filter(|&&member| member != me);
            own(peers.copied().try_for_each(|peer| device.stream_waits(stream, &self.marks.done[peer])))?;
            if wrong.is_empty() { Ok(()) } else { Err(Fault::Length { peers: wrong }) }
        };
        let done = run(&mut words);
        lock(&self.state).words = words;
        done
    }

    /// Queues the copies of what the members send.
    fn copies(
        &self,
        members: &[usize],
        came: &[Told],
        recv: &[Piece],
        stream: D::Stream,
    ) -> crate::error::Result<()> {
        let (device, own, me) = (&self.transport.device, self.own(), self.me());
        for ((&member, told), to) in members.iter().zip(came).zip(recv) {
            if member != me {
                device.stream_waits(stream, &self.marks.ready[member])?;
            }
            let bytes = to.len.min(usize::try_from(told.len).unwrap_or(usize::MAX));
            if bytes > 0 && to.address != told.address {
                let copy = CopyRows::whole((own, to.address), (own, told.address), bytes);
                // SAFETY: the promise of the peer, which keeps its piece until this member's `done`, and the
                // caller's.
                unsafe { device.copy_rows(stream, &copy)? };
            }
        }
        device.record(&self.marks.done[me], stream)
    }
}

impl<D: KernelDevice> Exchange for SharedDeviceExchange<D> {
    fn name(&self) -> &'static str {
        "shared device"
    }

    fn size(&self) -> usize {
        self.local.size()
    }

    fn me(&self) -> usize {
        self.local.me()
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        let (instance, local) = self.local.channel(head)?;
        let marks = self.marks_of(head, instance).map_err(|error| broken(&error))?;
        Ok((instance, Arc::new(SharedDeviceExchange::new(local, &self.transport, marks))))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        self.local.all_gather_v(call, members, send, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        self.local.all_to_all_v(call, send, recv)
    }

    fn note(&self, call: &Call) {
        self.local.note(call);
    }

    fn places(&self) -> Vec<Option<Place>> {
        self.local.places()
    }

    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        self.local.places_elsewhere()
    }

    fn release_memory(&self) {
        lock(&self.state).words = Words::default();
        self.local.release_memory();
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        self.local.pending_fault()
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        self.local.notify_abort(call, reason);
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        let done = self.local.reset(call)?;
        let mut state = lock(&self.state);
        state.aborted = None;
        state.pending.iter_mut().for_each(|(_, awaited)| *awaited = false);
        Ok(done)
    }

    fn device(&self) -> Option<&dyn DeviceExchange> {
        Some(self)
    }
}

// SAFETY: copies go from the pieces that members have told, to the caller's receive pieces, never longer than
// either.
unsafe impl<D: KernelDevice> DeviceExchange for SharedDeviceExchange<D> {
    fn memory(&self) -> Memory {
        self.own()
    }

    /// Members meet on the host in every call: it cannot be captured.
    fn caps(&self) -> Caps {
        Caps::default()
    }

    unsafe fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: Piece,
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        check_members(self.size(), self.me(), members, recv.len())?;
        self.exchange(call, members, &Sent::Same(send), recv, stream)
    }

    unsafe fn all_to_all_v(
        &self,
        call: &Call,
        send: &[Piece],
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        check_pieces(self.size(), send.len(), recv.len())?;
        let mut everyone = std::mem::take(&mut lock(&self.state).words.everyone);
        everyone.clear();
        everyone.extend(0..self.size());
        let done = self.exchange(call, &everyone, &Sent::Pieces(send), recv, stream);
        lock(&self.state).words.everyone = everyone;
        done
    }

    fn mark(&self, _: &Call, stream: Stream) -> Result<Pending, Fault> {
        let device = &self.transport.device;
        // SAFETY: the promise of whoever made the handle.
        let stream = unsafe { device.stream_from(stream) };
        let mut state = lock(&self.state);
        let at = match state.pending.iter().position(|(_, awaited)| !awaited) {
            Some(at) => at,
            None => {
                state.pending.push((Arc::new(device.event().map_err(|error| broken(&error))?), false));
                state.pending.len() - 1
            }
        };
        let (event, awaited) = &mut state.pending[at];
        device.record(event, stream).map_err(|error| broken(&error))?;
        *awaited = true;
        Ok(Pending(at as u64))
    }

    fn wait(&self, pending: Pending, call: &Call, control: &dyn Exchange) -> Result<(), Fault> {
        let at = usize::try_from(pending.0).unwrap_or(usize::MAX);
        let known =
            lock(&self.state).pending.get(at).filter(|(_, awaited)| *awaited).map(|(e, _)| Arc::clone(e));
        let Some(event) = known else {
            let problem =
                format!("wanted a mark that was made here and not waited for, got number {}", pending.0);
            return Err(Fault::Broken { problem, fix: "wait once for each mark".into() });
        };
        let began = Instant::now();
        let done = loop {
            if let Some(fault) = &lock(&self.state).aborted {
                break Err(fault.clone());
            }
            match self.transport.device.reached(&event) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(broken(&error)),
            }
            if let Some((call, fault)) = control.pending_fault() {
                break Err(Fault::Earlier { call: Box::new(call), fault: Box::new(fault) });
            }
            if call.left().is_zero() {
                // A device cannot say whom it waits for.
                break Err(Fault::Timeout { missing: Vec::new() });
            }
            if began.elapsed() < SPIN { std::hint::spin_loop() } else { std::thread::sleep(SLEEP) }
        };
        if let Some((_, awaited)) = lock(&self.state).pending.get_mut(at) {
            *awaited = false;
        }
        done
    }

    fn abort(&self, why: &Fault) {
        lock(&self.state).aborted.get_or_insert_with(|| why.clone());
    }
}
