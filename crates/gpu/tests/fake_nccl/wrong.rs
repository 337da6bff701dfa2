//! Wrong programs, each of which must be found.

use super::ranks::{
    Comm, Config, IN_PROGRESS, INVALID_ARGUMENT, INVALID_USAGE, Nccl, Rank, SUCCESS, SYMMETRIC, SYSTEM_ERROR,
    UINT8, abort_all, bind, bytes, end, new_stream, windows, write,
};
use super::{child, run};
use cudarc::driver::result;
use std::ffi::c_int;
use std::ptr::null_mut;

type Program = fn(&Nccl);

/// Programs that NCCL would answer with a hang, a crash or wrong bytes, with words of the message that names
/// the misuse.
const MISUSES: &[(Program, &str)] = &[
    (
        counts_differ,
        "collective operation 0: rank 1 issued a broadcast from 0 of 3 of type 1, rank 0 a broadcast from 0 of 4",
    ),
    (
        pieces_differ,
        "pair's operation 0: rank 1 issued a receive from 0 of 0 of type 1, rank 0 a send to 1 of 4 of type 1",
    ),
    (kinds_differ, "rank 1 issued an all_gather of 4 of type 1, rank 0 a broadcast from 0 of 4 of type 1"),
    (roots_differ, "rank 1 issued a broadcast from 1 of 4 of type 1, rank 0 a broadcast from 0 of 4"),
    (
        another_order_of_pairs,
        "before it, rank 1 had issued 0 operations of clique 5, and rank 0 1: another order",
    ),
    (another_order_of_communicators, "another order, or other groups"),
    (other_groups, "another order, or other groups"),
    (sends_what_it_changes, "what it sends was written to before it had ended"),
    (receives_twice, "receive the same bytes"),
    (receives_what_it_sends, "receive and send the same bytes"),
    (uses_an_aborted_one, "ncclAllGather: the communicator was destroyed or aborted before"),
    (uses_a_destroyed_one, "ncclCommCount: the communicator was destroyed or aborted before"),
    (uses_no_handle, "ncclCommGetAsyncError: no communicator has this handle"),
    (does_not_wait_for_creation, "ncclAllGather of rank 0 of clique"),
    (does_not_wait_for_a_group, "while a group of operations is in progress"),
    (destroys_while_finalizing, "was destroyed while ncclCommFinalize is in progress"),
    (destroys_too_early, "was destroyed before 1 of its launches ended"),
    (aborts_another_threads_group, "was aborted while another thread has it in an open group"),
    (stream_per_thread, "cudaStreamPerThread"),
    (stream_of_another_device, "a stream of device 1, of a communicator on device 0"),
    (stream_of_nobody, "a stream of nobody"),
    (two_streams, "a group with two streams for one communicator"),
    (issues_for_two_ranks, "its thread issues for rank 0 too, without a group"),
    (blocks_and_does_not, "a group with blocking and nonblocking communicators"),
    (leaves_a_group_open, "a thread ended within a group"),
    (uses_an_id_twice, "a unique id was used for a second communicator"),
    (comes_twice, "rank 0 came twice"),
    (world_sizes_differ, "rank 1 makes a communicator of 2 ranks, others made one of 3"),
    (no_context, "a thread without a current context"),
    (captures_on_one_rank, "rank 0 replays a graph, and rank 1 does not"),
    (replays_another_graph, "rank 1 and rank 0 replay graphs of other operations"),
    (replays_what_is_gone, "which is gone"),
    (windows_differ, "rank 1 registers 32 bytes at offset 0 with flags 1, rank 0 64 bytes at offset 0"),
    (
        windows_at_other_places,
        "rank 1 registers 64 bytes at offset 4096 with flags 1, rank 0 64 bytes at offset 0",
    ),
    (registers_other_memory, "of memory that is not in one allocation of ncclMemAlloc"),
    (registers_beyond_its_memory, "of memory that is not in one allocation of ncclMemAlloc"),
    (registers_another_devices_memory, "of memory of device 1, of a communicator on device 0"),
    (registers_twice, "of memory that it has a window of"),
    (does_not_wait_for_a_window, "ncclCommCount of rank 0 of clique"),
    (frees_a_window, "ncclMemFree of memory with a window of rank 0"),
    (frees_twice, "ncclMemFree of what ncclMemAlloc has not given"),
    (deregisters_twice, "ncclCommWindowDeregister: the window was deregistered, or its communicator ended"),
    (deregisters_no_window, "ncclCommWindowDeregister: no window has this handle"),
    (deregisters_anothers, "of a window of rank 1"),
    (deregisters_what_is_used, "before an all_gather of 4 of type 1 in it has ended"),
    (asks_a_window_that_is_gone, "ncclGetPeerDevicePointer: the window was deregistered"),
    (allocates_without_a_context, "ncclMemAlloc by a thread without a current context"),
];

#[test]
fn what_nccl_would_not_name_is_named() {
    child("wrong::in_child_misuses", &[]);
}

#[test]
#[ignore = "needs the fake nccl: what_nccl_would_not_name_is_named runs it"]
fn in_child_misuses() {
    let nccl = Nccl::load();
    for (program, wanted) in MISUSES {
        println!("{wanted}");
        program(&nccl);
        nccl.expect_misuse(wanted);
    }
    assert_eq!(nccl.fake.count("misuses"), MISUSES.len() as i64);
    assert_eq!(nccl.fake.count("communicators"), 0);
}

/// Two ranks, each with memory for all programs below.
fn two(nccl: &Nccl) -> (Vec<Rank<'_>>, [[u64; 2]; 2]) {
    let ranks = nccl.group(2);
    let memory = [0, 1].map(|rank: usize| [0, 1].map(|_| ranks[rank].memory(&[rank as u8; 64])));
    (ranks, memory)
}

/// Asserts that every rank gets the misuse as its asynchronous error, and that streams only end with the
/// abort.
fn are_told(ranks: &[Rank<'_>]) {
    for rank in ranks {
        assert_eq!(rank.nccl.state(rank.comm), INVALID_USAGE);
        assert!(!rank.ends());
    }
    abort_all(ranks);
    assert!(ranks.iter().all(Rank::ends));
}

fn counts_differ(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].broadcast(m[0][0], m[0][0], 4, 0), SUCCESS);
    assert_eq!(ranks[1].broadcast(0, m[1][0], 3, 0), INVALID_USAGE);
    assert!(nccl.last_error(ranks[0].comm).contains("rank 1 issued"), "also without a wait");
    are_told(&ranks);
}

fn pieces_differ(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].exchange(&[(0, 0), (m[0][0], 4)], &[(0, 0), (0, 0)]), SUCCESS);
    assert_eq!(ranks[1].exchange(&[(0, 0), (0, 0)], &[(0, 0), (0, 0)]), INVALID_USAGE);
    are_told(&ranks);
}

fn kinds_differ(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].broadcast(m[0][0], m[0][0], 4, 0), SUCCESS);
    assert_eq!(ranks[1].all_gather(m[1][0], m[1][1], 4), INVALID_USAGE);
    are_told(&ranks);
}

fn roots_differ(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].broadcast(m[0][0], m[0][0], 4, 0), SUCCESS);
    assert_eq!(ranks[1].broadcast(m[1][0], m[1][0], 4, 1), INVALID_USAGE);
    are_told(&ranks);
}

/// A collective, then an exchange; the other rank in the opposite order.
fn another_order_of_pairs(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let all_gather = |rank: usize| ranks[rank].all_gather(m[rank][0], m[rank][1], 4);
    let exchange = |rank: usize| {
        let peer = 1 - rank;
        let [mut sends, mut recvs] = [vec![(0, 0); 2], vec![(0, 0); 2]];
        (sends[peer], recvs[peer]) = ((m[rank][0] + 16, 4), (m[rank][1] + 16, 4));
        ranks[rank].exchange(&sends, &recvs)
    };
    assert_eq!([all_gather(0), exchange(0)], [SUCCESS; 2]);
    assert_eq!(exchange(1), INVALID_USAGE);
    are_told(&ranks);
}

fn another_order_of_communicators(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let others = nccl.group(2);
    assert_eq!(ranks[0].all_gather(m[0][0], m[0][1], 4), SUCCESS);
    assert_eq!(others[0].all_gather(m[0][0] + 32, m[0][1] + 32, 4), SUCCESS);
    // On this rank the other communicator first. The streams differ, so it might even succeed.
    assert_eq!(others[1].all_gather(m[1][0] + 32, m[1][1] + 32, 4), INVALID_USAGE);
    are_told(&others);
    abort_all(&ranks);
}

fn other_groups(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let code = ranks[0].group(|nccl| {
        for root in 0..2u64 {
            let (to, root) = (m[0][0] + 8 * root, root as c_int);
            nccl.ncclBroadcast(to, to, 4, UINT8, root, ranks[0].comm, ranks[0].stream);
        }
    });
    assert_eq!(code, SUCCESS);
    assert_eq!(ranks[1].broadcast(0, m[1][0], 4, 0), SUCCESS);
    assert_eq!(ranks[1].broadcast(m[1][0] + 8, m[1][0] + 8, 4, 1), INVALID_USAGE);
    are_told(&ranks);
}

fn sends_what_it_changes(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].all_gather(m[0][0], m[0][1], 4), SUCCESS);
    assert!(!ranks[0].ends());
    write(m[0][0], &[77]);
    assert_eq!(ranks[1].all_gather(m[1][0], m[1][1], 4), SUCCESS);
    assert!(ranks[1].ends());
    ranks[0].ends();
    abort_all(&ranks);
}

fn receives_twice(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let code = ranks[0].exchange(&[(0, 0), (0, 0)], &[(m[0][0], 4), (m[0][0] + 3, 4)]);
    assert_eq!(code, INVALID_USAGE);
    abort_all(&ranks);
}

fn receives_what_it_sends(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    // In place at rank 1's position instead of rank 0's.
    assert_eq!(ranks[0].all_gather(m[0][0] + 4, m[0][0], 4), INVALID_USAGE);
    abort_all(&ranks);
}

fn uses_an_aborted_one(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    abort_all(&ranks);
    let code = nccl.ncclAllGather(m[0][0], m[0][1], 4, UINT8, ranks[0].comm, ranks[0].stream);
    assert_eq!(code, INVALID_ARGUMENT);
}

fn uses_a_destroyed_one(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    end(&ranks);
    assert_eq!(nccl.ncclCommCount(ranks[1].comm, &mut 0), INVALID_ARGUMENT);
}

fn uses_no_handle(nccl: &Nccl) {
    let mut state = -1;
    let no_handle: Comm = std::ptr::without_provenance_mut(4096);
    assert_eq!(nccl.ncclCommGetAsyncError(no_handle, &mut state), INVALID_ARGUMENT);
    assert_eq!(state, -1);
}

fn does_not_wait_for_creation(nccl: &Nccl) {
    let id = nccl.unique_id();
    let ranks: Vec<_> = (0..2).map(|rank| Rank::make(nccl, 2, id, rank, &Config::new(false))).collect();
    let memory = ranks[0].memory(&[0; 8]);
    let code = nccl.ncclAllGather(memory, memory, 4, UINT8, ranks[0].comm, ranks[0].stream);
    assert_eq!(code, INVALID_ARGUMENT);
    abort_all(&ranks);
}

fn does_not_wait_for_a_group(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let all_gather =
        |at: u64| nccl.ncclAllGather(m[0][0] + at, m[0][1] + at, 4, UINT8, ranks[0].comm, ranks[0].stream);
    assert_eq!([all_gather(0), all_gather(16)], [IN_PROGRESS, INVALID_ARGUMENT]);
    assert_eq!(ranks[0].poll_state(), INVALID_ARGUMENT, "NCCL keeps it, too");
    abort_all(&ranks);
}

fn destroys_while_finalizing(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    assert_eq!(nccl.ncclCommFinalize(ranks[0].comm), IN_PROGRESS);
    assert_eq!(ranks[0].poll_state(), IN_PROGRESS, "rank 1 has not called it");
    assert_eq!(nccl.ncclCommDestroy(ranks[0].comm), SUCCESS);
    ranks[1].abort();
}

fn destroys_too_early(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    for rank in 0..2 {
        assert_eq!(ranks[rank].all_gather(m[rank][0], m[rank][1], 4), SUCCESS);
    }
    assert!(ranks[0].ends());
    assert_eq!(nccl.ncclCommDestroy(ranks[1].comm), SUCCESS);
    assert_eq!(nccl.ncclCommDestroy(ranks[0].comm), SUCCESS);
}

fn aborts_another_threads_group(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(nccl.ncclGroupStart(), SUCCESS);
    let code = nccl.ncclAllGather(m[0][0], m[0][1], 4, UINT8, ranks[0].comm, ranks[0].stream);
    assert_eq!(code, SUCCESS);
    let comm = ranks[0].comm as usize;
    std::thread::scope(|scope| {
        let abort = scope.spawn(|| nccl.ncclCommAbort(comm as Comm));
        assert_eq!(abort.join().expect("it ends"), SUCCESS);
    });
    assert_eq!(nccl.ncclGroupEnd(), INVALID_ARGUMENT);
    ranks[1].abort();
}

fn on_stream(nccl: &Nccl, stream: impl FnOnce(&[Rank<'_>]) -> cudarc::driver::sys::CUstream) {
    let (ranks, m) = two(nccl);
    let code = nccl.ncclAllGather(m[0][0], m[0][1], 4, UINT8, ranks[0].comm, stream(&ranks));
    assert_eq!(code, INVALID_USAGE);
    assert!(ranks.iter().all(|rank| nccl.state(rank.comm) == INVALID_USAGE && rank.ends()));
    abort_all(&ranks);
}

fn stream_per_thread(nccl: &Nccl) {
    on_stream(nccl, |_| std::ptr::without_provenance_mut(2));
}

fn stream_of_another_device(nccl: &Nccl) {
    on_stream(nccl, |ranks| ranks[1].stream);
}

fn stream_of_nobody(nccl: &Nccl) {
    on_stream(nccl, |_| std::ptr::without_provenance_mut(4096));
}

fn two_streams(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    bind(0);
    let other = new_stream();
    let code = ranks[0].group(|nccl| {
        for (at, stream) in [(0, ranks[0].stream), (16, other)] {
            let [from, to] = m[0].map(|address| address + at);
            nccl.ncclAllGather(from, to, 4, UINT8, ranks[0].comm, stream);
        }
    });
    assert_eq!(code, INVALID_USAGE);
    abort_all(&ranks);
}

fn issues_for_two_ranks(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let codes = [0, 1].map(|rank: usize| {
        let [from, to] = m[rank];
        nccl.ncclAllGather(from, to, 4, UINT8, ranks[rank].comm, ranks[rank].stream)
    });
    assert_eq!(codes, [IN_PROGRESS, INVALID_USAGE]);
    abort_all(&ranks);
}

fn blocks_and_does_not(nccl: &Nccl) {
    let ranks = [false, true].map(|blocking| {
        let rank = Rank::make(nccl, 1, nccl.unique_id(), 0, &Config::new(blocking));
        assert_eq!(rank.poll_state(), SUCCESS);
        rank
    });
    let code = ranks[0].group(|nccl| {
        for rank in &ranks {
            let memory = rank.memory(&[0; 8]);
            nccl.ncclAllGather(memory, memory, 4, UINT8, rank.comm, rank.stream);
        }
    });
    assert_eq!(code, INVALID_USAGE);
    abort_all(&ranks);
}

fn leaves_a_group_open(nccl: &Nccl) {
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(nccl.ncclGroupStart(), SUCCESS)).join().expect("it ends");
    });
}

fn init(nccl: &Nccl, size: c_int, id: super::ranks::UniqueId, rank: c_int, config: &Config) -> (c_int, Comm) {
    let mut comm = null_mut();
    let code = nccl.ncclCommInitRankConfig(&mut comm, size, id, rank, config);
    (code, comm)
}

fn uses_an_id_twice(nccl: &Nccl) {
    bind(0);
    let id = nccl.unique_id();
    let first = Rank::make(nccl, 1, id, 0, &Config::new(false));
    assert_eq!(init(nccl, 1, id, 0, &Config::new(false)), (INVALID_USAGE, null_mut()));
    first.abort();
}

fn comes_twice(nccl: &Nccl) {
    let id = nccl.unique_id();
    let first = Rank::make(nccl, 2, id, 0, &Config::new(false));
    assert_eq!(init(nccl, 2, id, 0, &Config::new(false)), (INVALID_USAGE, null_mut()));
    assert_eq!(first.poll_state(), INVALID_USAGE);
    first.abort();
}

fn world_sizes_differ(nccl: &Nccl) {
    let id = nccl.unique_id();
    let first = Rank::make(nccl, 3, id, 0, &Config::new(false));
    assert_eq!(init(nccl, 2, id, 1, &Config::new(false)), (INVALID_USAGE, null_mut()));
    assert_eq!(first.poll_state(), INVALID_USAGE);
    first.abort();
}

fn no_context(nccl: &Nccl) {
    // SAFETY: afterwards no context is current.
    unsafe { result::ctx::set_current(null_mut()) }.expect("none");
    assert_eq!(init(nccl, 1, nccl.unique_id(), 0, &Config::new(false)), (1, null_mut()));
}

fn captures_on_one_rank(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let graph = ranks[0].capture(|| assert_eq!(ranks[0].all_gather(m[0][0], m[0][1], 4), SUCCESS));
    assert_eq!(ranks[1].all_gather(m[1][0], m[1][1], 4), SUCCESS);
    ranks[0].replay(graph);
    are_told(&ranks);
    ranks[0].give_back(graph);
}

/// Two graphs on each rank, which replay different ones. Their operations look alike.
fn replays_another_graph(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let graphs = [0, 1].map(|rank: usize| {
        let all_gather = || assert_eq!(ranks[rank].all_gather(m[rank][0], m[rank][1], 4), SUCCESS);
        [0, 1].map(|_| ranks[rank].capture(all_gather))
    });
    for (first, second) in graphs[0].into_iter().zip(graphs[1]) {
        ranks[0].replay(first);
        ranks[1].replay(second);
        assert!(ranks.iter().all(Rank::ends));
    }
    ranks[0].replay(graphs[0][0]);
    ranks[1].replay(graphs[1][1]);
    are_told(&ranks);
    for (rank, graphs) in ranks.iter().zip(graphs) {
        graphs.into_iter().for_each(|graph| rank.give_back(graph));
    }
}

fn replays_what_is_gone(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let graph = ranks[0].capture(|| assert_eq!(ranks[0].all_gather(m[0][0], m[0][1], 4), SUCCESS));
    abort_all(&ranks);
    ranks[0].replay(graph);
    assert!(ranks[0].ends());
    ranks[0].give_back(graph);
}

fn windows_differ(nccl: &Nccl) {
    differ(nccl, |rank| (0, if rank == 0 { 64 } else { 32 }));
}

fn windows_at_other_places(nccl: &Nccl) {
    differ(nccl, |rank| (4096 * rank as u64, 64));
}

/// Each rank registers the offset and the bytes of `window` in its memory.
fn differ(nccl: &Nccl, window: impl Fn(usize) -> (u64, usize)) {
    let (ranks, _) = two(nccl);
    let memory = [0, 1].map(|rank: usize| ranks[rank].window_memory(8192));
    let mut places = [null_mut(); 2];
    let codes = [0, 1].map(|rank: usize| {
        let (at, bytes) = window(rank);
        ranks[rank].register(memory[rank] + at, bytes, &mut places[rank])
    });
    assert_eq!(codes, [IN_PROGRESS, INVALID_USAGE]);
    assert_eq!(ranks[0].poll_state(), INVALID_USAGE, "also without a call");
    give_up(&ranks, &memory);
}

/// Aborts the ranks and frees the memory of their windows.
fn give_up(ranks: &[Rank<'_>], memory: &[u64]) {
    abort_all(ranks);
    for (rank, address) in ranks.iter().zip(memory) {
        assert_eq!(rank.free(*address), SUCCESS);
    }
}

fn registers_other_memory(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    assert_eq!(ranks[0].register(m[0][0], 64, &mut null_mut()), INVALID_USAGE);
    abort_all(&ranks);
}

fn registers_beyond_its_memory(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let memory = ranks[0].window_memory(64);
    assert_eq!(ranks[0].register(memory, 65, &mut null_mut()), INVALID_USAGE);
    give_up(&ranks, &[memory]);
}

fn registers_another_devices_memory(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let memory = ranks[1].window_memory(64);
    assert_eq!(ranks[0].register(memory, 64, &mut null_mut()), INVALID_USAGE);
    abort_all(&ranks);
    assert_eq!(ranks[1].free(memory), SUCCESS);
}

fn registers_twice(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, _) = windows(&ranks, 64);
    assert_eq!(ranks[0].register(memory[0], 64, &mut null_mut()), INVALID_USAGE);
    give_up(&ranks, &memory);
}

fn does_not_wait_for_a_window(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, mut window) = (ranks[0].window_memory(64), null_mut());
    assert_eq!(ranks[0].register(memory, 64, &mut window), IN_PROGRESS);
    assert_eq!(nccl.ncclCommCount(ranks[0].comm, &mut 0), INVALID_ARGUMENT);
    give_up(&ranks, &[memory]);
}

fn frees_a_window(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, _) = windows(&ranks, 64);
    assert_eq!(ranks[0].free(memory[0]), INVALID_USAGE);
    // It is still there.
    give_up(&ranks, &memory);
}

fn frees_twice(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let memory = ranks[0].window_memory(64);
    assert_eq!([ranks[0].free(memory), ranks[0].free(memory)], [SUCCESS, INVALID_USAGE]);
    abort_all(&ranks);
}

fn deregisters_twice(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, windows) = windows(&ranks, 64);
    assert_eq!([0, 1].map(|_| ranks[0].deregister(windows[0])), [SUCCESS, INVALID_ARGUMENT]);
    give_up(&ranks, &memory);
}

fn deregisters_no_window(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    assert_eq!(ranks[0].deregister(std::ptr::without_provenance_mut(4096)), INVALID_ARGUMENT);
    abort_all(&ranks);
}

fn deregisters_anothers(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, windows) = windows(&ranks, 64);
    assert_eq!(ranks[0].deregister(windows[1]), INVALID_USAGE);
    give_up(&ranks, &memory);
}

fn deregisters_what_is_used(nccl: &Nccl) {
    let (ranks, m) = two(nccl);
    let (memory, windows) = windows(&ranks, 64);
    assert_eq!(ranks[0].all_gather(m[0][0], memory[0] + 8, 4), SUCCESS);
    assert_eq!(ranks[0].deregister(windows[0]), INVALID_USAGE);
    give_up(&ranks, &memory);
}

fn asks_a_window_that_is_gone(nccl: &Nccl) {
    let (ranks, _) = two(nccl);
    let (memory, windows) = windows(&ranks, 64);
    give_up(&ranks, &memory);
    assert_eq!(nccl.ncclGetPeerDevicePointer(windows[0], 0, 0, &mut 0), INVALID_ARGUMENT);
}

fn allocates_without_a_context(nccl: &Nccl) {
    // SAFETY: afterwards no context is current.
    unsafe { result::ctx::set_current(null_mut()) }.expect("none");
    assert_eq!(nccl.ncclMemAlloc(&mut 0, 64), 1);
}

#[test]
fn what_nccl_refuses_of_windows_is_no_misuse() {
    child("wrong::in_child_window_refusals", &[]);
}

#[test]
#[ignore = "needs the fake nccl: what_nccl_refuses_of_windows_is_no_misuse runs it"]
fn in_child_window_refusals() {
    let nccl = Nccl::load();
    let ranks = nccl.group(2);
    let memory = ranks[0].window_memory(8192);
    let mut window = null_mut();
    let mut register = |address: u64, bytes: usize, flags: c_int| {
        nccl.ncclCommWindowRegister(ranks[0].comm, address, bytes, &mut window, flags)
    };
    assert_eq!(register(0, 64, SYMMETRIC), INVALID_ARGUMENT);
    assert_eq!(register(memory, 0, SYMMETRIC), INVALID_ARGUMENT);
    assert_eq!(register(memory, 64, 4), INVALID_ARGUMENT);
    assert_eq!(register(memory + 256, 64, SYMMETRIC), INVALID_ARGUMENT);
    assert!(nccl.last_error(ranks[0].comm).contains("must be suitably aligned"));
    let null = nccl.ncclCommWindowRegister(ranks[0].comm, memory, 64, null_mut(), SYMMETRIC);
    assert_eq!(null, INVALID_ARGUMENT);
    assert_eq!(ranks[0].free(memory), SUCCESS);
    assert_eq!(nccl.ncclMemAlloc(&mut 0, 0), 1);

    let (memory, of_rank) = windows(&ranks, 64);
    let ask = |window, offset, peer| nccl.ncclGetPeerDevicePointer(window, offset, peer, &mut 0);
    assert_eq!([ask(of_rank[0], 63, 1), ask(of_rank[0], 64, 1)], [SUCCESS, INVALID_ARGUMENT]);
    assert_eq!([-1, 2].map(|peer| ask(of_rank[0], 0, peer)), [INVALID_ARGUMENT; 2]);
    assert_eq!(ask(null_mut(), 0, 0), INVALID_ARGUMENT);

    // An injected failure, on one rank.
    nccl.fake.set("WINDOW", Some("3"));
    nccl.fake.set("RANK", Some("1"));
    let others = ranks[1].window_memory(64);
    assert_eq!((ranks[1].register(others, 64, &mut null_mut()), ranks[1].poll_state()), (3, 3));
    assert_eq!(ranks[0].poll_state(), SUCCESS);

    // Allocations and registrations break a capture.
    let calls: [&dyn Fn() -> c_int; 2] = [&|| nccl.ncclMemAlloc(&mut 0, 64), &|| {
        nccl.ncclCommWindowRegister(ranks[0].comm, memory[0], 64, &mut null_mut(), SYMMETRIC)
    }];
    for call in calls {
        ranks[0].bind();
        // SAFETY: its own stream, here and below.
        unsafe {
            let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            result::stream::begin_capture(ranks[0].stream, mode).expect("a capture");
        }
        assert_eq!(call(), 1);
        // SAFETY: as above.
        let ended = unsafe { result::stream::end_capture(ranks[0].stream) }.expect_err("a broken capture");
        assert_eq!(ended.0, cudarc::driver::sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    give_up(&ranks, &memory);
    assert_eq!((ranks[1].free(others), nccl.fake.count("memories")), (SUCCESS, 0));
}

#[test]
fn a_misuse_that_nobody_takes_ends_the_process() {
    let ends = tempfile::NamedTempFile::new().expect("a file");
    let path = ends.path().to_str().expect("text");
    let (code, text) = run("wrong::in_child_untaken", &[("FAKE_NCCL_ENDS", path)], false);
    assert!(code == Some(86) && text.contains("1 passed"), "{code:?}: {text}");
    assert!(
        text.contains("1 misuses that no test took, the first: ncclCommCount: no communicator"),
        "{text}"
    );
    let end = std::fs::read_to_string(path).expect("an end");
    assert_eq!(end, "1 communicators, 0 windows, 1 misuses\n");
}

#[test]
#[ignore = "needs the fake nccl: a_misuse_that_nobody_takes_ends_the_process runs it"]
fn in_child_untaken() {
    let nccl = Nccl::load();
    drop(nccl.group(1));
    let no_handle: Comm = std::ptr::without_provenance_mut(4096);
    assert_eq!(nccl.ncclCommCount(no_handle, &mut 0), INVALID_ARGUMENT);
}

#[test]
fn buffers_that_are_not_the_devices_lose_it() {
    for what in ["beyond", "another device", "host"] {
        child("wrong::in_child_wild", &[("WHAT", what)]);
    }
}

#[test]
#[ignore = "needs the fake nccl: buffers_that_are_not_the_devices_lose_it runs it"]
fn in_child_wild() {
    let nccl = Nccl::load();
    let (ranks, m) = two(&nccl);
    let host = [0u8; 64];
    let to = match std::env::var("WHAT").expect("what").as_str() {
        "beyond" => m[0][1] + 57,
        "another device" => m[1][1],
        _ => host.as_ptr() as u64,
    };
    assert_eq!(ranks[0].all_gather(m[0][0], to, 4), SUCCESS, "NCCL cannot know it");
    assert_eq!(ranks[1].all_gather(m[1][0], m[1][1], 4), SUCCESS);
    let mark = ranks[0].mark();
    let error = ranks[0].reaches(&mark).expect_err("a lost device");
    assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    nccl.expect_misuse("a buffer is not in one allocation of device 0");
    // The other device is not lost.
    assert!(!ranks[1].ends());
    ranks[1].abort();
    assert!(ranks[1].ends());
    assert_eq!(host, [0; 64]);
}

#[test]
fn what_nccl_refuses_itself_is_no_misuse() {
    child("wrong::in_child_refusals", &[]);
}

#[test]
#[ignore = "needs the fake nccl: what_nccl_refuses_itself_is_no_misuse runs it"]
fn in_child_refusals() {
    let nccl = Nccl::load();
    bind(0);
    let good = || Config::new(false);
    let id = nccl.unique_id();
    let mut foreign = id;
    foreign.0[8..16].copy_from_slice(&77u64.to_le_bytes());
    let refused = [
        (init(&nccl, 2, id, 2, &good()), INVALID_ARGUMENT, "Invalid rank requested : 2/2"),
        (init(&nccl, 0, id, 0, &good()), INVALID_ARGUMENT, "Invalid rank requested : 0/0"),
        (init(&nccl, 2, foreign, 0, &good()), SYSTEM_ERROR, "Connection refused"),
        (init(&nccl, 2, super::ranks::UniqueId([0; 128]), 0, &good()), SYSTEM_ERROR, "Connection refused"),
        (init(&nccl, 2, id, 0, &Config { magic: 0, ..good() }), INVALID_ARGUMENT, "NCCL_CONFIG_INITIALIZER"),
        (init(&nccl, 2, id, 0, &Config { size: 8, ..good() }), INVALID_ARGUMENT, "a size of 8"),
        (init(&nccl, 2, id, 0, &Config { blocking: 2, ..good() }), INVALID_ARGUMENT, "a field has a value"),
        (init(&nccl, 2, id, 0, &Config { ctas: [0; 3], ..good() }), INVALID_ARGUMENT, "a field has a value"),
    ];
    // The last refusal's message is kept.
    assert!(nccl.last_error(null_mut()).contains(refused[7].2));
    for ((code, comm), wanted, words) in refused {
        assert_eq!((code, comm), (wanted, null_mut()), "{words}");
    }
    for (size, text) in [(8, "a size of 8"), (104, "")] {
        // A caller compiled with a newer header has more fields.
        let mut newer = [0u8; 104];
        let config = Config { size, ..good() };
        // SAFETY: plain bytes of a C struct.
        let plain =
            unsafe { std::slice::from_raw_parts((&raw const config).cast::<u8>(), size_of::<Config>()) };
        newer[..96].copy_from_slice(plain);
        let mut comm = null_mut();
        let code = nccl.ncclCommInitRankConfig(&mut comm, 1, nccl.unique_id(), 0, newer.as_ptr().cast());
        if text.is_empty() {
            assert_eq!((code, nccl.poll_state(comm)), (IN_PROGRESS, SUCCESS));
            assert_eq!(nccl.ncclCommAbort(comm), SUCCESS);
        } else {
            assert!(code == INVALID_ARGUMENT && nccl.last_error(comm).contains(text));
        }
    }

    // Two ranks on one device.
    let id = nccl.unique_id();
    let comms = [0, 1].map(|rank| {
        bind(0);
        init(&nccl, 2, id, rank, &good()).1
    });
    for comm in comms {
        assert_eq!(nccl.poll_state(comm), INVALID_USAGE);
        let words = nccl.last_error(comm);
        assert_eq!(words, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 0");
        assert_eq!(nccl.ncclCommAbort(comm), SUCCESS);
    }

    // Ending a null communicator succeeds.
    assert_eq!([nccl.ncclCommFinalize(null_mut()), nccl.ncclCommDestroy(null_mut())], [SUCCESS; 2]);
    assert_eq!(nccl.ncclCommAbort(null_mut()), SUCCESS);
    assert_eq!(nccl.ncclGroupEnd(), INVALID_USAGE);
    let (ranks, m) = two(&nccl);
    let broadcast = |to: u64, count: usize, kind: c_int, root: c_int| {
        nccl.ncclBroadcast(m[0][0], to, count, kind, root, ranks[0].comm, ranks[0].stream)
    };
    assert_eq!(broadcast(m[0][1], 4, UINT8, 2), INVALID_ARGUMENT);
    assert_eq!(broadcast(m[0][1], 4, UINT8, -1), INVALID_ARGUMENT);
    assert_eq!(broadcast(m[0][1], 4, 12, 0), INVALID_ARGUMENT);
    assert_eq!(broadcast(0, 4, UINT8, 0), INVALID_ARGUMENT);
    assert_eq!(nccl.ncclCommCount(null_mut(), &mut 0), INVALID_ARGUMENT);
    // A call refused in a group makes the group's end fail, too, and nothing is launched.
    let code = ranks[0].group(|_| {
        assert_eq!(broadcast(m[0][1], 4, UINT8, 0), SUCCESS);
        assert_eq!(broadcast(m[0][1], 4, UINT8, 2), INVALID_ARGUMENT);
    });
    assert_eq!((code, nccl.fake.count("launches")), (INVALID_ARGUMENT, 0));

    // The environment overrides the configuration.
    // SAFETY: no other thread reads it meanwhile.
    unsafe { std::env::set_var("NCCL_COMM_BLOCKING", "1") };
    bind(0);
    let (code, comm) = init(&nccl, 1, nccl.unique_id(), 0, &good());
    assert_eq!((code, nccl.ncclCommAbort(comm)), (SUCCESS, SUCCESS));

    // An allocation breaks a capture.
    bind(0);
    // SAFETY: its own stream, here and below.
    unsafe {
        let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        result::stream::begin_capture(ranks[0].stream, mode).expect("a capture");
    }
    assert_eq!(init(&nccl, 1, nccl.unique_id(), 0, &good()), (1, null_mut()));
    // SAFETY: as above.
    let ended = unsafe { result::stream::end_capture(ranks[0].stream) }.expect_err("a broken capture");
    assert_eq!(ended.0, cudarc::driver::sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    abort_all(&ranks);
}

/// A rank that never polls the state has put nothing on its stream: its event completes before the operation.
#[test]
fn a_group_whose_end_nobody_asks_for_is_on_no_stream() {
    child("wrong::in_child_unasked", &[]);
}

#[test]
#[ignore = "needs the fake nccl: a_group_whose_end_nobody_asks_for_is_on_no_stream runs it"]
fn in_child_unasked() {
    let nccl = Nccl::load();
    let (ranks, m) = two(&nccl);
    let all_gather = || nccl.ncclAllGather(m[0][0], m[0][1], 4, UINT8, ranks[0].comm, ranks[0].stream);
    nccl.fake.set("POLLS", Some("3"));
    assert_eq!(all_gather(), IN_PROGRESS);
    for _ in 0..3 {
        assert!(ranks[0].ends());
        assert_eq!((nccl.state(ranks[0].comm), bytes(m[0][1], 8)), (IN_PROGRESS, vec![0; 8]));
    }
    assert!(ranks[0].ends());
    assert_eq!(nccl.state(ranks[0].comm), SUCCESS);
    assert!(!ranks[0].ends());
    assert_eq!(ranks[1].all_gather(m[1][0], m[1][1], 4), SUCCESS);
    assert!(ranks.iter().all(Rank::ends));
    assert_eq!(bytes(m[0][1], 8), [0, 0, 0, 0, 1, 1, 1, 1]);
    end(&ranks);
}

/// A piece of no bytes is a piece: if one rank leaves it out, its peer waits.
#[test]
fn a_piece_of_no_bytes_that_is_left_out_is_awaited() {
    child("wrong::in_child_left_out", &[]);
}

#[test]
#[ignore = "needs the fake nccl: a_piece_of_no_bytes_that_is_left_out_is_awaited runs it"]
fn in_child_left_out() {
    let nccl = Nccl::load();
    let (ranks, _) = two(&nccl);
    let code = ranks[0].group(|nccl| {
        nccl.ncclSend(0, 0, UINT8, 1, ranks[0].comm, ranks[0].stream);
    });
    assert_eq!(code, SUCCESS);
    assert!(!ranks[0].ends());
    let stuck = nccl.fake.stuck();
    assert_eq!(stuck, "rank 0 of clique 1: a send to 1 of 0 of type 1 waits for ranks [1]\n");
    abort_all(&ranks);
}
