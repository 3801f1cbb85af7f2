"""`FusedEmbedding`: many sparse features looked up, pooled and trained in one call."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from rockbed.bags import Bags, check_bags
from rockbed.client.arrays import checked_flag, checked_floats
from rockbed.client.embedding import PyEmbedding
from rockbed.client.feature import Feature
from rockbed.client.fused_output import FusedOutput, quoted
from rockbed.client.lending import Borrower, must_be_in_memory
from rockbed.client.ragged import Ragged
from rockbed.client.request_ids import RequestId, checked_request
from rockbed.device_arrays import shape_of
from rockbed.errors import InvalidConfig, RockbedError, UnknownHandle, UnknownName, WrongDtype
from rockbed.types import F32, I64, U64

Batch = Mapping[str, Ragged | tuple[I64 | U64, I64] | tuple[I64 | U64, I64, F32 | None]]
"""By the name of the feature: its bags, as a Ragged or as the arguments of one."""


class FusedEmbedding:
    """The sparse features of a model, all in one storage: one call looks all of them up and pools, one call trains.

    >>> with PyStorage("./model") as storage:
    ...     optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.05), PyInitializer(name="zeros")
    ...     users = PyEmbedding(storage, optimizer, initializer, dimension=8, group=1)
    ...     items = PyEmbedding(storage, optimizer, initializer, dimension=16, group=2)
    ...     fused = FusedEmbedding([Feature("user", users), Feature("seen", items, "sqrtn")])
    ...     batch = {"user": Ragged.from_lists([[3], [4]]), "seen": Ragged.from_lists([[1, 2, 3], []])}
    ...     out = fused.lookup(batch)  # out.pooled is float32[2, 24], out["seen"] its last 16 columns
    ...     fused.apply_gradients(out, np.ones((2, 24), np.float32))
    """

    def __init__(self, features: Sequence[Feature], *, missing: str = "error", unknown: str = "error") -> None:
        """features: with names of their own, one at least; they may share groups, whose gradients then meet in one
        update. missing: a feature that a batch lacks is an "error", or has only "empty" bags. unknown: what else there
        is in a batch is an "error", or passed over ("ignore").

        Raises InvalidConfig with every problem, WrongDtype.
        """
        if not isinstance(features, Iterable):
            raise WrongDtype(f"FusedEmbedding takes a list of Feature, not a {type(features).__name__}")
        self.features = tuple(features)
        for each in self.features:
            if not isinstance(each, Feature):
                raise WrongDtype(f"FusedEmbedding takes a list of Feature, not of {type(each).__name__}")
        self.missing = missing
        self.unknown = unknown
        problems = []
        if not self.features:
            problems.append("there are no features: give one at least")
        twice = [name for name, count in Counter(each.name for each in self.features).items() if count > 1]
        if twice:
            problems.append(f"several features are called {quoted(twice)}: each has a name of its own")
        others = [
            each.name for each in self.features if each.embedding.storage is not self.features[0].embedding.storage
        ]
        if others:
            first = self.features[0].name
            problems.append(
                f"features {quoted(others)} have another storage than {first!r}: one call goes to one storage"
            )
        if missing not in ("error", "empty"):
            problems.append(f"missing is {missing!r}, not one of 'error', 'empty'")
        if unknown not in ("error", "ignore"):
            problems.append(f"unknown is {unknown!r}, not one of 'error', 'ignore'")
        if problems:
            raise InvalidConfig("FusedEmbedding: " + "; ".join(problems))
        self.storage = self.features[0].embedding.storage
        self.names = tuple(each.name for each in self.features)
        self._known = frozenset(self.names)
        self.columns: dict[str, slice] = {}
        self.dim = 0
        for each in self.features:
            if each.combiner is not None:
                self.columns[each.name] = slice(self.dim, self.dim + each.embedding.dim)
                self.dim += each.embedding.dim

    def lookup(self, batch: Batch, *, train: bool = True, keep: bool | None = None, stream: Any = None) -> FusedOutput:
        """Look up and pool all features, in one call.

        batch: by the name of each feature, a Ragged of B bags, or its arguments as a tuple. train: as in
        PyEmbedding.lookup; False creates nothing. keep: have the batch kept for a short time where the rows are, so
        that `apply_gradients` with this output sends gradients alone and finds the rows at once; None = as `train`.
        A batch with arrays of a GPU is never kept: it is there.
        stream: for a batch with arrays of a GPU, the CUDA stream that this call takes its place in: an object with
        `__cuda_stream__`, or the handle as an int. Without, its place is in CuPy's current stream, behind what the
        arrays' libraries say has to be done before.
        Raises UnknownName and InvalidConfig (features), WrongDtype, WrongShape, BatchTooLarge, ReadOnlyStorage,
        StorageClosed, the disk's errors.
        """
        return self._lookup(batch, stream, train=train, keep=keep)()

    def lookup_async(
        self, batch: Batch, *, train: bool = True, keep: bool | None = None, stream: Any = None
    ) -> "Future[FusedOutput]":
        """As `lookup`, in a thread: a concurrent.futures.Future of its result.

        What the batch lacks is raised at once. Its arrays may not be changed until the future is done. One that has not
        begun when the storage is closed raises StorageClosed.
        """
        return self.storage.ahead.lookup(self._lookup(batch, stream, train=train, keep=keep))

    def apply_gradients(
        self,
        batch: Batch | FusedOutput,
        grad_pooled: F32 | None,
        sequences: Mapping[str, F32] | None = None,
        *,
        request: RequestId | None = None,
        stream: Any = None,
    ) -> bool:
        """Update the rows of all features with their groups' optimizers, all or nothing. Durable when it returns.

        batch: what was looked up, or the output of its lookup. grad_pooled: float32[B, D], the gradient of `pooled`;
        may be None where no feature is pooled. sequences: by name, float32[nnz, dim], the gradient of each sequence;
        one without keys may be left out.
        Occurrences of a key, in one feature or several of a group, meet as its `duplicates` says.
        Any of the arrays may be a GPU's, where the storage has it as its device; stream: as of `lookup`.
        request: (client id, number from 1) makes the call repeatable: False is returned for a request that has been
        applied before. Raises what `lookup` raises, GradientNotFinite, RequestTooOld, StorageFull. Then nothing was
        applied.
        """
        return self._push(batch, grad_pooled, sequences, request, stream)()

    def apply_gradients_async(
        self,
        batch: Batch | FusedOutput,
        grad_pooled: F32 | None,
        sequences: Mapping[str, F32] | None = None,
        *,
        request: RequestId | None = None,
        stream: Any = None,
    ) -> "Future[bool]":
        """As `apply_gradients`, in a thread: a concurrent.futures.Future, done when the push is durable.

        What the arrays lack is raised at once. They may not be changed until the future is done. Pushes of a storage
        are applied in the order in which they were asked for, and its `close` waits for them.
        """
        return self.storage.ahead.push(self._push(batch, grad_pooled, sequences, request, stream))

    def prefetch(self, batch: Batch) -> tuple[int, int]:
        """Bring the rows of a batch from disk into memory ahead of its lookup: of each group in one call. Creates none,
        counts as no lookup, renews no TTL.

        batch: as of `lookup`, of numpy's arrays; features may be missing. Returns how many of the groups' distinct keys
        have their row in memory then, and how many have no row. Raises what `lookup` raises for the batch, and what
        PyEmbedding.prefetch raises.
        """
        return _fetch(self.keys_by_group(batch))

    def prefetch_async(self, batch: Batch) -> "Future[tuple[int, int]]":
        """As `prefetch`, in a thread. What the batch lacks is raised at once."""
        return self.storage.ahead.lookup(_fetch, self.keys_by_group(batch))

    def keys_by_group(self, batch: Batch) -> list[tuple[PyEmbedding, I64]]:
        """An embedding of each group, and the keys int64[n] that a lookup of the batch may ask it for: default keys
        too, and none that is pruned as negative. Features may be missing. Raises as `prefetch`."""
        given = self._given(batch)
        found: dict[int, tuple[PyEmbedding, list[I64]]] = {}
        for each in self.features:
            ragged = given.get(each.name)
            if ragged is None:
                continue
            must_be_in_memory("prefetch", ragged.keys)
            bags = each.bags(ragged)
            _, keys = found.setdefault(each.embedding.group, (each.embedding, []))
            keys.append(bags.keys if bags.negative else bags.keys[bags.keys >= 0])
            if bags.default_key is not None:
                keys.append(np.array([bags.default_key], np.int64))
        return [(embedding, np.concatenate(keys)) for embedding, keys in found.values()]

    def _given(self, batch: Batch) -> dict[str, Ragged]:
        """The bags that a batch has, by feature."""
        if not isinstance(batch, Mapping):
            raise WrongDtype(f"a batch is a dict of Ragged by feature, not a {type(batch).__name__}")
        unknown = [name for name in batch if name not in self._known]
        if unknown and self.unknown == "error":
            raise UnknownName(
                f"there is no feature {quoted(unknown)}: the features are {quoted(self.names)}. A FusedEmbedding with "
                "unknown='ignore' passes others over"
            )
        return {name: _ragged(name, value) for name, value in batch.items() if name in self._known}

    def ignores(self, name: object) -> bool:
        """Whether what a batch has of that name is passed over."""
        return self.unknown == "ignore" and name not in self._known

    def _bags(self, batch: Batch) -> list[Bags]:
        """Each feature's share of a batch, with the caller's arrays."""
        given = self._given(batch)
        lacking = [name for name in self.names if name not in given]
        if lacking and self.missing == "error":
            raise InvalidConfig(
                f"the batch lacks {quoted(lacking)}: give their bags, or make the FusedEmbedding with missing='empty'"
            )
        size = len(next(iter(given.values()))) if given else 0
        empty = Ragged(np.empty(0, np.int64), np.zeros(size + 1, np.int64))
        return [each.bags(given.get(each.name, empty)) for each in self.features]

    def _lookup(self, batch: Batch, stream: Any, *, train: bool, keep: bool | None) -> Callable[[], FusedOutput]:
        """A lookup that has been checked, to be made by a call."""
        train = checked_flag("train", train)
        keep = train if keep is None else checked_flag("keep", keep)
        shares = self._bags(batch)
        borrower = Borrower.for_call(self.storage, _keys_of(shares), stream)
        if borrower is not None:
            shares = [borrower.bags(each) for each in shares]
        size = check_bags(shares, contents=False)
        if borrower is None:
            return partial(self._looked_up, shares, size, np.empty, train=train, keep=keep)
        return partial(borrower.look_up, partial(self._looked_up, shares, size, borrower.empty, train=train, keep=keep))

    def _looked_up(
        self, shares: list[Bags], size: int, empty: Callable[..., F32], *, train: bool, keep: bool
    ) -> FusedOutput:
        pooled = empty((size, self.dim), np.float32)
        sequences = {
            share.name: empty((share.keys.size, each.embedding.dim), np.float32)
            for each, share in zip(self.features, shares, strict=True)
            if each.combiner is None
        }
        handle = self.storage.backend.fused_lookup(shares, pooled, list(sequences.values()), train=train, keep=keep)
        return FusedOutput(self, shares, pooled, sequences, handle)

    def _push(
        self,
        batch: Batch | FusedOutput,
        grad_pooled: F32 | None,
        sequences: Mapping[str, F32] | None,
        request: RequestId | None,
        stream: Any,
    ) -> Callable[[], bool]:
        """A push that has been checked, to be made by a call."""
        handle: bytes | None = None
        shares: Sequence[Bags]
        if isinstance(batch, FusedOutput):
            if batch.fused is not self:
                raise InvalidConfig(f"{batch!r} comes from another FusedEmbedding than {self!r}: push it to its own")
            shares, handle = batch.batch, batch._handle
        else:
            shares = self._bags(batch)
        given = self._sequence_gradients(shares, {} if sequences is None else sequences)
        sent = [(f"the gradient of {name!r}", each) for name, each in given.items()]
        arrays = [("grad_pooled", grad_pooled), *sent, *_keys_of(shares)]
        borrower = Borrower.for_call(self.storage, arrays, stream)
        if borrower is not None and not isinstance(batch, FusedOutput):
            shares = [borrower.bags(each) for each in shares]
        size = len(batch) if isinstance(batch, FusedOutput) else check_bags(shares, contents=False)
        if grad_pooled is None and self.dim == 0:
            grad_pooled = np.empty((size, 0), np.float32)
        floats = checked_floats if borrower is None else borrower.floats
        pooled = floats("grad_pooled", grad_pooled, (size, self.dim))
        rest = [
            floats(f"the gradient of {each.name!r}", given[each.name], (share.keys.size, each.embedding.dim))
            for each, share in zip(self.features, shares, strict=True)
            if each.combiner is None
        ]
        steps, asked = global_steps(self.features), checked_request(request)
        backend = self.storage.backend

        def send() -> bool:
            if handle is not None:
                try:
                    return backend.fused_apply_gradients(shares, handle, pooled, rest, steps, asked)
                except UnknownHandle:
                    pass  # it was kept for a short time only: the batch goes along
            return backend.fused_apply_gradients(shares, None, pooled, rest, steps, asked)

        return send if borrower is None else partial(borrower.push, send)

    def _sequence_gradients(self, shares: Sequence[Bags], given: Mapping[str, F32]) -> Mapping[str, F32]:
        """The gradients of all sequences, by name, and of nothing else."""
        wanted = {
            each.name: (shape_of(share.keys)[0], each.embedding.dim)
            for each, share in zip(self.features, shares, strict=True)
            if each.combiner is None
        }
        if not isinstance(given, Mapping):
            raise WrongDtype(f"sequences is a dict of gradients by feature, not a {type(given).__name__}")
        unknown = given.keys() - wanted.keys()
        if unknown:
            raise UnknownName(
                f"there is no feature {quoted(unknown)} without a combiner: sequences takes gradients of "
                f"{quoted(wanted) or 'none'}"
            )
        found = {
            name: np.empty(shape, np.float32) if given.get(name) is None and shape[0] == 0 else given.get(name)
            for name, shape in wanted.items()
        }
        lacking = [f"{name!r}, float32{list(wanted[name])}" for name, each in found.items() if each is None]
        if lacking:
            raise InvalidConfig(
                f"sequences lacks the gradients of {'; '.join(lacking)}: a feature without a combiner has its own there"
            )
        return {name: each for name, each in found.items() if each is not None}

    def __repr__(self) -> str:
        return f"FusedEmbedding({', '.join(self.names)}: float32[B, {self.dim}])"


def _fetch(wanted: Sequence[tuple[PyEmbedding, I64]]) -> tuple[int, int]:
    fetched = [embedding.prefetch(keys) for embedding, keys in wanted]
    return sum(in_memory for in_memory, _ in fetched), sum(absent for _, absent in fetched)


def global_steps(features: Iterable[Feature]) -> dict[int, int]:
    """By group, the global step of those that have one. Raises InvalidConfig."""
    steps: dict[int, int] = {}
    for each in features:
        step = each.embedding.step_to_send()
        if step is not None and steps.setdefault(each.embedding.group, step) != step:
            raise InvalidConfig(
                f"feature {each.name!r} is at global step {step}, another one of group {each.embedding.group} at "
                f"{steps[each.embedding.group]}: use one PyEmbedding for both"
            )
    return steps


def _ragged(name: str, value: Any) -> Ragged:
    """The bags of a feature, whose name is put in front of what is wrong with them."""
    if isinstance(value, Ragged):
        return value
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        sent = f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
        raise WrongDtype(
            f"feature {name!r}: its bags are a Ragged, (keys, offsets) or (keys, offsets, weights), not {sent}"
        )
    try:
        return Ragged(*value)
    except RockbedError as problem:
        raise type(problem)(f"feature {name!r}: {problem}") from None


def _keys_of(shares: Iterable[Bags]) -> Iterable[tuple[str, Any]]:
    """Of each share one array, by name: all of a share's lie in one place."""
    return [(f"feature {each.name!r}", each.keys) for each in shares]
