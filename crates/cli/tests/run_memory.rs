//! The memory of `lmhead run` beside its weights: the answer of all ranks once, and next to nothing for each
//! step. Measured as a child's peak resident memory; a test program of its own, because a child begins as a
//! copy of its parent, which must be small.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "a child's own use of memory")]

use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Peak resident memory of `lmhead run` with these arguments, in bytes.
fn peak(args: &[&str]) -> usize {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    #[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
    let child = command.arg("run").args(args).stdout(Stdio::null()).spawn().unwrap();
    let mut status = 0;
    // SAFETY: zeros are a valid `rusage`, and the call writes it and the status. The child is waited for
    // nowhere else.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage), usage)
    };
    assert_eq!((waited, status), (child.id() as libc::pid_t, 0), "{args:?}");
    usage.ru_maxrss as usize * 1024
}

/// A head whose weights are small beside its logits.
fn head(path: &Path, ids: usize) {
    let weights = (0..ids * 8).map(|i| ((i * 37 % 251) as f32 - 125.0) / 64.0);
    let bytes: Vec<u8> = weights.flat_map(f32::to_le_bytes).collect();
    let view = TensorView::new(Dtype::F32, vec![ids, 8], &bytes).unwrap();
    safetensors::serialize_to_file([("lm_head.weight", view)], None, path).unwrap();
}

/// Hidden rows for that head; the answers are wanted in reverse order.
fn reversed_rows(path: &Path, rows: usize) {
    let hidden: Vec<u8> = (0..rows * 8).flat_map(|i| ((i * 53 % 257) as f32 / 64.0).to_le_bytes()).collect();
    let indices: Vec<u8> = (0..rows as i64).rev().flat_map(i64::to_le_bytes).collect();
    let tensors = [
        ("hidden_states", TensorView::new(Dtype::F32, vec![rows, 8], &hidden).unwrap()),
        ("logits_indices", TensorView::new(Dtype::I64, vec![rows], &indices).unwrap()),
    ];
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

#[test]
fn an_answer_is_held_once() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    head(&folder.path().join("head"), 20_000);
    reversed_rows(&folder.path().join("few"), 1);
    reversed_rows(&folder.path().join("many"), 1000);
    let run = |args: &[&str]| {
        let (head, steps) = (["--head", &at("head")], ["--steps", "3", "--threads", "1"]);
        peak(&[&head[..], &steps, args].concat())
    };
    let answer = 1000 * 20_000 * 4;
    let (few, many) = (at("few"), at("many"));
    let (ones, parts) = ("1,1,1,1", "250,250,250,250");
    // Ranks write directly into the answer, whose rows are permuted in place. Ranks that share a head
    // exchange logits, which takes three more copies: as sent, on their way in the transport, and as
    // received.
    for (few, more, copies) in [
        (&["--rows", "1"][..], &["--rows", "1000"][..], 1),
        (&["--hidden", &few], &["--hidden", &many], 1),
        (&["--rows", ones], &["--rows", parts], 1),
        (&["--rows", ones, "--lmhead-tp-size", "4"], &["--rows", parts, "--lmhead-tp-size", "4"], 4),
    ] {
        let taken = run(more) - run(few);
        eprintln!("{more:?}: {:.2} of an answer", taken as f64 / answer as f64);
        assert!(taken <= copies * answer + answer / 4, "{more:?}: {taken} for an answer of {answer}");
        assert!(taken >= answer / 10 * 9, "the count counts: {taken} for an answer of {answer}");
    }
}

#[test]
fn steps_take_next_to_no_memory() {
    let folder = TempDir::new().unwrap();
    let head_path = folder.path().join("head");
    head(&head_path, 64);
    let ranks = ["1"; 16].join(",");
    let run = |steps: &str| {
        let args = ["--head", head_path.to_str().unwrap(), "--rows", &ranks, "--steps", steps];
        peak(&[&args[..], &["--request", "argmax", "--threads", "1"]].concat())
    };
    // Times are kept exactly until there are 1024 different ones, so measure the growth from the steps after
    // those.
    let (few, many) = (run("2000"), run("10000"));
    let each = many.saturating_sub(few) as f64 / (8000.0 * 16.0);
    eprintln!("{each:.1} bytes for each step and rank");
    assert!(each < 32.0, "{each} bytes for each step and rank; 8 are kept for each step of a group");
}
