//! compressed-tensors `pack-quantized` heads with groups, 4 bits, or zero points: `weight_packed` i32
//! `[vocab, ceil(hidden * bits / 32)]`, low bits first, each weight plus 2^(bits - 1); `weight_scale`
//! `[vocab, groups]`; where stored, `weight_zero_point` i32 `[ceil(vocab * bits / 32), groups]`, packed so
//! along the vocabulary, and `weight_g_idx` i32 `[hidden]`, the group of each column (-1: in their order).
//!
//! A weight is `(code - zero point) * scale`. Source: `compressed_tensors/compressors/pack_quantized`. Eight
//! bits with one scale per row and no zero points stay int8 (`stored.rs`).

use super::{Format, Found, Named};
use crate::error::Result;
use crate::weights::folder::Tensors;
use crate::weights::hf_config;
use crate::weights::safetensors_file::{Tensor, integers};
use crate::weights::widened::{Widened, is_scale, matrix, missing, read, scales};
use safetensors::Dtype;
use std::ops::Range;

/// Recognises a packed head in groups; `None` where the head is in another format.
pub(super) fn recognise(tensors: &mut Tensors, head: &Named<'_>) -> Result<Option<Found>> {
    let name = head.name;
    let Some(weight) = tensors.get_if_stored(&format!("{name}_packed"))? else { return Ok(None) };
    let Some(shape) = tensors.get_if_stored(&format!("{name}_shape"))? else { return Ok(None) };
    if weight.info.dtype != Dtype::I32 {
        return Ok(None);
    }
    let [rows, words] = matrix(&weight, "i32 [vocabulary, words of packed weights]")?;
    let sizes = integers(shape.info.dtype, shape.bytes()).filter(|_| shape.info.shape == [2]);
    let sizes = sizes.map(|sizes| (usize::try_from(sizes[0]), usize::try_from(sizes[1])));
    // Wrong sizes are left to the int8 format, whose errors name them.
    let Some((Ok(own_rows), Ok(hidden))) = sizes else { return Ok(None) };
    if own_rows != rows || hidden == 0 {
        return Ok(None);
    }
    let bits = match words {
        _ if words == hidden.div_ceil(4) => 8,
        _ if words == hidden.div_ceil(8) => 4,
        _ => return Ok(None),
    };
    let (scale_name, zero_name) = (format!("{name}_scale"), format!("{name}_zero_point"));
    let zeros = tensors.get_if_stored(&zero_name)?;
    let groups = format!("float [{rows}, groups], a scale for each group of columns");
    let Some(scale) = tensors.get_if_stored(&scale_name)? else {
        return match bits {
            8 => Ok(None),
            _ => Err(missing(&weight, scale_name, groups, "a packed weight")),
        };
    };
    let across = match *scale.info.shape.as_slice() {
        [n] if n == rows => 1,
        [n, across] if n == rows && across > 0 && hidden.is_multiple_of(across) => across,
        _ if bits == 8 && zeros.is_none() => return Ok(None),
        _ => {
            let fix =
                "the scales must have the weight's rows, and groups of one size: export the checkpoint again";
            return Err(scale.error(groups, &scale.info, fix));
        }
    };
    if bits == 8 && across == 1 && zeros.is_none() {
        return Ok(None);
    }
    // Four weights to a word may have fewer than eight bits each: the shapes are the same, so config.json
    // decides.
    let stated = hf_config::stated_bits(head.config, head.module);
    if stated.is_some_and(|stated| stated != bits as u64) {
        let wanted = format!("{bits} bits, as quantization_config should say");
        let got = format!("{} bits", stated.unwrap_or_default());
        return Err(weight.error(
            wanted,
            got,
            "only 4- and 8-bit packed heads are read: quantise the head so",
        ));
    }
    if !is_scale(scale.info.dtype) {
        return Err(scale.error(groups, &scale.info, "store the scales as floats"));
    }
    if let Some(zeros) = &zeros {
        let wanted = [(rows * bits).div_ceil(32), across];
        if zeros.info.dtype != Dtype::I32 || zeros.info.shape != wanted {
            let wanted = format!("i32 {wanted:?}, {bits} bits for each row and group");
            return Err(zeros.error(wanted, &zeros.info, "export the checkpoint again"));
        }
    }
    let index = tensors.get_if_stored(&format!("{name}_g_idx"))?;
    let group_of = match &index {
        Some(index) => groups_of(index, hidden, across)?,
        None => in_order(hidden, across),
    };
    let beside = [Some(shape), Some(scale.clone()), zeros.clone(), index].into_iter().flatten().collect();
    let packed = Packed { weight: weight.clone(), scale, zeros, group_of, bits, hidden, across, words };
    Ok(Some(Found { weight, beside, format: Format::Widened(Box::new(packed)), rows, hidden }))
}

/// The group of each column, where groups are consecutive columns.
pub(super) fn in_order(hidden: usize, groups: usize) -> Vec<u32> {
    (0..hidden).map(|column| (column / (hidden / groups)) as u32).collect()
}

/// The group of each column, from a tensor `[hidden]`.
pub(super) fn groups_of(index: &Tensor, hidden: usize, groups: usize) -> Result<Vec<u32>> {
    let fix = "export the checkpoint again";
    let values = integers(index.info.dtype, index.bytes()).filter(|_| index.info.shape == [hidden]);
    let Some(values) = values else {
        return Err(index.error(format!("i32 [{hidden}], the group of each column"), &index.info, fix));
    };
    if values.iter().all(|group| *group == -1) && hidden.is_multiple_of(groups) {
        return Ok(in_order(hidden, groups));
    }
    let group = |(column, group): (usize, &i64)| match usize::try_from(*group) {
        Ok(group) if group < groups => Ok(group as u32),
        _ => Err(index.error(
            format!("groups from 0 to {}", groups - 1),
            format!("{group} at column {column}"),
            fix,
        )),
    };
    values.iter().enumerate().map(group).collect()
}

#[derive(Debug)]
struct Packed {
    weight: Tensor,
    /// `[vocab, across]`
    scale: Tensor,
    /// Zero points, packed along the vocabulary.
    zeros: Option<Tensor>,
    /// The group of each column, `[hidden]`.
    group_of: Vec<u32>,
    bits: usize,
    hidden: usize,
    /// Groups of a row.
    across: usize,
    words: usize,
}

impl Packed {
    /// The zero points of these rows, `[rows, across]`, unpacked; without stored ones 2^(bits - 1).
    fn zeros(&self, rows: &Range<usize>) -> Result<Vec<i32>> {
        let Some(zeros) = &self.zeros else {
            return Ok(vec![1 << (self.bits - 1); rows.len() * self.across]);
        };
        let (across, each) = (self.across, 32 / self.bits);
        let (mut bytes, first) = (Vec::new(), rows.start / each);
        read(zeros, 4 * first * across..4 * rows.end.div_ceil(each) * across, &mut bytes)?;
        let words = bytes.as_chunks::<4>().0;
        let zero = |row: usize, group: usize| {
            let word = u32::from_le_bytes(words[(row / each - first) * across + group]);
            code(word, row % each, self.bits)
        };
        Ok(rows
            .clone()
            .flat_map(|row| (0..across).map(move |group| (row, group)))
            .map(|(r, g)| zero(r, g))
            .collect())
    }
}

impl Widened for Packed {
    fn name(&self) -> String {
        let zeros = if self.zeros.is_some() { " and a zero point" } else { "" };
        format!("{} bits with a scale{zeros} for each group of {}", self.bits, self.hidden / self.across)
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()> {
        let across = self.across;
        let scales = scales(&self.scale, rows.start * across..rows.end * across)?;
        let zeros = self.zeros(&rows)?;
        read(&self.weight, 4 * rows.start * self.words..4 * rows.end * self.words, buffer)?;
        let groups = scales.chunks(across).zip(zeros.chunks(across));
        let rows = out.chunks_mut(self.hidden).zip(buffer.chunks(4 * self.words)).zip(groups);
        for ((out, packed), (scales, zeros)) in rows {
            let words = packed.as_chunks::<4>().0;
            for (column, (out, group)) in out.iter_mut().zip(&self.group_of).enumerate() {
                let each = 32 / self.bits;
                let code = code(u32::from_le_bytes(words[column / each]), column % each, self.bits);
                let group = *group as usize;
                *out = (code - zeros[group]) as f32 * scales[group];
            }
        }
        Ok(())
    }
}

/// Code `i` of a word, low bits first.
pub(super) fn code(word: u32, i: usize, bits: usize) -> i32 {
    (word >> (i * bits) & ((1 << bits) - 1)) as i32
}
