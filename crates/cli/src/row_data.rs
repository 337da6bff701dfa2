//! The optional tensors of `--hidden`: data of single output rows, numbered over all ranks.

use lmhead::adjust::{Adjustments, Counts, LogitBias, Penalties};
use lmhead::error::{Error, Result};
use lmhead::result::{NO_TARGET_ID, Request, RowInputs, TokenLogprobs};
use lmhead::rows;
use lmhead::sampling::SamplingParams;
use lmhead::weights::SafetensorsFile;
use safetensors::Dtype;

/// The optional tensors of `--hidden`, `n` output rows.
#[derive(Default)]
pub struct RowData {
    /// `targets`, `[n, targets of a row]`; read for the requests that need them.
    targets: Option<Targets>,
    /// `allowed`, `[n, ceil(vocab / 32)]`.
    allowed: Option<Vec<i32>>,
    /// `adjust_rows`, `adjust_ids` and `adjust_values`, by row.
    logit_bias: Option<OwnLogitBias>,
    /// `repetition_penalty`, `frequency_penalty`, `presence_penalty`, and `count_*` by row.
    penalties: Option<OwnPenalties>,
    /// Sampling parameters of the output rows.
    sampling: Option<Vec<SamplingParams>>,
    /// The sampling parameters that the file has a tensor for.
    own_sampling: Vec<&'static str>,
    words: usize,
    /// Notes for the user on the tensors.
    notes: Vec<String>,
}

struct Targets {
    ids: Vec<i64>,
    of_a_row: usize,
}

struct OwnLogitBias {
    /// `[n + 1]`
    offsets: Vec<usize>,
    ids: Vec<i64>,
    values: Vec<f32>,
}

struct OwnPenalties {
    /// Each `[n]`.
    repetition: Vec<f32>,
    frequency: Vec<f32>,
    presence: Vec<f32>,
    /// `[n + 1]`
    offsets: Vec<usize>,
    ids: Vec<i64>,
    counts: Vec<u32>,
    in_prompt: Vec<bool>,
}

impl RowData {
    /// Reads the tensors that the file has, and checks them against `n` output rows. `sampling` is how rows
    /// are sampled where the file does not say; `given` are the options that set it.
    pub fn read(
        file: &SafetensorsFile,
        n: usize,
        vocab_size: usize,
        request: &Request,
        sampling: Option<SamplingParams>,
        given: &[&'static str],
    ) -> Result<Self> {
        let words = vocab_size.div_ceil(32);
        let logprobs = matches!(request, Request::Logprobs { .. });
        // Raw logprobs are the model's own: adjustments do not touch them.
        let raw = matches!(request, Request::Logprobs { processed: false, .. });
        let mut notes = Vec::new();
        let (sampling, own_sampling) = match sampling {
            Some(params) => sampling_of(file, n, params, given)?,
            None => (None, Vec::new()),
        };
        let mut data = RowData {
            targets: if logprobs { Some(targets(file, n, vocab_size)?) } else { None },
            allowed: allowed(file, n, vocab_size, &mut notes)?,
            logit_bias: logit_bias(file, n)?,
            penalties: penalties(file, n)?,
            sampling,
            own_sampling,
            words,
            notes,
        };
        data.with(|inputs| inputs.adjustments.map_or(Ok(()), |a| a.check(n, vocab_size)))
            .map_err(|error| with_tensor_names(file, error))?;
        if raw && data.is_adjusted() {
            (data.allowed, data.logit_bias, data.penalties) = (None, None, None);
            data.notes = vec![ADJUSTMENTS_IGNORED.into()];
        }
        if matches!(request, Request::Sample { logprobs: Some(TokenLogprobs { processed: false, .. }) })
            && data.is_adjusted()
        {
            data.notes.push(ADJUSTMENTS_IGNORED.into());
        }
        Ok(data)
    }

    /// The data of a run without a file: seeded targets for the requests that need them.
    pub fn synthetic(seed: u64, n: usize, vocab_size: usize, request: &Request) -> Self {
        let target = |row: usize| {
            let z = (seed ^ (row as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) % vocab_size as u64) as i64
        };
        let wanted = matches!(request, Request::Logprobs { .. });
        let targets = wanted.then(|| Targets { ids: (0..n).map(target).collect(), of_a_row: 1 });
        RowData { targets, ..RowData::default() }
    }

    /// Samples each of `n` rows with the same parameters, at its own position.
    pub fn sampled(self, params: Option<SamplingParams>, n: usize) -> Self {
        RowData { sampling: params.map(|params| params_at_positions(params, n)), ..self }
    }

    /// The request with the number of targets that a row has here.
    pub fn asked(&self, request: Request) -> Request {
        match (request, &self.targets) {
            (Request::Logprobs { top_n, processed, .. }, Some(own)) => {
                Request::Logprobs { targets: own.of_a_row, top_n, processed }
            }
            (other, _) => other,
        }
    }

    /// Notes for the user on the tensors, such as those that this run does not use.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The sampling parameters that each row has for itself.
    pub fn own_sampling(&self) -> &[&'static str] {
        &self.own_sampling
    }

    pub fn is_adjusted(&self) -> bool {
        self.allowed.is_some() || self.logit_bias.is_some() || self.penalties.is_some()
    }

    /// The data of the output rows `places`, in that order.
    pub fn of(&self, places: &[usize]) -> RowData {
        fn each<T: Copy>(places: &[usize], of_all: &[T]) -> Vec<T> {
            places.iter().map(|&row| of_all[row]).collect()
        }
        /// The entries of the rows, which are `offsets[row]..offsets[row + 1]` of `of_all`.
        fn entries<T: Copy>(places: &[usize], offsets: &[usize], of_all: &[T]) -> Vec<T> {
            places.iter().flat_map(|&row| &of_all[offsets[row]..offsets[row + 1]]).copied().collect()
        }
        let offsets_of = |offsets: &[usize]| {
            let mut end = 0;
            let lengths = places.iter().map(|&row| offsets[row + 1] - offsets[row]);
            let ends = lengths.map(|length| {
                end += length;
                end
            });
            std::iter::once(0).chain(ends).collect()
        };
        let words = |mask: &Vec<i32>| {
            places.iter().flat_map(|&row| &mask[row * self.words..(row + 1) * self.words]).copied().collect()
        };
        RowData {
            targets: self.targets.as_ref().map(|all| Targets {
                ids: places.iter().flat_map(|&row| all.of(row)).copied().collect(),
                of_a_row: all.of_a_row,
            }),
            allowed: self.allowed.as_ref().map(words),
            logit_bias: self.logit_bias.as_ref().map(|all| OwnLogitBias {
                offsets: offsets_of(&all.offsets),
                ids: entries(places, &all.offsets, &all.ids),
                values: entries(places, &all.offsets, &all.values),
            }),
            penalties: self.penalties.as_ref().map(|all| OwnPenalties {
                repetition: each(places, &all.repetition),
                frequency: each(places, &all.frequency),
                presence: each(places, &all.presence),
                offsets: offsets_of(&all.offsets),
                ids: entries(places, &all.offsets, &all.ids),
                counts: entries(places, &all.offsets, &all.counts),
                in_prompt: entries(places, &all.offsets, &all.in_prompt),
            }),
            sampling: self.sampling.as_ref().map(|all| each(places, all)),
            own_sampling: self.own_sampling.clone(),
            words: self.words,
            notes: Vec::new(),
        }
    }

    /// Passes the data on in the library's form.
    pub fn with<T>(&self, use_them: impl FnOnce(RowInputs) -> T) -> T {
        let logit_bias = self.logit_bias.as_ref().map(|a| LogitBias {
            offsets: &a.offsets,
            ids: &a.ids,
            values: &a.values,
        });
        let penalties = self.penalties.as_ref().map(|p| Penalties {
            repetition: &p.repetition,
            frequency: &p.frequency,
            presence: &p.presence,
            counts: Counts { offsets: &p.offsets, ids: &p.ids, counts: &p.counts, in_prompt: &p.in_prompt },
        });
        let adjustments = Adjustments { allowed: self.allowed.as_deref(), logit_bias, penalties };
        use_them(RowInputs {
            targets: self.targets.as_ref().map(|all| &all.ids[..]),
            sampling: self.sampling.as_deref(),
            adjustments: self.is_adjusted().then_some(adjustments),
            ..RowInputs::default()
        })
    }
}

impl Targets {
    fn of(&self, row: usize) -> &[i64] {
        &self.ids[row * self.of_a_row..(row + 1) * self.of_a_row]
    }
}

/// A row's position is its index among the output rows.
fn params_at_positions(params: SamplingParams, n: usize) -> Vec<SamplingParams> {
    (0..n as u64).map(|position| SamplingParams { position, ..params }).collect()
}

const ADJUSTMENTS_IGNORED: &str = "--hidden holds adjustments, which raw logprobs leave aside; --processed asks for those of the adjusted logits";

/// Most targets of a row that the library takes.
const MAX_TARGETS: usize = 0xffff;

fn targets(file: &SafetensorsFile, n: usize, vocab_size: usize) -> Result<Targets> {
    let fix = "store the ids whose logprobs are wanted";
    if !file.contains("targets") {
        let wanted = format!("i64 or i32 [{n}] or [{n}, m], which --request logprobs needs");
        return Err(refused(file, "targets", wanted, "none".into(), fix));
    }
    let info = file.tensor("targets")?;
    let of_a_row = match info.shape[..] {
        [rows] if rows == n => Some(1),
        [rows, m] if rows == n && (1..=MAX_TARGETS).contains(&m) => Some(m),
        _ => None,
    };
    let bytes = file.bytes("targets")?;
    let ids: Option<Vec<i64>> = match info.dtype {
        Dtype::I64 => Some(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        Dtype::I32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
        _ => None,
    };
    let (Some(of_a_row), Some(ids)) = (of_a_row, ids) else {
        let wanted =
            format!("i64 or i32 [{n}], one id for each output row, or [{n}, m], m from 1 to {MAX_TARGETS}");
        return Err(refused(file, "targets", wanted, info.to_string(), fix));
    };
    let refused_id =
        |id: &i64| *id != NO_TARGET_ID && usize::try_from(*id).map_or(true, |id| id >= vocab_size);
    if let Some(at) = ids.iter().position(refused_id) {
        let wanted = format!("ids from 0 to {}, or {NO_TARGET_ID} for none", vocab_size - 1);
        let got = format!("{} in row {}", ids[at], at / of_a_row);
        return Err(refused(file, "targets", wanted, got, "store ids of this head's vocabulary"));
    }
    Ok(Targets { ids, of_a_row })
}

/// The mask, truncated or zero-extended to the words of the vocabulary. Masks are as wide as a tokenizer,
/// which may have fewer or more ids than the head has rows. Ids beyond a mask are not allowed, since no
/// grammar has them. (xgrammar's own kernels leave such ids as they are and warn, because a token sampled
/// from them breaks the grammar; llguidance's forbid them.)
fn allowed(
    file: &SafetensorsFile,
    n: usize,
    vocab_size: usize,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<i32>>> {
    if !file.contains("allowed") {
        return Ok(None);
    }
    let words = vocab_size.div_ceil(32);
    let info = file.tensor("allowed")?;
    let own = match info.shape.as_slice() {
        &[rows, own] if info.dtype == Dtype::I32 && rows == n && own > 0 => own,
        _ => {
            let wanted = format!("i32 [{n}, {words}], a row of bits for each output row");
            let fix = "write bit id % 32 of word id / 32 for each id";
            return Err(refused(file, "allowed", wanted, info.to_string(), fix));
        }
    };
    let read = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut mask = Vec::with_capacity(n * words);
    for row in file.bytes("allowed")?.chunks(own * 4) {
        mask.extend(row.chunks(4).take(words).map(read));
        mask.extend(std::iter::repeat_n(0, words.saturating_sub(own)));
    }
    if own < words {
        let covered = own * 32;
        notes.push(format!(
            "--hidden's mask `allowed` covers {covered} ids, the vocabulary has {vocab_size}: ids {covered} to {} are not \
             allowed",
            vocab_size - 1
        ));
    } else if own > words {
        notes.push(format!(
            "--hidden's mask `allowed` covers {} ids, the vocabulary has {vocab_size}: what it says of ids beyond is not \
             used",
            own * 32
        ));
    }
    Ok(Some(mask))
}

fn logit_bias(file: &SafetensorsFile, n: usize) -> Result<Option<OwnLogitBias>> {
    let names = ["adjust_rows", "adjust_ids", "adjust_values"];
    if names.iter().all(|name| !file.contains(name)) {
        return Ok(None);
    }
    let rows_of = file.indices("adjust_rows")?;
    let ids = entries(file, "adjust_ids", "adjust_rows", rows_of.len())?;
    let info = file.tensor("adjust_values")?;
    if info.dtype != Dtype::F32 || info.shape != [rows_of.len()] {
        let wanted = format!("f32 [{}], as many as adjust_rows", rows_of.len());
        let fix = "store one value for each row and id";
        return Err(refused(file, "adjust_values", wanted, info.to_string(), fix));
    }
    let values: Vec<f32> =
        file.bytes("adjust_values")?.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let (offsets, order) = by_row(file, "adjust_rows", &rows_of, n)?;
    Ok(Some(OwnLogitBias {
        offsets,
        ids: order.iter().map(|&at| ids[at]).collect(),
        values: order.iter().map(|&at| values[at]).collect(),
    }))
}

/// `[length]` integers, one for each entry of `rows`.
fn entries(file: &SafetensorsFile, name: &str, rows: &str, length: usize) -> Result<Vec<i64>> {
    let values = file.indices(name)?;
    if values.len() != length {
        let (wanted, got) = (format!("[{length}], as many as {rows}"), format!("[{}]", values.len()));
        return Err(refused(file, name, wanted, got, "store one for each row and id"));
    }
    Ok(values)
}

/// Groups entries by the rows that they name: the offsets of each row, and the order of the entries, stable
/// within a row.
fn by_row(file: &SafetensorsFile, name: &str, rows_of: &[i64], n: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let what = format!("{}: {name}", file.path().display());
    let rows_of = rows::row_numbers(&what, rows_of, n)?;
    let mut order: Vec<usize> = (0..rows_of.len()).collect();
    order.sort_by_key(|&at| rows_of[at]);
    let offsets = (0..=n).map(|row| order.partition_point(|&at| rows_of[at] < row)).collect();
    Ok((offsets, order))
}

const COUNTS: [&str; 4] = ["count_rows", "count_ids", "count_values", "count_in_prompt"];

fn penalties(file: &SafetensorsFile, n: usize) -> Result<Option<OwnPenalties>> {
    let kinds = [("repetition_penalty", 1.0), ("frequency_penalty", 0.0), ("presence_penalty", 0.0)];
    let penalty = kinds.iter().find(|(name, _)| file.contains(name));
    let count = COUNTS.iter().find(|name| file.contains(name));
    // Either without the other has no effect, which is surely not what was meant.
    let lone = |present: &str, missing: &str, fix: &str| {
        Err(refused(file, missing, format!("it beside {present}"), "none".into(), fix))
    };
    match (penalty, count) {
        (None, None) => return Ok(None),
        (Some((name, _)), None) => {
            return lone(name, COUNTS[0], "store the ids that came before, or leave out the penalty");
        }
        (None, Some(name)) => {
            return lone(
                name,
                "repetition_penalty, frequency_penalty or presence_penalty",
                "store one of them",
            );
        }
        (Some(_), Some(_)) => {}
    }
    let [repetition, frequency, presence] = kinds.map(|(name, neutral)| match file.contains(name) {
        true => floats(file, name, n),
        false => Ok(vec![neutral; n]),
    });
    let rows_of = file.indices(COUNTS[0])?;
    let ids = entries(file, COUNTS[1], COUNTS[0], rows_of.len())?;
    let counts = entries(file, COUNTS[2], COUNTS[0], rows_of.len())?;
    if let Some(at) = counts.iter().position(|n| u32::try_from(*n).is_err()) {
        let (wanted, got) = ("counts of at least 0".into(), format!("{} at position {at}", counts[at]));
        return Err(refused(file, COUNTS[2], wanted, got, "count the tokens of the output"));
    }
    let in_prompt = match file.contains(COUNTS[3]) {
        false => vec![false; rows_of.len()],
        true => {
            let info = file.tensor(COUNTS[3])?;
            let bytes = file.bytes(COUNTS[3])?;
            let known = matches!(info.dtype, Dtype::BOOL | Dtype::U8) && bytes.iter().all(|b| *b <= 1);
            if !known || info.shape != [rows_of.len()] {
                let wanted = format!("bool (or u8 of 0 and 1) [{}], as many as {}", rows_of.len(), COUNTS[0]);
                return Err(refused(
                    file,
                    COUNTS[3],
                    wanted,
                    info.to_string(),
                    "store whether the prompt has the id",
                ));
            }
            bytes.iter().map(|b| *b == 1).collect()
        }
    };
    let (offsets, order) = by_row(file, COUNTS[0], &rows_of, n)?;
    Ok(Some(OwnPenalties {
        repetition: repetition?,
        frequency: frequency?,
        presence: presence?,
        offsets,
        ids: order.iter().map(|&at| ids[at]).collect(),
        counts: order.iter().map(|&at| counts[at] as u32).collect(),
        in_prompt: order.iter().map(|&at| in_prompt[at]).collect(),
    }))
}

/// Each row's parameters, and the names of those that have a tensor.
type OwnSampling = (Option<Vec<SamplingParams>>, Vec<&'static str>);

fn sampling_of(
    file: &SafetensorsFile,
    n: usize,
    params: SamplingParams,
    given: &[&'static str],
) -> Result<OwnSampling> {
    let mut rows = params_at_positions(params, n);
    let mut own = Vec::new();
    for (name, option) in [
        ("seed", ""),
        ("position", ""),
        ("temperature", "--temperature"),
        ("top_k", "--top-k"),
        ("top_p", "--top-p"),
        ("min_p", "--min-p"),
    ] {
        if !file.contains(name) {
            continue;
        }
        if given.contains(&option) {
            return Err(Error::Config {
                key: option.into(),
                wanted: format!("it, or the tensor {name} of {}", file.path().display()),
                got: "both".into(),
                fix: "leave out the option, or the tensor".into(),
            });
        }
        own.push(name);
        match name {
            "seed" | "position" | "top_k" => {
                let values = whole_numbers(file, name, n)?;
                for (row, value) in rows.iter_mut().zip(values) {
                    match name {
                        "seed" => row.seed = value,
                        "position" => row.position = value,
                        // A number beyond the vocabulary keeps all ids, however large it is.
                        _ => row.top_k = usize::try_from(value).unwrap_or(usize::MAX),
                    }
                }
            }
            _ => {
                for (row, value) in rows.iter_mut().zip(floats(file, name, n)?) {
                    match name {
                        "temperature" => row.temperature = value,
                        "top_p" => row.top_p = value,
                        _ => row.min_p = value,
                    }
                }
                for (number, row) in rows.iter().enumerate() {
                    row.check(number).map_err(|error| with_tensor_names(file, error))?;
                }
            }
        }
    }
    Ok((Some(rows), own))
}

/// `[n]` integers of at least 0.
fn whole_numbers(file: &SafetensorsFile, name: &str, n: usize) -> Result<Vec<u64>> {
    let info = file.tensor(name)?;
    let bytes = file.bytes(name)?;
    let (eights, fours) = (bytes.as_chunks::<8>().0, bytes.as_chunks::<4>().0);
    let values: Option<Vec<i128>> = match info.dtype {
        _ if info.shape != [n] => None,
        Dtype::I64 => Some(eights.iter().map(|b| i64::from_le_bytes(*b).into()).collect()),
        Dtype::U64 => Some(eights.iter().map(|b| u64::from_le_bytes(*b).into()).collect()),
        Dtype::I32 => Some(fours.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
        Dtype::U32 => Some(fours.iter().map(|b| u32::from_le_bytes(*b).into()).collect()),
        _ => None,
    };
    let Some(values) = values else {
        let wanted = format!("i64, u64, i32 or u32 [{n}], one for each output row");
        return Err(refused(file, name, wanted, info.to_string(), "store it as such a tensor"));
    };
    let negative = |row: usize| {
        let fix = if name == "top_k" { "0 keeps all ids" } else { "use a number of at least 0" };
        refused(
            file,
            name,
            "whole numbers of at least 0".into(),
            format!("{} in row {row}", values[row]),
            fix,
        )
    };
    let convert = |(row, value): (usize, &i128)| u64::try_from(*value).map_err(|_| negative(row));
    values.iter().enumerate().map(convert).collect()
}

/// `[n]` floats; f64, NumPy's default, is rounded to f32.
fn floats(file: &SafetensorsFile, name: &str, n: usize) -> Result<Vec<f32>> {
    let info = file.tensor(name)?;
    let bytes = file.bytes(name)?;
    let wide: Option<Vec<f64>> = match info.dtype {
        _ if info.shape != [n] => None,
        Dtype::F64 => Some(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()),
        _ => None,
    };
    let Some(wide) = wide else {
        let wanted = format!("f32 or f64 [{n}], one for each output row");
        return Err(refused(file, name, wanted, info.to_string(), "store it as such a tensor"));
    };
    if let Some(row) = wide.iter().position(|v| *v != 0.0 && *v as f32 == 0.0) {
        let (wanted, got) = ("0, or numbers that f32 tells from 0", format!("{} in row {row}", wide[row]));
        return Err(refused(file, name, wanted.into(), got, "use 0 or a larger one"));
    }
    Ok(wide.iter().map(|v| *v as f32).collect())
}

fn refused(file: &SafetensorsFile, tensor: &str, wanted: String, got: String, fix: &str) -> Error {
    Error::Tensor { path: file.path().into(), tensor: tensor.into(), wanted, got, fix: fix.into() }
}

/// Replaces the library's argument names in an error by the tensors' names.
fn with_tensor_names(file: &SafetensorsFile, error: Error) -> Error {
    let name = |what: String| {
        let what = what
            .replace("logit_bias: id", "adjust_ids: id")
            .replace("logit_bias: value", "adjust_values: value")
            .replace("penalties: counts: id", "count_ids: id")
            .replace("penalties: counts of", "count_ids of")
            .replace("penalties: count of", "count_values: count of")
            .replace("penalties: repetition", "repetition_penalty")
            .replace("penalties: frequency", "frequency_penalty")
            .replace("penalties: presence", "presence_penalty");
        format!("{}: {what}", file.path().display())
    };
    match error {
        Error::Request { what, wanted, got, fix } => Error::Request { what: name(what), wanted, got, fix },
        other => other,
    }
}
