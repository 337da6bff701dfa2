//! How long products take on a GPU: criterion with a measurement by CUDA events, of graphs that are replayed over rotating buffers.
//!
//! ```text
//! cargo bench --features cuda --bench gpu_matmul               # some shapes, criterion's report
//! cargo bench --features cuda --bench gpu_matmul -- --table FILE   # all shapes, each beside its roofs, as JSON
//! ```
//! Without a GPU it says so and measures nothing. The bundle of `scripts/gpu-bundle` carries this program: `run.sh bench`.
#![allow(unsafe_code, reason = "launches")]

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event};
use lmhead_gpu::table::{self, Kind, Place};
use lmhead_gpu::timing::{self, Replayed, Weights};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip_while(|arg| arg != "--table");
    let table = args.next().map(|_| args.next());
    let device = match CudaDevice::open(0).and_then(|device| {
        device.runs(lmhead::plan::Precision::Bf16)?;
        Ok(device)
    }) {
        Ok(device) => device,
        Err(error) => {
            println!("ignored: no GPU: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let done = match table {
        None => with_criterion(&device),
        Some(None) => Err("--table: wanted a file's name, got nothing; name the JSON to write".into()),
        Some(Some(file)) => table::write(&device, std::path::Path::new(&file)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("gpu_matmul: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Time as the device counts it, between two events on a stream.
struct DeviceTime {
    stream: CudaStream,
    from: Event,
    to: Event,
}

impl Measurement for DeviceTime {
    type Intermediate = ();
    /// Seconds.
    type Value = f64;

    fn start(&self) {
        self.from.record(self.stream).expect("an event");
    }

    fn end(&self, (): ()) -> f64 {
        self.to.record(self.stream).expect("an event");
        self.from.seconds_to(&self.to).expect("the launches before it run")
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, seconds: &f64) -> f64 {
        // Criterion's formatter of times takes nanoseconds.
        seconds * 1e9
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn with_criterion(device: &CudaDevice) -> Result<(), String> {
    let said = |e: lmhead::Error| e.to_string();
    let own = timing::stream(device)?;
    let stream = own.handle();
    let event = || Event::new(device).map_err(said);
    let time = DeviceTime { stream, from: event()?, to: event()? };
    let mut criterion = Criterion::default().with_measurement(time).sample_size(20).configure_from_args();
    let head = &table::heads()[0];
    for kind in [Kind::Bf16, Kind::W8a8, Kind::W8a16] {
        let place = Place { head, shards: 1 };
        let weights = Weights::new(device, stream, &table::operands(kind, &place)).map_err(said)?;
        for &rows in table::few_rows() {
            let run = Replayed::new(&weights, kind, rows).map_err(said)?;
            let mut group = criterion.benchmark_group(format!("{kind} {place}"));
            group.throughput(Throughput::BytesDecimal(run.bytes as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
                bencher.iter_custom(|times| (0..times).map(|_| run.work.replay().expect("a replay")).sum());
            });
            group.finish();
        }
    }
    criterion.final_summary();
    Ok(())
}
