"""What commands print: tables for people, JSON for programs, progress for those who watch."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPED_WIDTH = 240  # of a table that goes into a file or another program: nothing is cut there


def print_json(document: Any) -> None:
    """One JSON document on stdout. NaN and infinity, which JSON does not have, become null."""
    try:
        text = json.dumps(document, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document))
    typer.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console(*, stderr: bool = False) -> "Console":
    """Where tables go. Text is printed as it is: no markup, no emoji."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if terminal else _PIPED_WIDTH)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> "Table":
    """Numbers stand at the right, with separators; bytes, where a column's name says so, in KiB, MiB, ..."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, header_style="bold")
    cells = [list(row) for row in rows]
    for i, name in enumerate(columns):
        text = any(isinstance(row[i], str) for row in cells)
        made.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in cells:
        made.add_row(*(shown(name, value) for name, value in zip(columns, row, strict=True)))
    return made


def shown(name: str, value: object) -> str:
    """A value as people read it; name: what it is."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and ("bytes" in name or name == "memory_budget"):
        return size(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def size(count: float) -> str:
    """Bytes as people read them."""
    unit = 0
    while count >= 1024 and unit < 5:
        count, unit = count / 1024, unit + 1
    return f"{count:,.0f} B" if unit == 0 else f"{count:,.1f} {' KMGTP'[unit]}iB"


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal, until the block ends. Yields what takes (done, in all); until it is
    called the bar only shows that something goes on."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
