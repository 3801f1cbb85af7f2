"""The processes of the story: trainers, and a server that can be killed and started again at the same address."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from examples.trainer import Plan, Step

ROOT = Path(__file__).resolve().parent.parent
ENDING_S = 60.0  # for a server that was asked to end


class Trainers:
    """So many trainers at once, each in a process of its own, which takes its share of the plan's steps.

    To be used in a `with` statement, which leaves no process behind.
    """

    def __init__(self, target: str, examples: Path, plan: Plan, trainers: int = 1, *, count: bool = False) -> None:
        """target: the store, a directory or a server's address. examples: a file that Examples.save has written."""
        options = [f"--{name}={value}" for name, value in asdict(plan).items()]
        options += ["--count"] if count else []
        command = [sys.executable, "-m", "examples.trainer", target, str(examples), *options, f"--trainers={trainers}"]
        # One pipe for all of them: a line that is so short is written whole.
        reading, writing = os.pipe()
        self._lines = os.fdopen(reading)
        self._processes = [
            subprocess.Popen([*command, f"--trainer={number}"], stdout=writing, cwd=ROOT) for number in range(trainers)
        ]
        os.close(writing)

    def __enter__(self) -> "Trainers":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for process in self._processes:
            process.wait()
        self._lines.close()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def steps(self) -> Iterator[Step]:
        """The steps as they are reported, until every trainer has ended."""
        for line in self._lines:
            yield Step(**json.loads(line))

    def kill(self) -> None:
        for process in self._processes:
            process.kill()

    def check(self) -> None:
        """Raise RuntimeError unless every trainer came to the end of its share."""
        for process in self._processes:
            if process.wait() != 0:
                raise RuntimeError(f"a trainer ended with code {process.returncode}; what it said is above")


class Server:
    """`rockbed serve` on a directory. To be used in a `with` statement, which leaves no process behind.

    It listens on a Unix socket: its address stays the same over a restart, and no other program can take it meanwhile.
    """

    def __init__(self, data: Path, log: Path) -> None:
        self._data = data
        self._log = log
        self._folder = tempfile.TemporaryDirectory(prefix="rockbed-")  # a socket's path has 107 bytes at most
        self._socket = Path(self._folder.name) / "socket"
        self._process: subprocess.Popen[str] | None = None
        self.target = f"grpc+unix://{self._socket}"

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> str:
        """Returns the line in which it says that it serves. Raises RuntimeError when it does not come to that."""
        command = [sys.executable, "-m", "rockbed", "serve", f"--data={self._data}", f"--listen=unix:{self._socket}"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with code {self._process.wait()}:\n{self._log.read_text()}")
        return line.strip()

    def kill(self) -> None:
        """SIGKILL, as the system sends it when memory is out."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def stop(self) -> None:
        """SIGTERM: it writes back and ends. Raises RuntimeError if it does not end well."""
        assert self._process is not None
        self._process.terminate()
        if self._process.wait(ENDING_S) != 0:
            raise RuntimeError(f"the server ended with code {self._process.returncode}:\n{self._log.read_text()}")
