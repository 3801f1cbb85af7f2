"""A store whose files may not be read or written. Root may do everything, so it becomes nobody."""

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.api.helpers import OpenStorage, embedding, keys_of, ones, run_python

READ = """
with PyStorage(sys.argv[2]) as warm:  # what is imported on first use may lie where nobody cannot read
    PyEmbedding(warm, PyOptimizer(name="sgd"), PyInitializer(), 4).lookup(np.array([1]))
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
def attempt(**options):
    with PyStorage(sys.argv[1], **options) as storage:
        rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=0.5), PyInitializer(), 4)
        print("read", *rows.lookup(np.array([1]), train=False)[0])
for options in ({}, {"read_only": True}):
    try:
        attempt(**options)
    except Exception as error:
        print(type(error).__name__, "Check owner" in str(error), sys.argv[1] in str(error))"""


def _chmod(path: Path, *, write: bool, read: bool = True) -> None:
    for part in [path, *path.rglob("*")]:
        bits = (stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH if read else 0) | (stat.S_IWUSR if write else 0)
        part.chmod(
            bits | (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH if part.is_dir() and (read or part == path) else 0)
        )


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that nobody, too, can get to. pytest's own lie in one that every run of it closes to others."""
    with tempfile.TemporaryDirectory(prefix="rockbed-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def store(open_storage: OpenStorage) -> Iterator[Path]:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.close()
    yield storage.path
    _chmod(storage.path, write=True)
    np.testing.assert_array_equal(embedding(open_storage()).lookup(keys_of(1), train=False), [[-0.5] * 4])


def test_a_store_that_may_not_be_written_is_said_and_can_be_opened_for_reading(store: Path, tmp_path: Path) -> None:
    _chmod(store, write=False)
    done = run_python(READ, store, tmp_path / "warm")
    assert done.stdout.splitlines() == ["StorePermission True True", "read -0.5 -0.5 -0.5 -0.5"], done.stderr


def test_a_store_that_may_not_be_read_is_said(store: Path, tmp_path: Path) -> None:
    _chmod(store, write=False, read=False)
    done = run_python(READ, store, tmp_path / "warm")
    assert done.stdout.splitlines() == ["StorePermission True True"] * 2, done.stderr


def test_a_directory_in_which_no_store_may_be_made_is_said(store: Path, tmp_path: Path) -> None:
    store.parent.chmod(0o555)
    try:
        done = run_python(READ, store.parent / "new", tmp_path / "warm")
    finally:
        store.parent.chmod(0o755)
    assert done.stdout.splitlines() == ["StorePermission True True", "StoreNotFound False True"], done.stderr


@pytest.mark.parametrize("part", ["rows", "journal"])
def test_a_part_of_a_store_that_may_not_be_written_is_said(store: Path, tmp_path: Path, part: str) -> None:
    for path in store.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    store.chmod(0o777)
    _chmod(store / part, write=False)
    done = run_python(READ, store, tmp_path / "warm")
    assert done.stdout.splitlines()[0] == "StorePermission True True", done.stdout + done.stderr
