"""`KvVariable`: rows of one named group, on one storage or spread over several, looked up and trained by id."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rockbed.client.arrays import checked_flag, checked_gradients, is_tensor
from rockbed.client.embedding import PyEmbedding
from rockbed.client.looked_up import LookedUp
from rockbed.client.placement import Placement
from rockbed.client.request_ids import RequestId
from rockbed.client.variable_keys import Keys
from rockbed.client.variables import unregister
from rockbed.config import GroupConfig
from rockbed.errors import GradientNotFinite, InvalidConfig
from rockbed.types import F32, I64

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

_Result = TypeVar("_Result")


class KvVariable:
    """A variable of rows by key, made by `get_kv_variable`.

    name: with its scopes. embeddings: one for each storage, in their order; the rows of a key are in one of them.
    trainable: whether rows are made and updated. collections: in which `get_collection` finds it.
    """

    def __init__(
        self,
        name: str,
        embeddings: Sequence[PyEmbedding],
        keys: Keys,
        placement: Placement,
        *,
        trainable: bool,
        collections: tuple[str, ...],
    ) -> None:
        self.name = name
        self.embeddings = tuple(embeddings)
        self.keys = keys
        self.placement = placement
        self.trainable = trainable
        self.collections = collections

    @property
    def dim(self) -> int:
        """float32 weights a row."""
        return self.embeddings[0].dim

    @property
    def config(self) -> GroupConfig:
        """The settings of its group."""
        return self.embeddings[0].config

    @property
    def key_dtype(self) -> str:
        """ "int32", "int64", "uint64" or "string"."""
        return self.keys.kind

    @property
    def parts(self) -> int:
        """Into how many parts the rows are divided."""
        return self.placement.parts

    @property
    def storages(self) -> "tuple[PyStorage, ...]":
        """Where the rows are."""
        return tuple(each.storage for each in self.embeddings)

    @property
    def embedding(self) -> PyEmbedding:
        """The PyEmbedding of a variable on one storage, for `rockbed.Feature` and all that takes one. Raises
        InvalidConfig where there are several."""
        if len(self.embeddings) > 1:
            raise InvalidConfig(
                f"variable {self.name!r} is on {len(self.embeddings)} storages, and this takes a variable on one: use "
                "rockbed.embedding_lookup and its like, or one of its `embeddings`"
            )
        return self.embeddings[0]

    @property
    def global_step(self) -> int:
        """As PyEmbedding.global_step, of all storages."""
        return self.embeddings[0].global_step

    @global_step.setter
    def global_step(self, step: int) -> None:
        for each in self.embeddings:
            each.global_step = step

    def part_of(self, ids: Any) -> I64:
        """The part, 0..parts-1, that each id belongs to. ids: as for `lookup`; int64 of their shape."""
        keys, shape = self.keys.of(ids)
        return self.placement.parts_of(keys).reshape(shape)

    def lookup(self, ids: Any, *, train: bool | None = None) -> Any:
        """The row of each id, float32[*ids.shape, dim], with `apply_gradients` for its gradient.

        ids: an array of any rank, or a list, of the variable's key dtype (for int64 also int32; str or bytes for
        strings); a torch tensor gives a tensor, whose backward pass applies the gradient. train: ids without a row get
        one; None = as the variable is trainable. With False nothing changes, and such an id gives the miss_value.
        Raises WrongDtype, InvalidConfig (train=True of a variable that is not trainable), and what PyEmbedding.lookup
        raises.
        """
        if is_tensor(ids):
            from rockbed.client.torch.variables import lookup

            return lookup(self, ids, train)
        train = self.trains(train)
        keys, shape = self.keys.of(ids)
        rows = self.rows(keys, train=train).reshape(*shape, self.dim)
        return self.looked_up(rows, train, lambda grads, request: self.push(keys, grads.reshape(-1), request))

    def looked_up(self, rows: F32, train: bool, push: Callable[[F32, RequestId | None], bool]) -> LookedUp:
        """rows, whose gradient is pushed by `push` if they were looked up to be trained."""
        if train:
            return LookedUp.of(rows, push)
        return LookedUp.of(rows, None, f"the rows of variable {self.name!r} were looked up with train=False")

    def trains(self, train: bool | None) -> bool:
        """What `train` means here. Raises InvalidConfig."""
        wanted = self.trainable if train is None else checked_flag("train", train)
        if wanted and not self.trainable:
            raise InvalidConfig(f"variable {self.name!r} was opened with trainable=False: look up with train=False")
        return wanted

    def apply_gradients(self, ids: Any, gradients: F32, *, request: RequestId | None = None) -> bool:
        """Update the rows of ids with the variable's optimizer. Durable when it returns.

        ids: as for `lookup`. gradients: float32[*ids.shape, dim], or float32[n, dim], or float32[n * dim] for n ids.
        request: (client id, number from 1) makes the call repeatable: what has been applied is not applied again, and
        False is returned where that is all. On several storages each applies its share whole or not at all; where one
        fails, a call that is repeated with the same request applies the rest alone.
        Raises InvalidConfig (trainable=False), WrongDtype, WrongShape, GradientNotFinite, and what
        PyEmbedding.apply_gradients raises.
        """
        if not self.trainable:
            raise InvalidConfig(f"variable {self.name!r} was opened with trainable=False: it takes no gradients")
        keys, shape = self.keys.of(ids)
        whole = isinstance(gradients, np.ndarray) and gradients.shape == (*shape, self.dim)
        return self.push(keys, gradients.reshape(-1, self.dim) if whole else gradients, request)

    def rows(self, keys: I64, *, train: bool) -> F32:
        """The rows of keys, float32[n, dim]."""
        if len(self.embeddings) == 1:
            return self.embeddings[0].lookup(keys, train=train)
        shares = self.placement.split(keys)
        found = all_of(self.embeddings[i].lookup_async(keys[at], train=train) for i, at in shares)
        out = np.empty((keys.size, self.dim), np.float32)
        for (_, at), rows in zip(shares, found, strict=True):
            out[at] = rows
        return out

    def push(self, keys: I64, gradients: F32, request: RequestId | None) -> bool:
        """Apply a gradient for each key, float32[n, dim] or of as many values. Returns whether anything was applied."""
        first = self.embeddings[0]
        if len(self.embeddings) == 1:
            return first.storage.apply_gradients([(first, keys, gradients)], request=request)
        grads = checked_gradients(gradients, keys.size, self.dim)
        if self.config.not_finite == "reject" and not np.isfinite(grads).all():
            raise GradientNotFinite(
                f"the gradient of variable {self.name!r} holds NaN or Inf: nothing was applied, on any of its storages"
            )
        applied = all_of(
            self.embeddings[i].apply_gradients_async(keys[at], grads[at], request=request)
            for i, at in self.placement.split(keys)
        )
        return any(applied)

    def prefetch(self, ids: Any) -> "list[Future[tuple[int, int]]]":
        """Bring rows from disk into memory, in threads: see PyEmbedding.prefetch_async. ids: as for `lookup`."""
        keys, _ = self.keys.of(ids)
        return [self.embeddings[i].prefetch_async(keys[at]) for i, at in self.placement.split(keys)]

    def drop(self) -> int:
        """Drop the variable with all of its rows, for good. Returns how many rows there were, as counted.

        Where one of several storages fails, a call that is repeated drops the rest; what is gone counts as 0. Raises
        what PyStorage.drop_group raises.
        """
        there = [each for each in self.embeddings if each.exists()]
        dropped = sum(each.drop() for each in there)
        unregister(self)
        return dropped

    def __repr__(self) -> str:
        where = f"{self.parts} parts on {len(self.embeddings)} storages" if self.parts > 1 else "1 part"
        return f"KvVariable({self.name!r}, dim={self.dim}, {self.key_dtype} keys, {where})"


def all_of(calls: "Iterable[Future[_Result]]") -> list[_Result]:
    """What all calls give, once all have ended: none goes on behind the caller's back when another one fails, or cannot
    even begin."""
    begun: list[Future[_Result]] = []
    try:
        for each in calls:
            begun.append(each)
    finally:
        wait_for(begun)
    return [each.result() for each in begun]
