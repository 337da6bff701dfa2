//! Inputs of rows in device memory.
//!
//! The host never reads them. A row with an illegal value, such as an id beyond the vocabulary, gets no
//! answer but the status [`RowStatus::BadInput`](crate::RowStatus::BadInput). Memory, size and alignment of
//! the spans are checked before anything is sent.

use crate::error::{Error, Result};
use crate::memory::{Memory, Span};
use std::ops::Range;

/// Inputs of each rank's own rows in the memory of the step's device, in the order of the rows; aligned to
/// their elements.
///
/// Every rank must announce adjustments, with the most entries that a row has:
/// [`StepOptions::device_adjustments`](crate::head::StepOptions::device_adjustments).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DeviceInputs<'a> {
    /// i64 `[rows, targets]`, for `Logprobs`: as [`RowInputs::targets`](crate::RowInputs::targets).
    pub targets: Option<Span<'a>>,
    /// How rows are sampled, for `Sample`.
    pub sampling: Option<SamplingSpans<'a>>,
    /// i32 or u32 `[rows, ceil(vocab_size / 32)]`: as [`Adjustments::allowed`](crate::Adjustments::allowed).
    pub allowed: Option<Span<'a>>,
    pub logit_bias: Option<LogitBiasSpans<'a>>,
    pub penalties: Option<PenaltySpans<'a>>,
}

/// How rows are sampled, as [`SamplingParams`](crate::SamplingParams): arrays `[rows]`. Where one is absent,
/// all rows have the default that is named.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingSpans<'a> {
    /// u64; default 0.
    pub seed: Option<Span<'a>>,
    /// i64, not negative; default 0.
    pub position: Option<Span<'a>>,
    /// f32; default 1.
    pub temperature: Option<Span<'a>>,
    /// i32, not negative; default 0, which keeps all.
    pub top_k: Option<Span<'a>>,
    /// f32; default 1, which keeps all.
    pub top_p: Option<Span<'a>>,
    /// f32; default 0, which keeps all.
    pub min_p: Option<Span<'a>>,
}

/// Values added to single logits, by row (CSR), as [`LogitBias`](crate::adjust::LogitBias).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitBiasSpans<'a> {
    /// i64 `[rows + 1]`: row i has entries `offsets[i]..offsets[i + 1]`.
    pub offsets: Span<'a>,
    /// i64 `[entries]`. `entries` is what fits the span, which may be more than the last offset.
    pub ids: Span<'a>,
    /// f32 `[entries]`.
    pub values: Span<'a>,
}

/// Penalties on ids that already occurred, as [`Penalties`](crate::adjust::Penalties).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PenaltySpans<'a> {
    /// f32 `[rows]`; default 1.
    pub repetition: Option<Span<'a>>,
    /// f32 `[rows]`; default 0.
    pub frequency: Option<Span<'a>>,
    /// f32 `[rows]`; default 0.
    pub presence: Option<Span<'a>>,
    /// i64 `[rows + 1]`: row i has entries `offsets[i]..offsets[i + 1]`.
    pub offsets: Span<'a>,
    /// i64 `[entries]`, each id once in a row. `entries` is what fits the span.
    pub ids: Span<'a>,
    /// i32 or u32 `[entries]`: how often the id occurs in the output so far, at most 2^31 − 1.
    pub counts: Span<'a>,
    /// u8 `[entries]`, 0 or 1: whether the id occurs in the prompt.
    pub in_prompt: Span<'a>,
}

/// What spans are checked against.
struct Wanted {
    memory: Memory,
    rows: usize,
}

impl Wanted {
    /// Checks that a span holds `each` elements of `size` bytes for each of `rows` rows.
    fn elements(&self, what: &str, span: Span<'_>, (rows, each): (usize, usize), size: usize) -> Result<()> {
        let fix = "pass those of the rows that you bring";
        let bytes = rows.checked_mul(each).and_then(|n| n.checked_mul(size));
        if bytes != Some(span.len()) {
            let wanted = format!("[{rows}, {each}] elements of {size} bytes");
            return Err(Error::shape(what, wanted, format!("{} bytes", span.len()), fix));
        }
        self.place(what, span, size)
    }

    /// Checks memory and alignment of a span.
    fn place(&self, what: &str, span: Span<'_>, size: usize) -> Result<()> {
        span.check_memory(what, self.memory)?;
        span.check_aligned(what, size)
    }

    /// Checks an array `[rows]`, where there is one.
    fn of_rows(&self, what: &str, span: Option<Span<'_>>, size: usize) -> Result<()> {
        span.map_or(Ok(()), |span| self.elements(what, span, (self.rows, 1), size))
    }

    /// Checks arrays of entries by row (CSR): offsets, and arrays that are all as long as the first, the ids.
    fn entries(&self, what: &str, offsets: Span<'_>, arrays: &[(&str, Span<'_>, usize)]) -> Result<()> {
        let rows = self.rows.saturating_add(1);
        self.elements(&format!("{what}: offsets"), offsets, (rows, 1), 8)?;
        let n = arrays[0].1.len() / 8;
        for (name, span, size) in arrays {
            self.elements(&format!("{what}: {name}"), *span, (n, 1), *size)?;
        }
        Ok(())
    }
}

impl<'a> DeviceInputs<'a> {
    /// Whether there are no inputs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there are adjustments.
    pub fn is_adjusted(&self) -> bool {
        self.allowed.is_some() || self.logit_bias.is_some() || self.penalties.is_some()
    }

    /// Checks memory, alignment and length of all spans, for `rows` rows with `targets` targets each.
    ///
    /// # Errors
    /// `Shape` naming the span.
    pub fn check(&self, rows: usize, targets: usize, vocab_size: usize, memory: Memory) -> Result<()> {
        let wanted = Wanted { memory, rows };
        if let Some(span) = self.targets {
            wanted.elements("targets in device memory", span, (rows, targets), 8)?;
        }
        if let Some(sampling) = &self.sampling {
            for (name, span, size) in sampling.arrays() {
                wanted.of_rows(&format!("sampling parameters in device memory: {name}"), span, size)?;
            }
        }
        if let Some(span) = self.allowed {
            wanted.elements("allowed in device memory", span, (rows, vocab_size.div_ceil(32)), 4)?;
        }
        if let Some(LogitBiasSpans { offsets, ids, values }) = self.logit_bias {
            let arrays = [("ids", ids, 8), ("values", values, 4)];
            wanted.entries("logit_bias in device memory", offsets, &arrays)?;
        }
        if let Some(penalties) = &self.penalties {
            let PenaltySpans { repetition, frequency, presence, offsets, ids, counts, in_prompt } =
                *penalties;
            for (name, span) in [("repetition", repetition), ("frequency", frequency), ("presence", presence)]
            {
                wanted.of_rows(&format!("penalties in device memory: {name}"), span, 4)?;
            }
            let arrays = [("ids", ids, 8), ("counts", counts, 4), ("in_prompt", in_prompt, 1)];
            wanted.entries("penalties in device memory", offsets, &arrays)?;
        }
        Ok(())
    }

    /// The inputs of the rows `range`, of `rows` in all; adjustments are not cut.
    pub(crate) fn rows(&self, range: Range<usize>, rows: usize) -> Self {
        let targets = self.targets.map(|span| {
            let each = span.len().checked_div(rows).unwrap_or(0);
            span.part(range.start * each..range.end * each)
        });
        let sampling = self.sampling.map(|sampling| sampling.rows(range));
        DeviceInputs { targets, sampling, ..*self }
    }
}

impl<'a> DeviceInputs<'a> {
    /// The adjustments of the rows `range`, and nothing else.
    pub(crate) fn adjustments_of(&self, range: Range<usize>, vocab_size: usize) -> Self {
        let rows = |span: Span<'a>, size: usize| span.part(range.start * size..range.end * size);
        let each = |span: Option<Span<'a>>| span.map(|span| rows(span, 4));
        let offsets = |span: Span<'a>| span.part(range.start * 8..(range.end + 1) * 8);
        DeviceInputs {
            allowed: self.allowed.map(|span| rows(span, 4 * vocab_size.div_ceil(32))),
            logit_bias: self.logit_bias.map(|of| LogitBiasSpans { offsets: offsets(of.offsets), ..of }),
            penalties: self.penalties.map(|of| PenaltySpans {
                repetition: each(of.repetition),
                frequency: each(of.frequency),
                presence: each(of.presence),
                offsets: offsets(of.offsets),
                ..of
            }),
            ..DeviceInputs::default()
        }
    }

    /// All spans that are present; each may be empty.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Span<'a>> {
        let sampling = self.sampling.unwrap_or_default().arrays().map(|(_, span, _)| span);
        let logit_bias = self.logit_bias.map(|of| [of.offsets, of.ids, of.values]).into_iter().flatten();
        let penalties = self.penalties.into_iter().flat_map(|of| {
            let arrays = [of.offsets, of.ids, of.counts, of.in_prompt].map(Some);
            arrays.into_iter().chain([of.repetition, of.frequency, of.presence]).flatten()
        });
        let whole = [self.targets, self.allowed].into_iter().chain(sampling).flatten();
        whole.chain(logit_bias).chain(penalties)
    }
}

impl<'a> SamplingSpans<'a> {
    /// Name, span and bytes of an element of each array.
    fn arrays(&self) -> [(&'static str, Option<Span<'a>>, usize); 6] {
        [
            ("seed", self.seed, 8),
            ("position", self.position, 8),
            ("temperature", self.temperature, 4),
            ("top_k", self.top_k, 4),
            ("top_p", self.top_p, 4),
            ("min_p", self.min_p, 4),
        ]
    }

    pub(crate) fn rows(&self, range: Range<usize>) -> Self {
        let [seed, position, temperature, top_k, top_p, min_p] = self
            .arrays()
            .map(|(_, span, size)| span.map(|span| span.part(range.start * size..range.end * size)));
        SamplingSpans { seed, position, temperature, top_k, top_p, min_p }
    }
}
