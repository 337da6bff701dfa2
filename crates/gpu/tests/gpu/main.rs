//! Tests that need a GPU: `cargo test --features cuda --test gpu`, or the bundle of `scripts/gpu-bundle` on a
//! machine without Rust. `record FILE` writes the emulated device's results in advance, to save time on the
//! GPU; `fake-driver FOLDER` puts the project's own libcuda into a folder. Without a GPU, or on an older one,
//! a test reports `ignored` with the reason; it never passes silently.
#![allow(unsafe_code, reason = "launches")]

mod memory;
mod microkernels;
#[cfg(feature = "nccl")]
mod nccl;
mod results;

use libtest_mimic::{Arguments, Completion, Trial};
use lmhead::backend::cuda::CudaDevice;
use lmhead_gpu::needs::{GpuTest, Needs, first_sentence};
use lmhead_gpu::recorded::Recorded;
use lmhead_gpu::{kernels, products, windows};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

fn main() -> ExitCode {
    // If a test here has started this program as a rank.
    #[cfg(feature = "nccl")]
    nccl::enter();
    // For the bundle, on a machine without a GPU.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let asked = match [args.first().map(String::as_str), args.get(1).map(String::as_str)] {
        [Some("record"), Some(file)] => Some(Recorded::write(Path::new(file))),
        [Some("fake-driver"), Some(folder)] => {
            println!("{}", lmhead_gpu::fake_driver::folder(Path::new(folder)).display());
            Some(Ok(()))
        }
        _ => None,
    };
    match asked {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(problem)) => {
            eprintln!("gpu: {problem}");
            return ExitCode::FAILURE;
        }
        None => {}
    }
    let mut args = Arguments::from_args();
    // One test at a time on one stream, so that a fault is reported with its own launch.
    args.test_threads = Some(1);
    let tests = products::TESTS
        .iter()
        .chain(kernels::TESTS)
        .chain(windows::TESTS)
        .chain(microkernels::TESTS)
        .chain(memory::TESTS);
    let trials = tests.map(trial);
    #[cfg(feature = "nccl")]
    let trials = trials.chain(nccl::trials());
    let trials = trials.collect();
    let conclusion = libtest_mimic::run(&args, trials);
    if !args.list
        && let Err(problem) = results::write(device())
    {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trial(test: &'static GpuTest) -> Trial {
    Trial::ignorable_test(test.name, || match fit(&test.needs) {
        Ok(device) => {
            let done = (test.run)(device);
            // Write the results so far, in case a later test hangs; the end reports a failed write.
            let _ = results::write(&Ok(device.clone()));
            done.map(|()| Completion::Completed)
        }
        Err(reason) => Ok(Completion::ignored_with(format!("needs a GPU: {reason}"))),
    })
}

/// Device 0, opened once.
fn device() -> &'static Result<CudaDevice, String> {
    static DEVICE: OnceLock<Result<CudaDevice, String>> = OnceLock::new();
    DEVICE.get_or_init(|| CudaDevice::open(0).map_err(|e| first_sentence(&e)))
}

fn fit(needs: &Needs) -> Result<&'static CudaDevice, String> {
    let device = device().as_ref().map_err(String::clone)?;
    needs.met_by(device).map(|()| device)
}
