//! 16-bit rows that begin at any address: packed before the matmul, with the same bits, statuses and errors.

use crate::device;
use lmhead::DType;
use lmhead::backend::device::{Matmul, Spec};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX};
use lmhead::plan::{Plan, Precision, WeightLayout};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::{
    Finish, Guarded, Index, Launch, Layout, Loaded, Operands, Picks, Product, Values, bits_of, run_product,
};

const PRECISIONS: [Precision; 4] =
    [Precision::Bf16, Precision::F16, Precision::W8a16(DType::Bf16), Precision::Fp8(DType::F16)];

/// Every offset and every pitch, in elements, within 16 bytes; a hidden size with a tail, and one without.
#[test]
fn rows_at_every_offset_and_pitch() {
    for (p, precision) in PRECISIONS.into_iter().enumerate() {
        for offset in 0..8 {
            for gap in 0..8 {
                let n = 8 * offset + gap;
                let hidden = [72, 77][n % 2];
                let mut product = Product::new(precision, 3, 70, hidden);
                product.values = [Values::Gaussian, Values::Integers, Values::Broken][n % 3];
                if (n + p) % 5 == 0 {
                    product.finish = Finish::ALL;
                }
                let index = [Index::InOrder, Index::Int32, Index::Int64][(n + p) % 3];
                product.layout =
                    Layout { index, source_rows: 5, row_offset: offset, row_gap: gap, ..Layout::packed(3) };
                let device = EmulatedDevice::new(n as u64);
                run_product(&device, &product, 0)
                    .unwrap_or_else(|problem| panic!("{precision}, offset {offset}, gap {gap}: {problem}"));
            }
        }
    }
}

/// Indices of no row: zeros and the status flag, whatever the layout, and unchanged bits in the other rows.
#[test]
fn bad_indices_of_rows_that_begin_anywhere() {
    let picks = [2, -1, 0, 5, i64::from(i32::MAX), 4, i64::from(i32::MIN), 2];
    for precision in PRECISIONS {
        for index in [Index::Int32, Index::Int64] {
            let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
            for (row_offset, row_gap) in [(0, 3), (1, 0), (0, 1), (7, 5), (4, 4)] {
                let device = device();
                let mut product = Product::new(precision, 5, 70, 77);
                product.layout = Layout { row_offset, row_gap, ..Layout::packed(5) };
                let operands = Operands::new(&product);
                let loaded = Loaded::new(&device, &product, &operands).expect("memory");
                let shape = lmhead::plan::Shape { rows: picks.len(), ..product.shape };
                let plan = Plan::new(precision, shape, &lmhead::plan::DeviceLimits::H100).expect("a plan");
                let launch =
                    Launch { picks: Picks { indices: &picks, index }, ..Launch::raw(&plan, &operands) };
                let ran = loaded.launch(&launch).expect("a launch");
                let wanted = picks.map(|i| match (0..5).contains(&i) {
                    true => LMHEAD_STATUS_ALLOWED,
                    false => LMHEAD_STATUS_ALLOWED | LMHEAD_STATUS_BAD_INDEX,
                });
                assert_eq!(ran.status, wanted, "{precision}");
                let bits = bits_of(&ran.f32s());
                for (row, &i) in bits.chunks(70).zip(&picks) {
                    assert!(
                        (0..5).contains(&i) || row.iter().all(|bits| bits << 1 == 0),
                        "{precision}, row {i}"
                    );
                }
                let (rows, status) = first.get_or_insert_with(|| (bits.clone(), ran.status.clone()));
                assert_eq!((&*rows, &*status), (&bits, &ran.status), "{precision}, offset {row_offset}");
            }
        }
    }
}

/// Aligned rows need no workspace and do not touch it; for unaligned rows one that is too small is refused.
#[test]
fn the_workspace_is_for_rows_that_are_not_aligned() {
    let device = device();
    for row_offset in [0, 8, 1] {
        let mut product = Product::new(Precision::Bf16, 3, 70, 24);
        product.layout = Layout { row_offset, ..Layout::packed(3) };
        let operands = Operands::new(&product);
        let loaded = Loaded::new(&device, &product, &operands).expect("memory");
        let layout = WeightLayout::Rows;
        let spec = Spec { precision: Precision::Bf16, layout, vocab: 70, hidden: 24, max_rows: 3 };
        let matmul = Matmul::prepare(&device, spec).expect("kernels");
        let plan = matmul.plan(3).expect("a plan");
        assert_eq!((matmul.workspace_bytes(3), plan.workspace.bytes), (Ok(3 * 48), 3 * 48));
        let output = |bytes| Guarded::output(&device, bytes).expect("memory");
        let (logits, status, workspace) = (output(4 * 3 * 70), output(12), output(3 * 48));
        let launch = Launch::raw(&plan, &operands);
        let mut call = loaded.call(&launch, 0, logits.address(), status.address(), workspace.address());
        call.workspace_bytes = 3 * 48 - 1;
        // SAFETY: the buffers are as large as the call says.
        let ran = unsafe { matmul.run(&device, (), &call) };
        workspace.unchanged(&device, "workspace", |_| false).expect("left alone");
        if row_offset % 8 == 0 {
            ran.expect("no workspace is needed");
            continue;
        }
        let problem = ran.expect_err("refused").to_string();
        assert!(problem.contains("workspace: wanted 144 bytes for 3 rows, got 143"), "{problem}");
        logits.unchanged(&device, "logits", |_| false).expect("nothing was launched");
        call.workspace_bytes += 1;
        // SAFETY: as above.
        unsafe { matmul.run(&device, (), &call) }.expect("a workspace of the size that was asked for");
    }
}
