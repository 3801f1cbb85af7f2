"""What the device tier needs of whatever runs its kernels. `CupyLauncher` is a GPU; the tests have one on the CPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import DTypeLike

from rockbed.device_arrays import Stream
from rockbed.storage.gpu.sources import Module
from rockbed.types import AnyArray

DeviceArray = Any
"""An array in the device's memory with dtype, shape, size, flags, reshape, view, slices, and item assignment from
others. It lends itself to other libraries: `__cuda_array_interface__` with a stream, `__dlpack__`."""


class Launcher(Protocol):
    """One device and one stream. Calls are queued in their order; only `to_host` waits for them.

    device: its number. Streams of others are given by their handles, cudaStream_t as an integer.
    """

    device: int

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

    def side_by_side(self, parts: Sequence[DeviceArray]) -> DeviceArray:
        """float32[n, sum of widths] of float32[n, width] each, one part at least. Raises DeviceOutOfMemory."""

    # --- arrays and streams of others ---

    def current_stream(self) -> Stream:
        """The stream on which the thread has its own work done, outside of `own_stream`; 0 or 1: the default one."""

    def wait_for(self, stream: int) -> None:
        """Have what is called from now on begin, on the device, when all that the stream has now is done."""

    def let_go_on(self, stream: int) -> None:
        """Have what the stream gets from now on begin, on the device, when all that was called here is done."""

    def from_dlpack(self, array: Any) -> DeviceArray:
        """An array of this device that has `__dlpack__`, without a copy, asked to be ready for this stream. Raises
        BufferError for one that its library does not lend."""

    def from_address(self, address: int, shape: tuple[int, ...], dtype: DTypeLike, owner: Any) -> DeviceArray:
        """What lies at an address of this device, contiguous, without a copy. owner: keeps it there."""

    def device_of(self, address: int) -> int:
        """The number of the device whose memory an address is in."""
