//! Model folders: which tensor is the head, what scales its logits, draft vocabularies.

use super::*;

/// A model folder with this `config.json` and these tensors.
fn folder(files: &Files, name: &str, config: &str, tensors: &[Tensor]) -> String {
    std::fs::create_dir_all(files.path(name)).unwrap();
    std::fs::write(files.path(name).join("config.json"), config).unwrap();
    write(&files.path(name).join("model.safetensors"), tensors);
    files.name(name)
}

fn logits(files: &Files, more: &[&str]) -> Vec<f32> {
    let (hidden, out) = (files.name("hidden.safetensors"), files.name("logits"));
    good(&[&["run", "--hidden", &hidden, "--out", &out, "--steps", "1"], more].concat());
    f32s(&read(&files.path("logits"))["logits"].2)
}

#[test]
fn a_tensor_that_is_named_keeps_the_folders_configuration() {
    let files = Files::new();
    let config = r#"{"model_type": "granite", "logits_scaling": 8.0, "vocab_size": 140, "hidden_size": 20}"#;
    // The same rows in another order.
    let mut other = bf16_tensor("model.embed_tokens.weight", &[150, 20], 1);
    other.3.rotate_left(3 * 40);
    let tensors = [bf16_tensor("lm_head.weight", &[150, 20], 1), other.clone()];
    let model = folder(&files, "granite", config, &tensors);
    write(&files.path("embedding"), &[other]);
    let embedding = files.name("embedding");
    let name = ["--tensor", "model.embed_tokens.weight"];
    let named = logits(&files, &[&["--model", &model][..], &name].concat());
    let plain = logits(&files, &[&["--head", &embedding][..], &name].concat());
    assert_eq!((named.len(), plain.len()), (7 * 140, 7 * 150));
    for (row, plain) in named.chunks(140).zip(plain.chunks(150)) {
        assert!(row.iter().zip(plain).all(|(named, plain)| *named == plain / 8.0));
    }
    assert!(logits(&files, &["--model", &model]) != named, "the head of the folder is another");
}

#[test]
fn a_key_that_is_not_understood_is_refused_until_the_settings_say_what_it_does() {
    let files = Files::new();
    let config = r#"{"model_type": "mine", "logits_scaling": 8.0, "vocab_size": 150, "hidden_size": 20}"#;
    let model = folder(&files, "mine", config, &[bf16_tensor("lm_head.weight", &[150, 20], 1)]);
    let hidden = files.name("hidden.safetensors");
    let refused = lmhead(&["run", "--model", &model, "--hidden", &hidden]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(
        said.contains("config.json: logits_scaling: wanted no key of unknown effect on logits"),
        "{said}"
    );
    assert!(said.contains("got 8.0; say what it does: logit_scale (1 for nothing)"), "{said}");
    std::fs::write(files.path("own.json"), r#"{"logits_scaling": 8.0}"#).unwrap();
    let (own, head) = (files.name("own.json"), files.name("head.safetensors"));
    let plain = logits(&files, &["--head", &head]);
    let scaled: Vec<f32> = plain.iter().map(|logit| logit / 8.0).collect();
    assert_eq!(logits(&files, &["--model", &model, "--config", &own]), scaled);
}

#[test]
fn a_draft_head_answers_in_target_ids_if_asked() {
    let files = Files::new();
    let config = r#"{"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": 9000, "draft_vocab_size": 150, "hidden_size": 20}"#;
    // Draft id i is target id 50 i + 3.
    let offsets = (0..150i64).flat_map(|i| (49 * i + 3).to_le_bytes()).collect();
    let d2t = ("d2t".to_string(), Dtype::I64, vec![150], offsets);
    let model = folder(&files, "draft", config, &[bf16_tensor("lm_head.weight", &[150, 20], 1), d2t]);
    let (hidden, out, head) =
        (files.name("hidden.safetensors"), files.name("ids"), files.name("head.safetensors"));
    let ids = |request: &str, tensor: &str, more: &[&str]| {
        good(
            &[&["run", "--hidden", &hidden, "--out", &out, "--steps", "1", "--request", request], more]
                .concat(),
        );
        i64s(&read(&files.path("ids"))[tensor].2)
    };
    for (request, tensor) in [
        ("argmax", "argmax"),
        ("topk:4", "topk_ids"),
        ("sample", "sampled"),
        ("sample:4", "sampled"),
        ("sample:4", "top_ids"),
    ] {
        let draft = ids(request, tensor, &["--model", &model]);
        assert_eq!(draft, ids(request, tensor, &["--head", &head]), "{request}");
        let target: Vec<i64> = draft.iter().map(|id| 50 * id + 3).collect();
        assert_eq!(
            ids(request, tensor, &["--model", &model, "--target-ids", "--dp", "3", "--lmhead-tp-size", "3"]),
            target
        );
    }
    for (head, request, want) in [
        (["--head", &head], "argmax", "--target-ids: wanted --model with a draft model"),
        (
            ["--model", &model],
            "logits",
            "--target-ids: wanted a request that answers ids, got --request logits",
        ),
    ] {
        let refused =
            lmhead(&["run", head[0], head[1], "--hidden", &hidden, "--target-ids", "--request", request]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(want), "{}", text(&refused.stderr));
    }
}
