"""Write-back beside pushes: a flush holds every row that it says it holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage import hot_kernels
from rockbed.storage.record import SLOTS
from rockbed.storage.writeback import _runs
from tests.api.helpers import OpenStorage, as_after_kill, assert_sound, embedding, keys_of, ones
from tests.splitmix import mix64


@pytest.mark.parametrize("kernel", ["slots_of_rows", "sort_by_slot"])
def test_a_row_that_turns_dirty_beside_a_flush_displaces_no_other(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    first = 1
    second = next(key for key in range(2, 200_000) if (mix64(key) ^ mix64(first)) & (SLOTS - 1) == 0)
    storage = open_storage()
    rows = embedding(storage)
    for key in (first, second):  # the first has the lower row number
        rows.apply_gradients(keys_of(key), ones(1))
    storage.flush()
    rows.apply_gradients(keys_of(second), ones(1))
    original, todo = getattr(hot_kernels, kernel), [keys_of(first)]

    def with_a_push_before(*args: Any) -> Any:
        if todo:
            rows.apply_gradients(todo.pop(), ones(1))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(hot_kernels, kernel, with_a_push_before)
        storage.checkpoint(tmp_path / "checkpoint")
    as_after_kill(storage, tmp_path / "killed")
    for name in ("checkpoint", "killed"):
        found = open_storage(name)
        assert (embedding(found).lookup(keys_of(first, second), train=False) == -1.0).all(), name
        assert_sound(found)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any),
    most=st.integers(1, 12),
)
def test_runs_hold_all_rows_in_order_and_cut_no_slot(sizes: list[int], most: int) -> None:
    ends = np.cumsum(sizes)
    rows = np.arange(int(ends[-1]), dtype=np.int32)
    runs = list(_runs(rows, ends, most))
    assert np.concatenate(runs).tolist() == rows.tolist()
    borders = {0, *ends.tolist()}
    for run in runs:
        assert {int(run[0]), int(run[-1]) + 1} <= borders
        slots = {int(np.searchsorted(ends, row, side="right")) for row in run}
        assert run.size <= most or len(slots) == 1
