//! A cost model for plans: clocks of the SM (streaming multiprocessor) with the most work, split by the unit
//! that does it. It is arithmetic, not a measurement, and only ranks plans that all give the same bits.

use super::hopper::{self, Family};
use super::{Plan, Tile};
use crate::plan::tile::DeviceLimits;
use std::cmp::Ordering;
use std::fmt;

/// What one SM does per clock, by compute capability; from data sheets and public measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Bytes from device memory: this SM's share of the bandwidth.
    pub memory: f64,
    /// Bytes from the L2 cache while all SMs read from it.
    pub l2: f64,
    /// Bytes of shared memory, read or written.
    pub shared: f64,
    /// Multiply-adds of 16-bit operands. The rate of int8 operands is twice this.
    pub tensor: f64,
    /// Clocks from a copy's issue to its landing, under load.
    pub latency: f64,
}

impl Rates {
    /// The rates of this compute capability, or of the most similar one that is known.
    pub const fn of(capability: (u32, u32)) -> Rates {
        // Shared memory: 32 banks of 4 bytes. Tensor cores: the data sheet's dense 16-bit rate, divided by
        // SMs and boost clock. L2: public measurements, about 5.5 TB/s on an H100 and 4.5 on an A100. Latency
        // of an H100: with 1400 clocks, 3.35 TB/s need 20 KB in flight for each SM (Little's law).
        match capability {
            // Data-centre chips: H100 (3.35 TB/s, 132 SMs at 1.755 GHz), A100 (2.04 TB/s, 108 at 1.41 GHz).
            // 10.x is counted as an H100, since its speed with `mma.sync` is not known here.
            (9 | 10, _) => Rates { memory: 14.5, l2: 24.0, shared: 128.0, tensor: 2048.0, latency: 1400.0 },
            (8, 0) => Rates { memory: 13.4, l2: 29.0, shared: 128.0, tensor: 1024.0, latency: 1000.0 },
            // Others: RTX 5090 (1.79 TB/s, 170 at 2.41 GHz), L40S (0.86 TB/s, 142 at 2.52 GHz). Their L2
            // caches are assumed to be as fast per SM as an H100's.
            (12, _) => Rates { memory: 4.4, l2: 24.0, shared: 128.0, tensor: 256.0, latency: 1400.0 },
            _ => Rates { memory: 2.4, l2: 24.0, shared: 128.0, tensor: 512.0, latency: 1400.0 },
        }
    }
}

/// The terms of a plan's cost. Unless a field says otherwise they are those of the SM with the most blocks,
/// padding included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Blocks of the busiest SM, or tiles of its one block, and how many of them run at once.
    pub blocks: u64,
    pub blocks_per_sm: u64,
    /// Bytes of weights that the whole device reads from memory.
    pub weight_bytes: u64,
    /// Bytes that come through the L2 cache: weights and rows of the SM's blocks. A tail tile counts only its
    /// own ids.
    pub l2_bytes: u64,
    /// Bytes through shared memory: written by copies, read by each warp for its part of the tile, and twice
    /// the logits of the epilogue.
    pub shared_bytes: u64,
    /// Multiply-adds.
    pub products: u64,
    /// Bytes of copies in flight, and how many are needed to reach the SM's share of the memory bandwidth
    /// (Little's law).
    pub in_flight: u64,
    pub wanted_in_flight: u64,
    /// The time that each term takes.
    pub clocks: Clocks,
}

/// How long each of the terms would take alone, in clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clocks {
    pub memory: f64,
    pub l2: f64,
    pub shared: f64,
    pub tensor: f64,
    /// Extra clocks because the last wave overlaps on its own: there another term may limit the busiest SM.
    /// 0 for portable kernels.
    pub last_wave: f64,
    /// Clocks of all waves that no other block's work hides: in each wave filling the ring (the latency of
    /// the first copies) and draining it (the store of the last logits).
    pub fill_drain: f64,
}

/// How long terms take that overlap in time: the longest, plus an eighth of each other one, since overlap is
/// never perfect.
fn overlap(terms: [f64; 4]) -> f64 {
    let longest = terms.into_iter().fold(0.0, f64::max);
    longest + (terms.into_iter().sum::<f64>() - longest) / 8.0
}

impl Clocks {
    /// The four terms that overlap in time, with their names.
    const fn overlapped(&self) -> [(&'static str, f64); 4] {
        [
            ("memory", self.memory),
            ("L2", self.l2),
            ("shared memory", self.shared),
            ("tensor cores", self.tensor),
        ]
    }

    /// The name of the longest term.
    pub fn bound(&self) -> &'static str {
        let longer =
            |one: (&'static str, f64), other: (&'static str, f64)| if other.1 > one.1 { other } else { one };
        self.overlapped().into_iter().fold(("memory", self.memory), longer).0
    }

    /// The longest term, an eighth of each other one, and what nothing overlaps: the last wave, and fill and
    /// drain.
    pub fn total(&self) -> f64 {
        overlap(self.overlapped().map(|(_, clocks)| clocks)) + self.last_wave + self.fill_drain
    }

    /// Adds the last wave, which takes `last` of the four terms: the waves overlap each by itself.
    fn with_last_wave(self, last: [f64; 4]) -> Clocks {
        let all = self.overlapped().map(|(_, clocks)| clocks);
        let before = std::array::from_fn(|i| all[i] - last[i]);
        Clocks { last_wave: (overlap(before) + overlap(last) - overlap(all)).max(0.0), ..self }
    }
}

impl Cost {
    /// Which of two plans costs less.
    pub fn compare(&self, other: &Cost) -> Ordering {
        self.clocks.total().total_cmp(&other.clocks.total())
    }

    pub(super) fn of(plan: &Plan, limits: &DeviceLimits) -> Cost {
        let Plan { precision, shape, tile, stages, .. } = *plan;
        let rates = Rates::of(limits.capability);
        let num_sms = limits.num_sms.max(1) as u64;
        // A step of k is 128 bytes of each weight row, and as many k of each hidden row.
        let steps = precision.columns(shape.hidden) as u64;
        let row_bytes = tile.row_bytes * 128 / tile.weight_bytes;
        let (of_weights, of_rows) = (tile.block_n * 128, tile.block_m * row_bytes);
        let (blocks, waves, blocks_per_sm, stage_steps, copied, read, least_rows) = match tile.family {
            // A block a tile. Each warp reads its part of the step.
            Family::MmaSync => {
                let blocks = u64::from(plan.blocks).div_ceil(num_sms).max(1);
                let blocks_per_sm = (tile.blocks_per_sm(stages, limits) as u64).clamp(1, blocks);
                let (warp_ids, warp_rows) = tile.warp();
                let read = tile.threads() as usize / 32 * (warp_ids * 128 + warp_rows * row_bytes);
                (blocks, blocks.div_ceil(blocks_per_sm), blocks_per_sm, 1, of_weights + of_rows, read, 1)
            }
            // Tile after tile, with copies of the next during the epilogue. Blocks of a cluster share what
            // they copy of the weights. Each 64 ids read all rows; 8-bit weights pass through registers. An
            // instruction takes as long for few rows as for 32, since it reads 64 x 32 bytes of weights.
            Family::Wgmma => {
                let (along_ids, along_rows) = tile.cluster_shape();
                let copied = of_weights / along_rows + of_rows / along_ids;
                let read = of_weights + tile.block_n / 64 * of_rows;
                let columns = (tile.weight_bytes / 128) as u64;
                (hopper::tiles_of_one(&tile, &shape, limits), 1, 1, columns, copied, read, 32)
            }
        };
        let stage = tile.stage_bytes() as u64;
        let (copied, read) = (copied as u64, (of_weights + of_rows + read) as u64);
        let epilogue = (Tile::EPILOGUE_PASSES * 4 * tile.block_n * tile.block_m) as u64;

        let together = tile.cluster_m() * tile.row_tiles_together();
        let passes = shape.rows.div_ceil(together) as u64;
        let weights = (shape.vocab * shape.hidden * precision.weight_bytes()) as u64;
        // Saturating: on a device with few SMs the largest products are beyond 64 bits.
        let weight_bytes = weights.saturating_mul(passes);
        // A tail tile copies fewer ids, but executes the instructions of a whole tile.
        let last_wave = if tile.family == Family::Wgmma { hopper::last_wave(plan) } else { None };
        let spared = last_wave.as_ref().map_or(0, |last| steps * ((tile.block_n - last.ids) * 128) as u64);
        let (l2_bytes_of_one, shared_bytes_of_one) = (steps * copied, steps * read + epilogue);
        let products_of_one = (tile.block_n * tile.block_m.max(least_rows) * shape.hidden) as u64;
        let l2_bytes = blocks.saturating_mul(l2_bytes_of_one) - spared;
        let shared_bytes = blocks.saturating_mul(shared_bytes_of_one) - spared;
        let products = blocks.saturating_mul(products_of_one);
        let filled = (stages as u64).saturating_sub(1).min(steps.div_ceil(stage_steps));
        let in_flight = blocks_per_sm * filled * stage;
        let wanted_in_flight = (rates.latency * rates.memory).round() as u64;

        let tensor = if precision.multiplies_int8() { 2.0 * rates.tensor } else { rates.tensor };
        let arriving = rates.l2.min(in_flight as f64 / rates.latency);
        let clocks = Clocks {
            memory: weight_bytes as f64 / (rates.memory * num_sms as f64),
            l2: l2_bytes as f64 / arriving,
            shared: shared_bytes as f64 / rates.shared,
            tensor: products as f64 / tensor,
            last_wave: 0.0,
            fill_drain: waves as f64 * (rates.latency + epilogue as f64 / rates.shared),
        };
        let clocks = match last_wave {
            Some(last) => clocks.with_last_wave([
                clocks.memory * last.share,
                (l2_bytes_of_one - spared) as f64 / arriving,
                (shared_bytes_of_one - spared) as f64 / rates.shared,
                products_of_one as f64 / tensor,
            ]),
            None => clocks,
        };
        Cost {
            blocks,
            blocks_per_sm,
            weight_bytes,
            l2_bytes,
            shared_bytes,
            products,
            in_flight,
            wanted_in_flight,
            clocks,
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Clocks { memory, l2, shared, tensor, last_wave, fill_drain } = self.clocks;
        write!(
            f,
            "{:.0} clocks, bound by {}: memory {memory:.0}, L2 {l2:.0}, shared memory {shared:.0}, tensor cores {tensor:.0}, \
             last wave {last_wave:.0}, fill and drain {fill_drain:.0}; \
             {} blocks an SM, {} at once, {} of {} bytes in flight",
            self.clocks.total(),
            self.clocks.bound(),
            self.blocks,
            self.blocks_per_sm,
            self.in_flight,
            self.wanted_in_flight,
        )
    }
}
