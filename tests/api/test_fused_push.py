"""Fused pushes against the specification, and every option of a group that changes what a push does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockbed import Feature, FusedEmbedding, GradientNotFinite, InvalidConfig, PyOptimizer, PyStorage, Ragged
from rockbed.types import F32
from tests.api.helpers import (
    QUIET,
    SMALL,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    push_in_pieces,
    sgd,
    uniform,
)
from tests.fused.cases import (
    Specification,
    every_feature,
    random_batch,
    random_gradients,
    two_tables,
)

K = keys_of(1, 2, 3, 4)


def lists(*bags: list[int]) -> Ragged:
    return Ragged.from_lists(bags)


def f32(values: Any) -> F32:
    return np.array(values, np.float32)


# --- against the specification ---


@pytest.mark.parametrize("unsigned", [False, True])
def test_every_combination_of_settings_sends_the_specified_gradients(storage: PyStorage, unsigned: bool) -> None:
    random = np.random.default_rng(1)
    fused = FusedEmbedding(every_feature(two_tables(storage)))
    specified = Specification(fused)
    for _ in range(3):
        batch = random_batch(random, fused.features, 30, unsigned=unsigned)
        pooled, sequences = random_gradients(random, fused.lookup(batch))
        pooled *= 0.1
        specified.push(batch, pooled, sequences)
        assert fused.apply_gradients(batch, pooled, sequences)
        specified.assert_met()
    assert_sound(storage)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn", None])
@pytest.mark.parametrize("max_norm", [None, 0.8])
def test_each_combiner_trains_with_adagrad_as_specified(
    storage: PyStorage, combiner: str | None, max_norm: float | None
) -> None:
    random = np.random.default_rng(2)
    weighted = "plain" if combiner is None else "weighted"
    default = None if combiner is None else 2
    fused = FusedEmbedding(
        [
            Feature(f"{weighted}-{table.group}", table, combiner, max_norm=max_norm, default_key=default)
            for table in two_tables(storage, optimizer=adagrad())
        ]
    )
    specified = Specification(fused, adagrad=True)
    for _ in range(5):
        batch = random_batch(random, fused.features, 30)
        out = fused.lookup(batch)
        pooled, sequences = random_gradients(random, out)
        specified.push(batch, pooled, sequences)
        fused.apply_gradients(out, pooled, sequences)
    specified.assert_met()
    assert_sound(storage)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.booleans(), st.booleans())
def test_random_batches_train_as_specified(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, unsigned: bool, keep: bool
) -> None:
    random = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("random") / "store"
    with PyStorage(path, **QUIET) as storage:
        features = every_feature(two_tables(storage))
        fused = FusedEmbedding([features[i] for i in random.permutation(len(features))[: random.integers(1, 6)]])
        specified = Specification(fused)
        for _ in range(3):
            batch = random_batch(random, fused.features, size, unsigned=unsigned)
            out = fused.lookup(batch, train=bool(random.integers(2)), keep=keep)
            pooled, sequences = random_gradients(random, out)
            specified.push(batch, pooled, sequences)
            fused.apply_gradients(out, pooled, sequences)
        specified.assert_met()
    with PyStorage(path, **QUIET) as storage:
        specified.tables = {table.group: table for table in two_tables(storage)}
        specified.assert_met()
        assert_sound(storage)


def test_training_beyond_memory_follows_the_specification(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    tables = two_tables(storage, optimizer=adagrad())
    fused = FusedEmbedding(
        [
            Feature("a", tables[0], "sum", max_norm=0.8),
            Feature("b", tables[1], "mean"),
            Feature("c", tables[1], None),
        ]
    )
    specified = Specification(fused, adagrad=True)
    random = np.random.default_rng(3)
    for _ in range(30):
        batch = {}
        for feature in fused.features:
            counts = random.integers(0, 5, 40)
            keys = random.zipf(1.2, int(counts.sum())) % 3000
            batch[feature.name] = Ragged(keys, np.concatenate([[0], counts.cumsum()]))
        out = fused.lookup(batch)
        pooled, sequences = random_gradients(random, out)
        specified.push(batch, pooled, sequences)
        fused.apply_gradients(out, pooled, sequences)
    specified.assert_met()
    assert sum(group["evictions"] for group in storage.stats()["groups"].values()) > 0
    assert_sound(storage)


def test_after_a_kill_the_rows_are_as_they_were_and_the_requests_known(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    fused = FusedEmbedding(every_feature(two_tables(storage))[::5])
    specified = Specification(fused)
    random = np.random.default_rng(4)
    for step in range(1, 5):
        batch = random_batch(random, fused.features, 20)
        pooled, sequences = random_gradients(random, fused.lookup(batch))
        specified.push(batch, pooled, sequences)
        fused.apply_gradients(batch, pooled, sequences, request=("trainer", step))
        if step == 2:
            storage.flush()
    before = [table.lookup(keys_of(*specified.models[group].rows)) for group, table in specified.tables.items()]
    as_after_kill(storage, tmp_path / "killed")
    killed = open_storage("killed")
    tables = {table.group: table for table in two_tables(killed)}
    for group, rows in zip(tables, before, strict=True):
        np.testing.assert_array_equal(tables[group].lookup(keys_of(*specified.models[group].rows), train=False), rows)
    again = FusedEmbedding(every_feature(list(tables.values()))[::5])
    assert killed.last_request("trainer") == 4
    assert not again.apply_gradients(batch, pooled, sequences, request=("trainer", 4))
    specified.tables = tables
    specified.assert_met()


# --- how gradients meet ---


def test_gradients_of_a_key_meet_in_one_step_also_those_of_two_features(storage: PyStorage) -> None:
    rows = embedding(storage, 2, optimizer=adagrad())
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("b", rows, "mean"), Feature("s", rows, None)])
    fused.apply_gradients(
        {"a": lists([1, 1], [2]), "b": lists([1], [2, 3]), "s": lists([3], [1])},
        f32([[1, -1, 5, 2], [3, 2, 4, 4]]),
        {"s": f32([[1, -9], [-9, 1]])},
    )
    # one Adagrad step from zeros is the rate itself against the sign of the sum:
    # key 1: 2 (1, -1) + (5, 2) + (-9, 1) = (-2, 1); key 2: (3, 2) + (2, 2); key 3: (2, 2) + (1, -9)
    np.testing.assert_allclose(rows.lookup(keys_of(1, 2, 3)), 0.5 * f32([[1, -1], [-1, -1], [-1, 1]]), rtol=1e-6)
    assert storage.stats()["groups"][0]["updates"] == 3


@pytest.mark.parametrize("combiner", ["sum", "mean", None])
@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize(
    "sizes", [[1] * 600, [1] * 298 + [0, 2] + [1] * 300, [1] * 10_000], ids=["one each", "as many keys as bags", "many"]
)
def test_bags_of_one_key_train_as_a_push_by_key_does(
    storage: PyStorage, combiner: str | None, features: int, sizes: list[int]
) -> None:
    # to the bit: the gradients of a key are added up in the same order
    random = np.random.default_rng(6)
    fused_rows, by_key = (embedding(storage, optimizer=adagrad(), dim=3, group=group) for group in (1, 2))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ids = [random.integers(0, len(sizes) // 3, len(sizes)) for _ in range(features)]
    names = [str(i) for i in range(features)]
    fused = FusedEmbedding([Feature(name, fused_rows, combiner) for name in names])
    batch = {name: Ragged(keys, ends) for name, keys in zip(names, ids, strict=True)}
    for _ in range(2):
        out = fused.lookup(batch)
        pooled, sequences = random_gradients(random, out)
        fused.apply_gradients(out, pooled, sequences)
        if combiner is None:
            grads = np.concatenate([sequences[name] for name in names])
        else:
            share = np.array(sizes) if combiner == "mean" else np.ones(len(sizes))
            by_bag = pooled.reshape(-1, features, 3) / np.maximum(share, 1).astype(np.float32)[:, None, None]
            grads = np.concatenate([by_bag[:, i].repeat(sizes, axis=0) for i in range(features)])
        by_key.apply_gradients(np.concatenate(ids), grads)
    every = np.unique(np.concatenate(ids))
    np.testing.assert_array_equal(fused_rows.lookup(every, train=False), by_key.lookup(every, train=False))
    assert_sound(storage)


def test_sequential_duplicates_are_steps_in_the_order_of_features_and_keys(storage: PyStorage) -> None:
    random = np.random.default_rng(5)
    tables = two_tables(storage, optimizer=adagrad(), duplicates="sequential")
    fused = FusedEmbedding(
        [
            Feature("b-weighted", tables[1], "sqrtn", default_key=2),
            Feature("a-weighted", tables[1], "sum", max_norm=0.8),
            Feature("plain", tables[0], "mean"),
            Feature("sequence-plain", tables[0], None),
        ]
    )
    specified = Specification(fused, adagrad=True, sequential=True)
    for _ in range(3):
        batch = random_batch(random, fused.features, 12)
        out = fused.lookup(batch)
        pooled, sequences = random_gradients(random, out)
        specified.push(batch, pooled, sequences)
        fused.apply_gradients(out, pooled, sequences)
    specified.assert_met()
    assert_sound(storage)


def test_weights_that_are_0_send_a_gradient_of_0_through_a_sum(storage: PyStorage) -> None:
    rows = embedding(storage, 1, optimizer=sgd(1.0))
    fused = FusedEmbedding([Feature("a", rows, "sum")])
    fused.apply_gradients({"a": Ragged.from_lists([[1, 2, 1]], [[-2.0, 0.0, 0.5]])}, f32([[3]]))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), [[4.5], [0]])
    assert storage.stats()["groups"][0]["updates"] == 2


def test_the_weight_of_a_bags_only_key_counts(storage: PyStorage) -> None:
    rows = embedding(storage, 1, optimizer=sgd(1.0))
    fused = FusedEmbedding([Feature("weighted", rows, "sum"), Feature("plain", rows, "sum")])
    weighted = Ragged.from_lists([[1], [2], [1]], [[-2.0], [0.5], [4.0]])
    fused.apply_gradients({"weighted": weighted, "plain": lists([2], [3], [3])}, f32([[3, 1], [4, 1], [5, 1]]))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3), train=False), [[-14], [-3], [-2]])


def test_keys_that_are_pruned_get_no_gradient_and_no_row(storage: PyStorage) -> None:
    rows = embedding(storage, 1, optimizer=sgd(1.0), padding_key=7)
    fused = FusedEmbedding([Feature("a", rows, "mean"), Feature("s", rows, None)])
    batch = {"a": Ragged.from_lists([[1, -1, 7, 2], [3]], [[1, 1, 1, 0], [-1]]), "s": lists([-5, 4], [7])}
    fused.apply_gradients(batch, f32([[1], [1]]), {"s": f32([[np.nan], [1], [np.inf]])})
    np.testing.assert_array_equal(rows.lookup(np.arange(-6, 8), train=False)[[7, 10], 0], [-1, -1])
    assert storage.stats()["rows"] == 2
    assert_sound(storage)


def test_an_empty_bag_sends_its_gradient_to_the_default_key_or_nowhere(storage: PyStorage) -> None:
    rows = embedding(storage, 2, optimizer=sgd(1.0))
    fused = FusedEmbedding([Feature("none", rows), Feature("some", rows, "sum", default_key=-4)])
    bags = lists([], [-1], [5])
    fused.apply_gradients({"none": bags, "some": bags}, f32([[np.nan, 1, 2, 3], [1, 1, 20, 30], [1, 1, 1, 1]]))
    np.testing.assert_array_equal(rows.lookup(keys_of(-4, 5), train=False), [[-22, -33], [-2, -2]])
    assert storage.stats()["rows"] == 2


# --- the options of a group ---


def test_a_push_to_an_absent_key_begins_its_row_or_is_skipped(storage: PyStorage) -> None:
    begun = embedding(storage, 2, 1, initializer=uniform(), miss_value="initializer")
    skipped = embedding(storage, 2, 2, absent="skip")
    skipped.lookup(keys_of(1))
    first = begun.lookup(keys_of(1, 2), train=False)
    fused = FusedEmbedding([Feature("a", begun, "sum"), Feature("b", skipped, "sum")])
    fused.apply_gradients({"a": lists([1, 2]), "b": lists([1, 2, 2])}, ones(1, 4))
    np.testing.assert_array_equal(begun.lookup(keys_of(1, 2), train=False), first - np.float32(0.5))
    np.testing.assert_array_equal(skipped.lookup(keys_of(1, 2), train=False), [[-0.5, -0.5], [0, 0]])
    stats = storage.stats()["groups"][2]
    assert (stats["rows"], stats["skipped_absent"] > 0, stats["updates"]) == (1, True, 1)
    assert_sound(storage)


def test_a_push_to_an_unadmitted_key_is_dropped_and_no_sighting(storage: PyStorage) -> None:
    rows = embedding(storage, 2, admission={"name": "min_count", "count": 3})
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("b", rows, "mean", max_norm=1.0)])
    out = fused.lookup({"a": lists([1, 1, 1], [2]), "b": lists([], [])})
    for _ in range(3):
        fused.apply_gradients(out, ones(2, 4))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), [[-4.5, -4.5], [0, 0]])
    assert storage.stats()["groups"][0]["skipped_unadmitted"] == 3
    fused.lookup({"a": lists([2]), "b": lists([])})
    assert storage.stats()["rows"] == 1  # its second sighting
    fused.lookup({"a": lists([]), "b": lists([2])})
    assert storage.stats()["rows"] == 2
    assert_sound(storage)


def test_clipping_and_bounds_are_of_the_sum(storage: PyStorage) -> None:
    norm = embedding(storage, 2, 1, optimizer=sgd(1.0), clip_norm=5.0)
    value = embedding(storage, 2, 2, optimizer=sgd(1.0), clip_value=2.0, weight_min=-1.5)
    fused = FusedEmbedding([Feature("n", norm, "sum"), Feature("m", norm, "mean"), Feature("v", value, "sum")])
    fused.apply_gradients(
        {"n": lists([1], [1, 2]), "m": lists([1], [3]), "v": lists([1, 1], [2])},
        f32([[3, 4, 3, 4, 0.75, 2], [0, 0, 0.3, 0.4, -9, 1]]),
    )
    np.testing.assert_allclose(norm.lookup(keys_of(1, 2, 3)), f32([[-3, -4], [0, 0], [-0.3, -0.4]]), rtol=1e-6)
    np.testing.assert_array_equal(value.lookup(keys_of(1, 2)), [[-1.5, -1.5], [2, -1]])


def test_the_global_step_goes_with_the_push_to_the_groups_that_have_one(open_storage: OpenStorage) -> None:
    halving = {"name": "exponential_decay", "decay_steps": 1, "decay_rate": 0.5}
    optimizer = PyOptimizer({"name": "sgd", "gamma": 1.0}, halving)
    storage = open_storage()
    by_row = embedding(storage, 1, 1, optimizer=optimizer)
    by_step = embedding(storage, 1, 2, optimizer=optimizer, step="global")
    fused = FusedEmbedding([Feature("r", by_row), Feature("g", by_step), Feature("h", by_step, "sum")])
    batch = {"r": lists([1]), "g": lists([1]), "h": lists([2])}
    with pytest.raises(InvalidConfig, match=r"group 2 .* set embedding\.global_step before the first push"):
        fused.apply_gradients(batch, ones(1, 3))
    assert storage.stats()["rows"] == 0
    by_step.global_step = 3
    fused.apply_gradients(batch, ones(1, 3))
    by_step.global_step = 5
    fused.apply_gradients(batch, ones(1, 3))
    assert by_row.lookup(keys_of(1))[0, 0] == -1.5  # rates 1, 1/2
    np.testing.assert_array_equal(by_step.lookup(keys_of(1, 2))[:, 0], [-0.3125, -0.3125])  # 1/4, 1/16
    storage.close()
    assert embedding(open_storage(), 1, 2, optimizer=optimizer, step="global").global_step == 5


def test_two_embeddings_of_one_group_must_agree_on_the_global_step(storage: PyStorage) -> None:
    one, other = embedding(storage, 1, 4, step="global"), embedding(storage, 1, 4, step="global")
    one.global_step, other.global_step = 7, 8
    fused = FusedEmbedding([Feature("a", one), Feature("b", other)])
    with pytest.raises(InvalidConfig, match=r"'b' is at global step 8, another one of group 4 at 7: use one Py"):
        fused.apply_gradients({"a": lists([1]), "b": lists([1])}, ones(1, 2))
    other.global_step = 7
    fused.apply_gradients({"a": lists([1]), "b": lists([1])}, ones(1, 2))


def test_a_bad_gradient_rejects_all_groups_or_skips_its_rows(storage: PyStorage) -> None:
    strict, lenient = embedding(storage, 2, 1), embedding(storage, 2, 2, not_finite="skip_row")
    fused = FusedEmbedding([Feature("l", lenient, "sum"), Feature("t", strict), Feature("s", strict, None)])
    batch = {"l": lists([1, 2], [3]), "t": lists([4], [5]), "s": lists([6], [7])}
    for where in ("pooled", "sequence"):
        pooled, sequence = ones(2, 4), ones(2, 2)
        (pooled if where == "pooled" else sequence)[1, -1] = np.nan
        with pytest.raises(GradientNotFinite, match=f"group 1: .* key {5 if where == 'pooled' else 7}"):
            fused.apply_gradients(batch, pooled, {"s": sequence}, request=("trainer", 1))
        assert (storage.stats()["rows"], storage.last_request("trainer")) == (0, 0)
    pooled = ones(2, 4)
    pooled[0, 1] = np.inf
    assert fused.apply_gradients(batch, pooled, {"s": ones(2, 2)}, request=("trainer", 1))
    np.testing.assert_array_equal(lenient.lookup(keys_of(1, 2, 3), train=False)[:, 0], [0, 0, -0.5])
    np.testing.assert_array_equal(strict.lookup(keys_of(4, 5, 6, 7), train=False), np.full((4, 2), -0.5))
    assert storage.stats()["groups"][2]["skipped_not_finite"] == 2
    assert_sound(storage)


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
def test_a_gradient_that_its_weight_makes_infinite_is_rejected_or_skipped(storage: PyStorage, duplicates: str) -> None:
    strict = embedding(storage, 2, 1, duplicates=duplicates)
    lenient = embedding(storage, 2, 2, duplicates=duplicates, not_finite="skip_row")
    batch = {"a": Ragged.from_lists([[1, 2]], [[1e30, 1.0]])}
    with pytest.raises(GradientNotFinite, match=r"group 1: 1 of 2 gradients .* key 1 \(inf\)"):
        FusedEmbedding([Feature("a", strict, "sum")]).apply_gradients(batch, f32([[1e30, 1]]))
    assert storage.stats()["rows"] == 0
    FusedEmbedding([Feature("a", lenient, "sum")]).apply_gradients(batch, f32([[1e30, 2]]))
    np.testing.assert_array_equal(lenient.lookup(keys_of(1, 2), train=False), f32([[0, 0], [-5e29, -1]]))
    assert storage.stats()["groups"][2]["skipped_not_finite"] == 1


# --- requests, outputs, batches without anything ---


@pytest.mark.parametrize("keep", [False, True])
def test_a_repeated_request_is_acknowledged_and_not_applied(storage: PyStorage, keep: bool) -> None:
    one, two = embedding(storage, 2, 1), embedding(storage, 2, 2)
    fused = FusedEmbedding([Feature("a", one), Feature("b", two, None)])
    batch = {"a": lists([1]), "b": lists([1, 2])}
    out = fused.lookup(batch, keep=keep)
    assert out.kept == keep
    answers = [
        fused.apply_gradients(each, ones(1, 2), {"b": ones(2, 2)}, request=("trainer", 1))
        for each in (out, out, batch, out)
    ]
    assert answers == [True, False, False, False]
    assert storage.last_request("trainer") == 1
    for rows in (one, two):
        np.testing.assert_array_equal(rows.lookup(keys_of(1), train=False), [[-0.5, -0.5]])


def test_an_output_may_be_pushed_several_times_whether_kept_or_not(storage: PyStorage) -> None:
    rows = embedding(storage, 2)
    fused = FusedEmbedding([Feature("a", rows)])
    batch = {"a": lists([1], [2, 2])}
    for each in (fused.lookup(batch), fused.lookup(batch, keep=False), batch):
        for _ in range(2):
            assert fused.apply_gradients(each, ones(2, 2))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), np.full((2, 2), -3))


def test_a_kept_batch_that_was_forgotten_is_sent_again(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage, 2)
    fused = FusedEmbedding([Feature("a", rows)])
    out = fused.lookup({"a": lists([1])}, keep=True)
    assert out.kept
    assert repr(out) == "FusedOutput(pooled: float32[1, 2], kept)"
    storage.checkpoint(tmp_path / "checkpoint")
    storage.restore_from(tmp_path / "checkpoint")
    assert fused.apply_gradients(out, ones(1, 2))
    np.testing.assert_array_equal(rows.lookup(keys_of(1), train=False), [[-0.5, -0.5]])


def test_a_push_needs_no_lookup_and_pushes_into_rows_as_they_are_then(storage: PyStorage) -> None:
    rows = embedding(storage, 2, optimizer=sgd(1.0), initializer=uniform(), miss_value="initializer")
    fused = FusedEmbedding([Feature("a", rows, "sum", max_norm=1.0)])
    batch = {"a": lists([1])}
    out = fused.lookup(batch)
    first = rows.lookup(keys_of(1))
    rows.apply_gradients(keys_of(1), first - f32([[3, 4]]))  # now it is (3, 4)
    fused.apply_gradients(out, f32([[1, 0]]))
    # m / |e| (g - e (e.g) / |e|^2) with m = 1, e = (3, 4), g = (1, 0)
    np.testing.assert_allclose(rows.lookup(keys_of(1)), [[3 - (1 - 9 / 25) / 5, 4 + 12 / 25 / 5]], rtol=1e-5)


def test_batches_without_samples_and_features_without_keys_are_pushed(storage: PyStorage) -> None:
    rows, other = embedding(storage, 2, 1), embedding(storage, 3, 2)
    fused = FusedEmbedding([Feature("a", rows), Feature("b", other, "sum"), Feature("s", other, None)])
    nothing = dict.fromkeys(("a", "b", "s"), lists())
    assert fused.apply_gradients(nothing, ones(0, 5), {"s": ones(0, 3)}, request=("trainer", 1))
    assert not fused.apply_gradients(nothing, ones(0, 5), {"s": ones(0, 3)}, request=("trainer", 1))
    assert storage.last_request("trainer") == 1
    assert fused.apply_gradients(fused.lookup(nothing), ones(0, 5), {"s": ones(0, 3)})
    batch = {"a": lists([1], [2]), "b": lists([], []), "s": lists([], [])}
    assert fused.apply_gradients(batch, ones(2, 5), {"s": ones(0, 3)})
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), np.full((2, 2), -0.5))
    assert storage.stats()["rows"] == 2
    sequences = FusedEmbedding([Feature("s", other, None)])
    assert sequences.apply_gradients({"s": lists([5])}, None, {"s": ones(1, 3)})
    assert (other.lookup(keys_of(5), train=False) == -0.5).all()


def test_a_feature_that_a_batch_lacks_is_pushed_as_empty_bags(storage: PyStorage) -> None:
    rows = embedding(storage, 1, optimizer=sgd(1.0))
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("b", rows, "sum", default_key=9)], missing="empty")
    fused.apply_gradients({"a": lists([1], [2])}, f32([[1, 10], [2, 20]]))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 9), train=False)[:, 0], [-1, -2, -30])


def test_pushes_ahead_are_applied_in_their_order_and_waited_for(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, 1, optimizer=sgd(1.0), weight_max=0.0)
    fused = FusedEmbedding([Feature("a", rows, "sum")])
    values = [float(value) for value in np.random.default_rng(1).integers(-9, 9, 60)]
    weight = 0.0
    for value in values:
        weight = min(weight - value, 0.0)  # clamped after each: another order gives another sum
    batch = {"a": lists([1])}
    futures = [fused.apply_gradients_async(batch, f32([[value]])) for value in values]
    futures.append(fused.apply_gradients_async(batch, f32([[0]]), request=("trainer", 1)))
    storage.close()
    assert all(future.result() for future in futures)
    storage = open_storage()
    again = embedding(storage, 1, optimizer=sgd(1.0), weight_max=0.0)
    assert again.lookup(keys_of(1))[0, 0] == weight
    assert storage.last_request("trainer") == 1


def test_rows_on_disk_are_trained(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, 32)
    push_in_pieces(rows, np.arange(3_000))
    storage.flush()
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("s", rows, None)])
    keys = np.arange(0, 3_000, 30)
    bag = Ragged(keys, keys_of(0, 100))
    assert not storage.get_rows(0, keys).in_memory.all()
    fused.apply_gradients({"a": bag, "s": bag}, ones(1, 32), {"s": ones(100, 32)})
    np.testing.assert_array_equal(rows.lookup(keys, train=False), np.full((100, 32), -1.5))
    np.testing.assert_array_equal(rows.lookup(keys + 1, train=False), np.full((100, 32), -0.5))
    assert_sound(storage)
