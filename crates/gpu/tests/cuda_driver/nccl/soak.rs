//! Random steps over NCCL with rows and answers in device memory, as in `tests/soak.rs` over host transports.
//!
//! ```text
//! LMHEAD_SOAK_STEPS=10000 cargo test --release -p lmhead-gpu --features nccl --test cuda_driver -- \
//!   --nocapture random_steps
//! ```

use super::{all_are_destroyed, each, on_nccl, resident};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_testkit::soak::{SIZES, SoakPlan, Summary, rank, sum_up};
use std::time::Instant;

/// Default number of steps of all groups: kernels are emulated, so a step is slow.
const STEPS: u64 = 160;

/// Runs groups of these sizes whose ranks have a device each.
fn groups(sizes: &[usize], plan: impl Fn(usize) -> SoakPlan + Sync) -> Vec<Vec<Summary>> {
    let group = |&size: &usize| {
        let resident = resident(size);
        let ranks: Vec<usize> = (0..size).collect();
        // One thread steps both heads, because NCCL needs one order of a device's communicators.
        let plan = SoakPlan { on_threads: false, ..plan(size) };
        each(resident.group(&ranks), |me, exchange| {
            let stepper = resident.stepper(me);
            rank((me, size), &exchange, resident.backend(me), &stepper, &plan)
        })
    };
    sizes.iter().map(group).collect()
}

fn print_soak(text: &str) {
    text.lines().filter(|line| line.starts_with("soak over")).for_each(|line| println!("{line}"));
}

#[test]
fn random_steps_have_the_bits_of_the_unsharded_ones() {
    print_soak(&on_nccl("soak::in_child_soak", &[]));
}

#[test]
#[ignore = "needs the fake libraries: random_steps_have_the_bits_of_the_unsharded_ones runs it"]
fn in_child_soak() {
    let began = Instant::now();
    let fewer_rows = std::env::var("LMHEAD_SOAK_STEPS").is_err();
    let plan =
        |size| SoakPlan { most_rows: if fewer_rows { 16 } else { 64 }, ..SoakPlan::share(STEPS, size) };
    println!();
    sum_up("nccl on the fake libnccl", &groups(&SIZES, plan), began);
    let fake = FakeNccl::loaded();
    assert!(fake.count("operations") > 100, "{} operations", fake.count("operations"));
    all_are_destroyed();
}

/// sglang#29946, aiter#3928: corruption on replay when data and counts change and one rank is delayed. Here
/// with steps that are queued anew each time; `captured` tests replays of a graph.
#[test]
fn sglang_29946_steps_with_changing_rows_and_a_delayed_rank() {
    let late = [("FAKE_NCCL_LATE", "1"), ("FAKE_NCCL_RANK", "1")];
    print_soak(&on_nccl("soak::in_child_delayed", &late));
}

#[test]
#[ignore = "needs the fake libraries: sglang_29946_steps_with_changing_rows_and_a_delayed_rank runs it"]
fn in_child_delayed() {
    let began = Instant::now();
    let plan = |_| SoakPlan { steps: 1000, most_rows: 4, ..SoakPlan::share(STEPS, 3) };
    println!();
    sum_up("nccl with a delayed rank", &groups(&[3], plan), began);
}
