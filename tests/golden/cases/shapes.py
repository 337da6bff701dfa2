"""Small, empty and padded sizes; chosen rows."""

from dataclasses import replace

import numpy as np

from case import Case
from cases.builders import case, gaussian, stored_int8, whole_numbers
from draws import Random
from formats import Tensor, tensor


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
