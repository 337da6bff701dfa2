"""A head over a matrix of vLLM, whole or one rank's part, and its steps."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator

import lmhead
import torch
import torch.distributed as dist
from lmhead.torch import ProcessGroupExchange, quantize_rows

from .settings import Settings

FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Members:
    """The ranks that share a head: a group of torch.distributed on the CPU, and this rank in it."""

    group: dist.ProcessGroup
    me: int
    size: int

    def ids(self, vocab_size: int) -> range:
        """The ids of this rank's shard."""
        return lmhead.shard_range(vocab_size, self.size, self.me)


class Head:
    """A head of `weight` [ids, hidden] and `bias` [ids] or None, over all ids of the vocabulary without
    `members`. With `members`, creating a head is collective, and the ids are `Members.ids`.

    Weights are used in place, unless `settings` quantise them to int8.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        hidden_dtype: torch.dtype,
        logits_dtype: torch.dtype,
        settings: Settings,
        vocab_size: int,
        members: Members | None = None,
    ) -> None:
        self.members, self.quantization = members, settings.quantization
        self.weight_dtype, self.hidden_dtype = FLOATS[weight.dtype], FLOATS[hidden_dtype]
        self.dtype, self.logits_dtype = logits_dtype, FLOATS[logits_dtype]
        self.vocab_size, self.hidden_size = vocab_size, weight.shape[1]
        self.ids = members.ids(vocab_size) if members else range(vocab_size)
        matrix = weight.detach()
        values = {"vocab_size": vocab_size, "first": self.ids.start}
        if bias is not None:
            values["bias"] = bias.detach().float().contiguous()
        if self.quantization != "none":
            matrix, values["scales"] = quantize_rows(matrix)
            values["quantization"] = self.quantization
        with explained():
            self.head = lmhead.Head(
                lmhead.Weights.wrap(matrix, **values),
                group=lmhead.Group(range(members.size), members.me) if members else None,
                exchange=ProcessGroupExchange(members.group) if members else None,
                # As many threads as vLLM gives torch in this process.
                backend=lmhead.Backend(threads=torch.get_num_threads()),
                hidden_dtype=self.hidden_dtype,
                timeout=settings.timeout_ms / 1e3,
                create_timeout=settings.create_timeout_ms / 1e3,
            )

    def __str__(self) -> str:
        how = "in place" if self.quantization == "none" else f"as {self.quantization}"
        whose = "whole on this rank"
        if self.members:
            here = f"ids {self.ids.start}..{self.ids.stop} here"
            whose = f"shared by {self.members.size} data-parallel ranks, {here}"
        return (
            f"{self.vocab_size} x {self.hidden_size}, {whose}, weights {self.weight_dtype} {how}, "
            f"hidden states {self.hidden_dtype}, logits {self.logits_dtype}"
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[rows, vocab]` of `hidden` `[rows, hidden]`."""
        if self.members and len(hidden) == 0:
            # For the others a step in which no rank has rows is the end of the iteration.
            return hidden.new_empty(0, self.vocab_size, dtype=self.dtype)
        with explained():
            return self.head.logits(hidden.contiguous(), self.logits_dtype).logits

    def finish(self) -> None:
        """Takes part in the others' steps until no rank has a row."""
        if self.members is None:
            return
        with explained():
            while self.head.logits(dtype=self.logits_dtype, stats=True).stats.rows_computed:
                pass


@contextmanager
def explained() -> Iterator[None]:
    """Adds an explanation for vLLM to an error."""
    try:
        yield
    except lmhead.Error as error:
        if "fork" in str(error):
            error.add_note(
                "vLLM forked this process after it had made the LM head; with the environment variable "
                "VLLM_WORKER_MULTIPROC_METHOD=spawn it starts workers afresh"
            )
        raise
