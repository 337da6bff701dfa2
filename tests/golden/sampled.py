"""Golden files of sampled tokens: `make.py` writes them to `sampled/`, beside its own.

Raw logits are sums of small integers, exact in f32, so that many tie. The filters work on plain float64 probabilities over whole sorted
rows, the noise is Philox4x32-10 in Python integers and `log`, `log1p` of NumPy. Rows are kept only where no decision is close: what the
roundings of another implementation can move is at least a million times smaller. Nothing here is taken from the Rust code.
"""

from collections.abc import Callable

import numpy as np

from draws import Random, fnv1a
from formats import Tensor, serialize

F32 = np.float32
MASK = 0xFFFFFFFF


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def noise(seed: int, position: int, vocab: int) -> np.ndarray:
    """Gumbel noise of every id: word id mod 4 of counter (id div 4, 0, position), -ln(-ln(1 - v)) with v = (word + 1/2) / 2^32."""
    key, place = [seed & MASK, seed >> 32], [position & MASK, position >> 32]
    words = [philox4x32([block, 0, *place], key) for block in range(-(-vocab // 4))]
    v = (np.array(words, dtype=np.float64).reshape(-1)[:vocab] + 0.5) / 2.0**32
    return -np.log(-np.log1p(-v))


def sample(logits: np.ndarray, allowed: np.ndarray, params: dict) -> tuple[int, int] | None:
    """The sampled id and how many ids the filters keep; None where a decision is close."""
    ids = [v for v in range(len(logits)) if allowed[v]]
    if not ids:
        return -1, 0
    ids.sort(key=lambda v: (-float(logits[v]), v))
    t = float(params["temperature"])
    if t == 0:
        return ids[0], 1
    z = logits.astype(np.float64) / t
    p = np.exp(z - z[ids[0]])
    least = float(params["min_p"])
    # Equal to the threshold are only those that equal the largest, with min_p 1.
    if any(abs(p[v] / least - 1) < 1e-6 and logits[v] != logits[ids[0]] for v in ids if least > 0):
        return None
    ids = [v for v in ids if p[v] >= least]
    if params["top_k"] > 0:
        ids = ids[: params["top_k"]]
    top_p = float(params["top_p"])
    if top_p < 1:
        share = np.cumsum(p[ids]) / p[ids].sum()
        if np.abs(share / top_p - 1).min() < 1e-5:
            return None
        ids = ids[: int((share < top_p).sum()) + 1]
    scores = z + noise(int(params["seed"]), int(params["position"]), len(logits))
    best = sorted(ids, key=lambda v: -scores[v])
    if len(best) > 1 and scores[best[0]] - scores[best[1]] < 1e-6:
        return None
    return best[0], len(ids)


def solve(name: str, rows: int, hidden: int, vocab: int, top_ks: list[int], mask: bool) -> bytes:
    r = Random(fnv1a(name))
    w = r.integers((vocab, hidden), -3, 3).astype(F32)

    def pick(values: list[float]) -> F32:
        return F32(values[int(r.integers((1,), 0, len(values) - 1)[0])])

    kept: list[tuple] = []
    while len(kept) < rows:
        x = r.integers((hidden,), -3, 3).astype(F32)
        logits = (x.astype(np.int64) @ w.astype(np.int64).T).astype(F32)
        allowed = np.ones(vocab, dtype=bool)
        if mask and len(kept) % 3:
            allowed = r.integers((vocab,), 0, 1 if len(kept) % 3 == 1 else 10 * vocab) == 0
        seed, position = (int(v) for v in r.u64(2))
        params = {
            "seed": seed,
            "position": position >> (0 if len(kept) % 2 else 50),
            "temperature": pick([0.0, 1.0, 2.5, 8.0, 30.0]),
            "top_k": top_ks[int(r.integers((1,), 0, len(top_ks) - 1)[0])],
            "top_p": pick([1.0, 1.0, 0.9, 0.5, 0.05]),
            "min_p": pick([0.0, 0.0, 0.02, 0.3, 1.0]),
        }
        answer = sample(logits, allowed, params)
        if answer is not None:
            kept.append((x, allowed, params, answer))
    xs, masks, params, answers = zip(*kept, strict=True)
    named = {
        "hidden_states": Tensor("F32", np.array(xs, dtype=F32)),
        "lm_head.weight": Tensor("F32", w),
        "expected.sampled": Tensor("I64", np.array([a[0] for a in answers], dtype=np.int64)),
        "expected.survivors": Tensor("I64", np.array([a[1] for a in answers], dtype=np.int64)),
    }
    for key in ["seed", "position"]:
        named[key] = Tensor("I64", np.array([p[key] for p in params], dtype=np.uint64).astype(np.int64))
    for key in ["temperature", "top_p", "min_p"]:
        named[key] = Tensor("F32", np.array([p[key] for p in params], dtype=F32))
    named["top_k"] = Tensor("I64", np.array([p["top_k"] for p in params], dtype=np.int64))
    if mask:
        bits = np.zeros((rows, -(-vocab // 32) * 32), dtype=np.uint8)
        bits[:, :vocab] = np.array(masks)
        named["allowed"] = Tensor("I32", np.packbits(bits, axis=1, bitorder="little").view("<i4"))
    metadata = {"hidden_size": str(hidden), "vocab_size": str(vocab)}
    return serialize(named, metadata)


#: name -> rows, hidden, vocabulary, values of top_k, whether rows have masks
CASES: dict[str, tuple[int, int, int, list[int], bool]] = {
    "filters": (160, 12, 300, [0, 0, 1, 7, 40, 300, 100000], False),
    "masks": (60, 12, 130, [0, 3, 20], True),
    "many_candidates": (40, 6, 1500, [0, 1024, 1025, 1200, 1499], False),
}


def files() -> dict[str, bytes]:
    build: Callable[..., bytes] = solve
    return {f"{name}.safetensors": build(name, *arguments) for name, arguments in CASES.items()}
