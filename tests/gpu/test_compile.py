"""Every kernel compiles for the GPUs that are meant to run it, on a machine without one: by NVRTC, or by nvcc."""

import ctypes
import importlib.util
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from rockbed.optimizers import make_optimizer, optimizer_names
from rockbed.storage.gpu.rules import update_kernel
from rockbed.storage.gpu.sources import BACKWARD, OPTIONS, POOL, TABLE, Module

ARCHITECTURES = ("sm_80", "sm_90")


def rule_instances(dim: int, names: list[str]) -> Module:
    """The update kernels of several rules as one module."""
    made = [make_optimizer(name) for name in names] + [make_optimizer("rmsprop", momentum=0.9)]
    instances = [update_kernel(rule, dim)[0].instances for rule in made]
    return Module("update.cu", "".join(line.replace("(update", f"(update{i}") for i, line in enumerate(instances)))


# a width for each way that rows are read: whole quarters, single floats, several rounds
MODULES = {
    "table": TABLE,
    "pool": POOL,
    "backward": BACKWARD,
    "every rule": rule_instances(64, optimizer_names()),
    "dim 1": rule_instances(1, ["adam", "rowwise_adagrad"]),
    "dim 33": rule_instances(33, ["adagrad_decay", "group_adam"]),
    "dim 300": rule_instances(300, ["adam", "partial_rowwise_adam"]),
}


@lru_cache
def nvrtc_library() -> ctypes.CDLL | None:
    """NVRTC from its wheel (a part of the cupy-cuda packages' [ctk] extra, too), or from a CUDA installation."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in found.submodule_search_locations or []] if found else []
    for place in places:
        for path in sorted(place.glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def by_nvrtc(nvrtc: ctypes.CDLL, module: Module, architecture: str) -> str:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), module.text().encode(), module.file.encode(), 0, None, None
    )
    assert created == 0
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, log.value.decode()
    return log.value.decode()


def by_nvcc(nvcc: str, module: Module, architecture: str, folder: Path) -> str:
    source = folder / f"{architecture}.cu"
    source.write_text(module.text())
    options = [*OPTIONS, "--cubin", f"-arch={architecture}", "-o", str(folder / f"{architecture}.cubin")]
    done = subprocess.run([nvcc, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MODULES)
def test_a_kernel_compiles_without_a_word_of_complaint(name: str, architecture: str, tmp_path: Path) -> None:
    library, nvcc = nvrtc_library(), shutil.which("nvcc")
    if library is not None:
        said = by_nvrtc(library, MODULES[name], architecture)
    elif nvcc is not None:
        said = by_nvcc(nvcc, MODULES[name], architecture, tmp_path)
    else:
        pytest.skip("no CUDA compiler: pip install nvidia-cuda-nvrtc-cu12 (or install nvcc), no GPU is needed")
    assert said.strip(" \n\0") == ""
