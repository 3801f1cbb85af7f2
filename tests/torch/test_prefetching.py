"""Batches one step ahead."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import numpy as np  # noqa: E402

import rockbed.torch  # noqa: E402
from rockbed import PyStorage, UnknownGroup, WrongDtype  # noqa: E402
from tests.api.helpers import SMALL, OpenStorage, embedding, push_in_pieces  # noqa: E402
from tests.torch.helpers import plain  # noqa: E402

pytestmark = pytest.mark.torch


class Spy:
    """A module that notes what it is asked for."""

    def __init__(self, module: Any, events: list[Any]) -> None:
        self.module, self.events = module, events

    def prefetch(self, keys: Any) -> Any:
        self.events.append(("fetch", keys.tolist()))
        return self.module.prefetch(keys)


def test_the_rows_of_the_next_batch_are_fetched_while_one_is_used(storage: PyStorage) -> None:
    events: list[Any] = []
    spy = Spy(rockbed.torch.Embedding(plain(storage)), events)
    loader = torch.utils.data.DataLoader(torch.arange(5), batch_size=2)
    batches = rockbed.torch.prefetching(loader, lambda batch: [(spy, batch)])
    assert len(batches) == 3
    for _ in range(2):  # as often as wanted
        for batch in batches:
            events.append(("use", batch.tolist()))
    once = [("fetch", [2, 3]), ("use", [0, 1]), ("fetch", [4]), ("use", [2, 3]), ("use", [4])]
    assert events == once * 2
    assert list(rockbed.torch.prefetching([], lambda _: [])) == []
    with pytest.raises(TypeError, match="len"):
        len(rockbed.torch.prefetching(iter([]), lambda _: []))


def test_rows_on_disk_are_in_memory_when_their_batch_is_due(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    table = embedding(storage, 16, 1)
    push_in_pieces(table, np.arange(4000))
    storage.flush()
    cold = torch.arange(100)
    assert all(source == "disk" for source in _where(storage, cold.numpy()))
    module = rockbed.torch.Embedding(table)
    batches = iter(rockbed.torch.prefetching([torch.tensor([3999]), cold], lambda batch: [(module, batch)]))
    next(batches)
    next(batches)
    assert all(source == "memory" for source in _where(storage, cold.numpy()))


def _where(storage: PyStorage, keys: Any) -> list[str]:
    report = storage.get_rows(1, keys)
    return ["memory" if each else "disk" for each in report.in_memory]


def test_what_a_fetch_raises_is_raised_when_its_batch_is_due(storage: PyStorage) -> None:
    module = rockbed.torch.Embedding(plain(storage))
    batches = iter(rockbed.torch.prefetching([torch.tensor([1])] * 3, lambda batch: [(module, batch)]))
    storage.drop_group(1)
    next(batches)  # the first is fetched by nobody
    with pytest.raises(UnknownGroup):
        next(batches)
    wrong = rockbed.torch.prefetching([torch.tensor([1.0])] * 2, lambda batch: [(module, batch)])
    with pytest.raises(WrongDtype, match="keys must be"):
        next(iter(wrong))
