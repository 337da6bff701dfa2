//! Device memory between ranks that share one device, as threads of one process: tests of device-resident
//! steps, and engines with several ranks on a GPU.
//!
//! ```text
//! record `ready` on its own stream
//! meet: addresses of the pieces            on the host, over the local exchange: its deadline and its faults
//! wait on the stream for the peers' `ready`, copy their pieces, record `done`
//! meet again: all have recorded `done`
//! wait on the stream for the peers' `done`: what was sent may be overwritten
//! ```
//!
//! The host never waits for the device. An event is put anew only after the next first meeting, when all
//! peers have queued their waits for it.

use super::marks::broken;
use super::{CopyRows, KernelDevice, stream_marks};
use crate::exchange::local;
use crate::exchange::{
    Call, Caps, DeviceExchange, Exchange, Fault, Piece, Reset, StreamMarks, WithDevice, check_members,
    check_pieces,
};
use crate::lock::lock;
use crate::memory::Stream;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Makes the endpoints of a group of `size` members that share `device`; endpoint m is member m's.
///
/// # Errors
/// `Device` where there are no events.
pub fn group<D: KernelDevice>(device: &D, size: usize) -> crate::error::Result<Vec<WithDevice>> {
    let transport = Arc::new(Transport { device: device.clone(), size, channels: Mutex::default() });
    let marks = Arc::new(Marks::new(device, size)?);
    let endpoint = |local| {
        let local: Arc<dyn Exchange> = Arc::new(local);
        let device = SharedDevice::new(Arc::clone(&local), &transport, Arc::clone(&marks));
        WithDevice::new(local, Arc::new(device))
    };
    Ok(local::group(size).into_iter().map(endpoint).collect())
}

/// One member's side for device memory, beside its [`local`] endpoint.
struct SharedDevice<D: KernelDevice> {
    local: Arc<dyn Exchange>,
    transport: Arc<Transport<D>>,
    marks: Arc<Marks<D>>,
    stream_marks: Arc<dyn StreamMarks>,
    state: Mutex<State>,
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

/// What one member has for itself.
struct State {
    /// Why this member takes no more calls.
    aborted: Option<Fault>,
    words: Words,
}

/// What members tell each other; memory that is kept from call to call.
#[derive(Default)]
struct Words {
    sent: Vec<WirePiece>,
    came: Vec<WirePiece>,
    everyone: Vec<usize>,
    send: Vec<&'static [u8]>,
    recv: Vec<&'static mut [u8]>,
}

/// A piece as it is told to a peer.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct WirePiece {
    address: u64,
    len: u64,
}

impl From<Piece> for WirePiece {
    fn from(piece: Piece) -> Self {
        WirePiece { address: piece.address, len: piece.len as u64 }
    }
}

/// An empty vector in the memory of another, for elements of another lifetime.
fn emptied<T, U>(mut elements: Vec<T>) -> Vec<U> {
    elements.clear();
    elements.into_iter().map(|_| unreachable!("it is empty")).collect()
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
        self.came.resize(members.len(), WirePiece::default());
        let mut recv: Vec<&mut [u8]> = emptied(std::mem::take(&mut self.recv));
        recv.extend(self.came.iter_mut().map(bytemuck::bytes_of_mut));
        let met = match sent {
            Sent::Same(piece) => {
                local.all_gather_v(call, members, bytemuck::bytes_of(&WirePiece::from(*piece)), &mut recv)
            }
            Sent::Pieces(pieces) => {
                self.sent.clear();
                self.sent.extend(pieces.iter().map(|piece| WirePiece::from(*piece)));
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

impl<D: KernelDevice> SharedDevice<D> {
    fn new(local: Arc<dyn Exchange>, transport: &Arc<Transport<D>>, marks: Arc<Marks<D>>) -> Self {
        let state = Mutex::new(State { aborted: None, words: Words::default() });
        let stream_marks = stream_marks(&transport.device);
        SharedDevice { local, transport: Arc::clone(transport), marks, stream_marks, state }
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
        let (device, me) = (&self.transport.device, self.local.me());
        // SAFETY: the caller's promise.
        let stream = unsafe { device.stream_from(stream) };
        let mut words = {
            let mut state = lock(&self.state);
            state.aborted.clone().map_or(Ok(()), Err)?;
            std::mem::take(&mut state.words)
        };
        // A failure of the device here is reported to the peers, which would wait for this member.
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
            for ((&member, sent), wanted) in members.iter().zip(&words.came).zip(recv) {
                if sent.len != wanted.len as u64 {
                    wrong.push((member, wanted.len, usize::try_from(sent.len).unwrap_or(usize::MAX)));
                }
            }
            // The members meet also where pieces have other lengths: that is reported at the end, as by the
            // local exchange.
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
        came: &[WirePiece],
        recv: &[Piece],
        stream: D::Stream,
    ) -> crate::error::Result<()> {
        let (device, own, me) = (&self.transport.device, self.memory(), self.local.me());
        for ((&member, from), to) in members.iter().zip(came).zip(recv) {
            if member != me {
                device.stream_waits(stream, &self.marks.ready[member])?;
            }
            let bytes = to.len.min(usize::try_from(from.len).unwrap_or(usize::MAX));
            if bytes > 0 && to.address != from.address {
                let copy = CopyRows::whole((own, to.address), (own, from.address), bytes);
                // SAFETY: the promise of the peer, which keeps its piece until this member's `done`, and the
                // caller's.
                unsafe { device.copy_rows(stream, &copy)? };
            }
        }
        device.record(&self.marks.done[me], stream)
    }
}

// SAFETY: copies go from the pieces that members have told, to the caller's receive pieces, never longer than
// either.
unsafe impl<D: KernelDevice> DeviceExchange for SharedDevice<D> {
    fn name(&self) -> &'static str {
        "shared device"
    }

    fn channel(
        &self,
        head: u32,
        instance: u32,
        control: &Arc<dyn Exchange>,
    ) -> Result<Arc<dyn DeviceExchange>, Fault> {
        let marks = self.marks_of(head, instance).map_err(|error| broken(&error))?;
        Ok(Arc::new(SharedDevice::new(Arc::clone(control), &self.transport, marks)))
    }

    fn marks(&self) -> &dyn StreamMarks {
        &*self.stream_marks
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
        check_members(self.local.size(), self.local.me(), members, recv.len())?;
        self.exchange(call, members, &Sent::Same(send), recv, stream)
    }

    unsafe fn all_to_all_v(
        &self,
        call: &Call,
        send: &[Piece],
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        check_pieces(self.local.size(), send.len(), recv.len())?;
        let mut everyone = std::mem::take(&mut lock(&self.state).words.everyone);
        everyone.clear();
        everyone.extend(0..self.local.size());
        let done = self.exchange(call, &everyone, &Sent::Pieces(send), recv, stream);
        lock(&self.state).words.everyone = everyone;
        done
    }

    fn ended(&self, _: &Call) -> Option<Fault> {
        lock(&self.state).aborted.clone()
    }

    fn abort(&self, why: &Fault) {
        lock(&self.state).aborted.get_or_insert_with(|| why.clone());
    }

    fn reset(&self, _: &Call, _: &dyn Exchange) -> Result<Reset, Fault> {
        lock(&self.state).aborted = None;
        Ok(Reset::Done)
    }

    fn release_memory(&self) {
        lock(&self.state).words = Words::default();
    }
}
