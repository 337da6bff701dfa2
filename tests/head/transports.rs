//! The contract over several transports, as one table: ranks as threads over `local` and over an engine's
//! callbacks, as processes over sockets and, with the feature `mpi`, as processes of an MPI job.
//!
//! Every row is a scenario that each rank runs. It returns how its calls ended, and the time that took; the
//! row's check reads the answers of all ranks. After each fault the head is rebuilt and must answer the same
//! bits as before.

mod device_waits;
mod faults;
mod mpi_ranks;
mod scenarios;

use lmhead_testkit::processes::{
    self, Launcher, Processes, Scenario, on_callbacks, on_processes, on_threads,
};
use mpi_ranks::join_mpi;
use scenarios::{AT_ONCE_MS, LINGERS_MS, LONG_MS, PANIC, SHORT_MS, SIZE};
use serde_json::Value;
use std::time::Duration;

/// The test through which this program starts as a rank.
const ENTRY: &str = "transports::a_rank_of_another_test";

/// Returns at once, unless another test has started this program as one of its ranks.
#[test]
fn a_rank_of_another_test() {
    processes::enter(&scenarios(), join_mpi);
}

/// All scenarios by name.
fn scenarios() -> Vec<(&'static str, Scenario)> {
    [scenarios::SCENARIOS, faults::SCENARIOS, device_waits::SCENARIOS].concat()
}

/// The transports whose ranks are processes, and their launchers.
const LAUNCHERS: &[(&str, Launcher)] = &[
    ("processes", Launcher::Test),
    #[cfg(feature = "mpi")]
    ("mpi", Launcher::Mpirun),
];

/// A row's answers over all transports, with the transport's name. Times are printed.
fn all(name: &str, size: usize) -> Vec<(&'static str, Vec<Option<Value>>)> {
    let mut answers = vec![
        ("local", on_threads(&scenarios(), name, size)),
        ("callbacks", on_callbacks(&scenarios(), name, size)),
    ];
    answers.extend(LAUNCHERS.iter().map(|&(transport, launcher)| {
        (transport, on_processes(launcher, ENTRY, name, size, Duration::from_secs(100)))
    }));
    for (transport, answers) in &answers {
        let ms = answers.iter().map(|answer| answer.as_ref().and_then(|answer| answer["ms"].as_f64()));
        println!("{name}, {transport}: ms to the end on each rank: {:?}", ms.collect::<Vec<_>>());
    }
    answers
}

/// Code and text of a rank's error.
fn error_of(answer: &Option<Value>) -> (i64, String) {
    let answer = answer.as_ref().expect("a rank that did not panic");
    (answer["code"].as_i64().expect("a code"), answer["text"].as_str().expect("a text").into())
}

fn ms_of(answer: &Option<Value>) -> f64 {
    answer.as_ref().and_then(|answer| answer["ms"].as_f64()).expect("a time")
}

/// Codes of [`Error::code`].
const SHAPE: i64 = 2;
const MISMATCH: i64 = 8;
const TIMEOUT: i64 = 9;
const LOST: i64 = 10;
const POISONED: i64 = 11;
const EXCHANGE: i64 = 12;

/// One row: the errors of the other ranks, and the error of the rank at fault.
struct Row {
    name: &'static str,
    others: (i64, &'static str),
    culprit: (i64, &'static str),
    /// Whether the step ends only at the deadline.
    waits: bool,
}

const fn row(name: &'static str, others: (i64, &'static str), culprit: (i64, &'static str)) -> Row {
    Row { name, others, culprit, waits: false }
}

const ROWS_OF_THE_TABLE: &[Row] = &[
    row(
        "another request",
        (MISMATCH, "request: ranks [0, 2] say argmax, ranks [1] say topk:2"),
        (MISMATCH, "request: ranks [0, 2] say argmax, ranks [1] say topk:2"),
    ),
    row(
        "another mode",
        (MISMATCH, "mode: ranks [0, 2] say exact, ranks [1] say discover"),
        (MISMATCH, "mode: ranks [0, 2] say exact, ranks [1] say discover"),
    ),
    row("other counts", (MISMATCH, "its own replica has 5 rows"), (MISMATCH, "ranks [1] say [2, 5, 2]")),
    row(
        "a dropped step",
        (MISMATCH, "aborted: ranks [1] say dropped the step without running it"),
        (POISONED, "this rank dropped the step"),
    ),
    row(
        "rows that do not fit",
        (MISMATCH, "aborted: ranks [1] say hidden_states: wanted 2 rows"),
        (SHAPE, "wanted 2 rows, as announced in step(), got 3 rows"),
    ),
    row(
        "a panic in a step",
        (MISMATCH, "aborted: ranks [1] say its thread panicked in the step"),
        (POISONED, "this rank's thread panicked in the step"),
    ),
    row(
        "other weights_version",
        (MISMATCH, "weights_version: ranks [0, 2] say 0, ranks [1] say 1"),
        (MISMATCH, "weights_version: ranks [0, 2] say 0, ranks [1] say 1"),
    ),
    row(
        "a refusal of its own data",
        (MISMATCH, "aborted: ranks [1] say"),
        (SHAPE, "wanted at most 4 rows, got 5"),
    ),
    Row {
        waits: true,
        ..row(
            "a skipped call",
            (TIMEOUT, "ranks [1] did not come within 500ms"),
            (TIMEOUT, "ranks [1] did not come"),
        )
    },
];

#[test]
fn every_break_is_named_on_every_rank_over_all_transports() {
    for row in ROWS_OF_THE_TABLE {
        for (transport, answers) in all(row.name, SIZE) {
            for (rank, answer) in answers.iter().enumerate() {
                let (code, text) = error_of(answer);
                let want = if rank == 1 { row.culprit } else { row.others };
                let what = format!("{}, {transport}, rank {rank}: {code} {text}", row.name);
                assert!(code == want.0 && text.contains(want.1), "{what}\nwant {want:?}");
            }
            let least = if row.waits { SHORT_MS as f64 - 1.0 } else { 0.0 };
            assert_times(row.name, transport, &answers, (least, AT_ONCE_MS));
        }
    }
}

/// Checks every answer of a row against the codes and words that each rank may get.
fn assert_all(name: &str, size: usize, allowed: impl Fn(usize) -> Vec<(i64, &'static str)>, ms: (f64, f64)) {
    for (transport, answers) in all(name, size) {
        for (rank, answer) in answers.iter().enumerate() {
            let (code, text) = error_of(answer);
            let what = format!("{name}, {transport}, rank {rank}: {code} {text}");
            let allowed = allowed(rank);
            assert!(
                allowed.iter().any(|(own, words)| *own == code && text.contains(words)),
                "{what}\nwant {allowed:?}"
            );
        }
        assert_times(name, transport, &answers, ms);
    }
}

/// No rank may take longer than `most`, and at least one takes `least`: a rank that began later gets its
/// error together with the others.
fn assert_times(name: &str, transport: &str, answers: &[Option<Value>], (least, most): (f64, f64)) {
    let longest = answers.iter().map(ms_of).fold(0.0, f64::max);
    assert!(least <= longest && longest <= most, "{name}, {transport}: {longest} ms");
}

const AT_ONCE: (f64, f64) = (0.0, AT_ONCE_MS);

#[test]
fn two_heads_of_one_name_in_swapped_order_never_mix_and_both_places_are_named() {
    let place = |rank| if rank == 1 { "(instance 0, " } else { "(instance 1, " };
    let waits = (SHORT_MS as f64 - 1.0, AT_ONCE_MS);
    assert_all("two heads of one name, swapped", SIZE, |rank| vec![(TIMEOUT, place(rank))], waits);
}

#[test]
fn a_shard_of_another_checkpoint_is_found_when_the_head_is_made() {
    let words = "weights_fingerprint: ranks [0, 2] say";
    assert_all("a shard of another checkpoint", SIZE, |_| vec![(MISMATCH, words)], AT_ONCE);
}

#[test]
fn other_rows_of_a_tensor_parallel_rank_are_named_on_every_rank() {
    assert_all("other rows of a tensor-parallel rank", 4, |_| vec![(MISMATCH, "replica 1")], AT_ONCE);
}

#[test]
fn heads_of_one_transport_may_be_on_threads_of_their_own() {
    assert_all("heads on two threads", SIZE, |_| vec![(0, "")], (0.0, LONG_MS as f64));
}

/// Regression test: each operation used to have a deadline of its own, and with a timeout of 0.5 s a step
/// took 5.6 s.
#[test]
fn a_step_has_one_deadline_for_all_of_its_operations() {
    let allowed =
        |_| vec![(TIMEOUT, "ranks [1] did not come within 500ms"), (TIMEOUT, "did not come within 500ms")];
    assert_all("a slow transport", SIZE, allowed, (SHORT_MS as f64 * 0.9, SHORT_MS as f64 * 4.0));
}

#[test]
fn another_mode_is_named_where_nobody_has_rows() {
    let words = "mode: ranks [0, 2] say exact, ranks [1] say capacity";
    assert_all("another mode without rows", SIZE, |_| vec![(MISMATCH, words)], AT_ONCE);
}

#[test]
fn a_group_larger_than_its_exchange_is_refused_on_every_rank() {
    assert_all(
        "a group larger than its exchange",
        SIZE,
        |_| vec![(SHAPE, "exchange: wanted member")],
        AT_ONCE,
    );
}

#[test]
fn a_panic_of_transport_or_backend_is_told_to_the_others_at_once() {
    for name in
        ["a panic in the header round", "a panic in the gather", "a panic in the making", "a panic in load"]
    {
        for (transport, answers) in all(name, SIZE) {
            assert_eq!(error_of(&answers[1]).0, PANIC, "{name}, {transport}");
            for rank in [0, 2] {
                let (code, text) = error_of(&answers[rank]);
                // If no head was made, none is left to drop after the panic.
                let made = !name.contains("making") && !name.contains("load");
                let told = code == MISMATCH && text.contains("ranks [1] say its thread panicked");
                let gone = code == LOST && text.contains("ranks [1] have left");
                let what = format!("{name}, {transport}, rank {rank}: {code} {text}");
                assert!(told || (gone && !made), "{what}");
                assert!(
                    ms_of(&answers[rank]) < 0.75 * LINGERS_MS as f64,
                    "{what}: {} ms",
                    ms_of(&answers[rank])
                );
            }
        }
    }
}

/// Regression test: two panics at once ended the process. The others cannot be notified; they see that the
/// rank has gone.
#[test]
fn a_panic_in_the_notice_of_a_panic_is_contained() {
    let allowed = |rank| match rank {
        1 => vec![(PANIC, "")],
        _ => vec![(LOST, "ranks [1] have left")],
    };
    assert_all("a panic in the notice of a panic", SIZE, allowed, AT_ONCE);
}

/// The answers of a scenario are the same over all transports.
fn assert_same_over_all(name: &str, size: usize) {
    let answers = all(name, size);
    let (_, threads) = &answers[0];
    assert!(threads.iter().all(Option::is_some));
    for (transport, others) in &answers {
        assert_eq!(threads, others, "{name}, {transport}");
    }
}

#[test]
fn all_transports_answer_the_same_bits() {
    assert_same_over_all("good steps", 4);
}

/// No breach hangs, whoever makes it and in whatever way; all ranks get the error in the same step, and go on
/// together.
#[test]
fn random_steps_and_faults_answer_the_same_bits_over_all() {
    assert_same_over_all("random steps and faults", 4);
}

#[test]
fn a_rank_that_ends_is_lost_at_once() {
    for (transport, answers) in all("a rank that goes", SIZE) {
        for rank in [0, 2] {
            let (code, text) = error_of(&answers[rank]);
            assert!(
                code == LOST && text.contains("ranks [1] have left"),
                "{transport}, rank {rank}: {code} {text}"
            );
            assert!(ms_of(&answers[rank]) < AT_ONCE_MS, "{transport}");
        }
    }
}

/// Before, inside and after a collective. Sockets close with their process; MPI reports nothing, and the
/// deadline passes.
#[test]
fn a_rank_that_is_killed_around_a_collective_is_named_by_all_others() {
    for name in [
        "killed before the headers",
        "killed inside the headers",
        "killed after the gather",
        "killed inside the exchange",
        "killed after the exchange",
    ] {
        for (transport, launcher) in LAUNCHERS {
            let answers = on_processes(*launcher, ENTRY, name, SIZE, Duration::from_secs(60));
            assert_eq!(answers[1], None, "{name}, {transport}");
            match launcher {
                Launcher::Test => [0, 2].iter().for_each(|&rank| {
                    let (code, text) = error_of(&answers[rank]);
                    let what = format!("{name}, {transport}, rank {rank}: {code} {text}");
                    assert!(code == LOST && text.contains("ranks [1] have left"), "{what}");
                }),
                Launcher::Mpirun => assert_names_the_stopped(&answers, &[0, 2]),
            }
            for rank in [0, 2] {
                let ms = ms_of(&answers[rank]);
                println!("{name}, {transport}: rank {rank} knew after {ms:.1} ms of {}", 2 * SHORT_MS);
                assert!(ms < 2.0 * SHORT_MS as f64 + 1000.0, "{name}, {transport}, rank {rank}: {ms} ms");
            }
        }
    }
}

#[test]
fn a_transport_that_delivers_another_ranks_bytes_is_found_at_creation() {
    let words = "delivered other bytes in all_to_all_v";
    assert_all("pieces in another order", SIZE, |_| vec![(EXCHANGE, words)], AT_ONCE);
}

/// SIGKILL: the sockets close, and no rank waits for the deadline.
#[test]
fn a_killed_process_is_lost_at_once() {
    let mut ranks = Processes::start(Launcher::Test, ENTRY, "steps for ever", SIZE);
    (0..SIZE).for_each(|rank| ranks.wait_for(rank, "steps"));
    ranks.kill(1);
    let answers = ranks.answers(Duration::from_secs(60), None);
    assert_eq!(answers[1], None);
    for rank in [0, 2] {
        let (code, text) = error_of(&answers[rank]);
        assert!(code == LOST && text.contains("ranks [1] have left"), "rank {rank}: {code} {text}");
        let ms = ms_of(&answers[rank]);
        println!("SIGKILL: rank {rank} knew after at most {ms:.1} ms");
        assert!(ms < AT_ONCE_MS, "rank {rank}: {ms} ms");
    }
}

/// Every rank of `ranks` got a timeout, and rank 1 is named. If rank 1 was stopped after its last message had
/// reached only one of the others, that one waits for the other rank, which waits for rank 1 and names it.
fn assert_names_the_stopped(answers: &[Option<Value>], ranks: &[usize]) {
    let errors: Vec<(i64, String)> = ranks.iter().map(|&rank| error_of(&answers[rank])).collect();
    assert!(errors.iter().all(|(code, _)| *code == TIMEOUT), "{errors:?}");
    let names = |text: &str| {
        let named = ["ranks [1] ", "ranks [0, 1] ", "ranks [1, 2] "];
        named.iter().any(|named| text.contains(&format!("{named}did not come within 1s")))
    };
    assert!(errors.iter().any(|(_, text)| names(text)), "{errors:?}");
}

/// A signal that no peer is told of: the deadline passes, and the stopped rank is named.
fn assert_named_at_the_deadline(launcher: Launcher, signal: &str, send: impl Fn(&mut Processes)) {
    let mut ranks = Processes::start(launcher, ENTRY, "steps for ever", SIZE);
    (0..SIZE).for_each(|rank| ranks.wait_for(rank, "steps"));
    send(&mut ranks);
    let answers = ranks.answers(Duration::from_secs(60), Some(1));
    assert_names_the_stopped(&answers, &[0, 2]);
    for rank in [0, 2] {
        let ms = ms_of(&answers[rank]);
        println!("{signal}, {launcher:?}: rank {rank} knew after {ms:.1} ms of {}", 2 * SHORT_MS);
        assert!(ms < 2.0 * SHORT_MS as f64 + 1000.0, "{launcher:?}, rank {rank}: {ms} ms");
    }
}

/// SIGSTOP: no socket closes.
#[test]
fn a_stopped_process_is_named_at_the_deadline() {
    for (_, launcher) in LAUNCHERS {
        assert_named_at_the_deadline(*launcher, "SIGSTOP", |ranks| ranks.stop(1));
    }
}

/// MPI does not report a killed process.
#[cfg(feature = "mpi")]
#[test]
fn a_killed_process_of_an_mpi_job_is_named_at_the_deadline() {
    assert_named_at_the_deadline(Launcher::Mpirun, "SIGKILL", |ranks| ranks.kill(1));
}

/// SIGSTOP and, once the others have given up, SIGCONT: the group is rebuilt with all its ranks.
#[test]
fn a_stopped_process_that_goes_on_is_taken_back() {
    for (_, launcher) in LAUNCHERS {
        let mut ranks = Processes::start(*launcher, ENTRY, "a stopped rank comes back", SIZE);
        (0..SIZE).for_each(|rank| ranks.wait_for(rank, "steps"));
        ranks.stop(1);
        ranks.wait_for(0, "failed");
        ranks.wait_for(2, "failed");
        // Well after its own deadline: it then reads the others' notices before it judges by itself.
        std::thread::sleep(Duration::from_millis(300));
        ranks.go_on(1);
        let answers = ranks.answers(Duration::from_secs(60), None);
        assert_names_the_stopped(&answers, &[0, 1, 2]);
    }
}
