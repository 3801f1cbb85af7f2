"""Tensors that come in, as arrays; those on a GPU as they are, where the rows are there too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rockbed.device_arrays import on_device
from rockbed.errors import InvalidConfig, WrongDtype, WrongShape
from rockbed.types import F32, I64, U64, AnyArray

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What modules can give."""


def described(value: Any) -> str:
    """What was sent, for messages."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"


def lent(name: str, tensor: Any, as_array: Callable[[str, Any], Any], *, on_gpu: bool) -> Any:
    """A tensor on a GPU without its history, to be read where it is, if `on_gpu` says that this can be; for every other
    one what `as_array` gives. Copied only where it is not contiguous."""
    if not (on_gpu and isinstance(tensor, torch.Tensor) and on_device(tensor)):
        return as_array(name, tensor)
    return tensor.detach().contiguous()


def tensor_of(array: Any) -> Any:
    """A tensor with the memory of an array, of a GPU's too."""
    return torch.from_dlpack(array) if on_device(array) else torch.from_numpy(array)


def keys_array(name: str, keys: Any) -> I64 | U64:
    """Keys of any shape, int64 or uint64. An array of its own: what the caller does to the tensor later is not seen.

    Raises WrongDtype.
    """
    array: AnyArray = _array(name, keys, (torch.int64, torch.uint64), "use keys.long()")
    return array.copy()


def ids_array(name: str, ids: Any, key_dtype: str) -> AnyArray:
    """Ids of any shape for a variable with keys of this dtype: for int64 also int32. An array of its own.

    Raises WrongDtype, for "string" always: torch has no strings.
    """
    if key_dtype == "string":
        raise WrongDtype(
            f"{name} must be an array or a list of str or bytes, not {described(ids)}: torch has no strings"
        )
    dtypes = {"int32": (torch.int32,), "int64": (torch.int64, torch.int32), "uint64": (torch.uint64,)}[key_dtype]
    array = _array(name, ids, dtypes, f"use ids.to(torch.{key_dtype})")
    return array.copy()


def offsets_array(name: str, offsets: Any) -> I64:
    """int64[n]. Raises WrongDtype, WrongShape."""
    array = _array(name, offsets, (torch.int64, torch.int32), "use offsets.long()")
    if array.ndim != 1:
        raise WrongShape(f"{name} must have one axis, not {described(offsets)}")
    return array.astype(np.int64)


def weights_array(name: str, weights: Any) -> F32 | None:
    """float32 of any shape. Raises WrongDtype, InvalidConfig for weights that want a gradient: they would get none."""
    if weights is None:
        return None
    must_want_no_gradient(name, weights)
    return _array(name, weights, (torch.float32,), "use weights.float()").copy()


def must_want_no_gradient(name: str, weights: Any) -> None:
    """Raise InvalidConfig for weights that want a gradient."""
    if isinstance(weights, torch.Tensor) and weights.requires_grad:
        raise InvalidConfig(f"{name} require a gradient, and the weights of keys get none: pass weights.detach()")


def gradient_array(gradient: Any, scale: float) -> F32:
    """The gradient of an output of any float dtype and device, times `scale`, as float32."""
    floats = gradient.detach().to(device="cpu", dtype=torch.float32)
    array: F32 = np.ascontiguousarray(floats.numpy())
    return array if scale == 1.0 else array * np.float32(scale)


def gradient_tensor(gradient: Any, scale: float) -> Any:
    """As gradient_array, left where it is: copied only if its dtype, its layout or `scale` ask for it."""
    floats = gradient.detach().to(torch.float32).contiguous()
    return floats if scale == 1.0 else floats * scale


def _array(name: str, tensor: Any, dtypes: tuple[Any, ...], advice: str) -> AnyArray:
    wanted = " or ".join(str(each).removeprefix("torch.") for each in dtypes)
    if not isinstance(tensor, torch.Tensor):
        raise WrongDtype(f"{name} must be a torch tensor of {wanted}, not {described(tensor)}")
    if tensor.device.type != "cpu":
        raise WrongDtype(f"{name} must be on the CPU, not {described(tensor)}: the rows are not on it; use .cpu()")
    if tensor.dtype not in dtypes:
        raise WrongDtype(f"{name} must be a torch tensor of {wanted}, not {described(tensor)}: {advice}")
    if tensor.layout != torch.strided:
        raise WrongDtype(f"{name} must be a dense tensor, not {tensor.layout}")
    array: AnyArray = tensor.detach().numpy()
    return array
