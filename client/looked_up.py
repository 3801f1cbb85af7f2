"""`LookedUp`: an array of rows that knows how its gradient is pushed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rockbed.client.arrays import checked_floats
from rockbed.client.request_ids import RequestId
from rockbed.errors import InvalidBackward
from rockbed.types import F32

Push = Callable[[F32, RequestId | None], bool]


class LookedUp(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """float32, what a lookup of a variable gave: an array as any other, and `apply_gradients`.

    What is computed from it is a plain array.
    """

    _push: Push | None = None
    _why = "it is a part or a view of what a lookup gave: take the whole, and a gradient of its shape"

    @classmethod
    def of(cls, rows: F32, push: Push | None, why: str = "") -> "LookedUp":
        """rows as they are. push: applies a gradient of their shape; None where nothing is to be, and why."""
        found = rows.view(cls)
        found._push, found._why = push, why
        return found

    def apply_gradients(self, gradients: F32, request: RequestId | None = None) -> bool:
        """Update the rows that were looked up, durably when it returns. Once: they have changed then.

        gradients: float32 of this array's shape, the gradient of it. request: as of PyStorage.apply_gradients, and
        so is what is returned. Raises InvalidBackward, WrongDtype, WrongShape, and what PyEmbedding.apply_gradients
        raises; where that is raised nothing was applied, on one storage at least, and it may be called again.
        """
        if self._push is None:
            raise InvalidBackward(f"no gradient can be applied to this array: {self._why}")
        applied = self._push(checked_floats("gradients", gradients, self.shape), request)
        self._push, self._why = None, "its gradient has been applied, and the rows have changed since: look up again"
        return applied

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if plain.ndim == 0 else plain
