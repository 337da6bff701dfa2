"""How bytes get from one member of a group to another: in this process, by NCCL, or by the engine's transport."""

from __future__ import annotations

import ctypes
import itertools
import traceback
from collections.abc import Sequence
from ctypes import c_int64, c_void_p, memmove
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _sys
from ._library import Handle, check, field_types, keep_raised, lib

if TYPE_CHECKING:
    from ._setup import Backend

Call = _sys.lmhead_call
"""What a callback is called for. Valid only during the callback.

Fields: head, instance, epoch, operation, step, terms, left_us, stream.
"""


def operation_name(operation: int) -> str:
    """Like "all_gather of hidden rows"."""
    return lib.lmhead_operation_name(operation).decode()


class Place(NamedTuple):
    """Where a member was last seen."""

    head: int
    instance: int
    epoch: int
    operation: int
    step: int
    age: float
    """Seconds since then."""


class Fault(Exception):
    """How a callback of a `Transport` fails. Another exception counts as `Fault.broken` with its text."""

    def __init__(
        self, status: int, members: Sequence[int] = (), text: str = "", sent: dict[int, int] | None = None
    ):
        super().__init__(status, tuple(members), text)
        self.status, self.members, self.text, self.sent = status, members, text, sent or {}

    @classmethod
    def timeout(cls, *members: int) -> Fault:
        """The members did not come before the deadline; no members where it is not known which."""
        return cls(_sys.LMHEAD_FAULT_TIMEOUT, members)

    @classmethod
    def lost(cls, *members: int) -> Fault:
        """The members are gone for good."""
        return cls(_sys.LMHEAD_FAULT_LOST, members)

    @classmethod
    def broken(cls, text: str) -> Fault:
        """The transport failed."""
        return cls(_sys.LMHEAD_FAULT_BROKEN, (), text)

    @classmethod
    def aborted(cls, member: int, text: str) -> Fault:
        """The member gave up its step, with `text` as its notice (`notify_abort`)."""
        return cls(_sys.LMHEAD_FAULT_ABORTED, (member,), text)

    @classmethod
    def length(cls, sent: dict[int, int]) -> Fault:
        """Members sent `sent[member]` bytes, not the expected number. The common part was delivered."""
        return cls(_sys.LMHEAD_FAULT_LENGTH, tuple(sent), "", sent)

    @classmethod
    def other_call(cls, member: int, text: str) -> Fault:
        """The member is in another call, which `text` names."""
        return cls(_sys.LMHEAD_FAULT_OTHER_CALL, (member,), text)


class Transport:
    """The engine's own transport between the members of one group: subclass it.

    `all_to_all` is required. A method that is not overridden does not exist for the library: its docstring
    says what the library does without it. Every member makes the same calls in the same order within a
    channel (`call.head`, `call.instance`).

    Methods run on the thread that called the library, and must not call it for the same head. They return
    when all is done, or raise a `Fault` within `call.left_us` microseconds. Their arguments are valid only
    during the call. A method that never returns blocks its step: nothing can end it.
    """

    def all_to_all(self, call: Call, send: Sequence[memoryview], recv: Sequence[memoryview]) -> None:
        """Member m is sent send[m]; recv[m] comes from m, the caller itself included. Pieces may be empty.

        For a device transport the pieces are `_sys.lmhead_piece`: addresses in the device's memory.
        """
        raise NotImplementedError

    def all_gather(
        self, call: Call, members: Sequence[int], send: memoryview, recv: Sequence[memoryview]
    ) -> None:
        """The members listed send `send` to all of them; recv[i] comes from members[i].

        Without it, gathers use all_to_all.
        """
        raise NotImplementedError

    def notify_abort(self, call: Call, notice: str) -> None:
        """Tells the peers `notice`, and ends the caller's own wait. Never blocks; from any thread.

        Without it, peers learn only at the deadline that a step was given up.
        """
        raise NotImplementedError

    def note(self, call: Call) -> None:
        """Called with the caller's place before every operation and around every step. Never blocks.

        Called again every 0.1 s while the caller waits for a device, as a heartbeat, which `place` must see.
        """
        raise NotImplementedError

    def place(self, member: int) -> Place | None:
        """Where a member was last seen, to find the member at fault. Never blocks."""
        raise NotImplementedError

    def reset(self, call: Call) -> None:
        """Returns when all members have called it for the channel, with everything undelivered dropped.

        Without it, `Head.rebuild` is not supported.
        """
        raise NotImplementedError

    def pending(self, call: Call) -> None:
        """Raises what a wait in `call` would raise now. Never blocks."""
        raise NotImplementedError

    def leave(self, head: int, instance: int) -> None:
        """The caller's head of that channel was dropped."""
        raise NotImplementedError

    def release(self) -> None:
        """Called once, by any thread, when the transport is no longer needed."""


class Exchange(Handle):
    """A member's end of an exchange. Any thread may use it: each head has a channel of its own."""

    _kind = "exchange"
    _free = staticmethod(lib.lmhead_exchange_free)

    @staticmethod
    def local(n: int) -> list[Exchange]:
        """The ends of members 0..n, which are threads of this process."""
        places = (c_void_p * n)()
        check(lib.lmhead_exchange_local(n, places))
        return [Exchange._of(handle or 0) for handle in places]

    @classmethod
    def _of(cls, handle: int) -> Exchange:
        endpoint = cls.__new__(cls)
        endpoint._handle = handle
        return endpoint

    @classmethod
    def callbacks(
        cls,
        transport: Transport,
        n: int,
        me: int,
        *,
        device: Backend | None = None,
        control: Exchange | None = None,
    ) -> Exchange:
        """The end of member `me` of `n`, over a transport of the engine's.

        With `device`, pieces lie in that backend's memory, work goes on `call.stream`, and `control` is a
        host exchange of the same members.
        """
        return cls._of(_register(transport, n, me, device, control))

    @classmethod
    def nccl(cls, device: Backend, control: Exchange, communicator: int | None = None) -> Exchange:
        """NCCL between the GPUs of the members, for steps in device memory.

        `control` is a host exchange of the same members, for headers, notices and faults. `communicator`: the
        address of the engine's own ncclComm_t of these members in their order. It outlives the heads, which
        cannot be rebuilt. None: each head makes a communicator of its own.
        """
        place = c_void_p()
        arguments = (device.handle, communicator, control.handle, ctypes.byref(place))
        check(lib.lmhead_exchange_nccl(*arguments))
        return cls._of(place.value or 0)


# ---- the function table: one for all transports, which the user pointer identifies ----


class _Registered(NamedTuple):
    transport: Transport
    n: int
    on_device: bool


_transports: dict[int, _Registered] = {}
_keys = itertools.count(1)
_python = ctypes.pythonapi
_python.PyMemoryView_FromMemory.restype = ctypes.py_object
_python.PyMemoryView_FromMemory.argtypes = [c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ, _WRITE = 0x100, 0x200
_NOTHING = memoryview(bytearray())


def _piece(piece: Any, flags: int) -> memoryview:
    size = piece.bytes
    return _python.PyMemoryView_FromMemory(piece.data, size, flags) if size else _NOTHING


def _pieces(pieces: Any, n: int, flags: int, on_device: bool) -> list[Any]:
    return [pieces[i] if on_device else _piece(pieces[i], flags) for i in range(n)]


def _say(user: int, call: Any, error: BaseException) -> int:
    """Fills in the report of a call that fails."""
    if not isinstance(error, Fault):
        keep_raised(error)
        error = Fault.broken("".join(traceback.format_exception_only(error)).strip())
    n = _transports[user].n
    others = [member for member in error.members if not 0 <= member < n]
    if others:
        error = Fault.broken(f"a Fault of members {others}, where there are members 0 to {n - 1}")
    for member in error.members:
        call.peers[member].status = error.status
        call.peers[member].bytes = error.sent.get(member, 0)
    data = error.text.encode()[: _sys.LMHEAD_TEXT_BYTES - 1]
    memmove(call.text, data, len(data))
    return error.status


def _all_to_all(user, call, send, recv):
    try:
        transport, n, on_device = _transports[user]
        sent, came = _pieces(send, n, _READ, on_device), _pieces(recv, n, _WRITE, on_device)
        transport.all_to_all(call.contents, sent, came)
        return 0
    except BaseException as error:
        return _say(user, call.contents, error)


def _all_gather(user, call, members, n_members, send, recv):
    try:
        transport, _, on_device = _transports[user]
        listed = list((c_int64 * n_members).from_address(members))
        (sent,) = _pieces(send, 1, _READ, on_device)
        transport.all_gather(call.contents, listed, sent, _pieces(recv, n_members, _WRITE, on_device))
        return 0
    except BaseException as error:
        return _say(user, call.contents, error)


def _reset(user, call):
    try:
        _transports[user].transport.reset(call.contents)
        return 0
    except BaseException as error:
        return _say(user, call.contents, error)


def _pending(user, call):
    try:
        _transports[user].transport.pending(call.contents)
        return 0
    except BaseException as error:
        return _say(user, call.contents, error)


# The following functions cannot report failure. Their exception becomes the cause of the call's error, if the
# call fails; an interrupt is raised by the call in any case.


def _notify_abort(user, call, notice):
    try:
        _transports[user].transport.notify_abort(call.contents, notice.decode(errors="replace"))
    except BaseException as error:
        keep_raised(error)


def _note(user, call):
    try:
        _transports[user].transport.note(call.contents)
    except BaseException as error:
        keep_raised(error)


def _place(user, member, place):
    try:
        seen = _transports[user].transport.place(member)
        if seen is None:
            return 1
        names = ("head", "instance", "epoch", "operation", "step")
        for name in names:
            setattr(place.contents, name, getattr(seen, name))
        place.contents.age_us = max(0, int(seen.age * 1e6))
        return 0
    except BaseException as error:
        keep_raised(error)
        return 1


def _leave(user, head, instance):
    try:
        _transports[user].transport.leave(head, instance)
    except BaseException as error:
        keep_raised(error)


def _release(user):
    try:
        registered = _transports.pop(user, None)
        if registered is not None:
            registered.transport.release()
    except BaseException as error:
        keep_raised(error)


# ctypes does not keep functions alive. These live as long as the module.
_TYPES = field_types(_sys.lmhead_transport)
_FUNCTIONS = {
    name: _TYPES[name](globals()[f"_{name}"])
    for name in (
        "all_to_all",
        "all_gather",
        "notify_abort",
        "note",
        "place",
        "reset",
        "pending",
        "leave",
        "release",
    )
}


def _register(transport: Transport, n: int, me: int, device: Backend | None, control: Exchange | None) -> int:
    # A method that is not overridden is NULL in the table.
    functions = {
        name: function
        for name, function in _FUNCTIONS.items()
        if name == "release" or getattr(type(transport), name, None) is not getattr(Transport, name)
    }
    table = _sys.lmhead_transport(
        n=n,
        me=me,
        device=device.handle if device else None,
        control=control.handle if control else None,
        **functions,
    )
    key, place = next(_keys), c_void_p()
    _transports[key] = _Registered(transport, n, device is not None)
    try:
        check(lib.lmhead_exchange_callbacks(ctypes.byref(table), key, ctypes.byref(place)))
    except BaseException:
        _transports.pop(key, None)
        raise
    return place.value or 0
