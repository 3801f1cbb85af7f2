"""Arrays in the memory of a GPU, of whatever library: told from numpy's, and described, without loading any."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_CUDA, _CUDA_MANAGED = 2, 13  # DLPack's kDLCUDA and kDLCUDAManaged


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of a caller's. handle: cudaStream_t as an integer. owner: the object that destroys the stream with
    itself, held so that it does not while a call goes on; None for a handle alone."""

    handle: int
    owner: Any = None


def on_device(array: Any) -> bool:
    """Whether it is an array in the memory of an NVIDIA GPU: one that lends it by DLPack (CuPy, torch, JAX) or by
    `__cuda_array_interface__` alone (numba)."""
    if array is None or type(array) is np.ndarray:
        return False
    try:
        if hasattr(type(array), "__dlpack_device__"):
            return int(array.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
        return hasattr(array, "__cuda_array_interface__")
    except Exception:  # of any library: it is somewhere that DLPack has no number for, on several devices, gone
        return False


def is_managed(array: Any) -> bool:
    """Whether an array that has `__dlpack_device__` is in memory that all GPUs reach."""
    return int(array.__dlpack_device__()[0]) == _CUDA_MANAGED


def dtype_of(array: Any) -> str:
    """The name of a device array's dtype, as numpy's: "int64"; one that numpy lacks, by its library's name."""
    if not hasattr(array, "dtype"):
        return str(np.dtype(array.__cuda_array_interface__["typestr"]))
    return str(array.dtype).rpartition(".")[2]  # of "torch.int64"


def shape_of(array: Any) -> tuple[int, ...]:
    """Of an array of memory or of a device."""
    if hasattr(array, "shape"):
        return tuple(map(int, array.shape))
    return tuple(array.__cuda_array_interface__["shape"])


def described(array: Any) -> str:
    """What was sent, for messages."""
    return f"{dtype_of(array)}{list(shape_of(array))} on a GPU"
