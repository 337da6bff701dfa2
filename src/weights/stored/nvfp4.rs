//! Weight-only NVFP4 heads: E2M1 codes, two to a byte, the first in the low half; an E4M3 scale for every 16
//! weights of a row (a block); one global f32 scale. A code times its block's scale has at most six
//! significant bits, so bf16 holds it exactly; the global scale is applied in the epilogue.
//!
//! | tensor | ModelOpt | compressed-tensors `nvfp4-pack-quantized` |
//! |---|---|---|
//! | codes, u8 `[vocab, hidden / 2]` | `weight` | `weight_packed` |
//! | scales, E4M3 `[vocab, hidden / 16]` | `weight_scale` | `weight_scale` |
//! | global scale, f32 | `weight_scale_2`, which multiplies | `weight_global_scale`, which divides |
//!
//! Sources: `modelopt/torch/quantization/qtensor/nvfp4_tensor.py` and `compressed_tensors/compressors/nvfp4`
//! and `quantization/lifecycle/forward.py`. `config.json` is not needed: the tensors say it all.

use super::{Format, Found, Named};
use crate::error::Result;
use crate::weights::folder::Tensors;
use crate::weights::safetensors_file::{Tensor, float_dtype};
use crate::weights::widened::{Widened, matrix, missing, read, scales};
use safetensors::Dtype;
use std::ops::Range;

/// Weights of a block.
const BLOCK: usize = 16;

/// The magnitudes of E2M1: two bits of exponent with bias 1, one of mantissa; the code's fourth bit is the
/// sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Recognises an NVFP4 head; `None` where the head is in another format.
pub(super) fn recognise(tensors: &mut Tensors, head: &Named<'_>) -> Result<Option<Found>> {
    let name = head.name;
    let (multiplies, divides) = (format!("{name}_scale_2"), format!("{name}_global_scale"));
    let (codes, global, divides) = match (tensors.contains(&multiplies), tensors.contains(&divides)) {
        (false, false) => return Ok(None),
        (true, _) => (name.to_string(), multiplies, false),
        (false, true) => (format!("{name}_packed"), divides, true),
    };
    let weight = tensors.get(&codes)?;
    let wanted = "u8 [vocabulary, hidden size / 2], two E2M1 codes to a byte";
    let [rows, pairs] = matrix(&weight, wanted)?;
    let hidden = 2 * pairs;
    if weight.info.dtype != Dtype::U8 {
        let fix = "only NVFP4 heads have two levels of scales: export the checkpoint again";
        return Err(weight.error(wanted, &weight.info, fix));
    }
    let scale_name = format!("{name}_scale");
    let wanted =
        format!("F8_E4M3 [{rows}, {}], a scale for every {BLOCK} weights of a row", hidden.div_ceil(BLOCK));
    let Some(scale) = tensors.get_if_stored(&scale_name)? else {
        return Err(missing(&weight, scale_name, wanted, "an NVFP4 weight"));
    };
    if scale.info.dtype != Dtype::F8_E4M3 || scale.info.shape != [rows, hidden.div_ceil(BLOCK)] {
        return Err(scale.error(
            wanted,
            &scale.info,
            "only NVFP4 with blocks of 16 is read: export the head so",
        ));
    }
    let global = tensors.get(&global)?;
    if float_dtype(global.info.dtype).is_none() || global.info.shape.iter().product::<usize>() != 1 {
        return Err(global.error("one f32", &global.info, "export the checkpoint again"));
    }
    let beside = vec![scale.clone(), global.clone()];
    let nvfp4 = Nvfp4 { weight: weight.clone(), scale, global, divides, hidden };
    Ok(Some(Found { weight, beside, format: Format::Widened(Box::new(nvfp4)), rows, hidden }))
}

#[derive(Debug)]
struct Nvfp4 {
    weight: Tensor,
    scale: Tensor,
    global: Tensor,
    /// Whether the global scale divides.
    divides: bool,
    hidden: usize,
}

impl Widened for Nvfp4 {
    fn name(&self) -> String {
        "NVFP4".into()
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()> {
        let (pairs, blocks) = (self.hidden / 2, self.hidden.div_ceil(BLOCK));
        let scales = scales(&self.scale, rows.start * blocks..rows.end * blocks)?;
        read(&self.weight, rows.start * pairs..rows.end * pairs, buffer)?;
        let rows = out.chunks_mut(self.hidden).zip(buffer.chunks(pairs)).zip(scales.chunks(blocks));
        for ((out, codes), scales) in rows {
            for ((out, codes), scale) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 2)).zip(scales) {
                for (out, byte) in out.chunks_mut(2).zip(codes) {
                    out[0] = e2m1(byte & 15) * scale;
                    out[1] = e2m1(byte >> 4) * scale;
                }
            }
        }
        Ok(())
    }

    fn global_scale(&self) -> Result<Option<f32>> {
        let stored = scales(&self.global, 0..1)?[0];
        let scale = if self.divides { 1.0 / stored } else { stored };
        if scale.is_finite() {
            return Ok(Some(scale));
        }
        let fix = "quantise or export the checkpoint again";
        Err(self.global.error("a scale whose inverse is finite", stored, fix))
    }
}

fn e2m1(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}
