//! Ranks as threads of one process: queues under one lock.
//!
//! A rank waits only here, on its own OS thread, and never past its deadline. A rank that fails tells the
//! group by a fault that every waiting peer sees at once; a rank whose endpoint is dropped (its thread ended or panicked) is
//! seen as lost. Messages are copied once by the sender (one copy serves all receivers of a gather) and once
//! by each receiver.

use super::{Call, Exchange, Fault, Operation};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// One member's endpoint of a group within the process.
#[derive(Debug)]
pub struct LocalExchange {
    group: Arc<Group>,
    me: usize,
}

/// Makes the endpoints of a group of `size` members; endpoint m is member m's.
pub fn group(size: usize) -> Vec<LocalExchange> {
    let state = State {
        queues: (0..size * size).map(|_| VecDeque::new()).collect(),
        fault: None,
        gone: vec![false; size],
        waiting: vec![None; size],
        resetting: vec![false; size],
        generation: 0,
    };
    let group = Arc::new(Group { size, state: Mutex::new(state), changed: Condvar::new() });
    (0..size).map(|me| LocalExchange { group: Arc::clone(&group), me }).collect()
}

#[derive(Debug)]
struct Group {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `queues[to * size + from]`.
    queues: Vec<VecDeque<Message>>,
    /// The first fault since the last reset, and the call that it happened in. Whoever lacks a message sees it instead of waiting.
    fault: Option<(Call, Fault)>,
    gone: Vec<bool>,
    /// The calls in which members wait for messages at this moment.
    waiting: Vec<Option<Call>>,
    resetting: Vec<bool>,
    /// Counts resets.
    generation: u64,
}

#[derive(Debug)]
struct Message {
    call: Call,
    bytes: Arc<[u8]>,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock with the state half changed.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The pending fault, as a member in `call` is told of it.
    fn told(&self, call: &Call) -> Option<Fault> {
        let (earlier, fault) = self.fault.as_ref()?;
        let same = (earlier.head, earlier.epoch, earlier.step, earlier.operation)
            == (call.head, call.epoch, call.step, call.operation);
        Some(match same {
            true => fault.clone(),
            false => Fault::Earlier { call: Box::new(*earlier), fault: Box::new(fault.clone()) },
        })
    }

    /// Of the members whose messages are missing, those that have not come to this step: a member that waits in it itself is
    /// held up by another. All of them, where that leaves nobody.
    fn to_blame(&self, call: &Call, missing: Vec<usize>) -> Vec<usize> {
        let held_up = |m: &usize| {
            self.waiting[*m].is_some_and(|w| (w.head, w.epoch, w.step) == (call.head, call.epoch, call.step))
        };
        let absent: Vec<usize> = missing.iter().copied().filter(|m| !held_up(m)).collect();
        if absent.is_empty() { missing } else { absent }
    }
}

impl LocalExchange {
    /// Posts one message to each `(member, bytes)`, under one lock: peers see all of them or none.
    fn post(&self, call: &Call, messages: Vec<(usize, Arc<[u8]>)>) {
        let mut state = self.group.lock();
        for (to, bytes) in messages {
            state.queues[to * self.group.size + self.me].push_back(Message { call: *call, bytes });
        }
        self.group.changed.notify_all();
    }

    /// The next message of each of `from`, in their order.
    fn take(&self, call: &Call, from: &[usize]) -> Result<Vec<Message>, Fault> {
        let queue = |member: usize| self.me * self.group.size + member;
        let mut state = self.group.lock();
        // Messages that arrived before a fault still count, so that all members come to the same end of a step. Not so where
        // the fault was in the making of a head: one that is only half there must not be taken for whole.
        if call.operation == Operation::Create
            && state.fault.as_ref().is_some_and(|(earlier, _)| earlier.operation == Operation::Create)
            && let Some(fault) = state.told(call)
        {
            return Err(fault);
        }
        loop {
            let missing: Vec<usize> =
                from.iter().copied().filter(|&m| state.queues[queue(m)].is_empty()).collect();
            if missing.is_empty() {
                let next = |&m: &usize| state.queues[queue(m)].pop_front().expect("seen above");
                return Ok(from.iter().map(next).collect());
            }
            if let Some(fault) = state.told(call) {
                return Err(fault);
            }
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| state.gone[m]).collect();
            let fault = if !lost.is_empty() {
                Fault::Lost { members: lost }
            } else if call.left().is_zero() {
                Fault::Timeout { missing: state.to_blame(call, missing) }
            } else {
                state.waiting[self.me] = Some(*call);
                // A poisoned lock is recovered as in `lock`.
                let waited = self.group.changed.wait_timeout(state, call.left());
                state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                state.waiting[self.me] = None;
                continue;
            };
            state.fault = Some((*call, fault.clone()));
            self.group.changed.notify_all();
            return Err(fault);
        }
    }

    /// Copies messages into the receive buffers and says what did not fit.
    fn deliver(
        &self,
        call: &Call,
        from: &[usize],
        messages: &[Message],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        let mut other = None;
        for ((&member, message), buffer) in from.iter().zip(messages).zip(recv) {
            let common = buffer.len().min(message.bytes.len());
            buffer[..common].copy_from_slice(&message.bytes[..common]);
            if buffer.len() != message.bytes.len() {
                wrong.push((member, buffer.len(), message.bytes.len()));
            }
            if !message.call.same_as(call) {
                let theirs = message.call.told_to(call);
                other.get_or_insert(Fault::OtherCall { member, theirs });
            }
        }
        match (wrong.is_empty(), other) {
            (false, _) => Err(Fault::Length { peers: wrong }),
            // A member that gave up and went on to something else has said why: that says more than what it went on to. Headers
            // say still more: there the caller looks at what has arrived.
            (true, Some(fault)) => Err(match call.operation {
                Operation::Create | Operation::Contract => fault,
                _ => self.group.lock().told(call).unwrap_or(fault),
            }),
            (true, None) => Ok(()),
        }
    }
}

impl Exchange for LocalExchange {
    fn name(&self) -> &'static str {
        "local"
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn me(&self) -> usize {
        self.me
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        let bytes: Arc<[u8]> = send.into();
        self.post(call, members.iter().map(|&to| (to, Arc::clone(&bytes))).collect());
        let messages = self.take(call, members)?;
        self.deliver(call, members, &messages, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        let everyone: Vec<usize> = (0..self.group.size).collect();
        self.post(call, send.iter().map(|&bytes| bytes.into()).enumerate().collect());
        let messages = self.take(call, &everyone)?;
        self.deliver(call, &everyone, &messages, recv)
    }

    fn abandon(&self, call: &Call, reason: &str) {
        let mut state = self.group.lock();
        state.fault.get_or_insert((*call, Fault::Abandoned { member: self.me, reason: reason.into() }));
        self.group.changed.notify_all();
    }

    fn reset(&self, call: &Call) -> Result<(), Fault> {
        let mut state = self.group.lock();
        let before = state.generation;
        state.resetting[self.me] = true;
        loop {
            if state.generation != before {
                return Ok(());
            }
            if state.resetting.iter().all(|&r| r) {
                state.queues.iter_mut().for_each(VecDeque::clear);
                state.fault = None;
                state.resetting.fill(false);
                state.generation += 1;
                self.group.changed.notify_all();
                return Ok(());
            }
            let missing: Vec<usize> = (0..self.group.size).filter(|&m| !state.resetting[m]).collect();
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| state.gone[m]).collect();
            if !lost.is_empty() || call.left().is_zero() {
                state.resetting[self.me] = false;
                return Err(if lost.is_empty() {
                    Fault::Timeout { missing }
                } else {
                    Fault::Lost { members: lost }
                });
            }
            let waited = self.group.changed.wait_timeout(state, call.left());
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl Drop for LocalExchange {
    fn drop(&mut self) {
        self.group.lock().gone[self.me] = true;
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;
    use std::time::{Duration, Instant};

    fn call(step: u64, ms: u64) -> Call {
        Call {
            head: 1,
            epoch: 0,
            step,
            operation: Operation::GatherRows,
            terms: 0,
            began: Instant::now(),
            timeout: Duration::from_millis(ms),
        }
    }

    /// Runs one closure per member and returns what each returned.
    fn each<T: Send>(size: usize, run: impl Fn(LocalExchange) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = group(size).into_iter().map(|e| scope.spawn(move || run(e))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn uneven_gathers_and_exchanges_arrive_whole() {
        let size = 5;
        each(size, |e| {
            for step in 0..50u64 {
                let len = |m: usize| (m * 7 + step as usize) % 11;
                let mut recv: Vec<Vec<u8>> = (0..size).map(|m| vec![0; len(m)]).collect();
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
                let everyone: Vec<usize> = (0..size).collect();
                e.all_gather_v(&call(step, 9000), &everyone, &vec![e.me() as u8; len(e.me())], &mut slices)
                    .unwrap();
                for (m, got) in recv.iter().enumerate() {
                    assert_eq!(got, &vec![m as u8; len(m)]);
                }
                // member a sends a + b bytes of value 16 a + b to b
                let send: Vec<Vec<u8>> =
                    (0..size).map(|b| vec![(16 * e.me() + b) as u8; e.me() + b]).collect();
                let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
                let mut recv: Vec<Vec<u8>> = (0..size).map(|a| vec![0; a + e.me()]).collect();
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
                e.all_to_all_v(&call(step, 9000), &send, &mut slices).unwrap();
                for (a, got) in recv.iter().enumerate() {
                    assert_eq!(got, &vec![(16 * a + e.me()) as u8; a + e.me()]);
                }
            }
        });
    }

    #[test]
    fn a_subset_gathers_alone() {
        each(4, |e| {
            let members = [e.me() % 2, e.me() % 2 + 2];
            let (mut a, mut b) = ([9u8], [9u8]);
            e.all_gather_v(&call(0, 9000), &members, &[e.me() as u8], &mut [&mut a, &mut b]).unwrap();
            assert_eq!([usize::from(a[0]), usize::from(b[0])], members);
        });
    }

    #[test]
    fn every_rank_that_does_not_come_is_named_to_all_even_to_itself() {
        let here = Barrier::new(2);
        let faults = each(4, |e| {
            if e.me() % 2 == 1 {
                thread::sleep(Duration::from_millis(1500));
            } else {
                here.wait();
            }
            let mut recv = [[0u8; 1]; 4];
            let mut gather = |step| {
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
                e.all_gather_v(&call(step, 500), &[0, 1, 2, 3], &[1], &mut slices)
            };
            // The late ones find the first messages of all, then learn of the fault.
            match gather(0).and_then(|()| gather(1)).unwrap_err() {
                Fault::Earlier { call, fault } => {
                    assert_eq!(call.step, 0);
                    *fault
                }
                fault => fault,
            }
        });
        for fault in faults {
            assert_eq!(fault, Fault::Timeout { missing: vec![1, 3] });
        }
    }

    #[test]
    fn a_member_that_is_held_up_by_another_is_not_blamed() {
        // 0 waits for 2 in a gather of its own; 1 and 3 wait for both of them.
        let faults = each(4, |e| {
            if e.me() == 2 {
                thread::sleep(Duration::from_millis(1500));
                return None;
            }
            let mut recv = [[0u8; 1]; 4];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            Some(if e.me() == 0 {
                e.all_gather_v(&call(0, 9000), &[0, 2], &[1], &mut slices[..2]).unwrap_err()
            } else {
                let (send, results) =
                    ([&[1u8][..]; 4], Call { operation: Operation::ExchangeResults, ..call(0, 500) });
                e.all_to_all_v(&results, &send, &mut slices).unwrap_err()
            })
        });
        for (member, fault) in faults.into_iter().enumerate() {
            let named = match fault {
                Some(Fault::Earlier { fault, .. }) => Some(*fault),
                other => other,
            };
            // 1 and 3 wait for each other too, until both are there.
            assert!(member == 2 || named == Some(Fault::Timeout { missing: vec![2] }), "{member}: {named:?}");
        }
    }

    #[test]
    fn an_earlier_fault_keeps_its_own_call() {
        each(2, |e| {
            let mut recv = [[0u8; 1]; 2];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            if e.me() == 0 {
                e.all_gather_v(&call(3, 9000), &[0, 1], &[1], &mut slices).unwrap();
                e.abandon(&call(4, 9000), "enough");
                return;
            }
            e.all_gather_v(&call(3, 9000), &[0, 1], &[1], &mut slices).unwrap();
            let fault = e.all_gather_v(&call(5, 9000), &[0, 1], &[1], &mut slices).unwrap_err();
            let error = fault.into_error(&call(5, 9000), &[0, 1]).to_string();
            assert!(error.starts_with("step 4:") && error.contains("ranks [0] say enough"), "{error}");
        });
    }

    #[test]
    fn a_dropped_endpoint_is_lost_and_its_last_messages_still_count() {
        each(2, |e| {
            let mut recv = [[0u8; 1]; 2];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            e.all_gather_v(&call(0, 9000), &[0, 1], &[1], &mut slices).unwrap();
            if e.me() == 1 {
                let fault = e.all_gather_v(&call(1, 9000), &[0, 1], &[1], &mut slices).unwrap_err();
                assert_eq!(fault, Fault::Lost { members: vec![0] });
                assert_eq!(e.reset(&call(1, 9000)).unwrap_err(), Fault::Lost { members: vec![0] });
            }
        });
    }

    #[test]
    fn other_lengths_deliver_what_is_common() {
        each(2, |e| {
            let send = vec![7u8; 2 + e.me()];
            let mut recv = [vec![0u8; 2], vec![0u8; 2]];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
            let fault = e.all_gather_v(&call(0, 9000), &[0, 1], &send, &mut slices).unwrap_err();
            assert_eq!(fault, Fault::Length { peers: vec![(1, 2, 3)] });
            assert_eq!(recv, [[7, 7], [7, 7]]);
        });
    }

    #[test]
    fn abandoning_wakes_the_others_and_reset_brings_them_back() {
        each(3, |e| {
            for round in 0..20 {
                let mut recv = [[0u8; 1]; 3];
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
                if e.me() == 2 {
                    e.abandon(&call(round, 9000), "enough");
                } else {
                    let fault =
                        e.all_gather_v(&call(round, 9000), &[0, 1, 2], &[1], &mut slices).unwrap_err();
                    assert_eq!(fault, Fault::Abandoned { member: 2, reason: "enough".into() });
                }
                e.reset(&call(round, 9000)).unwrap();
                e.all_gather_v(&call(round, 9000), &[0, 1, 2], &[e.me() as u8], &mut slices).unwrap();
                assert_eq!(recv, [[0], [1], [2]]);
            }
        });
    }

    #[test]
    fn another_call_is_told_apart() {
        each(2, |e| {
            let mut recv = [[0u8; 1]; 2];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            let fault = e.all_gather_v(&call(e.me() as u64, 9000), &[0, 1], &[1], &mut slices).unwrap_err();
            assert!(matches!(fault, Fault::OtherCall { member, .. } if member != e.me()), "{fault:?}");
        });
    }
}
