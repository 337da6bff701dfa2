//! Where the head and the rows come from, and which rows each rank brings.

use crate::args::{HeadArgs, RunArgs};
use crate::row_data::RowData;
use crate::values;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::layout::even_part;
use lmhead::result::Request;
use lmhead::rows::{self, HiddenRows};
use lmhead::weights::synthetic::{self, Preset};
use lmhead::weights::{Checkpoint, HeadShard, LoadOptions, SafetensorsFile};
use std::ops::Range;
use std::path::Path;

/// Output rows of a synthetic run without --rows.
const SYNTHETIC_ROWS: usize = 28;

/// The head that was named: a checkpoint or a preset.
pub struct HeadSource {
    kind: HeadOrigin,
    seed: u64,
    quantization: Option<Quantization>,
    bias: Option<bool>,
    /// Stored weights are copied into memory.
    copy: bool,
    /// The type that 16-bit weights are widened to.
    head_dtype: Option<DType>,
}

enum HeadOrigin {
    Stored(Box<Checkpoint>),
    Synthetic(Box<Preset>),
}

impl HeadSource {
    /// Opens what --model, --head or --preset names; exactly one of them must be given.
    pub fn open(args: &RunArgs, settings: &Settings) -> Result<Self> {
        let one_of = |got| {
            let fix = "try --preset tiny, or --model with a Hugging Face folder";
            values::one_of("--model, --head, --preset", got, fix)
        };
        let HeadArgs { model, head, tensor, preset } = &args.head;
        if tensor.is_some() && preset.is_some() {
            return Err(Error::Config {
                key: "--tensor".into(),
                wanted: "--model FOLDER or --head FILE beside it".into(),
                got: "--preset".into(),
                fix: "a preset has no tensors: leave it out".into(),
            });
        }
        let kind = match (model, head, preset) {
            (Some(folder), None, None) => HeadOrigin::Stored(Box::new(match tensor {
                Some(tensor) => Checkpoint::open_tensor(folder, tensor, settings)?,
                None => Checkpoint::open_with(folder, settings)?,
            })),
            (None, Some(file), None) => {
                let tensor = tensor.as_deref().unwrap_or("lm_head.weight");
                HeadOrigin::Stored(Box::new(Checkpoint::from_file(file, tensor)?))
            }
            (None, None, Some(preset)) => HeadOrigin::Synthetic(Box::new(preset.clone())),
            (None, None, None) => return Err(one_of("none")),
            _ => return Err(one_of("several")),
        };
        if args.out.is_some() && args.rows.hidden.is_none() && preset.is_none() {
            return Err(Error::Config {
                key: "--out".into(),
                wanted: "--hidden FILE beside it".into(),
                got: "none".into(),
                fix: "an answer to synthetic rows is of use to nobody: pass the hidden states".into(),
            });
        }
        if args.copy && matches!(kind, HeadOrigin::Synthetic(_)) {
            return Err(Error::Config {
                key: "--copy".into(),
                wanted: "--model or --head beside it".into(),
                got: "--preset".into(),
                fix: "leave it out: weights of a preset are made in memory".into(),
            });
        }
        let source = Self::new(kind, model.is_some(), settings, args.quantize, args.seed)?;
        Ok(HeadSource { copy: args.copy, ..source })
    }

    /// The head of a model folder.
    pub fn of_model(folder: &Path, settings: &Settings, quantization: Option<Quantization>) -> Result<Self> {
        let kind = HeadOrigin::Stored(Box::new(Checkpoint::open_with(folder, settings)?));
        Self::new(kind, true, settings, quantization, 0)
    }

    /// A head of these sizes, without stored weights.
    pub fn of_sizes(sizes: Preset, settings: &Settings, quantization: Option<Quantization>) -> Result<Self> {
        Self::new(HeadOrigin::Synthetic(Box::new(sizes)), false, settings, quantization, 0)
    }

    fn new(
        kind: HeadOrigin,
        of_model: bool,
        settings: &Settings,
        quantization: Option<Quantization>,
        seed: u64,
    ) -> Result<Self> {
        // Settings without a meaning for this kind of head are refused, not ignored.
        let tied = settings.tie_word_embeddings.is_some() && !of_model;
        let biased = settings.bias == Some(true) && matches!(kind, HeadOrigin::Synthetic(_));
        let typed = settings.head_dtype.is_some() && matches!(kind, HeadOrigin::Synthetic(_));
        for (key, given, why) in [
            ("tie_word_embeddings", tied, "only a --model has embeddings"),
            ("bias", biased, "presets have none"),
            ("head_dtype", typed, "a preset's weights are made in its own type"),
        ] {
            if given {
                return Err(Error::Config {
                    key: key.into(),
                    wanted: format!("nothing ({why})"),
                    got: "a value".into(),
                    fix: "leave it out of the configuration".into(),
                });
            }
        }
        let quantization = quantization.or(settings.quantization);
        let head_dtype = settings.head_dtype;
        if let HeadOrigin::Stored(checkpoint) = &kind {
            checkpoint.weights_dtype(head_dtype, checkpoint.quantization(quantization)?)?;
        }
        Ok(HeadSource { kind, seed, quantization, bias: settings.bias, copy: false, head_dtype })
    }

    pub fn is_synthetic(&self) -> bool {
        matches!(self.kind, HeadOrigin::Synthetic(_))
    }

    /// Type of the weights before any quantisation, as they are loaded.
    pub fn dtype(&self) -> DType {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => self.head_dtype.unwrap_or(checkpoint.dtype()),
            HeadOrigin::Synthetic(preset) => preset.dtype,
        }
    }

    /// Type of the weights as they are multiplied.
    pub fn loaded_dtype(&self, quantization: Quantization) -> DType {
        match self.dtype() {
            own if own.is_float() && quantization != Quantization::None => DType::I8,
            own => own,
        }
    }

    /// Whether the weights are floats with scales, which devices do not take.
    pub fn has_float_scales(&self, quantization: Quantization) -> bool {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.has_float_scales(quantization),
            HeadOrigin::Synthetic(_) => false,
        }
    }

    /// Whether a bias is added.
    pub fn has_bias(&self) -> bool {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.has_bias() && self.bias != Some(false),
            HeadOrigin::Synthetic(_) => false,
        }
    }

    /// The type of hidden rows that are not given: as configured, else the head's own, bf16 for one that is
    /// stored in 8 bits.
    pub fn hidden_dtype(&self, config: &HeadConfig) -> DType {
        config.hidden_dtype.unwrap_or(match self.dtype() {
            own if own.is_float() => own,
            _ => DType::Bf16,
        })
    }

    /// How a checkpoint's shards are loaded.
    fn options(&self) -> LoadOptions<'static> {
        LoadOptions {
            quantization: self.quantization,
            bias: self.bias,
            copy: self.copy,
            head_dtype: self.head_dtype,
            progress: None,
            // The process's own pool: `threads::limit`.
            threads: None,
        }
    }

    /// The head's description in reports.
    pub fn describe(&self) -> String {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => {
                let (path, rows) = (checkpoint.path().display(), checkpoint.rows());
                let storage = checkpoint.storage(&self.options());
                let storage = storage.map(|words| format!("; {words}")).unwrap_or_default();
                format!("{path}: {} ({rows} rows stored{storage})", checkpoint.tensor_name())
            }
            HeadOrigin::Synthetic(preset) => {
                format!("preset {} (synthetic, seed {})", preset.name, self.seed)
            }
        }
    }

    pub fn warnings(&self) -> Vec<String> {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.warnings(),
            HeadOrigin::Synthetic(_) => Vec::new(),
        }
    }

    /// Checks that nobody has written to the head's files since they were opened.
    pub fn check_unchanged(&self) -> Result<()> {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.check_unchanged(),
            HeadOrigin::Synthetic(_) => Ok(()),
        }
    }

    /// The target model's id of each id, where the head is a draft model's.
    pub fn target_ids(&self) -> Option<&[u32]> {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.target_ids(),
            HeadOrigin::Synthetic(_) => None,
        }
    }

    /// How the loaded weights will be multiplied.
    pub fn quantization(&self) -> Result<Quantization> {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.quantization(self.quantization),
            HeadOrigin::Synthetic(_) => Ok(self.quantization.unwrap_or(Quantization::None)),
        }
    }

    /// The configuration: `settings` first, then the model's own values. A stored tensor must fit both.
    pub fn config(&self, settings: &Settings) -> Result<HeadConfig> {
        let model = match &self.kind {
            HeadOrigin::Stored(checkpoint) => checkpoint.model_config(),
            HeadOrigin::Synthetic(preset) => {
                for (key, own, wanted) in [
                    ("vocab_size", settings.vocab_size, preset.vocab_size),
                    ("hidden_size", settings.hidden_size, preset.hidden_size),
                ] {
                    if let Some(own) = own.filter(|&own| own != wanted) {
                        return Err(Error::Config {
                            key: key.into(),
                            wanted: format!("{wanted}, the preset's"),
                            got: own.to_string(),
                            fix: "leave it out with --preset".into(),
                        });
                    }
                }
                preset.model.clone()
            }
        };
        let config = HeadConfig::resolve(settings, &model, self.quantization()?)?;
        if let HeadOrigin::Stored(checkpoint) = &self.kind {
            let refuse = |what: &str, wanted: String, got: usize| Error::Shape {
                what: format!("{what} of {}", self.describe()),
                wanted,
                got: got.to_string(),
                fix: "correct the configuration, or name the head that it belongs to".into(),
            };
            if checkpoint.hidden_size() != config.hidden_size {
                let wanted = format!("{}, as configured", config.hidden_size);
                return Err(refuse("hidden_size", wanted, checkpoint.hidden_size()));
            }
            if checkpoint.rows() < config.vocab_size {
                let wanted = format!("at least {}, as configured", config.vocab_size);
                return Err(refuse("vocabulary rows", wanted, checkpoint.rows()));
            }
        }
        Ok(config)
    }

    /// Loads or makes the shard of `vocab`.
    pub fn shard(
        &self,
        vocab: Range<usize>,
        config: &HeadConfig,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<HeadShard> {
        match &self.kind {
            HeadOrigin::Stored(checkpoint) => {
                let options = LoadOptions { progress: Some(progress), ..self.options() };
                checkpoint.shard(vocab, config.vocab_size, &options)
            }
            HeadOrigin::Synthetic(preset) => {
                synthetic::shard(&preset.spec(), self.seed, vocab, config.quantization, Some(progress))
            }
        }
    }
}

/// The hidden rows of all ranks, and the output rows wanted of them.
pub struct RunRows {
    pub bytes: Vec<u8>,
    pub dtype: DType,
    /// Where they came from, for the report.
    pub origin: String,
    /// Hidden rows of each dp rank.
    pub counts: Vec<usize>,
    /// `logits_indices`, as numbers over all hidden rows.
    pub indices: Option<Vec<usize>>,
    pub data: RowData,
}

/// One dp rank's part of [`RunRows`].
pub struct RankRows {
    /// Its hidden rows, as numbers over all hidden rows.
    pub hidden: Range<usize>,
    /// Its output rows, as numbers over its own hidden rows; `None`: all, in order.
    pub selection: Option<Vec<usize>>,
    /// Where its output rows stand in the answer.
    pub places: Vec<usize>,
}

impl RunRows {
    /// Reads --hidden or makes synthetic rows, and divides them among the dp ranks.
    pub fn read(args: &RunArgs, source: &HeadSource, config: &HeadConfig, request: &Request) -> Result<Self> {
        let (given, dp) = (args.rows(), args.dp()?);
        let even_counts = |total| (0..dp).map(|rank| even_part(total, dp, rank).len()).collect();
        match &args.rows.hidden {
            None => {
                let counts = given.map_or_else(|| even_counts(SYNTHETIC_ROWS), <[usize]>::to_vec);
                let dtype = source.hidden_dtype(config);
                let seed = args.seed;
                let bytes = synthetic_rows(seed, total(&counts)?, config.hidden_size, dtype)?;
                let data = RowData::synthetic(seed, total(&counts)?, config.vocab_size, request)
                    .sampled(args.sampling()?, total(&counts)?);
                let targets = match request {
                    Request::Logprobs { .. } => "; targets: synthetic",
                    _ => "",
                };
                Ok(RunRows {
                    bytes,
                    dtype,
                    origin: format!("synthetic, seed {seed}{targets}"),
                    counts,
                    indices: None,
                    data,
                })
            }
            Some(path) => {
                let file = SafetensorsFile::open(path)?;
                let hidden = file.float_matrix("hidden_states")?;
                check_hidden(path, &hidden.dtype, hidden.columns, config)?;
                let counts = given.map_or_else(|| even_counts(hidden.rows), <[usize]>::to_vec);
                if total(&counts)? != hidden.rows {
                    return Err(Error::Shape {
                        what: "--rows".into(),
                        wanted: format!("{} in all, the hidden rows of {}", hidden.rows, path.display()),
                        got: format!("{} in all", total(&counts)?),
                        fix: "make the counts add up, or leave out --rows".into(),
                    });
                }
                let indices = match file.contains("logits_indices") {
                    true => Some(rows::row_numbers(
                        &format!("{}: logits_indices", path.display()),
                        &file.indices("logits_indices")?,
                        hidden.rows,
                    )?),
                    false => None,
                };
                let outputs = indices.as_ref().map_or(hidden.rows, Vec::len);
                let (sampling, given) = (args.sampling()?, args.sampling.given());
                let data = RowData::read(&file, outputs, config.vocab_size, request, sampling, &given)?;
                let origin = path.display().to_string();
                let bytes = hidden.bytes.to_vec();
                file.check_unchanged()?;
                Ok(RunRows { bytes, dtype: hidden.dtype, origin, counts, indices, data })
            }
        }
    }

    /// Output rows of all ranks together.
    pub fn outputs(&self) -> usize {
        self.indices.as_ref().map_or(self.counts.iter().sum(), Vec::len)
    }

    /// The output rows of all ranks.
    pub fn hidden(&self, hidden_size: usize) -> Result<HiddenRows<'_>> {
        let all = HiddenRows::new(&self.bytes, self.dtype, self.counts.iter().sum(), hidden_size)?;
        self.indices.as_ref().map_or(Ok(all), |indices| all.select(indices))
    }

    /// Each dp rank's part.
    pub fn by_rank(&self) -> Vec<RankRows> {
        let mut first = 0;
        let mut parts: Vec<RankRows> = Vec::new();
        for &count in &self.counts {
            let places = if self.indices.is_none() { (first..first + count).collect() } else { Vec::new() };
            let selection = self.indices.as_ref().map(|_| Vec::new());
            parts.push(RankRows { hidden: first..first + count, selection, places });
            first += count;
        }
        for (place, &row) in self.indices.iter().flatten().enumerate() {
            // A rank without rows begins where its successor begins, so the search goes by ends: the owner is
            // the first rank that ends beyond the row.
            let owner = parts.partition_point(|part| part.hidden.end <= row);
            let part = &mut parts[owner];
            part.places.push(place);
            if let Some(selection) = &mut part.selection {
                selection.push(row - part.hidden.start);
            }
        }
        parts
    }
}

fn total(counts: &[usize]) -> Result<usize> {
    counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)).ok_or_else(|| Error::Shape {
        what: "--rows".into(),
        wanted: "counts whose sum fits 64 bits".into(),
        got: format!("{counts:?}"),
        fix: "use smaller counts".into(),
    })
}

/// Hidden states must be of the head's hidden size, and of the type that is configured.
fn check_hidden(path: &Path, dtype: &DType, columns: usize, config: &HeadConfig) -> Result<()> {
    let refuse = |wanted: String, got: String, fix: &str| Error::Tensor {
        path: path.into(),
        tensor: "hidden_states".into(),
        wanted,
        got,
        fix: fix.into(),
    };
    if columns != config.hidden_size {
        let wanted = format!("hidden size {}, the head's", config.hidden_size);
        return Err(refuse(
            wanted,
            format!("hidden size {columns}"),
            "pass hidden states of this head's model",
        ));
    }
    if let Some(wanted) = config.hidden_dtype.filter(|wanted| wanted != dtype) {
        let fix = "correct hidden_dtype in the configuration, or convert the hidden states";
        return Err(refuse(format!("{wanted}, the configuration's hidden_dtype"), dtype.to_string(), fix));
    }
    Ok(())
}

fn synthetic_rows(seed: u64, rows: usize, hidden: usize, dtype: DType) -> Result<Vec<u8>> {
    let wanted = rows as u128 * hidden as u128 * dtype.size() as u128;
    let mut bytes = Vec::new();
    if usize::try_from(wanted).ok().is_none_or(|n| bytes.try_reserve_exact(n).is_err()) {
        return Err(Error::Shape {
            what: "--rows".into(),
            wanted: "hidden rows that fit this machine's memory".into(),
            got: format!("{rows} rows, {wanted} bytes"),
            fix: "use smaller counts".into(),
        });
    }
    for row in 0..rows {
        bytes.extend_from_slice(&synthetic::hidden_row(seed, row as u64, hidden, dtype));
    }
    Ok(bytes)
}

/// A progress bar of bytes, which [`advance`] shows.
pub fn progress_bar(what: &str) -> ProgressBar {
    let bytes = "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";
    progress_bar_like(&format!("{{msg}} {{wide_bar}} {bytes} {{eta}}"), what)
}

/// Shows `done` of `total` bytes on standard error, where that is a terminal and there is something to do.
pub fn advance(bar: &ProgressBar, done: u64, total: u64) {
    if total > 0 && bar.length() != Some(total) {
        bar.set_length(total);
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    bar.set_position(done);
}

/// A progress bar with an indicatif template of its own. It is hidden: without a length it would look full.
pub fn progress_bar_like(template: &str, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_string());
    bar
}
