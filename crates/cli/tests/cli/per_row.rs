//! Tensors of `--hidden` with one entry for each output row: sampling parameters, penalties, and masks of any
//! width.

use super::*;

pub fn i64_tensor(name: &str, values: &[i64]) -> Tensor {
    (name.into(), Dtype::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn f32_values(name: &str, values: &[f32]) -> Tensor {
    (name.into(), Dtype::F32, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn bools(name: &str, values: &[bool]) -> Tensor {
    (name.into(), Dtype::BOOL, vec![values.len()], values.iter().map(|v| u8::from(*v)).collect())
}

const SHARDINGS: [&[&str]; 5] = [
    &[],
    &["--rows", "3,0,4", "--lmhead-tp-size", "3"],
    &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
    &["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
    &["--tp", "3", "--lmhead-tp-size", "-1"],
];

/// Type, shape and bytes by name.
type Answer = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Runs the head on 7 rows with `more` tensors; returns standard error and the answer.
fn run(files: &Files, more: &[Tensor], args: &[&str]) -> (String, Answer) {
    write(&files.path("rows"), &[&[bf16_tensor("hidden_states", &[7, 20], 2)], more].concat());
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    let base = ["run", "--head", &head, "--hidden", &rows, "--out", &out, "--steps", "1", "--check"];
    let ended = lmhead(&[&base, args].concat());
    assert!(ended.status.success(), "{args:?}: {}{}", text(&ended.stdout), text(&ended.stderr));
    assert!(text(&ended.stdout).contains("check passed"), "{args:?}: {}", text(&ended.stdout));
    (text(&ended.stderr), read(&files.path("out")))
}

#[test]
fn each_row_is_sampled_as_its_own_tensors_say() {
    let files = Files::new();
    let seeds = [5i64, 6, 7, 5, i64::MAX, 0, 1];
    let temperatures = [0.0f32, 1.0, 5.0, 3.0, 8.0, 0.5, 6.0];
    let top_k = [0i64, 3, 20, 0, 1 << 40, 1, 0];
    let top_p = [1.0f32, 0.9, 0.5, 1.0, 1.0, 1.0, 0.3];
    let min_p = [0.0f32, 0.0, 0.1, 0.2, 0.0, 0.0, 0.01];
    let tensors = [
        i64_tensor("seed", &seeds),
        f32_values("temperature", &temperatures),
        i64_tensor("top_k", &top_k),
        f32_values("top_p", &top_p),
        f32_values("min_p", &min_p),
    ];
    let sample = |more: &[Tensor], args: &[&str]| -> Vec<i64> {
        i64s(&run(&files, more, &[&["--request", "sample"], args].concat()).1["sampled"].2)
    };
    let own = sample(&tensors, &[]);
    for sharding in SHARDINGS {
        assert_eq!(sample(&tensors, sharding), own, "{sharding:?}");
    }
    // Each row is answered as in a run whose options are this row's parameters.
    for row in 0..7 {
        let words = [
            seeds[row].to_string(),
            temperatures[row].to_string(),
            top_k[row].to_string(),
            top_p[row].to_string(),
            min_p[row].to_string(),
        ];
        let names = ["--seed", "--temperature", "--top-k", "--top-p", "--min-p"];
        let options: Vec<&str> = names.iter().zip(&words).flat_map(|(name, word)| [*name, word]).collect();
        assert_eq!(sample(&[], &options)[row], own[row], "row {row}: {options:?}");
    }
    // One parameter as a tensor and options for the rest; other number types.
    let wide = temperatures.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let mixed = [
        ("seed".into(), Dtype::U64, vec![7], i64_tensor("", &seeds).3),
        ("temperature".into(), Dtype::F64, vec![7], wide),
        ("top_k".into(), Dtype::I32, vec![7], top_k.iter().flat_map(|k| (*k as i32).to_le_bytes()).collect()),
        tensors[3].clone(),
        tensors[4].clone(),
    ];
    assert_eq!(sample(&mixed, &[]), own, "1 << 40 as i32 is 0: all ids, too");
    assert_eq!(
        sample(&tensors[..1], &["--temperature", "3"])[3],
        sample(&[], &["--seed", "5", "--temperature", "3"])[3]
    );
    let (_, answer) = run(&files, &tensors, &["--request", "argmax"]);
    assert!(answer.contains_key("argmax"), "other requests have no use for them");
}

/// Rows with the same hidden states, seed and position draw the same token.
#[test]
fn positions_are_each_rows_own() {
    let files = Files::new();
    let mut hidden = bf16_tensor("hidden_states", &[7, 20], 2);
    hidden.3 = hidden.3[..40].to_vec().repeat(7);
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    let sample = |positions: Option<&[i64]>| {
        let position = positions.map(|positions| i64_tensor("position", positions));
        write(&files.path("rows"), &[vec![hidden.clone()], position.into_iter().collect()].concat());
        let json = good(&[
            "run",
            "--head",
            &head,
            "--hidden",
            &rows,
            "--out",
            &out,
            "--request",
            "sample",
            "--temperature",
            "8",
            "--check",
            "--json",
        ]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        (i64s(&read(&files.path("out"))["sampled"].2), json["request"].as_str().unwrap().to_string())
    };
    let (places, words) = sample(None);
    assert_eq!(words, "sample; temperature 8, top_k 0, top_p 1, min_p 0, seed 0");
    let (given, words) = sample(Some(&[0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(words, "sample; temperature 8, top_k 0, top_p 1, min_p 0, seed 0, each row's own position");
    assert_eq!(given, places, "a row's position is its output row where nothing is said");
    let (moved, _) = sample(Some(&[6, 5, 5, 5, 2, 1, 0]));
    let wanted: Vec<i64> = [6, 5, 5, 5, 2, 1, 0].map(|at| places[at]).into();
    assert_eq!(moved, wanted);
    assert!(places.iter().any(|id| *id != places[0]), "{places:?}");
}

/// `(row, id, count in the output, whether the prompt has it)`, unsorted.
const COUNTED: [(i64, i64, i64, bool); 8] = [
    (6, 149, 2, false),
    (0, 3, 1, true),
    (0, 0, 0, true),
    (2, 64, 7, false),
    (2, 63, 0, false),
    (6, 1, 3, true),
    (5, 20, 0, true),
    (0, 130, 9, false),
];

pub fn counts() -> Vec<Tensor> {
    vec![
        i64_tensor("count_rows", &COUNTED.map(|c| c.0)),
        i64_tensor("count_ids", &COUNTED.map(|c| c.1)),
        i64_tensor("count_values", &COUNTED.map(|c| c.2)),
        bools("count_in_prompt", &COUNTED.map(|c| c.3)),
    ]
}

#[test]
fn penalties_change_the_counted_ids_of_their_rows() {
    let files = Files::new();
    let repetition = [1.5f32, 1.0, 0.5, 1.0, 2.0, 3.0, 1.25];
    let frequency = [0.1f32, 0.0, -0.2, 0.0, 1.0, 0.0, 0.3];
    let presence = [0.7f32, 0.0, 0.4, 0.0, 1.0, 9.0, -0.6];
    let kinds = [
        f32_values("repetition_penalty", &repetition),
        f32_values("frequency_penalty", &frequency),
        f32_values("presence_penalty", &presence),
    ];
    let raw = f32s(&run(&files, &[], &[]).1["logits"].2);
    // The definition of vLLM and OpenAI, in f32.
    let penalised = |with: [bool; 3]| {
        let mut logits = raw.clone();
        for (row, id, count, in_prompt) in COUNTED {
            let (row, l) = (row as usize, &mut logits[row as usize * 150 + id as usize]);
            if with[0] && (count > 0 || in_prompt) {
                *l = if *l > 0.0 { *l / repetition[row] } else { *l * repetition[row] };
            }
            if with[1] && count > 0 {
                *l -= frequency[row] * count as f32;
            }
            if with[2] && count > 0 {
                *l -= presence[row];
            }
        }
        logits
    };
    for with in [[true; 3], [true, false, false], [false, true, false], [false, false, true]] {
        let chosen = kinds.iter().zip(with).filter(|(_, with)| *with).map(|(kind, _)| kind.clone());
        let tensors: Vec<Tensor> = chosen.chain(counts()).collect();
        let wanted = penalised(with);
        for sharding in SHARDINGS {
            let got = f32s(&run(&files, &tensors, sharding).1["logits"].2);
            assert!(got == wanted, "{with:?} {sharding:?}");
        }
        assert_ne!(wanted, raw);
    }
    // Without `count_in_prompt` no id counts as part of the prompt.
    let tensors = [&kinds[..1], &counts()[..3]].concat();
    let got = f32s(&run(&files, &tensors, &[]).1["logits"].2);
    assert_eq!(got[0], raw[0], "id 0 of row 0 is only in the prompt");
    assert_ne!(got[3], raw[3]);
    // Raw logprobs ignore penalties.
    let tensors = [&kinds[..1], &counts()[..], &[super::adjusted::targets(&[3; 7])]].concat();
    let (said, raw) = run(&files, &tensors, &["--request", "logprobs"]);
    assert!(said.contains("raw logprobs leave aside"), "{said}");
    let (_, processed) = run(&files, &tensors, &["--request", "logprobs", "--processed"]);
    let differ = |row: usize| f32s(&raw["logprobs"].2)[row] != f32s(&processed["logprobs"].2)[row];
    assert!(differ(0) && !differ(1));
}

/// A mask as wide as a tokenizer: ids that it does not cover are not allowed, and bits beyond the vocabulary
/// are ignored.
#[test]
fn a_mask_of_another_width_is_fitted_to_the_vocabulary() {
    let files = Files::new();
    let mask = |words: usize, of: fn(usize) -> u32| {
        let bytes = (0..7 * words).flat_map(|at| of(at % words).to_le_bytes()).collect();
        ("allowed".to_string(), Dtype::I32, vec![7, words], bytes)
    };
    // Every third id of the first 128; in a wider mask also everything after them.
    let every: fn(usize) -> u32 =
        |word| if word < 4 { 0x9249_2492u32.rotate_left(word as u32) } else { u32::MAX };
    let narrow: fn(usize) -> u32 = |word| if word < 4 { 0x9249_2492u32.rotate_left(word as u32) } else { 0 };
    for request in ["logits", "argmax", "topk:50"] {
        let answer = |tensor: Tensor, sharding: &[&str]| {
            let (said, answer) = run(&files, &[tensor], &[&["--request", request], sharding].concat());
            let mut names: Vec<String> = answer.keys().cloned().collect();
            names.sort();
            (said, names.iter().map(|name| answer[name].2.clone()).collect::<Vec<_>>())
        };
        for sharding in SHARDINGS {
            let (said, exact) = answer(mask(5, narrow), sharding);
            assert_eq!(said, "");
            let (said, short) = answer(mask(4, narrow), sharding);
            assert!(short == exact, "{request} {sharding:?}");
            assert_eq!(
                said,
                "warning: --hidden's mask `allowed` covers 128 ids, the vocabulary has 150: ids 128 to 149 are not allowed\n"
            );
            let (said, exact) = answer(mask(5, every), sharding);
            assert_eq!(said, "");
            let (said, long) = answer(mask(8, every), sharding);
            assert!(long == exact, "{request} {sharding:?}");
            assert_eq!(
                said,
                "warning: --hidden's mask `allowed` covers 256 ids, the vocabulary has 150: what it says of ids beyond is \
                 not used\n"
            );
        }
    }
}
