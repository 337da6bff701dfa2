"""The package with Python's own arrays only, without NumPy or PyTorch."""

import array
import copy
import gc
import json
import pickle
import re
import struct
import subprocess
import sys
import time
import weakref

import lmhead
import pytest
from conftest import (
    HIDDEN,
    VOCAB,
    as_threads,
    best,
    floats,
    logits_of,
    logsumexp,
    member_head,
    write_safetensors,
)
from lmhead import (
    Adjustments,
    Answer,
    Head,
    Request,
    RowCounts,
    Sampling,
    Weights,
    _exchange,
    _library,
    _setup,
    _sys,
)

EVERY_MODE = [RowCounts.exact([2, 0, 3]), RowCounts.capacity(4), RowCounts.discover(), None]


# ---- what the package says of the library ----


def test_every_status_has_its_class():
    names = {}
    for status in range(1, 100):
        name = _library.lib.lmhead_status_name(status).decode()
        if name != "?":
            names[status] = name
    assert {status: kind.name for status, kind in _library.ERRORS.items()} == names
    for status, kind in _library.ERRORS.items():
        assert (
            kind.status == status
            and issubclass(kind, lmhead.Error)
            and getattr(lmhead, kind.__name__) is kind
        )


def test_build_and_machine():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lmhead.__version__)
    assert "cpu" in lmhead.features()
    assert all({"name", "status", "message"} <= set(check) for check in lmhead.doctor()["checks"])


def test_groups_and_shards():
    assert lmhead.group_ranks(dp=4, tp=2, pp=1, rank=5, tp_size=4) == [4, 5, 6, 7]
    assert lmhead.group_ranks(dp=2, tp=1, pp=2, rank=0) == []  # not on the last stage
    shards = [lmhead.shard_range(VOCAB, 3, member) for member in range(3)]
    assert [id for shard in shards for id in shard] == list(range(VOCAB))
    with pytest.raises(lmhead.ConfigError, match="tp_size"):
        lmhead.group_ranks(dp=4, tp=2, pp=1, rank=5, tp_size=3)


def test_the_log_is_told_of_heads(matrix):
    said = []
    lmhead.set_log(lambda level, text: said.append((level, text)))
    try:
        with Weights.wrap(matrix) as weights, Head(weights, name="told"):
            pass
    finally:
        lmhead.set_log(None)
    assert any(level == 3 and "head `told`" in text for level, text in said)


# ---- answers ----


def test_every_request(head, matrix, rows):
    want = logits_of(rows, matrix)
    assert head.logits(rows).logits.tolist() == want
    halves = head.logits(rows, "f16").logits
    assert halves.format == "H" and [*struct.unpack("<300e", halves)] == sum(want, [])
    assert head.argmax(rows).ids.tolist() == [best(logits, 1)[0] for logits in want]

    top = head.topk(rows, 5)
    assert top.ids.tolist() == [best(logits, 5) for logits in want]
    assert top.values.tolist() == [[logits[i] for i in best(logits, 5)] for logits in want]
    assert top.logsumexp.tolist() == pytest.approx([logsumexp(logits) for logits in want], rel=1e-6)
    assert top.row_status.tolist() == [0, 0, 0]

    targets = [[7, 50], [0, -100], [99, 3]]
    told = head.logprobs(rows, targets, k=2)
    assert told.ranks.tolist()[0] == [best(want[0], VOCAB).index(id) + 1 for id in targets[0]]
    assert told.logprobs.tolist()[2][0] == pytest.approx(want[2][99] - logsumexp(want[2]), rel=1e-5)
    assert told.top_ids.tolist() == [best(logits, 2) for logits in want]

    drawn = head.sample(rows, Sampling(seed=[1, 2, 3], temperature=[0.0, 1.0, 1.0], top_k=1), logprobs=2)
    assert drawn.ids.tolist() == [best(logits, 1)[0] for logits in want]
    assert drawn.ranks.tolist() == [1, 1, 1]


def test_bytes_need_a_type_and_a_shape(matrix, rows):
    data = bytes(matrix)
    with Weights.wrap(lmhead.view(data, "f32", (VOCAB, HIDDEN))) as weights, Head(weights) as head:
        got = head.argmax(lmhead.view(rows.tobytes(), "f32", (3, HIDDEN))).ids.tolist()
    assert got == [best(logits, 1)[0] for logits in logits_of(rows, matrix)]


def test_bf16_by_its_bits(matrix, rows):
    def bits(numbers):
        words = array.array("I", numbers.tobytes())
        return array.array("H", [word >> 16 for word in words])

    weights = lmhead.view(bits(matrix), "bf16", (VOCAB, HIDDEN))
    with Weights.wrap(weights) as weights, Head(weights) as head:
        assert weights.about().dtype == "bf16"
        got = head.logits(lmhead.view(bits(rows), "bf16", (3, HIDDEN)), "bf16").logits
    want = [
        [int.from_bytes(array.array("f", [value]).tobytes()[2:], "little") for value in row]
        for row in logits_of(rows, matrix)
    ]
    assert got.format == "H" and got.tolist() == want


def test_rows_are_picked_by_indices(head, rows):
    all_ids = head.argmax(rows).ids.tolist()
    assert head.argmax(rows, indices=[2, 0, 2, 1]).ids.tolist() == [all_ids[i] for i in (2, 0, 2, 1)]
    assert head.argmax(rows, indices=array.array("i", [1])).ids.tolist() == [all_ids[1]]
    with pytest.raises(IndexError, match="row 3|index 3|3"):  # the builtin one names it too
        head.argmax(rows, indices=[3])


def test_no_rows(head):
    for answer in (head.topk(k=3), head.logits(), head.argmax(floats(2, HIDDEN, 0), indices=[])):
        assert answer.row_status.tolist() == []


def test_answers_in_given_memory(head, rows):
    out = Answer(ids=memoryview(array.array("q", [-7] * 4)), row_status=bytearray(3))
    answer = head.argmax(rows, out=out, stats=True)
    assert answer.ids is out.ids and out.ids.tolist() == [*head.argmax(rows).ids.tolist(), -7]
    assert answer.stats.rows_computed == 3 and "rows_computed=3" in repr(answer.stats)
    with pytest.raises(lmhead.ArgumentError, match="read-only"):
        head.argmax(rows, out=Answer(ids=bytes(24)))
    with pytest.raises(lmhead.DtypeError, match=r"out\.ids: wanted i64, got i32"):
        head.argmax(rows, out=Answer(ids=array.array("i", [0] * 3)))
    with pytest.raises(lmhead.ShapeError, match=r"out\.ids: wanted \[3\], got \[2\]"):
        head.argmax(rows, out=Answer(ids=array.array("q", [0] * 2)))


def test_adjustments(head, matrix, rows):
    want = logits_of(rows, matrix)
    words = (VOCAB + 31) // 32
    allowed = memoryview(array.array("i", [2, 0, 0, 0] * 3)).cast("B").cast("i", (3, words))  # id 1 alone
    assert head.argmax(rows, adjustments=Adjustments(allowed=allowed)).ids.tolist() == [1, 1, 1]

    biased = Adjustments(logit_bias_offsets=[0, 1, 1, 2], logit_bias_ids=[7, 9], logit_bias_values=[1e6, 1e6])
    assert head.argmax(rows, adjustments=biased).ids.tolist() == [7, best(want[1], 1)[0], 9]

    first = best(want[0], 1)[0]
    punished = Adjustments(
        presence=[1e6, 0.0, 0.0], count_offsets=[0, 1, 1, 1], count_ids=[first], counts=[1], in_prompt=[0]
    )
    assert head.argmax(rows, adjustments=punished).ids.tolist()[0] == best(want[0], 2)[1]
    with pytest.raises(lmhead.ArgumentError, match="count_offsets"):
        head.argmax(rows, adjustments=Adjustments(counts=[1]))


def test_sampling_is_checked_before_it_joins():
    Sampling(seed=2**64 - 1, temperature=0.5, top_p=0.9).check(4)
    with pytest.raises(lmhead.RequestError, match="top_p"):
        Sampling(top_p=1.5).check(1)
    with pytest.raises(lmhead.DtypeError, match="i32"):
        Sampling(top_k=2**40).check(1)  # ctypes would drop the bits above


def test_configuration(matrix, rows):
    want = logits_of(rows, matrix)
    with Weights.wrap(matrix) as weights, Head(weights, logit_scale=0.5, softcap=0.0) as head:
        assert head.logits(rows).logits.tolist() == [[value / 2 for value in row] for row in want]


def test_memory_of_a_device_is_told_from_the_hosts(head, rows):
    """With tensors that claim to be on a device; their addresses are not dereferenced."""
    on_device = lmhead.Tensor(
        4096, _sys.LMHEAD_CUDA, 0, lmhead.view(rows).number, (3, HIDDEN), None, False, None
    )
    with pytest.raises(lmhead.ArgumentError, match="wanted arrays in the rows' device memory, got none"):
        head.argmax(on_device)
    ids = lmhead.Tensor(4096, _sys.LMHEAD_CUDA, 0, _sys.LMHEAD_I64, (3,), None, False, None)
    with pytest.raises(lmhead.ArgumentError, match=r"out\.ids: wanted host memory, got device 2:0"):
        head.argmax(rows, out=Answer(ids=ids))
    status = lmhead.Tensor(
        8192, _sys.LMHEAD_CUDA, 0, lmhead.view(bytearray(3)).number, (3,), None, False, None
    )
    with pytest.raises(lmhead.Error, match="device"):
        head.argmax(on_device, out=Answer(ids=ids, row_status=status))
    with pytest.raises(lmhead.ArgumentError, match="memory of the backend"):
        head.argmax(rows, workspace=status)
    with pytest.raises(lmhead.ArgumentError, match="memory of hidden"):
        head.argmax(on_device, indices=[0], out=Answer(ids=ids, row_status=status))


# ---- weights ----


def test_int8_weights_with_scales(rows):
    values = (
        memoryview(array.array("b", [i % 11 - 5 for i in range(VOCAB * HIDDEN)]))
        .cast("B")
        .cast("b", (VOCAB, HIDDEN))
    )
    with Weights.wrap(values, scales=[0.5] * VOCAB, quantization="w8a16") as weights:
        about = weights.about()
        assert (about.quantization, about.dtype, about.ids) == ("w8a16", "i8", range(VOCAB))
        with Head(weights, hidden_dtype="f32") as head:
            assert head.logits(rows).logits.tolist() == [
                [x / 2 for x in row] for row in logits_of(rows, values)
            ]
    with pytest.raises(lmhead.ArgumentError, match="w8a8 or w8a16"):
        Weights.wrap(values, scales=[0.5] * VOCAB)


def test_weights_from_a_model_folder(tmp_path, matrix, rows):
    config = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(
        tmp_path / "model.safetensors", {"lm_head.weight": ("F32", [VOCAB, HIDDEN], matrix.tobytes())}
    )
    told = []
    with Weights.load(
        tmp_path, members=2, member=1, copy=True, progress=lambda *of: told.append(of)
    ) as weights:
        assert weights.about().ids == lmhead.shard_range(VOCAB, 2, 1)
        assert told and told[-1][0] == told[-1][1]
    assert lmhead.Config.from_model(tmp_path, {"timeout_ms": 1500}).timeout == 1.5
    with (
        Weights.load(tmp_path / "model.safetensors", tensor="lm_head.weight") as weights,
        Head(weights) as head,
    ):
        assert head.logits(rows).logits.tolist() == logits_of(rows, matrix)

    def fails(done, total):
        raise OSError("a bug of the engine")

    with pytest.raises(OSError, match="a bug of the engine"):
        Weights.load(tmp_path, progress=fails)
    with pytest.raises(lmhead.FileError, match="nowhere"):
        Weights.load(tmp_path / "nowhere")


def test_weights_in_place_are_kept_and_released(matrix, rows):
    class Owned(array.array):
        pass

    owned = Owned("f", matrix.tobytes())
    seen = weakref.ref(owned)
    weights = Weights.wrap(lmhead.view(owned, "f32", (VOCAB, HIDDEN)))
    head = Head(weights)
    weights.close()
    before = head.logits(rows).logits.tolist()
    owned[0] += 1.0  # in place: the head sees it
    assert head.logits(rows).logits.tolist() != before
    del owned
    gc.collect()
    assert seen() is not None and head.argmax(rows).ids.tolist()
    head.close()
    gc.collect()
    assert seen() is None and not _setup._borrowed


# ---- handles ----


def test_handles_close_in_any_order(matrix, rows):
    backend, weights = lmhead.Backend(threads=1), Weights.wrap(matrix)
    head = Head(weights, backend=backend)
    backend.close()
    weights.close()
    assert head.argmax(rows).ids.tolist()
    head.close()
    head.close()
    with pytest.raises(lmhead.ArgumentError, match="head: wanted one that is open, got one that was closed"):
        head.argmax(rows)


def test_plan_and_prepare(head):
    needs = head.plan(Request.topk(3), 5)
    assert (needs.first_row, needs.rows, needs.capturable) == (0, 5, False)
    head.prepare(Request.argmax(), Request.topk(3), rows=5)
    head.async_status()
    head.release_memory()
    assert head.flight_recorder()["steps"]


def test_a_forked_process_gets_a_named_error(tmp_path):
    program = """
import array, os, sys
import lmhead
matrix = lmhead.view(array.array("f", range(800)), "f32", (100, 8))
head = lmhead.Head(lmhead.Weights.wrap(matrix))
row = lmhead.view(array.array("f", range(8)), "f32", (1, 8))
head.argmax(row)
if (child := os.fork()) == 0:
    try:
        head.argmax(row)
    except lmhead.ArgumentError as error:
        print(error, flush=True)
    # A backend of its own works.
    print(lmhead.Head(lmhead.Weights.wrap(matrix)).argmax(row).ids.tolist(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(head.argmax(row).ids.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    error, own, parents = done.stdout.splitlines()
    assert "from which it was forked" in error and "spawn" in error
    assert own == parents == "[99]"


# ---- groups ----


def uneven(member):
    return floats([2, 0, 3][member], HIDDEN, seed=10 + member) if member != 1 else None


def test_threads_share_a_head(matrix):
    exchanges = lmhead.Exchange.local(3)

    def run(member):
        with member_head(matrix, member, 3, exchanges[member], timeout=30) as head:
            head.prepare(Request.topk(4), rows=3)
            return [head.topk(uneven(member), 4, counts=counts) for counts in EVERY_MODE]

    for member, answers in enumerate(as_threads(3, run)):
        assert isinstance(answers, list), answers
        for answer in answers:
            rows = uneven(member)
            want = [] if rows is None else [best(logits, 4) for logits in logits_of(rows, matrix)]
            assert answer.ids.tolist() == want


def test_the_librarys_errors_name_ranks(matrix):
    exchanges = lmhead.Exchange.local(2)

    def run(member):
        with member_head(matrix, member, 2, exchanges[member], timeout=30) as head:
            rows = floats(1, HIDDEN, 3)
            head.argmax(rows)
            try:
                head.topk(rows, 2) if member == 1 else head.argmax(rows)
            except lmhead.Error as error:
                with pytest.raises(lmhead.PoisonedError):
                    head.argmax(rows)
                head.rebuild()
                head.argmax(rows)
                return error

    for error in as_threads(2, run):
        assert isinstance(error, lmhead.StepMismatchError), error
        assert error.name == "STEP_MISMATCH" and error.ranks == [0, 1] or error.ranks == [1], error.ranks
        assert "argmax" in str(error) and "topk" in str(error)


def test_a_step_is_aborted_from_another_thread(matrix):
    exchanges = lmhead.Exchange.local(2)

    def run(member):
        with member_head(matrix, member, 2, exchanges[member], timeout=60) as head:
            if member == 1:
                time.sleep(0.3)
                head.abort("the engine shuts down")
                time.sleep(0.3)
                return None
            return head.argmax(floats(1, HIDDEN, 3))

    began = time.monotonic()
    error, _ = as_threads(2, run)
    assert isinstance(error, lmhead.Error) and "the engine shuts down" in str(error), error
    assert time.monotonic() - began < 30


# ---- a transport in Python ----


class Mailboxes(lmhead.Transport):
    """Members are threads; each pair has a queue for what one sends to the other."""

    def __init__(self, me, boxes, condition):
        self.me, self.boxes, self.condition = me, boxes, condition
        self.fails = None
        self.released = 0

    def all_to_all(self, call, send, recv):
        if self.fails is not None:
            fails, self.fails = self.fails, None
            raise fails
        channel = (call.head, call.instance, call.epoch)
        until = time.monotonic() + call.left_us / 1e6
        with self.condition:
            for member, piece in enumerate(send):
                assert piece.readonly or not piece.nbytes
                self.boxes.setdefault((*channel, self.me, member), []).append(bytes(piece))
            self.condition.notify_all()
            for member, piece in enumerate(recv):
                box = self.boxes.setdefault((*channel, member, self.me), [])
                while not box:
                    notice = self.boxes.get(("notice", *channel))
                    if notice and call.step >= notice[0]:
                        raise lmhead.Fault.aborted(notice[1], notice[2])
                    if not self.condition.wait(max(0.0, until - time.monotonic())) and not box:
                        raise lmhead.Fault.timeout(member)
                piece[:] = box.pop(0)

    def notify_abort(self, call, notice):
        with self.condition:
            self.boxes[("notice", call.head, call.instance, call.epoch)] = (call.step, self.me, notice)
            self.condition.notify_all()

    def release(self):
        self.released += 1


def mailboxes(n):
    import threading

    boxes, condition = {}, threading.Condition()
    return [Mailboxes(me, boxes, condition) for me in range(n)]


def test_a_transport_in_python(matrix):
    transports = mailboxes(3)

    def run(member):
        with lmhead.Exchange.callbacks(transports[member], 3, member) as exchange:
            head = member_head(matrix, member, 3, exchange, timeout=30)
        with head:
            return [head.topk(uneven(member), 4, counts=counts).ids.tolist() for counts in EVERY_MODE]

    for member, ids in enumerate(as_threads(3, run)):
        rows = uneven(member)
        want = [] if rows is None else [best(logits, 4) for logits in logits_of(rows, matrix)]
        assert ids == [want] * len(EVERY_MODE)
    assert [transport.released for transport in transports] == [1, 1, 1]
    assert not _exchange._transports


@pytest.mark.parametrize(
    "fails, kind, words, cause",
    [
        (OSError("a bug of the engine"), lmhead.ExchangeError, "OSError: a bug of the engine", OSError),
        (lmhead.Fault.broken("the cable"), lmhead.ExchangeError, "the cable", None),
        (lmhead.Fault.lost(7), lmhead.ExchangeError, "members [7], where there are members 0 to 1", None),
        (lmhead.Fault.lost(1), lmhead.RankLostError, "ranks [1] have left", None),
        (lmhead.Fault.timeout(1), lmhead.TimeoutError, "did not come", None),
        # The library continues with what was delivered: here not the other member's header.
        (lmhead.Fault.length({1: 3}), lmhead.StepMismatchError, "disagree", None),
        (lmhead.Fault.aborted(1, "gave up"), lmhead.StepMismatchError, "gave up", None),
        (lmhead.Fault.other_call(1, "elsewhere"), lmhead.StepMismatchError, "disagree", None),
    ],
)
def test_faults_of_a_transport_are_told(matrix, fails, kind, words, cause):
    transports = mailboxes(2)

    def run(member):
        with lmhead.Exchange.callbacks(transports[member], 2, member) as exchange:
            head = member_head(matrix, member, 2, exchange, timeout=5)
        with head:
            rows = floats(1, HIDDEN, 3)
            head.argmax(rows)
            if member == 0:
                transports[0].fails = fails
            return head.argmax(rows)

    error, other = as_threads(2, run)
    assert isinstance(error, kind) and words in str(error), error
    assert (error.__cause__ is None) if cause is None else isinstance(error.__cause__, cause)
    # The other member is notified at once, before its deadline.
    assert isinstance(other, lmhead.Error), other


def test_nccl_wants_a_device():
    with lmhead.Backend(threads=1) as backend, pytest.raises(lmhead.ArgumentError, match="device"):
        lmhead.Exchange.nccl(backend, lmhead.Exchange.local(2)[0])


def test_an_interrupt_in_a_callback_is_not_lost(matrix):
    transports = mailboxes(2)

    def run(member):
        with lmhead.Exchange.callbacks(transports[member], 2, member) as exchange:
            head = member_head(matrix, member, 2, exchange, timeout=5)
        with head:
            if member == 0:
                transports[0].fails = KeyboardInterrupt()
            return head.argmax(floats(1, HIDDEN, 3))

    interrupted, other = as_threads(2, run)
    assert isinstance(interrupted, KeyboardInterrupt) and isinstance(other, lmhead.Error)


@pytest.mark.parametrize("at", ["create", "step", "close"])
def test_an_interrupt_in_a_callback_without_a_status_is_not_lost(matrix, at):
    """`note` and `leave` cannot fail, so the call succeeds. Its caller gets the interrupt nevertheless."""
    transports, rows = mailboxes(2), floats(1, HIDDEN, 3)
    interrupts = []

    class Interrupted(type(transports[0])):
        def note(self, call):
            if interrupts:
                raise interrupts.pop()

        def leave(self, head, instance):
            self.note(None)

    transports[0].__class__ = Interrupted

    def run(member):
        def interrupt(now):
            if member == 0 and at == now:
                interrupts.append(KeyboardInterrupt())

        with lmhead.Exchange.callbacks(transports[member], 2, member) as exchange:
            interrupt("create")
            head = member_head(matrix, member, 2, exchange, timeout=5)
        interrupt("step")
        head.argmax(rows)
        interrupt("close")
        head.close()
        return "done"

    interrupted, other = as_threads(2, run)
    assert isinstance(interrupted, KeyboardInterrupt), interrupted
    # If the interrupted member is gone before the step, the other's step fails.
    assert isinstance(other, lmhead.Error) if at == "create" else other == "done", other
    assert not interrupts


def test_an_ordinary_exception_in_note_does_not_fail_a_step(matrix):
    transports = mailboxes(2)

    class Clumsy(type(transports[0])):
        def note(self, call):
            raise ValueError("a bug of the engine")

    transports[0].__class__ = Clumsy

    def run(member):
        with lmhead.Exchange.callbacks(transports[member], 2, member) as exchange:
            head = member_head(matrix, member, 2, exchange, timeout=5)
        with head:
            return head.argmax(floats(1, HIDDEN, 3)).ids.tolist()

    first, second = as_threads(2, run)
    assert first == second and isinstance(first, list), (first, second)


@pytest.mark.parametrize("kind", ["weights", "backend", "exchange", "head"])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_handles_are_not_copied(matrix, kind, how):
    """A second owner of the same handle would free what the first one uses."""
    with lmhead.Backend(threads=1) as backend, lmhead.Weights.wrap(matrix) as weights:
        with lmhead.Exchange.local(1)[0] as exchange, lmhead.Head(weights, backend=backend) as head:
            handle = {"weights": weights, "backend": backend, "exchange": exchange, "head": head}[kind]
            with pytest.raises(lmhead.ArgumentError, match=f"^{kind}: wanted one owner"):
                how(handle)
            assert head.argmax(floats(2, HIDDEN, 3)).ids.tolist()


def test_a_transport_without_a_reset_cannot_rebuild(matrix):
    transports = mailboxes(2)

    def run(member):
        with lmhead.Exchange.callbacks(transports[member], 2, member) as exchange:
            head = member_head(matrix, member, 2, exchange, timeout=5)
        with head:
            transports[member].fails = OSError("both")
            with pytest.raises(lmhead.Error):
                head.argmax(floats(1, HIDDEN, 3))
            head.rebuild()

    for error in as_threads(2, run):
        assert isinstance(error, lmhead.ExchangeError) and "cannot be brought back" in str(error), error


# ---- bad input ----

ROW = floats(1, HIDDEN, 3)
BAD = {
    "a list of rows": (lambda head: head.argmax([[1.0] * HIDDEN]), lmhead.ArgumentError, "a list"),
    "one dimension": (
        lambda head: head.argmax(array.array("f", [1.0] * HIDDEN)),
        lmhead.ShapeError,
        r"\[rows, columns\]",
    ),
    "f64": (
        lambda head: head.argmax(
            memoryview(array.array("d", [1.0] * HIDDEN)).cast("B").cast("d", (1, HIDDEN))
        ),
        lmhead.Error,
        "hidden",
    ),
    "another hidden size": (lambda head: head.argmax(floats(1, 3, 0)), lmhead.ShapeError, "3"),
    "another dtype": (
        lambda head: head.argmax(lmhead.view(bytes(2 * HIDDEN), "f16", (1, HIDDEN))),
        lmhead.DtypeError,
        "f16",
    ),
    "k of 0": (lambda head: head.topk(ROW, 0), lmhead.Error, "k"),
    "a dtype of logits": (lambda head: head.logits(ROW, "f8"), lmhead.DtypeError, "f32, f16, bf16"),
    "a target beyond": (lambda head: head.logprobs(ROW, [VOCAB]), lmhead.Error, "100"),
    "targets that miss": (lambda head: head.logprobs(ROW, [1, 2]), lmhead.ShapeError, "1 numbers"),
    "targets of argmax": (lambda head: head.argmax(ROW, targets=[1]), lmhead.RequestError, "targets"),
    "counts of others": (
        lambda head: head.argmax(ROW, counts=[1, 1]),
        lmhead.ShapeError,
        "one for each replica",
    ),
    "counts at odds": (lambda head: head.argmax(ROW, counts=[2]), lmhead.Error, "2"),
    "a negative capacity": (
        lambda head: head.argmax(ROW, counts=RowCounts.capacity(-1)),
        lmhead.Error,
        "capacity",
    ),
    "a temperature for each": (
        lambda head: head.sample(ROW, Sampling(temperature=[1.0, 1.0])),
        lmhead.ShapeError,
        "1 numbers",
    ),
    "a text as a seed": (lambda head: head.sample(ROW, Sampling(seed=["x"])), lmhead.DtypeError, "seed"),
    "a mask of another width": (
        lambda head: head.argmax(ROW, adjustments=Adjustments(allowed=lmhead.view(bytes(4), "i32", (1, 1)))),
        lmhead.ShapeError,
        r"\[1, 4\]",
    ),
    "an unknown backend": (lambda _: lmhead.Backend("tpu"), lmhead.ConfigError, "tpu"),
    "an unknown quantization": (
        lambda _: Weights.wrap(floats(4, 4, 0), quantization="w4"),
        lmhead.ConfigError,
        "w4",
    ),
    "a timeout of 0": (
        lambda _: Head(Weights.wrap(floats(4, 4, 0)), timeout=0),
        lmhead.ConfigError,
        "timeout",
    ),
    "a long name": (lambda _: Head(Weights.wrap(floats(4, 4, 0)), name="x" * 40), lmhead.ConfigError, "31"),
    "an exchange without a group": (
        lambda _: Head(Weights.wrap(floats(4, 4, 0)), exchange=lmhead.Exchange.local(1)[0]),
        lmhead.ArgumentError,
        "group",
    ),
    "bytes that do not fit": (lambda _: lmhead.view(bytes(7), "f32", (2, 1)), lmhead.ShapeError, "8 bytes"),
    "ids beyond the vocabulary": (
        lambda _: Weights.wrap(floats(4, 4, 0), vocab_size=4, first=2),
        lmhead.Error,
        "4",
    ),
    "a setting of another name": (
        lambda _: Head(Weights.wrap(floats(4, 4, 0)), softcapp=1.0),
        TypeError,
        "softcapp",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(head, name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call(head)
    # A head without a group stays usable.
    assert head.argmax(ROW).row_status.tolist() == [0]
