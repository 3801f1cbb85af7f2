"""Sequences of a collection as rectangles, through which gradients go back."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import Feature, InvalidConfig, PyStorage, UnknownName  # noqa: E402
from tests.api.helpers import embedding, sgd, uniform  # noqa: E402
from tests.torch.helpers import tensor  # noqa: E402

pytestmark = pytest.mark.torch

BATCH = {"pooled": (tensor(1, 2, 1), tensor(0, 1, 2, 3)), "seen": (tensor(3, 4, 5, 6), tensor(0, 3, 3, 4))}


def collection(storage: PyStorage, **options: Any) -> Any:
    table = embedding(storage, 4, optimizer=sgd(1.0), initializer=uniform())
    return rockbed.torch.EmbeddingCollection([Feature("pooled", table), Feature("seen", table, None)], **options)


@pytest.mark.parametrize(("length", "keep"), [(None, "first"), (2, "first"), (2, "last"), (5, "last")])
def test_it_is_what_numpy_gives_and_gradients_go_back(storage: PyStorage, length: int | None, keep: str) -> None:
    sparse = collection(storage)
    table = sparse.fused.features[1].embedding
    out = sparse(BATCH)
    rows, mask = out.padded("seen", length, keep=keep)
    expected = sparse.fused.lookup({name: tuple(map(torch.Tensor.numpy, bags)) for name, bags in BATCH.items()})
    wanted_rows, wanted_mask = expected.padded("seen", length, keep=keep)
    np.testing.assert_array_equal(rows.detach().numpy(), wanted_rows)
    np.testing.assert_array_equal(mask.numpy(), wanted_mask)
    assert out.offsets["seen"].tolist() == [0, 3, 3, 4]
    before = table.lookup(np.arange(3, 7), train=False)
    gradient = torch.randn(rows.shape, generator=torch.manual_seed(1))
    rows.backward(gradient)
    stepped = before - expected.unpadded("seen", gradient.numpy(), keep=keep)
    np.testing.assert_array_equal(table.lookup(np.arange(3, 7), train=False), stepped)


def test_attention_over_it_sees_rows_alone(storage: PyStorage) -> None:
    sparse = collection(storage)
    torch.manual_seed(1)
    attention = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    batch = {**BATCH, "seen": (tensor(3, 4, 5, 6), tensor(0, 3, 3, 4))}
    with torch.no_grad():
        out = sparse(batch)
        for length in (3, 7):
            rows, mask = out.padded("seen", length)
            found, _ = attention(out["pooled"][:, None], rows, rows, key_padding_mask=~mask)
            for b, own in ((0, out["seen"][:3]), (2, out["seen"][3:])):
                wanted, _ = attention(out["pooled"][b : b + 1, None], own[None], own[None])
                torch.testing.assert_close(found[b : b + 1], wanted)


def test_other_dtypes_and_frozen_rows(storage: PyStorage) -> None:
    collection(storage)(BATCH)
    rows, _ = collection(storage, dtype=torch.bfloat16, trainable=False)(BATCH).padded("seen")
    assert (rows.dtype, rows.requires_grad, rows.shape) == (torch.bfloat16, False, (3, 3, 4))
    empty, mask = collection(storage)({name: (tensor(), tensor(0)) for name in BATCH}).padded("seen")
    assert (empty.shape, mask.shape) == ((0, 0, 4), (0, 0))


def test_what_does_not_fit_is_refused(storage: PyStorage) -> None:
    out = collection(storage)(BATCH)
    with pytest.raises(UnknownName, match="no sequence 'pooled': features without a combiner are 'seen'"):
        out.padded("pooled")
    with pytest.raises(InvalidConfig, match="length is -1"):
        out.padded("seen", -1)
    with pytest.raises(InvalidConfig, match="keep is 'middle'"):
        out.padded("seen", keep="middle")
