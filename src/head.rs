//! [`LmHead`]: one rank's part of a sharded head, from its creation over steps to its rebuilding after a
//! fault.
//!
//! * `agreement`: what all ranks agree on at creation.
//! * `step`: a step's beginning with its contract, and its run into the caller's memory.
//! * `run`: `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`.
//! * `capacity`: steps of a static (padded) shape; the device counts them and compares the ranks' headers.
//! * `deferred`: collectives that are queued, and waited for at the end of their step.
//! * `adjusting`: masks, logit bias and penalties on their way to the shards.
//! * `placed`: inputs that lie in device memory.
//! * `logprobs`: targets, ranks and logprobs, in chunks of rows.
//! * `sampling`: sampled tokens, in rounds that the rows' parameters ask for.
//! * `inputs`: the digest of what the tensor-parallel ranks of a replica must share.
//! * `wire`: one collective operation of a step and its cost; does nothing in a group of one rank.
//! * `guard`: tells the peers of whatever ends a creation, a step or a rebuilding.
//! * `abort`: ending a step from another thread.
//! * `recorder`: the last steps, for whoever asks what happened before a fault.
//! * `self_test`: whether the transport delivers what is sent to whom it is sent.
//! * `warm_up`: steps of every kind before the first real one.
//! * `traffic`: what a step exchanges, worked out before it runs.
//! * `buffers`: memory that is kept from step to step.

mod abort;
mod adjusting;
mod agreement;
mod buffers;
#[allow(unsafe_code, reason = "a header that is sent from where it is compared")]
mod capacity;
mod deferred;
mod guard;
mod inputs;
mod logprobs;
mod placed;
mod recorder;
#[allow(unsafe_code, reason = "a workspace that a step has borrowed")]
mod run;
mod sampling;
mod self_test;
mod step;
mod traffic;
mod warm_up;
#[allow(unsafe_code, reason = "device memory of a step, which its buffers keep")]
mod wire;

pub use abort::AbortHandle;
pub use recorder::{FlightRecorder, OperationRecord, Outcome, StepRecord};
pub use step::{Step, StepOptions, Ticket};
pub use traffic::{RankTraffic, bytes_exchanged, step_traffic};

use crate::backend::HeadTypes;
use crate::backend::{Backend, LoadedShard};
use crate::config::HeadConfig;
use crate::digest;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::{Call, Exchange, Fault, Operation, Pending, Reset};
use crate::layout::HeadGroup;
use crate::memory::Stream;
use crate::process::Maker;
use crate::result::{Request, StepStats};
use crate::step::Header;
use crate::weights::{HeadShard, ShardInfo};
use buffers::Arena;
use deferred::Known;
use recorder::QueuedSteps;
use run::StepScratch;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use wire::{Open, Wire};

/// One rank's part of a sharded LM head.
///
/// All ranks of a group create theirs together ([`LmHead::new`] is collective) and then make the same calls
/// in the same order. A fault (a rank that disagrees, does not come or gives up) ends in an error on every
/// rank within the deadline; the head then refuses further steps until [`LmHead::rebuild`].
pub struct LmHead {
    config: HeadConfig,
    wire: Wire,
    backend: Arc<dyn Backend>,
    /// The shard as its backend has loaded it; set when the head is created.
    loaded: Option<Box<dyn LoadedShard>>,
    info: ShardInfo,
    hidden_dtype: DType,
    id: u32,
    instance: u32,
    maker: Maker,
    epoch: u32,
    sequence: u64,
    agreement: u64,
    weights_version: u64,
    warming_up: bool,
    /// The creation has succeeded: there is a head to rebuild.
    is_made: bool,
    poisoned: Option<String>,
    /// The ticket of the step that has begun and is not run yet.
    begun: Option<u64>,
    aborts: AbortHandle,
    queued: Arc<QueuedSteps>,
    /// The stream of asynchronous steps that may still run, and a mark behind the last.
    unwaited: Option<(Stream, Pending)>,
    /// Kinds of steps that have run before: their memory exists when they come again.
    known: Known,
    scratch: StepScratch,
    /// An answer, until it is whole.
    answer: Arena,
}

/// Now, and `timeout` later. A timeout that the clock cannot represent counts as a century.
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
            own if own.is_float() => own,
            _ => DType::Bf16,
        });
        let id = digest::fnv(config.name.as_bytes()) as u32;
        guard::remember(id, &config.name);
        let (instance, exchange) = guard::open_channel(&*exchange, id, config.create_timeout)?;
        let (began, deadline) = from_now(config.create_timeout);
        let operation = Operation::Create;
        let call = Call { head: id, instance, epoch: 0, step: 0, operation, terms: 0, began, deadline };
        let open = Open {
            header: Header::of_creation(id, instance, config.verify),
            request: Request::Argmax,
            verified: false,
            call,
            capacity: 0,
            counts: Vec::with_capacity(group.replicas()),
            adjusted: false,
            asynchronous: false,
            queued: false,
            defers: false,
            deferred: false,
            stream: None,
            padded: false,
            compared: false,
            stats: StepStats::default(),
        };
        let aborts = AbortHandle::new(&exchange, call);
        let known = Known::new(group.replicas());
        let wire = Wire::new(exchange, group, &config.name, config.vocab_size, open);
        let mut head = LmHead {
            config: config.clone(),
            wire,
            backend,
            loaded: None,
            info: shard.info(),
            hidden_dtype,
            id,
            instance,
            maker: Maker::here(),
            epoch: 0,
            sequence: 0,
            agreement: 0,
            weights_version: config.weights_version,
            warming_up: false,
            is_made: false,
            poisoned: None,
            begun: None,
            queued: Arc::new(QueuedSteps {
                name: config.name.clone(),
                aborts: aborts.clone(),
                steps: OnceLock::new(),
            }),
            aborts,
            unwaited: None,
            known,
            scratch: StepScratch::default(),
            answer: Arena::default(),
        };
        let call = head.creation_call(Operation::Create);
        head.guarded(&call, "creation of the head", |head| head.create(&call, shard))?;
        head.is_made = true;
        Ok(head)
    }

    fn create(&mut self, call: &Call, shard: Arc<HeadShard>) -> Result<()> {
        // Nothing can be agreed over an exchange that is not the group's. `guarded` notifies its peers.
        self.check_exchange()?;
        // A rank whose other parts do not fit still takes part in the agreement: so the others learn why, and
        // nobody waits.
        let loaded = self.check_parts().and_then(|()| self.backend.load(&shard, self.hidden_dtype));
        // Drops the host copy of the weights; a backend that uses it in place keeps it.
        drop(shard);
        let refusal = loaded.map(|loaded| self.loaded = Some(loaded)).err();
        // After the deadline no agreement is possible: `guarded` tells the peers of the refusal instead.
        if call.left().is_zero()
            && let Some(refusal) = refusal
        {
            return Err(refusal);
        }
        self.agree(call, refusal)
    }

    /// The collective part of creation and of rebuilding.
    fn agree(&mut self, call: &Call, refusal: Option<Error>) -> Result<()> {
        self.agree_on_settings(call, refusal)?;
        // The agreement may have raised the epoch.
        let call = Call { epoch: self.epoch, ..*call };
        self.connect_devices(&call)?;
        self.test_exchange(&call)
    }

    /// Connects the exchange's device transport to the peers'. The ranks have agreed that all have one.
    fn connect_devices(&self, call: &Call) -> Result<()> {
        let (exchange, group) = (&*self.wire.exchange, &self.wire.group);
        let Some(device) = exchange.device().filter(|_| group.size() > 1) else { return Ok(()) };
        let call = Call { operation: Operation::Connect, ..*call };
        exchange.note(&call);
        device.connect(&call, exchange).map_err(|fault| fault.into_error(&call, group.ranks()))
    }

    /// The head's configuration.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The ranks that share this head.
    pub fn group(&self) -> &HeadGroup {
        &self.wire.group
    }

    /// What is known of the caller's shard.
    pub fn shard(&self) -> &ShardInfo {
        &self.info
    }

    fn types(&self) -> HeadTypes {
        let ShardInfo { dtype: weights, quantization, .. } = self.info;
        HeadTypes { weights, quantization, hidden: self.hidden_dtype }
    }

    /// The type of the hidden states that steps take.
    pub fn hidden_dtype(&self) -> DType {
        self.hidden_dtype
    }

    /// Why the head refuses steps; `None` while it takes them.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// This rank's last steps, the latest last: the list that the evidence of an error contains, at any time.
    pub fn recent_steps(&self) -> Vec<StepRecord> {
        self.wire.recorder.steps()
    }

    /// A handle that other threads may ask at any time what this head has done and where its peers are.
    pub fn flight_recorder(&self) -> FlightRecorder {
        FlightRecorder {
            recorder: self.wire.recorder.clone(),
            queued: Arc::clone(&self.queued),
            group: Arc::clone(&self.wire.group),
            exchange: Arc::downgrade(&self.wire.exchange),
        }
    }

    /// The version of the weights, as the engine counts it: `weights_version` of the configuration, until it
    /// is set.
    pub fn weights_version(&self) -> u64 {
        self.weights_version
    }

    /// Says that the weights now have another version. Engines that swap weights while the head lives call it
    /// on every rank between the same two steps; the next verified step finds a rank that did not.
    pub fn set_weights_version(&mut self, version: u64) {
        self.weights_version = version;
    }

    /// Gives back the memory that is kept from step to step: buffers as large as the largest step so far, and
    /// what the backend and the exchange keep in the same way. The next steps allocate anew. Not collective:
    /// other ranks need not do the same.
    pub fn release_memory(&mut self) {
        self.leave_unwaited();
        (self.scratch, self.answer) = (StepScratch::default(), Arena::default());
        self.known.clear();
        if let Some(loaded) = &mut self.loaded {
            loaded.release_memory();
        }
        self.wire.exchange.release_memory();
    }

    /// A call of this head's next step; its deadline is `timeout` from now.
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

    /// Brings the head back after a fault, under a new epoch. Collective: every rank of the group calls it,
    /// also those on which the head has seen no fault. Heads that share an exchange are rebuilt one after the
    /// other, in the same order on every rank.
    ///
    /// # Errors
    /// `Timeout` or `RankLost` naming the ranks that do not come, `StepMismatch` as [`LmHead::new`]. The head
    /// then refuses steps; rebuild it again once the cause is mended.
    pub fn rebuild(&mut self) -> Result<()> {
        self.maker.check("the head")?;
        self.begun = None;
        self.leave_unwaited();
        let call = self.creation_call(Operation::Rebuild);
        self.forget_abort(&call);
        let reset = self.guarded(&call, "rebuilding of the head", |head| {
            head.wire.exchange.note(&call);
            Ok(head.wire.exchange.reset(&call))
        });
        let result = reset.and_then(|reset| {
            match reset {
                Ok(Reset::Done) => {}
                Ok(Reset::Reconnect) => {
                    return Err(Error::Exchange {
                        operation: call.operation.to_string(),
                        problem: format!(
                            "the exchange `{}` cannot be brought back after a fault",
                            self.wire.exchange.name()
                        ),
                        fix: "make a new exchange and new heads on every rank".into(),
                    });
                }
                // With this fault alone the transport has not reached the peers at all: they are told here.
                Err(fault @ Fault::Broken { .. }) => {
                    let error = fault.into_error(&call, self.wire.group.ranks());
                    return Err(self.failed(&call, error));
                }
                // The transport has ended the peers' waits itself. Another notice would also end the waits of
                // peers that have arrived since.
                Err(fault) => {
                    let error = fault.into_error(&call, self.wire.group.ranks());
                    return Err(error.with_evidence(|| self.evidence()));
                }
            }
            if let Some(loaded) = &mut self.loaded {
                let restarted = loaded.restart_capacity();
                restarted.map_err(|error| self.failed(&call, error))?;
            }
            self.known.clear();
            self.epoch += 1;
            self.sequence = 0;
            self.warming_up = false;
            // Reset and agreement share one deadline.
            let call = Call { epoch: self.epoch, step: 0, operation: Operation::Create, ..call };
            self.guarded(&call, "rebuilding of the head", |head| head.agree(&call, None))
        });
        self.poisoned = result.as_ref().err().map(Error::to_string);
        result
    }

    /// The exchange must have the group's size, and this rank as the same member.
    fn check_exchange(&self) -> Result<()> {
        let place = |size: usize, me: usize| format!("member {me} of a group of {size}");
        let (group, exchange) = (&self.wire.group, &self.wire.exchange);
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
        let (info, config, group) = (&self.info, &self.config, &self.wire.group);
        if info.hidden_size != config.hidden_size {
            return Err(Error::shape(
                "hidden_size",
                config.hidden_size,
                info.hidden_size,
                "load the shard with this configuration",
            ));
        }
        if let Some(wanted) = config.head_dtype.filter(|wanted| *wanted != info.dtype) {
            return Err(Error::dtype(
                "head_dtype",
                wanted,
                info.dtype,
                "load the shard with this configuration (LoadOptions::head_dtype)",
            ));
        }
        let wanted = group.shard(config.vocab_size, group.me());
        if info.vocab_size != config.vocab_size || info.vocab != wanted {
            let text =
                |range: &Range<usize>, size: usize| format!("ids {}..{} of {size}", range.start, range.end);
            return Err(Error::shape(
                "shard",
                text(&wanted, config.vocab_size),
                text(&info.vocab, info.vocab_size),
                "load the shard that the group gives this member",
            ));
        }
        if info.quantization != config.quantization {
            let fix = "resolve the configuration with the quantisation of the loaded shard";
            return Err(Error::dtype("quantization", config.quantization, info.quantization, fix));
        }
        Ok(())
    }
}
