//! What a kernel did wrong, and where.

use super::ffi::RawFault;
use std::fmt;

/// The kinds of fault that the emulated device finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// Outside of shared memory.
    SharedBounds,
    /// Outside of every registered buffer, or a write to one that is read-only.
    GlobalBounds,
    /// An address that is not a multiple of what the access needs.
    Misaligned,
    /// Two accesses with nothing to order them.
    Race,
    /// Data of an asynchronous copy before it is known to be there, or a copy that outlives its thread or
    /// block.
    Incomplete,
    /// Ordinary and asynchronous accesses without `fence.proxy.async` between them.
    Proxy,
    /// Lanes that must execute one instruction together do not.
    Divergence,
    /// Misuse of an mbarrier or a barrier.
    Barrier,
    /// `expect_tx` and the bytes that came do not agree.
    Transactions,
    /// Nothing can go on.
    Deadlock,
    /// Misuse of wgmma: fences, registers, descriptors.
    Wgmma,
    /// A tensor map that TMA refuses.
    TensorMap,
    /// Misuse of `setmaxnreg`.
    Registers,
    /// Another block's memory that does not exist, or need not: nothing orders the access behind the block's
    /// beginning, or before its end.
    Cluster,
    /// Data of the kernel before, without `griddepcontrol.wait`.
    Dependency,
    /// The kernel executed `trap`.
    Trap,
    /// An operand that the instruction does not take.
    Operand,
    /// A launch that the device refuses, or a buffer that it cannot give.
    Launch,
    /// A kernel of a step that ends, or lets the next one begin, without `griddepcontrol.wait`.
    Turn,
}

impl FaultKind {
    /// No fault, in the numbers of `fault.hpp`.
    pub(super) const NONE: i32 = 0;

    /// In the order of `fault.hpp`, from 1.
    const ALL: [FaultKind; 19] = [
        FaultKind::SharedBounds,
        FaultKind::GlobalBounds,
        FaultKind::Misaligned,
        FaultKind::Race,
        FaultKind::Incomplete,
        FaultKind::Proxy,
        FaultKind::Divergence,
        FaultKind::Barrier,
        FaultKind::Transactions,
        FaultKind::Deadlock,
        FaultKind::Wgmma,
        FaultKind::TensorMap,
        FaultKind::Registers,
        FaultKind::Cluster,
        FaultKind::Dependency,
        FaultKind::Trap,
        FaultKind::Operand,
        FaultKind::Launch,
        FaultKind::Turn,
    ];
}

/// A fault of a launch. Its text says what was found and what was wanted; the seed repeats the schedule (with
/// one thread).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the kernel; empty where no kernel was concerned.
    pub kernel: String,
    pub kind: FaultKind,
    pub seed: u64,
    /// x, y, z of the block.
    pub block: [u32; 3],
    /// Its number in the block; none where no single thread is at fault.
    pub thread: Option<u32>,
    /// The wrapper's PTX instruction; empty where a launch was refused.
    pub instruction: String,
    /// A shared address where it has 32 bits, otherwise a global one.
    pub address: Option<u64>,
    pub text: String,
}

impl Fault {
    pub(super) fn new(kernel: &str, seed: u64, raw: &RawFault) -> Self {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let kind = usize::try_from(raw.kind - 1).ok().and_then(|i| FaultKind::ALL.get(i).copied());
        Fault {
            kernel: kernel.to_owned(),
            kind: kind.unwrap_or(FaultKind::Launch),
            seed,
            block: raw.block,
            thread: (raw.thread != u32::MAX).then_some(raw.thread),
            instruction: text(&raw.instruction),
            address: (raw.has_address != 0).then_some(raw.address),
            text: text(&raw.text),
        }
    }

    pub(super) fn refused(kernel: &str, seed: u64, text: String) -> Self {
        Fault {
            kernel: kernel.to_owned(),
            kind: FaultKind::Launch,
            seed,
            block: [0; 3],
            thread: None,
            instruction: String::new(),
            address: None,
            text,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kernel.is_empty() {
            return f.write_str(&self.text);
        }
        if self.kind == FaultKind::Launch {
            return write!(f, "kernel {}: launch refused: {}", self.kernel, self.text);
        }
        let [x, y, z] = self.block;
        write!(f, "kernel {}, seed {}, block ({x}, {y}, {z})", self.kernel, self.seed)?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread}")?;
        }
        if !self.instruction.is_empty() {
            write!(f, ", {}", self.instruction)?;
        }
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        write!(f, ": {:?}: {}", self.kind, self.text)
    }
}

impl std::error::Error for Fault {}
