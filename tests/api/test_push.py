"""Pushes against an independent float64 model, and every option that changes what a push does."""

from pathlib import Path

import numpy as np
import pytest

from rockbed import GradientNotFinite, InvalidConfig, PyOptimizer
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    sgd,
    uniform,
)
from tests.api.model import Model

INF, NAN = np.float32(np.inf), np.float32(np.nan)


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
@pytest.mark.parametrize("budget", [1 << 30, SMALL])
def test_training_with_repeated_keys_follows_the_model(open_storage: OpenStorage, rule: str, budget: int) -> None:
    storage = open_storage(memory_budget=budget)
    rows = embedding(storage, 4, optimizer=adagrad() if rule == "adagrad" else sgd())
    model = Model(4, adagrad=rule == "adagrad")
    random = np.random.default_rng(3)
    for turn in range(60):
        keys = random.zipf(1.2, 120) % 3000 - 1000
        gradients = random.normal(size=(120, 4)).astype(np.float32)
        if turn % 2:
            rows.lookup(keys)
        rows.apply_gradients(keys, gradients)
        model.push(keys, gradients)
    every = np.array(sorted(model.rows))
    # float32 against float64 over up to 60 steps of rate 0.5 whose gradients are about 1
    np.testing.assert_allclose(rows.lookup(every, train=False), model.weights(every), rtol=2e-5, atol=2e-4)
    stats = storage.stats()["groups"][0]
    assert stats["updates"] == sum(row.updates for row in model.rows.values())
    assert stats["push_keys"] == 60 * 120
    assert stats["rows"] == len(model.rows)
    if budget == SMALL:
        assert stats["evictions"] > 0
        assert stats["memory_rows"] < stats["rows"]
    assert_sound(storage)


def test_repeated_keys_are_summed_to_one_step_by_default(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), optimizer=adagrad())
    keys, gradients = keys_of(1, 2, 1, 1), np.array([[1.0] * 4, [5.0] * 4, [2.0] * 4, [3.0] * 4], np.float32)
    rows.apply_gradients(keys, gradients)
    model = Model(4, adagrad=True)
    model.push(keys, gradients)
    np.testing.assert_allclose(rows.lookup(keys), model.weights(keys), rtol=1e-6)
    np.testing.assert_allclose(
        rows.lookup(keys), -0.5
    )  # one Adagrad step from zero is the rate itself, whatever the sum


def test_sequential_duplicates_are_steps_in_the_order_given(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, optimizer=adagrad(), duplicates="sequential")
    random = np.random.default_rng(4)
    model = Model(4, adagrad=True)
    for _ in range(5):
        keys = random.integers(0, 6, 40)
        gradients = random.normal(size=(40, 4)).astype(np.float32)
        rows.apply_gradients(keys, gradients)
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            model.step(key, gradient)
    every = np.arange(6)
    np.testing.assert_allclose(rows.lookup(every), model.weights(every), rtol=1e-4, atol=1e-5)
    assert storage.stats()["groups"][0]["updates"] == 5 * 40
    assert_sound(storage)


def test_a_push_to_an_absent_key_begins_its_row_by_default(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform())
    first = embedding(open_storage("twin"), initializer=uniform()).lookup(keys_of(9))
    rows.apply_gradients(keys_of(9), ones(1))
    np.testing.assert_array_equal(rows.lookup(keys_of(9), train=False), first - np.float32(0.5))
    assert storage.stats()["groups"][0]["skipped_absent"] == 0


def test_a_push_to_an_absent_key_is_dropped_and_counted_with_skip(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, absent="skip")
    rows.lookup(keys_of(1))
    rows.apply_gradients(keys_of(1, 2, 2, 3), ones(4))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3), train=False), [[-0.5] * 4, [0] * 4, [0] * 4])
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["skipped_absent"], stats["updates"]) == (1, 3, 1)
    assert_sound(storage)


def test_a_push_to_an_expired_row_is_dropped_with_skip_and_leaves_nothing_pinned(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock, ttl=10)
    rows = embedding(storage, absent="skip")
    rows.lookup(keys_of(1, 2))
    clock.now += 10
    rows.apply_gradients(keys_of(1, 2, 1), ones(3))
    assert storage.stats()["groups"][0]["skipped_absent"] == 3
    assert_sound(storage)  # before a lookup, which would take leaked pins off
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), np.zeros((2, 4)))


def test_the_step_is_the_rows_own_update_count_by_default(open_storage: OpenStorage) -> None:
    halving = {"name": "exponential_decay", "decay_steps": 1, "decay_rate": 0.5}
    rows = embedding(open_storage(), optimizer=PyOptimizer({"name": "sgd", "gamma": 1.0}, halving))
    rows.apply_gradients(keys_of(1), ones(1))  # rate 1
    rows.apply_gradients(keys_of(1, 2), ones(2))  # rate 1/2 for key 1, 1 for key 2
    rows.apply_gradients(keys_of(1), ones(1))  # rate 1/4
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2))[:, 0], [-1.75, -1.0])


def test_the_global_step_is_the_trainers_for_every_row_and_outlives_the_process(open_storage: OpenStorage) -> None:
    halving = {"name": "exponential_decay", "decay_steps": 1, "decay_rate": 0.5}
    optimizer = PyOptimizer({"name": "sgd", "gamma": 1.0}, halving)
    storage = open_storage()
    rows = embedding(storage, optimizer=optimizer, step="global")
    with pytest.raises(InvalidConfig, match=r"set embedding\.global_step"):
        rows.apply_gradients(keys_of(1), ones(1))
    assert storage.stats()["rows"] == 0
    rows.global_step = 3
    rows.apply_gradients(keys_of(1, 2), ones(2))  # rate 1/4 for both
    rows.global_step = 5
    rows.apply_gradients(keys_of(2), ones(1))  # rate 1/16
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2))[:, 0], [-0.25, -0.3125])
    storage.close()
    rows = embedding(open_storage(), optimizer=optimizer, step="global")
    assert rows.global_step == 5


@pytest.mark.parametrize("step", [0, -1, 1.5, True, "3"])
def test_a_global_step_is_a_whole_number_from_one(open_storage: OpenStorage, step: object) -> None:
    rows = embedding(open_storage(), step="global")
    with pytest.raises(InvalidConfig, match="global_step"):
        rows.global_step = step  # type: ignore[assignment]


def test_the_global_step_cannot_be_set_where_rows_count_their_own(open_storage: OpenStorage) -> None:
    with pytest.raises(InvalidConfig, match="step='global'"):
        embedding(open_storage()).global_step = 3


def test_clip_value_clamps_each_element_of_the_sum(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), optimizer=sgd(1.0), clip_value=2.0)
    rows.apply_gradients(keys_of(1, 1, 2), np.array([[1, 2, -3, 0.5], [1, 2, -3, 0], [9, 0, 0, -9]], np.float32))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2)), [[-2, -2, 2, -0.5], [-2, 0, 0, 2]])


def test_clip_norm_scales_the_sum_of_a_row_down_and_never_up(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), 2, optimizer=sgd(1.0), clip_norm=5.0)
    gradients = np.array([[3, 4], [6, 8], [0.3, 0.4], [2, 0], [2, 0]], np.float32)
    rows.apply_gradients(keys_of(1, 2, 3, 4, 4), gradients)
    expected = np.array([[-3, -4], [-3, -4], [-0.3, -0.4], [-4, 0]])
    np.testing.assert_allclose(rows.lookup(keys_of(1, 2, 3, 4)), expected, rtol=1e-6)


def test_values_are_clipped_before_the_norm_and_the_callers_gradients_stay_as_they_are(
    open_storage: OpenStorage,
) -> None:
    rows = embedding(open_storage(), 2, optimizer=sgd(1.0), clip_value=3.0, clip_norm=1.0)
    gradients = np.array([[3000, 3]], np.float32)
    rows.apply_gradients(keys_of(1), gradients)
    np.testing.assert_allclose(rows.lookup(keys_of(1)), [[-np.sqrt(0.5)] * 2], rtol=1e-6)
    np.testing.assert_array_equal(gradients, [[3000, 3]])


def test_weights_stay_within_their_bounds_after_every_update(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), 2, optimizer=sgd(1.0), weight_min=-1.0, weight_max=0.25)
    rows.apply_gradients(keys_of(1, 2), np.array([[9, -9], [0.5, -0.1]], np.float32))
    np.testing.assert_allclose(rows.lookup(keys_of(1, 2)), [[-1, 0.25], [-0.5, 0.1]])
    low = embedding(open_storage("low"), 2, optimizer=sgd(1.0), weight_min=-1.0)
    low.apply_gradients(keys_of(1), np.array([[9, -9]], np.float32))
    np.testing.assert_array_equal(low.lookup(keys_of(1)), [[-1, 9]])


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nan_and_infinity_are_rejected_with_the_whole_batch(
    open_storage: OpenStorage, bad: np.float32, duplicates: str
) -> None:
    storage = open_storage()
    rows = embedding(storage, duplicates=duplicates)
    rows.apply_gradients(keys_of(1), ones(1))
    gradients = ones(3)
    gradients[1, 2] = bad
    with pytest.raises(GradientNotFinite, match=r"group 0: 1 of 3 .* key 77 .*skip_row"):
        rows.apply_gradients(keys_of(1, 77, 3), gradients)
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 77, 3), train=False), [[-0.5] * 4, [0] * 4, [0] * 4])
    assert storage.stats()["rows"] == 1
    assert_sound(storage)


def test_finite_gradients_whose_sum_is_not_are_rejected_too(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    with pytest.raises(GradientNotFinite, match="key 5"):
        rows.apply_gradients(keys_of(4, 5, 5), np.full((3, 4), 3e38, np.float32))
    assert storage.stats()["rows"] == 0
    rows.apply_gradients(keys_of(5), ones(1))
    assert_sound(storage)


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_one_group_whose_sum_is_not_finite_keeps_a_large_push_from_all_others(
    open_storage: OpenStorage, bad: int
) -> None:
    storage = open_storage()
    groups = [embedding(storage, 2, group, optimizer=sgd(1.0)) for group in range(5)]
    keys = np.arange(5_000)  # enough in all for several threads
    twice = np.concatenate([keys, keys])
    groups[1].lookup(keys)
    shares = [(group, twice, ones(10_000, 2)) for group in groups]
    shares[bad][2][[7, 5_007], 1] = 3e38
    with pytest.raises(GradientNotFinite, match=rf"group {bad}: 1 of 5000 gradients .* key 7 \(inf\)"):
        storage.apply_gradients(shares)
    stats = storage.stats()
    assert [stats["groups"][group]["rows"] for group in range(5)] == [0, 5_000, 0, 0, 0]
    assert [stats["groups"][group]["rejected_not_finite"] for group in range(5)] == [int(g == bad) for g in range(5)]
    shares[bad] = (groups[bad], twice, ones(10_000, 2))
    assert storage.apply_gradients(shares)
    for group in groups:
        np.testing.assert_array_equal(group.lookup(keys, train=False), np.full((5_000, 2), -2))
    assert_sound(storage)


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
def test_skip_row_drops_the_bad_rows_counts_them_and_applies_the_rest(
    open_storage: OpenStorage, duplicates: str
) -> None:
    storage = open_storage()
    rows = embedding(storage, not_finite="skip_row", duplicates=duplicates)
    gradients = ones(4)
    gradients[1, 0], gradients[2, 3] = NAN, INF
    rows.apply_gradients(keys_of(1, 2, 3, 4), gradients)
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3, 4), train=False)[:, 0], [-0.5, 0, 0, -0.5])
    assert storage.stats()["groups"][0]["skipped_not_finite"] == 2
    assert storage.stats()["groups"][0]["updates"] == 2
    assert_sound(storage)


def test_the_padding_key_is_zeros_has_no_row_and_takes_no_gradient(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform(), padding_key=0, miss_value=7.0)
    out = np.full((3, 4), 9, np.float32)
    rows.lookup(keys_of(0, 1, 0), out)
    assert out[1].any()
    np.testing.assert_array_equal(out[[0, 2]], np.zeros((2, 4)))
    gradients = ones(3)
    gradients[0] = NAN  # nobody uses it, so it may be anything
    rows.apply_gradients(keys_of(0, 1, 0), gradients)
    np.testing.assert_array_equal(rows.lookup(keys_of(1)), out[1:2] - np.float32(0.5))
    np.testing.assert_array_equal(rows.lookup(keys_of(0), train=False), np.zeros((1, 4)))
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["updates"], stats["misses"], stats["skipped_absent"]) == (1, 1, 0, 0)
    assert_sound(storage)


@pytest.mark.parametrize("key", [-1, 2**64 - 1])
def test_a_padding_key_may_be_given_signed_or_unsigned(open_storage: OpenStorage, key: int) -> None:
    rows = embedding(open_storage(), initializer=uniform(), padding_key=key)
    assert not rows.lookup(keys_of(-1)).any()
    assert not rows.lookup(np.array([2**64 - 1], np.uint64)).any()
    assert rows.lookup(keys_of(1)).any()


def test_a_key_that_becomes_padding_is_zeros_even_while_its_old_row_is_in_memory(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(0, 1), ones(2))
    copy = as_after_kill(storage, tmp_path / "killed")
    replayed = open_storage(str(copy))  # the journal's replay brings the row of key 0 into memory
    rows = embedding(replayed, padding_key=0)
    np.testing.assert_array_equal(rows.lookup(keys_of(0, 1)), [[0] * 4, [-0.5] * 4])
    rows.apply_gradients(keys_of(0, 1), ones(2))
    np.testing.assert_array_equal(rows.lookup(keys_of(0, 1), train=False), [[0] * 4, [-1] * 4])
    assert_sound(replayed)
