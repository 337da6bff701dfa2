//! The cases of `requests` with rows, exchange and answers in device memory.

mod inputs;
mod rank;

pub use inputs::{bad_inputs, refused_inputs};
pub use rank::ResidentRank;

use super::Case;
use crate::soak::{Asked, Stepper};
use crate::{TestHead, engine, local_group, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::backend::device::{CopyRows, KernelDevice, shared_device};
use lmhead::backend::{Backend, DeviceAdjustments, On};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::exchange::Exchange;
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::HeadGroup;
use lmhead::memory::{Allocation, Memory, Span, SpanMut, Stream};
use lmhead::result::{
    Answer, AnswerBuffers, DeviceInputs, LogitBiasSpans, Logprobs, Output, PenaltySpans, Request, RowInputs,
    RowStatus, SamplingSpans, TokenLogprobs,
};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::{Filters, SamplingParams};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

/// The devices of ranks that are threads: one that they share, or one for each.
pub struct Resident<D: KernelDevice> {
    places: Vec<Place<D>>,
    groups: Box<Groups>,
}

/// Makes the endpoints of a group of the given ranks.
type Groups = dyn Fn(&[usize]) -> Vec<Arc<dyn Exchange>> + Send + Sync;

/// A device with its backend.
struct Place<D: KernelDevice> {
    device: D,
    backend: Arc<dyn Backend>,
    streams: Mutex<Vec<D::OwnedStream>>,
}

impl<D: KernelDevice> Resident<D> {
    /// All ranks share the device.
    pub fn new(device: D, backend: Arc<dyn Backend>) -> Self {
        let shared = device.clone();
        Self::over(vec![(device, backend)], move |ranks| {
            let endpoints = shared_device::group(&shared, ranks.len()).expect("events of the device");
            endpoints.into_iter().map(|endpoint| Arc::new(endpoint) as _).collect()
        })
    }

    /// All ranks share the device, and are connected by an engine's callbacks.
    pub fn over_callbacks(device: D, backend: Arc<dyn Backend>) -> Self {
        let shared = device.clone();
        Self::over(vec![(device, backend)], move |ranks| {
            engine::device_group(&shared, ranks.len(), |_, _, _| None)
        })
    }

    /// Rank r has device r modulo the number of devices. `groups` makes the endpoints of a group of the given
    /// ranks, with a side for device memory.
    pub fn over(
        places: Vec<(D, Arc<dyn Backend>)>,
        groups: impl Fn(&[usize]) -> Vec<Arc<dyn Exchange>> + Send + Sync + 'static,
    ) -> Self {
        let place = |(device, backend)| Place { device, backend, streams: Mutex::default() };
        Resident { places: places.into_iter().map(place).collect(), groups: Box::new(groups) }
    }

    /// The endpoints of a group of the given ranks.
    pub fn group(&self, ranks: &[usize]) -> Vec<Arc<dyn Exchange>> {
        (self.groups)(ranks)
    }

    /// The backend of a rank's device.
    pub fn backend(&self, rank: usize) -> &Arc<dyn Backend> {
        &self.place(rank).backend
    }

    /// Runs steps in the memory of a rank's device, on a stream of its own.
    pub fn stepper(&self, rank: usize) -> OnDevice<'_, D> {
        let device = self.place(rank);
        OnDevice { room: DeviceMemory { device, stream: device.stream() }, kept: Mutex::default() }
    }

    fn place(&self, rank: usize) -> &Place<D> {
        &self.places[rank % self.places.len()]
    }
}

impl<D: KernelDevice> Place<D> {
    /// A new stream, which lives as long as this.
    fn stream(&self) -> Stream {
        let own = self.device.open_stream().expect("a stream of the device");
        let handle = self.device.handle(self.device.on(&own));
        self.streams.lock().expect("no rank panics").push(own);
        handle
    }

    /// Copies on a stream, and waits for the copy.
    fn copy(&self, stream: Stream, to: (Memory, u64), from: (Memory, u64), bytes: usize) {
        // SAFETY: a stream of this device, which lives as long as this.
        let stream = unsafe { self.device.stream_from(stream) };
        // SAFETY: memory of the caller's, which lives until the wait below is over.
        unsafe { self.device.copy_rows(stream, &CopyRows::whole(to, from, bytes)).expect("a copy") };
        self.device.wait(stream).expect("the end of a copy");
    }
}

/// One rank's memory on the device.
struct DeviceMemory<'d, D: KernelDevice> {
    device: &'d Place<D>,
    stream: Stream,
}

impl<D: KernelDevice> DeviceMemory<'_, D> {
    fn bytes(&self, bytes: usize) -> Box<dyn Allocation> {
        let backend = &self.device.backend;
        backend.allocate(backend.memory(), bytes, "test").unwrap()
    }

    fn with<T: bytemuck::Pod>(&self, elements: &[T]) -> Box<dyn Allocation> {
        let from = Span::host(elements);
        let memory = self.bytes(from.len());
        let to = (memory.span().memory(), memory.span().address());
        self.device.copy(self.stream, to, (from.memory(), from.address()), from.len());
        memory
    }

    fn read<T: bytemuck::Pod>(&self, memory: &dyn Allocation) -> Vec<T> {
        let from = memory.span();
        let mut elements = vec![T::zeroed(); from.len() / size_of::<T>()];
        let to = SpanMut::host(&mut elements[..]);
        let (to, from, bytes) = ((to.memory(), to.address()), (from.memory(), from.address()), from.len());
        self.device.copy(self.stream, to, from, bytes);
        elements
    }

    /// Runs one step whose rows are in this memory; its answer is written to this memory and then copied to
    /// the host. Memory to which a failed step may still write is added to `kept`.
    fn step(
        &self,
        head: &mut LmHead,
        asked: Asked<'_>,
        (device_adjustments, filters): (DeviceAdjustments, Filters),
        kept: &mut Vec<Box<dyn Allocation>>,
    ) -> lmhead::Result<Answer> {
        let Asked { counts, request, adjusted, hidden, inputs } = asked;
        let (vocab, answered) = (head.config().vocab_size, head.answered_rows(hidden.len()).len());
        let (k, targets, top_n) = match request {
            Request::TopK { k } => (k, 0, 0),
            Request::Logprobs { targets, top_n, .. } => (1, targets, top_n),
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => (1, 1, top_n),
            _ => (1, 0, 0),
        };
        let dtype = if let Request::Logits { dtype } = request { dtype } else { DType::F32 };
        let mut status = self.bytes(answered);
        let mut logits = self.bytes(answered * vocab * dtype.size());
        let [mut ids, mut ranks, mut top_ids] =
            [k, targets, top_n].map(|each| self.bytes(8 * answered * each));
        let [mut values, mut logsumexp, mut logprobs, mut top_logprobs] =
            [k, 1, targets, top_n].map(|each| self.bytes(4 * answered * each));
        let buffers = AnswerBuffers {
            row_status: status.span_mut(),
            logits: logits.span_mut(),
            logits_stride: 0,
            ids: ids.span_mut(),
            values: values.span_mut(),
            logsumexp: logsumexp.span_mut(),
            logprobs: logprobs.span_mut(),
            ranks: ranks.span_mut(),
            top_ids: top_ids.span_mut(),
            top_logprobs: top_logprobs.span_mut(),
        };
        let options =
            StepOptions { adjusted, on_device: true, device_adjustments, filters, asynchronous: false };
        let on = On { stream: self.stream, workspace: None };
        let ran = head
            .begin(&counts, &request, options)
            .and_then(|ticket| head.run_into(ticket, hidden, &inputs, buffers, on));
        let stats = match ran {
            Ok(stats) => stats,
            Err(error) => {
                kept.extend([status, logits, ids, ranks, top_ids, values, logsumexp, logprobs, top_logprobs]);
                return Err(error);
            }
        };
        let told = || Logprobs {
            targets,
            top_n,
            logprobs: self.read(&*logprobs),
            ranks: self.read(&*ranks),
            top_ids: self.read(&*top_ids),
            top_logprobs: self.read(&*top_logprobs),
        };
        let output = match request {
            Request::Logits { dtype } => {
                Output::Logits { dtype, vocab_size: vocab, bytes: self.read(&*logits) }
            }
            Request::Argmax => Output::Argmax { ids: self.read(&*ids) },
            Request::TopK { k } => Output::TopK {
                k,
                values: self.read(&*values),
                ids: self.read(&*ids),
                logsumexp: self.read(&*logsumexp),
            },
            Request::Logprobs { .. } => Output::Logprobs(told()),
            Request::Sample { logprobs } => {
                Output::Sample { ids: self.read(&*ids), logprobs: logprobs.map(|_| told()) }
            }
            other => panic!("no answer known of {other}"),
        };
        let row_status = self.read::<u8>(&*status).into_iter().map(RowStatus::of_byte).collect();
        Ok(Answer { row_status, output, stats })
    }
}

/// One rank's inputs in its device's memory: all arrays, in the order of [`DeviceInputs`].
pub(crate) struct PlacedInputs {
    targets: Option<Box<dyn Allocation>>,
    sampling: Option<[Box<dyn Allocation>; 6]>,
    allowed: Option<Box<dyn Allocation>>,
    logit_bias: Option<[Box<dyn Allocation>; 3]>,
    penalties: Option<[Box<dyn Allocation>; 7]>,
}

impl PlacedInputs {
    fn new<D: KernelDevice>(
        room: &DeviceMemory<'_, D>,
        targets: Option<&[i64]>,
        sampling: Option<&[SamplingParams]>,
        adjustments: Option<Adjustments<'_>>,
    ) -> Self {
        let Adjustments { allowed, logit_bias, penalties } = adjustments.unwrap_or_default();
        let offsets = |of: &[usize]| room.with(&of.iter().map(|&n| n as i64).collect::<Vec<_>>());
        let floats = |of: &[SamplingParams], get: fn(&SamplingParams) -> f32| {
            room.with(&of.iter().map(get).collect::<Vec<f32>>())
        };
        PlacedInputs {
            targets: targets.map(|targets| room.with(targets)),
            sampling: sampling.map(|rows| {
                let (seeds, positions): (Vec<u64>, Vec<u64>) =
                    rows.iter().map(|row| (row.seed, row.position & i64::MAX as u64)).unzip();
                let top_k: Vec<i32> =
                    rows.iter().map(|row| row.top_k.min(i32::MAX as usize) as i32).collect();
                [
                    room.with(&seeds),
                    room.with(&positions),
                    floats(rows, |row| row.temperature),
                    room.with(&top_k),
                    floats(rows, |row| row.top_p),
                    floats(rows, |row| row.min_p),
                ]
            }),
            allowed: allowed.map(|mask| room.with(mask)),
            logit_bias: logit_bias.map(|of| [offsets(of.offsets), room.with(of.ids), room.with(of.values)]),
            penalties: penalties.map(|of| {
                let in_prompt: Vec<u8> = of.counts.in_prompt.iter().map(|&prompt| prompt.into()).collect();
                [
                    room.with(of.repetition),
                    room.with(of.frequency),
                    room.with(of.presence),
                    offsets(of.counts.offsets),
                    room.with(of.counts.ids),
                    room.with(of.counts.counts),
                    room.with(&in_prompt),
                ]
            }),
        }
    }

    fn inputs(&self) -> DeviceInputs<'_> {
        DeviceInputs {
            targets: self.targets.as_ref().map(|memory| memory.span()),
            sampling: self.sampling.as_ref().map(|arrays| {
                let [seed, position, temperature, top_k, top_p, min_p] =
                    arrays.each_ref().map(|memory| Some(memory.span()));
                SamplingSpans { seed, position, temperature, top_k, top_p, min_p }
            }),
            allowed: self.allowed.as_ref().map(|memory| memory.span()),
            logit_bias: self.logit_bias.as_ref().map(|arrays| {
                let [offsets, ids, values] = arrays.each_ref().map(|memory| memory.span());
                LogitBiasSpans { offsets, ids, values }
            }),
            penalties: self.penalties.as_ref().map(|arrays| {
                let [repetition, frequency, presence, offsets, ids, counts, in_prompt] =
                    arrays.each_ref().map(|memory| memory.span());
                PenaltySpans {
                    repetition: Some(repetition),
                    frequency: Some(frequency),
                    presence: Some(presence),
                    offsets,
                    ids,
                    counts,
                    in_prompt,
                }
            }),
        }
    }
}

/// Runs one rank's steps with rows and answers in its device's memory.
pub struct OnDevice<'d, D: KernelDevice> {
    room: DeviceMemory<'d, D>,
    kept: Mutex<Vec<Box<dyn Allocation>>>,
}

impl<D: KernelDevice> Stepper for OnDevice<'_, D> {
    fn step(&self, head: &mut LmHead, asked: Asked<'_>) -> lmhead::Result<Answer> {
        let mut kept = self.kept.lock().expect("no step panics");
        let rows = asked.hidden;
        let (count, hidden_size, dtype) = (rows.len(), rows.hidden(), rows.dtype());
        let mut bytes = vec![0u8; count * rows.row_bytes()];
        rows.copy_into(&mut bytes);
        let memory = self.room.with(&bytes);
        let hidden = HiddenRows::strided(memory.span(), dtype, count, hidden_size, rows.row_bytes())?;
        let none = (DeviceAdjustments::default(), Filters::ByHost);
        let result = self.room.step(head, Asked { hidden, ..asked }, none, &mut kept);
        if result.is_err() {
            kept.push(memory);
        }
        result
    }
}

impl Case {
    /// The answers of every rank, from steps that stay on the device; with `inputs_too`, the inputs of the
    /// rows are in its memory, too.
    pub fn run_resident<D: KernelDevice>(
        &self,
        device: &Resident<D>,
        (inputs_too, filters): (bool, Filters),
    ) -> Vec<(usize, Answer)> {
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Arc<dyn Exchange>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let group = HeadGroup::of(rank, &self.layout, self.size).unwrap().unwrap();
            let all = endpoints.entry(group.ranks().to_vec()).or_insert_with(|| device.group(group.ranks()));
            let endpoint = Arc::clone(&all[group.me()]);
            ranks.push((self.layout.coordinates(rank).unwrap().dp, device.place(rank), group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(dp, place, group, endpoint)| {
                    scope.spawn(move || {
                        (dp, self.resident_rank(place, dp, group, endpoint, (inputs_too, filters)))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn resident_rank<D: KernelDevice>(
        &self,
        device: &Place<D>,
        dp: usize,
        group: HeadGroup,
        exchange: Arc<dyn Exchange>,
        (inputs_too, filters): (bool, Filters),
    ) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts = self.counts(&self.rows[first..first + group.replicas()], self.rows[dp]);
        let mut head =
            LmHead::new(&self.config, group, shard, exchange, Arc::clone(&device.backend)).unwrap();
        let memory = DeviceMemory { device, stream: device.stream() };

        // Rows lie in reverse order with gaps between them, and are selected by index.
        let (rows, row_bytes) = (self.rows[dp], self.head.hidden * self.head.dtype.size());
        let stride = row_bytes + 3 * self.head.dtype.size();
        let plain = self.hidden(dp);
        let mut apart = vec![0xa5u8; rows * stride];
        for row in 0..rows {
            apart[(rows - 1 - row) * stride..][..row_bytes]
                .copy_from_slice(&plain[row * row_bytes..][..row_bytes]);
        }
        let hidden = memory.with(&apart);
        let indices: Vec<i32> = (0..rows as i32).rev().collect();
        let indices = memory.with(&indices);
        let hidden = HiddenRows::strided(hidden.span(), self.head.dtype, rows, self.head.hidden, stride);
        let hidden = hidden.unwrap().select_span(indices.span(), 4).unwrap();

        let (of_targets, sampling, own) = (self.targets(dp), self.sampling(dp), &self.adjustments[dp]);
        let (targets, sampling) = (of_targets.as_deref(), sampling.as_deref());
        let mut run = |adjustments: Option<Adjustments<'_>>| {
            let (request, counts) = (self.request, counts.clone());
            if !inputs_too {
                let adjusted = self.says_adjusted(own.is_some());
                let inputs = RowInputs { targets, sampling, adjustments, ..RowInputs::default() };
                let asked = Asked { counts, request, adjusted, hidden, inputs };
                let none = (DeviceAdjustments::default(), filters);
                return memory.step(&mut head, asked, none, &mut Vec::new()).unwrap();
            }
            let placed = PlacedInputs::new(&memory, targets, sampling, adjustments);
            let inputs = RowInputs { on_device: placed.inputs(), ..RowInputs::default() };
            let asked = Asked { counts, request, adjusted: false, hidden, inputs };
            let of = (self.device_adjustments(), filters);
            memory.step(&mut head, asked, of, &mut Vec::new()).unwrap()
        };
        let mut step = || match own {
            Some(own) => own.with(|adjustments| run(Some(adjustments))),
            None => run(None),
        };
        // The second of a kind may queue all its collectives before it waits.
        let (first, second) = (step(), step());
        same_answers(&[(dp, second)], &[(dp, first.clone())]).expect("a second step");
        first
    }

    /// Whether the case has `size` ranks, all of them in one group.
    pub fn is_of(&self, size: usize) -> bool {
        self.size == size && self.layout.world_size() == Ok(size)
    }

    /// [`Case::stays_on`] for one rank, whose peers run elsewhere. All ranks of the case must be one group
    /// ([`Case::is_of`]).
    ///
    /// # Errors
    /// Where the bits differ.
    pub fn rank_stays_on<D: KernelDevice>(
        &self,
        device: &Resident<D>,
        rank: usize,
        exchange: Arc<dyn Exchange>,
    ) -> Result<(), TestCaseError> {
        let want = self.run_sharded(&device.place(rank).backend, &local_group);
        let group = HeadGroup::of(rank, &self.layout, self.size).unwrap().unwrap();
        let dp = self.layout.coordinates(rank).unwrap().dp;
        let plain = (false, Filters::ByHost);
        let got = self.resident_rank(device.place(rank), dp, group, exchange, plain);
        same_answers(&[(dp, got)], &want[rank..=rank])
    }

    /// The adjustments in device memory that every rank announces, for the rows of all ranks.
    fn device_adjustments(&self) -> DeviceAdjustments {
        let mut of = DeviceAdjustments::default();
        let most = |offsets: &[usize]| {
            offsets.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0).max(1) as u32
        };
        for own in self.adjustments.iter().flatten() {
            own.with(|own| {
                of.allowed |= own.allowed.is_some();
                of.logit_bias = of.logit_bias.max(own.logit_bias.map_or(0, |a| most(a.offsets)));
                of.counts = of.counts.max(own.penalties.map_or(0, |p| most(p.counts.offsets)));
            });
        }
        of
    }

    /// Checks that steps that stay on the device give the same bits as steps with rows and answers in host
    /// memory, whether the inputs of the rows are on the device or not.
    pub fn stays_on<D: KernelDevice>(&self, device: &Resident<D>) -> Result<(), TestCaseError> {
        let want = self.run_sharded(&device.place(0).backend, &local_group);
        for (&filters, inputs_too) in
            filters_of(&self.request).iter().flat_map(|filters| [(filters, false), (filters, true)])
        {
            same_answers(&self.run_resident(device, (inputs_too, filters)), &want)?;
        }
        Ok(())
    }
}

/// The ways in which the filters of a step's rows may be known.
fn filters_of(request: &Request) -> &'static [Filters] {
    match request {
        Request::Sample { .. } => &[Filters::ByHost, Filters::ByDevice],
        _ => &[Filters::ByHost],
    }
}

/// Checks that each rank has the same rows with the same bits.
fn same_answers(got: &[(usize, Answer)], want: &[(usize, Answer)]) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len());
    for ((dp, got), (_, want)) in got.iter().zip(want) {
        prop_assert_eq!(&got.row_status, &want.row_status);
        for row in 0..want.rows() {
            prop_assert_eq!(row_bits(got, row), row_bits(want, row), "row {} of replica {}", row, dp);
        }
    }
    Ok(())
}

const VOCAB: usize = 1100;
const HIDDEN: usize = 32;
const ROWS: usize = 4;

/// Inputs of rows, in the form of [`DeviceInputs`].
#[derive(Default)]
#[allow(clippy::type_complexity, reason = "a test's arrays")]
struct Arrays {
    targets: Option<Vec<i64>>,
    sampling: Option<(Vec<u64>, Vec<i64>, Vec<f32>, Vec<i32>, Vec<f32>, Vec<f32>)>,
    logit_bias: Option<(Vec<i64>, Vec<i64>, Vec<f32>)>,
    penalties: Option<([Vec<f32>; 3], Vec<i64>, Vec<i64>, Vec<u32>, Vec<u8>)>,
}

impl Arrays {
    fn place<D: KernelDevice>(&self, room: &DeviceMemory<'_, D>) -> PlacedInputs {
        PlacedInputs {
            targets: self.targets.as_ref().map(|targets| room.with(targets)),
            sampling: self.sampling.as_ref().map(|(seeds, positions, temperature, top_k, top_p, min_p)| {
                [
                    room.with(seeds),
                    room.with(positions),
                    room.with(temperature),
                    room.with(top_k),
                    room.with(top_p),
                    room.with(min_p),
                ]
            }),
            allowed: None,
            logit_bias: self
                .logit_bias
                .as_ref()
                .map(|(offsets, ids, values)| [room.with(offsets), room.with(ids), room.with(values)]),
            penalties: self.penalties.as_ref().map(|(each, offsets, ids, counts, in_prompt)| {
                let [repetition, frequency, presence] = each;
                [
                    room.with(repetition),
                    room.with(frequency),
                    room.with(presence),
                    room.with(offsets),
                    room.with(ids),
                    room.with(counts),
                    room.with(in_prompt),
                ]
            }),
        }
    }
}

/// Checks steps of `ranks` ranks that stay on the device: after a warm-up they make nothing there, which
/// `made` counts; and rows with an index out of range, and only they, get the status `BadInput`.
///
/// # Panics
/// Where that is not so.
pub fn steady_steps<D: KernelDevice>(
    device: &Resident<D>,
    made: &(dyn Fn() -> u64 + Sync),
    ranks: usize,
    request: Request,
) {
    let test = TestHead::random(VOCAB, HIDDEN, DType::Bf16, Quantization::None, 5);
    let everyone: Vec<usize> = (0..ranks).collect();
    let (endpoints, meeting) = (device.group(&everyone), Barrier::new(ranks));
    let run = |rank: usize| {
        let device = device.place(rank);
        let group = HeadGroup::data_parallel(ranks, rank).unwrap();
        let (shard, exchange) = (test.shard(group.shard(VOCAB, rank)), Arc::clone(&endpoints[rank]));
        let mut head =
            LmHead::new(&test.config(), group, shard, exchange, Arc::clone(&device.backend)).unwrap();
        let room = DeviceMemory { device, stream: device.stream() };
        let rows = room.with(&test.rows(ROWS, rank as u64));
        let indices: Vec<i64> = if rank == 0 { vec![3, -1, 0, ROWS as i64] } else { vec![0, 1, 2, 3] };
        let indices = room.with(&indices);
        let each = 8 * VOCAB * ROWS;
        let mut memory: [Box<dyn Allocation>; 9] = std::array::from_fn(|_| room.bytes(each));
        let targets = match request {
            Request::Logprobs { targets, .. } => vec![7i64; ROWS * targets],
            _ => Vec::new(),
        };
        let sampling = [SamplingParams { top_k: 20, ..SamplingParams::default() }; ROWS];
        let told = |targets: usize, top_n: usize| [0, 0, 0, 4 * targets, 8 * targets, 8 * top_n, 4 * top_n];
        let per_row: [usize; 7] = match request {
            Request::Logits { .. } => [0; 7],
            Request::Argmax | Request::Sample { logprobs: None } => [8, 0, 0, 0, 0, 0, 0],
            Request::TopK { k } => [8 * k, 4 * k, 4, 0, 0, 0, 0],
            Request::Logprobs { targets, top_n, .. } => told(targets, top_n),
            Request::Sample { logprobs: Some(asked) } => {
                let [_, rest @ ..] = told(1, asked.top_n);
                let mut all = [8; 7];
                all[1..].copy_from_slice(&rest);
                all
            }
            other => panic!("no answer known of {other}"),
        };
        // Every row has the most entries that are announced.
        let none = DeviceAdjustments::default();
        let of = match request {
            Request::Logprobs { processed: false, .. } => none,
            _ => DeviceAdjustments { allowed: true, logit_bias: 3, counts: 2 },
        };
        let offsets = |each: i64| (0..=ROWS as i64).map(|row| row * each).collect::<Vec<i64>>();
        let [logit_bias, counts] = [[4, 0, 900].repeat(ROWS), [3, 1000].repeat(ROWS)];
        let ones = vec![1.0; ROWS];
        let arrays = Arrays {
            logit_bias: Some((offsets(3), logit_bias, vec![0.5; 3 * ROWS])),
            penalties: Some((
                [ones.clone(), ones.clone(), ones],
                offsets(2),
                counts,
                vec![1; 2 * ROWS],
                vec![0; 2 * ROWS],
            )),
            ..Arrays::default()
        };
        let adjustments =
            PlacedInputs { allowed: Some(room.with(&[-1i32; 35 * ROWS])), ..arrays.place(&room) };
        head.warm_up_on_device(room.stream, ROWS, &[request], of).unwrap();
        let mut step = |head: &mut LmHead, device_adjustments: DeviceAdjustments| {
            let hidden = HiddenRows::strided(rows.span(), DType::Bf16, ROWS, HIDDEN, 2 * HIDDEN).unwrap();
            let hidden = hidden.select_span(indices.span(), 8).unwrap();
            let [status, logits, ids, values, logsumexp, logprobs, ranks_of, top_ids, top_logprobs] =
                &mut memory;
            let part = |memory: &'_ mut Box<dyn Allocation>, i: usize| -> (u64, usize) {
                (memory.span_mut().address(), ROWS * per_row[i])
            };
            let own = device.backend.memory();
            // SAFETY: the room's own memory, which outlives the step.
            let span = |(address, bytes): (u64, usize)| unsafe { SpanMut::from_raw(own, address, bytes) };
            let answer = AnswerBuffers {
                row_status: span((status.span_mut().address(), ROWS)),
                logits: span((logits.span_mut().address(), each)),
                logits_stride: 0,
                ids: span(part(ids, 0)),
                values: span(part(values, 1)),
                logsumexp: span(part(logsumexp, 2)),
                logprobs: span(part(logprobs, 3)),
                ranks: span(part(ranks_of, 4)),
                top_ids: span(part(top_ids, 5)),
                top_logprobs: span(part(top_logprobs, 6)),
            };
            let counts = RowCounts::discover(ROWS);
            let options = StepOptions { on_device: true, device_adjustments, ..StepOptions::default() };
            let ticket = head.begin(&counts, &request, options).unwrap();
            let on_device = match device_adjustments == none {
                true => DeviceInputs::default(),
                false => adjustments.inputs(),
            };
            let inputs = RowInputs {
                on_device,
                targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
                ..RowInputs::default()
            };
            head.run_into(ticket, hidden, &inputs, answer, On { stream: room.stream, workspace: None })
                .unwrap();
        };
        meeting.wait();
        let before = made();
        meeting.wait();
        (0..6).for_each(|i| step(&mut head, if i % 2 == 0 { none } else { of }));
        meeting.wait();
        assert_eq!(made(), before, "{request} on rank {rank} of {ranks}");
        meeting.wait();
        let status = room.read::<u8>(&*memory[0])[..ROWS].to_vec();
        let wanted = if rank == 0 { [0, 3, 0, 3] } else { [0; ROWS] };
        assert_eq!(status, wanted, "{request} on rank {rank} of {ranks}");
    };
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
