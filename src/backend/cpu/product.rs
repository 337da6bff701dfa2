//! Some rows, packed, x one block of the shard -> logits.

use crate::adjust::ShardAdjustments;
use crate::backend::HeadTypes;
use crate::dtype::Quantization;
use crate::epilogue::Epilogue;
use crate::layout::BLOCK;
use crate::rows::HiddenRows;
use crate::weights::{HeadShard, Matrix};
use lmhead_cpu::{Arith, BlockScratch, Isa, PackedRows, Weights, Work};
use std::cell::RefCell;
use std::ops::Range;

/// One pass over the shard: some rows, packed, and all that a task must know to compute a block of their
/// logits.
pub(super) struct Product<'a> {
    pub isa: Isa,
    pub shard: &'a HeadShard,
    pub epilogue: Epilogue,
    /// Adjustments of all rows of the job.
    pub adjustments: Option<&'a ShardAdjustments>,
    /// `[vocab]`: sums of the weights, where rows are packed with an offset; else empty.
    pub weight_sums: &'a [i32],
    /// The job's rows that are packed here.
    pub rows: Range<usize>,
    pub packed: &'a PackedRows,
}

/// Cuts rows `range` into ranges of as many as one product takes.
pub(super) fn product_rows(range: Range<usize>, hidden: usize) -> impl Iterator<Item = Range<usize>> {
    let step = lmhead_cpu::pass_rows(hidden);
    range.clone().step_by(step).map(move |first| first..range.end.min(first + step))
}

/// Packs rows `range`, on a thread of the pool, with the help of the others.
pub(super) fn pack(packed: &mut PackedRows, rows: &HiddenRows<'_>, shard: &HeadShard, range: Range<usize>) {
    let dtype = rows.dtype().float().expect("int8 hidden states were refused");
    let format = super::format(HeadTypes::of(shard, rows.dtype()));
    packed.pack(
        &lmhead_cpu::HiddenRowsRef { dtype, hidden: rows.hidden(), row: &|i| rows.row(i) },
        format,
        range,
    );
}

/// The sum of each id's weights, `[vocab]`, where rows are packed with an offset; else empty. On a thread of
/// the pool.
pub(super) fn weight_sums(isa: Isa, shard: &HeadShard) -> Vec<i32> {
    match shard.matrix() {
        Matrix::I8 { values, .. } if shard.quantization() == Quantization::W8a8 && isa.multiplies_bytes() => {
            lmhead_cpu::weight_sums(isa, values, shard.hidden_size())
        }
        _ => Vec::new(),
    }
}

/// Numbers of the global blocks that `vocab` touches.
pub(super) fn blocks(vocab: &Range<usize>) -> Range<usize> {
    vocab.start / BLOCK..vocab.end.div_ceil(BLOCK)
}

/// The ids of `vocab` in some global blocks.
pub(super) fn block_ids(blocks: Range<usize>, vocab: &Range<usize>) -> Range<usize> {
    (blocks.start * BLOCK).max(vocab.start)..(blocks.end * BLOCK).min(vocab.end)
}

/// Where a task computes several blocks at once, each thread still gets so many tasks at least.
const TASKS: usize = 4;

impl Product<'_> {
    /// Blocks that a task computes at once: as many as the packed rows allow, but so few that all threads of
    /// the current pool have work.
    pub fn at_once(&self, blocks: usize) -> usize {
        self.packed.blocks_at_once().min(blocks / (TASKS * rayon::current_num_threads())).max(1)
    }

    /// Computes the logits of vocabulary `ids`, and gives those of each row and block to `take`. `ids` begin
    /// with a block and are at most `at_once` blocks.
    pub fn blocks(&self, ids: Range<usize>, mut take: impl Take) {
        THREAD.with_borrow_mut(|thread| {
            let Thread { logits, scratch } = thread;
            let block_logits = self.rows.len() * BLOCK;
            let wanted = ids.len().div_ceil(BLOCK) * block_logits;
            if logits.len() < wanted {
                logits.resize(wanted, 0.0);
            }
            let logits = &mut logits[..wanted];
            let start = self.shard.vocab().start;
            let own = ids.start - start..ids.end - start;
            let from = own.start * self.shard.hidden_size();
            let weights = match self.shard.matrix() {
                Matrix::F32(w) => Weights::F32(&w[from..]),
                Matrix::F16(w) => Weights::F16(&w[from..]),
                Matrix::Bf16(w) => Weights::Bf16(&w[from..]),
                Matrix::I8 { values, .. } => Weights::I8(&values[from..]),
                Matrix::E4m3 { values, .. } => Weights::E4m3(&values[from..]),
            };
            let sums = self.weight_sums.get(own.clone()).unwrap_or_default();
            self.packed.multiply(weights, own.len(), sums, logits, scratch);
            let row_scales = self.packed.scales();
            let blocks = logits.chunks_exact_mut(block_logits.max(1)).zip(own.clone().step_by(BLOCK));
            for (block, (logits, first)) in blocks.enumerate() {
                let own = first..own.end.min(first + BLOCK);
                let scales = self.shard.scales().map_or(&[][..], |scales| &scales[own.clone()]);
                let bias = self.shard.bias().map(|bias| &bias[own.clone()]);
                let epilogue = self.epilogue;
                let adjust = self.adjustments.map(|a| (a, self.rows.start, start + first));
                let (ids, take) = (own.len(), &mut take);
                self.isa.run(Finish { logits, ids, block, row_scales, scales, bias, epilogue, adjust, take });
            }
        });
    }
}

thread_local! {
    /// Belongs to a thread of a pool, and so goes with it. Never borrowed across a point where rayon could
    /// put another task on this thread.
    static THREAD: RefCell<Thread> = RefCell::default();
}

#[derive(Default)]
struct Thread {
    /// `[blocks at once, rows of the product, BLOCK]`
    logits: Vec<f32>,
    scratch: BlockScratch,
}

/// Makes room on this thread for products of `rows` rows.
pub(super) fn reserve_thread(isa: Isa, rows: usize) {
    THREAD.with_borrow_mut(|Thread { logits, scratch }| {
        let wanted = PackedRows::most_blocks_at_once(isa, rows) * rows * BLOCK;
        logits.reserve(wanted.saturating_sub(logits.len()));
        scratch.reserve(isa, rows);
    });
}

/// Frees what this thread keeps.
pub(super) fn release_thread() {
    THREAD.set(Thread::default());
}

/// What becomes of a row's logits of one block. Rows and blocks count from the first of the product.
pub(super) trait Take {
    /// Called before `take` where there are adjustments, with the logits without them.
    #[inline(always)]
    fn take_raw(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        let _ = (block, row, logits, finite);
    }

    /// `finite`: all of them were finite, and no adjustment has made one NaN or plus infinity.
    fn take(&mut self, block: usize, row: usize, logits: &[f32], finite: bool);
}

/// Raw sums of one block -> logits: dequantise, the epilogue, adjustments.
struct Finish<'a, F> {
    /// `[rows, BLOCK]`, of which `ids` columns are used.
    logits: &'a mut [f32],
    ids: usize,
    /// The block's number in the product.
    block: usize,
    /// `[rows]`, or empty.
    row_scales: &'a [f32],
    /// `[ids]`, or empty.
    scales: &'a [f32],
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
    /// The adjustments, the number of the first row in them, and the first id.
    adjust: Option<(&'a ShardAdjustments, usize, usize)>,
    take: &'a mut F,
}

impl<F: Take> Work for Finish<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        for (row, logits) in self.logits.chunks_exact_mut(BLOCK).enumerate() {
            let logits = &mut logits[..self.ids];
            // Each product is rounded on its own (promise 2): Rust never contracts it with an addition.
            if let Some(row_scale) = self.row_scales.get(row) {
                for l in logits.iter_mut() {
                    *l *= row_scale;
                }
            }
            for (l, scale) in logits.iter_mut().zip(self.scales) {
                *l *= scale;
            }
            let mut finite = self.epilogue.apply(logits, self.bias);
            if let Some((adjustments, first_row, first_id)) = self.adjust {
                self.take.take_raw(self.block, row, logits, finite);
                finite &= adjustments.apply(first_row + row, first_id, logits);
            }
            self.take.take(self.block, row, logits, finite);
        }
    }
}
