"""The overhead of a call: with a head of 64 ids by 16 and one row there is almost no arithmetic."""

import ctypes
import time
from array import array

import lmhead
from lmhead import Answer, Request, _library, _sys


def least_us(call, times=200, rounds=25):
    """The smallest mean over `times` calls of all rounds, because other programs only add to it."""
    call()
    seen = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            call()
        seen.append((time.perf_counter() - began) / times * 1e6)
    return min(seen)


def main():
    matrix = lmhead.view(array("f", range(64 * 16)), "f32", (64, 16))
    row = memoryview(array("f", range(16))).cast("B").cast("f", (1, 16))
    head = lmhead.Head(lmhead.Weights.wrap(matrix), backend=lmhead.Backend(threads=1))
    head.prepare(Request.argmax(), rows=1)

    # The same step by the C function alone, its structs made once.
    step, _ = head._contract(Request.argmax(), 1, None, False, None)
    step.hidden = lmhead.view(row).matrix("hidden")
    ids, row_status = (ctypes.c_int64 * 1)(), (ctypes.c_uint8 * 1)()
    answer = _sys.lmhead_answer(ids=ctypes.addressof(ids), row_status=ctypes.addressof(row_status))
    run, step_pointer, answer_pointer = _library.lib.lmhead_run, ctypes.byref(step), ctypes.byref(answer)
    handle = head.handle

    costs = {
        "a function that does nothing (lmhead_abi)": _library.lib.lmhead_abi,
        "lmhead_run by ctypes, structs made before": lambda: run(handle, step_pointer, answer_pointer),
        "Head.argmax of a memoryview": lambda: head.argmax(row),
    }
    try:
        import numpy

        array_ = numpy.array(row)
        costs["Head.argmax of a NumPy array"] = lambda: head.argmax(array_)
    except ImportError:
        pass
    try:
        import torch

        tensor = torch.tensor(row.tolist())
        out = Answer(ids=torch.empty(1, dtype=torch.int64), row_status=torch.empty(1, dtype=torch.uint8))
        costs["Head.argmax of a tensor"] = lambda: head.argmax(tensor)
        costs["Head.argmax of a tensor, into given tensors"] = lambda: head.argmax(tensor, out=out)
        module = __import__("lmhead.torch").torch.LmHead(
            torch.tensor(matrix_rows(matrix)), backend=head._backend
        )
        costs["lmhead.torch.LmHead of a tensor"] = torch.inference_mode()(lambda: module(tensor))
    except ImportError:
        pass
    for name, call in costs.items():
        print(f"{least_us(call):8.2f} us  {name}", flush=True)


def matrix_rows(matrix):
    flat = list((ctypes.c_float * (64 * 16)).from_address(matrix.address))
    return [flat[i : i + 16] for i in range(0, len(flat), 16)]


if __name__ == "__main__":
    main()
