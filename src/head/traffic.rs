//! What a step exchanges, worked out before it runs: bytes and rounds of every rank of a group, with exact
//! counts.
//!
//! Yields the same sums as [`StepStats`](crate::result::StepStats), from the sizes that the pipeline uses.

use crate::config::HeadConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{columns, places};
use crate::layout::HeadGroup;
use crate::merge::PartialSpec;
use crate::result::Request;
use crate::sampling::cut::{CUT_BYTES, Digits, WORD_BYTES};
use crate::sampling::{DrawKind, PARAMS_BYTES, SamplingParams};
use crate::step::HEADER_BYTES;
use serde::Serialize;

/// What one rank exchanges in one step without adjustments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RankTraffic {
    /// Collective operations.
    pub rounds: u64,
    /// To other ranks.
    pub bytes_sent: u64,
    /// From other ranks.
    pub bytes_received: u64,
}

/// Bytes that the step's ranks of one group receive from each other. In 128 bits: the sum of a group may not
/// fit the 64 bits of a rank.
pub fn bytes_exchanged(ranks: &[RankTraffic]) -> u128 {
    ranks.iter().map(|rank| u128::from(rank.bytes_received)).sum()
}

/// What each member of `group` exchanges in a step of `counts[replica]` rows of each replica, in member
/// order. `verified`: the step begins with the headers that check the contract. `sampling` is how every row
/// is sampled, where that is the request.
///
/// # Errors
/// `Shape` where `counts` are not one per replica or the bytes do not fit 64 bits; `Config` where not even
/// one row of `Logprobs` fits `logprobs_chunk_bytes`; as [`Request::check`].
pub fn step_traffic(
    config: &HeadConfig,
    group: &HeadGroup,
    hidden_dtype: DType,
    counts: &[usize],
    request: &Request,
    sampling: &SamplingParams,
    verified: bool,
) -> Result<Vec<RankTraffic>> {
    let (size, replicas) = (group.size(), group.replicas());
    if counts.len() != replicas {
        let fix = "list the rows of every replica of the group";
        return Err(Error::shape("row counts", format!("{replicas} replicas"), counts.len(), fix));
    }
    request.check(config.vocab_size)?;
    let kind = matches!(request, Request::Sample { .. }).then(|| sampling.kind(config.vocab_size));
    if kind.is_some() {
        sampling.check(0)?;
    }
    let stride = row_stride(request, kind);
    // Summed in 128 bits: no factor is above 2^64, and there are few.
    let rows = |replica: usize| counts[replica] as u128;
    let total: u128 = (0..replicas).map(rows).sum();
    let chunks = match *request {
        Request::Logprobs { targets, top_n, .. } => {
            total.div_ceil(config.logprobs_chunk_rows(size, hidden_dtype, targets, top_n)? as u128)
        }
        _ => 1,
    };
    if size == 1 {
        return Ok(vec![RankTraffic::default()]);
    }
    let stride = |member: usize| stride(group.shard(config.vocab_size, member).len()) as u128;
    let strides: u128 = (0..size).map(stride).sum();
    let split = config.split_rows_over_tp;
    let answered =
        |member: usize| group.answered_rows(counts[group.replica_of(member)], member, split).len() as u128;
    let all_answered: u128 = (0..size).map(answered).sum();

    let logprobs = matches!(request, Request::Logprobs { .. });
    let peers = |n: usize| n as u128 - 1;
    // What logprobs exchange, of targets or of sampled tokens.
    let (targets, partial) = match *request {
        Request::Logprobs { targets, .. } => (targets as u128, None),
        Request::Sample { logprobs: Some(told) } => {
            (1, Some(PartialSpec { k: told.top_n.max(1), sum: true, targets: 1 }))
        }
        _ => (0, None),
    };
    // A gathered row: its hidden states and, with logprobs, its targets' ids. Rows are gathered over
    // replicas.
    let target_ids = if logprobs { 4 * targets } else { 0 };
    let gathered_row = (config.hidden_size * hidden_dtype.size()) as u128 + target_ids;
    let of_token = |member: usize| {
        partial.map_or(0, |spec| spec.stride(group.shard(config.vocab_size, member).len()) as u128)
    };
    let of_tokens: u128 = (0..size).map(of_token).sum();
    // Target logits go from everybody to everybody.
    let target_logits = 4 * targets * total * peers(size);
    let gathers = u128::from(replicas > 1);
    let sampled = kind.map_or(Sampled::default(), |kind| Sampled::new(kind, group, counts));
    let rounds = match logprobs {
        // The targets' ids once; then for each chunk its rows, its targets' logits and its partials.
        true => gathers + chunks * (gathers + 2),
        // The tokens, their logits, the partials.
        false => gathers + sampled.rounds + 1 + if partial.is_some() { 3 } else { 0 },
    };
    // With tensor parallelism the headers come a second time, with a digest of the inputs, in the first
    // operation of all members after the inputs are known. Logprobs of no rows have no such operation.
    let shared = group.tp() > 1 && (!logprobs || total > 0);
    let headers = if verified { 1 + u128::from(shared) } else { 0 };
    let header = headers * peers(size) * HEADER_BYTES as u128;
    let fits = |n: u128| {
        u64::try_from(n).map_err(|_| {
            let got = format!("{n} for {total} rows");
            Error::shape("bytes of a step", "fewer than 2^64", got, "plan for fewer rows")
        })
    };
    (0..size)
        .map(|member| {
            let (own, mine) = (rows(group.replica_of(member)), answered(member));
            Ok(RankTraffic {
                rounds: fits(rounds + u128::from(verified))?,
                bytes_sent: fits(
                    header
                        + own * gathered_row * peers(replicas)
                        + (all_answered - mine) * (stride(member) + of_token(member))
                        + target_logits
                        + sampled.sent(member, partial.is_some()),
                )?,
                bytes_received: fits(
                    header
                        + (total - own) * gathered_row
                        + mine * (strides - stride(member) + of_tokens - of_token(member))
                        + target_logits
                        + sampled.received(member, partial.is_some()),
                )?,
            })
        })
        .collect()
}

/// What sampling exchanges before the candidates: parameters, largest logits, histograms and cuts.
#[derive(Default)]
struct Sampled {
    rounds: u128,
    /// Rows of each member's replica, and those of them that it decides.
    rows: Vec<[u128; 2]>,
    /// Rows of the group.
    total: u128,
    /// Bytes of a row's largest logit, where shards filter.
    maxima: u128,
    /// Bytes of a row's histograms from another shard to its owner, and of the cuts on their way back.
    histograms: u128,
    cuts: u128,
}

impl Sampled {
    fn new(kind: DrawKind, group: &HeadGroup, counts: &[usize]) -> Self {
        let searches = match kind {
            DrawKind::Cut { top_k, nucleus } => u128::from(top_k.is_some()) + u128::from(nucleus),
            _ => 0,
        };
        let filters = matches!(kind, DrawKind::Threshold | DrawKind::Cut { .. });
        let rows = |member: usize| {
            let own = counts[group.replica_of(member)];
            (own, group.answered_rows(own, member, true).len())
        };
        let busiest = (0..group.size()).map(|member| rows(member).1).max().unwrap_or(0);
        let digits = Digits::planned(busiest, group.size());
        Sampled {
            rounds: 1 + u128::from(filters) + searches * 2 * digits.rounds() as u128,
            rows: (0..group.size()).map(|m| [rows(m).0 as u128, rows(m).1 as u128]).collect(),
            total: counts.iter().map(|n| *n as u128).sum(),
            maxima: if filters { 4 } else { 0 },
            histograms: searches * (digits.words() * WORD_BYTES) as u128,
            cuts: searches * (digits.rounds() * CUT_BYTES) as u128,
        }
    }

    /// Parameters and largest logits of each member go to all others; histograms go to the rows' owners, cuts
    /// come back. With `tokens` each member also tells all others the tokens of the rows that it decides.
    fn sent(&self, member: usize, tokens: bool) -> u128 {
        let Some([own, decided]) = self.rows.get(member) else { return 0 };
        let peers = self.rows.len() as u128 - 1;
        let others = self.total - decided;
        (own * PARAMS_BYTES as u128 + self.total * self.maxima) * peers
            + others * self.histograms
            + decided * (self.cuts + if tokens { 4 } else { 0 }) * peers
    }

    fn received(&self, member: usize, tokens: bool) -> u128 {
        let Some([own, decided]) = self.rows.get(member) else { return 0 };
        let peers = self.rows.len() as u128 - 1;
        let all: u128 = self.rows.iter().map(|[rows, _]| rows).sum();
        (all - own) * PARAMS_BYTES as u128
            + self.total * self.maxima * peers
            + decided * self.histograms * peers
            + (self.total - decided) * (self.cuts + if tokens { 4 } else { 0 })
    }
}

/// Bytes of one row in the message of a shard, by its number of ids.
fn row_stride(request: &Request, kind: Option<DrawKind>) -> Box<dyn Fn(usize) -> usize> {
    let partials =
        |spec: PartialSpec| -> Box<dyn Fn(usize) -> usize> { Box::new(move |ids| spec.stride(ids)) };
    match *request {
        Request::Logits { dtype } => Box::new(move |ids| columns::row_stride(ids, dtype)),
        Request::Argmax => partials(PartialSpec { k: 1, sum: false, targets: 0 }),
        Request::TopK { k } => partials(PartialSpec { k, sum: true, targets: 0 }),
        Request::Logprobs { targets, top_n, .. } => {
            partials(PartialSpec { k: top_n.max(1), sum: true, targets })
        }
        Request::Sample { .. } => Box::new(move |ids| 8 * places(kind.unwrap_or(DrawKind::Best), ids)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ParallelLayout;
    use proptest::prelude::*;

    proptest! {
        /// What is sent is received, whatever the layout and the rows; headers cost one round and nothing
        /// else changes.
        #[test]
        fn conserved(
            vocab in 1usize..3000, hidden in 1usize..300, dp in 1usize..7, tp in 1usize..4,
            split in any::<bool>(),
            pick in any::<prop::sample::Index>(), seeds in prop::collection::vec(0usize..300, 7),
            kind in 0usize..5, filters in 0usize..8,
        ) {
            let layout = ParallelLayout { tp, ..ParallelLayout::data_parallel(dp) };
            let sizes = layout.group_sizes();
            let group = HeadGroup::of(0, &layout, sizes[pick.index(sizes.len())]).unwrap().unwrap();
            let config = HeadConfig { split_rows_over_tp: split, ..HeadConfig::new(vocab, hidden) };
            let k = 1 + seeds[6] % vocab;
            let request = match kind {
                0 => Request::logits(DType::Bf16),
                1 => Request::argmax(),
                2 => Request::top_k(k),
                3 => Request::logprobs(k - 1),
                _ => Request::sample(),
            };
            let sampling = SamplingParams {
                top_k: [0, 1, 50, 2000][filters % 4],
                top_p: if filters / 4 == 0 { 1.0 } else { 0.5 },
                ..SamplingParams::default()
            };
            let counts = &seeds[..group.replicas()];
            let of = |verified| {
                step_traffic(&config, &group, DType::Bf16, counts, &request, &sampling, verified).unwrap()
            };
            let (with, without) = (of(true), of(false));
            prop_assert_eq!(with.len(), group.size());
            let sent: u64 = with.iter().map(|r| r.bytes_sent).sum();
            let received: u64 = with.iter().map(|r| r.bytes_received).sum();
            prop_assert_eq!(sent, received);
            let alone = group.size() == 1;
            let rows: usize = counts.iter().sum();
            let headers = if group.tp() > 1 && (kind != 3 || rows > 0) { 2 } else { 1 };
            let header = if alone { 0 } else { headers * HEADER_BYTES as u64 * (group.size() as u64 - 1) };
            for (with, without) in with.iter().zip(&without) {
                prop_assert_eq!(with.bytes_sent - header, without.bytes_sent);
                prop_assert_eq!(with.bytes_received - header, without.bytes_received);
                prop_assert_eq!(with.rounds, without.rounds + u64::from(!alone));
            }
            prop_assert_eq!(bytes_exchanged(&with), u128::from(received));
        }
    }

    /// A nucleus for four rows on each of 128 ranks: in four rounds of 256 bins a step would exchange 605 MB.
    #[test]
    fn histograms_of_a_large_group_are_small() {
        const SIZE: usize = 128;
        let config = HeadConfig::new(1000, 256);
        let group = HeadGroup::data_parallel(SIZE, 0).unwrap();
        let sampling = SamplingParams { top_p: 0.9, ..SamplingParams::default() };
        let (counts, request) = ([4; SIZE], Request::sample());
        let ranks = step_traffic(&config, &group, DType::Bf16, &counts, &request, &sampling, true).unwrap();
        // From each of the others: its header; the hidden states, parameters and candidates of four rows; the
        // largest logits of all rows. For four rows in each round: the histogram, and the answer to it.
        let other = HEADER_BYTES + 4 * (256 * 2 + PARAMS_BYTES + 8) + 4 * SIZE * 4;
        let exchanged = |words: usize, rounds: usize| {
            (SIZE * (SIZE - 1) * (other + 4 * (words * 8 + rounds * 8))) as u128
        };
        assert_eq!(exchanged(4 * 256, 4), 605_503_488);
        assert_eq!(bytes_exchanged(&ranks), exchanged(2 * 128 + 3 * 64, 5));
        assert_eq!(bytes_exchanged(&ranks), 306_393_088);
        // Headers, rows, parameters, largest logits and candidates take five rounds, each digit two.
        assert!(ranks.iter().all(|rank| rank.rounds == 5 + 2 * 5));
    }

    #[test]
    fn refusals() {
        let group = HeadGroup::data_parallel(2, 0).unwrap();
        let config = HeadConfig::new(1 << 30, 1 << 30);
        let hot = SamplingParams { temperature: f32::INFINITY, ..SamplingParams::default() };
        let said = |counts: &[usize], request: &Request| {
            step_traffic(&config, &group, DType::F32, counts, request, &hot, true).unwrap_err().to_string()
        };
        assert!(said(&[1], &Request::argmax()).starts_with("row counts: wanted 2 replicas, got 1"));
        assert!(
            said(&[usize::MAX, 1], &Request::argmax()).contains("bytes of a step: wanted fewer than 2^64")
        );
        assert!(said(&[1, 1], &Request::top_k(0)).contains("request topk"));
        assert!(said(&[1, 1], &Request::logprobs(1)).contains("logprobs_chunk_bytes"));
        assert!(said(&[1, 1], &Request::sample()).contains("temperature of row 0"));
    }
}
