"""A case: the inputs of a golden file."""

from dataclasses import dataclass

import numpy as np

from formats import Tensor


@dataclass
class Case:
    description: str
    hidden: Tensor
    weight: Tensor
    k: int
    weight_scale: Tensor | None = None
    bias: Tensor | None = None
    indices: Tensor | None = None
    quantization: str = "none"
    logit_scale: str = "1"
    softcap: str = "none"
    #: Vocabulary when the weight has more rows than that (checkpoint padding).
    vocab_size: int | None = None
    #: Every partial sum of the matmul is an integer below 2^24: raw logits are exact in f32 in any order.
    exact: bool = False
    seed: int = 0

    @property
    def vocab(self) -> int:
        return self.vocab_size or self.weight.shape[0]

    def selected_hidden(self) -> np.ndarray:
        hidden = self.hidden.f32()
        return hidden if self.indices is None else hidden[self.indices.data.astype(np.int64)]

    def inputs(self) -> dict[str, Tensor]:
        named = {
            "hidden_states": self.hidden,
            "lm_head.weight": self.weight,
            "lm_head.weight_scale": self.weight_scale,
            "lm_head.bias": self.bias,
            "logits_indices": self.indices,
        }
        return {name: t for name, t in named.items() if t is not None}

    def metadata(self) -> dict[str, str]:
        return {
            "description": self.description,
            "exact_raw": "true" if self.exact or self.quantization == "w8a8" else "false",
            "final_logit_softcapping": self.softcap,
            "hidden_size": str(self.weight.shape[1]),
            "k": str(self.k),
            "logit_scale": self.logit_scale,
            "quantization": self.quantization,
            "seed": str(self.seed),
            "vocab_size": str(self.vocab),
        }
