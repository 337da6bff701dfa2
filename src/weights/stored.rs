//! Recognises how a head is stored: which tensors belong to it, in which of the formats that this crate reads.
//! Formats that it does not read are refused by their names.

use super::folder::Tensors;
use super::safetensors_file::{Tensor, float_dtype, integers};
use crate::dtype::DType;
use crate::error::{Error, Result};
use safetensors::Dtype;
use std::path::Path;

/// A head as it lies in its files.
#[derive(Debug)]
pub(super) struct StoredHead {
    /// f32, f16, bf16 or i8 `[rows, hidden]`; or i32 `[rows, ceil(hidden / 4)]` where packed.
    pub weight: Tensor,
    pub format: Format,
    /// Vocabulary rows, padding of the checkpoint included.
    pub rows: usize,
    pub hidden: usize,
    /// f32, f16 or bf16 `[at least the vocabulary]`.
    pub bias: Option<Tensor>,
}

#[derive(Debug)]
pub(super) enum Format {
    Float(DType),
    /// One symmetric scale per vocabulary row: f32, f16 or bf16 `[rows]` or `[rows, 1]`.
    /// `packed`: four weights to an i32, the first in its lowest byte, each stored as `weight + 128`.
    Int8 {
        scale: Tensor,
        packed: bool,
    },
}

impl Format {
    pub fn dtype(&self) -> DType {
        match self {
            Format::Float(dtype) => *dtype,
            Format::Int8 { .. } => DType::I8,
        }
    }
}

/// The ways a module's weight can be stored, as the tensor's name ends.
const WEIGHT_FORMS: [&str; 4] = ["weight", "weight_packed", "qweight", "W_q"];

/// Tensors of a head's module that this crate reads. Any other may change the logits and is refused by name.
const READ: [&str; 5] = ["weight", "weight_packed", "weight_scale", "weight_shape", "bias"];

/// The module (`lm_head`, `model.language_model.embed_tokens`) that is stored under one of `names`: the first
/// of them that is there. A name with a dot in front (`.lm_head`) is meant whole, or as the end of only one
/// other. `None` where there is none.
///
/// # Errors
/// `Tensor` listing them where a name is the end of several, or where `only_one` and several names are there.
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

/// Refuses tensors under `module` that this crate does not read: each may change the logits (the matrices of
/// LoRA, a norm of the weights, a scale of the hidden states).
///
/// # Errors
/// `Tensor` naming the first.
pub(super) fn refuse_unread(tensors: &Tensors, module: &str) -> Result<()> {
    let beside = |name: &&str| {
        let rest = name.strip_prefix(module).and_then(|rest| rest.strip_prefix('.'));
        rest.is_some_and(|rest| !READ.contains(&rest))
    };
    match tensors.names().find(beside) {
        None => Ok(()),
        Some(name) => Err(unread(tensors.place(), name, &format!("only {module}.{{{}}}", READ.join(", ")))),
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

/// Whether PEFT gave a tensor its name.
pub(super) fn is_peft(name: &str) -> bool {
    ["lora_", ".base_layer.", "modules_to_save.", "original_module.", "base_model.model."]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether the rest of a name, behind its module, is of PEFT.
pub(super) fn is_peft_part(rest: &str) -> bool {
    is_peft(&format!(".{rest}"))
}

/// What to do with weights that PEFT has not merged.
pub(super) const MERGE: &str = "merge the LoRA adapter first: peft.AutoPeftModelForCausalLM.from_pretrained(DIR)\
                                .merge_and_unload().save_pretrained(NEW)";

/// Reads the shapes and types of the head whose weight is (or would be, unpacked) the tensor `name`.
/// `bias`: the name of its bias, used where stored.
///
/// # Errors
/// `Tensor` where it is absent, has a shape or type that no head has, or is in a format that this crate does not read.
pub(super) fn recognise(tensors: &mut Tensors, name: &str, bias: Option<&str>) -> Result<StoredHead> {
    refuse_foreign(tensors, name)?;
    if let Some(module) = name.strip_suffix(".weight") {
        refuse_unread(tensors, module)?;
    }
    let packed_name = format!("{name}_packed");
    let packed = match (tensors.contains(name), tensors.contains(&packed_name)) {
        (true, true) => {
            let wanted = format!("either it or {packed_name}");
            return Err(Error::tensor(tensors.place(), name, wanted, "both", "remove the one that is stale"));
        }
        (_, packed) => packed,
    };
    let weight = tensors.get(if packed { &packed_name } else { name })?;
    let &[rows, columns] = weight.info.shape.as_slice() else {
        let fix = "name the head's weight matrix";
        return Err(weight.error("[vocabulary, hidden size]", &weight.info, fix));
    };
    if rows == 0 || columns == 0 {
        let fix = "the checkpoint holds no weights: export it again";
        return Err(weight.error("at least one row and one column", &weight.info, fix));
    }
    let (format, hidden) = if packed {
        let hidden = packed_columns(tensors, name, &weight)?;
        (Format::Int8 { scale: scale(tensors, name, rows)?, packed: true }, hidden)
    } else if weight.info.dtype == Dtype::I8 {
        (Format::Int8 { scale: scale(tensors, name, rows)?, packed: false }, columns)
    } else {
        (Format::Float(float_weight(&weight)?), columns)
    };
    let bias = match bias {
        Some(bias) => tensors.get_if_stored(bias)?,
        None => None,
    };
    if let Some(bias) = &bias {
        let fix = "store the bias as one float per vocabulary row";
        match bias.info.shape.as_slice() {
            [_] if float_dtype(bias.info.dtype).is_some() => {}
            _ => return Err(bias.error(format!("f32, f16 or bf16 [{rows}]"), &bias.info, fix)),
        }
    }
    Ok(StoredHead { weight, format, rows, hidden, bias })
}

fn float_weight(weight: &Tensor) -> Result<DType> {
    float_dtype(weight.info.dtype).ok_or_else(|| {
        let fp8 = format!("{:?}", weight.info.dtype).starts_with("F8");
        let fix = match weight.info.dtype {
            _ if fp8 => "FP8 heads are not supported: convert the head to bf16, or quantise it to int8",
            Dtype::U8 => "4-bit heads (bitsandbytes, GGUF-like) are not supported: convert the head to bf16",
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
        let fix = "only 8-bit packed heads are supported: quantise the head to int8, or leave it unquantised";
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
        // Fewer words than 8-bit weights need: the same tensors with 2 to 7 bits a weight.
        (Ok(r), Ok(columns)) if r == rows && columns.div_ceil(4) > words => Err(weight.error(
            format!("[{rows}, {}], 8 bits for each of {columns} weights", columns.div_ceil(4)),
            &weight.info,
            "only 8-bit packed heads are supported: quantise the head to 8 bits, or leave it unquantised",
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

/// Tensors beside the weight that belong to formats this crate does not read: what follows the weight's
/// module, or the weight itself, and what it says.
fn refuse_foreign(tensors: &Tensors, name: &str) -> Result<()> {
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
        if tensors.contains(&tensor) {
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
        "a head of f32, f16, bf16, or int8 with one symmetric scale per vocabulary row",
        format!("a tensor of {what}, which is not supported"),
        "leave the head unquantised, or quantise it to int8 per channel, symmetric, with dynamic activations",
    )
}
