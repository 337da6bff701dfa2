//! After a few warm-up rounds a step allocates nothing: checked with an allocator that counts the calls of
//! all threads. [`CASES`] lists the cases.
//!
//! ```text
//! cargo test --test allocations                  # all cases
//! cargo test --test allocations -- exchange      # those with `exchange` in their name
//! LMHEAD_ALLOCATION_BACKTRACES=3 ...             # and where the first unwanted calls came from
//! ```

use lmhead::LmHead;
use lmhead::adjust::{Adjustments, Counts as TokenCounts, LogitBias, Penalties, ShardAdjustments};
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Ask, Job, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::backend::{HistogramQuery, TiesQuery, Wanted};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::exchange::{Call, Exchange, Operation, local};
use lmhead::head::StepOptions;
use lmhead::layout::{HeadGroup, ParallelLayout};
use lmhead::memory::{Span, SpanMut};
use lmhead::merge::Candidate;
use lmhead::merge::PartialSpec;
use lmhead::result::{AnswerBuffers, NO_TARGET_ID, Request, RowInputs, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::synthetic::{self, Spec};
use lmhead_testkit::adjusting::OwnAdjustments;
use lmhead_testkit::allocations::{
    Case, CountingAllocator, Counts, Rounds, counted, run_cases, steady, steady_ranks,
};
use lmhead_testkit::engine::{self, Functions};
use lmhead_testkit::{Random, TestHead, local_group};
use rayon::prelude::*;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The cases run one after the other on the program's main thread.
const CASES: [Case; 23] = [
    ("the allocator counts every call of every thread", the_allocator_counts),
    ("a round that allocates now and then is found", what_allocates_is_found),
    ("the exchange gathers small messages", || exchange_gathers(&[64, 0, 7, 500])),
    ("the exchange gathers large messages", || exchange_gathers(&[100_000, 0, 513, 5_000])),
    ("the exchange sends every member its piece", exchange_sends_pieces),
    ("the exchange gathers within parts of a group", exchange_gathers_within_parts),
    ("the exchange notes places", exchange_notes_places),
    ("the exchange gives back what it keeps", exchange_gives_back),
    ("the exchange by callbacks carries pieces", || callbacks_carry_pieces(Functions::ALL)),
    ("the exchange by callbacks with one function", || callbacks_carry_pieces(Functions::LEAST)),
    ("the pool takes a caller's job", || pool_takes_jobs(1)),
    ("the pool takes the jobs of several callers", || pool_takes_jobs(4)),
    ("a shard on the CPU answers every request", || loaded_shard_answers(Quantization::None, false)),
    ("a shard on the CPU that quantises rows", || loaded_shard_answers(Quantization::W8a8, false)),
    ("a shard on emulated tiles answers every request", || loaded_shard_answers(Quantization::None, true)),
    ("a shard on emulated tiles that widens weights", || loaded_shard_answers(Quantization::W8a16, true)),
    ("a shard on emulated tiles that quantises rows", || loaded_shard_answers(Quantization::W8a8, true)),
    ("rayon's loops that a step may use", rayons_quiet_loops),
    ("rayon's loops that a step may not use", rayons_loops_that_allocate),
    ("a head alone answers every request", || heads_answer(1, 1, &local_group)),
    ("the heads of a data-parallel group answer every request", || heads_answer(3, 1, &local_group)),
    ("the heads of a tensor-parallel group answer every request", || heads_answer(2, 2, &local_group)),
    ("the heads of a group over callbacks answer every request", || heads_answer(2, 2, &one_function)),
];

fn main() {
    run_cases(&CASES);
}

fn the_allocator_counts() {
    let ((), all, mine) = counted(|| {
        let mut bytes: Vec<u8> = black_box(Vec::with_capacity(10));
        bytes.reserve_exact(1000);
        drop(black_box(bytes));
    });
    let one_each = Counts { allocations: 1, reallocations: 0, frees: 1 };
    // Growing a vector counts as an allocation or a reallocation, whichever the library makes of it.
    assert!(all == mine && all.allocations + all.reallocations == 2 && all.frees > 0, "{all}");
    let ((), all, mine) = counted(|| drop(black_box(vec![0u64; 100])));
    assert_eq!((all, mine), (one_each, one_each));
    let ((), all, mine) = counted(|| {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| (0..1000).for_each(|i| drop(black_box(Box::new(i)))));
            thread.join().expect("a thread that ends");
        });
    });
    assert!(all.allocations >= 1000 && mine.allocations < 100, "{all}, of them here {mine}");
}

fn what_allocates_is_found() {
    let rounds = Rounds { warm_up: 3, counted: 100 };
    let once = |round: u64| {
        if round == 50 {
            drop(black_box(Box::new(round)));
        }
    };
    let told = rounds.run(once).expect_err("one allocation and one free");
    assert!(told.contains("1 allocations, 0 reallocations, 1 frees"), "{told}");
    let told = rounds.run_ranks(3, |rank| move |round| once(round + rank as u64)).expect_err("three of each");
    assert!(told.contains("got 3 allocations, 0 reallocations, 3 frees"), "{told}");
    // Allocations in the warm-up are not counted.
    let first = |round: u64| {
        if round < 3 {
            drop(black_box(Box::new(round)))
        }
    };
    assert_eq!(rounds.run(first), Ok(()));
    let mut kept = Some(Box::new(7));
    assert_eq!(
        rounds.run(|round| kept = kept.take().filter(|_| round < 50)),
        Ok(()),
        "a free of what was there"
    );
}

fn call(operation: Operation, step: u64) -> Call {
    let began = Instant::now();
    let deadline = began + Duration::from_secs(30);
    Call { head: 1, instance: 0, epoch: 0, step, operation, terms: 0, began, deadline }
}

/// Splits `bytes` into `N` consecutive pieces of `len(i)` bytes each.
fn cut<const N: usize>(mut bytes: &mut [u8], len: impl Fn(usize) -> usize) -> [&mut [u8]; N] {
    std::array::from_fn(|i| bytes.split_off_mut(..len(i)).expect("room for all pieces"))
}

const RANKS: usize = 4;

/// Gathers of up to `sizes` bytes; the length of each member's part changes from step to step.
fn exchange_gathers(sizes: &[usize; RANKS]) {
    let (endpoints, everyone) = (local::group(RANKS), [0, 1, 2, 3]);
    steady_ranks(RANKS, |me| {
        let endpoint = &endpoints[me];
        let send = vec![me as u8; 100_000];
        let mut recv = vec![9; RANKS * 100_000];
        move |step| {
            let len = |member: usize| sizes[(member + step as usize) % RANKS];
            let mut pieces: [&mut [u8]; RANKS] = cut(&mut recv, len);
            let call = call(Operation::GatherRows, step);
            endpoint.all_gather_v(&call, &everyone, &send[..len(me)], &mut pieces).unwrap();
            for (member, piece) in pieces.iter().enumerate() {
                assert!(piece.iter().all(|byte| usize::from(*byte) == member));
            }
        }
    });
}

/// Small and large messages in turn.
fn exchange_sends_pieces() {
    let endpoints = local::group(RANKS);
    steady_ranks(RANKS, |me| {
        let endpoint = &endpoints[me];
        let send: Vec<Vec<u8>> = (0..RANKS).map(|to| vec![(16 * me + to) as u8; 20_000]).collect();
        let mut recv = vec![9; RANKS * 20_000];
        move |step| {
            let len = |from: usize, to: usize| (from + to) * if step.is_multiple_of(2) { 3 } else { 2000 };
            let pieces: [&[u8]; RANKS] = std::array::from_fn(|to| &send[to][..len(me, to)]);
            let mut arrived: [&mut [u8]; RANKS] = cut(&mut recv, |from| len(from, me));
            let call = call(Operation::ExchangeResults, step);
            endpoint.all_to_all_v(&call, &pieces, &mut arrived).unwrap();
            for (from, piece) in arrived.iter().enumerate() {
                assert!(piece.iter().all(|byte| usize::from(*byte) == 16 * from + me));
            }
        }
    });
}

/// The pattern of replicas with two tensor-parallel ranks: rows are gathered within a part, results among
/// all.
fn exchange_gathers_within_parts() {
    let endpoints = local::group(RANKS);
    steady_ranks(RANKS, |me| {
        let endpoint = &endpoints[me];
        let part = [me % 2, me % 2 + 2];
        let send = vec![me as u8; 3000];
        let mut recv = vec![9; RANKS * 3000];
        move |step| {
            for len in [8, 3000] {
                let mut pieces: [&mut [u8]; 2] = cut(&mut recv, |_| len);
                let call = call(Operation::GatherRows, step);
                endpoint.all_gather_v(&call, &part, &send[..len], &mut pieces).unwrap();
                assert_eq!([pieces[0][len - 1], pieces[1][len - 1]].map(usize::from), part);
                let mut pieces: [&mut [u8]; RANKS] = cut(&mut recv, |_| len);
                let call = Call { operation: Operation::ExchangeResults, ..call };
                endpoint.all_to_all_v(&call, &[&send[..len]; RANKS], &mut pieces).unwrap();
                assert_eq!(pieces.map(|piece| usize::from(piece[0])), [0, 1, 2, 3]);
            }
        }
    });
}

/// Exchanges over an engine whose only function is `all_to_all`.
fn one_function(size: usize) -> Vec<Arc<dyn Exchange>> {
    engine::group_of(size, Functions::LEAST, |_, _, _| None)
}

/// Gathers over all members and over parts, and pieces for each member, with lengths that change.
fn callbacks_carry_pieces(functions: Functions) {
    let endpoints = engine::group_of(RANKS, functions, |_, _, _| None);
    steady_ranks(RANKS, |me| {
        let (_, channel) = endpoints[me].channel(1).unwrap();
        let send = vec![me as u8; 3000];
        let mut recv = vec![9; RANKS * 3000];
        let parts: [&[usize]; 3] = [&[0, 1, 2, 3], &[0, 2], &[1, 3]];
        move |step| {
            let len = |from: usize| (from + step as usize) % 3 * 1000;
            for part in [parts[0], parts[1 + me % 2]] {
                channel.note(&call(Operation::GatherRows, step));
                let (mut pieces, mut rest): ([&mut [u8]; RANKS], _) = (Default::default(), &mut recv[..]);
                for (piece, &from) in pieces.iter_mut().zip(part) {
                    *piece = rest.split_off_mut(..len(from)).unwrap();
                }
                let call = call(Operation::GatherRows, step);
                channel.all_gather_v(&call, part, &send[..len(me)], &mut pieces[..part.len()]).unwrap();
                for (piece, &from) in pieces.iter().zip(part) {
                    assert!(piece.iter().all(|byte| usize::from(*byte) == from));
                }
            }
            let mut pieces: [&mut [u8]; RANKS] = cut(&mut recv, len);
            let call = call(Operation::ExchangeResults, step);
            channel.all_to_all_v(&call, &[&send[..len(me)]; RANKS], &mut pieces).unwrap();
            let is_whole =
                |(from, piece): (usize, &&mut [u8])| piece.iter().all(|byte| usize::from(*byte) == from);
            assert!(pieces.iter().enumerate().all(is_whole));
            assert_eq!(channel.pending_fault(), None);
        }
    });
}

fn exchange_notes_places() {
    let endpoints = local::group(RANKS);
    steady_ranks(RANKS, |me| {
        let endpoint = &endpoints[me];
        move |step| {
            endpoint.note(&call(Operation::Contract, step));
            endpoint.note(&call(Operation::Idle, step));
            assert_eq!(endpoint.pending_fault(), None);
        }
    });
    let places = endpoints[0].places();
    assert!(places.iter().all(|place| place.is_some_and(|place| place.operation == Operation::Idle)));
}

fn exchange_gives_back() {
    let endpoint = local::group(1).remove(0);
    let (send, mut recv) = (vec![3; 100_000], vec![0; 100_000]);
    let mut gather = |step| {
        let call = call(Operation::GatherRows, step);
        counted(|| endpoint.all_gather_v(&call, &[0], &send, &mut [&mut recv]).unwrap()).1
    };
    let (first, second) = (gather(0), gather(1));
    assert!(first.allocations > 0 && second == Counts::NONE, "{first}, then {second}");
    let ((), given_back, _) = counted(|| endpoint.release_memory());
    assert!(given_back.frees > 0, "{given_back}");
    let (next, last) = (gather(2), gather(3));
    assert!(next.allocations > 0 && last == Counts::NONE, "{next}, then {last}");
}

/// Leaks a value that owns threads. Dropping a pool does not wait for its threads, which would allocate while
/// they end, during the next case.
fn lasting<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// On pools of one and of several threads; each job is cut into pieces that all threads work on.
fn pool_takes_jobs(callers: usize) {
    let bytes = vec![1u8; 8 << 20];
    for threads in [1, 3] {
        let backend = lasting(CpuBackend::new(Some(threads)).unwrap());
        let take = |round: u64| {
            let part = &bytes[..if round.is_multiple_of(2) { 64 } else { bytes.len() }];
            let sum = (part.len() as u64 / 8).wrapping_mul(0x0101_0101_0101_0101);
            assert_eq!(backend.read_stream(part), Ok(sum));
        };
        match callers {
            1 => steady(take),
            _ => steady_ranks(callers, |_| take),
        }
    }
}

/// Every call of a loaded shard: with few rows, with several, and with more than one product takes.
fn loaded_shard_answers(quantization: Quantization, emulated_tiles: bool) {
    const ROWS: usize = 270;
    const VOCAB: usize = 3000;
    let (hidden_size, dtype) = (80, DType::Bf16);
    let spec = Spec { vocab_size: VOCAB, hidden_size, dtype };
    let shard = synthetic::shard(&spec, 0, 0..VOCAB, quantization, None).unwrap();
    let shard = Arc::new(shard);
    let x: Vec<u8> =
        (0..ROWS as u64).flat_map(|row| synthetic::hidden_row(0, row, hidden_size, dtype)).collect();
    let x = HiddenRows::new(&x, dtype, ROWS, hidden_size).unwrap();
    let picks: Vec<i64> = (0..ROWS as i64).rev().collect();
    let own = OwnAdjustments::random(ROWS, VOCAB, &mut Random(7));
    let adjustments = [1, 7, ROWS].map(|rows| {
        let mut slice = ShardAdjustments::new(0..VOCAB);
        own.with(|all| slice.push_encoded(&all.encode(0..rows, 0..VOCAB, VOCAB), rows)).unwrap();
        slice
    });
    let (few, many) =
        (PartialSpec { k: 2, sum: true, targets: 0 }, PartialSpec { k: 100, sum: true, targets: 0 });
    let tallied = PartialSpec { k: 5, sum: true, targets: 2 };
    let largest = (ROWS * many.stride(VOCAB)).max(4 * ROWS * VOCAB);
    let mut out = vec![0u64; largest.div_ceil(8)];
    let (mut words, mut values, mut ends) = (vec![0u32; ROWS], vec![0.0; 2 * ROWS], vec![0; ROWS]);
    let (ids, numbers) = (vec![5u32; 2 * ROWS], (0..ROWS).collect::<Vec<_>>());
    let tops = vec![Candidate { value: 0.5, id: 5 }; 2 * ROWS];
    let kept = Kept::new(Scale::new(&SamplingParams::default(), 3.0, VOCAB));
    let digit = Digits::of_rounds(4).each().next().unwrap();
    let queries = vec![HistogramQuery { row: 0, kept, sum: Sum::Masses, digit, key: 0 }; ROWS];
    let mut bins = vec![0; ROWS * digit.bins()];
    let ties = vec![TiesQuery { row: 0, kept, logit: 0.5, allowance: 1 }; ROWS];
    let wanted: Vec<(usize, Wanted)> = (0..ROWS)
        .map(|row| match row % 3 {
            0 => (row, Wanted::Best { k: 50 }),
            1 => (row, Wanted::Drawn { params: SamplingParams::default(), kept: None }),
            _ => (row, Wanted::Drawn { params: SamplingParams::default(), kept: Some(kept) }),
        })
        .collect();
    for threads in [1, 3] {
        let backend = match emulated_tiles {
            true => CpuBackend::with_emulated_amx(Some(threads)),
            false => CpuBackend::new(Some(threads)),
        };
        let backend = lasting(backend.unwrap());
        let loaded = Box::leak(backend.load(&shard, dtype).unwrap());
        for ask in [
            Ask::Logits { dtype: DType::F32 },
            Ask::Partials(few),
            Ask::Partials(many),
            Ask::Hold { raw: true },
        ] {
            loaded.prepare(ROWS, ask).unwrap();
        }
        // One round of each size, because threads of a new pool allocate when they first look for work.
        let counted = if emulated_tiles { 12 } else { 60 };
        let told = Rounds { warm_up: 3, counted }.run(|round| {
            let case = round as usize % 3;
            let rows = [1, 7, ROWS][case];
            let adjustments = (round % 2 == 0).then_some(&adjustments[case]);
            let picked = x.select_i64(&picks[..rows]).unwrap();
            let job = Job { rows: picked, epilogue: Epilogue::default(), adjustments, placed: None };
            let on = &mut On::default();
            for dtype in [DType::F32, DType::Bf16] {
                let (data, stride) = (SpanMut::host(&mut out[..]), VOCAB * dtype.size());
                let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
                loaded.run(&job, Out::Logits(LogitsOut { data, stride, dtype, status }), on).unwrap();
            }
            for spec in [few, many] {
                let out = SpanMut::host(&mut out[..]).part(0..rows * spec.stride(VOCAB));
                loaded.run(&job, Out::Partials(spec, out), on).unwrap();
            }
            let held = loaded.hold(&job, true, on).unwrap();
            for of in [Which::Raw, Which::Adjusted] {
                let targets = Span::host(&ids[..2 * rows]);
                let out_values = SpanMut::host(&mut values[..2 * rows]);
                held.pass(Pass::TargetLogits { of, targets, per_row: 2, out: out_values }).unwrap();
                let out = SpanMut::host(&mut out[..]).part(0..rows * tallied.stride(VOCAB));
                held.pass(Pass::Partials { of, spec: tallied, targets: Span::host(&tops[..2 * rows]), out })
                    .unwrap();
            }
            let rows_of = &numbers[..rows];
            held.pass(Pass::Maxima { rows: rows_of, out: &mut values[..rows] }).unwrap();
            let bins = &mut bins[..rows * digit.bins()];
            held.pass(Pass::Histograms { queries: &queries[..rows], out: bins }).unwrap();
            held.pass(Pass::Ties { queries: &ties[..rows], out: &mut ends[..rows] }).unwrap();
            let places: usize = wanted[..rows].iter().map(|(_, wanted)| wanted.places()).sum();
            let out = SpanMut::host(&mut out[..]).part(0..8 * places);
            held.pass(Pass::Candidates { rows: &wanted[..rows], out }).unwrap();
        });
        assert_eq!(told, Ok(()), "{threads} threads");
    }
}

const ITEMS: usize = 5000;

/// A parallel loop over `ITEMS` numbers, on a thread of the pool.
type Loop = (&'static str, fn(&mut [u64], &mut Vec<u64>));

const QUIET: [Loop; 14] = [
    ("join", |items, _| {
        let (low, high) = items.split_at_mut(ITEMS / 2);
        rayon::join(|| low[0] += 1, || high[0] += 1);
    }),
    ("par_iter_mut, for_each", |items, _| items.par_iter_mut().for_each(|item| *item += 1)),
    ("enumerate", |items, _| items.par_iter_mut().enumerate().for_each(|(i, item)| *item += i as u64)),
    ("zip", |items, kept| items.par_iter_mut().zip(&*kept).for_each(|(item, other)| *item += other)),
    ("par_chunks_mut, zip", |items, kept| {
        let chunks = items.par_chunks_mut(64).zip(kept.par_chunks_exact_mut(64));
        chunks.for_each(|(a, b)| a[0] += b[0]);
    }),
    ("for_each_init", |items, _| items.par_iter_mut().for_each_init(|| 7, |init, item| *item += *init)),
    ("try_for_each", |items, _| {
        let small = |item: &u64| if *item < u64::MAX { Ok(()) } else { Err(()) };
        assert_eq!(items.par_iter().try_for_each(small), Ok(()));
    }),
    ("map, reduce", |items, _| {
        black_box(items.par_iter().map(|item| item ^ 1).reduce(|| 0, u64::wrapping_add));
    }),
    ("reduce_with", |items, _| {
        black_box(items.par_iter().copied().reduce_with(u64::max));
    }),
    ("a range, fold, reduce", |_, _| {
        let fold = (0..ITEMS).into_par_iter().fold(
            || [0u64; 8],
            |mut sums, i| {
                sums[i % 8] += i as u64;
                sums
            },
        );
        black_box(fold.reduce(|| [0; 8], |a, b| std::array::from_fn(|i| a[i] + b[i])));
    }),
    ("filter, sum", |items, _| {
        black_box(items.par_iter().filter(|item| **item % 2 == 0).sum::<u64>());
    }),
    ("any", |items, _| assert!(!items.par_iter().any(|item| *item == u64::MAX))),
    ("collect_into_vec of a vector with room", |items, kept| {
        items.par_iter().map(|item| item ^ 1).collect_into_vec(kept);
    }),
    ("par_sort_unstable", |items, _| items.par_sort_unstable_by_key(|item| item.wrapping_mul(0x9e37_79b9))),
];

const ALLOCATING: [Loop; 5] = [
    ("collect", |items, _| drop(black_box(items.par_iter().map(|item| item ^ 1).collect::<Vec<_>>()))),
    ("par_extend of a filter", |items, kept| {
        kept.clear();
        kept.par_extend(items.par_iter().copied().filter(|item| item % 2 == 1));
        kept.resize(ITEMS, 0);
    }),
    ("scope and spawn", |items, _| rayon::scope(|scope| scope.spawn(|_| items[0] += 1))),
    ("broadcast", |_, _| drop(black_box(rayon::broadcast(|of| of.index())))),
    ("par_sort", |items, _| items.par_sort_by_key(|item| item.wrapping_mul(0x9e37_79b9))),
];

fn told_of(pool: &rayon::ThreadPool, (name, run): Loop) -> Result<(), String> {
    let (mut items, mut kept) = (vec![1; ITEMS], vec![2; ITEMS]);
    pool.install(|| {
        // A worker that was asleep may take its first piece late.
        Rounds { warm_up: 300, counted: 500 }.run(|round| {
            run(&mut items, &mut kept);
            black_box((name, round));
        })
    })
}

fn three_threads() -> &'static rayon::ThreadPool {
    let pool = lasting(rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads"));
    // Waits until the threads have started.
    pool.broadcast(|_| ());
    pool
}

fn rayons_quiet_loops() {
    let pool = three_threads();
    let told = |quiet: Loop| told_of(pool, quiet).err().map(|told| (quiet.0, told));
    assert_eq!(QUIET.into_iter().filter_map(told).collect::<Vec<_>>(), []);
}

fn rayons_loops_that_allocate() {
    let pool = three_threads();
    let quiet = ALLOCATING.into_iter().filter(|loud| told_of(pool, *loud).is_ok()).map(|(name, _)| name);
    assert_eq!(quiet.collect::<Vec<_>>(), [""; 0], "a step may use these");
}

const VOCAB: usize = 700;
const HIDDEN: usize = 24;
const ROWS: usize = 5;

/// Every kind of request, with all that it can ask for.
fn requests() -> [Request; 10] {
    let told = TokenLogprobs { top_n: 3, processed: false };
    [
        Request::logits(DType::F32),
        Request::logits(DType::Bf16),
        Request::argmax(),
        Request::top_k(5),
        Request::top_k(VOCAB),
        Request::Logprobs { targets: 3, top_n: 4, processed: true },
        Request::logprobs(0),
        Request::sample(),
        Request::Sample { logprobs: Some(told) },
        Request::Sample { logprobs: Some(TokenLogprobs { processed: true, ..told }) },
    ]
}

/// What a replica passes with its rows, the same on all of its ranks.
struct Inputs {
    hidden: Vec<f32>,
    targets: Vec<i64>,
    sampling: Vec<SamplingParams>,
    allowed: Vec<i32>,
    offsets: Vec<usize>,
    ids: Vec<i64>,
    ones: Vec<f32>,
    counts: Vec<u32>,
    in_prompt: Vec<bool>,
}

impl Inputs {
    fn new(replica: usize) -> Self {
        let mut random = Random(replica as u64);
        let params = |row: usize, random: &mut Random| {
            let plain = SamplingParams { seed: random.next(), ..SamplingParams::default() };
            match row % ROWS {
                0 => SamplingParams { top_p: 0.8, ..plain },
                1 => SamplingParams { temperature: 0.0, ..plain },
                2 => SamplingParams { top_k: 40, min_p: 0.1, ..plain },
                3 => SamplingParams { min_p: 0.2, ..plain },
                _ => plain,
            }
        };
        Inputs {
            hidden: (0..ROWS * HIDDEN).map(|_| random.below(9) as f32 - 4.0).collect(),
            targets: (0..3 * ROWS)
                .map(|i| if i == 4 { NO_TARGET_ID } else { random.below(VOCAB) as i64 })
                .collect(),
            sampling: (0..ROWS).map(|row| params(row, &mut random)).collect(),
            allowed: vec![-2; ROWS * VOCAB.div_ceil(32)],
            offsets: (0..=ROWS).collect(),
            ids: (0..ROWS).map(|_| random.below(VOCAB) as i64).collect(),
            ones: vec![1.5; ROWS],
            counts: vec![2; ROWS],
            in_prompt: vec![true; ROWS],
        }
    }

    fn of<'a>(&'a self, request: &Request, rows: usize, adjusted: bool) -> RowInputs<'a> {
        let (offsets, ids, ones) = (&self.offsets[..=rows], &self.ids[..rows], &self.ones[..rows]);
        let (counts, in_prompt) = (&self.counts[..rows], &self.in_prompt[..rows]);
        RowInputs {
            targets: match *request {
                Request::Logprobs { targets, .. } => Some(&self.targets[..rows * targets]),
                _ => None,
            },
            sampling: matches!(request, Request::Sample { .. }).then_some(&self.sampling[..rows]),
            adjustments: adjusted.then_some(Adjustments {
                allowed: Some(&self.allowed[..rows * VOCAB.div_ceil(32)]),
                logit_bias: Some(LogitBias { offsets, ids, values: ones }),
                penalties: Some(Penalties {
                    repetition: ones,
                    frequency: ones,
                    presence: ones,
                    counts: TokenCounts { offsets, ids, counts, in_prompt },
                }),
            }),
            ..RowInputs::default()
        }
    }
}

/// The caller's memory for any answer to up to the largest number of rows.
struct Answered {
    row_status: Vec<u8>,
    logits: Vec<f32>,
    ids: Vec<i64>,
    values: Vec<f32>,
    floats: Vec<f32>,
    ranks: Vec<i64>,
    top_ids: Vec<i64>,
    top_logprobs: Vec<f32>,
}

impl Answered {
    fn new() -> Self {
        Answered {
            row_status: vec![9; ROWS],
            logits: vec![0.0; ROWS * VOCAB],
            ids: vec![0; ROWS * VOCAB],
            values: vec![0.0; ROWS * VOCAB],
            floats: vec![0.0; 3 * ROWS],
            ranks: vec![0; 3 * ROWS],
            top_ids: vec![0; 4 * ROWS],
            top_logprobs: vec![0.0; 4 * ROWS],
        }
    }

    fn of(&mut self, request: &Request, rows: usize) -> AnswerBuffers<'_> {
        let none = AnswerBuffers {
            row_status: SpanMut::host(&mut self.row_status[..rows]),
            ..AnswerBuffers::default()
        };
        let told = |targets: usize, top_n: usize| (rows * targets, rows * top_n);
        let (targets, top) = match *request {
            Request::Logits { .. } => {
                return AnswerBuffers { logits: SpanMut::host(&mut self.logits[..rows * VOCAB]), ..none };
            }
            Request::Argmax | Request::Sample { logprobs: None } => {
                return AnswerBuffers { ids: SpanMut::host(&mut self.ids[..rows]), ..none };
            }
            Request::TopK { k } => {
                return AnswerBuffers {
                    ids: SpanMut::host(&mut self.ids[..rows * k]),
                    values: SpanMut::host(&mut self.values[..rows * k]),
                    logsumexp: SpanMut::host(&mut self.floats[..rows]),
                    ..none
                };
            }
            Request::Logprobs { targets, top_n, .. } => told(targets, top_n),
            Request::Sample { logprobs: Some(asked) } => told(1, asked.top_n),
            _ => unreachable!("no other request"),
        };
        AnswerBuffers {
            ids: SpanMut::host(&mut self.ids[..rows]),
            logprobs: SpanMut::host(&mut self.floats[..targets]),
            ranks: SpanMut::host(&mut self.ranks[..targets]),
            top_ids: SpanMut::host(&mut self.top_ids[..top]),
            top_logprobs: SpanMut::host(&mut self.top_logprobs[..top]),
            ..none
        }
    }
}

/// Steps of every request with changing rows, with and without adjustments, in every mode, after a warm-up
/// with the largest number of rows.
fn heads_answer(dp: usize, tp: usize, connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>) {
    let layout = ParallelLayout { dp, tp, ..ParallelLayout::data_parallel(dp) };
    let test = TestHead::random(VOCAB, HIDDEN, DType::F32, Quantization::None, 7);
    let backend: &Arc<dyn Backend> = lasting(Arc::new(CpuBackend::new(Some(2)).unwrap()));
    for request in requests() {
        let endpoints = connect(dp * tp);
        let steps = |rank: usize| {
            let group = HeadGroup::of(rank, &layout, dp * tp).unwrap().unwrap();
            let shard = test.shard(group.shard(VOCAB, rank));
            let (exchange, backend) = (Arc::clone(&endpoints[rank]), Arc::clone(backend));
            let mut head = LmHead::new(&test.config(), group, shard, exchange, backend).unwrap();
            head.warm_up(ROWS, &[request]).unwrap();
            let (inputs, mut answered) = (Inputs::new(rank / tp), Answered::new());
            let mut exact = RowCounts::Exact(Vec::with_capacity(dp));
            move |round: u64| {
                let rows_of = |replica: usize| (round as usize + 2 * replica) % (ROWS + 1);
                let rows = rows_of(rank / tp);
                let counts = match round % 3 {
                    0 => {
                        if let RowCounts::Exact(list) = &mut exact {
                            list.clear();
                            list.extend((0..dp).map(rows_of));
                        }
                        &exact
                    }
                    1 => &RowCounts::discover(rows),
                    _ => &RowCounts::capacity(ROWS, rows),
                };
                let raw = matches!(request, Request::Logprobs { processed: false, .. });
                let adjusted = round % 2 == 1 && !raw;
                let options = StepOptions { adjusted, ..StepOptions::default() };
                let hidden = HiddenRows::from_f32(&inputs.hidden[..rows * HIDDEN], rows, HIDDEN).unwrap();
                let ticket = head.begin(counts, &request, options).unwrap();
                let (of_rows, answer) = (inputs.of(&request, rows, adjusted), answered.of(&request, rows));
                head.run_into(ticket, hidden, &of_rows, answer, On::default()).unwrap();
                assert!(answered.row_status[..rows].iter().all(|status| *status == 0));
            }
        };
        println!("  {request}");
        match dp * tp {
            1 => steady(steps(0)),
            ranks => steady_ranks(ranks, steps),
        }
    }
}
