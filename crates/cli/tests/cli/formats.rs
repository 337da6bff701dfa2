//! Heads in the formats of other packages: the report says how the head was converted, and any sharding gives
//! the same bits.

use super::*;

/// A sample of `tests/checkpoint/formats`: its folder, or the GGUF file in it.
fn sample(name: &str) -> (String, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoint/formats").join(name);
    let file = folder.join("model.gguf");
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let model = if file.exists() { text(&file) } else { text(&folder) };
    (model, text(&folder.join("truth.safetensors")))
}

#[test]
fn the_report_says_what_the_head_became() {
    let files = Files::new();
    std::fs::write(files.path("f32.toml"), "head_dtype = \"f32\"").unwrap();
    let (config, out) = (files.name("f32.toml"), files.name("out"));
    for (name, stored, weights) in [
        ("fp8_rows", "; FP8 E4M3 with a scale per row)", "e4m3"),
        ("fp8_tensor", "; FP8 E4M3 with one scale)", "e4m3"),
        ("fp8_blocks", "128 x 128, widened to bf16 at load, which moved a weight by at most 0.", "bf16"),
        ("nvfp4", "; NVFP4, widened to bf16 at load)", "bf16"),
        ("gptq", "; GPTQ, 4 bits in 2 groups, widened to bf16 at load, which moved", "bf16"),
        ("packed_4_zeros", "a zero point for each group of 32, widened to bf16 at load, which moved", "bf16"),
        (
            "q6_k",
            "token_embd.weight (24 rows stored; GGUF Q6_K, widened to bf16 at load, which moved",
            "bf16",
        ),
        ("q8_0", "output.weight (40 rows stored; GGUF Q8_0, widened to bf16 at load, which moved", "bf16"),
        ("gguf_f16", "output.weight (24 rows stored)", "f16"),
    ] {
        let (model, rows) = sample(name);
        let run = |args: &[&str]| {
            let base =
                ["run", "--model", &model, "--hidden", &rows, "--out", &out, "--check", "--steps", "1"];
            let printed = good(&[&base, args].concat());
            let all = printed.contains("check passed against float64") && printed.contains("(everything");
            assert!(all, "{name}: {printed}");
            (printed, std::fs::read(files.path("out")).unwrap())
        };
        let (printed, whole) = run(&["--backend", "cpu"]);
        let flat = printed.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(stored), "{name}: {printed}");
        assert!(flat.contains(&format!(" {weights}")), "{name}: {printed}");
        let (_, shared) = run(&["--backend", "cpu", "--rows", "2,0,1", "--lmhead-tp-size", "3"]);
        assert!(whole == shared, "{name}: another sharding has other bits");
        if weights == "bf16" {
            let (printed, _) = run(&["--backend", "cpu", "--config", &config]);
            assert!(printed.contains("widened to f32 at load"), "{name}: {printed}");
        }
    }
    // Through --head, too.
    let (model, rows) = sample("q8_0");
    let printed = good(&["run", "--head", &model, "--hidden", &rows, "--steps", "1", "--backend", "cpu"]);
    assert!(printed.contains("GGUF Q8_0"), "{printed}");
}

#[test]
fn what_cannot_be_done_with_a_format_is_said() {
    let files = Files::new();
    let (fp8, rows) = sample("fp8_rows");
    let (q8, _) = sample("q8_0");
    let whole = std::fs::read(&q8).unwrap();
    std::fs::write(files.path("cut.gguf"), &whole[..whole.len() - 100]).unwrap();
    let (cut, out) = (files.name("cut.gguf"), files.name("out"));
    for (args, words) in [
        (
            vec!["run", "--model", &fp8, "--quantize", "w8a8"],
            "quantize: wanted w8a16, as lm_head.weight is stored as FP8",
        ),
        (vec!["run", "--model", &cut], "tensor output.weight: wanted bytes"),
        (vec!["run", "--model", &q8, "--tensor", "x"], "tensor x: wanted a tensor of this name"),
        (vec!["run", "--preset", "tiny", "--hidden", &q8], "got a GGUF file"),
    ] {
        let args = if args.contains(&"--hidden") { args } else { [&args[..], &["--hidden", &rows]].concat() };
        let done = lmhead(&[&args[..], &["--out", &out]].concat());
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", text(&done.stderr));
        let said = text(&done.stderr);
        assert!(said.contains(words), "{said}");
        assert!(!files.path("out").exists(), "{args:?}");
    }
    let into = files.name("int8");
    let done = lmhead(&["quantize", "--head", &q8, "--out", &into]);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("got GGUF Q8_0; it is quantised already"), "{}", text(&done.stderr));
}
