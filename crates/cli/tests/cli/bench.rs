//! `lmhead bench`: every stage of every type is reported, shares follow from times, and a program can ask
//! line by line. Nothing here depends on speed.

use super::*;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

fn bench(args: &[&str]) -> Value {
    serde_json::from_str(&good(&[&["bench", "--json", "-"], args].concat())).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn every_type_row_count_and_stage_is_reported() {
    let stages = [
        "rows",
        "matmul",
        "epilogue",
        "softcap",
        "logits",
        "argmax",
        "topk:3",
        "logprobs:2",
        "sample",
        "sample:2",
    ];
    let (types, rows) = (["bf16", "f16", "f32", "w8a8", "w8a16"], [1, 5]);
    let report = bench(&[
        "--vocab-size",
        "130",
        "--hidden-size",
        "33",
        "--dtypes",
        &types.join(","),
        "--rows",
        "1,5",
        "--stages",
        &stages.join(", "),
        "--reps",
        "3",
        "--threads",
        "2",
    ]);
    assert_eq!((&report["vocab_size"], &report["hidden_size"]), (&130.into(), &33.into()));
    assert_eq!((&report["threads"], &report["reps"]), (&2.into(), &3.into()));
    assert!(report["backend"].as_str().unwrap().starts_with("cpu "));
    let heads = report["heads"].as_array().unwrap();
    assert_eq!(heads.len(), types.len());
    for (head, (name, size)) in heads.iter().zip(types.iter().zip([2, 2, 4, 1, 1])) {
        assert_eq!(head["dtype"], *name);
        assert_eq!(head["weight_bytes"], 130 * 33 * size);
        let reported = head["rows"].as_array().unwrap();
        assert_eq!(reported.len(), rows.len());
        for (reported, rows) in reported.iter().zip(rows) {
            assert_eq!(reported["rows"], rows);
            let read = number(&reported["read"]["median_us"]);
            let per_us = f64::from(130 * 33 * size) / read;
            assert!((number(&reported["read_gb_per_s"]) / (per_us / 1e3) - 1.0).abs() < 1e-9);
            let of_stages = reported["stages"].as_array().unwrap();
            assert_eq!(of_stages.len(), stages.len());
            for (stage, wanted) in of_stages.iter().zip(stages) {
                assert_eq!(stage["stage"], wanted);
                let [p10, median, p90] = ["p10_us", "median_us", "p90_us"].map(|key| number(&stage[key]));
                assert!(0.0 < p10 && p10 <= median && median <= p90, "{stage}");
                // Only stages that stream all weights have a share of the roofs; only a step has parts.
                let streams = !["rows", "epilogue", "softcap"].contains(&wanted);
                assert_eq!(stage["of_read"].is_f64(), streams, "{stage}");
                assert_eq!(stage["parts"].is_object(), streams && wanted != "matmul", "{stage}");
                if streams {
                    assert!((number(&stage["of_read"]) - read / median).abs() < 1e-9, "{stage}");
                    if let Some(rate) = reported["arithmetic_gop_per_s"].as_f64() {
                        let operations = f64::from(2 * rows * 130 * 33);
                        let share = operations / (median * 1e3) / rate;
                        assert!((number(&stage["of_arithmetic"]) / share - 1.0).abs() < 1e-9, "{stage}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_table_on_the_screen_and_json_in_a_file() {
    let files = Files::new();
    let out = files.name("bench.json");
    let printed = good(&["bench", "--preset", "tiny", "--rows", "2", "--reps", "1", "--json", &out]);
    for word in ["preset tiny: 1000 x 256", "w8a8, rows in bf16", "(read only)", "topk:8", "of arithmetic"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    assert!(printed.trim_end().ends_with(&format!("written: {out}")), "{printed}");
    let written: Value = serde_json::from_slice(&std::fs::read(files.path("bench.json")).unwrap()).unwrap();
    assert_eq!(written["head"], "preset tiny");
    assert!(written["command"].as_str().unwrap().starts_with("lmhead bench --preset tiny"));
    let names: Vec<&Value> = written["heads"].as_array().unwrap().iter().map(|h| &h["dtype"]).collect();
    assert_eq!(names, ["bf16", "w8a8", "w8a16"], "the types that are served");
}

#[test]
fn a_program_asks_line_by_line() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lmhead"))
        .args(["bench", "--preset", "tiny", "--dtypes", "bf16,w8a8", "--rows", "1,4"])
        .args(["--stages", "matmul,rows,argmax", "--on-demand"])
        .env_remove("LMHEAD_CPU_ISA")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, mut answers) =
        (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut next = || -> Value { serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap() };
    let ready = next();
    assert_eq!(ready["weight_bytes"], serde_json::json!([512_000, 256_000]));
    let mut answer = |line: &str| {
        writeln!(ask, "{line}").unwrap();
        next()
    };
    // Each answer arrives before the next question is written: neither side buffers.
    for line in ["bf16 matmul 4", "w8a8 rows 1", "w8a8 matmul 3", "bf16 read"] {
        assert!(number(&answer(line)["us"]) > 0.0, "{line}");
    }
    assert!(number(&answer("bf16 argmax 2")["parts"]["matmul_us"]) > 0.0);
    assert!(answer("w8a8 arithmetic").get("gop_per_s").is_some());
    // A line that cannot be answered ends the program, as bad input does elsewhere.
    writeln!(ask, "w8a16 matmul 1").unwrap();
    let out = child.wait_with_output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("--on-demand: wanted a type of --dtypes, got `w8a16`"), "{said}");
}

#[test]
fn lines_that_cannot_be_answered_are_refused() {
    for (line, want) in [
        ("", "wanted lines such as `bf16 read`"),
        ("bf16", "wanted lines such as"),
        ("bf16 matmul 1 1", "wanted lines such as"),
        ("int4 read", "wanted bf16, f16, f32, w8a8 or w8a16, got `int4`"),
        ("bf16 argmax 1", "wanted a stage of --stages, got `argmax`"),
        ("bf16 dance 1", "wanted rows, matmul, epilogue, softcap, logits, argmax"),
        ("bf16 matmul 3", "wanted 1 to 2 rows, the most of --rows, got `3`"),
        ("bf16 matmul 0", "wanted 1 to 2 rows"),
        ("bf16 matmul many", "wanted 1 to 2 rows"),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lmhead"))
            .args(["bench", "--preset", "tiny", "--dtypes", "bf16", "--rows", "2"])
            .args(["--stages", "matmul", "--on-demand"])
            .env_remove("LMHEAD_CPU_ISA")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{line}").unwrap();
        let out = child.wait_with_output().unwrap();
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{line}: {said}");
        assert!(said.starts_with("error: ") && said.contains(want), "{line}\n got {said}\nwant {want}");
    }
}

#[test]
fn bad_input_is_refused_with_a_sentence() {
    let files = Files::new();
    std::fs::write(files.path("read-only"), "kept").unwrap();
    let mut permissions = std::fs::metadata(files.path("read-only")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(files.path("read-only"), permissions).unwrap();
    let before = files.entries();
    let (nowhere, folder) = (files.name("no/such/file"), files.folder.path().to_str().unwrap().to_string());
    let read_only = files.name("read-only");
    let tiny: &[&str] = &["--preset", "tiny"];
    let table: Vec<(Vec<&str>, &str)> = vec![
        (vec![], "--preset, --vocab-size: wanted one of them, got none; try --preset tiny"),
        (vec!["--vocab-size", "9"], "--vocab-size, --hidden-size: wanted both, got one of them"),
        (vec!["--hidden-size", "9"], "--vocab-size, --hidden-size: wanted both, got one of them"),
        ([tiny, &["--hidden-size", "9"]].concat(), "wanted one of them, got several"),
        (vec!["--preset", "gpt-9"], "--preset: wanted one of deepseek-v3"),
        (
            vec!["--vocab-size", "0", "--hidden-size", "9"],
            "--vocab-size: wanted a whole number of at least 1",
        ),
        (
            vec!["--vocab-size", "9", "--hidden-size", "-3"],
            "--hidden-size: wanted a whole number of at least 1",
        ),
        (vec!["--vocab-size", "9999999999", "--hidden-size", "9"], "vocab_size: wanted 1 to 1073741824"),
        (
            vec!["--vocab-size", "9", "--hidden-size", "132105", "--dtypes", "bf16,w8a8"],
            "hidden_size with quantization w8a8: wanted at most 132104",
        ),
        (
            [tiny, &["--dtypes", "int8"]].concat(),
            "--dtypes: wanted bf16, f16, f32, w8a8 or w8a16, got `int8`",
        ),
        ([tiny, &["--dtypes", "i8"]].concat(), "--dtypes: wanted bf16, f16, f32, w8a8 or w8a16, got `i8`"),
        ([tiny, &["--dtypes", "bf16,"]].concat(), "--dtypes: wanted bf16, f16, f32, w8a8 or w8a16, got ``"),
        ([tiny, &["--rows", "1,0"]].concat(), "--rows: wanted row counts from 1 to 1048576, got `0`"),
        ([tiny, &["--rows", "-1"]].concat(), "--rows: wanted row counts of at least 0"),
        ([tiny, &["--rows", "9999999"]].concat(), "--rows: wanted row counts from 1 to 1048576"),
        (
            [tiny, &["--stages", "matmul,dance"]].concat(),
            "--stages: wanted rows, matmul, epilogue, softcap, logits",
        ),
        (
            [tiny, &["--stages", "topk:none"]].concat(),
            "--stages topk:K: wanted K from 1 to the vocabulary size",
        ),
        ([tiny, &["--stages", "topk:1001"]].concat(), "wanted k from 1 to the vocabulary size, 1000"),
        ([tiny, &["--stages", ""]].concat(), "--stages: wanted rows, matmul"),
        ([tiny, &["--reps", "0"]].concat(), "--reps: wanted a whole number of at least 1, got `0`"),
        ([tiny, &["--reps", "100001"]].concat(), "--reps: wanted 1 to 100000"),
        ([tiny, &["--seed", "-1"]].concat(), "--seed: wanted a whole number from 0"),
        ([tiny, &["--threads", "0"]].concat(), "--threads: wanted a whole number of at least 1, got `0`"),
        ([tiny, &["--threads", "1025"]].concat(), "--threads: wanted 1 to 1024, got 1025"),
        ([tiny, &["--backend", "abacus"]].concat(), "--backend"),
        ([tiny, &["--json", &nowhere]].concat(), "does not exist; create it"),
        ([tiny, &["--json", &folder]].concat(), "is not a regular file"),
        ([tiny, &["--json", &read_only]].concat(), "is read-only"),
        ([tiny, &["--json", "-", "--on-demand"]].concat(), "--json: wanted it or --on-demand, got `-`"),
    ];
    for (args, want) in &table {
        let out = lmhead(&[&["bench"][..], args].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with("error: "), "{args:?}: {said}");
        assert!(said.contains(want), "{args:?}\n got {said}\nwant {want}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }
    assert_eq!(files.entries(), before, "no file was made");
    assert_eq!(std::fs::read(files.path("read-only")).unwrap(), b"kept");
}
