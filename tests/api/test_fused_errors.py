"""Fused batches that cannot be: each with its error, a message that names the feature, and no effect."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed import (
    BatchTooLarge,
    Feature,
    FusedEmbedding,
    InvalidConfig,
    PyStorage,
    Ragged,
    ReadOnlyStorage,
    RockbedError,
    StorageClosed,
    UnknownGroup,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from rockbed.bags import Bags, check_bags
from rockbed.types import F32
from tests.api.helpers import OpenStorage, assert_sound, embedding, keys_of, ones, uniform

HUGE = np.broadcast_to(np.int64(1), 2**31)  # of one number in memory
K, O = keys_of(1, 2, 3), keys_of(0, 1, 3)  # noqa: E741


def lists(*bags: list[int]) -> Ragged:
    return Ragged.from_lists(bags)


def floats(*values: float) -> F32:
    return np.array(values, np.float32)


TWO = lists([1], [2, 3])


@pytest.fixture
def fused(storage: PyStorage) -> FusedEmbedding:
    """Pooled "a" of dim 2, a sequence "s" of dim 3."""
    return FusedEmbedding([Feature("a", embedding(storage, 2, 1)), Feature("s", embedding(storage, 3, 2), None)])


# --- batches ---

BATCHES: list[tuple[Any, type[Exception], str]] = [
    ({"a": (K, keys_of(0, 2, 1, 3)), "s": TWO}, WrongShape, r"feature 'a': offsets\[2\] = 1 after 2: offsets never"),
    ({"a": (K, keys_of(0, 1, 2)), "s": TWO}, WrongShape, "feature 'a': offsets run from 0 to 2, with 3 keys they run"),
    ({"a": (K, keys_of(0, 1, 4)), "s": TWO}, WrongShape, "feature 'a': offsets run from 0 to 4"),
    ({"a": (K, keys_of(1, 2, 3)), "s": TWO}, WrongShape, "feature 'a': offsets run from 1 to 3"),
    ({"a": (K, keys_of()), "s": TWO}, WrongShape, "feature 'a': offsets are empty"),
    ({"a": (K, O.astype(np.float64)), "s": TWO}, WrongDtype, "feature 'a': offsets must be .* int64 or int32"),
    ({"a": (K.tolist(), O), "s": TWO}, WrongDtype, "feature 'a': keys must be a numpy array of int64 or uint64"),
    ({"a": (K.reshape(1, 3), O), "s": TWO}, WrongShape, "feature 'a': keys must have one axis"),
    ({"a": (K, O, floats(1, 2)), "s": TWO}, WrongShape, "feature 'a': 2 weights for 3 keys"),
    ({"a": (K, O, np.ones(3)), "s": TWO}, WrongDtype, r"feature 'a': weights must be .* float32, not float64\[3\]"),
    ({"a": (K, O, floats(1, np.nan, 1)), "s": TWO}, InvalidConfig, r"feature 'a': weights\[1\] is nan"),
    ({"a": (K, O, floats(np.inf, 1, 1)), "s": TWO}, InvalidConfig, r"feature 'a': weights\[0\] is inf"),
    ({"a": (HUGE, O), "s": TWO}, BatchTooLarge, "feature 'a': 2147483648 keys, 2147483647 are the most"),
    ({"a": TWO, "s": (K, O, floats(1, 1, 1))}, InvalidConfig, "feature 's': weights are for combining"),
    ({"a": TWO, "s": lists([1], [2], [])}, WrongShape, "differ in the number of bags: 'a' has 2, 's' has 3"),
    ({"a": TWO, "s": TWO, "b": TWO}, UnknownName, "there is no feature 'b': the features are 'a', 's'"),
    ({"a": TWO, "s": TWO, 7: TWO}, UnknownName, "there is no feature 7: the features are 'a', 's'"),
    ({"a": TWO}, InvalidConfig, "the batch lacks 's': give their bags, or .* missing='empty'"),
    ({}, InvalidConfig, "the batch lacks 'a', 's'"),
    ([TWO, TWO], WrongDtype, "a batch is a dict of Ragged by feature, not a list"),
    ({"a": [[1], [2]], "s": TWO}, WrongDtype, r"feature 'a': its bags are a Ragged, \(keys, offsets\) .* not a list"),
    ({"a": (K,), "s": TWO}, WrongDtype, r"feature 'a': its bags are .* or \(keys, offsets, weights\), not 1 values"),
    ({"a": K, "s": TWO}, WrongDtype, "feature 'a': .* not a ndarray"),
]


@pytest.mark.parametrize(("batch", "error", "message"), BATCHES)
def test_a_batch_that_cannot_be_is_neither_looked_up_nor_pushed(
    storage: PyStorage, fused: FusedEmbedding, batch: Any, error: type[Exception], message: str
) -> None:
    gradients: Any = (ones(2, 2), {"s": ones(3, 3)})
    calls: list[Callable[[], object]] = [
        lambda: fused.lookup(batch),
        lambda: fused.lookup(batch, train=False),
        lambda: fused.lookup_async(batch),
        lambda: fused.apply_gradients(batch, *gradients, request=("trainer", 1)),
        lambda: fused.apply_gradients_async(batch, *gradients),
    ]
    for call in calls:
        with pytest.raises(error, match=message) as raised:
            call()
        assert isinstance(raised.value, RockbedError)
    assert (storage.stats()["rows"], storage.last_request("trainer")) == (0, 0)
    fused.apply_gradients({"a": TWO, "s": TWO}, *gradients)
    assert storage.stats()["rows"] == 6
    assert_sound(storage)


def test_arrays_that_have_changed_since_they_were_checked_are_checked_again(
    storage: PyStorage, fused: FusedEmbedding
) -> None:
    offsets = O.copy()
    bags = Ragged(K, offsets)
    offsets[1] = 2**40
    for call in (fused.lookup, lambda batch: fused.apply_gradients(batch, ones(2, 2), {"s": ones(3, 3)})):
        with pytest.raises(WrongShape, match=r"feature 'a': offsets\[2\] = 3 after 1099511627776"):
            call({"s": TWO, "a": bags})
    assert storage.stats()["rows"] == 0


def test_keys_of_all_features_together_fit_into_32_bits() -> None:
    # what is counted is not looked at, so a number that takes no memory stands for gigabytes of keys
    half = HUGE[: 2**30]
    bags = [Bags(name, 0, half, keys_of(0, 2**30)) for name in "ab"]
    with pytest.raises(
        BatchTooLarge, match="2147483648 keys in one fused batch, 2147483647 are the most: send smaller"
    ):
        check_bags(bags)
    assert check_bags(bags[:1]) == 1


# --- gradients ---

POOLED: list[tuple[Any, type[Exception], str]] = [
    (None, WrongDtype, "grad_pooled must be a numpy array of float32, not a NoneType"),
    (ones(2, 2).tolist(), WrongDtype, "grad_pooled must be a numpy array of float32, not a list"),
    (np.ones((2, 2)), WrongDtype, r"grad_pooled .* not float64\[2, 2\]: use .astype\(np.float32\)"),
    (np.ones((2, 2), np.float16), WrongDtype, r"grad_pooled .* not float16\[2, 2\]"),
    (ones(3, 2), WrongShape, r"grad_pooled must be float32\[2, 2\], not float32\[3, 2\]"),
    (ones(2, 5), WrongShape, r"grad_pooled must be float32\[2, 2\], not float32\[2, 5\]"),
    (ones(2, 2).reshape(-1), WrongShape, r"grad_pooled must be float32\[2, 2\], not float32\[4\]"),
]
SEQUENCES: list[tuple[Any, type[Exception], str]] = [
    (None, InvalidConfig, r"sequences lacks the gradients of 's', float32\[3, 3\]: a feature without"),
    ({}, InvalidConfig, "sequences lacks the gradients of 's'"),
    ({"s": None}, InvalidConfig, "sequences lacks the gradients of 's'"),
    ({"s": ones(3, 3), "a": ones(2, 2)}, UnknownName, "no feature 'a' without a combiner: .* gradients of 's'"),
    ({"s": ones(3, 3), "x": ones(2, 2)}, UnknownName, "no feature 'x' without a combiner"),
    ([ones(3, 3)], WrongDtype, "sequences is a dict of gradients by feature, not a list"),
    ({"s": np.ones((3, 3))}, WrongDtype, r"the gradient of 's' must be .* float32, not float64\[3, 3\]"),
    ({"s": ones(2, 3)}, WrongShape, r"the gradient of 's' must be float32\[3, 3\], not float32\[2, 3\]"),
    ({"s": ones(9, 1)}, WrongShape, r"the gradient of 's' must be float32\[3, 3\], not float32\[9, 1\]"),
]


@pytest.mark.parametrize("keep", [None, True])
@pytest.mark.parametrize(
    ("pooled", "sequences", "error", "message"),
    [
        *((pooled, {"s": ones(3, 3)}, error, message) for pooled, error, message in POOLED),
        *((ones(2, 2), sequences, error, message) for sequences, error, message in SEQUENCES),
    ],
)
def test_gradients_that_do_not_go_with_the_batch_are_refused(
    storage: PyStorage,
    fused: FusedEmbedding,
    pooled: Any,
    sequences: Any,
    keep: bool | None,
    error: type[Exception],
    message: str,
) -> None:
    batch: Any = {"a": TWO, "s": TWO}
    of = batch if keep is None else fused.lookup(batch, keep=keep)
    for push in (fused.apply_gradients, fused.apply_gradients_async):
        with pytest.raises(error, match=message):
            push(of, pooled, sequences, request=("trainer", 1))
    assert storage.last_request("trainer") == 0
    assert sum(group["updates"] for group in storage.stats()["groups"].values()) == 0
    assert fused.apply_gradients(of, ones(2, 2), {"s": ones(3, 3)})  # it is there to be pushed as it was


@pytest.mark.parametrize("keep", [False, True])
def test_a_sequence_without_keys_needs_no_gradient(storage: PyStorage, keep: bool) -> None:
    pooled, history = embedding(storage, 2, 1), embedding(storage, 3, 2)
    fused = FusedEmbedding([Feature("a", pooled), Feature("s", history, None)], missing="empty")
    assert fused.apply_gradients(fused.lookup({"a": TWO}, keep=keep), ones(2, 2))
    assert fused.apply_gradients({"a": TWO, "s": lists([], [])}, ones(2, 2), {"s": ones(0, 3)})
    assert [group["updates"] for group in storage.stats()["groups"].values()] == [6, 0]
    with pytest.raises(WrongShape, match=r"the gradient of 's' must be float32\[0, 3\]"):
        fused.apply_gradients({"a": TWO}, ones(2, 2), {"s": ones(1, 3)})


@pytest.mark.parametrize("value", ["no", 1, 2, None, np.float32(1)])
def test_whether_to_train_and_to_keep_is_true_or_false(storage: PyStorage, fused: FusedEmbedding, value: Any) -> None:
    rows = embedding(storage, 2, 1)
    batch = {"a": TWO, "s": TWO}
    for lookup in (fused.lookup, fused.lookup_async):
        with pytest.raises(InvalidConfig, match=f"train is {re.escape(repr(value))}, not True or False"):
            lookup(batch, train=value)
        if value is not None:
            with pytest.raises(InvalidConfig, match=r"keep is .*, not True or False"):
                lookup(batch, keep=value)
    for call in (rows.lookup, rows.lookup_async):
        with pytest.raises(InvalidConfig, match=r"train is .*, not True or False"):
            call(K, train=value)
    with pytest.raises(InvalidConfig, match=r"train is .*, not True or False"):
        storage.lookup([(rows, K)], train=value)
    assert storage.stats()["rows"] == 0


def test_true_and_false_may_be_numpys(storage: PyStorage, fused: FusedEmbedding) -> None:
    true, false = np.array([1, 0]) > 0
    batch = {"a": TWO, "s": TWO}
    assert not fused.lookup(batch, train=false).kept
    assert storage.stats()["rows"] == 0
    assert not fused.lookup(batch, train=true, keep=false).kept
    assert fused.lookup(batch, keep=true).kept
    assert storage.stats()["rows"] == 6
    rows = embedding(storage, 2, 1)
    rows.lookup(keys_of(77), train=false)
    storage.lookup([(rows, keys_of(78))], train=true)
    assert storage.stats()["rows"] == 7


def test_an_output_is_asked_by_name(fused: FusedEmbedding) -> None:
    out = fused.lookup({"a": TWO, "s": TWO})
    assert ["a" in out, "s" in out, "b" in out, 0 in out] == [True, True, False, False]
    with pytest.raises(TypeError, match="not iterable"):
        list(out)  # type: ignore[call-overload]


def test_gradients_for_sequences_that_there_are_not_are_refused(storage: PyStorage) -> None:
    fused = FusedEmbedding([Feature("a", embedding(storage, 2))])
    with pytest.raises(UnknownName, match="no feature 'a' without a combiner: sequences takes gradients of none"):
        fused.apply_gradients({"a": TWO}, ones(2, 2), {"a": ones(2, 2)})


def test_an_output_of_another_fused_embedding_is_refused(storage: PyStorage, fused: FusedEmbedding) -> None:
    other = FusedEmbedding(fused.features)
    out = other.lookup({"a": TWO, "s": TWO})
    with pytest.raises(InvalidConfig, match=r"FusedOutput\(pooled: .* comes from another FusedEmbedding than Fused"):
        fused.apply_gradients(out, ones(2, 2), {"s": ones(3, 3)})


@pytest.mark.parametrize("request_id", [("trainer", 0), ("", 1), "trainer", ("auto-1", 1)])
def test_bad_requests_are_refused(storage: PyStorage, fused: FusedEmbedding, request_id: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"request|client id"):
        fused.apply_gradients({"a": TWO, "s": TWO}, ones(2, 2), {"s": ones(3, 3)}, request=request_id)
    assert storage.stats()["rows"] == 0


# --- features ---

FEATURES: list[tuple[dict[str, Any], str]] = [
    ({"combiner": "max"}, "feature 'f': combiner is 'max', not one of 'sum', 'mean', 'sqrtn', nor None"),
    ({"combiner": 3}, "combiner is 3"),
    ({"max_norm": 0.0}, "max_norm is 0.0, not above 0"),
    ({"max_norm": -1}, "max_norm is -1"),
    ({"max_norm": float("nan")}, "max_norm is nan, not a finite number"),
    ({"max_norm": "1"}, "max_norm is '1', not a finite number"),
    ({"default_key": 1.0}, "default_key is 1.0, not an int"),
    ({"default_key": np.float64(1)}, "default_key is .*1.0.*, not an int"),
    ({"default_key": "1"}, "default_key is '1', not an int"),
    ({"default_key": True}, "default_key is True, not an int"),
    ({"default_key": 2**64}, "default_key is 18446744073709551616, outside"),
    ({"default_key": -(2**63) - 1}, "default_key is -9223372036854775809, outside"),
    ({"combiner": None, "default_key": 1}, "default_key is for bags; a sequence .* has a row for each key"),
    ({"prune_negative": 1}, "prune_negative is 1, not True or False"),
    ({"name": ""}, "feature '': its name must be a str that is not empty"),
    ({"name": 5}, "feature 5: its name must be a str"),
    ({"name": "\ud800"}, "its name must be a str that is not empty and that UTF-8 can encode"),
    ({"default_key": 3}, "default_key 3 is the padding_key of the embedding, which has no row"),
    ({"default_key": np.uint64(3)}, "default_key 3 is the padding_key"),
]


@pytest.mark.parametrize(("given", "message"), FEATURES)
def test_settings_of_a_feature_that_cannot_be_are_refused(
    storage: PyStorage, given: dict[str, Any], message: str
) -> None:
    rows = embedding(storage, padding_key=3)
    with pytest.raises(InvalidConfig, match=message):
        Feature(**{"name": "f", "embedding": rows, **given})


def test_all_problems_of_a_feature_are_told_at_once(storage: PyStorage) -> None:
    wrong: dict[str, Any] = {"combiner": "max", "max_norm": -1, "default_key": 0.5, "prune_negative": None}
    with pytest.raises(InvalidConfig, match=r"combiner .*; max_norm .*; default_key .*; prune_negative"):
        Feature("f", embedding(storage), **wrong)


def test_a_default_key_may_be_any_int_of_64_bits(storage: PyStorage) -> None:
    rows = embedding(storage, 2, initializer=uniform())
    norm: Any = np.float32(9)
    keys: list[Any] = [np.int32(-4), np.uint64(2**64 - 1), 2**63, -(2**63)]
    features = [Feature(str(i), rows, default_key=key, max_norm=norm) for i, key in enumerate(keys)]
    out = FusedEmbedding(features, missing="empty").lookup({"0": lists([])})
    np.testing.assert_array_equal(
        out.pooled.reshape(4, 2), rows.lookup(keys_of(-4, -1, -(2**63), -(2**63)), train=False)
    )


def test_a_feature_takes_an_embedding_and_a_fused_embedding_features(storage: PyStorage) -> None:
    rows: Any = "rows"
    with pytest.raises(WrongDtype, match="feature 'f': embedding is a str, not a PyEmbedding"):
        Feature("f", rows)
    features: Any = [embedding(storage)]
    with pytest.raises(WrongDtype, match="takes a list of Feature, not of PyEmbedding"):
        FusedEmbedding(features)
    one: Any = Feature("f", embedding(storage))
    with pytest.raises(WrongDtype, match="takes a list of Feature, not a Feature"):
        FusedEmbedding(one)


def test_features_have_names_of_their_own_and_one_storage(open_storage: OpenStorage) -> None:
    one, other = embedding(open_storage("a")), embedding(open_storage("b"))
    wrong: Any = "never"
    features = [Feature("x", one), Feature("x", one), Feature("y", other)]
    message = (
        r"several features are called 'x': .*; features 'y' have another storage than 'x': .*; missing is 'never', .*; "
        r"unknown is 'never'"
    )
    with pytest.raises(InvalidConfig, match=message):
        FusedEmbedding(features, missing=wrong, unknown=wrong)
    with pytest.raises(InvalidConfig, match="there are no features"):
        FusedEmbedding([])


# --- the state of the store ---


def test_a_group_that_was_dropped_is_unknown_and_nothing_of_the_batch_is_made(
    storage: PyStorage, fused: FusedEmbedding
) -> None:
    batch = {"a": TWO, "s": TWO}
    kept = fused.lookup(batch, train=False, keep=True)
    storage.drop_group(2)
    calls: list[Callable[[], object]] = [
        lambda: fused.lookup(batch),
        lambda: fused.apply_gradients(batch, ones(2, 2), {"s": ones(3, 3)}),
        lambda: fused.apply_gradients(kept, ones(2, 2), {"s": ones(3, 3)}),
    ]
    for call in calls:
        with pytest.raises(UnknownGroup):
            call()
    assert storage.stats()["rows"] == 0


def test_a_closed_storage_is_told(storage: PyStorage, fused: FusedEmbedding) -> None:
    batch = {"a": TWO, "s": TWO}
    out = fused.lookup(batch)
    storage.close()
    calls: list[Callable[[], object]] = [
        lambda: fused.lookup(batch),
        lambda: fused.lookup_async(batch),
        lambda: fused.apply_gradients(out, ones(2, 2), {"s": ones(3, 3)}),
        lambda: fused.apply_gradients_async(out, ones(2, 2), {"s": ones(3, 3)}),
    ]
    for call in calls:
        with pytest.raises(StorageClosed):
            call()


def test_a_read_only_storage_takes_no_push(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage, 2)
    storage.close()
    rows = embedding(open_storage(read_only=True), 2)
    fused = FusedEmbedding([Feature("a", rows)])
    with pytest.raises(ReadOnlyStorage):
        fused.apply_gradients({"a": TWO}, ones(2, 2))


def test_a_push_of_more_rows_than_memory_holds_is_refused_whole(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=1 << 17)
    rows = embedding(storage, 64)
    fused = FusedEmbedding([Feature("a", rows, "sum")])
    with pytest.raises(BatchTooLarge, match="memory_budget"):
        fused.apply_gradients({"a": Ragged(np.arange(5_000), keys_of(0, 5_000))}, ones(1, 64))
    fused.apply_gradients({"a": lists([1, 2])}, ones(1, 64))
    assert storage.stats()["groups"][0]["updates"] == 2
    assert_sound(storage)


def test_a_batch_has_not_too_many_features_nor_keys_and_bags(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Bags("f", 0, K, O)
    assert check_bags([one] * 10_000) == 2
    with pytest.raises(BatchTooLarge, match="10001 features in one fused batch, 10000 are the most"):
        check_bags([one] * 10_001)
    monkeypatch.setattr("rockbed.bags.KEYS_MAX", 14)
    with pytest.raises(BatchTooLarge, match="9 keys in 6 bags of one fused batch, 14 keys and bags are the most"):
        check_bags([one] * 3)
    monkeypatch.setattr("rockbed.bags.KEYS_MAX", 15)
    assert check_bags([one] * 3) == 2


def test_a_group_that_was_made_anew_with_another_dim_is_to_be_opened_again(storage: PyStorage) -> None:
    fused = FusedEmbedding([Feature("a", embedding(storage, 4, 1)), Feature("s", embedding(storage, 4, 1), None)])
    out, kept = (fused.lookup({"a": TWO, "s": TWO}, keep=keep) for keep in (False, True))
    storage.drop_group(1)
    embedding(storage, 6, 1)
    with pytest.raises(UnknownGroup):
        fused.lookup({"a": TWO, "s": TWO})
    for each in (out, kept):
        with pytest.raises(UnknownGroup):
            fused.apply_gradients(each, ones(2, 4), {"s": ones(3, 4)})
