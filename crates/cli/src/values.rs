//! Parsers of option values, which clap calls. Each error names the option, what was wanted, what came and
//! what to do; `main` prints it like the library's own errors.

use lmhead::config::{LmheadTpSize, Quantization};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};

/// Most threads that a backend takes.
const MAX_THREADS: usize = 1024;

pub fn refused(option: &str, wanted: &str, got: &str, fix: &str) -> Error {
    Error::Config { key: option.into(), wanted: wanted.into(), got: format!("`{got}`"), fix: fix.into() }
}

/// The error where of several options not exactly one is given; `got`: "none" or "several".
pub fn one_of(options: &str, got: &str, fix: &str) -> Error {
    Error::Config { key: options.into(), wanted: "one of them".into(), got: got.into(), fix: fix.into() }
}

/// A parser of one option's value.
pub trait Parser<T>: Fn(&str) -> Result<T> + Clone + Send + Sync + 'static {}
impl<T, F: Fn(&str) -> Result<T> + Clone + Send + Sync + 'static> Parser<T> for F {}

pub fn at_least_one(option: &'static str) -> impl Parser<usize> {
    move |text| match text.parse() {
        Ok(0) | Err(_) => Err(refused(option, "a whole number of at least 1", text, "pass such a number")),
        Ok(n) => Ok(n),
    }
}

pub fn at_least_zero(option: &'static str, fix: &'static str) -> impl Parser<usize> {
    move |text| text.parse().map_err(|_| refused(option, "a whole number of at least 0", text, fix))
}

/// A whole number from 1 to `most`.
pub fn at_most(option: &'static str, most: usize, fix: &'static str) -> impl Parser<usize> {
    move |text| match at_least_one(option)(text)? {
        n if n > most => Err(refused(option, &format!("1 to {most}"), text, fix)),
        n => Ok(n),
    }
}

pub fn threads(text: &str) -> Result<usize> {
    match at_least_one("--threads")(text)? {
        n if n > MAX_THREADS => Err(Error::Config {
            key: "--threads".into(),
            wanted: format!("1 to {MAX_THREADS}"),
            got: n.to_string(),
            fix: "leave it out to use every CPU".into(),
        }),
        n => Ok(n),
    }
}

pub fn seed(text: &str) -> Result<u64> {
    let wanted = "a whole number from 0 to 18446744073709551615";
    text.parse().map_err(|_| refused("--seed", wanted, text, "0 is the default"))
}

/// A machine's speed or latency: a finite number.
pub fn speed(option: &'static str) -> impl Parser<f64> {
    let (wanted, fix) = ("a finite number, at least 0", "write it as in 360 or 12.5");
    move |text| {
        let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
        number.ok_or_else(|| refused(option, wanted, text, fix))
    }
}

/// One entry of --rows.
pub fn row_count(text: &str) -> Result<usize> {
    let wanted = "row counts of at least 0, separated by commas";
    text.trim().parse().map_err(|_| refused("--rows", wanted, text, "write it as in --rows 7,0,12,9"))
}

/// `1 entry`, `3 entries`.
fn listed(n: usize) -> String {
    if n == 1 { "1 entry".into() } else { format!("{n} entries") }
}

/// The number of data-parallel ranks by --dp and the entries of --rows; 1 where neither is given.
///
/// # Errors
/// `Shape` where they differ.
pub fn dp_ranks(dp: Option<usize>, rows: Option<&[usize]>) -> Result<usize> {
    match (dp, rows.map(<[usize]>::len)) {
        (Some(dp), Some(entries)) if entries != dp => Err(Error::Shape {
            what: "--rows".into(),
            wanted: format!("{}, one for each of --dp {dp}", listed(dp)),
            got: listed(entries),
            fix: "list every dp rank's rows, idle ones as 0".into(),
        }),
        (dp, entries) => Ok(dp.or(entries).unwrap_or(1)),
    }
}

pub fn lmhead_tp_size(text: &str) -> Result<LmheadTpSize> {
    let wanted = "auto, -1 (the tensor-parallel size) or a number of ranks";
    text.parse().map_err(|_| refused("--lmhead-tp-size", wanted, text, "use auto where unsure"))
}

pub fn quantization(text: &str) -> Result<Quantization> {
    text.parse().map_err(|_| refused("--quantize", "none, w8a8 or w8a16", text, "use one of those"))
}

/// A float type.
pub fn float(option: &'static str, fix: &'static str) -> impl Parser<DType> {
    move |text| match text.parse() {
        Ok(dtype @ (DType::F32 | DType::Bf16 | DType::F16)) => Ok(dtype),
        _ => Err(refused(option, "f32, bf16 or f16", text, fix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_name_the_option() {
        let said = |error: Error| error.to_string();
        assert!(
            said(at_least_one("--dp")("0").unwrap_err())
                .contains("--dp: wanted a whole number of at least 1")
        );
        assert!(
            said(at_most("--reps", 3, "use 1")("4").unwrap_err()).contains("--reps: wanted 1 to 3, got `4`")
        );
        assert!(said(speed("--tflops")("nan").unwrap_err()).contains("--tflops: wanted a finite number"));
        assert!(said(row_count("").unwrap_err()).contains("--rows: wanted row counts"));
        assert!(
            said(float("--weights", "")("e4m3").unwrap_err()).contains("--weights: wanted f32, bf16 or f16")
        );
    }
}
