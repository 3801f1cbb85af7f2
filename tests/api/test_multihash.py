"""Multi-hash variables: quotient and remainder tables, what is put together of them, and where gradients go."""

from math import prod
from typing import Any

import numpy as np
import pytest

from rockbed import (
    AUTO_REUSE,
    DimMismatch,
    GradientNotFinite,
    GroupConflict,
    IdOutOfRange,
    InvalidBackward,
    InvalidConfig,
    PermissionDenied,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    StorageClosed,
    StorageFull,
    WrongDtype,
    WrongShape,
    embedding_lookup,
    get_multihash_variable,
    quotient_remainder_dims,
    variable_scope,
)
from rockbed.client.hashing import fingerprint64
from rockbed.types import F64
from tests.api.helpers import OpenStorage, adagrad, sgd

OPERATIONS = ["add", "mul", "concat"]
SHAPES = {"add": [[3, 4], [5, 4]], "mul": [[3, 4], [5, 4]], "concat": [[3, 2], [5, 4]]}
PUT_TOGETHER: dict[str, Any] = {
    "add": lambda rows: np.sum(rows, axis=0),
    "mul": lambda rows: np.prod(rows, axis=0),
    "concat": np.concatenate,
}
NORMAL = {"name": "random_normal", "stddev": 1.0}


def made(storage: PyStorage, operation: str = "add", dims: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = {"operation": operation, "initializer": NORMAL, "optimizer": sgd(0.5), **options}
    dims = SHAPES.get(operation, SHAPES["add"]) if dims is None else dims
    return get_multihash_variable("mh", dims, storage=storage, **settings)


def tables_of(variable: Any) -> list[F64]:
    """All rows as they are."""
    rows = zip(variable.tables, variable.ids.radices, strict=True)
    return [np.array(table.lookup(np.arange(radix), train=True), np.float64) for table, radix in rows]


def combined(tables: list[F64], radices: list[int], ids: Any, operation: str) -> F64:
    """What the specification says, one id at a time."""
    found = []
    for one in np.ravel(ids):
        rest = int(one)
        rows: list[F64] = []
        for table, radix in zip(tables[::-1], radices[::-1], strict=True):
            rows.insert(0, table[rest % radix if len(rows) < len(tables) - 1 else rest])
            rest //= radix
        found.append(PUT_TOGETHER[operation](rows))
    return np.array(found)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 2), (), (0,)])
def test_an_embedding_is_put_together_from_the_rows_of_quotient_and_remainder(
    storage: PyStorage, operation: str, shape: tuple[int, ...]
) -> None:
    variable = made(storage, operation)
    ids = np.random.default_rng(5).integers(0, 15, shape)
    found = variable.lookup(ids)
    assert found.shape == (*shape, variable.dim)
    assert found.dtype == np.float32
    expected = combined(tables_of(variable), [3, 5], ids, operation).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_first_and_the_last_ids_of_each_quotient_have_their_rows(storage: PyStorage) -> None:
    variable = made(storage)
    quotients, remainders = variable.rows_of(np.array([0, 4, 5, 9, 10, 14]))
    assert quotients.tolist() == [0, 0, 1, 1, 2, 2]
    assert remainders.tolist() == [0, 4, 0, 4, 0, 4]


@pytest.mark.parametrize("radices", [[3, 5], [5, 3], [1, 7], [7, 1], [2, 3, 4], [4, 4, 4, 4]])
def test_no_two_ids_of_the_vocabulary_share_all_of_their_rows(storage: PyStorage, radices: list[int]) -> None:
    variable = made(storage, dims=[[radix, 2] for radix in radices], num_of_partitions=len(radices))
    assert variable.vocabulary == prod(radices)
    pairs = np.stack(variable.rows_of(np.arange(variable.vocabulary)))
    assert np.unique(pairs, axis=1).shape[1] == variable.vocabulary
    assert (pairs >= 0).all()
    assert (pairs.max(axis=1) == np.array(radices) - 1).all()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("way", ["of what was looked up", "by ids"])
@pytest.mark.parametrize("dims", [None, 3])
def test_gradients_reach_the_rows_of_every_table(storage: PyStorage, operation: str, way: str, dims: Any) -> None:
    shapes = SHAPES[operation] if dims is None else [*SHAPES[operation], [2, 4]]
    radices = [rows for rows, _ in shapes]
    variable = made(storage, operation, shapes, num_of_partitions=len(shapes))
    before = tables_of(variable)
    random = np.random.default_rng(6)
    ids = random.integers(0, variable.vocabulary, (4, 5))
    grads = random.normal(size=(4, 5, variable.dim)).astype(np.float32)
    if way == "by ids":
        assert variable.apply_gradients(ids, grads)
    else:
        assert variable.lookup(ids).apply_gradients(grads)

    expected = [table.copy() for table in before]
    for one, grad in zip(ids.ravel(), grads.reshape(20, -1).astype(np.float64), strict=True):
        at = [int(each) for each in variable.rows_of(one)]
        rows = [table[i] for table, i in zip(before, at, strict=True)]
        starts = np.cumsum([0, *[row.size for row in rows]])
        for i, row in enumerate(rows):
            others = np.prod([rows[j] for j in range(len(rows)) if j != i], axis=0) if operation == "mul" else 1
            own = grad[starts[i] : starts[i] + row.size] if operation == "concat" else grad
            expected[i][at[i]] -= 0.5 * own * others
    for found, wanted in zip(tables_of(variable), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert radices == variable.ids.radices


def test_a_push_to_the_tables_is_one_request_and_is_applied_once(storage: PyStorage) -> None:
    variable = made(storage)
    ids, ones = np.array([0, 7]), np.ones((2, 4), np.float32)
    assert variable.apply_gradients(ids, ones, request=("trainer", 1))
    rows = variable.lookup(ids, train=False)
    assert not variable.apply_gradients(ids, ones, request=("trainer", 1))
    assert (variable.lookup(ids, train=False) == rows).all()
    assert storage.last_request("trainer") == 1


def test_gradients_are_taken_once_for_a_lookup(storage: PyStorage) -> None:
    found = made(storage).lookup(np.array([1, 2]))
    found.apply_gradients(np.ones((2, 4), np.float32))
    with pytest.raises(InvalidBackward, match="has been applied"):
        found.apply_gradients(np.ones((2, 4), np.float32))


def test_a_nan_gradient_changes_no_table(storage: PyStorage) -> None:
    variable = made(storage, "concat")
    before = tables_of(variable)
    wrong = np.zeros((1, variable.dim), np.float32)
    wrong[0, -1] = np.nan  # in the columns of the last table
    with pytest.raises(GradientNotFinite):
        variable.apply_gradients(np.array([3]), wrong)
    for now, then in zip(tables_of(variable), before, strict=True):
        assert (now == then).all()


def test_the_function_of_variables_looks_them_up_too(storage: PyStorage) -> None:
    variable = made(storage)
    ids = np.arange(15)
    assert (embedding_lookup(variable, ids) == variable.lookup(ids)).all()


def test_looked_up_without_training_nothing_is_made(storage: PyStorage) -> None:
    variable = made(storage)
    assert not variable.lookup(np.arange(15), train=False).any()
    assert variable.memory().rows_now == 0
    variable.lookup(np.arange(15))
    assert variable.memory().rows_now == 8


def test_it_is_found_again_after_a_reopening(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        first = made(storage)
        first.apply_gradients(np.arange(15), np.ones((15, 4), np.float32))
        rows = np.array(first.lookup(np.arange(15)))
        assert sorted(storage.names()) == ["mh/0", "mh/1"]
    with open_storage() as storage:
        assert (made(storage).lookup(np.arange(15), train=False) == rows).all()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"dims": [[5, 4], [3, 4]]}, GroupConflict),
        ({"dims": [[3, 4], [6, 4]]}, GroupConflict),
        ({"dims": [[3, 8], [5, 8]]}, DimMismatch),
        ({"operation": "mul"}, GroupConflict),
        ({"vocabulary": 14}, GroupConflict),
        ({"modulus": 14}, GroupConflict),
    ],
)
def test_opened_again_otherwise_it_would_have_other_rows(
    open_storage: OpenStorage, changed: dict[str, Any], error: type[Exception]
) -> None:
    with open_storage() as storage:
        made(storage)
    with open_storage() as storage, pytest.raises(error):
        made(storage, **changed)


@pytest.mark.parametrize("ids", [[-1], [15], [0, 3, 99], [2**62]])
def test_ids_outside_of_the_vocabulary_are_refused_with_the_range(storage: PyStorage, ids: list[int]) -> None:
    variable = made(storage)
    calls: list[Any] = [
        lambda: variable.lookup(np.array(ids)),
        lambda: variable.apply_gradients(np.array(ids), np.ones((len(ids), 4), np.float32)),
    ]
    for call in calls:
        with pytest.raises(IdOutOfRange, match=rf"first {ids[-1]} at position {len(ids) - 1}, lie outside of 0\.\.14"):
            call()
    assert variable.memory().rows_now == 0


def test_a_stated_vocabulary_ends_before_the_product_of_the_tables(storage: PyStorage) -> None:
    variable = made(storage, vocabulary=13)
    variable.lookup(np.array([12]))
    with pytest.raises(IdOutOfRange, match=r"outside of 0\.\.12"):
        variable.lookup(np.array([13]))


def test_hashed_ids_come_into_the_vocabulary_by_a_modulus(storage: PyStorage) -> None:
    variable = made(storage, modulus=13)
    ids = np.array([0, 12, 13, 2**63 - 1, -1, -(2**63)])
    plain = [int(key) % 2**64 % 13 for key in ids]
    expected = combined(tables_of(variable), [3, 5], plain, "add")
    np.testing.assert_allclose(variable.lookup(ids), expected, rtol=1e-6)


def test_strings_are_hashed_and_come_by_a_modulus(storage: PyStorage) -> None:
    variable = made(storage, key_dtype=str, modulus=15)
    words = ["red", "green", "red"]
    plain = [int(key) % 15 for key in fingerprint64(words)]
    np.testing.assert_allclose(variable.lookup(words), combined(tables_of(variable), [3, 5], plain, "add"), rtol=1e-6)
    with pytest.raises(InvalidConfig, match="a modulus is missing"):
        get_multihash_variable("words", SHAPES["add"], key_dtype=str, storage=storage)
    with pytest.raises(WrongDtype):
        variable.lookup(np.array([1, 2]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dims": [[3, 4], [5, 6]]}, r"rows of \[4, 6\] weights cannot be combined by 'add'"),
        ({"dims": [[3, 4]]}, "dims has 1 tables, num_of_partitions is 2"),
        ({"dims": [[3, 4], [5, 4], [2, 4]]}, "dims has 3 tables"),
        ({"dims": [[0, 4], [5, 4]]}, r"dims\[0\]\[0\], its rows, is 0"),
        ({"dims": [[3, 4], [5, 0]]}, r"dims\[1\]\[1\], its weights, is 0"),
        ({"dims": [[3.5, 4], [5, 4]]}, "not an int"),
        ({"dims": [3, 5]}, "dims is"),
        ({"dims": "Q-R"}, "dims is"),
        ({"dims": [[2**40, 4], [2**40, 4]]}, "smaller ones suffice"),
        ({"num_of_partitions": 1}, "num_of_partitions is 1"),
        ({"complementary_strategy": "hash"}, "complementary_strategy is 'hash'"),
        ({"operation": "max"}, "operation is 'max', not one of 'add', 'mul', 'mult', 'concat'"),
        ({"operation": None}, "operation is None"),
        ({"vocabulary": 16}, "tell 15 ids apart: vocabulary is 16, outside 1..15"),
        ({"modulus": 16}, "modulus is 16, outside 1..15"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"dtype": np.float64}, "float32"),
        ({"initializer": "ones!"}, "ones!"),
    ],
)
def test_what_cannot_be_is_refused_and_makes_no_table(storage: PyStorage, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(storage, **given)
    assert storage.names() == {}


@pytest.mark.parametrize("ids", [np.array([0.5]), np.array([True]), ["a"], None])
def test_ids_of_another_kind_are_refused(storage: PyStorage, ids: Any) -> None:
    with pytest.raises(WrongDtype):
        made(storage).lookup(ids)


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (8,), (2, 4, 1)])
def test_gradients_of_another_shape_are_refused(storage: PyStorage, shape: tuple[int, ...]) -> None:
    variable = made(storage)
    with pytest.raises(WrongShape):
        variable.apply_gradients(np.array([1, 2]), np.ones(shape, np.float32))
    with pytest.raises(WrongShape):
        variable.lookup(np.array([1, 2])).apply_gradients(np.ones(shape, np.float32))


def test_products_of_rows_that_begin_as_zeros_are_warned_of(storage: PyStorage) -> None:
    with pytest.warns(UserWarning, match="never learns"):
        get_multihash_variable("z", SHAPES["mul"], operation="mult", initializer="zeros", storage=storage)
    get_multihash_variable("a", SHAPES["add"], operation="add", initializer="zeros", storage=storage)
    get_multihash_variable("o", SHAPES["mul"], operation="mult", initializer="ones", storage=storage)


def test_after_the_storage_is_closed_calls_say_so(open_storage: OpenStorage) -> None:
    storage = open_storage()
    variable = made(storage)
    storage.close()
    with pytest.raises(StorageClosed):
        variable.lookup(np.array([1]))


def test_the_memory_that_is_saved_is_told(storage: PyStorage) -> None:
    dims = quotient_remainder_dims(1_000_000, 16)
    variable = get_multihash_variable("big", dims, vocabulary=1_000_000, optimizer=adagrad(), storage=storage)
    report = variable.memory()
    assert (report.rows, report.rows_now, report.full_rows) == (2_000, 0, 1_000_000)
    assert (report.bytes, report.full_bytes) == (2_000 * 32 * 4, 1_000_000 * 32 * 4)
    assert report.saved == pytest.approx(0.998)
    variable.lookup([3, 1003])
    assert variable.memory().rows_now == 3
    assert (variable.drop(), variable.memory().rows_now, variable.drop()) == (3, 0, 0)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 10, 99, 100, 101, 12_345, 10**9 + 7, 2**62])
@pytest.mark.parametrize("partitions", [2, 3, 5])
def test_dims_for_a_vocabulary_cover_it_with_few_rows(vocabulary: int, partitions: int) -> None:
    dims = quotient_remainder_dims(vocabulary, 17, partitions, "concat")
    rows = [each for each, _ in dims]
    assert prod(rows) >= vocabulary
    assert sum(rows) <= partitions * (vocabulary ** (1 / partitions) + 1) + 1e-3
    assert sum(width for _, width in dims) == 17
    assert [width for _, width in quotient_remainder_dims(vocabulary, 17, partitions)] == [17] * partitions


@pytest.mark.parametrize("given", [(0, 4), (10, 0), (10, 4, 1), (10, 4, 2, "max"), (2.5, 4), (10, 1, 2, "concat")])
def test_dims_for_what_cannot_be_are_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidConfig):
        quotient_remainder_dims(*given)


def test_tables_over_several_storages_give_the_same_rows(open_storage: OpenStorage) -> None:
    one, *several = (open_storage(f"store-{i}") for i in range(3))
    alone, spread = made(one), made(several)  # type: ignore[arg-type]
    ids = np.arange(15).reshape(3, 5)
    grads = np.random.default_rng(8).normal(size=(3, 5, 4)).astype(np.float32)
    for variable in (alone, spread):
        assert variable.lookup(ids).apply_gradients(grads)
    assert (alone.lookup(ids) == spread.lookup(ids)).all()
    assert all(storage.stats()["rows"] for storage in several)


def test_numbers_may_be_those_of_numpy(open_storage: OpenStorage) -> None:
    vocabulary: Any = np.array([3, 98]).max() + 1
    with open_storage() as storage:
        dims = quotient_remainder_dims(vocabulary, 4)
        films = get_multihash_variable("films", dims, storage=storage, vocabulary=vocabulary)
        hashed = get_multihash_variable("hashed", dims, storage=storage, modulus=vocabulary - 2)
        assert (films.vocabulary, hashed.ids.modulus) == (99, 97)
        films.lookup([98])
    with open_storage() as storage:
        get_multihash_variable("films", dims, storage=storage, vocabulary=99)


def test_what_could_not_be_made_whole_can_be_asked_for_again(storage: PyStorage) -> None:
    other = PyEmbedding(storage, PyOptimizer(), PyInitializer(), 4, "films/1")
    with pytest.raises(GroupConflict, match="'films/1' is the name of group"):
        get_multihash_variable("films", [[10, 4], [10, 4]], storage=storage)
    storage.drop_group(other.group)
    films = get_multihash_variable("films", [[10, 4], [10, 4]], storage=storage)
    assert films.lookup([7]).shape == (1, 4)


def full_after(storage: PyStorage, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store make so many groups and no more."""
    open_group, left = storage.backend.open_group, [groups]

    def opens(config: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise StorageFull("no room")
        return open_group(config, **options)

    monkeypatch.setattr(storage.backend, "open_group", opens)


def test_what_cannot_be_made_whole_leaves_nothing_of_itself(
    storage: PyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = PyEmbedding(storage, PyOptimizer(), PyInitializer(), 4, "mh/1")
    with monkeypatch.context() as patched:
        patched.setattr(storage.backend, "drop_group", None)  # which would take the role admin: nothing is made at all
        with pytest.raises(GroupConflict):
            made(storage)
    assert storage.names() == {"mh/1": other.group}
    other.drop()
    full_after(storage, 1, monkeypatch)
    with pytest.raises(StorageFull):
        made(storage)
    assert storage.groups() == {}
    monkeypatch.undo()
    assert made(storage).lookup([1]).any()


@pytest.mark.parametrize("reuse", [None, AUTO_REUSE])
def test_tables_that_were_there_before_stay(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, reuse: Any
) -> None:
    with open_storage() as storage:
        made(storage)
        storage.drop_group(storage.names()["mh/1"])
    storage = open_storage()
    number = storage.names()["mh/0"]
    with monkeypatch.context() as patched:
        full_after(storage, 1, patched)
        with variable_scope("", reuse=reuse), pytest.raises(StorageFull):
            made(storage)
    assert storage.names() == {"mh/0": number}
    assert made(storage).tables[0].config.group == number


def test_a_new_table_that_somebody_uses_already_is_not_taken_back(
    storage: PyStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_group = storage.backend.open_group

    def opens(config: Any, **options: Any) -> Any:
        if config.name == "mh/1":
            storage.put_rows(storage.names()["mh/0"], np.array([1]), np.ones((1, 4), np.float32))
            raise StorageFull("no room")
        return open_group(config, **options)

    monkeypatch.setattr(storage.backend, "open_group", opens)
    with pytest.raises(StorageFull):
        made(storage)
    monkeypatch.undo()
    assert list(storage.names()) == ["mh/0"]

    def refuses(*_: Any) -> None:
        raise PermissionDenied("admins only")

    full_after(storage, 1, monkeypatch)
    monkeypatch.setattr(storage.backend, "drop_group", refuses)
    with pytest.raises(StorageFull):
        get_multihash_variable("other", SHAPES["add"], storage=storage)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "rockbed"]
    assert "other/0" in said
    assert "is not taken back: admins only" in said
