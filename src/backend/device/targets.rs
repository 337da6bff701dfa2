//! The logits of targets, made before the matmul whose tiles count what beats them: so the logits of all ids
//! are stored nowhere.

use super::KernelDevice;
use super::matmul::{MatmulCall, TargetCall, dtype_code};
use super::partials::NO_PARTIALS;
use super::shard::{Brought, DeviceShard, check_candidates, product_of};
use super::words::words;
use crate::backend::params::LogitMatrix;
use crate::backend::{Job, On, check_len};
use crate::dtype::DType;
use crate::error::Result;
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::{Candidate, PartialSpec};

impl<D: KernelDevice> DeviceShard<D> {
    /// Checks [`Out::TargetLogits`](crate::backend::Out::TargetLogits) of `rows` rows.
    pub(super) fn check_targets(
        &self,
        targets: Span<'_>,
        per_row: usize,
        out: &SpanMut<'_>,
        rows: usize,
    ) -> Result<()> {
        let bytes = product_of(&[rows, per_row, size_of::<f32>()])?;
        check_len("bytes of the targets", targets.len(), bytes)?;
        check_len("bytes of the logits of the targets", out.len(), bytes)?;
        out.check_memory("logits of the targets", targets.memory())?;
        self.check_place("targets", targets, 4)?;
        self.check_place("logits of the targets", out.as_span(), 4)
    }

    /// Checks the targets of [`Out::Counted`](crate::backend::Out::Counted) for `rows` rows.
    pub(super) fn check_counted(&self, spec: &PartialSpec, targets: Span<'_>, rows: usize) -> Result<()> {
        check_candidates(spec)?;
        let bytes = product_of(&[rows, spec.targets, size_of::<Candidate>()])?;
        check_len("bytes of the targets with their logits", targets.len(), bytes)?;
        self.check_place("targets with their logits", targets, align_of::<u64>())
    }

    /// [`LoadedShard::run`](crate::backend::LoadedShard::run) for logits of targets that were checked.
    pub(super) fn product_targets(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        (targets, per_row): (Span<'_>, usize),
        out: SpanMut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let n = job.rows.len();
        let places = self.places(n, 0)?;
        let workspace = self.workspace_at(on, places.total, n)?;
        let ids = match targets.as_host() {
            Some(targets) => self.ask(stream, targets)?,
            None => targets.address(),
        };
        let device = self.common.device.clone();
        let to = self.output(&out)?;
        let waits = out.memory() == Memory::Host || on.stream.is_none();
        let hidden = self.rows(stream, &job.rows, waits)?;
        let brought = Brought { address: hidden.data as u64, pitch: hidden.pitch, rows: n };
        self.brought = (job.rows.memory() == Memory::Host).then_some(brought);
        let call = MatmulCall {
            rows: n,
            weights: self.weights.matrix(),
            hidden,
            logits: LogitMatrix {
                data: std::ptr::null_mut(),
                pitch: 0,
                status: (workspace + places.status as u64) as usize as *mut u32,
                dtype: dtype_code(DType::F32).expect("a float type"),
            },
            adjustments: self.adjust(stream, job, 0..n)?,
            raw: 0,
            partials: NO_PARTIALS,
            epilogue: job.epilogue,
            workspace,
            workspace_bytes: places.product,
        };
        let first_id = self.weights.info.vocab.start;
        let targets = TargetCall { ids, per_row, first_id, out: to };
        // SAFETY: the addresses are of checked spans and of the shard's own memory, which is kept until its
        // end.
        unsafe { self.product().run_targets(&device, stream, &call, &targets)? };
        match out.into_host() {
            Some(out) => self.answer(stream, to, out).map_err(self.named(n)),
            None => Ok(()),
        }
    }

    /// Logits of targets on a shard without ids: none is its own.
    pub(super) fn no_targets(&self, stream: D::Stream, out: SpanMut<'_>) -> Result<()> {
        if out.memory() != Memory::Host {
            let (address, count) = (out.address(), out.len() / 4);
            // SAFETY: checked words of the caller's.
            return unsafe { self.set_words(stream, words(address, count, f32::NAN.to_bits())) };
        }
        let out: &mut [f32] = out.into_host_elements("logits of the targets")?;
        out.fill(f32::NAN);
        Ok(())
    }
}
