"""Lives of the writing process: when it is killed, and what it was doing then."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.writer import Orders

ROOT = Path(__file__).parents[2]
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
    """Starts writers and kills them. One is always started ahead: it has done its imports when it is needed.

    seconds: how long the phases take that have an end, so that a moment within them can be drawn: more by and by, until
    a kill comes too late.
    """

    chance: random.Random
    seconds: dict[str, float] = field(
        default_factory=lambda: {"opening": 0.3, "flushing": 0.005, "shrinking": 0.04, "closing": 0.02}
    )
    _next: "subprocess.Popen[bytes] | None" = None

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.crash.writer"]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

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
        process, self._next = self._next or self._start(), None
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(LIFE_S_MAX, process.kill)
        watchdog.start()
        process.stdin.write(orders.to_json())
        process.stdin.close()
        lines: list[str] = []
        pushed = 0
        for raw in process.stdout:
            lines.append(raw.decode().strip())
            pushed += lines[-1].startswith("pushed")
            if lines[-1] == moment or moment == f"{pushed} pushed":
                time.sleep(wait_s)
                os.kill(process.pid, signal.SIGKILL)
                break
        self._next = self._start()
        lines += [raw.decode().strip() for raw in process.stdout]
        process.stdout.close()
        assert watchdog.is_alive(), f"the writer was stuck after {lines[-3:]}"
        watchdog.cancel()
        return Life(lines, process.wait())

    def close(self) -> None:
        """Let go of the writer that was started ahead."""
        if self._next is not None:
            self._next.kill()
            self._next.wait()
            for stream in (self._next.stdin, self._next.stdout):
                assert stream is not None
                stream.close()
