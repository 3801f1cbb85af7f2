"""Frozen vocabularies: what the store gives without training, without the store, in every format of serving."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import InvalidConfig, PyStorage, WrongDtype  # noqa: E402
from tests.api.helpers import uniform  # noqa: E402
from tests.torch.helpers import plain, tensor  # noqa: E402

pytestmark = pytest.mark.torch

KNOWN = [-(2**63), -7, 0, 1, 3, 2**40, 2**63 - 1]
ASKED = torch.tensor([[1, 3, -7, 2], [0, -(2**63), 2**63 - 1, -8], [-1, -1, 4, 2**40], [-1, -2, 5, 5]])
WEIGHTS = torch.tensor([[1.0, 0.5, 2.0, 1.0], [0.0, 1.0, -1.0, 3.0], [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])


def trained(storage: PyStorage, **options: Any) -> Any:
    table = plain(storage, 1, 3, initializer=uniform(), **options)
    table.lookup(np.array(KNOWN))
    return table


@pytest.mark.parametrize("options", [{}, {"miss_value": 0.5}, {"miss_value": 0.5, "padding_key": 5}])
@pytest.mark.parametrize("max_norm", [None, 0.8])
def test_frozen_rows_are_those_of_the_store(
    storage: PyStorage, options: dict[str, Any], max_norm: float | None
) -> None:
    module = rockbed.torch.Embedding(trained(storage, **options), max_norm=max_norm).eval()
    frozen = module.frozen(torch.tensor(KNOWN))
    wanted = module(ASKED)
    storage.close()
    torch.testing.assert_close(frozen(ASKED), wanted.detach())
    assert isinstance(frozen.rows, torch.nn.Embedding)
    assert [name for name, _ in frozen.named_buffers()] == ["keys"]
    assert set(KNOWN) <= set(frozen.keys.tolist())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_the_row_of_every_key_is_found_and_of_no_other(storage: PyStorage, size: int) -> None:
    table = plain(storage, 1, 1, initializer=uniform())
    keys = np.arange(size) * 2
    table.lookup(keys)
    frozen = rockbed.torch.Embedding(table).frozen(torch.from_numpy(keys[::-1].copy()))
    np.testing.assert_array_equal(frozen.index(torch.from_numpy(keys)), 1 + np.arange(size))
    assert not frozen.index(torch.from_numpy(keys) + 1).any()
    assert not frozen.index(tensor(-1)).any()


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("settings", [{}, {"default_key": 2**40, "max_norm": 0.8}, {"prune_negative": False}])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_frozen_bags_are_those_of_the_store(
    storage: PyStorage, combiner: str, settings: dict[str, Any], weights: Any
) -> None:
    table = trained(storage, padding_key=5)
    module = rockbed.torch.EmbeddingBag(table, combiner, **settings).eval()
    frozen = module.frozen(torch.tensor(KNOWN))
    wanted = module(ASKED, per_sample_weights=weights).detach()
    torch.testing.assert_close(frozen(ASKED, weights), wanted)


def scripted(module: Any, _: Path) -> Callable[[Any], Any]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    loaded: Callable[[Any], Any] = torch.jit.load(buffer)
    return loaded


def exported(module: Any, folder: Path) -> Callable[[Any], Any]:
    program = torch.export.export(module, (ASKED,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "model.pt2")
    loaded: Callable[[Any], Any] = torch.export.load(folder / "model.pt2").module()
    return loaded


def as_onnx(module: Any, folder: Path) -> Callable[[Any], Any]:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    path = str(folder / "model.onnx")
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module, (ASKED,), path, dynamo=True, input_names=["keys"], dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    return lambda keys: torch.from_numpy(session.run(None, {"keys": keys.numpy()})[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's own
@pytest.mark.parametrize("form", [scripted, exported, as_onnx])
def test_a_frozen_model_is_served_in_every_format(
    tmp_path: Path, form: Callable[[Any, Path], Callable[[Any], Any]]
) -> None:
    with PyStorage(tmp_path / "store") as storage:
        table = trained(storage, padding_key=5)
        known = torch.tensor(KNOWN)
        rows = rockbed.torch.Embedding(table).frozen(known)
        bags = rockbed.torch.EmbeddingBag(table, "mean", default_key=3).frozen(known)

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.bags, self.dense = rows, bags, torch.nn.Linear(6, 2)

        def forward(self, keys):  # type: ignore[no-untyped-def]
            return self.dense(torch.cat([self.rows(keys[:, 0]), self.bags(keys)], dim=1))

    model = Model().eval()
    served = form(model, tmp_path)
    for keys in (ASKED, ASKED.flip(0)[:3]):
        torch.testing.assert_close(served(keys), model(keys))


def test_halves_stay_halves(storage: PyStorage) -> None:
    module = rockbed.torch.Embedding(trained(storage), dtype=torch.bfloat16)
    assert module.frozen(torch.tensor(KNOWN))(ASKED).dtype == torch.bfloat16


def test_what_cannot_be_frozen_says_why(storage: PyStorage) -> None:
    module = rockbed.torch.Embedding(trained(storage))
    with pytest.raises(InvalidConfig, match="there are no keys to freeze"):
        module.frozen(tensor())
    with pytest.raises(WrongDtype, match="keys must be a torch tensor of int64"):
        module.frozen(torch.ones(1))
    other = plain(storage, 2, miss_value="initializer")
    with pytest.raises(InvalidConfig, match="group 2 has miss_value='initializer', another row for each key"):
        rockbed.torch.Embedding(other).frozen(tensor(1))
