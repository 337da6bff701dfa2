//! Which tiles are chosen, and that every plan that is offered is valid.

use super::*;
use proptest::prelude::*;
use proptest::sample::select;

const PRECISIONS: [Precision; 8] = [
    Precision::Bf16,
    Precision::F16,
    Precision::W8a8(DType::F32),
    Precision::W8a8(DType::Bf16),
    Precision::W8a16(DType::Bf16),
    Precision::W8a16(DType::F16),
    Precision::Fp8(DType::Bf16),
    Precision::Fp8(DType::F16),
];

fn rows_of(rows: usize) -> usize {
    let shape = Shape { rows, vocab: 129_280, hidden: 7168 };
    Plan::new(Precision::Bf16, shape, &DeviceLimits::H100).expect("a plan").tile.block_m
}

#[test]
fn tiles_follow_the_rows() {
    let chosen = [1, 8, 9, 16, 28, 33, 64, 65, 128, 130, 192, 256, 896, 4096].map(rows_of);
    // 130 rows take two tiles of 128, which read less from the L2 cache than three of 64.
    assert_eq!(chosen, [8, 8, 16, 16, 32, 64, 64, 128, 128, 128, 128, 128, 128, 128]);
}

/// Kernel, blocks, stages.
fn chosen(
    precision: Precision,
    rows: usize,
    vocab: usize,
    limits: &DeviceLimits,
) -> (&'static str, u32, usize) {
    let plan = Plan::new(precision, Shape { rows, vocab, hidden: 7168 }, limits).expect("a plan");
    (plan.tile.kernel, plan.blocks, plan.stages)
}

#[test]
fn narrow_shards_fill_the_sms() {
    let (h100, bf16) = (&DeviceLimits::H100, Precision::Bf16);
    // A sixteenth of 129280 ids: tiles of 128 would leave half of the 132 SMs without work.
    assert_eq!(chosen(bf16, 28, 8128, h100), ("gather_matmul_bf16_64x32", 127, 16));
    assert_eq!(chosen(Precision::W8a8(DType::Bf16), 64, 8128, h100), ("quant_matmul_64x64", 127, 14));
    // An eighth and the whole vocabulary have enough tiles of 128.
    assert_eq!(chosen(bf16, 28, 16_192, h100), ("gather_matmul_bf16_128x32", 127, 11));
    assert_eq!(chosen(bf16, 28, 129_280, h100), ("gather_matmul_bf16_128x32", 1010, 5));
}

#[test]
fn fewer_stages_where_that_lets_two_blocks_live() {
    let (a100, l40s, h100) = (&DeviceLimits::A100, &DeviceLimits::L40S, &DeviceLimits::H100);
    let bf16 = Precision::Bf16;
    // A block has 96 KB with four stages, 72 with three.
    assert_eq!(chosen(bf16, 64, 129_280, a100), ("gather_matmul_bf16_128x64", 1010, 3));
    assert_eq!(chosen(bf16, 64, 129_280, h100), ("gather_matmul_bf16_128x64", 1010, 4));
    assert_eq!(chosen(bf16, 32, 129_280, a100), ("gather_matmul_bf16_128x32", 1010, 4));
    // If each SM has only one block, that block gets more stages.
    assert_eq!(chosen(bf16, 64, 100 * 128, a100), ("gather_matmul_bf16_128x64", 100, 6));
    // 100 KB hold two blocks of 64 x 64 with three stages, but never two of 128 ids.
    let of = |block_n, block_m, stages| {
        let tile = bf16
            .tiles()
            .iter()
            .find(|tile| (tile.block_n, tile.block_m) == (block_n, block_m))
            .expect("a tile");
        tile.blocks_per_sm(stages, l40s)
    };
    assert_eq!(
        [of(64, 64, 3), of(64, 64, 4), of(64, 32, 4), of(128, 8, 3), of(128, 128, 4)],
        [2, 1, 2, 1, 0]
    );
    assert_eq!(chosen(bf16, 64, 142 * 128 + 1, l40s), ("gather_matmul_bf16_64x64", 285, 3));
}

#[test]
fn stages_are_as_many_as_fit_and_as_there_are_steps() {
    let stages = |hidden, limits: &DeviceLimits| {
        let shape = Shape { rows: 8, vocab: 8128, hidden };
        Plan::new(Precision::Bf16, shape, limits).expect("a plan").stages
    };
    // A stage has 9 KB, and an SM one block: 147 KB in flight.
    assert_eq!(stages(7168, &DeviceLimits::H100), 16);
    assert_eq!(stages(7168, &DeviceLimits::L40S), 11);
    // One stage more than there are steps of 64 along k, but never fewer than three.
    assert_eq!([1, 64, 65, 300].map(|hidden| stages(hidden, &DeviceLimits::H100)), [3, 3, 3, 6]);
}

/// The terms of the tiles 128 x 128 and 128 x 64, worked out by hand.
#[test]
fn costs_are_counted_by_where_the_work_is() {
    let (precision, limits) = (Precision::Bf16, DeviceLimits::H100);
    let shape = Shape { rows: 256, vocab: 132 * 128, hidden: 640 };
    let cost = |block_m, stages| {
        let tile = precision
            .tiles()
            .iter()
            .find(|tile| (tile.block_n, tile.block_m) == (128, block_m))
            .expect("a tile");
        Plan::with_tile(precision, shape, tile, stages, &limits).expect("a plan").cost(&limits)
    };
    let (large, small) = (cost(128, 3), cost(64, 4));
    // Ten steps of k of 64. Two and four row tiles share one read of the weights.
    assert_eq!([large.blocks, small.blocks, large.blocks_per_sm, small.blocks_per_sm], [2, 4, 2, 2]);
    assert_eq!([large.weight_bytes, small.weight_bytes], [2 * 132 * 128 * 640; 2]);
    assert_eq!([large.products, small.products], [128 * 256 * 640; 2]);
    assert_eq!([large.l2_bytes, small.l2_bytes], [2 * 10 * 256 * 128, 4 * 10 * 192 * 128]);
    // Copies into shared memory, reads of the warps, and the logits written and read. Four warps of 64 x 64
    // read two thirds of what eight of 32 x 64 would.
    let logits = 2 * 4 * 128 * 256;
    assert_eq!(large.shared_bytes, large.l2_bytes + 2 * 10 * 4 * (64 + 64) * 128 + logits);
    assert_eq!(small.shared_bytes, small.l2_bytes + 4 * 10 * 4 * (32 + 64) * 128 + logits);
    assert!(large.clocks.shared < 0.8 * small.clocks.shared);
    assert_eq!([large.in_flight, small.in_flight], [2 * 2 * 32_768, 2 * 3 * 24_576]);
    // 20 KB in flight for each SM hide the latency of an H100's memory.
    assert_eq!(large.wanted_in_flight, 20_300);
    let said = large.to_string();
    assert!(
        said.contains("bound by L2: memory") && said.contains("131072 of 20300 bytes in flight"),
        "{said}"
    );
}

#[test]
fn clusters_share_what_they_copy() {
    let (precision, limits) = (Precision::Bf16, DeviceLimits { num_sms: 4, ..DeviceLimits::H100 });
    let shape = Shape { rows: 300, vocab: 1000, hidden: 256 };
    let cost = |block_n| {
        let mut tiles = precision.packed_tiles().iter();
        let tile = tiles.find(|tile| (tile.block_n, tile.block_m) == (block_n, 128)).expect("a tile");
        Plan::with_packed_tile(precision, shape, tile, 3, &limits).expect("a plan").cost(&limits)
    };
    let (small, large) = (cost(128), cost(256));
    // Two clusters share 4 x 3 tiles of 256 x 128, and 4 x 2 of 256 x 256.
    assert_eq!([small.blocks, large.blocks], [6, 4]);
    // Four columns of k of 64, 128 bytes each: 128 ids and half of the rows, half of 256 ids and all rows.
    let column = 128;
    assert_eq!(small.l2_bytes, 6 * 4 * (128 + 64) * column);
    assert_eq!(large.l2_bytes, 4 * 4 * (128 + 128) * column);
    // Written by copies; read: each id once, the rows by each 64 ids.
    let logits = |ids: u64| 2 * 4 * ids * 128;
    assert_eq!(small.shared_bytes, 6 * (4 * (128 + 128 + 128 + 2 * 128) * column + logits(128)));
    assert_eq!(large.shared_bytes, 4 * (4 * (256 + 128 + 256 + 4 * 128) * column + logits(256)));
    assert_eq!([small.products, large.products], [6 * 128 * 128 * 256, 4 * 256 * 128 * 256]);
    // Two stages of a column each ahead of the one that is read.
    assert_eq!([small.in_flight, large.in_flight], [2 * 256 * column, 2 * 384 * column]);
    // With one row an instruction takes as long as with 32.
    let one = Plan::packed(precision, Shape { rows: 1, ..shape }, &limits).expect("a plan");
    assert_eq!((one.tile.block_n, one.tile.block_m), (64, 8));
    assert_eq!(one.cost(&limits).products, 4 * 64 * 32 * 256);
}

#[test]
fn too_few_bytes_in_flight_cost_time() {
    let (precision, limits) = (Precision::Bf16, DeviceLimits::H100);
    let shape = Shape { rows: 1, vocab: 132 * 64, hidden: 7168 };
    let of =
        |stages| Plan::with_tile(precision, shape, &precision.tiles()[0], stages, &limits).expect("a plan");
    let clocks = (3..=16).map(|stages| of(stages).cost(&limits).clocks.total()).collect::<Vec<_>>();
    assert!(clocks.is_sorted_by(|one, other| one >= other), "{clocks:?}");
    assert!(clocks[0] > clocks[13], "{clocks:?}");
}

#[test]
fn plans_are_ranked_with_the_chosen_one_first() {
    for precision in PRECISIONS {
        for rows in [1, 28, 200, 4096] {
            let shape = Shape { rows, vocab: 16_192, hidden: 4096 };
            let ranked =
                Plan::ranked(WeightLayout::Rows, precision, shape, &DeviceLimits::A100).expect("plans");
            assert_eq!(ranked[0].0, Plan::new(precision, shape, &DeviceLimits::A100).expect("a plan"));
            assert!(ranked.is_sorted_by(|one, other| one.1.clocks.total() <= other.1.clocks.total()));
            let mut kernels: Vec<_> = ranked.iter().map(|(plan, _)| plan.tile.kernel).collect();
            kernels.sort_unstable();
            kernels.dedup();
            assert_eq!((kernels.len(), ranked.len()), (precision.tiles().len(), precision.tiles().len()));

            let (layout, limits) = (WeightLayout::Packed, DeviceLimits::H100);
            let ranked = Plan::ranked(layout, precision, shape, &limits).expect("plans");
            assert_eq!(ranked[0].0, Plan::packed(precision, shape, &limits).expect("a plan"));
            assert!(ranked.is_sorted_by(|one, other| one.1.clocks.total() <= other.1.clocks.total()));
            // Tiles of more rows than there is a workspace for are left out.
            assert!(rows < 200 || ranked.len() == precision.packed_tiles().len());
        }
    }
}

#[test]
fn every_tile_fits_every_gpu_from_ampere_on() {
    for precision in PRECISIONS {
        for (rows, capability) in [(1, (8, 6)), (20, (8, 9)), (200, (12, 0)), (40_000, (12, 1))] {
            let shape = Shape { rows, vocab: 262_208, hidden: 12_288 };
            let limits = DeviceLimits { capability, ..DeviceLimits::L40S };
            let plans = Plan::candidates(precision, shape, &limits).expect("plans");
            let with = |stages| plans.iter().filter(|plan| plan.stages == stages).count();
            assert_eq!(with(3), precision.tiles().len(), "{precision}");
            assert!(with(4) > 0 && with(6) > 0);
        }
    }
}

/// An SM of a consumer chip has a smaller share of the memory bandwidth and multiplies fewer operands a
/// clock.
#[test]
fn a_consumer_chip_is_not_counted_as_a_data_centre_chip() {
    for precision in PRECISIONS {
        let shape = Shape { rows: 64, vocab: 129_280, hidden: 7168 };
        let plan = Plan::new(precision, shape, &DeviceLimits::L40S).expect("a plan");
        let clocks = |capability| plan.cost(&DeviceLimits { capability, ..DeviceLimits::L40S }).clocks;
        for (consumer, data_centre) in [((12, 0), (10, 0)), ((12, 1), (9, 0)), ((8, 9), (8, 0))] {
            let (slow, fast) = (clocks(consumer), clocks(data_centre));
            assert!(slow.memory > fast.memory && slow.tensor > fast.tensor, "{consumer:?}: {slow:?}");
        }
    }
}

fn devices() -> impl Strategy<Value = DeviceLimits> {
    let known = select(vec![DeviceLimits::H100, DeviceLimits::A100, DeviceLimits::L40S]);
    let any = (8u32..13, 0u32..10, 1usize..300, 0usize..300_000, 0usize..300_000).prop_map(
        |(major, minor, num_sms, shared_bytes, more)| DeviceLimits {
            capability: (major, minor),
            num_sms,
            shared_bytes,
            // 0 or 1 is what stands here where the driver does not report it.
            shared_per_sm: if more < 100_000 { more % 2 } else { shared_bytes + more },
        },
    );
    prop_oneof![known, any]
}

fn shapes() -> impl Strategy<Value = Shape> {
    let rows = prop_oneof![1usize..300, 1usize..1 << 30];
    let vocab = prop_oneof![1usize..300_000, 1usize..1 << 30];
    (rows, vocab, 1usize..20_000).prop_map(|(rows, vocab, hidden)| Shape { rows, vocab, hidden })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_plan_of_every_shape_on_every_device_is_valid(
        precision in select(&PRECISIONS[..]), shape in shapes(), limits in devices(),
    ) {
        let all = Plan::candidates(precision, shape, &limits);
        let Ok(best) = Plan::new(precision, shape, &limits) else {
            // Then no tile is valid, not even with the fewest stages.
            prop_assert!(all.is_err());
            for tile in precision.tiles() {
                prop_assert!(check(precision, &shape, tile, *STAGES.start(), &limits).is_err());
            }
            return Ok(());
        };
        let all = all.unwrap();
        prop_assert!(all.contains(&best));
        for plan in &all {
            prop_assert_eq!(check(precision, &shape, &plan.tile, plan.stages, &limits), Ok(()));
            prop_assert!(plan.shared_bytes() <= limits.shared_bytes && plan.blocks <= i32::MAX as u32);
            let whole = plan.blocks as usize * plan.tile.block_m * plan.tile.block_n;
            prop_assert!(whole >= shape.rows * shape.vocab);
            prop_assert!(plan.tile.blocks_per_sm(plan.stages, &limits) >= 1);
            prop_assert_eq!((plan.workspace, plan.quantize), (best.workspace, best.quantize));
            let clocks = |of: &Plan| of.cost(&limits).clocks.total();
            prop_assert!(clocks(&best) <= clocks(plan), "{best}: {plan}");
            prop_assert!(clocks(plan).is_finite());
        }
        // With `most_rows` rows every tile's blocks can still be counted.
        let most = Shape { rows: most_rows(shape.vocab), ..shape };
        prop_assert!(precision.tiles().iter().all(|tile| tile.tiles(&most).is_some()));
    }
}

#[test]
fn what_the_kernels_do_not_take_is_refused_with_the_rule() {
    let h100 = DeviceLimits::H100;
    let old = DeviceLimits { capability: (7, 5), ..h100 };
    let small = DeviceLimits { capability: (8, 0), shared_bytes: 16_384, ..h100 };
    let shape = |rows, vocab, hidden| Shape { rows, vocab, hidden };
    for (precision, shape, limits, wanted) in [
        (Precision::Bf16, shape(0, 1, 1), h100, "wanted at least one row, id and element, got 0, 1, 1"),
        (Precision::Bf16, shape(1, 1, 1 << 25), h100, "wanted a hidden size of at most 2^24"),
        (
            Precision::W8a8(DType::Bf16),
            shape(1, 1, 132_105),
            h100,
            "wanted a hidden size of at most 132104 for w8a8",
        ),
        (Precision::Bf16, shape(1 << 30, 1 << 30, 64), h100, "wanted at most 2^31 - 1 tiles, got "),
        (Precision::Bf16, shape(usize::MAX, 1, 64), h100, "wanted at most 2^30 rows and ids"),
        (Precision::F16, shape(1, 1, 64), old, "wanted compute capability 8.0 or newer, got 7.5"),
        (
            Precision::F16,
            shape(1, 1, 64),
            small,
            "kernel gather_matmul_f16_64x8: wanted 27648 bytes of shared memory",
        ),
    ] {
        let error = Plan::new(precision, shape, &limits).expect_err("refused").to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(Plan::candidates(precision, shape, &limits).is_err());
    }
    assert!(Plan::new(Precision::W8a16(DType::F16), shape(1, 1, 132_105), &h100).is_ok());
}

#[test]
fn types_without_a_kernel_are_refused_by_name() {
    use DType::{Bf16, E4m3, F16, F32, I8};
    for (weights, quantization, hidden, wanted) in [
        (
            F32,
            Quantization::None,
            F32,
            "wanted bf16, f16, int8 or FP8 weights, got f32; use the cpu backend for f32 heads",
        ),
        (I8, Quantization::W8a16, F32, "wanted f16 or bf16 hidden states for w8a16, got f32; "),
        (E4m3, Quantization::W8a16, F32, "wanted f16 or bf16 hidden states for w8a16, got f32; "),
        (Bf16, Quantization::None, F16, "wanted bf16 hidden states for bf16 weights, got f16; "),
    ] {
        let error = Precision::of(weights, quantization, hidden).expect_err("no kernel").to_string();
        assert!(error.starts_with(&format!("device kernels: {wanted}")), "{error}");
    }
    assert_eq!(Precision::of(I8, Quantization::W8a8, F32), Ok(Precision::W8a8(F32)));
    assert_eq!(Precision::of(I8, Quantization::W8a16, F16), Ok(Precision::W8a16(F16)));
    assert_eq!(Precision::of(E4m3, Quantization::W8a16, Bf16), Ok(Precision::Fp8(Bf16)));
}
