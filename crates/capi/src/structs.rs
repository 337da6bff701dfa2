//! Checks and reads what C passes: structs that begin with their size, tensors and arrays.

use crate::boundary::{Outcome, argument};
use crate::sys::{self, lmhead_tensor};
use lmhead::DType;
use lmhead::memory::{Memory, Span, SpanMut, Stream};
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// A struct of the header that begins with its size.
///
/// # Safety
/// The type must be `repr(C)` with a `usize` as its first field, and all zeros must be a valid value.
pub unsafe trait Sized {
    const NAME: &'static str;
    /// Its size in the first version of the header that had it.
    const FIRST: usize;
}

macro_rules! sized {
    ($($name:ident $first:literal),*) => { $(
        // SAFETY: the header declares numbers and pointers after the size.
        unsafe impl Sized for sys::$name {
            const NAME: &'static str = stringify!($name);
            const FIRST: usize = $first;
        }
    )* };
}

sized!(
    lmhead_backend_config 24, lmhead_load 80, lmhead_weights_config 128, lmhead_weights_info 64,
    lmhead_transport 112, lmhead_config 96, lmhead_step 176, lmhead_stats 80, lmhead_answer 128,
    lmhead_needs 40
);

/// Reads a struct. One of an older header is completed with zeros; one of a newer header is accepted if the
/// fields that are unknown here are zero.
///
/// # Safety
/// `pointer` must be null, or point to as many bytes as its first field says.
pub unsafe fn sized<T: Sized + Copy>(what: &str, pointer: *const T) -> Outcome<T> {
    // SAFETY: as the caller says.
    let size = unsafe { size_of_given(what, pointer)? };
    let mut value = MaybeUninit::<T>::zeroed();
    let bytes = size.min(size_of::<T>());
    // SAFETY: the caller's promise for what is read; the value has at least as much room.
    unsafe { std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), bytes) };
    for at in size_of::<T>()..size {
        // SAFETY: within the caller's bytes.
        if unsafe { pointer.cast::<u8>().add(at).read() } != 0 {
            let wanted = format!("{} with zeros from byte {} on", T::NAME, size_of::<T>());
            let got =
                format!("another value at byte {at}: a newer program sets what this library does not know");
            return Err(argument(what, wanted, got, "use the library of that header, or newer"));
        }
    }
    // SAFETY: zeros are a valid value, and so are any numbers and pointers that a caller writes.
    Ok(unsafe { value.assume_init() })
}

/// # Safety
/// As [`sized()`].
unsafe fn size_of_given<T: Sized>(what: &str, pointer: *const T) -> Outcome<usize> {
    // SAFETY: the caller's promise: the first field is there.
    let size = *unsafe { crate::boundary::given(what, pointer.cast::<usize>())? };
    if size < T::FIRST || size > 1 << 16 {
        let wanted = format!("a {} of at least {} bytes", T::NAME, T::FIRST);
        let fix = format!("make it with {}_init()", T::NAME);
        return Err(argument(what, wanted, format!("size {size}"), &fix));
    }
    Ok(size)
}

/// Checks a struct that an answer will be written to, and returns its size.
///
/// # Safety
/// As [`sized()`].
pub unsafe fn room<T: Sized>(what: &str, pointer: *mut T) -> Outcome<usize> {
    // SAFETY: as the caller says.
    unsafe { size_of_given(what, pointer.cast_const()) }
}

/// Writes an answer to a struct of the caller's size; the size field is kept.
///
/// # Safety
/// [`room`] must have returned `size` for the pointer.
pub unsafe fn write<T: Sized>(pointer: *mut T, size: usize, value: &T) {
    let head = size_of::<usize>();
    let bytes = size.min(size_of::<T>()) - head;
    let from = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: both have that many bytes.
    unsafe { std::ptr::copy_nonoverlapping(from.add(head), pointer.cast::<u8>().add(head), bytes) };
}

/// Converts a size or a count; refuses negative ones.
pub fn count(what: &str, n: i64) -> Outcome<usize> {
    usize::try_from(n).map_err(|_| argument(what, "a number of at least 0", n, "correct it"))
}

/// A slice of `n` elements; `None` where the pointer is null.
///
/// # Safety
/// `pointer` must be null, or point to `n` elements that live and do not change for `'a`.
pub unsafe fn array<'a, T>(what: &str, pointer: *const T, n: usize) -> Outcome<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    let fits = n.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize);
    if !pointer.is_aligned() || !fits {
        let wanted = format!("{n} elements, aligned to {}", align_of::<T>());
        return Err(argument(what, wanted, format!("{pointer:p}"), "align it"));
    }
    // SAFETY: the caller's promise.
    Ok(Some(unsafe { std::slice::from_raw_parts(pointer, n) }))
}

/// As `array()`, but null is refused unless `n` is 0.
///
/// # Safety
/// As [`array()`].
pub unsafe fn needed<'a, T>(what: &str, pointer: *const T, n: usize) -> Outcome<&'a [T]> {
    // SAFETY: as the caller says.
    match unsafe { array(what, pointer, n)? } {
        Some(elements) => Ok(elements),
        None if n == 0 => Ok(&[]),
        None => Err(argument(what, format!("{n} elements"), "NULL", "pass them")),
    }
}

/// The type with this number.
pub fn dtype(what: &str, code: u32) -> Outcome<DType> {
    match code {
        sys::LMHEAD_F32 => Ok(DType::F32),
        sys::LMHEAD_F16 => Ok(DType::F16),
        sys::LMHEAD_BF16 => Ok(DType::Bf16),
        sys::LMHEAD_I8 => Ok(DType::I8),
        sys::LMHEAD_E4M3 => Ok(DType::E4m3),
        other => Err(argument(what, "f32, f16, bf16, i8 or e4m3", dlpack_name(other), "use one of those")),
    }
}

/// The name of a DLPack type, such as "float64"; other numbers in hexadecimal.
fn dlpack_name(number: u32) -> String {
    let [code, bits, ..] = number.to_le_bytes();
    let kind = ["int", "uint", "float", "handle", "bfloat", "complex", "bool"].get(usize::from(code));
    match kind {
        Some(kind) if bits > 0 && number >> 16 == 1 => format!("{kind}{bits}"),
        _ => format!("{number:#x}"),
    }
}

/// The number of a type.
pub fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => sys::LMHEAD_F32,
        DType::F16 => sys::LMHEAD_F16,
        DType::Bf16 => sys::LMHEAD_BF16,
        DType::I8 => sys::LMHEAD_I8,
        DType::E4m3 => sys::LMHEAD_E4M3,
    }
}

/// The memory of a tensor. Device type 0, as in a struct of zeros, is the host.
pub fn memory(what: &str, device_type: i32, device_id: i32) -> Outcome<Memory> {
    match device_type as u32 {
        0 | sys::LMHEAD_HOST | sys::LMHEAD_CUDA_PINNED => Ok(Memory::Host),
        sys::LMHEAD_CUDA => match u32::try_from(device_id) {
            Ok(id) => Ok(Memory::Device(id)),
            Err(_) => Err(argument(what, "a device of at least 0", device_id, "pass the device's number")),
        },
        other => {
            let fix = "copy it to host or CUDA memory";
            Err(argument(
                what,
                "LMHEAD_HOST, LMHEAD_CUDA or LMHEAD_CUDA_PINNED",
                format!("device type {other}"),
                fix,
            ))
        }
    }
}

/// The checked shape of a tensor; `stride` is in bytes.
pub struct TensorShape {
    pub memory: Memory,
    pub dtype: DType,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
    /// Bytes from the beginning of the first row to the end of the last.
    pub bytes: usize,
}

impl TensorShape {
    /// Checks the fields of a tensor.
    pub fn of(what: &str, tensor: &lmhead_tensor) -> Outcome<Self> {
        let memory = memory(what, tensor.device_type, tensor.device_id)?;
        let dtype = dtype(what, tensor.dtype)?;
        let (rows, columns) = (count(what, tensor.rows)?, count(what, tensor.columns)?);
        let stride = if tensor.stride == 0 { columns } else { count(what, tensor.stride)? };
        if tensor.reserved != 0 {
            return Err(argument(what, "reserved = 0", tensor.reserved, "begin with a tensor of zeros"));
        }
        if rows > 1 && stride < columns {
            let wanted = format!("a stride of at least the {columns} columns");
            return Err(argument(what, wanted, stride, "strides count elements from row to row"));
        }
        let too_large =
            || argument(what, "fewer bytes than 2^63", format!("[{rows}, {columns}]"), "correct the shape");
        let bytes =
            |elements: usize| elements.checked_mul(dtype.size()).filter(|n| isize::try_from(*n).is_ok());
        let row = bytes(columns).ok_or_else(too_large)?;
        let stride = bytes(stride).ok_or_else(too_large)?;
        let bytes = match rows.checked_sub(1) {
            None => 0,
            Some(before) => before
                .checked_mul(stride)
                .and_then(|bytes| bytes.checked_add(row))
                .filter(|n| isize::try_from(*n).is_ok())
                .ok_or_else(too_large)?,
        };
        if bytes > 0 && tensor.data.is_null() {
            return Err(argument(
                what,
                format!("[{rows}, {columns}] {dtype}"),
                "NULL",
                "pass the address of row 0",
            ));
        }
        Ok(TensorShape { memory, dtype, rows, columns, stride, bytes })
    }
}

/// A span of `bytes` bytes for reading; empty where the pointer is null.
///
/// # Safety
/// As [`Span::from_raw`].
pub unsafe fn span<'a>(memory: Memory, pointer: *const c_void, bytes: usize) -> Span<'a> {
    if pointer.is_null() || bytes == 0 {
        return Span::EMPTY;
    }
    // SAFETY: as the caller says.
    unsafe { Span::from_raw(memory, pointer.expose_provenance() as u64, bytes) }
}

/// A span of `bytes` bytes for writing; empty where the pointer is null.
///
/// # Safety
/// As [`SpanMut::from_raw`].
pub unsafe fn span_mut<'a>(memory: Memory, pointer: *mut c_void, bytes: usize) -> SpanMut<'a> {
    if pointer.is_null() || bytes == 0 {
        return SpanMut::EMPTY;
    }
    // SAFETY: as the caller says.
    unsafe { SpanMut::from_raw(memory, pointer.expose_provenance() as u64, bytes) }
}

/// The stream of a step; a step in host memory must have none.
///
/// # Safety
/// `handle` must be a stream of the device's primary context, or null, which is its default stream.
pub unsafe fn stream(memory: Memory, handle: *mut c_void) -> Outcome<Stream> {
    match memory {
        Memory::Host if handle.is_null() => Ok(Stream::NONE),
        Memory::Host => {
            let fix = "pass no stream: with host memory a function returns when all is done";
            Err(argument("stream", "NULL with rows in host memory", format!("{handle:p}"), fix))
        }
        // SAFETY: as the caller says.
        Memory::Device(_) => Ok(unsafe { Stream::from_raw(handle.addr() as u64) }),
    }
}
