//! Ranks as processes that share one GPU, over NVIDIA's NCCL: steps, a rank that does not come or is killed,
//! graphs. Only faults are timed: on a shared GPU, NCCL takes turns and uses sockets.

use super::device;
use libtest_mimic::{Completion, Failed, Trial};
use lmhead::exchange::nccl::Nccl;
use lmhead_gpu::nccl_ranks::{BROKEN, KILLED_RANK, SCENARIOS, WAITED_FOR};
use lmhead_gpu::needs::first_sentence;
use lmhead_testkit::processes::{self, Launcher, Processes};
use std::time::Duration;

/// The ranks of a group.
const SIZES: [usize; 2] = [2, 4];

/// Time limit of a scenario on a GPU that its ranks take turns on.
const WITHIN: Duration = Duration::from_secs(110);

/// Runs the scenario for which a test here has started this program, and ends the process.
pub fn enter() {
    processes::enter(SCENARIOS, |_| panic!("this program is not started by mpirun"));
}

/// A test for each scenario and size.
pub fn trials() -> impl Iterator<Item = Trial> {
    let all = SCENARIOS.iter().flat_map(|(name, _)| SIZES.map(|size| (*name, size)));
    all.map(|(name, size)| {
        Trial::ignorable_test(format!("nccl::{} of {size} ranks", name.replace(' ', "_")), move || {
            if let Err(reason) = device() {
                return Ok(Completion::ignored_with(format!("needs a GPU: {reason}")));
            }
            match Nccl::load(None) {
                Err(error) => {
                    Ok(Completion::ignored_with(format!("needs a GPU: {}", first_sentence(&error))))
                }
                Ok(_) => run(name, size).map(|()| Completion::Completed),
            }
        })
    })
}

fn run(name: &str, size: usize) -> Result<(), Failed> {
    let mut ranks = Processes::start(Launcher::Test, "a rank", name, size);
    let killed = (name == KILLED_RANK).then_some(BROKEN);
    if let Some(rank) = killed {
        ranks.wait_for(rank, WAITED_FOR);
        // Its peers wait for it by now, or come after its end: they name it either way.
        std::thread::sleep(Duration::from_millis(500));
        ranks.kill(rank);
    }
    let answers = ranks.answers(WITHIN, None);
    let mut failed = None;
    for (rank, answer) in answers.iter().enumerate() {
        println!("nccl, {name}, rank {rank} of {size}: {answer:?}");
        if answer.is_none() && killed != Some(rank) {
            println!("{}", ranks.said(rank));
            failed.get_or_insert(rank);
        }
    }
    match failed {
        None => Ok(()),
        Some(rank) => Err(format!("{name}: rank {rank} of {size} failed; what it said is above").into()),
    }
}
