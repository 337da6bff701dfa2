//! Where a row's filters cut its logits: the rounds of [`Search`], for all rows that have a cut.

use super::Filtered;
use crate::backend::Pass;
use crate::backend::{HistogramQuery, TiesQuery};
use crate::error::Result;
use crate::exchange::Operation;
use crate::finish::broken;
use crate::head::buffers::{bytes_of, fill, starts_of};
use crate::head::run::{Compute, Lists, Run, Small};
use crate::memory::Span;
use crate::sampling::DrawKind;
use crate::sampling::cut::{BINS, CUT_BYTES, Digit, Digits, Goal, Search, Sum, WORD_BYTES, logit_of};
use crate::sampling::mass::largest_mass;
use std::ops::Range;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct CutBuffers {
    /// The filtered rows that have a cut, by their index in `filtered`, and the goal of each.
    cuts: Vec<(usize, Goal)>,
    /// The cut rows that each member decides.
    decided: Vec<Range<usize>>,
    searches: Vec<Search>,
    /// For each cut row: the known part of the key, and how many ties this rank's shard may keep.
    known: Vec<[u32; 2]>,
    histograms: Vec<u64>,
    queries: Vec<HistogramQuery>,
    /// `[shard][rows decided here]` of [`CUT_BYTES`].
    learned: Vec<u8>,
    allowances: Vec<u32>,
    ties: Vec<TiesQuery>,
    ends: Vec<u32>,
}

impl Run<'_> {
    /// Finds the cuts of rows that end at the k-th largest logit (`Sum::Ids`) or at the end of the nucleus
    /// (`Sum::Masses`).
    pub(super) fn cut(
        &mut self,
        compute: &mut Compute<'_>,
        sum: Sum,
        lists: &mut Lists,
        small: &mut Small,
        room: &mut super::SamplingBuffers,
    ) -> Result<()> {
        let super::SamplingBuffers { filtered, cuts: room, .. } = room;
        room.cuts.clear();
        room.cuts.extend(filtered.iter().enumerate().filter_map(|(i, f)| {
            let goal = match (sum, f.kind) {
                (Sum::Ids, DrawKind::Cut { top_k: Some(k), .. }) => Goal::Ids(k),
                (Sum::Masses, DrawKind::Cut { nucleus: true, .. }) => {
                    Goal::Masses { top_p: f.params.top_p, scale: f.kept.scale }
                }
                _ => return None,
            };
            Some((i, goal))
        }));
        if room.cuts.is_empty() {
            return Ok(());
        }
        let (me, size) = (self.wire.group.me(), self.wire.group.size());
        self.decide(filtered, room);
        let CutBuffers {
            cuts,
            decided,
            searches,
            known,
            histograms,
            queries,
            learned,
            allowances,
            ties,
            ends,
        } = room;
        let mine = decided[me].clone();
        searches.clear();
        searches.extend(cuts[mine.clone()].iter().map(|(_, goal)| Search::new(*goal)));
        let busiest = decided.iter().map(Range::len).max().unwrap_or(0);
        let digits = Digits::planned(busiest, size);
        let widest = digits.each().map(Digit::bins).max().unwrap_or(0);
        fill(known, [0; 2], cuts.len(), "cuts")?;
        fill(histograms, 0, bytes_of("histograms", [cuts.len(), widest])?, "histograms")?;
        fill(learned, 0, bytes_of("cuts", [size * CUT_BYTES, mine.len()])?, "cuts")?;
        fill(allowances, 0, size, "cuts")?;
        for digit in digits.each() {
            let histograms = &mut histograms[..cuts.len() * digit.bins()];
            queries.clear();
            queries.extend(cuts.iter().zip(&*known).map(|((at, _), &[key, _])| {
                let Filtered { row, kept, .. } = filtered[*at];
                HistogramQuery { row, kept, sum, digit, key }
            }));
            compute.pass(Pass::Histograms { queries, out: histograms })?;
            let theirs = self.histograms_to_owners(histograms, digit.bins(), decided, lists, small)?;
            self.learn(digit, sum, theirs, searches, allowances, learned)?;
            self.cuts_to_shards(learned, decided, known, lists, small)?;
        }
        ties.clear();
        ties.extend(cuts.iter().zip(&*known).map(|((at, _), &[key, allowance])| {
            let Filtered { row, kept, .. } = filtered[*at];
            TiesQuery { row, kept, logit: logit_of(key), allowance }
        }));
        let own_ids = self.wire.shards()[me].len();
        if let Some(query) = ties.iter().find(|query| query.allowance as usize > own_ids) {
            let problem = format!("{} ties came for {own_ids} ids", query.allowance);
            return Err(broken(Operation::Cuts, problem));
        }
        // Where nothing of a row is kept its cut is NaN, and so keeps nothing.
        fill(ends, 0, cuts.len(), "cuts")?;
        compute.pass(Pass::Ties { queries: ties, out: ends })?;
        for ((at, _), (query, &end)) in cuts.iter().zip(ties.iter().zip(&*ends)) {
            let kept = &mut filtered[*at].kept;
            (kept.cut, kept.ties_end) = (query.logit, end);
        }
        Ok(())
    }

    /// Which member decides which of the cut rows. One member decides a row: the tp ranks of a replica divide
    /// its rows.
    fn decide(&self, filtered: &[Filtered], room: &mut CutBuffers) {
        let CutBuffers { cuts, decided, .. } = room;
        decided.clear();
        decided.extend((0..self.wire.group.size()).map(|member| {
            let part = self.wire.answered(member, true);
            let at = |row: usize| cuts.partition_point(|(at, _)| filtered[*at].row < row);
            at(part.start)..at(part.end)
        }));
    }

    /// Adds up the shards' histograms `theirs`, `[shard][rows decided here][bins]`; puts into `learned` the
    /// next digit of each row decided here, and how many of its ties each shard keeps.
    fn learn(
        &self,
        digit: Digit,
        sum: Sum,
        theirs: &[u8],
        searches: &mut [Search],
        allowances: &mut [u32],
        learned: &mut [u8],
    ) -> Result<()> {
        let (bins, mine) = (digit.bins(), searches.len());
        let words = theirs.as_chunks::<WORD_BYTES>().0;
        // The most that one id can add to a row's histogram.
        let each = if sum == Sum::Ids { 1 } else { largest_mass(self.config.vocab_size) };
        let mut totals = [0u64; BINS];
        for (i, search) in searches.iter_mut().enumerate() {
            let of_row = |shard: usize| &words[(shard * mine + i) * bins..][..bins];
            let totals = &mut totals[..bins];
            totals.fill(0);
            for (shard, ids) in self.wire.shards().iter().enumerate() {
                let (most, mut all) = (ids.len() as u64 * each, 0u64);
                for (total, word) in totals.iter_mut().zip(of_row(shard)) {
                    let word = u64::from_le_bytes(*word);
                    all = all.saturating_add(word);
                    // What all shards can have fits 63 bits; a shard that sends more than it can have is
                    // refused below.
                    *total = total.wrapping_add(word);
                }
                if all > most {
                    let problem = format!("{all} came from a shard that has {most} at the most");
                    return Err(broken(Operation::Histograms, problem));
                }
            }
            let word = |shard: usize, bin: usize| u64::from_le_bytes(of_row(shard)[bin]);
            let key = search.learn(digit, totals, word, allowances);
            for (shard, allowance) in allowances.iter().enumerate() {
                let cut = &mut learned[(shard * mine + i) * CUT_BYTES..][..CUT_BYTES];
                cut[..4].copy_from_slice(&key.to_le_bytes());
                cut[4..].copy_from_slice(&allowance.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Sends each member the histograms, of `bins` words, of the rows that it decides. Returns those of all
    /// shards, `[shard][rows decided here]`.
    fn histograms_to_owners<'b>(
        &mut self,
        histograms: &[u64],
        bins: usize,
        decided: &[Range<usize>],
        lists: &mut Lists,
        small: &'b mut Small,
    ) -> Result<&'b [u8]> {
        let of_row = bins * WORD_BYTES;
        lists.outgoing.clear();
        lists.outgoing.extend(decided.iter().map(|rows| rows.start * of_row..rows.end * of_row));
        let mine = lists.outgoing[self.wire.group.me()].len();
        lists.sizes.clear();
        lists.sizes.resize(decided.len(), mine);
        let recv = &mut small.recv;
        let outgoing = (Span::host(histograms), &lists.outgoing[..]);
        self.wire.exchange_small(Operation::Histograms, outgoing, (recv, &lists.sizes))?;
        Ok(recv)
    }

    /// Sends each member its part of `learned`, `[member][rows decided here]`; puts what all owners send this
    /// one into `known`.
    fn cuts_to_shards(
        &mut self,
        learned: &[u8],
        decided: &[Range<usize>],
        known: &mut [[u32; 2]],
        lists: &mut Lists,
        small: &mut Small,
    ) -> Result<()> {
        let mine = decided[self.wire.group.me()].len() * CUT_BYTES;
        lists.outgoing.clear();
        lists.outgoing.extend((0..decided.len()).map(|member| member * mine..(member + 1) * mine));
        lists.sizes.clear();
        lists.sizes.extend(decided.iter().map(|rows| rows.len() * CUT_BYTES));
        let recv = &mut small.recv;
        let outgoing = (Span::host(learned), &lists.outgoing[..]);
        self.wire.exchange_small(Operation::Cuts, outgoing, (recv, &lists.sizes))?;
        starts_of(lists.sizes.iter().copied(), &mut lists.starts);
        for (rows, &start) in decided.iter().zip(&lists.starts) {
            let bytes = recv[start..].as_chunks::<CUT_BYTES>().0;
            for (known, words) in known[rows.clone()].iter_mut().zip(bytes) {
                let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().expect("four bytes"));
                *known = [word(0), word(4)];
            }
        }
        Ok(())
    }
}
