//! Each kernel once, on the smallest shapes that use all of it: what a sanitizer has time for.

use crate::needs::{GpuTest, Needs};
use crate::operands::{Loaded, Operands, layouts};
use crate::roofs::{Reading, Roofs, Way};
use libtest_mimic::Failed;
use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::plan::{Plan, Precision, WeightLayout};

pub const TESTS: &[GpuTest] = &[
    packed("kernels::packed::bf16", |device| products(device, Precision::Bf16, WeightLayout::Packed)),
    packed("kernels::packed::w8a8_bf16", |device| {
        products(device, Precision::W8a8(DType::Bf16), WeightLayout::Packed)
    }),
    packed("kernels::packed::f16", |device| products(device, Precision::F16, WeightLayout::Packed)),
    packed("kernels::packed::w8a8_f16", |device| {
        products(device, Precision::W8a8(DType::F16), WeightLayout::Packed)
    }),
    packed("kernels::packed::w8a8_f32", |device| {
        products(device, Precision::W8a8(DType::F32), WeightLayout::Packed)
    }),
    of("kernels::bf16", |device| rows(device, Precision::Bf16)),
    of("kernels::w8a8_bf16", |device| rows(device, Precision::W8a8(DType::Bf16))),
    of("kernels::w8a16_bf16", |device| rows(device, Precision::W8a16(DType::Bf16))),
    of("kernels::f16", |device| rows(device, Precision::F16)),
    of("kernels::w8a16_f16", |device| rows(device, Precision::W8a16(DType::F16))),
    of("kernels::w8a8_f16", |device| rows(device, Precision::W8a8(DType::F16))),
    of("kernels::w8a8_f32", |device| rows(device, Precision::W8a8(DType::F32))),
    GpuTest { name: "kernels::reads", needs: Needs::Capability(Capability(8, 0)), run: reads },
];

/// A test with packed weights, for which only compute capability 9.0 has kernels.
const fn packed(name: &'static str, run: fn(&CudaDevice) -> Result<(), Failed>) -> GpuTest {
    GpuTest { name, needs: Needs::Exactly(Capability(9, 0)), run }
}

const fn of(name: &'static str, run: fn(&CudaDevice) -> Result<(), Failed>) -> GpuTest {
    GpuTest { name, needs: Needs::Memory(1 << 30), run }
}

/// Prints which kernel has ended well: that is what remains of a run that is cut off.
fn clean(kernel: &str) {
    println!("== {kernel}: ran, and is right");
}

fn rows(device: &CudaDevice, precision: Precision) -> Result<(), Failed> {
    products(device, precision, WeightLayout::Rows)
}

/// Every tile of a precision and a layout, with tails of ids, rows and k; and the kernels that fill, pack and
/// compare.
fn products(device: &CudaDevice, precision: Precision, layout: WeightLayout) -> Result<(), Failed> {
    if !layouts(device, precision)?.contains(&layout) {
        return Err(format!("{precision}: this build has no kernels for packed weights").into());
    }
    // Ends the line that the test's name is on.
    println!();
    let operands = Operands::new(precision, 130, 272, 9).integers();
    let loaded = Loaded::with_layout(device, &operands, 9, layout)?;
    let (out, projection) =
        (loaded.output(9, Some(&[8, 7, 6, 5, 4, 3, 2, 1, 0]), DType::F32, 1)?, loaded.projection()?);
    let mut seen = Vec::new();
    for plan in loaded.plans(9)? {
        if seen.contains(&plan.tile.kernel) {
            continue;
        }
        seen.push(plan.tile.kernel);
        // One block for all tiles, so that it goes around its ring of stages.
        let blocks = if layout == WeightLayout::Packed { 1 } else { plan.blocks };
        loaded.run(&out, Some(&Plan { blocks, ..plan }))?;
        let of = |problem| format!("{}: {problem}", plan.tile.kernel);
        loaded.is_exact(&out, &projection).map_err(of)?;
        clean(plan.tile.kernel);
    }
    Ok(())
}

/// The kernels that only read, in each way: every word must be in the sum.
pub fn reads(device: &CudaDevice) -> Result<(), Failed> {
    println!();
    let own = crate::heads::stream(device)?;
    // More than a stage, and no whole number of them; whole rows for boxes.
    let (pitch, bytes) = (1024, 3 * 32768 + 1024);
    let mut roofs = Roofs::new(device, own.handle(), bytes, 4096)?;
    let mut readings = roofs.reading(bytes, 2)?;
    if roofs.no_bulk().is_none() {
        readings.push(roofs.reading_by(Way::Boxes { blocks: 2, rows: 64, pitch }, bytes, 2)?);
    }
    for Reading { way, work, .. } in &readings {
        work.replay().map_err(|e| format!("{way}: {e}"))?;
    }
    let problems = roofs.check(&readings)?;
    for (Reading { way, .. }, problem) in readings.iter().zip(&problems) {
        match problem {
            None => clean(&way.to_string()),
            Some(problem) => println!("== {problem}"),
        }
    }
    match problems.into_iter().flatten().next() {
        None => Ok(()),
        Some(problem) => Err(problem.into()),
    }
}
