//! Whole steps on the CPU: the property of `lmhead_testkit::end_to_end`, broken rows, and the bytes
//! exchanged.

use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::result::{Output, Request, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::step::HEADER_BYTES;
use lmhead_testkit::end_to_end::cases;
use lmhead_testkit::{TestHead, backend, each_rank, row_bits};
use proptest::prelude::*;

const KINDS: [(DType, Quantization); 8] = [
    (DType::F32, Quantization::None),
    (DType::F16, Quantization::None),
    (DType::Bf16, Quantization::None),
    (DType::F32, Quantization::W8a8),
    (DType::F16, Quantization::W8a8),
    (DType::Bf16, Quantization::W8a8),
    (DType::F32, Quantization::W8a16),
    (DType::Bf16, Quantization::W8a16),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn sharded_equals_alone_in_every_bit_and_the_reference_within_the_promise(case in cases(&KINDS, 149)) {
        case.holds(&backend())?;
    }
}

/// Rows with NaN or infinity are marked and answered −1 and NaN; the others, in the same step, keep their
/// bits.
#[test]
fn broken_rows_do_not_disturb_the_others() {
    for quantization in [Quantization::None, Quantization::W8a8, Quantization::W8a16] {
        let head = TestHead::random(300, 40, DType::F32, quantization, 5);
        let config = head.config();
        let good = head.rows(4, 9);
        let mut broken = good.clone();
        let put = |bytes: &mut [u8], row: usize, k: usize, value: f32| {
            bytes[(row * 40 + k) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut broken, 1, 3, f32::NAN);
        put(&mut broken, 3, 39, f32::NEG_INFINITY);
        for request in [Request::argmax(), Request::top_k(3), Request::logits(DType::Bf16)] {
            let run = |bytes: &[u8]| {
                each_rank(2, |me, exchange| {
                    let mut head = lmhead_testkit::head_of(&head, &config, 2, me, exchange).unwrap();
                    let part = &bytes[me * 320..(me + 1) * 320];
                    let hidden = HiddenRows::new(part, DType::F32, 2, 40).unwrap();
                    head.step(RowCounts::exact(&[2, 2]), &request).unwrap().run(hidden).unwrap()
                })
            };
            let (want, got) = (run(&good), run(&broken));
            for rank in 0..2 {
                assert_eq!(row_bits(&got[rank], 0), row_bits(&want[rank], 0), "{quantization} {request}");
                assert_eq!(
                    got[rank].row_status,
                    [RowStatus::Good, RowStatus::NonFinite],
                    "{quantization} {request}"
                );
                match &got[rank].output {
                    Output::Argmax { ids } => assert_eq!(ids[1], -1),
                    Output::TopK { values, ids, logsumexp, .. } => {
                        assert_eq!(ids[3..], [-1, -1, -1]);
                        assert!(values[3..].iter().all(|v| v.is_nan()) && logsumexp[1].is_nan());
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The bytes that a step reports are those of the design's formulas.
#[test]
fn only_candidates_cross_for_top_k() {
    let (size, rows, k) = (4, 3, 8);
    let head = TestHead::random(1000, 64, DType::Bf16, Quantization::None, 1);
    let config = head.config();
    let stats = |request: Request| {
        each_rank(size, |me, exchange| {
            let mut own = lmhead_testkit::head_of(&head, &config, size, me, exchange).unwrap();
            let bytes = head.rows(rows, me as u64);
            let hidden = HiddenRows::new(&bytes, DType::Bf16, rows, 64).unwrap();
            own.step(RowCounts::exact(&[rows; 4]), &request).unwrap().run(hidden).unwrap().stats
        })
    };
    let peers = size as u64 - 1;
    let gathered = peers * rows as u64 * 64 * 2 + peers * HEADER_BYTES as u64;
    for stats in stats(Request::top_k(k)) {
        assert_eq!(stats.rounds, 3);
        assert_eq!(stats.bytes_received, gathered + peers * rows as u64 * (8 * k as u64 + 40));
        assert_eq!(stats.bytes_sent, stats.bytes_received);
    }
    // More candidates than a shard has ids are not sent: 256, 256, 256 and 232 of them here.
    for (me, stats) in stats(Request::top_k(900)).into_iter().enumerate() {
        let others: u64 = (0..size)
            .filter(|m| *m != me)
            .map(|m| lmhead::layout::shard_range(1000, size, m).len() as u64)
            .sum();
        assert_eq!(stats.bytes_received, gathered + rows as u64 * (8 * others + 40 * peers));
    }
    for (me, stats) in stats(Request::logits(DType::Bf16)).into_iter().enumerate() {
        // From each shard a row with its status word, in strides of 16 bytes.
        let stride =
            |m: usize| (2 * lmhead::layout::shard_range(1000, size, m).len() + 4).next_multiple_of(16);
        let others: usize = (0..size).filter(|m| *m != me).map(stride).sum();
        assert_eq!(stats.bytes_received, gathered + (rows * others) as u64);
        assert_eq!(stats.bytes_sent, gathered + peers * (rows * stride(me)) as u64);
    }
}
