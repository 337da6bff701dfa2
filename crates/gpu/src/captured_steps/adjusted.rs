//! Masks, logit bias and penalties of captured steps: in device memory, other ones in every replay.

use super::CAPACITY;
use super::answers::CopiedBuffer;
use lmhead::adjust::{Adjustments, Counts, LogitBias, Penalties};
use lmhead::backend::DeviceAdjustments;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::KernelDevice;
use lmhead::memory::Span;
use lmhead::result::{DeviceInputs, LogitBiasSpans, PenaltySpans};
use lmhead_testkit::Random;

/// Adjustments of one row.
#[derive(Debug, Clone)]
pub(super) struct RowAdjustments {
    allowed: Vec<i32>,
    logit_bias: Vec<(i64, f32)>,
    /// Repetition, frequency, presence.
    penalties: [f32; 3],
    counts: Vec<(i64, u32, bool)>,
    /// Whether all of it is legal.
    pub good: bool,
}

/// Adjustments that change nothing.
pub(super) fn neutral(vocab: usize) -> RowAdjustments {
    RowAdjustments {
        allowed: vec![-1; vocab.div_ceil(32)],
        logit_bias: Vec::new(),
        penalties: [1.0, 0.0, 0.0],
        counts: Vec::new(),
        good: true,
    }
}

/// Adjustments that add `bias` to logit 1.
pub(super) fn biased(vocab: usize, bias: f32) -> RowAdjustments {
    RowAdjustments { logit_bias: vec![(1, bias)], ..neutral(vocab) }
}

/// A row of a head of that vocabulary, with as many entries as `of` says or fewer; one in seven is bad.
pub(super) fn random(random: &mut Random, of: DeviceAdjustments, vocab: usize) -> RowAdjustments {
    let mut row = neutral(vocab);
    match random.below(4) {
        0 => {}
        // Few ids are allowed, or none.
        1 => row.allowed.iter_mut().for_each(|word| *word = 1 << random.below(32) & random.next() as i32),
        _ => row.allowed.iter_mut().for_each(|word| *word = random.next() as i32),
    }
    let id = |random: &mut Random| random.below(vocab) as i64;
    // One in two is in order of ids, which kernels place in another way.
    let sorted = random.below(2) == 0;
    let bias = |random: &mut Random| {
        let value = if random.below(6) == 0 { f32::NEG_INFINITY } else { 3.0 * random.normal() };
        (id(random), value)
    };
    row.logit_bias = (0..random.below(of.logit_bias as usize + 1)).map(|_| bias(random)).collect();
    if sorted {
        row.logit_bias.sort_by_key(|(id, _)| *id);
    }
    row.penalties = [[1.0, 0.8, 1.3][random.below(3)], random.normal(), random.normal()];
    let mut ids: Vec<i64> = (0..random.below(of.counts as usize + 1)).map(|_| id(random)).collect();
    ids.sort_unstable();
    ids.dedup();
    if !sorted {
        ids.reverse();
    }
    let count = |id: i64| (id, random.below(5) as u32, random.below(2) == 0);
    row.counts = ids.into_iter().map(count).collect();
    let bad = random.below(14);
    let (added, counted) = (of.logit_bias > 0, of.counts > 0);
    match bad {
        0 if added => row.logit_bias = vec![(0, 1.0); of.logit_bias as usize + 1],
        1 if added => row.logit_bias = vec![(vocab as i64, 1.0)],
        2 if added => row.logit_bias = vec![(0, f32::NAN)],
        3 if counted => row.counts = (0..=of.counts).map(|id| (i64::from(id), 1, false)).collect(),
        4 if counted => row.counts = vec![(1, 1, false), (1, 2, true)],
        5 if counted => row.penalties[0] = 0.0,
        6 if counted => row.counts = vec![(-1, 1, false)],
        _ => return row,
    }
    RowAdjustments { good: false, ..row }
}

/// The adjustments of several rows, as heads take them.
#[derive(Default)]
pub(super) struct Lists {
    allowed: Vec<i32>,
    logit_bias: (Vec<usize>, Vec<i64>, Vec<f32>),
    penalties: [Vec<f32>; 3],
    counts: (Vec<usize>, Vec<i64>, Vec<u32>, Vec<bool>),
}

impl Lists {
    pub fn new<'a>(rows: impl Iterator<Item = &'a RowAdjustments>) -> Self {
        let mut all = Lists::default();
        all.logit_bias.0.push(0);
        all.counts.0.push(0);
        for row in rows {
            all.allowed.extend(&row.allowed);
            all.logit_bias.1.extend(row.logit_bias.iter().map(|(id, _)| *id));
            all.logit_bias.2.extend(row.logit_bias.iter().map(|(_, value)| *value));
            all.logit_bias.0.push(all.logit_bias.1.len());
            all.penalties.iter_mut().zip(row.penalties).for_each(|(all, own)| all.push(own));
            all.counts.1.extend(row.counts.iter().map(|(id, ..)| *id));
            all.counts.2.extend(row.counts.iter().map(|(_, times, _)| *times));
            all.counts.3.extend(row.counts.iter().map(|(.., in_prompt)| *in_prompt));
            all.counts.0.push(all.counts.1.len());
        }
        all
    }

    /// What `of` names, in host memory.
    pub fn on_host(&self, of: DeviceAdjustments) -> Adjustments<'_> {
        let (offsets, ids, values) = &self.logit_bias;
        let [repetition, frequency, presence] = &self.penalties;
        let (count_offsets, count_ids, counts, in_prompt) = &self.counts;
        let counts = Counts { offsets: count_offsets, ids: count_ids, counts, in_prompt };
        Adjustments {
            allowed: of.allowed.then_some(&self.allowed),
            logit_bias: (of.logit_bias > 0).then_some(LogitBias { offsets, ids, values }),
            penalties: (of.counts > 0).then_some(Penalties { repetition, frequency, presence, counts }),
        }
    }
}

/// Device memory for the adjustments of `CAPACITY` rows, each with one entry more than it may have.
pub(super) struct Placed<'d> {
    of: DeviceAdjustments,
    vocab: usize,
    allowed: CopiedBuffer<'d>,
    /// Offsets, ids, values.
    logit_bias: [CopiedBuffer<'d>; 3],
    penalties: [CopiedBuffer<'d>; 3],
    /// Offsets, ids, counts, whether the prompt has them.
    counts: [CopiedBuffer<'d>; 4],
}

impl<'d> Placed<'d> {
    pub fn new(device: &'d CudaDevice, of: DeviceAdjustments, vocab: usize) -> Self {
        let room = |bytes: usize| CopiedBuffer::new(device, bytes);
        let entries = |each: u32| CAPACITY * (each as usize + 1);
        Placed {
            of,
            vocab,
            allowed: room(4 * CAPACITY * vocab.div_ceil(32)),
            logit_bias: [8 * (CAPACITY + 1), 8 * entries(of.logit_bias), 4 * entries(of.logit_bias)]
                .map(room),
            penalties: [4 * CAPACITY; 3].map(room),
            counts: [8 * (CAPACITY + 1), 8 * entries(of.counts), 4 * entries(of.counts), entries(of.counts)]
                .map(room),
        }
    }

    /// Puts these where steps find them.
    pub fn bring(&self, rows: &[RowAdjustments], stream: <CudaDevice as KernelDevice>::Stream) {
        let all = Lists::new(rows.iter());
        let copy = |room: &CopiedBuffer<'_>, bytes: &[u8]| {
            room.device.write_on(stream, &room.buffer, 0, bytes).expect("a copy");
        };
        let offsets = |of: &[usize]| of.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        copy(&self.allowed, bytemuck::cast_slice(&all.allowed));
        let [to_offsets, to_ids, to_values] = &self.logit_bias;
        copy(to_offsets, bytemuck::cast_slice(&offsets(&all.logit_bias.0)));
        copy(to_ids, bytemuck::cast_slice(&all.logit_bias.1));
        copy(to_values, bytemuck::cast_slice(&all.logit_bias.2));
        self.penalties
            .iter()
            .zip(&all.penalties)
            .for_each(|(to, values)| copy(to, bytemuck::cast_slice(values)));
        let [to_offsets, to_ids, to_counts, to_prompt] = &self.counts;
        copy(to_offsets, bytemuck::cast_slice(&offsets(&all.counts.0)));
        copy(to_ids, bytemuck::cast_slice(&all.counts.1));
        copy(to_counts, bytemuck::cast_slice(&all.counts.2));
        copy(to_prompt, &all.counts.3.iter().map(|&prompt| prompt.into()).collect::<Vec<u8>>());
    }

    /// The inputs of the first `rows` rows.
    pub fn inputs(&self, rows: usize) -> DeviceInputs<'_> {
        fn whole<'a>(room: &'a CopiedBuffer<'_>) -> Span<'a> {
            room.span(room.bytes)
        }
        let of = self.of;
        let [offsets, ids, values] = &self.logit_bias;
        let [repetition, frequency, presence] =
            [0, 1, 2].map(|i: usize| Some(self.penalties[i].span(4 * rows)));
        let [count_offsets, count_ids, counts, in_prompt] = &self.counts;
        DeviceInputs {
            allowed: of.allowed.then(|| self.allowed.span(4 * rows * self.vocab.div_ceil(32))),
            logit_bias: (of.logit_bias > 0).then(|| LogitBiasSpans {
                offsets: offsets.span(8 * (rows + 1)),
                ids: whole(ids),
                values: whole(values),
            }),
            penalties: (of.counts > 0).then(|| PenaltySpans {
                repetition,
                frequency,
                presence,
                offsets: count_offsets.span(8 * (rows + 1)),
                ids: whole(count_ids),
                counts: whole(counts),
                in_prompt: whole(in_prompt),
            }),
            ..DeviceInputs::default()
        }
    }
}
