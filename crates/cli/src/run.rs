//! `lmhead run`: from files or synthetic data to an answer, a check and a report. Where several processes
//! share a run, each does this with its own rank, and the first collects the results of all.

use crate::args::{CountMode, RunArgs};
use crate::backends::{Chosen, choose};
use crate::input::{HeadSource, RunRows};
use crate::job::{self, Alive, Peers, RunJob};
use crate::output::{OutFile, input_files};
use crate::ranks::{self, Member, Rank, RankTimes, Ranks, RunTask};
use crate::report::{RankReport, RunReport, StepReport, command};
use crate::times::{Percentiles, SlowestRank};
use crate::{Failure, draft, print, sampling_args, tell, terminal, threads};
use lmhead::backend::{Backend, HeadTypes};
use lmhead::config::{HeadConfig, Settings};
use lmhead::doctor::machine_name;
use lmhead::dtype::DType;
use lmhead::head::{bytes_exchanged, step_traffic};
use lmhead::layout::{HeadGroup, Launch, ParallelLayout, RankOrder};
use lmhead::reference::Judge;
use lmhead::result::{AnswerBuffers, OwnedAnswer, Request, RowStatus, StepStats};
use lmhead::sampling::SamplingParams;
use lmhead::weights::HeadShard;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The subcommand; false when the check failed.
pub fn run(args: &mut RunArgs) -> Result<bool, Failure> {
    let launch = job::launch(args.exchange)?;
    args.processes = launch.map(|launch| launch.world_size);
    // Before anything that can fail: the other processes wait until this one has joined.
    let mut job = RunJob::join(launch)?;
    match run_ranks(args, launch.as_ref(), &mut job) {
        Ok((passed, timeout)) => {
            let own = launch.map_or(0, |launch| launch.rank);
            job.finish(timeout).map_err(|error| Failure::Ranks(vec![(own, error.to_string())]))?;
            Ok(passed)
        }
        Err(failure) => Err(job.give_up(failure)),
    }
}

/// Runs the ranks of this process. The first process also assembles, checks and reports the results of all.
/// Returns whether the check passed, and how long processes wait for each other at the end.
fn run_ranks(args: &RunArgs, launch: Option<&Launch>, job: &mut RunJob) -> Result<(bool, Duration), Failure> {
    let is_first = launch.is_none_or(|launch| launch.rank == 0);
    // A warning that all processes have in common is printed by the first.
    let warn = |warning: &dyn std::fmt::Display| {
        if is_first {
            tell(format_args!("warning: {warning}"));
        }
    };
    // All options and files are validated before anything is loaded or computed.
    let (request, threads, seed) = (args.request()?, job::threads_of(args, launch), args.seed);
    let (warm_up, steps, sampling) = (args.warm_up(), args.steps, args.sampling()?);
    let (tp, mode) = (args.rows.ranks.tp, args.rows.mode);
    args.check_ranks()?;
    threads::limit(threads)?;
    let mut settings = match &args.config {
        Some(path) => Settings::from_file(path)?,
        None => Settings::default(),
    };
    if let Some(size) = args.rows.lmhead_tp_size {
        settings.lmhead_tp_size = size;
    }
    let source = HeadSource::open(args, &settings)?;
    let mut config = source.config(&settings)?;
    request.check(config.vocab_size)?;
    let targets = if args.target_ids { Some(draft::target_ids(&source, &request)?) } else { None };
    let rows = RunRows::read(args, &source, &config, &request)?;
    let request = rows.data.asked(request);
    config.hidden_dtype = Some(rows.dtype);
    rows.data.notes().iter().for_each(|note| warn(note));
    let layout = ParallelLayout { dp: rows.counts.len(), tp, pp: 1, order: RankOrder::default() };
    job::check_layout(launch, &layout)?;
    let group_size = config.group_size(&layout)?;
    let slowest = SlowestRank::new(layout.world_size()? / group_size, steps)?;
    request.check(config.vocab_size)?;
    if let Request::Logprobs { targets, top_n, .. } = request {
        config.logprobs_chunk_rows(group_size, rows.dtype, targets, top_n)?;
    }
    let out = args.out.as_deref().filter(|_| is_first);
    let inputs =
        [&args.rows.hidden, &args.config, &args.head.head].into_iter().flatten().map(PathBuf::as_path);
    let inputs = input_files(inputs, args.head.model.as_deref());
    let out = out.map(|path| OutFile::check(path, &inputs, "--out")).transpose()?;
    let mut answer =
        OwnedAnswer::new(&request, if is_first { rows.outputs() } else { 0 }, config.vocab_size)?;

    let Chosen { backend, description, threads } =
        choose(args.backend, threads, &config, &source, rows.dtype)?;
    let began = Instant::now();
    let set_up = ranks::set_up(&source, &config, &layout, group_size, job.connect())?;
    let load_seconds = began.elapsed().as_secs_f64();
    source.check_unchanged()?;
    let mut warnings = source.warnings();
    warnings.iter().for_each(|warning| warn(warning));
    warnings.extend(rows.data.notes().iter().cloned());

    let parts = rows.by_rank();
    let task = RunTask { config: &config, request, mode, warm_up, steps, rows: &rows, parts: &parts };
    let members = ranks::members(&layout, group_size)?;
    let peers = job.peers(config.create_timeout);
    let (ranks, times) = match &peers {
        None => compute(set_up, &backend, &task, &slowest, &members, &mut answer)?,
        Some(peers) => compute_apart(set_up, &backend, &task, &slowest, &members, &mut answer, peers)?,
    };
    let done = (ranks.iter().zip(&times)).map(|(rank, times)| Done::of(rank, times, &task)).collect();
    let (done, percentiles) = match &peers {
        None => (done, slowest.percentiles()),
        Some(peers) => collect_done(done, &members, slowest, group_size, steps, peers)?,
    };
    // If a file changed, a step may have mixed old and new weights: its answer belongs to neither, and a
    // check against the new ones would prove nothing.
    let check_unchanged = || match ranks.iter().any(|rank| rank.shard.is_mapped()) {
        true => source.check_unchanged(),
        false => Ok(()),
    };
    if !is_first {
        check_unchanged()?;
        return Ok((true, config.create_timeout));
    }
    let _alive = peers.as_ref().map(Alive::new).transpose()?;
    let of_status = |status| -> Vec<usize> {
        (0..answer.rows()).filter(|&row| answer.row_status(row) == status).collect()
    };
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
            let judge = Judge {
                shards: &shards,
                config: &config,
                gaussian: source.is_synthetic(),
                flushes: types.is_some_and(|types| backend.flushes_subnormals(types)),
                accuracy: backend.accuracy(),
            };
            let hidden = rows.hidden(config.hidden_size)?;
            Some(rows.data.with(|inputs| judge.judge(&answer, hidden, &inputs, seed))?)
        }
        false => None,
    };
    check_unchanged()?;
    let mut answer = answer.into_answer(StepStats::default());
    if let Some(targets) = targets {
        draft::translate(&mut answer.output, targets);
    }
    if let Some(out) = out {
        out.write(&answer)?;
    }
    let passed = checked.as_ref().is_none_or(|c| c.passed);
    let weights = ranks.first().map_or(source.dtype(), |r| r.shard.matrix().dtype());
    let report = RunReport {
        version: env!("CARGO_PKG_VERSION"),
        command: command(),
        machine: machine_name(),
        head: source.describe(),
        rows: rows.origin.clone(),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        weights: weights.to_string(),
        quantization: config.quantization.to_string(),
        asked: request,
        request: sampling_args::words(&request, sampling.as_ref(), rows.data.own_sampling()),
        mode: mode_name(mode).into(),
        backend: description,
        exchange: job.name().into(),
        threads,
        dp: layout.dp,
        tp: layout.tp,
        lmhead_tp_size: group_size,
        hidden_rows: rows.counts.iter().sum(),
        output_rows: answer.rows(),
        rows_not_good: bad.len() + none.len(),
        load_seconds,
        warm_up,
        steps,
        step: step_report(&done, full_logits_bytes(&layout, group_size, &task)?, percentiles),
        ranks: done.into_iter().map(|done| done.report).collect(),
        check: checked,
        out: args.out.as_ref().map(|path| path.display().to_string()),
        warnings,
    };
    if args.json {
        print(&serde_json::to_string_pretty(&report).expect("a report is JSON"))?;
    } else {
        terminal::show(&report.table())?;
    }
    Ok((passed, config.create_timeout))
}

/// Runs the ranks' steps, which leave their answers in `whole`, in output-row order. The tp ranks of a
/// replica answer the same rows unless these are split among them: the first writes into `whole`, the others
/// into memory of their own, which must end up with the same bits.
fn compute(
    set_up: Ranks,
    backend: &Arc<dyn Backend>,
    task: &RunTask,
    slowest: &SlowestRank,
    members: &[Member],
    whole: &mut OwnedAnswer,
) -> Result<(Vec<Rank>, Vec<RankTimes>), Failure> {
    let (shares, places) = shares(members, task);
    let mut repeated = room_to_repeat(&shares, task)?;
    let done = ranks::run(set_up, backend, task, slowest, parts(whole, &mut repeated, &shares))?;
    put_in_order(whole, &repeated, members, &shares, &places)?;
    Ok(done)
}

/// As [`compute`], where each process runs one rank: it sends its answer to the first process.
fn compute_apart(
    set_up: Ranks,
    backend: &Arc<dyn Backend>,
    task: &RunTask,
    slowest: &SlowestRank,
    members: &[Member],
    whole: &mut OwnedAnswer,
    peers: &Peers,
) -> Result<(Vec<Rank>, Vec<RankTimes>), Failure> {
    let (shares, places) = shares(members, task);
    let mut own = OwnedAnswer::new(&task.request, shares[peers.me()].rows, task.config.vocab_size)?;
    let done = ranks::run(set_up, backend, task, slowest, vec![own.buffers()])?;

    let mut repeated = if peers.is_first() { room_to_repeat(&shares, task)? } else { Vec::new() };
    let mut parts: Vec<_> = match peers.is_first() {
        true => parts(whole, &mut repeated, &shares).into_iter().map(AnswerBuffers::into_host).collect(),
        false => Vec::new(),
    };
    for (i, column) in own.columns().into_iter().enumerate() {
        let mut pieces: Vec<&mut [u8]> = parts.iter_mut().map(|part| std::mem::take(&mut part[i])).collect();
        peers.collect(column, &mut pieces).map_err(|error| of_rank(peers, error))?;
    }
    if peers.is_first() {
        put_in_order(whole, &repeated, members, &shares, &places)?;
    }
    Ok(done)
}

/// A failure of an operation that all processes take part in.
fn of_rank(peers: &Peers, error: lmhead::Error) -> Failure {
    Failure::Ranks(vec![(peers.me(), error.to_string())])
}

/// Memory for the answers that several ranks give, one buffer for each rank after the first.
fn room_to_repeat(shares: &[Share], task: &RunTask) -> lmhead::Result<Vec<OwnedAnswer>> {
    let again = shares.iter().filter(|share| share.same_as.is_some());
    again.map(|share| OwnedAnswer::new(&task.request, share.rows, task.config.vocab_size)).collect()
}

/// Memory for each rank's answer: part of `whole`, or of `repeated` if another rank answers the same rows.
fn parts<'a>(
    whole: &'a mut OwnedAnswer,
    repeated: &'a mut [OwnedAnswer],
    shares: &[Share],
) -> Vec<AnswerBuffers<'a>> {
    let once: Vec<usize> = shares.iter().filter(|s| s.same_as.is_none()).map(|s| s.rows).collect();
    let (mut once, mut again) =
        (whole.split(&once).into_iter(), repeated.iter_mut().map(OwnedAnswer::buffers));
    let parts = shares.iter().map(|share| match share.same_as {
        None => once.next().expect("a part for each share"),
        Some(_) => again.next().expect("memory for each share"),
    });
    parts.collect()
}

/// Compares the repeated answers with those in `whole`, and brings the rows from rank order into output
/// order.
fn put_in_order(
    whole: &mut OwnedAnswer,
    repeated: &[OwnedAnswer],
    members: &[Member],
    shares: &[Share],
    places: &[usize],
) -> Result<(), Failure> {
    let again =
        members.iter().zip(shares).filter_map(|(m, share)| Some((m.rank, share.first, share.same_as?)));
    for ((rank, first, other), answer) in again.zip(repeated) {
        if !whole.has_rows(first, answer) {
            let text = format!("its answer differs from rank {other}'s; please report it with the command");
            return Err(Failure::Ranks(vec![(rank, text)]));
        }
    }
    whole.reorder(places);
    Ok(())
}

/// What a rank reports, in whichever process it ran.
#[derive(Serialize, Deserialize)]
struct Done {
    report: RankReport,
    weight_bytes: u64,
    /// Duration of each timed step, where the rank had a process of its own.
    step_nanos: Vec<u64>,
}

impl Done {
    fn of(rank: &Rank, times: &RankTimes, task: &RunTask) -> Self {
        let report = rank_report(rank, times, task);
        Done { report, weight_bytes: times.stats.weight_bytes, step_nanos: Vec::new() }
    }
}

/// The reports of all processes and the percentiles of their steps, on the first process.
fn collect_done(
    mut done: Vec<Done>,
    members: &[Member],
    own: SlowestRank,
    group_size: usize,
    steps: usize,
    peers: &Peers,
) -> Result<(Vec<Done>, Percentiles), Failure> {
    for done in &mut done {
        done.step_nanos = own.of_group(0);
    }
    let text = serde_json::to_string(&done).expect("a report is JSON");
    let texts = peers.collect_texts(&text).map_err(|error| of_rank(peers, error))?;
    let mut all: Vec<Done> = Vec::new();
    for (rank, text) in texts.iter().enumerate() {
        // Ranks of different groups have not been compared before.
        let alike = |done: &Done| done.report.rank == rank && done.step_nanos.len() == steps;
        match serde_json::from_str::<Vec<Done>>(text) {
            Ok(done) if done.len() == 1 && done.iter().all(alike) => all.extend(done),
            _ => {
                let problem = format!("its report is not that of {steps} steps of one rank");
                let fix = "start all ranks with the same options and the same version of lmhead";
                return Err(Failure::Ranks(vec![(rank, format!("{problem}; {fix}"))]));
            }
        }
    }
    // The groups, ordered by their first ranks.
    let mut groups: Vec<&[usize]> = members.iter().map(|member| member.group.ranks()).collect();
    groups.sort_unstable();
    groups.dedup();
    let slowest = SlowestRank::new(members.len() / group_size, steps)?;
    for done in &all {
        let group = groups.partition_point(|ranks| *ranks < &done.report.group[..]);
        for (step, nanos) in done.step_nanos.iter().enumerate() {
            slowest.add(group, step, Duration::from_nanos(*nanos));
        }
    }
    Ok((all, slowest.percentiles()))
}

/// The rows that a rank answers, as a range of the whole answer in rank order.
struct Share {
    first: usize,
    rows: usize,
    /// The rank that writes these rows into the whole answer, if another one does.
    same_as: Option<usize>,
}

/// The share of each rank, and the output row of each row of the whole answer in rank order.
fn shares(members: &[Member], task: &RunTask) -> (Vec<Share>, Vec<usize>) {
    let split = task.config.split_rows_over_tp;
    let mut order: Vec<usize> = Vec::new();
    let mut shares: Vec<Share> = Vec::new();
    for rank in members {
        let places = &task.parts[rank.dp].places;
        let answered = rank.group.answered_rows(places.len(), rank.group.me(), split);
        let rows = answered.len();
        let before = members[..shares.len()].iter().position(|other| other.dp == rank.dp);
        shares.push(match before.filter(|_| !split) {
            Some(same) => Share { first: shares[same].first, rows, same_as: Some(members[same].rank) },
            None => {
                let first = order.len();
                order.extend(&places[answered]);
                Share { first, rows, same_as: None }
            }
        });
    }
    (shares, order)
}

/// The shards of the first group, which together cover the vocabulary. Shards whose ranks run in other
/// processes are loaded here.
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

fn rank_report(rank: &Rank, times: &RankTimes, task: &RunTask) -> RankReport {
    let vocab = rank.shard.vocab();
    let RankTimes { stats, times, .. } = times;
    RankReport {
        rank: rank.rank,
        dp: rank.dp,
        tp: rank.tp,
        group: rank.group.ranks().to_vec(),
        hidden_rows: task.parts[rank.dp].hidden.len(),
        output_rows: task.parts[rank.dp].places.len(),
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

/// Bytes that verified exact steps for all f32 logits would exchange.
fn full_logits_bytes(layout: &ParallelLayout, group_size: usize, task: &RunTask) -> lmhead::Result<u128> {
    let (full, sampling) = (Request::logits(DType::F32), SamplingParams::default());
    let of_group = |group: &HeadGroup| {
        let counts: Vec<usize> =
            task.parts[layout.replicas(group)?].iter().map(|part| part.places.len()).collect();
        let traffic = step_traffic(task.config, group, task.rows.dtype, &counts, &full, &sampling, true)?;
        Ok(bytes_exchanged(&traffic))
    };
    layout.groups(group_size)?.iter().map(of_group).sum()
}

fn step_report(done: &[Done], full_logits_bytes: u128, percentiles: Percentiles) -> StepReport {
    let slowest = |of: fn(&RankReport) -> f64| done.iter().map(|d| of(&d.report)).fold(0.0, f64::max);
    let matmul_us = slowest(|r| r.matmul_us);
    let streamed: u64 = done.iter().map(|d| d.weight_bytes).sum();
    StepReport {
        contract_us: slowest(|r| r.contract_us),
        gather_us: slowest(|r| r.gather_us),
        matmul_us,
        exchange_us: slowest(|r| r.exchange_us),
        step_us: slowest(|r| r.step_us),
        percentiles,
        bytes_exchanged: done.iter().map(|d| d.report.bytes_received).sum(),
        rounds: done.iter().map(|d| d.report.rounds).max().unwrap_or(0),
        full_logits_bytes,
        weight_gb_per_s: if matmul_us > 0.0 { streamed as f64 / (matmul_us * 1e3) } else { 0.0 },
    }
}
