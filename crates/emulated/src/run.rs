//! Runs the clusters of a launch, or of two launches that overlap, on OS threads.

use super::buffer::Reachable;
use super::fault::Fault;
use super::ffi::{self, Allocation, RawFault};
use super::launch::Prepared;
use super::order::Shuffled;
use super::worker::Worker;
use std::ffi::c_void;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

/// Ignores poison: a panic while the lock was held left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One launch's progress.
struct Progress {
    /// Clusters that nobody has begun, in the order in which they will be begun.
    waiting: Shuffled,
    running: usize,
    /// Blocks that have not executed launch_dependents.
    untriggered: u64,
}

struct State {
    progress: Vec<Progress>,
    fault: Option<Fault>,
    trace: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a callback needs to know.
struct Context<'a> {
    shared: &'a Shared,
    launch: usize,
    /// Lines go to the standard error, not to the device's trace.
    print: bool,
}

extern "C" fn wait_for_primary(context: *const c_void) -> i32 {
    // SAFETY: the context that `run` gave, which outlives its clusters.
    let context = unsafe { &*context.cast::<Context<'_>>() };
    let mut state = lock(&context.shared.state);
    loop {
        if state.fault.is_some() {
            return 0;
        }
        let primary = &state.progress[context.launch - 1];
        if primary.waiting.is_empty() && primary.running == 0 {
            return 1;
        }
        state = context.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

extern "C" fn block_triggered(context: *const c_void) {
    // SAFETY: as above.
    let context = unsafe { &*context.cast::<Context<'_>>() };
    lock(&context.shared.state).progress[context.launch].untriggered -= 1;
    context.shared.changed.notify_all();
}

extern "C" fn trace(context: *const c_void, line: *const u8, bytes: u64) {
    // SAFETY: as above, and the line has that many bytes.
    let (context, line) =
        unsafe { (&*context.cast::<Context<'_>>(), std::slice::from_raw_parts(line, bytes as usize)) };
    let line = String::from_utf8_lossy(line).into_owned();
    if context.print {
        // An error, say of a pipe that nobody reads any more, must not unwind into the device.
        let _ = writeln!(std::io::stderr(), "{line}");
    } else {
        lock(&context.shared.state).trace.push(line);
    }
}

/// The next cluster to run: of the first launch while there is one, then of the second once it may begin.
fn next(shared: &Shared) -> Option<(usize, u64)> {
    let mut state = lock(&shared.state);
    loop {
        if state.fault.is_some() || state.progress.iter().all(|p| p.waiting.is_empty()) {
            return None;
        }
        for launch in 0..state.progress.len() {
            if launch > 0 && state.progress[launch - 1].untriggered > 0 {
                break;
            }
            let progress = &mut state.progress[launch];
            if let Some(cluster) = progress.waiting.next() {
                progress.running += 1;
                return Some((launch, cluster));
            }
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn work(shared: &Shared, launches: &[RawLaunch], worker: &Worker) {
    let mut fault = RawFault::empty();
    while let Some((launch, cluster)) = next(shared) {
        // SAFETY: the launch was checked, its buffers live and are borrowed for writing, and this thread has
        // the worker alone.
        let outcome = unsafe {
            ffi::lmhead_emulated_run_cluster(worker.raw(), &launches[launch].raw, cluster, &mut *fault)
        };
        let mut state = lock(&shared.state);
        state.progress[launch].running -= 1;
        if outcome == 1 && state.fault.is_none() {
            state.fault = Some(Fault::new(launches[launch].name, launches[launch].raw.seed, &fault));
        }
        drop(state);
        shared.changed.notify_all();
    }
}

/// Pointers into what `run` owns.
struct RawLaunch {
    raw: ffi::Launch,
    name: &'static str,
}

// SAFETY: what the pointers name is read only, or written as several OS threads may (buffers, by the kernels'
// own rules).
unsafe impl Sync for RawLaunch {}

/// The block of this kernel that `LMHEAD_EMULATED_TRACE` wants traced.
fn traced_by_environment(kernel: &str) -> Option<u64> {
    let wanted = std::env::var("LMHEAD_EMULATED_TRACE").ok()?;
    match wanted.rsplit_once(':') {
        Some((name, block)) if name == kernel => block.parse().ok(),
        Some(_) => None,
        None => wanted.parse().ok(),
    }
}

/// What a launch has done to each byte of each memory, by the memory's number. Pages that nobody marks cost
/// nothing.
pub type Marks = Vec<Vec<u64>>;

/// How launches are ordered against those before them.
pub enum Order<'a> {
    /// One that begins when all before it has ended; or two, of which the second begins before the first has.
    Overlapping,
    /// One launch that may begin while the one before it runs (`kernels/step.cuh`), which left those marks.
    /// It leaves its own in their place.
    InTurn(&'a mut Option<Marks>),
}

/// The memories with their marks, by address, as a launch is handed them.
fn table(memories: &[Reachable], marks: &mut Marks) -> Vec<Allocation> {
    // Memory that came later has no marks.
    marks.resize_with(memories.len().max(marks.len()), Vec::new);
    let mut table: Vec<Allocation> = memories
        .iter()
        .zip(marks)
        .enumerate()
        .map(|(number, (memory, marks))| Allocation {
            address: memory.address(),
            bytes: memory.bytes as u64,
            writable: u32::from(memory.writable),
            number: number as u32,
            marks: if marks.is_empty() { std::ptr::null_mut() } else { marks.as_mut_ptr() },
        })
        .collect();
    table.sort_by_key(|a| a.address);
    table
}

pub fn run(
    memories: &[Reachable],
    lines: &mut Vec<String>,
    launches: &[Prepared],
    order: Order<'_>,
) -> Result<(), Fault> {
    let overlap = launches.len() > 1;
    let marks_of = |launch: &Prepared, memory: &Reachable| {
        let noted = memory.writable && (overlap || launch.config.checks);
        vec![0u64; if noted { memory.bytes.div_ceil(8) } else { 0 }]
    };
    let mut marks: Vec<Marks> = launches
        .iter()
        .map(|launch| memories.iter().map(|memory| marks_of(launch, memory)).collect())
        .collect();
    let tables: Vec<Vec<Allocation>> = marks.iter_mut().map(|marks| table(memories, marks)).collect();
    let (in_turn, mut none) = (matches!(order, Order::InTurn(_)), None);
    let previous = match order {
        Order::Overlapping => &mut none,
        Order::InTurn(previous) => previous,
    };
    let before = previous.as_mut().map(|marks| table(memories, marks));
    let progress = launches
        .iter()
        .map(|launch| Progress {
            waiting: Shuffled::new(launch.clusters(), launch.config.seed),
            running: 0,
            untriggered: launch.blocks(),
        })
        .collect();
    let shared = Shared {
        state: Mutex::new(State { progress, fault: None, trace: Vec::new() }),
        changed: Condvar::new(),
    };
    let contexts: Vec<(Context<'_>, Option<u64>)> = launches
        .iter()
        .enumerate()
        .map(|(number, launch)| {
            let printed = traced_by_environment(launch.name);
            let context = Context { shared: &shared, launch: number, print: printed.is_some() };
            (context, printed.or(launch.config.trace))
        })
        .collect();
    let raws: Vec<RawLaunch> = launches
        .iter()
        .enumerate()
        .map(|(number, launch)| {
            let mut raw = launch.raw();
            raw.allocations = tables[number].as_ptr();
            raw.allocation_count = tables[number].len() as u64;
            raw.overlapped = u32::from(in_turn || number + 1 < launches.len());
            raw.in_turn = u32::from(in_turn);
            raw.primary = match (number, &before) {
                (0, Some(before)) => before.as_ptr(),
                (0, None) => std::ptr::null(),
                (_, _) => tables[number - 1].as_ptr(),
            };
            raw.traced = u32::from(contexts[number].1.is_some());
            raw.trace_block = contexts[number].1.unwrap_or(0);
            raw.host = ffi::Host {
                context: (&raw const contexts[number].0).cast(),
                wait_for_primary,
                block_triggered,
                trace,
            };
            RawLaunch { raw, name: launch.name }
        })
        .collect();

    let clusters: u64 = launches.iter().map(|launch| launch.clusters()).sum();
    let stacks = launches.iter().map(Prepared::stacks).max().unwrap_or(0);
    let waits = launches.iter().find(|launch| launch.waits_for_peers);
    if let Some(launch) = waits {
        let refused = |text| Fault::refused(launch.name, launch.config.seed, text);
        let workers = Worker::take_for_peers(clusters, stacks).map_err(refused)?;
        std::thread::scope(|scope| {
            let (shared, raws) = (&shared, &raws);
            for worker in workers {
                scope.spawn(move || work(shared, raws, &worker));
            }
        });
    } else {
        // At least two, so that dependent launches overlap on any machine.
        let cores = available_parallelism().map_or(1, |n| n.get()).max(2);
        let threads = (launches[0].config.threads.min(cores) as u64).min(clusters).max(1);
        let work = || work(&shared, &raws, &Worker::take(stacks));
        if threads == 1 {
            work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(work);
                }
            });
        }
    }
    drop((contexts, raws));
    if in_turn {
        *previous = marks.pop();
    }
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    lines.extend(state.trace);
    match state.fault {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}
