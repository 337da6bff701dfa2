//! Long lists of candidates from all shards, merged on the device and by the host's code.

use super::super::shards::Placed;
use super::HIDDEN;
use crate::{Random, TestHead};
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE};
use lmhead::backend::{Backend, LoadedShard, On};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::finish::{Finish, FinishScratch, Messages};
use lmhead::layout::shard_range;
use lmhead::memory::{Memory, Span};
use lmhead::merge::{Candidate, ExpSum, NO_TARGET, PartialMut, PartialSpec};
use std::ops::Range;

const ROWS: usize = 6;

/// The messages that shards send.
struct Sent {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    shards: Vec<Range<usize>>,
    own: Vec<u8>,
}

/// What shards would send for random rows, with a gap before each message. Even rows have few different
/// values, which tie across shards; in odd rows those of shard `owner` are above all others. One row allows
/// no id, one has an infinity in the last shard, one has an index out of range, and one allows ids of one
/// shard only.
fn sent(vocab: usize, shards: usize, owner: usize, spec: &PartialSpec, random: &mut Random) -> Sent {
    const GAP: usize = 16;
    let shards: Vec<Range<usize>> = (0..shards).map(|i| shard_range(vocab, shards, i)).collect();
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (i, shard) in shards.iter().enumerate() {
        bytes.extend([0xa5; GAP]);
        starts.push(bytes.len());
        for row in 0..ROWS {
            let logits: Vec<f32> = shard
                .clone()
                .map(|_| match (row, random.below(5)) {
                    (1, _) | (_, 0) => f32::NEG_INFINITY,
                    (4, _) if i != owner => f32::NEG_INFINITY,
                    (_, n) if row.is_multiple_of(2) => [-0.0, 0.0, 1.5, -2.0][n - 1],
                    _ => random.below(1 << 20) as f32 / 4096.0 - if i == owner { 0.0 } else { 260.0 },
                })
                .collect();
            let mut all: Vec<Candidate> = shard
                .clone()
                .zip(&logits)
                .map(|(id, &value)| Candidate { value, id: id as u32 })
                .filter(|candidate| candidate.value > f32::NEG_INFINITY)
                .collect();
            all.sort_by(|a, b| b.value.partial_cmp(&a.value).expect("no NaN").then(a.id.cmp(&b.id)));
            all.truncate(spec.places(shard.len()));
            let mut words = vec![0u64; spec.stride(shard.len()) / 8];
            let mut partial = PartialMut::new(bytemuck::cast_slice_mut(&mut words), spec, shard.len());
            partial.set_sum(&ExpSum::of(&logits));
            partial.set_status(if all.is_empty() { 0 } else { LMHEAD_STATUS_ALLOWED });
            if row == 2 && shard.end == vocab && !shard.is_empty() {
                partial.set_status(LMHEAD_STATUS_NONFINITE);
            }
            partial.set_candidates(&all);
            let most = if shard.is_empty() { 1 } else { 9 };
            partial.num_greater().iter_mut().for_each(|count| *count = random.below(most) as u32);
            bytes.extend_from_slice(bytemuck::cast_slice(&words));
        }
    }
    let own = (0..ROWS).map(|row| if row == 3 { LMHEAD_STATUS_BAD_INDEX } else { 0 });
    Sent { bytes, starts, shards, own: own.flat_map(u32::to_le_bytes).collect() }
}

/// The ids, values and other results that a finish in this memory writes.
fn finished<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    loaded: &mut dyn LoadedShard,
    memory: Memory,
    sent: &Sent,
    spec: PartialSpec,
    (top_n, drawn): (Option<usize>, bool),
) -> [Vec<u8>; 5] {
    let (came, own) = (Placed::new(backend, memory, &sent.bytes), Placed::new(backend, memory, &sent.own));
    let from = Messages {
        bytes: came.span(),
        own: if sent.own.is_empty() { Span::EMPTY } else { own.span() },
        starts: &sent.starts,
        shards: &sent.shards,
        rows: ROWS,
        answered: ROWS,
    };
    let space = |bytes: usize| Placed::new(backend, memory, &vec![0x77; bytes]);
    let n = top_n.unwrap_or(spec.k);
    let (mut ids, mut values) = (space(8 * ROWS * n), space(4 * ROWS * n));
    let mut told = space(4 * ROWS * if top_n.is_some() { spec.targets } else { 1 });
    let mut ranks = space(8 * ROWS * spec.targets);
    let mut status = Placed::new(backend, memory, &[0, 0, 0, 0, 0, 2]);
    let target = |i: usize| Candidate {
        value: i as f32 * 0.25 - 1.0,
        id: if i % 3 == 1 { NO_TARGET } else { i as u32 },
    };
    let targets: Vec<Candidate> = (0..ROWS * spec.targets).map(target).collect();
    let what = match top_n {
        None => Finish::TopK {
            from,
            k: spec.k,
            ids: ids.span_mut(),
            values: values.span_mut(),
            logsumexp: told.span_mut(),
            row_status: status.span_mut(),
        },
        Some(top_n) => Finish::Logprobs {
            from,
            spec,
            targets: Span::host(&targets[..]),
            top_n,
            drawn,
            logprobs: told.span_mut(),
            ranks: ranks.span_mut(),
            top_ids: ids.span_mut(),
            top_logprobs: values.span_mut(),
            row_status: status.span_mut(),
        },
    };
    loaded.finish(what, &mut FinishScratch::default(), &mut On::default()).expect("an answer");
    // NaN payloads are not part of the promise.
    let floats = |placed: &Placed<'_, D>| {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&placed.read());
        let same = |value: f32| if value.is_nan() { f32::NAN } else { value };
        values.into_iter().flat_map(|value| same(value).to_le_bytes()).collect::<Vec<u8>>()
    };
    [ids.read(), floats(&values), floats(&told), ranks.read(), status.read()]
}

/// Checks every kind of answer, in the device's memory and the host's.
///
/// # Panics
/// Where they differ, with the seed.
pub fn are_merged_as_on_the_host<D: KernelDevice>(backend: &DeviceBackend<D>, seed: u64) {
    let mut random = Random(seed ^ 0x1157);
    let head = TestHead::random(64, HIDDEN, DType::Bf16, Quantization::None, 1);
    let mut loaded = backend.load(&head.shard(0..64), DType::Bf16).expect("memory");
    // Includes shards that are a block larger than others, that end within a block, and that have no ids.
    for (vocab, shards) in [(1usize, 1), (300, 1), (470, 3), (1290, 4), (700, 14), (2300, 3)] {
        let owners = shards.min(vocab.div_ceil(64));
        for (i, k) in [65, 150, 1000, vocab].into_iter().filter(|k| *k > 64).enumerate() {
            for owner in (0..owners).filter(|owner| owners < 4 || owner % 4 == i) {
                let spec = PartialSpec { k, sum: true, targets: [0, 3][owner % 2] };
                let mut sent = sent(vocab, shards, owner, &spec, &mut random);
                if i == 1 {
                    sent.own.clear();
                }
                let mut asks =
                    vec![(Some(k.min(vocab)), owner.is_multiple_of(2)), (Some(7), false), (Some(0), true)];
                if spec.targets == 0 {
                    asks.push((None, false));
                }
                for ask in asks {
                    let [host, device] = [Memory::Host, Backend::memory(backend)]
                        .map(|memory| finished(backend, &mut *loaded, memory, &sent, spec, ask));
                    let differs = device.iter().zip(&host).position(|(device, host)| device != host);
                    assert_eq!(
                        differs, None,
                        "{vocab} ids, {shards} shards, the largest of {owner}, {spec:?}, {ask:?}, seed {seed}"
                    );
                }
            }
        }
    }
}
