"""The launcher of a real GPU, through CuPy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rockbed.device_arrays import Stream
from rockbed.errors import DeviceOutOfMemory, DeviceUnavailable, MissingPackage
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.storage.gpu.nvrtc import kept
from rockbed.storage.gpu.sources import BLOCK_THREADS, Module
from rockbed.types import AnyArray

_NULL = np.uint64(0)
_DEFAULT = (0, 1)  # handles of the default stream: as CUDA's functions have it, and by its name cudaStreamLegacy
_functions: dict[tuple[int, Module, str], Any] = {}  # device, module and kernel -> CuPy's kernel


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
    """One GPU. Calls are queued on CuPy's current stream, which within `own_stream` is the device's default one.

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
    def own_stream(self) -> Iterator[None]:
        with self._cp.cuda.Device(self.device), self._cp.cuda.Stream.null:
            yield

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
        with self._memory(array.shape, array.dtype):  # columns of an array are put together on the device first
            host: AnyArray = self._cp.asnumpy(array)
        return host

    def address(self, array: DeviceArray) -> int:
        return int(array.data.ptr)

    def compile(self, module: Module) -> None:
        with self._cp.cuda.Device(self.device):
            for kernel in module.kernels():
                self._function(module, kernel)

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

    def side_by_side(self, parts: Sequence[DeviceArray]) -> DeviceArray:
        shape = parts[0].shape[0], sum(part.shape[1] for part in parts)
        with self._memory(shape, np.float32):
            return self._cp.concatenate(parts, axis=1)

    def current_stream(self) -> Stream:
        current = self._cp.cuda.get_current_stream(self.device)
        return Stream(int(current.ptr), current)

    def wait_for(self, stream: int) -> None:
        self._order(stream, self.current_stream().handle)

    def let_go_on(self, stream: int) -> None:
        self._order(self.current_stream().handle, stream)

    def from_dlpack(self, array: Any) -> DeviceArray:
        with self._cp.cuda.Device(self.device):
            return self._cp.from_dlpack(array)  # which names CuPy's current stream to the array's library

    def from_address(self, address: int, shape: tuple[int, ...], dtype: DTypeLike, owner: Any) -> DeviceArray:
        # not cupy.asarray: it has the host wait for the stream that the array names
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._cp.cuda.UnownedMemory(address, size, owner, self.device)
        return self._cp.ndarray(shape, dtype, self._cp.cuda.MemoryPointer(memory, 0))

    def device_of(self, address: int) -> int:
        return int(self._cp.cuda.runtime.pointerGetAttributes(address).device)

    def _order(self, first: int, then: int) -> None:
        # By handles: an object of CuPy's for somebody else's stream could destroy that stream with itself.
        if first in _DEFAULT and then in _DEFAULT:
            return
        runtime = self._cp.cuda.runtime
        with self._cp.cuda.Device(self.device):
            event = self._cp.cuda.Event(disable_timing=True)
            runtime.eventRecord(event.ptr, first)
            runtime.streamWaitEvent(then, event.ptr)

    def _function(self, module: Module, kernel: str) -> Any:
        key = self.device, module, kernel
        if key not in _functions:
            architecture = f"sm_{self._cp.cuda.Device().compute_capability}"
            loaded = self._cp.RawModule(path=str(kept(module, architecture)))
            for name in module.kernels():
                _functions[self.device, module, name] = loaded.get_function(name)
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
