//! Ranks as processes, for tests: the program of the test starts itself once for each rank.
//!
//! * [`Processes`]: starts the ranks of a scenario, stops or kills some, collects what they say, all by a
//!   deadline.
//! * [`enter`]: what the started program does as a rank.
//! * [`exchange`]: the transport between them, over sockets.
//!
//! A scenario is a function of a [`Rank`]. It runs on threads over `local` as well ([`on_threads`]), so that
//! one table of tests covers both.

pub mod exchange;
mod frame;

use lmhead::exchange::{Exchange, local};
use serde_json::{Value, json};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Tells the started program which rank of which scenario it is: `rank size folder scenario`.
const VARIABLE: &str = "LMHEAD_TEST_RANK";

/// How long a rank may live, whatever becomes of the test that started it.
const LIFETIME: Duration = Duration::from_secs(120);

/// One rank of a scenario.
pub struct Rank {
    pub me: usize,
    pub size: usize,
    /// Connects the ranks `0..size`.
    pub exchange: Arc<dyn Exchange>,
    /// Where processes leave marks and answers.
    folder: Option<PathBuf>,
}

impl Rank {
    /// Tells [`Processes::wait_for`] that this rank is there.
    pub fn mark(&self, name: &str) {
        if let Some(folder) = &self.folder {
            fs::write(folder.join(format!("{}.{name}", self.me)), "").expect("a mark");
        }
    }
}

/// What the ranks of a test do. What it returns is collected by the test.
pub type Scenario = fn(Rank) -> Value;

/// Scenarios by name: another process is told the name.
pub type Scenarios = [(&'static str, Scenario)];

/// The scenario of that name.
fn named(scenarios: &Scenarios, name: &str) -> Scenario {
    let found = scenarios.iter().find(|(own, _)| *own == name);
    found.unwrap_or_else(|| panic!("no scenario `{name}`")).1
}

/// Runs a scenario on threads of this process, over `local`; `None` for a rank that panicked.
pub fn on_threads(scenarios: &Scenarios, name: &str, size: usize) -> Vec<Option<Value>> {
    let scenario = named(scenarios, name);
    thread::scope(|scope| {
        let threads: Vec<_> = local::group(size)
            .into_iter()
            .enumerate()
            .map(|(me, endpoint)| {
                let rank = Rank { me, size, exchange: Arc::new(endpoint), folder: None };
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| scenario(rank))).ok())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    })
}

/// The processes of one scenario. Those that are left are killed when it is dropped.
pub struct Processes {
    ranks: Vec<Child>,
    folder: tempfile::TempDir,
}

impl Processes {
    /// Starts `size` ranks of the scenario `name`. `entry` is the full name of the test that calls [`enter`].
    pub fn start(entry: &str, name: &str, size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let program = env::current_exe().expect("this test's program");
        let start = |me: usize| {
            let said = File::create(folder.path().join(format!("{me}.said"))).expect("a file");
            Command::new(&program)
                .args(["--exact", entry, "--nocapture", "--test-threads=1"])
                .env(VARIABLE, format!("{me} {size} {} {name}", folder.path().display()))
                .stdin(Stdio::null())
                .stdout(said.try_clone().expect("a second handle"))
                .stderr(said)
                .spawn()
                .expect("a process")
        };
        Processes { ranks: (0..size).map(start).collect(), folder }
    }

    /// Waits until `rank` has left that mark.
    pub fn wait_for(&mut self, rank: usize, name: &str) {
        let began = Instant::now();
        while !self.folder.path().join(format!("{rank}.{name}")).exists() {
            if began.elapsed() > LIFETIME || self.ranks[rank].try_wait().expect("a state").is_some() {
                panic!("rank {rank} did not get to `{name}`: {}", self.said(rank));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends `rank` by SIGKILL: it can do nothing more, and its sockets close.
    pub fn kill(&mut self, rank: usize) {
        self.ranks[rank].kill().expect("a signal");
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
        // SAFETY: no memory is handed over; the process is a child that has not been waited for.
        let sent = unsafe { libc::kill(self.ranks[rank].id() as i32, signal) };
        assert_eq!(sent, 0, "a signal: {}", std::io::Error::last_os_error());
    }

    /// What each rank's scenario returned; `None` where it panicked or the process was killed. `except`: a
    /// rank that is not waited for.
    ///
    /// # Panics
    /// Where a rank is still there after `within`.
    pub fn answers(&mut self, within: Duration, except: Option<usize>) -> Vec<Option<Value>> {
        let began = Instant::now();
        for rank in (0..self.ranks.len()).filter(|rank| Some(*rank) != except) {
            while self.ranks[rank].try_wait().expect("a state").is_none() {
                assert!(began.elapsed() < within, "rank {rank} is still there: {}", self.said(rank));
                thread::sleep(Duration::from_millis(1));
            }
        }
        let answer = |rank| fs::read(self.folder.path().join(format!("{rank}.answer"))).ok();
        let answers = (0..self.ranks.len()).map(answer);
        answers.map(|bytes| Some(serde_json::from_slice(&bytes?).expect("a whole answer"))).collect()
    }

    /// What the rank wrote to its output.
    pub fn said(&self, rank: usize) -> String {
        fs::read_to_string(self.folder.path().join(format!("{rank}.said"))).unwrap_or_default()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

/// Runs a scenario on processes and returns each rank's answer, as [`Processes::answers`].
pub fn on_processes(entry: &str, name: &str, size: usize, within: Duration) -> Vec<Option<Value>> {
    let mut processes = Processes::start(entry, name, size);
    let answers = processes.answers(within, None);
    for (rank, answer) in answers.iter().enumerate() {
        if answer.is_none() {
            println!("rank {rank} of `{name}` left no answer: {}", processes.said(rank));
        }
    }
    answers
}

/// Where this program was started as a rank: runs it and ends the process. Returns at once in the test's own
/// process.
pub fn enter(scenarios: &Scenarios) {
    let Some(told) = env::var_os(VARIABLE) else { return };
    let told = told.into_string().expect("UTF-8");
    let [me, size, folder, name] = told.splitn(4, ' ').collect::<Vec<_>>()[..] else {
        panic!("{VARIABLE}: wanted `rank size folder scenario`, got `{told}`")
    };
    let (me, size): (usize, usize) = (me.parse().expect("a rank"), size.parse().expect("a size"));
    thread::spawn(|| {
        thread::sleep(LIFETIME);
        eprintln!("still there after {LIFETIME:?}");
        std::process::exit(3);
    });
    let folder = Path::new(folder);
    let exchange =
        exchange::connect(folder, me, size).unwrap_or_else(|e| panic!("rank {me}: no exchange: {e}"));
    let rank = Rank { me, size, exchange: Arc::new(exchange), folder: Some(folder.into()) };
    let scenario = named(scenarios, name);
    let code = match catch_unwind(AssertUnwindSafe(|| scenario(rank))) {
        Ok(answer) => {
            let (part, whole) = (folder.join(format!("{me}.part")), folder.join(format!("{me}.answer")));
            fs::write(&part, answer.to_string()).and_then(|()| fs::rename(part, whole)).expect("an answer");
            0
        }
        Err(_) => 1,
    };
    std::process::exit(code);
}

/// How a call ended, as JSON: the error's code and text (0 and nothing where there was none), and
/// milliseconds.
pub fn outcome<T>(began: Instant, result: &lmhead::error::Result<T>) -> Value {
    let ms = began.elapsed().as_micros() as f64 / 1e3;
    match result {
        Ok(_) => json!({ "code": 0, "text": "", "ms": ms }),
        Err(error) => json!({ "code": error.code(), "text": error.to_string(), "ms": ms }),
    }
}
