//! What is wrong with a settings file, from the messages of serde and of the parsers.

use super::Settings;
use crate::error::Error;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The error for TOML. `name` is the file's, or says what the text is.
pub(super) fn toml(name: &str, text: &str, mut error: toml::de::Error) -> Error {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    let message = error.message().to_string();
    // Without the text, the parser adds the key to its message, in place of a picture.
    error.set_input(None);
    let told = error.to_string();
    let key = told.trim_end().rsplit_once("\nin `").and_then(|(_, key)| key.strip_suffix('`'));
    explained(&format!("{name}, line {line}"), key.unwrap_or_default(), &message)
}

/// The error for JSON.
pub(super) fn json(name: &str, text: &str, error: &serde_json::Error) -> Error {
    let told = error.to_string();
    let message = told.rsplit_once(" at line ").map_or(&*told, |(message, _)| message);
    let key = culprit(text).unwrap_or_default();
    explained(&format!("{name}, line {}", error.line().max(1)), &key, message)
}

/// The setting of a JSON object that is refused.
fn culprit(text: &str) -> Option<String> {
    let all: Map<String, Value> = serde_json::from_str(text).ok()?;
    all.into_iter().find_map(|(key, value)| {
        let alone: Map<String, Value> = [(key.clone(), value)].into_iter().collect();
        Settings::deserialize(Value::Object(alone)).is_err().then_some(key)
    })
}

/// The error for a message of serde or of a parser. `key` is the setting that it is about, or empty.
fn explained(place: &str, key: &str, message: &str) -> Error {
    let what = if key.is_empty() { place.to_string() } else { format!("{place}: {key}") };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = rest.split('`').skip(1).step_by(2);
        let got = names.next().unwrap_or_default();
        let fix = match nearest(got, names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "correct or remove it".into(),
        };
        let what = if key == got { place.to_string() } else { what };
        return Error::config(what, "a key of docs/configuration.md", format!("`{got}`"), fix);
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return Error::config(what, field, "none", "add it");
    }
    // As in `invalid type: string "x", expected u64`, or toml's own `wanted string or table`.
    let (got, wanted) = match (message.rsplit_once(", expected "), message.strip_prefix("wanted ")) {
        (Some(parts), _) => parts,
        (None, Some(wanted)) => ("another type", wanted),
        (None, None) => (message, "what docs/configuration.md says"),
    };
    let wanted = match wanted {
        "u32" | "u64" | "usize" if key.ends_with("_ms") => "a whole number of milliseconds",
        "u32" | "u64" | "usize" => "a whole number of at least 0",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        other => other,
    };
    let value = ["invalid type: ", "invalid value: ", "unknown variant "]
        .iter()
        .find_map(|kind| got.strip_prefix(kind));
    let got = value.map_or(got, |value| value.find(['"', '`']).map_or(value, |at| &value[at..]));
    Error::config(what, wanted, got, "correct it")
}

/// The name that differs from `word` in the fewest letters, if not more than a third of them.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Levenshtein's distance, a row of its table at a time.
    let distance = |name: &str| {
        let mut row: Vec<usize> = (0..=name.len()).collect();
        for (i, a) in word.bytes().enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in name.bytes().enumerate() {
                let here = (diagonal + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
                diagonal = std::mem::replace(&mut row[j + 1], here);
            }
        }
        row[name.len()]
    };
    let near = names.map(|name| (distance(name), name)).filter(|(letters, _)| *letters <= word.len() / 3);
    near.min().map(|(_, name)| name)
}
