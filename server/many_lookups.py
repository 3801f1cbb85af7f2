"""Lookups in several groups in one call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rockbed.requests import Lookup
from rockbed.server import tiers
from rockbed.server.bags import CleanBags
from rockbed.server.fitting import must_take
from rockbed.server.pooling import pool_all
from rockbed.server.seen import Seen

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def lookup_many(engine: "Engine", lookups: Sequence[Lookup], *, train: bool) -> None:
    """As lookups.lookup for each of `lookups`, whose arrays are known to fit before rows are made for any of them.

    Raises UnknownGroup, DimMismatch, and what each of them raises: those before it are done then.
    """
    groups = [engine.group(each.group, each.generation) for each in lookups]
    for group, each in zip(groups, lookups, strict=True):
        must_take(group.config, each.keys.size, each.out)
    seen: dict[int, Seen] = {}

    def look_up() -> None:
        rest = {
            i: (group, CleanBags.of_keys(group.number, each.keys), (each.out, 0))
            for i, (group, each) in enumerate(zip(groups, lookups, strict=True))
            if group.tier is None and i not in seen
        }
        pool_all(rest, seen, train=train)

    tiers.where_rows_are(look_up)
    for i, (group, each) in enumerate(zip(groups, lookups, strict=True)):
        if i not in seen:
            tiers.lookup(engine, group, each.keys, each.out, train=train)
        elif train and seen[i].whole:
            group.latest_lookups.note(each.keys, seen[i])
