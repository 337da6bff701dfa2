//! The library as an engine calls it: matmuls on the engine's streams and contexts, in graphs, from many
//! threads.

use super::{child, child_and_end, count};
use lmhead::DType;
use lmhead::backend::cuda::fatbins::{Capability, EMBEDDED, Fatbin};
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event, Graph};
use lmhead::backend::device::{KernelDevice, MatmulCall};
use lmhead::plan::{Precision, WeightLayout};
use lmhead_emulated::EmulatedDevice;
use lmhead_gpu::operands::{Loaded, Operands, Output};
use proptest::prelude::*;
use proptest::sample::subsequence;
use std::ffi::{CStr, c_char};
use std::path::PathBuf;

const ROWS: usize = 11;

/// Operands that depend on `number`, in w8a8, which takes two kernels.
pub fn operands(number: usize) -> Operands {
    Operands::new(Precision::W8a8(DType::Bf16), 200 + number, 48, ROWS)
}

/// The operands on a device, with row-major weights as every device takes them, and memory for f32 logits.
pub fn load<'d, D: KernelDevice>(device: &'d D, operands: &Operands) -> (Loaded<'d, D>, Output<D>) {
    let loaded = Loaded::with_layout(device, operands, ROWS, WeightLayout::Rows).expect("a product");
    let out = loaded.output(ROWS, None, DType::F32, 1).expect("memory");
    (loaded, out)
}

/// Queues the matmul without waiting.
pub fn queue<D: KernelDevice>(
    loaded: &Loaded<'_, D>,
    out: &Output<D>,
    stream: D::Stream,
) -> lmhead::Result<()> {
    // SAFETY: the product and its output live until the caller has waited.
    unsafe { loaded.matmul.run(loaded.device, stream, &loaded.call(out)) }
}

/// The emulated device's result.
fn truth(operands: &Operands) -> Vec<u8> {
    let device = EmulatedDevice::new(0);
    let (loaded, out) = load(&device, operands);
    loaded.run(&out, None).expect("it runs");
    loaded.all(&out).expect("logits")
}

#[test]
fn a_graph_replays_what_was_recorded() {
    child("calls::in_child_graph", &[]);
}

#[test]
#[ignore = "needs the fake driver: a_graph_replays_what_was_recorded runs it"]
fn in_child_graph() {
    let device = CudaDevice::open(0).expect("a device");
    let operands = operands(1);
    let truth = truth(&operands);
    let (loaded, out) = load(&device, &operands);
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    loaded.poison(&out).expect("memory");
    let graph = Graph::capture(&device, stream, || queue(&loaded, &out, stream)).expect("a graph");
    device.wait(stream).expect("nothing fails");
    let untouched = loaded.all(&out).expect_err("poison everywhere");
    assert_eq!(untouched, "row 0 has status 0xffffffff", "recording ran something");
    let (from, to) = (Event::new(&device).expect("an event"), Event::new(&device).expect("an event"));
    for _ in 0..2 {
        loaded.poison(&out).expect("memory");
        from.record(stream).expect("a mark");
        // SAFETY: everything it uses lives until the wait below.
        unsafe { graph.launch(stream) }.expect("a replay");
        to.record(stream).expect("a mark");
        assert!(from.seconds_to(&to).expect("a time") > 0.0);
        loaded.equals_bytes(&out, &truth).expect("a replay's bits");
    }
    // Calls that a graph cannot contain end the capture with an error, and the stream stays usable.
    let error = Graph::capture(&device, stream, || device.wait(stream)).expect_err("a wait").to_string();
    assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), "{error}");
    let error =
        Graph::capture(&device, stream, || device.alloc(1).map(drop)).expect_err("memory").to_string();
    assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), "{error}");
    let panics = std::panic::AssertUnwindSafe(|| Graph::capture(&device, stream, || panic!("of the engine")));
    assert!(std::panic::catch_unwind(panics).is_err());
    loaded.poison(&out).expect("memory");
    queue(&loaded, &out, stream).expect("eager again");
    device.wait(stream).expect("it runs");
    loaded.equals_bytes(&out, &truth).expect("eager bits");
}

/// Compute capabilities of every generation, some of which share another one's code.
const CAPABILITIES: [u32; 9] = [80, 86, 89, 90, 100, 103, 110, 120, 121];

/// A capability from its digits as in names of architectures.
fn capability(digits: u32) -> Capability {
    Capability(digits / 10, digits % 10)
}

/// The architecture of the kernels' code that a driver loads for such a device, by the library's rule; with
/// `only_ptx`, the newest PTX. `None` where this build has nothing for it.
fn loaded_code(device: u32, only_ptx: bool) -> Option<u32> {
    let fatbin = EMBEDDED.iter().find(|fatbin| fatbin.name == "pack_rows_sm80").expect("a file");
    let number = |name: &str| -> u32 { name.split_once('_').expect("a name").1.parse().expect("a number") };
    if !only_ptx {
        return Some(number(fatbin.code_for(capability(device)).ok()?));
    }
    let ptx = fatbin.architectures.iter().filter(|name| name.starts_with("compute"));
    ptx.map(|name| number(name)).filter(|code| *code <= device).max()
}

/// Calls `run` for each device that this build has code for, with that code's architecture.
fn on_each_device(run: impl Fn([(&str, &str); 2], u32)) {
    let mut devices = 0;
    for capability in CAPABILITIES {
        for only_ptx in [false, true] {
            let Some(code) = loaded_code(capability, only_ptx) else { continue };
            let (capability, ptx) = (capability.to_string(), u32::from(only_ptx).to_string());
            run([("FAKE_CAPABILITY", &capability), ("CUDA_FORCE_PTX_JIT", &ptx)], code);
            devices += 1;
        }
    }
    assert!(devices > 0, "a build with code for none of {CAPABILITIES:?}");
}

#[test]
fn launches_may_overlap_where_the_loaded_code_waits() {
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-driver-pair");
    on_each_device(|[device, ptx], code| {
        // Code for 8.0 does not wait for the previous kernel, so it must not overlap with it.
        let overlap = if code >= 90 { " programmatic 1" } else { "" };
        let _ = std::fs::remove_file(&log);
        child("calls::in_child_pair", &[device, ptx, ("FAKE_LOG", log.to_str().expect("text"))]);
        let text = std::fs::read_to_string(&log).expect("a log");
        // Leaves out the launches that make the operands.
        let lines = text.lines().filter(|line| !line.starts_with("fill "));
        let lines: Vec<&str> = lines.map(|line| line.split(" sizes").next().unwrap_or(line)).collect();
        let multiply =
            format!("quant_matmul_64x8 grid 8 1 1 block 128 1 1 shared 27648 carveout 100{overlap}");
        let quantize =
            format!("quantize_rows_bf16 grid 11 1 1 block 256 1 1 shared 32 carveout 100{overlap}");
        assert_eq!(lines, [quantize, multiply], "{device:?} {ptx:?}");
    });
}

#[test]
fn the_driver_loads_the_code_that_the_library_says() {
    child("calls::in_child_images", &[]);
    child("calls::in_child_embedded_images", &[]);
}

/// What the fake driver chooses for a device, with its own reader of fatbins.
fn taken(image: &[u8], device: u32) -> Option<&'static str> {
    type Function = unsafe extern "C" fn(*const u8, i32, i32) -> *const c_char;
    // SAFETY: the fake driver's own function, with its type; the image is complete.
    let name = unsafe {
        let choice = cudarc::driver::sys::culib().get::<Function>(b"fake_choice\0");
        choice.expect("the fake driver")(image.as_ptr(), device as i32, 0)
    };
    // SAFETY: null, or a C string that stays valid until the next call of this thread.
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) });
    let name = name.map(|name| name.to_str().expect("ASCII"));
    name.map(|name| names().into_iter().find(|known| *known == name).expect("a name that was in the image"))
}

/// Architectures of images.
const NAMES: &str = "sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_90a sm_100 sm_100a sm_103 sm_110 sm_120 sm_121 \
                     compute_75 compute_80 compute_90 compute_100 compute_120";

fn names() -> Vec<&'static str> {
    NAMES.split(' ').collect()
}

/// A fatbin of empty images in nvcc's layout (`Entry` of `crates/gpu/fake_driver/kernel.cpp`).
fn fatbin(names: &[&str]) -> Vec<u8> {
    let entry = |name: &&str| {
        let (kind, number) = name.split_once('_').expect("a name");
        let architecture: u32 = number.trim_end_matches('a').parse().expect("digits");
        let nowhere_else = u64::from(number.ends_with('a')) << 20;
        let words = [1 + u32::from(kind == "sm"), 48, 0, 0, 0, 0, 0, architecture, 0, 0];
        [bytemuck::cast_slice(&words), &nowhere_else.to_ne_bytes()[..]].concat()
    };
    let entries: Vec<u8> = names.iter().flat_map(entry).collect();
    let head = [0xba55_ed50, 1 | 16 << 16, entries.len() as u32, 0];
    [bytemuck::cast_slice(&head), &entries[..]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    #[ignore = "needs the fake driver: the_driver_loads_the_code_that_the_library_says runs it"]
    fn in_child_images(
        names in subsequence(names(), 1..=names().len()).prop_shuffle(), device in 70u32..140,
    ) {
        let architectures = names.clone().leak();
        let file = Fatbin { name: "a", kernels: &["a"], architectures, warnings: "", bytes: &[] };
        prop_assert_eq!(file.code_for(capability(device)).ok(), taken(&fatbin(&names), device));
    }
}

/// The same for every file of this build, on every device.
#[test]
#[ignore = "needs the fake driver: the_driver_loads_the_code_that_the_library_says runs it"]
fn in_child_embedded_images() {
    for file in EMBEDDED {
        for device in 70..140 {
            let wanted = file.code_for(capability(device)).ok();
            assert_eq!(taken(file.bytes, device), wanted, "{} on {device}", file.name);
        }
    }
}

#[test]
#[ignore = "needs the fake driver: launches_may_overlap_where_the_loaded_code_waits runs it"]
fn in_child_pair() {
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(1));
    queue(&loaded, &out, device.stream()).expect("launches");
    device.synchronize().expect("nothing fails");
}

#[test]
fn nothing_on_the_hot_path_waits_allocates_or_loads() {
    child("calls::in_child_hot_path", &[]);
}

/// The fake driver's counts of what a launch must not do.
pub fn counted() -> [i64; 6] {
    ["waits", "allocations", "loads", "lazy kernels", "lazy graphs", "slow copies"].map(count)
}

#[test]
#[ignore = "needs the fake driver: nothing_on_the_hot_path_waits_allocates_or_loads runs it"]
fn in_child_hot_path() {
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(3));
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    // The first launches of these kernels in this process.
    for rows in 1..=ROWS {
        let call = MatmulCall { rows, ..loaded.call(&out) };
        let before = counted();
        // SAFETY: the product and its output live until the wait below.
        unsafe { loaded.matmul.run(&device, stream, &call) }.expect("it runs");
        assert_eq!(counted(), before, "{rows} rows");
        device.wait(stream).expect("it runs");
        // The fake driver also refuses all of that while a thread captures.
        // SAFETY: as above.
        let run = || unsafe { loaded.matmul.run(&device, stream, &call) };
        let graph = Graph::capture(&device, stream, run).expect("nothing that a graph cannot hold");
        let before = counted();
        // SAFETY: as above.
        unsafe { graph.launch(stream) }.expect("a replay");
        assert_eq!(counted(), before, "a graph of {rows} rows");
        device.wait(stream).expect("it runs");
    }
}

#[test]
fn a_kernel_or_a_graph_that_a_launch_must_load_is_counted() {
    let (_, end) = child_and_end("calls::in_child_lazy", &[("FAKE_LOG", "/dev/null")]);
    assert!(end.ends_with("\n1 kernels and 1 graphs loaded by a launch\n"), "{end}");
}

/// Launches without loading the kernel first, which this crate never does.
#[test]
#[ignore = "needs the fake driver: a_kernel_or_a_graph_that_a_launch_must_load_is_counted runs it"]
fn in_child_lazy() {
    use cudarc::driver::{result, sys};
    let device = CudaDevice::open(0).expect("a device");
    let own = device.open_stream().expect("a stream");
    let stream = own.handle().as_raw().cast();
    let fatbin = lmhead::backend::cuda::fatbins::with_kernel("read_stream").expect("a kernel file");
    // SAFETY: a fatbin of this build; the fake driver does not execute launches while it writes a log.
    let launches = || unsafe {
        let module = result::module::load_data(fatbin.bytes.as_ptr().cast())?;
        let function = result::module::get_function(module, c"read_stream".to_owned())?;
        let config = sys::CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 512,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: std::ptr::null_mut(),
            numAttrs: 0,
        };
        let params = [0u64; 8];
        let launch = || {
            let mut all = [params.as_ptr().cast_mut().cast()];
            sys::cuLaunchKernelEx(&config, function, all.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        launch()?;
        launch()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        result::stream::begin_capture(stream, mode)?;
        launch()?;
        let graph = result::stream::end_capture(stream)?;
        let ready = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))?;
        result::graph::launch(ready, stream)?;
        result::graph::launch(ready, stream)?;
        result::stream::synchronize(stream)
    };
    device.bound(launches).expect("a context").expect("launches");
    assert_eq!((count("lazy kernels"), count("lazy graphs")), (1, 1));
}

#[test]
fn a_replay_that_fails_is_told_as_the_graph_and_not_as_the_last_launch() {
    let text = child("calls::in_child_failing_replay", &[("FAKE_RUN", "700"), ("FAKE_FROM", "5")]);
    let graph = "Fake 0, after a graph of [2 x kernel quantize_rows_bf16 (sm_90), grid [11, 1, 1], ";
    for wanted in
        [graph, "; 2 x kernel quant_matmul_64x8 (sm_90), grid [8, 1, 1], ", "CUDA_ERROR_ILLEGAL_ADDRESS"]
    {
        assert!(text.contains(wanted), "wanted \"{wanted}\", got \"{text}\"");
    }
    let text = child("calls::in_child_failing_replay", &[("FAKE_REPLAY", "701")]);
    let wanted = "a graph of [2 x kernel quantize_rows_bf16";
    assert!(text.contains(wanted) && text.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{text}");
}

#[test]
#[ignore = "needs the fake driver: a_replay_that_fails_is_told_as_the_graph_and_not_as_the_last_launch runs it"]
fn in_child_failing_replay() {
    let device = CudaDevice::open(0).expect("a device");
    let (loaded, out) = load(&device, &operands(4));
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    let work = || queue(&loaded, &out, stream);
    let graph = Graph::capture(&device, stream, || work().and_then(|()| work())).expect("a graph");
    // Two launches that succeed, the last ones before the replay.
    work().expect("it runs");
    device.wait(stream).expect("it runs");
    // SAFETY: the product and its output live until the wait.
    let replayed = unsafe { graph.launch(stream) }.and_then(|()| device.wait(stream));
    println!("{}", replayed.expect_err("the fake driver fails"));
}

#[test]
fn an_engines_context_and_stream_are_used_and_left_as_they_were() {
    child("calls::in_child_engine", &[("FAKE_DEVICES", "2")]);
}

#[test]
#[ignore = "needs the fake driver: an_engines_context_and_stream_are_used_and_left_as_they_were runs it"]
fn in_child_engine() {
    use cudarc::driver::result;
    // The engine uses device 1, while the thread's current context is device 0's.
    lmhead::backend::cuda::driver().expect("a driver");
    // SAFETY: contexts and a stream of this test, released below.
    let (mine, other, stream) = unsafe {
        let contexts = [1, 0].map(|device| result::primary_ctx::retain(device).expect("a context"));
        result::ctx::set_current(contexts[0]).expect("current");
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
        result::ctx::set_current(contexts[1]).expect("current");
        (contexts[0], contexts[1], stream)
    };
    {
        // SAFETY: both outlive the device.
        let device = unsafe { CudaDevice::in_context(mine.cast()) }.expect("a device");
        assert_eq!((device.info().ordinal, device.info().name.as_str()), (1, "Fake 1"));
        // SAFETY: as above.
        let theirs = unsafe { CudaStream::from_raw(stream.cast()) };
        assert_eq!(theirs.as_raw(), stream.cast());
        let operands = operands(2);
        let (loaded, out) = load(&device, &operands);
        loaded.poison(&out).expect("memory");
        queue(&loaded, &out, theirs).expect("it runs");
        device.wait(theirs).expect("it runs");
        loaded.equals_bytes(&out, &truth(&operands)).expect("bits");
        assert_eq!(result::ctx::get_current(), Ok(Some(other)));
    }
    assert_eq!(result::ctx::get_current(), Ok(Some(other)));
    // SAFETY: as above; the stream still exists, because the engine owns it.
    unsafe {
        result::ctx::set_current(mine).expect("current");
        result::stream::synchronize(stream).expect("a live stream");
        result::stream::destroy(stream).expect("a live stream");
        for device in [0, 1] {
            result::primary_ctx::release(device).expect("retained");
        }
    }
}

#[test]
fn threads_share_a_device_and_devices_share_a_gpu() {
    child("calls::in_child_threads", &[]);
}

#[test]
#[ignore = "needs the fake driver: threads_share_a_device_and_devices_share_a_gpu runs it"]
fn in_child_threads() {
    let devices = [0, 0].map(|ordinal| CudaDevice::open(ordinal).expect("a device"));
    std::thread::scope(|scope| {
        for number in 0..6 {
            let device = &devices[number % 2];
            scope.spawn(move || {
                let operands = operands(number);
                let truth = truth(&operands);
                let (loaded, out) = load(device, &operands);
                let own = device.open_stream().expect("a stream");
                for _ in 0..3 {
                    loaded.poison(&out).expect("memory");
                    queue(&loaded, &out, device.on(&own)).expect("it runs");
                    device.wait(device.on(&own)).expect("it runs");
                    loaded.equals_bytes(&out, &truth).expect("bits");
                }
            });
        }
    });
}

#[test]
fn ranges_and_sizes_are_checked_before_the_driver_hears_of_them() {
    child("calls::in_child_ranges", &[]);
}

#[test]
#[ignore = "needs the fake driver: ranges_and_sizes_are_checked_before_the_driver_hears_of_them runs it"]
fn in_child_ranges() {
    let device = CudaDevice::open(0).expect("a device");
    let buffer = device.alloc(100).expect("memory");
    for (at, bytes) in [(0, 101), (100, 1), (usize::MAX, 2), (60, 41)] {
        let error = device.write(&buffer, at, &vec![0; bytes]).expect_err("too much").to_string();
        let wanted = format!("device buffer: wanted a range of its 100 bytes, got {bytes} from {at} on; ");
        assert!(error.starts_with(&wanted), "{error}");
        let error = device.read(&buffer, at, &mut vec![0; bytes]).expect_err("too much").to_string();
        assert!(error.starts_with(&wanted), "{error}");
    }
    assert_eq!(device.write(&buffer, 100, &[]), Ok(()));
    assert!(device.alloc(0).is_ok());

    let (loaded, out) = load(&device, &operands(5));
    let call = loaded.call(&out);
    let little = MatmulCall { workspace_bytes: call.workspace_bytes - 1, ..call };
    // SAFETY: refused before anything is launched.
    let error = unsafe { loaded.matmul.run(&device, device.stream(), &little) }.expect_err("too little");
    let wanted = format!("workspace: wanted {} bytes for {ROWS} rows", call.workspace_bytes);
    assert!(error.to_string().starts_with(&wanted), "{error}");
}
