"""What PyTorch reaches on the shapes of crates/gpu/benches/gpu_matmul, on the same GPU: run.sh bench runs both, one after the other.

    python3 gpu_peers.py OUT.json [SECONDS [BENCH.json]]

Peers: F.linear in bf16 and f16, the same with an index_select of the rows before it, torch._int_mm (int8 rows that were
quantised before, int32 out), and torch._scaled_mm in fp8 with row scales. Each is a CUDA graph of several launches over
rotating weights (more than 150 MB together), rows and outputs, on random data; CUDA events around its replays; medians with
their 10th and 90th percentile. What PyTorch refuses is written down with its words. Shapes that SECONDS (150) do not suffice
for are listed as left out.

BENCH.json is what crates/gpu/benches/gpu_matmul wrote just before: a peer's share of the read roof is taken from the product there that moves
the most similar number of bytes. The copy roof is measured here again, so that both runs can be seen to have met the same
memory. Clocks are read while a peer is replayed.

Exit codes: 0 measured, 1 no GPU or no PyTorch, 2 wrong arguments.
"""

import datetime
import json
import math
import os
import subprocess
import sys
import time

HEADS = [(129280, 7168), (128256, 4096)]
SHARDS = [1, 4, 8, 16]
ROWS = [1, 8, 16, 28, 64, 128, 256, 896, 4096]
SOURCE_ROWS = 8192  # index_select picks from that many hidden states
ROTATE = 150 << 20
SEED = 20260119


def smi(fields, meanwhile=lambda: time.sleep(0.005)):
    """The fields as nvidia-smi says them while `meanwhile` is called again and again; None where it does not answer."""
    # As CUDA counts: the first device that this process may see.
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={device}"]
    if smi.given_up:
        return None
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        smi.given_up = True
        return None
    began = time.monotonic()
    while child.poll() is None:
        meanwhile()
        if time.monotonic() - began > 5:
            # Nobody waits for one that hangs in the driver.
            child.kill()
            smi.given_up = True
            return None
    values = child.stdout.read().strip().split(", ")
    return values if child.returncode == 0 and len(values) == len(fields.split(",")) else None


smi.given_up = False


def clocks_under(torch, graph):
    """Clocks, power and temperature while the graph is replayed."""

    def replay():
        graph.replay()
        torch.cuda.synchronize()

    began = time.monotonic()
    while time.monotonic() - began < 0.1 and not smi.given_up:
        replay()
    said = smi("clocks.sm,clocks.mem,power.draw,temperature.gpu", replay)
    return dict(zip(("sm", "memory", "power", "temperature_c"), said)) if said else "unknown: nvidia-smi does not answer"


def read_roof(products, moved):
    """Bytes a second of the read roof that was measured nearest to so many bytes, and how many those were."""
    if not products:
        return None
    nearest = min(products, key=lambda p: abs(p["bytes"] - moved))
    return {"bytes": nearest["bytes"], "bytes_per_s": nearest["read_roof"]["bytes_per_s"]}


def copy_roof(torch, moved):
    """Copies that move so many bytes, read and written, over rotating windows."""
    half = moved // 2
    windows = max(2, math.ceil(ROTATE / half))
    source, target = (torch.randint(0, 256, (windows * half,), dtype=torch.uint8, device="cuda") for _ in range(2))
    launches = max(8, windows)
    at = lambda i: slice(i % windows * half, (i % windows + 1) * half)
    graph, outputs = capture(torch, lambda i: target[at(i)].copy_(source[at(i)]), launches)
    times = measure(torch, graph, launches)
    return {"bytes": 2 * half, **times, "bytes_per_s": 2 * half / times["median_us"] * 1e6}


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
    """Microseconds of one launch: at least seven replays, then until 0.08 s have gone by."""
    graph.replay()
    torch.cuda.synchronize()
    times, total = [], 0.0
    while len(times) < 7 or (total < 80 and len(times) < 60):
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
    if not 2 <= len(sys.argv) <= 4 or not all(limit.isdigit() for limit in sys.argv[2:3]):
        print(__doc__, file=sys.stderr)
        return 2
    out, limit = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 150
    try:
        with open(sys.argv[3]) as f:
            products = json.load(f)["products"]
        roofs = f"{len(products)} products of crates/gpu/benches/gpu_matmul"
    except (IndexError, OSError, ValueError, KeyError) as e:
        products, roofs = [], f"none: {e!r}"
    print(f"read roofs from {roofs}", flush=True)
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
        "method": " ".join(" ".join(__doc__.split("\n\n")[2:4]).split()),
        "device": {"name": device.name, "memory_bytes": device.total_memory, "driver": (smi("driver_version") or ["unknown"])[0]},
        "torch": torch.__version__, "cuda": torch.version.cuda, "seed": SEED,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "read_roofs_from": roofs, "copy_roofs": [], "peers": [], "refusals": [], "left_out": [],
    }
    for shards in SHARDS:
        for head, hidden in HEADS:
            vocab = -(-(-(-head // 64)) // shards) * 64
            if time.monotonic() - began > limit:
                report["left_out"].append(f"{vocab}x{hidden}")
                continue
            roof = copy_roof(torch, 2 * vocab * hidden)
            report["copy_roofs"].append(roof)
            print(f"{vocab}x{hidden}: copy {roof['bytes_per_s'] / 1e12:.3f} TB/s", flush=True)
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
                    row["read_roof"] = read_roof(products, moved)
                    if row["read_roof"]:
                        row["share_of_read_roof"] = row["bytes_per_s"] / row["read_roof"]["bytes_per_s"]
                    if rows == 28 or (rows == 4096 and shards == 1):
                        row["clocks"] = clocks_under(torch, graph)
                    report["peers"].append(row)
                    print(f"{vocab}x{hidden} {name}, {rows} rows: {row['median_us']:.1f} us, {row['bytes_per_s'] / 1e12:.3f} TB/s", flush=True)
                    del graph, outputs
            weights.clear()
            torch.cuda.empty_cache()
            with open(out, "w") as f:
                json.dump(report, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
