"""The lock of a group: one thread has it, or several share it; who waits for it is seen, and gets it."""

import threading
import time

import pytest

from rockbed import guarded_lock
from rockbed.guarded_lock import GuardedLock
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
    monkeypatch.setattr(guarded_lock, "_SPIN_S", 20.0)
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


# --- shared ---


def test_threads_that_share_it_have_it_at_the_same_time() -> None:
    lock, together = GuardedLock(), threading.Barrier(3)

    def share() -> None:
        with lock.shared:
            together.wait(20)

    threads = [threading.Thread(target=share) for _ in range(2)]
    for thread in threads:
        thread.start()
    share()
    for thread in threads:
        thread.join(20)
    assert not together.broken


def test_who_would_have_it_alone_waits_for_those_who_share_it_and_goes_before_those_who_come_later() -> None:
    lock, order = GuardedLock(), []
    first, second = threading.Event(), threading.Event()

    def share(ends: threading.Event, name: str) -> None:
        with lock.shared:
            order.append(name)
            assert ends.wait(20)

    def alone() -> None:
        with lock:
            order.append("alone")
            time.sleep(0.05)  # for whoever shares it now by mistake
            order.append("alone, still")

    threads = [threading.Thread(target=share, args=(ends, name)) for ends, name in ((first, "1"), (second, "2"))]
    for thread in threads:
        thread.start()
    until(lambda: len(order) == 2)
    threads.append(threading.Thread(target=alone))
    threads[-1].start()
    until(lambda: lock._is_claimed)
    later = threading.Event()
    later.set()
    threads.append(threading.Thread(target=share, args=(later, "later")))
    threads[-1].start()
    until(lambda: lock.is_wanted)
    first.set()
    threads[0].join(20)
    time.sleep(0.05)
    assert sorted(order) == ["1", "2"]
    second.set()
    for thread in threads:
        thread.join(20)
    assert order[2:] == ["alone", "alone, still", "later"]
    assert not lock.is_wanted


@pytest.mark.parametrize("brief", [True, False])
def test_who_would_have_it_alone_looks_again_before_it_sleeps_where_it_is_shared_briefly(
    monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    monkeypatch.setattr(guarded_lock, "_SPIN_S", 20.0)
    lock, slept = GuardedLock(), threading.Event()
    wait = lock._left.wait

    def noted_wait() -> None:
        slept.set()
        wait()

    monkeypatch.setattr(lock._left, "wait", noted_wait)

    def alone() -> None:
        with lock:
            pass

    waiting = threading.Thread(target=alone)
    with lock.shared:
        lock.is_brief = brief
        waiting.start()
        until(lambda: lock._is_claimed)
        assert slept.wait(0.1 if brief else 20) is not brief
    waiting.join(20)
    assert not waiting.is_alive()


def test_no_thread_sees_what_another_has_half_changed() -> None:
    lock, pair, torn = GuardedLock(), [0, 0], []
    n = 1_500

    def change() -> None:
        for i in range(n):
            with lock:
                pair[0] += 1
                if i % 31 == 0:
                    time.sleep(0)  # another thread runs
                with lock:  # who has it can take it again, and share it with itself
                    pair[1] += 1
                with lock.shared:
                    torn.extend([] if pair[0] == pair[1] else [tuple(pair)])

    def look() -> None:
        for i in range(n):
            with lock.shared:
                seen = pair[0]
                if i % 31 == 0:
                    time.sleep(0)
                torn.extend([] if seen == pair[1] else [tuple(pair)])

    threads = [threading.Thread(target=each) for each in (change, change, look, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert pair == [2 * n, 2 * n]
    assert not torn


def test_unguarded_keeps_out_who_would_have_it_alone_and_lets_in_who_shares_it() -> None:
    lock, had = GuardedLock(), threading.Event()

    def alone() -> None:
        with lock:
            had.set()

    def share() -> None:
        with lock.shared:
            pass

    thread = threading.Thread(target=alone)
    with lock.unguarded:
        thread.start()
        until(lambda: lock.is_wanted)
        sharing = threading.Thread(target=share)
        sharing.start()
        sharing.join(20)
        assert not sharing.is_alive()
        assert not had.is_set()
    thread.join(20)
    assert had.is_set()
