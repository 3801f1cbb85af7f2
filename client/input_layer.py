"""`input_layer`: the columns of a model looked up for one batch, side by side; their gradient is one change."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.bags import Bags
from rockbed.client.adaptive import AdaptiveEmbedding, AdaptiveRows, Share, checked_mask, mask_array
from rockbed.client.columns import EmbeddingColumn
from rockbed.client.combining import combine, combine_gradients
from rockbed.client.embedding import PyEmbedding
from rockbed.client.feature import Feature
from rockbed.client.fused import FusedEmbedding
from rockbed.client.fused_output import FusedOutput
from rockbed.client.joined import Share as BagShare
from rockbed.client.joined import push_shares
from rockbed.client.looked_up import LookedUp
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.ragged import Ragged
from rockbed.client.request_ids import RequestId
from rockbed.client.sparse import SparseTensor
from rockbed.errors import InvalidConfig, RockbedError, UnknownName, WrongDtype, WrongShape
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

Given = Any
"""Ids of a feature: a SparseTensor, a Ragged, or an array: of one axis, an id a sample, or of two, padded."""


@dataclass(slots=True)
class _Part:
    """One column's share of a batch, pruned. keys: int64[nnz]; offsets: int64[B + 1]; weights: float32[nnz] or None;
    mask: bool[nnz] of an adaptive column whose caller gave one."""

    column: EmbeddingColumn
    rows_of: PyEmbedding | AdaptiveEmbedding
    keys: I64
    offsets: I64
    weights: F32 | None
    mask: Bool | None
    found: AdaptiveRows | None = None
    rows: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))  # float32[nnz, dim], as they were found

    @property
    def fused(self) -> bool:
        return self.column.use_fused_lookup

    def combined(self) -> F32:
        return combine(self.rows, self.offsets, self.weights, self.column.combiner, self.column.max_norm)

    def shares(self, gradient: F32) -> list[Share]:
        """The gradient, float32[B, dim], of the rows that were found."""
        column = self.column
        grads = combine_gradients(self.rows, self.offsets, self.weights, column.combiner, column.max_norm, gradient)
        if self.found is not None:
            return self.found.shares(grads)
        assert isinstance(self.rows_of, PyEmbedding)
        return [(self.rows_of, self.keys, grads)]


def input_layer(
    features: Mapping[str, Given],
    feature_columns: EmbeddingColumn | Sequence[EmbeddingColumn],
    adaptive_mask_tensors: Mapping[str, Any] | None = None,
    *,
    storage: "PyStorage",
    optimizer: PyOptimizer,
    train: bool = True,
    global_step: int | None = None,
    cols_to_output_tensors: MutableMapping[EmbeddingColumn, F32] | None = None,
) -> LookedUp:
    """What the columns give for a batch of B samples, side by side in their order: float32[B, D], an array with
    `apply_gradients` for its gradient.

    features: by key the ids: a SparseTensor, whose rows are the samples; a Ragged; or an array, of one axis with an id
    a sample, or of two, padded with -1 (or "") to one length. Ids below 0 are left out; a sample without ids gives
    zeros. adaptive_mask_tensors: by the key of an adaptive column, 1 for each id whose row is exact, 0 for the others,
    in the order and number in which ids are given, before any is left out; a column with a threshold needs none.
    storage, optimizer: where the rows are, and how they learn; columns are opened there at their first use. train: as
    of PyEmbedding.lookup. global_step: for columns with GlobalStepEvict, the step of this batch.
    cols_to_output_tensors: filled with each column's share of what is returned, a view of it.

    The gradient of all columns is one change, all or nothing. Plain columns are looked up in one call, those with
    use_fused_lookup in one, which combines them where they are, adaptive ones in one each.
    Raises InvalidConfig, UnknownName, WrongDtype, WrongShape, and what PyEmbedding raises.
    """
    columns = [feature_columns] if isinstance(feature_columns, EmbeddingColumn) else list(feature_columns)
    _check(columns, adaptive_mask_tensors or {}, train=train)
    masks = adaptive_mask_tensors or {}
    parts = []
    for column in columns:
        if column.key not in features:
            known = ", ".join(map(repr, features)) or "none"
            raise UnknownName(f"column {column.name!r}: there is no feature {column.key!r}, only {known}")
        try:
            rows_of = column.open(storage, optimizer)
            _set_step(rows_of, global_step, train=train)
            parts.append(_part(column, rows_of, features[column.key], masks.get(column.key)))
        except RockbedError as problem:
            said = str(problem)
            raise type(problem)(f"column {column.key!r}: {said}") from None
    sizes = {part.column.key: part.offsets.size - 1 for part in parts}
    if len(set(sizes.values())) > 1:
        raise WrongShape(f"the features of a batch have as many samples each, not {sizes}")
    batch = _Batch(storage, parts, global_step)
    out = batch.look_up(train=train)
    if cols_to_output_tensors is not None:
        cols_to_output_tensors.update({part.column: out[:, at] for part, at in zip(parts, batch.places, strict=True)})
    if train:
        return LookedUp.of(out, batch.push)
    return LookedUp.of(out, None, "it was looked up with train=False")


def _check(columns: list[EmbeddingColumn], masks: Mapping[str, Any], *, train: bool) -> None:
    for column in columns:
        if not isinstance(column, EmbeddingColumn):
            raise WrongDtype(f"feature_columns are what embedding_column gives, not a {type(column).__name__}")
    if not columns:
        raise InvalidConfig("there are no feature_columns: give one at least")
    if not isinstance(masks, Mapping):
        raise WrongDtype(f"adaptive_mask_tensors is a dict of masks by key, not a {type(masks).__name__}")
    unknown = masks.keys() - {column.key for column in columns if column.is_adaptive}
    if unknown:
        raise UnknownName(f"adaptive_mask_tensors: {', '.join(map(repr, unknown))} is no key of an adaptive column")
    if not isinstance(train, bool):
        raise InvalidConfig(f"train is {train!r}, not True or False")


def _set_step(rows_of: PyEmbedding | AdaptiveEmbedding, step: int | None, *, train: bool) -> None:
    config = rows_of.config if isinstance(rows_of, PyEmbedding) else rows_of.exact.config
    if config.step != "global" or not train:
        return
    if step is None:
        raise InvalidConfig("it has GlobalStepEvict: give the global_step of this batch")
    rows_of.global_step = step


# --- ids ---


def _part(column: EmbeddingColumn, rows_of: PyEmbedding | AdaptiveEmbedding, given: Given, mask: Any) -> _Part:
    ids, offsets, weights = _bags(column, given)
    keys, shape = column.keys.of(ids)
    kept: Bool = np.ones(keys.size, np.bool_)
    if column.keys.signed:
        kept = keys >= 0
    elif len(shape) == 2 and column.keys.kind == "string":
        kept = np.array([len(each) > 0 for each in ids.reshape(-1).tolist()], np.bool_)
    if weights is not None and column.combiner != "sum":
        kept &= weights > 0
    wanted = None
    if column.is_adaptive:
        assert isinstance(rows_of, AdaptiveEmbedding)
        if weights is not None:
            raise InvalidConfig("it is adaptive and takes no weights: leave them out")
        if mask is None and not rows_of.has_threshold():
            raise InvalidConfig(
                f"it is adaptive, and adaptive_mask_tensors has no mask for it: give one of {keys.size} values, 1 for "
                "the ids whose rows are exact, or the column a threshold=Frequency(enter=...)"
            )
        if mask is not None:
            wanted = checked_mask(_as_ids_are(mask, shape), keys.size)
    # what is kept is copied: the caller's arrays may change before the gradient comes
    ends = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    weights = None if weights is None else weights[kept]
    wanted = None if wanted is None else wanted[kept]
    return _Part(column, rows_of, keys[kept], ends[offsets], weights, wanted)


def _as_ids_are(mask: Any, shape: tuple[int, ...]) -> Any:
    """A mask of the shape of the ids, or a column or row of values, as one axis."""
    array = mask_array(mask)
    plain = isinstance(array, np.ndarray) and (array.shape == shape or array.size == max(array.shape, default=0))
    return array.reshape(-1) if plain else array


def _bags(column: EmbeddingColumn, given: Given) -> tuple[Any, I64, F32 | None]:
    """Ids, in order, int64[B + 1] where each sample's begin, and their weights."""
    if isinstance(given, SparseTensor):
        return given.values, given.offsets(), None
    if isinstance(given, Ragged):
        return given.keys, given.offsets, given.weights
    ids = column.keys.array(given)
    if ids.ndim not in (1, 2):
        raise WrongShape(f"ids have one axis, or two, [B, L], not {list(ids.shape)}: a SparseTensor may have more")
    length = 1 if ids.ndim == 1 else ids.shape[1]
    return ids, np.arange(ids.shape[0] + 1) * length, None


# --- lookups and pushes ---


class _Batch:
    """The columns of one call, between their lookup and the push of their gradient."""

    def __init__(self, storage: "PyStorage", parts: list[_Part], global_step: int | None) -> None:
        self._storage, self._parts, self._step = storage, parts, global_step
        ends = np.cumsum([part.column.dimension for part in parts]).tolist()
        self.places = [slice(end - part.column.dimension, end) for end, part in zip(ends, parts, strict=True)]
        self._fused: FusedOutput | None = None

    def look_up(self, *, train: bool) -> F32:
        """float32[B, D]."""
        fused, plain = self._those(fused=True), self._those(fused=False)
        out = np.empty((self._parts[0].offsets.size - 1, self.places[-1].stop), np.float32)
        items = [(part.rows_of, part.keys) for _, part in plain if isinstance(part.rows_of, PyEmbedding)]
        found = iter(self._storage.lookup(items, train=train) if items else [])
        for place, part in plain:
            if isinstance(part.rows_of, AdaptiveEmbedding):
                part.found = part.rows_of.lookup_keys(part.keys, part.mask, train=train)
                part.rows = part.found.rows
            else:
                part.rows = next(found)
            out[:, place] = part.combined()
        if fused:
            # ids have been pruned: none is left that stands for nothing, and strings have any 64 bits
            named = {str(i): part for i, (_, part) in enumerate(fused)}
            bags = {i: Ragged(part.keys.view(np.uint64), part.offsets, part.weights) for i, part in named.items()}
            together = FusedEmbedding([_feature(i, part) for i, part in named.items()])
            self._fused = together.lookup(bags, train=train)
            for i, (place, _) in zip(named, fused, strict=True):
                out[:, place] = self._fused[i]
        return out

    def _those(self, *, fused: bool) -> list[tuple[slice, _Part]]:
        both = zip(self.places, self._parts, strict=True)
        return [(place, part) for place, part in both if part.fused == fused]

    def push(self, gradients: F32, request: RequestId | None) -> bool:
        """Apply the gradient, float32[B, D], all or nothing."""
        for part in self._parts:  # another batch may have been looked up since
            _set_step(part.rows_of, self._step, train=True)
        fused, plain = self._those(fused=True), self._those(fused=False)
        shares = [share for place, part in plain for share in part.shares(np.ascontiguousarray(gradients[:, place]))]
        if self._fused is None:
            return self._storage.apply_gradients(_by_group(shares), request=request)
        pooled = np.concatenate([gradients[:, place] for place, _ in fused], axis=1)
        if not shares:
            return self._fused.fused.apply_gradients(self._fused, pooled, request=request)
        bags = [BagShare(_sequence(embedding, keys), grads, None) for embedding, keys, grads in shares]
        columns = [self._fused.fused.columns[each.name] for each in self._fused.fused.features]
        bags += [BagShare(each, pooled[:, at], None) for each, at in zip(self._fused.batch, columns, strict=True)]
        embeddings = [each[0] for each in shares] + [each.embedding for each in self._fused.fused.features]
        steps = {each.group: step for each in embeddings if (step := each.step_to_send()) is not None}
        return push_shares(self._storage, bags, steps, request)


def _feature(name: str, part: _Part) -> Feature:
    assert isinstance(part.rows_of, PyEmbedding)
    return Feature(name, part.rows_of, part.column.combiner, max_norm=part.column.max_norm)


def _by_group(shares: list[Share]) -> list[Share]:
    """Several shares of one group as one: a push has each group once."""
    groups: dict[int, list[Share]] = {}
    for share in shares:
        groups.setdefault(share[0].group, []).append(share)
    merged = []
    for same in groups.values():
        embeddings, keys, grads = zip(*same, strict=True)
        merged.append((embeddings[0], np.concatenate(keys), np.concatenate(grads)))
    return merged


def _sequence(embedding: PyEmbedding, keys: I64) -> Bags:
    ends = np.array([0, keys.size])
    return Bags(
        f"group {embedding.group}",
        embedding.group,
        keys,
        ends,
        combiner=None,
        negative=True,
        generation=embedding.generation,
    )
