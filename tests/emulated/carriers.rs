//! The carrier kernels: int8 is exact, 16-bit has the bits of the hardware's chain of instructions, k ascending.

use crate::data::Random;
use half::bf16;
use lmhead::backend::emulated::arithmetic::{Half, Path, STEP, multiply_step};
use lmhead::backend::emulated::{Device, Fault, LaunchConfig, carriers};
use lmhead::backend::params::{GatherCarrierParams, MmaCarrierParams, WgmmaCarrierParams};

/// `[rows, vocab]`, wrapping int32.
fn int8_truth(weights: &[i8], rows: &[i8], hidden: usize) -> Vec<i32> {
    rows.chunks(hidden)
        .flat_map(|row| {
            weights.chunks(hidden).map(move |w| {
                row.iter().zip(w).fold(0i32, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)))
            })
        })
        .collect()
}

/// `[rows, vocab]`: instructions of 16 products, k ascending, from zero; zeros past the end of k.
fn bf16_truth(weights: &[bf16], rows: &[bf16], hidden: usize) -> Vec<f32> {
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
        multiply_step(Path::Fast, Half::Bf16, &step(weights, m, k0), &step(rows, n, k0), &mut d);
    }
    (0..count).flat_map(|row| (0..vocab).map(move |id| (row, id))).map(|(row, id)| d[id * n + row]).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

struct Shape {
    vocab: u32,
    rows: u32,
    hidden: u32,
}

/// Whole tiles, and tails of each size alone.
const SMALL: [Shape; 4] = [
    Shape { vocab: 128, rows: 32, hidden: 256 },
    Shape { vocab: 100, rows: 3, hidden: 48 },
    Shape { vocab: 129, rows: 33, hidden: 128 },
    Shape { vocab: 7, rows: 1, hidden: 656 },
];

fn mma_s8(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let mut random = Random::new(u64::from(vocab * hidden));
    let (weights, rows) = (random.int8(vocab * hidden), random.int8(row_count * hidden));
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize);
    let params = MmaCarrierParams {
        weights: device.upload_read_only(&weights).pointer(),
        rows: device.upload_read_only(&rows).pointer(),
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch = carriers::config(vocab, row_count, 32, carriers::MMA_THREADS, carriers::MMA_SHARED);
    device.launch(&carriers::mma_s8(), &params, &config(launch))?;
    assert_eq!(device.download::<i32>(out), int8_truth(&weights, &rows, hidden as usize));
    Ok(())
}

fn wgmma_s8(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let mut random = Random::new(u64::from(vocab * hidden));
    let (weights, rows) = (random.int8(vocab * hidden), random.int8(row_count * hidden));
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize);
    let (w, x) = (device.upload_read_only(&weights), device.upload_read_only(&rows));
    let params = WgmmaCarrierParams {
        weights: carriers::tiles(w.address(), 1, vocab, hidden, 64)?,
        rows: carriers::tiles(x.address(), 1, row_count, hidden, carriers::WGMMA_ROWS)?,
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch = carriers::config(
        vocab,
        row_count,
        carriers::WGMMA_ROWS,
        carriers::WGMMA_THREADS,
        carriers::WGMMA_SHARED,
    );
    device.launch(&carriers::wgmma_s8(), &params, &config(launch))?;
    assert_eq!(device.download::<i32>(out), int8_truth(&weights, &rows, hidden as usize));
    Ok(())
}

fn wgmma_bf16(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let mut random = Random::new(u64::from(vocab * hidden));
    let (weights, rows) = (random.bf16(vocab * hidden), random.bf16(row_count * hidden));
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize);
    let (w, x) = (device.upload_read_only(&weights), device.upload_read_only(&rows));
    let params = WgmmaCarrierParams {
        weights: carriers::tiles(w.address(), 2, vocab, hidden, 64)?,
        rows: carriers::tiles(x.address(), 2, row_count, hidden, carriers::WGMMA_ROWS)?,
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch = carriers::config(
        vocab,
        row_count,
        carriers::WGMMA_ROWS,
        carriers::WGMMA_THREADS,
        carriers::WGMMA_SHARED,
    );
    device.launch(&carriers::wgmma_bf16(), &params, &config(launch))?;
    assert_eq!(bits(&device.download::<f32>(out)), bits(&bf16_truth(&weights, &rows, hidden as usize)));
    Ok(())
}

fn gather_bf16(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let source_rows = 2 * row_count;
    let mut random = Random::new(u64::from(vocab * hidden));
    let (weights, source) = (random.bf16(vocab * hidden), random.bf16(source_rows * hidden));
    // Repeated rows, and two indices that are not there: rows of zeros.
    let mut indices: Vec<i32> = (0..row_count as i32).map(|i| (i * 7 + 1) % source_rows as i32).collect();
    if row_count > 2 {
        indices[0] = -1;
        indices[1] = source_rows as i32;
    }
    let picked: Vec<bf16> = indices
        .iter()
        .flat_map(|&i| match usize::try_from(i) {
            Ok(i) if i < source_rows as usize => {
                source[i * hidden as usize..(i + 1) * hidden as usize].to_vec()
            }
            _ => vec![bf16::ZERO; hidden as usize],
        })
        .collect();
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize);
    let w = device.upload_read_only(&weights);
    let params = GatherCarrierParams {
        weights: carriers::tiles(w.address(), 2, vocab, hidden, 64)?,
        rows: device.upload_read_only(&source).pointer(),
        indices: device.upload_read_only(&indices).pointer(),
        out: out.pointer(),
        vocab,
        row_count,
        source_rows,
        hidden,
    };
    let launch = carriers::config(
        vocab,
        row_count,
        carriers::GATHER_ROWS,
        carriers::WGMMA_THREADS,
        carriers::GATHER_SHARED,
    );
    device.launch(&carriers::gather_bf16(), &params, &config(launch))?;
    assert_eq!(bits(&device.download::<f32>(out)), bits(&bf16_truth(&weights, &picked, hidden as usize)));
    Ok(())
}

type Carrier = fn(&Shape, fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault>;
const CARRIERS: [(&str, Carrier); 4] = [
    ("mma_s8", |s, c| mma_s8(s, c)),
    ("wgmma_s8", |s, c| wgmma_s8(s, c)),
    ("wgmma_bf16", |s, c| wgmma_bf16(s, c)),
    ("gather_bf16", |s, c| gather_bf16(s, c)),
];

#[test]
fn whole_tiles_and_tails() {
    for (name, carrier) in CARRIERS {
        for shape in &SMALL {
            for config in
                [|c: LaunchConfig| c.threads(1), |c: LaunchConfig| c.threads(2).checks(false).seed(9)]
            {
                if let Err(fault) = carrier(shape, config) {
                    panic!("{name} {} x {} x {}: {fault}", shape.vocab, shape.rows, shape.hidden);
                }
            }
        }
    }
}

#[test]
fn real_hidden_sizes() {
    for (name, carrier) in CARRIERS {
        for hidden in [4096, 7168] {
            let shape = Shape { vocab: 256, rows: 60, hidden };
            if let Err(fault) = carrier(&shape, |c| c.threads(2)) {
                panic!("{name} with hidden {hidden}: {fault}");
            }
        }
    }
}

#[test]
fn no_false_alarm_over_100_seeds() {
    let shape = Shape { vocab: 130, rows: 8, hidden: 768 };
    for seed in 0..100 {
        let with = |c: LaunchConfig| c.threads(2).seed(seed);
        for (name, outcome) in [
            ("mma_s8", mma_s8(&shape, with)),
            ("wgmma_s8", wgmma_s8(&shape, with)),
            ("wgmma_bf16", wgmma_bf16(&shape, with)),
            ("gather_bf16", gather_bf16(&shape, with)),
        ] {
            if let Err(fault) = outcome {
                panic!("{name}: {fault}");
            }
        }
    }
}
