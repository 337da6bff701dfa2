//! lmhead's CPU backend beside the crates `gemm` (f32) and `rten-gemm` (u8 x i8 -> i32): time, memory, and whether promises 1 and 2
//! would survive them. `scripts/compare-gemm-crates` builds and runs this; it is no part of lmhead's own build.
//!
//! Arguments: vocabulary, hidden size, repetitions, then the numbers of rows. Prints one JSON object.

use gemm::Parallelism;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::quantize::quantize_row;
use lmhead::rows::HiddenRows;
use lmhead::weights::synthetic::{self, Spec};
use lmhead::weights::{HeadShard, Matrix};
use peak_alloc::PeakAlloc;
use rayon::ThreadPool;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix, QuantParams};
use rten_tensor::NdTensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const THREADS: [usize; 2] = [1, 2];

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    LmheadF32,
    Gemm,
    /// Quantises its rows and dequantises its sums.
    LmheadW8a8,
    /// int32 sums of rows that are quantised already, as the next one.
    RtenPacked,
    RtenUnpacked,
}

use Way::{Gemm, LmheadF32, LmheadW8a8, RtenPacked, RtenUnpacked};

const WAYS: [Way; 5] = [LmheadF32, Gemm, LmheadW8a8, RtenPacked, RtenUnpacked];
/// What is divided by what: times as fast as the second the first is.
const RATIOS: [(Way, Way); 3] = [(LmheadF32, Gemm), (LmheadW8a8, RtenPacked), (LmheadW8a8, RtenUnpacked)];

impl Way {
    fn name(self) -> &'static str {
        match self {
            LmheadF32 => "lmhead f32",
            Gemm => "gemm f32",
            LmheadW8a8 => "lmhead w8a8",
            RtenPacked => "rten-gemm, weights packed before",
            RtenUnpacked => "rten-gemm, weights as stored",
        }
    }
}

/// Vocabulary ids of a head, as each way takes them.
struct Weights {
    ids: Range<usize>,
    f32: HeadShard,
    int8: HeadShard,
    packed: PackedBMatrix<i8>,
}

/// `[rows, hidden]`, as each way takes them.
struct Rows {
    f32: Vec<f32>,
    /// Quantised, plus 128.
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

struct Bench {
    vocab: usize,
    hidden: usize,
    rten: GemmExecutor<u8, i8, i32>,
}

/// A backend and a pool of the same number of threads.
struct Threads {
    backend: CpuBackend,
    pool: ThreadPool,
}

impl Threads {
    fn new(n: usize) -> Threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool");
        Threads { backend: CpuBackend::new(Some(n)).expect("a backend"), pool }
    }
}

fn int8_of(shard: &HeadShard) -> (&[i8], &[f32]) {
    let Matrix::I8 { values, scales } = shard.matrix() else { unreachable!("quantised at load") };
    (values, scales)
}

impl Bench {
    fn new(vocab: usize, hidden: usize) -> Bench {
        Bench { vocab, hidden, rten: GemmExecutor::default() }
    }

    fn weights(&self, ids: Range<usize>) -> Weights {
        let spec = Spec { vocab_size: self.vocab, hidden_size: self.hidden, dtype: DType::F32 };
        let shard = |quantization| synthetic::shard(&spec, 0, ids.clone(), quantization, None).expect("a shard");
        let (f32, int8) = (shard(Quantization::None), shard(Quantization::W8a8));
        let packed = self.rten.prepack_b(self.view(int8_of(&int8).0));
        Weights { ids, f32, int8, packed }
    }

    /// `[hidden, ids]`, whose columns are the weights' rows.
    fn view<'a>(&self, int8: &'a [i8]) -> NdTensorView<'a, i8, 2> {
        NdTensorView::from_data([int8.len() / self.hidden, self.hidden], int8).transposed()
    }

    fn rows(&self, n: usize) -> Rows {
        let row = |row: usize| synthetic::hidden_row(0, row as u64, self.hidden, DType::F32);
        let f32: Vec<f32> = (0..n).flat_map(|i| bytemuck::pod_collect_to_vec::<u8, f32>(&row(i))).collect();
        let (mut bytes, mut scales) = (Vec::new(), Vec::new());
        for row in f32.chunks(self.hidden) {
            let mut q = vec![0i8; self.hidden];
            scales.push(quantize_row(row, &mut q));
            bytes.extend(q.iter().map(|&q| (i32::from(q) + 128) as u8));
        }
        Rows { f32, bytes, scales }
    }

    /// Bits of `out` `[rows, ids]`: f32 logits, but int32 sums of rten-gemm.
    fn run(&self, way: Way, weights: &Weights, rows: &Rows, picked: Range<usize>, threads: &Threads, out: &mut [u32]) {
        let (m, n, k) = (picked.len(), weights.ids.len(), self.hidden);
        let x = &rows.f32[picked.start * k..picked.end * k];
        let bytes = &rows.bytes[picked.start * k..picked.end * k];
        assert_eq!(out.len(), m * n);
        let lmhead = |shard: &HeadShard, out: &mut [u32]| {
            let rows = HiddenRows::from_f32(x, m, k).expect("rows");
            let job = Job { rows, shard, epilogue: Epilogue::default(), adjustments: None };
            let (stride, dtype, mut nonfinite) = (n * 4, DType::F32, vec![false; m]);
            let bytes = bytemuck::cast_slice_mut(out);
            let out = LogitsOut { bytes, stride, dtype, nonfinite: &mut nonfinite, any_allowed: None };
            threads.backend.logits(&job, out).expect("logits");
        };
        let rten = |b: GemmInputB<'_, i8>, out: &mut [u32]| {
            let zeros = vec![128u8; m];
            let a_quant = Some(QuantParams { zero_point: &zeros });
            let a = GemmInputA::Unpacked(NdTensorView::from_data([m, k], bytes));
            let options = GemmOptions { a_quant, ..GemmOptions::default() };
            let out = bytemuck::cast_slice_mut(out);
            threads.pool.install(|| self.rten.gemm(out, a, b, options)).expect("a product");
        };
        match way {
            LmheadF32 => lmhead(&weights.f32, out),
            LmheadW8a8 => lmhead(&weights.int8, out),
            RtenPacked => rten(GemmInputB::Packed(&weights.packed), out),
            RtenUnpacked => rten(GemmInputB::Unpacked(self.view(int8_of(&weights.int8).0)), out),
            Gemm => {
                let Matrix::F32(w) = weights.f32.matrix() else { unreachable!("loaded as f32") };
                let (k_stride, n_stride) = (k as isize, n as isize);
                let parallelism = match threads.pool.current_num_threads() {
                    1 => Parallelism::None,
                    many => Parallelism::Rayon(many),
                };
                let dst: &mut [f32] = bytemuck::cast_slice_mut(out);
                let (dst, lhs, rhs) = (dst.as_mut_ptr() as usize, x.as_ptr() as usize, w.as_ptr() as usize);
                // SAFETY: the three matrices are as long as their sizes and strides say: `[m, n]` and `[m, k]` by rows, and `[n, k]`
                // read as its transpose.
                threads.pool.install(|| unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        dst as *mut f32,
                        1,
                        n_stride,
                        false,
                        lhs as *const f32,
                        1,
                        k_stride,
                        rhs as *const f32,
                        k_stride,
                        1,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        parallelism,
                    );
                });
            }
        }
    }

    fn bits(&self, way: Way, weights: &Weights, rows: &Rows, picked: Range<usize>, threads: &Threads) -> Vec<u32> {
        let mut out = vec![u32::MAX; picked.len() * weights.ids.len()];
        self.run(way, weights, rows, picked, threads, &mut out);
        out
    }

    /// Milliseconds, by turns; the order is turned round from one repetition to the next.
    fn times(&self, repetitions: usize, counts: &[usize]) -> Vec<Value> {
        let weights = self.weights(0..self.vocab);
        let most = counts.iter().copied().max().unwrap_or(1);
        let rows = self.rows(most);
        let mut out = vec![0u32; most * self.vocab];
        let mut table = Vec::new();
        for n in THREADS {
            let threads = Threads::new(n);
            for &m in counts {
                let out = &mut out[..m * self.vocab];
                let mut peaks = BTreeMap::new();
                for way in WAYS {
                    let before = MEMORY.current_usage();
                    MEMORY.reset_peak_usage();
                    self.run(way, &weights, &rows, 0..m, &threads, out);
                    peaks.insert(way, MEMORY.peak_usage() - before);
                }
                let mut taken: BTreeMap<Way, Vec<f64>> = BTreeMap::new();
                for repetition in 0..repetitions {
                    let mut order = WAYS;
                    if repetition % 2 == 1 {
                        order.reverse();
                    }
                    for way in order {
                        let began = Instant::now();
                        self.run(way, &weights, &rows, 0..m, &threads, out);
                        taken.entry(way).or_default().push(began.elapsed().as_secs_f64() * 1e3);
                    }
                }
                let ways: serde_json::Map<String, Value> = taken
                    .iter()
                    .map(|(way, ms)| {
                        let mut figures = summary(ms.clone());
                        figures["working_bytes"] = json!(peaks[way]);
                        (way.name().into(), figures)
                    })
                    .collect();
                let ratios: serde_json::Map<String, Value> = RATIOS
                    .iter()
                    .map(|(ours, theirs)| {
                        let each = taken[theirs].iter().zip(&taken[ours]).map(|(theirs, ours)| theirs / ours).collect();
                        (format!("{} / {}", theirs.name(), ours.name()), summary(each))
                    })
                    .collect();
                eprintln!("{n} threads, {m} rows: {}", json!(ratios));
                table.push(json!({ "threads": n, "rows": m, "ms": ways, "ratios": ratios }));
            }
        }
        table
    }

    /// Compares a row's bits in a batch of all rows over the whole vocabulary on one thread with those of the same row in other
    /// batches, at another place, over slices of the vocabulary and on more threads.
    fn promise_1(&self, way: Way) -> Value {
        const ROWS: usize = 70;
        let (whole, rows) = (self.weights(0..self.vocab), self.rows(ROWS));
        let middle = self.vocab / 128 * 64;
        let slices = [0..64, 64..192, 0..middle, middle..self.vocab].map(|ids| self.weights(ids));
        let pools = [1, 2, 3].map(Threads::new);
        let want = self.bits(way, &whole, &rows, 0..ROWS, &pools[0]);
        let mut found = BTreeMap::new();
        let mut counterexample = Value::Null;
        let mut check = |what: &'static str, weights: &Weights, picked: Range<usize>, threads: &Threads| {
            let got = self.bits(way, weights, &rows, picked.clone(), threads);
            let (mut different, n) = (0, weights.ids.len());
            for (i, (row, id)) in
                picked.clone().flat_map(|row| weights.ids.clone().map(move |id| (row, id))).enumerate()
            {
                let (got, want) = (got[i], want[row * self.vocab + id]);
                if got == want {
                    continue;
                }
                different += 1;
                if counterexample.is_null() {
                    let shown = |bits: u32| match way {
                        RtenPacked | RtenUnpacked => json!(bits as i32),
                        _ => json!(f32::from_bits(bits)),
                    };
                    counterexample = json!({
                        "hidden_size": self.hidden, "row": row, "vocabulary_id": id, "rows_of_the_batch": [picked.start, picked.end],
                        "slice_of_the_vocabulary": [weights.ids.start, weights.ids.end],
                        "threads": threads.pool.current_num_threads(), "got": shown(got), "got_bits": format!("{got:08x}"),
                        "want": shown(want), "want_bits": format!("{want:08x}"),
                        "wanted_as_in": format!("rows 0..{ROWS}, ids 0..{}, 1 thread", self.vocab),
                    });
                }
            }
            let seen: &mut (usize, usize, Vec<usize>) = found.entry(what).or_default();
            seen.0 += picked.len() * n;
            seen.1 += different;
            if different > 0 && !seen.2.contains(&picked.len()) {
                seen.2.push(picked.len());
            }
        };
        for m in [1, 2, 3, 4, 5, 7, 8, 13, 28, 64] {
            check("other numbers of rows", &whole, 0..m, &pools[0]);
            check("at another place of the batch", &whole, ROWS - m..ROWS, &pools[0]);
        }
        for slice in &slices {
            for m in [1, 4, ROWS] {
                check("a slice of the vocabulary", slice, 0..m, &pools[0]);
            }
        }
        for threads in &pools[1..] {
            for m in [1, 4, ROWS] {
                check("more threads", &whole, 0..m, threads);
            }
        }
        let holds = found.values().all(|(_, different, _)| *different == 0);
        let by: serde_json::Map<String, Value> = found
            .into_iter()
            .map(|(what, (compared, different, batches))| {
                let told = json!({ "compared": compared, "different": different, "in_batches_of_rows": batches });
                (what.into(), told)
            })
            .collect();
        json!({ "hidden_size": self.hidden, "vocab_size": self.vocab, "holds": holds, "by": by, "first_counterexample": counterexample })
    }

    /// Whether the sums, dequantised as the promise says, are the exact ones, and lmhead's logits bit by bit.
    fn promise_2(&self, way: Way) -> Value {
        const ROWS: usize = 8;
        let (weights, rows, threads) = (self.weights(0..self.vocab), self.rows(ROWS), Threads::new(2));
        let (w, w_scales) = int8_of(&weights.int8);
        let (sums, logits) = (
            self.bits(way, &weights, &rows, 0..ROWS, &threads),
            self.bits(LmheadW8a8, &weights, &rows, 0..ROWS, &threads),
        );
        let (mut inexact, mut other_bits) = (0, 0);
        for (i, (row, id)) in (0..ROWS).flat_map(|row| (0..self.vocab).map(move |id| (row, id))).enumerate() {
            let x = &rows.bytes[row * self.hidden..][..self.hidden];
            let pairs = x.iter().zip(&w[id * self.hidden..][..self.hidden]);
            let exact: i32 = pairs.map(|(x, w)| (i32::from(*x) - 128) * i32::from(*w)).sum();
            inexact += usize::from(sums[i] as i32 != exact);
            let logit = sums[i] as i32 as f32 * rows.scales[row] * w_scales[id];
            other_bits += usize::from(logit.to_bits() != logits[i]);
        }
        json!({
            "hidden_size": self.hidden, "holds": inexact + other_bits == 0, "compared": ROWS * self.vocab, "inexact_sums": inexact,
            "logits_unlike_lmhead_w8a8": other_bits,
        })
    }
}

fn summary(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (values.len() - 1) as f64;
        let (low, part) = (place as usize, place.fract());
        let value = values[low] + part * (values[(low + 1).min(values.len() - 1)] - values[low]);
        (value * 1e3).round() / 1e3
    };
    json!({ "median": at(0.5), "p10": at(0.1), "p90": at(0.9) })
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let [vocab, hidden, repetitions, counts @ ..] = &arguments[..] else {
        panic!("wanted: vocabulary, hidden size, repetitions, rows..; got {arguments:?}")
    };
    let bench = Bench::new(*vocab, *hidden);
    // Whole registers, and a tail.
    let small = [Bench::new(1000, *hidden), Bench::new(333, *hidden / 2 + 5)];
    let promise_1: serde_json::Map<String, Value> =
        WAYS.iter().map(|&way| (way.name().into(), small.iter().map(|bench| bench.promise_1(way)).collect())).collect();
    let promise_2: serde_json::Map<String, Value> = [RtenPacked, RtenUnpacked]
        .iter()
        .map(|&way| (way.name().into(), small.iter().map(|bench| bench.promise_2(way)).collect()))
        .collect();
    eprintln!("promise 1: {}", json!(promise_1));
    eprintln!("promise 2: {}", json!(promise_2));

    let spec = Spec { vocab_size: *vocab, hidden_size: *hidden, dtype: DType::F32 };
    let int8 = synthetic::shard(&spec, 0, 0..*vocab, Quantization::W8a8, None).expect("a shard");
    let before = MEMORY.current_usage();
    let began = Instant::now();
    let packed = bench.rten.prepack_b(bench.view(int8_of(&int8).0));
    let pack_ms = began.elapsed().as_secs_f64() * 1e3;
    let pack_bytes = MEMORY.current_usage() - before;
    drop((packed, int8));

    let result = json!({
        "vocab_size": vocab,
        "hidden_size": hidden,
        "repetitions": repetitions,
        "lmhead_instruction_set": CpuBackend::new(Some(1)).expect("a backend").isa().name(),
        "rten_gemm_kernel": bench.rten.kernel_name(),
        "rten_gemm_may_saturate_here": bench.rten.may_saturate(),
        "packing": {
            "weights_bytes": vocab * hidden, "packed_bytes": pack_bytes, "ms_on_one_thread": pack_ms,
        },
        "promise_1": promise_1,
        "promise_2": promise_2,
        "times": bench.times(*repetitions, counts),
    });
    println!("{result}");
}
