"""The LM head of a language model, sharded over the ranks of an inference engine.

    weights = lmhead.Weights.load("path/to/model")
    with lmhead.Head(weights) as head:
        answer = head.argmax(hidden)     # hidden [rows, hidden]: a torch tensor, a NumPy array, a buffer
        answer.ids                       # i64 [rows], of the same kind

`lmhead.torch` has the module for PyTorch models, and torch.distributed as a transport. Names and rules are
those of include/lmhead.h, which states what every function promises on threads, ownership and errors.
"""

from ._exchange import Call, Exchange, Fault, Place, Transport, operation_name
from ._head import Head
from ._library import (
    ArgumentError,
    ConfigError,
    DeviceError,
    DtypeError,
    Error,
    ExchangeError,
    FileError,
    IndexError,
    InternalError,
    PoisonedError,
    RankLostError,
    RequestError,
    ShapeError,
    StepMismatchError,
    TensorError,
    TimeoutError,
    UnsupportedError,
    doctor,
    features,
    set_log,
    version,
)
from ._memory import Tensor, view
from ._setup import Backend, Config, Group, Weights, WeightsInfo, group_ranks, shard_range
from ._step import Adjustments, Answer, DeviceAdjustments, Needs, Request, RowCounts, Sampling, Stats

__version__ = version()

__all__ = [
    "Adjustments",
    "DeviceAdjustments",
    "Answer",
    "ArgumentError",
    "Backend",
    "Call",
    "Config",
    "ConfigError",
    "DeviceError",
    "DtypeError",
    "Error",
    "Exchange",
    "ExchangeError",
    "Fault",
    "FileError",
    "Group",
    "Head",
    "IndexError",
    "InternalError",
    "Needs",
    "Place",
    "PoisonedError",
    "RankLostError",
    "Request",
    "RequestError",
    "RowCounts",
    "Sampling",
    "ShapeError",
    "Stats",
    "StepMismatchError",
    "Tensor",
    "TensorError",
    "TimeoutError",
    "Transport",
    "UnsupportedError",
    "Weights",
    "WeightsInfo",
    "doctor",
    "features",
    "group_ranks",
    "operation_name",
    "set_log",
    "shard_range",
    "version",
    "view",
]
