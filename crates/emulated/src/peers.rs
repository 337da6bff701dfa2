//! Launches of kernels that wait for kernels of other ranks.

use super::buffer::Reachable;
use super::fault::Fault;
use super::launch::Prepared;
use super::run::{self, Marks, Order};

/// A launch of a kernel that waits for kernels of other ranks, which other threads launch on the same device
/// ([`Device::prepare_for_peers`](crate::Device::prepare_for_peers)).
pub struct PeerLaunch {
    launch: Prepared,
    memories: Vec<Reachable>,
    /// Marks of the launch before.
    before: Option<Marks>,
}

impl PeerLaunch {
    pub(super) fn new(launch: Prepared, memories: Vec<Reachable>, before: Option<Marks>) -> Self {
        PeerLaunch { launch, memories, before }
    }

    /// Runs the kernel to its end, every cluster on an OS thread of its own.
    ///
    /// # Errors
    /// As [`Device::launch_in_turn`](crate::Device::launch_in_turn). A fault ends this launch only: the other
    /// ranks' kernels end by the limits of their own waits.
    ///
    /// # Safety
    /// What the kernel writes to, nothing but kernels touches until it has ended; and what it reads, nothing
    /// but kernels writes to.
    pub unsafe fn run(mut self) -> Result<(), Fault> {
        run::run(&self.memories, &mut Vec::new(), &[self.launch], Order::InTurn(&mut self.before))
    }
}
