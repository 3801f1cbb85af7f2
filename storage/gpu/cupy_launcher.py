"""The launcher of a real GPU, through CuPy: kernels compiled by NVRTC at first use and kept on disk by CuPy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rockbed.errors import DeviceOutOfMemory, DeviceUnavailable, MissingPackage
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.storage.gpu.sources import BLOCK_THREADS, OPTIONS, Module
from rockbed.types import AnyArray

_NULL = np.uint64(0)
_compiled: dict[tuple[int, Module], Any] = {}  # device and module -> CuPy's module, for the life of the process
_functions: dict[tuple[int, Module, str], Any] = {}


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise MissingPackage(
            f"a GPU needs CuPy, which cannot be imported ({error}): pip install 'rockbed[gpu]', or CuPy's package for "
            "your version of CUDA"
        ) from error
    return cupy


class CupyLauncher:
    """One GPU, and the stream that is CuPy's current one when a call is made.

    Raises MissingPackage without CuPy, DeviceUnavailable where there is no such device or no driver.
    """

    def __init__(self, device: int = 0) -> None:
        self._cp = cp = _cupy()
        try:
            count = cp.cuda.runtime.getDeviceCount()
        except cp.cuda.runtime.CUDARuntimeError as error:
            raise DeviceUnavailable(
                f"no CUDA device can be used ({error}): see whether `nvidia-smi` lists one. Rows stay on the CPU with "
                "device='cpu'"
            ) from error
        if not 0 <= device < count:
            raise DeviceUnavailable(
                f"cuda:{device} was asked for, and the machine has {count} CUDA devices, from cuda:0 on"
            )
        self.device = device

    @contextmanager
    def stream(self, handle: int) -> Iterator[None]:
        """Queue what the block calls on a stream of somebody else, such as torch.cuda.current_stream().cuda_stream."""
        with self._cp.cuda.Device(self.device), self._cp.cuda.ExternalStream(handle):
            yield

    def borrow(self, array: Any) -> DeviceArray:
        """An array of another library (`__cuda_array_interface__`, or DLPack) as CuPy's, without a copy."""
        with self._cp.cuda.Device(self.device):
            if hasattr(array, "__cuda_array_interface__"):
                return self._cp.asarray(array)
            return self._cp.from_dlpack(array)

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        with self._memory(shape, dtype):
            return self._cp.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        with self._memory(shape, dtype):
            return self._cp.zeros(shape, dtype)

    def to_device(self, array: AnyArray) -> DeviceArray:
        with self._memory(array.shape, array.dtype):
            return self._cp.asarray(array)

    def to_host(self, array: DeviceArray) -> AnyArray:
        with self._cp.cuda.Device(self.device):
            host: AnyArray = self._cp.asnumpy(array)
        return host

    def address(self, array: DeviceArray) -> int:
        return int(array.data.ptr)

    def launch(self, module: Module, kernel: str, threads: int, *arguments: Any) -> None:
        given = tuple(_NULL if value is None else value for value in module.arguments(kernel, arguments))
        if threads == 0:
            return
        with self._cp.cuda.Device(self.device):
            self._function(module, kernel)((-(-threads // BLOCK_THREADS),), (BLOCK_THREADS,), given)

    def running_sum(self, marks: DeviceArray) -> DeviceArray:
        with self._memory(marks.shape, np.int32):
            return self._cp.cumsum(marks, dtype=np.int32)

    def stable_order(self, ids: DeviceArray) -> DeviceArray:
        with self._memory(ids.shape, np.int64):
            return self._cp.argsort(ids, kind="stable")

    def _function(self, module: Module, kernel: str) -> Any:
        key = self.device, module, kernel
        if key not in _functions:
            compiled = _compiled.get(key[:2])
            if compiled is None:
                compiled = _compiled[key[:2]] = self._cp.RawModule(code=module.text(), options=OPTIONS)
            _functions[key] = compiled.get_function(kernel)
        return _functions[key]

    @contextmanager
    def _memory(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Iterator[None]:
        try:
            with self._cp.cuda.Device(self.device):
                yield
        except self._cp.cuda.memory.OutOfMemoryError as error:
            wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise DeviceOutOfMemory(
                f"cuda:{self.device} has no {wanted} bytes left ({error}): send smaller batches, or give the device "
                "tier a smaller budget, so that there is room for what a batch needs besides"
            ) from error
