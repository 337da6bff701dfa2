"""Golden files of adjusted logits and logprobs: `make.py` writes them to `adjusted/`, beside its own.

Raw logits are sums of small integers, exact in f32. Penalties are vLLM's `apply_penalties` over whole rows,
from lists of prompt and output tokens, one elementwise IEEE f32 operation of NumPy at a time: the expected
logits are exact, bit for bit but for the sign of zero. Logprobs come from them by `decimal`
(`epilogue.logsumexp`). Nothing here is taken from the Rust code.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from draws import Random, fnv1a
from epilogue import logsumexp
from formats import Tensor, serialize

F32 = np.float32


def bin_counts(tokens: list[list[int]], vocab: int) -> np.ndarray:
    """`get_token_bin_counts_and_mask` of vLLM: how often each id occurs in each row's list."""
    rows = [np.bincount(np.array(t, dtype=np.int64), minlength=vocab) for t in tokens]
    return np.array(rows).reshape(-1, vocab)


def apply_penalties(
    logits: np.ndarray, prompt: np.ndarray, output: np.ndarray, repetition: np.ndarray, frequency: np.ndarray,
    presence: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Repetition on ids of the prompt or the output, then frequency and presence by the output's counts; all f32."""
    seen = (prompt > 0) | (output > 0)
    factor = np.where(seen, repetition[:, None], F32(1)).astype(F32)
    logits = np.where(logits > 0, logits / factor, logits * factor).astype(F32)
    logits = logits - (frequency[:, None] * output.astype(F32)).astype(F32)
    return logits - (presence[:, None] * (output > 0).astype(F32)).astype(F32)


def expected(raw: np.ndarray, logits: np.ndarray, targets: np.ndarray, k: int) -> dict:
    """Answers from whole rows of logits, which are finite or minus infinity."""
    n, vocab = logits.shape

    def one(row: np.ndarray, target: int) -> tuple[float, int]:
        if not np.isfinite(row).any():
            return float("nan"), -1
        lse = logsumexp([Fraction(float(v)) for v in row if np.isfinite(v)])
        better = [v for v in range(vocab) if row[v] > row[target] or (row[v] == row[target] and v < target)]
        return float(row[target]) - lse, 1 + len(better)

    ids, status = np.full((n, k), -1, dtype=np.int64), np.zeros(n, dtype=np.uint8)
    for r, row in enumerate(logits):
        allowed = [v for v in range(vocab) if np.isfinite(row[v])]
        best = sorted(allowed, key=lambda v, row=row: (-float(row[v]), v))[:k]
        ids[r, : len(best)] = best
        status[r] = 0 if allowed else 2
    of = {name: [one(row, int(t)) for row, t in zip(rows, targets, strict=True)] for name, rows in
          [("raw_", raw), ("", logits)]}  # fmt: skip
    out = {
        "expected.logits": Tensor("F32", logits),
        "expected.row_status": Tensor("U8", status),
        "expected.topk_ids": Tensor("I64", ids),
    }
    for name, pairs in of.items():
        out[f"expected.{name}logprobs"] = Tensor("F64", np.array([p for p, _ in pairs], dtype=np.float64))
        out[f"expected.{name}ranks"] = Tensor("I64", np.array([r for _, r in pairs], dtype=np.int64))
    return out


def solve(name: str, rows: int, hidden: int, vocab: int, k: int, kinds: str) -> bytes:
    r = Random(fnv1a(name))
    x, w = r.integers((rows, hidden), -3, 3).astype(F32), r.integers((vocab, hidden), -3, 3).astype(F32)
    raw = (x.astype(np.int64) @ w.astype(np.int64).T).astype(F32)
    logits = raw.copy()
    named = {"hidden_states": Tensor("F32", x), "lm_head.weight": Tensor("F32", w)}
    targets = r.integers((rows,), 0, vocab - 1)
    named["targets"] = Tensor("I64", targets)
    if "logit_bias" in kinds:
        m = 6 * rows
        at, ids = np.sort(r.integers((m,), 0, rows - 1)), r.integers((m,), 0, vocab - 1)
        values = (r.bell(m) * 5).astype(F32)
        values[::7] = -np.inf
        for row, v, value in zip(at, ids, values, strict=True):
            logits[row, v] += value
        named |= {"adjust_rows": Tensor("I64", at), "adjust_ids": Tensor("I64", ids)}
        named["adjust_values"] = Tensor("F32", values)
    if "penalties" in kinds:
        lengths = r.integers((2, rows), 0, 40)
        prompt = [r.integers((int(n),), 0, vocab - 1).tolist() for n in lengths[0]]
        # A narrow range, so that ids repeat.
        output = [r.integers((int(n),), 0, vocab // 5).tolist() for n in lengths[1]]
        repetition = np.array([1.0, 1.1, 1.3, 0.7, 2.0])[r.integers((rows,), 0, 4)].astype(F32)
        frequency = np.array([0.0, 0.5, -0.3, 1.7])[r.integers((rows,), 0, 3)].astype(F32)
        presence = np.array([0.0, 0.4, -1.1, 2.0])[r.integers((rows,), 0, 3)].astype(F32)
        in_prompt, counts = bin_counts(prompt, vocab), bin_counts(output, vocab)
        logits = apply_penalties(logits, in_prompt, counts, repetition, frequency, presence)
        where, ids = np.nonzero((in_prompt > 0) | (counts > 0))
        for key, values in [("repetition", repetition), ("frequency", frequency), ("presence", presence)]:
            named[key] = Tensor("F32", values)
        named |= {"count_rows": Tensor("I64", where), "count_ids": Tensor("I64", ids)}
        named["counts"] = Tensor("I64", counts[where, ids])
        named["in_prompt"] = Tensor("U8", (in_prompt[where, ids] > 0).astype(np.uint8))
    if "mask" in kinds:
        allowed = r.integers((rows, vocab), 0, 3) == 0
        allowed[0] = True
        if rows > 2:
            allowed[1] = False
            allowed[2] = np.arange(vocab) == vocab - 1
        words = -(-vocab // 32)
        bits = np.zeros((rows, words * 32), dtype=np.uint8)
        bits[:, :vocab] = allowed
        bits[:, vocab:] = 1  # no ids: nobody may look
        named["allowed"] = Tensor("I32", np.packbits(bits, axis=1, bitorder="little").view("<i4"))
        logits = np.where(allowed, logits, F32(-np.inf)).astype(F32)
    metadata = {"hidden_size": str(hidden), "k": str(k), "vocab_size": str(vocab), "kinds": kinds}
    return serialize(named | expected(raw, logits, targets, k), metadata)


#: name -> rows, hidden, vocabulary, k, kinds
CASES: dict[str, tuple[int, int, int, int, str]] = {
    "raw_ties": (5, 4, 150, 9, ""),
    "mask": (6, 12, 200, 30, "mask"),
    "logit_bias": (5, 16, 130, 8, "logit_bias"),
    "penalties": (8, 16, 300, 12, "penalties"),
    "all_kinds": (9, 20, 333, 40, "logit_bias penalties mask"),
    "all_kinds_vocab_7": (6, 5, 7, 7, "logit_bias penalties mask"),
}


def files() -> dict[str, bytes]:
    build: Callable[..., bytes] = solve
    return {f"{name}.safetensors": build(name, *arguments) for name, arguments in CASES.items()}
