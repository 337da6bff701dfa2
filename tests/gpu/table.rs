//! The table of `tests/device`, by the same code: what the emulated device runs in small a GPU runs in small and whole.

use crate::needs::{GpuTest, Needs, small};
use crate::product::table::{Case, Scale, cases, run};
use libtest_mimic::Failed;
use lmhead::backend::cuda::CudaDevice;
use std::time::{Duration, Instant};

const REDUCED: GpuTest =
    GpuTest { name: "table::reduced", needs: Needs::Kernel("gather_matmul_bf16_8"), run: reduced };
// The largest case: 262208 x 12288 in bf16, and its logits.
const WHOLE: GpuTest = GpuTest { name: "table::whole", needs: Needs::Memory(12_000_000_000), run: whole };

/// Under compute-sanitizer whole heads would take hours.
pub fn tests() -> &'static [GpuTest] {
    if small() { &[REDUCED] } else { &[REDUCED, WHOLE] }
}

/// Whole heads are made and checked on the CPU, which takes longer than the GPU's part: as many as fit, from the case on whose number
/// `LMHEAD_GPU_FIRST_CASE` gives.
const TIME: Duration = Duration::from_secs(90);

fn reduced(device: &CudaDevice) -> Result<(), Failed> {
    // Under compute-sanitizer some of each precision.
    let step = if small() { 9 } else { 1 };
    let table = cases(Scale::Reduced);
    all(device, &table.iter().step_by(step).collect::<Vec<_>>(), Duration::MAX)
}

fn whole(device: &CudaDevice) -> Result<(), Failed> {
    let first = match std::env::var("LMHEAD_GPU_FIRST_CASE") {
        Ok(text) => {
            text.parse().map_err(|_| format!("LMHEAD_GPU_FIRST_CASE: wanted a number, got \"{text}\""))?
        }
        Err(_) => 0usize,
    };
    let table = cases(Scale::Whole);
    let turned: Vec<_> = table.iter().cycle().skip(first % table.len()).take(table.len()).collect();
    all(device, &turned, TIME)
}

fn all(device: &CudaDevice, cases: &[&Case], time: Duration) -> Result<(), Failed> {
    let began = Instant::now();
    let (mut problems, mut done) = (Vec::new(), 0);
    for case in cases {
        if began.elapsed() > time {
            break;
        }
        problems.extend(run(device, case).err());
        done += 1;
    }
    println!("{done} of {} cases of the table", cases.len());
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}
