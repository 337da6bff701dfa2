#!/usr/bin/env python3
"""Writes the golden files of lmhead: one safetensors file per case, inputs and expected outputs together.

    python3 tests/golden/make.py            write every file (and remove files of cases that are gone)
    python3 tests/golden/make.py --check    regenerate in memory; exit 1 and list what differs
    python3 tests/golden/make.py --list     print the cases with their sizes

The bytes are the same on every machine: sums are exact (Python integers, fractions), exp, ln and tanh come
from `decimal`, whose results the standard defines to the last digit, and every result is rounded to float64
once. NumPy carries arrays and does single elementwise IEEE operations; no BLAS, no libm, no random module.

The formulas are written from the definitions in the design and share nothing with the Rust code.
`README.md` beside this file says what each tensor means, and which file does what.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import adjusted
import masses
import sampled
import sums
from cases import CASES, Builder
from draws import Random, fnv1a
from formats import serialize
from solve import solve

HERE = Path(__file__).resolve().parent
#: Seeds that are tried before a case is given up.
SEEDS = 400


def generate(name: str, build: Builder) -> bytes:
    """Tries seeds in order until no answer depends on rounding."""
    for seed in range(SEEDS):
        made = replace(build(Random(fnv1a(f"{name} {seed}"))), seed=seed)
        expected = solve(made)
        if expected is not None:
            return serialize(made.inputs() | expected, made.metadata())
    raise SystemExit(
        f"{name}: no seed of {SEEDS} keeps its answers apart; make k smaller or the logits wider"
    )


def differences(files: dict[str, bytes], folder: Path) -> list[str]:
    present = {p.name for p in folder.glob("*.safetensors")}
    found = [f"extra: {name}" for name in sorted(present - files.keys())]
    for name, content in files.items():
        path = folder / name
        if name not in present:
            found.append(f"missing: {name}")
        elif path.read_bytes() != content:
            found.append(f"differs: {name}")
    return found


def write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.safetensors"):
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description="golden files of lmhead")
    parser.add_argument(
        "--check", action="store_true", help="compare with the files; exit 1 when they differ"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and their sizes, write nothing")
    arguments = parser.parse_args()
    folders = {
        HERE: {f"{name}.safetensors": generate(name, build) for name, build in CASES.items()},
        HERE / "adjusted": adjusted.files(),
        HERE / "masses": masses.files(),
        HERE / "sampled": sampled.files(),
        HERE / "sums": sums.files(),
    }
    files = {
        str((folder / name).relative_to(HERE)): content
        for folder, made in folders.items()
        for name, content in made.items()
    }
    total = sum(map(len, files.values()))
    if arguments.list:
        for name, content in files.items():
            print(f"{len(content):8} {name}")
        print(f"{total:8} in {len(files)} files")
        return 0
    if arguments.check:
        found = [line for folder, made in folders.items() for line in differences(made, folder)]
        for line in found:
            print(line, file=sys.stderr)
        if found:
            print("golden files are not what make.py writes: run it and commit", file=sys.stderr)
            return 1
        print(f"{len(files)} golden files reproduced, {total} bytes")
        return 0
    for folder, content in folders.items():
        write(content, folder)
    print(f"wrote {len(files)} files, {total} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
