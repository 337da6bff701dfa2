//! The options of `lmhead run`. Values may begin with a hyphen, so that a negative number reaches [`values`],
//! which says what is wrong with it.

use crate::sampling_args::SamplingArgs;
use crate::values::{self, at_least_one, refused};
use clap::ArgAction::Set;
use clap::{Args, ValueEnum};
use lmhead::config::{LmheadTpSize, Quantization};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::result::Request;
use lmhead::sampling::SamplingParams;
use lmhead::weights::synthetic::{self, Preset};
use std::path::PathBuf;

/// Where the head comes from.
#[derive(Args)]
#[command(next_help_heading = "Head (one of)")]
pub struct HeadArgs {
    /// Head: a Hugging Face model folder (config.json and safetensors), or a GGUF file
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Head: one safetensors or GGUF file
    #[arg(long, value_name = "FILE")]
    pub head: Option<PathBuf>,
    /// The head's tensor: with --head [default: lm_head.weight]; with --model in place of the one found.
    /// Scales of int8: NAME_scale
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Head: synthetic weights of a known model's size: deepseek-v3, llama-3-8b, qwen2.5-7b, gemma-2-9b, tiny
    #[arg(long, value_name = "NAME", value_parser = synthetic::preset)]
    pub preset: Option<Preset>,
}

/// Where the rows come from, and the ranks that bring them.
#[derive(Args)]
#[command(next_help_heading = "Rows and ranks")]
pub struct RowArgs {
    /// Rows: safetensors with hidden_states [rows, hidden] in rank order; optionally logits_indices [n] and,
    /// for each output row, targets [n] or [n, m] (-100: none); allowed i32 [n, ceil(vocab/32)] (a bit per
    /// id); logit bias: adjust_rows, adjust_ids, adjust_values [m]; penalties:
    /// repetition_penalty, frequency_penalty, presence_penalty [n] with count_rows, count_ids, count_values,
    /// count_in_prompt [m]; sampling: seed, position, temperature, top_k, top_p, min_p [n]; synthetic rows
    /// without it
    #[arg(long, value_name = "FILE")]
    pub hidden: Option<PathBuf>,
    /// Hidden rows of each dp rank, as in 7,0,12,9 [default: as even as possible; 28 in all when synthetic]
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        action = Set,
        value_parser = values::row_count
    )]
    pub rows: Option<Vec<usize>>,
    #[command(flatten)]
    pub ranks: RankArgs,
    /// Ranks that share one head: n (1, or a multiple of tp that divides dp * tp), -1 (tp), or auto: tp where
    /// above 1, else what a configured cost_model finds fastest, else 1, a whole head on every rank [default:
    /// auto]
    #[arg(long, value_name = "SIZE", value_parser = values::lmhead_tp_size)]
    pub lmhead_tp_size: Option<LmheadTpSize>,
    /// How ranks learn each other's rows: exact (all known), capacity (a static, padded shape) or discover
    #[arg(long, value_name = "MODE", default_value = "exact")]
    pub mode: CountMode,
}

#[derive(Args)]
pub struct RankArgs {
    /// Data-parallel ranks [default: the number of entries of --rows, or 1]
    #[arg(long, value_name = "N", value_parser = at_least_one("--dp"))]
    pub dp: Option<usize>,
    /// Tensor-parallel ranks of each replica
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one("--tp"))]
    pub tp: usize,
}

/// The sizes of a head without a name.
#[derive(Args)]
#[command(next_help_heading = "Head (one of)")]
pub struct SizeArgs {
    /// Head: ids of the vocabulary, with --hidden-size
    #[arg(long, value_name = "N", value_parser = at_least_one("--vocab-size"))]
    pub vocab_size: Option<usize>,
    /// Columns of the head, with --vocab-size
    #[arg(long, value_name = "N", value_parser = at_least_one("--hidden-size"))]
    pub hidden_size: Option<usize>,
}

#[derive(Args)]
#[command(allow_hyphen_values = true)]
pub struct RunArgs {
    /// TOML or JSON settings; options given here win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// none | w8a8 | w8a16: quantise at load, or say how a stored int8 head is multiplied
    #[arg(long, value_name = "HOW", value_parser = values::quantization)]
    pub quantize: Option<Quantization>,
    /// Copy stored weights into memory: steps do not depend on the file, which stays mapped otherwise
    #[arg(long)]
    pub copy: bool,
    /// logits | argmax | topk:K | sample (a token), sample:N (with its logprob, its rank and the N best ids)
    /// | logprobs[:N] (of the ids in --hidden's targets, and of the N best)
    #[arg(long, value_name = "WHAT", default_value = "logits")]
    pub request: Request,
    /// With logprobs and sample:N: logprobs of the logits with --hidden's adjustments, which raw ones leave
    /// aside
    #[arg(long)]
    pub processed: bool,
    /// f32 | bf16 | f16: the type that --request logits rounds to [default: f32]
    #[arg(
        long,
        value_name = "DTYPE",
        value_parser = values::float("--logits-dtype", "use one of those")
    )]
    pub logits_dtype: Option<DType>,
    /// Where the arithmetic runs
    #[arg(long, default_value = "auto")]
    pub backend: BackendName,
    /// What carries bytes between ranks: local (threads of this process) or mpi (processes, a rank each)
    /// [auto: mpi where mpirun has started several]
    #[arg(long, default_value = "auto")]
    pub exchange: ExchangeName,
    /// Threads of the CPU, which load the head and which all ranks share in their steps [default: all cores]
    #[arg(long, value_name = "N", value_parser = values::threads)]
    pub threads: Option<usize>,
    /// Seed of synthetic weights and rows (without --hidden), of sampled tokens (a row's position is its
    /// output row) where --hidden has none, and of the check's choice of rows
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::seed)]
    pub seed: u64,
    /// Steps to time. Reported are medians of each rank, and p50, p90, p99 and max of the slowest rank of
    /// each step, by nearest rank: pN is the shortest time that N of 100 steps do not exceed
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one("--steps"))]
    pub steps: usize,
    /// Steps of the same kind before those, which are not timed; 0: the first timed step also allocates
    /// buffers and brings weights into memory [default: as many as --steps, 3 at most]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::at_least_zero("--warm-up", "leave it out where unsure")
    )]
    pub warm_up: Option<usize>,

    /// Write the answer as safetensors, in output-row order; folders are not created
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// With an EAGLE-3 draft model: answer the target model's ids (its d2t) in place of draft ids
    #[arg(long)]
    pub target_ids: bool,
    /// Compare with the float64 reference; exit 1 beyond the promised error
    #[arg(long)]
    pub check: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    // Groups with a heading come last: clap gives what follows them the same one.
    #[command(flatten)]
    pub head: HeadArgs,
    #[command(flatten)]
    pub rows: RowArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Number of processes that a launcher has started for this run, one rank each.
    #[arg(skip)]
    pub processes: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CountMode {
    Exact,
    Capacity,
    Discover,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// A GPU where this build and this machine have one that runs the head, otherwise the CPU
    Auto,
    /// The CPU's own instructions
    Cpu,
    /// Device 0, in a build with --features cuda
    Cuda,
    /// The CUDA kernels on a device emulated by the CPU, every access checked
    Emulated,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExchangeName {
    Auto,
    Local,
    Mpi,
}

/// Largest default of --warm-up: more make no step faster (`benches/results/cpu/run.json`).
const MOST_WARM_UP: usize = 3;

/// Most ranks of a run: each is a thread, and every pair of ranks has a queue.
const MAX_RANKS: usize = 1024;

impl RunArgs {
    /// The number of data-parallel ranks: --dp or the entries of --rows, else processes / tp where a launcher
    /// has started several.
    pub fn dp(&self) -> Result<usize> {
        let RankArgs { dp, tp } = self.rows.ranks;
        let (None, Some(processes), None) = (dp, self.processes, self.rows()) else {
            return values::dp_ranks(dp, self.rows());
        };
        if processes.is_multiple_of(tp) {
            return Ok(processes / tp);
        }
        let wanted = format!("a divisor of the {processes} processes");
        Err(refused("--tp", &wanted, &tp.to_string(), "start as many processes as dp x tp"))
    }

    /// Refuses more than [`MAX_RANKS`] ranks.
    pub fn check_ranks(&self) -> Result<()> {
        let (dp, tp) = (self.dp()?, self.rows.ranks.tp);
        match dp.checked_mul(tp) {
            Some(ranks) if ranks <= MAX_RANKS => Ok(()),
            _ => Err(Error::Config {
                key: "--dp, --tp".into(),
                wanted: format!("at most {MAX_RANKS} ranks: each is a thread of this process"),
                got: format!("dp {dp} x tp {tp}"),
                fix: "use fewer".into(),
            }),
        }
    }

    pub fn warm_up(&self) -> usize {
        self.warm_up.unwrap_or(self.steps.min(MOST_WARM_UP))
    }

    /// Hidden rows per dp rank, where given.
    pub fn rows(&self) -> Option<&[usize]> {
        self.rows.rows.as_deref()
    }

    /// The sampling parameters of every row; `None` where the request does not sample.
    pub fn sampling(&self) -> Result<Option<SamplingParams>> {
        self.sampling.params(&self.request, self.seed)
    }

    pub fn request(&self) -> Result<Request> {
        request(self.request, self.logits_dtype, self.processed)
    }
}

/// The request of --request with the options that belong to it. The number of targets of a row comes from
/// --hidden.
pub fn request(mut request: Request, logits_dtype: Option<DType>, processed: bool) -> Result<Request> {
    let word = word(&request);
    match (&mut request, logits_dtype) {
        (_, None) => {}
        (Request::Logits { dtype }, Some(wanted)) => *dtype = wanted,
        _ => {
            let (wanted, fix) = ("--request logits beside it", "no other request rounds its logits");
            return Err(refused("--logits-dtype", wanted, &word, fix));
        }
    }
    match &mut request {
        _ if !processed => {}
        Request::Logprobs { processed, .. } => *processed = true,
        Request::Sample { logprobs: Some(logprobs) } => logprobs.processed = true,
        _ => {
            let wanted = "--request logprobs or sample:N beside it";
            let fix = "whatever else is asked for is always of the adjusted logits";
            return Err(refused("--processed", wanted, &word, fix));
        }
    }
    Ok(request)
}

/// The value of --request that asks for it.
pub fn word(request: &Request) -> String {
    match request {
        Request::Logits { .. } => "logits".into(),
        Request::Sample { logprobs: Some(logprobs) } => format!("sample:{}", logprobs.top_n),
        Request::Logprobs { top_n: 0, .. } => "logprobs".into(),
        other => other.to_string(),
    }
}
