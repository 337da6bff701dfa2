//! All shapes and types, each beside both roofs, as JSON.

use crate::clocked::Clocked;
use crate::load::{clocks_under, driver_version};
use crate::operands::Operands;
use crate::roofs::Roofs;
use crate::timing::{ROTATE, Replayed, Weights, stream};
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

/// Kinds with the same weights and rows.
const KINDS: [&[Kind]; 4] = [&[Kind::Bf16], &[Kind::W8a8, Kind::W8a8Quantised], &[Kind::W8a16], &[Kind::F16]];

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

/// Whether clocks are read under load: where memory is the limit, and of whole heads where arithmetic is.
fn clocked(shards: usize, rows: usize) -> bool {
    small() || rows == 28 || (shards == 1 && rows == 4096)
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

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// In microseconds, and the bytes a second of the median.
fn quantiles(seconds: &[f64], bytes: usize) -> Value {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[(q * (sorted.len() - 1) as f64).round() as usize] * 1e6;
    json!({
        "median_us": median(seconds) * 1e6, "p10_us": at(0.1), "p90_us": at(0.9), "replays": seconds.len(),
        "bytes_per_s": bytes as f64 / median(seconds),
    })
}

/// Seconds of each of the works, which take turns: at least seven replays, then until the first has taken 0.06 s. One more each warms up.
fn by_turns(works: [&Clocked; 3]) -> lmhead::Result<[Vec<f64>; 3]> {
    let mut times = [const { Vec::new() }; 3];
    works.iter().try_for_each(|work| work.replay().map(drop))?;
    let mut total = 0.0;
    while times[0].len() < 7 || (total < 0.06 && times[0].len() < 40 && !small()) {
        for (work, times) in works.iter().zip(&mut times) {
            times.push(work.replay()?);
        }
        total += times[0][times[0].len() - 1] * works[0].launches as f64;
    }
    Ok(times)
}

/// Measures all and writes it, also what there is after an error. `LMHEAD_GPU_SECONDS` (400): shapes that come after are left out by name.
pub fn write(device: &CudaDevice, file: &Path) -> Result<(), String> {
    let limit = std::env::var("LMHEAD_GPU_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400.0);
    let info = device.info();
    let mut report = json!({
        "method": "CUDA events around replays of a CUDA graph of several launches over rotating weights (3x the second-level cache), \
                   rows and logits; bf16 logits; random data; time of one launch. Bytes: weights, scales, rows and logits, each once. \
                   Roofs: as many launches that only read, or only copy, as many bytes over rotating windows, replayed by turns with \
                   the product. Clocks: while the product is replayed",
        "device": {
            "name": info.name,
            "compute_capability": info.capability.to_string(),
            "memory_bytes": info.memory,
            "processors": info.processors,
            "driver": driver_version(),
            "cuda": driver().map(|version| version.to_string()).unwrap_or_default(),
        },
        "commit": commit(),
        "version": env!("CARGO_PKG_VERSION"),
        "products": [],
        "left_out": [],
    });
    let done = measure(device, file, &mut report, limit);
    if let Err(problem) = &done {
        report["problem"] = json!(problem);
    }
    save(&report, file)?;
    done
}

fn save(report: &Value, file: &Path) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).expect("this is JSON");
    std::fs::write(file, text + "\n").map_err(|e| format!("{}: {e}", file.display()))
}

fn push(report: &mut Value, list: &str, value: Value) {
    report[list].as_array_mut().expect("a list").push(value);
}

fn measure(device: &CudaDevice, file: &Path, report: &mut Value, limit: f64) -> Result<(), String> {
    let (began, own) = (Instant::now(), stream(device)?);
    let stream = own.handle();
    let said = |e: lmhead::Error| e.to_string();
    let most = all_rows().iter().copied().max().expect("some");
    // 16-bit weights, rows and logits.
    let largest = heads().into_iter().map(|head| {
        let (vocab, hidden) = (Place { head: &head, shards: 1 }.vocab(), head.hidden);
        2 * (vocab * hidden + most * (hidden + vocab))
    });
    let largest = largest.max().expect("some");
    let rotate = if small() { 4096 } else { ROTATE };
    let mut roofs = Roofs::new(device, stream, largest, rotate).map_err(said)?;
    // Whole heads first, then their shards: where time is short, the smaller ones are left out.
    for &shards in all_shards() {
        for head in &heads() {
            let place = Place { head, shards };
            for kinds in KINDS {
                let late = |began: Instant| began.elapsed().as_secs_f64() > limit;
                if late(began) {
                    kinds.iter().for_each(|kind| push(report, "left_out", json!(format!("{kind} {place}"))));
                    continue;
                }
                let weights = Weights::new(device, stream, &operands(kinds[0], &place)).map_err(said)?;
                for (&kind, &rows) in
                    kinds.iter().flat_map(|kind| all_rows().iter().map(move |rows| (kind, rows)))
                {
                    let name = format!("{kind} {place}, {rows} rows");
                    if late(began) {
                        push(report, "left_out", json!(name));
                        continue;
                    }
                    match product(&weights, &mut roofs, (&place, kind, rows)) {
                        Ok(row) => push(report, "products", row),
                        // A smaller GPU has no room for the largest.
                        Err(problem) if problem.contains("CUDA_ERROR_OUT_OF_MEMORY") => {
                            push(report, "left_out", json!(format!("{name}: {problem}")));
                        }
                        Err(problem) => return Err(format!("{name}: {problem}")),
                    }
                }
                // What there is, should something stop this program.
                save(report, file)?;
            }
        }
    }
    Ok(())
}

/// One product and its roofs, measured by turns.
fn product(
    weights: &Weights<'_>,
    roofs: &mut Roofs<'_>,
    (place, kind, rows): (&Place<'_>, Kind, usize),
) -> Result<Value, String> {
    let said = |e: lmhead::Error| e.to_string();
    let run = Replayed::new(weights, kind, rows).map_err(said)?;
    let (bytes, passes) = (run.bytes, run.work.launches);
    let (reading, copying) =
        (roofs.reading(bytes, passes).map_err(said)?, roofs.copying(bytes, passes).map_err(said)?);
    let [own, read, copy] = by_turns([&run.work, &reading, &copying]).map_err(said)?;
    roofs.check(bytes, passes, read.len() + 1)?;
    let head = place.head;
    let operations = 2.0 * (rows * place.vocab() * head.hidden) as f64 / median(&own);
    let share = median(&read) / median(&own);
    let mut row = json!({
        "vocab": place.vocab(), "hidden": head.hidden, "shards": place.shards, "rows": rows, "kind": kind.to_string(),
        "plan": run.plan, "launches": passes, "bytes": bytes, "operations_per_s": operations, "share_of_read_roof": share,
        "read_roof": quantiles(&read, bytes), "copy_roof": quantiles(&copy, bytes),
    });
    for (key, value) in quantiles(&own, bytes).as_object().expect("an object") {
        row[key] = value.clone();
    }
    if clocked(place.shards, rows) {
        row["clocks"] = clocks_under(&run.work).map_err(said)?;
    }
    println!(
        "{place} {kind}, {rows} rows: {:.1} us, {:.3} TB/s, {share:.3} of the read roof, {:.1} T(FL)OP/s",
        1e6 * median(&own),
        bytes as f64 / median(&own) / 1e12,
        operations / 1e12
    );
    Ok(row)
}
