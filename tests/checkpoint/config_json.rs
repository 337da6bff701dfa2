//! What `config.json` decides: tied embeddings, and the use of an int8 head.

use crate::files::*;
use lmhead::config::{Quantization, Settings};
use lmhead::dtype::DType;
use lmhead::weights::{Checkpoint, LoadOptions};

#[test]
fn tied_embeddings_in_every_combination() {
    let (head, embedding) = (f32s(&[2, 1], &[1.0, 2.0]), f32s(&[2, 1], &[3.0, 4.0]));
    let (h, e) = ("lm_head.weight", "model.embed_tokens.weight");
    let other_e = "model.language_model.embed_tokens.weight";
    let both = vec![(h, head.clone()), (e, embedding.clone())];
    let same = vec![(h, embedding.clone()), (e, embedding.clone())];
    let narrower = vec![(h, bf16s(&[2, 1], &[3.0, 4.0])), (e, embedding.clone())];
    let (only_head, only_embedding) = (vec![(h, head.clone())], vec![(e, embedding.clone())]);
    let only_other = vec![(other_e, embedding.clone())];
    let two_others = vec![(other_e, embedding.clone()), ("draft.embed_tokens.weight", embedding.clone())];
    let lookalike = vec![("model.xembed_tokens.weight", embedding.clone())];
    let differs = "differs from model.embed_tokens.weight; the stored head is used, as transformers 5 does";
    let asked = "lm_head.weight is stored and differs from model.embed_tokens.weight; the embedding is used, as asked";
    // (tensors, config.json's value, the settings' value) -> the tensor used and a word of its warning, or
    // words of the error
    type Outcome = Result<(&'static str, Option<&'static str>), &'static str>;
    type Case<'a> = (&'a [(&'a str, T)], Option<bool>, Option<bool>, Outcome);
    let table: Vec<Case> = vec![
        (&both, None, None, Ok((h, None))),
        (&both, Some(false), None, Ok((h, None))),
        (&both, Some(true), None, Ok((h, Some(differs)))),
        (&both, Some(true), Some(false), Ok((h, None))),
        (&both, Some(false), Some(true), Ok((e, Some(asked)))),
        (&narrower, Some(true), None, Ok((h, Some(differs)))),
        (&same, Some(true), None, Ok((h, None))),
        (&same, None, Some(true), Ok((e, None))),
        (&same, None, None, Ok((h, None))),
        (&only_head, None, None, Ok((h, None))),
        (&only_head, None, Some(true), Ok((h, Some("no embedding is stored; lm_head.weight is used")))),
        (&only_head, Some(true), None, Ok((h, None))),
        (&only_embedding, None, None, Ok((e, None))),
        (&only_embedding, Some(true), None, Ok((e, None))),
        (&only_embedding, Some(false), Some(true), Ok((e, None))),
        (
            &only_embedding,
            Some(false),
            None,
            Err(
                "tensor lm_head.weight: wanted a head, as tie_word_embeddings is false, got model.embed_tokens.weight;",
            ),
        ),
        (&only_other, None, None, Ok((other_e, None))),
        (
            &two_others,
            None,
            None,
            Err("got draft.embed_tokens.weight, model.language_model.embed_tokens.weight;"),
        ),
        (
            &lookalike,
            None,
            None,
            Err("wanted a head, or an embedding to use as one, got model.xembed_tokens.weight;"),
        ),
        (
            &lookalike,
            Some(true),
            None,
            Err("wanted the embedding (tie_word_embeddings is true) or a head, got"),
        ),
    ];
    for (i, (tensors, model, settings, want)) in table.into_iter().enumerate() {
        let word = model.map_or(String::new(), |m| format!(r#", "tie_word_embeddings": {m}"#));
        let folder = Folder::model(&config(2, 1, &word), tensors);
        let settings = Settings { tie_word_embeddings: settings, ..Settings::default() };
        match (Checkpoint::open_with(folder.path(), &settings), want) {
            (Ok(checkpoint), Ok((name, warning))) => {
                assert_eq!(checkpoint.tensor_name(), name, "case {i}");
                let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
                let stored = tensors.iter().find(|(n, _)| *n == name).unwrap();
                assert_eq!(elements(&shard), stored_values(&stored.1), "case {i}");
                let warnings = checkpoint.warnings();
                assert_eq!(warnings.len(), usize::from(warning.is_some()), "case {i}: {warnings:?}");
                assert!(warnings.iter().all(|w| w.contains(warning.unwrap())), "case {i}: {warnings:?}");
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "case {i}: {error}"),
            (got, want) => panic!("case {i}: wanted {want:?}, got {got:?}"),
        }
    }
}

fn stored_values(tensor: &T) -> Vec<f32> {
    let dtype = if tensor.0 == "F32" { DType::F32 } else { DType::Bf16 };
    (0..tensor.2.len() / dtype.size()).map(|i| dtype.read(&tensor.2, i)).collect()
}

#[test]
fn a_tied_head_uses_the_bias_of_the_head() {
    let folder = Folder::model(
        &config(2, 1, ""),
        &[
            ("model.embed_tokens.weight", f32s(&[2, 1], &[3.0, 4.0])),
            ("lm_head.bias", f32s(&[2], &[5.0, 6.0])),
        ],
    );
    let shard = folder.open().unwrap().shard(1..2, 2, &LoadOptions::default()).unwrap();
    assert_eq!(shard.bias(), Some(&[6.0][..]));
}

#[test]
fn a_stored_int8_head_is_used_as_config_json_says() {
    let inputs = |inputs: &str| {
        format!(
            r#", "quantization_config": {{"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": [],
            "config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {{"num_bits": 8, "type": "int",
            "symmetric": true, "strategy": "channel", "dynamic": false}}, "input_activations": {inputs}}}}}}}"#
        )
    };
    let dynamic =
        inputs(r#"{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true}"#);
    let none = inputs("null");
    let fixed = inputs(
        r#"{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false}"#,
    );
    use Quantization::{None as Plain, W8a8, W8a16};
    let other = "input_activations: wanted none, or symmetric int8 found at run time (dynamic true) per token, \
                 got num_bits 8, type int, symmetric true, dynamic false, strategy tensor; choose w8a8 or w8a16";
    let plain = "quantize: wanted w8a8 or w8a16, as lm_head.weight is stored as int8, got none; leave it out";
    for (more, stored, asked_for, want) in [
        ("", Some(W8a16), None, Ok(W8a16)),
        ("", Some(W8a16), Some(W8a8), Ok(W8a8)),
        ("", Some(W8a16), Some(Plain), Err(plain)),
        (dynamic.as_str(), Some(W8a8), None, Ok(W8a8)),
        (dynamic.as_str(), Some(W8a8), Some(W8a16), Ok(W8a16)),
        (dynamic.as_str(), Some(W8a8), Some(Plain), Err(plain)),
        (none.as_str(), Some(W8a16), None, Ok(W8a16)),
        (fixed.as_str(), None, None, Err(other)),
        (fixed.as_str(), None, Some(W8a16), Ok(W8a16)),
    ] {
        let folder = Folder::model(
            &config(2, 2, more),
            &[
                ("lm_head.weight", i8s(&[2, 2], &[1, -2, 3, -128])),
                ("lm_head.weight_scale", f32s(&[2], &[0.5, -0.25])),
            ],
        );
        let checkpoint = folder.open().unwrap();
        assert_eq!(checkpoint.stored_quantization(), stored);
        let options = LoadOptions { quantization: asked_for, ..LoadOptions::default() };
        let got = checkpoint.shard(0..2, 2, &options);
        match (&got, want) {
            (Ok(shard), Ok(want)) => {
                assert_eq!(shard.quantization(), want);
                assert_eq!(checkpoint.quantization(asked_for), Ok(want));
                assert_eq!(scales(shard), [0.5, -0.25]);
                assert_eq!(elements(shard), [1.0, -2.0, 3.0, -128.0]);
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            _ => panic!("{got:?}, wanted {want:?}"),
        }
    }
}

#[test]
fn a_float_head_in_a_quantised_model_is_a_float_head() {
    let more = r#", "quantization_config": {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}}"#;
    let folder = Folder::model(&config(2, 2, more), &[("lm_head.weight", bf16s(&[2, 2], &[1.0; 4]))]);
    let checkpoint = folder.open().unwrap();
    assert_eq!(
        (checkpoint.stored_quantization(), checkpoint.quantization(None)),
        (None, Ok(Quantization::None))
    );
}
