//! The steps that are captured: layouts, requests, filters, adjustments and sizes.

use lmhead::backend::DeviceAdjustments;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::head::StepOptions;
use lmhead::result::{Request, TokenLogprobs};
use lmhead::sampling::Filters;

/// How a step's ranks are laid out, and what it is asked.
#[derive(Debug, Clone, Copy)]
pub struct CapturedKind {
    pub tp: usize,
    pub split: bool,
    /// Static (padded) shapes; otherwise exact counts that nobody verifies.
    pub padded: bool,
    pub request: Request,
    /// Filters of samples.
    pub filters: Filters,
    /// Adjustments that rows have in device memory.
    pub adjustments: DeviceAdjustments,
    pub quantization: Quantization,
    pub dtype: DType,
    /// Hidden size; with an odd one rows are not aligned.
    pub hidden: usize,
    pub vocab: usize,
}

impl CapturedKind {
    /// Targets of a row.
    pub(super) fn targets(&self) -> usize {
        if let Request::Logprobs { targets, .. } = self.request { targets } else { 0 }
    }

    pub(super) fn options(&self) -> StepOptions {
        StepOptions {
            on_device: true,
            filters: self.filters,
            device_adjustments: self.adjustments,
            ..StepOptions::default()
        }
    }
}

/// Kinds of steps for groups of that many ranks.
pub fn kinds(ranks: usize) -> Vec<CapturedKind> {
    let plain = CapturedKind {
        tp: 1,
        split: false,
        padded: true,
        request: Request::top_k(5),
        filters: Filters::ByHost,
        adjustments: DeviceAdjustments::default(),
        quantization: Quantization::None,
        dtype: DType::Bf16,
        hidden: 64,
        vocab: 333,
    };
    let unfiltered = CapturedKind { request: Request::sample(), filters: Filters::None, ..plain };
    let filtered = CapturedKind { filters: Filters::ByDevice, ..unfiltered };
    let with_logprobs = Request::Sample { logprobs: Some(TokenLogprobs { top_n: 2, processed: false }) };
    let none = plain.adjustments;
    let all = DeviceAdjustments { allowed: true, logit_bias: 5, counts: 3 };
    let adjusted = CapturedKind { adjustments: all, ..plain };
    let mut kinds = vec![
        plain,
        CapturedKind { padded: false, request: Request::argmax(), ..plain },
        CapturedKind { request: Request::argmax(), quantization: Quantization::W8a8, hidden: 33, ..plain },
        CapturedKind { request: Request::logits(DType::F16), dtype: DType::F16, vocab: 700, ..plain },
        CapturedKind {
            padded: false,
            quantization: Quantization::W8a16,
            request: Request::top_k(64),
            ..plain
        },
        CapturedKind { request: Request::top_k(100), ..plain },
        CapturedKind { request: Request::Logprobs { targets: 2, top_n: 3, processed: false }, ..plain },
        CapturedKind {
            padded: false,
            request: Request::logprobs(0),
            quantization: Quantization::W8a8,
            ..plain
        },
        unfiltered,
        CapturedKind { padded: false, quantization: Quantization::W8a8, ..unfiltered },
        filtered,
        CapturedKind { padded: false, request: with_logprobs, quantization: Quantization::W8a8, ..filtered },
        // Searches with shards of more than one part, and a rank without ids.
        CapturedKind { vocab: 1500, request: with_logprobs, ..filtered },
        CapturedKind { vocab: 65, ..filtered },
        // A header that is longer than a row, and a rank without ids.
        CapturedKind { hidden: 8, vocab: 65, ..plain },
        adjusted,
        CapturedKind { padded: false, adjustments: all, ..unfiltered },
        CapturedKind {
            request: Request::top_k(100),
            adjustments: DeviceAdjustments { allowed: true, ..none },
            ..plain
        },
        CapturedKind { request: Request::logits(DType::F32), quantization: Quantization::W8a8, ..adjusted },
        CapturedKind { request: Request::argmax(), vocab: 65, ..adjusted },
        CapturedKind { request: Request::Logprobs { targets: 1, top_n: 2, processed: true }, ..adjusted },
        CapturedKind { adjustments: DeviceAdjustments { counts: 40, ..none }, ..unfiltered },
        // Logprobs of the logits without adjustments, beside draws from those with them.
        CapturedKind { adjustments: all, request: with_logprobs, ..filtered },
    ];
    if ranks.is_multiple_of(2) && ranks > 0 {
        for split in [false, true] {
            kinds.push(CapturedKind { tp: 2, split, ..plain });
            kinds.push(CapturedKind { tp: 2, split, request: with_logprobs, ..filtered });
        }
        kinds.push(CapturedKind {
            tp: 2,
            split: true,
            padded: false,
            request: Request::logits(DType::Bf16),
            ..plain
        });
        let both = [false, true].map(|split| CapturedKind { tp: 2, split, ..adjusted });
        kinds.extend(both);
        kinds.push(CapturedKind { tp: 2, split: true, adjustments: all, ..unfiltered });
        kinds.push(CapturedKind {
            tp: 2,
            request: Request::Logprobs { targets: 1, top_n: 2, processed: true },
            ..adjusted
        });
        kinds.push(CapturedKind {
            tp: 2,
            split: true,
            padded: false,
            request: Request::argmax(),
            ..adjusted
        });
    }
    if ranks > 1 {
        // One replica.
        kinds.push(CapturedKind { tp: ranks, padded: false, ..filtered });
        kinds.push(CapturedKind { tp: ranks, split: true, hidden: 40, ..plain });
        // Also with masks that are read in place, and with ranks without ids, which check their rows all the
        // same.
        let one = CapturedKind { tp: ranks, request: Request::argmax(), ..adjusted };
        kinds.push(CapturedKind { vocab: 65, ..one });
        kinds.push(CapturedKind { split: true, vocab: 65, ..one });
        kinds.push(CapturedKind { split: true, padded: false, vocab: 65, ..one });
    }
    kinds
}

/// Kinds whose steps cost an emulated device little: for many replays, each with targets or parameters of its
/// own.
pub fn small_kinds() -> Vec<CapturedKind> {
    let small = CapturedKind { hidden: 8, vocab: 130, ..kinds(1)[0] };
    let logprobs = Request::Logprobs { targets: 1, top_n: 1, processed: false };
    let drawn = CapturedKind { padded: false, request: Request::sample(), filters: Filters::None, ..small };
    vec![CapturedKind { request: logprobs, ..small }, drawn]
}
