"""One rank of `check.py`: `rank.py PORT RANK SIZE SCENARIO`.

Each line of output is an event, as JSON."""

import json
import os
import sys
import time
from datetime import timedelta

import engine
import lmhead
import numpy as np
import torch
import torch.distributed as dist
from engine import ARGMAX, REQUESTS, TOP_7
from lmhead import RowCounts
from lmhead.torch import ProcessGroupExchange

VOCAB, HIDDEN = 1000, 48
TIMEOUT_MS, CREATE_TIMEOUT_MS = 1500, 20_000
SEED = 20_261_129


class Rank:
    def __init__(self, me, size, tp):
        self.me, self.size, self.tp = me, size, tp
        self.random = np.random.default_rng(SEED)  # the same on all ranks
        self.matrix = self.random.standard_normal((VOCAB, HIDDEN), dtype=np.float32)
        self.exchange = ProcessGroupExchange(patience=60)

    def head(self, create_timeout_ms=CREATE_TIMEOUT_MS):
        group = lmhead.Group(list(range(self.size)), self.me, self.tp)
        timeouts = {"timeout": TIMEOUT_MS / 1e3, "create_timeout": create_timeout_ms / 1e3}
        return engine.head(self.matrix, group, self.exchange, **timeouts)

    def rows(self, replica, step, count):
        return np.random.default_rng([SEED, replica, step]).standard_normal((count, HIDDEN), dtype=np.float32)

    def good_step(self, head, step=0):
        counts = [2, 0, 3, 1][: self.size]
        return ARGMAX.run(head, self.rows(self.me, step, counts[self.me]), counts)

    def timed(self, what, call):
        """Makes a call and prints how it ended."""
        began = time.monotonic()
        event = {"event": what, "name": "OK", "text": "", "ranks": []}
        try:
            call()
        except lmhead.Error as error:
            event |= {"name": error.name, "text": error.text, "ranks": error.ranks}
        say(ms=round(1e3 * (time.monotonic() - began), 1), **event)
        return event["name"]

    def again(self, head, want):
        """Rebuilds the head, trying as often as necessary, and compares its answer with the one before."""
        began = time.monotonic()
        while True:
            try:
                head.rebuild()
                break
            except lmhead.Error as error:
                if time.monotonic() - began > CREATE_TIMEOUT_MS / 1e3:
                    raise
                say(event="another try to rebuild", text=error.text)
        same(self.good_step(head), want, "after the rebuilding")
        say(event="rebuilt", ms=round(1e3 * (time.monotonic() - began), 1))


def say(**event):
    """Prints an event; `at` is the machine's clock, which all processes share."""
    print(json.dumps({"at": time.monotonic(), **event}), flush=True)


def same(got, want, what):
    """Compares all arrays bit for bit."""
    for name in want:
        if got[name].tobytes() != want[name].tobytes():
            raise AssertionError(f"{what}: {name}: got {got[name]}, want {want[name]}")


def steps(rank):
    """Every request in every mode, uneven and idle ranks; rows are compared with those of a whole head."""
    head, alone = rank.head(), engine.head(rank.matrix)
    replicas, replica = rank.size // rank.tp, rank.me // rank.tp
    done, times = 0, []
    for round_ in range(3):
        for request in REQUESTS:
            counts = [int(count) for count in rank.random.integers(0, 5, replicas)]
            counts[int(rank.random.integers(replicas))] = 0
            rows = rank.rows(replica, round_, counts[replica])
            want = request.run(alone, rows)
            for mode in (RowCounts.exact(counts), RowCounts.capacity(5), RowCounts.discover()):
                began = time.monotonic()
                got = request.run(head, rows, mode)
                times.append(1e3 * (time.monotonic() - began))
                same(got, want, f"seed {SEED}, round {round_}, {request.name}, {mode}, rows {counts}")
                done += 1
    say(event="steps", done=done, median_ms=round(sorted(times)[len(times) // 2], 2))
    head.close()
    alone.close()


def faults(rank):
    """Rank 1 breaks the contract in ways that it survives; after each the group is rebuilt."""
    head = rank.head()
    want = rank.good_step(head)
    culprit = rank.me == 1

    def another_request():
        TOP_7.run(head, rank.rows(1, 0, 0), [2, 0, 3, 1])

    def too_many_rows():
        ARGMAX.run(head, rank.rows(rank.me, 0, 3 if culprit else 1), RowCounts.capacity(2))

    def late():
        if culprit:
            time.sleep(1.5 * TIMEOUT_MS / 1e3)
        rank.good_step(head)

    def other_order():
        # Another collective of the engine, which rank 1 makes before the step and the others after it.
        def meet():
            dist.all_reduce(torch.zeros(1))

        if culprit:
            meet()
        try:
            rank.good_step(head)
        finally:
            if not culprit:
                meet()

    def exception():
        if culprit:
            transport = rank.exchange.transport
            wait = transport.wait

            def fails(*_, **__):
                transport.wait = wait
                raise OSError("a bug of the engine")

            transport.wait = fails
        rank.good_step(head)

    for what, call in (
        ("another request", another_request if culprit else lambda: rank.good_step(head)),
        ("too many rows", too_many_rows),
        ("late", late),
        ("another order", other_order),
        ("exception", exception),
    ):
        rank.timed(what, call)
        rank.again(head, want)
    head.close()


def creation(rank):
    """Rank 1 comes after the others have waited for it in two creations."""
    if rank.me == 1:
        time.sleep(2.5)
    else:
        for _ in range(2):
            rank.timed("creation in vain", lambda: rank.head(1000))
    head = rank.head()
    rank.good_step(head)
    say(event="created")
    head.close()


def waits(rank, pause=0.1):
    """Steps until one fails. Rank 1 pauses between steps, so that a signal reaches it there."""
    head = rank.head()
    want = rank.good_step(head)
    say(event="ready")
    while True:
        if rank.me == 1 and pause:
            time.sleep(pause)
        began = time.monotonic()
        try:
            rank.good_step(head)
        except lmhead.Error as error:
            ms = round(1e3 * (time.monotonic() - began), 1)
            say(event="failed", name=error.name, text=error.text, ranks=error.ranks, ms=ms)
            is_lost = error.name == "RANK_LOST"
            break
    if not is_lost:
        rank.again(head, want)
    head.close()


def runs(rank):
    """As `waits` without a pause, so that a signal reaches rank 1 within a step."""
    waits(rank, pause=None)


def main():
    port, me, size, scenario = sys.argv[1:]
    store = dist.TCPStore("127.0.0.1", int(port), None, False, timedelta(seconds=60))
    store = dist.PrefixStore(scenario, store)
    dist.init_process_group("gloo", store=store, rank=int(me), world_size=int(size))
    run, tp = SCENARIOS[scenario]
    run(Rank(int(me), int(size), tp))
    say(event="end")


# name: (function, size of the tensor-parallel groups)
SCENARIOS = {
    "steps": (steps, 1),
    "steps tp": (steps, 2),
    "faults": (faults, 1),
    "creation": (creation, 1),
    "waits": (waits, 1),
    "runs": (runs, 1),
}


if __name__ == "__main__":
    try:
        main()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    # Skips the interpreter's shutdown: gloo's threads may wait for peers that are gone.
    os._exit(code)
