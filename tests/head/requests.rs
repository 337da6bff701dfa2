//! Requests on the CPU: the property of `lmhead_testkit::requests`, ranks that disagree, bad input, and the
//! bytes exchanged.

use lmhead::adjust::Adjustments;
use lmhead::config::{Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::exchange::{Exchange, local};
use lmhead::result::{Answer, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::step::HEADER_BYTES;
use lmhead_testkit::requests::cases;
use lmhead_testkit::{TestHead, backend, each_rank, head_of, row_bits};
use proptest::prelude::*;
use std::sync::Arc;

const KINDS: [(DType, Quantization); 4] = [
    (DType::F32, Quantization::None),
    (DType::Bf16, Quantization::None),
    (DType::F16, Quantization::W8a8),
    (DType::F32, Quantization::W8a16),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_what_the_definitions_say_over_full_logits(case in cases(&KINDS)) {
        case.holds(&backend())?;
    }
}

/// A head of 512 ids in 4 shards of 128, and 2 rows on each rank.
const SIZE: usize = 4;
const ROWS: usize = 2;

fn small() -> TestHead {
    TestHead::random(512, 8, DType::F32, Quantization::None, 5)
}

/// Runs a step on each rank of [`SIZE`]; `own` gives the mask that the rank passes, `announced` whether its
/// step options announce one.
fn masked_steps(
    verify: Verify,
    request: Request,
    announced: impl Fn(usize) -> bool + Sync,
    own: impl Fn(usize) -> Option<Vec<i32>> + Sync,
) -> Vec<lmhead::Result<Answer>> {
    let test = small();
    each_rank(SIZE, |me, exchange| {
        let mut config = test.config();
        config.verify = verify;
        let mut head = head_of(&test, &config, SIZE, me, exchange)?;
        let bytes = test.rows(ROWS, me as u64);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 8)?;
        let counts = RowCounts::exact(&[ROWS; SIZE]);
        let step =
            if announced(me) { head.step_adjusted(counts, &request) } else { head.step(counts, &request) };
        let mask = own(me);
        let adjustments = mask.as_deref().map(Adjustments::allowed);
        let answer = step?.run_with(hidden, &RowInputs { adjustments, ..RowInputs::default() });
        if answer.is_err() {
            let refused = head.step(RowCounts::exact(&[ROWS; SIZE]), &request).map(|_| ()).unwrap_err();
            assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        }
        answer
    })
}

#[test]
fn ranks_that_disagree_on_adjustments_are_named() {
    for verify in [Verify::Always, Verify::WarmUp] {
        let answers = masked_steps(verify, Request::argmax(), |me| me == 1, |_| None);
        for (rank, answer) in answers.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
            let want = "adjustments: ranks [0, 2, 3] say none, ranks [1] say some rows have them";
            assert!(verify != Verify::Always || error.to_string().contains(want), "rank {rank}: {error}");
        }
    }
}

#[test]
fn bad_adjustments_are_refused_where_they_are_and_end_the_step_elsewhere() {
    for (announced, words, want) in [
        (true, 3, "allowed: wanted [2, 16] i32, a bit for each id of 512, got 3 words"),
        (false, 32, "adjustments: wanted none, as announced in step(), got some"),
    ] {
        let own = |me| (me == 2).then(|| vec![-1; words]);
        let errors = masked_steps(Verify::Always, Request::argmax(), |_| announced, own);
        for (rank, answer) in errors.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(error.to_string().contains(want), "rank {rank}: {error}");
            assert_eq!(matches!(error, Error::StepMismatch { .. }), rank != 2, "rank {rank}: {error}");
        }
    }
}

#[test]
fn each_shard_is_sent_its_slice_in_two_rounds() {
    let plain = masked_steps(Verify::Always, Request::argmax(), |_| false, |_| None);
    let masked =
        masked_steps(Verify::Always, Request::argmax(), |_| true, |me| (me < 2).then(|| vec![-1; ROWS * 16]));
    for (rank, (plain, masked)) in plain.into_iter().zip(masked).enumerate() {
        let (plain, masked) = (plain.unwrap(), masked.unwrap());
        assert_eq!(row_bits(&plain, 0), row_bits(&masked, 0), "all ids are allowed");
        // Header, gather, candidates; with masks also sizes and slices.
        assert_eq!((plain.stats.rounds, masked.stats.rounds), (3, 5));
        let peers = SIZE as u64 - 1;
        // To each peer a size; from ranks with a mask also the kinds and 2 rows of 128 bits.
        let slice = 4 + ROWS as u64 * 16;
        let sent = if rank < 2 { peers * slice } else { 0 };
        let received = if rank < 2 { slice } else { 2 * slice };
        assert_eq!(masked.stats.bytes_sent - plain.stats.bytes_sent, 8 * peers + sent);
        assert_eq!(masked.stats.bytes_received - plain.stats.bytes_received, 8 * peers + received);
    }
}

/// Logprobs of 2 rows on each rank of [`SIZE`], with targets from `target(rank, row)`.
fn logprob_steps(
    chunk_bytes: u64,
    request: Request,
    counts: &(impl Fn(usize) -> RowCounts + Sync),
    target: impl Fn(usize, usize) -> i64 + Sync,
) -> Vec<lmhead::Result<Answer>> {
    let test = small();
    each_rank(SIZE, |me, exchange| {
        let mut config = test.config();
        config.logprobs_chunk_bytes = chunk_bytes;
        let mut head = head_of(&test, &config, SIZE, me, exchange)?;
        let bytes = test.rows(ROWS, me as u64);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 8)?;
        let targets: Vec<i64> = (0..ROWS).map(|row| target(me, row)).collect();
        let step = head.step(counts(me), &request)?;
        step.run_with(hidden, &RowInputs { targets: Some(&targets), ..RowInputs::default() })
    })
}

#[test]
fn logprobs_take_three_rounds_a_chunk_and_their_bytes_are_counted() {
    let target = |me: usize, row: usize| (me * 37 + row * 400) as i64 % 512;
    let modes: [&(dyn Fn(usize) -> RowCounts + Sync); 3] =
        [&|_| RowCounts::exact(&[ROWS; SIZE]), &|_| RowCounts::discover(ROWS), &|_| {
            RowCounts::capacity(ROWS + 3, ROWS)
        }];
    let mut first = None;
    for counts in modes {
        for top_n in [0, 5] {
            // 128 f32 logits of a shard and 8 f32 hidden states.
            let row = lmhead_testkit::chunk_row(128, 8 * 4, 1, top_n, SIZE);
            for (chunk_bytes, chunks) in
                [(row, 8), (4 * row - 1, 3), (8 * row - 1, 2), (8 * row, 1), (1 << 40, 1)]
            {
                let answers = logprob_steps(chunk_bytes, Request::logprobs(top_n), &|me| counts(me), target);
                for (rank, answer) in answers.into_iter().enumerate() {
                    let answer = answer.unwrap();
                    let (stats, peers) = (answer.stats, SIZE as u64 - 1);
                    // Header, targets; then for each chunk hidden rows, target logits, partials.
                    assert_eq!(stats.rounds, 2 + 3 * chunks);
                    let all = (SIZE * ROWS) as u64;
                    // The count of ids that beat the target fills 8 bytes.
                    let partial = 40 + 8 * (top_n as u64).max(1) + 8;
                    let fixed =
                        peers * (HEADER_BYTES as u64 + ROWS as u64 * (4 + 32) + ROWS as u64 * partial);
                    // Every rank sends for every target its logit, or that the target is not in its shard.
                    assert_eq!(stats.bytes_sent, fixed + peers * 4 * all);
                    assert_eq!(stats.bytes_received, stats.bytes_sent);
                    assert_eq!(stats.rows_computed, all);
                    if top_n == 5 && rank == 0 {
                        let bits = row_bits(&answer, 0);
                        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits);
                    }
                }
            }
        }
    }
}

#[test]
fn bad_logprobs_are_refused_with_the_row_and_the_rule() {
    let exact = &|_: usize| RowCounts::exact(&[ROWS; SIZE]);
    for bad in [512, -1, i64::MAX] {
        let target = |me, row| if (me, row) == (2, 1) { bad } else { 0 };
        for (rank, answer) in
            logprob_steps(1 << 20, Request::logprobs(0), exact, target).into_iter().enumerate()
        {
            let error = answer.unwrap_err();
            let want = format!("target of row 1: wanted an id from 0 to 511, or -100 for none, got {bad}");
            assert!(error.to_string().contains(&want), "rank {rank}: {error}");
            assert_eq!(matches!(error, Error::StepMismatch { .. }), rank != 2, "rank {rank}: {error}");
        }
    }
    for (bytes, request, want) in [
        (
            823,
            Request::logprobs(0),
            "logprobs_chunk_bytes: wanted at least 824: a row of 32 bytes of hidden states",
        ),
        (8000, Request::logprobs(513), "request logprobs: wanted at most the vocabulary size, 512"),
        (8000, Request::argmax(), "targets: wanted none with argmax, got some"),
    ] {
        for answer in logprob_steps(bytes, request, exact, |_, _| 0) {
            let text = answer.unwrap_err().to_string();
            assert!(text.contains(want), "got {text}\nwant {want}");
        }
    }
    let test = small();
    let mut head =
        head_of(&test, &test.config(), 1, 0, Arc::new(local::group(1).remove(0)) as Arc<dyn Exchange>)
            .unwrap();
    let error = head
        .step_adjusted(RowCounts::exact(&[1]), &Request::logprobs(1))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("wanted processed logprobs in a step with adjustments"), "{error}");
    let bytes = test.rows(1, 0);
    let hidden = HiddenRows::new(&bytes, DType::F32, 1, 8).unwrap();
    for (targets, want) in [(None, "wanted 1 ids, one for each row, got none"), (Some(&[1, 2][..]), "got 2")]
    {
        let step = head.step(RowCounts::exact(&[1]), &Request::logprobs(1)).unwrap();
        let error =
            step.run_with(hidden, &RowInputs { targets, ..RowInputs::default() }).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn the_memory_of_a_chunk_is_kept_for_any_number_of_rows() {
    // 3000 rows x 2000 ids would be 24 MB of logits; each of the two ranks is limited to 1 MB.
    let test = TestHead::random(2000, 8, DType::F32, Quantization::None, 9);
    let answers = each_rank(2, |me, exchange| {
        let mut config = test.config();
        config.logprobs_chunk_bytes = 1_000_000;
        let mut head = head_of(&test, &config, 2, me, exchange).unwrap();
        let rows = [3000, 1][me];
        let bytes = test.rows(rows, 4);
        let hidden = HiddenRows::new(&bytes, DType::F32, rows, 8).unwrap();
        let targets: Vec<i64> = (0..rows as i64).map(|row| row % 2000).collect();
        let step = head.step(RowCounts::exact(&[3000, 1]), &Request::logprobs(1)).unwrap();
        step.run_with(hidden, &RowInputs { targets: Some(&targets), ..RowInputs::default() }).unwrap()
    });
    // A row is (1024 logits + 8 hidden states) x 4 bytes and 168 for candidates: 232 rows to a chunk; rank
    // 1's one row is in the first.
    let chunks = 3001usize.div_ceil(232) as u32;
    for answer in &answers {
        assert_eq!(answer.stats.rounds, 2 + 3 * chunks);
        assert!(answer.row_status.iter().all(|s| *s == RowStatus::Good));
        assert!((500_000..1_000_000).contains(&answer.stats.chunk_bytes), "{}", answer.stats.chunk_bytes);
    }
    assert_eq!(row_bits(&answers[0], 0), row_bits(&answers[1], 0), "the same row and target on both");
}
