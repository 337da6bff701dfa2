//! The golden files on the emulated device.

use crate::device;
use lmhead::backend::Backend;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::plan::Precision;
use lmhead::reference::Accuracy;
use lmhead::result::Request;
use lmhead_testkit::golden::{goldens, statuses};
use std::sync::Arc;

/// The golden files that the CPU backend is tested with, at the error allowed for tensor cores.
#[test]
fn the_emulated_backend_is_within_the_stated_error() {
    let device: Arc<dyn Backend> = Arc::new(device().backend());
    let mut seen = 0;
    for golden in goldens() {
        let weights = match golden.quantization {
            Quantization::None => golden.stored.tensors.float_matrix("lm_head.weight").unwrap().dtype,
            _ => DType::I8,
        };
        let hidden = golden.config.hidden_dtype.unwrap();
        // Heads without a kernel are refused, as crates/emulated/tests/device shows.
        if Precision::of(weights, golden.quantization, hidden).is_err() {
            continue;
        }
        seen += 1;
        let allowed = golden.allowed_by(Accuracy::TensorCores.factor());
        let (expected, status) =
            (golden.stored.f64s("expected.logits"), golden.stored.bytes("expected.row_status"));
        for size in [1, 3] {
            let answers = golden.run_on(&device, size, Request::logits(DType::F32));
            assert_eq!(statuses(&answers), status, "{} P {size}", golden.stored.name);
            let got: Vec<f32> = answers.iter().flat_map(|a| a.output.logits_f32().unwrap()).collect();
            for (i, (&got, &want)) in got.iter().zip(&expected).enumerate() {
                let good =
                    status[i / golden.config.vocab_size] != 0 || (f64::from(got) - want).abs() <= allowed[i];
                assert!(
                    good,
                    "{} P {size} element {i}: {got}, expected {want} within {}",
                    golden.stored.name, allowed[i]
                );
            }
        }
    }
    assert!(seen > 10, "{seen} golden files");
}
