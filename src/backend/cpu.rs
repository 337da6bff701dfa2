//! The CPU backend: blocked loops, compiled once per instruction set, on one thread pool.
//!
//! ```text
//! hidden rows -> packed in tiles                                   (crates/cpu, once per call)
//!             -> packed rows x 64 vocabulary ids -> raw f32 logits  (crates/cpu, one task per block)
//!             -> epilogue: dequantise, bias, softcap, scale; adjustments   product.rs
//!             -> rounded into the caller's rows                            loaded.rs, columns.rs
//!                or the best candidates and the sum of each row            partials.rs
//!                or held in f32, for passes over them                      held.rs, sampling.rs, ranks.rs
//! ```
//!
//! Measured beside PyTorch, the memory's speed and the peaks of its instructions:
//! `benches/results/cpu/pytorch.json`.
//!
//! Weights are used where they are. Other memory is kept from call to call, and calls of the same size or a
//! smaller one allocate nothing. A loaded shard has
//!
//! * packed rows of one product: at most 8 MiB, or 4 rows where those are larger, 256 rows at most. For W8A8
//!   it has these rows in f32, too, and their quantised values, a byte each;
//! * for few candidates: the best ids and the sum of each row of a product, for each of 4 parts of the
//!   vocabulary per thread, 16 bytes a candidate and 96 more;
//! * for many candidates: up to 64 MiB of logits;
//! * for held logits: rows x shard in f32, twice where those without adjustments are kept, too.
//!
//! Heads of the same weights share, for W8A8 on AVX-512, a sum (4 bytes) for each vocabulary id. All heads
//! of a backend share what each thread has: a block of logits (`[rows of a product, 64]` f32, at most 64
//! KiB), a panel (16 KiB) and sums (1 KiB for each row of a product). With AMX it is two other panels (32
//! KiB each), 2 KiB, and sums (256 bytes for each row, rounded up to 32 rows); for more than 32 rows four
//! blocks of logits, and four times these sums.

mod check;
#[allow(unsafe_code, reason = "threads write different columns of one buffer")]
mod columns;
mod held;
#[allow(unsafe_code, reason = "memory of a caller that outlives a call")]
mod loaded;
mod partials;
mod pool;
mod product;
mod ranks;
mod sampling;

pub use lmhead_cpu::{Amx, Isa};

use crate::backend::{Backend, HeadTypes, LoadedShard};
use crate::dtype::{DType, Quantization};
use crate::error::{Error, Result};
use crate::memory::{Allocation, HostMemory, Memory};
use crate::weights::HeadShard;
use lmhead_cpu::{Format, roof};
use pool::Pool;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Part of the fingerprint: raised whenever a row's bits change; 3 are the sums of f32 terms.
const VERSION: u32 = 3;

/// Most threads of a pool: more than any machine has CPUs, few enough to be started.
const MAX_THREADS: usize = 1024;

/// The environment variable that names the instruction set; read once, when a backend is made.
pub const ISA_VARIABLE: &str = "LMHEAD_CPU_ISA";

/// The instruction set that `name` (the value of [`ISA_VARIABLE`]) asks for; the best of this machine where
/// it is `None`.
///
/// # Errors
/// `Config` when the name is none of ours, or names a set that this machine lacks or (`amx`) that its system
/// refuses to this process.
pub fn choose_isa(name: Option<&str>) -> Result<Isa> {
    let Some(name) = name else { return Ok(Isa::detect()) };
    let refused = |reason: String| {
        let here: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        let fix = format!("{reason}: unset {ISA_VARIABLE} to take the best of this machine");
        Err(Error::config(ISA_VARIABLE, here.join(" or "), format!("`{name}`"), fix))
    };
    match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
        None => refused("no such instruction set".into()),
        Some(isa) if isa.is_available() => Ok(isa),
        Some(Isa::Amx) => refused(Amx::here().to_string()),
        Some(_) => refused("this machine does not have it".into()),
    }
}

/// The CPU as a [`Backend`]. It has a thread pool of its own, which all ranks of a process share: put it in
/// an `Arc`. Calls may come from any number of threads at once, workers of other rayon pools among them. In a
/// process that was forked from the one that made it every call is `Unsupported`.
#[derive(Debug)]
pub struct CpuBackend {
    cpu: Arc<Cpu>,
}

/// Threads that compute and the instruction set that they use, shared by a backend and what it has loaded.
#[derive(Debug)]
struct Cpu {
    isa: Isa,
    pool: Pool,
    /// The most rows of a product for which every thread has memory.
    ready: AtomicUsize,
}

impl CpuBackend {
    /// A backend with `threads` threads (`None`: one per CPU that this process may use) and the best
    /// instruction set of this machine, or the one that the environment variable [`ISA_VARIABLE`] names.
    ///
    /// # Errors
    /// `Config` for 0 threads or more than 1024, an unknown instruction set, or one that this machine lacks;
    /// `Unsupported` where the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<CpuBackend> {
        let name = std::env::var_os(ISA_VARIABLE);
        let name = name.as_ref().map(|name| name.to_string_lossy());
        Self::with_isa(choose_isa(name.as_deref())?, threads)
    }

    /// The same with a given instruction set; does not read the environment.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Result<CpuBackend> {
        Self::of(choose_isa(Some(isa.name()))?, threads)
    }

    /// For tests: a backend whose tiles are emulated, on any machine and very slow.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    #[doc(hidden)]
    pub fn with_emulated_amx(threads: Option<usize>) -> Result<CpuBackend> {
        Self::of(Isa::EmulatedAmx, threads)
    }

    /// A backend with an instruction set that this machine has.
    fn of(isa: Isa, threads: Option<usize>) -> Result<CpuBackend> {
        if let Some(threads) = threads
            && !(1..=MAX_THREADS).contains(&threads)
        {
            let fix = "leave it out to use every CPU";
            return Err(Error::config("threads", format!("1 to {MAX_THREADS}"), threads, fix));
        }
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let cpu = Cpu { isa, pool: Pool::new(threads)?, ready: AtomicUsize::new(0) };
        cpu.pool.install(|| rayon::broadcast(|_| isa.warm_up_thread()))?;
        Ok(CpuBackend { cpu: Arc::new(cpu) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.cpu.isa
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.cpu.pool.size()
    }

    /// Reads `bytes` once, on all threads of the pool: [`roof::read_stream`].
    ///
    /// # Errors
    /// `Unsupported` in a process that was forked from the one that made the backend.
    pub fn read_stream(&self, bytes: &[u8]) -> Result<u64> {
        self.cpu.pool.install(|| roof::read_stream(bytes))
    }

    /// Operations per second of the instruction that multiplies heads of these types, on all threads of the
    /// pool:
    /// [`roof::arithmetic_rate`].
    ///
    /// # Errors
    /// As [`CpuBackend::read_stream`].
    pub fn arithmetic_rate(&self, types: HeadTypes, time: Duration) -> Result<Option<f64>> {
        let Some(rows) = types.hidden.float() else { return Ok(None) };
        let format = format(types);
        self.cpu.pool.install(|| roof::arithmetic_rate(self.cpu.isa, format, rows, time))
    }
}

/// The name that the inner loops have for these types.
fn format(types: HeadTypes) -> Format {
    match types.quantization {
        Quantization::None if types.weights == types.hidden => Format::Float,
        Quantization::None => Format::Mixed,
        Quantization::W8a8 => Format::W8a8,
        Quantization::W8a16 => Format::W8a16,
    }
}

impl Cpu {
    /// Makes room on every thread for products of `rows` rows.
    fn reserve(&self, rows: usize) -> Result<()> {
        if self.ready.load(Ordering::Acquire) < rows {
            self.pool.install(|| rayon::broadcast(|_| product::reserve_thread(self.isa, rows)))?;
            self.ready.fetch_max(rows, Ordering::Release);
        }
        Ok(())
    }

    /// Frees what the threads keep.
    fn release_memory(&self) {
        self.ready.store(0, Ordering::Release);
        // In a forked process there are no such threads.
        let _ = self.pool.install(|| rayon::broadcast(|_| product::release_thread()));
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn memory(&self) -> Memory {
        Memory::Host
    }

    /// `cpu/FAMILY/VERSION DTYPE`. Instruction sets of a family ([`Isa::family`]) give the same bits.
    fn fingerprint(&self, types: HeadTypes) -> String {
        let family = self.cpu.isa.family(format(types), types.hidden.float());
        format!("cpu/{family}/{VERSION} {}", types.weights)
    }

    fn flushes_subnormals(&self, types: HeadTypes) -> bool {
        self.cpu.isa.multiplies_bf16(format(types), types.hidden.float())
    }

    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        check::shard(shard, hidden)
    }

    fn load(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Box<dyn LoadedShard>> {
        check::shard(shard, hidden)?;
        // In a forked process the first step would be refused: say so now.
        self.cpu.pool.check()?;
        Ok(Box::new(loaded::CpuShard::load(&self.cpu, shard, hidden)?))
    }

    fn allocate(&self, memory: Memory, bytes: usize, what: &str) -> Result<Box<dyn Allocation>> {
        if memory != Memory::Host {
            let fix = "the cpu backend computes in host memory alone";
            return Err(Error::shape(what, Memory::Host, memory, fix));
        }
        Ok(Box::new(HostMemory::new(bytes, what)?))
    }
}
