"""A store whose hot rows are on a device gives what one without a device gives."""

from typing import Any

import numpy as np
import pytest

from rockbed import (
    DeviceOutOfMemory,
    Feature,
    FusedEmbedding,
    GradientNotFinite,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    Ragged,
)
from tests.api.helpers import (
    Clock,
    adagrad,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    uniform,
)
from tests.fused.cases import every_feature, random_batch, random_gradients, two_tables
from tests.gpu.stores import Open, assert_equal, assert_same_rows, contents, small, stats_of, table_of

DECAY = {"name": "exponential_decay", "decay_steps": 4, "decay_rate": 0.8}
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"gamma": 0.5}),
    ("adagrad", {"gamma": 0.5}),
    ("adam", {"gamma": 0.1}),
    ("rowwise_adagrad", {"gamma": 0.5}),
    ("ftrl", {"gamma": 0.5, "lambda1": 0.01}),
]


def group_of(storage: PyStorage, optimizer: str, params: dict[str, Any], **options: Any) -> PyEmbedding:
    return embedding(storage, 6, optimizer=PyOptimizer(name=optimizer, **params), initializer=uniform(), **options)


@pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS, ids=[name for name, _ in OPTIMIZERS])
def test_lookups_and_single_use_pushes_are_the_same_bit_for_bit(
    open_storage: Open, optimizer: str, params: dict[str, Any]
) -> None:
    rng, stores = np.random.default_rng(4), (open_storage("above"), open_storage("below", device=None))
    groups = [group_of(storage, optimizer, params, clip_norm=2.0, weight_max=0.9) for storage in stores]
    for step in range(6):
        keys = rng.permutation(np.arange(-20, 60))[:30]
        grads = rng.normal(size=(30, 6)).astype(np.float32)
        found = [rows.lookup(keys, train=step % 3 > 0) for rows in groups]
        assert_equal(found)
        for rows in groups:
            rows.apply_gradients(keys, grads)
    assert stats_of(groups[0])["device_rows"] > 30
    every = np.arange(-20, 60)
    for rows in groups:  # the second group beside it stays in memory
        kept = embedding(rows.storage, 6, 9, initializer=uniform(), refresh="lookup", ttl=9.0)
        first, second, again = rows.storage.lookup([(rows, every), (kept, every), (rows, every[::-1].copy())])
        assert_equal([first, again[::-1], rows.lookup(every)])
        assert_equal([second, kept.lookup(every)])
    assert_same_rows(groups, every)
    figures = [stats_of(rows) for rows in groups]
    for name in ("rows", "lookup_keys", "inserts", "misses", "push_keys", "updates"):
        assert figures[0][name] == figures[1][name], name
    assert figures[0]["gradient_square_sum"] == pytest.approx(figures[1]["gradient_square_sum"])


@pytest.mark.parametrize(("optimizer", "rows"), [("adagrad", None), ("sgd", 420)])
def test_fused_batches_of_every_setting_train_as_in_memory(
    open_storage: Open, optimizer: str, rows: int | None
) -> None:
    # 420: room for 64 rows of dim 8, so that rows come and go
    random = np.random.default_rng(2)
    stores = (open_storage("above", rows=rows), open_storage("below", device=None))
    options: dict[str, Any] = {"optimizer": PyOptimizer(name=optimizer, gamma=0.3), "miss_value": 0.25}
    fused = [FusedEmbedding(every_feature(two_tables(storage, **options))) for storage in stores]
    used: set[int] = set()
    for step in range(3 if rows is None else 2):
        batch = random_batch(random, fused[0].features, 5, unsigned=step == 2)
        outs = [each.lookup(batch, train=step > 0) for each in fused]
        np.testing.assert_allclose(outs[0].pooled, outs[1].pooled, rtol=1e-5, atol=2e-6)
        for name, values in outs[0].sequences.items():
            np.testing.assert_allclose(values, outs[1].sequences[name], rtol=1e-5, atol=2e-6, err_msg=name)
        pooled, sequences = random_gradients(random, outs[0])
        for each, out in zip(fused, outs, strict=True):
            assert each.apply_gradients(out if step % 2 else batch, pooled * 0.1, sequences)
        used |= {int(key) for ragged in batch.values() for key in ragged.keys.view(np.int64)}
    for one, other in zip(
        *({each.embedding.group: each.embedding for each in f.features}.values() for f in fused), strict=True
    ):
        keys = np.array(sorted(used))
        found = contents(one, keys), contents(other, keys)
        for i in (0, 1):
            np.testing.assert_allclose(found[0][i], found[1][i], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[0][2], found[1][2])
        assert stats_of(one)["device"]
        assert stats_of(one)["skipped_unadmitted"] == stats_of(other)["skipped_unadmitted"] == 0
    assert_sound(stores[0])


def test_rows_come_and_go_through_a_small_memory_and_nothing_is_lost(open_storage: Open) -> None:
    stores = (open_storage("above", rows=64 * 2, memory_budget=1 << 16), open_storage("below", device=None))
    groups = [embedding(storage, 4, optimizer=adagrad(), initializer=uniform()) for storage in stores]
    rng = np.random.default_rng(5)
    for step in range(20):
        keys = np.unique(rng.integers(0, 2_000, 60))
        for rows in groups:
            rows.lookup(keys)
            rows.apply_gradients(keys, ones(keys.size, value=1 + step / 8))
        if step % 8 == 7:
            stores[0].flush()
    figures = stats_of(groups[0])
    assert figures["evictions"] > 0
    assert table_of(groups[0]).evictions > 300
    assert_equal(rows.lookup(np.arange(2_000), train=False) for rows in groups)
    assert_same_rows(groups, np.arange(2_000))
    assert_sound(stores[0])


@pytest.mark.parametrize(
    "options",
    [
        {"admission": {"name": "min_count", "count": 3}, "unadmitted_value": 0.5},
        {"absent": "skip", "miss_value": -1.0},
        {"not_finite": "skip_row"},
        {"padding_key": 3},
        {"step": "global", "optimizer": PyOptimizer(name="adam", gamma=0.1)},
        {"optimizer": PyOptimizer({"name": "sgd", "gamma": 0.5}, DECAY)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_a_group_hold_on_the_device(open_storage: Open, options: dict[str, Any]) -> None:
    stores = (open_storage("above"), open_storage("below", device=None))
    groups = [embedding(storage, **{"initializer": uniform(), **options}) for storage in stores]
    assert [stats_of(rows)["device"] for rows in groups] == [True, False]
    rng = np.random.default_rng(6)
    for step in range(1, 6):
        keys, grads = rng.integers(0, 12, 20), rng.integers(-4, 5, (20, 4)).astype(np.float32)
        if "not_finite" in options:
            grads[step] = np.inf
        for rows in groups:
            if "step" in options:
                rows.global_step = step
        found = [rows.lookup(keys, train="absent" not in options or step < 3) for rows in groups]
        assert_equal(found)
        for rows in groups:
            rows.apply_gradients(keys, grads)
    figures = [stats_of(rows) for rows in groups]
    names = (
        "rows",
        "inserts",
        "misses",
        "not_admitted",
        "push_keys",
        "updates",
        "skipped_absent",
        "skipped_unadmitted",
    )
    for name in (*names, "skipped_not_finite"):
        assert figures[0][name] == figures[1][name], name
    assert_same_rows(groups, np.arange(12))


@pytest.mark.parametrize(
    "options",
    [{"duplicates": "sequential"}, {"refresh": "lookup", "ttl": 9}, {"miss_value": "initializer"}],
    ids=lambda options: next(iter(options)),
)
def test_groups_that_a_device_cannot_keep_stay_in_memory_beside_others(
    open_storage: Open, options: dict[str, Any]
) -> None:
    storage = open_storage()
    above, below = embedding(storage, group=1), embedding(storage, group=2, **options)
    assert [stats_of(rows)["device"] for rows in (above, below)] == [True, False]
    fused = FusedEmbedding([Feature("a", above, "sum"), Feature("b", below, "sum"), Feature("c", below, None)])
    batch = {name: Ragged.from_lists([[1, 2], [2]]) for name in "abc"}
    fused.apply_gradients(fused.lookup(batch), ones(2, 8), {"c": ones(3)})
    out = fused.lookup(batch, train=False)
    assert out["a"][:, 0].tolist() == [-1.5, -1.0]
    assert out["b"][:, 0].tolist() == [-3.0, -2.0]
    assert out["c"][:, 0].tolist() == [-1.0, -2.0, -2.0]


def test_settings_that_a_device_cannot_do_take_a_group_off_it_and_back(open_storage: Open) -> None:
    rows = embedding(open_storage())
    rows.apply_gradients(keys_of(1), ones(1))
    rows.alter(duplicates="sequential")
    assert not stats_of(rows)["device"]
    rows.apply_gradients(keys_of(1, 1), ones(2))
    rows.alter(duplicates="sum", weight_min=-1.75)
    assert stats_of(rows)["device"]
    rows.apply_gradients(keys_of(1), ones(1))
    assert rows.lookup(keys_of(1), train=False)[0, 0] == -1.75


def test_a_lookup_of_more_rows_than_there_is_room_for_is_done_in_pieces(open_storage: Open) -> None:
    rows = small(open_storage(rows=64), initializer=uniform())
    keys = np.arange(300)
    first = rows.lookup(keys)
    np.testing.assert_array_equal(rows.lookup(keys, train=False), first)
    assert rows.prefetch(np.arange(-10, 300)) == (300, 10)
    assert stats_of(rows)["rows"] == 300


def test_a_push_of_more_rows_than_there_is_room_for_changes_nothing(open_storage: Open) -> None:
    rows = small(open_storage(rows=64))
    rows.apply_gradients(np.arange(64), ones(64))
    with pytest.raises(DeviceOutOfMemory, match=r"device memory of 64 rows.*larger budget"):
        rows.apply_gradients(np.arange(65), ones(65))
    with pytest.raises(DeviceOutOfMemory):
        FusedEmbedding([Feature("x", rows)]).lookup({"x": Ragged.from_lists([list(range(65))])})
    assert stats_of(rows)["push_keys"] == 64
    rows.apply_gradients(np.arange(64), ones(64))
    np.testing.assert_array_equal(rows.lookup(np.arange(64), train=False), ones(64, value=-1.0))
    assert_sound(rows.storage)


def test_a_push_that_fails_leaves_no_rows_behind(open_storage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))

    def full(*_: Any) -> int:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).journal, "append", full)
        with pytest.raises(OSError, match="no room"):
            rows.apply_gradients(keys_of(1, 2, 3), ones(3))
    with pytest.raises(GradientNotFinite):
        FusedEmbedding([Feature("x", rows, "sum")]).apply_gradients(
            {"x": Ragged.from_lists([[4, 4]])}, ones(1, value=3e38)
        )
    assert (stats_of(rows)["rows"], stats_of(rows)["push_keys"]) == (1, 1)
    assert rows.lookup(keys_of(1, 2, 4), train=False)[:, 0].tolist() == [-0.5, 0, 0]
    assert_sound(storage)


def test_groups_share_the_device_evenly(open_storage: Open) -> None:
    storage = open_storage(rows=300)
    first = small(storage, 300, group=1)
    first.apply_gradients(np.arange(200), ones(200))
    assert stats_of(first)["device_rows"] == 200
    second = embedding(storage, group=2)
    assert (table_of(first).capacity, table_of(second).capacity) == (150, 150)
    np.testing.assert_array_equal(first.lookup(np.arange(100), train=False), ones(100, value=-0.5))
    third = embedding(storage, group=3, dim=64)  # for whom a third of it is too little
    third.apply_gradients(keys_of(1), ones(1, 64))
    assert [stats_of(rows)["device"] for rows in (first, second, third)] == [True, True, False]


def test_rows_expire_on_the_device_as_in_memory(open_storage: Open, clock: Clock) -> None:
    stores = [open_storage(name, clock=clock, ttl=10, **o) for name, o in (("above", {}), ("below", {"device": None}))]
    groups = [embedding(storage, initializer=uniform()) for storage in stores]
    rng = np.random.default_rng(9)
    for _ in range(12):
        keys = rng.permutation(40)[:16]
        assert_equal(rows.lookup(keys, train=bool(clock.now % 2)) for rows in groups)
        for rows in groups:
            rows.apply_gradients(keys[:8], ones(8))
        clock.now += 3
        if rng.random() < 0.3:
            for storage in stores:
                storage.flush()
                engine_of(storage)._background._sweeper.turn(10.0)
    assert_equal(rows.lookup(np.arange(40), train=False) for rows in groups)
    assert stats_of(groups[0])["expired"] == stats_of(groups[1])["expired"] > 0
    assert stats_of(groups[0])["rows"] == stats_of(groups[1])["rows"]


def test_a_raised_ttl_finds_rows_as_they_were_last(open_storage: Open, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage, ttl=10)
    rows.apply_gradients(keys_of(1), ones(1))
    storage.flush()
    clock.now += 5
    rows.apply_gradients(keys_of(1), ones(1))
    clock.now += 11
    assert not rows.lookup(keys_of(1), train=False).any()
    rows.alter(ttl=100)
    assert rows.lookup(keys_of(1), train=False)[0, 0] == -1.0


def test_initial_rows_of_every_store_are_the_same(open_storage: Open) -> None:
    normal = PyInitializer(name="random_normal", mean=0.0, stddev=1.0)
    found = [embedding(open_storage(n, **o), initializer=normal).lookup(np.arange(50))
             for n, o in (("above", {}), ("below", {"device": None}))]  # fmt: skip
    assert_equal(found)
