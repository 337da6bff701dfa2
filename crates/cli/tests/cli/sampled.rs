//! `--request sample` and `sample:N`: the same tokens at any sharding, and the largest logits where the
//! options leave no other id.

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
    i64s(bytes)
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
    let argmax = i64s(&read(&files.path("out"))["argmax"].2);
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

/// Runs a request with tensors beside the hidden states, with --check; returns standard error and the answer.
fn answered(files: &Files, more: &[Tensor], args: &[&str]) -> (String, Tensors) {
    write(&files.path("rows"), &[&[bf16_tensor("hidden_states", &[7, 20], 2)], more].concat());
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    let all =
        ["run", "--head", &head, "--hidden", &rows, "--out", &out, "--steps", "1", "--check", "--request"];
    let run = lmhead(&[&all[..], args].concat());
    assert!(run.status.success(), "{args:?}: {}{}", text(&run.stdout), text(&run.stderr));
    (text(&run.stderr), read(&files.path("out")))
}

/// A sampled token has the logprob, rank and best ids that `logprobs` gives for it as a target, at any
/// sharding.
#[test]
fn a_token_comes_with_its_logprob_its_rank_and_the_best_ids() {
    let files = Files::new();
    let mask = super::adjusted::allowed_tensor();
    let warm = ["--temperature", "6", "--top-k", "90"];
    for (processed, masked) in [(&[][..], false), (&[][..], true), (&["--processed"], true)] {
        let inputs = if masked { vec![mask.clone()] } else { Vec::new() };
        let mut first = None;
        for extra in [
            &[][..],
            &["--rows", "3,0,4", "--lmhead-tp-size", "3"],
            &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
            &["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
            &["--tp", "3", "--lmhead-tp-size", "-1"],
        ] {
            let args = [&["sample:4"][..], &warm, processed, extra].concat();
            let (said, told) = answered(&files, &inputs, &args);
            let left_aside = masked && processed.is_empty();
            assert_eq!(said.contains("raw logprobs leave aside"), left_aside, "{args:?}: {said}");
            assert_eq!(*first.get_or_insert_with(|| told.clone()), told, "{args:?}");
        }
        let told = first.unwrap();
        let (_, plain) = answered(&files, &inputs, &[&["sample"][..], &warm].concat());
        assert_eq!(told["sampled"], plain["sampled"], "the same token with and without logprobs");
        let row_status = if masked { [0, 0, 2, 0, 0, 0, 0] } else { [0; 7] };
        assert_eq!(told["row_status"].2, row_status);

        // The same ids as targets; rows without a token have none.
        let ids = i64s(&told["sampled"].2).into_iter();
        let ids: Vec<i64> = ids.map(|id| if id == -1 { -100 } else { id }).collect();
        let inputs = [inputs, vec![super::adjusted::targets(&ids)]].concat();
        let (_, want) = answered(&files, &inputs, &[&["logprobs:4"][..], processed].concat());
        for (name, of_targets) in [
            ("sampled_logprobs", "logprobs"),
            ("sampled_ranks", "target_ranks"),
            ("top_ids", "top_ids"),
            ("top_logprobs", "top_logprobs"),
        ] {
            let ((dtype, shape, got), (of, same, want)) = (&told[name], &want[of_targets]);
            assert_eq!((dtype, shape), (of, same), "{name}");
            let each = got.len() / 7;
            // The mask allows row 2 nothing: it has no token, whatever its raw logits.
            for row in (0..7).filter(|row| row_status[*row] == 0) {
                let own = row * each..(row + 1) * each;
                assert_eq!(got[own.clone()], want[own], "{name} of row {row}, {processed:?}");
            }
        }
    }
    let (_, none) = answered(&files, &[], &["sample:0"]);
    assert_eq!(none["sampled_ranks"].1, [7]);
    assert!(!none.contains_key("top_ids") && !none.contains_key("top_logprobs"));
    let json = good(&["run", "--preset", "tiny", "--request", "sample:3", "--json", "--check"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let request = json["request"].as_str().unwrap();
    assert!(
        request.starts_with("sample, with logprobs of the token and of the 3 best ids; temperature 1"),
        "{request}"
    );
    // For each of 28 rows: the token, its logprob and its rank, and three ids with their logprobs.
    assert_eq!(json["check"]["values"], 28 * 9);
}
