"""Arrays of other libraries as the launcher's own, where they lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rockbed.device_arrays import described, dtype_of, is_managed, shape_of
from rockbed.errors import WrongDtype, WrongShape
from rockbed.storage.gpu.launcher import DeviceArray, Launcher


def borrowed(launcher: Launcher, name: str, array: Any) -> DeviceArray:
    """The same memory as an array of the launcher's, which holds on to `array`. Nothing is copied.

    What the array's library has queued for it comes before what the launcher queues from now on: DLPack (`__dlpack__`)
    asks the library to see to that, `__cuda_array_interface__` names the stream. The host waits for neither. DLPack is
    preferred: torch's other interface names no stream. name: for messages.
    Raises WrongDtype (an array of another device, or one that its library does not lend), WrongShape (its values do
    not lie one after the other, or not at multiples of their size).
    """
    if hasattr(type(array), "__dlpack__"):
        number = int(array.__dlpack_device__()[1])
        if number != launcher.device and not is_managed(array):
            raise _of_another_device(launcher, name, array, number)
        try:
            found = launcher.from_dlpack(array)
        except BufferError as error:  # a tensor that wants a gradient, say
            raise WrongDtype(f"{name}: {described(array)} is not lent by its library: {error}") from error
    else:
        found = _from_interface(launcher, name, array)
    if (str(found.dtype), tuple(found.shape)) != (dtype_of(array), shape_of(array)):
        raise WrongDtype(
            f"{name}: {described(array)} is lent by its library as {found.dtype}{list(found.shape)}: send what it says "
            "it is"
        )
    if not found.flags.c_contiguous:
        raise _not_contiguous(name, array)
    if found.size and launcher.address(found) % found.dtype.itemsize:
        raise WrongShape(f"{name}: {described(array)} does not begin at a multiple of the size of its values: copy it")
    return found


def _from_interface(launcher: Launcher, name: str, array: Any) -> DeviceArray:
    interface = array.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise WrongDtype(f"{name}: {described(array)} has a mask: send the values that count")
    if 0 in shape:  # such an array has no address
        return launcher.empty(shape, dtype)
    strides = interface.get("strides")
    if strides is not None and not _in_order(shape, strides, dtype.itemsize):
        raise _not_contiguous(name, array)
    address, _ = interface["data"]
    number = launcher.device_of(address)
    if number != launcher.device:
        raise _of_another_device(launcher, name, array, number)
    stream = interface.get("stream")
    if stream is not None:  # None: its library asks for no order
        launcher.wait_for(stream)
    return launcher.from_address(address, shape, dtype, array)


def _in_order(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _not_contiguous(name: str, array: Any) -> WrongShape:
    return WrongShape(
        f"{name}: {described(array)} is not contiguous, and is read where it lies: send a copy "
        "(cupy.ascontiguousarray(array), tensor.contiguous())"
    )


def _of_another_device(launcher: Launcher, name: str, array: Any, number: int) -> WrongDtype:
    return WrongDtype(
        f"{name}: {described(array)} is in the memory of cuda:{number}, the rows are in that of "
        f"cuda:{launcher.device}: copy it there"
    )
