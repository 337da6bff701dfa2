//! Logprobs of sampled tokens equal those that a logprobs step gives for the same ids.

use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::head::LmHead;
use lmhead::layout::even_part;
use lmhead::result::{Answer, Logprobs, NO_TARGET_ID, Output, Request, RowInputs, RowStatus, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::adjusting::OwnAdjustments;
use lmhead_testkit::{Random, TestHead, each_rank, head_of};
use proptest::prelude::*;

const HIDDEN: usize = 8;

/// Runs `request` on the rows of one rank, with the adjustments where it takes them.
fn run(
    head: &mut LmHead,
    counts: &[usize],
    request: Request,
    hidden: HiddenRows<'_>,
    inputs: RowInputs<'_>,
    own: Option<&OwnAdjustments>,
) -> Answer {
    let counts = RowCounts::exact(counts);
    match own {
        Some(own) => own.with(|adjustments| {
            let step = head.step_adjusted(counts, &request).unwrap();
            step.run_with(hidden, &RowInputs { adjustments: Some(adjustments), ..inputs }).unwrap()
        }),
        None => head.step(counts, &request).unwrap().run_with(hidden, &inputs).unwrap(),
    }
}

fn sampled(answer: Answer) -> (Vec<RowStatus>, Vec<i64>, Option<Logprobs>) {
    let Output::Sample { ids, logprobs } = answer.output else { panic!("no tokens") };
    (answer.row_status, ids, logprobs)
}

/// All logprobs, ranks and ids of row `row`, as bits.
fn bits(told: &Logprobs, row: usize) -> (u32, i64, Vec<i64>, Vec<u32>) {
    assert_eq!(told.targets, 1);
    let best = row * told.top_n..(row + 1) * told.top_n;
    let values = told.top_logprobs[best.clone()].iter().map(|v| v.to_bits()).collect();
    (told.logprobs[row].to_bits(), told.ranks[row], told.top_ids[best].to_vec(), values)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn tokens_and_what_is_told_of_them_are_those_of_a_step_for_each(
        vocab in prop_oneof![1usize..5, 60usize..70, 1usize..500],
        size in 1usize..5, rows in 0usize..12, top_n in 0usize..9,
        processed: bool, adjusted: bool, ties: bool, chunked: bool, seed: u64,
    ) {
        let mut random = Random(seed);
        let mut test = TestHead::random(vocab, HIDDEN, DType::F32, Quantization::None, seed);
        if ties {
            test.weights.iter_mut().for_each(|w| *w = w.round());
        }
        let top_n = top_n.min(vocab);
        // Logprobs of a few rows in each chunk, or of all at once; a sampling step holds all rows in any
        // case.
        let logprobs_chunk_bytes = if chunked { 40_000 } else { 1 << 30 };
        let config = HeadConfig { logprobs_chunk_bytes, ..test.config() };
        let mut bytes = test.rows(rows, seed ^ 1);
        if ties {
            let round = |v: &mut [u8; 4]| *v = f32::from_le_bytes(*v).round().to_le_bytes();
            bytes.as_chunks_mut::<4>().0.iter_mut().for_each(round);
        }
        if rows > 0 && random.below(4) == 0 {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let params: Vec<SamplingParams> = (0..rows as u64)
            .map(|position| SamplingParams {
                seed,
                position,
                temperature: [0.0, 0.5, 1.0, 2.0][random.below(4)],
                top_k: [0, 1, 3, 2000][random.below(4)],
                top_p: [1.0, 0.8, 0.3][random.below(3)],
                min_p: [0.0, 0.05][random.below(2)],
            })
            .collect();
        let counts: Vec<usize> = (0..size).map(|me| even_part(rows, size, me).len()).collect();
        let own: Vec<Option<OwnAdjustments>> = counts
            .iter()
            .map(|&n| adjusted.then(|| OwnAdjustments::random(n, vocab, &mut random)))
            .collect();
        let good = each_rank(size, |me, exchange| {
            let mut head = head_of(&test, &config, size, me, exchange).unwrap();
            let mine = even_part(rows, size, me);
            let hidden = HiddenRows::new(&bytes, DType::F32, rows, HIDDEN).unwrap().range(mine.clone());
            let sampling = RowInputs { sampling: Some(&params[mine]), ..RowInputs::default() };
            let own = own[me].as_ref();
            let (status, ids, none) =
                sampled(run(&mut head, &counts, Request::sample(), hidden, sampling, own));
            assert_eq!(none, None);
            let asked = Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed }) };
            let answer = run(&mut head, &counts, asked, hidden, sampling, own);
            let (told_status, told_ids, told) = sampled(answer);
            assert_eq!((&told_status, &told_ids), (&status, &ids), "asking for more changes no token");
            let told = told.expect("it was asked for");

            let targets: Vec<i64> = ids.iter().map(|&id| if id < 0 { NO_TARGET_ID } else { id }).collect();
            let inputs = RowInputs { targets: Some(&targets), ..RowInputs::default() };
            let request = Request::Logprobs { targets: 1, top_n, processed };
            // Raw logprobs do not see the adjustments.
            let own = own.filter(|_| processed);
            let Output::Logprobs(want) = run(&mut head, &counts, request, hidden, inputs, own).output else {
                panic!("no logprobs")
            };
            for (row, status) in status.iter().enumerate() {
                match status {
                    RowStatus::Good => assert_eq!(bits(&told, row), bits(&want, row), "row {row}"),
                    _ => {
                        assert_eq!((ids[row], told.ranks[row]), (-1, -1), "row {row}");
                        assert!(told.logprobs[row].is_nan(), "row {row}");
                        let best = row * top_n..(row + 1) * top_n;
                        assert!(told.top_ids[best.clone()].iter().all(|id| *id == -1), "row {row}");
                        assert!(told.top_logprobs[best].iter().all(|v| v.is_nan()), "row {row}");
                    }
                }
            }
            status.iter().filter(|status| **status == RowStatus::Good).count()
        });
        // The rows that are not good are at most the broken one and those without an allowed id.
        let good: usize = good.into_iter().sum();
        prop_assert!(adjusted || good + 1 >= rows, "{} of {} rows", good, rows);
    }
}
