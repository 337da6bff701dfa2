//! What MPI needs beside the table of `tests/head/transports.rs`: sends that nobody receives, the end of a
//! job, exchanges of the same ranks, a thousand rebuilds, steps that allocate nothing.
//!
//! ```text
//! cargo test --features mpi --test mpi latency -- --ignored --nocapture      # prints what a gather takes
//! ```

use lmhead::backend::On;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::exchange::mpi::{Mpi, PendingSends};
use lmhead::exchange::{Call, Exchange, Fault, Operation};
use lmhead::head::StepOptions;
use lmhead::memory::SpanMut;
use lmhead::result::{AnswerBuffers, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::allocations::{CountingAllocator, Rounds};
use lmhead_testkit::processes::{self, Launcher, Processes, Rank, Scenarios, on_processes};
use lmhead_testkit::{TestHead, head_of, row_bits};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ENTRY: &str = "a_rank_of_another_test";

const SCENARIOS: &Scenarios = &[
    ("nobody takes it", nobody_takes_it),
    ("ranks that are none", ranks_that_are_none),
    ("exchanges of the same ranks", exchanges_of_the_same_ranks),
    ("all finish", |_| finish(Duration::from_secs(20))),
    ("one does not finish", one_does_not_finish),
    ("one gives up", one_gives_up),
    ("rebuilds", rebuilds),
    ("steady steps", steady_steps),
    ("latency", latency),
];

/// This process's MPI job, once it has joined.
static JOB: Mutex<Option<Mpi>> = Mutex::new(None);

fn job() -> MutexGuard<'static, Option<Mpi>> {
    JOB.lock().expect("no panic under the lock")
}

/// Returns at once, unless another test has started this program as one of its ranks.
#[test]
fn a_rank_of_another_test() {
    processes::enter(SCENARIOS, |_| {
        let mpi = Mpi::start().unwrap_or_else(|error| panic!("{error}"));
        let everyone = mpi.everyone();
        *job() = Some(mpi);
        everyone
    });
}

fn answers(name: &str, size: usize) -> Vec<Value> {
    let answers = on_processes(Launcher::Mpirun, ENTRY, name, size, Duration::from_secs(100));
    answers.into_iter().map(|answer| answer.expect("every rank has an answer")).collect()
}

fn call(step: u64, timeout: Duration) -> Call {
    let began = Instant::now();
    let (operation, deadline) = (Operation::ExchangeResults, began + timeout);
    Call { head: 0, instance: 0, epoch: 0, step, operation, terms: 0, began, deadline }
}

/// Sends `bytes` to every member and returns what each sent.
fn gather(e: &dyn Exchange, call: &Call, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    let everyone: Vec<usize> = (0..e.size()).collect();
    let mut recv = vec![0; e.size() * bytes.len()];
    let mut slices: Vec<&mut [u8]> = recv.chunks_mut(bytes.len()).collect();
    e.all_gather_v(call, &everyone, bytes, &mut slices).map(|()| recv)
}

/// Longer than any message that MPI buffers by itself.
const LONG: usize = 8 << 20;

fn nobody_takes_it(rank: Rank) -> Value {
    const LONG_WAIT: Duration = Duration::from_secs(30);
    gather(&*rank.exchange, &call(0, LONG_WAIT), &[1]).expect("all are there");
    rank.mark("met");
    let send = vec![rank.me as u8 + 1; LONG];
    if rank.me == 1 {
        // It is stopped about here, and continued when the other has given up.
        rank.wait_to_be_told("go on");
        let got = gather(&*rank.exchange, &call(1, LONG_WAIT), &send).expect("sent before the fault");
        return json!(got == [vec![1; LONG], vec![2; LONG]].concat());
    }
    rank.wait_to_be_told("stopped");
    let began = Instant::now();
    let fault = gather(&*rank.exchange, &call(1, Duration::from_millis(500)), &send).unwrap_err();
    let took = began.elapsed();
    // The caller can use its buffer again; MPI still reads a copy.
    drop(send);
    let pending = job().as_ref().expect("a job").pending_sends();
    rank.mark("failed");
    let began = Instant::now();
    while job().as_ref().expect("a job").pending_sends() != PendingSends::default() {
        assert!(began.elapsed() < LONG_WAIT, "the sends do not go out");
        // Any query drives MPI's progress.
        let _ = rank.exchange.places();
    }
    json!([format!("{fault:?}"), took.as_millis() as u64, pending.count, pending.bytes])
}

/// A stopped peer receives nothing. The piece sent to it is kept until the peer goes on.
#[test]
fn a_send_that_nobody_takes_is_kept_and_counted_until_it_goes_out() {
    let mut ranks = Processes::start(Launcher::Mpirun, ENTRY, "nobody takes it", 2);
    (0..2).for_each(|rank| ranks.wait_for(rank, "met"));
    ranks.stop(1);
    ranks.tell("stopped");
    ranks.wait_for(0, "failed");
    ranks.tell("go on");
    ranks.go_on(1);
    let answers = ranks.answers(Duration::from_secs(60), None);
    let [Some(first), Some(second)] = &answers[..] else { panic!("{answers:?}: {}", ranks.said(0)) };
    println!("the rank that sent: fault, ms, pending sends and bytes: {first}");
    assert_eq!(first[0], format!("{:?}", Fault::Timeout { missing: vec![1] }));
    assert!(first[1].as_u64().unwrap() < 1500, "{first}");
    assert!(first[2].as_u64().unwrap() >= 1 && first[3].as_u64().unwrap() >= LONG as u64, "{first}");
    assert_eq!(*second, json!(true), "every byte of the piece");
}

fn ranks_that_are_none(_: Rank) -> Value {
    let job = job();
    let mpi = job.as_ref().expect("a job");
    let refused = |ranks: &[usize]| mpi.exchange(ranks).err().map(|error| error.to_string());
    json!([refused(&[0, 1, 7]), refused(&[0, 1, 1]), refused(&[2 - mpi.rank()]), refused(&[0, 1, 2])])
}

#[test]
fn ranks_that_are_none_of_the_job_are_refused_by_name() {
    for (rank, said) in answers("ranks that are none", 3).iter().enumerate() {
        let said: Vec<&str> = (0..3).map(|i| said[i].as_str().unwrap_or_default()).collect();
        assert!(said[0].contains("wanted ranks of this MPI job, 0 to 2, got rank 7"), "{said:?}");
        assert!(said[0].contains("mpirun -n 8"), "{said:?}");
        assert!(said[1].contains(&format!("each rank once, with this process's rank {rank}")), "{said:?}");
        // Rank 1 alone is a group.
        assert_eq!(said[2].is_empty(), rank == 1, "{said:?}");
    }
}

fn exchanges_of_the_same_ranks(rank: Rank) -> Value {
    let job = job();
    let mpi = job.as_ref().expect("a job");
    let everyone: Vec<usize> = (0..rank.size).collect();
    let reversed: Vec<usize> = (0..rank.size).rev().collect();
    let make = |ranks: &[usize]| mpi.exchange(ranks).expect("an exchange");
    let exchanges = [make(&everyone), make(&everyone), make(&reversed)];
    // Used in another order on each rank: messages of different exchanges must not mix.
    let mut got = vec![Vec::new(); 3];
    std::thread::scope(|scope| {
        for ((i, exchange), got) in exchanges.iter().enumerate().zip(&mut got) {
            let me = rank.me;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20 * ((i + me) % 3) as u64));
                let byte = (10 * i + exchange.me()) as u8;
                *got = gather(exchange, &call(0, Duration::from_secs(20)), &[byte]).expect("a gather");
            });
        }
    });
    json!(got)
}

#[test]
fn exchanges_of_the_same_ranks_do_not_meet() {
    for answer in answers("exchanges of the same ranks", 3) {
        assert_eq!(answer, json!([[0, 1, 2], [10, 11, 12], [20, 21, 22]]));
    }
}

/// The error of the end, and the time it took.
fn finish(timeout: Duration) -> Value {
    let mpi = job().take().expect("a job");
    let began = Instant::now();
    let error = mpi.finish(timeout).err().map(|error| error.to_string());
    json!([error, began.elapsed().as_millis() as u64, ::mpi::is_finalized()])
}

fn one_does_not_finish(rank: Rank) -> Value {
    if rank.me == 1 {
        // Neither finishes nor ends.
        std::thread::sleep(Duration::from_millis(2500));
        return json!(null);
    }
    finish(Duration::from_millis(500))
}

fn one_gives_up(rank: Rank) -> Value {
    if rank.me == 1 {
        job().as_ref().expect("a job").give_up("the disk is full");
        std::thread::sleep(Duration::from_millis(1000));
        return json!(null);
    }
    finish(Duration::from_secs(60))
}

#[test]
fn a_job_is_finalised_when_all_have_come_and_only_then() {
    for answer in answers("all finish", 3) {
        assert_eq!((&answer[0], &answer[2]), (&json!(null), &json!(true)));
    }
    for (scenario, words, most) in [
        ("one does not finish", "ranks [1] did not come within 500ms", 1500),
        ("one gives up", "ranks [1] say the disk is full", 5000),
    ] {
        for (rank, answer) in answers(scenario, 3).iter().enumerate().filter(|(rank, _)| *rank != 1) {
            let said = answer[0].as_str().unwrap_or_default();
            assert!(said.contains(words), "{scenario}, rank {rank}: {answer}");
            assert!(answer[1].as_u64().unwrap() < most, "{scenario}, rank {rank}: {answer}");
            assert_eq!(answer[2], json!(false), "{scenario}, rank {rank}");
        }
    }
}

/// Resident bytes, threads and descriptors of this process.
fn held() -> [u64; 3] {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    let kb: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    let count = |folder: &str| std::fs::read_dir(folder).expect("Linux").count() as u64;
    [kb << 10, count("/proc/self/task"), count("/proc/self/fd")]
}

/// A thousand times: a step, broken by a rank or not, a rebuild, and the same answer as before.
fn rebuilds(rank: Rank) -> Value {
    let test = TestHead::random(200, 16, DType::F32, Quantization::None, 3);
    let config = HeadConfig { timeout: Duration::from_secs(60), ..test.config() };
    let mut head = head_of(&test, &config, rank.size, rank.me, Arc::clone(&rank.exchange)).expect("a head");
    let bytes = test.rows(2, 7);
    let step = |head: &mut lmhead::LmHead, request: Request| {
        let hidden = HiddenRows::new(&bytes, DType::F32, 2, 16)?;
        head.step(RowCounts::exact(&vec![2; rank.size]), &request)?.run(hidden)
    };
    let bits = |answer: &lmhead::Answer| [row_bits(answer, 0), row_bits(answer, 1)];
    let want = bits(&step(&mut head, Request::top_k(3)).expect("a step"));
    let mut warm = held();
    for round in 0..1000 {
        if round == 300 {
            warm = held();
        }
        if round % 2 == 0 {
            let request = if rank.me == round % rank.size { Request::argmax() } else { Request::top_k(3) };
            let error = step(&mut head, request).expect_err("ranks that disagree");
            assert!(matches!(error, Error::StepMismatch { .. }), "round {round}: {error}");
        }
        let began = Instant::now();
        while let Err(error) = head.rebuild() {
            assert!(began.elapsed() < Duration::from_secs(60), "round {round}: {error}");
        }
        assert_eq!(bits(&step(&mut head, Request::top_k(3)).expect("a step")), want, "round {round}");
    }
    drop(head);
    let pending = job().as_ref().expect("a job").pending_sends();
    json!([warm, held(), pending.count])
}

#[test]
fn a_thousand_rebuilds_leave_no_memory_threads_or_descriptors_behind() {
    for (rank, answer) in answers("rebuilds", 3).iter().enumerate() {
        println!("rank {rank}: [resident, threads, descriptors] after 300 and 1000 rebuilds: {answer}");
        let number = |i: usize, j: usize| answer[i][j].as_u64().expect("a number");
        // Some growth is allowed, because the allocator's arenas are filled in another order each time.
        assert!(number(1, 0) < number(0, 0) + (2 << 20), "rank {rank}: resident memory grew: {answer}");
        assert!(number(1, 1) <= number(0, 1), "rank {rank}: threads: {answer}");
        assert_eq!(number(1, 2), number(0, 2), "rank {rank}: descriptors: {answer}");
        assert_eq!(answer[2], json!(0), "rank {rank}: pending sends");
    }
}

/// Environment variable: the level at which an engine initialises MPI before it calls this library.
const LEVEL: &str = "LMHEAD_TEST_MPI_LEVEL";

/// An engine that has initialised MPI itself needs MPI_THREAD_MULTIPLE: its calls do not take this library's
/// lock.
#[test]
fn an_engine_that_has_initialised_mpi_needs_all_its_threads() {
    const SAYS: &str = "an engine's Mpi::start: ";
    if let Ok(level) = std::env::var(LEVEL) {
        use ::mpi::Threading;
        let level = if level == "multiple" { Threading::Multiple } else { Threading::Serialized };
        // The engine's own MPI, which it finalises when done.
        let (universe, _) = ::mpi::initialize_with_threading(level).expect("the first to initialise");
        match Mpi::start() {
            Ok(mpi) => {
                let place = (mpi.rank(), mpi.size());
                let finished = mpi.finish(Duration::from_secs(20));
                println!("{SAYS}{place:?}, {finished:?}, finalised: {}", ::mpi::is_finalized());
            }
            Err(error) => println!("{SAYS}{error}"),
        }
        drop(universe);
        return;
    }
    let engine = |level: &str| {
        // A program of its own, because MPI can be initialised only once in a process.
        let out = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "an_engine_that_has_initialised_mpi_needs_all_its_threads", "--nocapture"])
            .env(LEVEL, level)
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let own = said.lines().find_map(|line| line.split_once(SAYS)).map(|(_, own)| own.to_string());
        own.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&out.stderr)))
    };
    assert_eq!(engine("multiple"), "(0, 1), Ok(()), finalised: false");
    let refused = engine("serialized");
    assert!(refused.contains("wanted MPI_THREAD_MULTIPLE, got initialised by the engine"), "{refused}");
}

/// Steps of uneven rows into the caller's buffers; reports what allocates after the first few hundred.
fn steady_steps(rank: Rank) -> Value {
    const MOST: usize = 6;
    let (vocab, hidden, k) = (500, 64, 5);
    let test = TestHead::random(vocab, hidden, DType::F32, Quantization::None, 3);
    let config = HeadConfig { timeout: Duration::from_secs(60), ..test.config() };
    let mut head = head_of(&test, &config, rank.size, rank.me, Arc::clone(&rank.exchange)).expect("a head");
    let bytes = test.rows(MOST, 7);
    let mut row_status = [0u8; MOST];
    let (mut logits, mut ids) = (vec![0u8; MOST * vocab * 4], [0i64; MOST * 5]);
    let (mut values, mut logsumexp) = ([0f32; MOST * 5], [0f32; MOST]);
    let requests = [Request::argmax(), Request::logits(DType::F32), Request::top_k(k)];
    for request in &requests {
        head.warm_up(MOST, &[*request]).expect("a warm-up");
    }
    let mut counts = vec![0; rank.size];
    let mut exact = RowCounts::Exact(Vec::with_capacity(rank.size));
    let mut step = |round: usize| {
        counts.iter_mut().enumerate().for_each(|(m, n)| *n = (round + 2 * m) % (MOST + 1));
        let (rows, request) = (counts[rank.me], &requests[round % 3]);
        if let RowCounts::Exact(list) = &mut exact {
            list.clear();
            list.extend_from_slice(&counts);
        }
        let counts = match round % 4 {
            0 => &RowCounts::discover(rows),
            1 => &RowCounts::capacity(MOST, rows),
            _ => &exact,
        };
        let ticket = head.begin(counts, request, StepOptions::default()).expect("a step");
        let hidden_rows =
            HiddenRows::new(&bytes[..rows * hidden * 4], DType::F32, rows, hidden).expect("rows");
        let row_status = SpanMut::host(&mut row_status[..rows]);
        let answer = match round % 3 {
            0 => AnswerBuffers { row_status, ids: SpanMut::host(&mut ids[..rows]), ..Default::default() },
            1 => AnswerBuffers {
                row_status,
                logits: SpanMut::host(&mut logits[..rows * vocab * 4]),
                ..Default::default()
            },
            _ => AnswerBuffers {
                row_status,
                ids: SpanMut::host(&mut ids[..rows * k]),
                values: SpanMut::host(&mut values[..rows * k]),
                logsumexp: SpanMut::host(&mut logsumexp[..rows]),
                ..Default::default()
            },
        };
        head.run_into(ticket, hidden_rows, &RowInputs::default(), answer, On::default()).expect("an answer");
    };
    let told = Rounds { warm_up: 500, counted: 2000 }.run(|round| step(round as usize));
    json!(told.err())
}

#[test]
fn a_step_over_mpi_allocates_nothing_once_it_is_warm() {
    for (rank, told) in answers("steady steps", 3).iter().enumerate() {
        assert_eq!(*told, json!(null), "rank {rank}");
    }
}

/// Median µs of gathers for several numbers of bytes from each rank.
fn latency(rank: Rank) -> Value {
    let median = |length: usize, times: usize| {
        let (send, mut took) = (vec![1; length], Vec::new());
        let everyone: Vec<usize> = (0..rank.size).collect();
        let mut recv = vec![0; rank.size * length];
        for step in 0..times {
            let mut slices: Vec<&mut [u8]> = recv.chunks_mut(length).collect();
            let began = Instant::now();
            let call = call(step as u64, Duration::from_secs(30));
            rank.exchange.all_gather_v(&call, &everyone, &send, &mut slices).expect("a gather");
            took.push(began.elapsed());
        }
        took.sort_unstable();
        took[times / 2].as_nanos() as f64 / 1e3
    };
    json!([median(64, 20_000), median(4096, 5000), median(1 << 20, 200)])
}

#[test]
#[ignore = "a measurement: run it with --ignored --nocapture"]
fn latency_of_a_gather() {
    for size in [2, 4] {
        println!(
            "{size} ranks: median µs of gathers of 64 bytes, 4 KiB, 1 MiB: {:?}",
            answers("latency", size)
        );
    }
}
