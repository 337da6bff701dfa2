//! Whole heads: the products that are timed, and how: replays of CUDA graphs by turns.
//!
//! * `report`: each product with its roofs and its peers, and whether it is right; as JSON.

mod report;

pub use report::{HeadsReport, METHOD, write, write_all};

use crate::about::cache_bytes;
use crate::clocked::Clocked;
use crate::needs::small;
use crate::operands::{Loaded, Operands, Output};
use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream, OwnedStream};
use lmhead::backend::device::KernelDevice;
use lmhead::plan::{DeviceLimits, Family, Plan, Precision, WeightLayout};
use lmhead::{DType, Result};
use serde_json::{Value, json};
use std::fmt;
use std::time::{Duration, Instant};

/// Bytes that the outputs of one measurement may take; there are two outputs at least.
const OUTPUTS: usize = 4 << 30;
/// Hidden states of an engine's step, of which the rows are picked.
const SOURCE_ROWS: usize = 8192;
/// A head of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub vocab: usize,
    pub hidden: usize,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.vocab, self.hidden)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    Bf16,
    /// int8 weights with bf16 rows, which are quantised first.
    W8a8,
    /// int8 weights with bf16 rows.
    W8a16,
    /// E4M3 with a scale per row, from bf16 rows.
    Fp8,
}

pub const KINDS: [WeightKind; 4] = [WeightKind::Bf16, WeightKind::W8a8, WeightKind::W8a16, WeightKind::Fp8];

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightKind::Bf16 => "bf16",
            WeightKind::W8a8 => "w8a8",
            WeightKind::W8a16 => "w8a16",
            WeightKind::Fp8 => "fp8",
        })
    }
}

impl WeightKind {
    pub fn precision(self) -> Precision {
        match self {
            WeightKind::Bf16 => Precision::Bf16,
            WeightKind::W8a8 => Precision::W8a8(DType::Bf16),
            WeightKind::W8a16 => Precision::W8a16(DType::Bf16),
            WeightKind::Fp8 => Precision::Fp8(DType::Bf16),
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// Which kinds there are.
    pub fn named(name: &str) -> std::result::Result<Self, String> {
        let known = KINDS.map(|kind| kind.to_string()).join(", ");
        let kind = KINDS.into_iter().find(|kind| kind.to_string() == name);
        kind.ok_or(format!("wanted a kind of weights, got \"{name}\"; name one of {known}"))
    }

    /// The type of weights that its peers get.
    fn weights(self) -> &'static str {
        match self {
            WeightKind::Bf16 => "bf16",
            WeightKind::W8a8 | WeightKind::W8a16 => "int8",
            WeightKind::Fp8 => "fp8",
        }
    }
}

/// The heads that are measured. On an emulated device a small one, which shows only that all of it runs.
pub fn heads() -> Vec<Head> {
    match small() {
        true => vec![Head { vocab: 200, hidden: 64 }],
        false => vec![Head { vocab: 129_280, hidden: 7168 }, Head { vocab: 128_256, hidden: 4096 }],
    }
}

/// Row counts, the most valuable first, for when time is short: the steps of decoding, and where most is
/// expected of packed weights.
pub fn row_counts() -> &'static [usize] {
    if small() { &[1, 9] } else { &[28, 256, 1, 64, 4096, 4] }
}

/// What is measured: whole heads; and an eighth and a sixteenth of the first, with the rows of a whole group.
pub fn shapes() -> Vec<(Head, &'static [usize])> {
    let whole = heads();
    let shard = |parts: usize| Head { vocab: whole[0].vocab.div_ceil(64 * parts) * 64, ..whole[0] };
    let shards = if small() { vec![] } else { vec![shard(8), shard(16)] };
    let shards: Vec<_> = shards.into_iter().map(|head| (head, &[28, 224][..])).collect();
    whole.iter().map(|head| (*head, row_counts())).chain(shards).collect()
}

/// Shortens the device's patience: nothing here takes long, and a kernel that hangs shall be reported before
/// the time of its step is up.
pub fn impatient(device: &CudaDevice) {
    if !small() {
        device.set_patience(Duration::from_secs(8));
    }
}

pub fn stream(device: &CudaDevice) -> std::result::Result<OwnedStream, String> {
    device.open_stream().map_err(said)
}

pub fn said(e: lmhead::Error) -> String {
    e.to_string()
}

/// A head's weights on the device in one type, in the layout of a head that is loaded there: random ones, in
/// so many copies that they are three times the second-level cache, and integers with the projection of their
/// products.
pub struct Weights<'d> {
    kind: WeightKind,
    pub copies: Vec<Loaded<'d, CudaDevice>>,
    /// Where the copies are packed: the same weights, row-major.
    portable: Vec<Loaded<'d, CudaDevice>>,
    integers: Loaded<'d, CudaDevice>,
    projection: Buffer,
    /// Bytes of one copy, scales included.
    bytes: usize,
}

impl<'d> Weights<'d> {
    pub fn new(device: &'d CudaDevice, head: &Head, kind: WeightKind) -> Result<Self> {
        let most = row_counts().iter().copied().max().expect("some");
        let source = if small() { most } else { SOURCE_ROWS };
        let operands = Operands::new(kind.precision(), head.vocab, head.hidden, source);
        let bytes = operands.bytes().0;
        let copies = if small() { 2 } else { (3 * cache_bytes(device)).div_ceil(bytes).max(2) };
        let integers = Loaded::new(device, &operands.integers(), most)?;
        let load = |layout| -> Result<Vec<_>> {
            (0..copies).map(|_| Loaded::with_layout(device, &operands, most, layout)).collect()
        };
        let layout = integers.layout();
        Ok(Weights {
            kind,
            copies: load(layout)?,
            portable: if layout == WeightLayout::Rows { vec![] } else { load(WeightLayout::Rows)? },
            projection: integers.projection()?,
            integers,
            bytes: bytes + 4 * operands.scales().len(),
        })
    }

    pub fn limits(&self) -> DeviceLimits {
        self.integers.device.limits()
    }

    /// Rows of a step: spread over the source, in no order.
    pub fn picks(&self, rows: usize) -> Vec<i64> {
        let source = self.copies[0].operands.source_rows;
        (0..rows).map(|i| ((i * 5003 + 17) % source) as i64).collect()
    }
}

/// A kernel: its name, its instructions, the layout of its weights, its tile.
pub fn kernel(plan: &Plan) -> Value {
    let (family, layout) = match plan.tile.family {
        Family::MmaSync => ("mma.sync", "rows"),
        Family::Wgmma => ("wgmma", "packed"),
    };
    json!({
        "name": plan.tile.kernel, "family": family, "layout": layout, "block_n": plan.tile.block_n,
        "block_m": plan.tile.block_m, "stages": plan.stages, "blocks": plan.blocks,
        "tail_ids": plan.tail.map(|tail| tail.ids),
    })
}

/// The product with bf16 logits of `rows` rows, replayed again and again.
pub struct Replayed<'w, 'd> {
    pub work: Clocked,
    /// Bytes that one product moves at least: weights and scales, rows and logits, each once.
    pub bytes: usize,
    pub plan: Plan,
    outputs: Vec<Output<CudaDevice>>,
    weights: &'w Weights<'d>,
    copies: &'w [Loaded<'d, CudaDevice>],
    rows: usize,
}

impl<'w, 'd> Replayed<'w, 'd> {
    /// Each launch has its own logits and, as far as there are copies, its own weights and rows.
    pub fn new(weights: &'w Weights<'d>, stream: CudaStream, rows: usize) -> Result<Self> {
        Self::of(weights, &weights.copies, stream, weights.copies[0].matmul.plan(rows)?)
    }

    /// As `new`, with the given plan.
    pub fn by_plan(weights: &'w Weights<'d>, stream: CudaStream, plan: Plan) -> Result<Self> {
        Self::of(weights, &weights.copies, stream, plan)
    }

    /// Seconds of one product, by a replay.
    pub fn replay(&self) -> Result<f64> {
        self.work.replay()
    }

    /// The same by portable kernels; none where the head's own kernels are portable.
    pub fn portable(weights: &'w Weights<'d>, stream: CudaStream, rows: usize) -> Result<Option<Self>> {
        let copies = &weights.portable;
        let Some(first) = copies.first() else { return Ok(None) };
        Self::of(weights, copies, stream, first.matmul.plan(rows)?).map(Some)
    }

    fn of(
        weights: &'w Weights<'d>,
        copies: &'w [Loaded<'d, CudaDevice>],
        stream: CudaStream,
        plan: Plan,
    ) -> Result<Self> {
        let (device, spec, rows) = (copies[0].device, copies[0].matmul.spec(), plan.shape.rows);
        let logits = rows * spec.vocab * 2;
        let few: usize = if rows > 256 { 2 } else { 8 };
        // As many launches for each copy, so that none is read again before its turn.
        let all_copies = few.next_multiple_of(copies.len());
        let launches = all_copies.min((OUTPUTS / logits).max(2));
        let loaded = |i: usize| &copies[i % copies.len()];
        let picks = weights.picks(rows);
        let outputs: Vec<_> = (0..launches)
            .map(|i| loaded(i).output(rows, Some(&picks), DType::Bf16, 0))
            .collect::<Result<_>>()?;
        let launch = |i: usize| {
            // SAFETY: all of it lives as long as the graph.
            unsafe { loaded(i).matmul.run_plan(device, stream, &loaded(i).call(&outputs[i]), &plan) }
        };
        let work = Clocked::new(device, stream, launches, launch)?;
        let bytes = weights.bytes + rows * spec.hidden * spec.precision.rows().size() + logits;
        Ok(Replayed { work, bytes, plan, outputs, weights, copies, rows })
    }

    fn loaded(&self, i: usize) -> &'w Loaded<'d, CudaDevice> {
        &self.copies[i % self.copies.len()]
    }

    /// Overwrites all outputs, so that what is found there later was written by a replay.
    pub fn poison(&self) -> Result<()> {
        self.outputs.iter().enumerate().try_for_each(|(i, out)| self.loaded(i).poison(out))
    }

    /// Checks that the plan makes the exact product of integers, in f32.
    fn exact(&self) -> std::result::Result<(), String> {
        let Weights { integers, projection, .. } = self.weights;
        let out =
            integers.output(self.rows, Some(&self.weights.picks(self.rows)), DType::F32, 0).map_err(said)?;
        integers.run(&out, Some(&self.plan)).map_err(said)?;
        integers.is_exact(&out, projection)
    }

    /// f32 logits of the same rows by a portable kernel of another tile than any of these, and its name.
    ///
    /// # Errors
    /// Where there is no other, and what the device refuses.
    pub fn of_another_tile(&self) -> std::result::Result<(Output<CudaDevice>, &'static str), String> {
        let loaded = self.weights.portable.first().unwrap_or(&self.copies[0]);
        let plans = loaded.plans(self.rows).map_err(said)?;
        let chosen = loaded.matmul.plan(self.rows).map_err(said)?;
        let others = plans.iter().filter(|plan| ![self.plan.tile, chosen.tile].contains(&plan.tile));
        // The largest tile: the quickest where rows are many.
        let other = others
            .max_by_key(|plan| plan.tile.block_n * plan.tile.block_m)
            .ok_or("there is no other tile")?;
        let picks = self.weights.picks(self.rows);
        let want = loaded.output(self.rows, Some(&picks), DType::F32, 0).map_err(said)?;
        loaded.run(&want, Some(other)).map_err(said)?;
        Ok((want, other.tile.kernel))
    }

    /// Checks that the outputs have the bits of another tile. Returns that tile's kernel.
    ///
    /// # Errors
    /// Where they differ, and which.
    pub fn same_bits(
        &self,
        (want, kernel): &(Output<CudaDevice>, &'static str),
    ) -> std::result::Result<&'static str, String> {
        for (i, out) in self.outputs.iter().enumerate() {
            let name = |problem| format!("launch {i} against {kernel}: {problem}");
            self.loaded(i).equals(out, want).map_err(name)?;
        }
        Ok(kernel)
    }
}

/// The median of one or more.
pub fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Quantiles in microseconds, and the bytes a second of the median.
pub fn quantiles(seconds: &[f64], bytes: usize) -> Value {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[(q * (sorted.len() - 1) as f64).round() as usize] * 1e6;
    json!({
        "median_us": median(seconds) * 1e6, "p10_us": at(0.1), "p90_us": at(0.9), "replays": seconds.len(),
        "bytes_per_s": bytes as f64 / median(seconds),
    })
}

/// Something that is replayed in turn; returns the seconds of one launch.
pub type Turn<'a> = Box<dyn FnMut() -> std::result::Result<f64, String> + 'a>;

/// Seconds of each, which take turns: five times at least, then until `seconds` have gone by. One turn each
/// goes before, untimed.
pub fn by_turns(turns: &mut [Turn<'_>], seconds: f64) -> std::result::Result<Vec<Vec<f64>>, String> {
    let mut times = vec![Vec::new(); turns.len()];
    turns.iter_mut().try_for_each(|turn| turn().map(drop))?;
    let began = Instant::now();
    let (least, most) = if small() { (2, 2) } else { (5, 40) };
    while times[0].len() < least || (times[0].len() < most && began.elapsed().as_secs_f64() < seconds) {
        for (turn, times) in turns.iter_mut().zip(&mut times) {
            times.push(turn()?);
        }
    }
    Ok(times)
}

/// Runs four products once each, for a profiler: few and many rows in 16 bits, few in both int8 forms.
///
/// # Errors
/// What the device refuses.
pub fn profile(device: &CudaDevice) -> std::result::Result<(), String> {
    let head = heads()[0];
    for (kind, rows) in
        [(WeightKind::Bf16, 1), (WeightKind::Bf16, 256), (WeightKind::W8a8, 28), (WeightKind::W8a16, 28)]
    {
        let rows = if small() { rows.min(9) } else { rows };
        let operands = Operands::new(kind.precision(), head.vocab, head.hidden, rows);
        let loaded = Loaded::new(device, &operands, rows).map_err(said)?;
        let out = loaded.output(rows, None, DType::Bf16, 0).map_err(said)?;
        println!("{kind} {head}, {rows} rows: {}", loaded.matmul.plan(rows).map_err(said)?);
        loaded.run(&out, None).map_err(said)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_name() {
        assert!(KINDS.into_iter().all(|kind| WeightKind::named(&kind.to_string()) == Ok(kind)));
        let refused = WeightKind::named("w4a16").expect_err("no kind");
        assert_eq!(refused, "wanted a kind of weights, got \"w4a16\"; name one of bf16, w8a8, w8a16, fp8");
    }
}
