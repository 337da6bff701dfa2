//! The last wave of tiles. A persistent kernel's blocks, one per SM, take tiles in turn; in the last turn
//! there are seldom as many tiles as blocks. Its ids are then cut into equal tail tiles, one for each block.
//!
//! 129280 ids on 132 SMs are 15 tiles of 64 for each, and 40 tiles. As tiles these would give the busiest SM
//! 1024 ids, 4.6 % above the mean of 979.4; as 107 tail tiles of 24 ids they give it 984, 0.5 % above.

use super::{DeviceLimits, Family, Plan, Precision, Shape, Tile, hopper};

/// Ids that a copy brings at least: packed weights repeat their swizzle after them.
const GROUP: usize = 8;

/// The fewest ids of a tail tile. The instructions read 64 ids of shared memory all the same: with fewer ids
/// than these that takes as long as the copies from L2.
const FEWEST: usize = 16;

/// How the ids of the last wave are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Number of tiles before the cut, which have all of their ids.
    pub whole_tiles: u32,
    /// Ids of each later tile, a multiple of 8. The last one may have fewer.
    pub ids: u32,
}

impl Tail {
    /// The cut, if it makes tiles smaller. Only for tiles that hold all rows and are not in a cluster: there
    /// reading weights decides the time.
    pub fn of(tile: &Tile, shape: &Shape, limits: &DeviceLimits) -> Option<Tail> {
        let (sms, block_n) = (limits.num_sms.max(1), tile.block_n);
        let whole_tiles = shape.vocab / block_n / sms * sms;
        let ids = (shape.vocab - whole_tiles * block_n).div_ceil(sms).next_multiple_of(GROUP).max(FEWEST);
        let tail = Tail { whole_tiles: whole_tiles.try_into().ok()?, ids: ids.try_into().ok()? };
        tail.fits(tile, shape).then_some(tail)
    }

    /// What the kernels rely on.
    pub(crate) fn fits(&self, tile: &Tile, shape: &Shape) -> bool {
        let one_tile_of_rows = tile.cluster() == 1 && shape.rows <= tile.block_m;
        let (whole, ids) = (self.whole_tiles as usize, self.ids as usize);
        tile.family == Family::Wgmma
            && one_tile_of_rows
            && whole.checked_mul(tile.block_n).is_some_and(|before| before < shape.vocab)
            && ids > 0
            && ids.is_multiple_of(GROUP)
            && ids < tile.block_n
    }

    /// How many tail tiles there are.
    pub fn tiles(&self, tile: &Tile, shape: &Shape) -> u32 {
        let before = (self.whole_tiles as usize).saturating_mul(tile.block_n);
        shape.vocab.saturating_sub(before).div_ceil(self.ids.max(1) as usize) as u32
    }
}

impl Plan {
    /// Tiles that the blocks compute, counted by cluster, tail tiles included.
    pub fn tiles(&self) -> u32 {
        match &self.tail {
            Some(tail) => tail.whole_tiles.saturating_add(tail.tiles(&self.tile, &self.shape)),
            None => self.tile.tiles(&self.shape).unwrap_or(u32::MAX),
        }
    }

    /// Parts of the vocabulary of which a row's partials are.
    pub fn parts(&self) -> usize {
        match self.tail {
            Some(_) => self.tiles() as usize,
            None => self.shape.vocab.div_ceil(self.tile.epilogue_n()),
        }
    }

    /// The same plan with whole tiles alone, to be compared with.
    #[must_use]
    pub fn without_tail(self, limits: &DeviceLimits) -> Self {
        let plain = Plan { tail: None, ..self };
        if self.tail.is_some() { Plan { blocks: hopper::blocks(&plain, limits), ..plain } } else { plain }
    }
}

/// The most parts that any plan of the precision for packed weights has of `vocab` ids, whatever its rows.
pub(crate) fn most_parts(precision: Precision, vocab: usize, limits: &DeviceLimits) -> usize {
    let shape = Shape { rows: 1, vocab, hidden: 1 };
    let parts = |tile: &Tile| match Tail::of(tile, &shape, limits) {
        Some(tail) => tail.whole_tiles as usize + tail.tiles(tile, &shape) as usize,
        None => vocab.div_ceil(tile.epilogue_n()),
    };
    precision.packed_tiles().iter().map(parts).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(block_n: usize, rows: usize, vocab: usize) -> Plan {
        let (precision, shape) = (Precision::Bf16, Shape { rows, vocab, hidden: 7168 });
        let fits = |tile: &&Tile| tile.block_n == block_n && tile.block_m >= rows.min(32);
        let tile = precision.packed_tiles().iter().find(fits).expect("a tile");
        Plan::with_packed_tile(precision, shape, tile, 3, &DeviceLimits::H100).expect("a plan")
    }

    /// Ids of the busiest SM.
    fn most_ids(plan: &Plan) -> usize {
        match &plan.tail {
            Some(tail) => tail.whole_tiles as usize / 132 * plan.tile.block_n + tail.ids as usize,
            None => (plan.tiles() as usize).div_ceil(plan.blocks as usize) * plan.tile.block_n,
        }
    }

    #[test]
    fn the_last_wave_is_cut_evenly() {
        let limits = &DeviceLimits::H100;
        // (ids of a tile, vocabulary, (whole tiles, ids of a tail tile, tail tiles), ids of the busiest SM
        // with tail tiles and without).
        for (block_n, vocab, wanted, most, plain) in [
            (64, 129_280, Some((1980, 24, 107)), 984, 1024),
            (128, 129_280, Some((924, 88, 126)), 984, 1024),
            (64, 128_256, Some((1980, 16, 96)), 976, 1024),
            (64, 151_936, None, 1152, 1152),
            (128, 50_257, None, 384, 384),
            (64, 32_000, Some((396, 56, 119)), 248, 256),
            // Fewer tiles than SMs: a sixteenth of 32000 ids, of 129280, and a few ids.
            (64, 2048, Some((0, 16, 128)), 16, 64),
            (64, 8128, None, 64, 64),
            (64, 100, Some((0, 16, 7)), 16, 64),
            // Whole waves.
            (64, 132 * 64, None, 64, 64),
            (64, 132 * 64 * 3 + 1, Some((396, 16, 1)), 208, 256),
        ] {
            let cut = plan(block_n, 8, vocab);
            let numbers = |tail: Tail| (tail.whole_tiles, tail.ids, tail.tiles(&cut.tile, &cut.shape));
            assert_eq!(cut.tail.map(numbers), wanted, "{cut}");
            assert_eq!((most_ids(&cut), most_ids(&cut.without_tail(limits))), (most, plain), "{cut}");
        }
    }

    #[test]
    fn only_tiles_that_hold_all_rows_alone_have_tail_tiles() {
        assert!(plan(64, 32, 129_280).tail.is_some());
        // Two tiles of rows; then a cluster.
        assert_eq!(plan(64, 200, 129_280).tail, None);
        assert_eq!(plan(256, 32, 129_280).tail, None);
    }

    /// What `lmhead plan --kernels` tells of it.
    #[test]
    fn the_cost_names_the_last_wave() {
        let limits = &DeviceLimits::H100;
        let cut = plan(64, 8, 129_280);
        let said = cut.to_string();
        assert!(said.contains(
            "on 132 blocks that share 1980 tiles of 64 ids x 8 rows and 107 tail tiles of 24 ids: "
        ));
        let (cost, plain) = (cut.cost(limits), cut.without_tail(limits).cost(limits));
        assert_eq!((cost.blocks, cost.weight_bytes), (plain.blocks, plain.weight_bytes));
        // 112 columns of 128 bytes of k: 15 tiles of 64 ids and 8 rows, and 24 ids and 8 rows.
        assert_eq!(cost.l2_bytes, 112 * 128 * (15 * (64 + 8) + 24 + 8));
        assert_eq!(plain.l2_bytes, 112 * 128 * 16 * (64 + 8));
        assert_eq!(cost.products, plain.products);
        // 40 tiles come through L2 for as long as a tile takes, while memory could bring them in less.
        assert!(plain.clocks.last_wave > 10.0 * cost.clocks.last_wave, "{plain}; {cost}");
        assert!(plain.clocks.last_wave > 0.015 * plain.clocks.memory, "{plain}");
        assert!(plain.to_string().contains(", last wave "));
    }
}
