//! Recognises how a head is stored: in which format, and which tensors belong to it. Formats that this crate
//! does not read are refused by name.

mod fp8;
pub(super) mod gguf;
mod gptq;
mod nvfp4;
mod packed;

use super::folder::Tensors;
use super::safetensors_file::{Tensor, float_dtype, integers};
use super::widened::Widened;
use crate::dtype::DType;
use crate::error::{Error, Result};
use safetensors::Dtype;
use serde_json::Value;
use std::path::Path;

/// A head as it is stored in its files.
#[derive(Debug)]
pub(super) struct StoredHead {
    /// The weight, in the form of its format.
    pub weight: Tensor,
    /// All other tensors of the module that are read, except the bias.
    pub beside: Vec<Tensor>,
    pub format: Format,
    /// Vocabulary rows, padding of the checkpoint included.
    pub rows: usize,
    pub hidden: usize,
    /// f32, f16 or bf16 `[at least the vocabulary]`.
    pub bias: Option<Tensor>,
}

impl StoredHead {
    /// All tensors that the head is read from.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.beside).chain(&self.bias)
    }
}

#[derive(Debug)]
pub(super) enum Format {
    /// f32, f16 or bf16 `[rows, hidden]`.
    Float(DType),
    /// i8 `[rows, hidden]`, or i32 `[rows, ceil(hidden / 4)]` where packed; one symmetric scale per
    /// vocabulary row: f32, f16 or bf16 `[rows]` or `[rows, 1]`. `packed`: four weights to an i32, the first
    /// in its lowest byte, each stored as `weight + 128`.
    Int8 { scale: Tensor, packed: bool },
    /// FP8 E4M3 `[rows, hidden]`, and a scale for each row or one for all.
    E4m3 { scale: Tensor, per_row: bool },
    /// A format that no matmul reads as it is: widened at load.
    Widened(Box<dyn Widened>),
}

impl Format {
    pub fn dtype(&self) -> DType {
        match self {
            Format::Float(dtype) => *dtype,
            Format::Int8 { .. } => DType::I8,
            Format::E4m3 { .. } => DType::E4m3,
            Format::Widened(_) => DType::Bf16,
        }
    }

    /// The format in words, where its type does not say it all.
    pub fn name(&self) -> Option<String> {
        match self {
            Format::Float(_) | Format::Int8 { .. } => None,
            Format::E4m3 { per_row: true, .. } => Some("FP8 E4M3 with a scale per row".into()),
            Format::E4m3 { per_row: false, .. } => Some("FP8 E4M3 with one scale".into()),
            Format::Widened(head) => Some(head.name()),
        }
    }
}

/// The formats of the modules above. Each looks for its own tensors and ignores others.
const FORMATS: [Recognise; 5] =
    [gguf::recognise, gptq::recognise, nvfp4::recognise, packed::recognise, fp8::recognise];
type Recognise = fn(&mut Tensors, &Named<'_>) -> Result<Option<Found>>;

/// The names under which a head is looked for.
struct Named<'a> {
    /// The name that the tensor of its weight would have if it were stored unquantised.
    pub name: &'a str,
    /// `name` without `.weight`.
    pub module: &'a str,
    /// `quantization_config` of `config.json`.
    pub config: Option<&'a Value>,
}

impl Named<'_> {
    /// A text value of `quantization_config`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.config?.get(key)?.as_str()
    }

    /// Rows and columns of a block of weights, from `weight_block_size`.
    pub fn block_size(&self) -> Option<[usize; 2]> {
        let sizes = self.config?.get("weight_block_size")?.as_array()?;
        let size = |i: usize| usize::try_from(sizes.get(i)?.as_u64()?).ok().filter(|n| *n > 0);
        Some([size(0)?, size(1)?])
    }
}

/// A head that was recognised as one of the formats.
struct Found {
    pub weight: Tensor,
    /// The other tensors that the head is read from.
    pub beside: Vec<Tensor>,
    pub format: Format,
    pub rows: usize,
    pub hidden: usize,
}

/// How the name of the tensor ends that holds a module's weight, in all forms.
const WEIGHT_FORMS: [&str; 4] = ["weight", "weight_packed", "qweight", "W_q"];

/// The module (`lm_head`, `model.language_model.embed_tokens`) that is stored under the first of `names` that
/// is present. A name with a dot in front (`.lm_head`) matches that name without the dot, or else the only
/// module whose name ends in it. `None` where no name matches.
///
/// # Errors
/// `Tensor` listing the modules, where a name matches the ends of several, or where `only_one` is set and
/// several names match.
pub(super) fn find_module(tensors: &Tensors, names: &[&str], only_one: bool) -> Result<Option<String>> {
    let mut modules: Vec<&str> = tensors
        .names()
        .filter_map(|name| name.rsplit_once('.'))
        .filter(|(_, form)| WEIGHT_FORMS.contains(form))
        .map(|(module, _)| module)
        .collect();
    modules.dedup(); // the names are sorted
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        let whole = name.strip_prefix('.').unwrap_or(name);
        let here = match modules.contains(&whole) {
            true => vec![whole],
            false if name.starts_with('.') => modules.iter().copied().filter(|m| m.ends_with(name)).collect(),
            false => Vec::new(),
        };
        if here.len() > 1 {
            return Err(ambiguous(
                tensors,
                whole,
                format!("it, or only one tensor whose name ends in {name}.weight"),
                &here,
            ));
        }
        found.extend(here);
        if !found.is_empty() && !only_one {
            break;
        }
    }
    found.dedup();
    match found.as_slice() {
        [first, _, ..] => {
            let wanted = "only one of the names of a head, as config.json names no model_type that is known";
            Err(ambiguous(tensors, first, wanted.into(), &found))
        }
        several => Ok(several.first().map(|module| module.to_string())),
    }
}

fn ambiguous(tensors: &Tensors, module: &str, wanted: String, found: &[&str]) -> Error {
    let got: Vec<String> = found.iter().map(|m| format!("{m}.weight")).collect();
    let fix = "name the right one with --tensor (Checkpoint::open_tensor)";
    Error::tensor(tensors.place(), format!("{module}.weight"), wanted, got.join(", "), fix)
}

/// Refuses tensors under `module` that are not in `read`: each may change the logits (LoRA matrices, a norm
/// of the weights, a scale of the hidden states).
///
/// # Errors
/// `Tensor` naming the first.
fn refuse_unread(tensors: &Tensors, module: &str, read: &[&str]) -> Result<()> {
    let of_module = |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
    match tensors.names().find(|name| of_module(name) && !read.contains(name)) {
        None => Ok(()),
        Some(name) => Err(unread(tensors.place(), name, &format!("only {}", read.join(", ")))),
    }
}

/// The error for a tensor that would change the logits and is not read.
pub(super) fn unread(path: &Path, name: &str, wanted: &str) -> Error {
    let fix = match is_peft(name) {
        true => MERGE,
        false => {
            "fold it into the weight and export again; if it does not change logits, remove it from the file"
        }
    };
    let what = if is_peft(name) {
        "a LoRA tensor beside it, which is not read"
    } else {
        "a tensor that is not read"
    };
    Error::tensor(path, name, wanted, what, fix)
}

/// Whether this is a name that PEFT gives to tensors.
pub(super) fn is_peft(name: &str) -> bool {
    ["lora_", ".base_layer.", "modules_to_save.", "original_module.", "base_model.model."]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether the rest of a name, behind its module, is one that PEFT gives.
pub(super) fn is_peft_part(rest: &str) -> bool {
    is_peft(&format!(".{rest}"))
}

/// The advice for weights with an unmerged LoRA adapter.
pub(super) const MERGE: &str = "merge the LoRA adapter first: peft.AutoPeftModelForCausalLM.from_pretrained(DIR)\
                                .merge_and_unload().save_pretrained(NEW)";

/// Recognises the head whose weight is, or would be if unquantised, the tensor `name`; checks the shapes and
/// types of its tensors. `bias` is the name of its bias, used where stored; `config` is `quantization_config`
/// of `config.json`.
///
/// # Errors
/// `Tensor` where it is absent, has a shape or type that no head has, or is in a format that this crate does
/// not read.
pub(super) fn recognise(
    tensors: &mut Tensors,
    name: &str,
    bias: Option<&str>,
    config: Option<&Value>,
) -> Result<StoredHead> {
    let module = name.strip_suffix(".weight");
    let head = Named { name, module: module.unwrap_or(name), config };
    let packed_name = format!("{name}_packed");
    if tensors.contains(name) && tensors.contains(&packed_name) {
        let wanted = format!("either it or {packed_name}");
        return Err(Error::tensor(tensors.place(), name, wanted, "both", "remove the one that is stale"));
    }
    let mut found = None;
    for recognise in FORMATS {
        found = recognise(tensors, &head)?;
        if found.is_some() {
            break;
        }
    }
    if found.is_none() {
        refuse_foreign(tensors, name, &[])?;
    }
    let mut found = match found {
        Some(found) => found,
        None => float_or_int8(tensors, name)?,
    };
    let zeros = zero_points_of_zero(tensors, name)?;
    let known = |zeros: &Tensor| found.beside.iter().any(|tensor| tensor.name == zeros.name);
    let zeros = zeros.filter(|zeros| !known(zeros));
    found.beside.extend(zeros);
    let bias = match bias {
        Some(bias) => tensors.get_if_stored(bias)?,
        None => None,
    };
    let mut read: Vec<&str> =
        [&found.weight].into_iter().chain(&found.beside).map(|t| t.name.as_str()).collect();
    refuse_foreign(tensors, name, &read)?;
    if let Some(module) = module {
        let own_bias = format!("{module}.bias");
        read.push(&own_bias);
        refuse_unread(tensors, module, &read)?;
    }
    if let Some(bias) = &bias {
        let fix = "store the bias as one float per vocabulary row";
        match bias.info.shape.as_slice() {
            [_] if float_dtype(bias.info.dtype).is_some() => {}
            _ => return Err(bias.error(format!("f32, f16 or bf16 [{}]", found.rows), &bias.info, fix)),
        }
    }
    let Found { weight, beside, format, rows, hidden } = found;
    Ok(StoredHead { weight, beside, format, rows, hidden, bias })
}

/// A head of floats, or of int8 with a scale per row.
fn float_or_int8(tensors: &mut Tensors, name: &str) -> Result<Found> {
    let packed_name = format!("{name}_packed");
    let packed = tensors.contains(&packed_name);
    let weight = tensors.get(if packed { &packed_name } else { name })?;
    let &[rows, columns] = weight.info.shape.as_slice() else {
        let fix = "name the head's weight matrix";
        return Err(weight.error("[vocabulary, hidden size]", &weight.info, fix));
    };
    if rows == 0 || columns == 0 {
        let fix = "the checkpoint holds no weights: export it again";
        return Err(weight.error("at least one row and one column", &weight.info, fix));
    }
    if !packed && weight.info.dtype != Dtype::I8 {
        let format = Format::Float(float_weight(&weight)?);
        return Ok(Found { weight, beside: Vec::new(), format, rows, hidden: columns });
    }
    let mut beside = Vec::new();
    let hidden = match packed {
        true => packed_columns(tensors, name, &weight)?,
        false => columns,
    };
    let scale = scale(tensors, name, rows)?;
    beside.push(scale.clone());
    beside.extend(tensors.get_if_stored(&format!("{name}_shape"))?.filter(|_| packed));
    Ok(Found { weight, beside, format: Format::Int8 { scale, packed }, rows, hidden })
}

/// The tensor of zero points beside the weights, if all of them are 0.
fn zero_points_of_zero(tensors: &mut Tensors, name: &str) -> Result<Option<Tensor>> {
    let stored = tensors.get_if_stored(&format!("{name}_zero_point"))?;
    Ok(stored.filter(|zeros| zeros.bytes().iter().all(|byte| *byte == 0)))
}

fn float_weight(weight: &Tensor) -> Result<DType> {
    float_dtype(weight.info.dtype).ok_or_else(|| {
        let fp8 = format!("{:?}", weight.info.dtype).starts_with("F8");
        let fix = match weight.info.dtype {
            _ if fp8 => {
                "of FP8 only E4M3 is read: convert the head to that or to bf16, or quantise it to int8"
            }
            Dtype::U8 => {
                "without NVFP4's scales such 4-bit heads are not supported: convert the head to bf16"
            }
            _ => "convert the head to bf16, f16 or f32",
        };
        weight.error("f32, f16, bf16 or int8 weights", &weight.info, fix)
    })
}

/// The scale tensor of an int8 weight, its shape checked.
fn scale(tensors: &mut Tensors, name: &str, rows: usize) -> Result<Tensor> {
    let scale_name = format!("{name}_scale");
    let wanted = format!("f32, f16 or bf16 [{rows}] or [{rows}, 1], one symmetric scale per vocabulary row");
    if !tensors.contains(&scale_name) {
        let got = "an int8 weight without it";
        let fix = "export the checkpoint with its scales";
        return Err(Error::tensor(tensors.place(), scale_name, wanted, got, fix));
    }
    let scale = tensors.get(&scale_name)?;
    let per_row = match scale.info.shape.as_slice() {
        &[n] | &[n, 1] => n == rows,
        _ => false,
    };
    if per_row && float_dtype(scale.info.dtype).is_some() {
        return Ok(scale);
    }
    let fix = match scale.info.shape.as_slice() {
        _ if per_row => "store the scales as floats",
        &[n, groups] if n == rows && groups > 1 => {
            "grouped scales are not supported: quantise the head per channel (per vocabulary row)"
        }
        &[_, columns] if columns > 1 => {
            "block scales are not supported: quantise the head per channel (per vocabulary row)"
        }
        [] | [1] => "per-tensor scales are not supported: quantise the head per channel (per vocabulary row)",
        _ => "the scales must have the weight's rows: export the checkpoint again",
    };
    Err(scale.error(wanted, &scale.info, fix))
}

/// Hidden size of a packed weight, from `NAME_shape`, checked against the packed tensor.
fn packed_columns(tensors: &mut Tensors, name: &str, weight: &Tensor) -> Result<usize> {
    let (rows, words) = (weight.info.shape[0], weight.info.shape[1]);
    if weight.info.dtype != Dtype::I32 {
        let fix =
            "only 4- and 8-bit packed heads are supported: quantise the head so, or leave it unquantised";
        return Err(weight.error("i32 words of four weights", &weight.info, fix));
    }
    let shape = tensors.get(&format!("{name}_shape"))?;
    let fix = "export the checkpoint again";
    let values = integers(shape.info.dtype, shape.bytes()).filter(|_| shape.info.shape == [2]);
    let Some(values) = values else {
        return Err(shape.error("i64 or i32 [2]", &shape.info, fix));
    };
    let sizes = (usize::try_from(values[0]), usize::try_from(values[1]));
    match sizes {
        (Ok(r), Ok(columns)) if r == rows && columns > 0 && columns.div_ceil(4) == words => Ok(columns),
        // Fewer words than 8-bit weights need: tensors of the same names with 2 to 7 bits a weight.
        (Ok(r), Ok(columns)) if r == rows && columns.div_ceil(4) > words => Err(weight.error(
            format!("[{rows}, {}], 8 bits for each of {columns} weights", columns.div_ceil(4)),
            &weight.info,
            "only 4- and 8-bit packed heads are supported: quantise the head so, or leave it unquantised",
        )),
        _ => {
            let wanted = format!(
                "[{rows}, {} to {}] of {}",
                words.saturating_mul(4).saturating_sub(3),
                words.saturating_mul(4),
                weight.name
            );
            Err(shape.error(wanted, format!("{values:?}"), fix))
        }
    }
}

/// Refuses tensors beside the weight that belong to formats which this crate does not read, unless they are
/// in `read`. The tables have the ends of their names, behind the weight's name or its module's, and what
/// they stand for.
fn refuse_foreign(tensors: &mut Tensors, name: &str, read: &[&str]) -> Result<()> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let after_weight = [
        ("_zero_point", ZERO_POINTS),
        ("_offset", ZERO_POINTS),
        ("_g_idx", "activation-ordered groups"),
        ("_scale_inv", "block-scaled FP8"),
        ("_global_scale", "two-level (NVFP4) scales"),
        ("_scale_2", "two-level (NVFP4) scales"),
        (".absmax", "a bitsandbytes 4-bit head"),
        (".quant_map", "a bitsandbytes 4-bit head"),
        (".quant_state.bitsandbytes__nf4", "a bitsandbytes 4-bit head"),
        (".quant_state.bitsandbytes__fp4", "a bitsandbytes 4-bit head"),
    ];
    let after_module = [
        ("qweight", "a GPTQ or AWQ head"),
        ("qzeros", "a GPTQ or AWQ head"),
        ("g_idx", "a GPTQ head"),
        ("SCB", "a bitsandbytes 8-bit head"),
        ("weight_format", "a bitsandbytes 8-bit head"),
        ("W_q", "an HQQ head"),
        ("input_scale", STATIC),
        ("input_zero_point", STATIC),
        ("input_offset", STATIC),
        ("input_global_scale", STATIC),
    ];
    let suspects = after_weight
        .map(|(end, what)| (format!("{name}{end}"), what))
        .into_iter()
        .chain(after_module.map(|(end, what)| (format!("{module}.{end}"), what)));
    for (tensor, what) in suspects {
        let zeros =
            what == ZERO_POINTS && zero_points_of_zero(tensors, name)?.is_some_and(|t| t.name == tensor);
        if tensors.contains(&tensor) && !read.contains(&tensor.as_str()) && !zeros {
            return Err(foreign(tensors.place(), tensor, what));
        }
    }
    Ok(())
}

const ZERO_POINTS: &str = "zero points (asymmetric quantisation)";
const STATIC: &str = "static activation quantisation";

fn foreign(path: &Path, tensor: String, what: &str) -> Error {
    Error::tensor(
        path,
        tensor,
        "a head in one of the formats of docs/formats.md, and no more than its tensors",
        format!("a tensor of {what}, which is not supported"),
        "leave the head unquantised, or quantise it to int8 per channel, symmetric, with dynamic activations",
    )
}
