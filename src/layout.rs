//! Ranks -> head groups; vocabulary -> shards; rows -> parts. Pure arithmetic, except for [`Launch`], which
//! reads from the environment which rank a process is.

mod launch;

pub use launch::{Launch, Launcher};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Shards begin at multiples of this many vocabulary ids: the kernels' smallest tile. No answer depends on
/// it.
pub const BLOCK: usize = 64;

/// How global ranks are numbered, slowest dimension first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankOrder {
    /// `(dp, pp, tp)`: vLLM's order.
    #[default]
    DpPpTp,
    /// `(pp, dp, tp)`: Megatron's order.
    PpDpTp,
}

/// The parallel layout of an engine: data-, tensor- and pipeline-parallel sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParallelLayout {
    pub dp: usize,
    pub tp: usize,
    pub pp: usize,
    pub order: RankOrder,
}

/// A rank's indices in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    pub dp: usize,
    pub tp: usize,
    pub pp: usize,
}

impl ParallelLayout {
    /// Data-parallel ranks alone: `tp = pp = 1`.
    pub fn data_parallel(dp: usize) -> Self {
        ParallelLayout { dp, tp: 1, pp: 1, order: RankOrder::default() }
    }

    /// Number of ranks.
    ///
    /// # Errors
    /// `Config` when a size is 0 or the product does not fit.
    pub fn world_size(&self) -> Result<usize> {
        for (key, size) in [("dp", self.dp), ("tp", self.tp), ("pp", self.pp)] {
            if size == 0 {
                return Err(Error::config(
                    key,
                    "a size of at least 1",
                    size,
                    "use 1 where there is no such parallelism",
                ));
            }
        }
        let world = self.dp.checked_mul(self.tp).and_then(|n| n.checked_mul(self.pp));
        world.filter(|&n| n <= u32::MAX as usize).ok_or_else(|| {
            let got = format!("dp {} x tp {} x pp {}", self.dp, self.tp, self.pp);
            Error::config("dp, tp, pp", "at most 4294967295 ranks", got, "use smaller sizes")
        })
    }

    /// The global rank at these coordinates.
    pub fn rank(&self, at: Coordinates) -> usize {
        match self.order {
            RankOrder::DpPpTp => (at.dp * self.pp + at.pp) * self.tp + at.tp,
            RankOrder::PpDpTp => (at.pp * self.dp + at.dp) * self.tp + at.tp,
        }
    }

    /// The coordinates of global rank `rank`.
    ///
    /// # Errors
    /// `Config` when a size is 0 or the rank is not one of the layout.
    pub fn coordinates(&self, rank: usize) -> Result<Coordinates> {
        let world = self.world_size()?;
        if rank >= world {
            let fix =
                format!("the layout dp {} x tp {} x pp {} has {world} ranks", self.dp, self.tp, self.pp);
            return Err(Error::config("rank", format!("0 to {}", world - 1), rank, fix));
        }
        let (tp, outer) = (rank % self.tp, rank / self.tp);
        Ok(match self.order {
            RankOrder::DpPpTp => Coordinates { dp: outer / self.pp, tp, pp: outer % self.pp },
            RankOrder::PpDpTp => Coordinates { dp: outer % self.dp, tp, pp: outer / self.dp },
        })
    }

    /// Checks a group size: 1 (a replicated head), or a multiple of tp that divides `dp * tp`.
    ///
    /// # Errors
    /// `Config` naming the key, the value, the rule and the nearest sizes that would work.
    pub fn check_group_size(&self, size: usize) -> Result<()> {
        self.world_size()?;
        // The same sizes as `group_sizes`, without listing them: `HeadGroup::of` checks the size for each
        // rank.
        let replicas = size / self.tp;
        if size == 1 || (replicas > 0 && size == replicas * self.tp && self.dp.is_multiple_of(replicas)) {
            return Ok(());
        }
        let valid = self.group_sizes();
        let below = valid.iter().rev().find(|&&n| n < size);
        let above = valid.iter().find(|&&n| n > size);
        let near: Vec<String> = below.into_iter().chain(above).map(usize::to_string).collect();
        Err(Error::config(
            "lmhead_tp_size",
            format!("1, or a multiple of tp = {} that divides dp * tp = {}", self.tp, self.dp * self.tp),
            size,
            format!("the nearest that fit dp {} x tp {}: {}", self.dp, self.tp, near.join(", ")),
        ))
    }

    /// Every group size that fits this layout, ascending.
    pub fn group_sizes(&self) -> Vec<usize> {
        let replicas = (1..=self.dp).filter(|r| self.dp.is_multiple_of(*r)).map(|r| r * self.tp);
        let mut sizes: Vec<usize> = replicas.collect();
        if sizes.first() != Some(&1) {
            sizes.insert(0, 1);
        }
        sizes
    }

    /// Every group of `size` ranks, as its first member sees it, in the order of their replicas.
    ///
    /// # Errors
    /// As [`HeadGroup::of`].
    pub fn groups(&self, size: usize) -> Result<Vec<HeadGroup>> {
        self.check_group_size(size)?;
        let (replicas, firsts) = if size == 1 { (1, self.tp) } else { (size / self.tp, 1) };
        let firsts = (0..self.dp).step_by(replicas).flat_map(|dp| (0..firsts).map(move |tp| (dp, tp)));
        let group = |(dp, tp)| HeadGroup::of(self.rank(Coordinates { dp, tp, pp: self.pp - 1 }), self, size);
        firsts.map(group).filter_map(Result::transpose).collect()
    }

    /// The data-parallel indices of the replicas of one of this layout's groups, in its own order.
    ///
    /// # Errors
    /// `Config` where the layout has no such ranks.
    pub fn replicas(&self, group: &HeadGroup) -> Result<Range<usize>> {
        let first = self.coordinates(group.ranks[0])?.dp;
        Ok(first..first + group.replicas())
    }
}

/// The ranks that share one head, from the view of one of them: `replicas x tp` ranks.
///
/// Member `m` of the group belongs to replica `m / tp`, has tensor-parallel index `m % tp`, and holds
/// vocabulary shard `m`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadGroup {
    ranks: Vec<usize>,
    me: usize,
    tp: usize,
    row_part: (usize, usize),
}

impl HeadGroup {
    /// The group of global rank `rank`; `None` off the last pipeline stage.
    ///
    /// A group is `size / tp` consecutive replicas with all their tensor-parallel ranks; a group of size 1 is
    /// the rank alone.
    ///
    /// # Errors
    /// `Config` when the rank or the size does not fit the layout.
    pub fn of(rank: usize, layout: &ParallelLayout, size: usize) -> Result<Option<Self>> {
        let at = layout.coordinates(rank)?;
        layout.check_group_size(size)?;
        if at.pp != layout.pp - 1 {
            return Ok(None);
        }
        let row_part = (at.tp, layout.tp);
        if size == 1 {
            return Ok(Some(HeadGroup { ranks: vec![rank], me: 0, tp: 1, row_part }));
        }
        let replicas = size / layout.tp;
        let first = at.dp / replicas * replicas;
        let members = (first..first + replicas).flat_map(|dp| (0..layout.tp).map(move |tp| (dp, tp)));
        let ranks: Vec<usize> =
            members.map(|(dp, tp)| layout.rank(Coordinates { dp, tp, pp: at.pp })).collect();
        Ok(Some(HeadGroup { me: (at.dp - first) * layout.tp + at.tp, ranks, tp: layout.tp, row_part }))
    }

    /// A group that the engine has formed itself. `ranks` are global ranks, replica after replica, `tp` ranks
    /// each; `rank` is the caller's.
    ///
    /// # Errors
    /// `Config` when the list is empty, names a rank twice, lacks `rank`, or does not divide by `tp`.
    pub fn from_ranks(ranks: Vec<usize>, rank: usize, tp: usize) -> Result<Self> {
        let key = "ranks of the head group";
        if tp == 0 || ranks.is_empty() || !ranks.len().is_multiple_of(tp) {
            let got = format!("{} ranks with tp {tp}", ranks.len());
            return Err(Error::config(
                key,
                "a whole number of replicas of tp ranks each",
                got,
                "list every rank of every replica",
            ));
        }
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config(
                key,
                "each rank once",
                format!("rank {} twice", twice[0]),
                "list each rank once",
            ));
        }
        let Some(me) = ranks.iter().position(|&r| r == rank) else {
            return Err(Error::config(
                key,
                format!("a list with this rank, {rank}"),
                format!("{ranks:?}"),
                "pass each rank the list of its own group",
            ));
        };
        Ok(HeadGroup { row_part: (me % tp, tp), ranks, me, tp })
    }

    /// A group of one rank that holds the whole head. `index` and `tp` are its tensor-parallel index and
    /// size: with `split_rows_over_tp` they decide which part of the rows it answers.
    ///
    /// # Errors
    /// `Config` when the replica has no such rank.
    pub fn replicated(rank: usize, index: usize, tp: usize) -> Result<Self> {
        if index >= tp {
            let (wanted, fix) = (format!("one of 0..{tp}"), "pass the rank's place in its replica");
            return Err(Error::config("tensor-parallel index", wanted, index, fix));
        }
        Ok(HeadGroup { ranks: vec![rank], me: 0, tp: 1, row_part: (index, tp) })
    }

    /// A group of `size` data-parallel ranks numbered from 0, as member `me` sees it.
    ///
    /// # Errors
    /// `Config` when `me >= size`.
    pub fn data_parallel(size: usize, me: usize) -> Result<Self> {
        Self::from_ranks((0..size).collect(), me, 1)
    }

    /// Global ranks of the members, in member order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Number of members, which is the number of shards.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The caller's member number.
    pub fn me(&self) -> usize {
        self.me
    }

    /// Tensor-parallel ranks of a replica within the group.
    pub fn tp(&self) -> usize {
        self.tp
    }

    /// The caller's tensor-parallel index in its replica, and the replica's tensor-parallel size; also where
    /// the head is replicated.
    pub fn row_part(&self) -> (usize, usize) {
        self.row_part
    }

    /// Replicas in the group: each brings rows of its own.
    pub fn replicas(&self) -> usize {
        self.ranks.len() / self.tp
    }

    /// The replica of a member.
    pub fn replica_of(&self, member: usize) -> usize {
        member / self.tp
    }

    /// The members with the caller's tensor-parallel index, one per replica: rows are gathered over these.
    pub fn row_members(&self) -> Vec<usize> {
        (0..self.replicas()).map(|replica| replica * self.tp + self.me % self.tp).collect()
    }

    /// The vocabulary ids of a member's shard.
    pub fn shard(&self, vocab_size: usize, member: usize) -> Range<usize> {
        shard_range(vocab_size, self.size(), member)
    }

    /// The rows, of the `rows` of its replica, whose answers a member gets: all, or with `split` its part.
    pub fn answered_rows(&self, rows: usize, member: usize, split: bool) -> Range<usize> {
        // With a replicated head the only member is the caller, whose replica may have several tp ranks.
        let (index, parts) = if self.size() == 1 { self.row_part } else { (member % self.tp, self.tp) };
        if split { even_part(rows, parts, index) } else { 0..rows }
    }
}

/// Vocabulary ids of shard `index` of `shards`. Blocks of 64 ids are spread evenly; where they do not divide,
/// the first shards have one block more. Every boundary is `min(vocab_size, 64 i)`; the last shards may be
/// smaller or empty.
///
/// # Panics
/// When `index >= shards`.
pub fn shard_range(vocab_size: usize, shards: usize, index: usize) -> Range<usize> {
    let blocks = even_part(vocab_size.div_ceil(BLOCK), shards, index);
    (blocks.start * BLOCK).min(vocab_size)..(blocks.end * BLOCK).min(vocab_size)
}

/// Part `index` of `0..n` when cut into `parts` as evenly as possible, larger parts first.
///
/// # Panics
/// When `index >= parts`.
pub fn even_part(n: usize, parts: usize, index: usize) -> Range<usize> {
    assert!(index < parts, "part {index} of {parts}");
    let (each, more) = (n / parts, n % parts);
    let start = index * each + index.min(more);
    start..start + each + usize::from(index < more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layouts() -> impl Strategy<Value = ParallelLayout> {
        let order = prop_oneof![Just(RankOrder::DpPpTp), Just(RankOrder::PpDpTp)];
        (1usize..13, 1usize..5, 1usize..4, order).prop_map(|(dp, tp, pp, order)| ParallelLayout {
            dp,
            tp,
            pp,
            order,
        })
    }

    proptest! {
        #[test]
        fn what_is_listed_is_what_fits(layout in layouts(), size in 0usize..80) {
            prop_assert_eq!(layout.check_group_size(size).is_ok(), layout.group_sizes().contains(&size));
        }

        #[test]
        fn rank_and_coordinates_are_inverse(layout in layouts()) {
            for rank in 0..layout.world_size().unwrap() {
                prop_assert_eq!(layout.rank(layout.coordinates(rank).unwrap()), rank);
            }
        }

        #[test]
        fn every_last_stage_rank_is_in_exactly_one_group(
            layout in layouts(), pick in any::<prop::sample::Index>(),
        ) {
            let sizes = layout.group_sizes();
            let size = sizes[pick.index(sizes.len())];
            let world = layout.world_size().unwrap();
            let mut groups_of = vec![Vec::new(); world];
            for rank in 0..world {
                let group = HeadGroup::of(rank, &layout, size).unwrap();
                let last = layout.coordinates(rank).unwrap().pp == layout.pp - 1;
                prop_assert_eq!(group.is_some(), last);
                let Some(group) = group else { continue };
                prop_assert_eq!(group.size(), size);
                prop_assert_eq!(group.ranks()[group.me()], rank);
                prop_assert!(group.row_members().contains(&group.me()));
                for &member in group.ranks() {
                    groups_of[member].push(group.ranks().to_vec());
                }
            }
            let groups = layout.groups(size).unwrap();
            prop_assert!(groups.iter().all(|group| group.me() == 0));
            let mut members: Vec<usize> = groups.iter().flat_map(HeadGroup::ranks).copied().collect();
            members.sort_unstable();
            let seen = groups_of.iter().enumerate().filter(|(_, seen)| !seen.is_empty());
            prop_assert_eq!(members, seen.map(|(rank, _)| rank).collect::<Vec<_>>());
            for group in &groups {
                let replicas = layout.replicas(group).unwrap();
                prop_assert_eq!(replicas.len(), group.replicas());
                for (member, &rank) in group.ranks().iter().enumerate() {
                    let dp = layout.coordinates(rank).unwrap().dp;
                    prop_assert_eq!(dp, replicas.start + group.replica_of(member));
                }
            }
            for (rank, seen) in groups_of.iter().enumerate() {
                let last = layout.coordinates(rank).unwrap().pp == layout.pp - 1;
                prop_assert_eq!(seen.len(), if last { size } else { 0 });
                prop_assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
            }
        }

        #[test]
        fn every_id_is_in_exactly_one_shard(vocab in 1usize..5000, shards in 1usize..200) {
            let mut next = 0;
            let mut largest = 0;
            let mut smallest_full = usize::MAX;
            for index in 0..shards {
                let range = shard_range(vocab, shards, index);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.start == vocab || range.start.is_multiple_of(64));
                next = range.end;
                largest = largest.max(range.len());
                if range.end < vocab {
                    smallest_full = smallest_full.min(range.len());
                }
            }
            prop_assert_eq!(next, vocab);
            prop_assert!(smallest_full == usize::MAX || largest - smallest_full <= 64, "not even");
        }

        #[test]
        fn split_rows_cover_the_replica(rows in 0usize..50, layout in layouts()) {
            let size = *layout.group_sizes().last().unwrap();
            for rank in 0..layout.world_size().unwrap() {
                let Some(group) = HeadGroup::of(rank, &layout, size).unwrap() else { continue };
                let first = group.replica_of(group.me()) * group.tp();
                let mut next = 0;
                for member in first..first + group.tp() {
                    if size > 1 {
                        let part = group.answered_rows(rows, member, true);
                        prop_assert_eq!(part.start, next);
                        next = part.end;
                    }
                    prop_assert_eq!(group.answered_rows(rows, member, false), 0..rows);
                }
                prop_assert!(size == 1 || next == rows);
            }
        }
    }

    #[test]
    fn a_group_is_consecutive_replicas_with_all_their_tp_ranks() {
        let layout = ParallelLayout { dp: 4, tp: 2, pp: 2, order: RankOrder::DpPpTp };
        // dp 2, pp 1, tp 0 is rank (2·2 + 1)·2 = 10
        let group = HeadGroup::of(10, &layout, 4).unwrap().unwrap();
        assert_eq!(group.ranks(), [10, 11, 14, 15]);
        assert_eq!((group.me(), group.tp(), group.replicas()), (0, 2, 2));
        assert_eq!(group.row_members(), [0, 2]);
        let megatron = ParallelLayout { order: RankOrder::PpDpTp, ..layout };
        assert_eq!(HeadGroup::of(12, &megatron, 4).unwrap().unwrap().ranks(), [12, 13, 14, 15]);
    }

    #[test]
    fn a_replicated_head_splits_rows_by_the_layouts_tp() {
        let layout = ParallelLayout { dp: 1, tp: 2, pp: 1, order: RankOrder::DpPpTp };
        let group = HeadGroup::of(1, &layout, 1).unwrap().unwrap();
        assert_eq!(group.answered_rows(5, 0, true), 3..5);
    }

    #[test]
    fn one_id_and_more_shards_than_blocks() {
        assert_eq!(shard_range(1, 3, 0), 0..1);
        assert_eq!(shard_range(1, 3, 2), 1..1);
        assert_eq!(shard_range(130, 8, 2), 128..130);
        assert_eq!(shard_range(129_280, 4, 3), 96_960..129_280);
    }

    #[test]
    fn refusals_name_key_value_rule_and_what_would_fit() {
        let layout = ParallelLayout { dp: 6, tp: 2, pp: 1, order: RankOrder::DpPpTp };
        let text = |r: Result<_>| r.map(|_: Option<HeadGroup>| ()).unwrap_err().to_string();
        let rule = "wanted 1, or a multiple of tp = 2 that divides dp * tp = 12";
        assert_eq!(
            text(HeadGroup::of(0, &layout, 0)),
            format!("lmhead_tp_size: {rule}, got 0; the nearest that fit dp 6 x tp 2: 1")
        );
        assert_eq!(
            text(HeadGroup::of(0, &layout, 3)),
            format!("lmhead_tp_size: {rule}, got 3; the nearest that fit dp 6 x tp 2: 2, 4")
        );
        assert_eq!(
            text(HeadGroup::of(0, &layout, 8)),
            format!("lmhead_tp_size: {rule}, got 8; the nearest that fit dp 6 x tp 2: 6, 12")
        );
        assert_eq!(
            text(HeadGroup::of(0, &layout, 99)),
            format!("lmhead_tp_size: {rule}, got 99; the nearest that fit dp 6 x tp 2: 12")
        );
        assert!(text(HeadGroup::of(12, &layout, 1)).starts_with("rank: wanted 0 to 11, got 12"));
        let zero = ParallelLayout { dp: 0, ..layout };
        assert!(text(HeadGroup::of(0, &zero, 1)).starts_with("dp: wanted a size of at least 1, got 0"));
        for (ranks, rank, tp, want) in [
            (vec![], 0, 1, "whole number of replicas"),
            (vec![1, 2, 3], 1, 2, "whole number of replicas"),
            (vec![1, 2], 1, 0, "whole number of replicas"),
            (vec![4, 5, 4], 4, 1, "rank 4 twice"),
            (vec![4, 5], 6, 1, "a list with this rank, 6"),
        ] {
            let text = HeadGroup::from_ranks(ranks, rank, tp).unwrap_err().to_string();
            assert!(text.contains(want), "{text}");
        }
    }
}
