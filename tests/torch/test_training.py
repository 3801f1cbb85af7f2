"""Training with the modules against torch.nn's: same initial rows, same optimizer, 100 steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import Feature, PyOptimizer, PyStorage  # noqa: E402
from tests.api.helpers import embedding, uniform  # noqa: E402
from tests.torch.helpers import twin  # noqa: E402

pytestmark = pytest.mark.torch

KEYS, DIM, STEPS = 40, 6, 100

Optimizers = dict[str, tuple[PyOptimizer, Callable[[Any], Any], dict[str, Any]]]

# our rule, torch's on all weights, and the settings of the group. torch.optim.SparseAdam counts steps as a whole.
OPTIMIZERS: Optimizers = {
    "sgd": (PyOptimizer(name="sgd", gamma=0.5), lambda w: torch.optim.SGD(w, lr=0.5), {}),
    "adagrad": (PyOptimizer(name="adagrad", gamma=0.1), lambda w: torch.optim.Adagrad(w, lr=0.1, eps=1e-10), {}),
    "adam": (
        PyOptimizer(name="adam", gamma=0.02),
        lambda w: torch.optim.SparseAdam(w, lr=0.02, eps=1e-8),
        {"step": "global"},
    ),
}


def head() -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(DIM, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def losses_of(look_up: Callable[[Any], Any], after: Callable[[int], None], batches: list[Any]) -> list[float]:
    """Train a small network above what `look_up` gives."""
    dense = head()
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    losses = []
    for step, batch in enumerate(batches, 1):
        labels = torch.from_numpy(np.random.default_rng(step).random((len(batch[-1]), 1)) < 0.5).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(dense(look_up(batch)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(step)
        losses.append(loss.item())
    return losses


def batches() -> list[Any]:
    """(keys, offsets, weights) of 16 bags of 0 to 4 keys each. Every key occurs often, some twice in a bag."""
    random = np.random.default_rng(2)
    made = []
    for _ in range(STEPS):
        counts = random.integers(0, 5, 16)
        keys = torch.from_numpy(random.integers(0, KEYS, int(counts.sum())))
        weights = torch.from_numpy(random.uniform(0.5, 2, len(keys)).astype(np.float32))
        made.append((keys, weights, torch.from_numpy(np.concatenate([[0], counts.cumsum()[:-1]]))))
    return made


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["sum", "mean", "weighted", "rows"])
def test_losses_and_rows_are_those_of_torch(storage: PyStorage, rule: str, kind: str) -> None:
    ours, theirs, settings = OPTIMIZERS[rule]
    table = embedding(storage, DIM, 1, optimizer=ours, initializer=uniform(), **settings)
    theirs_table = twin(table, KEYS, sparse=rule == "adam")
    torch_optimizer = theirs(theirs_table.parameters())
    mode = "mean" if kind == "mean" else "sum"
    bag = rockbed.torch.EmbeddingBag(table, mode)
    single = rockbed.torch.Embedding(table)

    def our_lookup(batch: Any) -> Any:
        keys, weights, offsets = batch
        if kind == "rows":
            return single(keys[: len(offsets)])
        return bag(keys, offsets, weights if kind == "weighted" else None)

    def their_lookup(batch: Any) -> Any:
        keys, weights, offsets = batch
        if kind == "rows":
            return theirs_table(keys[: len(offsets)])
        return torch.nn.functional.embedding_bag(
            keys,
            theirs_table.weight,
            offsets,
            mode=mode,
            sparse=rule == "adam",
            per_sample_weights=weights if kind == "weighted" else None,
        )

    def our_step(step: int) -> None:
        if settings:
            table.global_step = step + 1

    def their_step(_: int) -> None:
        torch_optimizer.step()
        torch_optimizer.zero_grad()

    if settings:
        table.global_step = 1
    wanted = losses_of(their_lookup, their_step, batches())
    found = losses_of(our_lookup, our_step, batches())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted[-1] != wanted[0]
    weights = table.lookup(np.arange(KEYS), train=False)
    # Adam divides gradients by their size, so that the rounding of small ones shows; the losses do not.
    atol = 1e-3 if rule == "adam" else 1e-4
    np.testing.assert_allclose(weights, theirs_table.weight.detach().numpy(), atol=atol)


def test_adam_by_row_is_dense_adam_where_every_row_takes_part(storage: PyStorage) -> None:
    table = embedding(storage, DIM, 1, optimizer=PyOptimizer(name="adam", gamma=0.02), initializer=uniform())
    other = twin(table, KEYS)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.02)
    module = rockbed.torch.Embedding(table)
    whole = [(torch.arange(KEYS), torch.randperm(KEYS, generator=torch.manual_seed(step))) for step in range(STEPS)]

    def their_step(_: int) -> None:
        optimizer.step()
        optimizer.zero_grad()

    wanted = losses_of(lambda batch: other(batch[1]), their_step, whole)
    found = losses_of(lambda batch: module(batch[1]), lambda _: None, whole)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
def test_a_collection_with_two_features_of_one_group_and_a_sequence_trains_as_torch_does(
    storage: PyStorage, rule: str
) -> None:
    ours, theirs, _ = OPTIMIZERS[rule]
    shared, other = (embedding(storage, DIM, g, optimizer=ours, initializer=uniform()) for g in (1, 2))
    tables = [twin(each, KEYS) for each in (shared, other)]
    optimizer = theirs([*tables[0].parameters(), *tables[1].parameters()])
    module = rockbed.torch.EmbeddingCollection(
        [
            Feature("item", shared, "sum"),
            Feature("seen", shared, "mean"),
            Feature("capped", other, "sum", max_norm=1.0),
            Feature("words", other, None),
        ]
    )
    assert module.fused.columns == {"item": slice(0, 6), "seen": slice(6, 12), "capped": slice(12, 18)}

    def capped(rows: Any) -> Any:  # rows longer than 1 are scaled down, and the gradient goes through that
        norms = rows.norm(dim=1, keepdim=True)
        return torch.where(norms > 1.0, rows / norms, rows)

    def our_lookup(batch: Any) -> Any:
        keys, weights, offsets = batch
        ends = torch.cat([offsets, torch.tensor([len(keys)])])
        out = module(
            {"item": (keys, ends, weights), "seen": (keys, ends), "capped": (keys, ends), "words": (keys, ends)}
        )
        return out["item"] + out["seen"] + out["capped"] + out["words"][: len(offsets)]

    def their_lookup(batch: Any) -> Any:
        keys, weights, offsets = batch
        bag = torch.nn.functional.embedding_bag
        item = bag(keys, tables[0].weight, offsets, mode="sum", per_sample_weights=weights)
        seen = bag(keys, tables[0].weight, offsets, mode="mean")
        limited = bag(keys, capped(tables[1].weight), offsets, mode="sum")
        return item + seen + limited + tables[1](keys)[: len(offsets)]

    def their_step(_: int) -> None:
        optimizer.step()
        optimizer.zero_grad()

    wanted = losses_of(their_lookup, their_step, batches())
    found = losses_of(our_lookup, lambda _: None, batches())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
