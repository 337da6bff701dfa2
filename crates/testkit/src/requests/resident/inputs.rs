//! Illegal inputs in device memory, and inputs of wrong sizes and places.

use super::{Arrays, DeviceMemory, HIDDEN, ROWS, Resident, VOCAB, filters_of};
use crate::adjusting::OwnAdjustments;
use crate::soak::Asked;
use crate::{TestHead, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::backend::device::KernelDevice;
use lmhead::backend::{DeviceAdjustments, On};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::HeadGroup;
use lmhead::memory::Span;
use lmhead::result::{
    AnswerBuffers, DeviceInputs, LogitBiasSpans, Output, Request, RowInputs, RowStatus, SamplingSpans,
};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::{Filters, SamplingParams};
use std::sync::Arc;
use std::thread;

/// Inputs of a rank's rows for two steps: one with illegal inputs among them, in device memory, and one with
/// only legal ones, in host memory.
struct BadInputs<'a> {
    request: Request,
    of: DeviceAdjustments,
    /// The inputs in device memory.
    placed: Arrays,
    /// The same inputs, with neutral ones in place of illegal ones.
    host: RowInputs<'a>,
    /// Which rows have illegal inputs.
    bad: Vec<bool>,
}

impl BadInputs<'_> {
    fn check<D: KernelDevice>(&self, device: &Resident<D>, ranks: usize) {
        let (test, rows) =
            (TestHead::random(VOCAB, HIDDEN, DType::Bf16, Quantization::None, 11), self.bad.len());
        let everyone: Vec<usize> = (0..ranks).collect();
        let endpoints = device.group(&everyone);
        let run = |rank: usize| {
            let device = device.place(rank);
            let group = HeadGroup::data_parallel(ranks, rank).unwrap();
            let (shard, exchange) = (test.shard(group.shard(VOCAB, rank)), Arc::clone(&endpoints[rank]));
            let config = test.config();
            let mut head = LmHead::new(&config, group, shard, exchange, Arc::clone(&device.backend)).unwrap();
            let room = DeviceMemory { device, stream: device.stream() };
            let memory = room.with(&test.rows(rows, rank as u64));
            let hidden = HiddenRows::strided(memory.span(), DType::Bf16, rows, HIDDEN, 2 * HIDDEN).unwrap();
            let (counts, request) = (RowCounts::exact(&vec![rows; ranks]), self.request);
            let adjusted = !self.of.is_empty();
            let asked = Asked { counts: counts.clone(), request, adjusted, hidden, inputs: self.host };
            let none = DeviceAdjustments::default();
            let want = room.step(&mut head, asked, (none, Filters::ByHost), &mut Vec::new()).unwrap();
            for &filters in filters_of(&request) {
                let placed = self.placed.place(&room);
                let inputs = RowInputs { on_device: placed.inputs(), ..RowInputs::default() };
                let asked = Asked { counts: counts.clone(), request, adjusted: false, hidden, inputs };
                let got = room.step(&mut head, asked, (self.of, filters), &mut Vec::new()).unwrap();
                for (row, &bad) in self.bad.iter().enumerate() {
                    let what = format!("row {row} of rank {rank} of {ranks}: {request}, {filters}");
                    if !bad {
                        assert_eq!(got.row_status[row], want.row_status[row], "{what}");
                        assert_eq!(row_bits(&got, row), row_bits(&want, row), "{what}");
                        continue;
                    }
                    assert_eq!(got.row_status[row], RowStatus::BadInput, "{what}");
                    let nothing = match &got.output {
                        Output::Argmax { ids } | Output::Sample { ids, logprobs: None } => ids[row] == -1,
                        Output::Logprobs(told) => {
                            let of_row = row * told.targets..(row + 1) * told.targets;
                            let best = row * told.top_n..(row + 1) * told.top_n;
                            told.ranks[of_row.clone()].iter().all(|&rank| rank == -1)
                                && told.logprobs[of_row].iter().all(|logprob| logprob.is_nan())
                                && told.top_ids[best].iter().all(|&id| id == -1)
                        }
                        Output::Logits { .. } => true,
                        other => panic!("no answer known: {other:?}"),
                    };
                    assert!(nothing, "{what}: {:?}", got.output);
                }
            }
        };
        thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || run(rank))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}

/// Checks that rows with illegal inputs in device memory get no answer but the status `BadInput`, and that
/// the other rows are not affected.
///
/// # Panics
/// Where that is not so.
pub fn bad_inputs<D: KernelDevice>(device: &Resident<D>, ranks: usize) {
    let none = DeviceAdjustments::default();
    let (vocab, no) = (VOCAB as i64, -100);
    let targets = [
        [5, vocab - 1, no],
        [5, vocab, 6],
        [no, no, no],
        [-1, 3, no],
        [0, 1, 2],
        [i64::MAX, 1, 1],
        [1, 1, (1 << 32) + 3],
        [i64::MIN, no, no],
        [-101, 7, 7],
        [63, 64, 65],
    ];
    let bad_of = |row: &[i64; 3]| row.iter().any(|&id| id != no && !(0..vocab).contains(&id));
    let bad: Vec<bool> = targets.iter().map(bad_of).collect();
    let good: Vec<i64> = targets.iter().flat_map(|row| if bad_of(row) { [no; 3] } else { *row }).collect();
    let placed = Arrays { targets: Some(targets.concat()), ..Arrays::default() };
    let host = RowInputs { targets: Some(&good), ..RowInputs::default() };
    let request = Request::Logprobs { targets: 3, top_n: 2, processed: false };
    BadInputs { request, of: none, placed, host, bad }.check(device, ranks);

    let plain = SamplingParams { seed: 9, position: 4, ..SamplingParams::default() };
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let with =
        |temperature: f32, top_p: f32, min_p: f32| SamplingParams { temperature, top_p, min_p, ..plain };
    let sampled = [
        (with(0.7, 0.9, 0.1), 4, 20, false),
        (with(nan, 1.0, 0.0), 4, 0, true),
        (with(-0.5, 1.0, 0.0), 4, 0, true),
        (with(-0.0, 1.0, -0.0), 4, 0, false),
        (with(infinity, 1.0, 0.0), 4, 0, true),
        (with(1.0, 0.0, 0.0), 4, 0, true),
        (with(1.0, 1.001, 0.0), 4, 0, true),
        (with(1.0, nan, 0.0), 4, 0, true),
        (with(1.0, -0.0, 0.0), 4, 0, true),
        (with(1.0, 0.5, 1.0), 4, 0, false),
        (with(1.0, 0.5, 1.001), 4, 0, true),
        (with(1.0, 0.5, -0.1), 4, 0, true),
        (with(1.0, 0.5, nan), 4, 0, true),
        (with(1.0, 1.0, 0.0), -1, 0, true),
        (with(1.0, 1.0, 0.0), i64::MIN, 0, true),
        (with(1.0, 1.0, 0.0), i64::MAX, 0, false),
        (with(1.0, 1.0, 0.0), 4, -1, true),
        (with(1.0, 1.0, 0.0), 4, i32::MIN, true),
        (with(1.0, 1.0, 0.0), 4, i32::MAX, false),
    ];
    let good: Vec<SamplingParams> = sampled
        .iter()
        .map(|&(params, position, top_k, bad)| match bad {
            true => SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            false => SamplingParams { position: position as u64, top_k: top_k as usize, ..params },
        })
        .collect();
    let floats = |get: fn(&SamplingParams) -> f32| sampled.iter().map(|row| get(&row.0)).collect();
    let placed = Arrays {
        sampling: Some((
            sampled.iter().map(|row| row.0.seed).collect(),
            sampled.iter().map(|row| row.1).collect(),
            floats(|params| params.temperature),
            sampled.iter().map(|row| row.2).collect(),
            floats(|params| params.top_p),
            floats(|params| params.min_p),
        )),
        ..Arrays::default()
    };
    let host = RowInputs { sampling: Some(&good), ..RowInputs::default() };
    let bad = sampled.iter().map(|row| row.3).collect();
    BadInputs { request: Request::sample(), of: none, placed, host, bad }.check(device, ranks);

    // Logit biases of each row, and whether they are bad. At most 2 per row are announced.
    let of = DeviceAdjustments { logit_bias: 2, ..none };
    let rows: &[(&[(i64, f32)], bool)] = &[
        (&[(7, 2.0), (3, f32::NEG_INFINITY)], false),
        (&[(7, 2.0), (vocab, 1.0)], true),
        (&[(-1, 1.0)], true),
        (&[(64, nan)], true),
        (&[], false),
        (&[(64, infinity), (1, 1.0)], true),
        (&[(199, 50.0), (199, -49.5)], false),
        (&[(1, 1.0), (2, 1.0), (3, 1.0)], true),
        (&[((1 << 32) + 1, 1.0)], true),
        (&[(130, 90.0)], false),
    ];
    let mut offsets = vec![0];
    rows.iter().for_each(|row| offsets.push(offsets[offsets.len() - 1] + row.0.len() as i64));
    let entries: Vec<(i64, f32)> = rows.iter().flat_map(|row| row.0).copied().collect();
    let bad: Vec<bool> = rows.iter().map(|row| row.1).collect();
    with_logit_bias(device, ranks, (of, offsets, &entries), bad.clone());
    // Offsets that descend, are negative, or are beyond the entries.
    let wrong = [0, 2, 1, 3, -1, 3, i64::MAX, i64::MIN, 4, 4 + entries.len() as i64, 4];
    let in_order = |two: &[i64]| 0 <= two[0] && two[0] <= two[1] && two[1] - two[0] <= 2 && two[1] <= 4;
    let bad: Vec<bool> = wrong.windows(2).map(|two| !in_order(two)).collect();
    let few: Vec<(i64, f32)> = [(7, 2.0), (3, 1.5), (150, 60.0), (9, 1.0)].to_vec();
    with_logit_bias(device, ranks, (of, wrong.to_vec(), &few), bad);

    let of = DeviceAdjustments { counts: 3, ..none };
    type Counted = (i64, u32, u8);
    let rows: &[([f32; 3], &[Counted], bool)] = &[
        ([1.5, 0.5, 0.25], &[(7, 2, 1), (3, 0, 1), (150, 1, 0)], false),
        ([0.0, 0.0, 0.0], &[(7, 1, 0)], true),
        ([nan, 0.0, 0.0], &[], true),
        ([1e-40, 0.0, 0.0], &[], true),
        ([-1.0, 0.0, 0.0], &[], true),
        ([1.0, infinity, 0.0], &[], true),
        ([1.0, 0.0, nan], &[], true),
        ([1.0, -2.0, 0.5], &[(9, 3, 0)], false),
        ([1.2, 0.0, 0.0], &[(9, 3, 0), (9, 1, 0)], true),
        ([1.2, 0.0, 0.0], &[(9, 1 << 31, 0)], true),
        ([1.2, 0.0, 0.0], &[(9, 1, 2)], true),
        ([1.2, 0.0, 0.0], &[(vocab, 1, 1)], true),
        ([1.2, 0.1, 0.0], &[(9, (1 << 31) - 1, 1), (199, 1, 1)], false),
    ];
    let neutral: [f32; 3] = [1.0, 0.0, 0.0];
    let mut offsets = vec![0];
    rows.iter().for_each(|row| offsets.push(offsets[offsets.len() - 1] + row.1.len() as i64));
    let entries: Vec<Counted> = rows.iter().flat_map(|row| row.1).copied().collect();
    let each = |bad: bool, i: usize| -> Vec<f32> {
        rows.iter().map(|row| if bad && row.2 { neutral[i] } else { row.0[i] }).collect()
    };
    let placed = Arrays {
        penalties: Some((
            [0, 1, 2].map(|i| each(false, i)),
            offsets,
            entries.iter().map(|entry| entry.0).collect(),
            entries.iter().map(|entry| entry.1).collect(),
            entries.iter().map(|entry| entry.2).collect(),
        )),
        ..Arrays::default()
    };
    let kept: Vec<Vec<Counted>> =
        rows.iter().map(|row| if row.2 { Vec::new() } else { row.1.to_vec() }).collect();
    let own = OwnAdjustments {
        vocab: VOCAB,
        rows: rows.len(),
        mask: None,
        logit_bias: None,
        penalties: Some(
            kept.iter()
                .enumerate()
                .map(|(row, counts)| {
                    let of_row = [0, 1, 2].map(|i| each(true, i)[row]);
                    let count = |&(id, count, prompt): &Counted| (id, count, prompt == 1);
                    (of_row, counts.iter().map(count).collect())
                })
                .collect(),
        ),
    };
    own.with(|adjustments| {
        let host = RowInputs { adjustments: Some(adjustments), ..RowInputs::default() };
        let bad = rows.iter().map(|row| row.2).collect();
        BadInputs { request: Request::argmax(), of, placed, host, bad }.check(device, ranks);
    });
}

/// Checks that inputs in device memory that are too short, misaligned, in another memory or not announced are
/// refused by name, and that a head of one rank can go on.
///
/// # Panics
/// Where that is not so.
pub fn refused_inputs<D: KernelDevice>(device: &Resident<D>) {
    let test = TestHead::random(VOCAB, HIDDEN, DType::Bf16, Quantization::None, 12);
    let place = device.place(0);
    let exchange = device.group(&[0]).remove(0);
    let group = HeadGroup::data_parallel(1, 0).unwrap();
    let backend = Arc::clone(&place.backend);
    let mut head = LmHead::new(&test.config(), group, test.shard(0..VOCAB), exchange, backend).unwrap();
    let room = DeviceMemory { device: place, stream: place.stream() };
    let memory = room.with(&test.rows(ROWS, 0));
    let hidden = HiddenRows::strided(memory.span(), DType::Bf16, ROWS, HIDDEN, 2 * HIDDEN).unwrap();
    let zeros = room.with(&[0u64; 4 * VOCAB]);
    let of = |bytes: usize| zeros.span().part(0..bytes);
    let shifted = |bytes: usize, by: usize| zeros.span().part(by..by + bytes);
    let host = [0u64; 64];
    let on_host = Span::host(&host[..ROWS]);
    let (nothing, mask) = (DeviceInputs::default(), 4 * ROWS * VOCAB.div_ceil(32));
    let none = DeviceAdjustments::default();
    let all = DeviceAdjustments { allowed: true, logit_bias: 2, counts: 2 };
    let logprobs = Request::logprobs(1);
    let logit_bias = |offsets, ids, values| DeviceInputs {
        logit_bias: Some(LogitBiasSpans { offsets, ids, values }),
        ..nothing
    };
    let sampling =
        |of: SamplingSpans<'static>| DeviceInputs { sampling: Some(of), ..DeviceInputs::default() };
    let targets = |span| DeviceInputs { targets: Some(span), ..nothing };
    let allowed = |span| DeviceInputs { allowed: Some(span), ..nothing };
    let table: Vec<(Request, DeviceAdjustments, DeviceInputs<'_>, &str)> = vec![
        (logprobs, none, targets(of(8 * ROWS - 8)), "targets in device memory: wanted [4, 1] elements of 8"),
        (
            logprobs,
            none,
            targets(shifted(8 * ROWS, 4)),
            "targets in device memory: wanted an address that is a",
        ),
        (logprobs, none, targets(on_host), "targets in device memory: wanted memory of device"),
        (Request::argmax(), none, targets(of(8 * ROWS)), "targets: wanted none with argmax"),
        (
            Request::argmax(),
            none,
            sampling(SamplingSpans::default()),
            "sampling parameters: wanted none with",
        ),
        (Request::argmax(), none, allowed(of(mask)), "allowed: wanted none in device memory, as announced"),
        (
            Request::argmax(),
            all,
            allowed(of(mask - 4)),
            "allowed in device memory: wanted [4, 35] elements of 4",
        ),
        (Request::argmax(), all, allowed(shifted(mask, 2)), "allowed in device memory: wanted an address"),
        (
            Request::argmax(),
            none,
            logit_bias(of(8 * ROWS + 8), of(8), of(4)),
            "logit_bias: wanted none in device memory",
        ),
        (
            Request::argmax(),
            all,
            logit_bias(of(8 * ROWS), of(8), of(4)),
            "logit_bias in device memory: offsets",
        ),
        (Request::argmax(), all, logit_bias(of(8 * ROWS + 8), of(16), of(4)), "in device memory: values"),
        (
            Request::argmax(),
            all,
            logit_bias(of(8 * ROWS + 8), shifted(16, 4), of(8)),
            "in device memory: ids",
        ),
    ];
    let counts = || RowCounts::exact(&[ROWS]);
    let mut refused = |request, of: DeviceAdjustments, inputs: RowInputs<'_>, adjusted, wanted: &str| {
        let asked = Asked { counts: counts(), request, adjusted, hidden, inputs };
        let of = (of, Filters::ByHost);
        let said = room.step(&mut head, asked, of, &mut Vec::new()).expect_err(wanted).to_string();
        assert!(said.contains(wanted), "wanted {wanted:?}, got {said:?}");
    };
    for (request, of, on_device, wanted) in table {
        refused(request, of, RowInputs { on_device, ..RowInputs::default() }, false, wanted);
    }
    let ids = [0i64; ROWS];
    let both = RowInputs { targets: Some(&ids), on_device: targets(of(8 * ROWS)), ..RowInputs::default() };
    refused(logprobs, none, both, false, "targets: wanted one of host memory and device memory, got both");
    let words = vec![-1i32; mask / 4];
    let host_mask = RowInputs { adjustments: Some(Adjustments::allowed(&words)), ..RowInputs::default() };
    refused(Request::argmax(), all, host_mask, true, "allowed: wanted in device memory, as announced");
    // A step in host memory cannot announce inputs on a device.
    let options = StepOptions { device_adjustments: all, ..StepOptions::default() };
    let said = head.begin(&counts(), &Request::argmax(), options).unwrap_err().to_string();
    assert!(said.contains("device_adjustments: wanted a step on a device"), "{said}");
    let bytes = test.rows(ROWS, 0);
    let inputs = RowInputs { on_device: targets(of(8 * ROWS)), ..RowInputs::default() };
    let step = head.step(counts(), &logprobs).unwrap();
    let rows = HiddenRows::new(&bytes, DType::Bf16, ROWS, HIDDEN).unwrap();
    let said = step.run_with(rows, &inputs).unwrap_err().to_string();
    assert!(said.contains("inputs: wanted host memory, as of the step's rows"), "{said}");
    // Answers that overlap inputs are refused, and the head goes on.
    let (mut status, mut ids) = (room.bytes(ROWS), room.bytes(8 * ROWS));
    let mut run = |mask: Option<Span<'_>>| {
        let options = StepOptions { on_device: true, device_adjustments: all, ..StepOptions::default() };
        let ticket = head.begin(&counts(), &Request::argmax(), options)?;
        let inputs = RowInputs {
            on_device: DeviceInputs { allowed: mask, ..DeviceInputs::default() },
            ..RowInputs::default()
        };
        let answer =
            AnswerBuffers { row_status: status.span_mut(), ids: ids.span_mut(), ..AnswerBuffers::default() };
        head.run_into(ticket, hidden, &inputs, answer, On { stream: room.stream, workspace: None })
    };
    run(None).unwrap();
    assert_eq!(room.read::<u8>(&*status), [0; ROWS]);
}

fn with_logit_bias<D: KernelDevice>(
    device: &Resident<D>,
    ranks: usize,
    (of, offsets, entries): (DeviceAdjustments, Vec<i64>, &[(i64, f32)]),
    bad: Vec<bool>,
) {
    let of_row = |row: usize| match bad[row] {
        true => Vec::new(),
        false => entries[offsets[row] as usize..offsets[row + 1] as usize].to_vec(),
    };
    let logit_bias = Some((0..bad.len()).map(of_row).collect());
    let own = OwnAdjustments { vocab: VOCAB, rows: bad.len(), mask: None, logit_bias, penalties: None };
    for request in [Request::argmax(), Request::logits(DType::F32)] {
        own.with(|adjustments| {
            let host = RowInputs { adjustments: Some(adjustments), ..RowInputs::default() };
            let (ids, values) = entries.iter().copied().unzip();
            let placed = Arrays { logit_bias: Some((offsets.clone(), ids, values)), ..Arrays::default() };
            BadInputs { request, of, placed, host, bad: bad.clone() }.check(device, ranks);
        });
    }
}
