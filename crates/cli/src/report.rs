//! The report of `lmhead run`: a table for the terminal, the same as JSON.

use crate::terminal;
use crate::times::Percentiles;
use lmhead::reference::Verdict;
use lmhead::result::Request;
use serde::{Deserialize, Serialize};

/// The report of one run. Times are medians over the timed steps, except the percentiles.
#[derive(Serialize)]
pub struct RunReport {
    /// Version of lmhead.
    pub version: &'static str,
    /// The command, without the program's path.
    pub command: String,
    pub machine: String,
    pub head: String,
    /// Where the hidden rows, and targets without a file, came from.
    pub rows: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub weights: String,
    pub quantization: String,
    pub request: String,
    #[serde(skip)]
    pub asked: Request,
    pub mode: String,
    pub backend: String,
    pub exchange: String,
    pub threads: usize,
    pub dp: usize,
    pub tp: usize,
    pub lmhead_tp_size: usize,
    pub hidden_rows: usize,
    pub output_rows: usize,
    pub rows_not_good: usize,
    pub load_seconds: f64,
    /// Steps before the timed ones.
    pub warm_up: usize,
    pub steps: usize,
    pub ranks: Vec<RankReport>,
    pub step: StepReport,
    pub check: Option<Verdict>,
    pub out: Option<String>,
    pub warnings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub struct RankReport {
    pub rank: usize,
    pub dp: usize,
    pub tp: usize,
    /// Global ranks of its group.
    pub group: Vec<usize>,
    /// Hidden rows that it held, and output rows that were wanted of them.
    pub hidden_rows: usize,
    pub output_rows: usize,
    pub shard: [usize; 2],
    pub shard_bytes: u64,
    pub contract_us: f64,
    pub gather_us: f64,
    pub matmul_us: f64,
    pub exchange_us: f64,
    pub step_us: f64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub rounds: u32,
    /// Memory of the largest chunk of logprobs.
    pub chunk_bytes: u64,
}

/// One step over all ranks. The time of a stage, and `step_us`, is the largest of the ranks' medians.
#[derive(Serialize)]
pub struct StepReport {
    pub contract_us: f64,
    pub gather_us: f64,
    pub matmul_us: f64,
    pub exchange_us: f64,
    pub step_us: f64,
    /// `p50_us`, `p90_us`, `p99_us` and `max_us` of each step's slowest rank, over the steps of all groups.
    /// An engine waits for the last rank of a group: percentiles of single ranks would hide a straggler that
    /// is a different rank in each step.
    #[serde(flatten)]
    pub percentiles: Percentiles,
    /// Bytes that crossed between ranks.
    pub bytes_exchanged: u64,
    /// Collective operations of the rank that has most.
    pub rounds: u32,
    /// Bytes that would have crossed for all f32 logits of the same rows, in exact steps.
    pub full_logits_bytes: u128,
    /// Bytes of weights that all ranks streamed, over the time of the slowest matmul, GB/s (1e9 bytes).
    pub weight_gb_per_s: f64,
}

impl RunReport {
    /// The table in the terminal.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        let quantized =
            if self.quantization == "none" { String::new() } else { format!(", {}", self.quantization) };
        lines.push(format!(
            "{}: {} x {} {}{quantized}",
            self.head, self.vocab_size, self.hidden_size, self.weights
        ));
        let shared = match (self.lmhead_tp_size, self.ranks.len()) {
            (1, 1) => "one rank with the whole head".into(),
            (1, _) => "every rank holds the whole head (--lmhead-tp-size shares it)".into(),
            (n, _) => format!("{n} ranks share a head"),
        };
        lines.push(format!(
            "dp {} x tp {}, {shared}; {} on {} threads, exchange {}",
            self.dp, self.tp, self.backend, self.threads, self.exchange
        ));
        lines.push(format!(
            "{} ({}: {}), {} counts: {}",
            counted(self.output_rows, "output row"),
            counted(self.hidden_rows, "hidden row"),
            self.rows,
            self.mode,
            self.request
        ));
        // Two tables, so that each fits a terminal: what each rank holds and exchanges, and its times.
        let mut held =
            terminal::table(["rank", "rows in/out", "shard (ids)", "bytes", "sent", "received"], &[]);
        let mut times = terminal::table(["rank", "contract", "gather", "matmul", "exchange", "step"], &[]);
        for rank in &self.ranks {
            held.add_row([
                rank.rank.to_string(),
                format!("{}/{}", rank.hidden_rows, rank.output_rows),
                format!("{}..{}", rank.shard[0], rank.shard[1]),
                bytes(rank.shard_bytes),
                bytes(rank.bytes_sent),
                bytes(rank.bytes_received),
            ]);
            let us = [rank.contract_us, rank.gather_us, rank.matmul_us, rank.exchange_us, rank.step_us];
            times.add_row(std::iter::once(rank.rank.to_string()).chain(us.map(micros)));
        }
        lines.extend([held.to_string(), times.to_string()]);
        lines.push(format!(
            "head ready in {}; weights at {}; times above: medians of {}",
            seconds(self.load_seconds),
            rate(self.step.weight_gb_per_s),
            counted(self.steps, "step")
        ));
        let groups = self.ranks.len() / self.lmhead_tp_size;
        let Percentiles { p50_us, p90_us, p99_us, max_us } = self.step.percentiles;
        lines.push(format!(
            "step, by its slowest rank: p50 {}, p90 {}, p99 {}, max {} of {}{}, after {} of warm-up",
            micros(p50_us),
            micros(p90_us),
            micros(p99_us),
            micros(max_us),
            counted(self.steps, "step"),
            if groups > 1 { format!(" of {groups} groups") } else { String::new() },
            self.warm_up
        ));
        if self.step.rounds > 0 {
            lines.push(format!(
                "{} exchanged in {} rounds (all f32 logits: {})",
                bytes(self.step.bytes_exchanged),
                self.step.rounds,
                bytes(self.step.full_logits_bytes)
            ));
        }
        if let Some(check) = &self.check {
            lines.push(sentence(check, &self.asked, &self.quantization));
            lines.extend(check.mistakes.iter().map(|mistake| format!("  {mistake}")));
        }
        if let Some(out) = &self.out {
            lines.push(format!("written: {out}"));
        }
        lines.join("\n")
    }
}

const TOKENS: &str = "every token could have been drawn, within the allowed error";

/// The verdict in a sentence.
fn sentence(verdict: &Verdict, request: &Request, quantization: &str) -> String {
    let passed = if verdict.passed { "check passed" } else { "CHECK FAILED" };
    // The error of quantisation is not an error of the computation, and not measured here.
    let truth = match quantization {
        "none" => "float64".to_string(),
        how => format!("float64 arithmetic on the {how} head"),
    };
    let extent = if verdict.everything { "everything" } else { "a seeded sample" };
    let found = match (request, verdict.error_over_rms) {
        _ if verdict.values == 0 => "nothing was compared".into(),
        (Request::Argmax | Request::Sample { .. }, _) if !verdict.passed => {
            "answers beyond the allowed error:".into()
        }
        (Request::Argmax, _) => "no id that another beats by more than rounding".into(),
        (Request::Sample { logprobs: Some(_) }, _) => format!(
            "{TOKENS}; largest error of a logprob {:.1e} (no correct sum exceeds {:.1e})",
            verdict.largest_error, verdict.allowed_there
        ),
        (Request::Sample { logprobs: None }, _) => TOKENS.into(),
        (_, Some(over)) => format!(
            "largest error {over:.1e} of the logits' rms, allowed {:.0e}; \
             largest absolute error {:.1e} (no correct sum exceeds {:.1e})",
            verdict.rms_limit, verdict.largest_error, verdict.allowed_there
        ),
        (_, None) => format!(
            "largest absolute error {:.1e} (no correct sum exceeds {:.1e}); \
             largest share of its own bound: {}",
            verdict.largest_error,
            verdict.allowed_there,
            percent(verdict.worst_ratio)
        ),
    };
    let broken = match verdict.not_finite {
        0 => String::new(),
        n => format!(", {n} of them not finite or without an answer, as in the truth"),
    };
    let (values, rows) = (verdict.values, verdict.rows);
    format!("{passed} against {truth} ({extent}: {values} values of {rows} rows{broken}): {found}")
}

/// The command, without the program's path.
pub fn command() -> String {
    std::env::args_os().skip(1).fold("lmhead".into(), |line, word| line + " " + &word.to_string_lossy())
}

/// A share in percent, to a tenth.
fn percent(share: f64) -> String {
    if share > 0.0 && share < 1e-3 { "below 0.1 %".into() } else { format!("{:.1} %", 100.0 * share) }
}

/// A time in seconds, in ms or µs below one.
fn seconds(s: f64) -> String {
    if s >= 1.0 { format!("{s:.1} s") } else { micros(1e6 * s) }
}

/// A rate in GB/s (1e9 bytes), with a smaller prefix below one.
fn rate(gb_per_s: f64) -> String {
    if gb_per_s >= 1.0 {
        format!("{gb_per_s:.1} GB/s")
    } else {
        format!("{}/s", bytes((1e9 * gb_per_s) as u64))
    }
}

/// `1 step`, `3 steps`.
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Bytes with a decimal prefix.
pub fn bytes(n: impl Into<u128>) -> String {
    match n.into() as f64 {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n} B"),
    }
}

pub fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.1} ms", us / 1e3),
        us => format!("{us:.0} µs"),
    }
}
