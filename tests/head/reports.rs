//! Public bug reports of engines that shard their heads, each as a test: what went wrong there ends in a
//! named error here, or cannot happen. nccl#1906, an all_gather in the wrong order, is in `wrong_transports`.

use lmhead::adjust::{Adjustments, Counts, Penalties};
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Answer, Output, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::hooked::hooked;
use lmhead_testkit::{TestHead, each_rank, head_of, row_bits};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIZE: usize = 3;

pub fn test_head() -> TestHead {
    TestHead::random(300, 16, DType::F32, Quantization::None, 3)
}

fn config(name: &str, timeout_ms: u64) -> HeadConfig {
    HeadConfig { name: name.into(), timeout: Duration::from_millis(timeout_ms), ..test_head().config() }
}

/// A step with `rows` rows of `seed` and the inputs that the request needs.
fn step(head: &mut LmHead, counts: RowCounts, request: Request, rows: usize, seed: u64) -> Result<Answer> {
    let test = test_head();
    let bytes = test.rows(rows, seed);
    let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16)?;
    let (targets, sampling) = (vec![7; rows], vec![SamplingParams::default(); rows]);
    let inputs = RowInputs {
        targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
        sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
        ..RowInputs::default()
    };
    head.step(counts, &request)?.run_with(hidden, &inputs)
}

fn argmax(head: &mut LmHead, size: usize) -> Result<Answer> {
    step(head, RowCounts::exact(&vec![1; size]), Request::argmax(), 1, 5)
}

/// The answers of one rank that has the whole head.
fn alone(request: Request, rows: usize, seed: u64) -> Answer {
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    let mut head = head_of(&test_head(), &config("lm_head", 30_000), 1, 0, exchange).unwrap();
    step(&mut head, RowCounts::exact(&[rows]), request, rows, seed).unwrap()
}

pub fn assert_same_rows(got: &Answer, want: &Answer, what: &str) {
    assert_eq!(got.rows(), want.rows(), "{what}");
    for row in 0..got.rows() {
        assert_eq!(row_bits(got, row), row_bits(want, row), "{what}, row {row}");
    }
}

fn requests() -> [Request; 5] {
    let logits = Request::logits(DType::F32);
    [Request::argmax(), logits, Request::top_k(4), Request::logprobs(2), Request::sample()]
}

/// vllm-ascend#17232: an idle rank ran another collective before the LM head, active ranks after it. Here the
/// other collective is a draft head's on the same transport: each side waits in its own head, and the errors
/// name both places.
#[test]
fn vllm_ascend_17232_an_idle_rank_in_another_collective() {
    let errors = each_rank(SIZE, |me, exchange| {
        let mut target =
            head_of(&test_head(), &config("target", 600), SIZE, me, Arc::clone(&exchange)).unwrap();
        let mut draft = head_of(&test_head(), &config("draft", 600), SIZE, me, exchange).unwrap();
        let idle = me == 1;
        let (first, second) = if idle { (&mut draft, &mut target) } else { (&mut target, &mut draft) };
        let error = argmax(first, SIZE).and_then(|_| argmax(second, SIZE)).unwrap_err();
        // A rank that has given up must not leave before the others' deadline.
        std::thread::sleep(Duration::from_millis(600));
        error
    });
    for (rank, error) in errors.iter().enumerate() {
        let (missing, other) = if rank == 1 { (vec![0, 2], "target") } else { (vec![1], "draft") };
        let Error::Timeout { missing: named, .. } = error else { panic!("rank {rank}: {error}") };
        assert_eq!(*named, missing, "rank {rank}: {error}");
        let (text, id) = (error.to_string(), id_of(other));
        assert!(
            text.contains(&id) || text.contains(&format!("`{other}`")),
            "rank {rank}: {text}\nwant {other}, {id}"
        );
    }
}

/// The name of a head in messages where only its id is known.
fn id_of(name: &str) -> String {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:#010x}", name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv) as u32)
}

/// vllm-ascend#14668: idle ranks never computed logits, and padded indices would have corrupted penalties.
/// Here idle ranks take part in capacity steps with penalties; whatever the padding, the answers are those of
/// one rank alone.
#[test]
fn vllm_ascend_14668_idle_ranks_penalties_and_capacity() {
    let vocab = test_head().vocab;
    // The penalties of row `row` of a rank, which would show on any other row.
    let adjusted = |head: &mut LmHead, counts: RowCounts, request: Request, rows: usize, seed: u64| {
        let bytes = test_head().rows(rows, seed);
        let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16)?;
        let ids: Vec<i64> = (0..rows as i64 * 40).map(|i| (i * 37 + seed as i64) % vocab as i64).collect();
        let column = |base: f32| (0..rows).map(|row| base + 0.5 * row as f32).collect::<Vec<f32>>();
        let (repetition, frequency, presence) = (column(1.5), column(0.5), column(1.0));
        let offsets: Vec<usize> = (0..=rows).map(|row| row * 40).collect();
        let (counted, in_prompt) = (vec![2; ids.len()], vec![true; ids.len()]);
        let penalties = Penalties {
            repetition: &repetition,
            frequency: &frequency,
            presence: &presence,
            counts: Counts { offsets: &offsets, ids: &ids, counts: &counted, in_prompt: &in_prompt },
        };
        let adjustments = Adjustments { penalties: Some(penalties), ..Adjustments::default() };
        // An idle rank passes none or an empty list: both are legal.
        let adjustments = (rows > 0 || seed.is_multiple_of(2)).then_some(adjustments);
        let (targets, sampling) = (vec![7; rows], vec![SamplingParams::default(); rows]);
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            adjustments,
            ..RowInputs::default()
        };
        head.step_adjusted(counts, &request)?.run_with(hidden, &inputs)
    };
    for request in
        [Request::argmax(), Request::logits(DType::F32), Request::processed_logprobs(2), Request::sample()]
    {
        for rows in [[3, 0, 2], [0, 0, 4], [0, 0, 0]] {
            let want: Vec<Answer> = (0..SIZE)
                .map(|me| {
                    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
                    let mut head = head_of(&test_head(), &config("lm_head", 30_000), 1, 0, exchange).unwrap();
                    adjusted(&mut head, RowCounts::exact(&[rows[me]]), request, rows[me], me as u64).unwrap()
                })
                .collect();
            for capacity in [4, 9] {
                let answers = each_rank(SIZE, |me, exchange| {
                    let mut head =
                        head_of(&test_head(), &config("lm_head", 30_000), SIZE, me, exchange).unwrap();
                    let counts = RowCounts::capacity(capacity, rows[me]);
                    adjusted(&mut head, counts, request, rows[me], me as u64).unwrap()
                });
                for (me, (got, want)) in answers.iter().zip(&want).enumerate() {
                    assert_same_rows(
                        got,
                        want,
                        &format!("{request}, rows {rows:?}, capacity {capacity}, rank {me}"),
                    );
                }
            }
        }
    }
}

/// vllm-ascend#4254: a dummy step called the head once, whatever the number of speculative tokens. With equal
/// requests the active ranks wait in a step that the idle rank never makes, and the error names the step's
/// number. With a request of another kind for drafts, the headers of the first surplus step name the
/// requests.
#[test]
fn vllm_ascend_4254_a_dummy_step_with_one_call() {
    const SPECULATIVE: u64 = 3;
    for draft in [Request::argmax(), Request::top_k(2)] {
        let errors = each_rank(SIZE, |me, exchange| {
            let mut head = head_of(&test_head(), &config("lm_head", 600), SIZE, me, exchange).unwrap();
            let calls = if me == 1 { 1 } else { 1 + SPECULATIVE };
            for _round in 0..2 {
                for call in 0..calls {
                    let request = if call == 0 { Request::argmax() } else { draft };
                    if let Err(error) = step(&mut head, RowCounts::exact(&[1; SIZE]), request, 1, 5) {
                        return Some(error);
                    }
                }
            }
            // The idle rank has made both of its calls and is busy for longer than the others' deadline.
            std::thread::sleep(Duration::from_millis(1500));
            None
        });
        for rank in [0, 2] {
            let error = errors[rank].as_ref().unwrap_or_else(|| panic!("rank {rank} found nothing"));
            let text = error.to_string();
            if draft == Request::argmax() {
                let Error::Timeout { step, missing, .. } = error else { panic!("rank {rank}: {text}") };
                assert_eq!((*step, missing.as_slice()), (2, &[1][..]), "rank {rank}: {text}");
                assert!(text.contains("step 1"), "rank {rank}: the place of rank 1 is its last step: {text}");
            } else {
                assert!(matches!(error, Error::StepMismatch { step: 1, .. }), "rank {rank}: {text}");
                assert!(
                    text.contains("ranks [0, 2] say topk:2, ranks [1] say argmax"),
                    "rank {rank}: {text}"
                );
            }
        }
    }
}

/// vllm#44185: one rank skips its draft head while the target goes on. Both heads have channels of their own,
/// so the target's next step never receives messages of the draft; a rank waiting in the draft learns where
/// the other is.
#[test]
fn vllm_44185_a_rank_that_skips_its_draft_head() {
    let errors = each_rank(SIZE, |me, exchange| {
        let mut target =
            head_of(&test_head(), &config("target", 600), SIZE, me, Arc::clone(&exchange)).unwrap();
        let mut draft = head_of(&test_head(), &config("draft", 600), SIZE, me, exchange).unwrap();
        let want = argmax(&mut target, SIZE).unwrap();
        argmax(&mut draft, SIZE).unwrap();
        let mut steps = || {
            if me != 1 {
                argmax(&mut draft, SIZE)?;
            }
            argmax(&mut target, SIZE)
        };
        let error = steps().unwrap_err();
        // A rank that has given up stays until the others have seen it. After a rebuild both go on.
        std::thread::sleep(Duration::from_millis(300));
        draft.rebuild().unwrap();
        target.rebuild().unwrap();
        assert_same_rows(&argmax(&mut target, SIZE).unwrap(), &want, "after the rebuilding");
        argmax(&mut draft, SIZE).unwrap();
        error
    });
    for rank in [0, 2] {
        let Error::Timeout { missing, step: 1, .. } = &errors[rank] else {
            panic!("rank {rank}: {}", errors[rank])
        };
        assert_eq!(missing, &[1], "rank {rank}");
        let text = errors[rank].to_string();
        assert!(text.contains(&id_of("target")) || text.contains("`target`"), "rank {rank}: {text}");
    }
    assert!(matches!(&errors[1], Error::Timeout { .. }), "{}", errors[1]);
}

/// vllm#48568: the warm-up brought fewer rows, and the first speculative step, which has 1 + k rows for each,
/// hung. Here, after `warm_up(c)`, no step of up to c rows makes a backend call that the warm-up has not made
/// with as many rows.
#[test]
fn vllm_48568_no_first_use_after_the_warm_up() {
    // Four sequences with two speculative tokens each.
    const MOST: usize = 4 * (1 + 2);
    each_rank(SIZE, |me, exchange| {
        let most_rows: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let noted = Arc::clone(&most_rows);
        let backend = hooked(lmhead_testkit::backend(), move |asked| {
            let call = format!("{}, {:?}", asked.method, asked.ask);
            let mut noted = noted.lock().unwrap();
            let most = noted.entry(call).or_default();
            *most = asked.entries.max(*most);
        });
        let group = HeadGroup::data_parallel(SIZE, me).unwrap();
        let shard = test_head().shard(group.shard(300, me));
        // A chunk of logprobs holds a few rows, so that a step has several chunks.
        let config = HeadConfig { logprobs_chunk_bytes: 8000, ..config("lm_head", 30_000) };
        let mut head = LmHead::new(&config, group, shard, exchange, backend).unwrap();
        head.warm_up(MOST, &requests()).unwrap();
        let warm = std::mem::take(&mut *most_rows.lock().unwrap());
        assert!(warm.len() >= 8, "{warm:?}");
        for request in requests() {
            for rows in 0..=MOST {
                let counts: Vec<usize> = (0..SIZE).map(|m| (rows + 5 * m) % (MOST + 1)).collect();
                let mine = counts[me];
                for counts in
                    [RowCounts::exact(&counts), RowCounts::discover(mine), RowCounts::capacity(MOST, mine)]
                {
                    step(&mut head, counts, request, mine, 5).unwrap();
                }
            }
            let all_full = RowCounts::exact(&[MOST; SIZE]);
            step(&mut head, all_full, request, MOST, 5).unwrap();
        }
        for (call, rows) in most_rows.lock().unwrap().iter() {
            let seen =
                warm.get(call).unwrap_or_else(|| panic!("{call}: first used after the warm-up: {warm:?}"));
            assert!(rows <= seen, "{call}: {rows} rows, after a warm-up with {seen}");
        }
    });
}

/// sglang#39899: an idle rank computed `cumsum([0]) - 1`, an index of -1. Here an idle rank selects nothing
/// from nothing, in every mode and request, also when all ranks are idle; an index into no rows is refused by
/// name.
#[test]
fn sglang_39899_selections_of_idle_ranks() {
    let zero = |head: &mut LmHead, counts: RowCounts, request: Request, selection: Option<&[usize]>| {
        let mut hidden = HiddenRows::none(DType::F32, 16);
        if let Some(selection) = selection {
            hidden = hidden.select(selection)?;
        }
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&[][..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&[][..]),
            ..RowInputs::default()
        };
        head.step(counts, &request)?.run_with(hidden, &inputs)
    };
    let error = HiddenRows::none(DType::F32, 16).select(&[usize::MAX]).unwrap_err();
    assert!(matches!(error, Error::Index { .. }), "{error}");
    assert!(error.to_string().contains("there are no rows to index"), "{error}");
    let refused = lmhead::rows::row_numbers("logits_indices", &[-1], 0).unwrap_err();
    assert!(refused.to_string().contains("index -1 at position 0"), "{refused}");
    for idle in [&[1][..], &[0, 2], &[0, 1, 2]] {
        let rows = |m: usize| if idle.contains(&m) { 0 } else { 2 };
        let counts: Vec<usize> = (0..SIZE).map(rows).collect();
        each_rank(SIZE, |me, exchange| {
            let mut head = head_of(&test_head(), &config("lm_head", 30_000), SIZE, me, exchange).unwrap();
            for request in requests() {
                let want = alone(request, rows(me), 5);
                for selection in [None, Some(&[][..])] {
                    for counts in [
                        RowCounts::exact(&counts),
                        RowCounts::discover(rows(me)),
                        RowCounts::capacity(3, rows(me)),
                    ] {
                        let got = match rows(me) {
                            0 => zero(&mut head, counts, request, selection).unwrap(),
                            n => step(&mut head, counts, request, n, 5).unwrap(),
                        };
                        assert_same_rows(&got, &want, &format!("{request}, rank {me}, idle {idle:?}"));
                    }
                }
            }
        });
    }
}

/// TensorRT-LLM#16440: the argmax was that of the local shard, and the wrong rows were trimmed. Each shard in
/// turn owns the maximum of every row, with uneven rows; every rank must name the same global id, for its own
/// rows.
#[test]
fn tensorrt_llm_16440_each_shard_owns_the_maximum() {
    let (size, hidden, vocab) = (4, 16, 300);
    for owner in 0..size {
        let group = HeadGroup::data_parallel(size, 0).unwrap();
        let shard = group.shard(vocab, owner);
        let mut test = test_head();
        // Row r of the group has its maximum at its own id of the owner's shard: that id's weights select
        // component r alone.
        let ids: Vec<usize> =
            (0..hidden).map(|r| shard.start + r * (shard.len() - 1) / (hidden - 1)).collect();
        for (r, &id) in ids.iter().enumerate() {
            test.weights[id * hidden..(id + 1) * hidden].fill(0.0);
            test.weights[id * hidden + r] = 100.0;
        }
        for counts in [[3, 0, 5, 1], [0, 0, 0, 7], [1, 1, 1, 1]] {
            let answers = each_rank(size, |me, exchange| {
                let mut head = head_of(&test, &test.config(), size, me, exchange).unwrap();
                let first: usize = counts[..me].iter().sum();
                let rows: Vec<f32> = (first..first + counts[me])
                    .flat_map(|r| (0..hidden).map(move |k| if k == r { 1.0 } else { 0.0 }))
                    .collect();
                let hidden_rows = HiddenRows::from_f32(&rows, counts[me], hidden).unwrap();
                let run = |head: &mut LmHead, request: &Request| {
                    head.step(RowCounts::exact(&counts), request).unwrap().run(hidden_rows).unwrap().output
                };
                let Output::Argmax { ids: best } = run(&mut head, &Request::argmax()) else {
                    panic!("an argmax")
                };
                let Output::TopK { ids: top, .. } = run(&mut head, &Request::top_k(1)) else {
                    panic!("a top-k")
                };
                (first, best, top)
            });
            for (me, (first, best, top)) in answers.into_iter().enumerate() {
                let want: Vec<i64> = (first..first + counts[me]).map(|r| ids[r] as i64).collect();
                assert_eq!((&best, &top), (&want, &want), "owner {owner}, counts {counts:?}, rank {me}");
            }
        }
    }
}

/// TensorRT-LLM#7891: the group's size followed one step's token count. Here it is fixed when the head is
/// made, and the same rows have the same bits in any step.
#[test]
fn tensorrt_llm_7891_the_group_does_not_follow_the_tokens_of_a_step() {
    let want = alone(Request::top_k(3), 2, 5);
    each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config("lm_head", 30_000), SIZE, me, exchange).unwrap();
        let ranks = head.group().ranks().to_vec();
        for others in [0, 1, 2, 7, 64, 300, 1, 0] {
            let counts: Vec<usize> = (0..SIZE).map(|m| if m == 1 { 2 } else { others }).collect();
            let got = step(&mut head, RowCounts::exact(&counts), Request::top_k(3), counts[me], 5).unwrap();
            if me == 1 {
                assert_same_rows(&got, &want, &format!("{others} rows on the others"));
            }
            assert_eq!(head.group().ranks(), ranks);
        }
    });
}
