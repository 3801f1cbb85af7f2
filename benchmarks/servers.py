"""Server processes: started, waited for, ended. No library is needed here: damo's environment has none."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.proc import cpu_s, resident

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
READY_S = 120.0  # an interpreter without compiled kernels needs some ten seconds


class Server:
    """A process that serves. What it prints goes to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.perf_counter()
        with log.open("w") as printed:
            self._process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, cwd=ROOT)

    def wait_until(self, ready: Callable[[], T | None]) -> tuple[T, float]:
        """What `ready` returns as soon as it is not None, and the seconds from the start of the process until then.

        Raises RuntimeError with the last line printed if the process ends first, or takes READY_S.
        """
        while (found := ready()) is None:
            time.sleep(0.002)
            late = time.perf_counter() - self._started > READY_S
            if late or self._process.poll() is not None:
                self.stop()
                raise RuntimeError(f"{self._process.args!r} does not serve: {self._log.read_text().strip()[-500:]}")
        return found, time.perf_counter() - self._started

    def address(self) -> tuple[str, float]:
        """The grpc://HOST:PORT that it prints when it serves, and the seconds until then."""

        def printed() -> str | None:
            found = re.search(r"\bat (grpc://\S+)\n", self._log.read_text())
            return found and found[1]

        return self.wait_until(printed)

    @property
    def resident(self) -> float:
        """Resident memory, bytes."""
        return resident(self._process.pid)["now"]

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU used so far."""
        return cpu_s(self._process.pid)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end, and wait. May be repeated."""
        self._process.terminate()
        self._process.wait()


def rockbed_server(directory: Path, *options: str) -> Server:
    """`rockbed serve` of a store, on a free port of the loopback."""
    command = [sys.executable, "-m", "rockbed", "serve", "--data", str(directory), "--listen", "127.0.0.1:0", *options]
    return Server(command, directory.with_name(f"{directory.name}.log"))


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes that are started inside run on these cores only, all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
