//! `docs/launches.md`: the fake driver's counts for one step of each request.

use super::{backend, device, each, group, on_nccl};
use crate::count_on;
use lmhead::DType;
use lmhead::backend::cuda::{CudaDevice, Graph};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::params::CapacityState;
use lmhead::config::Quantization;
use lmhead::exchange::Exchange;
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::memory::{Memory, Span};
use lmhead::result::Request;
use lmhead::rows::RowCounts;
use lmhead::sampling::Filters;
use lmhead_gpu::device_step::{Ask, DeviceStep, Source};
use lmhead_testkit::TestHead;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

const VOCAB: usize = 1024;
const HIDDEN: usize = 256;
/// Rows of each rank.
const ROWS: usize = 8;
const RANKS: [usize; 2] = [1, 2];
/// Bytes of the progress counters that the watchdog of replays reads: two words.
const COUNTERS: usize = 8;
/// The fake driver's counters, with their headings.
const COLUMNS: [(&str, &str); 10] = [
    ("kernels", "kernels"),
    ("programmatic", "of them programmatic"),
    ("products", "of them products"),
    ("collectives", "collectives"),
    ("memsets", "memsets"),
    ("copies", "copies"),
    ("weight bytes", "bytes of W"),
    ("bytes to the host", "to the host"),
    ("bytes to the device", "to the device"),
    ("waits", "waits"),
];
type Counts = [i64; COLUMNS.len()];

fn asks() -> Vec<Ask> {
    let plain = [
        Request::logits(DType::Bf16),
        Request::argmax(),
        Request::top_k(8),
        Request::top_k(64),
        Request::top_k(1000),
        Request::logprobs(0),
        Request::logprobs(8),
        Request::sample(),
        Request::sample_with_logprobs(8),
    ];
    let mut asks = plain.map(Ask::plain).to_vec();
    asks.push(Ask::sample(|params| params.top_k = 50));
    asks.push(Ask::sample(|params| params.top_p = 0.9));
    asks.push(Ask::sample(|params| params.min_p = 0.05));
    // With parameters in device memory the counts are those of any filters.
    asks.push(Ask::sample(|params| params.top_p = 0.9).by_device());
    asks.push(Ask::plain(Request::sample_with_logprobs(8)).by_device());
    asks
}

#[test]
fn the_page_of_launches_says_what_is_counted() {
    on_nccl("launches::in_child_counts", &[]);
}

#[test]
#[ignore = "needs the fake libraries: the_page_of_launches_says_what_is_counted runs it"]
fn in_child_counts() {
    let page = page();
    match std::env::var_os("LMHEAD_LAUNCH_TABLE") {
        Some(file) => std::fs::write(&file, page).expect("a file to write"),
        None => {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/launches.md");
            let kept = std::fs::read_to_string(file).unwrap_or_default();
            assert!(kept == page, "docs/launches.md: run scripts/launch-table; it would be\n{page}");
        }
    }
}

fn page() -> String {
    let mut page = format!(
        "\
# What a step puts on the device

A driver of the project's own counts these (`crates/gpu/fake_driver`, over the emulated device).
`scripts/launch-table` writes this page, and the test
`{TEST}` compares it. None of the
numbers is a time.

Each line is one step after a warm-up, with a bf16 head of {VOCAB} x {HIDDEN} and {ROWS} rows of each rank.
Hidden rows, indices, targets, sampling parameters and answers are in device memory. Several ranks exchange
over NCCL in a static (padded) shape.

- `graph`: a replay of a CUDA graph that contains the whole step.
- `eager`: a step that is queued anew. With several ranks the host waits for it.
- `asynchronous`: a step that is queued anew, for which the host does not wait.

The columns count what rank 0 puts on its device:

- kernels of this library; of these, programmatic dependent launches, and products: kernels that multiply by W
- collectives: launches of NCCL's kernels. With windows each is one more kernel of this library instead
- memsets, and copies of any kind
- bytes of W that the products read, by the sizes of their launches
- bytes that copies bring to the host and to the device. In a graph of several ranks the {} bytes to the host
  are the state of the step's contract and two counters of the watchdog
- waits of the host. Waits with nothing queued in between count as one

No kernel waits for a memset: a kernel before the products sets what they add to. If the device's code is for
compute capability 9.0 or later, every kernel is a programmatic dependent launch, eager and in a graph. It may
begin while the kernel before it still runs, and a product then loads weights (`kernels/step.cuh`).
",
        size_of::<CapacityState>() + COUNTERS
    );
    for ranks in RANKS {
        let shard = (VOCAB / ranks * HIDDEN * 2) as i64;
        let name = if ranks == 1 { "One rank".into() } else { format!("Rank 0 of {ranks}") };
        let headings = COLUMNS.map(|(_, heading)| heading).join(" | ");
        let rule = "---:|".repeat(COLUMNS.len());
        write!(page, "\n## {name}: a shard of {shard} bytes\n\n").expect("a text grows");
        write!(page, "| request | step | {headings} |\n|---|---|{rule}\n").expect("a text grows");
        for ask in asks() {
            let (eager, unwaited) = counted(ranks, ask, ROWS);
            let graph = unwaited.map(|unwaited| unwaited.graph);
            let by_device = if ask.filters == Filters::ByDevice { ", filters by device" } else { "" };
            let mut line = |how: &str, counts: Counts| {
                let cells = counts.map(|n| n.to_string()).join(" | ");
                writeln!(page, "| {ask}{by_device} | {how} | {cells} |").expect("a text grows");
            };
            line("eager", eager);
            let products = column("products");
            assert!(eager[products] > 0, "{ask}: {eager:?}");
            for counts in [Some(eager), graph].into_iter().flatten() {
                let [kernels, programmatic, memsets] = ["kernels", "programmatic", "memsets"].map(column);
                assert_eq!(counts[programmatic], counts[kernels], "{ask} on {ranks} ranks: {counts:?}");
                assert_eq!(counts[memsets], 0, "{ask} on {ranks} ranks: {counts:?}");
            }
            match graph {
                None => {
                    writeln!(page, "| {ask} | none |{}", " |".repeat(COLUMNS.len())).expect("a text grows")
                }
                Some(graph) => {
                    // The host takes no part, and no answer is copied to it.
                    let host = ["waits", "bytes to the host", "bytes to the device"].map(column);
                    let told = if ranks == 1 { 0 } else { (size_of::<CapacityState>() + COUNTERS) as i64 };
                    assert_eq!(host.map(|i| graph[i]), [0, told, 0], "{ask} on {ranks} ranks: {graph:?}");
                    assert_eq!(graph[column("weight bytes")], shard * graph[products], "{ask}: {graph:?}");
                    // Whatever a graph can contain is queued without waiting when eager, too.
                    assert_eq!(eager[column("waits")], (ranks - 1) as i64, "{ask} on {ranks} ranks");
                    line("graph", graph);
                    // Queued anew, such a step is the graph's, but for copies of the graph's alone.
                    if let Some(Unwaited { asynchronous, .. }) = unwaited.filter(|_| ranks > 1) {
                        assert_eq!(host.map(|i| asynchronous[i]), [0, told, 0], "{ask}: {asynchronous:?}");
                        line("asynchronous", asynchronous);
                    }
                }
            }
        }
    }
    page += "\n## 300 rows on one rank\n\n";
    page += "Eager; W is streamed once, as long as the workspace has room for the rows.\n\n";
    writeln!(page, "| request | kernels | of them products | bytes of W | to the host | waits |")
        .expect("a text grows");
    writeln!(page, "|---|---:|---:|---:|---:|---:|").expect("a text grows");
    for ask in [Request::top_k(8), Request::sample()].map(Ask::plain) {
        let (eager, _) = counted(1, ask, 300);
        let cells = ["kernels", "products", "weight bytes", "bytes to the host", "waits"];
        let cells = cells.map(|what| eager[column(what)].to_string()).join(" | ");
        writeln!(page, "| {ask} | {cells} |").expect("a text grows");
    }
    page + include_str!("launches_before.md")
}

const TEST: &str = "nccl::launches::the_page_of_launches_says_what_is_counted";

fn column(what: &str) -> usize {
    COLUMNS.iter().position(|(name, _)| *name == what).expect("a column")
}

/// The counts of steps that no host waits for: a graph's replay, and one that is queued anew.
#[derive(Clone, Copy)]
struct Unwaited {
    graph: Counts,
    asynchronous: Counts,
}

/// The counts of rank 0 for a step and, where nobody need wait for it, for those.
fn counted(ranks: usize, ask: Ask, rows: usize) -> (Counts, Option<Unwaited>) {
    let devices: Vec<CudaDevice> = (0..ranks).map(device).collect();
    let test = TestHead::random(VOCAB, HIDDEN, DType::Bf16, Quantization::None, 3);
    let again = Again { meeting: Barrier::new(ranks), wanted: AtomicBool::new(false) };
    let all =
        each(group(&devices), |me, exchange| on_rank(&test, &devices[me], exchange, (ask, rows), &again));
    all.into_iter().next().expect("a rank")
}

/// Whether a step is run again: rank 0 decides, whose counts they are, and all ranks do it.
struct Again {
    meeting: Barrier,
    wanted: AtomicBool,
}

impl Again {
    fn is_wanted(&self, decided: Option<bool>) -> bool {
        if let Some(decided) = decided {
            self.wanted.store(decided, Ordering::SeqCst);
        }
        self.meeting.wait();
        let wanted = self.wanted.load(Ordering::SeqCst);
        self.meeting.wait();
        wanted
    }
}

fn on_rank(
    test: &TestHead,
    device: &CudaDevice,
    exchange: Arc<dyn Exchange>,
    (ask, rows): (Ask, usize),
    again: &Again,
) -> (Counts, Option<Unwaited>) {
    let (me, ranks) = (exchange.me(), exchange.size());
    let members = HeadGroup::data_parallel(ranks, me).expect("a group");
    let shard = test.shard(members.shard(VOCAB, me));
    let head = LmHead::new(&test.config(), members, shard, exchange, backend(device)).expect("a head");
    let states = device.upload(&test.rows(rows, me as u64)).expect("memory");
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    let memory = Memory::Device(device.ordinal());
    // SAFETY: the memory outlives the step and is not written.
    let states = unsafe { Span::from_raw(memory, states.address(), states.len()) };
    let source = Source { states, dtype: DType::Bf16, rows };
    let picks: Vec<i64> = (0..rows as i64).rev().collect();
    let counts = RowCounts::capacity(rows, rows);
    let step = DeviceStep::new(head, ask, counts, (device, stream), (source, &picks));
    let mut step = step.expect("a step");
    let counted = |run: &mut dyn FnMut()| {
        let now = || COLUMNS.map(|(what, _)| count_on(what, device.ordinal()));
        let before = now();
        run();
        let after = now();
        device.wait(stream).expect("the end of a step");
        std::array::from_fn(|i| after[i] - before[i])
    };
    // The first step in a caller's workspace.
    step.run().expect("a step");
    device.wait(stream).expect("the end of a step");
    let mut eager = counted(&mut || step.run().expect("a step"));
    // On a busy machine queueing may take so long that the head asks which collective has not ended. The fake
    // driver takes that for a wait.
    for _ in 0..4 {
        let is_waited = step.is_capturable() && eager[column("waits")] >= ranks as i64;
        if again.is_wanted((me == 0).then_some(is_waited)) {
            eager = counted(&mut || step.run().expect("a step"));
        }
    }
    assert_eq!(step.row_status(), Ok(vec![0; rows]), "{ask}");
    let unwaited = step.is_capturable().then(|| {
        let graph = Graph::capture(device, stream, || step.run()).expect("a graph");
        step.poison().expect("copies");
        // SAFETY: the step outlives it.
        let of_graph = counted(&mut || unsafe { graph.launch(stream) }.expect("a launch"));
        assert_eq!(step.row_status(), Ok(vec![0; rows]), "{ask}");
        step.poison().expect("copies");
        step.asynchronous = true;
        let asynchronous = counted(&mut || step.run().expect("a step"));
        assert_eq!(step.row_status(), Ok(vec![0; rows]), "{ask}");
        Unwaited { graph: of_graph, asynchronous }
    });
    (eager, unwaited)
}
