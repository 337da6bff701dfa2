//! What `quantization_config` of a model's `config.json` says about an int8 head, in the layout of
//! compressed-tensors: `config_groups` with `targets`, `weights` and `input_activations`.

use crate::dtype::Quantization;
use crate::error::{Error, Result};
use serde_json::Value;

/// How the head's activations (its hidden rows) are to be treated.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Activations {
    /// `config.json` says nothing about this head.
    Unstated,
    /// Left in their float type.
    Float,
    /// int8, symmetric, one scale per row, found at run time.
    Int8PerRow,
    /// In a way that this crate does not support, described in words.
    Other(String),
}

impl Activations {
    /// How int8 weights are then multiplied; `None` where this crate does not support it.
    pub fn quantization(&self) -> Option<Quantization> {
        match self {
            Activations::Unstated | Activations::Float => Some(Quantization::W8a16),
            Activations::Int8PerRow => Some(Quantization::W8a8),
            Activations::Other(_) => None,
        }
    }
}

/// What `config` says about the activations of the int8 head that is stored as `module` (`lm_head`).
///
/// # Errors
/// `Config` where it describes weights that are not symmetric 8-bit integers.
pub(super) fn activations(config: Option<&Value>, module: &str) -> Result<Activations> {
    let Some((name, group)) = config.and_then(|c| group_of(c, module)) else {
        return Ok(Activations::Unstated);
    };
    let key = |field: &str| format!("quantization_config.config_groups.{name}.{field}");
    if let Some(preset) = group.as_array().map(|_| name) {
        // The short form, a scheme's name with its targets: `{"W8A8": ["Linear"]}`.
        return match preset {
            "W8A8" | "INT8" => Ok(Activations::Int8PerRow),
            "W8A16" => Ok(Activations::Float),
            other => Err(Error::config(
                "quantization_config.config_groups",
                "W8A8, INT8 or W8A16 for an int8 head",
                other,
                FIX,
            )),
        };
    }
    if let Some(weights) = group.get("weights").filter(|w| !w.is_null()) {
        for (field, wanted, fits) in [
            ("num_bits", "8", weights.get("num_bits").is_none_or(|v| *v == 8)),
            ("type", "int", weights.get("type").is_none_or(|v| *v == "int")),
            ("symmetric", "true", weights.get("symmetric").is_none_or(|v| *v == true)),
            ("strategy", "channel", weights.get("strategy").is_none_or(|v| v.is_null() || *v == "channel")),
            // Some writers put -1 for one group per row.
            ("group_size", "null", weights.get("group_size").is_none_or(|v| v.is_null() || *v == -1)),
        ] {
            if !fits {
                return Err(Error::config(key(&format!("weights.{field}")), wanted, &weights[field], FIX));
            }
        }
    }
    let Some(inputs) = group.get("input_activations").filter(|a| !a.is_null()) else {
        return Ok(Activations::Float);
    };
    let is = |field: &str, value: Value| inputs.get(field).is_some_and(|v| *v == value);
    let is_or_absent = |field: &str, value: Value| inputs.get(field).is_none_or(|v| *v == value);
    let fits = is_or_absent("num_bits", 8.into())
        && is_or_absent("type", "int".into())
        && is_or_absent("symmetric", true.into())
        && is("dynamic", true.into())
        && is("strategy", "token".into());
    Ok(if fits { Activations::Int8PerRow } else { Activations::Other(described(inputs)) })
}

/// Bits of a weight, where the head's group gives them.
pub(super) fn stated_bits(config: Option<&Value>, module: &str) -> Option<u64> {
    let (_, group) = group_of(config?, module)?;
    group.get("weights")?.get("num_bits")?.as_u64()
}

/// Whether the model itself quantises the hidden states of the head: compressed-tensors' `input_activations`
/// of its group, or `activation_scheme` of an `fp8` model.
pub(super) fn quantizes_inputs(config: Option<&Value>, module: &str) -> bool {
    let Some(config) = config else { return false };
    let group = group_of(config, module).and_then(|(_, group)| group.get("input_activations"));
    config.get("activation_scheme").or(group).is_some_and(|inputs| !inputs.is_null())
}

const FIX: &str = "only symmetric 8-bit integer heads with one scale per vocabulary row can be read: \
                   quantise the head so, or leave it unquantised";

/// The settings in words, as "num_bits 8, type float, dynamic false, strategy tensor".
fn described(inputs: &Value) -> String {
    let field = |name: &str| inputs.get(name).map(|v| format!("{name} {}", v.to_string().trim_matches('"')));
    let fields = ["num_bits", "type", "symmetric", "dynamic", "strategy"];
    fields.into_iter().filter_map(field).collect::<Vec<_>>().join(", ")
}

/// The group whose targets fit the module best: best its name, then a pattern that contains its name, then
/// its class. Patterns are not evaluated. A group that is the only one is taken to be about the int8 weights
/// that were found.
fn group_of<'a>(config: &'a Value, module: &str) -> Option<(&'a str, &'a Value)> {
    let groups = config.get("config_groups")?.as_object()?;
    let last = module.rsplit('.').next().unwrap_or(module);
    // A config that ignores the head does not describe the int8 weights that were found.
    let ignored = config.get("ignore").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if ignored.iter().any(|name| name == module || name == last) {
        return None;
    }
    let fit = |group: &Value| -> u8 {
        let targets = if group.is_array() { Some(group) } else { group.get("targets") };
        let targets = targets.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let fits = targets.iter().filter_map(Value::as_str).map(|target| match target.strip_prefix("re:") {
            Some(pattern) if pattern.contains("(?!") => 0,
            Some(pattern) if pattern.contains(last) => 3,
            Some(".*") => 2,
            Some(_) => 0,
            None if target == module || target == last => 4,
            None if ["Linear", "ParallelLMHead"].contains(&target) => 1,
            None => 0,
        });
        fits.max().unwrap_or(0)
    };
    let best = groups.iter().max_by_key(|(_, group)| fit(group))?;
    (fit(best.1) > 0 || groups.len() == 1).then_some((best.0.as_str(), best.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INT8: &str = r#"{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"}"#;

    fn of(groups: Value) -> Result<Activations> {
        activations(Some(&json!({"quant_method": "compressed-tensors", "config_groups": groups})), "lm_head")
    }

    #[test]
    fn groups_and_other_strategies_are_refused_by_name() {
        for (field, value) in
            [("strategy", json!("group")), ("strategy", json!("tensor")), ("group_size", json!(128))]
        {
            let mut weights: Value = serde_json::from_str(INT8).unwrap();
            weights[field] = value.clone();
            let error =
                of(json!({"g": {"targets": ["Linear"], "weights": weights}})).unwrap_err().to_string();
            assert!(
                error.contains(&format!("g.weights.{field}"))
                    && error.contains("one scale per vocabulary row"),
                "{error}"
            );
        }
        let mut weights: Value = serde_json::from_str(INT8).unwrap();
        weights["group_size"] = json!(-1);
        assert_eq!(of(json!({"g": {"targets": ["Linear"], "weights": weights}})), Ok(Activations::Float));
    }

    #[test]
    fn the_group_that_names_the_head_speaks() {
        let weights: Value = serde_json::from_str(INT8).unwrap();
        let token =
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true});
        let static_ = json!({"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": false});
        let group = |target: &str, inputs: &Value| json!({"targets": [target], "weights": weights, "input_activations": inputs});
        let (null, float8) =
            (json!(null), json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}));
        use Activations::*;
        let other = Other("num_bits 8, type int, dynamic false, strategy tensor".into());
        for (groups, want) in [
            (json!({"a": group("Linear", &token)}), Int8PerRow),
            (json!({"a": group("Linear", &null)}), Float),
            (json!({"a": {"targets": ["Linear"], "weights": weights}}), Float),
            (json!({"a": group("Linear", &token), "b": group("lm_head", &null)}), Float),
            (json!({"a": group("re:.*lm_head$", &token), "b": group("Linear", &null)}), Int8PerRow),
            (json!({"a": group("re:(?!.*lm_head).*", &token), "b": group("Linear", &null)}), Float),
            (json!({"a": group("re:.*", &token), "b": group("re:.*mlp.*", &null)}), Int8PerRow),
            (json!({"a": group("re:.*mlp.*", &token), "b": group("re:.*attn.*", &token)}), Unstated),
            (json!({"a": group("re:.*_head", &token)}), Int8PerRow),
            (json!({"a": group("Linear", &static_)}), other),
            (
                json!({"a": group("Linear", &float8)}),
                Other("num_bits 8, type float, dynamic true, strategy token".into()),
            ),
            (json!({"W8A8": ["Linear"]}), Int8PerRow),
            (json!({"W8A16": ["Linear"]}), Float),
            (json!({}), Unstated),
            (json!([]), Unstated),
        ] {
            assert_eq!(of(groups.clone()).unwrap(), want, "{groups}");
        }
        assert_eq!(activations(None, "lm_head").unwrap(), Unstated);
        let ignored = json!({"config_groups": {"a": group("Linear", &token)}, "ignore": ["lm_head"]});
        assert_eq!(activations(Some(&ignored), "model.lm_head").unwrap(), Unstated);
        assert_eq!(activations(Some(&json!("int8")), "lm_head").unwrap(), Unstated);
    }

    #[test]
    fn weights_of_other_kinds_are_refused_with_the_key() {
        for (field, value, wanted) in [
            ("num_bits", json!(4), "8"),
            ("type", json!("float"), "int"),
            ("symmetric", json!(false), "true"),
        ] {
            let mut weights: Value = serde_json::from_str(INT8).unwrap();
            weights[field] = value.clone();
            let text =
                of(json!({"group_0": {"targets": ["Linear"], "weights": weights}})).unwrap_err().to_string();
            let want = format!(
                "quantization_config.config_groups.group_0.weights.{field}: wanted {wanted}, got {value}; only"
            );
            assert!(text.starts_with(&want), "{text}");
        }
        assert!(of(json!({"W4A16": ["Linear"]})).unwrap_err().to_string().contains("got W4A16"));
    }
}
