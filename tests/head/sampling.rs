//! Sampled tokens: their frequencies, what they must not depend on, the rounds they take, and refused
//! parameters. `requests.rs` tests, with the other requests, that a token is the one that the definition
//! gives over full logits at any sharding.

use crate::contract::hooked::{When, hooked};
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::exchange::{Exchange, Operation, local};
use lmhead::head::{LmHead, step_traffic};
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder};
use lmhead::result::{Answer, Output, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::Digits;
use lmhead::step::HEADER_BYTES;
use lmhead_testkit::chi_square::{chi_square, distribution, limit};
use lmhead_testkit::{Random, TestHead, each_rank, head_of};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A head whose logits for the row `[1]` are `logits`, bit for bit.
fn head_with(logits: &[f32]) -> TestHead {
    TestHead {
        vocab: logits.len(),
        hidden: 1,
        dtype: DType::F32,
        quantization: Quantization::None,
        weights: logits.to_vec(),
        bias: None,
    }
}

/// Draws one token for each of `params` from the same logits, on `size` ranks that share the rows and the
/// head; also returns the stats of rank 0.
fn draw(logits: &[f32], size: usize, params: &[SamplingParams]) -> (Vec<i64>, lmhead::result::StepStats) {
    draw_from(&head_with(logits), size, params)
}

/// As `draw`, from a head with one column, for the row `[1]`.
fn draw_from(
    test: &TestHead,
    size: usize,
    params: &[SamplingParams],
) -> (Vec<i64>, lmhead::result::StepStats) {
    let counts: Vec<usize> =
        (0..size).map(|me| lmhead::layout::even_part(params.len(), size, me).len()).collect();
    let answers = each_rank(size, |me, exchange| {
        let mut head = head_of(test, &test.config(), size, me, exchange).unwrap();
        let own = lmhead::layout::even_part(params.len(), size, me);
        let bytes: Vec<u8> = own.clone().flat_map(|_| 1f32.to_le_bytes()).collect();
        let rows = HiddenRows::new(&bytes, DType::F32, own.len(), 1).unwrap();
        let inputs = RowInputs { sampling: Some(&params[own]), ..RowInputs::default() };
        let step = head.step(RowCounts::exact(&counts), &Request::sample()).unwrap();
        step.run_with(rows, &inputs).unwrap()
    });
    let stats = answers[0].stats;
    (answers.iter().flat_map(tokens).copied().collect(), stats)
}

fn tokens(answer: &Answer) -> &[i64] {
    let Output::Sample { ids, .. } = &answer.output else { panic!("{:?}", answer.output) };
    ids
}

const DRAWS: usize = 10_000;

#[test]
fn tokens_are_drawn_as_often_as_the_filtered_softmax_says() {
    let plain = SamplingParams::default();
    let cases = [
        ("temperature 1", plain),
        ("temperature 0.5", SamplingParams { temperature: 0.5, ..plain }),
        ("temperature 3", SamplingParams { temperature: 3.0, ..plain }),
        ("top_k 7", SamplingParams { top_k: 7, ..plain }),
        ("top_k 1200", SamplingParams { top_k: 1200, temperature: 4.0, ..plain }),
        ("top_p 0.8", SamplingParams { top_p: 0.8, ..plain }),
        ("min_p 0.1", SamplingParams { min_p: 0.1, ..plain }),
        ("top_k 20, top_p 0.7", SamplingParams { top_k: 20, top_p: 0.7, ..plain }),
        ("top_p 0.9, min_p 0.05", SamplingParams { top_p: 0.9, min_p: 0.05, temperature: 1.5, ..plain }),
        ("all filters", SamplingParams { top_k: 1100, top_p: 0.95, min_p: 0.001, temperature: 2.0, ..plain }),
    ];
    for (i, (name, params)) in cases.into_iter().enumerate() {
        let seed = 1000 + i as u64;
        let logits: Vec<f32> = Random(seed).normals(1300).into_iter().map(|l| 3.0 * l).collect();
        // Positions of one request, and first tokens of many requests.
        for by_position in [true, false] {
            let rows: Vec<SamplingParams> = (0..DRAWS as u64)
                .map(|n| match by_position {
                    true => SamplingParams { seed, position: n, ..params },
                    false => SamplingParams { seed: seed << 32 | n, position: 17, ..params },
                })
                .collect();
            let (ids, _) = draw(&logits, 3, &rows);
            let mut counts = vec![0; logits.len()];
            ids.iter().for_each(|id| counts[*id as usize] += 1);
            let p = distribution(&logits, &params);
            let outside = counts.iter().zip(&p).filter(|(n, p)| **n > 0 && **p == 0.0).count();
            assert_eq!(outside, 0, "{name}, seed {seed}: ids that are filtered out were drawn");
            let expected: Vec<f64> = p.iter().map(|p| p * DRAWS as f64).collect();
            let (statistic, degrees) = chi_square(&counts, &expected);
            assert!(degrees >= 2, "{name}: {degrees} degrees of freedom test nothing");
            assert!(
                statistic < limit(degrees),
                "{name}, seed {seed}, by position {by_position}: chi-square {statistic:.1} with {degrees} degrees of freedom"
            );
        }
    }
}

#[test]
fn a_sampler_that_is_off_by_five_percent_would_be_seen() {
    // The sensitivity of the test above: draws at temperature 1 against the distribution of temperature 1.05.
    let logits: Vec<f32> = Random(7).normals(1300).into_iter().map(|l| 3.0 * l).collect();
    let rows: Vec<SamplingParams> = (0..2 * DRAWS as u64)
        .map(|position| SamplingParams { position, ..SamplingParams::default() })
        .collect();
    let mut counts = vec![0; logits.len()];
    draw(&logits, 1, &rows).0.iter().for_each(|id| counts[*id as usize] += 1);
    let p = distribution(&logits, &SamplingParams { temperature: 1.05, ..SamplingParams::default() });
    let expected: Vec<f64> = p.iter().map(|p| p * rows.len() as f64).collect();
    let (statistic, degrees) = chi_square(&counts, &expected);
    assert!(statistic > limit(degrees), "{statistic} with {degrees}");
}

#[test]
fn tokens_of_neighbouring_positions_seeds_and_ids_are_independent() {
    const V: usize = 8;
    let logits = [0.0f32; V];
    type Pair = fn(u64) -> [SamplingParams; 2];
    let pairs: [(&str, Pair); 3] = [
        ("positions", |n| [(5, 2 * n), (5, 2 * n + 1)].map(at)),
        ("seeds", |n| [(2 * n, 9), (2 * n + 1, 9)].map(at)),
        ("seed and position exchanged", |n| [(n, n + 1), (n + 1, n)].map(at)),
    ];
    fn at((seed, position): (u64, u64)) -> SamplingParams {
        SamplingParams { seed, position, ..SamplingParams::default() }
    }
    for (name, pair) in pairs {
        let rows: Vec<SamplingParams> = (0..DRAWS as u64).flat_map(pair).collect();
        let (ids, _) = draw(&logits, 2, &rows);
        let mut table = vec![0; V * V];
        ids.chunks(2).for_each(|pair| table[pair[0] as usize * V + pair[1] as usize] += 1);
        let expected = vec![DRAWS as f64 / (V * V) as f64; V * V];
        let (statistic, degrees) = chi_square(&table, &expected);
        assert!(
            statistic < limit(degrees),
            "{name}: chi-square {statistic:.1} with {degrees} degrees of freedom"
        );
    }
    // Noise of one row: with equal logits each id wins equally often, whichever word of a Philox counter it
    // uses.
    let logits = vec![-3.5f32; 70];
    let rows: Vec<SamplingParams> = (0..DRAWS as u64).map(|n| at((n ^ 0xabcd, 3))).collect();
    let mut counts = vec![0; 70];
    draw(&logits, 2, &rows).0.iter().for_each(|id| counts[*id as usize] += 1);
    let (statistic, degrees) = chi_square(&counts, &[DRAWS as f64 / 70.0; 70]);
    assert!(statistic < limit(degrees), "chi-square {statistic:.1} with {degrees} degrees of freedom");
}

#[test]
fn rounds_and_bytes_follow_from_the_parameters_and_not_from_the_logits() {
    const SIZE: usize = 4;
    const ROWS: usize = 3;
    const VOCAB: usize = 2560; // shards of 640
    let plain = SamplingParams::default();
    // Headers, hidden rows and parameters: 3 rounds, 96 + 3 · 4 + 3 · 32 bytes from each peer.
    let before = (3, (SIZE - 1) * (HEADER_BYTES + ROWS * (4 + 32)));
    let candidate = (1, (SIZE - 1) * ROWS * 8);
    let maxima = (1, (SIZE - 1) * SIZE * ROWS * 4);
    // Four digits, because there are few rows: for each, histograms of 256 words for this rank's rows, and 8
    // bytes for every other rank's rows.
    let cut = (8, 4 * (SIZE - 1) * ROWS * (256 * 8 + 8));
    let listed = |k: usize| (1, (SIZE - 1) * ROWS * 8 * k);
    for (params, rounds) in [
        (plain, vec![candidate]),
        (SamplingParams { temperature: 0.0, top_p: 0.5, ..plain }, vec![candidate]),
        (SamplingParams { top_k: 50, ..plain }, vec![listed(50)]),
        (SamplingParams { top_k: 1024, top_p: 0.5, min_p: 0.1, ..plain }, vec![listed(640)]),
        (SamplingParams { min_p: 0.1, ..plain }, vec![maxima, candidate]),
        (SamplingParams { top_p: 0.9, ..plain }, vec![maxima, cut, candidate]),
        (SamplingParams { top_p: 0.9, min_p: 0.2, ..plain }, vec![maxima, cut, candidate]),
        (SamplingParams { top_k: 1025, ..plain }, vec![maxima, cut, candidate]),
        (SamplingParams { top_k: 1025, top_p: 0.9, ..plain }, vec![maxima, cut, cut, candidate]),
    ] {
        let wanted = rounds.into_iter().fold(before, |a, b| (a.0 + b.0, a.1 + b.1));
        for seed in [1, 2] {
            let flat = if seed == 1 { 0.0 } else { 5.0 };
            let logits: Vec<f32> = Random(seed).normals(VOCAB).into_iter().map(|l| flat * l).collect();
            let (_, stats) = draw(&logits, SIZE, &[params; SIZE * ROWS]);
            assert_eq!((stats.rounds, stats.bytes_received), (wanted.0, wanted.1 as u64), "{params:?}");
            assert_eq!(stats.bytes_sent, stats.bytes_received, "every rank does the same");
            assert!(!stats.exchange.is_zero());
        }
    }
}

/// The more rows a rank decides and the more shards there are, the fewer bits each digit of the search for a
/// cut has. Tokens must not depend on that.
#[test]
fn tokens_do_not_depend_on_the_digits_that_cuts_are_searched_by() {
    const VOCAB: usize = 1100;
    let ties: Vec<f32> = Random(5).normals(VOCAB).into_iter().map(|l| (8.0 * l).round() / 4.0).collect();
    let mut digits_seen = std::collections::BTreeSet::new();
    for rows in [90, 900, 3600] {
        let params: Vec<SamplingParams> = (0..rows)
            .map(|row| SamplingParams {
                seed: 3,
                position: row,
                top_p: [0.3, 0.9, 0.999][row as usize % 3],
                // One row in four has two cuts.
                top_k: if row % 4 == 0 { 1060 } else { 0 },
                temperature: 2.0,
                ..SamplingParams::default()
            })
            .collect();
        let (alone, _) = draw(&ties, 1, &params);
        assert!(alone.iter().all(|id| *id >= 0));
        for size in 2..10 {
            let (shared, stats) = draw(&ties, size, &params);
            assert_eq!(shared, alone, "{rows} rows on {size} ranks");
            digits_seen.insert(stats.rounds);
        }
    }
    // Headers, rows, parameters, largest logits and candidates take five rounds; each of the two searches has
    // a number of digits of its own.
    let (fewest, most) = (*digits_seen.first().unwrap(), *digits_seen.last().unwrap());
    assert!(fewest == 5 + 2 * (4 + 4) && most >= 5 + 2 * (5 + 7), "{digits_seen:?}");
}

/// The digits of a cut follow from the number of rows that each rank decides. With tensor parallelism that is
/// a part of its replica's rows, whether the rank is answered all of them or not. In no mode may a rank take
/// other rounds than its peers.
#[test]
fn ranks_search_by_the_same_digits_in_every_mode_and_layout() {
    const ROWS: [usize; 3] = [801, 0, 30];
    const VOCAB: usize = 500;
    let logits: Vec<f32> = Random(8).normals(VOCAB).into_iter().map(|l| 3.0 * l).collect();
    let test = head_with(&logits);
    let params = |first: usize, rows: usize| -> Vec<SamplingParams> {
        let plain = SamplingParams { top_p: 0.9, ..SamplingParams::default() };
        (first..first + rows).map(|row| SamplingParams { position: row as u64, ..plain }).collect()
    };
    let (alone, _) = draw(&logits, 1, &params(0, ROWS.iter().sum()));
    let layout = ParallelLayout { dp: 3, tp: 2, pp: 1, order: RankOrder::default() };
    // Rounds beside the two of each digit: rows, parameters, largest logits and candidates, and the headers
    // with exact and discovered counts.
    type Mode = (&'static str, fn(usize) -> RowCounts, u32);
    let modes: [Mode; 3] = [
        ("exact", |_| RowCounts::exact(&ROWS), 5),
        ("capacity", |rows| RowCounts::capacity(810, rows), 4),
        ("discover", RowCounts::discover, 5),
    ];
    for split in [false, true] {
        let config = HeadConfig { split_rows_over_tp: split, ..test.config() };
        let group = HeadGroup::of(0, &layout, 6).unwrap().expect("a head");
        let sampling = params(0, 1)[0];
        let planned =
            step_traffic(&config, &group, DType::F32, &ROWS, &Request::sample(), &sampling, true).unwrap();
        for (mode, counts, others) in modes {
            let answers = each_rank(6, |rank, exchange| {
                let group = HeadGroup::of(rank, &layout, 6).unwrap().expect("a head");
                let replica = group.replica_of(rank);
                let rows = ROWS[replica];
                let shard = test.shard(group.shard(VOCAB, group.me()));
                let backend = lmhead_testkit::backend();
                let mut head = LmHead::new(&config, group, shard, exchange, backend).unwrap();
                let bytes = 1f32.to_le_bytes().repeat(rows);
                let hidden = HiddenRows::new(&bytes, DType::F32, rows, 1).unwrap();
                let sampling = params(ROWS[..replica].iter().sum(), rows);
                let inputs = RowInputs { sampling: Some(&sampling), ..RowInputs::default() };
                head.step(counts(rows), &Request::sample()).unwrap().run_with(hidden, &inputs).unwrap()
            });
            for (rank, answer) in answers.iter().enumerate() {
                let stats = answer.stats;
                // The first rank of a replica decides at most 401 rows for five others: 2005, which makes six
                // digits.
                assert_eq!(stats.rounds, others + 2 * 6, "{mode}, split {split}, rank {rank}");
                if mode == "exact" {
                    let wanted = (planned[rank].bytes_sent, planned[rank].bytes_received);
                    assert_eq!(
                        (stats.bytes_sent, stats.bytes_received),
                        wanted,
                        "split {split}, rank {rank}"
                    );
                }
            }
            let ids: Vec<i64> = match split {
                true => answers.iter().flat_map(tokens).copied().collect(),
                false => answers.iter().step_by(2).flat_map(tokens).copied().collect(),
            };
            assert_eq!(ids, alone, "{mode}, split {split}");
        }
    }
}

/// One step of a group of dp 2 x tp 2 on vocabulary 300, 2 rows a replica; `own` gives each rank's
/// parameters.
fn four_ranks(
    verify: Verify,
    counts: fn(usize) -> RowCounts,
    own: impl Fn(usize) -> Option<Vec<SamplingParams>> + Sync,
) -> Vec<lmhead::Result<Answer>> {
    let test = TestHead::random(300, 8, DType::F32, Quantization::None, 3);
    let layout = ParallelLayout { dp: 2, tp: 2, pp: 1, order: RankOrder::default() };
    thread::scope(|scope| {
        let threads: Vec<_> = local::group(4)
            .into_iter()
            .enumerate()
            .map(|(rank, endpoint)| {
                let (test, own) = (&test, &own);
                scope.spawn(move || {
                    let group = HeadGroup::of(rank, &layout, 4)?.expect("a head");
                    let shard = test.shard(group.shard(300, group.me()));
                    let config = HeadConfig { verify, ..test.config() };
                    let exchange: Arc<dyn Exchange> = Arc::new(endpoint);
                    let mut head = LmHead::new(&config, group, shard, exchange, lmhead_testkit::backend())?;
                    let bytes = test.rows(2, (rank / 2) as u64);
                    let hidden = HiddenRows::new(&bytes, DType::F32, 2, 8)?;
                    let sampling = own(rank);
                    let inputs = RowInputs { sampling: sampling.as_deref(), ..RowInputs::default() };
                    let answer = head.step(counts(rank), &Request::sample())?.run_with(hidden, &inputs);
                    assert_eq!(head.poisoned().is_some(), answer.is_err());
                    answer
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread")).collect()
    })
}

#[test]
fn tensor_parallel_ranks_that_disagree_on_parameters_are_named() {
    let modes: [fn(usize) -> RowCounts; 3] =
        [|_| RowCounts::exact(&[2, 2]), |_| RowCounts::capacity(3, 2), |_| RowCounts::discover(2)];
    for counts in modes {
        for verify in [Verify::Always, Verify::WarmUp] {
            let own = |rank: usize| {
                let mut params = vec![SamplingParams::default(); 2];
                // One rank would take ten rounds more than its peer.
                params[1].top_p = if rank == 3 { 0.5 } else { 1.0 };
                Some(params)
            };
            for (rank, answer) in four_ranks(verify, counts, own).into_iter().enumerate() {
                let error = answer.unwrap_err();
                assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
                let text = error.to_string();
                assert!(text.contains("sampling parameters: ranks [2] say row 1:"), "rank {rank}: {text}");
                assert!(
                    text.contains("ranks [3] say row 1:") && text.contains("top_p: 0.5"),
                    "rank {rank}: {text}"
                );
            }
        }
    }
}

/// The rank with most rows determines the rounds of a search, and of an odd number of rows two ranks decide
/// different numbers.
#[test]
fn a_warm_up_is_the_same_on_every_rank_where_searches_change_their_rounds() {
    const MOST: usize = 1000;
    let digits = |rows| Digits::planned(rows, 2).rounds();
    assert!(digits(1) < digits(MOST / 2), "rows for which no number of rounds changes");
    let test = TestHead::random(60, 8, DType::F32, Quantization::None, 3);
    let layout = ParallelLayout { tp: 2, ..ParallelLayout::data_parallel(1) };
    let warm = each_rank(2, |me, exchange| {
        let group = HeadGroup::of(me, &layout, 2).unwrap().unwrap();
        let config = HeadConfig { verify: Verify::Always, ..test.config() };
        let shard = test.shard(group.shard(60, me));
        let mut head = LmHead::new(&config, group, shard, exchange, lmhead_testkit::backend()).unwrap();
        head.warm_up(MOST, &[Request::sample()])
    });
    for (rank, warm) in warm.into_iter().enumerate() {
        warm.unwrap_or_else(|error| panic!("rank {rank}: {error}"));
    }
}

#[test]
fn in_capacity_mode_tensor_parallel_ranks_see_each_others_headers_with_the_parameters() {
    let plain = |_: usize| Some(vec![SamplingParams::default(); 2]);
    for answer in four_ranks(Verify::Always, |_| RowCounts::capacity(3, 2), plain) {
        let stats = answer.unwrap().stats;
        // Padded rows of the one peer of the same tp index, then headers and parameters and candidates of all
        // three others.
        let bytes = (HEADER_BYTES as u64 + 3 * 8 * 4) + 3 * (HEADER_BYTES as u64 + 2 * 32) + 3 * 2 * 8;
        assert_eq!((stats.rounds, stats.bytes_received), (3, bytes));
    }
}

/// `inner` with the bytes of one operation damaged.
fn damaged(inner: Arc<dyn Exchange>, operation: Operation, seed: u64) -> Arc<dyn Exchange> {
    let random = Mutex::new(Random(seed));
    hooked(inner, move |when, call, recv| {
        if call.operation != operation || !matches!(when, When::AfterGather | When::AfterExchange) {
            return;
        }
        let mut random = random.lock().unwrap();
        for piece in recv.iter_mut().filter(|piece| !piece.is_empty()) {
            for _ in 0..1 + random.below(4) {
                let at = random.below(piece.len());
                piece[at] = random.next() as u8;
            }
        }
    })
}

/// Bytes that a peer of another version or with broken memory may send give an error or an answer within the
/// vocabulary, never a panic.
#[test]
fn damaged_bytes_neither_panic_nor_leave_the_vocabulary() {
    let test = TestHead::random(300, 8, DType::F32, Quantization::None, 3);
    let filters = SamplingParams { top_p: 0.7, min_p: 0.01, ..SamplingParams::default() };
    let params = [filters, SamplingParams { top_k: 20, ..filters }, SamplingParams::default()];
    let mut refused = 0;
    for operation in [
        Operation::SamplingParams,
        Operation::LargestLogits,
        Operation::Histograms,
        Operation::Cuts,
        Operation::ExchangeResults,
    ] {
        for seed in 0..60 {
            let answers: Vec<lmhead::Result<Answer>> = thread::scope(|scope| {
                let threads: Vec<_> = local::group(2)
                    .into_iter()
                    .enumerate()
                    .map(|(me, inner)| {
                        let (test, params) = (&test, &params);
                        scope.spawn(move || {
                            let exchange: Arc<dyn Exchange> = match me {
                                0 => Arc::new(inner),
                                _ => damaged(Arc::new(inner), operation, seed << 1 | me as u64),
                            };
                            let config = HeadConfig { timeout: Duration::from_secs(20), ..test.config() };
                            let mut head = head_of(test, &config, 2, me, exchange)?;
                            let bytes = test.rows(3, me as u64);
                            let hidden = HiddenRows::new(&bytes, DType::F32, 3, 8)?;
                            let inputs = RowInputs { sampling: Some(params), ..RowInputs::default() };
                            let step = head.step(RowCounts::exact(&[3, 3]), &Request::sample())?;
                            step.run_with(hidden, &inputs)
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().expect("no panic")).collect()
            });
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        assert!(tokens(&answer).iter().all(|id| (-1..300).contains(id)), "{operation}")
                    }
                    Err(Error::Exchange { .. }) => refused += 1,
                    Err(Error::StepMismatch { .. } | Error::RankLost { .. }) => {}
                    Err(other) => panic!("{operation}, seed {seed}: {other}"),
                }
            }
        }
    }
    assert!(refused > 60, "{refused} of 300 were seen to be damaged");
}

#[test]
fn a_vocabulary_whose_masses_would_overflow_at_full_precision_is_sampled() {
    let logits = vec![1f32; 1 << 24];
    let nucleus = SamplingParams { top_p: 0.25, seed: 4, ..SamplingParams::default() };
    for size in [1, 3] {
        let (ids, _) = draw(&logits, size, &[nucleus]);
        assert!((0..1 << 22).contains(&ids[0]), "a quarter of equal logits are the lowest ids: {}", ids[0]);
    }
}

/// The shard with the infinite logit also has the largest of the others, which the other shards then do not
/// know. Beyond the smaller head's ids are shards without ids, whose largest logit is minus infinity.
#[test]
fn a_row_that_is_not_finite_in_one_shard_has_no_token_whatever_the_filters_and_ends_no_step() {
    let plain = SamplingParams::default();
    let filters = [
        plain,
        SamplingParams { top_p: 0.5, ..plain },
        SamplingParams { min_p: 0.1, top_p: 0.9, ..plain },
        SamplingParams { top_k: 200, top_p: 0.7, ..plain },
        SamplingParams { top_k: 100_000, ..plain },
    ];
    for (vocab, infinite) in [(256, 100), (2, 0)] {
        let mut logits = vec![0f32; vocab];
        logits.iter_mut().skip(64).take(64).for_each(|logit| *logit = 90.0);
        let mut bias = vec![0f32; vocab];
        (logits[infinite], bias[infinite]) = (f32::MAX, f32::MAX);
        let test = TestHead { bias: Some(bias), ..head_with(&logits) };
        for size in [1, 2, 4] {
            assert_eq!(draw_from(&test, size, &filters).0, [-1; 5], "{size} ranks, {vocab} ids");
        }
    }
}

#[test]
fn bad_parameters_are_refused_where_they_are_and_end_the_step_elsewhere() {
    let plain = SamplingParams::default();
    let spoilt = |params: SamplingParams| Some(vec![plain, params]);
    for (own, want) in [
        (
            spoilt(SamplingParams { temperature: -1.0, ..plain }),
            "temperature of row 1: wanted a finite number of at least 0, got -1",
        ),
        (spoilt(SamplingParams { temperature: f32::NAN, ..plain }), "temperature of row 1"),
        (
            spoilt(SamplingParams { top_p: 0.0, ..plain }),
            "top_p of row 1: wanted a number above 0 and at most 1, got 0",
        ),
        (
            spoilt(SamplingParams { min_p: 1.5, ..plain }),
            "min_p of row 1: wanted a number from 0 to 1, got 1.5",
        ),
        (Some(vec![plain]), "sampling parameters: wanted 2, one for each row, got 1"),
        (None, "sampling parameters: wanted 2, one for each row, got none"),
    ] {
        let answers = four_ranks(
            Verify::Always,
            |_| RowCounts::exact(&[2, 2]),
            |rank| match rank {
                1 => own.clone(),
                _ => Some(vec![plain; 2]),
            },
        );
        for (rank, answer) in answers.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(error.to_string().contains(want), "rank {rank}: {error}");
            assert_eq!(matches!(error, Error::StepMismatch { .. }), rank != 1, "rank {rank}: {error}");
        }
    }
}

#[test]
fn parameters_for_another_request_are_refused() {
    let test = head_with(&[0.0, 1.0]);
    let mut head = head_of(&test, &test.config(), 1, 0, Arc::new(local::group(1).remove(0))).unwrap();
    let bytes = 1f32.to_le_bytes();
    let rows = HiddenRows::new(&bytes, DType::F32, 1, 1).unwrap();
    let params = [SamplingParams::default()];
    let inputs = RowInputs { sampling: Some(&params), ..RowInputs::default() };
    let error =
        head.step(RowCounts::exact(&[1]), &Request::argmax()).unwrap().run_with(rows, &inputs).unwrap_err();
    assert!(error.to_string().contains("sampling parameters: wanted none with argmax, got some"), "{error}");
    assert!(head.poisoned().is_none(), "alone, bad input leaves nothing half done");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The noise is a function of seed, position and id alone: any two rows that agree in these and in their
    /// logits draw the same token.
    #[test]
    fn a_token_is_the_same_at_any_group_size_and_beside_any_rows(
        logits in prop::collection::vec(
            prop_oneof![-8f32..8.0, prop::sample::select(vec![-1f32, 0.0, 2.0])],
            1..200,
        ),
        sizes in (1usize..6, 1usize..6), others in 0usize..6, seed: u64, position: u64,
        temperature in prop::sample::select(vec![0.0f32, 0.2, 1.0, 3.0]), top_k in 0usize..30,
        top_p in 0.05f32..=1.0, min_p in 0f32..0.3,
        which in 0usize..8,
    ) {
        let on = |bit: usize| which >> bit & 1 == 1;
        let params = SamplingParams {
            seed, position, temperature,
            top_k: if on(0) { top_k } else { 0 },
            top_p: if on(1) { top_p } else { 1.0 },
            min_p: if on(2) { min_p } else { 0.0 },
        };
        let mut beside: Vec<SamplingParams> =
            (0..others as u64).map(|n| SamplingParams { seed: n, top_p: 0.3, ..params }).collect();
        beside.insert(others / 2, params);
        let (alone, _) = draw(&logits, sizes.0, &[params]);
        let (all, _) = draw(&logits, sizes.1, &beside);
        prop_assert_eq!(alone[0], all[others / 2]);
        let want = lmhead::reference::sample(&logits, &params).unwrap();
        prop_assert_eq!(alone[0], want as i64);
    }
}
