//! Random correct programs: two communicators and two streams on each rank, ranks ahead of others, queries at
//! any time, eager and captured operations of every kind.

use super::child;
use super::ranks::{Nccl, Rank, SUCCESS, UINT8, bytes, end};
use cudarc::driver::result;
use cudarc::driver::sys::CUstream;
use lmhead_testkit::Random;
use std::ffi::c_int;

/// What all ranks do at one position of the program.
struct Step {
    communicator: usize,
    kind: ProgramStep,
    /// How often a captured step is replayed; `None` if it is eager.
    replays: Option<usize>,
}

#[derive(Clone, Copy)]
enum ProgramStep {
    Gather,
    /// One group with a broadcast of each rank's piece.
    Broadcasts,
    /// One group of sends and receives.
    Exchange,
    AllToAll,
}

struct Program {
    size: usize,
    steps: Vec<Step>,
    seed: u64,
}

impl Program {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let size = 1 + random.below(4);
        let kinds =
            [ProgramStep::Gather, ProgramStep::Broadcasts, ProgramStep::Exchange, ProgramStep::AllToAll];
        let steps = (0..8).map(|_| Step {
            communicator: random.below(2),
            kind: kinds[random.below(4)],
            replays: (random.below(3) == 0).then(|| 1 + random.below(3)),
        });
        Program { size, steps: steps.collect(), seed }
    }

    /// Bytes from rank `from` to rank `to`, where counts differ between peers.
    fn count(&self, step: usize, from: usize, to: usize) -> usize {
        let spread = |to: usize| Random(self.seed ^ ((step * 8 + from) * 8 + to) as u64 ^ 0xabcd).below(6);
        match self.steps[step].kind {
            ProgramStep::Gather | ProgramStep::AllToAll => Random(self.seed ^ step as u64).below(6),
            ProgramStep::Broadcasts => spread(0),
            ProgramStep::Exchange => spread(to),
        }
    }

    fn is_personal(&self, step: usize) -> bool {
        matches!(self.steps[step].kind, ProgramStep::Exchange | ProgramStep::AllToAll)
    }

    fn piece(&self, step: usize, from: usize, to: usize) -> Vec<u8> {
        let to_one = if self.is_personal(step) { to } else { 0 };
        let mut random = Random(self.seed ^ ((step * 64 + from) * 64 + to_one) as u64);
        (0..self.count(step, from, to)).map(|_| random.next() as u8).collect()
    }

    fn sent(&self, step: usize, from: usize) -> Vec<u8> {
        let peers = if self.is_personal(step) { self.size } else { 1 };
        (0..peers).flat_map(|to| self.piece(step, from, to)).collect()
    }

    fn received(&self, step: usize, to: usize) -> Vec<u8> {
        (0..self.size).flat_map(|from| self.piece(step, from, to)).collect()
    }

    /// Puts a step on `stream`, after a copy of the data it sends.
    fn issue(&self, step: usize, rank: &Rank<'_>, stream: CUstream) -> u64 {
        let (me, sent) = (rank.rank, self.sent(step, rank.rank));
        let [source, from] = [&sent[..], &vec![0; sent.len()][..]].map(|bytes| rank.memory(bytes));
        let to = rank.memory(&vec![0; self.received(step, me).len()]);
        let count = |from: usize, to: usize| self.count(step, from, to);
        let calls = |nccl: &Nccl| match self.steps[step].kind {
            ProgramStep::Gather => {
                nccl.ncclAllGather(from, to, count(me, 0), UINT8, rank.comm, stream);
            }
            ProgramStep::AllToAll => {
                nccl.ncclAlltoAll(from, to, count(me, 0), UINT8, rank.comm, stream);
            }
            ProgramStep::Broadcasts => {
                let mut at = to;
                for root in 0..self.size {
                    let of_root = count(root, me);
                    nccl.ncclBroadcast(from, at, of_root, UINT8, root as c_int, rank.comm, stream);
                    at += of_root as u64;
                }
            }
            ProgramStep::Exchange => {
                let [mut out, mut into] = [from, to];
                for peer in 0..self.size {
                    let [sends, takes] = [count(me, peer), count(peer, me)];
                    nccl.ncclSend(out, sends, UINT8, peer as c_int, rank.comm, stream);
                    nccl.ncclRecv(into, takes, UINT8, peer as c_int, rank.comm, stream);
                    out += sends as u64;
                    into += takes as u64;
                }
            }
        };
        let run = || {
            // SAFETY: the memory is never freed.
            unsafe { result::memcpy_dtod_async(from, source, sent.len(), stream) }.expect("a copy");
            assert_eq!(rank.group(calls), SUCCESS, "{}", rank.nccl.last_error(rank.comm));
        };
        let on = Rank { stream, ..*rank };
        match self.steps[step].replays {
            None => run(),
            Some(replays) => {
                let graph = on.capture(run);
                (0..replays).for_each(|_| on.replay(graph));
                on.give_back(graph);
            }
        }
        to
    }

    fn run(&self, nccl: &Nccl) {
        let mut random = Random(self.seed ^ 0x5eed);
        let communicators = [nccl.group(self.size), nccl.group(self.size)];
        // For each rank: where each step's result will be, and on which of its streams.
        let mut issued: Vec<Vec<(u64, usize)>> = vec![Vec::new(); self.size];
        let ask = |rank: usize, stream: usize, issued: &[Vec<(u64, usize)>]| {
            let ends = communicators[stream][rank].ends();
            for (step, (to, _)) in
                issued[rank].iter().enumerate().filter(|(_, (_, on))| ends && *on == stream)
            {
                let wanted = self.received(step, rank);
                assert_eq!(bytes(*to, wanted.len()), wanted, "step {step} of rank {rank}");
            }
            ends
        };
        while issued.iter().any(|steps| steps.len() < self.steps.len()) {
            let rank = random.below(self.size);
            let step = issued[rank].len();
            if step < self.steps.len() {
                let on = random.below(2);
                let communicator = &communicators[self.steps[step].communicator][rank];
                communicator.bind();
                issued[rank].push((self.issue(step, communicator, communicators[on][rank].stream), on));
            }
            if random.below(3) == 0 {
                ask(random.below(self.size), random.below(2), &issued);
            }
        }
        for number in 0..2 * self.size {
            let (rank, stream) = ((number + self.seed as usize) % self.size, number / self.size);
            assert!(ask(rank, stream, &issued), "{}", nccl.fake.stuck());
        }
        communicators.iter().for_each(|group| end(group));
        communicators.iter().flatten().for_each(Rank::give_back_stream);
    }
}

#[test]
fn random_programs_receive_what_was_sent() {
    child("programs::in_child_random", &[]);
    child("programs::in_child_random", &[("FAKE_NCCL_POLLS", "5")]);
}

#[test]
#[ignore = "needs the fake nccl: random_programs_receive_what_was_sent runs it"]
fn in_child_random() {
    let nccl = Nccl::load();
    for seed in 0..300 {
        println!("seed {seed}");
        Program::new(seed).run(&nccl);
    }
    assert_eq!((nccl.fake.count("communicators"), nccl.fake.count("misuses")), (0, 0));
    assert!(nccl.fake.count("replays") > 1000 && nccl.fake.count("bytes") > 10_000);
}
