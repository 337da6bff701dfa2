"""The parts of a head: group, backend, weights and configuration."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
from collections.abc import Callable, Sequence
from ctypes import byref, c_int64, c_void_p
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from . import _sys
from ._library import ArgumentError, ConfigError, Handle, check, field_types, lib, refusal
from ._memory import FLOATS, NAMES, Tensor, array_of, dtype_number, view
from ._sys import LMHEAD_CUDA, LMHEAD_HOST

Array = Any
"""Anything that speaks DLPack or NumPy, or a buffer; see `view`."""
Quantization = Literal["none", "w8a8", "w8a16"]
QUANTIZATIONS = {
    None: _sys.LMHEAD_QUANT_AS_STORED,
    "none": _sys.LMHEAD_QUANT_NONE,
    "w8a8": _sys.LMHEAD_QUANT_W8A8,
    "w8a16": _sys.LMHEAD_QUANT_W8A16,
}
_VERIFY = {
    "always": _sys.LMHEAD_VERIFY_ALWAYS,
    "prepare": _sys.LMHEAD_VERIFY_PREPARE,
    "every": _sys.LMHEAD_VERIFY_EVERY,
}
_ORDERS = {"dp_pp_tp": _sys.LMHEAD_ORDER_DP_PP_TP, "pp_dp_tp": _sys.LMHEAD_ORDER_PP_DP_TP}


def choice(what: str, table: dict[Any, int], value: Any) -> int:
    try:
        return table[value]
    except (KeyError, TypeError):
        words = ", ".join(str(word) for word in table)
        raise refusal(ConfigError, what, words, repr(value), "use one of those") from None


# ---- who shares the head ----


def group_ranks(
    dp: int, tp: int, pp: int, rank: int, tp_size: int | Literal["auto"] = "auto", order: str = "dp_pp_tp"
) -> list[int]:
    """Global ranks of the head group that `rank` is in; none off the last pipeline stage.

    `tp_size` is how many ranks share one head: 1, or a multiple of `tp` that divides `dp * tp`; -1 is `tp`;
    "auto" is `tp` where that is above 1, else 1. `order`: "dp_pp_tp" (vLLM's) or "pp_dp_tp" (Megatron's).
    """
    n = c_int64(max(dp * tp, 0))
    ranks = (c_int64 * n.value)()
    size = _sys.LMHEAD_TP_SIZE_AUTO if tp_size == "auto" else tp_size
    check(lib.lmhead_group_ranks(dp, tp, pp, choice("order", _ORDERS, order), rank, size, ranks, byref(n)))
    return list(ranks[: n.value])


def shard_range(vocab_size: int, members: int, member: int) -> range:
    """Vocabulary ids of a member's shard. May be empty."""
    first, count = c_int64(), c_int64()
    check(lib.lmhead_shard_range(vocab_size, members, member, byref(first), byref(count)))
    return range(first.value, first.value + count.value)


@dataclass(frozen=True)
class Group:
    """The ranks that share a head: member m is `ranks[m]`, and holds shard m."""

    ranks: Sequence[int]
    """Global ranks: replica by replica, each with its tensor-parallel ranks."""
    rank: int
    """The caller's global rank."""
    tp: int = 1
    """Tensor-parallel ranks of a replica."""
    tp_index: int = 0
    """The caller's tensor-parallel index in a group of one: which part of the rows split_rows_over_tp gives it."""

    @property
    def replicas(self) -> int:
        return max(1, len(self.ranks) // max(1, self.tp))


# ---- backend ----


class Backend(Handle):
    """Where the arithmetic runs. One for all ranks of a process that use the same device.

    `device`: "cpu", or "cuda" or "cuda:1" where the library was built with it. `threads` of the CPU's backend:
    0 is one for each CPU that the process may use. A process opens backends after it has forked, not before.
    """

    _kind = "backend"
    _free = staticmethod(lib.lmhead_backend_free)

    def __init__(self, device: str = "cpu", *, threads: int = 0):
        super().__init__()
        kind, _, number = device.partition(":")
        kinds = {"cpu": LMHEAD_HOST, "cuda": LMHEAD_CUDA}
        if kind not in kinds or (number and not number.isdecimal()):
            raise refusal(ConfigError, "device", "cpu, cuda or cuda:0", repr(device), "use one of those")
        self.device_type, self.device_id = kinds[kind], int(number or 0)
        config = _sys.lmhead_backend_config(
            device_type=self.device_type, device_id=self.device_id, threads=threads
        )
        place = c_void_p()
        check(lib.lmhead_backend_open(byref(config), byref(place)))
        self._handle = place.value

    @staticmethod
    def default() -> Backend:
        """The process's default CPU backend, with all threads."""
        pid = os.getpid()
        if pid not in _defaults:
            _defaults[pid] = Backend()
        return _defaults[pid]


# By process id, because a forked process must open its own.
_defaults: dict[int, Backend] = {}


# ---- weights ----

# Memory of weights used in place, until the library releases it.
_borrowed: dict[int, Any] = {}
_keys = itertools.count(1)
_RELEASE = field_types(_sys.lmhead_weights_config)["release"](lambda key: _borrowed.pop(key, None) and None)


@dataclass(frozen=True)
class WeightsInfo:
    vocab_size: int
    hidden_size: int
    """Both sizes are those of the whole head."""
    ids: range
    """Vocabulary ids of this shard."""
    dtype: str
    quantization: str
    has_bias: bool
    bytes: int


class Weights(Handle):
    """One member's shard of the matrix: `Weights.load` or `Weights.wrap`."""

    _kind = "weights"
    _free = staticmethod(lib.lmhead_weights_free)

    @classmethod
    def _of(cls, handle: int | None) -> Weights:
        weights = cls.__new__(cls)
        weights._handle = handle
        return weights

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        tensor: str | None = None,
        vocab_size: int = 0,
        members: int = 0,
        member: int = 0,
        quantization: Quantization | None = None,
        bias: bool = True,
        version: int = 0,
        copy: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Weights:
        """Reads, or maps, the rows of one shard.

        `path` is a Hugging Face folder, in which the head is found, or a file with `tensor`. `members` and
        `member`: whose shard; the whole head without. `quantization`: float heads are quantised while they
        are read; None is as stored. `progress(done, total)` is told bytes, by any thread.
        """
        problem: list[BaseException] = []

        def tell(_user: Any, done: int, total: int) -> None:
            try:
                if progress is not None and not problem:
                    progress(done, total)
            except BaseException as error:
                problem.append(error)

        function = field_types(_sys.lmhead_load)["progress"]
        load = _sys.lmhead_load(
            tensor=tensor.encode() if tensor is not None else None,
            vocab_size=vocab_size,
            members=members,
            member=member,
            quantization=choice("quantization", QUANTIZATIONS, quantization),
            without_bias=not bias,
            version=version,
            copy=copy,
            progress=function(tell) if progress is not None else function(),
        )
        place = c_void_p()
        check(lib.lmhead_weights_load(os.fsencode(path), byref(load), byref(place)))
        weights = cls._of(place.value)
        if problem:
            weights.close()
            raise problem[0]
        return weights

    @classmethod
    def wrap(
        cls,
        matrix: Array,
        *,
        vocab_size: int | None = None,
        first: int = 0,
        scales: Array | None = None,
        bias: Array | None = None,
        quantization: Quantization | None = None,
        version: int = 0,
        copy: bool = False,
    ) -> Weights:
        """Weights that the engine has in memory, used in place: the library keeps `matrix` alive.

        `matrix` [shard, hidden]: f32, f16, bf16; i8 with `scales` f32 [shard] (or [1]) and `quantization`
        "w8a8" or "w8a16", e4m3 with "w8a16". Row 0 is vocabulary id `first`; `vocab_size` is the whole head's, and may be left
        out where the matrix is the whole head. `bias` f32 [shard]. Scales and bias lie in the matrix's
        memory. With `copy` a host matrix is copied now, and may have gaps between its rows.
        """
        tensor = view(matrix)
        c_matrix = tensor.matrix("matrix")
        rows = tensor.shape[0]
        parts: list[Tensor | None] = [tensor]
        addresses: list[int | None] = []
        for what, value, n in (("scales", scales, None), ("bias", bias, rows)):
            part = None if value is None else _floats_beside(what, value, tensor, n)
            addresses.append(part.address if part and part.shape[0] else None)
            parts.append(part)
        key = 0 if copy else next(_keys)
        config = _sys.lmhead_weights_config(
            vocab_size=rows if vocab_size is None else vocab_size,
            first=first,
            matrix=c_matrix,
            scales=addresses[0],
            n_scales=parts[1].shape[0] if parts[1] is not None else 0,
            bias=addresses[1],
            quantization=choice("quantization", QUANTIZATIONS, quantization),
            version=version,
            user=key or None,
        )
        if key:
            config.release = _RELEASE
            _borrowed[key] = parts
        place = c_void_p()
        try:
            check(lib.lmhead_weights_wrap(byref(config), byref(place)))
        except BaseException:
            _borrowed.pop(key, None)
            raise
        return cls._of(place.value)

    def about(self) -> WeightsInfo:
        info = _sys.lmhead_weights_info()
        check(lib.lmhead_weights_about(self.handle, byref(info)))
        words = {number: word for word, number in QUANTIZATIONS.items()}
        return WeightsInfo(
            info.vocab_size,
            info.hidden_size,
            range(info.first, info.first + info.count),
            NAMES[info.dtype],
            words[info.quantization] or "none",
            bool(info.has_bias),
            info.bytes,
        )


def _floats_beside(what: str, value: Array, matrix: Tensor, n: int | None) -> Tensor:
    if isinstance(value, (list, tuple)):
        made = (ctypes.c_float * len(value))(*value)
        value = made
    part = view(value)
    n = part.shape[0] if n is None and len(part.shape) == 1 else n or 0
    array_of(what, part, FLOATS, (n,))
    if (part.on_host, part.device_id) != (matrix.on_host, matrix.device_id):
        raise refusal(
            ArgumentError, what, f"memory of the matrix, {matrix.device}", part.device, "move it there"
        )
    return part


# ---- configuration ----


@dataclass(frozen=True)
class Config:
    """How a head answers. The same on every rank of a group."""

    name: str = ""
    """Tells the heads of one process apart; "" is lm_head."""
    vocab_size: int = 0
    """0: as the weights say; likewise `hidden_size`."""
    hidden_size: int = 0
    hidden_dtype: str | None = None
    """Type of hidden rows. None: that of the weights, bf16 for an int8 head."""
    logit_scale: float = 1.0
    """Multiplies, after the softcap. Granite's logits_scaling is its inverse."""
    softcap: float = 0.0
    """0: none. Gemma's final_logit_softcapping."""
    split_rows_over_tp: bool = False
    """Whether each tensor-parallel rank gets answers for only its part of its replica's rows."""
    verify: str = "always"
    """When exact steps check their contract: "always", "prepare" or "every"."""
    verify_every: int = 0
    timeout: float = 30.0
    """Deadline of a whole step in seconds."""
    create_timeout: float = 300.0
    """Deadline of creating or rebuilding a head in seconds."""
    logprobs_chunk_bytes: int = 0
    """0: 64 MiB."""

    @staticmethod
    def from_model(folder: str | PathLike[str], settings: dict[str, Any] | None = None) -> Config:
        """From a model folder's config.json, overridden by `settings`."""
        config = _sys.lmhead_config()
        text = None if settings is None else json.dumps(settings).encode()
        check(lib.lmhead_config_from_model(os.fsencode(folder), text, byref(config)))
        words = {number: word for word, number in _VERIFY.items()}
        dtype = config.hidden_dtype
        return Config(
            name=config.name.decode(),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            hidden_dtype=NAMES[dtype] if dtype else None,
            logit_scale=config.logit_scale,
            softcap=config.softcap,
            split_rows_over_tp=bool(config.split_rows_over_tp),
            verify=words[config.verify],
            verify_every=config.verify_every,
            timeout=config.timeout_ms / 1e3,
            create_timeout=config.create_timeout_ms / 1e3,
            logprobs_chunk_bytes=config.logprobs_chunk_bytes,
        )

    def to_c(self, about: WeightsInfo) -> _sys.lmhead_config:
        name = self.name.encode()
        if len(name) >= 32:
            raise refusal(ConfigError, "name", "at most 31 bytes", f"{len(name)}", "use a shorter name")
        return _sys.lmhead_config(
            name=name,
            vocab_size=self.vocab_size or about.vocab_size,
            hidden_size=self.hidden_size or about.hidden_size,
            hidden_dtype=dtype_number(self.hidden_dtype) if self.hidden_dtype else 0,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            split_rows_over_tp=self.split_rows_over_tp,
            verify=choice("verify", _VERIFY, self.verify),
            verify_every=self.verify_every,
            timeout_ms=_millis("timeout", self.timeout),
            create_timeout_ms=_millis("create_timeout", self.create_timeout),
            logprobs_chunk_bytes=self.logprobs_chunk_bytes,
        )


def _millis(what: str, seconds: float) -> int:
    millis = round(seconds * 1e3)
    if not 1 <= millis < 1 << 32:
        raise refusal(ConfigError, what, "seconds, from 0.001 to 4294967", f"{seconds}", "correct it")
    return millis
