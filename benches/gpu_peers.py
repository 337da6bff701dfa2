"""What PyTorch reaches on the shapes of benches/gpu_matmul, on the same GPU: run.sh bench runs both, one after the other.

    python3 gpu_peers.py OUT.json [SECONDS]

Peers: F.linear in bf16 and f16, the same with an index_select of the rows before it, torch._int_mm (int8 rows that were
quantised before, int32 out), and torch._scaled_mm in fp8 with row scales. Each is a CUDA graph of several launches over
rotating weights (more than 150 MB together), rows and outputs, on random data; CUDA events around its replays; medians with
their 10th and 90th percentile. What PyTorch refuses is written down with its words. Shapes that SECONDS (150) do not suffice
for are listed as left out.

Exit codes: 0 measured, 1 no GPU or no PyTorch, 2 wrong arguments.
"""

import datetime
import json
import math
import subprocess
import sys
import time

HEADS = [(129280, 7168), (128256, 4096)]
SHARDS = [1, 4, 8, 16]
ROWS = [1, 8, 16, 28, 64, 128, 256, 896, 4096]
SOURCE_ROWS = 8192  # index_select picks from that many hidden states
ROTATE = 150 << 20
SEED = 20260119


def smi(field):
    try:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
        out = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return out.stdout.strip() if out.returncode == 0 else "unknown"


def clocks():
    return {"sm": smi("clocks.sm"), "memory": smi("clocks.mem"), "power": smi("power.draw"), "temperature": smi("temperature.gpu")}


def capture(torch, call, launches):
    """`launches` calls of `call(i)` as a graph; their outputs stay alive, so that they are distinct buffers."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call(i) for i in range(launches)]
    return graph, outputs


def measure(torch, graph, launches):
    """Microseconds of one launch: at least five replays, then until 0.15 s have gone by."""
    graph.replay()
    torch.cuda.synchronize()
    times, total = [], 0.0
    while len(times) < 5 or (total < 150 and len(times) < 60):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        total += start.elapsed_time(stop)
        times.append(start.elapsed_time(stop) * 1000 / launches)
    times.sort()
    pick = lambda q: times[round(q * (len(times) - 1))]
    return {"median_us": pick(0.5), "p10_us": pick(0.1), "p90_us": pick(0.9), "replays": len(times)}


def peers(torch, vocab, hidden, rows, launches, weights, generator):
    """{name: (call, bytes of a weight, bytes of an output)}; call(i) is launch i."""
    import torch.nn.functional as F

    pick = lambda name, i: weights[name][i % len(weights[name])]
    normal = lambda *shape: torch.randn(*shape, generator=generator, device="cuda")
    ids = [torch.randint(0, SOURCE_ROWS, (rows,), generator=generator, device="cuda") for _ in range(launches)]
    calls = {}
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        if name not in weights:
            continue
        x = [normal(rows, hidden).to(dtype) for _ in range(launches)]
        calls[f"F.linear {name}"] = (lambda i, x=x, name=name: F.linear(x[i], pick(name, i)), 2, 2)
        if name == "bf16":
            source = normal(SOURCE_ROWS, hidden).to(dtype)
            calls["index_select + F.linear bf16"] = (lambda i: F.linear(source.index_select(0, ids[i]), pick("bf16", i)), 2, 2)
    if "int8" in weights:
        # _int_mm wants more than 16 rows.
        q = [torch.randint(-127, 128, (max(rows, 17), hidden), dtype=torch.int8, device="cuda") for _ in range(launches)]
        calls["torch._int_mm"] = (lambda i: torch._int_mm(q[i], pick("int8", i).t()), 1, 4)
        # A way around its limit of 65535 columns, in steps that stay aligned.
        step = 65472
        if vocab > step:
            parts = lambda i: tuple(torch._int_mm(q[i], pick("int8", i)[v : v + step].t()) for v in range(0, vocab, step))
            calls[f"torch._int_mm, {step} columns a call"] = (parts, 1, 4)
    if "fp8" in weights:
        f8 = [normal(rows, hidden).to(torch.float8_e4m3fn) for _ in range(launches)]
        sx = torch.rand(rows, 1, generator=generator, device="cuda")
        sw = torch.rand(1, vocab, generator=generator, device="cuda")
        scaled = lambda i: torch._scaled_mm(f8[i], pick("fp8", i).t(), scale_a=sx, scale_b=sw, out_dtype=torch.bfloat16)
        calls["torch._scaled_mm fp8, row scales"] = (scaled, 1, 2)
    return calls


def rotating(torch, vocab, hidden, generator, report):
    """Each type's weights, as many copies as are larger than the second-level cache."""
    weights = {}
    makers = {
        "bf16": lambda w: w.to(torch.bfloat16),
        "f16": lambda w: w.to(torch.float16),
        "int8": lambda w: (w * 2000).round().clamp(-127, 127).to(torch.int8),
        "fp8": lambda w: w.to(torch.float8_e4m3fn),
    }
    for name, make in makers.items():
        size = 2 if name.endswith("16") else 1
        try:
            copies = max(1, math.ceil(ROTATE / (vocab * hidden * size)))
            weights[name] = []
            for _ in range(copies):
                # In parts: a whole head in f32 would be twice as large as all else.
                part = lambda n: make(torch.randn(n, hidden, generator=generator, device="cuda") * 0.02)
                weights[name].append(torch.cat([part(min(8192, vocab - v)) for v in range(0, vocab, 8192)]))
        except (RuntimeError, AttributeError, NotImplementedError) as e:
            weights.pop(name, None)
            report["refusals"].append({"what": f"{name} weights", "said": str(e).splitlines()[0]})
    return weights


def main():
    if len(sys.argv) not in (2, 3) or (len(sys.argv) == 3 and not sys.argv[2].isdigit()):
        print(__doc__, file=sys.stderr)
        return 2
    out, limit = sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 150
    try:
        import torch
    except ImportError as e:
        print(f"gpu_peers.py: no PyTorch here ({e}): install it, or take another container", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("ignored: no GPU that PyTorch can use")
        return 1
    began = time.monotonic()
    device = torch.cuda.get_device_properties(0)
    generator = torch.Generator(device="cuda").manual_seed(SEED)
    report = {
        "method": " ".join(__doc__.split("\n\n")[2].split()),
        "device": {"name": device.name, "memory_bytes": device.total_memory, "driver": smi("driver_version")},
        "torch": torch.__version__, "cuda": torch.version.cuda, "seed": SEED,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "clocks_before": clocks(), "peers": [], "refusals": [], "left_out": [],
    }
    for shards in SHARDS:
        for head, hidden in HEADS:
            vocab = -(-(-(-head // 64)) // shards) * 64
            weights = rotating(torch, vocab, hidden, generator, report)
            for rows in ROWS:
                if time.monotonic() - began > limit:
                    report["left_out"].append(f"{vocab}x{hidden}, {rows} rows")
                    continue
                launches = max(2 if rows > 256 else 8, max(map(len, weights.values())))
                launches = min(launches, max(2, (4 << 30) // (4 * rows * vocab)))
                for name, (call, weight, output) in peers(torch, vocab, hidden, rows, launches, weights, generator).items():
                    row = {"vocab": vocab, "hidden": hidden, "shards": shards, "rows": rows, "peer": name}
                    try:
                        graph, outputs = capture(torch, call, launches)
                    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as e:
                        torch.cuda.synchronize()
                        report["refusals"].append({"what": row, "said": str(e).splitlines()[0]})
                        continue
                    row.update(measure(torch, graph, launches))
                    moved = vocab * hidden * weight + rows * hidden * weight + rows * vocab * output
                    row["bytes"] = moved
                    row["bytes_per_s"] = moved / row["median_us"] * 1e6
                    row["operations_per_s"] = 2 * vocab * hidden * rows / row["median_us"] * 1e6
                    report["peers"].append(row)
                    print(f"{vocab}x{hidden} {name}, {rows} rows: {row['median_us']:.1f} us, {row['bytes_per_s'] / 1e12:.3f} TB/s", flush=True)
                    del graph, outputs
            weights.clear()
            torch.cuda.empty_cache()
            report["clocks_after"] = clocks()
            with open(out, "w") as f:
                json.dump(report, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
