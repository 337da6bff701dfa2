"""The roofs of this GPU's memory and what PyTorch reaches on LM-head shapes, in one run.

    python3 roofs_and_peers.py OUT.json LIBREAD_STREAM.so [quick]

Roofs: a device-to-device copy (bytes read + written) and read-only streams over W. Peers: F.linear in bf16, with an
index_select of the rows before it, torch._int_mm, torch._scaled_mm in fp8 with row scales, and F.linear followed by
what samples or ranks the logits.

Every variant is a CUDA graph of several launches over rotating inputs and outputs, on random data; the variants of
one shape are replayed in turn, and times are medians over replays with their 10th and 90th percentile.
"""

import ctypes
import datetime
import json
import subprocess
import sys

import torch
import torch.nn.functional as F

SEED = 20260119
HEADS = [(129280, 7168), (128256, 4096), (151936, 8192)]
ROWS = [1, 4, 16, 28, 64, 128, 256, 896, 4096]
SOURCE_ROWS = 8192  # index_select picks from that many hidden states


def smi(field):
    out = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True)
    return out.stdout.strip().splitlines()[0] if out.returncode == 0 else "unknown"


def clocks():
    return {"sm": smi("clocks.sm"), "memory": smi("clocks.mem"), "power": smi("power.draw"), "temperature": smi("temperature.gpu")}


class Graph:
    """`launches` calls of `call(i)`, captured; their outputs stay alive, so that they are distinct buffers."""

    def __init__(self, call, launches):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(2):
                call(i % launches)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.launches, self.graph = launches, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = [call(i) for i in range(launches)]
        self.times = []

    def poison(self):
        for out in self.outputs:
            for t in out if isinstance(out, tuple) else (out,):
                if t is not None:
                    t.fill_(float("nan") if t.dtype.is_floating_point else -(2**31) if t.dtype == torch.int32 else -1)

    def replay(self):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        stop.record()
        return start, stop


def measure(graphs, budget_ms):
    """Replays the graphs in turn; returns {name: (median, p10, p90, replays)} in µs per launch."""
    for g in graphs.values():
        g.replay()
    torch.cuda.synchronize()
    total = 0.0
    for g in graphs.values():
        start, stop = g.replay()
        stop.synchronize()
        total += start.elapsed_time(stop)
    replays = max(5, min(60, int(budget_ms / total)))
    pairs = {name: [] for name in graphs}
    for _ in range(replays):
        for name, g in graphs.items():
            pairs[name].append(g.replay())
    torch.cuda.synchronize()
    result = {}
    for name, g in graphs.items():
        t = sorted(a.elapsed_time(b) * 1000 / g.launches for a, b in pairs[name])
        pick = lambda q: t[min(len(t) - 1, round(q * (len(t) - 1)))]
        result[name] = (pick(0.5), pick(0.1), pick(0.9), len(t))
    return result


def roofs(library, w, budget_ms):
    """The copy and the read streams over the bytes of w."""
    lib = ctypes.CDLL(library)
    lib.launch_read_loads.argtypes = [ctypes.c_void_p, ctypes.c_int64] + [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2
    lib.launch_read_bulk.argtypes = [ctypes.c_void_p, ctypes.c_int64] + [ctypes.c_int] * 4 + [ctypes.c_void_p]
    flat = w.view(torch.int32).flatten()
    size = flat.numel() * 4
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    target = torch.empty_like(flat)
    calls = {"copy": (lambda i: target.copy_(flat), 2 * size)}

    def checked(code):
        if code != 0:
            raise RuntimeError(f"launch failed: CUDA error {code}")

    def stream():
        return torch.cuda.current_stream().cuda_stream

    for per_sm, threads in [(1, 1024), (2, 512), (2, 1024), (4, 256), (4, 512), (8, 256)]:
        for unroll in (4, 8):
            def call(i, per_sm=per_sm, threads=threads, unroll=unroll):
                checked(lib.launch_read_loads(flat.data_ptr(), size, per_sm * sms, threads, unroll, sink.data_ptr(), stream()))
            calls[f"16-byte loads, {per_sm} x {threads} threads per SM, {unroll} in flight"] = (call, size)
    for chunk, stages in [(8192, 16), (16384, 8), (16384, 12), (32768, 6)]:
        for spread in (0, 1):
            def call(i, chunk=chunk, stages=stages, spread=spread):
                checked(lib.launch_read_bulk(flat.data_ptr(), size, sms, chunk, stages, spread, stream()))
            order = "neighbouring chunks" if spread else "one range per CTA"
            calls[f"bulk copies to shared memory, {stages} x {chunk // 1024} KB, {order}"] = (call, size)

    # The xor of all words, by the kernel and by tensor operations: every word was read.
    words = flat.clone()
    while words.numel() > 1:
        half = (words.numel() + 1) // 2
        words = torch.cat([words[: words.numel() - half] ^ words[half:], words[words.numel() - half : half]])
    sink.zero_()
    calls["16-byte loads, 4 x 512 threads per SM, 8 in flight"][0](0)
    assert sink.item() == words.item(), "the read stream missed words"
    times = measure({name: Graph(call, 4) for name, (call, _) in calls.items()}, budget_ms)
    assert torch.equal(target, flat), "the copy differs"
    table = {}
    for name, (_, moved) in calls.items():
        us, low, high, n = times[name]
        table[name] = {"us": us, "p10_us": low, "p90_us": high, "replays": n, "bytes": moved, "bytes_per_s": moved / us * 1e6}
    return table


def relative_error(out, x, w, scale_x=None, scale_w=None):
    """Of 64 columns against float64: ||out - truth|| / ||truth||."""
    columns = torch.linspace(0, w.shape[0] - 1, 64, device="cuda").long()
    truth = x.double() @ w[columns].double().t()
    if scale_x is not None:
        truth = truth * scale_x.double() * scale_w.double()[columns].view(1, -1)
    got = out[: x.shape[0], columns].double()
    return ((got - truth).norm() / truth.norm()).item()


def head(vocab, hidden, rows_list, budget_ms, report):
    gen = torch.Generator(device="cuda").manual_seed(SEED)
    w = torch.randn(vocab, hidden, generator=gen, device="cuda", dtype=torch.bfloat16) * 0.02
    scale_w = (w.abs().amax(dim=1, keepdim=True).float() / 127).contiguous()
    w8 = torch.empty(vocab, hidden, dtype=torch.int8, device="cuda")
    wf8 = torch.empty(vocab, hidden, dtype=torch.float8_e4m3fn, device="cuda")
    scale_wf = (w.abs().amax(dim=1, keepdim=True).float() / 448).contiguous()
    for i in range(0, vocab, 8192):
        w8[i : i + 8192] = (w[i : i + 8192].float() / scale_w[i : i + 8192]).round().clamp(-127, 127).to(torch.int8)
        wf8[i : i + 8192] = (w[i : i + 8192].float() / scale_wf[i : i + 8192]).to(torch.float8_e4m3fn)
    source = torch.randn(SOURCE_ROWS, hidden, generator=gen, device="cuda", dtype=torch.bfloat16)
    refusals = report["refusals"]

    for rows in rows_list:
        launches = 8 if rows <= 256 else 2
        xs = [torch.randn(rows, hidden, generator=gen, device="cuda", dtype=torch.bfloat16) for _ in range(launches)]
        ids = [torch.randint(0, SOURCE_ROWS, (rows,), generator=gen, device="cuda") for _ in range(launches)]
        sx = [x.abs().amax(dim=1, keepdim=True).float() / 127 for x in xs]
        sf = [x.abs().amax(dim=1, keepdim=True).float() / 448 for x in xs]
        q = [(x.float() / s).round().clamp(-127, 127).to(torch.int8) for x, s in zip(xs, sx)]
        f8 = [(x.float() / s).to(torch.float8_e4m3fn) for x, s in zip(xs, sf)]
        padded = [torch.cat([a, torch.zeros(32 - rows, hidden, dtype=torch.int8, device="cuda")]) if rows <= 16 else a for a in q]
        step = 65536 - 64

        def int_mm(i, chunks):
            if not chunks:
                return torch._int_mm(padded[i], w8.t())
            return tuple(torch._int_mm(padded[i], w8[v : v + step].t()) for v in range(0, vocab, step))

        calls = {
            "linear": (lambda i: F.linear(xs[i], w), 2, lambda out, i: relative_error(out, xs[i], w)),
            "index_select + linear": (
                lambda i: F.linear(source.index_select(0, ids[i]), w), 2, lambda out, i: relative_error(out, source[ids[i]], w)),
            "_int_mm, as it is": (lambda i: torch._int_mm(q[i], w8.t()), 1, lambda out, i: relative_error(out, q[i], w8)),
            "_int_mm, rows padded to 32": (lambda i: int_mm(i, False), 1, lambda out, i: relative_error(out, q[i], w8)),
            "_int_mm, at most 65472 columns a call": (
                lambda i: int_mm(i, True), 1, lambda out, i: relative_error(torch.cat(out, 1), q[i], w8)),
            "_scaled_mm fp8, row scales": (
                lambda i: torch._scaled_mm(f8[i], wf8.t(), scale_a=sf[i], scale_b=scale_wf.t(), out_dtype=torch.bfloat16), 1,
                lambda out, i: relative_error(out, f8[i], wf8, sf[i], scale_wf)),
            "_scaled_mm fp8, row scales, fast accumulation": (
                lambda i: torch._scaled_mm(
                    f8[i], wf8.t(), scale_a=sf[i], scale_b=scale_wf.t(), out_dtype=torch.bfloat16, use_fast_accum=True), 1,
                lambda out, i: relative_error(out, f8[i], wf8, sf[i], scale_wf)),
        }
        if rows > 16:
            del calls["_int_mm, rows padded to 32"]
        if rows <= 256:  # the whole path from bf16 rows to bf16 logits, in PyTorch's own steps

            def whole_int8(i):
                s = xs[i].abs().amax(dim=1, keepdim=True).float() / 127
                a = (xs[i].float() / s).round().clamp(-127, 127).to(torch.int8)
                if rows <= 16:
                    a = F.pad(a, (0, 0, 0, 32 - rows))
                return (torch._int_mm(a, w8.t())[:rows].float() * s * scale_w.t()).to(torch.bfloat16)

            def whole_fp8(i):
                s = xs[i].abs().amax(dim=1, keepdim=True).float() / 448
                a = (xs[i].float() / s).to(torch.float8_e4m3fn)
                return torch._scaled_mm(a, wf8.t(), scale_a=s, scale_b=scale_wf.t(), out_dtype=torch.bfloat16)

            calls["quantise + _int_mm + scales"] = (whole_int8, 1, lambda out, i: relative_error(out, q[i], w8, sx[i], scale_w))
            calls["quantise + _scaled_mm fp8"] = (whole_fp8, 1, lambda out, i: relative_error(out, f8[i], wf8, sf[i], scale_wf))
        if rows in (16, 64, 256):

            def multinomial(i):
                p = torch.softmax(F.linear(xs[i], w).float(), dim=-1)
                return torch.multinomial(p, 1)

            def gumbel(i):
                logits = F.linear(xs[i], w).float()
                noise = torch.empty_like(logits).exponential_().log_()
                return (logits - noise).argmax(dim=-1)

            def top(i):
                logits = F.linear(xs[i], w).float()
                return (*torch.topk(logits, 8, dim=-1), torch.logsumexp(logits, dim=-1))

            def greedy(i):
                return F.linear(xs[i], w).argmax(dim=-1)

            calls["linear + softmax + multinomial"] = (multinomial, 2, None)
            calls["linear + gumbel + argmax"] = (gumbel, 2, None)
            calls["linear + argmax"] = (greedy, 2, None)
            calls["linear + topk(8) + logsumexp"] = (top, 2, None)

        graphs, errors = {}, {}
        for name, (call, _, check) in calls.items():
            try:
                call(0)
                torch.cuda.synchronize()
            except Exception as e:  # what PyTorch refuses is a finding, in its own words
                text = str(e).strip().splitlines()[0]
                refusals.setdefault(f"{name}: {text}", []).append([vocab, hidden, rows])
                continue
            graphs[name] = g = Graph(call, launches)
            g.poison()
            g.graph.replay()
            torch.cuda.synchronize()
            if check is not None:
                errors[name] = max(check(g.outputs[i], i) for i in (0, launches - 1))
                assert errors[name] < 0.02, (name, rows, errors[name])
            else:
                for out in g.outputs:
                    for t in out if isinstance(out, tuple) else (out,):
                        assert bool((t != -1).all()) and not bool(t.isnan().any()), (name, rows, "not written")
        times = measure(graphs, budget_ms)
        for name, (us, low, high, n) in times.items():
            element = calls[name][1]
            out_bytes = 4 if name.startswith("_int_mm") else 2
            weight = vocab * hidden * element
            moved = weight + rows * hidden * element + (rows * vocab * out_bytes if calls[name][2] else 0)
            row = {
                "vocab": vocab, "hidden": hidden, "rows": rows, "peer": name, "us": us, "p10_us": low, "p90_us": high, "replays": n,
                "launches_per_replay": launches, "weight_bytes_per_s": weight / us * 1e6, "bytes_per_s": moved / us * 1e6,
                "tera_operations_per_s": 2 * vocab * hidden * rows / us / 1e6, "error": errors.get(name),
            }
            report["peers"].append(row)
            print(f"{vocab}x{hidden} M {rows:5d} {name:46s} {us:9.1f} us  W at {row['weight_bytes_per_s'] / 1e12:5.2f} TB/s "
                  f"{row['tera_operations_per_s']:7.1f} TOP/s", flush=True)
        graphs.clear()
        del graphs, calls, xs, ids, sx, sf, q, f8, padded
        torch.cuda.empty_cache()
        report["clocks"].append({"after": [vocab, hidden, rows], **clocks()})
    return w


def main():
    out, library, quick = sys.argv[1], sys.argv[2], len(sys.argv) > 3
    torch.manual_seed(SEED)
    print("seed", SEED)
    name = torch.cuda.get_device_properties(0)
    report = {
        "device": name.name, "multiprocessors": name.multi_processor_count, "l2_bytes": name.L2_cache_size,
        "memory_bytes": name.total_memory, "driver": smi("driver_version"), "torch": torch.__version__, "cuda": torch.version.cuda,
        "cublas": torch.backends.cuda.preferred_blas_library().name if hasattr(torch.backends.cuda, "preferred_blas_library") else None,
        "max_clocks": {"sm": smi("clocks.max.sm"), "memory": smi("clocks.max.mem")}, "power_limit": smi("power.limit"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": "roofs_and_peers.py " + " ".join(a.rsplit("/", 1)[-1] for a in sys.argv[1:]), "seed": SEED,
        "method": __doc__.split("\n\n", 2)[2].strip().replace("\n", " ")
        + " W (and not x or out) is what exceeds the L2 many times: each launch streams it anew. Launches in a graph rotate x and "
        "out over 8 buffers (2 above 256 rows). Clocks as found. bytes_per_s counts W, x and the logits once; shares are of the best "
        "read stream. Errors: 64 columns against float64 over the same rounded inputs.",
        "clocks": [{"after": "start", **clocks()}], "refusals": {}, "roofs": {}, "peers": [],
    }
    budget = 60 if quick else 500
    heads = HEADS[1:2] if quick else HEADS
    for vocab, hidden in heads:
        w = head(vocab, hidden, [1, 64, 256] if quick else ROWS, budget, report)
        # The roofs on the same bytes, in the same run, after the peers of this head.
        table = roofs(library, w, 4 * budget)
        report["roofs"][f"{vocab}x{hidden} bf16"] = table
        del w
        torch.cuda.empty_cache()
        reads = {k: v["bytes_per_s"] for k, v in table.items() if k != "copy"}
        best = max(reads, key=reads.get)
        copy = table["copy"]["bytes_per_s"]
        report.setdefault("best_read", {})[f"{vocab}x{hidden} bf16"] = {"way": best, "bytes_per_s": reads[best], "copy_bytes_per_s": copy}
        print(f"{vocab}x{hidden} bf16: copy {copy / 1e12:.3f} TB/s, best read {reads[best] / 1e12:.3f} TB/s ({best})", flush=True)
        for row in report["peers"]:
            if (row["vocab"], row["hidden"]) == (vocab, hidden):
                row["share_of_read_roof"] = row["bytes_per_s"] / reads[best]
        with open(out, "w") as f:
            json.dump(report, f, indent=1)
    for text, where in report["refusals"].items():
        print(f"refused {len(where)} times: {text}")


if __name__ == "__main__":
    main()
