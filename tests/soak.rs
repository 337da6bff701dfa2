//! Thousands of random steps, with faults and rebuilds among them: no hang, no wrong bit, no growth.
//!
//! ```text
//! # for as long as asked (120 s by default)
//! LMHEAD_SOAK_SECONDS=600 cargo test --release --test soak -- --ignored --nocapture
//! # the same sequence again
//! LMHEAD_SOAK_SEED=7 ...
//! # so many steps of each transport
//! LMHEAD_SOAK_STEPS=10000 cargo test --release --features mpi --test soak -- --nocapture transports
//! ```

#[cfg(target_os = "linux")]
#[path = "head/transports/mpi_ranks.rs"]
mod mpi_ranks;

use lmhead::adjust::Adjustments;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::head::LmHead;
use lmhead::result::{Answer, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::{Random, TestHead, each_rank, head_of, row_bits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SEED: u64 = 20_261_122;

/// A row's status and the bits of its answer.
type Bits = (u8, Vec<u64>);

/// Bits of (request, row) as first seen on any rank of any group; every later step must repeat them.
type Seen = Mutex<HashMap<(String, u64), Bits>>;

/// Allowed growth of resident memory once every buffer has had its largest size. 8 MB is the allocator's own
/// noise (each thread may add an arena, and arenas are filled in another order each time). 10000 steps that
/// each kept one row of logits per rank would add 80 MB, and an hour of steps (more than a million) that each
/// kept ten bytes would exceed it, too.
const NOISE: u64 = 8 << 20;

/// Resident memory of this process in bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Runs `steps` random steps of a new group of `size` ranks; returns the growth of resident memory in the
/// second half.
fn group_of(size: usize, test: &TestHead, steps: u64, seed: u64, seen: &Seen) -> Option<u64> {
    let mut config = test.config();
    config.timeout = Duration::from_secs(30);
    let (vocab, hidden) = (test.vocab, test.hidden);
    let grown = each_rank(size, |me, exchange| {
        let mut head = head_of(test, &config, size, me, exchange).unwrap();
        // The same sequence of choices on every rank.
        let mut random = Random(seed);
        let mut at_half = None;
        for step in 0..steps {
            let counts: Vec<usize> = (0..size).map(|_| random.below(4) * random.below(3)).collect();
            let request = [
                Request::argmax(),
                Request::top_k(1 + random.below(20)),
                Request::logits(DType::F32),
                Request::processed_logprobs(random.below(5)),
                Request::sample(),
            ][random.below(5)];
            let adjusted = random.below(3) == 0;
            let first_row = random.next() % 64;
            let mode = random.below(3);
            // A single rank cannot disagree.
            let breaker = (random.below(50) == 0 && size > 1).then(|| random.below(size));
            // Leaves in the middle of the step, or asks for something else.
            let leaves = random.below(2) == 0;
            let mine = counts[me];
            let announced = match mode {
                0 => RowCounts::exact(&counts),
                1 => RowCounts::capacity(8, mine),
                _ => RowCounts::discover(mine),
            };
            let numbers: Vec<u64> = (0..mine as u64).map(|i| (first_row + 7 * me as u64 + i) % 64).collect();
            let bytes: Vec<u8> = numbers.iter().flat_map(|&n| test.rows(1, 1000 + n)).collect();
            let rows = HiddenRows::new(&bytes, test.dtype, mine, hidden).unwrap();
            // A row's target and mask follow from its number.
            let targets: Vec<i64> = numbers.iter().map(|n| (n * 7 % vocab as u64) as i64).collect();
            let word = |n: u64, word: u64| (n + 1).wrapping_mul(word + 3).wrapping_mul(0x9e37_79b9) as i32;
            let words = vocab.div_ceil(32) as u64;
            let mask: Vec<i32> = numbers.iter().flat_map(|&n| (0..words).map(move |w| word(n, w))).collect();
            // So do its sampling parameters: greedy, plain, by min_p, by top_p or from a few ids.
            let params = |&n: &u64| SamplingParams {
                seed: n,
                position: 3 * n,
                temperature: if n % 7 == 0 { 0.0 } else { 1.0 },
                top_k: if n % 5 == 0 { 9 } else { 0 },
                top_p: if n % 3 == 0 { 0.8 } else { 1.0 },
                min_p: if n % 4 == 0 { 0.05 } else { 0.0 },
            };
            let sampling: Vec<SamplingParams> = numbers.iter().map(params).collect();
            let asked = match breaker {
                Some(breaker) if breaker == me && !leaves => Request::top_k(21),
                _ => request,
            };
            let inputs = RowInputs {
                sampling: matches!(asked, Request::Sample { .. }).then_some(&sampling[..]),
                targets: matches!(asked, Request::Logprobs { .. }).then_some(&targets[..]),
                adjustments: adjusted.then_some(Adjustments::allowed(&mask)),
                ..RowInputs::default()
            };
            let begin = if adjusted { LmHead::step_adjusted } else { LmHead::step };
            let result: Result<Answer, Error> = match begin(&mut head, announced, &asked) {
                Ok(begun) if breaker == Some(me) && leaves => {
                    drop(begun);
                    Err(Error::Poisoned { cause: "dropped on purpose".into() })
                }
                Ok(begun) => begun.run_with(rows, &inputs),
                Err(error) => Err(error),
            };
            match (result, breaker) {
                (Ok(answer), None) => {
                    assert_eq!(answer.rows(), mine);
                    let mut seen = seen.lock().unwrap();
                    for (row, &number) in numbers.iter().enumerate() {
                        let bits = row_bits(&answer, row);
                        let first = seen
                            .entry((format!("{request} {adjusted}"), number))
                            .or_insert_with(|| bits.clone());
                        assert_eq!(
                            *first, bits,
                            "seed {seed}, step {step}, rank {me} of {size}, row {number}, {request}"
                        );
                    }
                }
                (Err(error), Some(_)) => {
                    assert!(
                        matches!(error, Error::StepMismatch { .. } | Error::Poisoned { .. }),
                        "seed {seed}, step {step}: {error}"
                    );
                    head.rebuild().unwrap();
                }
                (result, breaker) => {
                    panic!("seed {seed}, step {step}, rank {me}, breaker {breaker:?}: {result:?}")
                }
            }
            if step == steps / 2 {
                at_half = resident();
            }
        }
        resident().zip(at_half).map(|(end, middle)| end.saturating_sub(middle))
    });
    grown.into_iter().flatten().max()
}

/// Heads of two names, two of each, on one exchange; on every rank each head is stepped by a thread of its
/// own, with faults and rebuilds among the steps.
#[test]
fn heads_on_threads_share_one_exchange() {
    const RANKS: usize = 3;
    const STEPS: u64 = 1500;
    println!("seed {SEED}");
    let tests: Vec<TestHead> =
        (0..4).map(|i| TestHead::random(300, 24, DType::Bf16, Quantization::None, SEED + i)).collect();
    let began = Instant::now();
    each_rank(RANKS, |me, exchange| {
        let heads: Vec<LmHead> = tests
            .iter()
            .enumerate()
            .map(|(i, test)| {
                let mut config = test.config();
                config.name = ["target", "draft"][i % 2].into();
                head_of(test, &config, RANKS, me, Arc::clone(&exchange)).unwrap()
            })
            .collect();
        std::thread::scope(|scope| {
            for (i, (mut head, test)) in heads.into_iter().zip(&tests).enumerate() {
                scope.spawn(move || {
                    let mut random = Random(SEED ^ i as u64);
                    let mut seen: HashMap<(String, u64), Bits> = HashMap::new();
                    for step in 0..STEPS {
                        let counts: Vec<usize> = (0..RANKS).map(|_| random.below(4)).collect();
                        let request = [Request::argmax(), Request::top_k(5), Request::logits(DType::F32)]
                            [random.below(3)];
                        let breaker = (random.below(40) == 0).then(|| random.below(RANKS));
                        let first_row = random.next() % 16;
                        let numbers: Vec<u64> = (0..counts[me] as u64)
                            .map(|row| (first_row + 5 * me as u64 + row) % 16)
                            .collect();
                        let bytes: Vec<u8> = numbers.iter().flat_map(|&n| test.rows(1, 1000 + n)).collect();
                        let rows = HiddenRows::new(&bytes, test.dtype, counts[me], test.hidden).unwrap();
                        let begun = match breaker == Some(me) {
                            // Refused by this rank alone.
                            true => head.step(RowCounts::capacity(1, 2), &request),
                            false => head.step(RowCounts::exact(&counts), &request),
                        };
                        let result = begun.and_then(|begun| begun.run(rows));
                        if breaker.is_some() {
                            let error = result.unwrap_err();
                            let own = breaker == Some(me) && error.is_bad_input();
                            assert!(
                                own || matches!(error, Error::StepMismatch { .. }),
                                "head {i}, step {step}: {error}"
                            );
                            head.rebuild().unwrap();
                            continue;
                        }
                        let answer = result.unwrap_or_else(|error| panic!("head {i}, step {step}: {error}"));
                        for (row, &number) in numbers.iter().enumerate() {
                            let bits = row_bits(&answer, row);
                            let first =
                                seen.entry((request.to_string(), number)).or_insert_with(|| bits.clone());
                            assert_eq!(*first, bits, "head {i}, step {step}, rank {me}, {request}");
                        }
                    }
                });
            }
        });
    });
    assert!(began.elapsed() < Duration::from_secs(300), "took {:?}", began.elapsed());
}

/// In a process of its own, because other tests of this file allocate and free memory meanwhile.
#[test]
fn thousands_of_random_steps_neither_hang_nor_grow() {
    const ALONE: &str = "LMHEAD_SOAK_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "thousands_of_random_steps_neither_hang_nor_grow", "--nocapture"]);
        let out = alone.env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        return;
    }
    println!("seed {SEED}");
    let test = TestHead::random(500, 24, DType::Bf16, Quantization::None, SEED);
    let began = Instant::now();
    let grown = group_of(4, &test, 20_000, SEED, &Seen::default());
    assert!(began.elapsed() < Duration::from_secs(300), "took {:?}", began.elapsed());
    // By the middle every buffer has had its largest size.
    if let Some(grown) = grown {
        assert!(grown < NOISE, "resident memory grew by {grown} bytes in the second half");
    }
}

/// Steps of a group before it is replaced by another.
const STEPS: u64 = 400;

/// Groups of all sizes and types come and go, with their threads, exchanges, heads and buffers.
#[test]
#[ignore = "for as long as LMHEAD_SOAK_SECONDS says (120 by default): run it with --ignored"]
fn groups_come_and_go_for_as_long_as_asked() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: wanted a whole number, got `{text}`")),
        Err(_) => default,
    };
    let time = Duration::from_secs(number("LMHEAD_SOAK_SECONDS", 120));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("LMHEAD_SOAK_SEED", now.as_secs());
    println!("seed {seed}, for {time:?}; {STEPS} steps a group");
    let types = [
        (DType::Bf16, Quantization::None),
        (DType::F32, Quantization::None),
        (DType::F16, Quantization::None),
        (DType::Bf16, Quantization::W8a8),
        (DType::Bf16, Quantization::W8a16),
    ];
    let (began, mut told) = (Instant::now(), Instant::now());
    // (seconds, resident bytes) after each head with all its groups has gone.
    let mut curve: Vec<(f64, u64)> = Vec::new();
    let (mut heads, mut steps) = (0, 0);
    while began.elapsed() < time {
        let mut random = Random(seed.wrapping_add(heads));
        let (dtype, quantization) = types[heads as usize % types.len()];
        let vocab = 100 + random.below(500);
        let test = TestHead::random(vocab, 24, dtype, quantization, random.next());
        // One head over two groups: the second must repeat the bits of the first.
        let (seen, seed) = (Seen::default(), random.next());
        for size in [1 + random.below(2), 3 + random.below(3)] {
            group_of(size, &test, STEPS, seed, &seen);
            steps += STEPS;
        }
        heads += 1;
        drop((test, seen));
        let Some(bytes) = resident() else { continue };
        curve.push((began.elapsed().as_secs_f64(), bytes));
        if told.elapsed() > time / 20 || began.elapsed() >= time {
            told = Instant::now();
            let (seconds, mb) = (began.elapsed().as_secs_f64(), bytes as f64 / 1e6);
            println!("{seconds:7.1} s  {heads:5} heads  {steps:9} steps  resident {mb:.1} MB");
        }
    }
    // In the first quarter every type, size and buffer has occurred at least twice.
    let warm = curve.len() / 4;
    if resident().is_none() {
        println!("this system does not tell of resident memory: growth was not judged");
        return;
    }
    assert!(
        warm >= 2 * types.len(),
        "only {heads} heads in {time:?}, too few to judge growth by: wanted {}; give it more seconds",
        8 * types.len()
    );
    let peak = |part: &[(f64, u64)]| part.iter().map(|(_, bytes)| *bytes).max().unwrap();
    let (before, after) = (peak(&curve[..warm]), peak(&curve[warm..]));
    let grown = after.saturating_sub(before);
    println!("largest until {:.0} s: {before} bytes; after: {after}, {grown} more", curve[warm].0);
    assert!(grown < NOISE, "seed {seed}: resident memory grew by {grown} bytes after the warm-up: {curve:?}");
}

/// The same steps over every transport whose ranks run on this machine without a GPU.
#[cfg(target_os = "linux")]
mod transports {
    use super::mpi_ranks::join_mpi;
    use lmhead::config::Quantization;
    use lmhead::dtype::DType;
    use lmhead::exchange::Exchange;
    use lmhead::head::LmHead;
    use lmhead::result::Request;
    use lmhead::rows::{HiddenRows, RowCounts};
    use lmhead_testkit::processes::{self, Launcher, Rank, Scenarios, on_processes};
    use lmhead_testkit::soak::{self, InHostMemory, SIZES, SoakPlan, Summary};
    use lmhead_testkit::{TestHead, backend, each_rank_over, engine, head_of, local_group, row_bits};
    use serde_json::{Value, json};
    use std::sync::{Arc, Barrier};
    use std::time::{Duration, Instant};

    /// Steps of each transport by default: a few seconds.
    const SHARED_STEPS: u64 = 800;

    fn soak_rank(rank: &Rank) -> Summary {
        let plan = SoakPlan::share(SHARED_STEPS, rank.size);
        soak::rank((rank.me, rank.size), &rank.exchange, &backend(), &InHostMemory, &plan)
    }

    const SCENARIOS: &Scenarios = &[
        ("soak", |rank| soak_rank(&rank).to_json()),
        ("a thousand rebuildings", |rank| rebuildings((rank.me, rank.size), &rank.exchange)),
        // Ranks as threads, in a process with nothing else in it.
        ("a thousand rebuildings over local", |_| rebuildings_of_threads(local_group(RANKS))),
        ("a thousand rebuildings over callbacks", |_| rebuildings_of_threads(engine::group(RANKS))),
    ];

    /// Returns at once, unless another test has started this program as one of its ranks.
    #[test]
    fn a_rank_of_another_test() {
        processes::enter(SCENARIOS, join_mpi);
    }

    /// Groups of all sizes whose ranks are threads.
    fn soak_threads(transport: &str, connect: impl Fn(usize) -> Vec<Arc<dyn Exchange>>) {
        let began = Instant::now();
        let groups = SIZES.map(|size| {
            let plan = SoakPlan::share(SHARED_STEPS, size);
            each_rank_over(connect(size), |me, exchange| {
                soak::rank((me, size), &exchange, &backend(), &InHostMemory, &plan)
            })
        });
        soak::sum_up(transport, &groups, began);
    }

    /// Groups of all sizes whose ranks are processes.
    fn soak_processes(transport: &str, launcher: Launcher) {
        let began = Instant::now();
        let groups = SIZES.map(|size| {
            let answers = on_processes(
                launcher,
                "transports::a_rank_of_another_test",
                "soak",
                size,
                Duration::from_secs(115),
            );
            let summary = |(rank, answer): (usize, Option<Value>)| match answer {
                Some(value) => Summary::from_json(&value),
                None => panic!("rank {rank} of {size} left no summary"),
            };
            answers.into_iter().enumerate().map(summary).collect::<Vec<_>>()
        });
        soak::sum_up(transport, &groups, began);
    }

    #[test]
    fn over_local() {
        soak_threads("local", local_group);
    }

    #[test]
    fn over_callbacks() {
        soak_threads("callbacks", engine::group);
    }

    #[test]
    fn over_processes() {
        soak_processes("processes", Launcher::Test);
    }

    #[cfg(feature = "mpi")]
    #[test]
    fn over_mpi() {
        soak_processes("mpi", Launcher::Mpirun);
    }

    const RANKS: usize = 3;
    const ROUNDS: usize = 1000;

    /// `VmRSS` in kB, `Threads` and open files of this process.
    fn resources() -> [u64; 3] {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches("kB").trim().parse().expect("a number")
        };
        let files = std::fs::read_dir("/proc/self/fd").expect("files").count() as u64;
        [number("VmRSS:"), number("Threads:"), files]
    }

    /// Rounds with faults of three kinds, each followed by a rebuild, and a head that is made and dropped.
    /// Returns what this process has gained between the first fifth of the rounds and the end.
    fn rebuildings((me, size): (usize, usize), exchange: &Arc<dyn Exchange>) -> Value {
        let test = TestHead::random(200, 16, DType::F32, Quantization::None, 3);
        let step = |head: &mut LmHead| {
            let bytes = test.rows(2, 7);
            let hidden = HiddenRows::new(&bytes, DType::F32, 2, 16).expect("rows");
            head.step(RowCounts::exact(&vec![2; size]), &Request::argmax())?.run(hidden)
        };
        let make = || head_of(&test, &test.config(), size, me, Arc::clone(exchange)).expect("a head");
        let mut lasting = make();
        let want = step(&mut lasting).expect("a good step");
        let mut before = None;
        for round in 0..ROUNDS {
            if round == ROUNDS / 5 {
                before = Some(resources());
            }
            match (round % 3, round % size == me) {
                (0, true) => drop(lasting.step(RowCounts::exact(&vec![2; size]), &Request::argmax())),
                (1, true) => drop(lasting.step(RowCounts::capacity(1, 2), &Request::argmax())),
                (2, true) => lasting.abort_handle().abort("the round says so"),
                _ => assert!(step(&mut lasting).is_err(), "round {round}, rank {me}"),
            }
            lasting.rebuild().unwrap_or_else(|error| panic!("round {round}, rank {me}: {error}"));
            let again =
                step(&mut lasting).unwrap_or_else(|error| panic!("round {round}, rank {me}: {error}"));
            assert_eq!(row_bits(&again, 1), row_bits(&want, 1));
            step(&mut make()).expect("a good step");
        }
        let (before, after) = (before.expect("enough rounds"), resources());
        json!([0, 1, 2].map(|i| after[i].saturating_sub(before[i])))
    }

    fn rebuildings_of_threads(exchanges: Vec<Arc<dyn Exchange>>) -> Value {
        let end = Barrier::new(RANKS);
        // The other threads are still there when the first one measures.
        let grown = each_rank_over(exchanges, |me, exchange| {
            let grown = rebuildings((me, RANKS), &exchange);
            end.wait();
            grown
        });
        grown.into_iter().next().expect("ranks")
    }

    /// Allowed growth of memory, for what the allocator keeps of changing block sizes. A round that kept 1 kB
    /// would add 800 kB, and one that kept a head or a thread far more.
    const MOST_KB: u64 = 4 << 10;

    fn assert_no_growth(transport: &str, launcher: Launcher, scenario: &str, size: usize) {
        let within = Duration::from_secs(115);
        let answers = on_processes(launcher, "transports::a_rank_of_another_test", scenario, size, within);
        for (rank, answer) in answers.into_iter().enumerate() {
            let answer = answer.unwrap_or_else(|| panic!("{transport}: rank {rank} left no answer"));
            let [kb, threads, files] = [0, 1, 2].map(|i| answer[i].as_u64().expect("a number"));
            println!(
                "{ROUNDS} rebuildings over {transport}, process {rank}: {kb} kB, {threads} threads and {files} \
                 files more than after a fifth"
            );
            // Ranks as threads measure while others have files of /proc open.
            assert!(kb < MOST_KB && threads == 0 && files < 10, "{transport}, process {rank}: {answer}");
        }
    }

    /// Over MPI: `tests/mpi.rs`; over NCCL: `crates/gpu/tests/cuda_driver/nccl/faults.rs`.
    #[test]
    fn a_thousand_rebuildings_leave_nothing_behind() {
        for transport in ["local", "callbacks"] {
            let scenario = format!("a thousand rebuildings over {transport}");
            assert_no_growth(transport, Launcher::Test, &scenario, 1);
        }
        assert_no_growth("processes", Launcher::Test, "a thousand rebuildings", RANKS);
    }
}
