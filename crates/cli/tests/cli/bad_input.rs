//! What is refused, and how.

use super::adjusted::{additions, targets};
use super::*;

/// Every bad input: exit 2, a sentence on standard error, nothing on standard output, no file.
#[test]
fn bad_input_is_refused_with_a_sentence() {
    let files = Files::new();
    let file = |name: &str| files.name(name);
    std::fs::write(files.path("junk"), "no tensors here, but long enough for a header").unwrap();
    std::fs::write(files.path("empty"), "").unwrap();
    std::fs::write(files.path("bad.toml"), "lmhead_size = 4").unwrap();
    std::fs::write(files.path("sizes.toml"), "hidden_size = 21").unwrap();
    std::fs::write(files.path("vocab.toml"), "vocab_size = 151").unwrap();
    std::fs::write(files.path("dtype.toml"), "hidden_dtype = \"f16\"").unwrap();
    std::fs::write(files.path("tied.toml"), "tie_word_embeddings = true").unwrap();
    std::fs::write(files.path("bias.toml"), "bias = true").unwrap();
    std::fs::write(files.path("read-only"), "kept").unwrap();
    let mut permissions = std::fs::metadata(files.path("read-only")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(files.path("read-only"), permissions).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.path("hidden.safetensors"), files.path("link")).unwrap();
    let whole = std::fs::read(files.path("head.safetensors")).unwrap();
    std::fs::write(files.path("short"), &whole[..whole.len() - 5]).unwrap();
    write(&files.path("narrow"), &[bf16_tensor("hidden_states", &[7, 19], 2)]);
    write(&files.path("f32"), &[f32_tensor("hidden_states", &[7, 20], 2)]);
    write(&files.path("other"), &[bf16_tensor("states", &[7, 20], 2)]);
    write(&files.path("outside"), &[bf16_tensor("hidden_states", &[7, 20], 2), indices(&[0, 6, 7])]);
    write(&files.path("negative"), &[bf16_tensor("hidden_states", &[7, 20], 2), indices(&[0, -1])]);
    std::fs::create_dir(files.path("empty_model")).unwrap();
    let rows_with = |name: &str, more: Vec<Tensor>| {
        let tensors: Vec<Tensor> = [vec![bf16_tensor("hidden_states", &[7, 20], 2)], more].concat();
        write(&files.path(name), &tensors);
    };
    rows_with("target_150", vec![targets(&[0, 1, 2, 3, 150, 5, 6])]);
    rows_with("target_negative", vec![targets(&[-1, 1, 2, 3, 4, 5, 6])]);
    rows_with("target_ok", vec![targets(&[0; 7])]);
    rows_with("targets_6", vec![targets(&[0; 6])]);
    std::fs::write(files.path("chunk.toml"), "logprobs_chunk_bytes = 100").unwrap();
    rows_with("mask_words", vec![("allowed".into(), Dtype::I32, vec![7, 4], vec![0; 7 * 16])]);
    rows_with("mask_rows", vec![("allowed".into(), Dtype::I32, vec![6, 5], vec![0; 6 * 20])]);
    rows_with("mask_type", vec![("allowed".into(), Dtype::U32, vec![7, 5], vec![0; 7 * 20])]);
    rows_with("add_row", additions(&[0, 7], &[1, 1], &[0.0, 0.0]));
    rows_with("add_id", additions(&[0, 6], &[1, 150], &[0.0, 0.0]));
    rows_with("add_nan", additions(&[5], &[1], &[f32::NAN]));
    rows_with("add_short", additions(&[5, 6], &[1, 1], &[0.0]));
    rows_with("add_ids_short", additions(&[5, 6], &[1], &[0.0, 0.0]));
    rows_with("add_part", additions(&[5], &[1], &[0.0])[..2].to_vec());
    let (head, hidden) = (file("head.safetensors"), file("hidden.safetensors"));
    let before = files.entries();

    let base: &[&str] = &["--head", &head, "--hidden", &hidden];
    let with_hidden = |name: &str| vec!["--head".to_string(), head.clone(), "--hidden".into(), file(name)];
    let logprobs_of = |name: &str| [with_hidden(name), vec!["--request".into(), "logprobs".into()]].concat();
    let with = |extra: &[&str]| base.iter().chain(extra).map(ToString::to_string).collect::<Vec<String>>();
    let sampled = |extra: &[&str]| {
        [with(&["--request", "sample"]), extra.iter().map(ToString::to_string).collect()].concat()
    };
    let only = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<String>>();
    let table: Vec<(Vec<String>, &[&str])> = vec![
        (only(&[]), &["--model, --head, --preset: wanted one of them, got none"]),
        (only(&["--preset", "tiny", "--head", &head]), &["wanted one of them, got several"]),
        (only(&["--preset", "tiny", "--tensor", "x"]), &["--tensor: wanted --head FILE beside it"]),
        (only(&["--preset", "gpt-9"]), &["gpt-9", "deepseek-v3", "tiny"]),
        (only(&["--model", &file("nowhere")]), &["nowhere", "cannot be read"]),
        (only(&["--model", &file("empty_model")]), &["empty_model", "config.json"]),
        (only(&["--model", &head]), &["head.safetensors", "wanted a Hugging Face model folder, got a file"]),
        (only(&["--head", &file("nowhere")]), &["nowhere"]),
        (only(&["--head", &file("junk")]), &["junk"]),
        (only(&["--head", &file("empty")]), &["empty"]),
        (only(&["--head", &file("short")]), &["short"]),
        (only(&["--head", files.folder.path().to_str().unwrap()]), &["folder"]),
        (only(&["--head", &head, "--tensor", "head"]), &["tensor head", "lm_head.weight"]),
        (with(&["--config", &file("bad.toml")]), &["bad.toml", "unknown field `lmhead_size`"]),
        (with(&["--config", &file("nowhere.toml")]), &["nowhere.toml: cannot be read"]),
        (with(&["--config", &file("sizes.toml")]), &["hidden_size", "21", "20"]),
        (with(&["--config", &file("vocab.toml")]), &["151", "150"]),
        (with(&["--config", &file("dtype.toml")]), &["hidden_dtype", "f16", "bf16"]),
        (with_hidden("nowhere"), &["nowhere"]),
        (with_hidden("junk"), &["junk"]),
        (
            with_hidden("narrow"),
            &["narrow: tensor hidden_states: wanted hidden size 20, the head's, got hidden size 19"],
        ),
        (with_hidden("f32"), &["f32: tensor hidden_states: wanted bf16, the head's dtype, got f32"]),
        (with_hidden("other"), &["tensor hidden_states", "states"]),
        (
            with_hidden("outside"),
            &["logits_indices: index 7 at position 2 is not a row: wanted 0 to 6, got 7"],
        ),
        (with_hidden("negative"), &["logits_indices: index -1 at position 1 is not a row: wanted 0 to 6"]),
        (
            with_hidden("mask_words"),
            &[
                "mask_words: tensor allowed: wanted i32 [7, 5], a row of bits for each output row, got I32 [7, 4]",
            ],
        ),
        (with_hidden("mask_rows"), &["tensor allowed: wanted i32 [7, 5]", "got I32 [6, 5]"]),
        (with_hidden("mask_type"), &["tensor allowed: wanted i32 [7, 5]", "got U32 [7, 5]"]),
        (
            with_hidden("add_row"),
            &["add_row: adjust_rows: index 7 at position 1 is not a row: wanted 0 to 6"],
        ),
        (with_hidden("add_id"), &["add_id: adjust_ids: id of row 6: wanted an id from 0 to 149, got 150"]),
        (with_hidden("add_nan"), &["adjust_values: value of row 5, id 1: wanted a finite number", "got NaN"]),
        (with_hidden("add_short"), &["tensor adjust_values: wanted f32 [2], as many as adjust_rows", "[1]"]),
        (with_hidden("add_ids_short"), &["tensor adjust_ids: wanted [2], as many as adjust_rows, got [1]"]),
        (with_hidden("add_part"), &["tensor adjust_values: wanted", "adjust_rows"]),
        (with(&["--request", "logprobs"]), &["hidden.safetensors: tensor targets"]),
        (
            with(&["--request", "logprobs:-1"]),
            &["--request logprobs:N: wanted N from 0", "got `logprobs:-1`"],
        ),
        (
            with(&["--request", "logprobs:151"]),
            &["--request logprobs:N: wanted at most the vocabulary size, 150", "151"],
        ),
        (
            with(&["--request", "logprobsx"]),
            &["--request: wanted logits, argmax, topk:K, sample or logprobs[:N]"],
        ),
        (
            with(&["--temperature", "0.5"]),
            &["--temperature: wanted --request sample beside it, got `logits`"],
        ),
        (
            with(&["--top-k", "5", "--request", "topk:5"]),
            &["--top-k: wanted --request sample beside it, got `topk:5`"],
        ),
        (
            sampled(&["--temperature", "-0.5"]),
            &["--temperature: wanted a finite number of at least 0, got `-0.5`"],
        ),
        (sampled(&["--temperature", "NaN"]), &["--temperature: wanted a finite number", "`NaN`"]),
        (sampled(&["--temperature", "inf"]), &["--temperature: wanted a finite number", "`inf`"]),
        (sampled(&["--temperature", "warm"]), &["--temperature: wanted a number, got `warm`"]),
        (
            sampled(&["--temperature", "1e-50"]),
            &["--temperature: wanted 0, or a number that f32 tells from 0, got `1e-50`"],
        ),
        (sampled(&["--temperature", "1e50"]), &["--temperature: wanted a finite number", "`1e50`"]),
        (sampled(&["--top-k", "-1"]), &["--top-k: wanted a whole number of at least 0, got `-1`"]),
        (sampled(&["--top-p", "0"]), &["--top-p: wanted a number above 0 and at most 1, got `0`"]),
        (sampled(&["--top-p", "1.5"]), &["--top-p: wanted a number above 0 and at most 1, got `1.5`"]),
        (sampled(&["--top-p", "nan"]), &["--top-p: wanted a number above 0"]),
        (sampled(&["--min-p", "-0.1"]), &["--min-p: wanted a number from 0 to 1, got `-0.1`"]),
        (sampled(&["--min-p", "2"]), &["--min-p: wanted a number from 0 to 1, got `2`"]),
        (with(&["--processed"]), &["--processed: wanted --request logprobs beside it, got `logits`"]),
        (
            logprobs_of("target_150"),
            &["target_150: tensor targets: wanted ids from 0 to 149, got 150 in row 4"],
        ),
        (logprobs_of("target_negative"), &["tensor targets: wanted ids from 0 to 149, got -1 in row 0"]),
        (logprobs_of("targets_6"), &["tensor targets: wanted [7], one id for each output row, got [6]"]),
        (
            [logprobs_of("target_ok"), vec!["--config".into(), file("chunk.toml")]].concat(),
            &["logprobs_chunk_bytes: wanted at least 760", "got 100"],
        ),
        (with(&["--rows", "3,3"]), &["--rows: wanted 7 in all", "got 6 in all"]),
        (with(&["--rows", "3,-4"]), &["--rows: wanted row counts of at least 0", "got `-4`"]),
        (with(&["--rows", "-3"]), &["--rows", "got `-3`"]),
        (with(&["--rows", "3;4"]), &["--rows", "got `3;4`"]),
        (with(&["--rows", ""]), &["--rows", "got ``"]),
        (
            with(&["--rows", "3,4", "--dp", "3"]),
            &["--rows: wanted 3 entries, one for each of --dp 3, got 2 entries"],
        ),
        (with(&["--rows", "18446744073709551615,8"]), &["--rows: wanted counts whose sum fits 64 bits"]),
        (with(&["--dp", "0"]), &["--dp: wanted a whole number of at least 1, got `0`"]),
        (with(&["--dp", "-2"]), &["--dp: wanted a whole number of at least 1, got `-2`"]),
        (with(&["--tp", "0"]), &["--tp: wanted a whole number of at least 1, got `0`"]),
        (with(&["--tp", "two"]), &["--tp", "got `two`"]),
        (
            with(&["--dp", "4", "--lmhead-tp-size", "3"]),
            &[
                "--lmhead-tp-size: wanted 1, or a multiple of tp = 1 that divides dp * tp = 4, got 3; the nearest that fit dp 4 x tp 1: 2, 4",
            ],
        ),
        (
            with(&["--lmhead-tp-size", "0"]),
            &["--lmhead-tp-size", "got 0", "the nearest that fit dp 1 x tp 1: 1"],
        ),
        (with(&["--lmhead-tp-size", "-2"]), &["--lmhead-tp-size: wanted auto, -1", "got `-2`"]),
        (
            with(&["--request", "topk:0"]),
            &["--request topk:K: wanted k from 1 to the vocabulary size, 150, got k = 0"],
        ),
        (with(&["--request", "topk:151"]), &["wanted k from 1 to the vocabulary size, 150, got k = 151"]),
        (with(&["--request", "topk:-1"]), &["--request topk:K", "got `topk:-1`"]),
        (
            with(&["--request", "topk"]),
            &["--request: wanted logits, argmax, topk:K, sample or logprobs[:N], got `topk`"],
        ),
        (with(&["--logits-dtype", "i8"]), &["--logits-dtype: wanted f32, bf16 or f16, got `i8`"]),
        (
            with(&["--logits-dtype", "bf16", "--request", "topk:3"]),
            &["--logits-dtype: wanted --request logits beside it, got `topk:3`"],
        ),
        (
            with(&["--logits-dtype", "f32", "--request", "argmax"]),
            &["--logits-dtype: wanted --request logits beside it, got `argmax`"],
        ),
        (with(&["--quantize", "int4"]), &["--quantize: wanted none, w8a8 or w8a16, got `int4`"]),
        (with(&["--threads", "0"]), &["--threads: wanted a whole number of at least 1, got `0`"]),
        (with(&["--threads", "-1"]), &["--threads", "got `-1`"]),
        (with(&["--steps", "0"]), &["--steps"]),
        (with(&["--seed", "-1"]), &["--seed: wanted a whole number from 0", "got `-1`"]),
        (with(&["--out", &file("no/such/folder/out")]), &["no/such/folder does not exist; create it"]),
        (with(&["--out", files.folder.path().to_str().unwrap()]), &["is not a regular file"]),
        (with(&["--backend", "tpu"]), &["--backend"]),
        (with(&["--exchange", "pigeon"]), &["--exchange"]),
        (with(&["--mode", "guess"]), &["--mode"]),
        (only(&["--preset", "tiny", "--rows", "1000000000000000"]), &["--rows", "memory"]),
        (with(&["--dp", "9223372036854775807", "--tp", "3"]), &["--dp, --tp: wanted at most 1024 ranks"]),
        (with(&["--dp", "4000000000"]), &["--dp, --tp: wanted at most 1024 ranks"]),
        (with(&["--threads", "99999999999"]), &["--threads: wanted 1 to 1024, got 99999999999"]),
        (only(&["--head", &head, "--out", &file("never")]), &["--out: wanted --hidden FILE beside it"]),
        (with(&["--out", &hidden]), &["is an input of this run", "name another file"]),
        (with(&["--out", &file("link")]), &["is an input of this run"]),
        (
            only(&["--model", &file("model"), "--hidden", &hidden, "--out", &file("model/config.json")]),
            &["is an input of this run"],
        ),
        (with(&["--out", &file("new/")]), &["is the name of a folder"]),
        (with(&["--out", &file("read-only")]), &["is read-only"]),
        (with(&["--out", "/dev/null"]), &["is not a regular file"]),
        (with(&["--out", &file(&"n".repeat(300))]), &["cannot be written"]),
        (with(&["--config", "/dev/null"]), &["is not a regular file"]),
        (
            only(&["--preset", "tiny", "--config", &file("dtype.toml")]),
            &["hidden_dtype: wanted bf16, the head's dtype, got f16"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("tied.toml")]),
            &["tie_word_embeddings: wanted nothing"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("bias.toml")]),
            &["bias: wanted nothing (presets have none)"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("sizes.toml")]),
            &["hidden_size: wanted 256, the preset's, got 21"],
        ),
    ];
    let never = file("never");
    for (args, wanted) in &table {
        let mut all = vec!["run"];
        all.extend(args.iter().map(String::as_str));
        if !args.iter().any(|a| a == "--out") {
            all.extend(["--out", &never]);
        }
        let out = lmhead(&all);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        for want in *wanted {
            assert!(said.contains(want), "{args:?}\n got {said}\nwant {want}");
        }
        assert!(said.starts_with("error: "), "{said}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }
    assert_eq!(files.entries(), before, "no file was made");
}
