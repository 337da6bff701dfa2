//! One product as a graph of several launches over rotating buffers, and how long a replay takes.

use crate::operands::{Loaded, Operands, Output};
use crate::table::{Kind, small};
use cudarc::driver::result;
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event, Graph, OwnedStream};
use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::{MatmulParams, ReadStreamParams, RowMatrix};
use lmhead::{DType, Result};

/// What rotating buffers are larger than together: three times the second-level cache of an H100 (50 MB).
const ROTATE: usize = 150 << 20;

/// Bytes of outputs that one measurement may take, two of them at least.
const OUTPUTS: usize = 4 << 30;

pub fn stream(device: &CudaDevice) -> std::result::Result<OwnedStream, String> {
    device.open_stream().map_err(|e| e.to_string())
}

/// A graph, what it works on, and its clock.
pub struct Replayed<'d> {
    graph: Graph,
    stream: CudaStream,
    from: Event,
    to: Event,
    /// Products of one replay.
    pub launches: usize,
    /// That one product moves at least: weights, rows and logits, each once.
    pub bytes: u64,
    /// The plan, in words.
    pub plan: String,
    _outputs: Vec<Output<CudaDevice>>,
    _loaded: Vec<Loaded<'d, CudaDevice>>,
}

impl<'d> Replayed<'d> {
    /// bf16 logits of `rows` rows. Weights are as many copies as are larger than the cache, and each launch has its own rows and logits.
    pub fn new(
        device: &'d CudaDevice,
        stream: CudaStream,
        kind: Kind,
        operands: &Operands,
        rows: usize,
    ) -> Result<Self> {
        let rotate = if small() { operands.weights.len() + 1 } else { ROTATE };
        let copies = rotate.div_ceil(operands.weights.len());
        let loaded = (0..copies).map(|_| Loaded::new(device, operands, rows)).collect::<Result<Vec<_>>>()?;
        let logits = rows * operands.vocab * 2;
        let few = if rows > 256 { 2 } else { 8 };
        let launches = few.max(copies).min((OUTPUTS / logits).max(2));
        let outputs = (0..launches)
            .map(|i| {
                let out = loaded[i % copies].output(rows, None, DType::Bf16, 0)?;
                // Once for real: rows are quantised where they are not a part of what is timed, and a mistake shows before.
                loaded[i % copies].run(&out, None)?;
                Ok(out)
            })
            .collect::<Result<Vec<_>>>()?;
        let graph = Graph::capture(device, stream, || {
            outputs.iter().enumerate().try_for_each(|(i, out)| {
                let loaded = &loaded[i % copies];
                match kind {
                    Kind::W8a8Quantised => multiply(device, stream, loaded, out, rows),
                    // SAFETY: all of it lives as long as the graph.
                    _ => unsafe { loaded.matmul.run(device, stream, &loaded.call(out)) },
                }
            })
        })?;
        let spec = loaded[0].matmul.spec();
        let row_bytes = if kind == Kind::W8a8Quantised { 1 } else { spec.precision.rows().size() };
        let bytes = operands.weights.len() + rows * spec.hidden * row_bytes + logits;
        let plan = loaded[0].matmul.plan(rows)?.to_string();
        let (from, to) = (Event::new(device)?, Event::new(device)?);
        let _loaded = loaded;
        Ok(Replayed {
            graph,
            stream,
            from,
            to,
            launches,
            bytes: bytes as u64,
            plan,
            _outputs: outputs,
            _loaded,
        })
    }

    /// Seconds of one replay, all its launches.
    pub fn replay(&self) -> Result<f64> {
        self.from.record(self.stream)?;
        // SAFETY: what it works on lives as long as `self`, and is its own.
        unsafe { self.graph.launch(self.stream)? };
        self.to.record(self.stream)?;
        self.from.seconds_to(&self.to)
    }
}

/// The second kernel of w8a8 alone, on rows that were quantised before.
fn multiply(
    device: &CudaDevice,
    stream: CudaStream,
    loaded: &Loaded<'_, CudaDevice>,
    out: &Output<CudaDevice>,
    rows: usize,
) -> Result<()> {
    let (plan, call) = (loaded.matmul.plan(rows)?, loaded.call(out));
    let kernel = device.kernel::<MatmulParams>(plan.tile.kernel)?;
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
    unsafe { device.launch(stream, &kernel, &Grid { blocks, threads, shared_bytes }, &params) }
}

/// Seconds that one pass over the bytes takes, of `times` replays of several passes: a copy on the device, and only reading. In that order.
pub fn roofs(
    device: &CudaDevice,
    stream: CudaStream,
    bytes: usize,
    times: usize,
) -> std::result::Result<[Vec<f64>; 2], String> {
    const PASSES: usize = 4;
    let said = |e: lmhead::Error| e.to_string();
    let bytes = bytes / 16 * 16;
    let [from, to] = [0x5a, 0].map(|value| device.filled(bytes, value));
    let (from, to, sum) = (from.map_err(said)?, to.map_err(said)?, device.filled(4, 0).map_err(said)?);
    let read = device.kernel::<ReadStreamParams>("read_stream").map_err(said)?;
    let params = ReadStreamParams {
        data: from.pointer::<u8>().cast_const().cast(),
        pieces: bytes as u64 / 16,
        out: sum.pointer(),
    };
    let grid = Grid { blocks: device.info().processors * 4, threads: 512, shared_bytes: 0 };
    // SAFETY: both buffers have that many bytes and live until the last replay has ended, here and below.
    let copy =
        || unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, stream.as_raw().cast()) };
    let pass = |which: usize| match which {
        0 => device.bound(copy)?.map_err(|e| lmhead::Error::Device {
            what: "a copy on the device".into(),
            problem: e.to_string(),
            fix: "free device memory".into(),
        }),
        // SAFETY: as above.
        _ => unsafe { device.launch(stream, &read, &grid, &params) },
    };
    let mut all = [Vec::new(), Vec::new()];
    for (which, times_of) in all.iter_mut().enumerate() {
        let graph = Graph::capture(device, stream, || (0..PASSES).try_for_each(|_| pass(which)));
        let graph = graph.map_err(said)?;
        let (start, end) = (Event::new(device).map_err(said)?, Event::new(device).map_err(said)?);
        for i in 0..times + 2 {
            start.record(stream).map_err(said)?;
            // SAFETY: as above.
            unsafe { graph.launch(stream) }.map_err(said)?;
            end.record(stream).map_err(said)?;
            let seconds = start.seconds_to(&end).map_err(said)? / PASSES as f64;
            // The first two warm up.
            if i >= 2 {
                times_of.push(seconds);
            }
        }
    }
    // Every word was read, in every pass.
    let passes = ((times + 2) * PASSES) as u32;
    let words = (bytes / 4) as u32;
    let want = 0x5a5a_5a5au32.wrapping_mul(words).wrapping_mul(passes);
    let got = sum.read::<u32>().map_err(said)?;
    if got != [want] {
        return Err(format!(
            "the read stream: wanted the sum {want:#x}, got {:#x}: it left words out",
            got[0]
        ));
    }
    Ok(all)
}
