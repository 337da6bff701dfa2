//! What `lmhead bench` shows on the way: lines on a terminal, nothing elsewhere.
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

/// A terminal of 24 x 200: the end that shows what is written, and the program's.
fn terminal() -> (File, OwnedFd) {
    let (mut shows, mut writes) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
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
    let (mut shows, writes) = terminal();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(BENCH).env("TERM", "xterm").env_remove("LMHEAD_CPU_ISA");
    let mut child = command.stdout(Stdio::null()).stderr(writes).spawn().unwrap();
    // The command has the other end open, too.
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal is an error on Linux.
    let _ = shows.read_to_end(&mut shown);
    assert!(child.wait().unwrap().success(), "{}", text(&shown));
    let shown = text(&shown);
    let mut rest = shown.as_str();
    for case in ["bf16, 1 row", "bf16, 5 rows", "w8a8, 1 row", "w8a8, 5 rows"] {
        let at = rest.find(&format!("{case}: read ")).unwrap_or_else(|| panic!("no {case} in\n{shown:?}"));
        // Filled up with spaces to the width of the terminal.
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
