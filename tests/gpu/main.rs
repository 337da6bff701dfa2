//! What only a GPU can show: `cargo test --features cuda --test gpu`, or the bundle of `scripts/gpu-bundle` on a machine without
//! Rust. Where there is no GPU, or an older one, a test reports `ignored` with the reason; it never passes unseen.

mod memory;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use lmhead::Error;
use lmhead::backend::cuda::Device;
use lmhead::backend::cuda::fatbins::Capability;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

/// A test that needs a device of at least this capability.
struct GpuTest {
    name: &'static str,
    needs: Capability,
    run: fn(&Arc<Device>) -> Result<(), Failed>,
}

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // One stream, in order: a fault is told with the launch that it belongs to.
    args.test_threads = Some(1);
    libtest_mimic::run(&args, memory::TESTS.iter().map(trial).collect()).exit_code()
}

fn trial(test: &'static GpuTest) -> Trial {
    Trial::ignorable_test(test.name, || match device(test.needs) {
        Ok(device) => (test.run)(&device).map(|()| Completion::Completed),
        Err(reason) => Ok(Completion::ignored_with(format!("needs a GPU: {reason}"))),
    })
}

/// Device 0, opened once.
fn device(needs: Capability) -> Result<Arc<Device>, String> {
    static DEVICE: OnceLock<Result<Arc<Device>, String>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Device::open(0).map_err(first_sentence)).clone()?;
    let info = device.info();
    if info.capability < needs {
        return Err(format!("compute capability {needs} or newer, {} has {}", info.name, info.capability));
    }
    Ok(device)
}

/// Without the advice, which is the same for every test.
fn first_sentence(error: Error) -> String {
    let text = error.to_string();
    text.split("; ").next().unwrap_or(&text).to_string()
}
