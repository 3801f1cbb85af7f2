"""What callers may send: keys, weights and gradients, checked before anything happens."""

from typing import Any

import numpy as np

from rockbed.config import GROUPS
from rockbed.device_arrays import described as described_there
from rockbed.device_arrays import on_device
from rockbed.errors import InvalidConfig, UnknownGroup, WrongDtype, WrongShape
from rockbed.requests import PutRows
from rockbed.types import F32, I64, AnyArray


def described(value: Any) -> str:
    """What was sent, for messages: dtype and shape of an array, the type of anything else."""
    if on_device(value):
        return described_there(value)
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def checked_flag(name: str, value: Any) -> bool:
    """True or False, which may be numpy's. Raises InvalidConfig."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidConfig(f"{name} is {value!r}, not True or False")
    return bool(value)


def must_be_whole(name: str, array: Any) -> None:
    """Raise WrongDtype for a masked array of numpy's, of which everything would be taken."""
    if isinstance(array, np.ndarray) and hasattr(array, "mask"):
        raise WrongDtype(
            f"{name} must be a plain numpy array, not a masked one: say what its mask means, by .compressed() or "
            ".filled(value)"
        )


def checked_keys(keys: Any) -> I64:
    """int64[n] bit patterns of the keys, contiguous; a copy only where the array sent is not.

    Raises WrongDtype unless it is a numpy array of int64 or uint64, WrongShape unless it has one axis.
    """
    must_be_whole("keys", keys)
    if not isinstance(keys, np.ndarray) or keys.dtype not in (np.dtype(np.int64), np.dtype(np.uint64)):
        floats = isinstance(keys, np.ndarray) and keys.dtype.kind == "f"
        advice = "read them as integers, floats hold keys to 2^53 only" if floats else "use np.asarray(keys, np.int64)"
        if on_device(keys):
            advice = (
                "copy them to memory (cupy.asnumpy, tensor.cpu().numpy()); a FusedEmbedding can take them as they are"
            )
        raise WrongDtype(f"keys must be a numpy array of int64 or uint64, not {described(keys)}: {advice}")
    if keys.ndim != 1:
        raise WrongShape(f"keys must have one axis, not {described(keys)}: use keys.reshape(-1)")
    return _whole(keys).view(np.int64)


def _whole(array: AnyArray) -> AnyArray:
    """The array as kernels take it, contiguous, aligned and writable: others are rare enough to be copied."""
    whole = np.ascontiguousarray(array)
    return whole if whole.flags.aligned and whole.flags.writeable else whole.copy()


def _checked_size(name: str, array: Any, n: int, dim: int) -> None:
    must_be_whole(name, array)
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(np.float32):
        raise WrongDtype(f"{name} must be a numpy array of float32, not {described(array)}: use .astype(np.float32)")
    if array.shape not in ((n * dim,), (n, dim)):
        raise WrongShape(
            f"{name} must be float32[{n}, {dim}] or float32[{n * dim}] for {n} keys of dim {dim}, not "
            f"{described(array)}"
        )


def checked_gradients(gradients: Any, n: int, dim: int) -> F32:
    """float32[n, dim], contiguous; a copy only where the array sent is not. Raises WrongDtype, WrongShape."""
    _checked_size("gradients", gradients, n, dim)
    return _whole(gradients).reshape(n, dim)


def checked_floats(name: str, array: Any, shape: tuple[int, ...]) -> F32:
    """float32 of just this shape, contiguous, a copy only where the array is not. Raises WrongDtype, WrongShape."""
    must_be_whole(name, array)
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(np.float32):
        raise WrongDtype(f"{name} must be a numpy array of float32, not {described(array)}: use .astype(np.float32)")
    if array.shape != shape:
        raise WrongShape(f"{name} must be float32{list(shape)}, not {described(array)}")
    return _whole(array)


def checked_integers(name: str, array: Any, axes: int) -> I64:
    """int64 with so many axes, contiguous, of an array of int64 or int32. Raises WrongDtype, WrongShape."""
    must_be_whole(name, array)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.dtype(np.int64), np.dtype(np.int32)):
        raise WrongDtype(f"{name} must be a numpy array of int64 or int32, not {described(array)}")
    if array.ndim != axes:
        raise WrongShape(f"{name} must have {'one axis' if axes == 1 else f'{axes} axes'}, not {described(array)}")
    return _whole(array.astype(np.int64, copy=False))


def checked_output(weights: Any, keys: I64, dim: int) -> F32:
    """The caller's array as float32[n, dim], to be written to. Raises WrongDtype, WrongShape."""
    _checked_size("weights", weights, keys.size, dim)
    if not weights.flags.writeable:
        raise WrongShape("weights is read-only and would have to be written to: pass an array of your own, or none")
    if not (weights.flags.c_contiguous and weights.flags.aligned):
        lacks = "aligned to its values" if weights.flags.c_contiguous else "contiguous"
        raise WrongShape(f"weights is not {lacks}: pass np.empty((n, dim), np.float32) and copy from it, or pass none")
    if np.may_share_memory(weights, keys):
        raise WrongShape("weights and keys share memory: filling one would destroy the other")
    out: F32 = weights.reshape(keys.size, dim)
    return out


def checked_rows(keys: I64, weights: Any, slots: Any, update_num: Any, update_time_ms: Any) -> PutRows:
    """Rows to be stored. Raises WrongDtype, WrongShape."""
    floats = [_checked_matrix(name, value) for name, value in (("weights", weights), ("slots", slots))]
    numbers = [_checked_numbers(n, v) for n, v in (("update_num", update_num), ("update_time_ms", update_time_ms))]
    if floats[0] is None:
        raise WrongDtype("weights must be a numpy array of float32[n, dim], not None")
    return PutRows(keys, floats[0], floats[1], *numbers)


def _checked_matrix(name: str, array: Any) -> F32 | None:
    if array is None:
        return None
    must_be_whole(name, array)
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(np.float32):
        raise WrongDtype(f"{name} must be a numpy array of float32, not {described(array)}: use .astype(np.float32)")
    if array.ndim != 2:
        raise WrongShape(f"{name} must have two axes, [n, width], not {described(array)}")
    return np.ascontiguousarray(array)


def _checked_numbers(name: str, array: Any) -> I64 | None:
    if array is None:
        return None
    must_be_whole(name, array)
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(np.int64):
        raise WrongDtype(f"{name} must be a numpy array of int64, not {described(array)}: use .astype(np.int64)")
    if array.ndim != 1:
        raise WrongShape(f"{name} must have one axis, not {described(array)}")
    return np.ascontiguousarray(array)


def checked_group(group: Any) -> int:
    """A group's number as it can be sent. Raises UnknownGroup for what is none."""
    if isinstance(group, bool) or not isinstance(group, int | np.integer) or not 0 <= group < GROUPS:
        raise UnknownGroup(f"group {group!r} does not exist: groups are whole numbers from 0 to {GROUPS - 1}")
    return int(group)


def checked_vector(what: str, array: AnyArray, writable: bool = False) -> None:
    """Check for a contiguous float32[n]. Raises WrongDtype and WrongShape; nothing is converted or copied."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise WrongDtype(f"{what} must be a float32 array, not {kind}: convert it with np.asarray(x, np.float32)")
    if array.ndim != 1:
        raise WrongShape(f"{what} must have one axis, not the shape {array.shape}")
    if not array.flags.c_contiguous:
        raise WrongShape(f"{what} must be contiguous, not strided by {array.strides[0]} bytes")
    if writable and not array.flags.writeable:
        raise WrongShape(f"{what} is updated in place but is read-only: pass a copy")


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; without loading torch to find out."""
    return type(value).__module__.partition(".")[0] == "torch"
