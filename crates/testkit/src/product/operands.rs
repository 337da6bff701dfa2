//! The values of a product, on the host.

use super::{Index, Product, Values};
use crate::Random;
use crate::adjusting::OwnAdjustments;
use half::{bf16, f16};
use lmhead::DType;
use lmhead::plan::Precision;

/// Elements of a pool from which stretches of weights are copied: so even a head of billions is made fast.
const POOL: usize = 1 << 16;

/// Operands with their pitches. Gaps between rows hold NaN, or -1 for int8.
pub struct Operands {
    pub product: Product,
    /// The rows of weights with the gaps between them.
    pub weights: Vec<u8>,
    pub weight_pitch: usize,
    /// `[vocab]`.
    pub scales: Vec<f32>,
    pub bias: Vec<f32>,
    /// `row_offset` elements, then the rows.
    pub source: Vec<u8>,
    pub row_pitch: usize,
    /// The given indices, `[rows]`.
    pub indices: Vec<i64>,
    pub adjustments: OwnAdjustments,
    /// `[rows]`.
    pub temperatures: Vec<f32>,
}

fn bytes_of(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::I8 => return values.iter().map(|v| *v as i8 as u8).collect(),
        DType::E4m3 => return values.iter().map(|v| e4m3_code(*v)).collect(),
        _ => {}
    }
    let mut bytes = vec![0; values.len() * dtype.size()];
    dtype.round_into(values, &mut bytes);
    bytes
}

/// The code of a value that E4M3 holds exactly.
fn e4m3_code(value: f32) -> u8 {
    let magnitude = value.abs();
    let code = match magnitude < 2f32.powi(-6) {
        // Subnormal: a multiple of the smallest magnitude, 2^-9.
        true => (magnitude * 512.0) as u8,
        // Normal: exponent and mantissa, with the bias changed from 127 to 7.
        false => ((magnitude.to_bits() >> 20) - (120 << 3)) as u8,
    };
    assert_eq!(DType::E4m3.read(&[code], 0), magnitude, "E4M3 holds it");
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

impl Operands {
    pub fn new(product: &Product) -> Self {
        let (shape, layout) = (product.shape, product.layout);
        let mut random = Random(product.seed);
        let integers = product.values == Values::Integers;
        let integer = |random: &mut Random| random.below(17) as f32 - 8.0;

        let weight_type = match product.precision {
            Precision::Bf16 => DType::Bf16,
            Precision::F16 => DType::F16,
            Precision::W8a8(_) | Precision::W8a16(_) => DType::I8,
            Precision::Fp8(_) => DType::E4m3,
        };
        let mut weight = || match (weight_type, integers) {
            (_, true) => integer(&mut random),
            (DType::I8, _) => f32::from(random.next() as i8),
            // Every code except NaN.
            (DType::E4m3, _) => {
                DType::E4m3.read(&[random.below(127) as u8 | (random.below(2) * 128) as u8], 0)
            }
            _ => random.normal() * 0.25,
        };
        let pool: Vec<f32> = (0..POOL + shape.hidden).map(|_| weight()).collect();
        let pool = bytes_of(weight_type, &pool);
        let row_bytes = shape.hidden * weight_type.size();
        let weight_pitch = row_bytes.next_multiple_of(16) + 16 * layout.weight_gap;
        let mut weights = vec![0xff; (shape.vocab - 1) * weight_pitch + row_bytes];
        for (id, row) in weights.chunks_mut(weight_pitch).enumerate() {
            let from = id.wrapping_mul(2_654_435_761) % POOL * weight_type.size();
            row[..row_bytes].copy_from_slice(&pool[from..from + row_bytes]);
        }

        let mut values = || (0..shape.vocab).map(|_| random.normal()).collect::<Vec<f32>>();
        let (scales, bias) = (values().iter().map(|v| 0.02 * v.abs() + 1e-4).collect(), values());

        let row_type = product.precision.rows();
        let row_pitch = (shape.hidden + layout.row_gap) * row_type.size();
        let row_bytes = shape.hidden * row_type.size();
        let offset = layout.row_offset * row_type.size();
        let mut source = vec![0xff; offset + (layout.source_rows - 1) * row_pitch + row_bytes];
        for (i, to) in source[offset..].chunks_mut(row_pitch).enumerate() {
            let mut row: Vec<f32> = (0..shape.hidden)
                .map(|_| if integers { integer(&mut random) } else { random.normal() })
                .collect();
            if product.values == Values::Broken {
                broken(i, row_type, &mut row, &mut random);
            }
            to[..row_bytes].copy_from_slice(&bytes_of(row_type, &row));
        }

        let indices = (0..shape.rows)
            .map(|i| match layout.index {
                Index::InOrder => i as i64,
                _ => match random.below(8) {
                    // Out of range, on either side; also an index that is in range if cut to 32 bits.
                    0 => {
                        let n = layout.source_rows as i64;
                        let far = if layout.index == Index::Int64 { 1 << 32 } else { i64::from(i32::MAX) };
                        [-1, n, i64::from(i32::MIN), far][random.below(4)]
                    }
                    _ => random.below(layout.source_rows) as i64,
                },
            })
            .collect();

        let finish = product.finish;
        let temperatures = (0..shape.rows).map(|_| [1.0, 0.0, 0.7, 3.0, 1e-3][random.below(5)]).collect();
        Operands {
            product: *product,
            weights,
            weight_pitch,
            scales,
            bias,
            source,
            row_pitch,
            indices,
            adjustments: adjustments(shape.rows, shape.vocab, finish, &mut random),
            temperatures,
        }
    }

    /// The weight of `id` and `k`.
    pub fn weight(&self, id: usize, k: usize) -> f32 {
        let row = &self.weights[id * self.weight_pitch..];
        match self.product.precision {
            Precision::Bf16 => bf16::from_le_bytes([row[2 * k], row[2 * k + 1]]).to_f32(),
            Precision::F16 => f16::from_le_bytes([row[2 * k], row[2 * k + 1]]).to_f32(),
            Precision::W8a8(_) | Precision::W8a16(_) => f32::from(row[k] as i8),
            Precision::Fp8(_) => DType::E4m3.read(row, k),
        }
    }

    /// The source row of output row `i`; `None` where its index is out of range.
    pub fn picked(&self, i: usize) -> Option<usize> {
        usize::try_from(self.indices[i]).ok().filter(|&row| row < self.product.layout.source_rows)
    }

    /// Row `i` of the product: zeros where its index is out of range.
    pub fn row(&self, i: usize) -> Vec<f32> {
        let (hidden, dtype) = (self.product.shape.hidden, self.product.precision.rows());
        let mut row = vec![0.0; hidden];
        if let Some(from) = self.picked(i) {
            let offset = self.product.layout.row_offset * dtype.size() + from * self.row_pitch;
            dtype.widen(&self.source[offset..offset + hidden * dtype.size()], &mut row);
        }
        row
    }
}

/// Makes `row` broken, or one at an end of the range, by the row's number `i`.
fn broken(i: usize, dtype: DType, row: &mut [f32], random: &mut Random) {
    let at = random.below(row.len());
    let (largest, least) = match dtype {
        DType::F16 => (65504.0, f16::from_bits(1).to_f32()),
        _ => (3.3e38, 1e-39),
    };
    match i % 7 {
        0 => row[at] = f32::NAN,
        1 => row[at] = if random.below(2) == 0 { f32::INFINITY } else { f32::NEG_INFINITY },
        2 => row.iter_mut().for_each(|v| *v = largest * v.signum()),
        3 => row.iter_mut().for_each(|v| *v = least * (*v * 3.0).round()),
        4 => row.fill(-0.0),
        // Around the scale below which the row counts as zeros. Only f32 reaches it exactly, bf16 nearly.
        5 => {
            let scale = [0.999_999, 1.0, 1.000_001][random.below(3)];
            row.iter_mut().for_each(|v| *v *= 1e-39);
            row[at] = f32::MIN_POSITIVE * 127.0 * scale;
        }
        // Ties: absmax 127 makes the scale 1, so that n + 1/2 is one.
        _ => {
            row.iter_mut().for_each(|v| *v = (*v * 20.0).round() + 0.5);
            row[at] = 127.0;
        }
    }
}

fn adjustments(rows: usize, vocab: usize, finish: super::Finish, random: &mut Random) -> OwnAdjustments {
    // Random adjustments lack some kinds: takes each kind from some that have it.
    let mut having = |wanted: fn(&OwnAdjustments) -> bool| {
        loop {
            let one = OwnAdjustments::random(rows, vocab, random);
            if wanted(&one) {
                return one;
            }
        }
    };
    let mask = finish.mask.then(|| having(|one| one.mask.is_some()).mask).flatten();
    let logit_bias = finish.logit_bias.then(|| having(|one| one.logit_bias.is_some()).logit_bias).flatten();
    let penalties = finish.penalties.then(|| having(|one| one.penalties.is_some()).penalties).flatten();
    OwnAdjustments { vocab, rows, mask, logit_bias, penalties }
}
