//! The CPU backend against its promises: the same bits whatever the batch, position, shard, threads and selection
//! (promise 1); int8 word by word (promise 2); the accuracy rules of raw logits; non-finite rows; strided output.

use half::{bf16, f16};
use lmhead::backend::cpu::{CpuBackend, Isa};
use lmhead::backend::{Backend, HeadTypes, Job, LogitsOut};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::error::Error;
use lmhead::merge::{PartialSpec, RowPartial};
use lmhead::quantize::quantize_row;
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix, Storage};
use proptest::prelude::*;
use std::ops::Range;
use std::sync::LazyLock;

/// Every instruction set of this machine with one, two and three threads.
static BACKENDS: LazyLock<Vec<CpuBackend>> = LazyLock::new(|| {
    let with = |isa| (1..=3).map(move |threads| CpuBackend::with_isa(isa, Some(threads)).unwrap());
    Isa::available().into_iter().flat_map(with).collect()
});

/// A kind of head: the weights' type, how they are multiplied, and the type of its hidden states.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kind {
    weights: DType,
    quantization: Quantization,
    hidden: DType,
}

impl Kind {
    fn types(self) -> HeadTypes {
        HeadTypes { weights: self.weights, quantization: self.quantization, hidden: self.hidden }
    }
}

const fn plain(dtype: DType) -> Kind {
    Kind { weights: dtype, quantization: Quantization::None, hidden: dtype }
}

const fn int8(quantization: Quantization, hidden: DType) -> Kind {
    Kind { weights: DType::I8, quantization, hidden }
}

const KINDS: [Kind; 9] = [
    plain(DType::F32),
    plain(DType::F16),
    plain(DType::Bf16),
    int8(Quantization::W8a8, DType::F32),
    int8(Quantization::W8a8, DType::F16),
    int8(Quantization::W8a8, DType::Bf16),
    int8(Quantization::W8a16, DType::F32),
    int8(Quantization::W8a16, DType::F16),
    int8(Quantization::W8a16, DType::Bf16),
];

/// Numbers for tests: a pure function of the seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn gaussian(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
}

/// What the values of a case look like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Data {
    Gaussian,
    /// Integers of magnitude at most 8: every partial sum is exact.
    Integers,
    /// Magnitudes from subnormal to large, of both signs.
    Wide,
}

impl Data {
    fn value(self, numbers: &mut Numbers) -> f32 {
        match self {
            Data::Gaussian => numbers.gaussian(),
            Data::Integers => (numbers.next() % 17) as f32 - 8.0,
            Data::Wide => numbers.gaussian() * 2f32.powi((numbers.next() % 40) as i32 - 30),
        }
    }
}

/// A head with its rows: stored as the kind says, and as exact f64 for the truth.
struct Case {
    kind: Kind,
    rows: usize,
    hidden: usize,
    vocab: usize,
    /// `[rows, hidden]` as the kind's hidden type.
    x: Vec<u8>,
    /// `[vocab, hidden]`, f32 values that the weights' type holds exactly; int8 values for int8.
    w: Vec<f32>,
    /// `[vocab]`; 1 but for int8.
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
    epilogue: Epilogue,
}

fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 | DType::I8 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

fn row_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    dtype.round_into(values, &mut bytes);
    bytes
}

impl Case {
    fn new(kind: Kind, rows: usize, hidden: usize, vocab: usize, data: Data, seed: u64) -> Case {
        let mut numbers = Numbers(seed);
        let x: Vec<f32> = (0..rows * hidden).map(|_| data.value(&mut numbers)).collect();
        let mut weight = |_| match (kind.weights, data) {
            (DType::I8, Data::Integers) => data.value(&mut numbers),
            (DType::I8, _) => f32::from(numbers.next() as i8),
            (dtype, _) => rounded(dtype, data.value(&mut numbers)),
        };
        let w = (0..vocab * hidden).map(&mut weight).collect();
        let scale = |_| match (kind.weights, data) {
            (DType::I8, Data::Gaussian | Data::Wide) => (numbers.uniform() * 0.1) as f32,
            _ => 1.0,
        };
        let scales = (0..vocab).map(scale).collect();
        let x = row_bytes(kind.hidden, &x);
        Case { kind, rows, hidden, vocab, x, w, scales, bias: None, epilogue: Epilogue::default() }
    }

    fn shard(&self, vocab: Range<usize>) -> HeadShard {
        let w = &self.w[vocab.start * self.hidden..vocab.end * self.hidden];
        let matrix = match self.kind.weights {
            DType::F32 => Matrix::F32(Storage::from(w.to_vec())),
            DType::F16 => Matrix::F16(w.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>().into()),
            DType::Bf16 => Matrix::Bf16(w.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>().into()),
            DType::I8 => Matrix::I8 {
                values: w.iter().map(|&v| v as i8).collect::<Vec<_>>().into(),
                scales: self.scales[vocab.clone()].to_vec(),
            },
        };
        let bias = self.bias.as_ref().map(|bias| bias[vocab.clone()].to_vec());
        HeadShard::new(vocab, self.vocab, self.hidden, self.kind.quantization, matrix, bias).unwrap()
    }

    fn all_rows(&self) -> HiddenRows<'_> {
        HiddenRows::new(&self.x, self.kind.hidden, self.rows, self.hidden).unwrap()
    }

    /// Row `i` as f32.
    fn row(&self, i: usize) -> Vec<f32> {
        let mut wide = vec![0.0; self.hidden];
        self.kind.hidden.widen(self.all_rows().row(i), &mut wide);
        wide
    }

    /// `[rows.len(), vocab]` in `dtype`, and the non-finite flags.
    fn run(
        &self,
        backend: &CpuBackend,
        rows: HiddenRows<'_>,
        shard: &HeadShard,
        dtype: DType,
    ) -> (Vec<u8>, Vec<bool>) {
        let stride = shard.vocab().len() * dtype.size();
        let mut bytes = vec![0xa5; rows.len() * stride];
        let mut nonfinite = vec![false; rows.len()];
        let job = Job { rows, shard, epilogue: self.epilogue, adjustments: None };
        backend.check(shard, rows.dtype()).unwrap();
        let out =
            LogitsOut { bytes: &mut bytes, stride, dtype, nonfinite: &mut nonfinite, any_allowed: None };
        backend.logits(&job, out).unwrap();
        (bytes, nonfinite)
    }

    /// `[rows, vocab]` f32 bits of the whole head.
    fn bits(&self, backend: &CpuBackend) -> Vec<u32> {
        let (bytes, _) = self.run(backend, self.all_rows(), &self.shard(0..self.vocab), DType::F32);
        bits(&bytes)
    }
}

/// f32 bytes as bits; every NaN is the same one (payloads are not part of the promise).
fn bits(bytes: &[u8]) -> Vec<u32> {
    let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    bytes.chunks(4).map(|b| bits(value(b))).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bits(bytes).into_iter().map(f32::from_bits).collect()
}

/// The backends of one instruction set.
fn backends_of(isa: Isa) -> impl Iterator<Item = &'static CpuBackend> {
    BACKENDS.iter().filter(move |backend| backend.isa() == isa)
}

fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let rows = prop_oneof![4 => 1usize..=9, 1 => 10usize..40];
    let hidden = prop_oneof![2 => 1usize..=70, 2 => 71usize..400, 1 => 1000usize..2200];
    let vocab = prop_oneof![1 => 1usize..=5, 3 => 6usize..330];
    (rows, hidden, vocab)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

fn data() -> impl Strategy<Value = Data> {
    prop::sample::select(vec![Data::Gaussian, Data::Integers, Data::Wide])
}

fn epilogues() -> impl Strategy<Value = Epilogue> {
    let softcap = prop::option::of(prop::sample::select(vec![1.0f32, 30.0]));
    (softcap, prop::sample::select(vec![1.0f32, 0.0625, 1.7]))
        .prop_map(|(softcap, scale)| Epilogue { softcap, scale })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// One whole batch on one thread, against the same rows alone, in other batches, repeated, in other orders,
    /// by index and compacted, on other thread counts, and with the vocabulary cut into shards.
    #[test]
    fn a_row_s_bits_depend_on_nothing_around_it(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), epilogue in epilogues(),
        biased in any::<bool>(), cut in any::<prop::sample::Index>(),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        if biased {
            let mut numbers = Numbers(seed ^ 1);
            case.bias = Some((0..vocab).map(|_| numbers.gaussian()).collect());
        }
        let picks: Vec<usize> = picks.iter().map(|pick| pick.index(rows)).collect();
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        let whole = case.shard(0..vocab);
        let compact: Vec<u8> = picks.iter().flat_map(|&row| case.all_rows().row(row).to_vec()).collect();
        let compact = HiddenRows::new(&compact, kind.hidden, picks.len(), hidden).unwrap();
        for isa in Isa::available() {
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

    /// Fingerprints say which instruction sets may share a group: those have equal bits. W8A8 has one answer.
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

    /// Both halves of the accuracy rule, on raw logits (no bias, softcap or scale).
    #[test]
    fn float_heads_keep_the_accuracy_rules(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), seed in any::<u64>(),
    ) {
        prop_assume!(kind.quantization != Quantization::W8a8);
        let case = Case::new(kind, rows, hidden, vocab, data, seed);
        for isa in Isa::available() {
            check_accuracy(&case, data, backends_of(isa).last().unwrap());
        }
    }

    /// Promise 2, transcribed one scalar operation at a time.
    #[test]
    fn w8a8_is_the_promise_word_by_word(
        hidden_type in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]),
        (rows, hidden, vocab) in shapes(), data in data(), biased in any::<bool>(), epilogue in epilogues(),
        seed in any::<u64>(),
    ) {
        let kind = int8(Quantization::W8a8, hidden_type);
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        if biased {
            let mut numbers = Numbers(seed ^ 1);
            case.bias = Some((0..vocab).map(|_| numbers.gaussian()).collect());
        }
        let want: Vec<u32> = (0..rows).flat_map(|row| w8a8_by_the_word(&case, row)).map(f32::to_bits).collect();
        for isa in Isa::available() {
            prop_assert_eq!(&case.bits(backends_of(isa).last().unwrap()), &want, "{}", isa);
        }
    }

    /// Candidates and sums from `partials` are those of the f32 logits, whatever the threads and shards.
    #[test]
    fn partials_agree_with_logits(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), epilogue in epilogues(),
        k in prop_oneof![1usize..10, 1usize..400], cut in any::<prop::sample::Index>(), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        let spec = PartialSpec { k, sum: true };
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        for isa in Isa::available() {
            let want = case.bits(backends_of(isa).next().unwrap());
            for backend in backends_of(isa) {
                let mut merged = vec![RowPartial::new(spec); rows];
                for part in [0..cut, cut..vocab] {
                    let shard = case.shard(part);
                    let job = Job { rows: case.all_rows(), shard: &shard, epilogue, adjustments: None };
                    // What was there before is overwritten.
                    let mut out = vec![RowPartial::new(PartialSpec { k: 3, sum: false }); rows];
                    out.iter_mut().for_each(|p| p.push_block(0, &[1e30, f32::NAN], false));
                    backend.partials(&job, spec, &mut out).unwrap();
                    merged.iter_mut().zip(&out).for_each(|(all, part)| all.merge(part));
                }
                for (row, partial) in merged.iter().enumerate() {
                    let want: Vec<f32> = want[row * vocab..][..vocab].iter().map(|&b| f32::from_bits(b)).collect();
                    let mut pushed = RowPartial::new(spec);
                    for (block, logits) in want.chunks(64).enumerate() {
                        pushed.push_block(block * 64, logits, true);
                    }
                    let list = |p: &RowPartial| {
                        p.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(list(partial), list(&pushed));
                    prop_assert_eq!(partial.logsumexp().to_bits(), pushed.logsumexp().to_bits());
                    let mut sorted: Vec<u32> = (0..vocab as u32).collect();
                    sorted.sort_by(|&a, &b| want[b as usize].partial_cmp(&want[a as usize]).unwrap());
                    sorted.truncate(k);
                    let ids: Vec<u32> = partial.sorted().iter().map(|c| c.id).collect();
                    prop_assert_eq!(ids, sorted);
                    prop_assert!(!partial.nonfinite());
                }
            }
        }
    }

    /// A row with NaN or infinity is flagged in every output; its neighbours keep their bits and no flag.
    #[test]
    fn bad_rows_are_flagged_and_disturb_nobody(
        kind in kinds(), (rows, hidden, vocab) in shapes(), bad in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        softcap in prop::option::of(Just(30.0f32)), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, Data::Gaussian, seed);
        case.epilogue.softcap = softcap;
        let good: Vec<_> = Isa::available().iter().map(|&isa| case.bits(backends_of(isa).last().unwrap())).collect();
        let bad = bad.index(rows);
        let (size, at) = (kind.hidden.size(), bad * hidden + at.index(hidden));
        kind.hidden.round_into(&[value], &mut case.x[at * size..][..size]);
        let shard = case.shard(0..vocab);
        for (isa, good) in Isa::available().into_iter().zip(good) {
            let backend = backends_of(isa).last().unwrap();
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let (got, nonfinite) = case.run(backend, case.all_rows(), &shard, dtype);
                let want: Vec<bool> = (0..rows).map(|row| row == bad).collect();
                prop_assert_eq!(nonfinite, want);
                if dtype == DType::F32 {
                    let got = bits(&got);
                    for row in (0..rows).filter(|&row| row != bad) {
                        prop_assert_eq!(&got[row * vocab..][..vocab], &good[row * vocab..][..vocab]);
                    }
                    if kind.quantization == Quantization::W8a8 {
                        let row = &got[bad * vocab..][..vocab];
                        prop_assert!(row.iter().all(|&b| f32::from_bits(b).is_nan()));
                    }
                }
            }
            let spec = PartialSpec { k: 2, sum: true };
            let mut partials = vec![RowPartial::new(spec); rows];
            let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
            backend.partials(&job, spec, &mut partials).unwrap();
            for (row, partial) in partials.iter().enumerate() {
                prop_assert_eq!(partial.nonfinite(), row == bad);
            }
        }
    }

    /// Every output type is the f32 logit rounded half to even; bytes between the rows stay as they were; a flag
    /// that was set stays set.
    #[test]
    fn strided_output_touches_its_own_bytes_only(
        kind in kinds(), (rows, hidden, vocab) in shapes(), gap in 0usize..70, last_gap in any::<bool>(),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]), seed in any::<u64>(),
    ) {
        let case = Case::new(kind, rows, hidden, vocab, Data::Wide, seed);
        let shard = case.shard(0..vocab);
        let own = vocab * dtype.size();
        let stride = own + gap;
        for isa in Isa::available() {
            let backend = backends_of(isa).last().unwrap();
            let (want, _) = case.run(backend, case.all_rows(), &shard, DType::F32);
            let want = row_bytes_by_the_book(dtype, &floats(&want));
            let mut bytes = vec![0xa5; rows * stride - if last_gap { 0 } else { gap }];
            let mut nonfinite = vec![true; rows];
            let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
            let out = LogitsOut { bytes: &mut bytes, stride, dtype, nonfinite: &mut nonfinite, any_allowed: None };
            backend.logits(&job, out).unwrap();
            for (got, want) in bytes.chunks(stride.max(1)).zip(want.chunks(own)) {
                prop_assert_eq!(&got[..own], want);
                prop_assert!(got[own..].iter().all(|&b| b == 0xa5), "the gap was written");
            }
            prop_assert!(nonfinite.iter().all(|&flag| flag));
        }
    }
}

/// Rounding by the `half` crate's scalar conversions.
fn row_bytes_by_the_book(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32_const(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32_const(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}

/// One row's W8A8 logits: every operation scalar and rounded on its own, as promise 2 has them.
fn w8a8_by_the_word(case: &Case, row: usize) -> Vec<f32> {
    let x = case.row(row);
    let absmax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut s_x = absmax / 127.0;
    let mut q: Vec<i32> = x.iter().map(|v| (v / s_x).round_ties_even().clamp(-127.0, 127.0) as i32).collect();
    if s_x < f32::MIN_POSITIVE {
        s_x = 1.0;
        q.fill(0);
    }
    if x.iter().any(|v| !v.is_finite()) {
        s_x = f32::NAN;
    }
    let logit = |v: usize| {
        let w = &case.w[v * case.hidden..][..case.hidden];
        let acc: i32 = q.iter().zip(w).map(|(q, w)| q * *w as i32).sum();
        let mut logit = acc as f32;
        logit *= s_x;
        logit *= case.scales[v];
        if let Some(bias) = &case.bias {
            logit += bias[v];
        }
        if let Some(cap) = case.epilogue.softcap {
            logit = libm::tanhf(logit / cap) * cap;
        }
        logit * case.epilogue.scale
    };
    (0..case.vocab).map(logit).collect()
}

/// `|out - truth| <= K 2^-24 Σ|x w|`, plus what underflow can lose; Gaussian within 5e-5 of the truth's rms;
/// integers exact.
fn check_accuracy(case: &Case, data: Data, backend: &CpuBackend) {
    let got: Vec<f32> = case.bits(backend).into_iter().map(f32::from_bits).collect();
    let k = case.hidden as f64;
    // Where subnormal numbers are zeros, they are so in the truth, and each sum may lose one.
    let flushes = backend.flushes_subnormals(case.kind.types());
    let seen = |v: f32| if flushes && v.is_subnormal() { 0.0 } else { f64::from(v) };
    let least = if flushes { 2f64.powi(-126) } else { 2f64.powi(-149) };
    let (mut worst, mut squares) = (0.0f64, 0.0f64);
    for row in 0..case.rows {
        let x: Vec<f64> = case.row(row).into_iter().map(seen).collect();
        for v in 0..case.vocab {
            let w = &case.w[v * case.hidden..][..case.hidden];
            let (mut sum, mut magnitudes) = (0.0f64, 0.0f64);
            for (x, w) in x.iter().zip(w) {
                sum += x * seen(*w);
                magnitudes += (x * seen(*w)).abs();
            }
            let scale = f64::from(case.scales[v]);
            let truth = sum * scale;
            let got = f64::from(got[row * case.vocab + v]);
            let mut allowed = (k * magnitudes * 2f64.powi(-24) + k * least) * scale;
            if case.kind.weights == DType::I8 {
                // The product with the scale is one more rounding.
                allowed += truth.abs() * 2f64.powi(-24) + 2f64.powi(-149);
            }
            let error = (got - truth).abs();
            assert!(
                error <= allowed,
                "{} {:?}: row {row}, id {v}: got {got}, truth {truth}, allowed {allowed}",
                backend.isa(),
                case.kind
            );
            if data == Data::Integers {
                assert_eq!(got, truth, "{}: integers are exact", backend.isa());
            }
            worst = worst.max(error);
            squares += truth * truth;
        }
    }
    let rms = (squares / (case.rows * case.vocab) as f64).sqrt();
    if data == Data::Gaussian {
        assert!(worst <= 5e-5 * rms, "{}: largest error {worst}, rms {rms}", backend.isa());
    }
}

/// Hidden sizes of real models, and one that is a multiple of nothing.
#[test]
fn real_hidden_sizes() {
    for (kind, hidden) in KINDS.iter().flat_map(|&kind| [7168, 2880, 4097].map(|hidden| (kind, hidden))) {
        let case = Case::new(kind, 6, hidden, 70, Data::Gaussian, hidden as u64);
        for isa in Isa::available() {
            let backend = backends_of(isa).last().unwrap();
            let want = case.bits(backend);
            let shard = case.shard(0..70);
            for row in 0..case.rows {
                let alone = [row];
                let (got, _) = case.run(backend, case.all_rows().select(&alone).unwrap(), &shard, DType::F32);
                assert_eq!(bits(&got), want[row * 70..][..70], "{isa} {kind:?} {hidden}");
            }
            if kind.quantization == Quantization::W8a8 {
                let by_the_word = (0..case.rows).flat_map(|row| w8a8_by_the_word(&case, row));
                assert_eq!(want, by_the_word.map(f32::to_bits).collect::<Vec<_>>());
            } else {
                check_accuracy(&case, Data::Gaussian, backend);
            }
        }
    }
}

/// More rows than one pass over the weights takes: passes are as invisible as tiles.
#[test]
fn more_rows_than_one_pass() {
    for kind in [plain(DType::Bf16), int8(Quantization::W8a8, DType::F16)] {
        let case = Case::new(kind, 1031, 37, 100, Data::Gaussian, 5);
        for isa in Isa::available() {
            let backend = backends_of(isa).last().unwrap();
            let want = case.bits(backend);
            let shard = case.shard(0..100);
            for row in [0, 127, 128, 511, 512, 513, 1023, 1024, 1030] {
                let alone = [row];
                let (got, _) = case.run(backend, case.all_rows().select(&alone).unwrap(), &shard, DType::F32);
                assert_eq!(bits(&got), want[row * 100..][..100], "{isa} row {row}");
            }
            let spec = PartialSpec { k: 1, sum: false };
            let mut partials = vec![RowPartial::new(spec); 1031];
            let job =
                Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
            backend.partials(&job, spec, &mut partials).unwrap();
            for (row, partial) in partials.iter().enumerate() {
                let best =
                    want[row * 100..][..100].iter().map(|&b| f32::from_bits(b)).fold(f32::MIN, f32::max);
                assert_eq!(partial.sorted()[0].value, best, "{isa} row {row}");
            }
        }
    }
}

/// Largest magnitudes of int8 at the largest hidden size that is taken: the int32 sums do not wrap.
#[test]
fn int8_sums_do_not_overflow() {
    let hidden = lmhead::quantize::MAX_INT8_HIDDEN;
    let kind = int8(Quantization::W8a8, DType::F32);
    let mut case = Case::new(kind, 5, hidden, 3, Data::Integers, 0);
    case.w.fill(-128.0);
    for rows in [1, 5] {
        case.rows = rows;
        case.x = row_bytes(DType::F32, &vec![127.0; rows * hidden]);
        let want = (-(127 * 128) * hidden as i64) as f32;
        for isa in Isa::available() {
            let got = case.bits(backends_of(isa).next().unwrap());
            assert!(got.iter().all(|&b| f32::from_bits(b) == want), "{isa}");
        }
    }
}

/// No rows, no vocabulary, one element: answers of the right shape, and no panic.
#[test]
fn empty_and_tiny_shapes() {
    for kind in KINDS {
        for (rows, hidden, vocab) in [(0, 5, 70), (3, 1, 1), (1, 1, 1), (3, 0, 2), (0, 0, 0), (2, 3, 0)] {
            let case = Case::new(kind, rows, hidden, vocab, Data::Gaussian, 3);
            let shard = case.shard(0..vocab);
            for backend in BACKENDS.iter() {
                let (bytes, nonfinite) = case.run(backend, case.all_rows(), &shard, DType::F32);
                assert_eq!((bytes.len(), nonfinite), (rows * vocab * 4, vec![false; rows]));
                if hidden == 0 {
                    assert!(floats(&bytes).iter().all(|&l| l == 0.0));
                }
                let spec = PartialSpec { k: 2, sum: true };
                let mut out = vec![RowPartial::new(spec); rows];
                let job =
                    Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
                backend.partials(&job, spec, &mut out).unwrap();
                assert!(out.iter().all(|p| p.sorted().len() == vocab.min(2)));
            }
        }
        // An empty shard of a vocabulary that others hold.
        let case = Case::new(kind, 2, 3, 64, Data::Gaussian, 3);
        let (bytes, _) = case.run(&BACKENDS[0], case.all_rows(), &case.shard(64..64), DType::F32);
        assert!(bytes.is_empty());
    }
}

/// A subnormal row quantises to zeros with scale 1.
#[test]
fn a_tiny_row_is_zero_in_w8a8() {
    let mut case = Case::new(int8(Quantization::W8a8, DType::F32), 1, 40, 9, Data::Gaussian, 1);
    case.x = row_bytes(DType::F32, &[1e-39; 40]);
    let mut q = [1; 40];
    assert_eq!(quantize_row(&[1e-39; 40], &mut q), 1.0);
    for backend in BACKENDS.iter() {
        assert!(case.bits(backend).iter().all(|&b| f32::from_bits(b) == 0.0));
    }
}

/// A backend that takes subnormal numbers for zeros says so, and no other does it.
#[test]
fn subnormal_inputs_count_unless_the_backend_says_otherwise() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut case = Case::new(plain(dtype), 1, 40, 9, Data::Gaussian, 1);
        case.x = row_bytes(dtype, &[2f32.powi(-130); 40]);
        case.w.fill(2f32.powi(120));
        for backend in BACKENDS.iter() {
            let want =
                if backend.flushes_subnormals(plain(dtype).types()) { 0.0 } else { 40.0 * 2f32.powi(-10) };
            let got = case.bits(backend).into_iter().map(f32::from_bits);
            assert!(got.eq([want; 9]), "{} {dtype}", backend.isa());
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

#[test]
fn what_does_not_fit_is_refused() {
    let backend = &BACKENDS[0];
    let case = Case::new(plain(DType::Bf16), 2, 8, 100, Data::Gaussian, 1);
    let shard = case.shard(0..100);
    let error = backend.check(&shard, DType::F16).unwrap_err();
    assert!(matches!(error, Error::Dtype { .. }));
    let text = error.to_string();
    assert!(text.contains("bf16") && text.contains("f16"), "{text}");
    for hidden in [DType::F32, DType::F16, DType::Bf16] {
        let int8 = Case::new(int8(Quantization::W8a16, hidden), 1, 8, 3, Data::Gaussian, 1);
        backend.check(&int8.shard(0..3), hidden).unwrap();
    }
    // A shard that cuts a block in two would change the sums.
    let error = backend.check(&case.shard(0..50), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("0..50 of 100"), "{error}");
    let error = backend.check(&case.shard(3..100), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("multiples of 64"), "{error}");

    let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
    let mut flags = [false; 2];
    let mut bytes = vec![0; 2 * 400];
    let mut try_out = |len: usize, stride, dtype, flags: &mut [bool]| {
        backend.logits(
            &job,
            LogitsOut { bytes: &mut bytes[..len], stride, dtype, nonfinite: flags, any_allowed: None },
        )
    };
    assert!(matches!(try_out(799, 400, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, 399, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, usize::MAX, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, 400, DType::I8, &mut flags), Err(Error::Dtype { .. })));
    assert!(matches!(try_out(800, 400, DType::F32, &mut flags[..1]), Err(Error::Shape { .. })));
    try_out(800, 400, DType::F32, &mut flags).unwrap();

    let narrow = Case::new(plain(DType::Bf16), 2, 7, 100, Data::Gaussian, 1);
    let job = Job { rows: narrow.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
    let spec = PartialSpec { k: 1, sum: false };
    let mut out = vec![RowPartial::new(spec); 2];
    let text = backend.partials(&job, spec, &mut out).unwrap_err().to_string();
    assert!(text.contains('8') && text.contains('7'), "{text}");
}

#[test]
fn instruction_sets_are_chosen_by_name() {
    assert_eq!(Isa::choose(None).unwrap(), Isa::detect());
    assert_eq!(Isa::choose(Some("portable")).unwrap(), Isa::Portable);
    let text = Isa::choose(Some("mmx")).unwrap_err().to_string();
    assert!(text.contains("LMHEAD_CPU_ISA") && text.contains("portable") && text.contains("mmx"), "{text}");
    for isa in Isa::ALL {
        assert_eq!(Isa::choose(Some(isa.name())).is_ok(), isa.is_available());
        assert_eq!(CpuBackend::with_isa(isa, Some(1)).is_ok(), isa.is_available());
    }
    let text = CpuBackend::with_isa(Isa::Portable, Some(0)).unwrap_err().to_string();
    assert!(text.contains("threads"), "{text}");
    let backend = CpuBackend::with_isa(Isa::Portable, None).unwrap();
    assert!(backend.threads() >= 1);
    assert_eq!(
        (backend.name(), backend.fingerprint(plain(DType::Bf16).types())),
        ("cpu", "cpu/portable/2 bf16".to_string())
    );
}
