//! One member's side of a communicator. No call here waits for the peers, except those that say so; these
//! have a deadline.

use super::config::ncclConfig_t;
use super::library::Failed;
use super::unique_id::UniqueId;
use super::window::Left;
use super::{Nccl, sys};
use crate::exchange::{Fault, Piece, StreamMarks};
use crate::memory::{Memory, Stream};
use crate::process::Maker;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// NCCL's environment variable that makes every communicator wait in its calls, without a deadline.
const BLOCKING: &str = "NCCL_COMM_BLOCKING";

/// A communicator of NCCL: one that this makes and destroys, or an engine's.
///
/// Calls of one communicator are made one at a time, under a lock that is held for no longer than NCCL takes
/// to queue them: a communicator is aborted while no other thread is inside NCCL with it.
pub struct Communicator {
    pub(super) nccl: Nccl,
    pub(super) device: Arc<dyn StreamMarks>,
    pub(super) handle: Arc<Handle>,
    rank: usize,
    size: usize,
    /// It is the engine's: it is neither aborted nor destroyed here.
    pub(super) borrowed: bool,
    /// The process that made it: a forked one has none of NCCL's threads.
    maker: Maker,
}

pub(super) struct Handle {
    state: Mutex<State>,
    ended: Condvar,
    /// Dropped windows, whose memory NCCL may use until the communicator has ended.
    left: Mutex<Vec<Left>>,
}

#[derive(Clone, Copy)]
enum State {
    Open(Raw),
    /// A thread is aborting or destroying it; or a fault has met an engine's, which only the engine can end.
    Ending,
    /// It is aborted or destroyed.
    Ended,
}

/// A communicator's handle.
#[derive(Clone, Copy)]
struct Raw(sys::ncclComm_t);

// SAFETY: a handle that NCCL takes from any thread, one at a time: the lock around it sees to that.
unsafe impl Send for Raw {}

/// How far the background work of a communicator's last call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Going,
}

/// Why a call of a communicator came to nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Refused {
    /// NCCL reports a failure.
    Failed(Failed),
    /// The device's context, the end of the communicator, or what a caller polls for.
    Fault(Fault),
}

impl From<Failed> for Refused {
    fn from(failed: Failed) -> Self {
        Refused::Failed(failed)
    }
}

impl Refused {
    pub fn into_fault(self) -> Fault {
        match self {
            Refused::Failed(failed) => failed.into_fault(),
            Refused::Fault(fault) => fault,
        }
    }
}

pub(super) type Called<T> = std::result::Result<T, Refused>;

impl Communicator {
    /// Makes a communicator with the other members, each of which calls this with the same `id`, and waits
    /// for them until `deadline`. `device` is of the GPU that this member's memory is in.
    ///
    /// # Errors
    /// `Timeout`, which names nobody; `Broken` with NCCL's words. Nothing is left of the communicator then.
    pub fn new(
        nccl: Nccl,
        device: &Arc<dyn StreamMarks>,
        (rank, size): (usize, usize),
        id: &UniqueId,
        deadline: Instant,
    ) -> std::result::Result<Self, Fault> {
        let until = || (Instant::now() >= deadline).then(|| Fault::Timeout { missing: Vec::new() });
        Self::polled(nccl, device, (rank, size), id, until).map_err(Refused::into_fault)
    }

    /// The same, until `ended` returns why it cannot come about.
    pub(super) fn polled(
        nccl: Nccl,
        device: &Arc<dyn StreamMarks>,
        (rank, size): (usize, usize),
        id: &UniqueId,
        mut ended: impl FnMut() -> Option<Fault>,
    ) -> Called<Self> {
        check_blocking().map_err(Refused::Fault)?;
        let (size, rank) = (word("size", size)?, word("rank", rank)?);
        let mut raw: sys::ncclComm_t = std::ptr::null_mut();
        let mut config = ncclConfig_t::nonblocking();
        let result = within(device, || {
            // SAFETY: a place for the handle, which NCCL writes before it returns, and settings that it
            // copies.
            unsafe { nccl.functions().ncclCommInitRankConfig(&mut raw, size, id.raw(), rank, &mut config) }
        })?;
        match nccl.check("ncclCommInitRankConfig", result) {
            // NCCL has cleaned up.
            Err(failed) => Err(failed.into()),
            Ok(()) if raw.is_null() => Err(nccl.none("ncclCommInitRankConfig").into()),
            Ok(()) => Self::finished(nccl, device, raw, &mut ended),
        }
    }

    fn of(nccl: Nccl, device: &Arc<dyn StreamMarks>, raw: sys::ncclComm_t, borrowed: bool) -> Self {
        let (state, left) = (Mutex::new(State::Open(Raw(raw))), Mutex::new(Vec::new()));
        let handle = Handle { state, ended: Condvar::new(), left };
        let (device, handle) = (Arc::clone(device), Arc::new(handle));
        Communicator { nccl, device, handle, rank: 0, size: 0, borrowed, maker: Maker::here() }
    }

    /// Waits until the communicator that a call has begun to make is ready.
    fn finished(
        nccl: Nccl,
        device: &Arc<dyn StreamMarks>,
        raw: sys::ncclComm_t,
        ended: &mut dyn FnMut() -> Option<Fault>,
    ) -> Called<Self> {
        // Where it does not get ready, dropping `made` aborts it.
        let mut made = Self::of(nccl, device, raw, false);
        made.wait_async_done(ended)?;
        (made.rank, made.size) = made.place()?;
        Ok(made)
    }

    /// The engine's own communicator. It should not block (`blocking` 0 in its `ncclConfig_t`): where it
    /// does, its first collective waits for the peers without a deadline.
    ///
    /// A fault stops it by `ncclCommRevoke`, from NCCL 2.28.7 on; the engine destroys it. Older versions can
    /// only abort a communicator, which destroys it: that is the engine's to do. Until then what was queued
    /// stays on its stream, and a rebuilding of a head says so.
    ///
    /// # Errors
    /// `Broken` where NCCL does not know it, it has failed before, or it is of another device than `device`.
    ///
    /// # Safety
    /// `raw` is an `ncclComm_t` of this library, lives as long as this, and no other thread uses it while a
    /// collective of this is called.
    pub unsafe fn borrow(
        nccl: Nccl,
        device: &Arc<dyn StreamMarks>,
        raw: *mut c_void,
    ) -> std::result::Result<Self, Fault> {
        if raw.is_null() {
            let problem = "wanted a communicator of NCCL, got a null pointer".into();
            return Err(Fault::Broken {
                problem,
                fix: "pass the ncclComm_t that the engine has made".into(),
            });
        }
        let mut borrowed = Self::of(nccl, device, raw.cast(), true);
        let place = borrowed.progress().and_then(|_| borrowed.place());
        (borrowed.rank, borrowed.size) = place.map_err(Refused::into_fault)?;
        Ok(borrowed)
    }

    /// Splits the communicator: members of one `color` get a communicator of their own, ordered by `key`;
    /// `None` takes no part in any. Collective over all members of this one: each calls it, also with `None`.
    ///
    /// # Errors
    /// As [`Communicator::new`]. This communicator is aborted then: its part in the split may go on. `Broken`
    /// where a number is larger than 2^31 - 1, which NCCL does not take: nothing has begun then.
    pub fn split(
        &self,
        color: Option<u32>,
        key: u32,
        deadline: Instant,
    ) -> std::result::Result<Option<Self>, Fault> {
        let key = word("key", key as usize).map_err(Refused::into_fault)?;
        let color = color.map(|color| word("color", color as usize)).transpose();
        let color = color.map_err(Refused::into_fault)?;
        let mut ended = || (Instant::now() >= deadline).then(|| Fault::Timeout { missing: Vec::new() });
        let split = self.split_polled(color, key, &mut ended);
        split.inspect_err(|_| self.abort()).map_err(Refused::into_fault)
    }

    fn split_polled(
        &self,
        color: Option<c_int>,
        key: c_int,
        ended: &mut dyn FnMut() -> Option<Fault>,
    ) -> Called<Option<Self>> {
        // NCCL may write the new handle in the background, at any time until the parent's work is done. Where
        // nobody waits for that any longer, the place for the handle is never freed.
        let place = Box::into_raw(Box::new(std::ptr::null_mut()));
        let mut config = ncclConfig_t::nonblocking();
        let result = self.within(|parent| {
            let color = color.unwrap_or(sys::NCCL_SPLIT_NOCOLOR);
            // SAFETY: a live communicator, a place that lives on, settings that are copied.
            unsafe { self.nccl.functions().ncclCommSplit(parent, color, key, place, &mut config) }
        })?;
        self.nccl.check("ncclCommSplit", result)?;
        self.wait_async_done(ended)?;
        // SAFETY: made above; NCCL is done with it.
        let raw: sys::ncclComm_t = *unsafe { Box::from_raw(place) };
        match (color, raw.is_null()) {
            (None, _) => Ok(None),
            (Some(_), true) => Err(self.nccl.none("ncclCommSplit").into()),
            (Some(_), false) => Self::finished(self.nccl, &self.device, raw, ended).map(Some),
        }
    }

    /// The caller's number among the members.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of members.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Runs `call` with the handle and the device's context, while no other thread uses the communicator.
    pub(super) fn within<T>(&self, call: impl FnOnce(sys::ncclComm_t) -> T) -> Called<T> {
        let state = self.handle.state();
        let State::Open(Raw(raw)) = *state else { return Err(self.gone()) };
        within(&self.device, || call(raw))
    }

    /// Why there is no handle any more.
    fn gone(&self) -> Refused {
        let (problem, fix) = match (self.borrowed, &self.nccl.functions().ncclCommRevoke) {
            (false, _) => ("the communicator of NCCL was aborted".into(), "rebuild the head on every rank"),
            (true, Ok(_)) => (
                "the engine's communicator of NCCL was revoked".into(),
                "destroy it on every rank, and make communicator, exchange and heads anew",
            ),
            (true, Err(_)) => (
                format!(
                    "a fault has met the engine's communicator, which is not ended: NCCL {} has no \
                     ncclCommRevoke, and what was queued stays on its stream",
                    self.nccl.version()
                ),
                "end it by ncclCommAbort on every rank before the heads are dropped, which wait for their \
                 streams; then make communicator, exchange and heads anew",
            ),
        };
        Refused::Fault(Fault::Broken { problem, fix: fix.into() })
    }

    /// What the engine must still do about its own communicator after a fault, where nothing here can end it.
    pub(super) fn unended(&self) -> Option<Fault> {
        let unended = self.is_the_engines_to_end() && matches!(*self.handle.state(), State::Ending);
        unended.then(|| self.gone().into_fault())
    }

    /// Whether it is the engine's, and NCCL cannot stop it without destroying it.
    fn is_the_engines_to_end(&self) -> bool {
        self.borrowed && self.nccl.functions().ncclCommRevoke.is_err()
    }

    /// The member's number and how many there are; checks the device.
    fn place(&self) -> Called<(usize, usize)> {
        let functions = self.nccl.functions();
        type Ask = unsafe fn(&sys::Library, sys::ncclComm_t, *mut c_int) -> sys::ncclResult_t;
        let ask = |name: &'static str, ask: Ask| {
            let mut answer: c_int = 0;
            // SAFETY: a live communicator and a place for the answer.
            let result = self.within(|raw| unsafe { ask(functions, raw, &mut answer) })?;
            self.nccl.check(name, result)?;
            Ok::<_, Refused>(answer)
        };
        let device = ask("ncclCommCuDevice", sys::Library::ncclCommCuDevice)?;
        let (memory, own) = (self.device.memory(), Memory::Device(u32::try_from(device).unwrap_or(u32::MAX)));
        if memory != own {
            return Err(Refused::Fault(Fault::Broken {
                problem: format!("wanted a communicator of {memory}, got one of {own}"),
                fix: "make the communicator and the backend on one device".into(),
            }));
        }
        let rank = ask("ncclCommUserRank", sys::Library::ncclCommUserRank)?;
        let size = ask("ncclCommCount", sys::Library::ncclCommCount)?;
        Ok((usize::try_from(rank).unwrap_or(usize::MAX), usize::try_from(size).unwrap_or(0)))
    }

    /// How far the last call has come.
    ///
    /// # Errors
    /// The error that the communicator has met, also in work that runs on the device.
    pub(super) fn progress(&self) -> Called<Progress> {
        let state = self.handle.state();
        let State::Open(Raw(raw)) = *state else { return Err(self.gone()) };
        let mut answer = sys::ncclSuccess;
        // SAFETY: a live communicator and a place for the answer. It asks no device.
        let result = unsafe { self.nccl.functions().ncclCommGetAsyncError(raw, &mut answer) };
        self.nccl.check_of("ncclCommGetAsyncError", result, raw)?;
        self.nccl.check_of("a communicator", answer, raw)?;
        Ok(if answer == sys::ncclInProgress { Progress::Going } else { Progress::Done })
    }

    /// Waits until the last call's background work is done, or `ended` says why nobody waits any longer.
    pub(super) fn wait_async_done(&self, ended: &mut dyn FnMut() -> Option<Fault>) -> Called<()> {
        let began = Instant::now();
        while self.progress()? == Progress::Going {
            if let Some(fault) = ended() {
                return Err(Refused::Fault(fault));
            }
            crate::exchange::pause(began);
        }
        Ok(())
    }

    /// Queues a group of operations: `queue` names them, and none of them begins before the last is named.
    /// The work goes on in the background: see [`Communicator::wait_async_done`].
    pub(super) fn group(
        &self,
        stream: Stream,
        queue: impl FnOnce(&Group) -> std::result::Result<(), Failed>,
    ) -> Called<()> {
        let functions = self.nccl.functions();
        self.within(|raw| {
            // SAFETY: the thread's own group, which ends below whatever happens between.
            self.nccl.check_of("ncclGroupStart", unsafe { functions.ncclGroupStart() }, raw)?;
            let queued = queue(&Group { nccl: self.nccl, raw, stream: stream.raw() as sys::cudaStream_t });
            // SAFETY: the group that was begun above.
            let ended = self.nccl.check_of("ncclGroupEnd", unsafe { functions.ncclGroupEnd() }, raw);
            queued.and(ended).map_err(Refused::from)
        })?
    }

    /// Ends everything that the communicator does on this rank, in a thread, since NCCL takes its time. An
    /// engine's communicator is revoked; where NCCL cannot do that, it is used no more. Idempotent; never
    /// waits.
    pub fn abort(&self) {
        if self.is_the_engines_to_end() {
            self.handle.take(State::Ending);
            return;
        }
        let (functions, borrowed) = (self.nccl.functions(), self.borrowed);
        self.end("lmhead-abort", move |raw| {
            // The result changes nothing.
            if !borrowed {
                // SAFETY: a live communicator, which is never used again.
                let _ = unsafe { functions.ncclCommAbort(raw) };
            } else if let Ok(revoke) = &functions.ncclCommRevoke {
                // SAFETY: a live communicator, which the engine destroys.
                let _ = unsafe { revoke(raw, sys::NCCL_REVOKE_DEFAULT as c_int) };
            }
        });
    }

    /// Destroys the communicator, in a thread. Peers still get what was sent to them before.
    fn destroy(&self) {
        let (functions, device) = (self.nccl.functions(), Arc::clone(&self.device));
        let handle = Arc::clone(&self.handle);
        self.end("lmhead-destroy", move |raw| {
            // The result changes nothing: without the context the communicator stays.
            let _ = within(&device, || {
                // Without the lock, which a window that is dropped meanwhile takes.
                let windows = std::mem::take(&mut *handle.left());
                windows.iter().for_each(|window| window.deregister(functions, raw));
                handle.left().extend(windows);
                finalize_and_destroy(functions, raw);
            });
        });
    }

    /// Ends the communicator by `end` in a thread of that name, unless it has been ended before. Never waits.
    fn end(&self, name: &str, end: impl FnOnce(sys::ncclComm_t) + Send + 'static) {
        let State::Open(raw) = self.handle.take(State::Ending) else { return };
        // No other thread is inside NCCL with it: each of them held the lock, and finds no handle from now
        // on.
        let (handle, functions) = (Arc::clone(&self.handle), self.nccl.functions());
        let run = move || {
            let Raw(raw) = { raw };
            end(raw);
            let free_left = || {
                let all = std::mem::take(&mut *handle.left());
                all.into_iter().for_each(|left| left.free(functions));
            };
            // Before others see the end; and again, for windows that were dropped meanwhile.
            free_left();
            handle.take(State::Ended);
            free_left();
            handle.ended.notify_all();
        };
        // Without a thread nothing can end it: who waits for its end reports that at the deadline.
        let _ = std::thread::Builder::new().name(name.into()).spawn(run);
    }

    /// Waits until the communicator has been aborted or destroyed; false where that takes longer, or is the
    /// engine's to do.
    pub(super) fn await_end(&self, until: Instant) -> bool {
        if self.is_the_engines_to_end() {
            return false;
        }
        let mut state = self.handle.state();
        while !matches!(*state, State::Ended) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.handle.ended.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Handle {
    fn state(&self) -> MutexGuard<'_, State> {
        // Where the lock is poisoned the state is still good: each write to it is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, Vec<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a dropped window until the communicator has ended, which frees it; returns one that comes later.
    pub(super) fn leave(&self, window: Left) -> Option<Left> {
        let state = self.state();
        if matches!(*state, State::Ended) {
            return Some(window);
        }
        self.left().push(window);
        None
    }

    /// Moves to state `next`, unless that would go back; returns the state before.
    fn take(&self, next: State) -> State {
        let mut state = self.state();
        match (*state, next) {
            (State::Open(_), _) | (State::Ending, State::Ended) => std::mem::replace(&mut *state, next),
            (State::Ending | State::Ended, _) => *state,
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.maker.is_here() {
            return;
        }
        if self.borrowed {
            // The engine may destroy it from now on, so a thread that revokes it must be through.
            if matches!(*self.handle.state(), State::Ending) {
                self.await_end(Instant::now() + ABORT_GRACE);
            }
            return;
        }
        // Without a fault it is destroyed, which lets peers take what was sent to them; otherwise it is
        // aborted.
        match self.progress() {
            Ok(Progress::Done) => self.destroy(),
            _ => self.abort(),
        }
        // What takes longer is left to its thread: peers that drop theirs late, graphs that hold collectives.
        self.await_end(Instant::now() + ABORT_GRACE);
    }
}

/// Ends a communicator whose operations have ended well. Waits for the peers' communicators, and for graphs
/// that have captured its collectives: NCCL blocks in `ncclCommDestroy` also where communicators do not
/// block.
fn finalize_and_destroy(functions: &sys::Library, raw: sys::ncclComm_t) {
    let began = Instant::now();
    // SAFETY: a live communicator, which nobody else uses any more; the same below.
    let mut result = unsafe { functions.ncclCommFinalize(raw) };
    while matches!(result, sys::ncclSuccess | sys::ncclInProgress) {
        let mut state = sys::ncclSuccess;
        // SAFETY: as above, and a place for the answer.
        let asked = unsafe { functions.ncclCommGetAsyncError(raw, &mut state) };
        result = if asked == sys::ncclSuccess { state } else { asked };
        if result == sys::ncclSuccess {
            // SAFETY: as above. It is never used again.
            let _ = unsafe { functions.ncclCommDestroy(raw) };
            return;
        }
        // Peers may come much later: polls more and more rarely.
        let pause = began.elapsed() / 16;
        std::thread::sleep(pause.clamp(Duration::from_micros(50), Duration::from_millis(10)));
    }
    // SAFETY: as above. A communicator with an error is not destroyed but aborted.
    let _ = unsafe { functions.ncclCommAbort(raw) };
}

/// Names the operations of a group.
pub(super) struct Group {
    nccl: Nccl,
    raw: sys::ncclComm_t,
    stream: sys::cudaStream_t,
}

/// NCCL moves bytes as they are.
const BYTES: sys::ncclDataType_t = sys::ncclUint8;

impl Group {
    pub fn send(&self, piece: Piece, to: usize) -> std::result::Result<(), Failed> {
        let (Group { nccl, raw, stream }, address) = (self, piece.address as *const c_void);
        // SAFETY: a live communicator, a stream of its device, and a piece that the caller of the collective
        // promises to keep; the same below.
        let result =
            unsafe { nccl.functions().ncclSend(address, piece.len, BYTES, to as c_int, *raw, *stream) };
        nccl.check_of("ncclSend", result, *raw)
    }

    pub fn recv(&self, piece: Piece, from: usize) -> std::result::Result<(), Failed> {
        let (Group { nccl, raw, stream }, address) = (self, piece.address as *mut c_void);
        // SAFETY: as above.
        let result =
            unsafe { nccl.functions().ncclRecv(address, piece.len, BYTES, from as c_int, *raw, *stream) };
        nccl.check_of("ncclRecv", result, *raw)
    }

    /// Everyone gets `to.len` bytes of `root`, which has them at `from`.
    pub fn broadcast(&self, from: u64, to: Piece, root: usize) -> std::result::Result<(), Failed> {
        let Group { nccl, raw, stream } = self;
        let (from, recv) = (from as *const c_void, to.address as *mut c_void);
        // SAFETY: as above.
        let result = unsafe {
            nccl.functions().ncclBroadcast(from, recv, to.len, BYTES, root as c_int, *raw, *stream)
        };
        nccl.check_of("ncclBroadcast", result, *raw)
    }

    /// Everyone gets what each sent, of one length, one behind the other from `to` on.
    pub fn all_gather(&self, send: Piece, to: u64) -> std::result::Result<(), Failed> {
        let Group { nccl, raw, stream } = self;
        let (from, recv) = (send.address as *const c_void, to as *mut c_void);
        // SAFETY: as above.
        let result = unsafe { nccl.functions().ncclAllGather(from, recv, send.len, BYTES, *raw, *stream) };
        nccl.check_of("ncclAllGather", result, *raw)
    }
}

/// Runs `call` on this thread with the device's context current: NCCL takes the device from there, and opens
/// a context on the first one where there is none.
pub(super) fn within<T>(device: &Arc<dyn StreamMarks>, call: impl FnOnce() -> T) -> Called<T> {
    let (mut call, mut answer) = (Some(call), None);
    device.with_context(&mut || answer = call.take().map(|call| call())).map_err(Refused::Fault)?;
    answer.ok_or_else(|| {
        Refused::Fault(Fault::Broken {
            problem: "the device ran nothing in its context".into(),
            fix: "report it: StreamMarks::with_context must run what it is given".into(),
        })
    })
}

/// A number as NCCL takes it. Larger ones are not cut: two could become one, and join ranks of two groups.
fn word(what: &str, number: usize) -> Called<c_int> {
    c_int::try_from(number).map_err(|_| {
        Refused::Fault(Fault::Broken {
            problem: format!("wanted a {what} of at most {}, got {number}: NCCL takes no larger", c_int::MAX),
            fix: format!("pass a smaller {what}"),
        })
    })
}

/// NCCL's environment overrides a communicator's own settings.
fn check_blocking() -> std::result::Result<(), Fault> {
    match std::env::var(BLOCKING) {
        Ok(value) if value.trim() != "0" => Err(Fault::Broken {
            problem: format!(
                "wanted {BLOCKING} unset or 0, got `{value}`: NCCL would wait without a deadline"
            ),
            fix: format!("unset {BLOCKING}"),
        }),
        _ => Ok(()),
    }
}

/// How long the end of a communicator may take before those who wait for it go on without it.
pub(super) const ABORT_GRACE: Duration = Duration::from_millis(500);
