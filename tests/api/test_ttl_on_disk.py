"""RocksDB's own TTL reclaims space, and must not take what is still needed: here with the real clock."""

import time
from pathlib import Path

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.errors import GroupConflict, InvalidConfig
from tests.api.helpers import OpenStorage, assert_sound, embedding, keys_of, ones, run_python

YEAR = 365 * 86_400


def test_a_row_that_was_pushed_just_before_it_expired_is_replayed_onto_what_it_was(tmp_path: Path) -> None:
    script = """
import time
storage = PyStorage(sys.argv[1], ttl=3, write_back_interval=1e6, sweep_rows_s=0)
rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(name="zeros"), 1)
began, key, one = time.time(), np.array([5]), np.ones((1, 1), np.float32)
for _ in range(10):
    rows.apply_gradients(key, one)
storage.flush()
time.sleep(max(0.0, 2.0 - (time.time() - began)))
rows.apply_gradients(key, one)
assert rows.lookup(key, train=False) == -11
time.sleep(2.5)  # older on disk than the TTL, and not in memory
storage.backend.engine.files.compact()
os._exit(9)"""
    assert run_python(script, tmp_path / "store").returncode == 9
    with PyStorage(tmp_path / "store", ttl=3_000) as storage:  # so that a slow start does not expire it
        assert embedding(storage, dim=1).lookup(keys_of(5), train=False)[0, 0] == -11


def test_rows_whose_life_was_made_longer_are_not_dropped_by_the_old_ttl(open_storage: OpenStorage) -> None:
    storage = open_storage(ttl=1)
    embedding(storage).apply_gradients(keys_of(5), ones(1))
    storage.close()
    storage = open_storage(ttl=1)
    embedding(storage, ttl=1_000)
    with pytest.raises(GroupConflict, match="ttl of group 0 was raised"):
        storage.compact()
    storage.close()
    time.sleep(1.5)
    storage = open_storage(ttl=1)
    rows = embedding(storage, ttl=1_000)
    storage.compact()
    assert (rows.lookup(keys_of(5), train=False) == -0.5).all()


@pytest.mark.parametrize("ttl", [9 * YEAR, 20 * YEAR, 2**32 + 1, 1e11])
def test_a_long_ttl_keeps_rows_through_compactions_and_later_openings(open_storage: OpenStorage, ttl: float) -> None:
    for pushes, store_ttl in ((1, ttl), (2, ttl), (2, 1_000)):
        storage = open_storage(ttl=store_ttl)
        expiring, lasting = embedding(storage), embedding(storage, group=1, ttl=0)
        for rows in (expiring, lasting):
            if store_ttl == ttl:
                rows.apply_gradients(np.arange(3), ones(3))
            storage.compact()
            assert (rows.lookup(np.arange(3), train=False) == -0.5 * pushes).all()
        assert_sound(storage)
        storage.close()


def test_a_ttl_below_a_millisecond_is_one_and_not_for_ever(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(ttl=1e-4))
    rows.apply_gradients(keys_of(1), ones(1))
    time.sleep(0.01)
    assert (rows.lookup(keys_of(1), train=False) == 0).all()


@pytest.mark.parametrize("ttl", [1.1e11, 1e300])
def test_a_ttl_beyond_reason_is_refused(open_storage: OpenStorage, ttl: float) -> None:
    with pytest.raises(InvalidConfig, match=r"ttl is .*, above 1e\+11"):
        open_storage(ttl=ttl)
    storage = open_storage()
    with pytest.raises(InvalidConfig, match=r"ttl is .*, above 1e\+11"):
        embedding(storage, ttl=ttl)
