"""The torch modules with tensors on the storage's device. Here torch's are on the CPU, and say that they are not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed import Feature, PyEmbedding, PyStorage, WrongDtype, WrongShape
from rockbed.errors import InvalidBackward, InvalidConfig
from tests.api.helpers import embedding, keys_of, sgd, uniform
from tests.gpu.host_launcher import HostLauncher, OnDevice
from tests.gpu.stores import Open, assert_equal

torch = pytest.importorskip("torch", reason="no torch: pip install 'rockbed[torch]'")
import rockbed.torch  # noqa: E402 - it needs torch

pytestmark = pytest.mark.torch


@pytest.fixture
def launcher() -> HostLauncher:
    return HostLauncher()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, every tensor lends itself as one on a GPU does, and nobody may read it as an array of memory."""
    real = torch.Tensor.__dlpack__

    def lend(tensor: Any, *, stream: int, **_: Any) -> Any:
        assert stream == 1
        return real(tensor)

    def take(array: Any) -> Any:
        assert isinstance(array, OnDevice)
        return torch.from_numpy(array.view(np.ndarray))

    def no_array(*_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def begin() -> None:
        monkeypatch.setattr(torch.Tensor, "__dlpack_device__", lambda tensor: (2, 0))
        monkeypatch.setattr(torch.Tensor, "__dlpack__", lend)
        monkeypatch.setattr(torch.Tensor, "numpy", no_array)
        monkeypatch.setattr(torch, "from_dlpack", take)

    return begin


def table(storage: PyStorage, group: int = 1, **options: Any) -> PyEmbedding:
    return embedding(storage, 4, group, optimizer=sgd(0.5), initializer=uniform(), **options)


def both(open_storage: Open) -> list[PyStorage]:
    return [open_storage("lent"), open_storage("in memory")]


def rows_of(storage: PyStorage, group: int = 1) -> Any:
    return table(storage, group).lookup(np.arange(12), train=False)


def collection(storage: PyStorage, **options: Any) -> Any:
    features = [
        Feature("a", table(storage), "sqrtn"),
        Feature("b", table(storage, 2), "sum", max_norm=1.0),
        Feature("s", table(storage), None),
    ]
    return rockbed.torch.EmbeddingCollection(features, **options)


def batch() -> dict[str, Any]:
    keys, offsets = torch.tensor([1, 2, 3, 2]), torch.tensor([0, 1, 4])
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    return {"a": (keys, offsets, weights), "b": (keys + 4, offsets), "s": (keys, offsets.int())}


def loss_of(out: Any) -> Any:
    rows, _ = out.padded("s", 2, keep="last")
    return (out.pooled**2).sum() + (out["s"] * torch.arange(4.0)).sum() + (rows**2).sum()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_collection_trains_as_with_tensors_in_memory(
    open_storage: Open, elsewhere: Callable[[], None], launcher: HostLauncher, scale: float
) -> None:
    stores, found = both(open_storage), []
    modules = [collection(storage, scale=scale) for storage in stores]
    for module in reversed(modules):
        if module is modules[0]:
            elsewhere()
        for _ in range(2):
            out = module(batch())
            loss_of(out).backward()
        found.append([out.pooled.tolist(), out["s"].tolist(), out["b"].tolist()])
    assert found[0] == found[1]
    for group in (1, 2):
        assert_equal(rows_of(storage, group) for storage in stores)


def test_tensors_and_gradients_are_read_where_they_lie(
    open_storage: Open, elsewhere: Callable[[], None], launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = collection(open_storage())
    elsewhere()
    read, real = set(), launcher.address

    def address(array: Any) -> int:
        read.add(real(array))
        return real(array)

    monkeypatch.setattr(launcher, "address", address)
    given = batch()
    out = module(given)
    (pooled, sequence), grads = (out.pooled, out["s"]), [torch.ones(2, 8), torch.ones(4, 4)]
    torch.autograd.backward([pooled, sequence], grads)
    tensors = [*given["a"], *given["b"], given["s"][0], pooled, sequence, *grads]
    assert {tensor.data_ptr() for tensor in tensors} <= read


def test_micro_batches_and_several_modules_meet_in_one_push(open_storage: Open, elsewhere: Callable[[], None]) -> None:
    stores = both(open_storage)
    for storage in reversed(stores):
        bag, one = rockbed.torch.EmbeddingBag(table(storage), "sum"), rockbed.torch.Embedding(table(storage))
        if storage is stores[0]:
            elsewhere()
        with rockbed.torch.accumulate(storage, request=("trainer", 1)) as push:
            for keys in ([[1, 2], [3, -1]], [[2, 2]]):
                (bag(torch.tensor(keys)).sum() + one(torch.tensor(keys[0])).sum()).backward()
        assert push.applied
    assert_equal(rows_of(storage) for storage in stores)


@pytest.mark.parametrize("last", [True, False])
def test_embedding_bags_with_offsets_and_weights(open_storage: Open, elsewhere: Callable[[], None], last: bool) -> None:
    stores, found = both(open_storage), []
    for storage in reversed(stores):
        module = rockbed.torch.EmbeddingBag(table(storage), "mean", include_last_offset=last, default_key=7)
        if storage is stores[0]:
            elsewhere()
        offsets = torch.tensor([0, 2, 2, 3][: 4 if last else 3])
        out = module(torch.tensor([1, 2, 3]), offsets, torch.tensor([1.0, 3.0, 2.0]))
        out.sum().backward()
        found.append(out.tolist())
    assert found[0] == found[1]
    assert_equal(rows_of(storage) for storage in stores)


class Jagged:
    """As torchrec's KeyedJaggedTensor: `offset_per_key` is known in memory."""

    def __init__(self, bags: int = 3) -> None:
        self._bags = bags

    def keys(self) -> list[str]:
        return ["s", "b", "a"]

    def values(self) -> Any:
        return torch.tensor([1, 2, 3, 4, 5] if self._bags else [], dtype=torch.int64)

    def offsets(self) -> Any:
        return torch.tensor([0, 2, 2, 3, 3, 4, 5, 5, 5, 5][: 3 * self._bags + 1]).int()

    def weights_or_none(self) -> Any:
        return None

    def offset_per_key(self) -> list[int]:
        return [0, 3, 5, 5] if self._bags else [0, 0, 0, 0]


@pytest.mark.parametrize("bags", [3, 0])
def test_a_keyed_jagged_tensor_is_cut_without_being_read(
    open_storage: Open, elsewhere: Callable[[], None], bags: int
) -> None:
    stores, found = both(open_storage), []
    for storage in reversed(stores):
        module = collection(storage)
        if storage is stores[0]:
            elsewhere()
        out = module(Jagged(bags))
        found.append([out.pooled.tolist(), out["s"].tolist()])
    assert found[0] == found[1]


def test_half_precision_and_modes_are_as_in_memory(open_storage: Open, elsewhere: Callable[[], None]) -> None:
    storage = open_storage()
    module = rockbed.torch.Embedding(table(storage), dtype=torch.bfloat16)
    elsewhere()
    keys = torch.tensor([[1, 2]])
    out = module(keys)
    assert (out.dtype, out.shape) == (torch.bfloat16, (1, 2, 4))
    before = module(keys).float()
    out.sum().backward()
    assert storage.get_rows(1, keys_of(1, 2)).update_num.tolist() == [1, 1]
    assert not torch.equal(module(keys).float(), before)
    with pytest.raises(InvalidBackward, match=r"eval\(\) mode"):
        module.eval()(keys).sum().backward()
    with torch.no_grad():
        assert not module(keys).requires_grad


def test_what_modules_refuse_they_refuse_of_tensors_on_a_gpu(open_storage: Open, elsewhere: Callable[[], None]) -> None:
    module, bag = collection(open_storage()), rockbed.torch.EmbeddingBag(table(open_storage("other")))
    elsewhere()
    keys, offsets, weights = batch()["a"]
    with pytest.raises(InvalidConfig, match=r"feature 'a': weights require a gradient"):
        module({**batch(), "a": (keys, offsets, weights.requires_grad_())})
    with pytest.raises(InvalidConfig, match="per_sample_weights require a gradient"):
        bag(keys.reshape(2, 2), None, torch.ones(2, 2, requires_grad=True))
    with pytest.raises(WrongDtype, match=r"feature 'a': keys must be int64 or uint64, not float32\[4\] on a GPU"):
        module({**batch(), "a": (keys.float(), offsets)})
    with pytest.raises(WrongShape, match=r"feature 'a': offsets run from 0 to 3, with 4 keys"):
        module({**batch(), "a": (keys, torch.tensor([0, 1, 3]))})
    with pytest.raises(WrongShape, match=r"offsets must have one axis, not int64\[\] on"):
        bag(keys, torch.tensor(0))
    with pytest.raises(WrongShape, match="per_sample_weights must have the shape of the keys"):
        bag(keys.reshape(2, 2), None, torch.ones(4))


def test_keys_that_are_not_contiguous_are_copied(open_storage: Open, elsewhere: Callable[[], None]) -> None:
    stores, found = both(open_storage), []
    for storage in reversed(stores):
        bag, one = rockbed.torch.EmbeddingBag(table(storage), "mean"), rockbed.torch.Embedding(table(storage))
        if storage is stores[0]:
            elsewhere()
        ids = torch.tensor([[1, 2], [3, 4], [5, 6]])  # samples x features
        outs = [one(ids[:, 0]), bag(ids[:, 1], torch.tensor([0, 9, 1])[::2], torch.ones(3, 2)[:, 0])]
        sum(out.sum() for out in outs).backward()
        found.append([out.tolist() for out in outs])
    assert found[0] == found[1]
    assert_equal(rows_of(storage) for storage in stores)


def test_a_batch_that_is_changed_before_its_push_is_found_out(
    open_storage: Open, elsewhere: Callable[[], None]
) -> None:
    storage = open_storage()
    module = rockbed.torch.Embedding(table(storage))
    elsewhere()
    keys = torch.tensor([1, 2])
    out = module(keys)
    keys.copy_(torch.tensor([5, 6]))
    with pytest.raises(InvalidBackward, match=r"changed in place before .*Nothing was pushed"):
        out.sum().backward()

    def reuse_tensor() -> None:
        with rockbed.torch.accumulate(storage):
            module(keys).sum().backward()
            keys.add_(1)

    with pytest.raises(InvalidBackward, match="changed in place"):
        reuse_tensor()
    assert not storage.get_rows(1, keys_of(1, 2, 5, 6)).update_num.any()
    module(keys).sum().backward()
    keys.zero_()  # it is over
    assert storage.get_rows(1, keys_of(6, 7)).update_num.tolist() == [1, 1]
    with torch.inference_mode():
        keys = torch.tensor([6, 7])  # torch counts no changes of such
    module(keys).sum().backward()
    assert storage.get_rows(1, keys_of(6, 7)).update_num.tolist() == [2, 2]
