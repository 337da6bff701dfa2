//! Mutexes that a panic leaves usable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what is whole at any moment, also after a panic of another thread: nothing that can panic runs under
/// these locks with the state half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
