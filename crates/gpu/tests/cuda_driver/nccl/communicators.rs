//! Communicators without heads: created, split, and borrowed from an engine.

use super::{all_are_destroyed, device, each, group, knew, on_libraries, on_nccl};
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::{KernelDevice, stream_marks};
use lmhead::exchange::nccl::{Communicator, Nccl, NcclExchange, UniqueId};
use lmhead::exchange::{
    Call, DeviceExchange, Exchange, Fault, Operation, Piece, Reset, StreamMarks, WithDevice,
};
use lmhead_gpu::fake_nccl::{self, FakeNccl};
use lmhead_testkit::local_group;
use lmhead_testkit::product::shared_device::call;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn soon() -> Call {
    call(0, Operation::Connect, SOON)
}

fn nccl() -> Nccl {
    Nccl::load(None).expect("the fake libnccl")
}

/// Each member's communicator over all members of `control`.
fn world(marks: &Arc<dyn StreamMarks>, control: &dyn Exchange) -> Communicator {
    let id = UniqueId::share(nccl(), &soon(), control).expect("an id");
    let made = Communicator::new(nccl(), marks, (control.me(), control.size()), &id, soon().deadline);
    made.expect("a communicator")
}

/// Gathers one byte from each member and returns them.
fn gather(device: &CudaDevice, exchange: &dyn Exchange, byte: u8) -> Result<Vec<u8>, Fault> {
    let (size, me) = (exchange.size(), exchange.me());
    let side = exchange.device().expect("a side for device memory");
    let buffer = device.alloc(size).expect("memory");
    device.write(&buffer, me, &[byte]).expect("a copy");
    let piece = |member: usize| Piece { address: device.address(&buffer) + member as u64, len: 1 };
    let (everyone, pieces): (Vec<usize>, Vec<Piece>) =
        (0..size).map(|member| (member, piece(member))).unzip();
    let (this, stream) = (call(1, Operation::GatherRows, SOON), device.handle(device.stream()));
    // SAFETY: memory that outlives the wait.
    unsafe { side.all_gather_v(&this, &everyone, piece(me), &pieces, stream)? };
    side.wait(None, side.mark(&this, stream)?, &this, exchange)?;
    let mut bytes = vec![0; size];
    device.read(&buffer, 0, &mut bytes).expect("a copy");
    Ok(bytes)
}

/// A connected exchange over the given communicator.
fn over(
    marks: &Arc<dyn StreamMarks>,
    communicator: Communicator,
    control: Arc<dyn Exchange>,
) -> Result<WithDevice, Fault> {
    let side = NcclExchange::over(nccl(), Arc::clone(marks), Arc::new(communicator));
    side.connect(&soon(), &*control)?;
    Ok(WithDevice::new(control, Arc::new(side)))
}

#[test]
fn communicators_are_split_into_groups() {
    on_nccl("communicators::in_child_split", &[]);
}

#[test]
#[ignore = "needs the fake libraries: communicators_are_split_into_groups runs it"]
fn in_child_split() {
    let pairs = std::sync::Mutex::new(local_group(2));
    each(local_group(4), |me, control| {
        let device = device(me);
        let marks = stream_marks(&device);
        let world = world(&marks, &*control);
        assert_eq!((world.rank(), world.size()), (me, 4));
        // Colours and keys that NCCL refuses. Nothing was started by these: the split below is the first.
        for (color, key, problem) in [
            (Some(1 << 31), 0, "wanted a color of at most 2147483647, got 2147483648: NCCL takes no larger"),
            (None, u32::MAX, "wanted a key of at most 2147483647, got 4294967295: NCCL takes no larger"),
        ] {
            match world.split(color, key, soon().deadline) {
                Err(Fault::Broken { problem: said, .. }) => assert_eq!(said, problem),
                other => panic!("{:?}", other.map(|split| split.is_some())),
            }
        }
        // Ranks 0 and 2 in reverse order; rank 1 alone; rank 3 in no group.
        let color = [Some(5), Some(0), Some(5), None][me];
        let split = world.split(color, 10 - me as u32, soon().deadline).expect("a split");
        let place = split.as_ref().map(|split| (split.rank(), split.size()));
        assert_eq!(place, [Some((1, 2)), Some((0, 1)), Some((0, 2)), None][me]);
        if let Some(split) = split.filter(|_| me % 2 == 0) {
            let (at, size) = (split.rank(), split.size());
            let control = pairs.lock().expect("no panic").iter().find(|own| own.me() == at).cloned();
            let exchange = over(&marks, split, control.expect("an endpoint")).expect("an exchange");
            assert_eq!((exchange.size(), exchange.me()), (size, at));
            assert_eq!(gather(&device, &exchange, 40 + me as u8), Ok(vec![42, 40]));
            // All heads use one communicator, so it cannot be recreated for one of them.
            let side = exchange.device().expect("a side");
            side.abort(&Fault::Timeout { missing: vec![] });
            assert_eq!(side.reset(&soon(), &exchange), Ok(Reset::Reconnect));
            assert_eq!(gather(&device, &exchange, 0), Err(Fault::Timeout { missing: vec![] }));
        }
    });
    all_are_destroyed();
}

/// The first version whose windows are used.
const WITH_WINDOWS: (&str, &str) = ("FAKE_NCCL_VERSION", "23102");

fn problem<T: std::fmt::Debug>(refused: Result<T, Fault>) -> String {
    match refused {
        Err(Fault::Broken { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

/// Waits until the memory of all windows is freed, by threads that may outlast a drop.
fn windows_are_freed() {
    let (fake, until) = (FakeNccl::loaded(), Instant::now() + SOON);
    while fake.count("memories") > 0 {
        assert!(Instant::now() < until, "memory of windows is left");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(fake.count("windows"), 0);
}

#[test]
fn members_write_to_each_others_windows() {
    on_nccl("communicators::in_child_windows", &[WITH_WINDOWS]);
}

#[test]
#[ignore = "needs the fake libraries: members_write_to_each_others_windows runs it"]
fn in_child_windows() {
    let (written, read) = (Barrier::new(3), Barrier::new(3));
    each(local_group(3), |me, control| {
        let marks = stream_marks(&device(me));
        let world = world(&marks, &*control);
        assert!(nccl().has_windows());
        // The second one is dropped after its communicator.
        let [first, second] = [3, 70000].map(|bytes| world.window(bytes, soon().deadline).expect("a window"));
        for window in [&first, &second] {
            assert_eq!(window.peers()[me], Some(window.address()));
            assert_eq!(window.unreachable(), Vec::<usize>::new());
            for peer in window.peers() {
                let place = peer.expect("an address") as usize + window.bytes() - 3 + me;
                // SAFETY: the fake driver keeps device memory on the host; nobody else writes this byte.
                unsafe { (place as *mut u8).write(10 + me as u8) };
            }
        }
        written.wait();
        for window in [&first, &second] {
            let place = window.address() as usize + window.bytes() - 3;
            // SAFETY: as above; all have written.
            assert_eq!(unsafe { (place as *const [u8; 3]).read() }, [10, 11, 12]);
        }
        read.wait();
        drop(first);
        drop(world);
        drop(second);
    });
    all_are_destroyed();
    windows_are_freed();
}

#[test]
fn members_on_other_nodes_have_no_address() {
    for (team, unreachable) in [
        ("2", "[[2, 3], [2, 3], [0, 1], [0, 1]]"),
        // Registration succeeds without a window.
        ("0", "[[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]"),
    ] {
        let says = [WITH_WINDOWS, ("FAKE_NCCL_LSA", team), ("WANTED", unreachable)];
        on_nccl("communicators::in_child_unreachable", &says);
    }
}

#[test]
#[ignore = "needs the fake libraries: members_on_other_nodes_have_no_address runs it"]
fn in_child_unreachable() {
    let unreachable = each(local_group(4), |me, control| {
        let world = world(&stream_marks(&device(me)), &*control);
        let window = world.window(64, soon().deadline).expect("a window");
        assert_eq!(window.peers()[me], Some(window.address()));
        window.unreachable()
    });
    assert_eq!(format!("{unreachable:?}"), std::env::var("WANTED").expect("what is wanted"));
    all_are_destroyed();
    windows_are_freed();
}

#[test]
fn a_window_that_cannot_come_about_leaves_nothing() {
    on_nccl("communicators::in_child_no_window", &[]);
    on_libraries(fake_nccl::older_folder, "communicators::in_child_no_window", &[WITH_WINDOWS]);
    on_nccl("communicators::in_child_late_window", &[WITH_WINDOWS]);
}

#[test]
#[ignore = "needs the fake libraries: a_window_that_cannot_come_about_leaves_nothing runs it"]
fn in_child_no_window() {
    each(local_group(2), |me, control| {
        let world = world(&stream_marks(&device(me)), &*control);
        assert!(!nccl().has_windows());
        let wanted = format!("wanted an NCCL with windows, 2.31.2 or newer, got {}", nccl().version());
        assert_eq!(problem(world.window(64, soon().deadline)), wanted);
        // Nothing has begun: it is split as ever.
        assert!(world.split(Some(0), 0, soon().deadline).expect("a split").is_some());
    });
    all_are_destroyed();
    windows_are_freed();
}

/// Member 1 does not come; then its registration is refused.
#[test]
#[ignore = "needs the fake libraries: a_window_that_cannot_come_about_leaves_nothing runs it"]
fn in_child_late_window() {
    let fake = FakeNccl::loaded();
    let late = || Instant::now() + Duration::from_millis(50);
    for refused in [false, true] {
        fake.set("WINDOW", refused.then_some("3"));
        fake.set("RANK", Some("1"));
        each(local_group(2), |me, control| {
            let world = world(&stream_marks(&device(me)), &*control);
            if me == 0 {
                let window = world.window(64, late());
                assert_eq!(window.expect_err("a late peer"), Fault::Timeout { missing: vec![] });
            } else if refused {
                let problem = problem(world.window(64, soon().deadline));
                assert!(problem.starts_with("ncclCommWindowRegister of NCCL 2.31.2: internal"), "{problem}");
            }
            if me == 0 || refused {
                let again = problem(world.window(64, soon().deadline));
                assert_eq!(again, "the communicator of NCCL was aborted");
            }
        });
        all_are_destroyed();
        windows_are_freed();
    }
}

#[test]
fn an_engines_communicator_is_used_and_left_to_the_engine() {
    on_nccl("communicators::in_child_lent", &[]);
    // Without ncclCommRevoke.
    on_libraries(fake_nccl::older_folder, "communicators::in_child_lent", &[]);
}

#[test]
#[ignore = "needs the fake libraries: an_engines_communicator_is_used_and_left_to_the_engine runs it"]
fn in_child_lent() {
    type Make = unsafe extern "C" fn(*mut *mut c_void, c_int, [u8; 128], c_int) -> c_int;
    type End = unsafe extern "C" fn(*mut c_void) -> c_int;
    let (fake, meeting) = (FakeNccl::loaded(), Barrier::new(2));
    // SAFETY: the types are those of nccl.h.
    let (make, end) = unsafe { (fake.get::<Make>("ncclCommInitRank"), fake.get::<End>("ncclCommAbort")) };
    let raw = |device: &CudaDevice, control: &dyn Exchange, rank: usize| {
        let id = UniqueId::share(nccl(), &soon(), control).expect("an id");
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let made = device.bound(|| unsafe { make(&mut raw, 2, *id.as_bytes(), rank as c_int) });
        assert_eq!(made, Ok(0));
        raw
    };
    each(local_group(2), |me, control| {
        let device = device(me);
        let marks = stream_marks(&device);
        // SAFETY: communicators that live until `end`.
        let borrow = |raw| unsafe { Communicator::borrow(nccl(), &marks, raw) };
        let engines = raw(&device, &*control, me);
        let window = borrow(engines).expect("a communicator").window(64, soon().deadline);
        assert_eq!(
            problem(window),
            "wanted a communicator that lmhead has made, for a window, got the engine's"
        );
        let exchange = over(&marks, borrow(engines).expect("a communicator"), Arc::clone(&control));
        let exchange = exchange.expect("an exchange");
        assert_eq!(gather(&device, &exchange, me as u8 + 1), Ok(vec![1, 2]));
        drop(exchange);
        meeting.wait();
        assert_eq!(fake.count("communicators"), 2, "the engine's are still there");
        // A fault ends it in the middle of a gather that rank 1 does not join; destroying it is left to the
        // engine.
        let exchange = over(&marks, borrow(engines).expect("a communicator"), Arc::clone(&control));
        let exchange = exchange.expect("an exchange");
        let side = exchange.device().expect("a side");
        let (this, own) = (call(1, Operation::GatherRows, SOON), device.open_stream().expect("a stream"));
        let (stream, buffer) = (device.handle(device.on(&own)), device.alloc(2).expect("memory"));
        let pieces = [0, 1].map(|member| Piece { address: device.address(&buffer) + member, len: 1 });
        // SAFETY: memory that lives until the stream has passed the gather, below.
        let begins = || unsafe { side.all_gather_v(&this, &[0, 1], pieces[me], &pieces, stream) };
        let begun = (me == 0).then(|| {
            begins().expect("queued");
            marks.mark(stream).expect("a mark")
        });
        let has_passed = || begun.is_none_or(|mark| marks.is_reached(mark).expect("a device that works"));
        let passes = || {
            let until = Instant::now() + SOON;
            while !has_passed() {
                assert!(Instant::now() < until, "the stream still waits");
            }
        };
        side.abort(&Fault::Timeout { missing: vec![] });
        assert!(begins().is_err());
        let reset = side.reset(&soon(), &exchange);
        if nccl().version().to_string() == "2.27.7" {
            let Err(Fault::Broken { problem, fix }) = reset else { panic!("{reset:?}") };
            let wanted = "a fault has met the engine's communicator, which is not ended: NCCL 2.27.7 has no \
                          ncclCommRevoke, and what was queued stays on its stream";
            assert_eq!(problem, wanted);
            assert!(fix.starts_with("end it by ncclCommAbort on every rank"), "{fix}");
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(has_passed(), me == 1, "only the engine can end what waits");
        } else {
            assert_eq!(reset, Ok(Reset::Reconnect));
            passes();
        }
        drop(exchange);
        meeting.wait();
        assert_eq!(fake.count("communicators"), 2);
        meeting.wait();
        // SAFETY: it is no longer used.
        assert_eq!(unsafe { end(engines) }, 0);
        passes();

        // A communicator whose ranks are in another order than the group's members.
        let turned = raw(&device, &*control, 1 - me);
        let fault = over(&marks, borrow(turned).expect("a communicator"), control).map(drop);
        let Err(Fault::Broken { problem, .. }) = fault else { panic!("{fault:?}") };
        let wanted = format!("the host transport is member {me} of 2, NCCL's side member {} of 2", 1 - me);
        assert_eq!(problem, wanted);
        meeting.wait();
        // SAFETY: as above.
        assert_eq!(unsafe { end(turned) }, 0);
        let Err(Fault::Broken { problem, .. }) = borrow(std::ptr::null_mut()).map(drop) else {
            panic!("no handle")
        };
        assert_eq!(problem, "wanted a communicator of NCCL, got a null pointer");
    });
    all_are_destroyed();
}

#[test]
fn a_reset_of_one_channel_leaves_the_marks_of_another() {
    on_nccl("communicators::in_child_marks", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_reset_of_one_channel_leaves_the_marks_of_another runs it"]
fn in_child_marks() {
    let device = device(0);
    let exchange = group(std::slice::from_ref(&device)).remove(0);
    let channels = [7, 8].map(|head| exchange.channel(head).expect("a channel").1);
    let [one, other] = channels.each_ref().map(|channel| channel.device().expect("a side"));
    for (channel, side) in channels.iter().zip([one, other]) {
        side.connect(&soon(), &**channel).expect("a connection");
    }
    let (this, stream) = (call(1, Operation::GatherRows, SOON), device.handle(device.stream()));
    let mark = one.mark(&this, stream).expect("a mark");
    assert_eq!(other.reset(&this, &*channels[1]), Ok(Reset::Done));
    assert_eq!(one.wait(None, mark, &this, &*channels[0]), Ok(()));
}

#[test]
fn a_communicator_that_is_dropped_waits_for_its_peers_in_a_thread() {
    on_nccl("communicators::in_child_dropped", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_communicator_that_is_dropped_waits_for_its_peers_in_a_thread runs it"]
fn in_child_dropped() {
    let (fake, meeting) = (FakeNccl::loaded(), Barrier::new(2));
    each(local_group(2), |me, control| {
        let marks = stream_marks(&device(me));
        let own = world(&marks, &*control);
        meeting.wait();
        if me == 1 {
            // Rank 0 has dropped its side.
            meeting.wait();
            return;
        }
        let began = Instant::now();
        drop(own);
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        assert_eq!(
            fake.count("communicators"),
            2,
            "it is not destroyed before the peer has finalized its own"
        );
        meeting.wait();
    });
    all_are_destroyed();
}

#[test]
fn members_that_do_not_meet_are_told_so_by_the_deadline() {
    on_nccl("communicators::in_child_alone", &[]);
}

#[test]
#[ignore = "needs the fake libraries: members_that_do_not_meet_are_told_so_by_the_deadline runs it"]
fn in_child_alone() {
    let (marks, began) = (stream_marks(&device(0)), Instant::now());
    let make = |id: &UniqueId| {
        let deadline = Instant::now() + Duration::from_millis(300);
        Communicator::new(nccl(), &marks, (0, 2), id, deadline).map(drop)
    };
    let alone = make(&nccl().unique_id().expect("an id"));
    assert_eq!(alone, Err(Fault::Timeout { missing: vec![] }));
    assert!(began.elapsed() < Duration::from_millis(1300), "{:?}", began.elapsed());
    // More ranks than NCCL takes.
    let (id, many) = (nccl().unique_id().expect("an id"), 1 << 31);
    let fault = Communicator::new(nccl(), &marks, (0, many), &id, soon().deadline).map(drop);
    let Err(Fault::Broken { problem, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!(problem, "wanted a size of at most 2147483647, got 2147483648: NCCL takes no larger");
    // An id of another run.
    let fault = make(&UniqueId::from_bytes(&[9; UniqueId::BYTES]).expect("an id"));
    let Err(Fault::Broken { problem, .. }) = fault else { panic!("{fault:?}") };
    assert!(problem.contains("Connection refused"), "{problem}");
    all_are_destroyed();

    // A side whose size differs from the host transport's.
    let side = NcclExchange::new(nccl(), Arc::clone(&marks), (0, 3));
    let fault = side.connect(&soon(), &*local_group(2)[0]);
    let Err(Fault::Broken { problem, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!(problem, "the host transport is member 0 of 2, NCCL's side member 0 of 3");
    // A side that was never connected, and invalid calls.
    let exchange =
        WithDevice::new(Arc::clone(&local_group(1)[0]), Arc::new(NcclExchange::new(nccl(), marks, (0, 1))));
    let Err(Fault::Broken { problem, .. }) = gather(&device(0), &exchange, 1) else {
        panic!("no connection")
    };
    assert_eq!(problem, "the channel is not connected");
}

#[test]
fn ids_of_two_runs_that_are_mixed_up_are_told_at_creation() {
    on_nccl("communicators::in_child_mixed_up", &[]);
}

#[test]
#[ignore = "needs the fake libraries: ids_of_two_runs_that_are_mixed_up_are_told_at_creation runs it"]
fn in_child_mixed_up() {
    const ALONE: Duration = Duration::from_millis(600);
    let (fake, meeting, first) = (FakeNccl::loaded(), Barrier::new(4), Barrier::new(3));
    // Two runs of two members, each with its own host transport and id.
    let ids = || [0, 1].map(|_| nccl().unique_id().expect("an id"));
    let (one, both) = (ids(), ids());
    each([local_group(2), local_group(2)].concat(), |rank, control| {
        let (run, me, device) = (rank / 2, rank % 2, device(rank));
        let marks = stream_marks(&device);
        let make = |name: &str, id: &UniqueId, within: Duration| {
            let began = Instant::now();
            let made = Communicator::new(nccl(), &marks, (me, 2), id, began + within);
            let made = made.and_then(|made| over(&marks, made, Arc::clone(&control)));
            let took = began.elapsed();
            if let Err(fault) = &made {
                println!("{fault:?}");
                knew(name, rank, took);
            }
            assert!(took < within + Duration::from_secs(1), "{name}, run {run}, member {me}: {took:?}");
            made
        };
        // Member 1 of the second run has the first run's id, and comes when the first run has connected.
        match (run, me) {
            (0, _) => {
                let exchange = make("ids of two runs, one mixed up", &one[0], SOON).expect("an exchange");
                first.wait();
                assert_eq!(gather(&device, &exchange, 7 + me as u8), Ok(vec![7, 8]));
            }
            (_, 0) => {
                let alone = make("ids of two runs, one mixed up", &one[1], ALONE).map(drop);
                assert_eq!(alone, Err(Fault::Timeout { missing: vec![] }));
            }
            _ => {
                first.wait();
                let Err(Fault::Broken { problem, .. }) =
                    make("ids of two runs, one mixed up", &one[0], SOON).map(drop)
                else {
                    panic!("a second use of an id")
                };
                let misuse = fake.take_misuse().expect("a misuse");
                assert!(problem.contains(&misuse) && misuse.contains("a unique id was used"), "{problem}");
            }
        }
        meeting.wait();
        // Both members 1 have the other run's id: NCCL makes two communicators that each mix both runs.
        let Err(Fault::Broken { problem, fix }) =
            make("ids of two runs, swapped", &both[(run + me) % 2], SOON).map(drop)
        else {
            panic!("members of two runs in one communicator")
        };
        let words = "NCCL delivered other bytes in all_gather_v of one length than member 1 sent to member 0";
        assert_eq!(problem, words, "run {run}, member {me}");
        assert!(fix.starts_with("make the communicator from an id that only these members get"), "{fix}");
        meeting.wait();
    });
    all_are_destroyed();
}
