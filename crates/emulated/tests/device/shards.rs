//! Loaded shards: rows and answers in any kind of memory.

use crate::seeds::seeds;
use crate::whole::KINDS;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::KernelDevice;
use lmhead::backend::device::hopper::{pack_weights, packed_bytes};
use lmhead::backend::{Ask, Job, LogitsOut, On, Out, Status};
use lmhead::epilogue::Epilogue;
use lmhead::memory::{Memory, SpanMut, Stream};
use lmhead::merge::PartialSpec;
use lmhead::plan::{Plan, Precision, Shape, WeightLayout};
use lmhead::rows::HiddenRows;
use lmhead::weights::{DeviceMatrix, HeadShard};
use lmhead::{DType, Quantization};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::TestHead;
use lmhead_testkit::product::shards::{Placed, answers, backend_of, cases};
use lmhead_testkit::product::steady::{Done, steady};
use lmhead_testkit::product::{capacity, cuts, draws, logits, partials};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn cpu() -> CpuBackend {
    CpuBackend::new(Some(2)).expect("the CPU backend")
}

/// A device with little memory for transfers, or that treats host memory as pageable, or both; a quarter of
/// them has the kernels of 9.0, half of those three SMs.
fn device(schedule: u64) -> EmulatedDevice {
    let device = EmulatedDevice::new(schedule);
    let device = match schedule % 8 {
        ..6 => device.portable(),
        6 => device,
        _ => device.sms(3),
    };
    if schedule.is_multiple_of(3) { device.unpinned() } else { device }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60 * seeds() as u32 / 100))]

    #[test]
    fn answers_are_what_the_definitions_say_in_any_memory(case in cases(&KINDS), schedule in any::<u64>()) {
        case.holds(&backend_of(device(schedule), schedule.is_multiple_of(2)));
    }

    #[test]
    fn int8_shards_have_the_cpu_backend_s_bits(case in cases(&KINDS[2..5]), schedule in any::<u64>()) {
        case.is_the_cpus(&backend_of(device(schedule), schedule.is_multiple_of(2)), &cpu());
    }

    #[test]
    fn whole_logits_are_the_host_s(case in logits::cases(), schedule in any::<u64>()) {
        case.holds(&device(schedule).backend());
    }
}

#[test]
fn whole_logits_are_the_host_s_however_they_are_aligned() {
    logits::are_the_hosts(&device(1).backend(), 5);
}

#[test]
fn partials_that_tie_everywhere_are_the_cpu_backend_s() {
    // Once where few schedules are run, as under the address sanitizer.
    for seed in 0..if seeds() < 100 { 1 } else { 2 } {
        partials::are_the_cpus(&device(seed).backend(), &cpu(), seed);
    }
}

#[test]
fn capacity_steps_are_packed_and_compared() {
    for seed in 0..4 {
        let backend = device(seed).backend();
        capacity::payloads_are_packed(&backend, seed);
        capacity::headers_are_compared(&backend, seed);
    }
}

#[test]
fn draws_from_the_shards_candidates_are_the_host_s() {
    for seed in 0..3 {
        draws::are_the_hosts(&device(seed).backend(), 100 * seed);
    }
}

#[test]
fn messages_of_candidates_that_do_not_fit_are_refused() {
    draws::misplaced_messages_are_refused(&device(1).backend());
}

#[test]
fn damaged_messages_of_searches_are_rows_of_bad_input() {
    cuts::damaged_messages_are_rows_of_bad_input(&device(3).backend());
}

#[test]
fn products_draw_what_the_cpu_backend_s_do() {
    for seed in 0..2 {
        draws::of_products_are_the_cpus(&backend_of(device(seed), seed == 1), &cpu(), 1000 * seed);
    }
    draws::of_filtered_rows_are_refused(&device(2).backend(), &cpu());
}

/// On a device with two SMs, small shapes have the tiles of large ones: clusters of two, which share weights
/// or rows, and have ids and rows behind the last.
#[test]
fn answers_of_large_tiles_are_the_cpu_backend_s() {
    for (ids, rows, tile) in [(300, 150, (256, 128)), (150, 100, (128, 128))] {
        let backend = EmulatedDevice::new(ids as u64).sms(2).backend();
        let shape = Shape { rows, vocab: ids, hidden: 512 };
        let plan = Plan::packed(Precision::W8a8(DType::Bf16), shape, &backend.device().limits());
        let chosen = plan.expect("a plan").tile;
        assert_eq!((chosen.block_n, chosen.block_m), tile, "{ids} ids, {rows} rows");
        partials::of_one_size_are_the_cpus(&backend, &cpu(), (ids, rows, 512), 7);
        draws::of_a_product_are_the_cpus(&backend, &cpu(), ((rows, ids, 64), 512), 11);
    }
}

#[test]
fn draws_are_as_often_what_they_are_as_the_softmax_says() {
    draws::are_as_often_as_the_softmax_says(&EmulatedDevice::new(5).backend());
}

/// A workspace that suffices for some number of rows suffices for fewer, whatever the plan's tile.
#[test]
fn a_workspace_for_some_rows_does_for_fewer() {
    let backend = EmulatedDevice::new(1).backend();
    for vocab in [1000, 6400, 8000, 12_800] {
        let head = TestHead::random(vocab, 16, DType::Bf16, Quantization::None, 7);
        let loaded = backend.load(&head.shard(0..vocab), DType::Bf16).expect("memory");
        for (k, targets) in [(1, 0), (8, 0), (64, 0), (65, 0), (1, 1), (64, 3), (65, 2)] {
            let spec = PartialSpec { k, sum: true, targets };
            for ask in
                [Ask::Partials(spec), Ask::Hold { raw: true }, Ask::Logits { dtype: DType::F32 }, Ask::Drawn]
            {
                let bytes = |rows| loaded.workspace(rows, ask).expect("a size");
                let sizes: Vec<usize> = (1..=520).map(bytes).collect();
                assert!(sizes.is_sorted(), "{vocab} ids, {ask:?}");
            }
        }
    }
}

#[test]
fn a_repeated_call_makes_nothing_and_multiplies_once() {
    for device in [EmulatedDevice::new(1), EmulatedDevice::new(1).unpinned()] {
        let backend = backend_of(device.clone(), false);
        let done = || {
            let counts = device.counts();
            let [made, copies, products] = [counts.made, counts.copies, counts.products].map(|n| n as i64);
            Done { made, copies, products, waits: 0 }
        };
        for (name, done) in steady(&backend, &done) {
            println!("{name}: {} copies, {} products", done.copies, done.products);
            let products = i64::from(!name.contains("finish"));
            assert_eq!(done.products, products, "{name}");
        }
    }
}

#[test]
fn an_engines_own_weights_are_used_in_place_and_another_devices_are_refused() {
    for (dtype, quantization) in KINDS {
        let (rows, hidden, vocab) = (5, 50, 200);
        let head = TestHead::random(vocab, hidden, dtype, quantization, 7).with_bias(8);
        let shard = head.shard(0..vocab);
        let backend = EmulatedDevice::new(1).numbered(3).backend();
        let own = Backend::memory(&backend);
        // A pitch larger than a copy would have.
        let (bytes, scales) = (shard.matrix().as_bytes(), shard.scales().unwrap_or_default());
        let row_bytes = bytes.len() / vocab;
        let pitch = row_bytes.next_multiple_of(16) + 32;
        let mut padded = vec![0xff; vocab * pitch];
        for (to, from) in padded.chunks_mut(pitch).zip(bytes.chunks(row_bytes)) {
            to[..row_bytes].copy_from_slice(from);
        }
        let floats = |values: &[f32]| Placed::new(&backend, own, bytemuck::cast_slice(values));
        let weights = Placed::new(&backend, own, &padded);
        let (scales, bias) = (floats(scales), floats(shard.bias().expect("a bias")));
        let matrix = DeviceMatrix {
            data: weights.span(),
            dtype: if quantization == Quantization::None { dtype } else { DType::I8 },
            layout: WeightLayout::Rows,
            pitch,
            scales: (quantization != Quantization::None).then(|| scales.span()),
            bias: Some(bias.span()),
        };
        let released = Arc::new(AtomicBool::new(false));
        let release = Arc::clone(&released);
        // SAFETY: the memory lives until the end, and nobody writes it.
        let foreign = unsafe {
            HeadShard::on_device(0..vocab, vocab, hidden, quantization, matrix, move || {
                release.store(true, Ordering::Relaxed);
            })
        };
        let foreign = Arc::new(foreign.expect("weights"));
        let refused = |backend: &dyn Backend, wanted: &str| {
            let error = backend.load(&foreign, dtype).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(wanted), "{error}");
        };
        let wanted = "weights of the shard: wanted host memory or memory of device 0, got memory of device 3";
        refused(&EmulatedDevice::new(1).backend(), wanted);
        refused(&cpu(), "weights of the shard: wanted host memory, got memory of device 3");

        let x = head.rows(rows, 9);
        let x = HiddenRows::new(&x, dtype, rows, hidden).expect("rows");
        let job = Job { rows: x, epilogue: Epilogue::default(), adjustments: None, placed: None };
        let (before, mut in_place) =
            (backend.device().counts(), backend.load(&foreign, dtype).expect("kernels"));
        assert_eq!(backend.device().counts().copies, before.copies, "nothing was copied");
        let mut copied = backend.load(&shard, dtype).expect("memory");
        let wanted = answers(&mut *copied, &job, dtype, 4);
        assert_eq!(answers(&mut *in_place, &job, dtype, 4), wanted);

        // Packed by the engine, where heads are packed; another device has no kernels for them.
        if backend.device().limits().layout() == WeightLayout::Packed {
            let mut all = vec![0; packed_bytes(vocab, row_bytes).expect("few")];
            pack_weights(bytes, row_bytes, &mut all);
            let weights = Placed::new(&backend, own, &all);
            let (data, pitch) = (weights.span(), row_bytes.next_multiple_of(128));
            let matrix = DeviceMatrix { data, layout: WeightLayout::Packed, pitch, ..matrix };
            // SAFETY: as above.
            let packed =
                unsafe { HeadShard::on_device(0..vocab, vocab, hidden, quantization, matrix, || {}) };
            let packed = Arc::new(packed.expect("weights"));
            let before = backend.device().counts();
            let mut in_place = backend.load(&packed, dtype).expect("kernels");
            assert_eq!(backend.device().counts().copies, before.copies, "nothing was copied");
            assert_eq!(answers(&mut *in_place, &job, dtype, 4), wanted);
            let portable = EmulatedDevice::new(1).numbered(3).portable().backend();
            let error = portable.load(&packed, dtype).map(|_| ()).expect_err("no kernels").to_string();
            assert!(error.contains("wanted compute capability 9.0, got "), "{error}");
        }
        drop(foreign);
        assert!(!released.load(Ordering::Relaxed), "they are used");
        let another = in_place.another().expect("another head");
        drop(in_place);
        assert!(!released.load(Ordering::Relaxed), "they are used");
        drop(another);
        assert!(released.load(Ordering::Relaxed));
    }
}

#[test]
fn bad_buffers_are_refused_by_name_before_anything_is_launched() {
    let (rows, hidden, vocab) = (3, 16, 70);
    let head = TestHead::random(vocab, hidden, DType::Bf16, Quantization::W8a8, 7);
    let backend = EmulatedDevice::new(1).backend();
    let own = Backend::memory(&backend);
    let mut loaded = backend.load(&head.shard(0..vocab), DType::Bf16).expect("memory");
    let source = Placed::new(&backend, own, &head.rows(rows, 9));
    let address = source.span().address();
    // SAFETY: refused addresses are not dereferenced.
    let span = |memory, address, len| unsafe { SpanMut::from_raw(memory, address, len) };
    let x = HiddenRows::strided(source.span(), DType::Bf16, rows, hidden, 2 * hidden).expect("rows");
    let job = Job { rows: x, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let out = Placed::new(&backend, own, &vec![0; rows * 4 * vocab]);
    let words = Placed::new(&backend, own, &[0; 16]);
    let (data, status) = (out.span().address(), words.span().address());
    let room = Placed::new(&backend, own, &vec![0; 8192]);
    let before = backend.device().counts();
    let mut refused = |out: Out<'_>, workspace, wanted: &str| {
        let on = &mut On { stream: Stream::NONE, workspace };
        let error = loaded.run(&job, out, on).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}, wanted {wanted}");
    };
    let logits = |data, stride, status| Out::Logits(LogitsOut { data, stride, dtype: DType::F32, status });
    let apart = |memory, address, len, stride| Status::Apart { words: span(memory, address, len), stride };
    let good = || apart(own, status, 12, 4);
    let all = rows * 4 * vocab;
    let (other, host) = (Memory::Device(1), Memory::Host);
    for (out, wanted) in [
        (logits(span(own, data, all - 1), 280, good()), "logits: wanted 3 rows of 280 bytes, got 839 bytes"),
        (logits(span(own, data, all), 276, good()), "logits: wanted 3 rows of 280 bytes"),
        (logits(span(own, data + 2, all), 280, good()), "logits: wanted an address that is a multiple of 4"),
        (logits(span(own, data, all + 4), 282, good()), "stride of the logits: wanted whole elements of f32"),
        (logits(span(other, data, all), 280, good()), "logits: wanted host memory or memory of device 0"),
        (logits(span(own, address, all), 280, good()), "logits: wanted memory apart from hidden_states"),
        (
            logits(span(own, data, all), 280, apart(own, data, 12, 4)),
            "status words: wanted memory apart from logits",
        ),
        (
            logits(span(own, data, all), 280, apart(host, status, 12, 4)),
            "status words: wanted memory of device 0",
        ),
        (logits(span(own, data, all), 280, apart(own, status, 11, 4)), "status words: wanted 3 words"),
        (logits(span(own, data, all), 280, apart(own, status + 1, 12, 4)), "status words: wanted an address"),
        (logits(span(own, data, all), 280, apart(own, status, 12, 2)), "stride of the status words"),
        (logits(span(own, data, all), 280, Status::Inside { at: 280 }), "place of the status words"),
        (logits(span(own, data, all), 280, Status::Inside { at: 276 }), "place of the status words"),
    ] {
        refused(out, None, wanted);
    }
    let spec = PartialSpec { k: 4, sum: true, targets: 0 };
    let bytes = rows * spec.stride(vocab);
    for (spec, out, wanted) in [
        (spec, span(own, data, bytes - 8), "partials: wanted 216 bytes, got 208 bytes"),
        (spec, span(own, data + 4, bytes), "partials: wanted an address that is a multiple of 8"),
        (spec, span(own, address, bytes), "partials: wanted memory apart from hidden_states"),
        (spec, span(other, data, bytes), "partials: wanted host memory or memory of device 0"),
        (PartialSpec { k: 0, ..spec }, span(own, data, 120), "candidates of a partial: wanted at least 1"),
        (PartialSpec { targets: 1, ..spec }, span(own, data, bytes + 24), "targets of a product's partials"),
    ] {
        refused(Out::Partials(spec, out), None, wanted);
    }
    // 32 staged rows of 128 bytes and the scales of three, then status words.
    let start = room.span().address();
    let good_logits = || logits(span(own, data, all), 280, good());
    refused(
        good_logits(),
        Some(span(own, start, 4607)),
        "workspace: wanted 4608 bytes for 3 rows, got 4607 bytes",
    );
    refused(
        good_logits(),
        Some(span(own, start + 16, 4608)),
        "workspace: wanted an address that is a multiple of 256",
    );
    refused(
        good_logits(),
        Some(span(host, start, 4608)),
        "workspace: wanted memory of device 0, got host memory",
    );
    // Besides the bars, 72 bytes for each of 3 rows of five parts: tiles of 16 ids, the most that a plan
    // has.
    let partials = || Out::Partials(spec, span(own, data, bytes));
    refused(partials(), Some(span(own, start, 5943)), "workspace: wanted 5944 bytes for 3 rows, got 5943");
    assert_eq!(backend.device().counts(), before, "nothing was copied or launched");
    let on = &mut On { stream: Stream::NONE, workspace: Some(span(own, start, 5944)) };
    loaded.run(&job, partials(), on).expect("what it says is enough");
}

#[test]
fn partials_multiply_once_for_as_many_rows_as_the_workspace_allows() {
    let (rows, hidden, vocab) = (9, 16, 64);
    let head = TestHead::random(vocab, hidden, DType::Bf16, Quantization::None, 7);
    let bytes = head.rows(rows, 9);
    let x = HiddenRows::new(&bytes, DType::Bf16, rows, hidden).expect("rows");
    let job = Job { rows: x, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let spec = PartialSpec { k: 3, sum: true, targets: 0 };
    let mut first = None;
    // Partials of that many rows fit at once: 64 bytes a row for each of four parts, tiles of 16 ids, which
    // are the most that a plan has.
    const PARTS: usize = 4;
    for (held, lends_more, products) in [(1, false, 9), (4, false, 3), (9, false, 1), (2, true, 1)] {
        let backend = EmulatedDevice::new(1).backend().held(held * PARTS * spec.stride(64));
        let mut loaded = backend.load(&head.shard(0..vocab), DType::Bf16).expect("memory");
        let least = loaded.workspace(rows, Ask::Partials(spec)).expect("a size");
        // Held rows take as much as their partials, which have bars besides.
        let whole = 256 + loaded.workspace(rows, Ask::Hold { raw: false }).expect("a size");
        // Staged rows of 128 bytes, status words, bars, and the parts' partials.
        assert_eq!(least, 32 * 128 + 512 + held * PARTS * 64);
        let size = if lends_more { whole } else { least };
        let mut workspace = Placed::new(&backend, Backend::memory(&backend), &vec![0; size]);
        let mut out = vec![0u64; rows * spec.stride(vocab) / 8];
        let before = backend.device().counts().products;
        let on = &mut On { stream: Stream::NONE, workspace: Some(workspace.span_mut()) };
        loaded.run(&job, Out::Partials(spec, SpanMut::host(&mut out[..])), on).expect("partials");
        assert_eq!(backend.device().counts().products - before, products, "{held} rows at once");
        assert_eq!(*first.get_or_insert_with(|| out.clone()), out, "{held} rows at once");
    }
}
