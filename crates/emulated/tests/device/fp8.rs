//! FP8 heads on the device: logits within the reference's bound, and NaN for NaN codes.

use lmhead::backend::{Backend, Job, LogitsOut, On, Out, Status};
use lmhead::epilogue::Epilogue;
use lmhead::memory::{Span, SpanMut};
use lmhead::params::LMHEAD_STATUS_NONFINITE;
use lmhead::reference::{Accuracy, Reference};
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use lmhead::{DType, Quantization};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::Random;
use lmhead_testkit::product::bits_of;
use std::sync::Arc;

const VOCAB: usize = 150;

/// Ids with a NaN code and the code: the first id of a tile, and an id in the last, half-filled word of a
/// row.
const NAN: [(usize, u8); 2] = [(64, 0x7f), (149, 0xff)];

fn shard(hidden: usize, nan: bool, seed: u64) -> Arc<HeadShard> {
    let mut random = Random(seed);
    let mut values: Vec<u8> =
        (0..VOCAB * hidden).map(|_| random.below(127) as u8 | (random.below(2) * 128) as u8).collect();
    if nan {
        for (id, code) in NAN {
            values[id * hidden + if id == 64 { 0 } else { hidden - 1 }] = code;
        }
    }
    let scales = random.normals(VOCAB).into_iter().map(|v| 0.01 * v).collect();
    let bias = Some(random.normals(VOCAB));
    let matrix = Matrix::E4m3 { values: values.into(), scales };
    Arc::new(HeadShard::new(0..VOCAB, VOCAB, hidden, Quantization::W8a16, matrix, bias).expect("a shard"))
}

/// `[rows, VOCAB]` and the rows' status words.
fn logits(backend: &dyn Backend, shard: &Arc<HeadShard>, rows: HiddenRows<'_>) -> (Vec<f32>, Vec<u32>) {
    let (mut logits, mut words) = (vec![0.0f32; rows.len() * VOCAB], vec![0u32; rows.len()]);
    let out = LogitsOut {
        data: SpanMut::host(&mut logits[..]),
        stride: 4 * VOCAB,
        dtype: DType::F32,
        status: Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 },
    };
    let job =
        Job { rows, epilogue: Epilogue { softcap: Some(30.0), scale: 1.5 }, adjustments: None, placed: None };
    let mut loaded = backend.load(shard, rows.dtype()).expect("memory");
    loaded.run(&job, Out::Logits(out), &mut On::default()).expect("a product");
    // Logits of single ids have the same bits.
    let targets: Vec<u32> = (0..3 * rows.len()).map(|i| (i * 37 % VOCAB) as u32).collect();
    let mut single = vec![0.0f32; targets.len()];
    let (asked, to) = (Span::host(&targets[..]), SpanMut::host(&mut single[..]));
    let asked = Out::TargetLogits { targets: asked, per_row: 3, out: to };
    loaded.run(&job, asked, &mut On::default()).expect("logits of targets");
    let of_all = |(i, id): (usize, &u32)| logits[i / 3 * VOCAB + *id as usize];
    let wanted: Vec<f32> = targets.iter().enumerate().map(of_all).collect();
    assert_eq!(bits_of(&single), bits_of(&wanted));
    (logits, words)
}

#[test]
fn fp8_heads_keep_the_bound_and_nan_stays_nan() {
    let backend = EmulatedDevice::new(3).backend();
    for (dtype, hidden, rows) in
        [(DType::Bf16, 200, 3), (DType::F16, 200, 3), (DType::Bf16, 77, 20), (DType::F16, 77, 70)]
    {
        let seed = (hidden * rows) as u64;
        let mut bytes = vec![0; rows * hidden * dtype.size()];
        dtype.round_into(&Random(seed).normals(rows * hidden), &mut bytes);
        let hidden_rows = HiddenRows::new(&bytes, dtype, rows, hidden).expect("rows");
        let whole = shard(hidden, false, seed);
        let (got, status) = logits(&backend, &whole, hidden_rows);
        let epilogue = Epilogue { softcap: Some(30.0), scale: 1.5 };
        let reference = Reference::new(&whole, epilogue).accurate_as(Accuracy::TensorCores);
        for (row, got) in got.chunks(VOCAB).enumerate() {
            let prepared = reference.row(hidden_rows.row(row), dtype).expect("a row");
            for (id, got) in got.iter().enumerate() {
                let truth = reference.logit(&prepared, id);
                let error = truth.error_of(f64::from(*got), DType::F32);
                assert!(error <= truth.allowed, "{dtype} row {row}, id {id}: {got}, {truth:?} (seed {seed})");
            }
        }
        assert!(status.iter().all(|word| word & LMHEAD_STATUS_NONFINITE == 0), "{dtype}");
        let (broken, status) = logits(&backend, &shard(hidden, true, seed), hidden_rows);
        assert!(status.iter().all(|word| word & LMHEAD_STATUS_NONFINITE != 0), "{dtype}");
        for (i, (broken, got)) in broken.into_iter().zip(got).enumerate() {
            let nan = NAN.iter().any(|(id, _)| *id == i % VOCAB);
            assert!(
                if nan { broken.is_nan() } else { broken.to_bits() == got.to_bits() },
                "{dtype} logit {i}: {broken}"
            );
        }
    }
}

/// NVFP4's scale for all weights has no kernel yet.
#[test]
fn float_weights_with_scales_are_refused() {
    let backend = EmulatedDevice::new(3).backend();
    let matrix = Matrix::Bf16(vec![half::bf16::ONE; 64].into());
    let shard = HeadShard::new(0..8, 8, 8, Quantization::None, matrix, None).expect("a shard");
    let shard = shard.with_scales(vec![0.5; 8]).expect("a shard");
    let error = backend.check(&shard, DType::Bf16).expect_err("no kernel").to_string();
    assert!(
        error.contains("float weights without scales") && error.contains("use the cpu backend"),
        "{error}"
    );
}
