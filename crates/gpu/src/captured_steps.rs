//! Whole steps in CUDA graphs: what each rank does, over NCCL or alone. Rows, indices and the number of rows
//! change from replay to replay, one rank is late in turn, and every answer has the bits of an eager step of
//! a head that has the whole vocabulary.
//!
//! * `adjusted`: masks, logit bias and penalties.
//! * `answers`: the bits of answers, on the device and on the host.
//! * `kinds`: the steps that are captured.

mod adjusted;
mod answers;
mod kinds;

pub use kinds::{CapturedKind, kinds, small_kinds};

use adjusted::{Placed, RowAdjustments};
use answers::{Answers, Bits, CopiedBuffer, bits_of};
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::{Backend, On};
use lmhead::config::{HeadConfig, Verify};
use lmhead::exchange::Exchange;
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder};
use lmhead::result::{DeviceInputs, Request, RowInputs, SamplingSpans, StepStats};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::{Filters, SamplingParams};
use lmhead_testkit::product::shards::backend_of;
use lmhead_testkit::{Random, TestHead, local_group};
use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Rows that indices choose from, in the engine's buffer.
const SOURCE: usize = 9;
const CAPACITY: usize = 5;
/// The most candidates of a row that there is room for.
const MOST: usize = 100;

/// What a replica brings to a replay: rows of its buffer, which of them are wanted, and what belongs to
/// these.
struct Brought {
    rows: Vec<u8>,
    indices: Vec<i64>,
    targets: Vec<i64>,
    sampling: Vec<SamplingParams>,
    adjustments: Vec<RowAdjustments>,
}

fn brought(test: &TestHead, kind: &CapturedKind, replica: usize, replay: u64, rows: usize) -> Brought {
    let seed = 1000 * replay + replica as u64;
    let mut random = Random(seed);
    // Only the first `alive` rows have an index in this replay.
    let alive = random.below(rows + 1);
    let index = |i: usize| match random.below(8) {
        _ if i >= alive => -1,
        0 => SOURCE as i64,
        _ => random.below(SOURCE) as i64,
    };
    let indices = (0..rows).map(index).collect();
    // Some targets are none (-100), or illegal.
    let target = |_| match random.below(12) {
        0 => -100,
        1 => kind.vocab as i64,
        2 => -1,
        _ => random.below(kind.vocab) as i64,
    };
    let targets = (0..rows * kind.targets()).map(target).collect();
    let params = |_| {
        let plain = SamplingParams {
            seed: random.next(),
            position: random.next() >> 1,
            temperature: [0.0, 0.7, 1.0, 2.5][random.below(4)],
            ..SamplingParams::default()
        };
        if kind.filters != Filters::ByDevice {
            return plain;
        }
        SamplingParams {
            top_k: [0, 1, 3, 40, kind.vocab / 2, 1200, kind.vocab + 7][random.below(7)],
            top_p: [1.0, 0.9, 0.3, 1e-6][random.below(4)],
            min_p: [0.0, 0.0, 0.05, 1.0][random.below(4)],
            ..plain
        }
    };
    let sampling = (0..rows).map(params).collect();
    let adjustments =
        (0..rows).map(|_| adjusted::random(&mut random, kind.adjustments, kind.vocab)).collect();
    Brought { rows: test.rows(SOURCE, seed), indices, targets, sampling, adjustments }
}

/// The answers that the rows must get, by a head that has the whole vocabulary. Rows without an index, or
/// with an illegal target or adjustment, get none.
fn wanted(whole: &mut LmHead, test: &TestHead, kind: &CapturedKind, brought: &Brought) -> Bits {
    let (per_row, vocab) = (kind.targets(), kind.vocab as i64);
    let targets_of = |row: usize| &brought.targets[row * per_row..(row + 1) * per_row];
    let is_good = |row: usize| {
        let legal = |id: &i64| *id == -100 || (0..vocab).contains(id);
        (0..SOURCE as i64).contains(&brought.indices[row])
            && targets_of(row).iter().all(legal)
            && brought.adjustments[row].good
    };
    let good: Vec<usize> = (0..brought.indices.len()).filter(|row| is_good(*row)).collect();
    let indices: Vec<i64> = good.iter().map(|row| brought.indices[*row]).collect();
    let targets: Vec<i64> = good.iter().flat_map(|row| targets_of(*row)).copied().collect();
    let sampling: Vec<SamplingParams> = good.iter().map(|row| brought.sampling[*row]).collect();
    let adjustments = adjusted::Lists::new(good.iter().map(|row| &brought.adjustments[*row]));
    let adjusted = !kind.adjustments.is_empty();
    let inputs = RowInputs {
        targets: (per_row > 0).then_some(&targets[..]),
        sampling: matches!(kind.request, Request::Sample { .. }).then_some(&sampling[..]),
        adjustments: adjusted.then(|| adjustments.on_host(kind.adjustments)),
        ..RowInputs::default()
    };
    let hidden = HiddenRows::new(&brought.rows, test.dtype, SOURCE, test.hidden).expect("rows");
    let hidden = hidden.select_i64(&indices).expect("indices");
    let counts = RowCounts::exact(&[good.len()]);
    let step = match adjusted {
        true => whole.step_adjusted(counts, &kind.request).expect("a step"),
        false => whole.step(counts, &kind.request).expect("a step"),
    };
    let answer = step.run_with(hidden, &inputs).expect("an answer");
    let mut rows = bits_of(&answer, kind).into_iter();
    let each = |row: usize| {
        if is_good(row) { rows.next().expect("a row for each good one") } else { (3, Vec::new()) }
    };
    (0..brought.indices.len()).map(each).collect()
}

/// A rank's head, and what its steps use.
pub struct Stepper<'d> {
    pub head: LmHead,
    kind: CapturedKind,
    device: &'d CudaDevice,
    stream: <CudaDevice as KernelDevice>::OwnedStream,
    /// Streams of earlier steps.
    streams: Vec<<CudaDevice as KernelDevice>::OwnedStream>,
    counts: RowCounts,
    rows: usize,
    source: CopiedBuffer<'d>,
    indices: CopiedBuffer<'d>,
    targets: CopiedBuffer<'d>,
    seeds: CopiedBuffer<'d>,
    positions: CopiedBuffer<'d>,
    temperatures: CopiedBuffer<'d>,
    top_k: CopiedBuffer<'d>,
    top_p: CopiedBuffer<'d>,
    min_p: CopiedBuffer<'d>,
    adjustments: Placed<'d>,
    answers: Answers<'d>,
    workspace: Option<CopiedBuffer<'d>>,
    /// Whether steps return when they are queued.
    pub asynchronous: bool,
}

/// The whole head of a kind, of which each rank has its shard.
fn test_head(kind: &CapturedKind) -> TestHead {
    let seed = kind.vocab as u64;
    TestHead::random(kind.vocab, kind.hidden, kind.dtype, kind.quantization, seed).with_bias(7)
}

fn backend(device: &CudaDevice) -> Arc<dyn Backend> {
    Arc::new(backend_of(device.clone(), false))
}

impl<'d> Stepper<'d> {
    /// Collective. Of several replicas the last is idle; the others have as many rows as they may, or one
    /// fewer.
    ///
    /// # Panics
    /// Where anything is refused.
    pub fn new(
        device: &'d CudaDevice,
        exchange: Arc<dyn Exchange>,
        kind: CapturedKind,
        timeout: Duration,
    ) -> Self {
        let (ranks, me) = (exchange.size(), exchange.me());
        let layout = ParallelLayout { dp: ranks / kind.tp, tp: kind.tp, pp: 1, order: RankOrder::DpPpTp };
        let group = HeadGroup::of(me, &layout, ranks).expect("a layout").expect("a group");
        let test = test_head(&kind);
        let config =
            HeadConfig { split_rows_over_tp: kind.split, verify: Verify::WarmUp, timeout, ..test.config() };
        let own = test.shard(group.shard(kind.vocab, me));
        let brings = |replica: usize| match replica {
            last if last > 0 && last + 1 == layout.dp => 0,
            // Several ranks of one replica: fewer rows than the shape has.
            _ if layout.dp == 1 && ranks > 1 => CAPACITY - 1,
            _ => CAPACITY - replica % 2,
        };
        let rows = brings(group.replica_of(me));
        let counts = match kind.padded {
            true => RowCounts::capacity(CAPACITY, rows),
            false => RowCounts::exact(&(0..layout.dp).map(brings).collect::<Vec<_>>()),
        };
        let head = LmHead::new(&config, group, own, exchange, backend(device)).expect("a head");
        let bytes = head.workspace(&counts, &kind.request, kind.options()).expect("a workspace");
        let stream = device.open_stream().expect("a stream");
        let mut stepper = Stepper {
            head,
            kind,
            device,
            stream,
            streams: Vec::new(),
            counts,
            rows,
            source: CopiedBuffer::new(device, SOURCE * kind.hidden * kind.dtype.size()),
            indices: CopiedBuffer::new(device, 8 * CAPACITY),
            targets: CopiedBuffer::new(device, 8 * CAPACITY * kind.targets().max(1)),
            seeds: CopiedBuffer::new(device, 8 * CAPACITY),
            positions: CopiedBuffer::new(device, 8 * CAPACITY),
            temperatures: CopiedBuffer::new(device, 4 * CAPACITY),
            top_k: CopiedBuffer::new(device, 4 * CAPACITY),
            top_p: CopiedBuffer::new(device, 4 * CAPACITY),
            min_p: CopiedBuffer::new(device, 4 * CAPACITY),
            adjustments: Placed::new(device, kind.adjustments, kind.vocab),
            answers: Answers::new(device, &kind),
            workspace: Some(CopiedBuffer::new(device, bytes)),
            asynchronous: false,
        };
        stepper.prepare();
        stepper
    }

    /// Warms the head up: before a graph is captured, also after a rebuild. Collective.
    ///
    /// # Panics
    /// Where the warm-up fails.
    pub fn prepare(&mut self) {
        let stream = self.device.handle(self.on());
        let (request, of) = (self.kind.request, self.kind.adjustments);
        self.head.warm_up_on_device(stream, CAPACITY, &[request], of).expect("a warm-up");
    }

    /// From now on steps get no workspace from the engine.
    pub fn without_workspace(&mut self) {
        self.workspace = None;
    }

    /// The next steps are on a new stream; the one before lives on.
    ///
    /// # Panics
    /// Where the driver refuses it.
    pub fn change_stream(&mut self) {
        let new = self.device.open_stream().expect("a stream");
        self.streams.push(std::mem::replace(&mut self.stream, new));
    }

    /// The stream of the steps.
    pub fn on(&self) -> <CudaDevice as KernelDevice>::Stream {
        self.device.on(&self.stream)
    }

    /// Puts what a replica brings where the steps find it, and poison where answers go.
    fn bring(&self, brought: &Brought) {
        let (device, stream) = (self.device, self.on());
        device.write_on(stream, &self.source.buffer, 0, &brought.rows).expect("a copy");
        let copy = |room: &CopiedBuffer<'_>, bytes: &[u8]| {
            device.write_on(stream, &room.buffer, 0, bytes).expect("a copy");
        };
        copy(&self.indices, bytemuck::cast_slice(&brought.indices));
        copy(&self.targets, bytemuck::cast_slice(&brought.targets));
        let of = |each: fn(&SamplingParams) -> u64| brought.sampling.iter().map(each).collect::<Vec<u64>>();
        copy(&self.seeds, bytemuck::cast_slice(&of(|params| params.seed)));
        copy(&self.positions, bytemuck::cast_slice(&of(|params| params.position)));
        let of = |each: fn(&SamplingParams) -> f32| brought.sampling.iter().map(each).collect::<Vec<f32>>();
        copy(&self.temperatures, bytemuck::cast_slice(&of(|params| params.temperature)));
        copy(&self.top_p, bytemuck::cast_slice(&of(|params| params.top_p)));
        copy(&self.min_p, bytemuck::cast_slice(&of(|params| params.min_p)));
        let top_k: Vec<i32> = brought.sampling.iter().map(|params| params.top_k as i32).collect();
        copy(&self.top_k, bytemuck::cast_slice(&top_k));
        self.adjustments.bring(&brought.adjustments, stream);
        let poison = vec![0xee; self.answers.status.bytes];
        device.write_on(stream, &self.answers.status.buffer, 0, &poison).expect("a copy");
    }

    /// One step: queued, or recorded where the stream is captured.
    ///
    /// # Errors
    /// As [`LmHead::run_into`].
    ///
    /// # Panics
    /// Where it may not be captured.
    pub fn step(&mut self) -> lmhead::Result<StepStats> {
        let (counts, request) = (&self.counts, &self.kind.request);
        assert!(self.head.is_capturable(counts, request, self.kind.options()), "{:?}", self.kind);
        self.step_of(self.kind.request)
    }

    /// [`Stepper::step`] of another request, one that is refused. Its answer must fit the buffers of the
    /// kind's.
    ///
    /// # Errors
    /// As [`Stepper::step`].
    pub fn step_of(&mut self, request: Request) -> lmhead::Result<StepStats> {
        let stream = self.on();
        let Stepper { head, kind, device, counts, rows, source, indices, answers, workspace, .. } = self;
        let (n, kind) = (*rows, CapturedKind { request, ..*kind });
        let sampling = SamplingSpans {
            seed: Some(self.seeds.span(8 * n)),
            position: Some(self.positions.span(8 * n)),
            temperature: Some(self.temperatures.span(4 * n)),
            top_k: Some(self.top_k.span(4 * n)),
            top_p: Some(self.top_p.span(4 * n)),
            min_p: Some(self.min_p.span(4 * n)),
        };
        let targets = kind.targets();
        let on_device = DeviceInputs {
            targets: (targets > 0).then(|| self.targets.span(8 * n * targets)),
            sampling: matches!(request, Request::Sample { .. }).then_some(sampling),
            ..self.adjustments.inputs(n)
        };
        let inputs = RowInputs { on_device, ..RowInputs::default() };
        let row_bytes = kind.hidden * kind.dtype.size();
        let all = source.span(SOURCE * row_bytes);
        let hidden = HiddenRows::strided(all, kind.dtype, SOURCE, kind.hidden, row_bytes)?;
        let hidden = hidden.select_span(indices.span(8 * *rows), 8)?;
        let answered = head.answered_rows(*rows).len();
        let options = StepOptions { asynchronous: self.asynchronous, ..kind.options() };
        let ticket = head.begin(counts, &request, options)?;
        let workspace = workspace.as_ref().map(|workspace| workspace.span_mut(workspace.bytes));
        let on = On { stream: device.handle(stream), workspace };
        head.run_into(ticket, hidden, &inputs, answers.buffers(&kind, answered), on)
    }

    /// # Errors
    /// As [`Graph::capture`].
    pub fn capture(&mut self) -> lmhead::Result<Graph> {
        let (device, stream) = (self.device, self.on());
        Graph::capture(device, stream, || self.step().map(drop))
    }

    /// # Panics
    /// Where the driver refuses it.
    pub fn replay(&self, graph: &Graph) {
        // SAFETY: the stepper's memory and the head outlive the graph.
        unsafe { graph.launch(self.on()) }.expect("a launch");
    }

    /// The statuses of the answered rows, once the stream's work has ended.
    ///
    /// # Panics
    /// Where that fails.
    pub fn statuses(&self) -> Vec<u8> {
        self.device.wait(self.on()).expect("the end of a step");
        self.answers.status.read::<u8>(self.on(), self.head.answered_rows(self.rows).len())
    }

    /// Brings rows whose indices are all good.
    pub fn bring_rows(&self, replay: u64) {
        self.bring_biased(replay, 0.0);
    }

    /// [`Stepper::bring_rows`], with `bias` added to logit 1 of each row where the kind has adjustments.
    pub fn bring_biased(&self, replay: u64, bias: f32) {
        let rows = test_head(&self.kind).rows(SOURCE, replay);
        self.bring(&Brought {
            rows,
            indices: (0..self.rows as i64).collect(),
            targets: vec![0; self.rows * self.kind.targets()],
            sampling: vec![SamplingParams::default(); self.rows],
            adjustments: vec![adjusted::biased(self.kind.vocab, bias); self.rows],
        });
    }
}

/// How often a captured step is replayed.
#[derive(Debug, Clone, Copy)]
pub struct Replays {
    pub count: u64,
    /// After so many, the inputs of the first come again, and must get the answers of the first.
    pub different: u64,
}

/// Steps of one kind, captured once and replayed.
///
/// # Panics
/// Where bits differ, or anything is refused.
pub fn replay_steps(device: &CudaDevice, exchange: Arc<dyn Exchange>, kind: CapturedKind, replays: Replays) {
    let (ranks, me, test) = (exchange.size(), exchange.me(), test_head(&kind));
    let mut stepper = Stepper::new(device, exchange, kind, Duration::from_secs(60));
    let replica = stepper.head.group().replica_of(me);
    let rows = stepper.rows;
    let one = HeadGroup::data_parallel(1, 0).expect("a group");
    let (alone, all) = (local_group(1).remove(0), test.shard(0..kind.vocab));
    let mut whole = LmHead::new(&test.config(), one, all, alone, backend(device)).expect("a head");

    let mut known: HashMap<u64, (Brought, Bits)> = HashMap::new();
    let mut check = |stepper: &mut Stepper<'_>, replay: u64, run: &mut dyn FnMut(&mut Stepper<'_>)| {
        let (brought, want) = known.entry(replay % replays.different).or_insert_with_key(|seed| {
            let brought = brought(&test, &kind, replica, *seed, rows);
            let want = wanted(&mut whole, &test, &kind, &brought);
            (brought, want)
        });
        stepper.bring(brought);
        if replay < 50 && me as u64 == replay % ranks as u64 {
            thread::sleep(Duration::from_millis(2));
        }
        run(stepper);
        device.wait(stepper.on()).expect("the end of a step");
        let answered = stepper.head.answered_rows(rows);
        let got = stepper.answers.bits(stepper.on(), &kind, answered.len());
        for (i, (got, want)) in got.iter().zip(&want[answered]).enumerate() {
            let of = || format!("row {i} on rank {me} in replay {replay} of {kind:?}");
            assert_eq!(got.0, want.0, "status of {}", of());
            // In a row with bad input only the id is compared: its logits are as they were computed.
            if want.0 != 3 {
                assert_eq!(got.1, want.1, "{}", of());
            } else if !matches!(
                kind.request,
                Request::Logits { .. } | Request::Logprobs { .. } | Request::Sample { logprobs: Some(_) }
            ) {
                assert_eq!(got.1[..8], [0xff; 8], "id of {}", of());
            }
        }
    };
    check(&mut stepper, 0, &mut |stepper| {
        stepper.step().expect("a step");
    });
    let graph = stepper.capture().expect("a graph");
    for replay in 1..=replays.count {
        check(&mut stepper, replay, &mut |stepper| stepper.replay(&graph));
        assert!(stepper.head.flight_recorder().fault().is_none());
    }
    // Eager steps go on after the graph.
    check(&mut stepper, replays.count + 1, &mut |stepper| {
        stepper.step().expect("a step");
    });
    drop(graph);
    // So do steps that nobody waits for, by other inputs each; and steps on another stream, and memory that
    // is given back, while one may still run.
    stepper.asynchronous = true;
    for replay in replays.count + 2..replays.count + 4 {
        check(&mut stepper, replay, &mut |stepper| {
            stepper.step().expect("a step");
        });
        assert!(stepper.head.flight_recorder().fault().is_none());
    }
    check(&mut stepper, replays.count + 4, &mut |stepper| {
        stepper.step().expect("a step");
        stepper.change_stream();
        stepper.step().expect("a step");
    });
    check(&mut stepper, replays.count + 5, &mut |stepper| {
        stepper.step().expect("a step");
        stepper.head.release_memory();
    });
    assert!(stepper.head.flight_recorder().fault().is_none());
    // Dropped while it may still run.
    stepper.step().expect("a step");
}
