"""vLLM's `LogitsProcessor` with `lmhead`'s matmul. Scale, softcap and sampling stay vLLM's."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from lmhead.torch import Snapshot
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from .head import FLOATS, Head, Members
from .settings import Settings

# A child of vLLM's logger, so that vLLM's logging prints it.
logger = init_logger("vllm.plugins.lmhead")


class Made(NamedTuple):
    """The `lmhead` head for one of vLLM's heads, and what it was made of."""

    snapshot: Snapshot
    """Snapshot of weight and bias: vLLM reloads weights in place, at the same address, through `.data`."""
    hidden_dtype: torch.dtype
    head: Head | None
    """None: vLLM's own head is used."""


@LogitsProcessor.register_oot
class LmheadLogitsProcessor(LogitsProcessor):
    """vLLM makes one of these where a model requests a `LogitsProcessor`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(get_current_vllm_config())
        # Some models use one of these for several heads.
        self._made: WeakKeyDictionary[VocabParallelEmbedding, Made] = WeakKeyDictionary()

    def share(self, lm_head: VocabParallelEmbedding, members: Members, is_tied: bool) -> Head:
        """Makes the head that `members` share. Collective. Unless the weights are also the embedding's
        (`is_tied`), this rank keeps only its part of them.

        Raises ValueError if `lmhead` cannot take the head: another rank might not notice.
        """
        if refusal := self._refusal(lm_head, lm_head.weight.dtype):
            raise ValueError(f"lmhead: wanted a head that ranks can share; {refusal}")
        vocab_size = len(lm_head.weight)
        ids = members.ids(vocab_size)
        rows = slice(ids.start, ids.stop)
        weight = lm_head.weight.detach()[rows]
        if not is_tied:
            weight = lm_head.weight.data = weight.clone()
            # The weights that vLLM would multiply: on some processors a copy in another layout.
            lm_head.cpu_linear = None
        bias = None if lm_head.bias is None else lm_head.bias[rows]
        head = self._new(weight, bias, lm_head.weight.dtype, vocab_size, members)
        self._made[lm_head] = Made(Snapshot(lm_head.weight, lm_head.bias), lm_head.weight.dtype, head)
        return head

    def _apply_head(
        self,
        lm_head: VocabParallelEmbedding,
        hidden_states: torch.Tensor,
        embedding_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits `[rows, ids of this rank's weights]` of hidden states `[rows, hidden]`, in the type of
        vLLM's own head.""" 
        # A head that vLLM has quantised may have no `weight`.
        weight, dtype = getattr(lm_head, "weight", None), hidden_states.dtype
        made = self._made.get(lm_head)
        if made is None or made.hidden_dtype != dtype or not made.snapshot.is_of(weight, embedding_bias):
            if self.settings.is_shared:
                raise self._refusal_of_shared(made)
            # Free the previous head, with its int8 copy, first.
            made = None
            self._made.pop(lm_head, None)
            made = self._made[lm_head] = Made(
                Snapshot(weight, embedding_bias), dtype, self._local(lm_head, embedding_bias, dtype)
            )
        head = made.head
        if head is None:
            return super()._apply_head(lm_head, hidden_states, embedding_bias)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        return head.logits(flat).reshape(*hidden_states.shape[:-1], -1)

    def _refusal_of_shared(self, made: Made | None) -> RuntimeError:
        if made is None:
            return RuntimeError(
                "lmhead: wanted a worker that makes the shared head and joins steps without rows, got "
                "another; pass worker_cls='lmhead_vllm.worker.Worker' (--worker-cls) with "
                "lmhead.lmhead_tp_size"
            )
        return RuntimeError(
            "lmhead: wanted the weights, bias and type that the shared head was made of, got changed ones; "
            "start the ranks anew with the new weights, or set lmhead.lmhead_tp_size to 1 to reload them"
        )

    def _local(
        self, lm_head: VocabParallelEmbedding, bias: torch.Tensor | None, hidden: torch.dtype
    ) -> Head | None:
        """A head of this rank alone, or None where vLLM's own is used."""
        if refusal := self._refusal(lm_head, hidden):
            logger.info("LM head by vLLM itself, not by lmhead: %s", refusal)
            return None
        return self._new(lm_head.weight, bias, hidden, len(lm_head.weight))

    def _new(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        hidden: torch.dtype,
        vocab_size: int,
        members: Members | None = None,
    ) -> Head:
        head = Head(weight, bias, hidden, self.head_dtype or hidden, self.settings, vocab_size, members)
        logger.info("LM head by lmhead: %s", head)
        return head

    def _refusal(self, lm_head: VocabParallelEmbedding, hidden: torch.dtype) -> str | None:
        """Why `lmhead` cannot take this head, or None."""
        method = lm_head.quant_method
        if not isinstance(method, (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)):
            return f"its weights are quantised by vLLM's {type(method).__name__}"
        weight = lm_head.weight
        if weight.device.type != "cpu":
            return f"its weights are on {weight.device}, and this plugin computes on CPUs"
        if weight.dtype not in FLOATS or hidden not in FLOATS:
            return f"its weights are {short(weight.dtype)} and its hidden states {short(hidden)}"
        return None


def short(dtype: torch.dtype) -> str:
    return FLOATS.get(dtype, str(dtype).removeprefix("torch."))
