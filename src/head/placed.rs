//! Inputs in device memory on their way to matmuls and passes, on the step's stream. The host neither reads
//! them nor waits for them, with one exception: if the host decides the filters of sampling, it reads the
//! parameters, because these decide what the step exchanges.
//!
//! ```text
//! targets      i64 -> u32   all_gather over replicas
//! adjustments  messages of one shape to every shard   all_to_all   -> mask in place, entries
//! status       a word for each own row: set where one of its inputs cannot be
//! ```

use super::LmHead;
use super::buffers::{Arena, bytes_of, sum};
use super::logprobs::Telling;
use super::run::{Compute, Lists, Run};
use super::wire::{Via, Who};
use crate::backend::{Inputs, PlacedAdjustments};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::NO_TARGET;
use crate::result::{DeviceInputs, Request, RowInputs};
use crate::sampling::Filters;
use std::ops::Range;
use std::time::Instant;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct PlacedBuffers {
    /// Messages to the shards; messages from the replicas; masks and entries that are made of them.
    packed: Arena,
    received: Arena,
    entries: Arena,
}

/// Targets, in device memory.
#[derive(Default)]
pub(super) struct Targets {
    /// The own rows' targets, encoded, before they are exchanged.
    own: Arena,
    /// `[rows of the group, targets]` u32.
    all: Arena,
    /// Targets of the rows that are computed now, where they are not contiguous in `all`. The next three are
    /// of the same rows.
    at_hand: Arena,
    /// Logits of the targets that this shard holds.
    logits: Arena,
    /// Logits of all targets, from all shards.
    shared: Arena,
    /// Targets with their logits.
    candidates: Arena,
}

impl PlacedBuffers {
    pub fn arenas(&mut self) -> [&mut Arena; 3] {
        let PlacedBuffers { packed, received, entries } = self;
        [packed, received, entries]
    }
}

impl Targets {
    /// Where [`Run::share_targets`] leaves the targets of all rows.
    pub fn all(&mut self) -> &mut Arena {
        &mut self.all
    }

    pub fn arenas(&mut self) -> [&mut Arena; 6] {
        let Targets { own, all, at_hand, logits, shared, candidates } = self;
        [own, all, at_hand, logits, shared, candidates]
    }
}

impl LmHead {
    /// Checks that inputs in device memory are those that the step takes, of the sizes of its rows, before
    /// any is sent.
    pub(super) fn check_device_inputs(&self, inputs: &RowInputs<'_>) -> Result<()> {
        let (here, header) = (&inputs.on_device, &self.wire.open.header);
        let of = header.placed;
        let host = inputs.adjustments.unwrap_or_default();
        let refuse = |what: &str, wanted: String, got: &str, fix: &str| {
            Err(Error::request(what.to_string(), wanted, got, fix))
        };
        let announced = [
            ("allowed", of.allowed, here.allowed.is_some(), host.allowed.is_some()),
            ("logit_bias", of.logit_bias > 0, here.logit_bias.is_some(), host.logit_bias.is_some()),
            ("penalties", of.counts > 0, here.penalties.is_some(), host.penalties.is_some()),
        ];
        for (what, announced, placed, of_host) in announced {
            if placed && !announced {
                let fix = "announce them on every rank: StepOptions::device_adjustments";
                return refuse(what, "none in device memory, as announced".into(), "some", fix);
            }
            if of_host && announced {
                let fix = "bring them all there, or announce them in host memory on every rank";
                return refuse(what, "in device memory, as announced".into(), "host memory", fix);
            }
        }
        if here.is_empty() {
            return Ok(());
        }
        if !header.on_device {
            let fix = "begin the step on the device, or pass inputs in host memory";
            return refuse("inputs", "host memory, as of the step's rows".into(), "device memory", fix);
        }
        let request = &self.wire.open.request;
        let per_row = match *request {
            Request::Logprobs { targets, .. } => targets,
            _ => 0,
        };
        let fix = "pass each kind once, and those of this request";
        for (what, taken, of_host, placed) in [
            ("targets", per_row > 0, inputs.targets.is_some(), here.targets.is_some()),
            (
                "sampling parameters",
                matches!(request, Request::Sample { .. }),
                inputs.sampling.is_some(),
                here.sampling.is_some(),
            ),
        ] {
            if placed && (of_host || !taken) {
                let (wanted, got) = match of_host {
                    true => ("one of host memory and device memory".into(), "both"),
                    false => (format!("none with {request}"), "some in device memory"),
                };
                return refuse(what, wanted, got, fix);
            }
        }
        here.check(header.rows as usize, per_row, self.config.vocab_size, self.backend.memory())
    }
}

impl Run<'_> {
    /// Whether inputs of this step may lie on the device.
    pub(super) fn is_on_device(&self) -> bool {
        self.memory != Memory::Host
    }

    /// Status words for what is wrong with this rank's rows' inputs, zeros at first; empty where the host has
    /// checked all inputs.
    pub(super) fn begin_status<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        inputs: &RowInputs<'_>,
        rows: usize,
        room: &'b mut Arena,
    ) -> Result<SpanMut<'b>> {
        let open = &self.wire.open;
        let any = matches!(open.request, Request::Logprobs { .. })
            || !open.header.placed.is_empty()
            || open.header.filters != Filters::ByHost
            || !inputs.on_device.is_empty();
        if !self.is_on_device() || !any {
            return Ok(SpanMut::EMPTY);
        }
        let size = bytes_of("status of the rows", [rows, 4])?;
        let mut status = room.at_least(self.backend, self.memory, size, "status of the rows")?;
        compute.inputs(Inputs::Fill { words: status.reborrow(), value: 0 })?;
        Ok(status)
    }

    /// Adds the status words of this rank's rows to those of their inputs.
    pub(super) fn with_status<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        own: Span<'b>,
        mut status: SpanMut<'b>,
    ) -> Result<Span<'b>> {
        if status.is_empty() {
            return Ok(own);
        }
        if !own.is_empty() {
            compute.inputs(Inputs::Status { from: own, into: status.reborrow() })?;
        }
        Ok(status.into_span())
    }

    /// Encodes this rank's targets as ranks exchange them, u32; a padded step has padding among them.
    pub(super) fn encode_targets<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        inputs: &RowInputs<'_>,
        per_row: usize,
        mut status: SpanMut<'_>,
        room: &'b mut Targets,
    ) -> Result<Span<'b>> {
        let (what, vocab_size, mine) = ("targets", self.config.vocab_size, status.len() / 4);
        let ids = match inputs.on_device.targets {
            Some(placed) => placed,
            None => Span::host(inputs.targets.unwrap_or_default()),
        };
        let own = bytes_of(what, [self.rows_of_replica(mine), 4 * per_row])?;
        let Targets { own: of_own, all, .. } = room;
        let arena = if self.wire.group.replicas() == 1 { all } else { of_own };
        let mut out = arena.at_least(self.backend, self.memory, own, what)?;
        if self.wire.open.padded {
            compute.inputs(Inputs::Fill { words: out.reborrow(), value: NO_TARGET })?;
        }
        for (part, at) in self.own_parts(mine) {
            let ids = ids.part(8 * per_row * part.start..8 * per_row * part.end);
            let out = out.reborrow().part(4 * per_row * at..4 * per_row * (at + part.len()));
            let status = status.reborrow().part(4 * part.start..4 * part.end);
            compute.inputs(Inputs::Targets { ids, per_row, vocab_size, out, status })?;
        }
        Ok(out.into_span())
    }

    /// Gathers the targets of all replicas' rows, in group order: u32 `[rows, per_row]`.
    pub(super) fn share_targets(
        &mut self,
        per_row: usize,
        lists: &mut Lists,
        room: &mut Targets,
    ) -> Result<()> {
        if self.wire.group.replicas() == 1 {
            return Ok(());
        }
        let (began, what) = (Instant::now(), "targets");
        let Targets { own, all, .. } = room;
        self.share_inputs((what, Operation::Targets), 4 * per_row, lists, (own, all))?;
        self.wire.open.stats.gather += began.elapsed();
        Ok(())
    }

    /// Gathers what each replica has of its rows, `each` bytes a row, from `own` into `all`, in group order.
    pub(super) fn share_inputs<'b>(
        &mut self,
        (what, operation): (&str, Operation),
        each: usize,
        lists: &mut Lists,
        (own, all): (&mut Arena, &'b mut Arena),
    ) -> Result<Span<'b>> {
        lists.sizes.clear();
        for rows in &self.wire.open.counts {
            lists.sizes.push(bytes_of(what, [*rows, each])?);
        }
        let mine = lists.sizes[self.wire.group.replica_of(self.wire.group.me())];
        let total = sum(&lists.sizes, what)?;
        let own = own.at_least(self.backend, self.memory, mine, what)?.into_span();
        let mut all = all.at_least(self.backend, self.memory, total, what)?;
        let places = (all.reborrow(), &lists.sizes[..]);
        self.wire.all_gather((operation, Who::Replicas), own, places, false, Via::Rows(self.stream))?;
        Ok(all.into_span())
    }

    /// Rows of this rank's replica in this step, with padding; the replica brings `mine`.
    pub(super) fn rows_of_replica(&self, mine: usize) -> usize {
        if self.wire.open.padded { self.padded(1).rows() } else { mine }
    }

    /// The parts of `mine` own rows, and where each begins among the replica's rows in this step.
    pub(super) fn own_parts(&self, mine: usize) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let (padded, whole) = match self.wire.open.padded {
            true => (Some(self.padded(1).parts(mine)), None),
            false => (None, Some((0..mine, 0))),
        };
        padded.into_iter().flatten().chain(whole)
    }

    /// Makes candidates of the targets of the rows at hand: each with its logit, from the shard that has its
    /// id. `parts`: byte ranges of these targets, in `host` where it is given, else in what
    /// [`Run::share_targets`] has gathered.
    pub(super) fn place_candidates<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        telling: &Telling<'_>,
        (host, parts): (Option<&[u32]>, &[Range<usize>]),
        lists: &mut Lists,
        room: &'b mut Targets,
    ) -> Result<Span<'b>> {
        let (what, backend, memory) = ("target logits", self.backend, self.memory);
        let Targets { all, at_hand, logits, shared, candidates, .. } = room;
        let bytes: usize = parts.iter().map(ExactSizeIterator::len).sum();
        let neighbours = parts.windows(2).all(|two| two[0].end == two[1].start);
        let targets = if host.is_none() && neighbours {
            let (first, end) = (parts.first().map_or(0, |p| p.start), parts.last().map_or(0, |p| p.end));
            all.at_least(backend, memory, end, what)?.into_span().part(first.min(end)..end)
        } else {
            let from = match host {
                Some(targets) => Span::host(targets),
                None => {
                    let end = parts.iter().map(|part| part.end).max().unwrap_or(0);
                    all.at_least(backend, memory, end, what)?.into_span()
                }
            };
            let mut out = at_hand.at_least(backend, memory, bytes, what)?;
            compute.inputs(Inputs::Parts { from, parts, out: out.reborrow() })?;
            out.into_span()
        };
        let mut own = logits.at_least(backend, memory, bytes, what)?;
        compute.target_logits(telling, targets, own.reborrow())?;
        let size = self.wire.group.size();
        let logits = if size == 1 {
            own.into_span()
        } else {
            let total = bytes_of(what, [size, bytes])?;
            let mut all = shared.at_least(backend, memory, total, what)?;
            lists.sizes.clear();
            lists.sizes.resize(size, bytes);
            let gather = (Operation::TargetLogits, Who::Everyone);
            let places = (all.reborrow(), &lists.sizes[..]);
            self.wire.all_gather(gather, own.into_span(), places, false, Via::Rows(self.stream))?;
            all.into_span()
        };
        let mut out = candidates.at_least(backend, memory, bytes_of(what, [bytes, 2])?, what)?;
        let shards = self.wire.shards();
        compute.inputs(Inputs::Candidates { targets, logits, shards, out: out.reborrow() })?;
        Ok(out.into_span())
    }

    /// This shard's slice of the adjustments in device memory, for the rows `lists.parts[replica]` of every
    /// replica, or for all rows of a padded step, in group order; `None` in a step without. `status`: status
    /// words of this rank's rows among these.
    pub(super) fn place_adjustments<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        mine: &DeviceInputs<'b>,
        status: SpanMut<'_>,
        lists: &mut Lists,
        room: &'b mut PlacedBuffers,
    ) -> Result<Option<PlacedAdjustments<'b>>> {
        let mut of = self.wire.open.header.placed;
        if of.is_empty() {
            return Ok(None);
        }
        let began = Instant::now();
        let (what, backend, memory) = ("adjustments in device memory", self.backend, self.memory);
        let (me, tp, size) = (self.wire.group.me(), self.wire.group.tp(), self.wire.group.size());
        let vocab_size = self.config.vocab_size;
        let own_shard = self.wire.shards()[me].clone();
        let replicas = self.wire.group.replicas();
        let (own_rows, shape) = if self.wire.open.padded {
            lists.parts.clear();
            lists.parts.resize(replicas, 0..self.padded(1).rows());
            (0..status.len() / 4, self.padded(1).shape())
        } else {
            let part = &lists.parts[self.wire.group.replica_of(me)];
            (part.clone(), (1, part.len()))
        };
        let (rows, places) = (own_rows.len(), shape.0 * shape.1);
        // Adjustments are numbered by the caller's rows.
        let from =
            mine.adjustments_of(self.first_row + own_rows.start..self.first_row + own_rows.end, vocab_size);
        let n = lists.parts.iter().map(ExactSizeIterator::len).sum();
        let one = replicas == 1;
        let mut mask = None;
        if one && of.allowed && rows == places {
            // The shard's columns of whole rows.
            let pitch = vocab_size.div_ceil(32);
            let first = |span: Span<'b>| span.part((own_shard.start / 8).min(span.len())..span.len());
            mask = from.allowed.map(|span| (first(span), pitch));
            of.allowed = false;
        }
        let own_bytes = of.message_bytes(own_shard.len());
        let (first, step, count) = if one { (me, 1, 1) } else { (me % tp, tp, size / tp) };
        let is_peer = |member: usize| if one { member == me } else { member % tp == me % tp };
        let shards = self.wire.shards();
        lists.outgoing.clear();
        let mut end = 0;
        for (member, shard) in shards.iter().enumerate() {
            let start = end;
            if is_peer(member) {
                end = sum(&[end, bytes_of(what, [places, of.message_bytes(shard.len())])?], what)?;
            }
            lists.outgoing.push(start..end);
        }
        let mut packed = room.packed.at_least(backend, memory, end, what)?;
        if !of.is_empty() {
            let (from, to, out) = (&from, (first, step, count), packed.reborrow());
            let parts = shape;
            compute.inputs(Inputs::PackAdjustments { from, rows, parts, of, shards, to, out, status })?;
        }
        let messages = if one {
            packed.into_span()
        } else {
            lists.sizes.clear();
            for member in 0..size {
                let theirs = if is_peer(member) { lists.parts[member / tp].len() } else { 0 };
                lists.sizes.push(bytes_of(what, [theirs, own_bytes])?);
            }
            let total = sum(&lists.sizes, what)?;
            let mut recv = room.received.at_least(backend, memory, total, what)?;
            let (send, places) =
                ((packed.as_span(), &lists.outgoing[..]), (recv.reborrow(), &lists.sizes[..]));
            self.wire.all_to_all(Operation::Adjustments, send, places, false, Via::Rows(self.stream))?;
            recv.into_span()
        };
        let bytes = of.placed_bytes(n)?;
        let mut entries = room.entries.at_least(backend, memory, bytes, what)?;
        if bytes > 0 {
            let out = entries.reborrow();
            compute.inputs(Inputs::UnpackAdjustments { from: messages, rows: n, of, out })?;
        }
        let mut placed = PlacedAdjustments::carve(entries.into_span(), n, &of);
        // A message begins with its mask.
        placed.allowed = if of.allowed { Some((messages, own_bytes / 4)) } else { mask };
        self.wire.open.stats.exchange += began.elapsed();
        Ok(Some(placed))
    }
}
