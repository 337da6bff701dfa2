//! GGUF files (llama.cpp): the header, what it says about the logits, and heads in Q8_0 and Q6_K. Heads in
//! F32, F16 and BF16 are read as they are. The layout is that of `ggml/docs/gguf.md`, little-endian, versions
//! 2 and 3; the blocks are `block_q8_0` and `block_q6_K` of `ggml/src/ggml-common.h`.

use super::{Format, Found, Named};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::weights::folder::Tensors;
use crate::weights::safetensors_file::{Header, SafetensorsFile, Tensor, TensorInfo};
use crate::weights::widened::{Widened, matrix, read};
use half::f16;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub(in crate::weights) const MAGIC: &[u8] = b"GGUF";
/// The head, and the embedding that serves where there is none.
pub(in crate::weights) const HEADS: [&str; 2] = ["output.weight", "token_embd.weight"];

const CUT: &str = "the file is damaged or its download was cut off: fetch it again";
/// Alignment of tensors in bytes, where the file does not give one.
const ALIGNMENT: usize = 32;

/// A ggml type that packs weights in blocks.
#[derive(Debug)]
struct Block {
    name: &'static str,
    elements: usize,
    bytes: usize,
    widen: fn(&[u8], &mut [f32]),
}

const Q8_0: Block = Block { name: "Q8_0", elements: 32, bytes: 34, widen: widen_q8_0 };
const Q6_K: Block = Block { name: "Q6_K", elements: 256, bytes: 210, widen: widen_q6_k };

/// How this crate treats a ggml type.
enum GgmlType {
    /// A type that safetensors has, too.
    Plain(Dtype),
    Block(&'static Block),
    /// Not supported; known by name only.
    Other(&'static str),
}

fn kind(number: u32) -> Option<GgmlType> {
    Some(match number {
        0 => GgmlType::Plain(Dtype::F32),
        1 => GgmlType::Plain(Dtype::F16),
        8 => GgmlType::Block(&Q8_0),
        14 => GgmlType::Block(&Q6_K),
        24 => GgmlType::Plain(Dtype::I8),
        25 => GgmlType::Plain(Dtype::I16),
        26 => GgmlType::Plain(Dtype::I32),
        27 => GgmlType::Plain(Dtype::I64),
        28 => GgmlType::Plain(Dtype::F64),
        30 => GgmlType::Plain(Dtype::BF16),
        other => {
            let names = [
                "", "", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
                "Q5_K", "", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
                "IQ4_XS", "", "", "", "", "", "IQ1_M", "", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4",
            ];
            return names
                .get(other as usize)
                .filter(|name| !name.is_empty())
                .map(|name| GgmlType::Other(name));
        }
    })
}

/// Type and shape of a tensor whose type safetensors does not have.
#[derive(Debug, Clone)]
struct GgmlTensor {
    number: u32,
    /// The dimensions, rows first.
    shape: Vec<usize>,
}

/// What a GGUF file's header says, beside the tensors that safetensors has types for.
#[derive(Debug, Clone, Default)]
pub(in crate::weights) struct About {
    /// The header's key-value pairs.
    settings: BTreeMap<String, Setting>,
    types: BTreeMap<String, GgmlTensor>,
}

#[derive(Debug, Clone, PartialEq)]
enum Setting {
    Number(f64),
    Text(String),
    /// An array or a boolean.
    Other,
}

impl About {
    /// The type of a tensor that safetensors has no name for.
    fn ggml(&self, name: &str) -> Option<&GgmlTensor> {
        self.types.get(name)
    }

    /// The number of files that the model was split into.
    pub fn parts(&self) -> u64 {
        match self.settings.get("split.count") {
            Some(Setting::Number(parts)) => *parts as u64,
            _ => 1,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.settings.get(key) {
            Some(Setting::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// What scales and caps the logits, as in llama.cpp's graph of the architecture.
    ///
    /// # Errors
    /// `Config` for a value that is not a number. A key that seems to change logits and is not understood
    /// sets `ModelConfig`'s refusal.
    pub fn model(&self, path: &Path) -> Result<ModelConfig> {
        let architecture = self.text("general.architecture").unwrap_or_default();
        let name = |key: &str| format!("{}: {key}", path.display());
        let mut model = ModelConfig { model_type: Some(architecture.into()), ..ModelConfig::default() };
        if matches!(architecture, "gemma2" | "gemma3n") {
            // The graph of these always caps; the file may give another cap below.
            model.final_logit_softcapping = Some(30.0);
        }
        let says_scale = self.settings.contains_key(&format!("{architecture}.logit_scale"));
        if architecture == "minicpm3" || (matches!(architecture, "minicpm" | "grok") && !says_scale) {
            // Their graphs scale by numbers that are not in the file.
            let (wanted, got) = ("a logit scale that the file names", format!("none of {architecture}"));
            let fix = "set logit_scale in lmhead's own configuration";
            model.refusal = Some(Error::config(name("logit_scale"), wanted, got, fix));
        }
        for (key, value) in &self.settings {
            let Some(own) = key.strip_prefix(architecture).and_then(|key| key.strip_prefix('.')) else {
                continue;
            };
            if !["logit", "lm_head", "output_mult", "softcap"].iter().any(|part| own.contains(part))
                || own.starts_with("attn")
                || own.starts_with("attention")
                || own.starts_with("router")
            {
                continue;
            }
            let fix = "convert the model again";
            let number = match value {
                Setting::Number(number) => *number as f32,
                other => return Err(Error::config(name(key), "a number", format!("{other:?}"), fix)),
            };
            let usable = number.is_finite() && number != 0.0;
            match (own, architecture) {
                ("logit_scale", "command-r" | "cohere2") if usable => model.logit_scale = Some(number),
                ("logit_scale", "granite" | "granitemoe" | "granitehybrid") if usable => {
                    model.logit_scale = Some(1.0 / number);
                }
                ("final_logit_softcapping", _)
                    if architecture.starts_with("gemma") && usable && number > 0.0 =>
                {
                    model.final_logit_softcapping = Some(number);
                }
                // For llama.cpp 0 means "none".
                (_, _) if number == 0.0 || (own == "logit_scale" && number == 1.0) => {}
                _ => {
                    let wanted = "a key whose meaning for this architecture is known";
                    let fix = "say what it does in lmhead's own configuration: logit_scale, \
                               final_logit_softcapping";
                    model.refusal.get_or_insert(Error::config(name(key), wanted, number, fix));
                }
            }
        }
        Ok(model)
    }
}

/// Whether a file begins with GGUF's magic bytes.
pub(in crate::weights) fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    // Opening a named pipe would wait for its writer.
    let regular = std::fs::metadata(path).is_ok_and(|about| about.is_file());
    let file = regular.then(|| std::fs::File::open(path)).and_then(std::result::Result::ok);
    file.is_some_and(|mut file| std::io::Read::read_exact(&mut file, &mut start).is_ok()) && start == *MAGIC
}

impl SafetensorsFile {
    /// Maps a GGUF file and reads its header.
    ///
    /// # Errors
    /// `File` for one that cannot be read, is damaged, cut off or of another version; `Tensor` naming a
    /// tensor that extends beyond the file.
    pub(in crate::weights) fn open_gguf(path: &Path) -> Result<Self> {
        Self::open_as(path, read_header)
    }
}

/// Reads the header's bytes in order.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(n).ok().filter(|n| *n <= rest.len()) {
            Some(n) => {
                self.at += n;
                Ok(&rest[..n])
            }
            None => {
                let problem = format!(
                    "not a whole GGUF file: wanted {n} bytes of {what} at byte {}, got {}",
                    self.at,
                    rest.len()
                );
                Err(Error::file(self.path, problem, CUT))
            }
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }

    /// Reads a value of type `kind`; numbers and text are kept, others skipped.
    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Setting> {
        let what = format!("the value of {key}");
        if let Some(size) = size_of_value(kind) {
            let b = self.take(size, &what)?;
            let array = |n: usize| -> [u8; 8] { std::array::from_fn(|i| if i < n { b[i] } else { 0 }) };
            let wide = u64::from_le_bytes(array(b.len()));
            return Ok(match kind {
                0 | 2 | 4 | 10 => Setting::Number(wide as f64),
                1 => Setting::Number(f64::from(wide as i8)),
                3 => Setting::Number(f64::from(wide as i16)),
                5 => Setting::Number(f64::from(wide as i32)),
                11 => Setting::Number(wide as i64 as f64),
                6 => Setting::Number(f64::from(f32::from_bits(wide as u32))),
                12 => Setting::Number(f64::from_bits(wide)),
                _ => Setting::Other,
            });
        }
        match kind {
            8 => Ok(Setting::Text(self.text(&what)?)),
            9 if depth < 4 => {
                let (of, count) = (self.u32(&what)?, self.u64(&what)?);
                match size_of_value(of) {
                    Some(size) => {
                        self.take(count.saturating_mul(size), &what)?;
                    }
                    None => {
                        // Each element takes at least its eight bytes of length, so a wrong count ends at the
                        // end of the file.
                        for _ in 0..count {
                            self.value(of, key, depth + 1)?;
                        }
                    }
                }
                Ok(Setting::Other)
            }
            _ => {
                let problem = format!(
                    "not a GGUF file that is understood: wanted a type from 0 to 12 for {key}, got {kind}"
                );
                Err(Error::file(self.path, problem, CUT))
            }
        }
    }
}

/// Bytes of a value of type `kind`; `None` for types of varying size.
fn size_of_value(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn read_header(path: &Path, file: &[u8]) -> Result<Header> {
    let mut at = Cursor { path, bytes: file, at: 0 };
    if at.take(4, "its magic")? != MAGIC {
        return Err(Error::file(
            path,
            "wanted a GGUF file, got another",
            "pass the file that llama.cpp reads",
        ));
    }
    let version = at.u32("its version")?;
    if !(2..=3).contains(&version) {
        let got = if version.swap_bytes() <= 3 {
            format!("{version:#010x}, a big-endian file")
        } else {
            version.to_string()
        };
        let problem = format!("wanted a GGUF file of version 2 or 3, got {got}");
        return Err(Error::file(path, problem, "convert the model again with a current llama.cpp"));
    }
    let (tensor_count, value_count) = (at.u64("the number of tensors")?, at.u64("the number of values")?);
    let (mut about, mut alignment) = (About::default(), ALIGNMENT);
    for _ in 0..value_count {
        let key = at.text("a key")?;
        let kind = at.u32("the type of a value")?;
        let value = at.value(kind, &key, 0)?;
        if key == "general.alignment" {
            alignment = match value {
                Setting::Number(n) if n >= 1.0 && n <= f64::from(1 << 20) => n as usize,
                other => {
                    let problem = format!("wanted a general.alignment from 1 to 2^20, got {other:?}");
                    return Err(Error::file(path, problem, CUT));
                }
            };
        }
        about.settings.insert(key, value);
    }
    let mut found = Vec::new();
    for _ in 0..tensor_count {
        let name = at.text("a tensor's name")?;
        let dimensions = at.u32("the number of a tensor's dimensions")?;
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(at.u64("a tensor's dimensions")?);
        }
        // In the file, columns come first.
        shape.reverse();
        let (number, offset) = (at.u32("a tensor's type")?, at.u64("a tensor's place")?);
        found.push((name, shape, number, offset));
    }
    let start = at.at.next_multiple_of(alignment) as u64;
    let mut tensors = BTreeMap::new();
    for (name, shape, number, offset) in found {
        let wrong = |wanted: String, got: String| Error::tensor(path, &name, wanted, got, CUT);
        let sizes: Option<Vec<usize>> = shape.iter().map(|n| usize::try_from(*n).ok()).collect();
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let (Some(sizes), Some(elements)) = (sizes, elements) else {
            return Err(wrong("elements that can be counted".into(), format!("{shape:?}")));
        };
        let kind = kind(number);
        let columns = shape.last().copied().unwrap_or(1);
        let bytes = match &kind {
            Some(GgmlType::Plain(dtype)) => elements.checked_mul(dtype.bitsize() as u64 / 8),
            Some(GgmlType::Block(block)) if columns.is_multiple_of(block.elements as u64) => {
                (elements / block.elements as u64).checked_mul(block.bytes as u64)
            }
            Some(GgmlType::Block(block)) => {
                let wanted = format!("columns that are a multiple of {} for {}", block.elements, block.name);
                return Err(wrong(wanted, format!("{sizes:?}")));
            }
            // The size of an unsupported type is not known. The tensor is only refused if it is wanted.
            _ => Some(0),
        };
        let from = start.checked_add(offset);
        let end = from.zip(bytes).and_then(|(from, bytes)| from.checked_add(bytes));
        let (Some(from), Some(end)) = (from, end.filter(|end| *end <= file.len() as u64)) else {
            let wanted = match end {
                Some(end) => format!("bytes {} to {end} of the file", from.unwrap_or_default()),
                None => "bytes that can be counted".into(),
            };
            return Err(wrong(wanted, format!("a file of {} bytes", file.len())));
        };
        let range = from as usize..end as usize;
        let (dtype, own) = match kind {
            Some(GgmlType::Plain(dtype)) => (dtype, sizes.clone()),
            _ => (Dtype::U8, vec![range.len()]),
        };
        if dtype == Dtype::U8 {
            about.types.insert(name.clone(), GgmlTensor { number, shape: sizes });
        }
        tensors.insert(name, TensorInfo { dtype, shape: own, bytes: range });
    }
    Ok(Header { tensors, metadata: BTreeMap::new(), gguf: Some(about) })
}

/// Recognises a head in a ggml block type; `None` where the head is in another format.
pub(super) fn recognise(tensors: &mut Tensors, head: &Named<'_>) -> Result<Option<Found>> {
    let Some(weight) = tensors.get_if_stored(head.name)? else { return Ok(None) };
    let Some(ggml) = weight.file.gguf().and_then(|about| about.ggml(head.name)) else { return Ok(None) };
    let name = match kind(ggml.number) {
        Some(GgmlType::Block(block)) => {
            let shaped = TensorInfo { shape: ggml.shape.clone(), ..weight.info.clone() };
            let [rows, hidden] =
                matrix(&Tensor { info: shaped, ..weight.clone() }, "[vocabulary, hidden size]")?;
            let format = Format::Widened(Box::new(Blocks { weight: weight.clone(), block, hidden }));
            return Ok(Some(Found { weight, beside: Vec::new(), format, rows, hidden }));
        }
        Some(GgmlType::Other(name)) => name.to_string(),
        _ => format!("type {} of ggml, which is not known", ggml.number),
    };
    let fix = "keep the head in a type that is read: llama-quantize --output-tensor-type q6_k \
               (--token-embedding-type where the embedding is the head)";
    Err(weight.error("F32, F16, BF16, Q8_0 or Q6_K", name, fix))
}

#[derive(Debug)]
struct Blocks {
    weight: Tensor,
    block: &'static Block,
    hidden: usize,
}

impl Widened for Blocks {
    fn name(&self) -> String {
        format!("GGUF {}", self.block.name)
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()> {
        let row_bytes = self.hidden / self.block.elements * self.block.bytes;
        read(&self.weight, rows.start * row_bytes..rows.end * row_bytes, buffer)?;
        let blocks = buffer.chunks_exact(self.block.bytes);
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.block.elements)) {
            (self.block.widen)(block, out);
        }
        Ok(())
    }
}

fn half_of(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// A block has an f16 scale, then 32 int8.
fn widen_q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_of(block);
    for (out, q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*q as i8) * scale;
    }
}

/// A block has the low four bits of 256 weights, their high two bits, an int8 scale for every 16 weights, and
/// an f16 scale of these scales. Each half of 128 weights has 64 bytes of low bits, whose low nibbles belong
/// to the first 64 weights, and 32 bytes of high bits.
fn widen_q6_k(block: &[u8], out: &mut [f32]) {
    let ((low, rest), scale) = (block.split_at(128), half_of(&block[208..]));
    let (high, scales) = (&rest[..64], &rest[64..80]);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, place) = (i / 128, i % 128 / 32, i % 32);
        let low = low[64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter / 2)) & 15;
        let high = high[32 * half + place] >> (2 * quarter) & 3;
        let q = i32::from(low | high << 4) - 32;
        // ggml multiplies in this order, the scales first.
        *out = scale * f32::from(scales[i / 16] as i8) * q as f32;
    }
}
