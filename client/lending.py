"""Arrays of a GPU that callers lend for a fused call: checked, and handed to the storage's device."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from rockbed.bags import KEYS_MAX, Bags, check_sizes
from rockbed.client.arrays import checked_floats
from rockbed.device_arrays import Stream, described, dtype_of, on_device, shape_of
from rockbed.errors import BatchTooLarge, InvalidConfig, WrongDtype, WrongShape

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage
    from rockbed.storage.gpu.devices import Device

_Result = TypeVar("_Result")
_log = logging.getLogger("rockbed")


def check_lent(keys: Any, offsets: Any, weights: Any) -> None:
    """What can be said of a Ragged's arrays, of which one at least is on a GPU, without looking at their values.

    Raises WrongDtype, WrongShape, BatchTooLarge.
    """
    kinds: list[tuple[str, Any, tuple[str, ...]]] = [("keys", keys, ("int64", "uint64"))]
    kinds.append(("offsets", offsets, ("int64", "int32")))
    if weights is not None:
        kinds.append(("weights", weights, ("float32",)))
    for name, array, dtypes in kinds:
        if not on_device(array):
            lent = next(other for other, value, _ in kinds if on_device(value))
            raise WrongDtype(
                f"{name} are a {type(array).__name__} that is on no GPU, while {lent} are on one: all arrays of a "
                "Ragged lie in one place"
            )
        if dtype_of(array) not in dtypes:
            raise WrongDtype(f"{name} must be {' or '.join(dtypes)}, not {described(array)}: convert them there")
        if len(shape_of(array)) != 1:
            raise WrongShape(f"{name} must have one axis, not {described(array)}: use {name}.reshape(-1)")
    nnz, bags = shape_of(keys)[0], shape_of(offsets)[0] - 1
    if nnz > KEYS_MAX:
        raise BatchTooLarge(f"{nnz} keys, {KEYS_MAX} are the most of a batch: send smaller batches")
    check_sizes(nnz, bags + 1, None if weights is None else shape_of(weights)[0])


def must_be_in_memory(what: str, *arrays: Any) -> None:
    """Raise WrongDtype for arrays of a GPU where only numpy's are taken."""
    for array in arrays:
        if on_device(array):
            raise WrongDtype(
                f"{what} takes numpy arrays, not {described(array)}: on a GPU make keys and offsets of it "
                "(Ragged(keys, offsets, weights)), or copy it to memory (cupy.asnumpy(array), tensor.cpu().numpy())"
            )


@dataclass(frozen=True, slots=True)
class Borrower:
    """A call with arrays of a GPU. Made, and given its arrays, in the caller's thread, whose streams libraries go by.

    streams: those of the caller; what they have when the call is made comes before its work on the device, what they
    get when it has returned comes after.
    """

    device: "Device"
    streams: tuple[Stream, ...]

    @classmethod
    def for_call(cls, storage: "PyStorage", arrays: Iterable[tuple[str, Any]], stream: Any) -> "Borrower | None":
        """For a call with these arrays, by name; None where none of them is a GPU's.

        stream: the caller's, as fused calls take it. Raises WrongDtype where the storage takes no arrays of a GPU, or
        stream is none; InvalidConfig where there is one and no such array.
        """
        given = _stream_of(stream)
        sent = next((f"{name}: {described(array)}" for name, array in arrays if on_device(array)), None)
        if sent is None:
            if given is not None:
                raise InvalidConfig("stream is for arrays of a GPU, and none of this call's is one: leave it out")
            return None
        device = storage.backend.device
        if device is None:
            raise WrongDtype(
                f"{sent} was sent, and {storage!r} keeps no rows on a GPU of this process: send numpy arrays "
                "(cupy.asnumpy(array), tensor.cpu().numpy()), or open a directory with device='cuda:0'"
            )
        return cls(device, device.follow(given))

    def bags(self, bags: Bags) -> Bags:
        """The same, its arrays the device's own where they are a GPU's. Raises WrongDtype, WrongShape."""
        if not bags.on_device:
            return bags
        where = f"feature {bags.name!r}: "
        weights = bags.weights
        return replace(
            bags,
            keys=self.device.borrow(where + "keys", bags.keys).view(np.int64),
            offsets=self.device.as_int64(self.device.borrow(where + "offsets", bags.offsets)),
            weights=None if weights is None else self.device.borrow(where + "weights", weights),
        )

    def floats(self, name: str, array: Any, shape: tuple[int, ...]) -> Any:
        """float32 of just this shape, contiguous, wherever it is. Raises WrongDtype, WrongShape."""
        if not on_device(array):
            return checked_floats(name, array, shape)
        if dtype_of(array) != "float32":
            raise WrongDtype(f"{name} must be float32, not {described(array)}: convert it there")
        if shape_of(array) != shape:
            raise WrongShape(f"{name} must be float32{list(shape)}, not {described(array)}")
        return self.device.borrow(name, array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array of the device with anything in it. Raises DeviceOutOfMemory."""
        with self.device.queue():
            return self.device.launcher.empty(shape, dtype)

    def look_up(self, work: Callable[[], _Result]) -> _Result:
        """What a lookup does, in whatever thread."""
        try:
            return work()
        finally:
            self.device.lead(self.streams)

    def push(self, work: Callable[[], bool]) -> bool:
        """What a push does, in whatever thread. Where it was applied, nothing that comes after makes it an error."""
        try:
            return work()
        finally:
            try:
                self.device.lead(self.streams)
            except Exception as error:
                # the device, or a stream of the caller's, is gone: whatever uses it next says so
                _log.warning("rockbed: after a push the caller's streams are not ordered behind the device: %s", error)


def _stream_of(stream: Any) -> Stream | None:
    if stream is None:
        return None
    if hasattr(stream, "__cuda_stream__"):
        return Stream(int(stream.__cuda_stream__()[1]), stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise WrongDtype(
            f"stream is {stream!r}, not a CUDA stream: give an object with __cuda_stream__ (a stream of torch's or "
            "CuPy's), or its handle as an int (torch.cuda.current_stream().cuda_stream)"
        )
    return Stream(stream)
