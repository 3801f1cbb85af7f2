"""Request numbers make a push exactly-once; a push to several groups is all or nothing."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import GradientNotFinite, InvalidConfig, PyEmbedding, PyStorage, RequestTooOld, StorageClosed
from tests.api.helpers import OpenStorage, as_after_kill, embedding, engine_of, keys_of, ones, zeros

K = keys_of(1, 2)


def test_a_repeated_request_is_acknowledged_and_not_applied(storage: PyStorage) -> None:
    rows = embedding(storage)
    assert storage.apply_gradients([(rows, K, ones(2))], request=("trainer", 1))
    assert not storage.apply_gradients([(rows, K, ones(2))], request=("trainer", 1))
    rows.apply_gradients(K, ones(2), request=("trainer", 1))
    assert (rows.lookup(K, train=False) == -0.5).all()
    assert storage.last_request("trainer") == 1
    assert storage.last_request("another") == 0


def test_requests_are_remembered_over_a_reopening_and_a_kill(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    storage.apply_gradients([(embedding(storage), K, ones(2))], request=("trainer", 1))
    storage.close()
    storage = open_storage()
    rows = embedding(storage)
    assert not storage.apply_gradients([(rows, K, ones(2))], request=("trainer", 1))
    assert storage.apply_gradients([(rows, K, ones(2))], request=("trainer", 2))
    as_after_kill(storage, tmp_path / "killed")
    killed = open_storage("killed")
    rows = embedding(killed)
    assert killed.last_request("trainer") == 2
    assert not killed.apply_gradients([(rows, K, ones(2))], request=("trainer", 2))
    assert (rows.lookup(K, train=False) == -1.0).all()


def test_requests_may_come_out_of_order_but_not_from_too_far_behind(storage: PyStorage) -> None:
    rows = embedding(storage)
    for number in (5, 3, 4, 1, 2_000):
        assert storage.apply_gradients([(rows, K, ones(2))], request=("trainer", number))
        assert not storage.apply_gradients([(rows, K, ones(2))], request=("trainer", number))
    with pytest.raises(RequestTooOld, match="2000"):
        storage.apply_gradients([(rows, K, ones(2))], request=("trainer", 2))
    assert (rows.lookup(K, train=False) == -2.5).all()


def test_a_push_to_several_groups_is_all_or_nothing(storage: PyStorage) -> None:
    one, other = embedding(storage, group=1), embedding(storage, group=2)
    bad = ones(2)
    bad[1, 0] = np.nan
    with pytest.raises(GradientNotFinite, match="key 2"):
        storage.apply_gradients([(one, K, ones(2)), (other, K, bad)], request=("trainer", 1))
    assert storage.stats()["rows"] == 0
    assert storage.last_request("trainer") == 0
    assert storage.apply_gradients([(one, K, ones(2)), (other, K, ones(2))], request=("trainer", 1))
    for rows in (one, other):
        assert (rows.lookup(K, train=False) == -0.5).all()


def test_a_request_without_keys_counts_too(storage: PyStorage) -> None:
    rows = embedding(storage)
    assert storage.apply_gradients([(rows, keys_of(), ones(0))], request=("trainer", 1))
    assert storage.last_request("trainer") == 1


def test_bad_requests_are_refused(storage: PyStorage) -> None:
    rows = embedding(storage)
    for request in (("trainer", 0), ("", 1), ("trainer", 1.5), "trainer", ("trainer", True), (7, 1)):
        with pytest.raises(InvalidConfig, match=r"request|client id"):
            storage.apply_gradients([(rows, K, ones(2))], request=request)  # type: ignore[arg-type]
    assert storage.stats()["rows"] == 0
    for client in (3, "", "x" * 256):
        with pytest.raises(InvalidConfig, match="client id is"):
            storage.last_request(client)  # type: ignore[arg-type]


def test_a_resumed_trainer_ends_with_the_same_bits(open_storage: OpenStorage, tmp_path: Path) -> None:
    def train(storage: PyStorage, upto: int) -> None:
        rows = embedding(storage, initializer=zeros())
        for step in range(storage.last_request("t") + 1, upto + 1):
            keys = np.random.default_rng(step).integers(0, 50, 30)
            weights = rows.lookup(keys)
            storage.apply_gradients([(rows, keys, np.sin(weights + step))], request=("t", step))

    unbroken, broken = open_storage("unbroken"), open_storage("broken")
    train(unbroken, 40)
    train(broken, 17)
    as_after_kill(broken, tmp_path / "killed")
    killed = open_storage("killed")
    train(killed, 40)
    keys = np.arange(50)
    np.testing.assert_array_equal(
        embedding(killed).lookup(keys, train=False), embedding(unbroken).lookup(keys, train=False)
    )


def test_a_request_sent_by_several_threads_at_once_is_applied_once(storage: PyStorage) -> None:
    rows = embedding(storage)
    answers: list[bool] = []
    barrier = threading.Barrier(4)

    def send() -> None:
        for number in range(1, 51):
            barrier.wait()
            answers.append(storage.apply_gradients([(rows, K, ones(2))], request=("trainer", number)))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (answers.count(True), answers.count(False)) == (50, 150)
    assert (rows.lookup(K, train=False) == -25).all()


@pytest.mark.parametrize("where", ["journal", "memory"])
def test_a_push_that_meets_ctrl_c_is_whole_or_not_at_all_and_the_journal_stays_sound(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    storage = open_storage()
    one, other = embedding(storage, group=1), embedding(storage, group=2)
    place, name = (os, "pwritev") if where == "journal" else (engine_of(storage).group(1).optimizer.__class__, "apply")
    real = getattr(place, name)
    signals = [signal.SIGINT]  # one: another could come when this test has gone on

    def interrupted(*args: Any) -> Any:
        answer = real(*args)
        if signals:
            signal.raise_signal(signals.pop())
        return answer

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.apply_gradients([(one, K, ones(2)), (other, K, ones(2))], request=("trainer", 1))
    signal.signal(signal.SIGINT, before)
    one.apply_gradients(keys_of(9), ones(1))  # a shorter entry than the one that was interrupted
    applied = storage.last_request("trainer")  # now: a server may have gone on with the push until then
    as_after_kill(storage, tmp_path / "killed")
    for name in ("store", "killed"):
        storage.close()
        again = open_storage(name)
        assert again.last_request("trainer") == applied
        for group in (1, 2):
            assert (embedding(again, group=group).lookup(K, train=False) == -0.5 * applied).all()
        assert (embedding(again, group=1).lookup(keys_of(9), train=False) == -0.5).all()
        assert again.check().problems == []


@pytest.mark.embedded  # a connection that is closed does not know of what is on its way
def test_pushes_beside_a_close_are_there_or_were_refused(open_storage: OpenStorage) -> None:
    for turn in range(5):
        storage = open_storage(f"store-{turn}")
        rows = embedding(storage)
        errors: list[Exception] = []
        done = [0] * 3

        def push(mine: int, rows: PyEmbedding = rows, done: list[int] = done, seen: list[Exception] = errors) -> None:
            try:
                while True:
                    rows.apply_gradients(keys_of(mine), ones(1))
                    done[mine] += 1
            except Exception as error:
                seen.append(error)  # noqa: B023 - the thread ends before the next turn

        threads = [threading.Thread(target=push, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        storage.close()
        for thread in threads:
            thread.join()
        assert {type(error) for error in errors} == {StorageClosed}
        got = embedding(open_storage(f"store-{turn}")).lookup(np.arange(3), train=False)[:, 0]
        np.testing.assert_array_equal(got, [-0.5 * n for n in done])


def test_ids_of_connections_are_not_for_users(storage: PyStorage) -> None:
    with pytest.raises(InvalidConfig, match="connections' own"):
        embedding(storage).apply_gradients(keys_of(1), ones(1), request=("auto-1", 1))
