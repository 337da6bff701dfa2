//! The ranks of a run: one OS thread each, every head group with an exchange of its own.

use crate::Failure;
use crate::args::CountMode;
use crate::input::{HeadSource, RankRows, Rows, progress_bar};
use lmhead::backend::Backend;
use lmhead::config::HeadConfig;
use lmhead::error::Result;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, ParallelLayout};
use lmhead::result::{Answer, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::HeadShard;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Everything that a rank needs, before it has a thread.
pub struct Rank {
    pub rank: usize,
    pub dp: usize,
    pub tp: usize,
    pub group: HeadGroup,
    pub shard: Arc<HeadShard>,
}

/// The ranks and, in their order, the endpoints that their threads will own: a rank whose thread ends is seen to be gone.
pub struct Ranks {
    pub ranks: Vec<Rank>,
    exchanges: Vec<Arc<dyn Exchange>>,
}

/// What a rank brings back: its answer, and the time of each step as it saw it.
pub struct Done {
    pub answer: Answer,
    pub steps: Vec<(Duration, lmhead::result::StepStats)>,
}

/// Loads the shards and connects the groups. A range of the vocabulary is loaded once, whoever shares it.
pub fn set_up(
    source: &HeadSource,
    config: &HeadConfig,
    layout: &ParallelLayout,
    group_size: usize,
) -> Result<Ranks> {
    let mut shards: BTreeMap<(usize, usize), Arc<HeadShard>> = BTreeMap::new();
    let mut exchanges: BTreeMap<Vec<usize>, Vec<Option<Arc<dyn Exchange>>>> = BTreeMap::new();
    let (mut ranks, mut endpoints_of) = (Vec::new(), Vec::new());
    for rank in 0..layout.world_size()? {
        let Some(group) = HeadGroup::of(rank, layout, group_size)? else { continue };
        let vocab = group.shard(config.vocab_size, group.me());
        let key = (vocab.start, vocab.end);
        let shard = match shards.entry(key) {
            Entry::Occupied(loaded) => Arc::clone(loaded.get()),
            Entry::Vacant(place) => {
                let bar = progress_bar(&format!("loading ids {}..{}", vocab.start, vocab.end));
                let shard = source.shard(vocab, config, &|done, total| {
                    bar.set_length(total);
                    bar.set_position(done);
                })?;
                bar.finish_and_clear();
                Arc::clone(place.insert(Arc::new(shard)))
            }
        };
        let endpoints = exchanges.entry(group.ranks().to_vec()).or_insert_with(|| {
            local::group(group.size()).into_iter().map(|e| Some(Arc::new(e) as Arc<dyn Exchange>)).collect()
        });
        endpoints_of.push(endpoints[group.me()].take().expect("each member comes once"));
        let at = layout.coordinates(rank)?;
        ranks.push(Rank { rank, dp: at.dp, tp: at.tp, group, shard });
    }
    Ok(Ranks { ranks, exchanges: endpoints_of })
}

/// How the ranks run their steps.
pub struct Plan<'a> {
    pub config: &'a HeadConfig,
    pub request: Request,
    pub mode: CountMode,
    pub steps: usize,
    pub rows: &'a Rows,
    pub parts: &'a [RankRows],
}

/// Runs every rank on a thread of its own: creation, warm-up, then the timed steps.
pub fn run(
    ranks: Ranks,
    backend: &Arc<dyn Backend>,
    plan: &Plan,
) -> std::result::Result<(Vec<Rank>, Vec<Done>), Failure> {
    let Ranks { ranks, exchanges } = ranks;
    let results: Vec<std::result::Result<Done, String>> = thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .zip(exchanges)
            .map(|(rank, exchange)| {
                let backend = Arc::clone(backend);
                thread::Builder::new()
                    .name(format!("rank {}", rank.rank))
                    .spawn_scoped(scope, move || run_one(rank, exchange, backend, plan))
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
    let failed = |(rank, result): (&Rank, &std::result::Result<Done, String>)| {
        result.as_ref().err().map(|text| (rank.rank, text.clone()))
    };
    let failures: Vec<(usize, String)> = ranks.iter().zip(&results).filter_map(failed).collect();
    if failures.is_empty() {
        let done = results.into_iter().flatten().collect();
        return Ok((ranks, done));
    }
    Err(Failure::Ranks(failures))
}

fn run_one(rank: &Rank, exchange: Arc<dyn Exchange>, backend: Arc<dyn Backend>, plan: &Plan) -> Result<Done> {
    let part = &plan.parts[rank.dp];
    let config = plan.config;
    let size = config.hidden_size * plan.rows.dtype.size();
    let bytes = &plan.rows.bytes[part.hidden.start * size..part.hidden.end * size];
    let mut hidden = HiddenRows::new(bytes, plan.rows.dtype, part.hidden.len(), config.hidden_size)?;
    if let Some(selection) = &part.selection {
        hidden = hidden.select(selection)?;
    }
    let group = rank.group.clone();
    // The dp ranks of a group are consecutive; a replicated head is a group of the rank alone.
    let first = rank.dp - group.replica_of(group.me());
    let by_replica: Vec<usize> =
        plan.parts[first..first + group.replicas()].iter().map(|p| p.places.len()).collect();
    let largest = by_replica.iter().copied().max().unwrap_or(0);
    let counts = || match plan.mode {
        CountMode::Exact => RowCounts::exact(&by_replica),
        CountMode::Capacity => RowCounts::capacity(largest, hidden.len()),
        CountMode::Discover => RowCounts::discover(hidden.len()),
    };
    let data = plan.rows.data.of(&part.places);
    let mut head = LmHead::new(config, group, Arc::clone(&rank.shard), exchange, backend)?;
    head.warm_up(1, &[plan.request])?;
    let mut steps = Vec::new();
    let mut answer = None;
    for _ in 0..plan.steps {
        let began = Instant::now();
        let step = if plan.rows.data.is_adjusted() {
            head.step_adjusted(counts(), &plan.request)?
        } else {
            head.step(counts(), &plan.request)?
        };
        let done = data.with(|inputs| step.run_with(hidden, &inputs))?;
        steps.push((began.elapsed(), done.stats));
        answer = Some(done);
    }
    Ok(Done { answer: answer.expect("at least one step"), steps })
}
