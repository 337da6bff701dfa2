//! Faults of heads over NCCL: every rank gets an error that says what happened, within the deadline plus a
//! second, and the rebuilt head answers as before.

use super::{all_are_destroyed, backend, device, each, group, knew, on_nccl, resident, test_head};
use lmhead::Error;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::KernelDevice;
use lmhead::config::{HeadConfig, Verify};
use lmhead::exchange::{Call, Exchange, Fault, Operation, Piece};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_testkit::TestHead;
use lmhead_testkit::product::shared_device::call;
use lmhead_testkit::requests::{Resident, ResidentRank};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_millis(1500);

/// Configuration of steps with that deadline, which begin with a collective on the device.
fn config(test: &TestHead, name: &str) -> HeadConfig {
    let (name, verify, timeout) = (name.into(), Verify::WarmUp, DEADLINE);
    HeadConfig { name, verify, timeout, ..test.config() }
}

/// The error of a rank's call that must fail within the deadline plus a second.
fn ended<T: std::fmt::Debug>(fault: &str, rank: usize, call: impl FnOnce() -> lmhead::Result<T>) -> Error {
    let began = Instant::now();
    let error = call().expect_err(fault);
    let took = began.elapsed();
    println!("{error}");
    knew(fault, rank, took);
    assert!(took < DEADLINE + Duration::from_secs(1), "{fault}, rank {rank}: {took:?}: {error}");
    error
}

#[test]
fn faults_of_nccl_end_on_every_rank_and_the_rebuilt_head_answers() {
    on_nccl("faults::in_child_faults", &[("FAKE_NCCL_RANK", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: faults_of_nccl_end_on_every_rank_and_the_rebuilt_head_answers runs it"]
fn in_child_faults() {
    const RANKS: usize = 3;
    // What happens to rank 1, and words of every rank's error.
    let faults = [
        ("STALL", "1", "no end on the device within 1.5s; every member has come to it"),
        (
            "LOST",
            "1",
            "remote process exited or there was a network error (code 6): socketProgress: Connection closed",
        ),
        ("ASYNC", "6", "remote process exited or there was a network error (code 6): an injected error"),
        ("ASYNC", "3", "internal error - please report this issue to the NCCL developers (code 3)"),
        (
            "ERROR",
            "2",
            "unhandled system error (run with NCCL_DEBUG=INFO for details) (code 2): an injected error",
        ),
        // An unknown code of some later version.
        ("ASYNC", "77", "unknown result code (code 77)"),
    ];
    let (resident, test, fake) = (resident(RANKS), test_head(), FakeNccl::loaded());
    let meeting = Barrier::new(RANKS);
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config(&test, "a"), exchange).expect("a head");
        let wanted = ResidentRank::wanted(&resident, &test, me);
        for (name, value, words) in faults {
            assert_eq!(rank.step().expect("a step"), wanted, "rank {me} before {name}={value}");
            if meeting.wait().is_leader() {
                fake.set(name, Some(value));
            }
            meeting.wait();
            let error = ended(&format!("{name}={value}"), me, || rank.step());
            assert!(error.to_string().contains(words), "rank {me}, {name}={value}: {error}");
            let refused = rank.step().expect_err("a poisoned head");
            assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
            if meeting.wait().is_leader() {
                fake.set(name, None);
            }
            meeting.wait();
            rank.head.rebuild().expect("a rebuilt head");
        }
        assert_eq!(rank.step().expect("a step"), wanted);
    });
    all_are_destroyed();
    assert_eq!(fake.count("made"), (RANKS * (1 + faults.len())) as i64, "one for each rebuilding");
}

#[test]
fn who_does_not_come_or_is_in_another_head_is_named() {
    on_nccl("faults::in_child_absent", &[]);
}

#[test]
#[ignore = "needs the fake libraries: who_does_not_come_or_is_in_another_head_is_named runs it"]
fn in_child_absent() {
    const RANKS: usize = 3;
    let (resident, test, meeting) = (resident(RANKS), test_head(), Barrier::new(RANKS));
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let make = |name| ResidentRank::new(&resident, &test, &config(&test, name), Arc::clone(&exchange));
        let (mut a, mut b) = (make("a").expect("a head"), make("b").expect("a head"));
        assert!(a.step().is_ok() && b.step().is_ok());
        // Ranks must stay: one that leaves is lost to the others.
        meeting.wait();
        if me != 2 {
            let error = ended("a skipped call", me, || a.step());
            let named = "all_gather of hidden rows: ranks [2] did not come within 1.5s; rank 2 was last seen";
            assert!(error.to_string().contains(named), "{error}");
        }
        meeting.wait();
        a.head.rebuild().expect("a rebuilt head");
        assert!(a.step().is_ok());
        meeting.wait();
        // Rank 0 steps `a` and then `b`, the others `b` and then `a`.
        let (first, other) = if me == 0 { (&mut a, "`b`") } else { (&mut b, "`a`") };
        let error = ended("two heads, swapped", me, || first.step()).to_string();
        let named = if me == 0 { "ranks [1, 2] did not come" } else { "ranks [0] did not come" };
        assert!(error.contains(named) && error.contains(other), "rank {me}: {error}");
        meeting.wait();
    });
}

#[test]
fn heads_on_threads_of_their_own_keep_one_order_or_are_named() {
    on_nccl("faults::in_child_threads", &[("FAKE_NCCL_DEADLOCK", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: heads_on_threads_of_their_own_keep_one_order_or_are_named runs it"]
fn in_child_threads() {
    const SEED: u64 = 21;
    const STEPS: usize = 60;
    println!("seed {SEED}");
    let mut random = SEED;
    // Which head is stepped next, the same on both ranks.
    let order: Vec<usize> = (0..STEPS)
        .map(|_| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 63) as usize
        })
        .collect();
    let (resident, test, fake) = (resident(2), test_head(), FakeNccl::loaded());
    // Launches of collectives of both ranks: before the steps, and as many as two steps have.
    let (meeting, launches, of_two) = (Barrier::new(2), AtomicI64::new(0), AtomicI64::new(0));
    each(resident.group(&[0, 1]), |me, exchange| {
        let make = |name| ResidentRank::new(&resident, &test, &config(&test, name), Arc::clone(&exchange));
        let mut heads = ["a", "b"].map(|name| make(name).expect("a head"));
        if meeting.wait().is_leader() {
            launches.store(fake.count("launches"), Ordering::SeqCst);
        }
        meeting.wait();
        let wanted = ResidentRank::wanted(&resident, &test, me);
        // Each head has a thread, and the threads take turns in that order.
        let turn = AtomicUsize::new(0);
        let await_turn = |own: usize| {
            let until = Instant::now() + 40 * DEADLINE;
            while turn.load(Ordering::SeqCst) != own {
                assert!(Instant::now() < until, "rank {me}: the turn of step {own} does not come");
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            for (i, head) in heads.iter_mut().enumerate() {
                let (order, wanted, turn, await_turn) = (&order, &wanted, &turn, &await_turn);
                scope.spawn(move || {
                    for own in (0..STEPS).filter(|&own| order[own] == i) {
                        await_turn(own);
                        assert_eq!(&head.step().expect("a step"), wanted, "rank {me}, step {own}");
                        turn.store(own + 1, Ordering::SeqCst);
                    }
                });
            }
        });
        // Rank 0 queues a step of `a` and rank 1 one of `b`, then each a step of the other head.
        if meeting.wait().is_leader() {
            let before = launches.swap(fake.count("launches"), Ordering::SeqCst);
            of_two.store((launches.load(Ordering::SeqCst) - before) / STEPS as i64, Ordering::SeqCst);
        }
        meeting.wait();
        thread::scope(|scope| {
            for (i, head) in heads.iter_mut().enumerate() {
                let (fake, launches) = (&fake, launches.load(Ordering::SeqCst));
                let of_two = of_two.load(Ordering::SeqCst);
                scope.spawn(move || {
                    let until = Instant::now() + 40 * DEADLINE;
                    while i != me && fake.count("launches") < launches + of_two && Instant::now() < until {
                        thread::yield_now();
                    }
                    let error = ended("two heads on threads, swapped", me, || head.step()).to_string();
                    // Found by either rank first; both are in both heads.
                    let words = |member: usize| {
                        format!(
                            "no end on the device within 1.5s; every member has come to it, and members \
                             [{member}] have come to another head meanwhile; step the heads of one device in \
                             one order"
                        )
                    };
                    let named = (0..2).any(|member| error.contains(&words(member)));
                    assert!(named, "rank {me}, head {i}: {error}");
                });
            }
        });
        meeting.wait();
        for head in &mut heads {
            head.head.rebuild().expect("a rebuilt head");
            assert_eq!(head.step().expect("a step"), wanted, "rank {me}");
        }
    });
    all_are_destroyed();
}

#[test]
fn a_rank_that_ends_inside_a_collective_on_the_device_is_named() {
    on_nccl("faults::in_child_gone", &[]);
}

#[test]
fn a_rank_that_does_not_answer_in_a_device_collective_is_named() {
    on_nccl("faults::in_child_silent", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_ends_inside_a_collective_on_the_device_is_named runs it"]
fn in_child_gone() {
    absent_inside(true);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_does_not_answer_in_a_device_collective_is_named runs it"]
fn in_child_silent() {
    absent_inside(false);
}

/// One rank reports that it has come to a gather, and then ends or does something else.
fn absent_inside(ends: bool) {
    const RANKS: usize = 3;
    const ENDS: usize = 2;
    let devices: Vec<CudaDevice> = (0..RANKS).map(device).collect();
    let [meeting, end] = [RANKS; 2].map(Barrier::new);
    let survivors = Barrier::new(RANKS - 1);
    each(group(&devices), |me, first| {
        let (instance, channel) = first.channel(7).expect("a channel");
        let side = channel.device().expect("a side for device memory");
        let this = |step, within| Call { instance, ..call(step, Operation::GatherRows, within) };
        side.connect(&this(0, 20 * DEADLINE), &*channel).expect("a connection");
        meeting.wait();
        let (began, late) = (Instant::now(), this(1, DEADLINE));
        // Its noted place says that it has come.
        channel.note(&late);
        if me == ENDS {
            if !ends {
                end.wait();
            }
            return;
        }
        let device = &devices[me];
        let own = device.open_stream().expect("a stream");
        let (stream, memory) = (device.handle(device.on(&own)), device.alloc(RANKS).expect("memory"));
        let piece = |from: usize| Piece { address: device.address(&memory) + from as u64, len: 1 };
        let (everyone, pieces): (Vec<usize>, Vec<Piece>) = (0..RANKS).map(|from| (from, piece(from))).unzip();
        // SAFETY: the memory outlives the work, which is aborted.
        let queued = unsafe { side.all_gather_v(&late, &everyone, piece(me), &pieces, stream) };
        let gathered = queued.and_then(|()| side.wait(None, side.mark(&late, stream)?, &late, &*channel));
        let took = began.elapsed();
        println!("rank {me}, after {took:?}: {gathered:?}");
        let fault = match gathered.expect_err("a rank is absent") {
            // Named by the peer that found it first.
            Fault::Earlier { call, fault } if call.step == late.step => *fault,
            fault => fault,
        };
        let wanted = match ends {
            true => Fault::Lost { members: vec![ENDS] },
            false => Fault::Timeout { missing: vec![ENDS] },
        };
        assert_eq!(fault, wanted, "rank {me}");
        assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
        // A rank that leaves is lost, too: stay.
        survivors.wait();
        if !ends {
            end.wait();
        }
    });
    all_are_destroyed();
}

#[test]
fn a_rank_that_is_killed_before_inside_or_after_a_collective_is_named() {
    on_nccl("faults::in_child_killed", &[("FAKE_NCCL_RANK", "1")]);
}

/// Rank 1 ends like a killed process: its endpoints are gone, and nothing that it queued arrives. NCCL
/// notices inside a collective; before one, nothing is noticed until the deadline.
#[test]
#[ignore = "needs the fake libraries: a_rank_that_is_killed_before_inside_or_after_a_collective_is_named runs it"]
fn in_child_killed() {
    const RANKS: usize = 3;
    const KILLED: usize = 1;
    let devices: Vec<CudaDevice> = (0..RANKS).map(device).collect();
    let (fake, meeting, survivors) = (FakeNccl::loaded(), Barrier::new(RANKS), Barrier::new(RANKS - 1));
    // After so many collectives, inside the next one or before it.
    for (name, ended, inside) in [
        ("before a collective", 0, false),
        ("inside a collective", 0, true),
        ("after a collective", 1, false),
        ("inside another collective", 1, true),
        ("after two collectives", 2, false),
    ] {
        fake.set("STALL", None);
        each(group(&devices), |me, first| {
            let (instance, channel) = first.channel(7).expect("a channel");
            let side = channel.device().expect("a side for device memory");
            let this = |step, within| Call { instance, ..call(step, Operation::GatherRows, within) };
            side.connect(&this(0, 20 * DEADLINE), &*channel).expect("a connection");
            let device = &devices[me];
            let own = device.open_stream().expect("a stream");
            let (stream, memory) = (device.handle(device.on(&own)), device.alloc(2 * RANKS).expect("memory"));
            let pieces = |at: usize| -> Vec<Piece> {
                let address = device.address(&memory) + at as u64;
                (0..RANKS as u64).map(|from| Piece { address: address + from, len: 1 }).collect()
            };
            let (sent, received) = (pieces(0), pieces(RANKS));
            let everyone: Vec<usize> = (0..RANKS).collect();
            // Alternates between a gather and an exchange.
            let queue = |call: &Call| {
                channel.note(call);
                // SAFETY: the memory outlives the work: this waits for it, or it is aborted.
                unsafe {
                    match call.step % 2 {
                        1 => side.all_gather_v(call, &everyone, sent[me], &received, stream),
                        _ => side.all_to_all_v(call, &sent, &received, stream),
                    }
                }
            };
            let run = |call: &Call| {
                queue(call).and_then(|()| side.wait(None, side.mark(call, stream)?, call, &*channel))
            };
            for step in 1..=ended {
                run(&this(step, 20 * DEADLINE)).expect("a collective");
            }
            meeting.wait();
            let (began, last) = (Instant::now(), this(ended + 1, DEADLINE));
            if me == KILLED {
                thread::sleep(Duration::from_millis(100));
                if inside {
                    fake.set("STALL", Some("1"));
                    queue(&last).expect("queued");
                }
                // No notice is sent.
                side.abort(&Fault::Lost { members: vec![KILLED] });
                drop((channel, first));
                if inside {
                    fake.lose(KILLED as i32);
                }
                return;
            }
            // One rank already waits when the other comes.
            thread::sleep(Duration::from_millis(if me == 0 { 0 } else { 300 }));
            let gathered = run(&last);
            let took = began.elapsed();
            knew(&format!("killed {name}"), me, took);
            let fault = match gathered.expect_err("a rank is lost") {
                // Named by the peer that found it first.
                Fault::Earlier { call, fault } if call.step == last.step => *fault,
                fault => fault,
            };
            assert_eq!(fault, Fault::Lost { members: vec![KILLED] }, "{name}, rank {me}");
            assert!(took < DEADLINE + Duration::from_secs(1), "{name}, rank {me}: {took:?}");
            // A rank that leaves is lost, too: stay.
            survivors.wait();
        });
    }
    all_are_destroyed();
}

#[test]
fn an_abort_ends_a_stalled_step_on_every_rank_at_once() {
    on_nccl("faults::in_child_abort", &[]);
}

#[test]
#[ignore = "needs the fake libraries: an_abort_ends_a_stalled_step_on_every_rank_at_once runs it"]
fn in_child_abort() {
    let (resident, test, meeting) = (resident(2), test_head(), Barrier::new(2));
    each(resident.group(&[0, 1]), |me, exchange| {
        let mut config = config(&test, "a");
        config.timeout = Duration::from_secs(300);
        let mut rank = ResidentRank::new(&resident, &test, &config, exchange).expect("a head");
        if meeting.wait().is_leader() {
            FakeNccl::loaded().set("STALL", Some("1"));
        }
        meeting.wait();
        thread::scope(|scope| {
            if me == 0 {
                let handle = rank.head.abort_handle();
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(200));
                    handle.abort("the engine shuts down");
                });
            }
            let error = ended("an abort after 200 ms", me, || rank.step());
            assert!(error.to_string().contains("was told to end the step: the engine shuts down"), "{error}");
        });
        if meeting.wait().is_leader() {
            FakeNccl::loaded().set("STALL", None);
        }
        meeting.wait();
        rank.head.rebuild().expect("a rebuilt head");
        rank.step().expect("a step");
    });
    all_are_destroyed();
}

#[test]
fn creations_that_fail_are_told_to_every_rank() {
    on_nccl("faults::in_child_creations", &[("FAKE_NCCL_RANK", "1"), ("FAKE_NCCL_INIT", "2")]);
    on_nccl("faults::in_child_mixed", &[("FAKE_NCCL_RANK", "1"), ("FAKE_NCCL_MIX", "1")]);
    on_nccl("faults::in_child_duplicate", &[]);
    on_nccl("faults::in_child_blocking", &[("NCCL_COMM_BLOCKING", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: creations_that_fail_are_told_to_every_rank runs it"]
fn in_child_creations() {
    let (resident, test, meeting) = (resident(3), test_head(), Barrier::new(3));
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let make = || ResidentRank::new(&resident, &test, &config(&test, "a"), Arc::clone(&exchange));
        let error = ended("a creation that fails", me, || make().map(drop)).to_string();
        let words = "ncclCommInitRankConfig of NCCL 2.30.7: unhandled system error";
        assert!(error.contains(words) && error.contains("NCCL_SOCKET_IFNAME"), "rank {me}: {error}");
        if meeting.wait().is_leader() {
            FakeNccl::loaded().set("INIT", Some("0"));
        }
        meeting.wait();
        let mut rank = make().expect("a head");
        rank.step().expect("a step");
    });
    all_are_destroyed();
}

#[test]
#[ignore = "needs the fake libraries: creations_that_fail_are_told_to_every_rank runs it"]
fn in_child_mixed() {
    let (resident, test) = (resident(3), test_head());
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let make = || ResidentRank::new(&resident, &test, &config(&test, "a"), exchange).map(drop);
        let error = ended("pieces of another rank", me, make).to_string();
        let words = "NCCL delivered other bytes in all_gather_v of one length than member 0 sent to member 1";
        assert!(error.contains(words), "rank {me}: {error}");
    });
    all_are_destroyed();
}

#[test]
#[ignore = "needs the fake libraries: creations_that_fail_are_told_to_every_rank runs it"]
fn in_child_duplicate() {
    // Both on device 0.
    let (device, test) = (super::device(0), test_head());
    let both = [device.clone(), device.clone()];
    let resident = Resident::over(vec![(device.clone(), backend(&device))], move |_| group(&both));
    each(resident.group(&[0, 1]), |me, exchange| {
        let made = ResidentRank::new(&resident, &test, &config(&test, "a"), exchange);
        let error = made.map(drop).expect_err("one GPU").to_string();
        assert!(
            error.contains("Duplicate GPU detected") && error.contains("NCCL_HOSTID"),
            "rank {me}: {error}"
        );
    });
    all_are_destroyed();
}

#[test]
#[ignore = "needs the fake libraries: creations_that_fail_are_told_to_every_rank runs it"]
fn in_child_blocking() {
    let (resident, test) = (resident(2), test_head());
    each(resident.group(&[0, 1]), |_, exchange| {
        let made = ResidentRank::new(&resident, &test, &config(&test, "a"), exchange);
        let error = made.map(drop).expect_err("a setting that takes the deadline away").to_string();
        assert!(error.contains("wanted NCCL_COMM_BLOCKING unset or 0, got `1`"), "{error}");
    });
}

#[test]
fn a_thousand_rebuildings_leave_nothing_behind() {
    on_nccl("faults::in_child_rebuildings", &[]);
}

/// Number of entries in a /proc folder of this process: threads, open files.
fn entries(folder: &str) -> usize {
    std::fs::read_dir(Path::new("/proc/self").join(folder)).expect("a folder").count()
}

#[test]
#[ignore = "needs the fake libraries: a_thousand_rebuildings_leave_nothing_behind runs it"]
fn in_child_rebuildings() {
    let (resident, test, meeting) = (resident(2), test_head(), Barrier::new(2));
    let fake = FakeNccl::loaded();
    each(resident.group(&[0, 1]), |me, exchange: Arc<dyn Exchange>| {
        let mut rank = ResidentRank::new(&resident, &test, &config(&test, "a"), exchange).expect("a head");
        let mut before = None;
        for round in 0..1000 {
            rank.head.rebuild().expect("a rebuilt head");
            if round % 100 != 10 {
                continue;
            }
            rank.step().expect("a step");
            meeting.wait();
            if me == 0 {
                // Threads that have aborted a communicator end by themselves.
                let now = || (entries("task"), entries("fd"), fake.count("communicators"));
                let wanted = *before.get_or_insert_with(|| {
                    thread::sleep(Duration::from_millis(200));
                    now()
                });
                let until = Instant::now() + Duration::from_secs(5);
                while now() != wanted && Instant::now() < until {
                    thread::sleep(Duration::from_millis(5));
                }
                assert_eq!(now(), wanted, "threads, files and communicators after {round} rebuildings");
            }
            meeting.wait();
        }
    });
    all_are_destroyed();
    assert_eq!(fake.count("made"), 2 * 1001);
}
