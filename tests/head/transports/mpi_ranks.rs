//! Ranks that `mpirun` starts.

use lmhead::exchange::Exchange;
use std::sync::Arc;

/// The exchange of all processes that `mpirun` has started.
#[cfg(feature = "mpi")]
pub fn join_mpi(size: usize) -> Arc<dyn Exchange> {
    let mpi = lmhead::exchange::mpi::Mpi::start().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(mpi.size(), size);
    let everyone: Vec<usize> = (0..size).collect();
    // Not finalised when dropped: the ranks end as after a fault.
    Arc::new(mpi.exchange(&everyone).unwrap_or_else(|error| panic!("{error}")))
}

#[cfg(not(feature = "mpi"))]
pub fn join_mpi(_: usize) -> Arc<dyn Exchange> {
    panic!("a test that starts mpirun is built with the feature mpi")
}
