//! An engine's function table as a [`Transport`].

use crate::boundary::{Outcome, argument};
use crate::sys::{self, lmhead_call, lmhead_peer, lmhead_piece, lmhead_place, lmhead_transport};
use lmhead::exchange::callbacks::{PeerStatus, Report, Status, TEXT_BYTES, Transport};
use lmhead::exchange::{Call, Operation, Piece, Place};
use lmhead::memory::{Memory, Stream};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The function table, and the user pointer that its functions get.
pub struct Table {
    functions: lmhead_transport,
    all_to_all: AllToAll,
    user: *mut c_void,
    memory: Memory,
    /// Whether the library owns the table, and must call `release` when it is dropped.
    pub handed_over: AtomicBool,
}

type AllToAll =
    unsafe extern "C" fn(*mut c_void, *mut lmhead_call, *const lmhead_piece, *const lmhead_piece) -> i32;

// SAFETY: the engine promises that its functions may be called from any thread.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Takes a table; refuses one without the required function.
    pub fn new(functions: lmhead_transport, user: *mut c_void, memory: Memory) -> Outcome<Self> {
        let all_to_all = functions.all_to_all.ok_or_else(|| {
            argument("transport.all_to_all", "a function", "NULL", "it is the one that is required")
        })?;
        Ok(Table { functions, all_to_all, user, memory, handed_over: AtomicBool::new(false) })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let (Some(release), true) = (self.functions.release, self.handed_over.load(Ordering::Acquire)) {
            // SAFETY: the engine's own function.
            unsafe { release(self.user) };
        }
    }
}

/// The structs of both sides have the same layout, since pieces and peers are passed without conversion.
const _: () = {
    assert!(size_of::<Piece>() == size_of::<lmhead_piece>());
    assert!(std::mem::offset_of!(Piece, address) == std::mem::offset_of!(lmhead_piece, data));
    assert!(std::mem::offset_of!(Piece, len) == std::mem::offset_of!(lmhead_piece, bytes));
    assert!(size_of::<PeerStatus>() == size_of::<lmhead_peer>());
    assert!(std::mem::offset_of!(PeerStatus, status) == std::mem::offset_of!(lmhead_peer, status));
    assert!(std::mem::offset_of!(PeerStatus, bytes) == std::mem::offset_of!(lmhead_peer, bytes));
    assert!(TEXT_BYTES == sys::LMHEAD_TEXT_BYTES as usize);
    assert!(size_of::<usize>() == size_of::<i64>());
};

fn to_c(call: &Call, stream: Stream, report: Option<&mut Report>) -> lmhead_call {
    let (peers, text) = match report {
        Some(report) => (report.peers_mut().as_mut_ptr().cast(), report.text_mut().as_mut_ptr().cast()),
        None => (ptr::null_mut(), ptr::null_mut()),
    };
    lmhead_call {
        head: call.head,
        instance: call.instance,
        epoch: call.epoch,
        operation: call.operation.code().into(),
        step: call.step,
        terms: call.terms,
        left_us: u64::try_from(call.left().as_micros()).unwrap_or(u64::MAX),
        stream: ptr::without_provenance_mut(stream.raw() as usize),
        peers,
        text,
    }
}

// SAFETY: the engine promises what the trait demands.
unsafe impl Transport for Table {
    fn memory(&self) -> Memory {
        self.memory
    }

    unsafe fn all_to_all(
        &self,
        call: &Call,
        stream: Stream,
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status {
        let mut call = to_c(call, stream, Some(report));
        // SAFETY: the engine's own function, as the header says.
        Status(unsafe {
            (self.all_to_all)(self.user, &raw mut call, send.as_ptr().cast(), recv.as_ptr().cast())
        })
    }

    unsafe fn all_gather(
        &self,
        call: &Call,
        members: &[usize],
        stream: Stream,
        send: Piece,
        recv: &[Piece],
        report: &mut Report,
    ) -> Option<Status> {
        let all_gather = self.functions.all_gather?;
        let (mut call, send) = (to_c(call, stream, Some(report)), &raw const send);
        let (listed, n) = (members.as_ptr().cast(), members.len() as i64);
        // SAFETY: as above.
        let done =
            unsafe { all_gather(self.user, &raw mut call, listed, n, send.cast(), recv.as_ptr().cast()) };
        Some(Status(done))
    }

    fn notify_abort(&self, call: &Call, notice: &str) {
        if let (Some(notify), Ok(notice)) =
            (self.functions.notify_abort, CString::new(notice.replace('\0', " ")))
        {
            let call = to_c(call, Stream::NONE, None);
            // SAFETY: as above.
            unsafe { notify(self.user, &raw const call, notice.as_ptr()) };
        }
    }

    fn note(&self, call: &Call) {
        if let Some(note) = self.functions.note {
            let call = to_c(call, Stream::NONE, None);
            // SAFETY: as above.
            unsafe { note(self.user, &raw const call) };
        }
    }

    fn place(&self, member: usize) -> Option<Place> {
        let place = self.functions.place?;
        let mut seen = lmhead_place { head: 0, instance: 0, epoch: 0, operation: -1, step: 0, age_us: 0 };
        // SAFETY: as above.
        let unknown = unsafe { place(self.user, member as i64, &raw mut seen) };
        let operation = u8::try_from(seen.operation).ok().and_then(Operation::from_code)?;
        (unknown == 0).then_some(Place {
            head: seen.head,
            instance: seen.instance,
            epoch: seen.epoch,
            step: seen.step,
            operation,
            age: Duration::from_micros(seen.age_us),
        })
    }

    fn pending(&self, call: &Call, report: &mut Report) -> Status {
        let Some(pending) = self.functions.pending else { return Status::GOOD };
        let mut call = to_c(call, Stream::NONE, Some(report));
        // SAFETY: as above.
        Status(unsafe { pending(self.user, &raw mut call) })
    }

    fn reset(&self, call: &Call, report: &mut Report) -> Option<Status> {
        let reset = self.functions.reset?;
        let mut call = to_c(call, Stream::NONE, Some(report));
        // SAFETY: as above.
        Some(Status(unsafe { reset(self.user, &raw mut call) }))
    }

    fn leave(&self, head: u32, instance: u32) {
        if let Some(leave) = self.functions.leave {
            // SAFETY: as above.
            unsafe { leave(self.user, head, instance) };
        }
    }
}
