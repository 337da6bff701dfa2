//! Ends a step from another thread than the one that waits in it.

use super::LmHead;
use crate::exchange::{Call, Exchange, Fault, Operation};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Ends the step of a head, from any thread: for shutting down. It may outlive the head.
#[derive(Clone)]
pub struct AbortHandle(Arc<Shared>);

struct Shared {
    /// The head's exchange. Weak: a handle that outlives the head keeps no channel open.
    exchange: Weak<dyn Exchange>,
    state: Mutex<State>,
}

struct State {
    /// The call of the step under way, or of the last one.
    call: Call,
    /// Reason of an abort that the head has not noticed yet.
    aborted: Option<String>,
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortHandle")
    }
}

impl AbortHandle {
    pub(super) fn new(exchange: &Arc<dyn Exchange>, call: Call) -> Self {
        let exchange = Arc::downgrade(exchange);
        AbortHandle(Arc::new(Shared { exchange, state: Mutex::new(State { call, aborted: None }) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Where the lock is poisoned the state is still good: each write to it is whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call of the step under way, or of the last one.
    pub(super) fn call(&self) -> Call {
        self.state().call
    }

    /// Ends the step or rebuilding under way on this rank and, as far as the transport can, on its peers: the
    /// call there returns `StepMismatch` with the reason. A head of one rank, which waits for nobody,
    /// completes its step. The head refuses steps from then on, until it is rebuilt. A matmul that runs is
    /// not cut short. Never blocks.
    pub fn abort(&self, reason: &str) {
        // Under the lock: otherwise the notice could reach a head that was rebuilt in the meantime.
        let mut state = self.state();
        state.aborted.get_or_insert_with(|| reason.into());
        let Some(exchange) = self.0.exchange.upgrade() else { return };
        if exchange.size() > 1 {
            let reason = format!("was told to end the step: {reason}");
            exchange.notify_abort(&state.call, &reason);
            if let Some(device) = exchange.device() {
                device.abort(&Fault::Aborted { member: exchange.me(), reason });
            }
        }
    }
}

impl LmHead {
    /// A handle that ends this head's steps from other threads.
    pub fn abort_handle(&self) -> AbortHandle {
        self.aborts.clone()
    }

    /// Sets the call of a step or a rebuilding that an abort ends from now on.
    pub(super) fn tell_aborts(&self, call: &Call) {
        self.aborts.state().call = *call;
    }

    /// Poisons the head if an abort was asked for, and tells the peers, which may not know of it.
    pub(super) fn notice_abort(&mut self) {
        let aborted = self.aborts.state().aborted.take();
        if let (Some(reason), None) = (aborted, &self.poisoned) {
            let call = self.wire.open.call(Operation::Idle);
            self.give_up(&call, &format!("was told to end its steps: {reason}"));
        }
    }

    /// Forgets an abort that came before a rebuilding; one that comes from now on ends the rebuilding.
    pub(super) fn forget_abort(&mut self, call: &Call) {
        let mut state = self.aborts.state();
        (state.aborted, state.call) = (None, *call);
    }
}
