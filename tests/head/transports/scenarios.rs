//! The scenarios of the table, by row. Each rank returns how its calls ended.

use crate::contract::{step, test_head};
use lmhead::backend::Backend;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, Operation, Place};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Answer, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::hooked::hooked;
use lmhead_testkit::processes::{Rank, Scenarios, outcome};
use lmhead_testkit::wrong::{Moment, Wrong, WrongExchange};
use lmhead_testkit::{Random, TestHead, head_of, row_bits};
use serde_json::{Value, json};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

pub const SIZE: usize = 3;
pub const ROWS: usize = 2;

/// A deadline in ms that no row may reach, and one that rows do wait for.
pub const LONG_MS: u64 = 60_000;
pub const SHORT_MS: u64 = 500;

/// The code for a call that panicked; no error has it.
pub const PANIC: i64 = -1;

/// How long a rank that panicked keeps its head, in ms.
pub const LINGERS_MS: u64 = 4000;

/// The limit for "at once" on a busy machine with two cores, in ms.
pub const AT_ONCE_MS: f64 = 10_000.0;

pub const SCENARIOS: &Scenarios = &[
    ("good steps", good_steps),
    ("another request", |rank| broken(rank, LONG_MS, |head| step(head, exact(), Request::top_k(2), ROWS))),
    ("another mode", |rank| {
        broken(rank, LONG_MS, |head| step(head, RowCounts::discover(ROWS), Request::argmax(), ROWS))
    }),
    ("other counts", |rank| {
        broken(rank, LONG_MS, |head| step(head, RowCounts::exact(&[ROWS, 5, ROWS]), Request::argmax(), 5))
    }),
    ("a dropped step", |rank| {
        broken(rank, LONG_MS, |head| {
            drop(head.step(exact(), &Request::argmax())?);
            good_step(head)
        })
    }),
    ("rows that do not fit", |rank| {
        broken(rank, LONG_MS, |head| step(head, exact(), Request::argmax(), ROWS + 1))
    }),
    ("a panic in a step", |rank| {
        broken(rank, LONG_MS, |head| {
            let panic = catch_unwind(AssertUnwindSafe(|| {
                let _step = head.step(exact(), &Request::argmax()).unwrap();
                std::panic::resume_unwind(Box::new("an engine's bug"));
            }));
            assert!(panic.is_err());
            good_step(head)
        })
    }),
    ("a skipped call", |rank| {
        broken(rank, SHORT_MS, |head| {
            thread::sleep(Duration::from_millis(3 * SHORT_MS));
            good_step(head)
        })
    }),
    ("two heads of one name, swapped", swapped_heads),
    ("a shard of another checkpoint", a_shard_of_another_checkpoint),
    ("other weights_version", |rank| {
        broken(rank, LONG_MS, |head| {
            head.set_weights_version(1);
            let result = good_step(head);
            // After the rebuild all have the same weights version again.
            head.set_weights_version(0);
            result
        })
    }),
    ("other rows of a tensor-parallel rank", other_rows_of_a_tp_rank),
    ("a refusal of its own data", |rank| {
        broken(rank, LONG_MS, |head| step(head, RowCounts::capacity(4, 5), Request::argmax(), 5))
    }),
    ("heads on two threads", heads_on_two_threads),
    ("a slow transport", a_slow_transport),
    ("another mode without rows", another_mode_without_rows),
    ("a group larger than its exchange", a_larger_group),
    ("a panic in the header round", |rank| panicking(rank, Wrong::PanicIn(Operation::Contract))),
    ("a panic in the gather", |rank| panicking(rank, Wrong::PanicIn(Operation::GatherRows))),
    ("a panic in the making", |rank| panicking(rank, Wrong::PanicIn(Operation::Create))),
    ("a panic in the notice of a panic", |rank| panicking(rank, Wrong::PanicInAbort(Operation::Contract))),
    ("a panic in load", a_panic_in_load),
    ("killed before the headers", |rank| killed(rank, Moment::Before, Operation::Contract)),
    ("killed inside the headers", |rank| killed(rank, Moment::Inside, Operation::Contract)),
    ("killed after the gather", |rank| killed(rank, Moment::After, Operation::GatherRows)),
    ("killed inside the exchange", |rank| killed(rank, Moment::Inside, Operation::ExchangeResults)),
    ("killed after the exchange", |rank| killed(rank, Moment::After, Operation::ExchangeResults)),
    ("pieces in another order", pieces_in_another_order),
    ("random steps and faults", random_steps),
    ("a rank that goes", a_rank_that_goes),
    ("steps for ever", steps_for_ever),
    ("a stopped rank comes back", a_stopped_rank_comes_back),
];

pub fn config(timeout_ms: u64) -> HeadConfig {
    HeadConfig { timeout: Duration::from_millis(timeout_ms), ..test_head().config() }
}

pub fn exact() -> RowCounts {
    RowCounts::exact(&[ROWS; SIZE])
}

pub fn good_step(head: &mut LmHead) -> Result<Answer> {
    step(head, exact(), Request::argmax(), ROWS)
}

pub fn head(rank: &Rank, config: &HeadConfig) -> LmHead {
    head_of(&test_head(), config, rank.size, rank.me, Arc::clone(&rank.exchange)).expect("a head")
}

/// Rows of an answer and a hash of their bits.
pub fn bits(answer: &Answer) -> Value {
    let rows: Vec<_> = (0..answer.rows()).map(|row| row_bits(answer, row)).collect();
    let mut hasher = std::hash::DefaultHasher::new();
    rows.hash(&mut hasher);
    json!([rows.len(), hasher.finish()])
}

/// A good step of all; then rank 1 breaks the contract while the others make a good step. Every rank must get
/// an error, refuse the next step, and answer as before once the head is rebuilt.
fn broken(rank: Rank, timeout_ms: u64, break_it: impl Fn(&mut LmHead) -> Result<Answer>) -> Value {
    let mut head = head(&rank, &config(timeout_ms));
    let want = good_step(&mut head).expect("a good step");
    let began = Instant::now();
    let result = if rank.me == 1 { break_it(&mut head) } else { good_step(&mut head) };
    // Some breaches show only in the next step on the rank that made them.
    let result = result.and_then(|_| good_step(&mut head));
    let ended = outcome(began, &result);
    let refused = good_step(&mut head);
    assert!(matches!(refused, Err(Error::Poisoned { .. })), "after {ended}: {refused:?}");
    // The rebuild brings the group together, however long the deadline of a step was.
    let mut attempts = 1;
    while let Err(error) = head.rebuild() {
        attempts += 1;
        assert!(attempts < 20, "after {ended}: {error}");
    }
    let again = good_step(&mut head).expect("a step after the rebuilding");
    assert_eq!(bits(&again), bits(&want), "after {ended}");
    ended
}

/// Every request and mode with uneven and idle ranks.
fn good_steps(rank: Rank) -> Value {
    let test = TestHead::random(500, 24, DType::Bf16, Quantization::None, 11);
    let config = HeadConfig { timeout: Duration::from_millis(LONG_MS), ..test.config() };
    let mut head = head_of(&test, &config, rank.size, rank.me, Arc::clone(&rank.exchange)).expect("a head");
    let mut all = Vec::new();
    for (round, request) in [
        Request::argmax(),
        Request::logits(DType::F32),
        Request::top_k(7),
        Request::logprobs(2),
        Request::sample(),
    ]
    .into_iter()
    .enumerate()
    {
        let counts: Vec<usize> = (0..rank.size).map(|m| (m + round) % 3 * 2).collect();
        let mine = counts[rank.me];
        let bytes = test.rows(mine, 31 * rank.me as u64 + round as u64);
        let hidden = HiddenRows::new(&bytes, test.dtype, mine, test.hidden).expect("rows");
        let params = SamplingParams { top_p: 0.7, seed: 5, ..SamplingParams::default() };
        let (targets, sampling) = (vec![99; mine], vec![params; mine]);
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            ..RowInputs::default()
        };
        for counts in [RowCounts::exact(&counts), RowCounts::discover(mine), RowCounts::capacity(5, mine)] {
            let answer = head.step(counts, &request).and_then(|step| step.run_with(hidden, &inputs));
            all.push(bits(&answer.expect("an answer")));
        }
    }
    json!(all)
}

/// Two heads of one name, as two model parts without names have; rank 1 steps them in the other order. Each
/// rank waits in another channel, and no head receives the other's messages.
fn swapped_heads(rank: Rank) -> Value {
    let mut heads = [head(&rank, &config(SHORT_MS)), head(&rank, &config(SHORT_MS))];
    for head in &mut heads {
        good_step(head).expect("a good step");
    }
    if rank.me == 1 {
        heads.reverse();
    }
    let began = Instant::now();
    let [first, second] = &mut heads;
    let result = good_step(first).and_then(|_| good_step(second));
    let ended = outcome(began, &result);
    // A rank that has given up must not leave before the others' deadline.
    thread::sleep(Duration::from_millis(SHORT_MS));
    ended
}

/// Shards of one shape from two checkpoints with different fingerprints.
fn a_shard_of_another_checkpoint(rank: Rank) -> Value {
    let (test, group) = (test_head(), HeadGroup::data_parallel(rank.size, rank.me).expect("a group"));
    let shard = Arc::try_unwrap(test.shard(group.shard(test.vocab, rank.me))).expect("nobody else has it");
    let shard = Arc::new(shard.with_fingerprint(if rank.me == 1 { 0xb } else { 0xa }));
    let began = Instant::now();
    let exchange = Arc::clone(&rank.exchange);
    outcome(began, &LmHead::new(&config(LONG_MS), group, shard, exchange, lmhead_testkit::backend()))
}

/// Two replicas of two tensor-parallel ranks; the last rank brings other rows than its replica.
fn other_rows_of_a_tp_rank(rank: Rank) -> Value {
    let (test, config) = (test_head(), config(LONG_MS));
    let group = HeadGroup::from_ranks((0..rank.size).collect(), rank.me, 2).expect("a group");
    let shard = test.shard(group.shard(test.vocab, rank.me));
    let exchange = Arc::clone(&rank.exchange);
    let mut head = LmHead::new(&config, group, shard, exchange, lmhead_testkit::backend()).expect("a head");
    let mut run = |seed: u64| {
        let bytes = test.rows(ROWS, seed);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16)?;
        head.step(RowCounts::exact(&[ROWS; 2]), &Request::logits(DType::F32))?.run(hidden)
    };
    let replica = rank.me as u64 / 2;
    run(replica).expect("a good step");
    let began = Instant::now();
    outcome(began, &run(if rank.me == 3 { 99 } else { replica }))
}

/// Two heads of one transport, each stepped by a thread of its own, at different speeds.
fn heads_on_two_threads(rank: Rank) -> Value {
    let name = |name: &str| HeadConfig { name: name.into(), ..config(LONG_MS) };
    let heads = [head(&rank, &name("target")), head(&rank, &name("draft"))];
    let began = Instant::now();
    let result: Result<Vec<_>> = thread::scope(|scope| {
        let threads = heads.into_iter().zip([1, 3]).map(|(mut head, rows)| {
            scope.spawn(move || -> Result<Answer> {
                let counts = || RowCounts::exact(&[rows; SIZE]);
                let want = step(&mut head, counts(), Request::argmax(), rows)?;
                for _ in 0..100 {
                    let got = step(&mut head, counts(), Request::argmax(), rows)?;
                    assert_eq!(bits(&got), bits(&want));
                }
                Ok(want)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    outcome(began, &result)
}

/// Every operation of rank 1 begins late, but within a timeout of its own: the 13 operations of a step share
/// one deadline.
fn a_slow_transport(rank: Rank) -> Value {
    let (exchange, slow) = WrongExchange::later(Arc::clone(&rank.exchange), Wrong::Slow(SHORT_MS * 2 / 5));
    let config = config(SHORT_MS);
    let mut head = head_of(&test_head(), &config, rank.size, rank.me, Arc::new(exchange)).expect("a head");
    slow.store(rank.me == 1, Ordering::SeqCst);
    let params = SamplingParams { top_p: 0.5, ..SamplingParams::default() };
    let bytes = test_head().rows(ROWS, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16).expect("rows");
    let inputs = RowInputs { sampling: Some(&[params; ROWS]), ..RowInputs::default() };
    let began = Instant::now();
    outcome(began, &head.step(exact(), &Request::sample()).and_then(|step| step.run_with(hidden, &inputs)))
}

/// No rank has rows, so that the messages of both modes are short.
fn another_mode_without_rows(rank: Rank) -> Value {
    let mut head = head(&rank, &config(LONG_MS));
    let counts = if rank.me == 1 { RowCounts::capacity(4, 0) } else { RowCounts::exact(&[0; SIZE]) };
    let began = Instant::now();
    outcome(began, &step(&mut head, counts, Request::argmax(), 0))
}

/// A group of one rank more than the exchange connects.
fn a_larger_group(rank: Rank) -> Value {
    let began = Instant::now();
    let exchange = Arc::clone(&rank.exchange);
    outcome(began, &head_of(&test_head(), &config(LONG_MS), rank.size + 1, rank.me, exchange))
}

/// Runs a call that may panic; -1 is the code of a panic.
fn caught<T>(began: Instant, call: impl FnOnce() -> Result<T>) -> Value {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => outcome(began, &result),
        Err(_) => json!({ "code": PANIC, "text": "a panic", "ms": began.elapsed().as_micros() as f64 / 1e3 }),
    }
}

/// The transport of rank 1 panics somewhere, and the engine catches that.
fn panicking(rank: Rank, wrong: Wrong) -> Value {
    let Rank { me, size, exchange, .. } = rank;
    let exchange: Arc<dyn Exchange> = match me {
        1 => Arc::new(WrongExchange::new(exchange, wrong)),
        _ => exchange,
    };
    let began = Instant::now();
    caught(began, || {
        let mut head = head_of(&test_head(), &config(LONG_MS), size, me, exchange)?;
        let result = catch_unwind(AssertUnwindSafe(|| good_step(&mut head)));
        assert!(head.poisoned().is_some(), "whatever ended the step");
        if result.is_err() {
            // The head lives on: the others learn of the panic from its notice, not from its drop.
            thread::sleep(Duration::from_millis(LINGERS_MS));
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until all members have ended that step, because a process that is killed takes unsent messages with
/// it.
pub fn await_end_of(step: u64, exchange: &dyn Exchange) {
    let ended = |place: &Place| place.step > step || (place.step, place.operation) == (step, Operation::Idle);
    while !exchange.places().iter().all(|place| place.as_ref().is_some_and(ended)) {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Rank 1 is killed in a step; rank 0 is a little late in every operation. The time is that of the failing
/// step, this one or the next.
fn killed(rank: Rank, moment: Moment, operation: Operation) -> Value {
    let Rank { me, size, exchange, .. } = rank;
    let wrong = if me == 1 { Wrong::Kill(moment, operation) } else { Wrong::Slow(SHORT_MS / 5) };
    let (first, config) = (Arc::clone(&exchange), config(2 * SHORT_MS));
    let (exchange, on) = WrongExchange::later(exchange, wrong);
    let mut head = head_of(&test_head(), &config, size, me, Arc::new(exchange)).expect("a head");
    good_step(&mut head).expect("a good step");
    await_end_of(0, &*first);
    on.store(me < 2, Ordering::SeqCst);
    loop {
        let began = Instant::now();
        let result = good_step(&mut head);
        if result.is_err() {
            return outcome(began, &result);
        }
    }
}

/// The transport of rank 1 delivers another member's bytes.
fn pieces_in_another_order(rank: Rank) -> Value {
    let Rank { me, size, exchange, .. } = rank;
    let exchange: Arc<dyn Exchange> = match me {
        1 => Arc::new(WrongExchange::new(exchange, Wrong::PieceOrder)),
        _ => exchange,
    };
    let began = Instant::now();
    outcome(began, &head_of(&test_head(), &config(LONG_MS), size, me, exchange))
}

/// The backend of rank 1 panics while the head is made.
fn a_panic_in_load(rank: Rank) -> Value {
    let (test, group) = (test_head(), HeadGroup::data_parallel(rank.size, rank.me).expect("a group"));
    let backend: Arc<dyn Backend> = match rank.me {
        1 => hooked(lmhead_testkit::backend(), |asked| {
            if asked.method == "load" {
                std::panic::resume_unwind(Box::new("a backend's bug"));
            }
        }),
        _ => lmhead_testkit::backend(),
    };
    let shard = test.shard(group.shard(test.vocab, rank.me));
    let began = Instant::now();
    let exchange = Arc::clone(&rank.exchange);
    caught(began, || LmHead::new(&config(LONG_MS), group, shard, exchange, backend))
}

/// Random steps, about every third broken by a random rank and followed by a rebuild.
fn random_steps(rank: Rank) -> Value {
    // LMHEAD_SOAK_STEPS sets the number of steps.
    let steps = std::env::var("LMHEAD_SOAK_STEPS").map_or(300, |n| n.parse().expect("a number of steps"));
    let test = test_head();
    let mut head =
        head_of(&test, &config(LONG_MS), rank.size, rank.me, Arc::clone(&rank.exchange)).expect("a head");
    // The same choices on every rank.
    let mut random = Random(20_261_128);
    let mut all = Vec::new();
    for step in 0..steps {
        let counts: Vec<usize> = (0..rank.size).map(|_| random.below(4) * random.below(3)).collect();
        let request = [Request::argmax(), Request::top_k(3), Request::sample()][random.below(3)];
        let (mode, breaker, how) = (random.below(3), random.below(rank.size), random.below(4));
        let broken = random.below(3) == 0;
        let (mine, breaks) = (counts[rank.me], broken && breaker == rank.me);
        let announced = match mode {
            0 => RowCounts::exact(&counts),
            1 => RowCounts::capacity(6, mine),
            _ => RowCounts::discover(mine),
        };
        let bytes = test.rows(mine + usize::from(breaks && how == 2), step as u64 ^ (rank.me as u64) << 32);
        let rows = bytes.len() / 64;
        let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16).expect("rows");
        let sampling = vec![SamplingParams { top_p: 0.9, ..SamplingParams::default() }; rows];
        let asked = if breaks && how == 0 { Request::top_k(9) } else { request };
        let inputs = RowInputs {
            sampling: matches!(asked, Request::Sample { .. }).then_some(&sampling[..]),
            ..RowInputs::default()
        };
        let result = match head.step(announced, &asked) {
            Ok(begun) if breaks && how == 1 => {
                drop(begun);
                Err(Error::Poisoned { cause: "dropped on purpose".into() })
            }
            Ok(begun) if breaks && how == 3 => {
                let panic = catch_unwind(AssertUnwindSafe(move || {
                    let _begun = begun;
                    std::panic::resume_unwind(Box::new("an engine's bug"));
                }));
                assert!(panic.is_err());
                Err(Error::Poisoned { cause: "panicked on purpose".into() })
            }
            Ok(begun) => begun.run_with(hidden, &inputs),
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) if !broken => all.push(bits(&answer)),
            Err(_) if broken => head.rebuild().unwrap_or_else(|error| panic!("step {step}: {error}")),
            result => panic!("step {step}, broken by {broken} {breaker} in way {how}: {result:?}"),
        }
    }
    json!(all)
}

/// Rank 1 ends after a good step, with all its objects.
fn a_rank_that_goes(rank: Rank) -> Value {
    let mut head = head(&rank, &config(LONG_MS));
    good_step(&mut head).expect("a good step");
    let began = Instant::now();
    match rank.me {
        1 => json!(null),
        _ => outcome(began, &good_step(&mut head)),
    }
}

/// Rank 1 pauses between steps, so that a signal is unlikely to come between two of its messages.
fn pause(rank: &Rank) {
    if rank.me == 1 {
        thread::sleep(Duration::from_millis(30));
    }
}

/// Steps until one fails. The time is that of the last step.
fn steps_for_ever(rank: Rank) -> Value {
    let mut head = head(&rank, &config(2 * SHORT_MS));
    good_step(&mut head).expect("a good step");
    rank.mark("steps");
    loop {
        pause(&rank);
        let began = Instant::now();
        let result = good_step(&mut head);
        if result.is_err() {
            rank.mark("failed");
            return outcome(began, &result);
        }
    }
}

/// As `steps_for_ever`, then the group is rebuilt with all its ranks.
fn a_stopped_rank_comes_back(rank: Rank) -> Value {
    let mut head = head(&rank, &config(2 * SHORT_MS));
    let want = good_step(&mut head).expect("a good step");
    rank.mark("steps");
    let (began, error) = loop {
        pause(&rank);
        let began = Instant::now();
        if let Err(error) = good_step(&mut head) {
            break (began, error);
        }
    };
    let ended = outcome::<()>(began, &Err(error));
    rank.mark("failed");
    let mut attempts = 1;
    while let Err(error) = head.rebuild() {
        attempts += 1;
        assert!(attempts < 50, "after {ended}: {error}");
    }
    assert_eq!(bits(&good_step(&mut head).expect("a step")), bits(&want));
    ended
}
