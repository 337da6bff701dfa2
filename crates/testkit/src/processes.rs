//! Ranks as processes, for tests: the test program starts itself once for each rank, or has `mpirun` do so.
//!
//! * [`Processes`]: starts the ranks of a scenario, stops or kills some, and collects their answers, all
//!   within a deadline.
//! * [`enter`]: runs the started program as a rank.
//! * `exchange`: the transport between the processes over sockets. (Over MPI it is the library's.)
//!
//! A scenario is a function of a [`Rank`]. It also runs on threads over `local` ([`on_threads`]), so that one
//! table of tests covers all transports.

mod exchange;

use crate::{engine, local_group};
use lmhead::exchange::Exchange;
use serde_json::{Value, json};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Environment variable that tells the started program which rank of which scenario it is: `rank size folder
/// scenario`. The rank is [`OF_MPI`] where MPI gives the number.
const VARIABLE: &str = "LMHEAD_TEST_RANK";
const OF_MPI: &str = "mpi";

/// How long a rank may live, whatever happens to the test that started it.
const LIFETIME: Duration = Duration::from_secs(120);

/// One rank of a scenario.
pub struct Rank {
    pub me: usize,
    pub size: usize,
    /// Connects the ranks `0..size`.
    pub exchange: Arc<dyn Exchange>,
    /// Where processes leave marks and answers; `None` for threads.
    folder: Option<PathBuf>,
}

impl Rank {
    /// A rank that is a thread of this process.
    pub fn of_thread(me: usize, size: usize, exchange: Arc<dyn Exchange>) -> Self {
        Rank { me, size, exchange, folder: None }
    }

    /// Tells [`Processes::wait_for`] that this rank has got to `name`.
    pub fn mark(&self, name: &str) {
        if let Some(folder) = &self.folder {
            fs::write(folder.join(format!("{}.{name}", self.me)), "").expect("a mark");
        }
    }

    /// Waits until the test has called [`Processes::tell`] with `name`.
    pub fn wait_to_be_told(&self, name: &str) {
        if let Some(folder) = &self.folder {
            while !folder.join(format!("test.{name}")).exists() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// What each rank of a test does; the test collects what it returns.
pub type Scenario = fn(Rank) -> Value;

/// Scenarios by name, since a process can only be told the name.
pub type Scenarios = [(&'static str, Scenario)];

/// The scenario with this name.
fn named(scenarios: &Scenarios, name: &str) -> Scenario {
    let found = scenarios.iter().find(|(own, _)| *own == name);
    found.unwrap_or_else(|| panic!("no scenario `{name}`")).1
}

/// Runs a scenario on threads of this process, over `local`; `None` for a rank that panicked.
pub fn on_threads(scenarios: &Scenarios, name: &str, size: usize) -> Vec<Option<Value>> {
    on_exchanges(scenarios, name, local_group(size))
}

/// As [`on_threads`], over an engine's callbacks.
pub fn on_callbacks(scenarios: &Scenarios, name: &str, size: usize) -> Vec<Option<Value>> {
    on_exchanges(scenarios, name, engine::group(size))
}

fn on_exchanges(scenarios: &Scenarios, name: &str, exchanges: Vec<Arc<dyn Exchange>>) -> Vec<Option<Value>> {
    let (scenario, size) = (named(scenarios, name), exchanges.len());
    thread::scope(|scope| {
        let threads: Vec<_> = exchanges
            .into_iter()
            .enumerate()
            .map(|(me, exchange)| {
                let rank = Rank::of_thread(me, size, exchange);
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| scenario(rank))).ok())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    })
}

/// Who starts the ranks, and what connects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// The test itself starts them; sockets connect them.
    Test,
    /// `mpirun` starts them, and lets the others go on when one dies; MPI connects them.
    Mpirun,
}

/// The processes of one scenario. Dropping it kills those that are left.
pub struct Processes {
    /// The ranks, or the launcher that started them.
    children: Vec<Child>,
    launcher: Launcher,
    size: usize,
    folder: tempfile::TempDir,
}

impl Processes {
    /// Starts `size` ranks of the scenario `name`. `entry` is the full name of the test that calls [`enter`].
    pub fn start(launcher: Launcher, entry: &str, name: &str, size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let program = env::current_exe().expect("this test's program");
        let start = |mut command: Command, rank: &str, said: &str| {
            let said = File::create(folder.path().join(said)).expect("a file");
            command
                .args(["--exact", entry, "--nocapture", "--test-threads=1"])
                .env(VARIABLE, format!("{rank} {size} {} {name}", folder.path().display()))
                .stdin(Stdio::null())
                .stdout(said.try_clone().expect("a second handle"))
                .stderr(said)
                .spawn()
                .expect("a process")
        };
        let children = match launcher {
            Launcher::Test => (0..size)
                .map(|me| start(Command::new(&program), &me.to_string(), &format!("{me}.said")))
                .collect(),
            Launcher::Mpirun => {
                let mut command = Command::new("mpirun");
                command.args(["--enable-recovery", "--oversubscribe", "--allow-run-as-root"]);
                command.args(["-n", &size.to_string()]).arg(&program);
                vec![start(command, OF_MPI, "mpirun.said")]
            }
        };
        Processes { children, launcher, size, folder }
    }

    /// Waits until `rank` has left the mark `name`.
    pub fn wait_for(&mut self, rank: usize, name: &str) {
        let began = Instant::now();
        while !self.folder.path().join(format!("{rank}.{name}")).exists() {
            if began.elapsed() > LIFETIME || self.has_ended(rank) {
                panic!("rank {rank} did not get to `{name}`: {}", self.said(rank));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets ranks go on that are in `Rank::wait_to_be_told`.
    pub fn tell(&self, name: &str) {
        fs::write(self.folder.path().join(format!("test.{name}")), "").expect("a mark");
    }

    /// Whether `rank`, or its launcher, has ended.
    fn has_ended(&mut self, rank: usize) -> bool {
        let child = match self.launcher {
            Launcher::Test => &mut self.children[rank],
            Launcher::Mpirun => &mut self.children[0],
        };
        let ended = child.try_wait().expect("a state").is_some();
        // mpirun goes on with the other ranks, and reaps each child that ends.
        let gone = |pid: i32| !Path::new(&format!("/proc/{pid}")).exists();
        ended || (self.launcher == Launcher::Mpirun && self.pid(rank).is_some_and(gone))
    }

    /// The rank's process id, once it has written it.
    fn pid(&self, rank: usize) -> Option<i32> {
        let pid = fs::read_to_string(self.folder.path().join(format!("{rank}.pid"))).ok()?;
        pid.parse().ok()
    }

    /// Ends `rank` by SIGKILL: it can do nothing more, and its sockets close.
    pub fn kill(&mut self, rank: usize) {
        self.signal(rank, libc::SIGKILL);
    }

    /// Stops `rank` by SIGSTOP: it does nothing, and its sockets stay open.
    pub fn stop(&self, rank: usize) {
        self.signal(rank, libc::SIGSTOP);
    }

    /// Lets a stopped rank go on.
    pub fn go_on(&self, rank: usize) {
        self.signal(rank, libc::SIGCONT);
    }

    fn signal(&self, rank: usize, signal: i32) {
        let pid = self.pid(rank).expect("a rank that has begun its scenario");
        // SAFETY: no memory is handed over. The process has written its id and has not been reaped, so the id
        // is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "a signal: {}", std::io::Error::last_os_error());
    }

    /// What each rank's scenario returned; `None` where it panicked or the process was killed. Does not wait
    /// for the rank `except`.
    ///
    /// # Panics
    /// Where a rank is still running after `within`.
    pub fn answers(&mut self, within: Duration, except: Option<usize>) -> Vec<Option<Value>> {
        let began = Instant::now();
        for rank in (0..self.size).filter(|rank| Some(*rank) != except) {
            while !self.has_ended(rank) {
                assert!(began.elapsed() < within, "rank {rank} is still there: {}", self.said(rank));
                thread::sleep(Duration::from_millis(1));
            }
        }
        let answer = |rank| fs::read(self.folder.path().join(format!("{rank}.answer"))).ok();
        let answers = (0..self.size).map(answer);
        answers.map(|bytes| Some(serde_json::from_slice(&bytes?).expect("a whole answer"))).collect()
    }

    /// The output of the rank, or with `mpirun` of all ranks.
    pub fn said(&self, rank: usize) -> String {
        let name = match self.launcher {
            Launcher::Test => format!("{rank}.said"),
            Launcher::Mpirun => "mpirun.said".into(),
        };
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if self.launcher == Launcher::Mpirun {
            // Kills the ranks that have not ended: a stopped rank would outlive its launcher.
            let alive = |rank: &usize| !self.folder.path().join(format!("{rank}.answer")).exists();
            for pid in (0..self.size).filter(alive).filter_map(|rank| self.pid(rank)) {
                // SAFETY: no memory is handed over.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a scenario on processes and returns each rank's answer, as [`Processes::answers`].
pub fn on_processes(
    launcher: Launcher,
    entry: &str,
    name: &str,
    size: usize,
    within: Duration,
) -> Vec<Option<Value>> {
    let mut processes = Processes::start(launcher, entry, name, size);
    let answers = processes.answers(within, None);
    for (rank, answer) in answers.iter().enumerate() {
        if answer.is_none() {
            println!("rank {rank} of `{name}` left no answer: {}", processes.said(rank));
        }
    }
    answers
}

/// If this program was started as a rank, runs the rank and ends the process. In the test's own process it
/// returns at once. `join_mpi` is called where `mpirun` has started the rank.
pub fn enter(scenarios: &Scenarios, join_mpi: impl FnOnce(usize) -> Arc<dyn Exchange>) {
    let Some(told) = env::var_os(VARIABLE) else { return };
    let told = told.into_string().expect("UTF-8");
    let [rank, size, folder, name] = told.splitn(4, ' ').collect::<Vec<_>>()[..] else {
        panic!("{VARIABLE}: wanted `rank size folder scenario`, got `{told}`")
    };
    let size: usize = size.parse().expect("a size");
    thread::spawn(|| {
        thread::sleep(LIFETIME);
        eprintln!("still there after {LIFETIME:?}");
        std::process::exit(3);
    });
    let folder = Path::new(folder);
    let exchange: Arc<dyn Exchange> = match rank {
        OF_MPI => join_mpi(size),
        rank => {
            let me = rank.parse().expect("a rank");
            Arc::new(
                exchange::connect(folder, me, size).unwrap_or_else(|e| panic!("rank {me}: no exchange: {e}")),
            )
        }
    };
    let me = exchange.me();
    let leave = |what: &str, text: String| {
        let (part, whole) = (folder.join(format!("{me}.part")), folder.join(format!("{me}.{what}")));
        fs::write(&part, text).and_then(|()| fs::rename(part, whole)).expect("a file for the test");
    };
    leave("pid", std::process::id().to_string());
    let scenario = named(scenarios, name);
    let code = match catch_unwind(AssertUnwindSafe(|| {
        scenario(Rank { me, size, exchange, folder: Some(folder.into()) })
    })) {
        Ok(answer) => {
            leave("answer", answer.to_string());
            0
        }
        Err(_) => 1,
    };
    // Skips the exit handlers of libraries: MPI's would wait for ranks that are gone.
    // SAFETY: nothing of this process is used any more.
    unsafe { libc::_exit(code) };
}

/// How a call ended, as JSON: the error's code and text (0 and empty where there was none), and the
/// milliseconds since `began`.
pub fn outcome<T>(began: Instant, result: &lmhead::error::Result<T>) -> Value {
    let ms = began.elapsed().as_micros() as f64 / 1e3;
    match result {
        Ok(_) => json!({ "code": 0, "text": "", "ms": ms }),
        Err(error) => json!({ "code": error.code(), "text": error.to_string(), "ms": ms }),
    }
}
