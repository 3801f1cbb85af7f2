"""A failure, or a crash, at each step of a write-back: nothing acknowledged is lost, and the store goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage, StorageFull
from rockbed.storage.catalog import Catalog
from rockbed.storage.journal import Journal
from rockbed.storage.rows import RowFiles
from tests.crash_image import crash_image

KEYS = np.arange(500)
STEPS: list[tuple[type, str]] = [
    (Journal, "rotate"),
    (RowFiles, "put_run"),
    (RowFiles, "flush"),
    (Catalog, "write"),
    (Journal, "trim"),
]


def _open(directory: Path) -> tuple[PyStorage, PyEmbedding]:
    storage = PyStorage(directory, write_back_interval=1e6)
    rule, first = PyOptimizer(name="sgd", gamma=1.0), PyInitializer(name="zeros")
    return storage, PyEmbedding(storage, rule, first, 3, 1)


def _push(rows: PyEmbedding, times: int) -> None:
    for _ in range(times):
        rows.apply_gradients(KEYS, np.ones((KEYS.size, 3), np.float32))


def _assert_updates(rows: PyEmbedding, count: int) -> None:
    np.testing.assert_array_equal(rows.lookup(KEYS, train=False), np.full((KEYS.size, 3), -float(count), np.float32))


def _failing(original: Callable[..., Any], *, after: bool, then: Callable[[], object]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if after:
            original(*args, **options)
        then()
        raise StorageFull("no room left (as the test wants it)")

    return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("cls", "step"), STEPS, ids=[f"{c.__name__}.{s}" for c, s in STEPS])
def test_a_failed_step_of_a_flush_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type, step: str, after: bool
) -> None:
    image = tmp_path / "image"  # the directory as a crash at this moment would leave it
    storage, rows = _open(tmp_path / "store")
    _push(rows, 2)
    storage.flush()
    _push(rows, 3)
    with monkeypatch.context() as patch:

        def copy() -> None:
            shutil.rmtree(image, ignore_errors=True)
            crash_image(tmp_path / "store", image)

        patch.setattr(cls, step, _failing(getattr(cls, step), after=after, then=copy))
        with pytest.raises(StorageFull):
            storage.flush()
    _assert_updates(rows, 5)
    _push(rows, 1)
    storage.flush()
    _push(rows, 1)
    storage.close()
    for directory, updates in ((tmp_path / "store", 7), (image, 5)):
        storage, rows = _open(directory)
        with storage:
            _assert_updates(rows, updates)
            assert storage.check().problems == []
            _push(rows, 1)
            _assert_updates(rows, updates + 1)


def test_a_crash_between_every_two_pushes_and_flushes_is_harmless(tmp_path: Path) -> None:
    storage, rows = _open(tmp_path / "store")
    for updates in range(1, 9):
        _push(rows, 1)
        if updates % 3 == 0:
            storage.flush()
        image = tmp_path / f"image-{updates}"
        crash_image(tmp_path / "store", image)
        copy, copied = _open(image)
        with copy:
            _assert_updates(copied, updates)
    storage.close()


def test_a_crash_during_recovery_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, rows = _open(tmp_path / "store")
    _push(rows, 6)
    crash_image(tmp_path / "store", tmp_path / "image")
    storage.close()
    from rockbed.server import opening

    for entries in range(1, 6):
        seen: list[Any] = []
        original = opening.apply_entry

        def stop(engine: Any, entry: Any, entries: int = entries, seen: list[Any] = seen, go: Any = original) -> None:
            go(engine, entry)
            seen.append(entry)
            if len(seen) == entries:
                engine.write_back.write(next(iter(engine.groups.values())))  # some of it even reaches rows/
                raise StorageFull("as the test wants it")

        with monkeypatch.context() as patch:
            patch.setattr(opening, "apply_entry", stop)
            with pytest.raises(StorageFull):
                _open(tmp_path / "image")
    storage, rows = _open(tmp_path / "image")
    with storage:
        _assert_updates(rows, 6)
