//! Ranks that run as tasks of a caller's rayon pool answer like ranks on threads.

use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::exchange::{Exchange, local};
use lmhead::result::{Answer, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::{TestHead, each_rank, head_of};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SIZE: usize = 4;

fn requests() -> [Request; 4] {
    [Request::logits(DType::F32), Request::top_k(5), Request::logprobs(2), Request::sample()]
}

/// Makes a head and runs a step of every request.
fn rank(test: &TestHead, config: &HeadConfig, me: usize, exchange: Arc<dyn Exchange>) -> Result<Vec<Answer>> {
    let mut head = head_of(test, config, SIZE, me, exchange)?;
    let rows = 40;
    let bytes = test.rows(rows, me as u64);
    let hidden = HiddenRows::new(&bytes, test.dtype, rows, test.hidden)?;
    let (targets, sampling) =
        (vec![7; rows], vec![SamplingParams { top_p: 0.8, ..Default::default() }; rows]);
    let answer = |request: Request| {
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            ..RowInputs::default()
        };
        head.step(RowCounts::exact(&[rows; SIZE]), &request)?.run_with(hidden, &inputs)
    };
    requests().into_iter().map(answer).collect()
}

/// A worker that waited for the backend inside rayon would start the next rank's task in the middle of its
/// own step: 18 to 20 of 20 such rounds timed out.
#[test]
fn ranks_that_are_tasks_of_another_rayon_pool_answer_as_threads_do() {
    let test = TestHead::random(3000, 64, DType::Bf16, Quantization::None, 3);
    let config = HeadConfig { timeout: Duration::from_secs(20), ..test.config() };
    let want = each_rank(SIZE, |me, exchange| rank(&test, &config, me, exchange).unwrap());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(SIZE).build().unwrap();
    for round in 0..20 {
        let began = Instant::now();
        let answers = Mutex::new(vec![None; SIZE]);
        pool.scope(|scope| {
            for (me, endpoint) in local::group(SIZE).into_iter().enumerate() {
                let (test, config, answers) = (&test, &config, &answers);
                scope.spawn(move |_| {
                    let got = rank(test, config, me, Arc::new(endpoint));
                    answers.lock().unwrap()[me] = Some(got);
                });
            }
        });
        for (me, got) in answers.into_inner().unwrap().into_iter().enumerate() {
            let got =
                got.expect("each rank has run").unwrap_or_else(|e| panic!("round {round}, rank {me}: {e}"));
            for (want, got) in want[me].iter().zip(&got) {
                assert_eq!((&want.output, &want.row_status), (&got.output, &got.row_status), "round {round}");
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20), "round {round} took {:?}", began.elapsed());
    }
}

/// A parallel loop that rayon runs in another pool also calls the backend from within.
#[test]
fn a_head_alone_answers_from_inside_a_parallel_loop() {
    use rayon::prelude::*;
    let test = TestHead::random(1000, 32, DType::F32, Quantization::None, 5);
    let one = |seed: u64| {
        let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
        let mut head = head_of(&test, &test.config(), 1, 0, exchange).unwrap();
        let bytes = test.rows(3, seed);
        let hidden = HiddenRows::new(&bytes, test.dtype, 3, test.hidden).unwrap();
        head.step(RowCounts::exact(&[3]), &Request::top_k(4)).unwrap().run(hidden).unwrap().output
    };
    let want: Vec<_> = (0..32).map(one).collect();
    let got: Vec<_> = (0..32u64).into_par_iter().map(one).collect();
    assert_eq!(want, got);
}

/// Two ranks hold the pool's threads while they wait for the third.
#[test]
fn a_pool_of_fewer_threads_than_ranks_is_named() {
    let test = TestHead::random(200, 16, DType::F32, Quantization::None, 3);
    let config = HeadConfig { create_timeout: Duration::from_millis(300), ..test.config() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let errors = Mutex::new(Vec::new());
    pool.scope(|scope| {
        for (me, endpoint) in local::group(SIZE).into_iter().enumerate() {
            let (test, config, errors) = (&test, &config, &errors);
            scope.spawn(move |_| {
                let made = head_of(test, config, SIZE, me, Arc::new(endpoint));
                errors.lock().unwrap().push(made.err().expect("not all ranks can meet").to_string());
            });
        }
    });
    let errors = errors.into_inner().unwrap();
    let named = |text: &String| text.contains("a rayon pool of 2 threads, and the group has 4 ranks");
    assert!(named(&errors[0]), "{errors:?}");
}
