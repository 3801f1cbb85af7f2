"""`rockbed top`: what a store does, as it does it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed.errors import DeadlineExceeded, Overloaded, ServerUnavailable
from rockbed.server.cli_options import AsJson
from rockbed.server.cli_output import console, print_json, shown, table
from rockbed.server.cli_store import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rockbed.client.storage import PyStorage


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer of stats(), when it came (monotonic seconds), and how long it took."""

    stats: dict[str, Any]
    at_s: float
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class GroupSample:
    """What a group holds, and what it did a second between two readings; None where that cannot be said: at the first
    reading, and when the store was opened anew in between. hit_rate: of the lookups that found a row, the share that
    found it in memory."""

    group: int
    rows: int
    memory_rows: int
    dirty_rows: int
    lookup_keys_s: float | None
    push_keys_s: float | None
    inserts_s: float | None
    hit_rate: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What there is to see at one moment."""

    groups: list[GroupSample]
    dirty_rows: int
    memory_bytes: int
    memory_budget: int
    journal_bytes: int
    write_back_lag_s: float
    round_trip_ms: float
    background_error: str | None


def top(
    store: Store,
    interval: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between two looks.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many; with --json 1 by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a store does, group by group, until q or Ctrl-C.

    Example: rockbed top --server 127.0.0.1:7400 --interval 2
    """
    with store.open(read_only=True) as storage:
        if as_json:
            readings = _readings(storage, interval, 1 if count is None else count, _slept)
            print_json({"interval_s": interval, "samples": [asdict(sample) for sample in _samples(readings)]})
        elif sys.stdout.isatty():
            _watch(storage, store, interval, count)
        else:
            for sample in _samples(_readings(storage, interval, count, _slept)):
                console().print(_view(sample, store))


def read(storage: "PyStorage") -> Reading:
    """Ask once."""
    began = time.monotonic()
    found = storage.stats()
    at = time.monotonic()
    return Reading(found, at, 1000 * (at - began))


def _readings(
    storage: "PyStorage", interval: float, count: int | None, pause: Callable[[float], bool]
) -> Iterator[Reading]:
    """One now, and `count` more with an interval between each two; count: None = until `pause` says that it is over."""
    yield read(storage)
    while count != 0 and pause(interval):
        yield read(storage)
        count = None if count is None else count - 1


def _samples(readings: Iterator[Reading]) -> Iterator[Sample]:
    before = next(readings)
    for now in readings:
        yield sample(before, now)
        before = now


def sample(before: Reading | None, now: Reading) -> Sample:
    """What happened from one reading to the next; before: None = there was none."""
    found = now.stats
    seconds = 0.0 if before is None else now.at_s - before.at_s
    earlier = {} if before is None else before.stats["groups"]
    return Sample(
        groups=[_group(number, earlier.get(number), each, seconds) for number, each in found["groups"].items()],
        round_trip_ms=now.round_trip_ms,
        **{name: found[name] for name in ("dirty_rows", "memory_bytes", "memory_budget", "journal_bytes")},
        **{name: found[name] for name in ("write_back_lag_s", "background_error")},
    )


def _group(number: int, before: dict[str, Any] | None, now: dict[str, Any], seconds: float) -> GroupSample:
    names = ("lookup_keys", "push_keys", "inserts", "memory_hits", "disk_hits")
    grown = {name: now[name] - (before or {}).get(name, 0) for name in names}
    known = before is not None and seconds > 0 and min(grown.values()) >= 0
    found = grown["memory_hits"] + grown["disk_hits"]
    return GroupSample(
        group=number,
        **{name: now[name] for name in ("rows", "memory_rows", "dirty_rows")},
        lookup_keys_s=grown["lookup_keys"] / seconds if known else None,
        push_keys_s=grown["push_keys"] / seconds if known else None,
        inserts_s=grown["inserts"] / seconds if known else None,
        hit_rate=grown["memory_hits"] / found if known and found else None,
    )


# --- on a terminal ---


def _view(seen: Sample, store: Store, trouble: str = "") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    rows = [
        (
            *(str(group.group), group.rows, group.memory_rows, group.dirty_rows),
            *(group.lookup_keys_s, group.push_keys_s, group.inserts_s),
            None if group.hit_rate is None else f"{group.hit_rate:.1%}",
        )
        for group in seen.groups
    ]
    columns = ("group", "rows", "in memory", "dirty", "lookups/s", "pushes/s", "inserts/s", "memory hits")
    memory, budget, journal = (
        shown("bytes", value) for value in (seen.memory_bytes, seen.memory_budget, seen.journal_bytes)
    )
    figures = (
        f"{store.target}   answered in {seen.round_trip_ms:.1f} ms",
        f"memory {memory} of {budget}   journal {journal}   {seen.dirty_rows:,} dirty rows, write-back "
        f"{seen.write_back_lag_s:.1f} s behind",
    )
    problems = [Text(text, style="red") for text in (seen.background_error, trouble) if text]
    return Group(*map(Text, figures), *problems, table(columns, rows))


def _watch(storage: "PyStorage", store: Store, interval: float, count: int | None) -> None:
    """The view, renewed in its place, also while a server is away."""
    from rich.live import Live

    before = read(storage)
    seen = sample(None, before)
    with _keyboard() as pause, Live(_view(seen, store), console=console(), auto_refresh=False) as live:
        while count != 0 and pause(interval):
            try:
                now = read(storage)
            except (ServerUnavailable, DeadlineExceeded, Overloaded) as error:
                live.update(_view(seen, store, str(error)), refresh=True)
                continue
            seen, before = sample(before, now), now
            live.update(_view(seen, store), refresh=True)
            count = None if count is None else count - 1


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return True


@contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """Yields what waits for some seconds and says whether to go on: not after a q. Ctrl-C works as ever."""
    if not sys.stdin.isatty():
        yield _slept
        return
    import select
    import termios
    import tty

    def pause(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))[0]:
            if sys.stdin.read(1) in ("q", "Q", ""):
                return False
        return True

    settings = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)  # a key is read when it is pressed, not with the next line
    try:
        yield pause
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
