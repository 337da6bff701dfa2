//! The heads that are on a device.

use super::KernelDevice;
use super::head::DeviceHead;
use crate::error::Result;
use crate::weights::HeadShard;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Heads that nobody prepared and that are kept nevertheless, the latest: their weights travel once, not with every call.
const UNPREPARED: usize = 4;

/// Heads by the number of their shard ([`HeadShard::number`]).
pub(super) struct Heads<D: KernelDevice> {
    /// Each lives as long as the [`Resident`](crate::backend::Resident) of its head.
    prepared: HashMap<u64, Weak<DeviceHead<D>>>,
    /// The latest one last.
    unprepared: VecDeque<(u64, Arc<DeviceHead<D>>)>,
}

impl<D: KernelDevice> Default for Heads<D> {
    fn default() -> Self {
        Heads { prepared: HashMap::new(), unprepared: VecDeque::new() }
    }
}

impl<D: KernelDevice> Heads<D> {
    /// The shard on the device, for its owner to keep.
    ///
    /// # Errors
    /// `Device` where memory is short.
    pub fn prepare(&mut self, device: &D, shard: &HeadShard) -> Result<Arc<DeviceHead<D>>> {
        self.prepared.retain(|_, head| head.strong_count() > 0);
        if let Some(head) = self.prepared.get(&shard.number()).and_then(Weak::upgrade) {
            return Ok(head);
        }
        let head = match self.take_unprepared(shard) {
            Some(head) => head,
            None => Arc::new(DeviceHead::new(device, shard)?),
        };
        self.prepared.insert(shard.number(), Arc::downgrade(&head));
        Ok(head)
    }

    /// The shard on the device: as it was prepared, or copied for an earlier call, or for this one.
    ///
    /// # Errors
    /// As [`Heads::prepare`].
    pub fn find(&mut self, device: &D, shard: &HeadShard) -> Result<Arc<DeviceHead<D>>> {
        if let Some(head) = self.prepared.get(&shard.number()).and_then(Weak::upgrade) {
            return Ok(head);
        }
        let head = match self.take_unprepared(shard) {
            Some(head) => head,
            None => Arc::new(DeviceHead::new(device, shard)?),
        };
        if self.unprepared.len() == UNPREPARED {
            self.unprepared.pop_front();
        }
        self.unprepared.push_back((shard.number(), Arc::clone(&head)));
        Ok(head)
    }

    fn take_unprepared(&mut self, shard: &HeadShard) -> Option<Arc<DeviceHead<D>>> {
        let at = self.unprepared.iter().position(|(number, _)| *number == shard.number())?;
        self.unprepared.remove(at).map(|(_, head)| head)
    }

    /// Gives up the heads that nobody prepared, for their memory; false where there are none. Calls that are under way keep theirs.
    pub fn give_up(&mut self) -> bool {
        let any = !self.unprepared.is_empty();
        self.unprepared.clear();
        any
    }
}
