"""Feature columns with tensors: the same numbers as with arrays, and a backward pass that pushes once."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import InvalidBackward, InvalidConfig, PyStorage, WrongDtype  # noqa: E402
from rockbed import feature_column as fc  # noqa: E402
from tests.api.helpers import keys_of, sgd, zeros  # noqa: E402

SGD = sgd(1.0)
PLAIN = fc.embedding_column(fc.categorical_column_with_embedding("a"), 2, initializer=zeros())
MASKED = fc.embedding_column(fc.categorical_column_with_adaptive_embedding("b", 100), 3, initializer=zeros())
IDS = {"a": torch.tensor([1, 2]), "b": torch.tensor([[5, -1], [6, 7]])}
MASK = {"b": torch.tensor([[1, 0], [0, 1]], dtype=torch.int32)}


def test_a_backward_pass_pushes_for_all_columns_once(storage: PyStorage) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    out = rockbed.torch.input_layer(IDS, [PLAIN, MASKED], MASK, storage=storage, optimizer=SGD)
    assert (out.dtype, out.shape) == (torch.float32, (2, 5))
    lsn = storage.stats()["last_lsn"]
    loss = (out * weight).sum()
    loss.backward(retain_graph=True)
    assert storage.stats()["last_lsn"] == lsn + 1
    after = fc.input_layer(
        {"a": keys_of(1, 2), "b": keys_of(5, 7)}, [PLAIN, MASKED], {"b": [1, 1]}, storage=storage, optimizer=SGD
    )
    np.testing.assert_array_equal(after, [[-2, -2, -2, -2, -2], [-2, -2, -1, -1, -1]])
    with pytest.raises(InvalidBackward, match="look up again"):
        loss.backward()


def test_without_gradients_nothing_is_made(storage: PyStorage) -> None:
    with torch.no_grad():
        out = rockbed.torch.input_layer(IDS, [PLAIN, MASKED], MASK, storage=storage, optimizer=SGD)
    assert not out.requires_grad
    assert storage.stats()["rows"] == 0
    frozen = rockbed.torch.input_layer(IDS, PLAIN, storage=storage, optimizer=SGD, train=False)
    with pytest.raises(InvalidBackward, match="train=False"):
        frozen.sum().backward()


def test_tensors_that_cannot_be_and_joined_pushes_are_refused(storage: PyStorage) -> None:
    for wrong in (torch.tensor([1.0]), torch.tensor([1], device="meta")):
        with pytest.raises(WrongDtype, match="feature 'a'"):
            rockbed.torch.input_layer({"a": wrong}, PLAIN, storage=storage, optimizer=SGD)
    with pytest.raises(WrongDtype, match="mask of 'b' must be integers of 0 and 1"):  # not rounded down to 0
        rockbed.torch.input_layer(IDS, MASKED, {"b": torch.full((2, 2), 0.9)}, storage=storage, optimizer=SGD)
    with rockbed.torch.accumulate(storage), pytest.raises(InvalidConfig, match="joined now"):
        rockbed.torch.input_layer(IDS, PLAIN, storage=storage, optimizer=SGD)
    out = rockbed.torch.input_layer(IDS, PLAIN, storage=storage, optimizer=SGD)
    with pytest.raises(InvalidBackward, match="cannot be differentiated"):
        out.sum().backward(create_graph=True)
