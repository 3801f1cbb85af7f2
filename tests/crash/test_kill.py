"""kill -9 at random moments: what was acknowledged is there exactly once, in all groups or in none."""

import copy
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage
from rockbed.types import F64, I64
from tests.crash.lives import Killer
from tests.crash.model import Model
from tests.crash.steps import (
    ADMITTED,
    GLOBAL,
    GROUPS,
    MIN_COUNT,
    MISS,
    SHRUNK,
    TTL_S,
    batch,
    global_step,
    keys_of,
)
from tests.crash.writer import CLIENT, open_store

# Kills that count: after the opening began, before the store was closed. By what the writer was doing.
FEW = {"writing": 2, "opening": 1, "flushing": 1, "closing": 1}
MANY = {"writing": 13, "opening": 5, "flushing": 2, "shrinking": 3, "closing": 2}
SEEDS = [2, 3]
TRIES = 4  # lives for each kill that is wanted: one may end before its kill

# float32 against float64. Each update rounds a weight of 1 to 2^-24 of it, 6e-8, and itself, which is not larger than
# its rate, to some 2^-21 of it: 5e-8 for Adagrad's 0.1. The longest history gives a row 60 updates, so 7e-6 if all
# erred alike; 6e-7 was measured. An update that is missing, or doubled, moves a row by a share of its rate: 1e-3.
TOLERANCE = 7e-6


def sightings(embedding: PyEmbedding) -> I64:
    """int64[keys]: how often each key without a row was seen, by what it lacks to be admitted; -1 for those with one.

    Leaves the store changed: for copies.
    """
    keys = keys_of(ADMITTED)
    seen = np.full(keys.size, -1)
    there = embedding.lookup(keys, train=False)[:, 0] != MISS
    embedding.apply_gradients(
        keys, np.zeros((keys.size, embedding.dim), np.float32)
    )  # makes rows of admitted keys only
    for count in range(MIN_COUNT, -1, -1):
        now_there = embedding.lookup(keys, train=False)[:, 0] != MISS
        seen[now_there & ~there] = count
        there = now_there
        embedding.lookup(keys[~there])  # a sighting more for the rest
    assert there.all()
    return seen


def compare(directory: Path, model: Model) -> None:
    """Open the store, compare every row, and let the model know what became of what was in doubt."""
    storage, embeddings = open_store(directory, lambda: model.now_s)
    with storage:
        assert storage.check().problems == []
        last = storage.last_request(CLIENT)
        assert last in (model.last, max(model.last, model.sent)), "a push is lost, or one that nobody made is there"
        steps = {model.global_step}
        if last > model.last:
            model.push(last)
            steps = {model.global_step}
        elif model.begun > last and batch(model.seed, model.begun).has(GLOBAL):
            steps.add(global_step(model.begun))  # it may have been set, and saved, before the push
        assert embeddings[GLOBAL].global_step in steps
        model.sent = last
        if last:
            again = [(embeddings[group], keys, grads) for group, keys, grads in batch(model.seed, last).pushed]
            assert not storage.apply_gradients(again, request=(CLIENT, last)), "the newest request was applied twice"
        for group, embedding in embeddings.items():
            compare_rows(embedding.lookup(keys_of(group), train=False).astype(np.float64), model, group)
        model.doubtful = None
        model.adopt_sightings(sightings(embeddings[ADMITTED]))


def compare_rows(rows: F64, model: Model, group: int) -> None:
    """rows: float64[keys, dim], every key's, as lookups without training give them."""
    mine, there = model.rows[group], rows[:, 0] != MISS
    mine.expire(model.now_s)
    unfinished = model.doubtful if group == SHRUNK else None
    mine.adopt(there, np.zeros_like(there) if unfinished is None else unfinished)
    if GROUPS[group].optimizer == "sgd":
        np.testing.assert_array_equal(rows[there], mine.weights[there], f"group {group}")
    else:
        np.testing.assert_allclose(rows[there], mine.weights[there], rtol=0, atol=TOLERANCE, err_msg=f"group {group}")
    assert (rows[~there] == MISS).all()


def compare_copy(directory: Path, model: Model) -> None:
    """Compare what a crash left, and leave it as it is: the next life has to recover from it."""
    copied = directory.with_name("copy")
    shutil.copytree(directory, copied, ignore=shutil.ignore_patterns("LOCK"))
    compare(copied, model)
    shutil.rmtree(copied)


def compare_checkpoints(directory: Path, lines: list[str], models: dict[int, Model]) -> None:
    """A checkpoint that was acknowledged has every row of its moment; one that just has its name is whole."""
    unfinished = {step for step in models if f"checkpointed {step}" not in lines}
    for checkpoint in directory.parent.glob("checkpoint-*"):
        step = int(checkpoint.name.split("-")[1])
        restored = directory.with_name("restored")
        PyStorage.restore(checkpoint, restored)
        compare(restored, models.pop(step))
        shutil.rmtree(restored)
        shutil.rmtree(checkpoint)
    assert models.keys() <= unfinished, "a checkpoint that was acknowledged is not there"


def follow(model: Model, lines: list[str]) -> dict[int, Model]:
    """Let the model follow a life. Returns what its checkpoints should hold, by their step."""
    checkpoints: dict[int, Model] = {}
    for line in lines:
        model.follow(line)
        word, *numbers = line.split()
        if word == "checkpointing":
            checkpoints[int(numbers[0])] = copy.deepcopy(model)
        elif word == "checkpointed":
            checkpoints[int(numbers[0])].settle()
    return checkpoints


@pytest.fixture
def killer(request: pytest.FixtureRequest) -> Iterator[Killer]:
    """Kills by the seed that the test is given."""
    made = Killer(random.Random(request.param))
    yield made
    made.close()


def kill_again_and_again(killer: Killer, directory: Path, wanted: dict[str, int]) -> None:
    """Kill until there were as many kills in each phase as wanted, comparing after each."""
    chance = killer.chance
    model = Model(seed=chance.randrange(1_000))
    kills: Counter[str] = Counter()
    moments = []
    for _ in range(TRIES * sum(wanted.values())):
        left = [phase for phase, count in wanted.items() for _ in range(count - kills[phase])]
        if not left:
            break
        aim = chance.choice(left) if model.last else "nothing"  # first of all rows that every later life can spoil
        life = killer.live(directory, model.seed, model.now_s, aim)
        moments.append(
            (aim, life.phase if life.killed else f"does not count, ended with {life.status}", life.lines[-1])
        )
        assert life.status in (0, -signal.SIGKILL), f"the writer failed by itself: {life.lines[-3:]}"
        kills[life.phase] += life.killed
        checkpoints = follow(model, life.lines)
        compare_copy(directory, model)
        compare_checkpoints(directory, life.lines, checkpoints)
        model.now_s += chance.choice([0, 0, 1, TTL_S // 2, TTL_S])  # a store that is closed grows older, too
    print(f"{model.last} steps, {sum(kills.values())} kills: {dict(kills)}", *moments, sep="\n")
    assert all(kills[phase] >= count for phase, count in wanted.items()), moments
    compare(directory, model)


@pytest.mark.parametrize("killer", [1], indirect=True)
def test_five_kills_lose_and_double_nothing(killer: Killer, tmp_path: Path) -> None:
    kill_again_and_again(killer, tmp_path / "store", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("killer", SEEDS, indirect=True)
def test_fifty_kills_and_more_lose_and_double_nothing(killer: Killer, tmp_path: Path) -> None:
    assert len(SEEDS) * sum(MANY.values()) >= 50
    kill_again_and_again(killer, tmp_path / "store", MANY)
