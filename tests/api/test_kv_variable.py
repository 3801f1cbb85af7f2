"""Variables of rows by key: made, found again, looked up by ids of any kind, trained, on one storage and on several."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rockbed
from rockbed import (
    AUTO_REUSE,
    DimMismatch,
    GradientNotFinite,
    GroupConflict,
    InvalidBackward,
    InvalidConfig,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    StorageClosed,
    UnknownGroup,
    UnknownName,
    WrongDtype,
    WrongShape,
    embedding_lookup,
    fixed_size_partitioner,
    get_collection,
    variable_scope,
)
from rockbed.client.hashing import fingerprint64
from rockbed.optimizers import optimizer_names
from tests.api.helpers import OpenStorage, keys_of, ones, run_python, sgd, uniform
from tests.api.variables import initial, spread, storages, variable

# --- lookups and gradients ---


@spread
def test_ids_of_any_rank_give_rows_of_that_rank(open_storage: OpenStorage, parts: int, count: int) -> None:
    rows = variable(storages(open_storage, count), partitioner=fixed_size_partitioner(parts))
    first = initial(rows, 1, 2, 10**15, -7)
    for ids, wanted in (
        (keys_of(1, 2, 10**15, -7), first),
        (np.array([[1, 2], [10**15, -7]]), first.reshape(2, 2, 4)),
        (np.array(2), first[1]),
        ([[[1], [1]]], first[[0, 0]].reshape(1, 2, 1, 4)),
        (np.empty((0, 3), np.int64), np.empty((0, 3, 4), np.float32)),
    ):
        found = embedding_lookup(rows, ids)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)


@spread
def test_gradients_reach_the_rows_of_their_ids(open_storage: OpenStorage, parts: int, count: int) -> None:
    rows = variable(storages(open_storage, count), partitioner=fixed_size_partitioner(parts))
    ids = np.random.default_rng(3).integers(-500, 500, (40, 25))
    grads = np.random.default_rng(4).normal(size=(40, 25, 4)).astype(np.float32)
    assert rows.apply_gradients(ids, grads)
    distinct, where = np.unique(ids, return_inverse=True)
    summed = np.zeros((distinct.size, 4))
    np.add.at(summed, where.reshape(-1), grads.reshape(-1, 4))
    found = rows.lookup(distinct, train=False)
    np.testing.assert_allclose(found, initial(rows, *distinct.tolist()) - summed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_trains_a_spread_variable_as_one_group(open_storage: OpenStorage, name: str) -> None:
    spread_out = variable(storages(open_storage, 2), optimizer=name)
    plain = PyEmbedding(open_storage("alone"), PyOptimizer(name=name), uniform(), 4, spread_out.config.group)
    random = np.random.default_rng(5)
    for _ in range(3):
        ids = random.integers(0, 60, 100)
        grads = random.normal(size=(100, 4)).astype(np.float32)
        spread_out.apply_gradients(ids, grads)
        plain.apply_gradients(ids, grads)
    np.testing.assert_array_equal(spread_out.lookup(np.arange(60)), plain.lookup(np.arange(60)))


def test_what_was_looked_up_takes_its_gradient_once(storage: PyStorage) -> None:
    rows = variable(storage)
    found = rows.lookup([[1, 2], [2, 3]])
    assert found.apply_gradients(ones(4).reshape(2, 2, 4)) is True
    np.testing.assert_allclose(rows.lookup([1, 2, 3]), initial(rows, 1, 2, 3) - np.array([[1], [2], [1]]), rtol=1e-6)
    with pytest.raises(InvalidBackward, match="has been applied"):
        found.apply_gradients(ones(4).reshape(2, 2, 4))


def test_what_is_computed_from_rows_has_no_gradient_of_its_own(storage: PyStorage) -> None:
    rows = variable(storage)
    found = rows.lookup([1, 2])
    assert type(found * 2) is type(found + found) is type(np.exp(found)) is np.ndarray
    assert isinstance(found.sum(), np.float32)
    with pytest.raises(InvalidBackward, match="a part or a view"):
        found[:1].apply_gradients(ones(1))
    with pytest.raises(InvalidBackward, match="train=False"):
        rows.lookup([1, 2], train=False).apply_gradients(ones(2))
    with pytest.raises(WrongShape, match=r"float32\[2, 4\], not float32\[1, 4\]"):
        found.apply_gradients(ones(1))
    with pytest.raises(WrongDtype):
        found.apply_gradients(np.ones((2, 4)))
    assert found.apply_gradients(ones(2))  # a call that was refused has not used it up


@spread
def test_a_repeated_request_is_applied_once(open_storage: OpenStorage, parts: int, count: int) -> None:
    rows = variable(storages(open_storage, count), partitioner=fixed_size_partitioner(parts))
    ids = np.arange(50)
    assert rows.apply_gradients(ids, ones(50), request=("trainer", 1)) is True
    assert rows.apply_gradients(ids, ones(50), request=("trainer", 1)) is False
    assert rows.lookup(ids).apply_gradients(ones(50), ("trainer", 2)) is True
    np.testing.assert_allclose(rows.lookup(ids), initial(rows, *range(50)) - 2, rtol=1e-5)


def test_a_gradient_that_is_not_finite_reaches_none_of_the_storages(open_storage: OpenStorage) -> None:
    rows = variable(storages(open_storage, 2))
    grads = ones(50)
    grads[17, 2] = np.nan
    with pytest.raises(GradientNotFinite):
        rows.apply_gradients(np.arange(50), grads)
    np.testing.assert_array_equal(rows.lookup(np.arange(50)), initial(rows, *range(50)))
    skipping = variable(rows.storages, "other", not_finite="skip_row")
    skipping.apply_gradients(np.arange(50), grads)
    changed = (skipping.lookup(np.arange(50)) != initial(skipping, *range(50))).any(axis=1)
    assert not changed[17]
    assert changed.sum() == 49


def test_the_global_step_is_one_for_all_storages(open_storage: OpenStorage) -> None:
    rows = variable(storages(open_storage, 2), step="global")
    with pytest.raises(InvalidConfig, match="global_step"):
        rows.apply_gradients([1, 2], ones(2))
    rows.global_step = 5
    rows.apply_gradients(np.arange(20), ones(20))
    assert rows.global_step == 5


def test_rows_are_fetched_ahead(open_storage: OpenStorage) -> None:
    rows = variable(storages(open_storage, 2))
    rows.lookup(np.arange(10))
    found = [each.result() for each in rows.prefetch(np.arange(12))]
    assert np.sum(found, axis=0).tolist() == [10, 2]


# --- keys ---


def test_integer_ids_are_keys_as_they_are(storage: PyStorage) -> None:
    signed = variable(storage)
    extremes = [-(2**63), -1, 0, 2**63 - 1]
    np.testing.assert_array_equal(signed.lookup(keys_of(*extremes)), initial(signed, *extremes))
    np.testing.assert_array_equal(signed.lookup(np.array([-1, 5], np.int32)), initial(signed, -1, 5))
    narrow = variable(storage, "narrow", key_dtype=np.int32)
    np.testing.assert_array_equal(narrow.lookup(np.array([-(2**31), 7], np.int32)), initial(narrow, -(2**31), 7))
    np.testing.assert_array_equal(narrow.lookup([-3, 2**31 - 1]), initial(narrow, -3, 2**31 - 1))
    unsigned = variable(storage, "unsigned", key_dtype=np.uint64)
    np.testing.assert_array_equal(unsigned.lookup(np.array([2**64 - 1], np.uint64)), initial(unsigned, 2**64 - 1))
    np.testing.assert_array_equal(unsigned.lookup([2**63, 1]), initial(unsigned, 2**63, 1))


def test_strings_are_keys_by_their_fingerprint(storage: PyStorage) -> None:
    words = variable(storage, key_dtype=str)
    names = ["", "a", "größer", "x" * 100]
    keys = fingerprint64(names).tolist()
    np.testing.assert_array_equal(words.lookup(names), initial(words, *keys))
    np.testing.assert_array_equal(words.lookup(np.array(names).reshape(2, 2))[1, 0], initial(words, keys[2])[0])
    np.testing.assert_array_equal(words.lookup([name.encode() for name in names]), initial(words, *keys))
    words.apply_gradients(["a", "a"], ones(2))
    np.testing.assert_allclose(words.lookup("a"), initial(words, keys[1])[0] - 2, rtol=1e-6)
    np.testing.assert_array_equal(words.lookup([b"a\0"]), initial(words, *fingerprint64([b"a\0"]).tolist()))


@pytest.mark.parametrize(
    ("key_dtype", "ids"),
    [
        (np.int64, ["1", "2"]),
        (np.int64, np.array(["1"])),
        (np.int64, np.array([1.0])),
        (np.int64, [0.5]),
        (np.int64, np.array([1], np.uint64)),
        (np.int64, [2**63]),
        (np.int64, [True]),
        (np.int64, None),
        (np.int64, [[1], [2, 3]]),
        (np.int32, np.array([1])),
        (np.int32, [2**31]),
        (np.uint64, np.array([1])),
        (np.uint64, [-1]),
        (str, [1, 2]),
        (str, np.array([1])),
        (str, ["a", 1]),
        (str, [None]),
    ],
)
def test_ids_of_another_dtype_are_an_error(storage: PyStorage, key_dtype: Any, ids: Any) -> None:
    rows = variable(storage, key_dtype=key_dtype)
    for call in (rows.lookup, rows.part_of, lambda ids: rows.apply_gradients(ids, ones(1))):
        with pytest.raises(WrongDtype, match=r"variable 'test/rows' has .* keys"):
            call(ids)


# --- making, and finding again ---


def test_a_name_finds_the_same_rows_after_a_restart(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        rows = variable(storage, optimizer=PyOptimizer(name="adagrad", gamma=0.25), initializer="ones")
        rows.apply_gradients([3, 4], ones(2))
        trained = np.array(rows.lookup([3, 4, 5]))
        assert storage.names() == {"test/rows": rows.config.group}
    with open_storage() as storage, variable_scope("test", storage=storage):
        again = rockbed.get_kv_variable("rows", 4)  # optimizer and initializer are those that are stored
        np.testing.assert_array_equal(again.lookup([3, 4, 5]), trained)
        assert (again.config.optimizer["name"], again.config.optimizer["gamma"]) == ("adagrad", 0.25)


def test_a_new_variable_says_what_it_is_made_of(storage: PyStorage) -> None:
    rows = rockbed.get_kv_variable("rows", 4, storage=storage)
    assert (rows.name, rows.dim, rows.key_dtype, rows.parts) == ("rows", 4, "int64", 1)
    assert rows.config.optimizer["name"] == "adagrad"
    assert rows.config.initializer == {"name": "random_uniform", "min": -0.05, "max": 0.05}
    assert (rows.storages, rows.embedding.storage) == ((storage,), storage)
    assert repr(rows) == "KvVariable('rows', dim=4, int64 keys, 1 part)"


def test_what_is_not_said_again_stays_as_it_was(open_storage: OpenStorage) -> None:
    said: dict[str, Any] = {"enter_threshold": 2, "constraint": "non_neg", "ttl": 60, "seed": 7, "step": "global"}
    with open_storage() as storage:
        config = variable(storage, **said).config
    with open_storage() as storage:
        assert rockbed.get_kv_variable("test/rows", 4, storage=storage).config == config
    with open_storage() as storage:
        ended = rockbed.get_kv_variable("test/rows", 4, storage=storage, ttl=0, admission=None, weight_min=None).config
        assert (ended.ttl_s, ended.admission, ended.weight_min, ended.seed) == (0, None, None, 7)


@pytest.mark.embedded
def test_a_store_that_is_read_serves_a_variable_by_its_name(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        rows = variable(storage, ttl=60)
        rows.apply_gradients([1], ones(1))
        wanted = np.array(rows.lookup([1, 2]))
    with PyStorage(tmp_path / "store", read_only=True) as storage:
        serving = rockbed.get_kv_variable("test/rows", 4, storage=storage, trainable=False)
        np.testing.assert_array_equal(serving.lookup([1, 2]), wanted)


def test_threads_that_ask_for_one_name_get_one_variable(storage: PyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    names = type(storage).groups

    def slowly(self: PyStorage) -> Any:
        found = names(self)
        time.sleep(0.05)  # between looking and making
        return found

    monkeypatch.setattr(type(storage), "groups", slowly)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: variable(storage, reuse=AUTO_REUSE), range(4)))
    assert len(set(map(id, made))) == 1
    assert rockbed.Saver(made[:1])


def test_reuse_takes_what_is_there(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        rows = variable(storage)
        with pytest.raises(InvalidConfig, match="'test/rows' exists already"):
            variable(storage)
        for reuse in (True, AUTO_REUSE):
            assert variable(storage, reuse=reuse) is rows
        with pytest.raises(UnknownName, match="no variable 'test/other'"):
            variable(storage, "test/other", reuse=True)
        other = variable(storage, "test/other", reuse=AUTO_REUSE)
        assert other is not rows
    with open_storage() as storage:  # what the store has is there to be reused, and may be opened without saying so
        assert variable(storage, reuse=True).name == "test/rows"
        assert variable(storage, "test/other").name == "test/other"


def test_a_variable_is_reused_as_it_is_or_not_at_all(open_storage: OpenStorage) -> None:
    a, b = storages(open_storage, 2)
    variable(a, partitioner=fixed_size_partitioner(5), ttl=60)
    with pytest.raises(DimMismatch, match="rows of dim 4, not 8"):
        variable(a, dim=8, reuse=True)
    for other, message in (
        ({"key_dtype": str}, "key_dtype is 'int64', not 'string'"),
        ({"partitioner": fixed_size_partitioner(3)}, "number of parts is 5, not 3"),
        ({"trainable": False}, "trainable is True, not False"),
        ({"optimizer": sgd(0.5)}, "optimizer is .*1.0.*not .*0.5"),
        ({"initializer": "zeros"}, "initializer is"),
        ({"ttl": 30}, "ttl is 60, not 30"),
    ):
        with pytest.raises(GroupConflict, match=message):
            variable(a, reuse=True, **other)
    with pytest.raises(GroupConflict, match="storage is"):
        variable([a, b], reuse=True)


def test_all_that_is_said_again_of_an_open_variable_must_agree(storage: PyStorage) -> None:
    said: dict[str, Any] = {
        "optimizer": PyOptimizer({"name": "sgd", "gamma": 1.0}, {"name": "cosine_decay", "decay_steps": 10}),
        "enter_threshold": 2,
        "constraint": (-1, None),
        "collections": ["mine"],
    }
    rows = variable(storage, **said)
    assert variable(storage, reuse=True, **said) is rows
    for other in ({"optimizer": sgd(1.0)}, {"enter_threshold": 3}, {"constraint": (-2, 2)}, {"collections": ["yours"]}):
        with pytest.raises(GroupConflict, match="is open in this process"):
            variable(storage, reuse=True, **{**said, **other})


def test_a_stored_variable_of_another_kind_is_an_error(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        variable(storage)
        PyEmbedding(storage, sgd(), PyInitializer(), 4, "plain")
        PyEmbedding(storage, sgd(), PyInitializer(), 4, "other", variable={"kind": "another"})
    with open_storage() as storage:
        with pytest.raises(DimMismatch, match="dim 4"):
            variable(storage, dim=8)
        with pytest.raises(GroupConflict, match="key_dtype"):
            variable(storage, key_dtype=np.int32)
        for name in ("plain", "other"):
            with pytest.raises(GroupConflict, match=f"'{name}' is the name of group .*, which is no variable"):
                variable(storage, name)


def test_the_number_of_parts_may_change_between_openings_of_one_storage(open_storage: OpenStorage) -> None:
    ids = np.arange(100)
    with open_storage() as storage:
        rows = variable(storage, partitioner=fixed_size_partitioner(5))
        assert set(rows.part_of(ids)) == set(range(5))
        rows.apply_gradients(ids, ones(100))
    for parts in (3, 7):
        with open_storage() as storage:
            rows = variable(storage, partitioner=fixed_size_partitioner(parts))
            assert (rows.parts, set(rows.part_of(ids))) == (parts, set(range(parts)))
            np.testing.assert_allclose(rows.lookup(ids), initial(rows, *range(100)) - 1, rtol=1e-5)
    with open_storage() as storage:
        assert variable(storage).parts == 7


def test_rows_that_would_lie_elsewhere_are_not_looked_for_there(open_storage: OpenStorage) -> None:
    with open_storage("a") as a, open_storage("b") as b:
        assert variable([a, b]).parts == 2
    with open_storage("a") as a, open_storage("b") as b:
        assert variable([a, b], partitioner=fixed_size_partitioner(4)).parts == 4
    with open_storage("a") as a, open_storage("b") as b:
        for where, parts in (([a, b], 5), ([a], 1), ([a, b, open_storage("c")], 3)):
            with pytest.raises(InvalidConfig, match=r"would lie elsewhere.*rockbed\.Saver"):
                variable(where, partitioner=fixed_size_partitioner(parts))
        with pytest.raises(GroupConflict, match="storage"):
            variable([b, a])
        assert variable([a, b]).parts == 4


def test_a_storage_that_has_never_had_the_variable_is_not_taken_for_another(open_storage: OpenStorage) -> None:
    a, b, c = storages(open_storage, 3)
    variable([a, b]).lookup(np.arange(20))
    a.close()
    b.close()
    with open_storage("a") as a, open_storage("b") as b:
        for where in ([a, c], [c, b]):
            with pytest.raises(GroupConflict, match="does not know it"):
                variable(where)
        assert c.names() == {}
        a.drop_group(a.names()["test/rows"])
        b.shrink(max_age=0)
        assert variable([a, b]).lookup(np.arange(20)).any()  # as after a kill while it was being made


def test_a_number_that_is_taken_on_one_of_the_storages_is_an_error(open_storage: OpenStorage) -> None:
    a, b = storages(open_storage, 2)
    number = variable(a, "probe").config.group
    PyEmbedding(b, sgd(), PyInitializer(), 2, number)
    with pytest.raises(GroupConflict, match=f"is group {number} in .*, and cannot be that in"):
        variable([c := open_storage("c"), b], "probe")
    assert c.names() == {}
    assert b.names() == {}


def test_variables_of_other_scopes_and_storages_are_others(open_storage: OpenStorage) -> None:
    a, b = storages(open_storage, 2)
    ours, theirs, elsewhere = variable(a, "x/rows"), variable(a, "y/rows"), variable(b, "x/rows")
    ours.apply_gradients([1], ones(1))
    np.testing.assert_array_equal(theirs.lookup([1]), initial(theirs, 1))
    np.testing.assert_array_equal(elsewhere.lookup([1]), initial(elsewhere, 1))
    assert ours.config.group == elsewhere.config.group != theirs.config.group


def test_a_scope_gives_what_its_variables_do_not_say(storage: PyStorage) -> None:
    with variable_scope("s", storage=storage, initializer="ones", partitioner=fixed_size_partitioner(3)):
        ours = rockbed.get_kv_variable("ours", 2)
        own = rockbed.get_kv_variable("own", 2, initializer="zeros", partitioner=fixed_size_partitioner(2))
    assert (ours.lookup([1]).tolist(), ours.parts) == ([[1, 1]], 3)
    assert (own.lookup([1]).tolist(), own.parts) == ([[0, 0]], 2)


def test_collections_find_variables_until_their_storage_is_closed(open_storage: OpenStorage) -> None:
    storage = open_storage()
    plain, named = variable(storage, "plain"), variable(storage, "named", collections=["mine"])
    fixed = variable(storage, "fixed", trainable=False)

    def found(name: str) -> list[Any]:
        return [each for each in get_collection(name) if storage in each.storages]

    assert found("variables") == [plain, fixed]
    assert found("trainable_variables") == [plain, named]
    assert found("mine") == [named]
    named.drop()
    assert found("mine") == []
    storage.close()
    assert found("variables") == []


def test_a_variable_that_is_not_trainable_changes_nothing(storage: PyStorage) -> None:
    rows = variable(storage, trainable=False)
    found = rows.lookup([1, 2])
    np.testing.assert_array_equal(found, initial(rows, 1, 2))
    assert storage.stats()["rows"] == 0
    with pytest.raises(InvalidConfig, match="trainable=False"):
        rows.apply_gradients([1], ones(1))
    with pytest.raises(InvalidConfig, match="trainable=False"):
        rows.lookup([1], train=True)
    with pytest.raises(InvalidBackward):
        found.apply_gradients(ones(2))


def test_a_key_has_no_row_before_its_threshold(storage: PyStorage) -> None:
    rows = variable(storage, enter_threshold=3)
    for _ in range(2):
        np.testing.assert_array_equal(rows.lookup([1]), initial(rows, 1))
        rows.apply_gradients([1], ones(1))
    assert storage.stats()["rows"] == 0
    rows.lookup([1]).apply_gradients(ones(1))
    np.testing.assert_allclose(rows.lookup([1]), initial(rows, 1) - 1, rtol=1e-6)
    rows.lookup([2, 2, 2])  # three in one call
    assert storage.stats()["rows"] == 2


@pytest.mark.parametrize(
    ("constraint", "low", "high"), [((-0.5, 0.25), -0.5, 0.25), ((None, 1.5), -9.0, 1.5), ("non_neg", 0.0, 9.0)]
)
def test_a_constraint_bounds_weights_after_each_update(
    storage: PyStorage, constraint: Any, low: float, high: float
) -> None:
    rows = variable(storage, constraint=constraint, initializer="zeros")
    rows.apply_gradients([1, 2], np.repeat([[9.0], [-9.0]], 4, axis=1).astype(np.float32))
    np.testing.assert_array_equal(rows.lookup([1, 2]), np.repeat([[low], [high]], 4, axis=1))


def test_drop_removes_the_rows_and_the_name(open_storage: OpenStorage) -> None:
    both = storages(open_storage, 2)
    rows = variable(both)
    rows.lookup(np.arange(20))
    assert rows.drop() == 20
    assert [storage.names() for storage in both] == [{}, {}]
    with pytest.raises(UnknownGroup):
        rows.lookup([1])
    new = variable(both)  # the name is free
    assert rows.config.group == new.config.group
    assert get_collection("variables")[-1] is new


def test_a_variable_that_somebody_else_dropped_and_made_anew_is_not_taken_for_the_old_one(
    open_storage: OpenStorage,
) -> None:
    both = storages(open_storage, 2)
    old = variable(both)
    old.lookup(np.arange(20))
    for each, storage in zip(old.embeddings, both, strict=True):
        storage.drop_group(each.group)
    for each in old.embeddings:
        built_on = each.config.variable
        PyEmbedding(each.storage, sgd(1.0), uniform(), 4, "test/rows", variable=built_on, miss_value="initializer")
    for train in (True, False):
        with pytest.raises(UnknownGroup, match="another one than was opened"):
            old.lookup([1], train=train)
    assert old.drop() == 0
    new = variable(both)
    new.lookup(np.arange(20))
    assert variable(both, reuse=True) is new
    for each, storage in zip(new.embeddings, both, strict=True):
        storage.drop_group(each.group)
    with pytest.raises(UnknownName, match="no variable 'test/rows'"):
        variable(both, reuse=True)
    assert variable(both, reuse=AUTO_REUSE).lookup([1]).any()


def test_a_drop_that_failed_on_one_storage_is_repeated(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = storages(open_storage, 2)
    rows = variable(both)
    rows.lookup(np.arange(20))

    def fail(*_: int) -> int:
        raise StorageClosed("away")

    with monkeypatch.context() as patched:
        patched.setattr(both[1].backend, "drop_group", fail)
        with pytest.raises(StorageClosed, match="away"):
            rows.drop()
    assert 0 < rows.drop() < 20
    assert [storage.names() for storage in both] == [{}, {}]
    assert rows.drop() == 0


def test_no_push_goes_on_where_another_one_cannot_begin(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = storages(open_storage, 2)
    rows = variable(both)
    apply, ended = both[0].backend.apply_gradients, []

    def slowly(*args: Any) -> bool:
        time.sleep(0.2)
        applied = apply(*args)
        ended.append(applied)
        return applied

    monkeypatch.setattr(both[0].backend, "apply_gradients", slowly)
    both[1].close()
    with pytest.raises(StorageClosed):
        rows.apply_gradients(np.arange(20), ones(20))
    assert ended == [True]


# --- what cannot be ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value_dtype": np.float16}, InvalidConfig, "float32, and nothing else"),
        ({"value_dtype": "weights"}, InvalidConfig, "float32, and nothing else"),
        ({"key_dtype": np.int16}, InvalidConfig, "not one of int32"),
        ({"partitioner": 5}, InvalidConfig, "fixed_size_partitioner"),
        ({"constraint": "unit_norm"}, InvalidConfig, "constraint is 'unit_norm'"),
        ({"constraint": (1, 0)}, InvalidConfig, "weight_min 1 is not below weight_max 0"),
        ({"constraint": (0, 1), "weight_min": 0.5}, InvalidConfig, "leave out weight_min"),
        ({"enter_threshold": -1}, InvalidConfig, "enter_threshold is -1"),
        ({"enter_threshold": 2, "admission": {"name": "probability", "p": 0.5}}, InvalidConfig, "leave out admission"),
        ({"trainable": "yes"}, InvalidConfig, "trainable is 'yes'"),
        ({"collections": "mine"}, InvalidConfig, "not a list of names"),
        ({"optimizer": "nope"}, UnknownName, "nope"),
        ({"initializer": {"name": "ones", "value": 2}}, UnknownName, "value"),
        ({"dim": 0}, InvalidConfig, "group 'test/rows': dimension"),
        ({"tll": 5}, TypeError, "tll"),
    ],
)
def test_what_a_variable_cannot_be_is_an_error(
    storage: PyStorage, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        variable(storage, **options)
    assert storage.names() == {}


def test_storages_that_cannot_be_are_an_error(storage: PyStorage) -> None:
    for given, error in (
        (None, InvalidConfig),
        ([], WrongDtype),
        ("./dir", WrongDtype),
        ([storage] * 2, InvalidConfig),
    ):
        with pytest.raises(error):
            variable(given)
    with pytest.raises(InvalidConfig, match="a str that is not empty"):
        rockbed.get_kv_variable("", 4, storage=storage)


def test_fewer_parts_than_storages_are_an_error(open_storage: OpenStorage) -> None:
    with pytest.raises(InvalidConfig, match="1 parts on 2 storages"):
        variable(storages(open_storage, 2), partitioner=fixed_size_partitioner(1))


def test_a_spread_variable_is_no_single_embedding(open_storage: OpenStorage) -> None:
    with pytest.raises(InvalidConfig, match="on 2 storages"):
        _ = variable(storages(open_storage, 2)).embedding


@spread
def test_a_closed_storage_is_not_used(open_storage: OpenStorage, parts: int, count: int) -> None:
    rows = variable(storages(open_storage, count), partitioner=fixed_size_partitioner(parts))
    found = rows.lookup(np.arange(30))
    for storage in rows.storages:
        storage.close()
    for call in (
        lambda: rows.lookup(np.arange(30)),
        lambda: rows.lookup([1], train=False),
        lambda: rows.apply_gradients(np.arange(30), ones(30)),
        lambda: found.apply_gradients(ones(30)),
    ):
        with pytest.raises(StorageClosed):
            call()


@pytest.mark.embedded
def test_a_forked_child_cannot_use_a_variable(tmp_path: Path) -> None:
    script = """
import warnings
import rockbed
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
places = [PyStorage(path) for path in sys.argv[1:]]
grads = np.ones((30, 2), np.float32)
for where in (places[:1], places):
    rows = rockbed.get_kv_variable(f"rows{len(where)}", 2, storage=where, initializer="zeros", optimizer="sgd")
    found = rows.lookup(np.arange(30))
    child = os.fork()
    if child == 0:
        answers = []
        for call in (
            lambda: rows.lookup(np.arange(30)),
            lambda: rows.apply_gradients(np.arange(30), grads),
            lambda: found.apply_gradients(grads),
        ):
            try:
                call()
            except Exception as error:
                answers.append(type(error).__name__ + str("across fork()" in str(error)))
        print(*answers, flush=True)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert found.apply_gradients(grads)
print("well")"""
    done = run_python(script, tmp_path / "a", tmp_path / "b")
    assert done.stdout.split() == ["StorageClosedTrue"] * 6 + ["well"], done.stderr
