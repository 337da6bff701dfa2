//! The step times that `lmhead run` reports, and which steps are timed. Nothing here depends on speed.

use super::*;
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    serde_json::from_str(&good(&[&["run", "--preset", "tiny", "--json"], args].concat())).expect("JSON")
}

/// p50, p90, p99 and max.
fn percentiles(report: &Value) -> [f64; 4] {
    ["p50_us", "p90_us", "p99_us", "max_us"].map(|key| report["step"][key].as_f64().expect(key))
}

#[test]
fn percentiles_are_of_the_slowest_rank_of_each_step() {
    // With one rank and an odd number of steps p50 is the median; with one step all percentiles are that
    // step.
    let [p50, p90, p99, max] = percentiles(&run(&["--steps", "1"]));
    assert!(0.0 < p50 && p50 == p90 && p90 == p99 && p99 == max);
    let report = run(&["--steps", "7"]);
    let [p50, p90, p99, max] = percentiles(&report);
    assert!(p50 <= p90 && p90 == p99 && p99 == max, "of seven steps the slowest is p90 already");
    for same in [&report["step"]["step_us"], &report["ranks"][0]["step_us"]] {
        assert_eq!(same.as_f64(), Some(p50));
    }
    // The slowest of several ranks takes in each step at least as long as any one of them. Groups of one rank
    // are counted together: half of all their steps.
    for sharing in ["1", "3"] {
        let report = run(&["--dp", "3", "--lmhead-tp-size", sharing, "--steps", "21"]);
        let [p50, p90, p99, max] = percentiles(&report);
        assert!(p50 <= p90 && p90 <= p99 && p99 <= max);
        let ranks = report["ranks"].as_array().unwrap();
        let medians = || ranks.iter().map(|rank| rank["step_us"].as_f64().unwrap());
        let (least, largest) = (medians().fold(f64::MAX, f64::min), medians().fold(0.0, f64::max));
        assert_eq!(report["step"]["step_us"].as_f64(), Some(largest));
        let wanted = if sharing == "1" { least..=largest } else { largest..=max };
        assert!(wanted.contains(&p50), "{sharing}: {p50}, wanted {wanted:?}");
    }
    for (sharing, steps) in [("2", " of 4 steps, after 2"), ("1", " of 4 steps of 2 groups, after 2")] {
        let ranks = ["--dp", "2", "--lmhead-tp-size", sharing, "--steps", "4", "--warm-up", "2"];
        let table = good(&[&["run", "--preset", "tiny"], &ranks[..]].concat());
        let line =
            table.lines().find(|line| line.starts_with("step, by its slowest rank: p50 ")).expect(&table);
        for word in [", p90 ", ", p99 ", ", max ", steps] {
            assert!(line.contains(word), "{line}");
        }
    }
}

/// Every second step is verified, which takes a round more, so the last step shows how many came before it.
#[test]
fn as_many_steps_run_before_the_timed_ones_as_are_asked_for() {
    let files = Files::new();
    std::fs::write(files.path("c.toml"), "verify = { every = 2 }").unwrap();
    let config = files.name("c.toml");
    let rounds = |more: &[&str]| {
        let shared = ["--dp", "2", "--lmhead-tp-size", "2", "--config", &config];
        let report = run(&[&shared[..], more].concat());
        (report["warm_up"].as_u64().unwrap(), report["step"]["rounds"].as_u64().unwrap())
    };
    assert_eq!(rounds(&["--steps", "1", "--warm-up", "0"]), (0, 3));
    // The default is as many as are timed, at most three.
    assert_eq!(rounds(&["--steps", "1"]), (1, 2));
    assert_eq!(rounds(&["--steps", "2"]), (2, 2));
    assert_eq!(rounds(&["--steps", "8"]), (3, 3));
    assert_eq!(rounds(&["--steps", "1", "--warm-up", "2"]), (2, 3));
    assert_eq!(rounds(&["--steps", "2", "--warm-up", "3"]), (3, 3));
    std::fs::write(files.path("c.toml"), "verify = \"prepare\"").unwrap();
    for warm_up in ["0", "1", "2"] {
        assert_eq!(rounds(&["--steps", "1", "--warm-up", warm_up]).1, 2, "no timed step is verified");
    }
}

#[test]
fn the_warm_up_changes_no_answer() {
    let files = Files::new();
    let (head, hidden, out) =
        (files.name("head.safetensors"), files.name("hidden.safetensors"), files.name("out"));
    for request in ["logits", "topk:3", "sample"] {
        let mut answers = ["0", "1", "5"].map(|warm_up| {
            let steps = ["--warm-up", warm_up, "--steps", "2", "--request", request];
            good(&[&["run", "--head", &head, "--hidden", &hidden, "--out", &out], &steps[..]].concat());
            std::fs::read(&out).unwrap()
        });
        let first = std::mem::take(&mut answers[0]);
        assert!(!first.is_empty() && answers[1..].iter().all(|answer| *answer == first), "{request}");
    }
}
