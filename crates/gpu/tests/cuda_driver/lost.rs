//! Lost devices: after errors that a driver does not recover from, and with kernels that never end.

use super::calls::{load, operands, queue};
use super::child_and_end;
use cudarc::driver::result;
use lmhead::Error;
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event, Graph, Launch};
use lmhead::backend::device::KernelDevice;
use lmhead::backend::params::{MmaMicrokernelParams, ReadStreamParams};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Skips the launches that make the operands.
const FILLS: (&str, &str) = ("FAKE_FROM", "2");

const ERRORS: [(&str, &str, &str); 12] = [
    ("214", "CUDA_ERROR_ECC_UNCORRECTABLE", "look at nvidia-smi -q -d ECC"),
    ("220", "CUDA_ERROR_NVLINK_UNCORRECTABLE", "look at nvidia-smi -q -d ECC"),
    ("700", "CUDA_ERROR_ILLEGAL_ADDRESS", "run it under compute-sanitizer"),
    ("702", "CUDA_ERROR_LAUNCH_TIMEOUT", "without a display's time limit"),
    ("709", "CUDA_ERROR_CONTEXT_IS_DESTROYED", "start it again"),
    ("710", "CUDA_ERROR_ASSERT", "run it under compute-sanitizer"),
    ("714", "CUDA_ERROR_HARDWARE_STACK_ERROR", "run it under compute-sanitizer"),
    ("715", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "run it under compute-sanitizer"),
    ("716", "CUDA_ERROR_MISALIGNED_ADDRESS", "run it under compute-sanitizer"),
    ("717", "CUDA_ERROR_INVALID_ADDRESS_SPACE", "run it under compute-sanitizer"),
    ("718", "CUDA_ERROR_INVALID_PC", "run it under compute-sanitizer"),
    ("719", "CUDA_ERROR_LAUNCH_FAILED", "run it under compute-sanitizer"),
];

#[test]
fn errors_that_lose_a_device_are_told_once_and_for_all() {
    for (code, name, fix) in ERRORS {
        let (text, _) = child_and_end("lost::in_child_lost", &[("FAKE_RUN", code), FILLS]);
        let first = text.lines().find(|line| line.starts_with("first: ")).unwrap_or_default();
        assert!(first.contains("Fake 0, after kernel quant_matmul_64x8"), "{code}: {text}");
        assert!(
            first.contains(name) && first.contains("the device is lost to this process"),
            "{code}: {text}"
        );
        assert!(first.contains(fix), "{code}: {text}");
        let later = text.lines().find(|line| line.starts_with("later: ")).unwrap_or_default();
        assert!(
            later.contains("the device was lost before: Fake 0, after") && later.contains(name),
            "{code}: {text}"
        );
    }
}

#[test]
#[ignore = "needs the fake driver: errors_that_lose_a_device_are_told_once_and_for_all runs it"]
fn in_child_lost() {
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(6));
    assert_eq!(device.lost(), None);
    queue(&loaded, &out, device.stream()).expect("launches");
    println!("\nfirst: {}", device.synchronize().expect_err("a kernel fails"));
    assert!(device.lost().is_some());
    println!("later: {}", device.alloc(16).map(drop).expect_err("a lost device"));
    // A clone is the same device.
    assert!(device.clone().filled(16, 0).is_err() && device.open_stream().is_err());
}

#[test]
fn an_error_of_a_launch_loses_nothing() {
    let (text, _) = child_and_end("lost::in_child_refused", &[("FAKE_LAUNCH", "701"), FILLS]);
    assert!(text.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{text}");
}

#[test]
#[ignore = "needs the fake driver: an_error_of_a_launch_loses_nothing runs it"]
fn in_child_refused() {
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(6));
    println!("{}", queue(&loaded, &out, device.stream()).expect_err("refused"));
    assert_eq!(device.lost(), None);
    device.synchronize().expect("nothing was launched");
    device.filled(16, 1).expect("memory");
}

/// The fake driver ends a process that waits for such a kernel with a call that has no deadline.
#[test]
fn kernels_that_do_not_end_are_given_up() {
    for way in ["stream", "event", "copy", "buffer", "stream's end", "kernel", "nothing"] {
        let began = Instant::now();
        let (text, _) = child_and_end("lost::in_child_hang", &[("FAKE_HANG", "2"), ("WAY", way)]);
        assert!(text.contains("no end within 50ms; the device is lost to this process"), "{way}: {text}");
        assert!(began.elapsed() < Duration::from_secs(20), "{way}: {:?}", began.elapsed());
    }
}

/// Freeing memory waits for these kernels in the driver, and nobody can query an engine's stream.
#[test]
fn a_kernel_on_an_engines_stream_that_does_not_end_stops_no_drop() {
    let began = Instant::now();
    let says = [("FAKE_HANG", "2"), ("FAKE_BLOCKS", "1"), ("WAY", "engine's stream")];
    let (text, _) = child_and_end("lost::in_child_hang", &says);
    let wanted = "64 bytes on Fake 0 freed: no end within 50ms; the device is lost to this process";
    assert!(text.contains(wanted), "{text}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_device_that_others_keep_busy_is_not_lost() {
    child_and_end("lost::in_child_busy", &[("FAKE_BUSY", "200")]);
}

#[test]
#[ignore = "needs the fake driver: a_device_that_others_keep_busy_is_not_lost runs it"]
fn in_child_busy() {
    let device = CudaDevice::open(0).expect("a device");
    let (own, fed) = (device.open_stream().expect("a stream"), device.filled(64, 0).expect("memory"));
    device.set_patience(Duration::from_secs(2));
    let stream = device.on(&own);
    let (ends, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                // SAFETY: the memory outlives the stream.
                unsafe { device.clear(stream, fed.address(), 16) }.expect("it is queued");
                rounds.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // From here on the stream is never idle.
        while rounds.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        let began = Instant::now();
        let done = device.wait(stream).and_then(|()| {
            drop(device.filled(64, 0)?);
            drop(device.staging(64)?);
            device.kernel::<MmaMicrokernelParams>("microkernel_mma_s8_sm80").map(drop)
        });
        let took = began.elapsed();
        ends.store(true, Ordering::Relaxed);
        done.expect("others' work is not waited for");
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
    assert_eq!(device.lost(), None);
}

/// Also when nothing but the device itself is left.
#[test]
fn a_device_that_is_closed_does_not_wait_for_ever() {
    let began = Instant::now();
    child_and_end("lost::in_child_closes", &[("FAKE_HANG", "0")]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
#[ignore = "needs the fake driver: a_device_that_is_closed_does_not_wait_for_ever runs it"]
fn in_child_closes() {
    let device = CudaDevice::open(0).expect("a device");
    device.set_patience(Duration::from_millis(50));
    let kernel = device.kernel::<ReadStreamParams>("read_stream").expect("a kernel");
    let params = ReadStreamParams { data: std::ptr::null(), vectors: 0, out: std::ptr::null_mut() };
    // SAFETY: with no pieces nothing is read, and the fake driver does not execute it.
    unsafe { kernel.launch(&Launch::new([1, 1, 1], [512, 1, 1]), &params) }.expect("a launch");
}

#[test]
#[ignore = "needs the fake driver: kernels_that_do_not_end_are_given_up runs it"]
fn in_child_hang() {
    let way = std::env::var("WAY").expect("a way");
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(6));
    let own = device.open_stream().expect("a stream");
    let (stream, event) = (device.on(&own), Event::new(&device).expect("an event"));
    let graph = Graph::capture(&device, stream, || queue(&loaded, &out, stream)).expect("a graph");
    let create = || result::stream::create(result::stream::StreamKind::NonBlocking);
    let theirs = device.bound(create).expect("a context").expect("a stream");
    // SAFETY: it lives as long as the process.
    let theirs = unsafe { CudaStream::from_raw(theirs.cast()) };
    let buffer = device.filled(64, 0).expect("memory");
    device.set_patience(Duration::from_millis(50));
    let on = if way == "engine's stream" { theirs } else { stream };
    // SAFETY: its memory is leaked with the lost device.
    unsafe { graph.launch(on) }.expect("launches");
    event.record(on).expect("a mark");
    let waited = match way.as_str() {
        "stream" => device.wait(stream),
        "event" => event.wait(),
        "copy" => device.read_on(stream, &buffer, 0, &mut [0; 64]),
        "buffer" | "engine's stream" => {
            drop(buffer);
            device.synchronize()
        }
        "stream's end" => {
            drop(own);
            device.synchronize()
        }
        // A kernel that is loaded already fails, too.
        "kernel" => device.kernel::<MmaMicrokernelParams>("microkernel_mma_s8_sm80").map(drop),
        // Only the drops at the end of this function.
        _ => Ok(()),
    };
    if way != "nothing" {
        let Err(Error::Device { .. }) = &waited else { panic!("{way}: {waited:?}") };
    }
    drop((graph, event, loaded, out));
    println!("{}", device.lost().expect("a lost device"));
}
