"""The LM head of PyTorch models, and torch.distributed as a transport.

    replace_lm_head(model)      a Hugging Face model generates with this library's head
    LmHead                      the module that it inserts
    ProcessGroupExchange        an exchange over the ranks of a process group, by gloo

Inference only: the head has no backward.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from typing import Any

import torch

from ._head import Head
from ._library import ArgumentError, ConfigError, DtypeError, UnsupportedError, refusal
from ._setup import Backend, Group, Quantization, Weights, shard_range
from ._step import Answer

__all__ = ["LmHead", "ProcessGroupExchange", "quantize_rows", "replace_lm_head"]  # noqa: F822


def __getattr__(name: str) -> Any:
    # The rest works with a build of torch without torch.distributed.
    if name == "ProcessGroupExchange":
        from ._process_group import ProcessGroupExchange

        return ProcessGroupExchange
    raise AttributeError(f"module {__name__} has no attribute {name}")


_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

# Heads and modules by number, because an operator takes only tensors and numbers.
_heads: weakref.WeakValueDictionary[int, Head | LmHead] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(head: Head | LmHead) -> int:
    """The number by which `torch.ops.lmhead.logits` knows a head, while it lives."""
    number = next(_numbers)
    _heads[number] = head
    return number


@torch.library.custom_op("lmhead::logits", mutates_args=("out", "row_status"))
def logits(head: int, hidden: torch.Tensor, out: torch.Tensor, row_status: torch.Tensor) -> None:
    """Writes the logits of `hidden` [rows, hidden] into `out` [rows, vocab], and u8 `row_status` [rows].

    `head` is the number from `register`. With several replicas the step discovers the row counts.
    """
    known = _heads.get(head)
    if known is None:
        fix = "keep the Head, or the module that has it, while the operator is called"
        raise refusal(ArgumentError, "head", "the number of a head that lives", head, fix)
    if isinstance(known, LmHead):
        # Here and not in `forward`, which torch.compile traces, so that every call compares the weights.
        known = known.head
    if out.dtype not in _DTYPES:
        raise refusal(DtypeError, "out", "f32, f16 or bf16", out.dtype, "pass one of those")
    known.logits(hidden, _DTYPES[out.dtype], out=Answer(row_status=row_status, logits=out))


@logits.register_fake
def _(head: int, hidden: torch.Tensor, out: torch.Tensor, row_status: torch.Tensor) -> None:
    # The caller allocates the outputs.
    torch._check(hidden.dim() == 2 and out.dim() == 2)
    torch._check(hidden.shape[0] == out.shape[0])


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values [rows, hidden] and f32 scales [rows], by the rule that the library loads checkpoints with.

    scale = absmax / 127, value = round_half_even(w / scale) in -127..127, both divisions in f32. A row whose
    scale would be below the least normal f32 has scale 1 and zeros; one with NaN or infinity has scale NaN.
    """
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)
    # A few rows at a time, because the f32 copy of a whole head is large.
    for rows in range(0, weight.shape[0], 1024):
        part = weight[rows : rows + 1024].to(device="cpu", dtype=torch.float32)
        largest = part.abs().amax(dim=1)
        # Not by a scalar: torch may multiply by its inverse instead.
        scale = largest / torch.full_like(largest, 127.0)
        small = scale < torch.finfo(torch.float32).tiny
        finite = torch.isfinite(part).all(dim=1)
        scale = torch.where(small, 1.0, scale)
        quantized = torch.round(part / scale[:, None]).clamp(-127, 127)
        quantized = torch.where((small | ~finite)[:, None], 0.0, quantized)
        values[rows : rows + 1024] = quantized.to(torch.int8)
        scales[rows : rows + 1024] = torch.where(finite, scale, torch.nan)
    return values, scales


class Snapshot:
    """The tensors that a head was made of, kept alive, to detect whether they have changed.

    It compares address, type, shape and strides, the version that PyTorch increments for in-place writes, and
    on CPUs all elements of a bias and some of a weight, because PyTorch does not count writes through `.data`
    or by another library into the same memory. Such a write to a few elements of a weight may go unnoticed;
    on a GPU all such writes do.
    """

    _ELEMENTS = 64

    def __init__(self, *tensors: torch.Tensor | None):
        # While the memory is kept alive, no other tensor can have its address.
        self._kept = [None if tensor is None else tensor.detach() for tensor in tensors]
        self._marks = [self._marks_of(tensor) for tensor in tensors]
        views = [self._some_of(tensor) for tensor in self._kept if tensor is not None]
        self._some = [(view, view.clone()) for view in views if view is not None]

    def is_of(self, *tensors: torch.Tensor | None) -> bool:
        """Whether these are the tensors of the snapshot, unchanged."""
        if [self._marks_of(tensor) for tensor in tensors] != self._marks:
            return False
        # Same address: the views made before are views of these tensors, too.
        return all(torch.equal(view, copied) for view, copied in self._some)

    @staticmethod
    def _marks_of(tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        # Tensors made in inference mode have no version.
        version = None if tensor.is_inference() else tensor._version
        return tensor.data_ptr(), version, tensor.dtype, tensor.device, tensor.shape, tensor.stride()

    @classmethod
    def _some_of(cls, tensor: torch.Tensor) -> torch.Tensor | None:
        """A view of some elements."""
        # On a GPU the comparison would wait for the device.
        bits = {4: torch.int32, 2: torch.int16}.get(tensor.element_size())
        if tensor.device.type != "cpu" or tensor.is_neg() or bits is None:
            return None
        # As integers, so that a NaN equals itself.
        tensor = tensor.view(bits)
        if tensor.dim() < 2:
            return tensor
        # An odd stride does not stay in one column of an even width.
        if tensor.is_contiguous():
            return tensor.view(-1)[:: tensor.numel() // cls._ELEMENTS | 1]
        rows, columns = tensor.shape
        return tensor[:: rows // (cls._ELEMENTS // 4) | 1, :: columns // 4 | 1]


class LmHead(torch.nn.Module):
    """Replaces a model's output `Linear`: hidden [..., hidden] -> logits [..., vocab].

    `weight` [vocab, hidden] is used in place: without a quantization no copy is made of a contiguous one.
    `bias` is copied. When either is changed or replaced, the next call makes the head anew.

    Where a copy was made, writes that PyTorch does not count may go unnoticed: those through `.data`, or by
    another library into the same memory. On a CPU all elements of a bias are compared, and some of a weight.
    Call `reload` after such a write to a part of a weight; on a GPU, after any of them.

    `group` and `exchange` share the head: each member holds its shard. Then every call is a collective step,
    and a rank that has no rows calls `join` in its place. After a change of its weights a shared head refuses
    steps until all ranks have called `reload`.

    A copied or unpickled module has a head of its own. A shared head cannot be copied.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        quantization: Quantization | None = None,
        group: Group | None = None,
        exchange: Any = None,
        backend: Backend | None = None,
        **settings: Any,
    ):
        super().__init__()
        self.weight = weight if isinstance(weight, torch.nn.Parameter) else torch.nn.Parameter(weight, False)
        self.bias = (
            bias if bias is None or isinstance(bias, torch.nn.Parameter) else torch.nn.Parameter(bias, False)
        )
        self.quantization: Quantization = quantization or "none"
        self._group, self._exchange, self._backend, self._settings = group, exchange, backend, settings
        self.number = register(self)
        self.reload()

    @property
    def head(self) -> Head:
        """The head for the present weights."""
        if self._head is None:
            self.reload()
        elif not self._snapshot.is_of(self.weight, self.bias):
            if self._group is not None:
                fix = "call `reload` of the module on every rank"
                raise refusal(
                    ConfigError, "weight", "that of which the shared head was made", "a changed one", fix
                )
            self.reload()
        return self._head

    def reload(self) -> None:
        """Makes the head anew from the present weights. Collective on all ranks if the head is shared."""
        # Free the old head's int8 copy first.
        self._head, self._snapshot = None, None
        weight, bias, group = self.weight, self.bias, self._group
        if weight.dtype not in _DTYPES:
            raise refusal(ConfigError, "weight", "f32, f16 or bf16", weight.dtype, "convert the model")
        self.out_features, self.in_features = weight.shape
        snapshot = Snapshot(weight, bias)
        members, member = (1, 0) if group is None else (len(group.ranks), list(group.ranks).index(group.rank))
        ids = shard_range(self.out_features, members, member)
        shard = weight.detach()[ids.start : ids.stop].contiguous()
        shard_bias = None if bias is None else bias.detach()[ids.start : ids.stop].float().contiguous()
        scales = None
        if self.quantization != "none":
            shard, scales = quantize_rows(shard)
        with Weights.wrap(
            shard,
            vocab_size=self.out_features,
            first=ids.start,
            scales=scales,
            bias=shard_bias,
            quantization=self.quantization if scales is not None else None,
        ) as weights:
            self._head = Head(
                weights,
                group=group,
                exchange=self._exchange,
                backend=self._backend,
                hidden_dtype=_DTYPES[weight.dtype],
                **self._settings,
            )
        self._snapshot = snapshot

    def __getstate__(self) -> dict[str, Any]:
        if self._group is not None:
            fix = "copy the model before its head is shared, or save its state_dict"
            raise refusal(ConfigError, "module", "a head of this rank alone", "a copy of a shared one", fix)
        return {key: value for key, value in self.__dict__.items() if key not in ("_head", "_snapshot")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The first call makes the head: while a file is being loaded, tensors may have no elements yet.
        self._head, self._snapshot = None, None
        self.number = register(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> LmHead:
        state = self.__getstate__()
        # Both modules use the same backend, which has no weights.
        memo[id(self._backend)] = self._backend
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(state, memo))
        return made

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and hidden.requires_grad:
            fix = "call the model under torch.no_grad() or torch.inference_mode()"
            raise refusal(UnsupportedError, "hidden", "no gradient", "one that requires it", fix)
        rows = hidden.reshape(-1, self.in_features).contiguous()
        out = hidden.new_empty(rows.shape[0], self.out_features)
        row_status = torch.empty(rows.shape[0], dtype=torch.uint8, device=hidden.device)
        torch.ops.lmhead.logits(self.number, rows, out, row_status)
        return out.reshape(*hidden.shape[:-1], self.out_features)

    def join(self) -> None:
        """Takes part in the others' step, without rows."""
        self(self.weight.detach().new_empty(0, self.in_features))

    def extra_repr(self) -> str:
        shared = "" if self._group is None else f", one of {len(self._group.ranks)} members"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {self.quantization}{shared}"
        )


def replace_lm_head(model: Any, quantization: Quantization | None = None, **more: Any) -> LmHead:
    """Replaces the head of a Hugging Face model by this library's, and returns it.

    `quantization`: "w8a8" or "w8a16" quantise the head to int8. `more` goes to `LmHead`: `group` and
    `exchange` share it. Scales and caps that the model applies after its head stay the model's.
    """
    before = model.get_output_embeddings()
    if not isinstance(getattr(before, "weight", None), torch.Tensor):
        got = f"{type(model).__name__} with {type(before).__name__}"
        raise refusal(ConfigError, "model", "one with an output embedding", got, "pass a model for causal LM")
    head = LmHead(before.weight, getattr(before, "bias", None), quantization=quantization, **more)
    model.set_output_embeddings(head)
    return head
