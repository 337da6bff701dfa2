//! Sizes beyond 16 and 32 bits.

use crate::device;
use lmhead::backend::device::{KernelDevice, Matmul, MatmulCall, Spec};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX};
use lmhead::plan::{DeviceLimits, Plan, Precision, Shape, WeightLayout};
use lmhead::{DType, Error};
use lmhead_testkit::product::table::PRECISIONS;
use lmhead_testkit::product::{
    Finish, Guarded, Index, Launch, Layout, Loaded, Operands, Product, Values, check_raw, expected,
    same_logits,
};

#[test]
fn more_ids_than_16_bits_count() {
    for precision in [Precision::Bf16, Precision::W8a16(DType::F16)] {
        every_id(precision, 65_537, 24);
    }
    every_id(Precision::W8a8(DType::Bf16), 70_001, 1);
}

#[test]
#[ignore = "two minutes on the emulated device; a GPU has it in its table"]
fn more_tiles_than_16_bits_count() {
    every_id(Precision::W8a8(DType::Bf16), 65_536 * 128 + 1, 1);
}

/// One row's logits for all ids: an id that is not written has a wrong logit.
fn every_id(precision: Precision, vocab: usize, hidden: usize) {
    let mut product = Product::new(precision, 1, vocab, hidden);
    (product.values, product.finish.out) = (Values::Integers, DType::Bf16);
    let device = device();
    let operands = Operands::new(&product);
    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
    let plan = Plan::new(precision, product.shape, &DeviceLimits::H100).expect("a plan");
    let raw = loaded.launch(&Launch::raw(&plan, &operands)).expect("a launch").f32s();
    check_raw(&product, &operands, &raw).expect("sampled logits");
    let row = operands.row(0);
    for (id, got) in raw.iter().enumerate() {
        let sum: f32 = (0..hidden).map(|k| row[k] * operands.weight(id, k)).sum();
        let scaled = match precision {
            Precision::Bf16 | Precision::F16 => sum,
            Precision::W8a16(_) | Precision::Fp8(_) => sum * operands.scales[id],
            Precision::W8a8(_) => {
                let mut q = [0i8];
                let scale = lmhead::quantize::quantize_row(&row, &mut q);
                (f32::from(q[0]) * operands.weight(id, 0) * scale) * operands.scales[id]
            }
        };
        assert_eq!(got.to_bits(), scaled.to_bits(), "{precision} id {id}");
    }
    let (want, _) = expected(&operands, &product.finish, &raw);
    let ran = loaded.launch(&Launch { finish: product.finish, ..Launch::raw(&plan, &operands) });
    same_logits(&ran.expect("a launch"), &want, vocab, DType::Bf16).expect("the same logits");
}

/// Runs a call in which one operand's pitch is `pitch` bytes, with memory for one row only; returns the
/// offset of the fault from the operand's first byte.
fn fault_offset(change: fn(&mut MatmulCall, u64) -> u64, pitch: u64) -> u64 {
    let device = device();
    let product = Product::new(Precision::Bf16, 3, 130, 64);
    let operands = Operands::new(&product);
    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
    let plan = Plan::new(Precision::Bf16, product.shape, &DeviceLimits::H100).expect("a plan");
    let (logits, status) = (device.alloc(4 * 3 * 130).expect("memory"), device.alloc(12).expect("memory"));
    let mut call =
        loaded.call(&Launch::raw(&plan, &operands), 0, device.address(&logits), device.address(&status), 0);
    let start = change(&mut call, pitch);
    let spec =
        Spec { precision: Precision::Bf16, layout: WeightLayout::Rows, vocab: 130, hidden: 64, max_rows: 3 };
    let matmul = Matmul::prepare(&device, spec).expect("kernels");
    // SAFETY: the emulated device looks at each address before it is followed.
    let outcome = unsafe { matmul.run(&device, (), &call) };
    let outcome = outcome.and_then(|()| device.read(&logits, 0, &mut [0]));
    let error = outcome.expect_err("there is no such memory");
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    let text = error.to_string();
    let (_, address) = text.split_once("bytes at global 0x").unwrap_or_else(|| panic!("{text}"));
    let digits: String = address.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).expect("an address").wrapping_sub(start)
}

/// Tests cannot allocate 2^32 bytes, so the rows after the first have no memory: the address of the fault
/// must be the correct 64-bit one.
#[test]
fn offsets_have_64_bits() {
    type Change = fn(&mut MatmulCall, u64) -> u64;
    let changes: [(&str, Change, u64); 3] = [
        (
            "weights",
            |c, pitch| {
                c.weights.pitch = pitch;
                c.weights.data as u64
            },
            130,
        ),
        (
            "rows",
            |c, pitch| {
                c.hidden.pitch = pitch;
                c.hidden.data as u64
            },
            3,
        ),
        (
            "logits",
            |c, pitch| {
                c.logits.pitch = pitch;
                c.logits.data as u64
            },
            3,
        ),
    ];
    for (what, change, rows) in changes {
        for pitch in [(1 << 32) + 4096, 5 << 33] {
            let offset = fault_offset(change, pitch);
            let (row, rest) = (offset / pitch, offset % pitch);
            assert!((1..rows).contains(&row) && rest < 4 * 130, "{what} at pitch {pitch}: offset {offset}");
        }
    }
}

#[test]
fn a_negative_index_is_no_row_however_many_there_are() {
    let device = device();
    // Rows that are read in place, that are packed first, and that are quantised first.
    for (precision, row_offset) in
        [(Precision::F16, 0), (Precision::F16, 3), (Precision::W8a8(DType::F16), 0)]
    {
        let mut product = Product::new(precision, 4, 66, 32);
        product.layout = Layout { index: Index::Int32, source_rows: 4, row_offset, ..Layout::packed(4) };
        let mut operands = Operands::new(&product);
        operands.indices = vec![1, -2, i64::from(i32::MIN), 3];
        let loaded = Loaded::new(&device, &product, &operands).expect("memory");
        let plan = Plan::new(precision, product.shape, &DeviceLimits::H100).expect("a plan");
        let indices: Vec<u8> = operands.indices.iter().flat_map(|i| (*i as i32).to_le_bytes()).collect();
        let indices = Guarded::input(&device, &indices).expect("memory");
        let logits = Guarded::output(&device, 4 * 4 * 66).expect("memory");
        let (status, workspace) = (
            Guarded::output(&device, 16).expect("memory"),
            Guarded::output(&device, plan.workspace.bytes).expect("memory"),
        );
        let mut call = loaded.call(
            &Launch::raw(&plan, &operands),
            indices.address(),
            logits.address(),
            status.address(),
            workspace.address(),
        );
        call.hidden.source_rows = u32::MAX;
        let spec = Spec { precision, layout: WeightLayout::Rows, vocab: 66, hidden: 32, max_rows: 4 };
        let matmul = Matmul::prepare(&device, spec).expect("kernels");
        // SAFETY: no valid index names a row beyond the fourth.
        unsafe { matmul.run(&device, (), &call) }.expect("a launch");
        let said: Vec<u32> = bytemuck::pod_collect_to_vec(&status.read(&device, "status").expect("good"));
        let (good, bad) = (LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_ALLOWED | LMHEAD_STATUS_BAD_INDEX);
        assert_eq!(said, [good, bad, bad, good]);
        let raw: Vec<f32> = bytemuck::pod_collect_to_vec(&logits.read(&device, "logits").expect("good"));
        check_raw(&product, &operands, &raw).expect("rows of zeros");
        assert!(raw[66..132].iter().all(|v| v.to_bits() & 0x7fff_ffff == 0));
        assert_eq!(expected(&operands, &Finish::NONE, &raw).1, said);
    }
}

/// For the largest number of rows small tiles make too many blocks; calls with few rows can use those tiles
/// nevertheless.
#[test]
fn a_product_for_the_most_rows_runs_few_with_every_tile() {
    // Sixteen tiles of ids: 2^31 blocks of 8 rows, one more than a launch can have.
    let (vocab, hidden, most) = (2000, 16, 1 << 30);
    let device = device();
    for precision in PRECISIONS {
        let spec = Spec { precision, layout: WeightLayout::Rows, vocab, hidden, max_rows: most };
        let candidates =
            |rows| Plan::candidates(precision, Shape { rows, vocab, hidden }, &DeviceLimits::H100);
        let (all, countable) = (candidates(3).expect("plans"), candidates(most).expect("plans"));
        assert!(countable.len() < all.len(), "{precision}: a test of nothing");
        let product = Product::new(precision, 3, vocab, hidden);
        let operands = Operands::new(&product);
        let loaded = Loaded::new(&device, &product, &operands).expect("memory");
        let matmul = Matmul::prepare(&device, spec).expect("kernels");
        // The plans of each tile with the fewest and the most stages.
        let of_tiles = all.chunk_by(|one, other| one.tile == other.tile);
        for plan in of_tiles.flat_map(|plans| [&plans[0], &plans[plans.len() - 1]]) {
            let want = loaded.launch(&Launch::raw(plan, &operands)).expect("a launch").logits;
            let output = |bytes| Guarded::output(&device, bytes).expect("memory");
            let (logits, status, workspace) =
                (output(4 * 3 * vocab), output(12), output(plan.workspace.bytes));
            let call = loaded.call(
                &Launch::raw(plan, &operands),
                0,
                logits.address(),
                status.address(),
                workspace.address(),
            );
            // SAFETY: the buffers are as large as the call says.
            unsafe { matmul.run_plan(&device, (), &call, plan) }.expect("a tile that was loaded");
            assert_eq!(logits.read(&device, "logits").expect("good"), want, "{}", plan.tile.kernel);
        }
        // One row more, or more ids than the number of blocks can count, is refused before anything is
        // loaded.
        for (vocab, max_rows) in [(vocab, most + 1), (1 << 30, most)] {
            let error = Matmul::prepare(&device, Spec { vocab, max_rows, ..spec }).expect_err("too many");
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
