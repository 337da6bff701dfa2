"""f32 arithmetic in exact integers: a finite f32 is the integer `value * 2^149`, its place on the grid.

Every operation forms its exact result first and rounds it once, half to even, as IEEE 754 asks. Subnormals
need no special case: the grid is as fine as the smallest of them. The sign of zero is not kept; no result of
`definition.py` depends on it. Minus infinity is Python's `-inf`, which compares with integers of any size.
"""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np

from formats import on_grid

#: Binary places behind the point.
PLACES = 149
ONE = 1 << PLACES
MINUS_INFINITY = -math.inf
#: The first magnitude beyond the largest finite f32.
OVERFLOW = 1 << (128 + PLACES)
#: A place on the grid, or minus infinity.
Number = int | float


def rounded(numerator: int, denominator: int) -> Number:
    """The f32 nearest to `numerator / denominator`, in units of the grid; ties go to the even significand."""
    if denominator < 0:
        numerator, denominator = -numerator, -denominator
    size = abs(numerator)
    dropped = max((size // denominator).bit_length() - 24, 0)
    step = denominator << dropped
    significand, rest = divmod(size, step)
    if 2 * rest > step or (2 * rest == step and significand % 2 == 1):
        significand += 1
    size = significand << dropped
    if size >= OVERFLOW:
        if numerator > 0:
            raise OverflowError("plus infinity comes up nowhere in the definition")
        return MINUS_INFINITY
    return size if numerator > 0 else -size


def fma(a: int, b: int, c: int) -> int:
    """`a * b + c`, rounded once."""
    return rounded(a * b + (c << PLACES), ONE)


def subtract(a: int, b: int) -> Number:
    return rounded(a - b, 1)


def divide(a: Number, b: int) -> Number:
    """For b > 0."""
    return a if a == MINUS_INFINITY else rounded(a << PLACES, b)


def from_bits(bits: int) -> int:
    return int(on_grid(np.array([bits], dtype=np.uint32).view(np.float32))[0])


def from_row(values: np.ndarray) -> list[Number]:
    """A row of f32, finite or minus infinity."""
    assert not np.isnan(values).any() and not (values == np.inf).any()
    grid = on_grid(values)
    return [MINUS_INFINITY if v == -np.inf else g for v, g in zip(values, grid, strict=True)]


def from_real(value: float | Fraction | Decimal) -> Number:
    """A real number, rounded once."""
    ratio = Fraction(value)
    return rounded(ratio.numerator << PLACES, ratio.denominator)


def to_fraction(a: int) -> Fraction:
    return Fraction(a, ONE)


def to_float(a: Number) -> float:
    """Exact: every f32 is a float64."""
    return float(a) if a == MINUS_INFINITY else a / ONE
