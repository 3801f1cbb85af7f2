"""Multi-hash variables with tensors: the same embeddings and the same updates as with arrays."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed  # noqa: E402
from rockbed import IdOutOfRange, InvalidBackward, InvalidConfig, PyStorage, WrongDtype  # noqa: E402
from tests.api.helpers import OpenStorage, adagrad  # noqa: E402

pytestmark = pytest.mark.torch

DIMS = {"add": [[3, 4], [5, 4]], "mul": [[3, 4], [5, 4]], "concat": [[3, 2], [5, 4]]}
NORMAL = {"name": "random_normal", "stddev": 1.0}


def made(storage: Any, operation: str = "add", **options: Any) -> rockbed.MultiHashVariable:
    settings: dict[str, Any] = {"initializer": NORMAL, "optimizer": adagrad(), **options}
    return rockbed.get_multihash_variable("mh", DIMS[operation], operation=operation, storage=storage, **settings)


@pytest.mark.parametrize("operation", DIMS)
@pytest.mark.parametrize("shape", [(6,), (2, 3), ()])
def test_tensors_learn_as_arrays_do(open_storage: OpenStorage, operation: str, shape: tuple[int, ...]) -> None:
    arrays, tensors = made(open_storage("arrays"), operation), made(open_storage("tensors"), operation)
    random = np.random.default_rng(4)
    for _ in range(3):
        ids = random.integers(0, 15, shape)
        found, tensor = arrays.lookup(ids), tensors.lookup(torch.from_numpy(np.asarray(ids)))
        assert tensor.shape == (*shape, arrays.dim)
        np.testing.assert_allclose(tensor.detach().numpy(), found, rtol=1e-6)
        (tensor**2).sum().backward()
        found.apply_gradients(2 * np.asarray(found))
    every = np.arange(15)
    np.testing.assert_allclose(
        tensors.lookup(every, train=False), arrays.lookup(every, train=False), rtol=1e-4, atol=1e-6
    )


def test_a_backward_pass_is_one_push_to_all_tables(storage: PyStorage) -> None:
    variable = made(storage)
    with rockbed.torch.accumulate(storage, request=("trainer", 1)) as push:
        variable.lookup(torch.tensor([1, 2])).sum().backward()
        variable.lookup(torch.tensor([2])).sum().backward()
    assert push.applied
    assert storage.last_request("trainer") == 1
    for table, rows in zip(variable.tables, variable.rows_of([1, 2]), strict=True):  # id 2 was looked up twice
        assert (storage.get_rows(table.embedding.group, rows).update_num == 1).all()


def test_without_gradients_nothing_is_made(storage: PyStorage) -> None:
    variable = made(storage)
    with torch.no_grad():
        assert not variable.lookup(torch.arange(15)).any()
    assert not variable.lookup(torch.arange(15), train=False).any()
    assert variable.memory().rows_now == 0


def test_a_second_backward_pass_is_an_error(storage: PyStorage) -> None:
    loss = made(storage).lookup(torch.tensor([1])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(InvalidBackward):
        loss.backward()


def test_several_storages_learn_as_one(open_storage: OpenStorage) -> None:
    one, *several = (open_storage(f"store-{i}") for i in range(3))
    alone, spread = made(one, "mul"), made(several, "mul")
    for variable in (alone, spread):
        (variable.lookup(torch.arange(15)) ** 2).sum().backward()
    assert (alone.lookup(np.arange(15), train=False) == spread.lookup(np.arange(15), train=False)).all()


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (torch.tensor([0.5]), WrongDtype),
        (torch.tensor([1], device="meta"), WrongDtype),
        (torch.tensor([15]), IdOutOfRange),
        (torch.tensor([-1]), IdOutOfRange),
    ],
)
def test_wrong_tensors_are_refused(storage: PyStorage, ids: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        made(storage).lookup(ids)


def test_what_is_not_trainable_cannot_be_trained(storage: PyStorage) -> None:
    variable = made(storage, trainable=False)
    assert not variable.lookup(torch.tensor([3])).requires_grad
    with pytest.raises(InvalidConfig, match="trainable"):
        variable.lookup(torch.tensor([3]), train=True)
