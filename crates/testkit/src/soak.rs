//! Random steps over any transport, with faults and rebuilds among them: every answer that is compared has
//! the bits of the unsharded one.
//!
//! Each rank runs [`rank`]. All choices that ranks must agree on come from one seed.

use crate::adjusting::OwnAdjustments;
use crate::requests::random_params;
use crate::{Random, TestHead, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::backend::Backend;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Answer, NO_TARGET_ID, Request, RowInputs, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The seed where the environment gives none.
pub const SEED: u64 = 20_261_129;

/// Group sizes, each of which gets an equal share of the steps.
pub const SIZES: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// The plan that all ranks of a group share.
#[derive(Debug, Clone, Copy)]
pub struct SoakPlan {
    pub seed: u64,
    /// Steps of both heads together.
    pub steps: u64,
    /// Most rows of a rank in one step.
    pub most_rows: usize,
    /// Whether a thread of its own steps each head; otherwise one thread steps both in a random order.
    pub on_threads: bool,
}

impl SoakPlan {
    /// The plan of one group size: its share of `LMHEAD_SOAK_STEPS` (or `steps`), which are for all sizes
    /// together, and a seed from `LMHEAD_SOAK_SEED`.
    ///
    /// # Panics
    /// Where one of the variables is not a number.
    pub fn share(steps: u64, size: usize) -> Self {
        let steps = number("LMHEAD_SOAK_STEPS").unwrap_or(steps).div_ceil(SIZES.len() as u64);
        let seed = number("LMHEAD_SOAK_SEED").unwrap_or(SEED);
        SoakPlan { seed: seed ^ (size as u64) << 40, steps, most_rows: 64, on_threads: size % 2 == 1 }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: wanted a whole number, got `{text}`")))
}

/// What a rank did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    pub steps: u64,
    /// The rank's own rows. `compared` counts rows whose answers were compared with the unsharded ones.
    pub rows: u64,
    pub compared: u64,
    /// Bytes that went to other ranks.
    pub bytes_sent: u64,
    /// Rebuilds, each after a step that one rank broke.
    pub rebuilds: u64,
    /// Steps by request.
    pub requests: BTreeMap<String, u64>,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        self.steps += other.steps;
        self.rows += other.rows;
        self.compared += other.compared;
        self.bytes_sent += other.bytes_sent;
        self.rebuilds += other.rebuilds;
        for (request, steps) in &other.requests {
            *self.requests.entry(request.clone()).or_default() += steps;
        }
    }

    /// The form in which a rank that is a process passes its summary to the test.
    pub fn to_json(&self) -> Value {
        json!({
            "steps": self.steps, "rows": self.rows, "compared": self.compared, "bytes_sent": self.bytes_sent,
            "rebuilds": self.rebuilds, "requests": self.requests,
        })
    }

    /// # Panics
    /// Where the value is not from [`Summary::to_json`].
    pub fn from_json(value: &Value) -> Self {
        let number = |key: &str| value[key].as_u64().expect("a number");
        let requests = value["requests"].as_object().expect("requests").iter();
        Summary {
            steps: number("steps"),
            rows: number("rows"),
            compared: number("compared"),
            bytes_sent: number("bytes_sent"),
            rebuilds: number("rebuilds"),
            requests: requests.map(|(key, steps)| (key.clone(), steps.as_u64().expect("a number"))).collect(),
        }
    }
}

/// Sums up what the groups of one transport did, prints it as one line, and checks that it was a real soak:
/// every request occurred, rows were compared, and, where ranks can disagree, heads were rebuilt.
///
/// # Panics
/// Where it was not.
pub fn sum_up(transport: &str, groups: &[Vec<Summary>], began: Instant) -> Summary {
    let mut all = Summary::default();
    for ranks in groups {
        // The steps of a group are those of each of its ranks.
        let steps = ranks[0].steps;
        assert!(ranks.iter().all(|rank| rank.steps == steps && rank.rebuilds == ranks[0].rebuilds));
        for rank in ranks {
            let shared = Summary { steps: 0, rebuilds: 0, requests: BTreeMap::new(), ..rank.clone() };
            all.add(&shared);
        }
        all.add(&Summary { rows: 0, compared: 0, bytes_sent: 0, ..ranks[0].clone() });
    }
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    let Summary { steps, rows, compared, bytes_sent, rebuilds, requests } = &all;
    let requests: Vec<String> =
        requests.iter().map(|(request, steps)| format!("{request} {steps}")).collect();
    println!(
        "soak over {transport}: {steps} steps in groups of {sizes:?} in {:.1} s; {rows} rows, {compared} compared \
         with the unsharded answer, {:.1} MB sent, {rebuilds} rebuildings; steps by request: {}",
        began.elapsed().as_secs_f64(),
        *bytes_sent as f64 / 1e6,
        requests.join(", ")
    );
    assert!(*compared > 0 && *rebuilds > 0, "{all:?}");
    assert!(*steps < 400 || requests.len() == KINDS, "every request comes: {all:?}");
    all
}

/// One step as a rank makes it.
pub struct Asked<'a> {
    pub counts: RowCounts,
    pub request: Request,
    pub adjusted: bool,
    pub hidden: HiddenRows<'a>,
    pub inputs: RowInputs<'a>,
}

/// What a rank brings to a step.
struct Inputs<'a> {
    request: Request,
    adjusted: bool,
    hidden: HiddenRows<'a>,
    targets: Option<Vec<i64>>,
    sampling: Option<Vec<SamplingParams>>,
    adjustments: Option<OwnAdjustments>,
}

impl Inputs<'_> {
    fn step(&self, head: &mut LmHead, stepper: &dyn Stepper, counts: RowCounts) -> Result<Answer> {
        let run = |adjustments: Option<Adjustments<'_>>| {
            let (targets, sampling) = (self.targets.as_deref(), self.sampling.as_deref());
            let inputs = RowInputs { targets, sampling, adjustments, ..RowInputs::default() };
            let Inputs { request, adjusted, hidden, .. } = *self;
            stepper.step(head, Asked { counts, request, adjusted, hidden, inputs })
        };
        match &self.adjustments {
            Some(own) => own.with(|adjustments| run(Some(adjustments))),
            None => run(None),
        }
    }
}

/// Runs the steps of a head, in host or device memory.
pub trait Stepper: Sync {
    /// Runs one step.
    ///
    /// # Errors
    /// As the head's step.
    fn step(&self, head: &mut LmHead, asked: Asked<'_>) -> Result<Answer>;
}

/// Runs steps with rows, exchange and answers in host memory.
pub struct InHostMemory;

impl Stepper for InHostMemory {
    fn step(&self, head: &mut LmHead, asked: Asked<'_>) -> Result<Answer> {
        let begin = if asked.adjusted { LmHead::step_adjusted } else { LmHead::step };
        begin(head, asked.counts, &asked.request)?.run_with(asked.hidden, &asked.inputs)
    }
}

/// Runs member `me` of a group of `size` by `plan`, which all members share.
///
/// # Panics
/// Where an answer has other bits than the unsharded one, or a step does not end as it should on this rank.
pub fn rank(
    (me, size): (usize, usize),
    exchange: &Arc<dyn Exchange>,
    backend: &Arc<dyn Backend>,
    stepper: &dyn Stepper,
    plan: &SoakPlan,
) -> Summary {
    let mut heads = [0, 1].map(|which| Soaked::new(which, (me, size), exchange, backend, plan));
    let mut summary = Summary::default();
    if plan.on_threads {
        let parts = thread::scope(|scope| {
            let threads = heads.iter_mut().enumerate().map(|(which, head)| {
                let random = Random(plan.seed ^ (which as u64 + 1));
                scope.spawn(move || head.steps(plan.steps / 2, random, stepper))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for part in parts {
            summary.add(&part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        return summary;
    }
    let mut random = Random(plan.seed);
    for step in 0..plan.steps {
        let which = random.below(2);
        heads[which].one(step, &mut random, stepper, &mut summary);
    }
    summary
}

/// How many kinds of requests [`Soaked::request`] makes.
const KINDS: usize = 6;

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Argmax => "argmax",
        Request::TopK { .. } => "topk",
        Request::Logits { .. } => "logits",
        Request::Logprobs { processed: true, .. } => "processed logprobs",
        Request::Logprobs { .. } => "logprobs",
        _ => "sample",
    }
}

/// What one rank does wrong in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    AnotherRequest,
    Drop,
    Panic,
    /// It passes arguments that it must refuse itself.
    OwnData,
}

impl Break {
    /// Whether the rank gives the step up after it has agreed with the others.
    fn is_behind_headers(self) -> bool {
        matches!(self, Break::Drop | Break::Panic)
    }
}

const BREAKS: [Break; 4] = [Break::AnotherRequest, Break::Drop, Break::Panic, Break::OwnData];

/// One head of a rank, and beside it the whole head in a group of one rank.
struct Soaked {
    head: LmHead,
    alone: LmHead,
    test: TestHead,
    tp: usize,
    me: usize,
    most_rows: usize,
    seed: u64,
}

impl Soaked {
    fn new(
        which: usize,
        (me, size): (usize, usize),
        exchange: &Arc<dyn Exchange>,
        backend: &Arc<dyn Backend>,
        plan: &SoakPlan,
    ) -> Self {
        let mut random = Random(plan.seed ^ (which as u64) << 32);
        let kinds = [
            (DType::Bf16, Quantization::None),
            (DType::F16, Quantization::W8a8),
            (DType::Bf16, Quantization::W8a16),
        ];
        let (dtype, quantization) = kinds[random.below(kinds.len())];
        let test = TestHead::random(60 + random.below(400), 24, dtype, quantization, random.next());
        let divisors: Vec<usize> = (1..=size).filter(|tp| size.is_multiple_of(*tp)).collect();
        let tp = divisors[random.below(divisors.len())];
        let mut config = test.config();
        config.name = ["target", "draft"][which].into();
        // Several ranks share each core: no step may end at its deadline.
        config.timeout = Duration::from_secs(60);
        let whole = HeadGroup::data_parallel(1, 0).expect("a group");
        let endpoint = Arc::new(local::group(1).remove(0));
        let alone = LmHead::new(&config, whole, test.shard(0..test.vocab), endpoint, Arc::clone(backend));
        let group = HeadGroup::from_ranks((0..size).collect(), me, tp).expect("a group");
        let shard = test.shard(group.shard(test.vocab, me));
        let head = LmHead::new(&config, group, shard, Arc::clone(exchange), Arc::clone(backend));
        let (head, alone) = (head.expect("a head"), alone.expect("a head"));
        Soaked { head, alone, test, tp, me, most_rows: plan.most_rows, seed: plan.seed }
    }

    fn steps(&mut self, steps: u64, mut random: Random, stepper: &dyn Stepper) -> Summary {
        let mut summary = Summary::default();
        for step in 0..steps {
            self.one(step, &mut random, stepper, &mut summary);
        }
        summary
    }

    fn request(&self, random: &mut Random) -> Request {
        let vocab = self.test.vocab;
        match random.below(KINDS) {
            0 => Request::argmax(),
            1 => Request::top_k(1 + random.below(20.min(vocab))),
            2 => Request::logits([DType::F32, DType::Bf16, DType::F16][random.below(3)]),
            n @ (3 | 4) => {
                Request::Logprobs { targets: 1 + random.below(3), top_n: random.below(5), processed: n == 3 }
            }
            _ => {
                let told = TokenLogprobs { top_n: random.below(4), processed: random.below(2) == 0 };
                Request::Sample { logprobs: (random.below(2) == 0).then_some(told) }
            }
        }
    }

    /// One random step; the same on every rank, except for the rows.
    fn one(&mut self, step: u64, random: &mut Random, stepper: &dyn Stepper, summary: &mut Summary) {
        let size = self.head.group().size();
        let (replicas, replica) = (size / self.tp, self.me / self.tp);
        let most = [0, 1, self.most_rows / 8, self.most_rows][random.below(4)];
        let counts: Vec<usize> = (0..replicas).map(|_| random.below(most + 1)).collect();
        let request = self.request(random);
        let (mode, room) = (random.below(3), random.below(3));
        let raw = matches!(request, Request::Logprobs { processed: false, .. });
        let adjusted = random.below(2) == 0 && !raw;
        let compared = random.below(4) == 0;
        let broken = (random.below(30) == 0 && size > 1)
            .then(|| (random.below(size), BREAKS[random.below(BREAKS.len())]));
        let rows_seed = random.next();

        // Seeded alike on all ranks of a replica.
        let mut own = Random(rows_seed ^ replica as u64);
        let rows = counts[replica];
        let bytes = self.hidden(rows, &mut own);
        let adjustments =
            (adjusted && own.below(3) > 0).then(|| OwnAdjustments::random(rows, self.test.vocab, &mut own));
        let targets = match request {
            Request::Logprobs { targets, .. } => {
                let id = |random: &mut Random| match random.below(6) {
                    0 => NO_TARGET_ID,
                    _ => random.below(self.test.vocab) as i64,
                };
                Some((0..rows * targets).map(|_| id(&mut own)).collect::<Vec<i64>>())
            }
            _ => None,
        };
        let sampling = matches!(request, Request::Sample { .. })
            .then(|| (0..rows).map(|_| random_params(&mut own, self.test.vocab)).collect::<Vec<_>>());
        let announced = match mode {
            0 => RowCounts::exact(&counts),
            1 => RowCounts::capacity(counts.iter().copied().max().unwrap_or(0) + room, rows),
            _ => RowCounts::discover(rows),
        };
        // In mode discover, a rank only says that it has adjustments where it has some.
        let says_adjusted = if mode == 2 { adjustments.is_some() } else { adjusted };
        let hidden = HiddenRows::new(&bytes, self.test.dtype, rows, self.test.hidden).expect("rows");
        let inputs = Inputs { request, adjusted: says_adjusted, hidden, targets, sampling, adjustments };
        let here = broken.filter(|(rank, _)| *rank == self.me).map(|(_, how)| how);
        let result = match here {
            None => inputs.step(&mut self.head, stepper, announced),
            Some(how) => Err(self.break_step(how, announced, &request, hidden, says_adjusted)),
        };
        let (seed, me) = (self.seed, self.me);
        let what = || format!("seed {seed}, step {step}, rank {me} of {size}, {request}");
        summary.steps += 1;
        *summary.requests.entry(kind(&request).into()).or_default() += 1;
        if let Some((_, how)) = broken {
            // In a step without rows nothing may follow the headers. If the rank gives up after them, the
            // others only learn it in the next step, and this one may be answered.
            let may_answer = counts.iter().all(|rows| *rows == 0) && how.is_behind_headers();
            assert!(result.is_err() || may_answer, "{}: an answer in spite of {broken:?}", what());
            self.head.rebuild().unwrap_or_else(|error| panic!("{}: rebuild: {error}", what()));
            summary.rebuilds += 1;
            return;
        }
        let answer = result.unwrap_or_else(|error| panic!("{}: {error}", what()));
        assert_eq!(answer.rows(), rows, "{}", what());
        summary.rows += rows as u64;
        summary.bytes_sent += answer.stats.bytes_sent;
        if compared {
            let want = inputs.step(&mut self.alone, &InHostMemory, RowCounts::exact(&[rows]));
            let want = want.unwrap_or_else(|error| panic!("{}, unsharded: {error}", what()));
            for row in 0..rows {
                assert_eq!(row_bits(&answer, row), row_bits(&want, row), "{}, row {row}", what());
            }
            summary.compared += rows as u64;
        }
    }

    /// `rows` random rows, sometimes with a value that is not finite.
    fn hidden(&self, rows: usize, random: &mut Random) -> Vec<u8> {
        let mut values = random.normals(rows * self.test.hidden);
        if rows > 0 && random.below(8) == 0 {
            let value = [f32::NAN, f32::INFINITY][random.below(2)];
            let at = random.below(values.len());
            values[at] = value;
        }
        let mut bytes = vec![0; values.len() * self.test.dtype.size()];
        self.test.dtype.round_into(&values, &mut bytes);
        bytes
    }

    /// The error of a step that this rank breaks.
    fn break_step(
        &mut self,
        how: Break,
        counts: RowCounts,
        request: &Request,
        hidden: HiddenRows<'_>,
        adjusted: bool,
    ) -> Error {
        let begin = if adjusted { LmHead::step_adjusted } else { LmHead::step };
        let on_purpose = || Error::Poisoned { cause: "on purpose".into() };
        match how {
            Break::AnotherRequest => {
                let other = match request {
                    Request::Argmax => Request::top_k(2),
                    _ => Request::argmax(),
                };
                let begun = begin(&mut self.head, counts, &other);
                let result = begun.and_then(|step| step.run(hidden));
                result.expect_err("ranks that ask for something else")
            }
            Break::OwnData => {
                let begun = begin(&mut self.head, RowCounts::capacity(1, 2), request);
                begun.map(drop).expect_err("two rows of at most one")
            }
            Break::Drop => begin(&mut self.head, counts, request).map(drop).err().unwrap_or_else(on_purpose),
            Break::Panic => {
                let panic = catch_unwind(AssertUnwindSafe(|| {
                    let step = begin(&mut self.head, counts, request);
                    let _held = step;
                    std::panic::resume_unwind(Box::new("an engine's bug"));
                }));
                assert!(panic.is_err());
                on_purpose()
            }
        }
    }
}
