//! What only a GPU can show: `cargo test --features cuda --test gpu`, or the bundle of `scripts/gpu-bundle` on a machine without
//! Rust. Where there is no GPU, or an older one, a test reports `ignored` with the reason; it never passes unseen.

mod carriers;
#[path = "../emulated/cases.rs"]
mod cases;
#[path = "../emulated/data.rs"]
mod data;
mod memory;
mod results;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use lmhead::Error;
use lmhead::backend::cuda::Device;
use lmhead::backend::cuda::fatbins::{self, Capability};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

/// What a test asks of the device.
enum Needs {
    /// At least this.
    Capability(Capability),
    /// One that runs this embedded kernel.
    Kernel(&'static str),
}

struct GpuTest {
    name: &'static str,
    needs: Needs,
    run: fn(&Arc<Device>) -> Result<(), Failed>,
}

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // One stream, in order: a fault is told with the launch that it belongs to.
    args.test_threads = Some(1);
    let trials = memory::TESTS.iter().chain(carriers::TESTS).map(trial).collect();
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
        Ok(device) => (test.run)(device).map(|()| Completion::Completed),
        Err(reason) => Ok(Completion::ignored_with(format!("needs a GPU: {reason}"))),
    })
}

/// Device 0, opened once.
fn device() -> &'static Result<Arc<Device>, String> {
    static DEVICE: OnceLock<Result<Arc<Device>, String>> = OnceLock::new();
    DEVICE.get_or_init(|| Device::open(0).map_err(|e| first_sentence(&e)))
}

fn fit(needs: &Needs) -> Result<&'static Arc<Device>, String> {
    let device = device().as_ref().map_err(String::clone)?;
    let info = device.info();
    match needs {
        Needs::Capability(least) if info.capability < *least => {
            Err(format!("compute capability {least} or newer, {} has {}", info.name, info.capability))
        }
        Needs::Capability(_) => Ok(device),
        Needs::Kernel(name) => match fatbins::with_kernel(name).and_then(|f| f.code_for(info.capability)) {
            Ok(_) => Ok(device),
            Err(e) => Err(first_sentence(&e)),
        },
    }
}

/// Without the advice, which is the same for every test.
fn first_sentence(error: &Error) -> String {
    let text = error.to_string();
    text.split("; ").next().unwrap_or(&text).to_string()
}
