//! The microkernels on the GPU, compared with the emulated device and with the plain product: int8 and
//! integers in every bit, random 16-bit data with the chain of instructions that the emulated device models.
//! The cases are those of `crates/emulated/tests/emulated`.

use crate::results::{self, Aspect, Comparison, Way};
use half::bf16;
use libtest_mimic::Failed;
use lmhead::backend::cuda::{Buffer, CudaDevice, Launch, encode};
use lmhead::backend::params::{
    GatherMicrokernelParams, MmaMicrokernelParams, TensorMap, WgmmaMicrokernelParams,
};
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_emulated::arithmetic::bf16_step;
use lmhead_emulated::{self as emulated, LaunchConfig, microkernels};
use lmhead_gpu::needs::{GpuTest, Needs};
use lmhead_testkit::microkernels::{self as cases, REAL, SMALL, Shape, Values, bits};

const MMA_S8: &str = "microkernel_mma_s8_sm80";
const WGMMA_S8: &str = "microkernel_wgmma_s8_sm90a";
const WGMMA_BF16: &str = "microkernel_wgmma_bf16_sm90a";
const WGMMA_REGISTERS_BF16: &str = "microkernel_wgmma_registers_bf16_sm90a";
const GATHER_BF16: &str = "microkernel_gather_bf16_sm90a";

const SHARED: &str = "shared memory, by descriptor";
/// Ways to compute that the bits of a kernel's results could depend on.
pub const WAYS: [Way; 5] = [
    Way {
        kernel: MMA_S8,
        instruction: "mma.sync m16n8k32 s8",
        tile: "16 x 8",
        orientation: "vocabulary on m",
        weights_from: "registers, through ldmatrix",
        rows_from: "registers, through ldmatrix",
    },
    Way {
        kernel: WGMMA_S8,
        instruction: "wgmma m64n64k32 s8",
        tile: "64 x 64",
        orientation: "vocabulary on m",
        weights_from: SHARED,
        rows_from: SHARED,
    },
    Way {
        kernel: WGMMA_BF16,
        instruction: "wgmma m64n64k16 bf16",
        tile: "64 x 64",
        orientation: "vocabulary on m; in the comparison of orientations, rows on m",
        weights_from: SHARED,
        rows_from: SHARED,
    },
    Way {
        kernel: WGMMA_REGISTERS_BF16,
        instruction: "wgmma m64n64k16 bf16",
        tile: "64 x 64",
        orientation: "vocabulary on m; in the comparison of orientations, rows on m",
        weights_from: "registers, through ldmatrix",
        rows_from: SHARED,
    },
    Way {
        kernel: GATHER_BF16,
        instruction: "wgmma m64n32k16 bf16",
        tile: "64 x 32",
        orientation: "vocabulary on m",
        weights_from: SHARED,
        rows_from: SHARED,
    },
];

pub const TESTS: &[GpuTest] = &[
    GpuTest { name: "kernels::microkernels::mma_s8", needs: Needs::Kernel(MMA_S8), run: mma_s8 },
    GpuTest { name: "kernels::microkernels::wgmma_s8", needs: Needs::Kernel(WGMMA_S8), run: wgmma_s8 },
    GpuTest { name: "kernels::microkernels::wgmma_bf16", needs: Needs::Kernel(WGMMA_BF16), run: wgmma_bf16 },
    GpuTest {
        name: "kernels::microkernels::wgmma_registers_bf16",
        needs: Needs::Kernel(WGMMA_REGISTERS_BF16),
        run: wgmma_registers_bf16,
    },
    GpuTest {
        name: "kernels::microkernels::gather_bf16",
        needs: Needs::Kernel(GATHER_BF16),
        run: gather_bf16,
    },
    GpuTest {
        name: "kernels::microkernels::bits_of_bf16",
        needs: Needs::Kernel(WGMMA_BF16),
        run: bits_of_bf16,
    },
    GpuTest {
        name: "kernels::microkernels::a_parameter_of_another_size",
        needs: Needs::Kernel(MMA_S8),
        run: another_size,
    },
    GpuTest {
        name: "kernels::microkernels::a_launch_that_cannot_be",
        needs: Needs::Kernel(MMA_S8),
        run: impossible_launch,
    },
];

/// All shapes; under compute-sanitizer, which is slow, only the small ones.
fn shapes() -> Vec<Shape> {
    let real = if std::env::var_os("LMHEAD_GPU_SMALL").is_some() { &[][..] } else { &REAL[..] };
    SMALL.iter().chain(real).copied().collect()
}

fn mma_s8(device: &CudaDevice) -> Result<(), Failed> {
    for shape in shapes() {
        let Shape { vocab, rows: row_count, hidden } = shape;
        let cases::Int8 { weights, rows, truth } = cases::int8(&shape);
        let config =
            microkernels::config(vocab, row_count, 32, microkernels::MMA_THREADS, microkernels::MMA_SHARED);

        let (w, x, out) = (device.upload(&weights)?, device.upload(&rows)?, Output::new(device, &shape)?);
        let params = MmaMicrokernelParams {
            weights: w.pointer(),
            rows: x.pointer(),
            out: out.buffer.pointer(),
            vocab,
            row_count,
            hidden,
        };
        run(device, MMA_S8, &config, &params)?;

        let mut emulated = emulated::Device::new();
        let (w, x) = (emulated.upload(&weights), emulated.upload(&rows));
        let emulated_out = emulated.alloc(truth.len() * 4)?;
        let params = MmaMicrokernelParams {
            weights: w.pointer(),
            rows: x.pointer(),
            out: emulated_out.pointer(),
            ..params
        };
        emulated.launch(&microkernels::mma_s8(), &params, &config)?;
        let truth: Vec<u32> = truth.into_iter().map(|sum| sum as u32).collect();
        out.compare(MMA_S8, &shape, "int8", &truth, &emulated.download(emulated_out)?)?;
    }
    Ok(())
}

fn wgmma_s8(device: &CudaDevice) -> Result<(), Failed> {
    for shape in shapes() {
        let cases::Int8 { weights, rows, truth } = cases::int8(&shape);
        let out = wgmma(device, WGMMA_S8, &shape, &weights, &rows)?;
        let emulated = emulated_wgmma(&microkernels::wgmma_s8(), &shape, &weights, &rows)?;
        let truth: Vec<u32> = truth.into_iter().map(|sum| sum as u32).collect();
        out.compare(WGMMA_S8, &shape, "int8", &truth, &emulated)?;
    }
    Ok(())
}

fn wgmma_bf16(device: &CudaDevice) -> Result<(), Failed> {
    bf16_by(device, WGMMA_BF16, &microkernels::wgmma_bf16())
}

fn wgmma_registers_bf16(device: &CudaDevice) -> Result<(), Failed> {
    bf16_by(device, WGMMA_REGISTERS_BF16, &microkernels::wgmma_registers_bf16())
}

fn bf16_by(
    device: &CudaDevice,
    name: &'static str,
    kernel: &emulated::Kernel<WgmmaMicrokernelParams>,
) -> Result<(), Failed> {
    for (shape, values) in both_values() {
        let cases::Halves { weights, rows, truth } = cases::halves(&shape, values, bf16_step);
        let (weights, rows) = (as_bits(&weights), as_bits(&rows));
        let out = wgmma(device, name, &shape, &weights, &rows)?;
        let emulated = emulated_wgmma(kernel, &shape, &weights, &rows)?;
        out.compare(name, &shape, &format!("bf16 {values:?}"), &bits(&truth), &emulated)?;
    }
    Ok(())
}

fn gather_bf16(device: &CudaDevice) -> Result<(), Failed> {
    for (shape, values) in both_values() {
        let Shape { vocab, rows: row_count, hidden } = shape;
        let cases::Gathered { weights, source, source_rows, indices, truth } =
            cases::gathered(&shape, values, bf16_step);
        let out = gather(device, &shape, &as_bits(&weights), &as_bits(&source), &indices)?;

        let mut emulated = emulated::Device::new();
        let (w, x) = (emulated.upload(&weights), emulated.upload(&source));
        let picked = emulated.upload(&indices);
        let emulated_out = emulated.alloc(truth.len() * 4)?;
        let params = GatherMicrokernelParams {
            weights: microkernels::tiles(w.address(), 2, vocab, hidden, 64)?,
            rows: x.pointer(),
            indices: picked.pointer(),
            out: emulated_out.pointer(),
            vocab,
            row_count,
            source_rows,
            hidden,
        };
        emulated.launch(&microkernels::gather_bf16(), &params, &gather_config(&shape))?;
        let emulated: Vec<u32> = emulated.download(emulated_out)?;
        out.compare(GATHER_BF16, &shape, &format!("bf16 {values:?}"), &bits(&truth), &emulated)?;
    }
    Ok(())
}

/// Whether the bits of random data depend on how they were computed: every way of the microkernels against
/// the plainest one. Each comparison is recorded, also after one that differed; any difference is an error,
/// since equal bits are promised.
fn bits_of_bf16(device: &CudaDevice) -> Result<(), Failed> {
    let mut problems = Vec::new();
    for shape in shapes() {
        let Shape { vocab, rows: row_count, hidden } = shape;
        let cases::Halves { weights, rows, .. } = cases::halves(&shape, Values::Random, bf16_step);
        let (weights, rows) = (as_bits(&weights), as_bits(&rows));
        let base = wgmma(device, WGMMA_BF16, &shape, &weights, &rows)?.read()?;
        let mut note = |aspect, kernel, what: &str, got: &[u32]| {
            if let Err(problem) = record(aspect, kernel, &shape, what, &base, got) {
                problems.push(problem);
            }
        };

        let narrow =
            gather(device, &shape, &weights, &rows, &(0..row_count as i32).collect::<Vec<_>>())?.read()?;
        note(Aspect::Tile, GATHER_BF16, "64 x 64 against 64 x 32", &narrow);

        let registers = wgmma(device, WGMMA_REGISTERS_BF16, &shape, &weights, &rows)?.read()?;
        note(
            Aspect::OperandSource,
            WGMMA_REGISTERS_BF16,
            "a by descriptor against a in registers",
            &registers,
        );

        for (kernel, what) in [
            (WGMMA_BF16, "vocabulary on m against rows on m"),
            (WGMMA_REGISTERS_BF16, "vocabulary on m by descriptor against rows on m in registers"),
        ] {
            let swapped = Shape { vocab: row_count, rows: vocab, hidden };
            let swapped = wgmma(device, kernel, &swapped, &rows, &weights)?.read()?;
            let transposed: Vec<u32> = (0..row_count as usize)
                .flat_map(|row| (0..vocab as usize).map(move |id| (row, id)))
                .map(|(row, id)| swapped[id * row_count as usize + row])
                .collect();
            note(Aspect::Orientation, kernel, what, &transposed);
        }

        // Every row at another position in the tile, with other neighbours.
        let turn = |row: usize| (row + 5) % row_count as usize;
        let turned: Vec<u16> = (0..row_count as usize)
            .flat_map(|row| &rows[turn(row) * hidden as usize..][..hidden as usize])
            .copied()
            .collect();
        let turned = wgmma(device, WGMMA_BF16, &shape, &weights, &turned)?.read()?;
        let mut back = vec![0; base.len()];
        for (row, values) in turned.chunks(vocab as usize).enumerate() {
            back[turn(row) * vocab as usize..][..vocab as usize].copy_from_slice(values);
        }
        note(Aspect::Position, WGMMA_BF16, "rows in another order", &back);
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("\n").into()),
    }
}

fn another_size(device: &CudaDevice) -> Result<(), Failed> {
    match device.kernel::<u64>(MMA_S8) {
        Ok(_) => Err("a kernel was taken for one with another parameter".into()),
        Err(e) if e.to_string().contains("wanted one of 8 bytes, got parameters of [40] bytes") => Ok(()),
        Err(e) => Err(format!("wanted the sizes named, got {e}").into()),
    }
}

fn impossible_launch(device: &CudaDevice) -> Result<(), Failed> {
    let kernel = device.kernel::<MmaMicrokernelParams>(MMA_S8)?;
    if kernel.attributes().local != 0 || kernel.attributes().registers == 0 {
        return Err(format!("unlikely attributes: {:?}", kernel.attributes()).into());
    }
    let out = device.filled(4, 0)?;
    let params = MmaMicrokernelParams {
        weights: out.pointer(),
        rows: out.pointer(),
        out: out.pointer(),
        vocab: 0,
        row_count: 0,
        hidden: 0,
    };
    for launch in [
        Launch::new([0, 1, 1], [128, 1, 1]),
        Launch::new([1, 1, 1], [129, 1, 1]),
        Launch { dynamic_shared: 1 << 20, ..Launch::new([1, 1, 1], [128, 1, 1]) },
    ] {
        // SAFETY: refused before it reaches the device; sizes of zero access nothing.
        match unsafe { kernel.launch(&launch, &params) } {
            Ok(()) => return Err(format!("launched: {launch}").into()),
            Err(e) if e.to_string().starts_with("kernel microkernel_mma_s8_sm80: wanted ") => {}
            Err(e) => return Err(format!("wanted the kernel named, got {e}").into()),
        }
    }
    Ok(device.synchronize()?)
}

fn both_values() -> impl Iterator<Item = (Shape, Values)> {
    shapes().into_iter().flat_map(|shape| [(shape, Values::Integers), (shape, Values::Random)])
}

fn as_bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Results `[rows, vocab]` of four bytes, followed by bytes that no kernel may write. All are initialised
/// with ones, which is no sum of int8 and not the NaN of tensor cores (0x7fffffff), so that an unwritten
/// value never passes for a result.
struct Output {
    buffer: Buffer,
    values: usize,
}

const BEHIND: usize = 4096;

impl Output {
    fn new(device: &CudaDevice, shape: &Shape) -> Result<Self, Failed> {
        let values = (shape.rows * shape.vocab) as usize;
        Ok(Output { buffer: device.filled(values * 4 + BEHIND, 0xff)?, values })
    }

    fn read(&self) -> Result<Vec<u32>, Failed> {
        let mut all: Vec<u32> = self.buffer.read()?;
        if all[self.values..].iter().any(|&word| word != u32::MAX) {
            return Err("the kernel wrote behind its output".into());
        }
        all.truncate(self.values);
        Ok(all)
    }

    fn compare(
        &self,
        kernel: &'static str,
        shape: &Shape,
        what: &str,
        truth: &[u32],
        emulated: &[u32],
    ) -> Result<(), Failed> {
        let values = self.read()?;
        let plain = record(Aspect::PlainProduct, kernel, shape, what, truth, &values);
        let emulated = record(Aspect::EmulatedDevice, kernel, shape, what, emulated, &values);
        plain.and(emulated).map_err(Failed::from)
    }
}

/// # Errors
/// If a bit differs, after it was recorded.
fn record(
    aspect: Aspect,
    kernel: &'static str,
    shape: &Shape,
    what: &str,
    wanted: &[u32],
    got: &[u32],
) -> Result<(), String> {
    let Shape { vocab, rows, hidden } = *shape;
    let differing = wanted.iter().zip(got).filter(|(wanted, got)| wanted != got).count();
    results::add(Comparison {
        aspect,
        kernel,
        what: what.to_string(),
        vocab,
        rows,
        hidden,
        values: got.len(),
        differing,
    });
    if differing == 0 && wanted.len() == got.len() {
        return Ok(());
    }
    let first = wanted.iter().zip(got).position(|(wanted, got)| wanted != got).unwrap_or(0);
    Err(format!(
        "{kernel} {vocab} x {rows} x {hidden}, {aspect:?}, {what}: {differing} of {} values differ, the first at {first}: wanted {:#010x}, \
         got {:#010x}",
        wanted.len(),
        wanted[first],
        got[first]
    ))
}

fn run<P: Copy>(device: &CudaDevice, name: &str, config: &LaunchConfig, params: &P) -> Result<(), Failed> {
    let launch = Launch {
        dynamic_shared: config.dynamic_shared as usize,
        cluster: config.cluster,
        ..Launch::new(config.grid, config.block)
    };
    // SAFETY: the callers' buffers are as large as the sizes beside them say, and live until this has waited.
    unsafe { device.kernel::<P>(name)?.launch(&launch, params) }?;
    Ok(device.synchronize()?)
}

/// Tensor map for tiles of 128 bytes of `[rows, hidden]`, as `microkernels::tiles` of the emulated device.
fn tiles<T>(buffer: &Buffer, rows: u32, hidden: u32, box_rows: u32) -> Result<TensorMap, Failed> {
    let element_bytes = size_of::<T>() as u32;
    let tiled = Tiled2d {
        address: buffer.address(),
        element_bytes,
        columns: hidden.into(),
        rows: rows.into(),
        pitch: u64::from(hidden) * u64::from(element_bytes),
        box_columns: 128 / element_bytes,
        box_rows,
        swizzle: Swizzle::Bytes128,
    };
    Ok(encode(&tiled)?)
}

fn wgmma_config(shape: &Shape) -> LaunchConfig {
    let (rows, shared) = (microkernels::WGMMA_ROWS, microkernels::WGMMA_SHARED);
    microkernels::config(shape.vocab, shape.rows, rows, microkernels::WGMMA_THREADS, shared)
}

fn gather_config(shape: &Shape) -> LaunchConfig {
    let (rows, shared) = (microkernels::GATHER_ROWS, microkernels::GATHER_SHARED);
    microkernels::config(shape.vocab, shape.rows, rows, microkernels::WGMMA_THREADS, shared)
}

fn wgmma<T: bytemuck::NoUninit>(
    device: &CudaDevice,
    kernel: &str,
    shape: &Shape,
    weights: &[T],
    rows: &[T],
) -> Result<Output, Failed> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let (w, x, out) = (device.upload(weights)?, device.upload(rows)?, Output::new(device, shape)?);
    let params = WgmmaMicrokernelParams {
        weights: tiles::<T>(&w, vocab, hidden, 64)?,
        rows: tiles::<T>(&x, row_count, hidden, microkernels::WGMMA_ROWS)?,
        out: out.buffer.pointer(),
        vocab,
        row_count,
        hidden,
    };
    run(device, kernel, &wgmma_config(shape), &params)?;
    Ok(out)
}

fn emulated_wgmma<T: bytemuck::NoUninit>(
    kernel: &emulated::Kernel<WgmmaMicrokernelParams>,
    shape: &Shape,
    weights: &[T],
    rows: &[T],
) -> Result<Vec<u32>, Failed> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let mut device = emulated::Device::new();
    let (w, x) = (device.upload(weights), device.upload(rows));
    let out = device.alloc((vocab * row_count * 4) as usize)?;
    let bytes = size_of::<T>() as u32;
    let params = WgmmaMicrokernelParams {
        weights: microkernels::tiles(w.address(), bytes, vocab, hidden, 64)?,
        rows: microkernels::tiles(x.address(), bytes, row_count, hidden, microkernels::WGMMA_ROWS)?,
        out: out.pointer(),
        vocab,
        row_count,
        hidden,
    };
    device.launch(kernel, &params, &wgmma_config(shape))?;
    Ok(device.download(out)?)
}

/// Rows `indices` `[rows]` of `source` `[n, hidden]`.
fn gather(
    device: &CudaDevice,
    shape: &Shape,
    weights: &[u16],
    source: &[u16],
    indices: &[i32],
) -> Result<Output, Failed> {
    let Shape { vocab, rows: row_count, hidden } = *shape;
    let (w, x, out) = (device.upload(weights)?, device.upload(source)?, Output::new(device, shape)?);
    let picked = device.upload(indices)?;
    let params = GatherMicrokernelParams {
        weights: tiles::<u16>(&w, vocab, hidden, 64)?,
        rows: x.pointer(),
        indices: picked.pointer(),
        out: out.buffer.pointer(),
        vocab,
        row_count,
        source_rows: (source.len() / hidden as usize) as u32,
        hidden,
    };
    run(device, GATHER_BF16, &gather_config(shape), &params)?;
    Ok(out)
}
