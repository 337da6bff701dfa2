//! Compares the matmul by tiles with sums written out, for blocks of every shape and tails of every kind.

use super::emulated::Emulated;
use super::{
    AmxOperands, AmxScratch, Line, PackedTiles, STEP, Shape, TILE_BYTES, TileMatmul, Tiles, rounding,
};
use crate::{BLOCK, Format, HiddenRowsRef, Isa, PackedRows, RowType, Weights, e4m3};
use half::bf16;
use proptest::prelude::*;

/// Pseudorandom numbers: a pure function of the seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A bf16 with a magnitude about 1.
    fn bf16(&mut self) -> u16 {
        (self.next() & 0x807f | (120 + self.next() % 12) << 7) as u16
    }
}

/// What values bf16 rows and weights have.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Data {
    Usual,
    /// Any 16 bits: subnormal numbers, infinities and NaN among them.
    Any,
    /// Numbers so small that products and sums are subnormal or nearly so.
    Tiny,
}

impl Data {
    fn bf16(self, numbers: &mut Numbers) -> u16 {
        match self {
            Data::Usual => numbers.bf16(),
            Data::Any => numbers.next() as u16,
            Data::Tiny => (numbers.next() & 0x807f | (58 + numbers.next() % 10) << 7) as u16,
        }
    }
}

/// Weights and rows as they are stored.
#[derive(Debug)]
struct Case {
    kind: AmxOperands,
    rows: usize,
    hidden: usize,
    ids: usize,
    /// Rows, `[rows]` of `[hidden]`.
    x: Vec<Vec<u8>>,
    /// Weights `[ids, hidden]`, without a byte behind them.
    w: Box<[u8]>,
}

impl Case {
    fn new(kind: AmxOperands, rows: usize, hidden: usize, ids: usize, data: Data, seed: u64) -> Case {
        let mut numbers = Numbers(seed);
        let of_bf16 = |numbers: &mut Numbers, count: usize| -> Vec<u8> {
            (0..count).flat_map(|_| data.bf16(numbers).to_le_bytes()).collect()
        };
        let of_bytes = |numbers: &mut Numbers, count: usize| -> Vec<u8> {
            (0..count).map(|_| numbers.next() as u8).collect()
        };
        let row = |numbers: &mut Numbers| match kind {
            AmxOperands::Int8 => of_bytes(numbers, hidden),
            _ => of_bf16(numbers, hidden),
        };
        let x = (0..rows).map(|_| row(&mut numbers)).collect();
        let mut w = match kind {
            AmxOperands::Bf16 => of_bf16(&mut numbers, ids * hidden),
            _ => of_bytes(&mut numbers, ids * hidden),
        };
        if kind == AmxOperands::E4m3ToBf16 && data != Data::Any {
            // Two in 256 random codes are NaN, and would make nearly every logit NaN.
            w.iter_mut().filter(|code| e4m3::is_nan(**code)).for_each(|code| *code ^= 1);
        }
        Case { kind, rows, hidden, ids, x, w: w.into() }
    }

    /// Bytes of a row and of a weight row.
    fn row_bytes(&self) -> (usize, usize) {
        match self.kind {
            AmxOperands::Int8 => (self.hidden, self.hidden),
            AmxOperands::Bf16 => (2 * self.hidden, 2 * self.hidden),
            AmxOperands::Int8ToBf16 | AmxOperands::E4m3ToBf16 => (2 * self.hidden, self.hidden),
        }
    }

    /// The bits of the logits of these rows, `[rows, ids]`; all NaN are made equal.
    fn logits<T: Tiles>(&self, rows: &[usize], scratch: &mut AmxScratch) -> Vec<u32> {
        let (row_bytes, weight_bytes) = self.row_bytes();
        let mut packed = PackedTiles::empty();
        packed.pack(rows.len(), row_bytes, |row| &self.x[rows[row]]);
        let mut logits = vec![f32::NEG_INFINITY; rows.len() * BLOCK];
        let matmul = TileMatmul {
            kind: self.kind,
            rows: &packed,
            weights: &self.w,
            row_bytes: weight_bytes,
            ids: self.ids,
            logits: &mut logits,
            scratch,
        };
        matmul.run::<T>(Isa::Portable);
        logits.chunks(BLOCK).flat_map(|row| row[..self.ids].iter().map(|l| bits(*l))).collect()
    }

    fn all<T: Tiles>(&self) -> Vec<u32> {
        let rows: Vec<usize> = (0..self.rows).collect();
        self.logits::<T>(&rows, &mut AmxScratch::default())
    }

    /// A row's logits as the manual describes them, one operation after the other.
    fn by_the_word(&self, row: usize) -> Vec<u32> {
        let (x, hidden) = (&self.x[row], self.hidden);
        let int8 = |bytes: &[u8], k: usize| bytes[k] as i8;
        let half = |bytes: &[u8], k: usize| f32::from(bf16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]));
        let logit = |w: &[u8]| {
            if self.kind == AmxOperands::Int8 {
                let sum: i64 = (0..hidden).map(|k| i64::from(int8(x, k)) * i64::from(int8(w, k))).sum();
                return sum as f32;
            }
            let weight = |k| match self.kind {
                AmxOperands::Bf16 => half(w, k),
                AmxOperands::E4m3ToBf16 => e4m3::widen(w[k]),
                _ => f32::from(int8(w, k)),
            };
            let mut sum = 0.0f32;
            for first in (0..hidden).step_by(32) {
                let mut chains = [0.0f32; 2];
                for k in first..hidden.min(first + 32) {
                    let chain = &mut chains[k % 2];
                    *chain = flushed(flushed(half(x, k)).mul_add(flushed(weight(k)), *chain));
                }
                // Padding adds products of zeros, which turn a chain of minus zero into zero.
                if hidden < first + 32 {
                    chains = chains.map(|chain| chain + 0.0);
                }
                sum = flushed(sum + flushed(chains[0] + chains[1]));
            }
            sum
        };
        (0..self.ids).map(|id| &self.w[id * self.w.len() / self.ids..]).map(|w| bits(logit(w))).collect()
    }
}

fn bits(logit: f32) -> u32 {
    if logit.is_nan() { f32::NAN.to_bits() } else { logit.to_bits() }
}

/// Makes subnormal numbers zeros. (At the very edge the processor does something else, which `emulated.rs`
/// tests.)
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

const KINDS: [AmxOperands; 4] =
    [AmxOperands::Bf16, AmxOperands::Int8, AmxOperands::Int8ToBf16, AmxOperands::E4m3ToBf16];

fn cases() -> impl Strategy<Value = Case> {
    let rows = prop_oneof![3 => 1usize..=16, 3 => 17usize..=32, 2 => 33usize..=100];
    // Steps of 32 or 64 elements; k-blocks of 16 steps.
    let hidden =
        prop_oneof![2 => 1usize..=130, 2 => 131usize..=2200, 1 => (1usize..=34).prop_map(|n| n * 64)];
    let ids = prop_oneof![1 => 1usize..16, 2 => 16usize..=BLOCK];
    let data = prop::sample::select(vec![Data::Usual, Data::Any, Data::Tiny]);
    (prop::sample::select(&KINDS[..]), rows, hidden, ids, data, any::<u64>())
        .prop_map(|(kind, rows, hidden, ids, data, seed)| Case::new(kind, rows, hidden, ids, data, seed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Every logit is the sum that the manual describes, whatever the shape of the block, and does not depend
    /// on the rows around it, their order, or earlier contents of the scratch memory.
    #[test]
    fn logits_are_the_sums_of_the_manual(
        case in cases(), picks in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        let got = case.all::<Emulated>();
        for row in 0..case.rows {
            prop_assert_eq!(&got[row * case.ids..][..case.ids], case.by_the_word(row), "row {}", row);
        }
        let picks: Vec<usize> = picks.iter().map(|pick| pick.index(case.rows)).collect();
        let mut scratch = AmxScratch::default();
        for rows in [&picks[..], &picks[..1], &picks[..picks.len().min(17)], &picks] {
            let picked = case.logits::<Emulated>(rows, &mut scratch);
            for (i, &row) in rows.iter().enumerate() {
                prop_assert_eq!(&picked[i * case.ids..][..case.ids], &got[row * case.ids..][..case.ids]);
            }
        }
    }

    /// Computes the ids in one block, and the same ids in two.
    #[test]
    fn a_logit_does_not_depend_on_the_ids_beside_it(case in cases(), cut in any::<prop::sample::Index>()) {
        let want = case.all::<Emulated>();
        let cut = cut.index(case.ids) + 1;
        let bytes = case.w.len() / case.ids * cut;
        let mut at = 0;
        for (ids, w) in [(cut, &case.w[..bytes]), (case.ids - cut, &case.w[bytes..])] {
            let part = Case { w: w.into(), ids, x: case.x.clone(), ..case };
            for (got, want) in part.all::<Emulated>().chunks(ids.max(1)).zip(want.chunks(case.ids)) {
                prop_assert_eq!(got, &want[at..at + ids]);
            }
            at += ids;
        }
    }
}

/// Compares several blocks of ids in one call, the last of them whole or not, with the same blocks one by
/// one.
#[test]
fn blocks_at_once_are_the_blocks_one_by_one() {
    for (format, kind) in [
        (Format::Float, AmxOperands::Bf16),
        (Format::W8a8, AmxOperands::Int8),
        (Format::W8a16, AmxOperands::Int8ToBf16),
        (Format::W8a16, AmxOperands::E4m3ToBf16),
    ] {
        for (rows, hidden, ids) in [(33, 700, 256), (40, 33, 198), (70, 1100, 128), (100, 257, 70)] {
            // Rows are quantised from bf16.
            let rows_of = if kind == AmxOperands::Int8 { AmxOperands::Int8ToBf16 } else { kind };
            let case = Case::new(rows_of, rows, hidden, ids, Data::Usual, ids as u64);
            let mut packed = PackedRows::new(Isa::EmulatedAmx);
            packed.reserve(format, RowType::Bf16, hidden, rows);
            let all = HiddenRowsRef { dtype: RowType::Bf16, hidden, row: &|row| &case.x[row] };
            packed.pack(&all, format, 0..rows);
            assert_eq!(packed.scales().len(), if kind == AmxOperands::Int8 { rows } else { 0 });
            // In memory that is aligned as weights are.
            let halves: Vec<bf16> = bytemuck::pod_collect_to_vec(&case.w);
            let size = case.w.len() / ids / hidden;
            let weights = |from: usize| match kind {
                AmxOperands::Bf16 => Weights::Bf16(&halves[from..]),
                AmxOperands::E4m3ToBf16 => Weights::E4m3(&case.w[from..]),
                _ => Weights::I8(bytemuck::cast_slice(&case.w[from..])),
            };
            assert_eq!(size, if kind == AmxOperands::Bf16 { 2 } else { 1 });
            let mut scratch = crate::BlockScratch::default();
            let mut got = vec![f32::NAN; ids.div_ceil(BLOCK) * rows * BLOCK];
            packed.multiply(weights(0), ids, &[], &mut got, &mut scratch);
            let mut want = vec![f32::NAN; rows * BLOCK];
            for (block, got) in got.chunks(rows * BLOCK).enumerate() {
                let ids = BLOCK.min(ids - block * BLOCK);
                packed.multiply(weights(block * BLOCK * hidden), ids, &[], &mut want, &mut scratch);
                for (got, want) in got.chunks(BLOCK).zip(want.chunks(BLOCK)) {
                    assert_eq!(got[..ids], want[..ids], "{kind:?} {rows} x {hidden}, block {block}");
                }
            }
        }
    }
}

/// Shapes that take every path through the blocks: one, two and more tiles of ids and of rows; one k-block
/// and several, whole and partial, of each kind of weights; tails of one byte and of 62.
fn every_way() -> impl Iterator<Item = Case> {
    let shapes = [
        (1, 1, 1),
        (1, 600, 64),
        (1, 1100, 64),
        (3, 31, 5),
        (8, 257, 33),
        (16, 33, 17),
        (17, 1056, 64),
        (31, 95, 16),
        (32, 64, 50),
        (16, 2100, 40),
        (33, 550, 20),
        (33, 1100, 20),
        (49, 1037, 64),
        (64, 32, 3),
    ];
    let kinds = KINDS.into_iter().flat_map(move |kind| shapes.map(|shape| (kind, shape)));
    kinds.enumerate().map(|(seed, (kind, (rows, hidden, ids)))| {
        let data = [Data::Usual, Data::Any, Data::Tiny][seed % 3];
        Case::new(kind, rows, hidden, ids, data, seed as u64)
    })
}

/// Tests the instructions themselves, where the processor has them and the system grants them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_processor_s_tiles_equal_the_emulation() {
    use super::hardware::Hardware;
    if super::Amx::here() != super::Amx::Granted {
        eprintln!("ignored: {}", super::Amx::here());
        return;
    }
    for case in every_way() {
        assert_eq!(case.all::<Hardware>(), case.all::<Emulated>(), "{:?}", case.kind);
    }
    assert_eq!(rounding::<Hardware>(), rounding::<Emulated>(), "how tdpbf16ps rounds");
}

/// Tests operands, addresses and order of the `asm!`, on a processor that traps at each tile instruction.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_assembler_s_instructions_equal_the_emulation() {
    use super::hardware::Hardware;
    use super::trapped;
    if super::Amx::here() != super::Amx::NotInProcessor || !crate::Isa::Avx2.is_available() {
        eprintln!("ignored: this processor has the instructions, and nothing to trap");
        return;
    }
    trapped::install();
    let widens = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vbmi");
    for case in every_way() {
        if widens || matches!(case.kind, AmxOperands::Bf16 | AmxOperands::Int8) {
            assert_eq!(case.all::<Hardware>(), case.all::<Emulated>(), "{:?}", case.kind);
            assert!(!trapped::has_tiles(), "tiles are released");
        }
    }
    assert_eq!(rounding::<Hardware>(), rounding::<Emulated>());
    let panics = std::panic::catch_unwind(|| {
        Hardware::configure(Shape { ids: 16, rows: 16 }).load::<4>(&[0; TILE_BYTES - 1], 0, STEP);
    });
    assert!(panics.is_err() && !trapped::has_tiles(), "a refused load releases them, too");
}

/// Tiles that round another way: as `vdpbf16ps` does, or so but without its flushing of subnormal numbers.
struct Other<const FLUSHES: bool>(Shape, [[u8; TILE_BYTES]; 8]);

impl<const FLUSHES: bool> Tiles for Other<FLUSHES> {
    fn configure(shape: Shape) -> Self {
        Other(shape, [[0; TILE_BYTES]; 8])
    }

    fn zero<const T: usize>(&mut self) {
        self.1[T] = [0; TILE_BYTES];
    }

    fn load<const T: usize>(&mut self, from: &[u8], at: usize, stride: usize) {
        assert_eq!((at, stride, self.0), (0, STEP, Shape { ids: 16, rows: 16 }), "what the probe asks for");
        self.1[T].copy_from_slice(from);
    }

    fn store<const T: usize>(&self, to: &mut [u8], _: usize, _: usize) {
        to.copy_from_slice(&self.1[T]);
    }

    fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        let half = |bytes: &[u8], at: usize| f32::from(bf16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let flush = |value| if FLUSHES { flushed(value) } else { value };
        for (i, word) in (0..256).zip(0..) {
            let (id, row) = (i / 16, i % 16);
            let at = word * 4;
            let mut sum = flush(f32::from_le_bytes(self.1[C][at..at + 4].try_into().unwrap()));
            for k in 0..32 {
                let (w, x) =
                    (half(&self.1[A], id * 64 + 2 * k), half(&self.1[B], k / 2 * 64 + row * 4 + k % 2 * 2));
                sum = flush(flush(w).mul_add(flush(x), sum));
            }
            self.1[C][at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn dot_i8<const C: usize, const A: usize, const B: usize>(&mut self) {
        unreachable!("the probe is of bf16")
    }

    fn widen_i8(_: &[u8], _: &mut [Line], _: usize) {
        unreachable!("the probe is of bf16")
    }

    fn widen_e4m3(_: &[u8], _: &mut [Line], _: usize) {
        unreachable!("the probe is of bf16")
    }
}

#[test]
fn the_family_tells_ways_of_rounding_apart() {
    let numbers = [rounding::<Emulated>(), rounding::<Other<true>>(), rounding::<Other<false>>()];
    assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2] && numbers[0] != numbers[2], "{numbers:x?}");
    assert_eq!(rounding::<Emulated>(), numbers[0]);
}
