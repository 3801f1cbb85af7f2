"""Sequences of a fused lookup as rectangles, and their gradients back."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed import Feature, FusedEmbedding, InvalidConfig, PyStorage, Ragged, UnknownName, WrongDtype, WrongShape
from rockbed.client.padding import Places
from tests.api.helpers import embedding, sgd, uniform

BAGS = [[3, 4, 5], [], [6], [7, 8]]


def fused_of(storage: PyStorage, dim: int = 2) -> FusedEmbedding:
    rows = embedding(storage, dim, optimizer=sgd(1.0), initializer=uniform())
    return FusedEmbedding([Feature("pooled", rows), Feature("seen", rows, None)])


def batch_of(lists: list[list[int]]) -> dict[str, Ragged]:
    return {"pooled": Ragged.from_lists([[1]] * len(lists)), "seen": Ragged.from_lists(lists)}


@pytest.mark.parametrize(
    ("length", "keep", "wanted"),
    [
        (None, "first", [[3, 4, 5], [0, 0, 0], [6, 0, 0], [7, 8, 0]]),
        (4, "last", [[3, 4, 5, 0], [0, 0, 0, 0], [6, 0, 0, 0], [7, 8, 0, 0]]),
        (2, "first", [[3, 4], [0, 0], [6, 0], [7, 8]]),
        (np.int32(2), "last", [[4, 5], [0, 0], [6, 0], [7, 8]]),
        (1, "last", [[5], [0], [6], [8]]),
    ],
)
def test_a_sequence_is_padded_and_its_gradient_goes_back(
    storage: PyStorage, length: int | None, keep: str, wanted: list[list[int]]
) -> None:
    fused = fused_of(storage)
    out = fused.lookup(batch_of(BAGS))
    rows, mask = out.padded("seen", length, keep=keep)
    keys = np.array(wanted)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(mask, keys > 0)
    stored = fused.features[1].embedding.lookup(np.arange(1, 9), train=False)
    np.testing.assert_array_equal(rows, np.where(mask[..., None], stored[np.maximum(keys, 1) - 1], 0))
    gradient = np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32)  # of what is no row, too
    sequence = out.unpadded("seen", gradient, keep=keep)
    fused.apply_gradients(out, np.zeros_like(out.pooled), {"seen": sequence})
    for bag, its_mask, of_bag in zip(keys, mask, gradient, strict=True):
        stored[bag[its_mask] - 1] -= of_bag[its_mask]
    np.testing.assert_array_equal(fused.features[1].embedding.lookup(np.arange(1, 9), train=False), stored)


def test_a_batch_without_keys_or_samples_has_a_rectangle_too(storage: PyStorage) -> None:
    fused = fused_of(storage)
    for samples, length, shape in ((2, None, (2, 0, 2)), (2, 3, (2, 3, 2)), (0, None, (0, 0, 2))):
        out = fused.lookup(batch_of([[] for _ in range(samples)]))
        rows, mask = out.padded("seen", length)
        assert (rows.shape, mask.shape) == (shape, shape[:2])
        assert not rows.any()
        assert not mask.any()
        assert out.unpadded("seen", rows).shape == (0, 2)


@given(st.lists(st.integers(0, 5), max_size=8), st.one_of(st.none(), st.integers(1, 7)), st.booleans())
def test_places_are_those_that_lists_of_lists_have(sizes: list[int], length: int | None, last: bool) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(1, offsets[-1] + 1, dtype=np.float32)[:, None]
    places = Places.of(offsets, length, "last" if last else "first")
    wide = max(sizes, default=0) if length is None else length
    found = places.padded(rows)
    assert found.shape == (len(sizes), wide, 1)
    for b, (low, high) in enumerate(pairwise(offsets)):
        bag = rows[low:high, 0]
        kept = bag[max(bag.size - wide, 0) :] if last else bag[:wide]
        assert found[b, :, 0].tolist() == [*kept, *[0] * (wide - kept.size)]
        assert places.mask[b].tolist() == [i < kept.size for i in range(wide)]
    back = places.unpadded(found)
    np.testing.assert_array_equal(back, np.where(np.isin(rows, found), rows, 0))


def test_what_does_not_fit_is_refused(storage: PyStorage) -> None:
    out = fused_of(storage).lookup(batch_of(BAGS))
    for wrong in ("pooled", "other"):
        for call in (lambda name: out.padded(name), lambda name: out.unpadded(name, np.zeros((4, 2, 2), np.float32))):
            with pytest.raises(UnknownName, match=f"no sequence '{wrong}': .* 'seen'"):
                call(wrong)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"length": 0}, "length is 0"),
        ({"length": 2.0}, "length is 2.0, not an int"),
        ({"length": True}, "length is True"),
        ({"keep": "newest"}, "keep is 'newest', not one of 'first', 'last'"),
    ]
    for options, said in bad:
        with pytest.raises(InvalidConfig, match=said):
            out.padded("seen", **options)
    with pytest.raises(InvalidConfig, match="keep is None"):
        out.unpadded("seen", np.zeros((4, 2, 2), np.float32), keep=None)  # type: ignore[arg-type]
    with pytest.raises(WrongShape, match=r"'seen' must be float32\[4, L, 2\], not float32\[6, 2\]"):
        out.unpadded("seen", out["seen"])
    with pytest.raises(WrongShape, match=r"must be float32\[4, 3, 2\], not float32\[3, 3, 2\]"):
        out.unpadded("seen", np.zeros((3, 3, 2), np.float32))
    with pytest.raises(WrongDtype, match="float64"):
        out.unpadded("seen", np.zeros((4, 3, 2)))  # type: ignore[arg-type]
    with pytest.raises(WrongDtype, match="a list"):
        out.unpadded("seen", [[[1.0, 2.0]]])  # type: ignore[arg-type]
