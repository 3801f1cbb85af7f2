"""How `rockbed serve` waits for the signal that ends it."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from rockbed.server.cli_serve import told_to_end


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_came_before_the_wait_ends_it(number: signal.Signals) -> None:
    with told_to_end() as wait:
        os.kill(os.getpid(), number)
        wait()


def test_a_signal_ends_the_wait_whenever_it_comes_and_whichever_thread_gets_it() -> None:
    chance = np.random.default_rng(0)

    def tell(delay: float, thread: int | None) -> None:
        end = time.perf_counter() + delay
        while time.perf_counter() < end:  # sleeping takes longer than the moments that are aimed at
            pass
        if thread is None:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        else:
            signal.pthread_kill(thread, signal.SIGTERM)

    for i in range(400):
        with told_to_end() as wait:
            receiver = threading.main_thread().ident if i % 2 else None
            teller = threading.Thread(target=tell, args=(chance.uniform(0, 1e-3), receiver))
            teller.start()
            wait()
            teller.join()


def test_other_signals_do_not_end_it() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with told_to_end() as wait:
            os.kill(os.getpid(), signal.SIGUSR1)
            late = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
            began = time.perf_counter()
            late.start()
            wait()
            assert time.perf_counter() - began > 0.1
            late.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
