//! `lmhead run`: the whole way, from files or synthetic data to an answer, a check and a report.

use crate::args::{CountMode, ExchangeName, RunArgs};
use crate::assembled::Assembled;
use crate::backends::{Chosen, choose};
use crate::check;
use crate::input::{HeadSource, Rows};
use crate::output::OutFile;
use crate::ranks::{self, InProcess, Plan, Rank, Ranks, Told};
use crate::report::{self, RankReport, Report, StepReport};
use crate::times::{Percentiles, SlowestRank, Times};
use crate::{Failure, draft, print, sampling_args, tell, threads};
use lmhead::backend::{Backend, HeadTypes};
use lmhead::config::{HeadConfig, Settings};
use lmhead::dtype::DType;
use lmhead::finish::columns;
use lmhead::layout::{ParallelLayout, RankOrder};
use lmhead::result::{Request, RowStatus};
use lmhead::step::HEADER_BYTES;
use lmhead::weights::HeadShard;
use std::sync::Arc;
use std::time::Instant;

/// Runs it all; false when the check failed.
pub fn run(args: &RunArgs) -> Result<bool, Failure> {
    // Everything that the user wrote is judged before anything is loaded or computed.
    let (request, threads, seed) = (args.request()?, args.threads()?, args.seed()?);
    let (warm_up, steps, sampling) = (args.warm_up()?, args.steps()?, args.sampling()?);
    args.check_ranks()?;
    threads::limit(threads)?;
    let mut settings = match &args.config {
        Some(path) => Settings::from_file(path)?,
        None => Settings::default(),
    };
    if let Some(size) = args.lmhead_tp_size()? {
        settings.lmhead_tp_size = size;
    }
    let source = HeadSource::open(args, &settings)?;
    let mut config = source.config(&settings)?;
    request.check(config.vocab_size)?;
    let targets = if args.target_ids { Some(draft::target_ids(&source, &request)?) } else { None };
    let rows = Rows::read(args, &source, &config, &request)?;
    let request = rows.data.asked(request);
    config.hidden_dtype = Some(rows.dtype);
    for note in rows.data.notes() {
        tell(format_args!("warning: {note}"));
    }
    let layout = ParallelLayout { dp: rows.counts.len(), tp: args.tp()?, pp: 1, order: RankOrder::default() };
    let group_size = config.group_size(&layout)?;
    let slowest = SlowestRank::new(layout.world_size()? / group_size, steps)?;
    request.check(config.vocab_size)?;
    if let Request::Logprobs { targets, top_n, .. } = request {
        config.logprobs_chunk_rows(group_size, rows.dtype, targets, top_n)?;
    }
    let out =
        args.out.as_deref().map(|path| OutFile::check(path, &args.input_files(), "--out")).transpose()?;
    let mut answer = Assembled::new(&request, rows.outputs(), config.vocab_size)?;

    let Chosen { backend, description, threads } =
        choose(args.backend, threads, &config, &source, rows.dtype)?;
    let exchange = match args.exchange {
        ExchangeName::Auto | ExchangeName::Local => "local",
    };
    let began = Instant::now();
    let set_up = ranks::set_up(&source, &config, &layout, group_size, &mut InProcess::default())?;
    let load_seconds = began.elapsed().as_secs_f64();
    source.check_unchanged()?;
    let mut warnings = source.warnings();
    for warning in &warnings {
        tell(format_args!("warning: {warning}"));
    }
    warnings.extend(rows.data.notes().iter().cloned());

    let parts = rows.by_rank();
    let plan = Plan { config: &config, request, mode: args.mode, warm_up, steps, rows: &rows, parts: &parts };
    let (ranks, told) = compute(set_up, &backend, &plan, &slowest, &mut answer)?;
    let of_status = |status| (0..answer.rows).filter(|&i| answer.status(i) == status).collect::<Vec<usize>>();
    let bad = of_status(RowStatus::NonFinite);
    let none = of_status(RowStatus::NothingAllowed);
    for (rows, problem) in
        [(&bad, "non-finite logits (row_status 1)"), (&none, "no id that is allowed (row_status 2)")]
    {
        if !rows.is_empty() {
            let (n, first) = (rows.len(), &rows[..rows.len().min(8)]);
            let have = if n == 1 { "output row has" } else { "output rows have" };
            tell(format_args!("warning: {n} {have} {problem}, the first: {first:?}"));
        }
    }

    let checked = match args.check {
        true => {
            let shards = group_shards(&ranks, &source, &config)?;
            let types = shards.first().map(|shard| HeadTypes::of(shard, rows.dtype));
            let data = check::Data {
                gaussian: source.is_synthetic(),
                flushes: types.is_some_and(|types| backend.flushes_subnormals(types)),
                accuracy: backend.accuracy(),
            };
            Some(check::check(&answer, &request, &rows, &shards, &config, seed, data)?)
        }
        false => None,
    };
    // A step that read old and new weights is of neither file, and a check against the new ones says nothing
    // of it.
    if ranks.iter().any(|rank| rank.shard.is_mapped()) {
        source.check_unchanged()?;
    }
    if let Some(targets) = targets {
        draft::translate(&mut answer.output, targets);
    }
    if let Some(out) = out {
        out.write(&answer)?;
    }
    let passed = checked.as_ref().is_none_or(|c| c.passed);
    let weights = ranks.first().map_or(source.dtype(), |r| r.shard.matrix().dtype());
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        command: report::command(),
        machine: report::machine(),
        head: source.describe(),
        rows: rows.origin.clone(),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        weights: weights.to_string(),
        quantization: config.quantization.to_string(),
        request: sampling_args::words(&request, sampling.as_ref(), rows.data.own_sampling()),
        mode: mode_name(args.mode).into(),
        backend: description,
        exchange: exchange.into(),
        threads,
        dp: layout.dp,
        tp: layout.tp,
        lmhead_tp_size: group_size,
        hidden_rows: rows.counts.iter().sum(),
        output_rows: answer.rows,
        rows_not_good: bad.len() + none.len(),
        load_seconds,
        warm_up,
        steps,
        step: step_report(&ranks, &told, &plan, slowest.percentiles()),
        ranks: ranks.iter().zip(&told).map(|(rank, told)| rank_report(rank, told, &plan)).collect(),
        check: checked,
        out: args.out.as_ref().map(|path| path.display().to_string()),
        warnings,
    };
    if args.json {
        print(&serde_json::to_string_pretty(&report).expect("a report is JSON"))?;
    } else {
        print(&report.table())?;
    }
    Ok(passed)
}

/// Runs the ranks' steps, which leave their answers in `whole`, in output-row order. The tp ranks of a replica
/// answer the same rows, unless these are split among them: the first writes into `whole`, the others into
/// memory of their own, which must then hold the same bits.
fn compute(
    set_up: Ranks,
    backend: &Arc<dyn Backend>,
    plan: &Plan,
    slowest: &SlowestRank,
    whole: &mut Assembled,
) -> Result<(Vec<Rank>, Vec<Told>), Failure> {
    let (shares, places) = shares(&set_up.ranks, plan);
    let room = |share: &Share| Assembled::new(&plan.request, share.rows, plan.config.vocab_size);
    let again = shares.iter().filter(|share| share.same_as.is_some());
    let mut repeated: Vec<Assembled> = again.map(room).collect::<lmhead::Result<_>>()?;
    let once: Vec<usize> = shares.iter().filter(|s| s.same_as.is_none()).map(|s| s.rows).collect();

    let (mut of_whole, mut of_repeated) =
        (whole.split(&once).into_iter(), repeated.iter_mut().map(Assembled::whole));
    let parts = shares.iter().map(|share| match share.same_as {
        None => of_whole.next().expect("a part for each share"),
        Some(_) => of_repeated.next().expect("memory for each share"),
    });
    let done = ranks::run(set_up, backend, plan, slowest, parts.collect())?;

    let again = shares.iter().enumerate().filter_map(|(i, share)| Some((i, share.first, share.same_as?)));
    for ((i, first, rank), answer) in again.zip(repeated) {
        if !whole.has(first, &answer) {
            let text = format!("its answer differs from rank {rank}'s; please report it with the command");
            return Err(Failure::Ranks(vec![(done.0[i].rank, text)]));
        }
    }
    whole.reorder(&places);
    Ok(done)
}

/// Which rows of the whole answer, in the order of the ranks, a rank answers.
struct Share {
    first: usize,
    rows: usize,
    /// The rank that writes them into the whole, where that is another one.
    same_as: Option<usize>,
}

/// What each rank answers, and for each row of the whole, as the ranks leave it, its output row.
fn shares(ranks: &[Rank], plan: &Plan) -> (Vec<Share>, Vec<usize>) {
    let split = plan.config.split_rows_over_tp;
    let mut order: Vec<usize> = Vec::new();
    let mut shares: Vec<Share> = Vec::new();
    for rank in ranks {
        let places = &plan.parts[rank.dp].places;
        let answered = rank.group.answered_rows(places.len(), rank.group.me(), split);
        let rows = answered.len();
        let before = ranks[..shares.len()].iter().position(|other| other.dp == rank.dp);
        shares.push(match before.filter(|_| !split) {
            Some(same) => Share { first: shares[same].first, rows, same_as: Some(ranks[same].rank) },
            None => {
                let first = order.len();
                order.extend(&places[answered]);
                Share { first, rows, same_as: None }
            }
        });
    }
    (shares, order)
}

/// The shards of the first group, which together are the vocabulary. Those of members that other processes
/// run are loaded here.
fn group_shards(
    ranks: &[Rank],
    source: &HeadSource,
    config: &HeadConfig,
) -> Result<Vec<Arc<HeadShard>>, Failure> {
    let Some(first) = ranks.first() else { return Ok(Vec::new()) };
    let shard = |(member, rank): (usize, &usize)| match ranks.iter().find(|r| r.rank == *rank) {
        Some(here) => Ok(Arc::clone(&here.shard)),
        None => {
            let vocab = first.group.shard(config.vocab_size, member);
            Ok(Arc::new(source.shard(vocab, config, &|_, _| ())?))
        }
    };
    first.group.ranks().iter().enumerate().map(shard).collect()
}

fn mode_name(mode: CountMode) -> &'static str {
    match mode {
        CountMode::Exact => "exact",
        CountMode::Capacity => "capacity",
        CountMode::Discover => "discover",
    }
}

fn rank_report(rank: &Rank, told: &Told, plan: &Plan) -> RankReport {
    let vocab = rank.shard.vocab();
    let Told { stats, times, .. } = told;
    RankReport {
        rank: rank.rank,
        dp: rank.dp,
        tp: rank.tp,
        group: rank.group.ranks().to_vec(),
        hidden_rows: plan.parts[rank.dp].hidden.len(),
        output_rows: plan.parts[rank.dp].places.len(),
        shard: [vocab.start, vocab.end],
        shard_bytes: rank.shard.bytes(),
        contract_us: times.contract.median_us(),
        gather_us: times.gather.median_us(),
        matmul_us: times.matmul.median_us(),
        exchange_us: times.exchange.median_us(),
        step_us: times.step.median_us(),
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        rounds: stats.rounds,
        chunk_bytes: stats.chunk_bytes,
    }
}

/// What a verified exact step for all f32 logits would bring to the ranks: headers, hidden rows, logits.
fn full_logits_bytes(ranks: &[Rank], told: &[Told], plan: &Plan) -> u64 {
    let hidden = plan.config.hidden_size * plan.rows.dtype.size();
    let of_rank = |(rank, told): (&Rank, &Told)| {
        let (group, vocab_size) = (&rank.group, plan.config.vocab_size);
        let others = || (0..group.size()).filter(|m| *m != group.me());
        let first = rank.dp - group.replica_of(group.me());
        let peers = (first..first + group.replicas()).filter(|dp| *dp != rank.dp);
        let gathered: usize = peers.map(|dp| plan.parts[dp].places.len()).sum();
        let row: usize =
            others().map(|m| columns::row_stride(group.shard(vocab_size, m).len(), DType::F32)).sum();
        // With tensor parallelism the headers come again, with a digest of the inputs.
        let headers = if group.tp() > 1 { 2 } else { 1 };
        (others().count() * headers * HEADER_BYTES + gathered * hidden + told.rows * row) as u64
    };
    ranks.iter().zip(told).map(of_rank).sum()
}

fn step_report(ranks: &[Rank], told: &[Told], plan: &Plan, percentiles: Percentiles) -> StepReport {
    let slowest = |of: &dyn Fn(&Told) -> &Times| told.iter().map(|t| of(t).median_us()).fold(0.0, f64::max);
    let matmul_us = slowest(&|t| &t.times.matmul);
    let streamed: u64 = told.iter().map(|t| t.stats.weight_bytes).sum();
    StepReport {
        contract_us: slowest(&|t| &t.times.contract),
        gather_us: slowest(&|t| &t.times.gather),
        matmul_us,
        exchange_us: slowest(&|t| &t.times.exchange),
        step_us: slowest(&|t| &t.times.step),
        percentiles,
        bytes_exchanged: told.iter().map(|t| t.stats.bytes_received).sum(),
        rounds: told.iter().map(|t| t.stats.rounds).max().unwrap_or(0),
        full_logits_bytes: full_logits_bytes(ranks, told, plan),
        weight_gb_per_s: if matmul_us > 0.0 { streamed as f64 / (matmul_us * 1e3) } else { 0.0 },
    }
}
