"""A case -> its expected tensors."""

from fractions import Fraction

import numpy as np

from case import Case
from epilogue import Row, epilogue_row, logsumexp, order, to_f64
from formats import Tensor
from raw_logits import NAN, prepare_weights, raw_float, raw_w8a8
from separation import check_exact, separated


def f64s(rows: list[list[float]], width: int) -> Tensor:
    return Tensor("F64", np.array(rows, dtype=np.float64).reshape(len(rows), width))


def solve(case: Case) -> dict[str, Tensor] | None:
    """The expected tensors, or None when an answer depends on rounding."""
    weights = prepare_weights(case)
    raw = (raw_w8a8 if case.quantization == "w8a8" else raw_float)(case, weights)
    check_exact(case, raw)
    bias = [Fraction(0)] * case.vocab
    if case.bias is not None:
        bias = [Fraction(float(b)) for b in case.bias.data]
    rows = [epilogue_row(case, values, bias) for values in raw.values]
    if not separated(case, raw, bias, rows):
        return None
    expected = answers(case, rows)
    expected["expected.bound"] = f64s([[to_f64(b) for b in row] for row in raw.bound], case.vocab)
    if raw.f32 is not None:
        expected["expected.raw_logits"] = Tensor("F32", raw.f32)
        expected["expected.activation_int8"] = Tensor("I8", raw.activation_q)
        expected["expected.activation_scale"] = Tensor("F32", raw.activation_scale)
    if weights.q is not None and case.weight.dtype != "I8":
        expected["expected.weight_int8"] = Tensor("I8", weights.q)
        expected["expected.weight_scale"] = Tensor("F32", weights.scales)
    return expected


def answers(case: Case, rows: list[Row]) -> dict[str, Tensor]:
    status, best, ids, values, sums = [], [], [], [], []
    for row in rows:
        good = row.finals is not None
        top = order(row)[: case.k] if good else [-1] * case.k
        status.append(0 if good else 1)
        best.append(top[0])
        ids.append(top)
        values.append([row.logits[v] for v in top] if good else [NAN] * case.k)
        sums.append(logsumexp([f.value for f in row.finals]) if good else NAN)
    n = len(rows)
    return {
        "expected.row_status": Tensor("U8", np.array(status, dtype=np.uint8)),
        "expected.argmax": Tensor("I64", np.array(best, dtype=np.int64)),
        "expected.topk_ids": Tensor("I64", np.array(ids, dtype=np.int64).reshape(n, case.k)),
        "expected.topk_values": f64s(values, case.k),
        "expected.logsumexp": Tensor("F64", np.array(sums, dtype=np.float64)),
        "expected.logits": f64s([row.logits for row in rows], case.vocab),
    }
