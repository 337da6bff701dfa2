"""Shapes and types of what benches/gpu_peers.py asks of PyTorch; what PyTorch refuses is refused here, too."""

import time


class dtype:
    def __init__(self, name, bits, floating):
        self.name, self.bits, self.is_floating_point = name, bits, floating

    def __repr__(self):
        return f"torch.{self.name}"


bfloat16, float32, float64 = dtype("bfloat16", 16, True), dtype("float32", 32, True), dtype("float64", 64, True)
float8_e4m3fn = dtype("float8_e4m3fn", 8, True)
boolean = dtype("bool", 8, False)
int8, int32, int64 = dtype("int8", 8, False), dtype("int32", 32, False), dtype("int64", 64, False)
__version__ = "0.0+stand.in"


class version:
    cuda = "13.0"


def wanted(condition, *said):
    if not condition:
        raise RuntimeError("the stand-in for PyTorch: " + " ".join(map(str, said)))


def broadcast(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b
    wanted(all(x == y or 1 in (x, y) for x, y in zip(a, b)), "sizes", a, "and", b)
    return tuple(max(x, y) for x, y in zip(a, b))


class Tensor:
    def __init__(self, shape, kind):
        self.shape, self.dtype = tuple(int(n) for n in shape), kind

    def like(self, kind=None, shape=None):
        return Tensor(self.shape if shape is None else shape, kind or self.dtype)

    def to(self, kind):
        wanted(isinstance(kind, dtype), "no type:", kind)
        return self.like(kind)

    float = lambda self: self.like(float32)
    double = lambda self: self.like(float64)
    long = lambda self: self.like(int64)
    abs = contiguous = lambda self: self.like()
    norm = min = max = all = lambda self: Tensor((), self.dtype)

    def fill_(self, value):
        wanted(self.dtype.is_floating_point or value == value, "no number in", self.dtype)
        return self

    def round(self):
        wanted(self.dtype.bits >= 16, "round of", self.dtype)
        return self.like()

    def clamp(self, min, max=None):
        return self.like()

    def sum(self, dim):
        return self.like(shape=self.shape[:dim] + self.shape[dim + 1 :])

    def gather(self, dim, ids):
        wanted(ids.dtype is int64 and dim == 1 and len(ids.shape) == len(self.shape) == 2, "gather by", ids.dtype)
        wanted(ids.shape[0] <= self.shape[0], "gather of", self.shape, ids.shape)
        return self.like(shape=ids.shape)

    def __gt__(self, other):
        return self.both(other).like(boolean)

    def t(self):
        wanted(len(self.shape) == 2, "t of", self.shape)
        return self.like(shape=self.shape[::-1])

    def flatten(self):
        n = 1
        for size in self.shape:
            n *= size
        return self.like(shape=(n,))

    def view(self, *shape):
        n = self.flatten().shape[0]
        return self.like(shape=tuple(n if size == -1 else size for size in shape))

    def amax(self, dim, keepdim):
        wanted(dim == 1 and keepdim and len(self.shape) == 2, "amax")
        return self.like(shape=(self.shape[0], 1))

    def argmax(self, dim):
        return self.like(int64, self.shape[:-1])

    def item(self):
        wanted(self.shape == (), "item of", self.shape)
        return 0.01

    def index_select(self, dim, ids):
        wanted(ids.dtype is int64 and len(ids.shape) == 1, "index_select by", ids.dtype, ids.shape)
        return self.like(shape=self.shape[:dim] + ids.shape + self.shape[dim + 1 :])

    def __getitem__(self, rows):
        wanted(isinstance(rows, slice), "an index that is no slice")
        return self.like(shape=(len(range(*rows.indices(self.shape[0]))),) + self.shape[1:])

    def __setitem__(self, rows, value):
        wanted(self[rows].shape == value.shape, "sizes", self[rows].shape, "and", value.shape)

    def both(self, other):
        if not isinstance(other, Tensor):
            return self.like(float32 if not self.dtype.is_floating_point else None)
        kinds = [one.dtype for one in (self, other) if one.dtype is not boolean]
        wanted(all(kind.bits > 8 for kind in kinds), "arithmetic of", self.dtype, other.dtype)
        kind = self.dtype if self.dtype.bits >= other.dtype.bits else other.dtype
        return Tensor(broadcast(self.shape, other.shape), kind)

    __mul__ = __rmul__ = __sub__ = __truediv__ = __rtruediv__ = both

    def __matmul__(self, other):
        wanted(self.dtype is other.dtype and self.shape[1] == other.shape[0], "a product of", self.shape, other.shape)
        return self.like(shape=(self.shape[0], other.shape[1]))


class Generator:
    def __init__(self, device):
        wanted(device == "cuda", "a generator on", device)

    def manual_seed(self, seed):
        return self


def made(device):
    wanted(device == "cuda", "a tensor on", device)


def randn(*shape, generator, device):
    made(device)
    return Tensor(shape, float32)


def randint(low, high, shape, generator, device):
    made(device)
    return Tensor(shape, int64)


def empty(*shape, dtype, device):
    made(device)
    return Tensor(shape, dtype)


def linspace(first, last, count, device):
    made(device)
    return Tensor((count,), float32)


def isfinite(x):
    wanted(x.dtype.is_floating_point, "isfinite of", x.dtype)
    return x


def topk(x, k, dim):
    wanted(x.shape[dim] >= k, "topk of", x.shape)
    shape = x.shape[:-1] + (k,)
    return Tensor(shape, x.dtype), Tensor(shape, int64)


def sort(x, dim, descending):
    wanted(dim == -1 and descending, "sort")
    return x.like(), x.like(int64)


def where(condition, x, y):
    wanted(condition.dtype is boolean and not isinstance(x, Tensor), "where of", condition.dtype)
    return Tensor(broadcast(condition.shape, y.shape), y.dtype)


def cat(parts, dim):
    wanted(dim == 1 and len({(one.shape[0], one.dtype) for one in parts}) == 1, "cat")
    return parts[0].like(shape=(parts[0].shape[0], sum(one.shape[1] for one in parts)))


def logsumexp(x, dim):
    return Tensor(x.shape[:-1], x.dtype)


def softmax(x, dim):
    return x.like()


log_softmax = cumsum = softmax


def multinomial(x, count):
    return Tensor((x.shape[0], count), int64)


def _int_mm(a, b):
    wanted(a.dtype is int8 and b.dtype is int8 and a.shape[1] == b.shape[0], "_int_mm of", a.shape, b.shape)
    wanted(a.shape[0] > 16, "self.size(0) needs to be greater than 16, but got", a.shape[0])
    return Tensor((a.shape[0], b.shape[1]), int32)


def _scaled_mm(a, b, scale_a, scale_b, out_dtype):
    wanted(a.dtype is float8_e4m3fn and b.dtype is float8_e4m3fn and a.shape[1] == b.shape[0], "_scaled_mm")
    wanted(scale_a.shape == (a.shape[0], 1) and scale_a.dtype is float32, "scale_a", scale_a.shape)
    wanted(scale_b.shape == (1, b.shape[1]) and scale_b.dtype is float32, "scale_b", scale_b.shape)
    return Tensor((a.shape[0], b.shape[1]), out_dtype)


def _weight_int8pack_mm(x, w, scales):
    raise NotImplementedError("Could not run 'aten::_weight_int8pack_mm' with arguments from the 'CUDA' backend.")


class Capture:
    def __init__(self, graph):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *said):
        return False


class cuda:
    class CUDAGraph:
        def replay(self):
            time.sleep(1e-4)

    class Stream:
        def wait_stream(self, other):
            pass

    class Event:
        def __init__(self, enable_timing):
            wanted(enable_timing, "an event without a clock")

        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, later):
            return 1e3 * (later.at - self.at)

    class Properties:
        name, L2_cache_size = "Fake 0", 4096

    graph = stream = Capture
    is_available = staticmethod(lambda: True)
    get_device_properties = staticmethod(lambda device: cuda.Properties)
    current_stream = staticmethod(lambda: cuda.Stream())
    synchronize = empty_cache = staticmethod(lambda: None)
