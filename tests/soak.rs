//! Thousands of random steps, with faults and rebuilds among them: no hang, no wrong bit, no growth.

mod common;

use common::{Random, TestHead, each_rank, head_of, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::head::LmHead;
use lmhead::result::{Answer, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const SIZE: usize = 4;
const STEPS: u64 = 20_000;
const SEED: u64 = 20_261_122;

/// A row's status and the bits of its answer.
type Bits = (u8, Vec<u64>);

/// Resident memory of this process in bytes, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

#[test]
fn thousands_of_random_steps_neither_hang_nor_grow() {
    println!("seed {SEED}");
    let test = TestHead::random(500, 24, DType::Bf16, Quantization::None, SEED);
    let mut config = test.config();
    config.timeout = Duration::from_secs(30);
    // Bits of (request, row) as first seen, on whichever rank: every later step must repeat them.
    let seen: Mutex<HashMap<(String, u64), Bits>> = Mutex::new(HashMap::new());
    let began = Instant::now();
    let grown = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test, &config, SIZE, me, exchange).unwrap();
        // The same sequence of choices on every rank.
        let mut random = Random(SEED);
        let mut settled = None;
        for step in 0..STEPS {
            let counts: Vec<usize> = (0..SIZE).map(|_| random.below(4) * random.below(3)).collect();
            let request = [
                Request::argmax(),
                Request::top_k(1 + random.below(20)),
                Request::logits(DType::F32),
                Request::processed_logprobs(random.below(5)),
                Request::sample(),
            ][random.below(5)];
            let adjusted = random.below(3) == 0;
            let first_row = random.next() % 64;
            let mode = random.below(3);
            let breaker = (random.below(50) == 0).then(|| random.below(SIZE));
            let mine = counts[me];
            let announced = match mode {
                0 => RowCounts::exact(&counts),
                1 => RowCounts::capacity(8, mine),
                _ => RowCounts::discover(mine),
            };
            let numbers: Vec<u64> = (0..mine as u64).map(|i| (first_row + 7 * me as u64 + i) % 64).collect();
            let bytes: Vec<u8> = numbers.iter().flat_map(|&n| test.rows(1, 1000 + n)).collect();
            let rows = HiddenRows::new(&bytes, DType::Bf16, mine, 24).unwrap();
            // The target and the mask of a row are its number's.
            let targets: Vec<i64> = numbers.iter().map(|n| (n * 7 % 500) as i64).collect();
            let word = |n: u64, word: u64| (n + 1).wrapping_mul(word + 3).wrapping_mul(0x9e37_79b9) as i32;
            let mask: Vec<i32> = numbers.iter().flat_map(|&n| (0..16).map(move |w| word(n, w))).collect();
            // So is the way it is sampled: greedy, plain, by min_p, by top_p or from a few.
            let params = |&n: &u64| SamplingParams {
                seed: n,
                position: 3 * n,
                temperature: if n % 7 == 0 { 0.0 } else { 1.0 },
                top_k: if n % 5 == 0 { 9 } else { 0 },
                top_p: if n % 3 == 0 { 0.8 } else { 1.0 },
                min_p: if n % 4 == 0 { 0.05 } else { 0.0 },
            };
            let sampling: Vec<SamplingParams> = numbers.iter().map(params).collect();
            let inputs = RowInputs {
                sampling: (request == Request::Sample).then_some(&sampling[..]),
                targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                adjustments: adjusted.then_some(Adjustments::allowed(&mask)),
            };
            let begin = if adjusted { LmHead::step_adjusted } else { LmHead::step };
            let result: Result<Answer, Error> = match begin(&mut head, announced, &request) {
                Ok(begun) if breaker == Some(me) => {
                    drop(begun);
                    Err(Error::Poisoned { cause: "dropped on purpose".into() })
                }
                Ok(begun) => begun.run_with(rows, &inputs),
                Err(error) => Err(error),
            };
            match (result, breaker) {
                (Ok(answer), None) => {
                    assert_eq!(answer.rows(), mine);
                    let mut seen = seen.lock().unwrap();
                    for (row, &number) in numbers.iter().enumerate() {
                        let bits = row_bits(&answer, row);
                        let first = seen
                            .entry((format!("{request} {adjusted}"), number))
                            .or_insert_with(|| bits.clone());
                        assert_eq!(*first, bits, "step {step}, rank {me}, row {number}, {request}");
                    }
                }
                (Err(error), Some(_)) => {
                    assert!(
                        matches!(error, Error::StepMismatch { .. } | Error::Poisoned { .. }),
                        "step {step}: {error}"
                    );
                    head.rebuild().unwrap();
                }
                (result, breaker) => panic!("step {step}, rank {me}, breaker {breaker:?}: {result:?}"),
            }
            if step == STEPS / 2 {
                settled = resident();
            }
        }
        resident().zip(settled).map(|(end, middle)| end.saturating_sub(middle))
    });
    assert!(began.elapsed() < Duration::from_secs(300), "took {:?}", began.elapsed());
    for grown in grown.into_iter().flatten() {
        // By the middle every buffer has had its largest size. 8 MB is the allocator's own noise; 10000 steps that each
        // kept one row of logits per rank would be 80 MB.
        assert!(grown < 8 << 20, "resident memory grew by {grown} bytes in the second half");
    }
}
