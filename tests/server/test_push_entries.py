"""What the journal holds of a push of several groups: of each the rows that it changes, and which of them are fresh."""

from pathlib import Path

import numpy as np
import pytest

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.bags import Bags
from rockbed.storage.entries import BagSection, Section, read_push
from rockbed.storage.segment import read_segment, segment_files
from rockbed.types import F32, I64

DIMS = [3, 8, 4]


def sections(directory: Path) -> list[Section | BagSection]:
    """Of the newest entry."""
    segments = segment_files(directory / "journal")
    return read_push([entry for first, path in segments for _, entry in read_segment(first, path, None)][-1].payload)[1]


def push(storage: PyStorage, tables: list[PyEmbedding], keys: list[I64], grads: list[F32], *, fused: bool) -> None:
    if not fused:
        storage.apply_gradients(list(zip(tables, keys, grads, strict=True)))
        return
    bags = [Bags(f"f{i}", i, each, np.arange(each.size + 1), None, "sum") for i, each in enumerate(keys)]
    assert storage.backend.fused_apply_gradients(bags, None, np.concatenate(grads, axis=1), [], {}, None)


@pytest.mark.parametrize("fused", [False, True])
def test_each_group_says_which_of_its_rows_are_fresh(tmp_path: Path, fused: bool) -> None:
    with PyStorage(tmp_path / "store") as storage:
        rule, first = PyOptimizer(name="sgd", gamma=0.1), PyInitializer(name="zeros")
        tables = [PyEmbedding(storage, rule, first, dim, i, not_finite="skip_row") for i, dim in enumerate(DIMS)]
        old = [np.arange(5), np.arange(10, 23), np.arange(3)]
        for rows, each in zip(tables, old, strict=True):
            rows.apply_gradients(each, np.ones((each.size, rows.dim), np.float32))
        keys = [np.arange(0, 26, 2), np.arange(13), np.arange(-10, 3)]
        grads = [np.ones((13, dim), np.float32) for dim in DIMS]
        grads[1][[0, 1, 2, 4, 9], 1] = np.nan  # so many that the rest takes fewer words of flags
        push(storage, tables, keys, grads, fused=fused)
        kept = [keys[0], np.delete(keys[1], [0, 1, 2, 4, 9]), keys[2] if not fused else keys[2][10:]]
        for section, wanted, before in zip(sections(tmp_path / "store"), kept, old, strict=True):
            np.testing.assert_array_equal(section.keys, wanted)
            np.testing.assert_array_equal(section.fresh, ~np.isin(wanted, before))
            np.testing.assert_array_equal(section.grads, np.ones((wanted.size, DIMS[section.group])))
