//! The table of shapes.

use crate::device;
use lmhead_testkit::product::table::{cases, run};
use std::sync::Mutex;

/// Most multiply-adds of plans other than the chosen ones, where limited.
fn most_pairs() -> usize {
    let Ok(text) = std::env::var("LMHEAD_DEVICE_PAIRS") else { return usize::MAX };
    text.parse().unwrap_or_else(|_| panic!("LMHEAD_DEVICE_PAIRS: wanted a number, got {text}"))
}

#[test]
fn every_case_of_the_table() {
    let mut cases = cases();
    let most = most_pairs();
    cases.iter_mut().for_each(|case| case.work = case.work.min(most));
    let (waiting, problems) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    let next = || waiting.lock().expect("no test panics here").next();
    let work = || {
        let device = device();
        while let Some(case) = next() {
            if let Err(problem) = run(&device, case) {
                problems.lock().expect("no test panics here").push(problem);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let problems = problems.into_inner().expect("no test panics here");
    assert!(problems.is_empty(), "{} of {} cases:\n{}", problems.len(), cases.len(), problems.join("\n"));
}
