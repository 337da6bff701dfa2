"""The cases, a file per subject. A new one is a function with `@case`; a new file is imported here."""

from cases import floats, int8, non_finite, shapes, ties  # noqa: F401, what they define is registered
from cases.builders import CASES, Builder

__all__ = ["CASES", "Builder"]
