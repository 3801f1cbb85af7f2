"""Stores that commands work on, and how the tests run a command."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from rockbed import PyStorage
from rockbed.server.cli import app
from tests.api.helpers import QUIET, adagrad, embedding, ones, sgd, uniform
from tests.source_tree import ROOT

ROWS = 100  # of group 1, keys 0 to 99; the first half has been pushed to once


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def done(*arguments: object, **options: Any) -> str:
    """stdout of a command that goes well and has nothing to say on stderr."""
    result = run(*arguments, **options)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def said(*arguments: object, **options: Any) -> Any:
    """The JSON document of a command that goes well."""
    return json.loads(done(*arguments, "--json", **options))


def refused(*arguments: object, code: int, **options: Any) -> str:
    """The one line with which a command ends."""
    result = run(*arguments, **options)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("rockbed: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def fill(storage: PyStorage) -> None:
    """Group 1: dim 4, adagrad, 100 rows. Group 7: dim 2, sgd, admits a key at its third sighting, one row."""
    users = embedding(storage, 4, 1, optimizer=adagrad(), initializer=uniform())
    keys = np.arange(ROWS)
    users.lookup(keys)
    users.apply_gradients(keys[: ROWS // 2], ones(ROWS // 2))
    items = embedding(storage, 2, 7, optimizer=sgd(), admission={"name": "min_count", "count": 3})
    items.lookup(np.array([1, 1, 1, 2, 2]))


def make_store(directory: Path) -> None:
    with PyStorage(directory, **QUIET) as storage:
        fill(storage)


@dataclass(frozen=True)
class Place:
    """A filled store, on a server or in a directory."""

    options: tuple[str, ...]  # that lead a command to it
    folder: Path  # of checkpoints and exports
    on_server: bool

    def copy(self, name: str) -> str:
        """A copy's name as commands take it."""
        return name if self.on_server else str(self.folder / name)


def environment(**more: str) -> dict[str, str]:
    """For a process of its own: a wide terminal, and none of the variables that name a store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROCKBED_")}
    return {**kept, "COLUMNS": "200", "TERM": "xterm", "PYTHONPATH": str(ROOT), **more}


INTERRUPTIBLE = (  # jobs in a shell's background ignore Ctrl-C, and so would what they start
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from rockbed.__main__ import main; main()"
)


def on_a_terminal(arguments: Sequence[object], answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Run a command on a terminal of its own. answers: what is typed when a text has been printed, one after another.

    Returns the exit code and all that was printed.
    """
    ours, its = pty.openpty()
    # the terminal has to be the process's own, or Ctrl-C is a character like others
    code = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); " + INTERRUPTIBLE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment(), cwd=ROOT)
    os.close(its)
    waiting = list(answers)
    printed, looked_at = "", 0
    end = time.monotonic() + 60
    while select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            read = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        printed += read.decode(errors="replace")
        if waiting and waiting[0][0] in printed[looked_at:]:
            looked_at = len(printed)
            os.write(ours, waiting.pop(0)[1].encode())
    os.close(ours)
    try:
        code_of_exit = process.wait(30)
    finally:
        process.kill()
        process.wait()
    assert not waiting, printed
    return code_of_exit, printed
