//! The answers of all ranks as one, in output-row order.
//!
//! An answer can be gigabytes of logits, so it is held once. A rank's answer is moved where it is the whole
//! one, else copied row by row and given back; the pages of the whole are touched only as rows come.

use crate::output::Tensor;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::result::{Answer, Output, Request, RowStatus};
use safetensors::tensor::Dtype;

// Numbers are written as they lie in memory, and safetensors is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// The answers of all ranks in output-row order.
pub struct Assembled {
    pub rows: usize,
    pub row_status: Vec<RowStatus>,
    pub output: Output,
}

impl Assembled {
    /// Room for `rows` rows of what `request` answers.
    ///
    /// # Errors
    /// `Shape` where the system refuses so much memory.
    pub fn new(request: &Request, rows: usize, vocab_size: usize) -> Result<Self> {
        let output = match *request {
            Request::Logits { dtype } => {
                let bytes = zeros([rows, vocab_size, dtype.size()])?;
                Output::Logits { dtype, vocab_size, bytes }
            }
            Request::Argmax => Output::Argmax { ids: zeros([rows, 1, 1])? },
            Request::Sample => Output::Sample { ids: zeros([rows, 1, 1])? },
            Request::TopK { k } => Output::TopK {
                k,
                values: zeros([rows, k, 1])?,
                ids: zeros([rows, k, 1])?,
                logsumexp: zeros([rows, 1, 1])?,
            },
            Request::Logprobs { top_n, .. } => Output::Logprobs {
                top_n,
                logprobs: zeros([rows, 1, 1])?,
                ranks: zeros([rows, 1, 1])?,
                top_ids: zeros([rows, top_n, 1])?,
                top_logprobs: zeros([rows, top_n, 1])?,
            },
            _ => unreachable!("args knows these requests only"),
        };
        Ok(Assembled { rows, row_status: vec![RowStatus::Good; rows], output })
    }

    /// Takes a rank's answer, whose row `i` is output row `places[i]`.
    pub fn take(&mut self, places: &[usize], answer: Answer) {
        assert_eq!(places.len(), answer.rows(), "every row that was brought is answered");
        if places.len() == self.rows && places.iter().enumerate().all(|(i, place)| i == *place) {
            (self.row_status, self.output) = (answer.row_status, answer.output);
            return;
        }
        for (status, &place) in answer.row_status.iter().zip(places) {
            self.row_status[place] = *status;
        }
        let rows = self.rows;
        for (own, theirs) in columns_mut(&mut self.output).into_iter().zip(columns(&answer.output)) {
            let size = own.len() / rows.max(1);
            for (from, &to) in places.iter().enumerate() {
                own[to * size..][..size].copy_from_slice(&theirs[from * size..][..size]);
            }
        }
    }

    /// Whether the rows `places` are those of `answer` bit by bit, so that NaN equals itself.
    pub fn has(&self, places: &[usize], answer: &Answer) -> bool {
        let statuses = places.iter().map(|&place| self.row_status[place]);
        let same_column = |(own, theirs): (&[u8], &[u8])| {
            let size = own.len() / self.rows.max(1);
            let row =
                |(from, &at): (usize, &usize)| own[at * size..][..size] == theirs[from * size..][..size];
            theirs.len() == places.len() * size && places.iter().enumerate().all(row)
        };
        statuses.eq(answer.row_status.iter().copied())
            && columns(&self.output).into_iter().zip(columns(&answer.output)).all(same_column)
    }

    /// As they are written: views of the answer, but for the status.
    pub fn tensors(&self) -> Vec<Tensor<'_>> {
        let rows = self.rows;
        let mut tensors: Vec<(&'static str, Dtype, Vec<usize>)> = match &self.output {
            Output::Logits { dtype, vocab_size, .. } => {
                let dtype = match dtype {
                    DType::F16 => Dtype::F16,
                    DType::Bf16 => Dtype::BF16,
                    _ => Dtype::F32,
                };
                vec![("logits", dtype, vec![rows, *vocab_size])]
            }
            Output::Argmax { .. } => vec![("argmax", Dtype::I64, vec![rows])],
            Output::Sample { .. } => vec![("sampled", Dtype::I64, vec![rows])],
            Output::TopK { k, .. } => vec![
                ("topk_values", Dtype::F32, vec![rows, *k]),
                ("topk_ids", Dtype::I64, vec![rows, *k]),
                ("logsumexp", Dtype::F32, vec![rows]),
            ],
            Output::Logprobs { top_n, .. } => vec![
                ("logprobs", Dtype::F32, vec![rows]),
                ("target_ranks", Dtype::I64, vec![rows]),
                ("top_ids", Dtype::I64, vec![rows, *top_n]),
                ("top_logprobs", Dtype::F32, vec![rows, *top_n]),
            ],
            _ => unreachable!("args knows these requests only"),
        };
        if let Output::Logprobs { top_n: 0, .. } = &self.output {
            tensors.truncate(2);
        }
        let with_bytes = tensors.into_iter().zip(columns(&self.output));
        let mut tensors: Vec<Tensor<'_>> =
            with_bytes.map(|((name, dtype, shape), bytes)| (name, dtype, shape, bytes.into())).collect();
        let status: Vec<u8> = self.row_status.iter().map(|s| *s as u8).collect();
        tensors.push(("row_status", Dtype::U8, vec![rows], status.into()));
        tensors
    }
}

/// The parts of an answer, each `[rows, bytes of a row]`.
fn columns(output: &Output) -> Vec<&[u8]> {
    match output {
        Output::Logits { bytes, .. } => vec![bytes],
        Output::Argmax { ids } | Output::Sample { ids } => vec![cast_slice(ids)],
        Output::TopK { values, ids, logsumexp, .. } => {
            vec![cast_slice(values), cast_slice(ids), cast_slice(logsumexp)]
        }
        Output::Logprobs { logprobs, ranks, top_ids, top_logprobs, .. } => {
            vec![cast_slice(logprobs), cast_slice(ranks), cast_slice(top_ids), cast_slice(top_logprobs)]
        }
        _ => unreachable!("args knows these requests only"),
    }
}

/// The same in the same order.
fn columns_mut(output: &mut Output) -> Vec<&mut [u8]> {
    match output {
        Output::Logits { bytes, .. } => vec![bytes],
        Output::Argmax { ids } | Output::Sample { ids } => vec![cast_slice_mut(ids)],
        Output::TopK { values, ids, logsumexp, .. } => {
            vec![cast_slice_mut(values), cast_slice_mut(ids), cast_slice_mut(logsumexp)]
        }
        Output::Logprobs { logprobs, ranks, top_ids, top_logprobs, .. } => vec![
            cast_slice_mut(logprobs),
            cast_slice_mut(ranks),
            cast_slice_mut(top_ids),
            cast_slice_mut(top_logprobs),
        ],
        _ => unreachable!("args knows these requests only"),
    }
}

/// A vector of `shape`, which the system hands out page by page when they are written. Memory that it
/// refuses is an error, not the end of the program.
fn zeros<T: Pod>(shape: [usize; 3]) -> Result<Vec<T>> {
    let length = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let zeros = length.and_then(|n| bytemuck::allocation::try_zeroed_slice_box(n).ok());
    zeros.map(Vec::from).ok_or_else(|| Error::Shape {
        what: "the answer of all rows".into(),
        wanted: "a buffer that fits this machine's memory".into(),
        got: format!("{shape:?} elements"),
        fix: "pass fewer rows, or ask for argmax or a smaller topk".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::write_safetensors;
    use lmhead::result::StepStats;

    const VOCAB: usize = 70;

    fn requests() -> [Request; 7] {
        [
            Request::logits(DType::F32),
            Request::logits(DType::Bf16),
            Request::argmax(),
            Request::sample(),
            Request::top_k(3),
            Request::logprobs(0),
            Request::logprobs(2),
        ]
    }

    /// An answer of `rows` rows that all differ. The first begins with a NaN.
    fn answer(request: &Request, rows: usize) -> Answer {
        let Assembled { mut output, .. } = Assembled::new(request, rows, VOCAB).unwrap();
        for column in columns_mut(&mut output) {
            let size = (column.len() / rows.max(1)).max(1);
            column.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / size * 83 + i % 5) as u8);
            column.iter_mut().take(size.min(4)).for_each(|byte| *byte = 0xff);
        }
        let row_status = (0..rows).map(|i| [RowStatus::Good, RowStatus::NonFinite][i % 2]).collect();
        Answer { row_status, output, stats: StepStats::default() }
    }

    /// An answer to all rows in their order is moved. Rows in another order, and those of several ranks, are
    /// copied to their places.
    #[test]
    fn answers_of_ranks_are_put_together_in_output_order() {
        for request in requests() {
            let mut whole = Assembled::new(&request, 5, VOCAB).unwrap();
            let theirs = answer(&request, 5);
            let address = columns(&theirs.output)[0].as_ptr();
            whole.take(&[0, 1, 2, 3, 4], theirs);
            assert_eq!(columns(&whole.output)[0].as_ptr(), address, "{request}: moved, not copied");

            let mut other = Assembled::new(&request, 5, VOCAB).unwrap();
            let places = [4, 2, 0, 1, 3];
            other.take(&places, answer(&request, 5));
            for (from, &to) in places.iter().enumerate() {
                for (own, theirs) in columns(&other.output).into_iter().zip(columns(&whole.output)) {
                    let size = theirs.len() / 5;
                    assert_eq!(own[to * size..][..size], theirs[from * size..][..size], "{request}");
                }
                assert_eq!(other.row_status[to], whole.row_status[from], "{request}");
            }

            let mut several = Assembled::new(&request, 5, VOCAB).unwrap();
            let parts = [&[3, 1][..], &[], &[0, 4, 2]];
            parts.iter().for_each(|places| several.take(places, answer(&request, places.len())));
            for places in parts {
                assert!(several.has(places, &answer(&request, places.len())), "{request} {places:?}");
            }
        }
    }

    /// The tensor-parallel ranks of a replica must answer the same bits: every byte and every status counts.
    #[test]
    fn an_answer_of_other_bits_is_another_answer() {
        for request in requests() {
            let places = [2, 0, 1];
            let mut whole = Assembled::new(&request, 3, VOCAB).unwrap();
            whole.take(&places, answer(&request, 3));
            assert!(whole.has(&places, &answer(&request, 3)), "{request}");
            for column in 0..columns(&whole.output).len() {
                let bytes = columns(&whole.output)[column].len();
                for at in [0, bytes / 2, bytes.saturating_sub(1)].into_iter().filter(|_| bytes > 0) {
                    let mut spoiled = answer(&request, 3);
                    columns_mut(&mut spoiled.output)[column][at] ^= 1;
                    assert!(!whole.has(&places, &spoiled), "{request}: byte {at} of part {column}");
                }
            }
            let mut spoiled = answer(&request, 3);
            spoiled.row_status[2] = RowStatus::NothingAllowed;
            assert!(!whole.has(&places, &spoiled), "{request}");
        }
    }

    /// The same bytes as the format's own writer.
    #[test]
    fn an_answer_is_written_as_the_safetensors_crate_writes_it() {
        use safetensors::tensor::TensorView;
        for request in requests() {
            let mut whole = Assembled::new(&request, 5, VOCAB).unwrap();
            whole.take(&[1, 0, 2, 3, 4], answer(&request, 5));
            let tensors = whole.tensors();
            let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
                (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
            let want = safetensors::serialize(views, None).unwrap();
            let mut got = Vec::new();
            write_safetensors(&mut got, whole.tensors()).unwrap();
            assert!(got == want, "{request}");
        }
    }
}
