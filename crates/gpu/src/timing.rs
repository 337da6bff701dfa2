//! One product as a graph of several launches over rotating buffers.

use crate::clocked::Clocked;
use crate::operands::{Loaded, Operands, Output};
use crate::table::{Kind, small};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Kernel, OwnedStream};
use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::{MatmulParams, RowMatrix};
use lmhead::{DType, Result};

/// What rotating buffers are larger than together: three times the second-level cache of an H100 (50 MB).
pub const ROTATE: usize = 150 << 20;

/// Bytes of outputs that one measurement may take, two of them at least.
const OUTPUTS: usize = 4 << 30;

pub fn stream(device: &CudaDevice) -> std::result::Result<OwnedStream, String> {
    device.open_stream().map_err(|e| e.to_string())
}

/// A head's weights on the device, in as many copies as are larger than the cache together.
pub struct Weights<'d> {
    stream: CudaStream,
    copies: Vec<Loaded<'d, CudaDevice>>,
    /// Of one copy, scales included.
    bytes: usize,
}

impl<'d> Weights<'d> {
    pub fn new(device: &'d CudaDevice, stream: CudaStream, operands: &Operands) -> Result<Self> {
        let rotate = if small() { operands.weights.len() + 1 } else { ROTATE };
        let copies = rotate.div_ceil(operands.weights.len());
        let copies = (0..copies).map(|_| Loaded::new(device, operands, operands.source_rows));
        let bytes = operands.weights.len() + 4 * operands.scales.len();
        Ok(Weights { stream, copies: copies.collect::<Result<_>>()?, bytes })
    }
}

/// bf16 logits of so many rows, again and again.
pub struct Replayed<'w, 'd> {
    pub work: Clocked,
    /// That one product moves at least: weights and scales, rows and logits, each once.
    pub bytes: usize,
    /// The plan, in words.
    pub plan: String,
    _outputs: Vec<Output<CudaDevice>>,
    _weights: &'w Weights<'d>,
}

impl<'w, 'd> Replayed<'w, 'd> {
    /// Each launch has its own logits and, as far as there are copies, its own weights and rows.
    pub fn new(weights: &'w Weights<'d>, kind: Kind, rows: usize) -> Result<Self> {
        let (copies, stream) = (&weights.copies, weights.stream);
        let (device, matmul) = (copies[0].device, &copies[0].matmul);
        let spec = matmul.spec();
        let logits = rows * spec.vocab * 2;
        let few = if rows > 256 { 2 } else { 8 };
        let launches = few.max(copies.len()).min((OUTPUTS / logits).max(2));
        let loaded = |i: usize| &copies[i % copies.len()];
        let outputs = (0..launches)
            .map(|i| {
                let out = loaded(i).output(rows, None, DType::Bf16, 0)?;
                // Once for real: rows are quantised where they are not a part of what is timed, and a mistake shows before.
                // SAFETY: all of it lives until the wait.
                unsafe { loaded(i).matmul.run(device, stream, &loaded(i).call(&out))? };
                Ok(out)
            })
            .collect::<Result<Vec<_>>>();
        // Also before what a failure leaves behind is freed.
        let done = device.wait(stream);
        let outputs = outputs?;
        done?;
        let plan = matmul.plan(rows)?;
        // Loaded before: a driver may refuse that while it records.
        let kernel = device.kernel::<MatmulParams>(plan.tile.kernel)?;
        let work = Clocked::new(device, stream, launches, |i| match kind {
            Kind::W8a8Quantised => multiply(device, stream, &kernel, loaded(i), &outputs[i], rows),
            // SAFETY: all of it lives as long as the graph.
            _ => unsafe { loaded(i).matmul.run(device, stream, &loaded(i).call(&outputs[i])) },
        })?;
        let row = match kind {
            Kind::W8a8Quantised => spec.hidden + 4,
            _ => spec.hidden * spec.precision.rows().size(),
        };
        let bytes = weights.bytes + rows * row + logits;
        Ok(Replayed { work, bytes, plan: plan.to_string(), _outputs: outputs, _weights: weights })
    }
}

/// The second kernel of w8a8 alone, on rows that were quantised before.
fn multiply(
    device: &CudaDevice,
    stream: CudaStream,
    kernel: &Kernel<MatmulParams>,
    loaded: &Loaded<'_, CudaDevice>,
    out: &Output<CudaDevice>,
    rows: usize,
) -> Result<()> {
    let (plan, call) = (loaded.matmul.plan(rows)?, loaded.call(out));
    let params = MatmulParams {
        weights: call.weights,
        rows: RowMatrix {
            data: call.workspace as usize as *const _,
            pitch: plan.workspace.row_pitch as u64,
            indices: std::ptr::null(),
            index_bytes: 4,
            source_rows: rows as u32,
        },
        row_scales: (call.workspace as usize + plan.workspace.scales) as *const f32,
        logits: call.logits,
        adjustments: call.adjustments,
        softcap: 0.0,
        scale: call.epilogue.scale,
        vocab: plan.shape.vocab as u32,
        row_count: rows as u32,
        hidden: plan.shape.hidden as u32,
        stages: plan.stages as u32,
    };
    let (blocks, threads, shared_bytes) = (plan.blocks, plan.tile.threads(), plan.shared_bytes());
    // SAFETY: the call's memory, which the whole product has used just so.
    unsafe { device.launch(stream, kernel, &Grid { blocks, threads, shared_bytes }, &params) }
}
