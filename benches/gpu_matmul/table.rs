//! All shapes and types with both roofs, as JSON.

use crate::operands::Operands;
use crate::timing::{Replayed, roofs, stream};
use lmhead::DType;
use lmhead::backend::cuda::{CudaDevice, driver};
use lmhead::plan::Precision;
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A head of a model.
pub struct Head {
    pub vocab: usize,
    pub hidden: usize,
}

/// Some shards of a head: the first.
pub struct Place<'a> {
    pub head: &'a Head,
    pub shards: usize,
}

impl Place<'_> {
    pub fn vocab(&self) -> usize {
        // Shards begin at multiples of 64 ids.
        self.head.vocab.div_ceil(64).div_ceil(self.shards) * 64
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.vocab(), self.head.hidden)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bf16,
    F16,
    /// From bf16 rows: quantised, then multiplied.
    W8a8,
    /// The same without quantising.
    W8a8Quantised,
    /// From bf16 rows.
    W8a16,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bf16 => "bf16",
            Kind::F16 => "f16",
            Kind::W8a8 => "w8a8",
            Kind::W8a8Quantised => "w8a8 of quantised rows",
            Kind::W8a16 => "w8a16",
        })
    }
}

impl Kind {
    fn precision(self) -> Precision {
        match self {
            Kind::Bf16 => Precision::Bf16,
            Kind::F16 => Precision::F16,
            Kind::W8a8 | Kind::W8a8Quantised => Precision::W8a8(DType::Bf16),
            Kind::W8a16 => Precision::W8a16(DType::Bf16),
        }
    }
}

const KINDS: [Kind; 5] = [Kind::Bf16, Kind::W8a8, Kind::W8a8Quantised, Kind::W8a16, Kind::F16];

/// On an emulated device: sizes at which nothing is measured but that all of it runs.
pub fn small() -> bool {
    std::env::var_os("LMHEAD_GPU_SMALL").is_some()
}

pub fn heads() -> Vec<Head> {
    if small() {
        return vec![Head { vocab: 200, hidden: 64 }];
    }
    vec![Head { vocab: 129_280, hidden: 7168 }, Head { vocab: 128_256, hidden: 4096 }]
}

pub fn few_rows() -> &'static [usize] {
    if small() { &[1, 9] } else { &[1, 28, 128, 896] }
}

fn all_rows() -> &'static [usize] {
    if small() { &[1, 9] } else { &[1, 8, 16, 28, 64, 128, 256, 896, 4096] }
}

fn all_shards() -> &'static [usize] {
    if small() { &[1, 2] } else { &[1, 4, 8, 16] }
}

pub fn operands(kind: Kind, place: &Place<'_>) -> Operands {
    let most = all_rows().iter().copied().max().expect("some");
    Operands::new(kind.precision(), place.vocab(), place.head.hidden, most)
}

/// What nvidia-smi says of the device.
fn smi(field: &str) -> String {
    let query = format!("--query-gpu={field}");
    let said = Command::new("nvidia-smi").args([query.as_str(), "--format=csv,noheader", "--id=0"]).output();
    let text = said.ok().filter(|said| said.status.success());
    text.map_or("unknown".into(), |said| String::from_utf8_lossy(&said.stdout).trim().to_string())
}

fn clocks() -> Value {
    json!({
        "sm": smi("clocks.sm"),
        "memory": smi("clocks.mem"),
        "power": smi("power.draw"),
        "temperature": smi("temperature.gpu"),
    })
}

/// The bundle's file, or the working tree's.
fn commit() -> String {
    let bundled = std::env::var("LMHEAD_COMMIT").ok();
    let asked = || {
        let said = Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_string())
    };
    bundled.or_else(asked).unwrap_or_else(|| "unknown".into())
}

/// In microseconds.
fn quantiles(mut seconds: Vec<f64>) -> Value {
    seconds.sort_by(f64::total_cmp);
    let at = |q: f64| seconds[(q * (seconds.len() - 1) as f64).round() as usize] * 1e6;
    json!({ "median_us": at(0.5), "p10_us": at(0.1), "p90_us": at(0.9), "replays": seconds.len() })
}

/// At least five replays, then until 0.15 s have gone by.
fn measured(run: &Replayed<'_>) -> lmhead::Result<Vec<f64>> {
    run.replay()?;
    let (mut seconds, mut total) = (Vec::new(), 0.0);
    while seconds.len() < 5 || (total < 0.15 && seconds.len() < 60 && !small()) {
        let replay = run.replay()?;
        total += replay;
        seconds.push(replay / run.launches as f64);
    }
    Ok(seconds)
}

/// Measures all and writes it, also what there is after an error. `LMHEAD_GPU_SECONDS` (400): shapes that come after are left out by name.
pub fn write(device: &CudaDevice, file: &Path) -> Result<(), String> {
    let limit = std::env::var("LMHEAD_GPU_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400.0);
    let info = device.info();
    let mut report = json!({
        "method": "CUDA events around replays of a CUDA graph of several launches over rotating weights (3x the second-level cache), \
                   rows and logits; bf16 logits; random data; time of one launch",
        "device": {
            "name": info.name,
            "compute_capability": info.capability.to_string(),
            "memory_bytes": info.memory,
            "processors": info.processors,
            "driver": smi("driver_version"),
            "cuda": driver().map(|version| version.to_string()).unwrap_or_default(),
        },
        "commit": commit(),
        "version": env!("CARGO_PKG_VERSION"),
        "clocks_before": clocks(),
        "roofs": [],
        "products": [],
        "left_out": [],
    });
    let done = measure(device, &mut report, limit);
    if let Err(problem) = &done {
        report["problem"] = json!(problem);
    }
    report["clocks_after"] = clocks();
    let text = serde_json::to_string_pretty(&report).expect("this is JSON");
    std::fs::write(file, text + "\n").map_err(|e| format!("{}: {e}", file.display()))?;
    done
}

fn push(report: &mut Value, list: &str, value: Value) {
    report[list].as_array_mut().expect("a list").push(value);
}

fn measure(device: &CudaDevice, report: &mut Value, limit: f64) -> Result<(), String> {
    let (began, own) = (Instant::now(), stream(device)?);
    let stream = own.handle();
    let said = |e: lmhead::Error| e.to_string();
    // Whole heads first, then their shards: where time is short, the smaller ones are left out.
    for &shards in all_shards() {
        for head in &heads() {
            let place = Place { head, shards };
            let bytes = 2 * place.vocab() * head.hidden;
            let [copy, read] = roofs(device, stream, bytes, if small() { 2 } else { 20 })?;
            let rate = |seconds: &[f64], moved: usize| {
                let mut sorted = seconds.to_vec();
                sorted.sort_by(f64::total_cmp);
                moved as f64 / sorted[sorted.len() / 2]
            };
            let (copied, streamed) = (rate(&copy, 2 * bytes), rate(&read, bytes));
            println!("{place}: copy {:.3} TB/s, read {:.3} TB/s", copied / 1e12, streamed / 1e12);
            push(
                report,
                "roofs",
                json!({
                    "bytes": bytes, "copy": quantiles(copy), "copy_bytes_per_s": copied,
                    "read": quantiles(read), "read_bytes_per_s": streamed,
                }),
            );
            for kind in KINDS {
                let operands = operands(kind, &place);
                for &rows in all_rows() {
                    if began.elapsed().as_secs_f64() > limit {
                        push(report, "left_out", json!(format!("{kind} {place}, {rows} rows")));
                        continue;
                    }
                    let run = Replayed::new(device, stream, kind, &operands, rows).map_err(said)?;
                    let times = measured(&run).map_err(said)?;
                    let per_second = |amount: f64| amount / (rate(&times, 1).recip());
                    let products = 2.0 * (rows * place.vocab() * head.hidden) as f64;
                    let (bandwidth, work) = (per_second(run.bytes as f64), per_second(products));
                    println!(
                        "{place} {kind}, {rows} rows: {:.1} us, {:.3} TB/s, {:.1} T(FL)OP/s",
                        1e6 / rate(&times, 1),
                        bandwidth / 1e12,
                        work / 1e12
                    );
                    let mut row = json!({
                        "vocab": place.vocab(), "hidden": head.hidden, "shards": shards, "rows": rows, "kind": kind.to_string(),
                        "plan": run.plan, "bytes": run.bytes, "bytes_per_s": bandwidth, "operations_per_s": work,
                        "share_of_read_roof": bandwidth / streamed,
                    });
                    let times = quantiles(times);
                    for (key, value) in times.as_object().expect("an object") {
                        row[key] = value.clone();
                    }
                    push(report, "products", row);
                }
            }
        }
    }
    Ok(())
}
