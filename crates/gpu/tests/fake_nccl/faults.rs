//! Injected faults: what each rank sees, and that abort and revoke end them.

use super::child;
use super::ranks::{
    CUDA_ERROR, Comm, Config, IN_PROGRESS, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, Nccl,
    REMOTE_ERROR, Rank, SUCCESS, SYSTEM_ERROR, abort_all, bind, bytes, end, synchronize,
};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Launch};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::params::ReadStreamParams;
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// Three ranks and their memory, with a gather of one rank.
struct Group<'n> {
    ranks: Vec<Rank<'n>>,
    memory: Vec<[u64; 2]>,
}

impl<'n> Group<'n> {
    fn new(nccl: &'n Nccl) -> Self {
        let ranks = nccl.group(3);
        let memory = ranks.iter().map(|r| [r.memory(&[r.rank as u8; 4]), r.memory(&[9; 12])]).collect();
        Group { ranks, memory }
    }

    fn gather(&self, rank: usize) -> c_int {
        let [from, to] = self.memory[rank];
        self.ranks[rank].all_gather(from, to, 4)
    }

    fn received(&self, rank: usize) -> Vec<u8> {
        bytes(self.memory[rank][1], 12)
    }
}

const GATHERED: [u8; 12] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];

#[test]
fn injected_faults_are_what_was_said_and_end_with_an_abort() {
    child("faults::in_child_faults", &[]);
}

/// Each fault is of rank 1, from its second launch on, and ends when it is unset.
#[test]
#[ignore = "needs the fake nccl: injected_faults_are_what_was_said_and_end_with_an_abort runs it"]
fn in_child_faults() {
    let nccl = Nccl::load();
    // Results of the launches; the states of all ranks afterwards; whether work is on rank 1's stream.
    let [good, lost] = [SUCCESS, REMOTE_ERROR];
    let faults = [
        ("ERROR", "1", [good, CUDA_ERROR, good], [good, CUDA_ERROR, good], false),
        ("ASYNC", "2", [good, SYSTEM_ERROR, good], [good, SYSTEM_ERROR, good], true),
        ("STALL", "1", [good; 3], [good; 3], true),
        ("LOST", "1", [good, good, lost], [lost, good, lost], true),
    ];
    for (number, (name, value, codes, states, is_queued)) in faults.into_iter().enumerate() {
        let group = Group::new(&nccl);
        nccl.fake.set("RANK", Some("1"));
        nccl.fake.set("FROM", Some(&(2 * number + 1).to_string()));
        nccl.fake.set(name, Some(value));
        let gather = || [0, 1, 2].map(|rank| group.gather(rank));
        let ends = || [0, 1, 2].map(|rank| group.ranks[rank].ends());
        assert_eq!((gather(), ends()), ([good; 3], [true; 3]), "{name}");
        assert_eq!(gather(), codes, "{name}");
        assert_eq!([0, 1, 2].map(|rank| nccl.state(group.ranks[rank].comm)), states, "{name}");
        // Rank 1's stream ends if nothing was queued on it; its peers' streams do not, except that a lost
        // rank's later peer has launched nothing.
        let never = [false, !is_queued, name == "LOST"];
        assert_eq!(ends(), never, "{name}");
        nccl.fake.set(name, None);
        assert_eq!(ends(), never, "{name}: it never ends");
        // Aborting one rank ends only its own work.
        group.ranks[1].abort();
        assert_eq!(ends(), [false, true, never[2]], "{name}");
        group.ranks[0].abort();
        group.ranks[2].abort();
        assert_eq!(ends(), [true; 3], "{name}");
    }
    assert_eq!(nccl.fake.count("communicators"), 0);
}

#[test]
fn bytes_of_another_rank_are_delivered_where_that_was_asked() {
    for rank in ["0", "2"] {
        child("faults::in_child_mixed", &[("FAKE_NCCL_MIX", "1"), ("FAKE_NCCL_RANK", rank)]);
    }
}

#[test]
#[ignore = "needs the fake nccl: bytes_of_another_rank_are_delivered_where_that_was_asked runs it"]
fn in_child_mixed() {
    let nccl = Nccl::load();
    let wrong: usize = std::env::var("FAKE_NCCL_RANK").expect("a rank").parse().expect("a number");
    let group = Group::new(&nccl);
    assert_eq!([0, 1, 2].map(|rank| group.gather(rank)), [SUCCESS; 3]);
    for rank in 0..3 {
        assert!(group.ranks[rank].ends());
        let received = group.received(rank);
        assert_eq!(received == GATHERED, rank != wrong, "{received:?}");
        // All pieces arrive, at other ranks' positions.
        let mut pieces: Vec<_> = received.chunks(4).collect();
        pieces.sort_unstable();
        assert_eq!(pieces, GATHERED.chunks(4).collect::<Vec<_>>());
    }
    // From one sender, whose piece is from no other rank.
    let m = &group.memory;
    for (rank, [from, to]) in group.ranks.iter().zip(m) {
        let sends = [(*from, 4 * usize::from(rank.rank == 0)); 3];
        assert_eq!(rank.exchange(&sends, &[(*to, 4), (0, 0), (0, 0)]), SUCCESS);
    }
    for rank in 0..3 {
        assert!(group.ranks[rank].ends());
        assert_eq!(group.received(rank)[..4] == [0; 4], rank != wrong);
    }
    end(&group.ranks);
}

#[test]
fn a_late_rank_is_late_and_then_comes() {
    child("faults::in_child_late", &[("FAKE_NCCL_LATE", "100"), ("FAKE_NCCL_RANK", "2")]);
}

#[test]
#[ignore = "needs the fake nccl: a_late_rank_is_late_and_then_comes runs it"]
fn in_child_late() {
    let nccl = Nccl::load();
    let group = Group::new(&nccl);
    let began = Instant::now();
    assert_eq!([0, 1, 2].map(|rank| group.gather(rank)), [SUCCESS; 3]);
    while !group.ranks[0].ends() {
        let stuck = nccl.fake.stuck();
        assert!(began.elapsed() < Duration::from_secs(60), "{stuck}");
        let wanted = "rank 0 of clique 1: an all_gather of 4 of type 1 waits for ranks [2]\n";
        assert!(stuck.contains(wanted), "{stuck}");
    }
    assert!(began.elapsed() >= Duration::from_millis(100));
    for rank in 0..3 {
        assert!(group.ranks[rank].ends());
        assert_eq!(group.received(rank), GATHERED);
    }
    end(&group.ranks);
}

#[test]
fn creation_fails_as_was_said() {
    child("faults::in_child_creation", &[("FAKE_NCCL_INIT", "3"), ("FAKE_NCCL_RANK", "1")]);
}

#[test]
#[ignore = "needs the fake nccl: creation_fails_as_was_said runs it"]
fn in_child_creation() {
    let nccl = Nccl::load();
    let (id, config) = (nccl.unique_id(), Config::new(false));
    let first = Rank::make(&nccl, 3, id, 0, &config);
    let mut comm: Comm = std::ptr::null_mut();
    bind(1);
    let code = nccl.ncclCommInitRankConfig(&mut comm, 3, id, 1, &config);
    assert_eq!((code, comm), (INTERNAL_ERROR, std::ptr::null_mut()));
    assert_eq!(first.poll_state(), IN_PROGRESS, "its peers are missing");
    assert!(nccl.fake.stuck().contains("rank 0 of clique 1: ncclCommInitRank is in progress"));
    // A rank that leaves before all have come is never replaced.
    nccl.fake.set("INIT", Some("0"));
    let second = Rank::make(&nccl, 3, id, 1, &config);
    first.abort();
    let third = Rank::make(&nccl, 3, id, 2, &config);
    assert_eq!([second.poll_state(), third.poll_state()], [IN_PROGRESS; 2]);
    abort_all(&[second, third]);
    assert_eq!(nccl.fake.count("communicators"), 0);
}

#[test]
fn revoking_ends_what_is_on_streams_and_leaves_the_communicator() {
    child("faults::in_child_revoke", &[]);
}

#[test]
#[ignore = "needs the fake nccl: revoking_ends_what_is_on_streams_and_leaves_the_communicator runs it"]
fn in_child_revoke() {
    let nccl = Nccl::load();
    // SAFETY: the function has this type.
    let revoke: unsafe extern "C" fn(Comm, c_int) -> c_int = unsafe { nccl.fake.get("ncclCommRevoke") };
    let group = Group::new(&nccl);
    assert_eq!([0, 1].map(|rank| group.gather(rank)), [SUCCESS; 2]);
    assert!(!group.ranks[0].ends());
    for rank in &group.ranks {
        // SAFETY: a handle, which the fake nccl checks.
        assert_eq!(unsafe { revoke(rank.comm, 0) }, IN_PROGRESS);
        assert_eq!(rank.poll_state(), SUCCESS);
        assert!(rank.ends());
    }
    assert_ne!(group.received(0), GATHERED);
    // A revoked communicator may be replaced or destroyed; operations and finalising are refused.
    let comm = group.ranks[0].comm;
    assert_eq!(nccl.ncclCommFinalize(comm), INVALID_ARGUMENT);
    // SAFETY: as above.
    assert_eq!(unsafe { revoke(comm, 0) }, INVALID_ARGUMENT);
    assert_eq!(nccl.fake.take_misuse(), None);
    assert_eq!(group.gather(0), INVALID_USAGE);
    nccl.expect_misuse("ncclAllGather after ncclCommRevoke");
    let mut children = [std::ptr::null_mut(); 3];
    for (rank, child) in group.ranks.iter().zip(&mut children) {
        assert_eq!(nccl.ncclCommSplit(rank.comm, 0, 0, child, std::ptr::null()), SUCCESS);
    }
    let ranks: Vec<_> = group
        .ranks
        .iter()
        .map(|rank| {
            assert_eq!(rank.poll_state(), SUCCESS);
            assert_eq!(nccl.ncclCommDestroy(rank.comm), SUCCESS);
            Rank { comm: children[rank.rank], ..*rank }
        })
        .collect();
    let again = Group { ranks, memory: group.memory.clone() };
    assert_eq!([0, 1, 2].map(|rank| again.gather(rank)), [SUCCESS; 3]);
    assert!(again.ranks.iter().all(Rank::ends));
    assert_eq!(again.received(2), GATHERED);
    end(&again.ranks);
}

/// An engine that waits for its stream without a deadline is released when another thread aborts.
#[test]
fn an_abort_ends_a_wait_that_has_no_deadline() {
    child("faults::in_child_blocked", &[]);
}

#[test]
#[ignore = "needs the fake nccl: an_abort_ends_a_wait_that_has_no_deadline runs it"]
fn in_child_blocked() {
    let nccl = Nccl::load();
    let group = Group::new(&nccl);
    assert_eq!(group.gather(0), SUCCESS);
    let (stream, comm) = (group.ranks[0].stream as usize, group.ranks[0].comm as usize);
    std::thread::scope(|scope| {
        let engine = scope.spawn(move || {
            bind(0);
            synchronize(stream as _)
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!engine.is_finished(), "its peers have not come");
        // Other ranks make progress meanwhile.
        assert_eq!(group.gather(1), SUCCESS);
        assert!(!group.ranks[1].ends());
        assert_eq!(nccl.ncclCommAbort(comm as Comm), SUCCESS);
        assert_eq!(engine.join().expect("it ends"), Ok(()));
    });
    abort_all(&group.ranks[1..]);
}

/// A wait without a deadline for a peer that never comes ends the process, and names the missing rank.
#[test]
fn a_wait_for_peers_that_has_no_end_is_named() {
    let (code, text) = super::run("faults::in_child_impatient", &[("FAKE_PATIENCE", "0")], false);
    assert!(code.is_none(), "aborted: {text}");
    let wanted = "a wait for other ranks, which did not come: rank 0 of clique 1: an all_gather of 4 of type 1 waits for ranks [1, 2]";
    assert!(text.contains(wanted), "{text}");
}

#[test]
#[ignore = "needs the fake nccl: a_wait_for_peers_that_has_no_end_is_named runs it"]
fn in_child_impatient() {
    let nccl = Nccl::load();
    let group = Group::new(&nccl);
    assert_eq!(group.gather(0), SUCCESS);
    bind(0);
    let _ = synchronize(group.ranks[0].stream);
}

/// A device whose kernel fails or never ends loses its own rank only.
#[test]
fn a_device_that_is_lost_is_lost_alone() {
    for says in [("FAKE_RUN", "700"), ("FAKE_HANG", "0")] {
        child("faults::in_child_device", &[says, ("FAKE_ON", "1"), ("FAKE_BLOCKS", "1")]);
    }
}

#[test]
#[ignore = "needs the fake nccl: a_device_that_is_lost_is_lost_alone runs it"]
fn in_child_device() {
    let nccl = Nccl::load();
    let group = Group::new(&nccl);
    let kernels = [0, 1].map(|ordinal| {
        let device = CudaDevice::open(ordinal).expect("a device");
        // The kernel that never ends must not be waited for long.
        device.set_patience([Duration::from_secs(60), Duration::from_millis(50)][ordinal]);
        let kernel = device.kernel::<ReadStreamParams>("read_stream").expect("a kernel");
        let out = group.ranks[ordinal].memory(&[0; 4096]) as *mut _;
        let params = ReadStreamParams { data: std::ptr::null(), vectors: 0, out };
        // SAFETY: the stream lives as long as the process.
        let stream = unsafe { CudaStream::from_raw(group.ranks[ordinal].stream.cast()) };
        // SAFETY: with no pieces nothing is read; the sums of 512 threads fit.
        unsafe { kernel.launch_on(stream, &Launch::new([1, 1, 1], [512, 1, 1]), &params) }.expect("a launch");
        (device, kernel)
    });
    for rank in [0, 1, 2] {
        assert_eq!(group.gather(rank), SUCCESS);
    }
    let marks: Vec<_> = group.ranks.iter().map(Rank::mark).collect();
    assert_eq!(group.ranks[0].reaches(&marks[0]), Ok(false));
    let of_lost = group.ranks[1].reaches(&marks[1]);
    assert!(
        if std::env::var("FAKE_HANG").is_ok() { of_lost == Ok(false) } else { of_lost.is_err() },
        "{of_lost:?}"
    );
    assert_eq!(group.ranks[2].reaches(&marks[2]), Ok(false));
    for rank in [0, 2] {
        group.ranks[rank].abort();
        assert_eq!(group.ranks[rank].reaches(&marks[rank]), Ok(true));
    }
    // Freeing memory waits only for the streams of its own device.
    assert_eq!(kernels[0].0.alloc(64).map(drop), Ok(()));
    assert_eq!(kernels[0].0.lost(), None);
    group.ranks[1].abort();
    std::mem::forget(kernels);
}

/// A wait executes peers' streams only as far as the waited-for work needs.
#[test]
fn a_wait_pushes_peers_only_as_far_as_they_meet() {
    child("faults::in_child_pushed", &[]);
}

#[test]
#[ignore = "needs the fake nccl: a_wait_pushes_peers_only_as_far_as_they_meet runs it"]
fn in_child_pushed() {
    let nccl = Nccl::load();
    let (one, other) = (nccl.group(2), nccl.group(2));
    let m = [0, 1].map(|rank: usize| one[rank].memory(&[rank as u8; 64]));
    let gather = |group: &[Rank<'_>], rank: usize, at: u64| {
        assert_eq!(group[rank].all_gather(m[rank] + at, m[rank] + at + 8, 4), SUCCESS);
    };
    // Rank 0 waits in the second group; rank 1 comes to it only after the first, whose rank 0 is on another
    // stream that nobody waits for.
    for rank in 0..2 {
        gather(&one, rank, 0);
        gather(&other, rank, 32);
    }
    // SAFETY: a live stream and event.
    let mark = one[1].mark();
    assert!(one[1].reaches(&mark).is_ok());
    let crossed = other[1].mark();
    assert_eq!(other[0].reaches(&other[0].mark()), Ok(true));
    assert_eq!(bytes(m[0] + 40, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_ne!(bytes(m[1] + 40, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_ne!(bytes(m[0] + 8, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(other[1].reaches(&crossed), Ok(true));
    assert!(one.iter().all(Rank::ends));
    assert_eq!(bytes(m[0] + 8, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
    end(&one);
    end(&other);
}
