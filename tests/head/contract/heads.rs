//! Several heads and threads on one exchange.

use super::*;

use lmhead_testkit::row_bits;

fn both(head: &mut LmHead) -> Result<Answer> {
    step(head, RowCounts::exact(&[ROWS; 2]), Request::logits(DType::F32), ROWS)
}

/// Two heads of the same name with different weights: an answer would be wrong if their messages mixed.
fn two_heads(me: usize, exchange: &Arc<dyn Exchange>, timeout_ms: u64, names: [&str; 2]) -> Vec<LmHead> {
    let head = |(seed, name): (u64, &str)| {
        let test = TestHead::random(200, 16, DType::F32, Quantization::None, seed);
        let config = HeadConfig { name: name.into(), ..config(timeout_ms) };
        head_of(&test, &config, 2, me, Arc::clone(exchange)).unwrap()
    };
    [3, 4].into_iter().zip(names).map(head).collect()
}

#[test]
fn two_heads_stepped_in_another_order_end_at_the_deadline_and_name_the_other_place() {
    for names in [["lm_head", "lm_head"], ["target", "draft"]] {
        let gave_up = Barrier::new(2);
        let ended = each_rank(2, |me, exchange| {
            let mut heads = two_heads(me, &exchange, 400, names);
            heads.iter_mut().for_each(|head| {
                both(head).unwrap();
            });
            let began = Instant::now();
            // Each waits in its own channel.
            let error = both(&mut heads[me]).unwrap_err();
            let ended = (error, began.elapsed());
            gave_up.wait();
            ended
        });
        for (rank, (error, time)) in ended.iter().enumerate() {
            assert!(matches!(error, Error::Timeout { missing, .. } if missing == &[1 - rank]), "{error}");
            let (text, other) = (error.to_string(), 1 - rank);
            assert!(text.contains(&format!("rank {other} was last seen 0.")), "{text}");
            let instance = if names[0] == names[1] { other } else { 0 };
            let place = format!(
                "in step 1 of head `{}` (instance {instance}, epoch 0): exchange of step",
                names[other]
            );
            assert!(text.contains(&place), "{text}\n{place}");
            assert!(*time < Duration::from_millis(900), "{time:?}");
        }
        let times: Vec<String> = ended.iter().map(|(_, t)| format!("{:.1}", t.as_secs_f64() * 1e3)).collect();
        println!("two heads {names:?} in another order, a deadline of 400 ms: {} ms", times.join(", "));
    }
}

#[test]
fn two_heads_on_two_threads_of_one_endpoint_do_not_disturb_each_other() {
    each_rank(2, |me, exchange| {
        let heads = two_heads(me, &exchange, PATIENT, ["lm_head", "lm_head"]);
        let bits = |answer: &Answer| -> Vec<_> { (0..ROWS).map(|row| row_bits(answer, row)).collect() };
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = heads
                .into_iter()
                .map(|mut head| {
                    scope.spawn(move || {
                        let first = bits(&both(&mut head).unwrap());
                        for _ in 0..300 {
                            assert_eq!(bits(&both(&mut head).unwrap()), first);
                        }
                        first
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_ne!(answers[0], answers[1]);
    });
}

#[test]
fn a_fault_of_one_head_leaves_the_other_usable() {
    each_rank(2, |me, exchange| {
        let mut heads = two_heads(me, &exchange, PATIENT, ["lm_head", "lm_head"]);
        if me == 1 {
            drop(heads[0].step(RowCounts::exact(&[ROWS; 2]), &Request::logits(DType::F32)).unwrap());
        } else {
            both(&mut heads[0]).unwrap_err();
        }
        both(&mut heads[1]).unwrap();
        heads[0].rebuild().unwrap();
        heads.iter_mut().for_each(|head| {
            both(head).unwrap();
        });
    });
}

#[test]
fn heads_come_and_go_on_one_exchange() {
    each_rank(2, |me, exchange| {
        for _ in 0..20 {
            let mut heads = two_heads(me, &exchange, PATIENT, ["lm_head", "draft"]);
            heads.iter_mut().for_each(|head| {
                both(head).unwrap();
            });
        }
    });
}

#[test]
fn a_timeout_says_where_the_rank_was_in_this_head_and_where_it_is_now() {
    let gave_up = Barrier::new(2);
    each_rank(2, |me, exchange| {
        let mut heads = two_heads(me, &exchange, 300, ["target", "draft"]);
        both(&mut heads[0]).unwrap();
        both(&mut heads[1]).unwrap();
        if me == 0 {
            let text = both(&mut heads[0]).unwrap_err().to_string();
            let here =
                "in step 0 of head `target` (instance 0, epoch 0): idle after the step, and since then 0.";
            let elsewhere = "in step 0 of head `draft` (instance 0, epoch 0): idle after the step";
            assert!(text.contains(here) && text.contains(elsewhere), "{text}");
        }
        gave_up.wait();
    });
}
