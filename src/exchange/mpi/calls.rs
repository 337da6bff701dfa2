//! The calls of MPI, all under one lock: frames out, frames in, and what is on its way.

use crate::error::{Error, Result};
use crate::exchange::messages::{ReceiveBuffers, frame_id};
use ::mpi::environment;
use ::mpi::ffi::{self, MPI_Comm, MPI_Message, MPI_Request, MPI_Status};
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// MPI counts in C's int: a longer frame goes in parts.
const MOST_BYTES: usize = 1 << 30;

/// The message is a frame, or the last part of one.
const TAG_END: c_int = 1;
/// The message is a part of a frame, and more of them follow.
const TAG_PART: c_int = 2;

/// Frames taken from MPI at a time, so that a thread that sends need not wait for long.
const AT_ONCE: usize = 64;

/// Sends that MPI has not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingSends {
    pub count: usize,
    pub bytes: usize,
}

/// The library's own communicator of all processes of the job.
pub(super) struct World {
    rank: usize,
    size: usize,
    calls: Mutex<Calls>,
    /// Threads that want the lock: a thread that polls in a receive gives way to them.
    wanting: AtomicUsize,
}

struct Calls {
    comm: MPI_Comm,
    sending: Vec<Sending>,
    /// By rank, in the order in which MPI matched them, which is the order in which they were sent.
    receiving: Vec<VecDeque<Receiving>>,
    /// How many messages `receiving` has in all.
    receives: usize,
    /// By rank: the parts that have come of a frame that is not whole yet.
    parts: Vec<Vec<u8>>,
    /// By exchange, also for one that is not made here yet: whole frames with the rank that sent them.
    arrived: HashMap<u64, VecDeque<(usize, Vec<u8>)>>,
    /// Exchanges that are gone here: what still comes for them is dropped.
    closed: HashSet<u64>,
    buffers: ReceiveBuffers,
    /// Why nothing can be sent or received any more.
    broken: Option<String>,
}

// SAFETY: handles of MPI, which are used under the lock only; MPI allows that from any thread at the level
// that `Mpi::start` asks for.
unsafe impl Send for Calls {}

/// A message on its way out.
struct Sending {
    request: MPI_Request,
    /// MPI reads it until the request has completed.
    _frame: Arc<Vec<u8>>,
    bytes: usize,
    to: usize,
}

/// A message on its way in. MPI writes to the buffer until the request has completed.
struct Receiving {
    request: MPI_Request,
    bytes: Vec<u8>,
    is_end: bool,
}

impl Drop for Calls {
    fn drop(&mut self) {
        // MPI may still read and write the buffers of what is pending, up to the end of the process.
        std::mem::take(&mut self.sending).into_iter().for_each(std::mem::forget);
        std::mem::take(&mut self.receiving).into_iter().for_each(std::mem::forget);
    }
}

/// A status to be written by MPI.
fn status() -> MaybeUninit<MPI_Status> {
    MaybeUninit::zeroed()
}

/// MPI's text for an error code.
fn error_text(code: c_int) -> String {
    let mut text = [0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: the buffer is as long as MPI's longest text.
    let code_of_call = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut length) };
    let bytes: Vec<u8> = text.iter().take(length.max(0) as usize).map(|&c| c as u8).collect();
    match code_of_call {
        0 => String::from_utf8_lossy(&bytes).into_owned(),
        _ => format!("error code {code}"),
    }
}

impl World {
    /// Duplicates `MPI_COMM_WORLD`; errors on the duplicate are returned, not fatal. Collective.
    pub(super) fn duplicate() -> Result<Self> {
        let failed = |call: &str, code: c_int| Error::Exchange {
            operation: "start of MPI".into(),
            problem: format!("{call}: {}", error_text(code)),
            fix: "start the job anew; mpirun's own output may say more".into(),
        };
        let check = |call: &str, code: c_int| if code == 0 { Ok(()) } else { Err(failed(call, code)) };
        let mut comm = MaybeUninit::uninit();
        // SAFETY: MPI is initialised; it writes a communicator, or an error is returned before it is read.
        let comm = unsafe {
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, comm.as_mut_ptr()))?;
            comm.assume_init()
        };
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: the communicator was made above, and is never freed.
        unsafe {
            let returns = ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN);
            check("MPI_Comm_set_errhandler", returns)?;
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
        }
        let (rank, size) = (rank as usize, size as usize);
        let calls = Calls {
            comm,
            sending: Vec::new(),
            receiving: (0..size).map(|_| VecDeque::new()).collect(),
            receives: 0,
            parts: vec![Vec::new(); size],
            arrived: HashMap::new(),
            closed: HashSet::new(),
            buffers: ReceiveBuffers::default(),
            broken: None,
        };
        Ok(World { rank, size, calls: Mutex::new(calls), wanting: AtomicUsize::new(0) })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        // A panic inside would be of an allocation; MPI's own state is whole.
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        calls
    }

    /// Sends a frame to another process, in parts where it is long.
    pub(super) fn send(&self, to: usize, frame: Arc<Vec<u8>>) {
        self.lock().send(to, &frame, MOST_BYTES);
    }

    /// Moves messages that are on their way; true where something has come or gone.
    pub(super) fn progress(&self) -> bool {
        self.lock().progress()
    }

    /// Moves messages that are on their way, and adds the frames that have come for exchange `id` to `came`.
    /// Returns whether something has come or gone, for any exchange; and why nothing goes on, where that is
    /// so.
    pub(super) fn collect(&self, id: u64, came: &mut VecDeque<(usize, Vec<u8>)>) -> (bool, Option<String>) {
        if self.wanting.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        let mut calls = self.lock();
        let moved = calls.progress();
        if let Some(own) = calls.arrived.get_mut(&id) {
            came.append(own);
        }
        (moved, calls.broken.clone())
    }

    /// Forgets exchange `id`; no other will have its id.
    pub(super) fn close(&self, id: u64) {
        let mut calls = self.lock();
        calls.closed.insert(id);
        for (_, bytes) in calls.arrived.remove(&id).into_iter().flatten() {
            calls.buffers.give_back(bytes);
        }
    }

    pub(super) fn give_back(&self, bytes: Vec<u8>) {
        self.lock().buffers.give_back(bytes);
    }

    pub(super) fn release_memory(&self) {
        self.lock().buffers.release();
    }

    pub(super) fn pending_sends(&self) -> PendingSends {
        let calls = self.lock();
        let bytes = calls.sending.iter().map(|sending| sending.bytes).sum();
        PendingSends { count: calls.sending.len(), bytes }
    }
}

impl Calls {
    /// Records a call that has failed; returns whether it succeeded.
    fn check(&mut self, code: c_int, what: impl FnOnce() -> String) -> bool {
        if code != 0 {
            self.broken.get_or_insert_with(|| format!("{}: {}", what(), error_text(code)));
        }
        code == 0
    }

    /// Begins to send `frame`, no more than `most` bytes in a message.
    fn send(&mut self, to: usize, frame: &Arc<Vec<u8>>, most: usize) {
        if !self.is_open() {
            return;
        }
        let parts = frame.len().div_ceil(most);
        for (i, part) in frame.chunks(most).enumerate() {
            let tag = if i + 1 == parts { TAG_END } else { TAG_PART };
            let mut request = MaybeUninit::uninit();
            // SAFETY: the part lies in a vector that nobody changes while an `Arc` of it is kept: here, until
            // the request has completed. Its length and the rank fit a C int.
            let code = unsafe {
                ffi::MPI_Isend(
                    part.as_ptr().cast(),
                    part.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    to as c_int,
                    tag,
                    self.comm,
                    request.as_mut_ptr(),
                )
            };
            if !self.check(code, || format!("MPI_Isend to rank {to}")) {
                return;
            }
            // SAFETY: written by the call, which succeeded.
            let mut request = unsafe { request.assume_init() };
            // Short messages have often gone out already.
            if !self.is_complete(&mut request, || format!("sending to rank {to}")) {
                let sending = Sending { request, _frame: Arc::clone(frame), bytes: part.len(), to };
                self.sending.push(sending);
            }
        }
    }

    /// Whether a request has completed.
    fn is_complete(&mut self, request: &mut MPI_Request, what: impl FnOnce() -> String) -> bool {
        let (mut done, mut status): (c_int, _) = (0, status());
        // SAFETY: a request that was begun and has not completed.
        let code = unsafe { ffi::MPI_Test(request, &mut done, status.as_mut_ptr()) };
        self.check(code, what) && done != 0
    }

    /// Whether MPI may be called: an engine may have finalised it.
    fn is_open(&mut self) -> bool {
        if self.broken.is_none() && environment::is_finalized() {
            self.broken = Some("MPI has been finalised".into());
        }
        self.broken.is_none()
    }

    /// Moves messages that are on their way; true where something has come or gone.
    fn progress(&mut self) -> bool {
        if !self.is_open() {
            return false;
        }
        let mut moved = self.match_messages();
        if self.receives > 0 {
            for rank in 0..self.receiving.len() {
                moved |= self.take_received(rank);
            }
        }
        let mut i = 0;
        while i < self.sending.len() {
            let Sending { mut request, to, .. } = self.sending[i];
            if self.is_complete(&mut request, || format!("sending to rank {to}")) {
                drop(self.sending.swap_remove(i));
                moved = true;
            } else {
                i += 1;
            }
        }
        moved
    }

    /// Begins to receive the messages that have arrived.
    fn match_messages(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..AT_ONCE {
            let (mut found, mut message, mut about): (c_int, MaybeUninit<MPI_Message>, _) =
                (0, MaybeUninit::uninit(), status());
            // SAFETY: places for what MPI writes.
            let code = unsafe {
                ffi::MPI_Improbe(
                    ffi::RSMPI_ANY_SOURCE,
                    ffi::RSMPI_ANY_TAG,
                    self.comm,
                    &mut found,
                    message.as_mut_ptr(),
                    about.as_mut_ptr(),
                )
            };
            if !self.check(code, || "MPI_Improbe".into()) || found == 0 {
                break;
            }
            let mut count: c_int = 0;
            // SAFETY: a message was found, so that both places were written.
            let (about, mut message) = unsafe { (about.assume_init(), message.assume_init()) };
            // SAFETY: the status of the message that was found.
            let code = unsafe { ffi::MPI_Get_count(&about, ffi::RSMPI_UINT8_T, &mut count) };
            let (from, is_end) = (about.MPI_SOURCE as usize, about.MPI_TAG == TAG_END);
            if !self.check(code, || format!("MPI_Get_count of a message of rank {from}")) {
                break;
            }
            let Some(mut bytes) = self.buffers.take(count.max(0) as usize) else {
                self.broken =
                    Some(format!("there is no memory for a message of {count} bytes of rank {from}"));
                break;
            };
            let mut request = MaybeUninit::uninit();
            // SAFETY: the buffer is as long as the message, and is kept until the request has completed; a
            // vector that moves keeps its bytes where they are.
            let code = unsafe {
                ffi::MPI_Imrecv(
                    bytes.as_mut_ptr().cast(),
                    count,
                    ffi::RSMPI_UINT8_T,
                    &mut message,
                    request.as_mut_ptr(),
                )
            };
            if !self.check(code, || format!("MPI_Imrecv from rank {from}")) {
                break;
            }
            // SAFETY: written by the call, which succeeded.
            let request = unsafe { request.assume_init() };
            self.receiving[from].push_back(Receiving { request, bytes, is_end });
            self.receives += 1;
            moved = true;
        }
        moved
    }

    /// Takes what has come from `rank`, in order.
    fn take_received(&mut self, rank: usize) -> bool {
        let mut moved = false;
        while let Some(first) = self.receiving[rank].front() {
            let mut request = first.request;
            if !self.is_complete(&mut request, || format!("receiving from rank {rank}")) {
                break;
            }
            let Some(Receiving { bytes, is_end, .. }) = self.receiving[rank].pop_front() else { break };
            self.receives -= 1;
            moved = true;
            let parts = &mut self.parts[rank];
            let frame = match (is_end, parts.is_empty()) {
                (true, true) => bytes,
                (is_end, _) => {
                    parts.extend_from_slice(&bytes);
                    self.buffers.give_back(bytes);
                    if !is_end {
                        continue;
                    }
                    std::mem::take(parts)
                }
            };
            match frame_id(&frame) {
                Some(id) if self.closed.contains(&id) => self.buffers.give_back(frame),
                Some(id) => self.arrived.entry(id).or_default().push_back((rank, frame)),
                None => {
                    self.broken.get_or_insert_with(|| {
                        format!("rank {rank} sends what is no message of this version of lmhead")
                    });
                }
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::mpi::environment::Threading;
    use std::time::{Duration, Instant};

    /// A process that no launcher has started is a job of one, which may send to itself. MPI is initialised
    /// once in a process: no other test of this program may do so.
    #[test]
    fn long_frames_go_in_parts_and_what_is_no_frame_breaks_the_job_by_name() {
        let universe = ::mpi::initialize_with_threading(Threading::Serialized).unwrap();
        // Not finalised at the end of this thread: others outlive it.
        std::mem::forget(universe);
        let world = World::duplicate().unwrap();
        assert_eq!((world.rank(), world.size()), (0, 1));
        let frame = |id: u64, length: usize| {
            let mut words = [0; 64];
            words[4..8].copy_from_slice(b"lmh1");
            words[8..16].copy_from_slice(&id.to_le_bytes());
            let bytes = words.into_iter().chain((0..length).map(|i| (i * 7 + id as usize) as u8));
            Arc::new(bytes.collect::<Vec<u8>>())
        };
        let sent: Vec<_> =
            [(5, 0), (6, 35), (5, 36), (5, 1000), (6, 100_000)].map(|(id, n)| frame(id, n)).into();
        for frame in &sent {
            // In parts of 100 bytes: one part, exactly one, two, and many.
            world.lock().send(0, frame, 100);
        }
        let (mut of_5, mut of_6) = (VecDeque::new(), VecDeque::new());
        let began = Instant::now();
        while of_5.len() + of_6.len() < sent.len() {
            assert!(began.elapsed() < Duration::from_secs(20), "{} and {} have come", of_5.len(), of_6.len());
            world.collect(5, &mut of_5);
            assert_eq!(world.collect(6, &mut of_6).1, None);
        }
        let whole = |came: VecDeque<(usize, Vec<u8>)>| came.into_iter().map(|(_, bytes)| bytes);
        assert!(whole(of_5).eq([&sent[0], &sent[2], &sent[3]].map(|frame| frame.to_vec())));
        assert!(whole(of_6).eq([&sent[1], &sent[4]].map(|frame| frame.to_vec())));
        while world.pending_sends() != PendingSends::default() {
            world.progress();
        }
        assert!(sent.iter().all(|frame| Arc::strong_count(frame) == 1), "none is kept longer than needed");

        // What comes for an exchange that is gone is not kept.
        let arrived = |id: u64| world.lock().arrived.contains_key(&id);
        world.send(0, frame(6, 10));
        while !(world.progress() && world.lock().arrived[&6].len() == 1) {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        world.close(6);
        world.send(0, frame(6, 10));
        world.send(0, frame(7, 10));
        while !arrived(7) {
            world.progress();
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        assert!(!arrived(6));

        world.send(0, Arc::new(vec![1; 64]));
        let broken = loop {
            if let (_, Some(broken)) = world.collect(5, &mut VecDeque::new()) {
                break broken;
            }
            assert!(began.elapsed() < Duration::from_secs(20));
        };
        assert!(broken.contains("rank 0 sends what is no message"), "{broken}");
    }
}
