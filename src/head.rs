//! [`LmHead`]: one rank's part of a sharded head, from its creation over steps to its rebuilding after a fault.
//!
//! * `agreement`: what all ranks agree on at creation and at the beginning of a step.
//! * `pipeline`: [`Step::run`], `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`.
//! * `adjusting`: masks, additions and penalties on their way to the shards.
//! * `logprobs`: targets, ranks and logprobs, in chunks of rows.
//! * `sampling`: sampled tokens, in rounds that the rows' parameters ask for.
//! * `inputs`: the digest of what the tensor-parallel ranks of a replica must share.
//! * `rounds`: one collective operation of a step and what it cost.
//! * `guard`: whatever ends a creation, a step or a rebuilding tells the peers.
//! * `recorder`: the last steps, for whoever asks what happened before a fault.
//! * `self_test`: whether the transport delivers what is sent to whom it is sent.
//! * `warm_up`: steps of every kind before the first real one.
//! * `traffic`: what a step exchanges, worked out before it runs.
//! * `buffers`: bytes that are resized and cut into messages.

mod adjusting;
mod agreement;
mod buffers;
mod guard;
mod inputs;
mod logprobs;
mod pipeline;
mod recorder;
mod rounds;
mod sampling;
mod self_test;
mod traffic;
mod warm_up;

pub use pipeline::Step;
pub use recorder::{OperationRecord, Outcome, StepRecord};
pub use traffic::{RankTraffic, bytes_exchanged, step_traffic};

use recorder::Recorder;

use crate::backend::{Backend, Resident};
use crate::config::HeadConfig;
use crate::digest;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::columns::Seen;
use crate::exchange::{Call, Exchange, Fault, Operation, Reset};
use crate::layout::HeadGroup;
use crate::merge::RowPartial;
use crate::process::Maker;
use crate::result::{Request, StepStats};
use crate::rows::RowCounts;
use crate::step::{self, Header, Mode, Ticket};
use crate::weights::HeadShard;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One rank's part of a sharded LM head.
///
/// All ranks of a group create theirs together ([`LmHead::new`] is collective) and then make the same calls in
/// the same order. A fault (a rank that disagrees, does not come or gives up) ends in an error on every rank
/// within the deadline; the head then refuses further steps until [`LmHead::rebuild`].
pub struct LmHead {
    config: HeadConfig,
    group: HeadGroup,
    shard: Arc<HeadShard>,
    exchange: Arc<dyn Exchange>,
    backend: Arc<dyn Backend>,
    /// The backend's own copy of the shard, where it needs one.
    resident: Resident,
    hidden_dtype: DType,
    id: u32,
    instance: u32,
    maker: Maker,
    epoch: u32,
    sequence: u64,
    agreement: u64,
    weights_version: u64,
    warming_up: bool,
    /// The creation has come about: there is a head to rebuild.
    is_made: bool,
    poisoned: Option<String>,
    recorder: Recorder,
    scratch: Scratch,
}

/// Buffers that live from step to step.
#[derive(Default)]
struct Scratch {
    /// Own rows that had to be brought together for sending.
    send_rows: Vec<u8>,
    /// Rows of the group `[rows, hidden]`; in capacity mode before that the padded payloads.
    gathered: Vec<u8>,
    /// Results by destination.
    send: Vec<u8>,
    /// Results by source.
    recv: Vec<u8>,
    seen: Vec<Seen>,
    partials: Vec<RowPartial>,
    /// `[rows of the group, shard]`, of a step that samples.
    held: Vec<f32>,
    chunk: logprobs::Chunk,
}

/// Now, and `timeout` later. A timeout beyond what the clock can say is for ever: a century.
fn from_now(timeout: Duration) -> (Instant, Instant) {
    let began = Instant::now();
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    (began, began.checked_add(timeout).unwrap_or(began + century))
}

impl LmHead {
    /// Creates this rank's part of the head; collective. `shard` is the group's [`HeadGroup::shard`] of the
    /// caller's member, `exchange` connects the members of `group` in their order. The head opens a channel
    /// of its own on the exchange: several heads, and their threads, may share one.
    ///
    /// The ranks compare their settings here: configuration, dtypes, quantisation, weights, backend and its
    /// instruction set. Then they test the exchange.
    ///
    /// # Errors
    /// `Config`, `Shape` or `Dtype` where the parts do not fit each other; `StepMismatch` naming every
    /// setting on which ranks differ, or the rank whose parts do not fit; `Exchange` where the self-test
    /// finds pieces mixed up; `Timeout` or `RankLost` where a rank does not come. After any of them the head
    /// may be created again, on the same exchange, by all ranks.
    pub fn new(
        config: &HeadConfig,
        group: HeadGroup,
        shard: Arc<HeadShard>,
        exchange: Arc<dyn Exchange>,
        backend: Arc<dyn Backend>,
    ) -> Result<Self> {
        let hidden_dtype = config.hidden_dtype.unwrap_or(match shard.matrix().dtype() {
            DType::I8 => DType::Bf16,
            own => own,
        });
        let id = digest::fnv(config.name.as_bytes()) as u32;
        guard::remember(id, &config.name);
        let (instance, exchange) = guard::open_channel(&*exchange, id, config.create_timeout)?;
        let mut head = LmHead {
            config: config.clone(),
            id,
            instance,
            maker: Maker::here(),
            group,
            shard,
            exchange,
            backend,
            resident: Resident::default(),
            hidden_dtype,
            epoch: 0,
            sequence: 0,
            agreement: 0,
            weights_version: config.weights_version,
            warming_up: false,
            is_made: false,
            poisoned: None,
            recorder: Recorder::new(),
            scratch: Scratch::default(),
        };
        let call = head.creation_call(Operation::Create);
        head.guarded(&call, "creation of the head", |head| head.create(&call))?;
        head.is_made = true;
        Ok(head)
    }

    fn create(&mut self, call: &Call) -> Result<()> {
        // Without an exchange for the group there is nothing to agree over: the peers are told by its notice.
        self.check_exchange()?;
        // A rank whose other parts do not fit still takes part in the agreement: the others learn why, and
        // nobody waits.
        let prepared = self.check_parts().and_then(|()| self.backend.prepare(&self.shard, self.hidden_dtype));
        let refusal = prepared.map(|resident| self.resident = resident).err();
        // After the deadline no agreement comes about: the notice tells the peers of the refusal.
        if call.left().is_zero()
            && let Some(refusal) = refusal
        {
            return Err(refusal);
        }
        self.agree(call, refusal)
    }

    /// What follows the meeting of all ranks, at creation and at rebuilding.
    fn agree(&mut self, call: &Call, refusal: Option<Error>) -> Result<()> {
        self.agree_on_settings(call, refusal)?;
        // The epoch may be another one now.
        let call = Call { epoch: self.epoch, ..*call };
        self.test_exchange(&call)
    }

    /// The head's configuration.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The ranks that share this head.
    pub fn group(&self) -> &HeadGroup {
        &self.group
    }

    /// The caller's shard.
    pub fn shard(&self) -> &HeadShard {
        &self.shard
    }

    /// The type of the hidden states that steps take.
    pub fn hidden_dtype(&self) -> DType {
        self.hidden_dtype
    }

    /// Why the head refuses steps, where it does.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// This rank's last steps, the latest last: what the evidence of an error has, at any time.
    pub fn recent_steps(&self) -> Vec<StepRecord> {
        self.recorder.steps()
    }

    /// The version of the weights, as the engine counts it: `weights_version` of the configuration, until it
    /// is set.
    pub fn weights_version(&self) -> u64 {
        self.weights_version
    }

    /// Says that the weights are of another version now. Engines that swap weights while the head lives call
    /// it on every rank between the same two steps; the next verified step finds a rank that did not.
    pub fn set_weights_version(&mut self, version: u64) {
        self.weights_version = version;
    }

    /// Gives back the memory that is kept from step to step: buffers of the largest step so far, and what the
    /// backend and the exchange keep of the kind. The next steps allocate anew. This rank's own matter; no
    /// other rank needs to do the same.
    pub fn release_memory(&mut self) {
        self.scratch = Scratch::default();
        self.backend.release_memory();
        self.exchange.release_memory();
    }

    /// Begins a step: fixes its arguments and, where the mode and the verification setting say so, checks the contract with the
    /// other ranks. Collective. The step must be run; there is no other way to use it.
    ///
    /// # Errors
    /// `Request`, `Config` or `Shape` for arguments that no head or group could take. The peers of this rank
    /// have begun the step or will: they are told at once, and the head is poisoned, also where all ranks are
    /// refused alike. A head of one rank stays usable. `StepMismatch`, `Timeout`, `RankLost` as the contract
    /// says; `Poisoned` after an earlier fault.
    pub fn step(&mut self, counts: RowCounts, request: &Request) -> Result<Step<'_>> {
        self.begin(counts, request, false)
    }

    /// [`LmHead::step`] for rows of which some have [`Adjustments`](crate::adjust::Adjustments), which [`Step::run_with`] takes.
    ///
    /// With exact counts or a capacity every rank of the group says the same, also where it has none itself; it is part of the
    /// contract. With `discover` it is learned: a rank that begins a plain `step` takes part in the others' adjustments.
    ///
    /// # Errors
    /// As [`LmHead::step`].
    pub fn step_adjusted(&mut self, counts: RowCounts, request: &Request) -> Result<Step<'_>> {
        self.begin(counts, request, true)
    }

    fn begin(&mut self, counts: RowCounts, request: &Request, adjusted: bool) -> Result<Step<'_>> {
        self.maker.check("the head")?;
        if let Some(cause) = &self.poisoned {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        let call = self.call_from_now(Operation::Contract, self.config.timeout);
        let (request, mut stats) = (*request, StepStats::default());
        let (ticket, counts, adjusted) = self.guarded(&call, "step", |head| {
            let ticket = head.ticket(call, counts, request, adjusted)?;
            let mut known = match &ticket.counts {
                RowCounts::Exact(list) => Some(list.clone()),
                _ if head.group.replicas() == 1 => Some(vec![ticket.header.rows as usize]),
                _ => None,
            };
            let mut adjusted = adjusted;
            if ticket.verified && head.group.size() > 1 {
                let agreed = head.check_contract(&ticket, &mut stats)?;
                known = Some(agreed.rows.iter().step_by(head.group.tp()).copied().collect());
                adjusted = agreed.adjusted;
            }
            Ok((ticket, known, adjusted))
        })?;
        Ok(Step { head: self, ticket, counts, adjusted, compared: false, stats, done: false })
    }

    /// The next step's number and this rank's side of its contract.
    fn ticket(&mut self, call: Call, counts: RowCounts, request: Request, adjusted: bool) -> Result<Ticket> {
        self.exchange.note(&call);
        request.check(self.config.vocab_size)?;
        self.check_logprobs(&request, adjusted)?;
        let own = counts.own(self.group.replica_of(self.group.me()), self.group.replicas())?;
        let (mode, counts_field) = step::counts_field(&counts);
        let header = Header {
            head: self.id,
            instance: self.instance,
            epoch: self.epoch,
            mode,
            verify: self.config.verify,
            request: Some(request),
            adjusted,
            sequence: self.sequence,
            rows: own as u64,
            counts: counts_field,
            agreement: self.agreement,
            weights_version: self.weights_version,
            inputs: 0,
        };
        let verified = match mode {
            Mode::Exact => self.config.verify.applies(self.sequence, self.warming_up),
            Mode::Discover => true,
            // Otherwise the header rides in the payload.
            // Chunks of logprobs are gathered by counts.
            Mode::Capacity => matches!(request, Request::Logprobs { .. }),
            Mode::Create => false,
        };
        self.sequence += 1;
        self.recorder.begin(&header, call.began);
        let call = Call { terms: header.terms(), ..call };
        Ok(Ticket { header, request, verified, call, counts })
    }

    /// A call of this head's next step that begins now.
    fn call_from_now(&self, operation: Operation, timeout: Duration) -> Call {
        let (began, deadline) = from_now(timeout);
        Call {
            head: self.id,
            instance: self.instance,
            epoch: self.epoch,
            step: self.sequence,
            operation,
            terms: 0,
            began,
            deadline,
        }
    }

    /// Brings the head back after a fault, under a new epoch. Collective: every rank of the group calls it, also those on which
    /// the head has seen no fault. Heads that share an exchange are rebuilt one after the other, in the same order on every rank.
    ///
    /// # Errors
    /// `Timeout` or `RankLost` naming the ranks that do not come, `StepMismatch` as [`LmHead::new`]. The head then refuses
    /// steps; rebuild it again once the cause is mended.
    pub fn rebuild(&mut self) -> Result<()> {
        self.maker.check("the head")?;
        let call = self.creation_call(Operation::Rebuild);
        let reset = self.guarded(&call, "rebuilding of the head", |head| {
            head.exchange.note(&call);
            Ok(head.exchange.reset(&call))
        });
        let result = reset.and_then(|reset| {
            match reset {
                Ok(Reset::Done) => {}
                Ok(Reset::Reconnect) => {
                    return Err(Error::Exchange {
                        operation: call.operation.to_string(),
                        problem: format!(
                            "the exchange `{}` cannot be brought back after a fault",
                            self.exchange.name()
                        ),
                        fix: "make a new exchange and new heads on every rank".into(),
                    });
                }
                // Only here the transport has not met the peers at all.
                Err(fault @ Fault::Broken { .. }) => {
                    let error = fault.into_error(&call, self.group.ranks());
                    return Err(self.failed(&call, error));
                }
                // The transport has ended the peers' waits itself. Another notice would end those of peers
                // that have come since.
                Err(fault) => {
                    let error = fault.into_error(&call, self.group.ranks());
                    return Err(error.with_evidence(|| self.evidence()));
                }
            }
            self.epoch += 1;
            self.sequence = 0;
            self.warming_up = false;
            // One deadline for both parts.
            let call = Call { epoch: self.epoch, step: 0, operation: Operation::Create, ..call };
            self.guarded(&call, "rebuilding of the head", |head| head.agree(&call, None))
        });
        self.poisoned = result.as_ref().err().map(Error::to_string);
        result
    }

    /// The exchange must be the group's.
    fn check_exchange(&self) -> Result<()> {
        let place = |size: usize, me: usize| format!("member {me} of a group of {size}");
        let (group, exchange) = (&self.group, &self.exchange);
        if (exchange.size(), exchange.me()) == (group.size(), group.me()) {
            return Ok(());
        }
        Err(Error::shape(
            "exchange",
            place(group.size(), group.me()),
            place(exchange.size(), exchange.me()),
            "make the exchange from the same group, its members in the same order",
        ))
    }

    /// Everything about the parts that one rank can judge alone.
    fn check_parts(&self) -> Result<()> {
        self.config.validate()?;
        let (shard, config, group) = (&self.shard, &self.config, &self.group);
        if shard.hidden_size() != config.hidden_size {
            return Err(Error::shape(
                "hidden_size",
                config.hidden_size,
                shard.hidden_size(),
                "load the shard with this configuration",
            ));
        }
        if let Some(wanted) = config.head_dtype.filter(|wanted| *wanted != shard.matrix().dtype()) {
            return Err(Error::dtype(
                "head_dtype",
                wanted,
                shard.matrix().dtype(),
                "load the shard with this configuration (LoadOptions::head_dtype)",
            ));
        }
        let wanted = group.shard(config.vocab_size, group.me());
        if shard.vocab_size() != config.vocab_size || shard.vocab() != wanted {
            let text =
                |range: &Range<usize>, size: usize| format!("ids {}..{} of {size}", range.start, range.end);
            return Err(Error::shape(
                "shard",
                text(&wanted, config.vocab_size),
                text(&shard.vocab(), shard.vocab_size()),
                "load the shard that the group gives this member",
            ));
        }
        if shard.quantization() != config.quantization {
            let fix = "resolve the configuration with the quantisation of the loaded shard";
            return Err(Error::dtype("quantization", config.quantization, shard.quantization(), fix));
        }
        self.backend.check(shard, self.hidden_dtype)
    }
}
