#!/usr/bin/env python3
"""Writes the golden files of lmhead: one safetensors file per case, inputs and expected outputs together.

    python3 tests/golden/make.py            write every file (and remove files of cases that are gone)
    python3 tests/golden/make.py --check    regenerate in memory; exit 1 and list what differs
    python3 tests/golden/make.py --list     print the cases with their sizes

The bytes are the same on every machine: sums are exact (Python integers, fractions), exp, ln and tanh come
from `decimal`, whose results the standard defines to the last digit, and every result is rounded to float64
once. NumPy carries arrays and does single elementwise IEEE operations; no BLAS, no libm, no random module.

The formulas are written from the definitions in the design and share nothing with the Rust code.
`README.md` beside this file says what each tensor means.
"""

import argparse
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import adjusted
import sampled

HERE = Path(__file__).resolve().parent
NAN = float("nan")

# ---------------------------------------------------------------------------------------------------------
# Number formats. A tensor is its bits; widening to f32 is exact, narrowing rounds half to even on integers.
# ---------------------------------------------------------------------------------------------------------

#: safetensors dtype -> the NumPy type that holds its bits, little-endian.
STORAGE = {
    "F64": "<f8", "F32": "<f4", "F16": "<u2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1",
}  # fmt: skip


@dataclass
class Tensor:
    """A safetensors dtype and an array of `STORAGE[dtype]`."""

    dtype: str
    data: np.ndarray

    def __post_init__(self) -> None:
        self.data = np.ascontiguousarray(self.data, dtype=STORAGE[self.dtype])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def f32(self) -> np.ndarray:
        """The values, widened exactly."""
        if self.dtype == "F32":
            return self.data
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F16":
            return f16_bits_to_f32(self.data)
        raise ValueError(f"{self.dtype} is no floating-point input")


def f16_bits_to_f32(bits: np.ndarray) -> np.ndarray:
    """IEEE half -> single by its fields. A subnormal is an integer times 2^-24, which f32 holds exactly."""
    wide = bits.astype(np.uint32)
    sign, exponent, mantissa = (wide >> 15) << 31, (wide >> 10) & 31, wide & 0x3FF
    normal = ((exponent + 112) << 23) | (mantissa << 13)
    special = np.uint32(0x7F800000) | (mantissa << 13)
    subnormal = (mantissa.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    magnitude = np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))
    return (sign | magnitude).astype(np.uint32).view(np.float32)


def round_shift(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """`value / 2^shift` rounded half to even, on non-negative integers; shift >= 1."""
    value, shift = value.astype(np.int64), np.asarray(shift, dtype=np.int64)
    half = np.int64(1) << (shift - 1)
    return (value + half - 1 + ((value >> shift) & 1)) >> shift


def f32_to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """A carry out of the mantissa raises the exponent, as rounding up must. Infinities stay; NaN is refused."""
    assert not np.isnan(values).any(), "a NaN is written by its bits"
    return round_shift(values.astype(np.float32).view(np.uint32), 16).astype(np.uint16)


def f32_to_f16_bits(values: np.ndarray) -> np.ndarray:
    """Below the smallest normal half (2^-14) the mantissa with its hidden bit is shifted further."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    sign, exponent, mantissa = bits >> 31, (bits >> 23) & 255, bits & 0x7FFFFF
    assert (exponent < 127 + 16).all(), "too large for a half"
    normal = round_shift(((np.maximum(exponent, 113) - 112) << 23) | mantissa, 13)
    shift = np.clip(126 - exponent, 14, 40)  # value = (2^23 + mantissa) * 2^(exponent - 150), in units of 2^-24
    subnormal = round_shift(mantissa | (1 << 23), shift)
    return ((sign << 15) | np.where(exponent >= 113, normal, subnormal)).astype(np.uint16)


def tensor(dtype: str, values: np.ndarray | list) -> Tensor:
    """Rounds real values to `dtype` (f64 -> f32 -> 16 bits: what is stored is the input, so twice is no harm)."""
    values = np.asarray(values, dtype=np.float64)
    if dtype == "F32":
        return Tensor(dtype, values.astype(np.float32))
    narrow = {"BF16": f32_to_bf16_bits, "F16": f32_to_f16_bits}[dtype]
    return Tensor(dtype, narrow(values.astype(np.float32)))


def on_grid(values: np.ndarray) -> np.ndarray:
    """Every finite f32 is an integer times 2^-149: these integers, as Python ints (zero for NaN and infinity)."""
    bits = values.astype(np.float32).view(np.uint32)

    def one(b: int) -> int:
        exponent, mantissa = (b >> 23) & 255, b & 0x7FFFFF
        if exponent == 255:
            return 0
        magnitude = mantissa if exponent == 0 else (mantissa | 1 << 23) << (exponent - 1)
        return -magnitude if b >> 31 else magnitude

    return objects(bits.shape, [one(int(b)) for b in bits.ravel()])


def objects(shape: tuple[int, ...], values: list) -> np.ndarray:
    """An array of Python objects, so that NumPy's dot runs on exact integers."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def integers(values: np.ndarray) -> np.ndarray:
    return objects(values.shape, [int(v) for v in values.ravel()])


GRID = Fraction(1, 2**149)

# ---------------------------------------------------------------------------------------------------------
# Data: splitmix64, and bell-shaped values as sums of uniform integers. Pure integer arithmetic.
# ---------------------------------------------------------------------------------------------------------


class Random:
    """splitmix64: a stream that no library can change under us."""

    def __init__(self, seed: int) -> None:
        self.state = seed & (2**64 - 1)

    def u64(self, count: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
            steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = np.uint64(self.state) + steps
            self.state = (self.state + count * 0x9E3779B97F4A7C15) & (2**64 - 1)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
        """Uniform in `low..=high` (the bias of the modulus, about 2^-58, does not matter here)."""
        count = int(np.prod(shape, dtype=np.int64))
        return (self.u64(count) % np.uint64(high - low + 1)).astype(np.int64).reshape(shape) + low

    def bell(self, *shape: int) -> np.ndarray:
        """Twelve uniforms of 21 bits, summed, centred: mean 0, deviation 1, exact in float64."""
        draws = self.u64(4 * int(np.prod(shape, dtype=np.int64))).reshape(*shape, 4)
        total = np.zeros(shape, dtype=np.int64)
        for lane in range(4):
            for part in range(3):
                total += ((draws[..., lane] >> np.uint64(21 * part)) & np.uint64(0x1FFFFF)).astype(np.int64)
        return (total - 6 * 0x1FFFFF).astype(np.float64) / 2.0**21


# ---------------------------------------------------------------------------------------------------------
# A case: what goes in
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    description: str
    hidden: Tensor
    weight: Tensor
    k: int
    weight_scale: Tensor | None = None
    bias: Tensor | None = None
    indices: Tensor | None = None
    quantization: str = "none"
    logit_scale: str = "1"
    softcap: str = "none"
    #: Vocabulary when the weight has more rows than that (checkpoint padding).
    vocab_size: int | None = None
    #: Every partial sum of the matmul is an integer below 2^24: raw logits are exact in f32 in any order.
    exact: bool = False
    seed: int = 0

    @property
    def vocab(self) -> int:
        return self.vocab_size or self.weight.shape[0]

    def selected_hidden(self) -> np.ndarray:
        hidden = self.hidden.f32()
        return hidden if self.indices is None else hidden[self.indices.data.astype(np.int64)]

    def inputs(self) -> dict[str, Tensor]:
        named = {
            "hidden_states": self.hidden,
            "lm_head.weight": self.weight,
            "lm_head.weight_scale": self.weight_scale,
            "lm_head.bias": self.bias,
            "logits_indices": self.indices,
        }
        return {name: t for name, t in named.items() if t is not None}

    def metadata(self) -> dict[str, str]:
        return {
            "description": self.description,
            "exact_raw": "true" if self.exact or self.quantization == "w8a8" else "false",
            "final_logit_softcapping": self.softcap,
            "hidden_size": str(self.weight.shape[1]),
            "k": str(self.k),
            "logit_scale": self.logit_scale,
            "quantization": self.quantization,
            "seed": str(self.seed),
            "vocab_size": str(self.vocab),
        }


# ---------------------------------------------------------------------------------------------------------
# Quantisation: promise 2, one IEEE f32 operation at a time
# ---------------------------------------------------------------------------------------------------------

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
    """The vocabulary's rows as they are multiplied: exact integers times a unit, and per-row factors."""

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


# ---------------------------------------------------------------------------------------------------------
# Raw logits: exact fractions (or f32 bits for w8a8), with the sums of magnitudes for the error bound
# ---------------------------------------------------------------------------------------------------------

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
    """What f32 makes infinite is infinite. Cases see to it that no partial sum overflows where the sum does not."""
    if abs(value) < F32_OVERFLOW:
        return value
    return float("inf") if value > 0 else float("-inf")


def broken_sum(x: np.ndarray, w: np.ndarray) -> float:
    """A sum with a non-finite term is the same in every order: finite terms do not matter to it."""
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
        bound.append([int(m) * Fraction(float(s)) * w if good else NAN for m, w in zip(row, s_w, strict=True)])
    return Raw(values, bound, raw, q, s_x)


# ---------------------------------------------------------------------------------------------------------
# Bias, softcap, scale; argmax, top-k, logsumexp
# ---------------------------------------------------------------------------------------------------------

#: Digits of decimal arithmetic: float64 needs 17, tanh of 1e-20 loses 20 more.
DIGITS = Context(prec=80, Emin=-(10**9), Emax=10**9)


def to_decimal(value: Fraction) -> Decimal:
    with localcontext(DIGITS):
        return Decimal(value.numerator) / Decimal(value.denominator)


def to_f64(value: Value | Decimal) -> float:
    """Rounded once: int / int and the conversion of a decimal are correctly rounded in Python."""
    if isinstance(value, Fraction):
        return value.numerator / value.denominator
    return float(value)


def tanh(y: Decimal) -> Decimal:
    """(1 - e^-2y) / (1 + e^-2y); below 1e-20 the first two terms of the series say more."""
    with localcontext(DIGITS):
        size = abs(y)
        if size < Decimal("1e-20"):
            return y - y * y * y / 3
        e = (-2 * size).exp()
        return ((1 - e) / (1 + e)).copy_sign(y)


@dataclass
class Final:
    """One output value in three forms: `key` orders it exactly, `value` is it exactly or to 80 digits."""

    key: Fraction
    value: Decimal | Fraction


@dataclass
class Row:
    """One output row. `finals` is None where the row is not finite; `logits` is what IEEE gives then."""

    logits: list[float]
    finals: list[Final] | None


def softcapped(value: Fraction, cap: str) -> Decimal | Fraction:
    if cap == "none":
        return value
    with localcontext(DIGITS):
        return tanh(to_decimal(value / Fraction(cap))) * Decimal(cap)


def scaled(value: Decimal | Fraction, scale: str) -> Decimal | Fraction:
    if isinstance(value, Fraction):
        return value * Fraction(scale)
    with localcontext(DIGITS):
        return value * Decimal(scale)


def epilogue_row(case: Case, raw: list[Value], bias: list[Fraction]) -> Row:
    broken = False
    logits, finals = [], []
    sign = 1 if Fraction(case.logit_scale) > 0 else -1
    for value, b in zip(raw, bias, strict=True):
        if isinstance(value, float):
            broken = True
            logits.append(broken_epilogue(case, value))
            continue
        value += b
        final = scaled(softcapped(value, case.softcap), case.logit_scale)
        logits.append(to_f64(final))
        # tanh and a positive scale keep the order, which is exact before them.
        finals.append(Final(value * sign, final))
    return Row(logits, None if broken else finals)


def broken_epilogue(case: Case, value: float) -> float:
    """NaN stays; an infinity is capped like any value, and then it no longer shows."""
    if case.softcap != "none" and value == value:
        value = float(case.softcap) if value > 0 else -float(case.softcap)
    return value * float(case.logit_scale)


def order(row: Row) -> list[int]:
    """All ids, the largest logit first, ties by the lowest id."""
    finals = row.finals
    return sorted(range(len(finals)), key=lambda v: (-finals[v].key, v))


def logsumexp(values: list[Decimal | Fraction]) -> float:
    decimals = [v if isinstance(v, Decimal) else to_decimal(v) for v in values]
    with localcontext(DIGITS):
        largest = max(decimals)
        # Terms below e^-200 do not reach the 80 digits of a sum that is at least 1.
        total = sum((d - largest).exp() for d in decimals if d - largest > -200)
        return float(largest + total.ln())


# ---------------------------------------------------------------------------------------------------------
# Is the answer a matter of rounding? Then the data are no good, and the next seed is tried.
# ---------------------------------------------------------------------------------------------------------

EPS = Fraction(1, 2**24)
#: The promise allows 1.5 * hidden * 2^-24 * bound; the gaps are at least this many times that.
MARGIN = 4


def separated(case: Case, raw: Raw, bias: list[Fraction], rows: list[Row]) -> bool:
    """Whether neighbours among the first k + 1 of every row are tied by construction or far apart."""
    for r, row in enumerate(rows):
        if row.finals is None:
            continue
        ids = order(row)[: case.k + 1]
        for a, b in zip(ids, ids[1:], strict=False):
            if row.finals[a].key == row.finals[b].key:
                if not tied_by_construction(case, raw, bias, r, a, b):
                    return False
            elif not far_apart(case, raw, bias, r, row, a, b):
                return False
    return True


def tied_by_construction(case: Case, raw: Raw, bias: list[Fraction], r: int, a: int, b: int) -> bool:
    """The same f32 numbers go into the epilogue for both."""
    return raw_tolerance(case, raw, r, a) == 0 and raw.values[r][a] == raw.values[r][b] and bias[a] == bias[b]


def raw_tolerance(case: Case, raw: Raw, r: int, v: int) -> Fraction:
    if case.exact or case.quantization == "w8a8":
        return Fraction(0)
    hidden_size = case.weight.shape[1]
    return MARGIN * Fraction(3, 2) * hidden_size * EPS * raw.bound[r][v]


def far_apart(case: Case, raw: Raw, bias: list[Fraction], r: int, row: Row, a: int, b: int) -> bool:
    """The smallest that `a` may come out as is above the largest that `b` may."""
    plain = case.logit_scale == "1" and case.softcap == "none" and case.bias is None
    if plain and raw_tolerance(case, raw, r, a) == 0:
        return True  # f32 numbers that are compared as they are
    sign = 1 if Fraction(case.logit_scale) > 0 else -1

    def edge(v: int, direction: int) -> tuple[Fraction, Fraction]:
        key = row.finals[v].key
        slack = raw_tolerance(case, raw, r, v) + MARGIN * EPS * abs(key)
        moved = (key + direction * slack) * sign
        out = scaled(softcapped(moved, case.softcap), case.logit_scale)
        return Fraction(out), 4 * MARGIN * EPS * abs(Fraction(out))

    (low, slack_low), (high, slack_high) = edge(a, -1), edge(b, +1)
    return low - slack_low > high + slack_high


def check_exact(case: Case, raw: Raw) -> None:
    """An `exact` case holds integers, with sums of magnitudes below 2^24."""
    if not case.exact:
        return
    assert case.quantization == "none"
    for t in (case.selected_hidden(), case.weight.f32()[: case.vocab]):
        finite = t[np.isfinite(t)]
        assert (finite == np.rint(finite)).all(), "not integers"
    assert all(b < 2**24 for row in raw.bound for b in row if isinstance(b, Fraction)), "sums too large"


# ---------------------------------------------------------------------------------------------------------
# A case -> its file
# ---------------------------------------------------------------------------------------------------------


def f64s(rows: list[list[float]], width: int) -> Tensor:
    return Tensor("F64", np.array(rows, dtype=np.float64).reshape(len(rows), width))


def solve(case: Case) -> dict[str, Tensor] | None:
    """The expected tensors, or None when this seed's data are no good."""
    weights = prepare_weights(case)
    raw = (raw_w8a8 if case.quantization == "w8a8" else raw_float)(case, weights)
    check_exact(case, raw)
    bias = [Fraction(0)] * case.vocab
    if case.bias is not None:
        bias = [Fraction(float(b)) for b in case.bias.data]
    rows = [epilogue_row(case, values, bias) for values in raw.values]
    if not separated(case, raw, bias, rows):
        return None
    expected = answers(case, rows)
    expected["expected.bound"] = f64s([[to_f64(b) for b in row] for row in raw.bound], case.vocab)
    if raw.f32 is not None:
        expected["expected.raw_logits"] = Tensor("F32", raw.f32)
        expected["expected.activation_int8"] = Tensor("I8", raw.activation_q)
        expected["expected.activation_scale"] = Tensor("F32", raw.activation_scale)
    if weights.q is not None and case.weight.dtype != "I8":
        expected["expected.weight_int8"] = Tensor("I8", weights.q)
        expected["expected.weight_scale"] = Tensor("F32", weights.scales)
    return expected


def answers(case: Case, rows: list[Row]) -> dict[str, Tensor]:
    status, best, ids, values, sums = [], [], [], [], []
    for row in rows:
        good = row.finals is not None
        top = order(row)[: case.k] if good else [-1] * case.k
        status.append(0 if good else 1)
        best.append(top[0])
        ids.append(top)
        values.append([row.logits[v] for v in top] if good else [NAN] * case.k)
        sums.append(logsumexp([f.value for f in row.finals]) if good else NAN)
    n = len(rows)
    return {
        "expected.row_status": Tensor("U8", np.array(status, dtype=np.uint8)),
        "expected.argmax": Tensor("I64", np.array(best, dtype=np.int64)),
        "expected.topk_ids": Tensor("I64", np.array(ids, dtype=np.int64).reshape(n, case.k)),
        "expected.topk_values": f64s(values, case.k),
        "expected.logsumexp": Tensor("F64", np.array(sums, dtype=np.float64)),
        "expected.logits": f64s([row.logits for row in rows], case.vocab),
    }


def canonical(t: Tensor) -> bytes:
    """The bytes of an expected tensor: processors differ in the sign of the NaN they make."""
    data = t.data.copy()
    if t.dtype in ("F32", "F64"):
        pattern = {"F32": (np.uint32, 0x7FC00000), "F64": (np.uint64, 0x7FF8000000000000)}[t.dtype]
        data.view(pattern[0])[np.isnan(data)] = pattern[1]
    return data.tobytes()


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """safetensors: u64 header length, JSON header, data. Wide elements first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].data.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": metadata}
    body = b""
    for name, t in ordered:
        raw = canonical(t) if name.startswith("expected.") else t.data.tobytes()
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


# ---------------------------------------------------------------------------------------------------------
# The cases
# ---------------------------------------------------------------------------------------------------------

Builder = Callable[[Random], Case]
CASES: dict[str, Builder] = {}


def case(build: Builder) -> Builder:
    """Registers a case under the function's name, which is the file's name."""
    CASES[build.__name__] = build
    return build


def gaussian(
    r: Random, dtype: str, rows: int, hidden: int, vocab: int, k: int, spread: float = 0.05, **more: object
) -> Case:
    """Bell-shaped hidden states of deviation 1 and weights of deviation `spread`."""
    x, w = r.bell(rows, hidden), r.bell(vocab, hidden) * spread
    return Case(hidden=tensor(dtype, x), weight=tensor(dtype, w), k=k, **more)


def whole_numbers(r: Random, dtype: str, rows: int, hidden: int, vocab: int, k: int, most: int, **more: object) -> Case:
    x, w = r.integers((rows, hidden), -most, most), r.integers((vocab, hidden), -most, most)
    return Case(hidden=tensor(dtype, x), weight=tensor(dtype, w), k=k, exact=True, **more)


def stored_int8(
    r: Random, dtype: str, rows: int, hidden: int, vocab: int, k: int, scale: tuple[str, bool], **more: object
) -> Case:
    """int8 weights with -128 among them, and a positive scale per row as `[V]` or, if `scale[1]`, `[V, 1]`."""
    q = r.integers((vocab, hidden), -128, 127)
    scale_dtype, column = scale
    factors = (r.integers((vocab,), 1, 2**16) + 2**15) / 2.0**26
    factors = factors.reshape(vocab, 1) if column else factors
    return Case(
        hidden=tensor(dtype, r.bell(rows, hidden)), weight=Tensor("I8", q), k=k,
        weight_scale=tensor(scale_dtype, factors), **more,
    )  # fmt: skip


def bias_of(r: Random, vocab: int, spread: float) -> Tensor:
    return tensor("F32", r.bell(vocab) * spread)


@case
def f32_plain(r: Random) -> Case:
    return gaussian(r, "F32", 5, 67, 193, 5, description="f32, odd sizes")


@case
def f16_plain(r: Random) -> Case:
    return gaussian(r, "F16", 5, 101, 193, 8, description="f16, odd sizes")


@case
def bf16_plain(r: Random) -> Case:
    return gaussian(r, "BF16", 5, 96, 300, 8, description="bf16")


@case
def bf16_long_rows(r: Random) -> Case:
    return gaussian(r, "BF16", 3, 1031, 24, 3, description="bf16, a hidden size past one tile, with a tail")


@case
def f32_large_logits(r: Random) -> Case:
    text = "logits of several thousand: exp overflows unless the largest is taken out first"
    return gaussian(r, "F32", 4, 61, 130, 5, 400.0, description=text)


@case
def bf16_bias(r: Random) -> Case:
    return gaussian(r, "BF16", 5, 80, 160, 6, description="bias", bias=bias_of(r, 160, 0.5))


@case
def bf16_softcap(r: Random) -> Case:
    text = "softcap 30 on logits that reach 100"
    return gaussian(r, "BF16", 6, 72, 170, 3, 3.0, description=text, softcap="30")


@case
def f16_logit_scale(r: Random) -> Case:
    return gaussian(r, "F16", 6, 77, 190, 6, 0.5, description="logit_scale 0.0625", logit_scale="0.0625")


@case
def f32_negative_logit_scale(r: Random) -> Case:
    text = "a negative logit_scale turns the order round; it comes after the softcap"
    return gaussian(r, "F32", 5, 40, 140, 6, description=text, logit_scale="-2.5", softcap="4")


@case
def f32_bias_softcap_scale(r: Random) -> Case:
    text = "bias, then softcap, then logit_scale"
    more = {"description": text, "softcap": "20", "logit_scale": "0.625"}
    return gaussian(r, "F32", 6, 53, 131, 4, 2.0, bias=bias_of(r, 131, 5.0), **more)


@case
def bf16_bias_softcap_scale(r: Random) -> Case:
    text = "bias, then softcap, then logit_scale"
    more = {"description": text, "softcap": "30", "logit_scale": "0.0625"}
    return gaussian(r, "BF16", 4, 90, 175, 4, 2.0, bias=bias_of(r, 175, 5.0), **more)


@case
def w8a8_f32(r: Random) -> Case:
    return stored_int8(r, "F32", 5, 97, 260, 8, ("F32", False), description="w8a8, f32 rows", quantization="w8a8")


@case
def w8a8_f16(r: Random) -> Case:
    text = "w8a8, f16 rows, f16 scales as a column"
    return stored_int8(r, "F16", 6, 64, 130, 8, ("F16", True), description=text, quantization="w8a8")


@case
def w8a8_bf16(r: Random) -> Case:
    text = "w8a8, bf16 rows, bf16 scales"
    return stored_int8(r, "BF16", 6, 51, 200, 8, ("BF16", False), description=text, quantization="w8a8")


@case
def w8a8_bias_softcap_scale(r: Random) -> Case:
    more = {"description": "w8a8 with all of the epilogue", "softcap": "30", "logit_scale": "0.625"}
    made = stored_int8(r, "BF16", 6, 80, 140, 4, ("F32", True), quantization="w8a8", **more)
    return replace(made, bias=bias_of(r, 140, 2.0))


@case
def w8a8_long_rows(r: Random) -> Case:
    """Sums above 2^24 (1100 * 127 * 127) are rounded when they become f32."""
    text = "accumulators above 2^24, rounded to f32 before the scales"
    made = stored_int8(r, "F32", 4, 1100, 9, 9, ("F32", False), description=text, quantization="w8a8")
    x, q = made.hidden.data.copy(), made.weight.data.copy()
    near = 127 - r.integers((1100,), 0, 1)  # near 127, so that the sums are large, and odd as often as even
    x[0], x[1] = near, -near
    q[:4] = 127 - r.integers((4, 1100), 0, 1)
    q[4:7] = r.integers((3, 1100), 0, 1) - 128
    return replace(made, hidden=Tensor("F32", x), weight=Tensor("I8", q))


@case
def w8a8_at_load_bf16(r: Random) -> Case:
    text = "bf16 weights quantised at load; one vocabulary row is zero, one has ties"
    made = gaussian(r, "BF16", 5, 66, 140, 6, description=text, quantization="w8a8")
    return replace(made, weight=Tensor("BF16", with_quantisation_edges(made.weight, "BF16")))


@case
def w8a16_at_load_f16(r: Random) -> Case:
    text = "f16 weights quantised at load; one vocabulary row is zero, one has ties"
    made = gaussian(r, "F16", 6, 58, 110, 4, description=text, quantization="w8a16")
    return replace(made, weight=Tensor("F16", with_quantisation_edges(made.weight, "F16")))


@case
def w8a16_at_load_f32(r: Random) -> Case:
    text = "f32 weights quantised at load"
    return gaussian(r, "F32", 5, 45, 120, 4, description=text, quantization="w8a16")


def with_quantisation_edges(weight: Tensor, dtype: str) -> np.ndarray:
    bits = weight.data.copy()
    bits[3] = 0
    bits[5] = tensor(dtype, tie_row(weight.shape[1], 2.0**-9)).data
    return bits


def tie_row(hidden: int, unit: float) -> np.ndarray:
    """absmax is 127 units, so the scale is the unit, and every other element lies half-way between two integers."""
    halves = np.arange(hidden) % 29 - 14 + 0.5
    halves[0] = 127.0
    return halves * unit


@case
def w8a16_bf16(r: Random) -> Case:
    text = "w8a16, bf16 rows"
    return stored_int8(r, "BF16", 5, 88, 180, 6, ("F32", False), description=text, quantization="w8a16")


@case
def w8a16_f16(r: Random) -> Case:
    text = "w8a16, f16 rows, scales as a column"
    return stored_int8(r, "F16", 6, 63, 129, 6, ("F16", True), description=text, quantization="w8a16")


@case
def w8a16_f32_bias_softcap_scale(r: Random) -> Case:
    more = {"description": "w8a16, f32 rows, all of the epilogue", "softcap": "15", "logit_scale": "2"}
    made = stored_int8(r, "F32", 5, 39, 100, 3, ("BF16", False), quantization="w8a16", **more)
    return replace(made, bias=bias_of(r, 100, 2.0))


def reciprocal_traps(r: Random, hidden: int) -> np.ndarray:
    """A row whose elements quantise otherwise when x is multiplied by 1/s instead of divided by s."""
    one, half = np.float32(1.0), np.float32(0.5)
    while True:
        absmax = np.float32(abs(r.bell(1)[0]) + 0.5)
        scale = np.float32(absmax / np.float32(127.0))
        steps = np.arange(-126, 126).astype(np.float32) + half
        x = steps * scale
        traps = x[np.rint(x / scale) != np.rint(x * (one / scale))]
        if len(traps) >= 4:
            row = np.resize(traps, hidden)
            row[-1] = absmax
            return row


@case
def w8a8_edges_f32(r: Random) -> Case:
    """Each row is one trap; x/s unlike x*(1/s) needs `reciprocal_traps`."""
    hidden, vocab = 70, 72
    x = r.bell(11, hidden).astype(np.float32)
    tiny = np.float32(127.0) * FLT_MIN
    x[0] = tie_row(hidden, 1.0)
    x[1] = tie_row(hidden, 2.0**-11)
    x[2] = 0.0
    x[3] = np.where(np.arange(hidden) % 2 == 0, 1e-37, -1e-37)  # absmax / 127 < FLT_MIN: quantises to zeros
    x[4] = np.float32(0.25) * tiny
    x[4, 7] = np.nextafter(tiny, np.float32(0.0))  # 0.504 ulp below FLT_MIN: rounds to the subnormal below it
    x[5] = x[0] * FLT_MIN  # scale exactly FLT_MIN: not below, so it is quantised
    x[6] = reciprocal_traps(r, hidden)
    x[7] = reciprocal_traps(r, hidden)
    x[8] = 127.0
    x[9] = -127.0
    x[10] = x[10] * np.float32(2.0**100)
    q = r.integers((vocab, hidden), -128, 127)
    q[0], q[1], q[2] = -128, 127, np.where(np.arange(hidden) % 2 == 0, 127, -128)
    q[60], q[61] = q[1], 0
    factors = (r.integers((vocab,), 1, 2**16) + 2**15) / 2.0**26
    factors[60] = factors[1]
    text = (
        "rows: ties (two scales), zero, tiny, scale just below and at FLT_MIN, "
        "x/s unlike x*(1/s) (two), all 127, all -127, times 2^100"
    )
    return Case(
        description=text, hidden=Tensor("F32", x), weight=Tensor("I8", q),
        weight_scale=tensor("F32", factors), quantization="w8a8", k=6,
    )  # fmt: skip


def edges_16bit(r: Random, dtype: str, subnormal_bits: int, text: str) -> Case:
    hidden = 48
    made = stored_int8(r, dtype, 5, hidden, 66, 5, ("F32", False), description=text, quantization="w8a8")
    bits = made.hidden.data.copy()
    bits[0] = tensor(dtype, tie_row(hidden, 2.0**-3)).data
    bits[1] = 0
    bits[1, ::3] = 0x8000  # negative zeros
    bits[2] = r.integers((hidden,), 0, subnormal_bits) | (r.integers((hidden,), 0, 1) << 15)
    bits[3, 1::2] = 0
    return replace(made, hidden=Tensor(dtype, bits))


@case
def w8a8_edges_f16(r: Random) -> Case:
    text = "rows: ties, zeros of both signs, subnormal halves (their scale is a normal f32), half zeros"
    return edges_16bit(r, "F16", 0x3FF, text)


@case
def w8a8_edges_bf16(r: Random) -> Case:
    text = "rows: ties, zeros of both signs, subnormal bf16 (quantise to zeros), half zeros"
    return edges_16bit(r, "BF16", 0x7F, text)


@case
def f32_integer_ties(r: Random) -> Case:
    return whole_numbers(r, "F32", 6, 9, 130, 130, 2, description="integers, many ties, k is the vocabulary")


@case
def bf16_integer_ties(r: Random) -> Case:
    return whole_numbers(r, "BF16", 5, 13, 290, 70, 2, description="integers, many ties")


@case
def f16_integers_eight(r: Random) -> Case:
    return whole_numbers(r, "F16", 5, 83, 140, 20, 8, description="integers up to 8: bits equal on every backend")


@case
def bf16_integer_ties_softcap(r: Random) -> Case:
    more = {"description": "ties stay ties through the epilogue", "softcap": "50", "logit_scale": "0.5"}
    return whole_numbers(r, "BF16", 5, 11, 140, 20, 2, **more)


@case
def w8a8_integer_ties(r: Random) -> Case:
    """Equal accumulators with equal scales are equal bits."""
    rows, hidden, vocab = 5, 10, 150
    x = r.integers((rows, hidden), -2, 2)
    x[:, 0] = 127  # the scale is 1
    q = r.integers((vocab, hidden), -2, 2)
    return Case(
        description="w8a8, many ties", hidden=tensor("BF16", x), weight=Tensor("I8", q),
        weight_scale=tensor("F32", np.full(vocab, 2.0**-4)), quantization="w8a8", k=40,
    )  # fmt: skip


@case
def bf16_equal_vocabulary_rows(r: Random) -> Case:
    made = whole_numbers(r, "BF16", 4, 32, 70, 10, 8, description="every vocabulary row is the same: ids 0 to k - 1")
    return replace(made, weight=Tensor("BF16", np.tile(made.weight.data[0], (70, 1))))


@case
def f32_ties_across_blocks(r: Random) -> Case:
    """The largest logit at the last and first ids of blocks of 64."""
    hidden, vocab = 5, 200
    w = np.zeros((vocab, hidden))
    for column, ids in enumerate(([63, 64], [127, 128, 199], [199, 64, 1], [192, 191, 128], [0, 199])):
        w[ids, column] = 3.0
    x = np.concatenate([np.eye(hidden) * 2.0, -np.eye(hidden) * 2.0])
    return Case(
        description="ties at the edges of blocks of 64, the rest tied at zero", hidden=tensor("F32", x),
        weight=tensor("F32", w), k=7, exact=True,
    )  # fmt: skip


@case
def bf16_all_negative(r: Random) -> Case:
    """A padding column that counts as zero would win."""
    x, w = r.integers((5, 20), 1, 8), -r.integers((65, 20), 1, 8)
    text = "every logit negative, vocabulary 65: padding must not win"
    return Case(description=text, hidden=tensor("BF16", x), weight=tensor("BF16", w), k=65, exact=True)


@case
def f32_zero_rows(r: Random) -> Case:
    made = whole_numbers(r, "F32", 3, 16, 100, 5, 8, description="a zero row: all logits tie at zero, lse is ln V")
    x = made.hidden.data.copy()
    x[1] = 0.0
    return replace(made, hidden=Tensor("F32", x))


@case
def bf16_vocab_1(r: Random) -> Case:
    return gaussian(r, "BF16", 3, 40, 1, 1, description="a vocabulary of one")


@case
def f16_vocab_65(r: Random) -> Case:
    return gaussian(r, "F16", 4, 33, 65, 3, description="one block and one id")


@case
def f32_vocab_130(r: Random) -> Case:
    return gaussian(r, "F32", 4, 31, 130, 3, description="two blocks and two ids")


@case
def bf16_hidden_1(r: Random) -> Case:
    return whole_numbers(r, "BF16", 4, 1, 100, 12, 100, description="hidden size 1")


@case
def w8a8_hidden_1(r: Random) -> Case:
    text = "w8a8, hidden size 1, vocabulary 1"
    return stored_int8(r, "F32", 4, 1, 1, 1, ("F32", True), description=text, quantization="w8a8")


@case
def bf16_indices_i64(r: Random) -> Case:
    made = gaussian(r, "BF16", 9, 50, 120, 5, description="repeated, unordered rows")
    return replace(made, indices=Tensor("I64", np.array([7, 0, 7, 3, 8, 3, 3, 1])))


@case
def f32_indices_i32(r: Random) -> Case:
    made = gaussian(r, "F32", 5, 37, 100, 5, description="more output rows than hidden rows")
    return replace(made, indices=Tensor("I32", np.array([4, 4, 4, 2, 0, 1, 2, 4, 3, 0])))


@case
def f16_indices_empty(r: Random) -> Case:
    made = gaussian(r, "F16", 4, 32, 96, 4, description="no rows asked for")
    return replace(made, indices=Tensor("I64", np.empty(0, dtype=np.int64)))


@case
def w8a8_indices(r: Random) -> Case:
    text = "w8a8 with chosen rows; the scale is of the row, not of the tensor"
    made = stored_int8(r, "BF16", 6, 44, 90, 4, ("F32", False), description=text, quantization="w8a8")
    bits = tensor("BF16", made.hidden.f32() * np.array([[1], [100], [0.01], [1], [7], [1000]])).data
    return replace(made, hidden=Tensor("BF16", bits), indices=Tensor("I32", np.array([5, 2, 2, 0, 4])))


@case
def bf16_no_rows(r: Random) -> Case:
    return gaussian(r, "BF16", 0, 24, 70, 3, description="no hidden rows at all")


@case
def bf16_padded_vocabulary(r: Random) -> Case:
    """The rows beyond vocab_size would win every row, or break it, if they counted."""
    made = gaussian(r, "BF16", 5, 42, 128, 6, description="the weight has more rows than vocab_size", vocab_size=117)
    bits = made.weight.data.copy()
    bits[117:] = tensor("BF16", made.weight.f32()[117:] * 100.0).data
    return replace(made, weight=Tensor("BF16", bits))


#: Quiet NaN, infinity and minus infinity by their bits.
SPECIAL = {
    "F32": (0x7FC00000, 0x7F800000, 0xFF800000),
    "F16": (0x7E00, 0x7C00, 0xFC00),
    "BF16": (0x7FC0, 0x7F80, 0xFF80),
}


def break_rows(made: Case) -> Case:
    """Rows 1, 2, 3: one NaN, infinity, minus infinity. Row 5: infinities of both signs. 0 and 4 stay good."""
    dtype = made.hidden.dtype
    nan, inf, minus = SPECIAL[dtype]
    bits = made.hidden.data.view("<u4" if dtype == "F32" else "<u2").copy()
    bits[1, 2], bits[2, 0], bits[3, -1], bits[5, 0], bits[5, 1] = nan, inf, minus, inf, minus
    return replace(made, hidden=Tensor(dtype, bits.view(STORAGE[dtype])))


@case
def f32_non_finite(r: Random) -> Case:
    """Row 6 holds one element, so that no order of summation matters to its overflow."""
    made = whole_numbers(r, "F32", 8, 19, 80, 5, 3, description="NaN, infinities, and a row that overflows f32")
    made = break_rows(made)
    x = made.hidden.data.copy()
    x[6] = 0.0
    x[6, 4] = 2.0**127
    return replace(made, hidden=Tensor("F32", x), exact=False)


@case
def f16_non_finite(r: Random) -> Case:
    return break_rows(gaussian(r, "F16", 7, 30, 90, 5, description="NaN and infinities in f16 rows"))


@case
def bf16_non_finite_softcap(r: Random) -> Case:
    text = "a softcap must not hide an infinity"
    return break_rows(gaussian(r, "BF16", 7, 30, 90, 4, description=text, softcap="30", bias=bias_of(r, 90, 0.5)))


@case
def bf16_non_finite_indices(r: Random) -> Case:
    made = break_rows(gaussian(r, "BF16", 7, 30, 90, 4, description="a bad row twice, another one not asked for"))
    return replace(made, indices=Tensor("I64", np.array([6, 2, 0, 2, 4, 1])))


@case
def w8a8_non_finite(r: Random) -> Case:
    text = "w8a8: a row with NaN or infinity has the scale NaN"
    return break_rows(stored_int8(r, "F32", 7, 36, 100, 5, ("F32", False), description=text, quantization="w8a8"))


@case
def w8a16_non_finite(r: Random) -> Case:
    text = "w8a16: NaN and infinities"
    return break_rows(stored_int8(r, "F16", 7, 36, 100, 4, ("F32", True), description=text, quantization="w8a16"))


# ---------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------

SEEDS = 400


def fnv1a(text: str) -> int:
    """A 64-bit hash of the name, so that no two cases share their data."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state


def generate(name: str, build: Builder) -> bytes:
    """Tries seeds in order until no answer is a matter of rounding."""
    for seed in range(SEEDS):
        made = replace(build(Random(fnv1a(f"{name} {seed}"))), seed=seed)
        expected = solve(made)
        if expected is not None:
            return serialize(made.inputs() | expected, made.metadata())
    raise SystemExit(f"{name}: no seed of {SEEDS} keeps its answers apart; make k smaller or the logits wider")


def differences(files: dict[str, bytes], folder: Path) -> list[str]:
    present = {p.name for p in folder.glob("*.safetensors")}
    found = [f"extra: {name}" for name in sorted(present - files.keys())]
    for name, content in files.items():
        path = folder / name
        if name not in present:
            found.append(f"missing: {name}")
        elif path.read_bytes() != content:
            found.append(f"differs: {name}")
    return found


def write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.safetensors"):
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description="golden files of lmhead")
    parser.add_argument("--check", action="store_true", help="compare with the files; exit 1 when they differ")
    parser.add_argument("--list", action="store_true", help="print the cases and their sizes, write nothing")
    arguments = parser.parse_args()
    folders = {
        HERE: {f"{name}.safetensors": generate(name, build) for name, build in CASES.items()},
        HERE / "adjusted": adjusted.files(sys.modules[__name__]),
        HERE / "sampled": sampled.files(sys.modules[__name__]),
    }
    files = {name: content for files in folders.values() for name, content in files.items()}
    total = sum(map(len, files.values()))
    if arguments.list:
        for name, content in files.items():
            print(f"{len(content):8} {name}")
        print(f"{total:8} in {len(files)} files")
        return 0
    if arguments.check:
        found = [line for folder, files in folders.items() for line in differences(files, folder)]
        for line in found:
            print(line, file=sys.stderr)
        if found:
            print("golden files are not what make.py writes: run it and commit", file=sys.stderr)
            return 1
        print(f"{len(files)} golden files reproduced, {total} bytes")
        return 0
    for folder, content in folders.items():
        write(content, folder)
    print(f"wrote {len(files)} files, {total} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
