//! After `fork`, objects from before it refuse by name and at once in the child; what the child makes itself
//! works. A test program of its own, because it forks.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "fork, waitpid, kill and _exit are C functions")]

use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Backend, HeadTypes};
use lmhead::backend::{Job, LoadedShard, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::memory::{Span, SpanMut};
use lmhead::merge::PartialSpec;
use lmhead::result::{Output, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::HeadShard;
use lmhead::weights::synthetic::{self, Spec};
use lmhead_testkit::TestHead;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Limit for the child, whose calls are all expected to return at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs `work` in a forked child and returns its text, or why there is none.
fn in_child(work: impl FnOnce() -> String) -> std::result::Result<String, String> {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    // SAFETY: the child calls `work` and leaves by `_exit`. It has this thread alone; the C library keeps its
    // allocator usable.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        drop(ours);
        let said = catch_unwind(AssertUnwindSafe(work));
        let (text, code) = match &said {
            Ok(text) => (text.as_str(), 0),
            Err(panic) => (panic.downcast_ref::<String>().map_or("a panic", String::as_str), 1),
        };
        let written = theirs.write_all(text.as_bytes());
        drop(theirs);
        // SAFETY: nothing of the parent's, such as its test harness, may run in the child on the way out.
        unsafe { libc::_exit(if written.is_ok() { code } else { 2 }) };
    }
    drop(theirs);
    let began = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
        if ended == child {
            break;
        }
        assert_eq!(ended, 0, "waitpid: {}", std::io::Error::last_os_error());
        if began.elapsed() > DEADLINE {
            // SAFETY: the child is ours and has not been waited for yet.
            unsafe { (libc::kill(child, libc::SIGKILL), libc::waitpid(child, &mut status, 0)) };
            return Err(format!("the child was still there after {DEADLINE:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    if status == 0 { Ok(text) } else { Err(format!("wait status {status:#x}: {text}")) }
}

/// One step of `head` with two rows.
fn step(test: &TestHead, head: &mut LmHead) -> Result<Output> {
    let bytes = test.rows(2, 7);
    let hidden = HiddenRows::new(&bytes, test.dtype, 2, test.hidden)?;
    Ok(head.step(RowCounts::exact(&[2]), &Request::top_k(2))?.run(hidden)?.output)
}

fn head_on(test: &TestHead, backend: Arc<dyn Backend>, exchange: Arc<dyn Exchange>) -> Result<LmHead> {
    let group = HeadGroup::data_parallel(1, 0)?;
    LmHead::new(&test.config(), group, test.shard(0..test.vocab), exchange, backend)
}

fn alone() -> Arc<dyn Exchange> {
    Arc::new(local::group(1).remove(0))
}

/// The calls of a backend and a loaded shard that use threads, by name. `loaded` holds logits.
fn calls(
    backend: &CpuBackend,
    loaded: &mut dyn LoadedShard,
    test: &TestHead,
    shard: &Arc<HeadShard>,
) -> Vec<(&'static str, Result<()>)> {
    let bytes = test.rows(2, 7);
    let rows = HiddenRows::new(&bytes, test.dtype, 2, test.hidden).unwrap();
    let job = Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let (stride, spec) = (4 * test.vocab, PartialSpec { k: 2, sum: true, targets: 0 });
    let (mut logits, mut status) = (vec![0u8; 2 * stride], [0u32; 2]);
    let status = Status::Apart { words: SpanMut::host(&mut status[..]), stride: 4 };
    let data = SpanMut::host(&mut logits[..]);
    let logits = Out::Logits(LogitsOut { data, stride, dtype: DType::F32, status });
    let mut partials = vec![0u64; 2 * spec.stride(test.vocab) / 8];
    let mut told = partials.clone();
    let mut largest = [0.0; 2];
    let types = HeadTypes::of(shard, test.dtype);
    let mut said = vec![
        ("load", backend.load(shard, test.dtype).map(|_| ())),
        ("run to logits", loaded.run(&job, logits, &mut On::default())),
        (
            "run to partials",
            loaded.run(&job, Out::Partials(spec, SpanMut::host(&mut partials[..])), &mut On::default()),
        ),
        ("hold", loaded.hold(&job, false, &mut On::default()).map(|_| ())),
    ];
    // SAFETY: no workspace was given.
    let held = unsafe { loaded.held() }.expect("held logits, of this call or an earlier one");
    let maxima = Pass::Maxima { rows: &[0, 1], out: &mut largest };
    let (of, out) = (Which::Adjusted, SpanMut::host(&mut told[..]));
    let partials = Pass::Partials { of, spec, targets: Span::EMPTY, out };
    said.extend([
        ("maxima of held logits", held.pass(maxima)),
        ("partials of held logits", held.pass(partials)),
        ("read_stream", backend.read_stream(&bytes).map(|_| ())),
        ("arithmetic_rate", backend.arithmetic_rate(types, Duration::from_millis(1)).map(|_| ())),
    ]);
    said
}

/// A rank's peers are threads that the child does not have. One may hold a lock at the fork: here it is in
/// the middle of its steps all the time.
#[test]
fn a_group_that_was_made_before_a_fork_refuses_at_once_in_the_child() {
    let test = TestHead::random(300, 64, DType::Bf16, Quantization::None, 3);
    let backend = Arc::new(CpuBackend::new(Some(2)).unwrap());
    let make = |me: usize, endpoint| {
        let group = HeadGroup::data_parallel(2, me).unwrap();
        let shard = test.shard(group.shard(test.vocab, me));
        LmHead::new(&test.config(), group, shard, Arc::new(endpoint), backend.clone()).unwrap()
    };
    let step = |head: &mut LmHead| {
        let bytes = test.rows(1, 7);
        let hidden = HiddenRows::new(&bytes, test.dtype, 1, test.hidden).unwrap();
        head.step(RowCounts::exact(&[1, 1]), &Request::argmax())?.run(hidden)
    };
    let [ours, theirs] = local::group(2).try_into().expect("two endpoints");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut head = make(1, theirs);
            while step(&mut head).is_ok() {}
            assert!(stop.load(Ordering::SeqCst), "{:?}", head.poisoned());
        });
        let mut head = make(0, ours);
        for _ in 0..20 {
            for _ in 0..10 {
                step(&mut head).unwrap();
            }
            // The other rank is in its next step at this moment.
            let said = in_child(|| {
                let began = Instant::now();
                let error = step(&mut head).unwrap_err();
                assert!(matches!(error, Error::Unsupported { .. }), "{error}");
                assert!(matches!(head.rebuild(), Err(Error::Unsupported { .. })));
                assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
                "good".into()
            });
            assert_eq!(said, Ok("good".into()));
        }
        stop.store(true, Ordering::SeqCst);
        drop(head);
    });
}

#[test]
fn what_was_made_before_a_fork_refuses_by_name_and_what_is_made_after_it_works() {
    for quantization in [Quantization::None, Quantization::W8a8] {
        let test = TestHead::random(300, 64, DType::Bf16, quantization, 3);
        let shard = test.shard(0..test.vocab);
        // Made on rayon's global pool, whose threads the child does not have, either.
        let spec = Spec { vocab_size: 300, hidden_size: 64, dtype: DType::Bf16 };
        let made = synthetic::shard(&spec, 3, 0..300, quantization, None).unwrap();
        let backend = Arc::new(CpuBackend::new(Some(2)).unwrap());
        let mut loaded = backend.load(&shard, test.dtype).unwrap();
        for (name, result) in calls(&backend, &mut *loaded, &test, &shard) {
            assert_eq!(result, Ok(()), "{name} in the process that made the backend");
        }
        let mut head = head_on(&test, backend.clone(), alone()).unwrap();
        let want = step(&test, &mut head).unwrap();

        let exchange = alone();
        let refused = |name: &str, error: Error| {
            let text = error.to_string();
            assert!(matches!(error, Error::Unsupported { .. }), "{name}: {text}");
            assert!(text.contains("forked from it") && text.contains("in the child"), "{name}: {text}");
        };
        let said = in_child(|| {
            let began = Instant::now();
            for (name, result) in calls(&backend, &mut *loaded, &test, &shard) {
                refused(name, result.expect_err(name));
            }
            refused("a head on that backend", head_on(&test, backend.clone(), alone()).err().unwrap());
            refused("a step", step(&test, &mut head).unwrap_err());
            refused("a rebuilding", head.rebuild().unwrap_err());
            let own = Arc::new(CpuBackend::new(Some(1)).unwrap());
            let error = head_on(&test, own, exchange.clone()).err().unwrap();
            assert!(
                matches!(error, Error::Exchange { .. }) && error.to_string().contains("forked from it"),
                "{error}"
            );
            drop(exchange);
            // Dropping the parent's objects does not wait for its threads.
            drop(head);
            drop(backend);
            let refused_in = began.elapsed();
            assert!(refused_in < Duration::from_secs(5), "took {refused_in:?}");

            let shard = synthetic::shard(&spec, 3, 0..300, quantization, None).unwrap();
            assert_eq!(
                shard.matrix().dtype(),
                made.matrix().dtype(),
                "the child loads on threads of its own"
            );
            let own = Arc::new(CpuBackend::new(Some(2)).unwrap());
            let mut head = head_on(&test, own, alone()).unwrap();
            assert_eq!(step(&test, &mut head).unwrap(), want, "the same bits in the child");
            "good".into()
        });
        assert_eq!(said, Ok("good".into()), "{quantization}");
    }
}
