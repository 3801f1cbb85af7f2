"""Contender processes, of which one runs at a time: the others are stopped, background threads and all."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Settings
from benchmarks.workloads import Measured, Sizes

ROOT = Path(__file__).resolve().parent.parent


class ContenderFailed(RuntimeError):
    """The contender raised, or its process ended; the message says which and how."""


class Worker:
    """One contender's process. It stands still (SIGSTOP) except while it is asked something.

    So work that a contender puts off for its background threads is done in its own time, not in another's.
    """

    def __init__(self, name: str, python: Path | None = None, module: str = "benchmarks.worker") -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name.startswith("damo") else None,  # it prints a line for each thing it does
            text=True,
            cwd=ROOT,
            start_new_session=True,  # a process group of its own: a server that the contender starts is stopped with it
            # Without it torch's threads wander over the cores, and its figures have two modes.
            env={**os.environ, "OMP_PROC_BIND": "true"},
        )
        self._signal(signal.SIGSTOP)

    def open(self, settings: Settings, sizes: Sizes) -> float:
        sent = {**asdict(settings), "directory": str(settings.directory)}
        return self._ask({"do": "open", "settings": sent, "sizes": asdict(sizes)}).seconds[0]

    def run(self, workload: str, round_: int) -> Measured:
        return self._ask({"do": workload, "round": round_})

    def close(self) -> float:
        """Close the contender and end its process; the seconds that closing took."""
        seconds = self._ask({"do": "close"}).seconds[0]
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()  # its loop over the commands ends
        self._process.wait()
        self.kill()
        return seconds

    def kill(self) -> None:
        """End the process, and the servers that it has started, at once, as kill -9 does. May be repeated."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        with suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def _ask(self, command: dict[str, Any]) -> Measured:
        return Measured(**self.ask(command))

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """What the process answers to a line of JSON. Raises ContenderFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderFailed(
                f"{self.name}: the process ended with code {self._process.wait()} in {command['do']!r}"
            )
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"{self.name}: {command['do']!r}: {answer['error']}")
        return answer
