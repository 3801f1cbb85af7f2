"""Commands that copy rows out of a store and back: checkpoint, restore, export, import."""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from rockbed.server.cli_asking import must_be_able_to_ask, typed
from rockbed.server.cli_errors import FAILED, WrongUsage
from rockbed.server.cli_options import AsJson, Mode, StoreMode, Yes, number_of
from rockbed.server.cli_output import console, print_json, progress, size, table
from rockbed.server.cli_store import Store

_DAY_S = 86_400
_WHERE = "With --data a path; with --server a name in the directory that the server has for it."

Groups = Annotated[
    list[str] | None, typer.Option("--group", help="This group only, by number or name; may be given several times.")
]


class Format(str, Enum):
    """Of an export."""

    PARQUET = "parquet"
    SAFETENSORS = "safetensors"
    NPZ = "npz"
    DAMO = "damo"


def checkpoint(
    store: Store, name: Annotated[Path, typer.Argument(help=_WHERE, show_default=False)], as_json: AsJson = False
) -> None:
    """Write a copy of the whole store, every row as it was at one moment; training may go on.

    Example: rockbed checkpoint --server 127.0.0.1:7400 monday
    """
    with store.open() as storage, progress("writing the checkpoint"):
        storage.checkpoint(name)
    _done(as_json, f"wrote the checkpoint {name}", {"checkpoint": str(name)})


def restore(
    store: Store,
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint's directory; with --server its name there.")],
    directory: Annotated[
        Path | None, typer.Argument(help="Where a store is to be made, new or empty; without it, --server or --data.")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make a store from a checkpoint, in a new directory or in the place of one, which is kept beside it.

    Example: rockbed restore ./checkpoints/monday ./model-2

    Example: rockbed restore monday --server 127.0.0.1:7400 --yes
    """
    from rockbed.client.storage import PyStorage

    if directory is not None:
        if store.server is not None or store.data is not None:
            raise WrongUsage(f"restore to {directory}, or in the place of --server or --data: give one of them")
        with progress("restoring"):
            PyStorage.restore(checkpoint, directory)
        said = {"checkpoint": str(checkpoint), "directory": str(directory)}
        _done(as_json, f"restored {checkpoint} to {directory}", said)
        return
    if not yes:
        must_be_able_to_ask("restoring in the place of a store")
    with store.open() as storage:
        if not yes:
            rows = storage.stats()["rows"]
            question = f"{store.target} with {rows:,} rows gives way to {checkpoint}. Type yes to go on"
            if typed(question) != "yes":
                typer.echo("rockbed: nothing was restored", err=True)
                raise typer.Exit(FAILED)
        with progress("restoring"):
            kept = storage.restore_from(checkpoint)
    said = {"checkpoint": str(checkpoint), "kept": kept}
    _done(as_json, f"restored {checkpoint}; the store of before is {kept}", said)


def export(
    store: Store,
    path: Annotated[Path, typer.Argument(help=_WHERE, show_default=False)],
    format: Annotated[Format, typer.Option(help="damo is damo-embedding's dump.")] = Format.PARQUET,
    group: Groups = None,
    max_age: Annotated[float | None, typer.Option(help="Leave out rows last updated this many seconds ago.")] = None,
    min_count: Annotated[int | None, typer.Option(help="Leave out rows with fewer updates.")] = None,
    min_norm: Annotated[float | None, typer.Option(help="Leave out rows whose weights have a smaller norm.")] = None,
    min_abs: Annotated[float | None, typer.Option(help="Leave out rows with no weight this far from 0.")] = None,
    cutoff: Annotated[float | None, typer.Option(help="Write weights nearer to 0 than this as 0.")] = None,
    slots: Annotated[bool, typer.Option("--slots", help="With the optimizer's state, to go on training.")] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="With what a later export --since this one compares with.")
    ] = False,
    since: Annotated[
        Path | None, typer.Option(help="An export beside this one: write only what has changed, or gone, since.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write rows to files for other programs; docs/export.md says what they hold.

    Example: rockbed export --data ./model ./serving --format npz --min-count 3
    """
    if format is Format.DAMO:
        unknown = {"min_norm": min_norm, "min_abs": min_abs, "cutoff": cutoff, "slots": slots, "digests": digests}
        condition = _damo_condition(group, max_age, min_count, **unknown, since=since)
        _dump(store, path, group[0] if group else None, condition, as_json)
        return
    changes = digests or since is not None  # what an export is compared with has to be flushed first
    with store.open(read_only=not changes) as storage, progress("exporting") as tell:
        report = storage.export(
            path,
            format=format.value,
            groups=None if group is None else [number_of(storage, each) for each in group],
            max_age=max_age,
            min_count=min_count,
            min_norm=min_norm,
            min_abs=min_abs,
            cutoff=cutoff,
            slots=slots,
            digests=digests,
            since=since,
            progress=tell,
        )
    if as_json:
        print_json({"path": str(path), **asdict(report)})
        return
    _print_by_group(report.rows_seen, report.rows_written, ("rows seen", "rows written"))
    typer.echo(f"wrote {path}: {size(report.file_bytes)}")


def _damo_condition(
    group: list[str] | None, max_age: float | None, min_count: int | None, **unknown: object
) -> dict[str, int]:
    """The options as those of a dump, which knows fewer. Raises WrongUsage."""
    given = [f"--{name.replace('_', '-')}" for name, value in unknown.items() if value not in (None, False)]
    if given:
        raise WrongUsage(f"{', '.join(given)}: a dump of damo-embedding has no such thing; another --format has")
    if group is not None and len(group) > 1:
        raise WrongUsage("--group: a dump of damo-embedding has one group, or all")
    if max_age is not None and max_age % _DAY_S:
        raise WrongUsage(f"--max-age is {max_age:g}: a dump of damo-embedding counts in days, {_DAY_S} s each")
    chosen = {"min_count": min_count, "expire_days": None if max_age is None else int(max_age // _DAY_S)}
    return {name: value for name, value in chosen.items() if value is not None}


def _dump(store: Store, path: Path, group: str | None, condition: dict[str, int], as_json: bool) -> None:
    with store.open(read_only=True) as storage, progress("writing the dump"):
        if group is not None:
            condition["group"] = number_of(storage, group)
        rows = storage.dump(path, condition)
    _done(as_json, f"wrote {path}: {rows:,} rows", {"path": str(path), "format": Format.DAMO.value, "rows": rows})


def import_(
    store: Store,
    path: Annotated[Path, typer.Argument(help=_WHERE + " An export, or a dump of damo-embedding.", show_default=False)],
    group: Annotated[
        list[int] | None, typer.Option("--group", help="This group of the export only; may be given several times.")
    ] = None,
    mode: StoreMode = Mode.REPLACE,
    alone: Annotated[
        bool, typer.Option("--alone", help="Of an export --since another one, not that one before it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, store nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Store the rows of an export; groups that are not there are created, and with --data a new store.

    Example: rockbed import --data ./model-2 ./serving
    """
    with store.open(create=not dry_run) as storage, progress("importing") as tell:
        report = storage.import_(path, groups=group, mode=mode.value, chain=not alone, dry_run=dry_run, progress=tell)
    if as_json:
        print_json({"path": str(path), **asdict(report)})
        return
    _print_by_group(report.rows_read, report.rows_written, ("rows read", "rows stored"))
    if report.groups_created:
        typer.echo(f"created the groups {', '.join(map(str, report.groups_created))}")


def _print_by_group(first: dict[int, int], second: dict[int, int], names: tuple[str, str]) -> None:
    console().print(table(("group", *names), [(str(group), first[group], second[group]) for group in first]))


def _done(as_json: bool, sentence: str, document: dict[str, Any]) -> None:
    if as_json:
        print_json(document)
    else:
        typer.echo(sentence)
