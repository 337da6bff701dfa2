"""vLLM with this plugin against vLLM without it, on its CPU build: the same tokens.

    check.py [SCENARIO...]

Each scenario runs in a process of its own, forked after vLLM is imported, which takes most of the time. The
model has random weights, generated here.
"""

import copy
import json
import multiprocessing
import os
import queue
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Runs the engine in the calling process; vLLM reads this variable while it is imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

if torch.cpu._is_amx_tile_supported():
    # A process must request AMX's registers once. Torch does so in its first matmul, which may come after
    # vLLM's kernels use them.
    torch.cpu._init_amx()

# One thread, as vLLM would use for such small models: threads do not survive a fork.
torch.set_num_threads(1)

import vllm.v1.worker.cpu_worker  # noqa: F401, each process would import it
from safetensors.torch import save_file
from vllm import LLM, SamplingParams

from lmhead_vllm.head import Head
from lmhead_vllm.settings import Settings

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 1000, 128, 2, 4, 2, 32, 256
PATIENCE = 300  # seconds for one scenario
PROMPTS = [[5, 9, 17], list(range(20, 60)), [3], [700, 2, 700]]
# Prompts of two data-parallel ranks: the second finishes while the first still has most of its work.
PROMPTS_OF_RANK = [[0, 1, 2], [3]]
TOKENS = {0: 32, 1: 32, 2: 24, 3: 8}
WITH_PROMPT_LOGPROBS = {1}
SHARED = {"lmhead_tp_size": len(PROMPTS_OF_RANK)}


def head_weight(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(VOCAB, HIDDEN, generator=generator) * 2 / HIDDEN**0.5).to(dtype)


def write_checkpoint(folder, dtype, head_seed):
    """A Qwen3 model with logits so far apart that tokens do not depend on rounding."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    generator = torch.Generator().manual_seed(0)

    def random(rows, columns, scale=1.0):
        return (torch.randn(rows, columns, generator=generator) * scale / columns**0.5).to(dtype)

    def ones(n):
        return torch.ones(n, dtype=dtype)

    tensors = {
        "model.embed_tokens.weight": random(VOCAB, HIDDEN, HIDDEN**0.5),
        "lm_head.weight": head_weight(dtype, head_seed),
        "model.norm.weight": ones(HIDDEN),
    }
    for layer in range(LAYERS):
        of_layer = {
            "self_attn.q_proj": random(HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": random(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": random(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": random(HIDDEN, HEADS * HEAD_DIM),
            "self_attn.q_norm": ones(HEAD_DIM),
            "self_attn.k_norm": ones(HEAD_DIM),
            "mlp.gate_proj": random(INNER, HIDDEN),
            "mlp.up_proj": random(INNER, HIDDEN),
            "mlp.down_proj": random(HIDDEN, INNER),
            "input_layernorm": ones(HIDDEN),
            "post_attention_layernorm": ones(HIDDEN),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in of_layer.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def head_rows(model):
    return len(model.lm_head.weight)


def generate(model, dtype, prompts=range(len(PROMPTS)), settings=None, reloads=(), **more):
    """{prompt: (tokens, logprobs of the best ids at each, logprobs of the prompt's tokens)}

    For each of `reloads` the LM head's weights are then reloaded, with the seed and in the format that it
    names, and everything is generated again; the last answer is returned. Prints how many rows of the head's
    weights this process has in the end."""
    config = {} if settings is None else {"lmhead": settings}
    llm = LLM(
        model=str(model / dtype),
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=64 << 20,
        disable_log_stats=True,
        additional_config=config,
        **{"distributed_executor_backend": "uni", **more},
    )
    asked = [
        SamplingParams(
            temperature=0,
            max_tokens=TOKENS[i],
            ignore_eos=True,
            detokenize=False,
            logprobs=2,
            prompt_logprobs=3 if i in WITH_PROMPT_LOGPROBS else None,
        )
        for i in prompts
    ]
    tokens = [{"prompt_token_ids": PROMPTS[i]} for i in prompts]
    outputs = llm.generate(tokens, asked, use_tqdm=False)
    for seed, is_checkpoint in reloads:
        weight = head_weight(getattr(torch, dtype), seed)
        if not is_checkpoint:
            # vLLM's own head has rows beyond the vocabulary, or this rank's part of them.
            rows = llm.apply_model(head_rows)[0]
            weight = torch.nn.functional.pad(weight, (0, 0, 0, rows - VOCAB))
        weights = [("lm_head.weight", weight)]
        llm.collective_rpc(
            "reload_weights",
            kwargs={"weights_iterator": weights, "is_checkpoint_format": is_checkpoint},
        )
        outputs = llm.generate(tokens, asked, use_tqdm=False)

    print(f"rows of the head: {llm.apply_model(head_rows)[0]}", flush=True)

    def plain(positions):
        return [
            {token: (entry.logprob, entry.rank) for token, entry in (position or {}).items()}
            for position in positions or []
        ]

    return {
        i: (
            list(output.outputs[0].token_ids),
            plain(output.outputs[0].logprobs),
            plain(output.prompt_logprobs),
        )
        for i, output in zip(prompts, outputs)
    }


class QuantisedByVllm:
    """A stand-in for vLLM's method of a quantised head."""

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.weight, bias)


def other_heads(model):
    """The largest difference from torch's logits for several heads: the model's, one with a bias, the same with
    its bias changed in place, one of vLLM's."""
    processor, own = model.logits_processor, model.lm_head
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(own.weight.shape[0], generator=torch.Generator().manual_seed(2))

    def copy_of_head(method):
        head = copy.copy(own)
        head._parameters = {**own._parameters, "weight": torch.nn.Parameter(own.weight.clone(), False)}
        head.quant_method = method
        return head

    def furthest(head, *more):
        wanted = torch.nn.functional.linear(hidden, own.weight, *more)[:, :VOCAB]
        return (processor(head, hidden, *more) - wanted).abs().max().item()

    with_bias = copy_of_head(own.quant_method)
    return [
        furthest(own),
        furthest(with_bias, bias),
        furthest(with_bias, bias.neg_()),
        furthest(copy_of_head(QuantisedByVllm())),
    ]


def heads_of_one_model(model):
    llm = LLM(
        model=str(model / "float32"),
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        distributed_executor_backend="uni",
    )
    return llm.apply_model(other_heads)[0]


def after_fork():
    """The error in a process that was forked after its parent had made a head."""
    weight, rows = torch.randn(64, 16), torch.randn(2, 16)
    head = Head(weight, None, torch.float32, torch.float32, Settings(), len(weight))
    assert torch.allclose(head.logits(rows), rows @ weight.T, atol=1e-4)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(head.logits(rows))
        except Exception as error:
            said = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


class Process:
    """A forked process with environment variables of its own; what it prints is kept."""

    def __init__(self, function, *arguments, variables=None, **more):
        context = multiprocessing.get_context("fork")
        self.answers, self.log = context.Queue(), tempfile.NamedTemporaryFile("r")
        self.began = time.monotonic()

        def run():
            log = os.open(self.log.name, os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            os.environ.update(variables or {})
            try:
                self.answers.put((function(*arguments, **more), None))
            except BaseException as error:
                traceback.print_exc()
                self.answers.put((None, f"{type(error).__name__}: {error}"))

        self.process = context.Process(target=run, daemon=True)
        self.process.start()

    def end(self):
        """(answer, error, what it printed)"""
        try:
            while True:
                try:
                    answer, error = self.answers.get(timeout=1)
                    break
                except queue.Empty:
                    assert self.process.is_alive(), f"the process ended: {Path(self.log.name).read_text()}"
                    late = time.monotonic() - self.began > PATIENCE
                    assert not late, f"no answer in {PATIENCE} s: {Path(self.log.name).read_text()}"
        finally:
            self.process.kill()
            self.process.join()
        return answer, error, Path(self.log.name).read_text()


def good(process):
    answer, error, log = process.end()
    assert error is None, f"{log}\n{error}"
    return answer, log


def head_lines(log):
    return [line[line.index("LM head by") :] for line in log.splitlines() if "LM head by" in line]


def compare(what, wanted, got, tolerance):
    """Equal tokens, and logprobs within `tolerance`."""
    furthest = 0.0
    for i, (tokens, logprobs, of_prompt) in got.items():
        assert tokens == wanted[i][0], (
            f"{what}, prompt {i}: wanted vLLM's tokens {wanted[i][0]}, got {tokens}"
        )
        for ours, theirs in zip(logprobs + of_prompt, wanted[i][1] + wanted[i][2], strict=True):
            # The last ids of the list may differ where two have the same logprob.
            common = ours.keys() & theirs.keys()
            assert len(common) >= len(theirs) - 1, f"{what}, prompt {i}: wanted {theirs}, got {ours}"
            furthest = max([furthest, *(abs(ours[id][0] - theirs[id][0]) for id in common)])
    assert furthest <= tolerance, f"{what}: wanted logprobs within {tolerance} of vLLM's, got {furthest}"
    tokens = sum(len(entry[0]) for entry in got.values())
    prompt = sum(len(entry[2]) for entry in got.values())
    print(
        f"  {what}: {tokens} tokens as vLLM's own head has them, their logprobs and {prompt} of a prompt "
        f"within {furthest:.1g}"
    )


class Check:
    def __init__(self, folder):
        self.folder, self.stock = folder, {}
        # Also in processes of their own: threads that torch started here would not survive a fork.
        for dtype in ("float32", "bfloat16"):
            good(Process(write_checkpoint, folder / dtype, getattr(torch, dtype), head_seed=3))
        (folder / "other").mkdir()
        good(Process(write_checkpoint, folder / "other" / "bfloat16", torch.bfloat16, head_seed=8))

    def of_vllm(self, dtype):
        """The answer of vLLM without the plugin."""
        if dtype not in self.stock:
            # An empty list of plugins loads none.
            answer, log = good(Process(generate, self.folder, dtype, variables={"VLLM_PLUGINS": ""}))
            assert not head_lines(log), log
            distinct = {token for tokens, _, _ in answer.values() for token in tokens}
            assert len(distinct) > 30, f"wanted a model that says something, got only the tokens {distinct}"
            self.stock[dtype] = answer
        return self.stock[dtype]

    def alone(self, dtype, name, tolerance):
        answer, log = good(Process(generate, self.folder, dtype))
        (line,) = head_lines(log)
        assert f"weights {name} in place, hidden states {name}, logits {name}" in line, line
        print(f"  {line}")
        compare(dtype, self.of_vllm(dtype), answer, tolerance)

    def f32(self):
        self.alone("float32", "f32", 1e-4)

    def bf16(self):
        # Both round logits to bf16: the last bit may differ, with values up to 8.
        self.alone("bfloat16", "bf16", 2**-5)

    def int8(self):
        for quantization in ("w8a8", "w8a16"):
            answer, log = good(
                Process(generate, self.folder, "bfloat16", settings={"quantization": quantization})
            )
            (line,) = head_lines(log)
            assert quantization in line, line
            wanted = self.of_vllm("bfloat16")
            # Up to the first different token both heads get the same hidden states.
            same = [
                next((n for n, (a, b) in enumerate(zip(tokens, wanted[i][0])) if a != b), len(tokens))
                for i, (tokens, _, _) in answer.items()
            ]
            print(
                f"  {line}\n"
                f"  {quantization}: the first {same} tokens of {list(TOKENS.values())} are as vLLM's"
            )
            assert all(same), f"{quantization}: wanted each prompt to begin like vLLM's, got {same}"

    def reload(self):
        """vLLM reloads weights in place: in a checkpoint's format, and in its kernels' format."""
        for quantization in ("none", "w8a8", "w8a16"):
            settings = {"quantization": quantization}
            fresh, _ = good(Process(generate, self.folder / "other", "bfloat16", settings=settings))
            first, _ = good(Process(generate, self.folder, "bfloat16", settings=settings))
            assert fresh != first, f"{quantization}: wanted two models that differ, got the same answers"
            for reloads in ([(8, True)], [(8, False)], [(8, True), (3, False), (8, True)]):
                answer, log = good(
                    Process(generate, self.folder, "bfloat16", settings=settings, reloads=reloads)
                )
                assert answer == fresh, f"{quantization}, {reloads}: wanted {fresh}, got {answer}\n{log}"
            print(f"  {quantization}: the answers of the reloaded weights, whichever way they came")

    def others(self):
        """A second head with a bias, one that vLLM has quantised, and a process that was forked too late."""
        furthest, log = good(Process(heads_of_one_model, self.folder))
        lines = head_lines(log)
        assert max(furthest) < 1e-4, f"wanted logits within 1e-4 of torch's, got {furthest}"
        assert [line.split(":")[0] for line in lines] == 3 * ["LM head by lmhead"] + [
            "LM head by vLLM itself, not by lmhead"
        ], log
        print(f"  {lines[-1]}\n  logits of the heads of one model within {max(furthest):.1g} of torch's")
        said, log = good(Process(after_fork))
        for words in ("from which it was forked", "VLLM_WORKER_MULTIPROC_METHOD=spawn"):
            assert words in said, f"wanted `{words}`, got {said}\n{log}"
        print("  after a fork: " + said.replace("\n", "\n    "))

    def ranks(self, *settings, workers=2 * ["lmhead_vllm.worker.Worker"], **more):
        """A process for each data-parallel rank, with its settings and its worker."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            Process(
                generate,
                self.folder,
                "float32",
                prompts,
                settings[rank],
                distributed_executor_backend="external_launcher",
                data_parallel_size=len(PROMPTS_OF_RANK),
                worker_cls=workers[rank],
                variables={
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(len(PROMPTS_OF_RANK)),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
                **more,
            )
            for rank, prompts in enumerate(PROMPTS_OF_RANK)
        ]

    def shared(self):
        """Two data-parallel ranks: one computes prompt logprobs, the other has few tokens, then none."""
        for rank, process in enumerate(self.ranks(SHARED, SHARED)):
            answer, log = good(process)
            (line,) = head_lines(log)
            assert "shared by 2 data-parallel ranks" in line and "rows of the head: 512\n" in log, log
            print(f"  rank {rank}: {line}")
            compare(f"rank {rank}", self.of_vllm("float32"), answer, 1e-4)

    def lost(self):
        """The process of one rank is killed in a step."""
        survivor, killed = self.ranks(SHARED, SHARED, workers=["lmhead_vllm.worker.Worker", "dying.Worker"])
        _, error, log = survivor.end()
        words = "ranks [1] have left the group"
        assert error is not None and error.startswith("RankLostError") and words in error, f"{error}\n{log}"
        killed.process.join(PATIENCE)
        assert killed.process.exitcode == -signal.SIGKILL, killed.end()
        print(f"  rank 0: {error}")

    def refused(self):
        """Invalid settings are refused by name."""
        table = [
            ({"quantisation": "w8a8"}, "lmhead.quantisation: wanted one of quantization, lmhead_tp_size"),
            ({"quantization": "int8"}, "lmhead.quantization: wanted none, w8a8 or w8a16, got 'int8'"),
            (
                {"lmhead_tp_size": 2},
                "lmhead.lmhead_tp_size: wanted 1, or the number of data-parallel ranks that step together, 1",
            ),
        ]
        for settings, words in table:
            _, error, log = Process(generate, self.folder, "float32", settings=settings).end()
            assert error is not None and words in log, f"wanted `{words}`, got {error}\n{log}"
            print(f"  {settings}: {words}...")
        for process in self.ranks(SHARED, SHARED, workers=["auto", "auto"]):
            _, error, log = process.end()
            words = "pass worker_cls='lmhead_vllm.worker.Worker'"
            assert error is not None and words in log, f"wanted `{words}`, got {error}\n{log}"
        print(f"  a shared head with vLLM's own worker: {words}...")
        for process in self.ranks(SHARED, {**SHARED, "quantization": "w8a8"}):
            _, error, log = process.end()
            assert error is not None and error.startswith("StepMismatchError"), f"{error}\n{log}"
            assert "ranks [1] say" in error and "w8a8" in error, error
        print(f"  ranks with other settings: {error}")
        for process in self.ranks(SHARED, SHARED, reloads=[(8, False)]):
            _, error, log = process.end()
            words = "wanted the weights, bias and type that the shared head was made of"
            assert error is not None and words in log, f"wanted `{words}`, got {error}\n{log}"
        print(f"  reloaded weights of a shared head: {words}...")


def main():
    names = ["f32", "bf16", "int8", "reload", "others", "shared", "lost", "refused"]
    wanted = sys.argv[1:] or names
    if unknown := set(wanted) - set(names):
        sys.exit(f"wanted some of {', '.join(names)}; got {' '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        for name in wanted:
            began = time.monotonic()
            print(name, flush=True)
            getattr(check, name)()
            print(f"  {time.monotonic() - began:.1f} s", flush=True)
    print(f"{len(wanted)} passed, 0 failed")


if __name__ == "__main__":
    main()
