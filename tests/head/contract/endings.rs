//! A step, creation or rebuild that fails on one rank ends at once on all.

use super::*;

#[test]
fn a_skipped_call_and_a_late_rank_are_timeouts_that_name_the_rank() {
    // Rank 1 skips its call: it is busy until the others have given up.
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
        assert_mismatch(&errors[rank..=rank], "aborted: ranks [1] say dropped the step without running it");
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
        assert_mismatch(&errors[rank..=rank], "aborted: ranks [1] say hidden_states: wanted 2 rows");
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
                    "aborted: ranks [1] say its thread panicked in the step",
                );
            } else {
                assert!(matches!(error, Error::RankLost { ranks, .. } if ranks == &[1]), "{error}");
            }
        }
    }
}

#[test]
fn a_panic_in_the_backend_that_the_engine_catches_poisons_the_head_and_is_told() {
    let answers = each_rank(2, |me, exchange| {
        let (test, group) = (test_head(), HeadGroup::data_parallel(2, me).unwrap());
        let backend: Arc<dyn Backend> = if me == 1 {
            let products = AtomicUsize::new(0);
            hooked_backend(lmhead_testkit::backend(), move |asked| {
                if asked.method == "run" && products.fetch_add(1, Ordering::Relaxed) == 1 {
                    std::panic::resume_unwind(Box::new("a backend's bug"));
                }
            })
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
            assert_mismatch(&[result.unwrap_err()], "aborted: ranks [1] say its thread panicked in the step");
        }
        assert!(head.poisoned().is_some());
        head.rebuild().unwrap();
        assert_eq!(both(&mut head).unwrap().output, want);
    });
    assert_eq!(answers.len(), 2);
}

/// Arguments that one rank refuses by itself, and its message.
fn refused_alone() -> [(RowCounts, Request, &'static str); 5] {
    let exact = || RowCounts::exact(&[ROWS; SIZE]);
    [
        (RowCounts::exact(&[1]), Request::argmax(), "wanted 3 entries"),
        (RowCounts::capacity(4, 5), Request::argmax(), "wanted at most 4 rows, got 5"),
        (exact(), Request::top_k(0), "k from 1 to the vocabulary size, 200, got k = 0"),
        (exact(), Request::top_k(201), "got k = 201"),
        (exact(), Request::logits(DType::I8), "wanted f32, bf16 or f16, got i8"),
    ]
}

#[test]
fn a_refusal_of_one_ranks_own_data_is_told_to_the_others_at_once() {
    for (counts, request, want) in refused_alone() {
        let ended = each_rank(SIZE, |me, exchange| {
            let mut head = head_of(&test_head(), &config(PATIENT), SIZE, me, exchange).unwrap();
            good_step(&mut head).unwrap();
            let began = Instant::now();
            let error = if me == 1 {
                head.step(counts.clone(), &request).map(|_| ()).unwrap_err()
            } else {
                good_step(&mut head).unwrap_err()
            };
            let ended = (error, began.elapsed());
            assert!(head.poisoned().is_some());
            head.rebuild().unwrap();
            good_step(&mut head).unwrap();
            ended
        });
        assert!(ended[1].0.is_bad_input() && ended[1].0.to_string().contains(want), "{}", ended[1].0);
        for rank in [0, 2] {
            assert_mismatch(&[ended[rank].0.clone()], "aborted: ranks [1] say");
            assert_mismatch(&[ended[rank].0.clone()], want);
        }
        assert_at_once("a refusal of one rank's own data", &ended);
    }
}

#[test]
fn a_refusal_leaves_a_head_of_one_rank_usable() {
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    let mut head = head_of(&test_head(), &config(PATIENT), 1, 0, exchange).unwrap();
    for (counts, request, _) in refused_alone() {
        let counts = if request == Request::argmax() { counts } else { RowCounts::exact(&[ROWS]) };
        let counts = if counts == RowCounts::exact(&[1]) { RowCounts::exact(&[1, 1]) } else { counts };
        assert!(head.step(counts, &request).map(|_| ()).unwrap_err().is_bad_input());
    }
    assert_eq!(head.poisoned(), None);
    step(&mut head, RowCounts::exact(&[ROWS]), Request::argmax(), ROWS).unwrap();
}

/// Where a rank's exchange or backend panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Panics {
    InTheHeaders,
    InTheRows,
    InLoad,
    InTheAgreement,
    InTheSelfTest,
    BeforeTheReset,
    AfterTheReset,
}

#[test]
fn a_panic_anywhere_is_told_at_once_and_poisons_the_head() {
    use lmhead::exchange::Operation;
    for place in [
        Panics::InTheHeaders,
        Panics::InTheRows,
        Panics::InLoad,
        Panics::InTheAgreement,
        Panics::InTheSelfTest,
        Panics::BeforeTheReset,
        Panics::AfterTheReset,
    ] {
        let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let at = move |when: When, operation: Operation, epoch: u32| match place {
            Panics::InTheHeaders => when == When::BeforeGather && operation == Operation::Contract,
            Panics::InTheRows => when == When::AfterGather && operation == Operation::GatherRows,
            Panics::InLoad => false,
            Panics::InTheAgreement => {
                when == When::BeforeGather && operation == Operation::Create && epoch == 0
            }
            Panics::InTheSelfTest => when == When::BeforeExchange && operation == Operation::SelfTest,
            Panics::BeforeTheReset => when == When::Reset,
            Panics::AfterTheReset => {
                when == When::BeforeGather && operation == Operation::Create && epoch == 1
            }
        };
        let ended = each_rank(SIZE, |me, exchange| {
            let fires = Arc::clone(&armed);
            let exchange = match me {
                1 => hooked(exchange, move |when, call, _| {
                    if at(when, call.operation, call.epoch) && fires.swap(false, Ordering::SeqCst) {
                        if when == When::Reset {
                            // A peer that came later would join this rank's next attempt.
                            thread::sleep(Duration::from_millis(300));
                        }
                        std::panic::resume_unwind(Box::new("a transport's bug"));
                    }
                }),
                _ => exchange,
            };
            let backend: Arc<dyn Backend> = match me {
                1 if place == Panics::InLoad => hooked_backend(lmhead_testkit::backend(), |asked| {
                    if asked.method == "load" {
                        std::panic::resume_unwind(Box::new("a backend's bug"));
                    }
                }),
                _ => lmhead_testkit::backend(),
            };
            let creating = matches!(place, Panics::InLoad | Panics::InTheAgreement | Panics::InTheSelfTest);
            if creating && me == 1 {
                armed.store(true, Ordering::SeqCst);
            }
            let config = config(PATIENT);
            let began = Instant::now();
            if creating {
                let made = catch_unwind(AssertUnwindSafe(|| head_with(&config, SIZE, me, exchange, backend)));
                assert_eq!(made.is_err(), me == 1);
                return made.ok().map(|head| (head.err().unwrap(), began.elapsed()));
            }
            let mut head = head_with(&config, SIZE, me, exchange, backend).unwrap();
            good_step(&mut head).unwrap();
            let rebuilding = matches!(place, Panics::BeforeTheReset | Panics::AfterTheReset);
            if me == 1 {
                armed.store(true, Ordering::SeqCst);
            }
            let began = Instant::now();
            let call = |head: &mut LmHead| match rebuilding {
                true => head.rebuild(),
                false => good_step(head).map(|_| ()),
            };
            let result = catch_unwind(AssertUnwindSafe(|| call(&mut head)));
            let time = began.elapsed();
            assert_eq!(result.is_err(), me == 1, "{place:?}");
            assert!(head.poisoned().is_some(), "{place:?}, rank {me}");
            head.rebuild().unwrap();
            good_step(&mut head).unwrap();
            result.ok().map(|result| (result.unwrap_err(), time))
        });
        let ended: Vec<Ended> = ended.into_iter().flatten().collect();
        assert_eq!(ended.len(), SIZE - 1);
        for (error, _) in &ended {
            assert_mismatch(std::slice::from_ref(error), "aborted: ranks [1] say its thread panicked in the");
        }
        assert_at_once(&format!("a panic {place:?}"), &ended);
    }
}

#[test]
fn a_panic_of_the_transport_while_a_step_unwinds_is_contained() {
    let ended = each_rank(2, |me, exchange| {
        let exchange = match me {
            1 => hooked(exchange, |when, _, _| {
                if when == When::Abort {
                    std::panic::resume_unwind(Box::new("a second panic"));
                }
            }),
            _ => exchange,
        };
        let mut head = head_of(&test_head(), &config(PATIENT), 2, me, exchange).unwrap();
        let began = Instant::now();
        if me == 1 {
            // The step unwinds, its drop notifies the peers, and that panics again. The process survives;
            // dropping the head then tells the peers what the notice could not.
            let caught = catch_unwind(AssertUnwindSafe(move || {
                let _step = head.step(RowCounts::exact(&[ROWS; 2]), &Request::argmax()).unwrap();
                std::panic::resume_unwind(Box::new("an engine's bug"));
            }));
            assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"an engine's bug"));
            return None;
        }
        let error = step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap_err();
        Some((error, began.elapsed()))
    });
    let ended: Vec<Ended> = ended.into_iter().flatten().collect();
    assert!(matches!(&ended[0].0, Error::RankLost { ranks, .. } if ranks == &[1]), "{}", ended[0].0);
    assert_at_once("a panic of notify_abort while a step unwinds", &ended);
}

#[test]
fn all_operations_of_a_step_share_one_deadline() {
    // Rank 1 is late in every operation by less than the timeout, but by more in total.
    let ended = each_rank(2, |me, exchange| {
        let exchange = match me {
            1 => hooked(exchange, |when, call, _| {
                if matches!(when, When::BeforeGather | When::BeforeExchange) && !call.operation.is_creation()
                {
                    thread::sleep(Duration::from_millis(350));
                }
            }),
            _ => exchange,
        };
        let mut head = head_of(&test_head(), &config(500), 2, me, exchange).unwrap();
        let began = Instant::now();
        let params = vec![lmhead::SamplingParams { top_p: 0.5, ..Default::default() }; ROWS];
        let bytes = test_head().rows(ROWS, 7);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16).unwrap();
        let inputs = lmhead::RowInputs { sampling: Some(&params), ..Default::default() };
        let sampled = head.step(RowCounts::exact(&[ROWS; 2]), &Request::sample());
        let error = sampled.and_then(|step| step.run_with(hidden, &inputs)).unwrap_err();
        (error, began.elapsed())
    });
    println!("a step of many late operations: {:.1} ms", ended[0].1.as_secs_f64() * 1e3);
    let (error, time) = &ended[0];
    assert!(
        matches!(error, Error::Timeout { missing, after, .. } if missing == &[1] && after.as_millis() == 500)
    );
    assert!(*time < Duration::from_millis(800), "{time:?}");
}

#[test]
fn a_timeout_says_where_everybody_was_and_what_the_rank_did_before() {
    let ended = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(300), 2, me, exchange).unwrap();
        for _ in 0..40 {
            step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
        }
        if me == 1 {
            thread::sleep(Duration::from_millis(600));
            return None;
        }
        let error = step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::top_k(3), ROWS).unwrap_err();
        assert_eq!(head.recent_steps().len(), 32);
        Some(error)
    });
    let error = ended[0].as_ref().unwrap();
    let text = error.to_string();
    assert!(text.contains("rank 1 was last seen 0."), "{text}");
    assert!(
        text.contains("in step 39 of head `lm_head` (instance 0, epoch 0): idle after the step"),
        "{text}"
    );
    let evidence = error.evidence().unwrap();
    assert_eq!(evidence.last_seen.len(), 2);
    assert_eq!(evidence.recent_steps.len(), 32);
    let detail = evidence.to_string();
    assert!(detail.contains("step 40 (epoch 0): topk:3, exact, 2 rows, failed after"), "{detail}");
    assert!(detail.contains("step 39 (epoch 0): argmax, exact, 2 rows of 4, finished in"), "{detail}");
    assert!(detail.contains("all_gather of hidden rows (128 bytes sent, 128 received"), "{detail}");
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
    // Both ranks agree that rank 0 brings impossibly many rows; rank 0 cannot, and rank 1 is told.
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

#[test]
fn a_rebuild_on_one_rank_ends_its_peers_step_at_once_and_meets_its_rebuild() {
    let ended = each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(PATIENT), 2, me, exchange).unwrap();
        let both = |head: &mut LmHead| step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS);
        both(&mut head).unwrap();
        let began = Instant::now();
        let error = (me == 1).then(|| both(&mut head).unwrap_err());
        head.rebuild().unwrap();
        both(&mut head).unwrap();
        error.map(|error| (error, began.elapsed()))
    });
    let ended: Vec<Ended> = ended.into_iter().flatten().collect();
    assert_mismatch(&[ended[0].0.clone()], "aborted: ranks [0] say it rebuilds the head");
    assert_at_once("a rebuild on one rank", &ended);
}

#[test]
fn ranks_that_rebuilt_unequally_often_meet_in_the_next_rebuild_of_all() {
    let together = Barrier::new(2);
    each_rank(2, |me, exchange| {
        let config = |ms| HeadConfig { timeout: Duration::from_millis(PATIENT), ..config(ms) };
        let mut head = head_of(&test_head(), &config(1500), 2, me, exchange).unwrap();
        for alone in 0..2 {
            if me == alone {
                let error = head.rebuild().unwrap_err();
                assert!(
                    matches!(&error, Error::Timeout { missing, .. } if missing == &[1 - alone]),
                    "{error}"
                );
            }
            together.wait();
            head.rebuild().unwrap();
            together.wait();
        }
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
    });
}

#[test]
fn a_rank_that_comes_late_to_rebuilding_joins_the_peer_that_tries_again() {
    each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(1000), 2, me, exchange).unwrap();
        if me == 1 {
            thread::sleep(Duration::from_millis(1500));
        } else {
            assert!(matches!(head.rebuild().unwrap_err(), Error::Timeout { .. }));
        }
        head.rebuild().unwrap();
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
    });
}

#[test]
fn a_rank_that_is_late_itself_blames_nobody_else() {
    each_rank(2, |me, exchange| {
        let config = HeadConfig { create_timeout: Duration::from_millis(PATIENT), ..config(200) };
        let mut head = head_of(&test_head(), &config, 2, me, exchange).unwrap();
        let bytes = test_head().rows(ROWS, 7);
        let begun = head.step(RowCounts::exact(&[ROWS; 2]), &Request::argmax()).unwrap();
        thread::sleep(Duration::from_millis(400 + 200 * me as u64));
        let error = begun.run(HiddenRows::new(&bytes, DType::F32, ROWS, 16).unwrap()).unwrap_err();
        let text = error.to_string();
        // Rank 0's rows have arrived by the time rank 1 comes.
        let operation = ["all_gather of hidden rows", "all_to_all of results"][me];
        let want = format!("ranks [{me}] say this rank came to the {operation} 0.");
        assert!(text.contains(&want), "{text}\nwant {want}");
        assert!(text.contains("s after the deadline of 200ms"), "{text}");
        head.rebuild().unwrap();
    });
}

#[test]
fn a_peer_with_another_timeout_says_how_long_the_rank_was_waited_for() {
    let errors = each_rank(2, |me, exchange| {
        let timeout = Duration::from_millis([150, PATIENT][me]);
        let config = HeadConfig { timeout, ..config(PATIENT) };
        let mut head = head_of(&test_head(), &config, 2, me, exchange).unwrap();
        if me == 1 {
            thread::sleep(Duration::from_millis(400));
        }
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS)
            .and_then(|_| step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS))
            .unwrap_err()
    });
    for error in errors {
        assert!(error.to_string().contains("ranks [1] did not come within 150ms"), "{error}");
    }
}

#[test]
fn a_poisoned_head_says_its_cause_without_the_advice_of_the_cause() {
    each_rank(2, |me, exchange| {
        let mut head = head_of(&test_head(), &config(PATIENT), 2, me, exchange).unwrap();
        let both = |head: &mut LmHead| step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS);
        if me == 1 {
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let _step = head.step(RowCounts::exact(&[ROWS; 2]), &Request::argmax()).unwrap();
                std::panic::resume_unwind(Box::new("an engine's bug"));
            }));
        } else {
            both(&mut head).unwrap_err();
        }
        let text = both(&mut head).unwrap_err().to_string();
        let want =
            ["ranks [1] say its thread panicked in the step)", "this rank's thread panicked in the step)"];
        assert!(text.contains(want[me]), "{text}");
    });
}
