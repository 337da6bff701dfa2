//! The report of `lmhead bench`: tables for the terminal, the same as JSON.

use super::{BenchSetup, Device};
use crate::report::{bytes, command, counted, micros};
use crate::terminal;
use lmhead::doctor::machine_name;
use serde::Serialize;
use std::path::Path;

/// What is timed, and where.
#[derive(Serialize)]
pub struct About {
    /// Version of lmhead.
    version: &'static str,
    command: String,
    machine: String,
    cpus: usize,
    backend: String,
    threads: usize,
    head: String,
    vocab_size: usize,
    hidden_size: usize,
}

impl About {
    pub fn new(setup: &BenchSetup, device: &Device) -> Self {
        About {
            version: env!("CARGO_PKG_VERSION"),
            command: command(),
            machine: machine_name(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            backend: device.name.clone(),
            threads: device.threads,
            head: setup.head.clone(),
            vocab_size: setup.vocab_size,
            hidden_size: setup.hidden_size,
        }
    }
}

/// The first line of --on-demand, before any question.
#[derive(Serialize)]
pub struct Ready {
    #[serde(flatten)]
    pub about: About,
    /// Bytes of weights for each type, in the order of --dtypes.
    pub weight_bytes: Vec<usize>,
}

#[derive(Serialize)]
pub struct BenchReport {
    #[serde(flatten)]
    pub about: About,
    pub seed: u64,
    /// Repetitions of every timing.
    pub reps: usize,
    pub heads: Vec<HeadReport>,
}

/// The timings of one type of weights.
#[derive(Serialize)]
pub struct HeadReport {
    /// bf16, f16, f32, w8a8 or w8a16.
    pub dtype: String,
    pub hidden_dtype: String,
    /// Bytes of the weight matrix alone.
    pub weight_bytes: usize,
    pub rows: Vec<RowsReport>,
}

#[derive(Serialize)]
pub struct RowsReport {
    pub rows: usize,
    /// Time of reading the same weights and nothing else, measured in turns with the stages, µs.
    pub read: Timing,
    pub read_gb_per_s: f64,
    /// Rate of the instruction that multiplies this type, on registers, in 1e9 operations a second. A
    /// multiplication and an addition are two operations.
    pub arithmetic_gop_per_s: Option<f64>,
    pub stages: Vec<StageReport>,
}

#[derive(Serialize)]
pub struct StageReport {
    pub stage: String,
    /// µs.
    #[serde(flatten)]
    pub time: Timing,
    /// Share of the read bandwidth that the stage reaches, where it streams the weights: the median of `read`
    /// over its own.
    pub of_read: Option<f64>,
    /// Share of the arithmetic rate that the stage reaches, where it multiplies.
    pub of_arithmetic: Option<f64>,
    /// Medians of the parts of a step, where the stage is a whole step.
    pub parts: Option<PartsReport>,
}

#[derive(Serialize)]
pub struct PartsReport {
    pub contract_us: f64,
    pub gather_us: f64,
    pub matmul_us: f64,
    /// Merging candidates, sampling, putting columns in order.
    pub after_us: f64,
}

/// Median, 10th and 90th percentile, interpolated linearly between the two nearest repetitions; µs in
/// reports.
#[derive(Serialize, Clone, Copy)]
pub struct Timing {
    #[serde(rename = "median_us")]
    pub median: f64,
    #[serde(rename = "p10_us")]
    pub p10: f64,
    #[serde(rename = "p90_us")]
    pub p90: f64,
}

impl Timing {
    /// Summarises at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Timing { median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

impl RowsReport {
    /// The medians as one line of text.
    pub fn line(&self, head: &str) -> String {
        let stages = self.stages.iter().map(|s| format!(", {} {}", s.stage, micros(s.time.median)));
        format!(
            "{head}, {}: read {}{}",
            counted(self.rows, "row"),
            micros(self.read.median),
            stages.collect::<String>()
        )
    }
}

impl BenchReport {
    /// A table for each type of weights.
    pub fn text(&self, written: Option<&Path>) -> String {
        let about = &self.about;
        let mut lines = vec![format!(
            "{}: {} x {}; {} on {} threads; {}",
            about.head, about.vocab_size, about.hidden_size, about.backend, about.threads, about.machine
        )];
        for head in &self.heads {
            lines.push(format!(
                "{}, rows in {}: {} of weights; medians of {}",
                head.dtype,
                head.hidden_dtype,
                bytes(head.weight_bytes as u64),
                counted(self.reps, "repetition")
            ));
            let header = ["rows", "stage", "median", "p10", "p90", "of read", "of arithmetic"];
            let mut table = terminal::table(header, &[1]);
            for rows in &head.rows {
                let percent =
                    |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s));
                let cells = |stage: &str, time: &Timing| {
                    [
                        rows.rows.to_string(),
                        stage.to_string(),
                        micros(time.median),
                        micros(time.p10),
                        micros(time.p90),
                    ]
                };
                let read = [format!("{:.1} GB/s", rows.read_gb_per_s)];
                let rate = rows.arithmetic_gop_per_s.map_or("-".into(), |rate| format!("{rate:.0} Gop/s"));
                table.add_row(cells("(read only)", &rows.read).into_iter().chain(read).chain([rate]));
                for stage in &rows.stages {
                    let shares = [percent(stage.of_read), percent(stage.of_arithmetic)];
                    table.add_row(cells(&stage.stage, &stage.time).into_iter().chain(shares));
                }
            }
            lines.push(table.to_string());
        }
        if let Some(path) = written {
            lines.push(format!("written: {}", path.display()));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_interpolated() {
        let of = |values: &[f64]| {
            let timing = Timing::of(values.iter().copied());
            [timing.p10, timing.median, timing.p90]
        };
        assert_eq!(of(&[3.0]), [3.0; 3]);
        assert_eq!(of(&[4.0, 2.0]), [2.2, 3.0, 3.8]);
        let eleven: Vec<f64> = (0..11).rev().map(f64::from).collect();
        assert_eq!(of(&eleven), [1.0, 5.0, 9.0]);
    }
}
