//! Which tensor is the head: the names in models of every kind, folders with more than one checkpoint, draft
//! models, and tensors beside the head that would change its logits.

use crate::files::*;
use lmhead::config::Settings;
use lmhead::weights::{Checkpoint, LoadOptions};

/// A tensor `[2, 1]` with values of its own.
fn w(value: f32) -> T {
    f32s(&[2, 1], &[value, value + 0.5])
}

fn typed(model_type: &str) -> String {
    config(2, 1, &format!(r#", "model_type": "{model_type}""#))
}

#[test]
fn names_of_heads_and_embeddings_by_model_type() {
    let (w1, w2) = (w(1.0), w(2.0));
    // model type, tensors, the head
    type Case<'a> = (&'a str, Vec<&'a str>, &'a str);
    let table: Vec<Case> = vec![
        ("llama", vec!["lm_head.weight", "model.embed_tokens.weight"], "lm_head.weight"),
        (
            "gemma3",
            vec!["model.language_model.embed_tokens.weight"],
            "model.language_model.embed_tokens.weight",
        ),
        (
            "gemma3",
            vec!["language_model.model.embed_tokens.weight"],
            "language_model.model.embed_tokens.weight",
        ),
        ("gpt2", vec!["wte.weight", "wpe.weight"], "wte.weight"),
        ("gpt2", vec!["transformer.wte.weight", "transformer.wpe.weight"], "transformer.wte.weight"),
        ("gpt2", vec!["lm_head.weight", "transformer.wte.weight"], "lm_head.weight"),
        ("gpt_neox", vec!["embed_out.weight", "gpt_neox.embed_in.weight"], "embed_out.weight"),
        (
            "bloom",
            vec!["word_embeddings.weight", "word_embeddings_layernorm.weight"],
            "word_embeddings.weight",
        ),
        ("mamba", vec!["backbone.embeddings.weight", "backbone.norm_f.weight"], "backbone.embeddings.weight"),
        ("rwkv", vec!["head.weight", "rwkv.embeddings.weight"], "head.weight"),
        ("ctrl", vec!["transformer.w.weight", "transformer.layernorm.weight"], "transformer.w.weight"),
        ("mistral_large4", vec!["output.weight", "tok_embeddings.weight"], "output.weight"),
        ("internlm2", vec!["output.weight", "model.tok_embeddings.weight"], "output.weight"),
        (
            "chatglm",
            vec!["transformer.output_layer.weight", "transformer.embedding.word_embeddings.weight"],
            "transformer.output_layer.weight",
        ),
        ("deepseek_v4", vec!["head.weight", "embed.weight"], "head.weight"),
        (
            "bert",
            vec!["bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"],
            "bert.embeddings.word_embeddings.weight",
        ),
        (
            "bert",
            vec!["cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"],
            "cls.predictions.decoder.weight",
        ),
        (
            "roberta",
            vec!["lm_head.dense.weight", "roberta.embeddings.word_embeddings.weight"],
            "roberta.embeddings.word_embeddings.weight",
        ),
        (
            "electra",
            vec!["generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"],
            "generator_lm_head.weight",
        ),
        (
            "modernbert-decoder",
            vec!["lm_head.dense.weight", "model.embeddings.tok_embeddings.weight"],
            "model.embeddings.tok_embeddings.weight",
        ),
        (
            "opt",
            vec!["model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"],
            "model.decoder.embed_tokens.weight",
        ),
        ("whisper", vec!["proj_out.weight", "model.decoder.embed_tokens.weight"], "proj_out.weight"),
        ("xlnet", vec!["lm_loss.weight", "transformer.word_embedding.weight"], "lm_loss.weight"),
        ("xlm", vec!["pred_layer.proj.weight", "transformer.embeddings.weight"], "pred_layer.proj.weight"),
        ("t5", vec!["shared.weight", "encoder.final_layer_norm.weight"], "shared.weight"),
        (
            "inkling_text",
            vec!["model.llm.unembed.weight", "model.llm.embed.weight"],
            "model.llm.unembed.weight",
        ),
        ("my_model", vec!["embed_out.weight", "model.norm.weight"], "embed_out.weight"),
        ("my_model", vec!["transformer.wte.weight", "transformer.wpe.weight"], "transformer.wte.weight"),
    ];
    for (model_type, names, head) in table {
        let tensors: Vec<(&str, T)> =
            names.iter().map(|name| (*name, if *name == head { w1.clone() } else { w2.clone() })).collect();
        let mut words = typed(model_type);
        if model_type == "t5" {
            words = words.replace('}', r#", "d_model": 1}"#);
        }
        let checkpoint = Folder::model(&words, &tensors).open().expect(model_type);
        assert_eq!(checkpoint.tensor_name(), head, "{model_type}");
        let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
        assert_eq!(elements(&shard), [1.0, 1.5], "{model_type}");
    }
}

#[test]
fn the_bias_is_found_where_each_kind_stores_it() {
    let bias = |value: f32| f32s(&[2], &[value, value]);
    for (model_type, weight, biases) in [
        ("gptj", "lm_head.weight", vec![("lm_head.bias", 7.0)]),
        ("bert", "bert.embeddings.word_embeddings.weight", vec![("cls.predictions.bias", 7.0)]),
        (
            "bert",
            "cls.predictions.decoder.weight",
            vec![("cls.predictions.bias", 3.0), ("cls.predictions.decoder.bias", 7.0)],
        ),
        ("roberta", "roberta.embeddings.word_embeddings.weight", vec![("lm_head.bias", 7.0)]),
        ("electra", "electra.embeddings.word_embeddings.weight", vec![("generator_lm_head.bias", 7.0)]),
        ("modernbert-decoder", "model.embeddings.tok_embeddings.weight", vec![("decoder.bias", 7.0)]),
        ("xlnet", "transformer.word_embedding.weight", vec![("lm_loss.bias", 7.0)]),
        ("my_model", "model.embed_tokens.weight", vec![("lm_head.bias", 7.0)]),
    ] {
        let mut tensors = vec![(weight, w(1.0))];
        tensors.extend(biases.iter().map(|(name, value)| (*name, bias(*value))));
        let checkpoint = Folder::model(&typed(model_type), &tensors).open().unwrap();
        let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
        assert_eq!(shard.bias(), Some(&[7.0, 7.0][..]), "{model_type}");
    }
    // Reformer has a parameter of this name that it does not add.
    let tensors = [("lm_head.decoder.weight", w(1.0)), ("lm_head.bias", bias(7.0))];
    assert!(!Folder::model(&typed("reformer"), &tensors).open().unwrap().has_bias());
}

#[test]
fn no_head_where_the_model_has_one_of_its_own() {
    let embedding = [("model.embed_tokens.weight", w(1.0))];
    // Where config.json does not say, the default of the model type applies.
    for (words, want) in [
        (
            typed("llama"),
            "tensor lm_head.weight: wanted a head, as tie_word_embeddings is false, got model.embed_tokens.weight",
        ),
        (
            config(2, 1, r#", "model_type": "nemotron_h", "tie_word_embeddings": true"#),
            "tensor lm_head.weight: wanted a head, as this model type has one of its own, got model.embed_tokens.weight",
        ),
    ] {
        let folder = Folder::model(&words, &embedding);
        let refused = folder.open().unwrap_err().to_string();
        assert!(refused.contains(want), "{refused}");
        assert!(refused.contains("--tensor") && refused.contains("tie_word_embeddings = true"), "{refused}");
        // Both ways that the message names work.
        let named = Checkpoint::open_tensor(folder.path(), "model.embed_tokens.weight", &Settings::default());
        assert_eq!(named.unwrap().tensor_name(), "model.embed_tokens.weight");
        let own = Settings { tie_word_embeddings: Some(true), ..Settings::default() };
        assert_eq!(
            Checkpoint::open_with(folder.path(), &own).unwrap().tensor_name(),
            "model.embed_tokens.weight"
        );
    }
}

#[test]
fn one_file_of_a_tied_model_says_how_to_name_its_embedding() {
    let folder = Folder::model(&config(2, 1, ""), &[("transformer.wte.weight", w(1.0))]);
    let file = folder.path().join("model.safetensors");
    let refused = Checkpoint::from_file(&file, "lm_head.weight").unwrap_err();
    let words =
        ["tensor lm_head.weight", "a tied model's head is its embedding", "--tensor transformer.wte.weight"];
    assert_words(&refused, &words);
    assert_eq!(Checkpoint::from_file(&file, "transformer.wte.weight").unwrap().rows(), 2);
}

#[test]
fn a_whole_checkpoint_beside_parts_of_another_is_told() {
    let folder = Folder::model(&config(2, 1, ""), &[("lm_head.weight", w(1.0))]);
    folder.write("consolidated.safetensors", b"");
    assert!(folder.open().unwrap().warnings().is_empty(), "Mistral's own format is often beside");
    folder.write("model-00001-of-00002.safetensors", b"");
    let warnings = folder.open().unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("the files of another checkpoint beside it are not"));
}

#[test]
fn a_named_tensor_keeps_what_config_json_says() {
    let words = config(2, 1, r#", "model_type": "granite", "logits_scaling": 4.0"#);
    let tensors =
        [("lm_head.weight", w(1.0)), ("other.weight", w(2.0)), ("other.bias", f32s(&[2], &[5.0, 5.0]))];
    let folder = Folder::model(&words, &tensors);
    let checkpoint = Checkpoint::open_tensor(folder.path(), "other.weight", &Settings::default()).unwrap();
    assert_eq!(
        (checkpoint.tensor_name(), checkpoint.model_config().logit_scale),
        ("other.weight", Some(0.25))
    );
    let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
    assert_eq!((elements(&shard), shard.bias()), (vec![2.0, 2.5], Some(&[5.0, 5.0][..])));
    let refused = Checkpoint::open_tensor(folder.path(), "gone.weight", &Settings::default()).unwrap_err();
    assert_words(
        &refused,
        &[
            "model.safetensors: tensor gone.weight: wanted a tensor of this name, got lm_head.weight, other.bias",
        ],
    );
}

#[test]
fn several_heads_without_a_model_type_are_ambiguous() {
    let tensors = [("lm_head.weight", w(1.0)), ("embed_out.weight", w(2.0))];
    let refused = Folder::model(&config(2, 1, ""), &tensors).open().unwrap_err();
    assert_words(
        &refused,
        &[
            "tensor lm_head.weight",
            "only one of the names of a head",
            "got lm_head.weight, embed_out.weight",
            "--tensor",
        ],
    );
    assert_eq!(Folder::model(&typed("llama"), &tensors).open().unwrap().tensor_name(), "lm_head.weight");
}

#[test]
fn the_files_of_an_index_speak_for_themselves() {
    let index = |map: &str| format!(r#"{{"weight_map": {map}}}"#).into_bytes();
    let file = |tensors: &[(&str, T)]| file_bytes(tensors, 0);
    let (head, embedding) = (("lm_head.weight", w(1.0)), ("model.embed_tokens.weight", w(2.0)));
    let folder = |map: &str, files: &[(&str, Vec<u8>)]| {
        let folder = Folder::new();
        folder.write("config.json", config(2, 1, "").as_bytes());
        folder.write("model.safetensors.index.json", &index(map));
        for (name, bytes) in files {
            folder.write(name, bytes);
        }
        folder
    };
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");

    // The index lists only the embedding; the file also holds a head.
    let stale = folder(
        &format!(r#"{{"model.embed_tokens.weight": "{one}"}}"#),
        &[(one, file(&[head.clone(), embedding.clone()]))],
    );
    assert_eq!(stale.open().unwrap().tensor_name(), "lm_head.weight");

    // The index names the wrong file of two.
    let map = format!(r#"{{"lm_head.weight": "{one}", "model.embed_tokens.weight": "{two}"}}"#);
    let swapped = folder(
        &map,
        &[(one, file(std::slice::from_ref(&embedding))), (two, file(std::slice::from_ref(&head)))],
    );
    let checkpoint = swapped.open().unwrap();
    assert!(checkpoint.path().ends_with(two));

    // A missing file matters only where its tensors are wanted.
    let map = format!(r#"{{"lm_head.weight": "{two}", "model.embed_tokens.weight": "{one}"}}"#);
    let partial = folder(&map, &[(two, file(std::slice::from_ref(&head)))]);
    assert_eq!(partial.open().unwrap().tensor_name(), "lm_head.weight");

    // A damaged one matters where it may hold the head.
    let map = format!(r#"{{"model.norm.weight": "{one}", "model.embed_tokens.weight": "{two}"}}"#);
    let damaged = folder(
        &map,
        &[(one, b"version https://git-lfs".to_vec()), (two, file(std::slice::from_ref(&embedding)))],
    );
    assert_words(&damaged.open().unwrap_err(), &[one, "not a whole safetensors file"]);

    // The same name in two files: two checkpoints.
    let map = format!(r#"{{"lm_head.weight": "{one}", "model.embed_tokens.weight": "{two}"}}"#);
    let both = folder(
        &map,
        &[
            (one, file(std::slice::from_ref(&head))),
            (two, file(&[("lm_head.weight", w(3.0)), embedding.clone()])),
        ],
    );
    assert_words(
        &both.open().unwrap_err(),
        &["tensor lm_head.weight: wanted one tensor of this name, got two: in", one, "and in", two],
    );

    // Files of another checkpoint, and a whole one, beside those of the index.
    let map = format!(r#"{{"lm_head.weight": "{one}"}}"#);
    let beside = folder(
        &map,
        &[
            (one, file(std::slice::from_ref(&head))),
            ("model-00001-of-00003.safetensors", file(std::slice::from_ref(&embedding))),
        ],
    );
    let warnings = beside.open().unwrap().warnings();
    assert!(
        warnings.len() == 1
            && warnings[0]
                .contains("model-00001-of-00003.safetensors is not in model.safetensors.index.json"),
        "{warnings:?}"
    );
    beside.write("model.safetensors", &file(&[("lm_head.weight", w(9.0))]));
    let checkpoint = beside.open().unwrap();
    let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
    assert_eq!(elements(&shard), [9.0, 9.5]);
    let warnings = checkpoint.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("model.safetensors is used, as transformers does"),
        "{warnings:?}"
    );
}

#[test]
fn any_other_tensor_of_the_heads_module_is_refused_by_name() {
    let scale = f32s(&[1], &[2.0]);
    for name in [
        "lm_head.lora_A.weight",
        "lm_head.lora_B.default.weight",
        "lm_head.pre_quant_scale",
        "lm_head.weight_g",
        "lm_head.quant_bias",
        "lm_head.deq_scale",
        "lm_head.norm.weight",
        "lm_head.parametrizations.weight.original0",
        "lm_head.anything",
    ] {
        let tensors = [("lm_head.weight", w(1.0)), (name, scale.clone())];
        let folder = Folder::model(&config(2, 1, ""), &tensors);
        let wanted = format!("model.safetensors: tensor {name}: wanted only lm_head.weight, lm_head.bias");
        let fix =
            if name.contains("lora") { "merge the LoRA adapter first" } else { "fold it into the weight" };
        assert_words(&folder.open().unwrap_err(), &[&wanted, fix]);
        let one =
            Checkpoint::from_file(folder.path().join("model.safetensors"), "lm_head.weight").unwrap_err();
        assert_words(&one, &[&wanted]);
    }
    // Beside a tied embedding too, and of the embedding itself.
    for name in [
        "lm_head.lora_A.weight",
        "model.embed_tokens.lora_embedding_A",
        "lm_head.parametrizations.weight.original0",
    ] {
        let tensors = [("model.embed_tokens.weight", w(1.0)), (name, scale.clone())];
        assert_words(&Folder::model(&config(2, 1, ""), &tensors).open().unwrap_err(), &[name, "wanted"]);
    }
    // Matrices of LoRA elsewhere change hidden states, which are the caller's.
    let tensors =
        [("lm_head.weight", w(1.0)), ("model.layers.0.self_attn.q_proj.lora_A.weight", scale.clone())];
    Folder::model(&config(2, 1, ""), &tensors).open().unwrap();
    // Encoder and decoder: a bias outside of the head's module.
    let bias = |value: f32| ("final_logits_bias", f32s(&[1, 2], &[value, 0.0]));
    Folder::model(&typed("bart"), &[("model.decoder.embed_tokens.weight", w(1.0)), bias(0.0)])
        .open()
        .unwrap();
    let refused =
        Folder::model(&typed("bart"), &[("model.decoder.embed_tokens.weight", w(1.0)), bias(2.0)]).open();
    assert_words(&refused.unwrap_err(), &["tensor final_logits_bias: wanted zeros, got other values"]);
}

#[test]
fn unmerged_adapters_say_how_to_merge() {
    let merge = "merge the LoRA adapter first: peft.AutoPeftModelForCausalLM";
    let unmerged = [
        ("base_model.model.lm_head.base_layer.weight", w(1.0)),
        ("base_model.model.lm_head.lora_A.default.weight", w(2.0)),
    ];
    assert_words(
        &Folder::model(&config(2, 1, ""), &unmerged).open().unwrap_err(),
        &["tensor base_model.model.lm_head.base_layer.weight: wanted the weight of a head", "LoRA", merge],
    );
    // A folder that holds an adapter alone.
    let alone = Folder::new();
    alone.write("adapter_config.json", b"{}");
    alone.write("adapter_model.safetensors", &file_bytes(&unmerged, 0));
    assert_words(
        &alone.open().unwrap_err(),
        &["a LoRA adapter without its model (adapter_config.json)", merge],
    );
    // An adapter beside its model is refused if it touches the head, and ignored if not.
    for (name, touches) in [
        ("base_model.model.lm_head.lora_A.weight", true),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", false),
    ] {
        let folder = Folder::model(&config(2, 1, ""), &[("lm_head.weight", w(1.0))]);
        folder.write("adapter_config.json", b"{}");
        folder.write("adapter_model.safetensors", &file_bytes(&[(name, w(1.0))], 0));
        match folder.open() {
            Ok(_) => assert!(!touches),
            Err(refused) => {
                assert!(touches);
                assert_words(
                    &refused,
                    &["adapter_model.safetensors", name, "no LoRA matrices for lm_head", merge],
                );
            }
        }
    }
}

#[test]
fn a_draft_vocabulary_has_ids_of_its_own() {
    let words = |more: &str| config(6, 1, &format!(r#", "draft_vocab_size": 2{more}"#));
    let folder = Folder::model(
        &words(""),
        &[("lm_head.weight", w(1.0)), ("d2t", i64s(&[2], &[1, 3])), ("t2d", blank("BOOL", &[6], 6))],
    );
    let checkpoint = folder.open().unwrap();
    assert_eq!((checkpoint.rows(), checkpoint.model_config().vocab_size), (2, Some(2)));
    assert_eq!(checkpoint.target_ids(), Some(&[1, 4][..]));
    let same = Folder::model(&words(""), &[("lm_head.weight", w(1.0))]);
    assert_eq!(same.open().unwrap().target_ids(), None);
    for (tensors, words_of_error) in [
        (
            vec![("lm_head.weight", f32s(&[6, 1], &[1.0; 6]))],
            vec!["wanted 2 rows, config.json's draft_vocab_size, got 6 rows"],
        ),
        (
            vec![("lm_head.weight", w(1.0)), ("d2t", i64s(&[3], &[0; 3]))],
            vec!["tensor d2t: wanted i64 or i32 [2]", "got I64 [3]"],
        ),
        (
            vec![("lm_head.weight", w(1.0)), ("d2t", i64s(&[2], &[0, -2]))],
            vec!["tensor d2t: wanted differences that lead to ids from 0", "got -2 at draft id 1"],
        ),
    ] {
        assert_words(&Folder::model(&words(""), &tensors).open().unwrap_err(), &words_of_error);
    }
    // An ordinary model has no target ids.
    let plain = Folder::model(&config(2, 1, ""), &[("lm_head.weight", w(1.0))]);
    assert_eq!(plain.open().unwrap().target_ids(), None);
}
