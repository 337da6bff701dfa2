//! Shared by several test programs and benches: random heads and rows, groups of ranks on threads, and tables
//! of cases.

pub mod adjusting;
#[allow(unsafe_code, reason = "an allocator")]
pub mod allocations;
pub mod caller_memory;
pub mod chi_square;
pub mod end_to_end;
#[allow(unsafe_code, reason = "an engine's functions, which get addresses")]
pub mod engine;
pub mod golden;
#[allow(unsafe_code, reason = "held logits of the inner backend")]
pub mod hooked;
pub mod microkernels;
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "signals")]
pub mod processes;
#[allow(unsafe_code, reason = "launches")]
pub mod product;
pub mod report;
pub mod requests;
pub mod soak;
pub mod wrong;

use half::{bf16, f16};
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::quantize::quantize_row;
use lmhead::result::{Answer, Logprobs, Output};
use lmhead::weights::{HeadShard, Matrix};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::thread;

/// A SplitMix64 generator. Tests that use it print their seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Nearly Gaussian with variance 1: the sum of 12 uniform numbers, minus 6.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        (sum - 6.0) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    /// All int8 values, −128 included.
    pub fn int8(&mut self, count: u32) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }

    /// Nearly Gaussian numbers.
    pub fn bf16(&mut self, count: u32) -> Vec<bf16> {
        (0..count)
            .map(|_| {
                let bits = self.next();
                let sum: i32 = (0..4).map(|i| i32::from((bits >> (16 * i)) as i16)).sum();
                bf16::from_f32(sum as f32 / 40_000.0)
            })
            .collect()
    }
}

/// A whole head, from which shards are cut.
#[derive(Debug, Clone)]
pub struct TestHead {
    pub vocab: usize,
    pub hidden: usize,
    pub dtype: DType,
    pub quantization: Quantization,
    /// `[vocab, hidden]`; rounded to `dtype`, or quantised, when a shard is cut.
    pub weights: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl TestHead {
    pub fn random(vocab: usize, hidden: usize, dtype: DType, quantization: Quantization, seed: u64) -> Self {
        let scale = 1.0 / (hidden as f32).sqrt();
        let weights = Random(seed).normals(vocab * hidden).into_iter().map(|w| 3.0 * w * scale).collect();
        TestHead { vocab, hidden, dtype, quantization, weights, bias: None }
    }

    pub fn with_bias(mut self, seed: u64) -> Self {
        self.bias = Some(Random(seed ^ 0xb1a5).normals(self.vocab));
        self
    }

    pub fn shard(&self, vocab: Range<usize>) -> Arc<HeadShard> {
        let part = &self.weights[vocab.start * self.hidden..vocab.end * self.hidden];
        let matrix = if self.quantization != Quantization::None {
            let mut values = vec![0i8; part.len()];
            let scales = (0..vocab.len())
                .map(|v| v * self.hidden..(v + 1) * self.hidden)
                .map(|row| quantize_row(&part[row.clone()], &mut values[row]))
                .collect();
            Matrix::I8 { values: values.into(), scales }
        } else {
            match self.dtype {
                DType::F32 => Matrix::F32(part.to_vec().into()),
                DType::F16 => Matrix::F16(part.iter().map(|w| f16::from_f32(*w)).collect::<Vec<_>>().into()),
                DType::Bf16 => {
                    Matrix::Bf16(part.iter().map(|w| bf16::from_f32(*w)).collect::<Vec<_>>().into())
                }
                DType::I8 | DType::E4m3 => unreachable!("8-bit weights come by quantisation"),
            }
        };
        let bias = self.bias.as_ref().map(|b| b[vocab.clone()].to_vec());
        let shard = HeadShard::new(vocab, self.vocab, self.hidden, self.quantization, matrix, bias);
        Arc::new(shard.expect("a shard of a test head"))
    }

    /// The configuration of this head; hidden rows have its `dtype`.
    pub fn config(&self) -> HeadConfig {
        let mut config = HeadConfig::new(self.vocab, self.hidden);
        config.quantization = self.quantization;
        config.hidden_dtype = Some(self.dtype);
        config
    }

    /// `rows` hidden rows in this head's dtype.
    pub fn rows(&self, rows: usize, seed: u64) -> Vec<u8> {
        let values = Random(seed).normals(rows * self.hidden);
        let mut bytes = vec![0; values.len() * self.dtype.size()];
        self.dtype.round_into(&values, &mut bytes);
        bytes
    }
}

/// The CPU backend for all tests of a program, with two threads.
pub fn backend() -> Arc<dyn Backend> {
    static BACKEND: OnceLock<Arc<CpuBackend>> = OnceLock::new();
    BACKEND.get_or_init(|| Arc::new(CpuBackend::new(Some(2)).expect("the CPU backend"))).clone()
}

/// The endpoints of a group whose ranks are threads.
pub fn local_group(size: usize) -> Vec<Arc<dyn Exchange>> {
    local::group(size).into_iter().map(|endpoint| Arc::new(endpoint) as _).collect()
}

/// Runs `run` for each member of a data-parallel group, each on a thread of its own.
pub fn each_rank<T: Send>(size: usize, run: impl Fn(usize, Arc<dyn Exchange>) -> T + Sync) -> Vec<T> {
    each_rank_over(local_group(size), run)
}

/// `each_rank` over the given exchanges.
pub fn each_rank_over<T: Send>(
    exchanges: Vec<Arc<dyn Exchange>>,
    run: impl Fn(usize, Arc<dyn Exchange>) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = exchanges
            .into_iter()
            .enumerate()
            .map(|(me, exchange)| scope.spawn(move || run(me, exchange)))
            .collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread")).collect()
    })
}

/// The head of member `me` of a data-parallel group.
pub fn head_of(
    head: &TestHead,
    config: &HeadConfig,
    size: usize,
    me: usize,
    exchange: Arc<dyn Exchange>,
) -> Result<LmHead> {
    let group = HeadGroup::data_parallel(size, me)?;
    let shard = head.shard(group.shard(head.vocab, me));
    LmHead::new(config, group, shard, exchange, backend())
}

/// Status and bits of an answer's row. Bits, so that NaN equals itself.
pub fn row_bits(answer: &Answer, row: usize) -> (u8, Vec<u64>) {
    let bits = match &answer.output {
        Output::Logits { dtype, vocab_size, bytes } => {
            let size = vocab_size * dtype.size();
            bytes[row * size..][..size].iter().map(|b| u64::from(*b)).collect()
        }
        Output::Argmax { ids } => vec![ids[row] as u64],
        Output::TopK { k, values, ids, logsumexp } => {
            let values = values[row * k..][..*k].iter().map(|v| u64::from(v.to_bits()));
            let ids = ids[row * k..][..*k].iter().map(|i| *i as u64);
            values.chain(ids).chain([u64::from(logsumexp[row].to_bits())]).collect()
        }
        Output::Logprobs(told) => logprob_bits(told, row).collect(),
        Output::Sample { ids, logprobs } => {
            let told = logprobs.iter().flat_map(|told| logprob_bits(told, row));
            [ids[row] as u64].into_iter().chain(told).collect()
        }
        other => panic!("no bits known of {other:?}"),
    };
    (answer.row_status[row] as u8, bits)
}

fn logprob_bits(told: &Logprobs, row: usize) -> impl Iterator<Item = u64> {
    let (of_targets, of_best) =
        (row * told.targets..(row + 1) * told.targets, row * told.top_n..(row + 1) * told.top_n);
    let floats = told.logprobs[of_targets.clone()].iter().chain(&told.top_logprobs[of_best.clone()]);
    let ids = told.ranks[of_targets].iter().chain(&told.top_ids[of_best]);
    floats.map(|v| u64::from(v.to_bits())).chain(ids.map(|i| *i as u64))
}

/// Memory of one row in a chunk of logprobs: f32 logits of the largest shard, hidden states, and partials,
/// once to send and once from every rank. A partial has 40 bytes, 8 for each candidate and 4 for each target.
pub fn chunk_row(shard: usize, hidden_bytes: usize, targets: usize, top_n: usize, size: usize) -> u64 {
    let partial = 40 + 8 * top_n.max(1).min(shard) + 4 * targets.next_multiple_of(2);
    (shard * 4 + hidden_bytes + partial * (1 + size)) as u64
}
