"""The requests of a rank, and each row's inputs.

The inputs are a function of the row's bytes, so that its answer can be compared whatever the batch around it.
"""

from dataclasses import dataclass

import lmhead
import numpy as np
from lmhead import Adjustments, Request, Sampling


@dataclass
class Asked:
    name: str
    request: Request
    masked: bool = False

    def run(self, head, rows, counts=None):
        """The answer's arrays to `rows` [rows, hidden]."""
        seeds = [int(row.view(np.uint8).astype(np.uint64).sum()) for row in rows]
        inputs = {}
        if self.request.n_targets:
            each = range(self.request.n_targets)
            inputs["targets"] = [[(s * 7 + t * 31) % head.vocab_size for t in each] for s in seeds]
        if self.request.kind == SAMPLE.kind:
            inputs["sampling"] = Sampling(
                seed=seeds,
                position=[3 * s for s in seeds],
                temperature=[0.0 if s % 5 == 0 else 0.8 for s in seeds],
                top_k=[20 if s % 2 else 0 for s in seeds],
                top_p=[0.7 if s % 3 else 1.0 for s in seeds],
                min_p=[0.05 if s % 4 == 0 else 0.0 for s in seeds],
            )
        if self.masked:
            words = range((head.vocab_size + 31) // 32)
            mask = [[(s + 1) * (w + 3) * 0x9E3779B1 & 0x7FFFFFFF | 1 for w in words] for s in seeds]
            allowed = np.array(mask, dtype=np.int32).reshape(len(rows), len(words))
            inputs["adjustments"] = Adjustments(allowed=allowed)
        answer = head.run(self.request, rows, counts=counts, **inputs)
        return {name: array for name, array in vars(answer).items() if array is not None}


SAMPLE = Request.sample()
ARGMAX = Asked("argmax", Request.argmax())
TOP_7 = Asked("top 7", Request.topk(7))
REQUESTS = [
    Asked("logits in f32", Request.logits()),
    Asked("logits in bf16", Request.logits("bf16")),
    ARGMAX,
    Asked("argmax of what a mask allows", Request.argmax(), masked=True),
    TOP_7,
    Asked("logprobs", Request.logprobs(k=3, n_targets=2)),
    Asked("sample", SAMPLE),
    Asked("sample with logprobs", Request.sample(logprobs=4)),
]


def head(matrix, group=None, exchange=None, **settings):
    """One rank's head over its shard of `matrix`, shared by a group, or over all of it without a group."""
    vocab_size = len(matrix)
    ids = range(vocab_size)
    if group is not None:
        ids = lmhead.shard_range(vocab_size, len(group.ranks), group.ranks.index(group.rank))
    shard = matrix[ids.start : ids.stop]
    with (
        lmhead.Backend(threads=1) as backend,
        lmhead.Weights.wrap(shard, vocab_size=vocab_size, first=ids.start) as weights,
    ):
        return lmhead.Head(weights, group=group, exchange=exchange, backend=backend, **settings)
