//! wgmma_matmul: its tiles' sizes, packed weights that are found again, and the kernel beside the one that
//! stages its rows, with one mistake each.

use crate::broken_matmul::{BrokenMatmulParams, Outcome, product, told};
use crate::planted::record;
use half::bf16;
use lmhead::DType;
use lmhead::backend::device::hopper::{pack_weights, packed_bytes};
use lmhead::backend::params::{
    LMHEAD_DTYPE_F32, LMHEAD_STATUS_BAD_INDEX, LogitMatrix, RowMatrix, StageRowsParams, WeightMatrix,
};
use lmhead::plan::Precision;
use lmhead::plan::hopper::RING_STAGES;
use lmhead::quantize::quantize_row;
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::probe::{Probe, probe_hopper_tiles, probe_weight_piece};
use lmhead_emulated::{Device, FaultKind, LaunchConfig, emulated_kernel};
use std::ptr::null;

#[test]
fn tiles_are_as_the_plan_says() {
    let precisions = [Precision::Bf16, Precision::F16, Precision::W8a8(DType::Bf16)];
    let tiles: Vec<_> = precisions.iter().flat_map(|p| p.packed_tiles()).collect();
    let out = Probe::new(probe_hopper_tiles(), 1, 0, 5 * tiles.len() + 1).output();
    let (figures, most) = out.split_at(5 * tiles.len());
    for (tile, figures) in tiles.into_iter().zip(figures.chunks(5)) {
        let ring = tile.shared_bytes(0);
        let planned = [tile.ids, tile.rows, tile.threads() as usize, ring, tile.stage_bytes()];
        assert_eq!(figures, planned.map(|n| n as u32), "{}", tile.kernel);
    }
    assert_eq!(most, [*RING_STAGES.end() as u32]);
}

#[test]
fn a_single_row_is_found_in_either_layout() {
    let (ids, row_bytes, pitch) = (150usize, 300usize, 384usize);
    let rows: Vec<u8> = (0..ids * row_bytes).map(|i| (i % 251) as u8).collect();
    let mut packed = vec![0; packed_bytes(ids, row_bytes).expect("a number")];
    pack_weights(&rows, row_bytes, &mut packed);
    for piece in 0..row_bytes.div_ceil(16) {
        let places = |pitch: usize, packed: u32| {
            let probe = Probe::new(probe_weight_piece(), 1, 0, ids);
            probe.n(&[ids as u32, pitch as u32, packed, 0, piece as u32]).output()
        };
        for (id, (apart, at)) in places(304, 0).into_iter().zip(places(pitch, 1)).enumerate() {
            assert_eq!(apart as usize, id * 304 + 16 * piece);
            let len = 16.min(row_bytes - 16 * piece);
            let wanted = &rows[id * row_bytes + 16 * piece..][..len];
            assert_eq!(&packed[at as usize..][..len], wanted, "id {id}, piece {piece}");
        }
    }
}

/// Three tiles of 64 ids, two of 16 rows: two blocks have three tiles each. Five columns of k are two stages
/// and a half.
const VOCAB: usize = 150;
const ROWS: usize = 21;
const HIDDEN: usize = 4 * 128 + 21;
const TILE_ROWS: usize = 16;
/// A row's columns.
const PITCH: usize = 5 * 128;

/// Stages the rows and multiplies with mistake `how`, by programmatic dependent launch.
fn run(how: u32, seed: u64) -> Outcome {
    let random = |i: usize| (i.wrapping_mul(2_654_435_761) >> 9) as i8;
    let weights: Vec<i8> = (0..VOCAB * HIDDEN).map(random).collect();
    let mut packed = vec![0u8; packed_bytes(VOCAB, HIDDEN).expect("a number")];
    pack_weights(bytemuck::cast_slice(&weights), HIDDEN, &mut packed);
    let scales: Vec<f32> = (0..VOCAB).map(|id| 0.01 + id as f32 * 1e-4).collect();
    let rows: Vec<bf16> =
        (0..ROWS * HIDDEN).map(|i| bf16::from_f32(f32::from(random(i + 77)) * 0.03)).collect();
    let indices: Vec<i32> =
        (0..ROWS as i32).map(|i| if i == 4 { 99 } else { (i * 5) % ROWS as i32 }).collect();
    let staged_rows = ROWS.next_multiple_of(TILE_ROWS);

    let mut device = Device::new();
    let logits = device.upload(&[f32::NAN; ROWS * VOCAB]);
    // What was there before does not matter: it is stored.
    let status = device.upload(&[0xdead_beefu32; ROWS]);
    let staged = device.upload(&vec![0x55u8; staged_rows * PITCH]);
    let row_scales = device.upload(&[f32::NAN; ROWS]);
    let bars = device.upload(&[77u32; ROWS]);
    let before = StageRowsParams {
        rows: RowMatrix {
            data: device.upload_read_only(&rows.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).pointer(),
            pitch: 2 * HIDDEN as u64,
            indices: device.upload_read_only(&indices).pointer(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
        out: staged.pointer(),
        scales: row_scales.pointer(),
        status: status.pointer(),
        bars: bars.pointer(),
        row_count: ROWS as u32,
        hidden: HIDDEN as u32,
        tile_rows: TILE_ROWS as u32,
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
            data: device.upload_read_only(&packed).pointer(),
            pitch: PITCH as u64,
            scales: device.upload_read_only(&scales).pointer(),
            bias: null(),
            packed: 1,
        },
        RowMatrix {
            data: staged.pointer(),
            pitch: PITCH as u64,
            indices: null(),
            index_bytes: 4,
            source_rows: staged_rows as u32,
        },
    );
    product.row_scales = row_scales.pointer();
    (product.vocab, product.row_count, product.hidden) = (VOCAB as u32, ROWS as u32, HIDDEN as u32);
    product.stages = 3;
    // The tile of the broken kernel, which no plan has: 64 ids x 16 rows x 2 columns, room for 16 rows on
    // their way out.
    let before_ring = (16 * 4 * 68 + 4 * 1024 + 256usize).next_multiple_of(1024);
    let shared = before_ring + 3 * (64 + 16) * 256;
    let one = LaunchConfig::new([staged_rows as u32, 1, 1], [256, 1, 1]).shared(32).seed(seed).threads(2);
    let other = LaunchConfig::new([2, 1, 1], [160, 1, 1]).shared(shared as u32).seed(seed + 1);
    let stage = emulated_kernel!(stage_rows_int8_bf16: StageRowsParams);
    let multiply = emulated_kernel!(broken_wgmma_matmul: BrokenMatmulParams);
    let params = BrokenMatmulParams { product, how };
    if let Err(fault) = device.launch_dependent((&stage, &before, &one), (&multiply, &params, &other)) {
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
            let sum: i32 = (0..HIDDEN).map(|k| i32::from(q[k]) * i32::from(weights[id * HIDDEN + k])).sum();
            ((sum as f32 * scale) * scales[id]) * 2.0
        };
        let status = if r == 4 { LMHEAD_STATUS_BAD_INDEX } else { 0 };
        said[r] == status && (0..VOCAB).all(|id| out[r * VOCAB + id].to_bits() == wanted(id).to_bits())
    });
    let zeros = device.download::<u32>(bars).expect("the device's own buffer").iter().all(|&bar| bar == 0);
    if right && zeros { Outcome::Right } else { Outcome::Wrong }
}

#[test]
fn the_pair_itself_is_right() {
    for seed in 0..100 {
        match run(0, seed) {
            Outcome::Right => {}
            Outcome::Wrong => panic!("seed {seed}: wrong logits, statuses or bars"),
            Outcome::Fault(fault) => panic!("a false alarm: {fault}"),
        }
    }
}

#[test]
fn each_mistake_is_named() {
    let rows: &[(u32, &str, &[FaultKind])] = &[
        (1, "a stage filled again before it was given back", &[Race, Barrier, Incomplete]),
        (2, "a stage given back before it has been read", &[Race, Wgmma, Incomplete, Deadlock]),
        (3, "no wait for a stage to be full", &[Incomplete, Race]),
        (4, "rows on their way before the wait for the kernel before", &[Dependency]),
        (5, "scales of the rows without that wait", &[Dependency]),
        (6, "bytes of the rows that are not promised", &[Incomplete, Race, Transactions, Barrier]),
        (10, "a tile's last stage that is never given back", &[Deadlock]),
        (11, "a stage given back by every thread", &[Barrier, Race, Incomplete, Deadlock]),
        (12, "no barrier behind the init of the mbarriers", &[Race, Barrier, Deadlock]),
        (13, "stages given back while products may read them", &[Race, Wgmma, Incomplete, Barrier, Deadlock]),
    ];
    for &(how, what, kinds) in rows {
        let named = |seed| match run(how, seed) {
            Outcome::Fault(fault) if kinds.contains(&fault.kind) => told(&fault),
            Outcome::Fault(fault) => panic!("{what}, seed {seed}: wanted {kinds:?}, got {fault}"),
            Outcome::Right => panic!("{what}, seed {seed}: wanted {kinds:?}, got right logits"),
            Outcome::Wrong => panic!("{what}, seed {seed}: wanted {kinds:?}, got wrong logits"),
        };
        record("broken_wgmma_matmul", how, what, &(0..6).map(named).collect::<Vec<_>>());
    }
}

#[test]
fn mistakes_that_need_not_be_seen_give_wrong_logits() {
    for (how, what) in
        [(7, "the last stage taken for a whole one"), (9, "logits before the last products have ended")]
    {
        let seen = |seed| match run(how, seed) {
            Outcome::Right => panic!("{what}, seed {seed}: right logits"),
            Outcome::Wrong => "wrong logits".into(),
            Outcome::Fault(fault) => told(&fault),
        };
        record("broken_wgmma_matmul", how, what, &(0..6).map(seen).collect::<Vec<_>>());
    }
}
