"""The virtual environments of scripts/compare-* and scripts/plot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PLOT = [line for line in (ROOT / "scripts" / "plot.txt").read_text().splitlines() if not line.startswith("#")]
#: Environment -> what it is made with, what is installed into it without dependencies, and what that costs.
VENVS: dict[str, tuple[list[str], list[str], str]] = {
    "venv-pytorch": (["torch==2.15.0", "numpy==2.4.6"], [], " (5.6 GB on disk; takes some minutes)"),
    "venv-transformers": (
        ["torch==2.15.0", "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.4.6"],
        [], " (5.6 GB on disk; takes some minutes)",
    ),
    # Of auto-gptq, whose dependencies conflict with the others, only single files are used.
    "venv-formats": (
        ["torch", "numpy", "safetensors==0.8.0", "transformers", "compressed-tensors==0.17.0", "gguf==0.19.0",
         "nvidia-modelopt==0.47.0", "omegaconf", "scipy", "torchprofile", "nvidia-ml-py", "pulp"],
        ["auto-gptq==0.7.1"], "",
    ),
    "venv-plot": ([], PLOT, ""),
}  # fmt: skip
#: Runs without the network and without a screen: all models are generated here.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
         "MPLBACKEND": "svg"}  # fmt: skip


def venv_python(name: str) -> Path:
    """Python of the first environment that has `name`'s pins. `name` is made where there is none."""
    whole, alone, cost = VENVS[name]
    pins = [*whole, *alone]
    for made in VENVS:
        stamp = TARGET / made / "pins.txt"
        if stamp.exists() and set(pins) <= set(stamp.read_text().split()):
            return TARGET / made / "bin" / "python"
    venv = TARGET / name
    python = venv / "bin" / "python"
    print(f"making {venv}: {' '.join(pins)}{cost}", file=sys.stderr)
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in (whole, alone and ["--no-deps", *alone]):
        if arguments:
            subprocess.run([*pip, *arguments], check=True)
    # Written last: an interrupted installation is not taken for a whole one.
    (venv / "pins.txt").write_text("\n".join(pins) + "\n")
    return python


def enter_venv(name: str, variable: str = "LMHEAD_COMPARE") -> None:
    """Starts the running script again in the environment, or in the Python that `variable`_PYTHON names, once.
    Ends it with exit code 2 if that fails."""
    if os.environ.get(f"{variable}_INSIDE"):
        return
    script = Path(sys.argv[0]).resolve()
    try:
        python = os.environ.get(f"{variable}_PYTHON") or str(venv_python(name))
        inside = {**os.environ, **QUIET, f"{variable}_INSIDE": "1"}
        os.execve(python, [python, str(script), *sys.argv[1:]], inside)
    except (OSError, subprocess.CalledProcessError) as error:
        pins = ", ".join([*VENVS[name][0], *VENVS[name][1]])
        print(f"{script.name}: no environment with {pins}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
