//! JSON as Python's `json` module reads it, for files that Python wrote: `NaN`, `Infinity`, `-Infinity`,
//! numbers that overflow, half surrogates, and a byte-order mark at the start.

use serde_json::Value;

/// Reads JSON that Python wrote. Values that JSON has no number for become strings (`"Infinity"`), so that
/// the error of a key that must be finite shows the word in the file.
///
/// # Errors
/// As `serde_json`; columns are counted in the text after this translation.
pub(crate) fn from_str(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(&to_strict(text.strip_prefix('\u{feff}').unwrap_or(text)))
}

/// The same document in strict JSON.
fn to_strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '"' => string_length(rest),
            '-' | '0'..='9' | 'N' | 'I' => {
                let end = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
                rest.find(end).unwrap_or(rest.len())
            }
            other => other.len_utf8(),
        };
        let (token, after) = rest.split_at(taken);
        match token {
            "NaN" | "Infinity" | "-Infinity" => out.extend(["\"", token, "\""]),
            _ if first == '"' => push_string(&mut out, token),
            // A number too large for f64. It must end in a digit: Rust's parser also takes "inf" and
            // "infinity".
            _ if token.parse::<f64>().is_ok_and(f64::is_infinite)
                && token.ends_with(|c: char| c.is_ascii_digit()) =>
            {
                out.push_str(if first == '-' { "\"-Infinity\"" } else { "\"Infinity\"" });
            }
            _ => out.push_str(token),
        }
        rest = after;
    }
    out
}

/// Bytes of the string that `text` begins with, quotes included; all of `text` where it is not closed.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Appends a string with half surrogates replaced by U+FFFD: Python accepts them, UTF-8 cannot hold them.
fn push_string(out: &mut String, token: &str) {
    let mut rest = token;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        out.push_str(&rest[..at]);
        let unit = |text: &str| {
            let digits = text.strip_prefix("\\u")?.get(..4)?;
            u16::from_str_radix(digits, 16).ok()
        };
        let taken = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push_str("\\ufffd");
                rest = &escape[6..];
                continue;
            }
            // Takes the character behind the backslash, too: it may be another backslash.
            _ => 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&escape[..taken]);
        rest = &escape[taken..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_python_writes_is_read() {
        for (text, want) in [
            (r#"{"a": [0.0, Infinity]}"#, json!({"a": [0.0, "Infinity"]})),
            (r#"{"a": -Infinity, "b": NaN}"#, json!({"a": "-Infinity", "b": "NaN"})),
            ("\u{feff}{}", json!({})),
            (r#"{"NaN": "Infinity, \" NaN", "b": "\\"}"#, json!({"NaN": "Infinity, \" NaN", "b": "\\"})),
            (r#"[1e999, -1e999, 1e3, -0.5E-2, 12]"#, json!(["Infinity", "-Infinity", 1e3, -0.5e-2, 12])),
            (
                r#"["\ud83d\ude00", "\ud83d", "x\udc00\\u", "\\ud83d"]"#,
                json!(["😀", "\u{fffd}", "x\u{fffd}\\u", "\\ud83d"]),
            ),
            ("[true, false, null, \"é\"]", json!([true, false, null, "é"])),
        ] {
            assert_eq!(from_str(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in
            ["", "{", "[1,]", "inf", "nan", "-nan", "+1", "[NaNa]", "\"a", "{'a': 1}", "infinity", "[-inf]"]
        {
            assert!(from_str(text).is_err(), "{text}");
        }
    }
}
