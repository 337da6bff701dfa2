//! Each kernel once, on the smallest shapes that use all of it: what a sanitizer has time for.

use crate::needs::{GpuTest, Needs};
use crate::operands::{Loaded, Operands, layouts};
use crate::roofs::{Reading, Roofs, Way};
use libtest_mimic::Failed;
use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::backend::device::KernelDevice;
use lmhead::plan::hopper::RING_STAGES;
use lmhead::plan::{Plan, Precision, WeightLayout};

/// Rows of a product.
const ROWS: usize = 9;

pub const TESTS: &[GpuTest] = &[
    packed("kernels::packed::bf16", |device| products(device, Precision::Bf16, WeightLayout::Packed)),
    packed("kernels::packed::w8a8_bf16", |device| {
        products(device, Precision::W8a8(DType::Bf16), WeightLayout::Packed)
    }),
    packed("kernels::packed::w8a16_bf16", |device| {
        products(device, Precision::W8a16(DType::Bf16), WeightLayout::Packed)
    }),
    packed("kernels::packed::fp8_bf16", |device| {
        products(device, Precision::Fp8(DType::Bf16), WeightLayout::Packed)
    }),
    packed("kernels::packed::f16", |device| products(device, Precision::F16, WeightLayout::Packed)),
    packed("kernels::packed::w8a16_f16", |device| {
        products(device, Precision::W8a16(DType::F16), WeightLayout::Packed)
    }),
    packed("kernels::packed::fp8_f16", |device| {
        products(device, Precision::Fp8(DType::F16), WeightLayout::Packed)
    }),
    packed("kernels::packed::w8a8_f16", |device| {
        products(device, Precision::W8a8(DType::F16), WeightLayout::Packed)
    }),
    packed("kernels::packed::w8a8_f32", |device| {
        products(device, Precision::W8a8(DType::F32), WeightLayout::Packed)
    }),
    of("kernels::bf16", |device| rows(device, Precision::Bf16)),
    of("kernels::w8a8_bf16", |device| rows(device, Precision::W8a8(DType::Bf16))),
    of("kernels::w8a16_bf16", |device| rows(device, Precision::W8a16(DType::Bf16))),
    of("kernels::fp8_bf16", |device| rows(device, Precision::Fp8(DType::Bf16))),
    of("kernels::f16", |device| rows(device, Precision::F16)),
    of("kernels::w8a16_f16", |device| rows(device, Precision::W8a16(DType::F16))),
    of("kernels::fp8_f16", |device| rows(device, Precision::Fp8(DType::F16))),
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

/// The plans of a layout that are checked: each tile with the fewest stages; of packed weights also with as
/// many as fit, and with one block (or cluster) for all tiles, so that it goes around its ring.
fn checked(device: &CudaDevice, loaded: &Loaded<'_, CudaDevice>) -> Result<Vec<Plan>, Failed> {
    let mut plans = loaded.plans(ROWS)?;
    plans.dedup_by_key(|plan| plan.tile.kernel);
    if loaded.layout() == WeightLayout::Rows {
        return Ok(plans);
    }
    let limits = device.limits();
    let around = |Plan { precision, shape, tile, .. }: Plan| {
        let with = |stages| Plan::with_packed_tile(precision, shape, &tile, stages, &limits).ok();
        let fitting: Vec<Plan> = RING_STAGES.filter_map(with).collect();
        let of_all = |plan| Plan { blocks: tile.cluster() as u32, ..plan };
        fitting.first().into_iter().chain(fitting.last()).copied().map(of_all).collect::<Vec<_>>()
    };
    Ok(plans.into_iter().flat_map(around).collect())
}

/// Every tile of a precision and a layout, with tails of ids, rows and k; and the kernels that fill, pack and
/// compare. k is long enough for a block to go around each ring.
fn products(device: &CudaDevice, precision: Precision, layout: WeightLayout) -> Result<(), Failed> {
    if !layouts(device, precision)?.contains(&layout) {
        return Err(format!("{precision}: this build has no kernels for packed weights").into());
    }
    // Ends the line that the test's name is on.
    println!();
    let operands = Operands::new(precision, 130, 1104, ROWS).integers();
    let loaded = Loaded::with_layout(device, &operands, ROWS, layout)?;
    let (out, projection) =
        (loaded.output(ROWS, Some(&[8, 7, 6, 5, 4, 3, 2, 1, 0]), DType::F32, 1)?, loaded.projection()?);
    for of_tile in checked(device, &loaded)?.chunk_by(|one, other| one.tile == other.tile) {
        let kernel = of_tile[0].tile.kernel;
        for plan in of_tile {
            loaded.run(&out, Some(plan))?;
            let of = |problem| format!("{kernel}, {} stages: {problem}", plan.stages);
            loaded.is_exact(&out, &projection).map_err(of)?;
        }
        clean(kernel);
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
