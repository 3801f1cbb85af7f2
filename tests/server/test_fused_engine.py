"""Fused batches in the engine: what the journal holds of them, and memory that is too small for their rows."""

from pathlib import Path

import numpy as np
import pytest

from rockbed import DimMismatch, GradientNotFinite, PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.bags import Bags
from rockbed.parallel import GRAIN
from rockbed.server.bags import clean_all
from rockbed.server.feature_gradients import CleanFeatures, joined
from rockbed.server.fetched import Fetched
from rockbed.server.kept_batches import KeptBatches
from rockbed.server.limits import Limits
from rockbed.storage.entries import Kind
from rockbed.storage.segment import read_segment, segment_files
from rockbed.types import F32, I64
from tests.crash_image import crash_image

DIM = 8
SMALL = 1 << 18  # memory_budget: some thousand rows


def table(storage: PyStorage, group: int = 1, optimizer: str = "adagrad") -> PyEmbedding:
    rule, first = PyOptimizer(name=optimizer, gamma=0.1), PyInitializer(name="uniform")
    return PyEmbedding(storage, rule, first, DIM, group)


def evenly(keys: I64, each: int, combiner: str = "sum") -> Bags:
    return Bags("feature", 1, keys, np.arange(0, keys.size + 1, each), None, combiner, negative=True)


def pooled(storage: PyStorage, bags: Bags, *, keep: bool = False, train: bool = True) -> tuple[F32, bytes | None]:
    out: F32 = np.full((bags.offsets.size - 1, DIM), np.nan, np.float32)
    return out, storage.backend.fused_lookup([bags], out, [], train=train, keep=keep)


def push(storage: PyStorage, bags: Bags, grads: F32, handle: bytes | None = None) -> None:
    assert storage.backend.fused_apply_gradients([bags], handle, grads, [], {}, None)


def kinds(directory: Path) -> list[int]:
    """Of the entries of pushes in the journal."""
    segments = segment_files(directory / "journal")
    found = [entry.kind for first, path in segments for _, entry in read_segment(first, path, None)]
    return [kind for kind in found if kind in (Kind.PUSH, Kind.BAG_PUSH)]


@pytest.mark.parametrize(("each", "kind"), [(1, Kind.PUSH), (20, Kind.BAG_PUSH)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_journal_holds_what_is_smaller_and_a_crash_loses_nothing(
    tmp_path: Path, each: int, kind: Kind, weighted: bool
) -> None:
    rng = np.random.default_rng(each)
    everything = np.arange(-50, 250)
    with PyStorage(tmp_path / "store", write_back_interval=1e6) as storage:
        rows = table(storage)
        for step in range(6):
            keys = rng.permutation(everything)[:200] if each == 1 else rng.integers(-50, 250, 600)
            weights = rng.standard_normal(keys.size).astype(np.float32) if weighted else None
            bags = Bags("feature", 1, keys, np.arange(0, keys.size + 1, each), weights, "sqrtn" if weighted else "sum")
            out, _ = pooled(storage, bags)
            push(storage, bags, rng.standard_normal(out.shape).astype(np.float32))
            if step == 2:
                storage.flush()  # rows that have seen an entry are not updated by it again
            elif step == 4:
                half = rows.lookup(everything[:150], train=False)
                assert np.isfinite(half).all()
                storage.backend.engine.write_back.write(storage.backend.engine.group(1))  # type: ignore[attr-defined]
        assert kinds(tmp_path / "store")[-3:] == [kind] * 3
        wanted = rows.lookup(everything, train=False)
        crash_image(tmp_path / "store", tmp_path / "image")
    with PyStorage(tmp_path / "image") as again:
        np.testing.assert_array_equal(table(again).lookup(everything, train=False), wanted)
        assert not again.check().problems


@pytest.mark.parametrize("each", [1, 20])
@pytest.mark.parametrize("by_bag", [False, True])
def test_what_the_journal_hashes_and_writes_is_not_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_bag: bool, each: int
) -> None:
    keys, weights = np.arange(400), np.linspace(-1, 1, 400, dtype=np.float32)
    grads = np.ones((400 // each if by_bag else 400, DIM), np.float32)
    with PyStorage(tmp_path / "store") as storage:
        journal = storage.backend.engine.journal  # type: ignore[attr-defined]
        append, written = journal.append, []

        def noting(kind: int, now_ms: int, parts: list[bytes | I64]) -> int:
            written.extend(parts)
            lsn: int = append(kind, now_ms, parts)
            return lsn

        groups = [table(storage, group) for group in range(2)]
        monkeypatch.setattr(journal, "append", noting)
        if by_bag:
            push(storage, Bags("feature", 1, keys, np.arange(0, 401, each), weights, "sum"), grads)
        else:
            storage.apply_gradients([(rows, keys, grads) for rows in groups])
        arrays = [part for part in written if isinstance(part, np.ndarray)]
        assert arrays
        assert not any(np.shares_memory(array, callers) for array in arrays for callers in (keys, weights, grads))


def test_gradients_of_a_group_that_was_made_anew_with_another_dim_meanwhile_are_refused(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        table(storage)
        engine = storage.backend.engine  # type: ignore[attr-defined]
        bags = clean_all([(evenly(np.arange(4), 2), engine.group(1).config)])
        share = joined([CleanFeatures(bags, [(np.ones((2, DIM // 2), np.float32), 0)], [], DIM // 2, None)])[0]
        with pytest.raises(DimMismatch, match="rows of dim 8, the gradients are of dim 4: the group was dropped"):
            engine.apply_gradients([share])
        assert storage.stats()["rows"] == 0


def test_a_row_that_is_removed_during_a_lookup_is_a_sighting_of_its_key(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        rule, first = PyOptimizer(name="sgd", gamma=0.1), PyInitializer(name="ones")
        PyEmbedding(storage, rule, first, DIM, 1, admission={"name": "min_count", "count": 3})
        storage.put_rows(1, np.array([7]), np.ones((1, DIM), np.float32))
        group = storage.backend.engine.group(1)  # type: ignore[attr-defined]
        fetch = group.fetch

        def removing(keys: I64) -> Fetched:
            group.fetch = fetch
            storage.shrink(group=1, min_count=1)
            found: Fetched = fetch(keys)
            return found

        group.fetch = removing  # for key 8
        out, _ = pooled(storage, evenly(np.array([7, 8, 7]), 3))
        np.testing.assert_array_equal(out, np.zeros((1, DIM)))  # what keys read as that are not admitted
        assert group.admission.seen(np.array([7, 8])).tolist() == [2, 1]


def test_sums_that_could_be_infinite_are_made_before_they_are_journaled(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        rows = table(storage, optimizer="sgd")
        keys = np.arange(200)
        bags = Bags("feature", 1, keys, np.arange(0, 201, 20), np.full(200, 1e20, np.float32), "sum")
        out, _ = pooled(storage, bags)
        push(storage, bags, np.full_like(out, 1e10))
        assert kinds(tmp_path / "store") == [Kind.BAG_PUSH]
        before = rows.lookup(keys)
        with pytest.raises(GradientNotFinite, match="200 of 200"):
            push(storage, bags, np.full_like(out, 1e20))  # finite, as are the weights
        assert kinds(tmp_path / "store") == [Kind.BAG_PUSH]
        np.testing.assert_array_equal(rows.lookup(keys), before)


@pytest.mark.parametrize("kept", [False, True])
def test_rows_that_leave_memory_between_lookup_and_push_are_found_again(tmp_path: Path, kept: bool) -> None:
    rng = np.random.default_rng(0)
    with PyStorage(tmp_path / "small", memory_budget=SMALL) as small, PyStorage(tmp_path / "large") as large:
        mine, theirs = table(small), table(large)
        for _ in range(8):
            bags = evenly(rng.integers(0, 3000, 400), 4, "mean")
            found, handle = pooled(small, bags, keep=kept)
            assert (handle is not None) == kept
            np.testing.assert_array_equal(found, pooled(large, bags)[0])
            others = rng.integers(3000, 30_000, 4000)
            np.testing.assert_array_equal(mine.lookup(others), theirs.lookup(others))
            grads = rng.standard_normal(found.shape).astype(np.float32)
            push(small, bags, grads, handle)
            push(large, bags, grads)
        assert small.stats()["groups"][1]["evictions"] > 0
        keys = np.arange(30_000)
        np.testing.assert_array_equal(mine.lookup(keys, train=False), theirs.lookup(keys, train=False))


@pytest.mark.parametrize("train", [False, True])
def test_a_batch_of_more_rows_than_memory_holds(tmp_path: Path, train: bool) -> None:
    rng = np.random.default_rng(1)
    with PyStorage(tmp_path / "small", memory_budget=SMALL) as small, PyStorage(tmp_path / "large") as large:
        first = np.arange(20_000)
        for storage in (small, large):
            table(storage).lookup(first)
        bags = evenly(rng.permutation(25_000), 5, "sqrtn")  # some rows in memory, some on disk, some nowhere
        np.testing.assert_array_equal(pooled(small, bags, train=train)[0], pooled(large, bags, train=train)[0])
        assert small.stats()["groups"][1]["rows"] == (25_000 if train else 20_000)


def test_bags_that_several_threads_share_are_those_of_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(0, 3, 3 * GRAIN)
    sizes[:5] = sizes[-5:] = sizes[GRAIN - 3 : GRAIN + 3] = 0  # nothing in the bags at the ends
    sizes[2 * GRAIN] = 2 * GRAIN  # one bag longer than a part
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    keys = rng.integers(0, 1000, offsets[-1])
    with PyStorage(tmp_path / "store") as storage:
        rows = table(storage).lookup(np.arange(1000)).astype(np.float64)
        out, _ = pooled(storage, Bags("feature", 1, keys, offsets, None, "sum"))
        totals = np.concatenate([np.zeros((1, DIM)), np.cumsum(rows[keys], axis=0)])
        # sums of up to 16,384 float32 of up to 0.05
        np.testing.assert_allclose(out, totals[offsets[1:]] - totals[offsets[:-1]], atol=1e-3)


def test_a_plan_is_of_no_use_to_a_group_of_the_same_number(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        table(storage)
        bags = evenly(np.arange(40), 4)
        out, handle = pooled(storage, bags, keep=True)
        storage.drop_group(1)
        rows = table(storage, optimizer="sgd")
        before = rows.lookup(np.arange(40))
        push(storage, bags, np.ones_like(out), handle)
        np.testing.assert_allclose(rows.lookup(np.arange(40)), before - 0.1, rtol=1e-6)


def test_what_is_kept_is_counted_in_full(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        table(storage)
        engine = storage.backend.engine  # type: ignore[attr-defined]
        engine.kept = KeptBatches(Limits(kept_bytes_max=100_000))
        assert pooled(storage, evenly(np.arange(2000), 4), keep=True)[1] is not None
        assert engine.kept.statistics()["kept_bytes"] > 2 * 8 * 2000  # keys, and where their rows are
        assert pooled(storage, evenly(np.arange(10_000), 4), keep=True)[1] is None
