"""torch.distributed's gloo as the transport of an LM head.

Data      One gloo group for each channel (each head has its own). A collective is one asynchronous alltoall,
          which is polled, so that a notice or the deadline ends the wait at any time. A group whose
          collective was aborted is never used again: gloo closes its connections between all members,
          survivors too.
Control   A separate gloo group for short messages: a rank's place, a step that it gives up, a reset that it
          requests. A late rank finds the data group closed without a reason; here it finds the reason. For
          each peer one thread receives and one sends, so that no function that the library calls waits for a
          peer, not even for a stopped one with a full connection.

The control group notices at once when a rank's process ends. A stopped rank is found by its place: the
library names the rank that was last seen elsewhere.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import threading
import time
import weakref
from collections import Counter, deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ._exchange import Exchange, Fault, Place, Transport, operation_name
from ._library import ConfigError, TimeoutError, refusal

MESSAGE_BYTES = 4096  # TEXT_BYTES, each of which JSON may encode as six bytes, and the numbers
TEXT_BYTES = 512
REBUILD = next(i for i in itertools.count() if operation_name(i) == "rebuilding of the head")
POLL = 50e-6  # seconds between polls of a collective
HEARSAY = 0.2  # seconds by which a reason may arrive after its effect
FOREVER = timedelta(days=1)
BYE = "bye"  # a member no longer needs the transport; the answer is the same message
GOODBYE = 1.0  # seconds to wait for the answer at the end of a process


class Channel:
    """A head's channel: its data group, and its generation (the number of resets)."""

    def __init__(self, size):
        self.generation = 0
        self.group = None
        self.notices = []  # (call, member, text)
        self.wanted = [0] * size  # the generation that each member wants
        self.ended = None  # (member, text) of a notice that ends a wait for a reset


_transports: weakref.WeakSet[GlooTransport] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """Ends the threads that wait in gloo. One that returned from gloo after Python has ended would abort the
    process: Python then ends threads, which fails inside C++ code."""
    for transport in list(_transports):
        transport.take_leave(GOODBYE)


# Number of exchanges that this process has made over each group, by the group's name.
_made: Counter[str] = Counter()


def meet(store: Any, me: int, ranks: list[int], timeout: float) -> None:
    """Returns when all members have come. Names the missing ones, which gloo would not."""
    store.set(f"here/{me}", "here")
    keys = [f"here/{member}" for member in range(len(ranks))]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = tuple(rank for rank, key in zip(ranks, keys) if not store.check([key]))
        got = f"none on {list(missing)} within {timeout} s"
        text = f"ProcessGroupExchange: wanted one on each of ranks {ranks}, got {got}; make it on all of them"
        raise TimeoutError(text, missing) from error


class ProcessGroupExchange(Exchange):
    """This rank's end of an exchange over the ranks of a torch.distributed group, by gloo and host memory.

    Members are the ranks of `group` (None: all ranks), in its order. Every rank of the group makes one, in
    the same order among all exchanges of the group. It makes gloo groups of its own, whatever the backend of
    `group`, and never uses `group` itself, so that it cannot interfere with the engine's own collectives.

    `store`: one that all ranks share, where the group's own is not to be used; it must outlive every rank, or
    a fault of the rank that serves it is a fault of all. `patience`: seconds after which gloo itself gives up
    a collective, longer than any deadline of a head. `create_timeout`: seconds that ranks wait for each other
    here.
    """

    def __init__(
        self, group: Any = None, *, store: Any = None, patience: float = 3600.0, create_timeout: float = 300.0
    ):
        super().__init__()
        group = dist.group.WORLD if group is None else group
        me = -1 if group is None else dist.get_rank(group)
        if me < 0:
            fix = "call torch.distributed.init_process_group first, and make it on the group's own ranks"
            raise refusal(ConfigError, "group", "a group that this rank is in", f"{group}", fix)
        ranks = dist.get_process_group_ranks(group)
        store = group.get_group_store() if store is None else store
        store = dist.PrefixStore(f"lmhead/{group.group_name}/{_made[group.group_name]}", store)
        _made[group.group_name] += 1
        meet(store, me, ranks, create_timeout)
        self.transport = GlooTransport(store, me, len(ranks), patience)
        self._handle = Exchange.callbacks(self.transport, len(ranks), me)._take()


class GlooTransport(Transport):
    """The transport of a `ProcessGroupExchange`."""

    def __init__(self, store: Any, rank: int, size: int, patience: float):
        self.store, self.me, self.size = store, rank, size
        self.patience = timedelta(seconds=patience)
        self.lock = threading.RLock()
        self.channels: dict[tuple[int, int], Channel] = {}
        self.places: list[Any] = [None] * size
        self.gone = [False] * size
        self.left_behind: list[Any] = []  # groups with an aborted collective, and its tensors
        self.control = self.make_group("control", FOREVER)
        self.outboxes = {peer: Outbox(self, peer) for peer in range(size) if peer != rank}
        self.threads = [outbox.thread for outbox in self.outboxes.values()]
        for peer in self.outboxes:
            thread = threading.Thread(target=self.receive, args=(peer,), daemon=True)
            self.threads.append(thread)
            thread.start()
        self.pid = os.getpid()
        _transports.add(self)

    def make_group(self, name, timeout):
        # Needs a client of its own: while one waits for a peer's key, no other thread can use it.
        store = dist.PrefixStore(name, self.store.clone())
        return dist.ProcessGroupGloo(store, self.me, self.size, timeout)

    # ---- control ----

    def receive(self, peer):
        while True:
            message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
            try:
                self.control.recv([message], peer, 0).wait()
            except RuntimeError:
                self.gone[peer] = True
                return
            said = json.loads(bytes(message.tolist()).rstrip(b"\0"))
            if said == BYE:
                self.gone[peer] = True
                # The peer's thread waits for a message of ours, and ends with this one.
                self.outboxes[peer].put(BYE)
                return
            self.take(peer, said)

    def take(self, peer, message):
        kind, head, instance, epoch, step, operation, more = message
        with self.lock:
            if kind == "note":
                self.places[peer] = (head, instance, epoch, step, operation, time.monotonic())
                return
            channel = self.channel(head, instance)
            if kind == "reset":
                channel.wanted[peer] = max(channel.wanted[peer], more)
            elif operation == REBUILD:
                channel.ended = (peer, more)
            else:
                channel.notices.append(((epoch, step), peer, more))

    def tell(self, kind, call, more):
        message = [kind, call.head, call.instance, call.epoch, call.step, call.operation, more]
        for outbox in self.outboxes.values():
            outbox.put(message)

    def channel(self, head, instance):
        return self.channels.setdefault((head, instance), Channel(self.size))

    # ---- waiting ----

    def fault(self, call, channel, losses=True):
        """What ends the wait in `call`, or None."""
        with self.lock:
            for (epoch, step), member, text in channel.notices:
                if epoch == call.epoch and step <= call.step:
                    return Fault.aborted(member, text)
            gone = [member for member in range(self.size) if self.gone[member]]
        return Fault.lost(*gone) if gone and losses else None

    def check(self, call, channel, losses=True):
        fault = self.fault(call, channel, losses)
        if fault is not None:
            raise fault

    def wait(self, call, channel, until, is_done, losses=True):
        """Returns as soon as `is_done()`; raises the fault that ends the wait."""
        while not is_done():
            self.check(call, channel, losses)
            if time.monotonic() >= until:
                raise Fault.timeout()
            time.sleep(POLL)

    # ---- what the library calls ----

    def all_to_all(self, call, send, recv):
        until = time.monotonic() + call.left_us / 1e6
        with self.lock:
            channel = self.channel(call.head, call.instance)
        # A peer may already have given up this step.
        self.check(call, channel)
        if channel.group is None:
            self.connect(call, channel, until)

        sizes = [[piece.nbytes for piece in pieces] for pieces in (send, recv)]
        sent, came = (torch.empty(sum(of), dtype=torch.uint8) for of in sizes)
        if sent.numel():
            sent = torch.frombuffer(bytearray().join(send), dtype=torch.uint8)
        work = channel.group.alltoall_base(came, sent, sizes[1], sizes[0])
        try:
            # A rank that has ended may have sent its part before that; if not, gloo fails.
            self.wait(call, channel, until, work.is_completed, losses=False)
            self.end(call, channel, until, work)
        except BaseException:
            self.left_behind.append((channel.group, work, sent, came))
            channel.group = None
            raise
        for place, piece in zip(came.split(sizes[1]), recv):
            if piece.nbytes:
                torch.frombuffer(piece, dtype=torch.uint8).copy_(place)

    def connect(self, call, channel, until):
        """Makes the channel's data group, in a thread, because gloo's constructor waits for the peers."""
        name = f"{call.head}.{call.instance}.{channel.generation}"
        made: list[Any] = []

        def make():
            try:
                made.append(self.make_group(name, self.patience))
            except RuntimeError as error:
                made.append(error)

        threading.Thread(target=make, daemon=True).start()
        self.wait(call, channel, until, lambda: made)
        if isinstance(made[0], RuntimeError):
            raise Fault.broken(str(made[0]))
        channel.group = made[0]

    def end(self, call, channel, until, work):
        """Checks how a collective ended. gloo reports that it failed; the reason follows over the control group."""
        try:
            work.wait()
            return
        except RuntimeError as error:
            problem = str(error)
        try:
            self.wait(call, channel, min(until, time.monotonic() + HEARSAY), lambda: False)
        except Fault as fault:
            if fault.status != Fault.timeout().status:
                raise
        raise Fault.broken(problem)

    def notify_abort(self, call, notice):
        notice = notice.encode()[:TEXT_BYTES].decode(errors="replace")
        # It also ends the caller's own wait.
        self.take(
            self.me, ["notice", call.head, call.instance, call.epoch, call.step, call.operation, notice]
        )
        self.tell("notice", call, notice)

    def note(self, call):
        self.tell("note", call, None)

    def place(self, member):
        with self.lock:
            seen = self.places[member]
        if seen is None:
            return None
        head, instance, epoch, step, operation, at = seen
        return Place(head, instance, epoch, operation, step, time.monotonic() - at)

    def pending(self, call):
        with self.lock:
            channel = self.channel(call.head, call.instance)
        self.check(call, channel)

    def reset(self, call):
        until = time.monotonic() + call.left_us / 1e6
        with self.lock:
            channel = self.channel(call.head, call.instance)
            wanted = channel.generation + 1
            channel.wanted[self.me] = wanted
            channel.ended = None
        self.tell("reset", call, wanted)
        while True:
            with self.lock:
                missing = [member for member in range(self.size) if channel.wanted[member] < wanted]
                if not missing:
                    channel.generation, channel.group = wanted, None
                    channel.notices = [n for n in channel.notices if n[0][0] > call.epoch]
                    # gloo has given them up, or will.
                    self.left_behind = [left for left in self.left_behind if not left[1].is_completed()]
                    return
                gone = [member for member in missing if self.gone[member]]
                if gone:
                    raise Fault.lost(*gone)
                if channel.ended:
                    member, text = channel.ended
                    raise Fault.aborted(member, text)
            if time.monotonic() >= until:
                raise Fault.timeout(*missing)
            time.sleep(POLL)

    def leave(self, head, instance):
        with self.lock:
            self.channels.pop((head, instance), None)

    def release(self):
        for outbox in self.outboxes.values():
            outbox.put(BYE)

    def take_leave(self, patience):
        """Says goodbye to the peers, and waits for the threads, but not for long: a peer may be stopped."""
        if self.pid != os.getpid():
            return  # threads are not forked
        self.release()
        until = time.monotonic() + patience
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))


class Outbox:
    """Messages to one peer. Only the latest note is kept, so that notes to a stopped peer do not pile up."""

    def __init__(self, transport, peer):
        self.transport, self.peer = transport, peer
        self.condition = threading.Condition()
        self.note, self.others = None, deque()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def put(self, message):
        with self.condition:
            if message != BYE and message[0] == "note":
                self.note = message
            else:
                self.others.append(message)
            self.condition.notify()

    def run(self):
        while True:
            with self.condition:
                while not self.others and self.note is None:
                    self.condition.wait()
                message = self.others.popleft() if self.others else self.note
                if message is self.note:
                    self.note = None
            data = json.dumps(message, ensure_ascii=False).encode()
            bytes_ = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
            bytes_[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                self.transport.control.send([bytes_], self.peer, 0).wait()
            except RuntimeError:
                return  # the thread that receives from this peer reports it
            if message == BYE:
                return
