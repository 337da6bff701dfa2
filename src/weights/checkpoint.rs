//! Opens the head of a checkpoint, says how it is stored, and cuts a rank's shard from it.
//!
//! * `choose`: which of the stored tensors are the head.

mod choose;

use super::HeadShard;
use super::folder::Tensors;
use super::hf_config::{self, Activations};
use super::int8_file;
use super::load::{self, Progress};
use super::stored::{self, Format, StoredHead, gguf};
use super::widened::Loaded;
use crate::config::model_rules::ANY;
use crate::config::{HeadConfig, ModelConfig, Quantization, Settings};
use crate::digest::Digest;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::HeadGroup;
use crate::process;
use crate::quantize::MAX_INT8_HIDDEN;
use choose::{Chosen, choose, draft_ids, named, refuse_beside, unmerged_adapter};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// How to load a shard. The default: as stored, with the bias where one is stored, without progress reports.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// `w8a8` and `w8a16` quantise a float head while it is read. Absent: a float head stays as it is; an
    /// int8 head is used as `config.json` says, else as `w8a16`.
    pub quantization: Option<Quantization>,
    /// Whether to use a bias. Absent: where one is stored.
    pub bias: Option<bool>,
    /// Reads the weights into memory of this process: steps then do not depend on the file, and a file that
    /// is shortened while it is read gives an error. Without `copy`, aligned float and int8 rows stay in the
    /// file's mapping, and shortening the file later causes a SIGBUS
    /// ([`SafetensorsFile`](super::SafetensorsFile)).
    pub copy: bool,
    /// The type of the weights in memory. Absent: as stored. `f32` widens a 16-bit head, which is exact; its
    /// logits are then sums of f32 products, on backends that support f32.
    pub head_dtype: Option<DType>,
    pub progress: Option<Progress<'a>>,
    /// Threads that read, check, widen and quantise, 1 to 1024; they end with the load. Absent: the caller's
    /// rayon pool, which is the global one (a thread for each CPU) unless the caller is a worker of another.
    /// The weights do not depend on the number of threads.
    pub threads: Option<usize>,
}

/// The LM head of a checkpoint, found and checked, but not yet read: the files are mapped, and
/// [`Checkpoint::shard`] reads only the bytes of its own rows.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) head: StoredHead,
    model: ModelConfig,
    activations: Activations,
    /// The target model's id of each draft id; see `Checkpoint::target_ids`.
    draft: Option<Vec<u32>>,
    warnings: Mutex<Vec<String>>,
    /// The largest relative change that rounding has made to a weight of the shards loaded so far; bits of an
    /// f32.
    rounding: AtomicU32,
}

impl Checkpoint {
    /// Opens a Hugging Face folder: `config.json` and `model.safetensors`, or the files of
    /// `model.safetensors.index.json`, or the folder's only `.safetensors` file. Or a GGUF file, whose head
    /// is `output.weight`, or `token_embd.weight` where there is none.
    ///
    /// Which tensor is the head is decided as transformers 5 does it. The names of heads and embeddings
    /// depend on the `model_type` (`lm_head.weight`, `embed_out.weight`, `cls.predictions.decoder.weight`,
    /// ...); for an unknown one, all known names are tried. A stored head is used, whatever
    /// `tie_word_embeddings` says. Where none is stored, the embedding is used, unless `config.json` or the
    /// model type's default says that the two are not tied. The files of an index are opened: what they hold
    /// counts, not what the index lists.
    ///
    /// # Errors
    /// `File` for a file that is missing, damaged or not safetensors; `Config` for a bad `config.json`;
    /// `Tensor` for a head that is absent, ambiguous, of an unsupported format, or of other sizes than the
    /// configuration says, and for a tensor of the head's module that is not read.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, &Settings::default())
    }

    /// As [`Checkpoint::open`]; `tie_word_embeddings`, `vocab_size` and `hidden_size` of the settings, where
    /// set, replace the model's.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(folder: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        Self::open_folder(folder.as_ref(), settings, None)
    }

    /// As [`Checkpoint::open_with`], but with `tensor` as the head. Sizes, scale and softcap of `config.json`
    /// still apply.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; `Tensor` where there is none of this name.
    pub fn open_tensor(folder: impl AsRef<Path>, tensor: &str, settings: &Settings) -> Result<Self> {
        Self::open_folder(folder.as_ref(), settings, Some(tensor))
    }

    fn open_folder(folder: &Path, settings: &Settings, tensor: Option<&str>) -> Result<Self> {
        let about = std::fs::metadata(folder).map_err(|e| {
            Error::file(
                folder,
                format!("cannot be read: {e}"),
                "pass a Hugging Face model folder that exists",
            )
        })?;
        if !about.is_dir() && gguf::is_gguf(folder) {
            let tied = settings.tie_word_embeddings;
            let checkpoint = Self::open_gguf(folder, tensor, tied)?;
            checkpoint.check_sizes(settings)?;
            return Ok(checkpoint);
        }
        if !about.is_dir() {
            let fix = "pass the folder, or open the file with the name of its head's tensor";
            return Err(Error::file(folder, "wanted a Hugging Face model folder, got a file", fix));
        }
        if let Some(error) = unmerged_adapter(folder) {
            return Err(error);
        }
        let model = ModelConfig::from_file(&folder.join("config.json"))?;
        let mut tensors = Tensors::of_folder(folder)?;
        let mut warnings = [&model.warnings, tensors.warnings()].concat();
        let Chosen { module, bias } = match tensor {
            Some(name) => named(&tensors, name),
            // The refusal of a model that cannot be used anyway is the more helpful error.
            None => choose(&mut tensors, &model, settings.tie_word_embeddings, &mut warnings).map_err(
                |error| {
                    let refusal = model.refusal.clone().filter(|_| !settings.has_scale());
                    refusal.unwrap_or(error)
                },
            )?,
        };
        let name = if tensor.is_some_and(|name| name == module) {
            module.clone()
        } else {
            format!("{module}.weight")
        };
        let head =
            stored::recognise(&mut tensors, &name, bias.as_deref(), model.quantization_config.as_ref())?;
        refuse_beside(&mut tensors, folder, &model, &module)?;
        let draft = draft_ids(&mut tensors, &model, &head)?;
        let activations = match head.format {
            Format::Int8 { .. } => hf_config::activations(model.quantization_config.as_ref(), &module)?,
            Format::Float(_) => Activations::Unstated,
            Format::E4m3 { .. } | Format::Widened(_) => {
                if hf_config::quantizes_inputs(model.quantization_config.as_ref(), &module) {
                    warnings.push(format!(
                        "{}: quantization_config quantises the hidden states of {module}, too; they are \
                         multiplied as they come here",
                        tensors.place().display()
                    ));
                }
                Activations::Unstated
            }
        };
        let checkpoint = Checkpoint { draft, ..Self::new(head, model, activations, warnings) };
        checkpoint.check_sizes(settings)?;
        Ok(checkpoint)
    }

    fn check_sizes(&self, settings: &Settings) -> Result<()> {
        if let Some(hidden) = settings.hidden_size.or(self.model.hidden_size) {
            self.check_hidden(hidden)?;
        }
        if let Some(vocab) = settings.vocab_size.or(self.model.vocab_size) {
            self.check_vocab(vocab)?;
        }
        Ok(())
    }

    /// The head of a GGUF file: `tensor` where it is given, else `output.weight`, else the embedding.
    fn open_gguf(path: &Path, tensor: Option<&str>, tied: Option<bool>) -> Result<Self> {
        let tensors = Tensors::of_file(path)?;
        let [head, embedding] = gguf::HEADS;
        if tensor.is_none() && tied != Some(true) && !tensors.contains(head) {
            // The embedding is only the head if the model has no other, which one part of several cannot
            // tell.
            tensors.check_whole_gguf(path)?;
        }
        let name = match tensor {
            Some(name) => name,
            None if tied == Some(true) || (tied.is_none() && !tensors.contains(head)) => embedding,
            None => head,
        };
        Self::of_file(tensors, path, name)
    }

    /// The head `tensor` (usually `lm_head.weight`) of one `.safetensors` or GGUF file; for GGUF,
    /// `lm_head.weight` stands for the file's head, whatever its name. The scales of an int8 head are
    /// `{tensor}_scale`; a stored bias has the same name with `.bias` in place of `.weight`. Scale and
    /// softcap of the logits come from the file's metadata, where [`Checkpoint::write_int8`] puts them.
    ///
    /// # Errors
    /// `File` for a file that is missing, damaged or not safetensors; `Tensor` for a head that is absent or
    /// of an unsupported format, and for a scale or softcap that is no such number.
    pub fn from_file(path: impl AsRef<Path>, tensor: &str) -> Result<Self> {
        let path = path.as_ref();
        if gguf::is_gguf(path) {
            return Self::open_gguf(path, Some(tensor).filter(|name| *name != "lm_head.weight"), None);
        }
        Self::of_file(Tensors::of_file(path)?, path, tensor)
    }

    fn of_file(mut tensors: Tensors, path: &Path, tensor: &str) -> Result<Self> {
        let Chosen { module, bias } = named(&tensors, tensor);
        if !tensors.has_module(&module) {
            let listed = super::safetensors_file::listed(tensors.names());
            // The default name is lm_head.weight, which a tied model does not have.
            let fix = match stored::find_module(&tensors, ANY.embeddings, false) {
                Ok(Some(embedding)) => {
                    format!("a tied model's head is its embedding: name it, --tensor {embedding}.weight")
                }
                _ => "check the name and the file".into(),
            };
            return Err(Error::tensor(tensors.place(), tensor, "a tensor of this name", listed, fix));
        }
        let name = if module == tensor { module } else { format!("{module}.weight") };
        let head = stored::recognise(&mut tensors, &name, bias.as_deref(), None)?;
        let model = match head.weight.file.gguf() {
            Some(about) => about.model(path)?,
            None => int8_file::model_of(&head.weight.file)?,
        };
        Ok(Self::new(head, model, Activations::Unstated, Vec::new()))
    }

    fn new(head: StoredHead, model: ModelConfig, activations: Activations, warnings: Vec<String>) -> Self {
        let (warnings, rounding) = (Mutex::new(warnings), AtomicU32::new(0));
        Checkpoint { head, model, activations, draft: None, warnings, rounding }
    }

    /// For the head of an EAGLE-3 draft model: the target model's id of each draft id, `[draft vocabulary]`.
    /// Answers are draft ids, which this table translates.
    pub fn target_ids(&self) -> Option<&[u32]> {
        self.draft.as_deref()
    }

    /// Rows of the stored weight: the vocabulary and any padding of the checkpoint.
    pub fn rows(&self) -> usize {
        self.head.rows
    }

    /// Columns of the weight.
    pub fn hidden_size(&self) -> usize {
        self.head.hidden
    }

    /// Type of the weights when they are loaded without options: as stored, `i8` also for packed ones, and
    /// `bf16` for formats that are widened at load.
    pub fn dtype(&self) -> DType {
        self.head.format.dtype()
    }

    /// How the head is stored and what it becomes, in words, where [`Checkpoint::dtype`] does not say it all:
    /// `GGUF Q6_K, widened to bf16 at load, which moved a weight by at most 0.39 %`. The percentage is that
    /// of the shards loaded so far.
    pub fn storage(&self, options: &LoadOptions<'_>) -> Option<String> {
        let name = self.head.format.name()?;
        let Format::Widened(_) = &self.head.format else { return Some(name) };
        let quantised = options.quantization.is_some_and(|asked| asked != Quantization::None);
        let moved = 100.0 * f32::from_bits(self.rounding.load(Ordering::Relaxed));
        Some(match options.head_dtype {
            _ if quantised => format!("{name}, quantised to int8 at load"),
            Some(DType::F32) => format!("{name}, widened to f32 at load"),
            _ if moved == 0.0 => format!("{name}, widened to bf16 at load"),
            _ => format!("{name}, widened to bf16 at load, which moved a weight by at most {moved:.2} %"),
        })
    }

    /// Whether shards will be float weights with scales ([`HeadShard::with_scales`]), which only the CPU
    /// backend takes: NVFP4 heads that are not quantised at load.
    pub fn has_float_scales(&self, quantization: Quantization) -> bool {
        match &self.head.format {
            Format::Widened(head) if quantization == Quantization::None => {
                head.global_scale().is_ok_and(|scale| scale.is_some())
            }
            _ => false,
        }
    }

    /// Whether a bias is stored.
    pub fn has_bias(&self) -> bool {
        self.head.bias.is_some()
    }

    /// Name of the tensor that the head is read from.
    pub fn tensor_name(&self) -> &str {
        &self.head.weight.name
    }

    /// The file that holds that tensor.
    pub fn path(&self) -> &Path {
        self.head.weight.file.path()
    }

    /// What `config.json` says, or the metadata of a single file. Sizes that it does not give (a single file
    /// never does) are the tensor's.
    pub fn model_config(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: self.model.vocab_size.or(Some(self.head.rows)),
            hidden_size: self.model.hidden_size.or(Some(self.head.hidden)),
            ..self.model.clone()
        }
    }

    /// Checks that nobody has written to the head's files since they were opened
    /// ([`SafetensorsFile::check_unchanged`](super::SafetensorsFile::check_unchanged)).
    ///
    /// # Errors
    /// `File` naming the one that was written to.
    pub fn check_unchanged(&self) -> Result<()> {
        self.head.tensors().try_for_each(|tensor| tensor.file.check_unchanged())
    }

    /// Messages so far that are no errors but that the user should see. Nothing is printed.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a warning, once, however many shards give it.
    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// How a stored 8-bit head is meant to be used: as `config.json` says, and `w8a16` where it says nothing
    /// and for E4M3. `None` for a float head, for one that is widened, and where what `config.json` says is
    /// not supported.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        match self.head.format {
            Format::Float(_) | Format::Widened(_) => None,
            Format::E4m3 { .. } => Some(Quantization::W8a16),
            Format::Int8 { .. } => self.activations.quantization(),
        }
    }

    /// The quantisation of a shard that is loaded with the option `asked`: the value for
    /// [`HeadConfig::quantization`].
    ///
    /// # Errors
    /// `Config` for `none` on an int8 head, and for an int8 head without the option where `config.json` wants
    /// activations treated in a way that is not supported; `Shape` for `w8a8` with a hidden size above
    /// [`MAX_INT8_HIDDEN`].
    pub fn quantization(&self, asked: Option<Quantization>) -> Result<Quantization> {
        if let (Format::E4m3 { .. }, asked) = (&self.head.format, asked.unwrap_or(Quantization::W8a16)) {
            if asked == Quantization::W8a16 {
                return Ok(asked);
            }
            let wanted = format!("w8a16, as {} is stored as FP8", self.tensor_name());
            return Err(Error::config("quantize", wanted, asked, "leave it out: FP8 weights stay FP8"));
        }
        let int8 = matches!(self.head.format, Format::Int8 { .. });
        let quantization = match (int8, asked) {
            (false, asked) => asked.unwrap_or(Quantization::None),
            (true, Some(Quantization::None)) => {
                return Err(Error::config(
                    "quantize",
                    format!("w8a8 or w8a16, as {} is stored as int8", self.tensor_name()),
                    Quantization::None,
                    "leave it out, or choose one of those",
                ));
            }
            (true, Some(asked)) => asked,
            (true, None) => match &self.activations {
                Activations::Other(words) => {
                    return Err(Error::config(
                        "quantization_config.config_groups: input_activations",
                        "none, or symmetric int8 found at run time (dynamic true) per token",
                        words,
                        "choose w8a8 or w8a16 for this head",
                    ));
                }
                stated => stated.quantization().unwrap_or(Quantization::W8a16),
            },
        };
        if quantization == Quantization::W8a8 && self.head.hidden > MAX_INT8_HIDDEN {
            return Err(Error::shape(
                "hidden_size of a w8a8 head",
                format!("at most {MAX_INT8_HIDDEN} (int32 accumulators)"),
                self.head.hidden,
                "use w8a16 or 16-bit weights",
            ));
        }
        Ok(quantization)
    }

    /// The type of the weights of a shard that is loaded with these options.
    ///
    /// # Errors
    /// `Config` for a type that is neither f32 nor the stored one, and for any type where the weights have 8
    /// bits.
    pub fn weights_dtype(&self, asked: Option<DType>, quantization: Quantization) -> Result<DType> {
        let stored = self.dtype();
        let own = match quantization {
            Quantization::W8a8 | Quantization::W8a16 if stored.is_float() => DType::I8,
            _ => stored,
        };
        match asked {
            None => Ok(own),
            Some(asked) if !own.is_float() => Err(Error::config(
                "head_dtype",
                format!("nothing beside {quantization}"),
                asked,
                "leave it out, or the quantisation: 8-bit weights stay as they are",
            )),
            Some(asked) if asked == DType::F32 || asked == stored => Ok(asked),
            Some(asked) => Err(Error::config(
                "head_dtype",
                format!("f32, or {stored} as {} is stored", self.tensor_name()),
                asked,
                "leave it out: weights are not rounded at load",
            )),
        }
    }

    /// Loads the shard of the ids `vocab` from a head of `vocab_size` ids. Reads the bytes of its rows, and
    /// of a few more for the fingerprint; float rows stay in the file's mapping where they are aligned for
    /// their type.
    ///
    /// # Errors
    /// `Config` as [`Checkpoint::quantization`], for `bias: Some(true)` without a stored bias, and for an
    /// illegal number of threads; `Shape` for a range outside of the vocabulary; `Tensor` for fewer rows than
    /// `vocab_size`, and for the first weight, scale or bias of the shard that is not finite; `Unsupported`
    /// where the system refuses memory or threads.
    pub fn shard(
        &self,
        vocab: Range<usize>,
        vocab_size: usize,
        options: &LoadOptions<'_>,
    ) -> Result<HeadShard> {
        match options.threads {
            None => self.load(vocab, vocab_size, options),
            Some(threads) => process::on_threads(threads, || self.load(vocab, vocab_size, options))?,
        }
    }

    fn load(&self, vocab: Range<usize>, vocab_size: usize, options: &LoadOptions<'_>) -> Result<HeadShard> {
        self.check_vocab(vocab_size)?;
        if vocab.start > vocab.end || vocab.end > vocab_size {
            return Err(Error::shape(
                "shard",
                format!("vocabulary ids within 0..{vocab_size}"),
                format!("{}..{}", vocab.start, vocab.end),
                "cut shards with layout::shard_range",
            ));
        }
        let quantization = self.quantization(options.quantization)?;
        let bias = self.bias(vocab.clone(), vocab_size, options.bias)?;
        let how = load::How {
            quantize: quantization != Quantization::None,
            widen: self.weights_dtype(options.head_dtype, quantization)? == DType::F32,
            copy: options.copy,
        };
        let Loaded { matrix, scale, rounding } =
            load::matrix(&self.head, vocab.clone(), how, options.progress)?;
        // Floats of one sign compare as their bits do.
        self.rounding.fetch_max(rounding.to_bits(), Ordering::Relaxed);
        let rows = vocab.len();
        let mut shard =
            HeadShard::from_finite(vocab, vocab_size, self.head.hidden, quantization, matrix, bias)?;
        if let Some(scale) = scale {
            shard = shard.with_scales(vec![scale; rows])?;
        }
        Ok(shard.with_fingerprint(self.fingerprint(vocab_size)?))
    }

    /// A number that all shards of this head share, and shards of other heads do not: a hash of how the head
    /// is stored and of the stored bytes of 64 rows, spread evenly over the vocabulary, with their scales and
    /// biases. Every rank reads these rows, whatever its shard; for a large vocabulary they are a thousandth
    /// of the head or less.
    fn fingerprint(&self, vocab_size: usize) -> Result<u64> {
        const ROWS: usize = 64;
        let head = &self.head;
        let mut digest = Digest::new();
        let about = format!("{} {:?} {} {}", self.dtype(), head.weight.info.dtype, head.hidden, vocab_size);
        digest.bytes(about.as_bytes());
        let rows = || (0..ROWS).map(|i| i * (vocab_size - 1) / (ROWS - 1));
        let mut row_bytes = Vec::new();
        let widened = matches!(head.format, Format::Widened(_));
        if let Format::Widened(stored) = &head.format {
            let mut wide = vec![0.0f32; head.hidden];
            for row in rows() {
                stored.widen(row..row + 1, &mut wide, &mut row_bytes)?;
                wide.iter().for_each(|weight| digest.bytes(&weight.to_le_bytes()));
            }
            digest.bytes(&stored.global_scale()?.unwrap_or(1.0).to_le_bytes());
        }
        // For a widened head only the bias is left to hash.
        let plain = head.tensors().skip(if widened { 1 + head.beside.len() } else { 0 });
        for tensor in plain {
            let bytes = &tensor.info.bytes;
            let stored_rows = tensor.info.shape.first().copied().unwrap_or(1).max(1);
            if stored_rows < vocab_size {
                // One scale for all rows.
                digest.bytes(tensor.bytes());
                continue;
            }
            row_bytes.resize(bytes.len() / stored_rows, 0);
            for row in rows() {
                // Read, since touching one page of the mapping may map as many bytes as a shard has.
                tensor.file.read_at(bytes.start + row * row_bytes.len(), &mut row_bytes)?;
                digest.bytes(&row_bytes);
            }
        }
        Ok(digest.finish())
    }

    /// Loads the shard of the calling rank of `group`. Quantisation and type that the options leave out come
    /// from the configuration.
    ///
    /// # Errors
    /// As [`Checkpoint::shard`]; `Tensor` where `config.hidden_size` is not the weight's; `Config` where the
    /// options and `config` name different quantisations.
    pub fn head_shard(
        &self,
        group: &HeadGroup,
        config: &HeadConfig,
        options: &LoadOptions<'_>,
    ) -> Result<HeadShard> {
        self.check_hidden(config.hidden_size)?;
        let asked = options.quantization.unwrap_or(config.quantization);
        if asked != config.quantization {
            return Err(Error::config(
                "quantize",
                format!("{}, as the head's configuration says", config.quantization),
                asked,
                "resolve the configuration with Checkpoint::quantization",
            ));
        }
        let head_dtype = options.head_dtype.or(config.head_dtype);
        let options = LoadOptions { quantization: Some(asked), head_dtype, ..*options };
        self.shard(group.shard(config.vocab_size, group.me()), config.vocab_size, &options)
    }

    pub(super) fn check_hidden(&self, hidden_size: usize) -> Result<()> {
        let found = self.head.hidden;
        if hidden_size == found {
            return Ok(());
        }
        Err(self.head.weight.error(
            format!("[vocabulary, {hidden_size}], the configuration's hidden_size"),
            format!("[{}, {found}]", self.head.rows),
            "pass the configuration that belongs to these weights",
        ))
    }

    pub(super) fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        let rows = self.head.rows;
        if (1..=rows).contains(&vocab_size) {
            return Ok(());
        }
        let wanted = match vocab_size {
            0 => {
                return Err(Error::config(
                    "vocab_size",
                    format!("1 to {rows}"),
                    0,
                    "pass the model's vocabulary size",
                ));
            }
            n => format!("at least {n} rows, the configuration's vocab_size"),
        };
        let fix = "pass the configuration that belongs to these weights";
        Err(self.head.weight.error(wanted, format!("{rows} rows"), fix))
    }

    pub(super) fn bias(
        &self,
        vocab: Range<usize>,
        vocab_size: usize,
        asked: Option<bool>,
    ) -> Result<Option<Vec<f32>>> {
        let Some(bias) = &self.head.bias else {
            if asked != Some(true) {
                return Ok(None);
            }
            let got = format!("no bias beside {} in {}", self.tensor_name(), self.path().display());
            return Err(Error::config("bias", "a stored bias, as bias = true says", got, "leave bias out"));
        };
        if asked == Some(false) {
            self.warn(format!(
                "{}: {} is stored, but ignored because bias = false",
                bias.file.path().display(),
                bias.name
            ));
            return Ok(None);
        }
        let stored = bias.info.shape.first().copied().unwrap_or(0);
        if stored < vocab_size {
            let fix = "export the checkpoint again";
            return Err(bias.error(format!("[{vocab_size}], one per vocabulary row"), &bias.info, fix));
        }
        bias.finite_floats(vocab, "bias").map(Some)
    }
}
