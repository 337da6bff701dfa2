"""A transformers model generates with this library's LM head: `transformers_generate.py [--vocab 32000]`.

The model is Llama-shaped, with random weights generated here. Three lines replace its head:

    import lmhead.torch
    head = lmhead.torch.replace_lm_head(model)
    model.generate(...)

With the f32 and the bf16 head the greedy tokens are the model's own; for int8 heads the share of equal tokens
is printed. Then two data-parallel processes share the head over torch.distributed's gloo: one generates 32
tokens, the other is idle in half of these steps, and both get the same tokens as alone.
"""

import argparse
import time

import lmhead
import lmhead.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 32
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def make_model(vocab, dtype):
    """The same weights in every process."""
    torch.manual_seed(20_261_129)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # so that logits differ, and a text does not repeat one token
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def prompt(vocab, of=0, rows=1):
    random = torch.Generator().manual_seed(of)
    return torch.randint(2, vocab, (rows, 7), generator=random)


def generate(model, ids, tokens=TOKENS):
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )
    return made[:, ids.shape[1] :]


def alone(vocab):
    for name, dtype in DTYPES.items():
        model, ids = make_model(vocab, dtype), prompt(vocab, rows=2)
        want = generate(model, ids)
        head = lmhead.torch.replace_lm_head(model)
        got = generate(model, ids)
        print(f"{name}: {got.numel()} tokens, {len(set(got.flatten().tolist()))} of them different: {head}")
        assert torch.equal(got, want), f"{name}: wanted {want.tolist()}, got {got.tolist()}"
        for quantization in ("w8a8", "w8a16"):
            model = make_model(vocab, dtype)
            # Compared after each prefix, so that one different token does not change all that follow.
            text = torch.cat([ids, want], dim=1)
            with torch.inference_mode():
                own = model(text).logits.argmax(-1)
                lmhead.torch.replace_lm_head(model, quantization)
                agreed = (model(text).logits.argmax(-1) == own).float().mean().item()
            print(f"{name}, {quantization}: {100 * agreed:.1f} % of {own.numel()} next tokens agree")
            assert agreed > 0.8, f"{quantization}: wanted more than 80 % of tokens to agree, got {agreed}"


def rank(me, port, vocab, want):
    """One of two data-parallel processes. Rank 1 has a text for half of rank 0's steps, else it joins."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=me, world_size=2)
    exchange = lmhead.torch.ProcessGroupExchange()
    model = make_model(vocab, torch.bfloat16)
    group = lmhead.Group([0, 1], me)
    head = lmhead.torch.replace_lm_head(model, group=group, exchange=exchange, timeout=60)
    before = TOKENS // 4 if me == 1 else 0
    began = time.perf_counter()
    for _ in range(before):
        head.join()
    got = generate(model, prompt(vocab, of=me), len(want[me]))
    for _ in range(TOKENS - before - len(want[me])):
        head.join()
    ms = 1e3 * (time.perf_counter() - began) / TOKENS
    ids = lmhead.shard_range(vocab, 2, me)
    print(
        f"rank {me}: ids {ids.start} to {ids.stop}, {got.numel()} tokens in {TOKENS} steps of {ms:.1f} ms",
        flush=True,
    )
    assert got[0].tolist() == want[me], f"rank {me}: wanted {want[me]}, got {got[0].tolist()}"
    # Neither may leave while the other is in a step.
    dist.barrier()
    head.head.close()
    exchange.close()
    dist.destroy_process_group()


def shared(vocab):
    model = make_model(vocab, torch.bfloat16)
    want = [generate(model, prompt(vocab, of=me), n)[0].tolist() for me, n in ((0, TOKENS), (1, TOKENS // 2))]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # Spawned, not forked: a forked process cannot use its parent's backend.
    mp.spawn(rank, (store.port, vocab, want), nprocs=2)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--vocab", type=int, default=5003)
    vocab = options.parse_args().vocab
    alone(vocab)
    shared(vocab)
    print("the same tokens")


if __name__ == "__main__":
    main()
