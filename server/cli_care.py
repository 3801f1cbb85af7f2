"""Commands for the care of a store: shrink, compact, flush, check."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed.errors import StorageCorrupt
from rockbed.server.cli_asking import must_be_able_to_ask, typed
from rockbed.server.cli_errors import FAILED, PROBLEMS_FOUND, WrongUsage
from rockbed.server.cli_options import AsJson, Yes, number_of
from rockbed.server.cli_output import console, print_json, progress, table
from rockbed.server.cli_store import Store

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage
    from rockbed.reports import ShrinkReport


def shrink(
    store: Store,
    group: Annotated[str | None, typer.Option(help="This group only, by its number or name.")] = None,
    max_age: Annotated[float | None, typer.Option(help="Remove rows last updated this many seconds ago.")] = None,
    min_count: Annotated[int | None, typer.Option(help="Remove rows with fewer updates.")] = None,
    min_norm: Annotated[float | None, typer.Option(help="Remove rows whose weights have a smaller L2 norm.")] = None,
    min_step: Annotated[
        int | None, typer.Option(help="Remove rows of --group last updated before this global step.")
    ] = None,
    returned: Annotated[
        bool, typer.Option("--returned", help="Remove exact rows of --group, adaptive, whose ids are rare again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove rows that have expired, and those that meet any of the conditions; counts them first, and asks.

    Example: rockbed shrink --server 127.0.0.1:7400 --max-age 2592000 --min-count 2 --dry-run
    """
    if dry_run and yes:
        raise WrongUsage("--dry-run removes nothing, --yes does: give one of them")
    if not (dry_run or yes):
        must_be_able_to_ask("removing rows")
    conditions: dict[str, Any] = {"max_age": max_age, "min_count": min_count, "min_norm": min_norm}
    conditions |= {"min_step": min_step, "returned": returned}
    with store.open(read_only=dry_run) as storage:
        conditions["group"] = None if group is None else number_of(storage, group)
        if not yes:
            report = _shrink(storage, "counting rows", conditions, dry_run=True)
            if dry_run or not _wanted(report):
                _say(report, as_json)
                return
        report = _shrink(storage, "removing rows", conditions, dry_run=False)
    _say(report, as_json)


def _shrink(storage: "PyStorage", what: str, conditions: dict[str, Any], *, dry_run: bool) -> "ShrinkReport":
    with progress(what) as tell:
        return storage.shrink(**conditions, dry_run=dry_run, progress=tell)


def _wanted(found: "ShrinkReport") -> bool:
    """Whether the rows found are to go; False where there are none."""
    if not found.rows_removed:
        return False
    console(stderr=True).print(_removals(found))
    answer = typed(f"Remove {found.rows_removed:,} of {found.rows_seen:,} rows for good? [y/N]")
    if answer.lower() not in ("y", "yes"):
        typer.echo("rockbed: nothing was removed", err=True)
        raise typer.Exit(FAILED)
    return True


def _say(report: "ShrinkReport", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "dry_run": report.dry_run,
                "rows_seen": report.rows_seen,
                "rows_removed": report.rows_removed,
                "removed": report.removed,
            }
        )
        return
    console().print(_removals(report))
    verb = "would be" if report.dry_run else "were"
    typer.echo(f"{report.rows_removed:,} of {report.rows_seen:,} rows {verb} removed")


def _removals(report: "ShrinkReport") -> Any:
    reasons = next(iter(report.removed.values()), {})
    rows = [(str(number), *counts.values(), sum(counts.values())) for number, counts in report.removed.items()]
    return table(("group", *reasons, "together"), rows)


def compact(store: Store, as_json: AsJson = False) -> None:
    """Have RocksDB rewrite its files: frees the space of rows that are gone.

    Example: rockbed compact --data ./model
    """
    with store.open() as storage:
        before = storage.stats()["disk_bytes"]
        with progress("compacting"):
            storage.compact()
        after = storage.stats()["disk_bytes"]
    if as_json:
        print_json({"disk_bytes_before": before, "disk_bytes": after})
    else:
        console().print(table(("disk bytes before", "disk bytes"), [(before, after)]))


def flush(store: Store, as_json: AsJson = False) -> None:
    """Write every changed row to RocksDB and trim the journal. Pushes are durable without it.

    Example: rockbed flush --server 127.0.0.1:7400
    """
    with store.open() as storage:
        with progress("writing back"):
            storage.flush()
        found = storage.stats()
    names = ("rows", "dirty_rows", "journal_bytes", "flushed_lsn")
    if as_json:
        print_json({name: found[name] for name in names})
    else:
        console().print(table(names, [[found[name] for name in names]]))


def check(store: Store, as_json: AsJson = False) -> None:
    """Read everything and say what is wrong; 3 is the exit code if anything is.

    Example: rockbed check --data ./model
    """
    from rockbed.reports import CheckReport

    try:
        with store.open(read_only=True) as storage, progress("reading everything"):
            report = storage.check()
    except StorageCorrupt as error:  # too much so to be opened
        report = CheckReport([str(error)])
    if as_json:
        print_json({"problems": report.problems, "rows": report.rows, "journal_entries": report.journal_entries})
    else:
        console().print(table(("group", "rows"), [(str(number), rows) for number, rows in report.rows.items()]))
        for problem in report.problems:
            typer.echo(problem)
        typer.echo(f"{len(report.problems):,} problems" if report.problems else "no problems")
    if report.problems:
        raise typer.Exit(PROBLEMS_FOUND)
