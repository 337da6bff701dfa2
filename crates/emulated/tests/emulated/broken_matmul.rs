//! The main loop of the matmul kernels with one mistake each: the device names the mistake, or the logits are
//! wrong.

use crate::planted::record;
use lmhead::backend::device::{NO_ADJUSTMENTS, NO_PARTIALS};
use lmhead::backend::params::{
    LMHEAD_DTYPE_F32, LogitMatrix, MatmulParams, PartialRow, RowMatrix, SamplingRow, TilePartials,
    WeightMatrix,
};
use lmhead::merge::{Candidate, PartialSpec};
use lmhead::plan::{Precision, Tile};
use lmhead::sampling::philox;
use lmhead_emulated::FaultKind::{self, *};
use lmhead_emulated::emulated_kernel;
use lmhead_emulated::{Device, Fault, LaunchConfig, Params};
use std::ptr::null;

/// `BrokenMatmulParams` of `broken_matmul.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BrokenMatmulParams {
    pub product: MatmulParams,
    pub how: u32,
}

// SAFETY: mirrors the struct of broken_matmul.h.
unsafe impl Params for BrokenMatmulParams {}

/// Three tiles of 64 ids, the last with few ids and an end within 16 bytes, and one tile of rows; four stages
/// of k and a tail that ends within 16 bytes and lies where the tile of logits will.
const VOCAB: usize = 150;
const ROWS: usize = 13;
const HIDDEN: usize = 4 * 64 + 21;
/// Floats from row to row: stores are of 16 bytes.
const PITCH: usize = VOCAB.next_multiple_of(4);

/// The tile of the kernel under test.
pub fn tile(precision: Precision) -> &'static Tile {
    precision.tiles().iter().find(|tile| (tile.block_n, tile.block_m) == (64, 16)).expect("a tile")
}

/// Parameters without adjustments, which write logits and statuses.
pub fn product(logits: LogitMatrix, weights: WeightMatrix, rows: RowMatrix) -> MatmulParams {
    MatmulParams {
        weights,
        rows,
        row_scales: null(),
        logits,
        adjustments: NO_ADJUSTMENTS,
        raw: std::ptr::null_mut(),
        partials: NO_PARTIALS,
        softcap: 0.0,
        scale: 2.0,
        vocab: 0,
        row_count: 0,
        hidden: 0,
        stages: 4,
        whole_tiles: 0,
        tail_ids: 0,
    }
}

/// bf16 bits of a small integer.
pub fn integer(i: usize) -> (i32, u16) {
    let value = (i.wrapping_mul(2_654_435_761) >> 7) as i32 % 17 - 8;
    (value, half::bf16::from_f32(value as f32).to_bits())
}

/// A fault in the words of docs/faults.md.
pub fn told(fault: &Fault) -> String {
    format!("{:?} in {}", fault.kind, fault.instruction)
}

pub enum Outcome {
    Right,
    Wrong,
    Fault(Fault),
}

/// The id drawn from the row, by the definition.
fn drawn(row: usize, logits: impl Iterator<Item = f32>) -> u32 {
    let words = philox::Words::new(SEED + row as u64, 3);
    let score = |(id, logit): (u32, f32)| {
        let noise = philox::gumbel(words.of(FIRST_ID + id));
        (f64::from(logit) / f64::from(TEMPERATURE) + noise, FIRST_ID + id)
    };
    let larger = |a: (f64, u32), b: (f64, u32)| if b.0 > a.0 { b } else { a };
    (0u32..).zip(logits).map(score).reduce(larger).expect("ids").1
}

/// Temperature of rows that are drawn, so high that the noise decides.
const TEMPERATURE: f32 = 3000.0;
const SEED: u64 = 77;
const FIRST_ID: u32 = 640;

/// What the kernel writes.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    Logits,
    /// For each row and tile the drawn id.
    Draws,
    /// For each row and tile the number of ids that beat a target.
    Counts,
}

impl Left {
    /// The output that a mistake is about.
    fn by(how: u32) -> Self {
        match how {
            ..50 => Left::Logits,
            50..60 => Left::Draws,
            60.. => Left::Counts,
        }
    }
}

/// Layout of a row's partial in a tile with a counted target.
const COUNTED: PartialSpec = PartialSpec { k: 1, sum: false, targets: 1 };
const COUNT_AT: usize = size_of::<PartialRow>() + size_of::<Candidate>();

/// For each row an id with the logit of its target, and the target: only the ids differ.
const TARGET: (usize, usize) = (70, 100);

/// Runs the kernel with mistake `how`. `offset` elements before the first row make it unaligned. With a `cap`
/// there is a softcap, so that the result can only be compared with the correct kernel's.
fn run(how: u32, seed: u64, (offset, cap, left): (usize, bool, Left), stages: usize) -> Outcome {
    // The last row ends with its last element: a read behind it is out of bounds.
    let pitch = HIDDEN.next_multiple_of(8);
    let nan = half::bf16::NAN.to_bits();
    let weights: Vec<u16> = (0..(VOCAB - 1) * pitch + HIDDEN)
        .map(|i| if i % pitch < HIDDEN { integer(i / pitch * HIDDEN + i % pitch).1 } else { nan })
        .collect();
    let row = |row: usize, k: usize| integer(1_000_003 + row * HIDDEN + k);
    let rows: Vec<u16> = (0..offset)
        .map(|_| nan)
        .chain(
            (0..(ROWS - 1) * pitch + HIDDEN)
                .map(|i| if i % pitch < HIDDEN { row(i / pitch, i % pitch).1 } else { nan }),
        )
        .collect();
    let indices: Vec<i32> =
        (0..ROWS as i32).map(|i| if i == 4 { -1 } else { (i * 5) % ROWS as i32 }).collect();
    let logit_bias: Vec<u32> = (0..=ROWS as u32).map(|i| 2 * i).collect();
    let ids: Vec<u32> = (0..ROWS as u32).flat_map(|i| [i + 50, 128 + i]).collect();

    let mut device = Device::new();
    let logits = device.upload(&[f32::NAN; ROWS * PITCH]);
    let status = device.upload(&[0u32; ROWS]);
    let input = device.upload_read_only(&rows);
    let mut product = product(
        LogitMatrix {
            data: logits.pointer(),
            pitch: 4 * PITCH as u64,
            status: status.pointer(),
            dtype: LMHEAD_DTYPE_F32,
        },
        WeightMatrix {
            data: device.upload_read_only(&weights).pointer(),
            pitch: 2 * pitch as u64,
            scales: null(),
            bias: null(),
            packed: 0,
        },
        RowMatrix {
            data: (input.address() as usize + 2 * offset) as *const _,
            pitch: 2 * pitch as u64,
            indices: device.upload_read_only(&indices).pointer(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
    );
    product.adjustments.logit_bias_offsets = device.upload_read_only(&logit_bias).pointer();
    product.adjustments.logit_bias_ids = device.upload_read_only(&ids).pointer();
    product.adjustments.logit_bias_values = device.upload_read_only(&vec![0.5f32; ids.len()]).pointer();
    // Zero temperatures leave the logits as they are.
    product.adjustments.temperatures = device.upload_read_only(&[0f32; ROWS]).pointer();
    (product.vocab, product.row_count, product.hidden) = (VOCAB as u32, ROWS as u32, HIDDEN as u32);
    (product.stages, product.softcap) = (stages as u32, if cap { 50.0 } else { 0.0 });
    let nothing = Candidate { value: f32::NEG_INFINITY, id: 0 };
    let tiles = VOCAB.div_ceil(64);
    let candidates = device.upload(&vec![nothing; ROWS * tiles]);
    let logit = |r: usize, id: usize| {
        let dot = |from: i32| (0..HIDDEN).map(|k| row(from as usize, k).0 * integer(id * HIDDEN + k).0).sum();
        let sum: i32 = if indices[r] < 0 { 0 } else { dot(indices[r]) };
        2.0 * sum as f32 + if id == r + 50 || id == 128 + r { 0.5 } else { 0.0 }
    };
    let target = |r: usize| Candidate { value: logit(r, TARGET.0), id: FIRST_ID + TARGET.1 as u32 };
    let counted = device.upload(&vec![u64::MAX; tiles * ROWS * COUNTED.stride(64) / 8]);
    if left == Left::Counts {
        let targets: Vec<Candidate> = (0..ROWS).map(target).collect();
        product.partials = TilePartials {
            data: counted.pointer::<u64>().cast(),
            bars: device.upload(&[0u32; ROWS]).pointer(),
            targets: device.upload_read_only(&targets).pointer(),
            k: 1,
            first_id: FIRST_ID,
            target_count: 1,
            ..NO_PARTIALS
        };
    }
    if left == Left::Draws {
        let sampling = |row| SamplingRow {
            seed: SEED + row as u64,
            position: 3,
            temperature: TEMPERATURE,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        };
        let sampling: Vec<SamplingRow> = (0..ROWS).map(sampling).collect();
        product.partials = TilePartials {
            data: candidates.pointer::<Candidate>().cast(),
            bars: device.upload(&[0u32; ROWS]).pointer(),
            draws: device.upload_read_only(&sampling).pointer(),
            first_id: FIRST_ID,
            ..NO_PARTIALS
        };
    }
    let tile = tile(Precision::Bf16);
    let shared = tile.shared_bytes(stages) as u32;
    let config = LaunchConfig::new([VOCAB.div_ceil(tile.block_n) as u32, 1, 1], [128, 1, 1]);
    let config = config.shared(shared).seed(seed);
    let params = BrokenMatmulParams { product, how };
    if let Err(fault) = device.launch(&emulated_kernel!(broken_matmul: BrokenMatmulParams), &params, &config)
    {
        return Outcome::Fault(fault);
    }
    if left == Left::Counts {
        let words = device.download::<u64>(counted).expect("the device's own buffer");
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let right = (0..tiles * ROWS).all(|i| {
            let (tile, r) = (i / ROWS, i % ROWS);
            let beats =
                |id: &usize| Candidate { value: logit(r, *id), id: FIRST_ID + *id as u32 }.beats(&target(r));
            let wanted = (64 * tile..VOCAB.min(64 * tile + 64)).filter(beats).count() as u32;
            let at = i * COUNTED.stride(64) + COUNT_AT;
            bytes[at..at + 4] == wanted.to_ne_bytes()
        });
        return if right { Outcome::Right } else { Outcome::Wrong };
    }
    if left == Left::Draws {
        let out = device.download::<Candidate>(candidates).expect("the device's own buffer");
        let right = (0..ROWS).all(|r| {
            // The tiles' candidates are compared by the same score.
            let of_tiles = &out[r * tiles..(r + 1) * tiles];
            let mut all = vec![f32::NEG_INFINITY; VOCAB];
            for candidate in of_tiles.iter().filter(|candidate| candidate.value > f32::NEG_INFINITY) {
                all[(candidate.id - FIRST_ID) as usize % VOCAB] = candidate.value;
            }
            drawn(r, all.into_iter()) == drawn(r, (0..VOCAB).map(|id| logit(r, id)))
        });
        return if right { Outcome::Right } else { Outcome::Wrong };
    }
    let out = device.download::<f32>(logits).expect("the device's own buffer");
    let right = (0..ROWS).all(|r| {
        (0..VOCAB).all(|id| out[r * PITCH + id] == logit(r, id))
            && out[r * PITCH + VOCAB..][..PITCH - VOCAB].iter().all(|v| v.is_nan())
    });
    if right { Outcome::Right } else { Outcome::Wrong }
}

#[test]
fn the_walk_itself_is_right() {
    for seed in 0..100 {
        for left in [Left::Logits, Left::Draws, Left::Counts] {
            match run(0, seed, (0, false, left), 3 + seed as usize % 14) {
                Outcome::Right => {}
                Outcome::Wrong => panic!("seed {seed}: wrong logits"),
                Outcome::Fault(fault) => panic!("a false alarm: {fault}"),
            }
        }
        if let Outcome::Fault(fault) = run(0, seed, (0, true, Left::Logits), 4) {
            panic!("a false alarm: {fault}");
        }
    }
}

#[test]
fn each_mistake_is_named() {
    let rows: &[(u32, &str, &[FaultKind])] = &[
        (2, "a wait for one group too few", &[Incomplete]),
        (3, "no barrier between landing and reading", &[Incomplete, Race]),
        (4, "copies into the stage that is read next", &[Incomplete, Race]),
        (5, "copies into a stage that others still read", &[Race]),
        (6, "groups that are never committed", &[Incomplete]),
        (10, "sums over stages that others still read", &[Race]),
        (11, "no barrier between sums and their softcap", &[Race]),
        (12, "no barrier between softcap and logit bias", &[Race]),
        (13, "no barrier between logit bias and the temperature", &[Race]),
        (14, "no barrier between the temperature and the store", &[Race]),
        (20, "weights behind the last id", &[GlobalBounds]),
        (21, "the last stage taken for a whole one", &[GlobalBounds]),
        (24, "a row read by a bad index", &[GlobalBounds]),
        (25, "rows that are not aligned read without packing", &[Misaligned]),
        (40, "logits after the last id stored", &[GlobalBounds]),
        (50, "rows after the last drawn", &[GlobalBounds]),
        (51, "no barrier between the temperature and the draw", &[Race]),
        (63, "the next row's targets used", &[GlobalBounds]),
    ];
    for &(how, what, kinds) in rows {
        let offset = usize::from(how == 25);
        let named = |seed| match run(how, seed, (offset, matches!(how, 11 | 12), Left::by(how)), 4) {
            Outcome::Fault(fault) if kinds.contains(&fault.kind) => told(&fault),
            Outcome::Fault(fault) => panic!("{what}: wanted {kinds:?}, got {fault}"),
            _ => panic!("{what}, seed {seed}: wanted {kinds:?}, got none"),
        };
        record("broken_matmul", how, what, &(0..6).map(named).collect::<Vec<_>>());
    }
}

#[test]
fn mistakes_that_no_detector_can_see_give_wrong_logits() {
    for (how, what) in [
        (22, "no zeros behind the end of k"),
        (23, "a swizzle only when reading"),
        (27, "sources of copies not advanced"),
        (28, "the ring skips its first stage"),
        (52, "noise of other ids used"),
        (61, "ties decided by ids of another shard"),
        (62, "ids after the last counted"),
    ] {
        let seen = |seed| match run(how, seed, (0, false, Left::by(how)), 4) {
            Outcome::Right => panic!("{what}, seed {seed}: right logits"),
            Outcome::Wrong => "wrong logits".into(),
            Outcome::Fault(fault) => told(&fault),
        };
        record("broken_matmul", how, what, &(0..6).map(seen).collect::<Vec<_>>());
    }
}
