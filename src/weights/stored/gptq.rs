//! GPTQ heads, of 4 or 8 bits: `qweight` i32 `[hidden * bits / 32, vocab]`, packed along k, low bits first;
//! `scales` `[groups, vocab]`; `qzeros` i32 `[groups, vocab * bits / 32]`, packed along the vocabulary;
//! `g_idx` i32 `[hidden]`, the group of each column.
//!
//! A weight is `(code - zero point) * scale`. Files of the first format (`"checkpoint_format"` in
//! `config.json` is `"gptq"` or absent) store each zero point minus 1, those of `"gptq_v2"` as it is. The
//! tensors do not show which it is, so a head without its `quantization_config` is refused. Source:
//! `QuantLinear` of AutoGPTQ (`auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`) and
//! `gptqmodel/utils/model.py` (`convert_gptq_v1_to_v2_format`).

use super::packed::{code, groups_of, in_order};
use super::{Format, Found, Named};
use crate::error::Result;
use crate::weights::folder::Tensors;
use crate::weights::safetensors_file::{Tensor, float_dtype};
use crate::weights::widened::{Widened, matrix, missing, read, scales};
use safetensors::Dtype;
use std::ops::Range;

/// Recognises a GPTQ head; `None` where the head is in another format.
pub(super) fn recognise(tensors: &mut Tensors, head: &Named<'_>) -> Result<Option<Found>> {
    let of = |part: &str| format!("{}.{part}", head.module);
    let Some(weight) = tensors.get_if_stored(&of("qweight"))? else { return Ok(None) };
    let [packed, rows] = matrix(&weight, "i32 [hidden size * bits / 32, vocabulary]")?;
    let mut part = |name: &str, wanted: &str| match tensors.get_if_stored(&of(name))? {
        Some(tensor) => Ok(tensor),
        None => Err(missing(&weight, of(name), wanted, "a GPTQ weight")),
    };
    let zeros = part("qzeros", "i32 [groups, vocabulary * bits / 32]")?;
    let scale = part("scales", "float [groups, vocabulary]")?;
    let [groups, scale_rows] = matrix(&scale, "float [groups, vocabulary]")?;
    let [zero_groups, zero_words] = matrix(&zeros, "i32 [groups, vocabulary * bits / 32]")?;
    if rows == zero_words && rows < scale_rows {
        let fix = "AWQ heads are not supported: leave the head unquantised, or export it as GPTQ or \
                   compressed-tensors";
        return Err(weight.error(
            "a GPTQ head, packed along k",
            "an AWQ head, packed along the vocabulary",
            fix,
        ));
    }
    for tensor in [&weight, &zeros] {
        if tensor.info.dtype != Dtype::I32 {
            return Err(tensor.error("i32 words", &tensor.info, "export the checkpoint again"));
        }
    }
    if float_dtype(scale.info.dtype).is_none() || scale_rows != rows {
        let wanted = format!("f16, bf16 or f32 [groups, {rows}]");
        return Err(scale.error(wanted, &scale.info, "export the checkpoint again"));
    }
    let Some(bits) = [4, 8].into_iter().find(|bits| zero_groups == groups && zero_words * 32 == rows * bits)
    else {
        let wanted = format!("[{groups}, {}] for 4 bits or [{groups}, {}] for 8", rows / 8, rows / 4);
        return Err(zeros.error(
            wanted,
            &zeros.info,
            "only 4 and 8 bits are read: quantise the head to those",
        ));
    };
    let hidden = packed * (32 / bits);
    let index = tensors.get_if_stored(&of("g_idx"))?;
    let group_of = match &index {
        Some(index) => groups_of(index, hidden, groups)?,
        None if hidden.is_multiple_of(groups) => in_order(hidden, groups),
        None => {
            let wanted = format!("groups of one size of {hidden} columns");
            return Err(scale.error(wanted, &scale.info, "export the checkpoint with its g_idx"));
        }
    };
    let less = match (head.config, head.setting("checkpoint_format")) {
        (Some(_), None | Some("gptq")) => 1,
        (_, Some("gptq_v2")) => 0,
        (_, other) => {
            let wanted =
                "the quantization_config of a GPTQ head, with a checkpoint_format of gptq or gptq_v2";
            let got = other.map_or("none".into(), |format| format!("checkpoint_format {format}"));
            let fix = "open the checkpoint's folder with its config.json: the tensors alone do not say whether \
                       zero points are stored less 1";
            return Err(zeros.error(wanted, got, fix));
        }
    };
    let beside = [Some(zeros.clone()), Some(scale.clone()), index].into_iter().flatten().collect();
    let gptq = Gptq { weight: weight.clone(), zeros, scale, group_of, bits, rows, groups, less };
    Ok(Some(Found { weight, beside, format: Format::Widened(Box::new(gptq)), rows, hidden }))
}

#[derive(Debug)]
struct Gptq {
    weight: Tensor,
    zeros: Tensor,
    scale: Tensor,
    /// The group of each column, `[hidden]`.
    group_of: Vec<u32>,
    bits: usize,
    /// Rows of the whole vocabulary.
    rows: usize,
    groups: usize,
    /// What must be added to a stored zero point: 1 or 0.
    less: i32,
}

impl Widened for Gptq {
    fn name(&self) -> String {
        format!("GPTQ, {} bits in {} groups", self.bits, self.groups)
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()> {
        let (count, each, hidden) = (rows.len(), 32 / self.bits, self.group_of.len());
        // Both are `[groups, rows]`.
        let (mut scale, mut zero) = (Vec::new(), Vec::new());
        let zero_words = self.rows / each;
        for group in 0..self.groups {
            let first = group * self.rows;
            scale.extend(scales(&self.scale, first + rows.start..first + rows.end)?);
            let first = group * zero_words;
            let words = rows.start / each..rows.end.div_ceil(each);
            read(&self.zeros, 4 * (first + words.start)..4 * (first + words.end), buffer)?;
            let found = buffer.as_chunks::<4>().0;
            zero.extend(rows.clone().map(|row| {
                let word = u32::from_le_bytes(found[row / each - words.start]);
                (code(word, row % each, self.bits) + self.less) & ((1 << self.bits) - 1)
            }));
        }
        for packed in 0..hidden / each {
            let first = packed * self.rows;
            read(&self.weight, 4 * (first + rows.start)..4 * (first + rows.end), buffer)?;
            for (row, word) in buffer.as_chunks::<4>().0.iter().enumerate() {
                let word = u32::from_le_bytes(*word);
                for i in 0..each {
                    let column = packed * each + i;
                    let at = self.group_of[column] as usize * count + row;
                    out[row * hidden + column] = (code(word, i, self.bits) - zero[at]) as f32 * scale[at];
                }
            }
        }
        Ok(())
    }
}
