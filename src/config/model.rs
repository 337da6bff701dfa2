//! What a model's own `config.json` says about its head.

use super::model_rules::{self, Names, Rule, Step, Tied};
use super::python_json;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Where the `config.json` of a multimodal model may keep the settings of its text model.
const TEXT_CONFIGS: [&[&str]; 5] = [
    &["text_config"],
    &["llm_config"],
    &["language_config"],
    &["thinker_config", "text_config"],
    &["decoder"],
];

/// What a model's `config.json` says about its head. Which keys scale or cap the logits depends on the
/// `model_type`, since each model class reads its own. Keys are looked up in `text_config` (or `llm_config`,
/// `language_config`) first, then at the top level; keys that do not concern the head are ignored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelConfig {
    /// The `model_type` whose rule is used.
    pub model_type: Option<String>,
    pub vocab_size: Option<usize>,
    /// Columns of the head; absent for model types whose head does not have `hidden_size` columns.
    pub hidden_size: Option<usize>,
    /// Multiplies the logits after the softcap: the product of all scales that the model applies.
    pub logit_scale: Option<f32>,
    /// `cap * tanh(logit / cap)` before the scale. For a model that scales first this is its cap divided by
    /// its scale, which gives the same logits.
    pub final_logit_softcapping: Option<f32>,
    /// Whether the embedding is the head: as `config.json` says (the top level before `text_config`), else
    /// the model type's default, if known.
    pub tie_word_embeddings: Option<bool>,
    /// Rows of the head of an EAGLE-3 draft model, which has a vocabulary of its own.
    pub draft_vocab_size: Option<usize>,
    /// `quantization_config`, unread; [`crate::weights::Checkpoint`] decides which of it concerns the head.
    pub quantization_config: Option<Value>,
    /// Messages for the user, such as a key that the model's class does not read.
    pub warnings: Vec<String>,
    /// Why this crate cannot compute the model's logits; [`super::HeadConfig::resolve`] returns it unless the
    /// settings have a scale of their own.
    pub(crate) refusal: Option<Error>,
    pub(crate) rule: Option<&'static Rule>,
}

impl ModelConfig {
    /// Reads a `config.json` as Python's `json` would: `Infinity`, `NaN` and a byte-order mark are accepted.
    ///
    /// # Errors
    /// `File` where it cannot be read, `Config` where it is not JSON or a key has a value of the wrong kind.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = super::read_text(path, "pass a Hugging Face model folder")?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads the text of a `config.json`; messages call it `name`. A key that seems to change logits and is
    /// not understood is no error here: [`super::HeadConfig::resolve`] refuses it.
    ///
    /// # Errors
    /// As [`ModelConfig::from_file`].
    pub fn from_json(text: &str, name: &str) -> Result<Self> {
        let root: Value = python_json::from_str(text)
            .map_err(|e| Error::config(name, "a JSON object", e, "pass a Hugging Face config.json"))?;
        if !root.is_object() {
            return Err(Error::config(
                name,
                "a JSON object",
                json_kind(&root),
                "pass a Hugging Face config.json",
            ));
        }
        let keys = Keys::of(&root, name);
        let own_type = keys.top("model_type").and_then(Value::as_str);
        let text_type = keys.text("model_type").and_then(Value::as_str);
        let known = |model_type: &Option<&str>| model_type.is_some_and(|t| model_rules::of(t).is_some());
        // The outer model type comes first: a multimodal class has a head of its own. Where it is not known,
        // the class may contain a whole text model, whose type is.
        let model_type = [own_type, text_type].into_iter().find(known).unwrap_or(text_type.or(own_type));
        let rule = model_type.and_then(model_rules::of);

        let mut warnings = Vec::new();
        let mut unread = Vec::new();
        if let (Some(own), Some(text)) = (rule, text_type.and_then(model_rules::of))
            && own.steps.is_empty()
            && !text.steps.is_empty()
        {
            let text = Logits::by_rule(&keys, text_type.unwrap_or_default(), text, &[])?;
            if text.scale != 1.0 || text.cap.is_some() {
                let (own, keys) = (own_type.unwrap_or_default(), text.used.join(", "));
                warnings.push(format!(
                    "{name}: {own}'s class in transformers does not scale or cap logits: \
                     {keys} of text_config is not used"
                ));
            }
            unread = text.used;
        }
        let logits = match rule {
            Some(rule) => Logits::by_rule(&keys, model_type.unwrap_or_default(), rule, &unread)?,
            None => Logits::unknown(&keys, model_type)?,
        };
        let vocab_keys = rule.map_or(&[][..], |rule| rule.vocab_keys);
        let mut vocab_size = keys.size("vocab_size")?;
        for key in vocab_keys {
            vocab_size = keys.size(key)?.or(vocab_size);
        }
        let draft_vocab_size = keys.size("draft_vocab_size")?;
        let own_width = rule.is_some_and(|rule| rule.own_width);
        Ok(ModelConfig {
            model_type: model_type.map(String::from),
            vocab_size: draft_vocab_size.or(vocab_size),
            hidden_size: if own_width { None } else { keys.size("hidden_size")? },
            logit_scale: (logits.scale != 1.0).then_some(logits.scale as f32),
            final_logit_softcapping: logits.cap.map(|cap| cap as f32),
            tie_word_embeddings: keys.tied(rule)?,
            draft_vocab_size,
            quantization_config: keys.get("quantization_config").or(keys.get("compression_config")).cloned(),
            warnings,
            refusal: logits.refusal,
            rule,
        })
    }

    /// The names under which this model's head may be stored.
    pub(crate) fn names(&self) -> &'static Names {
        self.rule.map_or(&model_rules::ANY, |rule| rule.names)
    }

    /// Whether the class always has a head of its own, whatever its configuration says.
    pub(crate) fn never_tied(&self) -> bool {
        self.rule.is_some_and(|rule| rule.tied == Tied::Never)
    }
}

/// The two levels of a `config.json`: the top level and `text_config`. null counts as absent.
struct Keys<'a> {
    root: &'a Value,
    text: Option<&'a Value>,
    name: &'a str,
}

impl<'a> Keys<'a> {
    fn of(root: &'a Value, name: &'a str) -> Self {
        let text = TEXT_CONFIGS.iter().find_map(|path| {
            let found = path.iter().try_fold(root, |level, key| level.get(key));
            found.filter(|text| text.is_object())
        });
        Keys { root, text, name }
    }

    fn top(&self, key: &str) -> Option<&'a Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&'a Value> {
        self.text.and_then(|text| text.get(key)).filter(|value| !value.is_null())
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.text(key).or(self.top(key))
    }

    fn wrong(&self, key: &str, wanted: &str, got: &Value) -> Error {
        Error::config(format!("{}: {key}", self.name), wanted, got, "correct the model's config.json")
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong(key, "a whole number", v)),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", v)),
        }
    }

    /// The first of several keys that is set, and its number.
    fn first_number(&self, keys: &[&'static str]) -> Result<Option<(&'static str, f64)>> {
        for key in keys {
            if let Some(number) = self.number(key)? {
                return Ok(Some((key, number)));
            }
        }
        Ok(None)
    }

    fn tied(&self, rule: Option<&Rule>) -> Result<Option<bool>> {
        let key = "tie_word_embeddings";
        let flag = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false", v)),
        };
        let (top, text) = (flag(self.top(key))?, flag(self.text(key))?);
        let default = match rule.map_or(Tied::Unknown, |rule| rule.tied) {
            Tied::Always => return Ok(Some(true)),
            Tied::Never => return Ok(Some(false)),
            Tied::Yes => Some(true),
            Tied::No => Some(false),
            Tied::Unknown => None,
        };
        if text == Some(true) && rule.is_some_and(|rule| rule.text_flag_counts) {
            return Ok(Some(true));
        }
        Ok(top.or(text).or(default))
    }

    /// Every key that seems to change logits and has a value that would.
    fn suspects(&self) -> Vec<(&'a str, &'a Value)> {
        let levels = [Some(self.root), self.text].into_iter().flatten();
        levels
            .filter_map(Value::as_object)
            .flatten()
            .filter(|(key, value)| model_rules::looks_like_logits(key) && !is_neutral(key, value))
            .map(|(key, value)| (key.as_str(), value))
            .collect()
    }
}

/// Whether a value changes no logits: null, false, an empty value, or 1 (unless the key is a cap).
fn is_neutral(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(1.0) && !key.contains("cap"),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(true) => false,
    }
}

/// All steps of a model, combined into one cap and one scale after it.
struct Logits {
    cap: Option<f64>,
    scale: f64,
    /// Keys that the steps read.
    used: Vec<&'static str>,
    refusal: Option<Error>,
    /// Key, what was wanted and what came, of a step that is understood but that this crate does not do.
    undone: Option<(String, String, Value)>,
}

/// The advice for a key that is not understood.
const SAY_IT: &str = "say what it does: logit_scale (1 for nothing) and final_logit_softcapping of lmhead's \
                      own configuration then stand for it";

impl Logits {
    fn none() -> Self {
        Logits { cap: None, scale: 1.0, used: Vec::new(), refusal: None, undone: None }
    }

    fn multiply(&mut self, factor: f64) {
        self.scale *= factor;
    }

    /// Adds a cap that comes after the scale so far, in the form that comes before it: with `c = cap /
    /// scale`, `cap * tanh(scale * z / cap)` is `scale * c * tanh(z / c)`.
    fn cap(&mut self, cap: f64) {
        self.cap = Some((cap / self.scale).abs());
    }

    fn refuse(&mut self, keys: &Keys, key: &str, wanted: String, got: &Value) {
        let key = format!("{}: {key}", keys.name);
        self.refusal.get_or_insert_with(|| Error::config(key, wanted, got, SAY_IT));
    }

    /// Refuses a step that this crate does not do. Called after all steps, since the advice names the scale
    /// of the others.
    fn refuse_undone(&mut self, keys: &Keys) {
        if let Some((key, wanted, got)) = self.undone.take() {
            let scale = self.scale as f32;
            let fix = format!(
                "do it yourself with the logits: logit_scale = {scale} in lmhead's own configuration asks \
                 for them without it"
            );
            self.refusal = Some(Error::config(format!("{}: {key}", keys.name), wanted, got, fix));
        }
    }

    /// The steps that `rule` has for this `config.json`. `unread` are keys that the class is known not to
    /// read.
    fn by_rule(keys: &Keys, model_type: &str, rule: &'static Rule, unread: &[&str]) -> Result<Self> {
        let mut logits = Self::none();
        for step in rule.steps {
            match step {
                Step::Multiply(names, default) | Step::Divide(names, default) => {
                    let set = keys.first_number(names)?;
                    let (key, factor) = set.unwrap_or((names[0], *default));
                    if !(factor.is_finite() && factor != 0.0) {
                        let wanted = "a finite number other than 0";
                        let got = keys.get(key).cloned().unwrap_or_default();
                        return Err(keys.wrong(key, wanted, &got));
                    }
                    let divides = matches!(step, Step::Divide(..));
                    logits.multiply(if divides { 1.0 / factor } else { factor });
                    logits.used.extend(*names);
                }
                Step::MultiplyOverWidth(key, default) => {
                    let base = keys.number(key)?.unwrap_or(*default);
                    let width = keys.size("hidden_size")?.filter(|&width| width > 0 && base > 0.0);
                    let Some(width) = width else {
                        let got = keys.get(key).cloned().unwrap_or_default();
                        return Err(keys.wrong(key, "a number above 0, and hidden_size beside it", &got));
                    };
                    // null stands for hidden_size, so nothing is scaled.
                    let explicit_null = keys.get(key).is_none() && keys.has_null(key);
                    logits.multiply(if explicit_null { 1.0 } else { base / width as f64 });
                    logits.used.push(key);
                }
                Step::DivideBySqrtWidth { if_tied } => {
                    let untied = keys.top("tie_word_embeddings") == Some(&Value::Bool(false));
                    if !(*if_tied && untied) {
                        let width = keys.size("d_model")?.filter(|&width| width > 0);
                        let Some(width) = width else {
                            return Err(keys.wrong("d_model", "a whole number above 0", &Value::Null));
                        };
                        logits.multiply((width as f64).powf(-0.5));
                    }
                }
                Step::Cap(names, default) => {
                    let absent = names.iter().all(|key| !keys.has_null(key));
                    let set = keys.first_number(names)?.map(|(_, cap)| cap);
                    if let Some(cap) = set.or(default.filter(|_| absent)) {
                        logits.cap(cap);
                    }
                    logits.used.extend(*names);
                }
                Step::Refuse(key, why) => {
                    let set = |v: &&Value| !is_neutral(key, v) && v.as_f64() != Some(0.0);
                    if let Some(got) = keys.get(key).filter(set) {
                        let wanted = format!("a {model_type} without it, as {why}");
                        logits.undone = Some((key.to_string(), wanted, got.clone()));
                    }
                    logits.used.push(key);
                }
                Step::RefuseValue(key, value, why) => {
                    if let Some(got) = keys.get(key).filter(|got| got.as_u64() == Some(*value)) {
                        let wanted = format!("another value for {model_type}: {why}");
                        logits.undone = Some((key.to_string(), wanted, got.clone()));
                    }
                }
                Step::RefuseAlways(why) => {
                    let wanted = format!("a model whose logits are one matrix product: {why}");
                    logits.undone = Some(("model_type".into(), wanted, Value::from(model_type)));
                }
            }
        }
        logits.refuse_undone(keys);
        let lists = [&logits.used, unread, rule.harmless, rule.vocab_keys];
        let read = |key: &str| lists.iter().any(|list| list.contains(&key));
        if let Some((key, got)) = keys.suspects().into_iter().find(|(key, _)| !read(key)) {
            let wanted = format!("no such key, as {model_type}'s class in transformers reads none");
            logits.refuse(keys, key, wanted, got);
        }
        Ok(logits)
    }

    /// The steps of a model type without a rule. Only `logit_scale` and `final_logit_softcapping` are read:
    /// they mean the same in every model, unlike `logits_scaling`.
    fn unknown(keys: &Keys, model_type: Option<&str>) -> Result<Self> {
        let mut logits = Self::none();
        let (scale, cap) = ("logit_scale", "final_logit_softcapping");
        if let Some(factor) = keys.number(scale)? {
            logits.multiply(factor);
        }
        if let Some(number) = keys.number(cap)? {
            logits.cap = Some(number);
        }
        let about =
            model_type.map_or("a config.json without model_type".into(), |t| format!("model_type {t}"));
        for (key, got) in keys.suspects() {
            let together = logits.cap.is_some() && logits.scale != 1.0;
            if key == scale && together {
                let wanted = format!("it or {cap} for {about}, whose order of the two is not known");
                logits.refuse(keys, key, wanted, got);
            } else if key != scale && key != cap {
                let wanted = format!("no key of unknown effect on logits, and that of {about} is not known");
                logits.refuse(keys, key, wanted, got);
            }
        }
        Ok(logits)
    }
}

impl Keys<'_> {
    /// Whether the first level that has the key has null there.
    fn has_null(&self, key: &str) -> bool {
        let levels = [self.text, Some(self.root)].into_iter().flatten();
        levels.filter_map(|level| level.get(key)).next().is_some_and(Value::is_null)
    }
}

fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
