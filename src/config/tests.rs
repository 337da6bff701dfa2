//! What settings and `config.json` files become, and what each refusal says.

use super::*;
use crate::layout::{ParallelLayout, RankOrder};

fn resolve(toml: &str, model: &str) -> Result<HeadConfig> {
    let settings = Settings::from_toml(toml)?;
    HeadConfig::resolve(
        &settings,
        &ModelConfig::from_json(model, "config.json")?,
        settings.quantization.unwrap_or(Quantization::None),
    )
}

const MODEL: &str = r#"{"vocab_size": 100, "hidden_size": 8}"#;

#[test]
fn every_refused_combination_with_its_message() {
    let table: &[(&str, &str, &str)] = &[
        (
            "\nvocab = 3",
            MODEL,
            "TOML configuration, line 2: wanted a key of docs/configuration.md, got `vocab`; correct or remove it",
        ),
        (
            "lmhead_tpsize = 3",
            MODEL,
            "line 1: wanted a key of docs/configuration.md, got `lmhead_tpsize`; did you mean `lmhead_tp_size`?",
        ),
        (
            "timeout_ms = \"x\"",
            MODEL,
            "line 1: timeout_ms: wanted a whole number of milliseconds, got \"x\"; correct it",
        ),
        ("bias = 1", MODEL, "bias: wanted true or false, got `1`"),
        ("bias = tru", MODEL, "TOML configuration, line 1: "),
        (
            "lmhead_tp_size = \"all\"",
            MODEL,
            "lmhead_tp_size: wanted auto, -1 (the tensor-parallel size) or a number of ranks, got \"all\"; correct it",
        ),
        (
            "lmhead_tp_size = -2",
            MODEL,
            "lmhead_tp_size: wanted auto, -1 (the tensor-parallel size) or a number of ranks, got `-2`",
        ),
        (
            "lmhead_tp_size = 1.5",
            MODEL,
            "lmhead_tp_size: wanted auto, -1 (the tensor-parallel size) or a number of ranks, got `1.5`",
        ),
        (
            "hidden_dtype = \"i8\"",
            MODEL,
            "hidden_dtype: wanted f32, f16 or bf16, got i8; w8a8 heads quantise the hidden states themselves",
        ),
        (
            "quantization = \"w4a16\"",
            MODEL,
            "quantization: wanted one of `none`, `w8a8`, `w8a16`, got `w4a16`",
        ),
        ("verify = { every = 0 }", MODEL, "verify: wanted every n steps with n at least 1, got every 0"),
        ("verify = \"never\"", MODEL, "verify: wanted one of `always`, `prepare`, `every`, got `never`"),
        ("timeout_ms = 0", MODEL, "timeout_ms: wanted at least 1, got 0; 30000 is the default"),
        (
            "create_timeout_ms = 0",
            MODEL,
            "create_timeout_ms: wanted at least 1, got 0; 300000 is the default",
        ),
        (
            "logit_scale = 2.0\nlogits_scaling = 2.0",
            MODEL,
            "logit_scale, logits_scaling: wanted one of the two, got logit_scale 2 and logits_scaling 2",
        ),
        (
            "logit_scale = 0.0",
            MODEL,
            "logit_scale: wanted a finite number other than 0, got 0; use 1 for no scaling",
        ),
        ("logit_scale = nan", MODEL, "logit_scale: wanted a finite number other than 0, got NaN"),
        (
            "logits_scaling = 0.0",
            MODEL,
            "logits_scaling: wanted a finite number other than 0, got 0; it divides the logits",
        ),
        ("logits_scaling = 1e-39", MODEL, "logit_scale: wanted a finite number other than 0, got inf"),
        (
            "final_logit_softcapping = 0.0",
            MODEL,
            "final_logit_softcapping: wanted a finite number above 0, got 0; leave it out where neither you nor the model wants a softcap",
        ),
        (
            "final_logit_softcapping = -30.0",
            MODEL,
            "final_logit_softcapping: wanted a finite number above 0, got -30",
        ),
        ("vocab_size = 0", MODEL, "vocab_size: wanted 1 to 1073741824, got 0"),
        ("vocab_size = 1073741825", MODEL, "vocab_size: wanted 1 to 1073741824, got 1073741825"),
        ("hidden_size = 0", MODEL, "hidden_size: wanted 1 to 1073741824, got 0"),
        ("vocab_size = -1", MODEL, "vocab_size: wanted a whole number of at least 0, got `-1`"),
        (
            "hidden_size = 132105\nquantization = \"w8a8\"",
            MODEL,
            "hidden_size with quantization w8a8: wanted at most 132104 (int32 accumulators would overflow), got 132105; use w8a16 or none",
        ),
        (
            "",
            r#"{"vocab_size": 100}"#,
            "hidden_size: wanted a size, got nothing; set it, or pass a model folder",
        ),
        ("", r#"{"hidden_size": 100}"#, "vocab_size: wanted a size, got nothing"),
        (
            "",
            r#"{"vocab_size": "many", "hidden_size": 8}"#,
            "config.json: vocab_size: wanted a whole number, got \"many\"",
        ),
        (
            "",
            r#"{"vocab_size": 9, "hidden_size": 8, "tie_word_embeddings": 1}"#,
            "config.json: tie_word_embeddings: wanted true or false, got 1",
        ),
        (
            "",
            r#"{"vocab_size": 9, "hidden_size": 8, "logit_scale": []}"#,
            "config.json: logit_scale: wanted a number, got []",
        ),
        ("", "[1]", "config.json: wanted a JSON object, got an array"),
        ("", "{", "config.json: wanted a JSON object, got EOF"),
        ("[cost_model]\nrows_per_rank = 1", MODEL, "cost_model: wanted `memory_gb_per_s`, got none; add it"),
        (
            "cost_model = { rows_per_rank = 1, memory_gb_per_s = 0.0, tflops = 1.0, link_gb_per_s = 1.0, latency_us = 1.0 }",
            MODEL,
            "cost_model.memory_gb_per_s: wanted a finite number above 0, got 0",
        ),
        (
            "cost_model = { rows_per_rank = 1, memory_gb_per_s = 1.0, tflops = inf, link_gb_per_s = 1.0, latency_us = 1.0 }",
            MODEL,
            "cost_model.tflops: wanted a finite number above 0, got inf",
        ),
        (
            "cost_model = { rows_per_rank = 1, memory_gb_per_s = 1.0, tflops = 1.0, link_gb_per_s = -1.0, latency_us = 1.0 }",
            MODEL,
            "cost_model.link_gb_per_s: wanted a finite number above 0, got -1",
        ),
        (
            "cost_model = { rows_per_rank = 1, memory_gb_per_s = 1.0, tflops = 1.0, link_gb_per_s = 1.0, latency_us = -1.0 }",
            MODEL,
            "cost_model.latency_us: wanted a finite number, at least 0, got -1",
        ),
        (
            "cost_model = { rows_per_rank = 1, memory_gb_per_s = 1.0, tflops = 1.0, link_gb_per_s = 1.0, latency_us = 1.0, nodes = 3 }",
            MODEL,
            "cost_model: wanted a key of docs/configuration.md, got `nodes`",
        ),
    ];
    for (toml, model, want) in table {
        let text = resolve(toml, model).expect_err(toml).to_string();
        assert!(text.contains(want), "for {toml:?} and {model:?}\n got {text}\nwant {want}");
    }
}

#[test]
fn json_and_toml_read_the_same() {
    let toml =
        Settings::from_toml("lmhead_tp_size = -1\nverify = { every = 3 }\nquantization = \"w8a16\"").unwrap();
    let json =
        Settings::from_json(r#"{"lmhead_tp_size": -1, "verify": {"every": 3}, "quantization": "w8a16"}"#)
            .unwrap();
    assert_eq!(toml, json);
    assert_eq!(toml.lmhead_tp_size, LmheadTpSize::TensorParallel);
    let again = Settings::from_json(&serde_json::to_string(&json).unwrap()).unwrap();
    assert_eq!(again, json);
    for (text, want) in [
        (
            r#"{"hidden": 1}"#,
            "JSON configuration, line 1: wanted a key of docs/configuration.md, got `hidden`",
        ),
        (
            "{\"name\": \"a\",\n\"timeout_ms\": \"b: c\"}",
            "line 2: timeout_ms: wanted a whole number of milliseconds, got",
        ),
        (
            r#"{"lmhead_tp_size": "many"}"#,
            "line 1: lmhead_tp_size: wanted auto, -1 (the tensor-parallel size)",
        ),
    ] {
        let refused = Settings::from_json(text).unwrap_err().to_string();
        assert!(refused.contains(want), "{text}: {refused}");
    }
}

#[test]
fn text_config_comes_before_the_top_level_and_settings_before_both() {
    let model = r#"{"vocab_size": 5, "tie_word_embeddings": true, "text_config":
        {"vocab_size": 200, "hidden_size": 16, "final_logit_softcapping": 30.0, "tie_word_embeddings": false}}"#;
    let config = resolve("", model).unwrap();
    assert_eq!((config.vocab_size, config.hidden_size), (200, 16));
    assert_eq!((config.final_logit_softcapping, config.logit_scale), (Some(30.0), 1.0));
    // The flag of the whole model's class is at the top.
    assert_eq!(ModelConfig::from_json(model, "m").unwrap().tie_word_embeddings, Some(true));
    let config = resolve("vocab_size = 7\nlogit_scale = 3.0\nfinal_logit_softcapping = 5.0", model).unwrap();
    assert_eq!((config.vocab_size, config.logit_scale, config.final_logit_softcapping), (7, 3.0, Some(5.0)));
    for level in ["llm_config", "language_config"] {
        let model = format!(r#"{{"{level}": {{"vocab_size": 9, "hidden_size": 4}}}}"#);
        assert_eq!(resolve("", &model).unwrap().vocab_size, 9);
    }
    let omni = r#"{"thinker_config": {"text_config": {"vocab_size": 9, "hidden_size": 4}}}"#;
    assert_eq!(resolve("", omni).unwrap().hidden_size, 4);
}

/// For each model type: keys beside its sizes, and the softcap and scale that follow from them.
#[test]
fn scale_and_softcap_are_a_rule_of_the_model_type() {
    let table: &[(&str, Option<f32>, f32)] = &[
        (r#""model_type": "llama""#, None, 1.0),
        (r#""model_type": "granite", "logits_scaling": 8.0"#, None, 0.125),
        (r#""model_type": "granite""#, None, 1.0),
        (r#""model_type": "cohere_compass_text""#, None, 1.0),
        (r#""model_type": "t5gemma", "decoder": {"final_logit_softcapping": 4.0}"#, Some(4.0), 1.0),
        (r#""model_type": "t5gemma", "decoder": {}"#, Some(30.0), 1.0),
        (r#""model_type": "t5gemma2", "decoder": {}"#, None, 1.0),
        (r#""model_type": "granite_docling_text""#, None, 0.25),
        (r#""model_type": "hyperclovax", "logits_scaling": 8.0"#, None, 8.0),
        (r#""model_type": "cohere", "logit_scale": 0.5"#, None, 0.5),
        (r#""model_type": "cohere2""#, None, 0.0625),
        (
            r#""model_type": "falcon_h1", "lm_head_multiplier": 0.0390625, "attn_output_multiplier": 3.0"#,
            None,
            0.0390625,
        ),
        (r#""model_type": "minicpm", "dim_model_base": 16"#, None, 16.0 / 64.0),
        (r#""model_type": "minicpm3", "dim_model_base": null"#, None, 1.0),
        (r#""model_type": "minicpm3""#, None, 256.0 / 64.0),
        (r#""model_type": "inkling_text", "logits_mup_width_multiplier": 4.0"#, None, 0.25),
        (r#""model_type": "inkling_text", "embedding_multiplier": 4.0"#, None, 0.25),
        (r#""model_type": "grok-1", "output_multiplier_scale": 0.5, "attn_output_multiplier": 2"#, None, 0.5),
        (r#""model_type": "phi3small", "mup_width_multiplier": 8.0, "mup_use_scaling": true"#, None, 0.125),
        (r#""model_type": "jais", "mup_output_alpha": 2.0, "mup_width_scale": 0.25"#, None, 0.5),
        (r#""model_type": "recurrent_gemma", "logits_soft_cap": 2.0"#, Some(2.0), 1.0),
        (r#""model_type": "recurrent_gemma""#, Some(30.0), 1.0),
        (r#""model_type": "xlstm", "output_logit_soft_cap": 2.0, "gate_soft_cap": 15.0"#, Some(2.0), 1.0),
        (r#""model_type": "gemma2""#, Some(30.0), 1.0),
        (r#""model_type": "gemma2", "final_logit_softcapping": null"#, None, 1.0),
        (
            r#""model_type": "gemma3_text", "final_logit_softcapping": 4.0, "attn_logit_softcapping": 9"#,
            Some(4.0),
            1.0,
        ),
        // A model that scales before it caps: 2 tanh(z 0.25 / 2) is 0.25 (8 tanh(z / 8)).
        (
            r#""model_type": "muse_spark", "text_config": {"output_multiplier": 0.25, "final_logit_softcapping": 2.0}"#,
            Some(8.0),
            0.25,
        ),
        (r#""model_type": "t5", "d_model": 64"#, None, 0.125),
        (r#""model_type": "t5", "d_model": 64, "tie_word_embeddings": false"#, None, 1.0),
        (r#""model_type": "mt5", "d_model": 64"#, None, 1.0),
        // A multimodal class that does not do what its text model does.
        (
            r#""model_type": "aya_vision", "text_config": {"model_type": "cohere2", "logit_scale": 0.5}"#,
            None,
            1.0,
        ),
        // An unknown multimodal class may contain its text model whole.
        (
            r#""model_type": "my_vl", "text_config": {"model_type": "granite", "logits_scaling": 8.0}"#,
            None,
            0.125,
        ),
        // Without a rule, only the two keys that mean the same everywhere are read; values that change
        // nothing are ignored.
        (r#""model_type": "mine", "final_logit_softcapping": 5.0"#, Some(5.0), 1.0),
        (r#""logit_scale": 3.0"#, None, 3.0),
        (r#""logits_scaling": 1.0, "softcap": null, "use_mup": false, "num_logits_to_keep": 3"#, None, 1.0),
        (
            r#""model_type": "llama", "output_router_logits": true, "logit_scale_init_value": 2.6592"#,
            None,
            1.0,
        ),
    ];
    for (keys, cap, scale) in table {
        let config =
            resolve("", &format!(r#"{{"vocab_size": 100, "hidden_size": 64, {keys}}}"#)).expect(keys);
        assert_eq!((config.final_logit_softcapping, config.logit_scale), (*cap, *scale), "{keys}");
    }
}

#[test]
fn keys_that_are_not_understood_are_refused_until_the_user_speaks() {
    let table = [
        (
            r#""model_type": "llama", "logit_scale": 0.5"#,
            "m: logit_scale: wanted no such key, as llama's class in transformers reads none, got 0.5; say what it does",
        ),
        (
            r#""model_type": "mine", "logits_scaling": 8.0"#,
            "m: logits_scaling: wanted no key of unknown effect on logits, and that of model_type mine is not known, got 8.0",
        ),
        (
            r#""softcap": 30"#,
            "m: softcap: wanted no key of unknown effect on logits, and that of a config.json without model_type",
        ),
        (r#""text_config": {"output_multiplier": 3}"#, "m: output_multiplier"),
        (r#""use_mup": true"#, "m: use_mup"),
        (r#""softcap": 1"#, "m: softcap"),
        (r#""norm_head": true"#, "m: norm_head"),
        (
            r#""logit_scale": 2, "final_logit_softcapping": 3"#,
            "m: logit_scale: wanted it or final_logit_softcapping",
        ),
        (
            r#""model_type": "phi3small", "dummy_token_indices": [100256]"#,
            "m: dummy_token_indices: wanted a phi3small without it, as the model sets these ids' logits",
        ),
        (r#""model_type": "gemma4_assistant", "use_ordered_embeddings": true"#, "m: use_ordered_embeddings"),
        (
            r#""model_type": "chameleon""#,
            "m: model_type: wanted a model whose logits are one matrix product: Chameleon sets",
        ),
        (r#""model_type": "musicgen_decoder""#, "a head for each codebook"),
    ];
    for (keys, want) in table {
        let model =
            ModelConfig::from_json(&format!(r#"{{"vocab_size": 100, "hidden_size": 64, {keys}}}"#), "m")
                .unwrap();
        let refused =
            HeadConfig::resolve(&Settings::default(), &model, Quantization::None).unwrap_err().to_string();
        assert!(refused.contains(want), "for {keys}\n got {refused}\nwant {want}");
        let own = Settings { logit_scale: Some(2.0), ..Settings::default() };
        assert_eq!(HeadConfig::resolve(&own, &model, Quantization::None).unwrap().logit_scale, 2.0);
    }
    let baichuan = |vocab: usize| {
        let text = format!(r#"{{"model_type": "baichuan", "vocab_size": {vocab}, "hidden_size": 8}}"#);
        resolve("", &text)
    };
    // A scale in the user's settings replaces the model's.
    let model =
        r#"{"model_type": "phi3small", "dummy_token_indices": [7], "vocab_size": 9, "hidden_size": 8}"#;
    let refused = resolve("", model).unwrap_err().to_string();
    assert!(refused.contains("logit_scale = 0.125 in lmhead's own configuration"), "{refused}");
    assert_eq!(resolve("logit_scale = 0.125", model).unwrap().logit_scale, 0.125);
    assert!(baichuan(64_000).is_ok());
    assert!(
        baichuan(125_696)
            .unwrap_err()
            .to_string()
            .contains("divides each row of its head by the row's Euclidean norm")
    );
    for (keys, want) in [
        (
            r#""model_type": "granite", "logits_scaling": 0"#,
            "logits_scaling: wanted a finite number other than 0, got 0",
        ),
        (
            r#""model_type": "cohere", "logit_scale": Infinity"#,
            "logit_scale: wanted a number, got \"Infinity\"",
        ),
        (r#""model_type": "minicpm", "dim_model_base": 0"#, "dim_model_base: wanted a number above 0"),
        (
            r#""model_type": "gemma2", "final_logit_softcapping": 0"#,
            "final_logit_softcapping: wanted a finite number above 0, got 0",
        ),
    ] {
        let text = format!(r#"{{"vocab_size": 100, "hidden_size": 64, {keys}}}"#);
        let refused = resolve("", &text).unwrap_err().to_string();
        assert!(refused.contains(want), "for {keys}\n got {refused}\nwant {want}");
    }
}

#[test]
fn what_a_text_model_would_do_and_the_whole_does_not_is_told() {
    let model = r#"{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "final_logit_softcapping": 30.0}}"#;
    let model = ModelConfig::from_json(model, "m").unwrap();
    assert_eq!((model.final_logit_softcapping, model.refusal), (None, None));
    let want = [
        "m: gemma3's class in transformers does not scale or cap logits: final_logit_softcapping of text_config is not used",
    ];
    assert_eq!(model.warnings, want);
}

#[test]
fn sizes_and_flags_by_model_type() {
    let read = |text: &str| ModelConfig::from_json(text, "m").unwrap();
    let inkling = read(r#"{"model_type": "inkling_text", "vocab_size": 10, "unpadded_vocab_size": 9}"#);
    assert_eq!(inkling.vocab_size, Some(9));
    assert_eq!(
        read(r#"{"model_type": "inkling_text", "vocab_size": 10, "unpadded_vocab_size": null}"#).vocab_size,
        Some(10)
    );
    assert_eq!(
        read(r#"{"model_type": "marian", "vocab_size": 10, "decoder_vocab_size": 8}"#).vocab_size,
        Some(8)
    );
    assert_eq!(read(r#"{"model_type": "electra", "hidden_size": 10}"#).hidden_size, None);
    assert_eq!(read(r#"{"vocab_size": 10, "draft_vocab_size": 4}"#).vocab_size, Some(4));
    for (keys, tied) in [
        (r#""model_type": "gpt2""#, Some(true)),
        (r#""model_type": "gpt2", "tie_word_embeddings": false"#, Some(false)),
        (r#""model_type": "llama""#, Some(false)),
        (r#""model_type": "nemotron_h", "tie_word_embeddings": true"#, Some(false)),
        (r#""model_type": "t5", "tie_word_embeddings": false"#, Some(true)),
        (r#""model_type": "gemma3", "text_config": {"tie_word_embeddings": false}"#, Some(false)),
        (
            r#""model_type": "gemma3", "tie_word_embeddings": false, "text_config": {"tie_word_embeddings": true}"#,
            Some(false),
        ),
        (
            r#""model_type": "llava", "tie_word_embeddings": false, "text_config": {"tie_word_embeddings": true}"#,
            Some(true),
        ),
        (r#""model_type": "mine""#, None),
    ] {
        assert_eq!(read(&format!("{{{keys}}}")).tie_word_embeddings, tied, "{keys}");
    }
}

#[test]
fn settings_are_objects_at_every_level() {
    let cost = "[28, 3000.0, 700.0, 300.0, 10.0]";
    for text in ["[]", r#"["x", 10]"#, "3", "null", "\"x\"", &format!(r#"{{"cost_model": {cost}}}"#)] {
        let refused = Settings::from_json(text).unwrap_err().to_string();
        assert!(refused.contains("wanted an object with known keys"), "{text}: {refused}");
    }
    let refused = Settings::from_toml(&format!("cost_model = {cost}")).unwrap_err().to_string();
    assert!(refused.contains("wanted an object with known keys"), "{refused}");
    assert!(Settings::from_json(r#"{"verify": [3]}"#).is_err());
    assert!(Settings::from_json(r#"{"verify": {"every": [3]}}"#).is_err());
    assert_eq!(Settings::from_json(r#"{"cost_model": null}"#).unwrap(), Settings::default());
    let refused = Settings::from_json("{\n\"hidden\": 1}").unwrap_err().to_string();
    assert!(refused.contains("line 2"), "the place in the file is told: {refused}");
}

#[test]
fn group_size_of_auto_minus_one_and_numbers() {
    let layout = |dp, tp| ParallelLayout { dp, tp, pp: 1, order: RankOrder::DpPpTp };
    let mut config = HeadConfig::new(129_280, 7168);
    assert_eq!(config.group_size(&layout(32, 1)), Ok(1));
    assert_eq!(config.group_size(&layout(4, 2)), Ok(2));
    config.cost_model = Some(CostModel {
        rows_per_rank: 28,
        memory_gb_per_s: 3000.0,
        tflops: 742.0,
        link_gb_per_s: 360.0,
        latency_us: 12.0,
        collectives: 2,
        candidates: None,
        logits_dtype: DType::Bf16,
    });
    assert_eq!(config.group_size_and_rule(&layout(32, 1)), Ok((8, GroupSizeRule::AutoFastest)));
    assert_eq!(config.group_size(&layout(32, 2)), Ok(2), "tp decides before the cost model");
    config.lmhead_tp_size = LmheadTpSize::TensorParallel;
    assert_eq!(config.group_size(&layout(4, 2)), Ok(2));
    config.lmhead_tp_size = LmheadTpSize::Ranks(0);
    assert!(
        config.group_size(&layout(4, 2)).unwrap_err().to_string().contains("nearest that fit dp 4 x tp 2: 1")
    );
    config.lmhead_tp_size = LmheadTpSize::Ranks(8);
    assert_eq!(config.group_size(&layout(4, 2)), Ok(8));
}

#[test]
fn auto_rules_and_what_the_cost_model_is_asked_about() {
    let layout = |dp, tp| ParallelLayout { dp, tp, pp: 1, order: RankOrder::DpPpTp };
    let mut config = HeadConfig::new(129_280, 7168);
    let rule = |config: &HeadConfig, dp, tp| config.group_size_and_rule(&layout(dp, tp)).unwrap();
    assert_eq!(rule(&config, 8, 1), (1, GroupSizeRule::AutoReplicated));
    assert_eq!(rule(&config, 8, 4), (4, GroupSizeRule::AutoTensorParallel));
    let bytes = |config: &HeadConfig| {
        let shape = config.step_shape(1);
        (shape.weight_bytes, shape.hidden_bytes)
    };
    assert_eq!(bytes(&config), (2, 2));
    config.hidden_dtype = Some(DType::F32);
    assert_eq!(bytes(&config), (4, 4));
    config.quantization = Quantization::W8a16;
    assert_eq!(bytes(&config), (1, 4));
    config.hidden_dtype = None;
    // An int8 head has half the bytes to stream, so over a slow link fewer ranks share it.
    config.cost_model = Some(CostModel {
        rows_per_rank: 28,
        memory_gb_per_s: 3000.0,
        tflops: 742.0,
        link_gb_per_s: 25.0,
        latency_us: 12.0,
        collectives: 2,
        candidates: None,
        logits_dtype: DType::Bf16,
    });
    let int8 = rule(&config, 32, 1);
    config.quantization = Quantization::None;
    let float = rule(&config, 32, 1);
    assert_eq!((int8.1, float.1), (GroupSizeRule::AutoFastest, GroupSizeRule::AutoFastest));
    assert!(int8.0 < float.0, "{int8:?} {float:?}");
}

/// What docs/configuration.md shows.
#[test]
fn the_settings_of_the_page_are_settings() {
    let page = include_str!("../../docs/configuration.md");
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2, "blocks of TOML");
    for block in blocks {
        Settings::from_toml(block).unwrap_or_else(|error| panic!("{error}:\n{block}"));
    }
}
