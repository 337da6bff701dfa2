//! A process that forks after it has made heads: calls in the child are refused with a message, and the child
//! can make heads of its own; what it does with its parent's handles has no effect on the parent.

use crate::refused::{RankBuffers, config, heads_of_two, run, whole, wrap};
use crate::rig::{backend_of, fails, good, init, last_error};
use lmhead_capi::sys::*;
use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: `user` is a counter that is never freed.
    unsafe { &*user.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
}

/// Runs `body` in a forked process; returns its result, or how the process ended. A child that hangs is
/// killed.
fn in_child(body: impl FnOnce() -> String) -> Result<String, String> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors. The child uses its own copies, and ends without its parent's
    // destructors.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let child = libc::fork();
        let [mut reads, mut writes] = ends.map(|end| File::from_raw_fd(end));
        if child == 0 {
            libc::alarm(30);
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let _ = writes.write_all(said.unwrap_or_else(|_| "a panic".into()).as_bytes());
            libc::_exit(0);
        }
        assert!(child > 0, "no process could be forked");
        drop(writes);
        let (mut said, mut status) = (String::new(), 0);
        reads.read_to_string(&mut said).expect("what the child says");
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        if status == 0 { Ok(said) } else { Err(format!("wait status {status:#x}, said `{said}`")) }
    }
}

/// A head of this process, what it was made of, and its answer.
struct Own {
    backend: *mut lmhead_backend,
    weights: *mut lmhead_weights,
    head: *mut lmhead_head,
    /// How often its weights were released.
    released: &'static AtomicUsize,
}

impl Own {
    fn new() -> Self {
        let released: &AtomicUsize = Box::leak(Box::default());
        let user = ptr::from_ref(released).cast_mut().cast();
        let in_place = lmhead_weights_config { release: Some(release), user, ..whole() };
        let (backend, weights, config) = (backend_of(LMHEAD_HOST, 2), wrap(&in_place), config());
        let mut head = ptr::null_mut();
        // SAFETY: all pointers are valid.
        good(unsafe {
            lmhead_create(&raw const config, ptr::null(), weights, ptr::null(), backend, &raw mut head)
        });
        Own { backend, weights, head, released }
    }

    fn answer(&self) -> Vec<i64> {
        let mut rows = RankBuffers::new(3);
        let step = rows.step();
        good(run(self.head, &step, &mut rows));
        rows.ids
    }

    fn free(&self) {
        // SAFETY: freeing accepts any handle.
        unsafe {
            lmhead_weights_free(self.weights);
            lmhead_backend_free(self.backend);
            lmhead_free(self.head);
        }
    }
}

/// Makes every call with a handle of the parent's in the child; returns how many were refused with the
/// message, or what else came.
fn refused_in_child(parent: u32, own: &Own, endpoint: *mut lmhead_exchange) -> String {
    let sentence = format!(
        "wanted a handle that process {} has made, got one of process {parent}, from which it was forked; \
         fork first",
        std::process::id()
    );
    let mut rows = RankBuffers::new(1);
    let step = rows.step();
    let (mut needs, mut info, config) = (init!(lmhead_needs), init!(lmhead_weights_info), config());
    let (mut json, mut made, mut over_nccl) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let group = lmhead_group { ranks: [0, 1].as_ptr(), n: 2, rank: 0, tp: 1, tp_index: 0 };
    let (head, weights, backend) = (own.head, own.weights, own.backend);
    let mut wrong = String::new();
    let mut told = |name: &str, status: lmhead_status| {
        if status != LMHEAD_ERROR_ARGUMENT as i32 || !last_error().contains(&sentence) {
            wrong += &format!("{name}: {status}, `{}`; wanted `{sentence}`\n", last_error());
        }
    };
    // SAFETY: all pointers are valid, for each of these calls.
    unsafe {
        told("run", run(head, &step, &mut rows));
        told("plan", lmhead_plan(head, &raw const step, &raw mut needs));
        told("prepare", lmhead_prepare(head, &raw const step, 1));
        told("async_status", lmhead_async_status(head));
        told("abort", lmhead_abort(head, c"child".as_ptr()));
        told("set_weights_version", lmhead_set_weights_version(head, 7));
        told("release_memory", lmhead_release_memory(head));
        told("flight_recorder", lmhead_flight_recorder(head, &raw mut json));
        told("rebuild", lmhead_rebuild(head));
        told("weights_about", lmhead_weights_about(weights, &raw mut info));
        let config = &raw const config;
        let made = lmhead_create(config, ptr::null(), weights, ptr::null(), backend, &raw mut made);
        told("create", made);
        let (mine, here) = (wrap(&whole()), backend_of(LMHEAD_HOST, 1));
        let mut over = ptr::null_mut();
        let made = lmhead_create(config, &raw const group, mine, endpoint, here, &raw mut over);
        told("create over an exchange", made);
        told("exchange_nccl", lmhead_exchange_nccl(backend, ptr::null_mut(), endpoint, &raw mut over_nccl));
    }
    if wrong.is_empty() { "refused".into() } else { wrong }
}

#[test]
fn a_forked_process_is_told_and_its_parent_goes_on() {
    let own = Own::new();
    let mut endpoints = [ptr::null_mut(); 2];
    // SAFETY: room for two.
    good(unsafe { lmhead_exchange_local(2, endpoints.as_mut_ptr()) });
    let pair = heads_of_two(&[10, 20], 20_000).into_iter().map(|head| head.addr()).collect::<Vec<_>>();
    let want = own.answer();
    let parent = std::process::id();

    let said = in_child(|| {
        let refused = refused_in_child(parent, &own, endpoints[0]);
        // SAFETY: freeing accepts any handle.
        unsafe {
            own.free();
            pair.iter().for_each(|head| lmhead_free(ptr::without_provenance_mut(*head)));
            endpoints.iter().for_each(|endpoint| lmhead_exchange_free(*endpoint));
        }
        refused
    });
    assert_eq!(said.as_deref(), Ok("refused"));
    assert_eq!(own.released.load(Ordering::Relaxed), 0);

    // A child's own backend and head work as its parent's do.
    let said = in_child(|| {
        let mine = Own::new();
        let answered = format!("{:?}", mine.answer());
        mine.free();
        format!("{answered}, {} released", mine.released.load(Ordering::Relaxed))
    });
    assert_eq!(said, Ok(format!("{want:?}, 1 released")));

    // The parent's heads, alone and in a group, work as before.
    assert_eq!(own.answer(), want);
    std::thread::scope(|scope| {
        for (me, head) in pair.iter().enumerate() {
            let want = &want;
            scope.spawn(move || {
                let head = ptr::without_provenance_mut(*head);
                let mut rows = RankBuffers::new(3 * (1 - me));
                let step = lmhead_step { counts: [3, 0].as_ptr(), ..rows.step() };
                good(run(head, &step, &mut rows));
                assert_eq!(rows.ids, want[..rows.ids.len()]);
                // SAFETY: the thread's own.
                unsafe { lmhead_free(head) };
            });
        }
    });
    own.free();
    assert_eq!(own.released.load(Ordering::Relaxed), 1);
    // SAFETY: made above.
    unsafe { endpoints.iter().for_each(|endpoint| lmhead_exchange_free(*endpoint)) };
}

/// A waiting step holds its head's locks, which nobody releases in the child.
#[test]
fn a_fork_while_a_step_waits_is_told_without_waiting() {
    let pair = heads_of_two(&[30, 40], 20_000).into_iter().map(|head| head.addr()).collect::<Vec<_>>();
    let handle = |me: usize| ptr::without_provenance_mut::<lmhead_head>(pair[me]);
    let own = Own { head: handle(0), ..Own::new() };
    let mut endpoints = [ptr::null_mut(); 2];
    // SAFETY: room for two.
    good(unsafe { lmhead_exchange_local(2, endpoints.as_mut_ptr()) });
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let mut rows = RankBuffers::new(1);
            let step = lmhead_step { counts: [1, 0].as_ptr(), ..rows.step() };
            let status = loop {
                match run(handle(0), &step, &mut rows) {
                    // The other thread is asking at this moment whether the step has begun.
                    status if status == LMHEAD_ERROR_ARGUMENT as i32 => std::thread::yield_now(),
                    status => break status,
                }
            };
            fails(status, LMHEAD_ERROR_STEP_MISMATCH, "enough");
        });
        // The step has begun once another thread cannot use the head.
        let mut needs = init!(lmhead_needs);
        let (rows, deadline) = (RankBuffers::new(1), Instant::now() + Duration::from_secs(10));
        let step = lmhead_step { counts: [1, 0].as_ptr(), ..rows.step() };
        // SAFETY: all pointers are valid.
        while unsafe { lmhead_plan(handle(0), &raw const step, &raw mut needs) } == 0 {
            assert!(Instant::now() < deadline, "the step has not begun");
            std::thread::yield_now();
        }
        let parent = std::process::id();
        let said = in_child(|| {
            let refused = refused_in_child(parent, &own, endpoints[0]);
            own.free();
            refused
        });
        assert_eq!(said.as_deref(), Ok("refused"));
        // SAFETY: as above.
        good(unsafe { lmhead_abort(handle(0), c"enough".as_ptr()) });
        waits.join().expect("no panic");
    });
    // SAFETY: made above.
    unsafe { pair.iter().for_each(|head| lmhead_free(ptr::without_provenance_mut(*head))) };
}
