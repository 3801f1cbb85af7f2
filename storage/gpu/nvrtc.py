"""NVIDIA's run-time compiler, called directly: CUDA source -> machine code, kept on disk. No GPU is needed to compile.

CuPy could compile, too, but it puts -ftz=true behind whatever options it is given (14.2, cupy/cuda/compiler.py), which
makes zeros of the numbers below 1.2e-38: rows would then differ from those of the CPU.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import os
import tempfile
from ctypes.util import find_library
from functools import lru_cache
from pathlib import Path

from rockbed.errors import DeviceUnavailable
from rockbed.storage.gpu.sources import OPTIONS, Module

_log = logging.getLogger("rockbed")


@lru_cache
def library() -> ctypes.CDLL | None:
    """NVRTC where its wheel, CuPy's finder or the system have it; None where nobody has."""
    path = _in_wheels() or _by_cupys_finder() or find_library("nvrtc")
    return None if path is None else ctypes.CDLL(path)


def _in_wheels() -> str | None:
    found = importlib.util.find_spec("nvidia")
    for place in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(place).glob("*/lib/libnvrtc.so.*")):  # nvidia/cuda_nvrtc, nvidia/cu13, ...
            return str(path)
    return None


def _by_cupys_finder() -> str | None:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:  # it comes with CuPy
        return None
    with contextlib.suppress(RuntimeError):
        path: str | None = load_nvidia_dynamic_lib("nvrtc").abs_path
        return path
    return None


def compiled(module: Module, architecture: str) -> tuple[bytes, str]:
    """Machine code for an architecture such as "sm_90", and what the compiler had to say.

    Raises DeviceUnavailable without NVRTC, and where it cannot compile.
    """
    nvrtc = library()
    if nvrtc is None:
        raise DeviceUnavailable(
            "the CUDA compiler NVRTC is not installed: pip install 'rockbed[gpu]', or nvidia-cuda-nvrtc-cu12 alone"
        )
    program = ctypes.c_void_p()
    source, name = module.text().encode(), module.file.encode()
    failed = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None)
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
    try:
        failed = failed or nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        said = _read(nvrtc, "ProgramLog", program).decode(errors="replace").strip(" \n\0")
        if failed:
            raise DeviceUnavailable(
                f"NVRTC {version()} could not compile {module.file} for {architecture}: {said or failed}. A GPU newer "
                "than the compiler needs a newer CUDA: install CuPy's package for it"
            )
        return _read(nvrtc, "CUBIN", program), said
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def kept(module: Module, architecture: str) -> Path:
    """A file with the machine code: of an earlier run, or compiled now. Raises as `compiled`."""
    said = " ".join([version(), architecture, *OPTIONS, module.text()])
    path = _folder() / f"{module.file}-{architecture}-{hashlib.sha256(said.encode()).hexdigest()[:32]}.cubin"
    if not path.exists():
        code, _ = compiled(module, architecture)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        Path(file.name).rename(path)  # whole, or not there
    return path


def version() -> str:
    """Of the compiler, such as "12.9"; "none" where there is none."""
    nvrtc = library()
    if nvrtc is None:
        return "none"
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@lru_cache
def _folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rockbed" / "cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        _log.warning(
            "rockbed: GPU kernels cannot be kept on disk and are compiled at every start (%s): let XDG_CACHE_HOME name "
            "a directory that can be written to",
            error,
        )
        return Path(tempfile.mkdtemp(prefix="rockbed-cuda-"))


def _read(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
