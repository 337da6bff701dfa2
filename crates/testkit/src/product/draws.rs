//! Draws in the epilogue of a matmul, and draws from the candidates of all shards: a device's results equal
//! those of the CPU backend and of the host's code in every bit.

use super::shards::Placed;
use crate::chi_square::{chi_square, distribution, limit};
use crate::{Random, TestHead};
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::params::{LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, SamplingRow};
use lmhead::backend::{Backend, Job, LoadedShard, On, Out, Pass, Wanted};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::finish::{self, Finish, FinishScratch, Messages, Places, RowSampling};
use lmhead::layout::shard_range;
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::merge::{Candidate, NO_TARGET};
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::weights::{HeadShard, Matrix};
use std::ops::Range;
use std::sync::Arc;

const NOTHING: Candidate = Candidate { value: f32::NEG_INFINITY, id: 0 };

/// The results of a draw: each row's token in both forms, and its status.
#[derive(Debug, PartialEq)]
struct Drawn {
    ids: Vec<i64>,
    tokens: Vec<u32>,
    status: Vec<u8>,
}

/// The candidates of some rows from every shard.
struct DrawRows {
    vocab: usize,
    shards: Vec<Range<usize>>,
    params: Vec<SamplingParams>,
    own: Vec<u32>,
    /// `[shards][rows]`, the candidates of each.
    candidates: Vec<Vec<Vec<Candidate>>>,
}

/// How many candidates a row needs from a shard of `ids` ids.
fn places(params: &SamplingParams, vocab: usize, ids: usize) -> usize {
    let listed = params.temperature != 0.0 && (1..vocab.min(1025)).contains(&params.top_k);
    if listed { params.top_k.min(ids) } else { 1 }
}

impl DrawRows {
    fn random(vocab: usize, shards: usize, rows: usize, random: &mut Random) -> Self {
        let shards: Vec<_> = (0..shards).map(|i| shard_range(vocab, shards, i)).collect();
        let params: Vec<_> = (0..rows).map(|_| random_params(vocab, random)).collect();
        let mut candidates = vec![Vec::new(); shards.len()];
        for params in &params {
            let logits = logits(vocab, random);
            for (shard, rows) in shards.iter().zip(&mut candidates) {
                let mut all: Vec<Candidate> =
                    shard.clone().map(|id| Candidate { value: logits[id], id: id as u32 }).collect();
                all.sort_by(|a, b| (b.value + 0.0).total_cmp(&(a.value + 0.0)).then(a.id.cmp(&b.id)));
                let n = places(params, vocab, shard.len());
                all.resize(all.len().max(n), NOTHING);
                // A single candidate is what a shard has drawn, which need not be its best.
                if n == 1 {
                    let last = all.len() - 1;
                    all.swap(0, random.below(2).min(last));
                }
                all.truncate(n);
                // Candidates come in any order.
                for i in (1..n).rev() {
                    all.swap(i, random.below(i + 1));
                }
                rows.push(all);
            }
        }
        let word = |random: &mut Random| if random.below(9) == 0 { LMHEAD_STATUS_BAD_INDEX } else { 0 };
        let own = (0..rows).map(|_| word(random)).collect();
        let mut rows = DrawRows { vocab, shards, params, own, candidates };
        for row in 0..rows.params.len() {
            let shard = random.below(rows.shards.len());
            if let (0, Some(first)) = (random.below(8), rows.candidates[shard][row].first_mut()) {
                *first = Candidate { value: f32::NAN, id: random.next() as u32 };
            }
        }
        rows
    }

    /// The most candidates that any row has from any shard.
    fn most(&self) -> usize {
        self.candidates.iter().flatten().map(Vec::len).max().unwrap_or(0)
    }

    /// All messages, and where each begins.
    fn messages(&self, layout: Places) -> (Vec<Candidate>, Vec<usize>) {
        let (mut all, mut starts) = (Vec::new(), Vec::new());
        for shard in &self.candidates {
            starts.push(8 * all.len());
            for row in shard {
                all.extend_from_slice(row);
                if let Places::Each(n) = layout {
                    // Places behind the row's own hold garbage, which must be ignored.
                    let other = Candidate { value: f32::INFINITY, id: u32::MAX };
                    all.extend(std::iter::repeat_n(other, n - row.len()));
                }
            }
        }
        (all, starts)
    }

    /// Draws by the host's code.
    fn on_host(&self, layout: Places) -> lmhead::Result<Drawn> {
        let n = self.params.len();
        let (bytes, starts) = self.messages(layout);
        let (mut ids, mut tokens, mut status) = (vec![7i64; n], vec![7u32; n], vec![7u8; n]);
        let (own, bytes) = (Span::host(&self.own[..]), Span::host(&bytes[..]));
        let from = Messages { bytes, starts: &starts, shards: &self.shards, rows: n, answered: n, own };
        let what = Finish::Draw {
            from,
            sampling: RowSampling::Host(&self.params),
            places: layout,
            vocab_size: self.vocab,
            ids: SpanMut::host(&mut ids[..]),
            tokens: SpanMut::host(&mut tokens[..]),
            row_status: SpanMut::host(&mut status[..]),
        };
        finish::on_host(what, &mut FinishScratch::default())?;
        Ok(Drawn { ids, tokens, status })
    }

    /// Draws by the device's kernels, with parameters and tokens in host or device memory. `shorter`: how
    /// many bytes of the last message are missing.
    fn on_device<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        loaded: &mut dyn LoadedShard,
        (layout, shorter): (Places, usize),
        (params_there, tokens_there): (bool, bool),
    ) -> Drawn {
        let (n, memory) = (self.params.len(), Backend::memory(backend));
        let (bytes, starts) = self.messages(layout);
        let rows: Vec<SamplingRow> = self.params.iter().map(|params| params.to_row(self.vocab)).collect();
        let came = Placed::new(backend, memory, bytemuck::cast_slice(&bytes));
        let own = Placed::new(backend, memory, bytemuck::cast_slice(&self.own));
        let rows = Placed::new(backend, memory, bytemuck::cast_slice(&rows));
        let space = |bytes: usize| Placed::new(backend, memory, &vec![0x77; bytes]);
        let (mut ids, mut there, mut status) = (space(8 * n), space(4 * n), space(n));
        let mut here = vec![7u32; n];
        let bytes = came.span().part(0..8 * bytes.len() - shorter);
        let from =
            Messages { bytes, starts: &starts, shards: &self.shards, rows: n, answered: n, own: own.span() };
        let what = Finish::Draw {
            from,
            sampling: match params_there {
                true => RowSampling::Device(rows.span()),
                false => RowSampling::Host(&self.params),
            },
            places: layout,
            vocab_size: self.vocab,
            ids: ids.span_mut(),
            tokens: if tokens_there { there.span_mut() } else { SpanMut::host(&mut here[..]) },
            row_status: status.span_mut(),
        };
        loaded.finish(what, &mut FinishScratch::default(), &mut On::default()).expect("draws");
        let tokens = if tokens_there { bytemuck::pod_collect_to_vec(&there.read()) } else { here };
        Drawn { ids: bytemuck::pod_collect_to_vec(&ids.read()), tokens, status: status.read() }
    }
}

fn logits(vocab: usize, random: &mut Random) -> Vec<f32> {
    let kind = random.below(6);
    let one = |random: &mut Random| match kind {
        0 | 1 => random.normal() * 3.0,
        // Many ties, and zeros of both signs.
        2 => [0.0, -0.0, 1.0, -1.0][random.below(4)],
        3 => 0.25,
        4 if random.below(9) > 0 => f32::NEG_INFINITY,
        4 => 3e38 + random.below(2) as f32 * 3e31,
        _ => f32::NEG_INFINITY,
    };
    (0..vocab).map(|_| one(random)).collect()
}

fn random_params(vocab: usize, random: &mut Random) -> SamplingParams {
    SamplingParams {
        seed: random.next(),
        position: random.next() >> random.below(64),
        temperature: [0.0, 1.0, 0.7, 2.5, 1e-30, 1e30][random.below(6)],
        top_k: match random.below(4) {
            0 => 0,
            1 => 1 + random.below(3),
            2 => 1 + random.below(60),
            _ => random.below(vocab + 2),
        },
        top_p: [1.0, 0.9, 0.5, 1e-3, 1e-40, 1.0 - f32::EPSILON / 2.0][random.below(6)],
        min_p: [0.0, 0.0, 0.05, 1.0, 1e-42][random.below(5)],
    }
}

/// Checks that a device draws what the host draws: rows of every kind, many numbers of shards, both layouts
/// of messages.
///
/// # Panics
/// Where something differs, with the seed.
pub fn are_the_hosts<D: KernelDevice>(backend: &DeviceBackend<D>, seed: u64) {
    let head = TestHead::random(64, 16, DType::Bf16, Quantization::None, 1);
    let mut loaded = backend.load(&head.shard(0..64), DType::Bf16).expect("memory");
    let sizes =
        [(1, 1, 3), (63, 1, 9), (65, 2, 12), (200, 7, 12), (500, 3, 20), (1300, 2, 10), (2100, 40, 10)];
    for (i, (vocab, shards, n)) in sizes.into_iter().enumerate() {
        let mut random = Random(seed + i as u64);
        let rows = DrawRows::random(vocab, shards, n, &mut random);
        let what = format!("{vocab} ids, {shards} shards, {n} rows, seed {seed}");
        let wanted = rows.on_host(Places::ByKind).expect("draws");
        for (layout, there) in [
            (Places::ByKind, (false, false)),
            (Places::ByKind, (true, true)),
            (Places::Each(rows.most()), (true, false)),
            (Places::Each(rows.most() + 3), (false, true)),
        ] {
            assert_eq!(rows.on_host(layout).expect("draws"), wanted, "{what}, {layout:?} on the host");
            let got = rows.on_device(backend, &mut *loaded, (layout, 0), there);
            assert_eq!(got, wanted, "{what}, {layout:?}, parameters and tokens there {there:?}");
        }
    }
    bad_rows_are_told(backend, &mut *loaded);
}

/// Checks that faults which only a device can see give their rows the right status, and do not change others.
fn bad_rows_are_told<D: KernelDevice>(backend: &DeviceBackend<D>, loaded: &mut dyn LoadedShard) {
    let plain = SamplingParams { seed: 3, ..SamplingParams::default() };
    let listed = SamplingParams { top_k: 4, ..plain };
    let candidate = |value, id| Candidate { value, id };
    let make = || {
        let row = |first: u32, params: &SamplingParams| -> Vec<Candidate> {
            (0..places(params, 200, 64) as u32).map(|i| candidate(i as f32, first + 7 * i)).collect()
        };
        let params = vec![plain, listed, plain, listed, plain, listed];
        let candidates = [0, 128].map(|first| params.iter().map(|params| row(first, params)).collect());
        let shards = vec![0..128, 128..200];
        DrawRows { vocab: 200, shards, own: vec![0; 6], params, candidates: candidates.into() }
    };
    let good = make().on_host(Places::ByKind).expect("draws");
    assert_eq!(good.status, [0; 6]);
    // Rows that are not listed in `bad` must not change.
    let mut check = |rows: &DrawRows, layout: Places, shorter: usize, bad: &[(usize, u8)]| {
        let got = rows.on_device(backend, loaded, (layout, shorter), (true, true));
        for row in 0..6 {
            let what = bad.iter().find(|(wrong, _)| *wrong == row);
            let wanted =
                what.map_or((good.ids[row], good.tokens[row], 0), |(_, what)| (-1, NO_TARGET, *what));
            assert_eq!((got.ids[row], got.tokens[row], got.status[row]), wanted, "row {row}, {bad:?}");
        }
    };
    for wrong in
        [candidate(f32::INFINITY, 130), candidate(1.0, 127), candidate(1.0, 200), candidate(1.0, u32::MAX)]
    {
        for row in [0, 3] {
            for nan in [false, true] {
                let mut rows = make();
                rows.candidates[1][row][0] = wrong;
                if nan {
                    rows.candidates[0][row][0].value = f32::NAN;
                }
                check(&rows, Places::ByKind, 0, &[(row, 3)]);
                assert!(rows.on_host(Places::ByKind).is_err(), "the host refuses what came");
            }
        }
    }
    // Beside a logit of minus infinity or NaN, the id is ignored.
    let mut rows = make();
    rows.candidates[1][2][0] = candidate(f32::NEG_INFINITY, 9);
    rows.candidates[0][2][0] = candidate(f32::NEG_INFINITY, 900);
    rows.candidates[1][5][3] = candidate(f32::NAN, 9);
    check(&rows, Places::ByKind, 0, &[(2, 2), (5, 1)]);
    // Status words of the rows themselves.
    let mut rows = make();
    (rows.own[1], rows.own[4]) = (LMHEAD_STATUS_BAD_INDEX | LMHEAD_STATUS_NONFINITE, LMHEAD_STATUS_NONFINITE);
    check(&rows, Places::Each(4), 0, &[(1, 3), (4, 1)]);
    // Illegal parameters.
    for wrong in [
        SamplingParams { temperature: -1.0, ..plain },
        SamplingParams { temperature: f32::NAN, ..plain },
        SamplingParams { temperature: f32::INFINITY, ..plain },
        SamplingParams { top_p: 0.0, ..plain },
        SamplingParams { top_p: f32::NAN, ..plain },
        SamplingParams { top_p: 1.5, ..plain },
        SamplingParams { min_p: -0.5, ..plain },
        SamplingParams { min_p: f32::NAN, ..plain },
        SamplingParams { min_p: 1.5, ..plain },
    ] {
        let mut rows = make();
        rows.params[4] = wrong;
        check(&rows, Places::Each(5), 0, &[(4, 3)]);
    }
    // A row that needs more candidates than there are places; and a message that ends too early.
    let mut rows = make();
    rows.params[0].top_k = 6;
    check(&rows, Places::Each(4), 0, &[(0, 3)]);
    check(&make(), Places::ByKind, 8, &[(5, 3)]);
}

/// Checks that messages of wrong sizes or places are refused before anything is launched.
///
/// # Panics
/// Where they are not, or the error names something else.
pub fn misplaced_messages_are_refused<D: KernelDevice>(backend: &DeviceBackend<D>) {
    let head = TestHead::random(64, 16, DType::Bf16, Quantization::None, 1);
    let mut loaded = backend.load(&head.shard(0..64), DType::Bf16).expect("memory");
    let memory = Backend::memory(backend);
    let params = [SamplingParams { top_k: 3, ..SamplingParams::default() }; 4];
    let space = Placed::new(backend, memory, &[0; 1024]);
    let mut out = Placed::new(backend, memory, &[0; 1024]);
    let shards = [0..128, 128..200];
    type Change<'a> = &'a dyn Fn(&mut Case);
    struct Case {
        bytes: Range<usize>,
        starts: Vec<usize>,
        rows: Range<usize>,
        device_params: bool,
        params_in: Memory,
        places: Places,
        vocab: usize,
        tokens: usize,
    }
    let cases: [(&str, Change<'_>); 10] = [
        ("candidates of the shards", &|case| case.bytes = 0..184),
        ("candidates of the shards", &|case| case.starts = vec![0, 104]),
        ("candidates of the shards", &|case| case.starts = vec![0]),
        ("candidates of the shards", &|case| case.bytes = 4..1020),
        ("candidates of the shards", &|case| case.vocab = 201),
        ("candidates of the shards", &|case| case.places = Places::Each(4)),
        ("candidates of each row and shard", &|case| case.places = Places::Each(0)),
        ("sampling parameters", &|case| (case.device_params, case.rows) = (true, 0..127)),
        ("sampling parameters", &|case| (case.device_params, case.params_in) = (true, Memory::Host)),
        ("tokens", &|case| case.tokens = 12),
    ];
    for (name, change) in cases {
        let mut case = Case {
            bytes: 0..192,
            starts: vec![0, 96],
            rows: 0..128,
            device_params: false,
            params_in: memory,
            places: Places::ByKind,
            vocab: 200,
            tokens: 16,
        };
        change(&mut case);
        let words = [0u64; 16];
        let device = match case.params_in {
            Memory::Host => Span::host(&words[..]),
            _ => space.span().part(case.rows),
        };
        let (ids, rest) = out.span_mut().split_at(32);
        let (tokens, rest) = rest.split_at(case.tokens);
        let what = Finish::Draw {
            from: Messages {
                bytes: space.span().part(case.bytes),
                starts: &case.starts,
                shards: &shards,
                rows: 4,
                answered: 4,
                own: Span::EMPTY,
            },
            sampling: if case.device_params {
                RowSampling::Device(device)
            } else {
                RowSampling::Host(&params)
            },
            places: case.places,
            vocab_size: case.vocab,
            ids,
            tokens,
            row_status: rest.part(0..4),
        };
        let refused = loaded.finish(what, &mut FinishScratch::default(), &mut On::default()).unwrap_err();
        assert!(refused.to_string().contains(name), "{name}: {refused}");
    }
}

const HIDDEN: usize = 16;

/// Cases of draws in a matmul: rows, ids of the shard, and ids of the vocabulary before it.
const PRODUCTS: [(usize, usize, usize); 8] = [
    (3, 1, 0),
    (9, 63, 64),
    (70, 65, 0),
    (17, 129, 128),
    (5, 2048, 0),
    (3, 2100, 640),
    (8, 4200, 0),
    (40, 200, 64),
];

/// Checks that a device's matmul, in host and device memory, draws what the CPU's does, and that the CPU's
/// draws the same as from held logits.
///
/// # Panics
/// Where something differs, with the seed.
pub fn of_products_are_the_cpus<D: KernelDevice>(backend: &DeviceBackend<D>, cpu: &CpuBackend, seed: u64) {
    for (i, size) in PRODUCTS.into_iter().enumerate() {
        of_a_product_are_the_cpus(backend, cpu, (size, HIDDEN), seed + 10 * i as u64);
    }
}

/// The same for one product: rows, ids of the shard, ids of the vocabulary before it; and the hidden size.
///
/// # Panics
/// Where something differs, with the seed.
pub fn of_a_product_are_the_cpus<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    cpu: &CpuBackend,
    size: ((usize, usize, usize), usize),
    seed: u64,
) {
    for kind in 0..4 {
        product(backend, cpu, size, kind, seed + kind);
    }
}

/// An int8 head, whose logits are the CPU's in every bit. By `kind`: few values, which tie everywhere; usual
/// values; one id far above all others; or logits so large that f32 would lose the noise.
fn int8_head(ids: Range<usize>, hidden: usize, kind: u64, random: &mut Random) -> Arc<HeadShard> {
    let spread = if kind == 0 { 1 } else { 60 };
    let one = |random: &mut Random| (random.below(2 * spread + 1) as i32 - spread as i32) as i8;
    let values: Vec<i8> = (0..ids.len() * hidden).map(|_| one(random)).collect();
    let above = random.below(ids.len());
    let bias = (0..ids.len()).map(|id| if kind == 2 && id == above { 300.0 } else { 0.0 }).collect();
    let scale = [0.5, 0.02, 0.02, 1e34][kind as usize];
    let matrix = Matrix::I8 { values: values.into(), scales: vec![scale; ids.len()] };
    // A shard that does not end at a block is the last one.
    let vocab = if ids.end.is_multiple_of(64) { ids.end + 64 } else { ids.end };
    Arc::new(HeadShard::new(ids, vocab, hidden, Quantization::W8a8, matrix, Some(bias)).expect("a shard"))
}

fn product<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    cpu: &CpuBackend,
    ((rows, ids, first), columns): ((usize, usize, usize), usize),
    kind: u64,
    seed: u64,
) {
    let what = format!("{rows} rows, ids {first}..{}, kind {kind}, seed {seed}", first + ids);
    let mut random = Random(seed);
    let shard = int8_head(first..first + ids, columns, kind, &mut random);
    let vocab = shard.info().vocab_size;
    let mut values: Vec<f32> = (0..rows * columns).map(|_| random.below(9) as f32 - 4.0).collect();
    if rows > 2 {
        values[columns] = f32::NAN;
    }
    let mut bytes = vec![0; 2 * values.len()];
    DType::Bf16.round_into(&values, &mut bytes);
    let hidden = HiddenRows::new(&bytes, DType::Bf16, rows, columns).expect("rows");
    // The last row allows no id, the others every third one.
    let words = vocab.div_ceil(32);
    let mask = (0..rows * words)
        .map(|i| if i / words + 1 < rows { 0x4924_9249u32.rotate_left(i as u32) as i32 } else { 0 });
    let own = crate::adjusting::OwnAdjustments {
        vocab,
        rows,
        mask: Some(mask.collect()),
        logit_bias: None,
        penalties: None,
    };
    let mut masked = ShardAdjustments::new(first..first + ids);
    own.with(|all| masked.push_encoded(&all.encode(0..rows, first..first + ids, vocab), rows))
        .expect("a slice");
    let params: Vec<SamplingParams> = (0..rows)
        .map(|row| SamplingParams {
            seed: random.next(),
            position: row as u64,
            temperature: [0.0, 1.0, 0.6, 20.0][random.below(4)],
            ..SamplingParams::default()
        })
        .collect();
    let there: Vec<SamplingRow> = params.iter().map(|params| params.to_row(vocab)).collect();
    let there = Placed::new(backend, Backend::memory(backend), bytemuck::cast_slice(&there));
    for adjustments in [None, Some(&masked)] {
        let job = Job { rows: hidden, epilogue: Epilogue::default(), adjustments, placed: None };
        let mut theirs = cpu.load(&shard, DType::Bf16).expect("the CPU's");
        let mut loaded = backend.load(&shard, DType::Bf16).expect("memory");
        let mut wanted = vec![Candidate { value: 1.0, id: 7 }; rows];
        let out = Out::Drawn(RowSampling::Host(&params), SpanMut::host(&mut wanted[..]));
        theirs.run(&job, out, &mut On::default()).expect("the CPU's draws");
        let mut of_held = vec![Candidate { value: 1.0, id: 7 }; rows];
        let held = theirs.hold(&job, false, &mut On::default()).expect("held logits");
        let each: Vec<_> =
            params.iter().map(|&params| Wanted::Drawn { params, kept: None }).enumerate().collect();
        held.pass(Pass::Candidates { rows: &each, out: SpanMut::host(&mut of_held[..]) }).expect("draws");
        let bits = |all: &[Candidate]| -> Vec<(u32, u32)> {
            all.iter()
                .map(|c| (c.value.to_bits(), if c.value > f32::NEG_INFINITY { c.id } else { 0 }))
                .collect()
        };
        assert_eq!(bits(&wanted), bits(&of_held), "{what}, the CPU's");
        for (memory, sampling) in [
            (Memory::Host, RowSampling::Host(&params)),
            (Backend::memory(backend), RowSampling::Host(&params)),
            (Memory::Host, RowSampling::Device(there.span())),
            (Backend::memory(backend), RowSampling::Device(there.span())),
        ] {
            let mut out = Placed::new(backend, memory, &vec![0xa5; 8 * rows]);
            loaded.run(&job, Out::Drawn(sampling, out.span_mut()), &mut On::default()).expect("draws");
            let got: Vec<Candidate> = bytemuck::pod_collect_to_vec(&out.read());
            let masked = adjustments.is_some();
            assert_eq!(bits(&got), bits(&wanted), "{what}, {memory}, {sampling:?}, masked {masked}");
        }
    }
}

/// Checks that a matmul only draws for rows without filters: it refuses parameters with filters in host
/// memory, and gives rows whose filters only the device sees an infinite candidate.
///
/// # Panics
/// Where it does not.
pub fn of_filtered_rows_are_refused<D: KernelDevice>(backend: &DeviceBackend<D>, cpu: &CpuBackend) {
    let head = TestHead::random(128, HIDDEN, DType::Bf16, Quantization::None, 1);
    let hidden = vec![0; 2 * 6 * HIDDEN];
    let rows = HiddenRows::new(&hidden, DType::Bf16, 6, HIDDEN).expect("rows");
    let job = Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let plain = SamplingParams::default();
    let filters = [
        SamplingParams { top_k: 5, ..plain },
        SamplingParams { top_p: 0.5, ..plain },
        SamplingParams { min_p: 0.1, ..plain },
        SamplingParams { temperature: f32::NAN, ..plain },
    ];
    let mut loaded = backend.load(&head.shard(0..128), DType::Bf16).expect("memory");
    let mut theirs = cpu.load(&head.shard(0..128), DType::Bf16).expect("the CPU's");
    let mut out = [Candidate { value: 0.0, id: 0 }; 6];
    for filter in &filters[..3] {
        let params = [plain, plain, *filter, plain, plain, plain];
        for loaded in [&mut loaded, &mut theirs] {
            let draws = Out::Drawn(RowSampling::Host(&params), SpanMut::host(&mut out[..]));
            let refused = loaded.run(&job, draws, &mut On::default()).unwrap_err().to_string();
            assert!(refused.contains("filters of row 2"), "{refused}");
        }
    }
    let params = [plain, filters[0], filters[1], plain, filters[2], filters[3]];
    let there: Vec<SamplingRow> = params.iter().map(|params| params.to_row(128)).collect();
    let there = Placed::new(backend, Backend::memory(backend), bytemuck::cast_slice(&there));
    for shard in [0..128, 128..128] {
        let mut loaded = backend.load(&head.shard(shard.clone()), DType::Bf16).expect("memory");
        let draws = Out::Drawn(RowSampling::Device(there.span()), SpanMut::host(&mut out[..]));
        loaded.run(&job, draws, &mut On::default()).expect("draws");
        let told = out.map(|candidate| candidate.value == f32::INFINITY);
        assert_eq!(told, [false, true, true, false, true, true], "{shard:?}: {out:?}");
    }
    let short = RowSampling::Device(there.span().part(0..160));
    let refused = loaded.run(&job, Out::Drawn(short, SpanMut::host(&mut out[..])), &mut On::default());
    assert!(refused.unwrap_err().to_string().contains("sampling parameters"));
    let draws = Out::Drawn(RowSampling::Device(there.span()), SpanMut::host(&mut out[..5]));
    assert!(loaded.run(&job, draws, &mut On::default()).unwrap_err().to_string().contains("40"));
}

/// Checks that a device draws each id as often as the filtered softmax says: in a matmul, and from held
/// logits of two shards.
///
/// # Panics
/// Where it does not, with the seed.
pub fn are_as_often_as_the_softmax_says<D: KernelDevice>(backend: &DeviceBackend<D>) {
    const DRAWS: usize = 1000;
    let plain = SamplingParams::default();
    let cases = [
        ("temperature 1", plain),
        ("top_k 20, top_p 0.8", SamplingParams { top_k: 20, top_p: 0.8, ..plain }),
        ("top_k 40, min_p 0.05", SamplingParams { top_k: 40, min_p: 0.05, temperature: 2.0, ..plain }),
    ];
    let (memory, seed) = (Backend::memory(backend), 77u64);
    let mut logits: Vec<f32> = Random(seed).normals(200).into_iter().map(|l| 2.0 * l).collect();
    let mut bytes = vec![0; 2 * logits.len()];
    DType::Bf16.round_into(&logits, &mut bytes);
    DType::Bf16.widen(&bytes, &mut logits);
    // A head whose logits for the row [1] are `logits`.
    let head = TestHead {
        vocab: logits.len(),
        hidden: 1,
        dtype: DType::Bf16,
        quantization: Quantization::None,
        weights: logits.clone(),
        bias: None,
    };
    let ones: Vec<u8> = (0..DRAWS).flat_map(|_| half::bf16::ONE.to_le_bytes()).collect();
    let rows = HiddenRows::new(&ones, DType::Bf16, DRAWS, 1).expect("rows");
    let job = Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let shards = [0..128, 128..200];
    let mut loaded = shards.clone().map(|ids| backend.load(&head.shard(ids), DType::Bf16).expect("memory"));
    for (name, params) in cases {
        let all: Vec<SamplingParams> = (0..DRAWS as u64)
            .map(|n| SamplingParams { seed: seed << 32 | n, position: 5, ..params })
            .collect();
        let each = places(&params, logits.len(), 64);
        let starts = [0, 8 * each * DRAWS];
        let mut came = Placed::new(backend, memory, &vec![0; 2 * starts[1]]);
        for (loaded, start) in loaded.iter_mut().zip(starts) {
            let out = came.span_mut().part(start..start + starts[1]);
            if params.top_k == 0 {
                let draws = Out::Drawn(RowSampling::Host(&all), out);
                loaded.run(&job, draws, &mut On::default()).expect("draws");
                continue;
            }
            let wanted: Vec<_> = (0..DRAWS).map(|row| (row, Wanted::Best { k: each })).collect();
            let held = loaded.hold(&job, false, &mut On::default()).expect("held logits");
            held.pass(Pass::Candidates { rows: &wanted, out }).expect("candidates");
        }
        let mut ids = Placed::new(backend, memory, &[0; 8 * DRAWS]);
        let mut status = Placed::new(backend, memory, &[9; DRAWS]);
        let what = Finish::Draw {
            from: Messages {
                bytes: came.span(),
                starts: &starts,
                shards: &shards,
                rows: DRAWS,
                answered: DRAWS,
                own: Span::EMPTY,
            },
            sampling: RowSampling::Host(&all),
            places: Places::ByKind,
            vocab_size: logits.len(),
            ids: ids.span_mut(),
            tokens: SpanMut::host::<u32>(&mut []),
            row_status: status.span_mut(),
        };
        loaded[0].finish(what, &mut FinishScratch::default(), &mut On::default()).expect("draws");
        assert_eq!(status.read(), [0; DRAWS], "{name}");
        let mut counts = vec![0; logits.len()];
        let ids: Vec<i64> = bytemuck::pod_collect_to_vec(&ids.read());
        ids.iter().for_each(|id| counts[*id as usize] += 1);
        let p = distribution(&logits, &params);
        assert!(counts.iter().zip(&p).all(|(n, p)| *n == 0 || *p > 0.0), "{name}: ids that are filtered out");
        let expected: Vec<f64> = p.iter().map(|p| p * DRAWS as f64).collect();
        let (statistic, degrees) = chi_square(&counts, &expected);
        assert!(degrees >= 8, "{name}: {degrees} degrees of freedom test little");
        let said =
            format!("{name}, seed {seed}: chi-square {statistic:.1} with {degrees} degrees of freedom");
        assert!(statistic < limit(degrees), "{said}");
    }
}
