"""When gradients are pushed: once a backward pass and storage, or once an `accumulate`; never twice, never in part."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import (  # noqa: E402
    Feature,
    GradientNotFinite,
    InvalidBackward,
    InvalidConfig,
    PyOptimizer,
    PyStorage,
    WrongDtype,
)
from tests.api.helpers import OpenStorage, adagrad, embedding, uniform  # noqa: E402
from tests.torch.helpers import Counting, plain, rows, tensor  # noqa: E402

pytestmark = pytest.mark.torch


class Weird(torch.autograd.Function):  # type: ignore[misc, name-defined, unused-ignore]
    """An identity whose backward fails."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        raise KeyError("weird")


def test_all_modules_of_a_storage_push_once_in_a_backward_pass(storage: PyStorage) -> None:
    one, two = plain(storage, 1), plain(storage, 2)
    modules = [rockbed.torch.Embedding(one), rockbed.torch.EmbeddingBag(two, "sum"), rockbed.torch.Embedding(one)]
    counting = Counting(storage)
    sum(module(torch.tensor([[1, 2], [3, 3]])).sum() for module in modules).backward()
    assert counting.pushes == 1
    np.testing.assert_array_equal(rows(one, 1, 2, 3), [[-2, -2], [-2, -2], [-4, -4]])  # both modules of the group
    np.testing.assert_array_equal(rows(two, 1, 2, 3), [[-1, -1], [-1, -1], [-2, -2]])


def test_a_lone_collection_pushes_without_its_keys_and_keeps_none_where_it_is_not_alone(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.EmbeddingCollection([Feature("a", table, "sum"), Feature("s", table, None)])
    batch = {"a": (tensor(1, 2), tensor(0, 2)), "s": (tensor(5), tensor(0, 1))}
    kept, handles = [], []
    lookup, push = storage.backend.fused_lookup, storage.backend.fused_apply_gradients

    def spy_lookup(*arguments: Any, keep: bool, **options: Any) -> Any:
        kept.append(keep)
        return lookup(*arguments, keep=keep, **options)

    def spy(batch: Any, handle: Any, *rest: Any) -> bool:
        handles.append(handle)
        return push(batch, handle, *rest)

    storage.backend.fused_lookup = spy_lookup  # type: ignore[method-assign]
    storage.backend.fused_apply_gradients = spy  # type: ignore[method-assign, assignment]
    out = module(batch)
    (out["a"].sum() + out["s"].sum()).backward()
    assert handles[0] is not None
    with rockbed.torch.accumulate(storage):
        for _ in range(2):
            module(batch).pooled.sum().backward()
    module.eval()(batch)
    assert kept == [True, False, False, False]
    assert handles[1:] == [None]
    assert rows(table, 1, 2, 5)[:, 0].tolist() == [-3, -3, -1]


def test_the_keys_may_change_between_the_passes(storage: PyStorage) -> None:
    table = plain(storage)
    keys, offsets, weights = tensor(1, 2), tensor(0, 1), torch.tensor([1.0, 2.0])
    out = rockbed.torch.EmbeddingBag(table, "sum")(keys, offsets, weights)
    for each in (keys, offsets, weights):
        each.zero_()
    out.sum().backward()
    assert rows(table, 0, 1, 2)[:, 0].tolist() == [0, -1, -2]


def test_micro_batches_are_one_push_equal_to_the_whole_batch(open_storage: OpenStorage) -> None:
    found = []
    for name in ("whole", "parts"):
        storage = open_storage(name)
        table = embedding(storage, 4, 1, optimizer=adagrad(), initializer=uniform())
        module = rockbed.torch.EmbeddingCollection([Feature("a", table, "mean", default_key=3), Feature("b", table)])
        keys, weights = torch.randint(0, 9, (12, 2), generator=torch.manual_seed(1)), torch.rand(12, 8)
        weights = torch.from_numpy(np.random.default_rng(1).random((12, 8)).astype(np.float32))

        def loss(part: slice, keys: Any = keys, weights: Any = weights, module: Any = module) -> Any:
            bags = keys[part]
            ends = torch.arange(0, 2 * len(bags) + 1, 2)
            emptied = torch.where(bags == 1, -1, bags)
            out = module({"a": (emptied.reshape(-1), ends), "b": (bags.reshape(-1), ends)})
            return (out.pooled * weights[part]).sum()

        counting = Counting(storage)
        if name == "whole":
            loss(slice(0, 12)).backward()
        else:
            with rockbed.torch.accumulate(storage) as accumulation:
                for start, end in ((0, 5), (5, 10), (10, 12)):
                    loss(slice(start, end)).backward()
                assert counting.pushes == 0
                assert accumulation.applied is None
            assert accumulation.applied is True
        assert counting.pushes == 1
        found.append(rows(table, *range(9)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_a_step_with_a_request_is_applied_once(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    for _ in range(2):
        with rockbed.torch.accumulate(storage, request=("trainer", 1)) as accumulation:
            module(tensor(1)).sum().backward()
    assert accumulation.applied is False
    assert rows(table, 1)[0, 0] == -1
    with rockbed.torch.accumulate(storage, request=("trainer", 2)) as accumulation:
        pass  # a step without gradients is done, too
    assert accumulation.applied is True
    assert storage.last_request("trainer") == 2


def test_an_error_in_the_block_pushes_nothing_and_ends_it(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    with pytest.raises(KeyError), rockbed.torch.accumulate(storage, request=("trainer", 1)):  # noqa: PT012
        module(tensor(1)).sum().backward()
        raise KeyError
    assert rows(table, 1)[0, 0] == 0
    assert storage.last_request("trainer") == 0
    module(tensor(1)).sum().backward()
    assert rows(table, 1)[0, 0] == -1


def test_a_backward_pass_that_fails_pushes_nothing(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    early, late = module(tensor(1)), Weird.apply(module(tensor(2)))
    with pytest.raises(KeyError):
        (early * 1 + late).sum().backward()
    assert not rows(table, 1, 2).any()
    module(tensor(3)).sum().backward()
    assert rows(table, 1, 2, 3)[:, 0].tolist() == [0, 0, -1]


def test_what_the_store_refuses_is_raised_by_backward_and_can_be_repeated(storage: PyStorage) -> None:
    table = plain(storage)
    out = rockbed.torch.Embedding(table)(tensor(1, 2))
    with pytest.raises(GradientNotFinite):
        (out * float("nan")).sum().backward(retain_graph=True)
    out.sum().backward()  # nothing had been applied
    assert rows(table, 1, 2)[:, 0].tolist() == [-1, -1]


def test_gradients_twice_for_one_lookup_are_refused_outside_of_accumulate_and_summed_within(
    storage: PyStorage,
) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    out = module(tensor(1))
    out.sum().backward(retain_graph=True)
    with pytest.raises(InvalidBackward, match=r"has been pushed.*look up again, or .* rockbed.torch.accumulate"):
        out.sum().backward()
    assert rows(table, 1)[0, 0] == -1
    with rockbed.torch.accumulate(storage):
        out = module(tensor(2))
        out.sum().backward(retain_graph=True)
        (2 * out).sum().backward(retain_graph=True)
    assert rows(table, 2)[0, 0] == -3
    with pytest.raises(InvalidBackward, match="has been pushed"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_push_cannot_be_differentiated_but_a_gradient_penalty_on_the_rows_works(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    before = rows(table, 1)
    module = rockbed.torch.Embedding(table)
    with pytest.raises(InvalidBackward, match=r"cannot be differentiated.*torch.autograd.grad"):
        module(tensor(1)).pow(2).sum().backward(create_graph=True)
    out = module(tensor(1))
    start = out.detach().numpy().copy()
    (gradient,) = torch.autograd.grad(out.pow(3).sum(), out, create_graph=True)
    gradient.pow(2).sum().backward()  # the gradient of (3 w^2)^2 is 36 w^3
    assert not before.any()  # looked up before it had a row
    np.testing.assert_allclose(rows(table, 1), start - 36 * start**3, rtol=1e-5)


def test_a_feature_without_a_gradient_takes_no_step(storage: PyStorage) -> None:
    momentum = PyOptimizer(name="momentum", gamma=1.0, momentum=0.9)
    used, unused = (embedding(storage, 2, group, optimizer=momentum) for group in (1, 2))
    module = rockbed.torch.EmbeddingCollection(
        [Feature("pooled", used, "sum"), Feature("used", used, None), Feature("unused", unused, None)]
    )
    one = (tensor(1), tensor(0, 1))
    batch = {"pooled": one, "used": one, "unused": one}
    sum(each.sum() for each in [*module(batch).sequences.values(), module(batch).pooled]).backward()
    assert rows(unused, 1)[0, 0] == -1
    before = rows(used, 1)
    module(batch)["used"].sum().backward()
    assert rows(unused, 1)[0, 0] == -1  # with a gradient of zero it would have gone on
    assert (rows(used, 1) < before).all()
    module(batch).pooled.sum().backward()
    assert rows(unused, 1)[0, 0] == -1


def test_bags_of_different_numbers_are_pushed_together(storage: PyStorage) -> None:
    table = plain(storage)
    small = rockbed.torch.EmbeddingBag(table, "sum", default_key=7)
    large = rockbed.torch.EmbeddingBag(table, "mean")
    counting = Counting(storage)
    (small(torch.tensor([[-1, -1]])).sum() + large(torch.tensor([[1, 2], [1, -1], [-1, -1]])).sum()).backward()
    assert counting.pushes == 1
    assert rows(table, 7, 1, 2)[:, 0].tolist() == [-1, -1.5, -0.5]


def test_rows_without_bags_beside_a_batch_of_none_are_pushed(storage: PyStorage) -> None:
    table = plain(storage)
    none = rockbed.torch.EmbeddingBag(table, default_key=7)(torch.empty((0, 2), dtype=torch.int64))
    (none.sum() + rockbed.torch.Embedding(table)(tensor(1, 2)).sum()).backward()
    assert rows(table, 1, 2, 7)[:, 0].tolist() == [-1, -1, 0]


def test_a_lookup_whose_gradient_is_none_is_left_alone(storage: PyStorage) -> None:
    class Stop(torch.autograd.Function):  # type: ignore[misc, name-defined, unused-ignore]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> None:
            return None

    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    counting = Counting(storage)
    Stop.apply(module(tensor(1))).sum().backward()
    assert counting.pushes == 0
    (Stop.apply(module(tensor(1))) + module(tensor(2))).sum().backward()
    assert rows(table, 1, 2)[:, 0].tolist() == [0, -1]


def test_two_storages_are_pushed_one_by_one(open_storage: OpenStorage) -> None:
    tables = [plain(open_storage(name)) for name in ("a", "b")]
    one, two = (rockbed.torch.Embedding(table) for table in tables)
    with rockbed.torch.accumulate(tables[0].storage):
        (one(tensor(1)) + two(tensor(1))).sum().backward()
        assert [rows(table, 1)[0, 0] for table in tables] == [0, -1]
    assert [rows(table, 1)[0, 0] for table in tables] == [-1, -1]


@pytest.mark.parametrize("scale", [0.25, 2])
def test_scale_multiplies_gradients_and_may_change(storage: PyStorage, scale: float) -> None:
    table = plain(storage)
    module = rockbed.torch.EmbeddingCollection([Feature("a", table), Feature("s", table, None)], scale=scale)
    one = (tensor(1), tensor(0, 1))
    out = module({"a": one, "s": one})
    (out["a"] + out["s"]).sum().backward()
    assert rows(table, 1)[0, 0] == -2 * scale
    module.scale = 1.0
    out = module({"a": one, "s": one})
    (out["a"] + out["s"]).sum().backward()
    assert rows(table, 1)[0, 0] == -2 * scale - 2
    module.scale = float("nan")
    with pytest.raises(InvalidConfig, match="scale"):
        module({"a": one, "s": one}).pooled.sum().backward()


def test_the_scale_of_a_gradient_scaler_is_taken_back(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    module.scale = 1 / 1024.0
    scaler.scale(module(tensor(1)).sum()).backward()
    assert rows(table, 1)[0, 0] == -1


MISUSES: list[tuple[Callable[[PyStorage], Any], type[Exception], str]] = [
    (lambda storage: rockbed.torch.accumulate(storage, request=("a", 0)).__enter__(), InvalidConfig, "request number"),
    (lambda _: rockbed.torch.accumulate("here").__enter__(), WrongDtype, "takes a PyStorage, not a str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), MISUSES)
def test_accumulate_says_what_it_cannot_take(
    storage: PyStorage, call: Callable[[PyStorage], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(storage)


def test_accumulates_do_not_nest(storage: PyStorage) -> None:
    module = rockbed.torch.Embedding(plain(storage))
    with rockbed.torch.accumulate(storage):
        module(tensor(1)).sum().backward()
        with pytest.raises(InvalidConfig, match="within an accumulate already"), rockbed.torch.accumulate(storage):
            pass
    assert rows(module.embedding, 1)[0, 0] == -1
