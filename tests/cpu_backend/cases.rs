//! Heads with their rows, generated from a seed, and the backends that run them.

use half::{bf16, f16};
use lmhead::backend::HeadTypes;
use lmhead::backend::cpu::{CpuBackend, Isa};
use lmhead::backend::{Backend, Job, LoadedShard, LogitsOut, On, Out, Status};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::memory::SpanMut;
use lmhead::merge::{Merge, PartialSpec};
use lmhead::params::LMHEAD_STATUS_NONFINITE;
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix, Storage};
use lmhead_testkit::Random;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// Every instruction set of this machine with one, two and three threads, the most capable one last.
pub static BACKENDS: LazyLock<Vec<CpuBackend>> = LazyLock::new(|| {
    let with = |isa| (1..=3).map(move |threads| backend(isa, threads));
    isas().into_iter().flat_map(with).collect()
});

/// A backend with this instruction set.
pub fn backend(isa: Isa, threads: usize) -> CpuBackend {
    let backend = match isa {
        Isa::EmulatedAmx => CpuBackend::with_emulated_amx(Some(threads)),
        isa => CpuBackend::with_isa(isa, Some(threads)),
    };
    backend.unwrap()
}

/// The instruction sets of this machine, and emulated AMX, which few machines have.
pub fn isas() -> Vec<Isa> {
    let mut isas = Isa::available();
    isas.insert(1, Isa::EmulatedAmx);
    isas
}

/// A kind of head: the weights' type, how they are multiplied, and the type of its hidden states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadKind {
    pub weights: DType,
    pub quantization: Quantization,
    pub hidden: DType,
}

impl HeadKind {
    pub fn types(self) -> HeadTypes {
        HeadTypes { weights: self.weights, quantization: self.quantization, hidden: self.hidden }
    }
}

pub const fn plain(dtype: DType) -> HeadKind {
    HeadKind { weights: dtype, quantization: Quantization::None, hidden: dtype }
}

/// Weights and hidden states of two float types.
pub const fn mixed(weights: DType, hidden: DType) -> HeadKind {
    HeadKind { weights, quantization: Quantization::None, hidden }
}

pub const fn int8(quantization: Quantization, hidden: DType) -> HeadKind {
    HeadKind { weights: DType::I8, quantization, hidden }
}

pub const fn e4m3(hidden: DType) -> HeadKind {
    HeadKind { weights: DType::E4m3, quantization: Quantization::W8a16, hidden }
}

pub const KINDS: [HeadKind; 18] = [
    plain(DType::F32),
    plain(DType::F16),
    plain(DType::Bf16),
    mixed(DType::F32, DType::F16),
    mixed(DType::F32, DType::Bf16),
    mixed(DType::F16, DType::F32),
    mixed(DType::F16, DType::Bf16),
    mixed(DType::Bf16, DType::F32),
    mixed(DType::Bf16, DType::F16),
    int8(Quantization::W8a8, DType::F32),
    int8(Quantization::W8a8, DType::F16),
    int8(Quantization::W8a8, DType::Bf16),
    int8(Quantization::W8a16, DType::F32),
    int8(Quantization::W8a16, DType::F16),
    int8(Quantization::W8a16, DType::Bf16),
    e4m3(DType::F32),
    e4m3(DType::F16),
    e4m3(DType::Bf16),
];

/// Numbers for tests: a pure function of the seed.
pub struct Numbers(pub Random);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub fn gaussian(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
}

/// Distribution of a case's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Data {
    Gaussian,
    /// Integers of magnitude at most 8: every partial sum is exact.
    Integers,
    /// Magnitudes from subnormal to large, of both signs.
    Wide,
}

impl Data {
    pub fn value(self, numbers: &mut Numbers) -> f32 {
        match self {
            Data::Gaussian => numbers.gaussian(),
            Data::Integers => (numbers.next() % 17) as f32 - 8.0,
            Data::Wide => numbers.gaussian() * 2f32.powi((numbers.next() % 40) as i32 - 30),
        }
    }
}

/// A head with its rows: stored as the kind says, and as exact f64 for the truth.
pub struct Case {
    pub kind: HeadKind,
    pub rows: usize,
    pub hidden: usize,
    pub vocab: usize,
    /// `[rows, hidden]` as the kind's hidden type.
    pub x: Vec<u8>,
    /// `[vocab, hidden]`, f32 values that the weights' type holds exactly; for int8 and E4M3 without the
    /// scales.
    pub w: Vec<f32>,
    /// `[vocab]`; 1 except for int8 and E4M3.
    pub scales: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub epilogue: Epilogue,
}

pub fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 | DType::I8 | DType::E4m3 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

pub fn row_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    dtype.round_into(values, &mut bytes);
    bytes
}

impl Case {
    pub fn new(kind: HeadKind, rows: usize, hidden: usize, vocab: usize, data: Data, seed: u64) -> Case {
        let mut numbers = Numbers(Random(seed));
        let x: Vec<f32> = (0..rows * hidden).map(|_| data.value(&mut numbers)).collect();
        let mut weight = |_| match (kind.weights, data) {
            (DType::I8, Data::Integers) => data.value(&mut numbers),
            (DType::I8, _) => f32::from(numbers.next() as i8),
            (DType::E4m3, Data::Integers) => data.value(&mut numbers),
            // Any code that is not NaN.
            (DType::E4m3, _) => {
                DType::E4m3.read(&[(numbers.next() % 127) as u8 | numbers.next() as u8 & 0x80], 0)
            }
            (dtype, _) => rounded(dtype, data.value(&mut numbers)),
        };
        let w = (0..vocab * hidden).map(&mut weight).collect();
        let scale = |_| match (kind.weights, data) {
            (DType::I8 | DType::E4m3, Data::Gaussian | Data::Wide) => (numbers.uniform() * 0.1) as f32,
            _ => 1.0,
        };
        let scales = (0..vocab).map(scale).collect();
        let x = row_bytes(kind.hidden, &x);
        Case { kind, rows, hidden, vocab, x, w, scales, bias: None, epilogue: Epilogue::default() }
    }

    pub fn shard(&self, vocab: Range<usize>) -> Arc<HeadShard> {
        let w = &self.w[vocab.start * self.hidden..vocab.end * self.hidden];
        let matrix = match self.kind.weights {
            DType::F32 => Matrix::F32(Storage::from(w.to_vec())),
            DType::F16 => Matrix::F16(w.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>().into()),
            DType::Bf16 => Matrix::Bf16(w.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>().into()),
            DType::I8 => Matrix::I8 {
                values: w.iter().map(|&v| v as i8).collect::<Vec<_>>().into(),
                scales: self.scales[vocab.clone()].to_vec(),
            },
            DType::E4m3 => Matrix::E4m3 {
                values: w.iter().map(|&v| e4m3_code(v)).collect::<Vec<_>>().into(),
                scales: self.scales[vocab.clone()].to_vec(),
            },
        };
        let bias = self.bias.as_ref().map(|bias| bias[vocab.clone()].to_vec());
        let shard = HeadShard::new(vocab, self.vocab, self.hidden, self.kind.quantization, matrix, bias);
        Arc::new(shard.unwrap())
    }

    pub fn all_rows(&self) -> HiddenRows<'_> {
        HiddenRows::new(&self.x, self.kind.hidden, self.rows, self.hidden).unwrap()
    }

    /// Row `i` as f32.
    pub fn row(&self, i: usize) -> Vec<f32> {
        let mut wide = vec![0.0; self.hidden];
        self.kind.hidden.widen(self.all_rows().row(i), &mut wide);
        wide
    }

    /// The shard as it runs on a backend.
    pub fn load(&self, backend: &CpuBackend, shard: &Arc<HeadShard>) -> Box<dyn LoadedShard> {
        backend.load(shard, self.kind.hidden).unwrap()
    }

    /// A job of these rows.
    pub fn job<'a>(&self, rows: HiddenRows<'a>) -> Job<'a> {
        Job { rows, epilogue: self.epilogue, adjustments: None, placed: None }
    }

    /// `[rows.len(), vocab]` in `dtype`, and the non-finite flags.
    pub fn run(
        &self,
        backend: &CpuBackend,
        rows: HiddenRows<'_>,
        shard: &Arc<HeadShard>,
        dtype: DType,
    ) -> (Vec<u8>, Vec<bool>) {
        let stride = shard.vocab().len() * dtype.size();
        let bytes = rows.len() * stride;
        // Aligned to 4 bytes.
        let mut logits = vec![0xa5a5_a5a5u32; bytes.div_ceil(4)];
        let mut words = vec![u32::MAX; rows.len()];
        let out = LogitsOut {
            data: SpanMut::host(&mut logits[..]).part(0..bytes),
            stride,
            dtype,
            status: Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 },
        };
        let mut loaded = self.load(backend, shard);
        loaded.run(&self.job(rows), Out::Logits(out), &mut On::default()).unwrap();
        let nonfinite = words.iter().map(|word| word & LMHEAD_STATUS_NONFINITE != 0).collect();
        (bytemuck::cast_slice(&logits)[..bytes].to_vec(), nonfinite)
    }

    /// The shard's partials of all rows, `[rows, spec.stride(shard)]`.
    pub fn partial_bytes(&self, backend: &CpuBackend, shard: &Arc<HeadShard>, spec: PartialSpec) -> Vec<u64> {
        // Filled with a pattern, which must be overwritten.
        let mut bytes = vec![0xa5a5_a5a5_a5a5_a5a5; self.rows * spec.stride(shard.vocab().len()) / 8];
        let out = Out::Partials(spec, SpanMut::host(&mut bytes[..]));
        self.load(backend, shard).run(&self.job(self.all_rows()), out, &mut On::default()).unwrap();
        bytes
    }

    /// The same partials, decoded row by row.
    pub fn partials(&self, backend: &CpuBackend, shard: &Arc<HeadShard>, spec: PartialSpec) -> Vec<Merge> {
        let bytes = self.partial_bytes(backend, shard, spec);
        let rows = bytemuck::cast_slice(&bytes).chunks_exact(spec.stride(shard.vocab().len()));
        rows.map(|row| merged(spec, &[(row, shard)])).collect()
    }

    /// `[rows, vocab]` f32 bits of the whole head.
    pub fn bits(&self, backend: &CpuBackend) -> Vec<u32> {
        let (bytes, _) = self.run(backend, self.all_rows(), &self.shard(0..self.vocab), DType::F32);
        bits(&bytes)
    }
}

/// The E4M3 code of a value that E4M3 represents exactly.
pub fn e4m3_code(value: f32) -> u8 {
    let magnitude = value.abs();
    let code = match magnitude {
        _ if value.is_nan() => 0x7f,
        // Subnormal: a multiple of the smallest value.
        _ if magnitude < 2f32.powi(-6) => (magnitude * 512.0) as u8,
        // Exponent and mantissa, with the exponent's bias changed.
        _ => ((magnitude.to_bits() >> 20) - (120 << 3)) as u8,
    };
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// One row's partials of some shards, merged.
pub fn merged(spec: PartialSpec, parts: &[(&[u8], &HeadShard)]) -> Merge {
    let mut merge = Merge::default();
    merge.reset(spec);
    for (row, shard) in parts {
        merge.add(row, &shard.vocab()).unwrap();
    }
    merge
}

/// f32 bytes as bits, with every NaN as the same one (payloads are not promised).
pub fn bits(bytes: &[u8]) -> Vec<u32> {
    let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    bytes.chunks(4).map(|b| bits(value(b))).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bits(bytes).into_iter().map(f32::from_bits).collect()
}

/// The backends of one instruction set.
pub fn backends_of(isa: Isa) -> impl Iterator<Item = &'static CpuBackend> {
    BACKENDS.iter().filter(move |backend| backend.isa() == isa)
}

pub fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let rows = prop_oneof![4 => 1usize..=9, 2 => 10usize..=24, 1 => 25usize..40];
    let hidden = prop_oneof![2 => 1usize..=70, 2 => 71usize..400, 1 => 1000usize..2200];
    let vocab = prop_oneof![1 => 1usize..=5, 3 => 6usize..330];
    (rows, hidden, vocab)
}

pub fn kinds() -> impl Strategy<Value = HeadKind> {
    prop::sample::select(&KINDS[..])
}

pub fn data() -> impl Strategy<Value = Data> {
    prop::sample::select(vec![Data::Gaussian, Data::Integers, Data::Wide])
}

pub fn epilogues() -> impl Strategy<Value = Epilogue> {
    let softcap = prop::option::of(prop::sample::select(vec![1.0f32, 30.0]));
    (softcap, prop::sample::select(vec![1.0f32, 0.0625, 1.7]))
        .prop_map(|(softcap, scale)| Epilogue { softcap, scale })
}
