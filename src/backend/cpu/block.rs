//! Packed rows x one block of the vocabulary -> raw f32 logits.
//!
//! Few rows: the weights go from memory through the registers, widened on the way, again for each tile of rows.
//! More rows: some weight rows at a time are widened into a panel that stays in the second-level cache, and every
//! tile of rows runs over it. Both ways are the same sums in the same order.

use super::isa::{Arith, Work, prefetch};
use super::lanes::{Kind, LANES, Lanes};
use super::pack::{Packed, TILE_ROWS};
use crate::merge::BLOCK;

/// Rows up to which widening a weight once for each tile of rows is cheaper than the way through a panel, where
/// registers are wide enough for tiles of 4 x 4 (measured on Zen 4: even at 64 for bf16, at 32 for f16).
const DIRECT_ROWS: usize = 32;
/// Steps of k that the tiles run over before the next tile: 4 widened weight rows and a tile of 4 rows are twice
/// 16 KiB.
const PIECE_STEPS: usize = 64;
/// Widened weight rows that stay in the second-level cache with the rows that pass by: a bound in bytes, and one in
/// vocabulary ids.
const PANEL_BYTES: usize = 256 << 10;
const GROUP_IDS: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory of one thread, reused from block to block: a panel (256 KiB, or 4 weight rows where those are larger) and
/// the sums of its logits (1 KiB for each row of the pass).
#[derive(Debug)]
pub(super) struct Scratch<V, E> {
    panel: Vec<V>,
    sums: Vec<Lanes<E>>,
}

impl<V, E> Default for Scratch<V, E> {
    fn default() -> Self {
        Scratch { panel: Vec::new(), sums: Vec::new() }
    }
}

/// `logits[r * BLOCK + v] = rows[r] · weights[v]`, for every packed row and `ids` vocabulary rows.
pub(super) struct Matmul<'a, const S: usize, K: Kind<S>> {
    pub rows: &'a Packed<K::Step>,
    /// `[ids, hidden]`, and whatever follows: what is read next, if anything is.
    pub weights: &'a [K::Weight],
    pub hidden: usize,
    pub ids: usize,
    /// `[rows, BLOCK]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut Scratch<K::Step, K::Sum>,
}

impl<const S: usize, K: Kind<S>> Work for Matmul<'_, S, K> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        // How many weight rows a tile takes is what the registers allow: sums x rows x 16 lanes, and a few to spare.
        // (The panel walks the lanes in groups of a register, the direct way does not.)
        match (A::LANES, self.rows.rows()) {
            _ if self.hidden == 0 => self.logits.fill(0.0),
            (_, 0) => {}
            (16, rows) if rows <= DIRECT_ROWS => self.direct::<A, 4, 4>(),
            (16, _) => self.panels::<A, 4, 16>(),
            (8, 1) => self.direct::<A, 1, 4>(),
            (8, 2) => self.direct::<A, 2, 2>(),
            (8, _) => self.panels::<A, 2, 8>(),
            (_, 1) => self.direct::<A, 1, 2>(),
            (_, _) => self.panels::<A, 2, 4>(),
        }
    }
}

impl<const S: usize, K: Kind<S>> Matmul<'_, S, K> {
    /// A few rows: tiles of up to `M` rows x `N` weight rows, straight from memory.
    #[inline(always)]
    fn direct<A: Arith, const M: usize, const N: usize>(self) {
        let Self { rows: packed, weights: all, hidden, ids, logits, scratch } = self;
        scratch.sums.resize(packed.rows() * N, Lanes::default());
        let (whole, row) = (ids / N * N, |id: usize| &all[id * hidden..][..hidden]);
        for id in (0..whole).step_by(N) {
            let weights = std::array::from_fn(|c| row(id + c));
            // The next tile's weights, wanted as soon as this one is done: the hardware would begin to fetch each
            // row only when its reading has begun.
            let next = all.get((id + N) * hidden..(id + 2 * N) * hidden).unwrap_or(&[]);
            direct_rows::<S, K, A, M, N>(packed, weights, next, &mut scratch.sums);
            reduce_into::<S, K>(&scratch.sums, N, logits, id);
        }
        for id in whole..ids {
            direct_rows::<S, K, A, M, 1>(packed, [row(id)], &[], &mut scratch.sums);
            reduce_into::<S, K>(&scratch.sums[..packed.rows()], 1, logits, id);
        }
    }

    /// Any number of rows, through widened panels of `N` weight rows, registers of `L` lanes.
    #[inline(always)]
    fn panels<A: Arith, const N: usize, const L: usize>(self) {
        let Self { rows: packed, weights, hidden, ids, logits, scratch } = self;
        let (rows, steps) = (packed.rows(), packed.per_row());
        let row_tiles = rows.div_ceil(TILE_ROWS);
        let group = (PANEL_BYTES / (steps.max(1) * size_of::<K::Step>())).clamp(N, GROUP_IDS) / N * N;
        for first_id in (0..ids).step_by(group) {
            let group = group.min(ids - first_id);
            // Tiles of N columns, then single columns at the vocabulary's very end.
            let columns = || {
                let whole = group / N * N;
                (0..whole).step_by(N).map(|c| (c, N)).chain((whole..group).map(|c| (c, 1)))
            };
            scratch.panel.resize(group * steps, K::Step::default());
            for (column, width) in columns() {
                let panel = &mut scratch.panel[column * steps..][..width * steps];
                for c in 0..width {
                    let row = &weights[(first_id + column + c) * hidden..][..hidden];
                    widen_into::<S, K>(row, panel[c..].iter_mut().step_by(width));
                }
            }
            // While the tiles run over this group, the next one's weights come from memory.
            let end = (first_id + group) * hidden;
            let next = &weights[end..weights.len().min(end + group * hidden)];
            let mut lines = next.iter().step_by(LINE / size_of::<K::Weight>());
            let calls = row_tiles * columns().count() * steps.div_ceil(PIECE_STEPS);
            let lines_a_call = lines.len().div_ceil(calls.max(1));

            scratch.sums.clear();
            scratch.sums.resize(rows * group, Lanes::default());
            for first_step in (0..steps).step_by(PIECE_STEPS) {
                let piece = first_step..steps.min(first_step + PIECE_STEPS);
                for (column, width) in columns() {
                    let panel = &scratch.panel[column * steps..][..width * steps];
                    let panel = &panel[width * piece.start..width * piece.end];
                    // [rows, width]
                    let sums = &mut scratch.sums[column * rows..][..width * rows];
                    for (row, tile_rows) in packed.tiles() {
                        lines.by_ref().take(lines_a_call).for_each(prefetch);
                        let sums = &mut sums[row * width..][..tile_rows * width];
                        macro_rules! tile {
                            ($m:literal) => {{
                                let x = &packed.tile::<$m>(row)[piece.clone()];
                                if width == N {
                                    panel_tile::<S, K, A, $m, N, L>(x, panel, sums);
                                } else {
                                    panel_tile::<S, K, A, $m, 1, L>(x, panel, sums);
                                }
                            }};
                        }
                        match tile_rows {
                            1 => tile!(1),
                            2 => tile!(2),
                            3 => tile!(3),
                            _ => tile!(4),
                        }
                    }
                }
            }
            for (column, width) in columns() {
                let sums = &scratch.sums[column * rows..][..width * rows];
                reduce_into::<S, K>(sums, width, logits, first_id + column);
            }
        }
    }
}

/// Widens a piece of a weight row into every so-manieth step of a panel.
#[inline(always)]
fn widen_into<'a, const S: usize, K: Kind<S>>(
    row: &[K::Weight],
    mut panel: impl Iterator<Item = &'a mut K::Step>,
) where
    K::Step: 'a,
{
    let (whole, tail) = row.as_chunks::<S>();
    // In this order: the other way round, zip would take a step for which there are no weights any more.
    for (weights, step) in whole.iter().zip(panel.by_ref()) {
        *step = K::widen(weights);
    }
    if !tail.is_empty()
        && let Some(step) = panel.next()
    {
        *step = K::widen_tail(tail);
    }
}

/// Adds the lanes of `sums` `[rows, width]` and writes them to the columns from `id` of `logits` `[rows, BLOCK]`.
#[inline(always)]
fn reduce_into<const S: usize, K: Kind<S>>(
    sums: &[Lanes<K::Sum>],
    width: usize,
    logits: &mut [f32],
    id: usize,
) {
    for (sums, logits) in sums.chunks_exact(width).zip(logits.chunks_exact_mut(BLOCK)) {
        for (sum, logit) in sums.iter().zip(&mut logits[id..][..width]) {
            *logit = K::reduce(sum);
        }
    }
}

/// `N` weight rows as they are stored x every packed row (in tiles of `M` at most) -> `sums` `[rows, N]`; the first tile of rows asks for the
/// cache lines of `next` on its way.
#[inline(always)]
fn direct_rows<const S: usize, K: Kind<S>, A: Arith, const M: usize, const N: usize>(
    packed: &Packed<K::Step>,
    weights: [&[K::Weight]; N],
    next: &[K::Weight],
    sums: &mut [Lanes<K::Sum>],
) {
    for (row, tile_rows) in packed.tiles() {
        let next = if row == 0 { next } else { &[] };
        let sums = &mut sums[row * N..][..tile_rows * N];
        match tile_rows {
            4 if M >= 4 => direct_tile::<S, K, A, 4, N>(packed.tile(row), weights, next, sums),
            3 if M >= 3 => direct_tile::<S, K, A, 3, N>(packed.tile(row), weights, next, sums),
            2 if M >= 2 => direct_tile::<S, K, A, 2, N>(packed.tile(row), weights, next, sums),
            _ => direct_tile::<S, K, A, 1, N>(packed.tile(row), weights, next, sums),
        }
    }
}

/// Whole rows of k: `sums[r][c]` = the lanes of `x[r] · weights[c]`. They go through memory on purpose: where the
/// lanes are added right here, the compiler takes the tile apart to save the adding a few shuffles.
#[inline(always)]
fn direct_tile<const S: usize, K: Kind<S>, A: Arith, const M: usize, const N: usize>(
    x: &[[K::Step; M]],
    weights: [&[K::Weight]; N],
    next: &[K::Weight],
    sums: &mut [Lanes<K::Sum>],
) {
    let mut registers = [[[K::Sum::default(); LANES]; N]; M];
    let whole = weights[0].len() / S;
    let chunks = weights.map(|w| &w.as_chunks::<S>().0[..whole]);
    let mut next = next.chunks_exact(N * S);
    for (k, x) in x[..whole].iter().enumerate() {
        if let Some(next) = next.next() {
            next.iter().step_by(LINE / size_of::<K::Weight>()).for_each(prefetch);
        }
        for c in 0..N {
            let w = K::widen(&chunks[c][k]);
            for r in 0..M {
                K::mul_add::<A, LANES>(&x[r], &w, 0, &mut registers[r][c]);
            }
        }
    }
    if let Some(x) = x.get(whole) {
        for c in 0..N {
            let w = K::widen_tail(&weights[c][whole * S..]);
            for r in 0..M {
                K::mul_add::<A, LANES>(&x[r], &w, 0, &mut registers[r][c]);
            }
        }
    }
    for r in 0..M {
        for c in 0..N {
            sums[r * N + c] = Lanes(registers[r][c]);
        }
    }
}

/// Some steps of k: adds `M` packed rows x `N` widened weight rows to `sums` `[M][N]`.
#[inline(always)]
fn panel_tile<const S: usize, K: Kind<S>, A: Arith, const M: usize, const N: usize, const L: usize>(
    x: &[[K::Step; M]],
    panel: &[K::Step],
    sums: &mut [Lanes<K::Sum>],
) {
    let panel = panel.as_chunks::<N>().0;
    let sums = &mut sums.as_chunks_mut::<N>().0[..M];
    for group in 0..LANES / L {
        let mut registers = [[[K::Sum::default(); L]; N]; M];
        for r in 0..M {
            for c in 0..N {
                registers[r][c] = sums[r][c].0.as_chunks::<L>().0[group];
            }
        }
        for (x, w) in x.iter().zip(panel) {
            for r in 0..M {
                for c in 0..N {
                    K::mul_add::<A, L>(&x[r], &w[c], group, &mut registers[r][c]);
                }
            }
        }
        for r in 0..M {
            for c in 0..N {
                sums[r][c].0.as_chunks_mut::<L>().0[group] = registers[r][c];
            }
        }
    }
}

const _: () = assert!(BLOCK.is_multiple_of(GROUP_IDS));
