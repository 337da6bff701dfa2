//! The cost model behind `lmhead_tp_size = auto`: the time of one step at group size P. Arithmetic, not a
//! measurement.
//!
//! `T = max(w K V / (P · memory), 2 r b K V / (P · flops)) + gather + exchange + c α`, with `gather = (r − 1)
//! b K h / link` and `exchange = (P − 1)/P b V l / link` for logits, or `(P − 1) b (8 k + 8) / link` for k
//! candidates. K is the hidden size, V the vocabulary, b the rows per replica, r = P / tp the replicas in the
//! group (1 at P = 1), c the collectives in a step and α the latency of one; w, h and l are the bytes of a
//! weight, of an element of a hidden row and of an exchanged logit. With tp = 1 the arithmetic of a rank, `2
//! b K V`, does not fall with P, so sharing stops to pay where it dominates.

use crate::dtype::DType;
use crate::dtype::Quantization;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Speeds of a machine, from the configuration. They are never measured here: ranks would measure different
/// ones and choose different sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Rows that each replica (each data-parallel rank) brings to a step.
    pub rows_per_rank: usize,
    /// Bandwidth of device memory, GB/s (1e9 bytes).
    pub memory_gb_per_s: f64,
    /// Matrix throughput in the head's type, TFLOP/s.
    pub tflops: f64,
    /// Bandwidth at which one rank receives, GB/s.
    pub link_gb_per_s: f64,
    /// Latency of one collective, µs.
    pub latency_us: f64,
    /// Collectives of one step, each with that latency; absent: 2, the gather of rows and the exchange of
    /// results. The headers of a verified step add one; top_p, adjustments and chunks of logprobs add more.
    #[serde(default = "two")]
    pub collectives: u64,
    /// Candidates exchanged per row; absent: whole logits.
    #[serde(default)]
    pub candidates: Option<usize>,
    /// Type of exchanged logits: f32, f16 or bf16; absent: bf16.
    #[serde(default = "bf16")]
    pub logits_dtype: DType,
}

fn two() -> u64 {
    2
}

fn bf16() -> DType {
    DType::Bf16
}

/// What a step's time depends on, beside machine and request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Tensor-parallel ranks of a replica, which hold the same rows.
    pub tp: usize,
    pub weight_bytes: usize,
    /// Bytes of one element of a hidden row.
    pub hidden_bytes: usize,
}

impl StepShape {
    /// A `[vocab_size, hidden_size]` head without tensor parallelism; weights and rows of 16 bits.
    pub fn sixteen_bit(vocab_size: usize, hidden_size: usize) -> Self {
        StepShape { vocab_size, hidden_size, tp: 1, weight_bytes: 2, hidden_bytes: 2 }
    }
}

/// Microseconds of one step, by stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepCost {
    /// Reading the shard from memory.
    pub stream_us: f64,
    /// The shard's arithmetic, which overlaps with reading it.
    pub flop_us: f64,
    pub gather_us: f64,
    pub exchange_us: f64,
    pub latency_us: f64,
}

impl StepCost {
    /// The matmul: the longer of reading and computing, µs.
    pub fn matmul_us(&self) -> f64 {
        self.stream_us.max(self.flop_us)
    }

    /// The whole step, µs.
    pub fn total_us(&self) -> f64 {
        self.matmul_us() + self.gather_us + self.exchange_us + self.latency_us
    }
}

impl CostModel {
    /// One step over a group of `p` ranks.
    pub fn step(&self, shape: &StepShape, p: usize) -> StepCost {
        let (v, k, b) = (shape.vocab_size as f64, shape.hidden_size as f64, self.rows_per_rank as f64);
        let replicas = if p == 1 { 1.0 } else { p as f64 / shape.tp as f64 };
        let p = p as f64;
        // GB/s and µs: 1e9 bytes/s · 1e-6 s = 1e3 bytes per µs.
        let link = self.link_gb_per_s * 1e3;
        let exchanged = match self.candidates {
            None => (p - 1.0) / p * b * v * self.logits_dtype.size() as f64,
            Some(kept) => (p - 1.0) * b * (8.0 * kept as f64 + 8.0),
        };
        StepCost {
            stream_us: shape.weight_bytes as f64 * k * v / (p * self.memory_gb_per_s * 1e3),
            flop_us: 2.0 * replicas * b * k * v / (p * self.tflops * 1e6),
            gather_us: (replicas - 1.0) * b * k * shape.hidden_bytes as f64 / link,
            exchange_us: exchanged / link,
            latency_us: if p > 1.0 { self.collectives as f64 * self.latency_us } else { 0.0 },
        }
    }

    /// The fastest of `sizes`; of equally fast ones the smallest.
    pub fn best(&self, shape: &StepShape, sizes: &[usize]) -> Option<usize> {
        fastest(sizes.iter().map(|&p| (p, self.step(shape, p))))
    }
}

/// The group size of the fastest of some steps; of equally fast ones the smallest.
pub fn fastest(steps: impl IntoIterator<Item = (usize, StepCost)>) -> Option<usize> {
    let totals = steps.into_iter().map(|(p, step)| (step.total_us(), p));
    totals.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, p)| p)
}

/// Speeds that a known kind of machine is assumed to reach: fractions of its data sheet's. Measured ones are
/// better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    pub name: &'static str,
    pub memory_gb_per_s: f64,
    /// Throughput of products of 16-bit types, TFLOP/s.
    pub tflops: f64,
    /// Throughput of products of int8 by int8, TOP/s.
    pub int8_tops: f64,
    pub link_gb_per_s: f64,
    pub latency_us: f64,
}

/// 90 % of the 3.35 TB/s, 75 % of the 989 dense bf16 TFLOP/s and 70 % of the 1979 dense int8 TOP/s of
/// NVIDIA's data sheet of the H100 SXM.
const H100: Machine = Machine {
    name: "h100-nvlink",
    memory_gb_per_s: 0.9 * 3350.0,
    tflops: 0.75 * 989.0,
    int8_tops: 0.7 * 1979.0,
    // 80 % of the 450 GB/s that NVLink 4 brings to a GPU.
    link_gb_per_s: 0.8 * 450.0,
    latency_us: 12.0,
};

/// The machines that [`machine`] knows.
pub const MACHINES: [Machine; 2] = [
    H100,
    // 90 % of the 400 Gbit/s of a ConnectX-7 port, one for each GPU.
    Machine { name: "h100-infiniband", link_gb_per_s: 0.9 * 50.0, latency_us: 20.0, ..H100 },
];

/// The machine of this name.
///
/// # Errors
/// `Config` listing the names.
pub fn machine(name: &str) -> Result<Machine> {
    MACHINES.into_iter().find(|m| m.name == name).ok_or_else(|| {
        let names = MACHINES.map(|m| m.name).join(", ");
        Error::config(
            "machine",
            format!("one of {names}"),
            format!("`{name}`"),
            "or give its speeds as numbers",
        )
    })
}

impl Machine {
    /// The cost model of a step with `rows_per_rank` rows per rank. Float heads count as 16 bits.
    pub fn model(
        &self,
        quantization: Quantization,
        rows_per_rank: usize,
        candidates: Option<usize>,
        logits_dtype: DType,
    ) -> CostModel {
        CostModel {
            rows_per_rank,
            memory_gb_per_s: self.memory_gb_per_s,
            tflops: if quantization == Quantization::W8a8 { self.int8_tops } else { self.tflops },
            link_gb_per_s: self.link_gb_per_s,
            latency_us: self.latency_us,
            collectives: two(),
            candidates,
            logits_dtype,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEEPSEEK: (usize, usize) = (129_280, 7168);

    /// A head shared by P ranks, 28 rows each: µs of each stage, worked out by hand.
    #[test]
    fn reproduces_a_table_worked_out_by_hand() {
        let shape = StepShape::sixteen_bit(DEEPSEEK.0, DEEPSEEK.1);
        let models = ["h100-nvlink", "h100-infiniband"]
            .map(|name| machine(name).unwrap().model(Quantization::None, 28, None, DType::Bf16));
        // P, shard MB, stream, flop; then for NVLink and for InfiniBand: gather, exchange of logits, exchange
        // of 64 candidates, total with logits, total with candidates.
        #[rustfmt::skip]
        let table = [
            (1, 1853, 615, 70, [(0, 0, "0.0", 615, 615), (0, 0, "0", 615, 615)]),
            (4, 463, 154, 70, [(3, 15, "0.1", 196, 181), (27, 121, "1", 341, 221)]),
            (8, 232, 77, 70, [(8, 18, "0.3", 126, 109), (62, 141, "2", 320, 182)]),
            (16, 116, 38, 70, [(17, 19, "0.6", 130, 111), (134, 151, "5", 395, 249)]),
            (32, 58, 19, 70, [(35, 19, "1.3", 148, 130), (277, 156, "10", 542, 397)]),
        ];
        let whole = |us: f64| us.round() as u64;
        for (p, shard_mb, stream, flop, links) in table {
            assert_eq!(whole(2.0 * 129_280.0 * 7168.0 / p as f64 / 1e6), shard_mb, "P {p}: MB");
            for (model, (gather, logits, top, total, total_top)) in models.iter().zip(links) {
                let full = model.step(&shape, p);
                let best = CostModel { candidates: Some(64), ..*model }.step(&shape, p);
                let got = [full.stream_us, full.flop_us, full.gather_us, full.exchange_us].map(whole);
                assert_eq!(got, [stream, flop, gather, logits], "P {p}: stream, flop, gather, logits");
                let digits = top.len() - top.find('.').map_or(top.len(), |dot| dot + 1);
                assert_eq!(format!("{:.*}", digits, best.exchange_us), top, "P {p}: candidates");
                let got = [full.total_us(), best.total_us()].map(whole);
                assert_eq!(got, [total, total_top], "P {p}: totals");
            }
        }
        assert_eq!(models[0].best(&shape, &[1, 2, 4, 8, 16, 32]), Some(8));
    }

    proptest! {
        /// Holds at any speeds: one rank alone exchanges nothing; the ranks of a group together do the same
        /// work at any size; narrower types never cost more.
        #[test]
        fn laws(
            vocab_size in 1usize..300_000, hidden_size in 1usize..20_000, rows_per_rank in 0usize..1000,
            speeds in prop::array::uniform4(1.0f64..5000.0), log in 0u32..6, tp in 1usize..5,
            candidates in prop::option::of(1usize..100), wide in any::<bool>(), collectives in 1u64..50,
        ) {
            let logits_dtype = if wide { DType::F32 } else { DType::F16 };
            let [memory_gb_per_s, tflops, link_gb_per_s, latency_us] = speeds;
            let model = CostModel {
                rows_per_rank,
                memory_gb_per_s,
                tflops,
                link_gb_per_s,
                latency_us,
                collectives,
                candidates,
                logits_dtype,
            };
            let shape = StepShape { tp, ..StepShape::sixteen_bit(vocab_size, hidden_size) };
            let alone = model.step(&shape, 1);
            prop_assert_eq!((alone.gather_us, alone.exchange_us, alone.latency_us), (0.0, 0.0, 0.0));
            let replicas = 1usize << log;
            let p = replicas * tp;
            let step = model.step(&shape, p);
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
            let latency = if p > 1 { collectives as f64 * latency_us } else { 0.0 };
            prop_assert!(close(step.latency_us, latency));
            prop_assert!(close(step.stream_us * p as f64, alone.stream_us));
            prop_assert!(p == 1 || close(step.flop_us * tp as f64, alone.flop_us), "{:?} {:?}", step, alone);
            let total = step.matmul_us() + step.gather_us + step.exchange_us + step.latency_us;
            prop_assert!(close(step.total_us(), total));
            let int8 = model.step(&StepShape { weight_bytes: 1, ..shape }, p);
            prop_assert!(close(int8.stream_us * 2.0, step.stream_us) && int8.total_us() <= step.total_us());
            let sizes = [1, p, p * 2];
            let best = model.best(&shape, &sizes).unwrap();
            prop_assert!(
                sizes.iter().all(|&p| model.step(&shape, p).total_us() >= model.step(&shape, best).total_us())
            );
        }
    }

    #[test]
    fn machines_by_name() {
        for m in MACHINES {
            assert_eq!(machine(m.name).unwrap(), m);
            let tflops = |quantization| m.model(quantization, 1, None, DType::Bf16).tflops;
            assert_eq!(tflops(Quantization::W8a8), m.int8_tops);
            assert_eq!([Quantization::None, Quantization::W8a16].map(tflops), [m.tflops; 2]);
        }
        let said = machine("h200").unwrap_err().to_string();
        assert_eq!(
            said,
            "machine: wanted one of h100-nvlink, h100-infiniband, got `h200`; or give its speeds as numbers"
        );
    }
}
