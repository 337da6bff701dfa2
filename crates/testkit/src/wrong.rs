//! Transports that are wrong on purpose: each wraps a correct one.

use lmhead::exchange::{Call, Exchange, Fault, Operation, Place, Reset};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// all_gather delivers the members' pieces in another order (nccl#1906).
    GatherOrder,
    /// all_to_all delivers one peer's piece as another's.
    PieceOrder,
    /// all_to_all delivers an empty piece in place of the one after it.
    PieceAfterEmpty,
    /// all_to_all loses the last byte of every piece.
    LastByte,
    /// Every operation begins this many milliseconds late.
    Slow(u64),
    /// This operation panics.
    PanicIn(Operation),
    /// Saying that this member is in this operation panics.
    PanicInPlace(Operation),
    /// This operation panics, and so does every notice.
    PanicInAbort(Operation),
    /// The process is killed at this moment of this operation.
    Kill(Moment, Operation),
}

/// When a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the process sends anything.
    Before,
    /// While it waits for a peer that is late.
    Inside,
    /// When it has heard all peers.
    After,
}

/// Ends this process by SIGKILL: no code of it runs any more, and nobody is told.
fn kill_this_process() -> ! {
    let pid = std::process::id().to_string();
    let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// How long a process waits inside an operation before it is killed there.
const INSIDE: Duration = Duration::from_millis(50);

/// A transport with a mistake, which may be switched on later.
pub struct WrongExchange {
    inner: Arc<dyn Exchange>,
    wrong: Wrong,
    on: Arc<AtomicBool>,
}

impl WrongExchange {
    pub fn new(inner: Arc<dyn Exchange>, wrong: Wrong) -> Self {
        WrongExchange { inner, wrong, on: Arc::new(AtomicBool::new(true)) }
    }

    /// A transport that is correct until the returned switch is set.
    pub fn later(inner: Arc<dyn Exchange>, wrong: Wrong) -> (Self, Arc<AtomicBool>) {
        let on = Arc::new(AtomicBool::new(false));
        (WrongExchange { inner, wrong, on: Arc::clone(&on) }, on)
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong && self.on.load(Ordering::SeqCst)
    }

    /// The mistakes at the beginning of an operation.
    fn begin(&self, operation: Operation) {
        if let Wrong::Slow(ms) = self.wrong
            && self.on.load(Ordering::SeqCst)
        {
            std::thread::sleep(Duration::from_millis(ms));
        }
        if self.is(Wrong::PanicIn(operation)) || self.is(Wrong::PanicInAbort(operation)) {
            std::panic::resume_unwind(Box::new("a transport's bug"));
        }
        if self.is(Wrong::Kill(Moment::Before, operation)) {
            kill_this_process();
        }
        if self.is(Wrong::Kill(Moment::Inside, operation)) {
            std::thread::spawn(|| {
                std::thread::sleep(INSIDE);
                kill_this_process()
            });
        }
    }

    /// The mistakes at the end of an operation.
    fn end(&self, operation: Operation) {
        if self.is(Wrong::Kill(Moment::After, operation)) {
            kill_this_process();
        }
    }
}

/// Buffers as long as the pieces of `recv`, for what arrives.
fn pieces(recv: &[&mut [u8]]) -> Vec<Vec<u8>> {
    recv.iter().map(|piece| vec![0; piece.len()]).collect()
}

/// Delivers `arrived[from(i)]` as piece i, cut or filled with zeros to its length.
fn deliver(arrived: &[Vec<u8>], recv: &mut [&mut [u8]], from: impl Fn(usize) -> usize) {
    for (i, piece) in recv.iter_mut().enumerate() {
        let bytes = &arrived[from(i)];
        let common = piece.len().min(bytes.len());
        piece[..common].copy_from_slice(&bytes[..common]);
        piece[common..].fill(0);
    }
}

impl Exchange for WrongExchange {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn me(&self) -> usize {
        self.inner.me()
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        let (instance, inner) = self.inner.channel(head)?;
        Ok((instance, Arc::new(WrongExchange { inner, wrong: self.wrong, on: Arc::clone(&self.on) })))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        self.begin(call.operation);
        if !self.is(Wrong::GatherOrder) {
            let result = self.inner.all_gather_v(call, members, send, recv);
            self.end(call.operation);
            return result;
        }
        let mut arrived = pieces(recv);
        let mut slices: Vec<&mut [u8]> = arrived.iter_mut().map(Vec::as_mut_slice).collect();
        let result = self.inner.all_gather_v(call, members, send, &mut slices);
        let count = arrived.len();
        deliver(&arrived, recv, |i| (i + 1) % count);
        result
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        self.begin(call.operation);
        let mut arrived = pieces(recv);
        let mut slices: Vec<&mut [u8]> = arrived.iter_mut().map(Vec::as_mut_slice).collect();
        let result = self.inner.all_to_all_v(call, send, &mut slices);
        let (count, me) = (arrived.len(), self.inner.me());
        let next = |i: usize| (1..count).map(|step| (i + step) % count).find(|i| *i != me).unwrap_or(i);
        deliver(&arrived, recv, |i| {
            let moved = self.is(Wrong::PieceOrder) && i != me;
            let skipped = self.is(Wrong::PieceAfterEmpty) && i > 0 && arrived[i - 1].is_empty();
            match (moved, skipped) {
                (true, _) => next(i),
                (_, true) => i - 1,
                _ => i,
            }
        });
        if self.is(Wrong::LastByte) {
            recv.iter_mut().filter_map(|piece| piece.last_mut()).for_each(|byte| *byte = !*byte);
        }
        self.end(call.operation);
        result
    }

    fn note(&self, call: &Call) {
        if self.is(Wrong::PanicInPlace(call.operation)) {
            std::panic::resume_unwind(Box::new("a transport's bug"));
        }
        self.inner.note(call);
    }

    fn places(&self) -> Vec<Option<Place>> {
        self.inner.places()
    }

    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        self.inner.places_elsewhere()
    }

    fn release_memory(&self) {
        self.inner.release_memory();
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        self.inner.pending_fault()
    }

    fn gone(&self) -> Vec<usize> {
        self.inner.gone()
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        if matches!(self.wrong, Wrong::PanicInAbort(_)) && self.on.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("a transport's second bug"));
        }
        self.inner.notify_abort(call, reason);
    }

    fn notify_fault(&self, call: &Call, fault: &Fault) {
        self.inner.notify_fault(call, fault);
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        self.inner.reset(call)
    }
}
