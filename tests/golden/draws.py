"""Random data: splitmix64, and nearly normal values as sums of uniform integers. Pure integer arithmetic."""

import numpy as np


class Random:
    """splitmix64, so that the stream does not depend on a library's version."""

    def __init__(self, seed: int) -> None:
        self.state = seed & (2**64 - 1)

    def u64(self, count: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
            steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = np.uint64(self.state) + steps
            self.state = (self.state + count * 0x9E3779B97F4A7C15) & (2**64 - 1)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
        """Uniform in `low..=high` (the bias of the modulus, about 2^-58, does not matter here)."""
        count = int(np.prod(shape, dtype=np.int64))
        return (self.u64(count) % np.uint64(high - low + 1)).astype(np.int64).reshape(shape) + low

    def bell(self, *shape: int) -> np.ndarray:
        """Twelve uniforms of 21 bits, summed, centred: mean 0, deviation 1, exact in float64."""
        draws = self.u64(4 * int(np.prod(shape, dtype=np.int64))).reshape(*shape, 4)
        total = np.zeros(shape, dtype=np.int64)
        for lane in range(4):
            for part in range(3):
                total += ((draws[..., lane] >> np.uint64(21 * part)) & np.uint64(0x1FFFFF)).astype(np.int64)
        return (total - 6 * 0x1FFFFF).astype(np.float64) / 2.0**21


def fnv1a(text: str) -> int:
    """A 64-bit hash of the name, so that no two cases share their data."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state
