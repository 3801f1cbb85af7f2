"""Arrays whose size is an upper bound: address space now, memory when a page is first written."""

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rockbed.errors import InvalidConfig

_HUGE_PAGE = 2 << 20
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named in Python 3.13; the number is Linux's


def reserve(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A zeroed array that takes memory only where it was written, in huge pages where the kernel offers them.

    So a slab can be as long as the memory budget allows and never moves when it fills, and random rows cost fewer TLB
    misses. Raises InvalidConfig where the address space is used up.
    """
    count = int(np.prod(shape))
    size = max(1, count * np.dtype(dtype).itemsize)
    try:
        block = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except OSError as error:
        raise InvalidConfig(
            f"the system gives this process no more address space ({size} bytes asked for: {error}). Each group takes "
            "as much of it as memory_budget says: open the store with a smaller memory_budget, or with fewer groups"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _HUGE_PAGE:
        # fails only on kernels built without transparent huge pages: small pages are then what there is
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, dtype=dtype, count=count).reshape(shape)


def release_tail(array: NDArray[Any], first: int) -> None:
    """Give back the memory of `array[first:]`, an array made by `reserve`; what is read there afterwards is zero."""
    block: Any = array
    while isinstance(block, np.ndarray):
        block = block.base
    owner = block.obj if isinstance(block, memoryview) else block
    if not isinstance(owner, mmap.mmap):
        raise TypeError("release_tail takes an array made by reserve()")
    page = mmap.PAGESIZE
    start = -(-first * array.strides[0] // page) * page
    length = array.nbytes // page * page - start
    if length > 0:
        owner.madvise(mmap.MADV_DONTNEED, start, length)
