"""Quantisation and raw logits: exact fractions (or f32 bits for w8a8), with the sums of magnitudes for the error bound."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from case import Case
from formats import GRID, integers, on_grid

NAN = float("nan")

# Quantisation: promise 2, one IEEE f32 operation at a time.
FLT_MIN = np.float32(2.0**-126)


def quantize_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(q int8 [rows, hidden], s f32 [rows])`. A row with NaN or infinity: s is NaN and q is zero."""
    rows = values.shape[0]
    q = np.zeros(values.shape, dtype=np.int8)
    scales = np.ones(rows, dtype=np.float32)
    for r in range(rows):
        row = values[r]
        if not np.isfinite(row).all():
            scales[r] = np.float32(NAN)
            continue
        scale = np.float32(np.abs(row).max() / np.float32(127.0))
        if scale < FLT_MIN:
            continue
        scales[r] = scale
        q[r] = np.clip(np.rint(row / scale), -127, 127).astype(np.int8)
    return q, scales


@dataclass
class Weights:
    """The weights as multiplied: exact integers times a unit, with a factor for each row."""

    ints: np.ndarray
    unit: Fraction
    q: np.ndarray | None = None
    scales: np.ndarray | None = None


def prepare_weights(case: Case) -> Weights:
    rows = slice(0, case.vocab)
    if case.weight.dtype == "I8":
        assert case.weight_scale is not None and case.quantization != "none"
        q, scales = case.weight.data[rows], case.weight_scale.f32().reshape(-1)[rows]
        return Weights(integers(q), Fraction(1), q, scales)
    values = case.weight.f32()[rows]
    if case.quantization == "none":
        return Weights(on_grid(values), GRID)
    q, scales = quantize_rows(values)
    return Weights(integers(q), Fraction(1), q, scales)


#: Half an ulp above the largest f32: from here on rounding gives infinity.
F32_OVERFLOW = Fraction(2**128 - 2**103)

#: An exact value, or a float that is NaN or infinite.
Value = Fraction | float


@dataclass
class Raw:
    values: list[list[Value]]
    bound: list[list[Value]]
    #: w8a8 only
    f32: np.ndarray | None = None
    activation_q: np.ndarray | None = None
    activation_scale: np.ndarray | None = None


def dot(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Exact product `[n, hidden] x [vocab, hidden]^T` of Python integers."""
    if x.shape[0] == 0:
        return np.empty((0, w.shape[0]), dtype=object)
    return x.dot(w.T)


def raw_float(case: Case, weights: Weights) -> Raw:
    """f32, f16, bf16 weights, and w8a16: the sum over k, times the row's scale where there is one."""
    hidden = case.selected_hidden()
    x = on_grid(hidden)
    sums, magnitudes = dot(x, weights.ints), dot(abs(x), abs(weights.ints))
    factors = [weights.unit * GRID] * case.vocab
    if weights.scales is not None:
        factors = [f * Fraction(float(s)) for f, s in zip(factors, weights.scales, strict=True)]
    values, bound = [], []
    for r in range(hidden.shape[0]):
        if np.isfinite(hidden[r]).all():
            exact = [int(s) * f for s, f in zip(sums[r], factors, strict=True)]
            values.append([in_f32_range(v) for v in exact])
            bound.append([int(m) * f for m, f in zip(magnitudes[r], factors, strict=True)])
        else:
            values.append([broken_sum(hidden[r], w) for w in weights.ints])
            bound.append([NAN] * case.vocab)
    return Raw(values, bound)


def in_f32_range(value: Fraction) -> Value:
    """Values beyond f32's range become infinite. Cases ensure that no partial sum overflows unless the sum does."""
    if abs(value) < F32_OVERFLOW:
        return value
    return float("inf") if value > 0 else float("-inf")


def broken_sum(x: np.ndarray, w: np.ndarray) -> float:
    """A sum with a non-finite term is the same in every order, because its finite terms do not matter."""
    terms = set()
    for k in np.flatnonzero(~np.isfinite(x)):
        if np.isnan(x[k]) or w[k] == 0:
            return NAN
        terms.add((x[k] > 0) == (w[k] > 0))
    if len(terms) == 2:
        return NAN
    return float("inf") if terms.pop() else float("-inf")


def raw_w8a8(case: Case, weights: Weights) -> Raw:
    """`(float(acc) * s_x) * s_w`, both products rounded to f32."""
    q, s_x = quantize_rows(case.selected_hidden())
    acc = dot(integers(q), weights.ints)
    magnitudes = dot(abs(integers(q)), abs(weights.ints))
    assert all(abs(a) < 2**31 for a in acc.ravel())
    with np.errstate(invalid="ignore"):
        raw = (acc.astype(np.int32).astype(np.float32) * s_x[:, None]) * weights.scales[None, :]
    values = [[Fraction(float(v)) if np.isfinite(v) else float(v) for v in row] for row in raw]
    s_w = [Fraction(float(s)) for s in weights.scales]
    bound = []
    for row, s in zip(magnitudes, s_x, strict=True):
        good = np.isfinite(s)
        pairs = zip(row, s_w, strict=True)
        bound.append([int(m) * Fraction(float(s)) * w if good else NAN for m, w in pairs])
    return Raw(values, bound, raw, q, s_x)
