//! What a repeated step costs beside its kernels: it creates nothing, runs one product and makes few copies.

use super::shards::Placed;
use crate::adjusting::OwnAdjustments;
use crate::{Random, TestHead};
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::{Ask, Backend, Job, LoadedShard, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::backend::{HistogramQuery, TiesQuery, Wanted};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::finish::columns::{row_stride, status_at};
use lmhead::finish::{Finish, FinishScratch, Messages, Places, RowSampling};
use lmhead::memory::{Memory, Span, SpanMut, Stream};
use lmhead::merge::Candidate;
use lmhead::merge::PartialSpec;
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use std::ops::Range;

/// Counts of what was done so far: things made (memory, streams, events, modules), copies, products, waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    pub made: i64,
    pub copies: i64,
    pub products: i64,
    pub waits: i64,
}

/// A call's name, and what its last repetition did.
pub type Row = (String, Done);

const ROWS: usize = 9;
const VOCAB: usize = 256;
const HIDDEN: usize = 48;

/// Partials with more candidates than a warp collects.
const MANY: PartialSpec = PartialSpec { k: 100, sum: true, targets: 0 };

/// Runs every kind of call three times, on host and device memory, and returns what each did the last time.
///
/// # Panics
/// Where a call made something the last time.
pub fn steady<D: KernelDevice>(backend: &DeviceBackend<D>, done: &dyn Fn() -> Done) -> Vec<Row> {
    let mut table = Vec::new();
    for quantization in [Quantization::None, Quantization::W8a8] {
        let head = TestHead::random(VOCAB, HIDDEN, DType::Bf16, quantization, 3);
        let shard = head.shard(0..VOCAB);
        let bytes = head.rows(ROWS, 5);
        let own = OwnAdjustments::random(ROWS, VOCAB, &mut Random(4));
        let mut slice = ShardAdjustments::new(0..VOCAB);
        own.with(|all| slice.push_encoded(&all.encode(0..ROWS, 0..VOCAB, VOCAB), ROWS)).expect("a slice");
        for memory in [Memory::Host, Backend::memory(backend)] {
            let mut loaded = backend.load(&shard, DType::Bf16).expect("memory");
            let spec = PartialSpec { k: 5, sum: true, targets: 0 };
            let logits = Ask::Logits { dtype: DType::F32 };
            let hold = Ask::Hold { raw: true };
            for ask in [logits, Ask::Partials(spec), Ask::Partials(MANY), hold, Ask::Drawn] {
                loaded.prepare(ROWS, ask).expect("memory");
            }
            let source = Placed::new(backend, memory, &bytes);
            let rows =
                HiddenRows::strided(source.span(), DType::Bf16, ROWS, HIDDEN, 2 * HIDDEN).expect("rows");
            for (adjusted, adjustments) in [("", None), (", adjusted", Some(&slice))] {
                let job = Job { rows, epilogue: Epilogue::default(), adjustments, placed: None };
                let mut calls = Calls { backend, loaded: &mut *loaded, job, memory, done, table: &mut table };
                calls.all(&format!("{quantization}, {memory}{adjusted}"));
            }
        }
    }
    table
}

struct Calls<'a, D: KernelDevice> {
    backend: &'a DeviceBackend<D>,
    loaded: &'a mut dyn LoadedShard,
    job: Job<'a>,
    memory: Memory,
    done: &'a dyn Fn() -> Done,
    table: &'a mut Vec<Row>,
}

impl<D: KernelDevice> Calls<'_, D> {
    /// Runs a call three times, and adds what it did the last time to the table.
    fn steady(&mut self, name: String, mut run: impl FnMut(&mut dyn LoadedShard, Stream)) {
        let device = self.backend.device();
        let stream = device.open_stream().expect("a stream");
        let handle = match self.memory {
            Memory::Host => Stream::NONE,
            _ => device.handle(device.on(&stream)),
        };
        for time in 0..3 {
            let before = (self.done)();
            run(self.loaded, handle);
            let after = (self.done)();
            device.wait(device.on(&stream)).expect("it runs");
            if time == 2 {
                let made = after.made - before.made;
                assert_eq!(made, 0, "{name}: something was made");
                let [copies, products, waits] = [
                    after.copies - before.copies,
                    after.products - before.products,
                    after.waits - before.waits,
                ];
                self.table.push((name.clone(), Done { made, copies, products, waits }));
            }
        }
    }

    fn all(&mut self, name: &str) {
        let job = self.job;
        let backend = self.backend;
        let memory = self.memory;
        let dtype = DType::F16;
        let (stride, at) = (row_stride(VOCAB, dtype), status_at(VOCAB, dtype));
        let mut message = space(backend, memory, ROWS * stride);
        self.steady(format!("{name}: logits"), |loaded, stream| {
            let out = LogitsOut {
                data: message.span_mut(),
                stride: row_stride(VOCAB, dtype),
                dtype,
                status: Status::Inside { at },
            };
            loaded.run(&job, Out::Logits(out), &mut On { stream, workspace: None }).expect("logits");
        });
        let spec = PartialSpec { k: 5, sum: true, targets: 0 };
        let mut partials = space(backend, memory, ROWS * spec.stride(VOCAB));
        self.steady(format!("{name}: partials"), |loaded, stream| {
            let out = Out::Partials(spec, partials.span_mut());
            loaded.run(&job, out, &mut On { stream, workspace: None }).expect("partials");
        });
        let mut many = space(backend, memory, ROWS * MANY.stride(VOCAB));
        self.steady(format!("{name}: many partials"), |loaded, stream| {
            let out = Out::Partials(MANY, many.span_mut());
            loaded.run(&job, out, &mut On { stream, workspace: None }).expect("partials");
        });
        let with_targets = PartialSpec { targets: 1, ..spec };
        let targets = [Candidate { value: 0.5, id: 3 }; ROWS];
        let mut told = space(backend, memory, ROWS * with_targets.stride(VOCAB));
        let mut drawn = space(backend, memory, 8 * ROWS);
        let numbers: Vec<usize> = (0..ROWS).collect();
        let params = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
        let kept = Kept::new(Scale::new(&params, 1.0, VOCAB));
        let digit = Digits::planned(ROWS, 1).each().next().expect("a digit");
        let histograms: Vec<HistogramQuery> = numbers
            .iter()
            .map(|&row| HistogramQuery { row, kept, sum: Sum::Masses, digit, key: 0 })
            .collect();
        let ties: Vec<TiesQuery> =
            numbers.iter().map(|&row| TiesQuery { row, kept, logit: 0.5, allowance: 1 }).collect();
        let wants: Vec<(usize, Wanted)> =
            numbers.iter().map(|&row| (row, Wanted::Drawn { params, kept: None })).collect();
        let all = [params; ROWS];
        self.steady(format!("{name}: draws"), |loaded, stream| {
            let out = Out::Drawn(RowSampling::Host(&all), drawn.span_mut());
            loaded.run(&job, out, &mut On { stream, workspace: None }).expect("draws");
        });
        let there = params.to_row(VOCAB);
        let there =
            Placed::new(backend, Backend::memory(backend), &[bytemuck::bytes_of(&there); ROWS].concat());
        self.steady(format!("{name}: draws by parameters there"), |loaded, stream| {
            let out = Out::Drawn(RowSampling::Device(there.span()), drawn.span_mut());
            loaded.run(&job, out, &mut On { stream, workspace: None }).expect("draws");
        });
        let (mut values, mut largest) = ([0.0f32; ROWS], [0.0; ROWS]);
        let (mut bins, mut ends) = (vec![0; ROWS * digit.bins()], [0; ROWS]);
        self.steady(format!("{name}: hold and every pass"), |loaded, stream| {
            let held = loaded.hold(&job, true, &mut On { stream, workspace: None }).expect("held logits");
            let ids = [3; ROWS];
            for pass in [
                Pass::TargetLogits {
                    of: Which::Raw,
                    targets: Span::host(&ids[..]),
                    per_row: 1,
                    out: SpanMut::host(&mut values[..]),
                },
                Pass::Partials {
                    of: Which::Adjusted,
                    spec: with_targets,
                    targets: Span::host(&targets[..]),
                    out: told.span_mut(),
                },
                Pass::Maxima { rows: &numbers, out: &mut largest },
                Pass::Histograms { queries: &histograms, out: &mut bins },
                Pass::Ties { queries: &ties, out: &mut ends },
                Pass::Candidates { rows: &wants, out: drawn.span_mut() },
            ] {
                held.pass(pass).expect("a pass");
            }
        });
        self.finishes(name, (&message, &partials, &told, &drawn), &targets, &params);
        let [mut status, mut ids] = [ROWS, 8 * ROWS * MANY.k].map(|bytes| space(backend, memory, bytes));
        let [mut values, mut sums] = [4 * ROWS * MANY.k, 4 * ROWS].map(|bytes| space(backend, memory, bytes));
        let mut scratch = FinishScratch::default();
        self.steady(format!("{name}: finish of many"), |loaded, stream| {
            let what = Finish::TopK {
                from: messages(&many),
                k: MANY.k,
                ids: ids.span_mut(),
                values: values.span_mut(),
                logsumexp: sums.span_mut(),
                row_status: status.span_mut(),
            };
            loaded.finish(what, &mut scratch, &mut On { stream, workspace: None }).expect("an answer");
        });
    }

    /// Finishes of every kind, from messages that the calls before have written.
    fn finishes(
        &mut self,
        name: &str,
        (message, partials, told, drawn): (&Placed<'_, D>, &Placed<'_, D>, &Placed<'_, D>, &Placed<'_, D>),
        targets: &[Candidate],
        params: &SamplingParams,
    ) {
        let (backend, memory) = (self.backend, self.memory);
        let mut scratch = FinishScratch::default();
        let mut status = space(backend, memory, ROWS);
        let mut ids = space(backend, memory, 8 * ROWS * 5);
        let mut more_ids = space(backend, memory, 8 * ROWS * 5);
        let mut floats = space(backend, memory, 4 * ROWS * 5);
        let mut more_floats = space(backend, memory, 4 * ROWS * 5);
        let mut logits = space(backend, memory, ROWS * VOCAB * 2);
        let mut tokens = [0; ROWS];
        let params = [*params; ROWS];
        self.steady(format!("{name}: finish"), |loaded, stream| {
            let on = &mut On { stream, workspace: None };
            let mut finish = |what: Finish<'_>| loaded.finish(what, &mut scratch, on).expect("an answer");
            finish(Finish::Logits {
                from: messages(message),
                dtype: DType::F16,
                logits: logits.span_mut(),
                stride: 2 * VOCAB,
                row_status: status.span_mut(),
            });
            finish(Finish::TopK {
                from: messages(partials),
                k: 5,
                ids: part(&mut ids, 8 * ROWS * 5),
                values: part(&mut floats, 4 * ROWS * 5),
                logsumexp: part(&mut more_floats, 4 * ROWS),
                row_status: status.span_mut(),
            });
            finish(Finish::Logprobs {
                from: messages(told),
                spec: PartialSpec { k: 5, sum: true, targets: 1 },
                targets: Span::host(targets),
                drawn: false,
                top_n: 4,
                logprobs: part(&mut floats, 4 * ROWS),
                ranks: part(&mut ids, 8 * ROWS),
                top_ids: part(&mut more_ids, 8 * ROWS * 4),
                top_logprobs: part(&mut more_floats, 4 * ROWS * 4),
                row_status: status.span_mut(),
            });
            finish(Finish::Draw {
                from: messages(drawn),
                sampling: RowSampling::Host(&params),
                places: Places::ByKind,
                vocab_size: VOCAB,
                ids: part(&mut ids, 8 * ROWS),
                tokens: SpanMut::host(&mut tokens[..]),
                row_status: status.span_mut(),
            });
        });
    }
}

/// The ids of the only shard.
static ALL: Range<usize> = 0..VOCAB;

fn space<D: KernelDevice>(backend: &DeviceBackend<D>, memory: Memory, bytes: usize) -> Placed<'_, D> {
    Placed::new(backend, memory, &vec![0; bytes])
}

fn messages<'a, D: KernelDevice>(placed: &'a Placed<'_, D>) -> Messages<'a> {
    Messages {
        bytes: placed.span(),
        own: Span::EMPTY,
        starts: &[0],
        shards: std::slice::from_ref(&ALL),
        rows: ROWS,
        answered: ROWS,
    }
}

fn part<'a, D: KernelDevice>(placed: &'a mut Placed<'_, D>, bytes: usize) -> SpanMut<'a> {
    placed.span_mut().part(0..bytes)
}
