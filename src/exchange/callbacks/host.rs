//! A channel as the exchange of host memory that a head uses.

use super::channel::{Channel, FIRST, MOST_PASSED, Pieces};
use super::{NAME, broken, piece_of, piece_of_mut};
use crate::exchange::{Call, Exchange, Fault, Operation, Place, Reset, check_members, check_pieces};
use crate::memory::Stream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

impl Exchange for Channel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn size(&self) -> usize {
        self.member.size
    }

    fn me(&self) -> usize {
        self.member.me
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        let mut opened = self.member.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let next = opened.entry(head).or_default();
        let mut passed = 0;
        loop {
            let instance = *next;
            if instance == FIRST.1 {
                return Err(broken(format!("head {head:#010x} has opened {instance} channels")));
            }
            *next += 1;
            let channel = Channel::of(&self.member, (head, instance));
            // Peers that waited here in vain, or have left, wait in a later channel if anywhere. A peer's
            // refusal is another matter: this member has yet to learn of it.
            if passed == MOST_PASSED || !channel.is_deserted() {
                return Ok((instance, Arc::new(channel)));
            }
            passed += 1;
        }
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        check_members(self.member.size, self.member.me, members, recv.len())?;
        let mut places = std::mem::take(&mut self.state().room.pieces);
        places.1.clear();
        places.1.extend(recv.iter_mut().map(|piece| piece_of_mut(piece)));
        let pieces = Pieces::Same { members, send: piece_of(send), recv: &places.1 };
        let done = self.exchange(call, &pieces, Stream::NONE);
        self.state().room.pieces = places;
        done
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        check_pieces(self.member.size, send.len(), recv.len())?;
        let mut places = std::mem::take(&mut self.state().room.pieces);
        places.0.clear();
        places.0.extend(send.iter().map(|piece| piece_of(piece)));
        places.1.clear();
        places.1.extend(recv.iter_mut().map(|piece| piece_of_mut(piece)));
        let done = self.exchange(call, &Pieces::Each { send: &places.0, recv: &places.1 }, Stream::NONE);
        self.state().room.pieces = places;
        done
    }

    fn note(&self, call: &Call) {
        let call = call.in_channel(self.key);
        self.state().noted = Some((call, Instant::now()));
        let transport = AssertUnwindSafe(self.transport());
        // Places only help to blame others: without them a step does not fail.
        let _ = catch_unwind(|| transport.note(&call));
    }

    fn places(&self) -> Vec<Option<Place>> {
        let own = self.state().noted.map(|(call, at)| call.place(at.elapsed()));
        let seen = |member| if member == self.member.me { own } else { self.place(member) };
        (0..self.member.size).map(seen).collect()
    }

    fn release_memory(&self) {
        self.release_room();
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        let noted = self.state().noted;
        let Some((call, _)) = noted else { return self.fault() };
        self.pending(&call)
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        if self.key == FIRST && call.operation == Operation::Create {
            if let Ok((instance, own)) = self.channel(call.head) {
                own.notify_abort(&Call { instance, ..*call }, reason);
            }
            return;
        }
        self.give_up(call, Fault::Aborted { member: self.member.me, reason: reason.into() });
    }

    fn notify_fault(&self, call: &Call, fault: &Fault) {
        self.give_up(call, fault.clone());
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        self.meet_again(call)
    }
}
