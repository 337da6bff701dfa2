//! Words that a kernel of the step sets: a memset would keep the next kernel from beginning early.

use super::shard::DeviceShard;
use super::{Grid, KernelDevice};
use crate::backend::params::{SetWordsParams, WordsToSet};
use crate::error::Result;

/// Threads of a block of kernels/set_words_sm80.cu, and the most blocks: with more words a thread sets
/// several.
const THREADS: u32 = 256;
const BLOCKS: usize = 1024;

/// `count` words without gaps, from `address` on; none at address 0.
pub(super) fn words(address: u64, count: usize, value: u32) -> WordsToSet {
    WordsToSet { to: address as usize as *mut u8, pitch: 4, count: count as u64, value }
}

/// Queues a launch that sets both kinds of words.
///
/// # Errors
/// As [`KernelDevice::launch`].
///
/// # Safety
/// As [`KernelDevice::launch`], of the words.
pub(super) unsafe fn set_words<D: KernelDevice>(
    device: &D,
    stream: D::Stream,
    kernel: &D::Kernel<SetWordsParams>,
    words: [WordsToSet; 2],
) -> Result<()> {
    let most = words.iter().filter(|some| !some.to.is_null()).map(|some| some.count as usize).max();
    let Some(most @ 1..) = most else { return Ok(()) };
    let blocks = most.div_ceil(THREADS as usize).min(BLOCKS) as u32;
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { device.launch(stream, kernel, &grid, &SetWordsParams { words }) }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// [`set_words`] of one kind.
    ///
    /// # Errors
    /// As [`set_words`].
    ///
    /// # Safety
    /// As [`set_words`].
    pub(super) unsafe fn set_words(&self, stream: D::Stream, some: WordsToSet) -> Result<()> {
        let (device, kernel) = (&self.common.device, &self.weights.kernels.words);
        // SAFETY: the caller's promise.
        unsafe { set_words(device, stream, kernel, [some, words(0, 0, 0)]) }
    }
}
