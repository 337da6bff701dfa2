//! `--threads` sets the number of threads that load and of those that compute: checked against the system's
//! list of a running program's threads.
#![cfg(target_os = "linux")]

use super::*;
use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The number of threads of each name that the program has; trailing digits of names are ignored.
fn threads(child: &Child) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end();
        *names.entry(name.to_string()).or_default() += 1;
    }
    names
}

/// Runs the program until it has exactly these threads, then ends it.
fn comes_to_have(wanted: &[(&str, usize)], args: &[&str]) {
    let wanted: BTreeMap<String, usize> = wanted.iter().map(|(name, n)| (name.to_string(), *n)).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    // Its standard input stays open until the child is dropped.
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let mut found = threads(&child);
    while found != wanted {
        let ended = child.try_wait().unwrap().is_some();
        if ended || began.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{args:?}: wanted {wanted:?}, got {found:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
        found = threads(&child);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn as_many_threads_load_and_compute_as_are_asked_for() {
    let files = Files::new();
    let (head, rows) = (files.name("head.safetensors"), files.name("hidden.safetensors"));
    let of_file = ["run", "--head", &head, "--hidden", &rows, "--quantize", "w8a8"];
    let of_preset = ["run", "--preset", "tiny"];
    for n in [1, 3] {
        let number = n.to_string();
        for head in [&of_file[..], &of_preset] {
            // The rank's thread starts once weights are loaded, and has more steps than the test waits for.
            let args = [head, &["--steps", "10000000", "--threads", &number]].concat();
            let wanted =
                [("lmhead", 1), ("signals", 1), ("lmhead-load-", n), ("lmhead-cpu-", n), ("rank", 1)];
            comes_to_have(&wanted, &args);
        }
        // The program waits for the first line of standard input.
        let args = ["bench", "--preset", "tiny", "--on-demand", "--threads", &number];
        comes_to_have(&[("lmhead", 1), ("signals", 1), ("lmhead-load-", n), ("lmhead-cpu-", n)], &args);
    }
}
