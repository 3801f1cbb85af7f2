"""What the device tier needs of whatever runs its kernels. `CupyLauncher` is a GPU; the tests have one on the CPU."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import DTypeLike

from rockbed.storage.gpu.sources import Module
from rockbed.types import AnyArray

DeviceArray = Any
"""An array in the device's memory with dtype, shape, size, reshape, view and slices of the first axis."""


class Launcher(Protocol):
    """One device and one stream. Calls are queued in their order; only `to_host` waits for them."""

    def own_stream(self) -> AbstractContextManager[None]:
        """Queue what the block calls on one stream, the same for every thread, whatever stream the thread has set."""

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Memory with anything in it. Raises DeviceOutOfMemory."""

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Memory set to 0. Raises DeviceOutOfMemory."""

    def to_device(self, array: AnyArray) -> DeviceArray:
        """A copy of a host array, which may change once the call has returned."""

    def to_host(self, array: DeviceArray) -> AnyArray:
        """A copy of a device array. Waits for everything queued before."""

    def address(self, array: DeviceArray) -> int:
        """Where the array begins, for tables of pointers that kernels read."""

    def compile(self, module: Module) -> None:
        """Have the module's kernels ready."""

    def launch(self, module: Module, kernel: str, threads: int, *arguments: Any) -> None:
        """Queue a kernel with at least so many threads, in blocks of sources.BLOCK_THREADS; none for 0.

        arguments: as `Module.arguments` takes them.
        """

    def running_sum(self, marks: DeviceArray) -> DeviceArray:
        """int32[n]: the sums of marks[0..i]. marks: int32[n]."""

    def stable_order(self, ids: DeviceArray) -> DeviceArray:
        """int64[n]: positions in ascending order of their ids, those of equal ids in their own. ids: uint32[n]."""
