"""Rows, answers, indices, workspaces and weights in a GPU's memory, by DLPack, give the bits of host memory.

The GPU is the project's own libcuda, which runs the kernels on the emulated device, and a stream's work only
once something waits for the stream. crates/capi/tests/cuda.rs starts this program. The arrays imitate a
producer's: its `__dlpack__`, with and without versions, and its C functions.
"""

import ctypes
import gc
import struct
from array import array
from ctypes import POINTER, byref, c_int32, c_int64, c_uint64, c_void_p, py_object

import lmhead
from lmhead import Answer, Request, _memory

VOCAB, HIDDEN, ROWS = 200, 48, 3
CODES = {"bf16": (4, 16), "f32": (2, 32), "i8": (0, 8), "i32": (0, 32), "i64": (0, 64), "u8": (1, 8)}
CODES["u64"] = (1, 64)
NAMES = {code: name for name, code in CODES.items()}

# The library loads the same file.
cuda = ctypes.CDLL("libcuda.so")
python = ctypes.pythonapi


def driver(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    assert status == 0, f"{name}: {status}"


driver("cuInit", 0)
contexts = [c_void_p(), c_void_p()]
for number, context in enumerate(contexts):
    driver("cuDevicePrimaryCtxRetain", byref(context), number)
driver("cuCtxSetCurrent", contexts[0])


def new_stream():
    stream = c_void_p()
    driver("cuStreamCreate", byref(stream), 1)  # it does not wait for the default stream
    return stream


# ---- a producer of arrays ----

Deleter = ctypes.PYFUNCTYPE(None, c_void_p)
Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
python.PyCapsule_New.restype = py_object
python.PyCapsule_New.argtypes = [c_void_p, ctypes.c_char_p, c_void_p]
python.Py_IncRef.argtypes = [py_object]
# Declared for addresses, because a capsule's destructor gets an object that is being destroyed.
valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", python))
pointer_of = ctypes.PYFUNCTYPE(c_void_p, c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", python))


class Unversioned(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _memory._DLTensor), ("manager", c_void_p), ("deleter", c_void_p)]


# What consumers hold, by the address of its struct: struct and array. Each is deleted once.
lent = {}


@Deleter
def delete(managed):
    del lent[managed]


@Destructor
def end_capsule(capsule):
    # A consumed capsule has another name, and its consumer deletes it.
    for name in (b"dltensor", b"dltensor_versioned"):
        if valid(capsule, name):
            delete(pointer_of(capsule, name))


class Device:
    """An array in a GPU's memory that speaks DLPack 1."""

    alive = 0

    def __init__(self, dtype, shape, data=None, device=0, stream=None):
        self.dtype, self.shape, self.device = dtype, shape, device
        self.bytes = CODES[dtype][1] // 8
        for n in shape:
            self.bytes *= n
        address = c_uint64()
        driver("cuCtxSetCurrent", contexts[device])
        driver("cuMemAlloc_v2", byref(address), ctypes.c_size_t(max(1, self.bytes)))
        driver("cuCtxSetCurrent", contexts[0])
        self.address, self.stream = address.value, stream
        type(self).alive += 1
        if data is not None:
            assert len(data) == self.bytes
            # Queued without waiting.
            self.kept = ctypes.create_string_buffer(bytes(data), len(data))
            size = ctypes.c_size_t(self.bytes)
            driver("cuMemcpyHtoDAsync_v2", c_uint64(self.address), self.kept, size, stream)

    def __del__(self):
        type(self).alive -= 1
        driver("cuStreamSynchronize", self.stream)
        driver("cuMemFree_v2", c_uint64(self.address))

    def read(self, stream=None):
        """The bytes, after the stream's queued work."""
        data = ctypes.create_string_buffer(self.bytes)
        size = ctypes.c_size_t(self.bytes)
        driver("cuMemcpyDtoHAsync_v2", data, c_uint64(self.address), size, stream)
        driver("cuStreamSynchronize", stream)
        return data.raw

    def fill(self, tensor):
        """Fills in a DLTensor for this array; returns what must be kept alive with it."""
        shape = (c_int64 * len(self.shape))(*self.shape)
        # The address is 256 bytes further: consumers must look at byte_offset.
        tensor.data, tensor.byte_offset = self.address - 256, 256
        tensor.device_type, tensor.device_id = _memory.LMHEAD_CUDA, self.device
        (tensor.code, tensor.bits), tensor.lanes, tensor.ndim = CODES[self.dtype], 1, len(self.shape)
        tensor.shape, tensor.strides = shape, None
        return shape

    def managed(self, kind):
        made = kind()
        lent[ctypes.addressof(made)] = (made, self, self.fill(made.tensor))
        made.deleter = ctypes.cast(delete, c_void_p)
        return made

    def __dlpack__(self, *, max_version=None, stream=None):
        assert max_version[0] == 1
        made = self.managed(_memory._Versioned)
        made.major, made.minor = 1, 1
        end = ctypes.cast(end_capsule, c_void_p)
        return python.PyCapsule_New(ctypes.addressof(made), b"dltensor_versioned", end)

    def __dlpack_device__(self):
        return _memory.LMHEAD_CUDA, self.device


class Old(Device):
    """An array of a producer older than DLPack's versions."""

    alive = 0

    def __dlpack__(self, stream=None):
        made = self.managed(Unversioned)
        return python.PyCapsule_New(ctypes.addressof(made), b"dltensor", ctypes.cast(end_capsule, c_void_p))


class Fast(Device):
    """An array of a producer with C functions, which also allocate answers and report the current stream."""

    alive = 0
    current = None


def c_function(name, body):
    kind = dict(_memory._ExchangeApi._fields_)[name]

    def run(*arguments):
        body(*arguments)
        return 0

    return kind(run)


def allocate(wanted, place, _context, _say):
    like = wanted.contents
    array = Fast(NAMES[like.code, like.bits], tuple(like.shape[: like.ndim]), device=like.device_id)
    # A pattern, so that tests notice bytes that were not written.
    driver("cuMemsetD8Async", c_uint64(array.address), 0x77, ctypes.c_size_t(array.bytes), Fast.current)
    array.stream = Fast.current
    place[0] = ctypes.pointer(array.managed(_memory._Versioned))


def to_object(managed, place):
    address = ctypes.addressof(managed.contents)
    array = lent[address][1]
    delete(address)
    python.Py_IncRef(array)
    place[0] = id(array)


api = _memory._ExchangeApi(1, 1)
api.allocate = c_function("allocate", allocate)
api.managed_to_object = c_function("managed_to_object", to_object)
kept = []


def tensor_from_object(array, tensor):
    kept.append(array.fill(tensor.contents))


def current_work_stream(_type, _device, place):
    place[0] = Fast.current.value


api.tensor_from_object = c_function("tensor_from_object", tensor_from_object)
api.current_work_stream = c_function("current_work_stream", current_work_stream)
Fast.__dlpack_c_exchange_api__ = python.PyCapsule_New(ctypes.addressof(api), b"dlpack_exchange_api", None)


# ---- rows and weights, and the head's answers in host memory ----


def bf16(n, seed):
    """Numbers from -3 to 3, as bytes."""
    state, halves = seed, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        halves.append(struct.unpack("<I", struct.pack("<f", (state >> 40) / 2**22 - 2))[0] >> 16)
    return struct.pack(f"<{n}H", *halves)


WEIGHTS, HIDDEN_ROWS = bf16(VOCAB * HIDDEN, 1), bf16(ROWS * HIDDEN, 2)
REQUESTS = [
    Request.logits("f32"),
    Request.logits("bf16"),
    Request.argmax(),
    Request.topk(5),
    Request.sample(),
]
backend = lmhead.Backend("cuda", threads=1)


def host(dtype, shape, data):
    return lmhead.view(bytearray(data), dtype, shape)


def new_head(**more):
    with lmhead.Weights.wrap(host("bf16", (VOCAB, HIDDEN), WEIGHTS)) as weights:
        return lmhead.Head(weights, backend=backend, **more)


def bytes_of(answer, request, rows=ROWS):
    """Every array of an answer, by name."""
    named = {}
    for name, _number, shape in request.answers(rows, VOCAB):
        value = getattr(answer, name)
        assert tuple(value.shape) == shape, (name, value.shape)
        on_host = isinstance(value, memoryview)
        named[name] = bytes(value.cast("B")) if on_host else value.read(Fast.current)
    return named


def places(request, kind, stream=None, rows=ROWS):
    made = {}
    for name, number, shape in request.answers(rows, VOCAB):
        dtype = lmhead._memory.NAMES[number]
        made[name] = kind(dtype, shape, bytes([0x77]) * kind_bytes(dtype, shape), stream=stream)
    return Answer(**made)


def kind_bytes(dtype, shape):
    n = CODES[dtype][1] // 8
    for size in shape:
        n *= size
    return n


def refuses(error, words, function, *arguments, **more):
    try:
        function(*arguments, **more)
    except error as said:
        assert words in str(said), said
    else:
        raise AssertionError(f"wanted {error.__name__}: {words}")


# ---- tests ----


def answers_in_device_memory_are_the_hosts(head, wanted):
    for kind in (Device, Old, Fast):
        # Uploads, the step and the download are on one stream; nothing else waits for it.
        Fast.current = stream = new_stream()
        for request in REQUESTS:
            rows = kind("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, stream=stream)
            out = places(request, kind, stream)
            answer = head.run(request, rows, out=out, stream=stream.value)
            assert answer.row_status is out.row_status
            assert bytes_of(answer, request) == wanted[request], (kind, request)
            if kind is Fast:
                # The producer's current stream, and arrays that the producer allocates.
                answer = head.run(request, rows)
                assert isinstance(answer.row_status, Fast)
                assert bytes_of(answer, request) == wanted[request], request


def rows_are_picked_by_indices(head, wanted):
    Fast.current = stream = new_stream()
    rows = Fast("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, stream=stream)
    request, vocab = Request.logits("f32"), 4 * VOCAB
    logits = [wanted[request]["logits"][vocab * i :][:vocab] for i in range(ROWS)]
    for dtype, letter in (("i64", "q"), ("i32", "i")):
        indices = Fast(dtype, (4,), array(letter, [2, 0, 2, 1]).tobytes(), stream=stream)
        answer = head.run(request, rows, indices=indices)
        assert answer.logits.read(stream) == logits[2] + logits[0] + logits[2] + logits[1]
        bad = Fast(dtype, (2,), array(letter, [1, 3]).tobytes(), stream=stream)
        answer = head.run(Request.argmax(), rows, indices=bad)
        assert answer.row_status.read(stream) == bytes([0, 3])
        assert array("q", answer.ids.read(stream))[1] == -1


def a_prepared_step_takes_a_workspace(head, wanted):
    Fast.current = stream = new_stream()
    rows = Fast("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, stream=stream)
    for request in REQUESTS:
        head.prepare(request, rows=ROWS, stream=stream.value)
        needed = head.plan(request, ROWS).workspace_bytes
        assert needed > 0
        workspace = Fast("u8", (needed,), stream=stream)
        answer = head.run(request, rows, workspace=workspace, out=places(request, Fast, stream))
        assert bytes_of(answer, request) == wanted[request]
        short = Fast("u8", (1,))
        refuses(lmhead.ShapeError, "workspace", head.run, request, rows, workspace=short)
        on_host = bytearray(needed)
        refuses(lmhead.ArgumentError, "memory of the backend", head.run, request, rows, workspace=on_host)


def weights_in_device_memory_are_used_in_place(wanted):
    Fast.current = stream = new_stream()
    rows = Fast("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, stream=stream)
    matrix = Device("bf16", (VOCAB, HIDDEN), WEIGHTS)
    matrix.read()  # a head reads it on another stream
    with lmhead.Weights.wrap(matrix) as weights, lmhead.Head(weights, backend=backend) as head:
        held = weights.about()
        assert (held.dtype, held.bytes, held.ids) == ("bf16", 2 * VOCAB * HIDDEN, range(VOCAB))
        del matrix
        gc.collect()
        weights.close()
        assert Device.alive == 1, "the head keeps its weights"
        for request in REQUESTS:
            assert bytes_of(head.run(request, rows), request) == wanted[request]
    gc.collect()
    assert Device.alive == 0, "and lets go of them"

    values = bytes((i * 7) % 19 for i in range(VOCAB * HIDDEN))
    scales = array("f", [0.5 + i / 64 for i in range(VOCAB)])
    bias = array("f", [i / 8 for i in range(VOCAB)])
    shape = (VOCAB, HIDDEN)
    made = []
    for in_device in (False, True):
        make = Device if in_device else host
        matrix = make("i8", shape, values)
        scale, added = (make("f32", (VOCAB,), part.tobytes()) for part in (scales, bias))
        if in_device:
            wrap, on_host = lmhead.Weights.wrap, list(scales)
            refuses(lmhead.ArgumentError, "memory of the matrix", wrap, matrix, scales=on_host)
            added.read()
        with lmhead.Weights.wrap(matrix, scales=scale, bias=added, quantization="w8a16") as weights:
            with lmhead.Head(weights, backend=backend) as head:
                made.append(bytes_of(head.run(REQUESTS[0], rows), REQUESTS[0]))
    assert made[0] == made[1]
    del matrix, scale, added, weights, head


def inputs_in_device_memory_are_the_hosts(head):
    """Targets, sampling parameters and adjustments in device memory give the same bits; errors are named."""
    words = (VOCAB + 31) // 32
    letters = {"i32": "i", "i64": "q", "u64": "Q", "f32": "f", "u8": "B"}
    Fast.current = stream = new_stream()
    rows = Fast("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, stream=stream)

    def there(dtype, shape, values):
        return Fast(dtype, shape, array(letters[dtype], values).tobytes(), stream=stream)

    def same(request, placed, of_host, device_adjustments=None):
        wanted = bytes_of(head.run(request, rows, **of_host), request)
        got = head.run(request, rows, device_adjustments=device_adjustments, **placed)
        assert bytes_of(got, request) == wanted, request

    targets = [[5, 199], [-100, 0], [63, 64]]
    placed = there("i64", (ROWS, 2), sum(targets, []))
    same(Request.logprobs(2, 2), {"targets": placed}, {"targets": targets})
    bad = there("i64", (ROWS, 2), [5, VOCAB, -100, 0, -1, 3])
    assert list(head.run(Request.logprobs(2, 2), rows, targets=bad).row_status.read(stream)) == [3, 0, 3]

    numbers = {
        "seed": ("u64", [1, 1 << 63, 3]),
        "position": ("i64", [0, 7, 1 << 40]),
        "temperature": ("f32", [0.5, 0.0, 1.5]),
        "top_k": ("i32", [0, 5, 20]),
        "top_p": ("f32", [0.9, 1.0, 0.5]),
        "min_p": ("f32", [0.0, 0.25, 0.0]),
    }
    placed = lmhead.Sampling(**{name: there(dtype, (ROWS,), of) for name, (dtype, of) in numbers.items()})
    of_host = lmhead.Sampling(**{name: of for name, (_, of) in numbers.items()})
    same(Request.sample(2), {"sampling": placed}, {"sampling": of_host})
    mixed = lmhead.Sampling(seed=placed.seed, top_k=[1, 2, 3])
    words_of = "all arrays in host or in device memory"
    refuses(lmhead.ArgumentError, words_of, head.run, Request.sample(), rows, sampling=mixed)

    mask = [0x55AA55AA] * (ROWS * words)
    arrays = {
        "allowed": ("i32", (ROWS, words), mask),
        "logit_bias_offsets": ("i64", (ROWS + 1,), [0, 2, 2, 3]),
        "logit_bias_ids": ("i64", (3,), [7, 3, 199]),
        "logit_bias_values": ("f32", (3,), [2.5, -1.0, 40.0]),
        "repetition": ("f32", (ROWS,), [1.5, 1.0, 0.5]),
        "presence": ("f32", (ROWS,), [0.25, 0.0, 1.0]),
        "count_offsets": ("i64", (ROWS + 1,), [0, 1, 1, 2]),
        "count_ids": ("i64", (2,), [9, 5]),
        "counts": ("i32", (2,), [2, 0]),
        "in_prompt": ("u8", (2,), [0, 1]),
    }
    placed = lmhead.Adjustments(**{name: there(*of) for name, of in arrays.items()})
    of_host = {name: values for name, (_, _, values) in arrays.items()}
    of_host["allowed"] = host("i32", (ROWS, words), array("i", mask).tobytes())
    of_host = lmhead.Adjustments(**of_host)
    announced = lmhead.DeviceAdjustments(allowed=True, logit_bias=2, counts=1)
    head.prepare(Request.argmax(), rows=ROWS, stream=stream.value, device_adjustments=announced)
    assert head.plan(Request.argmax(), ROWS, device_adjustments=announced).capturable
    for request in (Request.argmax(), Request.topk(4), Request.logits("f32")):
        same(request, {"adjustments": placed}, {"adjustments": of_host}, announced)


def pinned_memory_is_the_hosts(head, wanted):
    place = c_void_p()
    driver("cuMemHostAlloc", byref(place), ctypes.c_size_t(len(HIDDEN_ROWS)), 0)
    ctypes.memmove(place, HIDDEN_ROWS, len(HIDDEN_ROWS))
    number = lmhead.view(host("bf16", (ROWS, HIDDEN), HIDDEN_ROWS)).number
    rows = lmhead.Tensor(place.value, 3, 0, number, (ROWS, HIDDEN), None, False, None)
    for request in REQUESTS:
        assert bytes_of(head.run(request, rows), request) == wanted[request]
    driver("cuMemFreeHost", place)


def memory_of_elsewhere_is_refused(head):
    # On the default stream.
    rows = Device("bf16", (ROWS, HIDDEN), HIDDEN_ROWS)
    ids, status = Device("i64", (ROWS,)), Device("u8", (ROWS,))
    there, on_host = Device("i64", (ROWS,), device=1), array("q", [0] * ROWS)
    out = Answer(ids=ids, row_status=status)

    def refused(words, rows=rows, **more):
        refuses(lmhead.Error, words, head.argmax, rows, **more)

    refused("wanted arrays in the rows' device memory, got none")
    wanted = "out.ids: wanted memory of hidden, device 2:0, got "
    refused(wanted + "host", out=Answer(ids=on_host, row_status=status))
    refused(wanted + "device 2:1", out=Answer(ids=there, row_status=status))
    refused("indices: wanted memory of hidden", indices=[0], out=out)
    refused("indices: wanted memory of hidden", indices=there, out=out)
    elsewhere = Device("bf16", (ROWS, HIDDEN), HIDDEN_ROWS, device=1)
    both = Answer(ids=there, row_status=Device("u8", (ROWS,), device=1))
    refused("device 1", elsewhere, out=both)
    # It is as good as before.
    head.argmax(rows, out=out)
    assert status.read() == bytes(ROWS)


def main():
    assert "cuda" in lmhead.features()
    with new_head() as head:
        rows = host("bf16", (ROWS, HIDDEN), HIDDEN_ROWS)
        wanted = {request: bytes_of(head.run(request, rows), request) for request in REQUESTS}
        answers_in_device_memory_are_the_hosts(head, wanted)
        rows_are_picked_by_indices(head, wanted)
        a_prepared_step_takes_a_workspace(head, wanted)
        weights_in_device_memory_are_used_in_place(wanted)
        inputs_in_device_memory_are_the_hosts(head)
        pinned_memory_is_the_hosts(head, wanted)
        memory_of_elsewhere_is_refused(head)
    del kept[:]
    gc.collect()
    assert not lent, f"{len(lent)} that nobody has deleted"
    assert (Device.alive, Old.alive, Fast.alive) == (0, 0, 0)
    print("device memory: the host's bits")


main()
