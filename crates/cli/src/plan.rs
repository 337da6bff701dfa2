//! `lmhead plan`: who shares a head, what each rank holds and exchanges, and how long a step takes by the
//! cost model. Nothing is loaded or computed. Bytes and rounds of a step are those that `lmhead run`
//! measures.

mod kernels;
mod plot;
mod profile;
mod report;

use crate::args::{self, RankArgs, SizeArgs};
use crate::input::HeadSource;
use crate::output::{OutFile, input_files};
use crate::sampling_args::SamplingArgs;
use crate::values::{self, at_least_one, refused};
use crate::{Failure, print, terminal};
use clap::ArgAction::Set;
use clap::{Args, ValueEnum};
use lmhead::config::{HeadConfig, LmheadTpSize, Quantization, Settings};
use lmhead::cost::{self, CostModel, Machine};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::layout::{ParallelLayout, RankOrder};
use lmhead::result::Request;
use lmhead::weights;
use lmhead::weights::synthetic::{self, Preset};
use profile::Profile;
use report::{Collectives, Costs, PlanReport};
use std::path::PathBuf;

/// Where the head comes from.
#[derive(Args)]
#[command(next_help_heading = "Head (one of)")]
struct PlannedHeadArgs {
    /// Head: a known model's size: deepseek-v3, llama-3-8b, qwen2.5-7b, gemma-2-9b, tiny
    #[arg(long, value_name = "NAME", value_parser = synthetic::preset)]
    preset: Option<Preset>,
    /// Head: a Hugging Face model folder (config.json and safetensors)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// f32 | bf16 | f16: type of the weights of a head given by its sizes [default: bf16]
    #[arg(
        long,
        value_name = "DTYPE",
        value_parser = values::float("--weights", "for int8 add --quantize w8a8 or w8a16")
    )]
    weights: Option<DType>,
}

/// The rows of a step, and the ranks that bring them.
#[derive(Args)]
#[command(next_help_heading = "Rows and ranks")]
struct LayoutArgs {
    /// Rows that each dp rank brings to a step [default: the configured cost_model's, else 28]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::at_least_zero("--rows-per-rank", "28 is the default")
    )]
    rows_per_rank: Option<usize>,
    /// Rows of each dp rank where they differ, as in 7,0,12,9; the cost model goes by the most
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        action = Set,
        value_parser = values::row_count
    )]
    rows: Option<Vec<usize>>,
    #[command(flatten)]
    ranks: RankArgs,
    /// Pipeline stages; the head is on the last one
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one("--pp"))]
    pp: usize,
    /// How global ranks are numbered, slowest first: vLLM's order or Megatron's
    #[arg(long, value_name = "ORDER", default_value = "dp-pp-tp")]
    rank_order: Order,
    /// Ranks that share one head: n (1, or a multiple of tp that divides dp * tp), -1 (tp), or auto: tp where
    /// above 1, else what the cost model finds fastest, else 1, a whole head on every rank [default: auto]
    #[arg(long, value_name = "SIZE", value_parser = values::lmhead_tp_size)]
    lmhead_tp_size: Option<LmheadTpSize>,
}

/// What the cost model goes by.
#[derive(Args)]
#[command(next_help_heading = "Cost model")]
struct CostArgs {
    /// Speeds of the cost model: h100-nvlink, h100-infiniband, or both with a comma. Without --config, auto
    /// goes by the first
    #[arg(long, value_name = "NAME", value_delimiter = ',', action = Set, value_parser = machine)]
    machine: Vec<Machine>,
    /// Speeds as they were measured on a machine, with the steps measured beside them: cpu2-local,
    /// cpu2-callbacks, cpu2-processes, cpu2-mpi, or the file of a profile; several with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', action = Set, value_parser = profile)]
    profile: Vec<Profile>,
    /// Bandwidth of device memory, in place of the machine's
    #[arg(long, value_name = "GB/S", value_parser = values::speed("--memory-gb-per-s"))]
    memory_gb_per_s: Option<f64>,
    /// Matrix throughput in the head's type, in place of the machine's
    #[arg(long, value_name = "N", value_parser = values::speed("--tflops"))]
    tflops: Option<f64>,
    /// Bandwidth that one rank receives at, in place of the machine's
    #[arg(long, value_name = "GB/S", value_parser = values::speed("--link-gb-per-s"))]
    link_gb_per_s: Option<f64>,
    /// Latency of one collective, in place of the machine's
    #[arg(long, value_name = "US", value_parser = values::speed("--latency-us"))]
    latency_us: Option<f64>,
    /// Candidates to compare whole logits with [default: the K or N of --request, 1 with argmax, else 64]
    #[arg(
        long,
        value_name = "K",
        value_parser = values::at_least_zero("--candidates", "ask for at least one and at most all")
    )]
    candidates: Option<usize>,
}

fn machine(name: &str) -> Result<Machine> {
    cost::machine(name.trim())
}

fn profile(name: &str) -> Result<Profile> {
    Profile::find(name.trim())
}

#[derive(Args)]
#[command(allow_hyphen_values = true)]
pub struct PlanArgs {
    /// TOML or JSON settings; options given here win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// none | w8a8 | w8a16: quantise at load, or say how a stored int8 head is multiplied
    #[arg(long, value_name = "HOW", value_parser = values::quantization)]
    quantize: Option<Quantization>,

    /// logits | argmax | topk:K | logprobs[:N] | sample[:N], in a step with exact counts and without
    /// adjustments
    #[arg(long, value_name = "WHAT", default_value = "logits")]
    request: Request,
    /// f32 | bf16 | f16: the type that --request logits rounds to [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = values::float("--logits-dtype", "use one of those"))]
    logits_dtype: Option<DType>,

    /// List the kernels that can multiply a step's rows on this GPU, what each would cost, and which is
    /// chosen
    #[arg(long, value_name = "GPU")]
    kernels: Option<kernels::Device>,
    /// Write a plot of a step's time over group sizes
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON object, with every rank, instead of the tables
    #[arg(long)]
    json: bool,

    // As in `RunArgs`, groups with a heading come last.
    #[command(flatten)]
    head: PlannedHeadArgs,
    #[command(flatten)]
    layout: LayoutArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    costs: CostArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    DpPpTp,
    PpDpTp,
}

/// Limit of ranks, because every rank is listed.
const MAX_RANKS: usize = 65_536;
/// Limit of rows on a rank, which keeps sums far from overflow. No engine has as many.
const MAX_ROWS: usize = 1 << 24;
/// Default of --rows-per-rank.
const ROWS_PER_RANK: usize = 28;
/// Default of --candidates.
const CANDIDATES: usize = 64;

pub fn plan(args: &PlanArgs) -> std::result::Result<bool, Failure> {
    let mut settings = args.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
    if let Some(size) = args.layout.lmhead_tp_size {
        settings.lmhead_tp_size = size;
    }
    let request = args::request(args.request, args.logits_dtype, false)?;
    let sampling = args.sampling.params(&args.request, 0)?;
    let head = args.head.open(&mut settings, args.quantize)?;
    let mut config = head.source.config(&settings)?;
    request.check(config.vocab_size)?;
    config.hidden_dtype = Some(head.source.hidden_dtype(&config));
    if settings.bias == Some(true) && !head.source.has_bias() {
        return Err(Error::Config {
            key: "bias".into(),
            wanted: "a stored bias, as bias = true says".into(),
            got: format!("none in {}", head.name),
            fix: "leave bias out".into(),
        }
        .into());
    }
    let dtype = head.source.loaded_dtype(config.quantization);
    let scaled = !dtype.is_float() || head.source.has_float_scales(config.quantization);
    let row_bytes = weights::row_bytes(config.hidden_size, dtype, scaled, head.source.has_bias());
    let head = PlannedHead { name: head.name, dtype, row_bytes };
    let (layout, rows) = args.layout.layout(&config)?;

    let speeds = args.costs.speeds(&config)?;
    let most = rows.iter().copied().max().unwrap_or(0);
    let candidates = args.costs.candidates(&request, config.vocab_size)?;
    let logits_dtype = if let Request::Logits { dtype } = request { dtype } else { DType::Bf16 };
    let model = |speeds: &CostModel, candidates| CostModel {
        rows_per_rank: most,
        candidates,
        logits_dtype,
        ..*speeds
    };
    let whole = matches!(request, Request::Logits { .. });
    let asked = if whole { None } else { Some(candidates) };
    let collectives = match speeds.is_empty() {
        true => Vec::new(),
        false => {
            let best = if whole { Request::top_k(candidates) } else { request };
            let requests = [Request::logits(logits_dtype), best];
            Collectives::over_sizes(&config, &layout, most, requests, sampling)?
        }
    };
    // `auto` chooses before the group size is known, so it counts the most rounds of any size. Sizes differ
    // only in the number of logprobs chunks.
    let most_collectives = collectives.iter().map(|c| if whole { c.logits } else { c.candidates }).max();
    // A configured cost model keeps its own request: `auto` does not know the one of this plan.
    config.cost_model = speeds.first().map(|(_, speeds)| match config.cost_model {
        Some(_) => CostModel { rows_per_rank: most, ..*speeds },
        None => {
            CostModel { collectives: most_collectives.unwrap_or(speeds.collectives), ..model(speeds, asked) }
        }
    });
    config.validate()?;
    let mut costs: Vec<Costs> = speeds
        .iter()
        .map(|(name, speeds)| {
            let models = (&model(speeds, None), &model(speeds, Some(candidates)));
            Costs::over_sizes(name, head.row_bytes, &config, &layout, models, &collectives)
        })
        .collect();
    for profile in &args.costs.profile {
        let measured = profile.compare()?;
        let own = costs.iter_mut().find(|costs| costs.machine == profile.name);
        own.expect("costs of every profile").measured = Some(measured);
    }
    if args.svg.is_some() && costs.is_empty() {
        let (wanted, fix) = ("speeds to plot by", "add --machine h100-nvlink, or speeds as numbers");
        let key = "--svg".to_string();
        return Err(Error::Config { key, wanted: wanted.into(), got: "none".into(), fix: fix.into() }.into());
    }
    let mut report = PlanReport::new(&head, &config, &layout, &rows, (&request, sampling), costs)?;
    if let Some(device) = args.kernels {
        let (rows, ids) = report.largest_product();
        report.kernels = Some(kernels::Kernels::new(device, &config, head.dtype, rows, ids)?);
    }

    if let Some(path) = &args.svg {
        let inputs = input_files(args.config.as_deref(), args.head.model.as_deref());
        let out = OutFile::check(path, &inputs, "--svg")?;
        out.write_bytes(plot::svg(&report).as_bytes())?;
    }
    if args.json {
        print(&serde_json::to_string_pretty(&report).expect("a report is JSON"))?;
    } else {
        terminal::show(&report.text(args.svg.as_deref()))?;
    }
    Ok(true)
}

/// A head that was named, before it is configured.
struct NamedHead {
    name: String,
    source: HeadSource,
}

/// The head that is planned for.
pub struct PlannedHead {
    name: String,
    /// Type of the weights as they are multiplied.
    dtype: DType,
    /// Bytes of one vocabulary id.
    row_bytes: u64,
}

impl PlannedHeadArgs {
    /// The head. Sizes given as options are put into the settings, which take precedence over a model's own.
    fn open(&self, settings: &mut Settings, quantize: Option<Quantization>) -> Result<NamedHead> {
        let sizes = (self.sizes.vocab_size, self.sizes.hidden_size);
        let given = sizes.0.is_some() || sizes.1.is_some();
        let one_of = |got| {
            let fix = "try --preset deepseek-v3, or --vocab-size and --hidden-size";
            values::one_of("--preset, --model, --vocab-size", got, fix)
        };
        if let (Some(weights), false) = (self.weights, given) {
            let (wanted, fix) =
                ("--vocab-size and --hidden-size beside it", "other heads have a type of their own");
            return Err(refused("--weights", wanted, &weights.to_string(), fix));
        }
        let (name, source) = match (&self.preset, &self.model, given) {
            (Some(preset), None, false) => {
                let name = format!("preset {}", preset.name);
                (name, HeadSource::of_sizes(preset.clone(), settings, quantize)?)
            }
            (None, Some(folder), false) => {
                let source = HeadSource::of_model(folder, settings, quantize)?;
                (source.describe(), source)
            }
            (None, None, true) => {
                (settings.vocab_size, settings.hidden_size) =
                    (sizes.0.or(settings.vocab_size), sizes.1.or(settings.hidden_size));
                let (Some(vocab_size), Some(hidden_size)) = (settings.vocab_size, settings.hidden_size)
                else {
                    return Err(Error::Config {
                        key: "--vocab-size, --hidden-size".into(),
                        wanted: "both".into(),
                        got: "one of them".into(),
                        fix: "give the head's other size".into(),
                    });
                };
                let dtype = self.weights.unwrap_or(DType::Bf16);
                let name = "given sizes";
                let sizes = Preset { name, vocab_size, hidden_size, dtype, model: Default::default() };
                (name.to_string(), HeadSource::of_sizes(sizes, settings, quantize)?)
            }
            (None, None, false) => return Err(one_of("none")),
            _ => return Err(one_of("several")),
        };
        Ok(NamedHead { name, source })
    }
}

impl LayoutArgs {
    /// The layout, and the rows of each dp rank.
    fn layout(&self, config: &HeadConfig) -> Result<(ParallelLayout, Vec<usize>)> {
        let listed = self.rows.clone();
        let RankArgs { dp, tp } = self.ranks;
        let (dp, pp) = (values::dp_ranks(dp, listed.as_deref())?, self.pp);
        let order = match self.rank_order {
            Order::DpPpTp => RankOrder::DpPpTp,
            Order::PpDpTp => RankOrder::PpDpTp,
        };
        let layout = ParallelLayout { dp, tp, pp, order };
        if layout.world_size().ok().is_none_or(|ranks| ranks > MAX_RANKS) {
            let got = format!("dp {dp} x tp {tp} x pp {pp}");
            return Err(Error::Config {
                key: "--dp, --tp, --pp".into(),
                wanted: format!("at most {MAX_RANKS} ranks"),
                got,
                fix: "use smaller sizes".into(),
            });
        }
        let rows = match (listed, self.rows_per_rank) {
            (Some(_), Some(each)) => {
                let fix = "leave one of them out";
                return Err(refused("--rows-per-rank", "it or --rows", &each.to_string(), fix));
            }
            (Some(rows), None) => rows,
            (None, Some(each)) => vec![each; dp],
            (None, None) => vec![config.cost_model.map_or(ROWS_PER_RANK, |model| model.rows_per_rank); dp],
        };
        if let Some(too_many) = rows.iter().find(|rows| **rows > MAX_ROWS) {
            let wanted = format!("at most {MAX_ROWS} rows on a rank");
            return Err(refused("rows", &wanted, &too_many.to_string(), "split the step"));
        }
        Ok((layout, rows))
    }
}

impl CostArgs {
    /// The machines whose speeds are compared, the configured one first.
    fn speeds(&self, config: &HeadConfig) -> Result<Vec<(String, CostModel)>> {
        let (memory, tflops) = (self.memory_gb_per_s, self.tflops);
        let (link, latency) = (self.link_gb_per_s, self.latency_us);
        let mut machines: Vec<(String, CostModel)> = Vec::new();
        machines.extend(config.cost_model.map(|model| ("cost_model".to_string(), model)));
        for machine in &self.machine {
            let model = machine.model(config.quantization, 0, None, DType::Bf16);
            machines.push((machine.name.to_string(), model));
        }
        for profile in &self.profile {
            machines.push((profile.name.clone(), profile.model(config.quantization)?));
        }
        if machines.is_empty() {
            let given = [memory, tflops, link, latency];
            if given.iter().all(Option::is_none) {
                return Ok(machines);
            }
            let [Some(memory_gb_per_s), Some(tflops), Some(link_gb_per_s), Some(latency_us)] = given else {
                return Err(Error::Config {
                    key: "--memory-gb-per-s, --tflops, --link-gb-per-s, --latency-us".into(),
                    wanted: "all of them where no machine is named".into(),
                    got: format!("{} of them", given.iter().flatten().count()),
                    fix: "give the others, or add --machine h100-nvlink".into(),
                });
            };
            let (rows_per_rank, collectives, candidates, logits_dtype) = (0, 2, None, DType::Bf16);
            let model = CostModel {
                rows_per_rank,
                memory_gb_per_s,
                tflops,
                link_gb_per_s,
                latency_us,
                collectives,
                candidates,
                logits_dtype,
            };
            machines.push(("given speeds".into(), model));
        }
        for (_, model) in &mut machines {
            model.memory_gb_per_s = memory.unwrap_or(model.memory_gb_per_s);
            model.tflops = tflops.unwrap_or(model.tflops);
            model.link_gb_per_s = link.unwrap_or(model.link_gb_per_s);
            model.latency_us = latency.unwrap_or(model.latency_us);
        }
        Ok(machines)
    }

    fn candidates(&self, request: &Request, vocab_size: usize) -> Result<usize> {
        let most = format!("1 to the vocabulary size, {vocab_size}");
        match self.candidates {
            Some(k) if (1..=vocab_size).contains(&k) => Ok(k),
            Some(k) => {
                let fix = "ask for at least one and at most all";
                Err(refused("--candidates", &most, &k.to_string(), fix))
            }
            None => {
                // A sampling step's candidates depend on its parameters.
                let own = request.candidates().filter(|_| !matches!(request, Request::Sample { .. }));
                Ok(own.unwrap_or(CANDIDATES.min(vocab_size)))
            }
        }
    }
}

/// The configuration with `auto` as the group size.
fn auto_of(config: &HeadConfig) -> HeadConfig {
    HeadConfig { lmhead_tp_size: LmheadTpSize::Auto, ..config.clone() }
}
