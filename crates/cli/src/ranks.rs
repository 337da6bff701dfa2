//! The ranks that this process runs: one OS thread each, and an exchange for every head group. [`crate::job`]
//! says which process runs which rank.

use crate::Failure;
use crate::args::CountMode;
use crate::input::{HeadSource, RankRows, RunRows, advance, progress_bar};
use crate::times::{SlowestRank, StageTimes};
use lmhead::backend::Backend;
use lmhead::backend::On;
use lmhead::config::{HeadConfig, Verify};
use lmhead::error::Result;
use lmhead::exchange::{Exchange, local};
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::{HeadGroup, ParallelLayout};
use lmhead::result::{AnswerBuffers, Request, StepStats};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::HeadShard;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Everything that a rank's thread is started with.
pub struct Rank {
    pub rank: usize,
    pub dp: usize,
    pub tp: usize,
    pub group: HeadGroup,
    pub shard: Arc<HeadShard>,
}

/// The ranks and their endpoints, in the same order. Each thread owns its endpoint, so that peers notice when
/// the thread ends.
pub struct Ranks {
    pub ranks: Vec<Rank>,
    exchanges: Vec<Arc<dyn Exchange>>,
}

/// A rank of the run, in this process or another.
pub struct Member {
    pub rank: usize,
    pub dp: usize,
    pub group: HeadGroup,
}

/// All ranks that hold a part of a head, ascending.
pub fn members(layout: &ParallelLayout, group_size: usize) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for rank in 0..layout.world_size()? {
        let Some(group) = HeadGroup::of(rank, layout, group_size)? else { continue };
        members.push(Member { rank, dp: layout.coordinates(rank)?.dp, group });
    }
    Ok(members)
}

/// How the ranks of this process reach the others of their groups: what [`set_up`] needs of a transport.
pub trait Connect {
    /// The global ranks that this process runs, ascending, each once. [`set_up`] skips those that hold no
    /// part of a head.
    fn ranks(&self, layout: &ParallelLayout) -> Result<Vec<usize>>;

    /// The endpoint of member `group.me()`. Called once for each rank that holds a part of a head.
    fn endpoint(&mut self, group: &HeadGroup) -> Result<Arc<dyn Exchange>>;
}

/// All ranks in this process, connected by [`local`].
#[derive(Default)]
pub struct InProcess {
    /// Key: a group's ranks. Value: its members' endpoints, `None` once taken.
    groups: BTreeMap<Vec<usize>, Vec<Option<Arc<dyn Exchange>>>>,
}

impl Connect for InProcess {
    fn ranks(&self, layout: &ParallelLayout) -> Result<Vec<usize>> {
        Ok((0..layout.world_size()?).collect())
    }

    fn endpoint(&mut self, group: &HeadGroup) -> Result<Arc<dyn Exchange>> {
        let endpoints = self.groups.entry(group.ranks().to_vec()).or_insert_with(|| {
            local::group(group.size()).into_iter().map(|e| Some(Arc::new(e) as Arc<dyn Exchange>)).collect()
        });
        Ok(endpoints[group.me()].take().expect("each member comes once"))
    }
}

/// What a rank reports of its steps.
pub struct RankTimes {
    /// Statistics of the last step.
    pub stats: StepStats,
    pub times: StageTimes,
}

/// Loads the shards of this process's ranks and connects them to their groups. Ranks with the same vocabulary
/// range share one loaded shard.
pub fn set_up(
    source: &HeadSource,
    config: &HeadConfig,
    layout: &ParallelLayout,
    group_size: usize,
    connect: &mut dyn Connect,
) -> Result<Ranks> {
    let mut shards: BTreeMap<(usize, usize), Arc<HeadShard>> = BTreeMap::new();
    let (mut ranks, mut exchanges) = (Vec::new(), Vec::new());
    for rank in connect.ranks(layout)? {
        let Some(group) = HeadGroup::of(rank, layout, group_size)? else { continue };
        // Before anything that can fail, so that peers in other processes notice if this process ends.
        exchanges.push(connect.endpoint(&group)?);
        let vocab = group.shard(config.vocab_size, group.me());
        let key = (vocab.start, vocab.end);
        let shard = match shards.entry(key) {
            Entry::Occupied(loaded) => Arc::clone(loaded.get()),
            Entry::Vacant(place) => {
                let bar = progress_bar(&format!("loading ids {}..{}", vocab.start, vocab.end));
                let shard = source.shard(vocab, config, &|done, total| advance(&bar, done, total))?;
                bar.finish_and_clear();
                Arc::clone(place.insert(Arc::new(shard)))
            }
        };
        let at = layout.coordinates(rank)?;
        ranks.push(Rank { rank, dp: at.dp, tp: at.tp, group, shard });
    }
    Ok(Ranks { ranks, exchanges })
}

/// How the ranks run their steps.
pub struct RunTask<'a> {
    pub config: &'a HeadConfig,
    pub request: Request,
    pub mode: CountMode,
    /// Steps before the timed ones.
    pub warm_up: usize,
    pub steps: usize,
    pub rows: &'a RunRows,
    pub parts: &'a [RankRows],
}

/// Runs every rank on a thread of its own: creation, warm-up, then the timed steps. Each step writes the
/// rank's answer into its part of `parts`. The timed steps' durations go to `slowest`, whose groups are those
/// of the ranks in ascending order.
pub fn run(
    ranks: Ranks,
    backend: &Arc<dyn Backend>,
    task: &RunTask,
    slowest: &SlowestRank,
    parts: Vec<AnswerBuffers<'_>>,
) -> std::result::Result<(Vec<Rank>, Vec<RankTimes>), Failure> {
    assert_eq!(parts.len(), ranks.ranks.len(), "every rank has a part");
    let Ranks { ranks, exchanges } = ranks;
    let mut groups: Vec<&[usize]> = ranks.iter().map(|rank| rank.group.ranks()).collect();
    groups.sort_unstable();
    groups.dedup();
    let results: Vec<std::result::Result<RankTimes, String>> = thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .zip(exchanges)
            .zip(parts)
            .map(|((rank, exchange), part)| {
                let backend = Arc::clone(backend);
                let group = groups.partition_point(|ranks| *ranks < rank.group.ranks());
                let took = move |step: usize, time: Duration| slowest.add(group, step, time);
                thread::Builder::new()
                    .name(format!("rank {}", rank.rank))
                    .spawn_scoped(scope, move || run_one(rank, exchange, backend, task, part, took))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.map(|t| t.join()) {
                Ok(Ok(result)) => result.map_err(|e| e.to_string()),
                Ok(Err(_)) => Err("its thread panicked; please report it with the command".into()),
                Err(e) => Err(format!("its thread could not be started: {e}; use fewer ranks")),
            })
            .collect()
    });
    let failed = |(rank, result): (&Rank, &std::result::Result<RankTimes, String>)| {
        result.as_ref().err().map(|text| (rank.rank, text.clone()))
    };
    let failures: Vec<(usize, String)> = ranks.iter().zip(&results).filter_map(failed).collect();
    if failures.is_empty() {
        let times = results.into_iter().flatten().collect();
        return Ok((ranks, times));
    }
    Err(Failure::Ranks(failures))
}

fn run_one(
    rank: &Rank,
    exchange: Arc<dyn Exchange>,
    backend: Arc<dyn Backend>,
    task: &RunTask,
    mut answer: AnswerBuffers<'_>,
    took: impl Fn(usize, Duration),
) -> Result<RankTimes> {
    let part = &task.parts[rank.dp];
    let config = task.config;
    let size = config.hidden_size * task.rows.dtype.size();
    let bytes = &task.rows.bytes[part.hidden.start * size..part.hidden.end * size];
    let mut hidden = HiddenRows::new(bytes, task.rows.dtype, part.hidden.len(), config.hidden_size)?;
    if let Some(selection) = &part.selection {
        hidden = hidden.select(selection)?;
    }
    let group = rank.group.clone();
    // The dp ranks of a group are consecutive; a rank with a whole head is a group of its own.
    let first = rank.dp - group.replica_of(group.me());
    let by_replica: Vec<usize> =
        task.parts[first..first + group.replicas()].iter().map(|p| p.places.len()).collect();
    let largest = by_replica.iter().copied().max().unwrap_or(0);
    let counts = || match task.mode {
        CountMode::Exact => RowCounts::exact(&by_replica),
        CountMode::Capacity => RowCounts::capacity(largest, hidden.len()),
        CountMode::Discover => RowCounts::discover(hidden.len()),
    };
    let data = task.rows.data.of(&part.places);
    let mut head = LmHead::new(config, group, Arc::clone(&rank.shard), exchange, backend)?;
    if config.verify == Verify::WarmUp {
        // The head's own warm-up, in which the ranks compare their contract. With 0 rows it streams no
        // weights.
        head.warm_up(0, &[task.request])?;
    }
    let options = StepOptions { adjusted: task.rows.data.is_adjusted(), ..StepOptions::default() };
    let mut step = || {
        let ticket = head.begin(&counts(), &task.request, options)?;
        data.with(|inputs| head.run_into(ticket, hidden, &inputs, answer.reborrow(), On::default()))
    };
    // Steps like the timed ones, so that no timed step is the first to touch a buffer, a page of the weights
    // or a kernel.
    for _ in 0..task.warm_up {
        step()?;
    }
    let mut times = StageTimes::default();
    let mut stats = StepStats::default();
    for number in 0..task.steps {
        let began = Instant::now();
        stats = step()?;
        let time = began.elapsed();
        took(number, time);
        times.add(time, &stats);
    }
    Ok(RankTimes { stats, times })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::RunRows;
    use crate::row_data::RowData;
    use lmhead::backend::cpu::CpuBackend;
    use lmhead::config::Settings;
    use lmhead::layout::RankOrder;
    use lmhead::result::OwnedAnswer;
    use lmhead::weights::synthetic;

    /// One of several processes: its ranks and their endpoints.
    struct Process {
        endpoints: Vec<(usize, Option<Arc<dyn Exchange>>)>,
    }

    impl Connect for Process {
        fn ranks(&self, _: &ParallelLayout) -> Result<Vec<usize>> {
            Ok(self.endpoints.iter().map(|(rank, _)| *rank).collect())
        }

        fn endpoint(&mut self, group: &HeadGroup) -> Result<Arc<dyn Exchange>> {
            let rank = group.ranks()[group.me()];
            let own = self.endpoints.iter_mut().find(|(own, _)| *own == rank);
            Ok(own.and_then(|(_, endpoint)| endpoint.take()).expect("each rank of this process once"))
        }
    }

    /// Six ranks in two groups of three: in one process, and in three processes with two ranks each.
    #[test]
    fn processes_that_each_run_their_own_ranks_answer_as_one_process_does() {
        let settings = Settings::default();
        let preset = synthetic::preset("tiny").unwrap();
        let source = HeadSource::of_sizes(preset, &settings, None).unwrap();
        let mut config = source.config(&settings).unwrap();
        let layout = ParallelLayout { dp: 6, tp: 1, pp: 1, order: RankOrder::default() };
        let (request, counts) = (Request::top_k(3), vec![2, 0, 3, 1, 4, 2]);
        let total: usize = counts.iter().sum();
        let dtype = source.hidden_dtype(&config);
        config.hidden_dtype = Some(dtype);
        let hidden = |row| synthetic::hidden_row(5, row as u64, config.hidden_size, dtype);
        let rows = RunRows {
            bytes: (0..total).flat_map(hidden).collect(),
            dtype,
            origin: String::new(),
            counts,
            indices: None,
            data: RowData::synthetic(5, total, config.vocab_size, &request),
        };
        let parts = rows.by_rank();
        let task = RunTask {
            config: &config,
            request,
            mode: CountMode::Exact,
            warm_up: 0,
            steps: 1,
            rows: &rows,
            parts: &parts,
        };
        let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(Some(2)).unwrap());
        let answers = |connect: &mut dyn Connect| -> Vec<(usize, OwnedAnswer)> {
            let ranks = set_up(&source, &config, &layout, 3, connect).unwrap();
            let slowest = SlowestRank::new(2, task.steps).unwrap();
            let room = |rank: &Rank| {
                let rows = task.parts[rank.dp].places.len();
                OwnedAnswer::new(&request, rows, config.vocab_size).unwrap()
            };
            let mut answers: Vec<OwnedAnswer> = ranks.ranks.iter().map(room).collect();
            let parts = answers.iter_mut().map(OwnedAnswer::buffers).collect();
            let Ok((ranks, _)) = run(ranks, &backend, &task, &slowest, parts) else {
                panic!("a rank failed")
            };
            ranks.iter().map(|rank| rank.rank).zip(answers).collect()
        };
        let together = answers(&mut InProcess::default());
        assert_eq!(together.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);

        let mut endpoints: BTreeMap<usize, Arc<dyn Exchange>> = BTreeMap::new();
        for first in [0, 3] {
            let group = local::group(3).into_iter().map(|e| Arc::new(e) as Arc<dyn Exchange>);
            endpoints.extend((first..).zip(group));
        }
        let processes = [vec![0, 4], vec![1, 2, 5], vec![3]];
        let processes = processes.map(|ranks| Process {
            endpoints: ranks.into_iter().map(|rank| (rank, endpoints.remove(&rank))).collect(),
        });
        let mut apart: Vec<(usize, OwnedAnswer)> = thread::scope(|scope| {
            let answers = &answers;
            let threads = processes.map(|mut process| scope.spawn(move || answers(&mut process)));
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        apart.sort_by_key(|(rank, _)| *rank);
        for ((rank, want), (same, got)) in together.iter().zip(&apart) {
            assert_eq!((rank, want.columns()), (same, got.columns()));
        }
        assert_eq!(apart.len(), 6);
    }
}
