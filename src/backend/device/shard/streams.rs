//! The streams of a shard's calls: which work still uses its own memory, and who waits for that.

use super::{DeviceShard, KernelDevice};
use crate::backend::On;
use crate::error::{Error, Result};

impl<D: KernelDevice> DeviceShard<D> {
    /// The stream of a call.
    pub(super) fn stream_of(&self, on: &On<'_>) -> Result<D::Stream> {
        self.common.maker.check("the device backend")?;
        Ok(match on.stream {
            stream if stream.is_none() => self.common.device.on(&self.stream),
            // SAFETY: the promise of whoever made the handle.
            stream => unsafe { self.common.device.stream_from(stream) },
        })
    }

    /// The stream of a call that uses the shard's own memory. `own_memory`: its host memory is about to be
    /// written.
    pub(in super::super) fn begin(&mut self, on: &On<'_>, own_memory: bool) -> Result<D::Stream> {
        let stream = self.stream_of(on)?;
        let device = &self.common.device;
        if let Some(pending) = self.pending
            && (own_memory || pending != device.handle(stream))
        {
            if self.capturing {
                return Err(waits_in_a_graph());
            }
            device.wait_for(&self.used)?;
            self.pending = None;
        }
        self.queued = true;
        Ok(stream)
    }

    /// Waits for the stream.
    pub(in super::super) fn synchronize(&mut self, stream: D::Stream) -> Result<()> {
        if self.capturing {
            return Err(waits_in_a_graph());
        }
        self.common.device.record(&self.used, stream)?;
        self.common.device.wait_for(&self.used)?;
        (self.pending, self.queued) = (None, false);
        Ok(())
    }

    /// Ends a call: waits for it where `wait`, or where the caller has no stream; otherwise remembers its
    /// end.
    pub(in super::super) fn end(&mut self, on: &On<'_>, stream: D::Stream, wait: bool) -> Result<()> {
        if !self.queued {
            return Ok(());
        }
        if wait || on.stream.is_none() {
            return self.synchronize(stream);
        }
        if self.capturing {
            // Whoever replays the graph says when its work has ended.
            return Ok(());
        }
        self.common.device.record(&self.used, stream)?;
        self.pending = Some(self.common.device.handle(stream));
        Ok(())
    }

    /// Returns `done`. Where it failed, waits until nothing that was queued uses anybody's memory; in a step
    /// that defers its waits the head sees to that.
    pub(in super::super) fn synchronize_on_error<T>(
        &mut self,
        stream: D::Stream,
        done: Result<T>,
    ) -> Result<T> {
        if done.is_err() && !self.deferring {
            drop(self.synchronize(stream));
        }
        done
    }

    /// Queues what uses the caller's memory alone: on the caller's stream nothing is waited for or
    /// remembered.
    pub(in super::super) fn only_on(
        &mut self,
        on: &On<'_>,
        queue: impl FnOnce(&mut Self, D::Stream) -> Result<()>,
    ) -> Result<()> {
        let stream = self.stream_of(on)?;
        let done = queue(self, stream);
        self.synchronize_on_error(stream, done)?;
        if on.stream.is_none() { self.synchronize(stream) } else { Ok(()) }
    }

    pub(super) fn wait_for_pending(&mut self) -> Result<()> {
        if self.pending.is_some() {
            self.common.device.wait_for(&self.used)?;
            self.pending = None;
        }
        Ok(())
    }
}

impl<D: KernelDevice> Drop for DeviceShard<D> {
    /// Frees its memory once nothing uses it any more.
    fn drop(&mut self) {
        if self.common.maker.is_here() {
            drop(self.wait_for_pending());
        }
    }
}

fn waits_in_a_graph() -> Error {
    Error::Device {
        what: "a step that is captured in a graph".into(),
        problem: "it would wait on the host, for its inputs in host memory or for a step on another stream"
            .into(),
        fix: "put all inputs in device memory, and capture on the stream of the steps before".into(),
    }
}
