"""The virtual environments of scripts/compare-pytorch, compare-transformers and compare-models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
#: Environment -> what it is made with.
PINS = {
    "venv-pytorch": ["torch==2.15.0", "numpy==2.4.6"],
    "venv-transformers": ["torch==2.15.0", "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.4.6"],
}
#: Runs without the network: all models are generated here.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def venv_python(name: str) -> Path:
    """Python of the first environment that has `name`'s pins. `name` is made where there is none."""
    if chosen := os.environ.get("LMHEAD_COMPARE_PYTHON"):
        return Path(chosen)
    pins = PINS[name]
    for made in PINS:
        stamp = TARGET / made / "pins.txt"
        if stamp.exists() and set(pins) <= set(stamp.read_text().split()):
            return TARGET / made / "bin" / "python"
    venv = TARGET / name
    python = venv / "bin" / "python"
    print(f"making {venv}: {' '.join(pins)} (5.6 GB on disk; takes some minutes)", file=sys.stderr)
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pins], check=True)
    # Written last: an interrupted installation is not taken for a whole one.
    (venv / "pins.txt").write_text("\n".join(pins) + "\n")
    return python


def enter_venv(name: str) -> None:
    """Starts the running script again in the environment, once. Ends it with exit code 2 if that fails."""
    if os.environ.get("LMHEAD_COMPARE_INSIDE"):
        return
    script = Path(sys.argv[0]).resolve()
    try:
        python = str(venv_python(name))
        inside = {**os.environ, **QUIET, "LMHEAD_COMPARE_INSIDE": "1"}
        os.execve(python, [python, str(script), *sys.argv[1:]], inside)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{script.name}: no environment with {', '.join(PINS[name])}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
