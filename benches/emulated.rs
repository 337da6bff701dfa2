//! How fast the emulated device multiplies, on one core, with and without the search for races.
//!
//! ```text
//! cargo bench --bench emulated
//! ```
//! Throughput counts multiply-accumulates of whole tiles as elements: 1 Gelem/s is 10^9 of them a second. Time is that of the processor,
//! which other programs on the machine disturb less than the clock on the wall.

#[path = "../tests/emulated/probe.rs"]
#[allow(dead_code)] // the tests use the rest
mod probe;

use cpu_time::ThreadTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use lmhead::backend::emulated::{Device, Kernel, LaunchConfig, Params, carriers};
use lmhead::backend::params::{GatherCarrierParams, MmaCarrierParams, WgmmaCarrierParams};
use lmhead::emulated_kernel;
use probe::{NO_MAP, ProbeParams};

const VOCAB: u32 = 512;
const ROWS: u32 = 64;
const HIDDEN: u32 = 4096;

fn int8(count: u32) -> Vec<i8> {
    (0..count).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as i8).collect()
}

fn bf16s(count: u32) -> Vec<bf16> {
    int8(count).into_iter().map(|x| bf16::from_f32(f32::from(x) / 77.0)).collect()
}

fn measure<P: Params>(
    c: &mut Criterion,
    name: &str,
    products: u64,
    device: &mut Device,
    (kernel, params, config): (Kernel<P>, P, LaunchConfig),
) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(products)).sample_size(10);
    for checks in [false, true] {
        let config = config.threads(1).checks(checks);
        group.bench_function(BenchmarkId::from_parameter(if checks { "checks" } else { "no checks" }), |b| {
            b.iter_custom(|times| {
                let start = ThreadTime::now();
                for _ in 0..times {
                    if let Err(fault) = device.launch(&kernel, &params, &config) {
                        panic!("{name}: {fault}");
                    }
                }
                start.elapsed()
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

fn kernels(c: &mut Criterion) {
    let products = u64::from(VOCAB) * u64::from(ROWS) * u64::from(HIDDEN);
    let mut device = Device::new();
    let out = device.alloc((VOCAB * ROWS * 4) as usize).expect("room");

    let (weights, rows) = (device.upload(&int8(VOCAB * HIDDEN)), device.upload(&int8(ROWS * HIDDEN)));
    let params = MmaCarrierParams {
        weights: weights.pointer(),
        rows: rows.pointer(),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        hidden: HIDDEN,
    };
    let config = carriers::config(VOCAB, ROWS, 32, carriers::MMA_THREADS, carriers::MMA_SHARED);
    measure(c, "carrier mma.sync s8", products, &mut device, (carriers::mma_s8(), params, config));

    let tiles = |address, bytes, lines, box_rows| {
        carriers::tiles(address, bytes, lines, HIDDEN, box_rows).expect("the sizes are TMA's")
    };
    let shared = carriers::WGMMA_SHARED;
    let config = carriers::config(VOCAB, ROWS, carriers::WGMMA_ROWS, carriers::WGMMA_THREADS, shared);
    let params = WgmmaCarrierParams {
        weights: tiles(weights.address(), 1, VOCAB, 64),
        rows: tiles(rows.address(), 1, ROWS, carriers::WGMMA_ROWS),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        hidden: HIDDEN,
    };
    measure(c, "carrier wgmma s8", products, &mut device, (carriers::wgmma_s8(), params, config));

    let (weights, rows) = (device.upload(&bf16s(VOCAB * HIDDEN)), device.upload(&bf16s(ROWS * HIDDEN)));
    let params = WgmmaCarrierParams {
        weights: tiles(weights.address(), 2, VOCAB, 64),
        rows: tiles(rows.address(), 2, ROWS, carriers::WGMMA_ROWS),
        ..params
    };
    measure(c, "carrier wgmma bf16", products, &mut device, (carriers::wgmma_bf16(), params, config));
    let kernel = carriers::wgmma_registers_bf16();
    measure(c, "carrier wgmma bf16 from registers", products, &mut device, (kernel, params, config));

    let indices: Vec<i32> = (0..ROWS as i32).rev().collect();
    let params = GatherCarrierParams {
        weights: params.weights,
        rows: rows.pointer(),
        indices: device.upload(&indices).pointer(),
        out: out.pointer(),
        vocab: VOCAB,
        row_count: ROWS,
        source_rows: ROWS,
        hidden: HIDDEN,
    };
    let shared = carriers::GATHER_SHARED;
    let config = carriers::config(VOCAB, ROWS, carriers::GATHER_ROWS, carriers::WGMMA_THREADS, shared);
    measure(c, "carrier gather bf16", products, &mut device, (carriers::gather_bf16(), params, config));
}

criterion_group!(benches, instructions, kernels);
criterion_main!(benches);
