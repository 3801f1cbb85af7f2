"""Variables looked up by tensors: the same numbers as by arrays, and backward passes that push."""

from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import (  # noqa: E402
    InvalidBackward,
    InvalidConfig,
    KvVariable,
    SparseTensor,
    WrongDtype,
    WrongShape,
    embedding_lookup,
    embedding_lookup_sparse,
    safe_embedding_lookup_sparse,
)
from tests.api.helpers import OpenStorage, ones  # noqa: E402
from tests.api.variables import initial, storages, variable  # noqa: E402

both = pytest.mark.parametrize("count", [1, 2])


def made(open_storage: OpenStorage, count: int, **options: Any) -> KvVariable:
    return variable(storages(open_storage, count), **options)


def coo(indices: list[list[int]], values: Any, shape: tuple[int, ...]) -> Any:
    return torch.sparse_coo_tensor(torch.tensor(indices).T, values, shape, check_invariants=False)


@both
def test_a_backward_pass_updates_the_rows_of_the_ids(open_storage: OpenStorage, count: int) -> None:
    rows = made(open_storage, count)
    ids = torch.tensor([[1, 2, -9], [2, 10**15, 1]])
    found = embedding_lookup(rows, ids)
    np.testing.assert_array_equal(found.detach().numpy().reshape(-1, 4), initial(rows, 1, 2, -9, 2, 10**15, 1))
    (found * torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])).sum().backward()
    wanted = initial(rows, 1, 2, -9, 10**15) - np.array([[7], [6], [3], [5]], np.float32)
    np.testing.assert_allclose(rows.lookup([1, 2, -9, 10**15]), wanted, rtol=1e-6)


@both
def test_the_variables_own_lookup_takes_tensors_too(open_storage: OpenStorage, count: int) -> None:
    rows = made(open_storage, count)
    rows.lookup(torch.arange(5)).sum().backward()
    np.testing.assert_allclose(rows.lookup(np.arange(5)), initial(rows, *range(5)) - 1, rtol=1e-5)
    with pytest.raises(WrongDtype, match="only lookups take tensors"):
        rows.apply_gradients(torch.arange(5), ones(5))


@both
def test_a_backward_pass_is_pushed_once(open_storage: OpenStorage, count: int) -> None:
    rows = made(open_storage, count)
    found = embedding_lookup(rows, torch.arange(30)).sum()
    found.backward(retain_graph=True)
    with pytest.raises(InvalidBackward, match="has been pushed"):
        found.backward()
    np.testing.assert_allclose(rows.lookup(np.arange(30)), initial(rows, *range(30)) - 1, rtol=1e-5)


@both
@pytest.mark.parametrize(
    ("combiner", "weighted", "max_norm", "safe"),
    list(product(("sum", "mean", "sqrtn"), (False, True), (None, 1.1), (False, True))),
)
def test_sparse_tensors_give_and_train_what_arrays_do(
    open_storage: OpenStorage, count: int, combiner: str, weighted: bool, max_norm: float | None, safe: bool
) -> None:
    places = storages(open_storage, count)
    # one name, so one first value of each row, in two stores or four
    by_tensor, by_array = variable(places), variable([open_storage(f"other{i}") for i in range(count)])
    indices = [[0, 0], [0, 1], [1, 0], [3, 0], [3, 2], [3, 3]]
    values = torch.tensor([4, -2, -7, 5, 5, 6])
    weights = torch.tensor([0.5, 1.0, 2.0, -1.0, 0.25, 3.0]) if weighted else None
    lookup = safe_embedding_lookup_sparse if safe else embedding_lookup_sparse
    wanted = lookup(
        by_array,
        SparseTensor(np.array(indices), values.numpy(), [4, 5]),
        None if weights is None else SparseTensor(np.array(indices), weights.numpy(), [4, 5]),
        combiner,
        max_norm=max_norm,
    )
    found = lookup(
        by_tensor,
        coo(indices, values, (4, 5)),
        None if weights is None else coo(indices, weights, (4, 5)),
        combiner,
        max_norm=max_norm,
    )
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6, atol=1e-7)
    grads = torch.linspace(-1, 1, 16).reshape(4, 4)
    (found * grads).sum().backward()
    wanted.apply_gradients(grads.numpy())
    ids = [4, -2, -7, 5, 6]
    np.testing.assert_allclose(by_tensor.lookup(ids), by_array.lookup(ids), rtol=1e-5, atol=1e-6)


@both
def test_nothing_is_made_or_trained_without_a_gradient(open_storage: OpenStorage, count: int) -> None:
    rows = made(open_storage, count)
    ids = torch.arange(20)
    with torch.no_grad():
        found = embedding_lookup(rows, ids)
    np.testing.assert_array_equal(found.numpy(), initial(rows, *range(20)))
    assert not found.requires_grad
    frozen = embedding_lookup(rows, ids, train=False)
    with pytest.raises(InvalidBackward, match="train=False"):
        frozen.sum().backward()
    assert sum(storage.stats()["rows"] for storage in rows.storages) == 0
    rows.drop()
    fixed = variable(rows.storages, trainable=False)
    assert not embedding_lookup(fixed, ids).requires_grad
    with pytest.raises(InvalidConfig, match="trainable=False"):
        embedding_lookup(fixed, ids, train=True)


def test_micro_batches_are_one_push(open_storage: OpenStorage) -> None:
    rows = made(open_storage, 1)
    with rockbed.torch.accumulate(rows.storages[0]):
        for _ in range(3):
            embedding_lookup(rows, torch.tensor([1])).sum().backward()
        np.testing.assert_array_equal(rows.lookup([1]), initial(rows, 1))
    report = rows.storages[0].get_rows(rows.config.group, np.array([1]))
    assert report.update_num.tolist() == [1]
    np.testing.assert_allclose(report.weights, initial(rows, 1) - 3 * ones(1), rtol=1e-6)


def test_key_dtypes_are_those_of_tensors(open_storage: OpenStorage) -> None:
    (storage,) = storages(open_storage, 1)
    narrow = variable(storage, "narrow", key_dtype=np.int32)
    np.testing.assert_array_equal(
        embedding_lookup(narrow, torch.tensor([-3], dtype=torch.int32)).detach().numpy(), initial(narrow, -3)
    )
    unsigned = variable(storage, "unsigned", key_dtype=np.uint64)
    ids = torch.from_numpy(np.array([2**64 - 1], np.uint64))
    np.testing.assert_array_equal(embedding_lookup(unsigned, ids).detach().numpy(), initial(unsigned, 2**64 - 1))


@pytest.mark.parametrize(
    ("key_dtype", "ids", "message"),
    [
        (np.int64, torch.tensor([1.0]), r"torch tensor of int64 or int32, not float32\[1\] on cpu"),
        (np.int64, torch.empty(1, dtype=torch.int64, device="meta"), "must be on the CPU"),
        (np.int32, torch.tensor([1]), "torch tensor of int32, not int64"),
        (str, torch.tensor([1]), "torch has no strings"),
    ],
)
def test_a_tensor_of_another_dtype_or_device_is_an_error(
    open_storage: OpenStorage, key_dtype: Any, ids: Any, message: str
) -> None:
    rows = made(open_storage, 1, key_dtype=key_dtype)
    with pytest.raises(WrongDtype, match=message):
        embedding_lookup(rows, ids)


def test_what_is_no_sparse_tensor_of_ids_is_an_error(open_storage: OpenStorage) -> None:
    rows = made(open_storage, 1)
    ids = coo([[0, 0], [1, 0]], torch.tensor([1, 2]), (2, 2))
    for given, error, message in (
        ((torch.tensor([[1, 2]]),), WrongDtype, "sp_ids must be a torch sparse COO tensor, not int64"),
        ((coo([[1, 0], [0, 0]], torch.tensor([1, 2]), (2, 2)),), WrongShape, "row-major order"),
        ((coo([[0, 0]], torch.tensor([1.0]), (2, 2)),), WrongDtype, "int64 or int32"),
        ((ids, torch.ones(2)), WrongDtype, "sp_weights must be a torch sparse COO tensor"),
        ((ids, coo([[0, 0], [1, 1]], torch.ones(2), (2, 2))), WrongShape, "other indices"),
        ((ids, coo([[0, 0], [1, 0]], torch.ones(2, dtype=torch.float64), (2, 2))), WrongDtype, "float32"),
        ((ids, coo([[0, 0], [1, 0]], torch.ones(2), (2, 2)).requires_grad_()), InvalidConfig, "require a gradient"),
    ):
        with pytest.raises(error, match=message):
            safe_embedding_lookup_sparse(rows, *given)
