//! Sampled tokens: shards send candidates, largest logits or histograms, and never logits.
//!
//! ```text
//! parameters of all rows   all_gather over the group, which compares them between the tp ranks of a replica
//! adjustments              two all_to_alls, in a step that has them
//! matmul -> epilogue -> adjustments     [rows of the group, shard] f32, held
//! largest logits           all_gather, where shards filter: min_p or top_p without top_k, or top_k above 1024
//! cut at top_k             n x (histograms to the rows' owners, cuts back), where a top_k is above 1024
//! cut at top_p             n x the same, where there is a top_p and either no top_k or one above 1024
//! candidates               all_to_all to the rows' owners, who draw
//! ```
//!
//! Which of these a step takes depends on its parameters alone, never on logits, and every rank knows them
//! all. The n of a cut is 4 to 16: it follows from the size of the group and from how many rows have that cut
//! and the same owner ([`Digits`](crate::sampling::cut::Digits)).
//!
//! * `cuts`: the two searches.

mod cuts;

use super::buffers::{fill, hold, resize};
use super::pipeline::status;
use super::{Scratch, Step};
use crate::adjust::ShardAdjustments;
use crate::backend::{HeldLogits, Job, LogitsOut, SamplingPass, Wanted};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::merge::Candidate;
use crate::result::{Answer, Output, RowInputs, RowStatus};
use crate::rows::HiddenRows;
use crate::sampling::cut::{Kept, Sum};
use crate::sampling::mass::Scale;
use crate::sampling::score::Drawn;
use crate::sampling::{Kind, PARAMS_BYTES, SamplingParams};
use crate::step::{self, HEADER_BYTES};
use std::ops::Range;
use std::time::Instant;

/// What a peer sent that none of this version sends.
fn broken(operation: Operation, problem: impl std::fmt::Display) -> Error {
    Error::Exchange {
        operation: operation.to_string(),
        problem: problem.to_string(),
        fix: "run the same version of lmhead on every rank".into(),
    }
}

/// A row that is drawn by its shards after all know its largest logit.
struct Filtered {
    /// Among the rows that were computed.
    row: usize,
    params: SamplingParams,
    kind: Kind,
    kept: Kept,
}

impl Step<'_> {
    /// Parameters for each row, where the request has any; nothing of them has been sent yet.
    pub(super) fn check_sampling(&self, inputs: &RowInputs<'_>) -> Result<()> {
        let wanted = self.ticket.request == crate::Request::Sample;
        let rows = self.ticket.header.rows;
        let each = || format!("{rows}, one for each row");
        let params = match (inputs.sampling, wanted) {
            (Some(params), true) => params,
            (None, false) => return Ok(()),
            (None, true) if rows == 0 => return Ok(()),
            (None, true) => {
                return Err(Error::shape("sampling parameters", each(), "none", "pass those of every row"));
            }
            (Some(_), false) => {
                let what = format!("none with {}", self.ticket.request);
                let fix = "ask for Request::Sample, or leave them out";
                return Err(Error::request("sampling parameters", what, "some", fix));
            }
        };
        if params.len() as u64 != rows {
            let fix = "pass those of the rows that you bring";
            return Err(Error::shape("sampling parameters", each(), params.len(), fix));
        }
        params.iter().enumerate().try_for_each(|(row, params)| params.check(row))
    }

    /// The parameters of the rows of all replicas, in group order.
    pub(super) fn gather_sampling(
        &mut self,
        own: &[SamplingParams],
        counts: &[usize],
    ) -> Result<Vec<SamplingParams>> {
        let (group, began) = (self.head.group.clone(), Instant::now());
        if group.size() == 1 {
            return Ok(own.to_vec());
        }
        let with_header = self.compares_now();
        let extra = if with_header { HEADER_BYTES } else { 0 };
        let mut send = Vec::with_capacity(extra + own.len() * PARAMS_BYTES);
        if with_header {
            send.extend(self.ticket.header.encode());
        }
        let vocab_size = self.head.config.vocab_size;
        send.extend(own.iter().flat_map(|params| params.encode(vocab_size)));
        let members: Vec<usize> = (0..group.size()).collect();
        let bytes =
            |member: usize| counts[group.replica_of(member)].checked_mul(PARAMS_BYTES)?.checked_add(extra);
        let sizes: Option<Vec<usize>> = members.iter().map(|m| bytes(*m)).collect();
        let sizes = sizes.ok_or_else(|| {
            Error::shape("row counts", "fewer rows", format!("{counts:?}"), "send fewer rows in one step")
        })?;
        let mut recv = Vec::new();
        let operation = Operation::SamplingParams;
        let pieces = self.all_gather_with(operation, &members, &send, &sizes, &mut recv, with_header)?;
        let pieces: Vec<&[u8]> = pieces.into_iter().map(|piece| &piece[extra..]).collect();
        let decode = |bytes: &[u8]| -> Vec<SamplingParams> {
            bytes.as_chunks::<PARAMS_BYTES>().0.iter().map(SamplingParams::decode).collect()
        };
        let mut all = Vec::with_capacity(counts.iter().sum());
        for (replica, ranks) in pieces.chunks(group.tp()).enumerate() {
            if let Some(row) = differing_row(ranks) {
                let said = ranks.iter().map(|bytes| format!("row {row}: {:?}", decode(bytes)[row]));
                let ranks = group.ranks()[replica * group.tp()..].iter().copied();
                let disagreements = step::disagreement("sampling parameters", ranks.zip(said));
                let disagreements = disagreements.into_iter().collect();
                return Err(Error::mismatch(self.ticket.header.sequence, disagreements));
            }
            all.extend(decode(ranks[0]));
        }
        // Sent by a rank that has checked them.
        for (row, params) in all.iter().enumerate() {
            params.check(row).map_err(|error| broken(Operation::SamplingParams, error))?;
        }
        self.stats.gather += began.elapsed();
        Ok(all)
    }

    /// The whole request.
    pub(super) fn sampled(
        &mut self,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        scratch: &mut Scratch,
    ) -> Result<Answer> {
        let Scratch { send_rows, gathered, send, recv, held, .. } = scratch;
        let (rows, counts) = self.gather(hidden, send_rows, gathered)?;
        let params = self.gather_sampling(inputs.sampling.unwrap_or_default(), &counts)?;
        let (rows, parts) = self.computed(rows, &counts);
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), &parts)?;
        let params = if parts.len() == 1 { &params[parts[0].clone()] } else { &params[..] };
        self.sample((rows, adjustments.as_ref()), &counts, params, held, send, recv)
    }

    /// matmul -> epilogue -> exchange of what the rows' parameters ask -> result.
    pub(super) fn sample(
        &mut self,
        (rows, adjustments): (HiddenRows<'_>, Option<&ShardAdjustments>),
        counts: &[usize],
        params: &[SamplingParams],
        held: &mut Vec<f32>,
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<Answer> {
        let began = Instant::now();
        let (shard, n) = (self.head.shard.clone(), rows.len());
        let own = shard.vocab();
        let fix = "send fewer rows in one step";
        hold(held, n, own.len(), "logits of the shard", fix)?;
        let mut nonfinite = vec![false; n];
        let job = Job { rows, shard: &shard, epilogue: self.head.config.epilogue(), adjustments };
        let bytes = bytemuck::cast_slice_mut(held);
        let (stride, nonfinite_out) = (own.len() * 4, &mut nonfinite[..]);
        self.head.backend.logits(
            &job,
            LogitsOut { bytes, stride, dtype: DType::F32, nonfinite: nonfinite_out, any_allowed: None },
        )?;
        self.stats.matmul = began.elapsed();

        let began = Instant::now();
        let held = HeldLogits { logits: held, vocab: own, nonfinite: &nonfinite };
        let vocab_size = self.head.config.vocab_size;
        let kinds: Vec<Kind> = params.iter().map(|p| p.kind(vocab_size)).collect();
        let mut filtered = self.share_maxima(&held, params, &kinds, send, recv)?;
        self.cut(&held, &mut filtered, counts, Sum::Ids, send, recv)?;
        self.cut(&held, &mut filtered, counts, Sum::Masses, send, recv)?;
        let (row_status, ids) = self.draw(&held, params, &kinds, &filtered, counts, send, recv)?;
        self.stats.exchange += began.elapsed();
        Ok(Answer { row_status, output: Output::Sample { ids }, stats: self.stats })
    }

    /// The rows that need it learn their largest logit; a row without a finite one gets NaN or minus infinity, and keeps nothing.
    fn share_maxima(
        &mut self,
        held: &HeldLogits<'_>,
        params: &[SamplingParams],
        kinds: &[Kind],
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<Vec<Filtered>> {
        let needs = |row: &usize| matches!(kinds[*row], Kind::Threshold | Kind::Cut { .. });
        let rows: Vec<usize> = (0..kinds.len()).filter(needs).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut maxima = vec![0.0; rows.len()];
        self.head.backend.sample(held, SamplingPass::Maxima { rows: &rows, out: &mut maxima })?;
        if self.head.group.size() > 1 {
            send.clear();
            send.extend(maxima.iter().flat_map(|max| max.to_le_bytes()));
            let members: Vec<usize> = (0..self.head.group.size()).collect();
            let sizes = vec![send.len(); members.len()];
            maxima.fill(f32::NEG_INFINITY);
            for piece in self.all_gather(Operation::LargestLogits, &members, send, &sizes, recv)? {
                for (max, bytes) in maxima.iter_mut().zip(piece.as_chunks::<4>().0) {
                    let theirs = f32::from_le_bytes(*bytes);
                    if theirs == f32::INFINITY {
                        return Err(broken(Operation::LargestLogits, "infinity came"));
                    }
                    // NaN stays: of logits above a largest one that another shard has, masses would be anything.
                    *max = if max.is_nan() || theirs <= *max { *max } else { theirs };
                }
            }
        }
        let each = rows.into_iter().zip(maxima);
        Ok(each
            .map(|(row, max)| {
                let scale = Scale::new(&params[row], max, self.head.config.vocab_size);
                Filtered { row, params: params[row], kind: kinds[row], kept: Kept::new(scale) }
            })
            .collect())
    }

    /// The shards' candidates go to the rows' owners, who draw.
    #[allow(clippy::too_many_arguments, reason = "what the rounds before it have found")]
    fn draw(
        &mut self,
        held: &HeldLogits<'_>,
        params: &[SamplingParams],
        kinds: &[Kind],
        filtered: &[Filtered],
        counts: &[usize],
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<(Vec<RowStatus>, Vec<i64>)> {
        let (group, vocab_size) = (self.head.group.clone(), self.head.config.vocab_size);
        let own_ids = held.vocab.len();
        let mut rows: Vec<(usize, Wanted)> = kinds
            .iter()
            .zip(params)
            .enumerate()
            .map(|(row, (kind, params))| match kind {
                Kind::Listed { .. } => (row, Wanted::Best { k: places(*kind, own_ids) }),
                _ => (row, Wanted::Drawn { params: *params, kept: None }),
            })
            .collect();
        for own in filtered {
            rows[own.row].1 = Wanted::Drawn { params: own.params, kept: Some(own.kept) };
        }
        // Where the candidates of each row begin, and where the last ones end.
        let mut firsts = vec![0];
        rows.iter().for_each(|(row, wanted)| firsts.push(firsts[*row] + wanted.places()));
        let mut candidates = Vec::new();
        fill(&mut candidates, Candidate::NOTHING, firsts[rows.len()], "candidates")?;
        self.head.backend.sample(held, SamplingPass::Candidates { rows: &rows, out: &mut candidates })?;
        resize(send, [candidates.len(), 8, 1], "candidates")?;
        for (bytes, candidate) in send.as_chunks_mut::<8>().0.iter_mut().zip(&candidates) {
            *bytes = candidate.encode();
        }
        drop(candidates);

        let alone = group.size() == 1;
        let shards: Vec<Range<usize>> = (0..group.size()).map(|m| group.shard(vocab_size, m)).collect();
        let (mine, mut received) = if alone {
            (0..rows.len(), vec![&send[..]])
        } else {
            let message = |member: usize| {
                let rows = self.answered(counts, member);
                &send[firsts[rows.start] * 8..firsts[rows.end] * 8]
            };
            let mine = self.answered(counts, group.me());
            let of = |ids: &Range<usize>| mine.clone().map(|row| places(kinds[row], ids.len()) * 8).sum();
            let sizes: Vec<usize> = shards.iter().map(of).collect();
            let messages: Vec<&[u8]> = (0..group.size()).map(message).collect();
            (mine, self.all_to_all(Operation::ExchangeResults, &messages, &sizes, recv)?)
        };

        let (mut ids, mut row_status) = (Vec::with_capacity(mine.len()), Vec::with_capacity(mine.len()));
        let mut all = Vec::new();
        for row in mine {
            all.clear();
            for (message, shard) in received.iter_mut().zip(&shards) {
                let own = message.split_off(..places(kinds[row], shard.len()) * 8).unwrap_or_default();
                all.extend(own.as_chunks::<8>().0.iter().map(Candidate::decode));
                let foreign = |c: &Candidate| {
                    c.value == f32::INFINITY
                        || (c.value > f32::NEG_INFINITY && !shard.contains(&(c.id as usize)))
                };
                if let Some(c) = all[all.len() - own.len() / 8..].iter().find(|c| foreign(c)) {
                    let problem = format!("id {} with logit {} came from ids {shard:?}", c.id, c.value);
                    return Err(broken(Operation::ExchangeResults, problem));
                }
            }
            let nonfinite = all.iter().any(|c| c.value.is_nan());
            all.retain(|c| c.value > f32::NEG_INFINITY);
            let id = match kinds[row] {
                _ if nonfinite => None,
                Kind::Listed { .. } => {
                    let value = |a: &Candidate, b: &Candidate| b.value.partial_cmp(&a.value).expect("no NaN");
                    all.sort_unstable_by(|a, b| value(a, b).then(a.id.cmp(&b.id)));
                    params[row].choose(&all, vocab_size)
                }
                _ => {
                    let mut best = Drawn::nothing();
                    all.iter().for_each(|candidate| best.offer(&params[row], *candidate));
                    best.id()
                }
            };
            row_status.push(status(nonfinite, all.is_empty()));
            ids.push(id.map_or(-1, i64::from));
        }
        Ok((row_status, ids))
    }
}

/// Candidates that a shard of so many ids sends for a row of this kind.
pub(super) fn places(kind: Kind, ids: usize) -> usize {
    match kind {
        Kind::Listed { k } => k.min(ids),
        _ => 1,
    }
}

/// The first row whose parameters are not the same in all of these.
fn differing_row(encoded: &[&[u8]]) -> Option<usize> {
    let (first, others) = encoded.split_first()?;
    let differs =
        |other: &&[u8]| first.chunks(PARAMS_BYTES).zip(other.chunks(PARAMS_BYTES)).position(|(a, b)| a != b);
    others.iter().filter_map(differs).min()
}
