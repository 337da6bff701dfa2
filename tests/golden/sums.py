"""Golden files of sums of exponentials: `make.py` writes them to `sums/`, beside its own.

Each file holds rows of logits, finite or minus infinity, with the three words of their sum and its logarithm
as `definition.py` computes them, and the logarithm of the true sum. A builder's docstring describes its file.
"""

from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np

from definition import EMPTY, LARGEST_SUM, exp_sum, finish
from draws import Random, fnv1a
from epilogue import DIGITS, logsumexp
from float32 import MINUS_INFINITY, from_row, to_fraction
from formats import Tensor, serialize

F32 = np.float32
Builder = Callable[[Random], np.ndarray]


def bell(r: Random) -> np.ndarray:
    """Realistic logits, flatter and sharper ones, and some far from zero."""
    scales = [(0, 1e-3), (0, 1), (0, 4), (0, 30), (0, 1000), (88, 3), (-104, 3), (1e3, 10), (-1e3, 10),
              (1e5, 10), (-1e5, 10), (1e6, 100), (-1e6, 100)]  # fmt: skip
    return np.array([r.bell(777) * scale + offset for offset, scale in scales])


def magnitudes(r: Random) -> np.ndarray:
    """Rows with magnitudes of one binade each, from 2^-100 to 2^20: of both signs, then only negative."""
    exponents = np.array([-100, -60, -40, -31, -27, -25, -24, -23, -20, -12, -6, *range(-3, 20)])
    bits = r.integers((2, len(exponents), 90), 0, 2**23 - 1) | ((exponents + 127)[:, None] << 23)
    signs = r.integers(bits.shape, 0, 1)
    signs[1] = 1
    return (bits | signs << 31).astype(np.uint32).view(F32).reshape(-1, 90)


def terms(r: Random) -> np.ndarray:
    """One logit a row, 2^-12 to 2^21 of either sign: its words are its term alone.

    The logarithm of a term just below 1 is a small difference of two float64, whose last place may show in
    f32. Such logits are in `magnitudes`, beside others.
    """
    bits = r.integers((1000, 1), (127 - 12) << 23, (127 + 21) << 23)
    return (bits | r.integers(bits.shape, 0, 1) << 31).astype(np.uint32).view(F32)


def last_places(_: Random) -> np.ndarray:
    """One logit a row, whose term changes if a coefficient is off by one ulp.

    The bits are from a search. One term in a million depends on the last place of C6: `terms` would miss it.
    """
    bits = [
        0xBFDA2773, 0xBEB0FCCC, 0xC1EB9CE3, 0x3F88BCBD, 0x40E93EBA, 0x416386AC, 0xBEABE26F, 0x414D5869,  # C6
        0x3EBE59E5, 0xC06F0365, 0xC219AB3F, 0x3F8346A2, 0xBFDA2773, 0xC2436019, 0x40438D67, 0x3EA75CA1,  # C5
        0xBFDD033C, 0x3EAA14E4, 0xBEAD71BA, 0x3E613864, 0x427534E8, 0x4047594D, 0x425134CC, 0x40746B72,  # C4
        0x3F05B5F5, 0xBF7CF8A8, 0x3ED3A05F, 0x427534E8,  # C3
        0xBEE9C11C, 0x3ED3D730, 0x3F87C227, 0xBFCAD03D,  # C2
    ]  # fmt: skip
    return np.array(bits, dtype=np.uint32).view(F32).reshape(-1, 1)


def equal(_: Random) -> np.ndarray:
    """3000 equal logits: words of more than 32 bits, whose carries the finish propagates."""
    return np.array([np.full(3000, value) for value in (0.0, -7.3125, 16.9, 1048576.0)])


def one_huge(r: Random) -> np.ndarray:
    """One logit so far above the others that their digits are dropped in part or altogether."""
    gaps = [5, 15, 16.2, 17, 20, 22, 22.5, 30, 38, 39, 44, 45, 61, 66, 67, 70, 90, 200, 1e4, 1e6]
    rows = r.bell(len(gaps), 130)
    for row, gap in enumerate(gaps):
        rows[row, [0, 64, 129, 77][row % 4]] = gap
    return rows


def above_one(r: Random) -> np.ndarray:
    """Long sums just above 1, whose logarithm depends on how the fraction is cut and rounded."""
    rows = -10 * np.abs(r.bell(8, 300)) - 6
    rows[:, 100] = 0
    return rows


def tiny(r: Random) -> np.ndarray:
    """Subnormal logits, zeros of both signs, and the smallest normal numbers: every term is 1."""
    bits = r.integers((5, 70), 0, 2**23 - 1)
    bits[1] &= 7
    bits[2] += 1 << 23
    bits[3] = 0
    bits[4, ::3] = 0
    signs = r.integers(bits.shape, 0, 1) << 31
    return (bits | signs).astype(np.uint32).view(F32)


def digit_borders(_: Random) -> np.ndarray:
    """11 floats around each logit at which the term changes to another digit, shift or n."""
    # A significand of 24 bits moves to the next digit where log2(e^x) passes 32 digit + 23.
    digits = [0, 1, -1, 2, -2, 5, -5, 70, -70, 900, -900, 11000, -11000, 47000, -47000, 94000, -94000]
    offsets = [0, 0.5, 8, 9, 31, 31.5, -0.5, -32, -41, -64]

    def around(digit: int, offset: float) -> np.ndarray:
        with localcontext(DIGITS):
            middle = F32(float((32 * digit + 23 + Decimal(offset)) * Decimal(2).ln()))
        # Neighbours by their bits; below +0 there are none (digit -1, offset 9).
        bits = np.maximum(middle.view(np.uint32) + np.arange(-5, 6, dtype=np.int64), 0)
        return bits.astype(np.uint32).view(F32)

    rows = [np.concatenate([around(digit, offset) for offset in offsets]) for digit in digits]
    # Only terms whose high part is zero, so that the top word is 0.
    alone = np.full(110, -np.inf)
    alone[40:51] = around(0, 0.5)
    return np.array([*rows, alone])


def beyond(r: Random) -> np.ndarray:
    """Around 2^20, beyond which the logsumexp is the largest logit, and 2^21, beyond which no term is."""

    def after(value: float) -> float:
        return float(np.nextafter(F32(value), F32(np.copysign(np.inf, value))))

    limits = [2.0**20, after(2.0**20), 1.5 * 2**20, 2.0**21, after(2.0**21), 1e7, 3e38]
    rows = []
    for limit in limits:
        for sign in (1, -1):
            # The largest logit is at the limit; others are close to it, far below, or masked.
            row = sign * limit - np.abs(r.bell(67)) * [0, 0.3, 5, 3e5][len(rows) % 4]
            row[len(rows) % 67] = sign * limit
            row[::9] = -np.inf
            row[33] = sign * limit
            rows.append(row)
    # Logits with terms among others without.
    for largest in (3.0, -1e4):
        row = largest - np.abs(r.bell(67))
        row[::4] = -limits[4]
        row[2::8] = -3e38
        row[1::8] = -limits[3]
        rows.append(row)
    # No term at all: logits beyond 2^21 on either side.
    rows.append(np.where(np.arange(67) % 2 == 0, 1e7, -1e7))
    return np.array(rows)


def masked(r: Random) -> np.ndarray:
    """Minus infinity among the logits: few, most, all but one, all."""
    rows = r.bell(9, 200) * 6
    for row, chance in enumerate((2, 10, 60)):
        rows[row, r.integers((200,), 0, chance - 1) == 0] = -np.inf
    rows[3, r.integers((200,), 0, 9) != 0] = -np.inf
    rows[4, :199] = -np.inf
    rows[5, 1:] = -np.inf
    rows[6] = -np.inf
    rows[7, 64:] = -np.inf
    rows[8, :128] = -np.inf
    return rows


def small_vocabulary(vocab: int) -> Builder:
    """A vocabulary about a multiple of 64, with all logits, with half of them, and with none."""

    def build(r: Random) -> np.ndarray:
        rows = r.bell(4, vocab) * 10
        rows[1, ::2] = -np.inf
        rows[2] = -np.inf
        rows[3] -= 500
        return rows

    return build


CASES: dict[str, Builder] = {
    "bell": bell,
    "magnitudes": magnitudes,
    "terms": terms,
    "last_places": last_places,
    "equal": equal,
    "one_huge": one_huge,
    "above_one": above_one,
    "tiny": tiny,
    "digit_borders": digit_borders,
    "beyond": beyond,
    "masked": masked,
} | {f"vocab_{vocab}": small_vocabulary(vocab) for vocab in (1, 2, 63, 64, 65, 129)}


def solve(name: str, build: Builder) -> bytes:
    logits = build(Random(fnv1a(f"sums {name}"))).astype(F32)
    n = len(logits)
    tops, words = np.zeros(n, dtype=np.int32), np.zeros((n, 3), dtype=np.int64)
    lse, near, truth = np.full(n, -np.inf), np.full((n, 2), -np.inf), np.full(n, -np.inf)
    for i, row in enumerate(map(from_row, logits)):
        total, largest = exp_sum(row), max(row)
        tops[i], words[i] = total.top, total.words
        lse[i], *near[i] = finish(total, largest)
        if largest == MINUS_INFINITY:
            assert total.top == EMPTY
            continue
        truth[i] = logsumexp([to_fraction(x) for x in row if x != MINUS_INFINITY])
        error = abs(lse[i] - truth[i])
        promised = abs(largest) > LARGEST_SUM or error <= 5e-7 * max(1, abs(truth[i]))
        assert promised, f"{name}, row {i}: off by {error}"
    named = {
        "logits": Tensor("F32", logits),
        "expected.top": Tensor("I32", tops),
        "expected.words": Tensor("I64", words),
        "expected.logsumexp": Tensor("F64", lse),
        "expected.logsumexp_near": Tensor("F64", near),
        "expected.truth": Tensor("F64", truth),
    }
    return serialize(named, {"vocab_size": str(logits.shape[1])})


def files() -> dict[str, bytes]:
    return {f"{name}.safetensors": solve(name, build) for name, build in CASES.items()}
