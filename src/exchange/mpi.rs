//! Ranks as processes of an MPI job, on one host or several, without a GPU; the feature `mpi`.
//!
//! ```no_run
//! # fn main() -> lmhead::Result<()> {
//! use lmhead::exchange::mpi::Mpi;
//! use std::time::Duration;
//!
//! let mpi = Mpi::start()?;
//! let exchange = mpi.exchange(&[0, 1, 2, 3])?; // on each of these ranks
//! // ... heads, steps ...
//! # drop(exchange);
//! mpi.finish(Duration::from_secs(60)) // on every rank of the job, if all went well
//! # }
//! ```
//!
//! Everything goes over nonblocking point-to-point messages on a communicator of the library's own, so that
//! no message of the engine's is taken for one of these. After [`Mpi::start`] no collective of MPI is called
//! before [`Mpi::finish`]: those wait without a deadline. All calls of MPI are under one lock, so the level
//! `MPI_THREAD_SERIALIZED` is enough, and heads may be stepped from several threads.
//!
//! **Faults.** MPI tells nobody that a process has died: to short messages it seems to take them, and long
//! ones stay pending for ever. What ends a wait is the deadline, or the notice of a peer. By default `mpirun`
//! kills every process when one ends badly; with `--enable-recovery` (Open MPI) the others go on, and each
//! gets its named error.
//!
//! **After a fault do not finalise.** `MPI_Finalize` waits for every process, so it can hang for ever: report
//! the error, then leave by `_exit`. [`Mpi`] finalises in [`Mpi::finish`] alone, once all ranks have said
//! that they are done; dropping it does not.

mod calls;

use super::messages::{Event, Link, MessageExchange};
use super::{Call, Exchange, Operation};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layout::Launch;
use ::mpi::environment::{self, Threading, Universe};
use calls::World;
use std::collections::{HashMap, VecDeque};
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use calls::PendingSends;

/// A receive polls, yielding to other threads, until `BUSY` after something last came or went; then it sleeps
/// between polls.
const BUSY: Duration = Duration::from_millis(1);
const SLEEP: Duration = Duration::from_micros(50);

/// This process's part in an MPI job.
pub struct Mpi {
    world: Arc<World>,
    /// Finalises when it is dropped; `None` where the engine has initialised MPI and will finalise it.
    universe: Option<ManuallyDrop<Universe>>,
    /// The exchange of all ranks.
    everyone: Arc<MessageExchange>,
    /// How many exchanges of the same ranks this process has made.
    made: Mutex<HashMap<Vec<usize>, u64>>,
}

impl Mpi {
    /// Joins the job: initialises MPI where the engine has not, and duplicates its world. Collective: waits
    /// for every process of the job, as `MPI_Init` does. Once in a process.
    ///
    /// # Errors
    /// `Unsupported` where MPI has been initialised without enough thread support, or finalised already;
    /// `Exchange` where it fails, or connects other processes than the launcher says.
    pub fn start() -> Result<Self> {
        let launch = Launch::from_env()?;
        let what = "MPI";
        if environment::is_finalized() {
            let fix = "call Mpi::start once in a process, before MPI_Finalize";
            return Err(Error::unsupported(what, "a job to join", "MPI has been finalised", fix));
        }
        let universe = match environment::initialize_with_threading(Threading::Serialized) {
            Some((universe, level)) => {
                // From here on it finalises only where `finish` lets it.
                let universe = ManuallyDrop::new(universe);
                if level < Threading::Serialized {
                    let fix = "use an MPI library that was built with threads";
                    return Err(Error::unsupported(what, "MPI_THREAD_SERIALIZED", format!("{level:?}"), fix));
                }
                Some(universe)
            }
            // The engine's own calls are not under our lock.
            None if environment::threading_support() < Threading::Multiple => {
                let got = format!("initialised by the engine with {:?}", environment::threading_support());
                let fix = "initialise MPI with MPI_THREAD_MULTIPLE (mpi4py does), or leave it to lmhead";
                return Err(Error::unsupported(what, "MPI_THREAD_MULTIPLE", got, fix));
            }
            None => None,
        };
        let world = Arc::new(World::duplicate()?);
        if let Some(launch) = launch
            && (launch.rank, launch.world_size) != (world.rank(), world.size())
        {
            return Err(Error::Exchange {
                operation: "start of MPI".into(),
                problem: format!(
                    "{} started this process as rank {} of {}, MPI connects it as rank {} of {}",
                    launch.launcher,
                    launch.rank,
                    launch.world_size,
                    world.rank(),
                    world.size()
                ),
                fix: "use the mpirun of the MPI library that lmhead was built with (under Slurm: srun \
                      --mpi=pmix)"
                    .into(),
            });
        }
        let everyone = MessageExchange::new(MpiLink::new(&world, (0..world.size()).collect(), 0));
        Ok(Mpi { world, universe, everyone: Arc::new(everyone), made: Mutex::default() })
    }

    /// This process's rank in the job.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Processes of the job.
    pub fn size(&self) -> usize {
        self.world.size()
    }

    /// This process's endpoint of an exchange between the processes `ranks`, in that order: of a head group,
    /// `group.ranks()`. Sends nothing, waits for nobody. Every one of these ranks makes its exchanges of the
    /// same ranks in the same order.
    ///
    /// # Errors
    /// `Config` where `ranks` names a process that is not of this job, names one twice, or leaves this one
    /// out.
    pub fn exchange(&self, ranks: &[usize]) -> Result<MessageExchange> {
        let key = "ranks of the exchange";
        let (me, size) = (self.rank(), self.size());
        if let Some(none) = ranks.iter().find(|rank| **rank >= size) {
            let fix = format!(
                "start as many processes as there are ranks (mpirun -n {}), or use fewer ranks",
                none + 1
            );
            let got = format!("rank {none} in {ranks:?}");
            return Err(Error::config(key, format!("ranks of this MPI job, 0 to {}", size - 1), got, fix));
        }
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let twice = sorted.windows(2).any(|pair| pair[0] == pair[1]);
        if twice || !ranks.contains(&me) {
            let wanted = format!("each rank once, with this process's rank {me} among them");
            let fix = "pass each rank the list of its own group";
            return Err(Error::config(key, wanted, format!("{ranks:?}"), fix));
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let count = made.entry(ranks.to_vec()).or_default();
        let mut id = Digest::new();
        ranks.iter().for_each(|&rank| id.word(rank as u64));
        id.word(*count);
        *count += 1;
        Ok(MessageExchange::new(MpiLink::new(&self.world, ranks.to_vec(), id.finish())))
    }

    /// An exchange of all processes of the job, in the order of their ranks, for use outside of heads. The
    /// same one each time; [`Mpi::finish`] and [`Mpi::give_up`] go over it.
    pub fn everyone(&self) -> Arc<dyn Exchange> {
        Arc::clone(&self.everyone) as Arc<dyn Exchange>
    }

    /// Sends that no peer has taken yet. After a fault, sends to a process that has stopped stay pending, and
    /// keep their memory.
    pub fn pending_sends(&self) -> PendingSends {
        self.world.pending_sends()
    }

    /// Tells the other ranks that this one will not come to [`Mpi::finish`], and why: whoever waits there, or
    /// in [`Mpi::everyone`], is told at once. For a rank that fails where no head of its own tells its peers.
    pub fn give_up(&self, reason: &str) {
        self.everyone.notify_abort(&end(Duration::ZERO), reason);
    }

    /// Leaves the job. Waits until every rank has called this, and then finalises MPI where [`Mpi::start`]
    /// initialised it. Drop heads and exchanges before.
    ///
    /// # Errors
    /// `Timeout`, `RankLost` or `StepMismatch` naming the ranks that did not come by then, have ended, or
    /// gave up: MPI is then not finalised, which would wait for them. Leave by `_exit`.
    pub fn finish(self, timeout: Duration) -> Result<()> {
        let call = end(timeout);
        let everyone: Vec<usize> = (0..self.size()).collect();
        let mut bytes = vec![0; self.size()];
        let mut recv: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
        let met = self.everyone.all_gather_v(&call, &everyone, &[1], &mut recv);
        met.map_err(|fault| fault.into_error(&call, &everyone))?;
        self.everyone.disband();
        let Mpi { world, universe, .. } = self;
        let until = Instant::now() + timeout;
        while world.pending_sends().count > 0 && Instant::now() < until {
            world.progress();
            thread::yield_now();
        }
        let pending = world.pending_sends();
        if pending.count > 0 {
            return Err(Error::Exchange {
                operation: "end of MPI".into(),
                problem: format!("{} messages of {} bytes do not go out", pending.count, pending.bytes),
                fix: "end the process by _exit: MPI_Finalize would wait for them".into(),
            });
        }
        if let Some(universe) = universe {
            // All ranks have come here, and nothing is pending.
            drop(ManuallyDrop::into_inner(universe));
        }
        Ok(())
    }
}

/// The call in which all ranks meet at the end.
fn end(timeout: Duration) -> Call {
    let began = Instant::now();
    Call {
        head: 0,
        instance: 0,
        epoch: 0,
        step: 0,
        operation: Operation::Idle,
        terms: 0,
        began,
        deadline: began.checked_add(timeout).unwrap_or(began),
    }
}

/// An exchange's messages on the job's communicator.
struct MpiLink {
    world: Arc<World>,
    id: u64,
    me: usize,
    /// Ranks of the job, by member.
    ranks: Vec<usize>,
    /// Members, by rank of the job.
    members: Vec<Option<usize>>,
    /// Memory in which one receive collects what has come.
    came: Mutex<VecDeque<(usize, Vec<u8>)>>,
    /// When something last came or went.
    active: Mutex<Instant>,
}

impl MpiLink {
    fn new(world: &Arc<World>, ranks: Vec<usize>, id: u64) -> Self {
        let mut members = vec![None; world.size()];
        ranks.iter().enumerate().for_each(|(member, &rank)| members[rank] = Some(member));
        let me = members[world.rank()].unwrap_or_default();
        let (came, active) = (Mutex::default(), Mutex::new(Instant::now()));
        MpiLink { world: Arc::clone(world), id, me, ranks, members, came, active }
    }

    fn active(&self) -> MutexGuard<'_, Instant> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MpiLink {
    fn drop(&mut self) {
        self.world.close(self.id);
    }
}

impl Link for MpiLink {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn me(&self) -> usize {
        self.me
    }

    fn id(&self) -> u64 {
        self.id
    }

    fn send(&self, to: usize, frame: Arc<Vec<u8>>) {
        self.world.send(self.ranks[to], frame);
        *self.active() = Instant::now();
    }

    fn receive(&self, until: Instant, take: &mut dyn FnMut(Event)) {
        let mut came = std::mem::take(&mut *self.came.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let (moved, broken) = self.world.collect(self.id, &mut came);
            let now = Instant::now();
            if moved || !came.is_empty() {
                *self.active() = now;
            }
            let any = !came.is_empty() || broken.is_some();
            // Outside of MPI's lock: `take` may wait for a thread that sends.
            for (rank, bytes) in came.drain(..) {
                match self.members[rank] {
                    Some(from) => take(Event::Frame { from, bytes }),
                    None => self.world.give_back(bytes),
                }
            }
            if let Some(problem) = broken {
                let fix = "start the job anew; mpirun's own output may say more".into();
                take(Event::Broken { problem, fix });
            }
            if any || moved || now >= until {
                break;
            }
            let idle = now.saturating_duration_since(*self.active());
            if idle < BUSY { thread::yield_now() } else { thread::sleep(SLEEP.min(until - now)) }
        }
        *self.came.lock().unwrap_or_else(PoisonError::into_inner) = came;
    }

    fn sends_by_itself(&self) -> bool {
        false
    }

    fn give_back(&self, bytes: Vec<u8>) {
        self.world.give_back(bytes);
    }

    fn release_memory(&self) {
        self.world.release_memory();
    }
}
