"""Shared by the tests: small heads with exact answers, and files to load them from."""

import array
import json
import math
import random
import struct
import threading

import lmhead
import pytest

VOCAB, HIDDEN = 100, 8


def floats(rows, columns, seed):
    """Small integers as f32 [rows, columns]: their products are exact."""
    made = random.Random(seed)
    numbers = array.array("f", [made.randint(-8, 8) for _ in range(rows * columns)])
    return memoryview(numbers).cast("B").cast("f", (rows, columns)) if rows else memoryview(numbers)


def logits_of(rows, matrix):
    return [[sum(x * w for x, w in zip(row, column)) for column in matrix.tolist()] for row in rows.tolist()]


def best(logits, k):
    """Ids of the k best, ties by the lowest."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]


def logsumexp(logits):
    most = max(logits)
    return most + math.log(sum(math.exp(value - most) for value in logits))


def write_safetensors(path, tensors):
    """`tensors`: {name: (dtype, shape, bytes)}."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


@pytest.fixture
def matrix():
    return floats(VOCAB, HIDDEN, seed=1)


@pytest.fixture
def rows():
    return floats(3, HIDDEN, seed=2)


@pytest.fixture
def head(matrix):
    with lmhead.Weights.wrap(matrix) as weights, lmhead.Head(weights) as head:
        yield head


def as_threads(n, run):
    """What `run(member)` returns or raises on each of n threads, within a minute."""
    ended = [None] * n

    def one(member):
        try:
            ended[member] = run(member)
        except BaseException as error:
            ended[member] = error

    threads = [threading.Thread(target=one, args=(member,), daemon=True) for member in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a member hangs"
    return ended


def member_head(matrix, member, n, exchange, **settings):
    """The head of one member of n over its shard of the matrix."""
    ids = lmhead.shard_range(VOCAB, n, member)
    shard = matrix[ids.start : ids.stop]
    group = lmhead.Group(list(range(n)), member)
    with lmhead.Backend(threads=1) as backend:
        with lmhead.Weights.wrap(shard, vocab_size=VOCAB, first=ids.start) as weights:
            return lmhead.Head(weights, group=group, exchange=exchange, backend=backend, **settings)
