"""Golden files of sampled tokens: `make.py` writes them to `sampled/`, beside its own.

Logits are exact in f32: sums of small integers, with many ties, or of multiples of 2^-8. The filters are
those of `definition.py`, in exact integers, so decisions may be close; the file `cuts` consists of such
decisions. The noise is Philox4x32-10 in integers, then NumPy's `log` and `log1p` in float64, which other
libraries may round differently, so only rows whose best two scores are far apart are kept.
"""

import numpy as np

from definition import Filters, below_max, mass, mass_bits, min_p_at, sorted_ids, survivors
from draws import Random, fnv1a
from float32 import MINUS_INFINITY, from_real, from_row, to_float
from formats import Tensor, serialize

F32 = np.float32
MASK = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
#: Smallest distance of the best two scores; logarithms of float64 differ by 1e-14.
MARGIN = 1e-6
#: Seeds that are tried for one row of `cuts`.
TRIED = 400


def philox4x32(counter: list[np.ndarray], key: list[np.ndarray]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al., SC 2011), on words of 32 bits in u64."""
    c, k = counter, key
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> HALF) ^ c[1] ^ k[0], b & MASK, (a >> HALF) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + np.uint64(0x9E3779B9)) & MASK, (k[1] + np.uint64(0xBB67AE85)) & MASK]
    return c


def noise(seeds: np.ndarray, positions: np.ndarray, ids: list[int]) -> np.ndarray:
    """Gumbel noise `[seeds, ids]`: -ln(-ln(1 - v)) with v = (word + 1/2) / 2^32.

    The word of an id is number id mod 4 of those at counter (id div 4, 0, position).
    """
    seeds, positions, v = seeds[:, None], positions[:, None], np.array(ids, dtype=np.uint64)[None, :]
    counter = [v >> np.uint64(2), np.uint64(0), positions & MASK, positions >> HALF]
    four = np.stack(np.broadcast_arrays(*philox4x32(counter, [seeds & MASK, seeds >> HALF])))
    words = np.take_along_axis(four, (v % np.uint64(4)).astype(np.int64)[None], axis=0)[0]
    return -np.log(-np.log1p(-(words.astype(np.float64) + 0.5) / 2.0**32))


def draws(
    logits: np.ndarray, ids: list[int], temperature: F32, seeds: np.ndarray, positions: np.ndarray
) -> list[int | None]:
    """For each seed the id with the largest `l / T + noise`; None where another one is close to it."""
    scores = logits[ids].astype(np.float64) / np.float64(temperature) + noise(seeds, positions, ids)
    best = np.argmax(scores, axis=1)
    margin = scores.max(axis=1)
    scores[np.arange(len(seeds)), best] = -np.inf
    margin = margin - scores.max(axis=1)
    return [ids[b] if m >= MARGIN else None for b, m in zip(best, margin, strict=True)]


def filters_of(params: dict) -> Filters:
    temperature, top_p, min_p = (from_real(float(params[key])) for key in ("temperature", "top_p", "min_p"))
    return Filters(temperature, params["top_k"], top_p, min_p)


def sample(logits: np.ndarray, allowed: np.ndarray, params: dict) -> tuple[int, int] | None:
    """The sampled id and how many ids the filters keep; None where the best two scores are close."""
    row = [logit if kept else MINUS_INFINITY for logit, kept in zip(from_row(logits), allowed, strict=True)]
    ids = survivors(row, filters_of(params))
    if len(ids) < 2:
        return (ids[0], 1) if ids else (-1, 0)
    one = (np.array([params[key]], dtype=np.uint64) for key in ("seed", "position"))
    best = draws(logits, ids, params["temperature"], *one)[0]
    return None if best is None else (best, len(ids))


class Picker:
    """Random data of one file."""

    def __init__(self, name: str) -> None:
        self.random = Random(fnv1a(name))

    def one_of(self, values: list) -> object:
        return values[int(self.random.integers((1,), 0, len(values) - 1)[0])]

    def matrix(self, shape: tuple[int, ...], largest: int) -> np.ndarray:
        return self.random.integers(shape, -largest, largest)


#: hidden state, allowed ids, parameters, (sampled id, survivors)
Kept = tuple[np.ndarray, np.ndarray, dict, tuple[int, int]]


def mixtures(pick: Picker, rows: int, w: np.ndarray, top_ks: list[int], mask: bool) -> list[Kept]:
    """Rows with any filters at any temperature."""
    vocab, hidden = w.shape
    kept: list[Kept] = []
    while len(kept) < rows:
        x = pick.matrix((hidden,), 3)
        allowed = np.ones(vocab, dtype=bool)
        if mask and len(kept) % 3:
            allowed = pick.random.integers((vocab,), 0, 1 if len(kept) % 3 == 1 else 10 * vocab) == 0
        seed, position = (int(v) for v in pick.random.u64(2))
        params = {
            "seed": seed,
            "position": position >> (0 if len(kept) % 2 else 50),
            "temperature": F32(pick.one_of([0.0, 1.0, 2.5, 8.0, 30.0])),
            "top_k": pick.one_of(top_ks),
            "top_p": F32(pick.one_of([1.0, 1.0, 0.9, 0.5, 0.05])),
            "min_p": F32(pick.one_of([0.0, 0.0, 0.02, 0.3, 1.0])),
        }
        answer = sample((w @ x).astype(F32), allowed, params)
        if answer is not None:
            kept.append((x, allowed, params, answer))
    return kept


def stepped(value: float, steps: int) -> F32:
    """The f32 that is `steps` after the one at `value`."""
    out = F32(value)
    for _ in range(abs(steps)):
        out = np.nextafter(out, F32(np.copysign(np.inf, steps)))
    return out


def cuts(pick: Picker, rows: int, w: np.ndarray, unit: float) -> list[Kept]:
    """Rows whose min_p or top_p is within two f32 of the value where an id comes in or goes out.

    The token shows the filter's decision: the seed is one that draws the last survivor, or one that would
    draw the first id that was cut.
    """
    vocab, hidden = w.shape
    kept: list[Kept] = []
    while len(kept) < rows:
        # Every sixth row has equal logits: then the nucleus can end exactly at top_p.
        equal = len(kept) % 6 == 5
        x = pick.matrix((hidden,), 0 if equal else 3)
        logits = ((w @ x) * unit).astype(F32)
        row = from_row(logits)
        params = {
            "temperature": F32(pick.one_of([1.0, 2.5, 8.0, 30.0])),
            "top_k": pick.one_of([0, 0, 20, 60]),
            "top_p": F32(1),
            "min_p": F32(0),
        }
        temperature = from_real(float(params["temperature"]))
        at = int(pick.one_of([75, 150, 225, 100]) if equal else pick.one_of(list(range(1, 14))))
        steps = int(pick.one_of([-1, 0, 1]))
        if len(kept) % 2 == 0:
            params["top_k"] = 0
            before = sorted_ids(row)
            threshold = below_max(row[before[at]], row[before[0]], temperature)
            beside = from_real(float(stepped(to_float(threshold), steps)))
            params["min_p"] = F32(to_float(min_p_at(beside)))
        else:
            params["top_k"] = 0 if equal else params["top_k"]
            params["min_p"] = F32(pick.one_of([0.0, 0.01]))
            before = survivors(row, filters_of(params))
            if len(before) <= at:
                continue
            bits = mass_bits(vocab)
            masses = [mass(below_max(row[v], row[before[0]], temperature), bits) for v in before]
            params["top_p"] = stepped(sum(masses[:at]) / sum(masses), steps)
        ids = survivors(row, filters_of(params))
        if not 0 < len(ids) < len(before) or params["top_p"] == 0:
            continue
        seeds, positions = pick.random.u64(TRIED), pick.random.u64(TRIED)
        last, first_cut = ids[-1], before[len(ids)]
        drawn = draws(logits, ids, params["temperature"], seeds, positions)
        with_cut = draws(logits, [*ids, first_cut], params["temperature"], seeds, positions)
        # Half of the rows show that the last survivor is kept, half that the next id is cut.
        wanted = last if len(kept) % 4 < 2 else first_cut
        told = [i for i in range(TRIED) if drawn[i] is not None and with_cut[i] == wanted]
        if told:
            params |= {"seed": int(seeds[told[0]]), "position": int(positions[told[0]])}
            kept.append((x, np.ones(vocab, dtype=bool), params, (drawn[told[0]], len(ids))))
    return kept


def file(kept: list[Kept], w: np.ndarray, unit: float, mask: bool) -> bytes:
    """`w` in units of `unit`."""
    vocab, hidden = w.shape
    xs, masks, params, answers = zip(*kept, strict=True)
    named = {
        "hidden_states": Tensor("F32", np.array(xs, dtype=F32)),
        "lm_head.weight": Tensor("F32", (w * unit).astype(F32)),
        "expected.sampled": Tensor("I64", np.array([a[0] for a in answers], dtype=np.int64)),
        "expected.survivors": Tensor("I64", np.array([a[1] for a in answers], dtype=np.int64)),
    }
    for key in ["seed", "position"]:
        named[key] = Tensor("I64", np.array([p[key] for p in params], dtype=np.uint64).astype(np.int64))
    for key in ["temperature", "top_p", "min_p"]:
        named[key] = Tensor("F32", np.array([p[key] for p in params], dtype=F32))
    named["top_k"] = Tensor("I64", np.array([p["top_k"] for p in params], dtype=np.int64))
    if mask:
        bits = np.zeros((len(kept), -(-vocab // 32) * 32), dtype=np.uint8)
        bits[:, :vocab] = np.array(masks)
        named["allowed"] = Tensor("I32", np.packbits(bits, axis=1, bitorder="little").view("<i4"))
    return serialize(named, {"hidden_size": str(hidden), "vocab_size": str(vocab)})


#: name -> rows, hidden, vocabulary, values of top_k, whether rows have masks
MIXTURES: dict[str, tuple[int, int, int, list[int], bool]] = {
    "filters": (160, 12, 300, [0, 0, 1, 7, 40, 300, 100000], False),
    "masks": (60, 12, 130, [0, 3, 20], True),
    "many_candidates": (40, 6, 1500, [0, 1024, 1025, 1200, 1499], False),
}


def files() -> dict[str, bytes]:
    made = {}
    for name, (rows, hidden, vocab, top_ks, mask) in MIXTURES.items():
        pick = Picker(name)
        w = pick.matrix((vocab, hidden), 3)
        made[name] = file(mixtures(pick, rows, w, top_ks, mask), w, 1.0, mask)
    pick, unit = Picker("cuts"), 2.0**-8
    w = pick.matrix((300, 12), 600)
    made["cuts"] = file(cuts(pick, 120, w, unit), w, unit, False)
    return {f"{name}.safetensors": content for name, content in made.items()}
