//! wgmma_matmul: its tile sizes, the layout of packed weights, and its overlap with the kernel that stages
//! its rows, with one mistake each.

use crate::broken_matmul::{BrokenMatmulParams, Outcome, product, told};
use crate::planted::record;
use half::bf16;
use lmhead::DType;
use lmhead::backend::device::hopper::{pack_weights, packed_bytes};
use lmhead::backend::params::{
    LMHEAD_DTYPE_F32, LMHEAD_STATUS_BAD_INDEX, LogitMatrix, RowMatrix, StageRowsParams, WeightMatrix,
};
use lmhead::plan::Precision;
use lmhead::quantize::quantize_row;
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::probe::{Probe, probe_hopper_tiles, probe_weight_vector};
use lmhead_emulated::{Device, FaultKind, LaunchConfig, emulated_kernel};
use std::ptr::null;

#[test]
fn tiles_are_as_the_plan_says() {
    let precisions = [
        Precision::Bf16,
        Precision::F16,
        Precision::W8a8(DType::Bf16),
        Precision::W8a16(DType::Bf16),
        Precision::Fp8(DType::F16),
    ];
    let tiles: Vec<_> = precisions.iter().flat_map(|p| p.packed_tiles()).collect();
    let out = Probe::new(probe_hopper_tiles(), 1, 0, 5 * tiles.len()).output();
    for (tile, figures) in tiles.into_iter().zip(out.chunks(5)) {
        let ring = tile.shared_bytes(0);
        let planned = [tile.block_n, tile.block_m, tile.threads() as usize, ring, tile.stage_bytes()];
        assert_eq!(figures, planned.map(|n| n as u32), "{}", tile.kernel);
    }
}

#[test]
fn a_single_row_is_found_in_either_layout() {
    let (ids, row_bytes, pitch) = (150usize, 300usize, 384usize);
    let rows: Vec<u8> = (0..ids * row_bytes).map(|i| (i % 251) as u8).collect();
    let mut packed = vec![0; packed_bytes(ids, row_bytes).expect("a number")];
    pack_weights(&rows, row_bytes, &mut packed);
    for vector in 0..row_bytes.div_ceil(16) {
        let places = |pitch: usize, packed: u32| {
            let probe = Probe::new(probe_weight_vector(), 1, 0, ids);
            probe.n(&[ids as u32, pitch as u32, packed, 0, vector as u32]).output()
        };
        for (id, (apart, at)) in places(304, 0).into_iter().zip(places(pitch, 1)).enumerate() {
            assert_eq!(apart as usize, id * 304 + 16 * vector);
            let len = 16.min(row_bytes - 16 * vector);
            let wanted = &rows[id * row_bytes + 16 * vector..][..len];
            assert_eq!(&packed[at as usize..][..len], wanted, "id {id}, vector {vector}");
        }
    }
}

const HIDDEN: usize = 4 * 128 + 21;
/// Bytes of a weight row's five columns of k.
const PITCH: usize = 5 * 128;

/// Kernels with int8 weights.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    /// With rows that are quantised to int8.
    Int8,
    /// With bf16 rows; the weights are widened.
    Widened,
    /// As the first, in clusters of two blocks.
    Cluster,
    /// As the first, with a last wave in tail tiles.
    Tail,
}

/// What a kernel is run with.
struct Sizes {
    vocab: usize,
    rows: usize,
    /// Ids, rows, columns of a stage, and threads of a block.
    tile: (usize, usize, usize, u32),
}

impl Which {
    fn sizes(self) -> Sizes {
        match self {
            // Three tiles of ids, two of rows: two blocks have three tiles each, of two stages and a half.
            Which::Int8 | Which::Widened => Sizes { vocab: 150, rows: 21, tile: (64, 16, 2, 160) },
            // A cluster has both tiles of ids. Of the second, only a quarter has weights; the second block
            // has five rows.
            Which::Cluster => Sizes { vocab: 300, rows: 133, tile: (256, 128, 1, 384) },
            // Each of two blocks has a whole and a tail tile: ids 128 to 168, and 168 to 205, which are in
            // two packed blocks.
            Which::Tail => Sizes { vocab: 205, rows: 13, tile: (64, 16, 2, 160) },
        }
    }

    /// A weight. With a last wave in tail tiles, the spare ids of its instructions are computed from what the
    /// ring held before: columns 2, 3, 4, 1 and 2 of tiles whose last ids have opposite sums in columns 0 and
    /// 2.
    fn weight(self, id: usize, k: usize) -> i8 {
        let any = (id * HIDDEN + k).wrapping_mul(2_654_435_761) >> 9;
        match self {
            Which::Tail if id < 128 && id % 64 >= 40 => [127, 0, -127, 0, 0][k / 128],
            Which::Tail => any as i8 / 8,
            _ => any as i8,
        }
    }

    /// Multiplies the logits. With a last wave in tail tiles, those of spare ids would not be finite.
    fn scale(self) -> f32 {
        if self == Which::Tail { 3e36 } else { 2.0 }
    }
}

/// Stages the rows and multiplies with mistake `how`, by programmatic dependent launch.
fn run(of: Which, how: u32, seed: u64) -> Outcome {
    let Sizes { vocab, rows: row_count, tile: (block_n, block_m, columns, threads) } = of.sizes();
    let random = |i: usize| (i.wrapping_mul(2_654_435_761) >> 9) as i8;
    let weights: Vec<i8> = (0..vocab * HIDDEN).map(|i| of.weight(i / HIDDEN, i % HIDDEN)).collect();
    let mut packed = vec![0u8; packed_bytes(vocab, HIDDEN).expect("a number")];
    pack_weights(bytemuck::cast_slice(&weights), HIDDEN, &mut packed);
    let scales: Vec<f32> = (0..vocab).map(|id| 0.01 + id as f32 * 1e-4).collect();
    // Not quantised they are small integers, whose sums are exact.
    let row = |i: usize| match of {
        Which::Widened => f32::from(random(i + 77) / 8),
        Which::Tail => [1.0, -1.0][i / HIDDEN % 2],
        _ => f32::from(random(i + 77)) * 0.03,
    };
    let rows: Vec<bf16> = (0..row_count * HIDDEN).map(|i| bf16::from_f32(row(i))).collect();
    // Columns of 128 bytes of weights are of 256 bytes of bf16 rows.
    let row_pitch = if of == Which::Widened { 2 * PITCH } else { PITCH };
    let indices: Vec<i32> =
        (0..row_count as i32).map(|i| if i == 4 { 999 } else { (i * 5) % row_count as i32 }).collect();
    // A cluster has two tiles of rows; so have the others here.
    let staged_rows = row_count.next_multiple_of(2 * block_m);

    let mut device = Device::new();
    let logits = device.upload(&vec![f32::NAN; row_count * vocab]);
    // What was there before does not matter: it is stored.
    let status = device.upload(&vec![0xdead_beefu32; row_count]);
    let staged = device.upload(&vec![0x55u8; staged_rows * row_pitch]);
    let row_scales = device.upload(&vec![f32::NAN; row_count]);
    let bars = device.upload(&vec![77u32; row_count]);
    let before = StageRowsParams {
        rows: RowMatrix {
            data: device.upload_read_only(&rows.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).pointer(),
            pitch: 2 * HIDDEN as u64,
            indices: device.upload_read_only(&indices).pointer(),
            index_bytes: 4,
            source_rows: row_count as u32,
        },
        out: staged.pointer(),
        scales: row_scales.pointer(),
        status: status.pointer(),
        bars: bars.pointer(),
        row_count: row_count as u32,
        hidden: HIDDEN as u32,
        block_m: block_m as u32,
        status_before: 0,
    };
    let mut product = product(
        LogitMatrix {
            data: logits.pointer(),
            pitch: 4 * vocab as u64,
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
            pitch: row_pitch as u64,
            indices: null(),
            index_bytes: 4,
            source_rows: staged_rows as u32,
        },
    );
    product.row_scales = row_scales.pointer();
    (product.vocab, product.row_count, product.hidden) = (vocab as u32, row_count as u32, HIDDEN as u32);
    product.stages = if of == Which::Tail { 2 } else { 3 };
    product.scale = of.scale();
    if of == Which::Tail {
        (product.whole_tiles, product.tail_ids) = (2, 40);
    }
    // Room for up to 32 rows of up to 128 ids on their way out, and for candidates of each warp.
    let (part_ids, part_rows) = (block_n.min(128), block_m.min(32));
    let before_ring = (part_rows * 4 * (part_ids + 4) + part_ids / 16 * 1024 + 256).next_multiple_of(1024);
    let shared = before_ring + 3 * columns * (block_n * 128 + block_m * row_pitch / 5);
    let one = LaunchConfig::new([staged_rows as u32, 1, 1], [256, 1, 1]).shared(32).seed(seed).threads(2);
    let other = LaunchConfig::new([2, 1, 1], [threads, 1, 1]).shared(shared as u32).seed(seed + 1);
    let (stage, multiply) = match of {
        Which::Int8 | Which::Tail => (
            emulated_kernel!(stage_rows_int8_bf16: StageRowsParams),
            emulated_kernel!(broken_wgmma_matmul: BrokenMatmulParams),
        ),
        Which::Widened => (
            emulated_kernel!(stage_rows_interleaved: StageRowsParams),
            emulated_kernel!(broken_wgmma_widened: BrokenMatmulParams),
        ),
        Which::Cluster => (
            emulated_kernel!(stage_rows_int8_bf16: StageRowsParams),
            emulated_kernel!(broken_wgmma_cluster: BrokenMatmulParams),
        ),
    };
    let params = BrokenMatmulParams { product, how };
    if let Err(fault) = device.launch_dependent((&stage, &before, &one), (&multiply, &params, &other)) {
        return Outcome::Fault(fault);
    }
    let out = device.download::<f32>(logits).expect("the device's own buffer");
    let said = device.download::<u32>(status).expect("the device's own buffer");
    let right = (0..row_count).all(|r| {
        let row: Vec<f32> = match indices[r] {
            999 => vec![0.0; HIDDEN],
            from => rows[from as usize * HIDDEN..][..HIDDEN].iter().map(|v| v.to_f32()).collect(),
        };
        let mut q = vec![0i8; HIDDEN];
        let scale = match of {
            Which::Widened => {
                q.iter_mut().zip(&row).for_each(|(q, &v)| *q = v as i8);
                1.0
            }
            _ => quantize_row(&row, &mut q),
        };
        let wanted = |id: usize| {
            let sum: i32 = (0..HIDDEN).map(|k| i32::from(q[k]) * i32::from(weights[id * HIDDEN + k])).sum();
            ((sum as f32 * scale) * scales[id]) * of.scale()
        };
        let status = if r == 4 { LMHEAD_STATUS_BAD_INDEX } else { 0 };
        said[r] == status && (0..vocab).all(|id| out[r * vocab + id].to_bits() == wanted(id).to_bits())
    });
    let zeros = device.download::<u32>(bars).expect("the device's own buffer").iter().all(|&bar| bar == 0);
    if right && zeros { Outcome::Right } else { Outcome::Wrong }
}

#[test]
fn the_pair_itself_is_right() {
    let all = [Which::Int8, Which::Widened, Which::Cluster, Which::Tail];
    for (of, seed) in (0..100).flat_map(|seed| all.map(|of| (of, seed))) {
        match run(of, 0, seed) {
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
        (6, "bytes of the rows not in expect_tx", &[Incomplete, Race, Transactions, Barrier]),
        (10, "a tile's last stage that is never given back", &[Deadlock]),
        (11, "a stage given back by every thread", &[Barrier, Race, Incomplete, Deadlock]),
        (12, "no barrier behind the init of the mbarriers", &[Race, Barrier, Deadlock]),
        (13, "stages given back while products may read them", &[Race, Wgmma, Incomplete, Barrier, Deadlock]),
        (14, "a stage given back while the last products may read its rows", &[Race, Wgmma, Incomplete]),
        (15, "widened weights over those of a product under way", &[Wgmma]),
        (16, "no fence behind widened weights", &[Wgmma]),
        (17, "a stage not given back to the other block of a cluster", &[Deadlock, Divergence]),
        (18, "a stage filled again while the other block reads it", &[Race, Barrier, Incomplete, Deadlock]),
        (
            19,
            "copies to a block whose mbarriers need not be there yet",
            &[Barrier, Race, Transactions, Cluster, Deadlock, Divergence],
        ),
        (20, "a block that ends before the other's last arrival", &[Cluster]),
        (21, "spare ids of a tail tile stored", &[GlobalBounds]),
        (25, "expect_tx of a whole tile for a tail tile", &[Deadlock, Transactions]),
    ];
    for &(how, what, kinds) in rows {
        let of = match how {
            ..14 => Which::Int8,
            14..17 => Which::Widened,
            17..21 => Which::Cluster,
            _ => Which::Tail,
        };
        let named = |seed| match run(of, how, seed) {
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
    for (of, how, what) in [
        (Which::Int8, 7, "the last stage taken for a whole one"),
        (Which::Int8, 9, "logits stored before the last products have ended"),
        (Which::Tail, 22, "a row's status set by spare ids of a tail tile"),
        (Which::Tail, 23, "a tail tile copied from 8 ids further on"),
        (Which::Tail, 24, "a tail tile of two packed blocks copied as one run"),
    ] {
        let seen = |seed| match run(of, how, seed) {
            Outcome::Right => panic!("{what}, seed {seed}: right logits"),
            Outcome::Wrong => "wrong logits".into(),
            Outcome::Fault(fault) => told(&fault),
        };
        record("broken_wgmma_matmul", how, what, &(0..6).map(seen).collect::<Vec<_>>());
    }
}
