//! `lmhead run`: the whole way, from files or synthetic data to an answer, a check and a report.

use crate::args::{CountMode, ExchangeName, RunArgs};
use crate::assembled::Assembled;
use crate::backends::{Chosen, choose};
use crate::check;
use crate::input::{HeadSource, Rows};
use crate::output::OutFile;
use crate::ranks::{self, InProcess, Plan, Rank, Told};
use crate::report::{self, RankReport, Report, StepReport};
use crate::times::{Percentiles, SlowestRank, Times};
use crate::{Failure, draft, print, sampling_args, tell, threads};
use lmhead::backend::HeadTypes;
use lmhead::config::{HeadConfig, Settings};
use lmhead::dtype::DType;
use lmhead::exchange::columns;
use lmhead::layout::{ParallelLayout, RankOrder};
use lmhead::result::{Answer, Request, RowStatus};
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
    config.hidden_dtype = Some(rows.dtype);
    for note in rows.data.notes() {
        tell(format_args!("warning: {note}"));
    }
    let layout = ParallelLayout { dp: rows.counts.len(), tp: args.tp()?, pp: 1, order: RankOrder::default() };
    let group_size = config.group_size(&layout)?;
    let slowest = SlowestRank::new(layout.world_size()? / group_size, steps)?;
    request.check(config.vocab_size)?;
    if let Request::Logprobs { top_n, .. } = request {
        config.logprobs_chunk_rows(group_size, rows.dtype, top_n)?;
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
    let (ranks, done) = ranks::run(set_up, &backend, &plan, &slowest)?;
    let (answers, told): (Vec<Answer>, Vec<Told>) = done.into_iter().map(|d| (d.answer, d.told)).unzip();
    assemble(&mut answer, &ranks, answers, &plan)?;
    let of_status =
        |status| (0..answer.rows).filter(|&i| answer.row_status[i] == status).collect::<Vec<usize>>();
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
            Some(check::check(&answer, &rows, &shards, &config, seed, data)?)
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

/// Puts the ranks' answers in output-row order. The tp ranks of a replica answer the same rows: theirs must
/// be the same bits. Each answer is given back before the next one is looked at.
fn assemble(whole: &mut Assembled, ranks: &[Rank], answers: Vec<Answer>, plan: &Plan) -> Result<(), Failure> {
    let mut answered = vec![0; plan.parts.len()];
    for (rank, answer) in ranks.iter().zip(answers) {
        let places = &plan.parts[rank.dp].places;
        let first = ranks.iter().find(|r| r.dp == rank.dp).expect("the rank itself at the latest");
        if first.rank == rank.rank || plan.config.split_rows_over_tp {
            let begin = answered[rank.dp];
            answered[rank.dp] += answer.rows();
            whole.take(&places[begin..answered[rank.dp]], answer);
        } else if !whole.has(places, &answer) {
            let text =
                format!("its answer differs from rank {}'s; please report it with the command", first.rank);
            return Err(Failure::Ranks(vec![(rank.rank, text)]));
        }
    }
    Ok(())
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
