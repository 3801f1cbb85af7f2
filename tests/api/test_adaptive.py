"""AdaptiveEmbedding: static rows of buckets, exact rows that begin as copies of them."""

import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    AdaptiveEmbedding,
    BloomFrequency,
    Frequency,
    GroupConflict,
    InvalidBackward,
    InvalidConfig,
    PyStorage,
    ReadOnlyStorage,
    StorageClosed,
    StorageFull,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from rockbed.client.hashing import hash_buckets
from rockbed.requests import AdaptiveKeys
from rockbed.types import F32, F64, I64, Bool
from tests.api.helpers import (
    QUIET,
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    sgd,
    uniform,
    zeros,
)

DIM = 3


def adaptive(storage: PyStorage, buckets: int = 5, **options: Any) -> AdaptiveEmbedding:
    """SGD at 1 from zeros, so that a weight is minus the sum of its gradients; or as the options say."""
    rules = {"optimizer": sgd(1.0), "initializer": zeros(), **options}
    return AdaptiveEmbedding(storage, dimension=DIM, name="ids", buckets=buckets, **rules)


Counting = type[Frequency] | type[BloomFrequency]
BOTH_COUNTS = pytest.mark.parametrize("counting", [Frequency, BloomFrequency], ids=lambda each: each.name)


def pushed(rows: AdaptiveEmbedding, ids: I64, mask: Any = None, value: float = 1.0) -> Bool:
    found = rows.lookup(ids, mask)
    found.apply_gradients(ones(ids.size, DIM, value))
    return found.mask


# --- the semantics, against a model ---


class Tables:
    """The two tables in float64, a row at a time: weights, Adagrad's squares. No code of the store's."""

    def __init__(self, first: Any, lr: float, slots: str) -> None:
        self.static: dict[int, tuple[F64, F64]] = {}
        self.exact: dict[int, tuple[F64, F64]] = {}
        self._first, self._lr, self._slots = first, lr, slots

    def _static(self, bucket: int) -> tuple[F64, F64]:
        return self.static.get(bucket, (self._first(bucket), np.zeros(DIM)))

    def read(self, ids: I64, buckets: I64, mask: Bool, *, train: bool) -> F64:
        out = np.empty((ids.size, DIM))
        for i, (key, bucket, exact) in enumerate(zip(ids.tolist(), buckets.tolist(), mask, strict=True)):
            if exact and train and key not in self.exact:
                weights, squares = self._static(bucket)
                self.exact[key] = weights, squares if self._slots == "copy" else np.zeros(DIM)
            row = self.exact.get(key) if exact else None
            out[i] = (row or self._static(bucket))[0]
        return out

    def push(self, ids: I64, buckets: I64, mask: Bool, grads: F32) -> None:
        sums: dict[tuple[bool, int], F64] = {}
        for key, bucket, exact, grad in zip(ids.tolist(), buckets.tolist(), mask.tolist(), grads, strict=True):
            place = (exact, key if exact else bucket)
            sums[place] = sums.get(place, np.zeros(DIM)) + grad
        for (exact, key), grad in sums.items():
            table = self.exact if exact else self.static
            weights, squares = table[key] if exact else self._static(key)
            squares = squares + grad * grad
            table[key] = weights - self._lr * grad / (np.sqrt(squares) + 1e-10), squares


@pytest.mark.parametrize("slots", ["copy", "fresh"])
@pytest.mark.parametrize("memory", [1 << 24, SMALL])
def test_random_work_is_what_the_model_says(open_storage: OpenStorage, slots: str, memory: int) -> None:
    storage = open_storage(memory_budget=memory)
    rows = adaptive(storage, 61, optimizer=adagrad(0.5), initializer=uniform(), slots=slots, seed=7)
    firsts = rows.static.lookup(np.arange(61), train=False).astype(np.float64)
    model = Tables(lambda bucket: firsts[bucket], 0.5, slots)
    rng = np.random.default_rng(3)
    seen: set[int] = set()
    for step in range(60):
        ids = rng.integers(-400, 400, rng.integers(1, 120))
        mask = rng.random(ids.size) < 0.4
        buckets = hash_buckets(ids, 61)
        train = step % 5 != 4
        found = rows.lookup(ids, mask.astype(np.int32), train=train)
        wanted = model.read(ids, buckets, mask, train=train)
        np.testing.assert_allclose(found.rows, wanted, rtol=0, atol=1e-4)
        if train:
            np.testing.assert_array_equal(found.mask, mask)
            grads = rng.normal(size=(ids.size, DIM)).astype(np.float32)
            found.apply_gradients(grads)
            model.push(ids, buckets, mask, grads)
            seen.update(ids.tolist())
    report = rows.report()
    assert (report.exact_rows, report.migrated) == (len(model.exact), len(model.exact))
    assert report.ids_seen == pytest.approx(len(seen), rel=0.04)  # five standard errors
    assert_sound(storage)


# --- copies ---


def test_an_exact_row_begins_as_its_static_row_is_then(storage: PyStorage) -> None:
    rows = adaptive(storage, 1)
    pushed(rows, keys_of(1, 2), [0, 0])  # the bucket's row is -2 now
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), [1, 0]).rows[:, 0], [-2, -2])
    pushed(rows, keys_of(1, 2), [1, 0])
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3), [1, 0, 1]).rows[:, 0], [-3, -3, -3])
    pushed(rows, keys_of(2), [0])
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 1), [1, 0, 0]).rows[:, 0], [-3, -4, -4])


def test_a_static_row_that_was_never_trained_is_copied_as_it_would_begin(storage: PyStorage) -> None:
    rows = adaptive(storage, 4, initializer=uniform(), seed=5)
    wanted = rows.static.lookup(hash_buckets(keys_of(8, 9), 4), train=False)
    assert wanted.any()
    found = rows.lookup(keys_of(8, 9), [1, 1])
    np.testing.assert_array_equal(found.rows, wanted)
    assert found.migrated == 2
    assert rows.report().static_rows == 0  # nothing was made for it


@pytest.mark.parametrize(("slots", "squares", "count"), [("copy", 4.0, 1), ("fresh", 0.0, 0)])
def test_slots_are_copied_or_fresh(storage: PyStorage, slots: str, squares: float, count: int) -> None:
    rows = adaptive(storage, 1, optimizer=adagrad(), slots=slots)
    pushed(rows, keys_of(1), [0], 2.0)
    rows.lookup(keys_of(1), [1])
    report = storage.get_rows(rows.exact.group, keys_of(1))
    np.testing.assert_array_equal(report.slots, np.full((1, DIM), squares))
    assert report.update_num.tolist() == [count]
    np.testing.assert_array_equal(report.weights, storage.get_rows(rows.static.group, keys_of(0)).weights)


def test_without_training_nothing_changes_and_the_bucket_is_read(storage: PyStorage) -> None:
    rows = adaptive(storage, 1, threshold=Frequency(enter=2))
    pushed(rows, keys_of(1), [0])
    before = storage.stats()["last_lsn"], rows.report()
    for mask in ([1], [0], None):
        found = rows.lookup(keys_of(1), mask, train=False)
        assert (found.rows[0, 0], found.mask.tolist(), found.migrated) == (-1, [False], 0)
    assert (storage.stats()["last_lsn"], rows.report()) == before
    with pytest.raises(InvalidBackward, match="train=False"):
        found.apply_gradients(ones(1, DIM))


def test_gradients_of_one_row_are_summed_and_go_to_it_alone(storage: PyStorage) -> None:
    rows = adaptive(storage, 1)
    found = rows.lookup(keys_of(1, 1, 2, 1, 3), [1, 0, 0, 1, 0])
    lsn = storage.stats()["last_lsn"]
    found.apply_gradients(np.arange(1, 6, dtype=np.float32).repeat(DIM).reshape(5, DIM))
    assert storage.stats()["last_lsn"] == lsn + 1  # both tables in one change
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 1), [1, 0]).rows[:, 0], [-(1 + 4), -(2 + 3 + 5)])


def test_a_gradient_is_taken_once(storage: PyStorage) -> None:
    rows = adaptive(storage)
    found = rows.lookup(keys_of(1, 2), [1, 0])
    with pytest.raises(WrongShape):
        found.apply_gradients(ones(3, DIM))
    found.apply_gradients(ones(2, DIM))
    with pytest.raises(InvalidBackward, match="look up again"):
        found.apply_gradients(ones(2, DIM))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), [1, 0]).rows, -ones(2, DIM))


def test_a_gradient_of_a_row_that_has_gone_since_is_dropped(storage: PyStorage) -> None:
    rows = adaptive(storage, 1)
    found = rows.lookup(keys_of(1), [1])
    storage.shrink(group=rows.exact.group, min_count=1)
    found.apply_gradients(ones(1, DIM))
    assert storage.stats()["groups"][rows.exact.group]["skipped_absent"] == 1
    assert rows.report().exact_rows == 0


def test_an_expired_exact_row_begins_anew_as_the_static_row_is(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=50, clock=clock)
    rows = adaptive(storage, 1, ttl=10)
    pushed(rows, keys_of(1), [1], 5.0)
    pushed(rows, keys_of(2), [0], 2.0)
    clock.now += 10
    assert rows.lookup(keys_of(1), [1], train=False).rows[0, 0] == -2
    clock.now += 1000  # far beyond the store's ttl: static rows stay
    found = rows.lookup(keys_of(1), [1])
    assert (found.rows[0, 0], found.migrated) == (-2, 1)


def test_an_id_that_is_not_admitted_has_the_row_of_its_bucket(storage: PyStorage) -> None:
    rows = adaptive(storage, 1, admission={"name": "min_count", "count": 3})
    assert pushed(rows, keys_of(1, 1), [1, 1]).tolist() == [False, False]
    found = rows.lookup(keys_of(1, 2), [1, 1])
    assert (found.mask.tolist(), found.migrated) == ([True, False], 1)
    np.testing.assert_array_equal(found.rows[:, 0], [-2, -2])


def test_ids_are_integers_of_either_sign_or_strings(storage: PyStorage) -> None:
    rows = adaptive(storage, 7)
    ids = keys_of(-(2**63), -1, 0, 2**63 - 1)
    assert pushed(rows, ids, [1, 1, 1, 1]).all()
    assert (rows.lookup(ids, [1] * 4).rows == -1).all()
    words = AdaptiveEmbedding(storage, sgd(1.0), zeros(), DIM, "words", 7, key_dtype=str)
    found = words.lookup(["a", "b", "a"], [1, 0, 1])
    found.apply_gradients(ones(3, DIM))
    assert words.lookup(["a", "b"], [1, 0]).rows[:, 0].tolist() == [-2, -1]
    bucket = hash_buckets(["b"], 7)
    np.testing.assert_array_equal(words.static.lookup(bucket, train=False), -ones(1, DIM))


def test_no_ids_are_nothing(storage: PyStorage) -> None:
    found = adaptive(storage).lookup(keys_of(), [])
    assert (found.rows.shape, found.mask.shape, found.migrated) == ((0, DIM), (0,), 0)
    found.apply_gradients(np.empty((0, DIM), np.float32))


# --- durability ---


def test_copies_are_there_after_a_kill(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage(memory_budget=SMALL)
    threshold = Frequency(enter=2, half_life=9)
    options: dict[str, Any] = {"optimizer": adagrad(), "initializer": uniform(), "threshold": threshold}
    rows = adaptive(storage, 8, **options)
    ids = np.arange(600)
    for part in np.split(ids, 6):
        pushed(rows, part, part % 2)
        rows.lookup(part)
    storage.flush()
    pushed(rows, ids[:100], np.ones(100, int))  # 50 copies more, and pushes, that only the journal has
    wanted = rows.lookup(ids, ids % 2, train=False)
    counted = rows.report()
    with PyStorage(as_after_kill(storage, tmp_path / "killed"), **QUIET) as after:
        again = adaptive(after, 8, **options)
        found = again.lookup(ids, ids % 2, train=False)
        np.testing.assert_array_equal(found.rows, wanted.rows)
        assert again.report().migrated == counted.migrated == 350
        assert again.report().exact_rows == counted.exact_rows
        assert_sound(after)


@BOTH_COUNTS
def test_a_store_opened_again_goes_on(open_storage: OpenStorage, counting: Counting) -> None:
    with open_storage() as storage:
        rows = adaptive(storage, 1, threshold=counting(enter=3, half_life=100))
        pushed(rows, keys_of(1, 1, 2, 3, 3, 3))
    with open_storage() as storage:
        rows = adaptive(storage, 1, threshold=counting(enter=3, half_life=100))
        assert rows.lookup(keys_of(1, 2, 3), train=False).mask.tolist() == [False, False, True]
        assert rows.report().ids_exact == 1
        assert pushed(rows, keys_of(1, 2)).tolist() == [True, False]
        assert rows.report().ids_seen == 3


@BOTH_COUNTS
def test_after_a_kill_counts_are_those_of_the_last_flush(
    open_storage: OpenStorage, tmp_path: Path, counting: Counting
) -> None:
    storage = open_storage()
    rows = adaptive(storage, 1, threshold=counting(enter=3))
    pushed(rows, keys_of(1, 1, 1, 2, 2))
    storage.flush()
    assert pushed(rows, keys_of(2, 3, 3, 3)).all()
    with PyStorage(as_after_kill(storage, tmp_path / "killed"), **QUIET) as after:
        again = adaptive(after, 1, threshold=counting(enter=3))
        assert again.lookup(keys_of(1, 2, 3), train=False).mask.tolist() == [True, False, False]
        assert again.exact.lookup(keys_of(3), train=False)[0, 0] == -5  # its row is there: a copy of -2, and 3 pushes
        assert pushed(again, keys_of(2, 3)).tolist() == [True, False]
        assert_sound(after)


@pytest.mark.embedded
def test_a_read_only_store_reads_and_makes_nothing(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store", **QUIET) as storage:
        pushed(adaptive(storage, 1), keys_of(1), [1])
    with PyStorage(tmp_path / "store", read_only=True) as storage:
        rows = adaptive(storage, 1)
        assert rows.lookup(keys_of(1, 2), [1, 1], train=False).rows[:, 0].tolist() == [-1, 0]
        with pytest.raises(ReadOnlyStorage):
            rows.lookup(keys_of(2), [1])


@pytest.mark.embedded
def test_a_full_disk_leaves_no_row_that_is_no_copy(
    open_storage: OpenStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(clock=clock)
    rows = adaptive(storage, 1, ttl=10)
    pushed(rows, keys_of(1), [1], 5.0)
    pushed(rows, keys_of(1), [0], 2.0)
    clock.now += 10  # the row of 1 begins anew, that of 2 for the first time
    before = rows.report()

    def pwritev(handle: int, buffers: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        with pytest.raises(StorageFull):
            rows.lookup(keys_of(1, 2), [1, 1])
    assert (rows.report().exact_rows, rows.report().migrated) == (before.exact_rows, before.migrated)
    assert rows.lookup(keys_of(1, 2), [1, 1], train=False).mask.tolist() == [False, False]
    found = rows.lookup(keys_of(1, 2), [1, 1])
    assert (found.rows[:, 0].tolist(), found.migrated) == ([-2, -2], 2)
    assert_sound(storage)


@pytest.mark.embedded
def test_a_full_disk_leaves_expired_rows_expired(
    open_storage: OpenStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(clock=clock)
    rows = adaptive(storage, 1, ttl=10)
    pushed(rows, np.arange(5), np.ones(5, int))
    storage.flush()
    clock.now += 10

    def pwritev(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        with pytest.raises(StorageFull):
            rows.lookup(np.arange(7), np.ones(7, int))
    assert not rows.lookup(np.arange(7), np.ones(7, int), train=False).mask.any()
    found = rows.lookup(np.arange(7), np.ones(7, int))
    assert not found.rows.any()
    assert (found.migrated, rows.report().exact_rows) == (7, 7)
    assert_sound(storage)


_WRITER = """
from rockbed import AdaptiveEmbedding
with PyStorage(sys.argv[1], write_back_interval=0.05) as storage:
    rules = PyOptimizer(name="sgd", gamma=1.0), PyInitializer(name="zeros")
    rows = AdaptiveEmbedding(storage, *rules, 3, "ids", 1)
    for key in range(int(sys.argv[2]), 10**9):
        rows.static.apply_gradients(np.array([0]), np.ones((1, 3), np.float32))
        print(key, int(rows.lookup(np.array([key]), [1]).rows[0, 0]), flush=True)
"""


@pytest.mark.embedded
def test_copies_survive_kill_9(tmp_path: Path) -> None:
    head = "import sys\nimport numpy as np\nfrom rockbed import PyInitializer, PyOptimizer, PyStorage\n"
    seen: dict[int, int] = {}
    for life in range(2):
        command = [sys.executable, "-c", head + _WRITER, str(tmp_path / "store"), str(10_000 * life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
            assert writer.stdout is not None
            for line in itertools.islice(writer.stdout, 150 + 77 * life):
                key, weight = map(int, line.split())
                seen[key] = weight
            writer.kill()
    with PyStorage(tmp_path / "store", **QUIET) as storage:
        rows = adaptive(storage, 1)
        keys = np.array(list(seen))
        found = rows.lookup(keys, np.ones(keys.size, int), train=False)
        assert found.mask.all()
        np.testing.assert_array_equal(found.rows[:, 0], list(seen.values()))
        assert_sound(storage)  # which counts rows anew: after a crash their number is an estimate
        assert keys.size <= rows.report().migrated == rows.report().exact_rows


def test_two_trainers_make_one_copy_that_loses_no_push(storage: PyStorage) -> None:
    rows = adaptive(storage, 1)
    ids, done = np.arange(300), threading.Event()
    seen: list[list[float]] = [[], []]
    acknowledged = [0]

    def push() -> None:
        while not done.is_set():
            rows.static.apply_gradients(keys_of(0), ones(1, DIM))
            acknowledged[0] += 1

    def look_up(trainer: int) -> None:
        for at in ids:
            least = acknowledged[0]
            found = rows.lookup(ids[at : at + 1], [1])
            pushes = -float(found.rows[0, 0])
            assert (found.rows == -pushes).all()
            if found.migrated:  # what was acknowledged before is in the copy, and nothing that was not pushed
                assert least <= pushes <= acknowledged[0] + 1
            seen[trainer].append(pushes)

    pusher = threading.Thread(target=push)
    trainers = [threading.Thread(target=look_up, args=(i,)) for i in range(2)]
    for thread in (pusher, *trainers):
        thread.start()
    for thread in trainers:
        thread.join()
    done.set()
    pusher.join()
    assert seen[0] == seen[1]  # each id was copied once, and both saw that copy
    assert rows.report().migrated == ids.size
    assert rows.static.lookup(keys_of(0), train=False)[0, 0] == -acknowledged[0]


# --- the threshold ---


@BOTH_COUNTS
def test_ids_become_frequent_and_go_back(storage: PyStorage, counting: Counting) -> None:
    rows = adaptive(storage, 1, threshold=counting(enter=4, leave=2, half_life=10))
    assert not pushed(rows, keys_of(1, 1, 1)).any()  # counts: 1 has 3
    assert pushed(rows, keys_of(1, 2)).tolist() == [True, False]  # 4, the lookup's own occurrences included
    assert pushed(rows, keys_of(1, 2, 2, 2, 2)).all()  # 5 and 5, then, as 10 were counted, 2 and 2
    assert rows.lookup(keys_of(1, 2), train=False).mask.all()  # not below `leave`
    others = np.arange(10, 20)
    assert not pushed(rows, others).any()  # 20: all are halved, to 1 and 1 and nothing
    found = rows.lookup(keys_of(1, 2), train=False)
    assert not found.mask.any()
    report = rows.report()
    assert (report.ids_exact, report.exact_rows, report.returned_rows, report.migrated) == (0, 2, 2, 2)
    assert pushed(rows, keys_of(1, 1, 1)).all()  # 4 again: the row is the one that it had
    assert rows.report().migrated == 2
    assert rows.drop_returned() == 1
    assert (rows.report().exact_rows, rows.report().returned_rows) == (1, 0)
    assert rows.drop_returned() == 0


def test_a_threshold_can_be_changed_while_it_is_used(storage: PyStorage) -> None:
    rows = adaptive(storage, 1, threshold={"name": "frequency", "enter": 10})
    assert not pushed(rows, keys_of(1, 1, 1)).any()
    rows.alter(threshold=Frequency(enter=4), optimizer=sgd(0.5))
    assert rows.threshold == {"name": "frequency", "enter": 4, "leave": 1, "half_life": 0, "keys_max": 1 << 24}
    assert pushed(rows, keys_of(1)).all()
    assert rows.lookup(keys_of(1, 1), [1, 0]).rows[:, 0].tolist() == [-3.5, -3.0]
    rows.alter(threshold=None)
    with pytest.raises(InvalidConfig, match="no threshold"):
        rows.lookup(keys_of(1))


def test_a_threshold_is_changed_for_everyone(open_storage: OpenStorage) -> None:
    storage = open_storage()
    one, other = adaptive(storage, 1), adaptive(storage, 1)
    one.alter(threshold=Frequency(enter=4))
    assert pushed(other, keys_of(1, 1, 1, 1)).all()
    other.alter(ttl=3600)  # and leaves the threshold, which it has not seen, as it is
    one.alter(optimizer=sgd(0.5))
    assert one.exact.config.ttl_s == 3600
    assert one.lookup(keys_of(1), train=False).mask.all()


@BOTH_COUNTS
def test_raising_leave_sends_ids_below_it_back(storage: PyStorage, counting: Counting) -> None:
    rows = adaptive(storage, 1, threshold=counting(enter=20, leave=5))
    assert pushed(rows, keys_of(*[1] * 25, *[2] * 60)).all()
    rows.alter(threshold=counting(enter=100, leave=50))
    assert rows.lookup(keys_of(1, 2), train=False).mask.tolist() == [False, True]
    assert (rows.report().ids_exact, rows.report().returned_rows) == (1, 1)
    assert rows.storage.stats()["groups"][rows.exact.group]["adaptive"]["ids_left"] == 1


def test_exact_counts_go_into_a_bloom_filter_and_do_not_come_back(storage: PyStorage) -> None:
    rows = adaptive(storage, 1, threshold=Frequency(enter=4, leave=2))
    assert pushed(rows, keys_of(1, 1, 1, 1, 2, 2, 2)).tolist() == [True] * 4 + [False] * 3
    rows.alter(threshold=BloomFrequency(enter=4, leave=2, capacity=1000))
    fixed = rows.report().counts_bytes
    assert rows.threshold == {
        **{"name": "counting_bloom", "enter": 4, "leave": 2, "half_life": 0, "capacity": 1000, "fpr": 0.01}
    }
    assert rows.lookup(keys_of(1, 2), train=False).mask.tolist() == [True, False]
    assert pushed(rows, keys_of(1, 2)).all()
    assert (rows.report().ids_exact, rows.report().counts_bytes) == (2, fixed)
    rows.alter(threshold=BloomFrequency(enter=4, leave=2, capacity=2000))  # another filter: counting begins anew
    assert not pushed(rows, keys_of(1, 2)).any()
    rows.alter(threshold=Frequency(enter=4, leave=2))
    assert not pushed(rows, keys_of(1, 1, 1, 2)).any()
    assert (rows.report().ids_exact, rows.report().returned_rows) == (0, 2)
    assert pushed(rows, keys_of(1, 2)).tolist() == [True, False]


def test_counts_in_a_bloom_filter_take_a_fraction_of_the_memory(storage: PyStorage) -> None:
    size = {}
    for threshold in (Frequency(enter=20), BloomFrequency(enter=20, capacity=20_000)):
        rows = adaptive(storage, 10)
        rows.alter(threshold=threshold)
        rows.lookup(np.arange(20_000))
        size[threshold.name] = rows.report().counts_bytes
        rows.alter(threshold=None)
    assert size["frequency"] >= 24 * 20_000
    assert size["counting_bloom"] == pytest.approx(10.8 * 20_000, rel=0.01)  # 9.6 counters of 9 bits an id


def test_a_mask_goes_before_the_threshold_and_counts_nothing(storage: PyStorage) -> None:
    rows = adaptive(storage, 1, threshold=Frequency(enter=2))
    assert pushed(rows, keys_of(1, 2), [1, 0]).tolist() == [True, False]
    assert not rows.lookup(keys_of(1, 2), train=False).mask.any()
    assert rows.report().counts_bytes > 0


def test_the_report_says_what_is_saved(storage: PyStorage) -> None:
    rows = adaptive(storage, 10)
    ids = np.arange(5000)
    pushed(rows, ids, ids < 20)
    report = rows.report()
    assert report.ids_seen == pytest.approx(5000, rel=0.04)  # five standard errors
    assert (report.static_rows, report.exact_rows, report.migrated) == (10, 20, 20)
    assert report.row_bytes == 40 + 4 * DIM
    assert report.saved_bytes == (report.ids_seen - 30) * report.row_bytes


# --- what cannot be ---


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"buckets": 0}, InvalidConfig, "buckets is 0"),
        ({"slots": "some"}, InvalidConfig, "slots is 'some', not one of 'copy', 'fresh'"),
        ({"absent": "init", "padding_key": 0}, InvalidConfig, "absent, padding_key cannot be given"),
        ({"key_dtype": float}, InvalidConfig, "key_dtype"),
        ({"threshold": {"name": "often", "enter": 3}}, UnknownName, "often"),
        ({"threshold": {"name": "frequency", "enter": 1}}, InvalidConfig, "enter=1 must be at least 2"),
        ({"threshold": {"name": "frequency", "enter": 3, "leave": 3}}, InvalidConfig, "leave=3 must be below enter=3"),
        ({"threshold": {"name": "frequency", "enter": 3, "half_life": -1}}, InvalidConfig, "half_life=-1"),
        ({"threshold": {"name": "frequency"}}, InvalidConfig, "enter"),
        ({"threshold": {"name": "counting_bloom", "enter": 3, "fpr": 0.0}}, InvalidConfig, "fpr=0.0 must be in"),
        ({"threshold": 3}, InvalidConfig, "threshold: expected"),
    ],
)
def test_settings_that_cannot_be(storage: PyStorage, options: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        adaptive(storage, **{"buckets": 5, **options})


@pytest.mark.parametrize("wrong", [{"admission": {"name": "often"}}, {"ttl": -1}, {"refresh": "never"}, {"seed": -1}])
def test_nothing_is_made_where_a_part_cannot_be(storage: PyStorage, wrong: dict[str, Any]) -> None:
    with pytest.raises((InvalidConfig, UnknownName)):
        adaptive(storage, **wrong)
    assert storage.names() == {}


def test_a_part_is_taken_back_where_the_other_one_cannot_be_made(
    storage: PyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_group = storage.backend.open_group

    def opens(config: Any, **options: Any) -> Any:
        if config.name == "ids/static":
            raise StorageFull("no room")
        return open_group(config, **options)

    monkeypatch.setattr(storage.backend, "open_group", opens)
    with pytest.raises(StorageFull):
        adaptive(storage)
    assert storage.names() == {}


@pytest.mark.parametrize("part", ["static", "exact"])
def test_a_part_that_was_dropped_is_made_anew_as_the_other_says(storage: PyStorage, part: str) -> None:
    rows = adaptive(storage, 5)
    ids = np.unique(hash_buckets(np.arange(9), 5), return_index=True)[1][:2]  # of two buckets
    pushed(rows, ids, [1, 0])
    storage.drop_group(getattr(rows, part).group)
    with pytest.raises(GroupConflict, match="its variable is"):
        adaptive(storage, 6)
    found = adaptive(storage, 5).lookup(ids, [1, 0])
    assert found.rows[:, 0].tolist() == ([-1, 0] if part == "static" else [0, -1])


def test_the_latest_step_of_both_parts_is_where_it_goes_on(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        rows = adaptive(storage, step="global")
        rows.global_step = 100
        pushed(rows, keys_of(1), [0])
    with open_storage() as storage:
        assert adaptive(storage, step="global").global_step == 100


def test_the_callers_array_may_change_before_the_gradient(storage: PyStorage) -> None:
    rows, ids = adaptive(storage), keys_of(1, 2)
    found = rows.lookup(ids, [1, 1])
    ids[:] = 7  # the next batch, say
    found.apply_gradients(ones(2, DIM))
    assert rows.lookup(keys_of(1, 2), [1, 1], train=False).rows[:, 0].tolist() == [-1, -1]


def test_masks_that_cannot_be(storage: PyStorage) -> None:
    rows = adaptive(storage)
    ids = keys_of(1, 2, 3)
    with pytest.raises(WrongShape, match="each of the 3 ids"):
        rows.lookup(ids, [1, 0])
    with pytest.raises(WrongShape, match="each of the 3 ids"):
        rows.lookup(ids, np.ones((3, 1), np.int32))
    with pytest.raises(WrongShape, match="a value for each id"):
        rows.lookup(ids, [[1, 0], [1]])
    with pytest.raises(WrongDtype, match="integers of 0 and 1"):
        rows.lookup(ids, np.ones(3, np.float32))
    with pytest.raises(InvalidConfig, match="a mask holds 2"):
        rows.lookup(ids, [1, 0, 2])
    with pytest.raises(InvalidConfig, match="no threshold, and the lookup no mask"):
        rows.lookup(ids)
    with pytest.raises(InvalidConfig, match="not the exact part of an adaptive variable with a threshold"):
        rows.drop_returned()
    assert rows.report().exact_rows == 0


def test_ids_that_cannot_be(storage: PyStorage) -> None:
    rows = adaptive(storage)
    with pytest.raises(WrongDtype, match="ids must be int64"):
        rows.lookup(["a"], [1])
    with pytest.raises(WrongDtype):
        rows.lookup(np.array([1.0]), [1])
    with pytest.raises(WrongShape, match="one axis"):
        rows.lookup(np.ones((2, 2), np.int64), [1, 1])


def test_it_is_opened_as_it_was_made(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        adaptive(storage, 5)
        with pytest.raises(GroupConflict):
            adaptive(storage, 6)
        with pytest.raises(GroupConflict):
            adaptive(storage, 5, slots="fresh")
    with pytest.raises(StorageClosed):
        adaptive(storage, 5)


def test_groups_that_are_no_variable_are_refused(storage: PyStorage) -> None:
    rows, other = adaptive(storage), embedding(storage, DIM)
    out = np.empty((1, DIM), np.float32)
    zero = keys_of(0)
    stranger = AdaptiveEmbedding(storage, sgd(1.0), zeros(), DIM, "others", 5)
    wrong = ((rows.exact, rows.static), (rows.static, other), (stranger.static, rows.exact))
    for static, exact in ((each.group, of.group) for each, of in wrong):
        with pytest.raises(InvalidConfig, match="are not the static and the exact part"):
            storage.backend.adaptive_lookup(AdaptiveKeys(static, exact, zero, zero, zero == 0), out, train=True)
    asked = AdaptiveKeys(rows.static.group, rows.exact.group, zero, zero + 5, zero == 0)
    with pytest.raises(InvalidConfig, match="buckets from 5 to 5: this variable has 5"):
        storage.backend.adaptive_lookup(asked, out, train=True)
    assert rows.report().exact_rows == 0
