"""Fused lookups against the specification, and what they create, count and leave alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockbed import Feature, FusedEmbedding, InvalidConfig, PyStorage, Ragged, ReadOnlyStorage, UnknownName
from rockbed.reports import RowStatus
from rockbed.types import F32, I64
from tests.api.helpers import (
    QUIET,
    SMALL,
    Clock,
    OpenStorage,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
    uniform,
)
from tests.fused.cases import PADDING, assert_as_specified, every_feature, random_batch, two_tables


def lists(*bags: list[int]) -> Ragged:
    return Ragged.from_lists(bags)


def floats(*values: float) -> F32:
    return np.array(values, np.float32)


def present(storage: PyStorage, keys: I64) -> list[int]:
    """Those of the keys that have a row in group 0."""
    found: list[int] = keys[storage.get_rows(0, keys).status == RowStatus.PRESENT].tolist()
    return found


# --- what is found ---


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_every_combination_of_settings_follows_the_specification(
    storage: PyStorage, unsigned: bool, train: bool
) -> None:
    features = every_feature(two_tables(storage))
    fused = FusedEmbedding(features)
    batch = random_batch(np.random.default_rng(1), features, 40, unsigned=unsigned)
    out = fused.lookup(batch, train=train)
    assert out.pooled.shape == (40, fused.dim)
    assert_as_specified(features, batch, out)
    assert storage.stats()["rows"] > 0 if train else storage.stats()["rows"] == 0
    again = fused.lookup(batch, train=False)
    np.testing.assert_array_equal(again.pooled, out.pooled)  # bit for bit, every time
    for name, rows in out.sequences.items():
        np.testing.assert_array_equal(again[name], rows)
    assert_sound(storage)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.booleans())
def test_random_batches_follow_the_specification(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, unsigned: bool
) -> None:
    random = np.random.default_rng(seed)
    with PyStorage(tmp_path_factory.mktemp("random") / "store", **QUIET) as storage:
        features = every_feature(two_tables(storage))
        features = [features[i] for i in random.permutation(len(features))[: random.integers(1, 6)]]
        batch = random_batch(random, features, size, unsigned=unsigned)
        assert_as_specified(features, batch, FusedEmbedding(features).lookup(batch))


def test_a_bag_of_one_key_is_the_row_that_a_lookup_gives_to_the_bit(storage: PyStorage) -> None:
    rows = embedding(storage, 17, initializer=uniform())
    keys = np.random.default_rng(1).integers(0, 2**62, 200)
    one_each = Ragged(keys, np.arange(201))
    combiners = ("sum", "mean", "sqrtn", None)
    out = FusedEmbedding([Feature(f"{each}", rows, each) for each in combiners]).lookup(
        dict.fromkeys(map(str, combiners), one_each)
    )
    for each in combiners:
        np.testing.assert_array_equal(out[f"{each}"], rows.lookup(keys, train=False))


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 33, 64, 200])
def test_rows_of_any_dim_are_pooled(storage: PyStorage, dim: int) -> None:
    rows = embedding(storage, dim, initializer=uniform())
    features = [
        Feature("plain", rows, "sum"),
        Feature("weighted", rows, "mean", max_norm=0.5),
        Feature("s", rows, None),
    ]
    batch = random_batch(np.random.default_rng(2), features, 20)
    assert_as_specified(features, batch, FusedEmbedding(features).lookup(batch))


def test_a_bag_of_ten_thousand_keys_is_summed_closely(storage: PyStorage) -> None:
    rows = embedding(storage, 4, initializer=uniform())
    keys = np.random.default_rng(3).integers(0, 500, 10_000)
    bag = Ragged(keys, keys_of(0, 10_000))
    features = [Feature("sum", rows, "sum"), Feature("mean", rows), Feature("sqrtn", rows, "sqrtn", max_norm=0.1)]
    out = FusedEmbedding(features).lookup(dict.fromkeys(("sum", "mean", "sqrtn"), bag))
    weights = rows.lookup(keys, train=False).astype(np.float64)
    short = weights * 0.1 / np.linalg.norm(weights, axis=1)[:, None]
    for name, wanted in (("sum", weights.sum(0)), ("mean", weights.mean(0)), ("sqrtn", short.sum(0) / 100)):
        # ten thousand float32 additions
        np.testing.assert_allclose(out[name][0], wanted, rtol=1e-4, atol=1e-3, err_msg=name)


def test_weights_of_a_sum_may_be_0_or_negative_and_others_are_pruned(storage: PyStorage) -> None:
    rows = embedding(storage, 2, group=1, initializer=uniform(), miss_value="initializer")
    features = [
        Feature("sum", rows, "sum"),
        Feature("mean", rows, "mean"),
        Feature("filled", rows, "sqrtn", default_key=9),
    ]
    bags = Ragged.from_lists([[1, 2], [3]], [[2.0, -0.5], [0.0]])
    out = FusedEmbedding(features).lookup(dict.fromkeys(("sum", "mean", "filled"), bags))
    one, two, nine = rows.lookup(keys_of(1, 2, 9), train=False)
    np.testing.assert_allclose(out["sum"], [2 * one - 0.5 * two, [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(out["mean"], [one, [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(out["filled"], [one, nine], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e30, 3e38])
def test_means_do_not_depend_on_the_size_of_weights(storage: PyStorage, size: float) -> None:
    rows = embedding(storage, 2, initializer=uniform(9.0))
    fused = FusedEmbedding([Feature("mean", rows), Feature("sqrtn", rows, "sqrtn")])
    bags = Ragged.from_lists([[1], [1, 2]], [[size], [size, size]])
    out = fused.lookup({"mean": bags, "sqrtn": bags})
    one, two = rows.lookup(keys_of(1, 2), train=False)
    np.testing.assert_allclose(out["mean"], [one, (one + two) / 2], rtol=1e-5)
    np.testing.assert_allclose(out["sqrtn"], [one, (one + two) / np.sqrt(2)], rtol=1e-5)
    fused.apply_gradients(out, np.full((2, 4), 1e9, np.float32))  # and neither do their gradients


def test_a_max_norm_that_is_0_as_a_float32_is_a_limit_too(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    out = FusedEmbedding([Feature("a", rows, "sum", max_norm=1e-60)]).lookup({"a": lists([1, 2])})
    assert np.abs(out.pooled).max() < 1e-44


def test_the_order_of_features_is_that_of_the_columns_whatever_that_of_the_batch(storage: PyStorage) -> None:
    tables = [embedding(storage, dim, dim, initializer=uniform()) for dim in (2, 1, 3)]
    features = [
        Feature("b", tables[0]),
        Feature("s", tables[1], None),
        Feature("a", tables[2]),
        Feature("c", tables[0]),
    ]
    fused = FusedEmbedding(features)
    assert fused.columns == {"b": slice(0, 2), "a": slice(2, 5), "c": slice(5, 7)}
    assert (fused.dim, fused.names, repr(fused)) == (
        7,
        ("b", "s", "a", "c"),
        "FusedEmbedding(b, s, a, c: float32[B, 7])",
    )
    out = fused.lookup({name: lists([ord(name)], []) for name in ("a", "s", "c", "b")})
    np.testing.assert_array_equal(out.pooled[1], np.zeros(7))
    for feature in features:
        np.testing.assert_array_equal(out[feature.name][0], feature.embedding.lookup(keys_of(ord(feature.name)))[0])


def test_an_output_is_an_array_whose_features_are_views(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    fused = FusedEmbedding([Feature("a", rows), Feature("b", rows, None)])
    batch = {"a": lists([1], [2]), "b": lists([3, 4, 5], [])}
    out = fused.lookup(batch)
    assert np.asarray(out) is out.pooled
    assert np.asarray(out, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(out), out.pooled)
    assert np.shares_memory(out["a"], out.pooled)
    assert out["b"] is out.sequences["b"]
    assert (len(out), repr(out)) == (2, "FusedOutput(pooled: float32[2, 2], b: float32[3, 2], kept)")
    for other in (fused.lookup(batch, keep=False), fused.lookup(batch, train=False)):  # not for a push
        assert repr(other) == "FusedOutput(pooled: float32[2, 2], b: float32[3, 2])"
    with pytest.raises(UnknownName, match="there is no feature 'x': the features are 'a', 'b'"):
        _ = out["x"]


def test_without_samples_or_keys_the_result_is_empty_or_zeros(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    fused = FusedEmbedding([Feature("a", rows), Feature("s", rows, None)])
    out = fused.lookup({"a": lists(), "s": lists()})
    assert (out.pooled.shape, out["s"].shape) == ((0, 2), (0, 2))
    out = fused.lookup({"a": lists([], [], []), "s": lists([], [], [])})
    np.testing.assert_array_equal(out.pooled, np.zeros((3, 2)))
    assert out["s"].shape == (0, 2)
    assert storage.stats()["rows"] == 0
    sequences = FusedEmbedding([Feature("s", rows, None)]).lookup({"s": lists([1], [1, 2])})
    assert (sequences.pooled.shape, sequences["s"].shape) == ((2, 0), (3, 2))


def test_a_feature_that_a_batch_lacks_may_have_empty_bags(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    features = [Feature("a", rows), Feature("filled", rows, default_key=1), Feature("s", rows, None)]
    fused = FusedEmbedding(features, missing="empty")
    out = fused.lookup({"a": lists([1], [2])})
    np.testing.assert_array_equal(out["filled"], out["a"][[0, 0]])
    assert out["s"].shape == (0, 2)
    out = fused.lookup({"s": lists([1], [])})
    np.testing.assert_array_equal(out["a"], np.zeros((2, 2)))
    assert fused.lookup({}).pooled.shape == (0, 4)


def test_what_is_not_its_own_may_be_passed_over(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    fused = FusedEmbedding([Feature("a", rows)], unknown="ignore")
    others: dict[str, Any] = {"b": lists([7], [8], [9]), "label": np.array([0, 1])}  # not even bags of its size
    batch = {**others, "a": lists([1], [2])}
    out = fused.lookup(batch)
    np.testing.assert_array_equal(out.pooled, rows.lookup(keys_of(1, 2)))
    assert fused.apply_gradients(batch, ones(2, 2))
    assert fused.prefetch(batch) == (2, 0)
    assert storage.stats()["rows"] == 2
    with pytest.raises(InvalidConfig, match="the batch lacks 'a'"):
        fused.lookup(others)
    with pytest.raises(UnknownName, match=r"no feature 'b', 'label': .* unknown='ignore' passes"):
        FusedEmbedding([Feature("a", rows)]).lookup(batch)


def test_bags_may_be_given_as_arrays(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    fused = FusedEmbedding([Feature("a", rows, "sum")])
    keys, offsets = keys_of(1, 2, 3), np.array([0, 2, 3])
    np.testing.assert_array_equal(
        fused.lookup({"a": (keys, offsets)}).pooled, fused.lookup({"a": Ragged(keys, offsets)}).pooled
    )
    weighted = fused.lookup({"a": (keys, offsets, floats(1, 0, 2))}).pooled
    np.testing.assert_array_equal(weighted, rows.lookup(keys_of(1, 3)) * np.array([[1], [2]], np.float32))


# --- what it creates and counts ---


def test_training_gives_rows_to_keys_that_count_and_to_default_keys_in_use_only(storage: PyStorage) -> None:
    rows = embedding(storage, 3, initializer=uniform(), padding_key=PADDING)
    features = [
        Feature("weighted", rows, "mean", default_key=100),
        Feature("unused", rows, "sum", default_key=200),
        Feature("s", rows, None),
    ]
    batch = {
        "weighted": Ragged.from_lists([[1, 2], [-3, 3, PADDING]], [[1.0, 0.0], [1.0, -1.0, 1.0]]),
        "unused": lists([4], [4]),
        "s": lists([-1, 6], [PADDING]),
    }
    fused = FusedEmbedding(features)
    served = fused.lookup(batch, train=False)
    assert not served.pooled.any()
    assert storage.stats()["rows"] == 0
    fused.lookup(batch)
    assert present(storage, np.arange(-5, 300)) == [1, 4, 6, 100]


def test_serving_gives_the_miss_value_and_a_read_only_storage_serves(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, 2, miss_value=3.0)
    rows.apply_gradients(keys_of(1), ones(1, 2))
    storage.close()
    rows = embedding(open_storage(read_only=True), 2, miss_value=3.0)
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("s", rows, None)])
    batch = {"a": lists([1, 2], [2, 2]), "s": lists([2], [-1])}
    out = fused.lookup(batch, train=False)
    np.testing.assert_array_equal(out.pooled, [[2.5, 2.5], [6, 6]])
    np.testing.assert_array_equal(out["s"], [[3, 3], [0, 0]])
    with pytest.raises(ReadOnlyStorage):
        fused.lookup(batch)


def test_every_occurrence_counts_towards_admission_in_training_only(storage: PyStorage) -> None:
    rows = embedding(
        storage, 2, initializer=uniform(), admission={"name": "min_count", "count": 3}, unadmitted_value=4.0
    )
    fused = FusedEmbedding([Feature("a", rows, "mean"), Feature("s", rows, None)])
    batch = {"a": lists([1, 1], [2]), "s": lists([], [])}
    for _ in range(3):
        fused.lookup(batch, train=False)
    out = fused.lookup(batch)
    np.testing.assert_array_equal(out.pooled, np.full((2, 2), 4))
    out = fused.lookup(batch)
    assert (out.pooled[0] != 4).all()
    np.testing.assert_array_equal(out.pooled[1], [4, 4])
    fused.lookup({"a": lists([], [7, 7]), "s": lists([7], [2])})  # across features, too
    assert present(storage, keys_of(1, 2, 3, 7)) == [1, 2, 7]


def test_an_expired_row_is_none_when_served_and_begins_anew_in_training(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage, 2, ttl=10, miss_value=7.0)
    read = embedding(storage, 2, group=1, ttl=10, refresh="lookup")
    for table in (rows, read):
        table.apply_gradients(keys_of(1), ones(1, 2))
    fused = FusedEmbedding([Feature("a", rows), Feature("b", read)])
    clock.now += 6
    batch = dict.fromkeys("ab", lists([1]))
    np.testing.assert_array_equal(fused.lookup(batch).pooled, np.full((1, 4), -0.5))
    clock.now += 6
    np.testing.assert_array_equal(fused.lookup(batch, train=False).pooled, [[7, 7, -0.5, -0.5]])
    np.testing.assert_array_equal(fused.lookup(batch).pooled, [[0, 0, -0.5, -0.5]])
    assert storage.stats()["groups"][0]["expired"] == 1


def test_rows_on_disk_are_found(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, 32)
    push_in_pieces(rows, np.arange(3_000))
    storage.flush()
    disk_hits = engine_of(storage).groups[0].counters.disk_hits
    keys = np.arange(0, 3_500, 7)
    out = FusedEmbedding([Feature("a", rows, "sum"), Feature("s", rows, None)]).lookup(
        {"a": Ragged(keys, keys_of(0, keys.size)), "s": Ragged(keys, keys_of(0, keys.size))}
    )
    assert engine_of(storage).groups[0].counters.disk_hits > disk_hits
    there = keys < 3_000
    np.testing.assert_array_equal(out["s"], np.where(there, np.float32(-0.5), 0)[:, None].repeat(32, axis=1))
    np.testing.assert_array_equal(out.pooled[0], np.full(32, -0.5 * there.sum()))
    assert_sound(storage)


def test_a_lookup_ahead_gives_what_a_lookup_gives(storage: PyStorage) -> None:
    features = every_feature(two_tables(storage))[:5]
    fused = FusedEmbedding(features)
    batches = [random_batch(np.random.default_rng(seed), features, 10) for seed in range(4)]
    futures = [fused.lookup_async(batch) for batch in batches]
    for batch, future in zip(batches, futures, strict=True):
        assert_as_specified(features, batch, future.result())
