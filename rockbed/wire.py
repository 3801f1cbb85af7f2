"""Arrays as bytes, the same on both ends of the wire: proto/rockbed/v1/embedding.proto has the layout.

No numba and no gRPC here: precision is named as in the protocol, 0 float32, 1 float16, 2 bfloat16.
"""

import numpy as np

from rockbed.errors import DimMismatch, InvalidConfig, WrongShape
from rockbed.types import F32, I64

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
PRECISIONS = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
CODE_KEY = "rockbed-code"
CLIENT_KEY = "rockbed-client"
TOKEN_KEY = "authorization"
TOKEN_SCHEME = "Bearer "
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Milliseconds until a refused call should be tried again: gRPC's standard name (gRFC A6)."""


def float_bytes(precision: int) -> int:
    """Bytes of a float on the wire."""
    return 4 if precision == FLOAT32 else 2


def keys_to_bytes(keys: I64) -> bytes:
    """int64[n] as 8 bytes each."""
    return keys.astype("<i8", copy=False).tobytes()


def keys_from_bytes(data: bytes | memoryview) -> I64:
    """The reverse: int64[n], writable. Raises WrongShape."""
    if len(data) % 8:
        raise WrongShape(f"keys are {len(data)} bytes: send int64[n] as 8 bytes each, little-endian")
    return np.frombuffer(data, "<i8").astype(np.int64)


def floats_to_bytes(values: F32, precision: int) -> bytes:
    """float32[...], C-contiguous, in the precision of the wire, rounded to the nearest, ties to even.

    float16 holds up to 65504 (beyond: infinity) with a relative error of 2^-11; bfloat16 float32's range with 2^-8.
    """
    if precision == FLOAT32:
        return values.astype("<f4", copy=False).tobytes()
    if precision == FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    must_be_known(precision)
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # adding could carry a NaN over into infinity or zero: it stays one, quiet
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), half).astype("<u2").tobytes()


def keys_to_wire(keys: I64) -> I64:
    """As keys_to_bytes, without the copy."""
    return keys.astype("<i8", copy=False)


def floats_to_wire(values: F32, precision: int) -> F32 | bytes:
    """As floats_to_bytes, without the copy where none is needed."""
    return values.astype("<f4", copy=False) if precision == FLOAT32 else floats_to_bytes(values, precision)


def floats_into(out: F32, data: bytes | memoryview, precision: int, what: str) -> None:
    """As floats_from_bytes, into float32[n, dim] that is there."""
    if precision == FLOAT32 and len(data) == out.nbytes:
        out[:] = np.frombuffer(data, "<f4").reshape(out.shape)
    else:
        n, dim = out.shape
        out[:] = floats_from_bytes(data, n, dim, precision, what)


def floats_from_bytes(
    data: bytes | memoryview, n: int, dim: int, precision: int, what: str, *, lent: bool = False
) -> F32:
    """The reverse: float32[n, dim]. Raises DimMismatch where the bytes are not as many, InvalidConfig.

    lent: it may be where the bytes lie, if they can be written to and are aligned there: whoever else has them may
    change it. Otherwise nobody else has it.
    """
    must_be_known(precision)
    if len(data) != n * dim * float_bytes(precision):
        raise DimMismatch(
            f"{what} are {len(data)} bytes for {n} keys of dim {dim}: send [{n}, {dim}] floats of "
            f"{float_bytes(precision)} bytes, {n * dim * float_bytes(precision)} bytes in all"
        )
    if precision == FLOAT32:
        found = np.frombuffer(data, "<f4")
        return (np.require(found, np.float32, ["A", "W"]) if lent else found.astype(np.float32)).reshape(n, dim)
    if precision == FLOAT16:
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(n, dim)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(n, dim)


def must_be_known(precision: int) -> None:
    """Raise InvalidConfig for a precision that the protocol does not have."""
    if precision not in PRECISIONS.values():
        raise InvalidConfig(f"precision {precision} is unknown: 0 is float32, 1 float16, 2 bfloat16")
