"""Lookups and pushes of a whole batch, many features of several groups, at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rockbed.bags import Bags, check_bags, check_contents
from rockbed.device_arrays import on_device
from rockbed.errors import DimMismatch
from rockbed.requests import Request
from rockbed.server import device_lookups, tiers
from rockbed.server.bag_gradients import BagGradients
from rockbed.server.bags import CleanBags, clean_all
from rockbed.server.feature_gradients import CleanFeatures, FeatureGradients, joined
from rockbed.server.pooling import pool_all
from rockbed.server.seen import Seen
from rockbed.types import F32, AnyArray

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch that was looked up, with what its push can use of that, by feature: what is left of its share, and for as
    long as nothing happened between, where the rows are in memory. Neither for those that were looked up on a device.

    batch: its arrays are nobody else's. size: its number of samples.
    """

    batch: Sequence[Bags]
    size: int
    features: Mapping[int, CleanBags]
    seen: Mapping[int, Seen]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps, once for arrays that the batch and what is left of it share."""
        arrays: list[AnyArray | None] = [each.rows for each in self.seen.values()]
        for bags in self.batch:
            arrays += (bags.keys, bags.offsets, bags.weights)
        for left in self.features.values():
            arrays += (left.keys, left.offsets, left.weights, left.scale)
        whole: list[Any] = [each if each.base is None else each.base for each in arrays if each is not None]
        return sum({id(each): each.nbytes for each in whole}.values())


def lookup(engine: "Engine", batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool) -> Plan:
    """Fill the results of all features of a batch. See Backend.fused_lookup.

    Raises what check_bags raises, UnknownGroup, DimMismatch (the arrays do not fit the groups' dims), ReadOnlyStorage.
    """
    size = check_bags(batch, contents=False)
    engine.check_open()
    if train:
        engine.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
    groups = [engine.group(each.group, each.generation) for each in batch]
    places = places_of(batch, groups, size, pooled, sequences)
    features: dict[int, CleanBags] = {}
    seen: dict[int, Seen] = {}

    def look_up_rest() -> None:
        above = [i for i, group in enumerate(groups) if group.tier is not None and i not in seen]
        rest = [i for i in range(len(groups)) if i not in seen and i not in above]
        check_contents(batch[i] for i in above)  # before rows are made for any feature
        features.update(zip(rest, clean_all([(batch[i], groups[i].config) for i in rest]), strict=True))
        pool_all({i: (groups[i], features[i], places[i]) for i in rest}, seen, train=train)
        if above and engine.device is not None:
            parts = [(groups[i], batch[i]) for i in above]
            found = device_lookups.pool(engine, engine.device, parts, size, train=train)
            with engine.device.queue():
                found = engine.device.down(found[0]), [engine.device.down(each) for each in found[1]]
            put(found, parts, [places[i] for i in above])

    tiers.where_rows_are(look_up_rest)
    return Plan(batch, size, features, seen)


def put(
    found: device_lookups.Results, parts: "Sequence[tuple[Group, Bags]]", places: Sequence[tuple[F32, int]]
) -> None:
    """Copy results of these features to where they are wanted: all in memory, or all on the device, whose queue is held
    then."""
    pooled, sequences = found
    rest, column = iter(sequences), 0
    for (group, bags), (array, at) in zip(parts, places, strict=True):
        dim = group.config.dim
        if bags.combiner is None:
            array[:] = next(rest)
        else:
            array[:, at : at + dim] = pooled[:, column : column + dim]
            column += dim


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
    size = plan.size if plan else check_bags(own, contents=False)
    engine.check_open()
    groups = [engine.group(each.group, each.generation) for each in own]
    places = places_of(own, groups, size, pooled, sequences)
    by_group: dict[int, list[int]] = {}
    for i, each in enumerate(own):
        by_group.setdefault(each.group, []).append(i)
    on_their_own: list[BagGradients | FeatureGradients] = []
    in_memory: dict[int, list[int]] = {}
    for number, mine in by_group.items():
        group, bags, given = groups[mine[0]], [own[i] for i in mine], [places[i] for i in mine]
        if group.tier is not None or any(each.on_device for each in bags) or any(on_device(at) for at, _ in given):
            if plan is None:
                check_contents(bags)
            step = steps.get(number)
            on_their_own.append(FeatureGradients(number, bags, given, group.config.dim, step, group.generation))
        else:
            in_memory[number] = mine
    left = _left_of(plan, [i for mine in in_memory.values() for i in mine], own, groups)
    seen = plan.seen if plan else {}
    together = [
        CleanFeatures(
            [left[i] for i in mine],
            [places[i] for i in mine],
            [seen[i] for i in mine] if all(i in seen for i in mine) else [],
            groups[mine[0]].config.dim,
            steps.get(number),
        )
        for number, mine in in_memory.items()
    ]
    return engine.apply_gradients([*on_their_own, *joined(together)], request)


def _left_of(
    plan: Plan | None, wanted: Sequence[int], batch: Sequence[Bags], groups: "Sequence[Group]"
) -> dict[int, CleanBags]:
    """By number, what is left of the features `wanted`. Raises what check_arrays raises for those not in the plan."""
    left = dict(plan.features) if plan else {}
    lacking = [i for i in wanted if i not in left]
    left.update(zip(lacking, clean_all([(batch[i], groups[i].config) for i in lacking]), strict=True))
    return left


def places_of(
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
