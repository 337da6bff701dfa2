//! Threads that use the interface concurrently: heads of one backend and one set of weights are made, stepped
//! and freed, while other threads query heads that may be gone.
//!
//! It covers the table of handles, the pool that heads share, and the recorder that other threads read. Every
//! head has a group of its own; the soak test covers several heads on one exchange. It looks for wrong
//! answers, crashes and hangs, and cannot prove that there is no race.

use crate::refused::{RankBuffers, config, run, whole, wrap};
use crate::rig::{backend_of, good};
use lmhead_capi::sys::*;
use lmhead_testkit::Random;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const THREADS: usize = 4;
const HEADS: usize = 40;
const STEPS: usize = 12;

#[test]
fn heads_of_many_threads_neither_mix_nor_end_each_other() {
    let seed = 20261129;
    println!("seed {seed}");
    let (backend, weights) = (backend_of(LMHEAD_HOST, 2) as usize, wrap(&whole()) as usize);
    // The head that each thread has at present; 0 for none.
    let heads: [AtomicUsize; THREADS] = std::array::from_fn(|_| AtomicUsize::new(0));
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let handle = |number: usize| ptr::without_provenance_mut::<lmhead_head>(number);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (heads, mut random) = (&heads, Random(seed + thread as u64));
                scope.spawn(move || {
                    for _ in 0..HEADS {
                        let (mut head, config) = (ptr::null_mut(), config());
                        let (backend, weights) =
                            (ptr::without_provenance(backend), ptr::without_provenance(weights));
                        // SAFETY: all pointers are valid.
                        unsafe {
                            good(lmhead_create(
                                &raw const config,
                                ptr::null(),
                                weights,
                                ptr::null(),
                                backend,
                                &raw mut head,
                            ));
                        }
                        heads[thread].store(head as usize, Ordering::Release);
                        let mut want = None;
                        for _ in 0..STEPS {
                            let mut rows = RankBuffers::new(1 + random.below(5));
                            let step = rows.step();
                            let status = loop {
                                match run(head, &step, &mut rows) {
                                    // Another thread asks for a step's plan at this moment.
                                    status if status == LMHEAD_ERROR_ARGUMENT as i32 => {
                                        std::thread::yield_now()
                                    }
                                    status => break status,
                                }
                            };
                            good(status);
                            // The first row is the same in every step of every head.
                            assert_eq!(*want.get_or_insert(rows.ids[0]), rows.ids[0]);
                            assert!(rows.status.iter().all(|status| *status == 0));
                        }
                        heads[thread].store(0, Ordering::Release);
                        // SAFETY: the thread's own.
                        unsafe { lmhead_free(head) };
                    }
                })
            })
            .collect();
        for asker in 0..2 {
            let (heads, done, asked, mut random) = (&heads, &done, &asked, Random(seed * 7 + asker));
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let head = handle(heads[random.below(THREADS)].load(Ordering::Acquire));
                    if head.is_null() {
                        std::thread::yield_now();
                        continue;
                    }
                    let (rows, mut needs) = (RankBuffers::new(2), crate::rig::init!(lmhead_needs));
                    let mut json = ptr::null_mut();
                    let step = rows.step();
                    // SAFETY: all pointers are valid; a head that is gone is refused.
                    unsafe {
                        let told = lmhead_flight_recorder(head, &raw mut json);
                        assert!(told == 0 || told == LMHEAD_ERROR_ARGUMENT as i32, "{told}");
                        lmhead_string_free(json);
                        let planned = lmhead_plan(head, &raw const step, &raw mut needs);
                        assert!(planned == 0 || planned == LMHEAD_ERROR_ARGUMENT as i32, "{planned}");
                        asked.fetch_add(usize::from(told == 0), Ordering::Relaxed);
                    }
                }
            });
        }
        for worker in workers {
            worker.join().expect("no panic");
        }
        done.store(true, Ordering::Release);
    });
    println!("{} heads asked while they were used", asked.load(Ordering::Relaxed));
    // SAFETY: made above.
    unsafe {
        lmhead_weights_free(ptr::without_provenance_mut(weights));
        lmhead_backend_free(ptr::without_provenance_mut(backend));
    }
}
