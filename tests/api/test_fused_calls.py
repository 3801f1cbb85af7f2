"""Fused lookups and pushes as the client's API asks for them of a Backend, and batches that are kept in between, over
every transport."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import GradientNotFinite, InvalidConfig, PyOptimizer, PyStorage, UnknownGroup, UnknownHandle
from rockbed.bags import Bags
from rockbed.requests import Request
from rockbed.server.kept_batches import KeptBatches
from rockbed.server.limits import Limits
from tests.api.fused_batches import DIMS, bags, gradients, looked_up, random_batch
from tests.api.helpers import Clock, OpenStorage, Served, adagrad, embedding, engine_of, keys_of, uniform

BATCH = [bags("a", 1, [1, 2], [], [3, 3, -1]), bags("b", 2, [5], [6, 5], [], combiner=None)]


def _tables(storage: PyStorage) -> PyStorage:
    for group, dim in DIMS.items():
        embedding(storage, dim, group, optimizer=adagrad(), initializer=uniform())
    return storage


@pytest.fixture
def tables(storage: PyStorage) -> PyStorage:
    return _tables(storage)


def _kept(storage: PyStorage, batch: Sequence[Bags] = BATCH) -> bytes:
    handle = looked_up(storage, batch, keep=True)[2]
    assert handle is not None
    return handle


def _push(
    storage: PyStorage, batch: Sequence[Bags] = BATCH, handle: bytes | None = None, number: int = 1, value: float = 1.0
) -> bool:
    pooled, sequences = gradients(storage, batch, value)
    request = Request("trainer", number)
    return storage.backend.fused_apply_gradients(batch, handle, pooled, sequences, {}, request)


def _state(storage: PyStorage) -> tuple[Any, ...]:
    """What a push that is refused must not change."""
    weights = [storage.get_rows(group, np.arange(-3, 40)).weights.tobytes() for group in DIMS]
    return storage.stats()["last_lsn"], storage.last_request("trainer"), weights


# --- fused calls ---


def test_both_transports_look_up_and_push_the_same(tables: PyStorage) -> None:
    random = np.random.default_rng(4)
    own = tables.inner if isinstance(tables, Served) else tables
    for step in range(1, 6):
        batch = random_batch(random, 30)
        pooled, sequences, _ = looked_up(tables, batch)
        again, same, _ = looked_up(own, batch)
        for got, wanted in zip((pooled, *sequences), (again, *same), strict=True):
            np.testing.assert_array_equal(got, wanted)
            assert np.isfinite(got).all()
        before = _state(tables)
        assert _push(tables, batch, number=step)
        assert _state(tables) != before
        assert not _push(tables, batch, number=step)
    assert tables.last_request("trainer") == 5


def test_what_is_looked_up_is_what_the_embeddings_have(tables: PyStorage) -> None:
    pooled, (sequence,), _ = looked_up(tables, BATCH)
    one = embedding(tables, DIMS[1], 1, optimizer=adagrad(), initializer=uniform())
    two = embedding(tables, DIMS[2], 2, optimizer=adagrad(), initializer=uniform())
    rows = one.lookup(keys_of(1, 2, 3))
    np.testing.assert_allclose(pooled, [(rows[0] + rows[1]) / 2, np.zeros(4), rows[2]], rtol=1e-6)
    np.testing.assert_array_equal(sequence, two.lookup(keys_of(5, 6, 5)))


@pytest.mark.parametrize(
    "batch",
    [
        [],
        [bags("a", 1)],
        [bags("a", 1, [], [])],
        [bags("a", 1, [], [], combiner=None)],
        [bags("a", 1, [1], [2], combiner=None), bags("b", 3, [], [1], combiner=None)],
        [bags("a", 1, [-1], [-2], default_key=-(2**63)), bags("b", 1, [], [], default_key=0)],
    ],
)
def test_batches_of_little_or_nothing(tables: PyStorage, batch: list[Bags]) -> None:
    pooled, sequences, handle = looked_up(tables, batch, keep=True)
    for found in (pooled, *sequences):
        assert np.isfinite(found).all()
    assert handle is not None
    before = looked_up(tables, batch)[0]
    assert _push(tables, batch, handle)
    assert _push(tables, batch, number=2)
    # what nobody trains is what it was
    assert np.array_equal(looked_up(tables, batch)[0], before) == (batch == [] or pooled.size == 0 or not pooled.any())


def test_a_lookup_without_training_makes_no_rows(tables: PyStorage) -> None:
    pooled, sequences, handle = looked_up(tables, BATCH, train=False)
    assert not pooled.any()
    assert not sequences[0].any()
    assert handle is None
    assert tables.stats()["rows"] == 0


def test_global_steps_go_with_the_push(storage: PyStorage) -> None:
    optimizer = PyOptimizer({"name": "sgd", "gamma": 0.5}, {"name": "step", "step_size": 10, "gamma": 0.1})
    embedding(storage, 4, 1, optimizer=optimizer, step="global")
    embedding(storage, 6, 2)
    backend, (pooled, sequences) = storage.backend, gradients(storage, BATCH)
    for steps in ({2: 1}, {1: 0}, {}):
        with pytest.raises(InvalidConfig, match="step"):
            backend.fused_apply_gradients(BATCH, None, pooled, sequences, steps, None)
    for number, step in enumerate((1, 11), 1):
        handle = _kept(storage)
        before = looked_up(storage, BATCH)[0][2, 0]
        assert backend.fused_apply_gradients(BATCH, handle, pooled, sequences, {1: step}, Request("t", number))
        np.testing.assert_allclose(before - looked_up(storage, BATCH)[0][2, 0], 0.5 * 0.1 ** (number - 1), rtol=1e-6)


# --- kept batches ---


def test_a_push_by_handle_is_the_push_of_the_batch(open_storage: OpenStorage) -> None:
    by_handle, by_batch = (_tables(open_storage(name)) for name in ("handle", "batch"))
    random = np.random.default_rng(5)
    for step in range(1, 4):
        batch = random_batch(random, 20)
        handle = _kept(by_handle, batch)
        looked_up(by_batch, batch)
        assert _push(by_handle, batch, handle, step)
        assert _push(by_batch, batch, None, step)
        assert _state(by_handle) == _state(by_batch)
    assert (by_handle.stats()["kept_batches"], by_handle.stats()["kept_bytes"]) == (0, 0)


def test_what_is_kept_is_the_batch_as_it_was(tables: PyStorage) -> None:
    own = [replace(each, keys=each.keys.copy(), offsets=each.offsets.copy()) for each in BATCH]
    handle = _kept(tables, own)
    own[0].keys[:] = 30
    own[0].offsets[1:] = 1 << 40
    assert _push(tables, BATCH, handle)
    assert tables.get_rows(1, keys_of(1, 2, 3, 30)).update_num.tolist() == [1, 1, 1, 0]


def test_features_that_share_their_arrays_are_kept_as_they_were(tables: PyStorage) -> None:
    first = replace(BATCH[0], keys=BATCH[0].keys.copy(), offsets=BATCH[0].offsets.copy())
    handle = _kept(tables, [first, replace(first, name="c")])
    first.keys[:] = 30
    first.offsets[1:] = 1 << 40
    apart = [BATCH[0], bags("c", 1, [1, 2], [], [3, 3, -1])]
    assert _push(tables, apart, handle)
    assert tables.get_rows(1, keys_of(1, 2, 3, 30)).update_num.tolist() == [1, 1, 1, 0]
    pooled, _, _ = looked_up(tables, apart)
    np.testing.assert_array_equal(pooled[:, : DIMS[1]], pooled[:, DIMS[1] :])


def test_a_handle_is_used_up_by_its_push_which_may_be_repeated(tables: PyStorage) -> None:
    handle = _kept(tables)
    assert _push(tables, handle=handle, number=1)
    before = _state(tables)
    assert not _push(tables, handle=handle, number=1)  # as after an answer that was lost
    with pytest.raises(UnknownHandle, match="it was pushed"):
        _push(tables, handle=handle, number=2)
    assert _state(tables) == before
    assert not _push(tables, handle=_kept(tables), number=1)  # the request counts, not the handle


@pytest.mark.parametrize("handle", [b"", b"x", bytes(16), bytes(1_000)])
def test_what_is_no_handle_is_unknown_and_changes_nothing(tables: PyStorage, handle: bytes) -> None:
    _kept(tables)
    before = _state(tables)
    with pytest.raises(UnknownHandle, match="push the batch itself"):
        _push(tables, handle=handle)
    assert _state(tables) == before
    assert _push(tables)


def test_a_handle_expires(tables: PyStorage) -> None:
    clock = Clock()
    engine_of(tables).kept = KeptBatches(clock=clock)
    first, second = _kept(tables), _kept(tables)
    clock.now += 59.9
    assert _push(tables, handle=first)
    assert tables.stats()["kept_batches"] == 1
    clock.now += 0.1
    with pytest.raises(UnknownHandle, match="older than 60 s"):
        _push(tables, handle=second, number=2)
    assert tables.stats()["kept_bytes"] == 0


def test_the_oldest_handle_makes_room_and_a_batch_beyond_the_limit_gets_none(tables: PyStorage) -> None:
    engine_of(tables).kept = KeptBatches(Limits(kept_bytes_max=1 << 16))
    small = [bags("a", 1, *([key] for key in range(1_000)))]
    handles = [_kept(tables, small) for _ in range(8)]
    with pytest.raises(UnknownHandle):
        _push(tables, small, handles[0])
    assert _push(tables, small, handles[-1])
    assert looked_up(tables, [bags("a", 1, *([key] for key in range(9_000)))], keep=True)[2] is None
    assert 0 < tables.stats()["kept_bytes"] <= 1 << 16


def test_a_push_that_is_refused_leaves_the_handle(tables: PyStorage) -> None:
    handle = _kept(tables)
    before = _state(tables)
    with pytest.raises(GradientNotFinite):
        _push(tables, handle=handle, value=np.nan)
    assert _state(tables) == before
    assert _push(tables, handle=handle)


def test_no_handle_outlives_the_store_that_it_was_given_for(tables: PyStorage, tmp_path: Path) -> None:
    _push(tables)
    tables.checkpoint(tmp_path / "monday")
    pushed, handle = _kept(tables), _kept(tables)
    assert _push(tables, handle=pushed, number=2)
    tables.restore_from(tmp_path / "monday")
    for one in (pushed, handle):  # the store of monday knows nothing of request 2
        with pytest.raises(UnknownHandle):
            _push(tables, handle=one, number=2)
    assert _push(tables, number=2)
    assert _push(tables, handle=_kept(tables), number=3)


def test_a_group_that_was_dropped_takes_its_gradients_no_more(tables: PyStorage) -> None:
    handle = _kept(tables)
    pooled, sequences = gradients(tables, BATCH)
    tables.drop_group(2)
    for of in (handle, None):
        with pytest.raises(UnknownGroup):
            tables.backend.fused_apply_gradients(BATCH, of, pooled, sequences, {}, None)
    assert tables.get_rows(1, keys_of(1)).update_num[0] == 0
