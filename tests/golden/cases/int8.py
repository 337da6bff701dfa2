"""int8 heads, stored and quantised at load, and the edges of the rule by which rows are quantised."""

from dataclasses import replace

import numpy as np

from case import Case
from cases.builders import bias_of, case, gaussian, stored_int8
from draws import Random
from formats import Tensor, tensor
from raw_logits import FLT_MIN


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
