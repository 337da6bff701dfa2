//! The table of `crates/emulated/tests/device`, by the same code: what the emulated device runs in small a GPU runs in small and whole.

use libtest_mimic::{Completion, Failed, Trial};
use lmhead::backend::cuda::CudaDevice;
use lmhead_gpu::needs::{GpuTest, Needs, small};
use lmhead_testkit::product::table::{Case, Scale, cases, run};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const TESTS: &[GpuTest] =
    &[GpuTest { name: "table::reduced", needs: Needs::Kernel("gather_matmul_bf16_128x8"), run: reduced }];

/// The largest whole case: 262208 x 12288 in bf16, and its logits.
const WHOLE: Needs = Needs::Memory(12_000_000_000);

/// Whole heads are made and checked on the CPU, which takes longer than the GPU's part: as many as fit, the others report
/// `ignored`. `LMHEAD_GPU_SECONDS` gives another time.
const SECONDS: u64 = 90;

fn reduced(device: &CudaDevice) -> Result<(), Failed> {
    // Under compute-sanitizer some of each precision.
    let step = if small() { 9 } else { 1 };
    let table = cases(Scale::Reduced);
    let problems: Vec<_> = table.iter().step_by(step).filter_map(|case| run(device, case).err()).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

/// One test for each whole head; none under compute-sanitizer, where they would take hours.
pub fn whole(fit: fn(&Needs) -> Result<&'static CudaDevice, String>) -> Vec<Trial> {
    let table = if small() { Vec::new() } else { spread(cases(Scale::Whole)) };
    let trial = |case: Case| {
        Trial::ignorable_test(format!("table::whole {}", case.name), move || {
            static BEGAN: OnceLock<Instant> = OnceLock::new();
            let device = match fit(&WHOLE) {
                Ok(device) => device,
                Err(reason) => return Ok(Completion::ignored_with(format!("needs a GPU: {reason}"))),
            };
            let seconds = std::env::var("LMHEAD_GPU_SECONDS").ok().and_then(|text| text.parse().ok());
            let time = Duration::from_secs(seconds.unwrap_or(SECONDS));
            if BEGAN.get_or_init(Instant::now).elapsed() > time {
                return Ok(Completion::ignored_with(format!("no time left of {time:?}: LMHEAD_GPU_SECONDS")));
            }
            run(device, &case).map(|()| Completion::Completed).map_err(Failed::from)
        })
    };
    table.into_iter().map(trial).collect()
}

/// The table has a precision after the other: in steps, so that each has been met when time is over.
fn spread(table: Vec<Case>) -> Vec<Case> {
    // Prime, and no divisor of the table's length: every case comes once.
    const STEP: usize = 11;
    let count = table.len();
    assert!(!count.is_multiple_of(STEP), "{count} cases: take another step");
    (0..count).map(|i| table[i * STEP % count].clone()).collect()
}
