//! The cost of each request beside the matmul: steps of 4 ranks (threads) that share a 32000 x 1024 bf16
//! head, with 28 rows each, plain and with a mask. All have one matmul of these rows. `cargo bench --bench
//! requests`

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lmhead::adjust::Adjustments;
use lmhead::backend::cpu::CpuBackend;
use lmhead::exchange::local;
use lmhead::sampling::SamplingParams;
use lmhead::weights::{HeadShard, Matrix};
use lmhead::{DType, HeadConfig, HeadGroup, HiddenRows, LmHead, Quantization, Request, RowCounts, RowInputs};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const ROWS: usize = 28;
const VOCAB: usize = 32_000;
const HIDDEN: usize = 1024;

/// Pseudo-random values in -1..1.
fn value(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn bf16s(n: usize, seed: usize) -> Vec<half::bf16> {
    (0..n).map(|i| half::bf16::from_f32(value(i.wrapping_add(seed)))).collect()
}

/// Runs `steps` steps on every rank; returns the time of the slowest rank.
fn steps(
    steps: u64,
    request: Request,
    sampling: SamplingParams,
    masked: bool,
    shards: &[Arc<HeadShard>],
    backend: &Arc<CpuBackend>,
) -> Duration {
    let config = HeadConfig::new(VOCAB, HIDDEN);
    let hidden = bf16s(ROWS * HIDDEN, 99);
    let hidden = HiddenRows::new(bytemuck::cast_slice(&hidden), DType::Bf16, ROWS, HIDDEN).expect("rows");
    let mask = vec![0x5555_5555; ROWS * VOCAB.div_ceil(32)];
    let targets: Vec<i64> = (0..ROWS as i64).map(|row| row * 1000).collect();
    let positions = 0..ROWS as u64;
    let sampling: Vec<SamplingParams> =
        positions.map(|position| SamplingParams { position, ..sampling }).collect();
    let inputs = RowInputs {
        sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
        targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
        adjustments: masked.then_some(Adjustments::allowed(&mask)),
        ..RowInputs::default()
    };
    let run = |me: usize, exchange: local::LocalExchange| {
        let group = HeadGroup::data_parallel(RANKS, me).expect("a group");
        let mut head = LmHead::new(&config, group, shards[me].clone(), Arc::new(exchange), backend.clone())
            .expect("a head");
        let mut began = Instant::now();
        // The first step allocates buffers.
        for i in 0..=steps {
            if i == 1 {
                began = Instant::now();
            }
            let counts = RowCounts::exact(&[ROWS; RANKS]);
            let step =
                if masked { head.step_adjusted(counts, &request) } else { head.step(counts, &request) };
            step.expect("a step").run_with(hidden, &inputs).expect("an answer");
        }
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = local::group(RANKS)
            .into_iter()
            .enumerate()
            .map(|(me, exchange)| scope.spawn(move || run(me, exchange)))
            .collect();
        threads.into_iter().map(|t| t.join().expect("a rank")).max().expect("ranks")
    })
}

fn requests(criterion: &mut Criterion) {
    let backend = Arc::new(CpuBackend::new(None).expect("a backend"));
    let shards: Vec<Arc<HeadShard>> = (0..RANKS)
        .map(|me| {
            let ids = HeadGroup::data_parallel(RANKS, me).expect("a group").shard(VOCAB, me);
            let matrix = Matrix::Bf16(bf16s(ids.len() * HIDDEN, ids.start * HIDDEN).into());
            let shard = HeadShard::new(ids, VOCAB, HIDDEN, Quantization::None, matrix, None);
            Arc::new(shard.expect("a shard"))
        })
        .collect();
    let mut group = criterion.benchmark_group("4 ranks, 28 rows each");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let plain = SamplingParams::default();
    let sample = |name: &str, params| (format!("sample {name}"), Request::sample(), params);
    let named = |request: Request| (request.to_string(), request, plain);
    for (name, request, params) in [
        named(Request::logits(DType::F32)),
        named(Request::argmax()),
        named(Request::top_k(8)),
        named(Request::processed_logprobs(0)),
        named(Request::processed_logprobs(8)),
        sample("temperature", plain),
        sample("top_k 50, top_p 0.9", SamplingParams { top_k: 50, top_p: 0.9, ..plain }),
        sample("min_p 0.1", SamplingParams { min_p: 0.1, ..plain }),
        sample("top_p 0.9", SamplingParams { top_p: 0.9, ..plain }),
        sample("top_k 2000, top_p 0.9", SamplingParams { top_k: 2000, top_p: 0.9, ..plain }),
    ] {
        for (how, masked) in [("plain", false), ("masked", true)] {
            group.bench_function(BenchmarkId::new(&name, how), |b| {
                b.iter_custom(|n| steps(n, request, params, masked, &shards, &backend));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
