//! A backend that wraps another and tells a hook before each call: for tests that count calls or make one
//! fail.

use lmhead::backend::cuts::Cuts;
use lmhead::backend::{Ask, HeldLogits, Job, LoadedShard, On, Out, Pass};
use lmhead::backend::{Backend, HeadTypes};
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::finish::{self, Finish};
use lmhead::memory::{Allocation, Memory, SpanMut};
use lmhead::merge::PartialSpec;
use lmhead::reference::Accuracy;
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, ShardInfo};
use std::sync::Arc;

/// One call of a backend, of a loaded shard, or of held logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// `load`, `prepare`, `run`, `hold`, `pack` or `finish`; for held logits the pass: `target logits`,
    /// `partials`, `maxima`, `histograms`, `ties` or `candidates`.
    pub method: &'static str,
    /// Rows of the matmul, or rows that are held.
    pub rows: usize,
    /// Rows or queries of a pass; for other calls, the rows.
    pub entries: usize,
    /// Whether the rows have adjustments.
    pub adjusted: bool,
    /// What a matmul, or the pass `partials`, must compute.
    pub ask: Option<Ask>,
}

type Hook = Arc<dyn Fn(Asked) -> Result<()> + Send + Sync>;

/// Wraps `inner`: the hook is told of each call before it is made.
pub struct HookedBackend {
    inner: Arc<dyn Backend>,
    hook: Hook,
}

/// `inner` with a hook, as a backend for heads.
pub fn hooked(inner: Arc<dyn Backend>, hook: impl Fn(Asked) + Send + Sync + 'static) -> Arc<dyn Backend> {
    failing(inner, move |asked| {
        hook(asked);
        Ok(())
    })
}

/// As `hooked`, but the hook can refuse a call, which then fails with the hook's error and is not made.
pub fn failing(
    inner: Arc<dyn Backend>,
    hook: impl Fn(Asked) -> Result<()> + Send + Sync + 'static,
) -> Arc<dyn Backend> {
    Arc::new(HookedBackend { inner, hook: Arc::new(hook) })
}

/// A call without adjustments that is not a matmul.
fn plain(method: &'static str, rows: usize) -> Asked {
    Asked { method, rows, entries: rows, adjusted: false, ask: None }
}

/// What a shard is prepared for, to give `out`.
pub(crate) fn ask_of(out: &Out<'_>) -> Ask {
    match out {
        Out::Logits(logits) => Ask::Logits { dtype: logits.dtype },
        Out::Partials(spec, _) | Out::Counted { spec, .. } => Ask::Partials(*spec),
        Out::TargetLogits { per_row, .. } => {
            Ask::Partials(PartialSpec { k: 1, sum: false, targets: *per_row })
        }
        Out::Drawn(..) => Ask::Drawn,
    }
}

impl Backend for HookedBackend {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
    fn fingerprint(&self, types: HeadTypes) -> String {
        self.inner.fingerprint(types)
    }
    fn flushes_subnormals(&self, types: HeadTypes) -> bool {
        self.inner.flushes_subnormals(types)
    }
    fn accuracy(&self) -> Accuracy {
        self.inner.accuracy()
    }
    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        self.inner.check(shard, hidden)
    }
    fn load(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Box<dyn LoadedShard>> {
        (self.hook)(plain("load", 0))?;
        let inner = self.inner.load(shard, hidden)?;
        Ok(Box::new(HookedShard { inner, hook: Arc::clone(&self.hook), held_rows: 0 }))
    }
    fn allocate(&self, memory: Memory, bytes: usize, what: &str) -> Result<Box<dyn Allocation>> {
        self.inner.allocate(memory, bytes, what)
    }
}

/// A loaded shard, and the logits that it holds.
struct HookedShard {
    inner: Box<dyn LoadedShard>,
    hook: Hook,
    /// Rows of the held logits.
    held_rows: usize,
}

impl HookedShard {
    fn tell_product(&self, method: &'static str, job: &Job<'_>, ask: Ask) -> Result<()> {
        let adjusted = job.adjustments.is_some();
        (self.hook)(Asked { adjusted, ask: Some(ask), ..plain(method, job.rows.len()) })
    }
}

impl LoadedShard for HookedShard {
    fn info(&self) -> &ShardInfo {
        self.inner.info()
    }
    fn another(&self) -> Result<Box<dyn LoadedShard>> {
        let inner = self.inner.another()?;
        Ok(Box::new(HookedShard { inner, hook: Arc::clone(&self.hook), held_rows: 0 }))
    }
    fn workspace(&self, rows: usize, ask: Ask) -> Result<usize> {
        self.inner.workspace(rows, ask)
    }
    fn prepare(&mut self, rows: usize, ask: Ask) -> Result<()> {
        (self.hook)(Asked { ask: Some(ask), ..plain("prepare", rows) })?;
        self.inner.prepare(rows, ask)
    }
    fn counts_targets(&self) -> bool {
        self.inner.counts_targets()
    }
    fn run(&mut self, job: &Job<'_>, out: Out<'_>, on: &mut On<'_>) -> Result<()> {
        self.tell_product("run", job, ask_of(&out))?;
        self.inner.run(job, out, on)
    }
    fn hold<'h>(&'h mut self, job: &Job<'_>, raw: bool, on: &mut On<'h>) -> Result<&'h mut dyn HeldLogits> {
        self.tell_product("hold", job, Ask::Hold { raw })?;
        let mut on = On { stream: on.stream, workspace: on.workspace.as_mut().map(SpanMut::reborrow) };
        self.held_rows = self.inner.hold(job, raw, &mut on)?.rows();
        Ok(self)
    }
    unsafe fn held(&mut self) -> Option<&mut dyn HeldLogits> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.held() }?;
        Some(self)
    }
    fn pack(
        &mut self,
        rows: &HiddenRows<'_>,
        out: SpanMut<'_>,
        status: SpanMut<'_>,
        on: &mut On<'_>,
    ) -> Result<()> {
        (self.hook)(plain("pack", rows.len()))?;
        self.inner.pack(rows, out, status, on)
    }
    fn finish(
        &mut self,
        what: Finish<'_>,
        scratch: &mut finish::FinishScratch,
        on: &mut On<'_>,
    ) -> Result<()> {
        (self.hook)(plain("finish", 0))?;
        self.inner.finish(what, scratch, on)
    }
    fn release_memory(&mut self) {
        self.inner.release_memory();
    }
}

impl HeldLogits for HookedShard {
    fn rows(&self) -> usize {
        self.held_rows
    }
    fn cut(&mut self, pass: Cuts<'_>) -> Result<()> {
        // SAFETY: as for a pass, below.
        unsafe { self.inner.held() }.expect("logits that were held before").cut(pass)
    }
    fn pass(&mut self, pass: Pass<'_>) -> Result<()> {
        // SAFETY: the caller borrows this from `hold`, together with its workspace, or from `held`, whose
        // promise it has given.
        let held = unsafe { self.inner.held() }.expect("logits that were held before");
        let rows = held.rows();
        let asked = match &pass {
            Pass::TargetLogits { .. } => plain("target logits", rows),
            Pass::Partials { spec, .. } => {
                Asked { ask: Some(Ask::Partials(*spec)), ..plain("partials", rows) }
            }
            Pass::Maxima { rows: of, .. } => Asked { entries: of.len(), ..plain("maxima", rows) },
            Pass::Histograms { queries, .. } => Asked { entries: queries.len(), ..plain("histograms", rows) },
            Pass::Ties { queries, .. } => Asked { entries: queries.len(), ..plain("ties", rows) },
            Pass::Candidates { rows: of, .. } => Asked { entries: of.len(), ..plain("candidates", rows) },
        };
        (self.hook)(asked)?;
        held.pass(pass)
    }
}
