"""NumPy's arrays in and out, without copies."""

import lmhead
import pytest
from conftest import HIDDEN, VOCAB, logits_of
from lmhead import Adjustments, Answer, Sampling

numpy = pytest.importorskip("numpy")


def test_answers_are_numpys(head, matrix, rows):
    hidden = numpy.array(rows)
    top = head.topk(hidden, 3)
    for name, dtype, shape in (
        ("row_status", "uint8", (3,)),
        ("ids", "int64", (3, 3)),
        ("values", "float32", (3, 3)),
        ("logsumexp", "float32", (3,)),
    ):
        array = getattr(top, name)
        assert isinstance(array, numpy.ndarray) and (array.dtype, array.shape) == (dtype, shape), name
    assert numpy.array_equal(head.logits(hidden).logits, logits_of(rows, matrix))
    assert head.logits(hidden, "f16").logits.dtype == "float16"
    # NumPy has no bf16: its bits, which are the upper half of an f32's.
    bits = head.logits(hidden, "bf16").logits
    assert bits.dtype == "uint16"
    assert numpy.array_equal((bits.astype("uint32") << 16).view("float32"), head.logits(hidden).logits)


def test_rows_in_place(head, rows):
    want = head.argmax(numpy.array(rows)).ids
    wide = numpy.full((3, 3 * HIDDEN), numpy.nan, "float32")
    wide[:, :HIDDEN] = rows
    gaps = wide[:, :HIDDEN]
    assert numpy.array_equal(head.argmax(gaps).ids, want)
    assert numpy.array_equal(head.argmax(numpy.array(rows)[::1][1:]).ids, want[1:])
    readonly = numpy.array(rows)
    readonly.flags.writeable = False
    assert numpy.array_equal(head.argmax(readonly).ids, want)
    for name, wrong in {
        "columns": wide[:, ::3],
        "transposed": numpy.asfortranarray(rows),
        "upwards": gaps[::-1],
    }.items():
        with pytest.raises(lmhead.ShapeError, match="contiguous"):
            head.argmax(wrong)
            pytest.fail(name)


def test_types_that_do_not_fit(head, rows):
    with pytest.raises(lmhead.Error, match="hidden"):
        head.argmax(numpy.array(rows, "float64"))
    with pytest.raises(lmhead.Error, match="hidden"):
        head.argmax(numpy.array(rows, ">f4"))
    with pytest.raises(lmhead.DtypeError, match=r"sampling\.temperature: wanted f32, got .*64"):
        head.sample(numpy.array(rows), Sampling(temperature=numpy.ones(3)))
    with pytest.raises(lmhead.ShapeError, match=r"sampling\.temperature"):
        head.sample(numpy.array(rows), Sampling(temperature=numpy.ones((3, 1), "float32")))


def test_inputs_and_outputs_by_arrays(head, rows):
    hidden = numpy.array(rows)
    drawn = head.sample(
        hidden,
        Sampling(seed=numpy.arange(3, dtype="uint64"), temperature=numpy.full(3, 0.5, "float32")),
        indices=numpy.array([2, 1, 0], "int32"),
    )
    one = Sampling(seed=numpy.uint64(1), temperature=numpy.float32(0.5))
    assert numpy.array_equal(
        head.sample(hidden, one).ids, head.sample(hidden, Sampling(seed=1, temperature=0.5)).ids
    )
    assert numpy.array_equal(
        drawn.ids, head.sample(hidden, Sampling(seed=[0, 1, 2], temperature=0.5), indices=[2, 1, 0]).ids
    )
    allowed = numpy.zeros((3, (VOCAB + 31) // 32), "uint32")
    allowed[:, 1] = 1  # id 32
    assert head.argmax(hidden, adjustments=Adjustments(allowed=allowed)).ids.tolist() == [32] * 3
    out = Answer(logits=numpy.full((4, VOCAB), -7.0, "float32"), row_status=numpy.zeros(3, bool))
    head.logits(hidden, out=out)
    assert numpy.array_equal(out.logits[:3], head.logits(hidden).logits) and (out.logits[3] == -7).all()
    strided = numpy.zeros((3, 2), "int64")[:, 0]
    with pytest.raises(lmhead.ShapeError, match=r"out\.ids: wanted elements side by side"):
        head.argmax(hidden, out=Answer(ids=strided))


def test_no_rows(head):
    none = numpy.empty((0, HIDDEN), "float32")
    assert head.topk(none, 4).ids.shape == (0, 4)
    assert head.logits(none).logits.shape == (0, VOCAB)


def test_weights_are_used_in_place(matrix, rows):
    weights = numpy.array(matrix)
    with lmhead.Weights.wrap(weights) as wrapped, lmhead.Head(wrapped) as head:
        before = head.logits(numpy.array(rows)).logits
        weights *= 2
        assert numpy.array_equal(head.logits(numpy.array(rows)).logits, 2 * before)
    wide = numpy.zeros((VOCAB, 2 * HIDDEN), "float32")
    wide[:, :HIDDEN] = matrix
    with pytest.raises(lmhead.ArgumentError, match="without a gap"):
        lmhead.Weights.wrap(wide[:, :HIDDEN])
    with lmhead.Weights.wrap(wide[:, :HIDDEN], copy=True) as wrapped, lmhead.Head(wrapped) as head:
        assert numpy.array_equal(head.logits(numpy.array(rows)).logits, before)


def test_another_packages_bf16(matrix, rows):
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    with lmhead.Weights.wrap(numpy.array(matrix).astype(bf16)) as weights, lmhead.Head(weights) as head:
        logits = head.logits(numpy.array(rows).astype(bf16), "bf16").logits
        assert logits.dtype == bf16 and numpy.array_equal(logits.astype("float32"), logits_of(rows, matrix))
