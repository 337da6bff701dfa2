//! After `lmhead_prepare` the calls of a step through C (`lmhead_plan`, `lmhead_run`, `lmhead_async_status`)
//! allocate nothing on any thread, for every request, in every mode, with and without adjustments.
//!
//! ```text
//! cargo test --package lmhead-capi --test allocations
//! LMHEAD_ALLOCATION_BACKTRACES=3 ...             # and where the first unwanted calls came from
//! ```
#![allow(unsafe_code, reason = "functions of the C interface")]

#[path = "capi/rig.rs"]
mod rig;

use lmhead_capi::sys::*;
use lmhead_testkit::Random;
use lmhead_testkit::allocations::{Case, CountingAllocator, counted, run_cases, steady, steady_ranks};
use rig::{backend_of, fails, good, init, last_error};
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const VOCAB: usize = 700;
const HIDDEN: usize = 24;
/// Most rows of a replica.
const ROWS: usize = 5;
/// Most best ids of a row.
const K: usize = 4;
const TARGETS: usize = 3;

/// Request, `k`, `n_targets`, dtype of the logits, flags.
type Asked = (u32, usize, usize, u32, u32);

/// Every kind of request, with all that it can ask for.
const REQUESTS: [Asked; 10] = [
    (LMHEAD_LOGITS, 0, 0, LMHEAD_F32, 0),
    (LMHEAD_LOGITS, 0, 0, LMHEAD_BF16, 0),
    (LMHEAD_ARGMAX, 0, 0, 0, 0),
    (LMHEAD_TOPK, K, 0, 0, 0),
    (LMHEAD_TOPK, VOCAB, 0, 0, 0),
    (LMHEAD_LOGPROBS, K, TARGETS, 0, LMHEAD_PROCESSED),
    (LMHEAD_LOGPROBS, 0, 1, 0, 0),
    (LMHEAD_SAMPLE, 0, 0, 0, 0),
    (LMHEAD_SAMPLE, K, 0, 0, LMHEAD_WITH_LOGPROBS),
    (LMHEAD_SAMPLE, K, 0, 0, LMHEAD_WITH_LOGPROBS | LMHEAD_PROCESSED),
];

/// The cases run one after the other on the program's main thread.
const CASES: [Case; 5] = [
    ("what is refused through C is counted", what_is_refused_is_counted),
    ("a head alone answers every request", || heads_answer(1, 1, &threads)),
    ("the heads of a data-parallel group answer every request", || heads_answer(3, 1, &threads)),
    ("the heads of a tensor-parallel group answer every request", || heads_answer(2, 2, &threads)),
    ("the heads of a group over callbacks answer every request", || heads_answer(2, 2, &callbacks)),
];

fn main() {
    run_cases(&CASES);
}

/// An error message is allocated memory: that it is counted shows that calls through C are.
fn what_is_refused_is_counted() {
    let head = Ranks::new(1, &threads, 1).head(0);
    let ((), all, mine) = counted(|| {
        // SAFETY: NULL is refused.
        let status = unsafe { lmhead_run(head, ptr::null(), ptr::null_mut()) };
        assert_eq!(status, LMHEAD_ERROR_ARGUMENT as i32);
    });
    fails(LMHEAD_ERROR_ARGUMENT as i32, LMHEAD_ERROR_ARGUMENT, "step: wanted a pointer, got NULL");
    assert!(all.allocations > 0 && all == mine, "{all}, of them here {mine}: {}", last_error());
    // SAFETY: made above.
    unsafe { lmhead_free(head) };
}

fn tensor<T>(values: &[T], dtype: u32, columns: usize) -> lmhead_tensor {
    lmhead_tensor {
        data: values.as_ptr().cast_mut().cast::<c_void>(),
        device_type: LMHEAD_HOST as i32,
        device_id: 0,
        dtype,
        reserved: 0,
        rows: (values.len() / columns) as i64,
        columns: columns as i64,
        stride: 0,
    }
}

/// Makes the endpoints of a group and returns their handles.
type Connect = dyn Fn(usize) -> Vec<usize>;

/// The ranks of a group as threads of this process.
fn threads(n: usize) -> Vec<usize> {
    let mut endpoints = vec![ptr::null_mut::<lmhead_exchange>(); n];
    // SAFETY: there is room for that many.
    good(unsafe { lmhead_exchange_local(n as i64, endpoints.as_mut_ptr()) });
    endpoints.into_iter().map(|endpoint| endpoint.addr()).collect()
}

const MOST: usize = 4;

/// An engine's transport that allocates nothing: members copy from each other's pieces between two barriers.
struct Meeting {
    arrived: AtomicU64,
    /// Addresses and lengths of what each member sends.
    sent: Mutex<[[(usize, usize); MOST]; MOST]>,
}

struct Port {
    meeting: Arc<Meeting>,
    n: usize,
    me: usize,
    meetings: AtomicU64,
}

impl Port {
    /// Whether all members came in time.
    fn meet(&self, until: Instant) -> bool {
        let of_all = self.n as u64 * (self.meetings.fetch_add(1, Ordering::SeqCst) + 1);
        self.meeting.arrived.fetch_add(1, Ordering::SeqCst);
        while self.meeting.arrived.load(Ordering::SeqCst) < of_all {
            if Instant::now() > until {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}

unsafe extern "C" fn all_to_all(
    user: *mut c_void,
    call: *mut lmhead_call,
    send: *const lmhead_piece,
    recv: *const lmhead_piece,
) -> i32 {
    // SAFETY: valid pointers from the library; peers' pieces live until all have met again.
    unsafe {
        let port = &*user.cast::<Port>();
        let until = Instant::now() + Duration::from_micros((*call).left_us);
        for to in 0..port.n {
            let piece = &*send.add(to);
            let own = (piece.data.expose_provenance(), piece.bytes);
            port.meeting.sent.lock().expect("no panic")[port.me][to] = own;
        }
        if !port.meet(until) {
            return LMHEAD_FAULT_TIMEOUT as i32;
        }
        let mut ended = LMHEAD_FAULT_NONE;
        for from in 0..port.n {
            let piece = &*recv.add(from);
            let (address, bytes) = port.meeting.sent.lock().expect("no panic")[from][port.me];
            if bytes != piece.bytes {
                let marked =
                    lmhead_peer { status: LMHEAD_FAULT_LENGTH as i32, reserved: 0, bytes: bytes as u64 };
                (*call).peers.add(from).write(marked);
                ended = LMHEAD_FAULT_LENGTH;
            }
            let there = ptr::with_exposed_provenance::<u8>(address);
            piece.data.cast::<u8>().copy_from_nonoverlapping(there, bytes.min(piece.bytes));
        }
        if port.meet(until) { ended as i32 } else { LMHEAD_FAULT_TIMEOUT as i32 }
    }
}

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: made by `callbacks`, and released once.
    drop(unsafe { Box::from_raw(user.cast::<Port>()) });
}

/// The endpoints of a group over an engine whose only function is `all_to_all`.
fn callbacks(n: usize) -> Vec<usize> {
    let sent = Mutex::new([[(0, 0); MOST]; MOST]);
    let meeting = Arc::new(Meeting { arrived: AtomicU64::new(0), sent });
    let connect = |me: usize| {
        let port = Port { meeting: Arc::clone(&meeting), n, me, meetings: AtomicU64::new(0) };
        let table = lmhead_transport {
            n: n as i64,
            me: me as i64,
            all_to_all: Some(all_to_all),
            release: Some(release),
            ..init!(lmhead_transport)
        };
        let mut endpoint = ptr::null_mut();
        let user = Box::into_raw(Box::new(port)).cast();
        // SAFETY: all pointers are valid.
        good(unsafe { lmhead_exchange_callbacks(&raw const table, user, &raw mut endpoint) });
        endpoint.addr()
    };
    (0..n).map(connect).collect()
}

/// The ranks of a group on one backend, which is never dropped: threads of a pool that ends would allocate
/// while the next case is counted.
struct Ranks {
    tp: usize,
    weights: Vec<f32>,
    backend: usize,
    endpoints: Vec<usize>,
}

impl Ranks {
    fn new(tp: usize, connect: &Connect, n: usize) -> Self {
        static BACKEND: OnceLock<usize> = OnceLock::new();
        let mut random = Random(7);
        let weights = (0..VOCAB * HIDDEN).map(|_| random.below(9) as f32 - 4.0).collect();
        let backend = *BACKEND.get_or_init(|| backend_of(LMHEAD_HOST, 2).addr());
        Ranks { tp, weights, backend, endpoints: connect(n) }
    }

    /// The head of that rank, whose creation is a collective call.
    fn head(&self, rank: usize) -> *mut lmhead_head {
        let ranks: Vec<i64> = (0..self.endpoints.len() as i64).collect();
        let n = ranks.len() as i64;
        let (tp, tp_index) = (self.tp as i64, (rank % self.tp) as i64);
        let group = lmhead_group { ranks: ranks.as_ptr(), n, rank: rank as i64, tp, tp_index };
        let config =
            lmhead_config { vocab_size: VOCAB as i64, hidden_size: HIDDEN as i64, ..init!(lmhead_config) };
        let endpoint: *mut lmhead_exchange = ptr::without_provenance_mut(self.endpoints[rank]);
        let (mut first, mut count) = (0, 0);
        let (mut weights, mut head) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are valid.
        unsafe {
            good(lmhead_shard_range(VOCAB as i64, n, rank as i64, &raw mut first, &raw mut count));
            let own = &self.weights[first as usize * HIDDEN..][..count as usize * HIDDEN];
            let wrapped = lmhead_weights_config {
                vocab_size: VOCAB as i64,
                first,
                matrix: tensor(own, LMHEAD_F32, HIDDEN),
                ..init!(lmhead_weights_config)
            };
            good(lmhead_weights_wrap(&raw const wrapped, &raw mut weights));
            let (group, backend) = (&raw const group, ptr::without_provenance(self.backend));
            good(lmhead_create(&raw const config, group, weights, endpoint, backend, &raw mut head));
            lmhead_weights_free(weights);
            lmhead_exchange_free(endpoint);
        }
        head
    }
}

/// What a replica passes with its rows, the same on all of its ranks.
struct Inputs {
    hidden: Vec<f32>,
    indices: Vec<i32>,
    targets: Vec<i64>,
    seed: Vec<u64>,
    temperature: [f32; ROWS],
    top_k: [i32; ROWS],
    top_p: [f32; ROWS],
    min_p: [f32; ROWS],
    allowed: Vec<i32>,
    offsets: Vec<i64>,
    ids: Vec<i64>,
    penalties: [f32; ROWS],
    counts: [i32; ROWS],
    in_prompt: [u8; ROWS],
}

impl Inputs {
    fn new(replica: usize) -> Self {
        let mut random = Random(replica as u64);
        let mut id = || random.below(VOCAB) as i64;
        let mut targets: Vec<i64> = (0..TARGETS * ROWS).map(|_| id()).collect();
        targets[4] = -100;
        let ids = (0..ROWS).map(|_| id()).collect();
        Inputs {
            hidden: (0..ROWS * HIDDEN).map(|_| random.below(9) as f32 - 4.0).collect(),
            indices: (0..ROWS as i32).rev().collect(),
            targets,
            seed: (0..ROWS).map(|_| random.next()).collect(),
            temperature: [1.0, 0.0, 1.0, 0.7, 1.0],
            top_k: [0, 0, 40, 0, 0],
            top_p: [0.8, 1.0, 1.0, 1.0, 1.0],
            min_p: [0.0, 0.0, 0.1, 0.2, 0.0],
            allowed: vec![-2; ROWS * VOCAB.div_ceil(32)],
            offsets: (0..=ROWS as i64).collect(),
            ids,
            penalties: [1.5; ROWS],
            counts: [2; ROWS],
            in_prompt: [1; ROWS],
        }
    }

    fn sampling(&self) -> lmhead_sampling {
        lmhead_sampling {
            seed: self.seed.as_ptr(),
            position: ptr::null(),
            temperature: self.temperature.as_ptr(),
            top_k: self.top_k.as_ptr(),
            top_p: self.top_p.as_ptr(),
            min_p: self.min_p.as_ptr(),
        }
    }

    /// All adjustments, or only those that cannot be left out.
    fn adjustments(&self, few: bool) -> lmhead_adjustments {
        let all = lmhead_adjustments {
            allowed: self.allowed.as_ptr(),
            logit_bias_offsets: self.offsets.as_ptr(),
            logit_bias_ids: self.ids.as_ptr(),
            logit_bias_values: self.penalties.as_ptr(),
            repetition: self.penalties.as_ptr(),
            frequency: self.penalties.as_ptr(),
            presence: self.penalties.as_ptr(),
            count_offsets: self.offsets.as_ptr(),
            count_ids: self.ids.as_ptr(),
            counts: self.counts.as_ptr(),
            in_prompt: self.in_prompt.as_ptr(),
        };
        if !few {
            return all;
        }
        lmhead_adjustments { repetition: all.repetition, ..rig::zeroed() }
    }
}

/// The caller's memory for any answer to up to the largest number of rows.
struct Answered {
    row_status: [u8; ROWS],
    logits: Vec<f32>,
    ids: Vec<i64>,
    values: Vec<f32>,
    logsumexp: [f32; ROWS],
    logprobs: [f32; TARGETS * ROWS],
    ranks: [i64; TARGETS * ROWS],
    top_ids: [i64; K * ROWS],
    top_logprobs: [f32; K * ROWS],
    stats: lmhead_stats,
}

impl Answered {
    fn new() -> Self {
        Answered {
            row_status: [9; ROWS],
            logits: vec![0.0; ROWS * VOCAB],
            ids: vec![0; ROWS * VOCAB],
            values: vec![0.0; ROWS * VOCAB],
            logsumexp: [0.0; ROWS],
            logprobs: [0.0; TARGETS * ROWS],
            ranks: [0; TARGETS * ROWS],
            top_ids: [0; K * ROWS],
            top_logprobs: [0.0; K * ROWS],
            stats: init!(lmhead_stats),
        }
    }

    fn places(&mut self, dtype: u32) -> lmhead_answer {
        lmhead_answer {
            row_status: self.row_status.as_mut_ptr(),
            logits: tensor(&self.logits, dtype, VOCAB),
            ids: self.ids.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            logsumexp: self.logsumexp.as_mut_ptr(),
            logprobs: self.logprobs.as_mut_ptr(),
            ranks: self.ranks.as_mut_ptr(),
            top_ids: self.top_ids.as_mut_ptr(),
            top_logprobs: self.top_logprobs.as_mut_ptr(),
            stats: &raw mut self.stats,
            ..init!(lmhead_answer)
        }
    }
}

/// A head that is freed when its thread ends.
struct Own(*mut lmhead_head);

impl Own {
    /// A method, so that closures capture the whole struct.
    fn handle(&self) -> *mut lmhead_head {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: made by `Ranks::head`.
        unsafe { lmhead_free(self.0) };
    }
}

fn heads_answer(replicas: usize, tp: usize, connect: &Connect) {
    for asked in REQUESTS {
        println!("  {asked:?}");
        heads_answer_one((replicas, tp), connect, asked);
    }
}

/// Steps with changing rows, with and without adjustments, in every mode, after a preparation for the largest
/// number of rows.
fn heads_answer_one(
    (replicas, tp): (usize, usize),
    connect: &Connect,
    (request, k, n_targets, logits_dtype, flags): Asked,
) {
    let ranks = Ranks::new(tp, connect, replicas * tp);
    // Raw logprobs take no adjustments.
    let may_adjust = request != LMHEAD_LOGPROBS || flags & LMHEAD_PROCESSED != 0;
    let steps = |rank: usize| {
        let asked = lmhead_step {
            mode: LMHEAD_ROWS_CAPACITY as i32,
            capacity: ROWS as i64,
            request: request as i32,
            k: k as i64,
            n_targets: n_targets as i64,
            logits_dtype,
            flags,
            ..init!(lmhead_step)
        };
        let head = Own(ranks.head(rank));
        // SAFETY: all pointers are valid.
        good(unsafe { lmhead_prepare(head.handle(), &raw const asked, 1) });
        let (inputs, mut answered) = (Inputs::new(rank / tp), Answered::new());
        let mut counts = vec![0; replicas];
        move |round: u64| {
            let rows_of = |replica: usize| (round as usize + 2 * replica) % (ROWS + 1);
            let rows = rows_of(rank / tp);
            counts.iter_mut().enumerate().for_each(|(replica, count)| *count = rows_of(replica) as i64);
            let mode = [LMHEAD_ROWS_EXACT, LMHEAD_ROWS_DISCOVER, LMHEAD_ROWS_CAPACITY][round as usize % 3];
            let mut step = lmhead_step {
                mode: mode as i32,
                rows: rows as i64,
                counts: if replicas > 1 { counts.as_ptr() } else { ptr::null() },
                hidden: tensor(&inputs.hidden, LMHEAD_F32, HIDDEN),
                ..asked
            };
            if round % 5 < 2 {
                (step.indices, step.index_dtype) = (inputs.indices.as_ptr().cast(), LMHEAD_I32);
            }
            if request == LMHEAD_LOGPROBS {
                step.targets = inputs.targets.as_ptr();
            }
            let (sampling, adjustments) = (inputs.sampling(), inputs.adjustments(round % 4 == 3));
            if request == LMHEAD_SAMPLE {
                step.sampling = &raw const sampling;
            }
            if round % 2 == 1 && may_adjust {
                (step.adjustments, step.flags) = (&raw const adjustments, flags | LMHEAD_ADJUSTED);
            }
            let (mut needs, mut answer) = (init!(lmhead_needs), answered.places(logits_dtype));
            // SAFETY: all pointers are valid.
            unsafe {
                good(lmhead_plan(head.handle(), &raw const step, &raw mut needs));
                good(lmhead_run(head.handle(), &raw const step, &raw mut answer));
                good(lmhead_async_status(head.handle()));
            }
            assert!(answered.row_status[..rows].iter().all(|status| *status == 0));
            assert!(needs.rows == rows as i64 && answered.stats.rows_computed >= rows as i64);
        }
    };
    match replicas * tp {
        1 => steady(steps(0)),
        n => steady_ranks(n, steps),
    }
}
