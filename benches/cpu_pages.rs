//! The effect of the page size of weights: a read-only stream and a matmul of one row over weights in pages
//! of 4 KiB and in huge ones, alternating. Linux only.
//!
//! ```text
//! cargo bench --bench cpu_pages                              # 463 MB in bf16, JSON on the standard output
//! cargo bench --bench cpu_pages -- --out benches/results/cpu/pages.json
//! ```
//! `LMHEAD_PAGES_MB`: bytes of the weights; `LMHEAD_PAGES_REPETITIONS` (21).
#![allow(unsafe_code, reason = "what the system says of pages")]
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

use half::bf16;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Job, LogitsOut, On, Out, Status};
use lmhead::epilogue::Epilogue;
use lmhead::memory::SpanMut;
use lmhead::rows::HiddenRows;
use lmhead::weights::synthetic::{self, Spec};
use lmhead::weights::{HeadShard, Matrix, Storage};
use lmhead::{DType, Quantization};
use lmhead_testkit::report::{about, load, report, setting, summary};
use memmap2::{Advice, Mmap, MmapMut};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const HIDDEN: usize = 7168;

#[cfg(target_os = "linux")]
const PAGES: [(&str, Advice); 2] = [("4 KiB", Advice::NoHugePage), ("huge", Advice::HugePage)];

/// A copy of `bytes` in its own mapping, with pages as `advice` requests.
#[cfg(target_os = "linux")]
fn copy(bytes: &[u8], advice: Advice) -> Arc<Mmap> {
    let mut map = MmapMut::map_anon(bytes.len()).expect("memory");
    map.advise(advice).expect("a system that has huge pages");
    map.copy_from_slice(bytes);
    Arc::new(map.make_read_only().expect("memory that is read only"))
}

/// The share of the map in huge pages, from `/proc/self/smaps`.
fn huge_share(map: &Mmap) -> f64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the list of this program's memory");
    let (from, to) = (map.as_ptr() as usize, map.as_ptr() as usize + map.len());
    let (mut within, mut huge) = (false, 0.0);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            within = start < to && end > from;
        } else if within && let Some(size) = line.strip_prefix("AnonHugePages:") {
            let kib: f64 = size.trim().trim_end_matches(" kB").parse().expect("a size");
            huge += kib * 1024.0;
        }
    }
    huge / map.len() as f64
}

/// Weights with their mapping, which is also read directly.
struct Head {
    shard: Arc<HeadShard>,
    map: Arc<Mmap>,
}

impl Head {
    #[cfg(target_os = "linux")]
    fn new(vocab: usize, quantization: Quantization, advice: Advice) -> Head {
        let spec = Spec { vocab_size: vocab, hidden_size: HIDDEN, dtype: DType::Bf16 };
        let made = synthetic::shard(&spec, 0, 0..vocab, quantization, None).expect("a head");
        let (map, matrix) = match made.matrix() {
            Matrix::Bf16(values) => {
                let map = copy(bytemuck::cast_slice(values), advice);
                (Arc::clone(&map), Matrix::Bf16(Storage::<bf16>::from_map(&map, 0..map.len())))
            }
            Matrix::I8 { values, scales } => {
                let map = copy(bytemuck::cast_slice(values), advice);
                let values = Storage::<i8>::from_map(&map, 0..map.len());
                (Arc::clone(&map), Matrix::I8 { values, scales: scales.clone() })
            }
            _ => unreachable!("made as bf16"),
        };
        let shard =
            HeadShard::new(0..vocab, vocab, HIDDEN, quantization, matrix, None).expect("the sizes fit");
        Head { shard: Arc::new(shard), map }
    }
}

#[cfg(target_os = "linux")]
fn main() {
    // `cargo bench` passes this argument; a test run does nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let megabytes = setting("LMHEAD_PAGES_MB", 463);
    let repetitions = setting("LMHEAD_PAGES_REPETITIONS", 21).max(1);
    let mut result = about("cargo bench --bench cpu_pages");
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut thread_counts = vec![1, all];
    thread_counts.dedup();
    let mut heads_told: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, quantization, element) in [("bf16", Quantization::None, 2), ("w8a8", Quantization::W8a8, 1)] {
        let vocab = (megabytes * 1_000_000 / (element * HIDDEN)).max(1);
        let heads = PAGES.map(|(pages, advice)| (pages, Head::new(vocab, quantization, advice)));
        let row = synthetic::hidden_row(0, 0, HIDDEN, DType::Bf16);
        let mut logits = vec![0u8; vocab * 4];
        let mut told: BTreeMap<String, Value> = BTreeMap::new();
        let shares: BTreeMap<&str, f64> = heads
            .iter()
            .map(|(pages, head)| (*pages, (huge_share(&head.map) * 1000.0).round() / 1000.0))
            .collect();
        told.insert("share_in_huge_pages".into(), json!(shares));
        for &threads in &thread_counts {
            let backend = CpuBackend::new(Some(threads)).expect("a backend");
            let mut speeds: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
            let mut loaded = heads.each_ref().map(|(pages, head)| {
                (*pages, head, backend.load(&head.shard, DType::Bf16).expect("a loaded shard"))
            });
            for repetition in 0..repetitions + 1 {
                let mut order: Vec<_> = loaded.iter_mut().collect();
                if repetition % 2 == 1 {
                    order.reverse();
                }
                for (pages, head, loaded) in order {
                    let mut note = |what, began: Instant| {
                        // The first repetition is a warm-up.
                        if repetition > 0 {
                            let speed = head.map.len() as f64 / began.elapsed().as_secs_f64() / 1e9;
                            speeds.entry((what, *pages)).or_default().push(speed);
                        }
                    };
                    let began = Instant::now();
                    black_box(backend.read_stream(&head.map).expect("this process made the backend"));
                    note("read", began);
                    let rows = HiddenRows::new(&row, DType::Bf16, 1, HIDDEN).expect("a row");
                    let job = Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None };
                    let (stride, dtype, mut status) = (logits.len(), DType::F32, [0u32]);
                    let words = SpanMut::host(&mut status[..]);
                    let data = SpanMut::host(&mut logits[..]);
                    let status = Status::Apart { words, stride: 4 };
                    let out = Out::Logits(LogitsOut { data, stride, dtype, status });
                    let began = Instant::now();
                    loaded.run(&job, out, &mut On::default()).expect("logits");
                    note("matmul, 1 row", began);
                }
            }
            let mut by_stage: BTreeMap<&str, Value> = BTreeMap::new();
            for what in ["read", "matmul, 1 row"] {
                let [small, huge] = PAGES.map(|(pages, _)| &speeds[&(what, pages)]);
                let ratios: Vec<f64> = huge.iter().zip(small).map(|(huge, small)| huge / small).collect();
                by_stage.insert(
                    what,
                    json!({ "4 KiB": summary(small, 2), "huge": summary(huge, 2), "ratio": summary(&ratios, 3) }),
                );
            }
            told.insert(format!("{threads} threads"), json!(by_stage));
        }
        heads_told.insert(name, json!(told));
    }
    result["load_average_after"] = load();
    result["instruction_set"] = json!(CpuBackend::new(Some(1)).expect("a backend").isa().name());
    result["settings"] = json!(format!("LMHEAD_PAGES_MB={megabytes} LMHEAD_PAGES_REPETITIONS={repetitions}"));
    result["method"] = json!(
        "GB of weights a second; in each repetition each once, their order turned round each time; ratio: of a repetition's own speeds"
    );
    result["gb_s"] = json!(heads_told);
    report(&result);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("cpu_pages: the size of pages can be chosen on Linux only");
}
