//! The options of `--request sample` and `sample:N`, which `lmhead run` and `lmhead plan` share.

use crate::args::refused;
use clap::Args;
use lmhead::error::{Error, Result};
use lmhead::result::Request;
use lmhead::sampling::SamplingParams;

#[derive(Args)]
pub struct SamplingArgs {
    /// 0 takes the largest logit, 1 the model's distribution, more flattens it [default: 1]
    #[arg(long, value_name = "T", help_heading = "Sampling (--request sample)", allow_hyphen_values = true)]
    pub temperature: Option<String>,
    /// Only the K largest logits; 0: all [default: 0]
    #[arg(long, value_name = "K", help_heading = "Sampling (--request sample)", allow_hyphen_values = true)]
    pub top_k: Option<String>,
    /// Only the most probable ids that together have this probability, above 0, at most 1 [default: 1]
    #[arg(long, value_name = "P", help_heading = "Sampling (--request sample)", allow_hyphen_values = true)]
    pub top_p: Option<String>,
    /// Only ids at least this probable relative to the most probable one, from 0 to 1 [default: 0]
    #[arg(long, value_name = "P", help_heading = "Sampling (--request sample)", allow_hyphen_values = true)]
    pub min_p: Option<String>,
}

impl SamplingArgs {
    fn options(&self) -> [(&'static str, &Option<String>); 4] {
        [
            ("--temperature", &self.temperature),
            ("--top-k", &self.top_k),
            ("--top-p", &self.top_p),
            ("--min-p", &self.min_p),
        ]
    }

    /// The options that are given.
    pub fn given(&self) -> Vec<&'static str> {
        let given = self.options().into_iter().filter(|(_, text)| text.is_some());
        given.map(|(option, _)| option).collect()
    }

    /// How every row is sampled where `request` is `sample`; `None` where it is another one.
    pub fn params(&self, request: &str, seed: u64) -> Result<Option<SamplingParams>> {
        let options = self.options();
        if request != "sample" && !request.starts_with("sample:") {
            let given = options.iter().find(|(_, text)| text.is_some());
            let (wanted, fix) = ("--request sample beside it", "it says how tokens are sampled");
            return given.map_or(Ok(None), |(option, _)| Err(refused(option, wanted, request, fix)));
        }
        let number = |option: &str, text: &Option<String>, default: f32| {
            let Some(text) = text else { return Ok(default) };
            let wide: f64 =
                text.parse().map_err(|_| refused(option, "a number", text, "write it as in 0.8"))?;
            if wide != 0.0 && wide as f32 == 0.0 {
                return Err(refused(
                    option,
                    "0, or a number that f32 tells from 0",
                    text,
                    "use 0 or a larger one",
                ));
            }
            Ok(wide as f32)
        };
        let mut params = SamplingParams { seed, ..SamplingParams::default() };
        if let Some(text) = &self.top_k {
            params.top_k = text
                .parse()
                .map_err(|_| refused("--top-k", "a whole number of at least 0", text, "0 keeps all ids"))?;
        }
        // One after the other, so that the rule that is broken is the option's.
        for (option, text) in options {
            let checked = match option {
                "--temperature" => {
                    SamplingParams { temperature: number(option, text, params.temperature)?, ..params }
                }
                "--top-p" => SamplingParams { top_p: number(option, text, params.top_p)?, ..params },
                "--min-p" => SamplingParams { min_p: number(option, text, params.min_p)?, ..params },
                _ => params,
            };
            let text = text.as_deref().unwrap_or_default();
            checked.check(0).map_err(|error| match error {
                Error::Request { wanted, fix, .. } => refused(option, &wanted, text, &fix),
                other => other,
            })?;
            params = checked;
        }
        Ok(Some(params))
    }
}

/// The request as reports name it. `own` are the parameters that each row has for itself.
pub fn words(request: &Request, sampling: Option<&SamplingParams>, own: &[&str]) -> String {
    let Some(SamplingParams { seed, temperature, top_k, top_p, min_p, .. }) = sampling else {
        return request.to_string();
    };
    let mut words: Vec<String> = [
        ("temperature", temperature.to_string()),
        ("top_k", top_k.to_string()),
        ("top_p", top_p.to_string()),
        ("min_p", min_p.to_string()),
        ("seed", seed.to_string()),
    ]
    .into_iter()
    .filter(|(name, _)| !own.contains(name))
    .map(|(name, value)| format!("{name} {value}"))
    .collect();
    if !own.is_empty() {
        words.push(format!("each row's own {}", own.join(", ")));
    }
    format!("{request}: {}", words.join(", "))
}
