//! Speed of the emulated device: its matmuls, with and without race detection, on one core, and 64 rows x
//! 1024 ids x 4096 on all cores; and whole steps of each request on one rank, with race detection.
//!
//! ```text
//! cargo bench --bench emulated
//! ```
//! Throughput counts multiply-accumulates of whole tiles as elements: 1 Gelem/s is 10^9 of them a second. On
//! one core the time is CPU time, which other programs disturb less than wall time; on all cores it is wall
//! time.
#![allow(unsafe_code, reason = "launches")]

use cpu_time::ThreadTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use lmhead::DType;
use lmhead::backend::device::{NO_ADJUSTMENTS, NO_PARTIALS};
use lmhead::backend::params::{
    GatherMicrokernelParams, LMHEAD_DTYPE_F32, LogitMatrix, MatmulParams, MmaMicrokernelParams, RowMatrix,
    WeightMatrix, WgmmaMicrokernelParams,
};
use lmhead::config::Quantization;
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::plan::{DeviceLimits, Plan, Precision, Shape};
use lmhead::result::{Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_emulated::emulated_kernel;
use lmhead_emulated::probe::{NO_MAP, ProbeParams};
use lmhead_emulated::{Buffer, Device, EmulatedDevice, Kernel, LaunchConfig, Params, microkernels};
use lmhead_testkit::{TestHead, local_group};
use std::ptr::null;
use std::sync::Arc;
use std::time::Instant;

const VOCAB: u32 = 512;
const ROWS: u32 = 64;
const HIDDEN: u32 = 4096;
/// Ids of the matmuls on all cores.
const WIDE: u32 = 1024;
/// Rows of a step.
const REQUEST_ROWS: usize = 8;

fn int8(count: u32) -> Vec<i8> {
    (0..count).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as i8).collect()
}

fn bf16s(count: u32) -> Vec<bf16> {
    int8(count).into_iter().map(|x| bf16::from_f32(f32::from(x) / 77.0)).collect()
}

/// What is measured: CPU time of one thread, or wall time over all cores.
#[derive(Clone, Copy, PartialEq)]
enum Cores {
    One,
    All,
}

fn measure<P: Params>(
    c: &mut Criterion,
    name: &str,
    products: u64,
    device: &mut Device,
    launch: (Kernel<P>, P, LaunchConfig),
) {
    measure_on(Cores::One, c, name, products, device, launch);
}

fn measure_on<P: Params>(
    cores: Cores,
    c: &mut Criterion,
    name: &str,
    products: u64,
    device: &mut Device,
    (kernel, params, config): (Kernel<P>, P, LaunchConfig),
) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(products)).sample_size(10);
    for checks in [false, true] {
        let config = if cores == Cores::One { config.threads(1) } else { config }.checks(checks);
        group.bench_function(BenchmarkId::from_parameter(if checks { "checks" } else { "no checks" }), |b| {
            b.iter_custom(|times| {
                let (start, wall) = (ThreadTime::now(), Instant::now());
                for _ in 0..times {
                    if let Err(fault) = device.launch(&kernel, &params, &config) {
                        panic!("{name}: {fault}");
                    }
                }
                if cores == Cores::One { start.elapsed() } else { wall.elapsed() }
            });
        });
    }
}

fn instructions(c: &mut Criterion) {
    for (name, kind, depth) in [("mma.sync bf16", 0, 16), ("mma.sync s8", 2, 32)] {
        let mut device = Device::new();
        let out = device.alloc(256).expect("room");
        let times = 2000;
        let n = [kind, times, 0, 0, 0, 0];
        let params =
            ProbeParams { map: NO_MAP, map_out: NO_MAP, input: out.pointer(), out: out.pointer(), n };
        let config = LaunchConfig::new([1; 3], [128, 1, 1]);
        let products = 4 * u64::from(times) * 16 * 8 * depth;
        measure(c, name, products, &mut device, (emulated_kernel!(bench_mma: ProbeParams), params, config));
    }
}

/// `wgmma` alone: one warpgroup, groups of four instructions on one tile.
fn wgmma(c: &mut Criterion) {
    let mut device = Device::new();
    let out = device.alloc(4 * 128).expect("room");
    let times = 500;
    let params = ProbeParams {
        map: NO_MAP,
        map_out: NO_MAP,
        input: out.pointer(),
        out: out.pointer(),
        n: [times, 0, 0, 0, 0, 0],
    };
    let config = LaunchConfig::new([1; 3], [128, 1, 1]).shared(80 * 128);
    let products = u64::from(times) * 4 * 64 * 16 * 32;
    let launch = (emulated_kernel!(bench_wgmma: ProbeParams), params, config);
    measure(c, "wgmma s8 n16", products, &mut device, launch);
}

/// One of the kernels of `crate::plan`, with the given tile's plan.
fn matmul(
    c: &mut Criterion,
    cores: Cores,
    (name, kernel): (&str, Kernel<MatmulParams>),
    precision: Precision,
    vocab: u32,
) {
    let shape = Shape { rows: ROWS as usize, vocab: vocab as usize, hidden: HIDDEN as usize };
    // A plan would choose smaller tiles for so few ids; this is the tile for whole heads.
    let plans = Plan::candidates(precision, shape, &DeviceLimits::H100).expect("plans");
    let plan = plans.iter().find(|plan| plan.tile.kernel == kernel.name()).expect("a plan with this kernel");
    let mut device = Device::new();
    let mut upload = |small: bool, lines: u32| -> (Buffer, u64) {
        let count = lines * HIDDEN;
        if small {
            (device.upload_read_only(&int8(count)), u64::from(HIDDEN))
        } else {
            (device.upload_read_only(&bf16s(count)), 2 * u64::from(HIDDEN))
        }
    };
    let (weights, weight_pitch) = upload(precision != Precision::Bf16, vocab);
    let (rows, row_pitch) = upload(matches!(precision, Precision::W8a8(_)), ROWS);
    let scales = device.upload_read_only(&vec![0.01f32; vocab as usize]);
    let status = device.upload(&[0u32; ROWS as usize]);
    let logits = device.alloc((ROWS * vocab * 4) as usize).expect("room");
    let params = MatmulParams {
        weights: WeightMatrix {
            data: weights.pointer(),
            pitch: weight_pitch,
            scales: scales.pointer(),
            bias: null(),
            packed: 0,
        },
        rows: RowMatrix {
            data: rows.pointer(),
            pitch: row_pitch,
            indices: null(),
            index_bytes: 4,
            source_rows: ROWS,
        },
        row_scales: scales.pointer(),
        logits: LogitMatrix {
            data: logits.pointer(),
            pitch: 4 * u64::from(vocab),
            status: status.pointer(),
            dtype: LMHEAD_DTYPE_F32,
        },
        adjustments: NO_ADJUSTMENTS,
        raw: std::ptr::null_mut(),
        partials: NO_PARTIALS,
        softcap: 0.0,
        scale: 1.0,
        vocab,
        row_count: ROWS,
        hidden: HIDDEN,
        stages: plan.stages as u32,
        whole_tiles: 0,
        tail_ids: 0,
    };
    let config = LaunchConfig::new([plan.blocks, 1, 1], [plan.tile.threads(), 1, 1])
        .shared(plan.shared_bytes() as u32);
    let products = u64::from(vocab) * u64::from(ROWS) * u64::from(HIDDEN);
    measure_on(cores, c, name, products, &mut device, (kernel, params, config));
}

fn matmuls(c: &mut Criterion) {
    let w8a8 = Precision::W8a8(DType::Bf16);
    let gather = emulated_kernel!(gather_matmul_bf16_128x64: MatmulParams);
    let quant = emulated_kernel!(quant_matmul_128x64: MatmulParams);
    let w8a16 = emulated_kernel!(w8a16_matmul_bf16_128x64: MatmulParams);
    matmul(c, Cores::One, ("gather_matmul bf16", gather), Precision::Bf16, VOCAB);
    matmul(c, Cores::One, ("quant_matmul", quant), w8a8, VOCAB);
    matmul(c, Cores::One, ("w8a16_matmul bf16", w8a16), Precision::W8a16(DType::Bf16), VOCAB);
    matmul(c, Cores::All, ("gather_matmul bf16, all cores", gather), Precision::Bf16, WIDE);
    matmul(c, Cores::All, ("quant_matmul, all cores", quant), w8a8, WIDE);
}

fn kernels(c: &mut Criterion) {
    let products = u64::from(VOCAB) * u64::from(ROWS) * u64::from(HIDDEN);
    let mut device = Device::new();
    let out = device.alloc((VOCAB * ROWS * 4) as usize).expect("room");

    let (weights, rows) = (device.upload(&int8(VOCAB * HIDDEN)), device.upload(&int8(ROWS * HIDDEN)));
    let params = MmaMicrokernelParams {
        weights: weights.pointer(),
        rows: rows.pointer(),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        hidden: HIDDEN,
    };
    let config = microkernels::config(VOCAB, ROWS, 32, microkernels::MMA_THREADS, microkernels::MMA_SHARED);
    measure(c, "microkernel mma.sync s8", products, &mut device, (microkernels::mma_s8(), params, config));

    let tiles = |address, bytes, lines, box_rows| {
        microkernels::tiles(address, bytes, lines, HIDDEN, box_rows).expect("the sizes are TMA's")
    };
    let shared = microkernels::WGMMA_SHARED;
    let config =
        microkernels::config(VOCAB, ROWS, microkernels::WGMMA_ROWS, microkernels::WGMMA_THREADS, shared);
    let params = WgmmaMicrokernelParams {
        weights: tiles(weights.address(), 1, VOCAB, 64),
        rows: tiles(rows.address(), 1, ROWS, microkernels::WGMMA_ROWS),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        hidden: HIDDEN,
    };
    measure(c, "microkernel wgmma s8", products, &mut device, (microkernels::wgmma_s8(), params, config));

    let wide = device.upload(&int8(WIDE * HIDDEN));
    let out_of_all = device.alloc((WIDE * ROWS * 4) as usize).expect("room");
    let of_all = WgmmaMicrokernelParams {
        weights: tiles(wide.address(), 1, WIDE, 64),
        out: out_of_all.pointer(),
        vocab: WIDE,
        ..params
    };
    let config_of_all =
        microkernels::config(WIDE, ROWS, microkernels::WGMMA_ROWS, microkernels::WGMMA_THREADS, shared);
    let products_of_all = products / u64::from(VOCAB) * u64::from(WIDE);
    let launch = (microkernels::wgmma_s8(), of_all, config_of_all);
    let name = "microkernel wgmma s8, all cores";
    measure_on(Cores::All, c, name, products_of_all, &mut device, launch);

    let (weights, rows) = (device.upload(&bf16s(VOCAB * HIDDEN)), device.upload(&bf16s(ROWS * HIDDEN)));
    let params = WgmmaMicrokernelParams {
        weights: tiles(weights.address(), 2, VOCAB, 64),
        rows: tiles(rows.address(), 2, ROWS, microkernels::WGMMA_ROWS),
        ..params
    };
    measure(c, "microkernel wgmma bf16", products, &mut device, (microkernels::wgmma_bf16(), params, config));
    let kernel = microkernels::wgmma_registers_bf16();
    measure(
        c,
        "microkernel wgmma bf16, weights from registers",
        products,
        &mut device,
        (kernel, params, config),
    );

    let indices: Vec<i32> = (0..ROWS as i32).rev().collect();
    let params = GatherMicrokernelParams {
        weights: params.weights,
        rows: rows.pointer(),
        indices: device.upload(&indices).pointer(),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        source_rows: ROWS,
        hidden: HIDDEN,
    };
    let shared = microkernels::GATHER_SHARED;
    let config =
        microkernels::config(VOCAB, ROWS, microkernels::GATHER_ROWS, microkernels::WGMMA_THREADS, shared);
    measure(
        c,
        "microkernel gather bf16",
        products,
        &mut device,
        (microkernels::gather_bf16(), params, config),
    );
}

/// Steps of a head whose rows are in host memory, on the kernels of compute capability 9.0 and on the
/// portable ones: wall time on all cores.
fn requests(c: &mut Criterion) {
    let test = TestHead::random(2048, 512, DType::Bf16, Quantization::None, 1);
    let bytes = test.rows(REQUEST_ROWS, 2);
    let hidden = HiddenRows::new(&bytes, test.dtype, REQUEST_ROWS, test.hidden)
        .expect("as many bytes as the rows have");
    let targets: Vec<i64> = (0..REQUEST_ROWS as i64).map(|row| 100 * row).collect();
    let sampling = |top_p| {
        let params = |row| SamplingParams { seed: row, top_p, ..SamplingParams::default() };
        (0..REQUEST_ROWS as u64).map(params).collect::<Vec<_>>()
    };
    let (plain, filtered) = (sampling(1.0), sampling(0.9));
    let logprobs = Request::Logprobs { targets: 1, top_n: 8, processed: false };
    let none = RowInputs::default();
    let requests = [
        ("logits in bf16", Request::logits(DType::Bf16), none),
        ("argmax", Request::argmax(), none),
        ("topk:8", Request::top_k(8), none),
        ("topk:64", Request::top_k(64), none),
        ("topk:1000", Request::top_k(1000), none),
        ("logprobs:8", logprobs, RowInputs { targets: Some(&targets), ..none }),
        ("sample", Request::sample(), RowInputs { sampling: Some(&plain), ..none }),
        ("sample top_p:0.9", Request::sample(), RowInputs { sampling: Some(&filtered), ..none }),
    ];
    for (kernels, device) in
        [("9.0", EmulatedDevice::new(1)), ("portable", EmulatedDevice::new(1).portable())]
    {
        let group = HeadGroup::data_parallel(1, 0).expect("a group");
        let (exchange, shard) = (local_group(1).remove(0), test.shard(0..test.vocab));
        let mut head =
            LmHead::new(&test.config(), group, shard, exchange, Arc::new(device.backend())).expect("a head");
        let mut group = c.benchmark_group(format!("requests, {kernels}"));
        group.sample_size(10);
        for (name, request, inputs) in &requests {
            group.bench_function(*name, |b| {
                b.iter(|| {
                    let step = head.step(RowCounts::exact(&[REQUEST_ROWS]), request).expect("a step");
                    step.run_with(hidden, inputs).expect("an answer")
                });
            });
        }
    }
}

criterion_group!(benches, instructions, wgmma, kernels, matmuls, requests);
criterion_main!(benches);
