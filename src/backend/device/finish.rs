//! Answers in device memory, made by kernels.

use super::KernelDevice;
use super::draws::Drawing;
use super::partials;
use super::shard::DeviceShard;
use crate::backend::On;
use crate::error::{Error, Result};
use crate::finish::{self, Finish, Messages};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::{Candidate, PartialSpec};

/// The messages that an answer is made of.
fn source<'a>(what: &Finish<'a>) -> Span<'a> {
    match what {
        Finish::Status { words, .. } => *words,
        Finish::Logits { from, .. }
        | Finish::Argmax { from, .. }
        | Finish::TopK { from, .. }
        | Finish::Logprobs { from, .. }
        | Finish::Draw { from, .. } => from.bytes,
    }
}

/// Refuses outputs that are not in the memory of the messages.
fn check_outputs(what: &Finish<'_>, own: Memory) -> Result<()> {
    let check = |outputs: &[(&str, &SpanMut<'_>)]| {
        outputs.iter().try_for_each(|(what, span)| span.check_memory(what, own))
    };
    match what {
        Finish::Status { row_status, .. } => check(&[("row_status", row_status)]),
        Finish::Logits { logits, row_status, .. } => check(&[("logits", logits), ("row_status", row_status)]),
        Finish::Argmax { ids, row_status, .. } | Finish::Draw { ids, row_status, .. } => {
            check(&[("ids", ids), ("row_status", row_status)])
        }
        Finish::TopK { ids, values, logsumexp, row_status, .. } => {
            check(&[("ids", ids), ("values", values), ("logsumexp", logsumexp), ("row_status", row_status)])
        }
        Finish::Logprobs { logprobs, ranks, top_ids, top_logprobs, row_status, .. } => check(&[
            ("logprobs", logprobs),
            ("ranks", ranks),
            ("top_ids", top_ids),
            ("top_logprobs", top_logprobs),
            ("row_status", row_status),
        ]),
    }
}

/// Refuses targets that are not one for each place.
fn check_targets(targets: Span<'_>, from: &Messages<'_>, spec: &PartialSpec) -> Result<()> {
    targets.check_len("targets", from.answered * spec.targets * size_of::<Candidate>())
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Makes the answer in the memory where its messages are.
    pub(super) fn finish_anywhere(
        &mut self,
        what: Finish<'_>,
        scratch: &mut finish::FinishScratch,
        on: &mut On<'_>,
    ) -> Result<()> {
        let source = source(&what);
        let memory = source.memory();
        if source.is_empty() || memory == Memory::Host {
            return finish::on_host(what, scratch);
        }
        let own = self.common.memory();
        if memory != own {
            let fix = "finish where the messages are";
            return Err(Error::shape("messages of the shards", format!("host memory or {own}"), memory, fix));
        }
        check_outputs(&what, own)?;
        self.finish_by_kernel(what, on)
    }

    /// Queues the kernels that make the answer; nothing goes through the host.
    fn finish_by_kernel(&mut self, what: Finish<'_>, on: &On<'_>) -> Result<()> {
        match what {
            Finish::Draw { from, sampling, places, vocab_size, ids, tokens, row_status } => {
                self.finish_draw(on, Drawing { from, sampling, places, vocab_size, ids, tokens, row_status })
            }
            Finish::Logprobs { from, spec, targets, top_n, drawn, .. }
                if spec.targets > 0 && targets.memory() == Memory::Host =>
            {
                // Targets in host memory go by way of the shard's own memory.
                let parts = partials::parts(&from, &spec)?;
                check_targets(targets, &from, &spec)?;
                let targets = targets.host_elements("targets")?;
                let stream = self.begin(on, true)?;
                let done = self.ask(stream, targets).and_then(|targets| {
                    self.finish_logprobs(stream, (parts, from.answered), targets, (top_n, drawn), &what)
                });
                self.synchronize_on_error(stream, done)?;
                self.end(on, stream, false)
            }
            what => self.only_on(on, |shard, stream| match &what {
                Finish::Status { words, row_status } => shard.finish_status(stream, *words, row_status),
                Finish::Logits { from, dtype, logits, stride, row_status } => {
                    shard.finish_logits(stream, (from, *dtype), (logits, *stride), row_status)
                }
                Finish::Argmax { from, ids, row_status } => {
                    let parts = partials::parts(from, &PartialSpec { k: 1, sum: false, targets: 0 })?;
                    shard.finish_best(stream, (parts, from.answered), (ids, row_status), None)
                }
                Finish::TopK { from, k, ids, values, logsumexp, row_status } => {
                    let parts = partials::parts(from, &PartialSpec { k: *k, sum: true, targets: 0 })?;
                    shard.finish_best(
                        stream,
                        (parts, from.answered),
                        (ids, row_status),
                        Some((values, logsumexp)),
                    )
                }
                Finish::Logprobs { from, spec, targets, top_n, drawn, .. } => {
                    let parts = partials::parts(from, spec)?;
                    check_targets(*targets, from, spec)?;
                    targets.check_memory("targets", shard.common.memory())?;
                    targets.check_aligned("targets", 8)?;
                    let (at, rows) = (targets.address(), from.answered);
                    shard.finish_logprobs(stream, (parts, rows), at, (*top_n, *drawn), &what)
                }
                Finish::Draw { .. } => unreachable!("an arm of its own"),
            }),
        }
    }
}
