//! Adjustments in device memory whose ids do not ascend, or are out of range, which the host cannot check.
//! Such entries may be ignored; nothing else may happen.

use crate::device;
use lmhead::DType;
use lmhead::backend::device::{Matmul, NO_ADJUSTMENTS, Spec};
use lmhead::plan::{Plan, Precision, WeightLayout};
use lmhead_testkit::product::{Finish, Guarded, Launch, Layout, Loaded, Operands, Product, bits_of};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const ROWS: usize = 3;
/// Three tiles, the last one short.
const VOCAB: usize = 300;
const HIDDEN: usize = 20;

/// Ids of a row in any order: at tiles' ends and elsewhere, repeated, beyond the vocabulary and beyond 31
/// bits.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    let id = prop_oneof![
        4 => 0u32..VOCAB as u32,
        2 => select(vec![0, 127, 128, 255, 256, 299]),
        2 => select(vec![300, 383, 384, 1 << 20, i32::MAX as u32, 1 << 31, u32::MAX - 127, u32::MAX]),
    ];
    prop::collection::vec(id, 0..30)
}

fn offsets(rows: &[Vec<u32>]) -> Vec<u32> {
    let mut all = vec![0];
    all.extend(rows.iter().scan(0, |sum, row| {
        *sum += row.len() as u32;
        Some(*sum)
    }));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn nothing_but_the_logits_of_named_ids_changes(
        logit_bias in prop::collection::vec(ids(), ROWS),
        counted in prop::collection::vec(ids(), ROWS),
        precision in select(vec![Precision::Bf16, Precision::W8a8(DType::F32), Precision::W8a16(DType::F16)]),
        plan in any::<Index>(),
    ) {
        let device = device();
        let product =
            Product { layout: Layout::packed(ROWS), ..Product::new(precision, ROWS, VOCAB, HIDDEN) };
        let operands = Operands::new(&product);
        let loaded = Loaded::new(&device, &product, &operands).unwrap();
        let plans = Plan::candidates(precision, product.shape, &lmhead::plan::DeviceLimits::H100).unwrap();
        let plan = plans[plan.index(plans.len())];
        let spec =
            Spec { precision, layout: WeightLayout::Rows, vocab: VOCAB, hidden: HIDDEN, max_rows: ROWS };
        let matmul = Matmul::prepare(&device, spec).unwrap();
        let input = |words: &[u32]| Guarded::input(&device, bytemuck::cast_slice(words)).unwrap();
        let floats = |values: &[f32]| Guarded::input(&device, bytemuck::cast_slice(values)).unwrap();
        let named = |rows: &[Vec<u32>]| (input(&offsets(rows)), input(&rows.concat()));
        let (logit_bias_offsets, logit_bias_ids) = named(&logit_bias);
        let values = floats(&vec![1.0; logit_bias.concat().len()]);
        let (count_offsets, count_ids) = named(&counted);
        let counts = input(&vec![3; counted.concat().len()]);
        let penalties = [1.5, 0.25, 0.5].map(|value| floats(&[value; ROWS]));

        let run = |adjusted: bool| {
            let output = |bytes| Guarded::output(&device, bytes).unwrap();
            let (logits, status, workspace) =
                (output(4 * ROWS * VOCAB), output(4 * ROWS), output(plan.workspace.bytes));
            let launch = Launch { finish: Finish::NONE, ..Launch::raw(&plan, &operands) };
            let mut call = loaded.call(&launch, 0, logits.address(), status.address(), workspace.address());
            if adjusted {
                let at = |input: &Guarded<_>| input.address() as usize;
                call.adjustments = lmhead::backend::params::LogitAdjustments {
                    logit_bias_offsets: at(&logit_bias_offsets) as *const _,
                    logit_bias_ids: at(&logit_bias_ids) as *const _,
                    logit_bias_values: at(&values) as *const _,
                    count_offsets: at(&count_offsets) as *const _,
                    count_ids: at(&count_ids) as *const _,
                    counts: at(&counts) as *const _,
                    repetition: at(&penalties[0]) as *const _,
                    frequency: at(&penalties[1]) as *const _,
                    presence: at(&penalties[2]) as *const _,
                    ..NO_ADJUSTMENTS
                };
            }
            // SAFETY: the emulated device looks at each address before it is followed.
            unsafe { matmul.run_plan(&device, (), &call, &plan) }.unwrap();
            status.read(&device, "status").unwrap();
            bytemuck::pod_collect_to_vec::<u8, f32>(&logits.read(&device, "logits").unwrap())
        };
        let (plain, got) = (bits_of(&run(false)), bits_of(&run(true)));
        for row in 0..ROWS {
            let names =
                |id: usize| logit_bias[row].contains(&(id as u32)) || counted[row].contains(&(id as u32));
            for id in (0..VOCAB).filter(|&id| !names(id)) {
                let at = row * VOCAB + id;
                prop_assert_eq!(got[at], plain[at], "row {}, id {}", row, id);
            }
            // Rows that keep the rule are adjusted, whatever the other rows have.
            let ascend = |ids: &[u32]| ids.is_sorted() && ids.iter().all(|&id| id < VOCAB as u32);
            if counted[row].is_empty() && ascend(&logit_bias[row]) {
                for &id in &logit_bias[row] {
                    let at = row * VOCAB + id as usize;
                    let times = logit_bias[row].iter().filter(|&&other| other == id).count();
                    let want = (0..times).fold(f32::from_bits(plain[at]), |sum, _| sum + 1.0);
                    prop_assert_eq!(got[at], want.to_bits(), "row {}, id {}", row, id);
                }
            }
        }
    }
}
