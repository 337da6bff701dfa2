//! What is measured on a GPU: whole heads beside roofs and peers, patterns of reading, four launches for a
//! profiler; and criterion's view of some products.
//!
//! ```text
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul                          # some shapes,
//! criterion's report cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- heads FILE SECONDS    #
//! whole heads, as JSON
//! ```
//! `probes FILE SECONDS`, `profile` and `about` (device, driver, commit and date, as JSON) likewise. Without
//! a GPU it says so and measures nothing. The bundle of `scripts/gpu-bundle` carries this program: `run.sh
//! first`.
#![allow(unsafe_code, reason = "launches")]

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event};
use lmhead_gpu::about::about;
use lmhead_gpu::heads::{self, KINDS, Replayed, Weights};
use lmhead_gpu::probes;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Cargo's own come first.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
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
    let seconds = |text: &str| {
        let seconds =
            text.parse::<f64>().map_err(|_| format!("wanted seconds, got \"{text}\"; name a number"));
        seconds.and_then(|s| {
            if s > 0.0 { Ok(s) } else { Err(format!("wanted more than no seconds, got {s}; give it time")) }
        })
    };
    let done = match args[..] {
        ["about"] => {
            println!("{}", about(&device));
            Ok(())
        }
        ["heads", file, time] => seconds(time).and_then(|time| heads::write(&device, Path::new(file), time)),
        ["probes", file, time] => {
            seconds(time).and_then(|time| probes::write(&device, Path::new(file), time))
        }
        ["profile"] => heads::profile(&device),
        ["heads" | "probes", ..] => Err("wanted a file's name and seconds; name the JSON to write".into()),
        _ => with_criterion(&device),
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
    let own = heads::stream(device)?;
    let stream = own.handle();
    let event = || Event::new(device).map_err(said);
    let time = DeviceTime { stream, from: event()?, to: event()? };
    let mut criterion = Criterion::default().with_measurement(time).sample_size(20).configure_from_args();
    let head = heads::heads()[0];
    for kind in KINDS {
        let weights = Weights::new(device, &head, kind).map_err(said)?;
        for &rows in heads::row_counts() {
            let run = Replayed::new(&weights, stream, rows).map_err(said)?;
            let mut group = criterion.benchmark_group(format!("{kind} {head}"));
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
