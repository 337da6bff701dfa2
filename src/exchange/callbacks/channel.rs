//! One member's side of a channel: it calls the engine's functions, checks what they report and keeps the
//! fault.

use super::report::{Report, Reported};
use super::{Status, Transport, broken, notice};
use crate::exchange::{Call, Fault, Operation, Piece, Place, Reset};
use crate::memory::Stream;
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// One member of a group, and the engine's transport.
pub(super) struct Member {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) size: usize,
    pub(super) me: usize,
    /// By head: the number of channels that this member has opened.
    pub(super) opened: Mutex<HashMap<u32, u32>>,
}

impl Member {
    pub(super) fn new(transport: Arc<dyn Transport>, size: usize, me: usize) -> Self {
        Member { transport, size, me, opened: Mutex::default() }
    }
}

/// The key of the channel that an exchange has before any head opens one. No head's instance is as high.
pub(super) const FIRST: (u32, u32) = (0, u32::MAX);

/// The most channels that are passed over in a row, whatever the transport says of them.
pub(super) const MOST_PASSED: u32 = 1000;

/// One member's side of one channel.
pub(super) struct Channel {
    pub(super) member: Arc<Member>,
    /// Head and instance.
    pub(super) key: (u32, u32),
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// The first fault since the last reset, and the call that it happened in.
    fault: Option<(Call, Fault)>,
    /// The call that was noted last, and when.
    pub(super) noted: Option<(Call, Instant)>,
    /// The collective that was begun last.
    last: Option<Call>,
    pub(super) room: CallBuffers,
}

/// Memory that is kept from call to call.
#[derive(Default)]
pub(super) struct CallBuffers {
    /// What is sent and what is received.
    pub(super) pieces: (Vec<Piece>, Vec<Piece>),
    /// The same for an all_to_all in place of a gather.
    derived: (Vec<Piece>, Vec<Piece>),
    report: Report,
}

/// Who sends what to whom.
pub(super) enum Pieces<'a> {
    /// Member m is sent `send[m]`, and `recv[m]` comes from it.
    Each { send: &'a [Piece], recv: &'a [Piece] },
    /// All of `members` are sent `send`, and `recv[i]` comes from `members[i]`.
    Same { members: &'a [usize], send: Piece, recv: &'a [Piece] },
}

impl Pieces<'_> {
    /// Bytes that are wanted from `member`.
    fn wanted(&self, member: usize) -> usize {
        let piece = match self {
            Pieces::Each { recv, .. } => recv.get(member),
            Pieces::Same { members, recv, .. } => {
                members.iter().position(|&own| own == member).and_then(|at| recv.get(at))
            }
        };
        piece.map_or(0, |piece| piece.len)
    }
}

/// The text of a panic, where it has one.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

impl Channel {
    /// The channel that an exchange begins with.
    pub(super) fn first(member: &Arc<Member>) -> Self {
        Self::of(member, FIRST)
    }

    /// The channel of a head.
    pub(super) fn of(member: &Arc<Member>, key: (u32, u32)) -> Self {
        Channel { member: Arc::clone(member), key, state: Mutex::default() }
    }

    pub(super) fn transport(&self) -> &dyn Transport {
        &*self.member.transport
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No function of the engine runs under this lock: so after a panic the state is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that this channel is in, as `call` reports it.
    fn told(&self, call: &Call) -> Option<Fault> {
        let state = self.state();
        let (earlier, fault) = state.fault.as_ref()?;
        Some(match earlier.same_operation(call) {
            true => fault.clone(),
            false => Fault::Earlier { call: Box::new(*earlier), fault: Box::new(fault.clone()) },
        })
    }

    /// The fault that this channel is in, and its call.
    pub(super) fn fault(&self) -> Option<(Call, Fault)> {
        self.state().fault.clone()
    }

    /// Tells the peers that `call` has ended here. A panic of the engine's function is dropped: it means only
    /// that they may not have been told.
    fn tell(&self, call: &Call, fault: &Fault) {
        let notice = notice::encode(self.member.me, call, fault);
        let transport = AssertUnwindSafe(self.transport());
        let _ = catch_unwind(|| transport.notify_abort(call, &notice));
    }

    /// Brings the channel into the fault `found`, unless it is in one, and tells the peers where the fault
    /// was found here. Returns the fault that the channel is in.
    fn fail(&self, call: &Call, found: Reported) -> Fault {
        let mut state = self.state();
        if let Some((_, earlier)) = &state.fault {
            return earlier.clone();
        }
        state.fault = Some(match &found.fault {
            Fault::Earlier { call, fault } => (**call, (**fault).clone()),
            fault => (*call, fault.clone()),
        });
        drop(state);
        if !found.by_peer {
            self.tell(call, &found.fault);
        }
        found.fault
    }

    /// The members that keep `call` waiting. Of those that the transport names: the ones that have not come
    /// to its step, since one that waits in it is held up itself. Where it names nobody: the members that
    /// were last seen elsewhere, or never.
    fn to_blame(&self, call: &Call, named: Vec<usize>) -> Vec<usize> {
        let place = |member: usize| self.place(member);
        let is_here = |place: &Place| {
            (place.head, place.instance, place.epoch, place.step)
                == (call.head, call.instance, call.epoch, call.step)
                && place.operation != Operation::Idle
        };
        let held_up = |member: &usize| place(*member).is_some_and(|place| is_here(&place));
        if named.is_empty() {
            let others = || (0..self.member.size).filter(|&member| member != self.member.me);
            // Where nobody was ever seen, the transport knows no places; but a single peer must be the one.
            let is_known = others().count() == 1 || others().any(|member| place(member).is_some());
            return others().filter(|member| is_known && !held_up(member)).collect();
        }
        let absent: Vec<usize> = named.iter().copied().filter(|member| !held_up(member)).collect();
        if absent.is_empty() { named } else { absent }
    }

    pub(super) fn place(&self, member: usize) -> Option<Place> {
        let transport = AssertUnwindSafe(self.transport());
        catch_unwind(|| transport.place(member)).unwrap_or_default()
    }

    /// Calls `run`, the engine's function named `function`, and returns how it ended; `None` where there is
    /// no such function.
    fn called(
        &self,
        function: &str,
        call: &Call,
        report: &mut Report,
        wanted: impl Fn(usize) -> usize,
        run: impl FnOnce(&dyn Transport, &mut Report) -> Option<Status>,
    ) -> Option<Result<(), Reported>> {
        report.clear(self.member.size);
        let returned = catch_unwind(AssertUnwindSafe(|| run(self.transport(), report)));
        let status = match returned {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(panic) => {
                let text = text_of(&*panic);
                let problem = format!("the callback `{function}` panicked: {text}");
                return Some(Err(Reported::here(broken(problem))));
            }
        };
        if report.is_good(status) {
            return Some(Ok(()));
        }
        let mut reported = report.fault(function, status, call, wanted);
        if let (Fault::Timeout { missing }, false) = (&mut reported.fault, reported.by_peer) {
            *missing = self.to_blame(call, std::mem::take(missing));
        }
        Some(Err(reported))
    }

    /// [`Channel::called`] for functions that wait for peers: success after the deadline is a fault.
    fn waited(
        &self,
        function: &str,
        call: &Call,
        report: &mut Report,
        wanted: impl Fn(usize) -> usize,
        run: impl FnOnce(&dyn Transport, &mut Report) -> Option<Status>,
    ) -> Option<Result<(), Reported>> {
        let late = Instant::now().checked_duration_since(call.deadline).filter(|by| !by.is_zero());
        let done = self.called(function, call, report, wanted, run)?;
        Some(done.and_then(|()| match late {
            Some(by) => {
                let (operation, timeout, by) = (call.operation, call.timeout(), by.as_secs_f64());
                let reason =
                    format!("this rank came to the {operation} {by:.3} s after the deadline of {timeout:?}");
                Err(Reported::here(Fault::Aborted { member: self.member.me, reason }))
            }
            None if call.left().is_zero() => {
                let missing = self.to_blame(call, Vec::new());
                Err(Reported::here(Fault::Timeout { missing }))
            }
            None => Ok(()),
        }))
    }

    /// One collective.
    pub(super) fn exchange(&self, call: &Call, pieces: &Pieces<'_>, stream: Stream) -> Result<(), Fault> {
        let mut room = std::mem::take(&mut self.state().room);
        let done = self.exchange_in(call, pieces, stream, &mut room);
        self.state().room = room;
        done
    }

    fn exchange_in(
        &self,
        call: &Call,
        pieces: &Pieces<'_>,
        stream: Stream,
        room: &mut CallBuffers,
    ) -> Result<(), Fault> {
        let call = &call.in_channel(self.key);
        if let Some(fault) = self.told(call) {
            return Err(fault);
        }
        self.state().last = Some(*call);
        let CallBuffers { derived: (all_send, all_recv), report, .. } = room;
        let wanted = |member| pieces.wanted(member);
        let gathered = match *pieces {
            Pieces::Each { .. } => None,
            Pieces::Same { members, send, recv } => {
                // SAFETY: the promise of the caller of this collective.
                self.waited("all_gather", call, report, wanted, |transport, report| unsafe {
                    transport.all_gather(call, members, stream, send, recv, report)
                })
            }
        };
        let done = gathered.or_else(|| {
            let (send, recv) = match *pieces {
                Pieces::Each { send, recv } => (send, recv),
                Pieces::Same { members, send, recv } => {
                    for (all, own) in [(&mut *all_send, None), (&mut *all_recv, Some(recv))] {
                        all.clear();
                        all.resize(self.member.size, Piece::default());
                        for (i, &member) in members.iter().enumerate() {
                            all[member] = own.map_or(send, |recv| recv[i]);
                        }
                    }
                    (&all_send[..], &all_recv[..])
                }
            };
            // SAFETY: as above.
            self.waited("all_to_all", call, report, wanted, |transport, report| unsafe {
                Some(transport.all_to_all(call, stream, send, recv, report))
            })
        });
        match done {
            Some(Err(reported)) => Err(match reported.fault {
                // All members have come: the channel goes on.
                fault @ (Fault::Length { .. } | Fault::OtherCall { .. }) => fault,
                _ => self.fail(call, reported),
            }),
            _ => Ok(()),
        }
    }

    /// The fault that this channel is in, or that the transport knows of in `call`.
    pub(super) fn pending(&self, call: &Call) -> Option<(Call, Fault)> {
        let mut state = self.state();
        if state.fault.is_some() {
            return state.fault.clone();
        }
        let mut room = std::mem::take(&mut state.room);
        drop(state);
        let call = call.in_channel(self.key);
        let known = self.called(
            "pending",
            &call,
            &mut room.report,
            |_| 0,
            |transport, report| Some(transport.pending(&call, report)),
        );
        self.state().room = room;
        if let Some(Err(reported)) = known {
            self.fail(&call, reported);
        }
        self.fault()
    }

    /// A call of this channel before its first one.
    fn call_before(&self, operation: Operation) -> Call {
        let (began, (head, instance)) = (Instant::now(), self.key);
        Call { head, instance, epoch: 0, step: 0, operation, terms: 0, began, deadline: began }
    }

    /// Whether peers say that their creation in this channel has ended without this member: they waited for
    /// it in vain, or have left.
    pub(super) fn is_deserted(&self) -> bool {
        let call = self.call_before(Operation::Create);
        let mut report = Report::default();
        let pending = |transport: &dyn Transport, report: &mut Report| Some(transport.pending(&call, report));
        match self.called("pending", &call, &mut report, |_| 0, pending) {
            Some(Err(Reported { fault: Fault::Earlier { fault, .. }, by_peer: true })) => {
                matches!(*fault, Fault::Timeout { .. } | Fault::Lost { .. })
            }
            Some(Err(Reported { fault, by_peer: true })) => {
                matches!(fault, Fault::Timeout { .. } | Fault::Lost { .. })
            }
            _ => false,
        }
    }

    /// Ends `call` on this rank, for `fault`, and on its peers.
    pub(super) fn give_up(&self, call: &Call, fault: Fault) {
        let call = &call.in_channel(self.key);
        let mut state = self.state();
        let is_first = state.fault.is_none();
        // An earlier fault does not end the peers' waits in a rebuilding: they are told of this one.
        if is_first || call.operation == Operation::Rebuild {
            state.fault.get_or_insert_with(|| (*call, fault.clone()));
            drop(state);
            self.tell(call, &fault);
        }
    }

    /// Meets all members in a reset.
    pub(super) fn meet_again(&self, call: &Call) -> Result<Reset, Fault> {
        let call = &call.in_channel(self.key);
        // Tells a peer that is still in a step. It does not end waits for the reset.
        let reason = String::from("it rebuilds the head");
        self.give_up(
            &Call { operation: Operation::Idle, ..*call },
            Fault::Aborted { member: self.member.me, reason },
        );
        let mut room = std::mem::take(&mut self.state().room);
        let done = self.waited(
            "reset",
            call,
            &mut room.report,
            |_| 0,
            |transport, report| transport.reset(call, report),
        );
        let mut state = self.state();
        state.room = room;
        match done {
            None => Ok(Reset::Reconnect),
            Some(Ok(())) => {
                state.fault = None;
                Ok(Reset::Done)
            }
            Some(Err(reported)) => {
                drop(state);
                // Those that wait for this member have waited in vain: once told, they try again as it does.
                if !reported.by_peer {
                    self.tell(call, &reported.fault);
                }
                Err(reported.fault)
            }
        }
    }

    /// Ends the call that came last on this rank, for `why`, and on its peers.
    pub(super) fn abort(&self, why: &Fault) {
        let last = self.state().last;
        let call = last.unwrap_or_else(|| self.call_before(Operation::Idle));
        self.give_up(&call, why.clone());
    }

    pub(super) fn release_room(&self) {
        self.state().room = CallBuffers::default();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.key == FIRST {
            return;
        }
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Names the step that this member will not come to. In a fault there is no step to come.
        let gone = state.noted.filter(|_| state.fault.is_none()).map(|(call, _)| {
            let step = call.step + u64::from(call.operation == Operation::Idle);
            Call { step, operation: Operation::Idle, ..call }
        });
        if let Some(call) = gone {
            self.tell(&call, &Fault::Lost { members: vec![self.member.me] });
        }
        let transport = AssertUnwindSafe(self.transport());
        let (head, instance) = self.key;
        // What a panic could leave undone is no longer in use.
        let _ = catch_unwind(|| transport.leave(head, instance));
    }
}
