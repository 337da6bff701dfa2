//! Input that is refused, and the error messages.

use super::adjusted::{logit_bias, targets};
use super::per_row::{bools, counts, f32_values, i64_tensor};
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
    std::fs::write(files.path("f16_head.toml"), "head_dtype = \"f16\"").unwrap();
    std::fs::write(files.path("f32_head.toml"), "head_dtype = \"f32\"").unwrap();
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
    let several = |rows: usize, of_a_row: usize, values: &[i64]| -> Tensor {
        ("targets".into(), Dtype::I64, vec![rows, of_a_row], targets(values).3)
    };
    rows_with("targets_none", vec![several(7, 0, &[])]);
    rows_with("targets_2x7", vec![several(2, 7, &[0; 14])]);
    rows_with("targets_150", vec![several(7, 2, &[0, 1, 2, 3, -100, 5, 6, 7, 8, 9, 10, 150, 12, 13])]);
    rows_with("targets_f32", vec![f32_tensor("targets", &[7], 1)]);
    std::fs::write(files.path("chunk.toml"), "logprobs_chunk_bytes = 100").unwrap();
    rows_with("mask_words", vec![("allowed".into(), Dtype::I32, vec![7, 0], vec![])]);
    rows_with("mask_rows", vec![("allowed".into(), Dtype::I32, vec![6, 5], vec![0; 6 * 20])]);
    rows_with("mask_type", vec![("allowed".into(), Dtype::U32, vec![7, 5], vec![0; 7 * 20])]);
    rows_with("add_row", logit_bias(&[0, 7], &[1, 1], &[0.0, 0.0]));
    rows_with("add_id", logit_bias(&[0, 6], &[1, 150], &[0.0, 0.0]));
    rows_with("add_nan", logit_bias(&[5], &[1], &[f32::NAN]));
    rows_with("add_short", logit_bias(&[5, 6], &[1, 1], &[0.0]));
    rows_with("add_ids_short", logit_bias(&[5, 6], &[1], &[0.0, 0.0]));
    let ones = [1.0; 7];
    let penalty = |more: Vec<Tensor>| [vec![f32_values("repetition_penalty", &ones)], more].concat();
    let counted = |rows: &[i64], ids: &[i64], values: &[i64]| {
        let names = ["count_rows", "count_ids", "count_values"];
        penalty(
            names.iter().zip([rows, ids, values]).map(|(name, values)| i64_tensor(name, values)).collect(),
        )
    };
    rows_with("penalty_alone", penalty(vec![]));
    rows_with("counts_alone", counts());
    rows_with("penalty_0", [vec![f32_values("repetition_penalty", &[0.0; 7])], counts()].concat());
    rows_with("penalty_6", [vec![f32_values("presence_penalty", &ones[..6])], counts()].concat());
    rows_with("count_row", counted(&[7], &[0], &[0]));
    rows_with("count_id", counted(&[6], &[150], &[0]));
    rows_with("count_twice", counted(&[6, 0, 6], &[9, 9, 9], &[1, 1, 1]));
    rows_with("count_negative", counted(&[0, 1], &[0, 0], &[0, -1]));
    rows_with("count_huge", counted(&[0], &[3], &[1 << 31]));
    rows_with("count_short", counted(&[0, 1], &[0, 0], &[0]));
    rows_with("prompt_short", [counted(&[0], &[0], &[0]), vec![bools("count_in_prompt", &[])]].concat());
    rows_with("prompt_2", {
        let twos = ("count_in_prompt".into(), Dtype::U8, vec![1], vec![2]);
        [counted(&[0], &[0], &[0]), vec![twos]].concat()
    });
    rows_with("seed_negative", vec![i64_tensor("seed", &[0, 0, 0, -4, 0, 0, 0])]);
    rows_with("seed_6", vec![i64_tensor("seed", &[0; 6])]);
    rows_with("seed_float", vec![f32_values("seed", &ones)]);
    rows_with("top_k_negative", vec![i64_tensor("top_k", &[-1; 7])]);
    rows_with("warm", vec![f32_values("temperature", &ones)]);
    rows_with("cold", vec![f32_values("temperature", &[1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0])]);
    rows_with("tiny_temperature", {
        vec![("temperature".into(), Dtype::F64, vec![7], 1e-50f64.to_le_bytes().repeat(7))]
    });
    rows_with("top_p_0", vec![f32_values("top_p", &[0.0; 7])]);
    rows_with("min_p_nan", vec![f32_values("min_p", &[f32::NAN; 7])]);
    rows_with("add_part", logit_bias(&[5], &[1], &[0.0])[..2].to_vec());
    let (head, hidden) = (file("head.safetensors"), file("hidden.safetensors"));
    let before = files.entries();

    let base: &[&str] = &["--head", &head, "--hidden", &hidden];
    let with_hidden = |name: &str| vec!["--head".to_string(), head.clone(), "--hidden".into(), file(name)];
    let logprobs_of = |name: &str| [with_hidden(name), vec!["--request".into(), "logprobs".into()]].concat();
    let with = |extra: &[&str]| base.iter().chain(extra).map(ToString::to_string).collect::<Vec<String>>();
    let sampled = |extra: &[&str]| {
        [with(&["--request", "sample"]), extra.iter().map(ToString::to_string).collect()].concat()
    };
    let sampled_of = |name: &str, extra: &[&str]| {
        let extra = ["--request", "sample"].iter().chain(extra).map(ToString::to_string).collect();
        [with_hidden(name), extra].concat()
    };
    let only = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<String>>();
    let table: Vec<(Vec<String>, &[&str])> = vec![
        (only(&[]), &["--model, --head, --preset: wanted one of them, got none"]),
        (only(&["--preset", "tiny", "--head", &head]), &["wanted one of them, got several"]),
        (
            only(&["--preset", "tiny", "--tensor", "x"]),
            &["--tensor: wanted --model FOLDER or --head FILE beside it"],
        ),
        (
            only(&["--preset", "tiny", "--copy"]),
            &["--copy: wanted --model or --head beside it, got --preset"],
        ),
        (only(&["--preset", "gpt-9"]), &["gpt-9", "deepseek-v3", "tiny"]),
        (only(&["--model", &file("nowhere")]), &["nowhere", "cannot be read"]),
        (only(&["--model", &file("empty_model")]), &["empty_model", "config.json"]),
        (only(&["--model", &head]), &["head.safetensors", "wanted a Hugging Face model folder, got a file"]),
        (only(&["--head", &file("nowhere")]), &["nowhere", "a head: or a .gguf file"]),
        (only(&["--head", &file("junk")]), &["junk"]),
        (only(&["--head", &file("empty")]), &["empty"]),
        (only(&["--head", &file("short")]), &["short"]),
        (only(&["--head", files.folder.path().to_str().unwrap()]), &["folder"]),
        (only(&["--head", &head, "--tensor", "head"]), &["tensor head", "lm_head.weight"]),
        (
            with(&["--config", &file("bad.toml")]),
            &["bad.toml, line 1: wanted a key of", "got `lmhead_size`; did you mean"],
        ),
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
        (
            with(&["--config", &file("f16_head.toml")]),
            &["head_dtype: wanted f32, or bf16 as lm_head.weight is stored, got f16"],
        ),
        (
            with(&["--config", &file("f32_head.toml"), "--quantize", "w8a16"]),
            &["head_dtype: wanted nothing beside w8a16, got f32"],
        ),
        (with_hidden("other"), &["tensor hidden_states", "states"]),
        (
            with_hidden("outside"),
            &["logits_indices: index 7 at position 2 is not a row: wanted 0 to 6, got 7"],
        ),
        (with_hidden("negative"), &["logits_indices: index -1 at position 1 is not a row: wanted 0 to 6"]),
        (
            with_hidden("mask_words"),
            &[
                "mask_words: tensor allowed: wanted i32 [7, 5], a row of bits for each output row, got I32 [7, 0]",
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
        (
            with_hidden("penalty_alone"),
            &["penalty_alone: tensor count_rows: wanted it beside repetition_penalty, got none"],
        ),
        (
            with_hidden("counts_alone"),
            &[
                "tensor repetition_penalty, frequency_penalty or presence_penalty: wanted it beside count_rows",
            ],
        ),
        (
            with_hidden("penalty_0"),
            &[
                "penalty_0: repetition_penalty of row 0: wanted a finite number above 0, got 0; 1 changes nothing",
            ],
        ),
        (with_hidden("penalty_6"), &["tensor presence_penalty: wanted f32 or f64 [7]", "got F32 [6]"]),
        (
            with_hidden("count_row"),
            &["count_row: count_rows: index 7 at position 0 is not a row: wanted 0 to 6"],
        ),
        (with_hidden("count_id"), &["count_id: count_ids: id of row 6: wanted an id from 0 to 149, got 150"]),
        (with_hidden("count_twice"), &["count_ids of row 6: wanted each id once, got id 9 more than once"]),
        (
            with_hidden("count_negative"),
            &["tensor count_values: wanted counts of at least 0, got -1 at position 1"],
        ),
        (with_hidden("count_huge"), &["count_values: count of row 0, id 3: wanted at most 2147483647"]),
        (with_hidden("count_short"), &["tensor count_values: wanted [2], as many as count_rows, got [1]"]),
        (with_hidden("prompt_short"), &["tensor count_in_prompt: wanted bool (or u8 of 0 and 1) [1]"]),
        (with_hidden("prompt_2"), &["tensor count_in_prompt: wanted bool (or u8 of 0 and 1) [1]"]),
        (
            sampled_of("seed_negative", &[]),
            &["tensor seed: wanted whole numbers of at least 0, got -4 in row 3; use"],
        ),
        (sampled_of("seed_6", &[]), &["tensor seed: wanted i64, u64, i32 or u32 [7]", "got I64 [6]"]),
        (sampled_of("seed_float", &[]), &["tensor seed: wanted i64, u64, i32 or u32 [7]", "got F32 [7]"]),
        (sampled_of("top_k_negative", &[]), &["tensor top_k", "got -1 in row 0; 0 keeps all ids"]),
        (
            sampled_of("warm", &["--temperature", "1"]),
            &[
                "--temperature: wanted it, or the tensor temperature of",
                "warm, got both; leave out the option",
            ],
        ),
        (
            sampled_of("cold", &[]),
            &["cold: temperature of row 2: wanted a finite number of at least 0, got -1"],
        ),
        (
            sampled_of("tiny_temperature", &[]),
            &["tensor temperature: wanted 0, or numbers that f32 tells from 0", "in row 0"],
        ),
        (
            sampled_of("top_p_0", &[]),
            &["top_p_0: top_p of row 0: wanted a number above 0 and at most 1, got 0"],
        ),
        (sampled_of("min_p_nan", &[]), &["min_p_nan: min_p of row 0: wanted a number from 0 to 1, got NaN"]),
        (with(&["--request", "logprobs"]), &["hidden.safetensors: tensor targets"]),
        (
            with(&["--request", "logprobs:-1"]),
            &["--request logprobs:N: wanted N from 0", "got `logprobs:-1`"],
        ),
        (
            with(&["--request", "logprobs:151"]),
            &["--request logprobs:N, sample:N: wanted at most the vocabulary size, 150", "151"],
        ),
        (
            with(&["--request", "logprobsx"]),
            &["--request: wanted logits, argmax, topk:K, sample[:N] or logprobs[:N]"],
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
        (
            with(&["--processed"]),
            &["--processed: wanted --request logprobs or sample:N beside it, got `logits`"],
        ),
        (
            logprobs_of("target_150"),
            &["target_150: tensor targets: wanted ids from 0 to 149, or -100 for none, got 150 in row 4"],
        ),
        (
            logprobs_of("target_negative"),
            &["tensor targets: wanted ids from 0 to 149, or -100 for none, got -1 in row 0"],
        ),
        (
            logprobs_of("targets_6"),
            &["tensor targets: wanted i64 or i32 [7], one id for each output row, or [7, m]", "[6]"],
        ),
        (logprobs_of("targets_none"), &["targets: wanted i64 or i32 [7]", "m from 1 to 65535", "[7, 0]"]),
        (logprobs_of("targets_2x7"), &["targets: wanted i64 or i32 [7]", "[2, 7]"]),
        (logprobs_of("targets_150"), &["targets: wanted ids from 0 to 149", "got 150 in row 5"]),
        (logprobs_of("targets_f32"), &["targets: wanted i64 or i32 [7]", "F32"]),
        (with(&["--request", "sample:x"]), &["--request sample:N: wanted N from 0", "got `sample:x`"]),
        (with(&["--request", "sample:151"]), &["sample:N: wanted at most the vocabulary size, 150", "151"]),
        (
            with(&["--request", "sample", "--processed"]),
            &["--processed: wanted --request logprobs or sample:N beside it, got `sample`"],
        ),
        (
            [logprobs_of("target_ok"), vec!["--config".into(), file("chunk.toml")]].concat(),
            &["logprobs_chunk_bytes: wanted at least 752", "got 100"],
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
            &["--request: wanted logits, argmax, topk:K, sample[:N] or logprobs[:N], got `topk`"],
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
        (
            with(&["--warm-up", "-1"]),
            &["--warm-up: wanted a whole number of at least 0, got `-1`; leave it out where unsure"],
        ),
        (
            with(&["--steps", "18446744073709551615"]),
            &["--steps: wanted a number of steps whose times, 8 bytes each"],
        ),
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
            only(&["--preset", "tiny", "--config", &file("f32_head.toml")]),
            &["head_dtype: wanted nothing (a preset's weights are made in its own type), got a value"],
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

    let out = lmhead(&["frob"]);
    assert_eq!(out.status.code(), Some(2));
    let wanted =
        "error: subcommand: wanted run, plan, quantize, bench or doctor, got `frob`; `lmhead --help` says";
    assert!(text(&out.stderr).starts_with(wanted), "{}", text(&out.stderr));
}
