//! `mpirun -n 4 lmhead run` as one program: the same answers as with threads, one report, errors with their
//! ranks, and ranks that are killed, stopped or late.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lmhead");

/// A step's deadline in the tests that wait for it.
const TIMEOUT: Duration = Duration::from_secs(1);

fn mpirun(recovery: bool) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root"]);
    if recovery {
        command.arg("--enable-recovery");
    }
    command.stdin(Stdio::null());
    command
}

/// `lmhead run` with these arguments in four processes.
fn four(args: &[&str]) -> Output {
    mpirun(false).args(["-n", "4", PROGRAM, "run"]).args(args).output().expect("mpirun")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the ranks report, without mpirun's own lines.
fn errors(said: &str) -> Vec<String> {
    said.lines().filter(|line| line.starts_with("error: ")).map(String::from).collect()
}

#[test]
fn four_processes_write_the_same_file_as_threads_and_print_one_report() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let split = at("split.toml");
    fs::write(&split, "split_rows_over_tp = true\n").unwrap();
    let table: [&[&str]; 8] = [
        &["--request", "topk:5", "--lmhead-tp-size", "4", "--check"],
        &["--request", "logits", "--logits-dtype", "bf16", "--rows", "5,0,1,9", "--lmhead-tp-size", "4"],
        // Two groups.
        &["--request", "sample:3", "--lmhead-tp-size", "2", "--top-p", "0.9", "--mode", "discover"],
        // Every rank with a head of its own.
        &["--request", "argmax", "--lmhead-tp-size", "1"],
        // The tensor-parallel ranks of a replica answer the same rows, or each a part of them.
        &["--request", "logprobs:2", "--tp", "2", "--lmhead-tp-size", "4", "--check"],
        &["--request", "topk:3", "--tp", "4", "--lmhead-tp-size", "-1", "--mode", "capacity"],
        &["--request", "topk:3", "--tp", "2", "--lmhead-tp-size", "4", "--config", &split],
        &["--request", "logits", "--rows", "0,0,0,0", "--lmhead-tp-size", "4"],
    ];
    for args in table {
        let (apart, together) = (at("apart"), at("together"));
        let args = [&["--preset", "tiny", "--steps", "2", "--json"][..], args].concat();
        let out = four(&[&args[..], &["--out", &apart]].concat());
        let said = text(&out.stderr);
        assert!(out.status.success(), "{args:?}: {}\n{said}", out.status);
        assert_eq!(errors(&said), [""; 0], "{args:?}");
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one report");
        assert_eq!(report["exchange"], "mpi");

        // The same in one process, which needs --dp.
        let dp = report["dp"].as_u64().unwrap().to_string();
        let threads = Command::new(PROGRAM)
            .arg("run")
            .args(&args)
            .args(["--dp", &dp, "--out", &together])
            .output()
            .unwrap();
        assert!(threads.status.success(), "{args:?}: {}", text(&threads.stderr));
        assert!(fs::read(&apart).unwrap() == fs::read(&together).unwrap(), "{args:?}: other bytes");
        let own: serde_json::Value = serde_json::from_slice(&threads.stdout).unwrap();
        for key in ["dp", "tp", "lmhead_tp_size", "hidden_rows", "output_rows", "request", "mode", "steps"] {
            assert_eq!(report[key], own[key], "{args:?}, {key}");
        }
        for (rank, (apart, together)) in
            report["ranks"].as_array().unwrap().iter().zip(own["ranks"].as_array().unwrap()).enumerate()
        {
            for key in ["rank", "dp", "tp", "group", "hidden_rows", "shard", "bytes_sent", "rounds"] {
                assert_eq!(apart[key], together[key], "{args:?}, rank {rank}, {key}");
            }
            assert!(apart["step_us"].as_f64().unwrap() > 0.0, "{args:?}, rank {rank}");
        }
        assert_eq!(report["ranks"].as_array().unwrap().len(), 4);
        for key in ["bytes_exchanged", "rounds", "full_logits_bytes"] {
            assert_eq!(report["step"][key], own["step"][key], "{args:?}, {key}");
        }
        let [p50, max] = ["p50_us", "max_us"].map(|key| report["step"][key].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= max, "{args:?}: {p50} {max}");
        fs::remove_file(apart).unwrap();
        fs::remove_file(together).unwrap();
    }
}

#[test]
fn what_is_wrong_for_all_is_said_once_and_ends_the_job() {
    let table: [(&[&str], &str); 5] = [
        (&["run", "--preset", "tiny", "--dp", "3"], "--dp, --tp: wanted 4 ranks, one for each process"),
        (&["run", "--preset", "tiny", "--request", "best"], "--request: wanted logits"),
        // Refused while options are parsed, before the processes are connected.
        (&["run", "--preset", "tiny", "--steps", "0"], "--steps: wanted a whole number of at least 1"),
        (&["run", "--preset", "tiny", "--tp", "3"], "--tp: wanted a divisor of the 4 processes"),
        (&["bench", "--preset", "tiny"], "lmhead bench: wanted one process, got rank 0 of 4"),
    ];
    for (args, words) in table {
        let out = mpirun(false).args(["-n", "4", PROGRAM]).args(args).output().unwrap();
        let errors = errors(&text(&out.stderr));
        assert!(out.status.code().is_some_and(|code| code != 0), "{args:?}: {}", out.status);
        assert!(out.stdout.is_empty() || !text(&out.stdout).contains("rank"), "{args:?}: no report");
        let [error] = &errors[..] else { panic!("{args:?}: {errors:?}") };
        assert!(error.starts_with("error: rank 0: ") && error.contains(words), "{args:?}: {error}");
    }
}

/// Rank 3 requests something else: every rank that still reports names it, and the job fails.
#[test]
fn a_rank_that_disagrees_is_named_and_the_job_fails() {
    let run = |request: &'static str| {
        [
            PROGRAM,
            "run",
            "--preset",
            "tiny",
            "--rows",
            "1,1,1,1",
            "--lmhead-tp-size",
            "4",
            "--request",
            request,
        ]
    };
    for recovery in [false, true] {
        let mut command = mpirun(recovery);
        command.args(["-n", "3"]).args(run("topk:2")).arg(":").args(["-n", "1"]).args(run("argmax"));
        let out = command.output().unwrap();
        let said = text(&out.stderr);
        let errors = errors(&said);
        assert!(!errors.is_empty(), "{said}");
        for error in &errors {
            assert!(error.starts_with("error: rank "), "{error}");
            assert!(error.contains("request: ranks [0, 1, 2] say topk:2, ranks [3] say argmax"), "{error}");
        }
        if recovery {
            // Only the errors of the ranks themselves are compared.
            let mut ranks: Vec<&str> = errors.iter().map(|error| &error[12..13]).collect();
            ranks.sort_unstable();
            assert_eq!(ranks, ["0", "1", "2", "3"], "{said}");
        } else {
            assert!(out.status.code().is_some_and(|code| code != 0), "{}", out.status);
        }
    }
}

/// A difference between groups is found too, although no step compares them.
#[test]
fn ranks_of_several_groups_that_run_other_steps_are_named() {
    let run = |steps: &'static str| {
        [PROGRAM, "run", "--preset", "tiny", "--rows", "1,1", "--lmhead-tp-size", "1", "--steps", steps]
    };
    let mut command = mpirun(false);
    command.args(["-n", "1"]).args(run("2")).arg(":").args(["-n", "1"]).args(run("3"));
    let out = command.output().unwrap();
    let said = text(&out.stderr);
    assert!(out.status.code().is_some_and(|code| code != 0), "{}: {said}", out.status);
    let words =
        "error: rank 1: its report is not that of 2 steps of one rank; start all ranks with the same options";
    assert!(said.contains(words), "{said}");
}

/// Four processes under `--enable-recovery`; each line of output is kept with its time of arrival.
struct Job {
    mpirun: Child,
    lines: Receiver<(Instant, String)>,
    /// Processes by rank.
    ranks: BTreeMap<usize, i32>,
}

impl Job {
    /// Starts steps without end, and waits until they run.
    fn start(folder: &Path) -> Self {
        let config = folder.join("settings.toml");
        fs::write(&config, format!("timeout_ms = {}\n", TIMEOUT.as_millis())).unwrap();
        let mut command = mpirun(true);
        command.args(["-n", "4", PROGRAM, "run", "--preset", "tiny", "--lmhead-tp-size", "4"]);
        command.args(["--steps", "20000000", "--request", "argmax", "--config"]).arg(&config);
        let mut mpirun = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(mpirun.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send((Instant::now(), line));
            }
        });
        let began = Instant::now();
        let mut job = Job { mpirun, lines, ranks: BTreeMap::new() };
        while job.ranks.len() < 4 || !job.ranks.values().all(|pid| steps_run(*pid)) {
            assert!(began.elapsed() < Duration::from_secs(60), "the ranks do not come: {:?}", job.ranks);
            thread::sleep(Duration::from_millis(20));
            job.ranks = ranks_of(job.mpirun.id());
        }
        // Lets the first steps pass.
        thread::sleep(Duration::from_millis(300));
        job
    }

    fn signal(&self, rank: usize, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.ranks[&rank].to_string()]).status().unwrap();
        assert!(sent.success(), "{signal} to rank {rank}");
    }

    /// The error that each of `ranks` reports, and how long after `began`.
    fn errors_of(&self, ranks: &[usize], began: Instant) -> BTreeMap<usize, (Duration, String)> {
        let mut errors = BTreeMap::new();
        while !ranks.iter().all(|rank| errors.contains_key(rank)) {
            let left = Duration::from_secs(30).saturating_sub(began.elapsed());
            let (at, line) = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("only {errors:?}"));
            if let Some((rank, error)) = line.strip_prefix("error: rank ").and_then(|l| l.split_once(": ")) {
                errors.entry(rank.parse().unwrap()).or_insert((at - began, error.to_string()));
            }
        }
        errors
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Kills ranks that a test has stopped; mpirun ends with its last rank.
        for pid in ranks_of(self.mpirun.id()).values() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.mpirun.kill();
        let _ = self.mpirun.wait();
    }
}

/// The children of `mpirun`, by rank.
fn ranks_of(mpirun: u32) -> BTreeMap<usize, i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let rank = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which is in brackets, come the state and the parent.
        let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let rank = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(b"OMPI_COMM_WORLD_RANK="))?;
        (parent == mpirun).then_some((std::str::from_utf8(rank).ok()?.parse().ok()?, pid))
    };
    pids.filter_map(rank).collect()
}

/// Whether the rank's thread has started, which happens once the head is loaded.
fn steps_run(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("rank "))
    })
}

/// Every survivor reports by itself within the deadline plus a second, and names the rank at fault. (A rank
/// that waits for another survivor names that one, whose report names rank 1.)
fn assert_reported(what: &str, errors: &BTreeMap<usize, (Duration, String)>) {
    for (rank, (after, error)) in errors {
        println!("{what}: rank {rank} after {:.0} ms: {error}", after.as_secs_f64() * 1e3);
        assert!(error.contains("did not come within 1s"), "{what}, rank {rank}: {error}");
        assert!(*after <= TIMEOUT + Duration::from_secs(1), "{what}, rank {rank}: {after:?}");
    }
    let names = |(_, error): &(Duration, String)| {
        let (_, after) = error.split_once("ranks [").unwrap_or_default();
        after.split(']').next().is_some_and(|list| list.split(", ").any(|rank| rank == "1"))
    };
    assert!(errors.values().any(names), "{what}: {errors:?}");
}

#[test]
fn killed_and_stopped_ranks_are_named_by_every_other_rank() {
    for signal in ["-KILL", "-STOP"] {
        let folder = TempDir::new().unwrap();
        let job = Job::start(folder.path());
        let began = Instant::now();
        job.signal(1, signal);
        assert_reported(signal, &job.errors_of(&[0, 2, 3], began));
    }
}

#[test]
fn a_rank_that_comes_late_is_named_and_reports_too() {
    let folder = TempDir::new().unwrap();
    let job = Job::start(folder.path());
    let began = Instant::now();
    job.signal(1, "-STOP");
    let errors = job.errors_of(&[0, 2, 3], began);
    assert_reported("late", &errors);
    job.signal(1, "-CONT");
    let late = &job.errors_of(&[1], Instant::now())[&1];
    println!("late: rank 1 after {:.0} ms: {}", late.0.as_secs_f64() * 1e3, late.1);
    assert!(late.0 <= TIMEOUT + Duration::from_secs(1), "{late:?}");
}

/// Under the mpirun of another MPI library every process would be a job of its own and answer alone.
#[test]
fn a_job_of_another_mpi_library_is_refused_by_name() {
    let out = Command::new(PROGRAM)
        .args(["run", "--preset", "tiny"])
        .envs([("PMI_RANK", "1"), ("PMI_SIZE", "2")])
        .output()
        .unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    let words =
        "an mpirun that speaks PMI started this process as rank 1 of 2, MPI connects it as rank 0 of 1";
    assert!(said.contains(words) && said.contains("use the mpirun of the MPI library"), "{said}");
}
