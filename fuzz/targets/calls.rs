//! Bytes as calls of the C interface, in any order, by one to three members that are threads: whatever they
//! are, each ends in a status and in time, writes within the caller's memory and only on success, and
//! everything that was lent is given back.
//!
//! Input: `[members] [of each member's table of callbacks] [calls]`. All members make the calls, but for
//! those that a call's first byte lets them skip. Pointers are what the header says: C cannot be held to
//! more. Handles may be anything.
#![no_main]

mod hub;
mod rig;

use hub::Hub;
use libfuzzer_sys::fuzz_target;
use lmhead_capi::sys::*;
use rig::{Guarded, Input, init, known, tensor, zeroed};
use std::ffi::{CStr, c_void};
use std::fs;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

const VOCAB: usize = 70;
const HIDDEN: usize = 4;
/// The most rows of a member, and the most that is asked for a row.
const ROWS: i64 = 5;
/// Milliseconds.
const TIMEOUT: u32 = 60;
const CREATE_TIMEOUT: u32 = 150;
/// Handles are never used again: past these, nothing more can be tried in this process.
const MOST_HANDLES: usize = 1_000_000;

static WEIGHTS: LazyLock<Vec<f32>> =
    LazyLock::new(|| (0..VOCAB * HIDDEN).map(|i| ((i * 7919) % 15) as f32 - 7.0).collect());
/// A folder of a small model: its path and that of its file, both ending in a zero.
static MODEL: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let bytes: Vec<u8> = WEIGHTS.iter().flat_map(|value| value.to_le_bytes()).collect();
    let header = format!(
        r#"{{"lm_head.weight":{{"dtype":"F32","shape":[{VOCAB},{HIDDEN}],"data_offsets":[0,{}]}}}}"#,
        bytes.len()
    );
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat();
    let path = folder.join("model.safetensors");
    fs::write(&path, file).expect("a file");
    let config = format!(r#"{{"model_type":"llama","vocab_size":{VOCAB},"hidden_size":{HIDDEN}}}"#);
    fs::write(folder.join("config.json"), config).expect("a file");
    [&folder, &path].map(|path| format!("{}\0", path.display()).into_bytes())
});
/// Matrices that the library has not released.
static LENT: AtomicUsize = AtomicUsize::new(0);
/// The largest handle seen.
static NEWEST: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn release(_: *mut c_void) {
    LENT.fetch_sub(1, Ordering::SeqCst);
}

/// Handles of a kind that a member has made, freed ones too.
struct Made<T>(Vec<*mut T>);

impl<T> Made<T> {
    /// Mostly the newest; else any of them, none, one of another kind, or what is no handle.
    fn pick(&self, input: &mut Input<'_>, other: usize) -> *mut T {
        match input.byte() {
            0..=199 => self.0.last().copied().unwrap_or(ptr::null_mut()),
            byte @ 200..=229 if !self.0.is_empty() => self.0[usize::from(byte) % self.0.len()],
            230..=239 => ptr::without_provenance_mut(other),
            240..=247 => ptr::null_mut(),
            _ => ptr::without_provenance_mut(u64::from_le_bytes(input.bytes()) as usize),
        }
    }

    fn newest(&self) -> usize {
        self.0.last().map_or(0, |handle| handle.addr())
    }

    /// Keeps what a call has made; a call that failed must not have written the handle.
    fn keep(&mut self, status: lmhead_status, place: *mut *mut T) -> bool {
        // SAFETY: a place in guarded memory.
        let handle = unsafe { place.read() };
        if known(status) != 0 {
            assert!(
                handle.addr().to_ne_bytes().iter().all(|byte| *byte == rig::FILL),
                "written without success"
            );
            return false;
        }
        NEWEST.fetch_max(handle.addr() & 0xffff_ffff, Ordering::Relaxed);
        self.0.push(handle);
        true
    }
}

struct Member<'a> {
    hub: &'a Arc<Hub>,
    n: usize,
    me: usize,
    backends: Made<lmhead_backend>,
    weights: Made<lmhead_weights>,
    endpoints: Made<lmhead_exchange>,
    heads: Made<lmhead_head>,
    memory: Guarded,
}

impl Member<'_> {
    /// A place for a handle.
    fn place<T>(&self) -> *mut *mut T {
        self.memory.take(size_of::<usize>() as i128, align_of::<usize>()).cast()
    }

    /// A struct as the library gets it: now and then of another size, whose bytes are there.
    ///
    /// # Safety
    /// A struct of the header that begins with its size.
    unsafe fn given<T: Copy>(&self, input: &mut Input<'_>, value: T) -> *mut T {
        let whole = size_of::<T>();
        let size = match input.byte() {
            0..=229 => return self.memory.put(value),
            byte @ 230..=239 => usize::from(byte - 230) * 16,
            byte => whole + usize::from(byte - 240) * 8,
        };
        let place = self.memory.take(size.max(8) as i128, 8);
        // SAFETY: room for as many bytes.
        unsafe {
            place.write_bytes(0, size.max(8));
            place.copy_from_nonoverlapping((&raw const value).cast(), size.min(whole));
            place.cast::<usize>().write(size);
            if size > whole && input.chance(40) {
                place.add(size - 1).write(1);
            }
        }
        place.cast()
    }

    /// `n` elements of which the library reads or writes; null where there are none.
    fn array<T: Copy>(&self, n: i64, each: impl Fn(usize) -> T) -> *mut T {
        let place = self.memory.take(i128::from(n) * size_of::<T>() as i128, align_of::<T>()).cast::<T>();
        for i in 0..if place.is_null() { 0 } else { n as usize } {
            // SAFETY: room for as many.
            unsafe { place.add(i).write(each(i)) };
        }
        if n > 0 { place } else { ptr::null_mut() }
    }

    fn open_backend(&mut self, input: &mut Input<'_>, plain: bool) {
        let mut config = lmhead_backend_config { threads: 1, ..init!(lmhead_backend_config) };
        if !plain {
            (config.device_type, config.device_id) = (input.word() as i32, input.word() as i32);
            config.threads = [1, 2, 3, -1, i32::MIN, 1, 1, i32::MAX][usize::from(input.byte() % 8)];
        }
        let place = self.place();
        // SAFETY: all are there; so below.
        let status = unsafe { lmhead_backend_open(self.given(input, config), place) };
        self.backends.keep(status, place);
    }

    fn wrap(&mut self, input: &mut Input<'_>, plain: bool) {
        let (mut first, mut count) = (0, 0);
        // SAFETY: as above.
        known(unsafe {
            lmhead_shard_range(VOCAB as i64, self.n as i64, self.me as i64, &raw mut first, &raw mut count)
        });
        let own = &WEIGHTS[first as usize * HIDDEN..][..count as usize * HIDDEN];
        let mut config = lmhead_weights_config {
            vocab_size: VOCAB as i64,
            first,
            matrix: tensor(own.as_ptr(), count as usize, HIDDEN),
            release: input.chance(128).then_some(release as _),
            ..init!(lmhead_weights_config)
        };
        if !plain {
            // Fields that do not fit, but rows that are there.
            match input.byte() % 10 {
                0 => config.first = input.number(),
                1 => config.vocab_size = input.number(),
                2 => config.matrix.rows = input.number().min(count),
                3 => config.matrix.columns = input.number().min(HIDDEN as i64),
                4 => config.matrix.stride = input.number().clamp(-1, HIDDEN as i64),
                5 => config.quantization = input.word() as i32,
                6 => (config.matrix.dtype, config.quantization) = (input.dtype(), (input.byte() % 5).into()),
                7 => config.matrix.device_type = [0, 2, 3, 4][usize::from(input.byte() % 4)],
                8 => config.version = input.number() as u64,
                _ => config.matrix.data = ptr::null_mut(),
            }
            if config.matrix.device_type == LMHEAD_CUDA as i32 {
                config.matrix.data = ptr::null_mut();
            }
            config.n_scales = [0, 1, config.matrix.rows, -1][usize::from(input.byte() % 4)];
            config.scales = self.array(config.n_scales, |i| i as f32 + 0.5);
            if input.chance(60) {
                config.bias = self.array(config.matrix.rows, |i| i as f32);
            }
        }
        let place = self.place();
        // SAFETY: as above.
        let config = unsafe { self.given(input, config) };
        // A struct that ends before `release` lends nothing.
        let end_of_release = offset_of!(lmhead_weights_config, release) + size_of::<usize>();
        // SAFETY: a struct begins with its size, and this one has as many bytes.
        let lends = unsafe { config.cast::<usize>().read() >= end_of_release && (*config).release.is_some() };
        LENT.fetch_add(usize::from(lends), Ordering::SeqCst);
        // SAFETY: as above.
        let status = unsafe { lmhead_weights_wrap(config, place) };
        if !self.weights.keep(status, place) {
            LENT.fetch_sub(usize::from(lends), Ordering::SeqCst);
        }
    }

    fn load(&mut self, input: &mut Input<'_>) {
        let file = input.chance(100);
        let tensor = [c"lm_head.weight", c"nothing", c""][usize::from(input.byte() % 3)];
        let load = lmhead_load {
            tensor: if file { tensor.as_ptr() } else { ptr::null() },
            vocab_size: [0, VOCAB as i64, input.number()][usize::from(input.byte() % 3)],
            members: [0, self.n as i64, input.number()][usize::from(input.byte() % 3)],
            member: [self.me as i64, input.number()][usize::from(input.byte() % 2)],
            quantization: (input.byte() % 5).into(),
            without_bias: input.word() as i32,
            version: input.byte().into(),
            copy: (input.byte() % 2).into(),
            ..init!(lmhead_load)
        };
        let path = if input.chance(240) { MODEL[usize::from(file)].as_ptr().cast() } else { ptr::null() };
        let place = self.place();
        // SAFETY: as above.
        let status = unsafe { lmhead_weights_load(path, self.given(input, load), place) };
        self.weights.keep(status, place);
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        let n = if input.chance(40) { input.number() } else { self.n as i64 };
        let (mut table, user) = hub::table(self.hub, n, self.me, input);
        match input.byte() {
            250.. => table.all_to_all = None,
            230..=239 => table.me = input.number(),
            220..=229 => table.device = self.backends.pick(input, self.heads.newest()),
            210..=219 => table.control = self.endpoints.pick(input, self.heads.newest()),
            _ => {}
        }
        let place = self.place();
        // SAFETY: as above.
        let status = unsafe { lmhead_exchange_callbacks(&raw const table, user, place) };
        if !self.endpoints.keep(status, place) {
            hub::keep_own(user);
        }
    }

    fn create(&mut self, input: &mut Input<'_>, plain: bool) {
        let mut config = lmhead_config {
            vocab_size: VOCAB as i64,
            hidden_size: HIDDEN as i64,
            timeout_ms: TIMEOUT,
            create_timeout_ms: CREATE_TIMEOUT,
            ..init!(lmhead_config)
        };
        let ranks = self.array(self.n as i64, |i| 10 * i as i64);
        let tp = if self.n == 2 && input.chance(60) { 2 } else { 1 };
        let (n, rank, tp_index) = (self.n as i64, 10 * self.me as i64, 0);
        let mut group = lmhead_group { ranks, n, rank, tp, tp_index };
        let (mut alone, mut exchange) =
            (self.n == 1, self.endpoints.0.last().copied().unwrap_or(ptr::null_mut()));
        if !plain {
            match input.byte() % 12 {
                0 => config.vocab_size = input.number(),
                1 => config.hidden_size = input.number(),
                2 => config.hidden_dtype = input.dtype(),
                3 => config.logit_scale = f32::from_bits(u32::from_le_bytes(input.bytes())),
                4 => config.softcap = f32::from_bits(u32::from_le_bytes(input.bytes())),
                5 => (config.verify, config.verify_every) = (input.word() as i32, input.word()),
                6 => config.name = [input.byte() as _; 32],
                7 => config.split_rows_over_tp = 1,
                8 => config.logprobs_chunk_bytes = input.number() as u64,
                9 => group.rank = input.number(),
                10 => (group.tp, group.tp_index) = (input.number(), input.number()),
                _ => group.n = input.number().min(self.n as i64),
            }
            alone |= input.chance(60);
            exchange = self.endpoints.pick(input, self.backends.newest());
        }
        let weights = if plain { self.weights.0[0] } else { self.weights.pick(input, self.heads.newest()) };
        let backend =
            if plain { self.backends.0[0] } else { self.backends.pick(input, self.weights.newest()) };
        let place = self.place();
        let (group, exchange) =
            if alone { (ptr::null_mut(), ptr::null_mut()) } else { (self.memory.put(group), exchange) };
        // SAFETY: as above.
        let status =
            unsafe { lmhead_create(self.given(input, config), group, weights, exchange, backend, place) };
        if self.heads.keep(status, place) {
            let mut all = self.hub.heads.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(self.heads.newest());
        } else {
            assert!(!(plain && self.n == 1), "a plain head of its own is made");
        }
    }

    /// A step, mostly a good one, and the arrays that it speaks of.
    fn step(&self, input: &mut Input<'_>) -> lmhead_step {
        let counts: [i64; 4] = input.bytes::<4>().map(|byte| i64::from(byte) % (ROWS + 1));
        let mut step = lmhead_step {
            mode: (input.byte() % 3).into(),
            request: 1 + i32::from(input.byte() % 5),
            rows: counts[self.me],
            counts: self.array(4, |i| counts[i]),
            capacity: ROWS,
            logits_dtype: [LMHEAD_F32, LMHEAD_F16, LMHEAD_BF16][usize::from(input.byte() % 3)],
            ..init!(lmhead_step)
        };
        match step.request as u32 {
            LMHEAD_TOPK => step.k = 1 + i64::from(input.byte()) % VOCAB as i64,
            LMHEAD_LOGPROBS => {
                (step.k, step.n_targets) = ((input.byte() % 4).into(), (input.byte() % 4).into());
                step.flags = if input.chance(100) { LMHEAD_PROCESSED } else { 0 };
            }
            LMHEAD_SAMPLE if input.chance(128) => {
                (step.k, step.flags) = ((input.byte() % 4).into(), LMHEAD_WITH_LOGPROBS);
            }
            _ => {}
        }
        if input.chance(20) {
            match input.byte() % 8 {
                0 => step.mode = input.word() as i32,
                1 => step.request = input.word() as i32,
                2 => step.rows = input.number().min(ROWS),
                3 => step.capacity = input.number(),
                4 => step.k = input.number().min(VOCAB as i64 + 2),
                5 => step.n_targets = input.number().min(4),
                6 => step.flags = input.word(),
                _ => step.logits_dtype = input.dtype(),
            }
        }
        let rows = step.rows.max(0);
        let salt = f32::from(input.byte() % 16);
        let hidden = self.array(rows * HIDDEN as i64, |i| ((i * 31) % 9) as f32 - salt);
        step.hidden = tensor(hidden, rows as usize, HIDDEN);
        if input.chance(60) {
            let odd = i64::from(input.byte() > 250);
            if input.chance(128) {
                step.indices = self.array(rows, |i| rows - 1 - i as i64 + odd).cast();
            } else {
                step.indices = self.array(rows, |i| (rows - 1 - i as i64 - odd) as i32).cast();
                step.index_dtype = LMHEAD_I32;
            }
        }
        if step.request as u32 == LMHEAD_LOGPROBS {
            let odd = i64::from(input.byte());
            step.targets = self.array(rows * step.n_targets.max(1), |i| {
                [i as i64, odd - 100, VOCAB as i64 - 1 - i as i64][i % 3]
            });
        }
        let seed = u64::from_le_bytes(input.bytes()) >> 1;
        if step.request as u32 == LMHEAD_SAMPLE && input.chance(200) {
            let mut sampling: lmhead_sampling = zeroed();
            let has = input.byte();
            let when = |bit: u8, n: i64| if has & bit == 0 { 0 } else { n };
            sampling.seed = self.array(when(1, rows), |i| seed + i as u64);
            sampling.position = self.array(when(2, rows), |i| i as i64 * 1000);
            sampling.temperature =
                self.array(when(4, rows), |i| [0.0, 1.0, 0.3, 7.0][(i + seed as usize) % 4]);
            sampling.top_k = self.array(when(8, rows), |i| [0, 1, 5, 90][(i + seed as usize) % 4]);
            sampling.top_p = self.array(when(16, rows), |i| [1.0, 0.5, 0.01, 0.999][(i + seed as usize) % 4]);
            sampling.min_p = self.array(when(32, rows), |i| [0.0, 0.1, 1.0, 1e-6][(i + seed as usize) % 4]);
            step.sampling = self.memory.put(sampling);
            // SAFETY: all are there.
            known(unsafe { lmhead_sampling_check(step.sampling, rows) });
        }
        if input.chance(100) {
            let mut changes: lmhead_adjustments = zeroed();
            let has = input.byte();
            let when = |bit: u8, n: i64| if has & bit == 0 { 0 } else { n };
            changes.allowed =
                self.array(when(1, rows * VOCAB.div_ceil(32) as i64), |i| (seed >> (i % 32)) as i32);
            if has & 2 != 0 {
                changes.logit_bias_offsets = self.array(rows + 1, |i| 2 * i as i64);
                changes.logit_bias_ids = self.array(2 * rows, |i| (i as i64 * 13) % (VOCAB as i64 + 1));
                changes.logit_bias_values = self.array(2 * rows, |i| [1.5, -3.0, f32::NEG_INFINITY][i % 3]);
            }
            changes.repetition = self.array(when(4, rows), |i| 1.0 + i as f32);
            changes.presence = self.array(when(8, rows), |i| i as f32);
            if has & 16 != 0 {
                changes.count_offsets = self.array(rows + 1, |i| i as i64);
                changes.count_ids = self.array(rows, |i| (i as i64 * 17) % VOCAB as i64);
                changes.counts = self.array(rows, |i| i as i32);
                changes.in_prompt = self.array(rows, |i| (i % 2) as u8);
            }
            step.flags |= LMHEAD_ADJUSTED;
            step.adjustments = self.memory.put(changes);
        }
        step
    }

    /// A step's plan, and the step.
    fn run(&self, input: &mut Input<'_>) {
        let head = self.heads.pick(input, self.weights.newest());
        let asked = self.step(input);
        // SAFETY: as above. A shorter struct asks for less.
        let step = unsafe { self.given(input, asked) };
        let (rows, k, targets) = (asked.rows.max(0), asked.k.max(0), asked.n_targets.max(1));
        let untouched = self.memory.taken();
        let out = |n: i64, size: i64| self.memory.take(i128::from(n * size), size as usize);
        let bytes = match asked.logits_dtype {
            LMHEAD_F32 => 4,
            _ => 2,
        };
        let best = rows * k.max(1);
        let mut answer = lmhead_answer {
            row_status: out(rows, 1),
            ids: out(best, 8).cast(),
            values: out(best, 4).cast(),
            logsumexp: out(rows, 4).cast(),
            logprobs: out(rows * targets, 4).cast(),
            ranks: out(rows * targets, 8).cast(),
            top_ids: out(best, 8).cast(),
            top_logprobs: out(best, 4).cast(),
            ..init!(lmhead_answer)
        };
        let logits = out(rows * VOCAB as i64, bytes);
        answer.logits = tensor(logits.cast(), rows as usize, VOCAB);
        answer.logits.dtype = asked.logits_dtype;
        let written = self.memory.taken();
        // SAFETY: as above.
        unsafe {
            let needs = self.given(input, init!(lmhead_needs));
            known(lmhead_plan(head, step, needs));
            let stats = self.given(input, init!(lmhead_stats));
            answer.stats = if input.chance(128) { stats } else { ptr::null_mut() };
            let answer = self.given(input, answer);
            let began = Instant::now();
            let status = known(lmhead_run(head, step, answer));
            // Some seconds more, because this machine may be busy.
            assert!(
                began.elapsed() < Duration::from_millis(u64::from(TIMEOUT) + 5000),
                "a step ends by its deadline"
            );
            if status != 0 {
                assert!(self.memory.is_untouched(untouched, written), "written without success: {status}");
            }
        }
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let call = input.byte() % 32;
        // SAFETY: all are there, but handles that are none.
        unsafe {
            match call {
                0 => self.open_backend(input, false),
                1 => self.wrap(input, false),
                2 => self.load(input),
                3 => self.connect(input),
                4 => {
                    let n = [1, 2, 3, 0, -1, i64::MAX, 5000, i64::MIN][usize::from(input.byte() % 8)];
                    let places =
                        self.array(n.clamp(0, 3), |_| ptr::without_provenance_mut::<lmhead_exchange>(0));
                    let status = known(lmhead_exchange_local(n, places));
                    for i in 0..if status == 0 { n as usize } else { 0 } {
                        self.endpoints.0.push(places.add(i).read());
                    }
                }
                5 => {
                    let device = self.backends.pick(input, self.heads.newest());
                    let (control, place) = (self.endpoints.pick(input, self.heads.newest()), self.place());
                    let status = lmhead_exchange_nccl(device, ptr::null_mut(), control, place);
                    self.endpoints.keep(status, place);
                }
                6 => self.create(input, false),
                7 | 8 => {
                    let head = self.heads.pick(input, self.weights.newest());
                    let steps: Vec<lmhead_step> = (0..=input.byte() % 2).map(|_| self.step(input)).collect();
                    let all = self.array(steps.len() as i64, |i| steps[i]);
                    known(lmhead_prepare(head, all, steps.len()));
                }
                9 => {
                    let all = self.hub.heads.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let head = all.get(usize::from(input.byte() % 4)).copied().unwrap_or(0);
                    let reason = if input.chance(200) { c"\xff enough".as_ptr() } else { c"enough".as_ptr() };
                    known(lmhead_abort(ptr::without_provenance_mut(head), reason));
                }
                10 => {
                    // The head of any member, which may be in a step.
                    let all = self.hub.heads.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let head = all.get(usize::from(input.byte() % 4)).copied().unwrap_or(0);
                    let (head, place) = (ptr::without_provenance_mut(head), self.place());
                    known(lmhead_async_status(head));
                    if known(lmhead_flight_recorder(head, place)) == 0 {
                        lmhead_string_free(place.read());
                    }
                    if input.chance(60) {
                        lmhead_free(head);
                    }
                }
                11 => {
                    let head = self.heads.pick(input, self.weights.newest());
                    known(lmhead_set_weights_version(head, input.byte().into()));
                }
                12 => {
                    known(lmhead_release_memory(self.heads.pick(input, self.weights.newest())));
                }
                13 => {
                    known(lmhead_rebuild(self.heads.pick(input, self.weights.newest())));
                }
                14 => lmhead_free(self.heads.pick(input, self.weights.newest())),
                15 => lmhead_weights_free(self.weights.pick(input, self.heads.newest())),
                16 => lmhead_backend_free(self.backends.pick(input, self.heads.newest())),
                17 => lmhead_exchange_free(self.endpoints.pick(input, self.heads.newest())),
                18 => {
                    let room = input.number().clamp(-1, 200);
                    let (ranks, n) = (self.array(room, |_| 0i64), self.memory.put(room));
                    let numbers: [i64; 6] = std::array::from_fn(|_| input.number());
                    let [dp, tp, pp, order, rank, size] = numbers;
                    known(lmhead_group_ranks(dp, tp, pp, order as i32, rank, size, ranks, n));
                }
                19 => {
                    let (first, count) = (self.memory.put(0i64), self.memory.put(0i64));
                    known(lmhead_shard_range(input.number(), input.number(), input.number(), first, count));
                }
                20 => {
                    let settings = [
                        c"{}",
                        c"{\"softcap\": 3}",
                        c"{\"lmhead_tp_size\": 2}",
                        c"{\"timeout_ms\": -1}",
                        c"nonsense",
                        c"{\"name\": \"\\u0000\"}",
                    ][usize::from(input.byte() % 6)];
                    let config = self.given(input, init!(lmhead_config));
                    known(lmhead_config_from_model(MODEL[0].as_ptr().cast(), settings.as_ptr(), config));
                }
                21 => {
                    let info = self.given(input, init!(lmhead_weights_info));
                    known(lmhead_weights_about(self.weights.pick(input, self.heads.newest()), info));
                }
                22 => {
                    let capacity = i64::from(input.byte() % 4);
                    let ranks = self.array(capacity, |_| 0i64);
                    lmhead_last_error_ranks(ranks, capacity as usize);
                    let names =
                        [lmhead_status_name(input.word() as i32), lmhead_operation_name(input.word() as i32)];
                    assert!(names.map(|name| CStr::from_ptr(name).count_bytes()).iter().all(|n| *n > 0));
                }
                _ => self.run(input),
            }
        }
    }

    fn free_all(&self) {
        // SAFETY: freeing takes any handle.
        unsafe {
            self.weights.0.iter().for_each(|handle| lmhead_weights_free(*handle));
            self.backends.0.iter().for_each(|handle| lmhead_backend_free(*handle));
            self.heads.0.iter().for_each(|handle| lmhead_free(*handle));
            self.endpoints.0.iter().for_each(|handle| lmhead_exchange_free(*handle));
        }
    }
}

/// One member's calls.
fn member(hub: &Arc<Hub>, n: usize, me: usize, data: &[u8]) {
    let mut input = Input(data);
    let mut member = Member {
        hub,
        n,
        me,
        backends: Made(vec![]),
        weights: Made(vec![]),
        endpoints: Made(vec![]),
        heads: Made(vec![]),
        memory: Guarded::new(64, 8192),
    };
    member.open_backend(&mut Input(&[]), true);
    member.wrap(&mut Input(&[]), true);
    for of in 0..n {
        // Each member has its own bytes for its table.
        let mut own = Input(&input.bytes::<14>()[..]);
        if of == me && n > 1 {
            let (table, user) = hub::table(hub, n as i64, me, &mut own);
            let place = member.place();
            // SAFETY: all are there.
            let status = unsafe { lmhead_exchange_callbacks(&raw const table, user, place) };
            assert!(member.endpoints.keep(status, place), "a good table is taken");
        }
    }
    member.create(&mut Input(&[]), true);
    member.memory.check();
    for _ in 0..24 {
        if input.0.is_empty() || NEWEST.load(Ordering::Relaxed) > MOST_HANDLES {
            break;
        }
        let who = input.byte();
        let before = input.0;
        let skips = who < 40 && who >> me & 1 == 1;
        if !skips {
            member.call(&mut input);
            member.memory.check();
        }
        // A call has as many bytes for all members, whatever each has read of them.
        input = Input(before.get(64..).unwrap_or(&[]));
    }
    member.free_all();
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    if NEWEST.load(Ordering::Relaxed) > MOST_HANDLES {
        return;
    }
    let n = [1, 1, 1, 2, 2, 3][usize::from(input.byte() % 6)];
    let hub = Arc::new(Hub::default());
    match n {
        1 => member(&hub, 1, 0, input.0),
        _ => std::thread::scope(|scope| {
            for me in 0..n {
                let (hub, data) = (&hub, input.0);
                scope.spawn(move || member(hub, n, me, data));
            }
        }),
    }
    assert_eq!(LENT.load(Ordering::SeqCst), 0, "matrices that were not released");
    assert_eq!(hub::HELD.load(Ordering::SeqCst), 0, "tables that were not released");
});
