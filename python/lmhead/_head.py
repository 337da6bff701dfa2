"""One member's head: created, planned, prepared, run."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p, pointer
from typing import Any

from . import _sys
from ._exchange import Exchange
from ._library import (
    ArgumentError,
    Handle,
    RequestError,
    ShapeError,
    check,
    collective,
    json_of,
    lib,
    refusal,
)
from ._memory import (
    BYTES,
    I64S,
    U8,
    Plain,
    Tensor,
    array_of,
    host_array,
    input_array,
    maker_like,
    stream_of,
    vector,
    view,
)
from ._setup import Array, Backend, Config, Group, Weights
from ._step import Adjustments, Answer, DeviceAdjustments, Needs, Request, RowCounts, Sampling, Stats
from ._sys import LMHEAD_HOST, LMHEAD_I32, LMHEAD_I64


class Head(Handle):
    """One member's part of the LM head. Creating it is collective: the ranks compare everything here.

    `weights` is the member's shard; `group` and `exchange` connect it to the others, and are left out for a
    head without a group; `backend` is by default the process's own CPU backend. `settings` are fields of
    `Config`.

    Any thread may use a head, one at a time; `abort` and `flight_recorder` may be called at any time.
    """

    _kind = "head"
    _free = staticmethod(lib.lmhead_free)

    def __init__(
        self,
        weights: Weights,
        config: Config | None = None,
        *,
        group: Group | None = None,
        exchange: Exchange | None = None,
        backend: Backend | None = None,
        **settings: Any,
    ):
        super().__init__()
        about = weights.about()
        self.config = dataclasses.replace(config or Config(), **settings)
        self.group = group
        c_config = self.config.to_c(about)
        self.vocab_size: int = c_config.vocab_size
        self.hidden_size: int = c_config.hidden_size
        self.replicas = 1 if group is None else group.replicas
        self._backend = backend or Backend.default()
        c_group = None
        if group is not None:
            ranks = (c_int64 * len(group.ranks))(*group.ranks)
            c_group = _sys.lmhead_group(
                ctypes.addressof(ranks), len(ranks), group.rank, group.tp, group.tp_index
            )
        place = c_void_p()
        try:
            collective(
                lib.lmhead_create,
                byref(c_config),
                None if c_group is None else byref(c_group),
                weights.handle,
                None if exchange is None else exchange.handle,
                self._backend.handle,
                byref(place),
            )
        finally:
            # An interrupt of a callback is raised although the head exists: this object must free it.
            self._handle = place.value

    # ---- one method for each request ----

    def logits(self, hidden: Array | None = None, dtype: str = "f32", **step: Any) -> Answer:
        """`run` of `Request.logits`."""
        return self.run(Request.logits(dtype), hidden, **step)

    def argmax(self, hidden: Array | None = None, **step: Any) -> Answer:
        """`run` of `Request.argmax`."""
        return self.run(_ARGMAX, hidden, **step)

    def topk(self, hidden: Array | None = None, k: int = 1, **step: Any) -> Answer:
        """`run` of `Request.topk`."""
        return self.run(Request.topk(k), hidden, **step)

    def logprobs(
        self,
        hidden: Array | None = None,
        targets: Array | None = None,
        k: int = 0,
        *,
        n_targets: int | None = None,
        processed: bool = False,
        **step: Any,
    ) -> Answer:
        """`run` of `Request.logprobs`: `targets` i64 [rows] or [rows, n_targets], -100 for none."""
        if n_targets is None:
            n_targets = 1
            if targets is not None and not isinstance(targets, (list, tuple)):
                shape = view(targets).shape
                n_targets = shape[1] if len(shape) == 2 else 1
            elif targets and isinstance(targets[0], (list, tuple)):
                n_targets = len(targets[0])
        return self.run(Request.logprobs(k, n_targets, processed), hidden, targets=targets, **step)

    def sample(
        self,
        hidden: Array | None = None,
        sampling: Sampling | None = None,
        *,
        logprobs: int | None = None,
        processed: bool = False,
        **step: Any,
    ) -> Answer:
        """`run` of `Request.sample`."""
        return self.run(Request.sample(logprobs, processed), hidden, sampling=sampling, **step)

    # ---- plan, prepare, run ----

    def _contract(
        self,
        request: Request,
        rows: int,
        counts: RowCounts | Sequence[int] | None,
        adjusted: bool,
        device_adjustments: DeviceAdjustments | None,
    ) -> tuple[_sys.lmhead_step, Any]:
        step = _sys.lmhead_step()
        step.request, step.rows, step.k = request.kind, rows, request.k
        step.n_targets, step.logits_dtype = request.n_targets, request.dtype
        step.flags = request.flags | (_sys.LMHEAD_ADJUSTED if adjusted else 0)
        if device_adjustments is not None:
            step.flags |= _sys.LMHEAD_DEVICE_MASKS if device_adjustments.allowed else 0
            step.max_logit_bias, step.max_counts = device_adjustments.logit_bias, device_adjustments.counts
        keep = None
        if counts is None:
            # A single replica knows all row counts.
            step.mode = _sys.LMHEAD_ROWS_EXACT if self.replicas == 1 else _sys.LMHEAD_ROWS_DISCOVER
            return step, keep
        if not isinstance(counts, RowCounts):
            counts = RowCounts.exact(counts)
        step.mode, step.capacity = counts.mode, counts.capacity_
        if counts.mode == _sys.LMHEAD_ROWS_EXACT:
            if len(counts.counts) != self.replicas:
                wanted, got = f"{self.replicas} numbers, one for each replica", f"{list(counts.counts)}"
                raise refusal(ShapeError, "counts", wanted, got, "pass them in group order")
            keep = (c_int64 * self.replicas)(*counts.counts)
            step.counts = ctypes.addressof(keep)
        return step, keep

    def plan(
        self,
        request: Request,
        rows: int,
        *,
        counts: RowCounts | Sequence[int] | None = None,
        adjusted: bool = False,
        device_adjustments: DeviceAdjustments | None = None,
    ) -> Needs:
        """What such a step needs, with `rows` own rows in the backend's memory. Not collective."""
        step, _keep = self._contract(request, rows, counts, adjusted, device_adjustments)
        step.hidden.device_type, step.hidden.device_id = self._backend.device_type, self._backend.device_id
        return self._needs(step)

    def _needs(self, step: _sys.lmhead_step) -> Needs:
        needs = _sys.lmhead_needs()
        check(lib.lmhead_plan(self.handle, byref(step), byref(needs)))
        return Needs(needs.workspace_bytes, needs.first_row, needs.rows, bool(needs.capturable))

    def prepare(
        self,
        *requests: Request,
        rows: int,
        adjusted: bool = False,
        on_device: bool | None = None,
        stream: int | None = None,
        device_adjustments: DeviceAdjustments | None = None,
    ) -> None:
        """Prepares steps of these requests with at most `rows` rows on each rank, so that they neither
        allocate nor load.

        It runs steps of zeros. Collective, with the same arguments on every rank.

        `on_device`: whether rows will lie in the device's memory; None: where the backend has one.
        `device_adjustments`: those of the coming steps; None: they have none in device memory.
        """
        steps = (_sys.lmhead_step * len(requests))()
        for i, request in enumerate(requests):
            counts = RowCounts.capacity(rows)
            steps[i], _ = self._contract(request, 0, counts, adjusted, device_adjustments)
            steps[i].stream = stream
            device = self._backend.device_type if on_device in (None, True) else LMHEAD_HOST
            steps[i].hidden.device_type, steps[i].hidden.device_id = device, self._backend.device_id
        collective(lib.lmhead_prepare, self.handle, steps, len(requests))

    def run(
        self,
        request: Request,
        hidden: Array | None = None,
        *,
        counts: RowCounts | Sequence[int] | None = None,
        indices: Array | None = None,
        targets: Array | None = None,
        sampling: Sampling | None = None,
        adjustments: Adjustments | None = None,
        adjusted: bool | None = None,
        device_adjustments: DeviceAdjustments | None = None,
        out: Answer | None = None,
        stats: bool = False,
        stream: int | None = None,
        workspace: Array | None = None,
    ) -> Answer:
        """One step. Collective: every rank of the group makes the same call with its own rows.

        hidden       [any, hidden], of the head's hidden dtype: own rows. None: this rank has none, and takes
                     part like any other. If the others' rows are on a device: an empty tensor there.
        counts       The replicas' row counts, or a `RowCounts`. None: discover, where there are several.
        indices      i64 or i32 [rows], in the memory of hidden: pick rows of it.
        targets      i64 [rows, n_targets], for `Request.logprobs`: in host memory or that of hidden.
        sampling     For `Request.sample`.
        adjusted     Whether some row of the group has adjustments in host memory. None: whether this rank's has.
        device_adjustments  Bounds of the group's adjustments in device memory.
        out          Arrays for the answer. Missing ones are made.
        stats        Whether the answer has `stats`.
        stream       For device rows. None: the producer's current stream.
        workspace    Memory of the backend, at least as large as `plan` says. None: the head's own.
        """
        tensor = None if hidden is None else view(hidden)
        keep: list[Any] = [tensor]
        index, index_type = None, 0
        if indices is not None:
            index, index_type, n, owner = _indices(indices, tensor)
            keep.append(owner)
        else:
            n = 0 if tensor is None else tensor.shape[0] if tensor.shape else 0
        if adjusted is None:
            adjusted = adjustments is not None and device_adjustments is None
        step, counted = self._contract(request, n, counts, adjusted, device_adjustments)
        if tensor is not None:
            step.hidden = tensor.matrix("hidden")
        step.indices, step.index_dtype = index, index_type
        keep += self._inputs(step, request, n, tensor, targets, sampling, adjustments)
        step.stream = stream_of(hidden, tensor) if stream is None and tensor is not None else stream
        if workspace is not None:
            memory = view(workspace)
            if memory.readonly or memory.on_host != (self._backend.device_type == LMHEAD_HOST):
                fix = "allocate it there"
                raise refusal(ArgumentError, "workspace", "memory of the backend", memory.device, fix)
            step.workspace, step.workspace_bytes = memory.address, _bytes(memory)
            keep.append(memory)

        answered = self._needs(step).rows if self.config.split_rows_over_tp else n
        answer, c_answer, owners = self._places(request, answered, hidden, tensor, out)
        if stats:
            answer.stats = Stats()
            c_answer.stats = pointer(answer.stats)
        collective(lib.lmhead_run, self.handle, byref(step), byref(c_answer))
        # Keeps alive what the structs point to until here.
        del counted, keep, owners
        return answer

    def _inputs(
        self,
        step: _sys.lmhead_step,
        request: Request,
        rows: int,
        hidden: Tensor | None,
        targets: Array | None,
        sampling: Sampling | None,
        adjustments: Adjustments | None,
    ) -> list[Any]:
        """Writes the rows' inputs into the step; returns the objects that keep them alive."""
        keep: list[Any] = []
        if targets is not None:
            if request.kind != _sys.LMHEAD_LOGPROBS:
                fix = "they are for logprobs"
                raise refusal(RequestError, "targets", "none with this request", "some", fix)
            each = max(1, request.n_targets)
            flat = isinstance(targets, (list, tuple)) or len(view(targets).shape) == 1
            shape = (rows,) if flat and each == 1 else (rows, each)
            here = input_array("targets", targets, I64S, shape, hidden)
            step.device_inputs |= 0 if here is None else _sys.LMHEAD_DEVICE_TARGETS
            step.targets, owner = _targets(targets, rows, each) if here is None else here
            keep.append(owner)
        if sampling is not None:
            made, owners, placed = sampling.to_c(rows, hidden)
            step.device_inputs |= _sys.LMHEAD_DEVICE_SAMPLING if placed else 0
            step.sampling = pointer(made)
            keep.append(owners)
        if adjustments is not None:
            device = adjustments.to_device(step, rows, self.vocab_size, hidden)
            step.device_inputs |= _sys.LMHEAD_DEVICE_ADJUSTMENTS if device else 0
            changes, owners = device or adjustments.to_c(rows, self.vocab_size)
            step.adjustments = pointer(changes)
            keep.append(owners)
        return keep

    def _places(
        self, request: Request, rows: int, hidden: Array | None, tensor: Tensor | None, out: Answer | None
    ) -> tuple[Answer, _sys.lmhead_answer, list[Any]]:
        """The arrays for the answer to `rows` rows: those of `out`, and new ones of the kind of `hidden`."""
        answer, c_answer, keep, maker = Answer(), _sys.lmhead_answer(), [], None
        device = (LMHEAD_HOST, 0) if tensor is None else (tensor.device_type, tensor.device_id)
        for name, number, shape in request.answers(rows, self.vocab_size):
            array = None if out is None else getattr(out, name)
            if array is None:
                if maker is None:
                    maker = Plain() if tensor is None else maker_like(hidden, tensor)
                array, address = maker.make(number, shape)
                place = Tensor(address, *device, number, shape, None, False, array)
            else:
                place = view(array)
                _check_place(name, place, tensor, number, shape)
                keep.append(place)
            setattr(answer, name, array)
            if name == "logits":
                c_answer.logits = place.matrix("out.logits")
            elif rows:
                setattr(c_answer, name, place.address)
        return answer, c_answer, keep

    # ---- the rest ----

    def async_status(self) -> None:
        """Raises the fault of finished device work. Never waits."""
        check(lib.lmhead_async_status(self.handle))

    def abort(self, reason: str) -> None:
        """Ends a step that waits, here and, as far as the transport can, on the others. From any thread."""
        collective(lib.lmhead_abort, self.handle, reason.encode())

    def set_weights_version(self, version: int) -> None:
        """Announces that the weights were replaced in place: the version is part of the next steps' contract."""
        check(lib.lmhead_set_weights_version(self.handle, version))

    def release_memory(self) -> None:
        """Releases the memory to which a large step has grown the head's own workspace."""
        check(lib.lmhead_release_memory(self.handle))

    def flight_recorder(self) -> dict[str, Any]:
        """The last steps of this rank, and where each member was last seen. From any thread."""
        return json_of(lib.lmhead_flight_recorder, self.handle)

    def rebuild(self) -> None:
        """Brings a poisoned group back. Collective, on every rank."""
        collective(lib.lmhead_rebuild, self.handle)


_ARGMAX = Request.argmax()


def _check_place(
    name: str, place: Tensor, hidden: Tensor | None, number: int, shape: tuple[int, ...]
) -> None:
    """Refuses memory that cannot take an answer."""
    what = f"out.{name}"
    if place.readonly:
        raise refusal(ArgumentError, what, "memory to write in", "read-only", "copy it")
    if hidden is None or hidden.on_host:
        fits, where = place.on_host, "host memory"
    else:
        # Pinned memory can be used by the device, too.
        beside = place.device_type == hidden.device_type and place.device_id == hidden.device_id
        fits = beside or place.device_type == _sys.LMHEAD_CUDA_PINNED
        where = f"memory of hidden, {hidden.device}"
    if not fits:
        raise refusal(ArgumentError, what, where, place.device, "allocate it there")
    # The library itself checks the type and shape of logits, and notifies the peers.
    if name != "logits":
        array_of(what, place, BYTES if number == U8 else (number,), shape)


def _bytes(tensor: Tensor) -> int:
    size = (tensor.number >> 8 & 255) // 8
    for n in tensor.shape:
        size *= n
    return size


def _indices(indices: Array, hidden: Tensor | None) -> tuple[int | None, int, int, Any]:
    """Address, type and number of the indices, and what keeps them alive."""
    if hidden is None:
        raise refusal(ArgumentError, "indices", "none without hidden rows", "some", "pass the rows too")
    if isinstance(indices, (list, tuple)) and hidden.on_host:
        address, owner = vector("indices", indices, I64S, len(indices))
        return address, LMHEAD_I64, len(indices), owner
    tensor = None if isinstance(indices, (list, tuple)) else view(indices)
    if tensor is None or (tensor.on_host, tensor.device_id) != (hidden.on_host, hidden.device_id):
        got = "a list" if tensor is None else tensor.device
        raise refusal(ArgumentError, "indices", f"memory of hidden, {hidden.device}", got, "move them")
    n = tensor.shape[0] if len(tensor.shape) == 1 else -1
    array_of("indices", tensor, (LMHEAD_I64, LMHEAD_I32), (n,))
    return tensor.address if n else None, tensor.number, n, tensor


def _targets(targets: Array, rows: int, each: int) -> tuple[int | None, Any]:
    if isinstance(targets, (list, tuple)):
        flat = [t for row in targets for t in (row if isinstance(row, (list, tuple)) else (row,))]
        return vector("targets", flat, I64S, rows * each)
    tensor = view(targets)
    shape = (rows,) if each == 1 and len(tensor.shape) == 1 else (rows, each)
    host_array("targets", tensor, I64S, shape)
    return tensor.address if rows else None, tensor
