"""A checkpoint in the place of an open store."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage, ReadOnlyStorage, RockbedError, StorageCorrupt, StorageFailed, StoreNotFound, UnknownGroup
from rockbed.storage.catalog import Catalog
from tests.api.helpers import SMALL, OpenStorage, assert_sound, embedding, engine_of, keys_of, ones, push_in_pieces


def test_the_store_is_the_checkpoint_and_the_one_of_before_is_kept(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1), request=("trainer", 1))
    storage.checkpoint(tmp_path / "monday")
    rows.apply_gradients(keys_of(1, 2), ones(2), request=("trainer", 2))
    kept = storage.restore_from(tmp_path / "monday")
    assert rows.lookup(keys_of(1, 2), train=False)[:, 0].tolist() == [-0.5, 0.0]
    assert storage.last_request("trainer") == 1
    rows.apply_gradients(keys_of(1), ones(1))
    assert rows.lookup(keys_of(1))[0, 0] == -1
    assert_sound(storage)
    storage.close()
    with PyStorage(kept) as before:
        assert embedding(before).lookup(keys_of(1, 2), train=False)[:, 0].tolist() == [-1.0, -0.5]
        assert_sound(before)
    with PyStorage(tmp_path / "store") as after:
        assert embedding(after).lookup(keys_of(1), train=False)[0, 0] == -1


def test_a_flush_under_way_ends_before_the_directory_is_let_go_of(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    storage.checkpoint(tmp_path / "monday")  # and nothing is left to flush: closing does not wait for its own
    began, go_on, write = threading.Event(), threading.Event(), Catalog.write

    def waits(catalog: Catalog, directory: Path) -> None:
        monkeypatch.undo()
        began.set()
        assert go_on.wait(60)
        write(catalog, directory)

    monkeypatch.setattr(Catalog, "write", waits)
    flushing = threading.Thread(target=storage.flush)
    flushing.start()
    assert began.wait(60)
    restoring = threading.Thread(target=storage.restore_from, args=(tmp_path / "monday",))
    restoring.start()
    restoring.join(0.5)
    assert restoring.is_alive()  # or the catalog of the store of before would be written to the restored one
    go_on.set()
    flushing.join()
    restoring.join()
    assert rows.lookup(keys_of(1), train=False)[0, 0] == -0.5
    assert_sound(storage)


def test_a_group_that_the_checkpoint_lacks_is_unknown(storage: PyStorage, tmp_path: Path) -> None:
    storage.checkpoint(tmp_path / "empty")
    rows = embedding(storage)
    storage.restore_from(tmp_path / "empty")
    with pytest.raises(UnknownGroup):
        rows.lookup(keys_of(1))


def test_what_cannot_be_restored_leaves_the_store_as_it_was(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    with pytest.raises(StoreNotFound, match="no checkpoint"):
        storage.restore_from(tmp_path / "none")
    storage.checkpoint(tmp_path / "broken")
    (tmp_path / "broken" / "catalog.json").write_text("{}")
    with pytest.raises(StorageCorrupt):
        storage.restore_from(tmp_path / "broken")
    assert rows.lookup(keys_of(1))[0, 0] == -0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "store"]


def test_a_checkpoint_that_cannot_be_opened_is_taken_back(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    storage.checkpoint(tmp_path / "broken")
    for table in (tmp_path / "broken" / "rows").glob("CURRENT"):
        table.unlink()
    with pytest.raises(RockbedError):
        storage.restore_from(tmp_path / "broken")
    assert rows.lookup(keys_of(1))[0, 0] == -0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "store"]
    assert_sound(storage)


def test_a_directory_that_cannot_be_moved_is_said_and_stays(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = embedding(storage)
    storage.checkpoint(tmp_path / "monday")

    class Libc:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def renameat2(self, *_: Any) -> int:
            return -1

    monkeypatch.setattr("rockbed.storage.files.ctypes.CDLL", Libc)
    monkeypatch.setattr("rockbed.storage.files.ctypes.get_errno", lambda: errno.EBUSY)
    with pytest.raises(StorageFailed, match="it is a mount point"):
        storage.restore_from(tmp_path / "monday")
    monkeypatch.undo()
    rows.apply_gradients(keys_of(1), ones(1))
    assert_sound(storage)


def test_a_failed_sync_leaves_the_store_as_it_was(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = embedding(storage)
    storage.checkpoint(tmp_path / "monday")
    rows.apply_gradients(keys_of(1), ones(1))

    def fails(path: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("rockbed.server.serving.sync_path", fails)
    with pytest.raises(StorageFailed, match="too many open files"):
        storage.restore_from(tmp_path / "monday")
    monkeypatch.undo()
    assert rows.lookup(keys_of(1), train=False)[0, 0] == -0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monday", "store"]
    assert_sound(storage)


def test_a_scan_under_way_and_cold_reads_do_not_keep_a_restore_from_happening(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, 32)
    push_in_pieces(rows, np.arange(20_000))
    storage.checkpoint(tmp_path / "monday")
    failed: list[RockbedError] = []
    done = threading.Event()

    def keep(call: Callable[[], object]) -> None:
        while not done.is_set():
            try:
                call()
            except RockbedError as error:
                failed.append(error)

    random = np.random.default_rng(1)
    calls: list[Callable[[], object]] = [
        lambda: rows.lookup(random.integers(0, 20_000, 200), train=False),
        lambda: storage.shrink(min_count=0),
        storage.stats,
    ]
    threads = [threading.Thread(target=keep, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for _ in range(3):
        storage.restore_from(tmp_path / "monday")
    done.set()
    for thread in threads:
        thread.join()
    # a store in this process says that it is closed; a client of a server tries again, but for shrink
    wrong = [error for error in failed if error.code not in ("storage_closed", "server_unavailable")]
    assert not wrong
    assert (rows.lookup(np.arange(0, 20_000, 100), train=False) == -0.5).all()
    assert_sound(storage)


def test_a_reader_is_replaced_by_nothing(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    storage.checkpoint(tmp_path / "monday")
    storage.close()
    with pytest.raises(ReadOnlyStorage):
        open_storage(read_only=True).restore_from(tmp_path / "monday")


def test_trainers_go_on_through_a_restore(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.lookup(np.arange(100))
    storage.checkpoint(tmp_path / "monday")
    before = engine_of(storage)
    done = threading.Event()
    failed: list[RockbedError] = []

    def train() -> None:
        while not done.is_set():
            try:
                rows.apply_gradients(np.arange(100), ones(100))
            except RockbedError as error:
                failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    storage.restore_from(tmp_path / "monday")
    count = rows.lookup(keys_of(5), train=False)[0, 0]
    while rows.lookup(keys_of(5), train=False)[0, 0] == count:
        pass
    done.set()
    thread.join()
    assert engine_of(storage) is not before
    # a store in this process says so; a client of a server tries again
    assert all(error.code == "storage_closed" for error in failed)
    assert_sound(storage)
