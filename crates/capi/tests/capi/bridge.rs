//! A transport of the tests' engine as a table of C functions.

use crate::rig::{good, init};
use lmhead::exchange::callbacks::{Report, Status, Transport};
use lmhead::exchange::{Call, Operation, Piece};
use lmhead::memory::Stream;
use lmhead_capi::sys::*;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Number of tables not released yet.
pub static HELD: AtomicUsize = AtomicUsize::new(0);

struct Bridge {
    transport: Arc<dyn Transport>,
    size: usize,
}

/// # Safety
/// `user` is a bridge.
unsafe fn of<'a>(user: *mut c_void) -> &'a Bridge {
    // SAFETY: as the caller guarantees.
    unsafe { &*user.cast::<Bridge>() }
}

fn call_of(call: &lmhead_call) -> Call {
    let began = Instant::now();
    Call {
        head: call.head,
        instance: call.instance,
        epoch: call.epoch,
        step: call.step,
        operation: Operation::from_code(call.operation as u8).expect("an operation"),
        terms: call.terms,
        began,
        deadline: began + Duration::from_micros(call.left_us),
    }
}

/// Runs one of the transport's functions and passes its report on.
///
/// # Safety
/// What the library passes.
unsafe fn reported(
    user: *mut c_void,
    call: *mut lmhead_call,
    run: impl FnOnce(&dyn Transport, &Call, Stream, &mut Report) -> Status,
) -> i32 {
    // SAFETY: as the caller guarantees.
    let (bridge, c) = unsafe { (of(user), &*call) };
    let mut report = Report::new(bridge.size);
    let stream = if c.stream.is_null() {
        Stream::NONE
    } else {
        // SAFETY: as the caller guarantees.
        unsafe { Stream::from_raw(c.stream.addr() as u64) }
    };
    let status = run(&*bridge.transport, &call_of(c), stream, &mut report);
    // SAFETY: memory of the library, with the lengths that the header states.
    unsafe {
        for (i, peer) in report.peers_mut().iter().enumerate() {
            c.peers.add(i).write(lmhead_peer { status: peer.status.0, reserved: 0, bytes: peer.bytes });
        }
        c.text.copy_from_nonoverlapping(report.text_mut().as_ptr().cast(), LMHEAD_TEXT_BYTES as usize);
    }
    status.0
}

/// # Safety
/// `n` pieces of the library's.
unsafe fn pieces(pieces: *const lmhead_piece, n: usize) -> Vec<Piece> {
    // SAFETY: as the caller guarantees.
    let pieces = unsafe { std::slice::from_raw_parts(pieces, n) };
    pieces.iter().map(|p| Piece { address: p.data.expose_provenance() as u64, len: p.bytes }).collect()
}

unsafe extern "C" fn all_to_all(
    user: *mut c_void,
    call: *mut lmhead_call,
    send: *const lmhead_piece,
    recv: *const lmhead_piece,
) -> i32 {
    // SAFETY: the library passes valid pointers.
    unsafe {
        let n = of(user).size;
        let (send, recv) = (pieces(send, n), pieces(recv, n));
        reported(user, call, |transport, call, stream, report| {
            transport.all_to_all(call, stream, &send, &recv, report)
        })
    }
}

unsafe extern "C" fn all_gather(
    user: *mut c_void,
    call: *mut lmhead_call,
    members: *const i64,
    n: i64,
    send: *const lmhead_piece,
    recv: *const lmhead_piece,
) -> i32 {
    // SAFETY: the library passes valid pointers.
    unsafe {
        let members: Vec<usize> =
            std::slice::from_raw_parts(members, n as usize).iter().map(|member| *member as usize).collect();
        let (send, recv) = (pieces(send, 1)[0], pieces(recv, n as usize));
        reported(user, call, |transport, call, stream, report| {
            let done = transport.all_gather(call, &members, stream, send, &recv, report);
            done.expect("a transport with all its functions")
        })
    }
}

unsafe extern "C" fn notify_abort(user: *mut c_void, call: *const lmhead_call, notice: *const c_char) {
    // SAFETY: the library passes valid pointers.
    unsafe {
        let notice = CStr::from_ptr(notice).to_str().expect("UTF-8");
        of(user).transport.notify_abort(&call_of(&*call), notice);
    }
}

unsafe extern "C" fn note(user: *mut c_void, call: *const lmhead_call) {
    // SAFETY: the library passes valid pointers.
    unsafe { of(user).transport.note(&call_of(&*call)) };
}

unsafe extern "C" fn place(user: *mut c_void, member: i64, place: *mut lmhead_place) -> i32 {
    // SAFETY: the library passes valid pointers.
    unsafe {
        let Some(seen) = of(user).transport.place(member as usize) else { return 1 };
        place.write(lmhead_place {
            head: seen.head,
            instance: seen.instance,
            epoch: seen.epoch,
            operation: seen.operation.code().into(),
            step: seen.step,
            age_us: seen.age.as_micros() as u64,
        });
        0
    }
}

unsafe extern "C" fn reset(user: *mut c_void, call: *mut lmhead_call) -> i32 {
    // SAFETY: the library passes valid pointers.
    unsafe {
        reported(user, call, |transport, call, _, report| {
            transport.reset(call, report).expect("a transport with all its functions")
        })
    }
}

unsafe extern "C" fn leave(user: *mut c_void, head: u32, instance: u32) {
    // SAFETY: the library passes valid pointers.
    unsafe { of(user).transport.leave(head, instance) };
}

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: made by `endpoint`, and released once.
    drop(unsafe { Box::from_raw(user.cast::<Bridge>()) });
    HELD.fetch_sub(1, Ordering::Relaxed);
}

/// The table of functions; only the required ones where `bare`.
pub fn table(n: usize, me: usize, bare: bool) -> lmhead_transport {
    let required = lmhead_transport {
        n: n as i64,
        me: me as i64,
        all_to_all: Some(all_to_all),
        release: Some(release),
        ..init!(lmhead_transport)
    };
    if bare {
        return required;
    }
    lmhead_transport {
        all_gather: Some(all_gather),
        notify_abort: Some(notify_abort),
        note: Some(note),
        place: Some(place),
        reset: Some(reset),
        leave: Some(leave),
        ..required
    }
}

/// An endpoint of member `me` over the engine's transport.
pub fn endpoint(transport: Arc<dyn Transport>, size: usize, me: usize, bare: bool) -> *mut lmhead_exchange {
    let table = table(size, me, bare);
    let bridge = Box::new(Bridge { transport, size });
    HELD.fetch_add(1, Ordering::Relaxed);
    let mut endpoint = std::ptr::null_mut();
    // SAFETY: all pointers are valid.
    let made = unsafe {
        lmhead_exchange_callbacks(&raw const table, Box::into_raw(bridge).cast(), &raw mut endpoint)
    };
    good(made);
    endpoint
}
