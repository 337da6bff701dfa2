//! Creation: settings, weights and exchanges that do not fit together.

use super::*;
use lmhead::exchange::{Call, Fault, Reset};

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
        ("verify: ranks [0] say always, ranks [1] say prepare", |c| c.verify = Verify::WarmUp),
        ("logit_scale: ranks [0] say 1, ranks [1] say 2", |c| c.logit_scale = 2.0),
        ("weights_version: ranks [0] say 0, ranks [1] say 5", |c| c.weights_version = 5),
    ];
    for (want, change) in table {
        let errors = each_rank(2, |me, exchange| {
            let mut config = config(30_000);
            if me == 1 {
                change(&mut config);
            }
            let error = head_of(&test_head(), &config, 2, me, Arc::clone(&exchange)).err().unwrap();
            // A disagreement does not damage the exchange: the same ranks can try again.
            head_of(&test_head(), &self::config(30_000), 2, me, exchange).unwrap();
            error
        });
        assert_mismatch(&errors, want);
    }
    // What the shard and the rows' type determine.
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
fn a_rank_that_comes_late_to_creation_joins_the_peer_that_tries_again() {
    each_rank(2, |me, exchange| {
        let make = |ms| head_of(&test_head(), &config(ms), 2, me, Arc::clone(&exchange));
        if me == 1 {
            thread::sleep(Duration::from_millis(600));
        } else {
            let error = make(250).err().unwrap();
            assert!(matches!(&error, Error::Timeout { missing, .. } if missing == &[1]), "{error}");
            let text = error.to_string();
            for want in
                ["creation of the head", "create_timeout_ms", "then make the head again on every rank"]
            {
                assert!(text.contains(want), "{text}\nwant {want}");
            }
            assert!(!text.contains("rebuild"), "{text}");
        }
        make(PATIENT).unwrap();
    });
}

#[test]
fn after_a_creation_on_some_ranks_only_the_next_of_all_comes_about() {
    let together = Barrier::new(2);
    each_rank(2, |me, exchange| {
        let make = |ms| head_of(&test_head(), &config(ms), 2, me, Arc::clone(&exchange));
        for alone in [1, 0, 0, 1] {
            if me == alone {
                assert!(matches!(make(50).err().unwrap(), Error::Timeout { .. }));
            }
            together.wait();
            let mut heads = [make(PATIENT).unwrap(), make(PATIENT).unwrap()];
            for head in &mut heads {
                step(head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
            }
            together.wait();
        }
    });
}

#[test]
fn a_deadline_that_no_creation_can_keep_is_refused_by_name_and_told() {
    let ended = each_rank(2, |me, exchange| {
        let mut config = config(PATIENT);
        if me == 1 {
            config.create_timeout = Duration::ZERO;
        }
        let began = Instant::now();
        (head_of(&test_head(), &config, 2, me, exchange).err().unwrap(), began.elapsed())
    });
    assert!(
        matches!(&ended[1].0, Error::Config { key, .. } if key.contains("create_timeout")),
        "{}",
        ended[1].0
    );
    assert_mismatch(&[ended[0].0.clone()], "ranks [1] say create_timeout_ms: wanted");
    assert_at_once("a creation without time", &ended);
}

/// An exchange that fails to open a channel, with an error or a panic.
struct WithoutChannels {
    inner: Arc<dyn Exchange>,
    panics: bool,
}

impl Exchange for WithoutChannels {
    fn name(&self) -> &'static str {
        "without channels"
    }
    fn size(&self) -> usize {
        self.inner.size()
    }
    fn me(&self) -> usize {
        self.inner.me()
    }
    fn channel(&self, _: u32) -> std::result::Result<(u32, Arc<dyn Exchange>), Fault> {
        if self.panics {
            std::panic::resume_unwind(Box::new("a transport's bug"));
        }
        Err(Fault::Broken { problem: "no channel is left".into(), fix: "make fewer heads".into() })
    }
    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> std::result::Result<(), Fault> {
        self.inner.all_gather_v(call, members, send, recv)
    }
    fn all_to_all_v(
        &self,
        call: &Call,
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
    ) -> std::result::Result<(), Fault> {
        self.inner.all_to_all_v(call, send, recv)
    }
    fn notify_abort(&self, call: &Call, reason: &str) {
        self.inner.notify_abort(call, reason);
    }
    fn reset(&self, call: &Call) -> std::result::Result<Reset, Fault> {
        self.inner.reset(call)
    }
}

#[test]
fn a_channel_that_does_not_open_is_told_and_the_next_creation_comes_about() {
    for panics in [true, false] {
        let ended = each_rank(2, |me, exchange| {
            let make = |exchange| head_of(&test_head(), &config(PATIENT), 2, me, exchange);
            let broken: Arc<dyn Exchange> = match me {
                1 => Arc::new(WithoutChannels { inner: Arc::clone(&exchange), panics }),
                _ => Arc::clone(&exchange),
            };
            let began = Instant::now();
            if me == 1 {
                // A peer that came later would join this rank's next attempt.
                thread::sleep(Duration::from_millis(300));
            }
            let made = catch_unwind(AssertUnwindSafe(|| make(broken)));
            let ended = (made.map(|made| made.err().unwrap()), began.elapsed());
            make(exchange).unwrap();
            ended
        });
        let ended: Vec<Ended> =
            ended.into_iter().filter_map(|(made, time)| Some((made.ok()?, time))).collect();
        let want = if panics { "its thread panicked in the opening" } else { "no channel is left" };
        assert_eq!(ended.len(), 2 - usize::from(panics));
        assert!(ended.iter().all(|(error, _)| error.to_string().contains(want)), "{ended:?}");
        assert_at_once("a channel that does not open", &ended);
    }
}

#[test]
fn a_shard_of_another_checkpoint_of_the_same_shape_is_named() {
    use lmhead::weights::synthetic;
    let preset = synthetic::preset("tiny").unwrap();
    let ended = each_rank(SIZE, |me, exchange| {
        let group = HeadGroup::data_parallel(SIZE, me).unwrap();
        let seed = u64::from(me == 2);
        let vocab = group.shard(preset.vocab_size, me);
        let shard = synthetic::shard(&preset.spec(), seed, vocab, Quantization::None, None).unwrap();
        let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
        let began = Instant::now();
        let head = LmHead::new(&config, group, Arc::new(shard), exchange, lmhead_testkit::backend());
        (head.err().unwrap(), began.elapsed())
    });
    for (error, _) in &ended {
        let text = error.to_string();
        assert!(
            text.contains("weights_fingerprint: ranks [0, 1] say a checkpoint of fingerprint 0x")
                && text.contains("ranks [2] say a checkpoint of fingerprint 0x"),
            "{text}"
        );
    }
    assert_at_once("a shard of another checkpoint", &ended);
}

#[test]
fn a_group_that_is_larger_than_its_exchange_is_refused_on_every_rank() {
    // Only rank 0 has the right group, or no rank has.
    for right in [true, false] {
        let ended = each_rank(2, |me, exchange| {
            let size = if right && me == 0 { 2 } else { 4 };
            let began = Instant::now();
            let error = head_of(&test_head(), &config(PATIENT), size, me, exchange).err().unwrap();
            (error, began.elapsed())
        });
        for (rank, (error, _)) in ended.iter().enumerate() {
            let text = error.to_string();
            let want = match right && rank == 0 {
                true => "aborted: ranks [1] say exchange: wanted member 1 of a group of 4, got member 1 of",
                false => "of a group of 4, got member",
            };
            assert!(text.contains(want), "rank {rank}: {text}");
        }
        assert_at_once("a group larger than its exchange", &ended);
    }
}

#[test]
fn a_transport_that_mixes_pieces_up_is_found_at_creation_and_at_rebuilding() {
    use lmhead::exchange::Operation;
    // Two adjacent pieces of equal length are swapped; all bytes arrive. NCCL once did this.
    let swap = |recv: &mut [&mut [u8]]| {
        for at in 1..recv.len() {
            let (left, right) = recv.split_at_mut(at);
            let (left, right) = (&mut *left[at - 1], &mut *right[0]);
            if left.len() == right.len() {
                left.swap_with_slice(right);
            } else {
                // Pieces of unequal length: swap the bytes that both have.
                let common = left.len().min(right.len());
                left[..common].swap_with_slice(&mut right[..common]);
            }
        }
    };
    let table: [(When, &str, bool); 3] = [
        (When::AfterExchange, "all_to_all_v", false),
        (When::AfterGather, "all_gather_v", false),
        (When::AfterExchange, "all_to_all_v", true),
    ];
    for (when, operation, rebuilding) in table {
        let mixes = Arc::new(std::sync::atomic::AtomicBool::new(!rebuilding));
        let ended = each_rank(SIZE, |me, exchange| {
            let mixes_up = Arc::clone(&mixes);
            let gathers = AtomicUsize::new(0);
            let exchange = match me {
                1 => hooked(exchange, move |now, call, recv| {
                    if call.operation != Operation::SelfTest
                        || !mixes_up.load(Ordering::SeqCst)
                        || now != when
                    {
                        return;
                    }
                    // The verdicts are gathered too, and must arrive.
                    if now == When::AfterExchange || gathers.fetch_add(1, Ordering::SeqCst) == 0 {
                        swap(recv);
                    }
                }),
                _ => exchange,
            };
            let began = Instant::now();
            let made = head_of(&test_head(), &config(PATIENT), SIZE, me, exchange);
            if !rebuilding {
                return (made.err().unwrap(), began.elapsed());
            }
            let mut head = made.unwrap();
            mixes.store(true, Ordering::SeqCst);
            let began = Instant::now();
            (head.rebuild().unwrap_err(), began.elapsed())
        });
        for (error, _) in &ended {
            assert!(matches!(error, Error::Exchange { .. }), "{error}");
            let want = format!("delivered other bytes in {operation} than rank");
            assert!(error.to_string().contains(&want) && error.to_string().contains("to rank 1"), "{error}");
        }
        assert_at_once(&format!("a transport that mixes the pieces of {operation} up"), &ended);
    }
}

#[test]
fn creation_has_a_deadline_of_its_own() {
    each_rank(2, |me, exchange| {
        let config = HeadConfig { create_timeout: Duration::from_millis(PATIENT), ..config(200) };
        if me == 1 {
            thread::sleep(Duration::from_millis(600));
        }
        let mut head = head_of(&test_head(), &config, 2, me, exchange).unwrap();
        step(&mut head, RowCounts::exact(&[ROWS; 2]), Request::argmax(), ROWS).unwrap();
    });
}
