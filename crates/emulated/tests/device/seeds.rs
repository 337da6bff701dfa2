//! Correct kernels cause no faults, whatever the schedule.

use lmhead::DType;
use lmhead::plan::{DeviceLimits, Family, Plan, Precision, WeightLayout};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::table::PRECISIONS;
use lmhead_testkit::product::{
    Finish, Index, Launch, Layout, Loaded, Operands, Product, Values, expected, same_logits,
};

/// Number of schedules. Under an address sanitizer few are enough.
pub fn seeds() -> u64 {
    let text = std::env::var("LMHEAD_DEVICE_SEEDS").unwrap_or_else(|_| "100".into());
    text.parse().unwrap_or_else(|_| panic!("LMHEAD_DEVICE_SEEDS: wanted a number of schedules, got {text}"))
}

#[test]
fn no_false_alarm_over_100_seeds() {
    for precision in PRECISIONS {
        // Two tiles of ids; rows by index, unaligned; a tail of k; every epilogue operation.
        let mut product = Product::new(precision, 9, 131, 150);
        product.finish = Finish::ALL;
        product.values = Values::Integers;
        let operands = Operands::new(&Product {
            layout: Layout { index: Index::Int32, source_rows: 5, ..Layout::packed(9) },
            ..product
        });
        let product = operands.product;
        let limits = DeviceLimits::H100;
        let mut plans = Plan::candidates(precision, product.shape, &limits).expect("plans");
        if limits.layout() == WeightLayout::Packed {
            let packed = Plan::packed_candidates(precision, product.shape, &limits).expect("plans");
            // With a block for each tile, and with one (or a cluster) for all, also around a longer ring.
            plans.extend(packed.into_iter().flat_map(|plan| {
                let one = plan.tile.cluster() as u32;
                let longer = Plan::with_packed_tile(precision, product.shape, &plan.tile, 4, &limits);
                let longer = longer.expect("a plan");
                [plan, Plan { blocks: one, ..plan }, Plan { blocks: one, ..longer }]
            }));
        }
        // The row types of w8a8 only differ in how they are quantised.
        let quantised = matches!(precision, Precision::W8a8(DType::F16 | DType::F32));
        // All tiles have the same logits.
        let mut want = None;
        for (tile, plans) in plans.chunk_by(|one, other| one.tile == other.tile).enumerate() {
            if quantised && tile > 0 && plans[0].tile.family == Family::MmaSync {
                continue;
            }
            for seed in 0..seeds() {
                let plan = &plans[seed as usize / 2 % plans.len()];
                // Every second device has rows that are aligned to one element only.
                let device = EmulatedDevice::new(seed);
                let layout = Layout { row_gap: seed as usize % 2, ..product.layout };
                let operands = Operands::new(&Product { layout, ..product });
                let loaded = Loaded::new(&device, &operands.product, &operands).expect("memory");
                let run = |finish| {
                    let launch = Launch { finish, ..Launch::raw(plan, &operands) };
                    loaded.launch(&launch).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"))
                };
                let want = &*want
                    .get_or_insert_with(|| expected(&operands, &Finish::ALL, &run(Finish::NONE).f32s()).0);
                let same = same_logits(&run(Finish::ALL), want, 131, Finish::ALL.out);
                same.unwrap_or_else(|problem| panic!("{} seed {seed}: {problem}", plan.tile.kernel));
            }
        }
    }
}
