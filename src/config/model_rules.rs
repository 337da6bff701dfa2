//! The table of model types: what each `model_type` of `config.json` does between the matrix product and its
//! logits, and under which names it stores its head.
//!
//! A source `transformers: NAME` is the forward method of that class in transformers 5.23.0
//! (`models/*/modeling_*.py`); defaults are those of the class's configuration. Other sources name the
//! repository whose `modeling_*.py` is meant. `scripts/compare-models` compares the table with transformers,
//! class by class.

/// One step of a model between the matrix product and its logits. The strings are keys of `config.json`, of
/// which the first that is set counts; the number is the class's default where none is set.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// `logits * key`
    Multiply(&'static [&'static str], f64),
    /// `logits / key`
    Divide(&'static [&'static str], f64),
    /// `logits * key / hidden_size`, for models that divide their hidden states by `hidden_size / key`.
    MultiplyOverWidth(&'static str, f64),
    /// `logits / sqrt(d_model)`; where the flag is true, only if `tie_word_embeddings` is not false.
    DivideBySqrtWidth { if_tied: bool },
    /// `cap * tanh(logits / cap)`; no cap where nothing is set and there is no default.
    Cap(&'static [&'static str], Option<f64>),
    /// A key that changes logits in a way that this crate does not do: refused unless null, false, 0 or
    /// empty. The second string is the reason.
    Refuse(&'static str, &'static str),
    /// As `Refuse`, but only for this one value of the key.
    RefuseValue(&'static str, u64, &'static str),
    /// Every model of this type is refused, with the reason.
    RefuseAlways(&'static str),
}

/// Whether the embedding is the head where `config.json` has no `tie_word_embeddings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tied {
    Yes,
    No,
    /// The class ties whatever `config.json` says.
    Always,
    /// The class has a head of its own whatever `config.json` says.
    Never,
    /// Not known. The embedding is taken as the head if no head is stored.
    Unknown,
}

/// Module names, without `.weight`, under which a head may be stored. A name that begins with a dot matches
/// with any prefix. Earlier names are preferred.
#[derive(Debug, PartialEq)]
pub(crate) struct Names {
    pub heads: &'static [&'static str],
    pub embeddings: &'static [&'static str],
    /// Tensors that hold the bias, beside `HEAD.bias`.
    pub biases: &'static [&'static str],
}

#[derive(Debug, PartialEq)]
pub(crate) struct Rule {
    pub model_types: &'static [&'static str],
    pub names: &'static Names,
    pub tied: Tied,
    /// Whether a `tie_word_embeddings` of true in `text_config` wins over false at the top level (folders
    /// that transformers 4 saved).
    pub text_flag_counts: bool,
    /// In the model's order.
    pub steps: &'static [Step],
    /// Keys that seem to change logits but do not.
    pub harmless: &'static [&'static str],
    /// Keys that give the number of ids instead of `vocab_size`, where they are set.
    pub vocab_keys: &'static [&'static str],
    /// Whether the head's columns are not `hidden_size`; then the tensor gives their number.
    pub own_width: bool,
    /// Where the rule was read, for people; the program does not use it.
    pub source: &'static str,
}

const LLAMA: Names =
    Names { heads: &[".lm_head"], embeddings: &["model.embed_tokens", ".embed_tokens"], biases: &[] };
const GPT2: Names = Names { heads: &["lm_head"], embeddings: &["transformer.wte", "wte"], biases: &[] };
const BERT: Names = Names {
    heads: &[".cls.predictions.decoder"],
    embeddings: &[".embeddings.word_embeddings"],
    biases: &[".cls.predictions.bias"],
};
const ROBERTA: Names = Names {
    heads: &["lm_head.decoder"],
    embeddings: &[".embeddings.word_embeddings"],
    biases: &["lm_head.bias"],
};
const MAMBA: Names =
    Names { heads: &["lm_head"], embeddings: &["backbone.embeddings", "backbone.embedding"], biases: &[] };
const DECODER: Names = Names {
    heads: &["lm_head"],
    embeddings: &[
        "model.decoder.embed_tokens",
        "decoder.embed_tokens",
        ".decoder.embed_tokens",
        "model.shared",
        ".shared",
    ],
    biases: &[],
};
const T5: Names = Names {
    heads: &["lm_head"],
    embeddings: &["shared", "decoder.embed_tokens", "encoder.embed_tokens"],
    biases: &[],
};

const T5GEMMA: Names = Names {
    heads: &["lm_head.out_proj"],
    embeddings: &["model.decoder.embed_tokens", "model.encoder.text_model.embed_tokens"],
    biases: &[],
};

/// For model types without a rule: every known name of a head or an embedding. A folder that has several of
/// them is ambiguous.
pub(crate) const ANY: Names = Names {
    heads: &[
        ".lm_head",
        "embed_out",
        "output",
        "head",
        "output_layer",
        "transformer.output_layer",
        "output_projection",
        "proj_out",
        "lm_loss",
        "generator_lm_head",
        ".cls.predictions.decoder",
        "lm_head.decoder",
        "pred_layer.proj",
        "lm_head.out_proj",
        "model.llm.unembed",
    ],
    embeddings: &[
        "model.embed_tokens",
        ".embed_tokens",
        ".wte",
        ".word_embeddings",
        ".tok_embeddings",
        ".embed_in",
        ".tokens_embed",
        "backbone.embeddings",
        "backbone.embedding",
        "embed",
    ],
    biases: &[".cls.predictions.bias"],
};

const PLAIN: Rule = Rule {
    model_types: &[],
    names: &LLAMA,
    tied: Tied::No,
    text_flag_counts: false,
    steps: &[],
    harmless: &[],
    vocab_keys: &[],
    own_width: false,
    source: "",
};

const CAP: &[&str] = &["final_logit_softcapping"];
const GRANITE: &[Step] = &[Step::Divide(&["logits_scaling"], 1.0)];
const COHERE: &[Step] = &[Step::Multiply(&["logit_scale"], 0.0625)];

#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    // Plain models: the matrix product is the logits.
    Rule {
        model_types: &[
            "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "bitnet", "cwm", "deepseek_v2",
            "deepseek_v3", "deepseek_v32", "diffllama", "doge", "dots1", "dots3_note", "dots3_note_text",
            "emu3", "emu3_text_model", "exaone4", "exaone_moe", "flex_olmo", "flint", "fuyu", "glm", "glm4",
            "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "helium", "hrm_text", "hunyuan_v1_dense",
            "hunyuan_v1_moe", "hy_v3", "hy_v4", "internlm3", "iquestcoder", "jais2", "jamba", "kolibri1",
            "laguna", "llama", "llama4", "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash", "minimax",
            "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "nemotron",
            "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "persimmon", "phi", "phi3", "phi4_multimodal",
            "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text",
            "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen4_exp", "qwen4_exp_text", "seed_oss",
            "solar_open", "stablelm", "moshi", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text",
            "qwen3_vl_moe_text",
        ],
        // afmoe: multiplies the embedding, not the logits.
        harmless: &["mup_enabled"],
        source: "transformers: LlamaForCausalLM and the others of this form", ..PLAIN
    },
    Rule {
        model_types: &[
            "ernie4_5", "ernie4_5_moe", "gemma", "jetmoe", "lfm2", "lfm2_moe", "lfm3", "smollm3",
            "starcoder2", "xglm", "youtu", "zamba", "zamba2", "zaya",
        ],
        tied: Tied::Yes,
        source: "transformers: GemmaForCausalLM and the others of this form", ..PLAIN
    },
    Rule {
        model_types: &[
            "bailing_hybrid", "kimi_linear", "nemotron_h", "cpmant", "mllama", "mllama_text_model",
        ],
        tied: Tied::Never,
        source: "transformers: NemotronHForCausalLM and others: _tied_weights_keys is empty", ..PLAIN
    },
    // Multimodal models: the outer class has the head, and does not read text_config's keys about logits.
    Rule {
        model_types: &[
            "aya_vision", "cohere2_vision", "deepseek_vl", "deepseek_vl_hybrid", "ernie4_5_vl_moe",
            "fun_asr_nano", "gemma3", "glmasr", "got_ocr2", "granite_speech",
            "granite_speech_plus", "hunyuan_vl", "internvl", "janus", "kimi_k25", "lfm2_vl", "lfm3_vl",
            "lighton_ocr", "minicpm_ocr", "mistral3", "moss_transcribe_diarize", "ovis2", "paddleocr_vl",
            "qwen3_asr", "voxtral_realtime",
        ],
        tied: Tied::Yes,
        source: "transformers: Gemma3ForConditionalGeneration and the others of this form", ..PLAIN
    },
    Rule {
        model_types: &[
            "aria", "audioflamingo3", "cosmos3_edge", "cosmos3_omni", "deepseek_ocr2", "exaone4_5",
            "fast_vlm", "glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_image", "glm_ocr", "idefics2",
            "idefics3", "llava", "llava_next", "llava_next_video", "llava_onevision", "minicpmv4_6",
            "minicpmv4_7", "minimax_m3_vl", "molmo2", "musicflamingo", "nemo_speechlm", "perception_lm",
            "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_omni", "qwen2_5_vl", "qwen2_audio", "qwen2_vl",
            "qwen3_omni_moe_thinker", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "step3p7",
            "unlimited_ocr", "vibevoice_asr", "video_llama_3", "video_llava", "vipllava", "voxtral",
        ],
        text_flag_counts: true,
        source: "transformers: LlavaForConditionalGeneration and the others of this form", ..PLAIN
    },
    // Heads stored under other names.
    Rule {
        model_types: &["gpt2", "gpt-sw3", "gpt_bigcode", "gpt_neo", "mpt"], names: &GPT2, tied: Tied::Yes,
        source: "transformers: GPT2LMHeadModel, MptForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["codegen", "gptj", "dbrx", "qwen"], names: &GPT2,
        source: "transformers: GPTJForCausalLM; Qwen/Qwen-7B", ..PLAIN
    },
    Rule {
        model_types: &["openai-gpt"], tied: Tied::Yes,
        names: &Names {
            heads: &["lm_head"], embeddings: &["transformer.tokens_embed", "tokens_embed"],
            biases: &[],
        },
        source: "transformers: OpenAIGPTLMHeadModel", ..PLAIN
    },
    Rule {
        model_types: &["ctrl"], tied: Tied::Yes,
        names: &Names { heads: &["lm_head"], embeddings: &["transformer.w", "w"], biases: &[] },
        source: "transformers: CTRLLMHeadModel", ..PLAIN
    },
    Rule {
        model_types: &["gpt_neox"],
        names: &Names {
            heads: &["lm_head", "embed_out"], embeddings: &["gpt_neox.embed_in", "embed_in"], biases: &[],
        },
        source: "transformers: GPTNeoXForCausalLM; conversion_mapping.py: embed_out is stored", ..PLAIN
    },
    Rule {
        model_types: &["gpt_neox_japanese"], tied: Tied::Yes,
        names: &Names {
            heads: &["embed_out"], embeddings: &["gpt_neox_japanese.embed_in", "embed_in"], biases: &[],
        },
        source: "transformers: GPTNeoXJapaneseForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["bloom", "falcon"], tied: Tied::Yes,
        names: &Names {
            heads: &["lm_head"], embeddings: &["transformer.word_embeddings", "word_embeddings"], biases: &[],
        },
        source: "transformers: BloomForCausalLM, FalconForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["mamba", "falcon_mamba"], names: &MAMBA, tied: Tied::Yes,
        source: "transformers: MambaForCausalLM", ..PLAIN
    },
    Rule { model_types: &["mamba2"], names: &MAMBA, source: "transformers: Mamba2ForCausalLM", ..PLAIN },
    Rule {
        model_types: &["rwkv"],
        names: &Names { heads: &["head"], embeddings: &["rwkv.embeddings", "embeddings"], biases: &[] },
        source: "transformers: RwkvForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["deepseek_v4"],
        names: &Names {
            heads: &[".lm_head", "head"], embeddings: &["model.embed_tokens", ".embed_tokens", "embed"],
            biases: &[],
        },
        source: "transformers: DeepseekV4ForCausalLM; conversion_mapping.py: head and embed are stored",
        ..PLAIN
    },
    Rule {
        model_types: &["internlm2"],
        names: &Names { heads: &["output"], embeddings: &["model.tok_embeddings"], biases: &[] },
        source: "internlm/internlm2-7b", ..PLAIN
    },
    Rule {
        model_types: &["chatglm"],
        names: &Names {
            heads: &["transformer.output_layer", "lm_head"],
            embeddings: &["transformer.embedding.word_embeddings", "transformer.word_embeddings"],
            biases: &[],
        },
        source: "THUDM/chatglm3-6b", ..PLAIN
    },
    Rule {
        model_types: &["biogpt"], tied: Tied::Yes,
        names: &Names { heads: &["output_projection"], embeddings: &[".embed_tokens"], biases: &[] },
        source: "transformers: BioGptForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["trocr"], tied: Tied::Yes,
        names: &Names {
            heads: &["output_projection"], embeddings: &["model.decoder.embed_tokens", ".embed_tokens"],
            biases: &[],
        },
        source: "transformers: TrOCRForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr"],
        tied: Tied::Yes,
        names: &Names {
            heads: &["proj_out"], embeddings: &["model.decoder.embed_tokens", ".decoder.embed_tokens"],
            biases: &[],
        },
        source: "transformers: WhisperForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["git"], tied: Tied::No,
        names: &Names { heads: &["output"], embeddings: &["git.embeddings.word_embeddings"], biases: &[] },
        source: "transformers: GitForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["xlnet"], tied: Tied::Yes,
        names: &Names {
            heads: &["lm_loss"], embeddings: &["transformer.word_embedding"],
            biases: &["lm_loss.bias"],
        },
        source: "transformers: XLNetLMHeadModel", ..PLAIN
    },
    Rule {
        model_types: &["xlm", "flaubert"], tied: Tied::Yes,
        names: &Names {
            heads: &["pred_layer.proj"], embeddings: &["transformer.embeddings"],
            biases: &["pred_layer.proj.bias"],
        },
        steps: &[
            Step::Refuse("asm", "the model answers with an adaptive softmax, which is no matrix product"),
        ],
        source: "transformers: XLMWithLMHeadModel", ..PLAIN
    },
    Rule {
        model_types: &[
            "bart", "mbart", "blenderbot", "blenderbot-small", "pegasus", "plbart", "mvp", "m2m_100",
            "nllb-moe", "pegasus_x", "led",
        ],
        names: &DECODER, tied: Tied::Yes,
        source: "transformers: BartForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["florence2"], names: &Names { heads: &[".lm_head"], ..DECODER }, tied: Tied::Yes,
        source: "transformers: Florence2ForConditionalGeneration: tied to language_model.shared", ..PLAIN
    },
    Rule {
        model_types: &["opt"], names: &DECODER, tied: Tied::Yes, own_width: true,
        source: "transformers: OPTForCausalLM; the columns are word_embed_proj_dim", ..PLAIN
    },
    Rule {
        model_types: &["marian"], names: &DECODER, tied: Tied::Yes, vocab_keys: &["decoder_vocab_size"],
        source: "transformers: MarianForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["bigbird_pegasus"], names: &DECODER, tied: Tied::Never,
        source: "transformers: BigBirdPegasusForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["prophetnet"], tied: Tied::Yes,
        names: &Names {
            heads: &["lm_head"], embeddings: &["prophetnet.word_embeddings", ".word_embeddings"],
            biases: &[],
        },
        source: "transformers: ProphetNetForCausalLM", ..PLAIN
    },
    // The head has layers before its last matrix; hidden rows here are the input of that matrix.
    Rule {
        model_types: &["bert", "big_bird", "ernie", "megatron-bert", "roc_bert"], names: &BERT,
        tied: Tied::Yes,
        source: "transformers: BertLMHeadModel", ..PLAIN
    },
    Rule {
        model_types: &["roformer"], names: &BERT, tied: Tied::Yes, own_width: true,
        source: "transformers: RoFormerForCausalLM; the columns are embedding_size", ..PLAIN
    },
    Rule {
        model_types: &["rembert"], names: &BERT, own_width: true, tied: Tied::Never,
        source: "transformers: RemBertForCausalLM; the columns are output_embedding_size", ..PLAIN
    },
    Rule {
        model_types: &[
            "bert-generation", "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta",
            "xlm-roberta-xl", "xmod",
        ],
        names: &ROBERTA, tied: Tied::Yes,
        source: "transformers: RobertaForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["electra"], own_width: true, tied: Tied::Yes,
        names: &Names {
            heads: &["generator_lm_head"], embeddings: &[".embeddings.word_embeddings"],
            biases: &[],
        },
        source: "transformers: ElectraForCausalLM; the columns are embedding_size", ..PLAIN
    },
    Rule {
        model_types: &["modernbert-decoder"], tied: Tied::Yes,
        names: &Names {
            heads: &["decoder"], embeddings: &["model.embeddings.tok_embeddings"],
            biases: &["decoder.bias"],
        },
        source: "transformers: ModernBertDecoderForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["reformer"], own_width: true, tied: Tied::Never,
        names: &Names { heads: &["lm_head.decoder"], embeddings: &[], biases: &[] },
        source: "transformers: ReformerModelWithLMHead; lm_head.bias is not used", ..PLAIN
    },
    Rule {
        model_types: &["blt"], own_width: true, tied: Tied::Never,
        source: "transformers: BltForCausalLM; the columns are decoder_config.hidden_size", ..PLAIN
    },
    // Scales and caps.
    Rule {
        model_types: &["cohere", "cohere2", "cohere2_moe"], tied: Tied::Yes,
        steps: COHERE,
        source: "transformers: CohereForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["cohere_compass_text"], tied: Tied::Yes,
        steps: &[Step::Multiply(&["logit_scale"], 1.0)],
        source: "transformers: CohereCompassForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["cohere_compass"], steps: &[Step::Multiply(&["logit_scale"], 1.0)],
        source: "transformers: CohereCompassForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &[
            "granite", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared",
            "granite4_vision", "granite4_vision_text",
        ],
        steps: GRANITE,
        source: "transformers: GraniteForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["granite_swa"], steps: GRANITE, tied: Tied::Yes,
        source: "transformers: GraniteSWAForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["granite_docling", "granite_docling_text"], tied: Tied::Yes,
        steps: &[Step::Divide(&["logits_scaling"], 4.0)],
        source: "transformers: GraniteDoclingForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["hyperclovax"], steps: &[Step::Multiply(&["logits_scaling"], 1.0)],
        source: "transformers: HyperCLOVAXForCausalLM: multiplies by the key that Granite divides by", ..PLAIN
    },
    Rule {
        model_types: &["hyperclovax_vision_v2"], tied: Tied::Yes,
        steps: &[Step::Multiply(&["logits_scaling"], 1.0)],
        source: "transformers: HyperCLOVAXVisionV2ForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["falcon_h1"], steps: &[Step::Multiply(&["lm_head_multiplier"], 1.0)],
        source: "transformers: FalconH1ForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["minicpm", "minicpm3"], tied: Tied::Yes,
        steps: &[Step::MultiplyOverWidth("dim_model_base", 256.0)],
        // mup_denominator divides what a layer adds to the residual stream.
        harmless: &["mup_denominator"],
        source: "transformers: MiniCPM3ForCausalLM; openbmb/MiniCPM-2B-sft-bf16", ..PLAIN
    },
    Rule {
        model_types: &["inkling_text", "inkling_mm_model"], tied: Tied::Never,
        vocab_keys: &["unpadded_vocab_size"],
        names: &Names { heads: &[".lm_head", "model.llm.unembed"], ..LLAMA },
        steps: &[Step::Divide(&["logits_mup_width_multiplier", "embedding_multiplier"], 24.0)],
        source: "transformers: InklingForCausalLM; conversion_mapping.py: model.llm.unembed is stored",
        ..PLAIN
    },
    Rule {
        model_types: &["inkling2_text", "inkling2"], tied: Tied::Never, vocab_keys: &["unpadded_vocab_size"],
        names: &Names { heads: &[".lm_head", "model.llm.unembed"], ..LLAMA },
        steps: &[Step::Cap(CAP, Some(30.0))], harmless: &["mlp_gate_softcap", "mlp_up_softcap"],
        source: "transformers: Inkling2ForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["muse_glimmer", "muse_glimmer_text"],
        steps: &[
            Step::Multiply(&["output_multiplier"], 0.196_116_135_138_184_04),
            Step::Cap(CAP, Some(20.0)),
        ],
        source: "transformers: MuseGlimmerForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["muse_spark", "muse_spark_text"],
        steps: &[Step::Multiply(&["output_multiplier"], 0.176_776_695_296_636_9), Step::Cap(CAP, Some(20.0))],
        source: "transformers: MuseSparkForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &[
            "gemma2", "vaultgemma", "gemma3n_text", "gemma3n", "diffusion_gemma", "diffusion_gemma_text",
        ],
        tied: Tied::Yes, steps: &[Step::Cap(CAP, Some(30.0))],
        source: "transformers: Gemma2ForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["gemma3_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"],
        tied: Tied::Yes, steps: &[Step::Cap(CAP, None)],
        source: "transformers: Gemma3ForCausalLM, Gemma4ForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["gemma4_assistant", "gemma4_unified_assistant"], tied: Tied::Yes,
        steps: &[
            Step::Refuse("use_ordered_embeddings", "the model answers only some clusters of ids in a row"),
        ],
        source: "transformers: Gemma4AssistantForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["beam"], steps: &[Step::Cap(CAP, Some(30.0))],
        source: "transformers: BeamForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["nanochat"], steps: &[Step::Cap(CAP, Some(15.0))],
        source: "transformers: NanoChatForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["mistral_large4", "mistral_large4_text"], steps: &[Step::Cap(CAP, Some(30.0))],
        names: &Names {
            heads: &[".lm_head", "output"],
            embeddings: &["model.embed_tokens", ".embed_tokens", "tok_embeddings"],
            biases: &[],
        },
        source: "transformers: MistralLarge4ForConditionalGeneration; output is stored", ..PLAIN
    },
    Rule {
        model_types: &["recurrent_gemma"], tied: Tied::Yes,
        steps: &[Step::Cap(&["logits_soft_cap"], Some(30.0))],
        source: "transformers: RecurrentGemmaForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["xlstm"], steps: &[Step::Cap(&["output_logit_soft_cap"], Some(30.0))],
        tied: Tied::Never,
        names: &Names { heads: &["lm_head"], embeddings: &[], biases: &[] },
        harmless: &["gate_soft_cap"],
        source: "transformers: xLSTMForCausalLM", ..PLAIN
    },
    Rule {
        model_types: &["grok-1", "grok_1", "grok"],
        steps: &[Step::Multiply(&["output_multiplier_scale"], 0.577_350_269_189_625_7)],
        source: "hpcai-tech/grok-1", ..PLAIN
    },
    Rule {
        model_types: &["phi3small"], tied: Tied::Yes,
        steps: &[
            Step::Divide(&["mup_width_multiplier"], 8.0),
            Step::Refuse("dummy_token_indices", "the model sets these ids' logits to the lowest number"),
        ],
        harmless: &["mup_use_scaling", "mup_attn_multiplier", "mup_embedding_multiplier"],
        source: "microsoft/Phi-3-small-8k-instruct", ..PLAIN
    },
    Rule {
        model_types: &["btlm", "jais"], names: &GPT2, tied: Tied::Yes,
        steps: &[Step::Multiply(&["mup_output_alpha", "output_logits_alpha"], 1.0),
                 Step::Multiply(&["mup_width_scale", "width_scale"], 1.0)],
        harmless: &["mup_embeddings_scale", "mup_scale_qk_dot_by_d"],
        source: "cerebras/btlm-3b-8k-base, inceptionai/jais-13b", ..PLAIN
    },
    Rule {
        model_types: &["baichuan"],
        steps: &[Step::RefuseValue(
            "vocab_size", 125_696,
            "Baichuan2 divides each row of its head by the row's Euclidean norm; store the rows so divided",
        )],
        source: "baichuan-inc/Baichuan2-7B-Base: NormHead", ..PLAIN
    },
    // Encoder and decoder.
    Rule {
        model_types: &["t5", "longt5", "pop2piano"], names: &T5, tied: Tied::Always,
        steps: &[Step::DivideBySqrtWidth { if_tied: true }],
        source: "transformers: T5ForConditionalGeneration: scale_decoder_outputs", ..PLAIN
    },
    Rule {
        model_types: &["umt5", "switch_transformers", "udop"], names: &T5, tied: Tied::Yes,
        steps: &[Step::DivideBySqrtWidth { if_tied: true }],
        source: "transformers: UMT5ForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["mt5"], names: &T5, tied: Tied::Always,
        source: "transformers: MT5ForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["t5gemma"], names: &T5GEMMA, tied: Tied::Yes, steps: &[Step::Cap(CAP, Some(30.0))],
        source: "transformers: T5GemmaForConditionalGeneration; the cap is decoder's", ..PLAIN
    },
    Rule {
        model_types: &["t5gemma2"], names: &T5GEMMA, tied: Tied::Yes, steps: &[Step::Cap(CAP, None)],
        source: "transformers: T5Gemma2ForConditionalGeneration; the cap is decoder's", ..PLAIN
    },
    // Logits that are more than one matrix product.
    Rule {
        model_types: &["chameleon"], tied: Tied::Yes,
        steps: &[
            Step::RefuseAlways("Chameleon sets the logits of the ids of image tokens to the lowest number"),
        ],
        source: "transformers: ChameleonForConditionalGeneration", ..PLAIN
    },
    Rule {
        model_types: &["musicgen", "musicgen_decoder", "musicgen_melody", "musicgen_melody_decoder"],
        steps: &[Step::RefuseAlways("it has a head for each codebook: name one, --tensor lm_heads.0.weight")],
        source: "transformers: MusicgenForCausalLM", ..PLAIN
    },
];

/// The rule of a `model_type`, where it is known.
pub(crate) fn of(model_type: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.model_types.contains(&model_type))
}

/// Whether a key of `config.json` seems to change logits, by its name.
pub(crate) fn looks_like_logits(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let suspect = [
        "logit",
        "lm_head",
        "output_mult",
        "mup",
        "softcap",
        "soft_cap",
        "dim_model_base",
        "output_scale",
        "head_multiplier",
        "norm_head",
        "unpadded_vocab",
    ];
    // Names that match but are harmless: routers and attention have logits and caps of their own, the other
    // keys choose rows, precision or training.
    let known = [
        "router",
        "attn",
        "attention",
        "moe",
        "gate",
        "logits_to_keep",
        "logit_scale_init",
        "temperature",
        "max_logit_scale",
        "freeze_lm_head",
        "chunk_size_lm_head",
        "auxiliary_logits",
        "lm_head_bias",
        "fp32",
        "dtype",
        "z_loss",
        "calc_logits",
        "lsd_time_logit",
        "average_logits",
        "return_logits",
        "jump",
    ];
    suspect.iter().any(|word| key.contains(word)) && !known.iter().any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_model_type_stands_once_and_every_rule_names_its_source() {
        let mut seen = BTreeSet::new();
        for rule in RULES {
            assert!(!rule.model_types.is_empty() && !rule.source.is_empty());
            for model_type in rule.model_types {
                assert!(seen.insert(model_type), "{model_type} has two rules");
                assert_eq!(of(model_type), Some(rule));
            }
            assert!(!rule.names.heads.is_empty());
        }
    }

    #[test]
    fn keys_that_look_as_if_they_changed_logits() {
        for key in [
            "logit_scale",
            "logits_scaling",
            "final_logit_softcapping",
            "lm_head_multiplier",
            "dim_model_base",
            "logits_mup_width_multiplier",
            "output_multiplier_scale",
            "mup_width_multiplier",
            "output_multiplier",
            "logits_soft_cap",
            "output_logit_soft_cap",
            "softcap",
            "scale_logits",
            "norm_head",
            "Logit_Cap",
        ] {
            assert!(looks_like_logits(key), "{key}");
        }
        for key in [
            "vocab_size",
            "output_router_logits",
            "attn_logit_softcapping",
            "num_logits_to_keep",
            "lm_head_bias",
            "logit_scale_init_value",
            "attention_logit_cap",
            "moe_router_logit_softcapping",
            "hidden_size",
            "enable_lm_head_fp32",
            "scale_emb",
            "head_dim",
            "output_hidden_states",
        ] {
            assert!(!looks_like_logits(key), "{key}");
        }
    }
}
