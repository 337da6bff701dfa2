"""What PyTorch reaches on the shapes of the bench `heads`, by turns with it: the bench talks to this program.

    python3 gpu_peers.py < requests > answers

One JSON a line. The first answer says who answers, {"ready": {...}}, or why nobody does, {"none": reason}.
Then

    {"prepare": {"vocab", "hidden", "rows", "launches", "weights"}}   weights: "bf16" or "int8"
        -> {"peers": [{"name", "output", "bytes", "error", "correct"}], "refusals": [{"peer", "said"}]}
    {"replay": n} -> {"us": time of one launch of peer n}, or {"refused": what was said}
    {"release": {}} -> {}

Each peer is a CUDA graph of `launches` calls over rotating weights (at least two copies, three times the
second-level cache), rows and outputs, on random data, timed by CUDA events; an untimed replay before it
keeps the device busy while the first launch is queued. `output` is its type: where that is not bf16 logits,
it says what it is. `error` is ||out - truth|| / ||truth|| of 64 columns against float64, over rows as they
were before they were quantised; null where the peer gives no logits, or none that are numbers. `correct`: the
error is below 0.02, or 0.05 of rows in fp8, whose 3 bits behind the point cost 0.026; of other outputs, the
replay wrote ids of the vocabulary and finite numbers. What PyTorch refuses is told in its own words.

Exit codes: 0 all requests answered, or nobody to answer; 1 something is wrong with this program.
"""

import json
import math
import sys

SOURCE_ROWS = 8192  # index_select picks from that many hidden states
SEED = 20260119
MOST_ERROR, MOST_ERROR_FP8 = 0.02, 0.05
# What PyTorch raises where it cannot do something, memory that is short among it.
REFUSED = (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError)


def answer(value):
    # NaN is no JSON: who reads it would take this program for broken.
    print(json.dumps(value, allow_nan=False), flush=True)


def first_line(e):
    return (str(e).strip() or type(e).__name__).splitlines()[0]


class Head:
    """A head's weights in all types: copies of each are two, or three times the second-level cache."""

    def __init__(self, torch, vocab, hidden, l2):
        self.shape = (vocab, hidden)
        generator = torch.Generator(device="cuda").manual_seed(SEED)
        copies = lambda size: max(2, math.ceil(3 * l2 / (vocab * hidden * size)))
        self.bf16, self.int8, self.fp8 = [], [], []
        for i in range(max(copies(2), copies(1))):
            w = torch.empty(vocab, hidden, dtype=torch.bfloat16, device="cuda")
            q = torch.empty(vocab, hidden, dtype=torch.int8, device="cuda")
            f = torch.empty(vocab, hidden, dtype=torch.float8_e4m3fn, device="cuda")
            most = torch.empty(vocab, 1, dtype=torch.float32, device="cuda")
            # In parts: a whole head in f32 would be twice as large as all else.
            for v in range(0, vocab, 8192):
                part = torch.randn(min(8192, vocab - v), hidden, generator=generator, device="cuda") * 0.02
                w[v : v + 8192] = part.to(torch.bfloat16)
                most[v : v + 8192] = part.abs().amax(dim=1, keepdim=True)
                q[v : v + 8192] = (part * (127 / most[v : v + 8192])).round().to(torch.int8)
                f[v : v + 8192] = (part * (448 / most[v : v + 8192])).to(torch.float8_e4m3fn)
            if i < copies(2):
                self.bf16.append(w)
            self.int8.append((q, (most / 127).contiguous()))
            self.fp8.append((f, (most / 448).contiguous()))


def peers(torch, head, rows, weights, launches):
    """{name: (call, bytes of a weight, output, truth)}; truth(i) is launch i's rows, weights and scales."""
    import torch.nn.functional as F

    vocab, hidden = head.shape
    generator = torch.Generator(device="cuda").manual_seed(SEED + rows)
    normal = lambda n: torch.randn(n, hidden, generator=generator, device="cuda").to(torch.bfloat16)
    x = [normal(rows) for _ in range(launches)]
    pick = lambda copies, i: copies[i % len(copies)]
    if weights == "bf16":
        source = normal(SOURCE_ROWS)
        some = lambda: torch.randint(0, SOURCE_ROWS, (rows,), generator=generator, device="cuda")
        ids = [some() for _ in range(launches)]
        linear = lambda i: F.linear(x[i], pick(head.bf16, i))

        def top8(i):
            logits = linear(i).float()
            return (*torch.topk(logits, 8, dim=-1), torch.logsumexp(logits, dim=-1))

        return {
            "F.linear": (linear, 2, "bf16", lambda i: (x[i], pick(head.bf16, i), None)),
            "index_select + F.linear": (
                lambda i: F.linear(source.index_select(0, ids[i]), pick(head.bf16, i)), 2, "bf16",
                lambda i: (source.index_select(0, ids[i]), pick(head.bf16, i), None)),
            "F.linear + topk(8) + logsumexp": (top8, 2, "the 8 best and their ids, logsumexp", None),
            "F.linear + argmax": (lambda i: linear(i).argmax(dim=-1), 2, "ids", None),
            "F.linear + softmax + multinomial": (
                lambda i: torch.multinomial(torch.softmax(linear(i).float(), dim=-1), 1), 2, "ids", None),
        }
    # _int_mm wants more than 16 rows.
    padded = lambda q: F.pad(q, (0, 0, 0, 32 - rows)) if rows <= 16 else q
    scale = lambda i, most: x[i].abs().amax(dim=1, keepdim=True).float() / most
    quantised = lambda i: (x[i].float() / scale(i, 127)).round().clamp(-127, 127).to(torch.int8)
    ready = [padded(quantised(i)) for i in range(launches)]

    def int8(i):
        w, sw = pick(head.int8, i)
        sums = torch._int_mm(padded(quantised(i)), w.t())[:rows]
        return (sums.float() * scale(i, 127) * sw.t()).to(torch.bfloat16)

    def fp8(i):
        w, sw = pick(head.fp8, i)
        sx = scale(i, 448)
        return torch._scaled_mm((x[i].float() / sx).to(torch.float8_e4m3fn), w.t(), scale_a=sx,
                                scale_b=sw.t(), out_dtype=torch.bfloat16)

    def widened(i):
        w, sw = pick(head.int8, i)
        return F.linear(x[i], w.to(torch.bfloat16)) * sw.t().to(torch.bfloat16)

    def packed(i):
        w, sw = pick(head.int8, i)
        return torch._weight_int8pack_mm(x[i], w, sw.flatten().to(torch.bfloat16))

    whole = lambda i: (x[i], *pick(head.int8, i))
    return {
        "torch._int_mm": (
            lambda i: torch._int_mm(ready[i], pick(head.int8, i)[0].t()), 1,
            "int32, of rows quantised before",
            lambda i: (ready[i][:rows], pick(head.int8, i)[0], None)),
        "quantise + torch._int_mm + scales": (int8, 1, "bf16", whole),
        "quantise + torch._scaled_mm fp8": (fp8, 1, "bf16", lambda i: (x[i], *pick(head.fp8, i))),
        "torch._weight_int8pack_mm": (
            packed, 1, "bf16", whole),
        "dequantise + F.linear": (widened, 1, "bf16", whole),
    }


def relative_error(torch, out, truth):
    x, w, scales = truth
    columns = torch.linspace(0, w.shape[0] - 1, 64, device="cuda").long()
    want = x.double() @ w.index_select(0, columns).double().t()
    if scales is not None:
        want = want * scales.double().index_select(0, columns).view(1, -1)
    got = out[: x.shape[0]].index_select(1, columns).double()
    return ((got - want).norm() / want.norm()).item()


def each(outputs):
    """The tensors of all launches."""
    return [t for out in outputs for t in (out if isinstance(out, tuple) else (out,))]


def unwrite(outputs):
    """Puts into the outputs what no replay would write."""
    for t in each(outputs):
        t.fill_(math.nan if t.dtype.is_floating_point else -1)


def written(torch, outputs, vocab):
    """Whether ids are of the vocabulary and all else is a number."""
    for t in each(outputs):
        if t.dtype.is_floating_point:
            good = torch.isfinite(t).all().item()
        else:
            good = t.min().item() >= 0 and t.max().item() < vocab
        if not good:
            return False
    return True


def checked(torch, outputs, truth, launches, vocab, most):
    """What is said of a replay's outputs."""
    if truth is None:
        return {"error": None, "correct": written(torch, outputs, vocab)}
    error = relative_error(torch, outputs[-1], truth(launches - 1))
    return {"error": error if math.isfinite(error) else None, "correct": error < most}


class Graph:
    """`launches` calls of `call(i)`, captured; their outputs stay alive: they are distinct buffers."""

    def __init__(self, torch, call, launches):
        self.torch, self.launches = torch, launches
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(0)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = [call(i) for i in range(launches)]
        self.start, self.stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def replay(self):
        """Microseconds of one launch."""
        # Untimed: while it runs, the timed one is queued, so that no launch of it waits for the processor.
        self.graph.replay()
        self.start.record()
        self.graph.replay()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1000 / self.launches


def prepare(torch, head, rows, launches, weights):
    """Graphs, and what is said of them."""
    vocab, hidden = head.shape
    graphs, told, refusals = [], [], []
    refuse = lambda peer, e: refusals.append({"peer": peer, "said": first_line(e)})
    for name, (call, weight, output, truth) in peers(torch, head, rows, weights, launches).items():
        try:
            graph = Graph(torch, call, launches)
            unwrite(graph.outputs)
            graph.replay()
            most = MOST_ERROR_FP8 if "fp8" in name else MOST_ERROR
            said = checked(torch, graph.outputs, truth, launches, vocab, most)
        except REFUSED as e:
            refuse(name, e)
            try:
                torch.cuda.synchronize()
            except REFUSED as e:  # what a broken capture leaves behind: the next peer shows whether it stays
                refuse(f"{name}, and after it", e)
            continue
        logits = {"bf16": 2, "int32, of rows quantised before": 4}.get(output, 0)
        row = hidden * (1 if output.startswith("int32") else 2) + vocab * logits
        graphs.append(graph)
        told.append({"name": name, "output": output, "bytes": vocab * hidden * weight + rows * row, **said})
    return graphs, {"peers": told, "refusals": refusals}


def give_back(torch):
    """Gives memory that nobody uses back to the device, if that still answers."""
    try:
        torch.cuda.empty_cache()
    except REFUSED:
        pass


def serve(torch, l2):
    head, graphs = None, []
    for line in sys.stdin:
        request = json.loads(line)
        if "replay" in request:
            try:
                answer({"us": graphs[request["replay"]].replay()})
            except (*REFUSED, IndexError) as e:
                answer({"refused": first_line(e)})
        elif "release" in request:
            graphs = []
            give_back(torch)
            answer({})
        else:
            ask = request["prepare"]
            shape = (ask["vocab"], ask["hidden"])
            try:
                if head is None or head.shape != shape:
                    head, graphs = None, []
                    give_back(torch)
                    head = Head(torch, *shape, l2)
                graphs, said = prepare(torch, head, ask["rows"], ask["launches"], ask["weights"])
                answer(said)
            except REFUSED as e:  # no memory for a head, or for rows of it
                said = first_line(e)
                graphs = []
                give_back(torch)
                answer({"peers": [], "refusals": [{"peer": "all", "said": said}]})


def main():
    if len(sys.argv) != 1:
        print(__doc__, file=sys.stderr)
        return 1
    try:
        import torch
    except ImportError as e:
        answer({"none": f"no PyTorch here ({first_line(e)}): install it, or take another container"})
        return 0
    if not torch.cuda.is_available():
        answer({"none": f"PyTorch {torch.__version__} sees no GPU here: "
                        "take a build of it for CUDA and this driver"})
        return 0
    device = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    answer({"ready": {**versions, "device": device.name, "seed": SEED}})
    serve(torch, getattr(device, "L2_cache_size", 50 << 20))
    return 0


if __name__ == "__main__":
    sys.exit(main())
