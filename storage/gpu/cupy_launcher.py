"""The launcher of a real GPU, through CuPy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rockbed.errors import DeviceOutOfMemory, DeviceUnavailable, MissingPackage
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.storage.gpu.nvrtc import kept
from rockbed.storage.gpu.sources import BLOCK_THREADS, Module
from rockbed.types import AnyArray

_NULL = np.uint64(0)
_functions: dict[tuple[int, Module, str], Any] = {}  # device, module and kernel -> CuPy's kernel


class _Stream:
    """A stream of somebody else, by the protocol that CuPy asks for."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


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
    """One GPU. Calls are queued on CuPy's current stream, or on that of a `stream` block.

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
        self._done: Any = None  # an event behind what the last block on a stream queued

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        with self._cp.cuda.Device(self.device), self._cp.cuda.Stream.null:
            yield

    @contextmanager
    def stream(self, handle: int) -> Iterator[None]:
        """Queue what the block calls on a stream of somebody else, such as torch.cuda.current_stream().cuda_stream.

        It waits on the device for what the block before queued, on whatever stream; the host does not wait. Calls
        outside of such blocks go to CuPy's current stream and wait for nobody.
        """
        stream = self._cp.cuda.Stream.from_external(_Stream(handle))
        with self._cp.cuda.Device(self.device), stream:
            if self._done is not None:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done = stream.record()

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
