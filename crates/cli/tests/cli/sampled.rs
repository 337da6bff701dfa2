//! `--request sample`: the same tokens at any sharding, and those of the largest logits where the options leave nothing else.

use super::*;

fn sampled(files: &Files, args: &[&str]) -> Vec<i64> {
    let (head, hidden, out) =
        (files.name("head.safetensors"), files.name("hidden.safetensors"), files.name("out"));
    let mut all = vec!["run", "--head", &head, "--hidden", &hidden, "--out", &out, "--steps", "1"];
    all.extend(["--check", "--request", "sample"]);
    all.extend(args);
    let run = lmhead(&all);
    assert!(run.status.success(), "{args:?}: {}{}", text(&run.stdout), text(&run.stderr));
    assert!(text(&run.stdout).contains("check passed"), "{args:?}: {}", text(&run.stdout));
    let answer = read(&files.path("out"));
    let (dtype, shape, bytes) = &answer["sampled"];
    assert_eq!((*dtype, &shape[..]), (Dtype::I64, &[7usize][..]));
    assert_eq!(answer["row_status"].2, [0; 7]);
    bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

#[test]
fn tokens_are_the_same_for_any_sharding_and_mode() {
    let files = Files::new();
    let mut seen = std::collections::BTreeSet::new();
    for options in [
        &[][..],
        &["--temperature", "3"],
        &["--temperature", "5", "--min-p", "0.2"],
        &["--temperature", "5", "--top-k", "20"],
        &["--temperature", "5", "--top-p", "0.6"],
        &["--temperature", "4", "--top-p", "0.7", "--min-p", "0.05", "--top-k", "30", "--seed", "9"],
    ] {
        let mut first: Option<Vec<i64>> = None;
        for extra in [
            &[][..],
            &["--rows", "3,0,4", "--lmhead-tp-size", "3"],
            &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
            &["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
            &["--tp", "3", "--lmhead-tp-size", "-1"],
        ] {
            let ids = sampled(&files, &[options, extra].concat());
            assert_eq!(*first.get_or_insert_with(|| ids.clone()), ids, "{options:?} {extra:?}");
        }
        seen.insert(first);
    }
    assert!(seen.len() > 3, "options change tokens: {seen:?}");
}

#[test]
fn equal_rows_draw_by_their_places() {
    let files = Files::new();
    let mut rows = bf16_tensor("hidden_states", &[7, 20], 2);
    let first = rows.3[..40].to_vec();
    rows.3 = first.repeat(7);
    write(&files.path("hidden.safetensors"), &[rows]);
    let ids = sampled(&files, &["--temperature", "8"]);
    let distinct: std::collections::BTreeSet<i64> = ids.iter().copied().collect();
    assert!(distinct.len() > 3, "a row's position is its output row: {ids:?}");
    let moved = sampled(&files, &["--temperature", "8", "--rows", "1,6", "--lmhead-tp-size", "2"]);
    assert_eq!(moved, ids);
}

#[test]
fn options_that_leave_one_id_give_the_largest_logit_and_seeds_matter_otherwise() {
    let files = Files::new();
    let (head, hidden, out) =
        (files.name("head.safetensors"), files.name("hidden.safetensors"), files.name("out"));
    assert!(
        lmhead(&["run", "--head", &head, "--hidden", &hidden, "--out", &out, "--request", "argmax"])
            .status
            .success()
    );
    let argmax: Vec<i64> = read(&files.path("out"))["argmax"]
        .2
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .collect();
    for options in [
        &["--temperature", "0"][..],
        &["--temperature", "-0"],
        &["--temperature", "1e-30"],
        &["--top-k", "1"],
        &["--min-p", "1"],
        &["--top-p", "1e-9"],
    ] {
        assert_eq!(sampled(&files, options), argmax, "{options:?}");
    }
    let with_seed = |seed: &str| sampled(&files, &["--temperature", "8", "--seed", seed]);
    assert_eq!(with_seed("1"), with_seed("1"));
    assert_ne!(with_seed("1"), with_seed("2"));
}
