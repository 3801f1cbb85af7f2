"""The lock of a group: who waits for it is seen, and gets it."""

import threading
import time

import pytest

from rockbed import interrupts
from rockbed.interrupts import GuardedLock
from tests.waiting import until


def test_a_thread_that_waits_is_seen_until_it_has_the_lock() -> None:
    lock, has, done = GuardedLock(), threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with lock:
            has.set()
            assert done.wait(20)

    waiting = threading.Thread(target=wait_for_it)
    with lock:
        with lock:  # who has it does not wait
            assert not lock.is_wanted
        waiting.start()
        until(lambda: lock.is_wanted)
        time.sleep(0.05)  # long enough for it to look no more, and sleep
        assert lock.is_wanted
        assert not has.is_set()
    assert has.wait(20)
    until(lambda: not lock.is_wanted)
    assert not lock.unguarded.acquire(blocking=False)
    done.set()
    waiting.join()
    with lock:
        assert not lock.is_wanted


def test_nothing_is_lost_where_many_threads_take_turns() -> None:
    lock, counts, n = GuardedLock(), [0], 2_000

    def count() -> None:
        for _ in range(n):
            with lock:
                seen = counts[0]
                if seen % 97 == 0:
                    time.sleep(0)  # another thread runs
                counts[0] = seen + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[0] == 4 * n
    assert not lock.is_wanted


@pytest.mark.parametrize("brief", [True, False])
def test_a_lock_that_is_held_briefly_is_looked_at_again_before_a_thread_sleeps(
    monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    monkeypatch.setattr(interrupts, "_SPIN_S", 20.0)
    lock, slept = GuardedLock(), []
    inner = lock.unguarded

    class Noting:
        def acquire(self, blocking: bool = True) -> bool:
            slept.append(blocking)
            return inner.acquire(blocking)

        def release(self) -> None:
            inner.release()

    def take() -> None:
        with lock:
            pass

    with lock:
        lock.is_brief = brief
        monkeypatch.setattr(lock, "unguarded", Noting())
        waiting = threading.Thread(target=take)
        waiting.start()
        until(lambda: len(slept) > (3 if brief else 1))
    waiting.join(20)
    assert not waiting.is_alive()
    assert any(slept) is not brief
