"""A plugin (group `vllm.general_plugins`) that makes vLLM use the LM head of `lmhead`.

Its settings are in vLLM's `additional_config` under the key "lmhead": see `lmhead_vllm.settings.Settings`.
"""


def register() -> None:
    """Makes vLLM build its models with this package's `LogitsProcessor`. vLLM calls it in each process."""
    # The import registers the class, once in a process, however often vLLM calls this.
    from . import logits_processor  # noqa: F401
