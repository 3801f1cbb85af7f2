"""Shrink: what goes, by which reason, and what stays."""

from typing import Any

import numpy as np
import pytest

from rockbed import InvalidConfig, PyStorage, ReadOnlyStorage, UnknownGroup
from tests.api.helpers import SMALL, Clock, OpenStorage, embedding, keys_of, ones, push_in_pieces

DAY = 86_400


def _filled(open_storage: OpenStorage, clock: Clock, **options: Any) -> PyStorage:
    """Group 0: keys 0..9 updated once, long ago; 10..19 twice, now; 20..24 only looked up, now. Group 1: one row."""
    storage = open_storage(clock=clock, **options)
    rows = embedding(storage)
    rows.apply_gradients(np.arange(10), ones(10))
    clock.now += 10 * DAY
    for _ in range(2):
        rows.apply_gradients(np.arange(10, 20), ones(10))
    rows.lookup(np.arange(20, 25))
    embedding(storage, group=1).apply_gradients(keys_of(7), ones(1))
    return storage


@pytest.mark.parametrize("dry_run", [True, False])
def test_each_condition_takes_its_rows_and_a_dry_run_counts_the_same(
    open_storage: OpenStorage, clock: Clock, dry_run: bool
) -> None:
    storage = _filled(open_storage, clock)
    report = storage.shrink(group=0, max_age=5 * DAY, min_count=1, dry_run=dry_run)
    assert report.removed == {0: {"expired": 0, "age": 10, "count": 5, "norm": 0}}
    assert (report.dry_run, report.rows_seen, report.rows_removed) == (dry_run, 25, 15)
    assert storage.stats()["groups"][0]["rows"] == (25 if dry_run else 10)
    rows = embedding(storage).lookup(np.arange(25), train=False)
    assert (rows[10:20] == -1.0).all()
    assert rows[:10].any() == dry_run
    assert storage.check().problems == []


REASONS = ("expired", "age", "count", "norm")
MEETS = [tuple(name for i, name in enumerate(REASONS) if group >> i & 1) for group in range(16)]
"""What the one row of each group meets: all sixteen choices out of four reasons."""


def _filled_with_every_choice(storage: PyStorage, clock: Clock) -> None:
    rows = [embedding(storage, group=group, ttl=5 if "expired" in meets else 0) for group, meets in enumerate(MEETS)]
    for old in (True, False):
        for one, meets in zip(rows, MEETS, strict=True):
            if ("age" in meets) == old:
                updates = 1 if "count" in meets else 2
                value = 0.1 if "norm" in meets else 4.0
                for _ in range(updates):
                    one.apply_gradients(keys_of(7), ones(1, value=value / updates))
        clock.now += 90 if old else 10
    # the norms are 0.1 or 4, the rows 100 or 10 seconds old, and updated once or twice


@pytest.mark.parametrize("asked", [("age", "count", "norm"), ("count", "norm"), ("age", "norm"), ()])
def test_a_row_counts_under_the_first_reason_that_fits_of_those_asked_for(
    open_storage: OpenStorage, clock: Clock, asked: tuple[str, ...]
) -> None:
    storage = open_storage(clock=clock)
    _filled_with_every_choice(storage, clock)
    limits = {"age": ("max_age", 50), "count": ("min_count", 2), "norm": ("min_norm", 1.0)}
    conditions: dict[str, Any] = dict(limits[name] for name in asked)
    wanted = {}
    for group, meets in enumerate(MEETS):
        first = next((name for name in REASONS if name in meets and name in ("expired", *asked)), None)
        wanted[group] = {name: int(name == first) for name in REASONS}
    for dry_run in (True, False):  # the same count, whether by what was read or by what was removed
        assert storage.shrink(**conditions, dry_run=dry_run).removed == wanted
    left = [group for group, reasons in wanted.items() if not any(reasons.values())]
    assert [group for group, stats in storage.stats()["groups"].items() if stats["rows"]] == left
    assert storage.shrink(**conditions).rows_removed == 0


def test_a_row_as_old_as_max_age_goes_one_with_min_count_updates_or_min_norm_stays(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock)
    embedding(storage).apply_gradients(keys_of(7), ones(1))  # one update, norm 1
    clock.now += 100
    assert storage.shrink(min_count=1, min_norm=1.0, max_age=100.001, dry_run=True).rows_removed == 0
    assert storage.shrink(max_age=100, dry_run=True).removed[0]["age"] == 1
    assert storage.shrink(min_count=2, dry_run=True).removed[0]["count"] == 1
    assert storage.shrink(min_norm=1.001, dry_run=True).removed[0]["norm"] == 1


def test_a_norm_below_the_limit_goes(open_storage: OpenStorage, clock: Clock) -> None:
    storage = _filled(open_storage, clock)
    # dim 4: norms are 1 (one step of 0.5), 2 (two), 0 (looked up)
    assert storage.shrink(min_norm=1.0).removed == {
        0: {"expired": 0, "age": 0, "count": 0, "norm": 5},
        1: {"expired": 0, "age": 0, "count": 0, "norm": 0},
    }
    assert storage.shrink(group=0, min_norm=1.5).removed[0]["norm"] == 10


def test_expired_rows_count_as_such_and_go_without_any_condition(open_storage: OpenStorage, clock: Clock) -> None:
    storage = _filled(open_storage, clock, ttl=9 * DAY)
    assert storage.shrink(dry_run=True).removed[0] == {"expired": 10, "age": 0, "count": 0, "norm": 0}
    assert storage.shrink(min_count=1).removed[0] == {"expired": 10, "age": 0, "count": 5, "norm": 0}
    assert storage.stats()["groups"][0]["rows"] == 10


def test_removed_rows_stay_away_after_reopening_and_begin_anew(open_storage: OpenStorage, clock: Clock) -> None:
    storage = _filled(open_storage, clock)
    storage.shrink(max_age=5 * DAY)
    storage.close()
    storage = open_storage(clock=clock)
    rows = embedding(storage)
    assert not rows.lookup(np.arange(10), train=False).any()
    rows.apply_gradients(keys_of(3), ones(1))
    assert (rows.lookup(keys_of(3)) == -0.5).all()


def test_progress_is_told_and_rows_that_are_on_disk_only_are_found(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(memory_budget=SMALL, clock=clock)
    rows = embedding(storage)
    push_in_pieces(rows, np.arange(6_000))
    push_in_pieces(rows, np.arange(0, 6_000, 2))
    seen: list[tuple[int, int]] = []
    report = storage.shrink(min_count=2, progress=lambda done, total: seen.append((done, total)))
    assert report.removed[0]["count"] == 3_000
    assert seen[-1] == (6_000, 6_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    left = rows.lookup(np.arange(6_000), train=False)
    assert (left[::2] == -1.0).all()
    assert not left[1::2].any()


@pytest.mark.embedded  # over the wire nobody waits for `progress`
def test_a_row_that_is_pushed_while_shrink_looks_on_stays(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage)
    rows.apply_gradients(np.arange(5_000), ones(5_000))
    pushed: list[int] = []

    def push_the_last(done: int, total: int) -> None:
        # shrink reads some thousand rows at a time: those of later steps are updated before it gets to them
        if not pushed:
            rows.apply_gradients(np.arange(5_000), ones(5_000))
            pushed.append(done)

    report = storage.shrink(min_count=2, progress=push_the_last)
    assert 0 < report.rows_removed == pushed[0] < 5_000
    assert storage.check().problems == []


def test_bad_conditions_are_refused(open_storage: OpenStorage, clock: Clock) -> None:
    storage = _filled(open_storage, clock)
    with pytest.raises(InvalidConfig, match=r"max_age is -1.*min_norm is 'x'"):
        storage.shrink(max_age=-1, min_norm="x")  # type: ignore[arg-type]
    with pytest.raises(UnknownGroup, match="known: 0, 1"):
        storage.shrink(group=5)
    storage.close()
    reader = open_storage(read_only=True, clock=clock)
    with pytest.raises(ReadOnlyStorage):
        reader.shrink(min_count=1)
    assert reader.shrink(min_count=1, dry_run=True).removed[0]["count"] == 5
