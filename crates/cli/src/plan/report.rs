//! The plan: tables for the terminal; the same and every rank as JSON.

use super::kernels::Kernels;
use super::profile::Measured;
use super::{PlannedHead, auto_of};
use crate::report::{bytes, command, micros};
use crate::{sampling_args, terminal};
use lmhead::config::{GroupSizeRule, HeadConfig, Verify};
use lmhead::cost::{self, CostModel, StepCost};
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::head::{RankTraffic, bytes_exchanged, step_traffic};
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder, shard_range};
use lmhead::result::Request;
use lmhead::sampling::SamplingParams;
use serde::Serialize;
use std::path::Path;

/// Most ranks or groups that a table lists.
const LISTED: usize = 32;

#[derive(Serialize)]
pub struct PlanReport {
    /// Version of lmhead.
    pub version: &'static str,
    pub command: String,
    pub head: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Bytes of the whole head: weights, scales and bias.
    pub head_bytes: u64,
    /// Type of the weights as they are multiplied.
    pub weights: DType,
    pub quantization: String,
    pub hidden_dtype: DType,
    pub request: String,
    pub dp: usize,
    pub tp: usize,
    pub pp: usize,
    pub rank_order: RankOrder,
    pub split_rows_over_tp: bool,
    /// Rows of each dp rank.
    pub rows: Vec<usize>,
    /// Every group size that fits the layout.
    pub legal_sizes: Vec<usize>,
    pub lmhead_tp_size: usize,
    pub rule: GroupSizeRule,
    /// What `auto` chooses, and the cost model that it uses.
    pub auto: Auto,
    /// When steps begin with the headers that check the contract.
    pub verify: Verify,
    /// Global ranks of each group, in member order.
    pub groups: Vec<Vec<usize>>,
    pub ranks: Vec<RankPlan>,
    /// A step that begins with headers, and one that does not.
    pub verified: StepPlan,
    pub unverified: StepPlan,
    pub costs: Vec<Costs>,
    /// With --kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
}

#[derive(Serialize)]
pub struct Auto {
    pub lmhead_tp_size: usize,
    pub rule: GroupSizeRule,
    pub cost_model: Option<CostModel>,
}

#[derive(Serialize)]
pub struct RankPlan {
    pub rank: usize,
    pub dp: usize,
    pub tp: usize,
    /// Index of its group in `groups`.
    pub group: usize,
    /// Rows that it brings, and rows that it gets answers for.
    pub rows: usize,
    pub answered_rows: usize,
    pub shard: [usize; 2],
    /// Weights, scales and bias.
    pub shard_bytes: u64,
    pub verified: RankTraffic,
    pub unverified: RankTraffic,
}

/// One step over all ranks.
#[derive(Default, Serialize)]
pub struct StepPlan {
    /// Collective operations of the rank that has most.
    pub rounds: u64,
    pub bytes_exchanged: u128,
    /// Bytes exchanged if the request were all f32 logits.
    pub full_logits_bytes: u128,
}

/// Step times on one machine by the cost model, for every legal group size.
#[derive(Serialize)]
pub struct Costs {
    pub machine: String,
    pub logits: CostModel,
    pub candidates: CostModel,
    pub fastest_logits: usize,
    pub fastest_candidates: usize,
    pub sizes: Vec<SizeCost>,
    /// Measured steps, where the speeds are from a profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

#[derive(Serialize)]
pub struct SizeCost {
    pub lmhead_tp_size: usize,
    /// Bytes of the largest shard.
    pub shard_bytes: u64,
    /// Collectives in a step of each kind; each takes the machine's latency.
    pub collectives: Collectives,
    pub logits: StepCost,
    pub logits_us: f64,
    pub candidates: StepCost,
    pub candidates_us: f64,
}

/// Collective operations of a step in which whole logits or candidates are exchanged.
#[derive(Clone, Copy, Serialize)]
pub struct Collectives {
    pub logits: u64,
    pub candidates: u64,
}

impl Collectives {
    /// Collectives for every legal group size, in ascending order, of steps in which every replica brings
    /// `rows` rows. `requests`: one that exchanges logits, and one that exchanges candidates.
    pub fn over_sizes(
        config: &HeadConfig,
        layout: &ParallelLayout,
        rows: usize,
        requests: [Request; 2],
        sampling: Option<SamplingParams>,
    ) -> Result<Vec<Self>> {
        let hidden_dtype = config.hidden_dtype.expect("set before planning");
        let verified = config.verify != Verify::WarmUp;
        let uniform = sampling.unwrap_or_default();
        // Where not even one row of logprobs fits a chunk, no step can run. Such a size is counted as if all
        // rows were one chunk.
        let one_chunk = HeadConfig { logprobs_chunk_bytes: u64::MAX, ..config.clone() };
        let of = |p: usize, request: &Request| -> Result<u64> {
            if p == 1 {
                return Ok(0);
            }
            let group = HeadGroup::from_ranks((0..p).collect(), 0, layout.tp)?;
            let counts = vec![rows; group.replicas()];
            let traffic =
                |config| step_traffic(config, &group, hidden_dtype, &counts, request, &uniform, verified);
            let traffic = traffic(config).or_else(|_| traffic(&one_chunk))?;
            Ok(traffic.first().map_or(0, |rank| rank.rounds))
        };
        let size =
            |p: usize| Ok(Collectives { logits: of(p, &requests[0])?, candidates: of(p, &requests[1])? });
        layout.group_sizes().into_iter().map(size).collect()
    }
}

/// Gives a step of one kind at a group size, and its total in µs.
type StepOf = fn(&SizeCost) -> (&StepCost, f64);

impl Costs {
    /// `logits` and `candidates`: the machine's cost model for each kind of exchange. `collectives`: those of
    /// each legal group size.
    pub fn over_sizes(
        machine: &str,
        row_bytes: u64,
        config: &HeadConfig,
        layout: &ParallelLayout,
        (logits, candidates): (&CostModel, &CostModel),
        collectives: &[Collectives],
    ) -> Self {
        let shape = config.step_shape(layout.tp);
        let size = |(p, collectives): (usize, &Collectives)| {
            let cost = |model: &CostModel, collectives| CostModel { collectives, ..*model }.step(&shape, p);
            let full = cost(logits, collectives.logits);
            let best = cost(candidates, collectives.candidates);
            SizeCost {
                lmhead_tp_size: p,
                shard_bytes: row_bytes * shard_range(config.vocab_size, p, 0).len() as u64,
                collectives: *collectives,
                logits: full,
                logits_us: full.total_us(),
                candidates: best,
                candidates_us: best.total_us(),
            }
        };
        let sizes: Vec<SizeCost> = layout.group_sizes().into_iter().zip(collectives).map(size).collect();
        let fastest = |step: fn(&SizeCost) -> StepCost| {
            cost::fastest(sizes.iter().map(|size| (size.lmhead_tp_size, step(size)))).unwrap_or(1)
        };
        let most = |kind: fn(&Collectives) -> u64| collectives.iter().map(kind).max().unwrap_or(0);
        Costs {
            machine: machine.into(),
            logits: CostModel { collectives: most(|c| c.logits), ..*logits },
            candidates: CostModel { collectives: most(|c| c.candidates), ..*candidates },
            fastest_logits: fastest(|size| size.logits),
            fastest_candidates: fastest(|size| size.candidates),
            sizes,
            measured: None,
        }
    }
}

impl PlanReport {
    /// Everything but the costs, which are passed in.
    pub fn new(
        head: &PlannedHead,
        config: &HeadConfig,
        layout: &ParallelLayout,
        rows: &[usize],
        (request, sampling): (&Request, Option<SamplingParams>),
        costs: Vec<Costs>,
    ) -> Result<Self> {
        let (size, rule) = config.group_size_and_rule(layout)?;
        let (auto_size, auto_rule) = auto_of(config).group_size_and_rule(layout)?;
        let hidden_dtype = config.hidden_dtype.expect("set before planning");
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut ranks = Vec::new();
        let uniform = sampling.unwrap_or_default();
        let full = Request::logits(DType::F32);
        let (mut verified, mut unverified) = (StepPlan::default(), StepPlan::default());
        for group in layout.groups(size)? {
            let counts = &rows[layout.replicas(&group)?];
            let traffic = |request: &Request, verified| {
                step_traffic(config, &group, hidden_dtype, counts, request, &uniform, verified)
            };
            let (with, without) = (traffic(request, true)?, traffic(request, false)?);
            verified.add(&with, &traffic(&full, true)?);
            unverified.add(&without, &traffic(&full, false)?);
            for (member, &rank) in group.ranks().iter().enumerate() {
                let at = layout.coordinates(rank)?;
                let shard = group.shard(config.vocab_size, member);
                ranks.push(RankPlan {
                    rank,
                    dp: at.dp,
                    tp: at.tp,
                    group: groups.len(),
                    rows: rows[at.dp],
                    answered_rows: group.answered_rows(rows[at.dp], member, config.split_rows_over_tp).len(),
                    shard: [shard.start, shard.end],
                    shard_bytes: head.row_bytes * shard.len() as u64,
                    verified: with[member],
                    unverified: without[member],
                });
            }
            groups.push(group.ranks().to_vec());
        }
        ranks.sort_by_key(|rank| rank.rank);
        Ok(PlanReport {
            version: env!("CARGO_PKG_VERSION"),
            command: command(),
            head: head.name.clone(),
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            head_bytes: head.row_bytes * config.vocab_size as u64,
            weights: head.dtype,
            quantization: config.quantization.to_string(),
            hidden_dtype,
            request: sampling_args::words(request, sampling.as_ref(), &[]),
            dp: layout.dp,
            tp: layout.tp,
            pp: layout.pp,
            rank_order: layout.order,
            split_rows_over_tp: config.split_rows_over_tp,
            rows: rows.to_vec(),
            legal_sizes: layout.group_sizes(),
            lmhead_tp_size: size,
            rule,
            auto: Auto { lmhead_tp_size: auto_size, rule: auto_rule, cost_model: config.cost_model },
            verify: config.verify,
            groups,
            ranks,
            verified,
            unverified,
            costs,
            kernels: None,
        })
    }

    /// Rows of the group that brings most, and the ids of its largest shard.
    pub fn largest_product(&self) -> (usize, usize) {
        let of = |group: &Vec<usize>| {
            let members: Vec<_> = group.iter().map(|rank| &self.ranks[self.place(*rank)]).collect();
            // Ranks of one dp rank bring the same rows.
            let firsts =
                members.iter().enumerate().filter(|(i, m)| members[..*i].iter().all(|o| o.dp != m.dp));
            let ids = members.iter().map(|member| member.shard[1] - member.shard[0]).max();
            (firsts.map(|(_, member)| member.rows).sum(), ids.unwrap_or(0))
        };
        self.groups.iter().map(of).max().unwrap_or((0, 0))
    }

    /// The tables in the terminal.
    pub fn text(&self, svg: Option<&Path>) -> String {
        let quantized =
            if self.quantization == "none" { String::new() } else { format!(", {}", self.quantization) };
        let mut lines = vec![format!(
            "{}: {} x {} {}{quantized}, {}",
            self.head,
            self.vocab_size,
            self.hidden_size,
            self.weights,
            bytes(self.head_bytes)
        )];
        let shared = match self.lmhead_tp_size {
            1 => "every rank holds the whole head".to_string(),
            n => format!("{n} ranks share a head"),
        };
        lines.push(format!("dp {} x tp {} x pp {}: {shared} ({})", self.dp, self.tp, self.pp, self.rule));
        lines.push(self.groups_sentence());
        lines.push(self.rank_table());
        lines.extend(self.step_lines());
        for costs in &self.costs {
            lines.push(costs.table());
        }
        lines.extend(self.auto_lines());
        lines.extend(self.kernels.as_ref().map(Kernels::table));
        if let Some(path) = svg {
            lines.push(format!("written: {}", path.display()));
        }
        lines.join("\n")
    }

    fn groups_sentence(&self) -> String {
        let listed = |ranks: &Vec<usize>| match ranks.as_slice() {
            [one] => one.to_string(),
            [first, .., last] if last - first + 1 == ranks.len() => format!("{first}-{last}"),
            _ => ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
        };
        let shown: Vec<String> = self.groups.iter().take(LISTED).map(listed).collect();
        let more = match self.groups.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let groups = if self.groups.len() == 1 { "group" } else { "groups" };
        format!("{} {groups} of ranks: {}{more}", self.groups.len(), shown.join("  "))
    }

    /// The ranks of the first group where all groups do the same, else all ranks; at most `LISTED`.
    fn rank_table(&self) -> String {
        let of = |group: usize| self.groups[group].iter().map(|rank| &self.ranks[self.place(*rank)]);
        let same = |a: &RankPlan, b: &RankPlan| (a.rows, a.verified) == (b.rows, b.verified);
        let alike = (1..self.groups.len()).all(|group| of(0).zip(of(group)).all(|(a, b)| same(a, b)));
        let ranks: Vec<&RankPlan> = if alike { of(0).collect() } else { self.ranks.iter().collect() };
        let titles = ["rank", "group", "rows in/out", "shard (ids)", "bytes", "sent", "received"];
        let mut table = terminal::table(titles, &[]);
        for rank in ranks.iter().take(LISTED) {
            let traffic = if self.has_headers() { &rank.verified } else { &rank.unverified };
            table.add_row([
                rank.rank.to_string(),
                rank.group.to_string(),
                format!("{}/{}", rank.rows, rank.answered_rows),
                format!("{}..{}", rank.shard[0], rank.shard[1]),
                bytes(rank.shard_bytes),
                bytes(traffic.bytes_sent),
                bytes(traffic.bytes_received),
            ]);
        }
        let more = match (alike, self.groups.len(), ranks.len().saturating_sub(LISTED)) {
            (true, 1, 0) | (false, _, 0) => String::new(),
            (true, 1, n) | (false, _, n) => format!("\nand {n} more ranks (--json lists them)"),
            (true, groups, 0) => format!("\nthe other {} groups do the same", groups - 1),
            (true, groups, n) => {
                format!("\nand {n} more ranks; the other {} groups do the same", groups - 1)
            }
        };
        format!("{table}{more}")
    }

    fn place(&self, rank: usize) -> usize {
        self.ranks.partition_point(|r| r.rank < rank)
    }

    fn has_headers(&self) -> bool {
        self.verify != Verify::WarmUp
    }

    fn step_lines(&self) -> Vec<String> {
        let step = if self.has_headers() { &self.verified } else { &self.unverified };
        if step.rounds == 0 {
            return vec![format!("a step ({}): nothing is exchanged", self.request)];
        }
        let mut lines = vec![format!(
            "a step ({}, exact counts): {} exchanged in {} rounds (all f32 logits: {})",
            self.request,
            bytes(step.bytes_exchanged),
            step.rounds,
            bytes(step.full_logits_bytes)
        )];
        let headers = bytes(self.verified.bytes_exchanged - self.unverified.bytes_exchanged);
        lines.push(match self.verify {
            Verify::Always => format!("of these {headers} and one round are the headers that check the contract"),
            Verify::WarmUp => "without the headers that check the contract (verify = \"prepare\")".into(),
            Verify::Every(n) => format!(
                "of these {headers} and one round are the headers that check the contract, in one of {n} steps"
            ),
        });
        lines
    }

    fn auto_lines(&self) -> Vec<String> {
        let Auto { lmhead_tp_size, rule, cost_model } = &self.auto;
        let mut lines = Vec::new();
        if self.rule != *rule {
            lines.push(format!("auto would choose {lmhead_tp_size} ({rule})"));
        }
        match (cost_model, rule) {
            (Some(model), GroupSizeRule::AutoFastest) => {
                let model = toml::to_string(model).unwrap_or_default().trim().replace('\n', ", ");
                lines.push(format!("as a setting, for auto to go by: cost_model = {{ {model} }}"));
            }
            (None, GroupSizeRule::AutoReplicated) => {
                lines.push("--machine, or speeds as numbers, estimate what sharing would bring".into());
            }
            _ => {}
        }
        lines
    }
}

impl StepPlan {
    fn add(&mut self, group: &[RankTraffic], full: &[RankTraffic]) {
        self.rounds = group.iter().map(|rank| rank.rounds).fold(self.rounds, u64::max);
        self.bytes_exchanged += bytes_exchanged(group);
        self.full_logits_bytes += bytes_exchanged(full);
    }
}

impl Costs {
    /// The number of collectives of a step, in brackets; empty where no ranks share.
    fn collectives_sentence(&self) -> String {
        match (self.logits.collectives, self.candidates.collectives) {
            (0, 0) => String::new(),
            (n, m) if n == m => format!(" ({n} in a step)"),
            (n, m) => format!(" ({n} in a step with logits, {m} with candidates)"),
        }
    }

    fn table(&self) -> String {
        let model = &self.logits;
        let kept = self.candidates.candidates.unwrap_or_default();
        let mut lines = vec![format!(
            "\n{}: {} GB/s memory, {} TFLOP/s, {} GB/s link, {} µs a collective; {} rows on each dp rank \
             (arithmetic of the cost model, not a measurement)",
            self.machine,
            speed(model.memory_gb_per_s),
            speed(model.tflops),
            speed(model.link_gb_per_s),
            model.latency_us,
            model.rows_per_rank
        )];
        let titles = ["ranks", "bytes", "stream", "compute", "gather", "exchange", "latency", "step"];
        let kinds: [(String, usize, StepOf); 2] = [
            (format!("{} logits", model.logits_dtype), self.fastest_logits, |s| (&s.logits, s.logits_us)),
            (format!("the {kept} best of each row"), self.fastest_candidates, |s| {
                (&s.candidates, s.candidates_us)
            }),
        ];
        for (what, fastest, step_of) in kinds {
            let mut table = terminal::table(titles, &[]);
            for size in &self.sizes {
                let (step, total_us) = step_of(size);
                let p = size.lmhead_tp_size;
                let exchanged = |us: f64| if p == 1 { "-".to_string() } else { tenths(us) };
                table.add_row([
                    p.to_string(),
                    bytes(size.shard_bytes),
                    tenths(step.stream_us),
                    tenths(step.flop_us),
                    exchanged(step.gather_us),
                    exchanged(step.exchange_us),
                    exchanged(step.latency_us),
                    format!("{}{}", if fastest == p { "* " } else { "" }, tenths(total_us)),
                ]);
            }
            lines.push(format!("exchanging {what}:\n{table}"));
        }
        lines.push(format!(
            "* the fastest; stream and compute overlap: a step counts the longer; latency is that of every \
             collective{}",
            self.collectives_sentence()
        ));
        lines.extend(self.measured.as_ref().map(Measured::table));
        lines.join("\n")
    }
}

/// A speed in whole units, with decimals below ten.
fn speed(value: f64) -> String {
    let decimals = if value >= 10.0 { 0 } else { 3 };
    format!("{value:.decimals$}")
}

/// A modelled time: a tenth of a microsecond is as precise as the model gets.
fn tenths(us: f64) -> String {
    if us < 1e3 { format!("{us:.1} µs") } else { micros(us) }
}
