//! The exchange over links within the test: queues in memory that deliver in random order between senders,
//! and links that move long frames only while their sender receives.

use super::*;
use crate::exchange::test_call as call;
use lmhead_testkit::Random;
use std::collections::VecDeque;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const SEED: u64 = 20_261_129;

/// Frames of at least so many bytes move only while their sender receives, where a link does not send by
/// itself.
const LONG: usize = 1000;

struct Wires {
    /// By receiver, then by sender.
    queues: Vec<Mutex<Vec<VecDeque<Vec<u8>>>>>,
    arrived: Vec<Condvar>,
    /// Frames under way or read, and buffers given back.
    handed: AtomicUsize,
    given_back: AtomicUsize,
}

struct Wire {
    wires: Arc<Wires>,
    me: usize,
    by_itself: bool,
    random: Mutex<Random>,
    /// Long frames that have not gone out.
    outbox: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl Wire {
    fn put(&self, to: usize, frame: &[u8]) {
        self.wires.queues[to].lock().unwrap()[self.me].push_back(frame.to_vec());
        self.wires.arrived[to].notify_all();
    }
}

impl Link for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn size(&self) -> usize {
        self.wires.queues.len()
    }

    fn me(&self) -> usize {
        self.me
    }

    fn send(&self, to: usize, frame: Arc<Vec<u8>>) {
        let mut outbox = self.outbox.lock().unwrap();
        // In order: what follows a waiting frame waits too.
        if !self.by_itself && (frame.len() >= LONG || outbox.iter().any(|(peer, _)| *peer == to)) {
            outbox.push((to, frame));
        } else {
            self.put(to, &frame);
        }
    }

    fn receive(&self, until: Instant, take: &mut dyn FnMut(Event)) {
        self.outbox.lock().unwrap().drain(..).for_each(|(to, frame)| self.put(to, &frame));
        let mut queues = self.wires.queues[self.me].lock().unwrap();
        loop {
            let waiting: Vec<usize> = (0..queues.len()).filter(|from| !queues[*from].is_empty()).collect();
            let mut random = self.random.lock().unwrap();
            // Now and then a frame is late.
            if !waiting.is_empty() && random.below(3) > 0 {
                let from = waiting[random.below(waiting.len())];
                let bytes = queues[from].pop_front().unwrap();
                drop((queues, random));
                self.wires.handed.fetch_add(1, Ordering::Relaxed);
                take(Event::Frame { from, bytes });
                return;
            }
            drop(random);
            let left = until.saturating_duration_since(Instant::now()).min(Duration::from_micros(50));
            if left.is_zero() {
                return;
            }
            queues = self.wires.arrived[self.me].wait_timeout(queues, left).unwrap().0;
        }
    }

    fn sends_by_itself(&self) -> bool {
        self.by_itself
    }

    fn give_back(&self, _: Vec<u8>) {
        self.wires.given_back.fetch_add(1, Ordering::Relaxed);
    }
}

/// Links of a group of `size` members.
fn wires(size: usize, by_itself: bool, seed: u64) -> Vec<Wire> {
    let wires = Arc::new(Wires {
        queues: (0..size).map(|_| Mutex::new(vec![VecDeque::new(); size])).collect(),
        arrived: (0..size).map(|_| Condvar::new()).collect(),
        handed: AtomicUsize::new(0),
        given_back: AtomicUsize::new(0),
    });
    (0..size)
        .map(|me| Wire {
            wires: Arc::clone(&wires),
            me,
            by_itself,
            random: Mutex::new(Random(seed + me as u64)),
            outbox: Mutex::default(),
        })
        .collect()
}

fn group(size: usize) -> Vec<MessageExchange> {
    wires(size, true, SEED).into_iter().map(MessageExchange::new).collect()
}

/// Runs one closure per member and returns what each returned.
fn each<T: Send>(group: Vec<MessageExchange>, run: impl Fn(MessageExchange) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = group.into_iter().map(|e| scope.spawn(move || run(e))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Gathers a byte of every member.
fn gather(e: &dyn Exchange, call: &Call, byte: u8) -> Result<Vec<u8>, Fault> {
    let everyone: Vec<usize> = (0..e.size()).collect();
    let mut recv = vec![0; e.size()];
    let mut slices: Vec<&mut [u8]> = recv.chunks_mut(1).collect();
    e.all_gather_v(call, &everyone, &[byte], &mut slices).map(|()| recv)
}

#[test]
fn uneven_pieces_arrive_whole_over_links_that_send_by_themselves_and_over_others() {
    println!("seed {SEED}");
    for (size, by_itself) in [(5, true), (4, false)] {
        let links = wires(size, by_itself, SEED);
        let counters = Arc::clone(&links[0].wires);
        each(links.into_iter().map(MessageExchange::new).collect(), |e| {
            let mut random = Random(SEED);
            for step in 0..200u64 {
                // From every member to every member; some pieces are empty, some long.
                let lengths: Vec<usize> =
                    (0..size * size).map(|_| random.below(3) * random.below(900)).collect();
                let length = |from: usize, to: usize| lengths[from * size + to];
                let byte = |from: usize, to: usize| (step as usize + 31 * from + 7 * to) as u8;
                let send: Vec<Vec<u8>> =
                    (0..size).map(|to| vec![byte(e.me(), to); length(e.me(), to)]).collect();
                let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
                let mut recv: Vec<Vec<u8>> = (0..size).map(|from| vec![0; length(from, e.me())]).collect();
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
                e.all_to_all_v(&call(step, 9000), &send, &mut slices).unwrap();
                for (from, got) in recv.iter().enumerate() {
                    assert_eq!(got, &vec![byte(from, e.me()); length(from, e.me())], "step {step}");
                }
                // A gather over every other member, of what each sends to itself above.
                let members: Vec<usize> = (0..size).filter(|m| m % 2 == e.me() % 2).collect();
                let mut recv: Vec<Vec<u8>> = members.iter().map(|&m| vec![0; length(m, m)]).collect();
                let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
                e.all_gather_v(&call(step, 9000), &members, send[e.me()], &mut slices).unwrap();
                for (&from, got) in members.iter().zip(&recv) {
                    assert_eq!(got, &vec![byte(from, from); length(from, from)], "step {step}");
                }
            }
        });
        // All that was handed over came back, except what a member had not read when it ended.
        let [handed, back] = [&counters.handed, &counters.given_back].map(|n| n.load(Ordering::Relaxed));
        assert!(back <= handed && handed - back <= size * size, "{handed} handed over, {back} given back");
    }
}

/// A frame that moves only while its sender receives has gone out when its call returns.
#[test]
fn a_call_over_a_link_that_does_not_send_by_itself_leaves_nothing_behind() {
    let links = wires(2, false, SEED);
    each(links.into_iter().map(MessageExchange::new).collect(), |e| {
        let (mut a, mut b) = (vec![0; 5000], vec![0; 5000]);
        e.all_gather_v(&call(0, 9000), &[0, 1], &[e.me() as u8 + 1; 5000], &mut [&mut a, &mut b]).unwrap();
        assert_eq!((a, b), (vec![1; 5000], vec![2; 5000]));
        if e.me() == 0 {
            // It receives nothing more for longer than the peer would wait for its piece.
            thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn channels_do_not_meet_and_threads_of_one_member_wait_at_the_same_time() {
    each(group(3), |e| {
        let channels: Vec<_> = (0..4).map(|head| e.channel(head / 2).unwrap()).collect();
        assert_eq!(channels.iter().map(|(instance, _)| *instance).collect::<Vec<_>>(), [0, 1, 0, 1]);
        thread::scope(|scope| {
            for (i, (_, channel)) in channels.iter().enumerate() {
                scope.spawn(move || {
                    for step in 0..200 {
                        if channel.me() == i % 3 {
                            thread::sleep(Duration::from_micros(20));
                        }
                        assert_eq!(gather(&**channel, &call(step, 9000), i as u8), Ok(vec![i as u8; 3]));
                    }
                });
            }
        });
    });
}

#[test]
fn who_does_not_come_is_named_on_all_by_the_deadline() {
    let (waited, together) = (Barrier::new(4), Barrier::new(4));
    let answers = each(group(4), |e| {
        gather(&e, &call(0, 9000), 1).unwrap();
        let began = Instant::now();
        let answer = if e.me() == 2 {
            waited.wait();
            // The others' pieces of this call are there: they came before the fault.
            let first = gather(&e, &call(1, 9000), 1);
            (first.and_then(|_| gather(&e, &call(2, 150), 1)), Duration::ZERO)
        } else {
            let answer = (gather(&e, &call(1, 150), 1), began.elapsed());
            waited.wait();
            answer
        };
        // Nobody leaves before all have been told.
        together.wait();
        answer
    });
    for (me, (result, took)) in answers.into_iter().enumerate() {
        let named = match result.unwrap_err() {
            Fault::Timeout { missing } => missing,
            Fault::Earlier { fault, .. } => match *fault {
                Fault::Timeout { missing } => missing,
                other => panic!("member {me}: {other:?}"),
            },
            other => panic!("member {me}: {other:?}"),
        };
        assert_eq!(named, [2], "member {me}");
        assert!(took < Duration::from_millis(1300), "member {me}: {took:?}");
    }
}

#[test]
fn a_fault_of_another_thread_ends_the_wait_at_once() {
    let mut two = group(2);
    let (b, a) = (two.pop().unwrap(), two.pop().unwrap());
    thread::scope(|scope| {
        let waits = scope.spawn(|| (Instant::now(), gather(&a, &call(3, 60_000), 1), Instant::now()));
        thread::sleep(Duration::from_millis(20));
        // By the member's own other thread; its peer learns of it too.
        a.notify_abort(&call(3, 60_000), "shut down");
        let (began, result, ended) = waits.join().unwrap();
        let told = Fault::Aborted { member: 0, reason: "shut down".into() };
        assert_eq!(result, Err(told.clone()));
        assert!(ended - began < Duration::from_secs(5));
        // Member 0 had sent its piece of this call before.
        assert_eq!(gather(&b, &call(3, 60_000), 2), Ok(vec![1, 2]));
        let earlier = gather(&b, &call(4, 60_000), 1).unwrap_err();
        assert!(matches!(&earlier, Fault::Earlier { fault, .. } if **fault == told), "{earlier:?}");
    });
}

#[test]
fn a_member_that_leaves_is_lost_in_that_channel_or_in_all() {
    each(group(2), |e| {
        let (_, a) = e.channel(5).unwrap();
        let (_, b) = e.channel(6).unwrap();
        assert_eq!(gather(&*a, &call(0, 9000), 1), Ok(vec![1; 2]));
        if e.me() == 0 {
            drop(a);
        } else {
            assert_eq!(gather(&*a, &call(1, 9000), 1), Err(Fault::Lost { members: vec![0] }));
            assert_eq!((a.gone(), b.gone()), (vec![0], vec![]), "of the one channel");
        }
        assert_eq!(gather(&*b, &call(0, 9000), 2), Ok(vec![2; 2]));
        if e.me() == 0 {
            drop((e, b));
        } else {
            let (_, late) = e.channel(9).unwrap();
            assert_eq!(gather(&*late, &call(0, 9000), 1), Err(Fault::Lost { members: vec![0] }));
            assert_eq!((b.gone(), late.gone()), (vec![0], vec![0]), "of all");
        }
    });
}

/// The same test as over `local`.
#[test]
fn a_late_member_passes_over_what_its_peers_left_and_joins_the_latest() {
    let endpoints = group(2);
    let open = |me: usize| endpoints[me].channel(7).unwrap();
    // What a member has sent comes late now and then, so that a peer asks again.
    let poll = |me: usize| (0..50).for_each(|_| drop(endpoints[me].member.up_to_date()));
    drop((open(0).1, open(0).1));
    let waiting = open(0);
    waiting.1.note(&Call { head: 7, instance: 2, ..call(0, 9000) });
    poll(1);
    let joined = open(1);
    assert_eq!((waiting.0, joined.0), (2, 2));
    drop((waiting, joined));
    poll(0);
    poll(1);
    let create = Call { head: 7, operation: Operation::Create, ..call(0, 9000) };
    endpoints[0].notify_abort(&create, "no weights");
    poll(1);
    let (instance, told) = open(1);
    let refused = Fault::Aborted { member: 0, reason: "no weights".into() };
    assert_eq!((instance, told.pending_fault().map(|(_, fault)| fault)), (3, Some(refused)));
    drop(told);
    poll(0);
    assert_eq!((open(0).0, open(1).0), (4, 4));
    for e in &endpoints {
        (0..2).for_each(poll);
        let open = e.member.lock().channels.len();
        assert!(open <= 1, "{open} channels are remembered");
    }
}

#[test]
fn another_call_and_other_lengths_are_named() {
    each(group(3), |e| {
        let own = Call { step: if e.me() == 1 { 8 } else { 7 }, ..call(7, 9000) };
        let fault = gather(&e, &own, 1).unwrap_err();
        let (member, words) = if e.me() == 1 { (0, "of step 7") } else { (1, "of step 8") };
        let Fault::OtherCall { member: named, theirs } = &fault else { panic!("{fault:?}") };
        assert!(*named == member && theirs.contains(words), "{fault:?}");
        let mut recv = [[0u8; 4]; 3];
        let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
        let send = vec![5; if e.me() == 2 { 6 } else { 4 }];
        let fault = e.all_gather_v(&call(9, 9000), &[0, 1, 2], &send, &mut slices).unwrap_err();
        assert_eq!(fault, Fault::Length { peers: vec![(2, 4, 6)] });
        assert_eq!(recv, [[5; 4]; 3], "what fits is there");
    });
}

#[test]
fn places_say_where_members_are_here_and_elsewhere() {
    each(group(2), |e| {
        let (_, a) = e.channel(1).unwrap();
        let (_, b) = e.channel(2).unwrap();
        let at = |head, step, operation| Call { head, operation, ..call(step, 9000) };
        if e.me() == 1 {
            a.note(&at(1, 5, Operation::Idle));
            b.note(&at(2, 3, Operation::Contract));
        }
        // Both notes have come before the gather ends.
        gather(&e, &call(0, 9000), 1).unwrap();
        if e.me() == 0 {
            let seen = |places: Vec<Option<Place>>| places[1].map(|p| (p.head, p.step, p.operation));
            assert_eq!(seen(a.places()), Some((1, 5, Operation::Idle)));
            assert_eq!(seen(b.places()), Some((2, 3, Operation::Contract)));
            assert_eq!(seen(b.places_elsewhere()).map(|(head, ..)| head), Some(0), "the gather");
        }
        gather(&e, &call(1, 9000), 1).unwrap();
    });
}

/// A frame that is no message, from a peer of another version or from a transport that damages bytes.
#[test]
fn a_damaged_frame_is_refused_by_name_and_nobody_hangs() {
    for damage in [vec![], vec![7; 64], vec![0xff; 4096]] {
        let mut links = wires(2, true, SEED);
        let bad = links.pop().unwrap();
        let good = MessageExchange::new(links.pop().unwrap());
        bad.put(0, &damage);
        let began = Instant::now();
        let fault = gather(&good, &call(0, 60_000), 1).unwrap_err();
        assert!(
            matches!(&fault, Fault::Broken { problem, fix }
                if problem.contains("member 1") && fix.contains("same version")),
            "{fault:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(matches!(good.reset(&call(0, 60_000)), Err(Fault::Broken { .. })));
    }
}

/// Who gathers with whom in each call of a random program: lists of members, each member in one of them, as
/// with tensor parallelism; every other time one list of all. With `some_sit_out`, which no head does, one
/// of several lists does not gather.
fn random_program(random: &mut Random, size: usize, some_sit_out: bool) -> Vec<Vec<Vec<usize>>> {
    let mut lists = || {
        let parts = 1 + random.below(2) * random.below(size);
        let mut lists = vec![Vec::new(); parts];
        (0..size).for_each(|member| lists[random.below(parts)].push(member));
        lists.truncate(if some_sit_out { (parts - 1).max(1) } else { parts });
        lists
    };
    let mut program: Vec<_> = (0..14).map(|_| lists()).collect();
    // A last gather of all: a member that was alone behind the abort learns of it here.
    program.push(vec![(0..size).collect()]);
    program
}

/// All members come to the same end, whichever frame is late: a gather of all that one member completes, all
/// complete; behind the abort nobody completes one; and everybody is told of it at once, not at the deadline.
/// Each call is a step of its own, so that a member may learn of the abort in an earlier or a later one.
/// Where some sit a gather out, they count their calls differently: then all that holds is that everybody is
/// told.
#[test]
fn random_aborts_end_in_the_same_step_on_all_members() {
    println!("seed {SEED}");
    for (size, some_sit_out) in (2..=5).flat_map(|size| [(size, false), (size, true)]) {
        each(group(size), |e| {
            // Every member makes the same choices.
            let mut random = Random(SEED + size as u64);
            for round in 0..100u32 {
                let program = random_program(&mut random, size, some_sit_out);
                let (breaker, at) = (random.below(size), random.below(program.len()));
                let broken = Fault::Aborted { member: breaker, reason: format!("round {round}") };
                let is_whole = |lists: &[Vec<usize>]| lists[0].len() == size;
                let whole_before = program[..at].iter().filter(|lists| is_whole(lists)).count();
                let mut whole = 0;
                let fault = program.iter().enumerate().find_map(|(step, lists)| {
                    let own = Call { epoch: round, ..call(step as u64, 20_000) };
                    if e.me() == breaker && step == at {
                        e.notify_abort(&own, &format!("round {round}"));
                        return Some(broken.clone());
                    }
                    let members = lists.iter().find(|list| list.contains(&e.me()))?;
                    let mut recv = vec![[0u8]; members.len()];
                    let mut slices: Vec<&mut [u8]> = recv.iter_mut().map(|r| &mut r[..]).collect();
                    let sent = [16 * step as u8 + e.me() as u8];
                    e.all_gather_v(&own, members, &sent, &mut slices).err().or_else(|| {
                        let of = |member: usize| [16 * step as u8 + member as u8];
                        assert!(recv.iter().zip(members).all(|(got, &member)| *got == of(member)));
                        whole += usize::from(is_whole(lists));
                        None
                    })
                });
                let told = match fault {
                    Some(Fault::Earlier { call, fault }) => {
                        assert_eq!(call.step, at as u64, "{size} members, round {round}");
                        Some(*fault)
                    }
                    fault => fault,
                };
                let what = format!("{size} members, round {round}: {:?}", &program[..=at]);
                assert_eq!(told, Some(broken), "{what}");
                assert!(some_sit_out || whole == whole_before, "{what}: {whole} of {whole_before}");
                assert_eq!(e.reset(&Call { epoch: round, ..call(0, 20_000) }), Ok(Reset::Done));
                assert_eq!(gather(&e, &Call { epoch: round, ..call(99, 20_000) }, 3), Ok(vec![3; size]));
            }
        });
    }
}

#[test]
fn a_thousand_resets_leave_nothing_behind() {
    each(group(3), |e| {
        let (_, channel) = e.channel(4).unwrap();
        for round in 0..1000u32 {
            let at = |step| Call { epoch: round, head: 4, ..call(step, 20_000) };
            if e.me() == round as usize % 3 {
                channel.notify_abort(&at(0), "on purpose");
            } else {
                gather(&*channel, &at(0), 1).unwrap_err();
            }
            assert_eq!(channel.reset(&at(1)), Ok(Reset::Done));
            assert_eq!(gather(&*channel, &at(2), 2), Ok(vec![2; 3]));
        }
        let mut state = e.member.lock();
        assert_eq!(state.channels.len(), 1);
        let channel = state.channel((4, 0));
        assert_eq!(channel.generation, 1000);
        // Peers that are ahead may have sent their last step already.
        assert!(channel.faults.is_empty() && channel.queues.iter().all(VecDeque::is_empty));
    });
}

#[test]
fn arguments_that_do_not_fit_are_refused_by_name() {
    let e = group(2).remove(1);
    let (mut a, mut b) = ([0u8], [0u8]);
    for members in [&[0, 2][..], &[1, 0], &[0], &[0, 1, 7]] {
        let fault = e.all_gather_v(&call(0, 50), members, &[1], &mut [&mut a, &mut b]).unwrap_err();
        assert!(matches!(&fault, Fault::Broken { problem, .. } if problem.contains("of 0..2")), "{fault:?}");
    }
    let fault = e.all_to_all_v(&call(0, 50), &[&[1]], &mut [&mut a, &mut b]).unwrap_err();
    assert!(matches!(&fault, Fault::Broken { problem, .. } if problem.contains("wanted 2 pieces to send")));
}
