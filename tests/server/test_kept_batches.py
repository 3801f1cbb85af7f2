"""Kept batches: whose they are, how long, how many."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rockbed import UnknownHandle
from rockbed.bags import Bags
from rockbed.server import fused
from rockbed.server.kept_batches import KeptBatches
from rockbed.server.limits import Limits
from tests.api.fused_batches import bags
from tests.api.helpers import Clock, OpenStorage, embedding, engine_of

MIB = 1 << 20


@dataclass
class Plan:
    """What KeptBatches sees of one."""

    nbytes: int = MIB
    batch: list[Bags] = field(default_factory=list)


OF_A_MIB: Any = Plan()


@pytest.fixture
def kept(clock: Clock) -> KeptBatches:
    """For 10 MiB, less than a MiB of which is for objects, and a minute."""
    return KeptBatches(Limits(kept_bytes_max=11 * MIB - 1, kept_s=60), clock=clock)


def _keep(kept: KeptBatches, plan: Any = OF_A_MIB, owner: str = "a") -> bytes:
    handle = kept.keep(plan, owner)
    assert handle is not None
    return handle


def _is_known(kept: KeptBatches, handle: bytes, owner: str = "a") -> bool:
    try:
        with kept.taken(handle, owner):
            raise KeyError  # so that it stays
    except KeyError:
        return True
    except UnknownHandle:
        return False


def test_a_batch_is_its_owners_until_it_was_pushed(kept: KeptBatches) -> None:
    plan: Any = Plan()
    handle, other = _keep(kept, plan), _keep(kept)
    assert (len(handle), handle != other) == (16, True)
    with kept.taken(handle, "a") as found:
        assert found is plan
    assert not _is_known(kept, handle)
    assert _is_known(kept, other)


def test_a_push_that_fails_leaves_it(kept: KeptBatches) -> None:
    handle = _keep(kept)
    with pytest.raises(ZeroDivisionError), kept.taken(handle, "a"):
        _ = 1 / 0
    assert _is_known(kept, handle)


@pytest.mark.parametrize("handle", [b"", b"x", bytes(16), bytes(17), None])
def test_what_is_no_handle_of_the_callers_is_unknown_in_the_same_words(kept: KeptBatches, handle: bytes | None) -> None:
    own = _keep(kept, owner="b")
    said = set()
    for one in (own if handle is None else handle, b"never"):
        with pytest.raises(UnknownHandle) as caught, kept.taken(one, "a"):
            pass
        said.add(str(caught.value))
    assert len(said) == 1
    assert _is_known(kept, own, "b")


def test_it_is_known_for_its_time_and_no_longer(kept: KeptBatches, clock: Clock) -> None:
    handle = _keep(kept)
    clock.now += 59
    later = _keep(kept)
    assert _is_known(kept, handle)
    clock.now += 1
    assert not _is_known(kept, handle)
    assert _is_known(kept, later)
    assert kept.statistics()["kept_batches"] == 1


def test_the_oldest_make_room(kept: KeptBatches) -> None:
    handles = [_keep(kept) for _ in range(12)]
    assert [_is_known(kept, handle) for handle in handles] == [False] * 2 + [True] * 10
    large = _keep(kept, Plan(7 * MIB))
    assert [_is_known(kept, handle) for handle in handles] == [False] * 9 + [True] * 3
    assert _is_known(kept, large)
    found = kept.statistics()
    assert found["kept_batches"] == 4
    assert 10 * MIB <= found["kept_bytes"] < 11 * MIB


def test_one_larger_than_the_limit_is_not_kept_and_evicts_nothing(kept: KeptBatches) -> None:
    handle = _keep(kept)
    plan: Any = Plan(11 * MIB)
    assert kept.keep(plan, "a") is None
    assert _is_known(kept, handle)


def test_batches_of_nothing_count_too(kept: KeptBatches) -> None:
    features = [Bags(str(i), 0, np.empty(0, np.int64), np.zeros(1, np.int64)) for i in range(1_000)]
    for _ in range(100):
        _keep(kept, Plan(0, features))
    assert kept.statistics()["kept_batches"] < 30


def test_a_batch_that_is_being_pushed_is_neither_evicted_nor_too_old(kept: KeptBatches, clock: Clock) -> None:
    handle = _keep(kept, Plan(6 * MIB))
    with kept.taken(handle, "a"):
        assert kept.keep(Plan(6 * MIB), "a") is None  # type: ignore[arg-type]
        clock.now += 3_600
        assert _is_known(kept, handle)
        with kept.taken(handle, "a"):  # sent again: whichever ends first, it is gone once
            pass
        assert not _is_known(kept, handle)
    assert kept.statistics() == {"kept_batches": 0, "kept_bytes": 0}


def test_a_limit_of_nothing_keeps_nothing() -> None:
    plan: Any = Plan(0)
    assert KeptBatches(Limits(kept_bytes_max=0)).keep(plan, "a") is None


def test_another_engine_has_the_limits_and_none_of_the_batches(kept: KeptBatches, clock: Clock) -> None:
    handle = _keep(kept)
    renewed = kept.renewed()
    assert not _is_known(renewed, handle)
    own = _keep(renewed)
    clock.now += 60
    assert not _is_known(renewed, own)
    kept.clear()
    assert kept.statistics()["kept_bytes"] == 0


def test_threads_may_keep_and_push_at_once(kept: KeptBatches) -> None:
    pushed: list[bytes] = []

    def work() -> None:
        for _ in range(300):
            handle = _keep(kept)
            try:
                with kept.taken(handle, "a"):
                    pushed.append(handle)
            except UnknownHandle:
                pass

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(pushed)) == len(pushed) > 0
    assert kept.statistics() == {"kept_batches": 0, "kept_bytes": 0}


def test_a_plan_counts_every_array_once(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage, 4, 1)
    n = 10_000
    kept_whole = bags("a", 1, *([key] for key in range(n)))
    pruned = bags("a", 1, *([key, -1] for key in range(n)))
    sizes = []
    for one in (kept_whole, pruned):
        plan = fused.lookup(engine_of(storage), [one], np.empty((n, 4), np.float32), [], train=True)
        sizes.append(plan.nbytes)
    keys = offsets = rows = 8 * n
    assert keys + offsets + rows <= sizes[0] < keys + offsets + rows + 100
    # two keys a bag as they came, room for as many of which half are left, offsets of both, and a scale
    assert sizes[1] >= 2 * keys + 2 * keys + 2 * offsets + rows
