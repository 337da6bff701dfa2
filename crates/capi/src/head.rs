//! One member's head: the functions that create, plan, prepare, run, query and free it.

use crate::about::{INFORMATION, log, owned};
use crate::backend::Backend;
use crate::boundary::{Failure, Outcome, argument, call, call_silently, given, place, text};
use crate::exchange::Endpoint;
use crate::handles;
use crate::step::{self, Contract, KeptCounts, Neutral};
use crate::structs::{count, dtype, dtype_code, room, sized, stream, write};
use crate::sys::{
    self, lmhead_answer, lmhead_backend, lmhead_config, lmhead_exchange, lmhead_group, lmhead_head,
    lmhead_needs, lmhead_stats, lmhead_status, lmhead_step, lmhead_weights,
};
use crate::weights::Weights;
use lmhead::backend::On;
use lmhead::config::{Settings, Verify};
use lmhead::exchange::{Exchange, local};
use lmhead::head::{AbortHandle, FlightRecorder};
use lmhead::memory::Memory;
use lmhead::result::StepStats;
use lmhead::weights::Checkpoint;
use lmhead::{Error, HeadConfig, HeadGroup, LmHead, RowInputs, SamplingParams};
use serde_json::json;
use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

pub struct Head {
    running: Mutex<Running>,
    /// Why the head refuses steps, after its last call; can be read while another call runs.
    poisoned: Mutex<Option<String>>,
    aborts: AbortHandle,
    recorder: FlightRecorder,
}

/// The parts that only one thread at a time may use.
struct Running {
    head: LmHead,
    /// Memory of the backend, for workspaces.
    memory: Memory,
    // Kept from step to step.
    counts: KeptCounts,
    sampling: Vec<SamplingParams>,
    neutral: Neutral,
}

impl Head {
    /// Copies the head's state after a call to where other threads can read it.
    fn note(&self, running: &Running) {
        let mut kept = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_deref() != running.head.poisoned() {
            *kept = running.head.poisoned().map(str::to_owned);
        }
    }

    /// Locks the head for a call; refuses a second call at the same time.
    fn lock(&self) -> Outcome<MutexGuard<'_, Running>> {
        match self.running.try_lock() {
            Ok(running) => Ok(running),
            // A call has panicked; the head itself remembers that and refuses further steps.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let fix = "step a head by one thread at a time, and not from its transport's callbacks";
                Err(argument("head", "a head that no other call uses", "one in a call", fix))
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_config_from_model(
    folder: *const c_char,
    settings_json: *const c_char,
    config: *mut lmhead_config,
) -> lmhead_status {
    call(|| {
        // SAFETY: the caller's promises.
        let (size, folder, settings) = unsafe {
            (room("config", config)?, text("folder", folder)?, text("settings_json", settings_json)?)
        };
        let folder = folder.ok_or_else(|| argument("folder", "a model's folder", "NULL", "pass one"))?;
        let settings = settings.map_or(Ok(Settings::default()), Settings::from_json)?;
        refuse_what_is_said_elsewhere(&settings)?;
        let checkpoint = Checkpoint::open_with(folder, &settings)?;
        let quantization = checkpoint.quantization(None)?;
        let resolved = HeadConfig::resolve(&settings, &checkpoint.model_config(), quantization)?;
        // SAFETY: as above.
        unsafe { write(config, size, &to_c(&resolved)?) };
        Ok(())
    })
}

/// Refuses keys that have no field in an `lmhead_config`, so that they are not ignored silently.
fn refuse_what_is_said_elsewhere(settings: &Settings) -> Outcome {
    let nothing = Settings::default();
    for (key, said, fix) in [
        (
            "lmhead_tp_size",
            settings.lmhead_tp_size != nothing.lmhead_tp_size,
            "pass it to lmhead_group_ranks",
        ),
        (
            "cost_model",
            settings.cost_model.is_some(),
            "it chooses a group size, which lmhead_group_ranks takes",
        ),
        ("quantization", settings.quantization.is_some(), "it is lmhead_load's"),
        ("bias", settings.bias.is_some(), "it is lmhead_load's without_bias"),
        ("head_dtype", settings.head_dtype.is_some(), "the weights say it"),
        ("weights_version", settings.weights_version.is_some(), "it is the version of the weights"),
        ("tie_word_embeddings", settings.tie_word_embeddings.is_some(), "name the tensor in lmhead_load"),
    ] {
        if said {
            return Err(argument("settings_json", format!("no key {key}"), "one", fix));
        }
    }
    Ok(())
}

fn to_c(config: &HeadConfig) -> Outcome<lmhead_config> {
    // SAFETY: numbers and bytes, of which zeros are legal.
    let mut to: lmhead_config = unsafe { std::mem::zeroed() };
    let name = config.name.as_bytes();
    if name.len() >= to.name.len() || name.contains(&0) {
        let wanted = format!("at most {} bytes, none of them 0", to.name.len() - 1);
        return Err(argument("name", wanted, format!("`{}`", config.name), "use a shorter name"));
    }
    for (to, from) in to.name.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    let millis = |key: &str, time: Duration| {
        u32::try_from(time.as_millis())
            .map_err(|_| argument(key, "less than 2^32 ms", format!("{time:?}"), "shorten it"))
    };
    (to.verify, to.verify_every) = match config.verify {
        Verify::Always => (sys::LMHEAD_VERIFY_ALWAYS as i32, 0),
        Verify::WarmUp => (sys::LMHEAD_VERIFY_PREPARE as i32, 0),
        Verify::Every(n) => (sys::LMHEAD_VERIFY_EVERY as i32, n),
    };
    to.vocab_size = config.vocab_size as i64;
    to.hidden_size = config.hidden_size as i64;
    to.hidden_dtype = config.hidden_dtype.map_or(0, dtype_code);
    to.logit_scale = config.logit_scale;
    to.softcap = config.final_logit_softcapping.unwrap_or(0.0);
    to.split_rows_over_tp = config.split_rows_over_tp.into();
    to.timeout_ms = millis("timeout_ms", config.timeout)?;
    to.create_timeout_ms = millis("create_timeout_ms", config.create_timeout)?;
    to.logprobs_chunk_bytes = config.logprobs_chunk_bytes;
    Ok(to)
}

fn from_c(config: &lmhead_config, weights: &Weights) -> Outcome<HeadConfig> {
    let name = {
        let bytes: [u8; 32] = config.name.map(|byte| byte as u8);
        let name =
            CStr::from_bytes_until_nul(&bytes).ok().and_then(|name| name.to_str().ok()).map(str::to_owned);
        name.ok_or_else(|| {
            argument("name", "UTF-8 that ends in a zero within 32 bytes", "other bytes", "shorten it")
        })?
    };
    let info = weights.shard.info();
    let plain =
        HeadConfig::new(count("vocab_size", config.vocab_size)?, count("hidden_size", config.hidden_size)?);
    let verify = match config.verify as u32 {
        sys::LMHEAD_VERIFY_DEFAULT | sys::LMHEAD_VERIFY_ALWAYS => Verify::Always,
        sys::LMHEAD_VERIFY_PREPARE => Verify::WarmUp,
        sys::LMHEAD_VERIFY_EVERY => Verify::Every(config.verify_every),
        _ => return Err(argument("verify", "a LMHEAD_VERIFY_ number", config.verify, "use one of those")),
    };
    let millis =
        |ms: u32, default: Duration| if ms == 0 { default } else { Duration::from_millis(ms.into()) };
    Ok(HeadConfig {
        name: if name.is_empty() { plain.name.clone() } else { name },
        hidden_dtype: match config.hidden_dtype {
            0 => None,
            code => Some(dtype("hidden_dtype", code)?),
        },
        logit_scale: if config.logit_scale == 0.0 { 1.0 } else { config.logit_scale },
        final_logit_softcapping: (config.softcap != 0.0).then_some(config.softcap),
        split_rows_over_tp: config.split_rows_over_tp != 0,
        verify,
        timeout: millis(config.timeout_ms, plain.timeout),
        create_timeout: millis(config.create_timeout_ms, plain.create_timeout),
        logprobs_chunk_bytes: match config.logprobs_chunk_bytes {
            0 => plain.logprobs_chunk_bytes,
            bytes => bytes,
        },
        quantization: info.quantization,
        weights_version: weights.version,
        ..plain
    })
}

/// The group and its transport. Without a group, a group of one rank.
///
/// # Safety
/// `group` must be what the header says.
unsafe fn members(
    group: *const lmhead_group,
    exchange: *const lmhead_exchange,
) -> Outcome<(HeadGroup, Arc<dyn Exchange>)> {
    let alone = || Arc::new(local::group(1).remove(0));
    if group.is_null() {
        if !exchange.is_null() {
            let fix = "say who its members are, or pass no exchange";
            return Err(argument("group", "a group where there is an exchange", "NULL", fix));
        }
        return Ok((HeadGroup::data_parallel(1, 0)?, alone()));
    }
    // SAFETY: as the caller says.
    let group = unsafe { given("group", group)? };
    let n = count("group.n", group.n)?;
    // SAFETY: as above.
    let ranks = unsafe { crate::structs::needed("group.ranks", group.ranks, n)? };
    let ranks: Vec<usize> = ranks.iter().map(|rank| count("group.ranks", *rank)).collect::<Outcome<_>>()?;
    let (tp, rank) = (count("group.tp", group.tp)?.max(1), count("group.rank", group.rank)?);
    let group = match ranks[..] {
        [only] if only == rank => HeadGroup::replicated(rank, count("group.tp_index", group.tp_index)?, tp)?,
        _ => HeadGroup::from_ranks(ranks, rank, tp)?,
    };
    if exchange.is_null() && group.size() == 1 {
        return Ok((group, alone()));
    }
    Ok((group, Arc::clone(&handles::get::<Endpoint>("exchange", exchange)?.0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_create(
    config: *const lmhead_config,
    group: *const lmhead_group,
    weights: *const lmhead_weights,
    exchange: *const lmhead_exchange,
    backend: *const lmhead_backend,
    head: *mut *mut lmhead_head,
) -> lmhead_status {
    call(|| {
        let head = place("head", head)?;
        // SAFETY: the caller's promises.
        let config = unsafe { sized("config", config)? };
        let weights = handles::get::<Weights>("weights", weights)?;
        let backend = Arc::clone(&handles::get::<Backend>("backend", backend)?.backend);
        // SAFETY: as above.
        let (group, exchange) = unsafe { members(group, exchange)? };
        let config = from_c(&config, &weights)?;
        let (memory, replicas) = (backend.memory(), group.replicas());
        let (ranks, name) = (group.ranks().to_vec(), backend.name());
        let made = LmHead::new(&config, group, Arc::clone(&weights.shard), exchange, backend)?;
        log(
            INFORMATION,
            &format!(
                "head `{}`: ids {:?} of {}, {} weights, {}, {} rows, backend {name}, ranks {ranks:?}",
                config.name,
                made.shard().vocab,
                config.vocab_size,
                made.shard().dtype,
                made.shard().quantization,
                made.hidden_dtype(),
            ),
        );
        let handle = handles::keep(Head {
            aborts: made.abort_handle(),
            recorder: made.flight_recorder(),
            poisoned: Mutex::new(None),
            running: Mutex::new(Running {
                head: made,
                memory,
                counts: KeptCounts::new(replicas),
                sampling: Vec::new(),
                neutral: Neutral::default(),
            }),
        })?;
        // SAFETY: `head` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { head.write(handle) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_free(head: *mut lmhead_head) {
    call_silently("lmhead_free", || handles::free::<Head>("head", head));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_plan(
    head: *const lmhead_head,
    step: *const lmhead_step,
    needs: *mut lmhead_needs,
) -> lmhead_status {
    call(|| {
        // SAFETY: the caller's promises.
        let (size, step) = unsafe { (room("needs", needs)?, sized("step", step)?) };
        let head = handles::get::<Head>("head", head)?;
        let mut running = head.lock()?;
        let Running { head, counts, .. } = &mut *running;
        let contract = Contract::of(&step)?;
        // SAFETY: as above.
        unsafe { step::counts(&step, contract.rows, head.group().replicas(), counts)? };
        let workspace_bytes = head.workspace(&counts.counts, &contract.request, contract.options)?;
        let answered = head.answered_rows(contract.rows);
        let value = lmhead_needs {
            size,
            workspace_bytes,
            first_row: answered.start as i64,
            rows: answered.len() as i64,
            capturable: head.is_capturable(&counts.counts, &contract.request, contract.options).into(),
        };
        // SAFETY: as above.
        unsafe { write(needs, size, &value) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_prepare(
    head: *mut lmhead_head,
    steps: *const lmhead_step,
    n: usize,
) -> lmhead_status {
    call(|| {
        let head = handles::get::<Head>("head", head)?;
        let mut running = head.lock()?;
        let running = &mut *running;
        let mut at = steps;
        let mut kinds = Vec::new();
        for i in 0..n {
            // SAFETY: the caller's promise of `n` structs of one size.
            let (step, size) = unsafe { (sized("steps", at)?, *at.cast::<usize>()) };
            // SAFETY: as above.
            if i > 0 && size != unsafe { *steps.cast::<usize>() } {
                return Err(argument(
                    "steps",
                    "structs of one size",
                    format!("{size} bytes"),
                    "make all by lmhead_step_init()",
                ));
            }
            let contract = Contract::of(&step)?;
            // SAFETY: as above.
            let rows = unsafe { step::most_rows(&step, running.head.group().replicas())? };
            // SAFETY: as above.
            kinds.push((rows, unsafe { stream(contract.memory, step.stream)? }, contract));
            // SAFETY: as above.
            at = unsafe { at.byte_add(size) };
        }
        for (rows, stream, Contract { request, options, memory, .. }) in kinds {
            let placed = options.device_adjustments;
            let done = match memory {
                Memory::Host => running.head.warm_up(rows, &[request]),
                Memory::Device(_) => running.head.warm_up_on_device(stream, rows, &[request], placed),
            };
            head.note(running);
            done?;
            running.sampling.reserve(rows.saturating_sub(running.sampling.len()));
            running.neutral.reserve(rows);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_run(
    head: *mut lmhead_head,
    step: *const lmhead_step,
    answer: *mut lmhead_answer,
) -> lmhead_status {
    call(|| {
        let head = handles::get::<Head>("head", head)?;
        let mut running = head.lock()?;
        // SAFETY: the caller's promises, for this and what follows.
        let (step, answer) = unsafe { (sized("step", step)?, sized("answer", answer.cast_const())?) };
        let stats = match answer.stats.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { room("answer.stats", answer.stats)? }),
        };
        // SAFETY: as above.
        let done = unsafe { run(&mut running, &step, &answer) };
        head.note(&running);
        let done = done?;
        if let Some(size) = stats {
            // SAFETY: as above.
            unsafe { write(answer.stats, size, &to_stats(size, &done)) };
        }
        Ok(())
    })
}

/// # Safety
/// The pointers are what the header says.
unsafe fn run(running: &mut Running, step: &lmhead_step, answer: &lmhead_answer) -> Outcome<StepStats> {
    let Running { head, memory, counts, sampling, neutral } = running;
    let contract = Contract::of(step)?;
    // SAFETY: as the caller says, for this and what follows.
    let on = unsafe {
        step::counts(step, contract.rows, head.group().replicas(), counts)?;
        On { stream: stream(contract.memory, step.stream)?, workspace: step::workspace(step, *memory)? }
    };
    // SAFETY: as above.
    let own = unsafe { own_part(head, step, answer, &contract, sampling, neutral) };
    let own = match own {
        Ok(own) => Ok(own),
        Err(refused @ Failure::Argument(_)) => return Err(refused),
        Err(Failure::Library(error)) => Err(error),
    };
    let ticket = head.begin(&counts.counts, &contract.request, contract.options)?;
    let (hidden, inputs, buffers) = match own {
        Ok(own) => own,
        // The peers are in this step, or will be, so they must be told.
        Err(error) => return Err(head.fail(ticket, error).into()),
    };
    Ok(head.run_into(ticket, hidden, &inputs, buffers, on)?)
}

type OwnPart<'a> = (lmhead::HiddenRows<'a>, RowInputs<'a>, lmhead::result::AnswerBuffers<'a>);

/// The rank's own rows, inputs and answer buffers of a step.
///
/// # Safety
/// As [`run`].
unsafe fn own_part<'a>(
    head: &LmHead,
    step: &lmhead_step,
    answer: &lmhead_answer,
    contract: &Contract,
    sampling: &'a mut Vec<SamplingParams>,
    neutral: &'a mut Neutral,
) -> Outcome<OwnPart<'a>> {
    let (rows, vocab_size) = (contract.rows, head.config().vocab_size);
    let targets = match contract.request {
        lmhead::Request::Logprobs { targets, .. } => Some(rows.saturating_mul(targets)),
        _ => None,
    };
    // SAFETY: as the caller says, for all of these.
    unsafe {
        let hidden = step::hidden(step, contract, (head.hidden_dtype(), head.config().hidden_size))?;
        let on_device = step::device_inputs(step, contract, vocab_size)?;
        let placed = |kind: u32| step.device_inputs & kind != 0;
        let targets = match targets {
            _ if placed(sys::LMHEAD_DEVICE_TARGETS) => None,
            Some(n) => Some(crate::structs::needed("targets", step.targets, n)?),
            None if step.targets.is_null() => None,
            None => {
                return Err(argument("targets", "NULL with this request", "some", "they are for LOGPROBS"));
            }
        };
        let is_sampled = matches!(contract.request, lmhead::Request::Sample { .. });
        if !is_sampled && !step.sampling.is_null() {
            return Err(argument("sampling", "NULL with this request", "some", "it is for SAMPLE"));
        }
        sampling.clear();
        match (is_sampled, step.sampling.is_null()) {
            _ if on_device.sampling.is_some() => {}
            (true, false) => step::sampling(given("sampling", step.sampling)?, rows, sampling)?,
            (true, true) => sampling.resize(rows, SamplingParams::default()),
            _ => {}
        }
        neutral.reserve(rows);
        let adjustments = match step.adjustments.is_null() {
            _ if placed(sys::LMHEAD_DEVICE_ADJUSTMENTS) => None,
            true => None,
            false => {
                Some(step::adjustments(given("adjustments", step.adjustments)?, rows, vocab_size, neutral)?)
            }
        };
        let answered = head.answered_rows(rows).len();
        let buffers = step::answer(answer, contract, answered, vocab_size)?;
        let sampling = (is_sampled && on_device.sampling.is_none()).then_some(&sampling[..]);
        Ok((hidden, RowInputs { targets, sampling, adjustments, on_device }, buffers))
    }
}

fn to_stats(size: usize, stats: &StepStats) -> lmhead_stats {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    lmhead_stats {
        size,
        rows_computed: stats.rows_computed as i64,
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        weight_bytes: stats.weight_bytes,
        contract_ns: nanos(stats.contract),
        gather_ns: nanos(stats.gather),
        matmul_ns: nanos(stats.matmul),
        exchange_ns: nanos(stats.exchange),
        rounds: stats.rounds,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_async_status(head: *mut lmhead_head) -> lmhead_status {
    call(|| {
        let head = handles::get::<Head>("head", head)?;
        // Does not take the lock of a call: a query must not make a call at the same time fail.
        let poisoned = head.poisoned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(cause) = poisoned {
            return Err(Error::Poisoned { cause }.into());
        }
        // Work that was queued, or replayed by a graph, may have failed since.
        head.recorder.fault().map_or(Ok(()), |error| Err(error.into()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_abort(head: *mut lmhead_head, reason: *const c_char) -> lmhead_status {
    call(|| {
        // SAFETY: the caller's promise.
        let reason = unsafe { text("reason", reason)? }.unwrap_or("no reason given");
        handles::get::<Head>("head", head)?.aborts.abort(reason);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_set_weights_version(head: *mut lmhead_head, version: u64) -> lmhead_status {
    call(|| {
        handles::get::<Head>("head", head)?.lock()?.head.set_weights_version(version);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_release_memory(head: *mut lmhead_head) -> lmhead_status {
    call(|| {
        let head = handles::get::<Head>("head", head)?;
        let mut running = head.lock()?;
        running.head.release_memory();
        (running.sampling, running.neutral) = (Vec::new(), Neutral::default());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_flight_recorder(
    head: *const lmhead_head,
    json: *mut *mut c_char,
) -> lmhead_status {
    call(|| {
        let json = place("json", json)?;
        let recorder = handles::get::<Head>("head", head)?.recorder.clone();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let steps: Vec<_> = recorder
            .steps()
            .iter()
            .map(|step| {
                let operations: Vec<_> = step
                    .operations()
                    .iter()
                    .map(|o| {
                        json!({ "operation": o.operation.name(), "calls": o.calls, "bytes_sent": o.bytes_sent,
                            "bytes_received": o.bytes_received, "us": micros(o.time) })
                    })
                    .collect();
                json!({ "step": step.step, "epoch": step.epoch, "mode": step.mode.to_string(),
                    "request": step.request.map(|request| request.to_string()), "rows": step.rows,
                    "group_rows": step.group_rows, "us": micros(step.time),
                    "outcome": format!("{:?}", step.outcome).to_lowercase(), "operations": operations })
            })
            .collect();
        let place_of = |place: &lmhead::call::Place, head: &Option<String>| {
            json!({ "head": head, "instance": place.instance, "epoch": place.epoch, "step": place.step,
                "operation": place.operation.name(), "age_ms": place.age.as_secs_f64() * 1e3 })
        };
        let members: Vec<_> = recorder
            .evidence()
            .last_seen
            .iter()
            .map(|seen| {
                let elsewhere = seen.elsewhere.as_ref().map(|(place, head)| place_of(place, head));
                let place = seen.place.as_ref().map(|place| place_of(place, &seen.head));
                json!({ "rank": seen.rank, "place": place, "elsewhere": elsewhere })
            })
            .collect();
        // SAFETY: `json` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { json.write(owned(&json!({ "steps": steps, "members": members }).to_string())) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_rebuild(head: *mut lmhead_head) -> lmhead_status {
    call(|| {
        let head = handles::get::<Head>("head", head)?;
        let mut running = head.lock()?;
        let rebuilt = running.head.rebuild();
        head.note(&running);
        Ok(rebuilt?)
    })
}

/// The header's structs that are embedded in others have the sizes that were frozen.
const _: () = {
    assert!(size_of::<sys::lmhead_tensor>() == 48);
    assert!(size_of::<lmhead_group>() == 40);
    assert!(size_of::<sys::lmhead_sampling>() == 48);
    assert!(size_of::<sys::lmhead_adjustments>() == 88);
};
