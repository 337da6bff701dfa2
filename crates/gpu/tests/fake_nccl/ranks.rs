//! Ranks that call the fake driver and the fake nccl directly. One thread can serve all ranks, because no
//! call on a nonblocking communicator waits.

use cudarc::driver::sys::{
    CUcontext, CUevent, CUevent_flags, CUgraphExec, CUgraphInstantiate_flags, CUstream,
};
use cudarc::driver::sys::{CUresult, CUstreamCaptureMode};
use cudarc::driver::{DriverError, result};
use lmhead_gpu::fake_nccl::FakeNccl;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

pub type Comm = *mut c_void;
pub type Window = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [u8; 128]);

/// `ncclConfig_t` of 2.30.
#[repr(C)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub ctas: [c_int; 3],
    pub net_name: *const c_char,
    pub split_share: c_int,
    pub traffic_class: c_int,
    pub comm_name: *const c_char,
    pub others: [c_int; 10],
}

pub const SUCCESS: c_int = 0;
pub const CUDA_ERROR: c_int = 1;
pub const SYSTEM_ERROR: c_int = 2;
pub const INTERNAL_ERROR: c_int = 3;
pub const INVALID_ARGUMENT: c_int = 4;
pub const INVALID_USAGE: c_int = 5;
pub const REMOTE_ERROR: c_int = 6;
pub const IN_PROGRESS: c_int = 7;
pub const UINT8: c_int = 1;
/// `NCCL_WIN_COLL_SYMMETRIC`.
pub const SYMMETRIC: c_int = 1;

impl Config {
    pub fn new(blocking: bool) -> Self {
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 23007,
            blocking: c_int::from(blocking),
            ctas: [c_int::MIN; 3],
            net_name: std::ptr::null(),
            split_share: c_int::MIN,
            traffic_class: c_int::MIN,
            comm_name: std::ptr::null(),
            others: [c_int::MIN; 10],
        }
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        #[allow(non_snake_case, reason = "NCCL's names")]
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> c_int,)*
        }

        /// The functions that tests call, by NCCL's names.
        pub struct Nccl {
            pub fake: FakeNccl,
            functions: Functions,
        }

        #[allow(non_snake_case, clippy::too_many_arguments, reason = "NCCL's")]
        impl Nccl {
            pub fn load() -> Self {
                let fake = FakeNccl::loaded();
                // SAFETY: the types are those of nccl.h.
                let functions = unsafe { Functions { $($name: fake.get(stringify!($name)),)* } };
                Nccl { fake, functions }
            }

            $(pub fn $name(&self, $($argument: $type),*) -> c_int {
                // SAFETY: the fake nccl follows only handles that it gave out, and checks device addresses.
                // Other pointers are to callers' stacks, and stay valid until the operation has ended.
                unsafe { (self.functions.$name)($($argument),*) }
            })*
        }
    };
}

functions! {
    ncclGetVersion(version: *mut c_int);
    ncclGetUniqueId(id: *mut UniqueId);
    ncclCommInitRankConfig(comm: *mut Comm, size: c_int, id: UniqueId, rank: c_int, config: *const Config);
    ncclCommInitRank(comm: *mut Comm, size: c_int, id: UniqueId, rank: c_int);
    ncclCommSplit(comm: Comm, color: c_int, key: c_int, child: *mut Comm, config: *const Config);
    ncclCommFinalize(comm: Comm);
    ncclCommDestroy(comm: Comm);
    ncclCommAbort(comm: Comm);
    ncclCommGetAsyncError(comm: Comm, state: *mut c_int);
    ncclCommCount(comm: Comm, count: *mut c_int);
    ncclCommUserRank(comm: Comm, rank: *mut c_int);
    ncclCommCuDevice(comm: Comm, device: *mut c_int);
    ncclMemAlloc(to: *mut u64, bytes: usize);
    ncclMemFree(address: u64);
    ncclCommWindowRegister(comm: Comm, address: u64, bytes: usize, window: *mut Window, flags: c_int);
    ncclCommWindowDeregister(comm: Comm, window: Window);
    ncclGroupStart();
    ncclGroupEnd();
    ncclBroadcast(from: u64, to: u64, count: usize, kind: c_int, root: c_int, comm: Comm, stream: CUstream);
    ncclAllGather(from: u64, to: u64, count: usize, kind: c_int, comm: Comm, stream: CUstream);
    ncclAlltoAll(from: u64, to: u64, count: usize, kind: c_int, comm: Comm, stream: CUstream);
    ncclSend(from: u64, count: usize, kind: c_int, peer: c_int, comm: Comm, stream: CUstream);
    ncclRecv(to: u64, count: usize, kind: c_int, peer: c_int, comm: Comm, stream: CUstream);
}

impl Nccl {
    pub fn unique_id(&self) -> UniqueId {
        let mut id = UniqueId([0; 128]);
        assert_eq!(self.ncclGetUniqueId(&mut id), SUCCESS);
        id
    }

    pub fn last_error(&self, comm: Comm) -> String {
        // SAFETY: the function has this type; the text is copied at once.
        unsafe {
            let get: unsafe extern "C" fn(Comm) -> *const c_char = self.fake.get("ncclGetLastError");
            CStr::from_ptr(get(comm)).to_string_lossy().into_owned()
        }
    }

    pub fn state(&self, comm: Comm) -> c_int {
        let mut state = -1;
        assert_eq!(self.ncclCommGetAsyncError(comm, &mut state), SUCCESS);
        state
    }

    /// # Panics
    /// Where the library is the older one, which has no such function.
    #[allow(non_snake_case, reason = "NCCL's")]
    pub fn ncclGetPeerDevicePointer(
        &self,
        window: Window,
        offset: usize,
        peer: c_int,
        address: &mut u64,
    ) -> c_int {
        type Ask = unsafe extern "C" fn(Window, usize, c_int, *mut u64) -> c_int;
        // SAFETY: its type in core.h; it follows only handles that it gave out.
        unsafe { self.fake.get::<Ask>("ncclGetPeerDevicePointer")(window, offset, peer, address) }
    }

    /// Polls until nothing is in progress, or long enough to conclude that it never ends; returns the state.
    pub fn poll_state(&self, comm: Comm) -> c_int {
        (0..20).map(|_| self.state(comm)).find(|state| *state != IN_PROGRESS).unwrap_or(IN_PROGRESS)
    }

    /// Nonblocking communicators of a group, with a device for each rank.
    pub fn group(&self, size: usize) -> Vec<Rank<'_>> {
        let id = self.unique_id();
        let ranks: Vec<Rank<'_>> =
            (0..size).map(|rank| Rank::make(self, size, id, rank, &Config::new(false))).collect();
        for rank in &ranks {
            assert_eq!(rank.poll_state(), SUCCESS, "{}", self.last_error(rank.comm));
        }
        ranks
    }

    /// Asserts that one misuse was recorded, whose text contains `wanted`.
    pub fn expect_misuse(&self, wanted: &str) {
        let got = self.fake.take_misuse();
        assert!(got.as_ref().is_some_and(|got| got.contains(wanted)), "wanted \"{wanted}\", got {got:?}");
        assert_eq!(self.fake.take_misuse(), None, "after \"{wanted}\"");
    }
}

/// One rank: a device's context, a stream, a communicator.
pub struct Rank<'n> {
    pub nccl: &'n Nccl,
    pub context: CUcontext,
    pub stream: CUstream,
    pub comm: Comm,
    pub rank: usize,
}

pub fn new_stream() -> CUstream {
    result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream")
}

/// Makes the device's context the thread's.
pub fn bind(device: usize) -> CUcontext {
    lmhead::backend::cuda::driver().expect("a driver");
    // SAFETY: the primary context lives as long as the process.
    unsafe {
        let ordinal = i32::try_from(device).expect("small");
        let context = result::primary_ctx::retain(ordinal).expect("a context");
        result::ctx::set_current(context).expect("current");
        context
    }
}

impl<'n> Rank<'n> {
    /// Only the call has returned: the state is not polled yet.
    pub fn make(nccl: &'n Nccl, size: usize, id: UniqueId, rank: usize, config: &Config) -> Self {
        let context = bind(rank);
        let stream = new_stream();
        let mut comm = std::ptr::null_mut();
        let [count, number] = [size, rank].map(|value| value as c_int);
        let code = nccl.ncclCommInitRankConfig(&mut comm, count, id, number, config);
        assert_eq!(
            code,
            if config.blocking == 0 { IN_PROGRESS } else { SUCCESS },
            "{}",
            nccl.last_error(comm)
        );
        Rank { nccl, context, stream, comm, rank }
    }

    /// Makes its context the thread's.
    pub fn bind(&self) {
        // SAFETY: it lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.expect("current");
    }

    pub fn poll_state(&self) -> c_int {
        self.nccl.poll_state(self.comm)
    }

    /// Device memory with these bytes, never freed.
    pub fn memory(&self, bytes: &[u8]) -> u64 {
        self.bind();
        // SAFETY: memory of its own, which the fake driver keeps on the host.
        unsafe {
            let address = result::malloc_sync(bytes.len().max(1)).expect("memory");
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
            address
        }
    }

    /// Runs the calls as a group; returns the state once it is on the stream.
    pub fn group(&self, calls: impl FnOnce(&Nccl)) -> c_int {
        assert_eq!(self.nccl.ncclGroupStart(), SUCCESS);
        calls(self.nccl);
        match self.nccl.ncclGroupEnd() {
            IN_PROGRESS => self.poll_state(),
            code => code,
        }
    }

    pub fn all_gather(&self, from: u64, to: u64, count: usize) -> c_int {
        self.group(|nccl| {
            nccl.ncclAllGather(from, to, count, UINT8, self.comm, self.stream);
        })
    }

    pub fn broadcast(&self, from: u64, to: u64, count: usize, root: usize) -> c_int {
        let root = root as c_int;
        self.group(|nccl| {
            nccl.ncclBroadcast(from, to, count, UINT8, root, self.comm, self.stream);
        })
    }

    /// Sends and receives as one group: (address, count) for each peer.
    pub fn exchange(&self, sends: &[(u64, usize)], recvs: &[(u64, usize)]) -> c_int {
        self.group(|nccl| {
            for (peer, (address, count)) in sends.iter().enumerate() {
                nccl.ncclSend(*address, *count, UINT8, peer as c_int, self.comm, self.stream);
            }
            for (peer, (address, count)) in recvs.iter().enumerate() {
                nccl.ncclRecv(*address, *count, UINT8, peer as c_int, self.comm, self.stream);
            }
        })
    }

    /// Memory for windows, of `bytes` bytes.
    pub fn window_memory(&self, bytes: usize) -> u64 {
        self.bind();
        let mut address = 0;
        assert_eq!(
            self.nccl.ncclMemAlloc(&mut address, bytes),
            SUCCESS,
            "{}",
            self.nccl.last_error(self.comm)
        );
        address
    }

    /// Calls the registration of a window, which is written to `window` once all ranks have called it.
    pub fn register(&self, address: u64, bytes: usize, window: &mut Window) -> c_int {
        self.bind();
        self.nccl.ncclCommWindowRegister(self.comm, address, bytes, window, SYMMETRIC)
    }

    /// The address of a peer's byte in the window; 0 where there is none for this rank.
    pub fn peer_address(&self, window: Window, offset: usize, peer: usize) -> u64 {
        let mut address = 1;
        let code = self.nccl.ncclGetPeerDevicePointer(window, offset, peer as c_int, &mut address);
        assert_eq!(code, SUCCESS, "{}", self.nccl.last_error(self.comm));
        address
    }

    pub fn deregister(&self, window: Window) -> c_int {
        self.bind();
        self.nccl.ncclCommWindowDeregister(self.comm, window)
    }

    pub fn free(&self, address: u64) -> c_int {
        self.bind();
        self.nccl.ncclMemFree(address)
    }

    pub fn mark(&self) -> Mark {
        self.bind();
        let event = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event");
        // SAFETY: both live.
        unsafe { result::event::record(event, self.stream) }.expect("a mark");
        Mark(event)
    }

    /// Whether the mark is reached after some queries.
    pub fn reaches(&self, mark: &Mark) -> Result<bool, DriverError> {
        self.bind();
        for _ in 0..5 {
            // SAFETY: a live event.
            match unsafe { result::event::query(mark.0) } {
                Ok(()) => return Ok(true),
                Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether everything on the stream completes.
    pub fn ends(&self) -> bool {
        let mark = self.mark();
        self.reaches(&mark).expect("no device fails")
    }

    pub fn capture(&self, work: impl FnOnce()) -> CUgraphExec {
        self.bind();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: its own stream.
        unsafe {
            result::stream::begin_capture(self.stream, mode).expect("a capture");
            work();
            let graph = result::stream::end_capture(self.stream).expect("a graph");
            let ready = result::graph::instantiate(graph, CUgraphInstantiate_flags(0)).expect("a graph");
            result::graph::destroy(graph).expect("a graph");
            ready
        }
    }

    pub fn replay(&self, graph: CUgraphExec) {
        self.bind();
        // SAFETY: an instantiated graph.
        unsafe { result::graph::launch(graph, self.stream) }.expect("a launch");
    }

    pub fn give_back(&self, graph: CUgraphExec) {
        self.bind();
        // SAFETY: its own, which is not launched any more.
        unsafe { result::graph::exec_destroy(graph) }.expect("a graph");
    }

    /// Destroys its stream, on which nothing is queued.
    pub fn give_back_stream(&self) {
        self.bind();
        // SAFETY: its own.
        unsafe { result::stream::destroy(self.stream) }.expect("a stream");
    }

    pub fn abort(&self) {
        self.bind();
        assert_eq!(self.nccl.ncclCommAbort(self.comm), SUCCESS);
    }
}

/// A recorded event, never destroyed.
pub struct Mark(CUevent);

/// Writes device memory at once, whatever is on streams.
pub fn write(address: u64, bytes: &[u8]) {
    // SAFETY: the fake driver keeps it on the host.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

/// Waits for the stream, without a deadline.
pub fn synchronize(stream: CUstream) -> Result<(), DriverError> {
    // SAFETY: a live stream of the thread's context.
    unsafe { result::stream::synchronize(stream) }
}

/// The present contents of device memory, without waiting.
pub fn bytes(address: u64, count: usize) -> Vec<u8> {
    // SAFETY: the fake driver keeps it on the host.
    unsafe { std::slice::from_raw_parts(address as *const u8, count) }.to_vec()
}

/// A window of `bytes` bytes on each rank: the memory's addresses and the windows.
pub fn windows(ranks: &[Rank<'_>], bytes: usize) -> (Vec<u64>, Vec<Window>) {
    let memory: Vec<u64> = ranks.iter().map(|rank| rank.window_memory(bytes)).collect();
    let mut windows = vec![std::ptr::null_mut(); ranks.len()];
    for ((rank, address), window) in ranks.iter().zip(&memory).zip(&mut windows) {
        assert_eq!(rank.register(*address, bytes, window), IN_PROGRESS);
    }
    for rank in ranks {
        assert_eq!(rank.poll_state(), SUCCESS, "{}", rank.nccl.last_error(rank.comm));
    }
    (memory, windows)
}

/// Finalizes and destroys the communicators of a group.
pub fn end(ranks: &[Rank<'_>]) {
    for rank in ranks {
        assert_eq!(rank.nccl.ncclCommFinalize(rank.comm), IN_PROGRESS);
    }
    for rank in ranks {
        assert_eq!(rank.poll_state(), SUCCESS);
        assert_eq!(rank.nccl.ncclCommDestroy(rank.comm), SUCCESS);
    }
}

pub fn abort_all(ranks: &[Rank<'_>]) {
    ranks.iter().for_each(Rank::abort);
}
