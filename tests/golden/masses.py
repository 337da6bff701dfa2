"""Golden files of masses: the mass of each logit for top_p, and which logits min_p keeps.

`make.py` writes them to `masses/`; `definition.py` computes the expected values. A row's vocabulary size
determines the resolution of its masses; a row need not have as many logits.
"""

from collections.abc import Callable

import numpy as np

from definition import below_max, least, mass, mass_bits, min_p_at, share
from draws import Random, fnv1a
from float32 import from_real, from_row, to_float
from formats import Tensor, serialize

F32 = np.float32
#: logits [n, vocab]; temperature and vocabulary [n]
Rows = tuple[np.ndarray, list[float], list[int]]


def bell(r: Random) -> Rows:
    """Realistic logits, at low and high temperatures, with vocabularies of all sizes."""
    temperatures = [1.0, 0.7, 0.1, 2.5, 8.0, 30.0, 1e-3, 1e3] * 2
    vocabularies = [50_000, 2**23, 2**23 + 1, 2**24, 2**24 + 1, 2**30, 2**31, 2**32, *[150] * 8]
    logits = (r.bell(len(temperatures), 150) * 5).astype(F32)
    logits[1:, ::7] = -np.inf
    logits[8:] += F32(1000)
    return logits, temperatures, vocabularies


def edges(r: Random) -> Rows:
    """Logits close to the largest and far below it, masses near half a unit, quotients that leave f32."""
    ladder = -np.linspace(0, 70, 100)
    near_half = -28.4 + np.linspace(-0.05, 0.05, 100)  # 2^-41 is e^-28.42
    close = 3 - np.arange(100) * 2.0**-22
    no_mass = -64 + np.arange(-50, 50) * 2.0**-17
    # From the largest finite f32 to the smallest.
    wide = np.where(np.arange(100) % 3 == 0, -3e38, 3e38 * np.linspace(-1, 1, 100))
    subnormal = -np.arange(100) * 2.0**-149
    rows = [
        (ladder, 1.0), (ladder - 9, 1.0), (ladder * 0.1, 0.1), (ladder * 1e-30, 1e-30), (near_half, 1.0),
        (near_half * 3, 3.0), (close, 1.0), (close, 1e-6), (no_mass, 1.0), (wide, 1.0), (wide, 1e38),
        (wide, 1e-45), (subnormal, 1e-45), (subnormal, 1e-40), (subnormal, 1.0), (ladder, 1e-45),
        (ladder, 3e38),
    ]  # fmt: skip
    logits = np.array([row for row, _ in rows])
    # Rows with small masses get 0 as their largest logit.
    logits[[1, 4, 5, 8], 50] = 0
    # The last two have the coarsest masses.
    return logits.astype(F32), [t for _, t in rows], [100] * 15 + [2**32] * 2


CASES: dict[str, Callable[[Random], Rows]] = {"bell": bell, "edges": edges}


def solve(name: str, build: Callable[[Random], Rows]) -> bytes:
    r = Random(fnv1a(f"masses {name}"))
    logits, temperature, vocabularies = build(r)
    n, vocab = logits.shape
    temperatures = np.array(temperature, dtype=F32)
    min_p, top_p = np.zeros(n, dtype=F32), np.zeros(n, dtype=F32)
    masses, reaches = np.zeros((n, vocab), dtype=np.int64), np.zeros((n, vocab), dtype=np.uint8)
    shares = np.zeros(n, dtype=np.int64)
    for i, row in enumerate(map(from_row, logits)):
        largest, t = max(row), from_real(float(temperatures[i]))
        x = [below_max(logit, largest, t) for logit in row]
        # A threshold at one of the row's own logits, where it is within the range of min_p.
        at = x[int(r.integers((1,), 0, vocab - 1)[0])]
        min_p[i] = to_float(min_p_at(at)) if i % 5 and at > from_real(-80.0) else [0.0, 1.0, 0.02][i // 5 % 3]
        threshold = least(from_real(float(min_p[i])))
        reaches[i] = [v >= threshold for v in x]
        bits = mass_bits(vocabularies[i])
        masses[i] = [mass(v, bits) for v in x]
        top_p[i] = [1.0, 0.9, 0.5, 2.0**-140, 1e-3][i % 5]
        shares[i] = share(from_real(float(top_p[i])), int(masses[i].sum()))
    named = {
        "logits": Tensor("F32", logits),
        "temperature": Tensor("F32", temperatures),
        "min_p": Tensor("F32", min_p),
        "top_p": Tensor("F32", top_p),
        "vocabulary": Tensor("I64", np.array(vocabularies)),
        "expected.masses": Tensor("I64", masses),
        "expected.reaches": Tensor("U8", reaches),
        "expected.share": Tensor("I64", shares),
    }
    return serialize(named, {"vocab_size": str(vocab)})


def files() -> dict[str, bytes]:
    return {f"{name}.safetensors": solve(name, build) for name, build in CASES.items()}
