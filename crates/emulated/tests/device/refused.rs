//! Invalid calls: each is refused by name, and nothing is launched.

use crate::device;
use lmhead::backend::device::{Matmul, MatmulCall, Spec};
use lmhead::plan::{DeviceLimits, Plan, Precision, Shape, WeightLayout};
use lmhead::{DType, Error};
use lmhead_testkit::product::{Finish, Guarded, Index, Launch, Layout, Loaded, Operands, Product};
use std::ptr::null;

type Change = fn(&mut MatmulCall);

const ROWS: usize = 3;
const VOCAB: usize = 70;
const HIDDEN: usize = 24;

/// Runs a good call after each change; expects an error with this text, and nothing written.
fn refused(precision: Precision, rows: &[(Change, &str)]) {
    let device = device();
    let mut product = Product::new(precision, ROWS, VOCAB, HIDDEN);
    product.finish = Finish::ALL;
    product.layout = Layout { index: Index::Int64, ..Layout::packed(ROWS) };
    let operands = Operands::new(&product);
    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
    let plan = Plan::new(precision, product.shape, &DeviceLimits::H100).expect("a plan");
    let launch = Launch { finish: Finish::ALL, ..Launch::raw(&plan, &operands) };
    let output = |bytes| Guarded::output(&device, bytes).expect("memory");
    let indices = Guarded::input(&device, bytemuck::cast_slice(&operands.indices)).expect("memory");
    let (logits, status, workspace) =
        (output(4 * ROWS * VOCAB), output(4 * ROWS), output(plan.workspace.bytes));
    let spec = Spec { precision, layout: WeightLayout::Rows, vocab: VOCAB, hidden: HIDDEN, max_rows: ROWS };
    let matmul = Matmul::prepare(&device, spec).expect("kernels");
    let call =
        loaded.call(&launch, indices.address(), logits.address(), status.address(), workspace.address());
    for (change, wanted) in rows {
        let mut bad = call;
        change(&mut bad);
        // SAFETY: the emulated device faults at addresses that are not its own, and this call is refused
        // before that.
        let error = unsafe { matmul.run(&device, (), &bad) }.expect_err(wanted);
        assert!(matches!(error, Error::Shape { .. }), "{error:?}");
        assert!(error.to_string().contains(wanted), "wanted \"{wanted}\", got \"{error}\"");
        for (what, output) in [("logits", &logits), ("status", &status), ("workspace", &workspace)] {
            output.unchanged(&device, what, |_| false).unwrap_or_else(|p| panic!("{wanted}: {p}"));
        }
    }
    // SAFETY: the buffers are as large as the call says.
    unsafe { matmul.run(&device, (), &call) }.expect("the call itself is good");
    // SAFETY: as above; with no rows nothing is done, whatever the rest of the call says.
    unsafe { matmul.run(&device, (), &MatmulCall { rows: 0, ..call }) }.expect("no rows");
}

/// The pointer moved by a few bytes.
fn shifted<T>(pointer: *const T, bytes: usize) -> *const T {
    (pointer as usize + bytes) as *const T
}

#[test]
fn calls_of_every_precision() {
    let rows: &[(Change, &str)] = &[
        (|c| c.rows = ROWS + 1, "rows of a product: wanted at most 3, got 4"),
        (|c| c.weights.data = null(), "weights: wanted an address that is a multiple of 16, got 0x0"),
        (
            |c| c.weights.data = shifted(c.weights.data, 8),
            "weights: wanted an address that is a multiple of 16",
        ),
        (|c| c.weights.pitch += 8, "pitch of the weights: wanted at least the "),
        (|c| c.weights.pitch = 16, "pitch of the weights: wanted at least the "),
        (|c| c.weights.bias = shifted(c.weights.bias, 2), "bias: wanted an address that is a multiple of 4"),
        (|c| c.hidden.data = null(), "hidden states: wanted an address"),
        (
            |c| c.hidden.data = shifted(c.hidden.data, 1),
            "hidden states: wanted an address that is a multiple of",
        ),
        (|c| c.hidden.pitch += 1, "pitch of the hidden states: wanted at least"),
        (|c| c.hidden.pitch = 2, "pitch of the hidden states: wanted at least"),
        (|c| c.hidden.index_bytes = 3, "bytes of an index: wanted 4 or 8, got 3"),
        (
            |c| c.hidden.indices = shifted(c.hidden.indices, 4),
            "indices: wanted an address that is a multiple of 8",
        ),
        (
            |c| (c.hidden.indices, c.hidden.source_rows) = (null(), 2),
            "rows of the hidden states: wanted at least 3, got 2",
        ),
        (|c| c.logits.data = std::ptr::null_mut(), "logits: wanted an address"),
        (
            |c| c.logits.data = shifted(c.logits.data, 2) as *mut _,
            "logits: wanted an address that is a multiple of 4",
        ),
        (
            |c| c.logits.pitch = 4 * VOCAB as u64 + 2,
            "pitch of the logits: wanted at least the 280 bytes of a row, a multiple of 4",
        ),
        (|c| c.logits.pitch = 4 * VOCAB as u64 - 4, "pitch of the logits: wanted at least the 280 bytes"),
        (|c| c.logits.dtype = 3, "type of the logits: wanted LMHEAD_DTYPE_F32, _F16 or _BF16, got 3"),
        (|c| c.logits.status = std::ptr::null_mut(), "row status: wanted an address"),
        (|c| c.logits.status = shifted(c.logits.status, 2) as *mut _, "row status: wanted an address"),
        (
            |c| c.adjustments.allowed_pitch = 2,
            "pitch of the mask: wanted at least the 3 words of a row, got 2",
        ),
        (
            |c| c.adjustments.allowed = shifted(c.adjustments.allowed, 1),
            "mask: wanted an address that is a multiple of 4",
        ),
        (
            |c| c.adjustments.temperatures = shifted(c.adjustments.temperatures, 2),
            "temperatures: wanted an address",
        ),
        (|c| c.adjustments.logit_bias_ids = null(), "logit_bias: wanted ids and values beside the offsets"),
        (
            |c| c.adjustments.logit_bias_values = null(),
            "logit_bias: wanted ids and values beside the offsets",
        ),
        (|c| c.adjustments.counts = null(), "counts: wanted ids and values beside the offsets"),
        (|c| c.adjustments.count_ids = null(), "counts: wanted ids and values beside the offsets"),
        (
            |c| c.adjustments.repetition = null(),
            "penalties: wanted repetition, frequency and presence of each row",
        ),
        (
            |c| c.adjustments.frequency = null(),
            "penalties: wanted repetition, frequency and presence of each row",
        ),
        (
            |c| c.adjustments.presence = null(),
            "penalties: wanted repetition, frequency and presence of each row",
        ),
        (
            |c| c.adjustments.presence = shifted(c.adjustments.presence, 1),
            "presence penalties: wanted an address",
        ),
    ];
    for precision in [Precision::Bf16, Precision::W8a8(DType::F32), Precision::W8a16(DType::F16)] {
        refused(precision, rows);
    }
}

#[test]
fn calls_with_scales_and_a_workspace() {
    let scales: (Change, &str) = (|c| c.weights.scales = null(), "weight scales: wanted an address");
    refused(Precision::W8a16(DType::Bf16), &[scales]);
    let rows: &[(Change, &str)] = &[
        scales,
        // Three rows of 32 bytes, and a scale for each.
        (|c| c.workspace_bytes = 107, "workspace: wanted 108 bytes for 3 rows, got 107"),
        (|c| c.workspace = 0, "workspace: wanted an address that is a multiple of 16"),
        (|c| c.workspace += 8, "workspace: wanted an address that is a multiple of 16"),
    ];
    refused(Precision::W8a8(DType::Bf16), rows);
}

#[test]
fn plans_of_something_else() {
    let device = device();
    let product = Product::new(Precision::Bf16, ROWS, VOCAB, HIDDEN);
    let operands = Operands::new(&product);
    let loaded = Loaded::new(&device, &product, &operands).expect("memory");
    let spec = Spec {
        precision: Precision::Bf16,
        layout: WeightLayout::Rows,
        vocab: VOCAB,
        hidden: HIDDEN,
        max_rows: 8,
    };
    let matmul = Matmul::prepare(&device, spec).expect("kernels");
    assert!(matmul.plan(9).is_err() && matmul.plan(0).is_err());
    // Unaligned rows are packed in the workspace.
    let good_pitch = (2 * HIDDEN).next_multiple_of(16);
    assert_eq!((matmul.workspace_bytes(0), matmul.workspace_bytes(8)), (Ok(0), Ok(8 * good_pitch)));
    let out = Guarded::output(&device, 4 * ROWS * VOCAB).expect("memory");
    let status = Guarded::output(&device, 4 * ROWS).expect("memory");
    let good = Plan::new(Precision::Bf16, product.shape, &DeviceLimits::H100).expect("a plan");
    let call = loaded.call(&Launch::raw(&good, &operands), 0, out.address(), status.address(), 0);
    // Stage counts without a kernel: a caller can change a plan's fields.
    for stages in [0, 2, 17] {
        // SAFETY: as in `refused`.
        let error = unsafe { matmul.run_plan(&device, (), &call, &Plan { stages, ..good }) };
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(&format!("wanted 3 to 16 stages, got {stages}; ")), "{error}");
        out.unchanged(&device, "logits", |_| false).unwrap();
    }
    let shape = |rows, vocab, hidden| Shape { rows, vocab, hidden };
    for (precision, shape) in [
        (Precision::F16, product.shape),
        (Precision::Bf16, shape(ROWS - 1, VOCAB, HIDDEN)),
        (Precision::Bf16, shape(ROWS, VOCAB + 1, HIDDEN)),
        (Precision::Bf16, shape(ROWS, VOCAB, HIDDEN + 1)),
    ] {
        let other = Plan::new(precision, shape, &DeviceLimits::H100).expect("a plan");
        // SAFETY: as in `refused`.
        let error = unsafe { matmul.run_plan(&device, (), &call, &other) }.expect_err("refused");
        assert!(error.to_string().contains("plan: wanted one of bf16, [3, 24] x [70, 24]"), "{error}");
        out.unchanged(&device, "logits", |_| false).unwrap();
        status.unchanged(&device, "status", |_| false).unwrap();
    }
}
