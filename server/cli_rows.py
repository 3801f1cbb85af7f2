"""Commands on single rows and on groups: get, put, drop."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed.errors import BatchTooLarge, LimitExceeded, RockbedError, UnknownGroup
from rockbed.server.cli_asking import must_be_able_to_ask, typed
from rockbed.server.cli_errors import FAILED, WrongUsage
from rockbed.server.cli_keys import array_of, keys_in, keys_typed
from rockbed.server.cli_options import AsJson, Group, Mode, StoreMode, Yes, number_of
from rockbed.server.cli_output import console, print_json, progress, table
from rockbed.server.cli_store import Store

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage
    from rockbed.reports import RowReport
    from rockbed.requests import PutRows

_PART_ROWS = 4_096  # of one call


def get(
    store: Store,
    group: Group,
    keys: Annotated[list[str] | None, typer.Argument(help="-2^63 to 2^64-1, decimal or 0x hexadecimal.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="One key a line (- is stdin), or .npy of int64 or uint64.")
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="Weights and optimizer slots as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is known of keys: their rows, or why there is none. Changes nothing.

    Example: rockbed get --server 127.0.0.1:7400 --group 1 17 -5 0xff --values
    """
    asked = keys_typed(keys or [])
    if not asked and keys_file is None:
        raise WrongUsage("which keys? Give some, or --keys-file")
    if keys_file is not None:
        asked += keys_in(keys_file)
    rows: list[dict[str, Any]] = []
    widths: dict[str, int] = {}

    def read(part: slice) -> None:
        report = storage.get_rows(number, array_of(asked[part]))
        widths.update(report.slot_widths)
        rows.extend(_row(report, i, key, values) for i, key in enumerate(asked[part]))

    with store.open(read_only=True) as storage, progress("reading rows") as tell:
        number = number_of(storage, group)
        _in_parts(len(asked), read, tell)
    if as_json:
        print_json({"group": number, "slot_widths": widths, "rows": rows})
        return
    columns = ("key", "explanation", *(("weights", "slots") if values else ()))
    console().print(table(columns, [[str(row["key"]), *(_text(row[name]) for name in columns[1:])] for row in rows]))


def _in_parts(n: int, call: Callable[[slice], None], tell: Callable[[int, int], None]) -> None:
    """Call with one part of n rows after another; they become smaller where the store says that they are too large."""
    start, step = 0, _PART_ROWS
    while start < n:
        part = slice(start, min(n, start + step))
        try:
            call(part)
        except (BatchTooLarge, LimitExceeded):
            if step == 1:
                raise
            step //= 2
            continue
        start = part.stop
        tell(start, n)


def _row(report: "RowReport", i: int, key: int, values: bool) -> dict[str, Any]:
    from rockbed.reports import RowStatus

    row: dict[str, Any] = {
        "key": key,
        "status": RowStatus(report.status[i]).name.lower(),
        "explanation": report.explain(i),
    }
    if row["status"] in ("present", "expired"):
        row |= {
            "update_num": int(report.update_num[i]),
            "update_time": int(report.update_time_ms[i]),
            "expires_at": int(report.expires_at_ms[i]) or None,
            "in_memory": bool(report.in_memory[i]),
            "dirty": bool(report.dirty[i]),
        }
    if values:
        there = row["status"] in ("present", "expired")
        row["weights"] = report.weights[i].tolist() if there else None
        row["slots"] = report.slots[i].tolist() if there else None
    return row


def _text(value: Any) -> str | None:
    return " ".join(f"{x:.6g}" for x in value) if isinstance(value, list) else value


def put(
    store: Store,
    group: Group,
    file: Annotated[
        Path | None,
        typer.Argument(
            help='Rows: JSON lines such as {"key": 17, "weights": [0.1, 0.2]} (- is stdin), or .npz with such arrays. '
            "They may have slots, update_num and update_time (ms since 1970) as well."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="One row's key, instead of a file.")] = None,
    weights: Annotated[str | None, typer.Option(help="That row's weights, as 0.1,0.2,...")] = None,
    mode: StoreMode = Mode.REPLACE,
    as_json: AsJson = False,
) -> None:
    """Store rows as they are, past optimizer and admission.

    Example: rockbed put --server 127.0.0.1:7400 --group 1 --key 17 --weights 0.1,0.2,0.3,0.4
    """
    from rockbed.server.cli_rows_files import rows_in

    if (file is None) == (key is None) or (key is None) != (weights is None):
        raise WrongUsage("give a file, or --key and --weights")
    if file is not None:
        rows = rows_in(file)
    elif key is not None and weights is not None:
        rows = _typed_row(key, weights)
    with store.open() as storage, progress("storing rows") as tell:
        number = number_of(storage, group)
        stored = _put(storage, number, rows, mode.value, tell)
    if as_json:
        print_json({"group": number, "rows_sent": rows.keys.size, "rows_stored": stored})
    else:
        typer.echo(f"stored {stored:,} of {rows.keys.size:,} rows in group {group}")


def _typed_row(key: str, weights: str) -> "PutRows":
    from rockbed.requests import PutRows
    from rockbed.server.cli_rows_files import floats_of

    try:
        values = [float(each) for each in weights.split(",")]
    except ValueError:
        raise WrongUsage(f"--weights is {weights!r}: give numbers, as in 0.1,-0.2,3e-4") from None
    return PutRows(array_of(keys_typed([key])), floats_of([values]))


def _put(storage: "PyStorage", group: int, rows: "PutRows", mode: str, tell: Callable[[int, int], None]) -> int:
    n, sent, stored = rows.keys.size, 0, 0

    def send(part: slice) -> None:
        nonlocal sent, stored
        stored += storage.put_rows(
            group,
            rows.keys[part],
            rows.weights[part],
            slots=None if rows.slots is None else rows.slots[part],
            update_num=None if rows.update_num is None else rows.update_num[part],
            update_time_ms=None if rows.update_time_ms is None else rows.update_time_ms[part],
            mode=mode,
        )
        sent = part.stop

    try:
        _in_parts(n, send, tell)
    except RockbedError as error:
        if not sent:
            raise
        raise type(error)(f"{error} (the first {sent:,} of {n:,} rows are stored; all can be put again)") from None
    return stored


def drop(
    store: Store,
    group: Group,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Drop a group with all of its rows, for good.

    Example: rockbed drop --server 127.0.0.1:7400 --group 7
    """
    if not yes:
        must_be_able_to_ask("dropping a group")
    with store.open() as storage:
        number = number_of(storage, group)
        if not yes:
            _confirm(storage, store, number)
        with progress("dropping the group"):
            rows = storage.drop_group(number)
    if as_json:
        print_json({"group": number, "rows": rows})
    else:
        typer.echo(f"dropped group {group} with {rows:,} rows")


def _confirm(storage: "PyStorage", store: Store, group: int) -> None:
    known = storage.stats()["groups"]
    if group not in known:
        raise UnknownGroup(f"group {group} is not among those of {store.target}: {', '.join(map(str, known))}")
    its = known[group]
    question = f"Group {group} of {store.target} (dim {its['dim']}, {its['optimizer']}, {its['rows']:,} rows) is lost "
    answer = typed(question + "for good. Type its number to drop it")
    if answer != str(group):
        typer.echo(f"rockbed: {answer!r} is not {group}: nothing was dropped", err=True)
        raise typer.Exit(FAILED)
