//! The head's configuration: from TOML or JSON of our own, from a model's `config.json`, or in code.
//! Every rule is checked in one place, [`HeadConfig::validate`].

mod group_size;
mod model;
pub(crate) mod model_rules;
mod object;
pub(crate) mod python_json;
mod unreadable;

pub use group_size::GroupSizeRule;
pub use model::ModelConfig;

pub use crate::dtype::Quantization;

use crate::cost::CostModel;
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::layout::shard_range;
use crate::merge::PartialSpec;
use crate::quantize::MAX_INT8_HIDDEN;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Default of [`HeadConfig::logprobs_chunk_bytes`]: 64 MiB, 130 rows of a whole vocabulary of 128256.
pub const LOGPROBS_CHUNK_BYTES: u64 = 64 << 20;

/// Default of [`HeadConfig::create_timeout`].
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(300);

/// The size of a head group: how many ranks share one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LmheadTpSize {
    /// The tensor-parallel size where that is above 1. Otherwise the size that the configured cost model
    /// finds fastest, or 1 (a replicated head) without a cost model.
    #[default]
    Auto,
    /// `-1`: the tensor-parallel size.
    TensorParallel,
    /// A number of ranks. 0 is representable so that it can be refused with the sizes that would fit.
    Ranks(usize),
}

impl fmt::Display for LmheadTpSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LmheadTpSize::Auto => f.write_str("auto"),
            LmheadTpSize::TensorParallel => f.write_str("-1"),
            LmheadTpSize::Ranks(n) => write!(f, "{n}"),
        }
    }
}

impl std::str::FromStr for LmheadTpSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(LmheadTpSize::Auto),
            "-1" => Ok(LmheadTpSize::TensorParallel),
            number => number.parse().map(LmheadTpSize::Ranks).map_err(|_| {
                Error::config(
                    "lmhead_tp_size",
                    "auto, -1 (the tensor-parallel size) or a number of ranks",
                    format!("`{text}`"),
                    "use auto where unsure",
                )
            }),
        }
    }
}

impl Serialize for LmheadTpSize {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            LmheadTpSize::Auto => s.serialize_str("auto"),
            LmheadTpSize::TensorParallel => s.serialize_i64(-1),
            LmheadTpSize::Ranks(n) => s.serialize_u64(*n as u64),
        }
    }
}

impl<'de> Deserialize<'de> for LmheadTpSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = LmheadTpSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, -1 (the tensor-parallel size) or a number of ranks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<LmheadTpSize, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> std::result::Result<LmheadTpSize, E> {
                n.to_string().parse().map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> std::result::Result<LmheadTpSize, E> {
                n.to_string().parse().map_err(|_| E::invalid_value(Unexpected::Unsigned(n), &self))
            }
        }
        d.deserialize_any(Size)
    }
}

/// Which exact steps begin with the exchange of headers that checks the contract. In other steps, ranks that
/// disagree are only found by the transport, where it can (the in-process exchange compares the terms of
/// every call), or by the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Every step.
    #[default]
    Always,
    /// `prepare`: the steps of `warm_up` only.
    #[serde(rename = "prepare")]
    WarmUp,
    /// Steps whose sequence number is a multiple of this (at least 1), and those of `warm_up`.
    Every(u32),
}

impl Verify {
    /// Whether the step with this sequence number is verified.
    pub(crate) fn applies(self, sequence: u64, warming_up: bool) -> bool {
        match self {
            Verify::Always => true,
            Verify::WarmUp => warming_up,
            Verify::Every(n) => warming_up || sequence.is_multiple_of(u64::from(n)),
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verify::Always => f.write_str("always"),
            Verify::WarmUp => f.write_str("prepare"),
            Verify::Every(n) => write!(f, "every {n}"),
        }
    }
}

/// What a user writes down, in TOML, JSON or code. Absent values come from the model's `config.json`
/// ([`ModelConfig`]), then from defaults. Unknown keys are refused.
///
/// ```toml
/// lmhead_tp_size = 4          # auto | -1 | n
/// quantization = "w8a8"       # none | w8a8 | w8a16
/// verify = { every = 100 }    # "always" | "prepare" | { every = n }
/// timeout_ms = 5000
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Tells the heads of one process apart (target and draft). Absent: `lm_head`.
    pub name: Option<String>,
    /// Ids of the vocabulary, 1 to 2^30; the checkpoint may store more rows.
    pub vocab_size: Option<usize>,
    /// Columns of the head.
    pub hidden_size: Option<usize>,
    /// How many ranks share one head.
    pub lmhead_tp_size: LmheadTpSize,
    /// Each tensor-parallel rank gets the answers only to its part of its replica's rows.
    pub split_rows_over_tp: bool,
    /// Multiplies the logits (Cohere).
    pub logit_scale: Option<f32>,
    /// Divides the logits (Granite): the inverse of `logit_scale`.
    pub logits_scaling: Option<f32>,
    /// `cap * tanh(logit / cap)` (Gemma).
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head has a bias. Absent: it has one where the checkpoint stores one.
    pub bias: Option<bool>,
    /// Absent: what the checkpoint holds.
    pub quantization: Option<Quantization>,
    /// Type of the hidden states. Absent: the weights' own; bf16 for an int8 head. The cpu backend takes f32,
    /// f16 and bf16 with any head.
    pub hidden_dtype: Option<DType>,
    /// `f32` widens a 16-bit head at load, so that logits are sums of f32 products. Absent: as stored.
    pub head_dtype: Option<DType>,
    /// Whether the embedding is the head. Absent: as the model says; if it says nothing, the embedding is
    /// used where no head is stored.
    pub tie_word_embeddings: Option<bool>,
    /// When exact steps check their contract.
    pub verify: Verify,
    /// Deadline of a whole step, milliseconds from its beginning. Absent: 30000.
    pub timeout_ms: Option<u64>,
    /// Deadline for creating or rebuilding a head, milliseconds. Longer than a step's, since ranks arrive at
    /// different times after loading weights. Absent: 300000.
    pub create_timeout_ms: Option<u64>,
    /// Version of the weights, as the engine counts it; ranks with different versions refuse a step together.
    /// Absent: 0.
    pub weights_version: Option<u64>,
    /// Memory for one chunk of the `logprobs` request on each rank: its gathered hidden rows, f32 logits
    /// over the shard, and candidates. Absent: 64 MiB.
    pub logprobs_chunk_bytes: Option<u64>,
    /// Speeds by which `lmhead_tp_size = auto` chooses.
    #[serde(deserialize_with = "object::optional")]
    pub cost_model: Option<CostModel>,
}

impl Settings {
    /// Whether the user sets a scale of the logits, in either form.
    pub(crate) fn has_scale(&self) -> bool {
        self.logit_scale.is_some() || self.logits_scaling.is_some()
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// `Config` naming the unknown key or the bad value with its line.
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::read_toml("TOML configuration", text)
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// `Config` naming the unknown key or the bad value with its line.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::read_json("JSON configuration", text)
    }

    fn read_toml(name: &str, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| unreadable::toml(name, text, error))
    }

    fn read_json(name: &str, text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map(|object::Object(settings)| settings)
            .map_err(|error| unreadable::json(name, text, &error))
    }

    /// Reads a file: JSON where its name ends in `.json`, otherwise TOML.
    ///
    /// # Errors
    /// `File` where it cannot be read; `Config` as above, with the path in the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = read_text(path, "pass a TOML or JSON configuration file")?;
        let name = path.display().to_string();
        match path.extension().is_some_and(|e| e == "json") {
            true => Self::read_json(&name, &text),
            false => Self::read_toml(&name, &text),
        }
    }
}

/// The text of a regular file. Others are refused, since reading a pipe could wait forever.
fn read_text(path: &Path, fix: &str) -> Result<String> {
    let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"), fix);
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Error::file(path, "is not a regular file", fix));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// The configuration of one head, complete. Every rank of a group must hold the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadConfig {
    /// Tells the heads of one process apart; part of every step's contract.
    pub name: String,
    /// Ids of the vocabulary.
    pub vocab_size: usize,
    /// Columns of the head, elements of a hidden row.
    pub hidden_size: usize,
    /// Resolved by [`HeadConfig::group_size`]; a head itself only looks at its [`crate::layout::HeadGroup`].
    pub lmhead_tp_size: LmheadTpSize,
    /// Each tensor-parallel rank gets the answers only to its part of its replica's rows.
    pub split_rows_over_tp: bool,
    /// Multiplies the logits, after the softcap.
    pub logit_scale: f32,
    /// `cap * tanh(logit / cap)`, before the scale.
    pub final_logit_softcapping: Option<f32>,
    /// How the weights are multiplied; must equal the shard's.
    pub quantization: Quantization,
    /// Type of the hidden states. `None`: the weights' own; bf16 for an int8 head. The cpu backend takes f32,
    /// f16 and bf16 with any head.
    pub hidden_dtype: Option<DType>,
    /// Type that the weights must have been loaded in; `None`: any.
    pub head_dtype: Option<DType>,
    /// When exact steps check their contract.
    pub verify: Verify,
    /// Deadline of a whole step, from its beginning.
    pub timeout: Duration,
    /// Deadline for creating or rebuilding a head. Longer than a step's, since ranks arrive at different
    /// times after loading weights.
    pub create_timeout: Duration,
    /// Version of the weights, as the engine counts it: part of every step's contract. See
    /// [`LmHead::set_weights_version`](crate::LmHead::set_weights_version).
    pub weights_version: u64,
    /// Memory for one chunk of the `logprobs` request on each rank: its gathered hidden rows, f32 logits
    /// over the shard, and candidates.
    pub logprobs_chunk_bytes: u64,
    /// Speeds by which `lmhead_tp_size = auto` chooses.
    pub cost_model: Option<CostModel>,
}

impl HeadConfig {
    /// A plain head: no scale, softcap or quantisation; every step verified; 30 s for a step.
    pub fn new(vocab_size: usize, hidden_size: usize) -> Self {
        HeadConfig {
            name: "lm_head".into(),
            vocab_size,
            hidden_size,
            lmhead_tp_size: LmheadTpSize::Auto,
            split_rows_over_tp: false,
            logit_scale: 1.0,
            final_logit_softcapping: None,
            quantization: Quantization::None,
            hidden_dtype: None,
            head_dtype: None,
            verify: Verify::Always,
            timeout: Duration::from_secs(30),
            create_timeout: CREATE_TIMEOUT,
            weights_version: 0,
            logprobs_chunk_bytes: LOGPROBS_CHUNK_BYTES,
            cost_model: None,
        }
    }

    /// Merges the user's settings with the model's; the user's win where both are set. `quantization` is that
    /// of the loaded weights.
    ///
    /// # Errors
    /// `Config` where neither gives a size, where scale and inverse scale are both given, where the model's
    /// `config.json` has a key that seems to change logits and is not understood (unless the settings have a
    /// scale of their own), and as [`HeadConfig::validate`].
    pub fn resolve(settings: &Settings, model: &ModelConfig, quantization: Quantization) -> Result<Self> {
        let size = |key: &str, own: Option<usize>, models: Option<usize>| {
            own.or(models).ok_or_else(|| {
                Error::config(
                    key,
                    "a size",
                    "nothing",
                    "set it, or pass a model folder whose config.json has it",
                )
            })
        };
        // A user who sets one form overrides whichever the model has.
        let (scale, scaling) = if settings.has_scale() {
            (settings.logit_scale, settings.logits_scaling)
        } else if let Some(refusal) = &model.refusal {
            return Err(refusal.clone());
        } else {
            (model.logit_scale, None)
        };
        let logit_scale = match (scale, scaling) {
            (Some(scale), Some(scaling)) => {
                return Err(Error::config(
                    "logit_scale, logits_scaling",
                    "one of the two",
                    format!("logit_scale {scale} and logits_scaling {scaling}"),
                    "keep logit_scale, or its inverse logits_scaling",
                ));
            }
            (Some(scale), None) => scale,
            (None, Some(scaling)) => {
                if !(scaling.is_finite() && scaling != 0.0) {
                    return Err(Error::config(
                        "logits_scaling",
                        "a finite number other than 0",
                        scaling,
                        "it divides the logits",
                    ));
                }
                1.0 / scaling
            }
            (None, None) => 1.0,
        };
        let config = HeadConfig {
            name: settings.name.clone().unwrap_or_else(|| "lm_head".into()),
            vocab_size: size("vocab_size", settings.vocab_size, model.vocab_size)?,
            hidden_size: size("hidden_size", settings.hidden_size, model.hidden_size)?,
            lmhead_tp_size: settings.lmhead_tp_size,
            split_rows_over_tp: settings.split_rows_over_tp,
            logit_scale,
            final_logit_softcapping: settings.final_logit_softcapping.or(model.final_logit_softcapping),
            quantization,
            hidden_dtype: settings.hidden_dtype,
            head_dtype: settings.head_dtype,
            verify: settings.verify,
            timeout: Duration::from_millis(settings.timeout_ms.unwrap_or(30_000)),
            create_timeout: settings.create_timeout_ms.map_or(CREATE_TIMEOUT, Duration::from_millis),
            weights_version: settings.weights_version.unwrap_or(0),
            logprobs_chunk_bytes: settings.logprobs_chunk_bytes.unwrap_or(LOGPROBS_CHUNK_BYTES),
            cost_model: settings.cost_model,
        };
        config.validate()?;
        Ok(config)
    }

    /// Every rule of a configuration that does not depend on the layout.
    ///
    /// # Errors
    /// `Config` naming the key, the rule and the value.
    pub fn validate(&self) -> Result<()> {
        // Ids have 32 bits, and sums of exponentials have room for 2^32 terms.
        let largest = 1 << 30;
        for (key, size) in [("vocab_size", self.vocab_size), ("hidden_size", self.hidden_size)] {
            if size == 0 || size > largest {
                let fix = format!("pass the model's {key}");
                return Err(Error::config(key, format!("1 to {largest}"), size, fix));
            }
        }
        if self.quantization == Quantization::W8a8 && self.hidden_size > MAX_INT8_HIDDEN {
            return Err(Error::config(
                "hidden_size with quantization w8a8",
                format!("at most {MAX_INT8_HIDDEN} (int32 accumulators would overflow)"),
                self.hidden_size,
                "use w8a16 or none",
            ));
        }
        if !(self.logit_scale.is_finite() && self.logit_scale != 0.0) {
            let wanted = "a finite number other than 0";
            return Err(Error::config("logit_scale", wanted, self.logit_scale, "use 1 for no scaling"));
        }
        if let Some(cap) = self.final_logit_softcapping
            && !(cap.is_finite() && cap > 0.0)
        {
            let fix = "leave it out where neither you nor the model wants a softcap";
            return Err(Error::config("final_logit_softcapping", "a finite number above 0", cap, fix));
        }
        if let Some(dtype) = self.hidden_dtype.filter(|dtype| !dtype.is_float()) {
            let fix = "w8a8 heads quantise the hidden states themselves";
            return Err(Error::config("hidden_dtype", "f32, f16 or bf16", dtype, fix));
        }
        if self.timeout.is_zero() {
            return Err(Error::config("timeout_ms", "at least 1", 0, "30000 is the default"));
        }
        if self.create_timeout.is_zero() {
            return Err(Error::config("create_timeout_ms", "at least 1", 0, "300000 is the default"));
        }
        if self.verify == Verify::Every(0) {
            return Err(Error::config(
                "verify",
                "every n steps with n at least 1",
                "every 0",
                "use \"always\" or \"prepare\"",
            ));
        }
        if let Some(model) = &self.cost_model {
            for (key, speed) in [
                ("memory_gb_per_s", model.memory_gb_per_s),
                ("tflops", model.tflops),
                ("link_gb_per_s", model.link_gb_per_s),
            ] {
                if !(speed.is_finite() && speed > 0.0) {
                    let key = format!("cost_model.{key}");
                    return Err(Error::config(
                        key,
                        "a finite number above 0",
                        speed,
                        "leave out the cost model where speeds are unknown",
                    ));
                }
            }
            if !(model.latency_us.is_finite() && model.latency_us >= 0.0) {
                return Err(Error::config(
                    "cost_model.latency_us",
                    "a finite number, at least 0",
                    model.latency_us,
                    "use microseconds",
                ));
            }
            if !model.logits_dtype.is_float() {
                let (key, fix) = ("cost_model.logits_dtype", "leave it out for bf16");
                return Err(Error::config(key, "f32, f16 or bf16", model.logits_dtype, fix));
            }
        }
        Ok(())
    }

    /// Rows of the group in a chunk of the `logprobs` request: the most that `logprobs_chunk_bytes` holds on
    /// the rank with the largest shard, in groups of `group_size` ranks.
    ///
    /// # Errors
    /// `Config` where not even one row fits, naming what would.
    pub fn logprobs_chunk_rows(
        &self,
        group_size: usize,
        hidden_dtype: DType,
        targets: usize,
        top_n: usize,
    ) -> Result<usize> {
        let shard = shard_range(self.vocab_size, group_size, 0).len();
        let hidden = self.hidden_size * hidden_dtype.size();
        // A row's partials: once to send and once from every rank.
        let candidates = top_n.max(1).min(shard);
        let partial = PartialSpec { k: candidates, sum: true, targets }.stride(shard) as u64;
        let each = shard as u64 * 4 + hidden as u64 + partial * (1 + group_size as u64);
        if self.logprobs_chunk_bytes < each {
            return Err(Error::config(
                "logprobs_chunk_bytes",
                format!(
                    "at least {each}: a row of {hidden} bytes of hidden states, {shard} f32 logits and {candidates} candidates of {group_size} ranks"
                ),
                self.logprobs_chunk_bytes,
                "allow more memory, or share the head among more ranks",
            ));
        }
        Ok(usize::try_from(self.logprobs_chunk_bytes / each).unwrap_or(usize::MAX))
    }

    /// The scalar part of the epilogue.
    pub fn epilogue(&self) -> Epilogue {
        Epilogue { softcap: self.final_logit_softcapping, scale: self.logit_scale }
    }
}

#[cfg(test)]
mod tests;
