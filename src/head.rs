//! [`LmHead`]: one rank's part of a sharded head, from its creation over steps to its rebuilding after a fault.
//!
//! * `agreement`: what all ranks agree on at creation and at the beginning of a step.
//! * `pipeline`: [`Step::run`], `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`.
//! * `adjusting`: masks, additions and penalties on their way to the shards.
//! * `logprobs`: targets, ranks and logprobs, in chunks of rows.
//! * `sampling`: sampled tokens, in rounds that the rows' parameters ask for.
//! * `rounds`: one collective operation of a step and what it cost.
//! * `traffic`: what a step exchanges, worked out before it runs.
//! * `buffers`: bytes that are resized and cut into messages.

mod adjusting;
mod agreement;
mod buffers;
mod logprobs;
mod pipeline;
mod rounds;
mod sampling;
mod traffic;

pub use pipeline::Step;
pub use traffic::{RankTraffic, bytes_exchanged, step_traffic};

use buffers::resize;

use crate::backend::{Backend, Resident};
use crate::config::HeadConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::columns::Seen;
use crate::exchange::{Exchange, Operation};
use crate::layout::HeadGroup;
use crate::merge::RowPartial;
use crate::result::{Request, RowInputs, StepStats};
use crate::rows::{HiddenRows, RowCounts};
use crate::sampling::{LISTED, SamplingParams};
use crate::step::{self, Header, Mode, Ticket};
use crate::weights::HeadShard;
use std::ops::Range;
use std::sync::Arc;

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
    epoch: u32,
    sequence: u64,
    agreement: u64,
    warming_up: bool,
    poisoned: Option<String>,
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

impl LmHead {
    /// Creates this rank's part of the head; collective. `shard` is the group's [`HeadGroup::shard`] of the
    /// caller's member, `exchange` connects the members of `group` in their order.
    ///
    /// The ranks compare their settings here: configuration, dtypes, quantisation, backend and its instruction set.
    ///
    /// # Errors
    /// `Config`, `Shape` or `Dtype` where the parts do not fit each other; `StepMismatch` naming every setting on which
    /// ranks differ, or the rank whose parts do not fit; `Timeout` or `RankLost` where a rank does not come. After those two
    /// the exchange cannot be used again: make a new one.
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
        let mut head = LmHead {
            config: config.clone(),
            id: step::digest(config.name.as_bytes()) as u32,
            group,
            shard,
            exchange,
            backend,
            resident: Resident::default(),
            hidden_dtype,
            epoch: 0,
            sequence: 0,
            agreement: 0,
            warming_up: false,
            poisoned: None,
            scratch: Scratch::default(),
        };
        // A rank whose parts do not fit still takes part in the agreement: the others learn why, and nobody waits.
        let checked = head.check_parts();
        let prepared = checked.and_then(|()| head.backend.prepare(&head.shard, hidden_dtype));
        let refusal = prepared.map(|resident| head.resident = resident).err();
        head.agree_on_settings(refusal)?;
        Ok(head)
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

    /// Runs steps of every kind with `rows` zero rows per replica, so that buffers are allocated and code and weights are paged in
    /// before the first real step. Collective, and nothing but [`LmHead::step`] and [`Step::run`].
    ///
    /// # Errors
    /// As those two.
    pub fn warm_up(&mut self, rows: usize, requests: &[Request]) -> Result<()> {
        // Should a step panic, the head is poisoned, and rebuild() clears this too.
        self.warming_up = true;
        let result = self.run_warm_up(rows, requests);
        self.warming_up = false;
        result
    }

    fn run_warm_up(&mut self, rows: usize, requests: &[Request]) -> Result<()> {
        let (hidden, dtype) = (self.config.hidden_size, self.hidden_dtype);
        let mut zeros = Vec::new();
        resize(&mut zeros, [rows, hidden, dtype.size()], "rows of the warm-up")?;
        let targets = vec![0; if requests.is_empty() { 0 } else { rows }];
        // With filters that take every round there is.
        let filters =
            SamplingParams { top_k: LISTED + 1, top_p: 0.5, min_p: 0.1, ..SamplingParams::default() };
        let sampling = vec![filters; targets.len()];
        for request in requests {
            let each = vec![rows; self.group.replicas()];
            for counts in [RowCounts::Exact(each), RowCounts::discover(rows), RowCounts::capacity(rows, rows)]
            {
                let hidden = HiddenRows::new(&zeros, dtype, rows, hidden)?;
                let inputs = RowInputs {
                    targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                    sampling: (*request == Request::Sample).then_some(&sampling[..]),
                    adjustments: None,
                };
                self.step(counts, request)?.run_with(hidden, &inputs)?;
            }
        }
        Ok(())
    }

    /// Begins a step: fixes its arguments and, where the mode and the verification setting say so, checks the contract with the
    /// other ranks. Collective. The step must be run; there is no other way to use it.
    ///
    /// # Errors
    /// `Request` or `Shape` for arguments that no head or group could take (nothing is sent then and the head stays usable);
    /// `StepMismatch`, `Timeout`, `RankLost` as the contract says; `Poisoned` after an earlier fault.
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
        if let Some(cause) = &self.poisoned {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        request.check(self.config.vocab_size)?;
        self.check_logprobs(request, adjusted)?;
        let own = counts.own(self.group.replica_of(self.group.me()), self.group.replicas())?;
        let (mode, counts_field) = step::counts_field(&counts);
        let header = Header {
            head: self.id,
            epoch: self.epoch,
            mode,
            verify: self.config.verify,
            request: Some(*request),
            adjusted,
            sequence: self.sequence,
            rows: own as u64,
            counts: counts_field,
            agreement: self.agreement,
        };
        let verified = match mode {
            Mode::Exact => self.config.verify.applies(self.sequence, self.warming_up),
            Mode::Discover => true,
            // Otherwise the header rides in the payload.
            // Chunks of logprobs are gathered by counts.
            Mode::Capacity => matches!(request, Request::Logprobs { .. }),
            Mode::Create => false,
        };
        let ticket = Ticket { header, request: *request, timeout: self.config.timeout, counts };
        self.sequence += 1;

        let mut stats = StepStats::default();
        let mut adjusted = adjusted;
        let mut known = match &ticket.counts {
            RowCounts::Exact(list) => Some(list.clone()),
            _ if self.group.replicas() == 1 => Some(vec![own]),
            _ => None,
        };
        if verified && self.group.size() > 1 {
            match self.check_contract(&ticket, &mut stats) {
                Ok((by_replica, any)) => {
                    known = Some(by_replica);
                    adjusted = any;
                }
                Err(error) => {
                    self.fail(&ticket, &error);
                    return Err(error);
                }
            }
        }
        Ok(Step { head: self, ticket, counts: known, adjusted, stats, done: false })
    }

    /// Brings the head back after a fault, under a new epoch. Collective: every rank of the group calls it, also those on which
    /// the head has seen no fault. Heads that share an exchange are rebuilt one after the other, in the same order on every rank.
    ///
    /// # Errors
    /// `Timeout` or `RankLost` naming the ranks that do not come, `StepMismatch` as [`LmHead::new`]. The head then refuses
    /// steps; rebuild it again once the cause is mended.
    pub fn rebuild(&mut self) -> Result<()> {
        let result = self.try_rebuild();
        self.poisoned = result.as_ref().err().map(Error::to_string);
        result
    }

    fn try_rebuild(&mut self) -> Result<()> {
        let call = step::call(&self.creation_header(0, 0), Operation::Create, self.config.timeout);
        self.exchange.reset(&call).map_err(|fault| fault.into_error(&call, self.group.ranks()))?;
        self.epoch += 1;
        self.sequence = 0;
        self.warming_up = false;
        self.agree_on_settings(None)
    }

    /// Everything about the parts that one rank can judge alone.
    fn check_parts(&self) -> Result<()> {
        self.config.validate()?;
        let (shard, config, group) = (&self.shard, &self.config, &self.group);
        let place = |size: usize, me: usize| format!("member {me} of a group of {size}");
        if (self.exchange.size(), self.exchange.me()) != (group.size(), group.me()) {
            return Err(Error::shape(
                "exchange",
                place(group.size(), group.me()),
                place(self.exchange.size(), self.exchange.me()),
                "make the exchange from the same group, its members in the same order",
            ));
        }
        if shard.hidden_size() != config.hidden_size {
            return Err(Error::shape(
                "hidden_size",
                config.hidden_size,
                shard.hidden_size(),
                "load the shard with this configuration",
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

    /// After an error in a step: no further steps, and the peers are told.
    fn fail(&mut self, ticket: &Ticket, error: &Error) {
        // Alone, a refused input leaves nobody waiting and nothing half done.
        if self.group.size() > 1 || !error.is_bad_input() {
            self.poisoned = Some(error.to_string());
            self.exchange.abandon(&ticket.call(Operation::ExchangeResults), &error.cause());
        }
    }
}
