//! Random cases of every request through C, with ranks over an engine's callbacks: the same bits as each row
//! alone through Rust.

use crate::bridge;
use crate::rig::{backend_of, good, init};
use lmhead::adjust::Adjustments;
use lmhead::config::{Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::exchange::{Exchange, local};
use lmhead::memory::Memory;
use lmhead::result::{Answer, Request, StepStats, TokenLogprobs};
use lmhead::rows::RowCounts;
use lmhead::{HeadShard, SamplingParams};
use lmhead_capi::sys::*;
use lmhead_testkit::caller_memory::OwnBuffers;
use lmhead_testkit::engine::{self, Engine, Functions};
use lmhead_testkit::requests::{RankStep, cases};
use proptest::prelude::*;
use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex};

fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => LMHEAD_F32,
        DType::F16 => LMHEAD_F16,
        DType::Bf16 => LMHEAD_BF16,
        DType::I8 => LMHEAD_I8,
        DType::E4m3 => LMHEAD_E4M3,
    }
}

unsafe extern "C" fn release(user: *mut std::ffi::c_void) {
    // SAFETY: made below, and released once.
    drop(unsafe { Arc::from_raw(user.cast::<HeadShard>().cast_const()) });
}

/// The shard's weights, copied or used in place.
fn wrap(shard: &Arc<HeadShard>, in_place: bool) -> *mut lmhead_weights {
    let scales = shard.scales().unwrap_or_default();
    let vocab = shard.vocab();
    let mut config = lmhead_weights_config {
        vocab_size: shard.vocab_size() as i64,
        first: vocab.start as i64,
        matrix: lmhead_tensor {
            data: shard.matrix().as_bytes().as_ptr().cast_mut().cast(),
            device_type: LMHEAD_HOST as i32,
            device_id: 0,
            dtype: code(shard.matrix().dtype()),
            reserved: 0,
            rows: vocab.len() as i64,
            columns: shard.hidden_size() as i64,
            stride: 0,
        },
        scales: if scales.is_empty() { ptr::null() } else { scales.as_ptr() },
        n_scales: scales.len() as i64,
        bias: shard.bias().map_or(ptr::null(), <[f32]>::as_ptr),
        quantization: match shard.quantization() {
            Quantization::None => LMHEAD_QUANT_AS_STORED,
            Quantization::W8a8 => LMHEAD_QUANT_W8A8,
            Quantization::W8a16 => LMHEAD_QUANT_W8A16,
        } as i32,
        ..init!(lmhead_weights_config)
    };
    if in_place {
        config.release = Some(release);
        config.user = Arc::into_raw(Arc::clone(shard)).cast_mut().cast();
    }
    let mut weights = ptr::null_mut();
    // SAFETY: all pointers are valid.
    good(unsafe { lmhead_weights_wrap(&raw const config, &raw mut weights) });
    weights
}

fn create(
    step: &RankStep<'_>,
    endpoint: *const lmhead_exchange,
    backend: *const lmhead_backend,
    in_place: bool,
) -> *mut lmhead_head {
    let c = step.config;
    let (verify, verify_every) = match c.verify {
        Verify::Always => (LMHEAD_VERIFY_DEFAULT, 0),
        Verify::WarmUp => (LMHEAD_VERIFY_PREPARE, 0),
        Verify::Every(n) => (LMHEAD_VERIFY_EVERY, n),
    };
    let config = lmhead_config {
        vocab_size: c.vocab_size as i64,
        hidden_size: c.hidden_size as i64,
        hidden_dtype: c.hidden_dtype.map_or(0, code),
        logit_scale: c.logit_scale,
        softcap: c.final_logit_softcapping.unwrap_or(0.0),
        split_rows_over_tp: c.split_rows_over_tp.into(),
        verify: verify as i32,
        verify_every,
        logprobs_chunk_bytes: c.logprobs_chunk_bytes,
        ..init!(lmhead_config)
    };
    let group = &step.group;
    let ranks: Vec<i64> = group.ranks().iter().map(|rank| *rank as i64).collect();
    let group = lmhead_group {
        ranks: ranks.as_ptr(),
        n: ranks.len() as i64,
        rank: ranks[group.me()],
        tp: group.row_part().1 as i64,
        tp_index: group.row_part().0 as i64,
    };
    let weights = wrap(&step.shard, in_place);
    let mut head = ptr::null_mut();
    // SAFETY: all pointers are valid.
    let made = unsafe {
        lmhead_create(&raw const config, &raw const group, weights, endpoint, backend, &raw mut head)
    };
    good(made);
    // SAFETY: made above. The head keeps what it needs.
    unsafe { lmhead_weights_free(weights) };
    head
}

/// Arrays of an `lmhead_sampling`.
struct Sampling {
    seed: Vec<u64>,
    position: Vec<i64>,
    temperature: Vec<f32>,
    top_k: Vec<i32>,
    top_p: Vec<f32>,
    min_p: Vec<f32>,
}

impl Sampling {
    fn new(params: &[SamplingParams]) -> Self {
        Sampling {
            seed: params.iter().map(|p| p.seed).collect(),
            position: params.iter().map(|p| p.position as i64).collect(),
            temperature: params.iter().map(|p| p.temperature).collect(),
            top_k: params.iter().map(|p| i32::try_from(p.top_k).unwrap_or(i32::MAX)).collect(),
            top_p: params.iter().map(|p| p.top_p).collect(),
            min_p: params.iter().map(|p| p.min_p).collect(),
        }
    }

    fn c(&self) -> lmhead_sampling {
        lmhead_sampling {
            seed: self.seed.as_ptr(),
            position: self.position.as_ptr(),
            temperature: self.temperature.as_ptr(),
            top_k: self.top_k.as_ptr(),
            top_p: self.top_p.as_ptr(),
            min_p: self.min_p.as_ptr(),
        }
    }
}

/// Adjustments as C has them.
fn adjustments(own: &Adjustments<'_>) -> lmhead_adjustments {
    // SAFETY: pointers, for which null is valid.
    let mut to: lmhead_adjustments = unsafe { std::mem::zeroed() };
    if let Some(mask) = own.allowed {
        to.allowed = mask.as_ptr();
    }
    if let Some(logit_bias) = own.logit_bias {
        to.logit_bias_offsets = logit_bias.offsets.as_ptr().cast();
        to.logit_bias_ids = logit_bias.ids.as_ptr();
        to.logit_bias_values = logit_bias.values.as_ptr();
    }
    if let Some(penalties) = own.penalties {
        // Neutral penalties may be left out.
        let unless = |values: &[f32], neutral: f32| match values.iter().all(|v| *v == neutral) {
            true => ptr::null(),
            false => values.as_ptr(),
        };
        to.repetition = unless(penalties.repetition, 1.0);
        to.frequency = unless(penalties.frequency, 0.0);
        to.presence = unless(penalties.presence, 0.0);
        to.count_offsets = penalties.counts.offsets.as_ptr().cast();
        to.count_ids = penalties.counts.ids.as_ptr();
        to.counts = penalties.counts.counts.as_ptr().cast();
        to.in_prompt = penalties.counts.in_prompt.as_ptr().cast();
    }
    to
}

/// The part of a step that all ranks must agree on.
fn contract(step: &RankStep<'_>, counts: &mut Vec<i64>) -> lmhead_step {
    let mut to = init!(lmhead_step);
    to.rows = step.hidden.len() as i64;
    match &step.counts {
        RowCounts::Exact(list) => {
            counts.extend(list.iter().map(|n| *n as i64));
            to.counts = counts.as_ptr();
        }
        RowCounts::Capacity { max, .. } => {
            to.mode = LMHEAD_ROWS_CAPACITY as i32;
            to.capacity = *max as i64;
        }
        RowCounts::Discover { .. } => to.mode = LMHEAD_ROWS_DISCOVER as i32,
    }
    let (request, k, flags) = match step.request {
        Request::Logits { dtype } => {
            to.logits_dtype = code(dtype);
            (LMHEAD_LOGITS, 0, 0)
        }
        Request::Argmax => (LMHEAD_ARGMAX, 0, 0),
        Request::TopK { k } => (LMHEAD_TOPK, k, 0),
        Request::Logprobs { targets, top_n, processed } => {
            to.n_targets = targets as i64;
            (LMHEAD_LOGPROBS, top_n, if processed { LMHEAD_PROCESSED } else { 0 })
        }
        Request::Sample { logprobs: None } => (LMHEAD_SAMPLE, 0, 0),
        Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed }) } => {
            let processed = if processed { LMHEAD_PROCESSED } else { 0 };
            (LMHEAD_SAMPLE, top_n, LMHEAD_WITH_LOGPROBS | processed)
        }
        other => panic!("no such request in C: {other}"),
    };
    (to.request, to.k) = (request as i32, k as i64);
    to.flags = flags | if step.adjusted { LMHEAD_ADJUSTED } else { 0 };
    to
}

/// Makes one rank's head over its engine and runs a step, through C.
fn run(step: RankStep<'_>, engine: Arc<Engine>, backend: *const lmhead_backend, seed: usize) -> Answer {
    let (size, me) = (step.group.size(), step.group.me());
    let endpoint = bridge::endpoint(engine, size, me, seed.is_multiple_of(3));
    let head = create(&step, endpoint, backend, seed.is_multiple_of(2));
    // SAFETY: made above.
    unsafe { lmhead_exchange_free(endpoint) };
    let mut counts = Vec::new();
    let mut c = contract(&step, &mut counts);

    // The warm-up has the same number of rows on every rank.
    let prepared =
        lmhead_step { mode: LMHEAD_ROWS_CAPACITY as i32, capacity: step.warm_up.max(1) as i64, ..c };
    // SAFETY: all pointers are valid, here and below.
    good(unsafe { lmhead_prepare(head, &raw const prepared, 1) });

    let hidden = step.hidden;
    let (data, rows) = hidden.source();
    assert_eq!(data.memory(), Memory::Host);
    c.hidden = lmhead_tensor {
        data: ptr::with_exposed_provenance_mut(data.address() as usize),
        device_type: 0,
        device_id: 0,
        dtype: code(hidden.dtype()),
        reserved: 0,
        rows: rows as i64,
        columns: hidden.hidden() as i64,
        stride: (hidden.stride() / hidden.dtype().size()) as i64,
    };
    if let Some(selection) = hidden.selection() {
        c.indices = ptr::with_exposed_provenance(selection.data().address() as usize);
        c.index_dtype = if selection.index_bytes() == 4 { LMHEAD_I32 } else { LMHEAD_I64 };
    }
    c.targets = step.inputs.targets.map_or(ptr::null(), <[i64]>::as_ptr);
    let sampling = Sampling::new(step.inputs.sampling.unwrap_or_default());
    let c_sampling = sampling.c();
    if step.inputs.sampling.is_some() {
        c.sampling = &raw const c_sampling;
    }
    let c_adjustments = step.inputs.adjustments.as_ref().map(adjustments);
    c.adjustments = c_adjustments.as_ref().map_or(ptr::null(), ptr::from_ref);

    let mut needs = init!(lmhead_needs);
    // SAFETY: as above.
    good(unsafe { lmhead_plan(head, &raw const c, &raw mut needs) });
    assert_eq!(needs.workspace_bytes, 0, "on the CPU");
    let (answered, vocab) = (needs.rows as usize, step.config.vocab_size);
    let mut buffers = OwnBuffers::new(&step.request, answered, vocab, step.gap.unwrap_or(0));
    let mut stats = init!(lmhead_stats);
    let logits_dtype = if let Request::Logits { dtype } = step.request { dtype } else { DType::F32 };
    let [row_status, logits, ids, values, logsumexp, logprobs, ranks, top_ids, top_logprobs] =
        buffers.lend().into_host().map(<[u8]>::as_mut_ptr);
    let mut answer = lmhead_answer {
        row_status,
        logits: lmhead_tensor {
            data: logits.cast(),
            device_type: LMHEAD_HOST as i32,
            device_id: 0,
            dtype: code(logits_dtype),
            reserved: 0,
            rows: answered as i64,
            columns: vocab as i64,
            stride: (vocab + step.gap.unwrap_or(0)) as i64,
        },
        ids: ids.cast(),
        values: values.cast(),
        logsumexp: logsumexp.cast(),
        logprobs: logprobs.cast(),
        ranks: ranks.cast(),
        top_ids: top_ids.cast(),
        top_logprobs: top_logprobs.cast(),
        stats: &raw mut stats,
        ..init!(lmhead_answer)
    };
    // SAFETY: as above.
    good(unsafe { lmhead_run(head, &raw const c, &raw mut answer) });
    assert!(stats.size == size_of::<lmhead_stats>() && stats.rows_computed >= answered as i64);
    // SAFETY: as above.
    unsafe { lmhead_free(head) };
    buffers.into_answer(StepStats::default())
}

const KINDS: [(DType, Quantization); 5] = [
    (DType::F32, Quantization::None),
    (DType::F16, Quantization::None),
    (DType::Bf16, Quantization::None),
    (DType::Bf16, Quantization::W8a8),
    (DType::F32, Quantization::W8a16),
];

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 100, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn every_request_is_the_same_bits_through_c(case in cases(&KINDS), seed in 0usize..6) {
        let (own, c) = (lmhead_testkit::backend(), backend_of(LMHEAD_HOST, 2) as usize);
        // Keyed by the case's own exchange, which is not used otherwise.
        let engines = Mutex::new(HashMap::new());
        let number = |exchange: &Arc<dyn Exchange>| Arc::as_ptr(exchange).cast::<()>().addr();
        let connect = |size: usize| {
            let own = engine::engines(size, Functions::ALL, |_, _, _| None);
            let stand_ins =
                local::group(size).into_iter().map(|endpoint| Arc::new(endpoint) as Arc<dyn Exchange>);
            let all: Vec<_> = stand_ins.collect();
            engines.lock().unwrap().extend(all.iter().map(number).zip(own));
            all
        };
        let runner = |step: RankStep<'_>| {
            let engine = engines.lock().unwrap().remove(&number(&step.exchange)).expect("made by connect");
            run(step, Arc::new(engine), ptr::without_provenance(c), seed)
        };
        case.holds_by(&own, &runner, &connect)?;
        // SAFETY: made above.
        unsafe { lmhead_backend_free(ptr::without_provenance_mut(c)) };
    }
}
