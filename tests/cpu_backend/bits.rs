//! Promise 1: a row's bits do not depend on what surrounds it.

use crate::cases::{
    BACKENDS, Case, Data, KINDS, Numbers, backends_of, bits, data, epilogues, int8, isas, kinds, plain,
    shapes,
};
use lmhead::backend::Backend;
use lmhead::backend::cpu::Isa;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::memory::Span;
use lmhead::merge::PartialSpec;
use lmhead::rows::HiddenRows;
use lmhead_testkit::Random;
use proptest::prelude::*;

/// Every number of rows that has a tile of its own, two tiles, and panels.
#[test]
fn each_number_of_rows_gives_a_row_the_same_bits() {
    const VOCAB: usize = 70;
    for &kind in &KINDS {
        // Several blocks of k, the last one incomplete.
        let case = Case::new(kind, 25, 1100, VOCAB, Data::Gaussian, 25);
        let shard = case.shard(0..VOCAB);
        for isa in isas() {
            let backend = backends_of(isa).last().unwrap();
            let want = case.bits(backend);
            for rows in 1..case.rows {
                let first: Vec<usize> = (0..rows).collect();
                let (got, _) = case.run(backend, case.all_rows().select(&first).unwrap(), &shard, DType::F32);
                assert_eq!(bits(&got), want[..rows * VOCAB], "{isa} {kind:?}, {rows} rows");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// One whole batch on one thread, against the same rows alone, in other batches, repeated, in other
    /// orders, by index and compacted, on other thread counts, and with the vocabulary cut into shards.
    #[test]
    fn a_row_s_bits_depend_on_nothing_around_it(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), epilogue in epilogues(),
        biased in any::<bool>(), cut in any::<prop::sample::Index>(),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        if biased {
            let mut numbers = Numbers(Random(seed ^ 1));
            case.bias = Some((0..vocab).map(|_| numbers.gaussian()).collect());
        }
        let picks: Vec<usize> = picks.iter().map(|pick| pick.index(rows)).collect();
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        let whole = case.shard(0..vocab);
        let compact: Vec<u8> = picks.iter().flat_map(|&row| case.all_rows().row(row).to_vec()).collect();
        let compact = HiddenRows::new(&compact, kind.hidden, picks.len(), hidden).unwrap();
        for isa in isas() {
            let want = case.bits(backends_of(isa).next().unwrap());
            let want_row = |row: usize| &want[row * vocab..][..vocab];
            for backend in backends_of(isa) {
                prop_assert_eq!(&case.bits(backend), &want, "threads {}", backend.threads());
                let picked = case.all_rows().select(&picks).unwrap();
                let (got, _) = case.run(backend, picked, &whole, DType::F32);
                let (compacted, _) = case.run(backend, compact, &whole, DType::F32);
                prop_assert_eq!(&bits(&got), &bits(&compacted));
                for (got, &row) in bits(&got).chunks(vocab).zip(&picks) {
                    prop_assert_eq!(got, want_row(row), "{} row {} picked", isa, row);
                }
            }
            let backend = backends_of(isa).last().unwrap();
            for row in 0..rows {
                let alone = [row];
                let (got, _) = case.run(backend, case.all_rows().select(&alone).unwrap(), &whole, DType::F32);
                prop_assert_eq!(&bits(&got)[..], want_row(row), "{} row {} alone", isa, row);
            }
            for part in [0..cut, cut..vocab] {
                let (got, _) = case.run(backend, case.all_rows(), &case.shard(part.clone()), DType::F32);
                let got = bits(&got);
                for row in 0..rows {
                    let got = &got[row * part.len()..][..part.len()];
                    prop_assert_eq!(got, &want_row(row)[part.clone()], "{} shard {:?}", isa, part);
                }
            }
        }
    }

    /// Instruction sets with equal fingerprints may share a group, so they must give equal bits. W8A8 gives
    /// the same bits on all.
    #[test]
    fn instruction_sets_with_one_fingerprint_have_equal_bits(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), seed in any::<u64>(),
    ) {
        let case = Case::new(kind, rows, hidden, vocab, data, seed);
        let all: Vec<_> = BACKENDS.iter().map(|b| (b.fingerprint(kind.types()), case.bits(b))).collect();
        for (fingerprint, got) in &all {
            if kind.quantization == Quantization::W8a8 {
                prop_assert_eq!(got, &all[0].1);
            }
            let (_, want) = all.iter().find(|(other, _)| other == fingerprint).unwrap();
            prop_assert_eq!(got, want, "{}", fingerprint);
        }
    }
}

/// More rows than one pass over the weights takes: passes, like tiles, change no bits.
#[test]
fn more_rows_than_one_pass() {
    for kind in [plain(DType::Bf16), int8(Quantization::W8a8, DType::F16)] {
        let case = Case::new(kind, 1031, 37, 100, Data::Gaussian, 5);
        for isa in isas() {
            let backend = backends_of(isa).last().unwrap();
            let want = case.bits(backend);
            let shard = case.shard(0..100);
            for row in [0, 127, 128, 511, 512, 513, 1023, 1024, 1030] {
                let alone = [row];
                let (got, _) = case.run(backend, case.all_rows().select(&alone).unwrap(), &shard, DType::F32);
                assert_eq!(bits(&got), want[row * 100..][..100], "{isa} row {row}");
            }
            let spec = PartialSpec { k: 1, sum: false, targets: 0 };
            for (row, mut partial) in case.partials(backend, &shard, spec).into_iter().enumerate() {
                let best =
                    want[row * 100..][..100].iter().map(|&b| f32::from_bits(b)).fold(f32::MIN, f32::max);
                assert_eq!(partial.sorted()[0].value, best, "{isa} row {row}");
            }
        }
    }
}

/// Rows that fill a second-level cache: with tiles, several vocabulary blocks are then computed at once.
#[test]
fn rows_that_fill_a_cache() {
    const VOCAB: usize = 64 * 9 + 10;
    for (kind, hidden) in [(plain(DType::Bf16), 16384), (int8(Quantization::W8a8, DType::Bf16), 32768)] {
        let case = Case::new(kind, 40, hidden, VOCAB, Data::Gaussian, 5);
        let shard = case.shard(0..VOCAB);
        for isa in [Isa::EmulatedAmx, Isa::detect()] {
            // One thread, so that there are enough blocks.
            let backend = backends_of(isa).next().unwrap();
            let want = case.bits(backend);
            let few = [39, 0, 17];
            let (got, _) = case.run(backend, case.all_rows().select(&few).unwrap(), &shard, DType::F32);
            for (got, &row) in bits(&got).chunks(VOCAB).zip(&few) {
                assert_eq!(got, &want[row * VOCAB..][..VOCAB], "{isa} {kind:?} row {row}");
            }
            let spec = PartialSpec { k: 2, sum: true, targets: 0 };
            for (row, mut partial) in case.partials(backend, &shard, spec).into_iter().enumerate() {
                let best = want[row * VOCAB..][..VOCAB].iter().map(|&b| f32::from_bits(b));
                let best = best.enumerate().fold((0, f32::MIN), |a, b| if b.1 > a.1 { b } else { a });
                let got = partial.sorted()[0];
                assert_eq!((got.id as usize, got.value), best, "{isa} {kind:?} row {row}");
            }
        }
    }
}

/// Rows with a stride, selected by indices of any width, give the bits of contiguous rows.
#[test]
fn strides_and_indices_pick_the_same_rows() {
    const VOCAB: usize = 70;
    for kind in [plain(DType::Bf16), plain(DType::F32), int8(Quantization::W8a8, DType::F16)] {
        let case = Case::new(kind, 5, 33, VOCAB, Data::Gaussian, 3);
        let (backend, shard) = (&BACKENDS[BACKENDS.len() - 1], case.shard(0..VOCAB));
        let want = case.bits(backend);
        let (own, size) = (33 * kind.hidden.size(), kind.hidden.size());
        let stride = own + 3 * size;
        let mut apart = vec![0xffu8; 5 * stride];
        for (row, bytes) in apart.chunks_mut(stride).enumerate() {
            bytes[..own].copy_from_slice(case.all_rows().row(row));
        }
        let rows = HiddenRows::strided(Span::host(&apart), kind.hidden, 5, 33, stride).unwrap();
        let picks = [4i64, 0, 4, 2];
        let narrow = picks.map(|row| row as i32);
        let all = case.run(backend, rows, &shard, DType::F32).0;
        assert_eq!(bits(&all), want);
        for picked in [rows.select_i64(&picks).unwrap(), rows.select_i32(&narrow).unwrap()] {
            let (got, _) = case.run(backend, picked, &shard, DType::F32);
            for (got, &row) in bits(&got).chunks(VOCAB).zip(&picks) {
                assert_eq!(got, &want[row as usize * VOCAB..][..VOCAB], "{kind:?} row {row}");
            }
        }
    }
}

/// One backend, several OS threads at once: the ranks of a process.
#[test]
fn threads_share_a_backend() {
    let case = Case::new(plain(DType::Bf16), 7, 300, 500, Data::Gaussian, 9);
    let backend = &BACKENDS[BACKENDS.len() - 2];
    let want = case.bits(backend);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(case.bits(backend), want)));
        }
    });
}
