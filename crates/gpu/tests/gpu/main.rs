//! What only a GPU can show: `cargo test --features cuda --test gpu`, or the bundle of `scripts/gpu-bundle` on a machine without
//! Rust. Where there is no GPU, or an older one, a test reports `ignored` with the reason; it never passes unseen.
#![allow(unsafe_code, reason = "launches")]

mod carriers;
mod memory;
mod results;
mod table;

use libtest_mimic::{Arguments, Completion, Trial};
use lmhead::backend::cuda::CudaDevice;
use lmhead_gpu::needs::{GpuTest, Needs, first_sentence};
use lmhead_gpu::products;
use std::process::ExitCode;
use std::sync::OnceLock;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // One stream, in order: a fault is told with the launch that it belongs to.
    args.test_threads = Some(1);
    let tests = memory::TESTS.iter().chain(carriers::TESTS).chain(table::TESTS).chain(products::TESTS);
    let trials = tests.map(trial).chain(table::whole(fit)).collect();
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
            // What there is, should a later one hang: the end tells where that cannot be written.
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
