//! The table of cases: vocabularies and hidden sizes of models x types x what is done to the logits.

use super::{Finish, Index, Layout, Product, Values, run_product};
use lmhead::DType;
use lmhead::backend::device::KernelDevice;
use lmhead::plan::Precision;

/// Vocabularies of models; 50257 leaves 16-bit rows that begin at odd addresses.
const VOCABS: [usize; 11] =
    [32000, 50257, 102_400, 128_256, 129_280, 151_936, 152_064, 202_048, 256_000, 262_144, 262_208];
/// Hidden sizes of models; 2880 leaves an int8 tail.
const HIDDENS: [usize; 9] = [896, 2048, 2880, 3584, 4096, 5120, 7168, 8192, 12288];

pub const PRECISIONS: [Precision; 9] = [
    Precision::Bf16,
    Precision::F16,
    Precision::W8a8(DType::Bf16),
    Precision::W8a8(DType::F16),
    Precision::W8a8(DType::F32),
    Precision::W8a16(DType::Bf16),
    Precision::W8a16(DType::F16),
    Precision::Fp8(DType::Bf16),
    Precision::Fp8(DType::F16),
];

#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub product: Product,
    /// Plans with more multiply-adds than this are left out, except for the chosen one.
    pub work: usize,
}

fn finishes() -> Vec<(&'static str, Finish)> {
    let none = Finish::NONE;
    let plain = |bias, softcap, scale| Finish { bias, softcap, scale, ..none };
    vec![
        ("none", none),
        ("bias", plain(true, None, 1.0)),
        ("softcap", plain(false, Some(30.0), 1.0)),
        ("scale", plain(false, None, 0.0625)),
        ("bias, softcap, scale to bf16", Finish { out: DType::Bf16, ..plain(true, Some(1.0), 1.7) }),
        ("negative scale to f16", Finish { out: DType::F16, ..plain(true, Some(50.0), -2.5) }),
        ("logit_bias", Finish { logit_bias: true, ..none }),
        ("penalties", Finish { penalties: true, ..none }),
        ("mask to bf16", Finish { mask: true, out: DType::Bf16, ..none }),
        ("temperatures", Finish { temperatures: true, ..none }),
        ("all to f32", Finish::ALL),
        ("all to f16", Finish { out: DType::F16, ..Finish::ALL }),
        ("all to bf16", Finish { out: DType::Bf16, ..Finish::ALL }),
    ]
}

/// Cases with every precision, hidden size and finish; vocabularies, rows, layouts and values take turns
/// beside them.
pub fn cases() -> Vec<Case> {
    let finishes = finishes();
    // Numbers of rows for each size of tile, and on each side of its end. Where the device is slow, large
    // tiles have small hidden sizes.
    let (few, many) = ([1, 3, 8, 9, 2, 5, 16, 17], [1, 7, 28, 33, 64, 65, 130, 200]);
    let mut cases = Vec::new();
    for (p, precision) in PRECISIONS.into_iter().enumerate() {
        for (h, hidden) in HIDDENS.into_iter().enumerate() {
            // Thirteen finishes over nine hidden sizes of nine precisions: each occurs six or seven times.
            let n = p * HIDDENS.len() + h;
            let (name, finish) = finishes[n % finishes.len()];
            let vocab = VOCABS[n % VOCABS.len()];
            let vocab = reduced(vocab);
            let (rows, work) = match hidden {
                ..=896 => (many[n % many.len()], 40 << 20),
                _ => (few[n % few.len()], 20 << 20),
            };
            let mut product = Product::new(precision, rows, vocab, hidden);
            product.finish = finish;
            // Shifts by one each time that the numbers of rows begin again, so that all combinations occur.
            let round = n + n / few.len();
            product.values =
                [Values::Gaussian, Values::Gaussian, Values::Integers, Values::Broken][round % 4];
            product.layout = layouts(rows)[n % 5];
            let name = format!("{precision}, {}, {:?}, {name}", product.shape, product.values);
            cases.push(Case { name, product, work });
        }
    }
    // Large tiles with a real hidden size: many times round the ring of stages.
    for (i, precision) in PRECISIONS.into_iter().enumerate() {
        let mut product = Product::new(precision, [65, 128][i % 2], 130, 7168);
        (product.finish, product.values) = (Finish::ALL, [Values::Gaussian, Values::Integers][i % 2]);
        let name = format!("{precision}, {}, {:?}, large tiles", product.shape, product.values);
        cases.push(Case { name, product, work: usize::MAX });
    }
    cases
}

/// One or two tiles, the last as full as the vocabulary's.
fn reduced(vocab: usize) -> usize {
    128 + vocab % 128
}

fn layouts(rows: usize) -> [Layout; 5] {
    let packed = Layout::packed(rows);
    [
        packed,
        Layout { index: Index::Int32, source_rows: 2 * rows + 1, ..packed },
        Layout { index: Index::Int64, source_rows: rows, weight_gap: 1, out_gap: 8, ..packed },
        // The slow ways in and out: addresses that are aligned to an element only.
        Layout { row_offset: 1, row_gap: 3, out_offset: 1, out_gap: 5, ..packed },
        Layout { index: Index::Int64, source_rows: rows + 2, row_gap: 8, out_gap: 64, ..packed },
    ]
}

/// Runs one case.
///
/// # Errors
/// What is wrong, with the case's name.
pub fn run<D: KernelDevice>(device: &D, case: &Case) -> Result<(), String> {
    run_product(device, &case.product, case.work)
        .map_err(|problem| format!("{} (seed {}): {problem}", case.name, case.product.seed))
}

#[test]
fn every_size_and_finish_is_in_the_table() {
    let cases = cases();
    let met = |found: &dyn Fn(&Case) -> bool| cases.iter().filter(|case| found(case)).count();
    for hidden in HIDDENS {
        let large = usize::from(hidden == 7168);
        assert_eq!(met(&|c| c.product.shape.hidden == hidden), PRECISIONS.len() * (1 + large));
    }
    for (name, finish) in finishes() {
        assert!(met(&|c| c.product.finish == finish) >= 4, "{name}");
    }
    for vocab in VOCABS {
        assert!(met(&|c| c.product.shape.vocab == reduced(vocab)) >= 5, "{vocab}");
    }
}
