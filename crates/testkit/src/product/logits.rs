//! Whole logits on a device: the shards' messages `[P][gap, rows, stride]` become rows `[answered, vocab]`,
//! as the host's code makes them.

use super::shards::Placed;
use crate::{Random, TestHead};
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::params::LMHEAD_STATUS_ALLOWED;
use lmhead::backend::{Backend, LoadedShard, On};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::finish::columns::status_at;
use lmhead::finish::{Finish, FinishScratch, Messages};
use lmhead::layout::shard_range;
use lmhead::memory::{Memory, Span};
use proptest::prelude::*;
use std::ops::Range;

/// A case: messages, and where their rows go.
#[derive(Debug, Clone)]
pub struct LogitsCase {
    pub dtype: DType,
    pub vocab: usize,
    pub shards: usize,
    /// Rows of each message.
    pub rows: usize,
    /// How many of them are answered.
    pub answered: usize,
    /// Bytes before each message.
    pub gap: usize,
    /// Bytes before the answer's first row, whose buffer is aligned to 256 bytes.
    pub offset: usize,
    /// Bytes between the answer's rows.
    pub spare: usize,
    /// Whether rows have status words besides those of their messages.
    pub own: bool,
    pub seed: u64,
}

/// Rows that are cut into up to six parts; shards without ids where the vocabulary is small; places that are
/// aligned to 16, 8, 4 and 2 bytes.
pub fn cases() -> impl Strategy<Value = LogitsCase> {
    // Only where the vocabulary ends with a block of 64 ids, all of a row can be copied 16 bytes at a time.
    let vocab = prop_oneof![1usize..400, 1usize..6000, (1usize..94).prop_map(|blocks| 64 * blocks)];
    let places = (
        prop::sample::select(vec![0usize, 8, 16, 96]),
        prop_oneof![Just(0usize), 0usize..8],
        prop_oneof![Just(0usize), 0usize..6],
    );
    let dtype = prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]);
    (dtype, vocab, 1usize..10, (1usize..5, 0usize..3), places, any::<bool>(), any::<u64>()).prop_map(
        |(dtype, vocab, shards, (answered, padding), (gap, offset, spare), own, seed)| LogitsCase {
            dtype,
            vocab,
            shards,
            rows: answered + padding,
            answered,
            gap,
            offset: offset * dtype.size(),
            spare: spare * dtype.size(),
            own,
            seed,
        },
    )
}

/// Checks that whole rows are the host's where they are copied 16, 4 and 2 bytes at a time.
///
/// # Panics
/// Where they are not.
pub fn are_the_hosts<D: KernelDevice>(backend: &DeviceBackend<D>, seed: u64) {
    // Five blocks of ids for seven shards, then two parts for each row and more.
    for (vocab, shards) in [(320, 7), (2112, 2), (5952, 9)] {
        for (gap, offset, spare) in [(16, 0, 0), (8, 0, 4), (96, 2, 6), (0, 6, 2)] {
            let (dtype, rows, answered) = (DType::Bf16, 3, 2);
            let own = gap == 8;
            LogitsCase { dtype, vocab, shards, rows, answered, gap, offset, spare, own, seed }.holds(backend);
        }
    }
}

impl LogitsCase {
    /// Checks that rows and statuses made in the device's memory are those made in the host's, byte by byte,
    /// those besides the rows included.
    ///
    /// # Panics
    /// Where they are not.
    pub fn holds<D: KernelDevice>(&self, backend: &DeviceBackend<D>) {
        let head = TestHead::random(64, 16, DType::Bf16, Quantization::None, 1);
        let mut loaded = backend.load(&head.shard(0..64), DType::Bf16).expect("memory");
        let made = [Memory::Host, Backend::memory(backend)].map(|at| self.made(backend, &mut *loaded, at));
        let [(rows, statuses), (of_device, statuses_of_device)] = made;
        assert_eq!(statuses_of_device, statuses, "{self:?}");
        let other = rows.iter().zip(&of_device).position(|(one, other)| one != other);
        assert_eq!(other, None, "byte of the answer's buffer, {self:?}");
    }

    /// The buffer of the rows that messages in `memory` become; the statuses of these rows, and those that
    /// the words besides are by themselves.
    fn made<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        loaded: &mut dyn LoadedShard,
        memory: Memory,
    ) -> (Vec<u8>, [Vec<u8>; 2]) {
        let (LogitsCase { dtype, vocab, answered, .. }, mut random) = (self, Random(self.seed));
        let shards: Vec<Range<usize>> =
            (0..self.shards).map(|i| shard_range(*vocab, self.shards, i)).collect();
        // The flags that a row may have. Words have other bits besides, which say nothing.
        let flags: Vec<u32> = (0..self.rows)
            .map(|_| [random.below(16) as u32, LMHEAD_STATUS_ALLOWED][random.below(2)])
            .collect();
        let mut word = |row: usize| random.next() as u32 & (flags[row] | 0xffff_ff00);
        let words: Vec<u32> = (0..*answered).map(&mut word).collect();
        let (mut bytes, mut starts, mut noise) = (Vec::new(), Vec::new(), Random(self.seed ^ 1));
        for ids in shards.iter().map(Range::len) {
            bytes.resize(bytes.len() + self.gap, 0xee);
            starts.push(bytes.len());
            for row in 0..self.rows {
                // Logits and padding.
                bytes.extend((0..status_at(ids, *dtype)).map(|_| noise.next() as u8));
                bytes.extend(word(row).to_le_bytes());
            }
        }
        let stride = vocab * dtype.size() + self.spare;
        let to = self.offset..self.offset + answered * stride - self.spare;
        let (messages, own) = (
            Placed::new(backend, memory, &bytes),
            Placed::new(backend, memory, bytemuck::cast_slice(&words)),
        );
        let mut logits = Placed::new(backend, memory, &vec![0xa5; to.end + 16]);
        let mut statuses = [0, 1].map(|_| Placed::new(backend, memory, &vec![0xa5; *answered]));
        let [row_status, of_words] = &mut statuses;
        let from = Messages {
            bytes: messages.span(),
            starts: &starts,
            shards: &shards,
            rows: self.rows,
            answered: *answered,
            own: if self.own { own.span() } else { Span::EMPTY },
        };
        for what in [
            Finish::Logits {
                from,
                dtype: *dtype,
                logits: logits.span_mut().part(to),
                stride,
                row_status: row_status.span_mut(),
            },
            Finish::Status { words: own.span(), row_status: of_words.span_mut() },
        ] {
            loaded.finish(what, &mut FinishScratch::default(), &mut On::default()).expect("an answer");
        }
        (logits.read(), statuses.each_ref().map(Placed::read))
    }
}
