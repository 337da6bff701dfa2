//! Finds the head of a checkpoint and cuts a rank's shard from it.

use super::HeadShard;
use super::folder::Tensors;
use super::hf_config::{self, Activations};
use super::load::{self, Progress};
use super::safetensors_file::Tensor;
use super::storage::forget;
use super::stored::{self, Format, StoredHead};
use crate::config::{HeadConfig, ModelConfig, Quantization, Settings};
use crate::digest::Digest;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::HeadGroup;
use crate::process;
use crate::quantize::MAX_INT8_HIDDEN;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const HEAD: &str = "lm_head";
const EMBEDDING: &str = "embed_tokens";
const EMBEDDING_EXACT: &str = "model.embed_tokens";

/// How a shard is to be loaded. The default: as stored, with the bias where one is stored, silently.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// Absent: a float head as it is; an int8 head as `config.json` says, else `w8a16`.
    /// `w8a8` and `w8a16` quantise a float head while it is read.
    pub quantization: Option<Quantization>,
    /// Absent: a bias where one is stored.
    pub bias: Option<bool>,
    pub progress: Option<Progress<'a>>,
}

/// The LM head of a checkpoint, found and checked, not yet read: the files are mapped, and each
/// [`Checkpoint::shard`] touches the bytes of its own rows.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) head: StoredHead,
    model: ModelConfig,
    activations: Activations,
    warnings: Mutex<Vec<String>>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder: `config.json` and `model.safetensors`, or the files of
    /// `model.safetensors.index.json`, or the folder's only `.safetensors` file.
    ///
    /// The head is `lm_head.weight`, else the only tensor whose name ends in `.lm_head.weight`. With tied embeddings
    /// it is `model.embed_tokens.weight`, else the only tensor whose name ends in `embed_tokens.weight`: when `config.json`
    /// says `tie_word_embeddings`, or when it does not say and no head is stored.
    ///
    /// # Errors
    /// `File` for a file that is missing, damaged or not safetensors; `Config` for a bad `config.json`; `Tensor`
    /// for a head that is absent, ambiguous, of an unsupported format, or of other sizes than the configuration says.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, &Settings::default())
    }

    /// As [`Checkpoint::open`]; `tie_word_embeddings`, `vocab_size` and `hidden_size` of the settings come
    /// before the model's.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(folder: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        let folder = folder.as_ref();
        let about = std::fs::metadata(folder).map_err(|e| {
            Error::file(
                folder,
                format!("cannot be read: {e}"),
                "pass a Hugging Face model folder that exists",
            )
        })?;
        if !about.is_dir() {
            let fix = "pass the folder, or open the file with the name of its head's tensor";
            return Err(Error::file(folder, "wanted a Hugging Face model folder, got a file", fix));
        }
        let model = ModelConfig::from_file(&folder.join("config.json"))?;
        let mut tensors = Tensors::of_folder(folder)?;
        let tied = settings.tie_word_embeddings.or(model.tie_word_embeddings);
        let mut warnings = Vec::new();
        let module = choose_module(&mut tensors, tied, &mut warnings)?;
        let bias = find_bias(&tensors, &module);
        let head = stored::recognise(&mut tensors, &format!("{module}.weight"), bias.as_deref())?;
        let activations = match head.format {
            Format::Int8 { .. } => hf_config::activations(model.quantization_config.as_ref(), &module)?,
            Format::Float(_) => Activations::Unstated,
        };
        let checkpoint = Self::new(head, model, activations, warnings);
        if let Some(hidden) = settings.hidden_size.or(checkpoint.model.hidden_size) {
            checkpoint.check_hidden(hidden)?;
        }
        if let Some(vocab) = settings.vocab_size.or(checkpoint.model.vocab_size) {
            checkpoint.check_vocab(vocab)?;
        }
        Ok(checkpoint)
    }

    /// The head `tensor` (usually `lm_head.weight`) of one `.safetensors` file. Its scales, where it is int8, are
    /// `{tensor}_scale`; its bias, where stored, is named like it with `.bias` for `.weight`.
    ///
    /// # Errors
    /// `File` for a file that is missing, damaged or not safetensors; `Tensor` for a head that is absent or of an
    /// unsupported format.
    pub fn from_file(path: impl AsRef<Path>, tensor: &str) -> Result<Self> {
        let mut tensors = Tensors::of_file(path.as_ref())?;
        // Either name of a packed weight will do.
        let packed = tensor.strip_suffix("_packed").filter(|name| tensors.contains(&format!("{name}_shape")));
        let name = packed.unwrap_or(tensor);
        let bias = name.strip_suffix(".weight").map(|module| format!("{module}.bias"));
        let head = stored::recognise(&mut tensors, name, bias.as_deref())?;
        Ok(Self::new(head, ModelConfig::default(), Activations::Unstated, Vec::new()))
    }

    fn new(head: StoredHead, model: ModelConfig, activations: Activations, warnings: Vec<String>) -> Self {
        Checkpoint { head, model, activations, warnings: Mutex::new(warnings) }
    }

    /// Rows of the stored weight: the vocabulary and, where there is some, padding of the checkpoint.
    pub fn rows(&self) -> usize {
        self.head.rows
    }

    /// Columns of the weight.
    pub fn hidden_size(&self) -> usize {
        self.head.hidden
    }

    /// Type of the stored weights; `i8` for packed ones too.
    pub fn dtype(&self) -> DType {
        self.head.format.dtype()
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

    /// What `config.json` says, with the tensor's sizes where it says none (for one file: always).
    pub fn model_config(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: self.model.vocab_size.or(Some(self.head.rows)),
            hidden_size: self.model.hidden_size.or(Some(self.head.hidden)),
            ..self.model.clone()
        }
    }

    /// What has been noticed so far that is no error but that a person should know. Nothing is printed.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Said once, however many shards are cut.
    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// How a stored int8 head is meant to be used: `config.json`'s statement, `w8a16` without one.
    /// `None` for a float head, and where the statement is one that cannot be followed.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        match self.head.format {
            Format::Float(_) => None,
            Format::Int8 { .. } => self.activations.quantization(),
        }
    }

    /// What a shard loaded with this option will be: the value for [`HeadConfig::quantization`].
    ///
    /// # Errors
    /// `Config` for `none` on an int8 head, and for an int8 head without the option where `config.json` wants
    /// activations treated in a way that is not supported; `Shape` for `w8a8` with a hidden size above [`MAX_INT8_HIDDEN`].
    pub fn quantization(&self, asked: Option<Quantization>) -> Result<Quantization> {
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

    /// Vocabulary ids `vocab` of a head of `vocab_size` ids. Reads those rows' bytes and no others; float rows
    /// stay in the file's mapping where they are aligned for their type.
    ///
    /// # Errors
    /// `Config` as [`Checkpoint::quantization`], and for `bias: Some(true)` without a stored bias; `Shape` for a range
    /// outside of the vocabulary; `Tensor` for fewer rows than `vocab_size`, and for the first weight, scale or
    /// bias of the shard that is not finite; `Unsupported` where memory is refused.
    pub fn shard(
        &self,
        vocab: Range<usize>,
        vocab_size: usize,
        options: &LoadOptions<'_>,
    ) -> Result<HeadShard> {
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
        let quantize = quantization != Quantization::None;
        // Before the shard is read: the pages that this lets go may be the shard's.
        let fingerprint = self.fingerprint(vocab_size);
        let matrix = load::matrix(&self.head, vocab.clone(), quantize, options.progress)?;
        let shard = HeadShard::from_finite(vocab, vocab_size, self.head.hidden, quantization, matrix, bias)?;
        Ok(shard.with_fingerprint(fingerprint))
    }

    /// A number that the shards of this head have in common and those of another head have not: a hash of how
    /// it is stored and of the stored bytes of 64 rows spread evenly over the vocabulary, their scales and
    /// biases. Every rank reads these rows, whatever its shard; they are a thousandth of the head or less.
    fn fingerprint(&self, vocab_size: usize) -> u64 {
        const ROWS: usize = 64;
        const HUGE_PAGE: usize = 2 << 20;
        let head = &self.head;
        let mut digest = Digest::new();
        let about = format!("{} {:?} {} {}", self.dtype(), head.weight.info.dtype, head.hidden, vocab_size);
        digest.bytes(about.as_bytes());
        let scale = match &head.format {
            Format::Int8 { scale, .. } => Some(scale),
            Format::Float(_) => None,
        };
        let tensors = [Some(&head.weight), scale, head.bias.as_ref()];
        for tensor in tensors.into_iter().flatten() {
            let bytes = tensor.bytes();
            let row_bytes = bytes.len() / tensor.info.shape.first().copied().unwrap_or(1).max(1);
            for row in (0..ROWS).map(|i| i * (vocab_size - 1) / (ROWS - 1)) {
                let own = row * row_bytes..(row + 1) * row_bytes;
                digest.bytes(&bytes[own.clone()]);
                // Reading a page may bring as much along as the system's largest page: of 64 rows more than a
                // shard has.
                let first = tensor.info.bytes.start;
                let around = (first + own.start).saturating_sub(HUGE_PAGE)..first + own.end + HUGE_PAGE;
                forget(tensor.file.map(), around);
            }
        }
        digest.finish()
    }

    /// The shard of this rank of `group`. Without `options.quantization`, `config.quantization` is made so.
    ///
    /// # Errors
    /// As [`Checkpoint::shard`]; `Tensor` where `config.hidden_size` is not the weight's; `Config` where options and
    /// `config` name different quantisations.
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
        let options = LoadOptions { quantization: Some(asked), ..*options };
        self.shard(group.shard(config.vocab_size, group.me()), config.vocab_size, &options)
    }

    fn check_hidden(&self, hidden_size: usize) -> Result<()> {
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

/// The module that the head is read from: `lm_head`, or the embedding.
fn choose_module(tensors: &mut Tensors, tied: Option<bool>, warnings: &mut Vec<String>) -> Result<String> {
    let absent = |tensors: &Tensors, wanted: &str, fix: &str| {
        let listed = super::safetensors_file::listed(tensors.names());
        Error::tensor(tensors.place(), format!("{HEAD}.weight"), wanted, listed, fix)
    };
    if tied == Some(true) {
        let embedding = stored::find_module(tensors, EMBEDDING_EXACT, EMBEDDING)?;
        // Several heads do not matter beside an embedding that wins anyway.
        let head = stored::find_module(tensors, HEAD, HEAD);
        return match (embedding, head) {
            (Some(embedding), head) => {
                if let Ok(Some(head)) = head
                    && !same_weights(tensors, &embedding, &head)?
                {
                    warnings.push(format!(
                        "{}: tie_word_embeddings is true, but {head}.weight is stored and differs from {embedding}.weight; \
                         the embedding is used",
                        tensors.place().display()
                    ));
                }
                Ok(embedding)
            }
            (None, Ok(Some(head))) => {
                warnings.push(format!(
                    "{}: tie_word_embeddings is true, but no {EMBEDDING}.weight is stored; {head}.weight is used",
                    tensors.place().display()
                ));
                Ok(head)
            }
            (None, Err(error)) => Err(error),
            (None, Ok(None)) => {
                let wanted = "the embedding (tie_word_embeddings is true) or a head";
                Err(absent(tensors, wanted, "pass a folder whose files hold the model's embedding"))
            }
        };
    }
    if let Some(head) = stored::find_module(tensors, HEAD, HEAD)? {
        return Ok(head);
    }
    if tied == Some(false) {
        let fix = "the file is of a model without its head, or set tie_word_embeddings = true";
        return Err(absent(tensors, "a head, as tie_word_embeddings is false", fix));
    }
    let embedding = stored::find_module(tensors, EMBEDDING_EXACT, EMBEDDING)?;
    embedding.ok_or_else(|| {
        let fix = "pass the file that holds the head, with its tensor's name";
        absent(tensors, "a head, or an embedding to use as one", fix)
    })
}

/// The bias of a head: beside it, or, for an embedding that serves as head, `lm_head.bias` or the only tensor that ends so.
fn find_bias(tensors: &Tensors, module: &str) -> Option<String> {
    let own = format!("{module}.bias");
    let exact = format!("{HEAD}.bias");
    let is_embedding = module.rsplit('.').next() == Some(EMBEDDING);
    if !is_embedding || tensors.contains(&own) {
        return tensors.contains(&own).then_some(own);
    }
    if tensors.contains(&exact) {
        return Some(exact);
    }
    let ending = format!(".{exact}");
    let mut others = tensors.names().filter(|name| name.ends_with(&ending));
    match (others.next(), others.next()) {
        (Some(only), None) => Some(only.to_string()),
        _ => None,
    }
}

/// Whether two modules store the same tensors, byte for byte.
fn same_weights(tensors: &mut Tensors, a: &str, b: &str) -> Result<bool> {
    for form in ["weight", "weight_packed", "weight_scale"] {
        let a = tensors.get_if_stored(&format!("{a}.{form}"))?;
        let b = tensors.get_if_stored(&format!("{b}.{form}"))?;
        match (a, b) {
            (None, None) => {}
            (Some(a), Some(b)) if same_bytes(&a, &b)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn same_bytes(a: &Tensor, b: &Tensor) -> Result<bool> {
    const CHUNK: usize = 4 << 20;
    if a.info.dtype != b.info.dtype || a.info.shape != b.info.shape {
        return Ok(false);
    }
    let (a, b) = (a.bytes().par_chunks(CHUNK), b.bytes().par_chunks(CHUNK));
    process::on_live_threads(|| a.zip(b).all(|(a, b)| a == b))
}
