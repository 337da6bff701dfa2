//! A CUDA device on the CPU, for the kernels of `kernels/`.
//!
//! The kernels' source, compiled by a C++ compiler, runs with one fiber per CUDA thread; each PTX instruction
//! does what its documentation says, and what no GPU reports is found: missing barriers and fences, data read
//! before a copy has landed, lanes that part, accesses outside of a buffer. `kernels/README.md` tells how to
//! write and to debug a kernel.
//!
//! ```
//! use lmhead_emulated::{Device, LaunchConfig, microkernels};
//! use lmhead::backend::params::MmaMicrokernelParams;
//!
//! # fn main() -> Result<(), lmhead_emulated::Fault> {
//! let mut device = Device::new();
//! let weights = device.upload(&[1i8; 8 * 32]); // [vocab, hidden]
//! let rows = device.upload(&[2i8; 3 * 32]); // [rows, hidden]
//! let out = device.alloc(3 * 8 * 4)?; // [rows, vocab] int32
//! let params = MmaMicrokernelParams {
//!     weights: weights.pointer(),
//!     rows: rows.pointer(),
//!     out: out.pointer(),
//!     vocab: 8,
//!     row_count: 3,
//!     hidden: 32,
//! };
//! let config = LaunchConfig::new([1, 1, 1], [microkernels::MMA_THREADS, 1, 1]);
//! let config = config.shared(microkernels::MMA_SHARED);
//! device.launch(&microkernels::mma_s8(), &params, &config)?;
//! assert_eq!(device.download::<i32>(out)?, [64; 24]);
//! # Ok(())
//! # }
//! ```

/// The folder of the static libraries that g++ made of the device and the kernels:
/// `liblmhead_emulated_{kernels,device,switch}.a`.
pub const ARCHIVES: &str = env!("OUT_DIR");

#[allow(unsafe_code, reason = "functions of the C++ side")]
pub mod arithmetic;
#[allow(unsafe_code, reason = "launches and copies that the trait has for unsafe")]
mod backend;
#[allow(unsafe_code, reason = "memory that kernels write to")]
mod buffer;
#[allow(unsafe_code, reason = "texts of the C++ side")]
mod fault;
#[allow(unsafe_code, reason = "the C++ side")]
#[doc(hidden)]
pub mod ffi;
#[allow(unsafe_code, reason = "what the C++ side is handed")]
mod launch;
pub mod microkernels;
mod order;
#[allow(unsafe_code, reason = "launches that run while others use the device")]
mod peers;
#[allow(unsafe_code, reason = "parameters of kernels")]
#[doc(hidden)]
pub mod probe;
#[allow(unsafe_code, reason = "what the C++ side is handed")]
mod run;
mod tensor_map;
#[allow(unsafe_code, reason = "the C++ side's threads")]
mod worker;

pub use backend::{Counts, EmulatedBuffer, EmulatedDevice, Staging};
pub use buffer::Buffer;
pub use fault::{Fault, FaultKind};
pub use launch::{Kernel, LaunchConfig, Params};
pub use peers::PeerLaunch;
pub use tensor_map::encode;

use buffer::{Memory, Reachable};
use launch::Prepared;
use run::{Marks, Order};

/// A device: its buffers, and launches one after the other, but for those of [`Device::prepare_for_peers`].
///
/// Kernels reach the device's own buffers and nothing else: an address outside of them is a fault. So a
/// launch is safe whatever its parameters say.
#[derive(Debug, Default)]
pub struct Device {
    memories: Vec<Memory>,
    /// Numbers of freed buffers.
    free: Vec<u32>,
    trace: Vec<String>,
    /// Marks of the launch before, where the next one may begin while it runs.
    before: Option<Marks>,
}

impl Device {
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `bytes` bytes with arbitrary contents, aligned to 256.
    ///
    /// # Errors
    /// A fault of kind `Launch` if this machine has too little memory.
    pub fn alloc(&mut self, bytes: usize) -> Result<Buffer, Fault> {
        let memory = Memory::new(bytes, true);
        Ok(self.add(memory.ok_or_else(|| out_of_memory(bytes))?))
    }

    /// A buffer that holds a copy of `data`.
    ///
    /// # Panics
    /// As a `Vec` does, where there is no memory for a second copy; likewise [`Device::upload_read_only`].
    pub fn upload<T: bytemuck::NoUninit>(&mut self, data: &[T]) -> Buffer {
        self.copied(data, true)
    }

    /// The same; a kernel that writes to it is at fault.
    pub fn upload_read_only<T: bytemuck::NoUninit>(&mut self, data: &[T]) -> Buffer {
        self.copied(data, false)
    }

    /// The buffer's content, as many whole values as it holds.
    ///
    /// # Errors
    /// A fault of kind `Launch` if the buffer is another device's.
    pub fn download<T: bytemuck::AnyBitPattern>(&self, buffer: Buffer) -> Result<Vec<T>, Fault> {
        let memory = &self.memories[self.find(buffer)?];
        // A type without bytes has no values here.
        let size = size_of::<T>().max(1);
        let count = if size_of::<T>() == 0 { 0 } else { memory.bytes / size };
        let bytes = memory.bytes(0..memory.bytes);
        Ok(bytes.chunks_exact(size).take(count).map(bytemuck::pod_read_unaligned).collect())
    }

    /// Overwrites the buffer from byte `at` on.
    ///
    /// # Errors
    /// A fault of kind `Launch` if the buffer is another device's, or smaller.
    pub fn write(&mut self, buffer: Buffer, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        let number = self.find(buffer)?;
        let range = within(&self.memories[number], at, bytes.len())?;
        self.memories[number].bytes_mut(range).copy_from_slice(bytes);
        Ok(())
    }

    /// Copies bytes of the buffer, from byte `at` on.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub fn read(&self, buffer: Buffer, at: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        let memory = &self.memories[self.find(buffer)?];
        bytes.copy_from_slice(memory.bytes(within(memory, at, bytes.len())?));
        Ok(())
    }

    /// `bytes` bytes from `address` on.
    ///
    /// # Errors
    /// A fault of kind `Launch` if they are not within one buffer.
    pub fn bytes(&self, address: u64, bytes: usize) -> Result<&[u8], Fault> {
        let (memory, range) = self.locate(address, bytes)?;
        Ok(self.memories[memory].bytes(range))
    }

    /// The same, to be written.
    ///
    /// # Errors
    /// As [`Device::bytes`].
    pub fn bytes_mut(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Fault> {
        let (memory, range) = self.locate(address, bytes)?;
        Ok(self.memories[memory].bytes_mut(range))
    }

    /// The memory that has all of these bytes, by its number, and where in it they are.
    fn locate(&self, address: u64, bytes: usize) -> Result<(usize, std::ops::Range<usize>), Fault> {
        let range = |memory: &Memory| {
            let at = address.checked_sub(memory.address()).and_then(|at| usize::try_from(at).ok())?;
            within(memory, at, bytes).ok()
        };
        let found = self.memories.iter().enumerate().find_map(|(i, memory)| Some((i, range(memory)?)));
        found.ok_or_else(|| {
            let text = format!(
                "device memory: wanted {bytes} bytes of one buffer, got {address:#x}; use what is allocated"
            );
            Fault::refused("", 0, text)
        })
    }

    /// Gives a buffer's memory back: kernels that still reach for it are at fault.
    ///
    /// # Errors
    /// A fault of kind `Launch` if the buffer is another device's.
    pub fn free(&mut self, buffer: Buffer) -> Result<(), Fault> {
        let number = self.find(buffer)?;
        // A GPU waits here for all that runs; and the number may be another buffer's next.
        self.before = None;
        self.memories[number] = Memory::new(0, false).ok_or_else(|| out_of_memory(0))?;
        self.free.push(buffer.number);
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// The first fault that was found; kind `Launch` where the device refuses to begin. Buffers then hold
    /// what was written so far.
    pub fn launch<P: Params>(
        &mut self,
        kernel: &Kernel<P>,
        params: &P,
        config: &LaunchConfig,
    ) -> Result<(), Fault> {
        let launch = Prepared::new(kernel, params, config)?;
        self.before = None;
        run::run(&self.reachable(), &mut self.trace, &[launch], Order::Overlapping)
    }

    /// Runs a kernel to its end, as one that could have begun while the one before it ran: by programmatic
    /// dependent launch, as each kernel of a step is launched on a GPU. It is held to the rules of
    /// `kernels/step.cuh`, whatever the kernels' speeds: what it does before `griddepcontrol.wait` is
    /// compared with all that the kernel before did.
    ///
    /// # Errors
    /// As [`Device::launch`]; kind `Dependency` where before the wait it stores anywhere, or loads what the
    /// kernel before stored; kind `Turn` where it lets the next kernel begin before the wait, or a block ends
    /// without having waited.
    pub fn launch_in_turn<P: Params>(
        &mut self,
        kernel: &Kernel<P>,
        params: &P,
        config: &LaunchConfig,
    ) -> Result<(), Fault> {
        let launch = Prepared::new(kernel, params, config)?;
        run::run(&self.reachable(), &mut self.trace, &[launch], Order::InTurn(&mut self.before))
    }

    /// A launch as [`Device::launch_in_turn`] runs it, for a kernel that waits for kernels of other ranks
    /// (`PEER_KERNEL`): it runs without the device, which other threads use meanwhile. It reaches the buffers
    /// that the device has now, also when they are freed while it runs.
    ///
    /// # Errors
    /// `Launch` where the device refuses it.
    pub fn prepare_for_peers<P: Params>(
        &mut self,
        kernel: &Kernel<P>,
        params: &P,
        config: &LaunchConfig,
    ) -> Result<PeerLaunch, Fault> {
        let launch = Prepared::new(kernel, params, config)?;
        // What follows is not compared with this launch: other ranks' launches come between.
        Ok(PeerLaunch::new(launch, self.reachable(), self.before.take()))
    }

    /// Runs two kernels, the second by programmatic dependent launch: it may begin when every block of the
    /// first has executed `griddepcontrol.launch_dependents` or ended. They overlap with two or more threads
    /// ([`LaunchConfig::threads`] of the first).
    ///
    /// # Errors
    /// As [`Device::launch`], of either; kind `Dependency` where the second touches what the first writes
    /// before `griddepcontrol.wait`.
    pub fn launch_dependent<P: Params, Q: Params>(
        &mut self,
        first: (&Kernel<P>, &P, &LaunchConfig),
        second: (&Kernel<Q>, &Q, &LaunchConfig),
    ) -> Result<(), Fault> {
        let launches =
            [Prepared::new(first.0, first.1, first.2)?, Prepared::new(second.0, second.1, second.2)?];
        self.before = None;
        run::run(&self.reachable(), &mut self.trace, &launches, Order::Overlapping)
    }

    /// The lines that [`LaunchConfig::trace`] asked for, since the last call: one per instruction. A
    /// [`PeerLaunch`] leaves none.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    fn copied<T: bytemuck::NoUninit>(&mut self, data: &[T], writable: bool) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut memory =
            Memory::new(bytes.len(), writable).unwrap_or_else(|| panic!("{}", out_of_memory(bytes.len())));
        memory.bytes_mut(0..bytes.len()).copy_from_slice(bytes);
        self.add(memory)
    }

    /// The memories as a launch reaches them, by their numbers.
    fn reachable(&self) -> Vec<Reachable> {
        self.memories.iter().map(Memory::reachable).collect()
    }

    fn add(&mut self, memory: Memory) -> Buffer {
        let (address, bytes) = (memory.address(), memory.bytes);
        let number = match self.free.pop() {
            Some(number) => {
                self.memories[number as usize] = memory;
                number
            }
            None => {
                self.memories.push(memory);
                u32::try_from(self.memories.len() - 1).expect("fewer than 2^32 buffers")
            }
        };
        Buffer { number, address, bytes }
    }

    /// The number of the buffer's memory.
    fn find(&self, buffer: Buffer) -> Result<usize, Fault> {
        match self.memories.get(buffer.number as usize) {
            Some(memory) if memory.address() == buffer.address => Ok(buffer.number as usize),
            _ => {
                let text = format!(
                    "device buffer: wanted one of this device, got number {}, of another or freed; use it with the device \
                     that made it",
                    buffer.number
                );
                Err(Fault::refused("", 0, text))
            }
        }
    }
}

fn within(memory: &Memory, at: usize, bytes: usize) -> Result<std::ops::Range<usize>, Fault> {
    match at.checked_add(bytes) {
        Some(end) if end <= memory.bytes => Ok(at..end),
        _ => {
            let text = format!(
                "device buffer: wanted a range of its {} bytes, got {bytes} from {at} on; allocate as much as is used",
                memory.bytes
            );
            Err(Fault::refused("", 0, text))
        }
    }
}

fn out_of_memory(bytes: usize) -> Fault {
    let text =
        format!("device memory: wanted {bytes} bytes, this machine has not that much; use a smaller buffer");
    Fault::refused("", 0, text)
}
