//! The answers of all ranks in one buffer.
//!
//! An answer can be gigabytes of logits, so it is held once: every rank writes its rows directly into the
//! buffer, which orders them by rank. Afterwards they are permuted in place into output order.

use crate::output::Tensor;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::memory::SpanMut;
use lmhead::result::{AnswerBuffers, Logprobs, Output, Request, RowStatus};
use safetensors::tensor::Dtype;

// Numbers are written as they lie in memory, and safetensors is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// The answer to some rows, of one rank or of all.
pub struct Assembled {
    pub rows: usize,
    /// `[rows]`: [`RowStatus`] as numbers.
    pub row_status: Vec<u8>,
    pub output: Output,
}

impl Assembled {
    /// Zeroed memory for the answers to `rows` rows of `request`. The system maps its pages as rows are
    /// written.
    ///
    /// # Errors
    /// `Shape` where the allocation fails.
    pub fn new(request: &Request, rows: usize, vocab_size: usize) -> Result<Self> {
        let logprobs = |targets: usize, top_n: usize| {
            Ok(Logprobs {
                targets,
                top_n,
                logprobs: zeros([rows, targets, 1])?,
                ranks: zeros([rows, targets, 1])?,
                top_ids: zeros([rows, top_n, 1])?,
                top_logprobs: zeros([rows, top_n, 1])?,
            })
        };
        let output = match *request {
            Request::Logits { dtype } => {
                let bytes = zeros([rows, vocab_size, dtype.size()])?;
                Output::Logits { dtype, vocab_size, bytes }
            }
            Request::Argmax => Output::Argmax { ids: zeros([rows, 1, 1])? },
            Request::Sample { logprobs: told } => Output::Sample {
                ids: zeros([rows, 1, 1])?,
                logprobs: told.map(|told| logprobs(1, told.top_n)).transpose()?,
            },
            Request::TopK { k } => Output::TopK {
                k,
                values: zeros([rows, k, 1])?,
                ids: zeros([rows, k, 1])?,
                logsumexp: zeros([rows, 1, 1])?,
            },
            Request::Logprobs { targets, top_n, .. } => Output::Logprobs(logprobs(targets, top_n)?),
            _ => unreachable!("args knows these requests only"),
        };
        Ok(Assembled { rows, row_status: zeros([rows, 1, 1])?, output })
    }

    pub fn status(&self, row: usize) -> RowStatus {
        RowStatus::of_byte(self.row_status[row])
    }

    /// Splits the memory into consecutive parts of `parts[i]` rows.
    ///
    /// # Panics
    /// When `parts` adds up to more rows than there are.
    pub fn split(&mut self, parts: &[usize]) -> Vec<Part<'_>> {
        let rows = self.rows;
        let mut rest = self.whole();
        let mut split = Vec::with_capacity(parts.len());
        let mut left = rows;
        for &n in parts {
            assert!(n <= left, "parts of {parts:?} rows, there are {rows}");
            let (part, others) = rest.split_at(n, left);
            split.push(part);
            (rest, left) = (others, left - n);
        }
        split
    }

    /// The memory of all rows.
    pub fn whole(&mut self) -> Part<'_> {
        let row_status = SpanMut::host(&mut self.row_status[..]);
        let mut buffers = AnswerBuffers { row_status, ..AnswerBuffers::default() };
        let logprobs = match &mut self.output {
            Output::Logits { bytes, .. } => {
                buffers.logits = SpanMut::host(&mut bytes[..]);
                None
            }
            Output::Argmax { ids } => {
                buffers.ids = SpanMut::host(&mut ids[..]);
                None
            }
            Output::TopK { values, ids, logsumexp, .. } => {
                buffers.values = SpanMut::host(&mut values[..]);
                buffers.ids = SpanMut::host(&mut ids[..]);
                buffers.logsumexp = SpanMut::host(&mut logsumexp[..]);
                None
            }
            Output::Sample { ids, logprobs } => {
                buffers.ids = SpanMut::host(&mut ids[..]);
                logprobs.as_mut()
            }
            Output::Logprobs(logprobs) => Some(logprobs),
            _ => unreachable!("args knows these requests only"),
        };
        if let Some(own) = logprobs {
            buffers.logprobs = SpanMut::host(&mut own.logprobs[..]);
            buffers.ranks = SpanMut::host(&mut own.ranks[..]);
            buffers.top_ids = SpanMut::host(&mut own.top_ids[..]);
            buffers.top_logprobs = SpanMut::host(&mut own.top_logprobs[..]);
        }
        Part { rows: self.rows, buffers }
    }

    /// Whether the rows from `first` on have the same bits as all rows of `other`; NaN equals NaN of the same
    /// bits.
    pub fn has(&self, first: usize, other: &Assembled) -> bool {
        let same = |(own, theirs): (&[u8], &[u8])| {
            let size = own.len() / self.rows.max(1);
            own.get(first * size..(first + other.rows) * size) == Some(theirs)
        };
        columns(self).into_iter().zip(columns(other)).all(same)
    }

    /// Moves row `i` to `places[i]`, for every row, without a second copy of them.
    ///
    /// # Panics
    /// When `places` is no permutation of the rows.
    pub fn reorder(&mut self, places: &[usize]) {
        let rows = self.rows;
        assert_eq!(places.len(), rows, "every row has a place");
        if places.iter().enumerate().all(|(row, place)| row == *place) {
            return;
        }
        for column in columns_mut(self) {
            let size = column.len() / rows;
            let mut held = vec![0; size];
            let mut moved = vec![false; rows];
            for start in 0..rows {
                if moved[start] {
                    continue;
                }
                // Follow one cycle of the permutation; `held` is the row displaced last.
                held.copy_from_slice(&column[start * size..][..size]);
                let mut at = start;
                loop {
                    at = places[at];
                    assert!(!moved[at], "two rows have the place {at}");
                    moved[at] = true;
                    held.swap_with_slice(&mut column[at * size..][..size]);
                    if at == start {
                        break;
                    }
                }
            }
        }
    }

    /// The columns of the answer, each `[rows, bytes of a row]`: see [`columns`].
    pub fn columns(&self) -> Vec<&[u8]> {
        columns(self)
    }

    /// The same columns, mutable.
    pub fn columns_mut(&mut self) -> Vec<&mut [u8]> {
        columns_mut(self)
    }

    /// The tensors that --out writes, as views of the answer.
    pub fn tensors(&self) -> Vec<Tensor<'_>> {
        let rows = self.rows;
        let of_logprobs = |told: &Logprobs, names: [&'static str; 2]| {
            let shape = if told.targets == 1 { vec![rows] } else { vec![rows, told.targets] };
            vec![
                (names[0], Dtype::F32, shape.clone()),
                (names[1], Dtype::I64, shape),
                ("top_ids", Dtype::I64, vec![rows, told.top_n]),
                ("top_logprobs", Dtype::F32, vec![rows, told.top_n]),
            ]
        };
        let mut tensors = vec![("row_status", Dtype::U8, vec![rows])];
        tensors.extend(match &self.output {
            Output::Logits { dtype, vocab_size, .. } => {
                let dtype = match dtype {
                    DType::F16 => Dtype::F16,
                    DType::Bf16 => Dtype::BF16,
                    _ => Dtype::F32,
                };
                vec![("logits", dtype, vec![rows, *vocab_size])]
            }
            Output::Argmax { .. } => vec![("argmax", Dtype::I64, vec![rows])],
            Output::Sample { logprobs, .. } => {
                let mut tensors = vec![("sampled", Dtype::I64, vec![rows])];
                let names = ["sampled_logprobs", "sampled_ranks"];
                tensors.extend(logprobs.iter().flat_map(|told| of_logprobs(told, names)));
                tensors
            }
            Output::TopK { k, .. } => vec![
                ("topk_values", Dtype::F32, vec![rows, *k]),
                ("topk_ids", Dtype::I64, vec![rows, *k]),
                ("logsumexp", Dtype::F32, vec![rows]),
            ],
            Output::Logprobs(told) => of_logprobs(told, ["logprobs", "target_ranks"]),
            _ => unreachable!("args knows these requests only"),
        });
        let tensors = tensors.into_iter().zip(columns(self));
        tensors
            // Without top_n there are no best ids: the empty tensors are left out.
            .filter(|((name, _, shape), _)| !(name.starts_with("top_") && shape[1] == 0))
            .map(|((name, dtype, shape), bytes)| (name, dtype, shape, bytes.into()))
            .collect()
    }
}

/// Memory for the answers to some of the rows.
pub struct Part<'a> {
    pub rows: usize,
    buffers: AnswerBuffers<'a>,
}

impl<'a> Part<'a> {
    /// Borrows the memory for one step.
    pub fn buffers(&mut self) -> AnswerBuffers<'_> {
        let AnswerBuffers {
            row_status,
            logits,
            logits_stride,
            ids,
            values,
            logsumexp,
            logprobs,
            ranks,
            top_ids,
            top_logprobs,
        } = &mut self.buffers;
        AnswerBuffers {
            row_status: row_status.reborrow(),
            logits: logits.reborrow(),
            logits_stride: *logits_stride,
            ids: ids.reborrow(),
            values: values.reborrow(),
            logsumexp: logsumexp.reborrow(),
            logprobs: logprobs.reborrow(),
            ranks: ranks.reborrow(),
            top_ids: top_ids.reborrow(),
            top_logprobs: top_logprobs.reborrow(),
        }
    }

    /// The first `n` of `rows` rows, and the others.
    fn split_at(self, n: usize, rows: usize) -> (Part<'a>, Part<'a>) {
        let mut first = AnswerBuffers::default();
        let mut others = AnswerBuffers::default();
        let own = self.buffers;
        for (span, first, others) in [
            (own.row_status, &mut first.row_status, &mut others.row_status),
            (own.logits, &mut first.logits, &mut others.logits),
            (own.ids, &mut first.ids, &mut others.ids),
            (own.values, &mut first.values, &mut others.values),
            (own.logsumexp, &mut first.logsumexp, &mut others.logsumexp),
            (own.logprobs, &mut first.logprobs, &mut others.logprobs),
            (own.ranks, &mut first.ranks, &mut others.ranks),
            (own.top_ids, &mut first.top_ids, &mut others.top_ids),
            (own.top_logprobs, &mut first.top_logprobs, &mut others.top_logprobs),
        ] {
            let at = span.len() / rows.max(1) * n;
            (*first, *others) = span.split_at(at);
        }
        (Part { rows: n, buffers: first }, Part { rows: rows - n, buffers: others })
    }
}

/// The columns of an answer, each `[rows, bytes of a row]`: the status, then what the request answers.
fn columns(answer: &Assembled) -> Vec<&[u8]> {
    fn of_logprobs(told: &Logprobs) -> [&[u8]; 4] {
        [
            cast_slice(&told.logprobs),
            cast_slice(&told.ranks),
            cast_slice(&told.top_ids),
            cast_slice(&told.top_logprobs),
        ]
    }
    let mut columns: Vec<&[u8]> = vec![&answer.row_status];
    match &answer.output {
        Output::Logits { bytes, .. } => columns.push(bytes),
        Output::Argmax { ids } => columns.push(cast_slice(ids)),
        Output::Sample { ids, logprobs } => {
            columns.push(cast_slice(ids));
            columns.extend(logprobs.iter().flat_map(of_logprobs));
        }
        Output::TopK { values, ids, logsumexp, .. } => {
            columns.extend([cast_slice(values), cast_slice(ids), cast_slice(logsumexp)]);
        }
        Output::Logprobs(told) => columns.extend(of_logprobs(told)),
        _ => unreachable!("args knows these requests only"),
    }
    columns
}

/// As [`columns`], mutable.
fn columns_mut(answer: &mut Assembled) -> Vec<&mut [u8]> {
    fn of_logprobs(told: &mut Logprobs) -> [&mut [u8]; 4] {
        [
            cast_slice_mut(&mut told.logprobs),
            cast_slice_mut(&mut told.ranks),
            cast_slice_mut(&mut told.top_ids),
            cast_slice_mut(&mut told.top_logprobs),
        ]
    }
    let mut columns: Vec<&mut [u8]> = vec![&mut answer.row_status];
    match &mut answer.output {
        Output::Logits { bytes, .. } => columns.push(bytes),
        Output::Argmax { ids } => columns.push(cast_slice_mut(ids)),
        Output::Sample { ids, logprobs } => {
            columns.push(cast_slice_mut(ids));
            columns.extend(logprobs.iter_mut().flat_map(of_logprobs));
        }
        Output::TopK { values, ids, logsumexp, .. } => {
            columns.extend([cast_slice_mut(values), cast_slice_mut(ids), cast_slice_mut(logsumexp)]);
        }
        Output::Logprobs(told) => columns.extend(of_logprobs(told)),
        _ => unreachable!("args knows these requests only"),
    }
    columns
}

/// A zeroed vector of `shape`, whose pages the system maps when they are written. An allocation that fails is
/// an error instead of an abort.
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

    const VOCAB: usize = 70;

    fn requests() -> [Request; 10] {
        [
            Request::logits(DType::F32),
            Request::logits(DType::Bf16),
            Request::argmax(),
            Request::sample(),
            Request::sample_with_logprobs(0),
            Request::sample_with_logprobs(2),
            Request::top_k(3),
            Request::logprobs(0),
            Request::logprobs(2),
            Request::Logprobs { targets: 4, top_n: 3, processed: true },
        ]
    }

    /// Fills a part with rows `rows` of an answer whose rows all differ.
    fn fill(mut part: Part<'_>, rows: &[usize]) {
        assert_eq!(part.rows, rows.len());
        let own = part.buffers();
        for (number, span) in [
            own.row_status,
            own.logits,
            own.ids,
            own.values,
            own.logsumexp,
            own.logprobs,
            own.ranks,
            own.top_ids,
            own.top_logprobs,
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = span.into_host().unwrap();
            let size = bytes.len() / rows.len().max(1);
            for (i, byte) in bytes.iter_mut().enumerate() {
                let (row, at) = (rows[i / size], i % size);
                *byte = (row * 83 + at * 7 + number) as u8;
            }
        }
    }

    /// The answer to rows 0, 1, .. in this order.
    fn answer(request: &Request, rows: usize) -> Assembled {
        let mut whole = Assembled::new(request, rows, VOCAB).unwrap();
        fill(whole.whole(), &(0..rows).collect::<Vec<_>>());
        whole
    }

    #[test]
    fn parts_of_ranks_become_the_answer_in_output_order() {
        for request in requests() {
            let want = answer(&request, 6);
            // Permutations with longer cycles, rows that stay, and a rank without rows.
            for parts in
                [&[&[0, 1][..], &[2, 3, 4, 5]][..], &[&[3, 1, 0], &[], &[2, 5, 4]], &[&[5, 4, 3, 2, 1, 0]]]
            {
                let mut whole = Assembled::new(&request, 6, VOCAB).unwrap();
                let sizes: Vec<usize> = parts.iter().map(|rows| rows.len()).collect();
                whole.split(&sizes).into_iter().zip(parts).for_each(|(part, rows)| fill(part, rows));
                let address = columns(&whole)[1].as_ptr();
                whole.reorder(&parts.concat());
                assert_eq!(columns(&whole), columns(&want), "{request} {parts:?}");
                assert_eq!(columns(&whole)[1].as_ptr(), address, "{request}: in place");
            }
        }
    }

    #[test]
    #[should_panic(expected = "two rows have the place 1")]
    fn rows_do_not_share_a_place() {
        answer(&Request::argmax(), 3).reorder(&[1, 1, 2]);
    }

    /// The tensor-parallel ranks of a replica must answer the same bits: every byte and every status counts.
    #[test]
    fn an_answer_of_other_bits_is_another_answer() {
        for request in requests() {
            let whole = answer(&request, 5);
            let part = || {
                let mut part = Assembled::new(&request, 3, VOCAB).unwrap();
                fill(part.whole(), &[1, 2, 3]);
                part
            };
            assert!(whole.has(1, &part()), "{request}");
            assert!(!whole.has(0, &part()) && !whole.has(3, &part()), "{request}");
            for column in 0..columns(&whole).len() {
                let bytes = columns(&part())[column].len();
                for at in [0, bytes / 2, bytes.saturating_sub(1)].into_iter().filter(|_| bytes > 0) {
                    let mut spoiled = part();
                    columns_mut(&mut spoiled)[column][at] ^= 1;
                    assert!(!whole.has(1, &spoiled), "{request}: byte {at} of part {column}");
                }
            }
        }
    }

    /// The same bytes as the format's own writer.
    #[test]
    fn an_answer_is_written_as_the_safetensors_crate_writes_it() {
        use safetensors::tensor::TensorView;
        for request in requests() {
            let whole = answer(&request, 5);
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
