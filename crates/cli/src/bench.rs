//! `lmhead bench`: times the stages of a head on this machine for each type and row count, beside the
//! machine's memory bandwidth and arithmetic rate measured in the same run.

mod on_demand;
mod progress;
mod report;
mod subject;

use crate::args::{SizeArgs, word};
use crate::output::OutFile;
use crate::values::{self, refused};
use crate::{Failure, print, terminal, threads};
use clap::ArgAction::Set;
use clap::{Args, ValueEnum};
use lmhead::backend::Backend;
use lmhead::backend::HeadTypes;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::result::Request;
use lmhead::weights::synthetic::{self, Preset};
use progress::Progress;
use report::{About, BenchReport, HeadReport, RowsReport, StageReport, Timing};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use subject::Subject;

#[derive(Args)]
#[command(allow_hyphen_values = true)]
pub struct BenchArgs {
    /// bf16 | f16 | f32 | w8a8 | w8a16: types to time, one after the other; int8 heads take bf16 rows
    #[arg(
        long,
        value_name = "TYPE,TYPE,...",
        default_value = "bf16,w8a8,w8a16",
        value_delimiter = ',',
        action = Set,
        value_parser = HeadType::parse
    )]
    dtypes: Vec<HeadType>,
    /// Row counts to time
    #[arg(
        long,
        value_name = "M,M,...",
        default_value = "1,4,8,16,28,64,256",
        value_delimiter = ',',
        action = Set,
        value_parser = timed_rows
    )]
    rows: Vec<usize>,
    /// What to time: rows (gathered, packed or quantised; on a head of one id), matmul (all of them to f32
    /// logits), epilogue (dequantised and written; on a head of one column), softcap (that with a softcap),
    /// or a whole step of one rank: logits, argmax, topk:K, logprobs[:N], sample[:N]
    #[arg(
        long,
        value_name = "STAGE,...",
        default_value = "rows,matmul,epilogue,logits,argmax,topk:8",
        value_delimiter = ',',
        action = Set,
        value_parser = Stage::parse
    )]
    stages: Vec<Stage>,
    /// Repetitions: in each, the read stream and then every stage is timed once
    #[arg(
        long,
        value_name = "N",
        default_value = "7",
        value_parser = values::at_most("--reps", MAX_REPS, "7 is the default")
    )]
    reps: usize,
    /// Where the arithmetic runs
    #[arg(long, default_value = "cpu")]
    backend: BackendName,
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", value_parser = values::threads)]
    threads: Option<usize>,
    /// Seed of the synthetic weights and rows
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::seed)]
    seed: u64,

    /// Write one JSON object to FILE beside the tables, or with - print it in their place
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Time nothing by itself, but each line `TYPE read`, `TYPE arithmetic` or `TYPE STAGE M` of standard
    /// input once, and answer it with a line of JSON: for a program that compares by turns. All types are
    /// held at once
    #[arg(long)]
    on_demand: bool,

    /// Head: a known model's size: deepseek-v3, llama-3-8b, qwen2.5-7b, gemma-2-9b, tiny
    #[arg(long, value_name = "NAME", help_heading = "Head (one of)", value_parser = synthetic::preset)]
    preset: Option<Preset>,
    #[command(flatten)]
    sizes: SizeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    Cpu,
}

/// A backend, and the roofs of its device.
struct Device {
    backend: Arc<dyn Backend>,
    roofs: Box<dyn Roofs>,
    /// As reports name it.
    name: String,
    threads: usize,
}

/// The memory bandwidth and arithmetic rate of a device (its roofline), measured when asked.
trait Roofs {
    /// Reads `weights` once and does nothing else with them.
    fn read(&self, weights: &[u8]);
    /// Operations per second on heads of this type, where known. A multiplication and an addition are two
    /// operations.
    fn arithmetic(&self, types: HeadTypes) -> Option<f64>;
}

/// Duration of one measurement of the arithmetic rate.
const ARITHMETIC_TIME: Duration = Duration::from_millis(10);

impl Roofs for Arc<CpuBackend> {
    fn read(&self, weights: &[u8]) {
        std::hint::black_box(self.read_stream(weights).expect("this process made the backend"));
    }

    fn arithmetic(&self, types: HeadTypes) -> Option<f64> {
        self.arithmetic_rate(types, ARITHMETIC_TIME).expect("this process made the backend")
    }
}

impl BackendName {
    fn open(self, threads: Option<usize>) -> Result<Device> {
        match self {
            BackendName::Cpu => {
                let cpu = Arc::new(CpuBackend::new(threads)?);
                let (name, threads) = (format!("{} {}", cpu.name(), cpu.isa()), cpu.threads());
                Ok(Device { backend: cpu.clone(), roofs: Box::new(cpu), name, threads })
            }
        }
    }
}

/// The head that is timed, and which of its stages.
struct BenchSetup {
    /// The head's name, and its sizes.
    head: String,
    vocab_size: usize,
    hidden_size: usize,
    softcap: Option<f32>,
    seed: u64,
    types: Vec<HeadType>,
    rows: Vec<usize>,
    stages: Vec<Stage>,
    reps: usize,
}

/// The type of the weights, and how they are multiplied.
#[derive(Clone, Copy, PartialEq)]
enum HeadType {
    Float(DType),
    Int8(Quantization),
}

impl HeadType {
    fn parse(text: &str) -> Result<Self> {
        match text.trim() {
            "w8a8" => Ok(HeadType::Int8(Quantization::W8a8)),
            "w8a16" => Ok(HeadType::Int8(Quantization::W8a16)),
            text => {
                text.parse().ok().filter(|dtype| *dtype != DType::I8).map(HeadType::Float).ok_or_else(|| {
                    let fix = "use one of those, or several with commas between them";
                    refused("--dtypes", "bf16, f16, f32, w8a8 or w8a16", text, fix)
                })
            }
        }
    }

    /// Type of the rows and of the weights before quantisation. Int8 heads are made from bf16 and take bf16
    /// rows.
    fn parts(self) -> (DType, Quantization) {
        match self {
            HeadType::Float(dtype) => (dtype, Quantization::None),
            HeadType::Int8(how) => (DType::Bf16, how),
        }
    }

    fn name(self) -> String {
        match self {
            HeadType::Float(dtype) => dtype.to_string(),
            HeadType::Int8(how) => how.to_string(),
        }
    }
}

/// A stage that is timed.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// Hidden rows -> packed or quantised rows.
    Rows,
    /// Hidden rows -> f32 logits, by the backend alone.
    Matmul,
    /// Accumulators -> f32 logits in the caller's buffer.
    Epilogue,
    /// As `Epilogue`, with a softcap.
    Softcap,
    /// A whole step of one rank.
    Request(Request),
}

impl Stage {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text.trim() {
            "rows" => Stage::Rows,
            "matmul" => Stage::Matmul,
            "epilogue" => Stage::Epilogue,
            "softcap" => Stage::Softcap,
            request => Stage::Request(request.parse().map_err(|error| match error {
                Error::Request { what, wanted, got, fix } => {
                    let others = if what == "request" { "rows, matmul, epilogue, softcap, " } else { "" };
                    let (what, wanted) = (what.replace("request", "--stages"), format!("{others}{wanted}"));
                    Error::Request { what, wanted, got, fix }
                }
                other => other,
            })?),
        })
    }

    fn name(self) -> String {
        match self {
            Stage::Rows => "rows".into(),
            Stage::Matmul => "matmul".into(),
            Stage::Epilogue => "epilogue".into(),
            Stage::Softcap => "softcap".into(),
            Stage::Request(request @ Request::Logprobs { .. }) => request.to_string(),
            Stage::Request(request) => word(&request),
        }
    }

    /// Whether the stage streams all weights, so that its time can be compared with the roofs.
    fn streams(self) -> bool {
        matches!(self, Stage::Matmul | Stage::Request(_))
    }
}

fn timed_rows(text: &str) -> Result<usize> {
    let rows = values::row_count(text)?;
    if (1..=MAX_ROWS).contains(&rows) {
        return Ok(rows);
    }
    let wanted = format!("row counts from 1 to {MAX_ROWS}");
    Err(refused("--rows", &wanted, &rows.to_string(), "write it as in --rows 1,28,256"))
}

/// All repetitions are held in memory until the end.
const MAX_REPS: usize = 100_000;
/// More than is useful: the memory for the logits runs out earlier.
const MAX_ROWS: usize = 1 << 20;

pub fn bench(args: &BenchArgs) -> std::result::Result<bool, Failure> {
    let setup = args.setup()?;
    let threads = args.threads;
    let out = match args.json.as_deref() {
        Some(path) if path != Path::new("-") => Some(OutFile::check(path, &[], "--json")?),
        _ => None,
    };
    if let (true, Some(path)) = (args.on_demand, &args.json) {
        let fix = "every answer is JSON on standard output";
        return Err(refused("--json", "it or --on-demand", &path.display().to_string(), fix).into());
    }
    for &kind in &setup.types {
        subject::config(&setup, kind)?;
    }
    threads::limit(threads)?;
    let device = args.backend.open(threads)?;
    if args.on_demand {
        return on_demand::serve(&setup, &device);
    }
    let mut heads = Vec::new();
    for &kind in &setup.types {
        // Only one head is in memory at a time.
        let mut subject = Subject::new(&setup, &device, kind)?;
        heads.push(time_head(&setup, &mut subject)?);
    }
    let report =
        BenchReport { about: About::new(&setup, &device), seed: setup.seed, reps: setup.reps, heads };
    let json = || serde_json::to_string_pretty(&report).expect("a report is JSON");
    if let Some(out) = out {
        out.write_bytes((json() + "\n").as_bytes())?;
    } else if args.json.is_some() {
        print(&json())?;
        return Ok(true);
    }
    terminal::show(&report.text(args.json.as_deref()))?;
    Ok(true)
}

/// Times every row count and stage of one head.
fn time_head(setup: &BenchSetup, subject: &mut Subject<'_>) -> Result<HeadReport> {
    let mut rows_reports = Vec::new();
    let progress = Progress::new(setup, &subject.name());
    for &rows in &setup.rows {
        progress.begin(rows);
        // One untimed run: it allocates buffers, touches pages and raises clock rates.
        for &stage in &setup.stages {
            subject.time(stage, rows)?;
        }
        let (mut reads, mut rates) = (Vec::new(), Vec::new());
        let mut samples = vec![Vec::new(); setup.stages.len()];
        for _ in 0..setup.reps {
            reads.push(subject.time_read());
            rates.extend(subject.arithmetic_rate());
            for (samples, &stage) in samples.iter_mut().zip(&setup.stages) {
                samples.push(subject.time(stage, rows)?);
            }
            progress.repeated();
        }
        let read = Timing::of(reads.iter().map(|time| micros(*time)));
        let rate = (!rates.is_empty()).then(|| Timing::of(rates.iter().map(|rate| rate / 1e9)).median);
        let operations = 2.0 * rows as f64 * setup.vocab_size as f64 * setup.hidden_size as f64;
        let stages = setup.stages.iter().zip(samples).map(|(stage, samples)| {
            let time = Timing::of(samples.iter().map(|sample| micros(sample.time)));
            let parts = samples[0].parts.map(|_| {
                let median = |of: fn(&subject::Parts) -> Duration| {
                    Timing::of(samples.iter().filter_map(|s| s.parts.as_ref()).map(|p| micros(of(p)))).median
                };
                report::PartsReport {
                    contract_us: median(|p| p.contract),
                    gather_us: median(|p| p.gather),
                    matmul_us: median(|p| p.matmul),
                    after_us: median(|p| p.after),
                }
            });
            let streams = stage.streams();
            StageReport {
                stage: stage.name(),
                of_read: streams.then(|| read.median / time.median),
                of_arithmetic: rate.filter(|_| streams).map(|rate| operations / (time.median * 1e3) / rate),
                time,
                parts,
            }
        });
        let report = RowsReport {
            rows,
            read,
            read_gb_per_s: subject.weight_bytes() as f64 / (read.median * 1e3),
            arithmetic_gop_per_s: rate,
            stages: stages.collect(),
        };
        progress.timed(&report);
        rows_reports.push(report);
    }
    Ok(HeadReport {
        dtype: subject.name(),
        hidden_dtype: subject.hidden_dtype().to_string(),
        weight_bytes: subject.weight_bytes(),
        rows: rows_reports,
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl BenchArgs {
    fn setup(&self) -> Result<BenchSetup> {
        let sizes = (self.sizes.vocab_size, self.sizes.hidden_size);
        let (head, vocab_size, hidden_size, softcap) = match (&self.preset, sizes) {
            (Some(preset), (None, None)) => {
                let softcap = preset.model.final_logit_softcapping;
                (format!("preset {}", preset.name), preset.vocab_size, preset.hidden_size, softcap)
            }
            (None, (Some(vocab), Some(hidden))) => ("given sizes".into(), vocab, hidden, None),
            (None, (None, None)) => {
                let fix = "try --preset tiny, or --vocab-size and --hidden-size";
                return Err(values::one_of("--preset, --vocab-size", "none", fix));
            }
            (None, _) => {
                let fix = "give the head's other size";
                return Err(Error::Config {
                    key: "--vocab-size, --hidden-size".into(),
                    wanted: "both".into(),
                    got: "one of them".into(),
                    fix: fix.into(),
                });
            }
            (Some(_), _) => {
                let fix = "leave out --preset, or --vocab-size and --hidden-size";
                return Err(values::one_of("--preset, --vocab-size", "several", fix));
            }
        };
        let (types, rows, stages) = (self.dtypes.clone(), self.rows.clone(), self.stages.clone());
        for stage in &stages {
            if let Stage::Request(request) = stage {
                request.check(vocab_size)?;
            }
        }
        let (seed, reps) = (self.seed, self.reps);
        Ok(BenchSetup { head, vocab_size, hidden_size, softcap, seed, types, rows, stages, reps })
    }
}
