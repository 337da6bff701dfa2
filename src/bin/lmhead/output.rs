//! The answer as a safetensors file, written beside its target and renamed.

use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::result::{Output, Request, RowStatus};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that can be written, found out before anything is computed.
pub struct OutFile {
    target: PathBuf,
    temporary: NamedTempFile,
}

impl OutFile {
    /// Creates the temporary file in the target's folder.
    pub fn create(target: &Path) -> Result<Self> {
        let refuse =
            |problem: String, fix: &str| Error::File { path: target.into(), problem, fix: fix.into() };
        if target.is_dir() {
            return Err(refuse("is a folder".into(), "name a file for --out"));
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".lmhead-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What File::create would give; the umask applies. The crate's default is for secrets.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(folder).map_err(|e| {
            refuse(format!("cannot be written: {e}"), "name a file in a folder that exists and is writable")
        })?;
        Ok(OutFile { target: target.into(), temporary })
    }

    /// Writes the tensors and moves the file to its place.
    pub fn write(self, answer: &Assembled) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::File {
            path: self.target.clone(),
            problem: format!("cannot be written: {e}"),
            fix: "make room in that folder or name another".into(),
        };
        let tensors = answer.tensors();
        let views: Vec<(&str, TensorView)> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes)
                    .map(|view| (*name, view))
                    .map_err(|e| failed(&e))
            })
            .collect::<Result<_>>()?;
        safetensors::serialize_to_file(views, None, self.temporary.path()).map_err(|e| failed(&e))?;
        self.temporary.persist(&self.target).map_err(|e| Error::File {
            path: self.target.clone(),
            problem: format!("cannot be written: {}", e.error),
            fix: "name another file".into(),
        })?;
        Ok(())
    }
}

/// The answers of all ranks in output-row order.
pub struct Assembled {
    pub rows: usize,
    pub row_status: Vec<RowStatus>,
    pub output: Output,
}

type Tensor<'a> = (&'static str, Dtype, Vec<usize>, std::borrow::Cow<'a, [u8]>);

impl Assembled {
    /// Room for `rows` rows of what `request` answers.
    pub fn new(request: &Request, rows: usize, vocab_size: usize) -> Result<Self> {
        let output = match *request {
            Request::Logits { dtype } => {
                let mut bytes = Vec::new();
                let wanted = (rows as u128) * (vocab_size as u128) * (dtype.size() as u128);
                let fits = usize::try_from(wanted).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
                let Some(wanted) = fits else {
                    return Err(Error::Shape {
                        what: "logits of all rows".into(),
                        wanted: "a buffer that fits this machine's memory".into(),
                        got: format!("{wanted} bytes"),
                        fix: "pass fewer rows, or ask for argmax or topk".into(),
                    });
                };
                bytes.resize(wanted, 0);
                Output::Logits { dtype, vocab_size, bytes }
            }
            Request::Argmax => Output::Argmax { ids: vec![0; rows] },
            Request::TopK { k } => Output::TopK {
                k,
                values: vec![0.0; rows * k],
                ids: vec![0; rows * k],
                logsumexp: vec![0.0; rows],
            },
            Request::Logprobs { top_n, .. } => Output::Logprobs {
                top_n,
                logprobs: vec![0.0; rows],
                ranks: vec![0; rows],
                top_ids: vec![0; rows * top_n],
                top_logprobs: vec![0.0; rows * top_n],
            },
            _ => unreachable!("args knows these requests only"),
        };
        Ok(Assembled { rows, row_status: vec![RowStatus::Good; rows], output })
    }

    /// Puts row `from` of a rank's output in place `to`.
    pub fn put(&mut self, to: usize, answer: &lmhead::result::Answer, from: usize) {
        self.row_status[to] = answer.row_status[from];
        match (&mut self.output, &answer.output) {
            (Output::Logits { dtype, vocab_size, bytes }, Output::Logits { bytes: theirs, .. }) => {
                let size = *vocab_size * dtype.size();
                bytes[to * size..][..size].copy_from_slice(&theirs[from * size..][..size]);
            }
            (Output::Argmax { ids }, Output::Argmax { ids: theirs }) => ids[to] = theirs[from],
            (
                Output::TopK { k, values, ids, logsumexp },
                Output::TopK { values: their_values, ids: their_ids, logsumexp: theirs, .. },
            ) => {
                let k = *k;
                values[to * k..][..k].copy_from_slice(&their_values[from * k..][..k]);
                ids[to * k..][..k].copy_from_slice(&their_ids[from * k..][..k]);
                logsumexp[to] = theirs[from];
            }
            (
                Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs },
                Output::Logprobs {
                    logprobs: theirs,
                    ranks: their_ranks,
                    top_ids: their_ids,
                    top_logprobs: their_tops,
                    ..
                },
            ) => {
                let n = *top_n;
                (logprobs[to], ranks[to]) = (theirs[from], their_ranks[from]);
                top_ids[to * n..][..n].copy_from_slice(&their_ids[from * n..][..n]);
                top_logprobs[to * n..][..n].copy_from_slice(&their_tops[from * n..][..n]);
            }
            _ => unreachable!("every rank answers the same request"),
        }
    }

    fn tensors(&self) -> Vec<Tensor<'_>> {
        let mut tensors: Vec<Tensor<'_>> = match &self.output {
            Output::Logits { dtype, vocab_size, bytes } => {
                let dtype = match dtype {
                    DType::F16 => Dtype::F16,
                    DType::Bf16 => Dtype::BF16,
                    _ => Dtype::F32,
                };
                vec![("logits", dtype, vec![self.rows, *vocab_size], bytes.into())]
            }
            Output::Argmax { ids } => vec![("argmax", Dtype::I64, vec![self.rows], little_i64(ids).into())],
            Output::TopK { k, values, ids, logsumexp } => vec![
                ("topk_values", Dtype::F32, vec![self.rows, *k], little_f32(values).into()),
                ("topk_ids", Dtype::I64, vec![self.rows, *k], little_i64(ids).into()),
                ("logsumexp", Dtype::F32, vec![self.rows], little_f32(logsumexp).into()),
            ],
            Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs } => {
                let mut tensors: Vec<Tensor<'_>> = vec![
                    ("logprobs", Dtype::F32, vec![self.rows], little_f32(logprobs).into()),
                    ("target_ranks", Dtype::I64, vec![self.rows], little_i64(ranks).into()),
                ];
                if *top_n > 0 {
                    let shape = vec![self.rows, *top_n];
                    tensors.push(("top_ids", Dtype::I64, shape.clone(), little_i64(top_ids).into()));
                    tensors.push(("top_logprobs", Dtype::F32, shape, little_f32(top_logprobs).into()));
                }
                tensors
            }
            _ => unreachable!("args knows these requests only"),
        };
        let status: Vec<u8> = self.row_status.iter().map(|s| *s as u8).collect();
        tensors.push(("row_status", Dtype::U8, vec![self.rows], status.into()));
        tensors
    }
}

fn little_i64(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn little_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
