"""The definition of sums of exponentials, masses and filters, in exact integers (`float32.py`).

Section 3 of the design states the definition for host and device code: f32 operations, each rounded on its
own. This file follows the same text and shares no code with either; the constants are copied by their bits.
A term is `significand * 2^exponent` with integers, so a sum of terms is exact, and its bits can be compared.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

from epilogue import DIGITS, to_decimal
from float32 import (
    MINUS_INFINITY, ONE, PLACES, Number, divide, fma, from_bits, from_real, subtract, to_float, to_fraction,
)  # fmt: skip

LOG2E = from_bits(0x3FB8AA3B)
SHIFT = from_bits(0x4B400000)  # 1.5 * 2^23: adding it rounds to an integer
LN2_HI, LN2_LO = from_bits(0x3F317218), from_bits(0xB102E308)
#: Of the polynomial for e^r, from r^6 down to r^2; those of r and 1 are 1.
COEFFICIENTS = [from_bits(b) for b in (0x3AB49AE8, 0x3C0961E3, 0x3D2AAE94, 0x3E2AA9D9, 0x3EFFFFF9)]
#: ln 2 in two float64: the first has 32 significant bits, so that its product with an exponent is exact.
LN2_HI64, LN2_LO64 = (
    float.fromhex("0x1.62e42fee00000p-1"),  # 0x3fe62e42fee00000
    float.fromhex("0x1.a39ef35793c76p-33"),  # 0x3dea39ef35793c76
)
#: Largest magnitude of a logit that has a term, and of a row's maximum whose logsumexp is formed from terms.
LARGEST_TERM, LARGEST_SUM = ONE << 21, ONE << 20
#: `top` of a sum without terms.
EMPTY = -(2**31)


def term(x: int) -> tuple[int, int]:
    """`(significand, exponent)`, 2^23 <= significand < 2^24: e^x is nearly `significand * 2^exponent`."""
    assert abs(x) <= LARGEST_TERM
    shifted = fma(x, LOG2E, SHIFT)
    n = subtract(shifted, SHIFT)
    r = fma(-n, LN2_LO, fma(-n, LN2_HI, x))
    p = COEFFICIENTS[0]
    for c in [*COEFFICIENTS[1:], ONE, ONE]:
        p = fma(p, r, c)
    # p is a normal number near e^r, which is between 0.65 and 1.53: on the grid it has more than 24 bits.
    dropped = p.bit_length() - 24
    significand = p >> dropped
    assert significand << dropped == p and 2**23 <= significand < 2**24
    return significand, dropped - PLACES + (n >> PLACES)


@dataclass
class ExpSum:
    """`words[j]` counts units of `2^(32 (top - 2 + j))`."""

    top: int
    words: tuple[int, int, int]


def exp_sum(row: list[Number]) -> ExpSum:
    """The sum over a row, digit by digit. The three highest digits that a term reached are kept."""
    digits: dict[int, int] = {}
    for x in row:
        if x == MINUS_INFINITY or abs(x) > LARGEST_TERM:
            continue
        significand, exponent = term(x)
        digit, shift = divmod(exponent, 32)
        piece = significand << shift
        for place, part in ((digit, piece % 2**32), (digit + 1, piece >> 32)):
            digits[place] = digits.get(place, 0) + part
    if not digits:
        return ExpSum(EMPTY, (0, 0, 0))
    top = max(digits)
    low, middle, high = (digits.get(top - 2 + j, 0) for j in range(3))
    assert max(low, middle, high) < 2**63
    return ExpSum(top, (low, middle, high))


def ln_f64(value: float) -> float:
    """The natural logarithm, rounded to float64 once."""
    with localcontext(DIGITS):
        return float(Decimal(value).ln())


def neighbours(value: float) -> list[float]:
    """The possible values of a logarithm that is off by less than one ulp, the nearest float64 first."""
    return [value, math.nextafter(value, -math.inf), math.nextafter(value, math.inf)]


def finish(total: ExpSum, largest: Number) -> list[float]:
    """The row's logsumexp in float64; `largest` is its largest allowed logit.

    The definition's logarithm is a port of a library's, which may not be the nearest float64. So there are
    three possible answers, in the order of `neighbours`; the data must be such that all are equal in f32.
    """
    if abs(largest) > LARGEST_SUM:
        return [to_float(largest)] * 3
    value = sum(word << (32 * j) for j, word in enumerate(total.words))
    length = value.bit_length()
    assert 0 < length < 128
    # The 64 bits from the leading one on; lower bits are cut.
    head = value >> (length - 64) if length > 64 else value << (64 - length)
    f = float(head) * 2.0**-63  # Python converts integers rounded half to even
    k = float(32 * (total.top - 2) + length - 1)
    answers = [(k * LN2_HI64 + ln) + k * LN2_LO64 for ln in neighbours(ln_f64(f))]
    in_f32 = {from_real(v) for v in answers}
    assert len(in_f32) == 1, "the logsumexp is too close to the middle of two f32: take other logits"
    return answers


def below_max(logit: Number, largest: int, temperature: int) -> Number:
    """`(l - max) / T`: at most 0."""
    return divide(MINUS_INFINITY if logit == MINUS_INFINITY else subtract(logit, largest), temperature)


def least(min_p: int) -> Number:
    """The smallest `(l - max) / T` that min_p keeps: its logarithm, rounded to float64 and then to f32."""
    if min_p == 0:
        return MINUS_INFINITY
    # As in `finish`: it must not matter which of two neighbours the logarithm is.
    nearby = {from_real(v) for v in neighbours(ln_f64(to_float(min_p)))}
    assert len(nearby) == 1, "min_p's logarithm is too close to the middle of two f32: take another min_p"
    return nearby.pop()


def min_p_at(x: int) -> int:
    """The f32 nearest to e^x: the min_p whose threshold is x, or next to it."""
    with localcontext(DIGITS):
        return from_real(to_decimal(to_fraction(x)).exp())


def mass_bits(vocab_size: int) -> int:
    """The largest logit has mass 2 to this power."""
    return 63 - max((vocab_size - 1).bit_length(), 23)


def mass(x: Number, bits: int) -> int:
    """e^x in units of `2^-bits`, rounded half up; x is at most 0."""
    if x < -64 * ONE:
        return 0
    significand, exponent = term(x)
    # significand * 2^exponent * 2^bits, whose exponent is at most bits - 23.
    shift = -(exponent + 23)
    scaled = significand << (bits - 23)
    # A larger shift leaves less than half a unit.
    return (scaled + (1 << shift >> 1)) >> shift if shift <= 63 else 0


def share(top_p: int, total: int) -> int:
    """The smallest integer that is at least `top_p * total`, and at least 1."""
    return max(math.ceil(to_fraction(top_p) * total), 1)


@dataclass
class Filters:
    """A row's filters; temperature, top_p and min_p are integers on the grid of `float32.py`."""

    temperature: int
    top_k: int
    top_p: int
    min_p: int


def sorted_ids(row: list[Number]) -> list[int]:
    """The allowed ids, the largest logit first, ties by the lowest id."""
    return sorted((v for v in range(len(row)) if row[v] != MINUS_INFINITY), key=lambda v: (-row[v], v))


def survivors(row: list[Number], filters: Filters) -> list[int]:
    """The ids that the filters keep, best first."""
    ids = sorted_ids(row)
    if not ids or filters.temperature == 0:
        return ids[:1]
    # Computed once for each different logit, since many ids tie.
    x = {logit: below_max(logit, row[ids[0]], filters.temperature) for logit in {row[v] for v in ids}}
    threshold = least(filters.min_p)
    ids = [v for v in ids if x[row[v]] >= threshold]
    if filters.top_k > 0:
        ids = ids[: filters.top_k]
    if filters.top_p == ONE:
        return ids
    bits = mass_bits(len(row))
    masses = {logit: mass(of, bits) for logit, of in x.items()}
    goal = share(filters.top_p, sum(masses[row[v]] for v in ids))
    reached = 0
    for kept, v in enumerate(ids, start=1):
        reached += masses[row[v]]
        if reached >= goal:
            return ids[:kept]
    raise AssertionError("all of the masses are less than a share of them")
