//! What ranks do over NCCL: as threads on the fake libraries (`tests/cuda_driver`), and as processes that
//! share one GPU (`tests/gpu`). Each function is one rank's part; they panic where something is not as it
//! must be.

use crate::captured_steps::{self, CapturedKind, Replays};
use lmhead::DType;
use lmhead::backend::Backend;
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::{KernelDevice, stream_marks};
use lmhead::config::Quantization;
use lmhead::exchange::nccl::{Nccl, NcclExchange};
use lmhead::exchange::{Call, DeviceExchange, Exchange, Fault, Operation, Piece, Reset, WithDevice};
use lmhead_testkit::processes::{Rank, Scenarios};
use lmhead_testkit::product::shards::backend_of;
use lmhead_testkit::product::shared_device::call;
use lmhead_testkit::requests::{Case, Resident, cases};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// One rank: its device, and its endpoint with a side for device memory.
pub struct Ranked {
    pub device: CudaDevice,
    pub exchange: Arc<dyn Exchange>,
}

/// Scenarios by name, for processes that share device 0.
pub const SCENARIOS: &Scenarios = &[
    ("steps", |rank| on_device_0(&rank, |ranked| steps(ranked, 12))),
    ("a late rank", |rank| on_device_0(&rank, a_late_rank)),
    (KILLED_RANK, |rank| {
        let is_killed = || {
            rank.mark(WAITED_FOR);
            thread::sleep(Duration::from_secs(3600));
        };
        on_device_0(&rank, |ranked| a_killed_rank(ranked, is_killed))
    }),
    ("captured steps", |rank| {
        let wanted = if rank.size <= 2 { 60 } else { 20 };
        on_device_0(&rank, |ranked| {
            many_replays(ranked, if rank.size <= 2 { 1000 } else { 250 });
            captured_steps(ranked, wanted, 1)
        })
    }),
    ("replays", |rank| {
        // Fewer with more ranks, within the test's time.
        let wanted = if rank.size <= 2 { 1000 } else { 250 };
        on_device_0(&rank, |ranked| replays(ranked, wanted))
    }),
];

/// The scenario whose rank [`BROKEN`] is killed by the test, once it has left the mark [`WAITED_FOR`].
pub const KILLED_RANK: &str = "a killed rank";
pub const WAITED_FOR: &str = "waited for";

/// The rank that does not come, or is killed.
pub const BROKEN: usize = 1;

/// Runs a rank that is a process: its host transport is joined with NCCL, on device 0.
fn on_device_0(rank: &Rank, run: impl FnOnce(&Ranked) -> Value) -> Value {
    // NCCL refuses several ranks on one GPU, unless they say that they are on hosts of their own.
    for (name, value) in [
        ("NCCL_HOSTID", format!("rank-{}", rank.me)),
        ("NCCL_NET", "Socket".into()),
        ("NCCL_SOCKET_IFNAME", "lo".into()),
        ("NCCL_MNNVL_ENABLE", "0".into()),
    ] {
        // SAFETY: the threads of this process wait for sockets; none reads the environment now.
        unsafe { std::env::set_var(name, value) };
    }
    let nccl = Nccl::load(None).expect("NCCL");
    let device = CudaDevice::open(0).expect("a device");
    let side = NcclExchange::new(nccl, stream_marks(&device), (rank.me, rank.size));
    let exchange = Arc::new(WithDevice::new(Arc::clone(&rank.exchange), Arc::new(side)));
    let mut said = run(&Ranked { device, exchange });
    said["nccl"] = json!(nccl.version().to_string());
    said
}

/// The same random cases on every rank, of groups of that size.
fn cases_of(size: usize, wanted: usize) -> Vec<Case> {
    let kinds = [
        (DType::Bf16, Quantization::None),
        (DType::F16, Quantization::W8a8),
        (DType::Bf16, Quantization::W8a16),
    ];
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let strategy = cases(&kinds);
    let mut next = || strategy.new_tree(&mut runner).expect("a case").current();
    std::iter::repeat_with(&mut next).filter(|case| case.is_of(size)).take(wanted).collect()
}

/// Steps of every kind with rows and answers in device memory have the bits of the same steps in host memory;
/// uneven and idle ranks are among them.
///
/// # Panics
/// Where bits differ.
pub fn steps(rank: &Ranked, wanted: usize) -> Value {
    let backend: Arc<dyn Backend> = Arc::new(backend_of(rank.device.clone(), false));
    let (size, me) = (rank.exchange.size(), rank.exchange.me());
    let place = Resident::over(vec![(rank.device.clone(), backend)], |_| Vec::new());
    let cases = cases_of(size, wanted);
    for (i, case) in cases.iter().enumerate() {
        let held = case.rank_stays_on(&place, me, Arc::clone(&rank.exchange));
        held.unwrap_or_else(|failure| panic!("case {i} of {size} ranks: {failure}"));
    }
    json!({ "cases": cases.len() })
}

/// Whole steps in CUDA graphs, each replayed `replays` times: of every kind with `one_in` 1, else of one kind
/// in so many, beginning with the kind whose number is the group's size modulo that.
///
/// # Panics
/// Where bits differ.
pub fn captured_steps(rank: &Ranked, replays: u64, one_in: usize) -> Value {
    let size = rank.exchange.size();
    let kinds: Vec<_> = captured_steps::kinds(size).into_iter().skip(size % one_in).step_by(one_in).collect();
    replay_each(rank, &kinds, Replays { count: replays, different: u64::MAX });
    json!({ "kinds": kinds.len(), "replays": replays })
}

/// Whole steps whose graphs are replayed `replays` times; every 40th replay has the same inputs.
///
/// # Panics
/// Where bits differ.
pub fn many_replays(rank: &Ranked, replays: u64) {
    replay_each(rank, &captured_steps::small_kinds(), Replays { count: replays, different: 40 });
}

fn replay_each(rank: &Ranked, kinds: &[CapturedKind], replays: Replays) {
    for kind in kinds {
        captured_steps::replay_steps(&rank.device, Arc::clone(&rank.exchange), *kind, replays);
    }
}

/// The deadline of a collective that one rank breaks, and of those that all come to.
const DEADLINE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(12);

/// A connected channel of one rank, and memory to gather a byte from each rank.
struct Gathers<'r> {
    rank: &'r Ranked,
    instance: u32,
    channel: Arc<dyn Exchange>,
    memory: <CudaDevice as KernelDevice>::Buffer,
    stream: <CudaDevice as KernelDevice>::OwnedStream,
}

impl<'r> Gathers<'r> {
    /// Collective.
    fn new(rank: &'r Ranked) -> Self {
        let (instance, channel) = rank.exchange.channel(7).expect("a channel");
        let memory = rank.device.alloc(channel.size()).expect("memory");
        let stream = rank.device.open_stream().expect("a stream");
        let gathers = Gathers { rank, instance, channel, memory, stream };
        gathers.connect();
        gathers
    }

    fn call(&self, step: u64, within: Duration) -> Call {
        Call { instance: self.instance, ..call(step, Operation::GatherRows, within) }
    }

    fn side(&self) -> &dyn DeviceExchange {
        self.channel.device().expect("a side for device memory")
    }

    fn connect(&self) {
        self.side().connect(&self.call(0, SOON), &*self.channel).expect("a connection");
    }

    /// One gather.
    fn run(&self, call: &Call) -> Result<(), Fault> {
        let (device, me, size) = (&self.rank.device, self.channel.me(), self.channel.size());
        let stream = device.on(&self.stream);
        let piece = |from: usize| Piece { address: device.address(&self.memory) + from as u64, len: 1 };
        let (everyone, pieces): (Vec<usize>, Vec<Piece>) = (0..size).map(|from| (from, piece(from))).unzip();
        self.channel.note(call);
        device.write_on(stream, &self.memory, me, &[me as u8 + 1]).expect("a copy");
        let (side, handle) = (self.side(), device.handle(stream));
        // SAFETY: the memory outlives the work: this waits for it, or it is aborted.
        unsafe { side.all_gather_v(call, &everyone, piece(me), &pieces, handle)? };
        side.wait(None, side.mark(call, handle)?, call, &*self.channel)?;
        let mut got = vec![0; size];
        device.read_on(stream, &self.memory, 0, &mut got).expect("a copy");
        assert!(got.iter().enumerate().all(|(from, byte)| *byte == from as u8 + 1), "{got:?}");
        Ok(())
    }

    /// A gather that a rank breaks. Returns the fault and how long it took, at most the deadline and a
    /// second.
    fn fails(&self, step: u64) -> (Fault, Duration) {
        let began = Instant::now();
        let fault = self.run(&self.call(step, DEADLINE)).expect_err("a rank is missing");
        let (took, me) = (began.elapsed(), self.channel.me());
        assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
        match fault {
            Fault::Earlier { fault, .. } => (*fault, took),
            fault => (fault, took),
        }
    }
}

/// A rank that does not come is named by its peers at the deadline; after a reset all go on.
///
/// # Panics
/// Where that is not so.
pub fn a_late_rank(rank: &Ranked) -> Value {
    let (me, gathers) = (rank.exchange.me(), Gathers::new(rank));
    gathers.run(&gathers.call(1, SOON)).expect("a gather");
    let began = Instant::now();
    let mut seconds = 0.0;
    if me != BROKEN {
        let (fault, took) = gathers.fails(2);
        assert_eq!(fault, Fault::Timeout { missing: vec![BROKEN] }, "rank {me}");
        seconds = took.as_secs_f64();
    }
    // A reset ends what the others still wait for: no rank resets before all deadlines have passed.
    thread::sleep((DEADLINE + Duration::from_millis(500)).saturating_sub(began.elapsed()));
    let rebuild = Call { operation: Operation::Rebuild, ..gathers.call(0, 10 * DEADLINE) };
    assert_eq!(gathers.channel.reset(&rebuild), Ok(Reset::Done), "rank {me}");
    gathers.connect();
    gathers.run(&gathers.call(3, SOON)).expect("a gather after the reset");
    json!({ "seconds": seconds })
}

/// A rank ends while its peers wait for it in a gather: they name it. `ends` kills the process; in a thread
/// it returns, and the rank's endpoints are dropped.
///
/// # Panics
/// Where that is not so.
pub fn a_killed_rank(rank: &Ranked, ends: impl FnOnce()) -> Value {
    let (me, gathers) = (rank.exchange.me(), Gathers::new(rank));
    gathers.run(&gathers.call(1, SOON)).expect("a gather");
    if me == BROKEN {
        gathers.channel.note(&gathers.call(2, DEADLINE));
        ends();
        return Value::Null;
    }
    let (fault, took) = gathers.fails(2);
    assert_eq!(fault, Fault::Lost { members: vec![BROKEN] }, "rank {me}");
    // A rank that leaves counts as lost, too: none leaves before all have named the killed one.
    thread::sleep((DEADLINE + Duration::from_secs(2)).saturating_sub(took));
    json!({ "seconds": took.as_secs_f64() })
}

/// Byte `i` of what `from` has for `to` in a replay.
fn byte(replay: usize, from: usize, to: usize, i: usize) -> u8 {
    (replay * 97 + from * 31 + to * 7 + i) as u8
}

/// Gathers of one length and of several (none from rank 0), and an exchange of uneven pieces, in one CUDA
/// graph: each replay moves what is in the buffers then, with one rank late in turn.
///
/// # Panics
/// Where other bytes arrive.
pub fn replays(rank: &Ranked, replays: usize) -> Value {
    let Ranked { device, exchange } = rank;
    let (size, me) = (exchange.size(), exchange.me());
    let (instance, channel) = exchange.channel(7).expect("a channel");
    let side = channel.device().expect("a side for device memory");
    let this = |step| Call { instance, ..call(step, Operation::GatherRows, Duration::from_secs(60)) };
    assert!(side.caps().capture);
    side.connect(&this(0), &*channel).expect("a connection");

    let gathers: [fn(usize) -> usize; 2] = [|_| 5, |from| 3 * from];
    let length = |from: usize, to: usize| (from + 2 * to) % 4;
    let sizes = |len: &dyn Fn(usize) -> usize| (0..size).map(len).collect::<Vec<_>>();
    // Room for the first two gathers of all ranks, then for the exchange.
    let room = 16 * size;
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    let handle = device.handle(stream);
    let send = device.alloc(3 * room).expect("memory");
    let recv = device.alloc(3 * room).expect("memory");
    let pieces = |mut at: u64, sizes: &[usize]| -> Vec<Piece> {
        let next = |&len: &usize| {
            let piece = Piece { address: at, len };
            at += len as u64;
            piece
        };
        sizes.iter().map(next).collect()
    };
    let everyone: Vec<usize> = (0..size).collect();
    let work = || {
        for (i, len) in gathers.iter().enumerate() {
            let at = (room * i) as u64;
            let piece = Piece { address: device.address(&send) + at, len: len(me) };
            let places = pieces(device.address(&recv) + at, &sizes(len));
            // SAFETY: the buffers outlive the graph.
            unsafe { side.all_gather_v(&this(1), &everyone, piece, &places, handle) }.expect("a gather");
        }
        let third = 2 * room as u64;
        let sent = pieces(device.address(&send) + third, &sizes(&|to| length(me, to)));
        let places = pieces(device.address(&recv) + third, &sizes(&|from| length(from, me)));
        // SAFETY: as above.
        unsafe { side.all_to_all_v(&this(1), &sent, &places, handle) }.expect("an exchange");
        Ok(())
    };
    // Once without a graph: connections are made then.
    work().expect("queued");
    side.wait(None, side.mark(&this(1), handle).expect("a mark"), &this(1), &*channel).expect("the end");
    let graph = Graph::capture(device, stream, work).expect("a graph");

    for replay in 0..replays {
        let mut bytes = vec![0u8; 3 * room];
        for (i, len) in gathers.iter().enumerate() {
            (0..len(me)).for_each(|k| bytes[room * i + k] = byte(replay, me, 9 + i, k));
        }
        let mut at = 2 * room;
        for to in 0..size {
            (0..length(me, to)).for_each(|k| bytes[at + k] = byte(replay, me, to, k));
            at += length(me, to);
        }
        device.write_on(stream, &send, 0, &bytes).expect("a copy");
        if replay < 100 && me == replay % size {
            thread::sleep(Duration::from_millis(3));
        }
        // SAFETY: its memory outlives it.
        unsafe { graph.launch(stream) }.expect("a launch");
        let step = this(2 + replay as u64);
        side.wait(None, side.mark(&step, handle).expect("a mark"), &step, &*channel).expect("the end");
        let mut got = vec![0u8; 3 * room];
        device.read_on(stream, &recv, 0, &mut got).expect("a copy");
        for (i, len) in gathers.iter().enumerate() {
            let of = |from: usize| (0..len(from)).map(move |k| byte(replay, from, 9 + i, k));
            let wanted: Vec<u8> = (0..size).flat_map(of).collect();
            assert_eq!(got[room * i..][..wanted.len()], wanted, "gather {i} of replay {replay}");
        }
        let of = |from: usize| (0..length(from, me)).map(move |k| byte(replay, from, me, k));
        let wanted: Vec<u8> = (0..size).flat_map(of).collect();
        assert_eq!(got[2 * room..][..wanted.len()], wanted, "exchange of replay {replay}");
    }
    json!({ "replays": replays })
}
