//! Times each product with its roofs and its peers in turns, and says whether the product is right. As JSON.

use super::{
    Head, KINDS, Replayed, Turn, WeightKind, Weights, by_turns, heads, impatient, kernel, median, quantiles,
    row_counts, said, shapes, stream,
};
use crate::about::{about, cache_bytes, clocks_under, date, write_whole};
use crate::needs::small;
use crate::peers::Peers;
use crate::roofs::{Reading, Roofs};
use lmhead::backend::cuda::{CudaDevice, CudaStream};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// The results, written to the file as they come.
pub struct HeadsReport<'a> {
    pub value: Value,
    file: &'a Path,
}

/// Why a product has no time: it has not been measured yet.
const NOT_REACHED: &str = "not reached";
/// What the file names before it is tried, since the process may never come back from it.
const TRYING_BULK: &str = "bulk copies";

impl<'a> HeadsReport<'a> {
    /// Continues a file of the same run and method that a process before this one has begun, or begins a new
    /// one.
    pub fn extend(device: &CudaDevice, method: &str, file: &'a Path) -> Self {
        let new = Self::new(device, method, file);
        let old = parsed(file).filter(|old| {
            ["device", "commit", "date", "method"].into_iter().all(|key| old[key] == new.value[key])
        });
        HeadsReport { value: old.unwrap_or(new.value), file }
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
        HeadsReport { value, file }
    }

    pub fn push(&mut self, list: &str, value: Value) {
        match &mut self.value[list] {
            Value::Array(all) => all.push(value),
            none => *none = json!([value]),
        }
    }

    pub fn save(&self) -> Result<(), String> {
        let text = serde_json::to_string_pretty(&self.value).expect("this is JSON");
        write_whole(self.file, &(text + "\n"))
    }
}

fn parsed(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn name_of(kind: WeightKind, head: &Head, rows: usize) -> String {
    format!("{kind} {head}, {rows} rows")
}

fn names() -> impl Iterator<Item = (WeightKind, String)> {
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
pub fn write_all(program: &Path, file: &Path, seconds: f64) -> Result<(), String> {
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
fn within(command: &mut Command, limit: Duration) -> Result<(), String> {
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
pub fn write(device: &CudaDevice, file: &Path, seconds: f64, kind: WeightKind) -> Result<(), String> {
    impatient(device);
    let mut report = HeadsReport::extend(device, METHOD, file);
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
fn try_bulk(roofs: &mut Roofs<'_>, report: &mut HeadsReport<'_>, bytes: usize) -> Result<(), String> {
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
    report: &mut HeadsReport<'_>,
    seconds: f64,
    kind: WeightKind,
) -> Result<usize, String> {
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
    let waiting = |report: &HeadsReport<'_>, head: &Head, all: &[usize]| {
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
fn proved<T>(outcome: Result<T, String>) -> Result<Result<T, String>, String> {
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
) -> Result<Value, String> {
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

fn outcome(same_bits: &Result<&'static str, String>) -> Value {
    same_bits.as_ref().map_or_else(|e| json!({ "problem": e }), |kernel| json!(kernel))
}

/// The result of the portable kernels, beside the median of the head's own.
fn portable_row(
    run: &Replayed<'_, '_>,
    times: &[f64],
    own: f64,
    same_bits: &Result<&'static str, String>,
) -> Value {
    let mut row = quantiles(times, run.bytes);
    row["plan"] = json!(run.plan.to_string());
    row["kernel"] = kernel(&run.plan);
    row["over_this"] = json!(median(times) / own);
    row["correct"] = json!(same_bits.is_ok());
    row["same_bits"] = outcome(same_bits);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The kinds that a program was started for, which fails for one of them.
    fn started(left_out: &[String]) -> (Result<(), String>, String) {
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
            .filter(|(kind, _)| *kind == WeightKind::W8a8)
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
}
