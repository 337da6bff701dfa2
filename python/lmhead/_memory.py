"""Memory of others, without copies: DLPack, NumPy's array interface, and Python's buffers.

`view` describes an object's elements in memory. `maker_like` makes arrays for answers, of the kind that the
caller works with: by the producer's own allocator, by NumPy, or as a memoryview.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from . import _sys
from ._library import ArgumentError, DtypeError, ShapeError, refusal
from ._sys import (
    LMHEAD_BF16,
    LMHEAD_CUDA,
    LMHEAD_E4M3,
    LMHEAD_F16,
    LMHEAD_F32,
    LMHEAD_HOST,
    LMHEAD_I8,
    LMHEAD_I32,
    LMHEAD_I64,
)


def _number(code: int, bits: int) -> int:
    return code | bits << 8 | 1 << 16


# DLPack's type numbers that lmhead.h has no name for, because none of its functions takes them.
U8, U32, U64, BOOL = _number(1, 8), _number(1, 32), _number(1, 64), _number(6, 8)

NAMES = {
    LMHEAD_F32: "f32",
    LMHEAD_F16: "f16",
    LMHEAD_BF16: "bf16",
    LMHEAD_I8: "i8",
    LMHEAD_E4M3: "e4m3",
    LMHEAD_I32: "i32",
    LMHEAD_I64: "i64",
    U8: "u8",
    U32: "u32",
    U64: "u64",
    BOOL: "bool",
}
NUMBERS = {name: number for number, name in NAMES.items()}
_C_TYPES: dict[int, Any] = {
    LMHEAD_F32: ctypes.c_float,
    LMHEAD_F16: c_uint16,
    LMHEAD_BF16: c_uint16,
    LMHEAD_I8: ctypes.c_int8,
    LMHEAD_E4M3: c_uint8,
    LMHEAD_I32: c_int32,
    LMHEAD_I64: c_int64,
    U8: c_uint8,
    U32: c_uint32,
    U64: c_uint64,
    BOOL: c_uint8,
}
# DLPack's type code for each format letter of `struct` and memoryview.
_KINDS = {**dict.fromkeys("bhilqn", 0), **dict.fromkeys("BHILQNc", 1), **dict.fromkeys("efd", 2), "?": 6}
_FORMATS: dict[int, Any] = {LMHEAD_F32: "f", LMHEAD_F16: "H", LMHEAD_BF16: "H", LMHEAD_I64: "q", U8: "B"}
_NUMPY = {
    LMHEAD_F32: "float32",
    LMHEAD_F16: "float16",
    LMHEAD_BF16: "uint16",
    LMHEAD_I64: "int64",
    U8: "uint8",
}

# The types that a parameter accepts: the first is the documented one, the others have the same bytes.
FLOATS, I64S, I32S, U64S = (LMHEAD_F32,), (LMHEAD_I64,), (LMHEAD_I32,), (U64, LMHEAD_I64)
BYTES = (U8, BOOL)


def dtype_number(name: str) -> int:
    """The number of "f32", "f16", "bf16" or "i8"."""
    try:
        return NUMBERS[name]
    except KeyError:
        raise refusal(DtypeError, "dtype", "f32, f16, bf16 or i8", repr(name), "use one of those") from None


class Tensor:
    """The memory of an array's elements, and what keeps it alive. It is read, or written, in place."""

    __slots__ = ("address", "device_type", "device_id", "number", "shape", "strides", "readonly", "owner")

    def __init__(self, address, device_type, device_id, number, shape, strides, readonly, owner):
        self.address: int = address or 0
        self.device_type: int = device_type
        self.device_id: int = device_id
        self.number: int = number
        self.shape: tuple[int, ...] = shape
        self.strides: tuple[int, ...] | None = strides
        """In elements; None where the tensor is contiguous."""
        self.readonly: bool = readonly
        self.owner: Any = owner

    @property
    def dtype(self) -> str:
        """Like "bf16"; DLPack's numbers for a type that this library does not know."""
        return NAMES.get(self.number) or f"type {self.number & 255} of {self.number >> 8 & 255} bits"

    @property
    def device(self) -> str:
        return "host" if self.on_host else f"device {self.device_type}:{self.device_id}"

    @property
    def on_host(self) -> bool:
        # Pinned memory is host memory.
        return self.device_type in (LMHEAD_HOST, _sys.LMHEAD_CUDA_PINNED)

    @property
    def contiguous(self) -> bool:
        if self.strides is None or 0 in self.shape:
            return True
        want = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides)):
            if size != 1 and stride != want:
                return False
            want *= size
        return True

    def __repr__(self) -> str:
        return f"Tensor({self.dtype} {list(self.shape)} in {self.device})"

    def matrix(self, what: str) -> _sys.lmhead_tensor:
        """As a struct of lmhead.h: [rows, columns] with contiguous rows."""
        if len(self.shape) != 2:
            fix = "reshape it; one row is [1, columns]"
            raise refusal(ShapeError, what, "[rows, columns]", f"{list(self.shape)}", fix)
        rows, columns = self.shape
        stride = 0
        if self.strides is not None and rows and columns:
            stride = self.strides[0]
            if columns > 1 and self.strides[1] != 1:
                wanted = "elements of a row side by side"
                raise refusal(
                    ShapeError, what, wanted, f"a stride of {self.strides[1]}", "make it contiguous"
                )
            if rows > 1 and stride < columns:
                wanted = f"at least {columns} elements from row to row"
                raise refusal(ShapeError, what, wanted, f"{stride}", "make it contiguous")
        data = self.address if rows and columns else None
        return _sys.lmhead_tensor(
            data, self.device_type, self.device_id, self.number, 0, rows, columns, stride if rows > 1 else 0
        )


# ---- DLPack ----


class _DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Versioned(Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


_READONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_SetError = ctypes.CFUNCTYPE(None, c_void_p, ctypes.c_char_p, ctypes.c_char_p)


class _ExchangeApi(Structure):
    """DLPackExchangeAPI. Its functions are called with the GIL, and raise what they set."""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("previous", c_void_p),
        (
            "allocate",
            ctypes.PYFUNCTYPE(c_int32, POINTER(_DLTensor), POINTER(POINTER(_Versioned)), c_void_p, _SetError),
        ),
        ("managed_from_object", c_void_p),
        ("managed_to_object", ctypes.PYFUNCTYPE(c_int32, POINTER(_Versioned), POINTER(c_void_p))),
        ("tensor_from_object", ctypes.PYFUNCTYPE(c_int32, ctypes.py_object, POINTER(_DLTensor))),
        ("current_work_stream", ctypes.PYFUNCTYPE(c_int32, c_int32, c_int32, POINTER(c_void_p))),
    ]


_python = ctypes.pythonapi
_python.PyCapsule_GetPointer.restype = c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.Py_DecRef.argtypes = [c_void_p]

_apis: dict[type, _ExchangeApi | None] = {}


def _api_of(kind: type) -> _ExchangeApi | None:
    """The C functions of a producer, from the type of its arrays."""
    try:
        return _apis[kind]
    except KeyError:
        capsule, api = getattr(kind, "__dlpack_c_exchange_api__", None), None
        if capsule is not None:
            api = _ExchangeApi.from_address(_python.PyCapsule_GetPointer(capsule, b"dlpack_exchange_api"))
            # A later major version may have other functions; an older one may lack this one.
            api = api if api.major == 1 and api.tensor_from_object else None
        _apis[kind] = api
        return api


def _of_dltensor(tensor: _DLTensor, readonly: bool, owner: Any) -> Tensor:
    n = tensor.ndim
    shape = tuple(tensor.shape[:n])
    strides = tuple(tensor.strides[:n]) if tensor.strides else None
    number = tensor.code | tensor.bits << 8 | tensor.lanes << 16
    data = (tensor.data or 0) + tensor.byte_offset
    return Tensor(data, tensor.device_type, tensor.device_id, number, shape, strides, readonly, owner)


def _of_dlpack(array: Any) -> Tensor:
    """By `__dlpack__`. The capsule is kept and never renamed, so that its destructor frees its content."""
    try:
        capsule = array.__dlpack__(max_version=(1, 1))
    except TypeError:  # a producer older than DLPack's versions
        capsule = array.__dlpack__()
    if _python.PyCapsule_IsValid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_python.PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise refusal(
                ArgumentError, "__dlpack__", "DLPack 1", f"DLPack {managed.major}", "use a newer lmhead"
            )
        return _of_dltensor(managed.tensor, bool(managed.flags & _READONLY), (array, capsule))
    address = _python.PyCapsule_GetPointer(capsule, b"dltensor")
    return _of_dltensor(_DLTensor.from_address(address), False, (array, capsule))


# ---- NumPy ----


def _of_interface(array: Any, interface: dict[str, Any]) -> Tensor:
    typestr = interface["typestr"]
    size = int(typestr[2:])
    if typestr[1] == "V" and getattr(getattr(array, "dtype", None), "name", "") == "bfloat16":
        number = LMHEAD_BF16
    else:
        # Another byte order is a type that is not known.
        code = {"i": 0, "u": 1, "f": 2, "b": 6}.get(typestr[1], 255) if typestr[0] in "<|" else 255
        number = _number(code, 8 * size)
    strides = interface.get("strides")
    if strides is not None:
        if any(stride % size for stride in strides):
            fix = "make it contiguous"
            raise refusal(
                ShapeError, "array", f"strides that are multiples of {size} bytes", f"{strides}", fix
            )
        strides = tuple(stride // size for stride in strides)
    address, readonly = interface["data"]
    return Tensor(address, LMHEAD_HOST, 0, number, tuple(interface["shape"]), strides, readonly, array)


# ---- buffers ----


class _PyBuffer(Structure):
    _fields_ = [
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", POINTER(ctypes.c_ssize_t)),
        ("strides", POINTER(ctypes.c_ssize_t)),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    ]


_python.PyObject_GetBuffer.argtypes = [ctypes.py_object, POINTER(_PyBuffer), ctypes.c_int]
_python.PyBuffer_Release.argtypes = [POINTER(_PyBuffer)]
_python.PyBuffer_Release.restype = None
_PYBUF_RECORDS_RO = 0x1C  # with strides and format, read-only too


class _Held:
    """A buffer, which its owner can neither resize nor free while it is held."""

    def __init__(self, owner: Any):
        self.buffer = _PyBuffer()
        _python.PyObject_GetBuffer(owner, byref(self.buffer), _PYBUF_RECORDS_RO)

    def __del__(self, release=_python.PyBuffer_Release, byref=byref):
        if self.buffer.obj:
            release(byref(self.buffer))


def _of_buffer(array: Any) -> Tensor:
    held = _Held(array)
    buffer = held.buffer
    size, format_ = buffer.itemsize, (buffer.format or b"B").decode().lstrip("@=<")
    number = _number(_KINDS.get(format_, 255), 8 * size)
    shape, strides = tuple(buffer.shape[: buffer.ndim]), None
    # ctypes' buffers have no strides.
    if buffer.strides:
        strides = tuple(buffer.strides[: buffer.ndim])
        if any(stride % size for stride in strides):
            wanted = f"strides that are multiples of {size} bytes"
            raise refusal(ShapeError, "array", wanted, f"{strides}", "copy it")
        strides = tuple(stride // size for stride in strides)
    return Tensor(buffer.buf, LMHEAD_HOST, 0, number, shape, strides, bool(buffer.readonly), held)


# ---- all of them ----


def _is_negated(array: Any) -> bool:
    """Whether the elements are the negatives of the values in memory, as in some views of PyTorch, whose C
    functions do not say so."""
    is_negated = getattr(array, "is_neg", None)
    return is_negated is not None and is_negated()


def view(array: Any, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """The elements of `array` in memory, without a copy.

    `array` speaks DLPack (`__dlpack_c_exchange_api__` or `__dlpack__`: PyTorch, JAX, CuPy), NumPy's
    `__array_interface__`, or is a buffer (bytes, bytearray, memoryview, array.array).

    `dtype` and `shape` read the same bytes as something else: a buffer has no type for bf16, and `bytes` have
    no rows. `view(data, "bf16", (rows, hidden))`.
    """
    if isinstance(array, Tensor):
        tensor = array
    elif (api := _api_of(type(array))) is not None:
        answer, is_lazy = _DLTensor(), _is_negated(array)
        if is_lazy:
            array = array.detach().resolve_neg()
        api.tensor_from_object(array, byref(answer))
        # Writes into a copy would be lost.
        tensor = _of_dltensor(answer, is_lazy, array)
    elif (interface := getattr(array, "__array_interface__", None)) is not None:
        tensor = _of_interface(array, interface)
    elif hasattr(array, "__dlpack__"):
        tensor = _of_dlpack(array)
    else:
        try:
            tensor = _of_buffer(array)
        except TypeError:
            wanted = "an array that speaks DLPack or NumPy, or a buffer"
            fix = "convert it; lists are taken where a number for each row is wanted"
            raise refusal(ArgumentError, "array", wanted, f"a {type(array).__name__}", fix) from None
    return tensor if dtype is None and shape is None else _read_as(tensor, dtype, shape)


def _read_as(tensor: Tensor, dtype: str | None, shape: tuple[int, ...] | None) -> Tensor:
    if not tensor.contiguous:
        raise refusal(
            ShapeError, "array", "contiguous memory", f"strides {tensor.strides}", "make it contiguous"
        )
    number = tensor.number if dtype is None else dtype_number(dtype)
    have = math.prod(tensor.shape) * (tensor.number >> 8 & 255) // 8
    size = (number >> 8 & 255) // 8
    if shape is None:
        *outer, last = tensor.shape or (1,)
        shape = (*outer, last * (tensor.number >> 8 & 255) // 8 // size)
    want = math.prod(shape) * size
    if have != want:
        wanted = f"{want} bytes for {NAMES.get(number, dtype)} {list(shape)}"
        raise refusal(ShapeError, "array", wanted, f"{have} bytes", "correct the shape")
    return Tensor(
        tensor.address,
        tensor.device_type,
        tensor.device_id,
        number,
        shape,
        None,
        tensor.readonly,
        tensor.owner,
    )


def vector(what: str, value: Any, types: tuple[int, ...], n: int) -> tuple[int | None, Any]:
    """The address of `n` numbers, and what keeps them alive: one number for all, a list, or an array used in
    place.

    They are of the first of `types`, or of one of the others, which have the same bytes.
    """
    if value is None:
        return None, None
    kind = _C_TYPES[types[0]]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a number of NumPy's or PyTorch's
    if isinstance(value, (int, float)):
        value = [value] * n
    if isinstance(value, (list, tuple)):
        if len(value) != n:
            raise refusal(
                ShapeError, what, f"{n} numbers", f"{len(value)}", "pass one for each row, or one for all"
            )
        try:
            made = (kind * n)(*value)
        except TypeError as error:
            raise refusal(DtypeError, what, NAMES[types[0]], error, "convert them") from None
        if kind is not ctypes.c_float and any(a != b for a, b in zip(made, value)):
            # ctypes would drop the bits that do not fit.
            fix = "correct the one that does not fit"
            raise refusal(DtypeError, what, f"numbers of type {NAMES[types[0]]}", f"{list(value)}", fix)
        return ctypes.addressof(made) if n else None, made
    tensor = view(value)
    host_array(what, tensor, types, (n,))
    return tensor.address if n else None, tensor


def input_array(
    what: str, value: Any, types: tuple[int, ...], shape: tuple[int, ...], hidden: Tensor | None
) -> tuple[int | None, Any] | None:
    """Address of an array on the device of `hidden`, and what keeps it alive; None for other values."""
    if hidden is None or hidden.on_host or value is None or isinstance(value, (int, float, list, tuple)):
        return None
    tensor = view(value)
    if tensor.on_host:
        return None
    if (tensor.device_type, tensor.device_id) != (hidden.device_type, hidden.device_id):
        where = f"host memory, or that of hidden, {hidden.device}"
        raise refusal(ArgumentError, what, where, tensor.device, "move it")
    array_of(what, tensor, types, shape)
    return tensor.address if shape[0] else None, tensor


def one_place(what: str, placed: int, given: int) -> bool:
    """Whether all arrays are on the device; refuses a mixture."""
    if placed not in (0, given):
        got = f"{placed} of {given} in device memory"
        raise refusal(ArgumentError, what, "all arrays in host or in device memory", got, "move the others")
    return placed > 0


def host_array(what: str, tensor: Tensor, types: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuses anything but a contiguous array of that type and shape in host memory."""
    if not tensor.on_host:
        raise refusal(ArgumentError, what, "host memory", tensor.device, "copy it to the host")
    array_of(what, tensor, types, shape)


def array_of(what: str, tensor: Tensor, types: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if tensor.number not in types:
        raise refusal(DtypeError, what, NAMES[types[0]], tensor.dtype, "convert it")
    if tensor.shape[1:] != shape[1:] or len(tensor.shape) != len(shape) or tensor.shape[0] < shape[0]:
        raise refusal(
            ShapeError, what, f"{list(shape)}", f"{list(tensor.shape)}", "pass an array of that shape"
        )
    if not tensor.contiguous:
        raise refusal(
            ShapeError, what, "elements side by side", f"strides {tensor.strides}", "make it contiguous"
        )


# ---- arrays for answers ----


class ByProducer:
    """Makes arrays of the producer's own kind, on the device of `like`."""

    def __init__(self, api: _ExchangeApi, like: Tensor):
        self.api, self.like = api, like

    def make(self, number: int, shape: tuple[int, ...]) -> tuple[Any, int]:
        dims = (c_int64 * len(shape))(*shape)
        wanted = _DLTensor(
            None,
            self.like.device_type,
            self.like.device_id,
            len(shape),
            number & 255,
            number >> 8 & 255,
            1,
            dims,
        )
        problem = []
        managed, made = POINTER(_Versioned)(), c_void_p()
        say = _SetError(lambda _, kind, text: problem.append((kind + b": " + text).decode(errors="replace")))
        if self.api.allocate(byref(wanted), byref(managed), None, say) != 0:
            raise MemoryError(f"{NAMES[number]} {list(shape)}: {problem}")
        tensor = managed.contents.tensor
        address = (tensor.data or 0) + tensor.byte_offset
        self.api.managed_to_object(managed, byref(made))
        array = ctypes.cast(made, ctypes.py_object).value
        # Both the function and `value` have taken a reference.
        _python.Py_DecRef(made)
        return array, address


class ByNumPy:
    def __init__(self, like: Any):
        import numpy

        self.numpy = numpy
        dtype = getattr(like, "dtype", None)
        # NumPy has no bf16: without the caller's own type, the bits are answered.
        self.bf16 = dtype if getattr(dtype, "name", "") == "bfloat16" else numpy.dtype("uint16")

    def make(self, number: int, shape: tuple[int, ...]) -> tuple[Any, int]:
        dtype = self.bf16 if number == LMHEAD_BF16 else _NUMPY[number]
        array = self.numpy.empty(shape, dtype)
        return array, array.__array_interface__["data"][0]


class Plain:
    """Makes memoryviews. A 16-bit float is represented by its bits; a view without elements has one dimension."""

    def make(self, number: int, shape: tuple[int, ...]) -> tuple[Any, int]:
        n = math.prod(shape)
        memory = (_C_TYPES[number] * n)()
        flat = memoryview(memory).cast("B").cast(_FORMATS[number])
        return flat.cast("B").cast(_FORMATS[number], shape) if n else flat, ctypes.addressof(memory)


def stream_of(array: Any, tensor: Tensor) -> int | None:
    """The producer's current stream on the array's device, if it has one."""
    # The producer of a `view` is that of the array it was made from.
    api = _api_of(type(tensor.owner if isinstance(array, Tensor) else array))
    if tensor.device_type != LMHEAD_CUDA or api is None or not api.current_work_stream:
        return None
    stream = c_void_p()
    api.current_work_stream(LMHEAD_CUDA, tensor.device_id, byref(stream))
    return stream.value


def maker_like(array: Any, tensor: Tensor) -> ByProducer | ByNumPy | Plain:
    """The maker of answers for rows in `array`, which `tensor` describes."""
    if (api := _api_of(type(array))) is not None and api.allocate and api.managed_to_object:
        return ByProducer(api, tensor)
    if not tensor.on_host:
        fix = "pass `out`, arrays of its own"
        raise refusal(ArgumentError, "out", "arrays in the rows' device memory", "none", fix)
    if hasattr(array, "__array_interface__"):
        return ByNumPy(array)
    if hasattr(array, "__dlpack__"):
        try:
            return ByNumPy(array)
        except ImportError:
            pass
    return Plain()
