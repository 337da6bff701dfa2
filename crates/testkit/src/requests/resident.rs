//! The same cases with rows, exchange and answers in device memory.

use super::Case;
use crate::{TestHead, row_bits};
use lmhead::backend::Backend;
use lmhead::backend::On;
use lmhead::backend::device::{CopyRows, KernelDevice, shared_device};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::exchange::Exchange;
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::HeadGroup;
use lmhead::memory::{Allocation, Memory, Span, SpanMut, Stream};
use lmhead::result::{
    Answer, AnswerBuffers, Logprobs, Output, Request, RowInputs, RowStatus, StepStats, TokenLogprobs,
};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

/// A device that ranks as threads share.
pub struct Resident<D: KernelDevice> {
    device: D,
    backend: Arc<dyn Backend>,
    streams: Mutex<Vec<D::OwnedStream>>,
}

impl<D: KernelDevice> Resident<D> {
    pub fn new(device: D, backend: Arc<dyn Backend>) -> Self {
        Resident { device, backend, streams: Mutex::default() }
    }

    /// Endpoints of a group with a side for the device's memory.
    fn group(&self, size: usize) -> Vec<Arc<dyn Exchange>> {
        let endpoints = shared_device::group(&self.device, size).expect("events of the device");
        endpoints.into_iter().map(|endpoint| Arc::new(endpoint) as _).collect()
    }

    /// A stream of a rank's own, as long as this lives.
    fn stream(&self) -> Stream {
        let own = self.device.open_stream().expect("a stream of the device");
        let handle = self.device.handle(self.device.on(&own));
        self.streams.lock().expect("no rank panics").push(own);
        handle
    }

    /// Copies on a stream, and waits for it.
    fn copy(&self, stream: Stream, to: (Memory, u64), from: (Memory, u64), bytes: usize) {
        // SAFETY: a stream of this device, which lives as long.
        let stream = unsafe { self.device.stream_from(stream) };
        // SAFETY: memory of the caller's, and a wait.
        unsafe { self.device.copy_rows(stream, &CopyRows::whole(to, from, bytes)).expect("a copy") };
        self.device.wait(stream).expect("the end of a copy");
    }
}

/// One rank's memory on the device.
struct Room<'d, D: KernelDevice> {
    device: &'d Resident<D>,
    stream: Stream,
}

impl<D: KernelDevice> Room<'_, D> {
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
}

impl Case {
    /// The answers of every rank, from steps that stay on the device.
    pub fn run_resident<D: KernelDevice>(&self, device: &Resident<D>) -> Vec<(usize, Answer)> {
        let backend = Arc::clone(&device.backend);
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Arc<dyn Exchange>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let group = HeadGroup::of(rank, &self.layout, self.size).unwrap().unwrap();
            let all = endpoints.entry(group.ranks().to_vec()).or_insert_with(|| device.group(group.size()));
            let endpoint = Arc::clone(&all[group.me()]);
            ranks.push((self.layout.coordinates(rank).unwrap().dp, group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(dp, group, endpoint)| {
                    let backend = &backend;
                    scope.spawn(move || (dp, self.resident_rank(device, backend, dp, group, endpoint)))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn resident_rank<D: KernelDevice>(
        &self,
        device: &Resident<D>,
        backend: &Arc<dyn Backend>,
        dp: usize,
        group: HeadGroup,
        exchange: Arc<dyn Exchange>,
    ) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts = self.counts(&self.rows[first..first + group.replicas()], self.rows[dp]);
        let mut head = LmHead::new(&self.config, group, shard, exchange, Arc::clone(backend)).unwrap();
        let memory = Room { device, stream: device.stream() };

        // Rows lie backwards and apart, and are picked by index.
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

        let (vocab, answered) = (self.head.vocab, head.answered_rows(rows).len());
        let (k, targets, top_n) = match self.request {
            Request::TopK { k } => (k, 0, 0),
            Request::Logprobs { targets, top_n, .. } => (1, targets, top_n),
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => (1, 1, top_n),
            _ => (1, 0, 0),
        };
        let dtype = if let Request::Logits { dtype } = self.request { dtype } else { DType::F32 };
        let mut status = memory.bytes(answered);
        let mut logits = memory.bytes(answered * vocab * dtype.size());
        let [mut ids, mut ranks, mut top_ids] =
            [k, targets, top_n].map(|each| memory.bytes(8 * answered * each));
        let [mut values, mut logsumexp, mut logprobs, mut top_logprobs] =
            [k, 1, targets, top_n].map(|each| memory.bytes(4 * answered * each));
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
        let (of_targets, sampling, own) = (self.targets(dp), self.sampling(dp), &self.adjustments[dp]);
        let options = StepOptions { adjusted: self.says_adjusted(own.is_some()), on_device: true };
        let ticket = head.begin(&counts, &self.request, options).unwrap();
        let (targets_in, sampling) = (of_targets.as_deref(), sampling.as_deref());
        let on = On { stream: memory.stream, workspace: None };
        let stats: StepStats = match own {
            Some(own) => own.with(|a| {
                let inputs = RowInputs { targets: targets_in, sampling, adjustments: Some(a) };
                head.run_into(ticket, hidden, &inputs, buffers, on)
            }),
            None => {
                let inputs = RowInputs { targets: targets_in, sampling, adjustments: None };
                head.run_into(ticket, hidden, &inputs, buffers, on)
            }
        }
        .unwrap();
        let told = || Logprobs {
            targets,
            top_n,
            logprobs: memory.read(&*logprobs),
            ranks: memory.read(&*ranks),
            top_ids: memory.read(&*top_ids),
            top_logprobs: memory.read(&*top_logprobs),
        };
        let output = match self.request {
            Request::Logits { dtype } => {
                Output::Logits { dtype, vocab_size: vocab, bytes: memory.read(&*logits) }
            }
            Request::Argmax => Output::Argmax { ids: memory.read(&*ids) },
            Request::TopK { k } => Output::TopK {
                k,
                values: memory.read(&*values),
                ids: memory.read(&*ids),
                logsumexp: memory.read(&*logsumexp),
            },
            Request::Logprobs { .. } => Output::Logprobs(told()),
            Request::Sample { logprobs } => {
                Output::Sample { ids: memory.read(&*ids), logprobs: logprobs.map(|_| told()) }
            }
            other => panic!("no answer known of {other}"),
        };
        let row_status = memory.read::<u8>(&*status).into_iter().map(RowStatus::of_byte).collect();
        Answer { row_status, output, stats }
    }

    /// Steps that stay on the device have the bits of steps whose rows and answers are the host's.
    pub fn stays_on<D: KernelDevice>(&self, device: &Resident<D>) -> Result<(), TestCaseError> {
        let (got, want) = (self.run_resident(device), self.run_sharded(&device.backend));
        prop_assert_eq!(got.len(), want.len());
        for ((dp, got), (_, want)) in got.iter().zip(&want) {
            prop_assert_eq!(&got.row_status, &want.row_status);
            for row in 0..want.rows() {
                prop_assert_eq!(row_bits(got, row), row_bits(want, row), "row {} of replica {}", row, dp);
            }
        }
        Ok(())
    }
}

const VOCAB: usize = 200;
const HIDDEN: usize = 32;
const ROWS: usize = 4;

/// Heads of `ranks` ranks whose steps stay on the device: after a warm-up they make nothing there, as `made`
/// counts; and of rows whose index is none, only these answer `BadInput`.
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
    let (endpoints, meeting) = (device.group(ranks), Barrier::new(ranks));
    let run = |rank: usize| {
        let group = HeadGroup::data_parallel(ranks, rank).unwrap();
        let (shard, exchange) = (test.shard(group.shard(VOCAB, rank)), Arc::clone(&endpoints[rank]));
        let mut head =
            LmHead::new(&test.config(), group, shard, exchange, Arc::clone(&device.backend)).unwrap();
        let room = Room { device, stream: device.stream() };
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
        head.warm_up_on_device(room.stream, ROWS, &[request]).unwrap();
        let mut step = |head: &mut LmHead| {
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
            let options = StepOptions { adjusted: false, on_device: true };
            let ticket = head.begin(&counts, &request, options).unwrap();
            let inputs = RowInputs {
                targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
                adjustments: None,
            };
            head.run_into(ticket, hidden, &inputs, answer, On { stream: room.stream, workspace: None })
                .unwrap();
        };
        meeting.wait();
        let before = made();
        meeting.wait();
        (0..5).for_each(|_| step(&mut head));
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
