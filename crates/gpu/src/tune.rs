//! Measures the plans that each product may take on this device, and writes the fastest as a
//! [`Tuning`] table.

use crate::about::{about, write_whole};
use crate::heads::{self, Head, KINDS, Replayed, Turn, WeightKind, Weights, by_turns, median, said, shapes};
use crate::needs::small;
use lmhead::backend::cuda::{CudaDevice, CudaStream};
use lmhead::backend::device::KernelDevice;
use lmhead::plan::tuning::Choice;
use lmhead::plan::{Plan, Shape, Tuning};
use std::path::Path;
use std::time::{Duration, Instant};

/// Plans that the cost model takes for this many times as slow as its choice are not measured.
const SLOWEST: f64 = 2.0;

/// The most rows of each choice: those of the tiles, ascending, as [`Tuning::check`] wants a tile to have no
/// more rows than the fewest of its choice take room.
fn row_counts() -> &'static [usize] {
    if small() { &[1, 9] } else { &[1, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096] }
}

/// Measures the heads of [`shapes`], of all kinds of weights, and writes the table after each product. What
/// there was no time for has no choice.
///
/// # Errors
/// What failed; also where the fastest plan's logits are not those of another tile.
pub fn write(device: &CudaDevice, file: &Path, seconds: f64) -> Result<(), String> {
    heads::impatient(device);
    let (end, limits) = (Instant::now() + Duration::from_secs_f64(seconds), device.limits());
    let name = about(device)["device"]["name"].as_str().unwrap_or("a device").to_string();
    let (capability, num_sms) = (limits.capability, limits.num_sms);
    let mut table = Tuning { device: name, capability, num_sms, choices: Vec::new() };
    let own = heads::stream(device)?;
    let mut left = KINDS.len() * shapes().len() * row_counts().len();
    for kind in KINDS {
        for (head, _) in shapes() {
            let weights = Weights::new(device, &head, kind).map_err(said)?;
            for &rows in row_counts() {
                let share = end.saturating_duration_since(Instant::now()).as_secs_f64() / left as f64;
                left -= 1;
                if share <= 0.0 {
                    println!("{kind} {head}, {rows} rows: no time left");
                    continue;
                }
                let choice = fastest(&weights, (kind, &head, rows), own.handle(), share);
                table.choices.push(choice.map_err(|e| format!("{kind} {head}, {rows} rows: {e}"))?);
                table.check(&limits).map_err(said)?;
                let text = serde_json::to_string_pretty(&table).expect("this is JSON");
                write_whole(file, &(text + "\n"))?;
            }
        }
    }
    Ok(())
}

/// The fastest plan of a product, whose logits are right.
fn fastest(
    weights: &Weights<'_>,
    (kind, head, rows): (WeightKind, &Head, usize),
    stream: CudaStream,
    seconds: f64,
) -> Result<Choice, String> {
    let layout = weights.copies[0].layout();
    let shape = Shape { rows, vocab: head.vocab, hidden: head.hidden };
    let ranked = Plan::ranked(layout, kind.precision(), shape, &weights.limits()).map_err(said)?;
    let most = SLOWEST * ranked[0].1.clocks.total();
    let plans = ranked.iter().filter(|(_, cost)| cost.clocks.total() <= most).map(|(plan, _)| *plan);
    let replayed = |plan| Replayed::by_plan(weights, stream, plan).map_err(said);
    let runs = plans.map(replayed).collect::<Result<Vec<_>, _>>()?;
    runs.iter().try_for_each(Replayed::poison).map_err(said)?;
    let turn = |run| -> Turn<'_> { Box::new(move || Replayed::replay(run).map_err(said)) };
    let times = by_turns(&mut runs.iter().map(turn).collect::<Vec<_>>(), seconds)?;
    let timed = runs.iter().zip(times.iter().map(|times| median(times)));
    let (run, time) = timed.min_by(|a, b| a.1.total_cmp(&b.1)).expect("a plan");
    run.same_bits(&run.of_another_tile()?)?;
    let (kernel, stages) = (run.plan.tile.kernel, run.plan.stages);
    let of_model = 1e6 * median(&times[0]);
    println!("{kind} {head}, {rows} rows: {kernel} with {stages} stages, {:.1} us", 1e6 * time);
    println!("  {}, the cost model's choice, {of_model:.1} us", runs[0].plan.tile.kernel);
    let (kernel, median_us) = (kernel.into(), Some(1e6 * time));
    Ok(Choice { vocab: head.vocab, hidden: head.hidden, rows, kernel, stages, median_us })
}
