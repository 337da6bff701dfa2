"""Checks that no answer depends on rounding; if one does, the next seed is tried."""

from fractions import Fraction

import numpy as np

from case import Case
from epilogue import Row, order, scaled, softcapped
from raw_logits import Raw

EPS = Fraction(1, 2**24)
#: The promise allows 1.5 * hidden * 2^-24 * bound; the gaps are at least this many times that.
MARGIN = 4


def separated(case: Case, raw: Raw, bias: list[Fraction], rows: list[Row]) -> bool:
    """Whether each two adjacent ids among the first k + 1 of every row are tied by construction or far apart."""
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
    """Whether both have the same f32 inputs of the epilogue."""
    return raw_tolerance(case, raw, r, a) == 0 and raw.values[r][a] == raw.values[r][b] and bias[a] == bias[b]


def raw_tolerance(case: Case, raw: Raw, r: int, v: int) -> Fraction:
    if case.exact or case.quantization == "w8a8":
        return Fraction(0)
    hidden_size = case.weight.shape[1]
    return MARGIN * Fraction(3, 2) * hidden_size * EPS * raw.bound[r][v]


def far_apart(case: Case, raw: Raw, bias: list[Fraction], r: int, row: Row, a: int, b: int) -> bool:
    """Whether the smallest possible result of `a` is above the largest of `b`."""
    plain = case.logit_scale == "1" and case.softcap == "none" and case.bias is None
    if plain and raw_tolerance(case, raw, r, a) == 0:
        return True  # f32 numbers, which are compared without rounding
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
