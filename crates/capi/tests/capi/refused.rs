//! Bad input gets a status and a message, and has no other effect.

use crate::bridge;
use crate::rig::{backend_of, fails, good, init, last_error};
use lmhead_capi::sys::*;
use lmhead_testkit::engine::{Functions, engines};
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const VOCAB: usize = 70;
const HIDDEN: usize = 8;

static WEIGHTS: [f32; VOCAB * HIDDEN] = {
    let mut values = [0.0; VOCAB * HIDDEN];
    let mut i = 0;
    while i < values.len() {
        values[i] = ((i * 7919) % 101) as f32 / 50.0 - 1.0;
        i += 1;
    }
    values
};

fn tensor(values: &[f32], columns: usize) -> lmhead_tensor {
    lmhead_tensor {
        data: values.as_ptr().cast_mut().cast(),
        device_type: LMHEAD_HOST as i32,
        device_id: 0,
        dtype: LMHEAD_F32,
        reserved: 0,
        rows: (values.len() / columns) as i64,
        columns: columns as i64,
        stride: 0,
    }
}

pub fn whole() -> lmhead_weights_config {
    lmhead_weights_config {
        vocab_size: VOCAB as i64,
        matrix: tensor(&WEIGHTS, HIDDEN),
        ..init!(lmhead_weights_config)
    }
}

pub fn wrap(config: &lmhead_weights_config) -> *mut lmhead_weights {
    let mut weights = ptr::null_mut();
    // SAFETY: all pointers are valid.
    good(unsafe { lmhead_weights_wrap(config, &raw mut weights) });
    weights
}

pub fn config() -> lmhead_config {
    lmhead_config { vocab_size: VOCAB as i64, hidden_size: HIDDEN as i64, ..init!(lmhead_config) }
}

fn head_alone() -> *mut lmhead_head {
    let (weights, backend, config) = (wrap(&whole()), backend_of(LMHEAD_HOST, 2), config());
    let mut head = ptr::null_mut();
    // SAFETY: all pointers are valid.
    unsafe {
        good(lmhead_create(&raw const config, ptr::null(), weights, ptr::null(), backend, &raw mut head));
        lmhead_weights_free(weights);
        lmhead_backend_free(backend);
    }
    head
}

/// The ranks that the thread's latest error names.
fn last_ranks() -> Vec<i64> {
    let mut ranks = [0; 64];
    // SAFETY: room for as many ranks as passed.
    let n = unsafe { lmhead_last_error_ranks(ranks.as_mut_ptr(), ranks.len()) };
    ranks[..n].to_vec()
}

pub struct RankBuffers {
    pub hidden: Vec<f32>,
    pub status: Vec<u8>,
    pub ids: Vec<i64>,
}

impl RankBuffers {
    pub fn new(rows: usize) -> Self {
        let hidden = (0..rows * HIDDEN).map(|i| (i % 5) as f32 - 2.0).collect();
        RankBuffers { hidden, status: vec![9; rows], ids: vec![77; rows] }
    }

    pub fn step(&self) -> lmhead_step {
        lmhead_step {
            request: LMHEAD_ARGMAX as i32,
            rows: self.status.len() as i64,
            hidden: tensor(&self.hidden, HIDDEN),
            ..init!(lmhead_step)
        }
    }

    fn answer(&mut self) -> lmhead_answer {
        lmhead_answer {
            row_status: self.status.as_mut_ptr(),
            ids: self.ids.as_mut_ptr(),
            ..init!(lmhead_answer)
        }
    }

    /// Whether nothing of the answer was written.
    fn is_untouched(&self) -> bool {
        self.status.iter().all(|s| *s == 9) && self.ids.iter().all(|id| *id == 77)
    }
}

pub fn run(head: *mut lmhead_head, step: &lmhead_step, rows: &mut RankBuffers) -> lmhead_status {
    let mut answer = rows.answer();
    // SAFETY: all pointers are valid, except what the test makes wrong.
    unsafe { lmhead_run(head, step, &raw mut answer) }
}

#[test]
fn steps_that_cannot_be_are_refused_and_the_head_stays_usable() {
    let head = head_alone();
    let mut rows = RankBuffers::new(3);
    let good_step = rows.step();
    type Change = fn(&mut lmhead_step);
    let table: &[(Change, u32, &str)] = &[
        (|s| s.size = 8, LMHEAD_ERROR_ARGUMENT, "step: wanted a lmhead_step of at least"),
        (|s| s.size = 1 << 20, LMHEAD_ERROR_ARGUMENT, "got size 1048576"),
        (|s| s.request = 0, LMHEAD_ERROR_ARGUMENT, "request: wanted LMHEAD_LOGITS to LMHEAD_SAMPLE, got 0"),
        (|s| s.mode = 7, LMHEAD_ERROR_ARGUMENT, "mode: wanted LMHEAD_ROWS_EXACT"),
        (|s| s.rows = -1, LMHEAD_ERROR_ARGUMENT, "rows: wanted a number of at least 0, got -1"),
        (|s| s.k = 3, LMHEAD_ERROR_ARGUMENT, "k: wanted 0 with argmax, got 3"),
        (
            |s| s.flags = 128,
            LMHEAD_ERROR_ARGUMENT,
            "flags: wanted LMHEAD_ADJUSTED, PROCESSED, WITH_LOGPROBS, DEVICE_MASKS, UNFILTERED, \
             DEVICE_FILTERS, ASYNCHRONOUS, got 0x80",
        ),
        (
            |s| (s.request, s.flags) = (LMHEAD_SAMPLE as i32, LMHEAD_UNFILTERED | LMHEAD_DEVICE_FILTERS),
            LMHEAD_ERROR_ARGUMENT,
            "flags: wanted one of LMHEAD_UNFILTERED and LMHEAD_DEVICE_FILTERS, got both",
        ),
        (
            |s| (s.request, s.flags) = (LMHEAD_SAMPLE as i32, LMHEAD_DEVICE_FILTERS),
            LMHEAD_ERROR_REQUEST,
            "filters of a step: wanted a step on a device that samples, got sample",
        ),
        (|s| s.flags = LMHEAD_PROCESSED, LMHEAD_ERROR_ARGUMENT, "no flags of logprobs with argmax"),
        (
            |s| s.hidden.dtype = 5,
            LMHEAD_ERROR_ARGUMENT,
            "hidden: wanted f32, f16, bf16, i8 or e4m3, got 0x5;",
        ),
        (
            |s| s.hidden.dtype = 0x14002,
            LMHEAD_ERROR_ARGUMENT,
            "hidden: wanted f32, f16, bf16, i8 or e4m3, got float64;",
        ),
        (|s| s.hidden.device_type = 4, LMHEAD_ERROR_ARGUMENT, "hidden: wanted LMHEAD_HOST, LMHEAD_CUDA"),
        (|s| s.hidden.data = ptr::null_mut(), LMHEAD_ERROR_ARGUMENT, "hidden: wanted [3, 8] f32, got NULL"),
        (|s| s.hidden.stride = 3, LMHEAD_ERROR_ARGUMENT, "hidden: wanted a stride of at least the 8 columns"),
        (|s| s.hidden.rows = i64::MAX, LMHEAD_ERROR_ARGUMENT, "hidden: wanted fewer bytes than 2^63"),
        (
            |s| s.stream = ptr::without_provenance_mut(8),
            LMHEAD_ERROR_ARGUMENT,
            "stream: wanted NULL with rows in host",
        ),
        (|s| s.targets = [1i64].as_ptr(), LMHEAD_ERROR_ARGUMENT, "targets: wanted NULL with this request"),
        (
            |s| s.device_inputs = LMHEAD_DEVICE_TARGETS,
            LMHEAD_ERROR_ARGUMENT,
            "device_inputs: wanted none where `hidden` is host memory, got 0x1",
        ),
        (
            |s| s.flags = LMHEAD_DEVICE_MASKS,
            LMHEAD_ERROR_ARGUMENT,
            "device_inputs: wanted none where `hidden` is host memory",
        ),
        (
            |s| s.device_inputs = 8,
            LMHEAD_ERROR_ARGUMENT,
            "device_inputs: wanted LMHEAD_DEVICE_TARGETS, SAMPLING and ADJUSTMENTS, got 0x8",
        ),
        (|s| s.max_counts = -1, LMHEAD_ERROR_ARGUMENT, "max_counts: wanted"),
        (|s| s.max_logit_bias = 1 << 32, LMHEAD_ERROR_ARGUMENT, "max_logit_bias: wanted fewer than 2^32"),
        (
            |s| s.rows = 4,
            LMHEAD_ERROR_SHAPE,
            "hidden: wanted at least the 4 rows that the step brings, got 3 rows",
        ),
        (|s| s.hidden.columns = 7, LMHEAD_ERROR_SHAPE, "hidden_states: wanted hidden size 8, got 7"),
        (|s| s.hidden.dtype = LMHEAD_BF16, LMHEAD_ERROR_DTYPE, "hidden_states: wanted f32, got bf16"),
        (
            |s| s.indices = [0i64, 1, 3].as_ptr().cast(),
            LMHEAD_ERROR_INDEX,
            "index 3 at position 2 is not a row",
        ),
        (|s| s.hidden.device_type = LMHEAD_CUDA as i32, LMHEAD_ERROR_UNSUPPORTED, "the cpu backend"),
        (
            |s| (s.request, s.k) = (LMHEAD_TOPK as i32, 71),
            LMHEAD_ERROR_REQUEST,
            "k from 1 to the vocabulary size, 70, got k = 71",
        ),
        (
            |s| s.request = LMHEAD_LOGPROBS as i32,
            LMHEAD_ERROR_ARGUMENT,
            "targets: wanted 3 elements, got NULL",
        ),
    ];
    for (change, status, words) in table {
        let mut step = good_step;
        change(&mut step);
        fails(run(head, &step, &mut rows), *status, words);
        assert!(rows.is_untouched(), "{words}");
        good(run(head, &good_step, &mut rows));
        rows = RankBuffers { hidden: rows.hidden.clone(), ..RankBuffers::new(3) };
    }
    let mut answer = lmhead_answer { ids: ptr::null_mut(), ..rows.answer() };
    // SAFETY: all pointers are valid, except what the test makes wrong.
    unsafe {
        let status = lmhead_run(head, &raw const good_step, &raw mut answer);
        fails(status, LMHEAD_ERROR_SHAPE, "ids: wanted 24 bytes, got 0 bytes");
        fails(
            lmhead_run(head, ptr::null(), &raw mut answer),
            LMHEAD_ERROR_ARGUMENT,
            "step: wanted a pointer, got NULL",
        );
        let status = lmhead_run(head, &raw const good_step, ptr::null_mut());
        fails(status, LMHEAD_ERROR_ARGUMENT, "answer: wanted a pointer, got NULL");
        lmhead_free(head);
    }
}

#[test]
fn handles_that_are_none_freed_or_of_another_kind_are_told() {
    let head = head_alone();
    let mut rows = RankBuffers::new(1);
    let step = rows.step();
    let backend = backend_of(LMHEAD_HOST, 2);
    fails(run(ptr::null_mut(), &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "head: wanted a handle, got NULL");
    let number = ptr::without_provenance_mut(0x1234);
    fails(run(number, &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "0x1234, which is none");
    fails(run((&raw const step).cast_mut().cast(), &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "which is none");
    fails(run(backend.cast(), &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "got a handle of kind backend");
    // SAFETY: freeing accepts any handle.
    unsafe {
        lmhead_free(backend.cast());
        lmhead_free(ptr::null_mut());
        good(run(head, &step, &mut rows));
        lmhead_free(head);
        fails(run(head, &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "got one that was freed");
        lmhead_free(head);
        lmhead_backend_free(backend);
    }
}

#[test]
fn a_failed_call_leaves_the_engines_memory_to_it() {
    static RELEASED: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn release(_: *mut c_void) {
        RELEASED.fetch_add(1, Ordering::Relaxed);
    }
    let own = lmhead_weights_config { release: Some(release), ..whole() };
    let mut weights = ptr::null_mut();
    let mut refuse = |config: lmhead_weights_config, status: u32, words: &str| {
        // SAFETY: all pointers are valid, except what the test makes wrong.
        fails(unsafe { lmhead_weights_wrap(&raw const config, &raw mut weights) }, status, words);
        assert_eq!(RELEASED.load(Ordering::Relaxed), 0, "{words}");
    };
    let strided = |stride| lmhead_tensor { stride, rows: 3, ..own.matrix };
    refuse(lmhead_weights_config { first: 1, ..own }, LMHEAD_ERROR_ARGUMENT, "70 rows from 1 on");
    refuse(
        lmhead_weights_config { n_scales: 3, ..own },
        LMHEAD_ERROR_ARGUMENT,
        "n_scales: wanted 70, 1 or 0, got 3",
    );
    refuse(lmhead_weights_config { matrix: strided(9), ..own }, LMHEAD_ERROR_ARGUMENT, "without a gap");
    let quantization = LMHEAD_QUANT_W8A8 as i32;
    refuse(lmhead_weights_config { quantization, ..own }, LMHEAD_ERROR_ARGUMENT, "none for float weights");
    let mut broken = WEIGHTS;
    broken[11] = f32::NAN;
    let matrix = tensor(&broken, HIDDEN);
    refuse(lmhead_weights_config { matrix, ..own }, LMHEAD_ERROR_SHAPE, "");
    let misaligned = lmhead_tensor { data: own.matrix.data.wrapping_byte_add(1), rows: 60, ..own.matrix };
    refuse(lmhead_weights_config { matrix: misaligned, ..own }, LMHEAD_ERROR_SHAPE, "a multiple of 4");
    // A matrix that is copied may have gaps between its rows.
    let copied = wrap(&lmhead_weights_config { matrix: strided(9), release: None, ..own });
    let weights = wrap(&own);
    // SAFETY: made above.
    unsafe {
        lmhead_weights_free(copied);
        assert_eq!(RELEASED.load(Ordering::Relaxed), 0);
        lmhead_weights_free(weights);
    }
    assert_eq!(RELEASED.load(Ordering::Relaxed), 1);
}

/// FP8 weights have scales and are multiplied as w8a16; float weights may have scales.
#[test]
fn fp8_weights_and_floats_with_scales() {
    let codes = vec![0x38u8; 70 * HIDDEN];
    let scales = vec![0.5f32; 70];
    let matrix =
        lmhead_tensor { data: codes.as_ptr().cast_mut().cast(), dtype: LMHEAD_E4M3, ..whole().matrix };
    let quantization = LMHEAD_QUANT_W8A16 as i32;
    let fp8 =
        lmhead_weights_config { matrix, quantization, scales: scales.as_ptr(), n_scales: 70, ..whole() };
    let scaled = lmhead_weights_config { scales: scales.as_ptr(), n_scales: 1, ..whole() };
    for (config, dtype, quantization, bytes) in [
        (&fp8, LMHEAD_E4M3, LMHEAD_QUANT_W8A16, 70 * HIDDEN + 4 * 70),
        (&scaled, LMHEAD_F32, LMHEAD_QUANT_NONE, 4 * 70 * HIDDEN + 4 * 70),
    ] {
        let weights = wrap(config);
        let mut info = init!(lmhead_weights_info);
        // SAFETY: made above.
        good(unsafe { lmhead_weights_about(weights, &raw mut info) });
        assert_eq!((info.dtype, info.quantization), (dtype, quantization as i32));
        assert_eq!(info.bytes, bytes as u64);
        // SAFETY: made above.
        unsafe { lmhead_weights_free(weights) };
    }
    let mut weights = ptr::null_mut();
    for (config, words) in [
        (
            lmhead_weights_config { quantization: LMHEAD_QUANT_W8A8 as i32, ..fp8 },
            "wanted w8a16 for e4m3 weights",
        ),
        (lmhead_weights_config { n_scales: 0, ..fp8 }, "shard scales: wanted 70, got 0"),
    ] {
        // SAFETY: all pointers are valid.
        let status = unsafe { lmhead_weights_wrap(&raw const config, &raw mut weights) };
        let kind = if config.n_scales == 0 { LMHEAD_ERROR_SHAPE } else { LMHEAD_ERROR_ARGUMENT };
        fails(status, kind, words);
    }
}

#[test]
fn structs_of_older_and_newer_headers() {
    let head = head_alone();
    let mut rows = RankBuffers::new(1);
    // A step of a newer header: more bytes than this library knows.
    let mut newer = [0u64; 32];
    let size = size_of_val(&newer);
    // SAFETY: there is room for it.
    unsafe { newer.as_mut_ptr().cast::<lmhead_step>().write(lmhead_step { size, ..rows.step() }) };
    let mut answer = rows.answer();
    // SAFETY: all pointers are valid.
    unsafe {
        good(lmhead_run(head, newer.as_ptr().cast(), &raw mut answer));
        newer[31] = 1;
        let status = lmhead_run(head, newer.as_ptr().cast(), &raw mut answer);
        fails(status, LMHEAD_ERROR_ARGUMENT, "a newer program sets what this library does not know");
        // The library writes no more of the caller's struct than the caller's size.
        let mut needs = [u64::MAX; 16];
        needs[0] = size_of::<lmhead_needs>() as u64;
        newer[31] = 0;
        good(lmhead_plan(head, newer.as_ptr().cast(), needs.as_mut_ptr().cast()));
        assert!(needs[3] == 1 && needs[5..].iter().all(|word| *word == u64::MAX), "{needs:?}");
        lmhead_free(head);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_by_number_and_an_abort_ends_the_wait() {
    let heads: Vec<usize> = heads_of_two(&[10, 20], 300).into_iter().map(|head| head as usize).collect();
    let began = Instant::now();
    let head: *mut lmhead_head = ptr::without_provenance_mut(heads[0]);
    let mut rows = RankBuffers::new(1);
    let counts = [1i64, 0];
    let step = lmhead_step { counts: counts.as_ptr(), ..rows.step() };
    fails(run(head, &step, &mut rows), LMHEAD_ERROR_TIMEOUT, "ranks [20] did not come within 300ms");
    assert_eq!(last_ranks(), [20]);
    assert!(rows.is_untouched() && began.elapsed() < Duration::from_millis(1300));
    fails(run(head, &step, &mut rows), LMHEAD_ERROR_POISONED, "did not come");
    // SAFETY: made above.
    fails(unsafe { lmhead_async_status(head) }, LMHEAD_ERROR_POISONED, "did not come");

    // SAFETY: made above.
    unsafe {
        std::thread::scope(|scope| {
            let rebuilt = scope.spawn(|| lmhead_rebuild(ptr::without_provenance_mut(heads[1])));
            good(lmhead_rebuild(head));
            assert_eq!(rebuilt.join().expect("no panic"), 0);
        });
        good(lmhead_async_status(head));
        let mut recorded = ptr::null_mut();
        good(lmhead_flight_recorder(head, &raw mut recorded));
        let text = CStr::from_ptr(recorded).to_str().expect("UTF-8").to_owned();
        lmhead_string_free(recorded);
        assert!(text.contains("\"outcome\":\"failed\"") && text.contains("\"rank\":20"), "{text}");
        // One thread waits in a step and another aborts it; a third cannot step the head meanwhile.
        std::thread::scope(|scope| {
            let waits = scope.spawn(move || {
                let head: *mut lmhead_head = ptr::without_provenance_mut(heads[0]);
                let mut rows = RankBuffers::new(1);
                let counts = [1i64, 0];
                let step = lmhead_step { counts: counts.as_ptr(), ..rows.step() };
                fails(run(head, &step, &mut rows), LMHEAD_ERROR_STEP_MISMATCH, "shutting down");
            });
            std::thread::sleep(Duration::from_millis(100));
            fails(run(head, &step, &mut rows), LMHEAD_ERROR_ARGUMENT, "a head that no other call uses");
            good(lmhead_abort(head, c"shutting down".as_ptr()));
            waits.join().expect("no panic");
        });
        lmhead_free(head);
    }
    assert!(!last_error().is_empty());
}

/// Heads of two ranks with those numbers, over an engine in this process, with that timeout.
pub fn heads_of_two(ranks: &[i64; 2], timeout_ms: u32) -> Vec<*mut lmhead_head> {
    let backend = backend_of(LMHEAD_HOST, 2) as usize;
    let members = engines(2, Functions::ALL, |_, _, _| None).into_iter().enumerate();
    let create = |(me, engine)| {
        move || {
            let endpoint = bridge::endpoint(Arc::new(engine), 2, me, false);
            let (mut first, mut count) = (0, 0);
            let mut head = ptr::null_mut();
            let config = lmhead_config { timeout_ms, create_timeout_ms: 20_000, ..config() };
            let group = lmhead_group { ranks: ranks.as_ptr(), n: 2, rank: ranks[me], tp: 1, tp_index: 0 };
            // SAFETY: all pointers are valid.
            unsafe {
                good(lmhead_shard_range(VOCAB as i64, 2, me as i64, &raw mut first, &raw mut count));
                let own = &WEIGHTS[first as usize * HIDDEN..][..count as usize * HIDDEN];
                let weights = wrap(&lmhead_weights_config { first, matrix: tensor(own, HIDDEN), ..whole() });
                let backend: *mut lmhead_backend = ptr::without_provenance_mut(backend);
                good(lmhead_create(
                    &raw const config,
                    &raw const group,
                    weights,
                    endpoint,
                    backend,
                    &raw mut head,
                ));
                // Handles may be freed in any order: the head keeps what it needs.
                lmhead_exchange_free(endpoint);
                lmhead_weights_free(weights);
            }
            head as usize
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = members.map(create).map(|create| scope.spawn(create)).collect();
        let heads = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        heads.map(ptr::without_provenance_mut).collect()
    })
}

#[test]
fn tables_without_what_is_required_and_groups_that_do_not_fit() {
    let mut endpoint = ptr::null_mut();
    let table = lmhead_transport { all_to_all: None, ..bridge::table(2, 0, true) };
    // SAFETY: all pointers are valid, except what the test makes wrong.
    unsafe {
        let status = lmhead_exchange_callbacks(&raw const table, ptr::null_mut(), &raw mut endpoint);
        fails(status, LMHEAD_ERROR_ARGUMENT, "transport.all_to_all: wanted a function, got NULL");
        let table = bridge::table(2, 2, true);
        let status = lmhead_exchange_callbacks(&raw const table, ptr::null_mut(), &raw mut endpoint);
        fails(status, LMHEAD_ERROR_CONFIG, "member of an exchange: wanted one of 0..2, got 2");
        for n in [1 << 40, usize::MAX >> 1] {
            let table = bridge::table(n, 0, true);
            let status = lmhead_exchange_callbacks(&raw const table, ptr::null_mut(), &raw mut endpoint);
            fails(status, LMHEAD_ERROR_CONFIG, "members of an exchange: wanted at most 1048576, got ");
        }
        assert!(endpoint.is_null());

        let (mut n, mut ranks) = (1, [0i64; 8]);
        let status = lmhead_group_ranks(4, 2, 1, 0, 5, 4, ranks.as_mut_ptr(), &raw mut n);
        fails(status, LMHEAD_ERROR_ARGUMENT, "n: wanted room for the 4 ranks of the group, got 1");
        n = 8;
        let status = lmhead_group_ranks(4, 2, 1, 0, 5, 3, ranks.as_mut_ptr(), &raw mut n);
        fails(status, LMHEAD_ERROR_CONFIG, "lmhead_tp_size: wanted 1, or a multiple of tp = 2");
        good(lmhead_group_ranks(4, 2, 1, 0, 5, 4, ranks.as_mut_ptr(), &raw mut n));
        assert_eq!(ranks[..n as usize], [4, 5, 6, 7]);

        let backend =
            lmhead_backend_config { device_type: LMHEAD_CUDA as i32, ..init!(lmhead_backend_config) };
        let mut opened = ptr::null_mut();
        let status = lmhead_backend_open(&raw const backend, &raw mut opened);
        assert!(status != 0 && !last_error().is_empty(), "there is no GPU here, or no such build");
    }
}

#[test]
fn constants_are_the_packages() {
    // SAFETY: static strings.
    let version = unsafe { CStr::from_ptr(lmhead_version()) }.to_str().expect("UTF-8");
    let header = [LMHEAD_VERSION_MAJOR, LMHEAD_VERSION_MINOR, LMHEAD_VERSION_PATCH].map(|n| n.to_string());
    assert_eq!(version, header.join("."));
    // SAFETY: as above.
    let name = |status: i32| unsafe { CStr::from_ptr(lmhead_status_name(status)) }.to_str().expect("UTF-8");
    assert_eq!((name(0), name(9), name(16), name(17), name(-1)), ("OK", "TIMEOUT", "INTERNAL", "?", "?"));
}
