//! `lmhead quantize`: the int8 form of a float head as a file of its own, and how far its answers are from
//! the original's.

use crate::input::{advance, progress_bar};
use crate::output::{OutFile, input_files};
use crate::report::{bytes, command};
use crate::values::{self, refused};
use crate::{Failure, print, tell, terminal, threads};
use clap::Args;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::doctor::machine_name;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::fidelity::{self, Fidelity};
use lmhead::quantize::MAX_INT8_HIDDEN;
use lmhead::rows::HiddenRows;
use lmhead::weights::{Checkpoint, synthetic};
use serde::Serialize;
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
#[command(allow_hyphen_values = true)]
pub struct QuantizeArgs {
    /// Head: a Hugging Face model folder (config.json and safetensors); the new file's tensor is
    /// lm_head.weight
    #[arg(long, value_name = "DIR", help_heading = "Head (one of)")]
    model: Option<PathBuf>,
    /// Head: one safetensors file; the new file's tensor has the old one's name
    #[arg(long, value_name = "FILE", help_heading = "Head (one of)")]
    head: Option<PathBuf>,
    /// With --head: the tensor's name [default: lm_head.weight]
    #[arg(long, value_name = "NAME", help_heading = "Head (one of)")]
    tensor: Option<String>,
    /// Ids of the vocabulary; rows of the tensor behind it are padding and left out [default: config.json's,
    /// else all rows]
    #[arg(long, value_name = "N", value_parser = values::at_least_one("--vocab-size"))]
    vocab_size: Option<usize>,
    /// The file to write: NAME i8 [vocab, hidden], NAME_scale f32 [vocab], the bias where there is one
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Synthetic hidden rows on which the int8 head is compared with the original; 0: none
    #[arg(long, value_name = "N", default_value = "16", value_parser = compared_rows)]
    rows: usize,
    /// Seed of those rows
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::seed)]
    seed: u64,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = values::threads)]
    threads: Option<usize>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// Default name of a head's tensor.
const HEAD: &str = "lm_head.weight";
/// Most rows of a comparison: with more, their logits would take memory comparable to the weights.
const MAX_ROWS: usize = 1024;
#[derive(Serialize)]
struct QuantizeReport {
    /// Version of lmhead.
    version: &'static str,
    command: String,
    machine: String,
    head: String,
    /// Rows of the stored tensor; those from `vocab_size` on are left out.
    rows_stored: usize,
    vocab_size: usize,
    hidden_size: usize,
    /// Type of the original weights.
    dtype: DType,
    out: String,
    /// The tensor's name in the new file.
    tensor: String,
    /// Written into the new file's metadata, where `lmhead run` finds them.
    model_type: Option<String>,
    logit_scale: f32,
    final_logit_softcapping: Option<f32>,
    bytes_in: u64,
    bytes_out: u64,
    seconds: f64,
    threads: usize,
    /// Upper bound of the memory that writing allocates.
    working_bytes: u64,
    weights: Weights,
    rows: usize,
    seed: u64,
    /// `None` without rows; w8a8 also where the hidden size exceeds what int32 sums hold. Its divergences are
    /// null where a logit is not finite.
    w8a16: Option<Fidelity>,
    w8a8: Option<Fidelity>,
    warnings: Vec<String>,
}

/// `‖W − Ŵ‖ / ‖W‖`.
#[derive(Serialize)]
struct Weights {
    relative_error: f64,
    worst_row: usize,
    worst_row_relative_error: f64,
}

pub fn quantize(args: &QuantizeArgs) -> std::result::Result<bool, Failure> {
    let (rows, seed, threads) = (args.rows, args.seed, args.threads);
    threads::limit(threads)?;
    let backend = CpuBackend::new(threads)?;
    let threads = backend.threads();
    let (checkpoint, name) = args.open()?;
    let settings = Settings { vocab_size: args.vocab_size, ..Settings::default() };
    let model = checkpoint.model_config();
    let config = HeadConfig::resolve(&settings, &model, Quantization::None)?;
    // An index may name files in subfolders.
    let inputs = input_files([checkpoint.path()], args.model.as_deref());
    let out = OutFile::check(&args.out, &inputs, "--out")?;
    let warnings = warnings(&checkpoint, config.vocab_size);
    for warning in &warnings {
        tell(format_args!("warning: {warning}"));
    }

    let temporary = out.temporary()?;
    let began = Instant::now();
    let bar = progress_bar("quantising");
    let progress = |done, total| advance(&bar, done, total);
    let error = checkpoint.write_int8(&name, &config, temporary.as_file(), &args.out, Some(&progress))?;
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();

    // Compare the file as written.
    let written = Checkpoint::from_file(temporary.path(), &name)?;
    let (dtype, hidden_size) = (checkpoint.dtype(), config.hidden_size);
    let bytes: Vec<u8> =
        (0..rows as u64).flat_map(|row| synthetic::hidden_row(seed, row, hidden_size, dtype)).collect();
    let ways = match (rows, hidden_size) {
        (0, _) => &[][..],
        (_, ..=MAX_INT8_HIDDEN) => &[Quantization::W8a16, Quantization::W8a8],
        _ => &[Quantization::W8a16],
    };
    let bar = progress_bar("comparing");
    let compared = fidelity::compare(
        &backend,
        &config,
        &checkpoint,
        (&written, ways),
        HiddenRows::new(&bytes, dtype, rows, hidden_size)?,
        &|done, total| advance(&bar, done, total),
    )?;
    bar.finish_and_clear();
    let mut compared = compared.into_iter();
    let (w8a16, w8a8) = (compared.next(), compared.next());
    checkpoint.check_unchanged()?;
    let bytes_out = temporary.as_file().metadata().map_or(0, |metadata| metadata.len());
    out.keep_synced(temporary)?;

    let report = QuantizeReport {
        version: env!("CARGO_PKG_VERSION"),
        command: command(),
        machine: machine_name(),
        head: format!("{}: {}", checkpoint.path().display(), checkpoint.tensor_name()),
        rows_stored: checkpoint.rows(),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        dtype: checkpoint.dtype(),
        out: args.out.display().to_string(),
        tensor: name,
        model_type: model.model_type,
        logit_scale: config.logit_scale,
        final_logit_softcapping: config.final_logit_softcapping,
        bytes_in: (config.vocab_size * config.hidden_size * checkpoint.dtype().size()) as u64,
        bytes_out,
        seconds,
        threads,
        working_bytes: checkpoint.int8_working_bytes(config.vocab_size, threads),
        weights: Weights {
            relative_error: error.relative,
            worst_row: error.worst_row,
            worst_row_relative_error: error.worst_row_relative,
        },
        rows,
        seed,
        w8a16,
        w8a8,
        warnings,
    };
    if args.json {
        print(&serde_json::to_string_pretty(&report).expect("a report is JSON"))?;
    } else {
        terminal::show(&report.text())?;
    }
    Ok(true)
}

fn compared_rows(text: &str) -> Result<usize> {
    let rows = text.parse().ok().filter(|rows| *rows <= MAX_ROWS);
    let wanted = format!("a whole number from 0 to {MAX_ROWS}");
    rows.ok_or_else(|| refused("--rows", &wanted, text, "16 is the default"))
}

impl QuantizeArgs {
    /// The head, and its tensor's name in the new file.
    fn open(&self) -> Result<(Checkpoint, String)> {
        let one_of =
            |got| values::one_of("--model, --head", got, "pass a Hugging Face folder or a safetensors file");
        match (&self.model, &self.head, &self.tensor) {
            (Some(_), None, Some(tensor)) => {
                let fix = "a model folder's head is found by itself";
                Err(refused("--tensor", "--head FILE beside it", tensor, fix))
            }
            // The new file gets the default name, whatever the model called the tensor, so that `lmhead run
            // --head` finds it without --tensor.
            (Some(folder), None, None) => Ok((Checkpoint::open(folder)?, HEAD.into())),
            (None, Some(file), tensor) => {
                let name = tensor.as_deref().unwrap_or(HEAD);
                let checkpoint = Checkpoint::from_file(file, name)?;
                let name = checkpoint.tensor_name().to_string();
                Ok((checkpoint, name))
            }
            (None, None, _) => Err(one_of("none")),
            (Some(_), Some(_), _) => Err(one_of("both")),
        }
    }
}

/// Notes on the head beside what the file says.
fn warnings(checkpoint: &Checkpoint, vocab_size: usize) -> Vec<String> {
    let mut warnings = checkpoint.warnings();
    if vocab_size < checkpoint.rows() {
        warnings.push(format!(
            "{} rows of {} behind the vocabulary of {vocab_size} are padding and left out",
            checkpoint.rows() - vocab_size,
            checkpoint.tensor_name()
        ));
    }
    warnings
}

/// The word quoted for a POSIX shell.
fn shell_quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "-_./=+,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''")).into()
}

impl QuantizeReport {
    fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "{}: {} x {} {}, {}",
                self.head,
                self.vocab_size,
                self.hidden_size,
                self.dtype,
                bytes(self.bytes_in)
            ),
            format!(
                "written: {}: {} i8 and {}_scale f32, {} in {:.1} s on {} threads (with at most {} of memory beside the mapped file)",
                self.out,
                self.tensor,
                self.tensor,
                bytes(self.bytes_out),
                self.seconds,
                self.threads,
                bytes(self.working_bytes)
            ),
            format!(
                "weights: off by {:.2e} of their norm; the worst row, {}, by {:.2e} of its own",
                self.weights.relative_error, self.weights.worst_row, self.weights.worst_row_relative_error
            ),
        ];
        if self.rows > 0 {
            let mut table = terminal::table(["", "KL divergence, mean", "largest", "same argmax"], &[0]);
            for (name, fidelity) in [("w8a16", &self.w8a16), ("w8a8", &self.w8a8)] {
                if let Some(fidelity) = fidelity {
                    table.add_row([
                        name.to_string(),
                        format!("{:.2e} nats", fidelity.kl_mean),
                        format!("{:.2e}", fidelity.kl_largest),
                        format!("{} of {}", fidelity.same_argmax, self.rows),
                    ]);
                }
            }
            lines.push(format!("against the original on {} Gaussian rows, seed {}:", self.rows, self.seed));
            lines.push(table.to_string());
        }
        let mut kept = Vec::new();
        if self.logit_scale != 1.0 {
            kept.push(format!("logit_scale {}", self.logit_scale));
        }
        kept.extend(self.final_logit_softcapping.map(|cap| format!("final_logit_softcapping {cap}")));
        if !kept.is_empty() {
            lines.push(format!("kept in the file, and used by `lmhead run`: {}", kept.join(", ")));
        }
        let tensor = match self.tensor.as_str() {
            HEAD => String::new(),
            other => format!(" --tensor {}", shell_quoted(other)),
        };
        let how = if self.hidden_size <= MAX_INT8_HIDDEN { "w8a8 (or w8a16)" } else { "w8a16" };
        lines.push(format!("run it: lmhead run --head {}{tensor} --quantize {how}", shell_quoted(&self.out)));
        lines.join("\n")
    }
}
