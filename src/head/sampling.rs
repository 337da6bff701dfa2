//! Sampled tokens: shards send candidates, largest logits or histograms of fixed size, and never logits.
//!
//! ```text
//! parameters of all rows     all_gather over the group, which compares them between the tp ranks of a replica
//! matmul -> epilogue -> adjustments     [rows of the group, shard] f32, held
//! largest logits             all_gather            where a row has min_p or a cut
//! histograms                 all_to_all to the rows' owners  }  4 times where a row has top_k above 1024,
//! cuts                       all_to_all back                 }  4 times where a row has top_p and not such a top_k's candidates
//! candidates                 all_to_all to the rows' owners
//! ```
//!
//! Which of these a step takes depends on its parameters alone, never on logits, and every rank knows them all.

use super::buffers::{hold, resize};
use super::pipeline::status;
use super::{Scratch, Step};
use crate::adjust::ShardAdjustments;
use crate::backend::{HeldLogits, HistogramQuery, Job, LogitsOut, SamplingPass};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::merge::Candidate;
use crate::result::{Answer, Output, RowInputs};
use crate::rows::HiddenRows;
use crate::sampling::cut::{BINS, Goal, Kept, STEPS, Search, Sum, logit_of};
use crate::sampling::score::Drawn;
use crate::sampling::{Kind, PARAMS_BYTES, SamplingParams};
use crate::step::{self, HEADER_BYTES, Mode};
use std::ops::Range;
use std::time::Instant;

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
        // In capacity mode only ranks of one tp index have seen each other's headers; here all meet.
        let with_header = self.ticket.header.mode == Mode::Capacity && group.tp() > 1;
        let extra = if with_header { HEADER_BYTES } else { 0 };
        let mut send = Vec::with_capacity(extra + own.len() * PARAMS_BYTES);
        if with_header {
            send.extend(self.ticket.header.encode());
        }
        send.extend(own.iter().flat_map(SamplingParams::encode));
        let members: Vec<usize> = (0..group.size()).collect();
        let bytes =
            |member: usize| counts[group.replica_of(member)].checked_mul(PARAMS_BYTES)?.checked_add(extra);
        let sizes: Option<Vec<usize>> = members.iter().map(|m| bytes(*m)).collect();
        let sizes = sizes.ok_or_else(|| {
            Error::shape("row counts", "fewer rows", format!("{counts:?}"), "send fewer rows in one step")
        })?;
        let mut recv = Vec::new();
        let pieces = if with_header {
            self.all_gather_judged(Operation::SamplingParams, &members, &send, &sizes, &mut recv)?
        } else {
            self.all_gather(Operation::SamplingParams, &members, &send, &sizes, &mut recv)?
        };
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
                return Err(Error::StepMismatch { step: self.ticket.header.sequence, disagreements });
            }
            all.extend(decode(ranks[0]));
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
        let answer = self.draw(&held, params, &kinds, &filtered, counts, send, recv);
        self.stats.exchange += began.elapsed();
        answer
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
                    // NaN stays.
                    *max = if max.is_nan() || theirs <= *max { *max } else { theirs };
                }
            }
        }
        let each = rows.into_iter().zip(maxima);
        Ok(each
            .map(|(row, max)| {
                let params = params[row];
                Filtered { row, params, kind: kinds[row], kept: Kept::new(&params, max) }
            })
            .collect())
    }

    /// Rows whose filters end at the k-th largest logit, or at the end of the nucleus, learn where that is.
    fn cut(
        &mut self,
        held: &HeldLogits<'_>,
        filtered: &mut [Filtered],
        counts: &[usize],
        sum: Sum,
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<()> {
        let mut cuts: Vec<(&mut Filtered, Goal)> = filtered
            .iter_mut()
            .filter_map(|f| {
                let (max, temperature) = (f.kept.max, f.params.temperature);
                let goal = match (sum, f.kind) {
                    (Sum::Ids, Kind::Cut { top_k: Some(k), .. }) => Goal::Ids(k),
                    (Sum::Masses, Kind::Cut { nucleus: true, .. }) => {
                        Goal::Masses { top_p: f.params.top_p, max, temperature }
                    }
                    _ => return None,
                };
                Some((f, goal))
            })
            .collect();
        if cuts.is_empty() {
            return Ok(());
        }
        let (group, me) = (self.head.group.clone(), self.head.group.me());
        // A row is decided by one member: the tp ranks of a replica share its rows.
        let decided: Vec<Range<usize>> = (0..group.size())
            .map(|member| {
                let replica = group.replica_of(member);
                let first: usize = counts[..replica].iter().sum();
                let part = group.answered_rows(counts[replica], member, true);
                let at = |row: usize| cuts.partition_point(|(f, _)| f.row < first + row);
                // Alone, the rows are those that this rank answers, whatever is left of its replica's.
                if group.size() == 1 { 0..cuts.len() } else { at(part.start)..at(part.end) }
            })
            .collect();
        let mut searches: Vec<Search> =
            cuts[decided[me].clone()].iter().map(|(_, goal)| Search::new(*goal)).collect();
        let mut keys = vec![0; cuts.len()];
        let mut allowances = vec![0; cuts.len()];
        let mut histograms = vec![0; cuts.len() * BINS];
        for step in 0..STEPS {
            let queries: Vec<HistogramQuery> = cuts
                .iter()
                .zip(&keys)
                .map(|((f, _), &key)| HistogramQuery { row: f.row, kept: f.kept, sum, step, key })
                .collect();
            let pass = SamplingPass::Histograms { queries: &queries, out: &mut histograms };
            self.head.backend.sample(held, pass)?;
            let theirs = self.histograms_to_owners(&histograms, &decided, send, recv)?;
            let mine = searches.len();
            let mut learned = vec![0; mine * group.size() * 2];
            for (i, search) in searches.iter_mut().enumerate() {
                let of_row = theirs
                    .iter()
                    .map(|words| words[i * BINS..][..BINS].try_into().expect("as many words as bins"));
                let mut allowed = vec![0; group.size()];
                let key = search.learn(step, of_row, &mut allowed);
                for (member, allowed) in allowed.into_iter().enumerate() {
                    learned[(member * mine + i) * 2..][..2].copy_from_slice(&[key, allowed]);
                }
            }
            self.cuts_to_shards(&learned, &decided, (&mut keys, &mut allowances), recv)?;
        }
        let queries: Vec<(usize, Kept, f32, u32)> = cuts
            .iter()
            .zip(keys.iter().zip(&allowances))
            .map(|((f, _), (&key, &allowance))| (f.row, f.kept, logit_of(key), allowance))
            .collect();
        let mut ends = vec![0; cuts.len()];
        self.head.backend.sample(held, SamplingPass::Ties { queries: &queries, out: &mut ends })?;
        for ((f, _), (query, end)) in cuts.iter_mut().zip(queries.iter().zip(ends)) {
            (f.kept.cut, f.kept.ties_end) = (query.2, end);
        }
        Ok(())
    }

    /// Each member is sent the histograms of the rows that it decides: those of all shards come back, `[shard][rows decided here, bins]`.
    fn histograms_to_owners(
        &mut self,
        histograms: &[u64],
        decided: &[Range<usize>],
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<Vec<Vec<u64>>> {
        if decided.len() == 1 {
            return Ok(vec![histograms.to_vec()]);
        }
        const ROW: usize = BINS * 8;
        resize(send, [histograms.len(), 8, 1], "histograms")?;
        for (bytes, word) in send.as_chunks_mut::<8>().0.iter_mut().zip(histograms) {
            *bytes = word.to_le_bytes();
        }
        let messages: Vec<&[u8]> =
            decided.iter().map(|rows| &send[rows.start * ROW..rows.end * ROW]).collect();
        let sizes = vec![decided[self.head.group.me()].len() * ROW; decided.len()];
        let received = self.all_to_all(Operation::Histograms, &messages, &sizes, recv)?;
        let words = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        Ok(received.into_iter().map(words).collect())
    }

    /// Each member is told the `[key, allowance]` of the rows decided here, `[member][rows decided here, 2]`; what all owners tell this one
    /// is put in its place.
    fn cuts_to_shards(
        &mut self,
        learned: &[u32],
        decided: &[Range<usize>],
        (keys, allowances): (&mut [u32], &mut [u32]),
        recv: &mut Vec<u8>,
    ) -> Result<()> {
        let mine = decided[self.head.group.me()].len();
        let told: Vec<u8> = learned.iter().flat_map(|word| word.to_le_bytes()).collect();
        let received = if decided.len() == 1 {
            vec![&told[..]]
        } else {
            let messages: Vec<&[u8]> =
                (0..decided.len()).map(|m| &told[m * mine * 8..][..mine * 8]).collect();
            let sizes: Vec<usize> = decided.iter().map(|rows| rows.len() * 8).collect();
            self.all_to_all(Operation::Cuts, &messages, &sizes, recv)?
        };
        for (rows, bytes) in decided.iter().zip(received) {
            for (row, words) in rows.clone().zip(bytes.as_chunks::<8>().0) {
                let [a, b, c, d, e, f, g, h] = *words;
                keys[row] = u32::from_le_bytes([a, b, c, d]);
                allowances[row] = u32::from_le_bytes([e, f, g, h]);
            }
        }
        Ok(())
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
    ) -> Result<Answer> {
        let (group, vocab_size) = (self.head.group.clone(), self.head.config.vocab_size);
        let shard_len = |member: usize| group.shard(vocab_size, member).len();
        // Candidates that a shard of so many ids sends for a row: the same for all of them but its last ones.
        let places = |row: usize, ids: usize| match kinds[row] {
            Kind::Listed { k } => k.min(ids),
            _ => 1,
        };
        let own_ids = held.vocab.len();
        let mut firsts = vec![0];
        (0..params.len()).for_each(|row| firsts.push(firsts[row] + places(row, own_ids)));
        let mut candidates = vec![NOTHING; firsts[params.len()]];

        let is_listed = |row: &usize| matches!(kinds[*row], Kind::Listed { .. });
        let listed: Vec<(usize, usize)> =
            (0..params.len()).filter(is_listed).map(|row| (row, places(row, own_ids))).collect();
        let mut found = vec![NOTHING; listed.iter().map(|(_, k)| k).sum()];
        self.head.backend.sample(held, SamplingPass::Candidates { rows: &listed, out: &mut found })?;
        let mut found = &found[..];
        for &(row, k) in &listed {
            let (own, rest) = found.split_at(k);
            candidates[firsts[row]..][..k].copy_from_slice(own);
            found = rest;
        }
        let mut kept = vec![None; params.len()];
        filtered.iter().for_each(|f| kept[f.row] = Some(f.kept));
        let drawn: Vec<(usize, SamplingParams, Option<Kept>)> = (0..params.len())
            .filter(|row| !is_listed(row))
            .map(|row| (row, params[row], kept[row]))
            .collect();
        let mut found = vec![NOTHING; drawn.len()];
        self.head.backend.sample(held, SamplingPass::Draw { rows: &drawn, out: &mut found })?;
        drawn.iter().zip(found).for_each(|((row, ..), candidate)| candidates[firsts[*row]] = candidate);

        // Rows as the computed ones are numbered.
        let alone = group.size() == 1;
        let answered = |member: usize| if alone { 0..params.len() } else { self.answered(counts, member) };
        let mine = answered(group.me());
        let by_owner: Vec<Range<usize>> = (0..group.size()).map(answered).collect();
        let received: Vec<Vec<Candidate>> = if alone {
            vec![candidates]
        } else {
            send.clear();
            send.extend(candidates.iter().flat_map(encode));
            let bytes = |rows: &Range<usize>| firsts[rows.start] * 8..firsts[rows.end] * 8;
            let messages: Vec<&[u8]> = by_owner.iter().map(|rows| &send[bytes(rows)]).collect();
            let of_member = |member: usize| mine.clone().map(|row| places(row, shard_len(member)) * 8).sum();
            let sizes: Vec<usize> = (0..group.size()).map(of_member).collect();
            let received = self.all_to_all(Operation::ExchangeResults, &messages, &sizes, recv)?;
            received.into_iter().map(|b| b.as_chunks::<8>().0.iter().map(decode).collect()).collect()
        };

        let mut next = vec![0; group.size()];
        let (mut ids, mut row_status) = (Vec::with_capacity(mine.len()), Vec::with_capacity(mine.len()));
        for row in mine {
            let mut all = Vec::new();
            for (member, theirs) in received.iter().enumerate() {
                let n = places(row, if alone { own_ids } else { shard_len(member) });
                all.extend_from_slice(&theirs[next[member]..next[member] + n]);
                next[member] += n;
            }
            let nonfinite = all.iter().any(|c| c.value.is_nan());
            all.retain(|c| c.value > f32::NEG_INFINITY);
            row_status.push(status(nonfinite, all.is_empty()));
            let id = match kinds[row] {
                _ if nonfinite => None,
                Kind::Listed { .. } => {
                    let value = |a: &Candidate, b: &Candidate| b.value.partial_cmp(&a.value).expect("no NaN");
                    all.sort_unstable_by(|a, b| value(a, b).then(a.id.cmp(&b.id)));
                    params[row].choose(&all)
                }
                _ => {
                    let mut best = Drawn::nothing();
                    all.iter().for_each(|candidate| best.offer(&params[row], *candidate));
                    best.id()
                }
            };
            ids.push(id.map_or(-1, i64::from));
        }
        Ok(Answer { row_status, output: Output::Sample { ids }, stats: self.stats })
    }
}

const NOTHING: Candidate = Candidate { value: f32::NEG_INFINITY, id: 0 };

fn encode(candidate: &Candidate) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (candidate.value.to_le_bytes(), candidate.id.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

fn decode(&[a, b, c, d, e, f, g, h]: &[u8; 8]) -> Candidate {
    Candidate { value: f32::from_le_bytes([a, b, c, d]), id: u32::from_le_bytes([e, f, g, h]) }
}

/// The first row whose parameters are not the same in all of these.
fn differing_row(encoded: &[&[u8]]) -> Option<usize> {
    let (first, others) = encoded.split_first()?;
    let differs =
        |other: &&[u8]| first.chunks(PARAMS_BYTES).zip(other.chunks(PARAMS_BYTES)).position(|(a, b)| a != b);
    others.iter().filter_map(differs).min()
}
