//! The test cases of the microkernels: one table for the emulated device
//! (`crates/emulated/tests/emulated/microkernels.rs`) and for the GPU
//! (`crates/gpu/tests/gpu/microkernels.rs`).

use crate::Random;
use half::bf16;

/// Elements of k that one 16-bit matrix instruction takes.
const STEP: usize = 16;

/// One 16-bit matrix instruction of the hardware: adds `a` `[m, 16]` x `b` `[n, 16]`, bits of bf16, to `d`
/// `[m, n]`.
pub type Step = fn(a: &[u16], b: &[u16], d: &mut [f32]);

/// One product: `[rows, hidden] x [vocab, hidden]ᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub vocab: u32,
    pub rows: u32,
    pub hidden: u32,
}

/// Whole tiles, and tails of each size alone.
pub const SMALL: [Shape; 4] = [
    Shape { vocab: 128, rows: 32, hidden: 256 },
    Shape { vocab: 100, rows: 3, hidden: 48 },
    Shape { vocab: 129, rows: 33, hidden: 128 },
    Shape { vocab: 7, rows: 1, hidden: 656 },
];

/// The hidden sizes of models.
pub const REAL: [Shape; 2] =
    [Shape { vocab: 256, rows: 60, hidden: 4096 }, Shape { vocab: 256, rows: 60, hidden: 7168 }];

impl Shape {
    fn random(&self) -> Random {
        Random(u64::from(self.vocab * self.hidden))
    }
}

/// What the 16-bit operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Nearly Gaussian: the bits of a sum depend on the order in which products are added.
    Random,
    /// Integers up to 8: every sum is exact, in any order.
    Integers,
}

/// int8 operands and their product.
pub struct Int8 {
    pub weights: Vec<i8>,
    pub rows: Vec<i8>,
    /// `[rows, vocab]`.
    pub truth: Vec<i32>,
}

/// Random operands, seeded by the shape, and their product.
pub fn int8(shape: &Shape) -> Int8 {
    let mut random = shape.random();
    let (weights, rows) = (random.int8(shape.vocab * shape.hidden), random.int8(shape.rows * shape.hidden));
    let truth = int8_truth(&weights, &rows, shape.hidden as usize);
    Int8 { weights, rows, truth }
}

/// bf16 operands and their product.
pub struct Halves {
    pub weights: Vec<bf16>,
    pub rows: Vec<bf16>,
    /// `[rows, vocab]`.
    pub truth: Vec<f32>,
}

/// Random operands, seeded by the shape, and their product.
pub fn halves(shape: &Shape, values: Values, step: Step) -> Halves {
    let mut random = shape.random();
    let weights = bf16s(&mut random, shape.vocab * shape.hidden, values);
    let rows = bf16s(&mut random, shape.rows * shape.hidden, values);
    let truth = truth(&weights, &rows, shape.hidden as usize, values, step);
    Halves { weights, rows, truth }
}

/// bf16 operands with rows to be picked, and the picked rows' product.
pub struct Gathered {
    pub weights: Vec<bf16>,
    /// `[source_rows, hidden]`.
    pub source: Vec<bf16>,
    pub source_rows: u32,
    /// `[rows]`; some repeat, and two are out of range, which stands for rows of zeros.
    pub indices: Vec<i32>,
    /// `[rows, vocab]`.
    pub truth: Vec<f32>,
}

/// Random operands and indices, seeded by the shape, and the picked rows' product.
pub fn gathered(shape: &Shape, values: Values, step: Step) -> Gathered {
    let (hidden, source_rows) = (shape.hidden as usize, 2 * shape.rows);
    let mut random = shape.random();
    let weights = bf16s(&mut random, shape.vocab * shape.hidden, values);
    let source = bf16s(&mut random, source_rows * shape.hidden, values);
    let mut indices: Vec<i32> = (0..shape.rows as i32).map(|i| (i * 7 + 1) % source_rows as i32).collect();
    if shape.rows > 2 {
        indices[0] = -1;
        indices[1] = source_rows as i32;
    }
    let picked: Vec<bf16> = indices
        .iter()
        .flat_map(|&i| match usize::try_from(i) {
            Ok(i) if i < source_rows as usize => source[i * hidden..(i + 1) * hidden].to_vec(),
            _ => vec![bf16::ZERO; hidden],
        })
        .collect();
    let truth = truth(&weights, &picked, hidden, values, step);
    Gathered { weights, source, source_rows, indices, truth }
}

fn bf16s(random: &mut Random, count: u32, values: Values) -> Vec<bf16> {
    match values {
        Values::Random => random.bf16(count),
        Values::Integers => (0..count).map(|_| bf16::from_f32((random.next() % 17) as f32 - 8.0)).collect(),
    }
}

/// The true product `[rows, vocab]`. Integers need no model of the hardware, since any order of addition
/// gives the same sum.
fn truth(weights: &[bf16], rows: &[bf16], hidden: usize, values: Values, step: Step) -> Vec<f32> {
    if values == Values::Random {
        let truth = bf16_truth(weights, rows, hidden, step);
        if let Some(problem) = too_far(weights, rows, hidden, &truth) {
            panic!("[{}, {hidden}] rows: {problem}", rows.len() / hidden);
        }
        return truth;
    }
    let integers = |data: &[bf16]| data.iter().map(|x| x.to_f32() as i8).collect::<Vec<_>>();
    int8_truth(&integers(weights), &integers(rows), hidden).into_iter().map(|sum| sum as f32).collect()
}

/// The product `[rows, vocab]` in wrapping int32.
fn int8_truth(weights: &[i8], rows: &[i8], hidden: usize) -> Vec<i32> {
    rows.chunks(hidden)
        .flat_map(|row| {
            weights.chunks(hidden).map(move |w| {
                row.iter().zip(w).fold(0i32, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)))
            })
        })
        .collect()
}

/// The product `[rows, vocab]` by instructions that take 16 elements of k each, from zero and k ascending,
/// with zeros past the end of k.
pub fn bf16_truth(weights: &[bf16], rows: &[bf16], hidden: usize, multiply: Step) -> Vec<f32> {
    let (vocab, count) = (weights.len() / hidden, rows.len() / hidden);
    let (m, n) = (vocab.next_multiple_of(2), count.next_multiple_of(8));
    let step = |data: &[bf16], lines: usize, k0: usize| -> Vec<u16> {
        let at = |line: usize, k: usize| {
            let inside = line * hidden < data.len() && k < hidden;
            if inside { data[line * hidden + k].to_bits() } else { 0 }
        };
        (0..lines)
            .flat_map(|line| (k0..k0 + STEP).map(move |k| (line, k)))
            .map(|(line, k)| at(line, k))
            .collect()
    };
    let mut d = vec![0f32; m * n];
    for k0 in (0..hidden).step_by(STEP) {
        multiply(&step(weights, m, k0), &step(rows, n, k0), &mut d);
    }
    (0..count).flat_map(|row| (0..vocab).map(move |id| (row, id))).map(|(row, id)| d[id * n + row]).collect()
}

/// Whether `out` `[rows, vocab]` is further from the product in f64 than f32 sums may be; describes the first
/// excess. Each output may be off by 1.5·hidden·2^-24 of the sum of its products' magnitudes. For hidden
/// sizes below 12288, whose values must be Gaussian, also by at most 5e-5 of the outputs' root mean square.
/// This does not use the emulated device's arithmetic.
pub fn too_far(weights: &[bf16], rows: &[bf16], hidden: usize, out: &[f32]) -> Option<String> {
    let wide = |data: &[bf16]| data.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let (weights, rows) = (wide(weights), wide(rows));
    let (mut squares, mut furthest) = (0f64, 0f64);
    let pairs = rows.chunks(hidden).flat_map(|row| weights.chunks(hidden).map(move |w| (row, w)));
    for (at, ((row, w), &out)) in pairs.zip(out).enumerate() {
        let products = row.iter().zip(w).map(|(x, w)| x * w);
        let (sum, magnitude) = products.fold((0f64, 0f64), |(s, m), p| (s + p, m + p.abs()));
        let error = (f64::from(out) - sum).abs();
        let bound = 1.5 * hidden as f64 * 2f64.powi(-24) * magnitude;
        if error.is_nan() || error > bound {
            return Some(format!("output {at}: wanted {sum} within {bound:e}, got {out}"));
        }
        (squares, furthest) = (squares + sum * sum, furthest.max(error));
    }
    let bound = 5e-5 * (squares / out.len() as f64).sqrt();
    (hidden < 12288 && furthest > bound)
        .then(|| format!("wanted all outputs within {bound:e} of f64, got one that is {furthest:e} away"))
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
