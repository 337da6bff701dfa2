//! FP8 E4M3 heads (`torch.float8_e4m3fn`).
//!
//! | scales | written by | becomes |
//! |---|---|---|
//! | one for all, or one per row | compressed-tensors, transformers `fp8` | E4M3, as stored |
//! | one for each block, usually of 128 x 128 | DeepSeek, transformers `fp8` | bf16, widened at load |
//!
//! A weight is its code times its scale; `weight_scale_inv` is that scale too, in spite of its name
//! (<https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md>, `Finegrained FP8` of
//! transformers' documentation).

use super::{Format, Found, Named};
use crate::error::Result;
use crate::weights::folder::Tensors;
use crate::weights::safetensors_file::Tensor;
use crate::weights::widened::{Widened, is_scale, matrix, missing, read, scales};
use lmhead_cpu::e4m3;
use safetensors::Dtype;
use std::ops::Range;

/// Rows and columns of a block, where `config.json` does not say otherwise.
const BLOCK: [usize; 2] = [128, 128];

/// Recognises an FP8 head; `None` where the head is in another format.
pub(super) fn recognise(tensors: &mut Tensors, head: &Named<'_>) -> Result<Option<Found>> {
    let Some(weight) = tensors.get_if_stored(head.name)? else { return Ok(None) };
    if weight.info.dtype != Dtype::F8_E4M3 {
        return Ok(None);
    }
    let [rows, hidden] = matrix(&weight, "[vocabulary, hidden size]")?;
    let wanted =
        format!("float scales: [] or [1], [{rows}] or [{rows}, 1], or [blocks of rows, blocks of columns]");
    let names = [format!("{}_scale", head.name), format!("{}_scale_inv", head.name)];
    let stored: Vec<&String> = names.iter().filter(|name| tensors.contains(name)).collect();
    let scale = match stored.as_slice() {
        [name] => tensors.get(name)?,
        [] => return Err(missing(&weight, names[0].clone(), wanted, "an FP8 weight")),
        _ => {
            let fix = "remove the one that is stale";
            return Err(weight.error(format!("either {} or {}", names[0], names[1]), "both beside it", fix));
        }
    };
    if !is_scale(scale.info.dtype) {
        return Err(scale.error(wanted, &scale.info, "store the scales as floats"));
    }
    let format = match scale.info.shape.as_slice() {
        [] | [1] | [1, 1] => Format::E4m3 { scale: scale.clone(), per_row: false },
        &[n] | &[n, 1] if n == rows => Format::E4m3 { scale: scale.clone(), per_row: true },
        &[down, across] if down > 0 && across > 0 => {
            let block =
                [head.block_size(), Some(BLOCK), (down == rows).then(|| [1, hidden.div_ceil(across)])];
            let fits = |[r, c]: &[usize; 2]| rows.div_ceil(*r) == down && hidden.div_ceil(*c) == across;
            let Some(block) = block.into_iter().flatten().find(fits) else {
                let blocks = [rows.div_ceil(BLOCK[0]), hidden.div_ceil(BLOCK[1])];
                let wanted = format!(
                    "{blocks:?} scales of blocks of 128 x 128, or of config.json's weight_block_size"
                );
                let fix =
                    "pass the config.json that belongs to these weights, or export the checkpoint again";
                return Err(scale.error(wanted, &scale.info, fix));
            };
            let blocks = Blocks { weight: weight.clone(), scale: scale.clone(), block, hidden, across };
            Format::Widened(Box::new(blocks))
        }
        _ => return Err(scale.error(wanted, &scale.info, "the scales must have the weight's rows")),
    };
    Ok(Some(Found { weight, beside: vec![scale], format, rows, hidden }))
}

/// An FP8 head with a scale for each block of rows and columns.
#[derive(Debug)]
struct Blocks {
    weight: Tensor,
    /// `[blocks of rows, blocks of columns]`
    scale: Tensor,
    /// Rows and columns of a block.
    block: [usize; 2],
    hidden: usize,
    /// Blocks of columns.
    across: usize,
}

impl Widened for Blocks {
    fn name(&self) -> String {
        format!("FP8 E4M3 with a scale for each block of {} x {}", self.block[0], self.block[1])
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()> {
        let (hidden, across, [down, columns]) = (self.hidden, self.across, self.block);
        let first = rows.start / down;
        let scales = scales(&self.scale, first * across..rows.end.div_ceil(down) * across)?;
        read(&self.weight, rows.start * hidden..rows.end * hidden, buffer)?;
        for ((row, out), codes) in rows.zip(out.chunks_mut(hidden)).zip(buffer.chunks(hidden)) {
            let scales = &scales[(row / down - first) * across..][..across];
            for ((out, codes), scale) in out.chunks_mut(columns).zip(codes.chunks(columns)).zip(scales) {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = e4m3::widen(*code) * scale;
                }
            }
        }
        Ok(())
    }
}
