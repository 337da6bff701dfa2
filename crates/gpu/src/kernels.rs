//! Each kernel once, on the smallest shapes that use all of it: what a sanitizer has time for.

use crate::needs::{GpuTest, Needs};
use crate::operands::{Loaded, Operands};
use crate::roofs::Roofs;
use libtest_mimic::Failed;
use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::plan::Precision;

pub const TESTS: &[GpuTest] = &[
    GpuTest { name: "kernels::products", needs: Needs::Memory(1 << 30), run: products },
    GpuTest { name: "kernels::reads", needs: Needs::Capability(Capability(8, 0)), run: reads },
];

/// Every tile of every precision, with tails of ids, rows and k; and the kernels that fill and compare.
fn products(device: &CudaDevice) -> Result<(), Failed> {
    for precision in [
        Precision::Bf16,
        Precision::W8a8(DType::Bf16),
        Precision::W8a16(DType::Bf16),
        Precision::F16,
        Precision::W8a16(DType::F16),
        Precision::W8a8(DType::F16),
        Precision::W8a8(DType::F32),
    ] {
        let operands = Operands::new(precision, 130, 272, 9).integers();
        let loaded = Loaded::new(device, &operands, 9)?;
        let (out, projection) =
            (loaded.output(9, Some(&[8, 7, 6, 5, 4, 3, 2, 1, 0]), DType::F32, 1)?, loaded.projection()?);
        let mut seen = Vec::new();
        for plan in loaded.plans(9)? {
            if seen.contains(&plan.tile.kernel) {
                continue;
            }
            seen.push(plan.tile.kernel);
            loaded.run(&out, Some(&plan))?;
            let of = |problem| format!("{}: {problem}", plan.tile.kernel);
            loaded.is_exact(&out, &projection).map_err(of)?;
        }
    }
    Ok(())
}

/// The kernels that only read.
fn reads(device: &CudaDevice) -> Result<(), Failed> {
    let own = crate::heads::stream(device)?;
    // More than a stage, and no whole number of them.
    let bytes = 3 * 32768 + 1024;
    let mut roofs = Roofs::new(device, own.handle(), bytes, 4096)?;
    let works = roofs.reading(bytes, 2)?;
    for (way, work) in &works {
        work.replay().map_err(|e| format!("{way:?}: {e}"))?;
    }
    let counts: Vec<_> = works.iter().map(|(way, _)| (*way, 1)).collect();
    roofs.check(bytes, 2, &counts)?;
    Ok(())
}
