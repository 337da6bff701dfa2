"""Equal logits, which go to the lowest id; and rows in which a padding column would win."""

from dataclasses import replace

import numpy as np

from case import Case
from cases.builders import case, whole_numbers
from draws import Random
from formats import Tensor, tensor


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
