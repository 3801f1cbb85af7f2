"""Stand-ins for other libraries on the shim's device: streams with work that is not done yet, arrays that are lent."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rockbed import FusedEmbedding, FusedOutput, Ragged
from rockbed.types import AnyArray
from tests.gpu.host_launcher import HostLauncher


class Stream:
    """What is queued here is done when the launcher's stream waits for it, as on a device that is slow."""

    def __init__(self, launcher: HostLauncher, handle: int) -> None:
        self.handle = handle
        self._queued: list[Callable[[], None]] = []
        launcher.streams[handle] = self.run

    def queue(self, work: Callable[[], None]) -> None:
        self._queued.append(work)

    def run(self) -> None:
        queued, self._queued = self._queued, []
        for work in queued:
            work()

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class Lent:
    """An array of another library, which is filled on its stream. values: what it will hold."""

    def __init__(self, values: AnyArray, stream: Stream | None = None) -> None:
        self.array = np.full_like(values, 77)
        self.stream = stream
        if stream is None:
            self.array[...] = values
        else:
            stream.queue(lambda: np.copyto(self.array, values))


class ByInterface(Lent):
    """As numba's: `__cuda_array_interface__` alone, in which `changes` stand instead. Read-only without a stream."""

    def __init__(self, values: AnyArray, stream: Stream | None = None, **changes: Any) -> None:
        super().__init__(values, stream)
        self.array.flags.writeable = stream is not None
        self.changes = changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.array.ctypes.data if self.array.size else 0, not self.array.flags.writeable),
            "strides": None if self.array.flags.c_contiguous else self.array.strides,
            "version": 3,
            "stream": None if self.stream is None else self.stream.handle,
            **self.changes,
        }


class ByDlpack(Lent):
    """As torch's: DLPack, whose library has the asking stream wait. device: as `__dlpack_device__` says."""

    def __init__(self, values: AnyArray, stream: Stream | None = None, device: tuple[int, int] = (2, 0)) -> None:
        super().__init__(values, stream)
        self._device = device

    @property
    def dtype(self) -> str:
        return f"library.{self.array.dtype}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == 1, "the launcher's stream is the default one"
        if self.stream is not None:
            self.stream.run()
        return self.array.__dlpack__()


Lend = Callable[..., Any]
"""Makes a Lent of an array, on a stream if one is given."""


def lent(bags: Ragged, lend: Lend = ByDlpack, stream: Stream | None = None) -> Ragged:
    """The same bags with arrays that are lent."""
    weights = None if bags.weights is None else lend(bags.weights, stream)
    return Ragged(lend(bags.keys, stream), lend(bags.offsets, stream), weights)


def lent_batch(batch: dict[str, Ragged], lend: Lend = ByDlpack, stream: Stream | None = None) -> dict[str, Ragged]:
    return {name: lent(bags, lend, stream) for name, bags in batch.items()}


def results(fused: FusedEmbedding, out: FusedOutput) -> list[AnyArray]:
    """What was found, in memory."""
    device = fused.storage.backend.device
    assert device is not None
    with device.queue():
        return [device.down(each) for each in (out.pooled, *out.sequences.values())]
