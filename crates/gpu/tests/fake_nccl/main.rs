//! The project's own `libnccl.so.2` (`crates/gpu/fake_nccl`): it moves the right bytes, and finds every
//! misuse that it is meant to find. Tests call its functions directly, in child processes, on the fake
//! `libcuda.so`.
#![allow(unsafe_code, reason = "NCCL's and the driver's interface")]
#![allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "a few ranks")]
#![cfg(target_os = "linux")]

mod faults;
mod programs;
mod ranks;
mod right;
mod wrong;

use std::path::Path;
use std::process::Command;

/// Runs this program again with an ignored test below on the fake libraries, whose behaviour `says` sets;
/// returns the exit code and the output.
fn run(test: &str, says: &[(&str, &str)], older: bool) -> (Option<i32>, String) {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let nccl = if older { lmhead_gpu::fake_nccl::older_folder } else { lmhead_gpu::fake_nccl::folder }(place);
    let folders = format!("{}:{}", lmhead_gpu::fake_driver::folder(place).display(), nccl.display());
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", folders);
    let output = command.env("FAKE_DEVICES", "4").envs(says.iter().copied()).output();
    let output = output.expect("the program runs");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code(), text)
}

/// As `run`, for a test that must succeed; returns its output.
fn child(test: &str, says: &[(&str, &str)]) -> String {
    let (code, text) = run(test, says, false);
    assert!(code == Some(0) && text.contains("1 passed"), "{test}, {says:?}: {code:?}: {text}");
    text
}
