"""Finds and loads the shared library, declares its functions, and turns its statuses into exceptions."""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from . import _sys


class Error(Exception):
    """What this library refuses or reports. `str()` says what was wanted, what came and what to do."""

    status: int = 0
    """The number of the status in lmhead.h."""
    name: str = ""
    """Its name, like "STEP_MISMATCH"."""

    def __init__(self, text: str, ranks: tuple[int, ...] = ()):
        super().__init__(text)
        self.text = text
        self.ranks = list(ranks)
        """Global ranks that the error names: who did not come, who disagrees, who is gone."""


class ConfigError(Error):
    """A setting, or a combination of settings."""


class ShapeError(Error):
    """A length, a shape, a count or a workspace."""


class DtypeError(Error):
    """An element type that does not fit."""


class IndexError(Error, builtins.IndexError):
    """A row index outside of the rows given."""


class RequestError(Error):
    """A request for what this head does not have."""


class FileError(Error):
    """A file that cannot be read."""


class TensorError(Error):
    """A file's tensor that is missing, or not what a head needs."""


class StepMismatchError(Error):
    """The ranks did not make the same call. All of them get this; `ranks` says who disagrees."""


class TimeoutError(Error, builtins.TimeoutError):
    """A rank did not come before the deadline; `ranks` says which."""


class RankLostError(Error):
    """A rank is gone for good: new exchange, new heads."""


class PoisonedError(Error):
    """The head had a fault: call `Head.rebuild` on every rank."""


class ExchangeError(Error):
    """The transport failed."""


class UnsupportedError(Error):
    """Not supported by this build or this machine."""


class DeviceError(Error):
    """A device or its driver failed."""


class ArgumentError(Error):
    """An argument that no call could take: a freed handle, a wrong thread, a forked process."""


class InternalError(Error):
    """A bug of this library."""


ERRORS = {}
for _name, _value in vars(_sys).items():
    if _name.startswith("LMHEAD_ERROR_"):
        _words = _name.removeprefix("LMHEAD_ERROR_")
        _class = globals()[_words.title().replace("_", "") + "Error"]
        _class.status, _class.name = _value, _words
        ERRORS[_value] = _class


def refusal(error: type[Error], what: str, wanted: Any, got: Any, fix: str) -> Error:
    """An error of this package, in the form of the library's errors."""
    return error(f"{what}: wanted {wanted}, got {got}; {fix}")


def _find() -> str:
    path = os.environ.get("LMHEAD_LIBRARY") or Path(__file__).with_name("liblmhead.so")
    if not Path(path).is_file():
        raise ImportError(
            f"lmhead: wanted the shared library, found none at {path}; install the wheel (scripts/wheel "
            "builds it), or set LMHEAD_LIBRARY to the liblmhead.so of `scripts/install-c PREFIX`"
        )
    return str(path)


def _load() -> tuple[ctypes.CDLL, str]:
    path = _find()
    # ctypes releases the GIL for each call of a CDLL.
    library = ctypes.CDLL(path)
    library.lmhead_abi.restype = ctypes.c_int32
    abi = library.lmhead_abi()
    if abi != _sys.LMHEAD_ABI:
        raise ImportError(
            f"lmhead: wanted a library of ABI {_sys.LMHEAD_ABI}, got ABI {abi} at {path}; use the wheel's own"
        )
    for name, (result, arguments) in _sys.FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise ImportError(
                f"lmhead: wanted a library with {name}, got an older one at {path}; build it anew"
            )
        function.restype, function.argtypes = result, arguments
    return library, path


lib, path = _load()


def last_error(status: int) -> Error:
    """The calling thread's latest error."""
    ranks = (ctypes.c_int64 * 64)()
    count = lib.lmhead_last_error_ranks(ranks, len(ranks))
    if count > len(ranks):
        ranks = (ctypes.c_int64 * count)()
        lib.lmhead_last_error_ranks(ranks, count)
    text = lib.lmhead_last_error().decode(errors="replace")
    return ERRORS.get(status, Error)(text, tuple(ranks[:count]))


# What a callback has raised in this thread's present call.
raised = threading.local()


def keep_raised(error: BaseException) -> None:
    """Keeps what a callback has raised for its call. An interrupt is never replaced."""
    kept = raised.__dict__.get("error")
    if kept is None or isinstance(kept, Exception):
        raised.error = error


def check(status: int | None) -> None:
    """Raises the error of a failed call. What one of its callbacks has raised is its cause.

    An interrupt that a callback has raised is raised here even if the call succeeded, so that it is not lost.
    `status` is None for a function that cannot fail.
    """
    cause = raised.__dict__.pop("error", None)
    if cause is not None and not isinstance(cause, Exception):
        raise cause
    if status:
        raise last_error(status) from cause


def collective(function: Callable[..., int | None], *arguments: Any) -> None:
    """A call in which this thread may be called back."""
    # This call may be made by a callback itself. What was raised before belongs to the outer call.
    outer = raised.__dict__.pop("error", None)
    try:
        check(function(*arguments))
    finally:
        if outer is not None:
            keep_raised(outer)


def json_of(call: Callable[..., int], *arguments: Any) -> Any:
    """What a function answers as JSON."""
    place = ctypes.c_void_p()
    check(call(*arguments, ctypes.byref(place)))
    try:
        return json.loads(ctypes.string_at(place))
    finally:
        lib.lmhead_string_free(place)


def field_types(struct: Any) -> dict[str, Any]:
    """The types of a struct's fields, by name."""
    return dict(struct._fields_)


class Handle:
    """A handle of the library, freed by `close`, at the end of a `with` block, or with this object.

    Handles may be closed in any order: a head keeps alive what it was made of.
    """

    _free: Callable[[Any], None]
    _kind = "handle"

    def __init__(self) -> None:
        self._handle: int | None = None

    @property
    def handle(self) -> int:
        """The number that lmhead.h's functions take."""
        if self._handle is None:
            raise refusal(
                ArgumentError, self._kind, "one that is open", "one that was closed", "make another"
            )
        return self._handle

    def _take(self) -> int | None:
        """The number, which another object must now free."""
        handle, self._handle = self._handle, None
        return handle

    def close(self) -> None:
        """Frees the handle. May be called again."""
        handle = self._take()
        if handle is not None:
            # This may release a transport, whose callbacks may raise.
            collective(type(self)._free, handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Two objects with one number would both free it.

    def __copy__(self) -> Any:
        raise self._refuse_copy("a copy")

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        raise self._refuse_copy("a deep copy")

    def __reduce__(self) -> Any:
        raise self._refuse_copy("a pickle of it")

    def _refuse_copy(self, got: str) -> Error:
        fix = "share the object itself, or make another"
        return refusal(ArgumentError, self._kind, "one owner of what the library holds", got, fix)

    def __del__(self) -> None:
        # An object whose constructor failed has no handle.
        if getattr(self, "_handle", None) is not None:
            self.close()


def version() -> str:
    """The library's version, like "0.1.0"."""
    return lib.lmhead_version().decode()


def features() -> list[str]:
    """What this build has: "cpu", and "cuda" and "nccl" where it was built with them."""
    return lib.lmhead_features().decode().split()


def doctor() -> dict[str, Any]:
    """What this machine can run and why not: {"checks": [{"name", "status", "message", "suggestion"}]}."""
    return json_of(lib.lmhead_doctor)


LOG_LEVELS = {"error": 1, "warning": 2, "information": 3, "debug": 4}
_LogFunction = cast(Any, _sys.FUNCTIONS["lmhead_set_log"][1])[0]
# Another thread may be in a function that is replaced, so none is ever freed.
_logs: list[Any] = []


def set_log(log: Callable[[int, str], None] | None, level: str = "information") -> None:
    """Sets a function `log(level, text)` for messages that are no errors, for the whole process.

    It is called by any thread and must not call this library. Levels: 1 error, 2 warning, 3 information,
    4 debug. None ends it.
    """

    def tell(_user: Any, number: int, text: bytes) -> None:
        if log is not None:
            log(number, text.decode(errors="replace"))

    _logs.append(_LogFunction() if log is None else _LogFunction(tell))
    lib.lmhead_set_log(_logs[-1], None, LOG_LEVELS[level])
