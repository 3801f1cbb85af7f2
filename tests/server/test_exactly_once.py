"""Pushes over the wire are applied once, whatever is lost, restarted or shared."""

import random
import threading
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed.config import StoreConfig
from rockbed.server.engine import Engine
from rockbed.types import F64
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.server.served import Connect, Server


class LosesAnswers(grpc.ServerInterceptor):  # type: ignore[misc]
    """Loses some requests before they are carried out, and some answers after."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._chance = random.Random(7)
        self.lost = {"before": 0, "after": 0}

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            when = self._chance.choice(["before", "after"]) if self._chance.random() < self._share else ""
            if when == "before":
                self.lost[when] += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            answer = handler.unary_unary(request, context)
            if when == "after":
                self.lost[when] += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            return answer

        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _train(rows: Any, seed: int, pushes: int) -> F64:
    """Push whole numbers, whose sums are exact whatever their order; returns what they add up to for each key."""
    random_ = np.random.default_rng(seed)
    sums = np.zeros(50)
    for _ in range(pushes):
        keys = random_.integers(0, 50, 20)
        values = random_.integers(-8, 9, 20)
        rows.apply_gradients(keys, np.repeat(values[:, None], 4, axis=1).astype(np.float32))
        rows.lookup(keys)
        np.add.at(sums, keys, values)
    return sums


def _trained(rows: Any, threads: int, pushes: int) -> F64:
    sums: list[F64] = []
    workers = [
        threading.Thread(target=lambda seed=seed: sums.append(_train(rows[seed], seed, pushes)))
        for seed in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(sums) == threads
    total: F64 = np.sum(sums, axis=0)
    return total


def test_no_push_is_lost_or_applied_twice_where_a_third_of_the_answers_is_lost(
    server: Server, connect: Connect
) -> None:
    loses = LosesAnswers(1 / 3)
    target = server.start(loses)
    rows = [embedding(connect(target), optimizer=sgd(1.0)) for _ in range(3)]
    sums = _trained(rows, 3, 20)
    assert loses.lost["before"] > 10
    assert loses.lost["after"] > 10
    np.testing.assert_array_equal(rows[0].lookup(np.arange(50))[:, 0], -sums)


def test_a_restart_is_waited_for_and_no_push_is_applied_twice(server: Server, connect: Connect) -> None:
    target = server.start()
    listen = target.removeprefix("grpc://")
    rows = [embedding(connect(target, deadline_s=3), optimizer=sgd(1.0)) for _ in range(2)]
    done = threading.Event()

    def restart() -> None:
        while not done.wait(0.2):
            server.stop()
            server.engine.close()
            server.engine = Engine(server.folder / "store", StoreConfig(write_back_interval_s=3600))
            server.start(listen=listen)

    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        sums = _trained(rows, 2, 60)
    finally:
        done.set()
        restarter.join()
    np.testing.assert_array_equal(rows[0].lookup(np.arange(50))[:, 0], -sums)


def test_clients_of_one_name_do_not_take_each_others_pushes_for_their_own(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rockbed.audit")
    target = server.start()
    first, second = (embedding(connect(target, client_id="trainer-1"), optimizer=sgd(1.0)) for _ in range(2))
    for rows in (first, second, first, second):
        rows.apply_gradients(keys_of(1), ones(1))
    assert first.lookup(keys_of(1))[0, 0] == -4
    assert "trainer-1: create group 0" in caplog.text


def test_a_trainer_finds_out_which_of_its_pushes_was_the_last(server: Server, connect: Connect) -> None:
    target = server.start()
    rows = embedding(connect(target), optimizer=sgd(1.0))
    rows.apply_gradients(keys_of(1), ones(1), request=("trainer-1", 7))
    rows.apply_gradients(keys_of(1), ones(1), request=("trainer-1", 7))
    assert connect(target).last_request("trainer-1") == 7
    assert rows.lookup(keys_of(1))[0, 0] == -1
