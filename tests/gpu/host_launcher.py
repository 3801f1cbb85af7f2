"""A launcher whose device is the CPU: the kernels' own source with tests/gpu/shim.cuh below it, compiled by g++."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike

from rockbed.device_arrays import Stream
from rockbed.storage.gpu.sources import BLOCK_THREADS, Module
from rockbed.types import AnyArray

SHIM = Path(__file__).with_name("shim.cuh")
# Contraction would give other bits than the GPU's --fmad=false. Kernels see rows as words and as floats.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-ffp-contract=off", "-fno-strict-aliasing")
_GUARD = 64  # bytes before and after each array that no kernel may touch
_PATTERN = 0xA5
_running = threading.Lock()  # the fibers of a library are its only ones
_ERRORS = {1: "its threads wait for lanes that never come", 2: "16 bytes at an address that is no multiple of 16"}


def compiler() -> str:
    """The path of a C++ compiler; the test is skipped where there is none."""
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler: install g++, and the GPU's kernels are tested on the CPU")
    return found


@lru_cache
def library(module: Module) -> ctypes.CDLL:
    """The module as a shared library, compiled once for all test processes of this user."""
    text = module.text(SHIM) + "".join(f"HOST_LAUNCH({name})\n" for name in module.kernels())
    name = hashlib.sha256(" ".join([*FLAGS, text]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"rockbed-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{module.file}-{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            source, made = Path(own) / "source.cpp", Path(own) / "made.so"
            source.write_text(text)
            subprocess.run([compiler(), *FLAGS, "-o", str(made), str(source)], check=True)
            made.rename(path)
    return ctypes.CDLL(str(path))


class OnDevice(np.ndarray[Any, Any]):
    """An array of the shim's device. As a GPU's, it is no operand of numpy's functions, and lends itself."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        raise TypeError(f"{ufunc.__name__} of an array on the device: copy it with to_host")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"{function.__name__} of an array on the device: copy it with to_host")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ctypes.data, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": 1,
        }

    def __dlpack_device__(self) -> Any:
        return 2, 0  # kDLCUDA

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        return self.view(np.ndarray).__dlpack__(max_version=(1, 0))  # which has a word for read-only arrays


class _Lent:
    """What numpy takes for an array in memory that lends itself."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule


class HostLauncher:
    """Runs kernels on the CPU, thread by thread, interleaved as `seed` draws it. After each launch, what lies before
    and behind every array must be as it was."""

    def __init__(self, seed: int = 0) -> None:
        compiler()
        self.seed = seed
        self.device = 0
        self.streams: dict[int, Callable[[], None]] = {}  # of others, by handle: what does all that they have
        self.thread_stream = threading.local()  # .handle, .owner: what the thread has set
        self.order: list[str] = []  # launches, and waits for streams of others and theirs
        self.own_stream_only = False  # whether calls outside of `own_stream` are a mistake
        self._own = threading.local()
        self.launches: list[str] = []  # the kernels launched so far
        self.waits = 0  # how often the host waited for the device
        self._guarded: dict[
            int, tuple[weakref.ref[AnyArray], int, int]
        ] = {}  # memory, where the array in it begins, ends

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        outer, self._own.entered = getattr(self._own, "entered", False), True
        try:
            yield
        finally:
            self._own.entered = outer

    def _must_be_queued(self) -> None:
        assert not self.own_stream_only or getattr(self._own, "entered", False), "called on a stream of the thread's"

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> AnyArray:
        """An array filled with a pattern that is nothing sensible as a number, between guards."""
        self._must_be_queued()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * _GUARD + 16, _PATTERN, np.uint8)
        start = _GUARD + -(raw.ctypes.data + _GUARD) % 16
        array: AnyArray = raw[start : start + size].view(dtype).reshape(shape).view(OnDevice)
        key = id(raw)
        self._guarded[key] = weakref.ref(raw, lambda _: self._guarded.pop(key, None)), start, start + size
        return array

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> AnyArray:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def to_device(self, array: AnyArray) -> AnyArray:
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: AnyArray) -> AnyArray:
        self._must_be_queued()
        self.waits += 1
        assert isinstance(array, OnDevice), "copied to the host from there"
        return np.array(array)

    def address(self, array: AnyArray) -> int:
        return array.ctypes.data

    def compile(self, module: Module) -> None:
        library(module)

    def launch(self, module: Module, kernel: str, threads: int, *arguments: Any) -> None:
        self._must_be_queued()
        blocks = -(-threads // BLOCK_THREADS)
        given = [self._by_address(value) for value in module.arguments(kernel, arguments)]
        if blocks == 0:
            return
        self.launches.append(kernel)
        self.order.append(kernel)
        self.seed += 1
        run = getattr(library(module), f"launch_{kernel}")
        pointers = (ctypes.c_void_p * len(given))(*[value.ctypes.data for value in given])
        with _running:
            failed = run(pointers, ctypes.c_int64(blocks), ctypes.c_uint64(self.seed))
        assert not failed, f"{kernel}: {_ERRORS[failed]}"
        for memory, begin, end in list(self._guarded.values()):
            raw = memory()
            if raw is not None:
                beside = np.concatenate([raw[:begin], raw[end:]])
                assert (beside == _PATTERN).all(), f"{kernel} wrote beside an array"

    def running_sum(self, marks: AnyArray) -> AnyArray:
        return self.to_device(np.cumsum(marks.view(np.ndarray), dtype=np.int32))

    def stable_order(self, ids: AnyArray) -> AnyArray:
        return self.to_device(np.argsort(ids.view(np.ndarray), kind="stable"))

    def side_by_side(self, parts: Sequence[AnyArray]) -> AnyArray:
        return self.to_device(np.concatenate([part.view(np.ndarray) for part in parts], axis=1))

    def current_stream(self) -> Stream:
        return Stream(getattr(self.thread_stream, "handle", 0), getattr(self.thread_stream, "owner", None))

    def wait_for(self, stream: int) -> None:
        self._must_be_queued()
        self.order.append(f"waits for {stream}")
        self.streams.get(stream, lambda: None)()

    def let_go_on(self, stream: int) -> None:
        self._must_be_queued()
        self.order.append(f"{stream} goes on")

    def from_dlpack(self, array: Any) -> AnyArray:
        self._must_be_queued()
        return np.from_dlpack(_Lent(array.__dlpack__(stream=1))).view(OnDevice)

    def from_address(self, address: int, shape: tuple[int, ...], dtype: DTypeLike, owner: Any) -> AnyArray:
        memory: Any = (ctypes.c_char * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(address)
        memory.owner = owner
        array: AnyArray = np.frombuffer(memory, dtype).reshape(shape).view(OnDevice)
        return array

    def device_of(self, address: int) -> int:
        return address >> 60  # a test's arrays of other devices say that they lie there

    @staticmethod
    def _by_address(value: Any) -> AnyArray:
        """An array of one element that holds the argument: a number, or an array's address."""
        if value is None:
            return np.zeros(1, np.uint64)
        if isinstance(value, np.ndarray):
            return np.array([value.ctypes.data], np.uint64)
        return np.array([value])
