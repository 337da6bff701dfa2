//! The last wave of wgmma_matmul's tiles, cut into tail tiles: vocabularies around whole waves, tail tiles
//! that lie in two packed blocks, single ids.

use crate::seeds::seeds;
use lmhead::DType;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::KernelDevice;
use lmhead::backend::device::{Matmul, Spec};
use lmhead::plan::{DeviceLimits, Plan, Precision, Shape, Tail, WeightLayout};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::table::PRECISIONS;
use lmhead_testkit::product::{
    Finish, Launch, Loaded, Operands, Product, Values, draws, expected, partials, same_logits, same_status,
};

const SMS: usize = 3;

fn limits() -> DeviceLimits {
    DeviceLimits { num_sms: SMS, ..DeviceLimits::H100 }
}

/// Whole waves, ids behind them, and ids of a tail tile: three of 16; one id; tail tiles of which the last
/// has one id, which begin 8, 16, 24, 40 and 48 ids behind a packed block's first, which end in the next one,
/// also at an id that is no multiple of 8. With 128 ids also some of more than a packed block.
const CUTS: [(usize, usize, u32); 11] = [
    (1, 48, 16),
    (1, 1, 16),
    (0, 49, 24),
    (1, 49, 24),
    (2, 85, 32),
    (0, 121, 48),
    (1, 120, 40),
    (1, 150, 56),
    (1, 200, 72),
    (0, 257, 88),
    (2, 355, 120),
];

/// Every tile that may have tail tiles, with every epilogue operation, in the bits of the portable kernels.
#[test]
fn tail_tiles_have_the_bits_of_whole_tiles() {
    // The row types of w8a8 only differ in how they are quantised.
    let precisions =
        PRECISIONS.into_iter().filter(|p| !matches!(p, Precision::W8a8(DType::F16 | DType::F32)));
    for precision in precisions {
        let tiles = precision.packed_tiles().iter().filter(|tile| tile.cluster() == 1);
        for (i, tile) in tiles.enumerate() {
            let cuts = CUTS.iter().filter(|(.., ids)| (*ids as usize) < tile.block_n);
            for (n, &(waves, rest, ids)) in cuts.enumerate() {
                let (vocab, rows) = (waves * SMS * tile.block_n + rest, tile.block_m - n % 8);
                let mut product = Product::new(precision, rows, vocab, 330);
                product.values = [Values::Broken, Values::Integers][n % 2];
                product.finish =
                    Finish { out: [DType::F32, DType::F16, DType::Bf16][(i + n) % 3], ..Finish::ALL };
                let operands = Operands::new(&product);
                let with = |stages| {
                    let plan = Plan::with_packed_tile(precision, product.shape, tile, stages, &limits());
                    let plan = plan.expect("a plan");
                    assert_eq!(plan.tail.map(|tail| tail.ids), Some(ids), "{plan}");
                    plan
                };
                // One block for all tail tiles goes around its ring in the tail.
                let alone = Plan { blocks: 1, ..with(3) };
                let plans = [with(2), with(3), alone, with(4).without_tail(&limits())];
                let device = EmulatedDevice::new(0).sms(SMS);
                let of_rows = Plan::new(precision, product.shape, &device.limits()).expect("a plan");
                let loaded = Loaded::new(&device, &product, &operands).expect("memory");
                let raw = loaded.launch(&Launch::raw(&of_rows, &operands)).expect("a launch").f32s();
                let (want, status) = expected(&operands, &product.finish, &raw);
                // Every schedule of a few tiles; the cuts take turns.
                let own = |seed: &u64| *seed as usize % CUTS.len() == n;
                for seed in [n as u64].into_iter().chain((0..seeds() / 2).filter(own)) {
                    let device = EmulatedDevice::new(seed).sms(SMS);
                    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
                    let plan = &plans[seed as usize % plans.len()];
                    let launch = Launch { finish: product.finish, ..Launch::raw(plan, &operands) };
                    let name = |problem| format!("{plan}, seed {seed}: {problem}");
                    let ran = loaded.launch(&launch).map_err(name).unwrap_or_else(|e| panic!("{e}"));
                    let same = same_logits(&ran, &want, vocab, product.finish.out)
                        .and_then(|()| same_status(&ran.status, &status));
                    same.map_err(name).unwrap_or_else(|e| panic!("{e}"));
                }
            }
        }
    }
}

/// Best logits, sums, counts of what beats targets, and draws of whole and tail tiles: logits tie everywhere,
/// and the largest is the last tail tile's last. Tail tiles have fewer ids than 64 candidates have places.
#[test]
fn answers_of_tail_tiles_are_the_cpu_backend_s() {
    let cpu = CpuBackend::new(Some(2)).expect("the CPU backend");
    for (seed, (ids, rows)) in (0..).zip([(49, 3), (192 + 49, 8), (2 * 192 + 85, 14), (384 + 257, 33)]) {
        let backend = EmulatedDevice::new(seed).sms(SMS).backend();
        let shape = Shape { rows, vocab: ids, hidden: 48 };
        let plan = Plan::packed(Precision::W8a8(DType::Bf16), shape, &backend.device().limits());
        let plan = plan.expect("a plan");
        assert!(plan.tail.is_some(), "{plan}");
        partials::of_one_size_are_the_cpus(&backend, &cpu, (ids, rows, 48), seed);
        draws::of_a_product_are_the_cpus(&backend, &cpu, ((rows, ids, 64), 48), 100 + seed);
    }
}

/// A shard's workspace has room for the parts of any plan.
#[test]
fn no_plan_has_more_parts_than_there_is_room_for() {
    let device = EmulatedDevice::new(0);
    for vocab in (1..40_000).step_by(37).chain([129_280, 128_256, 262_208]) {
        let spec =
            Spec { precision: Precision::Bf16, layout: WeightLayout::Packed, vocab, hidden: 8, max_rows: 64 };
        let room = Matmul::prepare(&device, spec).expect("kernels").most_parts();
        for rows in [1, 33, 64] {
            let shape = Shape { rows, vocab, hidden: 8 };
            for plan in Plan::packed_candidates(spec.precision, shape, &device.limits()).expect("plans") {
                assert!(plan.parts() <= room, "{plan}: {} parts, room for {room}", plan.parts());
            }
        }
    }
}

/// A caller can change a plan's fields.
#[test]
fn a_tail_that_no_kernel_takes_is_refused() {
    let device = EmulatedDevice::new(0).sms(SMS);
    let product = Product::new(Precision::Bf16, 8, 300, 64);
    let operands = Operands::new(&product);
    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
    let tile = |block_m| {
        let mut tiles = Precision::Bf16.packed_tiles().iter();
        tiles.find(|tile| tile.block_m == block_m).expect("a tile")
    };
    let plan = |block_m| Plan::with_packed_tile(Precision::Bf16, product.shape, tile(block_m), 2, &limits());
    let good = plan(8).expect("a plan");
    let of_rows = Plan::new(Precision::Bf16, product.shape, &limits()).expect("a plan");
    let whole = good.tail.expect("tail tiles").whole_tiles;
    for (plan, whole_tiles, ids) in [
        // No multiple of 8, none, as many as a tile; nothing left for tail tiles.
        (good, whole, 20),
        (good, whole, 0),
        (good, whole, 64),
        (good, 5, 16),
        (good, u32::MAX, 16),
        // A cluster, and kernels without tail tiles.
        (plan(128).expect("a plan"), 0, 16),
        (of_rows, 0, 16),
    ] {
        let plan = Plan { tail: Some(Tail { whole_tiles, ids }), ..plan };
        let error = loaded.launch(&Launch::raw(&plan, &operands)).expect_err("refused");
        let got = format!("got {ids} ids behind {whole_tiles} tiles; ");
        assert!(error.contains("tail of the plan: wanted tail tiles") && error.contains(&got), "{error}");
    }
    loaded.launch(&Launch::raw(&good, &operands)).expect("a launch");
}
