//! The products at full size: every plan gives the bits of every other, of the emulated device and, in int8, of the CPU; nothing beside
//! the logits is written, nothing of them is left out.

use crate::needs::{GpuTest, Needs, small};
use crate::operands::{Loaded, Operands};
use libtest_mimic::Failed;
use lmhead::DType;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::epilogue::Epilogue;
use lmhead::merge::{Candidate, PartialSpec, RowPartial};
use lmhead::plan::{Plan, Precision};
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use lmhead_emulated::EmulatedDevice;

const GB: usize = 1 << 30;

pub const TESTS: &[GpuTest] = &[
    GpuTest {
        name: "products::every_plan_has_the_same_bits",
        needs: Needs::Memory(16 * GB),
        run: every_plan,
    },
    GpuTest {
        name: "products::every_vocabulary_and_hidden_size",
        needs: Needs::Memory(16 * GB),
        run: every_vocabulary,
    },
    GpuTest {
        name: "products::bits_do_not_depend_on_batch_position_or_shard",
        needs: Needs::Memory(8 * GB),
        run: independent,
    },
    GpuTest {
        name: "products::int8_has_the_emulated_devices_bits",
        needs: Needs::Memory(4 * GB),
        run: emulated_int8,
    },
    GpuTest {
        name: "products::halves_have_the_emulated_devices_bits",
        // The arithmetic that the emulated device has.
        needs: Needs::Exactly(Capability(9, 0)),
        run: emulated_halves,
    },
    GpuTest { name: "products::int8_has_the_cpus_bits", needs: Needs::Memory(8 * GB), run: cpu_int8 },
    GpuTest {
        name: "products::more_than_2_to_the_31_logits",
        needs: Needs::Memory(20 * GB),
        run: many_logits,
    },
    GpuTest { name: "products::a_graph_replays_the_same_bits", needs: Needs::Memory(8 * GB), run: graph },
];

const ALL: [Precision; 7] = [
    Precision::Bf16,
    Precision::F16,
    Precision::W8a8(DType::Bf16),
    Precision::W8a8(DType::F16),
    Precision::W8a8(DType::F32),
    Precision::W8a16(DType::Bf16),
    Precision::W8a16(DType::F16),
];

/// What went wrong, with the product and the plan.
fn of(what: &str, precision: Precision, rows: usize) -> impl Fn(String) -> Failed {
    move |problem| format!("{precision}, {rows} rows, {what}: {problem}").into()
}

/// Every plan for these rows, against the first.
fn compare_plans(
    loaded: &Loaded<'_, CudaDevice>,
    rows: usize,
    dtype: DType,
    gap: usize,
) -> Result<(), Failed> {
    let (device, precision) = (loaded.device, loaded.matmul.spec().precision);
    let out = loaded.output(rows, None, dtype, gap)?;
    let mut first: Option<(Plan, Vec<u8>)> = None;
    for plan in loaded.plans(rows)? {
        loaded.run(&out, Some(&plan))?;
        match &first {
            None => {
                let bits = out.all(device).map_err(of(plan.tile.kernel, precision, rows))?;
                first = Some((plan, bits));
            }
            Some((before, bits)) => {
                let what = format!("{} against {}", plan.tile.kernel, before.tile.kernel);
                out.equals(device, bits).map_err(of(&what, precision, rows))?;
            }
        }
    }
    Ok(())
}

fn every_plan(device: &CudaDevice) -> Result<(), Failed> {
    for precision in ALL {
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
        let loaded = Loaded::new(device, &operands, most)?;
        for &rows in rows {
            // The largest with as few bytes as possible: two copies of it are on the host.
            let dtype = if rows > 1000 { DType::Bf16 } else { DType::F32 };
            compare_plans(&loaded, rows, dtype, rows % 3)?;
        }
    }
    Ok(())
}

/// KERNELS' vocabularies and hidden sizes: odd pitches, tails of tiles and of k.
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
        let precision = ALL[i % ALL.len()];
        let operands = Operands::new(precision, vocab, hidden, 37);
        let loaded = Loaded::new(device, &operands, 37)?;
        for (rows, dtype) in [(3, DType::Bf16), (37, DType::F32), (1, DType::F16)] {
            compare_plans(&loaded, rows, dtype, i % 2)?;
        }
    }
    Ok(())
}

fn independent(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (200, 80, 20) } else { (129_280, 7168, 200) };
    for precision in [Precision::Bf16, Precision::W8a8(DType::Bf16), Precision::W8a16(DType::F16)] {
        let operands = Operands::new(precision, vocab, hidden, rows);
        let loaded = Loaded::new(device, &operands, rows)?;
        let out = loaded.output(rows, None, DType::F32, 0)?;
        loaded.run(&out, None)?;
        let whole = out.all(device).map_err(of("the whole batch", precision, rows))?;
        let of_row = |row: i64| &whole[row as usize * 4 * vocab..][..4 * vocab];
        // Alone, at other places, and more than once.
        let last = rows as i64 - 1;
        for picked in [vec![last], vec![last, 0, last, 3, 3, 1, last], (0..=last).rev().step_by(3).collect()]
        {
            let out = loaded.output(picked.len(), Some(&picked), DType::F32, 1)?;
            loaded.run(&out, None)?;
            let want: Vec<u8> = picked.iter().flat_map(|&row| of_row(row)).copied().collect();
            out.equals(device, &want).map_err(of("picked rows", precision, picked.len()))?;
        }
        // Of a shard.
        let (first, ids) = (64, vocab / 2 - 17);
        let shard = Loaded::new(device, &operands.shard(first, ids), rows)?;
        let out = shard.output(rows, None, DType::F32, 0)?;
        shard.run(&out, None)?;
        let part = |row: i64| &of_row(row)[4 * first..4 * (first + ids)];
        let want: Vec<u8> = (0..=last).flat_map(part).copied().collect();
        out.equals(device, &want).map_err(of("a shard", precision, rows))?;
    }
    Ok(())
}

/// Some ids of a large product, computed by the emulated device.
fn against_emulated(device: &CudaDevice, precision: Precision) -> Result<(), Failed> {
    let (vocab, hidden, rows, ids) = if small() { (300, 144, 9, 70) } else { (129_280, 7168, 28, 130) };
    let operands = Operands::new(precision, vocab, hidden, rows);
    let loaded = Loaded::new(device, &operands, rows)?;
    let out = loaded.output(rows, None, DType::F32, 0)?;
    loaded.run(&out, None)?;
    let whole = out.all(device).map_err(of("the GPU", precision, rows))?;

    let emulated = EmulatedDevice::new(1);
    for first in [0, vocab - ids] {
        let part = Loaded::new(&emulated, &operands.shard(first, ids), rows)?;
        let out = part.output(rows, None, DType::F32, 0)?;
        part.run(&out, None)?;
        let want: Vec<u8> =
            (0..rows).flat_map(|row| &whole[4 * (row * vocab + first)..][..4 * ids]).copied().collect();
        out.equals(&emulated, &want).map_err(of("the emulated device for the GPU", precision, rows))?;
    }
    Ok(())
}

fn emulated_int8(device: &CudaDevice) -> Result<(), Failed> {
    [DType::Bf16, DType::F16, DType::F32]
        .into_iter()
        .try_for_each(|rows| against_emulated(device, Precision::W8a8(rows)))
}

fn emulated_halves(device: &CudaDevice) -> Result<(), Failed> {
    [Precision::Bf16, Precision::F16, Precision::W8a16(DType::Bf16), Precision::W8a16(DType::F16)]
        .into_iter()
        .try_for_each(|precision| against_emulated(device, precision))
}

/// Through whole backends: logits and candidates, with host memory for all at once, and for a part of it at a time.
fn cpu_int8(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows, part) =
        if small() { (300, 144, 9, 4096) } else { (129_280, 7168, 28, 4 << 20) };
    let operands = Operands::new(Precision::W8a8(DType::Bf16), vocab, hidden, rows);
    let values: Vec<i8> = operands
        .weights
        .chunks(operands.pitch)
        .flat_map(|row| bytemuck::cast_slice::<u8, i8>(&row[..hidden]))
        .copied()
        .collect();
    let matrix = Matrix::I8 { values: values.into(), scales: operands.scales.clone() };
    let shard = HeadShard::new(0..vocab, vocab, hidden, lmhead::Quantization::W8a8, matrix, None)?;
    let job = Job {
        rows: HiddenRows::new(&operands.rows, DType::Bf16, rows, hidden)?,
        shard: &shard,
        epilogue: Epilogue::default(),
        adjustments: None,
    };
    let host = || CpuBackend::new(None);
    let (cpu, cuda) = (host()?, device.clone().backend(host()?));
    let in_parts = device.clone().backend(host()?).staged(part);
    let want = answers(&cpu, &job)?;
    for (name, backend) in [("at once", cuda), ("in parts", in_parts)] {
        let (logits, candidates) = answers(&backend, &job)?;
        if logits != want.0 {
            return Err(format!("{name}: the GPU's int8 logits have other bits than the CPU's").into());
        }
        if candidates != want.1 {
            return Err(format!("{name}: the GPU's candidates or sums are others than the CPU's").into());
        }
    }
    Ok(())
}

/// The best of a row, and the bits of its logsumexp.
type Best = (Vec<Candidate>, u64);

/// f32 logits, and the best of each row.
fn answers(backend: &dyn Backend, job: &Job<'_>) -> lmhead::Result<(Vec<u8>, Vec<Best>)> {
    let (rows, stride) = (job.rows.len(), 4 * job.shard.vocab().len());
    let (mut bytes, mut nonfinite) = (vec![0xff; rows * stride], vec![false; rows]);
    let out = LogitsOut {
        bytes: &mut bytes,
        stride,
        dtype: DType::F32,
        nonfinite: &mut nonfinite,
        any_allowed: None,
    };
    backend.logits(job, out)?;
    let spec = PartialSpec { k: 5, sum: true };
    let mut partials = vec![RowPartial::new(spec); rows];
    backend.partials(job, spec, &mut partials)?;
    Ok((bytes, partials.iter().map(|row| (row.sorted(), row.logsumexp_f64().to_bits())).collect()))
}

fn many_logits(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (300, 64, 17) } else { (262_208, 64, 8200) };
    let precision = Precision::W8a8(DType::Bf16);
    let operands = Operands::new(precision, vocab, hidden, rows);
    let loaded = Loaded::new(device, &operands, rows)?;
    let out = loaded.output(rows, None, DType::Bf16, 1)?;
    loaded.run(&out, None)?;
    // Each row alone is far from 2^31, and must have the bits that it has here: the last rows, and one in the middle of the rest.
    let picked = [0, rows as i64 / 2, rows as i64 - 2, rows as i64 - 1];
    let few = loaded.output(picked.len(), Some(&picked), DType::Bf16, 0)?;
    loaded.run(&few, None)?;
    let want = few.all(device).map_err(of("rows alone", precision, picked.len()))?;
    let mut seen = 0;
    let row_bytes = 2 * vocab;
    out.each(device, |first, bytes| {
        for (i, &row) in picked.iter().enumerate() {
            let Some(at) = (row as usize).checked_sub(first).filter(|at| (at + 1) * row_bytes <= bytes.len())
            else {
                continue;
            };
            seen += 1;
            if bytes[at * row_bytes..][..row_bytes] != want[i * row_bytes..][..row_bytes] {
                return Err(format!("row {row} has other bits than alone"));
            }
        }
        Ok(())
    })
    .map_err(of("more than 2^31 logits", precision, rows))?;
    if seen == picked.len() { Ok(()) } else { Err("rows were not compared".into()) }
}

fn graph(device: &CudaDevice) -> Result<(), Failed> {
    let (vocab, hidden, rows) = if small() { (300, 144, 9) } else { (129_280, 7168, 28) };
    for precision in [Precision::Bf16, Precision::W8a8(DType::Bf16), Precision::W8a16(DType::Bf16)] {
        let operands = Operands::new(precision, vocab, hidden, rows);
        let loaded = Loaded::new(device, &operands, rows)?;
        let out = loaded.output(rows, None, DType::F32, 0)?;
        loaded.run(&out, None)?;
        let eager = out.all(device).map_err(of("eager", precision, rows))?;
        let own = device.open_stream()?;
        let (stream, call) = (device.on(&own), loaded.call(&out));
        // SAFETY: all of it is this device's, and lives until the last wait below.
        let graph = Graph::capture(device, stream, || unsafe { loaded.matmul.run(device, stream, &call) })?;
        for _ in 0..3 {
            loaded.poison(&out)?;
            // SAFETY: as above.
            unsafe { graph.launch(stream) }?;
            device.wait(stream)?;
            out.equals(device, &eager).map_err(of("a replay", precision, rows))?;
        }
    }
    Ok(())
}
