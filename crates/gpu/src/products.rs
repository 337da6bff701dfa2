//! The products at full size: every plan gives the bits of every other and, of integers, the exact product;
//! nothing beside the logits is written, nothing of them is left out. All of it is compared on the device.

use crate::kernels;
use crate::needs::{GpuTest, Needs, small};
use crate::operands::mistakes::mistakes_are_found;
use crate::operands::{Loaded, Operands, layouts};
use crate::recorded::{Recorded, compare_ends, rounded, same_bits};
use libtest_mimic::Failed;
use lmhead::DType;
use lmhead::backend::Backend;
use lmhead::backend::Job;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::KernelDevice;
use lmhead::epilogue::Epilogue;
use lmhead::plan::Precision;
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use lmhead_testkit::product::shards::{ShardCase, answers};
use lmhead_testkit::product::table::{Case, PRECISIONS, cases, run};
use lmhead_testkit::product::{bits_of, raw_logits};
use lmhead_testkit::product::{draws, logits, partials};
use std::sync::Arc;

const GB: usize = 1 << 30;

/// The most valuable first, for when minutes are few.
pub const TESTS: &[GpuTest] = &[
    // Comparisons on the device are worth something only if they find mistakes.
    GpuTest { name: "bits::mistakes_are_found", needs: Needs::Memory(GB), run: mistakes },
    GpuTest { name: "bits::table", needs: Needs::Memory(GB), run: table },
    // A head's own kernels on a device of 9.0.
    GpuTest { name: "bits::packed_tiles", needs: Needs::Exactly(Capability(9, 0)), run: packed_tiles },
    // Only devices with the emulated device's arithmetic, here and below.
    GpuTest { name: "bits::recorded", needs: Needs::Exactly(Capability(9, 0)), run: recorded_table },
    GpuTest { name: "bits::ends_of_a_head", needs: Needs::Exactly(Capability(9, 0)), run: ends },
    GpuTest { name: "bits::a_graph_replays_the_same", needs: Needs::Memory(8 * GB), run: graph },
    // Runs before whole heads are measured beside these kernels.
    GpuTest { name: "bits::reads", needs: Needs::Capability(Capability(8, 0)), run: kernels::reads },
    GpuTest {
        name: "products::every_plan_has_the_same_bits",
        needs: Needs::Memory(24 * GB),
        run: every_plan,
    },
    GpuTest {
        name: "products::bits_do_not_depend_on_batch_position_or_shard",
        needs: Needs::Memory(8 * GB),
        run: independent,
    },
    GpuTest {
        name: "products::every_vocabulary_and_hidden_size",
        needs: Needs::Memory(24 * GB),
        run: every_vocabulary,
    },
    GpuTest { name: "products::int8_has_the_cpus_bits", needs: Needs::Memory(8 * GB), run: cpu_int8 },
    GpuTest { name: "products::int8_answers_are_the_cpus", needs: Needs::Memory(GB), run: cpu_answers },
    GpuTest {
        name: "products::more_than_2_to_the_31_logits",
        needs: Needs::Memory(20 * GB),
        run: many_logits,
    },
    // Packed weights have eight times as many bytes, which are zeros behind the end of k.
    GpuTest {
        name: "products::more_tiles_than_16_bits_count",
        needs: Needs::Memory(4 * GB),
        run: many_tiles,
    },
];

/// What went wrong, with the product and the plan.
fn of(what: &str, precision: Precision, rows: usize) -> impl Fn(String) -> Failed {
    move |problem| format!("{precision}, {rows} rows, {what}: {problem}").into()
}

fn all_good(problems: Vec<String>) -> Result<(), Failed> {
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

fn mistakes(device: &CudaDevice) -> Result<(), Failed> {
    Ok(mistakes_are_found(device)?)
}

/// Every tile on small shapes with every finish: int8 by the rule, 16 bits within the bounds, and all alike.
fn table(device: &CudaDevice) -> Result<(), Failed> {
    let step = if small() { 9 } else { 1 };
    all_good(cases().iter().step_by(step).filter_map(|case| run(device, case).err()).collect())
}

fn recorded_table(device: &CudaDevice) -> Result<(), Failed> {
    let recorded = Recorded::read()?;
    let one = |case: Case| {
        let got = bits_of(&raw_logits(device, &case.product)?);
        same_bits(&got, &recorded.case(&case)?).map_err(|problem| format!("{}: {problem}", case.name))
    };
    let step = if small() { 9 } else { 1 };
    all_good(rounded().step_by(step).filter_map(|case| one(case).err()).collect())
}

/// Multiplies a whole head. Where [`small`] holds that is too slow: the recorded table is compared instead.
fn ends(device: &CudaDevice) -> Result<(), Failed> {
    if small() {
        return recorded_table(device);
    }
    Ok(compare_ends(device, &Recorded::read()?)?)
}

/// Compares every plan for these rows, of every layout of the weights, with the first.
fn compare_plans(
    all: &[Loaded<'_, CudaDevice>],
    rows: usize,
    dtype: DType,
    gap: usize,
) -> Result<(), Failed> {
    let precision = all[0].operands.precision;
    let first = all[0].output(rows, None, dtype, 0)?;
    let reference = all[0].plans(rows)?[0];
    all[0].run(&first, Some(&reference))?;
    for loaded in all {
        let out = loaded.output(rows, None, dtype, gap)?;
        for plan in &loaded.plans(rows)? {
            loaded.run(&out, Some(plan))?;
            let what = format!("{} against {}", plan.tile.kernel, reference.tile.kernel);
            loaded.equals(&out, &first).map_err(of(&what, precision, rows))?;
        }
    }
    Ok(())
}

/// Every tile for packed weights, with the fewest stages and with the most, against the portable kernels; the
/// sizes leave tails of tiles and of k, and blocks have several tiles.
fn packed_tiles(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, all_rows): (_, _, &[usize]) =
        if small() { (300, 144, &[1, 33]) } else { (40_001, 2880, &[1, 8, 9, 28, 33, 65, 129, 300]) };
    let most = all_rows[all_rows.len() - 1];
    for precision in PRECISIONS {
        let all = Loaded::each(device, &Operands::new(precision, vocab, hidden, most), most)?;
        if all.len() < 2 {
            return Err(format!("{precision}: this build has no kernels for packed weights").into());
        }
        for &rows in all_rows {
            compare_plans(&all, rows, DType::F32, rows % 3)?;
        }
    }
    Ok(())
}

/// Compares the chosen plan of every layout of the weights with the exact product of integers.
fn exact(device: &CudaDevice, operands: &Operands, all_rows: &[usize]) -> Result<(), Failed> {
    for loaded in Loaded::each(device, &operands.integers(), operands.source_rows)? {
        let projection = loaded.projection()?;
        for &rows in all_rows {
            let out = loaded.output(rows, None, DType::F32, rows % 2)?;
            loaded.run(&out, None)?;
            let what = format!("integers, {}", loaded.matmul.plan(rows)?.tile.kernel);
            loaded.is_exact(&out, &projection).map_err(of(&what, operands.precision, rows))?;
        }
    }
    Ok(())
}

fn every_plan(device: &CudaDevice) -> Result<(), Failed> {
    for precision in PRECISIONS {
        let (vocab, hidden, rows): (_, _, &[usize]) = match precision {
            _ if small() => (300, 144, &[1, 9, 40]),
            Precision::Bf16 | Precision::W8a8(DType::Bf16) => {
                (129_280, 7168, &[1, 8, 28, 65, 256, 896, 4096])
            }
            Precision::W8a16(DType::Bf16) => (129_280, 7168, &[1, 28, 65, 896]),
            _ => (128_256, 4096, &[1, 28, 65, 256]),
        };
        let most = rows[rows.len() - 1];
        let operands = Operands::new(precision, vocab, hidden, most);
        exact(device, &operands, rows)?;
        let all = Loaded::each(device, &operands, most)?;
        for &rows in rows {
            let dtype = if rows > 1000 { DType::Bf16 } else { DType::F32 };
            compare_plans(&all, rows, dtype, rows % 3)?;
        }
    }
    Ok(())
}

/// Models' vocabularies and hidden sizes: odd pitches, tails of tiles and of k.
fn every_vocabulary(device: &CudaDevice) -> Result<(), Failed> {
    let vocabularies =
        [32_000, 50_257, 102_400, 128_256, 129_280, 151_936, 152_064, 202_048, 256_000, 262_144, 262_208];
    let hidden = [896, 2048, 2880, 3584, 4096, 5120, 7168, 8192, 12_288];
    let sizes: Vec<(usize, usize)> = if small() {
        vec![(257, 896), (64, 90)]
    } else {
        vocabularies.into_iter().zip(hidden.into_iter().cycle()).collect()
    };
    for (i, (vocab, hidden)) in sizes.into_iter().enumerate() {
        let precision = PRECISIONS[i % PRECISIONS.len()];
        let operands = Operands::new(precision, vocab, hidden, 37);
        exact(device, &operands, &[3, 37])?;
        let all = Loaded::each(device, &operands, 37)?;
        for (rows, dtype) in [(3, DType::Bf16), (37, DType::F32), (1, DType::F16)] {
            compare_plans(&all, rows, dtype, i % 2)?;
        }
    }
    Ok(())
}

fn independent(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (200, 80, 20) } else { (129_280, 7168, 200) };
    for precision in [
        Precision::Bf16,
        Precision::W8a8(DType::Bf16),
        Precision::W8a16(DType::F16),
        Precision::Fp8(DType::Bf16),
    ] {
        let operands = Operands::new(precision, vocab, hidden, rows);
        // Also those of a shard.
        let (first, ids) = (64, vocab / 2 - 17);
        let all: Vec<i64> = (0..rows as i64).collect();
        let last = rows as i64 - 1;
        for layout in layouts(device, precision)? {
            let load = |operands: &Operands| Loaded::with_layout(device, operands, rows, layout);
            let (loaded, shard) = (load(&operands)?, load(&operands.shard(first, ids))?);
            let whole = loaded.output(rows, None, DType::F32, 0)?;
            loaded.run(&whole, None)?;
            // Alone, at other places, and more than once.
            let backwards = (0..=last).rev().step_by(3).collect();
            for picked in [vec![last], vec![last, 0, last, 3, 3, 1, last], backwards] {
                let out = loaded.output(picked.len(), Some(&picked), DType::F32, 1)?;
                loaded.run(&out, None)?;
                let named = of("picked rows", precision, picked.len());
                loaded.equals_part(&out, (&whole, &picked, 0)).map_err(named)?;
            }
            let out = shard.output(rows, None, DType::F32, 0)?;
            shard.run(&out, None)?;
            let named = of("a shard", precision, rows);
            shard.equals_part(&out, (&whole, &all, first)).map_err(named)?;
        }
    }
    Ok(())
}

/// Through whole backends: logits and candidates, with host memory for all at once, and for a part of it at a
/// time.
fn cpu_int8(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows, part) =
        if small() { (300, 144, 9, 4096) } else { (129_280, 7168, 28, 4 << 20) };
    let operands = Operands::new(Precision::W8a8(DType::Bf16), vocab, hidden, rows);
    let values: Vec<i8> = operands
        .host_weights()
        .chunks(operands.pitch())
        .flat_map(|row| bytemuck::cast_slice::<u8, i8>(&row[..hidden]))
        .copied()
        .collect();
    let matrix = Matrix::I8 { values: values.into(), scales: operands.scales() };
    let shard = Arc::new(HeadShard::new(0..vocab, vocab, hidden, lmhead::Quantization::W8a8, matrix, None)?);
    let hidden_rows = operands.host_rows();
    let job = Job {
        rows: HiddenRows::new(&hidden_rows, DType::Bf16, rows, hidden)?,
        epilogue: Epilogue::default(),
        adjustments: None,
        placed: None,
    };
    let (cpu, cuda) = (CpuBackend::new(None)?, device.clone().backend());
    let in_parts = device.clone().backend().staged(part);
    let ask = |backend: &dyn Backend| -> lmhead::Result<_> {
        Ok(answers(&mut *backend.load(&shard, DType::Bf16)?, &job, DType::F32, 5))
    };
    let want = ask(&cpu)?;
    for (name, backend) in [("at once", cuda), ("in parts", in_parts)] {
        let (logits, words, candidates) = ask(&backend)?;
        if (logits, words) != (want.0.clone(), want.1.clone()) {
            return Err(format!("{name}: the GPU's int8 logits have other bits than the CPU's").into());
        }
        if candidates != want.2 {
            return Err(format!("{name}: the GPU's candidates or sums are others than the CPU's").into());
        }
    }
    Ok(())
}

/// Candidates, sums, ranks, whole logits, searches and draws, by the kernels that find them where the logits
/// are.
fn cpu_answers(device: &CudaDevice) -> Result<(), Failed> {
    let (cpu, cuda) = (CpuBackend::new(None)?, device.clone().backend());
    partials::are_the_cpus(&cuda, &cpu, 1);
    logits::are_the_hosts(&cuda, 1);
    draws::are_the_hosts(&cuda, 1);
    draws::of_products_are_the_cpus(&cuda, &cpu, 1);
    draws::of_filtered_rows_are_refused(&cuda, &cpu);
    draws::are_as_often_as_the_softmax_says(&cuda);
    for seed in 0..8 {
        let case = ShardCase {
            dtype: DType::Bf16,
            quantization: lmhead::Quantization::W8a8,
            rows: 33,
            hidden: 50,
            vocab: 5000 + seed as usize,
            cut: 64 * seed as usize,
            bias: true,
            adjusted: seed % 2 == 0,
            scale: 1.0,
            broken: false,
            k: 40,
            seed,
        };
        case.is_the_cpus(&cuda, &cpu);
    }
    Ok(())
}

fn many_logits(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (300, 64, 17) } else { (262_208, 64, 8200) };
    let precision = Precision::W8a8(DType::Bf16);
    let loaded = Loaded::new(device, &Operands::new(precision, vocab, hidden, rows), rows)?;
    let out = loaded.output(rows, None, DType::Bf16, 1)?;
    loaded.run(&out, None)?;
    // Each row alone is far from 2^31, and must have the bits that it has here: the last rows, and one in the
    // middle of the rest.
    let picked = [0, rows as i64 / 2, rows as i64 - 2, rows as i64 - 1];
    let few = loaded.output(picked.len(), Some(&picked), DType::Bf16, 0)?;
    loaded.run(&few, None)?;
    loaded.equals_part(&few, (&out, &picked, 0)).map_err(of("more than 2^31 logits", precision, rows))
}

fn many_tiles(device: &CudaDevice) -> Result<(), Failed> {
    let vocab = if small() { 1025 } else { 65_536 * 128 + 1 };
    exact(device, &Operands::new(Precision::W8a8(DType::Bf16), vocab, 16, 1), &[1])
}

fn graph(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (300, 144, 9) } else { (129_280, 7168, 28) };
    for precision in [Precision::Bf16, Precision::W8a8(DType::Bf16), Precision::W8a16(DType::Bf16)] {
        let loaded = Loaded::new(device, &Operands::new(precision, vocab, hidden, rows), rows)?;
        let [eager, out] = [0, 1].map(|gap| loaded.output(rows, None, DType::F32, gap));
        let (eager, out) = (eager?, out?);
        loaded.run(&eager, None)?;
        let own = device.open_stream()?;
        let (stream, call) = (device.on(&own), loaded.call(&out));
        // SAFETY: all of it is this device's, and lives until the last wait below.
        let graph = Graph::capture(device, stream, || unsafe { loaded.matmul.run(device, stream, &call) })?;
        for _ in 0..3 {
            loaded.poison(&out)?;
            // SAFETY: as above.
            unsafe { graph.launch(stream) }?;
            device.wait(stream)?;
            loaded.equals(&out, &eager).map_err(of("a replay", precision, rows))?;
        }
    }
    Ok(())
}
