//! Kernels that a tuning table names.

use lmhead::DType;
use lmhead::backend::Backend;
use lmhead::backend::device::{KernelDevice, Matmul, Spec};
use lmhead::config::Quantization;
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::plan::tuning::Choice;
use lmhead::plan::{DeviceLimits, Precision, Tile, Tuning, WeightLayout};
use lmhead::result::Request;
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::{TestHead, local_group, row_bits};
use std::sync::Arc;

const VOCAB: usize = 333;
const HIDDEN: usize = 96;
const ROWS: usize = 9;

fn table(limits: &DeviceLimits, kernel: &str, stages: usize) -> Tuning {
    let (capability, num_sms) = (limits.capability, limits.num_sms);
    let choice =
        Choice { vocab: VOCAB, hidden: HIDDEN, rows: ROWS, kernel: kernel.into(), stages, median_us: None };
    Tuning { device: "emulated".into(), capability, num_sms, choices: vec![choice] }
}

/// The bits of the five best of each row.
fn best(test: &TestHead, backend: Arc<dyn Backend>) -> Vec<(u8, Vec<u64>)> {
    let group = HeadGroup::data_parallel(1, 0).expect("a group");
    let (exchange, shard) = (local_group(1).remove(0), test.shard(0..VOCAB));
    let mut head = LmHead::new(&test.config(), group, shard, exchange, backend).expect("a head");
    let bytes = test.rows(ROWS, 4);
    let hidden = HiddenRows::new(&bytes, test.dtype, ROWS, HIDDEN).expect("rows");
    let step = head.step(RowCounts::exact(&[ROWS]), &Request::top_k(5)).expect("a step");
    let answer = step.run(hidden).expect("an answer");
    (0..ROWS).map(|row| row_bits(&answer, row)).collect()
}

#[test]
fn heads_follow_a_table_and_keep_their_bits() {
    for (quantization, precision) in [
        (Quantization::None, Precision::Bf16),
        (Quantization::W8a8, Precision::W8a8(DType::Bf16)),
        (Quantization::W8a16, Precision::W8a16(DType::Bf16)),
    ] {
        let test = TestHead::random(VOCAB, HIDDEN, DType::Bf16, quantization, 11);
        for (device, layout, tiles) in [
            (EmulatedDevice::new(1), WeightLayout::Packed, precision.packed_tiles()),
            (EmulatedDevice::new(1).portable(), WeightLayout::Rows, precision.tiles()),
        ] {
            let limits = device.limits();
            let wanted = best(&test, Arc::new(device.clone().backend()));
            // More rows than these would want a workspace of their own.
            for Tile { kernel, .. } in tiles.iter().filter(|tile| tile.block_m <= 32) {
                let table = table(&limits, kernel, 3);
                let tuned = device.clone().backend().tuned(table.clone()).expect("a table of this device");
                assert_eq!(best(&test, Arc::new(tuned)), wanted, "{precision}, {kernel}");
                let spec = Spec { precision, layout, vocab: VOCAB, hidden: HIDDEN, max_rows: 64 };
                let matmul = Matmul::prepare(&device, spec).expect("kernels").tuned(Some(Arc::new(table)));
                let plan = matmul.plan(ROWS).expect("a plan");
                assert_eq!((plan.tile.kernel, plan.stages), (*kernel, 3));
                let more = matmul.plan(ROWS + 1).expect("a plan");
                assert_eq!(
                    more,
                    Matmul::prepare(&device, spec).expect("kernels").plan(ROWS + 1).expect("a plan")
                );
            }
        }
    }
}

#[test]
fn a_table_of_another_device_is_refused() {
    let of_another = table(&DeviceLimits::A100, "gather_matmul_bf16_64x16", 3);
    let error = EmulatedDevice::new(1).backend().tuned(of_another).expect_err("another device").to_string();
    assert!(error.contains("one of emulated: compute capability 8.0, 108 SMs"), "{error}");
}
