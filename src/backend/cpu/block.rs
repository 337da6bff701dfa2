//! Packed rows x one block of the vocabulary -> raw f32 logits.
//!
//! Few rows: the weights go from memory through the registers, once. More rows: a few weight rows at a time are
//! widened into a panel that stays in the first-level cache, and every tile of rows runs over it.
//! Both ways are the same sums in the same order.

use super::isa::{Arith, Work};
use super::lanes::{Kind, LANES, Lanes};
use super::pack::{Packed, TILE_ROWS};
use crate::merge::BLOCK;

/// Steps of k of one panel: with 4 weight rows and a tile of 4 rows, twice 16 KiB.
const PANEL_STEPS: usize = 64;
/// Vocabulary ids and rows whose sums are kept while the panels pass by: 16 x 128 x 64 bytes, 128 KiB.
const GROUP_IDS: usize = 16;
const GROUP_ROWS: usize = 128;

/// Memory of one thread, reused from block to block. At most about 0.2 MiB.
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
    /// `[ids, hidden]`
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
            (_, 0) => {}
            (16, 1) => self.direct::<A, 1, 4>(),
            (16, 2) => self.direct::<A, 2, 4>(),
            (16, 3) => self.direct::<A, 3, 4>(),
            (16, 4) => self.direct::<A, 4, 4>(),
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
    #[inline(always)]
    fn weight_row(&self, id: usize) -> &[K::Weight] {
        &self.weights[id * self.hidden..][..self.hidden]
    }

    /// All `M` rows at once, `N` weight rows at a time, straight from memory.
    #[inline(always)]
    fn direct<A: Arith, const M: usize, const N: usize>(self) {
        let whole = self.ids / N * N;
        for id in (0..whole).step_by(N) {
            let weights = std::array::from_fn::<_, N, _>(|c| self.weight_row(id + c));
            let sums = direct_tile::<S, K, A, M, N>(self.rows.tile::<M>(0), weights);
            for r in 0..M {
                for c in 0..N {
                    self.logits[r * BLOCK + id + c] = K::reduce(&Lanes(sums[r][c]));
                }
            }
        }
        for id in whole..self.ids {
            let sums = direct_tile::<S, K, A, M, 1>(self.rows.tile::<M>(0), [self.weight_row(id)]);
            for r in 0..M {
                self.logits[r * BLOCK + id] = K::reduce(&Lanes(sums[r][0]));
            }
        }
    }

    /// Any number of rows, through widened panels of `N` weight rows, registers of `L` lanes.
    #[inline(always)]
    fn panels<A: Arith, const N: usize, const L: usize>(self) {
        let steps = self.rows.per_row();
        self.scratch.panel.resize(N * PANEL_STEPS, K::Step::default());
        for first_id in (0..self.ids).step_by(GROUP_IDS) {
            let end_id = self.ids.min(first_id + GROUP_IDS);
            let ids = end_id - first_id;
            for first_row in (0..self.rows.rows()).step_by(GROUP_ROWS) {
                let rows = first_row..self.rows.rows().min(first_row + GROUP_ROWS);
                self.scratch.sums.clear();
                self.scratch.sums.resize(rows.len() * ids, Lanes::default());
                for first_step in (0..steps).step_by(PANEL_STEPS) {
                    let n = PANEL_STEPS.min(steps - first_step);
                    let mut id = first_id;
                    while id < end_id {
                        // Whole tiles of N, then single rows at the vocabulary's very end.
                        let columns = if id + N <= end_id { N } else { 1 };
                        for c in 0..columns {
                            let row = &self.weights[(id + c) * self.hidden..][..self.hidden];
                            let row = &row[first_step * S..self.hidden.min((first_step + n) * S)];
                            let panel = self.scratch.panel[c..].iter_mut().step_by(columns);
                            widen_into::<S, K>(row, panel);
                        }
                        let panel = &self.scratch.panel[..n * columns];
                        for (row, tile_rows) in self.rows.tiles(rows.clone()) {
                            // Of a tile: [columns of `ids`] x [rows of the tile], a column tile contiguous.
                            let at = (row - first_row) * ids + (id - first_id) * tile_rows;
                            let sums = &mut self.scratch.sums[at..][..columns * tile_rows];
                            macro_rules! tile {
                                ($m:literal) => {{
                                    let x = &self.rows.tile::<$m>(row)[first_step..first_step + n];
                                    if columns == N {
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
                        id += columns;
                    }
                }
                for (row, tile_rows) in self.rows.tiles(rows.clone()) {
                    for c in 0..ids {
                        // The column tile that holds c: N wide, or single.
                        let (tile, width) = if c / N * N + N <= ids { (c / N * N, N) } else { (c, 1) };
                        for r in 0..tile_rows {
                            let at = (row - first_row) * ids + tile * tile_rows + r * width + (c - tile);
                            self.logits[(row + r) * BLOCK + first_id + c] = K::reduce(&self.scratch.sums[at]);
                        }
                    }
                }
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

/// Whole rows of k: `M` packed rows x `N` weight rows as they are stored.
#[inline(always)]
fn direct_tile<const S: usize, K: Kind<S>, A: Arith, const M: usize, const N: usize>(
    x: &[[K::Step; M]],
    weights: [&[K::Weight]; N],
) -> [[[K::Sum; LANES]; N]; M] {
    let mut sums = [[[K::Sum::default(); LANES]; N]; M];
    let whole = weights[0].len() / S;
    let chunks = weights.map(|w| &w.as_chunks::<S>().0[..whole]);
    for (k, x) in x[..whole].iter().enumerate() {
        for c in 0..N {
            let w = K::widen(&chunks[c][k]);
            for r in 0..M {
                K::mul_add::<A, LANES>(&x[r], &w, 0, &mut sums[r][c]);
            }
        }
    }
    if let Some(x) = x.get(whole) {
        for c in 0..N {
            let w = K::widen_tail(&weights[c][whole * S..]);
            for r in 0..M {
                K::mul_add::<A, LANES>(&x[r], &w, 0, &mut sums[r][c]);
            }
        }
    }
    sums
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

const _: () = assert!(GROUP_ROWS.is_multiple_of(TILE_ROWS) && BLOCK.is_multiple_of(GROUP_IDS));
