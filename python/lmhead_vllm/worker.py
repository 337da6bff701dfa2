"""A vLLM worker for heads that data-parallel ranks share.

The ranks step together: in each iteration every rank runs either its requests or a dummy batch. The number of
its calls of the head differs: one for the tokens to sample, one more for each prompt whose logprobs are
requested, and none in a dummy batch. So a rank that has finished its part of an iteration continues to take
part without rows until no rank has any (`Head.finish`). Then all begin the next iteration.
"""

from __future__ import annotations

from vllm.distributed.parallel_state import get_dp_group
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from .head import Head, Members
from .logits_processor import LmheadLogitsProcessor
from .settings import Settings

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class Worker(PlatformWorker):
    """`worker_cls="lmhead_vllm.worker.Worker"`."""

    _head: Head | None = None

    def load_model(self, *args, **kwargs):
        result = super().load_model(*args, **kwargs)
        if Settings.of(self.vllm_config).is_shared:
            self._head = self._share()
        return result

    def _share(self) -> Head:
        if self.vllm_config.speculative_config is not None:
            raise ValueError(
                "lmhead: wanted one head in a model whose head ranks share, got speculative decoding, whose "
                "draft model has another; set lmhead.lmhead_tp_size to 1"
            )
        if self.vllm_config.lora_config is not None:
            raise ValueError(
                "lmhead: wanted a model whose head each step calls, got LoRA, whose layers go past it; set "
                "lmhead.lmhead_tp_size to 1"
            )
        modules = list(self.model_runner.get_model().modules())
        processors = [module for module in modules if isinstance(module, LmheadLogitsProcessor)]
        heads = [module for module in modules if isinstance(module, ParallelLMHead)]
        if len(processors) != 1 or len(heads) != 1:
            raise ValueError(
                f"lmhead: wanted a model with one LM head, got {len(heads)} with {len(processors)} logits "
                "processors; set lmhead.lmhead_tp_size to 1"
            )
        weight = heads[0].weight
        is_tied = sum(weight is other for module in modules for other in module._parameters.values()) > 1
        group = get_dp_group()
        members = Members(group.cpu_group, group.rank_in_group, group.world_size)
        return processors[0].share(heads[0], members, is_tied)

    def _finish(self) -> None:
        if self._head is not None:
            self._head.finish()

    def determine_available_memory(self, *args, **kwargs):
        result = super().determine_available_memory(*args, **kwargs)
        self._finish()
        return result

    def compile_or_warm_up_model(self, *args, **kwargs):
        result = super().compile_or_warm_up_model(*args, **kwargs)
        self._finish()
        return result

    def execute_model(self, scheduler_output):
        output = super().execute_model(scheduler_output)
        # None: the head was called, and `sample_tokens` follows, which may call it again for prompt logprobs.
        if output is not None and self._takes_part(scheduler_output):
            self._finish()
        return output

    def _takes_part(self, scheduler_output) -> bool:
        """Whether the call was this rank's whole part of an iteration. Without tokens it was not: a dummy
        batch follows, which vLLM runs within the call with an external launcher."""
        is_external = self.parallel_config.distributed_executor_backend == "external_launcher"
        return scheduler_output.total_num_scheduled_tokens > 0 or is_external

    def sample_tokens(self, grammar_output):
        output = super().sample_tokens(grammar_output)
        self._finish()
        return output

    def execute_dummy_batch(self) -> None:
        super().execute_dummy_batch()
        self._finish()
