//! The memory that a process takes to load a head and run a step: its shard and at most a tenth more, by the
//! system's count for a child process (mapped files included).
#![cfg(target_os = "linux")]

use lmhead::backend::cpu::CpuBackend;
use lmhead::exchange::local;
use lmhead::weights::{LoadOptions, synthetic};
use lmhead::{
    Checkpoint, DType, HeadConfig, HeadGroup, HiddenRows, LmHead, Quantization, Request, RowCounts,
};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const VOCAB: usize = 65_536;
const HIDDEN: usize = 2048;
const ROWS: usize = 4;

/// Set by the parent: the child's file and how to load it.
const CHILD: &str = "LMHEAD_TEST_PEAK_MEMORY";

/// Largest resident memory of this process so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

fn quantization(name: &str) -> Quantization {
    [Quantization::None, Quantization::W8a8, Quantization::W8a16]
        .into_iter()
        .find(|q| q.to_string() == name)
        .unwrap()
}

/// The child's part; without the variable there is nothing to do.
#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (how, file) = job.split_once(' ').unwrap();
    let mut config = HeadConfig::new(VOCAB, HIDDEN);
    config.quantization = quantization(how);
    let group = HeadGroup::data_parallel(1, 0).unwrap();
    let backend = Arc::new(CpuBackend::new(Some(2)).unwrap());
    let exchange = local::group(1).pop().unwrap();

    let before = peak();
    let checkpoint = Checkpoint::from_file(Path::new(file), "w").unwrap();
    let shard = Arc::new(checkpoint.head_shard(&group, &config, &LoadOptions::default()).unwrap());
    let bytes = shard.bytes();
    let mut head = LmHead::new(&config, group, shard, Arc::new(exchange), backend).unwrap();
    let rows: Vec<u8> =
        (0..ROWS as u64).flat_map(|row| synthetic::hidden_row(7, row, HIDDEN, DType::Bf16)).collect();
    let rows = HiddenRows::new(&rows, DType::Bf16, ROWS, HIDDEN).unwrap();
    for _ in 0..2 {
        let step = head.step(RowCounts::exact(&[ROWS]), &Request::top_k(8)).unwrap();
        step.run(rows).unwrap();
    }
    println!("taken {} of {bytes}", peak() - before);
}

#[test]
fn a_head_takes_its_shard_and_a_tenth_more() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("head.safetensors");
    let int8 = folder.path().join("int8.safetensors");
    {
        let element = |i: usize| half::bf16::from_f32((i % 251) as f32 - 125.0).to_le_bytes();
        let bytes: Vec<u8> = (0..VOCAB * HIDDEN).flat_map(element).collect();
        let view = TensorView::new(Dtype::BF16, vec![VOCAB, HIDDEN], &bytes).unwrap();
        safetensors::serialize_to_file([("w", view)], None, &file).unwrap();
    }
    {
        let bytes: Vec<u8> = (0..VOCAB * HIDDEN).map(|i| (i % 251) as u8).collect();
        let view = TensorView::new(Dtype::I8, vec![VOCAB, HIDDEN], &bytes).unwrap();
        let scales: Vec<u8> = (0..VOCAB).flat_map(|_| 0.01f32.to_le_bytes()).collect();
        let scales = TensorView::new(Dtype::F32, vec![VOCAB, 1], &scales).unwrap();
        safetensors::serialize_to_file([("w", view), ("w_scale", scales)], None, &int8).unwrap();
    }
    // bf16 stays in the file's pages, and so does stored int8. int8 made from a bf16 file is a copy of half
    // its size; the file's pages must then be released.
    for (how, file) in [("none", &file), ("w8a8", &file), ("w8a16", &file), ("w8a8", &int8), ("w8a16", &int8)]
    {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{how} {}", file.display()))
            .env("RAYON_NUM_THREADS", "2")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{how}: {text}{}", String::from_utf8_lossy(&child.stderr));
        let line = text.lines().find_map(|line| line.split_once("taken ")).expect("the child's line").1;
        let (taken, bytes) = line.trim().split_once(" of ").unwrap();
        let (taken, bytes): (u64, u64) = (taken.parse().unwrap(), bytes.parse().unwrap());
        let how = format!("{how} of {}", file.file_name().unwrap().display());
        eprintln!("{how}: {taken} bytes for a shard of {bytes}");
        assert!(taken <= bytes + bytes / 10, "{how}: {taken} bytes for a shard of {bytes}");
        assert!(taken >= bytes / 10 * 9, "{how}: the count counts: {taken} of {bytes}");
    }
}
