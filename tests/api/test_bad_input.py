"""What callers may not send: each with its error, a message that says what was sent and what to do, and no effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    DimMismatch,
    GroupConflict,
    InvalidConfig,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    StoreNotFound,
    UnknownGroup,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from tests.api.helpers import (
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    sgd,
    uniform,
    zeros,
)

KEYS = keys_of(1, 2)


def _readonly(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _unaligned() -> Any:
    return np.zeros(33, np.uint8)[1:].view(np.float32).reshape(2, 4)


LOOKUPS: list[tuple[Any, Any, type[Exception], str]] = [
    ([1, 2], None, WrongDtype, r"keys .* int64 or uint64, not a list: use np.asarray"),
    (np.array([1.0, 2.0]), None, WrongDtype, r"not float64\[2\]"),
    (np.array([1, 2], np.int32), None, WrongDtype, r"not int32\[2\]"),
    (np.array([1, 2], ">i8"), None, WrongDtype, "keys must be"),
    (np.array(["a"]), None, WrongDtype, "keys must be"),
    (np.array([1, 2], object), None, WrongDtype, "keys must be"),
    (np.array([[1, 2]]), None, WrongShape, r"one axis, not int64\[1, 2\]: use keys.reshape"),
    (np.array(1), None, WrongShape, r"one axis, not int64\[\]"),
    (KEYS, np.zeros((2, 4)), WrongDtype, r"weights .* float32, not float64\[2, 4\]"),
    (KEYS, [[0.0] * 4] * 2, WrongDtype, r"weights .* not a list"),
    (
        KEYS,
        np.zeros(7, np.float32),
        WrongShape,
        r"weights must be float32\[2, 4\] or float32\[8\] for 2 keys .* float32\[7\]",
    ),
    (KEYS, np.zeros(9, np.float32), WrongShape, r"not float32\[9\]"),
    (KEYS, np.zeros((4, 2), np.float32), WrongShape, r"not float32\[4, 2\]"),
    (KEYS, np.zeros((1, 2, 4), np.float32), WrongShape, "weights must be"),
    (KEYS, np.zeros((2, 8), np.float32)[:, ::2], WrongShape, "not contiguous: pass np.empty"),
    (KEYS, np.zeros((4, 2), np.float32).T, WrongShape, "not contiguous"),
    (KEYS, _readonly(np.zeros((2, 4), np.float32)), WrongShape, "read-only .* pass an array of your own"),
    (KEYS, _unaligned(), WrongShape, "not aligned"),
]


@pytest.mark.parametrize(("keys", "weights", "error", "message"), LOOKUPS)
def test_a_lookup_that_cannot_be_is_refused_and_touches_nothing(
    open_storage: OpenStorage, keys: Any, weights: Any, error: type[Exception], message: str
) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform())
    before = np.array(weights, copy=True) if weights is not None else None
    with pytest.raises(error, match=message):
        rows.lookup(keys, weights)
    np.testing.assert_array_equal(weights, before)
    assert storage.stats()["rows"] == 0


def test_an_output_that_shares_memory_with_the_keys_is_refused(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), 2, initializer=uniform())
    keys = np.arange(4)
    with pytest.raises(WrongShape, match="share memory"):
        rows.lookup(keys, keys.view(np.float32))
    np.testing.assert_array_equal(keys, np.arange(4))


PUSHES: list[tuple[Any, Any, type[Exception], str]] = [
    ([1, 2], ones(2), WrongDtype, "keys must be a numpy array of int64"),
    (np.array([[1, 2]]), ones(2), WrongShape, "one axis"),
    (
        KEYS,
        np.ones((2, 4)),
        WrongDtype,
        r"gradients must be a numpy array of float32, not float64\[2, 4\]: use .astype",
    ),
    (KEYS, np.ones((2, 4), np.float16), WrongDtype, "not float16"),
    (KEYS, [[1.0] * 4] * 2, WrongDtype, "not a list"),
    (KEYS, None, WrongDtype, "not a NoneType"),
    (
        KEYS,
        np.ones(7, np.float32),
        WrongShape,
        r"float32\[2, 4\] or float32\[8\] for 2 keys of dim 4, not float32\[7\]",
    ),
    (KEYS, ones(3), WrongShape, r"not float32\[3, 4\]"),
    (KEYS, ones(2, 8), WrongShape, r"not float32\[2, 8\]"),
    (keys_of(), ones(1), WrongShape, r"float32\[0, 4\]"),
]


@pytest.mark.parametrize(("keys", "gradients", "error", "message"), PUSHES)
def test_a_push_that_cannot_be_is_refused_and_changes_nothing(
    open_storage: OpenStorage, keys: Any, gradients: Any, error: type[Exception], message: str
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    lsn = storage.stats()["last_lsn"]
    with pytest.raises(error, match=message):
        rows.apply_gradients(keys, gradients)
    stats = storage.stats()
    assert (stats["rows"], stats["last_lsn"]) == (0, lsn)
    rows.apply_gradients(KEYS, ones(2))
    np.testing.assert_array_equal(rows.lookup(KEYS), np.full((2, 4), -0.5))


CONFIGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"group": -1}, InvalidConfig, r"group is -1, outside 0\.\.65535"),
    ({"group": 65536}, InvalidConfig, r"group is 65536, outside"),
    ({"group": 1.5}, InvalidConfig, "group is 1.5, not an int"),
    ({"dim": 0}, InvalidConfig, r"dimension is 0, outside 1\.\.4096"),
    ({"dim": 4097}, InvalidConfig, "dimension is 4097"),
    ({"dim": "8"}, InvalidConfig, "dimension is '8'"),
    ({"seed": -1}, InvalidConfig, "seed is -1"),
    ({"seed": 2**64}, InvalidConfig, "seed is 18446744073709551616"),
    ({"ttl": -1}, InvalidConfig, "ttl is -1, below 0"),
    ({"ttl": float("nan")}, InvalidConfig, "ttl is nan"),
    ({"refresh": "never"}, InvalidConfig, "refresh is 'never', not one of 'push', 'lookup'"),
    ({"duplicates": "mean"}, InvalidConfig, "duplicates is 'mean', not one of 'sum', 'sequential'"),
    ({"absent": "create"}, InvalidConfig, "'init', 'skip'"),
    ({"step": "local"}, InvalidConfig, "'row', 'global'"),
    ({"not_finite": "zero"}, InvalidConfig, "'reject', 'skip_row'"),
    ({"clip_norm": 0}, InvalidConfig, "clip_norm is 0, below 1.17549e-38"),
    ({"clip_value": -1.0}, InvalidConfig, "clip_value is -1"),
    ({"weight_min": 1.0, "weight_max": 1.0}, InvalidConfig, "weight_min 1.0 is not below weight_max 1.0"),
    ({"weight_max": float("inf")}, InvalidConfig, "weight_max is inf"),
    ({"weight_min": -1e39}, InvalidConfig, r"weight_min is -1e\+39, below"),
    ({"weight_max": 1e39}, InvalidConfig, r"weight_max is 1e\+39, above"),
    ({"clip_value": 1e-50}, InvalidConfig, "clip_value is 1e-50, below 1.17549e-38"),
    ({"clip_norm": 1e50}, InvalidConfig, r"clip_norm is 1e\+50, above"),
    ({"miss_value": 1e39}, InvalidConfig, r"miss_value is 1e\+39"),
    ({"unadmitted_value": -1e39}, InvalidConfig, r"unadmitted_value is -1e\+39"),
    ({"padding_key": 2**64}, InvalidConfig, "padding_key"),
    ({"miss_value": "first"}, InvalidConfig, "miss_value is 'first', not a finite number .nor \"initializer\""),
    ({"unadmitted_value": float("nan")}, InvalidConfig, "unadmitted_value is nan"),
    ({"admission": {"name": "lottery"}}, UnknownName, "lottery.*min_count"),
    ({"admission": {"name": "min_count", "cout": 3}}, UnknownName, "cout.*count"),
    ({"admission": {"name": "min_count", "count": 0}}, InvalidConfig, "min_count: count=0 must be at least 1"),
    ({"admission": {"name": "probability", "p": 1.5}}, InvalidConfig, r"probability: p=1.5 must be in \(0, 1\]"),
    ({"admission": {"count": 3}}, InvalidConfig, "give a mapping like.*min_count"),
]


@pytest.mark.parametrize(("options", "error", "message"), CONFIGS)
def test_a_group_that_cannot_be_is_refused_and_not_created(
    open_storage: OpenStorage, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    storage = open_storage()
    with pytest.raises(error, match=message):
        embedding(storage, **options)
    assert storage.stats()["groups"] == {}
    storage.close()
    assert open_storage().stats()["groups"] == {}


def test_an_invalid_change_of_a_groups_settings_leaves_the_store_as_it_was(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(KEYS, ones(2))
    storage.close()
    storage = open_storage()
    with pytest.raises(UnknownName, match="lottery"):
        embedding(storage, admission={"name": "lottery"})
    killed = as_after_kill(storage, tmp_path / "killed")
    storage.close()
    for name in ("store", str(killed)):
        np.testing.assert_array_equal(embedding(open_storage(name)).lookup(KEYS, train=False), np.full((2, 4), -0.5))


def test_every_problem_of_a_config_is_named_at_once(open_storage: OpenStorage) -> None:
    with pytest.raises(InvalidConfig) as caught:
        embedding(open_storage(), 0, -3, clip_norm=-1.0, refresh="x")
    assert all(text in str(caught.value) for text in ("dimension is 0", "group is -3", "clip_norm", "refresh is 'x'"))


STORES: list[tuple[dict[str, Any], str]] = [
    ({"memory_budget": 1000}, r"memory_budget is 1000, outside 65536\.\."),
    ({"memory_budget": 1e9}, "memory_budget is 1000000000.0, not an int"),
    ({"fsync": "sometimes"}, "fsync is 'sometimes', not one of 'never', 'interval', 'always'"),
    ({"fsync_interval": 0}, "fsync_interval is 0"),
    ({"write_back_interval": -1}, "write_back_interval is -1"),
    ({"journal_bytes_max": 10}, "journal_bytes_max is 10"),
    ({"ttl": -5}, "ttl is -5, below 0"),
    ({"block_cache_bytes": -1}, "block_cache_bytes is -1"),
    ({"sweep_rows_s": -1}, "sweep_rows_s is -1"),
    ({"read_only": 1}, "read_only is 1, not True or False"),
    ({"read_only": True, "repair": True}, "give one of them"),
]


@pytest.mark.parametrize(("options", "message"), STORES)
def test_a_store_with_impossible_settings_is_refused_before_anything_is_made(
    open_storage: OpenStorage, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        open_storage("never", **options)
    assert not (tmp_path / "never").exists()
    with pytest.raises(StoreNotFound, match="never holds no store"):
        open_storage("never", read_only=True)
    assert not (tmp_path / "never").exists()


RULES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: PyOptimizer(name="sdg"), UnknownName, "sdg.*adagrad.*sgd"),
    (lambda: PyOptimizer(name="sgd", gama=0.1), UnknownName, "gama.*gamma"),
    (lambda: PyOptimizer(name="sgd", gamma=-0.1), InvalidConfig, "gamma.*-0.1"),
    (lambda: PyOptimizer(name="adagrad", lr=-1), InvalidConfig, "adagrad: gamma=-1 must"),
    (lambda: PyOptimizer({"name": "sgd"}, {"name": "cosin"}), UnknownName, "cosin.*cosine_decay"),
    (lambda: PyInitializer(name="uniform_random"), UnknownName, "uniform_random.*random_uniform"),
    (lambda: PyInitializer(name="zeros", value=1), UnknownName, "'value' is unknown"),
]


@pytest.mark.parametrize(("make", "error", "message"), RULES)
def test_an_unknown_rule_or_parameter_or_a_negative_rate_is_an_error_that_names_the_known_ones(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.embedded
def test_an_embedding_takes_rules_as_objects(storage: PyStorage) -> None:
    with pytest.raises(WrongDtype, match="PyOptimizer and a PyInitializer, not PyStorage, str and PyInitializer"):
        PyEmbedding(storage, "sgd", zeros(), 4)  # type: ignore[arg-type]


CONFLICTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dim": 8}, DimMismatch, r"stores rows of dim 4 \(dimension=4\), not 8"),
    ({"optimizer": adagrad()}, GroupConflict, "optimizer 'sgd'.*'adagrad'"),
    ({"initializer": uniform()}, GroupConflict, "begin by initializer.*zeros.*random_uniform"),
    ({"seed": 3}, GroupConflict, "seed is 0, not 3"),
]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(("options", "error", "message"), CONFLICTS)
def test_what_is_fixed_at_creation_cannot_be_opened_otherwise(
    open_storage: OpenStorage, options: dict[str, Any], error: type[Exception], message: str, reopened: bool
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(KEYS, ones(2))
    if reopened:
        storage.close()
        storage = open_storage()
    with pytest.raises(error, match=message):
        embedding(storage, **options)
    np.testing.assert_array_equal(embedding(storage).lookup(KEYS, train=False), np.full((2, 4), -0.5))


def test_a_group_open_in_the_process_cannot_be_opened_with_other_settings(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, ttl=10)
    with pytest.raises(GroupConflict, match=r"ttl 10 / 20.*close the storage first"):
        embedding(storage, ttl=20)
    with pytest.raises(GroupConflict, match=r"gamma"):
        embedding(storage, ttl=10, optimizer=sgd(0.1))
    twice = embedding(storage, ttl=10)
    twice.apply_gradients(KEYS, ones(2))
    np.testing.assert_array_equal(rows.lookup(KEYS), np.full((2, 4), -0.5))


def test_a_new_learning_rate_is_a_recorded_change_that_applies_from_then_on(
    open_storage: OpenStorage, tmp_path: Path
) -> None:

    storage = open_storage()
    embedding(storage, optimizer=sgd(0.5)).apply_gradients(KEYS, ones(2))
    middle = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    embedding(middle, optimizer=sgd(0.25)).apply_gradients(KEYS, ones(2))
    # both pushes are replayed, each at the rate that was in force
    after = open_storage(str(as_after_kill(middle, tmp_path / "again")))
    np.testing.assert_array_equal(
        embedding(after, optimizer=sgd(0.125)).lookup(KEYS, train=False), np.full((2, 4), -0.75)
    )


def test_numpy_scalars_are_as_good_as_pythons(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=np.int64(1 << 20), ttl=np.float32(3.5))
    dimension, group, options = np.int64(4), np.uint16(7), {"seed": np.uint64(2**63), "clip_norm": np.float32(1)}
    rows = embedding(storage, dimension, group, ttl=np.float64(9), **options)  # type: ignore[arg-type]
    assert [type(value) for value in (rows.dim, rows.group, rows.config.seed)] == [int] * 3
    rows.apply_gradients(KEYS, ones(2), request=("trainer", np.int64(1)))  # type: ignore[arg-type]
    assert storage.last_request("trainer") == 1
    storage.close()
    assert open_storage().stats()["groups"][7]["rows"] == 2


@pytest.mark.parametrize("step", [0, -1, 2**62 + 1, 2**63, 1.0, True, "1"])
def test_a_global_step_that_is_none_is_refused(storage: PyStorage, step: Any) -> None:
    rows = embedding(storage, step="global")
    with pytest.raises(InvalidConfig, match="global_step is"):
        rows.global_step = step
    rows.global_step = 2**62
    rows.apply_gradients(KEYS, ones(2))


@pytest.mark.parametrize(
    "conditions",
    [{"max_age": float("inf")}, {"max_age": 1e12}, {"min_count": "2"}, {"min_norm": -1}, {"max_age": True}],
)
def test_a_shrink_that_cannot_be_is_refused(storage: PyStorage, conditions: dict[str, Any]) -> None:
    embedding(storage).apply_gradients(KEYS, ones(2))
    with pytest.raises(InvalidConfig, match=f"{next(iter(conditions))} is"):
        storage.shrink(**conditions)
    with pytest.raises(UnknownGroup, match="group '0' does not exist"):
        storage.shrink(group="0")  # type: ignore[arg-type]
    assert storage.stats()["rows"] == 2


def test_objects_of_the_wrong_kind_are_named(storage: PyStorage) -> None:
    rows = embedding(storage)
    with pytest.raises(WrongDtype, match="takes a PyStorage, a PyOptimizer and a PyInitializer, not str,"):
        PyEmbedding("./model", sgd(), zeros(), 4)  # type: ignore[arg-type]
    for items in ((rows, KEYS, ones(2)), [(rows, KEYS)], [("rows", KEYS, ones(2))]):
        with pytest.raises(WrongDtype, match="a push takes a list of"):
            storage.apply_gradients(items)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="name='adam'"):
        PyOptimizer("adam")  # type: ignore[arg-type]

    class Halved:
        def rate(self, lr: float, step: Any) -> Any:
            return lr / 2

    with pytest.raises(InvalidConfig, match="schedule: expected Parameters or a mapping"):
        PyOptimizer({"name": "sgd"}, Halved())  # type: ignore[arg-type]
    assert storage.stats()["rows"] == 0


def test_an_unknown_group_is_named_with_the_known_ones(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage, group=3)
    for call in (lambda: storage.shrink(group=7), lambda: storage.dump("unused", {"group": 7})):
        with pytest.raises(UnknownGroup, match=r"group 7 does not exist .*known: 3.*open a PyEmbedding"):
            call()


def test_an_embedding_of_another_storage_and_a_group_given_twice_are_refused_whole(open_storage: OpenStorage) -> None:
    storage, other = open_storage(), open_storage("other")
    mine, theirs = embedding(storage), embedding(other)
    with pytest.raises(InvalidConfig, match="belongs to another storage"):
        storage.apply_gradients([(mine, KEYS, ones(2)), (theirs, KEYS, ones(2))])
    with pytest.raises(WrongShape, match=r"once, the groups sent are \[0, 0\]: concatenate"):
        storage.apply_gradients([(mine, KEYS, ones(2)), (mine, KEYS, ones(2))])
    assert storage.stats()["rows"] == other.stats()["rows"] == 0
    assert_sound(storage)
