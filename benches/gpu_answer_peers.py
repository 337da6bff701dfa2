"""Matmuls with each request's work on their logits, in PyTorch and other libraries: peers of gpu_peers.py."""

import importlib
from typing import Any, Callable, NamedTuple, Optional

OTHERS = ("flashinfer", "triton", "vllm")
TOP_P = 0.9


class Peer(NamedTuple):
    call: Callable[[int], Any]  # launch i
    weight: int  # bytes
    output: str
    truth: Optional[Callable] = None  # of launch i: rows, weights and scales
    judge: Optional[Callable] = None  # the error of an output over f32 logits
    request: Optional[str] = None


def first_line(e):
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def load_others():
    """The installed libraries of OTHERS, and why the others cannot be used."""
    here, absent = {}, {}
    modules = {"flashinfer": "flashinfer.sampling", "vllm": "vllm.v1.sample.ops.topk_topp_sampler"}
    for name in OTHERS:
        try:
            here[name] = importlib.import_module(modules.get(name, name))
        except Exception as e:  # any error of a library without a suitable device
            absent[name] = first_line(e)
    return here, absent


def answer_peers(torch, o, others):
    """Matmuls with each request's work on their logits; `others`: the installed libraries of OTHERS."""
    vocab = o.head.shape[0]
    targets = o.ids(vocab, (o.rows, 1))
    logits = lambda i: o.linear(i).float()
    softmax = lambda i: torch.softmax(logits(i), dim=-1)

    def distance(got, want):
        return ((got - want).norm() / want.norm()).item()

    def judge_best(ids, truth):
        best = truth.amax(dim=1, keepdim=True)
        return ((best - truth.gather(1, ids.view(-1, 1).long())) / best.abs()).max().item()

    def judge_top8(out, truth):
        want = torch.topk(truth, 8, dim=-1)[0]
        of_ids = distance(truth.gather(1, out[1]), want)
        return max(of_ids, distance(out[0], want), distance(out[2], torch.logsumexp(truth, dim=-1)))

    def judge_logprobs(out, truth):
        return distance(out, torch.log_softmax(truth, dim=-1).gather(1, targets[-1]))

    def judge_nucleus(ids, truth):
        probs = torch.softmax(truth, dim=-1)
        better = probs > probs.gather(1, ids.view(-1, 1).long())
        return ((probs * better).sum(dim=1) - TOP_P).clamp(min=0).max().item()

    def top8(i):
        all_logits = logits(i)
        return (*torch.topk(all_logits, 8, dim=-1), torch.logsumexp(all_logits, dim=-1))

    def nucleus(i):
        probs, ids = torch.sort(softmax(i), dim=-1, descending=True)
        probs = torch.where(torch.cumsum(probs, dim=-1) - probs > TOP_P, 0.0, probs)
        return ids.gather(1, torch.multinomial(probs, 1))

    def of(request, call, output, judge=None):
        return Peer(call, 2, output, None, judge, request)

    top_p = f"sample top_p:{TOP_P}"
    all_peers = {
        "F.linear": Peer(o.linear, 2, "bf16", o.truth),
        "F.linear + argmax": of("argmax", lambda i: o.linear(i).argmax(dim=-1), "ids", judge_best),
        "F.linear + topk(8) + logsumexp": of(
            "topk:8", top8, "the 8 best and their ids, logsumexp", judge_top8),
        "F.linear + log_softmax + gather": of(
            "logprobs:0", lambda i: torch.log_softmax(logits(i), dim=-1).gather(1, targets[i]),
            "a logprob, without its rank", judge_logprobs),
        "F.linear + softmax + multinomial": of(
            "sample", lambda i: torch.multinomial(softmax(i), 1), "ids"),
        "F.linear + softmax + sort + cumsum + multinomial": of(top_p, nucleus, "ids", judge_nucleus),
    }
    if "triton" in others:
        argmax = fused_argmax(torch, others["triton"], o)
        all_peers["one kernel in Triton"] = of("argmax", argmax, "ids", judge_best)
    if "flashinfer" in others:
        sampling = others["flashinfer"]
        all_peers["F.linear + softmax + FlashInfer's sampling_from_probs"] = of(
            "sample", lambda i: sampling.sampling_from_probs(softmax(i)), "ids")
        all_peers["F.linear + softmax + FlashInfer's top_p_sampling_from_probs"] = of(
            top_p, lambda i: sampling.top_p_sampling_from_probs(softmax(i), TOP_P), "ids", judge_nucleus)
    if "vllm" in others:
        sampler = others["vllm"].TopKTopPSampler()
        # In its CPU build the other paths are not what a GPU runs.
        sampler = sampler if o.device == "cuda" else sampler.forward_native
        mass = torch.full((o.rows,), TOP_P, device=o.device)

        def by_vllm(p):
            def call(i):
                # Newer versions also return the logits.
                out = sampler(logits(i), {}, None, p)
                return out[0] if isinstance(out, tuple) else out

            return call

        all_peers["F.linear + vLLM's TopKTopPSampler"] = of("sample", by_vllm(None), "ids")
        all_peers["F.linear + vLLM's TopKTopPSampler, p"] = of(top_p, by_vllm(mass), "ids", judge_nucleus)
    return all_peers


def fused_argmax(torch, triton, o):
    """A matmul whose tiles keep only the best logit: [vocabulary, rows] tiles, rows fastest, so that all rows'
    tiles read a tile of weights at the same time; a 64-bit atomic maximum merges them."""
    global tl  # compiled code looks names up in this module
    tl = importlib.import_module("triton.language")

    @triton.jit
    def kernel(x, w, best, rows, vocab, hidden,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr):
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        ids = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        w_rows = w + ids[:, None].to(tl.int64) * hidden
        x_rows = x + m[None, :] * hidden
        for start in range(0, hidden, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = tl.load(w_rows + k[None, :], mask=(ids < vocab)[:, None] & (k < hidden)[None, :], other=0.0)
            b = tl.load(x_rows + k[:, None], mask=(m < rows)[None, :] & (k < hidden)[:, None], other=0.0)
            if WIDE:  # Triton's interpreter, on a CPU, does not multiply bf16
                a, b = a.to(tl.float32), b.to(tl.float32)
            sums = tl.dot(a, b, sums)
        sums = tl.where((ids < vocab)[:, None], sums, float("-inf"))
        value, place = tl.max(sums, axis=0, return_indices=True)
        # Float bits as integers in the same order; among equal ones the lowest id first.
        bits = value.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        last = 0x7FFFFFFF - (tl.program_id(1) * BLOCK_N + place)
        tl.atomic_max(best + m, order * 4294967296 + last.to(tl.int64), mask=m < rows)

    vocab, hidden = o.head.shape
    block_m = max(16, min(128, triton.next_power_of_2(o.rows)))
    tiles = [{"BLOCK_N": n, "BLOCK_K": k} for n, k in ((128, 64), (64, 128), (128, 128))]
    tuned = kernel
    if o.device == "cuda":
        configs = [triton.Config(tile, num_warps=warps, num_stages=stages)
                   for tile in tiles for warps, stages in ((4, 4), (8, 3))]
        tuned = triton.autotune(configs, key=["rows", "vocab", "hidden"])(kernel)
    chosen = {"WIDE": False} if o.device == "cuda" else {"WIDE": True, **tiles[0]}
    best = [torch.empty(o.rows, dtype=torch.int64, device=o.device) for _ in range(o.launches)]

    def call(i):
        best[i].fill_(-(2**63))
        grid = lambda tile: (triton.cdiv(o.rows, block_m), triton.cdiv(vocab, tile["BLOCK_N"]))
        tuned[grid](o.x[i], o.w("bf16", i), best[i], o.rows, vocab, hidden, BLOCK_M=block_m, **chosen)
        return 0x7FFFFFFF - (best[i] & 0xFFFFFFFF)

    return call
