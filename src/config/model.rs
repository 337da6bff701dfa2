//! What a model's own `config.json` says of its head.

use crate::error::{Error, Result};
use std::path::Path;

/// What a model's `config.json` says of its head. Keys are looked up under `text_config` first, then at the top; keys of
/// no concern to the head are ignored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelConfig {
    pub vocab_size: Option<usize>,
    pub hidden_size: Option<usize>,
    pub logit_scale: Option<f32>,
    pub logits_scaling: Option<f32>,
    pub final_logit_softcapping: Option<f32>,
    pub tie_word_embeddings: Option<bool>,
    /// `quantization_config` as it stands; [`crate::weights::Checkpoint`] judges what of it concerns the head.
    pub quantization_config: Option<serde_json::Value>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `File` where it cannot be read, `Config` where it is not JSON or a key has a value of the wrong kind.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = super::read_text(path, "pass a Hugging Face model folder")?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads the text of a `config.json`; `name` stands in messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_file`].
    pub fn from_json(text: &str, name: &str) -> Result<Self> {
        let root: serde_json::Value = serde_json::from_str(text)
            .map_err(|e| Error::config(name, "a JSON object", e, "pass a Hugging Face config.json"))?;
        if !root.is_object() {
            return Err(Error::config(
                name,
                "a JSON object",
                json_kind(&root),
                "pass a Hugging Face config.json",
            ));
        }
        let get = |key: &str| -> Option<&serde_json::Value> {
            let present = |v: &&serde_json::Value| !v.is_null();
            root.get("text_config").and_then(|t| t.get(key)).filter(present).or(root.get(key)).filter(present)
        };
        let wrong = |key: &str, wanted: &str, got: &serde_json::Value| {
            Error::config(format!("{name}: {key}"), wanted, got, "correct the model's config.json")
        };
        let size = |key: &str| match get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(key, "a whole number", v)),
            },
        };
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(v) => v.as_f64().map(|n| Some(n as f32)).ok_or_else(|| wrong(key, "a number", v)),
        };
        let flag = |key: &str| match get(key) {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| wrong(key, "true or false", v)),
        };
        Ok(ModelConfig {
            vocab_size: size("vocab_size")?,
            hidden_size: size("hidden_size")?,
            logit_scale: number("logit_scale")?,
            logits_scaling: number("logits_scaling")?,
            final_logit_softcapping: number("final_logit_softcapping")?,
            tie_word_embeddings: flag("tie_word_embeddings")?,
            quantization_config: get("quantization_config").or(get("compression_config")).cloned(),
        })
    }
}

fn json_kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "true or false",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}
