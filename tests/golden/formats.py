"""Number formats and the file: a tensor is its bits; widening to f32 is exact, narrowing rounds half to even on integers."""

import json
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

#: safetensors dtype -> the NumPy type that holds its bits, little-endian.
STORAGE = {
    "F64": "<f8", "F32": "<f4", "F16": "<u2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1",
}  # fmt: skip


@dataclass
class Tensor:
    """A safetensors dtype and an array of `STORAGE[dtype]`."""

    dtype: str
    data: np.ndarray

    def __post_init__(self) -> None:
        self.data = np.ascontiguousarray(self.data, dtype=STORAGE[self.dtype])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def f32(self) -> np.ndarray:
        """The values, widened exactly."""
        if self.dtype == "F32":
            return self.data
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F16":
            return f16_bits_to_f32(self.data)
        raise ValueError(f"{self.dtype} is no floating-point input")


def f16_bits_to_f32(bits: np.ndarray) -> np.ndarray:
    """IEEE half -> single by its fields. A subnormal is an integer times 2^-24, which f32 holds exactly."""
    wide = bits.astype(np.uint32)
    sign, exponent, mantissa = (wide >> 15) << 31, (wide >> 10) & 31, wide & 0x3FF
    normal = ((exponent + 112) << 23) | (mantissa << 13)
    special = np.uint32(0x7F800000) | (mantissa << 13)
    subnormal = (mantissa.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    magnitude = np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))
    return (sign | magnitude).astype(np.uint32).view(np.float32)


def round_shift(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """`value / 2^shift` rounded half to even, on non-negative integers; shift >= 1."""
    value, shift = value.astype(np.int64), np.asarray(shift, dtype=np.int64)
    half = np.int64(1) << (shift - 1)
    return (value + half - 1 + ((value >> shift) & 1)) >> shift


def f32_to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """A carry out of the mantissa raises the exponent, as rounding up must. Infinities stay; NaN is refused."""
    assert not np.isnan(values).any(), "a NaN is written by its bits"
    return round_shift(values.astype(np.float32).view(np.uint32), 16).astype(np.uint16)


def f32_to_f16_bits(values: np.ndarray) -> np.ndarray:
    """Below the smallest normal half (2^-14) the mantissa with its hidden bit is shifted further."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    sign, exponent, mantissa = bits >> 31, (bits >> 23) & 255, bits & 0x7FFFFF
    assert (exponent < 127 + 16).all(), "too large for a half"
    normal = round_shift(((np.maximum(exponent, 113) - 112) << 23) | mantissa, 13)
    # value = (2^23 + mantissa) * 2^(exponent - 150), in units of 2^-24
    shift = np.clip(126 - exponent, 14, 40)
    subnormal = round_shift(mantissa | (1 << 23), shift)
    return ((sign << 15) | np.where(exponent >= 113, normal, subnormal)).astype(np.uint16)


def tensor(dtype: str, values: np.ndarray | list) -> Tensor:
    """Rounds real values to `dtype` (f64 -> f32 -> 16 bits: what is stored is the input, so twice is no harm)."""
    values = np.asarray(values, dtype=np.float64)
    if dtype == "F32":
        return Tensor(dtype, values.astype(np.float32))
    narrow = {"BF16": f32_to_bf16_bits, "F16": f32_to_f16_bits}[dtype]
    return Tensor(dtype, narrow(values.astype(np.float32)))


def on_grid(values: np.ndarray) -> np.ndarray:
    """Every finite f32 is an integer times 2^-149: these integers, as Python ints (zero for NaN and infinity)."""
    bits = values.astype(np.float32).view(np.uint32)

    def one(b: int) -> int:
        exponent, mantissa = (b >> 23) & 255, b & 0x7FFFFF
        if exponent == 255:
            return 0
        magnitude = mantissa if exponent == 0 else (mantissa | 1 << 23) << (exponent - 1)
        return -magnitude if b >> 31 else magnitude

    return objects(bits.shape, [one(int(b)) for b in bits.ravel()])


def objects(shape: tuple[int, ...], values: list) -> np.ndarray:
    """An array of Python objects, so that NumPy's dot runs on exact integers."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def integers(values: np.ndarray) -> np.ndarray:
    return objects(values.shape, [int(v) for v in values.ravel()])


GRID = Fraction(1, 2**149)


def canonical(t: Tensor) -> bytes:
    """The bytes of an expected tensor: processors differ in the sign of the NaN they make."""
    data = t.data.copy()
    if t.dtype in ("F32", "F64"):
        pattern = {"F32": (np.uint32, 0x7FC00000), "F64": (np.uint64, 0x7FF8000000000000)}[t.dtype]
        data.view(pattern[0])[np.isnan(data)] = pattern[1]
    return data.tobytes()


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """safetensors: u64 header length, JSON header, data. Wide elements first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].data.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": metadata}
    body = b""
    for name, t in ordered:
        raw = canonical(t) if name.startswith("expected.") else t.data.tobytes()
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
