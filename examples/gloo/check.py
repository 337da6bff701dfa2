"""Four ranks as processes that share an LM head over torch.distributed's gloo.

`check.py [SCENARIO...]`; the package lmhead is installed, or on PYTHONPATH with LMHEAD_LIBRARY

    steps      every request and mode, uneven and idle ranks: each row has the bits of a whole, unsharded head
    steps tp   the same for two replicas of two tensor-parallel ranks
    faults     another request, too many rows, a late rank, another order of collectives, an exception
    creation   a rank that comes after the others have tried twice to make the head
    killed     SIGKILL, before a step and somewhere in one
    stopped    SIGSTOP, then SIGCONT

After a fault every rank gets a named error within its deadline plus a second. The surviving ranks rebuild the
head and answer as before.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import lmhead
import torch
import torch.distributed as dist
from rank import TIMEOUT_MS

SIZE, CULPRIT = 4, 1
OTHERS = [rank for rank in range(SIZE) if rank != CULPRIT]
PATIENCE = 90  # seconds for one scenario
AT_ONCE_MS = 1000  # limit for errors that come before the deadline, on a busy machine
BY_DEADLINE_MS = TIMEOUT_MS + 1000


class Ranks:
    """The processes of a scenario and their output."""

    def __init__(self, scenario):
        # The store's server is not a rank, so that it outlives any rank that is killed.
        self.store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
        self.folder = tempfile.TemporaryDirectory()
        self.began = time.monotonic()
        program = str(Path(__file__).with_name("rank.py"))
        self.processes = []
        for rank in range(SIZE):
            command = [sys.executable, program, str(self.store.port), str(rank), str(SIZE), scenario]
            with open(self.said(rank), "w") as said:
                self.processes.append(subprocess.Popen(command, stdout=said, stderr=said))

    def said(self, rank):
        return os.path.join(self.folder.name, str(rank))

    def events(self, rank):
        with open(self.said(rank)) as said:
            return [json.loads(line) for line in said if line.startswith("{") and line.endswith("}\n")]

    def await_(self, rank, event):
        while not any(said["event"] == event for said in self.events(rank)):
            self.check_time(rank, event)
            assert self.processes[rank].poll() is None, (
                f"rank {rank} ended before `{event}`: {self.all(rank)}"
            )
            time.sleep(0.01)

    def check_time(self, rank, what):
        late = time.monotonic() - self.began > PATIENCE
        assert not late, f"rank {rank} did not come to `{what}`: {self.all(rank)}"

    def all(self, rank):
        return Path(self.said(rank)).read_text()

    def end(self, but=()):
        """The events of each rank except those killed; all others must have succeeded."""
        for rank, process in enumerate(self.processes):
            while process.poll() is None:
                self.check_time(rank, "the end")
                time.sleep(0.01)
            assert process.returncode == 0 or rank in but, f"rank {rank}: {self.all(rank)}"
        return [self.events(rank) for rank in range(SIZE)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def check(rank, event, name, words, ranks, most_ms, teller=False):
    told = f"rank {rank}: {event}\nwanted {name} with `{words}`, naming {ranks}, within {most_ms} ms"
    # A rank that a peer notifies before the others' headers have come names that peer, whose text names the
    # ranks at fault.
    by = [[peer] for peer in range(SIZE) if teller and f"aborted: ranks [{peer}] say" in event["text"]]
    assert event["name"] == name and words in event["text"] and event["ranks"] in [ranks, *by], told
    assert event["ms"] <= most_ms, told
    print(f"  {event['event']}, rank {rank}: {event['name']} after {event['ms']} ms: {event['text'][:110]}")


def steps(scenario):
    with Ranks(scenario) as ranks:
        for rank, events in enumerate(ranks.end()):
            (event,) = [event for event in events if event["event"] == "steps"]
            assert event["done"] == 72, event
            print(
                f"  rank {rank}: {event['done']} steps, bits of a whole head, median {event['median_ms']} ms"
            )


def faults():
    missing = f"ranks [{CULPRIT}] did not come within {TIMEOUT_MS / 1e3}s"
    refused = "wanted at most 2 rows, got 3"
    disagree = "request: ranks [0, 2, 3] say argmax, ranks [1] say topk:7"
    exception = "the callback `all_to_all` failed: OSError: a bug of the engine"
    # fault: (status, words, ranks named) on rank 1, the same on the others, and their longest time
    table = {
        "another request": (("STEP_MISMATCH", disagree, [1]), ("STEP_MISMATCH", disagree, [1]), AT_ONCE_MS),
        "too many rows": (("SHAPE", refused, []), ("STEP_MISMATCH", refused, [1]), AT_ONCE_MS),
        "late": (("TIMEOUT", missing, [1]), ("TIMEOUT", missing, [1]), BY_DEADLINE_MS),
        "another order": (("TIMEOUT", missing, [1]), ("TIMEOUT", missing, [1]), BY_DEADLINE_MS),
        "exception": (("EXCHANGE", exception, []), ("STEP_MISMATCH", exception, [1]), AT_ONCE_MS),
    }
    with Ranks("faults") as ranks:
        for rank, events in enumerate(ranks.end()):
            assert sum(event["event"] == "rebuilt" for event in events) == len(table), events
            for what, (there, others, most_ms) in table.items():
                (event,) = [event for event in events if event["event"] == what]
                # Its time includes the others' deadline; it gets its error as soon as it comes.
                own = 2 * BY_DEADLINE_MS if what == "late" else most_ms
                wanted, most_ms = (there, own) if rank == CULPRIT else (others, most_ms)
                check(rank, event, *wanted, most_ms, teller=what == "another request")


def creation():
    with Ranks("creation") as ranks:
        for rank, events in enumerate(ranks.end()):
            assert any(event["event"] == "created" for event in events), events
            tries = [event for event in events if event["event"] == "creation in vain"]
            assert len(tries) == (0 if rank == CULPRIT else 2), events
            for event in tries:
                check(rank, event, "TIMEOUT", f"ranks [{CULPRIT}] did not come within 1s", [CULPRIT], 2000)


def killed(scenario):
    with Ranks(scenario) as ranks:
        for rank in range(SIZE):
            ranks.await_(rank, "ready")
        time.sleep(0.3)
        at = time.monotonic()
        ranks.processes[CULPRIT].kill()
        for rank, events in enumerate(ranks.end(but=[CULPRIT])):
            if rank != CULPRIT:
                (event,) = [event for event in events if event["event"] == "failed"]
                event["ms"] = round(1e3 * (event["at"] - at), 1)
                check(
                    rank, event, "RANK_LOST", f"ranks [{CULPRIT}] have left the group", [CULPRIT], AT_ONCE_MS
                )


def stopped():
    with Ranks("waits") as ranks:
        for rank in range(SIZE):
            ranks.await_(rank, "ready")
        time.sleep(0.3)
        ranks.processes[CULPRIT].send_signal(signal.SIGSTOP)
        for rank in OTHERS:
            ranks.await_(rank, "failed")
        ranks.processes[CULPRIT].send_signal(signal.SIGCONT)
        for rank, events in enumerate(ranks.end()):
            (event,) = [event for event in events if event["event"] == "failed"]
            assert events[-2]["event"] == "rebuilt", events
            # The stopped rank's clock went on: it comes late, and gets its error at once.
            most_ms = PATIENCE * 1e3 if rank == CULPRIT else BY_DEADLINE_MS
            check(rank, event, "TIMEOUT", f"ranks [{CULPRIT}] did not come", [CULPRIT], most_ms)


def main():
    print(f"torch {torch.__version__}, lmhead {lmhead.__version__}")
    scenarios = {
        "steps": lambda: steps("steps"),
        "steps tp": lambda: steps("steps tp"),
        "faults": lambda: faults(),
        "creation": lambda: creation(),
        "killed before a step": lambda: killed("waits"),
        "killed in a step": lambda: killed("runs"),
        "stopped": lambda: stopped(),
    }
    wanted = sys.argv[1:]
    chosen = [name for name in scenarios if not wanted or any(name.startswith(word) for word in wanted)]
    if not chosen:
        sys.exit(f"wanted some of {', '.join(scenarios)}; got {' '.join(wanted)}")
    for name in chosen:
        began = time.monotonic()
        print(name, flush=True)
        scenarios[name]()
        print(f"  {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
