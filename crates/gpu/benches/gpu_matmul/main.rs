//! Measurements on a GPU: whole heads beside roofs and peers, each request over its matmul alone, read
//! patterns, four launches for a profiler; and some matmuls under criterion.
//! ```text
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul                             criterion's view
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- heads FILE SECONDS [KIND] [packed]
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- answers FILE SECONDS
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- probes FILE SECONDS
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- tune FILE SECONDS
//! cargo bench -p lmhead-gpu --features cuda --bench gpu_matmul -- profile | about
//! ```
//! `heads` writes JSON for all kinds of weights, each in a process of its own, or for one kind (bf16, w8a8,
//! w8a16, fp8), which extends a file of the same run. `packed` limits it to kinds that have kernels for
//! packed weights. `tune` writes the fastest plans as a tuning table (`lmhead::plan::tuning`). `about` prints
//! device, driver, commit and date as JSON. Options go to criterion. Without a GPU the program says so and
//! measures nothing. The bundle of `scripts/gpu-bundle` contains this program: `run.sh first`.
#![allow(unsafe_code, reason = "launches")]

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event};
use lmhead_gpu::about::about;
use lmhead_gpu::heads::{self, KINDS, Replayed, WeightKind, Weights};
use lmhead_gpu::{answers, probes, tune};
use std::path::Path;
use std::process::ExitCode;

const WANTED: &str = "wanted heads FILE SECONDS [KIND], answers FILE SECONDS, probes FILE SECONDS, \
     tune FILE SECONDS, profile, about, or options of criterion";

enum Ask<'a> {
    About,
    AllHeads(&'a Path, f64),
    Heads(&'a Path, f64, WeightKind),
    Answers(&'a Path, f64),
    Probes(&'a Path, f64),
    Tune(&'a Path, f64),
    Profile,
    Criterion,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds < 1e6 => Ok(seconds),
        Ok(seconds) => Err(format!("wanted more than no seconds, got {seconds}; give it time")),
        Err(_) => Err(format!("wanted seconds, got \"{text}\"; name a number")),
    }
}

fn asked<'a>(args: &[&'a str]) -> Result<Ask<'a>, String> {
    match *args {
        ["about"] => Ok(Ask::About),
        ["heads", file, time] => Ok(Ask::AllHeads(Path::new(file), seconds(time)?)),
        ["heads", file, time, kind] => {
            Ok(Ask::Heads(Path::new(file), seconds(time)?, WeightKind::named(kind)?))
        }
        ["answers", file, time] => Ok(Ask::Answers(Path::new(file), seconds(time)?)),
        ["probes", file, time] => Ok(Ask::Probes(Path::new(file), seconds(time)?)),
        ["tune", file, time] => Ok(Ask::Tune(Path::new(file), seconds(time)?)),
        ["profile"] => Ok(Ask::Profile),
        [] => Ok(Ask::Criterion),
        [first, ..] if first.starts_with('-') => Ok(Ask::Criterion),
        _ => Err(format!("{WANTED}; got \"{}\"", args.join(" "))),
    }
}

fn done(ask: &Ask<'_>) -> Result<(), String> {
    if let Ask::AllHeads(file, seconds) = ask {
        // No device is opened here: a process for each kind opens it.
        let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
        return heads::write_all(&program, file, *seconds);
    }
    let opened = CudaDevice::open(0).and_then(|device| {
        device.runs(lmhead::plan::Precision::Bf16)?;
        Ok(device)
    });
    let device = match opened {
        Ok(device) => device,
        Err(error) => {
            println!("ignored: no GPU: {error}");
            return Ok(());
        }
    };
    match ask {
        Ask::About => println!("{}", about(&device)),
        Ask::AllHeads(..) => unreachable!("answered above"),
        Ask::Heads(file, seconds, kind) => heads::write(&device, file, *seconds, *kind)?,
        Ask::Answers(file, seconds) => answers::write(&device, file, *seconds)?,
        Ask::Probes(file, seconds) => probes::write(&device, file, *seconds)?,
        Ask::Tune(file, seconds) => tune::write(&device, file, *seconds)?,
        Ask::Profile => heads::profile(&device)?,
        Ask::Criterion => with_criterion(&device)?,
    }
    Ok(())
}

fn main() -> ExitCode {
    // Cargo's own argument comes first.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match asked(&args).and_then(|ask| done(&ask)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("gpu_matmul: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Time by the device's clock, between two events on a stream.
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
