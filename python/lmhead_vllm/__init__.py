"""vLLM's LM head by `lmhead`: a plugin of vLLM's group `vllm.general_plugins`.

Settings stand in vLLM's `additional_config` under the key "lmhead"; `lmhead_vllm.settings.Settings` has them.
"""


def register() -> None:
    """Makes vLLM build its models with this package's `LogitsProcessor`. vLLM calls it in each process."""
    # The import registers the class, once in a process however often vLLM calls this.
    from . import logits_processor  # noqa: F401
