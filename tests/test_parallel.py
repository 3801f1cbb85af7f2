"""Parts of a call in threads: each is done exactly once, whatever the system refuses."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from rockbed import parallel
from rockbed.parallel import GRAIN, core_to_spare, in_parts, in_runs, side_by_side, spread


@pytest.fixture
def no_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not used threads yet, with three of them."""
    monkeypatch.setattr(parallel, "THREADS", 3)
    monkeypatch.setattr(parallel, "_pool", None)
    monkeypatch.setattr(parallel, "_pool_process", 0)
    yield
    if parallel._pool is not None:
        parallel._pool.shutdown()


def done_by(n: int) -> Counter[int]:
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def note(part: slice) -> None:
        with lock:
            done.update(range(part.start, part.stop))

    in_parts(n, note)
    return done


@pytest.mark.parametrize("n", [0, 1, GRAIN, 2 * GRAIN, 5 * GRAIN + 3])
@pytest.mark.usefixtures("no_pool")
def test_every_row_is_in_one_part(n: int) -> None:
    assert done_by(n) == Counter(range(n))


@pytest.mark.parametrize("others", [0, 1, 2, 3])
@pytest.mark.usefixtures("no_pool")
def test_a_call_has_as_many_parts_as_there_are_cores_beside_other_threads_at_work(
    monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr(parallel, "_CORES", 3)
    began, end = threading.Semaphore(0), threading.Event()

    def work(_: slice) -> None:
        began.release()
        assert end.wait(20)

    busy = [threading.Thread(target=in_parts, args=(GRAIN, work)) for _ in range(others)]
    for thread in busy:
        thread.start()
        assert began.acquire(timeout=20)
    names: list[str] = []

    def call(*_: slice) -> None:
        time.sleep(0.01)  # so that a thread of the pool would come to it
        names.append(threading.current_thread().name)

    def used(work: Callable[[], None]) -> tuple[int, int]:
        """Parts, and threads that made them."""
        names.clear()
        work()
        return len(names), len(set(names))

    try:
        assert core_to_spare() == (others < 2)
        threads = max(1, 3 - others)
        assert used(lambda: in_parts(6 * GRAIN, call)) == (6 if threads > 1 else 1, threads)
        assert used(lambda: in_parts(32 * GRAIN, call)) == (4 * threads if threads > 1 else 1, threads)
        assert used(lambda: in_parts(80 * GRAIN, call)) == (20 if threads > 1 else 1, threads)
        assert used(lambda: spread([(GRAIN, call)] * 9)) == (9, threads)
    finally:
        end.set()
        for thread in busy:
            thread.join(20)
    assert used(lambda: in_parts(40 * GRAIN, call)) == (12, 3)


@pytest.mark.usefixtures("no_pool")
def test_a_thread_that_is_held_up_leaves_its_parts_to_others() -> None:
    held, end, done = threading.Event(), threading.Event(), list[slice]()

    def work(part: slice) -> None:
        if threading.current_thread() is not threading.main_thread() and not held.is_set():
            held.set()
            assert end.wait(20)
        elif not held.wait(20) or len(done) == 10:
            end.set()  # the others have done all but what the first thread holds
        done.append(part)

    in_parts(40 * GRAIN, work)
    assert len(done) == 12
    assert sum(part.stop - part.start for part in done) == 40 * GRAIN


@pytest.mark.parametrize("n", [5, 6 * GRAIN])
@pytest.mark.usefixtures("no_pool")
def test_every_piece_is_in_one_run_the_empty_ones_too(n: int) -> None:
    begins = [0, 0, *range(1, n, max(1, n // 1000)), n - 1, n, n]
    seen: Counter[int] = Counter()
    in_runs(begins, n, lambda start, end: seen.update(range(start, end)))
    assert seen == Counter(range(len(begins)))
    in_runs([], 0, lambda start, end: seen.update([start, end]))
    assert seen[0] == 3


@pytest.mark.usefixtures("no_pool")
def test_without_threads_the_caller_does_it_all_and_nothing_is_done_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("rockbed-part_1"):  # the second one
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert done_by(4 * GRAIN) == Counter(range(4 * GRAIN))
    assert parallel._pool is None


@pytest.mark.usefixtures("no_pool")
def test_a_pool_that_takes_no_more_leaves_the_rest_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    done_by(4 * GRAIN)
    submit, todo = ThreadPoolExecutor.submit, [1]

    def once(pool: ThreadPoolExecutor, *args: object) -> object:
        if not todo:
            raise RuntimeError("cannot schedule new futures after shutdown")
        todo.pop()
        return submit(pool, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ThreadPoolExecutor, "submit", once)
    assert done_by(6 * GRAIN) == Counter(range(6 * GRAIN))


@pytest.mark.usefixtures("no_pool")
def test_calls_beside_others_have_no_core_to_spare() -> None:
    spare: list[bool] = []
    side_by_side([lambda: spare.append(core_to_spare())] * 3)
    assert spare == [False] * 3
    assert core_to_spare()


@pytest.mark.usefixtures("no_pool")
def test_what_a_part_raises_is_raised_when_all_have_ended() -> None:
    ended = []

    begun = threading.Barrier(3)

    def work(part: slice) -> None:
        begun.wait(20)
        if part.start == GRAIN:
            raise KeyError("the second")
        time.sleep(0.05)
        ended.append(part.start)

    with pytest.raises(KeyError, match="the second"):
        in_parts(6 * GRAIN, work)
    assert sorted(ended) == [0, 2 * GRAIN]  # nor are those begun that come after the error


@pytest.mark.usefixtures("no_pool")
def test_who_holds_a_lock_that_every_thread_waits_for_does_its_parts_itself() -> None:
    lock, waiting, done = threading.Lock(), threading.Semaphore(0), []

    def wait() -> None:
        waiting.release()
        with lock:
            pass

    others = threading.Thread(target=side_by_side, args=([wait] * 4,))
    holder = threading.Thread(target=lambda: done.append(done_by(6 * GRAIN)), daemon=True)
    with lock:
        others.start()
        for _ in range(4):  # the three of the pool, and the caller
            assert waiting.acquire(timeout=10)
        holder.start()
        holder.join(10)
        assert done == [Counter(range(6 * GRAIN))]
    others.join(10)
    assert done_by(6 * GRAIN) == Counter(range(6 * GRAIN))


@pytest.mark.parametrize(
    ("sizes", "threads"),
    [
        ([], 0),
        ([10], 1),  # not worth a thread
        ([100] * 60, 1),  # nor are many of such calls: what takes time there is their Python
        ([1000] * 60, 3),
        ([3 * GRAIN] * 26, 3),  # each is large, but there are many
        ([20 * GRAIN, 10, 10], 3),  # the large one has all threads for its parts
    ],
)
@pytest.mark.usefixtures("no_pool")
def test_calls_are_spread_over_the_threads(sizes: list[int], threads: int) -> None:
    lock, together = threading.Lock(), threading.Barrier(max(threads, 1))
    done: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    seen: set[str] = set()

    def call(i: int) -> None:
        def part(rows_: slice) -> None:
            name = threading.current_thread().name
            with lock:
                rows[i] += rows_.stop - rows_.start
                first = name not in seen and sizes[i] == max(sizes)
                seen.update([name] if first else [])
            if first:
                together.wait(10)  # until as many threads as there should be are at work

        with lock:
            done[i] += 1
        in_parts(sizes[i], part)

    spread([(size, partial(call, i)) for i, size in enumerate(sizes)])
    assert done == Counter(range(len(sizes)))
    assert rows == Counter(dict(enumerate(sizes)))
    assert len(seen) == threads


@pytest.mark.usefixtures("no_pool")
def test_after_an_error_nothing_more_is_begun() -> None:
    lock, waiting, done = threading.Lock(), threading.Semaphore(0), []

    def wait() -> None:
        waiting.release()
        with lock:
            pass

    def fail() -> None:
        raise KeyError("here")

    others = threading.Thread(target=side_by_side, args=([wait] * 4,))
    with lock:
        others.start()
        for _ in range(4):
            assert waiting.acquire(timeout=10)
        with pytest.raises(KeyError, match="here"):
            side_by_side([fail, lambda: done.append(1)])
    others.join(10)
    assert done_by(6 * GRAIN) == Counter(range(6 * GRAIN))  # the threads have been through all that was queued
    assert not done
