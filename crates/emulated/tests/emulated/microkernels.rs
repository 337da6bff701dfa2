//! The microkernels: int8 is exact; 16-bit types have the bits of the hardware's chain of instructions, k
//! ascending.

use half::bf16;
use lmhead::backend::params::{GatherMicrokernelParams, MmaMicrokernelParams, WgmmaMicrokernelParams};
use lmhead_emulated::arithmetic::bf16_step;
use lmhead_emulated::{Device, Fault, Kernel, LaunchConfig, microkernels};
use lmhead_testkit::microkernels::{self as cases, REAL, SMALL, Shape, Values, bits};

fn mma_s8(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let cases::Int8 { weights, rows, truth } = cases::int8(shape);
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize)?;
    let params = MmaMicrokernelParams {
        weights: device.upload_read_only(&weights).pointer(),
        rows: device.upload_read_only(&rows).pointer(),
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch =
        microkernels::config(vocab, row_count, 32, microkernels::MMA_THREADS, microkernels::MMA_SHARED);
    device.launch(&microkernels::mma_s8(), &params, &config(launch))?;
    assert_eq!(device.download::<i32>(out)?, truth);
    Ok(())
}

fn wgmma_s8(shape: &Shape, config: impl Fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let cases::Int8 { weights, rows, truth } = cases::int8(shape);
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize)?;
    let (w, x) = (device.upload_read_only(&weights), device.upload_read_only(&rows));
    let params = WgmmaMicrokernelParams {
        weights: microkernels::tiles(w.address(), 1, vocab, hidden, 64)?,
        rows: microkernels::tiles(x.address(), 1, row_count, hidden, microkernels::WGMMA_ROWS)?,
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch = microkernels::config(
        vocab,
        row_count,
        microkernels::WGMMA_ROWS,
        microkernels::WGMMA_THREADS,
        microkernels::WGMMA_SHARED,
    );
    device.launch(&microkernels::wgmma_s8(), &params, &config(launch))?;
    assert_eq!(device.download::<i32>(out)?, truth);
    Ok(())
}

fn wgmma_bf16(
    kernel: Kernel<WgmmaMicrokernelParams>,
    shape: &Shape,
    config: impl Fn(LaunchConfig) -> LaunchConfig,
    values: Values,
) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let cases::Halves { weights, rows, truth } = cases::halves(shape, values, bf16_step);
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize)?;
    let (w, x) = (device.upload_read_only(&weights), device.upload_read_only(&rows));
    let params = WgmmaMicrokernelParams {
        weights: microkernels::tiles(w.address(), 2, vocab, hidden, 64)?,
        rows: microkernels::tiles(x.address(), 2, row_count, hidden, microkernels::WGMMA_ROWS)?,
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    let launch = microkernels::config(
        vocab,
        row_count,
        microkernels::WGMMA_ROWS,
        microkernels::WGMMA_THREADS,
        microkernels::WGMMA_SHARED,
    );
    device.launch(&kernel, &params, &config(launch))?;
    assert_eq!(bits(&device.download::<f32>(out)?), bits(&truth));
    Ok(())
}

fn gather_bf16(
    shape: &Shape,
    config: impl Fn(LaunchConfig) -> LaunchConfig,
    values: Values,
) -> Result<(), Fault> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let cases::Gathered { weights, source, source_rows, indices, truth } =
        cases::gathered(shape, values, bf16_step);
    let mut device = Device::new();
    let out = device.alloc((row_count * vocab * 4) as usize)?;
    let w = device.upload_read_only(&weights);
    let params = GatherMicrokernelParams {
        weights: microkernels::tiles(w.address(), 2, vocab, hidden, 64)?,
        rows: device.upload_read_only(&source).pointer(),
        indices: device.upload_read_only(&indices).pointer(),
        out: out.pointer(),
        vocab,
        row_count,
        source_rows,
        hidden,
    };
    let launch = microkernels::config(
        vocab,
        row_count,
        microkernels::GATHER_ROWS,
        microkernels::WGMMA_THREADS,
        microkernels::GATHER_SHARED,
    );
    device.launch(&microkernels::gather_bf16(), &params, &config(launch))?;
    assert_eq!(bits(&device.download::<f32>(out)?), bits(&truth));
    Ok(())
}

type Microkernel = fn(&Shape, fn(LaunchConfig) -> LaunchConfig) -> Result<(), Fault>;
const MICROKERNELS: [(&str, Microkernel); 8] = [
    ("mma_s8", |s, c| mma_s8(s, c)),
    ("wgmma_s8", |s, c| wgmma_s8(s, c)),
    ("wgmma_bf16", |s, c| wgmma_bf16(microkernels::wgmma_bf16(), s, c, Values::Random)),
    ("wgmma_bf16 of integers", |s, c| wgmma_bf16(microkernels::wgmma_bf16(), s, c, Values::Integers)),
    ("wgmma_registers_bf16", |s, c| wgmma_bf16(microkernels::wgmma_registers_bf16(), s, c, Values::Random)),
    ("wgmma_registers_bf16 of integers", |s, c| {
        wgmma_bf16(microkernels::wgmma_registers_bf16(), s, c, Values::Integers)
    }),
    ("gather_bf16", |s, c| gather_bf16(s, c, Values::Random)),
    ("gather_bf16 of integers", |s, c| gather_bf16(s, c, Values::Integers)),
];

#[test]
fn whole_tiles_and_tails() {
    for (name, microkernel) in MICROKERNELS {
        for shape in &SMALL {
            for config in
                [|c: LaunchConfig| c.threads(1), |c: LaunchConfig| c.threads(2).checks(false).seed(9)]
            {
                if let Err(fault) = microkernel(shape, config) {
                    panic!("{name} {} x {} x {}: {fault}", shape.vocab, shape.rows, shape.hidden);
                }
            }
        }
    }
}

#[test]
fn real_hidden_sizes() {
    for (name, microkernel) in MICROKERNELS {
        for shape in &REAL {
            if let Err(fault) = microkernel(shape, |c| c.threads(2)) {
                panic!("{name} with hidden {}: {fault}", shape.hidden);
            }
        }
    }
}

#[test]
fn no_false_alarm_over_100_seeds() {
    for seed in 0..100 {
        // Every tenth hidden size is as large as a model's.
        let hidden = [4096, 768, 768, 768, 768, 7168, 768, 768, 768, 768][seed as usize % 10];
        let shape = Shape { vocab: 130, rows: 8, hidden };
        let with = |c: LaunchConfig| c.threads(2).seed(seed);
        for (name, outcome) in [
            ("mma_s8", mma_s8(&shape, with)),
            ("wgmma_s8", wgmma_s8(&shape, with)),
            ("wgmma_bf16", wgmma_bf16(microkernels::wgmma_bf16(), &shape, with, Values::Random)),
            (
                "wgmma_registers_bf16",
                wgmma_bf16(microkernels::wgmma_registers_bf16(), &shape, with, Values::Random),
            ),
            ("gather_bf16", gather_bf16(&shape, with, Values::Random)),
        ] {
            if let Err(fault) = outcome {
                panic!("{name}: {fault}");
            }
        }
    }
}

#[test]
fn f64_finds_a_dropped_product_a_coarse_sum_and_a_nan() {
    let shape = Shape { vocab: 16, rows: 4, hidden: 256 };
    let cases::Halves { weights, rows, truth } = cases::halves(&shape, Values::Random, bf16_step);
    assert_eq!(cases::too_far(&weights, &rows, 256, &truth), None);
    type Change = fn(&mut f32);
    for (change, wanted) in [
        ((|x| *x = f32::NAN) as Change, "output 5"),
        (|x| *x += 0.05, "output 5"),
        (|x| *x += 2e-3, "wanted all outputs within"),
    ] {
        let mut out = truth.clone();
        change(&mut out[5]);
        let problem = cases::too_far(&weights, &rows, 256, &out).expect("too far");
        assert!(problem.contains(wanted), "{problem}");
    }
    let mut shorter = rows.clone();
    shorter[255] = bf16::ZERO;
    let dropped = cases::bf16_truth(&weights, &shorter, 256, bf16_step);
    assert!(cases::too_far(&weights, &rows, 256, &dropped).is_some());
}
