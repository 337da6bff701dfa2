//! A host transport and a device transport of the same members, as one exchange.

use super::{Call, DeviceExchange, Exchange, Fault, Place, Reset};
use std::sync::Arc;

/// Host memory, headers, notices and places go over `control`; device memory over `device`.
pub struct WithDevice {
    control: Arc<dyn Exchange>,
    device: Arc<dyn DeviceExchange>,
}

impl WithDevice {
    /// Joins the two sides of one member.
    pub fn new(control: Arc<dyn Exchange>, device: Arc<dyn DeviceExchange>) -> Self {
        WithDevice { control, device }
    }
}

impl Exchange for WithDevice {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn me(&self) -> usize {
        self.control.me()
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        let (instance, control) = self.control.channel(head)?;
        let device = self.device.channel(head, instance, &control)?;
        Ok((instance, Arc::new(WithDevice { control, device })))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        self.control.all_gather_v(call, members, send, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        self.control.all_to_all_v(call, send, recv)
    }

    fn note(&self, call: &Call) {
        self.control.note(call);
    }

    fn places(&self) -> Vec<Option<Place>> {
        self.control.places()
    }

    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        self.control.places_elsewhere()
    }

    fn release_memory(&self) {
        self.device.release_memory();
        self.control.release_memory();
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        self.control.pending_fault()
    }

    fn gone(&self) -> Vec<usize> {
        self.control.gone()
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        self.control.notify_abort(call, reason);
    }

    fn notify_fault(&self, call: &Call, fault: &Fault) {
        self.control.notify_fault(call, fault);
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        match self.control.reset(call)? {
            Reset::Done => self.device.reset(call, &*self.control),
            Reset::Reconnect => Ok(Reset::Reconnect),
        }
    }

    fn device(&self) -> Option<&dyn DeviceExchange> {
        Some(&*self.device)
    }
}
