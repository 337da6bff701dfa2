"""Times PyTorch on the shapes of a bench, in turns with it: the bench talks to this program.

    python3 gpu_peers.py [answers] < requests > answers    "answers": of the bench `answers`, else of `heads`
    python3 gpu_peers.py cpu                               every peer once on the CPU, at small sizes

One JSON a line. The first answer says who answers, {"ready": {...}}, or why nobody does, {"none": reason}.
Then

    {"prepare": {"vocab", "hidden", "rows", "launches", "weights"}}   "bf16", "int8", "fp8" or "answers"
        -> {"peers": [{"name", "request", "output", "bytes", "error", "correct"}],
            "refusals": [{"peer", "said"}]}
    {"replay": n} -> {"us": time of one launch of peer n}, or {"refused": what was said}
    {"release": {}} -> {}

Each peer is a CUDA graph of `launches` calls over rotating weights (at least two copies, three times the
second-level cache), rows and outputs, on random data, timed by CUDA events; an untimed replay before it
keeps the device busy while the first launch is queued. `output` is its type: where that is not bf16 logits,
it says what it is. `error` of logits is ||out - truth|| / ||truth|| of 64 columns against float64, over rows
as they were before they were quantised; null where none are numbers. Of the best ids and of logprobs it is
the relative distance of their logits from those of an f32 product, of a nucleus the mass that is left out too
little; null of a sample of all ids. `correct`: the error is below 0.02, or 0.05 of rows in fp8, whose 3 bits
behind the point cost 0.026; ids are of the vocabulary, all else is finite. `request` is what the bench calls
the same answer. What PyTorch refuses is told in its own words.

Of `answers` some peers are other libraries': vLLM's and FlashInfer's samplers, and one kernel in Triton that
was written for this comparison. Those that are not installed are named in "ready": {"absent": {name: why}}.

Exit codes: 0 all requests answered, or nobody to answer; 1 something is wrong with this program, or a peer is
wrong on the CPU.
"""

import json
import math
import os
import sys

from gpu_answer_peers import Peer, answer_peers, first_line, load_others

SOURCE_ROWS = 8192  # index_select picks from that many hidden states
SEED = 20260119
MOST_ERROR, MOST_ERROR_FP8 = 0.02, 0.05
# What PyTorch raises where it cannot do something, including out of memory.
REFUSED = (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError)
DEVICE = "cuda"
to_bench = sys.stdout


def answer(value):
    # NaN is not valid JSON: the bench would take this program for broken.
    print(json.dumps(value, allow_nan=False), file=to_bench, flush=True)


class Head:
    """A head's weights in all types: two copies of each, or as many as fill three times the L2 cache."""

    def __init__(self, torch, vocab, hidden, l2):
        self.shape = (vocab, hidden)
        generator = torch.Generator(device=DEVICE).manual_seed(SEED)
        copies = lambda size: max(2, math.ceil(3 * l2 / (vocab * hidden * size)))
        self.bf16, self.int8, self.fp8 = [], [], []
        for i in range(max(copies(2), copies(1))):
            w = torch.empty(vocab, hidden, dtype=torch.bfloat16, device=DEVICE)
            q = torch.empty(vocab, hidden, dtype=torch.int8, device=DEVICE)
            f = torch.empty(vocab, hidden, dtype=torch.float8_e4m3fn, device=DEVICE)
            most = torch.empty(vocab, 1, dtype=torch.float32, device=DEVICE)
            # In parts: a whole f32 head would be twice as large as everything else.
            for v in range(0, vocab, 8192):
                part = torch.randn(min(8192, vocab - v), hidden, generator=generator, device=DEVICE) * 0.02
                w[v : v + 8192] = part.to(torch.bfloat16)
                most[v : v + 8192] = part.abs().amax(dim=1, keepdim=True)
                q[v : v + 8192] = (part * (127 / most[v : v + 8192])).round().to(torch.int8)
                f[v : v + 8192] = (part * (448 / most[v : v + 8192])).to(torch.float8_e4m3fn)
            if i < copies(2):
                self.bf16.append(w)
            self.int8.append((q, (most / 127).contiguous()))
            self.fp8.append((f, (most / 448).contiguous()))


class Operands:
    """Random rows for every launch, and the weights of launch i."""

    def __init__(self, torch, head, rows, launches):
        self.generator = torch.Generator(device=DEVICE).manual_seed(SEED + rows)
        self.torch, self.head, self.rows, self.launches, self.device = torch, head, rows, launches, DEVICE
        self.x = [self.normal(rows) for _ in range(launches)]

    def normal(self, n):
        hidden = self.head.shape[1]
        rows = self.torch.randn(n, hidden, generator=self.generator, device=DEVICE)
        return rows.to(self.torch.bfloat16)

    def ids(self, below, shape):
        draw = lambda: self.torch.randint(0, below, shape, generator=self.generator, device=DEVICE)
        return [draw() for _ in range(self.launches)]

    def w(self, kind, i):
        copies = getattr(self.head, kind)
        return copies[i % len(copies)]

    def linear(self, i):
        return self.torch.nn.functional.linear(self.x[i], self.w("bf16", i))

    def truth(self, i):
        return self.x[i], self.w("bf16", i), None


def bf16_peers(torch, o):
    source = o.normal(SOURCE_ROWS)
    ids = o.ids(SOURCE_ROWS, (o.rows,))
    picked = lambda i: source.index_select(0, ids[i])
    return {
        "F.linear": Peer(o.linear, 2, "bf16", o.truth),
        "index_select + F.linear": Peer(
            lambda i: torch.nn.functional.linear(picked(i), o.w("bf16", i)), 2, "bf16",
            lambda i: (picked(i), o.w("bf16", i), None)),
    }


def scales(o, i, most):
    return o.x[i].abs().amax(dim=1, keepdim=True).float() / most


def fp8_peers(torch, o):
    def fp8(i):
        w, sw = o.w("fp8", i)
        sx = scales(o, i, 448)
        return torch._scaled_mm((o.x[i].float() / sx).to(torch.float8_e4m3fn), w.t(), scale_a=sx,
                                scale_b=sw.t(), out_dtype=torch.bfloat16)

    return {"quantise + torch._scaled_mm fp8": Peer(fp8, 1, "bf16", lambda i: (o.x[i], *o.w("fp8", i))),
            **widened_peer(torch, o, "fp8")}


def widened_peer(torch, o, kind):
    def widened(i):
        w, sw = o.w(kind, i)
        return torch.nn.functional.linear(o.x[i], w.to(torch.bfloat16)) * sw.t().to(torch.bfloat16)

    return {"dequantise + F.linear": Peer(widened, 1, "bf16", lambda i: (o.x[i], *o.w(kind, i)))}


def int8_peers(torch, o):
    # _int_mm needs more than 16 rows.
    missing = 32 - o.rows if o.rows <= 16 else 0
    padded = lambda q: torch.nn.functional.pad(q, (0, 0, 0, missing)) if missing else q
    quantised = lambda i: (o.x[i].float() / scales(o, i, 127)).round().clamp(-127, 127).to(torch.int8)
    ready = [padded(quantised(i)) for i in range(o.launches)]

    def int8(i):
        w, sw = o.w("int8", i)
        sums = torch._int_mm(padded(quantised(i)), w.t())[: o.rows]
        return (sums.float() * scales(o, i, 127) * sw.t()).to(torch.bfloat16)

    def packed(i):
        w, sw = o.w("int8", i)
        return torch._weight_int8pack_mm(o.x[i], w, sw.flatten().to(torch.bfloat16))

    whole = lambda i: (o.x[i], *o.w("int8", i))
    return {
        "torch._int_mm": Peer(
            lambda i: torch._int_mm(ready[i], o.w("int8", i)[0].t()), 1,
            "int32, of rows quantised before",
            lambda i: (ready[i][: o.rows], o.w("int8", i)[0], None)),
        "quantise + torch._int_mm + scales": Peer(int8, 1, "bf16", whole),
        "quantise + torch._scaled_mm fp8": fp8_peers(torch, o)["quantise + torch._scaled_mm fp8"],
        "torch._weight_int8pack_mm": Peer(packed, 1, "bf16", whole),
        **widened_peer(torch, o, "int8"),
    }


def peers(torch, head, rows, weights, launches, others):
    """{name: Peer}"""
    o = Operands(torch, head, rows, launches)
    if weights == "answers":
        return o, answer_peers(torch, o, others)
    return o, {"bf16": bf16_peers, "int8": int8_peers, "fp8": fp8_peers}[weights](torch, o)


def relative_error(torch, out, truth):
    x, w, scales = truth
    columns = torch.linspace(0, w.shape[0] - 1, 64, device=DEVICE).long()
    want = x.double() @ w.index_select(0, columns).double().t()
    if scales is not None:
        want = want * scales.double().index_select(0, columns).view(1, -1)
    got = out[: x.shape[0]].index_select(1, columns).double()
    return ((got - want).norm() / want.norm()).item()


def each(outputs):
    """The tensors of all launches."""
    return [t for out in outputs for t in (out if isinstance(out, tuple) else (out,))]


def unwrite(outputs):
    """Fills the outputs with values that no replay would write."""
    for t in each(outputs):
        t.fill_(math.nan if t.dtype.is_floating_point else -1)


def written(torch, outputs, vocab):
    """Whether ids are within the vocabulary and everything else is a number."""
    for t in each(outputs):
        if t.dtype.is_floating_point:
            good = torch.isfinite(t).all().item()
        else:
            good = t.min().item() >= 0 and t.max().item() < vocab
        if not good:
            return False
    return True


def f32_logits(torch, x, w):
    # In parts: a whole f32 head would be twice as large as everything else.
    parts = [x.float() @ w[v : v + 8192].float().t() for v in range(0, w.shape[0], 8192)]
    return torch.cat(parts, dim=1)


def checked(torch, outputs, peer, o, most):
    """The report on a replay's outputs."""
    last, vocab = o.launches - 1, o.head.shape[0]
    if peer.truth is None:
        good = written(torch, outputs, vocab)
        if not good or peer.judge is None:
            return {"error": None, "correct": good}
        error = peer.judge(outputs[-1], f32_logits(torch, o.x[last], o.w("bf16", last)))
    else:
        error = relative_error(torch, outputs[-1], peer.truth(last))
    return {"error": error if math.isfinite(error) else None, "correct": error < most}


def most_of(name):
    """The largest error of a correct peer of that name."""
    return MOST_ERROR_FP8 if "_scaled_mm fp8" in name else MOST_ERROR


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
        # Untimed: while it runs, the timed replay is queued, so that none of its launches waits for the CPU.
        self.graph.replay()
        self.start.record()
        self.graph.replay()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1000 / self.launches


def prepare(torch, head, rows, launches, weights, others):
    """The peers' graphs, and the report on them."""
    vocab, hidden = head.shape
    graphs, told, refusals = [], [], []
    refuse = lambda peer, e: refusals.append({"peer": peer, "said": first_line(e)})
    o, all_peers = peers(torch, head, rows, weights, launches, others)
    for name, peer in all_peers.items():
        try:
            graph = Graph(torch, peer.call, launches)
            unwrite(graph.outputs)
            graph.replay()
            said = checked(torch, graph.outputs, peer, o, most_of(name))
        except REFUSED as e:
            refuse(name, e)
            try:
                torch.cuda.synchronize()
            except REFUSED as e:  # after a broken capture the next peer shows whether PyTorch still works
                refuse(f"{name}, and after it", e)
            continue
        output = peer.output
        logits = {"bf16": 2, "int32, of rows quantised before": 4}.get(output, 0)
        row = hidden * (1 if output.startswith("int32") else 2) + vocab * logits
        size = vocab * hidden * peer.weight + rows * row
        graphs.append(graph)
        told.append({"name": name, "request": peer.request, "output": output, "bytes": size, **said})
    return graphs, {"peers": told, "refusals": refusals}


def give_back(torch):
    """Returns unused memory to the device, if that still works."""
    try:
        torch.cuda.empty_cache()
    except REFUSED:
        pass


def serve(torch, l2, others):
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
                graphs, said = prepare(torch, head, ask["rows"], ask["launches"], ask["weights"], others)
                answer(said)
            except REFUSED as e:  # no memory for a head, or for rows of it
                said = first_line(e)
                graphs = []
                give_back(torch)
                answer({"peers": [], "refusals": [{"peer": "all", "said": said}]})


def on_cpu(torch):
    """Runs every peer once; returns how many were wrong."""
    global DEVICE
    DEVICE = "cpu"
    others, absent = load_others()
    answer({"absent": absent})
    wrong = 0
    head = Head(torch, 700, 128, 1 << 18)
    for rows in (3, 20):
        for weights in ("bf16", "int8", "fp8", "answers"):
            o, all_peers = peers(torch, head, rows, weights, 2, others)
            for name, peer in all_peers.items():
                told = {"weights": weights, "rows": rows, "peer": name}
                try:
                    outputs = [peer.call(i) for i in range(2)]
                    told.update(checked(torch, outputs, peer, o, most_of(name)))
                    wrong += not told["correct"]
                except REFUSED as e:
                    told["refused"] = first_line(e)
                    wrong += name.startswith("F.linear")  # a CPU supports all of these
                answer(told)
    return wrong


def main():
    global to_bench
    mode = sys.argv[1:]
    if mode not in ([], ["answers"], ["cpu"]):
        print(__doc__, file=sys.stderr)
        return 1
    # Libraries' own output goes to the log.
    to_bench = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import torch.nn.functional
    except ImportError as e:
        answer({"none": f"no PyTorch here ({first_line(e)}): install it, or take another container"})
        return 0
    if mode == ["cpu"]:
        return 1 if on_cpu(torch) else 0
    if not torch.cuda.is_available():
        answer({"none": f"PyTorch {torch.__version__} sees no GPU here: "
                        "take a build of it for CUDA and this driver"})
        return 0
    device = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    others = {}
    if mode == ["answers"]:
        others, versions["absent"] = load_others()
        for name in others:
            versions[name] = getattr(sys.modules[name], "__version__", "of no known version")
    answer({"ready": {**versions, "device": device.name, "seed": SEED}})
    serve(torch, getattr(device, "L2_cache_size", 50 << 20), others)
    return 0


if __name__ == "__main__":
    sys.exit(main())
