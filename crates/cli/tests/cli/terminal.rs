//! Output that only a terminal gets: progress lines of `lmhead bench`, and tables and sentences that fit its
//! width.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "a pseudo terminal")]

use super::*;
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

const BENCH: [&str; 11] = [
    "bench",
    "--preset",
    "tiny",
    "--dtypes",
    "bf16,w8a8",
    "--rows",
    "1,5",
    "--stages",
    "matmul,argmax",
    "--reps",
    "2",
];

/// A pseudo-terminal of 24 lines: the end that shows what is written, and the program's end.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let (mut shows, mut writes) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both descriptors are written by the call; name and settings may be null; `size` is only read.
    let opened = unsafe {
        libc::openpty(
            &mut shows,
            &mut writes,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &raw const size as *mut _,
        )
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the call has opened both, and nobody else has them.
    unsafe { (File::from_raw_fd(shows), OwnedFd::from_raw_fd(writes)) }
}

#[test]
fn each_case_has_a_line_on_a_terminal_as_soon_as_it_is_timed() {
    let (mut shows, writes) = terminal(200);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(BENCH).env("TERM", "xterm").env_remove("LMHEAD_CPU_ISA");
    let mut child = command.stdout(Stdio::null()).stderr(writes).spawn().unwrap();
    // The command has the program's end open, too.
    drop(command);
    let mut shown = Vec::new();
    // On Linux the end of a terminal is a read error.
    let _ = shows.read_to_end(&mut shown);
    assert!(child.wait().unwrap().success(), "{}", text(&shown));
    let shown = text(&shown);
    let mut rest = shown.as_str();
    for case in ["bf16, 1 row", "bf16, 5 rows", "w8a8, 1 row", "w8a8, 5 rows"] {
        let at = rest.find(&format!("{case}: read ")).unwrap_or_else(|| panic!("no {case} in\n{shown:?}"));
        // Padded with spaces to the width of the terminal.
        let line = rest[at..].split("  ").next().unwrap();
        assert!(line.contains("s, matmul ") && line.contains("s, argmax "), "{line:?}");
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn standard_error_that_is_no_terminal_stays_empty() {
    let out = lmhead(&BENCH);
    assert!(out.status.success());
    assert_eq!(text(&out.stderr), "");
    assert!(text(&out.stdout).contains("medians of 2 repetitions"));
}

/// Output of the program on a terminal of so many columns.
fn shown(columns: u16, args: &[&str]) -> String {
    let (mut shows, writes) = terminal(columns);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(args).env("TERM", "xterm").env_remove("LMHEAD_CPU_ISA").env_remove("COLUMNS");
    let mut child = command.stdout(writes).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    let _ = shows.read_to_end(&mut shown);
    child.wait().unwrap();
    text(&shown)
}

const RUN: [&str; 9] =
    ["run", "--preset", "tiny", "--rows", "3,0,2", "--lmhead-tp-size", "3", "--check", "--seed=1"];
const PLAN: [&str; 9] =
    ["plan", "--preset", "deepseek-v3", "--dp", "8", "--machine", "h100-nvlink", "--kernels", "h100"];
const KERNELS: [&str; 7] = ["plan", "--preset", "deepseek-v3", "--rows", "28", "--kernels", "h100"];
const PROFILE: [&str; 7] = ["plan", "--preset", "tiny", "--dp", "4", "--profile", "cpu2-processes"];

#[test]
fn everything_fits_eighty_columns() {
    let files = Files::new();
    let (head, out) = (files.name("head.safetensors"), files.name("int8.safetensors"));
    let quantize = ["quantize", "--head", &head, "--out", &out];
    let subcommands = ["run", "plan", "quantize", "bench", "doctor"];
    let help = subcommands.map(|subcommand| vec![subcommand, "--help"]);
    let reports =
        [&RUN[..], &PLAN, &KERNELS, &PROFILE, &BENCH, &quantize, &["doctor"]].map(|args| args.to_vec());
    for args in reports.iter().chain(&help) {
        let shown = shown(80, args);
        assert!(shown.lines().count() > 5, "{args:?}:\n{shown}");
        for line in shown.lines() {
            // Nothing is bold or underlined, so that a line's bytes are its columns to other programs, too.
            let columns = line.trim_end().chars().count();
            assert!(columns <= 80, "{args:?}: {columns} columns: {line}");
        }
    }
}

#[test]
fn numbers_of_a_table_stay_whole() {
    for args in [&PLAN[..], &KERNELS, &PROFILE] {
        // In a pipe no table is narrowed: each row of it has one line.
        let rows = |printed: &str| {
            let row = |line: &str| line.starts_with('│').then(|| line.split_whitespace().collect::<String>());
            printed.lines().filter_map(row).collect::<Vec<_>>()
        };
        assert_eq!(rows(&shown(80, args)), rows(&good(args)), "{args:?}");
    }
}

#[test]
fn an_error_wraps_between_words() {
    let args = ["run", "--preset", "gpt-9"];
    let (mut shows, writes) = terminal(50);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(args);
    let mut child = command.stdout(Stdio::null()).stderr(writes).spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    let _ = shows.read_to_end(&mut shown);
    child.wait().unwrap();
    let (shown, piped) = (text(&shown), text(&lmhead(&args).stderr));
    assert!(shown.lines().count() > 1 && shown.lines().all(|line| line.trim_end().len() <= 50), "{shown}");
    assert_eq!(piped.lines().count(), 1, "{piped}");
    assert!(shown.split_whitespace().eq(piped.split_whitespace()), "{shown}\n{piped}");
}

#[test]
fn a_pipe_gets_whole_lines() {
    for (args, sentence) in [(RUN.to_vec(), "check passed against float64"), (PLAN.to_vec(), "h100-nvlink: ")]
    {
        let out = lmhead(&args);
        let out = text(&out.stdout);
        let line = out.lines().find(|line| line.starts_with(sentence)).unwrap_or_else(|| panic!("{out}"));
        assert!(line.len() > 80, "{line}");
    }
    // A check a line, without a table's padding.
    let checks: serde_json::Value = serde_json::from_str(&good(&["doctor", "--json"])).unwrap();
    let (checks, printed) = (checks.as_array().unwrap(), good(&["doctor"]));
    assert_eq!(printed.lines().count(), checks.len(), "{printed}");
    for (line, check) in printed.lines().zip(checks) {
        let word = |key: &str| check[key].as_str().unwrap();
        let begin = format!("{} {}: ", word("status"), word("name"));
        let end = Some(word("suggestion")).filter(|s| !s.is_empty()).map(|s| format!("; {s}"));
        assert!(line.starts_with(&begin) && line.ends_with(&end.unwrap_or_default()), "{line}");
        assert!(!line.contains("  "), "{line}");
    }
    assert!(printed.lines().any(|line| line.len() > 80), "{printed}");
}
