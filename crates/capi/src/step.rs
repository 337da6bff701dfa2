//! Converts an `lmhead_step` and an `lmhead_answer` to the library's own arguments.
//!
//! Arguments that no step could have (unknown numbers, negative sizes, a null pointer where there are rows)
//! are refused before the step begins. Anything else that does not fit is an error of the step, which the
//! peers are told of.

use crate::boundary::{Failure, Outcome, argument, call, given};
use crate::structs::{TensorShape, array, count, dtype, memory, needed, span, span_mut};
use crate::sys::{self, lmhead_adjustments, lmhead_answer, lmhead_sampling, lmhead_status, lmhead_step};
use lmhead::adjust::{Adjustments, Counts, LogitBias, Penalties};
use lmhead::backend::DeviceAdjustments;
use lmhead::head::StepOptions;
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::result::{
    AnswerBuffers, DeviceInputs, LogitBiasSpans, PenaltySpans, SamplingSpans, TokenLogprobs,
};
use lmhead::sampling::Filters;
use lmhead::{DType, Error, HiddenRows, Request, RowCounts, SamplingParams};

/// A step's part of the contract, and where its rows lie.
pub struct Contract {
    pub request: Request,
    pub options: StepOptions,
    pub rows: usize,
    pub memory: Memory,
}

impl Contract {
    pub fn of(step: &lmhead_step) -> Outcome<Self> {
        let memory = memory("hidden", step.hidden.device_type, step.hidden.device_id)?;
        let adjusted = step.flags & sys::LMHEAD_ADJUSTED != 0;
        let most = |what: &str, n: i64| {
            let n = count(what, n)?;
            u32::try_from(n).map_err(|_| argument(what, "fewer than 2^32", n, "state a smaller bound"))
        };
        let device_adjustments = DeviceAdjustments {
            allowed: step.flags & sys::LMHEAD_DEVICE_MASKS != 0,
            logit_bias: most("max_logit_bias", step.max_logit_bias)?,
            counts: most("max_counts", step.max_counts)?,
        };
        let all = sys::LMHEAD_DEVICE_TARGETS | sys::LMHEAD_DEVICE_SAMPLING | sys::LMHEAD_DEVICE_ADJUSTMENTS;
        let named = step.device_inputs;
        let got = || format!("{named:#x}");
        if named & !all != 0 {
            let wanted = "LMHEAD_DEVICE_TARGETS, SAMPLING and ADJUSTMENTS";
            return Err(argument("device_inputs", wanted, got(), "use the library of that header, or newer"));
        }
        if memory == Memory::Host && (named != 0 || !device_adjustments.is_empty()) {
            let fix = "pass hidden states in device memory, or all inputs in host memory";
            return Err(argument("device_inputs", "none where `hidden` is host memory", got(), fix));
        }
        let flag = |flag: u32| step.flags & flag != 0;
        let filters = match (flag(sys::LMHEAD_UNFILTERED), flag(sys::LMHEAD_DEVICE_FILTERS)) {
            (false, false) => Filters::ByHost,
            (true, false) => Filters::None,
            (false, true) => Filters::ByDevice,
            (true, true) => {
                let wanted = "one of LMHEAD_UNFILTERED and LMHEAD_DEVICE_FILTERS";
                let fix = "set the second where rows may have filters, else the first";
                return Err(argument("flags", wanted, "both", fix));
            }
        };
        let asynchronous = flag(sys::LMHEAD_ASYNCHRONOUS);
        let options = StepOptions {
            adjusted,
            on_device: memory != Memory::Host,
            device_adjustments,
            filters,
            asynchronous,
        };
        Ok(Contract { request: request(step)?, options, rows: count("rows", step.rows)?, memory })
    }
}

fn request(step: &lmhead_step) -> Outcome<Request> {
    let all = sys::LMHEAD_ADJUSTED
        | sys::LMHEAD_PROCESSED
        | sys::LMHEAD_WITH_LOGPROBS
        | sys::LMHEAD_DEVICE_MASKS
        | sys::LMHEAD_UNFILTERED
        | sys::LMHEAD_DEVICE_FILTERS
        | sys::LMHEAD_ASYNCHRONOUS;
    if step.flags & !all != 0 {
        let fix = "use the library of that header, or newer";
        return Err(argument(
            "flags",
            "LMHEAD_ADJUSTED, PROCESSED, WITH_LOGPROBS, DEVICE_MASKS, UNFILTERED, DEVICE_FILTERS, ASYNCHRONOUS",
            format!("{:#x}", step.flags),
            fix,
        ));
    }
    let processed = step.flags & sys::LMHEAD_PROCESSED != 0;
    let with_logprobs = step.flags & sys::LMHEAD_WITH_LOGPROBS != 0;
    let k = count("k", step.k)?;
    let targets = match count("n_targets", step.n_targets)? {
        0 => 1,
        n => n,
    };
    let (request, told) = match step.request as u32 {
        sys::LMHEAD_LOGITS => (Request::logits(dtype("logits_dtype", step.logits_dtype)?), false),
        sys::LMHEAD_ARGMAX => (Request::Argmax, false),
        sys::LMHEAD_TOPK => (Request::TopK { k }, false),
        sys::LMHEAD_LOGPROBS => (Request::Logprobs { targets, top_n: k, processed }, true),
        sys::LMHEAD_SAMPLE if with_logprobs => {
            (Request::Sample { logprobs: Some(TokenLogprobs { top_n: k, processed }) }, true)
        }
        sys::LMHEAD_SAMPLE => (Request::Sample { logprobs: None }, false),
        _ => {
            return Err(argument(
                "request",
                "LMHEAD_LOGITS to LMHEAD_SAMPLE",
                step.request,
                "use one of those",
            ));
        }
    };
    // A value that the request does not use is refused, not ignored.
    let takes_k = told || matches!(request, Request::TopK { .. });
    if k != 0 && !takes_k {
        let fix = "set LMHEAD_WITH_LOGPROBS where sampled tokens are to have logprobs";
        return Err(argument("k", format!("0 with {request}"), k, fix));
    }
    if (processed || with_logprobs) && !told {
        let fix = "they are for LOGPROBS and SAMPLE";
        return Err(argument(
            "flags",
            format!("no flags of logprobs with {request}"),
            format!("{:#x}", step.flags),
            fix,
        ));
    }
    Ok(request)
}

/// The row counts of the last step, and a list whose memory is reused for the next.
pub struct KeptCounts {
    pub counts: RowCounts,
    spare: Vec<usize>,
}

impl KeptCounts {
    pub fn new(replicas: usize) -> Self {
        KeptCounts { counts: RowCounts::discover(0), spare: Vec::with_capacity(replicas) }
    }

    fn set(&mut self, counts: RowCounts) {
        if let RowCounts::Exact(list) = std::mem::replace(&mut self.counts, counts) {
            self.spare = list;
        }
    }
}

/// Replaces the last step's row counts by this step's.
///
/// # Safety
/// `counts` must be what the header says.
pub unsafe fn counts(step: &lmhead_step, rows: usize, replicas: usize, into: &mut KeptCounts) -> Outcome {
    match step.mode as u32 {
        sys::LMHEAD_ROWS_EXACT => {
            into.set(RowCounts::discover(rows));
            into.counts = RowCounts::Exact(std::mem::take(&mut into.spare));
            let RowCounts::Exact(list) = &mut into.counts else { unreachable!("made above") };
            list.clear();
            if step.counts.is_null() && replicas == 1 {
                list.push(rows);
                return Ok(());
            }
            // SAFETY: as the caller says.
            for &n in unsafe { needed("counts", step.counts, replicas)? } {
                list.push(count("counts", n)?);
            }
        }
        sys::LMHEAD_ROWS_CAPACITY => {
            into.set(RowCounts::Capacity { max: count("capacity", step.capacity)?, mine: rows });
        }
        sys::LMHEAD_ROWS_DISCOVER => into.set(RowCounts::discover(rows)),
        _ => {
            let fix = "use one of those";
            return Err(argument("mode", "LMHEAD_ROWS_EXACT, CAPACITY or DISCOVER", step.mode, fix));
        }
    }
    Ok(())
}

/// The most rows that any rank brings to steps of this kind, for `lmhead_prepare`.
///
/// # Safety
/// As [`counts`].
pub unsafe fn most_rows(step: &lmhead_step, replicas: usize) -> Outcome<usize> {
    match step.mode as u32 {
        sys::LMHEAD_ROWS_EXACT if step.counts.is_null() && replicas == 1 => match count("rows", step.rows)? {
            0 => {
                let fix = "set it to the most rows that a step will have";
                Err(argument("rows", "the most rows of a step", 0, fix))
            }
            rows => Ok(rows),
        },
        sys::LMHEAD_ROWS_EXACT => {
            // SAFETY: as the caller says.
            let counts = unsafe { needed("counts", step.counts, replicas)? };
            count("counts", counts.iter().copied().max().unwrap_or(0))
        }
        sys::LMHEAD_ROWS_CAPACITY | sys::LMHEAD_ROWS_DISCOVER => match count("capacity", step.capacity)? {
            0 => Err(argument("capacity", "the most rows of any replica", 0, "set it, for DISCOVER too")),
            rows => Ok(rows),
        },
        _ => {
            let fix = "use one of those";
            Err(argument("mode", "LMHEAD_ROWS_EXACT, CAPACITY or DISCOVER", step.mode, fix))
        }
    }
}

/// The rank's own rows.
///
/// # Safety
/// `hidden` and `indices` must be what the header says.
pub unsafe fn hidden<'a>(
    step: &lmhead_step,
    contract: &Contract,
    own: (DType, usize),
) -> Outcome<HiddenRows<'a>> {
    let (rows, tensor) = (contract.rows, &step.hidden);
    if rows == 0 {
        return Ok(HiddenRows::none(own.0, own.1));
    }
    let of = TensorShape::of("hidden", tensor)?;
    // SAFETY: as the caller says.
    let data = unsafe { span(of.memory, tensor.data, of.bytes) };
    let all = HiddenRows::strided(data, of.dtype, of.rows, of.columns, of.stride)?;
    let size = match step.index_dtype {
        0 | sys::LMHEAD_I64 => 8,
        sys::LMHEAD_I32 => 4,
        other => {
            let (wanted, fix) = ("LMHEAD_I64 or LMHEAD_I32", "convert the indices");
            return Err(argument("index_dtype", wanted, format!("{other:#x}"), fix));
        }
    };
    if !step.indices.is_null() {
        let bytes = rows.checked_mul(size).ok_or_else(|| argument("rows", "fewer", rows, "correct it"))?;
        // SAFETY: as above.
        return Ok(all.select_span(unsafe { span(of.memory, step.indices, bytes) }, size)?);
    }
    if rows > all.len() {
        return Err(Failure::Library(Error::Shape {
            what: "hidden".into(),
            wanted: format!("at least the {rows} rows that the step brings"),
            got: format!("{} rows", all.len()),
            fix: "pass their tensor, or indices that pick rows of it".into(),
        }));
    }
    Ok(all.range(0..rows))
}

/// Fills `into` with each row's sampling parameters.
///
/// # Safety
/// The arrays must be what the header says.
pub unsafe fn sampling(from: &lmhead_sampling, rows: usize, into: &mut Vec<SamplingParams>) -> Outcome {
    into.clear();
    // SAFETY: as the caller says.
    unsafe {
        each_sampling(from, rows, |_, params| {
            into.push(params);
            Ok(())
        })
    }
}

/// Passes each row's sampling parameters to `take`.
///
/// # Safety
/// As [`sampling`].
unsafe fn each_sampling(
    from: &lmhead_sampling,
    rows: usize,
    mut take: impl FnMut(usize, SamplingParams) -> Outcome,
) -> Outcome {
    // SAFETY: as the caller says.
    let (seed, position, temperature, top_k, top_p, min_p) = unsafe {
        (
            array("sampling.seed", from.seed, rows)?,
            array("sampling.position", from.position, rows)?,
            array("sampling.temperature", from.temperature, rows)?,
            array("sampling.top_k", from.top_k, rows)?,
            array("sampling.top_p", from.top_p, rows)?,
            array("sampling.min_p", from.min_p, rows)?,
        )
    };
    let wrong = |name: &str, row: usize, got: i64| {
        Failure::Library(Error::Request {
            what: format!("{name} of row {row}"),
            wanted: "a number of at least 0".into(),
            got: got.to_string(),
            fix: "correct it".into(),
        })
    };
    for row in 0..rows {
        let mut params = SamplingParams::default();
        if let Some(seed) = seed {
            params.seed = seed[row];
        }
        if let Some(position) = position {
            params.position =
                u64::try_from(position[row]).map_err(|_| wrong("position", row, position[row]))?;
        }
        if let Some(temperature) = temperature {
            params.temperature = temperature[row];
        }
        if let Some(top_k) = top_k {
            params.top_k = usize::try_from(top_k[row]).map_err(|_| wrong("top_k", row, top_k[row].into()))?;
        }
        if let Some(top_p) = top_p {
            params.top_p = top_p[row];
        }
        if let Some(min_p) = min_p {
            params.min_p = min_p[row];
        }
        take(row, params)?;
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_sampling_check(from: *const lmhead_sampling, rows: i64) -> lmhead_status {
    call(|| {
        let rows = count("rows", rows)?;
        // SAFETY: the caller's promise.
        unsafe { each_sampling(given("sampling", from)?, rows, |row, params| Ok(params.check(row)?)) }
    })
}

/// Neutral penalties, for arrays that C leaves out; as many as there are rows.
#[derive(Default)]
pub struct Neutral {
    ones: Vec<f32>,
    zeros: Vec<f32>,
    offsets: Vec<usize>,
}

impl Neutral {
    pub fn reserve(&mut self, rows: usize) {
        if self.ones.len() < rows {
            self.ones.resize(rows, 1.0);
            self.zeros.resize(rows, 0.0);
        }
        if self.offsets.len() <= rows {
            self.offsets.resize(rows + 1, 0);
        }
    }
}

/// The adjustments of the rank's own rows.
///
/// # Safety
/// The arrays must be what the header says.
pub unsafe fn adjustments<'a>(
    from: &lmhead_adjustments,
    rows: usize,
    vocab_size: usize,
    neutral: &'a Neutral,
) -> Outcome<Adjustments<'a>> {
    let words = rows.checked_mul(vocab_size.div_ceil(32));
    let words = words.ok_or_else(|| argument("rows", "fewer", rows, "correct it"))?;
    // SAFETY: as the caller says; so below.
    let allowed = unsafe { array("adjustments.allowed", from.allowed, words)? };
    let logit_bias = if from.logit_bias_offsets.is_null() {
        without_offsets("logit_bias", !(from.logit_bias_ids.is_null() && from.logit_bias_values.is_null()))?;
        None
    } else {
        // SAFETY: as above.
        let (offsets, entries) =
            unsafe { offsets("adjustments.logit_bias_offsets", from.logit_bias_offsets, rows)? };
        // SAFETY: as above.
        let (ids, values) = unsafe {
            (
                needed("adjustments.logit_bias_ids", from.logit_bias_ids, entries)?,
                needed("adjustments.logit_bias_values", from.logit_bias_values, entries)?,
            )
        };
        Some(LogitBias { offsets, ids, values })
    };
    let lists = !(from.count_ids.is_null() && from.counts.is_null() && from.in_prompt.is_null());
    let any = lists
        || !(from.repetition.is_null()
            && from.frequency.is_null()
            && from.presence.is_null()
            && from.count_offsets.is_null());
    let penalties = if any {
        // SAFETY: as above.
        let (offsets, entries) = if from.count_offsets.is_null() {
            without_offsets("count", lists)?;
            (&neutral.offsets[..=rows], 0)
        } else {
            // SAFETY: as above.
            unsafe { offsets("adjustments.count_offsets", from.count_offsets, rows)? }
        };
        // SAFETY: as above.
        let (ids, counts, in_prompt) = unsafe {
            (
                needed("adjustments.count_ids", from.count_ids, entries)?,
                needed("adjustments.counts", from.counts, entries)?,
                needed("adjustments.in_prompt", from.in_prompt, entries)?,
            )
        };
        let in_prompt = bytemuck::checked::try_cast_slice(in_prompt)
            .map_err(|_| argument("adjustments.in_prompt", "0 or 1", "another byte", "correct it"))?;
        // SAFETY: as above.
        let (repetition, frequency, presence) = unsafe {
            (
                array("adjustments.repetition", from.repetition, rows)?,
                array("adjustments.frequency", from.frequency, rows)?,
                array("adjustments.presence", from.presence, rows)?,
            )
        };
        Some(Penalties {
            repetition: repetition.unwrap_or(&neutral.ones[..rows]),
            frequency: frequency.unwrap_or(&neutral.zeros[..rows]),
            presence: presence.unwrap_or(&neutral.zeros[..rows]),
            // As a u32, a negative count is too large, and `check` refuses it.
            counts: Counts { offsets, ids, counts: bytemuck::cast_slice(counts), in_prompt },
        })
    } else {
        None
    };
    Ok(Adjustments { allowed, logit_bias, penalties })
}

/// The rank's own inputs that are in device memory.
///
/// # Safety
/// The structs must be what the header says, and their arrays in that memory.
pub unsafe fn device_inputs<'a>(
    step: &lmhead_step,
    contract: &Contract,
    vocab_size: usize,
) -> Outcome<DeviceInputs<'a>> {
    let (rows, memory) = (contract.rows, contract.memory);
    let mut inputs = DeviceInputs::default();
    /// A span of `n` elements, which may be 0; `None` for a null pointer.
    fn some<'a, T>(memory: Memory, pointer: *const T, n: usize) -> Option<Span<'a>> {
        let bytes = n.saturating_mul(size_of::<T>());
        // SAFETY: as the caller says.
        (!pointer.is_null()).then(|| unsafe { span(memory, pointer.cast(), bytes) })
    }
    let needed = |what: &str, span: Option<Span<'a>>, n: usize| match span {
        None if n > 0 => Err(argument(what, "an address", "NULL", "pass the entries, or none of them")),
        span => Ok(span.unwrap_or(Span::EMPTY)),
    };
    if step.device_inputs & sys::LMHEAD_DEVICE_TARGETS != 0 {
        let lmhead::Request::Logprobs { targets, .. } = contract.request else {
            return Err(argument("targets", "NULL with this request", "some", "they are for LOGPROBS"));
        };
        let n = rows.saturating_mul(targets);
        inputs.targets = Some(needed("targets", some(memory, step.targets, n), n)?);
    }
    if step.device_inputs & sys::LMHEAD_DEVICE_SAMPLING != 0 && !step.sampling.is_null() {
        // SAFETY: as the caller says.
        let from = unsafe { given("sampling", step.sampling)? };
        inputs.sampling = Some(SamplingSpans {
            seed: some(memory, from.seed, rows),
            position: some(memory, from.position, rows),
            temperature: some(memory, from.temperature, rows),
            top_k: some(memory, from.top_k, rows),
            top_p: some(memory, from.top_p, rows),
            min_p: some(memory, from.min_p, rows),
        });
    }
    if step.device_inputs & sys::LMHEAD_DEVICE_ADJUSTMENTS == 0 || step.adjustments.is_null() {
        return Ok(inputs);
    }
    // SAFETY: as the caller says.
    let from = unsafe { given("adjustments", step.adjustments)? };
    inputs.allowed = some(memory, from.allowed, rows.saturating_mul(vocab_size.div_ceil(32)));
    if let Some(offsets) = some(memory, from.logit_bias_offsets, rows.saturating_add(1)) {
        let n = count("n_logit_bias", step.n_logit_bias)?;
        let ids = needed("adjustments.logit_bias_ids", some(memory, from.logit_bias_ids, n), n)?;
        let values = needed("adjustments.logit_bias_values", some(memory, from.logit_bias_values, n), n)?;
        inputs.logit_bias = Some(LogitBiasSpans { offsets, ids, values });
    } else {
        let entries = !(from.logit_bias_ids.is_null() && from.logit_bias_values.is_null());
        without_offsets("logit_bias", entries)?;
    }
    let each = [from.repetition, from.frequency, from.presence];
    if let Some(offsets) = some(memory, from.count_offsets, rows.saturating_add(1)) {
        let n = count("n_counts", step.n_counts)?;
        let [repetition, frequency, presence] = each.map(|each| some(memory, each, rows));
        inputs.penalties = Some(PenaltySpans {
            repetition,
            frequency,
            presence,
            offsets,
            ids: needed("adjustments.count_ids", some(memory, from.count_ids, n), n)?,
            counts: needed("adjustments.counts", some(memory, from.counts, n), n)?,
            in_prompt: needed("adjustments.in_prompt", some(memory, from.in_prompt, n), n)?,
        });
    } else {
        // Penalties without ids change nothing.
        let entries = !(from.count_ids.is_null() && from.counts.is_null() && from.in_prompt.is_null());
        without_offsets("count", entries)?;
    }
    Ok(inputs)
}

/// Refuses entries without offsets: they belong to no row, and must not be ignored.
fn without_offsets(what: &str, there_are_some: bool) -> Outcome {
    if !there_are_some {
        return Ok(());
    }
    let what = format!("adjustments.{what}_offsets");
    Err(argument(&what, "offsets of the entries that are given", "NULL", "pass [rows + 1] offsets"))
}

/// The offsets of `rows` rows, and the number of entries. As a usize, a negative offset is too large, and is
/// refused later like other offsets that do not ascend.
///
/// # Safety
/// `pointer` must be null, or point to `rows + 1` numbers.
unsafe fn offsets<'a>(what: &str, pointer: *const i64, rows: usize) -> Outcome<(&'a [usize], usize)> {
    // SAFETY: as the caller says.
    let offsets = unsafe { needed(what, pointer, rows.saturating_add(1))? };
    let entries = count(what, offsets.last().copied().unwrap_or(0))?;
    Ok((bytemuck::cast_slice(offsets), entries))
}

/// The caller's memory for an answer.
///
/// # Safety
/// The buffers must be what the header says, and used by nobody else.
pub unsafe fn answer<'a>(
    answer: &lmhead_answer,
    contract: &Contract,
    rows: usize,
    vocab_size: usize,
) -> Outcome<AnswerBuffers<'a>> {
    let (request, memory) = (&contract.request, contract.memory);
    let (ids, values, logsumexp, told, top) = match *request {
        Request::TopK { k } => (k, k, 1, 0, 0),
        Request::Logprobs { targets, top_n, .. } => (0, 0, 0, targets, top_n),
        Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => (1, 0, 0, 1, top_n),
        _ => (1, 0, 0, 0, 0),
    };
    let bytes = |per_row: usize, size: usize| rows.saturating_mul(per_row).saturating_mul(size);
    let logits = logits(answer, request, memory, rows, vocab_size)?;
    // SAFETY: as the caller says.
    unsafe {
        Ok(AnswerBuffers {
            row_status: span_mut(memory, answer.row_status.cast(), rows),
            logits: span_mut(memory, answer.logits.data, logits.0),
            logits_stride: logits.1,
            ids: span_mut(memory, answer.ids.cast(), bytes(ids, 8)),
            values: span_mut(memory, answer.values.cast(), bytes(values, 4)),
            logsumexp: span_mut(memory, answer.logsumexp.cast(), bytes(logsumexp, 4)),
            logprobs: span_mut(memory, answer.logprobs.cast(), bytes(told, 4)),
            ranks: span_mut(memory, answer.ranks.cast(), bytes(told, 8)),
            top_ids: span_mut(memory, answer.top_ids.cast(), bytes(top, 8)),
            top_logprobs: span_mut(memory, answer.top_logprobs.cast(), bytes(top, 4)),
        })
    }
}

/// Bytes and stride of the buffer for logits.
fn logits(
    answer: &lmhead_answer,
    request: &Request,
    memory: Memory,
    rows: usize,
    vocab_size: usize,
) -> Outcome<(usize, usize)> {
    let Request::Logits { dtype } = *request else { return Ok((0, 0)) };
    if rows == 0 {
        return Ok((0, 0));
    }
    let of = TensorShape::of("answer.logits", &answer.logits)?;
    let shape = |rows: usize, columns: usize, dtype: DType, memory: Memory| {
        format!("[{rows}, {columns}] {dtype} in {memory}")
    };
    let fits = of.rows >= rows && of.columns == vocab_size && of.memory == memory;
    if of.dtype != dtype || !fits {
        let wanted = shape(rows, vocab_size, dtype, memory);
        let (what, got) = ("answer.logits".into(), shape(of.rows, of.columns, of.dtype, of.memory));
        let fix = "pass memory for the answered rows".into();
        return Err(Failure::Library(match of.dtype == dtype {
            true => Error::Shape { what, wanted, got, fix },
            false => Error::Dtype { what, wanted, got, fix },
        }));
    }
    Ok((of.bytes, of.stride))
}

/// The workspace that the caller lends, if any.
///
/// # Safety
/// The memory must be valid, and used by nobody else until the stream has passed the step.
pub unsafe fn workspace<'a>(step: &lmhead_step, memory: Memory) -> Outcome<Option<SpanMut<'a>>> {
    if step.workspace.is_null() && step.workspace_bytes > 0 {
        let wanted = format!("{} bytes", step.workspace_bytes);
        return Err(argument(
            "workspace",
            wanted,
            "NULL",
            "pass their address, or 0 bytes for the head's own",
        ));
    }
    // SAFETY: as the caller says.
    Ok((!step.workspace.is_null()).then(|| unsafe { span_mut(memory, step.workspace, step.workspace_bytes) }))
}
