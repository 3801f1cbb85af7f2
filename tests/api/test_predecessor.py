"""What users of damo-embedding 1.1.12 ran into, one test for each trap that no other file here has a test for.

Elsewhere: outputs of a wrong dtype, size or layout, unknown options and names, negative rates, NaN, unknown groups
(test_bad_input.py); another dim or optimizer at reopening (test_bad_input.py); a second handle on a directory
(test_opening.py); expired rows (test_ttl.py); kill -9 (test_durability.py).
"""

import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

import rockbed
from rockbed.kernels import Deferred
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
    uniform,
)


def test_key_0_is_a_key_and_three_copies_of_a_new_key_get_one_vector(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), initializer=uniform())
    out = np.full((4, 4), 9, np.float32)
    rows.lookup(keys_of(0, 0, 0, 5), out)
    assert (out != 9).all()
    np.testing.assert_array_equal(out[[0, 0]], out[1:3])
    np.testing.assert_array_equal(rows.lookup(keys_of(0), train=False), out[:1])
    assert out[0].any()


def test_a_push_to_keys_never_looked_up_is_in_every_copy_of_the_store(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    looked_up, pushed = embedding(storage, 2, 1), embedding(storage, 2, 2)
    looked_up.lookup(np.arange(999))
    pushed.apply_gradients(np.arange(5), ones(5, 2))
    storage.checkpoint(tmp_path / "checkpoint")
    type(storage).restore(tmp_path / "checkpoint", tmp_path / "restored")
    restored = open_storage("restored")
    assert restored.check().rows == {1: 999, 2: 5}
    assert restored.dump(tmp_path / "dump") == storage.dump(tmp_path / "other") == 1004
    assert struct.unpack_from("<qq", (tmp_path / "dump").read_bytes(), 4 + 8 + 8) == (999, 5)
    np.testing.assert_array_equal(embedding(restored, 2, 2).lookup(np.arange(5), train=False), np.full((5, 2), -0.5))


def test_two_stores_begin_alike_only_where_their_seeds_are(open_storage: OpenStorage) -> None:
    first = [
        embedding(open_storage(name), initializer=uniform(), seed=seed).lookup(np.arange(100))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    np.testing.assert_array_equal(first[0], first[1])
    assert not (first[0] == first[2]).any()


def test_no_kernel_holds_the_interpreter_while_it_runs() -> None:
    modules = [importlib.import_module(f"rockbed.{folder}.{file.stem}") for folder, file in _sources()]
    found = [value for module in modules for value in list(vars(module).values())]
    found = [value.made() if isinstance(value, Deferred) else value for value in found]
    kernels = [value for value in found if isinstance(value, CPUDispatcher)]
    assert len(kernels) > 50
    assert [kernel.py_func.__name__ for kernel in kernels if not kernel.targetoptions.get("nogil")] == []


def _sources() -> list[tuple[str, Path]]:
    root = Path(rockbed.__file__).parent
    return [
        (folder, file) for folder in ("storage", "server", "optimizers") for file in (root / folder).glob("[a-z]*.py")
    ]


def test_groups_of_different_dims_never_read_each_others_rows(open_storage: OpenStorage) -> None:
    storage = open_storage()
    for group, dim in enumerate((1, 4, 7, 64)):
        embedding(storage, dim, group, optimizer=adagrad()).apply_gradients(np.arange(50), ones(50, dim))
    storage.close()
    again = open_storage()
    for group, dim in enumerate((1, 4, 7, 64)):
        got = embedding(again, dim, group, optimizer=adagrad()).lookup(np.arange(60), train=False)
        np.testing.assert_allclose(got, np.repeat([[-0.5]] * 50 + [[0.0]] * 10, dim, axis=1), rtol=1e-6)
    assert_sound(again)


def test_a_row_of_exactly_expire_days_is_dumped_and_one_a_millisecond_older_is_not(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(clock=clock)
    embedding(storage, 1).apply_gradients(keys_of(1), ones(1, 1))
    clock.now += 0.0015  # the store's clock counts whole milliseconds
    embedding(storage, 1).apply_gradients(keys_of(2), ones(1, 1))
    for days in (0, 1, 30):
        clock.now = 1_700_000_000.0 + days * 86_400 + 0.0015
        for name, wanted in ((f"{days}", 1), (f"{days + 1}", 2)):
            assert storage.dump(tmp_path / f"{days}-{name}", {"expire_days": int(name)}) == wanted
        assert _dumped_keys(tmp_path / f"{days}-{days}") == [2]


def test_a_row_that_has_expired_is_in_no_dump_from_the_millisecond_on(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(clock=clock, ttl=10)
    embedding(storage, 1).apply_gradients(keys_of(1), ones(1, 1))
    clock.now += 9.9995
    assert storage.dump(tmp_path / "before") == 1
    clock.now = 1_700_000_010.0
    assert storage.dump(tmp_path / "after") == 0
    assert _dumped_keys(tmp_path / "after") == []


def _dumped_keys(path: Path) -> list[int]:
    """The keys in a dump of one group of dim 1."""
    data = path.read_bytes()
    return sorted(struct.unpack_from("<q", data, at)[0] for at in range(4 + 4 + 4 + 8, len(data), 8 + 4 + 4))


def test_a_dump_takes_its_condition_as_parameters(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage = open_storage(clock=clock)
    for group in (1, 2):
        embedding(storage, 1, group).apply_gradients(keys_of(1, 2), ones(2, 1))
        clock.now += 86_400
        embedding(storage, 1, group).apply_gradients(keys_of(2, 3), ones(2, 1))
    conditions: list[tuple[dict[str, int], int]] = [
        ({}, 6),
        ({"group": 2}, 3),
        ({"expire_days": 0}, 2),
        ({"min_count": 2}, 2),
        ({"group": 1, "min_count": 2}, 1),
        ({"group": 2, "expire_days": 0, "min_count": 1}, 2),
    ]
    for number, (condition, rows) in enumerate(conditions):
        params = rockbed.Parameters()
        for name, value in condition.items():
            params.insert(name, value)
        assert storage.dump(tmp_path / f"params-{number}", params) == rows
        assert storage.dump(tmp_path / f"dict-{number}", condition) == rows
        assert (tmp_path / f"params-{number}").read_bytes() == (tmp_path / f"dict-{number}").read_bytes()
    for name, wrong, error in (("days", 1, rockbed.UnknownName), ("min_count", 1.5, rockbed.InvalidConfig)):
        params = rockbed.Parameters()
        params.insert(name, wrong)
        with pytest.raises(error, match=name):
            storage.dump(tmp_path / "refused", params)


def test_golden_dump(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    one = embedding(storage, 2, 1)
    one.apply_gradients(keys_of(5, -6), np.array([[-2, 1], [0.5, -5]], np.float32))
    embedding(storage, 3, 258, optimizer=adagrad())  # a group without rows
    key = np.array([2**64 - 2], np.uint64)  # as int64 it is -2
    embedding(storage, 1, 65_535, optimizer=adagrad()).apply_gradients(key, ones(1, 1))  # its slot is left out
    assert storage.dump(tmp_path / "dump") == 3
    assert (tmp_path / "dump").read_bytes().hex(" ", 4) == " ".join(GOLDEN_DUMP)


GOLDEN_DUMP = [
    "03000000",  # three groups
    "01000000 02010000 ffff0000",  # their numbers
    "02000000 03000000 01000000",  # their dims
    "02000000 00000000 00000000 00000000 01000000 00000000",  # their counts
    "05000000 00000000 01000000 0000803f 000000bf",  # key 5, group 1: 1, -0.5
    "faffffff ffffffff 01000000 000080be 00002040",  # key -6, group 1: -0.25, 2.5
    "feffffff ffffffff ffff0000 000000bf",  # key -2, group 65535: -0.5
]


@pytest.mark.parametrize("cache_bytes", [None, 3 << 20, 64 << 10, 0])
@pytest.mark.parametrize("opening", ["new", "reopened", "read_only"])
def test_the_block_cache_has_the_size_that_was_asked_for_and_rows_have_a_filter_at_every_opening(
    open_storage: OpenStorage, opening: str, cache_bytes: int | None
) -> None:
    options: dict[str, Any] = {} if cache_bytes is None else {"block_cache_bytes": cache_bytes}
    storage = open_storage(memory_budget=SMALL, **options)
    push_in_pieces(embedding(storage), np.arange(3_000))
    storage.flush()
    if opening != "new":
        storage.close()
        storage = open_storage(memory_budget=SMALL, read_only=opening == "read_only", **options)
    assert (embedding(storage).lookup(np.arange(3_000), train=False) == -0.5).all()
    db = engine_of(storage).files._db
    capacity, usage = (int(db.property_int_value(f"rocksdb.block-cache-{of}") or 0) for of in ("capacity", "usage"))
    assert capacity == (32 << 20 if cache_bytes is None else cache_bytes)  # 32 MiB, as the documentation says
    assert (usage > 100_000) == (capacity > 100_000)  # the rows have 168,000 bytes, those in memory included
    if opening != "read_only":  # a reader writes no such file
        written = max((storage.path / "rows").glob("OPTIONS-*")).read_text()
        assert "filter_policy=bloomfilter" in written
