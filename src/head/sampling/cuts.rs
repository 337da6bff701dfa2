//! Where a row's filters cut its logits: the rounds of [`Search`], for all rows that have one.

use super::{Filtered, broken};
use crate::backend::{HeldLogits, HistogramQuery, SamplingPass, TiesQuery};
use crate::error::Result;
use crate::exchange::Operation;
use crate::head::Step;
use crate::head::buffers::{fill, resize};
use crate::sampling::Kind;
use crate::sampling::cut::{BINS, CUT_BYTES, Digit, Digits, Goal, Search, Sum, WORD_BYTES, logit_of};
use crate::sampling::mass::largest_mass;
use std::ops::Range;

impl Step<'_> {
    /// Rows whose filters end at the k-th largest logit, or at the end of the nucleus, learn where that is.
    pub(super) fn cut(
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
                let goal = match (sum, f.kind) {
                    (Sum::Ids, Kind::Cut { top_k: Some(k), .. }) => Goal::Ids(k),
                    (Sum::Masses, Kind::Cut { nucleus: true, .. }) => {
                        Goal::Masses { top_p: f.params.top_p, scale: f.kept.scale }
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
        let mine = decided[me].clone();
        let mut searches: Vec<Search> =
            cuts[mine.clone()].iter().map(|(_, goal)| Search::new(*goal)).collect();
        // What a shard can count of one row at the most: all its ids.
        let vocab_size = self.head.config.vocab_size;
        let each = if sum == Sum::Ids { 1 } else { largest_mass(vocab_size) };
        let most: Vec<u64> =
            (0..group.size()).map(|m| group.shard(vocab_size, m).len() as u64 * each).collect();
        let mut known = vec![[0; 2]; cuts.len()]; // of each row the key and the own shard's allowance
        let busiest = decided.iter().map(Range::len).max().unwrap_or(0);
        let digits = Digits::planned(busiest, group.size());
        let widest = digits.each().map(Digit::bins).max().unwrap_or(0);
        let mut histograms = Vec::new();
        fill(&mut histograms, 0, cuts.len() * widest, "histograms")?;
        let mut queries = Vec::with_capacity(cuts.len());
        let mut totals = [0u64; BINS];
        let mut learned = Vec::new();
        let mut allowances = vec![0; group.size()];
        for digit in digits.each() {
            let bins = digit.bins();
            let histograms = &mut histograms[..cuts.len() * bins];
            queries.clear();
            queries.extend(cuts.iter().zip(&known).map(|((f, _), &[key, _])| HistogramQuery {
                row: f.row,
                kept: f.kept,
                sum,
                digit,
                key,
            }));
            let pass = SamplingPass::Histograms { queries: &queries, out: histograms };
            self.head.backend.sample(held, pass)?;
            let theirs = self.histograms_to_owners(histograms, bins, &decided, send, recv)?;
            resize(&mut learned, [group.size(), mine.len(), CUT_BYTES], "cuts")?;
            for (i, search) in searches.iter_mut().enumerate() {
                let of_row = |shard: usize| &theirs[shard].as_chunks::<WORD_BYTES>().0[i * bins..][..bins];
                let totals = &mut totals[..bins];
                totals.fill(0);
                for (shard, most) in most.iter().enumerate() {
                    let mut all = 0u64;
                    for (total, word) in totals.iter_mut().zip(of_row(shard)) {
                        let word = u64::from_le_bytes(*word);
                        all = all.saturating_add(word);
                        // What all shards have at the most fits 63 bits, and more than that is refused here.
                        *total = total.wrapping_add(word);
                    }
                    if all > *most {
                        let problem = format!("{all} came from a shard that has {most} at the most");
                        return Err(broken(Operation::Histograms, problem));
                    }
                }
                let word = |shard: usize, bin: usize| u64::from_le_bytes(of_row(shard)[bin]);
                let key = search.learn(digit, totals, word, &mut allowances);
                for (shard, allowance) in allowances.iter().enumerate() {
                    let cut = &mut learned[(shard * mine.len() + i) * CUT_BYTES..][..CUT_BYTES];
                    cut[..4].copy_from_slice(&key.to_le_bytes());
                    cut[4..].copy_from_slice(&allowance.to_le_bytes());
                }
            }
            self.cuts_to_shards(&learned, &decided, &mut known, recv)?;
        }
        let queries: Vec<TiesQuery> = cuts
            .iter()
            .zip(&known)
            .map(|((f, _), &[key, allowance])| TiesQuery {
                row: f.row,
                kept: f.kept,
                logit: logit_of(key),
                allowance,
            })
            .collect();
        if let Some(query) = queries.iter().find(|query| query.allowance as usize > held.vocab.len()) {
            let problem = format!("{} ties came for {} ids", query.allowance, held.vocab.len());
            return Err(broken(Operation::Cuts, problem));
        }
        // A row of which nothing is kept has a cut that is no number, which keeps nothing.
        let mut ends = vec![0; cuts.len()];
        self.head.backend.sample(held, SamplingPass::Ties { queries: &queries, out: &mut ends })?;
        for ((f, _), (query, end)) in cuts.iter_mut().zip(queries.iter().zip(ends)) {
            (f.kept.cut, f.kept.ties_end) = (query.logit, end);
        }
        Ok(())
    }

    /// Each member is sent the histograms of the rows that it decides, each of `bins` words: those of all
    /// shards come back, `[shard][rows decided here]`.
    fn histograms_to_owners<'b>(
        &mut self,
        histograms: &[u64],
        bins: usize,
        decided: &[Range<usize>],
        send: &'b mut Vec<u8>,
        recv: &'b mut Vec<u8>,
    ) -> Result<Vec<&'b [u8]>> {
        resize(send, [histograms.len(), WORD_BYTES, 1], "histograms")?;
        for (bytes, word) in send.as_chunks_mut::<WORD_BYTES>().0.iter_mut().zip(histograms) {
            *bytes = word.to_le_bytes();
        }
        if decided.len() == 1 {
            return Ok(vec![&send[..]]);
        }
        let of_row = bins * WORD_BYTES;
        let messages: Vec<&[u8]> =
            decided.iter().map(|rows| &send[rows.start * of_row..rows.end * of_row]).collect();
        let sizes = vec![decided[self.head.group.me()].len() * of_row; decided.len()];
        self.all_to_all(Operation::Histograms, &messages, &sizes, recv)
    }

    /// Each member is told its part of `learned`, `[member][rows decided here]`; what all owners tell this one is put in its place.
    fn cuts_to_shards(
        &mut self,
        learned: &[u8],
        decided: &[Range<usize>],
        known: &mut [[u32; 2]],
        recv: &mut Vec<u8>,
    ) -> Result<()> {
        let mine = decided[self.head.group.me()].len() * CUT_BYTES;
        let received = if decided.len() == 1 {
            vec![learned]
        } else {
            let messages: Vec<&[u8]> = (0..decided.len()).map(|m| &learned[m * mine..][..mine]).collect();
            let sizes: Vec<usize> = decided.iter().map(|rows| rows.len() * CUT_BYTES).collect();
            self.all_to_all(Operation::Cuts, &messages, &sizes, recv)?
        };
        for (rows, bytes) in decided.iter().zip(received) {
            for (known, words) in known[rows.clone()].iter_mut().zip(bytes.as_chunks::<CUT_BYTES>().0) {
                let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().expect("four bytes"));
                *known = [word(0), word(4)];
            }
        }
        Ok(())
    }
}
