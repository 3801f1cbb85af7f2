"""Every update rule behind the store: bit for bit what PyOptimizer.call makes of the same rows, also after a crash."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.optimizers import make_optimizer, optimizer_names
from rockbed.types import F32, I64
from tests.api.helpers import OpenStorage, as_after_kill, assert_sound

DIM, SEED = 5, 11
KEYS = np.array([0, -1, 2**63 - 1, -(2**63), *range(100, 124)])


def optimizer_of(name: str, **parameters: Any) -> PyOptimizer:
    """The rule with its default parameters, and accumulators that do not begin at 0."""
    if "initial_accumulator" in make_optimizer(name).params():
        parameters["initial_accumulator"] = 0.375
    return PyOptimizer({"name": name, **parameters})


class Reference:
    """float32 rows in a dict, each begun by PyInitializer.call and pushed by PyOptimizer.call."""

    def __init__(self, optimizer: PyOptimizer, group: int = 3) -> None:
        self.optimizer = optimizer
        self.group = group
        self.initializer = PyInitializer(name="random_normal")
        self.rows: dict[int, F32] = {}
        self.updates: dict[int, int] = {}

    def open(self, storage: PyStorage, **options: Any) -> PyEmbedding:
        """The group in a store that is compared with this."""
        return PyEmbedding(storage, self.optimizer, self.initializer, DIM, self.group, seed=SEED, **options)

    def push(self, keys: I64, gradients: F32, step: int | None = None) -> None:
        """step: the global one; without it each row counts its own."""
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            if key not in self.rows:
                weights = np.empty(DIM, np.float32)
                self.initializer.call(weights, seed=SEED, group=self.group, key=key)
                self.rows[key] = np.concatenate([weights, self.optimizer.rule.initial_state(DIM)])
            self.updates[key] = self.updates.get(key, 0) + 1
            self.optimizer.call(self.rows[key], gradient, self.updates[key] if step is None else step)

    def train(self, rows: PyEmbedding, turns: int, seed: int, *, first_step: int | None = None, of: I64 = KEYS) -> None:
        """Push the same gradients here and there, to two thirds of the keys at a time: the rows' counts differ."""
        random = np.random.default_rng(seed)
        for turn in range(turns):
            keys = random.permutation(of)[: of.size * 2 // 3]
            gradients = random.normal(size=(keys.size, DIM)).astype(np.float32)
            step = None if first_step is None else first_step + 3 * turn
            if step is not None:
                rows.global_step = step
            rows.apply_gradients(keys, gradients)
            self.push(keys, gradients, step)

    def assert_same(self, rows: PyEmbedding) -> None:
        """The weights in the store are these, to the bit."""
        keys = np.array(sorted(self.rows))
        expected = np.stack([self.rows[key][:DIM] for key in keys.tolist()])
        assert np.isfinite(expected).all()
        found = rows.lookup(keys, train=False)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def through_a_crash_and_a_reopening(
    open_storage: OpenStorage, tmp_path: Path, reference: Reference, *, step: str = "row"
) -> None:
    """Train, crash, train, close, train: the slots, which a lookup does not show, are seen in what comes after."""

    def first_step(number: int) -> int | None:
        return number if step == "global" else None

    storage = open_storage()
    rows = reference.open(storage, step=step)
    reference.train(rows, 3, seed=1, first_step=first_step(1))
    storage.flush()  # rows that are on disk, others that are in the journal too, and some in it only
    reference.train(rows, 3, seed=2, first_step=first_step(20))
    reference.assert_same(rows)
    assert len(set(reference.updates.values())) > 2

    killed = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    replayed = reference.open(killed, step=step)
    reference.assert_same(replayed)
    if step == "global":
        assert replayed.global_step == rows.global_step == 26
    reference.train(replayed, 2, seed=3, first_step=first_step(100))
    reference.assert_same(replayed)
    killed.close()

    reopened = open_storage("killed")
    again = reference.open(reopened, step=step)
    reference.assert_same(again)
    reference.train(again, 2, seed=4, first_step=first_step(1000))
    reference.assert_same(again)
    assert_sound(reopened)


@pytest.mark.parametrize("name", optimizer_names())
def test_a_rule_in_the_store_gives_the_bits_of_its_own_call(
    open_storage: OpenStorage, tmp_path: Path, name: str
) -> None:
    through_a_crash_and_a_reopening(open_storage, tmp_path, Reference(optimizer_of(name)))


# Those whose formula has t in it; the next test is about what a schedule makes of it.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("adam", {}),
        ("group_adam", {}),
        ("rectified_adam", {"beta2": 0.9}),
        ("adagrad", {"eta": 0.1}),
        ("adagrad_decay", {"decay_steps": 10}),
    ],
)
def test_a_global_step_is_the_t_of_every_row(
    open_storage: OpenStorage, tmp_path: Path, name: str, parameters: dict[str, Any]
) -> None:
    reference = Reference(optimizer_of(name, **parameters))
    through_a_crash_and_a_reopening(open_storage, tmp_path, reference, step="global")


@pytest.mark.parametrize("step", ["row", "global"])
def test_a_schedule_sees_the_updates_before_this_one(open_storage: OpenStorage, tmp_path: Path, step: str) -> None:
    schedule = {"name": "exponential_decay", "decay_steps": 4, "decay_rate": 0.5}
    reference = Reference(PyOptimizer({"name": "adam", "gamma": 0.1}, schedule))
    through_a_crash_and_a_reopening(open_storage, tmp_path, reference, step=step)


def test_rows_of_several_rules_side_by_side_keep_their_slots_when_memory_is_short(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=1 << 16)
    names = ("adagrad_decay", "amsgrad", "partial_rowwise_adam")
    trained = []
    for group, name in enumerate(names):
        reference = Reference(optimizer_of(name), group)
        trained.append((reference, reference.open(storage)))
    for turn in range(12):
        for reference, rows in trained:
            reference.train(rows, 1, seed=turn, of=np.arange(300))
    for reference, rows in trained:
        reference.assert_same(rows)
    assert all(group["evictions"] > 0 for group in storage.stats()["groups"].values())
    assert_sound(storage)
