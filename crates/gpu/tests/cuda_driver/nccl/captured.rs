//! Collectives in CUDA graphs: a replay sends the buffers' present contents, also with one rank late.

use super::{all_are_destroyed, device, each, group, on_nccl};
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::KernelDevice;
use lmhead::exchange::{Call, Operation, Piece, Reset};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_gpu::nccl_ranks::{self, Ranked};
use lmhead_testkit::product::shared_device::call;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const RANKS: usize = 3;

#[test]
fn replays_move_what_is_in_the_buffers() {
    on_nccl("captured::in_child_replays", &[]);
}

#[test]
#[ignore = "needs the fake libraries: replays_move_what_is_in_the_buffers runs it"]
fn in_child_replays() {
    each_ranked(RANKS, |ranked| {
        nccl_ranks::replays(&ranked, 50);
    });
    let fake = FakeNccl::loaded();
    assert_eq!(fake.count("replays"), (3 * 50 * RANKS) as i64, "each of the three calls, each time");
}

/// Whole steps, replayed with other rows, indices and row counts. Of every kind on two ranks, on a device
/// with programmatic launches and without wgmma, which the emulated device is slower at.
#[test]
fn captured_steps_have_the_bits_of_eager_ones() {
    on_nccl("captured::in_child_steps", &[("FAKE_CAPABILITY", "100")]);
}

#[test]
#[ignore = "needs the fake libraries: captured_steps_have_the_bits_of_eager_ones runs it"]
fn in_child_steps() {
    steps_of(&[2], 1);
}

/// A quarter of the kinds, another one for each number of ranks.
#[test]
fn captured_steps_of_other_groups_have_the_bits_of_eager_ones() {
    on_nccl("captured::in_child_steps_of_others", &[]);
}

#[test]
#[ignore = "needs the fake libraries: captured_steps_of_other_groups_have_the_bits_of_eager_ones runs it"]
fn in_child_steps_of_others() {
    steps_of(&[1, 3, 4], 4);
}

fn steps_of(sizes: &[usize], one_in: usize) {
    for &size in sizes {
        each_ranked(size, |ranked| {
            nccl_ranks::captured_steps(&ranked, 2, one_in);
        });
    }
    assert!(FakeNccl::loaded().count("replays") > 0);
    all_are_destroyed();
}

#[test]
fn a_thousand_replays_have_the_bits_of_eager_steps() {
    on_nccl("captured::in_child_many", &[("FAKE_CAPABILITY", "100")]);
}

#[test]
#[ignore = "needs the fake libraries: a_thousand_replays_have_the_bits_of_eager_steps runs it"]
fn in_child_many() {
    each_ranked(2, |ranked| nccl_ranks::many_replays(&ranked, 1000));
    // At least one collective of each replay, on each rank, of both kinds of steps.
    assert!(FakeNccl::loaded().count("replays") >= 2 * 1000 * 2);
    all_are_destroyed();
}

/// The scenarios that a GPU's test runs in processes.
#[test]
fn the_scenarios_of_a_gpu_hold() {
    on_nccl("captured::in_child_scenarios", &[]);
}

#[test]
#[ignore = "needs the fake libraries: the_scenarios_of_a_gpu_hold runs it"]
fn in_child_scenarios() {
    for size in [2, 4] {
        each_ranked(size, |ranked| {
            nccl_ranks::steps(&ranked, 6);
        });
        each_ranked(size, |ranked| {
            nccl_ranks::a_late_rank(&ranked);
        });
        each_ranked(size, |ranked| {
            nccl_ranks::a_killed_rank(&ranked, || {});
        });
    }
}

/// Runs a thread for each of `size` ranks, each on a device of its own.
pub fn each_ranked(size: usize, run: impl Fn(Ranked) + Sync) {
    let devices: Vec<CudaDevice> = (0..size).map(device).collect();
    each(group(&devices), |me, exchange| run(Ranked { device: devices[me].clone(), exchange }));
}

/// An engine that replays a graph and then waits for its stream without a deadline, as the runtime does.
#[test]
fn a_replay_that_does_not_end_is_ended_by_the_watchdog() {
    on_nccl("captured::in_child_watched", &[("FAKE_NCCL_RANK", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: a_replay_that_does_not_end_is_ended_by_the_watchdog runs it"]
fn in_child_watched() {
    const DEADLINE: Duration = Duration::from_millis(1500);
    let (fake, meeting) = (FakeNccl::loaded(), Barrier::new(RANKS));
    let devices: Vec<CudaDevice> = (0..RANKS).map(device).collect();
    each(group(&devices), |me, first| {
        let device = &devices[me];
        let (instance, channel) = first.channel(7).expect("a channel");
        let side = channel.device().expect("a side for device memory");
        let this = |step| Call { instance, ..call(step, Operation::GatherRows, DEADLINE) };
        let own = device.open_stream().expect("a stream");
        let (stream, memory) = (device.on(&own), device.alloc(RANKS).expect("memory"));
        let handle = device.handle(stream);
        let piece = |from: usize| Piece { address: device.address(&memory) + from as u64, len: 1 };
        let (everyone, pieces): (Vec<usize>, Vec<Piece>) = (0..RANKS).map(|from| (from, piece(from))).unzip();
        // The host writes the data of every rank before the graph runs.
        let replay = |graph: &Graph, byte: usize| {
            device.write_on(stream, &memory, me, &[(byte + me) as u8]).expect("a copy");
            // SAFETY: its memory outlives it.
            unsafe { graph.launch(stream) }.expect("a launch");
            let began = Instant::now();
            device.wait(stream).expect("a stream whose work ends");
            let mut got = [0; RANKS];
            device.read_on(stream, &memory, 0, &mut got).expect("a copy");
            (began.elapsed(), got)
        };
        for round in 0..2 {
            side.connect(&this(0), &*channel).expect("a connection");
            let work = || {
                side.watch_begin(&this(1), handle).expect("watched");
                // SAFETY: the memory outlives the graph.
                unsafe { side.all_gather_v(&this(1), &everyone, piece(me), &pieces, handle) }
                    .expect("a gather");
                side.watch_end(&this(1), handle).expect("watched");
                Ok(())
            };
            work().expect("queued");
            device.wait(stream).expect("the end");
            let graph = Graph::capture(device, stream, work).expect("a graph");
            for byte in 0..5 {
                let (_, got) = replay(&graph, byte);
                assert_eq!(got, std::array::from_fn(|from| (byte + from) as u8), "rank {me}");
                meeting.wait();
            }
            if meeting.wait().is_leader() {
                fake.set("STALL", Some("1"));
            }
            meeting.wait();
            let (took, _) = replay(&graph, 5);
            println!("rank {me}, round {round}: after {took:?}");
            assert!(took < DEADLINE + Duration::from_secs(1), "{took:?}");
            // SAFETY: as above.
            let fault = unsafe { side.all_gather_v(&this(2), &everyone, piece(me), &pieces, handle) };
            let words = "run 7 of the watched work did not end on the device within 1.5s";
            assert!(format!("{fault:?}").contains(words), "rank {me}: {fault:?}");
            if meeting.wait().is_leader() {
                fake.set("STALL", None);
            }
            meeting.wait();
            drop(graph);
            assert_eq!(channel.reset(&Call { operation: Operation::Rebuild, ..this(0) }), Ok(Reset::Done));
        }
    });
    all_are_destroyed();
}
