//! Formulas for the machine code of the kernels that plans name: products, target logits, and what quantises
//! or stages their rows.

use super::registers::{self, registers};
use super::{Expectation, HOPPER, PORTABLE};
use lmhead::DType;
use lmhead::backend::device::target_kernel;
use lmhead::plan::{Precision, Tile};

/// Every precision that kernels are compiled for; rows of any type are quantised to the same int8.
const PRECISIONS: [Precision; 7] = [
    Precision::Bf16,
    Precision::F16,
    Precision::W8a8(DType::Bf16),
    Precision::W8a16(DType::Bf16),
    Precision::W8a16(DType::F16),
    Precision::Fp8(DType::Bf16),
    Precision::Fp8(DType::F16),
];

/// The expectations of these kernels.
pub fn expected() -> Vec<Expectation> {
    let mut rows = stagers().to_vec();
    for precision in PRECISIONS {
        rows.extend(precision.tiles().iter().map(|tile| matmul(precision, tile)));
        rows.extend(precision.packed_tiles().iter().map(|tile| packed_matmul(precision, tile)));
    }
    for kernel in registers::kernels() {
        assert!(rows.iter().any(|row| row.kernel == kernel), "registers.rs: no tile has the kernel {kernel}");
    }
    rows.extend(TARGETS.iter().map(|(precision, registers)| targets(*precision, *registers)));
    for (dtype, loads, registers) in [(DType::Bf16, 4, 64), (DType::F16, 4, 64), (DType::F32, 8, 48)] {
        rows.push(Expectation {
            kernel: Precision::W8a8(dtype).quantizer().expect("rows are quantised"),
            architectures: PORTABLE,
            // Rows are loaded and int8 values stored as 16 bytes; rows twice, for the largest value and
            // for the rest.
            present: vec![("LDG.128", loads), ("STG.128", 1)],
            absent: &["HMMA", "IMMA", "LDGSTS"],
            registers,
            calls: 18,
        });
    }
    rows
}

/// Kernels that stage rows for packed weights: with int8 the largest of a row is looked for first.
fn stagers() -> [Expectation; 5] {
    [
        ("stage_rows", 1, 1, 32, 0),
        ("stage_rows_interleaved", 2, 2, 40, 0),
        ("stage_rows_int8_bf16", 4, 1, 64, 18),
        ("stage_rows_int8_f16", 4, 1, 64, 18),
        ("stage_rows_int8_f32", 8, 1, 64, 18),
    ]
    .map(|(kernel, loads, stores, registers, calls)| Expectation {
        kernel,
        architectures: HOPPER,
        present: vec![("LDG.128", loads), ("STG.128", stores)],
        absent: &["HMMA", "IMMA", "HGMMA", "IGMMA", "LDGSTS"],
        registers,
        calls,
    })
}

/// A kernel of `kernels/hopper`.
fn packed_matmul(precision: Precision, tile: &Tile) -> Expectation {
    let (instruction, types) = match precision {
        Precision::W8a8(_) => ("IGMMA", "x32.S8.S8"),
        _ if precision.rows() == DType::Bf16 => ("HGMMA", "x16.F32.BF16"),
        _ => ("HGMMA", "x16.F32"),
    };
    // A column of 128 bytes of k, in one place: widened, an instruction has 16 bytes of the weights.
    let widened = multiplies(precision).1;
    // Copies of weights, by 64 ids; one of two blocks of 256 ids copies half of them.
    let copied = (tile.block_n / 64).min(2);
    let shared = match (tile.cluster(), tile.block_n) {
        (1, _) => 0,
        (_, 256) => copied,
        _ => 1,
    };
    // The only text that is not there as it is: a name for each tile, of which there are few.
    let products: &'static str = format!("{instruction}.64x{}{types}", tile.block_m).leak();
    Expectation {
        kernel: tile.kernel,
        architectures: HOPPER,
        present: vec![
            (products, if widened { 8 } else { 4 * tile.block_n.div_ceil(128) }),
            ("LDSM.M88.4", if widened { 4 } else { 0 }),
            // The block's part of the weights and rows, before the ring is full and afterwards, and the
            // runs of a piece; what is shared goes to both blocks of a cluster, which have no pieces.
            ("UBLKCP.S.G", 2 * (copied + 1 + usize::from(shared == 0))),
            ("UBLKCP.S.G.MULTICAST", 2 * shared),
            // At the beginning and the end of a cluster, and nowhere else: it waits for the whole device.
            ("MEMBAR.ALL.GPU", if shared > 0 { 2 } else { 0 }),
            ("USETMAXREG", if tile.block_m > 64 { 2 } else { 0 }),
            ("DADD", 42),
            ("DMUL", 38),
            ("DFMA", 38),
        ],
        absent: &["HMMA", "IMMA", "LDGSTS", "UTMALDG"],
        registers: registers(tile.kernel),
        calls: 68,
    }
}

/// At most so many registers per thread of the kernels that compute single logits.
const TARGETS: &[(Precision, u32)] = &[
    (Precision::Bf16, 56),
    (Precision::F16, 56),
    (Precision::W8a8(DType::Bf16), 47),
    (Precision::W8a16(DType::Bf16), 64),
    (Precision::W8a16(DType::F16), 62),
    (Precision::Fp8(DType::Bf16), 88),
    (Precision::Fp8(DType::F16), 103),
];

/// The instruction that multiplies in a precision, and whether weights are widened for it.
fn multiplies(precision: Precision) -> (&'static str, bool) {
    let widened = matches!(precision, Precision::W8a16(_) | Precision::Fp8(_));
    let mma = match precision {
        Precision::Bf16 | Precision::W8a16(DType::Bf16) | Precision::Fp8(DType::Bf16) => {
            "HMMA.16816.F32.BF16"
        }
        Precision::W8a8(_) => "IMMA.16832.S8",
        _ => "HMMA.16816.F32",
    };
    (mma, widened)
}

/// A kernel of `kernels/target_logits_sm80.cu`: a tile of 64 ids x 8 rows.
fn targets(precision: Precision, registers: u32) -> Expectation {
    let (mma, widened) = multiplies(precision);
    Expectation {
        kernel: target_kernel(precision),
        architectures: PORTABLE,
        present: vec![
            // The matmul's own, for 128 bytes of k.
            (mma, if widened { 8 } else { 4 }),
            ("LDSM.M88.4", if widened { 4 } else { 6 }),
            // Four 16-byte vectors of weights and one of rows, the latter for complete stages and for the
            // last; in the prologue and in the loop.
            ("LDGSTS.BYPASS.128", 12),
        ],
        absent: &["HGMMA", "IGMMA", "LDSM.M88.2", "DADD", "DMUL", "DFMA"],
        registers,
        calls: 12,
    }
}

/// A kernel of `kernels/matmul`.
fn matmul(precision: Precision, tile: &Tile) -> Expectation {
    let threads = tile.threads() as usize;
    // A warp's 16-id fragments and rows.
    let (ids, rows) = (tile.warp().0 / 16, tile.warp().1);
    let (mma, widened) = multiplies(precision);
    // A stage is 128 bytes of k: four instructions for 16-bit or int8 operands, eight for int8 weights as
    // 16 bits, for each 16 ids x 8 rows.
    let steps = if widened { 8 } else { 4 };
    // 16 bytes a thread at a time, at four places: the prologue and the loop, each for complete stages
    // and for the last.
    let vectors = |bytes: usize| bytes.div_ceil(16 * threads);
    let (of_weights, of_rows) = (4 * vectors(tile.block_n * 128), 4 * vectors(tile.block_m * tile.row_bytes));
    // Logits pass through shared memory and are stored as 16-byte vectors in each type; f32 at two
    // places, one of them without adjustments. Sums of exponentials read them once, eight at a time;
    // draws four at a time.
    let (from_shared, out) = match tile.block_n * tile.block_m / threads {
        4 => (9, 4),
        8 => (11, 6),
        16 => (19, 12),
        _ => (27, 16),
    };
    let mut present = vec![
        (mma, ids * rows / 8 * steps),
        // Both operands for `mma`; rows beside widened weights are read as words.
        ("LDSM.M88.4", 4 * ids + if widened { 0 } else { rows / 4 }),
        ("LDGSTS.BYPASS.128", of_weights + of_rows),
        ("LDGSTS.BYPASS.LTC256B.128", of_weights),
        ("LDS.128", from_shared),
        ("STG.128", out),
        // Scores of drawn ids that their f32 bounds do not separate: one copy of that code.
        ("DADD", 42),
        ("DMUL", 38),
        ("DFMA", 38),
    ];
    // Also the candidates of the answers.
    let candidates = if tile.block_n == 64 { 25 } else { 37 };
    present.push(("LDS.64", if widened { rows } else { 0 } + candidates));
    Expectation {
        kernel: tile.kernel,
        architectures: PORTABLE,
        present,
        absent: &["HGMMA", "IGMMA", "LDG.128.CONSTANT", "LDSM.M88.2"],
        registers: registers(tile.kernel),
        calls: 75,
    }
}
