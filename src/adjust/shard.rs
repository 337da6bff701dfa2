//! One shard's slice of the group's adjustments: its format between ranks and for devices, and the arithmetic
//! on a block of logits.

use super::Adjustments;
use crate::error::{Error, Result};
use std::ops::Range;

/// Adjustments of some rows, sliced to the vocabulary of one shard.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ShardAdjustments {
    vocab: Range<usize>,
    rows: Vec<Row>,
    /// Mask words of the rows that have a mask, `[ceil(vocab.len() / 32)]` each.
    masks: Vec<u32>,
    /// Ids are relative to the shard and ascend within a row.
    logit_bias: Vec<(u32, f32)>,
    counts: Vec<Count>,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// First word in `masks`.
    mask: Option<usize>,
    logit_bias: Range<usize>,
    counts: Range<usize>,
    repetition: f32,
    frequency: f32,
    presence: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Count {
    id: u32,
    count: u32,
    in_prompt: bool,
}

/// Where the arrays that [`ShardAdjustments::pack`] writes begin, in words. A kind that no row has is `None`.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct PackedAt {
    /// Offsets `[rows + 1]`; ids and values `[entries]`.
    pub logit_bias: Option<[usize; 3]>,
    /// Offsets `[rows + 1]`; ids and `2 count + in_prompt` `[entries]`; repetition, frequency and presence
    /// `[rows]`.
    pub counts: Option<[usize; 6]>,
    /// `[rows, ceil(vocab.len() / 32)]`: rows without a mask allow everything.
    pub allowed: Option<usize>,
}

const MASK: u32 = 1;
const LOGIT_BIAS: u32 = 2;
const PENALTIES: u32 = 4;

/// Appends the bytes for a shard to `out`: little-endian words of 4 bytes, or nothing where there are no
/// adjustments, rows or ids.
///
/// | words | |
/// |---|---|
/// | 1 | kinds: 1 mask + 2 logit bias + 4 penalties |
/// | `[rows, ceil(vocab.len() / 32)]` | mask |
/// | `[rows]`, then `[entries, 2]` | logit bias: entries of each row; id in the shard, value f32 |
/// | `[rows, 4]`, then `[entries, 2]` | penalties: repetition, frequency, presence, entries; id in the shard, 2 count + in_prompt |
///
/// `entries` is reused memory for the entries of one row.
pub(super) fn encode(
    from: &Adjustments<'_>,
    rows: Range<usize>,
    vocab: Range<usize>,
    vocab_size: usize,
    out: &mut Vec<u8>,
    entries: &mut Vec<usize>,
) {
    if from.is_empty() || rows.is_empty() || vocab.is_empty() {
        return;
    }
    debug_assert!(vocab.start.is_multiple_of(32));
    let mut put = |word: u32| out.extend_from_slice(&word.to_le_bytes());
    let kind = |present: bool, bit: u32| if present { bit } else { 0 };
    put(kind(from.allowed.is_some(), MASK)
        | kind(from.logit_bias.is_some(), LOGIT_BIAS)
        | kind(from.penalties.is_some(), PENALTIES));
    if let Some(mask) = from.allowed {
        let words = vocab_size.div_ceil(32);
        for row in rows.clone() {
            let own = &mask[row * words..][vocab.start / 32..][..vocab.len().div_ceil(32)];
            own.iter().for_each(|&word| put(word as u32));
        }
    }
    let inside = |id: i64| vocab.contains(&(id as usize));
    let inside_count = |offsets: &[usize], ids: &[i64], row: usize| {
        ids[offsets[row]..offsets[row + 1]].iter().filter(|id| inside(**id)).count() as u32
    };
    // The entries of one row whose ids are in the shard, sorted by id; entries of one id keep their order.
    let slice = |entries: &mut Vec<usize>, offsets: &[usize], ids: &[i64], row: usize| {
        entries.clear();
        entries.extend((offsets[row]..offsets[row + 1]).filter(|&at| inside(ids[at])));
        entries.sort_unstable_by_key(|&at| (ids[at], at));
    };
    let local = |id: i64| (id as usize - vocab.start) as u32;
    if let Some(a) = &from.logit_bias {
        rows.clone().for_each(|row| put(inside_count(a.offsets, a.ids, row)));
        for row in rows.clone() {
            slice(entries, a.offsets, a.ids, row);
            for &at in entries.iter() {
                put(local(a.ids[at]));
                put(a.values[at].to_bits());
            }
        }
    }
    if let Some(p) = &from.penalties {
        let c = &p.counts;
        for row in rows.clone() {
            put(p.repetition[row].to_bits());
            put(p.frequency[row].to_bits());
            put(p.presence[row].to_bits());
            put(inside_count(c.offsets, c.ids, row));
        }
        for row in rows {
            slice(entries, c.offsets, c.ids, row);
            for &at in entries.iter() {
                put(local(c.ids[at]));
                put(c.counts[at] << 1 | u32::from(c.in_prompt[at]));
            }
        }
    }
}

/// Reads words; an error beyond the end.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u32> {
        let Some((word, rest)) = self.0.split_first_chunk::<4>() else {
            return Err(broken("it ends too early".into()));
        };
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }

    fn float(&mut self) -> Result<f32> {
        self.next().map(f32::from_bits)
    }
}

fn broken(problem: String) -> Error {
    Error::Exchange {
        operation: "slice of adjustments".into(),
        problem,
        fix: "run the same version of lmhead on every rank".into(),
    }
}

impl ShardAdjustments {
    /// A slice without rows, for a shard that has the ids `vocab`.
    pub fn new(vocab: Range<usize>) -> Self {
        ShardAdjustments { vocab, ..ShardAdjustments::default() }
    }

    /// Removes all rows and sets the shard's ids to `vocab`; keeps the memory.
    pub fn clear(&mut self, vocab: Range<usize>) {
        self.vocab = vocab;
        self.rows.clear();
        self.masks.clear();
        self.logit_bias.clear();
        self.counts.clear();
    }

    /// The ids of the shard.
    pub fn vocab(&self) -> Range<usize> {
        self.vocab.clone()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True when there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends `rows` rows from the bytes of [`Adjustments::encode`].
    ///
    /// # Errors
    /// `Exchange` when the bytes cannot be a slice of that many rows.
    pub fn push_encoded(&mut self, bytes: &[u8], rows: usize) -> Result<()> {
        let first = self.rows.len();
        let plain = Row {
            mask: None,
            logit_bias: 0..0,
            counts: 0..0,
            repetition: 1.0,
            frequency: 0.0,
            presence: 0.0,
        };
        self.rows.resize(first + rows, plain);
        let mut words = Words(bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let kinds = words.next()?;
        if kinds & !(MASK | LOGIT_BIAS | PENALTIES) != 0 {
            return Err(broken(format!("kinds {kinds:#x} are unknown")));
        }
        if kinds & MASK != 0 {
            let each = self.vocab.len().div_ceil(32);
            for row in &mut self.rows[first..] {
                row.mask = Some(self.masks.len());
                for _ in 0..each {
                    self.masks.push(words.next()?);
                }
            }
        }
        let size = self.vocab.len() as u32;
        let inside = |id: u32| {
            if id < size { Ok(id) } else { Err(broken(format!("id {id} of a shard of {size}"))) }
        };
        if kinds & LOGIT_BIAS != 0 {
            for row in &mut self.rows[first..] {
                row.logit_bias = 0..words.next()? as usize;
            }
            for row in &mut self.rows[first..] {
                let start = self.logit_bias.len();
                for _ in 0..row.logit_bias.end {
                    self.logit_bias.push((inside(words.next()?)?, words.float()?));
                }
                row.logit_bias = start..self.logit_bias.len();
            }
        }
        if kinds & PENALTIES != 0 {
            for row in &mut self.rows[first..] {
                (row.repetition, row.frequency, row.presence) =
                    (words.float()?, words.float()?, words.float()?);
                row.counts = 0..words.next()? as usize;
            }
            for row in &mut self.rows[first..] {
                let start = self.counts.len();
                for _ in 0..row.counts.end {
                    let (id, packed) = (inside(words.next()?)?, words.next()?);
                    self.counts.push(Count { id, count: packed >> 1, in_prompt: packed & 1 == 1 });
                }
                row.counts = start..self.counts.len();
            }
        }
        if !words.0.is_empty() {
            return Err(broken(format!("{} bytes are left over", words.0.len())));
        }
        Ok(())
    }

    /// Replaces `out` by arrays for a device, one behind the other, that hold the rows `range` as
    /// `LogitAdjustments` of `kernels/params.h` takes them.
    ///
    /// # Panics
    /// When the range ends beyond [`ShardAdjustments::len`], or with 2^32 entries or more.
    pub(crate) fn pack(&self, range: Range<usize>, out: &mut Vec<u32>) -> PackedAt {
        let rows = &self.rows[range];
        let mut at = PackedAt::default();
        out.clear();
        /// Appends an array and returns where it begins.
        fn array(out: &mut Vec<u32>, values: impl Iterator<Item = u32>) -> usize {
            let start = out.len();
            out.extend(values);
            start
        }
        let offsets = |out: &mut Vec<u32>, entries: fn(&Row) -> &Range<usize>| {
            let mut end = 0usize;
            let ends = rows.iter().map(|row| {
                end += entries(row).len();
                u32::try_from(end).expect("fewer than 2^32 entries")
            });
            array(out, std::iter::once(0).chain(ends))
        };
        if rows.iter().any(|row| !row.logit_bias.is_empty()) {
            let entries = || rows.iter().flat_map(|row| &self.logit_bias[row.logit_bias.clone()]);
            at.logit_bias = Some([
                offsets(out, |row| &row.logit_bias),
                array(out, entries().map(|(id, _)| *id)),
                array(out, entries().map(|(_, value)| value.to_bits())),
            ]);
        }
        if rows.iter().any(|row| !row.counts.is_empty()) {
            let entries = || rows.iter().flat_map(|row| &self.counts[row.counts.clone()]);
            at.counts = Some([
                offsets(out, |row| &row.counts),
                array(out, entries().map(|c| c.id)),
                array(out, entries().map(|c| c.count << 1 | u32::from(c.in_prompt))),
                array(out, rows.iter().map(|row| row.repetition.to_bits())),
                array(out, rows.iter().map(|row| row.frequency.to_bits())),
                array(out, rows.iter().map(|row| row.presence.to_bits())),
            ]);
        }
        if rows.iter().any(|row| row.mask.is_some()) {
            let words = self.vocab.len().div_ceil(32);
            at.allowed = Some(out.len());
            for row in rows {
                match row.mask {
                    Some(at) => out.extend_from_slice(&self.masks[at..at + words]),
                    None => out.resize(out.len() + words, u32::MAX),
                }
            }
        }
        at
    }

    /// Adjusts logits of row `row`, of consecutive ids from `first_id` on, which is a multiple of 32 behind
    /// the shard's start. Returns false where a logit is plus infinity or NaN afterwards; minus infinity is
    /// legal.
    #[inline]
    pub fn apply(&self, row: usize, first_id: usize, logits: &mut [f32]) -> bool {
        let row = &self.rows[row];
        let first = (first_id - self.vocab.start) as u32;
        let end = first + logits.len() as u32;
        let logit_bias = &self.logit_bias[row.logit_bias.clone()];
        let from = logit_bias.partition_point(|(id, _)| *id < first);
        for (id, value) in logit_bias[from..].iter().take_while(|(id, _)| *id < end) {
            logits[(id - first) as usize] += value;
        }
        let counts = &self.counts[row.counts.clone()];
        let from = counts.partition_point(|c| c.id < first);
        for c in counts[from..].iter().take_while(|c| c.id < end) {
            let l = &mut logits[(c.id - first) as usize];
            if c.count > 0 || c.in_prompt {
                *l = if *l > 0.0 { *l / row.repetition } else { *l * row.repetition };
            }
            if c.count > 0 {
                *l -= row.frequency * c.count as f32;
                *l -= row.presence;
            }
        }
        if let Some(mask) = row.mask {
            let words = &self.masks[mask + first as usize / 32..];
            for (chunk, word) in logits.chunks_mut(32).zip(words) {
                for (bit, l) in chunk.iter_mut().enumerate() {
                    *l = if word >> bit & 1 == 1 { *l } else { f32::NEG_INFINITY };
                }
            }
        }
        logits.iter().all(|l| *l < f32::INFINITY)
    }
}
