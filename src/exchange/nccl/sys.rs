//! What is used of NCCL, by its own names. Written by scripts/bindings from the nccl.h of the wheel in
//! scripts/nccl.txt: change that.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, missing_docs)]
#![allow(clippy::undocumented_unsafe_blocks, reason = "generated: each is a call of a C function")]
use super::config::ncclConfig_t;

pub const NCCL_UNIQUE_ID_BYTES: u32 = 128;
pub const NCCL_CONFIG_UNDEF_INT: i32 = -2147483648;
pub const NCCL_SPLIT_NOCOLOR: i32 = -1;
pub const NCCL_API_MAGIC: u32 = 3405692655;
pub const NCCL_WIN_DEFAULT: u32 = 0;
pub const NCCL_WIN_COLL_SYMMETRIC: u32 = 1;
pub const NCCL_WIN_STRICT_ORDERING: u32 = 2;
pub const NCCL_WIN_REQUIRED_ALIGNMENT: u32 = 4096;
pub const NCCL_REVOKE_DEFAULT: u32 = 0;
#[repr(C)]
#[derive(Debug)]
pub struct CUstream_st {
    _unused: [u8; 0],
}
pub type cudaStream_t = *mut CUstream_st;
#[repr(C)]
#[derive(Debug)]
pub struct ncclComm {
    _unused: [u8; 0],
}
pub type ncclComm_t = *mut ncclComm;
#[repr(C)]
#[derive(Debug)]
pub struct ncclWindow_vidmem {
    _unused: [u8; 0],
}
pub type ncclWindow_t = *mut ncclWindow_vidmem;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ncclUniqueId {
    pub internal: [::core::ffi::c_char; 128usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ncclUniqueId"][::core::mem::size_of::<ncclUniqueId>() - 128usize];
    ["Alignment of ncclUniqueId"][::core::mem::align_of::<ncclUniqueId>() - 1usize];
    ["Offset of field: ncclUniqueId::internal"][::core::mem::offset_of!(ncclUniqueId, internal) - 0usize];
};
pub const ncclSuccess: ncclResult_t = 0;
pub const ncclUnhandledCudaError: ncclResult_t = 1;
pub const ncclSystemError: ncclResult_t = 2;
pub const ncclInternalError: ncclResult_t = 3;
pub const ncclInvalidArgument: ncclResult_t = 4;
pub const ncclInvalidUsage: ncclResult_t = 5;
pub const ncclRemoteError: ncclResult_t = 6;
pub const ncclInProgress: ncclResult_t = 7;
pub const ncclTimeout: ncclResult_t = 8;
pub const ncclNumResults: ncclResult_t = 9;
pub type ncclResult_t = ::core::ffi::c_uint;
pub const ncclInt8: ncclDataType_t = 0;
pub const ncclChar: ncclDataType_t = 0;
pub const ncclUint8: ncclDataType_t = 1;
pub const ncclInt32: ncclDataType_t = 2;
pub const ncclInt: ncclDataType_t = 2;
pub const ncclUint32: ncclDataType_t = 3;
pub const ncclInt64: ncclDataType_t = 4;
pub const ncclUint64: ncclDataType_t = 5;
pub const ncclFloat16: ncclDataType_t = 6;
pub const ncclHalf: ncclDataType_t = 6;
pub const ncclFloat32: ncclDataType_t = 7;
pub const ncclFloat: ncclDataType_t = 7;
pub const ncclFloat64: ncclDataType_t = 8;
pub const ncclDouble: ncclDataType_t = 8;
pub const ncclBfloat16: ncclDataType_t = 9;
pub const ncclFloat8e4m3: ncclDataType_t = 10;
pub const ncclFloat8e5m2: ncclDataType_t = 11;
pub const ncclNumTypes: ncclDataType_t = 12;
pub type ncclDataType_t = ::core::ffi::c_uint;
pub struct Library {
    __library: ::libloading::Library,
    pub ncclMemAlloc: Result<
        unsafe extern "C" fn(ptr: *mut *mut ::core::ffi::c_void, size: usize) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclMemFree:
        Result<unsafe extern "C" fn(ptr: *mut ::core::ffi::c_void) -> ncclResult_t, ::libloading::Error>,
    pub ncclGetVersion:
        Result<unsafe extern "C" fn(version: *mut ::core::ffi::c_int) -> ncclResult_t, ::libloading::Error>,
    pub ncclGetUniqueId:
        Result<unsafe extern "C" fn(uniqueId: *mut ncclUniqueId) -> ncclResult_t, ::libloading::Error>,
    pub ncclCommInitRankConfig: Result<
        unsafe extern "C" fn(
            comm: *mut ncclComm_t,
            nranks: ::core::ffi::c_int,
            commId: ncclUniqueId,
            rank: ::core::ffi::c_int,
            config: *mut ncclConfig_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommFinalize: Result<unsafe extern "C" fn(comm: ncclComm_t) -> ncclResult_t, ::libloading::Error>,
    pub ncclCommDestroy: Result<unsafe extern "C" fn(comm: ncclComm_t) -> ncclResult_t, ::libloading::Error>,
    pub ncclCommAbort: Result<unsafe extern "C" fn(comm: ncclComm_t) -> ncclResult_t, ::libloading::Error>,
    pub ncclCommRevoke: Result<
        unsafe extern "C" fn(comm: ncclComm_t, revokeFlags: ::core::ffi::c_int) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommSplit: Result<
        unsafe extern "C" fn(
            comm: ncclComm_t,
            color: ::core::ffi::c_int,
            key: ::core::ffi::c_int,
            newcomm: *mut ncclComm_t,
            config: *mut ncclConfig_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclGetErrorString:
        Result<unsafe extern "C" fn(result: ncclResult_t) -> *const ::core::ffi::c_char, ::libloading::Error>,
    pub ncclGetLastError:
        Result<unsafe extern "C" fn(comm: ncclComm_t) -> *const ::core::ffi::c_char, ::libloading::Error>,
    pub ncclCommGetAsyncError: Result<
        unsafe extern "C" fn(comm: ncclComm_t, asyncError: *mut ncclResult_t) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommCount: Result<
        unsafe extern "C" fn(comm: ncclComm_t, count: *mut ::core::ffi::c_int) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommCuDevice: Result<
        unsafe extern "C" fn(comm: ncclComm_t, device: *mut ::core::ffi::c_int) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommUserRank: Result<
        unsafe extern "C" fn(comm: ncclComm_t, rank: *mut ::core::ffi::c_int) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommWindowRegister: Result<
        unsafe extern "C" fn(
            comm: ncclComm_t,
            buff: *mut ::core::ffi::c_void,
            size: usize,
            win: *mut ncclWindow_t,
            winFlags: ::core::ffi::c_int,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclCommWindowDeregister: Result<
        unsafe extern "C" fn(comm: ncclComm_t, win: ncclWindow_t) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclBroadcast: Result<
        unsafe extern "C" fn(
            sendbuff: *const ::core::ffi::c_void,
            recvbuff: *mut ::core::ffi::c_void,
            count: usize,
            datatype: ncclDataType_t,
            root: ::core::ffi::c_int,
            comm: ncclComm_t,
            stream: cudaStream_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclAllGather: Result<
        unsafe extern "C" fn(
            sendbuff: *const ::core::ffi::c_void,
            recvbuff: *mut ::core::ffi::c_void,
            sendcount: usize,
            datatype: ncclDataType_t,
            comm: ncclComm_t,
            stream: cudaStream_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclSend: Result<
        unsafe extern "C" fn(
            sendbuff: *const ::core::ffi::c_void,
            count: usize,
            datatype: ncclDataType_t,
            peer: ::core::ffi::c_int,
            comm: ncclComm_t,
            stream: cudaStream_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclRecv: Result<
        unsafe extern "C" fn(
            recvbuff: *mut ::core::ffi::c_void,
            count: usize,
            datatype: ncclDataType_t,
            peer: ::core::ffi::c_int,
            comm: ncclComm_t,
            stream: cudaStream_t,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
    pub ncclGroupStart: Result<unsafe extern "C" fn() -> ncclResult_t, ::libloading::Error>,
    pub ncclGroupEnd: Result<unsafe extern "C" fn() -> ncclResult_t, ::libloading::Error>,
    pub ncclGetPeerDevicePointer: Result<
        unsafe extern "C" fn(
            window: ncclWindow_t,
            offset: usize,
            peer: ::core::ffi::c_int,
            outPtr: *mut *mut ::core::ffi::c_void,
        ) -> ncclResult_t,
        ::libloading::Error,
    >,
}
impl Library {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let ncclMemAlloc = unsafe { __library.get(b"ncclMemAlloc\0") }.map(|sym| *sym);
        let ncclMemFree = unsafe { __library.get(b"ncclMemFree\0") }.map(|sym| *sym);
        let ncclGetVersion = unsafe { __library.get(b"ncclGetVersion\0") }.map(|sym| *sym);
        let ncclGetUniqueId = unsafe { __library.get(b"ncclGetUniqueId\0") }.map(|sym| *sym);
        let ncclCommInitRankConfig = unsafe { __library.get(b"ncclCommInitRankConfig\0") }.map(|sym| *sym);
        let ncclCommFinalize = unsafe { __library.get(b"ncclCommFinalize\0") }.map(|sym| *sym);
        let ncclCommDestroy = unsafe { __library.get(b"ncclCommDestroy\0") }.map(|sym| *sym);
        let ncclCommAbort = unsafe { __library.get(b"ncclCommAbort\0") }.map(|sym| *sym);
        let ncclCommRevoke = unsafe { __library.get(b"ncclCommRevoke\0") }.map(|sym| *sym);
        let ncclCommSplit = unsafe { __library.get(b"ncclCommSplit\0") }.map(|sym| *sym);
        let ncclGetErrorString = unsafe { __library.get(b"ncclGetErrorString\0") }.map(|sym| *sym);
        let ncclGetLastError = unsafe { __library.get(b"ncclGetLastError\0") }.map(|sym| *sym);
        let ncclCommGetAsyncError = unsafe { __library.get(b"ncclCommGetAsyncError\0") }.map(|sym| *sym);
        let ncclCommCount = unsafe { __library.get(b"ncclCommCount\0") }.map(|sym| *sym);
        let ncclCommCuDevice = unsafe { __library.get(b"ncclCommCuDevice\0") }.map(|sym| *sym);
        let ncclCommUserRank = unsafe { __library.get(b"ncclCommUserRank\0") }.map(|sym| *sym);
        let ncclCommWindowRegister = unsafe { __library.get(b"ncclCommWindowRegister\0") }.map(|sym| *sym);
        let ncclCommWindowDeregister =
            unsafe { __library.get(b"ncclCommWindowDeregister\0") }.map(|sym| *sym);
        let ncclBroadcast = unsafe { __library.get(b"ncclBroadcast\0") }.map(|sym| *sym);
        let ncclAllGather = unsafe { __library.get(b"ncclAllGather\0") }.map(|sym| *sym);
        let ncclSend = unsafe { __library.get(b"ncclSend\0") }.map(|sym| *sym);
        let ncclRecv = unsafe { __library.get(b"ncclRecv\0") }.map(|sym| *sym);
        let ncclGroupStart = unsafe { __library.get(b"ncclGroupStart\0") }.map(|sym| *sym);
        let ncclGroupEnd = unsafe { __library.get(b"ncclGroupEnd\0") }.map(|sym| *sym);
        let ncclGetPeerDevicePointer =
            unsafe { __library.get(b"ncclGetPeerDevicePointer\0") }.map(|sym| *sym);
        Ok(Library {
            __library,
            ncclMemAlloc,
            ncclMemFree,
            ncclGetVersion,
            ncclGetUniqueId,
            ncclCommInitRankConfig,
            ncclCommFinalize,
            ncclCommDestroy,
            ncclCommAbort,
            ncclCommRevoke,
            ncclCommSplit,
            ncclGetErrorString,
            ncclGetLastError,
            ncclCommGetAsyncError,
            ncclCommCount,
            ncclCommCuDevice,
            ncclCommUserRank,
            ncclCommWindowRegister,
            ncclCommWindowDeregister,
            ncclBroadcast,
            ncclAllGather,
            ncclSend,
            ncclRecv,
            ncclGroupStart,
            ncclGroupEnd,
            ncclGetPeerDevicePointer,
        })
    }
    pub unsafe fn ncclMemAlloc(&self, ptr: *mut *mut ::core::ffi::c_void, size: usize) -> ncclResult_t {
        unsafe { (self.ncclMemAlloc.as_ref().expect("Expected function, got error."))(ptr, size) }
    }
    pub unsafe fn ncclMemFree(&self, ptr: *mut ::core::ffi::c_void) -> ncclResult_t {
        unsafe { (self.ncclMemFree.as_ref().expect("Expected function, got error."))(ptr) }
    }
    pub unsafe fn ncclGetVersion(&self, version: *mut ::core::ffi::c_int) -> ncclResult_t {
        unsafe { (self.ncclGetVersion.as_ref().expect("Expected function, got error."))(version) }
    }
    pub unsafe fn ncclGetUniqueId(&self, uniqueId: *mut ncclUniqueId) -> ncclResult_t {
        unsafe { (self.ncclGetUniqueId.as_ref().expect("Expected function, got error."))(uniqueId) }
    }
    pub unsafe fn ncclCommInitRankConfig(
        &self,
        comm: *mut ncclComm_t,
        nranks: ::core::ffi::c_int,
        commId: ncclUniqueId,
        rank: ::core::ffi::c_int,
        config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclCommInitRankConfig.as_ref().expect("Expected function, got error."))(
                comm, nranks, commId, rank, config,
            )
        }
    }
    pub unsafe fn ncclCommFinalize(&self, comm: ncclComm_t) -> ncclResult_t {
        unsafe { (self.ncclCommFinalize.as_ref().expect("Expected function, got error."))(comm) }
    }
    pub unsafe fn ncclCommDestroy(&self, comm: ncclComm_t) -> ncclResult_t {
        unsafe { (self.ncclCommDestroy.as_ref().expect("Expected function, got error."))(comm) }
    }
    pub unsafe fn ncclCommAbort(&self, comm: ncclComm_t) -> ncclResult_t {
        unsafe { (self.ncclCommAbort.as_ref().expect("Expected function, got error."))(comm) }
    }
    pub unsafe fn ncclCommRevoke(&self, comm: ncclComm_t, revokeFlags: ::core::ffi::c_int) -> ncclResult_t {
        unsafe { (self.ncclCommRevoke.as_ref().expect("Expected function, got error."))(comm, revokeFlags) }
    }
    pub unsafe fn ncclCommSplit(
        &self,
        comm: ncclComm_t,
        color: ::core::ffi::c_int,
        key: ::core::ffi::c_int,
        newcomm: *mut ncclComm_t,
        config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclCommSplit.as_ref().expect("Expected function, got error."))(
                comm, color, key, newcomm, config,
            )
        }
    }
    pub unsafe fn ncclGetErrorString(&self, result: ncclResult_t) -> *const ::core::ffi::c_char {
        unsafe { (self.ncclGetErrorString.as_ref().expect("Expected function, got error."))(result) }
    }
    pub unsafe fn ncclGetLastError(&self, comm: ncclComm_t) -> *const ::core::ffi::c_char {
        unsafe { (self.ncclGetLastError.as_ref().expect("Expected function, got error."))(comm) }
    }
    pub unsafe fn ncclCommGetAsyncError(
        &self,
        comm: ncclComm_t,
        asyncError: *mut ncclResult_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclCommGetAsyncError.as_ref().expect("Expected function, got error."))(comm, asyncError)
        }
    }
    pub unsafe fn ncclCommCount(&self, comm: ncclComm_t, count: *mut ::core::ffi::c_int) -> ncclResult_t {
        unsafe { (self.ncclCommCount.as_ref().expect("Expected function, got error."))(comm, count) }
    }
    pub unsafe fn ncclCommCuDevice(&self, comm: ncclComm_t, device: *mut ::core::ffi::c_int) -> ncclResult_t {
        unsafe { (self.ncclCommCuDevice.as_ref().expect("Expected function, got error."))(comm, device) }
    }
    pub unsafe fn ncclCommUserRank(&self, comm: ncclComm_t, rank: *mut ::core::ffi::c_int) -> ncclResult_t {
        unsafe { (self.ncclCommUserRank.as_ref().expect("Expected function, got error."))(comm, rank) }
    }
    pub unsafe fn ncclCommWindowRegister(
        &self,
        comm: ncclComm_t,
        buff: *mut ::core::ffi::c_void,
        size: usize,
        win: *mut ncclWindow_t,
        winFlags: ::core::ffi::c_int,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclCommWindowRegister.as_ref().expect("Expected function, got error."))(
                comm, buff, size, win, winFlags,
            )
        }
    }
    pub unsafe fn ncclCommWindowDeregister(&self, comm: ncclComm_t, win: ncclWindow_t) -> ncclResult_t {
        unsafe { (self.ncclCommWindowDeregister.as_ref().expect("Expected function, got error."))(comm, win) }
    }
    pub unsafe fn ncclBroadcast(
        &self,
        sendbuff: *const ::core::ffi::c_void,
        recvbuff: *mut ::core::ffi::c_void,
        count: usize,
        datatype: ncclDataType_t,
        root: ::core::ffi::c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclBroadcast.as_ref().expect("Expected function, got error."))(
                sendbuff, recvbuff, count, datatype, root, comm, stream,
            )
        }
    }
    pub unsafe fn ncclAllGather(
        &self,
        sendbuff: *const ::core::ffi::c_void,
        recvbuff: *mut ::core::ffi::c_void,
        sendcount: usize,
        datatype: ncclDataType_t,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclAllGather.as_ref().expect("Expected function, got error."))(
                sendbuff, recvbuff, sendcount, datatype, comm, stream,
            )
        }
    }
    pub unsafe fn ncclSend(
        &self,
        sendbuff: *const ::core::ffi::c_void,
        count: usize,
        datatype: ncclDataType_t,
        peer: ::core::ffi::c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclSend.as_ref().expect("Expected function, got error."))(
                sendbuff, count, datatype, peer, comm, stream,
            )
        }
    }
    pub unsafe fn ncclRecv(
        &self,
        recvbuff: *mut ::core::ffi::c_void,
        count: usize,
        datatype: ncclDataType_t,
        peer: ::core::ffi::c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclRecv.as_ref().expect("Expected function, got error."))(
                recvbuff, count, datatype, peer, comm, stream,
            )
        }
    }
    pub unsafe fn ncclGroupStart(&self) -> ncclResult_t {
        unsafe { (self.ncclGroupStart.as_ref().expect("Expected function, got error."))() }
    }
    pub unsafe fn ncclGroupEnd(&self) -> ncclResult_t {
        unsafe { (self.ncclGroupEnd.as_ref().expect("Expected function, got error."))() }
    }
    pub unsafe fn ncclGetPeerDevicePointer(
        &self,
        window: ncclWindow_t,
        offset: usize,
        peer: ::core::ffi::c_int,
        outPtr: *mut *mut ::core::ffi::c_void,
    ) -> ncclResult_t {
        unsafe {
            (self.ncclGetPeerDevicePointer.as_ref().expect("Expected function, got error."))(
                window, offset, peer, outPtr,
            )
        }
    }
}
