//! What each request costs beyond the product: whole steps of one rank on the device, the product alone and
//! peers on the same rows are timed in turns; and whether the answers are right. As JSON.

use crate::clocked::Clocked;
use crate::device_step::{Ask, DeviceStep, Source};
use crate::heads::{
    self, Head, HeadsReport, Replayed, Turn, WeightKind, Weights, by_turns, heads, median, quantiles, said,
};
use crate::needs::small;
use crate::operands::Loaded;
use crate::peers::Peers;
use lmhead::backend::cuda::{CudaDevice, CudaStream};
use lmhead::backend::device::KernelDevice;
use lmhead::exchange::local;
use lmhead::head::LmHead;
use lmhead::reference::{logsumexp, logsumexp_allowed, sample, top_k};
use lmhead::result::Request;
use lmhead::rows::RowCounts;
use lmhead::weights::{DeviceMatrix, HeadShard};
use lmhead::{DType, HeadConfig, HeadGroup, Quantization};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const METHOD: &str = "\
    Whole steps of one rank of a bf16 head, by the kernels that a head loaded on this device has: rows \
    picked by index, product, answer; rows, parameters and answers in device memory. `graph`: CUDA events \
    around replays of a CUDA graph of several steps, one untimed replay right before each timed one; \
    `eager`, where a graph cannot have the step: the host's \
    clock around as many steps and a wait for their end. `product`: bf16 logits of the same rows, by kernels \
    alone, in a graph. All of them and the peers (PyTorch, and others where they are installed, in graphs of \
    their own) take turns in one run; time of one step, median and 10th and 90th percentile. Logits are \
    scaled to a standard deviation of 1.6, as the peers' are; a temperature of 1. `correct`: ids, sums and \
    logprobs of some rows are those of the definitions over the kernels' own f32 logits";

/// Random weights and rows have a mean square of 0.097: without this the logits of 7168 products of them have
/// a standard deviation of 8.2.
const LOGIT_SCALE: f32 = 0.2;

fn asks() -> Vec<Ask> {
    let plain = [Request::argmax(), Request::top_k(8), Request::logprobs(0), Request::sample()];
    let mut asks = plain.map(Ask::plain).to_vec();
    asks.push(Ask::sample(|params| params.top_p = 0.9).by_device());
    asks
}

/// Row counts, the most valuable first, for when time is short.
fn row_counts() -> &'static [usize] {
    if small() { &[9] } else { &[28, 256, 1, 64] }
}

/// Measures the first head and writes the results, also those up to an error.
///
/// # Errors
/// What failed; also where an answer is not right.
pub fn write(device: &CudaDevice, file: &Path, seconds: f64) -> Result<(), String> {
    heads::impatient(device);
    let mut report = HeadsReport::new(device, METHOD, file);
    let measured = measure(device, &mut report, seconds);
    if let Err(problem) = &measured {
        report.value["problem"] = json!(problem);
    }
    report.save()?;
    measured
}

fn measure(device: &CudaDevice, report: &mut HeadsReport<'_>, seconds: f64) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let own = heads::stream(device)?;
    let mut peers = Peers::start(end, &["answers"]);
    let head = heads()[0];
    let weights = Weights::new(device, &head, WeightKind::Bf16).map_err(said)?;
    report.value["peers"] = peers.about();
    let mut wrong = 0;
    for (i, &rows) in row_counts().iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        if left <= 0.0 {
            report.push("left_out", json!(format!("{head}, {rows} rows: no time left")));
            continue;
        }
        let share = left / (row_counts().len() - i) as f64;
        let row = steps(&weights, (&head, rows), (device, own.handle()), &mut peers, share)?;
        wrong +=
            row["requests"].as_array().into_iter().flatten().filter(|one| one["correct"] != true).count();
        report.push("answers", row);
        report.save()?;
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} answers are not right")) }
}

/// A head of one rank with the weights that are on the device already: packed, where a head that is loaded
/// there has them packed.
fn one_rank(loaded: &Loaded<'_, CudaDevice>, head: &Head) -> lmhead::Result<LmHead> {
    let Head { vocab, hidden } = *head;
    let (data, layout, pitch) = (loaded.spans().0, loaded.layout(), loaded.weight_pitch());
    let matrix = DeviceMatrix { data, dtype: DType::Bf16, layout, pitch, scales: None, bias: None };
    // SAFETY: nobody writes the weights, which outlive the head.
    let shard = unsafe { HeadShard::on_device(0..vocab, vocab, hidden, Quantization::None, matrix, || {}) };
    let mut config = HeadConfig::new(vocab, hidden);
    (config.hidden_dtype, config.logit_scale) = (Some(DType::Bf16), LOGIT_SCALE);
    let backend = Arc::new(loaded.device.clone().backend());
    let exchange = Arc::new(local::group(1).remove(0));
    LmHead::new(&config, HeadGroup::data_parallel(1, 0)?, Arc::new(shard?), exchange, backend)
}

/// Several steps in a graph, or one by one.
enum Repeated {
    Graph(Clocked),
    Eager(usize),
}

impl Repeated {
    fn name(&self) -> &'static str {
        if let Repeated::Graph(_) = self { "graph" } else { "eager" }
    }

    /// Seconds of one step.
    fn replay(
        &self,
        step: &mut DeviceStep<'_>,
        (device, stream): (&CudaDevice, CudaStream),
    ) -> lmhead::Result<f64> {
        match self {
            Repeated::Graph(work) => work.replay(),
            Repeated::Eager(steps) => {
                device.wait(stream)?;
                let began = Instant::now();
                (0..*steps).try_for_each(|_| step.run())?;
                device.wait(stream)?;
                Ok(began.elapsed().as_secs_f64() / *steps as f64)
            }
        }
    }
}

/// Measures all requests of `rows` rows.
fn steps(
    weights: &Weights<'_>,
    (head, rows): (&Head, usize),
    on: (&CudaDevice, CudaStream),
    peers: &mut Peers,
    seconds: f64,
) -> Result<Value, String> {
    let (began, (device, stream)) = (Instant::now(), on);
    let loaded = &weights.copies[0];
    let product = Replayed::new(weights, stream, rows).map_err(said)?;
    let launches = product.work.launches;
    let picks = weights.picks(rows);
    let source = Source { states: loaded.spans().1, dtype: DType::Bf16, rows: loaded.operands.source_rows };
    let made = asks().into_iter().map(|ask| -> lmhead::Result<(DeviceStep<'_>, Repeated)> {
        let rank = one_rank(loaded, head)?;
        let mut step = DeviceStep::new(rank, ask, RowCounts::exact(&[rows]), on, (source, &picks))?;
        let repeated = match step.is_capturable() {
            true => Repeated::Graph(Clocked::new(device, stream, launches, |_| step.run())?),
            false => Repeated::Eager(launches),
        };
        step.poison()?;
        Ok((step, repeated))
    });
    let mut made: Vec<_> = made.collect::<lmhead::Result<_>>().map_err(said)?;
    let told = peers.prepare(head.vocab, head.hidden, rows, launches, "answers");
    let shared = RefCell::new(&mut *peers);
    let mut turns: Vec<Turn<'_>> = vec![Box::new(|| product.work.replay().map_err(said))];
    for (step, repeated) in &mut made {
        turns.push(Box::new(move || repeated.replay(step, on).map_err(said)));
    }
    turns.extend(Peers::turns(&shared, &told));
    // At least half of the time, however long the preparation took.
    let times = by_turns(&mut turns, (seconds - began.elapsed().as_secs_f64()).max(seconds / 2.0))?;
    drop(turns);
    peers.release();
    let (alone, rest) = times.split_first().expect("the product's");
    let (own, of_peers) = rest.split_at(made.len());
    let logits = Logits::new(loaded, rows, &picks)?;
    let mut requests = Vec::new();
    for ((step, repeated), times) in made.iter().zip(own) {
        let right = logits.judge(step);
        let over = median(times) / median(alone);
        println!(
            "{}, {head}, {rows} rows: {:.1} us, {over:.3} of the product ({}), {}",
            step.ask,
            1e6 * median(times),
            repeated.name(),
            right.as_ref().map_or_else(|problem| format!("WRONG: {problem}"), |()| "right".into()),
        );
        let mut row = quantiles(times, product.bytes);
        row["request"] = json!(step.ask.to_string());
        row["step"] = json!(repeated.name());
        row["over_product"] = json!(over);
        row["correct"] = right.map_or_else(|problem| json!({ "problem": problem }), |()| json!(true));
        requests.push(row);
    }
    Ok(json!({
        "vocab": head.vocab, "hidden": head.hidden, "rows": rows, "kind": WeightKind::Bf16.to_string(),
        "launches": launches, "kernel": heads::kernel(&product.plan),
        "product": quantiles(alone, product.bytes), "requests": requests,
        "peers": Peers::with_times(&told, of_peers), "refusals": told["refusals"],
    }))
}

/// f32 logits of some rows, by the product alone.
struct Logits {
    /// Numbers of the rows.
    rows: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

impl Logits {
    fn new(loaded: &Loaded<'_, CudaDevice>, rows: usize, picks: &[i64]) -> Result<Self, String> {
        let out = loaded.output(rows, Some(picks), DType::F32, 0).map_err(said)?;
        loaded.run(&out, None).map_err(said)?;
        let all = loaded.all(&out)?;
        let mut some = vec![0, rows / 2, rows - 1];
        some.dedup();
        let row_bytes = all.len() / rows;
        let of = |row: &usize| {
            let bytes = &all[row * row_bytes..][..row_bytes];
            bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter().map(|l| l * LOGIT_SCALE).collect()
        };
        Ok(Logits { logits: some.iter().map(of).collect(), rows: some })
    }

    /// Whether the step's answers for these rows are right.
    fn judge(&self, step: &DeviceStep<'_>) -> Result<(), String> {
        let status = step.row_status().map_err(said)?;
        if let Some(row) = status.iter().position(|status| *status != 0) {
            return Err(format!("row {row}: wanted status 0, got {}", status[row]));
        }
        for (&row, logits) in self.rows.iter().zip(&self.logits) {
            self.judge_row(step, row, logits).map_err(|problem| format!("row {row}: {problem}"))?;
        }
        Ok(())
    }

    fn judge_row(&self, step: &DeviceStep<'_>, row: usize, logits: &[f32]) -> Result<(), String> {
        let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let same_ids = |n: usize, want: Vec<usize>| {
            let got = step.ids().map_err(said)?[row * n..][..n].to_vec();
            let want: Vec<i64> = want.into_iter().map(|id| id as i64).collect();
            if got == want { Ok(()) } else { Err(format!("wanted ids {want:?}, got {got:?}")) }
        };
        let truth = logsumexp(&wide);
        let near = |what: &str, got: f32, want: f64, rounding: f64| {
            let allowed = logsumexp_allowed(truth, wide.len()) + rounding;
            let good = (f64::from(got) - want).abs() <= allowed;
            if good { Ok(()) } else { Err(format!("wanted a {what} within {allowed} of {want}, got {got}")) }
        };
        match step.ask.request {
            Request::Argmax => same_ids(1, top_k(&wide, 1)),
            Request::TopK { k } => {
                same_ids(k, top_k(&wide, k))?;
                near("logsumexp", step.logsumexp().map_err(said)?[row], truth, 0.0)
            }
            Request::Logprobs { .. } => {
                let target = step.targets().map_err(said)?[row] as usize;
                let want = wide[target] - truth;
                let rounding = DType::F32.half_ulp(want.abs());
                near("logprob", step.logprobs().map_err(said)?[row], want, rounding)
            }
            Request::Sample { .. } => {
                let drawn = sample(logits, &step.ask.params(row)).ok_or("wanted an id that may be drawn")?;
                same_ids(1, vec![drawn])
            }
            other => Err(format!("no judge for {other}")),
        }
    }
}
