//! int8 rows: the matmul overlapping with the kernel that quantises them, with one mistake each.

use crate::broken_matmul::{BrokenMatmulParams, Outcome, product, tile, told};
use crate::planted::record;
use half::bf16;
use lmhead::DType;
use lmhead::backend::params::{
    LMHEAD_DTYPE_F32, LMHEAD_STATUS_BAD_INDEX, LogitMatrix, QuantizeRowsParams, RowMatrix, WeightMatrix,
};
use lmhead::plan::Precision;
use lmhead::quantize::quantize_row;
use lmhead_emulated::emulated_kernel;
use lmhead_emulated::{Device, FaultKind, LaunchConfig};
use std::ptr::{null, null_mut};

/// Three tiles of 64 ids; four stages of 128 k and a tail.
const VOCAB: usize = 150;
const ROWS: usize = 13;
const HIDDEN: usize = 4 * 128 + 21;

/// Quantises the rows and multiplies with mistake `how`, using programmatic dependent launch.
fn run(how: u32, seed: u64) -> Outcome {
    let random = |i: usize| (i.wrapping_mul(2_654_435_761) >> 9) as i8;
    let pitch = HIDDEN.next_multiple_of(16);
    let weights: Vec<i8> = (0..VOCAB * pitch).map(random).collect();
    let scales: Vec<f32> = (0..VOCAB).map(|id| 0.01 + id as f32 * 1e-4).collect();
    let rows: Vec<bf16> =
        (0..ROWS * HIDDEN).map(|i| bf16::from_f32(f32::from(random(i + 77)) * 0.03)).collect();
    let indices: Vec<i32> =
        (0..ROWS as i32).map(|i| if i == 4 { 99 } else { (i * 5) % ROWS as i32 }).collect();

    let mut device = Device::new();
    let logits = device.upload(&[f32::NAN; ROWS * VOCAB]);
    // The old contents do not matter: the status is stored.
    let status = device.upload(&[0xdead_beefu32; ROWS]);
    let quantised = device.upload(&vec![0x55u8; ROWS * pitch]);
    let row_scales = device.upload(&[f32::NAN; ROWS]);
    let before = QuantizeRowsParams {
        rows: RowMatrix {
            data: device.upload_read_only(&rows.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).pointer(),
            pitch: 2 * HIDDEN as u64,
            indices: device.upload_read_only(&indices).pointer(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
        out: quantised.pointer(),
        out_pitch: pitch as u64,
        scales: row_scales.pointer(),
        status: status.pointer(),
        bars: null_mut(),
        row_count: ROWS as u32,
        hidden: HIDDEN as u32,
        status_before: 0,
    };
    let mut product = product(
        LogitMatrix {
            data: logits.pointer(),
            pitch: 4 * VOCAB as u64,
            status: status.pointer(),
            dtype: LMHEAD_DTYPE_F32,
        },
        WeightMatrix {
            data: device.upload_read_only(&weights).pointer(),
            pitch: pitch as u64,
            scales: device.upload_read_only(&scales).pointer(),
            bias: null(),
            packed: 0,
        },
        RowMatrix {
            data: quantised.pointer(),
            pitch: pitch as u64,
            indices: null(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
    );
    product.row_scales = row_scales.pointer();
    (product.vocab, product.row_count, product.hidden) = (VOCAB as u32, ROWS as u32, HIDDEN as u32);
    let tile = tile(Precision::W8a8(DType::Bf16));
    let one = LaunchConfig::new([ROWS as u32, 1, 1], [256, 1, 1]).shared(32).seed(seed).threads(2);
    let other = LaunchConfig::new([VOCAB.div_ceil(tile.block_n) as u32, 1, 1], [128, 1, 1]);
    let other = other.shared(tile.shared_bytes(4) as u32).seed(seed + 1);
    let quantize = emulated_kernel!(quantize_rows_bf16: QuantizeRowsParams);
    let multiply = emulated_kernel!(broken_quant_matmul: BrokenMatmulParams);
    let params = BrokenMatmulParams { product, how };
    if let Err(fault) = device.launch_dependent((&quantize, &before, &one), (&multiply, &params, &other)) {
        return Outcome::Fault(fault);
    }
    let out = device.download::<f32>(logits).expect("the device's own buffer");
    let said = device.download::<u32>(status).expect("the device's own buffer");
    let right = (0..ROWS).all(|r| {
        let row: Vec<f32> = match indices[r] {
            99 => vec![0.0; HIDDEN],
            from => rows[from as usize * HIDDEN..][..HIDDEN].iter().map(|v| v.to_f32()).collect(),
        };
        let mut q = vec![0i8; HIDDEN];
        let scale = quantize_row(&row, &mut q);
        let wanted = |id: usize| {
            let sum: i32 = (0..HIDDEN).map(|k| i32::from(q[k]) * i32::from(weights[id * pitch + k])).sum();
            ((sum as f32 * scale) * scales[id]) * 2.0
        };
        let status = if r == 4 { LMHEAD_STATUS_BAD_INDEX } else { 0 };
        said[r] == status && (0..VOCAB).all(|id| out[r * VOCAB + id].to_bits() == wanted(id).to_bits())
    });
    if right { Outcome::Right } else { Outcome::Wrong }
}

#[test]
fn the_pair_itself_is_right() {
    for seed in 0..50 {
        match run(0, seed) {
            Outcome::Right => {}
            Outcome::Wrong => panic!("seed {seed}: wrong logits or statuses"),
            Outcome::Fault(fault) => panic!("a false alarm: {fault}"),
        }
    }
}

#[test]
fn what_is_touched_before_the_wait_is_named() {
    for (how, what) in [
        (30, "no wait for the kernel before"),
        (31, "rows on their way before the wait"),
        (32, "one thread's wait, which the others do not know of"),
        (33, "a status that the kernel before stores, too"),
    ] {
        let named = |seed| match run(how, seed) {
            Outcome::Fault(fault) if fault.kind == FaultKind::Dependency => told(&fault),
            Outcome::Fault(fault) => panic!("{what}, seed {seed}: wanted a dependency, got {fault}"),
            _ => panic!("{what}, seed {seed}: wanted a fault, got none"),
        };
        record("broken_quant_matmul", how, what, &(0..6).map(named).collect::<Vec<_>>());
    }
}
