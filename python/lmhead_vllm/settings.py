"""The settings of the plugin: vLLM's `additional_config={"lmhead": {...}}`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

KEY = "lmhead"


@dataclass(frozen=True)
class Settings:
    quantization: str = "none"
    """How the weights are multiplied: "none" as they are, "w8a8" or "w8a16" as int8 made from them."""
    lmhead_tp_size: int = 1
    """How many data-parallel ranks share one head: 1, or all of them. They must step together."""
    timeout_ms: int = 300_000
    """Deadline of a step of a shared head. A rank without rows waits in it while another runs its model."""
    create_timeout_ms: int = 300_000
    """Deadline of making a shared head: ranks load their weights at different speeds."""

    @classmethod
    def of(cls, vllm_config: Any) -> Settings:
        """The settings in vLLM's configuration.

        Raises ValueError for an unknown key or an invalid value.
        """
        config = getattr(vllm_config, "additional_config", None)
        given = config.get(KEY, {}) if isinstance(config, dict) else {}
        if not isinstance(given, dict):
            raise refusal(KEY, "settings by their names", given, "write {'lmhead': {'quantization': 'w8a8'}}")
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise refusal(f"{KEY}.{key}", f"one of {', '.join(known)}", key, "remove or correct the key")
        settings = cls(**given)
        if settings.quantization not in ("none", "w8a8", "w8a16"):
            fix = "choose one of them"
            raise refusal(f"{KEY}.quantization", "none, w8a8 or w8a16", settings.quantization, fix)
        for key in known[1:]:
            value = getattr(settings, key)
            if type(value) is not int or value < 1:
                raise refusal(f"{KEY}.{key}", "an integer of at least 1", value, "correct the value")
        settings.check_group(vllm_config.parallel_config)
        return settings

    @property
    def is_shared(self) -> bool:
        return self.lmhead_tp_size > 1

    def check_group(self, parallel: Any) -> None:
        """Checks that the ranks of `parallel`, vLLM's ParallelConfig, can share a head as these settings say."""
        if not self.is_shared:
            return
        ranks = parallel.data_parallel_size
        if self.lmhead_tp_size != ranks:
            wanted = f"1, or the number of data-parallel ranks that step together, {ranks}"
            fix = "set it to one of them; vLLM lets the ranks of dense models step together with "
            fix += "distributed_executor_backend='external_launcher'"
            raise refusal(f"{KEY}.lmhead_tp_size", wanted, self.lmhead_tp_size, fix)
        for key in ("tensor_parallel_size", "pipeline_parallel_size"):
            if (value := getattr(parallel, key)) != 1:
                fix = f"set {key} to 1, or {KEY}.lmhead_tp_size to 1"
                raise refusal(key, f"1 with a head that {ranks} data-parallel ranks share", value, fix)


def refusal(what: str, wanted: str, got: Any, fix: str) -> ValueError:
    return ValueError(f"{what}: wanted {wanted}, got {got!r}; {fix}")
