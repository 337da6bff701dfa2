//! A global allocator that counts its calls, for test programs that check that a step allocates nothing.
//!
//! The allocator serves the whole process. So such a program has no test harness, whose threads would
//! allocate while a test counts; and it keeps its pools until the end, since threads that end allocate, too.
//!
//! ```text
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//! ```
//!
//! With [`BACKTRACES`] in the environment it prints where the first unwanted calls came from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

/// Environment variable: for how many calls a counting program prints the backtrace.
pub const BACKTRACES: &str = "LMHEAD_ALLOCATION_BACKTRACES";

/// The system's allocator; it counts calls while [`counted`] runs.
#[derive(Debug)]
pub struct CountingAllocator;

/// Calls of the allocator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub allocations: u64,
    pub reallocations: u64,
    pub frees: u64,
}

impl Counts {
    pub const NONE: Counts = Counts { allocations: 0, reallocations: 0, frees: 0 };
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { allocations, reallocations, frees } = self;
        write!(f, "{allocations} allocations, {reallocations} reallocations, {frees} frees")
    }
}

#[derive(Clone, Copy)]
enum AllocatorCall {
    Allocation,
    Reallocation,
    Free,
}

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
/// Calls of all threads, by kind.
static COUNTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Backtraces still to be printed.
static BACKTRACES_LEFT: AtomicU64 = AtomicU64::new(0);
/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Calls of this thread, by kind. Like the next variable it needs no memory and no destructor.
    static OWN: Cell<[u64; 3]> = const { Cell::new([0; 3]) };
    /// Whether this thread is printing a backtrace, which allocates.
    static IS_PRINTING: Cell<bool> = const { Cell::new(false) };
}

fn count(kind: AllocatorCall, bytes: usize) {
    if !IS_COUNTING.load(Ordering::Relaxed) || IS_PRINTING.get() {
        return;
    }
    COUNTS[kind as usize].fetch_add(1, Ordering::Relaxed);
    let mut own = OWN.get();
    own[kind as usize] += 1;
    OWN.set(own);
    let one_less = |left: u64| left.checked_sub(1);
    if BACKTRACES_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        IS_PRINTING.set(true);
        let kind = ["allocation", "reallocation", "free"][kind as usize];
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        eprintln!("{kind} of {bytes} bytes on thread {name}:\n{}", Backtrace::force_capture());
        IS_PRINTING.set(false);
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(AllocatorCall::Allocation, layout.size());
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(AllocatorCall::Allocation, layout.size());
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(AllocatorCall::Reallocation, size);
        // SAFETY: memory of this allocator is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(AllocatorCall::Free, layout.size());
        // SAFETY: memory of this allocator is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Starts to count the calls of all threads, from zero.
fn start() {
    let backtraces = std::env::var(BACKTRACES).ok().and_then(|value| value.parse().ok()).unwrap_or(0);
    COUNTS.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    BACKTRACES_LEFT.store(backtraces, Ordering::SeqCst);
    IS_COUNTING.store(true, Ordering::SeqCst);
}

/// Ends the count, and returns the calls of all threads since [`start`].
fn stop() -> Counts {
    IS_COUNTING.store(false, Ordering::SeqCst);
    let [allocations, reallocations, frees] = [0, 1, 2].map(|kind| COUNTS[kind].load(Ordering::SeqCst));
    Counts { allocations, reallocations, frees }
}

/// Calls that this thread made in all counts so far.
fn own() -> Counts {
    let [allocations, reallocations, frees] = OWN.get();
    Counts { allocations, reallocations, frees }
}

/// Runs `work` once. Returns its result, the calls of all threads meanwhile, and those of this thread.
///
/// # Panics
/// Where the program has another global allocator, so that nothing would be counted.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Counts, Counts) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    check_allocator();
    let before = own();
    start();
    let result = work();
    let all = stop();
    let now = own();
    let mine = Counts {
        allocations: now.allocations - before.allocations,
        reallocations: now.reallocations - before.reallocations,
        frees: now.frees - before.frees,
    };
    (result, all, mine)
}

fn check_allocator() {
    start();
    BACKTRACES_LEFT.store(0, Ordering::SeqCst);
    drop(std::hint::black_box(Box::new(1u8)));
    let seen = stop();
    assert!(
        seen.allocations > 0,
        "wanted CountingAllocator as the program's global allocator, got another one: nothing would be \
         counted; declare it with #[global_allocator]"
    );
}

/// How often something runs before its calls are counted, and how often it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    pub warm_up: u64,
    pub counted: u64,
}

impl Default for Rounds {
    /// More counted rounds than a queue's block in rayon or in the standard library has places (63 and 31),
    /// so that a queue that allocates a new block is noticed.
    fn default() -> Self {
        Rounds { warm_up: 12, counted: 200 }
    }
}

impl Rounds {
    /// Runs `round` to warm up, then the counted rounds, all on this thread. `round` gets its number.
    ///
    /// # Errors
    /// In words, what the counted rounds allocated, if anything.
    pub fn run(self, mut round: impl FnMut(u64)) -> Result<(), String> {
        (0..self.warm_up).for_each(&mut round);
        let ((), all, mine) = counted(|| (self.warm_up..self.warm_up + self.counted).for_each(round));
        self.judge(all, mine)
    }

    /// As `Rounds::run` for several ranks, each on a thread of its own. `make(rank)` makes a rank's round
    /// on that thread; a round may wait for the other ranks' rounds of the same number.
    ///
    /// # Errors
    /// As [`Rounds::run`]. The calls of all ranks' threads, and of threads that they started, are counted.
    pub fn run_ranks<R: FnMut(u64)>(
        self,
        ranks: usize,
        make: impl Fn(usize) -> R + Sync,
    ) -> Result<(), String> {
        let (begin, end) = (Barrier::new(ranks + 1), Barrier::new(ranks + 1));
        let ((), all, mine) = thread::scope(|scope| {
            let start = |rank: usize| {
                let (make, begin, end) = (&make, &begin, &end);
                // A rank that panics still takes part in every wait, so that nobody waits in vain.
                let ranks_thread = move || {
                    let warm = catch_unwind(AssertUnwindSafe(|| {
                        let mut round = make(rank);
                        (0..self.warm_up).for_each(&mut round);
                        round
                    }));
                    begin.wait();
                    begin.wait();
                    let ran = warm.and_then(|mut round| {
                        let rounds = self.warm_up..self.warm_up + self.counted;
                        catch_unwind(AssertUnwindSafe(|| rounds.for_each(&mut round))).map(|()| round)
                    });
                    end.wait();
                    end.wait();
                    if let Err(panic) = ran {
                        resume_unwind(panic);
                    }
                };
                let thread = thread::Builder::new().name(format!("rank {rank}"));
                thread.spawn_scoped(scope, ranks_thread).expect("a rank's thread")
            };
            let threads: Vec<_> = (0..ranks).map(start).collect();
            // Waits until the ranks have warmed up. They begin when counting has, and end when it is over.
            begin.wait();
            let counts = counted(|| {
                begin.wait();
                end.wait();
            });
            end.wait();
            // Joins explicitly: the scope only waits for the threads' work, not for what they free after it.
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            counts
        });
        self.judge(all, mine)
    }

    fn judge(self, all: Counts, mine: Counts) -> Result<(), String> {
        // Frees alone are no problem: they are of memory from the warm-up, by a thread that was preempted.
        // Whatever frees something in every round also allocates.
        if all.allocations + all.reallocations == 0 {
            return Ok(());
        }
        Err(format!(
            "wanted no allocation in {} rounds after {} to warm up, got {all} ({mine} of them by \
             the thread that counted); {BACKTRACES}=3 prints where the first 3 came from",
            self.counted, self.warm_up
        ))
    }
}

/// [`Rounds::run`] with the usual numbers of rounds.
///
/// # Panics
/// With the counts, where the counted rounds allocated.
#[track_caller]
pub fn steady(round: impl FnMut(u64)) {
    if let Err(problem) = Rounds::default().run(round) {
        panic!("{problem}");
    }
}

/// [`Rounds::run_ranks`] with the usual numbers of rounds.
///
/// # Panics
/// With the counts, where the counted rounds allocated.
#[track_caller]
pub fn steady_ranks<R: FnMut(u64)>(ranks: usize, make: impl Fn(usize) -> R + Sync) {
    if let Err(problem) = Rounds::default().run_ranks(ranks, make) {
        panic!("{problem}");
    }
}

/// A case of a counting program, by name.
pub type Case = (&'static str, fn());

/// Runs cases one after the other on this thread, and prints what the test harness would. The program's
/// arguments select the cases whose names contain one of them. Ends the program with an error if a case
/// panicked.
pub fn run_cases(cases: &[Case]) {
    let (mut filters, mut skipped) = (Vec::new(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--skip" => skipped.extend(args.next()),
            option if option.starts_with('-') => {}
            _ => filters.push(arg),
        }
    }
    let names = |words: &[String], name: &str| words.iter().any(|word| name.contains(word));
    let is_asked = |name| (filters.is_empty() || names(&filters, name)) && !names(&skipped, name);
    let (mut passed, mut failed, mut passed_over) = (0, 0, 0);
    for &(name, case) in cases {
        if !is_asked(name) {
            passed_over += 1;
        } else if catch_unwind(case).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed += 1;
        }
    }
    // In the harness's words, for scripts that add up the tests of all programs.
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {outcome}. {passed} passed; {failed} failed; 0 ignored; 0 measured; \
         {passed_over} filtered out"
    );
    if failed > 0 {
        std::process::exit(101);
    }
}
