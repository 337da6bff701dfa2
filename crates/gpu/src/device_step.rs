//! A step that is run again and again with rows, inputs and answers in device memory: its launches are
//! counted (`tests/cuda_driver`), and it is timed ([`crate::answers`]).

use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::{DeviceAdjustments, On};
use lmhead::head::{LmHead, StepOptions};
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::result::{AnswerBuffers, DeviceInputs, Request, RowInputs, SamplingSpans, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::{Filters, SamplingParams};
use lmhead::{DType, Result};
use std::fmt;

/// What every row is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub request: Request,
    /// Parameters of a sample: the seed is the row's own, the rest is the same for all.
    pub sampling: SamplingParams,
    /// Filters of a sample.
    pub filters: Filters,
}

impl Ask {
    pub fn plain(request: Request) -> Self {
        let filters = if request == Request::sample() { Filters::None } else { Filters::ByHost };
        Ask { request, sampling: SamplingParams::default(), filters }
    }

    pub fn sample(filter: impl FnOnce(&mut SamplingParams)) -> Self {
        let mut ask = Ask { filters: Filters::ByHost, ..Ask::plain(Request::sample()) };
        filter(&mut ask.sampling);
        ask
    }

    /// A sample whose parameters the host does not look at.
    pub fn by_device(self) -> Self {
        Ask { filters: Filters::ByDevice, ..self }
    }

    /// How a row is sampled.
    pub fn params(&self, row: usize) -> SamplingParams {
        SamplingParams { seed: 1000 + row as u64, ..self.sampling }
    }

    fn options(&self) -> StepOptions {
        StepOptions { on_device: true, filters: self.filters, ..StepOptions::default() }
    }

    /// Targets of a row.
    fn targets(&self) -> usize {
        if let Request::Logprobs { targets, .. } = self.request { targets } else { 0 }
    }

    /// Bytes of a row in each buffer, in the order of [`AnswerBuffers`].
    fn row_bytes(&self, vocab: usize) -> [usize; 9] {
        let told = |ids, targets, top_n| [1, 0, ids, 0, 0, 4 * targets, 8 * targets, 8 * top_n, 4 * top_n];
        match self.request {
            Request::Logits { dtype } => [1, vocab * dtype.size(), 0, 0, 0, 0, 0, 0, 0],
            Request::TopK { k } => [1, 0, 8 * k, 4 * k, 4, 0, 0, 0, 0],
            Request::Logprobs { targets, top_n, .. } => told(0, targets, top_n),
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => told(8, 1, top_n),
            _ => told(8, 0, 0),
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SamplingParams { top_k, top_p, min_p, .. } = self.sampling;
        write!(f, "{}", self.request)?;
        if top_k > 0 {
            write!(f, " top_k:{top_k}")?;
        }
        if top_p < 1.0 {
            write!(f, " top_p:{top_p}")?;
        }
        if min_p > 0.0 {
            write!(f, " min_p:{min_p}")?;
        }
        Ok(())
    }
}

/// The hidden states that rows are picked from.
#[derive(Clone, Copy)]
pub struct Source<'d> {
    pub states: Span<'d>,
    pub dtype: DType,
    pub rows: usize,
}

/// Buffers of the rank's inputs; `None` where the ask has no such input.
struct Inputs {
    indices: Buffer,
    targets: Option<Buffer>,
    seed: Buffer,
    position: Buffer,
    temperature: Buffer,
    top_k: Option<Buffer>,
    top_p: Option<Buffer>,
    min_p: Option<Buffer>,
}

/// A rank's head with a step of it.
pub struct DeviceStep<'d> {
    pub head: LmHead,
    pub ask: Ask,
    device: &'d CudaDevice,
    stream: CudaStream,
    counts: RowCounts,
    source: Source<'d>,
    inputs: Inputs,
    /// In the order of [`AnswerBuffers`].
    answers: [Buffer; 9],
    workspace: Buffer,
    /// Whether the step returns when it is queued.
    pub asynchronous: bool,
}

impl<'d> DeviceStep<'d> {
    /// Warms the head up for the step; collective. `picks` are this rank's rows of the source, as many as
    /// `counts` says.
    ///
    /// # Errors
    /// Where the head refuses the step, or there is no memory.
    pub fn new(
        mut head: LmHead,
        ask: Ask,
        counts: RowCounts,
        (device, stream): (&'d CudaDevice, CudaStream),
        (source, picks): (Source<'d>, &[i64]),
    ) -> Result<Self> {
        let (rows, vocab) = (picks.len(), head.config().vocab_size);
        let params: Vec<SamplingParams> = (0..rows).map(|row| ask.params(row)).collect();
        let targets = ask.targets();
        // Any ids, the ends of the vocabulary among them.
        let ids: Vec<i64> = (0..rows * targets).map(|i| (i * 7919 % vocab) as i64).collect();
        let floats =
            |get: fn(&SamplingParams) -> f32| device.upload(&params.iter().map(get).collect::<Vec<_>>());
        let words =
            |get: fn(&SamplingParams) -> u64| device.upload(&params.iter().map(get).collect::<Vec<_>>());
        let sampling = ask.sampling;
        let inputs = Inputs {
            indices: device.upload(picks)?,
            targets: (targets > 0).then(|| device.upload(&ids)).transpose()?,
            seed: words(|params| params.seed)?,
            position: words(|params| params.position)?,
            temperature: floats(|params| params.temperature)?,
            top_k: (sampling.top_k > 0)
                .then(|| device.upload(&vec![sampling.top_k as i32; rows]))
                .transpose()?,
            top_p: (sampling.top_p < 1.0).then(|| floats(|params| params.top_p)).transpose()?,
            min_p: (sampling.min_p > 0.0).then(|| floats(|params| params.min_p)).transpose()?,
        };
        let room = |bytes: usize| device.filled(rows * bytes, 0xee);
        let answers: Vec<Buffer> = ask.row_bytes(vocab).into_iter().map(room).collect::<Result<_>>()?;
        let answers = <[Buffer; 9]>::try_from(answers).expect("nine of them");
        let workspace = head.workspace(&counts, &ask.request, ask.options())?;
        let workspace = device.filled(workspace.max(16), 0xee)?;
        let none = DeviceAdjustments::default();
        head.warm_up_on_device(device.handle(stream), rows, &[ask.request], none)?;
        Ok(DeviceStep {
            head,
            ask,
            device,
            stream,
            counts,
            source,
            inputs,
            answers,
            workspace,
            asynchronous: false,
        })
    }

    /// Whether the step may be captured in a CUDA graph.
    pub fn is_capturable(&self) -> bool {
        self.head.is_capturable(&self.counts, &self.ask.request, self.ask.options())
    }

    /// One step: queued as far as it can be, or recorded where the stream is captured. Its memory is in use
    /// until the last step, or its graph, has ended.
    ///
    /// # Errors
    /// As [`LmHead::run_into`].
    pub fn run(&mut self) -> Result<()> {
        let memory = Memory::Device(self.device.ordinal());
        // SAFETY: this step's own buffers, here and below, which the stream alone uses.
        let span = |buffer: &Buffer| unsafe { Span::from_raw(memory, buffer.address(), buffer.len()) };
        // SAFETY: as above; no two of them are the same.
        let own = |buffer: &Buffer| unsafe { SpanMut::from_raw(memory, buffer.address(), buffer.len()) };
        let Inputs { indices, targets, seed, position, temperature, top_k, top_p, min_p } = &self.inputs;
        let sampling = SamplingSpans {
            seed: Some(span(seed)),
            position: Some(span(position)),
            temperature: Some(span(temperature)),
            top_k: top_k.as_ref().map(span),
            top_p: top_p.as_ref().map(span),
            min_p: min_p.as_ref().map(span),
        };
        let on_device = DeviceInputs {
            targets: targets.as_ref().map(span),
            sampling: matches!(self.ask.request, Request::Sample { .. }).then_some(sampling),
            ..DeviceInputs::default()
        };
        let [row_status, logits, ids, values, logsumexp, logprobs, ranks, top_ids, top_logprobs] =
            self.answers.each_ref().map(own);
        let answer = AnswerBuffers {
            row_status,
            logits,
            logits_stride: 0,
            ids,
            values,
            logsumexp,
            logprobs,
            ranks,
            top_ids,
            top_logprobs,
        };
        let Source { states, dtype, rows } = self.source;
        let hidden = self.head.config().hidden_size;
        let hidden = HiddenRows::strided(states, dtype, rows, hidden, hidden * dtype.size())?;
        let hidden = hidden.select_span(span(indices), 8)?;
        let inputs = RowInputs { on_device, ..RowInputs::default() };
        let on = On { stream: self.device.handle(self.stream), workspace: Some(own(&self.workspace)) };
        let options = StepOptions { asynchronous: self.asynchronous, ..self.ask.options() };
        let ticket = self.head.begin(&self.counts, &self.ask.request, options)?;
        self.head.run_into(ticket, hidden, &inputs, answer, on).map(drop)
    }

    /// Bytes of the workspace that steps are given.
    pub fn workspace(&self) -> usize {
        self.workspace.len()
    }

    /// Lends steps a workspace of `bytes` bytes from now on. No step may be under way.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn lend(&mut self, bytes: usize) -> Result<()> {
        self.workspace = self.device.filled(bytes, 0xee)?;
        Ok(())
    }

    /// A status of each row.
    ///
    /// # Errors
    /// Errors of the device; here and below.
    pub fn row_status(&self) -> Result<Vec<u8>> {
        self.answers[0].read()
    }

    /// All ids of each row.
    pub fn ids(&self) -> Result<Vec<i64>> {
        self.answers[2].read()
    }

    /// The logsumexp of each row.
    pub fn logsumexp(&self) -> Result<Vec<f32>> {
        self.answers[4].read()
    }

    /// The logprobs of each row's targets.
    pub fn logprobs(&self) -> Result<Vec<f32>> {
        self.answers[5].read()
    }

    /// The targets of all rows, one behind the other.
    pub fn targets(&self) -> Result<Vec<i64>> {
        self.inputs.targets.as_ref().map_or(Ok(Vec::new()), Buffer::read)
    }

    /// Puts poison where the answers go, so that what is read later was written by a later step.
    pub fn poison(&mut self) -> Result<()> {
        self.answers.iter_mut().try_for_each(|buffer| buffer.write(&vec![0xeeu8; buffer.len()]))
    }
}
