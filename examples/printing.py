"""What the story prints with, beside plain lines: a progress bar, and the table of a store's statistics."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class Bars:
    """One progress bar that starts afresh whenever its label changes."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None)
        self._label = ""

    def show(self, label: str, done: int, total: int) -> None:
        if label != self._label:
            self._label = label
            self._progress.reset(self._task, description=label, total=total)
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()


def table_of(stats: dict[str, Any]) -> Table:
    """What stats() says, one figure a line; figures of a group go under the group's number."""
    table = Table("figure", "value", title="storage.stats()", title_justify="left")
    for name, value in _flat(stats):
        table.add_row(
            name, f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
        )
    return table


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
