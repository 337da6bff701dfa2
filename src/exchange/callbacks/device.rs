//! Callbacks for device memory: the second side of an exchange, beside a host transport.

use super::NAME;
use super::channel::{Channel, Member, Pieces};
use crate::exchange::{
    Call, Caps, DeviceExchange, Exchange, Fault, Piece, Reset, StreamMarks, check_members, check_pieces,
};
use crate::memory::Stream;
use std::sync::Arc;

/// One member's side of one channel.
pub(super) struct DeviceCallbacks {
    channel: Channel,
    marks: Arc<dyn StreamMarks>,
}

impl DeviceCallbacks {
    /// The channel that an exchange begins with.
    pub(super) fn first(member: &Arc<Member>, marks: Arc<dyn StreamMarks>) -> Self {
        DeviceCallbacks { channel: Channel::first(member), marks }
    }
}

// SAFETY: the engine's functions are called with the pieces of the caller, and with empty ones.
unsafe impl DeviceExchange for DeviceCallbacks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn channel(
        &self,
        head: u32,
        instance: u32,
        _: &Arc<dyn Exchange>,
    ) -> Result<Arc<dyn DeviceExchange>, Fault> {
        let channel = Channel::of(&self.channel.member, (head, instance));
        Ok(Arc::new(DeviceCallbacks { channel, marks: Arc::clone(&self.marks) }))
    }

    fn marks(&self) -> &dyn StreamMarks {
        &*self.marks
    }

    /// It is not known whether an engine's function may run while a stream is captured.
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
        let Member { size, me, .. } = *self.channel.member;
        check_members(size, me, members, recv.len())?;
        self.channel.exchange(call, &Pieces::Same { members, send, recv }, stream)
    }

    unsafe fn all_to_all_v(
        &self,
        call: &Call,
        send: &[Piece],
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        check_pieces(self.channel.member.size, send.len(), recv.len())?;
        self.channel.exchange(call, &Pieces::Each { send, recv }, stream)
    }

    fn ended(&self, call: &Call) -> Option<Fault> {
        self.channel.pending(call).map(|(_, fault)| fault)
    }

    fn abort(&self, why: &Fault) {
        self.channel.abort(why);
    }

    fn reset(&self, call: &Call, _: &dyn Exchange) -> Result<Reset, Fault> {
        self.channel.meet_again(call)
    }

    fn release_memory(&self) {
        self.channel.release_room();
    }
}
