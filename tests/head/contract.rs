//! Every way to break the contract ends in the named error on every rank, well within the deadline, and the head refuses to go on
//! until it is rebuilt.

use lmhead::backend::{Backend, HeadTypes, HeldLogits, Job, LogitsOut, SamplingPass, Tally};
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::merge::{PartialSpec, RowPartial};
use lmhead::result::{Answer, Request, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::HeadShard;
use lmhead_testkit::{TestHead, each_rank, head_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SIZE: usize = 3;
const ROWS: usize = 2;

fn test_head() -> TestHead {
    TestHead::random(200, 16, DType::F32, Quantization::None, 3)
}

fn config(timeout_ms: u64) -> HeadConfig {
    let mut config = test_head().config();
    config.timeout = Duration::from_millis(timeout_ms);
    config
}

fn step(head: &mut LmHead, counts: RowCounts, request: Request, rows: usize) -> Result<Answer> {
    let bytes = test_head().rows(rows, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16)?;
    head.step(counts, &request)?.run(hidden)
}

fn good_step(head: &mut LmHead) -> Result<Answer> {
    step(head, RowCounts::exact(&[ROWS; SIZE]), Request::argmax(), ROWS)
}

/// Runs `break_it` on rank 1 and good steps on the others after one good step of all; returns every rank's error.
fn broken(config: &HeadConfig, break_it: impl Fn(&mut LmHead) -> Result<Answer> + Sync) -> Vec<Error> {
    let began = Instant::now();
    let errors = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), config, SIZE, me, exchange).unwrap();
        good_step(&mut head).unwrap();
        let result = if me == 1 { break_it(&mut head) } else { good_step(&mut head) };
        // Some breaks show one step later on the rank that made them.
        let error = result.and_then(|_| good_step(&mut head)).unwrap_err();
        let refused = good_step(&mut head).unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "rank {me} after {error}: {refused}");
        assert!(head.poisoned().is_some());
        error
    });
    assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
    errors
}

fn assert_mismatch(errors: &[Error], want: &str) {
    for (rank, error) in errors.iter().enumerate() {
        assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
        assert!(error.to_string().contains(want), "rank {rank}: {error}\nwant {want}");
    }
}

#[test]
fn another_request_is_named_on_every_rank() {
    let errors =
        broken(&config(30_000), |head| step(head, RowCounts::exact(&[ROWS; SIZE]), Request::top_k(2), ROWS));
    assert_mismatch(&errors, "request: ranks [0, 2] say argmax, ranks [1] say topk:2");
    assert!(errors.windows(2).all(|pair| pair[0] == pair[1]), "all ranks see the same: {errors:?}");
}

#[test]
fn wrong_counts_are_named_on_every_rank() {
    let errors =
        broken(&config(30_000), |head| step(head, RowCounts::exact(&[ROWS, 5, ROWS]), Request::argmax(), 5));
    assert_mismatch(&errors, "counts: ranks [0, 2] say");
    assert_mismatch(&errors, "ranks [1] say");
    assert!(errors[0].to_string().contains("its own replica has 5 rows"), "{}", errors[0]);
    assert!(errors[1].to_string().contains("ranks [1] say [2, 5, 2]"), "{}", errors[1]);
}

#[test]
fn another_mode_is_named_on_every_rank() {
    let errors =
        broken(&config(30_000), |head| step(head, RowCounts::discover(ROWS), Request::argmax(), ROWS));
    assert_mismatch(&errors, "mode: ranks [0, 2] say exact, ranks [1] say discover");
    // Capacity sends its header with its rows: another operation, of another length.
    let errors =
        broken(&config(30_000), |head| step(head, RowCounts::capacity(4, ROWS), Request::argmax(), ROWS));
    assert_mismatch(&errors, "mode: ranks [0, 2] say exact, ranks [1] say capacity");
}

#[test]
fn capacity_steps_check_their_contract_too() {
    let run = |request: Request, max: usize| {
        each_rank(SIZE, |me, exchange| {
            let mut head = head_of(&test_head(), &config(30_000), SIZE, me, exchange).unwrap();
            let (request, max) = if me == 1 { (request, max) } else { (Request::argmax(), 4) };
            step(&mut head, RowCounts::capacity(max, ROWS), request, ROWS).unwrap_err()
        })
    };
    assert_mismatch(&run(Request::top_k(2), 4), "request: ranks [0, 2] say argmax, ranks [1] say topk:2");
    assert_mismatch(
        &run(Request::argmax(), 5),
        "counts: ranks [0, 2] say a capacity of 4 rows, ranks [1] say a capacity of 5 rows",
    );
}

#[test]
fn a_skipped_call_and_a_late_rank_are_timeouts_that_name_the_rank() {
    // Rank 1 skips its call: it is busy elsewhere until the others have given up.
    let errors = broken(&config(250), |head| {
        thread::sleep(Duration::from_millis(900));
        good_step(head)
    });
    for (rank, error) in errors.iter().enumerate() {
        let Error::Timeout { missing, after, step, .. } = error else { panic!("rank {rank}: {error}") };
        assert_eq!(
            (missing.as_slice(), *after, *step),
            (&[1][..], Duration::from_millis(250), 1),
            "rank {rank}"
        );
    }
    assert!(errors[0].to_string().contains("exchange of step headers: ranks [1] did not come within 250ms"));
}

#[test]
fn a_dropped_step_is_told_to_the_others() {
    let errors = broken(&config(30_000), |head| {
        drop(head.step(RowCounts::exact(&[ROWS; SIZE]), &Request::argmax()).unwrap());
        // The dropping rank itself is poisoned at once.
        let Err(Error::Poisoned { cause }) = good_step(head) else { panic!("not poisoned") };
        Err(Error::Poisoned { cause })
    });
    for rank in [0, 2] {
        assert_mismatch(&errors[rank..=rank], "abandoned: ranks [1] say dropped the step without running it");
    }
    assert!(errors[1].to_string().contains("this rank dropped the step"), "{}", errors[1]);
}

#[test]
fn rows_that_do_not_fit_end_the_step_on_every_rank() {
    let errors = broken(&config(30_000), |head| {
        step(head, RowCounts::exact(&[ROWS; SIZE]), Request::argmax(), ROWS + 1)
    });
    assert!(matches!(errors[1], Error::Shape { .. }), "{}", errors[1]);
    assert!(
        errors[1].to_string().contains("wanted 2 rows, as announced in step(), got 3 rows"),
        "{}",
        errors[1]
    );
    for rank in [0, 2] {
        assert_mismatch(&errors[rank..=rank], "abandoned: ranks [1] say hidden_states: wanted 2 rows");
    }
}

#[test]
fn a_panic_inside_and_outside_of_a_step_is_seen_by_the_others() {
    for inside in [true, false] {
        let errors = each_rank(SIZE, |me, exchange| {
            let mut head = head_of(&test_head(), &config(30_000), SIZE, me, exchange).unwrap();
            good_step(&mut head).unwrap();
            if me == 1 {
                let result = catch_unwind(AssertUnwindSafe(move || {
                    let counts = RowCounts::exact(&[ROWS; SIZE]);
                    let _step = inside.then(|| head.step(counts, &Request::argmax()).unwrap());
                    std::panic::resume_unwind(Box::new("an engine's bug"));
                }));
                assert!(result.is_err());
                return None;
            }
            Some(good_step(&mut head).unwrap_err())
        });
        for error in [&errors[0], &errors[2]] {
            let error = error.as_ref().unwrap();
            if inside {
                assert_mismatch(
                    std::slice::from_ref(error),
                    "abandoned: ranks [1] say its thread panicked in the step",
                );
            } else {
                assert!(matches!(error, Error::RankLost { ranks, .. } if ranks == &[1]), "{error}");
            }
        }
    }
}

#[test]
fn two_heads_in_another_order_are_told_apart_by_name() {
    let errors = each_rank(2, |me, exchange| {
        let (test, mut names) = (test_head(), ["target", "draft"]);
        let mut heads: Vec<LmHead> = names
            .iter()
            .map(|name| {
                let config = HeadConfig { name: (*name).into(), ..config(30_000) };
                head_of(&test, &config, 2, me, Arc::clone(&exchange)).unwrap()
            })
            .collect();
        let both = |head: &mut LmHead| step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS);
        both(&mut heads[0]).unwrap();
        both(&mut heads[1]).unwrap();
        if me == 1 {
            names.reverse();
            heads.reverse();
        }
        (names[0], both(&mut heads[0]).unwrap_err())
    });
    for (rank, (name, error)) in errors.iter().enumerate() {
        let want = format!("head: ranks [{rank}] say `{name}`");
        let other = format!("ranks [{}] say another head", 1 - rank);
        let text = error.to_string();
        assert!(
            text.contains(&other) && text.contains(&format!("ranks [{rank}] say `{name}`")),
            "{text}\n{want}"
        );
    }
}

#[test]
fn unverified_steps_end_in_an_error_too() {
    let unverified = HeadConfig { verify: Verify::WarmUp, ..config(300) };
    // Other counts: the bytes do not fit.
    let errors =
        broken(&unverified, |head| step(head, RowCounts::exact(&[ROWS, 5, ROWS]), Request::argmax(), 5));
    assert_mismatch(&errors[..1], "counts");
    assert_mismatch(&errors[2..], "counts");
    // A rank that does not come.
    let errors = broken(&unverified, |head| {
        thread::sleep(Duration::from_millis(900));
        good_step(head)
    });
    assert!(
        errors.iter().all(|e| matches!(e, Error::Timeout { missing, .. } if missing == &[1])),
        "{errors:?}"
    );
}

#[test]
fn verification_every_n_steps_finds_a_disagreement_at_the_next_such_step() {
    let every = HeadConfig { verify: Verify::Every(4), ..config(30_000) };
    let errors = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &every, 2, me, exchange).unwrap();
        let mut rounds = Vec::new();
        for _ in 0..4 {
            rounds.push(
                step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap().stats.rounds,
            );
        }
        assert_eq!(rounds, [3, 2, 2, 2], "headers only every fourth step");
        let request = if me == 1 { Request::top_k(1) } else { Request::argmax() };
        step(&mut head, RowCounts::exact(&[ROWS; 2]), request, ROWS).unwrap_err()
    });
    assert_mismatch(&errors, "request: ranks [0] say argmax, ranks [1] say topk:1");
}

#[test]
fn creation_names_every_setting_on_which_ranks_differ() {
    let errors = each_rank(SIZE, |me, exchange| {
        let mut config = config(30_000);
        if me == 2 {
            config.logit_scale = 0.5;
            config.verify = Verify::Every(3);
        }
        head_of(&test_head(), &config, SIZE, me, exchange).err().unwrap()
    });
    assert_mismatch(&errors, "logit_scale: ranks [0, 1] say 1, ranks [2] say 0.5");
    assert_mismatch(&errors, "verify: ranks [0, 1] say always, ranks [2] say every 3");
    assert!(errors.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn every_setting_is_compared_at_creation() {
    type Change = fn(&mut HeadConfig);
    let table: &[(&str, Change)] = &[
        ("final_logit_softcapping: ranks [0] say none, ranks [1] say 30", |c| {
            c.final_logit_softcapping = Some(30.0)
        }),
        ("split_rows_over_tp: ranks [0] say false, ranks [1] say true", |c| c.split_rows_over_tp = true),
        ("verify: ranks [0] say always, ranks [1] say warm_up", |c| c.verify = Verify::WarmUp),
        ("logit_scale: ranks [0] say 1, ranks [1] say 2", |c| c.logit_scale = 2.0),
    ];
    for (want, change) in table {
        let errors = each_rank(2, |me, exchange| {
            let mut config = config(30_000);
            if me == 1 {
                change(&mut config);
            }
            let error = head_of(&test_head(), &config, 2, me, Arc::clone(&exchange)).err().unwrap();
            // A disagreement leaves the exchange as it was: the same ranks can try again.
            head_of(&test_head(), &self::config(30_000), 2, me, exchange).unwrap();
            error
        });
        assert_mismatch(&errors, want);
    }
    // What comes with the shard and the rows' type.
    let errors = each_rank(2, |me, exchange| {
        let test = if me == 1 { test_head().with_bias(1) } else { test_head() };
        head_of(&test, &config(30_000), 2, me, exchange).err().unwrap()
    });
    assert_mismatch(&errors, "bias: ranks [0] say false, ranks [1] say true");
    let errors = each_rank(2, |me, exchange| {
        let dtype = [DType::F32, DType::Bf16][me];
        let test = TestHead::random(200, 16, dtype, Quantization::W8a8, 3);
        let config = HeadConfig { timeout: Duration::from_secs(30), ..test.config() };
        head_of(&test, &config, 2, me, exchange).err().unwrap()
    });
    assert_mismatch(&errors, "hidden_dtype: ranks [0] say f32, ranks [1] say bf16");
    let errors = each_rank(2, |me, exchange| {
        let quantization = [Quantization::W8a8, Quantization::W8a16][me];
        let test = TestHead::random(200, 16, DType::F32, quantization, 3);
        head_of(&test, &test.config(), 2, me, exchange).err().unwrap()
    });
    assert_mismatch(&errors, "quantization: ranks [0] say w8a8, ranks [1] say w8a16");
}

#[test]
fn creation_with_a_wrong_part_tells_the_waiting_ranks_and_can_be_tried_again() {
    let began = Instant::now();
    let errors = each_rank(2, |me, exchange| {
        let (head, config) = (test_head(), config(30_000));
        let group = HeadGroup::data_parallel(2, me).unwrap();
        // Rank 1 brings rank 0's shard.
        let shard = head.shard(group.shard(head.vocab, 0));
        let error = LmHead::new(&config, group, shard, Arc::clone(&exchange), lmhead_testkit::backend())
            .err()
            .unwrap();
        let mut again = head_of(&head, &config, 2, me, exchange).unwrap();
        step(&mut again, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
        error
    });
    assert!(
        errors[1].to_string().contains("shard: wanted ids 128..200 of 200, got ids 0..128 of 200"),
        "{}",
        errors[1]
    );
    assert_mismatch(&errors[..1], "refused: ranks [1] say shard: wanted ids 128..200");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_rank_that_comes_late_to_creation_gets_no_head_either() {
    let errors = each_rank(2, |me, exchange| {
        if me == 1 {
            thread::sleep(Duration::from_millis(900));
        }
        head_of(&test_head(), &config(250), 2, me, exchange).err().unwrap()
    });
    for error in errors {
        assert!(matches!(&error, Error::Timeout { missing, .. } if missing == &[1]), "{error}");
        assert!(
            error.to_string().contains("creation of the head")
                && error.to_string().contains("make a new exchange"),
            "{error}"
        );
    }
}

/// A backend that panics on its second matmul.
struct Panics(Arc<dyn Backend>, AtomicUsize);

impl Backend for Panics {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn fingerprint(&self, types: HeadTypes) -> String {
        self.0.fingerprint(types)
    }
    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        self.0.check(shard, hidden)
    }
    fn logits(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        self.0.logits(job, out)
    }
    fn tally(&self, tally: Tally<'_>) -> Result<()> {
        self.0.tally(tally)
    }
    fn sample(&self, held: &HeldLogits<'_>, pass: SamplingPass<'_>) -> Result<()> {
        self.0.sample(held, pass)
    }
    fn partials(&self, job: &Job<'_>, spec: PartialSpec, out: &mut [RowPartial]) -> Result<()> {
        if self.1.fetch_add(1, Ordering::Relaxed) == 1 {
            std::panic::resume_unwind(Box::new("a backend's bug"));
        }
        self.0.partials(job, spec, out)
    }
}

#[test]
fn a_panic_in_the_backend_that_the_engine_catches_poisons_the_head_and_is_told() {
    let answers = each_rank(2, |me, exchange| {
        let (test, group) = (test_head(), HeadGroup::data_parallel(2, me).unwrap());
        let backend: Arc<dyn Backend> = if me == 1 {
            Arc::new(Panics(lmhead_testkit::backend(), AtomicUsize::new(0)))
        } else {
            lmhead_testkit::backend()
        };
        let shard = test.shard(group.shard(200, me));
        let mut head = LmHead::new(&config(30_000), group, shard, exchange, backend).unwrap();
        let both = |head: &mut LmHead| step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS);
        let want = both(&mut head).unwrap().output;
        let broken = catch_unwind(AssertUnwindSafe(|| both(&mut head)));
        assert_eq!(broken.is_err(), me == 1);
        if let Ok(result) = broken {
            assert_mismatch(
                &[result.unwrap_err()],
                "abandoned: ranks [1] say its thread panicked in the step",
            );
        }
        assert!(head.poisoned().is_some());
        head.rebuild().unwrap();
        assert_eq!(both(&mut head).unwrap().output, want);
    });
    assert_eq!(answers.len(), 2);
}

#[test]
fn unverified_steps_that_move_equal_bytes_are_told_apart() {
    let unverified = HeadConfig { verify: Verify::WarmUp, ..config(30_000) };
    let errors = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &unverified, 2, me, exchange).unwrap();
        let dtype = [DType::Bf16, DType::F16][me];
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::logits(dtype), ROWS).unwrap_err()
    });
    for error in &errors {
        let text = error.to_string();
        assert!(
            text.contains("with another mode, request or counts") || text.contains("abandoned"),
            "{text}"
        );
    }
    assert!(errors.iter().any(|e| e.to_string().contains("order: ranks")), "{errors:?}");
}

#[test]
fn capacity_steps_check_the_ranks_of_other_tp_indices_too() {
    // One replica of two tp ranks: no rows are gathered, so the headers meet in the exchange of results.
    for replicas in [1, 2] {
        let size = 2 * replicas;
        let errors = each_rank(size, |me, exchange| {
            let test = test_head();
            let group = HeadGroup::from_ranks((0..size).collect(), me, 2).unwrap();
            let shard = test.shard(group.shard(200, me));
            let mut head =
                LmHead::new(&config(30_000), group, shard, exchange, lmhead_testkit::backend()).unwrap();
            let request = if me % 2 == 1 { Request::top_k(1) } else { Request::argmax() };
            step(&mut head, RowCounts::capacity(4, ROWS), request, ROWS).unwrap_err()
        });
        for error in &errors {
            assert!(matches!(error, Error::StepMismatch { .. }), "{error}");
        }
        let named = errors.iter().filter(|e| e.to_string().contains("request: ranks")).count();
        assert!(named > 0, "{errors:?}");
    }
}

#[test]
fn the_tp_ranks_of_a_replica_agree_on_adjustments_where_they_are_learned() {
    let errors = each_rank(2, |me, exchange| {
        let (test, group) = (test_head(), HeadGroup::from_ranks(vec![0, 1], me, 2).unwrap());
        let shard = test.shard(group.shard(200, me));
        let mut head =
            LmHead::new(&config(30_000), group, shard, exchange, lmhead_testkit::backend()).unwrap();
        let begin = if me == 1 { LmHead::step_adjusted } else { LmHead::step };
        begin(&mut head, RowCounts::discover(ROWS), &Request::argmax()).map(|_| ()).unwrap_err()
    });
    assert_mismatch(&errors, "adjustments of replica 0: ranks [0] say none, ranks [1] say some");
}

#[test]
fn a_non_finite_logit_in_one_shard_marks_the_row_whichever_shard_it_is() {
    for broken in 0..3 {
        let mut test = test_head();
        // Weights so large that the product overflows f32 in one vocabulary row of shard `broken`.
        let row = [0, 70, 199][broken];
        test.weights[row * 16..(row + 1) * 16].fill(f32::MAX);
        for request in [Request::argmax(), Request::top_k(2), Request::logits(DType::F32)] {
            let answers = each_rank(3, |me, exchange| {
                let mut head = head_of(&test, &config(30_000), 3, me, exchange).unwrap();
                let bytes: Vec<u8> = [4.0f32; 32].iter().flat_map(|v| v.to_le_bytes()).collect();
                let hidden = HiddenRows::new(&bytes, DType::F32, 2, 16).unwrap();
                head.step(RowCounts::exact(&[2; 3]), &request).unwrap().run(hidden).unwrap()
            });
            for answer in answers {
                assert_eq!(answer.row_status, [RowStatus::NonFinite; 2], "shard {broken}, {request}");
            }
        }
    }
}

#[test]
fn a_refused_argument_sends_nothing_and_the_head_goes_on() {
    each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(30_000), 2, me, exchange).unwrap();
        for (counts, request, want) in [
            (RowCounts::exact(&[1]), Request::argmax(), "wanted 2 entries"),
            (RowCounts::capacity(1, 2), Request::argmax(), "wanted at most 1 rows, got 2"),
            (RowCounts::exact(&[1, 1]), Request::top_k(0), "k from 1 to the vocabulary size, 200, got k = 0"),
            (RowCounts::exact(&[1, 1]), Request::top_k(201), "got k = 201"),
            (RowCounts::exact(&[1, 1]), Request::logits(DType::I8), "wanted f32, bf16 or f16, got i8"),
        ] {
            let error = head.step(counts, &request).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
    });
}

#[test]
fn a_rebuilt_head_answers_the_same_bits_under_a_new_epoch() {
    let answers = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(30_000), SIZE, me, exchange).unwrap();
        let want = good_step(&mut head).unwrap();
        for round in 0..3 {
            if me == round {
                drop(head.step(RowCounts::exact(&[ROWS; SIZE]), &Request::argmax()).unwrap());
            } else {
                good_step(&mut head).unwrap_err();
            }
            head.rebuild().unwrap();
            assert_eq!(head.poisoned(), None);
            let got = good_step(&mut head).unwrap();
            assert_eq!(got.output, want.output);
        }
        want
    });
    assert_eq!(answers.len(), SIZE);
}

#[test]
fn counts_beyond_memory_are_refused_not_aborted() {
    // Both ranks agree that rank 0 brings more rows than can be; rank 0 cannot, and rank 1 hears of it.
    each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(30_000), 2, me, exchange).unwrap();
        let error = step(&mut head, RowCounts::exact(&[usize::MAX, 0]), Request::argmax(), 0).unwrap_err();
        assert!(matches!(error, Error::Shape { .. } | Error::StepMismatch { .. }), "{error}");
    });
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    let mut head = head_of(&test_head(), &config(30_000), 1, 0, exchange).unwrap();
    let error = head.warm_up(usize::MAX / 2, &[Request::argmax()]).unwrap_err();
    assert!(error.to_string().contains("fits this machine's memory"), "{error}");
}
