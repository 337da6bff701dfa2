//! Correct programs: which bytes move, and when.

use super::ranks::{
    Config, IN_PROGRESS, INTERNAL_ERROR, Nccl, Rank, SUCCESS, abort_all, bind, bytes, end, new_stream,
    synchronize, windows, write,
};
use super::{child, run};
use std::collections::BTreeSet;
use std::ffi::c_int;

/// The value that fills `received` when an operation begins.
const POISON: u8 = 0xcd;

#[test]
fn bytes_arrive_and_not_before_their_stream_is_waited_for() {
    child("right::in_child_bytes", &[]);
}

#[test]
#[ignore = "needs the fake nccl: bytes_arrive_and_not_before_their_stream_is_waited_for runs it"]
fn in_child_bytes() {
    let nccl = Nccl::load();
    let ranks = nccl.group(3);
    let one = |rank: usize| vec![10 + rank as u8; 4];
    let buffers: Vec<_> = ranks.iter().map(|r| (r.memory(&one(r.rank)), r.memory(&[0; 12]))).collect();
    for (rank, (from, to)) in ranks.iter().zip(&buffers) {
        assert_eq!(rank.all_gather(*from, *to, 4), SUCCESS);
    }
    let marks: Vec<_> = ranks.iter().map(Rank::mark).collect();
    // Nothing has been waited for.
    buffers.iter().for_each(|(_, to)| assert_eq!(bytes(*to, 12), [0; 12]));
    assert_eq!(ranks[1].reaches(&marks[1]), Ok(true));
    let wanted: Vec<u8> = (0..3).flat_map(one).collect();
    // The peers must have come to it; their streams have not advanced.
    assert_eq!(bytes(buffers[1].1, 12), wanted);
    for other in [0, 2] {
        assert_eq!(bytes(buffers[other].1, 12), [POISON; 12]);
        assert_eq!(ranks[other].reaches(&marks[other]), Ok(true));
        assert_eq!(bytes(buffers[other].1, 12), wanted);
    }

    // In place, with another rank late.
    let own: Vec<_> = ranks
        .iter()
        .map(|r| r.memory(&(0..9).map(|i| 100 * (i / 3 == r.rank) as u8 + i as u8).collect::<Vec<_>>()))
        .collect();
    for rank in &ranks[..2] {
        assert_eq!(rank.all_gather(own[rank.rank] + 3 * rank.rank as u64, own[rank.rank], 3), SUCCESS);
        assert!(!ranks[rank.rank].ends(), "rank 2 has not come");
        // Only the rank's own piece of the receive buffer is kept: it is what is sent.
        let here = bytes(own[rank.rank], 9);
        for (piece, bytes) in here.chunks(3).enumerate() {
            let first = 100 + 3 * rank.rank as u8;
            let wanted = if piece == rank.rank { [first, first + 1, first + 2] } else { [POISON; 3] };
            assert_eq!(bytes, wanted);
        }
    }
    assert_eq!(ranks[2].all_gather(own[2] + 6, own[2], 3), SUCCESS);
    for rank in &ranks {
        assert!(rank.ends());
        assert_eq!(bytes(own[rank.rank], 9), [100, 101, 102, 103, 104, 105, 106, 107, 108]);
    }
    assert_eq!(nccl.fake.count("bytes"), 3 * 12 + 3 * 9);
    end(&ranks);
    assert_eq!(nccl.fake.count("communicators"), 0);
}

#[test]
fn uneven_pieces_and_none_at_all_arrive() {
    child("right::in_child_uneven", &[]);
}

/// A group of broadcasts, one for each root; sends and receives with other counts for each pair.
#[test]
#[ignore = "needs the fake nccl: uneven_pieces_and_none_at_all_arrive runs it"]
fn in_child_uneven() {
    let nccl = Nccl::load();
    let ranks = nccl.group(4);
    // Rows of the ranks: some, none, more.
    let rows = [3usize, 0, 7, 1];
    let mine = |rank: usize| -> Vec<u8> { (0..rows[rank]).map(|i| (16 * rank + i) as u8).collect() };
    let all: Vec<u8> = (0..4).flat_map(mine).collect();
    let mut gathered = Vec::new();
    for rank in &ranks {
        let (from, to) = (rank.memory(&mine(rank.rank)), rank.memory(&vec![0; all.len()]));
        gathered.push(to);
        let code = rank.group(|nccl| {
            let mut at = 0;
            for (root, count) in rows.iter().enumerate() {
                let (to, from) = if *count == 0 { (0, 0) } else { (to + at, from) };
                let root = root as c_int;
                nccl.ncclBroadcast(from, to, *count, 1, root, rank.comm, rank.stream);
                at += *count as u64;
            }
        });
        assert_eq!(code, SUCCESS, "{}", nccl.last_error(rank.comm));
    }
    for rank in &ranks {
        assert!(rank.ends(), "{}", nccl.fake.stuck());
        assert_eq!(bytes(gathered[rank.rank], all.len()), all);
    }

    let count = |from: usize, to: usize| (from * 5 + to * 3) % 4;
    let piece = |from: usize, to: usize| vec![(16 * from + to) as u8; count(from, to)];
    let mut received = Vec::new();
    for rank in &ranks {
        let me = rank.rank;
        let sends: Vec<_> = (0..4).map(|to| (rank.memory(&piece(me, to)), count(me, to))).collect();
        let recvs: Vec<_> = (0..4).map(|from| (rank.memory(&[0; 4]), count(from, me))).collect();
        assert_eq!(rank.exchange(&sends, &recvs), SUCCESS, "{}", nccl.last_error(rank.comm));
        received.push(recvs);
    }
    for (me, rank) in ranks.iter().enumerate() {
        assert!(rank.ends(), "{}", nccl.fake.stuck());
        for (from, (address, count)) in received[me].iter().enumerate() {
            assert_eq!(bytes(*address, *count), piece(from, me), "{from} -> {me}");
        }
    }
    let pieces: Vec<_> = ranks
        .iter()
        .map(|r| {
            (
                r.memory(
                    &[r.rank as u8; 8].iter().enumerate().map(|(i, b)| 16 * b + i as u8).collect::<Vec<_>>(),
                ),
                r.memory(&[0; 8]),
            )
        })
        .collect();
    for (rank, (from, to)) in ranks.iter().zip(&pieces) {
        let code = rank.group(|nccl| {
            nccl.ncclAlltoAll(*from, *to, 2, 1, rank.comm, rank.stream);
        });
        assert_eq!(code, SUCCESS);
    }
    for (me, rank) in ranks.iter().enumerate() {
        assert!(rank.ends());
        let wanted: Vec<u8> =
            (0..4).flat_map(|from| [16 * from + 2 * me as u8, 16 * from + 2 * me as u8 + 1]).collect();
        assert_eq!(bytes(pieces[me].1, 8), wanted);
    }
    end(&ranks);
}

#[test]
fn communicators_are_split_by_color_and_ranked_by_key() {
    child("right::in_child_split", &[]);
}

#[test]
#[ignore = "needs the fake nccl: communicators_are_split_by_color_and_ranked_by_key runs it"]
fn in_child_split() {
    let nccl = Nccl::load();
    let ranks = nccl.group(4);
    let mut children = [std::ptr::null_mut(); 4];
    // Ranks 0, 1 and 3 in one group, with rank 3 first; rank 2 in none.
    let split = |rank: usize, out: &mut _| {
        let (color, key) = [(7, 1), (7, 1), (-1, 0), (7, -5)][rank];
        assert_eq!(nccl.ncclCommSplit(ranks[rank].comm, color, key, out, std::ptr::null()), SUCCESS);
    };
    for rank in [0, 2, 3] {
        split(rank, &mut children[rank]);
    }
    assert_eq!(ranks[0].poll_state(), IN_PROGRESS, "rank 1 has not called it");
    assert!(children[0].is_null());
    split(1, &mut children[1]);
    for rank in &ranks {
        assert_eq!(rank.poll_state(), SUCCESS);
    }
    let said = |comm| {
        let [mut count, mut rank, mut device] = [-1; 3];
        assert_eq!(nccl.ncclCommCount(comm, &mut count), SUCCESS);
        assert_eq!(nccl.ncclCommUserRank(comm, &mut rank), SUCCESS);
        assert_eq!(nccl.ncclCommCuDevice(comm, &mut device), SUCCESS);
        (count, rank, device)
    };
    assert!(children[2].is_null());
    assert_eq!([0, 1, 3].map(|rank| said(children[rank])), [(3, 1, 0), (3, 2, 1), (3, 0, 3)]);

    // The new communicator works among its own ranks, and outlives its parent.
    abort_all(&ranks);
    let of_child: Vec<_> =
        [3, 0, 1].iter().map(|rank| Rank { comm: children[*rank], ..ranks[*rank] }).collect();
    let buffers: Vec<_> = of_child.iter().map(|r| (r.memory(&[r.rank as u8]), r.memory(&[9; 3]))).collect();
    for (rank, (from, to)) in of_child.iter().zip(&buffers) {
        assert_eq!(rank.all_gather(*from, *to, 1), SUCCESS);
    }
    for (rank, (_, to)) in of_child.iter().zip(&buffers) {
        assert!(rank.ends());
        assert_eq!(bytes(*to, 3), [3, 0, 1]);
    }
    end(&of_child);

    // One that shares its parent's resources does not survive the parent's abort.
    let ranks = nccl.group(1);
    let (mut child, config) = (std::ptr::null_mut(), Config { split_share: 1, ..Config::new(false) });
    assert_eq!(nccl.ncclCommSplit(ranks[0].comm, 0, 0, &mut child, &config), SUCCESS);
    assert_eq!(ranks[0].poll_state(), SUCCESS);
    abort_all(&ranks);
    assert_eq!(nccl.state(child), INTERNAL_ERROR);
    assert_eq!(nccl.ncclCommAbort(child), SUCCESS);
    assert_eq!(nccl.fake.count("communicators"), 0);
}

#[test]
fn graphs_replay_as_a_set_with_the_bytes_of_each_time() {
    child("right::in_child_graphs", &[]);
}

#[test]
#[ignore = "needs the fake nccl: graphs_replay_as_a_set_with_the_bytes_of_each_time runs it"]
fn in_child_graphs() {
    let nccl = Nccl::load();
    let ranks = nccl.group(2);
    let buffers = [0, 1].map(|rank: usize| (ranks[rank].memory(&[0; 4]), ranks[rank].memory(&[0; 8])));
    let graphs = [0, 1].map(|rank: usize| {
        let (from, to) = buffers[rank];
        ranks[rank].capture(|| assert_eq!(ranks[rank].all_gather(from, to, 4), SUCCESS))
    });
    assert!(ranks.iter().all(Rank::ends), "recording put nothing on a stream");
    for round in 0..100u8 {
        // One rank may be a replay ahead. It reads what it sends when its stream gets there.
        for rank in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (from, _) = buffers[rank];
            write(from, &[round, rank as u8, 2, 3]);
            ranks[rank].replay(graphs[rank]);
        }
        for rank in 0..2 {
            assert!(ranks[rank].ends(), "{}", nccl.fake.stuck());
            assert_eq!(bytes(buffers[rank].1, 8), [round, 0, 2, 3, round, 1, 2, 3]);
        }
    }
    assert_eq!(nccl.fake.count("replays"), 200);
    // Eager operations go on beside them.
    for rank in &ranks {
        let (from, to) = buffers[rank.rank];
        assert_eq!(rank.all_gather(from, to, 4), SUCCESS);
    }
    assert!(ranks.iter().all(Rank::ends));
    for (rank, graph) in ranks.iter().zip(graphs) {
        rank.give_back(graph);
    }
    end(&ranks);
}

/// Ranks as threads, with communicators whose calls block until the peers have come, and streams that a
/// blocking call waits for.
#[test]
fn blocking_ranks_meet_across_threads() {
    child("right::in_child_threads", &[]);
    child("right::in_child_threads", &[("FAKE_DEVICES", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1")]);
}

#[test]
#[ignore = "needs the fake nccl: blocking_ranks_meet_across_threads runs it"]
fn in_child_threads() {
    let nccl = Nccl::load();
    let devices: usize = std::env::var("FAKE_DEVICES").expect("devices").parse().expect("a number");
    let ids = [nccl.unique_id(), nccl.unique_id()];
    let order = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for me in 0..3usize {
            let (nccl, order) = (&nccl, &order);
            scope.spawn(move || {
                let context = bind(me % devices);
                let stream = new_stream();
                // Two communicators of the same ranks, used in one order everywhere.
                let ranks = ids.map(|id| {
                    let mut comm = std::ptr::null_mut();
                    assert_eq!(nccl.ncclCommInitRank(&mut comm, 3, id, me as c_int), SUCCESS);
                    Rank { nccl, context, stream, comm, rank: me }
                });
                let (from, to) = (ranks[0].memory(&[0]), ranks[0].memory(&[0; 3]));
                for round in 0..50u8 {
                    write(from, &[10 * me as u8 + round]);
                    let rank = &ranks[usize::from(round % 2)];
                    let code = nccl.ncclAllGather(from, to, 1, 1, rank.comm, stream);
                    assert_eq!(code, SUCCESS, "{}", nccl.last_error(rank.comm));
                    synchronize(stream).expect("it ends");
                    assert_eq!(bytes(to, 3), [round, 10 + round, 20 + round]);
                    order.lock().expect("a lock").insert((round, me));
                }
                for rank in &ranks {
                    assert_eq!(nccl.ncclCommFinalize(rank.comm), SUCCESS);
                    assert_eq!(nccl.ncclCommDestroy(rank.comm), SUCCESS);
                }
            });
        }
    });
    assert_eq!(order.lock().expect("a lock").len(), 150);
    assert_eq!(nccl.fake.count("communicators"), 0);
}

/// One thread with all ranks: calls that would block are in a group.
#[test]
fn one_thread_has_several_ranks_in_groups() {
    child("right::in_child_one_thread", &[]);
}

#[test]
#[ignore = "needs the fake nccl: one_thread_has_several_ranks_in_groups runs it"]
fn in_child_one_thread() {
    let nccl = Nccl::load();
    let id = nccl.unique_id();
    assert_eq!(nccl.ncclGroupStart(), SUCCESS);
    let ranks: Vec<_> = (0..3).map(|rank| Rank::make(&nccl, 3, id, rank, &Config::new(true))).collect();
    assert_eq!(nccl.ncclGroupEnd(), SUCCESS);
    let buffers: Vec<_> = ranks.iter().map(|r| (r.memory(&[r.rank as u8]), r.memory(&[9; 3]))).collect();
    assert_eq!(nccl.ncclGroupStart(), SUCCESS);
    for (rank, (from, to)) in ranks.iter().zip(&buffers) {
        // Groups may nest: only the outermost end launches.
        assert_eq!(nccl.ncclGroupStart(), SUCCESS);
        assert_eq!(nccl.ncclAllGather(*from, *to, 1, 1, rank.comm, rank.stream), SUCCESS);
        assert_eq!(nccl.ncclGroupEnd(), SUCCESS);
    }
    assert_eq!(nccl.fake.count("launches"), 0);
    assert_eq!(nccl.ncclGroupEnd(), SUCCESS);
    for (rank, (_, to)) in ranks.iter().zip(&buffers) {
        assert!(rank.ends());
        assert_eq!(bytes(*to, 3), [0, 1, 2]);
    }
    assert_eq!(nccl.ncclGroupStart(), SUCCESS);
    ranks.iter().for_each(|rank| assert_eq!(nccl.ncclCommFinalize(rank.comm), SUCCESS));
    assert_eq!(nccl.ncclGroupEnd(), SUCCESS);
    ranks.iter().for_each(|rank| assert_eq!(nccl.ncclCommDestroy(rank.comm), SUCCESS));
}

#[test]
fn a_thousand_groups_come_and_go() {
    child("right::in_child_thousand", &[]);
}

#[test]
#[ignore = "needs the fake nccl: a_thousand_groups_come_and_go runs it"]
fn in_child_thousand() {
    let nccl = Nccl::load();
    for number in 0..1000 {
        let ranks = nccl.group(2);
        if number % 2 == 0 {
            end(&ranks)
        } else {
            abort_all(&ranks)
        }
        ranks.iter().for_each(Rank::give_back_stream);
    }
    assert_eq!((nccl.fake.count("made"), nccl.fake.count("communicators")), (2000, 0));
}

#[test]
fn versions_are_what_was_said() {
    for (says, older, wanted) in [
        (&[][..], false, "version 23007, revoke true, addresses true"),
        (&[], true, "version 22707, revoke false, addresses false"),
        (&[("FAKE_NCCL_VERSION", "21005")], false, "version 21005, revoke true, addresses true"),
    ] {
        let (code, text) = run("right::in_child_version", says, older);
        assert!(code == Some(0) && text.contains(wanted), "{text}");
    }
    // The version is available without a driver; a communicator needs one.
    let folder = lmhead_gpu::fake_nccl::folder(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")));
    let folder = folder.to_str().expect("text");
    let (code, text) = run("right::in_child_version", &[("LD_LIBRARY_PATH", folder)], false);
    assert!(code == Some(0) && text.contains("version 23007, revoke true, addresses true, made 1"), "{text}");
}

#[test]
#[ignore = "needs the fake nccl: versions_are_what_was_said runs it"]
fn in_child_version() {
    let nccl = Nccl::load();
    let mut version = -1;
    assert_eq!(nccl.ncclGetVersion(&mut version), SUCCESS);
    let ids = [nccl.unique_id().0, nccl.unique_id().0];
    assert_ne!(ids[0], ids[1]);
    // SAFETY: it is never called.
    let revoke = unsafe {
        nccl.fake.find::<unsafe extern "C" fn(*mut std::ffi::c_void, c_int) -> c_int>("ncclCommRevoke")
    };
    let mut comm = std::ptr::null_mut();
    let made = nccl.ncclCommInitRank(&mut comm, 1, nccl.unique_id(), 0);
    // With a driver the result is the same: this thread has no context.
    let _ = nccl.fake.take_misuse();
    // SAFETY: it is never called.
    let addresses =
        unsafe { nccl.fake.find::<unsafe extern "C" fn(*mut std::ffi::c_void)>("ncclGetPeerDevicePointer") };
    let (revoke, addresses) = (revoke.is_some(), addresses.is_some());
    println!("version {version}, revoke {revoke}, addresses {addresses}, made {made}");
}

#[test]
fn windows_give_every_rank_the_addresses_of_all() {
    child("right::in_child_windows", &[]);
}

#[test]
#[ignore = "needs the fake nccl: windows_give_every_rank_the_addresses_of_all runs it"]
fn in_child_windows() {
    let nccl = Nccl::load();
    let ranks = nccl.group(3);
    let memory: Vec<u64> = ranks.iter().map(|rank| rank.window_memory(3 * 4096)).collect();
    let mut of_rank = [std::ptr::null_mut(); 3];
    for rank in [2, 0] {
        assert_eq!(ranks[rank].register(memory[rank] + 4096, 4096, &mut of_rank[rank]), IN_PROGRESS);
    }
    assert_eq!(ranks[0].poll_state(), IN_PROGRESS, "rank 1 has not called it");
    assert!(of_rank[0].is_null());
    assert_eq!(ranks[1].register(memory[1] + 4096, 4096, &mut of_rank[1]), IN_PROGRESS);
    for (rank, window) in ranks.iter().zip(&of_rank) {
        assert_eq!(rank.poll_state(), SUCCESS);
        for (peer, address) in memory.iter().enumerate() {
            assert_eq!(rank.peer_address(*window, 5, peer), address + 4096 + 5);
        }
    }
    assert_eq!((nccl.fake.count("windows"), nccl.fake.count("memories")), (3, 3));

    // Each rank deregisters and frees when it likes. Collectives use the memory of windows as any other.
    assert_eq!(ranks[0].deregister(of_rank[0]), SUCCESS);
    let other = ranks[0].memory(&[7; 4096]);
    let from = [other, memory[1] + 4096, memory[2] + 4096];
    let to: Vec<u64> = ranks.iter().map(|rank| rank.memory(&[0; 12])).collect();
    for rank in &ranks {
        assert_eq!(rank.all_gather(from[rank.rank], to[rank.rank], 4), SUCCESS);
    }
    assert!(ranks.iter().all(Rank::ends));
    assert_eq!(bytes(to[2], 4), [7; 4]);
    assert_eq!(ranks[0].free(memory[0]), SUCCESS);
    assert_eq!([1, 2].map(|rank: usize| ranks[rank].deregister(of_rank[rank])), [SUCCESS; 2]);
    assert_eq!([1, 2].map(|rank: usize| ranks[rank].free(memory[rank])), [SUCCESS; 2]);
    assert_eq!(ranks[0].deregister(std::ptr::null_mut()), SUCCESS);
    assert_eq!(ranks[0].free(0), SUCCESS);

    // The end of a communicator takes its windows along, and then their memory may be freed.
    let (memory, _) = windows(&ranks, 4096);
    assert_eq!(nccl.fake.count("windows"), 3);
    ranks[0].abort();
    assert_eq!((ranks[0].free(memory[0]), nccl.fake.count("windows")), (SUCCESS, 2));
    for rank in &ranks[1..] {
        assert_eq!((nccl.ncclCommDestroy(rank.comm), rank.free(memory[rank.rank])), (SUCCESS, SUCCESS));
    }
    assert_eq!((nccl.fake.count("windows"), nccl.fake.count("memories")), (0, 0));
    assert_eq!(nccl.fake.count("misuses"), 0);
}

/// Where ranks are on several nodes, and where nothing can be mapped.
#[test]
fn windows_without_addresses() {
    child("right::in_child_nodes", &[("FAKE_NCCL_LSA", "2")]);
    child("right::in_child_no_windows", &[("FAKE_NCCL_LSA", "0")]);
}

#[test]
#[ignore = "needs the fake nccl: windows_without_addresses runs it"]
fn in_child_nodes() {
    let nccl = Nccl::load();
    let ranks = nccl.group(4);
    let (memory, windows) = windows(&ranks, 64);
    for (me, rank) in ranks.iter().enumerate() {
        for (peer, address) in memory.iter().enumerate() {
            let wanted = if me / 2 == peer / 2 { address + 1 } else { 0 };
            assert_eq!(rank.peer_address(windows[me], 1, peer), wanted, "{me} -> {peer}");
        }
    }
    abort_all(&ranks);
    ranks.iter().zip(memory).for_each(|(rank, address)| assert_eq!(rank.free(address), SUCCESS));
}

#[test]
#[ignore = "needs the fake nccl: windows_without_addresses runs it"]
fn in_child_no_windows() {
    let nccl = Nccl::load();
    let ranks = nccl.group(2);
    // It does not meet the other rank.
    let (memory, mut window) = (ranks[0].window_memory(64), std::ptr::dangling_mut());
    assert_eq!(ranks[0].register(memory, 64, &mut window), SUCCESS);
    assert!(window.is_null());
    assert_eq!(ranks[0].free(memory), SUCCESS);
    end(&ranks);
}

/// A rank that was aborted before all had come is missing for ever.
#[test]
fn a_registration_waits_for_a_rank_that_is_gone() {
    child("right::in_child_gone", &[]);
}

#[test]
#[ignore = "needs the fake nccl: a_registration_waits_for_a_rank_that_is_gone runs it"]
fn in_child_gone() {
    let nccl = Nccl::load();
    let ranks = nccl.group(2);
    let memory = [0, 1].map(|rank: usize| ranks[rank].window_memory(64));
    let mut of_rank = [std::ptr::null_mut(); 2];
    assert_eq!(ranks[0].register(memory[0], 64, &mut of_rank[0]), IN_PROGRESS);
    ranks[0].abort();
    assert_eq!(ranks[1].register(memory[1], 64, &mut of_rank[1]), IN_PROGRESS);
    assert_eq!(ranks[1].poll_state(), IN_PROGRESS);
    assert_eq!(nccl.fake.stuck(), "rank 1 of clique 1: ncclCommWindowRegister is in progress\n");
    ranks[1].abort();
    assert_eq!(of_rank, [std::ptr::null_mut(); 2]);
    assert_eq!([0, 1].map(|rank: usize| ranks[rank].free(memory[rank])), [SUCCESS; 2]);
}
