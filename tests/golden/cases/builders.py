"""Cases by name, and what several of them are built from."""

from collections.abc import Callable

from case import Case
from draws import Random
from formats import Tensor, tensor

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


def whole_numbers(
    r: Random, dtype: str, rows: int, hidden: int, vocab: int, k: int, most: int, **more: object
) -> Case:
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
