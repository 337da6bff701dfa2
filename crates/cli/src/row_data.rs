//! What `--hidden` holds beside the hidden rows: data of single output rows, numbered over all ranks.

use lmhead::adjust::{Additions, Adjustments};
use lmhead::error::{Error, Result};
use lmhead::result::{Request, RowInputs};
use lmhead::rows;
use lmhead::sampling::SamplingParams;
use lmhead::weights::SafetensorsFile;
use safetensors::Dtype;

/// The optional tensors of `--hidden`, `n` output rows.
#[derive(Default)]
pub struct RowData {
    /// `targets`, `[n]`; read for the requests that need them.
    targets: Option<Vec<i64>>,
    /// `allowed`, `[n, ceil(vocab / 32)]`.
    allowed: Option<Vec<i32>>,
    /// `adjust_rows`, `adjust_ids` and `adjust_values`, by row.
    additions: Option<OwnAdditions>,
    /// Of the output rows, for sampling.
    sampling: Option<Vec<SamplingParams>>,
    words: usize,
    /// There are adjustments, and raw logprobs do not see them.
    left_aside: bool,
}

struct OwnAdditions {
    /// `[n + 1]`
    offsets: Vec<usize>,
    ids: Vec<i64>,
    values: Vec<f32>,
}

impl RowData {
    /// Reads what there is, and checks it against `n` output rows.
    pub fn read(file: &SafetensorsFile, n: usize, vocab_size: usize, request: &Request) -> Result<Self> {
        let words = vocab_size.div_ceil(32);
        let logprobs = matches!(request, Request::Logprobs { .. });
        // Raw logprobs are those of the model: nothing that is said of its logits touches them.
        let raw = matches!(request, Request::Logprobs { processed: false, .. });
        let data = RowData {
            targets: if logprobs { Some(targets(file, n, vocab_size)?) } else { None },
            allowed: allowed(file, n, words)?,
            additions: additions(file, n)?,
            sampling: None,
            words,
            left_aside: false,
        };
        data.with(|inputs| inputs.adjustments.map_or(Ok(()), |a| a.check(n, vocab_size)))
            .map_err(|error| in_tensors(file, error))?;
        if raw && data.is_adjusted() {
            return Ok(RowData { allowed: None, additions: None, left_aside: true, ..data });
        }
        Ok(data)
    }

    /// What a run without a file takes: seeded targets for the requests that need them.
    pub fn synthetic(seed: u64, n: usize, vocab_size: usize, request: &Request) -> Self {
        let target = |row: usize| {
            let z = (seed ^ (row as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) % vocab_size as u64) as i64
        };
        let wanted = matches!(request, Request::Logprobs { .. });
        RowData { targets: wanted.then(|| (0..n).map(target).collect()), ..RowData::default() }
    }

    /// Every one of `n` rows is sampled with the same parameters, each at its own position.
    pub fn sampled(self, params: Option<SamplingParams>, n: usize) -> Self {
        let each = |params| (0..n as u64).map(|position| SamplingParams { position, ..params }).collect();
        RowData { sampling: params.map(each), ..self }
    }

    /// What a person should know of tensors that this run does not use.
    pub fn left_aside(&self) -> Option<&'static str> {
        let words = "--hidden holds adjustments, which raw logprobs leave aside; --processed asks for those of the adjusted logits";
        self.left_aside.then_some(words)
    }

    pub fn is_adjusted(&self) -> bool {
        self.allowed.is_some() || self.additions.is_some()
    }

    /// The data of the output rows `places`, in that order.
    pub fn of(&self, places: &[usize]) -> RowData {
        let allowed = self.allowed.as_ref().map(|mask| {
            places.iter().flat_map(|&row| &mask[row * self.words..(row + 1) * self.words]).copied().collect()
        });
        let additions = self.additions.as_ref().map(|all| {
            let mut own = OwnAdditions { offsets: vec![0], ids: Vec::new(), values: Vec::new() };
            for &row in places {
                let entries = all.offsets[row]..all.offsets[row + 1];
                own.ids.extend_from_slice(&all.ids[entries.clone()]);
                own.values.extend_from_slice(&all.values[entries]);
                own.offsets.push(own.ids.len());
            }
            own
        });
        let targets = self.targets.as_ref().map(|all| places.iter().map(|&row| all[row]).collect());
        let sampling = self.sampling.as_ref().map(|all| places.iter().map(|&row| all[row]).collect());
        RowData { targets, allowed, additions, sampling, words: self.words, left_aside: self.left_aside }
    }

    /// As the library takes it.
    pub fn with<T>(&self, use_them: impl FnOnce(RowInputs) -> T) -> T {
        let additions = self.additions.as_ref().map(|a| Additions {
            offsets: &a.offsets,
            ids: &a.ids,
            values: &a.values,
        });
        let adjustments = Adjustments { allowed: self.allowed.as_deref(), additions, penalties: None };
        use_them(RowInputs {
            targets: self.targets.as_deref(),
            sampling: self.sampling.as_deref(),
            adjustments: self.is_adjusted().then_some(adjustments),
        })
    }
}

fn targets(file: &SafetensorsFile, n: usize, vocab_size: usize) -> Result<Vec<i64>> {
    if !file.contains("targets") {
        let wanted = format!("i64 or i32 [{n}], which --request logprobs needs");
        return Err(refused(
            file,
            "targets",
            wanted,
            "none".into(),
            "store the ids whose logprobs are wanted",
        ));
    }
    let targets = file.indices("targets")?;
    if targets.len() != n {
        let (wanted, got) = (format!("[{n}], one id for each output row"), format!("[{}]", targets.len()));
        return Err(refused(file, "targets", wanted, got, "store the ids whose logprobs are wanted"));
    }
    let outside = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= vocab_size);
    if let Some(row) = targets.iter().position(outside) {
        let wanted = format!("ids from 0 to {}", vocab_size - 1);
        let got = format!("{} in row {row}", targets[row]);
        return Err(refused(file, "targets", wanted, got, "store ids of this head's vocabulary"));
    }
    Ok(targets)
}

fn allowed(file: &SafetensorsFile, n: usize, words: usize) -> Result<Option<Vec<i32>>> {
    if !file.contains("allowed") {
        return Ok(None);
    }
    let info = file.tensor("allowed")?;
    if info.dtype != Dtype::I32 || info.shape != [n, words] {
        let wanted = format!("i32 [{n}, {words}], a row of bits for each output row");
        return Err(refused(
            file,
            "allowed",
            wanted,
            info.to_string(),
            "write bit id % 32 of word id / 32 for each id",
        ));
    }
    Ok(Some(file.bytes("allowed")?.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect()))
}

fn additions(file: &SafetensorsFile, n: usize) -> Result<Option<OwnAdditions>> {
    let names = ["adjust_rows", "adjust_ids", "adjust_values"];
    if names.iter().all(|name| !file.contains(name)) {
        return Ok(None);
    }
    let rows_of = file.indices("adjust_rows")?;
    let ids = file.indices("adjust_ids")?;
    let info = file.tensor("adjust_values")?;
    if info.dtype != Dtype::F32 || info.shape != [rows_of.len()] {
        let wanted = format!("f32 [{}], as many as adjust_rows", rows_of.len());
        let fix = "store one value for each row and id";
        return Err(refused(file, "adjust_values", wanted, info.to_string(), fix));
    }
    if ids.len() != rows_of.len() {
        let wanted = format!("[{}], as many as adjust_rows", rows_of.len());
        let got = format!("[{}]", ids.len());
        return Err(refused(file, "adjust_ids", wanted, got, "store one id for each row"));
    }
    let what = format!("{}: adjust_rows", file.path().display());
    let rows_of = rows::row_numbers(&what, &rows_of, n)?;
    let values: Vec<f32> =
        file.bytes("adjust_values")?.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    // By row; the entries of one row stay in their order, in which they are added.
    let mut order: Vec<usize> = (0..rows_of.len()).collect();
    order.sort_by_key(|&at| rows_of[at]);
    let offsets = (0..=n).map(|row| order.partition_point(|&at| rows_of[at] < row)).collect();
    Ok(Some(OwnAdditions {
        offsets,
        ids: order.iter().map(|&at| ids[at]).collect(),
        values: order.iter().map(|&at| values[at]).collect(),
    }))
}

fn refused(file: &SafetensorsFile, tensor: &str, wanted: String, got: String, fix: &str) -> Error {
    Error::Tensor { path: file.path().into(), tensor: tensor.into(), wanted, got, fix: fix.into() }
}

/// The library's words for its arguments, with the tensors' names.
fn in_tensors(file: &SafetensorsFile, error: Error) -> Error {
    let name = |what: String| {
        let what = what
            .replace("additions: id", "adjust_ids: id")
            .replace("additions: value", "adjust_values: value");
        format!("{}: {what}", file.path().display())
    };
    match error {
        Error::Request { what, wanted, got, fix } => Error::Request { what: name(what), wanted, got, fix },
        other => other,
    }
}
