//! Shapes at the edge, what is refused, and the choice of an instruction set.

use crate::cases::{BACKENDS, Case, Data, KINDS, floats, int8, plain};
use lmhead::backend::cpu::{CpuBackend, Isa, choose_isa};
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::merge::{PartialSpec, RowPartial};

/// No rows, no vocabulary, one element: answers of the right shape, and no panic.
#[test]
fn empty_and_tiny_shapes() {
    for kind in KINDS {
        for (rows, hidden, vocab) in [(0, 5, 70), (3, 1, 1), (1, 1, 1), (3, 0, 2), (0, 0, 0), (2, 3, 0)] {
            let case = Case::new(kind, rows, hidden, vocab, Data::Gaussian, 3);
            let shard = case.shard(0..vocab);
            for backend in BACKENDS.iter() {
                let (bytes, nonfinite) = case.run(backend, case.all_rows(), &shard, DType::F32);
                assert_eq!((bytes.len(), nonfinite), (rows * vocab * 4, vec![false; rows]));
                if hidden == 0 {
                    assert!(floats(&bytes).iter().all(|&l| l == 0.0));
                }
                let spec = PartialSpec { k: 2, sum: true };
                let mut out = vec![RowPartial::new(spec); rows];
                let job =
                    Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
                backend.partials(&job, spec, &mut out).unwrap();
                assert!(out.iter().all(|p| p.sorted().len() == vocab.min(2)));
            }
        }
        // An empty shard of a vocabulary that others hold.
        let case = Case::new(kind, 2, 3, 64, Data::Gaussian, 3);
        let (bytes, _) = case.run(&BACKENDS[0], case.all_rows(), &case.shard(64..64), DType::F32);
        assert!(bytes.is_empty());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let backend = &BACKENDS[0];
    let case = Case::new(plain(DType::Bf16), 2, 8, 100, Data::Gaussian, 1);
    let shard = case.shard(0..100);
    let error = backend.check(&shard, DType::I8).unwrap_err();
    assert!(matches!(error, Error::Dtype { .. }));
    let text = error.to_string();
    assert!(text.contains("wanted f32, f16 or bf16, got i8"), "{text}");
    for hidden in [DType::F32, DType::F16, DType::Bf16] {
        backend.check(&shard, hidden).unwrap();
        let int8 = Case::new(int8(Quantization::W8a16, hidden), 1, 8, 3, Data::Gaussian, 1);
        backend.check(&int8.shard(0..3), hidden).unwrap();
    }
    // A shard that cuts a block in two would change the sums.
    let error = backend.check(&case.shard(0..50), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("0..50 of 100"), "{error}");
    let error = backend.check(&case.shard(3..100), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("multiples of 64"), "{error}");

    let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
    let mut flags = [false; 2];
    let mut bytes = vec![0; 2 * 400];
    let mut try_out = |len: usize, stride, dtype, flags: &mut [bool]| {
        backend.logits(
            &job,
            LogitsOut { bytes: &mut bytes[..len], stride, dtype, nonfinite: flags, any_allowed: None },
        )
    };
    assert!(matches!(try_out(799, 400, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, 399, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, usize::MAX, DType::F32, &mut flags), Err(Error::Shape { .. })));
    assert!(matches!(try_out(800, 400, DType::I8, &mut flags), Err(Error::Dtype { .. })));
    assert!(matches!(try_out(800, 400, DType::F32, &mut flags[..1]), Err(Error::Shape { .. })));
    try_out(800, 400, DType::F32, &mut flags).unwrap();

    let narrow = Case::new(plain(DType::Bf16), 2, 7, 100, Data::Gaussian, 1);
    let job = Job { rows: narrow.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
    let spec = PartialSpec { k: 1, sum: false };
    let mut out = vec![RowPartial::new(spec); 2];
    let text = backend.partials(&job, spec, &mut out).unwrap_err().to_string();
    assert!(text.contains('8') && text.contains('7'), "{text}");
}

#[test]
fn instruction_sets_are_chosen_by_name() {
    assert_eq!(choose_isa(None).unwrap(), Isa::detect());
    assert_eq!(choose_isa(Some("portable")).unwrap(), Isa::Portable);
    let text = choose_isa(Some("mmx")).unwrap_err().to_string();
    assert!(text.contains("LMHEAD_CPU_ISA") && text.contains("portable") && text.contains("mmx"), "{text}");
    for isa in Isa::ALL {
        assert_eq!(choose_isa(Some(isa.name())).is_ok(), isa.is_available());
        assert_eq!(CpuBackend::with_isa(isa, Some(1)).is_ok(), isa.is_available());
    }
    let text = CpuBackend::with_isa(Isa::Portable, Some(0)).unwrap_err().to_string();
    assert!(text.contains("threads"), "{text}");
    let backend = CpuBackend::with_isa(Isa::Portable, None).unwrap();
    assert!(backend.threads() >= 1);
    assert_eq!(
        (backend.name(), backend.fingerprint(plain(DType::Bf16).types())),
        ("cpu", "cpu/portable/3 bf16".to_string())
    );
}
