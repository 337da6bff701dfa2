//! Answers in device memory and on the host, as bits that can be compared.

use super::{CAPACITY, CapturedKind, MOST};
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::KernelDevice;
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::result::{Answer, AnswerBuffers, Output, Request};

/// A buffer of the device; copies to and from it are waited for.
pub(super) struct CopiedBuffer<'d> {
    pub device: &'d CudaDevice,
    pub buffer: <CudaDevice as KernelDevice>::Buffer,
    pub bytes: usize,
}

impl<'d> CopiedBuffer<'d> {
    pub fn new(device: &'d CudaDevice, bytes: usize) -> Self {
        CopiedBuffer { device, buffer: device.alloc(bytes).expect("memory"), bytes }
    }

    fn memory(&self) -> Memory {
        Memory::Device(self.device.ordinal())
    }

    pub fn span(&self, bytes: usize) -> Span<'_> {
        assert!(bytes <= self.bytes);
        // SAFETY: the buffer's own memory.
        unsafe { Span::from_raw(self.memory(), self.device.address(&self.buffer), bytes) }
    }

    pub fn span_mut<'a>(&self, bytes: usize) -> SpanMut<'a> {
        assert!(bytes <= self.bytes);
        // SAFETY: the buffer outlives the graph; kernels alone use it until it is read.
        unsafe { SpanMut::from_raw(self.memory(), self.device.address(&self.buffer), bytes) }
    }

    pub fn read<T: bytemuck::Pod>(&self, stream: <CudaDevice as KernelDevice>::Stream, n: usize) -> Vec<T> {
        let mut elements = vec![T::zeroed(); n];
        let bytes = bytemuck::cast_slice_mut(&mut elements);
        self.device.read_on(stream, &self.buffer, 0, bytes).expect("a copy");
        elements
    }
}

/// Buffers of an answer of any request.
pub(super) struct Answers<'d> {
    pub status: CopiedBuffer<'d>,
    /// In the order of [`row_bytes`].
    fields: [CopiedBuffer<'d>; FIELDS],
}

/// An answer: a row's status, then the bytes that belong to it.
pub(super) type Bits = Vec<(u8, Vec<u8>)>;

const FIELDS: usize = 8;

/// Bytes of a row in logits, ids, values, logsumexp, logprobs, ranks, top_ids and top_logprobs.
fn row_bytes(kind: &CapturedKind) -> [usize; FIELDS] {
    match kind.request {
        Request::Logits { dtype } => [dtype.size() * kind.vocab, 0, 0, 0, 0, 0, 0, 0],
        Request::TopK { k } => [0, 8 * k, 4 * k, 4, 0, 0, 0, 0],
        Request::Logprobs { targets: n, top_n, .. } => [0, 0, 0, 0, 4 * n, 8 * n, 8 * top_n, 4 * top_n],
        Request::Sample { logprobs: Some(told) } => [0, 8, 0, 0, 4, 8, 8 * told.top_n, 4 * told.top_n],
        _ => [0, 8, 0, 0, 0, 0, 0, 0],
    }
}

impl<'d> Answers<'d> {
    pub fn new(device: &'d CudaDevice, kind: &CapturedKind) -> Self {
        let room = |bytes: usize| CopiedBuffer::new(device, CAPACITY * bytes.max(8 * MOST));
        Answers { status: room(1), fields: row_bytes(kind).map(room) }
    }

    pub fn buffers<'a>(&self, kind: &CapturedKind, rows: usize) -> AnswerBuffers<'a> {
        let mut fields = self.fields.iter().zip(row_bytes(kind));
        let mut next = || fields.next().map(|(room, bytes)| room.span_mut(rows * bytes)).expect("a field");
        AnswerBuffers {
            row_status: self.status.span_mut(rows),
            logits: next(),
            logits_stride: 0,
            ids: next(),
            values: next(),
            logsumexp: next(),
            logprobs: next(),
            ranks: next(),
            top_ids: next(),
            top_logprobs: next(),
        }
    }

    pub fn bits(
        &self,
        stream: <CudaDevice as KernelDevice>::Stream,
        kind: &CapturedKind,
        rows: usize,
    ) -> Bits {
        let status = self.status.read::<u8>(stream, rows);
        let fields = row_bytes(kind);
        let read: Vec<Vec<u8>> =
            self.fields.iter().zip(fields).map(|(room, bytes)| room.read(stream, rows * bytes)).collect();
        let row = |row: usize| {
            let of = |(read, bytes): (&Vec<u8>, usize)| read[row * bytes..][..bytes].to_vec();
            read.iter().zip(fields).flat_map(of).collect()
        };
        status.iter().enumerate().map(|(i, status)| (*status, row(i))).collect()
    }
}

/// The bits of an answer of the host.
pub(super) fn bits_of(answer: &Answer, kind: &CapturedKind) -> Bits {
    let bytes = |ids: &[i64]| bytemuck::cast_slice(ids).to_vec();
    let floats = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
    let none = Vec::new;
    let fields: [Vec<u8>; FIELDS] = match &answer.output {
        Output::Logits { bytes, .. } => {
            [bytes.clone(), none(), none(), none(), none(), none(), none(), none()]
        }
        Output::TopK { values, ids, logsumexp, .. } => {
            [none(), bytes(ids), floats(values), floats(logsumexp), none(), none(), none(), none()]
        }
        Output::Argmax { ids } | Output::Sample { ids, logprobs: None } => {
            [none(), bytes(ids), none(), none(), none(), none(), none(), none()]
        }
        Output::Sample { ids, logprobs: Some(told) } => [
            none(),
            bytes(ids),
            none(),
            none(),
            floats(&told.logprobs),
            bytes(&told.ranks),
            bytes(&told.top_ids),
            floats(&told.top_logprobs),
        ],
        Output::Logprobs(told) => [
            none(),
            none(),
            none(),
            none(),
            floats(&told.logprobs),
            bytes(&told.ranks),
            bytes(&told.top_ids),
            floats(&told.top_logprobs),
        ],
        other => panic!("{other:?}"),
    };
    let row = |row: usize| {
        let of = |(field, bytes): (&Vec<u8>, usize)| field[row * bytes..][..bytes].to_vec();
        fields.iter().zip(row_bytes(kind)).flat_map(of).collect()
    };
    answer.row_status.iter().enumerate().map(|(i, status)| (*status as u8, row(i))).collect()
}
