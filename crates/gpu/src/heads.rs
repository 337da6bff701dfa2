//! Whole heads: each product, its roofs and its peers are timed in turns; and whether the product is right.
//! As JSON.

use crate::about::{about, cache_bytes, clocks_under, date, write_whole};
use crate::clocked::Clocked;
use crate::needs::small;
use crate::operands::{Loaded, Operands, Output};
use crate::peers::Peers;
use crate::roofs::{Reading, Roofs};
use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream, OwnedStream};
use lmhead::backend::device::KernelDevice;
use lmhead::plan::{DeviceLimits, Family, Plan, Precision, WeightLayout};
use lmhead::{DType, Result};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that the outputs of one measurement may take; there are two outputs at least.
const OUTPUTS: usize = 4 << 30;
/// Hidden states of an engine's step, of which the rows are picked.
const SOURCE_ROWS: usize = 8192;
pub const METHOD: &str = "\
    The kernels that a head loaded on this device has: what quantises or stages rows, and the product. Where \
    its weights are packed for them, portable kernels over weights row behind row take turns with them. \
    CUDA events around replays of a CUDA graph of several launches over rotating weights (two copies at \
    least, three times the second-level cache), rows and logits; one untimed replay right before each timed \
    one, so that no time in which the host launches is counted; rows are picked by index; bf16 logits; \
    random data; time of one product, median and 10th and 90th percentile of replays. Bytes: weights, \
    scales, rows and logits, each once. Roofs (as many bytes only read, by loads and by bulk copies, or \
    only copied) and peers (PyTorch, its own graphs) are replayed by turns with the product, all in one \
    run; a process for each kind of weights. `exact`: f32 logits of small integers by the same plan are the \
    exact product, of every row (a random combination of all columns modulo 2^64). `same_bits`: the logits \
    that the timed replays left are those of another tile, bit for bit, and nothing else was written; the \
    tile is a portable one, over weights row behind row";

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
pub enum Kind {
    Bf16,
    /// int8 weights with bf16 rows, which are quantised first.
    W8a8,
    /// int8 weights with bf16 rows.
    W8a16,
    /// E4M3 with a scale per row, from bf16 rows.
    Fp8,
}

pub const KINDS: [Kind; 4] = [Kind::Bf16, Kind::W8a8, Kind::W8a16, Kind::Fp8];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bf16 => "bf16",
            Kind::W8a8 => "w8a8",
            Kind::W8a16 => "w8a16",
            Kind::Fp8 => "fp8",
        })
    }
}

impl Kind {
    pub fn precision(self) -> Precision {
        match self {
            Kind::Bf16 => Precision::Bf16,
            Kind::W8a8 => Precision::W8a8(DType::Bf16),
            Kind::W8a16 => Precision::W8a16(DType::Bf16),
            Kind::Fp8 => Precision::Fp8(DType::Bf16),
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
            Kind::Bf16 => "bf16",
            Kind::W8a8 | Kind::W8a16 => "int8",
            Kind::Fp8 => "fp8",
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
    kind: Kind,
    pub copies: Vec<Loaded<'d, CudaDevice>>,
    /// Where the copies are packed: the same weights, row-major.
    portable: Vec<Loaded<'d, CudaDevice>>,
    integers: Loaded<'d, CudaDevice>,
    projection: Buffer,
    /// Bytes of one copy, scales included.
    bytes: usize,
}

impl<'d> Weights<'d> {
    pub fn new(device: &'d CudaDevice, head: &Head, kind: Kind) -> Result<Self> {
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

    /// The same by this plan.
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

/// The results, written to the file as they come.
pub struct Report<'a> {
    pub value: Value,
    file: &'a Path,
}

/// Why a product has no time: it has not been measured yet.
const NOT_REACHED: &str = "not reached";
/// What the file names before it is tried, since the process may never come back from it.
const TRYING_BULK: &str = "bulk copies";

impl<'a> Report<'a> {
    /// Continues a file of the same run and method that a process before this one has begun, or begins a new
    /// one.
    pub fn extend(device: &CudaDevice, method: &str, file: &'a Path) -> Self {
        let new = Self::new(device, method, file);
        let old = parsed(file).filter(|old| {
            ["device", "commit", "date", "method"].into_iter().all(|key| old[key] == new.value[key])
        });
        Report { value: old.unwrap_or(new.value), file }
    }

    /// Notes why that product has no time.
    fn leave(&mut self, name: &str, reason: &str) {
        self.reached(name);
        self.push("left_out", json!(format!("{name}: {reason}")));
    }

    /// Notes that it has a time.
    fn reached(&mut self, name: &str) {
        let of_it = |entry: &Value| entry.as_str().is_some_and(|text| text.starts_with(&format!("{name}: ")));
        if let Some(all) = self.value["left_out"].as_array_mut() {
            all.retain(|entry| !of_it(entry));
            if all.is_empty() {
                self.value["left_out"].take();
            }
        }
    }

    /// Whether it has not been measured yet.
    fn waits(&self, name: &str) -> bool {
        let all = self.value["left_out"].as_array();
        all.is_some_and(|all| all.contains(&json!(format!("{name}: {NOT_REACHED}"))))
    }

    pub fn new(device: &CudaDevice, method: &str, file: &'a Path) -> Self {
        let mut value = about(device);
        value["method"] = json!(method);
        Report { value, file }
    }

    pub fn push(&mut self, list: &str, value: Value) {
        match &mut self.value[list] {
            Value::Array(all) => all.push(value),
            none => *none = json!([value]),
        }
    }

    pub fn save(&self) -> std::result::Result<(), String> {
        let text = serde_json::to_string_pretty(&self.value).expect("this is JSON");
        write_whole(self.file, &(text + "\n"))
    }
}

fn parsed(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn name_of(kind: Kind, head: &Head, rows: usize) -> String {
    format!("{kind} {head}, {rows} rows")
}

fn names() -> impl Iterator<Item = (Kind, String)> {
    let shapes = shapes().into_iter().flat_map(|(head, all)| all.iter().map(move |&rows| (head, rows)));
    shapes.flat_map(|(head, rows)| KINDS.map(|kind| (kind, name_of(kind, &head, rows))))
}

/// Whether there was too little memory, which makes no product wrong.
fn no_memory(problem: &str) -> bool {
    problem.contains("CUDA_ERROR_OUT_OF_MEMORY")
}

/// Measures all kinds, each by [`write()`] in a process of its own (`program heads FILE SECONDS KIND`), so
/// that a process that loses the device costs no other kind. What such a process had not reached is tried
/// once more, without the product that it was at.
///
/// # Errors
/// Which kinds' processes failed.
pub fn write_all(program: &Path, file: &Path, seconds: f64) -> std::result::Result<(), String> {
    let began = Instant::now();
    let date = date().unwrap_or_default();
    // A file that this run has written before is not continued; another run's stays until there is a new one.
    if parsed(file).is_some_and(|old| old["date"] == date) {
        let _ = std::fs::remove_file(file);
    }
    let mut failed = Vec::new();
    for (i, kind) in KINDS.into_iter().enumerate() {
        for _ in 0..2 {
            let left = seconds - began.elapsed().as_secs_f64();
            if left < 1.0 {
                break;
            }
            let share = left / (KINDS.len() - i) as f64;
            let mut command = Command::new(program);
            command.arg("heads").arg(file).args([format!("{share:.1}"), kind.to_string()]);
            command.env("LMHEAD_DATE", &date).stdin(Stdio::null());
            let Err(problem) = within(&mut command, Duration::from_secs_f64(share + 8.0)) else { break };
            failed.push(format!("{kind}: {problem}"));
            let waiting = |name: &str| {
                let entry = json!(format!("{name}: {NOT_REACHED}"));
                parsed(file).is_some_and(|v| v["left_out"].as_array().is_some_and(|all| all.contains(&entry)))
            };
            if !names().any(|(of, name)| of == kind && waiting(&name)) {
                break;
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{}: {}", failed.join("; "), file.display())) }
}

/// Runs a program, for `limit` at most.
fn within(command: &mut Command, limit: Duration) -> std::result::Result<(), String> {
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(end)) if end.success() => return Ok(()),
            Ok(Some(end)) => return Err(end.to_string()),
            Ok(None) if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // Not waited for: it may hang in the driver.
                let _ = child.kill();
                return Err(format!("no end within {:.0} s", limit.as_secs_f64()));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// Measures one kind and writes the results, also those up to an error. The file names every product of all
/// kinds from the beginning on, as left out until it is measured. Continues a file of the same run.
///
/// # Errors
/// What failed; also where a product is not right.
pub fn write(device: &CudaDevice, file: &Path, seconds: f64, kind: Kind) -> std::result::Result<(), String> {
    impatient(device);
    let mut report = Report::extend(device, METHOD, file);
    if report.value["products"].is_null() && report.value["left_out"].is_null() {
        names().for_each(|(_, name)| report.leave(&name, NOT_REACHED));
    }
    let failed = measure(device, &mut report, seconds, kind);
    if let Err(problem) = &failed {
        let before = report.value["problem"].as_str().map(|before| format!("{before}; ")).unwrap_or_default();
        report.value["problem"] = json!(format!("{before}{kind}: {problem}"));
    }
    report.save()?;
    let failed = failed?;
    if failed > 0 {
        return Err(format!("{failed} products could not be measured: {}", file.display()));
    }
    let wrong = |product: &&Value| {
        let right = product["correct"] == true && product["portable"]["correct"] != false;
        product["kind"] == kind.to_string() && !right
    };
    match report.value["products"].as_array().map_or(0, |all| all.iter().filter(wrong).count()) {
        0 => Ok(()),
        n => Err(format!("{n} products are not right: {}", file.display())),
    }
}

/// Tries bulk copies alone, as the first thing that may lose the device. They are left out where they leave
/// words out, or where the process that tried them before did not come back.
fn try_bulk(roofs: &mut Roofs<'_>, report: &mut Report<'_>, bytes: usize) -> std::result::Result<(), String> {
    let before = report.value["no_bulk_copies"].as_str().map(String::from);
    if report.value["trying"] == TRYING_BULK {
        roofs.without_bulk("the process that tried bulk copies before this one did not come back".into());
    } else if let Some(reason) = before {
        roofs.without_bulk(reason);
    } else if roofs.no_bulk().is_none() {
        report.value["trying"] = json!(TRYING_BULK);
        report.save()?;
        let mut tried = || {
            let readings = roofs.reading(bytes, 2)?;
            readings.iter().try_for_each(|reading| reading.work.replay().map(drop))?;
            roofs.check(&readings)
        };
        match tried() {
            Ok(problems) => without_wrong(roofs, &problems),
            Err(e) if roofs.device.lost().is_some() => return Err(format!("bulk copies: {e}")),
            Err(e) => roofs.without_bulk(e.to_string()),
        }
    }
    report.value.as_object_mut().expect("an object").remove("trying");
    if let Some(reason) = roofs.no_bulk() {
        report.value["no_bulk_copies"] = json!(reason);
        println!("no bulk copies: {reason}");
    }
    report.save()
}

/// Bulk copies that leave words out are not used again. `problems` are of [`Roofs::reading`]'s ways.
fn without_wrong(roofs: &mut Roofs<'_>, problems: &[Option<String>]) {
    if let Some(Some(problem)) = problems.get(1) {
        roofs.without_bulk(problem.clone());
    }
}

/// Measures the products of a kind. Returns how many could not be measured, other than for want of time or
/// memory.
fn measure(
    device: &CudaDevice,
    report: &mut Report<'_>,
    seconds: f64,
    kind: Kind,
) -> std::result::Result<usize, String> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let time = || end.saturating_duration_since(Instant::now()).as_secs_f64();
    report.save()?;
    let own = stream(device)?;
    let mut peers = Peers::start(end, &[]);
    let most = row_counts().iter().copied().max().expect("some");
    let weight = kind.precision().weight_bytes();
    // In bytes, with rows and logits of 16 bits.
    let largest = heads()
        .into_iter()
        .map(|head| (weight * head.hidden + 4) * head.vocab + 2 * most * (head.hidden + head.vocab));
    let largest = largest.max().expect("some");
    let rotate = if small() { 4096 } else { 3 * cache_bytes(device) };
    let mut roofs = Roofs::new(device, own.handle(), largest, rotate).map_err(said)?;
    try_bulk(&mut roofs, report, largest.min(64 << 20))?;
    let waiting = |report: &Report<'_>, head: &Head, all: &[usize]| {
        all.iter().filter(|&&rows| report.waits(&name_of(kind, head, rows))).count()
    };
    let mut failed = 0;
    let mut left: usize = shapes().iter().map(|(head, all)| waiting(report, head, all)).sum();
    for (head, all) in shapes() {
        if waiting(report, &head, all) == 0 {
            continue;
        }
        let weights = Weights::new(device, &head, kind);
        if report.value["peers"]["torch"].is_null() {
            report.value["peers"] = peers.about();
        } else {
            peers.about();
        }
        for &rows in all {
            let name = name_of(kind, &head, rows);
            if !report.waits(&name) {
                continue;
            }
            let share = time() / left as f64;
            left -= 1;
            if share <= 0.0 {
                report.leave(&name, "no time left");
                continue;
            }
            // In case the process does not come back.
            report.leave(&name, "the process ended while it was measured");
            report.save()?;
            let measured = match &weights {
                Ok(weights) => product(weights, (&head, rows), own.handle(), (&mut roofs, &mut peers), share),
                Err(e) => Err(e.to_string()),
            };
            match measured {
                Ok(row) => {
                    report.reached(&name);
                    report.push("products", row);
                }
                Err(problem) => {
                    report.leave(&name, &problem);
                    failed += usize::from(!no_memory(&problem));
                    println!("{name}: {problem}");
                    if device.lost().is_some() {
                        return Err(format!("{name}: {problem}"));
                    }
                    peers.release();
                }
            }
            if let Some(reason) = roofs.no_bulk() {
                report.value["no_bulk_copies"] = json!(reason);
            }
            report.save()?;
        }
    }
    Ok(failed)
}

/// The outcome of a proof, unless there was no memory for it: that makes no product wrong.
///
/// # Errors
/// That there is no memory.
fn proved<T>(
    outcome: std::result::Result<T, String>,
) -> std::result::Result<std::result::Result<T, String>, String> {
    match outcome {
        Err(problem) if no_memory(&problem) => Err(problem),
        outcome => Ok(outcome),
    }
}

/// One product with its roofs and peers, measured by turns.
fn product(
    weights: &Weights<'_>,
    (head, rows): (&Head, usize),
    stream: CudaStream,
    (roofs, peers): (&mut Roofs<'_>, &mut Peers),
    seconds: f64,
) -> std::result::Result<Value, String> {
    let began = Instant::now();
    let run = Replayed::new(weights, stream, rows).map_err(said)?;
    let portable = Replayed::portable(weights, stream, rows).map_err(said)?;
    let (bytes, launches) = (run.bytes, run.work.launches);
    let exact = proved(run.exact())?;
    [Some(&run), portable.as_ref()].into_iter().flatten().try_for_each(Replayed::poison).map_err(said)?;
    roofs.forget().map_err(said)?;
    let reading = roofs.reading(bytes, launches).map_err(said)?;
    let copying = roofs.copying(bytes, launches).map_err(said)?;
    let told = peers.prepare(head.vocab, head.hidden, rows, launches, weights.kind.weights());
    let shared = RefCell::new(&mut *peers);
    let mut turns: Vec<Turn<'_>> = vec![Box::new(|| run.work.replay().map_err(said))];
    if let Some(portable) = &portable {
        turns.push(Box::new(|| portable.work.replay().map_err(said)));
    }
    for reading in &reading {
        turns.push(Box::new(|| reading.work.replay().map_err(said)));
    }
    turns.push(Box::new(|| copying.replay().map_err(said)));
    turns.extend(Peers::turns(&shared, &told));
    // At least half of the time, however long the preparation took.
    let times = by_turns(&mut turns, (seconds - began.elapsed().as_secs_f64()).max(seconds / 2.0))?;
    drop(turns);
    // Their memory is wanted for what follows.
    peers.release();
    let (own, rest) = times.split_first().expect("the product's");
    let (of_portable, rest) = rest.split_at(usize::from(portable.is_some()));
    let (reads, rest) = rest.split_at(reading.len());
    let (copies, peer_times) = rest.split_first().expect("the copies'");
    let problems = roofs.check(&reading).map_err(said)?;
    without_wrong(roofs, &problems);
    let want = proved(run.of_another_tile())?;
    let compared = |run: &Replayed<'_, '_>| {
        proved(want.as_ref().map_err(String::clone).and_then(|want| run.same_bits(want)))
    };
    let same_bits = compared(&run)?;
    let of_portable = match (&portable, of_portable) {
        (Some(run), [times]) => Some(portable_row(run, times, median(own), &compared(run)?)),
        _ => None,
    };
    // A way that left words out is no roof.
    let best = reading.iter().zip(reads).zip(&problems).filter(|(_, problem)| problem.is_none());
    let best = best.map(|((Reading { way, .. }, times), _)| (way, times));
    let best = best.min_by(|a, b| median(a.1).total_cmp(&median(b.1)));
    let with = |mut value: Value, key: &str, text: Value| {
        value[key] = text;
        value
    };
    let operations = 2.0 * (rows * head.vocab * head.hidden) as f64 / median(own);
    let share = best.map(|(_, times)| median(times) / median(own));
    let read = |((Reading { way, .. }, times), problem): ((&Reading, &Vec<f64>), &Option<String>)| {
        let row = match problem {
            None => quantiles(times, bytes),
            Some(problem) => json!({ "problem": problem }),
        };
        with(row, "way", json!(way.to_string()))
    };
    let mut row = quantiles(own, bytes);
    let more = json!({
        "vocab": head.vocab, "hidden": head.hidden, "rows": rows, "kind": weights.kind.to_string(),
        "output": "bf16", "plan": run.plan.to_string(), "kernel": kernel(&run.plan), "launches": launches,
        "weight_copies": weights.copies.len(), "bytes": bytes,
        "operations_per_s": operations, "share_of_read_roof": share,
        "correct": exact.is_ok() && same_bits.is_ok(),
        "exact": exact.as_ref().map_or_else(|e| json!(e), |()| json!(true)),
        "same_bits": outcome(&same_bits),
        "portable": of_portable,
        "read_roof": best.map(|(way, times)| with(quantiles(times, bytes), "way", json!(way.to_string()))),
        "reads": reading.iter().zip(reads).zip(&problems).map(read).collect::<Vec<_>>(),
        "copy_roof": quantiles(copies, bytes),
        "peers": Peers::with_times(&told, peer_times),
        "refusals": told["refusals"],
    });
    for (key, value) in more.as_object().expect("an object") {
        row[key] = value.clone();
    }
    if small() || rows == 28 || rows == 4096 {
        row["clocks"] = clocks_under(&run.work).map_err(said)?;
    }
    let right = if row["correct"] == true { "right" } else { "WRONG" };
    let over = row["portable"]["over_this"].as_f64();
    println!(
        "{} {head}, {rows} rows: {} {:.1} us, {:.3} TB/s, {} of the read roof, {:.1} T(FL)OP/s{}, {right}",
        weights.kind,
        run.plan.tile.kernel,
        1e6 * median(own),
        bytes as f64 / median(own) / 1e12,
        share.map_or("?".into(), |share| format!("{share:.3}")),
        operations / 1e12,
        over.map_or(String::new(), |over| format!(", portable {over:.2} times as long")),
    );
    Ok(row)
}

fn outcome(same_bits: &std::result::Result<&'static str, String>) -> Value {
    same_bits.as_ref().map_or_else(|e| json!({ "problem": e }), |kernel| json!(kernel))
}

/// The result of the portable kernels, beside the median of the head's own.
fn portable_row(
    run: &Replayed<'_, '_>,
    times: &[f64],
    own: f64,
    same_bits: &std::result::Result<&'static str, String>,
) -> Value {
    let mut row = quantiles(times, run.bytes);
    row["plan"] = json!(run.plan.to_string());
    row["kernel"] = kernel(&run.plan);
    row["over_this"] = json!(median(times) / own);
    row["correct"] = json!(same_bits.is_ok());
    row["same_bits"] = outcome(same_bits);
    row
}

/// Runs four products once each, for a profiler: few and many rows in 16 bits, few in both int8 forms.
///
/// # Errors
/// What the device refuses.
pub fn profile(device: &CudaDevice) -> std::result::Result<(), String> {
    let head = heads()[0];
    for (kind, rows) in [(Kind::Bf16, 1), (Kind::Bf16, 256), (Kind::W8a8, 28), (Kind::W8a16, 28)] {
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
    use std::os::unix::fs::PermissionsExt;

    /// The kinds that a program was started for, which fails for one of them.
    fn started(left_out: &[String]) -> (std::result::Result<(), String>, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let [program, file] = ["program", "heads.json"].map(|name| folder.path().join(name));
        let script = "#!/bin/sh\necho $4 >>$2.log\n[ $4 != w8a8 ]\n";
        std::fs::write(&program, script).expect("a program");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a program");
        std::fs::write(&file, json!({ "left_out": left_out }).to_string()).expect("a file");
        let done = write_all(&program, &file, 60.0);
        (done, std::fs::read_to_string(folder.path().join("heads.json.log")).expect("a log"))
    }

    #[test]
    fn a_kind_that_fails_takes_no_other_along_and_is_tried_once_more() {
        let (done, log) = started(&[]);
        assert_eq!(log, "bf16\nw8a8\nw8a16\nfp8\n");
        let problem = done.expect_err("one has failed");
        assert!(problem.starts_with("w8a8: exit status: 1: "), "{problem}");
        let waiting: Vec<_> = names()
            .filter(|(kind, _)| *kind == Kind::W8a8)
            .map(|(_, n)| format!("{n}: {NOT_REACHED}"))
            .collect();
        let (done, log) = started(&waiting[1..]);
        assert_eq!(log, "bf16\nw8a8\nw8a8\nw8a16\nfp8\n");
        assert!(done.is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_given_up() {
        let mut command = Command::new("sleep");
        let problem = within(command.arg("60"), Duration::from_millis(50)).expect_err("no end");
        assert_eq!(problem, "no end within 0 s");
    }

    #[test]
    fn no_memory_is_no_mistake() {
        let none = "device memory: CUDA_ERROR_OUT_OF_MEMORY".to_string();
        assert_eq!(proved::<()>(Err(none.clone())), Err(none));
        assert_eq!(proved::<()>(Err("row 1".into())), Ok(Err("row 1".into())));
        assert_eq!(proved(Ok(1)), Ok(Ok(1)));
    }

    #[test]
    fn kinds_are_known_by_name() {
        assert!(KINDS.into_iter().all(|kind| Kind::named(&kind.to_string()) == Ok(kind)));
        let refused = Kind::named("w4a16").expect_err("no kind");
        assert_eq!(refused, "wanted a kind of weights, got \"w4a16\"; name one of bf16, w8a8, w8a16, fp8");
    }
}
