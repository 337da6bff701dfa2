//! Edge shapes, refused arguments, and the choice of an instruction set.

use crate::cases::{BACKENDS, Case, Data, KINDS, floats, int8, plain};
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::cpu::{Amx, CpuBackend, Isa, choose_isa};
use lmhead::backend::{Ask, Backend, Job, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::merge::PartialSpec;
use lmhead::rows::HiddenRows;

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
                let spec = PartialSpec { k: 2, sum: true, targets: 0 };
                let mut partials = case.partials(backend, &shard, spec);
                assert_eq!(partials.len(), rows);
                assert!(partials.iter_mut().all(|p| p.sorted().len() == vocab.min(2)));
                let mut loaded = case.load(backend, &shard);
                let held = loaded.hold(&case.job(case.all_rows()), true, &mut On::default()).unwrap();
                let mut maxima = vec![0.0; rows];
                let all: Vec<usize> = (0..rows).collect();
                held.pass(Pass::Maxima { rows: &all, out: &mut maxima }).unwrap();
                assert!(maxima.iter().all(|max| (*max == f32::NEG_INFINITY) == (vocab == 0)));
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
    // A shard that splits a block of 64 would change the sums.
    let error = backend.check(&case.shard(0..50), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("0..50 of 100"), "{error}");
    let error = backend.check(&case.shard(3..100), DType::Bf16).unwrap_err().to_string();
    assert!(error.contains("multiples of 64"), "{error}");
}

/// A buffer that does not fit is refused by name before anything is computed, and is not written.
#[test]
fn buffers_that_do_not_fit_are_refused() {
    let (backend, case) = (&BACKENDS[0], Case::new(plain(DType::F32), 2, 8, 100, Data::Gaussian, 1));
    let shard = case.shard(0..100);
    let mut loaded = case.load(backend, &shard);
    assert_eq!(loaded.workspace(2, Ask::Hold { raw: true }), Ok(0));
    let mut memory = vec![7u32; 300];
    let mut words = [7u32; 8];
    // SAFETY: it is refused before anybody writes it.
    let device = || unsafe { SpanMut::from_raw(Memory::Device(0), 4096, 4096) };
    let mut refused = |data: SpanMut<'_>, stride, dtype, status: Status<'_>, wanted: &str| {
        let out = Out::Logits(LogitsOut { data, stride, dtype, status });
        let job = case.job(case.all_rows());
        let text = loaded.run(&job, out, &mut On::default()).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}\nwanted {wanted}");
    };
    for (len, stride, dtype, wanted) in [
        (799, 400, DType::F32, "logits: wanted 2 rows of 400 bytes, got 799 bytes, 400 a row"),
        (800, 399, DType::F32, "logits: wanted 2 rows of 400 bytes"),
        (800, usize::MAX - 3, DType::F32, "logits: wanted 2 rows"),
        (1200, 402, DType::F32, "stride of the logits: wanted a multiple of 4 bytes, got 402"),
        (1200, 401, DType::Bf16, "stride of the logits: wanted a multiple of 2 bytes, got 401"),
        (800, 400, DType::I8, "logits: wanted f32, f16 or bf16, got i8"),
    ] {
        let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
        refused(SpanMut::host(&mut memory[..]).part(0..len), stride, dtype, status, wanted);
    }
    let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
    let odd = SpanMut::host(&mut memory[..]).part(2..1002);
    refused(odd, 400, DType::F32, status, "logits: wanted an address that is a multiple of 4");
    let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
    refused(device(), 400, DType::F32, status, "logits: wanted host memory, got memory of device 0");
    for (bytes, stride, wanted) in [
        (0..4, 4, "status words: wanted 2 words of 4 bytes, got 4 bytes, 4 a row"),
        (0..32, 3, "status words: wanted 2 words"),
        (0..32, 6, "stride of the status words: wanted a multiple of 4 bytes, got 6"),
        (2..32, 4, "status words: wanted an address that is a multiple of 4"),
    ] {
        let status = Status::Apart { words: SpanMut::host(&mut words[..]).part(bytes), stride };
        refused(SpanMut::host(&mut memory[..]), 400, DType::F32, status, wanted);
    }
    let status = Status::Apart { words: device(), stride: 4 };
    refused(SpanMut::host(&mut memory[..]), 400, DType::F32, status, "status words: wanted host memory");
    for (at, stride, wanted) in [
        (396, 404, "status word in the stride of a row: wanted 4 bytes between byte 400"),
        (402, 408, "place of the status word: wanted a multiple of 4"),
        (404, 404, "status word in the stride of a row"),
        (usize::MAX, 404, "status word in the stride of a row"),
    ] {
        let data = SpanMut::host(&mut memory[..]);
        refused(data, stride, DType::F32, Status::Inside { at }, wanted);
    }
    // Status words inside the logits, and logits over the rows.
    let mut whole = SpanMut::host(&mut memory[..]);
    // SAFETY: it is refused before anybody writes it.
    let same = unsafe { SpanMut::from_raw(Memory::Host, whole.address() + 16, 32) };
    let status = Status::Apart { words: same, stride: 4 };
    refused(whole.reborrow(), 400, DType::F32, status, "status words: wanted a buffer apart from the logits");
    // SAFETY: it is refused before anybody writes it.
    let rows = unsafe { SpanMut::from_raw(Memory::Host, Span::host(&case.x).address(), 800) };
    let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
    refused(rows, 400, DType::F32, status, "logits: wanted a buffer apart from hidden_states");
    assert!(memory.iter().chain(&words).all(|&word| word == 7));

    let spec = PartialSpec { k: 3, sum: true, targets: 0 };
    let mut memory = vec![7u64; 2 * spec.stride(100) / 8 + 1];
    let bytes = 2 * spec.stride(100);
    let mut loaded = case.load(backend, &shard);
    let mut refused = |spec, out: SpanMut<'_>, wanted: &str| {
        let job = case.job(case.all_rows());
        let text = loaded.run(&job, Out::Partials(spec, out), &mut On::default()).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}\nwanted {wanted}");
    };
    for (spec, range, wanted) in [
        (spec, 0..bytes - 8, &*format!("partials: wanted {bytes} bytes, got {} bytes", bytes - 8)),
        (spec, 4..bytes + 4, "partials: wanted an address that is a multiple of 8"),
        (PartialSpec { k: 0, ..spec }, 0..bytes, "candidates of a partial: wanted at least 1, got 0"),
        (PartialSpec { targets: 1, ..spec }, 0..bytes, "targets of a product's partials: wanted none, got 1"),
    ] {
        refused(spec, SpanMut::host(&mut memory[..]).part(range), wanted);
    }
    refused(spec, device(), "partials: wanted host memory, got memory of device 0");
    assert!(memory.iter().all(|&word| word == 7));
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let (backend, case) = (&BACKENDS[0], Case::new(plain(DType::Bf16), 2, 8, 100, Data::Gaussian, 1));
    let shard = case.shard(0..100);
    let mut loaded = case.load(backend, &shard);
    let mut refused = |job: Job<'_>, wanted: &str| {
        let text = match loaded.hold(&job, false, &mut On::default()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("wanted {wanted}"),
        };
        assert!(text.contains(wanted), "{text}\nwanted {wanted}");
    };
    let narrow = Case::new(plain(DType::Bf16), 2, 7, 100, Data::Gaussian, 1);
    refused(case.job(narrow.all_rows()), "hidden_states: wanted 8 columns, got 7");
    let wide = Case::new(plain(DType::F32), 2, 8, 100, Data::Gaussian, 1);
    refused(case.job(wide.all_rows()), "hidden_states: wanted bf16, got f32");
    // SAFETY: it is refused before anybody reads it.
    let device = unsafe { Span::from_raw(Memory::Device(1), 4096, 32) };
    let rows = HiddenRows::strided(device, DType::Bf16, 2, 8, 16).unwrap();
    refused(case.job(rows), "hidden_states: wanted host memory, got memory of device 1");
    let mut adjustments = ShardAdjustments::new(0..100);
    let job = Job { adjustments: Some(&adjustments), ..case.job(case.all_rows()) };
    refused(job, "rows of the adjustments: wanted 2, got 0");
    adjustments = ShardAdjustments::new(0..64);
    adjustments.push_encoded(&[], 2).unwrap();
    let job = Job { adjustments: Some(&adjustments), ..case.job(case.all_rows()) };
    refused(job, "ids of the adjustments: wanted 0..100, got 0..64");

    let held = loaded.hold(&case.job(case.all_rows()), false, &mut On::default()).unwrap();
    let mut refused = |pass: Pass<'_>, wanted: &str| {
        let text = held.pass(pass).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}\nwanted {wanted}");
    };
    refused(Pass::Maxima { rows: &[0, 2], out: &mut [0.0; 2] }, "held rows: index 2 at position 1");
    refused(Pass::Maxima { rows: &[0, 1], out: &mut [0.0; 3] }, "largest logits: wanted 2, got 3");
    let of = Which::Raw;
    let mut values = [0.0f32; 3];
    let (targets, out) = (Span::host(&[1u32, 2, 3]), SpanMut::host(&mut values));
    let pass = Pass::TargetLogits { of, targets, per_row: 2, out };
    refused(pass, "targets of the held rows: wanted 4, got 3");
    let spec = PartialSpec { k: 1, sum: false, targets: 1 };
    let mut bytes = vec![0u64; 2 * spec.stride(100) / 8];
    let pass = Pass::Partials { of, spec, targets: Span::EMPTY, out: SpanMut::host(&mut bytes[..]) };
    refused(pass, "targets of the held rows: wanted 2, got 0");
    assert!(backend.allocate(Memory::Device(0), 8, "rows").is_err());
    assert_eq!(backend.allocate(Memory::Host, 8, "rows").unwrap().span().len(), 8);
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
    // For AMX the message says what is missing. The emulation, which is for tests, cannot be chosen.
    if !Isa::Amx.is_available() {
        let text = choose_isa(Some("amx")).unwrap_err().to_string();
        assert!(text.contains(&Amx::here().to_string()), "{text}");
    }
    assert!(choose_isa(Some(Isa::EmulatedAmx.name())).is_err());
    assert!(CpuBackend::with_isa(Isa::EmulatedAmx, Some(1)).is_err());
    assert!(!Isa::available().contains(&Isa::EmulatedAmx) && Isa::detect() != Isa::EmulatedAmx);
    let text = CpuBackend::with_isa(Isa::Portable, Some(0)).unwrap_err().to_string();
    assert!(text.contains("threads"), "{text}");
    let backend = CpuBackend::with_isa(Isa::Portable, None).unwrap();
    assert!(backend.threads() >= 1);
    assert_eq!(
        (backend.name(), backend.fingerprint(plain(DType::Bf16).types())),
        ("cpu", "cpu/portable/3 bf16".to_string())
    );
}
