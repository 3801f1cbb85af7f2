"""Opening a store: where it may lie, who may have it open, and what a closed or forked one answers."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    InvalidConfig,
    PyStorage,
    ReadOnlyStorage,
    StorageClosed,
    StorageCorrupt,
    StoreLocked,
    StoreNotFound,
    StorePathInvalid,
)
from tests.api.helpers import (
    QUIET,
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    run_python,
    sgd,
    uniform,
)
from tests.waiting import until


def test_a_new_and_an_empty_directory_become_stores_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "new", str(tmp_path / "text")):
        with PyStorage(path) as storage:
            assert storage.stats()["rows"] == 0
            assert storage.path == Path(path)


def test_a_path_that_is_a_file_or_goes_through_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorePathInvalid, match=r"file is a file: give PyStorage the path of a directory"):
        PyStorage(tmp_path / "file")
    with pytest.raises(StorePathInvalid, match="A store is a directory"):
        PyStorage(tmp_path / "file" / "store")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorePathInvalid, match=r"no store and not empty \(it holds thesis.tex\): give PyStorage a new"):
        PyStorage(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missing_catalog_is_said_and_nothing_is_overwritten(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.close()
    catalog = storage.path / "catalog.json"
    kept = catalog.read_bytes()
    catalog.unlink()
    for options in ({}, {"read_only": True}, {"repair": True}):
        with pytest.raises(StorageCorrupt, match=r"catalog.json is missing: restore a checkpoint"):
            open_storage(**options)
    catalog.write_bytes(kept)
    np.testing.assert_array_equal(embedding(open_storage()).lookup(keys_of(1), train=False), [[-0.5] * 4])


@pytest.mark.parametrize("lost", ["rows", "rows/CURRENT"])
def test_rows_that_are_gone_are_said_and_not_replaced_by_an_empty_store(open_storage: OpenStorage, lost: str) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.close()
    (storage.path / lost).rename(storage.path.parent / "lost")
    for options in ({}, {"read_only": True}):
        with pytest.raises(StorageCorrupt, match="restore a checkpoint"):
            open_storage(**options)
    if (storage.path / lost).exists():
        (storage.path / lost).rmdir()
    (storage.path.parent / "lost").rename(storage.path / lost)
    np.testing.assert_array_equal(embedding(open_storage()).lookup(keys_of(1), train=False), [[-0.5] * 4])


def test_a_second_storage_in_this_or_another_process_is_locked_out(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    for options in ({}, {"read_only": True}):
        with pytest.raises(StoreLocked, match="open in another PyStorage in this process: close that one"):
            open_storage(**options)
    script = """
for options in ({}, {'read_only': True}):
    try:
        PyStorage(sys.argv[1], **options)
    except Exception as error:
        print(type(error).__name__, str(os.getppid()) in str(error))"""
    assert run_python(script, storage.path).stdout.split() == ["StoreLocked", "True"] * 2
    embedding(storage).apply_gradients(keys_of(1), ones(1))  # the refused ones disturbed nothing
    storage.close()
    np.testing.assert_array_equal(embedding(open_storage()).lookup(keys_of(1)), [[-1.0] * 4])


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path: Path) -> None:
    script = "storage = PyStorage(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert run_python(script, tmp_path / "store").returncode == -signal.SIGKILL
    with PyStorage(tmp_path / "store") as storage:
        assert_sound(storage)


def test_several_readers_share_a_store_that_nobody_writes(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    embedding(storage, miss_value=7.0).apply_gradients(keys_of(1, 2), ones(2))
    killed = as_after_kill(storage, tmp_path / "killed")  # its rows are in the journal only
    storage.close()
    for path in (storage.path, killed):
        before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
        first, second = open_storage(str(path), read_only=True), open_storage(str(path), read_only=True)
        for reader in (first, second):
            rows = embedding(reader, miss_value=7.0)
            np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3), train=False)[:, 0], [-0.5, -0.5, 7.0])
            assert reader.stats()["rows"] == 2
            assert_sound(reader)
        if path is storage.path:
            with pytest.raises(StoreLocked):
                open_storage(str(path))
        first.close()
        second.close()
        assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    embedding(open_storage(), miss_value=7.0).apply_gradients(keys_of(1), ones(1))


def test_a_reader_changes_nothing(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    storage.close()
    reader = open_storage(read_only=True)
    rows = embedding(reader)
    calls: list[Callable[[], Any]] = [
        lambda: rows.lookup(keys_of(1)),
        lambda: rows.apply_gradients(keys_of(1), ones(1)),
        lambda: embedding(reader, group=1),
        lambda: reader.flush(),
        lambda: reader.compact(),
        lambda: reader.shrink(max_age=0),
        lambda: reader.checkpoint(tmp_path / "checkpoint"),
    ]
    for call in calls:
        with pytest.raises(ReadOnlyStorage, match="read_only=True"):
            call()
    assert reader.shrink(dry_run=True, min_count=2).rows_removed == 2
    assert reader.dump(tmp_path / "dump") == 2
    assert_sound(reader)


def test_a_reader_with_more_rows_than_its_budget_reads_them_all(open_storage: OpenStorage) -> None:
    storage = open_storage()
    keys = np.arange(5_000)
    expected = embedding(storage, initializer=uniform()).lookup(keys)
    storage.close()
    reader = open_storage(read_only=True, memory_budget=1 << 16)
    rows = embedding(reader, initializer=uniform())
    np.testing.assert_array_equal(rows.lookup(keys, train=False), expected)
    np.testing.assert_array_equal(rows.lookup(keys, train=False), expected)
    assert reader.stats()["memory_rows"] < 1_000


def test_a_reader_of_nothing_says_so_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(StoreNotFound, match=r"holds no store .* check the path"):
            PyStorage(path, read_only=True)
    assert not (tmp_path / "missing").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_every_call_on_a_closed_storage_says_so_and_closing_twice_is_fine(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    storage.close()
    storage.close()
    calls: list[Callable[[], Any]] = [
        lambda: rows.lookup(keys_of(1)),
        lambda: rows.lookup(keys_of(1), train=False),
        lambda: rows.lookup(keys_of()),
        lambda: rows.apply_gradients(keys_of(1), ones(1)),
        lambda: storage.apply_gradients([(rows, keys_of(1), ones(1))], request=("a", 1)),
        lambda: storage.last_request("a"),
        lambda: embedding(storage),
        lambda: embedding(storage, group=1),
        lambda: storage.stats(),
        lambda: storage.shrink(),
        lambda: storage.dump(tmp_path / "dump"),
        lambda: storage.checkpoint(tmp_path / "checkpoint"),
        lambda: storage.check(),
        lambda: storage.flush(),
        lambda: storage.compact(),
    ]
    for call in calls:
        with pytest.raises(StorageClosed, match=r"is closed: open another PyStorage"):
            call()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_a_storage_is_a_context_manager_that_closes_also_after_an_error(tmp_path: Path) -> None:
    def fail(storage: PyStorage) -> None:
        with storage:
            embedding(storage).apply_gradients(keys_of(1), ones(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(PyStorage(tmp_path / "store", **QUIET))
    with PyStorage(tmp_path / "store", **QUIET) as storage:
        np.testing.assert_array_equal(embedding(storage).lookup(keys_of(1)), [[-0.5] * 4])
        assert storage.path == tmp_path / "store"


def test_a_forked_child_cannot_use_the_storage_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    script = """
import gc, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
storage = PyStorage(sys.argv[1])
rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(), 2)
keys, grads = np.array([1]), np.ones((1, 2), np.float32)
rows.apply_gradients(keys, grads)
child = os.fork()
if child == 0:
    answers = []
    for call in (lambda: rows.lookup(keys), lambda: rows.apply_gradients(keys, grads), storage.stats, storage.flush):
        try:
            call()
        except Exception as error:
            answers.append(type(error).__name__ + str("across fork()" in str(error)))
    print(*answers, flush=True)
    storage.close()
    del storage, rows, call
    gc.collect()
    os._exit(7)  # as multiprocessing does; RocksDB's own exit handlers join threads that a child does not have
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
rows.apply_gradients(keys, grads)
storage.close()
with PyStorage(sys.argv[1]) as storage:
    rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(), 2)
    assert rows.lookup(keys).tolist() == [[-2, -2]]
    assert storage.check().ok
print("well")"""
    done = run_python(script, tmp_path / "store")
    assert done.stdout.split() == ["StorageClosedTrue"] * 4 + ["well"], done.stderr


def test_a_forked_child_that_lives_on_does_not_keep_the_directory_locked(tmp_path: Path) -> None:
    script = """
import warnings, time
warnings.simplefilter("ignore", DeprecationWarning)
storage = PyStorage(sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
storage.close()
try:
    PyStorage(sys.argv[1]).close()
    print("well")
finally:
    os.kill(child, 9)"""
    done = run_python(script, tmp_path / "store")
    assert done.stdout.split() == ["well"], done.stderr


def test_a_forked_child_does_not_keep_the_directory_of_a_killed_parent_locked(tmp_path: Path) -> None:
    script = """
import warnings, time
warnings.simplefilter("ignore", DeprecationWarning)
storage = PyStorage(sys.argv[1])
if os.fork() == 0:
    print(os.getpid(), flush=True)  # by now it has let go of what it inherited
time.sleep(30)
os._exit(0)"""
    with subprocess.Popen(
        [sys.executable, "-c", "import os, sys\nfrom rockbed import PyStorage\n" + script, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait(30)
        try:
            PyStorage(tmp_path / "store").close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_store_from_which_nothing_was_closed_opens_with_every_push(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage, optimizer=sgd(1.0))
    for turn in range(20):
        rows.apply_gradients(keys_of(turn % 5, 100 + turn), ones(2))
        if turn == 10:
            storage.flush()
    killed = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    again = embedding(killed, optimizer=sgd(1.0))
    np.testing.assert_array_equal(again.lookup(np.arange(5), train=False)[:, 0], [-4.0] * 5)
    np.testing.assert_array_equal(again.lookup(np.arange(100, 120), train=False)[:, 0], [-1.0] * 20)
    assert killed.stats()["rows"] == 25
    assert_sound(killed)


def test_the_background_thread_ends_with_the_storage(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for turn in range(3):
        PyStorage(tmp_path / f"store-{turn}").close()
    until(lambda: set(threading.enumerate()) <= before, 5)


@pytest.mark.embedded
@pytest.mark.parametrize(
    "target",
    [
        "localhost:7400",
        "10.0.0.1:7400",
        "https://host:1",
        "http://x",
        "rows.example:80",
        "grpc:/127.0.0.1:7400",
        "GRPC://localhost:7400",
        "grpc+unix:/run/rows.socket",
        "unix:rows.socket",
    ],
)
def test_an_address_is_not_taken_for_a_directory(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match=r"looks like an address: a server is grpc://HOST:PORT"):
        PyStorage(target)
    assert not list(tmp_path.iterdir())


@pytest.mark.embedded
def test_a_store_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with PyStorage("model") as storage:
        rows = embedding(storage)
        monkeypatch.chdir(tmp_path / "elsewhere")
        rows.apply_gradients(keys_of(1), ones(1))
        storage.flush()
        assert storage.path == tmp_path / "model"
    with PyStorage(tmp_path / "model") as storage:
        assert storage.stats()["rows"] == 1
    assert not any((tmp_path / "elsewhere").iterdir())
