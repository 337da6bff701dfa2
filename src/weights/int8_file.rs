//! Writes the int8 form of a float head to a `.safetensors` file, row by row: neither head is ever whole in
//! memory.
//!
//! The file holds, one after the other, `NAME_scale` f32 `[vocab]`, the bias (if any) as it was stored, and
//! `NAME` i8 `[vocab, hidden]`. [`Checkpoint::from_file`] reads it. The values are quantised by the rule of
//! [`crate::quantize`] and have the same bits as those of a head that is quantised at load. `__metadata__`
//! keeps what `config.json` says about the logits, so that the file alone gives the model's logits:
//!
//! | key | value |
//! |---|---|
//! | `lmhead.logit_scale` | what multiplies the logits, where that is not 1 |
//! | `lmhead.final_logit_softcapping` | the cap of the logits, where there is one |
//! | `lmhead.model_type` | the model's `model_type`, where it is known |
//! | `lmhead.quantize` | how the file was made |

use super::checkpoint::Checkpoint;
use super::load::{Meter, Progress, StoredRows, rows_per_task};
use super::safetensors_file::SafetensorsFile;
use super::stored::Format;
use crate::config::{HeadConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::process;
use crate::quantize::quantize_row;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The metadata key under which the file says how it was made; the source's own metadata is kept beside it.
const MADE: &str = "lmhead.quantize";
const SCALE: &str = "lmhead.logit_scale";
const SOFTCAP: &str = "lmhead.final_logit_softcapping";
const MODEL_TYPE: &str = "lmhead.model_type";

/// The relative error of quantising the weights: `‖W − Ŵ‖ / ‖W‖`, Euclidean norms in f64; 0 where W is all
/// zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightError {
    /// The error of the whole head (Frobenius norm).
    pub relative: f64,
    /// The vocabulary row with the largest error (of equals the lowest row), and that error.
    pub worst_row: usize,
    pub worst_row_relative: f64,
}

/// `‖w − q s‖²` and `‖w‖²` of a row.
type Squares = [f64; 2];

impl Checkpoint {
    /// Writes the first `config.vocab_size` rows of a float head as int8 under the name `name`, with their
    /// scales, the bias, and `config`'s scale and softcap of the logits. `out` is an empty file, `path` its
    /// name in messages. Runs on the caller's rayon pool; the bytes do not depend on its size. Needs the
    /// memory of [`Checkpoint::int8_working_bytes`]; the source is read through its mapping.
    ///
    /// # Errors
    /// `Tensor` where the head is quantised already or has fewer rows or another hidden size than `config`,
    /// and for the first weight or bias that is not finite, with its row; `File` where `out` cannot be
    /// written. After an error, `out` is incomplete.
    pub fn write_int8(
        &self,
        name: &str,
        config: &HeadConfig,
        out: impl Write + Seek + Send,
        path: &Path,
        progress: Option<Progress<'_>>,
    ) -> Result<WeightError> {
        let Format::Float(dtype) = self.head.format else {
            let weight = &self.head.weight;
            let got = self.head.format.name().unwrap_or_else(|| weight.info.to_string());
            let fix = "it is quantised already: load it as it is";
            return Err(weight.error("f32, f16 or bf16 weights", got, fix));
        };
        let vocab_size = config.vocab_size;
        self.check_vocab(vocab_size)?;
        self.check_hidden(config.hidden_size)?;
        // Checks the bias as a loader would.
        self.bias(0..vocab_size, vocab_size, None)?;
        let layout = Layout::of(self, name, config);
        let failed = |e: io::Error| {
            Error::file(
                path,
                format!("cannot be written: {e}"),
                "make room in that folder, or name another file",
            )
        };
        let out = Mutex::new(out);
        let write = |at: usize, bytes: &[u8]| {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            out.seek(SeekFrom::Start(at as u64))?;
            out.write_all(bytes)
        };
        write(0, &layout.header).map_err(failed)?;
        if let (Some(bias), Some(place)) = (&self.head.bias, &layout.bias) {
            write(place.start, &bias.bytes()[..place.len()]).map_err(failed)?;
        }

        let (hidden, row_bytes) = (self.head.hidden, self.head.hidden * dtype.size());
        let bytes = &self.head.weight.bytes()[..vocab_size * row_bytes];
        let meter = Meter::new(bytes.len() as u64, progress);
        let task = rows_per_task(row_bytes);
        let (mut scales, mut squares) = (vec![0.0f32; vocab_size], vec![Squares::default(); vocab_size]);
        let bad = AtomicUsize::new(usize::MAX);
        let tasks = scales
            .par_chunks_mut(task)
            .zip(squares.par_chunks_mut(task))
            .zip(bytes.par_chunks(task * row_bytes));
        let parallel = tasks.enumerate();
        let written = process::on_live_threads(|| {
            parallel.try_for_each_init(
                || (vec![0.0f32; hidden], Vec::with_capacity(task * hidden)),
                |(wide, values), (i, ((scales, squares), bytes))| {
                    // Rows before a bad one are still checked, since the error names the first bad row.
                    if bad.load(Ordering::Relaxed) < i * task {
                        return Ok(());
                    }
                    values.resize(scales.len() * hidden, 0i8);
                    let rows = values.chunks_mut(hidden).zip(scales.iter_mut()).zip(bytes.chunks(row_bytes));
                    for (j, ((q, scale), row)) in rows.enumerate() {
                        dtype.widen(row, wide);
                        *scale = quantize_row(wide, q);
                        if scale.is_nan() {
                            bad.fetch_min(i * task + j, Ordering::Relaxed);
                            return Ok(());
                        }
                        squares[j] = squares_of(wide, q, *scale);
                    }
                    write(layout.weights.start + i * task * hidden, bytemuck::cast_slice(values))?;
                    meter.add(bytes.len());
                    Ok(())
                },
            )
        })?;
        let bad = bad.into_inner();
        if bad < vocab_size {
            return Err(
                StoredRows { weight: &self.head.weight, vocab: 0..vocab_size, hidden }.not_finite(bad)
            );
        }
        written.map_err(failed)?;
        let mut bytes = Vec::with_capacity(4 * vocab_size);
        scales.iter().for_each(|scale| bytes.extend_from_slice(&scale.to_le_bytes()));
        write(layout.scales.start, &bytes).map_err(failed)?;
        out.lock().unwrap_or_else(PoisonError::into_inner).flush().map_err(failed)?;
        meter.finish();
        Ok(WeightError::of(&squares))
    }

    /// The most memory that [`Checkpoint::write_int8`] allocates for this head on a pool of `threads`. Each
    /// thread has a task's int8 rows and one widened row; each row of the head takes 24 bytes, for its scale
    /// (twice: as found and as written) and its error.
    pub fn int8_working_bytes(&self, vocab_size: usize, threads: usize) -> u64 {
        let (hidden, dtype) = (self.head.hidden as u64, self.dtype());
        let task = rows_per_task(self.head.hidden * dtype.size()) as u64;
        threads as u64 * hidden * (task + 4) + vocab_size as u64 * 24
    }
}

/// The file's header, and where everything lies, counted from the start of the file.
struct Layout {
    header: Vec<u8>,
    scales: Range<usize>,
    bias: Option<Range<usize>>,
    weights: Range<usize>,
}

impl Layout {
    /// Puts wider types first, so that all tensors are aligned. The header is padded with spaces to 8 bytes,
    /// as the safetensors library does.
    fn of(checkpoint: &Checkpoint, name: &str, config: &HeadConfig) -> Self {
        let (head, vocab_size) = (&checkpoint.head, config.vocab_size);
        let mut end = 0;
        let mut entries = Map::new();
        let mut place = |name: String, dtype: Dtype, shape: &[usize], bytes: usize| {
            let range = end..end + bytes;
            end = range.end;
            let offsets = [range.start, range.end];
            entries.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
            range
        };
        let scales = place(format!("{name}_scale"), Dtype::F32, &[vocab_size], 4 * vocab_size);
        let bias = head.bias.as_ref().map(|bias| {
            let size = bias.info.bytes.len() / bias.info.shape[0].max(1);
            let name = format!("{}.bias", name.strip_suffix(".weight").unwrap_or(name));
            place(name, bias.info.dtype, &[vocab_size], size * vocab_size)
        });
        let shape = [vocab_size, head.hidden];
        let weights = place(name.to_string(), Dtype::I8, &shape, vocab_size * head.hidden);

        let mut metadata = head.weight.file.metadata().clone();
        metadata.insert(MADE.into(), format!("int8, a symmetric scale per row, from {}", checkpoint.dtype()));
        // Rust prints the shortest digits that read back as the same f32.
        for (key, value) in [
            (SCALE, (config.logit_scale != 1.0).then(|| config.logit_scale.to_string())),
            (SOFTCAP, config.final_logit_softcapping.map(|cap| cap.to_string())),
            (MODEL_TYPE, checkpoint.model_config().model_type),
        ] {
            match value {
                Some(value) => metadata.insert(key.into(), value),
                None => metadata.remove(key),
            };
        }
        entries.insert("__metadata__".into(), json!(metadata));
        let mut text = Value::Object(entries).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        let shifted = |range: Range<usize>| range.start + header.len()..range.end + header.len();
        Layout { scales: shifted(scales), bias: bias.map(shifted), weights: shifted(weights), header }
    }
}

/// What the metadata of a file says about the model; empty for files that other programs wrote.
///
/// # Errors
/// `Tensor` naming `__metadata__` and the key whose value is not a legal number.
pub(super) fn model_of(file: &SafetensorsFile) -> Result<ModelConfig> {
    let number = |key: &str, wanted: &str, may_be: fn(f32) -> bool| {
        let Some(text) = file.metadata().get(key) else { return Ok(None) };
        match text.parse::<f32>() {
            Ok(value) if may_be(value) => Ok(Some(value)),
            _ => {
                let fix = "write the file again with `lmhead quantize`, or take that key out of it";
                let wanted = format!("{wanted} under the key {key}");
                Err(Error::tensor(file.path(), "__metadata__", wanted, format!("`{text}`"), fix))
            }
        }
    };
    Ok(ModelConfig {
        model_type: file.metadata().get(MODEL_TYPE).cloned(),
        logit_scale: number(SCALE, "a finite number other than 0", |v| v.is_finite() && v != 0.0)?,
        final_logit_softcapping: number(SOFTCAP, "a finite number above 0", |v| v.is_finite() && v > 0.0)?,
        ..ModelConfig::default()
    })
}

impl WeightError {
    fn of(squares: &[Squares]) -> Self {
        let relative = |[error, norm]: Squares| if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
        let whole = squares.iter().fold([0.0, 0.0], |[e, n], [error, norm]| [e + error, n + norm]);
        let mut worst = (0, 0.0);
        for (row, squares) in squares.iter().enumerate() {
            let own = relative(*squares);
            if own > worst.1 {
                worst = (row, own);
            }
        }
        WeightError { relative: relative(whole), worst_row: worst.0, worst_row_relative: worst.1 }
    }
}

/// Summed in eight lanes, which vectorises, and in one fixed order.
fn squares_of(wide: &[f32], q: &[i8], scale: f32) -> Squares {
    let scale = f64::from(scale);
    let mut lanes = [[0.0f64; 8]; 2];
    for (w, q) in wide.chunks(8).zip(q.chunks(8)) {
        for (lane, (w, q)) in w.iter().zip(q).enumerate() {
            let (w, q) = (f64::from(*w), f64::from(*q));
            let error = w - q * scale;
            lanes[0][lane] += error * error;
            lanes[1][lane] += w * w;
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}
