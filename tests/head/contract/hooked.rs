//! An exchange with a hook, which can panic, wait, mix pieces up, or record the calls.

use super::*;
use lmhead::exchange::{Call, Fault, Place, Reset};

/// When a hook of an exchange runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    BeforeGather,
    AfterGather,
    BeforeExchange,
    AfterExchange,
    Abort,
    Reset,
}

/// Called with every call and with what has arrived.
pub type Hook = Arc<dyn Fn(When, &Call, &mut [&mut [u8]]) + Send + Sync>;

/// An exchange whose channels call a hook.
pub struct HookedExchange {
    pub inner: Arc<dyn Exchange>,
    pub hook: Hook,
}

/// `inner` with a hook, as heads take it.
pub fn hooked(
    inner: Arc<dyn Exchange>,
    hook: impl Fn(When, &Call, &mut [&mut [u8]]) + Send + Sync + 'static,
) -> Arc<dyn Exchange> {
    Arc::new(HookedExchange { inner, hook: Arc::new(hook) })
}

impl Exchange for HookedExchange {
    fn name(&self) -> &'static str {
        "hooked"
    }
    fn size(&self) -> usize {
        self.inner.size()
    }
    fn me(&self) -> usize {
        self.inner.me()
    }
    fn channel(&self, head: u32) -> std::result::Result<(u32, Arc<dyn Exchange>), Fault> {
        let (instance, inner) = self.inner.channel(head)?;
        Ok((instance, Arc::new(HookedExchange { inner, hook: Arc::clone(&self.hook) })))
    }
    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> std::result::Result<(), Fault> {
        (self.hook)(When::BeforeGather, call, recv);
        let done = self.inner.all_gather_v(call, members, send, recv);
        (self.hook)(When::AfterGather, call, recv);
        done
    }
    fn all_to_all_v(
        &self,
        call: &Call,
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
    ) -> std::result::Result<(), Fault> {
        (self.hook)(When::BeforeExchange, call, recv);
        let done = self.inner.all_to_all_v(call, send, recv);
        (self.hook)(When::AfterExchange, call, recv);
        done
    }
    fn note(&self, call: &Call) {
        self.inner.note(call);
    }
    fn places(&self) -> Vec<Option<Place>> {
        self.inner.places()
    }
    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        self.inner.places_elsewhere()
    }
    fn notify_abort(&self, call: &Call, reason: &str) {
        (self.hook)(When::Abort, call, &mut []);
        self.inner.notify_abort(call, reason);
    }
    fn reset(&self, call: &Call) -> std::result::Result<Reset, Fault> {
        (self.hook)(When::Reset, call, &mut []);
        self.inner.reset(call)
    }
}

/// A head with the test's weights and the given backend and exchange.
pub fn head_with(
    config: &HeadConfig,
    size: usize,
    me: usize,
    exchange: Arc<dyn Exchange>,
    backend: Arc<dyn Backend>,
) -> Result<LmHead> {
    let group = HeadGroup::data_parallel(size, me)?;
    let shard = test_head().shard(group.shard(200, me));
    LmHead::new(config, group, shard, exchange, backend)
}
