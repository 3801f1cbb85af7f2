"""Lives of the writing process: when it is killed, and what it was doing then."""

import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.writer import Orders, live

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["numba", "rocksdict", "rockbed.client.embedded", "tests.crash.writer"])
LIFE_S_MAX = 300.0  # a writer that reports nothing for so long is stuck; kernels may have to be compiled first
STEPS_MAX = 120  # of a life, before the moment at which it is killed
_STEP_S = 0.004  # a step takes about as long
_PHASES = ("opening", "flushing", "shrinking", "closing")  # by the last line; with any other it was "writing"


@dataclass
class Life:
    """What a life said, and how it ended. kill: whether a kill met it between opening and closed."""

    lines: list[str]
    status: int

    @property
    def killed(self) -> bool:
        """Whether the kill came after it began to open the store, and before it had closed it."""
        return self.status == -signal.SIGKILL and "opening" in self.lines and "closed" not in self.lines

    @property
    def phase(self) -> str:
        """What it was doing: opening (recovery included), flushing, shrinking, closing; or else writing."""
        return self.lines[-1] if self.lines[-1] in _PHASES else "writing"


@dataclass
class Killer:
    """Starts writers and kills them. One is always started ahead.

    seconds: how long the phases take that have an end, so that a moment within them can be drawn: more by and by, until
    a kill comes too late.
    """

    chance: random.Random
    seconds: dict[str, float] = field(
        default_factory=lambda: {"opening": 0.3, "flushing": 0.005, "shrinking": 0.04, "closing": 0.02}
    )
    _next: "_Writer | None" = None

    def live(self, directory: Path, seed: int, now_s: int, aim: str) -> Life:
        """A life that is killed at a random moment of a phase, or a little later: then it is of another phase.

        aim: a phase, or "nothing": then it ends by itself.
        """
        chance = self.chance
        busy = aim in ("flushing", "shrinking") or chance.random() < 0.5
        steps = chance.randint(1, STEPS_MAX)
        fsync = chance.choice(["never", "interval", "always"])
        orders = Orders(str(directory), seed, now_s, busy, fsync, steps if aim in ("closing", "nothing") else 0)
        moment = f"{steps} pushed" if aim == "writing" else aim
        life = self._run(orders, moment, chance.uniform(0, self.seconds.get(aim, _STEP_S)))
        if aim in self.seconds:
            self.seconds[aim] *= 1.25 if life.killed and life.phase == aim else 0.5
        return life

    def _run(self, orders: Orders, moment: str, wait_s: float) -> Life:
        writer, self._next = self._next or _Writer(), None
        watchdog = threading.Timer(LIFE_S_MAX, writer.process.kill)
        watchdog.start()
        writer.orders.send(orders)
        lines: list[str] = []
        pushed = 0
        for raw in writer.said:
            lines.append(raw.decode().strip())
            pushed += lines[-1].startswith("pushed")
            if lines[-1] == moment or moment == f"{pushed} pushed":
                time.sleep(wait_s)
                writer.process.kill()
                break
        self._next = _Writer()
        lines += [raw.decode().strip() for raw in writer.said]
        assert watchdog.is_alive(), f"the writer was stuck after {lines[-3:]}"
        watchdog.cancel()
        return Life(lines, writer.end())

    def close(self) -> None:
        """Let go of the writer that was started ahead."""
        if self._next is not None:
            self._next.process.kill()
            self._next.end()


class _Writer:
    """A writing process that waits for its orders."""

    def __init__(self) -> None:
        given, self.orders = _FORKS.Pipe(duplex=False)
        reports, said = _FORKS.Pipe(duplex=False)
        self.process = _FORKS.Process(target=live, args=(given, said))
        self.process.start()
        given.close()
        said.close()  # so that the reports end when the process does
        self.said = os.fdopen(os.dup(reports.fileno()), "rb")
        reports.close()

    def end(self) -> int:
        """Wait for its end. Returns its status, minus the signal if one killed it."""
        self.process.join()
        status = self.process.exitcode
        assert status is not None
        self.process.close()
        self.orders.close()
        self.said.close()
        return status
