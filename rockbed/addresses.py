"""Arrays by their addresses, for kernels that work on many of different sizes in one call: numba takes no list of them.

Whoever hands an address to a kernel holds on to the array until the kernel returns.
"""

from typing import Any

import numpy as np

from rockbed.kernels import Deferred, inlined, kernel
from rockbed.types import AnyArray


def address_of(array: AnyArray) -> int:
    """Where the first value of a C-contiguous array is; 0 for an empty one."""
    if not array.size:
        return 0
    assert array.flags.c_contiguous
    return _address(array)


class Addresses:
    """`address_of` for arrays of which some are the same, each asked for once. It holds on to none of them."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def of(self, array: AnyArray) -> int:
        """Where it begins."""
        known = self._known.get(id(array))
        if known is None:
            known = self._known[id(array)] = address_of(array)
        return known


@kernel
def _address(array: AnyArray) -> int:
    return array.ctypes.data  # what takes 0.8 us in Python


def _pointer_to(typing_context: Any, address: Any) -> Any:
    from numba.core import types

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.voidptr(types.int64), generate


_pointer: Any = Deferred(_pointer_to, lambda numba, f: numba.extending.intrinsic(f))
_array: Any = Deferred(lambda: None, lambda numba, f: numba.carray)


@inlined
def floats_at(address: int, n: int) -> Any:
    """The float32[n] there. Inside kernels only, as those below."""
    return _array(_pointer(address), (n,), np.float32)


@inlined
def float_rows_at(address: int, n: int, width: int) -> Any:
    """float32[n, width]."""
    return _array(_pointer(address), (n, width), np.float32)


@inlined
def integers_at(address: int, n: int) -> Any:
    """int64[n]."""
    return _array(_pointer(address), (n,), np.int64)


@inlined
def words_at(address: int, n: int) -> Any:
    """uint64[n]."""
    return _array(_pointer(address), (n,), np.uint64)


@inlined
def integer_rows_at(address: int, n: int, width: int) -> Any:
    """int64[n, width]."""
    return _array(_pointer(address), (n, width), np.int64)


@inlined
def bytes_at(address: int, n: int) -> Any:
    """uint8[n]."""
    return _array(_pointer(address), (n,), np.uint8)


@inlined
def int32_at(address: int, n: int) -> Any:
    """int32[n]."""
    return _array(_pointer(address), (n,), np.int32)
