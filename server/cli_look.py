"""Commands that look at a store as a whole: groups, stats."""

from typing import Annotated, Any

import typer

from rockbed.errors import UnknownGroup
from rockbed.server.cli_options import AsJson, number_of
from rockbed.server.cli_output import console, print_json, shown, table
from rockbed.server.cli_store import Store

_GROUP_FIGURES = (
    *("dim", "optimizer", "rows", "memory_rows", "dirty_rows", "lookup_keys", "memory_hits", "disk_hits"),
    *("inserts", "push_keys", "evictions"),
)


def groups(store: Store, as_json: AsJson = False) -> None:
    """The groups and their settings.

    Example: rockbed groups --server 127.0.0.1:7400
    """
    with store.open(read_only=True) as storage:
        found = [config.to_json() for config in storage.groups().values()]
    if as_json:
        print_json(found)
        return
    columns = ("group", "name", "dim", "optimizer", "initializer", "schedule", "admission", "ttl_s", "seed")
    rows = [[_rule(config[name]) for name in columns] for config in found]
    console().print(table(columns, [[str(row[0]), *row[1:-1], str(row[-1])] for row in rows]))


def _rule(value: Any) -> Any:
    """A rule as `adagrad gamma=0.05`."""
    if not isinstance(value, dict):
        return value
    return " ".join([value["name"], *(f"{name}={given}" for name, given in value.items() if name != "name")])


def stats(
    store: Store,
    group: Annotated[str | None, typer.Option(help="Every figure of this group, by its number or name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sizes and counters; docs/operations.md has the meaning of each.

    Example: rockbed stats --server 127.0.0.1:7400 --group 1
    """
    with store.open(read_only=True) as storage:
        number = None if group is None else number_of(storage, group)
        found = storage.stats()
    by_group = found.pop("groups")
    if number is not None and number not in by_group:
        raise UnknownGroup(f"group {number} is not among those of {store.target}: {', '.join(map(str, by_group))}")
    if as_json:
        print_json({**found, "groups": by_group} if number is None else by_group[number])
        return
    figures = found if number is None else by_group[number]
    # the names give the units, so a figure is formatted by its own
    console().print(table(("figure", "value"), [(name, shown(name, value)) for name, value in figures.items()]))
    if number is None:
        rows = [(str(each_number), *(each[name] for name in _GROUP_FIGURES)) for each_number, each in by_group.items()]
        console().print(table(("group", *_GROUP_FIGURES), rows))
