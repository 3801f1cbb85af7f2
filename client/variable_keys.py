"""Ids as callers have them (integers of a width, strings; arrays of any rank, lists) to the 64-bit keys of rows."""

from numbers import Integral
from typing import Any

import numpy as np

from rockbed.client.arrays import described, is_tensor, must_be_whole
from rockbed.client.hashing import fingerprint64
from rockbed.errors import InvalidConfig, WrongDtype
from rockbed.types import I64, AnyArray

KEY_DTYPES = ("int32", "int64", "uint64", "string")


def key_dtype_name(given: Any) -> str:
    """One of KEY_DTYPES, of a numpy dtype or its name, or of `str`. Raises InvalidConfig."""
    name = "string" if given in (str, bytes, "str", "string") else ""
    if not name:
        try:
            name = np.dtype(given).name
        except TypeError:
            name = repr(given)
    if name not in KEY_DTYPES:
        raise InvalidConfig(f"key_dtype is {given!r}, not one of int32, int64, uint64, str")
    return name


class Keys:
    """How the ids of one variable become keys. kind: of KEY_DTYPES.

    Integers are keys as they are, int32 as the int64 of the same value, uint64 by their bits. Of a string it is
    `fingerprint64` of its UTF-8: the same everywhere and for good.
    """

    def __init__(self, variable: str, kind: str) -> None:
        self._variable = variable
        self.kind = kind

    @property
    def signed(self) -> bool:
        """Whether there are negative ids, which stand for nothing in a safe lookup."""
        return self.kind in ("int32", "int64")

    def array(self, ids: Any) -> AnyArray:
        """ids as an array of the variable's dtype, strings as an array of objects or of str. Raises WrongDtype."""
        if is_tensor(ids):  # a list of tensors to numpy
            raise self._wrong(f"{described(ids)} (only lookups take tensors: use ids.numpy())")
        if not isinstance(ids, np.ndarray):
            return self._listed(ids)
        must_be_whole("ids", ids)
        if self.kind == "string":
            if ids.dtype.kind not in "USO":
                raise self._wrong(described(ids))
            return ids
        if ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, self.kind, "safe"):
            raise self._wrong(described(ids))
        return ids.astype(self.kind, copy=False)

    def _listed(self, ids: Any) -> AnyArray:
        """A list, or one id. As objects: numpy would take NULs off the ends of bytes, and make floats of large ints."""
        try:
            objects = np.asarray(ids, object)
        except ValueError as error:
            raise self._wrong(f"of an irregular shape ({error})") from None
        if self.kind == "string":
            return objects
        listed = objects.reshape(-1).tolist()
        limits = np.iinfo(self.kind)
        for each in listed:
            if isinstance(each, bool) or not isinstance(each, Integral) or not limits.min <= int(each) <= limits.max:
                raise self._wrong(repr(each))
        return np.array(listed, self.kind).reshape(objects.shape)

    def of(self, ids: Any) -> tuple[I64, tuple[int, ...]]:
        """The keys of ids, int64[n], and the shape that the ids have. Raises WrongDtype."""
        array = self.array(ids)
        if self.kind == "string":
            return self._fingerprints(array.reshape(-1)), array.shape
        flat = np.ascontiguousarray(array).reshape(-1)
        keys: I64 = flat.view(np.int64) if self.kind == "uint64" else flat.astype(np.int64, copy=False)
        return keys, array.shape

    def _fingerprints(self, array: AnyArray) -> I64:
        try:
            return fingerprint64(array).view(np.int64)
        except WrongDtype as problem:
            raise WrongDtype(f"variable {self._variable!r} has string keys: {problem}") from None

    def one(self, name: str, given: Any) -> int:
        """The key of one id, as an int64. name: for messages. Raises WrongDtype."""
        try:
            keys, shape = self.of([given])
        except WrongDtype:
            shape = ()
        if shape != (1,):
            raise WrongDtype(
                f"{name} is {given!r}, not a key of variable {self._variable!r}, which has {self.kind} keys"
            )
        return int(keys[0])

    def _wrong(self, sent: str) -> WrongDtype:
        wanted = "str or bytes" if self.kind == "string" else self.kind
        return WrongDtype(f"variable {self._variable!r} has {self.kind} keys: ids must be {wanted}, not {sent}")
