//! Ranks whose calls differ in mode, request or counts: all are told which rank said what.

use super::*;

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
    // Capacity steps send the header with the rows: another operation with another length.
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
fn unverified_steps_end_in_an_error_too() {
    let unverified = HeadConfig { verify: Verify::WarmUp, ..config(300) };
    // Other counts: the lengths differ.
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
            text.contains("with another mode, request, counts or weights version")
                || text.contains("aborted"),
            "{text}"
        );
    }
    assert!(errors.iter().any(|e| e.to_string().contains("order: ranks")), "{errors:?}");
}

#[test]
fn capacity_steps_check_the_ranks_of_other_tp_indices_too() {
    // With one replica of two tp ranks no rows are gathered, so the headers meet in the exchange of results.
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
fn a_peer_in_another_mode_with_zero_rows_is_named_by_its_mode() {
    // Unverified steps send no header, and without rows they send nothing.
    let unverified = HeadConfig { verify: Verify::WarmUp, ..config(PATIENT) };
    let ended = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &unverified, 2, me, exchange).unwrap();
        // The buffers still hold the header of the step before.
        step(&mut head, RowCounts::capacity(4, 0), Request::argmax(), 0).unwrap();
        let counts = [RowCounts::capacity(4, 0), RowCounts::exact(&[0, 0])];
        let began = Instant::now();
        let error = step(&mut head, counts[me].clone(), Request::argmax(), 0).unwrap_err();
        (error, began.elapsed())
    });
    assert_mismatch(
        &[ended[0].0.clone()],
        "mode: ranks [0] say capacity with a header, ranks [1] say exact without a header: a step that is \
         not verified",
    );
    let text = ended[1].0.to_string();
    assert!(
        text.contains("other counts, another mode or another request") || text.contains("mode: "),
        "{text}"
    );
    assert_at_once("a peer in another mode with zero rows", &ended);
}

/// An input in which the ranks of a replica differ, though they must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Differs {
    Nothing,
    Rows,
    Targets,
    Mask,
    LogitBias,
}

/// A step of `replicas` replicas of two tensor-parallel ranks each, in which the last rank passes a different
/// input.
fn tensor_parallel(
    replicas: usize,
    counts: fn(usize) -> RowCounts,
    request: Request,
    differs: Differs,
) -> Vec<(Result<Answer>, Duration)> {
    let size = 2 * replicas;
    each_rank(size, |me, exchange| {
        let test = test_head();
        let group = HeadGroup::from_ranks((0..size).collect(), me, 2).unwrap();
        let shard = test.shard(group.shard(200, me));
        let mut head =
            LmHead::new(&config(PATIENT), group, shard, exchange, lmhead_testkit::backend()).unwrap();
        let odd = me == size - 1;
        let bytes = test.rows(ROWS, if odd && differs == Differs::Rows { 8 } else { 7 });
        // The ranks of a replica may store the same rows in different ways.
        let reversed = [&bytes[64..], &bytes[..64]].concat();
        let hidden = match me % 2 {
            0 => HiddenRows::new(&bytes, DType::F32, ROWS, 16).unwrap(),
            _ => HiddenRows::new(&reversed, DType::F32, ROWS, 16).unwrap().select(&[1, 0]).unwrap(),
        };
        let targets = [if odd && differs == Differs::Targets { 150 } else { 10 }, 20];
        let mut mask = vec![-1i32; ROWS * 7];
        mask[0] = if odd && differs == Differs::Mask { 1 } else { 3 };
        let values = [if odd && differs == Differs::LogitBias { 2.0 } else { 1.0 }];
        let logit_bias = lmhead::adjust::LogitBias { offsets: &[0, 1, 1], ids: &[5], values: &values };
        let adjustments = lmhead::Adjustments {
            allowed: Some(&mask),
            logit_bias: Some(logit_bias),
            ..lmhead::Adjustments::default()
        };
        let sampling = [lmhead::SamplingParams::default(); ROWS];
        let inputs = lmhead::RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            adjustments: Some(adjustments),
            ..lmhead::RowInputs::default()
        };
        let began = Instant::now();
        let step = head.step_adjusted(counts(replicas), &request);
        let result = step.and_then(|step| step.run_with(hidden, &inputs));
        (result, began.elapsed())
    })
}

#[test]
fn tensor_parallel_ranks_with_other_rows_targets_or_adjustments_are_named() {
    let modes: [fn(usize) -> RowCounts; 3] = [
        |replicas| RowCounts::Exact(vec![ROWS; replicas]),
        |_| RowCounts::capacity(4, ROWS),
        |_| RowCounts::discover(ROWS),
    ];
    let requests = [
        Request::logits(DType::F32),
        Request::argmax(),
        Request::top_k(5),
        Request::processed_logprobs(3),
        Request::sample(),
    ];
    let mut times = Vec::new();
    for replicas in [1, 2] {
        for counts in modes {
            for request in requests {
                let same = tensor_parallel(replicas, counts, request, Differs::Nothing);
                assert!(same.iter().all(|(answer, _)| answer.is_ok()), "{request}: {same:?}");
                for differs in [Differs::Rows, Differs::Targets, Differs::Mask, Differs::LogitBias] {
                    if differs == Differs::Targets && !matches!(request, Request::Logprobs { .. }) {
                        continue;
                    }
                    let ended = tensor_parallel(replicas, counts, request, differs);
                    let ended: Vec<Ended> =
                        ended.into_iter().map(|(result, time)| (result.unwrap_err(), time)).collect();
                    let (odd, replica) = (2 * replicas - 1, replicas - 1);
                    for (error, _) in &ended {
                        let text = error.to_string();
                        assert!(
                            text.contains(&format!(
                                "inputs of replica {replica} (hidden rows, targets or adjustments)"
                            )) && text.contains(&format!("ranks [{odd}] say digest")),
                            "{request} {differs:?}: {text}"
                        );
                    }
                    times.extend(ended);
                }
            }
        }
    }
    times.sort_by_key(|(_, time)| *time);
    assert_at_once("tensor-parallel ranks with other inputs (the slowest three)", &times[times.len() - 3..]);
}

#[test]
fn a_rank_with_another_version_of_the_weights_is_named_by_the_next_step() {
    let ended = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(PATIENT), 2, me, exchange).unwrap();
        let both = |head: &mut LmHead| step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS);
        head.set_weights_version(7);
        both(&mut head).unwrap();
        if me == 1 {
            head.set_weights_version(8);
        }
        let began = Instant::now();
        let error = both(&mut head).unwrap_err();
        let ended = (error, began.elapsed());
        // Swapped here too: the head can be rebuilt and goes on.
        head.set_weights_version(8);
        head.rebuild().unwrap();
        both(&mut head).unwrap();
        ended
    });
    assert_mismatch(
        &[ended[0].0.clone(), ended[1].0.clone()],
        "weights_version: ranks [0] say 7, ranks [1] say 8",
    );
    assert_at_once("another version of the weights", &ended);
}
