//! The cost of each transport on this machine: a round of step headers, gathers and exchanges by number of
//! ranks and bytes, and whole steps, which `lmhead plan` predicts from the speeds measured here.
//!
//! ```text
//! cargo bench --bench transports -- --out benches/results/cpu/transports.json
//! scripts/mpi cargo bench --features mpi --bench transports -- --out ... --profiles crates/cli/profiles
//! LMHEAD_TRANSPORTS_REPETITIONS=5 ...                                            # 21 by default
//! ```
//!
//! Bandwidths are those of nccl-tests (doc/PERFORMANCE.md): algorithm bandwidth is the bytes of one rank's
//! receive buffer over the time; bus bandwidth is that times (P - 1)/P, for all_gather and all_to_all alike.
//! Transports between GPUs are not measured here: this machine has none.
//!
//! `--profiles DIR` writes a machine profile for each transport: its speeds, the measured steps, and where
//! and when. `lmhead plan --profile` reads them.

#[path = "../tests/head/transports/mpi_ranks.rs"]
mod mpi_ranks;

use lmhead::exchange::{Call, Exchange, Operation, local};
use lmhead::step::HEADER_BYTES;
use lmhead::{DType, HeadConfig, HiddenRows, LmHead, Quantization, Request, RowCounts};
use lmhead_testkit::processes::{self, Launcher, Rank, Scenarios, on_processes};
use lmhead_testkit::report::{about, load, quantile, report, setting, summary};
use lmhead_testkit::{TestHead, each_rank_over, engine, head_of, local_group};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const GROUPS: [usize; 3] = [2, 4, 8];

/// Bytes of one piece, which a rank sends to each of the others.
const BYTES: [usize; 5] = [1 << 6, 1 << 12, 1 << 16, 1 << 20, 1 << 22];

/// The head of the measured steps: 33 MB in bf16, as large as the last-level cache.
const VOCAB: usize = 32_000;
const HIDDEN: usize = 512;

/// Rows of each rank in a measured step, and its request.
const STEPS: [(usize, Request); 4] = [
    (4, Request::Argmax),
    (16, Request::Argmax),
    (16, Request::TopK { k: 64 }),
    (16, Request::Logits { dtype: DType::Bf16 }),
];

/// Number of ranks whose steps and speeds go into a profile.
const PROFILE_RANKS: usize = 4;

/// Piece size from which a link's bandwidth is computed.
const BULK: usize = 1 << 20;

/// Rows of a matmul that is bound by streaming its weights, and of one that is bound by arithmetic.
const MATMUL_ROWS: [usize; 2] = [1, 64];

const HOUR: Duration = Duration::from_secs(3600);

/// Times of one rank: for each thing measured, microseconds of each repetition.
type Times = BTreeMap<String, Vec<f64>>;

fn key(what: &str, bytes: usize) -> String {
    format!("{what} {bytes}")
}

fn step_key(rows: usize, request: &Request) -> String {
    format!("step {rows} {request}")
}

/// Mean microseconds of `rounds` calls in a row, after one that allocates buffers.
fn timed(rounds: u64, mut call: impl FnMut()) -> f64 {
    call();
    let began = Instant::now();
    (0..rounds).for_each(|_| call());
    began.elapsed().as_secs_f64() * 1e6 / rounds as f64
}

/// One rank's channel, and memory for the largest pieces.
struct Pieces {
    channel: Arc<dyn Exchange>,
    members: Vec<usize>,
    calls: u64,
    send: Vec<u8>,
    recv: Vec<u8>,
}

impl Pieces {
    fn new(rank: &Rank) -> Self {
        let (_, channel) = rank.exchange.channel(1).expect("a channel");
        let most = rank.size * BYTES.into_iter().max().expect("sizes");
        let (send, recv) = (vec![rank.me as u8; most], vec![0; most]);
        Pieces { channel, members: (0..rank.size).collect(), calls: 0, send, recv }
    }

    fn call(&mut self, operation: Operation) -> Call {
        self.calls += 1;
        let (step, began) = (self.calls, Instant::now());
        Call { head: 1, instance: 0, epoch: 0, step, operation, terms: 0, began, deadline: began + HOUR }
    }

    fn gather(&mut self, operation: Operation, bytes: usize) {
        let (call, size) = (self.call(operation), self.members.len());
        let mut recv: Vec<&mut [u8]> = self.recv[..bytes * size].chunks_mut(bytes).collect();
        self.channel.all_gather_v(&call, &self.members, &self.send[..bytes], &mut recv).expect("a gather");
    }

    fn exchange(&mut self, bytes: usize) {
        let (call, size) = (self.call(Operation::ExchangeResults), self.members.len());
        let send: Vec<&[u8]> = self.send[..bytes * size].chunks(bytes).collect();
        let mut recv: Vec<&mut [u8]> = self.recv[..bytes * size].chunks_mut(bytes).collect();
        self.channel.all_to_all_v(&call, &send, &mut recv).expect("an exchange");
    }
}

/// One step: its microseconds, and those of its matmul.
fn step(head: &mut LmHead, bytes: &[u8], rows: usize, request: &Request, size: usize) -> (f64, f64) {
    let hidden = HiddenRows::new(bytes, DType::Bf16, rows, HIDDEN).expect("rows");
    let counts = RowCounts::exact(&vec![rows; size]);
    let began = Instant::now();
    let answer = head.step(counts, request).and_then(|step| step.run(hidden)).expect("an answer");
    (began.elapsed().as_secs_f64() * 1e6, answer.stats.matmul.as_secs_f64() * 1e6)
}

/// Everything that one rank measures, once in each repetition, so that all are measured under the same load.
fn measure(rank: &Rank) -> Times {
    let (me, size) = (rank.me, rank.size);
    let test = TestHead::random(VOCAB, HIDDEN, DType::Bf16, Quantization::None, 3);
    let config = HeadConfig { timeout: HOUR, create_timeout: HOUR, ..test.config() };
    let mut head = head_of(&test, &config, size, me, Arc::clone(&rank.exchange)).expect("a head");
    let one = Arc::new(local::group(1).remove(0));
    let mut alone = head_of(&test, &config, 1, 0, one).expect("a head");
    let rows_of = |rows: usize| test.rows(rows, me as u64);
    let mut pieces = Pieces::new(rank);
    let mut times = Times::new();
    let mut note = |what: String, us: f64| times.entry(what).or_default().push(us);
    // The first repetition is a warm-up.
    for repetition in 0..=setting("LMHEAD_TRANSPORTS_REPETITIONS", 21) {
        let mut note = |what: String, us: f64| {
            if repetition > 0 {
                note(what, us);
            }
        };
        note("header".into(), timed(100, || pieces.gather(Operation::Contract, HEADER_BYTES)));
        for bytes in BYTES {
            let rounds = ((1 << 21) / (bytes * size)).clamp(2, 50) as u64;
            note(key("gather", bytes), timed(rounds, || pieces.gather(Operation::GatherRows, bytes)));
            note(key("exchange", bytes), timed(rounds, || pieces.exchange(bytes)));
        }
        for (rows, request) in &STEPS {
            note(step_key(*rows, request), step(&mut head, &rows_of(*rows), *rows, request, size).0);
        }
        // All ranks multiply at the same time, as in a step, so that each gets its share of the machine.
        for rows in MATMUL_ROWS {
            note(key("matmul", rows), step(&mut alone, &rows_of(rows), rows, &Request::Argmax, 1).1);
        }
    }
    times
}

const SCENARIOS: &Scenarios = &[("measure", |rank| json!(measure(&rank)))];

/// Microseconds of each repetition's slowest rank.
fn slowest(ranks: &[Times]) -> Times {
    let of = |what: &String| {
        let each =
            (0..ranks[0][what].len()).map(|i| ranks.iter().map(|times| times[what][i]).fold(0.0, f64::max));
        (what.clone(), each.collect())
    };
    ranks[0].keys().map(of).collect()
}

fn on_threads(exchanges: Vec<Arc<dyn Exchange>>) -> Vec<Times> {
    let size = exchanges.len();
    each_rank_over(exchanges, |me, exchange| measure(&Rank::of_thread(me, size, exchange)))
}

fn on_processes_of(launcher: Launcher, size: usize) -> Vec<Times> {
    let answers = on_processes(launcher, "", "measure", size, Duration::from_secs(115));
    let times = answers.into_iter().map(|answer| serde_json::from_value(answer.expect("an answer")));
    times.map(|times| times.expect("times")).collect()
}

fn measure_over(transport: &str, size: usize) -> Times {
    slowest(&match transport {
        "local" => on_threads(local_group(size)),
        "callbacks" => on_threads(engine::group(size)),
        "processes" => on_processes_of(Launcher::Test, size),
        _ => on_processes_of(Launcher::Mpirun, size),
    })
}

const TRANSPORTS: &[&str] = &[
    "local",
    "callbacks",
    "processes",
    #[cfg(feature = "mpi")]
    "mpi",
];

fn median(times: &[f64]) -> f64 {
    quantile(times, 0.5)
}

/// Collectives of one kind: their times and nccl-tests' bandwidths by bytes.
fn collectives(kind: &str, size: usize, times: &Times) -> Value {
    let of = |bytes: usize| {
        let us = &times[&key(kind, bytes)];
        let algorithm = (bytes * size) as f64 / median(us) / 1e3;
        let bus = algorithm * (size - 1) as f64 / size as f64;
        let rounded = |gb_per_s: f64| (gb_per_s * 1e4).round() / 1e4;
        let told = json!({
            "us": summary(us, 2), "algbw_gb_per_s": rounded(algorithm), "busbw_gb_per_s": rounded(bus),
        });
        (format!("{bytes:7} bytes"), told)
    };
    BYTES.into_iter().map(of).collect()
}

/// The cost model's speeds for one rank of `size`, from the measured times.
fn speeds(size: usize, times: &Times) -> Value {
    let weights = (VOCAB * HIDDEN) as f64;
    let [few, many] = MATMUL_ROWS;
    let received = (BULK * (size - 1)) as f64;
    let digits = |value: f64| (value * 1e3).round() / 1e3;
    json!({
        "memory_gb_per_s": digits(2.0 * weights / median(&times[&key("matmul", few)]) / 1e3),
        "tflops": digits(2.0 * many as f64 * weights / median(&times[&key("matmul", many)]) / 1e6),
        "link_gb_per_s": digits(received / median(&times[&key("exchange", BULK)]) / 1e3),
        "latency_us": digits(median(&times["header"])),
    })
}

/// A machine profile in the form that `lmhead plan --profile` reads.
fn profile(transport: &str, about: &Value, all: &BTreeMap<usize, Times>) -> Value {
    let cpus = about["cpus"].as_u64().expect("a number");
    let step = |size: usize, (rows, request): &(usize, Request)| {
        let us = summary(&all[&size][&step_key(*rows, request)], 1);
        let (words, logits_dtype) = match request {
            Request::Logits { dtype } => ("logits".into(), json!(dtype.to_string())),
            other => (other.to_string(), Value::Null),
        };
        json!({
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "weights": "bf16", "ranks": size,
            "rows_per_rank": rows, "request": words, "logits_dtype": logits_dtype,
            "median_us": us["median"], "p10_us": us["p10"], "p90_us": us["p90"],
        })
    };
    let steps = all.keys().flat_map(|&size| STEPS.iter().map(move |asked| step(size, asked)));
    let mut profile = json!({
        "name": format!("cpu{cpus}-{transport}"),
        "transport": transport,
        "ranks": PROFILE_RANKS,
        "machine": about["machine"], "cpus": cpus, "commit": about["commit"], "date": about["date"],
        "command": about["command"], "load_average": about["load_average_before"],
        "steps": steps.collect::<Vec<_>>(),
    });
    let Value::Object(speeds) = speeds(PROFILE_RANKS, &all[&PROFILE_RANKS]) else { unreachable!() };
    profile.as_object_mut().expect("an object").extend(speeds);
    profile
}

fn main() {
    processes::enter(SCENARIOS, mpi_ranks::join_mpi);
    let mut result = about("cargo bench --bench transports");
    let folder = std::env::args().skip_while(|argument| argument != "--profiles").nth(1);
    let mut transports = Map::new();
    for &transport in TRANSPORTS {
        let all: BTreeMap<usize, Times> =
            GROUPS.into_iter().map(|size| (size, measure_over(transport, size))).collect();
        let of = |(&size, times): (&usize, &Times)| {
            let step = |(rows, request): &(usize, Request)| {
                (format!("{rows} rows, {request}"), summary(&times[&step_key(*rows, request)], 1))
            };
            let told = json!({
                "header_round_us": summary(&times["header"], 2),
                "all_gather": collectives("gather", size, times),
                "all_to_all": collectives("exchange", size, times),
                "step_us": STEPS.iter().map(step).collect::<Map<_, _>>(),
                "speeds_of_a_rank": speeds(size, times),
            });
            println!(
                "{transport}, P {size}: {:.1} us a round of headers, {:.2} GB/s bus bandwidth of all_gather and \
                 {:.2} of all_to_all at {BULK} bytes",
                median(&times["header"]),
                told["all_gather"][format!("{BULK:7} bytes")]["busbw_gb_per_s"].as_f64().unwrap_or(0.0),
                told["all_to_all"][format!("{BULK:7} bytes")]["busbw_gb_per_s"].as_f64().unwrap_or(0.0),
            );
            (format!("P {size}"), told)
        };
        transports.insert(transport.into(), all.iter().map(of).collect());
        if let Some(folder) = &folder {
            let profile = profile(transport, &result, &all);
            let path = format!("{folder}/{}.json", profile["name"].as_str().expect("a name"));
            let text = serde_json::to_string_pretty(&profile).expect("JSON") + "\n";
            std::fs::write(&path, text).unwrap_or_else(|error| panic!("{path} cannot be written: {error}"));
            println!("written: {path}");
        }
    }
    result["load_average_after"] = load();
    let repetitions = setting("LMHEAD_TRANSPORTS_REPETITIONS", 21);
    result["settings"] = json!(format!("LMHEAD_TRANSPORTS_REPETITIONS={repetitions}"));
    result["method"] = json!(
        "microseconds of a call, mean of several in a row, of the slowest rank; local and callbacks: ranks are \
         threads; processes: sockets, mpi: mpirun --enable-recovery, all on one host; bytes: of one piece, \
         from each rank to each; algbw and busbw as in nccl-tests' doc/PERFORMANCE.md"
    );
    result["head"] = json!(format!("{VOCAB} x {HIDDEN} bf16"));
    result["transports"] = Value::Object(transports);
    report(&result);
}
