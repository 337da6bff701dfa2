"""PyTorch's tensors in and out, the operator, and the module that replaces a model's head."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref

import lmhead
import pytest
from conftest import as_threads, write_safetensors
from lmhead import Answer, Head, Request, Weights

torch = pytest.importorskip("torch")
import lmhead.torch as lt  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VOCAB, HIDDEN = 300, 64


def linear(dtype=torch.bfloat16, bias=False):
    torch.manual_seed(5)
    return torch.nn.Linear(HIDDEN, VOCAB, bias=bias).to(dtype).requires_grad_(False)


def hidden(rows=5, dtype=torch.bfloat16):
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(6)).to(dtype)


class OnlyDlpack:
    """An array of a producer without the C functions; `legacy`: older than DLPack's versions."""

    def __init__(self, tensor, legacy=False):
        self.tensor, self.legacy = tensor, legacy

    def __dlpack__(self, **options):
        if self.legacy and options:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_of_dlpack_gives_the_same(dtype):
    rows = hidden(dtype=dtype)
    with Weights.wrap(linear(dtype).weight.detach()) as weights, Head(weights) as head:
        top = head.topk(rows, 4)
        assert top.ids.dtype == torch.int64 and top.ids.shape == (5, 4) and top.values.dtype == torch.float32
        for legacy in (False, True):
            other = head.topk(OnlyDlpack(rows, legacy), 4)
            assert torch.equal(torch.as_tensor(other.ids), top.ids)
        logits = head.logits(rows, lt._DTYPES[dtype]).logits
        assert logits.dtype == dtype
        assert torch.equal(logits.float().topk(4).values, top.values.to(dtype).float())
        wide = torch.zeros(5, 3 * HIDDEN, dtype=dtype)
        wide[:, HIDDEN : 2 * HIDDEN] = rows
        assert torch.equal(head.topk(wide[:, HIDDEN : 2 * HIDDEN], 4).ids, top.ids)
        with pytest.raises(lmhead.ShapeError, match="contiguous"):
            head.topk(wide[:, : 2 * HIDDEN : 2], 4)


def test_answers_in_given_tensors_and_by_indices():
    with Weights.wrap(linear().weight.detach()) as weights, Head(weights) as head:
        out = Answer(ids=torch.full((9,), -7), row_status=torch.zeros(9, dtype=torch.bool))
        want = head.argmax(hidden()).ids
        head.argmax(hidden(), out=out)
        assert torch.equal(out.ids[:5], want) and (out.ids[5:] == -7).all()
        picked = head.argmax(hidden(), indices=torch.tensor([4, 0], dtype=torch.int32)).ids
        assert torch.equal(picked, want[[4, 0]])
        told = head.logprobs(hidden(), want, k=1)
        assert (told.ranks == 1).all() and torch.equal(told.top_ids[:, 0], want)


def test_parameters_and_slices_are_taken_as_they_are():
    """Tensors that require a gradient, and tensors that begin in the middle of their storage."""
    layer = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
    with Weights.wrap(layer.weight) as weights, Head(weights) as head:
        rows = hidden(9, torch.float32)
        want = torch.nn.functional.linear(rows, layer.weight).argmax(-1)
        assert torch.equal(head.argmax(rows).ids, want)
        assert torch.equal(head.argmax(rows[4:7]).ids, want[4:7])
        assert torch.equal(head.argmax(rows[::2]).ids, want[::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_negated_views_are_read_as_what_they_are(dtype):
    """The memory of such a view holds the negated values."""
    weight, rows = linear(dtype).weight.detach(), hidden(dtype=dtype)
    with Weights.wrap(weight) as weights, Head(weights) as head:
        want = head.logits(-rows).logits
        assert torch.equal(head.logits(torch._neg_view(rows)).logits, want)
        plain = head.logits(lmhead.view(torch._neg_view(rows))).logits
        assert plain.tolist() == want.tolist()
        with pytest.raises(lmhead.ArgumentError, match="wanted memory to write in, got read-only"):
            head.logits(rows, out=Answer(logits=torch._neg_view(torch.empty(5, VOCAB))))
    with Weights.wrap(torch._neg_view(weight)) as weights, Head(weights) as head:
        assert torch.equal(head.logits(rows).logits, want)
    module = lt.LmHead(torch._neg_view(weight))
    with torch.inference_mode():
        assert torch.equal(module(rows).float(), want.to(dtype).float())
        assert torch.equal(module(torch._neg_view(rows)), -module(rows))


def test_the_stream_of_a_view_is_its_producers(monkeypatch):
    from types import SimpleNamespace

    from lmhead import _memory

    class Producer:
        pass

    def current(device_type, device, stream):
        stream._obj.value = 70 + device
        return 0

    monkeypatch.setitem(_memory._apis, Producer, SimpleNamespace(current_work_stream=current))
    array = Producer()
    place = _memory.Tensor(64, _memory.LMHEAD_CUDA, 3, _memory.LMHEAD_F32, (1, 4), None, False, array)
    assert _memory.stream_of(array, place) == _memory.stream_of(place, place) == 73
    read_as = lmhead.view(place, shape=(4, 1))
    assert _memory.stream_of(read_as, read_as) == 73


def test_nothing_is_leaked_by_steps():
    with Weights.wrap(linear().weight.detach()) as weights, Head(weights) as head:
        rows = hidden()
        answer = head.topk(rows, 3)
        seen = [
            weakref.ref(array) for array in (answer.ids, answer.values, answer.logsumexp, answer.row_status)
        ]
        del answer
        gc.collect()
        assert not any(ref() is not None for ref in seen)


def test_the_operator_passes_torchs_checks():
    module = lt.LmHead(linear().weight)
    out, status = torch.empty(5, VOCAB, dtype=torch.bfloat16), torch.empty(5, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.lmhead.logits.default, (module.number, hidden(), out, status))


def test_the_operator_refuses_by_name():
    module, status = lt.LmHead(linear().weight), torch.empty(5, dtype=torch.uint8)
    call = torch.ops.lmhead.logits
    with pytest.raises(lmhead.DtypeError, match="f32, f16 or bf16"):
        call(module.number, hidden(), torch.empty(5, VOCAB, dtype=torch.float64), status)
    with pytest.raises(lmhead.ShapeError, match=r"\[5, 300\]"):
        call(module.number, hidden(), torch.empty(5, VOCAB - 1), status)
    with pytest.raises(lmhead.ShapeError, match="row_status"):
        call(module.number, hidden(), torch.empty(5, VOCAB), status[:3])
    number = module.number
    del module
    gc.collect()
    with pytest.raises(lmhead.ArgumentError, match="a head that lives"):
        call(number, hidden(), torch.empty(5, VOCAB), status)


def test_the_module_compiles_whole():
    module, rows = lt.LmHead(linear().weight), hidden(6).reshape(2, 3, HIDDEN)
    with torch.inference_mode():
        eager = module(rows)
        assert eager.shape == (2, 3, VOCAB) and eager.dtype == torch.bfloat16
        compiled = torch.compile(lambda rows: module(rows * 2).argmax(-1), fullgraph=True)
        assert torch.equal(compiled(rows), module(rows * 2).argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_is_as_near_as_torchs(dtype):
    before = linear(dtype, bias=True)
    module = lt.LmHead(before.weight, before.bias)
    with torch.inference_mode():
        got, want = module(hidden(dtype=dtype)), before(hidden(dtype=dtype))
    truth = hidden(dtype=dtype).double() @ before.weight.double().T + before.bias.double()
    assert (got - truth).abs().max() <= 1.01 * (want - truth).abs().max() + 1e-6


def test_weights_stay_in_place():
    before = linear(torch.float32)
    module = lt.LmHead(before.weight)
    assert module.weight is before.weight
    with torch.inference_mode():
        rows = hidden(dtype=torch.float32)
        was = module(rows)
    before.weight.data.mul_(2)
    with torch.inference_mode():
        assert torch.equal(module(rows), 2 * was)


KINDS = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "w8a8"), (torch.bfloat16, "w8a16")]


def answer_of(module, dtype):
    with torch.inference_mode():
        return module(hidden(dtype=dtype))


@pytest.mark.parametrize("dtype, quantization", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda module, other: module.load_state_dict(other.state_dict()),
        lambda module, other: module.load_state_dict(other.state_dict(), assign=True),
        lambda module, other: (module.weight.copy_(other.weight), module.bias.copy_(other.bias)),
        lambda module, other: (module.weight.data.copy_(other.weight), module.bias.data.copy_(other.bias)),
        lambda module, other: module.bias.mul_(-3),
        lambda module, other: setattr(module, "bias", None),
        lambda module, other: setattr(module, "weight", other.weight),
    ],
    ids=["load", "assign", "copy", "data", "bias", "no bias", "weight"],
)
def test_changed_weights_are_seen(dtype, quantization, change):
    """Both by the module and by a graph compiled before the change."""
    before, other = linear(dtype, bias=True), torch.nn.Linear(HIDDEN, VOCAB).to(dtype).requires_grad_(False)
    module = lt.LmHead(before.weight, before.bias, quantization=quantization)
    torch.compiler.reset()  # no test is near the limit of graphs
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    was = answer_of(compiled, dtype)
    change(module, other)
    want = answer_of(lt.LmHead(module.weight, module.bias, quantization=quantization), dtype)
    assert not torch.equal(was, want)
    assert torch.equal(answer_of(module, dtype), want)
    assert torch.equal(answer_of(compiled, dtype), want)


def an_unseen_element(module):
    """Writes an element of the weight that no snapshot compares, without PyTorch counting the write."""
    weight = module.weight
    snapshot, version = lt.Snapshot(weight), weight._version
    for i in range(weight.numel()):
        was = weight.data[i // HIDDEN, i % HIDDEN].item()
        weight.data[i // HIDDEN, i % HIDDEN] = 50
        if snapshot.is_of(weight):
            assert weight._version == version
            return
        weight.data[i // HIDDEN, i % HIDDEN] = was


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype, quantization", KINDS)
def test_an_element_written_through_data_counts_in_place_or_after_reload(dtype, quantization, contiguous):
    weight = linear(dtype).weight.detach()
    if not contiguous:
        weight = weight.t().contiguous().t()
    module = lt.LmHead(weight, quantization=quantization)
    was = answer_of(module, dtype)
    an_unseen_element(module)
    want = answer_of(lt.LmHead(module.weight, quantization=quantization), dtype)
    assert not torch.equal(was, want)
    is_copied = quantization is not None or not contiguous
    assert torch.equal(answer_of(module, dtype), was if is_copied else want)
    module.reload()
    assert torch.equal(answer_of(module, dtype), want)


def test_weights_that_are_not_contiguous_and_biases_are_looked_at():
    weight, bias = linear().weight.detach().t().contiguous().t(), torch.zeros(VOCAB, dtype=torch.bfloat16)
    module = lt.LmHead(weight, bias)
    was = answer_of(module, torch.bfloat16)
    module.weight.data.neg_()
    negated = answer_of(module, torch.bfloat16)
    assert torch.equal(negated, -was)
    for id in (0, 1, VOCAB - 1):
        module.bias.data[id] += 4
        assert (answer_of(module, torch.bfloat16) - negated)[:, id].min() > 3


@pytest.mark.parametrize("quantization", [None, "w8a8"])
def test_a_module_is_converted(quantization):
    before = linear(torch.float32, bias=True)
    module = lt.LmHead(before.weight, before.bias, quantization=quantization)
    answer_of(module, torch.float32)
    module.to(torch.bfloat16)
    want = answer_of(lt.LmHead(module.weight, module.bias, quantization=quantization), torch.bfloat16)
    assert torch.equal(answer_of(module, torch.bfloat16), want)
    module.to(torch.float64)
    with pytest.raises(lmhead.ConfigError, match="weight: wanted f32, f16 or bf16"):
        answer_of(module, torch.float64)


def test_unchanged_weights_keep_the_head():
    module = lt.LmHead(linear(bias=True).weight, linear(bias=True).bias)
    head = module.head
    answer_of(module, torch.bfloat16)
    assert module.head is head
    module.bias.mul_(2)
    assert module.head is not head


def test_a_snapshot_of_nan_is_itself():
    tensor = torch.full((4, 4), torch.nan)
    snapshot = lt.Snapshot(tensor, None)
    assert snapshot.is_of(tensor, None) and not snapshot.is_of(tensor, tensor)
    tensor.data[3, 3] = 1
    assert not snapshot.is_of(tensor, None)
    with torch.inference_mode():
        made_here = torch.zeros(300, 64, dtype=torch.bfloat16)
        assert lt.Snapshot(made_here).is_of(made_here)
    assert lt.Snapshot(torch.zeros(0, 4)).is_of(torch.zeros(0, 5)) is False


def reloaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("quantization", [None, "w8a8"])
@pytest.mark.parametrize(
    "how",
    [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), reloaded],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_copies_have_heads_of_their_own(quantization, how):
    backend = lmhead.Backend(threads=1) if how in (copy.copy, copy.deepcopy) else None
    before = linear(bias=True)
    module = lt.LmHead(before.weight, before.bias, quantization=quantization, backend=backend)
    want = answer_of(module, torch.bfloat16)
    made = how(module)
    assert made.number != module.number
    assert torch.equal(answer_of(made, torch.bfloat16), want)
    if how is not copy.copy:
        # Which has the weights of the original.
        made.weight.neg_()
        assert not torch.equal(answer_of(made, torch.bfloat16), want)
        assert torch.equal(answer_of(module, torch.bfloat16), want)
    del made
    gc.collect()
    assert torch.equal(answer_of(module, torch.bfloat16), want)


def test_a_shared_module_is_not_copied_and_reloads_on_every_rank():
    """A rank with changed weights is refused until all have called `reload`."""
    weight, exchanges = linear().weight.detach(), lmhead.Exchange.local(2)
    want = answer_of(lt.LmHead(2 * weight), torch.bfloat16)

    def run(member):
        own = weight.clone()
        module = lt.LmHead(
            own, group=lmhead.Group([0, 1], member), exchange=exchanges[member],
            backend=lmhead.Backend(threads=1), timeout=30,
        )  # fmt: skip
        for how in (copy.copy, copy.deepcopy, pickle.dumps, reloaded):
            with pytest.raises(lmhead.ConfigError, match="module: wanted a head of this rank alone"):
                how(module)
        answer_of(module, torch.bfloat16)
        module.weight.mul_(2)
        with pytest.raises(lmhead.ConfigError, match="call `reload` of the module on every rank"):
            answer_of(module, torch.bfloat16)
        module.reload()
        return answer_of(module, torch.bfloat16)

    for answer in as_threads(2, run):
        assert isinstance(answer, torch.Tensor) and torch.equal(answer, want), answer


def test_a_gradient_is_refused():
    module = lt.LmHead(linear(torch.float32).weight)
    with pytest.raises(lmhead.UnsupportedError, match="no_grad"):
        module(hidden(dtype=torch.float32).requires_grad_())
    with pytest.raises(lmhead.ConfigError, match="f32, f16 or bf16"):
        lt.LmHead(torch.zeros(4, 4, dtype=torch.float64))
    with pytest.raises(lmhead.ConfigError, match="output embedding"):

        class NoHead(torch.nn.Module):
            def get_output_embeddings(self):
                return None

        lt.replace_lm_head(NoHead())


@pytest.mark.parametrize("quantization", ["w8a8", "w8a16"])
@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "BF16"), (torch.float32, "F32")])
def test_rows_are_quantised_as_the_loader_does(tmp_path, quantization, dtype, name):
    weight = linear(dtype).weight.detach().clone()
    weight[3] = 0
    weight[4] = 1e-39  # its scale would be below the least normal number
    data = weight.view(torch.uint8).numpy().tobytes()
    write_safetensors(tmp_path / "head.safetensors", {"w": (name, list(weight.shape), data)})
    with Weights.load(tmp_path / "head.safetensors", tensor="w", quantization=quantization) as weights:
        with Head(weights, hidden_dtype=lt._DTYPES[dtype]) as head:
            want = head.logits(hidden(dtype=dtype)).logits
    module = lt.LmHead(weight, quantization=quantization)
    assert torch.equal(module.head.logits(hidden(dtype=dtype)).logits, want)


def test_a_shared_module_and_an_idle_member():
    """Two members as threads: one has rows, the other joins."""
    weight, exchanges = linear().weight, lmhead.Exchange.local(2)
    whole = lt.LmHead(weight)
    with torch.inference_mode():
        want = whole(hidden())

    def run(member):
        module = lt.LmHead(
            weight, group=lmhead.Group([0, 1], member), exchange=exchanges[member],
            backend=lmhead.Backend(threads=1), timeout=30,
        )  # fmt: skip
        with torch.inference_mode():
            answers = []
            for turn in range(4):
                answers.append(module(hidden()) if turn % 2 == member else module.join())
        return answers

    for member, answers in enumerate(as_threads(2, run)):
        assert isinstance(answers, list), answers
        for turn, answer in enumerate(answers):
            assert answer is None if turn % 2 != member else torch.equal(answer, want)


def test_a_rank_that_makes_no_exchange_is_named():
    from lmhead._process_group import ProcessGroupExchange, meet

    with pytest.raises(lmhead.TimeoutError, match=r"got none on \[8\] within 0.1 s") as caught:
        meet(torch.distributed.HashStore(), 0, [4, 8], 0.1)
    assert caught.value.ranks == [8]
    with pytest.raises(lmhead.ConfigError, match="init_process_group"):
        ProcessGroupExchange()


RANK = """
import sys
import lmhead, torch
import torch.distributed as dist
from lmhead.torch import ProcessGroupExchange

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
ids = lmhead.shard_range(128, 2, rank)
matrix = torch.arange(128.0)[:, None].repeat(1, 4)[ids.start : ids.stop]
weights = lmhead.Weights.wrap(matrix, vocab_size=128, first=ids.start)
head = lmhead.Head(weights, group=lmhead.Group([0, 1], rank), exchange=ProcessGroupExchange())
assert head.argmax(torch.ones(1, 4)).ids.tolist() == [127]
"""


def test_processes_end_well_with_an_exchange_in_use(tmp_path):
    """Threads that wait in gloo aborted the process when Python ended."""
    store = str(tmp_path / "store")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), store], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        said = rank.communicate(timeout=120)[1]
        assert rank.returncode == 0, said


def test_a_model_whose_head_is_replaced():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head = linear()

        def get_output_embeddings(self):
            return self.lm_head

        def set_output_embeddings(self, module):
            self.lm_head = module

    model = Model()
    names = set(model.state_dict())
    replaced = lt.replace_lm_head(model)
    assert model.lm_head is replaced and set(model.state_dict()) == names
    assert replaced.head.plan(Request.logits("bf16"), 1).rows == 1
