//! The options of `--request sample` and `sample:N`, which `lmhead run` and `lmhead plan` share.

use crate::args::word;
use crate::values::{Parser, at_least_zero, refused};
use clap::Args;
use lmhead::error::{Error, Result};
use lmhead::result::{Request, TokenLogprobs};
use lmhead::sampling::SamplingParams;

#[derive(Args)]
#[command(next_help_heading = "Sampling (--request sample)")]
pub struct SamplingArgs {
    /// 0 takes the largest logit, 1 the model's distribution, more flattens it [default: 1]
    #[arg(
        long,
        value_name = "T",
        value_parser = probability("--temperature", |params, value| params.temperature = value)
    )]
    pub temperature: Option<f32>,
    /// Only the K largest logits; 0: all [default: 0]
    #[arg(long, value_name = "K", value_parser = at_least_zero("--top-k", "0 keeps all ids"))]
    pub top_k: Option<usize>,
    /// Only the most probable ids that together have this probability, above 0, at most 1 [default: 1]
    #[arg(
        long,
        value_name = "P",
        value_parser = probability("--top-p", |params, value| params.top_p = value)
    )]
    pub top_p: Option<f32>,
    /// Only ids at least this probable relative to the most probable one, from 0 to 1 [default: 0]
    #[arg(
        long,
        value_name = "P",
        value_parser = probability("--min-p", |params, value| params.min_p = value)
    )]
    pub min_p: Option<f32>,
}

/// Parser of a sampling parameter; [`SamplingParams`] decides what is legal.
fn probability(option: &'static str, set: fn(&mut SamplingParams, f32)) -> impl Parser<f32> {
    move |text| {
        let wide: f64 = text.parse().map_err(|_| refused(option, "a number", text, "write it as in 0.8"))?;
        let value = wide as f32;
        if wide != 0.0 && value == 0.0 {
            let wanted = "0, or a number that f32 tells from 0";
            return Err(refused(option, wanted, text, "use 0 or a larger one"));
        }
        let mut params = SamplingParams::default();
        set(&mut params, value);
        params.check(0).map_err(|error| match error {
            Error::Request { wanted, fix, .. } => refused(option, &wanted, text, &fix),
            other => other,
        })?;
        Ok(value)
    }
}

impl SamplingArgs {
    /// The options that are given.
    pub fn given(&self) -> Vec<&'static str> {
        [
            ("--temperature", self.temperature.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
        ]
        .into_iter()
        .filter_map(|(option, given)| given.then_some(option))
        .collect()
    }

    /// The parameters of every row where `request` is `sample`; `None` where it is another one.
    pub fn params(&self, request: &Request, seed: u64) -> Result<Option<SamplingParams>> {
        if !matches!(request, Request::Sample { .. }) {
            let (wanted, fix) = ("--request sample beside it", "it says how tokens are sampled");
            return match self.given().first() {
                None => Ok(None),
                Some(option) => Err(refused(option, wanted, &word(request), fix)),
            };
        }
        let default = SamplingParams::default();
        Ok(Some(SamplingParams {
            seed,
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            ..default
        }))
    }
}

/// The request's name in reports. `own` are the parameters that each row has for itself.
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
    let logprobs = match request {
        Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed }) } => {
            let logprobs = if *processed { "processed logprobs" } else { "logprobs" };
            let best = match top_n {
                0 => String::new(),
                1 => " and of the best id".into(),
                n => format!(" and of the {n} best ids"),
            };
            format!(", with {logprobs} of the token{best}")
        }
        _ => String::new(),
    };
    format!("sample{logprobs}; {}", words.join(", "))
}
