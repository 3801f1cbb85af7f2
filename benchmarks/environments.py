"""Finds or makes the Python that runs a contender: torch and damo-embedding are no dependencies of Rockbed."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TORCH = ("torch==2.13.0", "numpy")
FBGEMM = ("torch==2.13.0", "fbgemm-gpu-cpu==1.8.0", "numpy")  # 1.9.0 does not load with this torch
DAMO = ("damo-embedding==1.1.12", "numpy")
DAMO_PYTHONS = ("3.12", "3.11", "3.10")  # it has wheels for these, of those that Rockbed runs on


class Unavailable(RuntimeError):
    """The contender cannot run here; the message says why."""


def python_for(name: str) -> Path:
    """The interpreter for a contender, made ready first where needed. Raises Unavailable."""
    if name in ("damo", "damo-http"):
        return _environment(".venv-damo", _damo_python(), DAMO, "import damo, numpy")
    if name == "damo-torch":
        return _environment(".venv-damo-torch", _damo_python(), DAMO + TORCH, "import damo_embedding, torch")
    if name == "fbgemm":
        return _environment(".venv-fbgemm", sys.executable, FBGEMM, "import torch, fbgemm_gpu, numpy")
    if name == "torch" and importlib.util.find_spec("torch") is None:
        return _environment(".venv-torch", sys.executable, TORCH, "import torch, numpy")
    return Path(sys.executable)


def _damo_python() -> str:
    if f"{sys.version_info.major}.{sys.version_info.minor}" in DAMO_PYTHONS:
        return sys.executable
    for version in DAMO_PYTHONS:
        if found := shutil.which(f"python{version}"):
            return found
    raise Unavailable(f"damo-embedding has wheels for Python {', '.join(DAMO_PYTHONS)} only, and none of these is here")


def _environment(name: str, python: str, requirements: tuple[str, ...], probe: str) -> Path:
    """The interpreter of the virtual environment `name` in the project's folder; made if it does not work yet."""
    folder = ROOT / name
    inside = folder / "bin" / "python"
    if inside.exists() and _quiet([str(inside), "-c", probe]) is None:
        return inside
    commands = (
        [python, "-m", "venv", "--clear", str(folder)],
        [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
        [str(inside), "-c", probe],
    )
    for command in commands:
        if problem := _quiet(command):
            raise Unavailable(f"{' '.join(command[-len(requirements) - 1 :])}: {problem}")
    return inside


def _quiet(command: list[str]) -> str | None:
    """Run a command; None if it worked, otherwise the last line that it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return lines[-1]
