//! How a step's fixed costs grow with the group: comparing P headers, a round of the local exchange beside a
//! barrier of as many threads, and a whole step without rows.
//!
//! ```text
//! cargo bench --bench contract -- --out benches/results/cpu/contract.json
//! LMHEAD_CONTRACT_REPETITIONS=5 ...                                            # 21 by default
//! ```
//!
//! In each repetition everything is measured once, so that all are measured under the same load.

use lmhead::exchange::{Call, Exchange, Operation, local};
use lmhead::step::{HEADER_BYTES, Header, Mode, agree};
use lmhead::{HeadGroup, HiddenRows, Request, RowCounts};
use lmhead_testkit::report::{about, load, report, setting, summary};
use lmhead_testkit::{TestHead, each_rank, head_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const GROUPS: [usize; 7] = [8, 16, 32, 64, 128, 256, 512];

/// Microseconds in which a rank compares `size` headers, including its own list of counts.
fn agreement(size: usize) -> f64 {
    let group = HeadGroup::data_parallel(size, 0).expect("a group");
    let counts = vec![28; size];
    let mine = Header {
        head: 7,
        instance: 0,
        epoch: 0,
        mode: Mode::Exact,
        verify: lmhead::config::Verify::Always,
        request: Some(Request::argmax()),
        adjusted: false,
        on_device: false,
        filters: lmhead::Filters::ByHost,
        placed: Default::default(),
        sequence: 3,
        rows: 28,
        counts: 99,
        agreement: 5,
        weights_version: 0,
        inputs: 0,
    };
    let members: Vec<usize> = (0..size).collect();
    let headers: Vec<[u8; HEADER_BYTES]> =
        (0..size).map(|m| Header { rows: m as u64, ..mine }.encode()).collect();
    let rounds = 20_000 / size;
    let began = Instant::now();
    for _ in 0..rounds {
        let agreed = agree(&group, black_box(&members), black_box(&headers), &mine, "lm_head", &counts);
        black_box(agreed.expect("equal headers"));
    }
    began.elapsed().as_secs_f64() * 1e6 / rounds as f64
}

/// Microseconds of one of `rounds` rounds of `size` threads, each of which calls its own `round`.
fn rounds<R: FnMut(u64)>(size: usize, rounds: u64, round: impl Fn(usize) -> R + Sync) -> f64 {
    let start = Barrier::new(size);
    let times: Vec<Duration> = std::thread::scope(|scope| {
        let (start, round) = (&start, &round);
        let thread = |me: usize| {
            scope.spawn(move || {
                let mut round = round(me);
                // The first call allocates buffers.
                round(0);
                start.wait();
                let began = Instant::now();
                (1..=rounds).for_each(&mut round);
                began.elapsed()
            })
        };
        let threads: Vec<_> = (0..size).map(thread).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    });
    times.into_iter().max().expect("ranks").as_secs_f64() * 1e6 / rounds as f64
}

/// An all_gather of 64 bytes from every rank.
fn gather(size: usize, count: u64) -> f64 {
    let endpoints = local::group(size);
    let members: Vec<usize> = (0..size).collect();
    let (began, minute) = (Instant::now(), Duration::from_secs(60));
    let (endpoints, members) = (&endpoints, &members);
    rounds(size, count, |me| {
        let mut recv = vec![0u8; 64 * size];
        move |step| {
            let mut pieces: Vec<&mut [u8]> = recv.chunks_mut(64).collect();
            let call = Call {
                head: 1,
                instance: 0,
                epoch: 0,
                step,
                operation: Operation::GatherRows,
                terms: 0,
                began,
                deadline: began + minute,
            };
            endpoints[me].all_gather_v(&call, members, &[me as u8; 64], &mut pieces).expect("a gather");
        }
    })
}

fn std_barrier(size: usize, count: u64) -> f64 {
    let barrier = Barrier::new(size);
    rounds(size, count, |_| {
        |_| {
            barrier.wait();
        }
    })
}

/// POSIX's barrier: the time that the system itself needs for a round of so many threads.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the system's barrier")]
mod posix {
    use std::cell::UnsafeCell;
    use std::mem::MaybeUninit;

    pub struct Barrier(Box<UnsafeCell<MaybeUninit<libc::pthread_barrier_t>>>);

    // SAFETY: several threads may wait at a barrier.
    unsafe impl Sync for Barrier {}

    impl Barrier {
        pub fn new(size: usize) -> Self {
            let barrier = Barrier(Box::new(UnsafeCell::new(MaybeUninit::uninit())));
            // SAFETY: the memory stays where it is until the barrier is destroyed.
            let code = unsafe {
                libc::pthread_barrier_init(barrier.0.get().cast(), std::ptr::null(), size as libc::c_uint)
            };
            assert_eq!(code, 0, "a barrier of {size} threads");
            barrier
        }

        pub fn wait(&self) {
            // SAFETY: initialised in `new`.
            unsafe { libc::pthread_barrier_wait(self.0.get().cast()) };
        }
    }

    impl Drop for Barrier {
        fn drop(&mut self) {
            // SAFETY: initialised in `new`; nobody waits any more.
            unsafe { libc::pthread_barrier_destroy(self.0.get().cast()) };
        }
    }
}

#[cfg(target_os = "linux")]
fn posix_barrier(size: usize, count: u64) -> Option<f64> {
    let barrier = posix::Barrier::new(size);
    let round = rounds(size, count, |_| {
        |_| {
            barrier.wait();
        }
    });
    Some(round)
}

#[cfg(not(target_os = "linux"))]
fn posix_barrier(_: usize, _: u64) -> Option<f64> {
    None
}

/// Median microseconds of a verified argmax step without rows, as rank 0 sees it.
fn step(size: usize, count: u64) -> f64 {
    let test = TestHead::random(64, 8, lmhead::DType::F32, lmhead::Quantization::None, 3);
    let times = each_rank(size, |me, exchange: Arc<dyn Exchange>| {
        let mut head = head_of(&test, &test.config(), size, me, exchange).expect("a head");
        let counts = RowCounts::Exact(vec![0; size]);
        let mut times: Vec<f64> = (0..=count)
            .map(|_| {
                let none = HiddenRows::new(&[], lmhead::DType::F32, 0, 8).expect("no rows");
                let began = Instant::now();
                let step = head.step(counts.clone(), &Request::argmax()).expect("a step");
                step.run(none).expect("an answer");
                began.elapsed().as_secs_f64() * 1e6
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    times[0]
}

fn main() {
    let repetitions = setting("LMHEAD_CONTRACT_REPETITIONS", 21);
    let mut result = about("cargo bench --bench contract");
    let mut measured: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
    let mut ratios = vec![Vec::new(); GROUPS.len()];
    for _ in 0..repetitions {
        for (at, &size) in GROUPS.iter().enumerate() {
            let count = (4000 / size as u64).max(10);
            let (gather, barrier) = (gather(size, count), std_barrier(size, count));
            let posix = posix_barrier(size, count);
            ratios[at].push(gather / posix.unwrap_or(barrier));
            let values = [
                ("agreement of all headers, one rank", agreement(size)),
                ("all_gather of 64 bytes, a round", gather),
                ("std::sync::Barrier, a round", barrier),
                ("verified argmax step without rows", step(size, (count / 4).max(5))),
            ];
            let posix = posix.map(|value| ("pthread_barrier_wait, a round", value));
            for (what, value) in values.into_iter().chain(posix) {
                let all = measured.entry(what).or_insert_with(|| vec![Vec::new(); GROUPS.len()]);
                all[at].push(value);
            }
        }
    }
    let told = |values: &[Vec<f64>], digits: i32| -> Value {
        GROUPS.iter().zip(values).map(|(size, v)| (format!("P {size:3}"), summary(v, digits))).collect()
    };
    for (what, values) in &measured {
        let medians: Vec<String> = values.iter().map(|v| summary(v, 2)["median"].to_string()).collect();
        println!("{what}, us at P = {GROUPS:?}: {}", medians.join(", "));
    }
    result["load_average_after"] = load();
    result["settings"] = json!(format!("LMHEAD_CONTRACT_REPETITIONS={repetitions}"));
    result["method"] = json!(
        "P threads of one process; a round: the slowest thread's time for many, divided by their number; \
         ratio: to the pthread barrier, of a repetition's own rounds"
    );
    let all: BTreeMap<&str, Value> = measured.iter().map(|(what, values)| (*what, told(values, 2))).collect();
    result["us"] = json!(all);
    result["all_gather_to_barrier"] = told(&ratios, 2);
    report(&result);
}
