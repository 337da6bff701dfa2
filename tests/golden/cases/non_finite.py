"""Rows with NaN and infinities."""

from dataclasses import replace

import numpy as np

from case import Case
from cases.builders import bias_of, case, gaussian, stored_int8, whole_numbers
from draws import Random
from formats import STORAGE, Tensor

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
