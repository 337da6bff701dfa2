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
        ("vocab = 3", MODEL, "unknown field `vocab`"),
        ("lmhead_tp_siz = 3", MODEL, "unknown field `lmhead_tp_siz`"),
        (
            "lmhead_tp_size = \"all\"",
            MODEL,
            "lmhead_tp_size: wanted auto, -1 (the tensor-parallel size) or a number of ranks, got `all`; use auto where unsure",
        ),
        (
            "lmhead_tp_size = -2",
            MODEL,
            "lmhead_tp_size: wanted auto, -1 (the tensor-parallel size) or a number of ranks, got `-2`",
        ),
        ("lmhead_tp_size = 1.5", MODEL, "lmhead_tp_size: wanted auto, -1 or a number of ranks"),
        (
            "hidden_dtype = \"i8\"",
            MODEL,
            "hidden_dtype: wanted f32, f16 or bf16, got i8; w8a8 heads quantise the hidden states themselves",
        ),
        ("quantization = \"w4a16\"", MODEL, "unknown variant `w4a16`"),
        ("verify = { every = 0 }", MODEL, "verify: wanted every n steps with n at least 1, got every 0"),
        ("verify = \"never\"", MODEL, "unknown variant `never`"),
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
        ("vocab_size = -1", MODEL, "invalid value: integer `-1`"),
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
        ("[cost_model]\nrows_per_rank = 1", MODEL, "missing field"),
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
            "unknown field `nodes`",
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
    assert!(
        Settings::from_json(r#"{"hidden": 1}"#).unwrap_err().to_string().contains("unknown field `hidden`")
    );
}

#[test]
fn text_config_comes_before_the_top_level_and_settings_before_both() {
    let model = r#"{"vocab_size": 5, "tie_word_embeddings": true, "text_config":
        {"vocab_size": 200, "hidden_size": 16, "final_logit_softcapping": 30.0, "logits_scaling": 8.0}}"#;
    let config = resolve("", model).unwrap();
    assert_eq!((config.vocab_size, config.hidden_size), (200, 16));
    assert_eq!((config.final_logit_softcapping, config.logit_scale), (Some(30.0), 0.125));
    assert_eq!(ModelConfig::from_json(model, "m").unwrap().tie_word_embeddings, Some(true));
    let config = resolve("vocab_size = 7\nlogit_scale = 3.0\nfinal_logit_softcapping = 5.0", model).unwrap();
    assert_eq!((config.vocab_size, config.logit_scale, config.final_logit_softcapping), (7, 3.0, Some(5.0)));
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
    // Half the bytes to stream: over a slow link an int8 head is shared by fewer.
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
