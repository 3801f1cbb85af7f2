"""A model written for damo-embedding, with its import changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

from rockbed import GroupConflict, InvalidConfig, PyStorage, UnknownGroup, WrongShape  # noqa: E402
from rockbed.compat import damo_embedding  # noqa: E402
from rockbed.compat.damo_embedding import Embedding, load_model, save_model  # noqa: E402
from tests.api.helpers import QUIET, Served, keys_of  # noqa: E402

pytestmark = pytest.mark.torch

INITIALIZER = {"name": "random_uniform", "min": -0.5, "max": 0.5}
ADAM = {"name": "adam", "gamma": 0.02, "beta1": 0.9, "beta2": 0.999, "lambda": 0.0, "epsilon": 1e-8}


class Machine(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """A factorization machine and a layer above its vectors."""

    def __init__(self, w: Any, v: Any, features: int, dim: int) -> None:
        super().__init__()
        self.w, self.v = w, v
        self.dense = torch.nn.Linear(features * dim, 1)

    def forward(self, keys):  # type: ignore[no-untyped-def]
        w, v = self.w(keys), self.v(keys)
        pairs = (v.sum(dim=1).pow(2) - v.pow(2).sum(dim=1)).sum(dim=1, keepdim=True) / 2
        return torch.sigmoid(w.sum(dim=1) + pairs + self.dense(torch.flatten(v, 1)))


@pytest.fixture(autouse=True)
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a directory, and a process, of its own."""
    monkeypatch.chdir(tmp_path)
    damo_embedding._session.next_group = 0
    yield
    damo_embedding.damo_embedding_close()


def machine(seed: int = 1) -> Machine:
    torch.manual_seed(seed)
    return Machine(Embedding(1, INITIALIZER, ADAM), Embedding(4, initializer=INITIALIZER, optimizer=ADAM), 3, 4)


def batch(step: int) -> tuple[Any, Any]:
    random = np.random.default_rng(step)
    keys = random.permutation(np.arange(1, 31)).reshape(10, 3)
    return torch.from_numpy(keys), torch.from_numpy((keys.sum(axis=1) % 2).astype(np.float32))[:, None]


def train(model: Any, steps: int, *others: Any) -> list[float]:
    optimizer = torch.optim.Adam(model.dense.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        keys, labels = batch(step)
        loss = torch.nn.functional.binary_cross_entropy(model(keys), labels)
        for each in (optimizer, *others):
            each.zero_grad()
        loss.backward()
        for each in (optimizer, *others):
            each.step()
        losses.append(loss.item())
    return losses


def test_it_trains_as_torch_does_with_gradients_divided_by_the_batch() -> None:
    """Every key is in every batch, so that dense Adam is Adam by row."""
    model = machine()
    model(torch.arange(1, 31).reshape(10, 3))
    twins = []
    for each in (model.w, model.v):
        weights = np.empty(31 * each.dim, np.float32)
        damo_embedding.pull(each.group, np.arange(31), weights)
        table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weights).reshape(31, -1), freeze=False)
        table.weight.register_hook(lambda gradient: gradient / 10)
        twins.append(table)
    torch.manual_seed(1)
    other = Machine(twins[0], twins[1], 3, 4)
    rows = torch.optim.Adam([table.weight for table in twins], lr=0.02)
    np.testing.assert_allclose(train(model, 50), train(other, 50, rows), atol=1e-5)
    assert Path("embeddings").is_dir()  # where nobody says another


def test_key_0_stands_for_nothing() -> None:
    model = Embedding(2, {"name": "ones"}, {"name": "sgd", "gamma": 1.0})
    out = model(torch.tensor([[0, 1]]))
    assert out.tolist() == [[[0, 0], [1, 1]]]
    out.sum().backward()
    assert model(torch.tensor([[0, 1]])).tolist() == [[[0, 0], [0, 0]]]


def test_groups_are_numbered_and_hold_one_embedding() -> None:
    assert [Embedding(2).group, Embedding(2, group=7).group, Embedding(2).group] == [0, 7, 8]
    Embedding(2, group=7)(torch.tensor([[1]]))
    with pytest.raises(GroupConflict, match="group 7 is in use as"):
        Embedding(3, group=7)(torch.tensor([[1]]))
    with pytest.raises(WrongShape, match=r"keys must be a tensor \[B, n\], not torch.Size\(\[1\]\)"):
        Embedding(2, group=7)(torch.tensor([1]))


def test_eval_creates_nothing() -> None:
    model = Embedding(2, {"name": "ones"}).eval()
    with torch.no_grad():
        assert not model(torch.tensor([[1]])).any()
    assert model.train()(torch.tensor([[1]])).all()


def test_init_opens_a_store_and_its_groups(tmp_path: Path) -> None:
    model = machine()
    damo_embedding.damo_embedding_init(model, 3600, str(tmp_path / "store"))
    weights = np.empty(4, np.float32)
    damo_embedding.pull(1, keys_of(5), weights)
    assert weights.any()
    with pytest.raises(InvalidConfig, match="is open: call damo_embedding_close"):
        damo_embedding.damo_embedding_init(model, 0, "elsewhere")
    with pytest.raises(UnknownGroup, match=r"no embedding of group 9 has been used: \[0, 1\] have"):
        damo_embedding.pull(9, keys_of(5), weights)
    damo_embedding.dump("weights")
    assert Path("weights").stat().st_size == 4 + 2 * (4 + 4 + 8) + (8 + 4 + 4 * 4)


def test_a_server_may_have_the_rows(tmp_path: Path) -> None:
    served = Served(tmp_path / "shared", **QUIET)
    try:
        model = machine()
        damo_embedding.damo_embedding_init(model, 0, served.daemon.target)
        assert train(model, 5)[0] > 0
        assert served.stats()["rows"] == 60
        damo_embedding.damo_embedding_close()
    finally:
        served.close()


def test_a_push_that_repeats_a_step_is_not_applied_again() -> None:
    model = Embedding(2, {"name": "zeros"}, {"name": "sgd", "gamma": 1.0})
    model(torch.tensor([[1]]))
    weights = np.empty(2, np.float32)
    for control, wanted in (
        (3 << 32 | 1, -1),
        (3 << 32 | 1, -1),
        (3 << 32 | 2, -2),
        (4 << 32 | 1, -3),
        (0, -4),
        (0, -5),
    ):
        damo_embedding.push(control, 0, keys_of(1), np.ones(2, np.float32))
        damo_embedding.pull(0, keys_of(1), weights)
        assert weights.tolist() == [wanted, wanted]


@pytest.mark.parametrize("reload", [False, True])
def test_a_model_saved_for_training_goes_on_where_it_was(reload: bool) -> None:
    model = machine()
    train(model, 5)
    save_model(model, "saved")
    keys = batch(0)[0]
    wanted = model.eval()(keys).tolist()
    train(model.train(), 5)
    assert model.eval()(keys).tolist() != wanted
    if reload:
        damo_embedding.damo_embedding_close()
    again = load_model("saved")
    if reload:
        damo_embedding.damo_embedding_init(again, 0, "other", reload="saved/rows")
    assert again.eval()(keys).tolist() == wanted
    assert train(again.train(), 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_a_model_saved_for_serving_needs_no_store() -> None:
    model = machine()
    train(model, 5)
    save_model(model, "served", training=False)
    assert isinstance(model.w, Embedding)
    keys = torch.tensor([[1, 2, 30], [99, 0, 3]])  # 99 was never seen
    with torch.no_grad():
        wanted = model.eval()(keys)
    damo_embedding.damo_embedding_close()
    served = torch.jit.load("served/model.pt").eval()
    torch.testing.assert_close(served(keys), wanted)
    with PyStorage("embeddings", 8_640_000) as storage:
        assert storage.stats()["rows"] == 60
