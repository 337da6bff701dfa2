"""Bias, softcap, scale; the order of a row's logits, and its logsumexp."""

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

from case import Case
from raw_logits import Value

#: Digits of decimal arithmetic: float64 needs 17, tanh of 1e-20 loses 20 more.
DIGITS = Context(prec=80, Emin=-(10**9), Emax=10**9)


def to_decimal(value: Fraction) -> Decimal:
    with localcontext(DIGITS):
        return Decimal(value.numerator) / Decimal(value.denominator)


def to_f64(value: Value | Decimal) -> float:
    """Rounds once: Python rounds int / int and the conversion of a decimal correctly."""
    if isinstance(value, Fraction):
        return value.numerator / value.denominator
    return float(value)


def tanh(y: Decimal) -> Decimal:
    """(1 - e^-2y) / (1 + e^-2y); below 1e-20 the first two terms of the series are more precise."""
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
    """One output row. If it is not finite, `finals` is None and `logits` has the IEEE results."""

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
        # Order by the values before tanh and a positive scale, which are exact and have the same order.
        finals.append(Final(value * sign, final))
    return Row(logits, None if broken else finals)


def broken_epilogue(case: Case, value: float) -> float:
    """NaN stays; an infinity is capped like any value, and is then finite."""
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
