//! Steps in two calls, into the caller's memory: the answers, and buffers that are refused. `requests.rs`
//! tests strided buffers and scattered rows for every request, mode and group.

use crate::contract::hooked::{When, hooked};
use crate::reports::{assert_same_rows, test_head};
use lmhead::backend::On;
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::{LmHead, StepOptions};
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::result::{Answer, AnswerBuffers, NO_TARGET_ID, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::caller_memory::{OwnBuffers, Scattered, run_into};
use lmhead_testkit::{TestHead, each_rank, head_of};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const HIDDEN: usize = 16;

/// A deadline that must not be reached.
fn config() -> HeadConfig {
    HeadConfig { timeout: Duration::from_secs(60), ..test_head().config() }
}

fn alone() -> Arc<dyn Exchange> {
    Arc::new(local::group(1).remove(0))
}

fn requests() -> [Request; 8] {
    let several = Request::Logprobs { targets: 3, top_n: 2, processed: false };
    [
        Request::logits(DType::F32),
        Request::logits(DType::F16),
        Request::argmax(),
        Request::top_k(5),
        Request::logprobs(2),
        several,
        Request::sample(),
        Request::sample_with_logprobs(3),
    ]
}

/// Targets and parameters of `rows` rows, as the request needs them.
struct Owned {
    targets: Option<Vec<i64>>,
    sampling: Option<Vec<SamplingParams>>,
}

impl Owned {
    fn new(request: &Request, rows: usize) -> Self {
        let targets = match *request {
            Request::Logprobs { targets, .. } => Some(
                (0..rows * targets).map(|i| if i % 4 == 3 { NO_TARGET_ID } else { 7 * i as i64 }).collect(),
            ),
            _ => None,
        };
        let params = |row| SamplingParams { seed: row as u64, top_p: 0.9, ..SamplingParams::default() };
        let sampling = matches!(request, Request::Sample { .. }).then(|| (0..rows).map(params).collect());
        Owned { targets, sampling }
    }

    fn inputs(&self) -> RowInputs<'_> {
        let (targets, sampling) = (self.targets.as_deref(), self.sampling.as_deref());
        RowInputs { targets, sampling, ..RowInputs::default() }
    }
}

#[test]
fn the_callers_buffers_have_what_an_answer_of_its_own_has() {
    let test = test_head();
    for size in 1..=4 {
        let counts: Vec<usize> = (0..size).map(|me| [3, 0, 1, 5][me]).collect();
        each_rank(size, |me, exchange| {
            let mut head = head_of(&test, &config(), size, me, exchange).unwrap();
            let (mine, most) = (counts[me], 5);
            let bytes = test.rows(mine, me as u64);
            let plain = HiddenRows::new(&bytes, DType::F32, mine, HIDDEN).unwrap();
            for request in requests() {
                let owned = Owned::new(&request, mine);
                let modes =
                    [RowCounts::exact(&counts), RowCounts::capacity(most, mine), RowCounts::discover(mine)];
                for (gap, counts) in modes.into_iter().enumerate() {
                    let step = head.step(counts.clone(), &request).unwrap();
                    let want = step.run_with(plain, &owned.inputs()).unwrap();
                    let scattered = Scattered::new(&bytes, DType::F32, HIDDEN, 10 * me as u64 + gap as u64);
                    for hidden in [plain, scattered.rows(4).unwrap(), scattered.rows(8).unwrap()] {
                        let got = run_into(&mut head, &counts, &request, false, hidden, &owned.inputs(), gap)
                            .unwrap();
                        let what = format!("{request}, {counts:?}, {size} ranks, rank {me}");
                        assert_same_rows(&got, &want, &what);
                        // The bytes and rounds exchanged are the same, too; times are not.
                        let sums = |answer: &Answer| {
                            let stats = answer.stats;
                            (stats.bytes_sent, stats.bytes_received, stats.rounds, stats.rows_computed)
                        };
                        assert_eq!(sums(&got), sums(&want), "{what}");
                    }
                }
            }
        });
    }
}

#[test]
fn several_targets_of_a_row_are_answered_as_each_alone_and_minus_100_is_none() {
    const TARGETS: usize = 3;
    let test = test_head();
    // The second row has one target twice, the third has none at all.
    let targets = [5, NO_TARGET_ID, 299, 17, 17, NO_TARGET_ID, NO_TARGET_ID, NO_TARGET_ID, NO_TARGET_ID];
    let bytes = test.rows(3, 1);
    for size in [1, 2, 4] {
        each_rank(size, |me, exchange| {
            let mut head = head_of(&test, &config(), size, me, exchange).unwrap();
            let hidden = HiddenRows::new(&bytes, DType::F32, 3, HIDDEN).unwrap();
            let counts = vec![3; size];
            let mut run = |request: Request, targets: &[i64]| {
                let inputs = RowInputs { targets: Some(targets), ..RowInputs::default() };
                let step = head.step(RowCounts::exact(&counts), &request).unwrap();
                let answer = step.run_with(hidden, &inputs).unwrap();
                assert_eq!(answer.row_status, [RowStatus::Good; 3]);
                let Output::Logprobs(told) = answer.output else { panic!("not logprobs") };
                told
            };
            let all = run(Request::Logprobs { targets: TARGETS, top_n: 2, processed: false }, &targets);
            for i in 0..TARGETS {
                let own: Vec<i64> = targets.chunks(TARGETS).map(|row| row[i]).collect();
                let one = run(Request::logprobs(2), &own);
                assert_eq!((&one.top_ids, &one.top_logprobs), (&all.top_ids, &all.top_logprobs));
                for (row, &target) in own.iter().enumerate() {
                    let at = row * TARGETS + i;
                    assert_eq!(
                        all.logprobs[at].to_bits(),
                        one.logprobs[row].to_bits(),
                        "row {row}, target {i}"
                    );
                    assert_eq!(all.ranks[at], one.ranks[row], "row {row}, target {i}");
                    let none = target == NO_TARGET_ID;
                    assert_eq!((all.logprobs[at].is_nan(), all.ranks[at] == -1), (none, none));
                }
            }
        });
    }
    // Other negative numbers are not valid targets.
    let mut head = head_of(&test, &config(), 1, 0, alone()).unwrap();
    for bad in [-1, -99, -101, 300, i64::MIN] {
        let inputs = RowInputs { targets: Some(&[5, bad, 6]), ..RowInputs::default() };
        let hidden = HiddenRows::new(&bytes, DType::F32, 3, HIDDEN).unwrap();
        let step = head.step(RowCounts::exact(&[3]), &Request::logprobs(0)).unwrap();
        let error = step.run_with(hidden, &inputs).unwrap_err();
        let want = format!("target of row 1: wanted an id from 0 to 299, or -100 for none, got {bad}");
        assert!(error.to_string().contains(&want), "{error}");
        assert!(head.poisoned().is_none());
    }
}

/// A logit that is finite in f32 and infinite in the delivered type.
#[test]
fn a_logit_that_overflows_what_is_delivered_makes_its_row_not_finite_at_any_size() {
    // For the row [1]: the largest value that does not round to infinity, and the first that does.
    for (dtype, fits, overflows) in
        [(DType::F16, 65_519.996f32, 65_520.0f32), (DType::Bf16, f32::from_bits(0x7f7f_7fff), f32::MAX)]
    {
        for (logit, finite) in [(fits, true), (overflows, false), (-fits, true), (-overflows, false)] {
            for size in 1..=4 {
                // In the first, a middle and the last shard.
                for at in [0, 130, 299] {
                    let mut weights = vec![0.5; 300];
                    weights[at] = logit;
                    let (vocab, hidden, quantization) = (300, 1, Quantization::None);
                    let test =
                        TestHead { vocab, hidden, dtype: DType::F32, quantization, weights, bias: None };
                    let answers = each_rank(size, |me, exchange| {
                        let mut head = head_of(&test, &test.config(), size, me, exchange).unwrap();
                        let rows = HiddenRows::from_f32(&[1.0, 0.25], 2, 1).unwrap();
                        let counts = RowCounts::exact(&vec![2; size]);
                        [dtype, DType::F32].map(|dtype| {
                            head.step(counts.clone(), &Request::logits(dtype)).unwrap().run(rows).unwrap()
                        })
                    });
                    for [narrow, wide] in answers {
                        let first = if finite { RowStatus::Good } else { RowStatus::NonFinite };
                        let what = format!("{logit:e} in {dtype}, {size} ranks, id {at}");
                        assert_eq!(narrow.row_status, [first, RowStatus::Good], "{what}");
                        assert_eq!(wide.row_status, [RowStatus::Good; 2], "{what}");
                        // The values are delivered as rounded.
                        let got = narrow.output.logits_f32().unwrap()[at];
                        assert_eq!(got.is_infinite(), !finite, "{what}");
                    }
                }
            }
        }
    }
}

/// Replaces one of the caller's buffers by a wrong one, which may borrow the given memory.
type Spoil = for<'a> fn(AnswerBuffers<'a>, &'a mut [u64]) -> AnswerBuffers<'a>;

/// Buffers for two rows of which one is wrong: the request, the mistake, the message.
fn spoilt() -> [(Request, Spoil, &'static str); 12] {
    let (logits, logprobs) = (Request::logits(DType::Bf16), Request::logprobs(2));
    [
        (Request::argmax(), |b, _| AnswerBuffers { ids: SpanMut::EMPTY, ..b }, "ids: wanted 16 bytes, got 0"),
        (
            Request::argmax(),
            |b, _| AnswerBuffers { row_status: b.row_status.part(0..1), ..b },
            "row_status: wanted 2 bytes, got 1 bytes",
        ),
        (
            Request::argmax(),
            |b, own| AnswerBuffers { ids: SpanMut::host(own).part(4..20), ..b },
            "ids: wanted an address that is a multiple of 8",
        ),
        (
            Request::top_k(3),
            |b, own| AnswerBuffers { values: SpanMut::host(own), ..b },
            "values: wanted 24 bytes",
        ),
        (
            Request::top_k(3),
            |b, own| AnswerBuffers { logsumexp: SpanMut::host(own).part(2..10), ..b },
            "logsumexp: wanted an address that is a multiple of 4",
        ),
        (
            Request::top_k(3),
            |b, own| {
                let ids = SpanMut::host(own).part(0..48);
                // SAFETY: refused before anybody looks at them.
                let values = unsafe { SpanMut::from_raw(Memory::Host, ids.address() + 40, 24) };
                AnswerBuffers { ids, values, ..b }
            },
            "values: wanted memory that ids does not use",
        ),
        (
            logits,
            |b, _| AnswerBuffers { logits_stride: 598, ..b },
            "stride of the logits: wanted at least the 600 bytes of a row",
        ),
        (
            logits,
            |b, _| AnswerBuffers { logits_stride: 603, ..b },
            "stride of the logits: wanted at least the 600 bytes of a row, whole elements, got 603",
        ),
        (
            logits,
            |b, _| AnswerBuffers { logits_stride: 602, logits: b.logits.part(0..1201), ..b },
            "logits: wanted 2 rows, 602 bytes from row to row, got 1201 bytes",
        ),
        (
            logprobs,
            |b, _| {
                // SAFETY: refused before anybody looks at it.
                let ranks = unsafe { SpanMut::from_raw(Memory::Device(3), 0x1000, 16) };
                AnswerBuffers { ranks, ..b }
            },
            "ranks: wanted host memory, got memory of device 3",
        ),
        (logprobs, |b, _| AnswerBuffers { top_ids: b.top_ids.part(0..8), ..b }, "top_ids: wanted 32 bytes"),
        (
            Request::sample_with_logprobs(2),
            |b, _| AnswerBuffers { logprobs: SpanMut::EMPTY, ..b },
            "logprobs: wanted 8 bytes, got 0 bytes",
        ),
    ]
}

/// A step of two rows in which `spoil` makes one buffer wrong.
fn spoilt_step(head: &mut LmHead, size: usize, request: &Request, spoil: Spoil) -> Result<()> {
    let bytes = test_head().rows(2, 5);
    let hidden = HiddenRows::new(&bytes, DType::F32, 2, HIDDEN)?;
    let owned = Owned::new(request, 2);
    let ticket = head.begin(&RowCounts::exact(&vec![2; size]), request, StepOptions::default())?;
    let (mut buffers, mut own) = (OwnBuffers::new(request, 2, 300, 1), [0u64; 20]);
    let answer = spoil(buffers.lend(), &mut own);
    let done = head.run_into(ticket, hidden, &owned.inputs(), answer, On::default()).map(|_| ());
    // Nothing was written to the status, a buffer that is right in all cases but one.
    let status = buffers.lend().row_status.into_host().unwrap();
    assert!(status.iter().all(|byte| *byte == 0xa5), "{done:?}");
    done
}

fn good_step(head: &mut LmHead, size: usize) -> Result<Answer> {
    let bytes = test_head().rows(2, 5);
    let hidden = HiddenRows::new(&bytes, DType::F32, 2, HIDDEN)?;
    head.step(RowCounts::exact(&vec![2; size]), &Request::top_k(2))?.run(hidden)
}

#[test]
fn bad_buffers_are_refused_by_name_and_a_head_of_one_rank_stays_usable() {
    let mut head = head_of(&test_head(), &config(), 1, 0, alone()).unwrap();
    let want = good_step(&mut head, 1).unwrap();
    for (request, spoil, text) in spoilt() {
        let error = spoilt_step(&mut head, 1, &request, spoil).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{request}: {error}");
        assert!(error.to_string().contains(text), "{request}: {error}\nwant {text}");
        assert!(head.poisoned().is_none(), "{request}: {error}");
        assert_same_rows(&good_step(&mut head, 1).unwrap(), &want, "after bad buffers");
    }
    // Buffers that overlap the rows.
    let mut both = test_head().rows(2, 5);
    let ticket = head.begin(&RowCounts::exact(&[2]), &Request::logits(DType::F32), StepOptions::default());
    let address = both.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: refused before anybody writes there.
    let logits = unsafe { SpanMut::from_raw(Memory::Host, address + 60, 2400) };
    let mut row_status = [0u8; 2];
    let row_status = SpanMut::host(&mut row_status[..]);
    let answer = AnswerBuffers { logits, row_status, ..AnswerBuffers::default() };
    let hidden = HiddenRows::new(&both, DType::F32, 2, HIDDEN).unwrap();
    let done = head.run_into(ticket.unwrap(), hidden, &RowInputs::default(), answer, On::default());
    let text = done.unwrap_err().to_string();
    assert!(text.contains("logits: wanted memory that hidden_states does not use"), "{text}");
    // A workspace that is not of this backend's memory, is misaligned, or overlaps the answer.
    let mut room = vec![0u8; 1024];
    let address = room.as_mut_ptr().expose_provenance() as u64;
    let aligned = address.next_multiple_of(256);
    for (memory, workspace, text) in [
        (Memory::Device(0), aligned, "workspace: wanted host memory, got memory of device 0"),
        (Memory::Host, aligned + 8, "workspace: wanted an address that is a multiple of 256"),
        (Memory::Host, aligned, "row_status: wanted memory that workspace does not use"),
    ] {
        let ticket = head.begin(&RowCounts::exact(&[2]), &Request::argmax(), StepOptions::default()).unwrap();
        let rows = test_head().rows(2, 5);
        let hidden = HiddenRows::new(&rows, DType::F32, 2, HIDDEN).unwrap();
        let mut ids = [0u64; 2];
        // SAFETY: refused before anybody uses them.
        let span = |memory, at, len| unsafe { SpanMut::from_raw(memory, at, len) };
        let ids = SpanMut::host(&mut ids[..]);
        let row_status = span(Memory::Host, aligned + 16, 2);
        let answer = AnswerBuffers { row_status, ids, ..AnswerBuffers::default() };
        let on = On { workspace: Some(span(memory, workspace, 256)), ..On::default() };
        let error = head.run_into(ticket, hidden, &RowInputs::default(), answer, on).unwrap_err();
        assert!(error.to_string().contains(text), "{error}\nwant {text}");
    }
    // Rows and indices in device memory, which this backend does not have.
    for device_rows in [true, false] {
        // SAFETY: refused before anybody reads there.
        let far = unsafe { Span::from_raw(Memory::Device(0), 0x1000, 2 * 4 * HIDDEN) };
        let near = test_head().rows(2, 5);
        let data = if device_rows { far } else { Span::host(&near) };
        let hidden = HiddenRows::strided(data, DType::F32, 2, HIDDEN, 4 * HIDDEN).unwrap();
        let selected = hidden.select_span(far.part(0..16), 8);
        let error = match selected {
            Ok(hidden) => good_step_of(&mut head, hidden).unwrap_err(),
            Err(error) => error,
        };
        let what = if device_rows {
            "hidden_states: wanted host memory"
        } else {
            "logits_indices: wanted host memory"
        };
        assert!(error.to_string().contains(what), "{error}\nwant {what}");
    }
    assert_same_rows(&good_step(&mut head, 1).unwrap(), &want, "at the end");
}

fn good_step_of(head: &mut LmHead, hidden: HiddenRows<'_>) -> Result<Answer> {
    head.step(RowCounts::exact(&[2]), &Request::top_k(2))?.run(hidden)
}

#[test]
fn the_peers_of_bad_buffers_are_told_at_once_and_before_anything_is_sent() {
    const SIZE: usize = 3;
    for (request, spoil, text) in spoilt() {
        let began = Instant::now();
        let errors = each_rank(SIZE, |me, exchange| {
            // Steps without headers: the first bytes sent would be the rows.
            let config = HeadConfig { verify: Verify::WarmUp, ..config() };
            let (sent, on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(false)));
            let (count, counting) = (Arc::clone(&sent), Arc::clone(&on));
            let exchange = hooked(exchange, move |when, _, _| {
                if matches!(when, When::BeforeGather | When::BeforeExchange) && *counting.lock().unwrap() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            let mut head = head_of(&test_head(), &config, SIZE, me, exchange).unwrap();
            let want = good_step(&mut head, SIZE).unwrap();
            *on.lock().unwrap() = true;
            let error = if me == 1 {
                let error = spoilt_step(&mut head, SIZE, &request, spoil).unwrap_err();
                assert_eq!(sent.load(Ordering::SeqCst), 0, "{error}");
                error
            } else {
                good_step(&mut head, SIZE).unwrap_err()
            };
            assert!(head.poisoned().is_some());
            head.rebuild().unwrap();
            assert_same_rows(&good_step(&mut head, SIZE).unwrap(), &want, "after the rebuilding");
            error
        });
        assert!(matches!(errors[1], Error::Shape { .. }), "{}", errors[1]);
        assert!(errors[1].to_string().contains(text), "{}\nwant {text}", errors[1]);
        for rank in [0, 2] {
            assert!(matches!(errors[rank], Error::StepMismatch { .. }), "rank {rank}: {}", errors[rank]);
            let said = errors[rank].to_string();
            assert!(
                said.contains("aborted: ranks [1] say") && said.contains(&text[..8]),
                "rank {rank}: {said}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

/// A step that fails in its second chunk has computed the first, and must leave the caller's memory
/// unwritten.
#[test]
fn the_callers_memory_is_written_by_whole_answers_only() {
    let test = test_head();
    let mut config = config();
    config.logprobs_chunk_bytes = 2 * lmhead_testkit::chunk_row(300, 4 * HIDDEN, 1, 2, 1);
    let products = AtomicUsize::new(0);
    let breaks = move |asked: lmhead_testkit::hooked::Asked| {
        let second = asked.method == "hold" && products.fetch_add(1, Ordering::Relaxed) == 1;
        assert!(!second, "a backend's bug");
    };
    let backend = lmhead_testkit::hooked::hooked(lmhead_testkit::backend(), breaks);
    let group = lmhead::HeadGroup::data_parallel(1, 0).unwrap();
    let mut head = LmHead::new(&config, group, test.shard(0..300), alone(), backend).unwrap();
    let request = Request::logprobs(2);
    let (rows, targets) = (test.rows(4, 5), [1i64, 2, 3, 4]);
    let (mut status, mut floats, mut ids) = ([9u8; 4], [7f32; 12], [7i64; 12]);
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let ticket = head.begin(&RowCounts::exact(&[4]), &request, StepOptions::default()).unwrap();
        let hidden = HiddenRows::new(&rows, DType::F32, 4, HIDDEN).unwrap();
        let inputs = RowInputs { targets: Some(&targets), ..RowInputs::default() };
        let (logprobs, top_logprobs) = floats.split_at_mut(4);
        let (ranks, top_ids) = ids.split_at_mut(4);
        let answer = AnswerBuffers {
            row_status: SpanMut::host(&mut status[..]),
            logprobs: SpanMut::host(logprobs),
            ranks: SpanMut::host(ranks),
            top_ids: SpanMut::host(top_ids),
            top_logprobs: SpanMut::host(top_logprobs),
            ..AnswerBuffers::default()
        };
        head.run_into(ticket, hidden, &inputs, answer, On::default())
    }));
    assert!(run.is_err(), "the second chunk's product panics");
    assert_eq!((status, floats, ids), ([9; 4], [7.0; 12], [7; 12]));
}
