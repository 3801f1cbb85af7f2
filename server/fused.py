"""Lookups and pushes of a whole batch, many features of several groups, at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rockbed.bags import Bags, check_bags
from rockbed.errors import DimMismatch
from rockbed.interrupts import Uninterrupted
from rockbed.parallel import spread
from rockbed.requests import Request
from rockbed.server import lookups
from rockbed.server.bag_gradients import Seen, joined
from rockbed.server.bags import CleanBags, clean
from rockbed.types import F32, AnyArray

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch that was looked up, with what its push can use of that: for as long as nothing happened between, where
    the rows are."""

    batch: Sequence[Bags]
    features: Sequence[CleanBags]
    seen: Sequence[Seen]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps, once for arrays that the batch and what is left of it share."""
        arrays: list[AnyArray | None] = [each.rows for each in self.seen]
        for bags in self.batch:
            arrays += (bags.keys, bags.offsets, bags.weights)
        for left in self.features:
            arrays += (left.keys, left.offsets, left.weights, left.scale)
        whole: list[Any] = [each if each.base is None else each.base for each in arrays if each is not None]
        return sum({id(each): each.nbytes for each in whole}.values())


def lookup(engine: "Engine", batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool) -> Plan:
    """Fill the results of all features of a batch. See Backend.fused_lookup.

    Raises what check_bags raises, UnknownGroup, DimMismatch (the arrays do not fit the groups' dims), ReadOnlyStorage.
    """
    size = check_bags(batch)
    engine.check_open()
    if train:
        engine.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
    groups = [engine.group(each.group) for each in batch]
    places = _places(batch, groups, size, pooled, sequences)
    features = [clean(each, group.config) for each, group in zip(batch, groups, strict=True)]
    seen: dict[int, Seen] = {}

    def look_up(i: int) -> None:
        rows, left = lookups.pool(groups[i], features[i], *places[i], train=train)
        seen[i] = Seen(groups[i].table, left, rows)

    with Uninterrupted():  # what other threads write to must not go away before they have ended
        spread([(each.keys.size, partial(look_up, i)) for i, each in enumerate(features)])
    return Plan(batch, features, [seen[i] for i in range(len(features))])


def apply_gradients(
    engine: "Engine",
    batch: Sequence[Bags] | Plan,
    pooled: F32,
    sequences: Sequence[F32],
    steps: Mapping[int, int],
    request: Request | None,
) -> bool:
    """Apply the gradients of what `lookup` filled, durably. See Backend.fused_apply_gradients.

    Raises what `lookup` and Engine.apply_gradients raise; then nothing was applied.
    """
    plan = batch if isinstance(batch, Plan) else None
    own = plan.batch if plan else batch
    assert not isinstance(own, Plan)
    size = check_bags(own)
    engine.check_open()
    groups = [engine.group(each.group) for each in own]
    places = _places(own, groups, size, pooled, sequences)
    features = plan.features if plan else [clean(each, group.config) for each, group in zip(own, groups, strict=True)]
    by_group: dict[int, list[int]] = {}
    for i, each in enumerate(own):
        by_group.setdefault(each.group, []).append(i)
    shares = [
        joined(
            [features[i] for i in mine],
            [places[i] for i in mine],
            [plan.seen[i] for i in mine] if plan else [],
            groups[mine[0]].config.dim,
            steps.get(number),
        )
        for number, mine in by_group.items()
    ]
    return engine.apply_gradients(shares, request)


def _places(
    batch: Sequence[Bags], groups: "Sequence[Group]", size: int, pooled: F32, sequences: Sequence[F32]
) -> list[tuple[F32, int]]:
    """For each feature the array that holds its results, and their first column there."""
    places: list[tuple[F32, int]] = []
    column, rest = 0, iter(sequences)
    wanted = []
    for bags, group in zip(batch, groups, strict=True):
        dim = group.config.dim
        if bags.combiner is None:
            array = next(rest, None)
            wanted.append((bags.keys.size, dim))
            if array is not None:
                places.append((array, 0))
        else:
            places.append((pooled, column))
            column += dim
    given = [each.shape for each in sequences]
    if pooled.shape != (size, column) or given != wanted:
        raise DimMismatch(
            f"the results of this batch are float32[{size}, {column}], and for its sequences {_shapes(wanted)}; the "
            f"arrays sent have the shapes {list(pooled.shape)}, and {_shapes(given)}: where a group was dropped and "
            "made anew since it was opened here, open it again"
        )
    return places


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
