//! Who runs the ranks: this process alone, with a thread for each; or the processes that `mpirun` has
//! started, one rank each, whose results the first process collects and reports.

use crate::Failure;
use crate::args::{ExchangeName, RunArgs};
use crate::ranks::{Connect, InProcess};
use lmhead::error::{Error, Result};
#[cfg(any(test, feature = "mpi"))]
use lmhead::exchange::Place;
use lmhead::exchange::{Call, Exchange, Operation};
#[cfg(feature = "mpi")]
use lmhead::exchange::{Fault, mpi::Mpi};
#[cfg(feature = "mpi")]
use lmhead::layout::HeadGroup;
use lmhead::layout::{Launch, ParallelLayout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Variables that MPI launchers set in every process. Those of other launchers (Slurm, torchrun) are also set
/// around programs that run once, and count only with `--exchange mpi`.
const MPI_VARIABLES: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE"];

/// This process's rank among those that `mpirun` has started; `None` unless there are several.
fn mpirun() -> Result<Option<Launch>> {
    if MPI_VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(None);
    }
    Ok(Launch::from_env()?.filter(|launch| launch.world_size > 1))
}

/// The processes that share this run; `None` where this is the only one.
///
/// # Errors
/// `Config` where a launcher's variables are incomplete, or missing with `--exchange mpi`; `Unsupported`
/// where this build has no MPI.
pub fn launch(exchange: ExchangeName) -> std::result::Result<Option<Launch>, Failure> {
    let launch = match exchange {
        ExchangeName::Local => return Ok(None),
        ExchangeName::Auto => mpirun()?,
        ExchangeName::Mpi => Some(Launch::from_env()?.ok_or_else(|| Error::Config {
            key: "--exchange mpi".into(),
            wanted: "a process that mpirun or srun has started".into(),
            got: "one that has no launcher's variables".into(),
            fix: "start it as in mpirun -n 4 lmhead run ...".into(),
        })?),
    };
    match launch {
        Some(launch) if !cfg!(feature = "mpi") => refuse(
            &launch,
            "--exchange",
            "a build that knows MPI",
            "build with --features mpi (scripts/mpi says what that needs), or start one process; with \
             --exchange local each process runs all ranks by itself",
        ),
        launch => Ok(launch),
    }
}

/// Refuses several processes for a subcommand that runs in one.
///
/// # Errors
/// `Unsupported` where `mpirun` has started several.
pub fn refuse_several(subcommand: &str) -> std::result::Result<(), Failure> {
    let Some(launch) = mpirun()? else { return Ok(()) };
    let fix = "start it without mpirun; only lmhead run spreads over processes";
    refuse(&launch, &format!("lmhead {subcommand}"), "one process", fix)
}

/// An error that all processes of a job make alike: only the first reports it.
fn refuse<T>(launch: &Launch, what: &str, wanted: &str, fix: &str) -> std::result::Result<T, Failure> {
    if launch.rank != FIRST {
        return Err(Failure::Said);
    }
    let Launch { rank, world_size, launcher, .. } = launch;
    Err(Failure::Input(Error::Unsupported {
        what: what.into(),
        wanted: wanted.into(),
        got: format!("rank {rank} of {world_size} by {launcher}"),
        fix: fix.into(),
    }))
}

/// MPI has been started and not finished: the process must then exit without finalising MPI, which would wait
/// for every rank.
static JOINED: AtomicBool = AtomicBool::new(false);

/// How long a failed rank waits before it exits, so that the others can report too: `mpirun` kills them when
/// the first process fails.
const EXIT_DELAY: Duration = Duration::from_millis(300);

/// How long another rank waits before it reports an error in its input: where the first process has the same
/// error, it reports it for all.
#[cfg(feature = "mpi")]
const FIRST_REPORT_WAIT: Duration = Duration::from_millis(1000);

/// This process's rank, where there are several.
pub fn rank() -> Option<usize> {
    if JOINED.load(Ordering::Relaxed) { Launch::from_env() } else { mpirun() }.ok()?.map(|launch| launch.rank)
}

/// Reports a failure from before the processes were connected. They connect, so that an error that all of
/// them have is reported once.
pub fn say_once(failure: Failure) -> Failure {
    match launch(ExchangeName::Auto) {
        Ok(launch) => match RunJob::join(launch) {
            Ok(job) => job.give_up(failure),
            Err(_) => failure,
        },
        // A build without MPI, in a process other than the first.
        Err(Failure::Said) => Failure::Said,
        Err(_) => failure,
    }
}

/// Exits at once if MPI has been started and not finished; returns otherwise.
pub fn end_unfinished(code: u8) {
    if JOINED.load(Ordering::Relaxed) {
        std::thread::sleep(EXIT_DELAY);
        crate::interrupt::exit_at_once(code);
    }
}

/// How the ranks are run: as threads of this process, or as MPI processes.
pub enum RunJob {
    Alone(InProcess),
    #[cfg(feature = "mpi")]
    Mpi(Mpi),
}

impl RunJob {
    /// Joins the processes of `launch`, each of which runs one rank of `layout`.
    ///
    /// # Errors
    /// `Exchange` where they cannot be connected.
    pub fn join(launch: Option<Launch>) -> Result<Self> {
        match launch {
            None => Ok(RunJob::Alone(InProcess::default())),
            #[cfg(feature = "mpi")]
            Some(_) => {
                JOINED.store(true, Ordering::Relaxed);
                Ok(RunJob::Mpi(Mpi::start()?))
            }
            #[cfg(not(feature = "mpi"))]
            Some(_) => join_without_mpi(),
        }
    }

    /// What carries bytes between ranks.
    pub fn name(&self) -> &'static str {
        match self {
            RunJob::Alone(_) => "local",
            #[cfg(feature = "mpi")]
            RunJob::Mpi(_) => "mpi",
        }
    }

    pub fn connect(&mut self) -> &mut dyn Connect {
        match self {
            RunJob::Alone(alone) => alone,
            #[cfg(feature = "mpi")]
            RunJob::Mpi(mpi) => mpi,
        }
    }

    /// The processes that share this run, where there are several; no call of them lasts longer than
    /// `timeout`.
    #[cfg_attr(not(feature = "mpi"), expect(unused_variables, reason = "there are no others"))]
    pub fn peers(&self, timeout: Duration) -> Option<Peers> {
        match self {
            RunJob::Alone(_) => None,
            #[cfg(feature = "mpi")]
            RunJob::Mpi(mpi) => Some(Peers::new(mpi.everyone(), timeout)),
        }
    }

    /// Tells the other processes that this one fails. An error that the first process reports in the same
    /// words is not reported again.
    pub fn give_up(&self, failure: Failure) -> Failure {
        match self {
            RunJob::Alone(_) => failure,
            #[cfg(feature = "mpi")]
            RunJob::Mpi(mpi) => {
                let words = failure.to_string();
                if matches!(failure, Failure::Input(_))
                    && mpi.rank() != FIRST
                    && first_failed_with(&*mpi.everyone(), &words)
                {
                    return Failure::Said;
                }
                mpi.give_up(&words);
                failure
            }
        }
    }

    /// Finishes the job once all processes do. The first process is waited for as long as its heartbeat
    /// ([`Alive`]) goes on.
    ///
    /// # Errors
    /// Naming the ranks that did not come within `timeout`, or failed.
    #[cfg_attr(not(feature = "mpi"), expect(unused_variables, reason = "there are no others"))]
    pub fn finish(self, timeout: Duration) -> Result<()> {
        match self {
            RunJob::Alone(_) => Ok(()),
            #[cfg(feature = "mpi")]
            RunJob::Mpi(mpi) => {
                if mpi.rank() != FIRST {
                    await_first(&*mpi.everyone(), timeout);
                }
                mpi.finish(timeout)?;
                JOINED.store(false, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

#[cfg(not(feature = "mpi"))]
fn join_without_mpi() -> Result<RunJob> {
    // `launch` refuses this before.
    Err(Error::Unsupported {
        what: "--exchange".into(),
        wanted: "a build that knows MPI".into(),
        got: "several processes".into(),
        fix: "build with --features mpi".into(),
    })
}

/// Waits for the first process to fail; returns whether its reason was `words`.
#[cfg(feature = "mpi")]
fn first_failed_with(everyone: &dyn Exchange, words: &str) -> bool {
    let began = Instant::now();
    while began.elapsed() < FIRST_REPORT_WAIT {
        match everyone.pending_fault() {
            Some((_, Fault::Aborted { member: FIRST, reason })) => return reason == words,
            Some(_) => return false,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

/// The layout must have as many ranks as there are processes.
///
/// # Errors
/// `Config` naming both numbers.
pub fn check_layout(launch: Option<&Launch>, layout: &ParallelLayout) -> Result<()> {
    let (Some(launch), ranks) = (launch, layout.world_size()?) else { return Ok(()) };
    if ranks == launch.world_size {
        return Ok(());
    }
    Err(Error::Config {
        key: "--dp, --tp".into(),
        wanted: format!(
            "{} ranks, one for each process that {} has started",
            launch.world_size, launch.launcher
        ),
        got: format!("dp {} x tp {}: {ranks} ranks", layout.dp, layout.tp),
        fix: format!("start {ranks} processes (mpirun -n {ranks}), or leave --dp out"),
    })
}

/// Threads of this process: as given, or an equal share of the CPUs where several processes run on this
/// machine. `None` leaves it to the backend.
pub fn threads_of(args: &RunArgs, launch: Option<&Launch>) -> Option<usize> {
    let shared = launch.and_then(|launch| launch.local_size).filter(|local| *local > 1);
    let (None, Some(processes)) = (args.threads, shared) else { return args.threads };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Some((cpus / processes).max(1))
}

/// The other processes of a job, from this one's view.
pub struct Peers {
    exchange: Arc<dyn Exchange>,
    timeout: Duration,
}

/// The process that collects and reports.
const FIRST: usize = 0;

impl Peers {
    #[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "only MPI has several processes"))]
    fn new(exchange: Arc<dyn Exchange>, timeout: Duration) -> Self {
        Peers { exchange, timeout }
    }

    /// This process's rank.
    pub fn me(&self) -> usize {
        self.exchange.me()
    }

    /// Whether this process collects and reports.
    pub fn is_first(&self) -> bool {
        self.me() == FIRST
    }

    /// Sends `bytes` to the first process, whose `recv` has a piece for each process; that of the others is
    /// empty.
    pub fn collect(&self, bytes: &[u8], recv: &mut [&mut [u8]]) -> Result<()> {
        let mut send: Vec<&[u8]> = vec![&[]; self.exchange.size()];
        send[FIRST] = bytes;
        let mut none: Vec<&mut [u8]> = send.iter().map(|_| &mut [][..]).collect();
        let recv = if self.is_first() { recv } else { &mut none };
        let call = self.call();
        let ranks: Vec<usize> = (0..self.exchange.size()).collect();
        let delivered = self.exchange.all_to_all_v(&call, &send, recv);
        delivered.map_err(|fault| fault.into_error(&call, &ranks))
    }

    /// Sends text of any length to the first process, which gets everyone's; the others get nothing.
    pub fn collect_texts(&self, text: &str) -> Result<Vec<String>> {
        let size = self.exchange.size();
        let mut lengths = vec![0; 8 * size];
        let mut slices: Vec<&mut [u8]> = lengths.chunks_mut(8).collect();
        self.collect(&(text.len() as u64).to_le_bytes(), &mut slices)?;
        if !self.is_first() {
            self.collect(text.as_bytes(), &mut [])?;
            return Ok(Vec::new());
        }
        let lengths = lengths.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize);
        let mut texts: Vec<Vec<u8>> = lengths.map(|length| vec![0; length]).collect();
        let mut slices: Vec<&mut [u8]> = texts.iter_mut().map(Vec::as_mut_slice).collect();
        self.collect(text.as_bytes(), &mut slices)?;
        Ok(texts.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect())
    }

    fn call(&self) -> Call {
        job_call(Operation::ExchangeResults, self.timeout)
    }
}

/// A call of all processes.
fn job_call(operation: Operation, timeout: Duration) -> Call {
    let began = Instant::now();
    let deadline = began + timeout;
    Call { head: 0, instance: 0, epoch: 0, step: 0, operation, terms: 0, began, deadline }
}

/// Interval of the first process's heartbeat, while the others wait for it alone.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// Heartbeat of the first process. It checks and writes the answers, which may take longer than any call;
/// until this is dropped, a thread tells the others that it is alive.
pub struct Alive(Option<(Sender<()>, JoinHandle<()>)>);

impl Alive {
    /// # Errors
    /// `Exchange` where there is no thread for it.
    pub fn new(peers: &Peers) -> Result<Self> {
        let exchange = Arc::clone(&peers.exchange);
        let (stop, stopped) = mpsc::channel();
        let tell = move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                exchange.note(&job_call(Operation::ExchangeResults, HEARTBEAT));
                // Polls the transport, which sends the note.
                let _ = exchange.pending_fault();
            }
        };
        let thread = Builder::new().name("lmhead alive".into()).spawn(tell);
        let thread = thread.map_err(|error| Error::Exchange {
            operation: "telling the other processes that the answers are checked".into(),
            problem: format!("no thread: {error}"),
            fix: "look at the limit of threads (ulimit -u)".into(),
        })?;
        Ok(Alive(Some((stop, thread))))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// Waits until the first process reaches the end of the job, fails, or has been silent for `silence`; the end
/// of the job then reports what is wrong.
#[cfg(any(test, feature = "mpi"))]
fn await_first(everyone: &dyn Exchange, silence: Duration) {
    let lives = |place: &Place| place.operation != Operation::Idle && place.age < silence;
    while everyone.pending_fault().is_none() && everyone.places()[FIRST].as_ref().is_some_and(lives) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(feature = "mpi")]
impl Connect for Mpi {
    fn ranks(&self, _: &ParallelLayout) -> Result<Vec<usize>> {
        Ok(vec![self.rank()])
    }

    fn endpoint(&mut self, group: &HeadGroup) -> Result<Arc<dyn Exchange>> {
        Ok(Arc::new(self.exchange(group.ranks())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lmhead::exchange::local;

    /// The first process works for three times as long as the others would wait without a word of it.
    #[test]
    fn the_first_process_is_waited_for_as_long_as_it_lives() {
        const TIMEOUT: Duration = Duration::from_secs(1);
        std::thread::scope(|scope| {
            for exchange in local::group(3) {
                scope.spawn(move || {
                    let peers = Peers { exchange: Arc::new(exchange), timeout: TIMEOUT };
                    // As before the check: what all have found goes to the first one.
                    peers.exchange.note(&peers.call());
                    let mut bytes = [0; 3];
                    let mut recv: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
                    peers.collect(&[7], &mut recv).expect("all are there");
                    if peers.is_first() {
                        let alive = Alive::new(&peers).expect("a thread");
                        std::thread::sleep(3 * TIMEOUT);
                        drop(alive);
                    } else {
                        await_first(&*peers.exchange, TIMEOUT);
                    }
                    let end = job_call(Operation::Idle, TIMEOUT);
                    peers.exchange.note(&end);
                    let mut recv: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
                    let met = peers.exchange.all_gather_v(&end, &[0, 1, 2], &[1], &mut recv);
                    assert_eq!(met, Ok(()), "rank {}", peers.me());
                });
            }
        });
    }

    #[test]
    fn a_first_process_that_says_nothing_or_has_failed_is_not_waited_for() {
        for fails in [false, true] {
            let exchanges = local::group(2);
            exchanges[FIRST].note(&job_call(Operation::ExchangeResults, HEARTBEAT));
            let (began, silence) = (Instant::now(), Duration::from_millis(if fails { 600_000 } else { 300 }));
            if fails {
                exchanges[FIRST].notify_abort(&job_call(Operation::Idle, HEARTBEAT), "the check failed");
            }
            await_first(&exchanges[1], silence);
            assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
            assert_eq!(exchanges[1].pending_fault().is_some(), fails);
        }
    }
}
