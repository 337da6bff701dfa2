"""The request, inputs and answer of a step."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64
from dataclasses import dataclass, replace
from typing import Any

from . import _sys
from ._library import ArgumentError, check, lib, refusal
from ._memory import (
    BYTES,
    FLOATS,
    I32S,
    I64S,
    U8,
    U32,
    U64S,
    Tensor,
    dtype_number,
    host_array,
    input_array,
    one_place,
    vector,
    view,
)
from ._setup import Array
from ._sys import LMHEAD_F32, LMHEAD_I32, LMHEAD_I64


@dataclass(frozen=True)
class Request:
    """What a step computes for its rows: part of the contract, the same on every rank."""

    kind: int
    k: int = 0
    n_targets: int = 0
    dtype: int = 0
    flags: int = 0

    @classmethod
    def logits(cls, dtype: str = "f32") -> Request:
        """`logits` [rows, vocab] of that type: f32, f16 or bf16."""
        return cls(_sys.LMHEAD_LOGITS, dtype=dtype_number(dtype))

    @classmethod
    def argmax(cls) -> Request:
        """`ids` [rows]. Ties go to the lowest id."""
        return cls(_sys.LMHEAD_ARGMAX)

    @classmethod
    def topk(cls, k: int) -> Request:
        """`ids` and `values` [rows, k], best first, and `logsumexp` [rows] over the whole vocabulary."""
        return cls(_sys.LMHEAD_TOPK, k=k)

    @classmethod
    def logprobs(cls, k: int = 0, n_targets: int = 1, processed: bool = False) -> Request:
        """`logprobs` and `ranks` [rows, n_targets] of given targets; `top_ids`, `top_logprobs` [rows, k].

        `processed`: of the adjusted logits, else of the raw ones.
        """
        return cls(_sys.LMHEAD_LOGPROBS, k, n_targets, flags=_sys.LMHEAD_PROCESSED if processed else 0)

    @classmethod
    def sample(
        cls,
        logprobs: int | None = None,
        processed: bool = False,
        unfiltered: bool = False,
        device_filters: bool = False,
    ) -> Request:
        """`ids` [rows]. With `logprobs` = k also their `logprobs` and `ranks` [rows], and the k best.

        `unfiltered`: in a step on a device, without logprobs: no row of the group has top_k, top_p or min_p,
        and the host reads no parameter. A row that has one gets row_status 3.

        `device_filters`: in a step on a device: the host reads no parameter, and every step takes the rounds
        of all filters, so that a CUDA graph can replay it.
        """
        flags = _sys.LMHEAD_UNFILTERED if unfiltered else 0
        flags |= _sys.LMHEAD_DEVICE_FILTERS if device_filters else 0
        flags |= 0 if logprobs is None else _sys.LMHEAD_WITH_LOGPROBS
        flags |= _sys.LMHEAD_PROCESSED if processed else 0
        return cls(_sys.LMHEAD_SAMPLE, logprobs or 0, flags=flags)

    def asynchronous(self) -> Request:
        """The same in a step on a device that `run` only queues, as a CUDA graph's replay does.

        All inputs are there, and the host decides nothing. `async_status` tells faults, and the next step.
        """
        return replace(self, flags=self.flags | _sys.LMHEAD_ASYNCHRONOUS)

    @property
    def told(self) -> bool:
        """Whether logprobs are answered."""
        return self.kind == _sys.LMHEAD_LOGPROBS or bool(self.flags & _sys.LMHEAD_WITH_LOGPROBS)

    def answers(self, rows: int, vocab_size: int) -> list[tuple[str, int, tuple[int, ...]]]:
        """Name, type and shape of each array of the answer to `rows` rows."""
        each: list[tuple[str, int, tuple[int, ...]]] = [("row_status", U8, (rows,))]
        if self.kind == _sys.LMHEAD_LOGITS:
            each.append(("logits", self.dtype, (rows, vocab_size)))
        elif self.kind == _sys.LMHEAD_TOPK:
            each += [("ids", LMHEAD_I64, (rows, self.k)), ("values", LMHEAD_F32, (rows, self.k))]
            each.append(("logsumexp", LMHEAD_F32, (rows,)))
        elif self.kind in (_sys.LMHEAD_ARGMAX, _sys.LMHEAD_SAMPLE):
            each.append(("ids", LMHEAD_I64, (rows,)))
        if self.told:
            targets = (max(1, self.n_targets),) if self.kind == _sys.LMHEAD_LOGPROBS else ()
            each += [("logprobs", LMHEAD_F32, (rows, *targets)), ("ranks", LMHEAD_I64, (rows, *targets))]
            if self.k:
                each += [
                    ("top_ids", LMHEAD_I64, (rows, self.k)),
                    ("top_logprobs", LMHEAD_F32, (rows, self.k)),
                ]
        return each


@dataclass(frozen=True)
class RowCounts:
    """How the row counts of the group's replicas are known. A step takes a list in place of `exact`."""

    mode: int
    counts: tuple[int, ...] = ()
    capacity_: int = 0

    @classmethod
    def exact(cls, counts: Sequence[int]) -> RowCounts:
        """Every replica's count, in group order."""
        return cls(_sys.LMHEAD_ROWS_EXACT, tuple(counts))

    @classmethod
    def capacity(cls, rows: int) -> RowCounts:
        """A static (padded) shape, in which every rank has at most `rows` rows."""
        return cls(_sys.LMHEAD_ROWS_CAPACITY, capacity_=rows)

    @classmethod
    def discover(cls) -> RowCounts:
        """Learned at the beginning of the step, by one more message."""
        return cls(_sys.LMHEAD_ROWS_DISCOVER)


@dataclass
class Sampling:
    """How rows are sampled: a number for all rows, or a list or an array [rows] each.

    Arrays are in host memory, or, if the step's rows are on a device, all of them there. A row with an illegal
    value there gets row_status 3.

    `position` is the absolute position of the token sampled, so that no two share noise.
    """

    seed: Any = None
    """u64; None: 0."""
    position: Any = None
    """i64; None: 0."""
    temperature: Any = None
    """f32; None: 1. 0 is greedy."""
    top_k: Any = None
    """i32; None, 0: all."""
    top_p: Any = None
    """f32; None, 1: all."""
    min_p: Any = None
    """f32; None, 0: all."""

    def to_c(self, rows: int, hidden: Tensor | None = None) -> tuple[_sys.lmhead_sampling, list[Any], bool]:
        """The arrays, what keeps them, and whether they lie on the device of `hidden`."""
        made, keep = _sys.lmhead_sampling(), []
        placed = given = 0
        for name, types in _SAMPLING:
            what, value = f"sampling.{name}", getattr(self, name)
            here = input_array(what, value, types, (rows,), hidden)
            given += value is not None
            placed += here is not None
            address, owner = vector(what, value, types, rows) if here is None else here
            setattr(made, name, address)
            keep.append(owner)
        return made, keep, one_place("sampling", placed, given)

    def check(self, rows: int) -> None:
        """Raises what a step would: call it before a request joins a batch."""
        made, _keep, _ = self.to_c(rows)
        check(lib.lmhead_sampling_check(byref(made), rows))


_SAMPLING = (
    ("seed", U64S),
    ("position", I64S),
    ("temperature", FLOATS),
    ("top_k", I32S),
    ("top_p", FLOATS),
    ("min_p", FLOATS),
)


@dataclass(frozen=True)
class DeviceAdjustments:
    """Bounds of the group's adjustments in device memory: the same on every rank, in every mode.

    Messages have room for that many entries of every row; a row with more gets row_status 3.
    """

    allowed: bool = False
    """Some row has a mask."""
    logit_bias: int = 0
    """The most logit biases of a row; 0: no row has any."""
    counts: int = 0
    """The most counted ids of a row with penalties; 0: no row has penalties."""


@dataclass
class Adjustments:
    """Changes to the logits of this rank's rows before anything else uses them, over the whole vocabulary.

    In host memory, where lists are taken too; or, if the step's rows are on a device, all of them there, with
    the step's `device_adjustments`. Offsets are [rows + 1]: row i has the entries from offsets[i] to
    offsets[i + 1].
    """

    allowed: Any = None
    """i32 [rows, ceil(vocab / 32)]: bit id % 32 of word id / 32, xgrammar's and llguidance's layout."""
    logit_bias_offsets: Any = None
    logit_bias_ids: Any = None
    logit_bias_values: Any = None
    """f32, finite or minus infinity."""
    repetition: Any = None
    """f32 [rows] or one for all, as `frequency` and `presence`; neutral: 1, 0, 0."""
    frequency: Any = None
    presence: Any = None
    count_offsets: Any = None
    """i64: ids of the prompt and the output so far, each once in a row."""
    count_ids: Any = None
    counts: Any = None
    """i32: how often each id is in the output so far."""
    in_prompt: Any = None
    """u8 or bool: whether the prompt has the id."""

    def to_device(
        self, step: _sys.lmhead_step, rows: int, vocab_size: int, hidden: Tensor | None
    ) -> tuple[_sys.lmhead_adjustments, list[Any]] | None:
        """The arrays on the device of `hidden`, and what keeps them alive; None if there are none."""
        if hidden is None or hidden.on_host:
            return None
        made, keep = _sys.lmhead_adjustments(), []
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "allowed": ((LMHEAD_I32, U32), (rows, (vocab_size + 31) // 32)),
            "logit_bias_offsets": (I64S, (rows + 1,)),
            "count_offsets": (I64S, (rows + 1,)),
        }
        for name in ("repetition", "frequency", "presence"):
            shapes[name] = (FLOATS, (rows,))
        lists = {"n_logit_bias": "logit_bias_ids", "n_counts": "count_ids"}
        for total, ids in lists.items():
            value = getattr(self, ids)
            if value is not None and not isinstance(value, (list, tuple)):
                setattr(step, total, (*view(value).shape, 0)[0])
        n, m = (step.n_logit_bias,), (step.n_counts,)
        shapes |= {"logit_bias_ids": (I64S, n), "logit_bias_values": (FLOATS, n)}
        shapes |= {"count_ids": (I64S, m), "counts": (I32S, m), "in_prompt": (BYTES, m)}
        placed = given = 0
        for name, (types, shape) in shapes.items():
            value = getattr(self, name)
            here = input_array(f"adjustments.{name}", value, types, shape, hidden)
            given += value is not None
            if here is not None:
                placed += 1
                setattr(made, name, here[0])
                keep.append(here[1])
        return (made, keep) if one_place("adjustments", placed, given) else None

    def to_c(self, rows: int, vocab_size: int) -> tuple[_sys.lmhead_adjustments, list[Any]]:
        made, keep = _sys.lmhead_adjustments(), []
        if self.allowed is not None:
            allowed = view(self.allowed)
            host_array("adjustments.allowed", allowed, (LMHEAD_I32, U32), (rows, (vocab_size + 31) // 32))
            made.allowed = allowed.address if rows else None
            keep.append(allowed)
        for name in ("repetition", "frequency", "presence"):
            self._fill(made, keep, name, FLOATS, rows)
        entries = {
            "logit_bias_offsets": (("logit_bias_ids", I64S), ("logit_bias_values", FLOATS)),
            "count_offsets": (("count_ids", I64S), ("counts", I32S), ("in_prompt", BYTES)),
        }
        for offsets, lists in entries.items():
            if getattr(self, offsets) is None:
                for name, _ in lists:
                    if getattr(self, name) is not None:
                        fix = "say which entries are of which row"
                        raise refusal(ArgumentError, f"adjustments.{offsets}", f"[{rows + 1}]", "None", fix)
                continue
            self._fill(made, keep, offsets, I64S, rows + 1)
            n = c_int64.from_address(getattr(made, offsets) + 8 * rows).value
            for name, types in lists:
                self._fill(made, keep, name, types, max(0, n))
        return made, keep

    def _fill(self, made: Any, keep: list[Any], name: str, types: tuple[int, ...], n: int) -> None:
        address, owner = vector(f"adjustments.{name}", getattr(self, name), types, n)
        setattr(made, name, address)
        keep.append(owner)


# ---- the answer ----

Stats = _sys.lmhead_stats
"""Fields: rows_computed of the group, bytes_sent, bytes_received, weight_bytes, contract_ns, gather_ns,
matmul_ns, exchange_ns, rounds.
"""
Stats.__repr__ = lambda self: f"Stats({', '.join(f'{k}={getattr(self, k)}' for k, _ in self._fields_[1:])})"


@dataclass
class Answer:
    """The answer of a step: arrays of the same kind as the rows, None for what was not requested.

    For rows in PyTorch's tensors, or in others that DLPack's C functions can allocate, they are the producer's
    own; for NumPy's arrays NumPy's; else memoryviews. As `out` of a step: arrays for the answer, with at least
    as many rows.
    """

    row_status: Array = None
    """u8 [rows]: 0 good, 1 not finite, 2 nothing allowed, 3 bad input. Rows not good have id -1 and NaN."""
    logits: Array = None
    """[rows, vocab]."""
    ids: Array = None
    """i64: ARGMAX, SAMPLE [rows]; TOPK [rows, k]."""
    values: Array = None
    """f32 [rows, k], best first. Unused entries are minus infinity, with id -1."""
    logsumexp: Array = None
    """f32 [rows], over the whole vocabulary."""
    logprobs: Array = None
    """f32: LOGPROBS [rows, n_targets], SAMPLE [rows]."""
    ranks: Array = None
    """i64, the same shape: 1 + how many ids beat it."""
    top_ids: Array = None
    """i64 [rows, k]."""
    top_logprobs: Array = None
    """f32 [rows, k]."""
    stats: Stats | None = None


@dataclass(frozen=True)
class Needs:
    """What a step needs."""

    workspace_bytes: int
    first_row: int
    rows: int
    """The own rows that are answered: first_row to first_row + rows."""
    capturable: bool
    """Whether the step may be captured in a CUDA graph."""
