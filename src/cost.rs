//! The cost model behind `lmhead_tp_size = auto`: the time of one step at group size P.
//!
//! `T = max(2 K V / (P · memory), 2 b K V / flops) + gather + exchange + 2 α`, with
//! `gather = (P − 1) b K 2 / link` and `exchange = (P − 1)/P b V 2 / link` for logits, or
//! `(P − 1) b (8 k + 8) / link` for k candidates. K hidden size, V vocabulary, b rows per rank; 16-bit weights, rows and logits.

use serde::{Deserialize, Serialize};

/// Speeds of a machine, as configured: never measured here, since ranks would then differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Rows that each rank brings to a step.
    pub rows_per_rank: usize,
    /// Bandwidth of device memory, GB/s (1e9 bytes).
    pub memory_gb_per_s: f64,
    /// 16-bit matrix throughput, TFLOP/s.
    pub tflops: f64,
    /// Bandwidth that one rank receives at, GB/s.
    pub link_gb_per_s: f64,
    /// Latency of one collective, µs.
    pub latency_us: f64,
    /// Candidates exchanged per row; absent: whole logits.
    #[serde(default)]
    pub candidates: Option<usize>,
}

/// Microseconds of one step, by stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    pub stream_us: f64,
    pub flop_us: f64,
    pub gather_us: f64,
    pub exchange_us: f64,
    pub latency_us: f64,
}

impl StepCost {
    /// The whole step, µs.
    pub fn total_us(&self) -> f64 {
        self.stream_us.max(self.flop_us) + self.gather_us + self.exchange_us + self.latency_us
    }
}

impl CostModel {
    /// One step of a `[vocab_size, hidden_size]` head over a group of `p` ranks.
    pub fn step(&self, vocab_size: usize, hidden_size: usize, p: usize) -> StepCost {
        let (v, k, b, p) = (vocab_size as f64, hidden_size as f64, self.rows_per_rank as f64, p as f64);
        // GB/s and µs: 1e9 bytes/s · 1e-6 s = 1e3 bytes per µs.
        let link = self.link_gb_per_s * 1e3;
        let exchanged = match self.candidates {
            None => (p - 1.0) / p * b * v * 2.0,
            Some(kept) => (p - 1.0) * b * (8.0 * kept as f64 + 8.0),
        };
        StepCost {
            stream_us: 2.0 * k * v / (p * self.memory_gb_per_s * 1e3),
            flop_us: 2.0 * b * k * v / (self.tflops * 1e6),
            gather_us: (p - 1.0) * b * k * 2.0 / link,
            exchange_us: exchanged / link,
            latency_us: if p > 1.0 { 2.0 * self.latency_us } else { 0.0 },
        }
    }

    /// The fastest of `sizes` (the smallest of equals).
    pub fn best(&self, vocab_size: usize, hidden_size: usize, sizes: &[usize]) -> Option<usize> {
        let cost = |&p: &usize| self.step(vocab_size, hidden_size, p).total_us();
        sizes.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reproduces_the_design_table() {
        // DP 32 x 28 rows, 129280 x 7168 bf16, 3.0 TB/s, 742 TFLOP/s: totals over P in µs.
        let nvlink = CostModel {
            rows_per_rank: 28,
            memory_gb_per_s: 3000.0,
            tflops: 742.0,
            link_gb_per_s: 360.0,
            latency_us: 12.0,
            candidates: None,
        };
        let infiniband = CostModel { link_gb_per_s: 45.0, latency_us: 20.0, ..nvlink };
        let table = [
            (4, 196.0, 181.0, 341.0, 221.0),
            (8, 126.0, 109.0, 320.0, 182.0),
            (16, 130.0, 111.0, 395.0, 249.0),
            (32, 148.0, 130.0, 542.0, 397.0),
        ];
        for (p, nv_full, nv_top, ib_full, ib_top) in table {
            for (model, full, top) in [(nvlink, nv_full, nv_top), (infiniband, ib_full, ib_top)] {
                let got = model.step(129_280, 7168, p).total_us();
                assert!((got - full).abs() <= 1.0, "P {p}: {got} {full}");
                let got = CostModel { candidates: Some(64), ..model }.step(129_280, 7168, p).total_us();
                assert!((got - top).abs() <= 1.5, "P {p}: {got} {top}");
            }
        }
        let one = nvlink.step(129_280, 7168, 1).total_us();
        assert!((615.0..619.0).contains(&one), "{one}");
        assert_eq!(nvlink.best(129_280, 7168, &[1, 2, 4, 8, 16, 32]), Some(8));
    }
}
