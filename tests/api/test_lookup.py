"""Looking rows up: what is created, what is returned, and what must not change."""

from pathlib import Path

import numpy as np

from rockbed import PyInitializer, PyOptimizer
from tests.api.helpers import SMALL, Clock, OpenStorage, assert_sound, embedding, keys_of, ones, run_python, uniform

EXTREMES = keys_of(0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, -(2**53) - 1, 255, 256, 65535, 65536)


def test_a_training_lookup_inserts_once_for_each_distinct_key(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform())
    got = rows.lookup(keys_of(5, 7, 5, 5, 7))
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[0], got[3])
    np.testing.assert_array_equal(got[1], got[4])
    assert not np.array_equal(got[0], got[1])
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["inserts"], stats["lookup_keys"]) == (2, 2, 5)


def test_a_lookup_without_training_neither_inserts_nor_counts_nor_refreshes(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, initializer=uniform(), refresh="lookup")
    rows.lookup(keys_of(1))
    clock.now += 9
    assert rows.lookup(keys_of(1), train=False).any()
    np.testing.assert_array_equal(rows.lookup(keys_of(2, 3, 2), train=False), np.zeros((3, 4)))
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["inserts"], stats["misses"]) == (1, 1, 3)
    clock.now += 1
    assert not rows.lookup(keys_of(1), train=False).any()  # had the lookup at 9 s refreshed it, it would live


def test_lookup_fills_flat_and_two_dimensional_arrays_in_place_and_returns_none(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), initializer=uniform())
    keys = keys_of(3, -4, 3)
    expected = rows.lookup(keys)
    flat, square = np.full(12, 9, np.float32), np.full((3, 4), 9, np.float32)
    rows.lookup(keys, flat)
    rows.lookup(keys, square)
    np.testing.assert_array_equal(flat.reshape(3, 4), expected)
    np.testing.assert_array_equal(square, expected)
    assert rows.lookup(keys, square) is None
    assert expected.dtype == np.float32
    assert expected.shape == (3, 4)


def test_zero_negative_and_extreme_keys_are_keys_like_any_other(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform())
    before = rows.lookup(EXTREMES)
    assert len({row.tobytes() for row in before}) == EXTREMES.size
    gradients = np.arange(EXTREMES.size * 4, dtype=np.float32).reshape(-1, 4)
    rows.apply_gradients(EXTREMES, gradients)
    expected = before - np.float32(0.5) * gradients
    np.testing.assert_array_equal(rows.lookup(EXTREMES), expected)
    storage.close()
    again = embedding(open_storage(), initializer=uniform())
    np.testing.assert_array_equal(again.lookup(EXTREMES, train=False), expected)


def test_uint64_keys_are_the_int64_keys_with_the_same_bits(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform())
    signed = EXTREMES
    np.testing.assert_array_equal(rows.lookup(signed.view(np.uint64)), rows.lookup(signed))
    rows.apply_gradients(np.array([2**64 - 1], np.uint64), ones(1))
    assert storage.stats()["rows"] == EXTREMES.size
    np.testing.assert_array_equal(
        rows.lookup(keys_of(-1))[0], rows.lookup(np.array([2**64 - 1], np.uint64), train=False)[0]
    )


def test_empty_arrays_are_fine(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    none = np.empty(0, np.int64)
    assert rows.lookup(none).shape == (0, 4)
    assert rows.lookup(none, train=False).shape == (0, 4)
    rows.lookup(none, np.empty(0, np.float32))
    rows.apply_gradients(none, np.empty((0, 4), np.float32))
    rows.apply_gradients(none, np.empty(0, np.float32))
    storage.apply_gradients([])
    assert storage.stats()["rows"] == 0


def test_strided_reversed_unaligned_and_read_only_keys_and_gradients_are_read_as_numpy_reads_them(
    open_storage: OpenStorage,
) -> None:
    rows = embedding(open_storage())
    wide = np.arange(20, dtype=np.int64)
    unaligned = np.frombuffer(b"x" + wide.tobytes(), np.uint8)[1:].view(np.int64)
    sealed = wide.copy()
    sealed.flags.writeable = False
    gradients = np.arange(160, dtype=np.float32).reshape(20, 8)
    expected = np.zeros((20, 4), np.float32)
    for keys, grads in [
        (wide[::2], gradients[::2, ::2]),
        (wide[::-1], gradients[::-1, 4:]),
        (unaligned, gradients[:, :4]),
        (sealed, np.asfortranarray(gradients[:, 1:5])),
    ]:
        assert grads.shape == (keys.size, 4)
        rows.apply_gradients(keys, grads)
        expected[keys] -= np.float32(0.5) * grads
        np.testing.assert_array_equal(rows.lookup(keys), expected[keys])
    np.testing.assert_array_equal(rows.lookup(wide), expected)


def test_the_first_row_depends_on_seed_group_and_key_alone(open_storage: OpenStorage) -> None:
    keys = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 500)
    one = embedding(open_storage("one"), 8, 3, initializer=uniform(), seed=7).lookup(keys)
    other_rows = embedding(open_storage("other", memory_budget=SMALL), 8, 3, initializer=uniform(), seed=7)
    other = np.concatenate([other_rows.lookup(part) for part in np.array_split(keys[::-1], 7)])[::-1]
    np.testing.assert_array_equal(one, other)
    pushed = embedding(open_storage("pushed"), 8, 3, initializer=uniform(), seed=7)
    pushed.apply_gradients(keys, np.zeros((500, 8), np.float32))  # begun by a push, not by a lookup
    np.testing.assert_array_equal(pushed.lookup(keys, train=False), one)
    direct = np.empty(8, np.float32)
    uniform().call(direct, seed=7, group=3, key=int(keys[0]))
    np.testing.assert_array_equal(direct, one[0])
    for seed, group in [(8, 3), (7, 4)]:
        assert not (
            embedding(open_storage(f"{seed}-{group}"), 8, group, initializer=uniform(), seed=seed).lookup(keys) == one
        ).any()


def test_rows_begin_the_same_in_one_large_batch_as_in_small_ones(open_storage: OpenStorage) -> None:
    keys = np.random.default_rng(3).integers(-(2**62), 2**62, 40_000)  # enough for several threads
    found = []
    for name, size in (("large", keys.size), ("small", 1_000)):
        storage = open_storage(name)
        optimizer = PyOptimizer(name="adagrad", gamma=0.5, initial_accumulator=0.25)
        rows = embedding(storage, optimizer=optimizer, initializer=uniform())
        parts = [keys[start : start + size] for start in range(0, keys.size, size)]
        first = np.concatenate([rows.lookup(part) for part in parts])
        for part in parts:
            rows.apply_gradients(part, ones(part.size))
        found.append((first, rows.lookup(keys)))
        assert_sound(storage)
    (first, pushed), small = found
    np.testing.assert_array_equal(first, small[0])
    np.testing.assert_array_equal(pushed, small[1])
    np.testing.assert_allclose(first - pushed, ones(keys.size, value=0.5 / np.sqrt(1.25)), rtol=1e-5)


def test_another_process_begins_the_same_rows(open_storage: OpenStorage, tmp_path: Path) -> None:
    here = embedding(open_storage(), initializer=PyInitializer(name="random_normal"), seed=11).lookup(
        keys_of(1, -5, 2**62)
    )
    script = """
with PyStorage(sys.argv[1]) as storage:
    rows = PyEmbedding(storage, PyOptimizer(), PyInitializer(name='random_normal'), 4, seed=11)
    print(rows.lookup(np.array([2**62, 1, -5]))[[1, 2, 0]].tobytes().hex())"""
    there = run_python(script, tmp_path / "there")
    assert there.stdout.strip() == here.tobytes().hex(), there.stderr


def test_a_lookup_of_more_rows_than_memory_holds_returns_them_all(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=1 << 16)
    rows = embedding(storage, 16, initializer=uniform())
    keys = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 5_000)
    first = rows.lookup(keys)
    stats = storage.stats()
    assert stats["memory_rows"] < 1_000
    assert stats["rows"] == 5_000
    np.testing.assert_array_equal(rows.lookup(keys, train=False), first)
    np.testing.assert_array_equal(rows.lookup(keys[::-1])[::-1], first)
    assert storage.stats()["rows"] == 5_000
    assert_sound(storage)
