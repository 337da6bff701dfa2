//! Ranks as threads of one process: a log of messages per sender, one lock per channel.
//!
//! A rank waits only here, on its own OS thread, and never past its deadline. It is woken once: when the last
//! message that it waits for has come, or when the channel fails. A rank that fails tells the channel by a
//! fault that every waiting peer sees at once. A rank whose endpoint is dropped (its thread ended or
//! panicked) is seen as lost.
//!
//! A message is copied once by its sender and once by each receiver, outside of the lock unless it is small.
//! Under the lock a call does work in proportion to the number of members, so that groups of hundreds of
//! threads can be run in one process. A call allocates where it sends more bytes or has more members than
//! any before it, or ends in a fault; otherwise it allocates nothing.

mod channel;
mod post;

use super::{Call, Exchange, Fault, Operation, Place, Reset, check_members, check_pieces};
use crate::lock::lock;
use crate::process::Maker;
use channel::{Channel, Creation, Delivery};
use post::Outgoing;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One member's endpoint of a group within the process: of the group's first channel, or of a head's own.
#[derive(Debug)]
pub struct LocalExchange {
    member: Arc<Member>,
    channel: Arc<Channel>,
    /// The group's first channel, from which the heads open theirs.
    is_first: bool,
}

/// Makes the endpoints of a group of `size` members; endpoint m is member m's.
pub fn group(size: usize) -> Vec<LocalExchange> {
    let transport = Arc::new(Transport {
        everyone: (0..size).collect(),
        maker: Maker::here(),
        channels: Mutex::new(Channels { open: HashMap::new(), gone: vec![false; size] }),
        places: (0..size).map(|_| Mutex::new(None)).collect(),
    });
    let channel = Arc::new(Channel::new(vec![false; size]));
    (0..size)
        .map(|me| {
            let opened = Mutex::new(HashMap::new());
            let member = Arc::new(Member { transport: Arc::clone(&transport), me, opened });
            LocalExchange { member, channel: Arc::clone(&channel), is_first: true }
        })
        .collect()
}

/// What the members share beside the messages.
#[derive(Debug)]
struct Transport {
    /// All members, ascending.
    everyone: Vec<usize>,
    /// The process that made it. In one that was forked from it the peers have no threads, and one of these
    /// may have held any lock.
    maker: Maker,
    channels: Mutex<Channels>,
    /// The last call that each member noted, in whatever channel, and when.
    places: Vec<Mutex<Noted>>,
}

#[derive(Debug)]
struct Channels {
    /// By head and instance, until every member has left.
    open: HashMap<(u32, u32), Arc<Channel>>,
    /// Members without any endpoint left: they will open no further channel.
    gone: Vec<bool>,
}

/// A member's side of the transport: lives as long as any of its endpoints.
#[derive(Debug)]
struct Member {
    transport: Arc<Transport>,
    me: usize,
    /// By head: the number of channels that this member has opened or passed over.
    opened: Mutex<HashMap<u32, u32>>,
}

/// A call that a member noted, and when.
type Noted = Option<(Call, Instant)>;

fn place((call, at): (Call, Instant)) -> Place {
    call.place(at.elapsed())
}

impl LocalExchange {
    /// What each member noted last: in this channel, and in any channel.
    fn noted(&self) -> impl Iterator<Item = (Noted, Noted)> {
        let places = self.channel.places.iter().zip(&self.member.transport.places);
        places.map(|(here, anywhere)| (*lock(here), *lock(anywhere)))
    }

    fn is_here(&self) -> bool {
        self.member.transport.maker.is_here()
    }

    /// Refuses in a forked process.
    fn check_process(&self) -> Result<(), Fault> {
        self.member.transport.maker.check("the exchange").map_err(|error| Fault::Broken {
            problem: error.to_string(),
            fix: "ranks of one process are its threads".into(),
        })
    }

    /// Sends `outgoing`, and puts the next message of each of `from` into `recv`, in the same order.
    fn exchange(
        &self,
        call: &Call,
        outgoing: Outgoing<'_>,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        let me = self.member.me;
        let Delivery { wrong, other } = self.channel.exchange(me, call, outgoing, from, recv)?;
        match (wrong.is_empty(), other) {
            (false, _) => Err(Fault::Length { peers: wrong }),
            // A member that gave up and went on to another call has said why, which says more than that call
            // does. Headers say still more: there the caller looks at what has arrived.
            (true, Some(fault)) => Err(match call.operation.has_headers() {
                true => fault,
                false => self.channel.told(call).unwrap_or(fault),
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
        self.member.transport.everyone.len()
    }

    fn me(&self) -> usize {
        self.member.me
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        self.check_process()?;
        let me = self.member.me;
        let mut opened = lock(&self.member.opened);
        let next = opened.entry(head).or_default();
        let mut channels = lock(&self.member.transport.channels);
        // A channel that a peer gave up before this member came belongs to a creation that has failed. Where
        // the peers have begun another one, this member joins that. Otherwise it joins the last one that a
        // peer refused, since it has yet to learn of that; one in which a peer waited for it in vain is
        // passed over.
        let mut refused = None;
        let mut instance = *next;
        while let Some(channel) = channels.open.get(&(head, instance)) {
            match channel.state_of_creation() {
                Creation::Open => {
                    refused = None;
                    break;
                }
                Creation::Refused => refused = Some(instance),
                Creation::Failed => {}
            }
            instance += 1;
        }
        let instance = refused.unwrap_or(instance);
        for passed in *next..instance {
            if channels.open.get(&(head, passed)).is_some_and(|channel| channel.leave(me)) {
                channels.open.remove(&(head, passed));
            }
        }
        *next = instance + 1;
        let gone = channels.gone.clone();
        let entry = channels.open.entry((head, instance));
        let channel = Arc::clone(entry.or_insert_with(|| Arc::new(Channel::new(gone))));
        Ok((instance, Arc::new(LocalExchange { member: Arc::clone(&self.member), channel, is_first: false })))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        self.check_process()?;
        check_members(self.size(), self.member.me, members, recv.len())?;
        self.exchange(call, Outgoing::Same { to: members, bytes: send }, members, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        self.check_process()?;
        check_pieces(self.size(), send.len(), recv.len())?;
        self.exchange(call, Outgoing::Pieces(send), &self.member.transport.everyone, recv)
    }

    fn note(&self, call: &Call) {
        if !self.is_here() {
            return;
        }
        let noted = Some((*call, Instant::now()));
        *lock(&self.channel.places[self.member.me]) = noted;
        *lock(&self.member.transport.places[self.member.me]) = noted;
    }

    fn places(&self) -> Vec<Option<Place>> {
        if !self.is_here() {
            return vec![None; self.size()];
        }
        let seen = |(here, anywhere): (Noted, Noted)| here.or(anywhere).map(place);
        self.noted().map(seen).collect()
    }

    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        if !self.is_here() {
            return vec![None; self.size()];
        }
        let later = |(here, anywhere): (Noted, Noted)| {
            let (here, anywhere) = (here?, anywhere?);
            let channel = |(call, _): &(Call, Instant)| (call.head, call.instance);
            (channel(&here) != channel(&anywhere) && here.1 < anywhere.1).then(|| place(anywhere))
        };
        self.noted().map(later).collect()
    }

    fn release_memory(&self) {
        if self.is_here() {
            self.channel.release_memory(self.member.me);
        }
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        self.is_here().then(|| self.channel.pending_fault())?
    }

    fn gone(&self) -> Vec<usize> {
        if self.is_here() { self.channel.gone() } else { Vec::new() }
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        if !self.is_here() {
            return;
        }
        let unopened = self.is_first && call.operation == Operation::Create;
        if !unopened {
            self.channel.give_up(call, Fault::Aborted { member: self.member.me, reason: reason.into() });
        } else if let Ok((instance, own)) = self.channel(call.head) {
            own.notify_abort(&Call { instance, ..*call }, reason);
        }
    }

    fn notify_fault(&self, call: &Call, fault: &Fault) {
        if self.is_here() {
            self.channel.give_up(call, fault.clone());
        }
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        self.check_process()?;
        self.channel.reset(self.member.me, call).map(|()| Reset::Done)
    }
}

impl Drop for LocalExchange {
    fn drop(&mut self) {
        if self.is_here() && self.channel.leave(self.member.me) {
            let channel = &self.channel;
            lock(&self.member.transport.channels).open.retain(|_, open| !Arc::ptr_eq(open, channel));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.transport.maker.is_here() {
            return;
        }
        let mut channels = lock(&self.transport.channels);
        channels.gone[self.me] = true;
        // Channels that this member has never opened: peers that wait for it there wait for nobody.
        channels.open.retain(|_, channel| !channel.leave(self.me));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::test_call as call;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

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
                e.notify_abort(&call(4, 9000), "enough");
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
    fn an_abort_wakes_the_others_and_reset_brings_them_back() {
        each(3, |e| {
            for round in 0..20 {
                let mut recv = [[0u8; 1]; 3];
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
                if e.me() == 2 {
                    e.notify_abort(&call(round, 9000), "enough");
                } else {
                    let fault =
                        e.all_gather_v(&call(round, 9000), &[0, 1, 2], &[1], &mut slices).unwrap_err();
                    assert_eq!(fault, Fault::Aborted { member: 2, reason: "enough".into() });
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

    #[test]
    fn channels_do_not_meet_and_a_left_one_is_lost() {
        each(2, |e| {
            let (first, a) = e.channel(7).unwrap();
            let (second, b) = e.channel(7).unwrap();
            let (other, c) = e.channel(8).unwrap();
            assert_eq!([first, second, other], [0, 1, 0]);
            let gather = |on: &dyn Exchange, byte: u8| {
                let mut recv = [[0u8; 1]; 2];
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
                on.all_gather_v(&call(0, 9000), &[0, 1], &[byte], &mut slices).map(|()| recv)
            };
            // In another order on each member, by one thread for each channel.
            thread::scope(|scope| {
                let mut all = [(&a, 1u8), (&b, 2), (&c, 3)];
                if e.me() == 1 {
                    all.reverse();
                }
                for (on, byte) in all {
                    scope.spawn(move || assert_eq!(gather(&**on, byte), Ok([[byte]; 2])));
                }
            });
            if e.me() == 0 {
                drop(a);
            } else {
                assert_eq!(gather(&*a, 1), Err(Fault::Lost { members: vec![0] }));
            }
            assert_eq!(gather(&*b, 4), Ok([[4]; 2]));
            // A member that leaves altogether is lost in channels that it never opened.
            if e.me() == 0 {
                drop((e, b, c));
            } else {
                let (_, late) = e.channel(9).unwrap();
                assert_eq!(gather(&*late, 1), Err(Fault::Lost { members: vec![0] }));
            }
        });
    }

    #[test]
    fn channels_that_all_have_left_are_forgotten() {
        let endpoints = group(2);
        for _ in 0..10 {
            let channels: Vec<_> = endpoints.iter().map(|e| e.channel(7).unwrap()).collect();
            assert_eq!(lock(&endpoints[0].member.transport.channels).open.len(), 1);
            drop(channels);
            assert!(lock(&endpoints[0].member.transport.channels).open.is_empty());
        }
    }

    #[test]
    fn a_late_member_passes_over_what_its_peers_left_and_joins_the_latest() {
        let endpoints = group(2);
        let open = |me: usize| endpoints[me].channel(7).unwrap();
        // Member 0 fails twice, then waits; member 1 joins it there.
        drop((open(0).1, open(0).1));
        let waiting = open(0);
        let joined = open(1);
        assert_eq!((waiting.0, joined.0), (2, 2));
        drop((waiting, joined));
        // Member 0 refuses before member 1 has come: member 1 is told.
        let create = Call { head: 7, operation: Operation::Create, ..call(0, 9000) };
        endpoints[0].notify_abort(&create, "no weights");
        let (instance, told) = open(1);
        let refused = Fault::Aborted { member: 0, reason: "no weights".into() };
        assert_eq!((instance, told.pending_fault().map(|(_, fault)| fault)), (3, Some(refused)));
        drop(told);
        assert_eq!((open(0).0, open(1).0), (4, 4));
        // Where the peer already tries again, its refusal is passed over.
        endpoints[1].notify_abort(&create, "no weights");
        let again = open(1);
        assert_eq!((again.0, open(0).0), (6, 6));
        assert_eq!(lock(&endpoints[0].member.transport.channels).open.len(), 1);
    }

    #[test]
    fn messages_for_a_part_of_the_members_do_not_stay_for_the_others() {
        each(4, |e| {
            for step in 0..100 {
                let pair = [e.me() % 2, e.me() % 2 + 2];
                let (mut a, mut b) = ([9u8], [9u8]);
                e.all_gather_v(&call(step, 9000), &pair, &[e.me() as u8], &mut [&mut a, &mut b]).unwrap();
                assert_eq!([usize::from(a[0]), usize::from(b[0])], pair);
            }
            let mut recv = [[0u8; 1]; 4];
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            e.all_gather_v(&call(100, 9000), &[0, 1, 2, 3], &[e.me() as u8], &mut slices).unwrap();
            assert_eq!(recv, [[0], [1], [2], [3]]);
            let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
            e.all_gather_v(&call(101, 9000), &[0, 1, 2, 3], &[0], &mut slices).unwrap();
            assert!(e.channel.kept() <= 4 * 9, "{} messages", e.channel.kept());
        });
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused_by_name() {
        let e = group(2).remove(1);
        let (mut a, mut b) = ([0u8], [0u8]);
        for members in [&[0, 2][..], &[1, 0], &[0], &[0, 1, 7]] {
            let fault = e.all_gather_v(&call(0, 50), members, &[1], &mut [&mut a, &mut b]).unwrap_err();
            assert!(
                matches!(&fault, Fault::Broken { problem, .. } if problem.contains("of 0..2")),
                "{fault:?}"
            );
        }
        let fault = e.all_gather_v(&call(0, 50), &[0, 1], &[1], &mut [&mut a]).unwrap_err();
        assert!(
            matches!(&fault, Fault::Broken { problem, .. } if problem.contains("wanted 2 receive buffers"))
        );
        let fault = e.all_to_all_v(&call(0, 50), &[&[1]], &mut [&mut a, &mut b]).unwrap_err();
        assert!(
            matches!(&fault, Fault::Broken { problem, .. } if problem.contains("wanted 2 pieces to send"))
        );
    }

    #[test]
    fn hundreds_of_members_meet() {
        for size in [256, 512] {
            let endpoints = group(size);
            let everyone: Vec<usize> = (0..size).collect();
            thread::scope(|scope| {
                for e in &endpoints {
                    let everyone = &everyone;
                    scope.spawn(move || {
                        for step in 0..3 {
                            let mut recv = vec![0u8; 2 * size];
                            let mut slices: Vec<&mut [u8]> = recv.chunks_mut(2).collect();
                            let mine = (e.me() as u16).to_le_bytes();
                            e.all_gather_v(&call(step, 30_000), everyone, &mine, &mut slices).unwrap();
                            let got =
                                recv.as_chunks::<2>().0.iter().map(|b| usize::from(u16::from_le_bytes(*b)));
                            assert!(got.eq(0..size));
                        }
                    });
                }
            });
        }
    }

    /// Waits until `member` waits for a reset.
    fn await_resetting(e: &LocalExchange, member: usize) {
        while !e.channel.is_resetting(member) {
            thread::yield_now();
        }
    }

    #[test]
    fn a_try_to_reset_that_one_gives_up_ends_for_all_who_wait_and_the_next_comes_about() {
        each(3, |e| {
            let rebuild = |ms| Call { operation: Operation::Rebuild, ..call(0, ms) };
            for _ in 0..50 {
                if e.me() == 2 {
                    (0..2).for_each(|member| await_resetting(&e, member));
                    e.notify_abort(&rebuild(9000), "not yet");
                } else {
                    let fault = Fault::Aborted { member: 2, reason: "not yet".into() };
                    assert_eq!(e.reset(&rebuild(9000)), Err(fault));
                }
                assert_eq!(e.reset(&rebuild(9000)), Ok(Reset::Done));
            }
        });
    }

    #[test]
    fn members_that_tried_to_reset_unequally_often_meet_in_the_next_try_of_all() {
        let together = Barrier::new(3);
        each(3, |e| {
            let rebuild = |ms| Call { operation: Operation::Rebuild, ..call(0, ms) };
            for tries in 0..4 {
                // Alone, member 0 waits in vain; then member 1 gives up without having waited.
                (0..tries).filter(|_| e.me() == 0).for_each(|_| {
                    let fault = e.reset(&rebuild(20)).unwrap_err();
                    assert_eq!(fault, Fault::Timeout { missing: vec![1, 2] });
                });
                together.wait();
                if e.me() == 1 {
                    (0..tries).for_each(|_| e.notify_abort(&rebuild(20), "not yet"));
                }
                together.wait();
                assert_eq!(e.reset(&rebuild(9000)), Ok(Reset::Done));
            }
        });
    }
}
